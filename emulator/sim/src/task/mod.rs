//! What the kernel does step by step, with other things happening in between: each task is a script whose steps may have to wait.
mod answer;
mod function;
mod map;
mod tear_down;

use svadev_fabric::ResponseCode;
use svadev_spec::vtd::tables::FirstStageEntry;

use crate::frames::FRAME;
use crate::mutant::Mutant;
use crate::process::{BASE, Process};
use crate::unit_driver::{Descriptor, Group, Waiting, device_tlb_pages, iotlb_pages};
use crate::world::World;

/// A task.
#[derive(Debug)]
pub(crate) struct Task {
    /// It sleeps until then.
    pub(crate) until: u64,
    stage: u8,
    waiting: Option<Waiting>,
    kind: Kind,
}

/// A change of mappings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    Evict,
    Migrate,
    Protect,
    Unmap,
}

impl Change {
    /// The fault that it is, as it is counted.
    const fn name(self) -> &'static str {
        match self {
            Self::Evict => "evict",
            Self::Migrate => "migrate",
            Self::Protect => "protect",
            Self::Unmap => "unmap",
        }
    }
}

#[derive(Debug)]
enum Kind {
    /// Change mappings of `1 << order` pages; entries as they were, for the pages it took.
    Map { p: usize, change: Change, first: usize, order: u8, taken: Vec<(usize, FirstStageEntry)> },
    /// Answer a page request group.
    Answer { f: usize, group: Group, forced: Option<ResponseCode>, twice: bool },
    /// End a process, before (`exit`) or after the driver aborted it; now at function `f`.
    TearDown { p: usize, exit: bool, f: usize, resets: u64 },
    /// Reset a function.
    Reset { f: usize, resets: u64 },
    /// Disable a queue and enable it again.
    Restart { f: usize, q: usize },
    /// Enable page requests again, after a *failure*.
    Revive { f: usize },
}

impl Task {
    fn new(kind: Kind) -> Self {
        Self { until: 0, stage: 0, waiting: None, kind }
    }
}

impl World {
    /// One step of a task; whether it is over.
    pub(crate) fn poll(&mut self, task: &mut Task) -> bool {
        if let Some(waiting) = &task.waiting {
            if !self.unit.is_done(waiting) {
                return false;
            }
            task.waiting = None;
            task.stage += 1;
        }
        match &mut task.kind {
            Kind::Map { .. } => self.poll_map(task),
            Kind::Answer { .. } => self.poll_answer(task),
            Kind::TearDown { .. } => self.poll_tear_down(task),
            &mut Kind::Reset { f, resets } => self.poll_reset(f, resets),
            &mut Kind::Restart { f, q } => self.poll_restart(f, q),
            &mut Kind::Revive { f } => {
                self.functions[f].failing -= 1;
                if !self.functions[f].resetting {
                    self.functions[f].restart_page_requests(false);
                }
                true
            }
        }
    }

    /// Submits and waits; the stage goes on when it is over. Tried again where there is no room.
    fn submit(&mut self, task: &mut Task, descriptors: &[Descriptor], drain: bool) {
        if self.mutant == Some(Mutant::BadDescriptor) && self.step % 16 == 7 {
            let damaged: Vec<_> = descriptors.iter().map(|&[low, high]| [low, high | 1 << 11]).collect();
            task.waiting = self.unit.submit(&damaged, drain);
            return;
        }
        task.waiting = self.unit.submit(descriptors, drain);
    }

    /// The invalidations for a range of a process: of the unit once, of each function's device TLB.
    fn invalidations(&self, p: usize, first: usize, order: u8) -> Vec<Descriptor> {
        let process = &self.processes[p];
        let address = Process::address(first);
        let bound = (0..self.functions.len()).filter(|&f| process.bound[f]);
        let mut all: Vec<_> =
            bound.map(|f| device_tlb_pages(self.functions[f].bdf, process.pasid, address, order)).collect();
        if !all.is_empty() && self.mutant != Some(Mutant::SkipIotlb) {
            all.insert(0, iotlb_pages(process.domain_id, process.pasid, address, order));
        }
        all
    }
}

const _: () = assert!(BASE.is_multiple_of(FRAME));
