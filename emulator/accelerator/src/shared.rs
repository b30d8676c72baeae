//! What a function's threads share: the socket thread, its engines' threads, and whichever thread is in the IOMMU.
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use svadev_endpoint::{Answer, Endpoint, EndpointSettings, Obligation, Ports};
use svadev_fabric::{Bdf, InvalidateAck, InvalidateRequest, PageGroupResponse, SourceId};
use svadev_memory::DeviceMemory;
use svadev_mirror::{ControlBlock, Face};
use svadev_spec::device::{CommandStatus, QueueStatus, Status};

use crate::counters::{Counters, EngineCounters};
use crate::doorbell::DoorbellPages;
use crate::orders::{COMMANDS, Command, Done, Orders};
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
    /// No access through memory windows from before [`FunctionShared::memory_changed`] with this token can still be
    /// under way. Called once for each that returned [`InvalidateAck::Pending`].
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
    /// It has the ATS capability. Without, no translation request leaves it.
    pub ats: bool,
    /// It has the PRI capability.
    pub pri: bool,
    /// PASID width that its capability states, 1 to 20 bits.
    pub pasid_bits: u8,
    /// There is no IOMMU in front of the function. It has no ATS, PRI or PASID: requests without a PASID go to
    /// guest-physical addresses, others nowhere.
    pub untranslated: bool,
    /// Tell the IOMMU of each use of a device-TLB entry (`Upstream::audit_use`). Slow.
    pub audit: bool,
    /// Bytes of device memory: a power of two up to `MAX_DEVICE_MEMORY`, at least a page; 0 for none.
    pub device_memory: u64,
    /// Its number among the device's functions, by which device addresses name its memory.
    pub number: u8,
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
            ats: true,
            pri: true,
            pasid_bits: 19,
            untranslated: false,
            audit: false,
            device_memory: 0,
            number: 0,
        }
    }

    /// What of it is the endpoint's.
    fn endpoint(&self) -> EndpointSettings {
        EndpointSettings {
            bdf: self.bdf,
            source: if self.untranslated { SourceId::IDENTITY } else { SourceId::UNIT },
            engines: self.engines,
            tlb_entries: self.tlb_entries,
            group_pages: self.group_pages,
            page_request_timeout_ns: self.page_request_timeout_ns,
            audit: self.audit,
        }
    }

    fn validate(&self) {
        assert!((1..=svadev_spec::device::MAX_QUEUES).contains(&u32::from(self.queues)), "queues out of range");
        assert!((1..=19).contains(&self.pasid_bits), "PASID bits out of range");
        assert!(self.vectors > 0, "a function has at least one vector");
        assert!((1..=256).contains(&self.jobs_per_queue), "jobs per queue out of range");
        assert!(self.list_jobs_per_queue > 0, "a queue needs room for one list job");
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

/// How a command stands.
#[derive(Debug, Default)]
struct CommandFace {
    busy: AtomicBool,
    /// The last one was unknown.
    bad: AtomicBool,
    /// The last one ended at its limit.
    timed_out: AtomicBool,
}

impl CommandFace {
    fn status(&self) -> CommandStatus {
        CommandStatus::new()
            .with_busy(self.busy.load(Ordering::Acquire))
            .with_bad(self.bad.load(Ordering::Relaxed))
            .with_timeout(self.timed_out.load(Ordering::Relaxed))
    }
    /// The result of the last one, which is over.
    fn set_result(&self, bad: bool, timed_out: bool) {
        self.bad.store(bad, Ordering::Relaxed);
        self.timed_out.store(timed_out, Ordering::Relaxed);
    }
}

/// The endpoint's ports, by way of the function's.
struct EndpointPorts(Arc<dyn FunctionPorts>);

impl Ports for EndpointPorts {
    fn wake(&self, engine: usize) {
        self.0.wake(engine);
    }
    fn memory_released(&self, token: u64) {
        self.0.memory_released(token);
    }
}

/// The part of an accelerator that all of its threads share.
pub struct FunctionShared {
    settings: FunctionSettings,
    endpoint: Endpoint<Orders>,
    ports: Arc<dyn FunctionPorts>,
    doorbells: DoorbellPages,
    /// CONTROL.enable.
    enabled: AtomicBool,
    /// Resets and disables that engines are carrying out.
    busy: AtomicU32,
    /// Times that the mirror was turned off, and an engine has not let go of it yet.
    mirror_busy: AtomicU32,
    /// The last disable ended at its limit.
    disable_timed_out: AtomicBool,
    commands: [CommandFace; COMMANDS],
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
        let endpoint_ports = Box::new(EndpointPorts(Arc::clone(&ports)));
        Self {
            settings,
            endpoint: Endpoint::new(settings.endpoint(), endpoint_ports, || Orders::new(queues)),
            ports,
            doorbells,
            enabled: AtomicBool::new(false),
            busy: AtomicU32::new(0),
            mirror_busy: AtomicU32::new(0),
            disable_timed_out: AtomicBool::new(false),
            commands: Default::default(),
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
        Counters::sum(self.counters.iter(), self.endpoint.counters())
    }

    /// Gives the function the device's memory. Once, before an engine runs.
    pub fn set_device_memory(&self, memory: Arc<DeviceMemory>) {
        assert!(self.endpoint.device_memory().set(memory).is_ok(), "device memory is given once");
    }

    /// The function as a requester.
    pub(crate) fn endpoint(&self) -> &Endpoint<Orders> {
        &self.endpoint
    }

    /// The engine that serves a queue.
    pub fn engine_of(&self, queue: usize) -> usize {
        queue % self.endpoint.engines()
    }

    /// Invalidate Request: see [`Endpoint::invalidate`].
    pub fn invalidate(&self, request: InvalidateRequest) -> InvalidateAck {
        self.endpoint.invalidate(request)
    }

    /// The memory map changed: see [`Endpoint::memory_changed`]. [`FunctionPorts::memory_released`] answers `Pending`.
    pub fn memory_changed(&self, token: u64) -> InvalidateAck {
        self.endpoint.memory_changed(token)
    }

    /// PRG Response message: see [`Endpoint::page_group_response`].
    pub fn page_group_response(&self, response: PageGroupResponse) {
        self.endpoint.page_group_response(response);
    }

    /// Gives an engine an order, and wakes it if it sleeps.
    fn post(&self, engine: usize, put: impl FnOnce(&mut Orders)) {
        self.endpoint.post(engine, |mailbox| put(&mut mailbox.device));
    }

    /// A wake page was written: software rang a doorbell that said that nobody looks at it.
    pub(crate) fn ring(&self, queue: usize) {
        self.post(self.engine_of(queue), |orders| orders.ring(queue));
    }

    /// Starts a reset: every engine drops all it has. The caller has reset the registers.
    pub(crate) fn reset(&self) {
        self.enabled.store(false, Ordering::Relaxed);
        self.disable_timed_out.store(false, Ordering::Relaxed);
        self.commands.iter().for_each(|face| face.set_result(false, false));
        self.ask_all(Done::Reset, Orders::reset);
    }

    /// CONTROL.enable.
    pub(crate) fn set_enabled(&self, enable: bool) {
        let was = self.enabled.swap(enable, Ordering::AcqRel);
        if was && !enable {
            self.disable_timed_out.store(false, Ordering::Relaxed);
            self.ask_all(Done::Disable, Orders::disable_all);
        } else if enable && !was {
            for engine in 0..self.endpoint.engines() {
                self.post(engine, |orders| orders.rung_all = true);
            }
        }
    }

    /// A known command with a number. Ignored while one with this number is busy. Whether it was started.
    pub(crate) fn command(&self, number: usize, command: Command) -> bool {
        let face = &self.commands[number];
        if face.busy.load(Ordering::Acquire) {
            return false;
        }
        face.set_result(false, false);
        face.busy.store(true, Ordering::Relaxed);
        self.ask_all(Done::Command(number), |orders, obligation| orders.command(number, command, obligation));
        true
    }

    /// COMMAND, unknown: it does nothing but say so.
    pub(crate) fn bad_command(&self) {
        if !self.commands[0].busy.load(Ordering::Acquire) {
            self.commands[0].set_result(true, false);
        }
    }

    /// An engine ends its part of a command or of a disable at the limit. Called before it acknowledges.
    pub(crate) fn timed_out(&self, done: Done) {
        match done {
            Done::Reset | Done::Mirror => {}
            Done::Disable => self.disable_timed_out.store(true, Ordering::Relaxed),
            Done::Command(number) => self.commands[number].timed_out.store(true, Ordering::Relaxed),
        }
    }

    fn ask_all(&self, done: Done, put: impl Fn(&mut Orders, Obligation<Done>)) {
        match done {
            Done::Reset | Done::Disable => drop(self.busy.fetch_add(1, Ordering::Relaxed)),
            Done::Mirror => drop(self.mirror_busy.fetch_add(1, Ordering::Relaxed)),
            Done::Command(_) => {}
        }
        let own = Obligation::new(Answer::Device(done));
        for engine in 0..self.endpoint.engines() {
            let share = own.share();
            self.post(engine, |orders| put(orders, share));
        }
        if own.acknowledge().is_some() {
            self.give(done);
        }
    }

    /// Restores what is neither in configuration space nor in an engine.
    pub(crate) fn restore(&self, status: Status, commands: &[CommandStatus]) {
        self.enabled.store(status.enabled(), Ordering::Release);
        self.disable_timed_out.store(status.timeout(), Ordering::Relaxed);
        for (face, command) in self.commands.iter().zip(commands) {
            face.set_result(command.bad(), command.timeout());
        }
    }

    /// Makes the function busy again with a command or a disable that a saved state has under way. Returns the caller's
    /// share of it.
    pub(crate) fn go_on(&self, done: Done, under_way: bool) -> Option<Obligation<Done>> {
        under_way.then(|| {
            match done {
                Done::Reset | Done::Disable => drop(self.busy.fetch_add(1, Ordering::Relaxed)),
                Done::Command(number) => self.commands[number].busy.store(true, Ordering::Relaxed),
                Done::Mirror => unreachable!("an engine that is paused has turned it off"),
            }
            Obligation::new(Answer::Device(done))
        })
    }

    /// Every engine has acted.
    pub(crate) fn give(&self, done: Done) {
        match done {
            Done::Reset => {
                self.busy.fetch_sub(1, Ordering::Release);
                self.ports.reset_done();
            }
            Done::Disable => {
                self.busy.fetch_sub(1, Ordering::Release);
            }
            Done::Command(number) => self.commands[number].busy.store(false, Ordering::Release),
            Done::Mirror => drop(self.mirror_busy.fetch_sub(1, Ordering::Release)),
        }
    }

    /// What the function's threads share of its mirror.
    pub fn mirror(&self) -> &Arc<Face> {
        self.endpoint.mirror()
    }

    /// MIRROR_CONTROL.enable 0 → 1, with a header that was found in order.
    pub(crate) fn mirror_on(&self, block: ControlBlock, vector: Option<u16>) {
        for engine in 0..self.endpoint.engines() {
            self.post(engine, |orders| orders.mirror.on = Some((block, vector)));
        }
    }

    /// MIRROR_CONTROL.enable 1 → 0.
    pub(crate) fn mirror_off(&self) {
        self.ask_all(Done::Mirror, Orders::mirror_off);
    }

    /// Whether an engine may still use an address space of a mirror that was turned off.
    pub(crate) fn mirror_busy(&self) -> bool {
        self.mirror_busy.load(Ordering::Acquire) != 0
    }

    /// MIRROR_KICK.
    pub(crate) fn kick(&self, engine: usize) {
        let engines = self.endpoint.engines();
        let kicked = if engine < engines { engine..engine + 1 } else { 0..engines };
        for engine in kicked {
            self.post(engine, |orders| orders.kicked = true);
        }
    }

    /// QUEUE_CONTROL 0 → 1, with registers that were found good.
    pub(crate) fn enable_queue(&self, queue: usize, config: QueueConfig) {
        self.queues[queue].set(QueueStatus::new().with_enabled(true), 0);
        self.post(self.engine_of(queue), |orders| {
            orders.queues[queue].enable = Some(config);
            orders.queues_changed = true;
        });
    }

    /// QUEUE_CONTROL 1 → 0.
    pub(crate) fn disable_queue(&self, queue: usize) {
        self.post(self.engine_of(queue), |orders| {
            orders.queues[queue].disable = true;
            orders.queues[queue].enable = None;
            orders.queues_changed = true;
        });
    }

    pub(crate) fn status(&self) -> Status {
        Status::new()
            .with_enabled(self.enabled.load(Ordering::Relaxed))
            .with_busy(self.busy.load(Ordering::Acquire) != 0)
            .with_timeout(self.disable_timed_out.load(Ordering::Relaxed))
    }
    /// How the command with a number stands.
    pub(crate) fn command_status(&self, number: usize) -> CommandStatus {
        self.commands[number].status()
    }
    pub(crate) fn enabled(&self) -> bool {
        self.enabled.load(Ordering::Acquire)
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
    pub(crate) fn engine_counters(&self, engine: usize) -> &EngineCounters {
        &self.counters[engine]
    }
}
