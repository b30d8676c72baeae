//! An accelerator with an IOMMU in front of it, as the host runs them, over flat memory: the tables of
//! [`super::tables`], four queues, one engine, and a VMM that is connected.
use std::convert::Infallible;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use nix::sys::eventfd::{EfdFlags, EventFd};
use svadev_accelerator::{FunctionSettings, Progress};
use svadev_fabric::Bdf;
use svadev_host::{Accelerator, Bus, HostEngine, Machine, MachineConfig};
use svadev_memory::{GuestAddress, GuestMemory, Ram};
use svadev_pci::{ConfigEffects, ConfigSpace};
use svadev_spec::device::{
    BAR_DOORBELLS, BAR_REGISTERS, Code, Completion, DOORBELL_STRIDE, Descriptor, DescriptorPasid, QueuePasid,
    QueueSize, QueueStatus, QueueVector, Status, doorbell, opcode, regs,
};
use svadev_spec::pcie::{self, extended_capability, header};
use svadev_spec::vfio_user::{IrqSetFlags, command, irq, region};
use svadev_spec::vtd::page_request::{DESCRIPTOR_SIZE, PageRequestHigh, PageRequestLow};
use svadev_spec::vtd::registers::{Global, offset};
use svadev_vfio_user::client::{self, LoopbackClient, request};
use svadev_vfio_user::{Device, Server};
use zerocopy::{FromBytes, IntoBytes};

use super::platform::{Asserts, Fuzzed};
use super::tables::{self, DEVICE, FIRST, FIRST_LEVEL1, PASID_TABLE, domain, pasid};
use super::unit::{PAGE_REQUESTS, QUEUE, STATUS, config};

/// Guest memory, bytes.
const RAM: u64 = 0x20_0000;
/// What the first stage's small pages map: 64 pages, `iova` n to `DATA` + n.
pub(crate) const DATA: u64 = 0x10_0000;
/// Nothing maps this page, and nobody but the test may write it.
const CANARY: u64 = 0x1f_f000;
pub(crate) const QUEUES: u8 = 4;
const TIMEOUT_NS: u64 = 1000;
/// The function that carries the unit.
const IOMMU: Bdf = Bdf(0x0008);
/// Where pages come and go that no work uses.
const SIDE_MAPS: u64 = 1 << 40;
/// Bytes of replies that may wait for the client.
const CAPACITY: usize = 1 << 16;
/// Virtual pages where rings are: queue n has 4 pages from page `4 * n`, the last two of which are the completion
/// ring's.
const RING_PAGES: u64 = 4;
/// More slices than any input has work for: 64 descriptors at a time, each of 1024 list entries at most in pieces of
/// pages.
const MAX_SLICES: u64 = 4_000_000;

/// The driver's half of a queue.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Ring {
    pub(crate) tail: u32,
    pub(crate) head: u32,
    pub(crate) sq_log2: u8,
    pub(crate) cq_log2: u8,
}

pub(crate) struct World {
    ram: Arc<Ram>,
    bus: Arc<Bus<Fuzzed>>,
    pub(crate) device: Accelerator<Fuzzed>,
    server: Server,
    client: LoopbackClient,
    /// One for each vector.
    eventfds: Vec<EventFd>,
    pub(crate) engine: HostEngine<Fuzzed>,
    /// The configuration space as it must be: what is written to the device is written to it.
    shadow: ConfigSpace,
    pub(crate) now_ns: u64,
    pub(crate) rings: [Ring; QUEUES as usize],
    /// Where the invalidation queue goes on, bytes.
    tail: u64,
    /// Commands of the VMM that are not answered.
    due: Vec<u16>,
}

