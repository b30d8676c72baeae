//! The mock world: tables as a map, flat memory, a driver's side of a queue, and time that tests advance.
use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, Weak};

use svadev_fabric::{
    AtsError, Bdf, Gpa, InvalidateAck, InvalidateRange, InvalidateRequest, InvalidateTag, Iova, PageGroupResponse,
    PageRequest, PageRequestOutcome, Pasid, PrgIndex, ResponseCode, Translation, TranslationRequest, Upstream,
};
use svadev_memory::{GuestAddress, GuestMemory, HostWindow, MemoryError, Ram};
use svadev_spec::device::{
    BAR_REGISTERS, Code, Completion, Descriptor, DescriptorPasid, QueuePasid, QueueSize, QueueStatus, QueueVector,
    doorbell, regs,
};
use svadev_spec::pcie::{self, extended_capability, header};
use zerocopy::{FromBytes, IntoBytes};

use crate::{DoorbellPages, Engine, Function, FunctionPorts, FunctionSettings, FunctionShared, Progress};
use svadev_endpoint::SIZES_LOG2;

pub(super) const BDF: Bdf = Bdf(0x0028);
pub(super) const RAM: u64 = 64 << 20;
/// Where the driver's rings are: guest-physical, and mapped at the same address without PASID.
const RINGS: u64 = 0x10_0000;
const RING_BYTES: u64 = 0x1_0000;
pub(super) const TIMEOUT: u64 = 1_000_000;

pub(super) fn pasid(n: u32) -> Pasid {
    Pasid::new(n).unwrap()
}

/// A page of the mock's tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Page {
    pub(super) gpa: u64,
    pub(super) read: bool,
    pub(super) write: bool,
    pub(super) global: bool,
    pub(super) untranslated_only: bool,
}

impl Page {
    pub(super) fn rw(gpa: u64) -> Self {
        Self { gpa, read: true, write: true, global: false, untranslated_only: false }
    }
    pub(super) fn ro(gpa: u64) -> Self {
        Self { write: false, ..Self::rw(gpa) }
    }
}

/// What the mock does with page requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kernel {
    /// Keeps them for the test.
    Silent,
    /// Answers from within the call, as an IOMMU does that handles a request itself: *success*, after mapping every page
    /// that `lazy` names.
    Serve,
    /// Says *success* and does nothing.
    Lie,
    Drop,
}

#[derive(Debug)]
struct Tables {
    pages: HashMap<(Option<Pasid>, u8, u64), Page>,
    bound: HashSet<Option<Pasid>>,
    /// Pages that a page request makes present: (space, page address) → page.
    lazy: HashMap<(Option<Pasid>, u64), Page>,
    kernel: Kernel,
    requests: Vec<PageRequest>,
    completed: Vec<InvalidateTag>,
    translated: Vec<TranslationRequest>,
}

/// The IOMMU.
#[derive(Debug)]
pub(super) struct Mmu {
    tables: Mutex<Tables>,
    down: OnceLock<Weak<FunctionShared>>,
}

impl Upstream for Mmu {
    fn translate(&self, request: TranslationRequest) -> Result<Translation, AtsError> {
        assert_eq!(request.requester, BDF);
        let mut tables = self.tables.lock().unwrap();
        tables.translated.push(request);
        if !tables.bound.contains(&request.pasid) {
            return Err(AtsError::UnsupportedRequest);
        }
        for size_log2 in SIZES_LOG2 {
            if let Some(page) = tables.pages.get(&(request.pasid, size_log2, request.iova.0 >> size_log2)) {
                let access = svadev_fabric::Access {
                    read: page.read,
                    write: page.write && request.access.write,
                    execute: false,
                    privileged: false,
                };
                return Ok(Translation {
                    gpa: Gpa(page.gpa),
                    size_log2,
                    access,
                    global: page.global,
                    untranslated_only: page.untranslated_only,
                });
            }
        }
        Ok(Translation::NOT_PRESENT)
    }

