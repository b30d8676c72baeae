//! The unit and its gate: what is held back, and how it goes on when it is released.
use svadev_fabric::{Bdf, Downstream};
use svadev_memory::GuestMemory;

use super::Unit;
use crate::fault_log::FaultRecord;
use crate::gate::{Gate, Point, PointId, Schedule};
use crate::interrupts::EventKind;

impl<M: GuestMemory> Unit<M> {
    /// Lets a schedule decide at each point from now on, or nobody. What the schedule before held is released.
    pub fn set_schedule(&mut self, schedule: Option<Box<dyn Schedule>>, ports: &dyn Downstream) {
        if let Some(gate) = &mut self.gate {
            gate.open();
        }
        self.go_on_with_released(ports);
        self.gate = schedule.map(|schedule| Box::new(Gate::new(schedule)));
    }

    /// Releases a point that is held. False if it is not held.
    pub fn release(&mut self, id: PointId, ports: &dyn Downstream) -> bool {
        let released = self.gate.as_mut().is_some_and(|gate| gate.release(id));
        self.go_on_with_released(ports);
        released
    }

    /// Releases what the schedule does not hold any more. Call it when something changed that the schedule looks at.
    pub fn poll_gate(&mut self, ports: &dyn Downstream) {
        if let Some(gate) = &mut self.gate {
            gate.poll();
        }
        self.go_on_with_released(ports);
    }

    /// What is held, oldest first.
    pub fn held(&self) -> impl Iterator<Item = (PointId, &Point)> {
        self.gate.iter().flat_map(|gate| gate.held())
    }

    /// Whether the gate holds a point. If so, the caller must not go on: [`Unit::release`] will.
    #[inline]
    pub(super) fn holds(&mut self, point: impl FnOnce() -> Point) -> bool {
        match &mut self.gate {
            None => false,
            Some(gate) => gate.holds(point()),
        }
    }

    /// Whether a point that `wanted` names is held.
    #[inline]
    pub(super) fn is_holding(&self, wanted: impl Fn(&Point) -> bool) -> bool {
        self.gate.as_ref().is_some_and(|gate| gate.is_holding(wanted))
    }

    /// Whether the invalidation queue stands still because of what is held: a descriptor that is not to begin, or a
    /// wait with a fence.
    #[inline]
    pub(super) fn holds_queue(&self) -> bool {
        self.is_holding(|point| matches!(point, Point::IqTake { .. } | Point::IqWait { fence: true, .. }))
    }

    /// Whether a page request that a function sent is not in the queue yet.
    #[inline]
    pub(super) fn holds_page_requests(&self) -> bool {
        self.is_holding(|point| matches!(point, Point::PrqWrite(_)))
    }

    /// Software cleared every status bit behind an event: its message is not sent any more.
    pub(super) fn forget_event(&mut self, kind: EventKind) {
        if let Some(gate) = &mut self.gate {
            gate.forget(|point| *point == Point::of_event(kind));
        }
    }

    /// Translation was disabled: nothing that a request caused is seen any more.
    pub(super) fn forget_requests(&mut self, ports: &dyn Downstream) {
        if let Some(gate) = &mut self.gate {
            gate.forget(|point| matches!(point, Point::PrqWrite(_) | Point::FaultRecord { .. }));
            // A drain may have waited for a page request.
            self.process_queue(ports);
        }
    }

    /// The invalidation queue was enabled or disabled: what it had not finished is over. Answers have left it.
    pub(super) fn forget_queue(&mut self, ports: &dyn Downstream) {
        if let Some(gate) = &mut self.gate {
            gate.forget(|point| matches!(point, Point::IqTake { .. } | Point::IqWait { .. } | Point::DevTlbAck { .. }));
            gate.release_if(|point| matches!(point, Point::PrgResponse { .. }));
            self.go_on_with_released(ports);
        }
    }

    fn go_on_with_released(&mut self, ports: &dyn Downstream) {
        while let Some(point) = self.gate.as_mut().and_then(|gate| gate.next_released()) {
            self.go_on(point, ports);
        }
    }

    /// Does what was held back at a point.
    fn go_on(&mut self, point: Point, ports: &dyn Downstream) {
        match point {
            Point::PrqWrite(request) => {
                // The function has gone on meanwhile: an answer is all that it can still hear.
                let _ = self.queue_page_request(request, ports);
                // A drain may have waited for it.
                self.process_queue(ports);
            }
            Point::PrqEvent => self.send_event(EventKind::PageRequest, None, ports),
            Point::IqEvent => self.send_event(EventKind::Invalidation, None, ports),
            Point::FaultEvent => self.send_event(EventKind::Fault, None, ports),
            Point::PrgResponse { to, response } => ports.page_group_response(to, response),
            Point::IqTake { .. } => {
                self.state.queue.begun = true;
                self.process_queue(ports);
            }
            Point::IqWait { status, interrupt, .. } => {
                match self.complete_wait(status, interrupt, ports) {
                    Ok(()) => {}
                    Err(error) => self.stop_queue(error, ports),
                }
                self.process_queue(ports);
            }
            Point::DevTlbAck { from, tag } => self.acknowledged(from, tag, ports),
            Point::FaultRecord { low, high } => {
                self.log_fault(FaultRecord { low, high }, Bdf(high.source_id()), ports);
            }
        }
    }
}
