//! One queue, as its engine sees it: fetch, start, run, complete.
//!
//! The rings are guest memory like any other: each access is translated when it is made, and may have to wait for its
//! page. Of the doorbell page only `SQ_TAIL` and `CQ_HEAD` are ever read, and both are checked; what the device itself
//! keeps there is written and never read back.
use std::cell::Cell;
use std::collections::VecDeque;

use svadev_endpoint::{Expiry, Failure, Fault, Patience, Platform, Refusal, Resume, Slice, Target, Wait, WaitFor};
use svadev_fabric::{Pasid, ResponseCode};
use svadev_mutation::mutant;
use svadev_spec::device::{Code, Descriptor, DescriptorFlags, QueueModeration, QueueStatus, doorbell, queue_error};

use crate::context::{Context, Part, Waiter, code_of};
use crate::descriptor::{Work, space_of};
use crate::job::{Job, Phase, Step};
use crate::moderation::Moderation;
use crate::policy::{DESCRIPTOR_COST, WATCH_NS};
use crate::queue_config::QueueConfig;
use crate::scatter::ListBuffer;

mod express;
mod rings;
mod state;
mod stop;
mod visit;

pub(crate) use state::QueueState;
pub(crate) use stop::Horizon;
use visit::Visit;

/// Jobs of one queue that are worked on in turn; with fewer, the next descriptor is started.
const INTERLEAVED: usize = 4;

#[derive(Clone, Copy, Debug)]
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

/// How a visit to a queue ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Served {
    /// Something was done.
    pub(crate) worked: bool,
    /// There may be more to do at once.
    pub(crate) more: bool,
}

/// One queue: its rings, its jobs, and what they wait for.
#[derive(Debug)]
pub(crate) struct Queue {
    /// The queue's number in the function.
    number: usize,
    /// The same, as events have it.
    name: u16,
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
    /// Software's words (tail, head) as they were last loaded.
    seen: (u32, u32),
    /// The device's words (head, tail) as they were last stored.
    shown: (u32, u32),
    /// `ARMED` was stored as 1.
    armed: Cell<bool>,
    moderation: Moderation,
    /// Completions that want an interrupt, written since `show`.
    wanted: u32,
    /// Since when it has had nothing to do, ns.
    pub(crate) idle_since_ns: u64,
    /// How long it is watched without work, ns.
    pub(crate) watch_ns: u64,
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
            name: u16::try_from(number).expect("a function has at most 256 queues"),
            position,
            state: State::Off,
            config: QueueConfig {
                sq_base: 0,
                cq_base: 0,
                sq_log2: 1,
                cq_log2: 1,
                user: None,
                vector: None,
                weight: 1,
                moderation: QueueModeration::new(),
            },
            enable_next: None,
            run: 0,
            sq_head: 0,
            cq_tail: 0,
            seen: (0, 0),
            shown: (0, 0),
            armed: Cell::new(false),
            moderation: Moderation::default(),
            wanted: 0,
            idle_since_ns: 0,
            watch_ns: WATCH_NS,
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

    /// What an access to its rings asks for.
    pub(super) fn ring_fault(&self, target: Target, refusal: Refusal, ahead: u64) -> Fault {
        Fault { target, refusal, ahead, stop: false, queue: self.name, cookie: None }
    }

    /// Whether it runs, so that its doorbell counts.
    pub(crate) fn is_on(&self) -> bool {
        matches!(self.state, State::On)
    }

