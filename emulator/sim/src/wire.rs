//! A function behind vfio-user, as a VMM sees it: each register access is a message, in a stream that is cut where the seed
//! says, and that ends where the seed says.
//!
//! Writes to BARs are posted and may lie in the stream for a while; reads and configuration writes wait for their reply, as in
//! QEMU, and so for all that was sent before them. A client that goes away takes with it what was half sent, and the function
//! does what the launcher's does (`emulator/launcher/src/backend.rs`).
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use svadev_accelerator::Function;
use svadev_fabric::InvalidateAck;
use svadev_spec::device::{BAR_DOORBELLS, BAR_REGISTERS};
use svadev_spec::vfio_user::{self as spec, DmaMapFlags, Header, RegionAccess, command, region};
use svadev_vfio_user::client::{LoopbackClient, Message};
use svadev_vfio_user::{
    Device, DeviceInfo, DmaMap, DmaUnmap, Errno, IrqInfo, Limits, RegionInfo, ReplyToken, ResetReply, Sender, Server,
    SetIrqs, UnmapReply,
};
use zerocopy::IntoBytes;

use crate::bus::Ports;
use crate::checker::Checker;
use crate::coverage::Group;
use crate::frames::FRAME;
use crate::log::Log;
use crate::mutant::Mutant;
use crate::rng::Rng;

/// Bytes of replies that may wait for the client.
const CAPACITY: usize = 4096;
/// Where mappings come and go that no work uses.
const SIDE_MAPS: u64 = 1 << 40;

/// The function as vfio-user's server sees it.
struct Endpoint {
    function: Function,
    sender: Sender,
    /// Unmaps that wait for the engines, by the token of the memory change.
    unmaps: BTreeMap<u64, ReplyToken>,
    /// Resets under way: a reply where a message asked for it.
    resets: VecDeque<Option<ReplyToken>>,
}

/// A function behind vfio-user, as a VMM sees it.
pub struct Wire {
    server: Server,
    client: LoopbackClient,
    endpoint: Endpoint,
    /// Pieces of messages that the server has not received.
    pipe: VecDeque<Vec<u8>>,
    /// Commands that a reply is due to, and the token of the memory change that it ends, if it is one.
    due: BTreeMap<u16, Option<u64>>,
    next_id: u16,
    /// Memory changes that were answered.
    released: Vec<u64>,
    resets_seen: u64,
    rng: Rng,
    log: Arc<Log>,
    mutant: Option<Mutant>,
}

impl Wire {
    /// Puts a function behind a server, with a client connected.
    pub fn new(function: Function, rng: Rng, log: Arc<Log>, mutant: Option<Mutant>) -> Self {
        let mut server = Server::new(Limits::default());
        let sender = server.sender();
        let client = LoopbackClient::connect(&mut server, CAPACITY);
        let endpoint = Endpoint { function, sender, unmaps: BTreeMap::new(), resets: VecDeque::new() };
        let mut wire = Self {
            server,
            client,
            endpoint,
            pipe: VecDeque::new(),
            due: BTreeMap::new(),
            next_id: 0x8000,
            released: Vec::new(),
            resets_seen: 0,
            rng,
            log,
            mutant,
        };
        wire.greet();
        wire
    }

    fn greet(&mut self) {
        let json = r#"{"capabilities":{"max_msg_fds":8,"write_multiple":true}}"#;
        let reply = self.client.negotiate(&mut self.server, &mut self.endpoint, json);
        assert!(reply.is_some_and(|reply| reply.result().is_ok()), "both sides speak the same version");
        self.log.count(Group::Path, "transport connected");
    }

    /// The function.
    pub fn function(&self) -> &Function {
        &self.endpoint.function
    }

    /// Sends a command, in pieces; returns its ID.
    fn send(&mut self, command: u16, flags: u32, payload: &[u8]) -> u16 {
        let message_id = self.next_id;
        self.next_id = self.next_id.wrapping_add(1);
        let message_size = u32::try_from(size_of::<Header>() + payload.len()).expect("messages are short");
        let header = Header { message_id, command, message_size, flags, error: 0 };
        let mut bytes = [header.as_bytes(), payload].concat();
        while bytes.len() > 1 && self.rng.chance(300) {
            let rest = bytes.split_off(1 + self.rng.index(bytes.len() - 1));
            self.pipe.push_back(std::mem::replace(&mut bytes, rest));
            self.log.count(Group::Path, "message in pieces");
        }
        self.pipe.push_back(bytes);
        message_id
    }

    /// The server receives so many pieces more.
    fn deliver(&mut self, pieces: usize) {
        for bytes in self.pipe.drain(..pieces.min(self.pipe.len())) {
            self.client.send_bytes(bytes, Vec::new());
            let progress = self.client.pump(&mut self.server, &mut self.endpoint);
            assert!(progress.is_ok(), "the client sends whole messages, in the end: {progress:?}");
        }
    }

