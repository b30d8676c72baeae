//! Messages that are wrong: an error reply or the end of the connection, and nothing worse. The first four break
//! version
//! 0.1.7 of the published `vfio_user` crate.
use nix::errno::Errno;
use svadev_spec::vfio_user::{FLAG_NO_REPLY, Header, RegionAccess, Version, command};
use zerocopy::IntoBytes;

use super::fake::TRAPPED;
use super::{Rig, alloc, eventfd, memfd};
use crate::{Limits, ProtocolError};

fn header(command: u16, message_size: u32, flags: u32) -> Vec<u8> {
    Header { message_id: 7, command, message_size, flags, error: 0 }.as_bytes().to_vec()
}

/// What the server makes of raw bytes.
fn sent(rig: &mut Rig, bytes: Vec<u8>) -> Result<(), ProtocolError> {
    rig.client.send_bytes(bytes, vec![]);
    rig.client.pump(&mut rig.server, &mut rig.device).map(drop)
}

#[test]
fn published_crate_1_version_shorter_than_its_fixed_part() {
    for size in 16..20 {
        let mut rig = Rig::unconnected(Limits::default());
        let bytes = [header(command::VERSION, size, 0), vec![0; size as usize - 16]].concat();
        sent(&mut rig, bytes).unwrap();
        assert_eq!(rig.client.receive().unwrap().result(), Err(Errno::EINVAL), "a VERSION of {size} bytes");
        assert!(rig.client.receive().is_none());
    }
}

