//! The VMM of one function: it turns the guest's accesses into vfio-user messages, as QEMU's client does.
//!
//! In one world of three, every register access is a message, in a stream that is cut where the seed says. There, a
//! write to a BAR is posted and may stay in the stream for a while. A read or a configuration write waits for its
//! reply, and so for all that was sent before it. In the other worlds register accesses are calls. Everything else is a
//! message in every world: mappings, resets, interrupt setup, and the unit's interrupts, which are memory writes.
//!
//! | rule | seen here as |
//! | --- | --- |
//! | no memory write without bus mastering | a DMA_WRITE, or a vector that fires, while Bus Master Enable is off |
//! | a masked vector waits, and is not lost | a vector that fires while it is masked, or does not when it is unmasked |
//! | a vector waits for bus mastering | a pending vector that does not fire when bus mastering is turned on |
//! | a connection's eventfds end with it | a vector of a former connection that fires |
//! | a reset is answered when it is over | a reply while the function is busy with the youngest reset |
//! | an unmap is answered when the memory is free | a reply before the mapping was given back |
use std::collections::{BTreeMap, VecDeque};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use nix::sys::eventfd::{EfdFlags, EventFd};
use svadev_host::Accelerator;
use svadev_pci::ConfigSpace;
use svadev_spec::device::{BAR_DOORBELLS, BAR_MSIX, BAR_REGISTERS, MSIX_PBA_OFFSET, Status, regs};
use svadev_spec::pcie::{self, CONFIG_SPACE_SIZE, header};
use svadev_spec::vfio_user::{self as spec, DmaAccess, Header, IrqSetFlags, RegionAccess, command, irq, region};
use svadev_vfio_user::client::{LoopbackClient, Message, request};
use svadev_vfio_user::{Device, Server};
use zerocopy::{FromBytes, IntoBytes};

use crate::checker::Checker;
use crate::coverage::Group;
use crate::frames::FRAME;
use crate::log::Log;
use crate::mutant::Mutant;
use crate::platform::{Maps, Simulated};
use crate::rng::Rng;

/// Bytes of replies that may wait for the client.
const CAPACITY: usize = 4096;
/// Where mappings come and go that no work uses.
const SIDE_MAPS: u64 = 1 << 40;

/// Data of the unit's interrupts, by which the kernel tells them apart; as bits of [`Vmm::take_unit_interrupts`].
pub mod msi {
    /// A fault was recorded, or the invalidation queue stopped.
    pub const FAULT: u32 = 1;
    /// An invalidation wait with IF completed.
    pub const INVALIDATION: u32 = 2;
    /// There are page requests.
    pub const PAGE_REQUEST: u32 = 4;
}

/// The command that a reply is due to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Due {
    /// Nothing that anybody waits for.
    Other,
    /// The end of the memory change with this token.
    Memory(u64),
    /// The end of the reset with this number.
    Reset(u64),
}

/// One MSI-X vector.
struct Vector {
    eventfd: EventFd,
    masked: bool,
    /// It fired, and the driver has not taken notice.
    fired: bool,
}

/// A function's VMM.
pub struct Vmm {
    device: Accelerator<Simulated>,
    server: Server,
    client: LoopbackClient,
    maps: Arc<Maps>,
    /// Guest memory, bytes.
    memory: u64,
    /// Register accesses are messages, and streams are cut.
    wired: bool,
    /// Pieces of messages that the server has not received, with descriptors.
    pipe: VecDeque<(Vec<u8>, Vec<OwnedFd>)>,
    due: BTreeMap<u16, Due>,
    next_id: u16,
    /// Memory changes that were answered.
    released: Vec<u64>,
    /// Resets that were begun.
    resets: u64,
    vectors: Vec<Vector>,
    /// Eventfds that the function must have forgotten.
    forgotten: Vec<EventFd>,
    /// Bus Master Enable. `None` while it is about to be cleared.
    bus_master: Option<bool>,
    unit_interrupts: u32,
    unit_interrupts_seen: u64,
    rng: Rng,
    log: Arc<Log>,
    mutant: Option<Mutant>,
}

