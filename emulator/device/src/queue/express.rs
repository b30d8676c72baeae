//! The short way: small work whose pages are all in the device TLB is done where it is fetched, without a job.
//!
//! Most descriptors of a busy queue are like that, and for them the job's slot, its lists and its place in two queues would be the larger
//! part of the cost. Whatever is not, or not now, goes the long way, which does the same.
use svadev_fabric::Upstream;
use svadev_memory::GuestMemory;
use svadev_mutation::mutant;
use svadev_spec::device::{Code, Completion, Descriptor, DescriptorFlags};

use super::rings::Visit;
use super::{Queue, State};
use crate::context::Context;
use crate::copy::Span;
use crate::descriptor::{Operand, Operation, Work};
use crate::job::PIECE_COST;
use crate::requester::Target;

/// Longest operand: less than what a turn may cost, so that nobody waits long.
const MOST: u64 = 8 << 10;

impl Queue {
    /// Does a descriptor that was just fetched, and writes its completion. `false`: nothing was done, it needs a job.
    pub(super) fn express<M, U>(
        &mut self,
        cx: &mut Context<M, U>,
        visit: &mut Visit<'_>,
        descriptor: &Descriptor,
        budget: &mut i64,
    ) -> bool
    where
        M: GuestMemory + ?Sized,
        U: Upstream + ?Sized,
    {
        let usual = matches!(self.state, State::On) && self.aborts.is_empty() && self.completing.is_empty();
        if !usual || descriptor.length > MOST {
            return false;
        }
        let Ok(work) = Work::check(self.config.user, descriptor) else { return false };
        if work.flags.contains(DescriptorFlags::FENCE) && self.jobs_under_way() && !mutant!(FenceIgnored) {
            return false;
        }
        let len = usize::try_from(work.length).expect("checked above");
        let locate = |operand: Option<Operand>, write| -> Option<Span<'_>> {
            let operand = operand.filter(|operand| operand.entries == 0)?;
            let target = Target { space: work.space, iova: operand.address, write };
            cx.requester.cached(visit.slice, target).filter(|span| span.len() >= len)
        };
        match work.operation {
            Operation::Nop => {
                let Some(entry) = self.completion_entry(cx, visit) else { return false };
                self.finish_express(cx, entry, &work);
            }
            Operation::Copy => {
                let (Some(src), Some(dst)) = (locate(work.src, false), locate(work.dst, true)) else { return false };
                let Some(entry) = self.completion_entry(cx, visit) else { return false };
                src.copy_to(dst, len);
                self.finish_express(cx, entry, &work);
            }
            Operation::Fill { pattern } => {
                let Some(dst) = locate(work.dst, true) else { return false };
                let Some(entry) = self.completion_entry(cx, visit) else { return false };
                dst.fill(pattern, len);
                self.finish_express(cx, entry, &work);
            }
            // Rare, or long enough for a job not to matter.
            _ => return false,
        }
        *budget -= i64::try_from(work.length).expect("checked above").max(PIECE_COST);
        true
    }

    fn finish_express<M, U>(&mut self, cx: &Context<M, U>, entry: Span<'_>, work: &Work)
    where
        M: GuestMemory + ?Sized,
        U: Upstream + ?Sized,
    {
        let completion = Completion {
            cookie: work.cookie,
            bytes_done: work.length,
            status: Code::Success as u16,
            ..Completion::default()
        };
        self.write_completion(cx, entry, completion, work.flags);
        cx.counters().completions.add(1);
        cx.counters().bytes.add(work.length);
    }
}
