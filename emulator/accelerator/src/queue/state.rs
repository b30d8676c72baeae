//! A queue's state as a plain value, to be saved and restored.
use std::cell::Cell;
use std::collections::VecDeque;

use svadev_endpoint::{Patience, Platform};
use svadev_fabric::Pasid;
use svadev_mutation::mutant;
use svadev_spec::device::{Descriptor, doorbell};

use super::{Queue, State};
use crate::context::Context;
use crate::job::{Job, Phase};
use crate::moderation::Moderation;
use crate::policy::WATCH_NS;
use crate::queue_config::QueueConfig;

/// Everything of a queue that has to outlive its engine. No part of it waits for a page.
#[derive(Clone, Debug)]
pub(crate) struct QueueState {
    state: State,
    config: QueueConfig,
    enable_next: Option<QueueConfig>,
    run: u64,
    sq_head: u64,
    cq_tail: u64,
    shown: (u32, u32),
    moderation: Moderation,
    held: Option<Descriptor>,
    jobs: Box<[Option<Job>]>,
    runnable: VecDeque<u16>,
    completing: VecDeque<u16>,
    sq_patience: Patience,
    cq_patience: Patience,
    aborts: Vec<(Pasid, u64)>,
}

impl Queue {
    /// The state now. Nothing may wait (`end_waits`).
    pub(crate) fn save(&self) -> QueueState {
        // Taken apart whole: a new field must be given a line here.
        let Self {
            number: _,
            name: _,
            position: _,
            state,
            config,
            enable_next,
            run,
            sq_head,
            cq_tail,
            seen: _,
            shown,
            armed: _,
            moderation,
            wanted,
            idle_since_ns: _,
            watch_ns: _,
            held,
            jobs,
            free: _,
            runnable,
            completing,
            drains: _,
            buffers: _,
            sq_wait,
            sq_patience,
            cq_wait,
            cq_patience,
            aborts,
        } = self;
        debug_assert!(sq_wait.is_none() && cq_wait.is_none(), "who waits asks again");
        debug_assert_eq!(*wanted, 0, "interrupts are seen to at the end of each visit");
        QueueState {
            state: *state,
            config: *config,
            enable_next: *enable_next,
            run: *run,
            sq_head: *sq_head,
            cq_tail: *cq_tail,
            shown: *shown,
            moderation: *moderation,
            held: held.filter(|_| !mutant!(SaveForgetsDescriptor)),
            jobs: jobs.clone(),
            runnable: runnable.clone(),
            completing: completing.clone(),
            sq_patience: *sq_patience,
            cq_patience: *cq_patience,
            aborts: aborts.clone(),
        }
    }

    /// Goes on with a state that was saved from a queue of the same settings. This one must be new.
    pub(crate) fn restore<P: Platform>(&mut self, cx: &mut Context<P>, state: &QueueState) {
        let QueueState {
            state,
            config,
            enable_next,
            run,
            sq_head,
            cq_tail,
            shown,
            moderation,
            held,
            jobs,
            runnable,
            completing,
            sq_patience,
            cq_patience,
            aborts,
        } = state.clone();
        assert_eq!(jobs.len(), self.jobs.len(), "the settings are the same");
        self.state = state;
        self.config = config;
        self.enable_next = enable_next;
        self.run = run;
        (self.sq_head, self.cq_tail) = (sq_head, cq_tail);
        self.seen = self.words(cx);
        self.shown = shown;
        self.armed = Cell::new(false);
        cx.shared.doorbells().store(self.number, doorbell::ARMED, 0);
        self.moderation = moderation;
        self.wanted = 0;
        (self.idle_since_ns, self.watch_ns) = (cx.now_ns, WATCH_NS);
        self.held = held;
        let slots = u16::try_from(jobs.len()).expect("at most 256 slots");
        self.free = (0..slots).rev().filter(|&slot| jobs[usize::from(slot)].is_none()).collect();
        self.drains = jobs.iter().flatten().filter(|job| matches!(job.phase, Phase::Drain)).count();
        let lists: usize = jobs.iter().flatten().map(Job::lists).sum();
        self.buffers.truncate(self.buffers.len() - lists);
        self.jobs = jobs;
        // Into what is there, which has room for the most that there can be.
        self.runnable.extend(runnable);
        self.completing.extend(completing);
        (self.sq_patience, self.cq_patience) = (sq_patience, cq_patience);
        self.aborts.extend(aborts);
        // An interrupt that was delayed is asked for again.
        cx.interrupt_at(self.position, cx.now_ns);
    }
}