    fn page_request(&self, request: PageRequest) -> PageRequestOutcome {
        let kernel = {
            let mut tables = self.tables.lock().unwrap();
            if tables.kernel == Kernel::Drop {
                return PageRequestOutcome::Dropped;
            }
            tables.requests.push(request);
            tables.kernel
        };
        match kernel {
            Kernel::Serve if request.last => self.serve(request.prg_index),
            Kernel::Lie if request.last => self.respond(request.prg_index, ResponseCode::Success),
            _ => {}
        }
        PageRequestOutcome::Accepted
    }

    fn invalidate_complete(&self, requester: Bdf, tag: InvalidateTag) {
        assert_eq!(requester, BDF);
        self.tables.lock().unwrap().completed.push(tag);
    }
}

impl Mmu {
    fn serve(&self, index: PrgIndex) {
        let invalid = {
            let mut tables = self.tables.lock().unwrap();
            let tables = &mut *tables;
            let mut invalid = false;
            for request in tables.requests.iter().filter(|r| r.prg_index == index) {
                let page = request.iova.0 & !0xfff;
                match tables.lazy.get(&(request.pasid, page)) {
                    Some(&lazy) if lazy.write || !request.access.write => {
                        tables.pages.insert((request.pasid, 12, page >> 12), lazy);
                    }
                    _ => invalid = true,
                }
            }
            tables.requests.retain(|r| r.prg_index != index);
            invalid
        };
        self.send(index, None, if invalid { ResponseCode::InvalidRequest } else { ResponseCode::Success });
    }

    /// Answers a group that the test has looked at.
    pub(super) fn respond(&self, index: PrgIndex, code: ResponseCode) {
        self.tables.lock().unwrap().requests.retain(|r| r.prg_index != index);
        self.send(index, None, code);
    }

    pub(super) fn send(&self, prg_index: PrgIndex, pasid: Option<Pasid>, code: ResponseCode) {
        let shared = self.down.get().and_then(Weak::upgrade).unwrap();
        shared.page_group_response(PageGroupResponse { pasid, prg_index, code });
    }

    pub(super) fn requests(&self) -> Vec<PageRequest> {
        self.tables.lock().unwrap().requests.clone()
    }
    pub(super) fn completed(&self) -> Vec<InvalidateTag> {
        std::mem::take(&mut self.tables.lock().unwrap().completed)
    }
    pub(super) fn translated(&self) -> Vec<TranslationRequest> {
        std::mem::take(&mut self.tables.lock().unwrap().translated)
    }
    pub(super) fn set_kernel(&self, kernel: Kernel) {
        self.tables.lock().unwrap().kernel = kernel;
    }
    pub(super) fn bind(&self, space: Option<Pasid>) {
        self.tables.lock().unwrap().bound.insert(space);
    }
    pub(super) fn map(&self, space: Option<Pasid>, iova: u64, size_log2: u8, page: Page) {
        let mut tables = self.tables.lock().unwrap();
        tables.bound.insert(space);
        tables.pages.insert((space, size_log2, iova >> size_log2), page);
    }
    pub(super) fn unmap(&self, space: Option<Pasid>, iova: u64, size_log2: u8) {
        self.tables.lock().unwrap().pages.remove(&(space, size_log2, iova >> size_log2));
    }
    pub(super) fn is_mapped(&self, space: Option<Pasid>, iova: u64) -> bool {
        self.tables.lock().unwrap().pages.contains_key(&(space, 12, iova >> 12))
    }
    pub(super) fn map_lazily(&self, space: Option<Pasid>, iova: u64, page: Page) {
        let mut tables = self.tables.lock().unwrap();
        tables.bound.insert(space);
        tables.lazy.insert((space, iova & !0xfff), page);
    }
}

#[derive(Debug, Default)]
pub(super) struct Ports {
    pub(super) interrupts: Mutex<Vec<u16>>,
    pub(super) wakes: AtomicU64,
    pub(super) released: Mutex<Vec<u64>>,
    pub(super) resets: AtomicU64,
}

