//! A function's view of guest memory, as the VMM's `DMA_MAP` and `DMA_UNMAP` change it.
use std::collections::HashMap;
use std::sync::Mutex;

use nix::errno::Errno;
use svadev_memory::{GuestAddress, MapError, MappingError, MemoryMap, Region, Retired, UnmapError};
use svadev_vfio_user::{DmaMap, DmaUnmap, ReplyToken, Sender};

/// Carries out a `DMA_MAP`.
pub(crate) fn map(memory: &MemoryMap, map: DmaMap) -> Result<(), Errno> {
    let DmaMap { gpa, size, offset, read, write, fd } = map;
    tracing::debug!(gpa = format_args!("{gpa:#x}"), size = format_args!("{size:#x}"), file = fd.is_some(), "map");
    memory.map(Region { gpa: GuestAddress(gpa), size, offset, read, write, fd }).map_err(|error| {
        tracing::warn!(gpa = format_args!("{gpa:#x}"), size = format_args!("{size:#x}"), %error, "refused to map");
        match error {
            MapError::Overlap(_) => Errno::EEXIST,
            MapError::TooMany => Errno::ENOSPC,
            MapError::Mapping(MappingError::System { errno, .. }) => errno,
            MapError::Empty | MapError::Unaligned | MapError::Overflow | MapError::Mapping(_) => Errno::EINVAL,
        }
    })
}

/// Takes a range out of the map. The memory stays until the returned value is dropped.
pub(crate) fn unmap(memory: &MemoryMap, range: DmaUnmap) -> Result<Retired, Errno> {
    tracing::debug!(%range, "unmap");
    match range {
        DmaUnmap::All => Ok(memory.unmap_all()),
        DmaUnmap::Range { address, size } => memory.unmap(GuestAddress(address), size).map_err(|error| match error {
            UnmapError::NotMapped => Errno::ENOENT,
            UnmapError::Empty | UnmapError::Unaligned | UnmapError::Overflow | UnmapError::Splits(_) => Errno::EINVAL,
        }),
    }
}

/// Memory that left the map but may still be in use by an engine, and the replies that wait for it.
#[derive(Debug)]
pub(crate) struct Releases {
    sender: Sender,
    waiting: Mutex<Waiting>,
}

#[derive(Debug, Default)]
struct Waiting {
    next: u64,
    memory: HashMap<u64, (Retired, Option<ReplyToken>)>,
}

impl Releases {
    /// Nothing waits. Replies go out through `sender`.
    pub(crate) fn new(sender: Sender) -> Self {
        Self { sender, waiting: Mutex::default() }
    }

    /// Keeps `retired` until [`Self::release`] with the returned token, which then also answers `reply`.
    pub(crate) fn hold(&self, retired: Retired, reply: Option<ReplyToken>) -> u64 {
        let mut waiting = self.lock();
        let token = waiting.next;
        waiting.next += 1;
        waiting.memory.insert(token, (retired, reply));
        token
    }

    /// Nobody uses the memory any more: unmaps it, and answers.
    ///
    /// Called with [`Self::hold`]'s token, once: by the engine that was last to let go (L5: a second call finds nothing).
    pub(crate) fn release(&self, token: u64) {
        let released = self.lock().memory.remove(&token);
        if let Some((retired, reply)) = released {
            let bytes = retired.bytes();
            // First unmapped, then answered: the VMM may take the answer as "nobody has it mapped".
            drop(retired);
            if let Some(reply) = reply {
                self.sender.complete(reply, Ok(bytes));
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Waiting> {
        self.waiting.lock().expect("no holder of the waiting releases panics")
    }
}