/// The parts of a VMM.
pub struct Parts {
    /// The function.
    pub device: Accelerator<Simulated>,
    /// Its vfio-user server.
    pub server: Server,
    /// Its mappings.
    pub maps: Arc<Maps>,
    /// Bytes of guest memory.
    pub memory: u64,
    /// Register accesses are messages.
    pub wired: bool,
}

impl Vmm {
    /// Connects to a function.
    pub fn new(parts: Parts, rng: Rng, log: Arc<Log>, mutant: Option<Mutant>) -> Self {
        let Parts { device, mut server, maps, memory, wired } = parts;
        let client = LoopbackClient::connect(&mut server, CAPACITY);
        let mut vmm = Self {
            device,
            server,
            client,
            maps,
            memory,
            wired,
            pipe: VecDeque::new(),
            due: BTreeMap::new(),
            next_id: 0x8000,
            released: Vec::new(),
            resets: 0,
            vectors: Vec::new(),
            forgotten: Vec::new(),
            bus_master: Some(false),
            unit_interrupts: 0,
            unit_interrupts_seen: 0,
            rng,
            log,
            mutant,
        };
        vmm.greet();
        vmm
    }

    fn greet(&mut self) {
        let json = r#"{"capabilities":{"max_msg_fds":8,"write_multiple":true}}"#;
        let reply = self.client.negotiate(&mut self.server, &mut self.device, json);
        assert!(reply.is_some_and(|reply| reply.result().is_ok()), "both sides speak the same version");
        self.map(0, self.memory);
        self.log.count(Group::Path, "transport connected");
    }

    /// The function.
    pub fn device(&self) -> &Accelerator<Simulated> {
        &self.device
    }

    /// Its configuration space.
    pub fn config(&self) -> &ConfigSpace {
        self.device.function().config()
    }

    /// Resets that were begun so far, by any way.
    pub fn resets(&self) -> u64 {
        self.resets
    }

    /// Sends a command, in pieces; returns its ID.
    fn send(&mut self, command: u16, flags: u32, payload: &[u8], mut fds: Vec<OwnedFd>) -> u16 {
        let message_id = self.next_id;
        self.next_id = self.next_id.wrapping_add(1);
        let mut bytes = request::message(message_id, command, flags, payload);
        while self.wired && bytes.len() > 1 && self.rng.chance(300) {
            let rest = bytes.split_off(1 + self.rng.index(bytes.len() - 1));
            self.pipe.push_back((std::mem::replace(&mut bytes, rest), std::mem::take(&mut fds)));
            self.log.count(Group::Path, "message in pieces");
        }
        self.pipe.push_back((bytes, fds));
        if !self.wired {
            self.deliver(usize::MAX);
        }
        message_id
    }

    /// The server receives so many pieces more.
    fn deliver(&mut self, pieces: usize) {
        for (bytes, fds) in self.pipe.drain(..pieces.min(self.pipe.len())) {
            self.client.send_bytes(bytes, fds);
            let progress = self.client.pump(&mut self.server, &mut self.device);
            assert!(progress.is_ok(), "the client sends whole messages, in the end: {progress:?}");
        }
    }

    /// The server receives all that was sent.
    pub fn deliver_all(&mut self) {
        self.deliver(usize::MAX);
    }

    /// The function was paused: every command is answered.
    pub fn settle(&mut self) {
        self.receive();
        self.deliver_all();
        self.look_at_vectors();
        let due = self.due.len();
        self.log
            .check(Checker::Transport, due == 0, || format!("{due} commands are not answered by a paused function"));
    }

    /// Connects to a function that was restored from this one's state.
    pub fn replace(&mut self, device: Accelerator<Simulated>, mut server: Server, maps: Arc<Maps>) {
        self.client = LoopbackClient::connect(&mut server, CAPACITY);
        (self.device, self.server, self.maps) = (device, server, maps);
        self.greet();
        let old = std::mem::take(&mut self.vectors);
        if !old.is_empty() {
            self.give_eventfds(u32::try_from(old.len()).expect("a few"));
            for (new, old) in self.vectors.iter_mut().zip(&old) {
                (new.masked, new.fired) = (old.masked, old.fired);
            }
            self.forget(old);
        }
    }