impl FunctionPorts for Ports {
    fn interrupt_pending(&self, _vector: u16) -> bool {
        false
    }
    fn interrupt(&self, vector: u16) {
        self.interrupts.lock().unwrap().push(vector);
    }
    fn wake(&self, _engine: usize) {
        self.wakes.fetch_add(1, Ordering::Relaxed);
    }
    fn memory_released(&self, token: u64) {
        self.released.lock().unwrap().push(token);
    }
    fn reset_done(&self) {
        self.resets.fetch_add(1, Ordering::Relaxed);
    }
}

/// Flat memory whose windows can be made small, read-only or absent, by range.
#[derive(Debug)]
pub(super) struct Memory {
    pub(super) ram: Ram,
    /// Windows end and begin at multiples of this.
    pub(super) window: AtomicU64,
    /// Read-only from here on.
    pub(super) rom: AtomicU64,
    /// From here on there are regions without a file.
    pub(super) bars_from: AtomicU64,
}

impl GuestMemory for Memory {
    type Kept = ();
    type View<'a> = &'a Self;

    fn view<'a>(&'a self, (): &'a mut ()) -> &'a Self {
        self
    }
    fn read(&self, gpa: GuestAddress, buf: &mut [u8]) -> Result<(), MemoryError> {
        self.ram.read(gpa, buf)
    }
    fn write(&self, gpa: GuestAddress, buf: &[u8]) -> Result<(), MemoryError> {
        self.ram.write(gpa, buf)
    }
    fn load_u64(&self, gpa: GuestAddress) -> Result<u64, MemoryError> {
        self.ram.load_u64(gpa)
    }
    fn store_u32(&self, gpa: GuestAddress, value: u32) -> Result<(), MemoryError> {
        self.ram.store_u32(gpa, value)
    }
    fn store_u64(&self, gpa: GuestAddress, value: u64) -> Result<(), MemoryError> {
        self.ram.store_u64(gpa, value)
    }
    fn compare_exchange_u64(&self, gpa: GuestAddress, current: u64, new: u64) -> Result<Result<u64, u64>, MemoryError> {
        self.ram.compare_exchange_u64(gpa, current, new)
    }
    #[allow(unsafe_code, reason = "a smaller window of the same memory")]
    fn window(&self, gpa: GuestAddress) -> Result<HostWindow, MemoryError> {
        if gpa.0 >= self.bars_from.load(Ordering::Relaxed) {
            return Err(MemoryError::Unreachable(gpa.0));
        }
        let whole = self.ram.window(gpa)?;
        let size = self.window.load(Ordering::Relaxed);
        let start = gpa.0 / size * size;
        let rom = self.rom.load(Ordering::Relaxed);
        Ok(HostWindow {
            // SAFETY: `start` is at most `gpa`, which is inside the whole window, and that begins at 0.
            host: unsafe { whole.host.add(usize::try_from(start).unwrap()) },
            gpa: GuestAddress(start),
            len: size.min(whole.len - start),
            readable: true,
            writable: gpa.0 < rom,
        })
    }
}

/// The driver's half of a queue.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Ring {
    pub(super) tail: u32,
    pub(super) head: u32,
    pub(super) log2: u32,
}

pub(super) type TestEngine = Engine<svadev_endpoint::On<Memory, Mmu>>;

pub(super) struct World {
    pub(super) memory: Arc<Memory>,
    pub(super) mmu: Arc<Mmu>,
    pub(super) ports: Arc<Ports>,
    pub(super) function: Function,
    pub(super) engines: Vec<TestEngine>,
    pub(super) now: u64,
    pub(super) rings: Vec<Ring>,
}

impl World {
    /// One engine, four queues, page requests one at a time, and everything enabled in configuration space.
    pub(super) fn new() -> Self {
        Self::with(|_| ())
    }

