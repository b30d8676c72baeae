//! REGION_READ, REGION_WRITE, REGION_WRITE_MULTI, posted commands.
use nix::errno::Errno;
use svadev_spec::vfio_user::{WriteMulti, WriteOne, command, region};
use zerocopy::IntoBytes;

use super::Rig;
use super::fake::{ABSENT, Call, READ_ONLY, TRAPPED};
use crate::Limits;
use crate::client::request::{region_read, region_write};

fn multi(wr_cnt: u64, writes: &[WriteOne], padding: usize) -> Vec<u8> {
    [WriteMulti { wr_cnt }.as_bytes(), writes.as_bytes(), &vec![0; padding]].concat()
}

#[test]
fn what_is_written_is_read() {
    let mut rig = Rig::new();
    for (offset, data) in [(0u64, &[1u8, 2, 3, 4][..]), (0x10, &[5; 8]), (0xfff, &[6]), (0x101, &[7; 100])] {
        let reply = rig.call(command::REGION_WRITE, &region_write(TRAPPED, offset, data)).unwrap();
        let count = u32::try_from(data.len()).unwrap();
        assert_eq!(reply, region_read(TRAPPED, offset, count).as_bytes(), "offset, region and count, no data");
        let reply = rig.call(command::REGION_READ, region_read(TRAPPED, offset, count).as_bytes()).unwrap();
        assert_eq!(reply, region_write(TRAPPED, offset, data));
        assert_eq!(
            rig.device.take_calls(),
            [Call::Write(TRAPPED, offset, data.to_vec()), Call::Read(TRAPPED, offset, data.len())]
        );
    }
    let reply = rig.call(command::REGION_READ, region_read(region::CONFIG, 0, 4096).as_bytes()).unwrap();
    assert_eq!(&reply[16..], [0xa5; 4096]);
}

#[test]
fn an_access_stays_inside_its_region() {
    let mut rig = Rig::new();
    for (region, offset, count) in [
        (TRAPPED, 0x1000, 1),
        (TRAPPED, 0xfff, 2),
        (TRAPPED, u64::MAX, 1),
        (TRAPPED, u64::MAX - 3, 8),
        (TRAPPED, 0, 0x1001),
        (ABSENT, 0, 1),
        (ABSENT, 0, 0),
        (region::COUNT, 0, 4),
        (u32::MAX, 0, 4),
    ] {
        let read = region_read(region, offset, count);
        assert_eq!(rig.call(command::REGION_READ, read.as_bytes()), Err(Errno::EINVAL));
        let write = region_write(region, offset, &vec![0; count as usize]);
        assert_eq!(rig.call(command::REGION_WRITE, &write), Err(Errno::EINVAL));
    }
    assert_eq!(rig.call(command::REGION_WRITE, &region_write(READ_ONLY, 0, &[0; 4])), Err(Errno::EPERM));
    assert!(rig.device.calls.is_empty());
}

#[test]
fn counts_and_lengths_must_agree() {
    let mut rig = Rig::new();
    for data in [&[0u8; 3][..], &[0; 5], &[]] {
        let message = [region_read(TRAPPED, 0, 4).as_bytes(), data].concat();
        assert_eq!(rig.call(command::REGION_WRITE, &message), Err(Errno::EINVAL));
    }
    for command in [command::REGION_READ, command::REGION_WRITE] {
        assert_eq!(rig.call(command, &region_read(TRAPPED, 0, 4).as_bytes()[..15]), Err(Errno::EINVAL));
        assert_eq!(rig.call(command, region_read(TRAPPED, 0, 1 << 21).as_bytes()), Err(Errno::E2BIG));
        assert_eq!(
            rig.call(command, region_read(TRAPPED, 8, 0).as_bytes()).unwrap(),
            region_read(TRAPPED, 8, 0).as_bytes()
        );
    }
    assert!(rig.device.calls.is_empty(), "an access of nothing is none");
}

#[test]
fn the_transfer_limit_is_ours() {
    let mut rig = Rig::with_limits(Limits { max_data_xfer_size: 64, ..Limits::default() });
    assert!(rig.call(command::REGION_READ, region_read(TRAPPED, 0, 64).as_bytes()).is_ok());
    assert_eq!(rig.call(command::REGION_READ, region_read(TRAPPED, 0, 65).as_bytes()), Err(Errno::E2BIG));
    assert_eq!(rig.call(command::REGION_WRITE, &region_write(TRAPPED, 0, &[0; 65])), Err(Errno::E2BIG));
}

