//! A VMM's connection: messages well-formed and not, cut anywhere, with descriptors, and a device that answers late.
//!
//! Holds: every command that wants a reply gets one, and no other does; every read of client memory ends once; every
//! descriptor that came is closed in the end; the device is asked only what the trait promises; and the next client is
//! served.
use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::fcntl::OFlag;
use nix::unistd::{pipe2, read};
use svadev_spec::vfio_user::{self as spec, Header, IrqSetFlags, command, irq, region};
use svadev_vfio_user::client::LoopbackClient;
use svadev_vfio_user::{
    Action, Data, Device, DeviceInfo, DmaMap, DmaUnmap, Errno, IrqInfo, Limits, ProtocolError, RegionInfo, ReplyToken,
    ResetReply, Sender, Server, SetIrqs, UnmapReply,
};
use zerocopy::{FromBytes, IntoBytes};

use crate::{Input, Seed};

mod op {
    pub(super) const COMMAND: u8 = 0;
    pub(super) const RAW: u8 = 1;
    pub(super) const BEHAVE: u8 = 2;
    pub(super) const COMPLETE: u8 = 3;
    pub(super) const REQUEST: u8 = 4;
    pub(super) const REPLY: u8 = 5;
    pub(super) const RECONNECT: u8 = 6;
    pub(super) const NEGOTIATE: u8 = 7;
    pub(super) const CUT: u8 = 8;
    pub(super) const COUNT: u8 = 9;
}

const LIMITS: Limits = Limits { max_msg_fds: 8, max_data_xfer_size: 0x1_0000, max_dma_maps: 16 };
/// The longest message, header included: data, header, 16 bytes of other fields.
const MAX_MESSAGE: u32 = LIMITS.max_data_xfer_size + 32;
const PROPOSAL: &str = r#"{"capabilities":{"max_msg_fds":16,"max_data_xfer_size":1048576,"max_dma_maps":65535,"pgsizes":4096,"write_multiple":true}}"#;

/// Sizes of regions; the third may only be read.
const REGIONS: [u64; region::COUNT as usize] = [0x1000, 0, 0x100, 0, 0x4000, 0, 0, 4096, 0];
const IRQS: [u32; irq::COUNT as usize] = [1, 0, 4, 1, 0];

/// A device that answers as told, and holds the server to what the trait promises.
#[derive(Default)]
struct Probe {
    /// Bits: 0 answer unmaps and resets later, 1 fail the next calls, 2 drop the token and promise to answer.
    behaviour: u8,
    tokens: Vec<ReplyToken>,
    maps: BTreeMap<u64, u64>,
    /// Descriptors that it keeps.
    fds: Vec<OwnedFd>,
    disconnects: u64,
}

impl Probe {
    fn outcome(&self) -> Result<(), Errno> {
        if self.behaviour & 2 == 0 { Ok(()) } else { Err(Errno::EIO) }
    }

    fn access(region: u32, offset: u64, len: usize) {
        let size = REGIONS[usize::try_from(region).expect("an index of ours")];
        assert!(len > 0 && offset + len as u64 <= size, "{len} bytes at {offset:#x} of region {region}");
    }
}

