//! What a function's threads share: the socket thread, its engines' threads, and whichever thread is in the IOMMU.
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use svadev_fabric::{Bdf, InvalidateAck, InvalidateRequest, PageGroupResponse, Pasid};
use svadev_mutation::mutant;
use svadev_spec::device::{CommandStatus, QueueStatus, Status};

use crate::counters::{Counters, EngineCounters};
use crate::doorbell::DoorbellPages;
use crate::engine_side::{self, EngineSide};
use crate::mailbox::{Command, Invalidation, Mailbox};
use crate::obligation::{Answer, Obligation};
use crate::page_request::{PrgTable, PriStatus};
use crate::queue_config::QueueConfig;

/// What a function needs of the world around it. Called from any thread, engine and IOMMU threads included, sometimes
/// with the IOMMU's lock held: no method may block or call back into the function.
pub trait FunctionPorts: Send + Sync {
    /// Raise an MSI-X vector.
    fn interrupt(&self, vector: u16);
    /// Whether a vector is raised but not delivered yet: its pending bit (PCIe 6.0 §7.7.2.6).
    fn interrupt_pending(&self, vector: u16) -> bool;
    /// Wake an engine's thread, now or the next time it goes to sleep (as an eventfd does).
    fn wake(&self, engine: usize);
    /// No access through memory windows from before [`FunctionShared::memory_changed`] with this token can still be under
    /// way. Called once for each that returned [`InvalidateAck::Pending`].
    fn memory_released(&self, token: u64);
    /// A reset is over; called once for each [`Function::reset`](crate::Function::reset) and function-level reset.
    fn reset_done(&self);
}

/// What is fixed about a function when it is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FunctionSettings {
    /// Its requester ID.
    pub bdf: Bdf,
    /// Queues, `1..=MAX_QUEUES`. Queue n is served by engine n modulo `engines`.
    pub queues: u16,
    /// MSI-X vectors, at least 1.
    pub vectors: u8,
    /// Engines, at least 1.
    pub engines: u8,
    /// Descriptors of one queue that may be under way at once, `1..=256`.
    pub jobs_per_queue: usize,
    /// Descriptors with two lists (twice as many with one) of one queue that may be under way at once, at least 1.
    pub list_jobs_per_queue: usize,
    /// Device-TLB entries of one engine; rounded up to a power of two.
    pub tlb_entries: usize,
    /// Page requests sent together when pages of one operand are missing, `1..=64`. 1 never asks ahead.
    pub group_pages: u16,
    /// How long to wait for a page group response before the descriptor fails, ns.
    pub page_request_timeout_ns: u64,
    /// Tell the IOMMU of each use of a device-TLB entry (`Upstream::audit_use`). Slow.
    pub audit: bool,
}

impl FunctionSettings {
    /// Usual settings for a function at `bdf`.
    pub const fn new(bdf: Bdf) -> Self {
        Self {
            bdf,
            queues: 16,
            vectors: 16,
            engines: 1,
            jobs_per_queue: 64,
            list_jobs_per_queue: 2,
            tlb_entries: 4096,
            group_pages: 32,
            page_request_timeout_ns: 10_000_000_000,
            audit: false,
        }
    }

    pub(crate) fn validate(&self) {
        assert!((1..=svadev_spec::device::MAX_QUEUES).contains(&u32::from(self.queues)), "queues out of range");
        assert!(self.vectors > 0, "a function has at least one vector");
        assert!(self.engines > 0, "a function has at least one engine");
        assert!((1..=256).contains(&self.jobs_per_queue), "jobs per queue out of range");
        assert!(self.list_jobs_per_queue > 0, "a queue needs room for one list job");
        assert!((1..=64).contains(&self.group_pages), "group pages out of range");
        assert!(self.page_request_timeout_ns > 0, "a wait needs a limit");
    }
}