impl World {
    /// Everything is as after power-on but the unit, which translates.
    pub(crate) fn new(caching: u8) -> Self {
        let ram = Arc::new(Ram::new(usize::try_from(RAM).expect("a small constant")).expect("memory can be mapped"));
        build_tables(&ram);
        ram.write(GuestAddress(CANARY), &[0xc5; 4096]).expect("the page is in memory");
        let mut settings = FunctionSettings::new(DEVICE);
        (settings.queues, settings.vectors, settings.group_pages) = (QUEUES.into(), QUEUES, 4);
        (settings.jobs_per_queue, settings.list_jobs_per_queue, settings.tlb_entries) = (8, 2, 16);
        settings.page_request_timeout_ns = TIMEOUT_NS;
        let machine = MachineConfig { iommu: IOMMU, unit: config(caching), audit: None, functions: vec![settings] };
        let mut platform = Fuzzed(Arc::clone(&ram));
        let machine = Machine::new(&machine, &mut platform, Asserts, drop).expect("memory can be had");
        let bus = Arc::clone(&machine.bus);
        let mut function = machine.functions.into_iter().next().expect("one function");
        let client = LoopbackClient::connect(&mut function.server, CAPACITY);
        let shadow = ConfigSpace::new(*function.device.function().config().description());
        let mut world = Self {
            ram,
            bus,
            device: function.device,
            server: function.server,
            client,
            eventfds: Vec::new(),
            engine: function.engines.pop().expect("one engine"),
            shadow,
            now_ns: 1,
            rings: [Ring::default(); QUEUES as usize],
            tail: 0,
            due: Vec::new(),
        };
        let json = r#"{"capabilities":{"max_msg_fds":8}}"#;
        let reply = world.client.negotiate(&mut world.server, &mut world.device, json);
        assert!(reply.is_some_and(|reply| reply.result().is_ok()), "both sides speak the same version");
        world.send(command::DMA_MAP, request::dma_map(0, RAM, 0).as_bytes(), Vec::new());
        world.enable_vectors();
        world.start_unit();
        world
    }

    /// Sends a command; its reply is due.
    fn send(&mut self, command: u16, payload: &[u8], fds: Vec<OwnedFd>) {
        let id = self.client.send(command, payload, fds);
        self.due.push(id);
        self.receive();
    }

    /// The VMM handles what came, and the function what was sent.
    fn receive(&mut self) {
        loop {
            let progress = self.client.pump(&mut self.server, &mut self.device);
            assert!(progress.is_ok(), "the client sends whole messages: {progress:?}");
            let Some(message) = self.client.receive() else { return };
            if message.is_reply_to(message.header.message_id) {
                let due = self.due.iter().position(|&id| id == message.header.message_id);
                assert!(message.result().is_ok(), "what a sane VMM asks for is done: {:?}", message.header);
                self.due.remove(due.expect("each command is answered once"));
            } else {
                // The unit's interrupt: nobody waits for it here.
                assert_eq!(message.header.command, command::DMA_WRITE, "the unit sends interrupts only");
                self.client.reply(&message.header, Ok(&[]));
            }
        }
    }

    fn enable_vectors(&mut self) {
        let eventfd = || EventFd::from_flags(EfdFlags::EFD_NONBLOCK).expect("a descriptor is left");
        self.eventfds = (0..QUEUES).map(|_| eventfd()).collect();
        let fds = self.eventfds.iter().map(|eventfd| eventfd.as_fd().try_clone_to_owned());
        let fds = fds.collect::<Result<_, _>>().expect("a descriptor is left");
        let flags = IrqSetFlags::DATA_EVENTFD | IrqSetFlags::ACTION_TRIGGER;
        let set = request::irq_set(irq::MSIX, flags, 0, QUEUES.into());
        self.send(command::DEVICE_SET_IRQS, set.as_bytes(), fds);
    }

    /// Changes the memory map somewhere else; the reply comes when the engine has let go.
    pub(crate) fn change_memory(&mut self) {
        let address = SIDE_MAPS + (self.due.len() as u64) * 0x1000;
        self.send(command::DMA_MAP, request::dma_map(address, 0x1000, 0).as_bytes(), Vec::new());
        self.send(command::DMA_UNMAP, request::dma_unmap(address, 0x1000).as_bytes(), Vec::new());
    }

