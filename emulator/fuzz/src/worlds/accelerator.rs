//! An accelerator with an IOMMU in front of it, over flat memory: the tables of [`super::tables`], four queues, one engine.
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, Weak};

use svadev_accelerator::{DoorbellPages, Engine, Function, FunctionPorts, FunctionSettings, FunctionShared, Progress};
use svadev_fabric::{
    AtsError, Bdf, Downstream, InvalidateAck, InvalidateRequest, InvalidateTag, Msi, PageGroupResponse, PageRequest,
    PageRequestOutcome, Translation, TranslationRequest, Upstream,
};
use svadev_iommu::Unit;
use svadev_memory::{GuestAddress, GuestMemory, Ram};
use svadev_pci::{ConfigEffect, ConfigEffects, ConfigSpace};
use svadev_spec::device::{
    BAR_DOORBELLS, BAR_REGISTERS, Code, Completion, DOORBELL_STRIDE, Descriptor, DescriptorPasid, QueuePasid,
    QueueSize, QueueStatus, QueueVector, doorbell, opcode, regs,
};
use svadev_spec::pcie::{self, extended_capability, header};
use svadev_spec::vtd::page_request::{DESCRIPTOR_SIZE, PageRequestHigh, PageRequestLow};
use svadev_spec::vtd::registers::{Global, offset};
use zerocopy::{FromBytes, IntoBytes};

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
/// Virtual pages where rings are: queue n has 4 pages from page `4 * n`, the last two of which are the completion ring's.
const RING_PAGES: u64 = 4;
/// More slices than any input has work for: 64 descriptors at a time, each of 1024 list entries at most in pieces of pages.
const MAX_SLICES: u64 = 4_000_000;

/// The unit, and the way down to the function.
#[derive(Debug)]
pub(crate) struct Bus {
    unit: Mutex<Unit<Arc<Ram>>>,
    function: OnceLock<Weak<FunctionShared>>,
}

struct Down<'a>(&'a Bus);

impl Bus {
    fn with<T>(&self, call: impl FnOnce(&mut Unit<Arc<Ram>>, &Down<'_>) -> T) -> T {
        call(&mut self.unit.lock().expect("nothing panics while it holds the unit"), &Down(self))
    }

    pub(crate) fn write32(&self, at: u64, value: u32) {
        self.with(|unit, down| unit.write_register(at, &value.to_le_bytes(), down));
    }
    pub(crate) fn write64(&self, at: u64, value: u64) {
        self.with(|unit, down| unit.write_register(at, &value.to_le_bytes(), down));
    }
    pub(crate) fn read64(&self, at: u64) -> u64 {
        let mut data = [0; 8];
        self.with(|unit, _| unit.read_register(at, &mut data));
        u64::from_le_bytes(data)
    }
}

impl Upstream for Bus {
    fn translate(&self, request: TranslationRequest) -> Result<Translation, AtsError> {
        assert_eq!(request.requester, DEVICE, "a function asks as itself");
        self.with(|unit, down| unit.translate(request, down))
    }
    fn page_request(&self, request: PageRequest) -> PageRequestOutcome {
        self.with(|unit, down| unit.page_request(request, down))
    }
    fn invalidate_complete(&self, requester: Bdf, tag: InvalidateTag) {
        self.with(|unit, down| {
            let owed = unit.outstanding_invalidations().any(|(t, _)| t == tag);
            unit.invalidate_complete(requester, tag, down);
            let still = unit.outstanding_invalidations().any(|(t, _)| t == tag);
            assert!(!owed || !still, "a completion is taken");
        });
    }
}

impl Downstream for Down<'_> {
    fn invalidate(&self, to: Bdf, request: InvalidateRequest) -> InvalidateAck {
        match self.0.function.get().and_then(Weak::upgrade) {
            Some(function) if to == DEVICE => function.invalidate(request),
            _ => InvalidateAck::Done,
        }
    }
    fn page_group_response(&self, to: Bdf, response: PageGroupResponse) {
        if let Some(function) = self.0.function.get().and_then(Weak::upgrade).filter(|_| to == DEVICE) {
            function.page_group_response(response);
        }
    }
    fn message_interrupt(&self, _via: Option<Bdf>, _msi: Msi) {}
}

/// Counts.
#[derive(Debug, Default)]
struct Ports {
    resets: AtomicU64,
    interrupts: AtomicU64,
    released: Mutex<Vec<u64>>,
}

impl FunctionPorts for Ports {
    fn interrupt_pending(&self, _vector: u16) -> bool {
        false
    }
    fn interrupt(&self, vector: u16) {
        assert!(vector < u16::from(QUEUES), "a vector that the function has");
        self.interrupts.fetch_add(1, Ordering::Relaxed);
    }
    fn wake(&self, engine: usize) {
        assert_eq!(engine, 0, "there is one engine");
    }
    fn memory_released(&self, token: u64) {
        self.released.lock().expect("nothing panics while it holds the list").push(token);
    }
    fn reset_done(&self) {
        self.resets.fetch_add(1, Ordering::Relaxed);
    }
}

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
    pub(crate) bus: Arc<Bus>,
    ports: Arc<Ports>,
    pub(crate) function: Function,
    pub(crate) engine: Engine<svadev_endpoint::On<Ram, Bus>>,
    pub(crate) now_ns: u64,
    pub(crate) rings: [Ring; QUEUES as usize],
    /// Where the invalidation queue goes on, bytes.
    tail: u64,
    resets: u64,
}

