//! The world: kernel, processes, functions and unit in one thread, on virtual time.
//!
//! A run has three phases. *Faults*: random work, random changes, and the faults that this seed has. *Healing*: no new work and
//! no new faults; within a bound, every queue must be empty. *After*: new work, which must all succeed.
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use svadev_device::FunctionSettings;
use svadev_fabric::{Bdf, InvalidateAck, Pasid};
use svadev_iommu::{Caching, UnitConfig};
use svadev_memory::Ram;

use crate::bus::{Bus, msi};
use crate::faults::Faults;
use crate::flight::Flight;
use crate::frames::{FRAME, FRAME_BYTES, Frames};
use crate::functions::{Accelerator, KERNEL_QUEUES, QUEUES};
use crate::log::{Failure, Log, Sink};
use crate::mutant::Mutant;
use crate::process::{BASE, DATA, LIST_PAGE, Life, PAGES, Process};
use crate::rng::Rng;
use crate::tables::{DeviceTables, FirstStage, PageTables};
use crate::task::Task;
use crate::unit_driver::UnitDriver;

const RAM_BYTES: u64 = 32 << 20;
/// Requester IDs; one in each half of its bus's context tables.
const FUNCTIONS: [Bdf; 2] = [Bdf(0x0010), Bdf(0x00a1)];
const PROCESSES: usize = 3;
/// Where the driver's rings are for its own DMA.
const RINGS: u64 = 0x10_0000;
/// Domain of the driver's own DMA.
const KERNEL_DOMAIN: u16 = 1;
/// Steps of the first phase.
const STEPS: u64 = 4000;
/// Most steps of healing, and of what comes after it.
const BOUND: u64 = 60_000;
const STEP_NS: u64 = 1000;
/// Page requests time out after so many steps.
const PATIENCE_STEPS: u64 = 6000;

/// What to run.
#[derive(Default)]
pub struct Options {
    /// A planted bug.
    pub mutant: Option<Mutant>,
    /// Where the event log goes, line by line.
    pub sink: Option<Sink>,
}

/// What became of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Its seed.
    pub seed: u64,
    /// What went wrong.
    pub failure: Option<Failure>,
    /// Hash of the event log.
    pub hash: u64,
    /// Events in it.
    pub events: u64,
    /// Steps until the end.
    pub steps: u64,
    /// Descriptors that completed.
    pub completed: u64,
    /// Descriptors that went with their queue or function.
    pub dropped: u64,
    /// Page request groups.
    pub groups: u64,
}

/// See the module.
pub struct World {
    pub(crate) rng: Rng,
    pub(crate) log: Arc<Log>,
    pub(crate) bus: Arc<Bus>,
    pub(crate) ram: Arc<Ram>,
    pub(crate) frames: Frames,
    pub(crate) unit: UnitDriver,
    pub(crate) device_tables: DeviceTables,
    pub(crate) functions: Vec<Accelerator>,
    pub(crate) processes: Vec<Process>,
    pub(crate) flights: BTreeMap<u64, Flight>,
    pub(crate) tasks: Vec<Task>,
    pub(crate) faults: Faults,
    pub(crate) mutant: Option<Mutant>,
    pub(crate) step: u64,
    /// Faults may happen.
    pub(crate) injecting: bool,
    /// What may happen to any new descriptor of a function.
    pub(crate) excuses: [u8; FUNCTIONS.len()],
    /// Free PASIDs, with their domains: the last one freed is the next one used.
    pub(crate) pasids: Vec<(Pasid, u16)>,
    pub(crate) next_cookie: u64,
    pub(crate) submitted: u64,
    pub(crate) completed: u64,
    pub(crate) dropped: u64,
    /// Memory changes that are not over.
    memory_tokens: Vec<BTreeSet<u64>>,
    next_token: u64,
    next_process: u64,
    kernel_frames: Vec<u64>,
    levels: u8,
    page_request_pending: bool,
    nap_until: u64,
}

/// Runs the world of a seed.
pub fn run(seed: u64, options: Options) -> Report {
    let mut world = World::new(seed, options);
    world.live();
    Report {
        seed,
        failure: world.log.failure(),
        hash: world.log.hash(),
        events: world.log.events(),
        steps: world.step,
        completed: world.completed,
        dropped: world.dropped,
        groups: world.bus.groups_sent(),
    }
}

