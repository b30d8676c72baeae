//! A queue's rings: descriptors come in, completions go out, and the doorbell page shows how far the device is.
use svadev_endpoint::{Platform, Refusal, Slice, Span, Target};
use svadev_mutation::mutant;
use svadev_spec::device::{Completion, Descriptor, DescriptorFlags, doorbell, queue_error};
use zerocopy::IntoBytes;

use super::visit::{Known, Visit};
use super::{Part, Phase, Queue, State, low_word};
use crate::context::Context;
use crate::moderation::Due;

const DESCRIPTOR: u64 = size_of::<Descriptor>() as u64;
const COMPLETION: u64 = size_of::<Completion>() as u64;

/// Descriptors whose cache lines are asked for ahead of time: each comes out of the cache of whoever wrote it.
const AHEAD: u64 = 12;
/// So many bytes before completions are written, their cache line is asked for: it is in the cache of whoever read it last.
const AHEAD_TO_WRITE: usize = 256;

impl Queue {
    /// The index below which software has written descriptors, or `None` where its word cannot be true.
    pub(super) fn tail(&self, word: u32) -> Option<u64> {
        let ahead = word.wrapping_sub(low_word(self.sq_head));
        (ahead <= 1 << self.config.sq_log2).then(|| self.sq_head + u64::from(ahead))
    }

    /// Takes the next descriptor out of the ring and into `descriptor`, if there is one. Whether there was.
    #[inline]
    pub(super) fn fetch<P: Platform>(
        &mut self,
        cx: &mut Context<P>,
        visit: &mut Visit<'_>,
        descriptor: &mut Descriptor,
    ) -> bool {
        if self.sq_wait.is_some() {
            return false;
        }
        let mut fresh = false;
        let tail = if let State::Stopping { tail, .. } = self.state {
            tail
        } else {
            if self.seen.0 == low_word(self.sq_head) {
                self.seen.0 = cx.shared.doorbells().load(self.number, doorbell::SQ_TAIL);
                fresh = true;
            }
            let Some(tail) = self.tail(self.seen.0) else {
                self.halt(cx, queue_error::BAD_TAIL, 0);
                return false;
            };
            tail
        };
        if self.sq_head >= tail {
            return false;
        }
        let slot = self.sq_head & ((1 << self.config.sq_log2) - 1);
        let iova = self.config.sq_base + slot * DESCRIPTOR;
        let target = Target { space: cx.requester.space(self.config.user), iova, write: false };
        // An entry is aligned to its size, so it never crosses a page.
        let span = match visit.sq.part(target.space, iova, DESCRIPTOR) {
            Some(span) => span,
            None => match cx.requester.access(visit.slice, target) {
                Ok(span) => {
                    visit.sq = Known::new(target.space, iova, span);
                    span
                }
                Err(refusal) => {
                    self.fetch_refused(cx, visit.slice, target, refusal);
                    return false;
                }
            },
        };
        // Where the ring ends before that, it is somebody else's line: no harm but a fetch.
        let first = if fresh { 1 } else { AHEAD };
        for ahead in first..=AHEAD.min(tail - self.sq_head - 1) {
            span.prefetch(usize::try_from(ahead * DESCRIPTOR).expect("a few lines"));
        }
        span.load(descriptor.as_mut_bytes());
        self.sq_patience.progress();
        self.sq_head += 1;
        true
    }

    fn fetch_refused<P: Platform>(&mut self, cx: &mut Context<P>, slice: &Slice, target: Target, refusal: Refusal) {
        if let State::Stopping { tail, .. } = &mut self.state {
            *tail = self.sq_head;
            return;
        }
        let waiter = self.waiter(Part::Submission);
        let fault = self.ring_fault(target, refusal, DESCRIPTOR);
        match cx.fault(slice, waiter, &mut self.sq_patience, &fault) {
            Ok(wait) => self.sq_wait = Some(wait),
            Err(_) => self.halt(cx, queue_error::SQ_FAULT, target.iova),
        }
    }

    /// Writes the completions that can be written. Whether there was one.
    pub(super) fn flush<P: Platform>(&mut self, cx: &mut Context<P>, visit: &mut Visit<'_>) -> bool {
        let mut wrote = false;
        while let Some(&slot) = self.completing.front() {
            let Some(entry) = self.completion_entry(cx, visit) else { break };
            let job = self.jobs[usize::from(slot)].as_ref().expect("a completing slot has a job");
            let Phase::Complete(completion) = job.phase else { unreachable!("a completing job is complete") };
            let flags = job.flags;
            self.write_completion(cx, entry, completion, flags);
            self.completing.pop_front();
            self.release(cx, slot);
            self.settle_drains();
            wrote = true;
        }
        wrote
    }