#[test]
fn published_crate_2_version_data_without_nul() {
    let mut rig = Rig::unconnected(Limits::default());
    let version = Version { major: 0, minor: 1 };
    let payload = [version.as_bytes(), br#"{"capabilities":{}}"#].concat();
    assert_eq!(rig.call(command::VERSION, &payload), Err(Errno::EINVAL));
}

#[test]
fn published_crate_3_read_of_4_gib_is_not_allocated() {
    let mut rig = Rig::new();
    for (region, count) in [(TRAPPED, u32::MAX), (TRAPPED, 1 << 20), (u32::MAX, 1 << 20)] {
        let read = RegionAccess { offset: 0, region, count };
        let (result, peak) = alloc::peak(|| rig.call(command::REGION_READ, read.as_bytes()));
        assert!(matches!(result, Err(Errno::E2BIG | Errno::EINVAL)));
        assert!(peak < 4096, "{peak} bytes");
    }
    assert!(rig.device.calls.is_empty());
}

#[test]
fn published_crate_4_device_errors_carry_their_errno() {
    let mut rig = Rig::new();
    let read = RegionAccess { offset: 0, region: TRAPPED, count: 4 };
    for errno in [Errno::EIO, Errno::ENOMEM, Errno::EPERM] {
        rig.device.errors.push_back(errno);
        let message =
            rig.client.call(&mut rig.server, &mut rig.device, command::REGION_READ, read.as_bytes(), vec![]).unwrap();
        let expected = Header { message_size: 16, flags: 0x21, error: errno as u32, ..message.header };
        assert_eq!(message.header, expected, "a header alone, with the reply and error bits and the errno");
        assert!(message.payload.is_empty());
    }
}

#[test]
fn a_size_that_cannot_be_ends_the_connection() {
    for size in [0, 1, 15] {
        let result = sent(&mut Rig::new(), header(command::DEVICE_RESET, size, 0));
        assert_eq!(result, Err(ProtocolError::ShortMessage(size)));
    }
    let limit = (1 << 20) + 32;
    for size in [limit + 1, u32::MAX] {
        let mut rig = Rig::new();
        let (result, peak) = alloc::peak(|| sent(&mut rig, header(command::DEVICE_RESET, size, 0)));
        assert_eq!(result, Err(ProtocolError::LongMessage(size, limit as usize)));
        assert!(peak < 4096, "{peak} bytes");
    }
}

#[test]
fn a_claim_alone_allocates_nothing() {
    let mut rig = Rig::new();
    let (result, peak) = alloc::peak(|| sent(&mut rig, header(command::REGION_WRITE, 1 << 20, 0)));
    assert_eq!(result, Ok(()));
    assert!(peak < 4096, "{peak} bytes");
}

#[test]
fn the_longest_message_is_taken() {
    let mut rig = Rig::new();
    let write = [RegionAccess { offset: 0, region: TRAPPED, count: 1 << 20 }.as_bytes(), &vec![0; 1 << 20]].concat();
    let (result, peak) = alloc::peak(|| rig.call(command::REGION_WRITE, &write));
    assert_eq!(result, Err(Errno::EINVAL), "longer than the region");
    assert!(peak < 6 << 20, "{peak} bytes, of which the client's are two copies");
}

#[test]
fn a_message_that_is_neither_command_nor_reply_ends_the_connection() {
    for kind in 2..16 {
        assert_eq!(
            sent(&mut Rig::new(), header(command::DEVICE_RESET, 16, kind)),
            Err(ProtocolError::MessageType(kind))
        );
    }
}

#[test]
fn unknown_flags_are_no_error() {
    let mut rig = Rig::new();
    sent(&mut rig, header(command::DEVICE_RESET, 16, 0xffff_ffe0 & !FLAG_NO_REPLY)).unwrap();
    assert_eq!(rig.client.receive().unwrap().result(), Ok(&[][..]));
}

#[test]
fn messages_may_arrive_in_any_pieces() {
    for piece in [1, 3, 15, 16, 17, 40] {
        let mut rig = Rig::new();
        let write = RegionAccess { offset: 8, region: TRAPPED, count: 4 };
        let one = [header(command::REGION_WRITE, 36, 0), write.as_bytes().to_vec(), vec![9; 4]].concat();
        let stream = [one.clone(), header(command::DEVICE_RESET, 16, 0), one].concat();
        for bytes in stream.chunks(piece) {
            sent(&mut rig, bytes.to_vec()).unwrap();
        }
        let replies: Vec<u16> = rig.replies().iter().map(|m| m.header.command).collect();
        assert_eq!(replies, [command::REGION_WRITE, command::DEVICE_RESET, command::REGION_WRITE]);
    }
}

#[test]
fn descriptors_belong_to_the_message_they_came_with_and_surplus_is_closed() {
    let mut rig = Rig::new();
    let (kept, surplus) = (memfd(4096), memfd(4096));
    let map = svadev_spec::vfio_user::DmaMap { argsz: 32, flags: 3, offset: 0, address: 0, size: 4096 };
    let message = [header(command::DMA_MAP, 48, 0), map.as_bytes().to_vec()].concat();
    // Two messages in one receive: the descriptor is the second's. Then one whose payload comes in pieces.
    let first = [header(command::DEVICE_RESET, 16, 0), message.clone()].concat();
    rig.client.send_bytes(first, vec![kept.try_clone().unwrap()]);
    assert_eq!(rig.replies().len(), 2);
    assert!(super::same_file(&kept, &rig.device.fds[0]));
    let unmap = svadev_spec::vfio_user::DmaUnmap { argsz: 24, flags: 2, address: 0, size: 0 };
    rig.call(command::DMA_UNMAP, unmap.as_bytes()).unwrap();
    rig.client.send_bytes(message[..20].to_vec(), vec![kept.try_clone().unwrap()]);
    rig.client.send_bytes(message[20..].to_vec(), vec![]);
    rig.replies()[0].result().unwrap();
    assert!(super::same_file(&kept, &rig.device.fds[0]));
    // A command that takes none, one that takes fewer, a reply, and one that is never finished.
    let before = links(&surplus);
    let fds = || vec![surplus.try_clone().unwrap(), surplus.try_clone().unwrap()];
    rig.call_fds(command::DEVICE_RESET, &[], fds()).unwrap();
    assert_eq!(rig.call_fds(command::DMA_MAP, map.as_bytes(), fds()).map(drop), Err(Errno::EINVAL));
    rig.client.send_bytes(header(command::DMA_WRITE, 16, 1), fds());
    rig.pump();
    assert_eq!(links(&surplus), before, "all closed");
    rig.client.send_bytes(message[..20].to_vec(), fds());
    rig.pump();
    assert_eq!(links(&surplus), before + 2, "waiting for the rest of the message");
    rig.disconnect();
    assert_eq!(links(&surplus), before);
}

/// How many descriptors of this process are of this file.
fn links(fd: &std::os::fd::OwnedFd) -> usize {
    let fds = std::fs::read_dir("/proc/self/fd").unwrap();
    fds.filter(|entry| {
        // Another test may have closed it meanwhile.
        let Ok(other) = std::fs::File::open(entry.as_ref().unwrap().path()) else { return false };
        super::same_file(fd, &other)
    })
    .count()
}

#[test]
fn too_many_descriptors_are_refused() {
    let mut rig = Rig::with_limits(Limits { max_msg_fds: 2, ..Limits::default() });
    let fds = |n| (0..n).map(|_| eventfd()).collect();
    assert!(rig.call_fds(command::DEVICE_RESET, &[], fds(2)).is_ok());
    assert_eq!(rig.call_fds(command::DEVICE_RESET, &[], fds(3)).map(drop), Err(Errno::EINVAL));
    // A message that never ends cannot collect descriptors.
    rig.client.send_bytes(header(command::DEVICE_RESET, 1 << 20, 0), fds(200));
    rig.client.send_bytes(vec![0], fds(200));
    rig.client.send_bytes(vec![0], fds(200));
    assert_eq!(rig.client.pump(&mut rig.server, &mut rig.device), Err(ProtocolError::TooManyFds));
}
