//! Streams of anything: no panic, bounded memory, a reply for each command that wants one.
use proptest::prelude::*;
use svadev_spec::vfio_user::{self as spec, Header, command};
use zerocopy::IntoBytes;

use super::{QEMU_PROPOSAL, Rig, alloc, eventfd};
use crate::Limits;

/// More than a message of each kind takes, with the buffers that stay.
const MEMORY: i64 = 16 << 20;

/// A well-formed message: command, flags, payload, number of descriptors.
fn valid() -> impl Strategy<Value = (u16, u32, Vec<u8>, usize)> {
    let address = prop_oneof![0..16u64, Just(u64::MAX >> 12)].prop_map(|page| page << 12);
    let size = prop_oneof![Just(0x1000u64), Just(0x3000), Just(0), Just(u64::MAX)];
    let region_access = (0..10u32, 0..0x2000u64, prop_oneof![0..64u32, Just(4096), Just(u32::MAX)]);
    let flags = prop_oneof![4 => Just(0u32), 1 => Just(spec::FLAG_NO_REPLY)];
    let payload = prop_oneof![
        (address.clone(), size.clone(), 0..4u32, 0..3usize).prop_map(|(address, size, flags, fds)| {
            (command::DMA_MAP, spec::DmaMap { argsz: 32, flags, offset: 0, address, size }.as_bytes().to_vec(), fds)
        }),
        (address, size, 0..5u32).prop_map(|(address, size, flags)| {
            (command::DMA_UNMAP, spec::DmaUnmap { argsz: 24, flags, address, size }.as_bytes().to_vec(), 0)
        }),
        (0..200u32, 0..10u32).prop_map(|(argsz, index)| {
            let request = spec::RegionInfo { argsz, index, ..Default::default() };
            (command::DEVICE_GET_REGION_INFO, request.as_bytes().to_vec(), 0)
        }),
        (0..64u32, 0..6u32, 0..6u32, 0..6u32, 0..6usize).prop_map(|(flags, index, start, count, fds)| {
            let set = spec::IrqSet { argsz: 28, flags, index, start, count };
            (command::DEVICE_SET_IRQS, [set.as_bytes(), &[1; 8]].concat(), fds)
        }),
        region_access.clone().prop_map(|(region, offset, count)| {
            (command::REGION_READ, spec::RegionAccess { offset, region, count }.as_bytes().to_vec(), 0)
        }),
        (region_access, any::<bool>()).prop_map(|((region, offset, count), honest)| {
            let data = vec![1; if honest { count.min(4096) } else { 3 } as usize];
            let access = spec::RegionAccess { offset, region, count };
            (command::REGION_WRITE, [access.as_bytes(), &data].concat(), 0)
        }),
        (0..5u64, prop::collection::vec((0..0x2000u64, 0..10u32, 0..10u32), 0..5)).prop_map(|(wr_cnt, writes)| {
            let mut payload = wr_cnt.as_bytes().to_vec();
            for (offset, region, count) in writes {
                payload.extend_from_slice(spec::WriteOne { offset, region, count, data: [2; 8] }.as_bytes());
            }
            (command::REGION_WRITE_MULTI, payload, 0)
        }),
        (0..20u16, prop::collection::vec(any::<u8>(), 0..64), 0..3usize),
    ];
    (flags, payload).prop_map(|(flags, (command, payload, fds))| (command, flags, payload, fds))
}

fn message((command, flags, payload, _): &(u16, u32, Vec<u8>, usize), message_id: u16) -> Vec<u8> {
    let message_size = u32::try_from(16 + payload.len()).unwrap();
    let header = Header { message_id, command: *command, message_size, flags: *flags, error: 0 };
    [header.as_bytes(), payload].concat()
}

proptest! {
    /// Every command that wants a reply gets one, and the others none.
    #[test]
    fn every_command_is_answered(commands in prop::collection::vec(valid(), 1..60)) {
        let mut rig = Rig::new();
        let mut expected = Vec::new();
        for (id, command) in (0..).zip(&commands) {
            if command.1 & spec::FLAG_NO_REPLY == 0 {
                expected.push(id);
            }
            rig.client.send_bytes(message(command, id), (0..command.3).map(|_| eventfd()).collect());
        }
        let replies: Vec<u16> = rig.replies().iter().map(|m| m.header.message_id).collect();
        prop_assert_eq!(replies, expected);
    }

    /// Messages with bytes changed, cut into pieces at random.
    #[test]
    fn mutated_messages(
        commands in prop::collection::vec(valid(), 1..30),
        mutations in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..20),
        pieces in prop::collection::vec(1..200usize, 1..20),
        negotiated: bool,
    ) {
        let mut rig = if negotiated { Rig::new() } else { Rig::unconnected(Limits::default()) };
        let mut stream: Vec<u8> = commands.iter().flat_map(|c| message(c, 0)).collect();
        for (index, byte) in mutations {
            let index = index.index(stream.len());
            stream[index] = byte;
        }
        feed(&mut rig, &stream, &pieces)?;
    }

    /// Bytes of no meaning.
    #[test]
    fn random_bytes(stream in prop::collection::vec(any::<u8>(), 0..2000), pieces in prop::collection::vec(1..200usize, 1..20)) {
        feed(&mut Rig::unconnected(Limits::default()), &stream, &pieces)?;
        feed(&mut Rig::new(), &stream, &pieces)?;
    }

    /// What a client proposes, changed.
    #[test]
    fn mutated_proposals(mutations in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8), end in 0..=200usize) {
        let mut rig = Rig::unconnected(Limits::default());
        let mut payload = [&[0; 4], QEMU_PROPOSAL.as_bytes(), &[0]].concat();
        for (index, byte) in mutations {
            let index = 2 + index.index(payload.len() - 2);
            payload[index] = byte;
        }
        payload.truncate(payload.len().saturating_sub(end).max(2));
        match rig.call(command::VERSION, &payload) {
            // A client that proposes nothing has room for everything.
            Ok(reply) => prop_assert!(reply.len() <= payload.len() || payload.len() == 4),
            Err(errno) => prop_assert_eq!(errno, crate::Errno::EINVAL),
        }
    }
}

/// Sends `stream` in pieces until it ends or the server has enough of it.
fn feed(rig: &mut Rig, stream: &[u8], pieces: &[usize]) -> Result<(), TestCaseError> {
    let (_, peak) = alloc::peak(|| {
        let mut rest = stream;
        for &piece in pieces.iter().cycle() {
            let (now, later) = rest.split_at(piece.min(rest.len()));
            rig.client.send_bytes(now.to_vec(), vec![]);
            rest = later;
            if rest.is_empty() || rig.client.pump(&mut rig.server, &mut rig.device).is_err() {
                break;
            }
        }
        // Whatever happened, the next client is served.
        rig.disconnect();
        rig.client = crate::client::LoopbackClient::connect(&mut rig.server, 1 << 20);
        rig.client.negotiate(&mut rig.server, &mut rig.device, QEMU_PROPOSAL)
    });
    prop_assert!(peak < MEMORY, "{} bytes", peak);
    let read = spec::RegionAccess { offset: 0, region: 0, count: 8 };
    prop_assert!(rig.call(command::REGION_READ, read.as_bytes()).is_ok());
    Ok(())
}
