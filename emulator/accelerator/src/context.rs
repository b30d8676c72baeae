//! What all queues of an engine use together: the requester, the clock's reading, and the book of who waits for which page.
use std::collections::VecDeque;
use std::sync::Arc;

use svadev_fabric::{Iova, PageRequest, PageRequestOutcome, PrgIndex, ResponseCode, Upstream};
use svadev_memory::GuestMemory;
use svadev_mutation::mutant;
use svadev_spec::device::{Code, MAX_QUEUES, MAX_SCATTER_ENTRIES};

use crate::copy::Slice;
use crate::counters::EngineCounters;
use crate::obligation::{Answer, Obligation};
use crate::page_request::{Group, NoGroup};
use crate::requester::{Refusal, Requester, Target};
use crate::shared::FunctionShared;
use crate::wait::{PATIENCE, Patience, Wait, WaitFor};

/// Most page requests of one group.
pub(crate) const MAX_GROUP_PAGES: usize = 64;
const PAGE: u64 = 0x1000;

/// Which part of a queue waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// The next descriptor's fetch.
    Submission,
    /// The next completion's write.
    Completion,
    /// A job, by its slot.
    Job(u16),
}

/// Who waits for a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Waiter {
    /// Position in the engine's list of queues.
    pub(crate) queue: usize,
    pub(crate) part: Part,
}

/// An access that could not be had, and what is to be done about it.
#[derive(Debug)]
pub(crate) struct Fault {
    pub(crate) target: Target,
    pub(crate) refusal: Refusal,
    /// Bytes from the target on that will be wanted next, in one piece.
    pub(crate) ahead: u64,
    /// Do not ask for the page.
    pub(crate) stop: bool,
}

/// See the module.
pub(crate) struct Context<M: ?Sized, U: ?Sized> {
    pub(crate) requester: Requester<M, U>,
    pub(crate) shared: Arc<FunctionShared>,
    pub(crate) engine: usize,
    /// As given to the current `run`.
    pub(crate) now_ns: u64,
    /// No wait ends before this; `u64::MAX` where there is none. May be early, never late.
    pub(crate) next_deadline_ns: u64,
    /// When the first of `delayed` is due; `u64::MAX` where there is none.
    next_interrupt_ns: u64,
    /// Bit n: the queue at position n has an interrupt that waits.
    delayed: [u64; MAX_QUEUES as usize / 64],
    /// Room for overlap checks.
    pub(crate) scratch: Vec<(u64, u64)>,
    waiters: Box<[Option<Waiter>]>,
    /// Waits for the page request allocation, oldest first. Each waiter is in it at most once.
    line: VecDeque<Waiter>,
    /// Some of the allocation may be free: the line can be tried.
    line_moves: bool,
    /// When the line last moved: a line that moves has no timeout.
    line_moved_ns: u64,
}

impl<M: GuestMemory + ?Sized, U: Upstream + ?Sized> Context<M, U> {
    /// `parts` is how many waiters there can be at most.
    pub(crate) fn new(engine: usize, requester: Requester<M, U>, shared: Arc<FunctionShared>, parts: usize) -> Self {
        Self {
            requester,
            shared,
            engine,
            now_ns: 0,
            next_deadline_ns: u64::MAX,
            next_interrupt_ns: u64::MAX,
            delayed: [0; MAX_QUEUES as usize / 64],
            scratch: Vec::with_capacity(MAX_SCATTER_ENTRIES as usize),
            waiters: vec![None; PrgIndex::COUNT].into(),
            line: VecDeque::with_capacity(parts),
            line_moves: false,
            line_moved_ns: 0,
        }
    }

    pub(crate) fn counters(&self) -> &EngineCounters {
        self.shared.engine_counters(self.engine)
    }

    /// This engine has done its part. The last one gives the answer: with no lock held.
    pub(crate) fn acknowledge(&self, obligation: Obligation) {
        match obligation.acknowledge() {
            None => {}
            Some(Answer::Invalidate(tag)) => self.requester.upstream().invalidate_complete(self.requester.bdf(), tag),
            Some(answer) => self.shared.give(answer),
        }
    }

    fn timeout_ns(&self) -> u64 {
        self.shared.settings().page_request_timeout_ns
    }