/// What configuration space allows the engines to do, in one word.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Gate {
    /// *Bus Master Enable* (PCIe 6.0 §7.5.1.1.3): the function may access memory at all.
    pub(crate) bus_master: bool,
    /// ATS *Enable* (PCIe 6.0 §10.5.1.3).
    pub(crate) ats: bool,
    /// PASID *Enable* (PCIe 6.0 §7.8.9.3).
    pub(crate) pasid: bool,
}

impl Gate {
    /// Whether requests for an address space may be sent at all.
    pub(crate) fn allows(self, space: Option<Pasid>) -> bool {
        (self.bus_master || mutant!(BusMasterUnchecked)) && self.ats && (self.pasid || space.is_none())
    }
    fn to_bits(self) -> u32 {
        u32::from(self.bus_master) | u32::from(self.ats) << 1 | u32::from(self.pasid) << 2
    }
    fn from_bits(bits: u32) -> Self {
        Self { bus_master: bits & 1 != 0, ats: bits & 2 != 0, pasid: bits & 4 != 0 }
    }
}

/// The registers of one queue that its engine writes.
#[derive(Debug, Default)]
pub(crate) struct QueueFace {
    status: AtomicU32,
    fault_address: AtomicU64,
}

impl QueueFace {
    pub(crate) fn status(&self) -> QueueStatus {
        QueueStatus::from_bits(self.status.load(Ordering::Acquire))
    }
    pub(crate) fn fault_address(&self) -> u64 {
        self.fault_address.load(Ordering::Relaxed)
    }
    /// The status last: whoever reads it sees the address that goes with it.
    pub(crate) fn set(&self, status: QueueStatus, fault_address: u64) {
        self.fault_address.store(fault_address, Ordering::Relaxed);
        self.status.store(status.into_bits(), Ordering::Release);
    }
}

/// The part of an accelerator that all of its threads share.
pub struct FunctionShared {
    settings: FunctionSettings,
    ports: Arc<dyn FunctionPorts>,
    engines: Box<[EngineSide]>,
    doorbells: DoorbellPages,
    prg: PrgTable,
    gate: AtomicU32,
    /// CONTROL.enable.
    enabled: AtomicBool,
    /// Resets and disables that engines are carrying out.
    busy: AtomicU32,
    command_busy: AtomicBool,
    command_bad: AtomicBool,
    queues: Box<[QueueFace]>,
    counters: Box<[EngineCounters]>,
}

impl fmt::Debug for FunctionShared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FunctionShared").field("settings", &self.settings).finish_non_exhaustive()
    }
}

impl FunctionShared {
    pub(crate) fn new(settings: FunctionSettings, ports: Arc<dyn FunctionPorts>, doorbells: DoorbellPages) -> Self {
        settings.validate();
        let (queues, engines) = (usize::from(settings.queues), usize::from(settings.engines));
        assert!(doorbells.pages() >= queues, "a queue needs a doorbell page");
        Self {
            settings,
            ports,
            engines: (0..engines).map(|_| EngineSide::new(queues)).collect(),
            doorbells,
            prg: PrgTable::new(engines),
            gate: AtomicU32::new(0),
            enabled: AtomicBool::new(false),
            busy: AtomicU32::new(0),
            command_busy: AtomicBool::new(false),
            command_bad: AtomicBool::new(false),
            queues: (0..queues).map(|_| QueueFace::default()).collect(),
            counters: (0..engines).map(|_| EngineCounters::default()).collect(),
        }
    }

    /// The function's requester ID.
    pub fn bdf(&self) -> Bdf {
        self.settings.bdf
    }

    /// What was fixed when the function was made.
    pub fn settings(&self) -> &FunctionSettings {
        &self.settings
    }

    /// What the function did so far.
    pub fn counters(&self) -> Counters {
        Counters::sum(self.counters.iter())
    }

    /// The engine that serves a queue.
    pub fn engine_of(&self, queue: usize) -> usize {
        queue % self.engines.len()
    }