impl World {
    fn new(seed: u64, options: Options) -> Self {
        let mut rng = Rng::new(seed);
        let log = Arc::new(Log::new(options.sink));
        let ram = Arc::new(Ram::new(usize::try_from(RAM_BYTES).expect("a small world")).expect("memory for the world"));
        let mut frames = Frames::new(Arc::clone(&ram), Arc::clone(&log), FRAME, RAM_BYTES);
        let faults = Faults::draw(&mut rng);
        let levels = rng.pick(&[4, 5]);
        let caching = if rng.chance(250) { Caching::None } else { Caching::Strict };
        let iotlb_entries = rng.pick(&[64, 1024]);
        let config = UnitConfig { caching, iotlb_entries, pasid_cache_entries: 64, ..UnitConfig::default() };
        log.event(format_args!("seed {seed}: levels {levels} {:?} {faults}", config.caching));
        let bus = Arc::new(Bus::new(config, Arc::clone(&ram), Arc::clone(&log), options.mutant));
        let mut device_tables = DeviceTables::new(Arc::clone(&ram), &mut frames);
        for bdf in FUNCTIONS {
            device_tables.attach(&mut frames, bdf);
        }
        let order = if faults.overflow == 0 { 3 } else { 0 };
        let (b, r, l) = (Arc::clone(&bus), Arc::clone(&ram), Arc::clone(&log));
        let unit = UnitDriver::new(b, r, l, &mut frames, device_tables.root(), order);
        let functions: Vec<_> = FUNCTIONS
            .into_iter()
            .map(|bdf| {
                let (settings, allocation) = settings(&mut rng, bdf, &log);
                Accelerator::new(settings, allocation, &ram, &bus, &log, options.mutant)
            })
            .collect();
        bus.connect(functions.iter().map(|f| Arc::clone(f.shared())).collect());
        let pasids = (1..=4).rev().map(|n| (Pasid::from_low_bits(n), 2 + u16::try_from(n).expect("few"))).collect();
        let mut world = Self {
            rng,
            log,
            bus,
            ram,
            frames,
            unit,
            device_tables,
            memory_tokens: vec![BTreeSet::new(); functions.len()],
            functions,
            processes: Vec::new(),
            flights: BTreeMap::new(),
            tasks: Vec::new(),
            faults,
            mutant: options.mutant,
            step: 0,
            injecting: true,
            excuses: [0; FUNCTIONS.len()],
            pasids,
            next_cookie: 1,
            submitted: 0,
            completed: 0,
            dropped: 0,
            next_token: 1,
            next_process: 1,
            kernel_frames: Vec::new(),
            levels,
            page_request_pending: false,
            nap_until: 0,
        };
        world.set_up();
        world
    }

    /// The driver probes its functions, and processes start.
    fn set_up(&mut self) {
        let mut own = PageTables::new(Arc::clone(&self.ram), &mut self.frames, self.levels);
        for n in 0..2 * FUNCTIONS.len() * QUEUES {
            let frame = self.frames.allocate();
            own.map(&mut self.frames, RINGS + n as u64 * FRAME, frame, 12, true);
            self.kernel_frames.push(frame);
        }
        let to = FirstStage { root: own.root(), levels: own.levels(), domain_id: KERNEL_DOMAIN };
        for (f, bdf) in FUNCTIONS.into_iter().enumerate() {
            let none = Pasid::from_low_bits(0);
            self.device_tables.set_pasid(&mut self.frames, bdf, none, to);
            self.functions[f].bring_up();
            for q in 0..KERNEL_QUEUES {
                self.enable_kernel_queue(f, q);
            }
        }
        for p in 0..PROCESSES {
            let process = self.make_process();
            self.processes.push(process);
            self.bind(p);
        }
    }

    pub(crate) fn enable_kernel_queue(&mut self, f: usize, q: usize) {
        let at = RINGS + ((f * QUEUES + q) * 2) as u64 * FRAME;
        self.enable_queue(f, q, None, (at, at + FRAME));
    }

    /// Where the driver's own memory is.
    pub(crate) fn kernel_gpa(&self, address: u64) -> u64 {
        let page = usize::try_from((address - RINGS) / FRAME).expect("a few pages");
        self.kernel_frames[page] + address % FRAME
    }

    pub(crate) fn make_process(&mut self) -> Process {
        let ids = self.pasids.pop().expect("there are more PASIDs than processes");
        let tables = PageTables::new(Arc::clone(&self.ram), &mut self.frames, self.levels);
        let mut oracle = vec![0; PAGES * FRAME_BYTES];
        self.rng.fill(&mut oracle[DATA * FRAME_BYTES..]);
        let id = self.next_process;
        self.next_process += 1;
        let world = (Arc::clone(&self.ram), Arc::clone(&self.log));
        Process::new(id, ids, (tables, FUNCTIONS.len()), oracle, world)
    }