    pub(crate) fn is_stopping(&self) -> bool {
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

    /// Its share, in relation to other queues'.
    pub(crate) fn weight(&self) -> i64 {
        i64::from(self.config.weight)
    }

    /// Whether software may have given it something to do since it was last served. One cache line.
    pub(crate) fn is_rung<P: Platform>(&self, cx: &Context<P>) -> bool {
        let (tail, head) = self.words(cx);
        matches!(self.state, State::On)
            && (tail != self.seen.0 || (head != self.seen.1 && !self.completing.is_empty()))
            && cx.shared.enabled()
    }

    fn words<P: Platform>(&self, cx: &Context<P>) -> (u32, u32) {
        let doorbells = cx.shared.doorbells();
        (doorbells.load(self.number, doorbell::SQ_TAIL), doorbells.load(self.number, doorbell::CQ_HEAD))
    }

    /// Works until nothing more can be done or `budget` is used up, from which the cost is taken.
    pub(crate) fn serve<P: Platform>(&mut self, cx: &mut Context<P>, slice: &Slice, budget: &mut i64) -> Served {
        if !self.is_live() || (matches!(self.state, State::On) && !cx.shared.enabled()) {
            return Served { worked: false, more: false };
        }
        // Before anything is done: a word that changes after this makes `is_rung` say so.
        self.seen = self.words(cx);
        let mut visit = Visit::new(slice);
        let mut worked = self.flush(cx, &mut visit);
        let mut more = true;
        while *budget > 0 && self.is_live() && more {
            let room = self.runnable.len() < INTERLEAVED;
            let swift = room && self.express(cx, &mut visit, budget);
            // What went the short way stopped at one that needs a job, or where there was nothing more to do.
            let next = !swift || self.held.is_some();
            let mut progress = room && next && self.start_next(cx, &mut visit);
            if let Some(slot) = self.runnable.pop_front() {
                self.run_job(cx, slice, slot, budget);
                progress = true;
            }
            progress |= self.flush(cx, &mut visit);
            if progress {
                *budget -= DESCRIPTOR_COST;
            } else if self.is_stopping() {
                self.stopped(cx);
                progress = true;
            } else {
                more = swift;
            }
            worked |= progress || swift;
        }
        self.show(cx);
        Served { worked, more: more && self.is_live() }
    }

    /// Starts the next descriptor, if there is one and it may start. Whether anything changed.
    fn start_next<P: Platform>(&mut self, cx: &mut Context<P>, visit: &mut Visit<'_>) -> bool {
        let mut progress = false;
        if self.held.is_none() {
            let mut descriptor = Descriptor::default();
            if self.fetch(cx, visit, &mut descriptor) {
                self.held = Some(descriptor);
                progress = true;
            }
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

    fn run_job<P: Platform>(&mut self, cx: &mut Context<P>, slice: &Slice, slot: u16, budget: &mut i64) {
        let waiter = self.waiter(Part::Job(slot));
        let job = self.jobs[usize::from(slot)].as_mut().expect("a runnable slot has a job");
        match job.step(&mut cx.requester, slice, &mut cx.scratch, budget) {
            Step::Yield => self.runnable.push_back(slot),
            Step::Complete => self.completing.push_back(slot),
            Step::Refused { target, refusal, ahead } => {
                let stop = job.flags.contains(DescriptorFlags::STOP_ON_FAULT);
                let fault = Fault { target, refusal, ahead, stop, queue: self.name, cookie: Some(job.cookie()) };
                match cx.fault(slice, waiter, &mut job.patience, &fault) {
                    Ok(wait) => job.wait = Some(wait),
                    Err(code) => {
                        job.fail(code, target);
                        self.completing.push_back(slot);
                    }
                }
            }
        }
    }

    /// Completes the oldest job if it is a DRAIN: all jobs before it are done.
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
    pub(crate) fn answered<P: Platform>(&mut self, cx: &mut Context<P>, part: Part) {
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

    /// The mirror's driver has answered what a part waits for.
    pub(crate) fn mirror_answered<P: Platform>(&mut self, cx: &mut Context<P>, part: Part, code: ResponseCode) {
        let wait = self.wait_mut(part).take().expect("a ticket has a waiter until it is answered or forgotten");
        let resume = self.patience_mut(part).response(code, 1);
        self.resume(cx, part, wait.target, resume);
    }

    /// A part that is next in line may ask again.
    pub(crate) fn move_up<P: Platform>(&mut self, cx: &mut Context<P>, part: Part) {
        let wait = self.wait_mut(part).take().expect("who is in line waits");
        debug_assert!(matches!(wait.reason, WaitFor::Line));
        self.resume(cx, part, wait.target, Resume::Retry);
    }

    fn resume<P: Platform>(&mut self, cx: &mut Context<P>, part: Part, target: Target, resume: Resume) {
        match (part, resume) {
            (Part::Submission, Resume::Retry) if mutant!(ParkCountsDescriptorTwice) => self.sq_head += 1,
            (Part::Submission | Part::Completion, Resume::Retry) => {}
            (Part::Submission, Resume::Fail(_)) => self.halt(cx, queue_error::SQ_FAULT, target.iova),
            (Part::Completion, Resume::Fail(_)) => self.halt(cx, queue_error::CQ_FAULT, target.iova),
            (Part::Job(slot), Resume::Retry) => self.runnable.push_back(slot),
            (Part::Job(slot), Resume::Fail(failure)) => {
                self.jobs[usize::from(slot)].as_mut().expect("a waiter has a job").fail(code_of(failure), target);
                self.completing.push_back(slot);
            }
        }
    }

    /// Ends or retries the waits whose time is up; notes the times of the others. Whether one ended.
    pub(crate) fn expire<P: Platform>(&mut self, cx: &mut Context<P>) -> bool {
        self.end_waits(cx, |cx, wait| match cx.expired(wait) {
            Expiry::Waiting => None,
            Expiry::Retry => Some(Resume::Retry),
            Expiry::Failed => {
                cx.endpoint_counters().page_request_timeouts.add(1);
                Some(Resume::Fail(Failure::Timeout))
            }
        })
    }

    /// Ends the waits for which `ends` says how work goes on. Whether there was one.
    pub(crate) fn end_waits<P: Platform>(
        &mut self,
        cx: &mut Context<P>,
        mut ends: impl FnMut(&mut Context<P>, &Wait) -> Option<Resume>,
    ) -> bool {
        let mut ended = false;
        let slots = u16::try_from(self.jobs.len()).expect("at most 256 slots");
        let parts = [Part::Submission, Part::Completion].into_iter().chain((0..slots).map(Part::Job));
        for part in parts {
            if matches!(part, Part::Job(slot) if self.jobs[usize::from(slot)].is_none()) {
                continue;
            }
            let Some(wait) = self.wait_mut(part).take() else { continue };
            let Some(resume) = ends(cx, &wait) else {
                *self.wait_mut(part) = Some(wait);
                continue;
            };
            let target = wait.target;
            cx.cancel(self.waiter(part), wait);
            self.resume(cx, part, target, resume);
            ended = true;
        }
        ended
    }

    /// Stops by itself. A completion ring that cannot be used takes everything down at once.
    fn halt<P: Platform>(&mut self, cx: &mut Context<P>, error: u8, address: u64) {
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

    fn set_face<P: Platform>(&self, cx: &Context<P>, status: QueueStatus, address: u64) {
        cx.shared.queue(self.number).set(status, address);
    }
}

/// The low half of a free-running index, as doorbells and completions have it.
fn low_word(index: u64) -> u32 {
    u32::try_from(index & u64::from(u32::MAX)).expect("masked to 32 bits")
}
