//! Memory that two sides map: the guest's RAM, and a function's doorbell pages, as the guest's processors see them.
#![allow(unsafe_code, reason = "files are mapped here, and their bytes reached through raw pointers")]
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64};

use anyhow::Context as _;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

/// A file that is mapped whole, shared and writable.
#[derive(Debug)]
pub(crate) struct Shared {
    base: NonNull<u8>,
    len: NonZeroUsize,
}

// SAFETY: an address and a length. Words are reached by atomics; `copy` and `bytes` say what their callers promise.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

impl Shared {
    /// Maps the first `len` bytes of a file. Errors: the system's.
    pub(crate) fn map(file: &OwnedFd, len: u64) -> anyhow::Result<Self> {
        let len = NonZeroUsize::new(usize::try_from(len)?).context("the length to map is 0")?;
        let rights = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        let flags = MapFlags::MAP_SHARED | MapFlags::MAP_NORESERVE;
        // SAFETY: a new mapping at an address of the kernel's choice changes no memory in use.
        let base = unsafe { mmap(None, len, rights, flags, file.as_fd(), 0) }.context("cannot map shared memory")?;
        Ok(Self { base: base.cast(), len })
    }

    /// Sparse memory of `len` bytes, sealed as a VMM seals it, and its file.
    pub(crate) fn create(len: u64) -> anyhow::Result<(Self, OwnedFd)> {
        let file = memfd_create("svadev-bench", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?;
        nix::unistd::ftruncate(&file, i64::try_from(len)?).context("cannot size the benchmark's memory file")?;
        fcntl(&file, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW))?;
        Ok((Self::map(&file, len)?, file))
    }

    /// The address of `len` bytes from `at`. Panics outside: addresses here are the benchmark's own.
    fn range(&self, at: u64, len: usize) -> NonNull<u8> {
        let at = usize::try_from(at).expect("an address in memory");
        assert!(at.checked_add(len).is_some_and(|end| end <= self.len.get()), "{at:#x}+{len:#x} is outside the memory");
        // SAFETY: inside the mapping, as asserted.
        unsafe { self.base.add(at) }
    }

    /// The aligned 64-bit word at `at`.
    pub(crate) fn word(&self, at: u64) -> &AtomicU64 {
        let word = self.range(at, 8).cast::<u64>();
        assert!(word.is_aligned(), "{at:#x} is no word");
        // SAFETY: mapped for as long as `self`, aligned; others access it by atomics or tear it, which atomics
        // tolerate.
        unsafe { AtomicU64::from_ptr(word.as_ptr()) }
    }

    /// The aligned 32-bit word at `at`.
    pub(crate) fn half(&self, at: u64) -> &AtomicU32 {
        let word = self.range(at, 4).cast::<u32>();
        assert!(word.is_aligned(), "{at:#x} is no word");
        // SAFETY: as for `word`.
        unsafe { AtomicU32::from_ptr(word.as_ptr()) }
    }

    /// `memcpy` of `len` bytes: what a processor would do instead of the device. No engine may be at work in either
    /// range: callers have seen the completion of every descriptor they submitted.
    pub(crate) fn copy(&self, from: u64, to: u64, len: usize) {
        let (source, target) = (self.range(from, len), self.range(to, len));
        assert!(from.abs_diff(to) >= len as u64, "a copy's operands do not overlap");
        // SAFETY: both ranges are mapped, and disjoint as asserted.
        unsafe { std::ptr::copy_nonoverlapping(source.as_ptr(), target.as_ptr(), len) }
    }

    /// Writes bytes that are computed from `seed` and their position. `len` is a multiple of 8.
    pub(crate) fn fill(&self, at: u64, len: usize, seed: u64) {
        let words = self.range(at, len).cast::<[u8; 8]>();
        for n in 0..len / 8 {
            // SAFETY: inside the range; bytes have no alignment. No engine is at work there, as for `copy`.
            unsafe { words.add(n).write(pattern(seed, n)) }
        }
    }

    /// Offset of the first 8 bytes that are not what [`fill`](Self::fill) wrote with this seed.
    pub(crate) fn differs(&self, at: u64, len: usize, seed: u64) -> Option<usize> {
        let words = self.range(at, len).cast::<[u8; 8]>();
        // SAFETY: as in `fill`.
        (0..len / 8).find(|&n| unsafe { words.add(n).read() } != pattern(seed, n)).map(|n| 8 * n)
    }
}

/// The 8 bytes at `8 * n` of a pattern in which neighbouring pages, and patterns of different seeds, differ.
fn pattern(seed: u64, n: usize) -> [u8; 8] {
    (seed << 40 ^ n as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes()
}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: mapped in `map` with this length; every borrow of it ends before `self` does.
        unsafe { munmap(self.base.cast(), self.len.get()) }.expect("unmapping what was mapped cannot fail");
    }
}