    /// Notes that the engine must run again at `at_ns`, which is returned.
    pub(crate) fn deadline(&mut self, at_ns: u64) -> u64 {
        self.next_deadline_ns = self.next_deadline_ns.min(at_ns);
        at_ns
    }

    /// When the engine must run again, if at all, ns.
    pub(crate) fn next_ns(&self) -> Option<u64> {
        let next = self.next_deadline_ns.min(self.next_interrupt_ns);
        (next != u64::MAX).then_some(next)
    }

    /// Notes that a queue's interrupt may be due at `at_ns`.
    pub(crate) fn interrupt_at(&mut self, queue: usize, at_ns: u64) {
        self.next_interrupt_ns = self.next_interrupt_ns.min(at_ns);
        self.delayed[queue / 64] |= 1 << (queue % 64);
    }

    /// The queues whose interrupts wait, if it is time to ask them; each is asked, and notes itself again if it is early.
    pub(crate) fn take_delayed(&mut self) -> Option<[u64; MAX_QUEUES as usize / 64]> {
        (self.now_ns >= self.next_interrupt_ns).then(|| {
            self.next_interrupt_ns = u64::MAX;
            std::mem::take(&mut self.delayed)
        })
    }

    /// Deals with an access that could not be had: parks it, with page requests under way, or says why it has failed.
    pub(crate) fn fault(
        &mut self,
        slice: &Slice,
        waiter: Waiter,
        patience: &mut Patience,
        fault: &Fault,
    ) -> Result<Wait, Code> {
        match fault.refusal {
            Refusal::Blocked => return Err(Code::TranslationBlocked),
            Refusal::NoMemory => return Err(Code::MemoryError),
            Refusal::NotPresent => {}
        }
        let gave_up = patience.dropped_since_ns.is_some_and(|t| self.now_ns >= t.saturating_add(self.timeout_ns()));
        if gave_up {
            return Err(Code::PageRequestTimeout);
        }
        let since = *patience.faulting_since_ns.get_or_insert(self.now_ns);
        let fruitless = patience.successes >= PATIENCE && self.now_ns >= since.saturating_add(self.timeout_ns());
        if fault.stop || (fruitless && !mutant!(SuccessRetriedForever)) {
            return Err(Code::PageFault);
        }
        let target = fault.target;
        let mut pages = [0; MAX_GROUP_PAGES];
        let wanted = self.missing_pages(slice, fault, patience.narrow, &mut pages);
        let group = match self.shared.prg().allocate(self.engine, target.space, wanted) {
            Ok(group) => group,
            Err(NoGroup::Disabled) => return Err(Code::PageFault),
            Err(NoGroup::Stopped) => return Err(Code::PageRequestFailed),
            Err(NoGroup::Starved) => {
                self.counters().starved.add(1);
                self.line.push_back(waiter);
                self.line_moves = false;
                let deadline_ns = self.deadline(self.now_ns.saturating_add(self.timeout_ns()));
                return Ok(Wait { target, reason: WaitFor::Line, deadline_ns });
            }
        };
        Ok(self.send(waiter, patience, target, group, &pages))
    }

    /// The pages to ask for together: the one that is needed, then those ahead of it that are not there either.
    fn missing_pages(&mut self, slice: &Slice, fault: &Fault, narrow: bool, pages: &mut [u64]) -> u16 {
        let first = fault.target.iova & !(PAGE - 1);
        pages[0] = first;
        let mut count = 1;
        let most = if narrow { 1 } else { usize::from(self.shared.settings().group_pages).min(pages.len()) };
        // The piece was checked not to wrap, so its last byte has an address.
        let last = fault.target.iova + (fault.ahead.max(1) - 1);
        let mut page = first;
        while count < most && last - page >= PAGE {
            page += PAGE;
            match self.requester.access(slice, Target { iova: page, ..fault.target }) {
                Ok(_) => {}
                Err(Refusal::NotPresent) => {
                    pages[count] = page;
                    count += 1;
                }
                Err(Refusal::Blocked | Refusal::NoMemory) => break,
            }
            // What is there already does not count, but looking has a limit too.
            if page - first >= PAGE * most as u64 {
                break;
            }
        }
        u16::try_from(count).expect("at most 64")
    }