    pub(super) fn with(change: impl FnOnce(&mut FunctionSettings)) -> Self {
        let mut settings = FunctionSettings::new(BDF);
        (settings.queues, settings.vectors, settings.group_pages) = (4, 4, 1);
        settings.page_request_timeout_ns = TIMEOUT;
        change(&mut settings);
        let memory = Arc::new(Memory {
            ram: Ram::new(usize::try_from(RAM).unwrap()).unwrap(),
            window: AtomicU64::new(RAM),
            rom: AtomicU64::new(u64::MAX),
            bars_from: AtomicU64::new(u64::MAX),
        });
        let mmu = Arc::new(Mmu {
            tables: Mutex::new(Tables {
                pages: HashMap::new(),
                bound: HashSet::new(),
                lazy: HashMap::new(),
                kernel: Kernel::Silent,
                requests: Vec::new(),
                completed: Vec::new(),
                translated: Vec::new(),
            }),
            down: OnceLock::new(),
        });
        let ports = Arc::new(Ports::default());
        let doorbells = DoorbellPages::anonymous(settings.queues.into());
        let (function, engines) = Function::new(
            settings,
            Arc::clone(&memory),
            Arc::clone(&mmu),
            Arc::clone(&ports) as Arc<dyn FunctionPorts>,
            doorbells,
        );
        mmu.down.set(Arc::downgrade(function.shared())).unwrap();
        let rings = vec![Ring::default(); settings.queues.into()];
        let mut world = Self { memory, mmu, ports, function, engines, now: 1, rings };
        world.configure();
        world
    }

    /// A new function with new engines in place of the old ones, to restore a state into.
    pub(super) fn replace(&mut self) {
        let settings = *self.shared().settings();
        let ports = Arc::clone(&self.ports) as Arc<dyn FunctionPorts>;
        let doorbells = DoorbellPages::anonymous(settings.queues.into());
        (self.function, self.engines) =
            Function::new(settings, Arc::clone(&self.memory), Arc::clone(&self.mmu), ports, doorbells);
    }

    /// What a driver and the kernel's IOMMU layer write before anything works.
    pub(super) fn configure(&mut self) {
        let _ = self.function.config_write(header::COMMAND.into(), &6u16.to_le_bytes());
        if self.shared().settings().untranslated {
            self.write32(regs::CONTROL, 1);
            return;
        }
        let ats = self.capability(extended_capability::ATS) + u64::from(pcie::ats::CONTROL);
        let pri = self.capability(extended_capability::PRI);
        let pasid = self.capability(extended_capability::PASID) + u64::from(pcie::pasid::CONTROL);
        let _ = self.function.config_write(pasid, &1u16.to_le_bytes());
        let _ = self.function.config_write(ats, &(1u16 << 15).to_le_bytes());
        let allocation = pri + u64::from(pcie::pri::OUTSTANDING_ALLOCATION);
        let _ = self.function.config_write(allocation, &512u32.to_le_bytes());
        let _ = self.function.config_write(pri + u64::from(pcie::pri::CONTROL), &1u16.to_le_bytes());
        for n in 0..2 * self.rings.len().max(8) as u64 {
            let page = RINGS + n * RING_BYTES;
            for at in (page..page + RING_BYTES).step_by(0x1000) {
                self.mmu.map(None, at, 12, Page::rw(at));
            }
        }
        self.write32(regs::CONTROL, 1);
    }

    /// Page requests: off, then on with this allocation.
    pub(super) fn set_allocation(&mut self, allocation: u32) {
        let pri = self.capability(extended_capability::PRI);
        let control = pri + u64::from(pcie::pri::CONTROL);
        let _ = self.function.config_write(control, &0u16.to_le_bytes());
        let at = pri + u64::from(pcie::pri::OUTSTANDING_ALLOCATION);
        let _ = self.function.config_write(at, &allocation.to_le_bytes());
        let _ = self.function.config_write(control, &1u16.to_le_bytes());
    }

    /// Offset of an extended capability.
    pub(super) fn capability(&mut self, id: u16) -> u64 {
        let mut at = 0x100;
        while at != 0 {
            let mut dword = [0; 4];
            self.function.config_read(at, &mut dword);
            let dword = u32::from_le_bytes(dword);
            if dword & 0xffff == u32::from(id) {
                return at;
            }
            at = u64::from(dword >> 20);
        }
        panic!("no extended capability {id:#x}");
    }

