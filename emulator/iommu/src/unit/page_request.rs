//! Page requests and their queue (§7.4, §7.5, §11.4.11).
use svadev_fabric::{Bdf, Downstream, PageGroupResponse, PageRequest, PageRequestOutcome, ResponseCode};
use svadev_memory::{GuestAddress, GuestMemory};
use svadev_mutation::mutant;
use svadev_spec::vtd::page_request::DESCRIPTOR_SIZE;
use svadev_spec::vtd::registers::PageRequestStatus;

use super::Unit;
use crate::address_space::Stages;
use crate::gate::Point;
use crate::interrupts::EventKind;
use crate::page_request_queue::descriptor;
use crate::request::{Request, RequestKind};

impl<M: GuestMemory> Unit<M> {
    /// Takes a page request message: puts it into the queue, or answers it, or drops it (§7.4).
    pub fn page_request(&mut self, request: PageRequest, ports: &dyn Downstream) -> PageRequestOutcome {
        self.state.last_requester = Some(request.requester);
        self.report(|observer| observer.page_requested(request));
        if !self.translation_enabled() || self.aborts_dma() {
            // While remapping is off or all DMA is aborted, the message is unsupported: nobody answers it.
            return self.drop_page_request();
        }
        let PageRequest { requester, pasid, iova, access, .. } = request;
        let as_request = Request { requester, pasid, iova, access, kind: RequestKind::PageRequest };
        let context = self.admission().context(&as_request);
        if let Err(fault) = context {
            self.record_fault(&as_request, fault, ports);
            // §7.5: what can never be served is answered with a failure, so that the function stops asking.
            return self.answer_group(&request, ResponseCode::Failure, ports);
        }
        self.forget_page(&as_request);
        if self.holds(|| Point::PrqWrite(request)) {
            return PageRequestOutcome::Accepted;
        }
        self.queue_page_request(request, ports)
    }

    /// Puts a page request that may be served into the queue. If there is no room, the unit answers it, or drops it.
    pub(super) fn queue_page_request(&mut self, request: PageRequest, ports: &dyn Downstream) -> PageRequestOutcome {
        let requester = request.requester;
        if self.state.page_requests.status.overflow() {
            return self.answer_group(&request, ResponseCode::Success, ports);
        }
        let queue = &self.state.page_requests;
        let tail = queue.inside(queue.tail);
        let next = queue.inside(tail + DESCRIPTOR_SIZE);
        if next == queue.inside(queue.head) {
            self.counters.page_request_overflows += 1;
            if !mutant!(OverflowWithoutStatus) {
                self.raise_page_request_event(requester, |status| status.set_overflow(true), ports);
            }
            // §7.4.1: a lost group is answered with success. Its function translates again, and faults again if it
            // must.
            return self.answer_group(&request, ResponseCode::Success, ports);
        }
        if mutant!(PageRequestTailBeforeEntry) {
            self.raise_page_request_event(requester, |status| status.set_pending(true), ports);
        }
        let queue = &self.state.page_requests;
        let written = (queue.address.frame() << 12)
            .checked_add(tail)
            .is_some_and(|at| self.memory.write(GuestAddress(at), &descriptor(&request)).is_ok());
        if !written {
            // The ring lies outside memory: software will never see the request.
            return self.answer_group(&request, ResponseCode::Failure, ports);
        }
        self.state.page_requests.tail = next;
        self.counters.page_requests_queued += 1;
        self.raise_page_request_event(requester, |status| status.set_pending(true), ports);
        PageRequestOutcome::Accepted
    }

    /// Drops the unit's own translation of the page (§7.4, implicit invalidation on a page request), so that a right is
    /// found that software gave without an invalidation. A broken PASID table entry has no translation to drop.
    fn forget_page(&mut self, request: &Request) {
        if mutant!(PageRequestKeepsTranslation) {
            return;
        }
        let space = self.admission().address_space(request);
        if let Ok((space, _)) = space
            && space.stages != Stages::PassThrough
        {
            self.caches.invalidate_pages(space.tag, request.iova.0, 0, false, &mut self.clock);
            self.report(|observer| observer.page_dropped(space.tag, request.iova.0));
        }
    }

    /// Answers the group if this is its last request; a Stop Marker gets no answer (PCIe 6.0 §10.4.1.2).
    fn answer_group(
        &mut self,
        request: &PageRequest,
        code: ResponseCode,
        ports: &dyn Downstream,
    ) -> PageRequestOutcome {
        let stop_marker = !request.access.read && !request.access.write;
        if !request.last || stop_marker {
            return self.drop_page_request();
        }
        self.counters.automatic_responses += 1;
        let response = PageGroupResponse { pasid: request.pasid, prg_index: request.prg_index, code };
        self.respond(request.requester, response, ports);
        PageRequestOutcome::Accepted
    }

    /// Sends the answer to a page request group to its function.
    pub(super) fn respond(&mut self, to: Bdf, response: PageGroupResponse, ports: &dyn Downstream) {
        if !self.holds(|| Point::PrgResponse { to, response }) {
            ports.page_group_response(to, response);
        }
    }

    fn drop_page_request(&mut self) -> PageRequestOutcome {
        self.counters.page_requests_dropped += 1;
        PageRequestOutcome::Dropped
    }

    /// Sets a bit of PRS, and sends the page request event if none was set before (§7.7).
    fn raise_page_request_event(&mut self, via: Bdf, set: impl FnOnce(&mut PageRequestStatus), ports: &dyn Downstream) {
        let quiet = self.state.page_requests.status == PageRequestStatus::new();
        set(&mut self.state.page_requests.status);
        if quiet {
            self.raise_event(EventKind::PageRequest, Some(via), ports);
        }
    }

    /// A write to PRS clears the bits that are 1 in it (§11.4.11.4).
    pub(crate) fn write_page_request_status(&mut self, value: u32) {
        let clear = PageRequestStatus::from(value);
        let status = &mut self.state.page_requests.status;
        status.set_pending(status.pending() && !clear.pending());
        status.set_overflow(status.overflow() && !clear.overflow());
        if *status == PageRequestStatus::new() {
            self.event_serviced(EventKind::PageRequest);
        }
    }
}