    /// Some time passes: some of what was sent arrives, and some of what the function sent does.
    pub fn turn(&mut self) {
        if self.wired {
            let pieces = self.rng.index(4);
            self.deliver(pieces);
        }
        if self.rng.chance(300) {
            self.receive();
        }
    }

    fn receive(&mut self) {
        self.server.flush();
        while let Some(message) = self.client.receive() {
            self.take(&message);
        }
    }

    /// A message came: a memory write, or the reply to something that was asked.
    fn take(&mut self, message: &Message) {
        if message.header.flags & spec::TYPE_MASK == spec::TYPE_COMMAND {
            return self.memory_write(message);
        }
        let id = message.header.message_id;
        let due = self.due.remove(&id);
        self.log.check(Checker::Transport, due.is_some() && message.result().is_ok(), || {
            format!("reply {id:#x}, {:?}, due: {due:?}", message.header)
        });
        match due {
            Some(Due::Memory(token)) => {
                let free = self.maps.is_given_back(SIDE_MAPS + token * FRAME);
                self.log.check(Checker::ResetAndRelease, free, || format!("unmap {token} is answered too early"));
                self.released.push(token);
            }
            Some(Due::Reset(number)) => {
                let busy = self.is_function_busy();
                self.log.check(Checker::ResetAndRelease, !busy || number != self.resets, || {
                    format!("reset {number} is answered, and the function is busy with it")
                });
            }
            Some(Due::Other) | None => {}
        }
    }

    fn memory_write(&mut self, message: &Message) {
        let access = DmaAccess::read_from_prefix(&message.payload).ok();
        let data = message.payload.get(size_of::<DmaAccess>()..).and_then(|data| data.first_chunk());
        let known =
            message.header.command == command::DMA_WRITE && access.is_some_and(|(a, _)| a.address == 0xfee0_0000);
        self.log.check(Checker::Transport, known && data.is_some(), || format!("the function sends {message:?}"));
        // Behind what is in the stream: QEMU's reply is the header alone.
        let message_size = u32::try_from(size_of::<Header>()).expect("it is small");
        let reply = Header { message_size, flags: spec::TYPE_REPLY, ..message.header };
        self.pipe.push_back((reply.as_bytes().to_vec(), Vec::new()));
        if !self.wired {
            self.deliver(usize::MAX);
        }
        self.log.check(Checker::BusMaster, self.bus_master != Some(false), || {
            "an interrupt of the unit is sent through a function that may not master the bus".to_owned()
        });
        let Some(&data) = data else { return };
        if self.bus_master != Some(true) {
            // QEMU's main loop handles it after the vCPU's configuration write: the function's address space is off.
            self.log.event(format_args!("an interrupt of the unit is dropped"));
            self.log.count(Group::Path, "interrupt dropped with bus mastering");
            return;
        }
        self.unit_interrupts_seen += 1;
        if self.mutant != Some(Mutant::LoseInterrupt) || !self.unit_interrupts_seen.is_multiple_of(4) {
            self.unit_interrupts |= u32::from_le_bytes(data);
        }
    }

    /// Which interrupts of the unit came through this function since the last call: bits of [`msi`].
    pub fn take_unit_interrupts(&mut self) -> u32 {
        std::mem::take(&mut self.unit_interrupts)
    }

    /// Sends a command and waits for its reply.
    fn call(&mut self, command: u16, payload: &[u8], fds: Vec<OwnedFd>) -> Vec<u8> {
        let id = self.send(command, 0, payload, fds);
        self.deliver(usize::MAX);
        loop {
            self.server.flush();
            let message = self.client.receive().expect("what is called is answered at once");
            if message.is_reply_to(id) {
                let data = message.result().map(<[u8]>::to_vec);
                self.log.check(Checker::Transport, data.is_ok(), || format!("{command} failed: {data:?}"));
                return data.unwrap_or_default();
            }
            self.take(&message);
        }
    }

