//! DMA_MAP, DMA_UNMAP, DEVICE_RESET, and replies that come later.
use nix::errno::Errno;
use svadev_spec::vfio_user::{DmaMap, DmaUnmap, RegionAccess, command};
use zerocopy::IntoBytes;

use super::fake::Call;
use super::{Rig, memfd, same_file};
use crate::{DmaUnmap as Range, Limits, Progress};

const PAGE: u64 = 4096;

fn map(address: u64, size: u64) -> DmaMap {
    DmaMap { argsz: 32, flags: 3, offset: 0, address, size }
}

fn unmap(address: u64, size: u64) -> DmaUnmap {
    DmaUnmap { argsz: 24, flags: 0, address, size }
}

const ALL: DmaUnmap = DmaUnmap { argsz: 24, flags: 2, address: 0, size: 0 };

impl Rig {
    fn map(&mut self, address: u64, size: u64) -> Result<(), Errno> {
        self.call(command::DMA_MAP, map(address, size).as_bytes()).map(|payload| assert!(payload.is_empty()))
    }

    fn unmap(&mut self, request: DmaUnmap) -> Result<DmaUnmap, Errno> {
        self.call_as(command::DMA_UNMAP, &request)
    }

    /// IDs and outcomes of everything the server sends now.
    fn outcomes(&mut self) -> Vec<(u16, Result<(), Errno>)> {
        self.replies().iter().map(|m| (m.header.message_id, m.result().map(drop))).collect()
    }
}

#[test]
fn maps_reach_the_device_with_and_without_a_descriptor() {
    let mut rig = Rig::new();
    let fd = memfd(0x10000);
    let request = DmaMap { flags: 1, offset: 0x2000, ..map(0x10_0000, 0x4000) };
    rig.call_fds(command::DMA_MAP, request.as_bytes(), vec![fd.try_clone().unwrap()]).unwrap();
    assert!(same_file(&fd, &rig.device.fds[0]));
    // ROMs and RAM-like BARs come without one, and then the offset says nothing.
    rig.call(command::DMA_MAP, DmaMap { flags: 2, offset: 1, ..map(0x20_0000, PAGE) }.as_bytes()).unwrap();
    rig.map(u64::MAX - 0xfff, PAGE).unwrap();
    assert_eq!(
        rig.device.take_calls(),
        [
            Call::Map { gpa: 0x10_0000, size: 0x4000, offset: 0x2000, read: true, write: false, fd: true },
            Call::Map { gpa: 0x20_0000, size: PAGE, offset: 1, read: false, write: true, fd: false },
            Call::Map { gpa: u64::MAX - 0xfff, size: PAGE, offset: 0, read: true, write: true, fd: false },
        ]
    );
}

#[test]
fn a_map_says_how_its_file_can_be_used() {
    let mut rig = Rig::new();
    let fd = memfd(0x10000);
    for (n, (flags, mapped)) in [(3, true), (3 | 4, true), (3 | 8, false), (3 | 4 | 8, true)].into_iter().enumerate() {
        let request = DmaMap { flags, ..map(n as u64 * PAGE, PAGE) };
        rig.call_fds(command::DMA_MAP, request.as_bytes(), vec![fd.try_clone().unwrap()]).unwrap();
        let calls = rig.device.take_calls();
        assert!(matches!(calls[..], [Call::Map { fd, .. }] if fd == mapped), "{flags:#x}: {calls:?}");
    }
}

