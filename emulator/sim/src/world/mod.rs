//! The world: kernel, processes, functions and unit in one thread, on virtual time.
//!
//! A run has three phases. *Faults*: random work, random changes, and the faults that this seed has. *Healing*: no new
//! work and no new faults; within a bound, every queue must be empty. *After*: new work, which must all succeed.
mod answer;
mod build;
mod function;
mod hand_over;
mod inject;
mod judge;
mod large;
mod map;
mod tasks;
mod tear_down;
mod work;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use svadev_fabric::{Bdf, Pasid};
use svadev_host::{Bus, MachineConfig};
use svadev_iommu::Caching;
use svadev_memory::Ram;

use crate::checker::{Checker, Failure};
use crate::coverage::{Coverage, Group};
use crate::faults::Faults;
use crate::flight::Flight;
use crate::frames::Frames;
use crate::functions::Accelerator;
use crate::log::{Log, Sink};
use crate::mutant::Mutant;
use crate::platform::Simulated;
use crate::process::Process;
use crate::queues::QUEUES;
use crate::rng::Rng;
use crate::tables::DeviceTables;
use crate::task::Task;
use crate::unit_driver::UnitDriver;
use crate::vmm::msi;
use crate::watch::give_up;

/// Memory whose frames are of 4 KiB, and that the driver's own DMA reaches.
const RAM_BYTES: u64 = 32 << 20;
/// Frames of 2 MiB, then of 1 GiB, lie after it: as many as there are processes, and one to move to. They are sparse.
const LARGE_FRAMES: [(u8, u64); 2] = [(21, RAM_BYTES), (30, 1 << 30)];
const MEMORY_BYTES: u64 = 5 << 30;
/// Requester IDs; one in each half of its bus's context tables.
const FUNCTIONS: [Bdf; 2] = [Bdf(0x0010), Bdf(0x00a1)];
/// Requester ID of the function that carries the unit.
const IOMMU: Bdf = Bdf(0x0008);
const PROCESSES: usize = 3;
/// Where the driver's rings are for its own DMA.
const RINGS: u64 = 0x10_0000;
/// Where second-stage tables map memory, all of it, so that nobody takes an address of one stage for one of the next.
const SECOND_STAGE: u64 = 1 << 30;
/// Domain of the driver's own DMA.
const KERNEL_DOMAIN: u16 = 1;
/// Steps of the first phase.
const STEPS: u64 = 4000;
/// Most steps of healing, and of what comes after it.
const BOUND: u64 = 60_000;
const STEP_NS: u64 = 1000;
/// Page requests time out after so many steps.
pub(crate) const PATIENCE_STEPS: u64 = 3000;

/// What to run.
#[derive(Default)]
pub struct Options {
    /// A planted bug.
    pub mutant: Option<Mutant>,
    /// What the unit remembers; `None` leaves it to the seed.
    pub caching: Option<Caching>,
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
    /// What happened, and how often.
    pub coverage: Coverage,
}

/// One simulated system: kernel, processes, functions and unit in one thread, on virtual time.
pub struct World {
    pub(crate) rng: Rng,
    pub(crate) log: Arc<Log>,
    pub(crate) bus: Arc<Bus<Simulated>>,
    pub(crate) ram: Arc<Ram>,
    pub(crate) frames: Frames,
    pub(crate) unit: UnitDriver,
    pub(crate) device_tables: DeviceTables,
    machine_config: MachineConfig,
    pub(crate) functions: Vec<Accelerator>,
    pub(crate) processes: Vec<Process>,
    pub(crate) flights: BTreeMap<u64, Flight>,
    pub(crate) tasks: Vec<Task>,
    pub(crate) faults: Faults,
    pub(crate) mutant: Option<Mutant>,
    pub(crate) step: u64,
    /// Faults may happen.
    pub(crate) injecting: bool,
    /// Free PASIDs, with their domains: the last one freed is the next one used.
    pub(crate) pasids: Vec<(Pasid, u16)>,
    pub(crate) next_cookie: u64,
    pub(crate) submitted: u64,
    pub(crate) completed: u64,
    pub(crate) dropped: u64,
    /// Memory changes that are not over.
    pub(crate) memory_tokens: Vec<BTreeSet<u64>>,
    next_token: u64,
    next_process: u64,
    /// PASIDs whose tables went while their work was under way, and faults of that are recorded.
    pub(crate) may_fault: BTreeSet<Pasid>,
    kernel_frames: Vec<u64>,
    /// Their addresses for the driver's own DMA.
    kernel_rings: Vec<u64>,
    levels: u8,
    /// Root of the second stage that processes' tables are in front of, if there is one.
    process_second: Option<u64>,
    page_request_pending: bool,
    /// When the page request queue overflowed last, as far as the kernel knows.
    pub(crate) last_overflow: u64,
    nap_until: u64,
    /// The page request thread has just slept, and takes what there is.
    napped: bool,
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
        groups: world.bus.tap().groups_sent(),
        coverage: world.coverage(),
    }
}

