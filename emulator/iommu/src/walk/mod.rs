//! Page table walks: first-stage, second-stage, and one inside the other.
//!
//! A walk is one function over [`Tables`], which reads entries and sets bits in them. What the tables lie in, guest-physical
//! memory or the second stage's input, is the implementation's business; so a faster way to read, or a start further down from a
//! paging-structure cache, changes no rule.
mod first_stage;
mod second_stage;

pub(crate) use second_stage::in_legacy_mode;

use svadev_memory::{GuestAddress, GuestMemory};
use svadev_mutation::mutant;
use svadev_spec::vtd::FaultReason;
use svadev_spec::vtd::tables::Level;

use crate::address_space::SecondStage;
use crate::cache::{Leaf, PartialWalk, StructureTag, TranslationCaches};
use crate::config::Limits;
use crate::observe::{CacheSlot, CachedEntry, Observing};

/// Walks that lose every race for an accessed or dirty bit are given up after this many (SFS.10, SSS.6): a guest that
/// changes an entry for ever must not hold the unit for ever.
const MAX_WALKS: u32 = 16;

/// What a walk is for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Want {
    /// Rights that must be there, else the walk ends in a fault. A translation request demands none: it takes what it gets.
    pub(crate) read: bool,
    /// As `read`.
    pub(crate) write: bool,
    /// Execute request.
    pub(crate) execute: bool,
    /// The right to execute must be there if `execute` asks for it.
    pub(crate) execute_demanded: bool,
    /// Supervisor request.
    pub(crate) privileged: bool,
    /// If writes are allowed, the requester may make some: dirty must be set. False for reads, and with *No Write*.
    pub(crate) dirty: bool,
}

/// Another agent changed the entry between our read and our write.
pub(crate) struct Lost;

/// How a walker reaches the entries.
pub(crate) trait Tables {
    /// Reads the entry at `address`. `top` says that it is in the first table: the faults have codes of their own.
    fn load(&mut self, address: u64, top: bool) -> Result<u64, FaultReason>;

    /// Replaces the entry at `address`, if it is still `old`.
    fn exchange(&mut self, address: u64, old: u64, new: u64) -> Result<Result<(), Lost>, FaultReason>;

    /// The lowest table on the way to `address` that is known without a load, and its level (§6.2.5).
    fn lowest_structure(&self, _address: u64, _top: Level) -> Option<(Level, PartialWalk)> {
        None
    }

    /// Keeps what a walk to `address` knows after the entry at `level`: the next table, and the rights so far.
    fn keep_structure(&mut self, _address: u64, _level: Level, _shortcut: PartialWalk) {}

    /// Whether a fault of a walk that began at a cached entry is looked for again from the root before it is reported.
    fn doubts_structures(&self) -> bool {
        true
    }
}

/// The caches as the walks of one request share them.
pub(crate) struct WalkCaches<'a> {
    pub(crate) caches: &'a mut TranslationCaches,
    pub(crate) observer: Observing<'a>,
    /// A fault that a structure led to is not believed.
    pub(crate) doubted: bool,
}

/// The paging-structure cache entries of one address space, or none.
pub(crate) struct StructureAccess<'a, 'b> {
    pub(crate) caches: Option<&'a mut WalkCaches<'b>>,
    pub(crate) tag: StructureTag,
}

impl StructureAccess<'_, '_> {
    #[inline]
    fn get(&self, address: u64, top: Level) -> Option<(Level, PartialWalk)> {
        self.caches.as_ref()?.caches.lowest_structure(&self.tag, address, top)
    }

    #[inline]
    fn keep(&mut self, address: u64, level: Level, partial: PartialWalk) {
        if let Some(WalkCaches { caches, observer, .. }) = &mut self.caches {
            caches.keep_structure(&self.tag, address, level, partial);
            if let Some(observer) = observer {
                let slot = CacheSlot::Structure { tag: self.tag.cache_tag(), iova: address, level };
                observer.filled(slot, CachedEntry::Table(partial), self.tag.nested());
            }
        }
    }

    fn doubted(&self) -> bool {
        self.caches.as_ref().is_none_or(|caches| caches.doubted)
    }
}

/// Passes what a walker asks of its structures on to a field.
macro_rules! by_structures {
    () => {
        #[inline]
        fn lowest_structure(&self, address: u64, top: Level) -> Option<(Level, PartialWalk)> {
            self.structures.get(address, top)
        }

        #[inline]
        fn keep_structure(&mut self, address: u64, level: Level, partial: PartialWalk) {
            self.structures.keep(address, level, partial);
        }

        fn doubts_structures(&self) -> bool {
            self.structures.doubted()
        }
    };
}

/// First-stage tables at guest-physical addresses.
pub(crate) struct InMemory<'a, 'b, M> {
    pub(crate) memory: &'a M,
    pub(crate) structures: StructureAccess<'a, 'b>,
}

#[inline]
fn load<M: GuestMemory>(memory: &M, address: u64, fault: FaultReason) -> Result<u64, FaultReason> {
    memory.load_u64(GuestAddress(address)).map_err(|_| fault)
}