impl Device for Probe {
    fn device_info(&self) -> DeviceInfo {
        DeviceInfo::pci(true)
    }
    fn region(&self, index: u32) -> RegionInfo<'_> {
        let size = REGIONS[usize::try_from(index).expect("an index of ours")];
        RegionInfo { size, read: size > 0, write: size > 0 && index != 2, mmap: None }
    }
    fn irq(&self, index: u32) -> IrqInfo {
        let count = IRQS[usize::try_from(index).expect("an index of ours")];
        IrqInfo { count, eventfd: index != irq::ERR, maskable: index == irq::INTX, ..IrqInfo::default() }
    }
    fn region_read(&mut self, region: u32, offset: u64, data: &mut [u8]) -> Result<(), Errno> {
        Self::access(region, offset, data.len());
        assert!(data.iter().all(|&byte| byte == 0), "data is zero on entry");
        self.outcome()
    }
    fn region_write(&mut self, region: u32, offset: u64, data: &[u8]) -> Result<(), Errno> {
        Self::access(region, offset, data.len());
        assert_ne!(region, 2, "a region that may only be read");
        self.outcome()
    }
    fn set_irqs(&mut self, set: SetIrqs<'_>) -> Result<(), Errno> {
        let count = IRQS[usize::try_from(set.index).expect("an index of ours")];
        assert!(u64::from(set.start) + u64::from(set.count) <= count.into(), "{set:?}");
        assert!(set.count > 0 || (set.action == Action::Trigger && matches!(set.data, Data::None)), "{set:?}");
        match set.data {
            Data::None => {}
            Data::Bool(bytes) => assert_eq!(bytes.len() as u64, u64::from(set.count)),
            Data::EventFd(fds) => {
                assert_eq!(fds.len() as u64, u64::from(set.count));
                self.fds = fds.into_iter().flatten().collect();
            }
        }
        self.outcome()
    }
    fn dma_map(&mut self, map: DmaMap) -> Result<(), Errno> {
        let last = map.gpa.checked_add(map.size.checked_sub(1).expect("not empty")).expect("no wrap");
        assert!(map.gpa.is_multiple_of(4096) && map.size.is_multiple_of(4096) && (map.read || map.write));
        let before = self.maps.range(..=last).next_back();
        assert!(before.is_none_or(|(start, size)| start + (size - 1) < map.gpa), "{map:?} overlaps {before:x?}");
        self.outcome()?;
        self.maps.insert(map.gpa, map.size);
        assert!(self.maps.len() <= LIMITS.max_dma_maps as usize);
        self.fds.extend(map.fd);
        self.fds.truncate(4);
        Ok(())
    }
    fn dma_unmap(&mut self, range: DmaUnmap, token: ReplyToken) -> UnmapReply {
        if let DmaUnmap::Range { address, size } = range {
            assert_eq!(self.maps.get(&address), Some(&size), "only what is mapped is unmapped");
        }
        if self.behaviour & 7 == 2 {
            return UnmapReply::Done(Err(Errno::EBUSY));
        }
        let unmapped = match range {
            DmaUnmap::All => std::mem::take(&mut self.maps).into_values().fold(0, u64::wrapping_add),
            DmaUnmap::Range { address, .. } => self.maps.remove(&address).expect("just looked at"),
        };
        match self.behaviour & 5 {
            0 => UnmapReply::Done(Ok(unmapped)),
            1 => {
                self.tokens.push(token);
                UnmapReply::Later
            }
            _ => UnmapReply::Later,
        }
    }
    fn reset(&mut self, token: ReplyToken) -> ResetReply {
        match self.behaviour & 5 {
            0 => ResetReply::Done,
            1 => {
                self.tokens.push(token);
                ResetReply::Later
            }
            _ => ResetReply::Later,
        }
    }
    fn disconnected(&mut self) {
        self.maps.clear();
        self.fds.clear();
        self.disconnects += 1;
    }
}

/// What a client that understands its own stream expects.
#[derive(Default)]
struct Expected {
    /// Bytes that were sent and are not a whole message yet.
    stream: Vec<u8>,
    /// Commands without a reply so far, by identifier and command: how many.
    unanswered: BTreeMap<(u16, u16), u64>,
    /// The server must have ended the connection at the latest when it has seen everything.
    broken: bool,
    /// The server may end it: descriptors, or a version, that it does not take.
    fragile: bool,
}

impl Expected {
    fn sent(&mut self, bytes: &[u8], fds: usize) {
        self.fragile |= fds > 0;
        self.stream.extend_from_slice(bytes);
        while !self.broken
            && let Ok((header, _)) = Header::read_from_prefix(&self.stream)
        {
            let size = header.message_size;
            let kind = header.flags & spec::TYPE_MASK;
            if !(16..=MAX_MESSAGE).contains(&size) {
                self.broken = true;
                return;
            }
            if self.stream.len() < size as usize {
                return;
            }
            if kind != spec::TYPE_COMMAND && kind != spec::TYPE_REPLY {
                self.broken = true;
                return;
            }
            self.fragile |= header.command == command::VERSION;
            if kind == spec::TYPE_COMMAND && header.flags & spec::FLAG_NO_REPLY == 0 {
                *self.unanswered.entry((header.message_id, header.command)).or_default() += 1;
            }
            self.stream.drain(..size as usize);
        }
    }
}

