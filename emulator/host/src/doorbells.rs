//! The memory behind a function's doorbells: a memfd that QEMU maps into the guest and we map for the engines.
#![allow(unsafe_code, reason = "a shared mapping is made, handed to the device and unmapped here")]
use std::ffi::c_void;
use std::num::NonZeroUsize;
use std::os::fd::OwnedFd;
use std::ptr::NonNull;
use std::sync::Arc;

use anyhow::Context;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use svadev_accelerator::DoorbellPages;
use svadev_spec::device::DOORBELL_STRIDE;

/// Unmaps when the last user is gone.
struct Mapping {
    host: NonNull<c_void>,
    len: NonZeroUsize,
}

// SAFETY: an address and a length; the memory is reached through DoorbellPages only, whose accesses are atomic.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: mapped in `shared_pages` with this length; DoorbellPages, the only user, owns `self` and is gone.
        let unmapped = unsafe { munmap(self.host, self.len.get()) };
        assert!(unmapped.is_ok(), "the range was mapped as a whole");
    }
}

/// Zeroed doorbell pages for `queues` queues, and the file behind them. It is sealed: nobody who gets the file can
/// shrink it under us.
pub(crate) fn shared_pages(queues: u16) -> anyhow::Result<(DoorbellPages, OwnedFd)> {
    let len = usize::from(queues) * usize::try_from(DOORBELL_STRIDE).expect("a small constant");
    let len = NonZeroUsize::new(len).context("a function needs at least one queue")?;
    let file = memfd_create("svadev-doorbells", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)
        .context("cannot make the doorbells' memory file")?;
    nix::unistd::ftruncate(&file, i64::try_from(len.get()).expect("a few hundred pages"))
        .context("cannot size the doorbells' memory file")?;
    let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
    fcntl(&file, FcntlArg::F_ADD_SEALS(seals)).context("cannot seal the doorbells' memory file")?;
    // SAFETY: the kernel chooses the address, so the new mapping aliases no memory of this process.
    let host = unsafe { mmap(None, len, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, MapFlags::MAP_SHARED, &file, 0) }
        .context("cannot map the doorbells")?;
    let owner = Arc::new(Mapping { host, len });
    // SAFETY: page-aligned, mapped readable and writable for `queues` strides until `owner` is dropped; this process
    // reaches it through these pages only. The guest's stores are like those of another thread.
    let pages = unsafe { DoorbellPages::new(host.cast(), usize::from(queues), owner) };
    Ok((pages, file))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_and_the_pages_are_the_same_memory() {
        let (pages, file) = shared_pages(2).unwrap();
        assert_eq!(nix::sys::uio::pwrite(&file, &7u32.to_le_bytes(), 4096).unwrap(), 4);
        assert_eq!(pages.load(1, 0), 7);
        assert!(nix::unistd::ftruncate(&file, 0).is_err(), "sealed");
    }
}