#[test]
fn bad_maps_are_refused() {
    let mut rig = Rig::new();
    for bad in [
        map(0, 0),
        map(1, PAGE),
        map(0, PAGE + 1),
        map(u64::MAX - 0xfff, 2 * PAGE),
        map(2 * PAGE, u64::MAX - 0xfff),
        DmaMap { flags: 0, ..map(0, PAGE) },
        DmaMap { flags: 4, ..map(0, PAGE) },
        DmaMap { flags: 3 | 16, ..map(0, PAGE) },
        DmaMap { argsz: 31, ..map(0, PAGE) },
    ] {
        assert_eq!(rig.call(command::DMA_MAP, bad.as_bytes()), Err(Errno::EINVAL), "{bad:?}");
    }
    for offset in [1, u64::MAX - 0xfff, i64::MAX as u64 & !0xfff] {
        let bad = DmaMap { offset, ..map(0, PAGE) };
        let result = rig.call_fds(command::DMA_MAP, bad.as_bytes(), vec![memfd(PAGE)]);
        assert_eq!(result.map(drop), Err(Errno::EINVAL), "{bad:?}");
    }
    let two = rig.call_fds(command::DMA_MAP, map(0, PAGE).as_bytes(), vec![memfd(PAGE), memfd(PAGE)]);
    assert_eq!(two.map(drop), Err(Errno::EINVAL));
    assert_eq!(rig.call(command::DMA_MAP, &map(0, PAGE).as_bytes()[..31]), Err(Errno::EINVAL));
    assert!(rig.device.calls.is_empty());
}

#[test]
fn maps_do_not_overlap() {
    let mut rig = Rig::new();
    rig.map(0x4000, 0x4000).unwrap();
    for (address, size) in [(0x4000, 0x4000), (0x3000, 0x2000), (0x7000, 0x2000), (0x5000, PAGE), (0, 0x10000)] {
        assert_eq!(rig.map(address, size), Err(Errno::EEXIST));
    }
    rig.map(0x3000, PAGE).unwrap();
    rig.map(0x8000, PAGE).unwrap();
    rig.device.errors.push_back(Errno::ENOMEM);
    assert_eq!(rig.map(0, PAGE), Err(Errno::ENOMEM));
    rig.map(0, PAGE).expect("a map that failed is none");
}

#[test]
fn the_number_of_maps_is_limited() {
    let mut rig = Rig::with_limits(Limits { max_dma_maps: 2, ..Limits::default() });
    rig.map(0, PAGE).unwrap();
    rig.map(PAGE, PAGE).unwrap();
    assert_eq!(rig.map(2 * PAGE, PAGE), Err(Errno::ENOSPC));
    rig.unmap(unmap(0, PAGE)).unwrap();
    rig.map(2 * PAGE, PAGE).unwrap();
}

#[test]
fn an_unmap_matches_a_map_exactly() {
    let mut rig = Rig::new();
    rig.map(0x4000, 0x4000).unwrap();
    for (address, size) in [(0x4000, PAGE), (0x5000, PAGE), (0x4000, 0x8000), (0, 0x10000), (0x4000, 0)] {
        assert_eq!(rig.unmap(unmap(address, size)), Err(Errno::ENOENT));
    }
    rig.device.errors.push_back(Errno::EBUSY);
    assert_eq!(rig.unmap(unmap(0x4000, 0x4000)), Err(Errno::EBUSY), "the mapping stays");
    assert_eq!(rig.unmap(DmaUnmap { argsz: 64, ..unmap(0x4000, 0x4000) }), Ok(unmap(0x4000, 0x4000)));
    assert_eq!(rig.unmap(unmap(0x4000, 0x4000)), Err(Errno::ENOENT));
    rig.map(0x4000, 0x4000).unwrap();
}

#[test]
fn unmap_all_takes_no_range_and_says_how_much_it_was() {
    let mut rig = Rig::new();
    rig.map(0x4000, 0x4000).unwrap();
    rig.map(0x8000, 0x1000).unwrap();
    rig.device.take_calls();
    assert_eq!(rig.unmap(DmaUnmap { address: 0x4000, size: 0x4000, ..ALL }), Err(Errno::EINVAL));
    assert_eq!(rig.unmap(ALL), Ok(DmaUnmap { size: 0x5000, ..ALL }));
    assert_eq!(rig.device.take_calls(), [Call::Unmap(Range::All)]);
    rig.map(0x4000, 0x4000).unwrap();
}

#[test]
fn what_unmap_does_not_support_says_so() {
    let mut rig = Rig::new();
    rig.map(0, PAGE).unwrap();
    for (flags, errno) in [(1, Errno::EOPNOTSUPP), (4, Errno::EOPNOTSUPP), (3, Errno::EOPNOTSUPP), (8, Errno::EINVAL)] {
        assert_eq!(rig.unmap(DmaUnmap { flags, ..unmap(0, PAGE) }), Err(errno));
    }
    assert_eq!(rig.unmap(DmaUnmap { argsz: 23, ..unmap(0, PAGE) }), Err(Errno::EINVAL));
    assert_eq!(rig.call(command::DMA_UNMAP, &[0; 23]), Err(Errno::EINVAL));
    rig.unmap(unmap(0, PAGE)).expect("still mapped");
}

