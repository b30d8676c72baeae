//! From before a submission until its completion was seen, one descriptor at a time.
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use svadev_guest::{Buffer, Descriptor, UserQueue, UserQueueOptions};

use super::memory::Range;
use super::queue::{blank, one, polled, submit};
use super::{Bench, Row, Samples, Suite};
use crate::harness::{During, Rng, Verdict, Work};
use crate::memory::small_pages;
use crate::{check, check_eq};

pub(super) const SUITE: Suite = Suite { name: "latency", on_request: false, cases: |_| CASES.len(), run };

/// Most samples of a case.
const MOST_SAMPLES: usize = 100_000;
/// Rounds before the clock starts.
const WARM_UP: usize = 200;
/// Long enough for an idle engine to fall asleep, many times over.
const ASLEEP: Duration = Duration::from_millis(2);
/// How long a sleeper may wait for its interrupt.
const INTERRUPT_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes of a copy.
const BYTES: usize = 64;

const CASES: [&str; 7] = [
    "shared word, two guest threads",
    "64 B copy, polled",
    "no-op, polled",
    "64 B copy, polled, the engine asleep",
    "64 B copy, interrupt and poll(2)",
    "64 B copy, kernel queue",
    "looking at the clock",
];

fn run(bench: &mut Bench<'_>) -> Verdict {
    let time = bench.setup.per_case;
    bench.case(CASES[0])?;
    let baseline = match ping_pong(time)? {
        Some(samples) => {
            let summary = samples.summary().during_case(CASES[0])?;
            bench.row(
                &Row::median(CASES[0], summary, "us").note("there and back, each thread on a processor of its own"),
            )?;
            Some((CASES[0], summary.p50))
        }
        None => {
            bench.row(&Row::single(CASES[0], 0.0, "us").note("not measured: the guest has one processor"))?;
            None
        }
    };
    let device = bench.setup.bound()?;
    let memory = small_pages(2 * 4096)?;
    let (src, dst) = (Range::new(&memory, 0, BYTES), Range::new(&memory, 4096, BYTES));
    src.randomize(&mut Rng::new(0x5eed, "latency"));
    let copy = Descriptor::copy(src.address(), dst.address(), BYTES as u64);
    let mut queue = UserQueue::create(&device, polled(1))?;

    bench.case(CASES[1])?;
    let samples = sampled(time, || one(&mut queue, &copy).map(drop))?;
    dst.check_same(&src, CASES[1])?;
    let row = Row { baseline, ..median(CASES[1], &samples)? };
    bench.row(
        &row.goal("G2").note("the device echoes no shared word, so the baseline is two guest threads' round trip"),
    )?;
    let awake = samples.summary().during_case(CASES[1])?.p50;

    bench.case(CASES[2])?;
    let samples = sampled(time, || one(&mut queue, &Descriptor::nop()).map(drop))?;
    bench.row(&median(CASES[2], &samples)?)?;

    bench.case(CASES[3])?;
    let (samples, wakes) = asleep(time, &mut queue, &copy)?;
    let row = median(CASES[3], &samples)?.against("64 B copy, polled", awake);
    bench.row(&row.note(format!("{wakes} of {} submissions woke the engine by a trapped store", samples.len())))?;

    bench.case(CASES[4])?;
    let mut sleeping = UserQueue::create(&device, UserQueueOptions { interrupts: true, ..polled(1) })?;
    dst.set(0);
    let samples = sampled(time, || by_interrupt(&mut sleeping, &copy))?;
    dst.check_same(&src, CASES[4])?;
    bench.row(&median(CASES[4], &samples)?.against("64 B copy, polled", awake))?;

    bench.case(CASES[5])?;
    dst.set(0);
    let kernel = || {
        let done = device.go(&copy)?;
        check!(done.is_success(), "{done}");
        Ok(())
    };
    let samples = sampled(time, kernel)?;
    dst.check_same(&src, CASES[5])?;
    bench.row(&median(CASES[5], &samples)?.against("64 B copy, polled", awake))?;

    bench.case(CASES[6])?;
    let samples = sampled(time / 4, || Ok(()))?;
    let summary = samples.summary().during_case(CASES[6])?;
    bench.row(&Row::median(CASES[6], summary, "us").note("is in every figure of this suite"))
}

fn median(case: &str, samples: &Samples) -> Verdict<Row> {
    Ok(Row::median(case, samples.summary().during_case(case)?, "us"))
}

/// Says which case has no samples.
trait DuringCase<T> {
    fn during_case(self, case: &str) -> Verdict<T>;
}

impl<T> DuringCase<T> for Option<T> {
    fn during_case(self, case: &str) -> Verdict<T> {
        match self {
            Some(value) => Ok(value),
            None => crate::fail!("{case}: no samples"),
        }
    }
}