struct Rig {
    server: Server,
    sender: Sender,
    device: Probe,
    client: LoopbackClient,
    expected: Expected,
    ended: bool,
    /// DMA_READs that were taken on, and completions that came.
    reads: u64,
    completions: Arc<AtomicU64>,
    /// DMA_READ and DMA_WRITE that the client has seen and not answered.
    requests: Vec<Header>,
    /// Its duplicates are the descriptors that are sent.
    writer: OwnedFd,
    piece: usize,
    next_id: u16,
}

pub(super) fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let (reader, writer) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).expect("a pipe can be made");
    let mut server = Server::new(LIMITS);
    let sender = server.sender();
    let client = LoopbackClient::connect(&mut server, 1 << 20);
    let mut rig = Rig {
        server,
        sender,
        device: Probe::default(),
        client,
        expected: Expected::default(),
        ended: false,
        reads: 0,
        completions: Arc::default(),
        requests: Vec::new(),
        writer,
        piece: usize::MAX,
        next_id: 0,
    };
    if input.flag() {
        rig.negotiate(PROPOSAL);
    }
    while !input.is_empty() {
        rig.step(&mut input);
    }
    rig.end();
    // Everybody who held a copy is gone: the pipe has no writer any more.
    assert_eq!(read(reader.as_fd(), &mut [0]), Ok(0), "every descriptor is closed");
}

impl Rig {
    fn negotiate(&mut self, json: &str) {
        let payload = [&[0; 4], json.as_bytes(), &[0]].concat();
        self.command(command::VERSION, 0, &payload, 0);
    }

    fn command(&mut self, command: u16, flags: u32, payload: &[u8], fds: usize) {
        let message_size = u32::try_from(size_of::<Header>() + payload.len()).expect("inputs are short");
        let header = Header { message_id: self.next_id, command, message_size, flags, error: 0 };
        self.next_id = self.next_id.wrapping_add(1);
        self.send(&[header.as_bytes(), payload].concat(), fds);
    }

    /// Sends bytes in pieces, descriptors with the first, and lets the server do what it can.
    fn send(&mut self, bytes: &[u8], fds: usize) {
        if self.ended || bytes.is_empty() {
            return;
        }
        let fds: Vec<OwnedFd> =
            (0..fds).map(|_| self.writer.try_clone().expect("a descriptor can be duplicated")).collect();
        self.expected.sent(bytes, fds.len());
        let mut fds = Some(fds);
        for piece in bytes.chunks(self.piece) {
            self.client.send_bytes(piece.to_vec(), fds.take().unwrap_or_default());
        }
        self.pump();
    }

    fn pump(&mut self) {
        let result = self.client.pump(&mut self.server, &mut self.device);
        self.receive();
        if let Err(error) = result {
            let expected = match error {
                ProtocolError::TooManyFds | ProtocolError::Version(_) => self.expected.fragile,
                _ => self.expected.broken,
            };
            assert!(expected, "{error} for a stream that is sound");
            self.ended = true;
        }
    }

    fn receive(&mut self) {
        while let Some(message) = self.client.receive() {
            let Header { message_id, command, message_size, flags, .. } = message.header;
            assert_eq!(message_size as usize, size_of::<Header>() + message.payload.len());
            if flags & spec::TYPE_MASK == spec::TYPE_COMMAND {
                assert!(matches!(command, command::DMA_READ | command::DMA_WRITE), "the server asks for {command}");
                self.requests.push(message.header);
                continue;
            }
            assert!(message_size <= MAX_MESSAGE, "a reply of {message_size} bytes");
            let unanswered = self.expected.unanswered.get_mut(&(message_id, command));
            let unanswered = unanswered.filter(|n| **n > 0).expect("a reply is to a command that has none yet");
            *unanswered -= 1;
        }
    }