    fn unit_write32(&self, at: u64, value: u32) {
        self.bus.write_register(at, &value.to_le_bytes());
    }
    fn unit_write64(&self, at: u64, value: u64) {
        self.bus.write_register(at, &value.to_le_bytes());
    }
    fn unit_read64(&self, at: u64) -> u64 {
        let mut data = [0; 8];
        self.bus.read_register(at, &mut data);
        u64::from_le_bytes(data)
    }

    fn start_unit(&mut self) {
        let on = Global::new().with_queued_invalidation_enable(true);
        self.bus.reset_unit();
        self.unit_write64(offset::IQA, QUEUE | 1 << 11 | 1);
        self.unit_write64(offset::PQA, PAGE_REQUESTS);
        self.unit_write64(offset::RTADDR, tables::ROOT | 1 << 10);
        self.unit_write32(offset::GCMD, on.with_root_table_pointer(true).into());
        self.unit_write32(offset::GCMD, on.with_translation_enable(true).into());
        self.tail = 0;
    }

    /// What a driver and the kernel's IOMMU layer write before anything works.
    pub(crate) fn configure(&mut self) {
        let at = |id| find_capability(self.config(), id);
        let (ats, pri, pasid) =
            (at(extended_capability::ATS), at(extended_capability::PRI), at(extended_capability::PASID));
        for (offset, value) in [
            (u64::from(header::COMMAND), 6u16),
            (pasid + u64::from(pcie::pasid::CONTROL), 1),
            (ats + u64::from(pcie::ats::CONTROL), 1 << 15),
            (pri + u64::from(pcie::pri::OUTSTANDING_ALLOCATION), 16),
            (pri + u64::from(pcie::pri::CONTROL), 1),
        ] {
            let _ = self.config_write(offset, &value.to_le_bytes());
        }
        self.write32(regs::CONTROL, 1);
    }

    /// Configuration space as it is.
    pub(crate) fn config(&self) -> &ConfigSpace {
        self.device.function().config()
    }

    pub(crate) fn config_read(&mut self, offset: u64, data: &mut [u8]) {
        self.device.region_read(region::CONFIG, offset, data).expect("configuration space can be read");
    }

    /// Writes configuration space. Returns the effects that the write must have.
    pub(crate) fn config_write(&mut self, offset: u64, data: &[u8]) -> ConfigEffects {
        self.device.region_write(region::CONFIG, offset, data).expect("configuration space can be written");
        self.receive();
        self.shadow.write(offset, data)
    }

    pub(crate) fn bar_read(&mut self, bar: u32, offset: u64, data: &mut [u8]) {
        self.device.region_read(bar, offset, data).expect("every BAR can be read");
    }

    pub(crate) fn bar_write(&mut self, bar: u32, offset: u64, data: &[u8]) {
        self.device.region_write(bar, offset, data).expect("every BAR can be written");
        self.receive();
    }

    /// Vectors fire in an engine's turn, and then only while the function may master the bus.
    fn look_at_vectors(&self) {
        let fired = self.eventfds.iter().filter(|eventfd| eventfd.read().is_ok()).count();
        assert!(fired == 0 || self.config().command().bus_master(), "a vector fires without bus mastering");
    }

    pub(crate) fn reset(&mut self) {
        self.send(command::DEVICE_RESET, &[], Vec::new());
        self.shadow.reset();
    }

    /// With the engine at rest: every reset and memory change was answered.
    pub(crate) fn check_resets(&mut self) {
        assert!(self.due.is_empty(), "{} commands were not answered", self.due.len());
        assert!(!Status::from_bits(self.read32(regs::STATUS)).busy(), "no reset is under way");
    }