/// Time each round, for so long.
pub(super) fn sampled(time: Duration, mut round: impl FnMut() -> Verdict) -> Verdict<Samples> {
    for _ in 0..WARM_UP {
        round()?;
    }
    let mut samples = Samples::with_capacity(MOST_SAMPLES);
    let start = Instant::now();
    while samples.len() < MOST_SAMPLES && start.elapsed() < time {
        let begin = Instant::now();
        round()?;
        samples.push_micros(begin.elapsed());
    }
    Ok(samples)
}

/// Each submission finds an engine that has had time to fall asleep; how many had to wake it.
fn asleep(time: Duration, queue: &mut UserQueue<'_>, copy: &Descriptor) -> Verdict<(Samples, u64)> {
    let mut samples = Samples::with_capacity(MOST_SAMPLES);
    let (start, wakes) = (Instant::now(), queue.wakes());
    while samples.len() < MOST_SAMPLES && start.elapsed() < time {
        std::thread::sleep(ASLEEP);
        let begin = Instant::now();
        one(queue, copy)?;
        samples.push_micros(begin.elapsed());
    }
    Ok((samples, queue.wakes() - wakes))
}

/// Submit, sleep until the completion's interrupt has signalled the eventfd, collect.
fn by_interrupt(queue: &mut UserQueue<'_>, copy: &Descriptor) -> Verdict {
    submit(queue, std::slice::from_ref(copy))?;
    let mut out = [blank()];
    loop {
        let eventfd = queue.eventfd().expect("the queue was made with interrupts");
        let mut fds = [PollFd::new(eventfd, PollFlags::POLLIN)];
        let timeout = PollTimeout::try_from(INTERRUPT_TIMEOUT).unwrap_or(PollTimeout::MAX);
        check_eq!(poll(&mut fds, timeout)?, 1, "descriptors ready within {INTERRUPT_TIMEOUT:?}");
        // Emptied before the ring is looked at: a completion after that signals anew.
        nix::unistd::read(eventfd, &mut [0; 8]).during("read the eventfd")?;
        // Another queue's completion signals this eventfd, too, if they share a vector.
        if queue.poll_completions(&mut out)? == 1 {
            check!(out[0].is_success(), "{}", out[0]);
            return Ok(());
        }
    }
}

/// The word that two threads pass to and fro, alone in its page.
struct Word<'b>(&'b AtomicU32);

impl<'b> Word<'b> {
    #[allow(unsafe_code, reason = "a word of a mapping as an atomic")]
    fn of(page: &'b Buffer) -> Self {
        // SAFETY: the first word of a live mapping, which the borrow keeps; pages are aligned, and nothing else is done with it.
        Self(unsafe { AtomicU32::from_ptr(page.as_ptr().cast()) })
    }

    /// Wait until the word is `value`; false if the other side ended.
    fn wait(&self, value: u32) -> bool {
        loop {
            match self.0.load(Ordering::Acquire) {
                now if now == value => return true,
                END => return false,
                _ => std::hint::spin_loop(),
            }
        }
    }
}

/// The value that ends the game.
const END: u32 = u32::MAX;

/// Round trips of a shared word between two threads on two processors; nothing where there is one.
fn ping_pong(time: Duration) -> Verdict<Option<Samples>> {
    let this = Pid::from_raw(0);
    let allowed = sched_getaffinity(this)?;
    let processors: Vec<usize> = (0..CpuSet::count()).filter(|&n| allowed.is_set(n).unwrap_or(false)).collect();
    let &[first, second, ..] = &processors[..] else { return Ok(None) };
    let only = |processor: usize| -> nix::Result<()> {
        let mut set = CpuSet::new();
        set.set(processor)?;
        sched_setaffinity(this, &set)
    };
    let page = small_pages(4096)?;
    page.fill(0);
    let word = Word::of(&page);
    let samples = std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut value = 1;
            // Where the second thread runs is for the better figure only.
            if only(second).is_err() {
                word.0.store(END, Ordering::Release);
            }
            while word.wait(value) {
                word.0.store(value + 1, Ordering::Release);
                value += 2;
            }
        });
        let mut value = 1;
        let samples = only(first).map_err(Into::into).and_then(|()| {
            sampled(time, || {
                word.0.store(value, Ordering::Release);
                check!(word.wait(value + 1), "the other thread ended");
                value += 2;
                Ok(())
            })
        });
        word.0.store(END, Ordering::Release);
        samples
    });
    sched_setaffinity(this, &allowed)?;
    samples.map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shared_word_comes_back() {
        // Where this test may use one processor only, there is nothing to measure.
        if let Some(samples) = ping_pong(Duration::from_millis(5)).unwrap() {
            assert!(samples.summary().unwrap().n > 0);
        }
    }

    #[test]
    fn an_error_ends_the_sampling() {
        let mut rounds = 0;
        let result = sampled(Duration::from_secs(3600), || {
            rounds += 1;
            check!(rounds < WARM_UP + 3, "enough");
            Ok(())
        });
        assert!(result.is_err());
    }
}
