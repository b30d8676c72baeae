//! Memory to hand to the device.
#![allow(unsafe_code, reason = "owns a mapping and accesses it with volatile loads and stores")]

use std::num::NonZeroUsize;
use std::os::fd::AsFd;
use std::ptr::NonNull;

use nix::sys::mman::{self, MapFlags, MmapAdvise, ProtFlags};

use crate::{Error, Result};

/// Size of the smallest page, bytes.
pub const PAGE_SIZE: usize = 4096;

/// What stands behind a [`Buffer`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Backing {
    /// Private anonymous memory; transparent huge pages as the system decides.
    #[default]
    Anonymous,
    /// Anonymous memory that a fork shares instead of copying.
    AnonymousShared,
    /// hugetlbfs pages of 2^`log2` bytes (21: 2 MiB, 30: 1 GiB). `ENOMEM` if none are reserved.
    HugeTlb {
        /// Log2 of the page size.
        log2: u8,
    },
}

/// An owned mapping that programs and device both access: addresses and bytes, never references.
///
/// Access is volatile, for the device writes at any time. A buffer stays mapped until dropped or unmapped, so an address within it
/// is always this memory.
#[derive(Debug)]
pub struct Buffer {
    base: NonNull<u8>,
    length: usize,
}

// SAFETY: the mapping belongs to the process, not to a thread, and `Buffer` is its only owner.
unsafe impl Send for Buffer {}
// SAFETY: shared access is volatile loads and stores of plain bytes; threads that race on a byte get one of the values written.
unsafe impl Sync for Buffer {}

impl Buffer {
    /// Maps `length` bytes (rounded up to pages) of private anonymous memory; untouched, so not present.
    pub fn anonymous(length: usize) -> Result<Self> {
        Self::new(length, Backing::Anonymous)
    }

    /// Maps `length` bytes, rounded up to the backing's pages.
    pub fn new(length: usize, backing: Backing) -> Result<Self> {
        let (page, flags) = match backing {
            Backing::Anonymous => (PAGE_SIZE, MapFlags::MAP_PRIVATE),
            Backing::AnonymousShared => (PAGE_SIZE, MapFlags::MAP_SHARED),
            Backing::HugeTlb { log2 } => {
                let size = MapFlags::from_bits_retain(i32::from(log2) << libc::MAP_HUGE_SHIFT);
                (1 << log2, MapFlags::MAP_PRIVATE | MapFlags::MAP_HUGETLB | size)
            }
        };
        let length = rounded(length, page)?;
        // SAFETY: without MAP_FIXED the kernel picks a range that nothing uses.
        let base = unsafe { mman::mmap_anonymous(None, length, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, flags) };
        base.map_err(Error::system("mmap")).map(|base| Self { base: base.cast(), length: length.get() })
    }

    /// Maps `length` bytes (rounded up to pages) of a file from `offset`, readable and writable, shared or private.
    pub fn file(file: impl AsFd, offset: i64, length: usize, shared: bool) -> Result<Self> {
        let flags = if shared { MapFlags::MAP_SHARED } else { MapFlags::MAP_PRIVATE };
        let length = rounded(length, PAGE_SIZE)?;
        // SAFETY: without MAP_FIXED the kernel picks a range that nothing uses.
        let base =
            unsafe { mman::mmap(None, length, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, flags, file, offset) };
        base.map_err(Error::system("mmap")).map(|base| Self { base: base.cast(), length: length.get() })
    }

    /// Maps `length` bytes of anonymous memory at a multiple of `align` (a power of two, at least a page).
    pub fn aligned(length: usize, align: usize) -> Result<Self> {
        assert!(align.is_power_of_two() && align >= PAGE_SIZE, "alignment is a power of two of at least a page");
        let mut buffer = Self::anonymous(length + align)?;
        let skip = buffer.base.addr().get().wrapping_neg() & (align - 1);
        if skip != 0 {
            let aligned = buffer.split_off(skip);
            drop(std::mem::replace(&mut buffer, aligned));
        }
        let keep = rounded(length, PAGE_SIZE)?.get();
        if keep < buffer.length {
            drop(buffer.split_off(keep));
        }
        Ok(buffer)
    }

    /// Address of the first byte, as descriptors hold it.
    pub fn address(&self) -> u64 {
        self.base.as_ptr().expose_provenance() as u64
    }

    /// Address of the byte at `offset`, which is within the buffer or its end.
    pub fn at(&self, offset: usize) -> u64 {
        assert!(offset <= self.length, "offset {offset} is beyond {}", self.length);
        self.address() + offset as u64
    }

    /// Pointer to the first byte, for system calls that this type does not wrap.
    pub fn as_ptr(&self) -> *mut u8 {
        self.base.as_ptr()
    }

    /// Length, bytes.
    #[allow(clippy::len_without_is_empty, reason = "a buffer is never empty")]
    pub fn len(&self) -> usize {
        self.length
    }

    /// Reads the bytes at `offset`.
    pub fn read(&self, offset: usize, bytes: &mut [u8]) {
        self.check(offset, bytes.len());
        let mut at = 0;
        while at < bytes.len() {
            // SAFETY: `check` proved `offset + at` within the mapping, and `word` that eight aligned bytes are.
            unsafe {
                let from = self.base.as_ptr().add(offset + at);
                if Self::word(from, bytes.len() - at) {
                    bytes[at..at + 8].copy_from_slice(&from.cast::<u64>().read_volatile().to_ne_bytes());
                    at += 8;
                } else {
                    bytes[at] = from.read_volatile();
                    at += 1;
                }
            }
        }
    }