    fn send(&mut self, waiter: Waiter, patience: &mut Patience, target: Target, group: Group, pages: &[u64]) -> Wait {
        let index = group.index();
        // Before the first request: the IOMMU may answer from within.
        self.waiters[usize::from(index.get())] = Some(waiter);
        let count = usize::from(group.pages());
        let mut outcome = PageRequestOutcome::Dropped;
        for (n, &page) in pages[..count].iter().enumerate() {
            outcome = self.requester.upstream().page_request(PageRequest {
                requester: self.requester.bdf(),
                pasid: target.space,
                iova: Iova(page),
                access: target.access(),
                prg_index: index,
                last: n + 1 == count,
            });
            if outcome == PageRequestOutcome::Dropped {
                self.counters().page_requests_dropped.add(1);
            }
        }
        self.counters().groups.add(1);
        self.counters().page_requests.add(count as u64);
        let (now, timeout) = (self.now_ns, self.timeout_ns());
        match outcome {
            PageRequestOutcome::Accepted => {
                patience.dropped_since_ns = None;
                let deadline_ns = self.deadline(now.saturating_add(timeout));
                Wait { target, reason: WaitFor::Response(group), deadline_ns }
            }
            // The last request decides whether a response will come.
            PageRequestOutcome::Dropped => {
                self.waiters[usize::from(index.get())] = None;
                self.shared.prg().unsent(group, |engine| self.shared.credit(engine));
                let since = *patience.dropped_since_ns.get_or_insert(now);
                let retry_ns = self.deadline(now.saturating_add(timeout.div_ceil(16)));
                Wait { target, reason: WaitFor::Retry { retry_ns }, deadline_ns: since.saturating_add(timeout) }
            }
        }
    }

    /// Nobody waits any more.
    pub(crate) fn cancel(&mut self, waiter: Waiter, wait: Wait) {
        match wait.reason {
            WaitFor::Response(group) => {
                self.waiters[usize::from(group.index().get())] = None;
                self.shared.prg().abandon(group, |engine| self.shared.credit(engine));
            }
            WaitFor::Line => self.line.retain(|w| *w != waiter),
            WaitFor::Retry { .. } => {}
        }
    }

    /// Who waits for the group with this index.
    pub(crate) fn waiter(&self, index: usize) -> Option<Waiter> {
        self.waiters[index]
    }

    /// The answer to a group, if there is one; the group is over then.
    pub(crate) fn collect(&mut self, group: Group) -> Result<ResponseCode, Group> {
        let index = usize::from(group.index().get());
        let code = self.shared.prg().collect(group, |engine| self.shared.credit(engine))?;
        self.waiters[index] = None;
        let counters = self.counters();
        match code {
            ResponseCode::Success => counters.responses_success.add(1),
            ResponseCode::InvalidRequest => counters.responses_invalid.add(1),
            ResponseCode::Failure => counters.responses_failure.add(1),
        }
        Ok(code)
    }

    /// Some of the allocation is free.
    pub(crate) fn credit(&mut self) {
        self.line_moves = true;
        self.line_moved_ns = self.now_ns;
    }

    /// The next in line that may ask again.
    pub(crate) fn next_in_line(&mut self) -> Option<Waiter> {
        if !self.line_moves {
            return None;
        }
        let next = self.line.pop_front();
        self.line_moves = next.is_some();
        next
    }

    /// Whether a wait's time is up, and if so whether it may try again. Otherwise its time is noted.
    pub(crate) fn expired(&mut self, wait: &Wait) -> Expiry {
        let (due_ns, expiry) = match wait.reason {
            WaitFor::Retry { retry_ns } => (retry_ns, Expiry::Retry),
            WaitFor::Line => {
                (wait.deadline_ns.max(self.line_moved_ns.saturating_add(self.timeout_ns())), Expiry::Failed)
            }
            WaitFor::Response(_) => (wait.deadline_ns, Expiry::Failed),
        };
        if self.now_ns >= due_ns {
            return expiry;
        }
        self.deadline(due_ns);
        Expiry::Waiting
    }
}

/// See [`Context::expired`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Expiry {
    Waiting,
    Retry,
    Failed,
}
