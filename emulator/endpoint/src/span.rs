//! Guest memory as the data path touches it: spans that live no longer than a slice of work, and the loops over them.
//!
//! The guest's CPUs may write the same bytes at the same time. A Rust reference or slice into that memory would promise
//! that they do not, so none is ever made: bytes move by `routines` (inline assembly, or volatile accesses), and what
//! is computed on (CRC, comparison, descriptors) is copied into memory of our own first.
#![allow(unsafe_code, reason = "raw copies between host pointers into guest memory")]
use std::marker::PhantomData;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::gate::Gate;

mod routines;

use routines::{move_bytes, prefetch, prefetch_to_write, store_words};

/// One bounded slice of an engine's work.
///
/// # Why a span is never stale (rule L10)
/// The engine makes a slice after it has emptied its mailbox, and drops it before it looks into the mailbox again;
/// spans borrow the slice. So no span outlives the point where the engine acknowledges an invalidation or a memory
/// change.
#[derive(Debug)]
pub struct Slice {
    /// What configuration space allows, as read when the slice began.
    pub gate: Gate,
}

impl Slice {
    /// A slice of the engine's work.
    ///
    /// # Safety
    /// Only for an engine that is online, after it has emptied its mailbox ([`Presence`](crate::Presence)). It drops
    /// the slice before it acknowledges what it finds in the mailbox next.
    pub unsafe fn begin(gate: Gate) -> Self {
        Self { gate }
    }
}

/// Guest memory that a translation leads to, contiguous in the host, usable within one slice.
#[derive(Clone, Copy, Debug)]
pub struct Span<'slice> {
    host: NonNull<u8>,
    /// Bytes, and [`ONCE`]. Two words, no flags of their own: a structure with a hole is copied in overlapping pieces,
    /// which processors stall on.
    len: usize,
    slice: PhantomData<&'slice Slice>,
}

/// In a span's length: its translation serves one access only.
const ONCE: usize = 1 << (usize::BITS - 1);

impl<'slice> Span<'slice> {
    /// `len` bytes at `host`.
    ///
    /// # Safety
    /// They are mapped as long as the slice lives: they lie in a window of `GuestMemory` that was taken after the
    /// engine last emptied its mailbox, or that every emptying since has left valid. They are mapped writable if the
    /// span is given to a function that writes.
    pub unsafe fn new(_slice: &'slice Slice, host: NonNull<u8>, len: usize) -> Self {
        debug_assert!(len < ONCE);
        Self { host, len, slice: PhantomData }
    }

    /// The same, of a translation that serves one access only.
    pub fn once(self) -> Self {
        Self { len: self.len | ONCE, ..self }
    }

    /// Whether its translation may be used again in the same slice.
    pub fn is_lasting(&self) -> bool {
        self.len & ONCE == 0
    }

    /// The span from its byte `offset` on.
    #[inline]
    pub fn skip(self, offset: usize) -> Self {
        assert!(offset <= self.len(), "beyond a span");
        // SAFETY: inside the span, or one past its end.
        Self { host: unsafe { self.host.add(offset) }, len: self.len - offset, ..self }
    }

    /// Whether it has no bytes.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes.
    #[inline]
    pub fn len(&self) -> usize {
        self.len & !ONCE
    }

    /// Has the cache line `offset` bytes into the span fetched, where the span is that long: it will be read soon.
    #[inline]
    pub fn prefetch(&self, offset: usize) {
        if offset < self.len() {
            prefetch(self.host.as_ptr().wrapping_add(offset));
        }
    }

    /// The same for a line that will be written: nobody else keeps it.
    #[inline]
    pub fn prefetch_to_write(&self, offset: usize) {
        if offset < self.len() {
            prefetch_to_write(self.host.as_ptr().wrapping_add(offset));
        }
    }

