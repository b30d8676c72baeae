//! Files of guest memory in this process's address space. Each file is mapped once, however many functions and regions
//! use it.
//!
//! Firmware remaps guest memory dozens of times, and each function hears of every map. The same few files come each
//! time, with new descriptors and other offsets. A file is mapped once and whole. Then a region is only an offset, host
//! addresses stay the same, and there is one set of host page tables.
#![allow(unsafe_code, reason = "files are mapped, unmapped, and seen as volatile slices here")]

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, SealFlag, fcntl};
use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap, munmap};
use nix::sys::stat::{SFlag, fstat};
use nix::sys::statfs::{HUGETLBFS_MAGIC, fstatfs};
use vm_memory::VolatileSlice;

use crate::PAGE_SIZE;
use crate::sigbus::{GuardError, Guarded, NOTHING_LOST, SLOTS, Slot};

/// Why a file could not be mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MappingError {
    /// Only regular files and memfds have a size, and an identity by which a mapping can be shared.
    #[error("guest memory must be a regular file or a memfd")]
    NotAFile,
    /// The range ends after the file does.
    #[error("the range ends at {end:#x} in a file of {len:#x} bytes")]
    BeyondFile {
        /// End of the range, bytes from the file's start.
        end: u64,
        /// Size of the file, bytes.
        len: u64,
    },
    /// The descriptor or a seal forbids writing.
    #[error("the file may not be written, but the region is writable")]
    ReadOnlyFile,
    /// Too many files are mapped.
    #[error("more than {SLOTS} files of guest memory")]
    TooMany,
    /// A system call failed.
    #[error("{call} of a file of guest memory: {errno}")]
    System {
        /// Which.
        call: &'static str,
        /// How.
        errno: Errno,
    },
}

fn failed(call: &'static str) -> impl Fn(Errno) -> MappingError {
    move |errno| MappingError::System { call, errno }
}

/// A file and its access rights. The inode lives as long as the mapping, so its number identifies the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct FileId {
    device: libc::dev_t,
    inode: libc::ino_t,
    writable: bool,
}

/// One file in our address space, unmapped when dropped.
#[derive(Debug)]
pub(crate) struct Mapping {
    base: NonNull<u8>,
    len: usize,
    /// Its slot in the table for `SIGBUS`; `None` only inside `new`.
    guard: Option<Guarded>,
}

// SAFETY: the memory belongs to the mapping wherever it is used from; it is accessed by volatile and atomic operations
// only.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    fn new(fd: BorrowedFd<'_>, file_len: u64, writable: bool) -> Result<Self, MappingError> {
        let stat = fstatfs(fd).map_err(failed("fstatfs"))?;
        let page = if stat.filesystem_type() == HUGETLBFS_MAGIC {
            usize::try_from(stat.block_size()).expect("a page's size is positive and in memory's range")
        } else {
            PAGE_SIZE
        };
        let too_large = MappingError::System { call: "mmap", errno: Errno::ENOMEM };
        let len = usize::try_from(file_len).ok().and_then(|len| len.checked_next_multiple_of(page)).ok_or(too_large)?;
        let length = NonZeroUsize::new(len).ok_or(MappingError::BeyondFile { end: 0, len: 0 })?;
        let rights = if writable { ProtFlags::PROT_READ | ProtFlags::PROT_WRITE } else { ProtFlags::PROT_READ };
        // No reservation: swap for guest memory is accounted to its owner.
        let flags = MapFlags::MAP_SHARED | MapFlags::MAP_NORESERVE;
        // SAFETY: a new mapping at an address of the kernel's choosing changes no memory in use.
        let base = unsafe { mmap(None, length, rights, flags, fd, 0) }.map_err(failed("mmap"))?;
        // From here on `mapping` unmaps it on every path.
        let mut mapping = Self { base: base.cast(), len, guard: None };
        // SAFETY: the range was just mapped; the advice changes nothing but core dumps, where a guest's memory has no
        // place. If the kernel refuses this, a core dump is larger, nothing else.
        let _ = unsafe { madvise(base, len, MmapAdvise::MADV_DONTDUMP) };
        mapping.guard = Some(Guarded::new(base.as_ptr() as usize, len, page).map_err(|error| match error {
            GuardError::Full => MappingError::TooMany,
            GuardError::Install(errno) => MappingError::System { call: "sigaction", errno },
        })?);
        Ok(mapping)
    }

    /// Host address of the byte at `offset`.
    pub(crate) fn host(&self, offset: usize) -> NonNull<u8> {
        assert!(offset < self.len);
        // SAFETY: inside the mapping, as asserted.
        unsafe { self.base.add(offset) }
    }

    /// The `len` bytes from `offset`.
    #[inline]
    pub(crate) fn slice(&self, offset: usize, len: usize) -> VolatileSlice<'_> {
        assert!(offset.checked_add(len).is_some_and(|end| end <= self.len));
        // SAFETY: inside the mapping, as asserted, and the slice's lifetime is a borrow of the mapping. Who writes
        // through it has asked the region for the right, and a region with that right is only made on a writable
        // mapping.
        unsafe { VolatileSlice::new(self.base.add(offset).as_ptr(), len) }
    }

    /// Offset of the first byte known to be lost, `usize::MAX` if there is none. A call after an access also covers
    /// that access.
    pub(crate) fn lost_from(&self) -> usize {
        self.guard.as_ref().map_or(NOTHING_LOST, Guarded::lost_from)
    }
}

