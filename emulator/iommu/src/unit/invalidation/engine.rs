//! The engine of the invalidation queue: head, tail, parking and errors (§6.5.2, §11.4.9).
use svadev_fabric::{Bdf, Downstream, InvalidateTag};
use svadev_memory::{GuestAddress, GuestMemory};
use svadev_mutation::mutant;
use svadev_spec::vtd::invalidation::{DescriptorHeader, QueueError};
use svadev_spec::vtd::registers::translation_table_mode;

use super::descriptors::Step;
use crate::config::Caching;
use crate::gate::Point;
use crate::invalidation::{Acknowledged, Parked};
use crate::unit::Unit;

/// Descriptors that one call carries out, so that others can use the unit soon. The largest queue has 32768. Each takes
/// some 15 ns, and about a microsecond if a function hears of it.
const DESCRIPTORS_PER_CALL: u32 = 4096;
/// The same in adversarial caching, where a descriptor can remove all that is cached of a domain, or search it for
/// nested mappings.
const DESCRIPTORS_PER_CALL_ADVERSARIAL: u32 = 256;
/// The same with an auditor, which searches up to 2^17 keys for a wide descriptor.
const DESCRIPTORS_PER_CALL_AUDITED: u32 = 64;

/// The type of a descriptor, all seven bits of it.
fn descriptor_type(header: DescriptorHeader) -> u8 {
    header.type_high() << 4 | header.type_low()
}

impl<M: GuestMemory> Unit<M> {
    /// Carries descriptors out until the queue is empty, parked, held by the gate, or stopped by an error, or until
    /// this call has done enough ([`Unit::queue_is_unfinished`]).
    pub(crate) fn process_queue(&mut self, ports: &dyn Downstream) {
        self.state.queue.unfinished = false;
        let mut descriptors = 0;
        while self.state.global.queued_invalidation_enable()
            && !self.state.faults.queue_stopped()
            && self.state.queue.head != self.state.queue.tail
            && !self.holds_queue()
        {
            if descriptors == self.descriptors_per_call() {
                self.state.queue.unfinished = true;
                return;
            }
            descriptors += 1;
            let descriptor = self.next_descriptor();
            if let Ok([low, _]) = descriptor
                && !self.state.queue.begun
                && self.holds(|| Point::IqTake { descriptor_type: descriptor_type(low.into()) })
            {
                return;
            }
            self.state.queue.begun = true;
            match descriptor.and_then(|descriptor| self.carry_out(descriptor, ports)) {
                Ok(Step::Done) => {
                    self.state.queue.parked = None;
                    self.state.queue.advance();
                }
                Ok(Step::Park(parked)) => {
                    if self.state.queue.parked.replace(parked).is_none() {
                        self.counters.waits_parked += 1;
                    }
                    if mutant!(ParkSkipsWait) {
                        self.state.queue.advance();
                    }
                    return;
                }
                Err(error) => {
                    tracing::debug!(?error, head = self.state.queue.head, "invalidation queue error");
                    if mutant!(QueueErrorGoesOn) {
                        self.state.queue.advance();
                        continue;
                    }
                    self.stop_queue(error, ports);
                    return;
                }
            }
        }
    }

    /// Descriptors that one call carries out. What one of them costs depends on what is searched for it.
    fn descriptors_per_call(&self) -> u32 {
        if self.audit.is_some() {
            DESCRIPTORS_PER_CALL_AUDITED
        } else if self.config.caching == Caching::Adversarial {
            DESCRIPTORS_PER_CALL_ADVERSARIAL
        } else {
            DESCRIPTORS_PER_CALL
        }
    }

    /// Whether the invalidation queue could go on and waits for [`Unit::continue_queue`] only. The call that left it so
    /// had done enough: whoever holds the unit is to let others at it before it goes on.
    pub fn queue_is_unfinished(&self) -> bool {
        self.state.queue.unfinished
    }

    /// Goes on with an unfinished invalidation queue.
    pub fn continue_queue(&mut self, ports: &dyn Downstream) {
        if self.state.queue.unfinished {
            self.process_queue(ports);
        }
    }

