//! The unit: its state, how it starts and how it is reset.
mod audit;
mod events;
mod fault;
mod gate;
mod invalidation;
mod page_request;
mod registers;
mod state;
mod translate;

pub use state::UnitState;
use svadev_fabric::SourceId;
use svadev_memory::GuestMemory;
use svadev_mutation::mutant;

use crate::admission::Admission;
use crate::audit::Auditor;
use crate::cache::{Clock, TranslationCaches};
use crate::config::{Caching, Limits, UnitConfig};
use crate::counters::Counters;
use crate::entry_cache::EntryCaches;
use crate::gate::Gate;
use crate::invalidation::Ledger;
use crate::observe::Observer;

/// One remapping unit. See the crate's documentation.
#[derive(Debug)]
pub struct Unit<M: GuestMemory> {
    pub(crate) config: UnitConfig,
    pub(crate) limits: Limits,
    pub(crate) memory: M,
    /// The view of `memory` that the last walk used, kept so that the next one loads it without atomic operations.
    pub(crate) kept: M::Kept,
    pub(crate) counters: Counters,
    pub(crate) state: UnitState,
    pub(crate) clock: Clock,
    pub(crate) entries: EntryCaches,
    pub(crate) caches: TranslationCaches,
    /// Not there unless asked for ([`Unit::start_audit`]).
    pub(crate) audit: Option<Box<Auditor>>,
    /// Not there unless asked for ([`Unit::set_schedule`]).
    pub(crate) gate: Option<Box<Gate>>,
}

impl<M: GuestMemory> Unit<M> {
    /// A unit as after power-on.
    ///
    /// # Panics
    /// On a configuration out of range.
    pub fn new(config: UnitConfig, memory: M) -> Self {
        config.check();
        let config = config.effective();
        Self {
            limits: Limits::new(&config),
            memory,
            kept: M::Kept::default(),
            counters: Counters::default(),
            state: UnitState::new(&config, Ledger::new(SourceId::UNIT)),
            clock: Clock::default(),
            entries: EntryCaches::new(&config),
            caches: TranslationCaches::new(config.iotlb_entries, config.caching == Caching::Adversarial),
            audit: None,
            gate: None,
            config,
        }
    }

    /// Back to the state after power-on. Counters go on; acknowledgements that are still to come are ignored.
    pub fn reset(&mut self) {
        // Destructured, so that a new field does not compile before it has a line here.
        let Self { config, limits: _, memory: _, kept: _, counters: _, state, clock, entries, caches, audit, gate } =
            self;
        *state = UnitState::new(config, state.queue.ledger.successor());
        entries.invalidate_contexts(clock);
        caches.invalidate_all(clock);
        if let Some(audit) = audit {
            audit.emptied();
        }
        if let Some(gate) = gate {
            gate.forget(|_| true);
        }
    }

    /// What the unit did since it was made.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// What the unit was built to be.
    pub fn config(&self) -> &UnitConfig {
        &self.config
    }

    /// The memory it walks.
    pub fn memory(&self) -> &M {
        &self.memory
    }

    /// The memory map changed: lets go of the view that was kept. A later translation sees the change without this
    /// call, but until one comes, memory that is gone would stay mapped.
    pub fn memory_changed(&mut self) {
        if !mutant!(UnitKeepsMemory) {
            self.kept = M::Kept::default();
        }
    }

    /// Reports to the counters and, if there is one, to the auditor.
    pub(crate) fn report(&mut self, report: impl Fn(&mut dyn Observer)) {
        report(&mut self.counters);
        if let Some(audit) = &mut self.audit {
            report(&mut **audit);
        }
    }
}

/// The walker of a unit. A macro, not a method: it borrows only the fields listed, so that the caller can still use
/// the others.
macro_rules! walker {
    ($unit:expr) => {
        $crate::translate::Walker::<M> {
            memory: $unit.memory.view(&mut $unit.kept),
            limits: $unit.limits,
            config: &$unit.config,
            counters: &mut $unit.counters,
            clock: &mut $unit.clock,
            caches: &mut $unit.caches,
            observer: $crate::audit::observing(&mut $unit.audit),
        }
    };
}
use walker;

impl<M: GuestMemory> Unit<M> {
    pub(crate) fn admission(&mut self) -> Admission<'_, M> {
        Admission { root: self.state.root, entries: &mut self.entries, walker: walker!(self) }
    }
}