    /// Some time passes: some of what was sent arrives, and some replies do.
    pub fn turn(&mut self, ports: &Ports) {
        let pieces = self.rng.index(4);
        self.deliver(pieces);
        self.finish(ports);
        if self.rng.chance(500) {
            self.receive();
        }
    }

    /// Answers what the engines have finished.
    fn finish(&mut self, ports: &Ports) {
        for token in ports.take_released() {
            if let Some(reply) = self.endpoint.unmaps.remove(&token) {
                self.endpoint.sender.complete(reply, Ok(FRAME));
            }
        }
        while self.resets_seen < ports.resets() {
            self.resets_seen += 1;
            if let Some(Some(reply)) = self.endpoint.resets.pop_front() {
                self.endpoint.sender.complete(reply, Ok(0));
            }
        }
    }

    fn receive(&mut self) {
        self.server.flush();
        while let Some(message) = self.client.receive() {
            self.take(&message);
        }
    }

    /// A message came: the reply to something that was asked.
    fn take(&mut self, message: &Message) {
        let id = message.header.message_id;
        let due = self.due.remove(&id);
        self.log.check(Checker::Transport, due.is_some() && message.result().is_ok(), || {
            format!("reply {id:#x}, {:?}, due: {due:?}", message.header)
        });
        if let Some(Some(token)) = due {
            self.released.push(token);
        }
    }

    /// Sends a command and waits for its reply.
    fn call(&mut self, command: u16, payload: &[u8]) -> Vec<u8> {
        let id = self.send(command, 0, payload);
        self.deliver(usize::MAX);
        loop {
            self.server.flush();
            let message = self.client.receive().expect("register accesses are answered at once");
            if message.header.message_id == id {
                let data = message.result().map(<[u8]>::to_vec);
                self.log.check(Checker::Transport, data.is_ok(), || format!("an access failed: {data:?}"));
                return data.unwrap_or_default();
            }
            self.take(&message);
        }
    }

    /// Loads from a region.
    pub fn read(&mut self, region: u32, offset: u64, data: &mut [u8]) {
        let count = u32::try_from(data.len()).expect("registers are small");
        let reply = self.call(command::REGION_READ, RegionAccess { offset, region, count }.as_bytes());
        let bytes = reply.get(size_of::<RegionAccess>()..).filter(|bytes| bytes.len() == data.len());
        self.log.check(Checker::Transport, bytes.is_some(), || format!("{} bytes for {count}", reply.len()));
        if let Some(bytes) = bytes {
            data.copy_from_slice(bytes);
        }
    }

    /// Stores to a region: posted where it is a BAR.
    pub fn write(&mut self, region: u32, offset: u64, data: &[u8]) {
        let count = u32::try_from(data.len()).expect("registers are small");
        let payload = [RegionAccess { offset, region, count }.as_bytes(), data].concat();
        if matches!(region, BAR_REGISTERS | BAR_DOORBELLS) {
            self.send(command::REGION_WRITE, spec::FLAG_NO_REPLY, &payload);
        } else {
            self.call(command::REGION_WRITE, &payload);
        }
    }

    /// Maps a page that no work uses and takes it away again: [`take_released`](Self::take_released) says when nobody can
    /// use it any more.
    pub fn change_memory(&mut self, token: u64) {
        let argsz = u32::try_from(size_of::<spec::DmaMap>()).expect("it is small");
        let flags = (DmaMapFlags::READ | DmaMapFlags::WRITE).bits();
        let map = spec::DmaMap { argsz, flags, offset: 0, address: SIDE_MAPS + token * FRAME, size: FRAME };
        let id = self.send(command::DMA_MAP, 0, map.as_bytes());
        self.due.insert(id, None);
        let argsz = u32::try_from(size_of::<spec::DmaUnmap>()).expect("it is small");
        let unmap = spec::DmaUnmap { argsz, flags: 0, address: map.address, size: FRAME };
        let id = self.send(command::DMA_UNMAP, 0, unmap.as_bytes());
        if self.mutant != Some(Mutant::ForgetCommand) {
            self.due.insert(id, Some(token));
        }
        self.log.count(Group::Path, "DMA map and unmap");
    }

    /// Memory changes that are over since the last call.
    pub fn take_released(&mut self) -> Vec<u64> {
        std::mem::take(&mut self.released)
    }

    /// Asks for a reset by message; it is over when the function's ports say so.
    pub fn reset(&mut self) {
        let id = self.send(command::DEVICE_RESET, 0, &[]);
        self.due.insert(id, None);
        self.deliver(usize::MAX);
        self.log.count(Group::Path, "reset by message");
    }