    pub(crate) fn read32(&mut self, offset: u64) -> u32 {
        let mut data = [0; 4];
        self.bar_read(BAR_REGISTERS, offset, &mut data);
        u32::from_le_bytes(data)
    }
    pub(crate) fn write32(&mut self, offset: u64, value: u32) {
        self.bar_write(BAR_REGISTERS, offset, &value.to_le_bytes());
    }
    pub(crate) fn write64(&mut self, offset: u64, value: u64) {
        self.bar_write(BAR_REGISTERS, offset, &value.to_le_bytes());
    }

    pub(crate) fn register(queue: u8, register: u64) -> u64 {
        regs::QUEUES + u64::from(queue) * regs::QUEUE_STRIDE + register
    }

    /// Virtual address of a queue's submission ring; its completion ring is two pages further.
    pub(crate) fn sq_base(queue: u8) -> u64 {
        (u64::from(queue) * RING_PAGES) << 12
    }
    fn cq_base(queue: u8) -> u64 {
        Self::sq_base(queue) + 0x2000
    }

    /// Enables a queue; rings of kernel queues are in the driver's own space (RID_PASID 0), which has the same pages.
    pub(crate) fn enable(&mut self, queue: u8, sq_log2: u8, cq_log2: u8, user: Option<u32>) {
        let size = QueueSize::new().with_sq_log2(sq_log2).with_cq_log2(cq_log2);
        let owner = user.map_or(QueuePasid::new(), |pasid| QueuePasid::new().with_pasid(pasid).with_user(true));
        let vector = QueueVector::new().with_vector(queue).with_enable(true);
        self.write64(Self::register(queue, regs::QUEUE_SQ_BASE), Self::sq_base(queue));
        self.write64(Self::register(queue, regs::QUEUE_CQ_BASE), Self::cq_base(queue));
        self.write32(Self::register(queue, regs::QUEUE_SIZE), size.into_bits());
        self.write32(Self::register(queue, regs::QUEUE_PASID), owner.into_bits());
        self.write32(Self::register(queue, regs::QUEUE_VECTOR), vector.into_bits());
        self.ring_word(queue, doorbell::SQ_TAIL, 0);
        self.ring_word(queue, doorbell::CQ_HEAD, 0);
        self.rings[usize::from(queue)] = Ring { tail: 0, head: 0, sq_log2, cq_log2 };
        self.write32(Self::register(queue, regs::QUEUE_CONTROL), 1);
    }

    pub(crate) fn status(&mut self, queue: u8) -> QueueStatus {
        QueueStatus::from_bits(self.read32(Self::register(queue, regs::QUEUE_STATUS)))
    }

    pub(crate) fn ring_word(&mut self, queue: u8, word: u64, value: u32) {
        let offset = u64::from(queue) * DOORBELL_STRIDE + word;
        self.bar_write(BAR_DOORBELLS, offset, &value.to_le_bytes());
    }
    pub(crate) fn word(&mut self, queue: u8, word: u64) -> u32 {
        let mut data = [0; 4];
        self.bar_read(BAR_DOORBELLS, u64::from(queue) * DOORBELL_STRIDE + word, &mut data);
        u32::from_le_bytes(data)
    }

    /// Where `iova` of the first-stage spaces is, as the tables were built.
    fn data(iova: u64) -> u64 {
        DATA + iova
    }

    /// Stores bytes at a virtual address below the 64 pages' end; beyond it, nothing is stored.
    pub(crate) fn store(&self, iova: u64, bytes: &[u8]) {
        if iova + bytes.len() as u64 <= 64 << 12 {
            self.ram.write(GuestAddress(Self::data(iova)), bytes).expect("the pages are in memory");
        }
    }
    pub(crate) fn load(&self, iova: u64, bytes: &mut [u8]) {
        self.ram.read(GuestAddress(Self::data(iova)), bytes).expect("the pages are in memory");
    }

    /// Puts a descriptor into the ring; the doorbell is another matter.
    pub(crate) fn push(&mut self, queue: u8, descriptor: &Descriptor) {
        let ring = &mut self.rings[usize::from(queue)];
        let slot = u64::from(ring.tail & ((1 << ring.sq_log2) - 1));
        ring.tail = ring.tail.wrapping_add(1);
        self.store(Self::sq_base(queue) + 64 * slot, descriptor.as_bytes());
    }