    pub(super) fn shared(&self) -> Arc<FunctionShared> {
        Arc::clone(self.function.shared())
    }

    pub(super) fn read32(&mut self, offset: u64) -> u32 {
        let mut data = [0; 4];
        self.function.bar_read(BAR_REGISTERS, offset, &mut data);
        u32::from_le_bytes(data)
    }
    pub(super) fn read64(&mut self, offset: u64) -> u64 {
        let mut data = [0; 8];
        self.function.bar_read(BAR_REGISTERS, offset, &mut data);
        u64::from_le_bytes(data)
    }
    pub(super) fn write32(&mut self, offset: u64, value: u32) {
        self.function.bar_write(BAR_REGISTERS, offset, &value.to_le_bytes());
    }
    pub(super) fn write64(&mut self, offset: u64, value: u64) {
        self.function.bar_write(BAR_REGISTERS, offset, &value.to_le_bytes());
    }

    pub(super) fn sq_base(queue: usize) -> u64 {
        RINGS + queue as u64 * 2 * RING_BYTES
    }
    pub(super) fn cq_base(queue: usize) -> u64 {
        Self::sq_base(queue) + RING_BYTES
    }
    pub(super) fn register(queue: usize, register: u64) -> u64 {
        regs::QUEUES + queue as u64 * regs::QUEUE_STRIDE + register
    }

    /// Enables a queue with rings of `1 << log2` entries; for `user`, at the same addresses of that process.
    pub(super) fn enable(&mut self, queue: usize, log2: u8, user: Option<Pasid>) {
        self.enable_with(queue, log2, log2, user);
    }

    pub(super) fn enable_with(&mut self, queue: usize, sq_log2: u8, cq_log2: u8, user: Option<Pasid>) {
        let size = QueueSize::new().with_sq_log2(sq_log2).with_cq_log2(cq_log2);
        let owner = user.map_or(QueuePasid::new(), |p| QueuePasid::new().with_pasid(p.get()).with_user(true));
        let vectors = usize::from(self.function.shared().settings().vectors);
        let vector = QueueVector::new().with_vector(u8::try_from(queue % vectors).unwrap()).with_enable(true);
        self.write64(Self::register(queue, regs::QUEUE_SQ_BASE), Self::sq_base(queue));
        self.write64(Self::register(queue, regs::QUEUE_CQ_BASE), Self::cq_base(queue));
        self.write32(Self::register(queue, regs::QUEUE_SIZE), size.into_bits());
        self.write32(Self::register(queue, regs::QUEUE_PASID), owner.into_bits());
        self.write32(Self::register(queue, regs::QUEUE_VECTOR), vector.into_bits());
        self.ring_word(queue, doorbell::SQ_TAIL, 0);
        self.ring_word(queue, doorbell::CQ_HEAD, 0);
        self.rings[queue] = Ring { tail: 0, head: 0, log2: sq_log2.into() };
        self.write32(Self::register(queue, regs::QUEUE_CONTROL), 1);
        assert!(self.status(queue).enabled(), "{:?}", self.status(queue));
    }

    pub(super) fn status(&mut self, queue: usize) -> QueueStatus {
        QueueStatus::from_bits(self.read32(Self::register(queue, regs::QUEUE_STATUS)))
    }

    pub(super) fn ring_word(&self, queue: usize, word: u64, value: u32) {
        self.function.shared().doorbells().store(queue, word, value);
    }
    pub(super) fn word(&self, queue: usize, word: u64) -> u32 {
        self.function.shared().doorbells().load(queue, word)
    }

    /// Puts descriptors into the ring and rings.
    pub(super) fn submit(&mut self, queue: usize, descriptors: &[Descriptor]) {
        for d in descriptors {
            let ring = &mut self.rings[queue];
            let slot = u64::from(ring.tail & ((1 << ring.log2) - 1));
            self.memory.write(GuestAddress(Self::sq_base(queue) + slot * 64), d.as_bytes()).unwrap();
            ring.tail = ring.tail.wrapping_add(1);
        }
        self.ring_word(queue, doorbell::SQ_TAIL, self.rings[queue].tail);
    }