    /// Stops the queue at its head with an error (IQE), until software clears that.
    pub(in crate::unit) fn stop_queue(&mut self, error: QueueError, ports: &dyn Downstream) {
        self.counters.queue_errors += 1;
        // Software may put another descriptor in its place.
        self.state.queue.begun = false;
        self.state.queue.error.set_queue_error_information(error as u8);
        self.set_queue_status(|status| status.set_invalidation_queue_error(true), self.state.last_requester, ports);
    }

    /// Reads the descriptor at the head. The third and fourth quadword of wide ones are reserved. They held private
    /// data of page group responses until revision 4.0; no page request of this unit has private data to give back.
    fn next_descriptor(&self) -> Result<[u64; 2], QueueError> {
        let queue = &self.state.queue;
        if queue.tail >= queue.bytes() {
            return Err(QueueError::InvalidTail);
        }
        if queue.tail & (queue.descriptor_bytes() - 1) != 0 {
            return Err(QueueError::UnalignedTail);
        }
        let mode = self.state.root.translation_table_mode();
        if mode == translation_table_mode::RESERVED {
            return Err(QueueError::InvalidMode);
        }
        let wide = queue.address.descriptor_width();
        if mode == translation_table_mode::SCALABLE && !wide {
            return Err(QueueError::InvalidWidth);
        }
        let at = (queue.address.frame() << 12).checked_add(queue.head).ok_or(QueueError::Fetch)?;
        let load = |at| self.memory.load_u64(GuestAddress(at)).map_err(|_| QueueError::Fetch);
        let descriptor = [load(at)?, load(at + 8)?];
        if wide && load(at + 16)? | load(at + 24)? != 0 && !mutant!(DescriptorUpperHalfUnchecked) {
            return Err(QueueError::Reserved);
        }
        Ok(descriptor)
    }

    /// A function acknowledged an invalidation for which it had said [`svadev_fabric::InvalidateAck::Pending`].
    /// Goes on with a parked queue.
    pub fn invalidate_complete(&mut self, requester: Bdf, tag: InvalidateTag, ports: &dyn Downstream) {
        if !self.holds(|| Point::DevTlbAck { from: requester, tag }) {
            self.acknowledged(requester, tag, ports);
        }
    }

    /// Counts an acknowledgement, and goes on with a queue that waited for it.
    pub(in crate::unit) fn acknowledged(&mut self, requester: Bdf, tag: InvalidateTag, ports: &dyn Downstream) {
        match self.state.queue.ledger.acknowledge(requester, tag) {
            Acknowledged::Expected => {
                if self.state.queue.parked.is_some() {
                    self.process_queue(ports);
                }
            }
            Acknowledged::Late => {}
            Acknowledged::Unexpected => {
                self.state.queue.error.set_completion_source_id(requester.0);
                self.set_queue_status(|status| status.set_invalidation_completion_error(true), Some(requester), ports);
            }
        }
    }

    /// Gives up on every acknowledgement that is missing, because those of `requester` took too long for the caller's
    /// clock (§6.5.2.10). A wait that waits for them is dropped without its status. The queue stops until software
    /// clears FSTS.ITE. An invalidation that was not sent yet is sent then: software has no sign that it was not. If no
    /// acknowledgement of `requester` is missing, nothing happens.
    pub fn invalidate_timed_out(&mut self, requester: Bdf, ports: &dyn Downstream) {
        if !self.state.queue.ledger.waits_for(requester) {
            return;
        }
        self.state.queue.ledger.give_up();
        self.report(|observer| observer.abandoned());
        match self.state.queue.parked.take() {
            Some(Parked::Wait) if !mutant!(TimeoutKeepsWait) => self.state.queue.advance(),
            Some(Parked::Invalidation) if mutant!(TimeoutSkipsInvalidation) => self.state.queue.advance(),
            _ => {}
        }
        self.state.queue.error.set_timeout_source_id(requester.0);
        self.set_queue_status(|status| status.set_invalidation_timeout_error(true), Some(requester), ports);
    }

    /// A function's device-TLB invalidations that are not acknowledged, as tag and function, oldest first.
    pub fn outstanding_invalidations(&self) -> impl Iterator<Item = (InvalidateTag, Bdf)> + '_ {
        self.state.queue.ledger.outstanding()
    }
}
