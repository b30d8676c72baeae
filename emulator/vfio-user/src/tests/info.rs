//! DEVICE_GET_INFO, DEVICE_GET_REGION_INFO, DEVICE_GET_REGION_IO_FDS, DEVICE_GET_IRQ_INFO, and what is not supported.
use nix::errno::Errno;
use svadev_spec::vfio_user::{
    CAP_SPARSE_MMAP, CapHeader, DeviceInfo, IrqInfo, RegionInfo, RegionIoFds, SparseArea, SparseMmap, command, irq,
    region,
};
use zerocopy::{FromBytes, IntoBytes};

use super::fake::{ABSENT, AREAS, READ_ONLY, SPARSE, TRAPPED, WHOLE};
use super::{Rig, same_file};

fn region_info(argsz: u32, index: u32) -> RegionInfo {
    RegionInfo { argsz, index, ..RegionInfo::default() }
}

#[test]
fn device_info_says_pci_and_reset() {
    let mut rig = Rig::new();
    let request = DeviceInfo { argsz: 16, ..DeviceInfo::default() };
    let info = rig.call_as(command::DEVICE_GET_INFO, &request).unwrap();
    assert_eq!(info, DeviceInfo { argsz: 16, flags: 3, num_regions: 9, num_irqs: 5 });
    rig.device.resettable = false;
    let info = rig.call_as(command::DEVICE_GET_INFO, &DeviceInfo { argsz: 4096, ..request }).unwrap();
    assert_eq!(info.flags, 2);
    assert_eq!(rig.call(command::DEVICE_RESET, &[]), Err(Errno::EOPNOTSUPP));
}

#[test]
fn regions_without_mmap() {
    let mut rig = Rig::new();
    for (index, flags, size) in [(TRAPPED, 3, 0x1000), (READ_ONLY, 1, 0x100), (ABSENT, 0, 0), (region::CONFIG, 3, 4096)]
    {
        let info = rig.call_as(command::DEVICE_GET_REGION_INFO, &region_info(32, index)).unwrap();
        assert_eq!(info, RegionInfo { flags, size, ..region_info(32, index) });
    }
    for index in [region::COUNT, u32::MAX] {
        assert_eq!(rig.call(command::DEVICE_GET_REGION_INFO, region_info(32, index).as_bytes()), Err(Errno::EINVAL));
    }
}

#[test]
fn a_sparse_region_is_described_when_there_is_room() {
    let mut rig = Rig::new();
    let needed = 32 + 8 + 8 + 2 * 16;
    let expected =
        RegionInfo { flags: 0xf, cap_offset: 32, size: 0x4000, offset: 0x1000, ..region_info(needed, SPARSE) };
    for argsz in [32, needed - 1] {
        let request = region_info(argsz, SPARSE);
        let (payload, fds) = rig.call_fds(command::DEVICE_GET_REGION_INFO, request.as_bytes(), vec![]).unwrap();
        // QEMU 11.1 takes flags with CAPS and without an offset for a broken reply.
        assert_eq!(payload, expected.as_bytes(), "the size that is needed, and no capability");
        assert!(fds.is_empty());
    }
    let request = region_info(needed, SPARSE);
    let (payload, fds) = rig.call_fds(command::DEVICE_GET_REGION_INFO, request.as_bytes(), vec![]).unwrap();
    let (info, rest) = RegionInfo::read_from_prefix(&payload).unwrap();
    assert_eq!(info, expected);
    let (cap, rest) = CapHeader::read_from_prefix(rest).unwrap();
    assert_eq!(cap, CapHeader { id: CAP_SPARSE_MMAP, version: 1, next: 0 });
    let (sparse, rest) = SparseMmap::read_from_prefix(rest).unwrap();
    assert_eq!(sparse.nr_areas, 2);
    let areas: Vec<SparseArea> = rest.chunks(16).map(|c| SparseArea::read_from_bytes(c).unwrap()).collect();
    assert_eq!(areas, AREAS);
    assert_eq!(fds.len(), 1);
    assert!(same_file(&fds[0], &rig.device.shared_memory));
}