#[test]
fn the_devices_errno_is_the_reply() {
    let mut rig = Rig::new();
    for errno in [Errno::ENXIO, Errno::EIO] {
        rig.device.errors.push_back(errno);
        assert_eq!(rig.call(command::REGION_READ, region_read(TRAPPED, 0, 4).as_bytes()), Err(errno));
        rig.device.errors.push_back(errno);
        assert_eq!(rig.call(command::REGION_WRITE, &region_write(TRAPPED, 0, &[0; 4])), Err(errno));
    }
    rig.device.errors.push_back(Errno::UnknownErrno);
    let reply = rig.call(command::REGION_READ, region_read(TRAPPED, 0, 4).as_bytes());
    assert_eq!(reply, Err(Errno::EIO), "an error reply never says that nothing is wrong");
}

#[test]
fn posted_commands_are_never_replied_to() {
    let mut rig = Rig::new();
    rig.client.post(command::REGION_WRITE, &region_write(TRAPPED, 0, &[1; 4]), vec![]);
    rig.pump();
    rig.device.errors.push_back(Errno::EIO);
    rig.client.post(command::REGION_READ, region_read(TRAPPED, 0, 4).as_bytes(), vec![]);
    rig.client.post(command::REGION_WRITE, &region_write(TRAPPED, 0x2000, &[1; 4]), vec![]);
    rig.client.post(command::REGION_WRITE, &[], vec![]);
    rig.client.post(command::DMA_MAP, &[], vec![]);
    rig.client.post(command::DMA_UNMAP, &[], vec![]);
    rig.client.post(command::DEVICE_RESET, &[], vec![]);
    rig.client.post(99, &[], vec![]);
    let multi = multi(1, &[WriteOne { offset: 8, region: TRAPPED, count: 4, data: [9; 8] }], 0);
    rig.client.post(command::REGION_WRITE_MULTI, &multi, vec![]);
    assert!(rig.replies().is_empty());
    let counters = rig.server.sender().counters();
    assert_eq!((counters.error_replies, counters.posted_errors), (0, 5 + 1));
    assert_eq!(counters.commands, 1 + 9, "VERSION, and each of these");
    assert_eq!(rig.device.bar0[..12], [1, 1, 1, 1, 0, 0, 0, 0, 9, 9, 9, 9]);
}

#[test]
fn multiple_writes_are_done_in_order() {
    let mut rig = Rig::new();
    let one = |offset, count| WriteOne { offset, region: TRAPPED, count, data: *b"abcdefgh" };
    let writes = [one(0, 8), one(4, 1), one(8, 0), one(0xffe, 2)];
    let reply = rig.call(command::REGION_WRITE_MULTI, &multi(4, &writes, 0)).unwrap();
    assert_eq!(reply, 4u64.as_bytes());
    let write = |offset, data: &[u8]| Call::Write(TRAPPED, offset, data.to_vec());
    assert_eq!(rig.device.take_calls(), [write(0, b"abcdefgh"), write(4, b"a"), write(0xffe, b"ab")]);
    let reply = rig.call(command::REGION_WRITE_MULTI, &multi(1, &writes[..1], 199 * 24)).unwrap();
    assert_eq!(reply, 1u64.as_bytes(), "as QEMU sends it: the whole array, with a count of what is used");
    assert_eq!(rig.call(command::REGION_WRITE_MULTI, &multi(0, &[], 0)).unwrap(), 0u64.as_bytes());
}

#[test]
fn multiple_writes_end_at_the_first_error() {
    let mut rig = Rig::new();
    let good = WriteOne { offset: 0, region: TRAPPED, count: 4, data: [0; 8] };
    let bad = WriteOne { count: 9, ..good };
    let reply = rig.call(command::REGION_WRITE_MULTI, &multi(3, &[good, bad, good], 0)).unwrap();
    assert_eq!(reply, 1u64.as_bytes());
    assert_eq!(rig.device.take_calls().len(), 1);
    for bad in [bad, WriteOne { region: 50, ..good }, WriteOne { offset: 0xffd, ..good }] {
        assert_eq!(rig.call(command::REGION_WRITE_MULTI, &multi(2, &[bad, good], 0)), Err(Errno::EINVAL));
    }
    for message in [multi(2, &[good], 0), multi(1, &[good], 0)[..31].to_vec(), multi(u64::MAX, &[good], 0), vec![0; 7]]
    {
        assert_eq!(rig.call(command::REGION_WRITE_MULTI, &message), Err(Errno::EINVAL));
    }
    assert!(rig.device.calls.is_empty());
}
