//! DEVICE_GET_INFO, DEVICE_GET_REGION_INFO, DEVICE_GET_REGION_IO_FDS, DEVICE_GET_IRQ_INFO.
use nix::errno::Errno;
use svadev_spec::vfio_user::{self as spec, DeviceInfoFlags, IrqInfoFlags, RegionInfoFlags};

use super::{Reply, Session, fixed_with_room};
use crate::device::{Device, RegionInfo, RegionMmap};

/// `size_of::<T>()` as the protocol writes it.
fn size_u32<T>() -> u32 {
    u32::try_from(size_of::<T>()).expect("a payload's fixed part is small")
}

impl Session {
    pub(super) fn device_info(&mut self, device: &dyn Device, payload: &[u8]) -> Reply {
        fixed_with_room::<spec::DeviceInfo>(payload, |r| r.argsz)?;
        let info = device.device_info();
        let mut flags = DeviceInfoFlags::PCI;
        flags.set(DeviceInfoFlags::RESET, info.reset);
        self.put(&spec::DeviceInfo {
            argsz: size_u32::<spec::DeviceInfo>(),
            flags: flags.bits(),
            num_regions: info.regions,
            num_irqs: info.irqs,
        });
        Ok(Vec::new())
    }

    /// The region, and with room for all of it how to map it. Too little room brings the size that is needed, with
    /// neither capability nor descriptor (*vfio-user* "Message sizes"). `cap_offset` is valid in both, since QEMU
    /// checks it in both.
    pub(super) fn region_info(&mut self, device: &dyn Device, payload: &[u8]) -> Reply {
        let request = fixed_with_room::<spec::RegionInfo>(payload, |r| r.argsz)?;
        let region = region(device, request.index)?;
        let mut info = spec::RegionInfo {
            argsz: size_u32::<spec::RegionInfo>(),
            flags: region_flags(&region).bits(),
            index: request.index,
            size: region.size,
            ..Default::default()
        };
        let Some(mmap) = region.mmap else {
            self.put(&info);
            return Ok(Vec::new());
        };
        check_areas(&region, &mmap);
        info.offset = mmap.offset;
        if !mmap.areas.is_empty() {
            info.flags |= RegionInfoFlags::CAPS.bits();
            info.cap_offset = size_u32::<spec::RegionInfo>();
            let caps = size_of::<spec::CapHeader>() + size_of::<spec::SparseMmap>() + size_of_val(mmap.areas);
            info.argsz += u32::try_from(caps).expect("a region has few areas");
        }
        self.put(&info);
        if info.argsz > request.argsz {
            return Ok(Vec::new());
        }
        if !mmap.areas.is_empty() {
            self.put(&spec::CapHeader { id: spec::CAP_SPARSE_MMAP, version: spec::CAP_SPARSE_MMAP_VERSION, next: 0 });
            let nr_areas = u32::try_from(mmap.areas.len()).expect("a region has few areas");
            self.put(&spec::SparseMmap { nr_areas, reserved: 0 });
            for area in mmap.areas {
                self.put(area);
            }
        }
        let fd = mmap.fd.try_clone_to_owned().map_err(|e| e.raw_os_error().map_or(Errno::EIO, Errno::from_raw))?;
        Ok(vec![fd])
    }

    /// No region has ioeventfds or ioregionfds: an empty list.
    pub(super) fn region_io_fds(&mut self, device: &dyn Device, payload: &[u8]) -> Reply {
        let request = fixed_with_room::<spec::RegionIoFds>(payload, |r| r.argsz)?;
        if request.flags != 0 || request.count != 0 {
            return Err(Errno::EINVAL);
        }
        region(device, request.index)?;
        self.put(&spec::RegionIoFds {
            argsz: size_u32::<spec::RegionIoFds>(),
            flags: 0,
            index: request.index,
            count: 0,
        });
        Ok(Vec::new())
    }

    pub(super) fn irq_info(&mut self, device: &dyn Device, payload: &[u8]) -> Reply {
        let request = fixed_with_room::<spec::IrqInfo>(payload, |r| r.argsz)?;
        if request.index >= device.device_info().irqs {
            return Err(Errno::EINVAL);
        }
        let irq = device.irq(request.index);
        let mut flags = IrqInfoFlags::empty();
        flags.set(IrqInfoFlags::EVENTFD, irq.eventfd);
        flags.set(IrqInfoFlags::MASKABLE, irq.maskable);
        flags.set(IrqInfoFlags::AUTOMASKED, irq.automasked);
        flags.set(IrqInfoFlags::NORESIZE, irq.noresize);
        self.put(&spec::IrqInfo {
            argsz: size_u32::<spec::IrqInfo>(),
            flags: flags.bits(),
            index: request.index,
            count: irq.count,
        });
        Ok(Vec::new())
    }
}

/// The region `index`, if there is such an index.
pub(super) fn region(device: &dyn Device, index: u32) -> Result<RegionInfo<'_>, Errno> {
    if index >= device.device_info().regions {
        return Err(Errno::EINVAL);
    }
    Ok(device.region(index))
}

fn region_flags(region: &RegionInfo<'_>) -> RegionInfoFlags {
    let mut flags = RegionInfoFlags::empty();
    flags.set(RegionInfoFlags::READ, region.read);
    flags.set(RegionInfoFlags::WRITE, region.write);
    flags.set(RegionInfoFlags::MMAP, region.mmap.is_some());
    flags
}

/// A promise of the device, not of the client.
fn check_areas(region: &RegionInfo<'_>, mmap: &RegionMmap<'_>) {
    for area in mmap.areas {
        let end = area.offset.checked_add(area.size);
        assert!(end.is_some_and(|end| end <= region.size), "a mappable area lies inside its region");
    }
}