    /// Loads from a region.
    pub fn read(&mut self, region: u32, offset: u64, data: &mut [u8]) {
        if !self.wired {
            self.device.region_read(region, offset, data).expect("every region can be read");
            return;
        }
        let count = u32::try_from(data.len()).expect("registers are small");
        let access = request::region_read(region, offset, count);
        let reply = self.call(command::REGION_READ, access.as_bytes(), Vec::new());
        let bytes = reply.get(size_of::<RegionAccess>()..).filter(|bytes| bytes.len() == data.len());
        self.log.check(Checker::Transport, bytes.is_some(), || format!("{} bytes for {count}", reply.len()));
        if let Some(bytes) = bytes {
            data.copy_from_slice(bytes);
        }
    }

    /// Stores to a region: posted where it is a BAR.
    pub fn write(&mut self, region: u32, offset: u64, data: &[u8]) {
        if !self.wired {
            self.device.region_write(region, offset, data).expect("every region can be written");
            return;
        }
        let payload = request::region_write(region, offset, data);
        if matches!(region, BAR_REGISTERS | BAR_DOORBELLS) {
            self.send(command::REGION_WRITE, spec::FLAG_NO_REPLY, &payload, Vec::new());
        } else {
            self.call(command::REGION_WRITE, &payload, Vec::new());
        }
    }

    /// Reads configuration space.
    pub fn config_read(&mut self, offset: u64, data: &mut [u8]) {
        self.read(region::CONFIG, offset, data);
    }

    /// Writes configuration space.
    pub fn config_write(&mut self, offset: u64, data: &[u8]) {
        self.write(region::CONFIG, offset, data);
    }

    /// Writes the command register. With bus mastering, the function may send from the write on, before its reply.
    pub fn set_command(&mut self, value: pcie::Command) {
        let was_on = self.is_bus_master();
        if value.bus_master() {
            self.look_at_vectors();
            self.bus_master = Some(self.mutant != Some(Mutant::ForgetBusMaster));
        } else {
            self.expect_no_writes();
        }
        let pending = self.pending();
        self.config_write(header::COMMAND.into(), &value.into_bits().to_le_bytes());
        if value.bus_master() && !was_on {
            self.expect_pending_vectors(pending);
        }
    }

    /// Bus mastering was just turned on: vectors of `pending` fire that are not masked.
    fn expect_pending_vectors(&mut self, pending: u32) {
        for (number, vector) in self.vectors.iter_mut().enumerate() {
            let due = pending >> number & 1 != 0 && !vector.masked;
            let fires = vector.eventfd.read().is_ok();
            vector.fired |= fires;
            self.log.check(Checker::Vectors, fires == due, || {
                format!("bus mastering is on again, vector {number} is due: {due}, and it fires: {fires}")
            });
            self.log.add(Group::Path, "vector pending when bus mastering came", due.into());
        }
    }

    /// Pending bits of the vectors, as the guest reads them.
    fn pending(&mut self) -> u32 {
        let mut pending = [0; 4];
        self.read(BAR_MSIX, MSIX_PBA_OFFSET.into(), &mut pending);
        u32::from_le_bytes(pending)
    }

    /// The next command turns bus mastering off. Memory writes that were sent before it are dropped, as QEMU's main
    /// loop does that comes to them later; from the command on, the function must send none.
    fn expect_no_writes(&mut self) {
        self.deliver(usize::MAX);
        self.look_at_vectors();
        self.bus_master = None;
        self.receive();
        self.bus_master = Some(false);
    }

    fn map(&mut self, address: u64, size: u64) {
        let map = request::dma_map(address, size, 0);
        let id = self.send(command::DMA_MAP, 0, map.as_bytes(), Vec::new());
        self.due.insert(id, Due::Other);
    }

    /// Maps a page that no work uses and takes it away again: [`take_released`](Self::take_released) says when nobody
    /// can use it any more.
    pub fn change_memory(&mut self, token: u64) {
        let address = SIDE_MAPS + token * FRAME;
        self.map(address, FRAME);
        let unmap = request::dma_unmap(address, FRAME);
        let id = self.send(command::DMA_UNMAP, 0, unmap.as_bytes(), Vec::new());
        if self.mutant != Some(Mutant::ForgetCommand) {
            self.due.insert(id, Due::Memory(token));
        }
        self.log.count(Group::Path, "DMA map and unmap");
    }