/// A cached pointer and bounds, so that a page walk can load table entries without looking up the mapping again.
#[derive(Debug)]
pub(crate) struct Words {
    /// Of the piece, a multiple of 8.
    first: NonNull<u8>,
    len: u64,
    /// Where the piece begins in the mapping.
    offset: usize,
    guard: Option<&'static Slot>,
    /// Keeps `first` mapped, and `guard` the mapping's own.
    _mapping: Arc<Mapping>,
}

// SAFETY: as for the mapping, which it keeps.
unsafe impl Send for Words {}
// SAFETY: as above.
unsafe impl Sync for Words {}

impl Words {
    /// Those of the `len` bytes from `offset`.
    pub(crate) fn new(mapping: &Arc<Mapping>, offset: usize, len: usize) -> Self {
        assert!(offset.is_multiple_of(PAGE_SIZE) && len != 0 && len <= mapping.len && offset <= mapping.len - len);
        let first = mapping.host(offset);
        let guard = mapping.guard.as_ref().map(Guarded::slot);
        Self { first, len: len as u64, offset, guard, _mapping: Arc::clone(mapping) }
    }

    /// Loads the word that begins `at` bytes into the piece, with acquire ordering. `None` if it is outside the piece
    /// or lost.
    #[inline]
    pub(crate) fn load(&self, at: u64) -> Option<u64> {
        // The piece has whole pages: a word that begins in it ends in it.
        if at >= self.len || !at.is_multiple_of(8) {
            return None;
        }
        let at = usize::try_from(at).ok()?;
        // SAFETY: inside the piece and aligned (above), since the mapping begins at a page and the piece, too; mapped
        // as long as `_mapping` lives, and accessed by atomics or volatile operations only.
        let value = unsafe { AtomicU64::from_ptr(self.first.add(at).as_ptr().cast()) }.load(Ordering::Acquire);
        let lost_from = self.guard.map_or(NOTHING_LOST, Slot::lost_from);
        // Both lie in the mapping: the sum is far from wrapping.
        (lost_from >= self.offset.wrapping_add(at).wrapping_add(8)).then_some(u64::from_le(value))
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // First the slot, while the addresses are still ours: they could be another mapping's a moment after.
        drop(self.guard.take());
        // SAFETY: `base` and `len` are those of `mmap`; nobody borrows from a value that is being dropped, and holders
        // of windows have given their word before the last `Arc` went (`HostWindow`, `Retired`).
        unsafe { munmap(self.base.cast(), self.len) }.expect("unmapping what was mapped cannot fail");
    }
}

/// All files of guest memory that a process has mapped. Clones share one registry: give one to every [`MemoryMap`].
///
/// [`MemoryMap`]: crate::MemoryMap
#[derive(Clone, Debug, Default)]
pub struct Mappings {
    files: Arc<Mutex<HashMap<FileId, Weak<Mapping>>>>,
}

impl Mappings {
    /// An empty registry.
    pub fn new() -> Self {
        Self::default()
    }

    /// How many files are mapped now.
    pub fn len(&self) -> usize {
        let files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        files.values().filter(|mapping| mapping.strong_count() > 0).count()
    }

    /// No file is mapped.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The mapping of `fd`'s file, which has all of `offset..offset + size`.
    pub(crate) fn get(
        &self,
        fd: BorrowedFd<'_>,
        offset: u64,
        size: u64,
        write: bool,
    ) -> Result<Arc<Mapping>, MappingError> {
        let stat = fstat(fd).map_err(failed("fstat"))?;
        if SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT != SFlag::S_IFREG {
            return Err(MappingError::NotAFile);
        }
        let file_len = u64::try_from(stat.st_size).expect("a regular file's size is not negative");
        let end = offset.checked_add(size).ok_or(MappingError::BeyondFile { end: u64::MAX, len: file_len })?;
        if end > file_len {
            return Err(MappingError::BeyondFile { end, len: file_len });
        }
        let writable = may_write(fd)?;
        if write && !writable {
            return Err(MappingError::ReadOnlyFile);
        }

        let id = FileId { device: stat.st_dev, inode: stat.st_ino, writable };
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(mapping) = files.get(&id).and_then(Weak::upgrade)
            // A file that has grown since is mapped anew, and so is one that was cut short and is whole again. Regions
            // of the old mapping keep it.
            && end <= mapping.len as u64
            && end <= mapping.lost_from() as u64
        {
            return Ok(mapping);
        }
        let mapping = Arc::new(Mapping::new(fd.as_fd(), file_len, writable)?);
        files.retain(|_, other| other.strong_count() > 0);
        files.insert(id, Arc::downgrade(&mapping));
        Ok(mapping)
    }
}

/// Whether the file may be mapped shared and writable through `fd`.
fn may_write(fd: BorrowedFd<'_>) -> Result<bool, MappingError> {
    let mode = fcntl(fd, FcntlArg::F_GETFL).map_err(failed("fcntl"))?;
    if OFlag::from_bits_truncate(mode) & OFlag::O_ACCMODE != OFlag::O_RDWR {
        return Ok(false);
    }
    // Files that know no seals answer EINVAL.
    let seals = SealFlag::from_bits_truncate(fcntl(fd, FcntlArg::F_GET_SEALS).unwrap_or(0));
    Ok(!seals.intersects(SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_FUTURE_WRITE))
}
