//! What it takes to resolve a request, borrowed from the unit.
use svadev_memory::GuestMemory;
use svadev_spec::vtd::registers::RootTableAddress;

use crate::audit::Auditor;
use crate::cache::{Clock, Iotlb};
use crate::config::Caching;
use crate::context::EntryCaches;
use crate::counters::Counters;
use crate::walk::Limits;
use crate::{Unit, UnitConfig};

/// The parts of a unit that serve one request. They see memory as it was at the beginning: one view for all the structures on the
/// way, so that no change of the memory map falls between them.
pub(crate) struct Resolver<'a, M: GuestMemory + 'a> {
    pub(crate) memory: M::View<'a>,
    pub(crate) root: RootTableAddress,
    pub(crate) limits: Limits,
    pub(crate) config: &'a UnitConfig,
    pub(crate) counters: &'a mut Counters,
    pub(crate) clock: &'a mut Clock,
    pub(crate) entries: &'a mut EntryCaches,
    pub(crate) iotlb: &'a mut Iotlb,
    pub(crate) audit: Option<&'a mut Auditor>,
}

impl<M: GuestMemory> Resolver<'_, M> {
    /// Whether anything is remembered at all.
    pub(crate) fn caches(&self) -> bool {
        self.config.caching != Caching::None
    }
}

impl<M: GuestMemory> Unit<M> {
    #[inline]
    pub(crate) fn resolver(&mut self) -> Resolver<'_, M> {
        Resolver {
            memory: self.memory.view(&mut self.kept),
            root: self.root,
            limits: self.limits,
            config: &self.config,
            counters: &mut self.counters,
            clock: &mut self.clock,
            entries: &mut self.entries,
            iotlb: &mut self.iotlb,
            audit: self.audit.as_deref_mut(),
        }
    }
}
