//! One thread for each engine: run, spin a little, sleep.
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use svadev_accelerator::Progress;

use crate::bus::HostEngine;
use crate::config::AcceleratorConfig;
use crate::events::PanicWatch;
use crate::spin::Spin;
use crate::threads::Threads;
use crate::waker::Waker;

/// Monotonic time, ns since the clock was started.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock(Instant);

impl Clock {
    /// A clock that starts at zero.
    pub(crate) fn start() -> Self {
        Self(Instant::now())
    }

    /// Nanoseconds since the start: 584 years fit.
    pub(crate) fn now_ns(self) -> u64 {
        u64::try_from(self.0.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
}

/// Time after its last work in which an engine looks for more without a pause instruction, ns. A program that submits
/// one descriptor after the other is back in less. A pause takes some 70 ns on processors that save energy in it.
const EAGER_NS: u64 = 3_000;

/// The host CPUs of a function's engines.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Places<'t> {
    cpus: &'t [usize],
    spin_us: u32,
}

/// The host CPU of one engine, and how long it looks for work before it sleeps.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    cpu: Option<usize>,
    spin: Spin,
}

impl<'t> Places<'t> {
    /// The places that the configuration gives.
    pub(crate) fn new(function: &'t AcceleratorConfig) -> Self {
        Self { cpus: &function.cpus, spin_us: function.spin_us }
    }

    /// The place of one engine.
    pub(crate) fn of(self, engine: usize) -> Place {
        let cpu = (!self.cpus.is_empty()).then(|| self.cpus[engine % self.cpus.len()]);
        Place { cpu, spin: Spin::new(u64::from(self.spin_us) * 1000) }
    }
}

/// Checks that engines can be pinned to these host CPUs. The error names the first CPU that cannot be used, and those
/// that can.
pub(crate) fn check_cpus(function: &str, cpus: &[usize]) -> anyhow::Result<()> {
    if cpus.is_empty() {
        return Ok(());
    }
    let allowed = sched_getaffinity(Pid::from_raw(0)).context("cannot read which CPUs this process may use")?;
    let may = |cpu: usize| allowed.is_set(cpu).unwrap_or(false);
    match cpus.iter().find(|&&cpu| !may(cpu)) {
        None => Ok(()),
        Some(cpu) => {
            let those: Vec<_> = (0..CpuSet::count()).filter(|&cpu| may(cpu)).map(|cpu| cpu.to_string()).collect();
            let those = those.join(", ");
            anyhow::bail!(
                "{function}: CPU {cpu} in cpus does not exist or is not available to this process: choose among {those}"
            )
        }
    }
}

fn pin(cpu: usize) -> nix::Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu)?;
    sched_setaffinity(Pid::from_raw(0), &set)
}

/// Starts the thread of one engine.
pub(crate) fn spawn(
    name: String,
    mut engine: HostEngine<Threads>,
    waker: Arc<Waker>,
    clock: Clock,
    watch: PanicWatch,
    place: Place,
) -> anyhow::Result<JoinHandle<()>> {
    std::thread::Builder::new()
        .name(name)
        .spawn(move || {
            let _watch = watch;
            if let Some(Err(error)) = place.cpu.map(pin) {
                // The CPU was allowed when the host started. The engine works on any other, too.
                tracing::warn!(cpu = place.cpu, %error, "cannot pin an engine: it runs on any CPU");
            }
            run(&mut engine, &waker, clock, place.spin);
        })
        .context("cannot start an engine's thread")
}

fn run(engine: &mut HostEngine<Threads>, waker: &Waker, clock: Clock, mut spin: Spin) {
    let mut idle_since_ns = None;
    while !waker.stopped() {
        let now_ns = clock.now_ns();
        let Progress::Idle { until_ns } = engine.run(now_ns) else {
            if idle_since_ns.take().is_some() {
                spin.work_came(0);
            }
            continue;
        };
        let since = *idle_since_ns.get_or_insert(now_ns);
        if now_ns - since < spin.limit_ns() {
            if now_ns - since > EAGER_NS {
                std::hint::spin_loop();
            }
            continue;
        }
        if engine.park() {
            let slept_from_ns = clock.now_ns();
            waker.sleep(until_ns.map(|until| Duration::from_nanos(until.saturating_sub(slept_from_ns))));
            engine.unpark();
            spin.work_came(clock.now_ns() - slept_from_ns);
        }
        idle_since_ns = None;
    }
    engine.park();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cpu_that_is_not_there_is_named_with_those_that_are() {
        check_cpus("sva0", &[]).unwrap();
        let allowed = sched_getaffinity(Pid::from_raw(0)).unwrap();
        let mine = (0..CpuSet::count()).find(|&cpu| allowed.is_set(cpu).unwrap()).unwrap();
        check_cpus("sva0", &[mine]).unwrap();
        let error = check_cpus("sva0", &[mine, 1023]).unwrap_err().to_string();
        assert!(error.contains("sva0") && error.contains("CPU 1023") && error.contains(&mine.to_string()), "{error}");
    }

    #[test]
    fn a_pinned_thread_runs_where_it_was_pinned() {
        let allowed = sched_getaffinity(Pid::from_raw(0)).unwrap();
        let last = (0..CpuSet::count()).rfind(|&cpu| allowed.is_set(cpu).unwrap()).unwrap();
        let set = std::thread::spawn(move || {
            pin(last).unwrap();
            sched_getaffinity(Pid::from_raw(0)).unwrap()
        });
        let set = set.join().unwrap();
        assert!((0..CpuSet::count()).all(|cpu| set.is_set(cpu).unwrap() == (cpu == last)));
    }
}