impl World {
    /// What happened, with what the unit itself counted.
    fn coverage(&self) -> Coverage {
        let unit = self.bus.unit_counters();
        self.log.add(Group::Path, "invalidation wait parked", unit.waits_parked);
        self.log.add(Group::Path, "group answered by the unit", unit.automatic_responses);
        self.log.add(Group::Path, "interrupt of the unit", unit.interrupts);
        self.log.coverage()
    }

    fn outstanding_invalidations(&self) -> usize {
        self.bus.inside(|unit, _| unit.outstanding_invalidations().count())
    }

    fn live(&mut self) {
        self.phase(STEPS, |world| {
            world.inject();
            false
        });
        self.log.event(format_args!("healing"));
        self.injecting = false;
        self.bus.tap().lose_invalidations(None);
        // Only what will never be answered may be forgotten: an answer that is still to come would be taken for another
        // group's.
        let settled =
            |world: &mut Self| world.bus.tap().unanswered(None) == 0 && world.functions.iter().all(|f| !f.resetting);
        let ended = self.phase(BOUND, settled);
        self.expect_end(ended, "answering");
        self.forget_lost_groups();
        let ended = self.phase(BOUND, Self::is_quiet);
        self.expect_end(ended, "healing");
        self.verify();
        // Nothing is left of the faults: whatever comes now must succeed.
        let until = self.next_cookie + 60;
        let done = self.phase(BOUND, |world| {
            if world.next_cookie < until {
                world.submit_work();
            }
            world.next_cookie >= until && world.is_quiet()
        });
        self.expect_end(done, "the work after healing");
        self.verify();
        if !self.log.has_failed() {
            let way = self.rng.below(3);
            self.unit.end(way);
        }
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
        give_up(&self.bus);
        match self.rng.below(100) {
            0..50 => {
                let f = self.rng.index(self.functions.len());
                let engine = self.rng.index(self.functions[f].engines());
                let sleepy = self.rng.chance(500);
                self.functions[f].turn(engine, self.step * STEP_NS, sleepy);
                self.reset_again(f);
            }
            50..80 => self.turn_of_task(),
            80..90 => {
                let (f, q) = (self.rng.index(self.functions.len()), self.rng.index(QUEUES));
                if self.functions[f].is_reaped(q) {
                    self.reap(f, q);
                }
                self.watch_queue(f, q);
            }
            _ => self.interrupts(),
        }
    }

    /// The kernel's threads. The more of them there are, the more get a turn, and every other turn is of who has waited
    /// longest: a kernel that is slower than the function's patience proves nothing (seeds 911088485 and 2927).
    fn turn_of_task(&mut self) {
        for turn in 0..=self.tasks.len() / 16 {
            if self.tasks.is_empty() {
                return;
            }
            let due = |task: &Task| task.until <= self.step;
            let longest =
                self.tasks.iter().enumerate().filter(|(_, task)| due(task)).min_by_key(|(_, task)| task.turned);
            let n = match longest {
                Some((n, _)) if turn % 2 == 1 => n,
                _ => self.rng.index(self.tasks.len()),
            };
            let mut task = self.tasks.swap_remove(n);
            task.turned = self.step;
            if task.until > self.step || !self.poll(&mut task) {
                self.tasks.push(task);
            }
        }
    }

    pub(crate) fn take_page_requests(&mut self) {
        for group in self.unit.take_page_requests() {
            self.answer_later(group);
        }
        if std::mem::take(&mut self.unit.overflowed) {
            self.last_overflow = self.step;
        }
    }

    /// The kernel's interrupt handlers and threads.
    fn interrupts(&mut self) {
        let came = self.functions.iter_mut().fold(0, |came, f| came | f.vmm.take_unit_interrupts());
        self.page_request_pending |= came & msi::PAGE_REQUEST != 0;
        if came & msi::FAULT != 0 {
            self.judge_faults();
        }
        if self.page_request_pending && self.step >= self.nap_until {
            if self.injecting && !std::mem::take(&mut self.napped) && self.rng.chance(self.faults.overflow) {
                self.napped = true;
                self.nap_until = self.step + self.rng.within(1, 1500);
                self.log.count(Group::Fault, "overflow");
                return;
            }
            self.page_request_pending = false;
            self.take_page_requests();
        }
        for (f, tokens) in self.memory_tokens.iter_mut().enumerate() {
            for token in self.functions[f].vmm.take_released() {
                self.log.check(Checker::ResetAndRelease, tokens.remove(&token), || {
                    format!("memory change {token} of {f} is over twice")
                });
            }
        }
    }
}