impl World {
    /// Everything is as after power-on but the unit, which translates.
    pub(crate) fn new(caching: u8) -> Self {
        let ram = Arc::new(Ram::new(usize::try_from(RAM).expect("a small constant")).expect("memory can be mapped"));
        build_tables(&ram);
        ram.write(GuestAddress(CANARY), &[0xc5; 4096]).expect("the page is in memory");
        let unit = Unit::new(config(caching), Arc::clone(&ram));
        let bus = Arc::new(Bus { unit: Mutex::new(unit), function: OnceLock::new() });
        let mut settings = FunctionSettings::new(DEVICE);
        (settings.queues, settings.vectors, settings.group_pages) = (QUEUES.into(), QUEUES, 4);
        (settings.jobs_per_queue, settings.list_jobs_per_queue, settings.tlb_entries) = (8, 2, 16);
        settings.page_request_timeout_ns = TIMEOUT_NS;
        let ports = Arc::new(Ports::default());
        let (function, mut engines) = Function::new(
            settings,
            Arc::clone(&ram),
            Arc::clone(&bus),
            Arc::clone(&ports) as Arc<dyn FunctionPorts>,
            DoorbellPages::anonymous(QUEUES.into()),
        );
        bus.function.set(Arc::downgrade(function.shared())).expect("it is connected once");
        let engine = engines.pop().expect("one engine");
        let rings = [Ring::default(); QUEUES as usize];
        let mut world = Self { ram, bus, ports, function, engine, now_ns: 1, rings, tail: 0, resets: 0 };
        world.start_unit();
        world
    }

    fn start_unit(&mut self) {
        let on = Global::new().with_queued_invalidation_enable(true);
        self.bus.with(|unit, _| unit.reset());
        self.bus.write64(offset::IQA, QUEUE | 1 << 11 | 1);
        self.bus.write64(offset::PQA, PAGE_REQUESTS);
        self.bus.write64(offset::RTADDR, tables::ROOT | 1 << 10);
        self.bus.write32(offset::GCMD, on.with_root_table_pointer(true).into());
        self.bus.write32(offset::GCMD, on.with_translation_enable(true).into());
        self.tail = 0;
    }

    /// What a driver and the kernel's IOMMU layer write before anything works.
    pub(crate) fn configure(&mut self) {
        let at = |id| find_capability(self.function.config(), id);
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

    pub(crate) fn config_write(&mut self, offset: u64, data: &[u8]) -> ConfigEffects {
        let effects = self.function.config_write(offset, data);
        self.resets += u64::from(effects.into_iter().any(|effect| effect == ConfigEffect::Flr));
        effects
    }

    pub(crate) fn reset(&mut self) {
        self.function.reset();
        self.resets += 1;
    }

    /// With the engine at rest: every reset was reported.
    pub(crate) fn check_resets(&self) {
        assert_eq!(self.ports.resets.load(Ordering::Relaxed), self.resets, "each reset is reported once");
    }

    pub(crate) fn read32(&mut self, offset: u64) -> u32 {
        let mut data = [0; 4];
        self.function.bar_read(BAR_REGISTERS, offset, &mut data);
        u32::from_le_bytes(data)
    }
    pub(crate) fn write32(&mut self, offset: u64, value: u32) {
        self.function.bar_write(BAR_REGISTERS, offset, &value.to_le_bytes());
    }
    pub(crate) fn write64(&mut self, offset: u64, value: u64) {
        self.function.bar_write(BAR_REGISTERS, offset, &value.to_le_bytes());
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
        self.function.bar_write(BAR_DOORBELLS, offset, &value.to_le_bytes());
    }
    pub(crate) fn word(&mut self, queue: u8, word: u64) -> u32 {
        let mut data = [0; 4];
        self.function.bar_read(BAR_DOORBELLS, u64::from(queue) * DOORBELL_STRIDE + word, &mut data);
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
        (0..slices).any(|_| matches!(self.engine.run(self.now_ns), Progress::Idle { .. }))
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
        self.bus.write64(offset::IQT, self.tail);
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
        assert_eq!(self.bus.read64(offset::IQH), self.tail, "with the engine at rest every invalidation is over");
        self.bus.with(|unit, _| assert_eq!(unit.outstanding_invalidations().count(), 0));
    }

    /// The kernel's page request handler: answers every group in the queue with `code`.
    pub(crate) fn serve_page_requests(&mut self, code: u8) {
        let (mut head, tail) = (self.bus.read64(offset::PQH), self.bus.read64(offset::PQT));
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
        self.bus.write64(offset::PQH, head);
        self.bus.write32(offset::PRS, 3);
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
        // The tables may have been damaged, and answers to page requests may still be owed: PRI is reset with the kernel's unit.
        build_tables(&self.ram);
        self.start_unit();
        self.invalidate(&[[3 | u64::from(DEVICE.0) << 32, !0 << 12 | 1]]);
        let pri = find_capability(self.function.config(), extended_capability::PRI);
        let _ = self.config_write(pri + u64::from(pcie::pri::CONTROL), &2u16.to_le_bytes());
        self.configure();
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
pub(crate) fn find_capability(config: &ConfigSpace, id: u16) -> u64 {
    let mut at = 0x100;
    loop {
        assert!(at != 0, "the function has capability {id:#x}");
        let mut dword = [0; 4];
        config.read(at, &mut dword);
        let dword = u32::from_le_bytes(dword);
        if dword & 0xffff == u32::from(id) {
            return at;
        }
        at = u64::from(dword >> 20);
    }
}
