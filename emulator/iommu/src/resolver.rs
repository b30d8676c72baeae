//! What it takes to resolve a request, borrowed from the unit.
use svadev_memory::GuestMemory;
use svadev_spec::vtd::registers::RootTableAddress;

use crate::cache::{Clock, Iotlb};
use crate::config::Caching;
use crate::context::EntryCaches;
use crate::counters::Counters;
use crate::observe::Observing;
use crate::walk::Limits;
use crate::{Unit, UnitConfig};

/// The parts of a unit that find the address space of a request (§3.4), and those that look up addresses in it.
pub(crate) struct Resolver<'a, M: GuestMemory + 'a> {
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
    pub(crate) iotlb: &'a mut Iotlb,
    pub(crate) observer: Observing<'a>,
}

impl<M: GuestMemory> Walker<'_, M> {
    /// Whether anything is remembered at all.
    pub(crate) fn caches(&self) -> bool {
        self.config.caching != Caching::None
    }
}

/// The walker of a unit, as an expression: a method could not leave the unit's other fields to its caller.
macro_rules! walker {
    ($unit:expr) => {
        $crate::resolver::Walker::<M> {
            memory: $unit.memory.view(&mut $unit.kept),
            limits: $unit.limits,
            config: &$unit.config,
            counters: &mut $unit.counters,
            clock: &mut $unit.clock,
            iotlb: &mut $unit.iotlb,
            observer: $crate::unit::observing(&mut $unit.audit),
        }
    };
}
pub(crate) use walker;

impl<M: GuestMemory> Unit<M> {
    pub(crate) fn resolver(&mut self) -> Resolver<'_, M> {
        Resolver { root: self.root, entries: &mut self.entries, walker: walker!(self) }
    }
}
