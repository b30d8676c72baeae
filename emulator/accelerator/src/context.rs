//! What all queues of an engine use together: its requester, the clock's reading, who waits for which page, and whose
//! interrupt is delayed.
use std::sync::Arc;

use svadev_endpoint::{
    Answer, Endpoint, Expiry, Failure, Fault, Group, Obligation, PageWaits, Patience, Platform, Requester, Slice, Wait,
};
use svadev_fabric::{ResponseCode, Upstream};
use svadev_spec::device::{Code, MAX_QUEUES, MAX_SCATTER_ENTRIES};

use crate::counters::EngineCounters;
use crate::orders::{Done, Orders};
use crate::shared::FunctionShared;

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

/// The completion code of an access that has failed.
pub(crate) fn code_of(failure: Failure) -> Code {
    match failure {
        Failure::Blocked => Code::TranslationBlocked,
        Failure::NoMemory => Code::MemoryError,
        Failure::PageFault => Code::PageFault,
        Failure::PageRequestFailed => Code::PageRequestFailed,
        Failure::Timeout => Code::PageRequestTimeout,
    }
}

/// What the queues of one engine share.
pub(crate) struct Context<P: Platform> {
    pub(crate) requester: Requester<P>,
    pub(crate) shared: Arc<FunctionShared>,
    pub(crate) engine: usize,
    /// As given to the current `run`.
    pub(crate) now_ns: u64,
    pub(crate) waits: PageWaits<Waiter>,
    /// When the first of `delayed` is due; `u64::MAX` where there is none.
    next_interrupt_ns: u64,
    /// Bit n: the queue at position n has an interrupt that waits.
    delayed: [u64; MAX_QUEUES as usize / 64],
    /// The vector of the mirror's events.
    pub(crate) mirror_vector: Option<u16>,
    /// Room for overlap checks.
    pub(crate) scratch: Vec<(u64, u64)>,
}

impl<P: Platform> Context<P> {
    /// `parts` is how many waiters there can be at most.
    pub(crate) fn new(engine: usize, requester: Requester<P>, shared: Arc<FunctionShared>, parts: usize) -> Self {
        Self {
            requester,
            shared,
            engine,
            now_ns: 0,
            waits: PageWaits::new(engine, parts),
            next_interrupt_ns: u64::MAX,
            delayed: [0; MAX_QUEUES as usize / 64],
            mirror_vector: None,
            scratch: Vec::with_capacity(MAX_SCATTER_ENTRIES as usize),
        }
    }

    /// What the accelerator counts.
    pub(crate) fn counters(&self) -> &EngineCounters {
        self.shared.engine_counters(self.engine)
    }

    /// What every endpoint counts.
    pub(crate) fn endpoint_counters(&self) -> &svadev_endpoint::EngineCounters {
        self.endpoint().engine_counters(self.engine)
    }

    pub(crate) fn endpoint(&self) -> &Endpoint<Orders> {
        self.shared.endpoint()
    }

    /// This engine has done its part. The last one gives the answer: with no lock held.
    pub(crate) fn acknowledge(&self, obligation: Obligation<Done>) {
        match obligation.acknowledge() {
            None => {}
            Some(Answer::Invalidate(tag)) => self.requester.upstream().invalidate_complete(self.requester.bdf(), tag),
            Some(Answer::Memory(token)) => self.endpoint().memory_released(token),
            Some(Answer::Device(done)) => self.shared.give(done),
        }
    }

    fn timeout_ns(&self) -> u64 {
        self.endpoint().settings().page_request_timeout_ns
    }

    /// When the engine must run again, if at all, ns.
    pub(crate) fn next_ns(&self) -> Option<u64> {
        let next = self.waits.next_deadline_ns().min(self.next_interrupt_ns).min(self.requester.mirror().next_ns());
        (next != u64::MAX).then_some(next)
    }

    /// Notes that a queue's interrupt may be due at `at_ns`.
    pub(crate) fn interrupt_at(&mut self, queue: usize, at_ns: u64) {
        self.next_interrupt_ns = self.next_interrupt_ns.min(at_ns);
        self.delayed[queue / 64] |= 1 << (queue % 64);
    }

    /// The queues whose interrupts wait, if it is time to ask them; each is asked, and notes itself again if it is
    /// early.
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
        let endpoint = self.shared.endpoint();
        self.waits.fault(endpoint, &mut self.requester, slice, self.now_ns, waiter, patience, fault).map_err(code_of)
    }

    /// Nobody waits any more.
    pub(crate) fn cancel(&mut self, waiter: Waiter, wait: Wait) {
        self.waits.cancel(self.shared.endpoint(), &mut self.requester, waiter, wait);
    }

    /// The next wait that the mirror's driver ends: who waits, and what the driver said.
    pub(crate) fn mirror_answer(&mut self) -> Option<(Waiter, ResponseCode)> {
        let gate = self.endpoint().gate();
        let answer = self.requester.mirror_response(gate, self.now_ns)?;
        let waiter = self.waits.take_mirror_waiter(self.shared.endpoint(), answer.slot, answer.code);
        Some((waiter.expect("a ticket has a waiter until it is answered or forgotten"), answer.code))
    }

    /// Sends the mirror's events, and raises its vector if somebody must hear of them or of an acknowledgement.
    pub(crate) fn mirror_work(&mut self) {
        if !self.requester.mirror().is_on() {
            return;
        }
        let gate = self.endpoint().gate();
        self.requester.mirror_work(gate, self.now_ns);
        if self.requester.mirror_mut().take_wake()
            && let Some(vector) = self.mirror_vector
        {
            self.shared.ports().interrupt(vector);
        }
    }

    /// The answer to a group, if there is one; the group is over then.
    pub(crate) fn collect(&mut self, group: Group) -> Result<ResponseCode, Group> {
        self.waits.collect(self.shared.endpoint(), group)
    }

    /// Whether a wait's time is up, and if so whether it may try again. Otherwise its time is noted.
    pub(crate) fn expired(&mut self, wait: &Wait) -> Expiry {
        let timeout_ns = self.timeout_ns();
        self.waits.expired(wait, self.now_ns, timeout_ns)
    }
}
