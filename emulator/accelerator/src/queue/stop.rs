//! How a queue begins and ends: enable, disable, abort, drain, reset.
use svadev_endpoint::Platform;
use svadev_fabric::Pasid;
use svadev_spec::device::{Code, QueueStatus, doorbell, queue_error};

use super::{Part, Queue, State, Then};
use crate::context::Context;
use crate::job::{Job, Phase};
use crate::moderation::Moderation;
use crate::queue_config::QueueConfig;

/// Aborted PASIDs that a kernel queue remembers until it has fetched what was in its ring when they were aborted.
pub(super) const ABORTS: usize = 64;

/// A place in a submission ring, in one run of its queue: enabling starts another, whose indexes begin at 0 again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Horizon {
    run: u64,
    index: u64,
}

/// How far an abort is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Aborting {
    /// The queue has done its part.
    pub(crate) over: bool,
    /// It has completions to write now, or a stop to finish.
    pub(crate) changed: bool,
}

impl Queue {
    /// QUEUE_CONTROL 0 → 1. A queue that is still stopping starts when it has stopped.
    pub(crate) fn enable<P: Platform>(&mut self, cx: &mut Context<P>, config: QueueConfig) {
        if self.is_live() {
            self.enable_next = Some(config);
            return;
        }
        debug_assert!(self.held.is_none() && !self.jobs_under_way());
        self.state = State::On;
        self.config = config;
        self.run += 1;
        (self.sq_head, self.cq_tail) = (0, 0);
        (self.sq_patience, self.cq_patience) = Default::default();
        self.aborts.clear();
        self.seen = self.words(cx);
        (self.shown, self.wanted) = ((0, 0), 0);
        self.armed.set(false);
        self.moderation = Moderation::new(config.moderation.interval_us(), config.moderation.count());
        let doorbells = cx.shared.doorbells();
        for word in [doorbell::SQ_HEAD, doorbell::CQ_TAIL, doorbell::ARMED] {
            doorbells.store(self.number, word, 0);
        }
        self.set_face(cx, QueueStatus::new().with_enabled(true), 0);
    }

    /// QUEUE_CONTROL 1 → 0, or CONTROL.
    pub(crate) fn disable<P: Platform>(&mut self, cx: &mut Context<P>) {
        self.enable_next = None;
        match &mut self.state {
            State::On => self.stop(cx, Then::Off, true),
            State::Stopping { then, .. } => *then = Then::Off,
            State::Halted | State::Off => {
                self.state = State::Off;
                self.set_face(cx, QueueStatus::new(), 0);
            }
        }
    }

    /// Begins to stop: everything under way ends as *aborted*; with `fetch`, so does what is in the ring by now.
    pub(super) fn stop<P: Platform>(&mut self, cx: &mut Context<P>, then: Then, fetch: bool) {
        debug_assert!(self.is_live());
        let tail = match self.state {
            State::Stopping { .. } => self.sq_head,
            _ if fetch => self.horizon(cx).index,
            _ => self.sq_head,
        };
        for part in [Part::Submission, Part::Completion] {
            if let Some(wait) = self.wait_mut(part).take() {
                cx.cancel(self.waiter(part), wait);
            }
        }
        self.end_jobs(cx, |_| true);
        self.state = State::Stopping { then, tail };
    }

    /// What could be completed has been: the rest goes without a word.
    pub(super) fn stopped<P: Platform>(&mut self, cx: &mut Context<P>) {
        let State::Stopping { then, .. } = self.state else { unreachable!("only a stopping queue has stopped") };
        // Before the status says that nothing more comes.
        self.show(cx);
        if self.moderation.flush() {
            self.raise(cx);
        }
        self.clear(cx);
        match then {
            Then::Off => {
                self.state = State::Off;
                self.set_face(cx, QueueStatus::new(), 0);
            }
            Then::Halted { error, address } => {
                self.state = State::Halted;
                self.set_face(cx, QueueStatus::new().with_halted(true).with_error(error), address);
                // Nobody would look otherwise: no completion comes any more.
                self.raise(cx);
            }
        }
        if let Some(config) = self.enable_next.take() {
            self.enable(cx, config);
        }
    }

    /// Ends the jobs that are meant as *aborted*; their completions are still to be written. Whether there was one.
    fn end_jobs<P: Platform>(&mut self, cx: &mut Context<P>, meant: impl Fn(&Job) -> bool) -> bool {
        let mut ended = false;
        for slot in 0..u16::try_from(self.jobs.len()).expect("at most 256 slots") {
            let waiter = self.waiter(Part::Job(slot));
            let Some(job) = &mut self.jobs[usize::from(slot)] else { continue };
            if !meant(job) || matches!(job.phase, Phase::Complete(_)) {
                continue;
            }
            if let Some(wait) = job.wait.take() {
                cx.cancel(waiter, wait);
            }
            if matches!(job.phase, Phase::Drain) {
                self.drains -= 1;
            }
            job.end(Code::Aborted);
            self.completing.push_back(slot);
            self.runnable.retain(|&s| s != slot);
            ended = true;
        }
        ended
    }

