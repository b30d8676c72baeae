//! Page-table walks: first-stage, second-stage, and one inside the other.
//!
//! Read `first_stage` first: a walk is one loop over [`Tables`], which reads entries and sets accessed and dirty. It
//! ends in a [`Leaf`], in a [`WalkFault`], or with a lost race, and then begins again. `memory` says where the entries
//! are, `structures` lets a walk begin further down. Neither changes a rule of the walk.
mod fault;
mod first_stage;
mod memory;
mod second_stage;
mod structures;

pub(crate) use fault::{EntryAt, Stage, WalkEnd, WalkFault};
pub(crate) use memory::{Direct, InMemory, ThroughSecondStage};
pub(crate) use structures::StructureAccess;

use svadev_spec::vtd::tables::Level;

use crate::cache::{Leaf, PartialWalk};

/// Attempts that lose a race for an accessed or dirty bit before the walk is given up (SFS.10, SSS.6). A guest that
/// changes an entry for ever must not hold the unit for ever.
const MAX_WALKS: u32 = 16;

/// What a walk is for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Want {
    /// The right to read must be there, else the walk ends in a fault. A translation request demands no right: it takes
    /// what it gets.
    pub(crate) read: bool,
    /// As `read`, for writes.
    pub(crate) write: bool,
    /// Execute request.
    pub(crate) execute: bool,
    /// The right to execute must be there if `execute` asks for it.
    pub(crate) execute_demanded: bool,
    /// Supervisor request.
    pub(crate) privileged: bool,
    /// The requester may write later: dirty must be set if writes are allowed. False for reads, and with *No Write*.
    pub(crate) dirty: bool,
}

/// Where a walk begins: the level of a table, and what is known of the way to it.
pub(crate) type Start = (Level, PartialWalk);

/// How a walk reaches the entries.
pub(crate) trait Tables {
    /// Reads the entry at `address`, which is in a table at `level`.
    fn load(&mut self, address: u64, level: Level) -> Result<u64, WalkFault>;

    /// Replaces the entry at `address`, if it is still `old`.
    fn exchange(&mut self, address: u64, level: Level, old: u64, new: u64) -> Result<(), WalkEnd>;

    /// The lowest table on the way to `address` that is known without a load (§6.2.5).
    fn lowest_structure(&self, _address: u64, _top: Level) -> Option<Start> {
        None
    }

    /// Keeps what a walk to `address` knows after the entry at `level`: the next table, and the rights so far.
    fn keep_structure(&mut self, _address: u64, _level: Level, _partial: PartialWalk) {}

    /// Whether a fault of a walk that began at a cached entry is looked for again from the root before it is reported.
    fn doubts_structures(&self) -> bool {
        true
    }
}

/// Walks from the deepest cached table first. If that walk loses a race for an A or D bit, or finds a fault that
/// cached entries may have caused, walks again from the `top`, a bounded number of times.
#[inline]
fn from_the_lowest<T: Tables>(
    tables: &mut T,
    stage: Stage,
    address: u64,
    top: Start,
    mut walk: impl FnMut(&mut T, Start) -> Result<Leaf, WalkEnd>,
) -> Result<Leaf, WalkFault> {
    let cached = tables.lowest_structure(address, top.0);
    let mut doubted = cached.is_some() && tables.doubts_structures();
    let mut start = cached.unwrap_or(top);
    for _ in 0..MAX_WALKS + u32::from(cached.is_some()) {
        match walk(tables, start) {
            Ok(leaf) => return Ok(leaf),
            Err(WalkEnd::Fault(fault)) if !doubted => return Err(fault),
            Err(WalkEnd::Fault(_) | WalkEnd::LostRace) => {}
        }
        (start, doubted) = (top, false);
    }
    Err(WalkFault::NotUpdated(stage))
}

/// Whether an entry with PS at `level` has a reserved bit: PS itself where there are no large pages, or a bit of
/// `frame` inside the page. `largest` is the highest level that has large pages.
#[inline]
fn large_page_reserved(frame: u64, level: Level, largest: Level) -> bool {
    let inside = (1 << (level.covers_log2() - 12)) - 1;
    // At level 1 the bit is not PS: it is PAT, or ignored.
    level > Level::ONE && (!level.has_large_pages(largest) || frame & inside != 0)
}