    fn step(&mut self, input: &mut Input<'_>) {
        match input.below(op::COUNT) {
            op::COMMAND => {
                let flags = if input.u8() < 0xe0 { 0 } else { spec::FLAG_NO_REPLY };
                let (command, payload, fds) = command(input);
                self.command(command, flags, &payload, fds);
            }
            op::RAW => {
                let (fds, len) = (usize::from(input.u8() >> 4), usize::from(input.u8()));
                let bytes = input.bytes(len);
                self.send(bytes, fds);
            }
            op::BEHAVE => self.device.behaviour = input.u8() & 7,
            op::COMPLETE => {
                let (n, how) = (usize::from(input.u8()), input.u8());
                if !self.device.tokens.is_empty() {
                    let token = self.device.tokens.swap_remove(n % self.device.tokens.len());
                    match how & 3 {
                        0 => drop(token),
                        1 => self.sender.complete(token, Err(Errno::EIO)),
                        _ => self.sender.complete(token, Ok(0x1000)),
                    }
                }
                self.receive();
            }
            op::REQUEST => self.request(input),
            op::REPLY => {
                let (n, len, failed) = (usize::from(input.u8()), input.u8().into(), input.flag());
                let payload = input.bytes(len).to_vec();
                if !self.requests.is_empty() && !self.ended {
                    let header = self.requests.swap_remove(n % self.requests.len());
                    self.reply(&header, &payload, failed);
                }
            }
            op::RECONNECT => {
                let room = usize::from(input.u16());
                self.reconnect(room);
            }
            op::NEGOTIATE => {
                let len = usize::from(input.u8());
                let json = String::from_utf8_lossy(input.bytes(len)).into_owned();
                self.negotiate(if json.is_empty() { PROPOSAL } else { &json });
            }
            op::CUT => self.piece = usize::from(input.u8()).max(1),
            _ => unreachable!("below the number of operations"),
        }
    }

    fn request(&mut self, input: &mut Input<'_>) {
        let (is_read, address, len) = (input.flag(), input.u64(), usize::from(input.u16()));
        if is_read {
            let completions = Arc::clone(&self.completions);
            let taken = self.sender.dma_read(address, len, move |data| {
                assert!(data.is_err() || data.is_ok_and(|data| data.len() == len), "as much as was asked for");
                completions.fetch_add(1, Ordering::Relaxed);
            });
            self.reads += u64::from(taken.is_ok());
        } else {
            let _ = self.sender.dma_write(address, &vec![7; len]);
        }
        self.receive();
    }

    /// Answers a request: the address and count that were asked for are not repeated unless the input does.
    fn reply(&mut self, to: &Header, payload: &[u8], failed: bool) {
        let flags = spec::TYPE_REPLY | if failed { spec::FLAG_ERROR } else { 0 };
        let message_size = u32::try_from(size_of::<Header>() + payload.len()).expect("inputs are short");
        let header = Header { message_size, flags, error: 5, ..*to };
        self.send(&[header.as_bytes(), payload].concat(), 0);
    }

    fn reconnect(&mut self, room: usize) {
        let before = self.device.disconnects;
        self.server.disconnect(&mut self.device);
        assert_eq!(self.device.disconnects, before + 1, "the device is told");
        assert_eq!(self.completions.load(Ordering::Relaxed), self.reads, "every read ends with its connection");
        self.client = LoopbackClient::connect(&mut self.server, room);
        self.expected = Expected::default();
        self.requests.clear();
        (self.ended, self.piece) = (false, usize::MAX);
    }

    fn end(mut self) {
        for token in std::mem::take(&mut self.device.tokens) {
            self.sender.complete(token, Ok(0));
        }
        if !self.ended {
            self.client.grow_room(64 << 20);
            self.pump();
            self.server.flush();
            self.receive();
        }
        assert!(self.ended || !self.expected.broken, "a stream that makes no sense ends the connection");
        if !self.ended {
            let owed: Vec<_> = self.expected.unanswered.iter().filter(|(_, n)| **n > 0).collect();
            assert!(owed.is_empty(), "no reply to {owed:?}");
        }
        let counters = self.sender.counters();
        assert!(counters.error_replies + counters.posted_errors <= counters.commands + 1024, "{counters:?}");
        self.device.behaviour = 0;
        self.reconnect(1 << 20);
        self.negotiate(PROPOSAL);
        let read = spec::RegionAccess { offset: 0, region: region::CONFIG, count: 64 };
        self.command(command::REGION_READ, 0, read.as_bytes(), 0);
        assert!(self.expected.unanswered.values().all(|&n| n == 0), "the next client is served");
        assert_eq!(self.sender.counters().error_replies, counters.error_replies, "without an error");
    }
}