    /// The client is gone, whatever it was just saying, and another one comes.
    pub fn reconnect(&mut self) {
        let pieces = self.rng.index(self.pipe.len() + 1);
        self.deliver(pieces);
        self.server.disconnect(&mut self.endpoint);
        self.log.count(Group::Path, "transport disconnected");
        self.pipe.clear();
        self.due.clear();
        self.released.clear();
        self.client = LoopbackClient::connect(&mut self.server, CAPACITY);
        self.greet();
    }

    /// Whether every command was answered.
    pub fn is_quiet(&self) -> bool {
        self.pipe.is_empty() && self.due.is_empty()
    }
}

impl Device for Endpoint {
    fn device_info(&self) -> DeviceInfo {
        DeviceInfo::pci(true)
    }

    fn region(&self, index: u32) -> RegionInfo<'_> {
        match index {
            region::CONFIG => RegionInfo::trapped(svadev_spec::pcie::CONFIG_SPACE_SIZE as u64),
            _ => match self.function.bar_size(index) {
                0 => RegionInfo::ABSENT,
                size => RegionInfo::trapped(size),
            },
        }
    }

    fn irq(&self, _: u32) -> IrqInfo {
        // Vectors are counted where the function raises them.
        IrqInfo::default()
    }

    fn region_read(&mut self, region: u32, offset: u64, data: &mut [u8]) -> Result<(), Errno> {
        match region {
            region::CONFIG => self.function.config_read(offset, data),
            bar => self.function.bar_read(bar, offset, data),
        }
        Ok(())
    }

    fn region_write(&mut self, region: u32, offset: u64, data: &[u8]) -> Result<(), Errno> {
        match region {
            region::CONFIG => {
                let flr = svadev_pci::ConfigEffect::Flr;
                self.resets.push_back(None);
                if !self.function.config_write(offset, data).into_iter().any(|effect| effect == flr) {
                    self.resets.pop_back();
                }
            }
            bar => self.function.bar_write(bar, offset, data),
        }
        Ok(())
    }

    fn set_irqs(&mut self, _: SetIrqs<'_>) -> Result<(), Errno> {
        Err(Errno::EINVAL)
    }

    fn dma_map(&mut self, _: DmaMap) -> Result<(), Errno> {
        Ok(())
    }

    fn dma_unmap(&mut self, range: DmaUnmap, token: ReplyToken) -> UnmapReply {
        let DmaUnmap::Range { address, size } = range else { return UnmapReply::Done(Err(Errno::EINVAL)) };
        let change = (address - SIDE_MAPS) / FRAME;
        if self.function.shared().memory_changed(change) == InvalidateAck::Done {
            return UnmapReply::Done(Ok(size));
        }
        self.unmaps.insert(change, token);
        UnmapReply::Later
    }

    fn reset(&mut self, token: ReplyToken) -> ResetReply {
        self.resets.push_back(Some(token));
        self.function.reset();
        ResetReply::Later
    }

    fn disconnected(&mut self) {
        self.resets.push_back(None);
        self.function.reset();
        // What was mapped goes too, and nobody waits for it.
        self.unmaps.clear();
    }
}

/// The driver's way to its function.
pub enum Link {
    /// Calls.
    Direct(Box<Function>),
    /// Messages.
    Wire(Box<Wire>),
}

impl Link {
    /// The function.
    pub fn function(&self) -> &Function {
        match self {
            Self::Direct(function) => function,
            Self::Wire(wire) => wire.function(),
        }
    }

    /// Reads configuration space.
    pub fn config_read(&mut self, offset: u64, data: &mut [u8]) {
        match self {
            Self::Direct(function) => function.config_read(offset, data),
            Self::Wire(wire) => wire.read(region::CONFIG, offset, data),
        }
    }

    /// Writes configuration space.
    pub fn config_write(&mut self, offset: u64, data: &[u8]) {
        match self {
            Self::Direct(function) => drop(function.config_write(offset, data)),
            Self::Wire(wire) => wire.write(region::CONFIG, offset, data),
        }
    }

    /// Reads a BAR.
    pub fn bar_read(&mut self, bar: u32, offset: u64, data: &mut [u8]) {
        match self {
            Self::Direct(function) => function.bar_read(bar, offset, data),
            Self::Wire(wire) => wire.read(bar, offset, data),
        }
    }

    /// Writes a BAR.
    pub fn bar_write(&mut self, bar: u32, offset: u64, data: &[u8]) {
        match self {
            Self::Direct(function) => function.bar_write(bar, offset, data),
            Self::Wire(wire) => wire.write(bar, offset, data),
        }
    }
}