#[test]
fn a_region_that_can_be_mapped_as_a_whole_has_no_capability() {
    let mut rig = Rig::new();
    let request = region_info(32, WHOLE);
    let (payload, fds) = rig.call_fds(command::DEVICE_GET_REGION_INFO, request.as_bytes(), vec![]).unwrap();
    let expected = RegionInfo { flags: 7, size: 0x2000, offset: 0x8000, ..request };
    assert_eq!(payload, expected.as_bytes());
    assert!(same_file(&fds[0], &rig.device.shared_memory));
}

#[test]
fn no_region_has_io_fds() {
    let mut rig = Rig::new();
    let request = RegionIoFds { argsz: 1024, index: TRAPPED, ..RegionIoFds::default() };
    let reply = rig.call_as(command::DEVICE_GET_REGION_IO_FDS, &request).unwrap();
    assert_eq!(reply, RegionIoFds { argsz: 16, ..request });
    for bad in [
        RegionIoFds { argsz: 15, ..request },
        RegionIoFds { flags: 1, ..request },
        RegionIoFds { count: 1, ..request },
        RegionIoFds { index: 9, ..request },
    ] {
        assert_eq!(rig.call(command::DEVICE_GET_REGION_IO_FDS, bad.as_bytes()), Err(Errno::EINVAL));
    }
}

#[test]
fn irq_info() {
    let mut rig = Rig::new();
    for (index, flags, count) in
        [(irq::INTX, 7, 1), (irq::MSI, 0, 0), (irq::MSIX, 9, 4), (irq::ERR, 0, 1), (irq::REQ, 0, 0)]
    {
        let request = IrqInfo { argsz: 16, index, ..IrqInfo::default() };
        let info = rig.call_as(command::DEVICE_GET_IRQ_INFO, &request).unwrap();
        assert_eq!(info, IrqInfo { argsz: 16, flags, index, count });
    }
    let request = IrqInfo { argsz: 16, index: irq::COUNT, ..IrqInfo::default() };
    assert_eq!(rig.call(command::DEVICE_GET_IRQ_INFO, request.as_bytes()), Err(Errno::EINVAL));
}

#[test]
fn payloads_and_argsz_that_are_too_short_are_invalid() {
    let mut rig = Rig::new();
    for (command, size) in [
        (command::DEVICE_GET_INFO, 16u32),
        (command::DEVICE_GET_REGION_INFO, 32),
        (command::DEVICE_GET_REGION_IO_FDS, 16),
        (command::DEVICE_GET_IRQ_INFO, 16),
    ] {
        let mut payload = vec![0; size as usize];
        payload[..4].copy_from_slice(&size.to_ne_bytes());
        assert!(rig.call(command, &payload).is_ok());
        assert_eq!(rig.call(command, &payload[..payload.len() - 1]), Err(Errno::EINVAL));
        payload[..4].copy_from_slice(&(size - 1).to_ne_bytes());
        assert_eq!(rig.call(command, &payload), Err(Errno::EINVAL));
    }
}

#[test]
fn what_is_not_supported_says_so() {
    let mut rig = Rig::new();
    for (command, errno) in [
        (command::DIRTY_PAGES, Errno::EOPNOTSUPP),
        (command::DEVICE_FEATURE, Errno::EOPNOTSUPP),
        (command::MIG_DATA_READ, Errno::EOPNOTSUPP),
        (command::MIG_DATA_WRITE, Errno::EOPNOTSUPP),
        (command::DMA_READ, Errno::EINVAL),
        (command::DMA_WRITE, Errno::EINVAL),
        (0, Errno::ENOSYS),
        (19, Errno::ENOSYS),
        (u16::MAX, Errno::ENOSYS),
    ] {
        assert_eq!(rig.call(command, &[0; 32]), Err(errno), "command {command}");
    }
    assert!(rig.device.calls.is_empty());
    assert_eq!(rig.server.sender().counters().error_replies, 9);
}