    /// Fills `buf` from the span's start.
    pub fn load(&self, buf: &mut [u8]) {
        assert!(buf.len() <= self.len(), "load beyond a span");
        // SAFETY: the span is mapped for the slice (`new`) and long enough (above); `buf` is ours and cannot overlap
        // it, being no guest memory.
        unsafe { move_bytes(self.host.as_ptr(), buf.as_mut_ptr(), buf.len()) }
    }

    /// Writes 8-byte words to the span's start, little-endian; the last one release: a guest that sees any of it sees
    /// all that was written before.
    pub fn store_entry<const N: usize>(&self, words: [u64; N]) {
        assert!(8 * N <= self.len(), "store beyond a span");
        let first = self.host.cast::<u64>();
        assert!(first.is_aligned(), "a ring's entries are aligned");
        for (n, word) in words.into_iter().enumerate() {
            let order = if n + 1 == N { Ordering::Release } else { Ordering::Relaxed };
            // SAFETY: aligned, and inside the span (above), which is mapped and writable (`new`); the guest's accesses
            // to it are machine accesses, not Rust ones.
            unsafe { AtomicU64::from_ptr(first.as_ptr().add(n)) }.store(word.to_le(), order);
        }
    }

    /// Copies the first `len` bytes of `self` to `to`. Both may be the same memory, by two
    /// translations: then `to` holds any mix of the bytes.
    pub fn copy_to(&self, to: Span<'_>, len: usize) {
        assert!(len <= self.len() && len <= to.len(), "copy beyond a span");
        // SAFETY: both are mapped for the slice (`new`) and long enough (above); `move_bytes` allows overlap.
        unsafe { move_bytes(self.host.as_ptr(), to.host.as_ptr(), len) }
    }

    /// Fills the first `len` bytes with the little-endian bytes of `pattern`, repeated.
    pub fn fill(&self, pattern: u64, len: usize) {
        assert!(len <= self.len(), "fill beyond a span");
        let words = len / 8;
        // SAFETY: the words lie inside the span (above), which is mapped and writable (`new`).
        unsafe { store_words(self.host.as_ptr(), pattern.to_le(), words) };
        let rest = len % 8;
        // SAFETY: `words * 8 + rest == len`, inside the span.
        unsafe { move_bytes(pattern.to_le_bytes().as_ptr(), self.host.as_ptr().add(words * 8), rest) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_move_what_they_cover_and_nothing_else() {
        #[repr(align(64))]
        struct Memory([u8; 64]);
        let mut memory = Memory([0; 64]);
        // SAFETY: no engine and no mailbox: nothing is ever retired.
        let slice = unsafe { Slice::begin(Gate::default()) };
        let host = NonNull::new(memory.0.as_mut_ptr()).unwrap();
        // SAFETY: `memory` outlives the slice and is only used through the spans until they are gone.
        let (low, high) = unsafe { (Span::new(&slice, host, 32), Span::new(&slice, host.add(32), 32)) };
        low.store_entry([0x0103_0201]);
        low.copy_to(high, 3);
        high.skip(8).store_entry([0x0403_0201, 9]);
        let mut back = [0; 17];
        high.load(&mut back);
        assert_eq!(back, [1, 2, 3, 0, 0, 0, 0, 0, 1, 2, 3, 4, 0, 0, 0, 0, 9]);
        low.fill(0x0807_0605_0403_0201, 11);
        let mut back = [0; 12];
        low.load(&mut back);
        assert_eq!(back, [1, 2, 3, 4, 5, 6, 7, 8, 1, 2, 3, 0]);
    }

    #[test]
    #[should_panic(expected = "copy beyond a span")]
    fn a_length_beyond_a_span_is_our_own_mistake() {
        let mut memory = [0u8; 8];
        // SAFETY: no engine and no mailbox: nothing is ever retired.
        let slice = unsafe { Slice::begin(Gate::default()) };
        // SAFETY: `memory` outlives the span.
        let span = unsafe { Span::new(&slice, NonNull::new(memory.as_mut_ptr()).unwrap(), 4) };
        span.copy_to(span, 5);
    }
}