    /// Takes the completions that are there.
    pub(super) fn reap(&mut self, queue: usize) -> Vec<Completion> {
        let cq_log2 = self.read32(Self::register(queue, regs::QUEUE_SIZE)) >> 8 & 0xff;
        let mut found = Vec::new();
        while self.word(queue, doorbell::CQ_TAIL) != self.rings[queue].head {
            let head = self.rings[queue].head;
            let slot = u64::from(head & ((1 << cq_log2) - 1));
            let mut bytes = [0; size_of::<Completion>()];
            self.memory.read(GuestAddress(Self::cq_base(queue) + slot * 32), &mut bytes).unwrap();
            let completion = Completion::read_from_bytes(&bytes).unwrap();
            assert_eq!(completion.seq, head.wrapping_add(1), "the sequence number says that the entry is whole");
            found.push(completion);
            self.rings[queue].head = head.wrapping_add(1);
        }
        self.ring_word(queue, doorbell::CQ_HEAD, self.rings[queue].head);
        found
    }

    /// One slice of every engine.
    pub(super) fn step(&mut self) -> bool {
        let now = self.now;
        self.engines.iter_mut().fold(false, |worked, e| (e.run(now) == Progress::Worked) | worked)
    }

    /// Runs until nothing is left to do now.
    pub(super) fn settle(&mut self) {
        for _ in 0..1_000_000 {
            if !self.step() {
                return;
            }
        }
        panic!("the engines never come to rest");
    }

    /// Submits, runs, and returns the completions.
    pub(super) fn run(&mut self, queue: usize, descriptors: &[Descriptor]) -> Vec<Completion> {
        self.submit(queue, descriptors);
        self.settle();
        self.reap(queue)
    }

    /// As `run`, for one descriptor that must complete.
    pub(super) fn run_one(&mut self, queue: usize, descriptor: Descriptor) -> Completion {
        let done = self.run(queue, &[descriptor]);
        assert_eq!(done.len(), 1, "one descriptor, one completion");
        assert_eq!(done[0].cookie, descriptor.cookie);
        done[0]
    }

    pub(super) fn write(&self, gpa: u64, bytes: &[u8]) {
        self.memory.write(GuestAddress(gpa), bytes).unwrap();
    }
    pub(super) fn read(&self, gpa: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory.read(GuestAddress(gpa), &mut bytes).unwrap();
        bytes
    }

    /// Maps `len` bytes at `iova` page by page to `gpa`.
    pub(super) fn map(&self, space: Option<Pasid>, iova: u64, gpa: u64, len: u64) {
        for at in (0..len).step_by(0x1000) {
            self.mmu.map(space, iova + at, 12, Page::rw(gpa + at));
        }
    }

    pub(super) fn invalidate(&self, tag: u64, space: Option<Pasid>, start: u64, size_log2: u8) -> InvalidateAck {
        self.function.shared().invalidate(InvalidateRequest {
            tag: InvalidateTag::unit(tag),
            pasid: space,
            global: false,
            range: InvalidateRange::Naturally { start: Iova(start), size_log2 },
        })
    }

    pub(super) fn last_group(&self) -> PrgIndex {
        self.mmu.requests().last().expect("a page request").prg_index
    }
}

pub(super) fn code(completion: &Completion) -> Code {
    Code::from_raw(completion.status).expect("a status that the ABI knows")
}

/// A descriptor of a kernel queue for a process.
pub(super) fn for_process(space: Pasid, d: Descriptor) -> Descriptor {
    Descriptor { pasid: DescriptorPasid::new().with_pasid(space.get()).with_valid(true), ..d }
}

/// Numbers that look like noise, the same each time.
pub(super) fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2).wrapping_add(1);
    let mut bytes = VecDeque::new();
    while bytes.len() < len {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        bytes.extend(state.to_be_bytes().into_iter().take(4));
    }
    bytes.truncate(len);
    bytes.into()
}