#[test]
fn a_deferred_reply_comes_from_another_thread() {
    let mut rig = Rig::new();
    rig.map(0, PAGE).unwrap();
    rig.device.defer = true;
    let id = rig.client.send(command::DMA_UNMAP, unmap(0, PAGE).as_bytes(), vec![]);
    assert!(rig.replies().is_empty());
    let (sender, token) = (rig.server.sender(), rig.device.tokens.pop().unwrap());
    std::thread::spawn(move || sender.complete(token, Ok(PAGE))).join().unwrap();
    let reply = rig.client.receive().unwrap();
    assert_eq!((reply.header.message_id, reply.payload.as_slice()), (id, unmap(0, PAGE).as_bytes()));
}

#[test]
fn a_reply_may_be_completed_before_the_device_returns() {
    struct Eager(crate::Sender);
    impl crate::Device for Eager {
        fn device_info(&self) -> crate::DeviceInfo {
            crate::DeviceInfo::pci(true)
        }
        fn region(&self, _: u32) -> crate::RegionInfo<'_> {
            crate::RegionInfo::ABSENT
        }
        fn irq(&self, _: u32) -> crate::IrqInfo {
            crate::IrqInfo::default()
        }
        fn region_read(&mut self, _: u32, _: u64, _: &mut [u8]) -> Result<(), Errno> {
            Err(Errno::EIO)
        }
        fn region_write(&mut self, _: u32, _: u64, _: &[u8]) -> Result<(), Errno> {
            Err(Errno::EIO)
        }
        fn set_irqs(&mut self, _: crate::SetIrqs<'_>) -> Result<(), Errno> {
            Err(Errno::EIO)
        }
        fn dma_map(&mut self, _: crate::DmaMap) -> Result<(), Errno> {
            Err(Errno::EIO)
        }
        fn dma_unmap(&mut self, _: Range, _: crate::ReplyToken) -> crate::UnmapReply {
            crate::UnmapReply::Done(Err(Errno::EIO))
        }
        fn reset(&mut self, token: crate::ReplyToken) -> crate::ResetReply {
            self.0.complete(token, Ok(0));
            crate::ResetReply::Later
        }
        fn disconnected(&mut self) {}
    }
    let mut server = crate::Server::new(Limits::default());
    let mut device = Eager(server.sender());
    let mut client = crate::client::LoopbackClient::connect(&mut server, 4096);
    client.negotiate(&mut server, &mut device, "{}").unwrap();
    for _ in 0..2 {
        let reply = client.call(&mut server, &mut device, command::DEVICE_RESET, &[], vec![]).unwrap();
        assert_eq!(reply.result(), Ok(&[][..]));
    }
    assert!(client.receive().is_none(), "one reply each");
}

#[test]
fn maps_unmaps_and_resets_are_answered_in_order() {
    let mut rig = Rig::new();
    rig.map(0, PAGE).unwrap();
    rig.map(PAGE, PAGE).unwrap();
    rig.device.defer = true;
    let first = rig.client.send(command::DMA_UNMAP, unmap(0, PAGE).as_bytes(), vec![]);
    let second = rig.client.send(command::DMA_UNMAP, unmap(PAGE, PAGE).as_bytes(), vec![]);
    let bad = rig.client.send(command::DMA_UNMAP, unmap(0, PAGE).as_bytes(), vec![]);
    let again = rig.client.send(command::DMA_MAP, map(0, PAGE).as_bytes(), vec![]);
    let reset = rig.client.send(command::DEVICE_RESET, &[], vec![]);
    let read =
        rig.client.send(command::REGION_READ, RegionAccess { offset: 0, region: 7, count: 4 }.as_bytes(), vec![]);
    assert_eq!(rig.outcomes(), [(read, Ok(()))], "an access waits for nothing");
    let sender = rig.server.sender();
    let mut tokens = rig.device.tokens.drain(..).collect::<Vec<_>>().into_iter();
    let (one, two, three) = (tokens.next().unwrap(), tokens.next().unwrap(), tokens.next().unwrap());
    sender.complete(two, Ok(PAGE));
    assert!(rig.outcomes().is_empty());
    sender.complete(one, Ok(PAGE));
    let expected = [(first, Ok(())), (second, Ok(())), (bad, Err(Errno::ENOENT)), (again, Ok(()))];
    assert_eq!(rig.outcomes(), expected);
    sender.complete(three, Ok(0));
    assert_eq!(rig.outcomes(), [(reset, Ok(()))]);
}