/// A command near what is valid: payload and number of descriptors.
fn command(input: &mut Input<'_>) -> (u16, Vec<u8>, usize) {
    let pages = |input: &mut Input<'_>| match input.u8() {
        byte @ 0..=0xef => u64::from(byte) << 12,
        byte => u64::MAX << (byte & 15),
    };
    match input.u8() % 13 {
        0 | 1 => {
            let map = spec::DmaMap {
                argsz: 32,
                flags: input.u8().into(),
                offset: pages(input),
                address: pages(input),
                size: pages(input),
            };
            (command::DMA_MAP, map.as_bytes().to_vec(), usize::from(input.u8() % 3))
        }
        2 => {
            let flags = u32::from(input.u8());
            let unmap = spec::DmaUnmap { argsz: 24, flags, address: pages(input), size: pages(input) };
            (command::DMA_UNMAP, unmap.as_bytes().to_vec(), 0)
        }
        3 => (
            command::DEVICE_GET_INFO,
            spec::DeviceInfo { argsz: input.u8().into(), ..Default::default() }.as_bytes().to_vec(),
            0,
        ),
        4 => {
            let info = spec::RegionInfo { argsz: input.u16().into(), index: input.u8().into(), ..Default::default() };
            (command::DEVICE_GET_REGION_INFO, info.as_bytes().to_vec(), 0)
        }
        5 => {
            let info = spec::IrqInfo { argsz: 16, index: input.u8().into(), ..Default::default() };
            (command::DEVICE_GET_IRQ_INFO, info.as_bytes().to_vec(), 0)
        }
        6 | 7 => {
            let set = spec::IrqSet {
                argsz: 20,
                flags: input.u8().into(),
                index: u32::from(input.u8() % 8),
                start: u32::from(input.u8() % 8),
                count: u32::from(input.u8() % 8),
            };
            let fds = usize::from(input.u8() % 10);
            (command::DEVICE_SET_IRQS, [set.as_bytes(), input.bytes(8)].concat(), fds)
        }
        8 => {
            let count = if input.flag() { input.u32() } else { u32::from(input.u16()) };
            let read = spec::RegionAccess { offset: input.u16().into(), region: u32::from(input.u8() % 12), count };
            (command::REGION_READ, read.as_bytes().to_vec(), 0)
        }
        9 => {
            let len = usize::from(input.u8());
            let count = if input.flag() { u32::from(input.u16()) } else { u32::try_from(len).expect("a byte") };
            let write = spec::RegionAccess { offset: input.u16().into(), region: u32::from(input.u8() % 12), count };
            (command::REGION_WRITE, [write.as_bytes(), &vec![1; len]].concat(), 0)
        }
        10 => {
            let mut payload = u64::from(input.u8() % 8).as_bytes().to_vec();
            for _ in 0..input.u8() % 8 {
                let (offset, region, count) =
                    (input.u16().into(), u32::from(input.u8() % 12), u32::from(input.u8() % 12));
                payload.extend_from_slice(spec::WriteOne { offset, region, count, data: [2; 8] }.as_bytes());
            }
            (command::REGION_WRITE_MULTI, payload, 0)
        }
        11 => (command::DEVICE_RESET, Vec::new(), 0),
        _ => {
            let (command, len) = (u16::from(input.u8() % 32), input.u8().into());
            (command, input.bytes(len).to_vec(), usize::from(input.u8() % 12))
        }
    }
}

