//! One thread for each engine: run, spin a little, sleep.
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context;
use nix::poll::{PollFd, PollFlags};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::time::TimeSpec;
use svadev_device::{Engine, Progress};
use svadev_memory::MemoryMap;

use super::PanicWatch;
use super::bus::Bus;

/// How long an engine without work looks for more before it sleeps. A wake through an eventfd costs about 70 µs on two
/// cores, and a trapped doorbell as much again; a submission that follows a completion comes within a few µs.
const SPIN: Duration = Duration::from_micros(50);

/// Monotonic time, in nanoseconds since the process started to care.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock(Instant);

impl Clock {
    /// A clock that starts at zero.
    pub(super) fn start() -> Self {
        Self(Instant::now())
    }

    /// Nanoseconds since the start: 584 years fit.
    pub(super) fn now_ns(self) -> u64 {
        u64::try_from(self.0.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
}

/// What wakes an engine's thread.
#[derive(Debug)]
pub(super) struct Waker {
    eventfd: EventFd,
    stop: AtomicBool,
}

impl Waker {
    /// A waker that nobody has used.
    pub(super) fn new() -> anyhow::Result<Arc<Self>> {
        let eventfd = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)
            .context("no eventfd for an engine: the process is out of file descriptors")?;
        Ok(Arc::new(Self { eventfd, stop: AtomicBool::new(false) }))
    }

    /// Wakes the thread, now or when it next means to sleep.
    pub(super) fn wake(&self) {
        // EAGAIN: the counter is full of wakes that were not taken yet, which is as good.
        let _ = self.eventfd.write(1);
    }

    /// Asks the thread to end.
    pub(super) fn stop(&self) {
        self.stop.store(true, Ordering::Release);
        self.wake();
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    /// Sleeps until a wake or until `timeout`.
    fn sleep(&self, timeout: Option<Duration>) {
        // To the nanosecond: an interrupt that waits is due in microseconds. A spurious wake is harmless.
        let timeout = timeout.map(TimeSpec::from);
        let mut fds = [PollFd::new(self.eventfd.as_fd(), PollFlags::POLLIN)];
        if nix::poll::ppoll(&mut fds, timeout, None).is_ok_and(|ready| ready > 0) {
            let _ = self.eventfd.read();
        }
    }
}

/// Starts the thread of one engine.
pub(super) fn spawn(
    name: String,
    mut engine: Engine<MemoryMap, Bus>,
    waker: Arc<Waker>,
    clock: Clock,
    watch: PanicWatch,
) -> anyhow::Result<JoinHandle<()>> {
    std::thread::Builder::new()
        .name(name)
        .spawn(move || {
            let _watch = watch;
            run(&mut engine, &waker, clock);
        })
        .context("no thread for an engine")
}

fn run(engine: &mut Engine<MemoryMap, Bus>, waker: &Waker, clock: Clock) {
    let mut idle_since_ns = None;
    while !waker.stopped() {
        let now_ns = clock.now_ns();
        let Progress::Idle { until_ns } = engine.run(now_ns) else {
            idle_since_ns = None;
            continue;
        };
        let since = *idle_since_ns.get_or_insert(now_ns);
        if Duration::from_nanos(now_ns - since) < SPIN {
            std::hint::spin_loop();
            continue;
        }
        if engine.park() {
            waker.sleep(until_ns.map(|until| Duration::from_nanos(until.saturating_sub(clock.now_ns()))));
            engine.unpark();
        }
        idle_since_ns = None;
    }
    engine.park();
}