    /// Memory changes that are over since the last call.
    pub fn take_released(&mut self) -> Vec<u64> {
        std::mem::take(&mut self.released)
    }

    fn set_irqs(&mut self, flags: IrqSetFlags, start: u32, count: u32, fds: Vec<OwnedFd>) {
        let set = request::irq_set(irq::MSIX, flags, start, count);
        self.call(command::DEVICE_SET_IRQS, set.as_bytes(), fds);
    }

    /// Enables MSI-X with new eventfds, as QEMU does when the guest enables it.
    pub fn enable_vectors(&mut self, count: u32) {
        let old = std::mem::take(&mut self.vectors);
        if !old.is_empty() {
            self.set_irqs(IrqSetFlags::DATA_NONE | IrqSetFlags::ACTION_TRIGGER, 0, 0, Vec::new());
        }
        self.give_eventfds(count);
        self.forget(old);
    }

    fn give_eventfds(&mut self, count: u32) {
        let eventfd = || EventFd::from_flags(EfdFlags::EFD_NONBLOCK).expect("a descriptor is left");
        self.vectors = (0..count).map(|_| Vector { eventfd: eventfd(), masked: false, fired: false }).collect();
        let fds = self.vectors.iter().map(|vector| vector.eventfd.as_fd().try_clone_to_owned());
        let fds = fds.collect::<Result<_, _>>().expect("a descriptor is left");
        self.set_irqs(IrqSetFlags::DATA_EVENTFD | IrqSetFlags::ACTION_TRIGGER, 0, count, fds);
    }

    /// From now on the function must not use these.
    fn forget(&mut self, vectors: Vec<Vector>) {
        for vector in vectors {
            let _ = vector.eventfd.read();
            self.forgotten.push(vector.eventfd);
        }
    }

    /// Masks a vector.
    pub fn mask(&mut self, vector: u32) {
        self.look_at_vectors();
        self.set_irqs(IrqSetFlags::DATA_NONE | IrqSetFlags::ACTION_MASK, vector, 1, Vec::new());
        self.vectors[vector as usize].masked = true;
        self.log.count(Group::Path, "vector masked");
    }

    /// Unmasks a vector. If it is pending, it fires at once.
    pub fn unmask(&mut self, vector: u32) {
        self.look_at_vectors();
        let pending = self.pending() >> vector & 1 != 0;
        self.set_irqs(IrqSetFlags::DATA_NONE | IrqSetFlags::ACTION_UNMASK, vector, 1, Vec::new());
        let vector = &mut self.vectors[vector as usize];
        vector.masked = self.mutant == Some(Mutant::ForgetUnmask);
        let fires = vector.eventfd.read().is_ok();
        vector.fired |= fires;
        self.log.event(format_args!("unmasked, pending: {pending}"));
        let due = pending && self.bus_master == Some(true);
        self.log.check(Checker::Vectors, fires == due, || {
            format!("a vector is unmasked, its pending bit is {pending}, and it fires: {fires}")
        });
        self.log.add(Group::Path, "vector pending when unmasked", due.into());
    }

    /// Whether the guest has enabled its vectors since the last reset.
    pub fn has_vectors(&self) -> bool {
        !self.vectors.is_empty()
    }

    /// Whether a vector is masked.
    pub fn is_masked(&self, vector: usize) -> bool {
        self.vectors.get(vector).is_some_and(|vector| vector.masked)
    }

    /// An engine had a turn.
    pub fn after_turn(&mut self) {
        self.look_at_vectors();
        if self.is_resetting() {
            self.receive();
        }
    }

    /// Looks which vectors have fired, and whether they may have.
    pub fn look_at_vectors(&mut self) {
        for (number, vector) in self.vectors.iter_mut().enumerate() {
            if vector.eventfd.read().is_err() {
                continue;
            }
            self.log.event(format_args!("vector {number}"));
            self.log.check(Checker::Vectors, !vector.masked, || format!("vector {number} fires and is masked"));
            self.log.check(Checker::BusMaster, self.bus_master == Some(true), || {
                format!("vector {number} fires, and the function may not master the bus")
            });
            vector.fired = true;
        }
    }

