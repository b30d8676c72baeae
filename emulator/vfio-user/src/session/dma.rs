//! DMA_MAP, DMA_UNMAP, and DEVICE_RESET: the commands that may be answered later.
use std::os::fd::OwnedFd;

use nix::errno::Errno;
use svadev_spec::vfio_user::{self as spec, DmaMapFlags, DmaUnmapFlags};

use super::version::PAGE_SIZE;
use super::{Session, fixed, fixed_with_room};
use crate::device::{Device, DmaMap, DmaUnmap, ResetReply, UnmapReply};
use crate::sender::Command;

impl Session {
    pub(super) fn dma_map(&mut self, device: &mut dyn Device, payload: &[u8], fds: Vec<OwnedFd>) -> Result<(), Errno> {
        let (map, _) = fixed::<spec::DmaMap>(payload)?;
        let access = DmaMapFlags::READ | DmaMapFlags::WRITE;
        let flags = DmaMapFlags::from_bits(map.flags).filter(|f| f.intersects(access)).ok_or(Errno::EINVAL)?;
        let mut fds = fds.into_iter();
        let fd = fds.next();
        if (map.argsz as usize) < size_of::<spec::DmaMap>() || fds.next().is_some() {
            return Err(Errno::EINVAL);
        }
        check_range(map.address, map.size)?;
        if fd.is_some() {
            check_file_range(map.offset, map.size)?;
        }
        // "A command to map over an existing region must be failed by the server with EEXIST"
        // (*vfio-user* "VFIO_USER_DMA_MAP").
        if self.overlaps(map.address, map.size) {
            return Err(Errno::EEXIST);
        }
        if self.maps.len() >= self.limits.max_dma_maps as usize {
            return Err(Errno::ENOSPC);
        }
        device.dma_map(DmaMap {
            gpa: map.address,
            size: map.size,
            offset: map.offset,
            read: flags.contains(DmaMapFlags::READ),
            write: flags.contains(DmaMapFlags::WRITE),
            // A file for read and write calls only is no memory that could be mapped.
            fd: fd.filter(|_| flags.contains(DmaMapFlags::MMAP) || !flags.contains(DmaMapFlags::FILE_IO)),
        })?;
        self.maps.insert(map.address, map.size);
        Ok(())
    }

    pub(super) fn dma_unmap(&mut self, device: &mut dyn Device, mut command: Command, payload: &[u8]) {
        let (entry, range) = match self.check_unmap(payload) {
            Ok(checked) => checked,
            Err(errno) => return self.shared.reply_in_order(command, Err(errno)),
        };
        command.unmap = Some(entry);
        let token = self.shared.owe(command);
        let key = token.key();
        let done = match device.dma_unmap(range, token) {
            UnmapReply::Done(result) => {
                self.shared.resolve(key, result);
                result.is_ok()
            }
            UnmapReply::Later => {
                self.shared.defer(key);
                true
            }
        };
        match range {
            DmaUnmap::All if done => self.maps.clear(),
            DmaUnmap::Range { address, .. } if done => drop(self.maps.remove(&address)),
            _ => {}
        }
    }

    pub(super) fn device_reset(&mut self, device: &mut dyn Device, command: Command) {
        if !device.device_info().reset {
            return self.shared.reply_in_order(command, Err(Errno::EOPNOTSUPP));
        }
        let token = self.shared.owe(command);
        let key = token.key();
        match device.reset(token) {
            ResetReply::Done => self.shared.resolve(key, Ok(0)),
            ResetReply::Later => self.shared.defer(key),
        }
    }

    /// What to unmap: all, or exactly one mapping (*vfio-user* "VFIO_USER_DMA_UNMAP").
    fn check_unmap(&self, payload: &[u8]) -> Result<(spec::DmaUnmap, DmaUnmap), Errno> {
        let entry = fixed_with_room::<spec::DmaUnmap>(payload, |r| r.argsz)?;
        let flags = DmaUnmapFlags::from_bits(entry.flags).ok_or(Errno::EINVAL)?;
        if flags.intersects(DmaUnmapFlags::GET_DIRTY_BITMAP | DmaUnmapFlags::VADDR) {
            return Err(Errno::EOPNOTSUPP);
        }
        if flags.contains(DmaUnmapFlags::ALL) {
            let all = entry.address == 0 && entry.size == 0;
            return if all { Ok((entry, DmaUnmap::All)) } else { Err(Errno::EINVAL) };
        }
        if self.maps.get(&entry.address) != Some(&entry.size) {
            return Err(Errno::ENOENT);
        }
        Ok((entry, DmaUnmap::Range { address: entry.address, size: entry.size }))
    }

    /// A mapping shares an address with `address..address + size`. Mappings do not overlap each other, so the last one
    /// that begins before the range's end is the only candidate.
    fn overlaps(&self, address: u64, size: u64) -> bool {
        let last = address + (size - 1);
        let candidate = self.maps.range(..=last).next_back();
        candidate.is_some_and(|(&start, &len)| start + (len - 1) >= address)
    }
}

/// Page-aligned, not empty, and without a wrap: `address + (size - 1)` is an address.
fn check_range(address: u64, size: u64) -> Result<(), Errno> {
    let last = size.checked_sub(1).and_then(|n| address.checked_add(n));
    if last.is_none() || !address.is_multiple_of(PAGE_SIZE) || !size.is_multiple_of(PAGE_SIZE) {
        return Err(Errno::EINVAL);
    }
    Ok(())
}

/// Checks that `mmap` can take the range: the offset is page-aligned, and `off_t` can hold the end.
fn check_file_range(offset: u64, size: u64) -> Result<(), Errno> {
    let end = offset.checked_add(size).and_then(|end| i64::try_from(end).ok());
    if end.is_none() || !offset.is_multiple_of(PAGE_SIZE) {
        return Err(Errno::EINVAL);
    }
    Ok(())
}