pub(super) fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let send = |seed: Seed, kind: u8, fields: &[u8]| seed.u8(op::COMMAND).u8(0).u8(kind).bytes(fields);
    let map = |seed: Seed, page: u8, fds: u8| send(seed, 0, &[3, 0, page, 4, fds]);
    let unmap = |seed: Seed, page: u8| send(seed, 2, &[0, page, 4]);
    let reset = |seed: Seed| send(seed, 11, &[]);
    // What QEMU asks before a machine starts: information, interrupts, memory.
    let start = || {
        let seed = send(Seed::new().u8(1), 3, &[16]);
        let seed = (0..region::COUNT).fold(seed, |s, n| send(s, 4, &[32, 0, u8::try_from(n).expect("few")]));
        (0..irq::COUNT).fold(seed, |s, n| send(s, 5, &[u8::try_from(n).expect("few")]))
    };
    let eventfds = u8::try_from((IrqSetFlags::DATA_EVENTFD | IrqSetFlags::ACTION_TRIGGER).bits()).expect("a byte");
    let off = u8::try_from((IrqSetFlags::DATA_NONE | IrqSetFlags::ACTION_TRIGGER).bits()).expect("a byte");
    let irqs = |seed: Seed| {
        let seed = send(seed, 6, &[eventfds, 2, 0, 4, 4, 0, 0, 0, 0, 0, 0, 0, 0]);
        send(seed, 6, &[off, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])
    };
    let accesses = |seed: Seed| {
        let seed = send(seed, 8, &[0, 4, 0, 0, 0, 7]);
        let seed = send(seed, 9, &[4, 0, 4, 0, 7]);
        let seed = send(seed, 10, &[2, 2, 0, 0, 0, 4, 8, 0, 0, 8]);
        send(seed, 8, &[1, 0, 0, 1, 0, 0, 0, 4])
    };
    let late = |seed: Seed| unmap(reset(unmap(map(map(seed.u8(op::BEHAVE).u8(1), 0, 1), 8, 0), 0)), 8);
    let requests = |seed: Seed| {
        seed.repeat(3, |s, n| s.u8(op::REQUEST).u8(u8::try_from(n & 1).expect("a bit")).u64(0x1000 * n).u16(8))
    };
    let header = Header { message_id: 7, command: command::DEVICE_RESET, message_size: 16, flags: 0, error: 0 };
    let raw = |seed: Seed, header: Header, fds: u8| seed.u8(op::RAW).u8(fds << 4).u8(16).bytes(header.as_bytes());
    vec![
        ("start", accesses(irqs(map(map(start(), 0, 1), 16, 1))).done()),
        ("maps", unmap(unmap(map(map(map(Seed::new().u8(1), 0, 1), 2, 1), 240, 0), 0), 0).done()),
        (
            "late-answers",
            late(Seed::new().u8(1))
                .u8(op::COMPLETE)
                .bytes(&[1, 2])
                .u8(op::COMPLETE)
                .bytes(&[0, 0])
                .u8(op::COMPLETE)
                .bytes(&[0, 1])
                .done(),
        ),
        (
            "late-answers-disconnect",
            map(
                late(Seed::new().u8(1))
                    .u8(op::RECONNECT)
                    .u16(0xffff)
                    .u8(op::NEGOTIATE)
                    .u8(0)
                    .u8(op::COMPLETE)
                    .bytes(&[0, 2]),
                0,
                1,
            )
            .done(),
        ),
        (
            "requests",
            requests(Seed::new().u8(1))
                .u8(op::REPLY)
                .bytes(&[0, 0, 1])
                .u8(op::REPLY)
                .bytes(&[0, 24, 0])
                .bytes(&[0; 24])
                .done(),
        ),
        ("requests-disconnect", requests(Seed::new().u8(1)).u8(op::RECONNECT).u16(64).u8(op::NEGOTIATE).u8(0).done()),
        ("cut", accesses(irqs(start().u8(op::CUT).u8(3))).done()),
        ("unnegotiated", accesses(reset(Seed::new().u8(0))).u8(op::NEGOTIATE).u8(2).bytes(b"{}").done()),
        (
            "headers",
            raw(
                raw(raw(Seed::new().u8(1), header, 1), Header { flags: 1, ..header }, 0),
                Header { message_size: 8, ..header },
                0,
            )
            .done(),
        ),
        ("long-header", raw(Seed::new().u8(1), Header { message_size: u32::MAX, ..header }, 0).done()),
        (
            "many-descriptors",
            Seed::new()
                .u8(1)
                .u8(op::CUT)
                .u8(1)
                .repeat(40, |s, _| raw(s, Header { message_size: 17, ..header }, 15))
                .done(),
        ),
    ]
}
