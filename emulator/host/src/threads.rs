//! The platform of a process with threads: memory that the VMM's files are mapped into, eventfds, and doorbells in a
//! memory file.
use std::sync::Arc;

use nix::errno::Errno;
use svadev_fabric::Bdf;
use svadev_memory::{GuestAddress, MapError, MappingError, Mappings, MemoryMap, Region, Retired, UnmapError};
use svadev_vfio_user::{DmaMap, DmaUnmap};

use crate::doorbells;
use crate::platform::{Doorbells, GuestMaps, Platform, Wake};
use crate::waker::Waker;

/// The platform of a process with threads. A file that several functions map is mapped once.
#[derive(Debug, Default)]
pub(crate) struct Threads {
    mappings: Mappings,
}

impl Platform for Threads {
    type Memory = MemoryMap;
    type Maps = Arc<MemoryMap>;
    type Waker = Waker;
    type Tap = ();

    fn memory(&mut self, _: Bdf) -> (Arc<MemoryMap>, Arc<MemoryMap>) {
        let memory = Arc::new(MemoryMap::new(self.mappings.clone()));
        (Arc::clone(&memory), memory)
    }

    fn waker(&mut self, _: Bdf, _: usize) -> anyhow::Result<Arc<Waker>> {
        Waker::new()
    }

    fn doorbells(&mut self, queues: u16) -> anyhow::Result<Doorbells> {
        let (pages, file) = doorbells::shared_pages(queues)?;
        Ok(Doorbells { pages, file: Some(file) })
    }
}

impl Wake for Waker {
    fn wake(&self) {
        Self::wake(self);
    }
}

impl GuestMaps for Arc<MemoryMap> {
    type Retired = Retired;

    fn map(&self, map: DmaMap) -> Result<(), Errno> {
        let DmaMap { gpa, size, offset, read, write, fd } = map;
        tracing::debug!(gpa = format_args!("{gpa:#x}"), size = format_args!("{size:#x}"), file = fd.is_some(), "map");
        MemoryMap::map(self, Region { gpa: GuestAddress(gpa), size, offset, read, write, fd }).map_err(|error| {
            tracing::warn!(gpa = format_args!("{gpa:#x}"), size = format_args!("{size:#x}"), %error, "cannot map guest memory");
            match error {
                MapError::Overlap(_) => Errno::EEXIST,
                MapError::TooMany => Errno::ENOSPC,
                MapError::Mapping(MappingError::System { errno, .. }) => errno,
                MapError::Empty | MapError::Unaligned | MapError::Overflow | MapError::Mapping(_) => Errno::EINVAL,
            }
        })
    }

    fn unmap(&self, range: DmaUnmap) -> Result<Retired, Errno> {
        tracing::debug!(%range, "unmap");
        match range {
            DmaUnmap::All => Ok(MemoryMap::unmap_all(self)),
            DmaUnmap::Range { address, size } => {
                MemoryMap::unmap(self, GuestAddress(address), size).map_err(|error| match error {
                    UnmapError::NotMapped => Errno::ENOENT,
                    UnmapError::Empty | UnmapError::Unaligned | UnmapError::Overflow | UnmapError::Splits(_) => {
                        Errno::EINVAL
                    }
                })
            }
        }
    }

    fn unmap_all(&self) -> Retired {
        MemoryMap::unmap_all(self)
    }

    fn bytes(retired: &Retired) -> u64 {
        retired.bytes()
    }
}
