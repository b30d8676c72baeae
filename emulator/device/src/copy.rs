//! Guest memory as the data path touches it: spans that live no longer than a slice of work, and the loops over them.
//!
//! The guest's CPUs may write the same bytes at the same time. A Rust reference or slice into that memory would promise
//! that they do not, so none is ever made: bytes move by string instructions in inline assembly or by volatile
//! accesses, and what is computed on (CRC, comparison, descriptors) is copied into memory of our own first.
#![allow(unsafe_code, reason = "raw copies between host pointers into guest memory")]
use std::marker::PhantomData;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::shared::Gate;

/// One bounded slice of an engine's work.
///
/// # Why a span is never stale (rule L10)
/// The engine makes a slice after it has emptied its mailbox, and drops it before it looks into the mailbox again; spans
/// borrow the slice. So no span outlives the point where the engine acknowledges an invalidation or a memory change.
#[derive(Debug)]
pub(crate) struct Slice {
    /// What configuration space allows, as read when the slice began.
    pub(crate) gate: Gate,
}

impl Slice {
    /// Only for the engine, after it has emptied its mailbox.
    pub(crate) fn begin(gate: Gate) -> Self {
        Self { gate }
    }
}

/// Guest memory that a translation leads to, contiguous in the host, usable within one slice.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Span<'slice> {
    host: NonNull<u8>,
    len: usize,
    slice: PhantomData<&'slice Slice>,
}

impl<'slice> Span<'slice> {
    /// `len` bytes at `host`.
    ///
    /// # Safety
    /// They are mapped as long as the slice lives: they lie in a window of `GuestMemory` that was taken after the engine
    /// last emptied its mailbox, or that every emptying since has left valid. They are mapped writable if the span is
    /// given to a function that writes.
    pub(crate) unsafe fn new(_slice: &'slice Slice, host: NonNull<u8>, len: usize) -> Self {
        Self { host, len, slice: PhantomData }
    }

    /// Bytes.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Fills `buf` from the span's start.
    pub(crate) fn load(&self, buf: &mut [u8]) {
        assert!(buf.len() <= self.len, "load beyond a span");
        // SAFETY: the span is mapped for the slice (`new`) and long enough (above); `buf` is ours and cannot overlap it,
        // being no guest memory.
        unsafe { move_bytes(self.host.as_ptr(), buf.as_mut_ptr(), buf.len()) }
    }

    /// Writes `buf` to the span's start.
    pub(crate) fn store(&self, buf: &[u8]) {
        assert!(buf.len() <= self.len, "store beyond a span");
        // SAFETY: as in `load`; the span's maker vouches for writability.
        unsafe { move_bytes(buf.as_ptr(), self.host.as_ptr(), buf.len()) }
    }

    /// Stores 4 aligned bytes at `offset`, little-endian, release: a guest that sees them sees all that was written before.
    pub(crate) fn store_release(&self, offset: usize, value: u32) {
        assert!(offset + 4 <= self.len, "store beyond a span");
        // SAFETY: inside the span (above), which is mapped and writable (`new`).
        let word = unsafe { self.host.add(offset) }.cast::<u32>();
        assert!(word.is_aligned(), "a completion's fields are aligned");
        // SAFETY: aligned and mapped (above); the guest's accesses to it are machine accesses, not Rust ones.
        unsafe { AtomicU32::from_ptr(word.as_ptr()) }.store(value.to_le(), Ordering::Release);
    }

    /// Copies the first `len` bytes of `self` to `to`. Both may be the same memory: then it is a forward byte copy.
    pub(crate) fn copy_to(&self, to: Span<'_>, len: usize) {
        assert!(len <= self.len && len <= to.len, "copy beyond a span");
        // SAFETY: both are mapped for the slice (`new`) and long enough (above); `move_bytes` allows overlap.
        unsafe { move_bytes(self.host.as_ptr(), to.host.as_ptr(), len) }
    }

