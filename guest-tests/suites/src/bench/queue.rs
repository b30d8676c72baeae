//! Keeping user queues busy, and noticing when they do wrong.
#![allow(unsafe_code, reason = "submits work by the rule of `harness::Work`")]
use std::time::{Duration, Instant};

use svadev_guest::{Code, Completion, Descriptor, FaultFlags, UserQueue, UserQueueOptions};

use crate::check;
use crate::harness::Verdict;

/// Completions that are collected at once.
const COLLECT: usize = 64;
/// Looks at empty rings between two looks at the clock.
const LOOKS: u32 = 1 << 12;
/// How long a queue may be silent with work in it, before that is an error. Above the device's own time for a missing page.
const SILENCE: Duration = Duration::from_secs(20);

/// A queue without interrupts, large enough for `depth` descriptors.
pub(super) fn polled(depth: usize) -> UserQueueOptions {
    let log2 = depth.next_power_of_two().trailing_zeros().max(1);
    UserQueueOptions { sq_log2: log2, cq_log2: log2 + 1, ..UserQueueOptions::default() }
}

/// A completion that no device has written.
pub(super) const fn blank() -> Completion {
    Completion { cookie: 0, code: Code::Aborted, fault: FaultFlags::empty(), bytes_done: 0, result: 0 }
}

/// Hand over descriptors, which the queue must have room for.
pub(super) fn submit(queue: &mut UserQueue<'_>, work: &[Descriptor]) -> Verdict {
    // SAFETY: the rule that `harness::Work` states.
    let taken = unsafe { queue.submit(work) };
    check!(taken == work.len(), "the queue took {taken} of {}: {:?}", work.len(), queue.query());
    Ok(())
}

/// Submit one descriptor and look at the ring until it is done.
#[inline]
pub(super) fn one(queue: &mut UserQueue<'_>, descriptor: &Descriptor) -> Verdict<Completion> {
    submit(queue, std::slice::from_ref(descriptor))?;
    let mut out = [blank()];
    let mut silent_since = None;
    loop {
        for _ in 0..LOOKS {
            if queue.poll_completions(&mut out)? == 1 {
                let done = out[0];
                check!(done.is_success(), "{done}");
                return Ok(done);
            }
            std::hint::spin_loop();
        }
        let since = *silent_since.get_or_insert_with(Instant::now);
        check!(since.elapsed() < SILENCE, "no completion for {SILENCE:?}: {:?}", queue.query());
    }
}

/// Submit all, at most as many as the ring holds, and wait until all are done and well.
pub(super) fn all(queue: &mut UserQueue<'_>, work: &[Descriptor]) -> Verdict {
    submit(queue, work)?;
    let mut out = vec![blank(); work.len()];
    let got = queue.wait(&mut out, SILENCE)?;
    check!(got == work.len(), "{got} of {} completions: {:?}", work.len(), queue.query());
    for done in out {
        check!(done.is_success(), "{done}");
    }
    Ok(())
}

/// A queue and what circulates in it: each descriptor is submitted again when it is done. Its cookie is its place in `work`.
pub(super) struct Lane<'q, 'd> {
    queue: &'q mut UserQueue<'d>,
    work: Vec<Descriptor>,
}

impl<'q, 'd> Lane<'q, 'd> {
    pub(super) fn new(queue: &'q mut UserQueue<'d>, work: &[Descriptor]) -> Self {
        let work = (0..).zip(work).map(|(cookie, descriptor)| descriptor.with_cookie(cookie)).collect();
        Self { queue, work }
    }
}

/// What a [`pump`] has moved.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Pumped {
    /// Descriptors done.
    pub(super) done: u64,
    /// From the first submission to the last completion.
    pub(super) time: Duration,
}

/// Keep every lane's descriptors circulating for so long, then let them run out. No system call and no allocation in between.
pub(super) fn pump(lanes: &mut [Lane<'_, '_>], time: Duration) -> Verdict<Pumped> {
    let most = lanes.iter().map(|lane| lane.work.len()).max().unwrap_or(0).min(COLLECT);
    let (mut out, mut again) = (vec![blank(); most], Vec::with_capacity(most));
    let start = Instant::now();
    for lane in &mut *lanes {
        submit(lane.queue, &lane.work)?;
    }
    let mut in_flight: usize = lanes.iter().map(|lane| lane.work.len()).sum();
    let (mut pumped, mut ending) = (Pumped::default(), false);
    let (mut silent_since, mut looks) = (start, 0);
    while in_flight > 0 {
        let before = pumped.done;
        for lane in &mut *lanes {
            let got = lane.queue.poll_completions(&mut out)?;
            if got == 0 {
                continue;
            }
            pumped.done += got as u64;
            again.clear();
            for done in &out[..got] {
                let descriptor = lane.work[usize::try_from(done.cookie)?];
                check!(done.is_success() && done.bytes_done == descriptor.raw.length, "{done}");
                again.push(descriptor);
            }
            match ending {
                true => in_flight -= got,
                false => submit(lane.queue, &again)?,
            }
        }
        if pumped.done != before {
            let now = Instant::now();
            silent_since = now;
            ending |= now - start >= time;
            pumped.time = now - start;
            continue;
        }
        std::hint::spin_loop();
        looks += 1;
        if looks % LOOKS == 0 {
            check!(silent_since.elapsed() < SILENCE, "no completion for {SILENCE:?} with {in_flight} in flight");
        }
    }
    Ok(pumped)
}