    /// Binds a new process to every function, and gives it a queue where one is free.
    pub(crate) fn bind(&mut self, p: usize) {
        let process = &self.processes[p];
        let tables = process.tables.as_ref().expect("a new process has tables");
        let to = FirstStage { root: tables.root(), levels: tables.levels(), domain_id: process.domain_id };
        self.log.event(format_args!("bind process {} to PASID {}", process.id, process.pasid));
        for (f, bdf) in FUNCTIONS.into_iter().enumerate() {
            let process = &mut self.processes[p];
            self.bus.start(bdf, process.pasid);
            self.device_tables.set_pasid(&mut self.frames, bdf, process.pasid, to);
            process.bound[f] = true;
            let function = &mut self.functions[f];
            let free = (KERNEL_QUEUES..QUEUES).find(|&q| function.queues[q].user.is_none() && !function.queues[q].on);
            if let Some(q) = free {
                let rings = (BASE + 2 * f as u64 * FRAME, BASE + (2 * f as u64 + 1) * FRAME);
                function.queues[q].user = Some(process.pasid);
                function.queues[q].rings = rings;
                if !function.resetting {
                    let pasid = self.processes[p].pasid;
                    self.enable_queue(f, q, Some(pasid), rings);
                }
            }
        }
    }

    fn live(&mut self) {
        self.phase(STEPS, |world| {
            world.inject();
            false
        });
        self.log.event(format_args!("healing"));
        self.injecting = false;
        // Only what will never be answered may be forgotten: an answer that is still to come would be taken for another group's.
        let settled =
            |world: &mut Self| world.bus.unanswered(None) == 0 && world.functions.iter().all(|f| !f.resetting);
        if !self.phase(BOUND, settled) {
            self.stuck("answering");
        }
        self.forget_lost_groups();
        if !self.phase(BOUND, Self::is_quiet) {
            self.stuck("healing");
        }
        self.verify();
        // Nothing is left of the faults: whatever comes now must succeed.
        self.excuses = [0; FUNCTIONS.len()];
        let until = self.next_cookie + 60;
        let done = self.phase(BOUND, |world| {
            if world.next_cookie < until {
                world.submit_work();
            }
            world.next_cookie >= until && world.is_quiet()
        });
        if !done {
            self.stuck("the work after healing");
        }
        self.verify();
        self.log.event(format_args!("end: {} submitted, {} dropped", self.submitted, self.dropped));
    }

    /// Steps until `end` says so, or a checker, or `most` are over (`false`).
    fn phase(&mut self, most: u64, mut end: impl FnMut(&mut Self) -> bool) -> bool {
        for _ in 0..most {
            if self.log.has_failed() || end(self) {
                return true;
            }
            self.turn();
        }
        false
    }

    /// One step: somebody's turn.
    fn turn(&mut self) {
        self.step += 1;
        self.log.set_tick(self.step);
        match self.rng.below(100) {
            0..50 => {
                let f = self.rng.index(self.functions.len());
                let engine = self.rng.index(self.functions[f].engines());
                let sleepy = self.rng.chance(500);
                self.functions[f].turn(engine, self.step * STEP_NS, sleepy);
            }
            50..80 => self.turn_of_task(),
            80..90 => {
                let (f, q) = (self.rng.index(self.functions.len()), self.rng.index(QUEUES));
                self.reap(f, q);
                self.watch_queue(f, q);
            }
            _ => self.interrupts(),
        }
    }

    fn turn_of_task(&mut self) {
        if self.tasks.is_empty() {
            return;
        }
        let n = self.rng.index(self.tasks.len());
        let mut task = self.tasks.swap_remove(n);
        if task.until > self.step || !self.poll(&mut task) {
            self.tasks.push(task);
        }
    }

    /// The kernel's interrupt handlers and threads.
    fn interrupts(&mut self) {
        let came = self.bus.take_interrupts();
        self.page_request_pending |= came & msi::PAGE_REQUEST != 0;
        if came & msi::FAULT != 0 {
            self.unit.check_faults();
        }
        if self.page_request_pending && self.step >= self.nap_until {
            if self.injecting && self.rng.chance(self.faults.overflow) {
                self.nap_until = self.step + self.rng.within(1, 400);
                return;
            }
            self.page_request_pending = false;
            for group in self.unit.take_page_requests() {
                self.answer_later(group);
            }
        }
        for (f, tokens) in self.memory_tokens.iter_mut().enumerate() {
            for token in self.functions[f].ports.take_released() {
                self.log.check(tokens.remove(&token), || format!("memory change {token} of {f} is over twice"));
            }
        }
    }