    /// Fills the first `len` bytes with the little-endian bytes of `pattern`, repeated.
    pub(crate) fn fill(&self, pattern: u64, len: usize) {
        assert!(len <= self.len, "fill beyond a span");
        let words = len / 8;
        // SAFETY: the words lie inside the span (above), which is mapped and writable (`new`).
        unsafe { store_words(self.host.as_ptr(), pattern.to_le(), words) };
        let rest = len % 8;
        // SAFETY: `words * 8 + rest == len`, inside the span.
        unsafe { move_bytes(pattern.to_le_bytes().as_ptr(), self.host.as_ptr().add(words * 8), rest) };
    }
}

/// Copies bytes upwards, as the machine's string instruction does.
///
/// # Safety
/// `len` bytes at `src` are readable and at `dst` writable. Either may be changed by others meanwhile: the copy then has
/// any mix of old and new bytes.
#[cfg(target_arch = "x86_64")]
unsafe fn move_bytes(src: *const u8, dst: *mut u8, len: usize) {
    // SAFETY: reads and writes exactly the bytes the caller vouches for; DF is clear by the ABI; assembly is opaque to the
    // compiler, so that concurrent writes to this memory are no data race of the language's.
    unsafe {
        std::arch::asm!("rep movsb", inout("rcx") len => _, inout("rsi") src => _, inout("rdi") dst => _,
            options(nostack, preserves_flags));
    }
}

/// Copies bytes upwards.
///
/// # Safety
/// `len` bytes at `src` are readable and at `dst` writable. Either may be changed by others meanwhile.
#[cfg(not(target_arch = "x86_64"))]
unsafe fn move_bytes(src: *const u8, dst: *mut u8, len: usize) {
    for n in 0..len {
        // SAFETY: inside what the caller vouches for; volatile, since others may access it.
        unsafe { dst.add(n).write_volatile(src.add(n).read_volatile()) };
    }
}

/// Stores a word `words` times, upwards, at any alignment.
///
/// # Safety
/// `8 * words` bytes at `dst` are writable.
#[cfg(target_arch = "x86_64")]
unsafe fn store_words(dst: *mut u8, word: u64, words: usize) {
    // SAFETY: writes exactly the bytes the caller vouches for; see `move_bytes`.
    unsafe {
        std::arch::asm!("rep stosq", inout("rcx") words => _, inout("rdi") dst => _, in("rax") word,
            options(nostack, preserves_flags));
    }
}

/// Stores a word `words` times, upwards, at any alignment.
///
/// # Safety
/// `8 * words` bytes at `dst` are writable.
#[cfg(not(target_arch = "x86_64"))]
unsafe fn store_words(dst: *mut u8, word: u64, words: usize) {
    for (n, byte) in word.to_ne_bytes().iter().cycle().take(words * 8).enumerate() {
        // SAFETY: inside what the caller vouches for.
        unsafe { dst.add(n).write_volatile(*byte) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_move_what_they_cover_and_nothing_else() {
        let mut memory = [0u8; 64];
        let slice = Slice::begin(Gate::default());
        let host = NonNull::new(memory.as_mut_ptr()).unwrap();
        // SAFETY: `memory` outlives the slice and is only used through the spans until they are gone.
        let (low, high) = unsafe { (Span::new(&slice, host, 32), Span::new(&slice, host.add(32), 32)) };
        low.store(&[1, 2, 3]);
        low.copy_to(high, 3);
        high.store_release(8, 0x0403_0201);
        let mut back = [0; 12];
        high.load(&mut back);
        assert_eq!(back, [1, 2, 3, 0, 0, 0, 0, 0, 1, 2, 3, 4]);
        low.fill(0x0807_0605_0403_0201, 11);
        let mut back = [0; 12];
        low.load(&mut back);
        assert_eq!(back, [1, 2, 3, 4, 5, 6, 7, 8, 1, 2, 3, 0]);
    }

    #[test]
    #[should_panic(expected = "copy beyond a span")]
    fn a_length_beyond_a_span_is_our_own_mistake() {
        let mut memory = [0u8; 8];
        let slice = Slice::begin(Gate::default());
        // SAFETY: as above.
        let span = unsafe { Span::new(&slice, NonNull::new(memory.as_mut_ptr()).unwrap(), 4) };
        span.copy_to(span, 5);
    }
}