fn exchange<M: GuestMemory>(
    memory: &M,
    address: u64,
    old: u64,
    new: u64,
    fault: FaultReason,
) -> Result<Result<(), Lost>, FaultReason> {
    match memory.compare_exchange_u64(GuestAddress(address), old, new) {
        Ok(result) => Ok(result.map(|_| ()).map_err(|_| Lost)),
        Err(_) => Err(fault),
    }
}

impl<M: GuestMemory> Tables for InMemory<'_, '_, M> {
    #[inline]
    fn load(&mut self, address: u64, top: bool) -> Result<u64, FaultReason> {
        load(self.memory, address, if top { FaultReason::FirstStagePointer } else { FaultReason::FirstStageAccess })
    }

    fn exchange(&mut self, address: u64, old: u64, new: u64) -> Result<Result<(), Lost>, FaultReason> {
        exchange(self.memory, address, old, new, FaultReason::FirstStageUpdateFailed)
    }

    by_structures!();
}

/// Second-stage tables. They always lie at guest-physical addresses (what the guest's own stage calls host-physical).
pub(crate) struct SecondStageTables<'a, 'b, M> {
    pub(crate) memory: &'a M,
    pub(crate) structures: StructureAccess<'a, 'b>,
}

impl<M: GuestMemory> Tables for SecondStageTables<'_, '_, M> {
    #[inline]
    fn load(&mut self, address: u64, top: bool) -> Result<u64, FaultReason> {
        load(self.memory, address, if top { FaultReason::SecondStagePointer } else { FaultReason::SecondStageAccess })
    }

    fn exchange(&mut self, address: u64, old: u64, new: u64) -> Result<Result<(), Lost>, FaultReason> {
        exchange(self.memory, address, old, new, FaultReason::SecondStageUpdateFailed)
    }

    by_structures!();
}

/// First-stage tables whose addresses go through the second stage (nested translation, §3.8).
pub(crate) struct Nested<'a, 'b, M> {
    pub(crate) memory: &'a M,
    pub(crate) second: SecondStage,
    /// Of `second`.
    pub(crate) second_tag: StructureTag,
    pub(crate) limits: Limits,
    pub(crate) structures: StructureAccess<'a, 'b>,
}

impl<M: GuestMemory> Nested<'_, '_, M> {
    fn translate(&mut self, address: u64, write: bool, top: bool) -> Result<u64, FaultReason> {
        if mutant!(NestedTablesUntranslated) {
            return Ok(address);
        }
        let want = Want { read: true, write, execute: false, execute_demanded: false, privileged: false, dirty: write };
        let structures = StructureAccess { caches: self.structures.caches.as_deref_mut(), tag: self.second_tag };
        let mut tables = SecondStageTables { memory: self.memory, structures };
        let leaf = self.second.walk(&mut tables, self.limits, address, want).map_err(|e| match e {
            FaultReason::AddressTooWide => FaultReason::NestedEntryAddressTooWide,
            FaultReason::NoRead if top => FaultReason::NestedTopEntryNoRead,
            FaultReason::NoRead => FaultReason::NestedEntryNoRead,
            FaultReason::NoWrite => FaultReason::NestedEntryNoWrite,
            other => other,
        })?;
        Ok(leaf.at(address))
    }
}

impl<M: GuestMemory> Tables for Nested<'_, '_, M> {
    fn load(&mut self, address: u64, top: bool) -> Result<u64, FaultReason> {
        let fault = if top { FaultReason::FirstStagePointer } else { FaultReason::FirstStageAccess };
        load(self.memory, self.translate(address, false, top)?, fault)
    }

    fn exchange(&mut self, address: u64, old: u64, new: u64) -> Result<Result<(), Lost>, FaultReason> {
        exchange(self.memory, self.translate(address, true, false)?, old, new, FaultReason::FirstStageUpdateFailed)
    }

    by_structures!();
}

/// Where a walk is to begin: a level, and what led to the table there.
type Start = (Level, PartialWalk);

/// Walks from the deepest cached table first. If that walk loses a race for an A or D bit, or finds a fault that
/// cached entries may have caused, walks again from the root, a bounded number of times. `None`: every attempt lost
/// its race.
#[inline]
fn from_the_lowest<T: Tables>(
    tables: &mut T,
    address: u64,
    top: Start,
    mut walk: impl FnMut(&mut T, Start) -> Result<Result<Leaf, Lost>, FaultReason>,
) -> Option<Result<Leaf, FaultReason>> {
    let partial = tables.lowest_structure(address, top.0);
    let mut doubted = partial.is_some() && tables.doubts_structures();
    let mut start = partial.unwrap_or(top);
    for _ in 0..MAX_WALKS + u32::from(partial.is_some()) {
        match walk(tables, start) {
            Ok(Ok(leaf)) => return Some(Ok(leaf)),
            Err(fault) if !doubted => return Some(Err(fault)),
            Ok(Err(Lost)) | Err(_) => {}
        }
        (start, doubted) = (top, false);
    }
    None
}

/// Whether an entry with PS at `level` has a reserved bit: PS itself where there are no large pages, or a bit of
/// `frame` inside the page.
#[inline]
fn large_page_reserved(frame: u64, level: Level, limits: Limits) -> bool {
    let inside = (1 << (level.covers_log2() - 12)) - 1;
    // At level 1 the bit is not PS: it is PAT, or ignored.
    level > Level::ONE && (!level.has_large_pages(limits.pages_1gib) || frame & inside != 0)
}
