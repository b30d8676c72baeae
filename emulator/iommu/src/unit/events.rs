//! Interrupt messages: when an event's message is sent, and when it is tried again (§11.4.7.2).
use svadev_fabric::{Bdf, Delivery, Downstream};
use svadev_memory::GuestMemory;
use svadev_mutation::mutant;
use svadev_spec::vtd::registers::PageRequestStatus;

use super::Unit;
use crate::gate::Point;
use crate::interrupts::{Event, EventKind};

impl<M: GuestMemory> Unit<M> {
    /// Sends the events again whose cause software has not looked at yet. Call it when a function's bus mastering is
    /// turned off, for a message that was on its way through that function may be lost. One message too many is
    /// harmless: its handler finds nothing to do.
    pub fn repeat_interrupts(&mut self, ports: &dyn Downstream) {
        for (kind, pending) in [
            (EventKind::PageRequest, self.state.page_requests.status != PageRequestStatus::new()),
            (EventKind::Fault, self.state.faults.any_status()),
            (EventKind::Invalidation, self.state.queue.wait_completed && !mutant!(CompletionEventNotRepeated)),
        ] {
            if pending {
                self.raise_event(kind, None, ports);
            }
        }
    }

    /// Sends the messages that are pending because no function could carry them. Call it when one can: bus mastering is
    /// turned on.
    pub fn retry_events(&mut self, ports: &dyn Downstream) {
        for kind in EventKind::ALL {
            self.send_event(kind, None, ports);
        }
    }

    /// The condition behind an event arose: IP is set, and the message is sent if that is possible.
    pub(super) fn raise_event(&mut self, kind: EventKind, via: Option<Bdf>, ports: &dyn Downstream) {
        self.event(kind).raise();
        let point = Point::of_event(kind);
        if !self.is_holding(|held| *held == point) && !self.holds(|| point) {
            self.send_event(kind, via, ports);
        }
    }

    /// Sends an event's message if it is due. If nothing behind the unit can carry it, the event stays pending.
    pub(super) fn send_event(&mut self, kind: EventKind, via: Option<Bdf>, ports: &dyn Downstream) {
        let Some(msi) = self.event(kind).due() else { return };
        if self.is_holding(|held| *held == Point::of_event(kind)) {
            return;
        }
        match ports.message_interrupt(via, msi) {
            Delivery::Held if !mutant!(HeldInterruptForgotten) => {}
            Delivery::Held | Delivery::Sent => {
                self.counters.interrupts += 1;
                self.event(kind).sent();
            }
        }
    }

    /// Software wrote an event's control register. If it cleared IM, a pending message is sent.
    pub(super) fn write_event_control(&mut self, kind: EventKind, value: u32, ports: &dyn Downstream) {
        self.event(kind).write_control(value);
        self.send_event(kind, self.state.last_requester, ports);
    }

    /// Software cleared every status bit behind an event: a pending message is not sent any more.
    pub(super) fn event_serviced(&mut self, kind: EventKind) {
        if kind == EventKind::Fault || !mutant!(ServicedEventStaysPending) {
            self.event(kind).serviced();
        }
        self.forget_event(kind);
    }

    fn event(&mut self, kind: EventKind) -> &mut Event {
        match kind {
            EventKind::Fault => &mut self.state.fault_event,
            EventKind::Invalidation => &mut self.state.invalidation_event,
            EventKind::PageRequest => &mut self.state.page_request_event,
        }
    }
}
