//! The client of the published `vfio_user` crate, which knows nothing of this server, attaches to it.
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use svadev_spec::vfio_user::{irq, region};
use vfio_bindings::bindings::vfio::{VFIO_IRQ_SET_ACTION_TRIGGER, VFIO_IRQ_SET_DATA_EVENTFD, VFIO_IRQ_SET_DATA_NONE};

use super::fake::{AREAS, Call, IrqData, SPARSE, TRAPPED, WHOLE};
use super::unix::Served;
use super::{eventfd, memfd, same_file};
use crate::unix::Options;
use crate::{Action, DmaUnmap};

#[test]
fn the_published_client_attaches() {
    let served = Served::start(Options::default());
    let mut client = vfio_user::Client::new(&served.path()).unwrap();

    let regions: Vec<(u32, u64)> =
        (0..region::COUNT).map(|i| client.region(i).map(|r| (r.flags, r.size)).unwrap()).collect();
    let absent = (0, 0);
    let expected = [(3, 0x1000), (1, 0x100), (0xf, 0x4000), absent, (7, 0x2000), absent, absent, (3, 4096), absent];
    assert_eq!(regions, expected);
    let sparse = client.region(SPARSE).unwrap();
    let areas: Vec<(u64, u64)> = sparse.sparse_areas.iter().map(|a| (a.offset, a.size)).collect();
    assert_eq!(areas, AREAS.map(|a| (a.offset, a.size)));
    let window = sparse.file_offset.as_ref().expect("a descriptor came with the region");
    assert_eq!(window.start(), 0x1000);
    window.file().write_all_at(b"doorbell", window.start() + 0x2000).unwrap();
    let window = window.file().try_clone().unwrap();
    assert_eq!(client.region(WHOLE).unwrap().file_offset.as_ref().unwrap().start(), 0x8000);

    client.region_write(TRAPPED, 0x10, &[1, 2, 3, 4]).unwrap();
    let mut data = [0; 8];
    client.region_read(TRAPPED, 0xe, &mut data).unwrap();
    assert_eq!(data, [0, 0, 1, 2, 3, 4, 0, 0]);
    client.region_read(region::CONFIG, 0, &mut data).unwrap();
    assert_eq!(data, [0xa5; 8]);

    let ram = memfd(0x10_0000);
    client.dma_map(0x1000, 0x8000_0000, 0x8000, ram.as_raw_fd()).unwrap();
    client.dma_unmap(0x8000_0000, 0x8000).unwrap();
    client.dma_map(0x1000, 0x8000_0000, 0x8000, ram.as_raw_fd()).unwrap();

    let msix = client.get_irq_info(irq::MSIX).unwrap();
    assert_eq!((msix.index, msix.flags, msix.count), (irq::MSIX, 9, 4));
    let fds = [eventfd(), eventfd()];
    let raw = fds.each_ref().map(AsRawFd::as_raw_fd);
    client.set_irqs(irq::MSIX, VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER, 1, 2, &raw).unwrap();
    client.set_irqs(irq::MSIX, VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_ACTION_TRIGGER, 0, 0, &[]).unwrap();
    client.reset().unwrap();
    client.shutdown().unwrap();

    // The client does not look at what a reply says, so the server's own count and the device's calls decide.
    let counters = served.sender.counters();
    assert_eq!((counters.error_replies, counters.posted_errors, counters.stray_replies), (0, 0, 0));
    let device = served.stop();
    assert!(same_file(&window, &device.shared_memory));
    let map = Call::Map { gpa: 0x8000_0000, size: 0x8000, offset: 0x1000, read: true, write: true, fd: true };
    let irqs = |start, count, data| Call::Irqs(irq::MSIX, start, count, Action::Trigger, data);
    assert_eq!(
        device.calls,
        [
            Call::Write(TRAPPED, 0x10, vec![1, 2, 3, 4]),
            Call::Read(TRAPPED, 0xe, 8),
            Call::Read(region::CONFIG, 0, 8),
            map.clone(),
            Call::Unmap(DmaUnmap::Range { address: 0x8000_0000, size: 0x8000 }),
            map,
            irqs(1, 2, IrqData::EventFd(vec![true, true])),
            irqs(0, 0, IrqData::None),
            Call::Reset,
            Call::Disconnected,
        ]
    );
}