    /// Writes bytes at `offset`.
    pub fn write(&self, offset: usize, bytes: &[u8]) {
        self.check(offset, bytes.len());
        let mut at = 0;
        while at < bytes.len() {
            // SAFETY: as in `read`.
            unsafe {
                let to = self.base.as_ptr().add(offset + at);
                if Self::word(to, bytes.len() - at) {
                    let word = bytes[at..at + 8].try_into().expect("eight bytes");
                    to.cast::<u64>().write_volatile(u64::from_ne_bytes(word));
                    at += 8;
                } else {
                    to.write_volatile(bytes[at]);
                    at += 1;
                }
            }
        }
    }

    /// The byte at `offset`.
    pub fn get(&self, offset: usize) -> u8 {
        let mut byte = [0];
        self.read(offset, &mut byte);
        byte[0]
    }

    /// `length` bytes at `offset`, copied out.
    pub fn bytes(&self, offset: usize, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.read(offset, &mut bytes);
        bytes
    }

    /// Sets every byte.
    pub fn fill(&self, value: u8) {
        // Mappings are whole pages: whole chunks.
        for offset in (0..self.length).step_by(PAGE_SIZE) {
            self.write(offset, &[value; PAGE_SIZE]);
        }
    }

    /// Changes the access right of `length` bytes at `offset`, both page-aligned. Access against it ends the program with `SIGSEGV`.
    pub fn protect(&self, offset: usize, length: usize, prot: ProtFlags) -> Result<()> {
        self.check(offset, length);
        // SAFETY: the range is ours, and nobody holds references into it that a lost right would break.
        unsafe { mman::mprotect(self.base.add(offset).cast(), length, prot) }.map_err(Error::system("mprotect"))
    }

    /// Advises the kernel about `length` bytes at `offset`, both page-aligned. Some advice drops the contents.
    pub fn advise(&self, offset: usize, length: usize, advice: MmapAdvise) -> Result<()> {
        self.check(offset, length);
        // SAFETY: the range is ours, and nobody holds references whose contents could change under them.
        unsafe { mman::madvise(self.base.add(offset).cast(), length, advice) }.map_err(Error::system("madvise"))
    }

    /// Cuts the buffer in two at a page-aligned offset that is neither its start nor its end; this one keeps the front. The parts are
    /// neighbours in memory and can be unmapped one by one: holes are made that way.
    pub fn split_off(&mut self, offset: usize) -> Self {
        assert!(offset.is_multiple_of(PAGE_SIZE) && offset > 0 && offset < self.length, "cannot split at {offset}");
        // SAFETY: within the mapping, as just asserted.
        let base = unsafe { self.base.add(offset) };
        let tail = Self { base, length: self.length - offset };
        self.length = offset;
        tail
    }

    /// Unmaps the buffer and says where it was: from now on, a wild address.
    pub fn unmap(self) -> u64 {
        self.address()
    }

    /// Panics unless the range is within the buffer.
    fn check(&self, offset: usize, length: usize) {
        let end = offset.checked_add(length);
        assert!(end.is_some_and(|end| end <= self.length), "{length} bytes at {offset} are not in {}", self.length);
    }

    /// Whether the next eight bytes can be accessed at once.
    fn word(at: *const u8, left: usize) -> bool {
        left >= 8 && at.addr().is_multiple_of(8)
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours alone and nobody uses it any more. The device may still: its access faults then.
        let result = unsafe { mman::munmap(self.base.cast(), self.length) };
        // Refused only for a range that is not page-aligned, or split into too many mappings: leaking is all that is left then.
        debug_assert!(result.is_ok(), "munmap of our own mapping: {result:?}");
    }
}

/// `length` rounded up to pages; `EINVAL` if that is zero or too much.
fn rounded(length: usize, page: usize) -> Result<NonZeroUsize> {
    let rounded = length.checked_next_multiple_of(page).and_then(NonZeroUsize::new);
    rounded.ok_or(Error::System { operation: "mmap", errno: nix::errno::Errno::EINVAL })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_back_at_any_alignment() {
        let buffer = Buffer::anonymous(3 * PAGE_SIZE).unwrap();
        let pattern: Vec<u8> = (0..=255).cycle().take(1000).collect();
        for offset in [0, 1, 7, 8, 4090, 3 * PAGE_SIZE - 1000] {
            buffer.fill(0xee);
            buffer.write(offset, &pattern);
            assert_eq!(buffer.bytes(offset, 1000), pattern, "at {offset}");
            if offset > 0 {
                assert_eq!(buffer.get(offset - 1), 0xee);
            }
        }
    }

    #[test]
    #[should_panic(expected = "are not in")]
    fn access_beyond_the_end_panics() {
        Buffer::anonymous(PAGE_SIZE).unwrap().read(PAGE_SIZE - 3, &mut [0; 4]);
    }

    #[test]
    fn parts_are_neighbours_and_unmap_alone() {
        let mut front = Buffer::anonymous(2 * PAGE_SIZE).unwrap();
        front.fill(1);
        let back = front.split_off(PAGE_SIZE);
        assert_eq!(front.at(PAGE_SIZE), back.address());
        back.unmap();
        assert_eq!(front.bytes(0, PAGE_SIZE), [1; PAGE_SIZE]);
    }

    #[test]
    fn alignment_is_kept() {
        let buffer = Buffer::aligned(3 * PAGE_SIZE, 2 << 20).unwrap();
        assert_eq!((buffer.address() % (2 << 20), buffer.len()), (0, 3 * PAGE_SIZE));
        buffer.fill(0x5a);
    }

    #[test]
    fn no_empty_and_no_endless_buffers() {
        for length in [0, usize::MAX] {
            assert_eq!(Buffer::anonymous(length).unwrap_err().errno(), Some(nix::errno::Errno::EINVAL));
        }
    }
}