    /// What the PRI status register has to show.
    pub(crate) fn take_page_request_status(&self) -> PriStatus {
        self.prg.take_status()
    }

    /// PRI *Reset*.
    pub(crate) fn reset_page_requests(&self) {
        self.prg.reset(|engine, index| self.tell_answered(engine, index));
    }

    fn tell_answered(&self, engine: usize, index: usize) {
        self.post(engine, |mailbox| mailbox.answered[index / 64] |= 1 << (index % 64));
    }

    /// Invalidate Request (PCIe 6.0 §10.3.1), from any thread, with the IOMMU's lock held. `Done` where every engine is
    /// asleep; otherwise the engine that is last to empty its mailbox calls `Upstream::invalidate_complete`, once.
    pub fn invalidate(&self, request: InvalidateRequest) -> InvalidateAck {
        engine_side::invalidate(&self.engines, request.into(), Answer::Invalidate(request.tag))
    }

    /// The memory map changed: windows that were taken from [`GuestMemory`](svadev_memory::GuestMemory) before are dropped.
    /// Call it *after* the map was changed and before the memory is unmapped. `Done`: no access through them is under way;
    /// `Pending`: [`FunctionPorts::memory_released`] will say so.
    pub fn memory_changed(&self, token: u64) -> InvalidateAck {
        if mutant!(MemoryChangeDropsNothing) {
            return InvalidateAck::Done;
        }
        engine_side::invalidate(&self.engines, Invalidation::ALL, Answer::Memory(token))
    }

    /// PRG Response message (PCIe 6.0 §10.4.2), from any thread, with the IOMMU's lock held.
    pub fn page_group_response(&self, response: PageGroupResponse) {
        if let Some(engine) = self.prg.answer(response, |engine| self.credit(engine)) {
            self.tell_answered(engine, response.prg_index.get().into());
        }
    }

    /// Puts something into an engine's mailbox that it must act on, and wakes it if it sleeps.
    fn post(&self, engine: usize, put: impl FnOnce(&mut Mailbox)) {
        if !self.engines[engine].post(put) {
            self.ports.wake(engine);
        }
    }

    /// Tells an engine whose jobs wait in line for page requests that it may ask again. Called under the PRG table's lock.
    pub(crate) fn credit(&self, engine: usize) {
        self.post(engine, |mailbox| mailbox.credit = true);
    }

    /// A wake page was written: software rang a doorbell that said that nobody looks at it.
    pub(crate) fn ring(&self, queue: usize) {
        self.post(self.engine_of(queue), |mailbox| mailbox.ring(queue));
    }

    /// Starts a reset: every engine drops all it has. The caller has reset the registers.
    pub(crate) fn reset(&self) {
        self.enabled.store(false, Ordering::Relaxed);
        self.command_bad.store(false, Ordering::Relaxed);
        self.ask_all(Answer::Reset, |mailbox, obligation| mailbox.reset(obligation));
    }

    /// CONTROL.enable.
    pub(crate) fn set_enabled(&self, enable: bool) {
        let was = self.enabled.swap(enable, Ordering::AcqRel);
        if was && !enable {
            self.ask_all(Answer::Disable, |mailbox, obligation| mailbox.disables.push(obligation));
        } else if enable && !was {
            for engine in 0..self.engines.len() {
                self.post(engine, |mailbox| mailbox.rung_all = true);
            }
        }
    }

    /// COMMAND, known. Ignored while one is busy.
    pub(crate) fn command(&self, command: Command) {
        if !self.command_busy.load(Ordering::Acquire) {
            self.command_bad.store(false, Ordering::Relaxed);
            self.command_busy.store(true, Ordering::Relaxed);
            self.ask_all(Answer::Command, |mailbox, obligation| mailbox.command = Some((command, obligation)));
        }
    }

    /// COMMAND, unknown: it does nothing but say so.
    pub(crate) fn bad_command(&self) {
        if !self.command_busy.load(Ordering::Acquire) {
            self.command_bad.store(true, Ordering::Relaxed);
        }
    }

