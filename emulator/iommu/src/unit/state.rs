//! The unit's state as a plain value, to be saved and restored.
use svadev_fabric::Bdf;
use svadev_memory::GuestMemory;
use svadev_spec::vtd::invalidation::InvalidateAddress;
use svadev_spec::vtd::registers::{ContextCommand, Global, IotlbInvalidate, RootTableAddress};

use super::Unit;
use crate::fault_log::FaultLog;
use crate::interrupts::Event;
use crate::invalidation::InvalidationQueue;
use crate::page_request_queue::PageRequestQueue;

/// Everything that a guest can see of a unit: registers, queues, and what the unit waits for.
///
/// Caches are not in it: a unit may forget what it cached at any time. Counters, auditor and gate belong to whoever
/// runs the unit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnitState {
    last_requester: Option<Bdf>,
    global: Global,
    root_register: RootTableAddress,
    root: RootTableAddress,
    context_command: ContextCommand,
    invalidate_address: InvalidateAddress,
    iotlb_command: IotlbInvalidate,
    faults: FaultLog,
    fault_event: Event,
    queue: InvalidationQueue,
    invalidation_event: Event,
    page_requests: PageRequestQueue,
    page_request_event: Event,
}

impl<M: GuestMemory> Unit<M> {
    /// The state now.
    ///
    /// # Panics
    /// If the gate holds something: release it first ([`Unit::set_schedule`]).
    pub fn save(&self) -> UnitState {
        assert!(self.held().next().is_none(), "what a schedule holds back is not saved");
        // Taken apart whole: a new field must be given a line here.
        let Self {
            config: _,
            limits: _,
            memory: _,
            kept: _,
            counters: _,
            last_requester,
            global,
            root_register,
            root,
            context_command,
            invalidate_address,
            iotlb_command,
            faults,
            fault_event,
            queue,
            invalidation_event,
            page_requests,
            page_request_event,
            clock: _,
            entries: _,
            caches: _,
            audit: _,
            gate: _,
        } = self;
        UnitState {
            last_requester: *last_requester,
            global: *global,
            root_register: *root_register,
            root: *root,
            context_command: *context_command,
            invalidate_address: *invalidate_address,
            iotlb_command: *iotlb_command,
            faults: faults.clone(),
            fault_event: fault_event.clone(),
            queue: queue.clone(),
            invalidation_event: invalidation_event.clone(),
            page_requests: page_requests.clone(),
            page_request_event: page_request_event.clone(),
        }
    }

    /// Goes on with a state that was saved from a unit of the same configuration. Invalidations that it waits for are
    /// acknowledged by their functions, or by nobody.
    pub fn restore(&mut self, state: &UnitState) {
        self.reset();
        let UnitState {
            last_requester,
            global,
            root_register,
            root,
            context_command,
            invalidate_address,
            iotlb_command,
            faults,
            fault_event,
            queue,
            invalidation_event,
            page_requests,
            page_request_event,
        } = state.clone();
        self.last_requester = last_requester;
        self.global = global;
        self.root_register = root_register;
        self.root = root;
        self.context_command = context_command;
        self.invalidate_address = invalidate_address;
        self.iotlb_command = iotlb_command;
        self.faults = faults;
        self.fault_event = fault_event;
        self.queue = queue;
        self.invalidation_event = invalidation_event;
        self.page_requests = page_requests;
        self.page_request_event = page_request_event;
    }
}