#[test]
fn a_posted_unmap_holds_back_younger_replies_too() {
    let mut rig = Rig::new();
    rig.map(0, PAGE).unwrap();
    rig.device.defer = true;
    rig.client.post(command::DMA_UNMAP, unmap(0, PAGE).as_bytes(), vec![]);
    let again = rig.client.send(command::DMA_MAP, map(0, PAGE).as_bytes(), vec![]);
    assert!(rig.outcomes().is_empty());
    let token = rig.device.tokens.pop().unwrap();
    rig.server.sender().complete(token, Err(Errno::EIO));
    assert_eq!(rig.outcomes(), [(again, Ok(()))], "and gets no reply itself");
    assert_eq!(rig.server.sender().counters().posted_errors, 1);
}

#[test]
fn a_dropped_token_is_an_error_reply() {
    let mut rig = Rig::new();
    rig.device.defer = true;
    let id = rig.client.send(command::DEVICE_RESET, &[], vec![]);
    assert!(rig.outcomes().is_empty());
    rig.device.tokens.clear();
    assert_eq!(rig.outcomes(), [(id, Err(Errno::EIO))]);
}

#[test]
fn a_token_of_an_earlier_connection_answers_nothing() {
    let mut rig = Rig::new();
    rig.device.defer = true;
    rig.client.send(command::DEVICE_RESET, &[], vec![]);
    rig.client.send(command::DEVICE_RESET, &[], vec![]);
    rig.pump();
    rig.disconnect();
    let mut old = std::mem::take(&mut rig.device.tokens);
    rig.client = crate::client::LoopbackClient::connect(&mut rig.server, 1 << 20);
    rig.client.negotiate(&mut rig.server, &mut rig.device, "{}").unwrap();
    let id = rig.client.send(command::DEVICE_RESET, &[], vec![]);
    rig.pump();
    rig.server.sender().complete(old.pop().unwrap(), Ok(0));
    drop(old);
    assert!(rig.outcomes().is_empty());
    let token = rig.device.tokens.pop().unwrap();
    rig.server.sender().complete(token, Ok(0));
    assert_eq!(rig.outcomes(), [(id, Ok(()))]);
}

#[test]
fn owed_replies_are_bounded_and_commands_wait() {
    let mut rig = Rig::new();
    rig.device.defer = true;
    for _ in 0..3000 {
        rig.client.send(command::DEVICE_RESET, &[], vec![]);
    }
    assert_eq!(rig.pump(), Progress::Congested);
    assert_eq!(rig.device.tokens.len(), 1024);
    let mut answered = 0;
    while !rig.device.tokens.is_empty() {
        for token in rig.device.tokens.drain(..).rev().collect::<Vec<_>>() {
            rig.server.sender().complete(token, Ok(0));
        }
        answered += rig.outcomes().len();
    }
    assert_eq!(answered, 3000);
}

#[test]
fn a_disconnected_client_leaves_no_maps() {
    let mut rig = Rig::new();
    rig.map(0, PAGE).unwrap();
    rig.device.take_calls();
    rig.disconnect();
    rig.disconnect();
    assert_eq!(rig.device.take_calls(), [Call::Disconnected], "once");
    rig.client = crate::client::LoopbackClient::connect(&mut rig.server, 1 << 20);
    rig.client.negotiate(&mut rig.server, &mut rig.device, "{}").unwrap();
    rig.map(0, PAGE).unwrap();
}