    /// Whether a vector has fired since the last call.
    pub fn take_fired(&mut self, vector: usize) -> bool {
        self.look_at_vectors();
        self.vectors.get_mut(vector).is_some_and(|vector| std::mem::take(&mut vector.fired))
    }

    /// Whether the function itself is busy. Messages that are still in the stream do not count.
    fn is_function_busy(&mut self) -> bool {
        Status::from_bits(self.peek32(regs::STATUS)).busy()
    }

    /// A reset is over: no vector is pending.
    pub fn check_nothing_is_pending(&mut self) {
        let pending = self.pending();
        self.log.check(Checker::Vectors, pending == 0, || {
            format!("a reset is over, and vectors are pending: {pending:#x}")
        });
    }

    fn peek32(&mut self, at: u64) -> u32 {
        let mut data = [0; 4];
        self.device.region_read(BAR_REGISTERS, at, &mut data).expect("every region can be read");
        u32::from_le_bytes(data)
    }

    /// A function level reset is written to configuration space; it is over when the function is no longer busy.
    pub fn function_level_reset(&mut self, at: u64) {
        self.resets += 1;
        let initiate = pcie::DeviceControl::new().with_initiate_flr(true);
        // It clears the command register.
        self.expect_no_writes();
        self.config_write(at, &initiate.into_bits().to_le_bytes());
    }

    /// Asks for a reset by message; it is over when the reply has come.
    pub fn reset(&mut self) {
        self.resets += 1;
        self.expect_no_writes();
        let id = self.send(command::DEVICE_RESET, 0, &[], Vec::new());
        self.due.insert(id, Due::Reset(self.resets));
        self.deliver(usize::MAX);
        let old = std::mem::take(&mut self.vectors);
        self.forget(old);
        self.log.count(Group::Path, "reset by message");
    }

    /// Whether the function may master the bus.
    pub fn is_bus_master(&self) -> bool {
        self.bus_master == Some(true)
    }

    /// Whether replies to resets are due.
    pub fn is_resetting(&self) -> bool {
        self.due.values().any(|due| matches!(due, Due::Reset(_)))
    }

    /// Ends the connection, also in the middle of a message, and makes another one.
    pub fn reconnect(&mut self) {
        self.resets += 1;
        let pieces = self.rng.index(self.pipe.len() + 1);
        self.deliver(pieces);
        self.look_at_vectors();
        self.server.disconnect(&mut self.device);
        self.log.count(Group::Path, "transport disconnected");
        self.pipe.clear();
        self.due.clear();
        self.released.clear();
        self.unit_interrupts = 0;
        self.bus_master = Some(false);
        let old = std::mem::take(&mut self.vectors);
        self.forget(old);
        self.check_initial_state();
        self.client = LoopbackClient::connect(&mut self.server, CAPACITY);
        self.greet();
    }

    /// A client that comes finds the function as after power-on.
    fn check_initial_state(&mut self) {
        let fresh = ConfigSpace::new(*self.config().description());
        let (mut is, mut wanted) = ([0; CONFIG_SPACE_SIZE], [0; CONFIG_SPACE_SIZE]);
        self.config().read(0, &mut is);
        fresh.read(0, &mut wanted);
        let enabled = Status::from_bits(self.peek32(regs::STATUS)).enabled();
        let mapped = !self.maps.is_empty();
        self.log.check(Checker::ResetAndRelease, is == wanted && !enabled && !mapped, || {
            let differs = is.iter().zip(&wanted).position(|(a, b)| a != b);
            format!("after a disconnection: enabled {enabled}, mapped {mapped}, configuration differs at {differs:x?}")
        });
    }

    /// Whether every command was answered, and all memory that left the map was given back.
    pub fn is_quiet(&mut self) -> bool {
        self.receive();
        for eventfd in &self.forgotten {
            self.log.check(Checker::Vectors, eventfd.read().is_err(), || {
                "a vector fires whose eventfd was taken away".to_owned()
            });
        }
        self.pipe.is_empty() && self.due.is_empty() && !self.maps.is_releasing()
    }
}
