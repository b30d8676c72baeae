//! The unit's state as a plain value: made new at a reset, saved and restored.
use svadev_fabric::Bdf;
use svadev_memory::GuestMemory;
use svadev_spec::vtd::invalidation::InvalidateAddress;
use svadev_spec::vtd::registers::{ContextCommand, Global, IotlbInvalidate, RootTableAddress};

use super::Unit;
use crate::config::UnitConfig;
use crate::fault_log::FaultLog;
use crate::interrupts::Event;
use crate::invalidation::{InvalidationQueue, Ledger};
use crate::page_request_queue::PageRequestQueue;

/// Everything that a guest can see of a unit: registers, queues, and what the unit waits for.
///
/// Caches are not in it: a unit may forget what it cached at any time. Counters, auditor and gate belong to whoever
/// runs the unit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnitState {
    /// The function that was heard last. Interrupts that no function caused go out through it.
    pub(crate) last_requester: Option<Bdf>,

    /// GSTS.
    pub(crate) global: Global,
    /// RTADDR as written.
    pub(crate) root_register: RootTableAddress,
    /// RTADDR as latched by GCMD.SRTP.
    pub(crate) root: RootTableAddress,
    /// CCMD.
    pub(crate) context_command: ContextCommand,
    /// IVA.
    pub(crate) invalidate_address: InvalidateAddress,
    /// IOTLB.
    pub(crate) iotlb_command: IotlbInvalidate,
    pub(crate) faults: FaultLog,
    pub(crate) fault_event: Event,
    pub(crate) queue: InvalidationQueue,
    pub(crate) invalidation_event: Event,
    pub(crate) page_requests: PageRequestQueue,
    pub(crate) page_request_event: Event,
}

impl UnitState {
    /// The state after power-on. `ledger` goes on from the state before, across resets.
    pub(crate) fn new(config: &UnitConfig, ledger: Ledger) -> Self {
        Self {
            last_requester: None,
            global: Global::new(),
            root_register: RootTableAddress::new(),
            root: RootTableAddress::new(),
            context_command: ContextCommand::new(),
            invalidate_address: InvalidateAddress::new(),
            iotlb_command: IotlbInvalidate::new(),
            faults: FaultLog::new(config.fault_records),
            fault_event: Event::new(),
            queue: InvalidationQueue::new(ledger),
            invalidation_event: Event::new(),
            page_requests: PageRequestQueue::new(),
            page_request_event: Event::new(),
        }
    }
}

impl<M: GuestMemory> Unit<M> {
    /// The state now.
    ///
    /// # Panics
    /// If the gate holds something: release it first ([`Unit::set_schedule`]).
    pub fn save(&self) -> UnitState {
        assert!(self.held().next().is_none(), "what a schedule holds back is not saved");
        self.state.clone()
    }

    /// Continues with a state that was saved from a unit of the same configuration. Invalidations that it waits for are
    /// acknowledged by their functions, or by nobody.
    pub fn restore(&mut self, state: &UnitState) {
        self.reset();
        self.state.clone_from(state);
    }
}