    fn ask_all(&self, answer: Answer, put: impl Fn(&mut Mailbox, Obligation)) {
        if matches!(answer, Answer::Reset | Answer::Disable) {
            self.busy.fetch_add(1, Ordering::Relaxed);
        }
        let own = Obligation::new(answer);
        for engine in 0..self.engines.len() {
            let share = own.share();
            self.post(engine, |mailbox| put(mailbox, share));
        }
        if let Some(answer) = own.acknowledge() {
            self.give(answer);
        }
    }

    /// Gives an answer that is not the IOMMU's.
    pub(crate) fn give(&self, answer: Answer) {
        match answer {
            Answer::Invalidate(_) => unreachable!("the engine answers the IOMMU itself"),
            Answer::Memory(token) => self.ports.memory_released(token),
            Answer::Reset => {
                self.busy.fetch_sub(1, Ordering::Release);
                self.ports.reset_done();
            }
            Answer::Disable => {
                self.busy.fetch_sub(1, Ordering::Release);
            }
            Answer::Command => self.command_busy.store(false, Ordering::Release),
        }
    }

    /// QUEUE_CONTROL 0 → 1, with registers that were found good.
    pub(crate) fn enable_queue(&self, queue: usize, config: QueueConfig) {
        self.queues[queue].set(QueueStatus::new().with_enabled(true), 0);
        self.post(self.engine_of(queue), |mailbox| {
            mailbox.queues[queue].enable = Some(config);
            mailbox.queues_changed = true;
        });
    }

    /// QUEUE_CONTROL 1 → 0.
    pub(crate) fn disable_queue(&self, queue: usize) {
        self.post(self.engine_of(queue), |mailbox| {
            mailbox.queues[queue].disable = true;
            mailbox.queues[queue].enable = None;
            mailbox.queues_changed = true;
        });
    }

    /// What configuration space says now. Turning address translation off drops what was translated (PCIe 6.0 §10.5.1.3).
    pub(crate) fn configure(&self, gate: Gate, pri_enabled: bool, pri_allocation: u32) {
        let old = Gate::from_bits(self.gate.swap(gate.to_bits(), Ordering::AcqRel));
        if old != gate {
            for engine in 0..self.engines.len() {
                self.post(engine, |mailbox| mailbox.invalidate(Invalidation::ALL));
            }
        }
        self.prg.configure(pri_enabled, pri_allocation, |engine| self.credit(engine));
    }

    pub(crate) fn status(&self) -> Status {
        Status::new()
            .with_enabled(self.enabled.load(Ordering::Relaxed))
            .with_busy(self.busy.load(Ordering::Acquire) != 0)
    }
    pub(crate) fn command_status(&self) -> CommandStatus {
        CommandStatus::new()
            .with_busy(self.command_busy.load(Ordering::Acquire))
            .with_bad(self.command_bad.load(Ordering::Relaxed))
    }
    pub(crate) fn enabled(&self) -> bool {
        self.enabled.load(Ordering::Acquire)
    }
    pub(crate) fn gate(&self) -> Gate {
        Gate::from_bits(self.gate.load(Ordering::Acquire))
    }
    pub(crate) fn queue(&self, queue: usize) -> &QueueFace {
        &self.queues[queue]
    }
    /// The doorbell pages, as a program maps them.
    pub fn doorbells(&self) -> &DoorbellPages {
        &self.doorbells
    }
    pub(crate) fn ports(&self) -> &dyn FunctionPorts {
        &*self.ports
    }
    pub(crate) fn prg(&self) -> &PrgTable {
        &self.prg
    }
    pub(crate) fn engine_side(&self, engine: usize) -> &EngineSide {
        &self.engines[engine]
    }
    pub(crate) fn engine_counters(&self, engine: usize) -> &EngineCounters {
        &self.counters[engine]
    }
}
