//! What the kernel does step by step, with other things happening in between: each task is a script whose steps may
//! have to wait.
use svadev_fabric::ResponseCode;
use svadev_spec::vtd::tables::FirstStageEntry;

use crate::frames::FRAME;
use crate::process::{PAGES, Process};
use crate::tables::PageTables;
use crate::unit_driver::{Group, Waiting};

/// A task.
#[derive(Debug)]
pub(crate) struct Task {
    /// It sleeps until then.
    pub(crate) until: u64,
    /// When it last had a turn.
    pub(crate) turned: u64,
    pub(crate) stage: u8,
    pub(crate) waiting: Option<Waiting>,
    pub(crate) kind: Kind,
}

/// A change of mappings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
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
    pub(crate) const fn name(self) -> &'static str {
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
pub(crate) struct Remap {
    pub(crate) p: usize,
    pub(crate) change: Change,
    pub(crate) page: usize,
    pub(crate) order: u8,
    /// The pages it took, and their entries as they were; of a large page, the first.
    pub(crate) taken: Vec<(usize, FirstStageEntry)>,
    /// A large frame to move to.
    pub(crate) frame: Option<u64>,
    /// Tables that a large page takes the place of.
    pub(crate) tables: Option<PageTables>,
}

impl Remap {
    pub(crate) fn new(p: usize, change: Change, page: usize, order: u8) -> Self {
        Self { p, change, page, order, taken: Vec::new(), frame: None, tables: None }
    }

    /// Address of the first of its pages; not all of them are the process's.
    pub(crate) fn start(&self) -> u64 {
        let shift = 12 + self.order;
        Process::address(self.page) >> shift << shift
    }

    /// Those of its pages that are.
    pub(crate) fn pages(&self) -> impl Iterator<Item = usize> + use<> {
        let range = self.start()..self.start() + (FRAME << self.order);
        (0..PAGES).filter(move |&page| range.contains(&Process::address(page)))
    }
}

/// The kinds of tasks.
#[derive(Debug)]
pub(crate) enum Kind {
    /// Change mappings.
    Map(Remap),
    /// Answer a page request group.
    Answer { f: usize, group: Group, forced: Option<ResponseCode>, twice: bool },
    /// End a process, before (`exit`) or after the driver aborted it; now at function `f`.
    TearDown { p: usize, exit: bool, f: usize, resets: u64 },
    /// Reset a function, and whether that was begun.
    Reset { f: usize, begun: bool },
    /// Unmask the vector of a queue.
    Unmask { f: usize, q: usize },
    /// Disable a queue and enable it again.
    Restart { f: usize, q: usize },
    /// Enable page requests again, after a *failure*.
    Revive { f: usize },
}

impl Task {
    pub(crate) fn new(kind: Kind) -> Self {
        Self { until: 0, turned: 0, stage: 0, waiting: None, kind }
    }
}
