//! Which processors the benchmark's threads run on.
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

/// Pins this thread to the first processor it may use, and threads that are started with [`apart`](Self::apart) to the
/// next ones. So each measurement between two threads uses the same two processors. If the host has too few processors,
/// nothing is pinned. Dropping this removes the pinning of this thread.
#[derive(Debug)]
pub(crate) struct Processors {
    before: CpuSet,
    usable: Vec<usize>,
}

impl Processors {
    /// Pins this thread.
    pub(crate) fn take() -> Self {
        let before = sched_getaffinity(Pid::from_raw(0)).unwrap_or_default();
        let usable = (0..CpuSet::count()).filter(|&cpu| before.is_set(cpu).unwrap_or(false)).collect();
        let processors = Self { before, usable };
        processors.pin(processors.usable.get(..1).filter(|_| processors.usable.len() > 1));
        processors
    }

    /// Calls a function that starts threads. They run on the `count` processors after this thread's.
    pub(crate) fn apart<T>(&self, count: u8, start: impl FnOnce() -> T) -> T {
        let Some(others) = self.usable.get(1..=usize::from(count)) else {
            // Threads inherit the set of whoever starts them (sched_setaffinity(2)).
            self.pin(None);
            let started = start();
            self.pin(self.usable.get(..1).filter(|_| self.usable.len() > 1));
            return started;
        };
        self.pin(Some(others));
        let started = start();
        self.pin(self.usable.get(..1));
        started
    }

    /// Moves this thread. If that is refused, the thread stays where it is, which only costs accuracy.
    fn pin(&self, to: Option<&[usize]>) {
        let mut set = CpuSet::new();
        to.into_iter().flatten().for_each(|&cpu| _ = set.set(cpu));
        _ = sched_setaffinity(Pid::from_raw(0), if to.is_some() { &set } else { &self.before });
    }
}

impl Drop for Processors {
    fn drop(&mut self) {
        self.pin(None);
    }
}
