//! REGION_READ, REGION_WRITE, REGION_WRITE_MULTI.
use nix::errno::Errno;
use svadev_spec::vfio_user::{Header, RegionAccess, WriteMulti, WriteOne};

use super::info::region;
use super::{Reply, Session, fixed};
use crate::device::Device;

/// What an access does.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Access {
    Read,
    Write,
}

impl Session {
    pub(super) fn region_read(&mut self, device: &mut dyn Device, payload: &[u8]) -> Reply {
        let (access, _) = fixed::<RegionAccess>(payload)?;
        self.check_count(access.count)?;
        check(device, Access::Read, access.region, access.offset, access.count)?;
        self.put(&access);
        if access.count > 0 {
            // `check_count` bounds what is allocated here, whatever the message claims.
            let data = size_of::<Header>() + size_of::<RegionAccess>();
            self.reply.resize(data + access.count as usize, 0);
            device.region_read(access.region, access.offset, &mut self.reply[data..])?;
        }
        Ok(Vec::new())
    }

    pub(super) fn region_write(&mut self, device: &mut dyn Device, payload: &[u8]) -> Reply {
        let (access, data) = fixed::<RegionAccess>(payload)?;
        self.check_count(access.count)?;
        if data.len() != access.count as usize {
            return Err(Errno::EINVAL);
        }
        check(device, Access::Write, access.region, access.offset, access.count)?;
        if !data.is_empty() {
            device.region_write(access.region, access.offset, data)?;
        }
        self.put(&access);
        Ok(Vec::new())
    }

    /// Writes in order, up to the first that fails. The reply says how many were done; if none was, why.
    pub(super) fn region_write_multi(&mut self, device: &mut dyn Device, payload: &[u8]) -> Reply {
        let (WriteMulti { wr_cnt }, rest) = fixed::<WriteMulti>(payload)?;
        // QEMU sends its whole array and counts what is used, so more may follow.
        let used = usize::try_from(wr_cnt).ok().and_then(|n| n.checked_mul(size_of::<WriteOne>()));
        let writes = used.and_then(|used| rest.get(..used)).ok_or(Errno::EINVAL)?;
        let mut done = 0;
        let mut failed = None;
        for write in writes.chunks_exact(size_of::<WriteOne>()) {
            if let Err(errno) = write_one(device, write) {
                failed = Some(errno);
                break;
            }
            done += 1;
        }
        match failed {
            Some(errno) if done == 0 => Err(errno),
            _ => {
                self.put(&WriteMulti { wr_cnt: done });
                Ok(Vec::new())
            }
        }
    }

    fn check_count(&self, count: u32) -> Result<(), Errno> {
        if count > self.limits.max_data_xfer_size { Err(Errno::E2BIG) } else { Ok(()) }
    }
}

fn write_one(device: &mut dyn Device, bytes: &[u8]) -> Result<(), Errno> {
    let (write, _) = fixed::<WriteOne>(bytes)?;
    let data = write.data.get(..write.count as usize).ok_or(Errno::EINVAL)?;
    check(device, Access::Write, write.region, write.offset, write.count)?;
    if data.is_empty() {
        return Ok(());
    }
    device.region_write(write.region, write.offset, data)
}

/// The access lies inside the region, and the region allows it.
fn check(device: &dyn Device, access: Access, index: u32, offset: u64, count: u32) -> Result<(), Errno> {
    let region = region(device, index)?;
    let inside = offset.checked_add(count.into()).is_some_and(|end| end <= region.size);
    let allowed = match access {
        Access::Read => region.read,
        Access::Write => region.write,
    };
    if !inside || region.size == 0 {
        return Err(Errno::EINVAL);
    }
    if allowed { Ok(()) } else { Err(Errno::EPERM) }
}
