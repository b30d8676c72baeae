//! Bytes of buffers in bulk: the processor's own copying, comparing and clearing.
#![allow(unsafe_code, reason = "memcpy, memcmp and memset on memory that no reference points into")]
use svadev_guest::Buffer;

use crate::check;
use crate::harness::{Rng, Verdict};

/// A part of a buffer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Range<'b> {
    buffer: &'b Buffer,
    offset: usize,
    length: usize,
}

impl<'b> Range<'b> {
    /// `length` bytes at `offset`.
    ///
    /// # Panics
    /// They are not all in the buffer.
    pub(super) fn new(buffer: &'b Buffer, offset: usize, length: usize) -> Self {
        let end = offset.checked_add(length);
        assert!(end.is_some_and(|end| end <= buffer.len()), "{length} bytes at {offset} are not in {}", buffer.len());
        Self { buffer, offset, length }
    }

    /// Address of its first byte.
    pub(super) fn address(&self) -> u64 {
        self.buffer.at(self.offset)
    }

    fn pointer(&self) -> *mut u8 {
        // SAFETY: within the mapping, as `new` asserted.
        unsafe { self.buffer.as_ptr().add(self.offset) }
    }

    /// Random bytes everywhere.
    pub(super) fn randomize(&self, rng: &mut Rng) {
        const CHUNK: usize = 64 << 10;
        for at in (0..self.length).step_by(CHUNK) {
            self.buffer.write(self.offset + at, &rng.bytes(CHUNK.min(self.length - at)));
        }
    }

    /// Set every byte, as fast as the processor can.
    pub(super) fn set(&self, value: u8) {
        // SAFETY: the range is in a live mapping (`new`), to which no reference exists (`Buffer`), and libc, a foreign
        // library, accesses it as plain memory. Nothing of it is in flight while its owner calls this; even then a byte
        // would be one of those written.
        unsafe { libc::memset(self.pointer().cast(), value.into(), self.length) };
    }

    /// Copy from another range of the same length, with which it does not overlap, in pieces of so many bytes.
    ///
    /// # Panics
    /// They overlap, or have not the same length.
    #[inline]
    pub(super) fn copy_from(&self, src: &Self, piece: usize) {
        assert_eq!(self.length, src.length, "ranges of one length");
        assert!(self.address().abs_diff(src.address()) >= self.length as u64, "ranges do not overlap");
        let mut at = 0;
        while at < self.length {
            let length = piece.min(self.length - at);
            // SAFETY: as in `set`, for both: `at + length` is within them. They do not overlap (asserted).
            unsafe { libc::memcpy(self.pointer().add(at).cast(), src.pointer().add(at).cast(), length) };
            at += length;
        }
    }

    /// Check that both hold the same bytes.
    pub(super) fn check_same(&self, src: &Self, what: &str) -> Verdict {
        assert_eq!(self.length, src.length, "ranges of one length");
        // SAFETY: as in `set`, for both.
        let same = unsafe { libc::memcmp(self.pointer().cast(), src.pointer().cast(), self.length) } == 0;
        if same {
            return Ok(());
        }
        let differs = (0..self.length).find(|&at| self.byte(at) != src.byte(at));
        check!(false, "{what}: {} bytes at {:#x}: wrong from byte {differs:?} on", self.length, self.address());
        Ok(())
    }

    /// `length` bytes of it at `at`.
    ///
    /// # Panics
    /// They are not all in it.
    pub(super) fn part(&self, at: usize, length: usize) -> Self {
        let end = at.checked_add(length);
        assert!(end.is_some_and(|end| end <= self.length), "{length} bytes at {at} are not in {}", self.length);
        Self { offset: self.offset + at, length, ..*self }
    }

    /// Change the byte at `at`; twice is not at all.
    pub(super) fn flip(&self, at: usize) {
        let byte = self.part(at, 1);
        self.buffer.write(byte.offset, &[!byte.byte(0)]);
    }

    /// Check that it holds these 8 bytes repeated, lowest first.
    pub(super) fn check_pattern(&self, pattern: u64) -> Verdict {
        let bytes = self.buffer.bytes(self.offset, self.length);
        let wrong = (bytes.iter().zip(pattern.to_le_bytes().iter().cycle())).position(|(a, e)| a != e);
        check!(wrong.is_none(), "{} bytes at {:#x}: wrong from byte {wrong:?} on", self.length, self.address());
        Ok(())
    }

    /// What a fill by the device does.
    #[cfg(test)]
    pub(super) fn fill_pattern(&self, pattern: u64) {
        let bytes: Vec<u8> = pattern.to_le_bytes().into_iter().cycle().take(self.length).collect();
        self.buffer.write(self.offset, &bytes);
    }

    fn byte(&self, at: usize) -> u8 {
        self.buffer.get(self.offset + at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bulk_access_is_within_the_range() {
        let buffer = Buffer::anonymous(8192).unwrap();
        let (src, dst) = (Range::new(&buffer, 1, 1000), Range::new(&buffer, 4097, 1000));
        src.randomize(&mut Rng::new(1, "x"));
        dst.set(0xee);
        assert!(dst.check_same(&src, "before").is_err());
        dst.copy_from(&src, 300);
        dst.check_same(&src, "after").unwrap();
        assert_eq!([buffer.get(0), buffer.get(1001), buffer.get(4096), buffer.get(5097)], [0; 4]);
        buffer.write(4097 + 999, &[!buffer.get(1000)]);
        let why = format!("{:?}", dst.check_same(&src, "planted").unwrap_err());
        assert!(why.contains("byte Some(999)"), "{why}");
    }
}
