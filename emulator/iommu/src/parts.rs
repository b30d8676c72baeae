//! The parts of a unit that serve a request, borrowed from it.
use svadev_memory::GuestMemory;
use svadev_spec::vtd::registers::RootTableAddress;

use crate::cache::{Clock, TranslationCaches};
use crate::config::Caching;
use crate::config::Limits;
use crate::config::UnitConfig;
use crate::counters::Counters;
use crate::entry_cache::EntryCaches;
use crate::observe::Observing;
use crate::unit::Unit;

/// The parts of a unit that find the address space of a request (§3.4), and those that look up addresses in it.
pub(crate) struct Admission<'a, M: GuestMemory + 'a> {
    pub(crate) root: RootTableAddress,
    pub(crate) entries: &'a mut EntryCaches,
    pub(crate) walker: Walker<'a, M>,
}

/// The parts of a unit that look up addresses in an address space. They see memory as it was at the beginning: one view for all the
/// structures on the way, so that no change of the memory map falls between them.
pub(crate) struct Walker<'a, M: GuestMemory + 'a> {
    pub(crate) memory: M::View<'a>,
    pub(crate) limits: Limits,
    pub(crate) config: &'a UnitConfig,
    pub(crate) counters: &'a mut Counters,
    pub(crate) clock: &'a mut Clock,
    pub(crate) caches: &'a mut TranslationCaches,
    pub(crate) observer: Observing<'a>,
}

impl<M: GuestMemory> Walker<'_, M> {
    /// Whether anything is remembered at all.
    pub(crate) fn caching(&self) -> bool {
        self.config.caching != Caching::None
    }
}

/// The walker of a unit. A macro, not a method: it borrows only the fields listed, so that the caller can still use
/// the others.
macro_rules! walker {
    ($unit:expr) => {
        $crate::parts::Walker::<M> {
            memory: $unit.memory.view(&mut $unit.kept),
            limits: $unit.limits,
            config: &$unit.config,
            counters: &mut $unit.counters,
            clock: &mut $unit.clock,
            caches: &mut $unit.caches,
            observer: $crate::unit::observing(&mut $unit.audit),
        }
    };
}
pub(crate) use walker;

impl<M: GuestMemory> Unit<M> {
    pub(crate) fn admission(&mut self) -> Admission<'_, M> {
        Admission { root: self.root, entries: &mut self.entries, walker: walker!(self) }
    }
}
