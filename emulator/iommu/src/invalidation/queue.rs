//! Registers and state of the invalidation queue (§11.4.9).
use svadev_mutation::mutant;
use svadev_spec::vtd::registers::{FaultStatus, InvalidationQueueAddress, InvalidationQueueError};

use super::ledger::Ledger;

/// Registers and state of the queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct InvalidationQueue {
    /// IQA.
    pub(crate) address: InvalidationQueueAddress,
    /// IQH, in bytes.
    pub(crate) head: u64,
    /// IQT, in bytes, as software wrote it.
    pub(crate) tail: u64,
    /// IQERCD.
    pub(crate) error: InvalidationQueueError,
    /// ICS.IWC.
    pub(crate) wait_completed: bool,
    /// Invalidations sent and not acknowledged.
    pub(crate) ledger: Ledger,
    /// What the descriptor at the head waits for. While it waits, it is not counted as parked again.
    pub(crate) parked: Option<Parked>,
    /// A call into the unit ended before the queue was empty, for it had done enough: somebody must call
    /// [`Unit::continue_queue`](crate::Unit::continue_queue).
    pub(crate) unfinished: bool,
    /// The descriptor at the head was begun: the gate is not asked about it again.
    pub(crate) begun: bool,
}

/// What the descriptor at the head waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Parked {
    /// A wait, for every acknowledgement.
    Wait,
    /// A wait with PD, for the page requests that the gate holds.
    Drain,
    /// A device-TLB invalidation, for an acknowledgement: too many are missing.
    Invalidation,
}

impl InvalidationQueue {
    /// A queue that software has not set up. `ledger` is the one before, across resets.
    pub(crate) fn new(ledger: Ledger) -> Self {
        Self {
            address: InvalidationQueueAddress::new(),
            head: 0,
            tail: 0,
            error: InvalidationQueueError::new(),
            wait_completed: false,
            ledger,
            parked: None,
            unfinished: false,
            begun: false,
        }
    }

    pub(crate) fn bytes(&self) -> u64 {
        4096 << self.address.queue_size()
    }

    pub(crate) fn descriptor_bytes(&self) -> u64 {
        if self.address.descriptor_width() { 32 } else { 16 }
    }

    pub(crate) fn advance(&mut self) {
        self.begun = false;
        let next = self.head + self.descriptor_bytes();
        self.head = if mutant!(QueueHeadNotWrapped) { next } else { next & (self.bytes() - 1) };
    }

    /// GCMD.QIE changed: the head starts over (§11.4.9.1), and every missing acknowledgement is given up.
    pub(crate) fn restart(&mut self) {
        self.head = 0;
        if !mutant!(RestartKeepsOutstanding) {
            self.ledger.give_up();
        }
        self.parked = None;
        self.unfinished = false;
        self.begun = false;
    }

    /// The fields of IQERCD count only while their status bit is set (§11.4.9.9).
    pub(crate) fn forget_errors(&mut self, status: FaultStatus) {
        if !status.invalidation_queue_error() {
            self.error.set_queue_error_information(0);
        }
        if !status.invalidation_timeout_error() {
            self.error.set_timeout_source_id(0);
        }
        if !status.invalidation_completion_error() {
            self.error.set_completion_source_id(0);
        }
    }
}