    pub(crate) fn ring(&mut self, queue: u8) {
        self.ring_word(queue, doorbell::SQ_TAIL, self.rings[usize::from(queue)].tail);
    }

    /// The completion at the ring's head, if the device says that there is one.
    pub(crate) fn reap_one(&mut self, queue: u8) -> Option<Completion> {
        let ring = self.rings[usize::from(queue)];
        if self.word(queue, doorbell::CQ_TAIL) == ring.head {
            return None;
        }
        let slot = u64::from(ring.head & ((1 << ring.cq_log2) - 1));
        let mut bytes = [0; size_of::<Completion>()];
        self.load(Self::cq_base(queue) + 32 * slot, &mut bytes);
        self.rings[usize::from(queue)].head = ring.head.wrapping_add(1);
        self.ring_word(queue, doorbell::CQ_HEAD, ring.head.wrapping_add(1));
        Some(Completion::read_from_bytes(&bytes).expect("every bit pattern is a completion"))
    }

    /// At most so many slices; whether the engine came to rest.
    pub(crate) fn slices(&mut self, slices: u64) -> bool {
        let at_rest = (0..slices).any(|_| matches!(self.engine.run(self.now_ns), Progress::Idle { .. }));
        self.look_at_vectors();
        self.receive();
        at_rest
    }

    /// Until there is nothing to do now.
    pub(crate) fn settle(&mut self) {
        assert!(self.slices(MAX_SLICES), "the engine comes to rest");
    }

    /// Changes the last-level entry of a virtual page, in every first-stage space.
    pub(crate) fn set_page(&self, page: u8, rights: u64) {
        let page = u64::from(page % 64);
        let entry = if rights & 1 == 0 { 0 } else { Self::data(page << 12) | rights & 0b111 };
        self.ram.write(GuestAddress(FIRST_LEVEL1 + 8 * page), &entry.to_le_bytes()).expect("the table is in memory");
    }

    /// Puts descriptors into the invalidation queue.
    pub(crate) fn invalidate(&mut self, descriptors: &[[u64; 2]]) {
        for descriptor in descriptors {
            let bytes = descriptor.map(u64::to_le_bytes).concat();
            self.ram.write(GuestAddress(QUEUE + self.tail), &bytes).expect("the queue is in memory");
            self.tail = (self.tail + 32) % 0x2000;
        }
        self.unit_write64(offset::IQT, self.tail);
    }

    /// Forgets a virtual page in the unit and in the device, of every PASID, as a kernel does, with a wait.
    pub(crate) fn forget_page(&mut self, page: u8) {
        let address = u64::from(page % 64) << 12;
        for pasid in [0, pasid::FIRST, pasid::FIRST_LEVEL5, pasid::NESTED] {
            let number = u64::from(pasid);
            let unit = [6 | 3 << 4 | u64::from(domain(pasid)) << 16 | number << 32, address];
            let device = match pasid {
                0 => [3 | u64::from(DEVICE.0) << 32, address],
                _ => [8 | u64::from(DEVICE.0) << 16 | number << 32, address],
            };
            self.invalidate(&[unit, device]);
        }
        self.invalidate(&[[5 | 1 << 5 | 1 << 32, STATUS]]);
    }

    /// Everything that was handed to the invalidation queue was carried out.
    pub(crate) fn check_invalidations(&self) {
        assert_eq!(self.unit_read64(offset::IQH), self.tail, "with the engine at rest every invalidation is over");
        self.bus.inside(|unit, _| assert_eq!(unit.outstanding_invalidations().count(), 0));
    }

