//! What it takes to resolve a request, borrowed from the unit.
use std::cell::OnceCell;

use svadev_memory::GuestMemory;
use svadev_spec::vtd::registers::RootTableAddress;

use crate::audit::Auditor;
use crate::cache::{Clock, Iotlb};
use crate::config::Caching;
use crate::context::EntryCaches;
use crate::counters::Counters;
use crate::walk::Limits;
use crate::{Unit, UnitConfig};

/// The parts of a unit that serve one request. They see memory as it was at the first load: one view for all the structures on the
/// way, so that no change of the memory map falls between them; none for a request that the caches serve.
pub(crate) struct Resolver<'a, M: GuestMemory + 'a> {
    pub(crate) memory: &'a M,
    pub(crate) view: OnceCell<M::View<'a>>,
    pub(crate) root: RootTableAddress,
    pub(crate) limits: Limits,
    pub(crate) config: &'a UnitConfig,
    pub(crate) counters: &'a mut Counters,
    pub(crate) clock: &'a mut Clock,
    pub(crate) entries: &'a mut EntryCaches,
    pub(crate) iotlb: &'a mut Iotlb,
    pub(crate) audit: Option<&'a mut Auditor>,
}

impl<'a, M: GuestMemory> Resolver<'a, M> {
    pub(crate) fn view(&self) -> &M::View<'a> {
        self.view.get_or_init(|| self.memory.view())
    }

    /// Whether anything is remembered at all.
    pub(crate) fn caches(&self) -> bool {
        self.config.caching != Caching::None
    }
}

impl<M: GuestMemory> Unit<M> {
    pub(crate) fn resolver(&mut self) -> Resolver<'_, M> {
        Resolver {
            memory: &self.memory,
            view: OnceCell::new(),
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