    /// Faults and changes of this step.
    fn inject(&mut self) {
        if self.rng.chance(120) {
            self.submit_work();
        }
        let p = self.rng.index(PROCESSES);
        let f = self.rng.index(self.functions.len());
        let faults = self.faults;
        let mut happens = |rate| self.rng.chance(rate);
        let (evict, migrate, protect, unmap) =
            (happens(faults.evict), happens(faults.migrate), happens(faults.protect), happens(faults.unmap));
        // These end much at once: a tenth of their rate is plenty.
        let rare = |happened: bool, rng: &mut Rng| happened && rng.chance(300);
        let (memory, disable) = (happens(faults.memory_change), happens(faults.disable));
        let (reset, unbind, exit) = (happens(faults.reset), happens(faults.unbind), happens(faults.exit));
        let (reset, unbind, exit) =
            (rare(reset, &mut self.rng), rare(unbind, &mut self.rng), rare(exit, &mut self.rng));
        if evict {
            self.evict(p);
        }
        if migrate {
            self.migrate(p);
        }
        if protect {
            self.protect(p);
        }
        if unmap {
            self.unmap(p);
        }
        if memory {
            self.change_memory(f);
        }
        if disable {
            let q = self.rng.index(QUEUES);
            self.restart_queue(f, q);
        }
        if reset {
            self.reset_function(f);
        }
        if unbind || exit {
            self.tear_down(p, exit);
        }
    }

    fn change_memory(&mut self, f: usize) {
        let token = self.next_token;
        self.next_token += 1;
        let ack = self.functions[f].shared().memory_changed(token);
        self.log.event(format_args!("memory change {token} of {f}: {ack:?}"));
        if ack == InvalidateAck::Pending {
            self.memory_tokens[f].insert(token);
        }
    }

    /// What was lost for good is forgotten on both sides, as a kernel does that gives up on a function's page
    /// requests.
    fn forget_lost_groups(&mut self) {
        for function in &mut self.functions {
            if function.resetting {
                continue;
            }
            self.bus.forget_groups(function.bdf);
            function.restart_page_requests(true);
        }
        // Whoever waited for an answer is told *failure*.
        self.excuse(crate::flight::excuse::FAILED | crate::flight::excuse::DROPPED, |_| true);
    }

    fn is_quiet(&mut self) -> bool {
        self.flights.is_empty()
            && self.tasks.is_empty()
            && self.bus.unanswered(None) == 0
            && self.bus.outstanding_invalidations() == 0
            && self.unit.is_idle()
            && self.unit.no_page_requests()
            && self.memory_tokens.iter().all(BTreeSet::is_empty)
    }

    fn stuck(&mut self, phase: &str) {
        if self.log.has_failed() {
            return;
        }
        let flights: Vec<_> = self.flights.keys().take(8).collect();
        let tasks: Vec<_> = self.tasks.iter().take(8).collect();
        let what = format!(
            "{phase} does not end: flights {flights:?}, tasks {tasks:?}, {} groups, {} invalidations, memory {:?}, queues idle: {} {}",
            self.bus.unanswered(None),
            self.bus.outstanding_invalidations(),
            self.memory_tokens,
            self.unit.is_idle(),
            self.unit.no_page_requests(),
        );
        self.log.fail(Failure::Liveness(what));
    }

    /// With nothing under way: memory is what it must be, and nobody wrote where nothing is mapped.
    fn verify(&mut self) {
        if self.log.has_failed() {
            return;
        }
        self.frames.verify_all();
        for process in self.processes.iter_mut().filter(|p| p.life == Life::Alive) {
            for page in 0..PAGES {
                process.thaw(page);
                let want = &process.oracle[page * FRAME_BYTES..][..FRAME_BYTES];
                let same = page < DATA || process.contents(page)[..] == *want;
                self.log.check(same, || format!("page {page} of process {} is not what it must be", process.id));
            }
            let idle = process.pages.iter().all(|page| page.readers == 0 && page.writers == 0 && !page.busy);
            assert!(idle, "the world's own books are in order");
        }
        for function in &self.functions {
            let c = function.shared().counters();
            let answers = c.responses_success + c.responses_invalid + c.responses_failure;
            self.log.check(answers <= c.groups, || format!("{answers} answers for {} groups", c.groups));
        }
        self.log.event(format_args!("verified"));
    }

    /// The first free page among those that descriptors work on, and rings and lists too.
    pub(crate) fn any_page(&mut self) -> usize {
        if self.rng.chance(200) { self.rng.index(LIST_PAGE + 1) } else { DATA + self.rng.index(PAGES - DATA) }
    }
}

fn settings(rng: &mut Rng, bdf: Bdf, log: &Log) -> (FunctionSettings, u32) {
    let mut settings = FunctionSettings::new(bdf);
    (settings.queues, settings.vectors) = (4, 4);
    settings.engines = rng.pick(&[1, 2]);
    settings.jobs_per_queue = rng.pick(&[1, 4, 64]);
    settings.list_jobs_per_queue = rng.pick(&[1, 4]);
    settings.tlb_entries = rng.pick(&[4, 64, 1024]);
    settings.group_pages = rng.pick(&[1, 3, 8, 32]);
    settings.page_request_timeout_ns = PATIENCE_STEPS * STEP_NS;
    let allocation = rng.pick(&[1, 8, 64, 512]);
    log.event(format_args!("{settings:?} allocation {allocation}"));
    (settings, allocation)
}
