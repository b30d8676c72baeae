//! One queue, as its engine sees it: fetch, start, run, complete.
//!
//! The rings are guest memory like any other: each access is translated when it is made, and may have to wait for its page.
//! Of the doorbell page only `SQ_TAIL` and `CQ_HEAD` are ever read, and both are checked; what the device itself keeps
//! there is written and never read back.
use std::collections::VecDeque;

use svadev_fabric::{Pasid, Upstream};
use svadev_memory::GuestMemory;
use svadev_mutation::mutant;
use svadev_spec::device::{Code, Completion, Descriptor, DescriptorFlags, QueueStatus, doorbell, queue_error};
use zerocopy::{FromZeros, IntoBytes};

use crate::context::{Context, Expiry, Fault, Part, Waiter};
use crate::copy::Slice;
use crate::descriptor::{Work, space_of};
use crate::job::{Job, Phase, Step};
use crate::queue_config::QueueConfig;
use crate::requester::{Refusal, Target};
use crate::scatter::ListBuffer;
use crate::wait::{Patience, Resume, Wait, WaitFor};

mod stop;

pub(crate) use stop::Horizon;

/// Bytes of work in one slice: what an invalidation waits for at most.
pub(crate) const SLICE_BYTES: u64 = 64 << 10;
/// What a descriptor costs of a slice besides its bytes, so that a slice of tiny ones ends too.
const DESCRIPTOR_COST: u64 = 512;
/// Jobs of one queue that are worked on in turn; with fewer, the next descriptor is started.
const INTERLEAVED: usize = 4;
const DESCRIPTOR: u64 = size_of::<Descriptor>() as u64;
const COMPLETION: u64 = size_of::<Completion>() as u64;

