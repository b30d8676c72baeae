//! The short way: small work whose pages are all in the device TLB is done where it is fetched, without a job.
//!
//! Most descriptors of a busy queue are like that, and for them the job's slot, its lists and its place in two queues
//! would be the larger part of the cost. Whatever is not, or not now, goes the long way, which does the same.
use svadev_endpoint::{Platform, Slice, Span, Target};
use svadev_mutation::mutant;
use svadev_spec::device::{Code, Completion, Descriptor, DescriptorFlags};

use super::visit::{Known, Visit};
use super::{Queue, State};
use crate::context::Context;
use crate::descriptor::{Operand, OperandSpace, Operation, PlainCopy, Work};
use crate::job::PIECE_COST;
use crate::policy::DESCRIPTOR_COST;

/// An operand up to this long is done in one go even if it exceeds what is left of the turn's budget, bytes. The
/// overdraft is at most this.
const MOST: i64 = 8 << 10;

impl Queue {
    /// Fetches descriptors and does them, one after another, as long as that goes without a job; with jobs under way
    /// only one, so that those have their turns. The cost is taken from `budget`. Whether anything changed.
    pub(super) fn express<P: Platform>(
        &mut self,
        cx: &mut Context<P>,
        visit: &mut Visit<'_>,
        budget: &mut i64,
    ) -> bool {
        let mut worked = false;
        let mut descriptor = Descriptor::default();
        while *budget > 0 && self.may_express() && self.fetch(cx, visit, &mut descriptor) {
            worked = true;
            let run = self.run;
            let most = usize::try_from((*budget).max(MOST)).expect("a slice is no longer than that");
            if let Some(bytes) = self.do_now(cx, visit, &descriptor, most) {
                *budget -= i64::try_from(bytes).expect("at most a slice").max(PIECE_COST) + DESCRIPTOR_COST;
            } else if self.is_live() && self.run == run {
                self.held = Some(descriptor);
            } // else its completion ring has just ended the queue, and with it the descriptor
            if !self.runnable.is_empty() {
                break;
            }
        }
        worked
    }

    fn may_express(&self) -> bool {
        matches!(self.state, State::On) && self.held.is_none() && self.aborts.is_empty() && self.completing.is_empty()
    }

    fn must_wait(&self, flags: DescriptorFlags) -> bool {
        flags.contains(DescriptorFlags::FENCE) && self.jobs_under_way() && !mutant!(FenceIgnored)
    }

    /// Does a descriptor that was just fetched, of at most `most` bytes, and writes its completion. Bytes of an
    /// operand; `None`: nothing was done.
    #[inline]
    fn do_now<P: Platform>(
        &mut self,
        cx: &mut Context<P>,
        visit: &mut Visit<'_>,
        descriptor: &Descriptor,
        most: usize,
    ) -> Option<usize> {
        let Some(copy) = PlainCopy::of(self.config.user, descriptor, most) else {
            return self.do_rarer(cx, visit, descriptor, most);
        };
        if self.must_wait(copy.flags) {
            return None;
        }
        let (space, length) = (cx.requester.space(copy.space), copy.length);
        let src = locate(cx, visit.slice, &mut visit.src, Target { space, iova: copy.src, write: false }, length)?;
        let dst = locate(cx, visit.slice, &mut visit.dst, Target { space, iova: copy.dst, write: true }, length)?;
        let entry = self.completion_entry(cx, visit)?;
        src.copy_to(dst, length);
        self.finish_express(cx, entry, descriptor.cookie, descriptor.length, copy.flags);
        Some(length)
    }

    /// As [`do_now`](Self::do_now), for what is not a copy.
    #[inline(never)]
    fn do_rarer<P: Platform>(
        &mut self,
        cx: &mut Context<P>,
        visit: &mut Visit<'_>,
        descriptor: &Descriptor,
        most: usize,
    ) -> Option<usize> {
        let work = Work::check(self.config.user, descriptor).ok()?;
        let len = usize::try_from(work.length).ok().filter(|&len| len <= most)?;
        if self.must_wait(work.flags) {
            return None;
        }
        match (work.operation, work.dst) {
            (Operation::Nop, _) => {
                let entry = self.completion_entry(cx, visit)?;
                self.finish_express(cx, entry, work.cookie, 0, work.flags);
            }
            (Operation::Fill { pattern }, Some(Operand { address, entries: 0, space: OperandSpace::Own, .. })) => {
                let target = Target { space: cx.requester.space(work.space), iova: address, write: true };
                let dst = locate(cx, visit.slice, &mut visit.dst, target, len)?;
                let entry = self.completion_entry(cx, visit)?;
                dst.fill(pattern, len);
                self.finish_express(cx, entry, work.cookie, work.length, work.flags);
            }
            // Rare, or long enough for a job not to matter.
            _ => return None,
        }
        Some(len)
    }

    #[inline]
    fn finish_express<P: Platform>(
        &mut self,
        cx: &Context<P>,
        entry: Span<'_>,
        cookie: u64,
        bytes_done: u64,
        flags: DescriptorFlags,
    ) {
        let completion = Completion { cookie, bytes_done, status: Code::Success as u16, ..Completion::default() };
        self.write_completion(cx, entry, completion, flags);
        cx.counters().completions.add(1);
        cx.counters().bytes.add(bytes_done);
    }
}

/// The memory of an operand of `len` bytes, where the last operand's page or the device TLB has all of it.
#[inline]
fn locate<'s, P: Platform>(
    cx: &Context<P>,
    slice: &'s Slice,
    last: &mut Known<'s>,
    target: Target,
    len: usize,
) -> Option<Span<'s>> {
    let bytes = len as u64;
    if let Some(span) = last.part(target.space, target.iova, bytes) {
        return Some(span);
    }
    let (start, page) = cx.requester.cached_page(slice, target)?;
    let known = Known::new(target.space, start, page);
    if !cx.requester.is_audited() {
        *last = known;
    }
    known.part(target.space, target.iova, bytes)
}
