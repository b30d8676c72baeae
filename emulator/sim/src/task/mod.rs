//! What the kernel does step by step, with other things happening in between: each task is a script whose steps may have to wait.
mod answer;
mod function;
mod large;
mod map;
mod tear_down;

use svadev_fabric::ResponseCode;
use svadev_spec::vtd::tables::FirstStageEntry;

use crate::frames::FRAME;
use crate::mutant::Mutant;
use crate::process::{PAGES, Process};
use crate::tables::PageTables;
use crate::unit_driver::{Descriptor, Group, Waiting, device_tlb_pages, iotlb_pages};
use crate::world::World;

/// Changes of so many pages or more are of a large one.
const LARGE_ORDER: u8 = 9;

/// A task.
#[derive(Debug)]
pub(crate) struct Task {
    /// It sleeps until then.
    pub(crate) until: u64,
    /// When it last had a turn.
    pub(crate) turned: u64,
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
    /// Small pages become a large one.
    Collapse,
    /// A large page becomes small ones.
    Split,
}

impl Change {
    /// The fault that it is, as it is counted.
    const fn name(self) -> &'static str {
        match self {
            Self::Evict => "evict",
            Self::Migrate => "migrate",
            Self::Protect => "protect",
            Self::Unmap => "unmap",
            Self::Collapse => "collapse",
            Self::Split => "split",
        }
    }
}

/// A change of the mappings of `1 << order` pages, with `page` among them.
#[derive(Debug)]
struct Remap {
    p: usize,
    change: Change,
    page: usize,
    order: u8,
    /// The pages it took, and their entries as they were; of a large page, the first.
    taken: Vec<(usize, FirstStageEntry)>,
    /// A large frame to move to.
    frame: Option<u64>,
    /// Tables that a large page takes the place of.
    tables: Option<PageTables>,
}

impl Remap {
    fn new(p: usize, change: Change, page: usize, order: u8) -> Self {
        Self { p, change, page, order, taken: Vec::new(), frame: None, tables: None }
    }

    /// Address of the first of its pages; not all of them are the process's.
    fn start(&self) -> u64 {
        let shift = 12 + self.order;
        Process::address(self.page) >> shift << shift
    }

    /// Those of its pages that are.
    fn pages(&self) -> impl Iterator<Item = usize> + use<> {
        let range = self.start()..self.start() + (FRAME << self.order);
        (0..PAGES).filter(move |&page| range.contains(&Process::address(page)))
    }
}

#[derive(Debug)]
enum Kind {
    /// Change mappings.
    Map(Remap),
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
        Self { until: 0, turned: 0, stage: 0, waiting: None, kind }
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
            Kind::Map(_) => self.poll_map(task),
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

    /// The invalidations for a change: of the unit once, of each function's device TLB.
    fn invalidations(&self, remap: &Remap) -> Vec<Descriptor> {
        let process = &self.processes[remap.p];
        let small = self.mutant == Some(Mutant::SmallInvalidation) && remap.order >= LARGE_ORDER;
        let (address, order) = (remap.start(), if small { 0 } else { remap.order });
        let bound = (0..self.functions.len()).filter(|&f| process.bound[f]);
        let mut all: Vec<_> =
            bound.map(|f| device_tlb_pages(self.functions[f].bdf, process.pasid, address, order)).collect();
        if !all.is_empty() && self.mutant != Some(Mutant::SkipIotlb) {
            // The hint is that no table but the last was changed.
            let hint = self.mutant == Some(Mutant::LeafOnly) && remap.change == Change::Collapse;
            all.insert(0, iotlb_pages(process.domain_id, process.pasid, (address, order), hint));
        }
        all
    }
}