#[derive(Debug)]
enum State {
    /// Disabled.
    Off,
    On,
    /// On its way to `Off` or `Halted`: nothing new is run, what there is ends as *aborted*, nothing waits for a page.
    Stopping {
        then: Then,
        /// Descriptors below this are still taken from the ring, to be completed.
        tail: u64,
    },
    /// Stopped by itself.
    Halted,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Then {
    Off,
    Halted { error: u8, address: u64 },
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Queue {
    /// The queue's number in the function.
    number: usize,
    /// Its position among the engine's queues.
    position: usize,
    state: State,
    /// Of the queue as it runs; means nothing while it is off.
    config: QueueConfig,
    /// Enable again when it has stopped.
    enable_next: Option<QueueConfig>,
    /// Counts the times it was enabled.
    run: u64,
    /// Free-running, wider than in the doorbells so that they order without wrapping.
    sq_head: u64,
    cq_tail: u64,
    /// What software's words were when they were last looked at.
    seen: (u32, u32),
    /// Fetched, and not started yet: it waits for a slot, a fence or room for its lists.
    held: Option<Descriptor>,
    jobs: Box<[Option<Job>]>,
    free: Vec<u16>,
    runnable: VecDeque<u16>,
    completing: VecDeque<u16>,
    /// Jobs in `Phase::Drain`.
    drains: usize,
    buffers: Vec<ListBuffer>,
    sq_wait: Option<Wait>,
    sq_patience: Patience,
    cq_wait: Option<Wait>,
    cq_patience: Patience,
    /// Aborted PASIDs of a kernel queue: their descriptors below the index, not fetched yet, end as *aborted*.
    aborts: Vec<(Pasid, u64)>,
}

impl Queue {
    /// Queue `number`, off, with room for `jobs` descriptors under way and `lists` scatter lists.
    pub(crate) fn new(number: usize, position: usize, jobs: usize, lists: usize) -> Self {
        let slots = u16::try_from(jobs).expect("settings allow at most 256");
        Self {
            number,
            position,
            state: State::Off,
            config: QueueConfig { sq_base: 0, cq_base: 0, sq_log2: 1, cq_log2: 1, user: None, vector: None },
            enable_next: None,
            run: 0,
            sq_head: 0,
            cq_tail: 0,
            seen: (0, 0),
            held: None,
            jobs: (0..slots).map(|_| None).collect(),
            free: (0..slots).rev().collect(),
            runnable: VecDeque::with_capacity(jobs),
            completing: VecDeque::with_capacity(jobs),
            drains: 0,
            buffers: (0..lists).map(|_| ListBuffer::new()).collect(),
            sq_wait: None,
            sq_patience: Patience::default(),
            cq_wait: None,
            cq_patience: Patience::default(),
            aborts: Vec::with_capacity(stop::ABORTS),
        }
    }

    /// Its number in the function.
    pub(crate) fn number(&self) -> usize {
        self.number
    }

    fn is_stopping(&self) -> bool {
        matches!(self.state, State::Stopping { .. })
    }

    /// Whether it is enabled and has not stopped.
    fn is_live(&self) -> bool {
        matches!(self.state, State::On | State::Stopping { .. })
    }

    fn waiter(&self, part: Part) -> Waiter {
        Waiter { queue: self.position, part }
    }

    fn jobs_under_way(&self) -> bool {
        self.free.len() < self.jobs.len()
    }

    /// Whether software's doorbell words differ from when the queue was last served.
    pub(crate) fn is_rung<M, U>(&self, cx: &Context<M, U>) -> bool
    where
        M: GuestMemory + ?Sized,
        U: Upstream + ?Sized,
    {
        matches!(self.state, State::On) && cx.shared.enabled() && self.words(cx) != self.seen
    }

    fn words<M, U>(&self, cx: &Context<M, U>) -> (u32, u32)
    where
        M: GuestMemory + ?Sized,
        U: Upstream + ?Sized,
    {
        let doorbells = cx.shared.doorbells();
        (doorbells.load(self.number, doorbell::SQ_TAIL), doorbells.load(self.number, doorbell::CQ_HEAD))
    }

    /// One slice of the queue's work. `false`: there was nothing that could be done.
    pub(crate) fn serve<M, U>(&mut self, cx: &mut Context<M, U>, slice: &Slice) -> bool
    where
        M: GuestMemory + ?Sized,
        U: Upstream + ?Sized,
    {
        if !self.is_live() || (matches!(self.state, State::On) && !cx.shared.enabled()) {
            return false;
        }
        // Before anything is done: a word that changes after this makes `is_rung` say so.
        self.seen = self.words(cx);
        let mut worked = self.flush(cx, slice);
        let mut budget = SLICE_BYTES;
        while budget > 0 && self.is_live() {
            let mut progress = self.runnable.len() < INTERLEAVED && self.start_next(cx, slice);
            if let Some(slot) = self.runnable.pop_front() {
                self.run_job(cx, slice, slot, &mut budget);
                progress = true;
            }
            progress |= self.flush(cx, slice);
            if !progress {
                if self.is_stopping() {
                    self.stopped(cx);
                    worked = true;
                }
                break;
            }
            worked = true;
            budget = budget.saturating_sub(DESCRIPTOR_COST);
        }
        worked
    }

    /// Starts the next descriptor, if there is one and it may start. Whether anything changed.
    fn start_next<M, U>(&mut self, cx: &mut Context<M, U>, slice: &Slice) -> bool
    where
        M: GuestMemory + ?Sized,
        U: Upstream + ?Sized,
    {
        let mut progress = false;
        if self.held.is_none() {
            self.held = self.fetch(cx, slice);
            progress = self.held.is_some();
        }
        let Some(descriptor) = self.held else { return progress };
        if self.free.is_empty() {
            return progress;
        }
        let Some(job) = self.make_job(&descriptor) else { return progress };
        self.held = None;
        let slot = self.free.pop().expect("checked above");
        match job.phase {
            Phase::Complete(_) => self.completing.push_back(slot),
            Phase::Drain => self.drains += 1,
            Phase::Lists | Phase::Run => self.runnable.push_back(slot),
        }
        self.jobs[usize::from(slot)] = Some(job);
        self.settle_drains();
        true
    }

    /// The job for a descriptor; `None` while it may not start.
    fn make_job(&mut self, descriptor: &Descriptor) -> Option<Job> {
        let index = self.sq_head - 1;
        let flags = DescriptorFlags::from_bits_truncate(descriptor.flags);
        let space = space_of(self.config.user, descriptor).unwrap_or(self.config.user);
        let ended = |code| Job::ended(index, space, flags, descriptor.cookie, code);
        if self.is_stopping() || self.is_aborted(space, index) {
            return Some(ended(Code::Aborted));
        }
        if flags.contains(DescriptorFlags::FENCE) && self.jobs_under_way() && !mutant!(FenceIgnored) {
            return None;
        }
        let work = match Work::check(self.config.user, descriptor) {
            Ok(work) => work,
            Err(code) => return Some(ended(code)),
        };
        let lists = [work.src, work.dst].into_iter().flatten().filter(|o| o.entries != 0).count();
        if self.buffers.len() < lists {
            return None;
        }
        Some(Job::new(index, &work, || self.buffers.pop().expect("counted above")))
    }

    /// The index below which software has written descriptors, or `None` where its word cannot be true.
    fn tail(&self, word: u32) -> Option<u64> {
        let ahead = word.wrapping_sub(low_word(self.sq_head));
        (ahead <= 1 << self.config.sq_log2).then(|| self.sq_head + u64::from(ahead))
    }

    /// Takes the next descriptor out of the ring, if there is one.
    fn fetch<M, U>(&mut self, cx: &mut Context<M, U>, slice: &Slice) -> Option<Descriptor>
    where
        M: GuestMemory + ?Sized,
        U: Upstream + ?Sized,
    {
        if self.sq_wait.is_some() {
            return None;
        }
        if let State::Stopping { tail, .. } = self.state {
            if self.sq_head >= tail {
                return None;
            }
        } else {
            match self.tail(cx.shared.doorbells().load(self.number, doorbell::SQ_TAIL)) {
                None => {
                    self.halt(cx, queue_error::BAD_TAIL, 0);
                    return None;
                }
                Some(tail) if tail == self.sq_head => return None,
                Some(_) => {}
            }
        }
        let slot = self.sq_head & ((1 << self.config.sq_log2) - 1);
        let target = Target { space: self.config.user, iova: self.config.sq_base + slot * DESCRIPTOR, write: false };
        let mut descriptor = Descriptor::new_zeroed();
        match cx.requester.access(slice, target) {
            // An entry is aligned to its size, so it never crosses a page.
            Ok(span) => span.load(descriptor.as_mut_bytes()),
            Err(refusal) => {
                self.fetch_refused(cx, slice, target, refusal);
                return None;
            }
        }
        self.sq_patience.progress();
        self.sq_head += 1;
        cx.shared.doorbells().store(self.number, doorbell::SQ_HEAD, low_word(self.sq_head));
        Some(descriptor)
    }

    fn fetch_refused<M, U>(&mut self, cx: &mut Context<M, U>, slice: &Slice, target: Target, refusal: Refusal)
    where
        M: GuestMemory + ?Sized,
        U: Upstream + ?Sized,
    {
        if let State::Stopping { tail, .. } = &mut self.state {
            *tail = self.sq_head;
            return;
        }
        let waiter = self.waiter(Part::Submission);
        let fault = Fault { target, refusal, ahead: DESCRIPTOR, stop: false };
        match cx.fault(slice, waiter, &mut self.sq_patience, &fault) {
            Ok(wait) => self.sq_wait = Some(wait),
            Err(_) => self.halt(cx, queue_error::SQ_FAULT, target.iova),
        }
    }

    fn run_job<M, U>(&mut self, cx: &mut Context<M, U>, slice: &Slice, slot: u16, budget: &mut u64)
    where
        M: GuestMemory + ?Sized,
        U: Upstream + ?Sized,
    {
        let waiter = self.waiter(Part::Job(slot));
        let job = self.jobs[usize::from(slot)].as_mut().expect("a runnable slot has a job");
        match job.step(&mut cx.requester, slice, &mut cx.scratch, budget) {
            Step::Yield => self.runnable.push_back(slot),
            Step::Complete => self.completing.push_back(slot),
            Step::Refused { target, refusal, ahead } => {
                let stop = job.flags.contains(DescriptorFlags::STOP_ON_FAULT);
                match cx.fault(slice, waiter, &mut job.patience, &Fault { target, refusal, ahead, stop }) {
                    Ok(wait) => job.wait = Some(wait),
                    Err(code) => {
                        job.fail(code, target);
                        self.completing.push_back(slot);
                    }
                }
            }
        }
    }

    /// Writes the completions that can be written. Whether there was one.
    fn flush<M, U>(&mut self, cx: &mut Context<M, U>, slice: &Slice) -> bool
    where
        M: GuestMemory + ?Sized,
        U: Upstream + ?Sized,
    {
        let mut wrote = false;
        let mut interrupt = false;
        while let Some(&slot) = self.completing.front() {
            if self.cq_wait.is_some() || !self.has_cq_room(cx) || !self.write_completion(cx, slice, slot) {
                break;
            }
            self.completing.pop_front();
            wrote = true;
            interrupt |= self.release(cx, slot).contains(DescriptorFlags::INTERRUPT);
            self.settle_drains();
        }
        if interrupt {
            self.raise(cx);
        }
        wrote
    }

    fn has_cq_room<M, U>(&mut self, cx: &mut Context<M, U>) -> bool
    where
        M: GuestMemory + ?Sized,
        U: Upstream + ?Sized,
    {
        let head = cx.shared.doorbells().load(self.number, doorbell::CQ_HEAD);
        let unread = low_word(self.cq_tail).wrapping_sub(head);
        // Neither beyond what was written nor further behind it than there are entries.
        if u64::from(unread) > self.cq_tail.min(1 << self.config.cq_log2) {
            self.halt(cx, queue_error::BAD_CQ_HEAD, 0);
            return false;
        }
        unread < 1 << self.config.cq_log2 || mutant!(CompletionRingOverrun)
    }

    fn write_completion<M, U>(&mut self, cx: &mut Context<M, U>, slice: &Slice, slot: u16) -> bool
    where
        M: GuestMemory + ?Sized,
        U: Upstream + ?Sized,
    {
        let at = self.cq_tail & ((1 << self.config.cq_log2) - 1);
        let target = Target { space: self.config.user, iova: self.config.cq_base + at * COMPLETION, write: true };
        let span = match cx.requester.access(slice, target) {
            Ok(span) => span,
            Err(refusal) => {
                self.completion_refused(cx, slice, target, refusal);
                return false;
            }
        };
        let job = self.jobs[usize::from(slot)].as_ref().expect("a completing slot has a job");
        let Phase::Complete(completion) = &job.phase else { unreachable!("a completing job is complete") };
        let bytes = completion.as_bytes();
        const SEQ: usize = std::mem::offset_of!(Completion, seq);
        span.store(&bytes[..SEQ]);
        // Last, and release: software that reads the sequence number it expects sees the whole entry.
        self.cq_tail += 1;
        span.store_release(SEQ, low_word(self.cq_tail));
        self.cq_patience.progress();
        cx.shared.doorbells().store(self.number, doorbell::CQ_TAIL, low_word(self.cq_tail));
        true
    }

    fn completion_refused<M, U>(&mut self, cx: &mut Context<M, U>, slice: &Slice, target: Target, refusal: Refusal)
    where
        M: GuestMemory + ?Sized,
        U: Upstream + ?Sized,
    {
        if self.is_stopping() {
            // Nothing waits for a page any more: what cannot be written now is dropped (`stopped`).
            return;
        }
        let waiter = self.waiter(Part::Completion);
        let fault = Fault { target, refusal, ahead: COMPLETION, stop: false };
        match cx.fault(slice, waiter, &mut self.cq_patience, &fault) {
            Ok(wait) => self.cq_wait = Some(wait),
            Err(_) => self.halt(cx, queue_error::CQ_FAULT, target.iova),
        }
    }

    /// A job whose completion was written is over.
    fn release<M, U>(&mut self, cx: &Context<M, U>, slot: u16) -> DescriptorFlags
    where
        M: GuestMemory + ?Sized,
        U: Upstream + ?Sized,
    {
        let job = self.jobs[usize::from(slot)].take().expect("a completing slot has a job");
        debug_assert!(job.wait.is_none());
        let flags = job.flags;
        cx.counters().completions.add(1);
        cx.counters().bytes.add(job.bytes_done());
        self.buffers.extend(job.into_buffers());
        self.free.push(slot);
        flags
    }

    fn raise<M, U>(&self, cx: &Context<M, U>)
    where
        M: GuestMemory + ?Sized,
        U: Upstream + ?Sized,
    {
        if let Some(vector) = self.config.vector {
            cx.counters().interrupts.add(1);
            cx.shared.ports().interrupt(vector);
        }
    }

    /// Completes the DRAIN that everything before is done for. There is at most one: the oldest job.
    fn settle_drains(&mut self) {
        if self.drains == 0 {
            return;
        }
        let jobs = self.jobs.iter_mut().enumerate().filter_map(|(slot, job)| Some((slot, job.as_mut()?)));
        let oldest = |(_, job): &(usize, &mut Job)| match job.phase {
            Phase::Drain if mutant!(DrainIgnored) => 0,
            _ => job.index,
        };
        if let Some((slot, job)) = jobs.min_by_key(oldest)
            && matches!(job.phase, Phase::Drain)
        {
            job.end(Code::Success);
            self.drains -= 1;
            self.completing.push_back(u16::try_from(slot).expect("at most 256 slots"));
        }
    }

    fn wait_mut(&mut self, part: Part) -> &mut Option<Wait> {
        match part {
            Part::Submission => &mut self.sq_wait,
            Part::Completion => &mut self.cq_wait,
            Part::Job(slot) => &mut self.jobs[usize::from(slot)].as_mut().expect("a waiter has a job").wait,
        }
    }

    fn patience_mut(&mut self, part: Part) -> &mut Patience {
        match part {
            Part::Submission => &mut self.sq_patience,
            Part::Completion => &mut self.cq_patience,
            Part::Job(slot) => &mut self.jobs[usize::from(slot)].as_mut().expect("a waiter has a job").patience,
        }
    }

    /// The group that a part waits for may have been answered.
    pub(crate) fn answered<M, U>(&mut self, cx: &mut Context<M, U>, part: Part)
    where
        M: GuestMemory + ?Sized,
        U: Upstream + ?Sized,
    {
        let wait = self.wait_mut(part).take().expect("the book of waiters names only who waits");
        let WaitFor::Response(group) = wait.reason else { unreachable!("only a response is looked up by index") };
        let pages = group.pages();
        match cx.collect(group) {
            Ok(code) => {
                let resume = self.patience_mut(part).response(code, pages);
                self.resume(cx, part, wait.target, resume);
            }
            Err(group) => *self.wait_mut(part) = Some(Wait { reason: WaitFor::Response(group), ..wait }),
        }
    }

    /// A part that is next in line may ask again.
    pub(crate) fn move_up<M, U>(&mut self, cx: &mut Context<M, U>, part: Part)
    where
        M: GuestMemory + ?Sized,
        U: Upstream + ?Sized,
    {
        let wait = self.wait_mut(part).take().expect("who is in line waits");
        debug_assert!(matches!(wait.reason, WaitFor::Line));
        self.resume(cx, part, wait.target, Resume::Retry);
    }

    fn resume<M, U>(&mut self, cx: &mut Context<M, U>, part: Part, target: Target, resume: Resume)
    where
        M: GuestMemory + ?Sized,
        U: Upstream + ?Sized,
    {
        match (part, resume) {
            (Part::Submission, Resume::Retry) if mutant!(ParkCountsDescriptorTwice) => self.sq_head += 1,
            (Part::Submission | Part::Completion, Resume::Retry) => {}
            (Part::Submission, Resume::Fail(_)) => self.halt(cx, queue_error::SQ_FAULT, target.iova),
            (Part::Completion, Resume::Fail(_)) => self.halt(cx, queue_error::CQ_FAULT, target.iova),
            (Part::Job(slot), Resume::Retry) => self.runnable.push_back(slot),
            (Part::Job(slot), Resume::Fail(code)) => {
                self.jobs[usize::from(slot)].as_mut().expect("a waiter has a job").fail(code, target);
                self.completing.push_back(slot);
            }
        }
    }

    /// Ends or retries the waits whose time is up; notes the times of the others.
    pub(crate) fn expire<M, U>(&mut self, cx: &mut Context<M, U>) -> bool
    where
        M: GuestMemory + ?Sized,
        U: Upstream + ?Sized,
    {
        let mut changed = false;
        let slots = u16::try_from(self.jobs.len()).expect("at most 256 slots");
        let parts = [Part::Submission, Part::Completion].into_iter().chain((0..slots).map(Part::Job));
        for part in parts {
            if matches!(part, Part::Job(slot) if self.jobs[usize::from(slot)].is_none()) {
                continue;
            }
            let Some(wait) = self.wait_mut(part).take() else { continue };
            let resume = match cx.expired(&wait) {
                Expiry::Waiting => {
                    *self.wait_mut(part) = Some(wait);
                    continue;
                }
                Expiry::Retry => Resume::Retry,
                Expiry::Failed => {
                    cx.counters().page_request_timeouts.add(1);
                    Resume::Fail(Code::PageRequestTimeout)
                }
            };
            let target = wait.target;
            cx.cancel(self.waiter(part), wait);
            self.resume(cx, part, target, resume);
            changed = true;
        }
        changed
    }

    /// Stops by itself. A completion ring that cannot be used takes everything down at once.
    fn halt<M, U>(&mut self, cx: &mut Context<M, U>, error: u8, address: u64)
    where
        M: GuestMemory + ?Sized,
        U: Upstream + ?Sized,
    {
        let then = match self.state {
            // Already on its way to being disabled: that is what software asked for.
            State::Stopping { then: Then::Off, .. } => Then::Off,
            _ => Then::Halted { error, address },
        };
        self.stop(cx, then, false);
        if matches!(error, queue_error::BAD_CQ_HEAD | queue_error::CQ_FAULT) {
            self.stopped(cx);
        }
    }

    fn set_face<M, U>(&self, cx: &Context<M, U>, status: QueueStatus, address: u64)
    where
        M: GuestMemory + ?Sized,
        U: Upstream + ?Sized,
    {
        cx.shared.queue(self.number).set(status, address);
    }
}

/// The low half of a free-running index, as doorbells and completions have it.
fn low_word(index: u64) -> u32 {
    u32::try_from(index & u64::from(u32::MAX)).expect("masked to 32 bits")
}