    /// Forgets everything under way.
    fn clear<P: Platform>(&mut self, cx: &mut Context<P>) {
        for part in [Part::Submission, Part::Completion] {
            if let Some(wait) = self.wait_mut(part).take() {
                cx.cancel(self.waiter(part), wait);
            }
        }
        self.end_jobs(cx, |_| true);
        while let Some(slot) = self.completing.pop_front() {
            let job = self.jobs[usize::from(slot)].take().expect("a completing slot has a job");
            self.buffers.extend(job.into_buffers());
            self.free.push(slot);
        }
        self.held = None;
        self.wanted = 0;
        self.moderation = Moderation::default();
        self.aborts.clear();
        debug_assert!(!self.jobs_under_way() && self.runnable.is_empty() && self.drains == 0);
    }

    /// Function reset: off, nothing is written to guest memory, and the doorbell page is as new.
    pub(crate) fn reset<P: Platform>(&mut self, cx: &mut Context<P>) {
        self.clear(cx);
        self.state = State::Off;
        self.enable_next = None;
        cx.shared.doorbells().clear(self.number);
        self.shown = (0, 0);
        self.armed.set(false);
        self.set_face(cx, QueueStatus::new(), 0);
    }

    /// How often it was enabled.
    pub(crate) fn run(&self) -> u64 {
        self.run
    }

    /// Whether it is disabled, and nothing of it is left.
    pub(crate) fn is_off(&self) -> bool {
        matches!(self.state, State::Off)
    }

    /// The index below which software has written descriptors by now; what a tail that cannot be true stands for is not
    /// work.
    pub(crate) fn horizon<P: Platform>(&self, cx: &Context<P>) -> Horizon {
        let index = match self.state {
            State::On => self.tail(cx.shared.doorbells().load(self.number, doorbell::SQ_TAIL)).unwrap_or(self.sq_head),
            _ => self.sq_head,
        };
        Horizon { run: self.run, index }
    }

    /// The index below which descriptors belong to the command. A horizon from an earlier run covers no descriptor of
    /// this run.
    fn below(&self, horizon: Horizon) -> u64 {
        if horizon.run == self.run { horizon.index } else { 0 }
    }

    /// The first descriptor that has not been started.
    fn unstarted(&self) -> u64 {
        self.sq_head - u64::from(self.held.is_some())
    }

    /// Whether all work of a PASID below `horizon` has completed.
    pub(crate) fn is_drained(&self, pasid: Pasid, horizon: Horizon) -> bool {
        let horizon = self.below(horizon);
        if !self.is_live() || self.config.user.is_some_and(|user| user != pasid) {
            return true;
        }
        self.unstarted() >= horizon
            && self.jobs.iter().flatten().all(|job| job.space != Some(pasid) || job.index >= horizon)
    }

    /// ABORT_PASID: ends the PASID's jobs, and remembers what of it may still be in the ring below `horizon`. A user
    /// queue of the PASID halts: its very rings are accesses for it.
    pub(crate) fn abort<P: Platform>(&mut self, cx: &mut Context<P>, pasid: Pasid, horizon: Horizon) -> Aborting {
        let horizon = self.below(horizon);
        match self.config.user {
            _ if !self.is_live() => Aborting { over: true, changed: false },
            Some(user) if user != pasid => Aborting { over: true, changed: false },
            Some(_) => {
                let changed = self.is_on();
                if changed {
                    self.stop(cx, Then::Halted { error: queue_error::NONE, address: 0 }, true);
                }
                Aborting { over: false, changed }
            }
            None => {
                let changed = self.end_jobs(cx, |job| job.space == Some(pasid) && job.index < horizon);
                self.settle_drains();
                Aborting { over: self.remember_abort(pasid, horizon), changed }
            }
        }
    }

    fn remember_abort(&mut self, pasid: Pasid, horizon: u64) -> bool {
        let unstarted = self.unstarted();
        self.aborts.retain(|&(_, until)| until > unstarted);
        if horizon <= unstarted {
            return true;
        }
        if let Some(known) = self.aborts.iter_mut().find(|(p, _)| *p == pasid) {
            known.1 = known.1.max(horizon);
            return true;
        }
        let room = self.aborts.len() < ABORTS;
        if room {
            self.aborts.push((pasid, horizon));
        }
        room
    }

    pub(super) fn is_aborted(&self, space: Option<Pasid>, index: u64) -> bool {
        self.aborts.iter().any(|&(pasid, until)| space == Some(pasid) && index < until)
    }

    /// Says in the doorbell page that nobody looks at it until the wake page is written, or that somebody does.
    pub(crate) fn arm<P: Platform>(&self, cx: &Context<P>, armed: bool) {
        if armed != self.armed.replace(armed) {
            cx.shared.doorbells().store(self.number, doorbell::ARMED, u32::from(armed));
        }
    }

    /// For tests that start near where 32-bit indexes wrap.
    #[cfg(test)]
    pub(crate) fn set_indexes(&mut self, index: u64) {
        (self.sq_head, self.cq_tail) = (index, index);
    }
}