    /// Where the next completion goes, if it can be written now.
    pub(super) fn completion_entry<'s, P: Platform>(
        &mut self,
        cx: &mut Context<P>,
        visit: &mut Visit<'s>,
    ) -> Option<Span<'s>> {
        if self.cq_wait.is_some() || !self.has_cq_room(cx) {
            return None;
        }
        let at = self.cq_tail & ((1 << self.config.cq_log2) - 1);
        let iova = self.config.cq_base + at * COMPLETION;
        let target = Target { space: cx.requester.space(self.config.user), iova, write: true };
        if let Some(span) = visit.cq.part(target.space, iova, COMPLETION) {
            span.prefetch_to_write(AHEAD_TO_WRITE);
            return Some(span);
        }
        match cx.requester.access(visit.slice, target) {
            Ok(span) => {
                visit.cq = Known::new(target.space, iova, span);
                Some(span)
            }
            Err(refusal) => {
                self.completion_refused(cx, visit.slice, target, refusal);
                None
            }
        }
    }

    fn has_cq_room<P: Platform>(&mut self, cx: &mut Context<P>) -> bool {
        let entries = 1 << self.config.cq_log2;
        let unread = |tail: u64, head| u64::from(low_word(tail).wrapping_sub(head));
        if unread(self.cq_tail, self.seen.1) >= entries {
            self.seen.1 = cx.shared.doorbells().load(self.number, doorbell::CQ_HEAD);
        }
        let unread = unread(self.cq_tail, self.seen.1);
        // Neither beyond what was written nor further behind it than there are entries.
        if unread > self.cq_tail.min(entries) {
            self.halt(cx, queue_error::BAD_CQ_HEAD, 0);
            return false;
        }
        unread < entries || mutant!(CompletionRingOverrun)
    }

    /// Writes the next completion. Its last word holds the sequence number, and is stored last, release: software that reads
    /// the number it expects sees the whole entry, and before it that the descriptor's place in its ring is free: whoever keeps as
    /// many descriptors under way as the ring holds submits the next for each completion.
    pub(super) fn write_completion<P: Platform>(
        &mut self,
        cx: &Context<P>,
        entry: Span<'_>,
        completion: Completion,
        flags: DescriptorFlags,
    ) {
        self.show_head(cx);
        const LAST: usize = std::mem::offset_of!(Completion, status);
        const _: () = assert!(LAST == 24 && std::mem::offset_of!(Completion, seq) == 28);
        self.cq_tail += 1;
        let Completion { cookie, bytes_done, result, status, fault, .. } = completion;
        let last = u64::from(status) | u64::from(fault) << 16 | u64::from(low_word(self.cq_tail)) << 32;
        entry.store_entry([cookie, bytes_done, result, last]);
        self.cq_patience.progress();
        self.wanted += u32::from(flags.contains(DescriptorFlags::INTERRUPT));
    }

    /// Shows in the doorbell page how far the device is, and sees to the interrupt that was wanted. Once a
    /// visit, but for the head before a completion: the page's line is one that software reads, so that each store to it may be a trip
    /// between two caches.
    pub(super) fn show<P: Platform>(&mut self, cx: &mut Context<P>) {
        self.show_head(cx);
        let tail = low_word(self.cq_tail);
        if tail != self.shown.1 {
            cx.shared.doorbells().store(self.number, doorbell::CQ_TAIL, tail);
            self.shown.1 = tail;
        }
        let wanted = std::mem::take(&mut self.wanted);
        if wanted != 0 {
            self.moderation.completed(wanted);
            self.interrupt(cx);
        }
    }

    /// Raises the vector if that is due, or sees to it that it is asked again when it will be.
    pub(crate) fn interrupt<P: Platform>(&mut self, cx: &mut Context<P>) {
        match self.moderation.due(cx.now_ns) {
            Due::Nothing => {}
            Due::Raise => self.raise(cx),
            Due::At(at_ns) => cx.interrupt_at(self.position, at_ns),
        }
    }

    fn show_head<P: Platform>(&mut self, cx: &Context<P>) {
        let head = low_word(self.sq_head);
        if head != self.shown.0 {
            cx.shared.doorbells().store(self.number, doorbell::SQ_HEAD, head);
            self.shown.0 = head;
        }
    }

    fn completion_refused<P: Platform>(
        &mut self,
        cx: &mut Context<P>,
        slice: &Slice,
        target: Target,
        refusal: Refusal,
    ) {
        if self.is_stopping() {
            // Nothing waits for a page any more: what cannot be written now is dropped (`stopped`).
            return;
        }
        let waiter = self.waiter(Part::Completion);
        let fault = self.ring_fault(target, refusal, COMPLETION);
        match cx.fault(slice, waiter, &mut self.cq_patience, &fault) {
            Ok(wait) => self.cq_wait = Some(wait),
            Err(_) => self.halt(cx, queue_error::CQ_FAULT, target.iova),
        }
    }

    /// A job whose completion was written is over.
    fn release<P: Platform>(&mut self, cx: &Context<P>, slot: u16) {
        let job = self.jobs[usize::from(slot)].take().expect("a completing slot has a job");
        debug_assert!(job.wait.is_none());
        cx.counters().completions.add(1);
        cx.counters().bytes.add(job.bytes_done());
        self.buffers.extend(job.into_buffers());
        self.free.push(slot);
    }

    pub(super) fn raise<P: Platform>(&self, cx: &Context<P>) {
        if let Some(vector) = self.config.vector {
            cx.counters().interrupts.add(1);
            cx.shared.ports().interrupt(vector);
        }
    }
}
