//! How an engine's thread sleeps, and how others wake it.
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context;
use nix::poll::{PollFd, PollFlags};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::time::TimeSpec;

/// What wakes an engine's thread.
#[derive(Debug)]
pub(crate) struct Waker {
    eventfd: EventFd,
    stop: AtomicBool,
}

impl Waker {
    /// A waker that nobody has used.
    pub(crate) fn new() -> anyhow::Result<Arc<Self>> {
        let eventfd = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)
            .context("cannot make an eventfd for an engine")?;
        Ok(Arc::new(Self { eventfd, stop: AtomicBool::new(false) }))
    }

    /// Wakes the thread, now or when it next means to sleep.
    pub(crate) fn wake(&self) {
        // EAGAIN: the counter is full of wakes that were not taken yet, which is as good.
        let _ = self.eventfd.write(1);
    }

    /// Asks the thread to end.
    pub(crate) fn stop(&self) {
        self.stop.store(true, Ordering::Release);
        self.wake();
    }

    /// Whether the thread was asked to end.
    pub(crate) fn stopped(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    /// Sleeps until a wake or until `timeout`.
    pub(crate) fn sleep(&self, timeout: Option<Duration>) {
        // To the nanosecond: an interrupt that waits is due in microseconds. A spurious wake is harmless.
        let timeout = timeout.map(TimeSpec::from);
        let mut fds = [PollFd::new(self.eventfd.as_fd(), PollFlags::POLLIN)];
        if nix::poll::ppoll(&mut fds, timeout, None).is_ok_and(|ready| ready > 0) {
            let _ = self.eventfd.read();
        }
    }
}