    /// The kernel's page request handler: answers every group in the queue with `code`.
    pub(crate) fn serve_page_requests(&mut self, code: u8) {
        let (mut head, tail) = (self.unit_read64(offset::PQH), self.unit_read64(offset::PQT));
        while head != tail {
            let load = |at| self.ram.load_u64(GuestAddress(PAGE_REQUESTS + head + at)).expect("the queue is in memory");
            let (low, high) = (PageRequestLow::from(load(0)), PageRequestHigh::from(load(8)));
            if high.last() {
                let response = 9
                    | u64::from(low.pasid_present()) << 4
                    | u64::from(code & 15) << 12
                    | u64::from(low.requester_id()) << 16
                    | u64::from(low.pasid()) << 32;
                self.invalidate(&[[response, u64::from(high.prg_index()) << 3]]);
            }
            head = (head + DESCRIPTOR_SIZE) % 0x1000;
        }
        self.unit_write64(offset::PQH, head);
        self.unit_write32(offset::PRS, 3);
    }

    /// Memory that nothing maps is as it was, and what was released was asked for.
    pub(crate) fn check_canary(&self) {
        let mut page = [0; 4096];
        self.ram.read(GuestAddress(CANARY), &mut page).expect("the page is in memory");
        assert_eq!(page, [0xc5; 4096], "the device writes where it was told to");
    }

    /// After anything at all: reset, set up again, and a copy and a checksum come out right.
    pub(crate) fn serves_again(mut self) {
        self.reset();
        self.settle();
        self.check_resets();
        self.check_canary();
        // The tables may have been damaged, and answers to page requests may still be owed: PRI is reset with the
        // kernel's unit.
        build_tables(&self.ram);
        self.start_unit();
        self.invalidate(&[[3 | u64::from(DEVICE.0) << 32, !0 << 12 | 1]]);
        let pri = find_capability(self.config(), extended_capability::PRI);
        let _ = self.config_write(pri + u64::from(pcie::pri::CONTROL), &2u16.to_le_bytes());
        self.configure();
        self.enable_vectors();
        self.settle();
        self.enable(0, 3, 3, None);
        let (from, to) = (0x10_100, 0x11_f80);
        let bytes: Vec<u8> = (0..=255).cycle().take(5000).collect();
        self.store(from, &bytes);
        let owner = DescriptorPasid::new().with_pasid(pasid::FIRST).with_valid(true);
        let copy = Descriptor {
            opcode: opcode::COPY,
            pasid: owner,
            cookie: 1,
            src: from,
            dst: to,
            length: 5000,
            ..Default::default()
        };
        self.push(0, &copy);
        self.push(0, &Descriptor { opcode: opcode::DRAIN, cookie: 2, ..Default::default() });
        self.ring(0);
        self.settle();
        for cookie in 1..=2 {
            let completion = self.reap_one(0).expect("a clean descriptor completes");
            assert_eq!((completion.cookie, Code::from_raw(completion.status)), (cookie, Some(Code::Success)));
        }
        assert_eq!(self.reap_one(0), None, "each completes once");
        let mut copied = vec![0; bytes.len()];
        self.load(to, &mut copied);
        assert_eq!(copied, bytes, "the copy is right");
    }
}

/// The tables, without what leads beyond the 64 small pages: large pages, and PASIDs with no first stage.
fn build_tables(ram: &Ram) {
    tables::build(ram, DATA);
    let pasids = [pasid::SECOND, pasid::PASS_THROUGH].map(|pasid| PASID_TABLE + 64 * u64::from(pasid));
    for at in [FIRST + 0x1008, FIRST + 0x2008].into_iter().chain(pasids) {
        ram.write(GuestAddress(at), &[0; 8]).expect("the tables are in memory");
    }
}

/// Offset of an extended capability.
pub(crate) fn find_capability(space: &ConfigSpace, id: u16) -> u64 {
    let Ok(at) = client::config::extended_capability(id, |at| {
        let mut data = [0; 4];
        space.read(at, &mut data);
        Ok::<_, Infallible>(data)
    });
    at.expect("the function has the capability")
}
