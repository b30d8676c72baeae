//! Many seeds on several threads. Each world is one thread's, so that how many there are changes nothing about any of
//! them.
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::checker::{Checker, Failure};
use crate::coverage::Coverage;
use crate::{Caching, Mutant, Options, run};

/// Which worlds to run.
#[derive(Clone, Copy, Debug)]
pub struct Batch {
    /// The first seed.
    pub start: u64,
    /// How many.
    pub seeds: u64,
    /// Threads, at least 1.
    pub jobs: usize,
    /// A planted bug.
    pub mutant: Option<Mutant>,
    /// What the unit remembers; `None` leaves it to each seed.
    pub caching: Option<Caching>,
    /// Run each seed twice, and compare.
    pub twice: bool,
}

/// What became of a batch.
#[derive(Clone, Debug, Default)]
pub struct Totals {
    /// Worlds that ran to their end.
    pub seeds: u64,
    /// Descriptors that completed.
    pub completed: u64,
    /// Page request groups.
    pub groups: u64,
    /// What happened.
    pub coverage: Coverage,
    /// The lowest seed that failed, and how: later ones may not have been run.
    pub failure: Option<(u64, Ended)>,
}

/// How a seed ended that did not end well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// A checker saw something.
    Failed(Failure),
    /// Something panicked; its message is on standard error.
    Panicked,
    /// The same seed had two stories.
    Differs,
}

impl Ended {
    /// The checker that saw it.
    pub fn checker(&self) -> Option<Checker> {
        match self {
            Self::Failed(failure) => Some(failure.checker),
            Self::Panicked | Self::Differs => None,
        }
    }
}

impl std::fmt::Display for Ended {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Failed(failure) => failure.fmt(f),
            Self::Panicked => f.write_str("panicked"),
            Self::Differs => f.write_str("the same seed had two stories"),
        }
    }
}

impl Batch {
    /// Runs it, up to the first failure; `progress` hears of it after each seed.
    pub fn run(&self, progress: impl Fn(&Totals) + Sync) -> Totals {
        let next = AtomicU64::new(0);
        let totals = Mutex::new(Totals::default());
        std::thread::scope(|scope| {
            for _ in 0..self.jobs.max(1) {
                scope.spawn(|| {
                    loop {
                        let n = next.fetch_add(1, Ordering::Relaxed);
                        if n >= self.seeds {
                            return;
                        }
                        let seed = self.start.wrapping_add(n);
                        let outcome = self.one(seed);
                        let mut totals = totals.lock().unwrap_or_else(PoisonError::into_inner);
                        match outcome {
                            Ok(world) => totals.add(&world),
                            Err(ended) => {
                                // The seeds that others still run are lower than any that is not handed out.
                                next.store(self.seeds, Ordering::Relaxed);
                                if totals.failure.as_ref().is_none_or(|(lowest, _)| seed < *lowest) {
                                    totals.failure = Some((seed, ended));
                                }
                            }
                        }
                        progress(&totals);
                    }
                });
            }
        });
        totals.into_inner().unwrap_or_else(PoisonError::into_inner)
    }

    fn one(&self, seed: u64) -> Result<Totals, Ended> {
        let world = || run(seed, Options { mutant: self.mutant, caching: self.caching, sink: None });
        let report = catch_unwind(AssertUnwindSafe(world)).map_err(|_| Ended::Panicked)?;
        if let Some(failure) = report.failure {
            return Err(Ended::Failed(failure));
        }
        if self.twice && catch_unwind(AssertUnwindSafe(world)).map_or(true, |again| again != report) {
            return Err(Ended::Differs);
        }
        Ok(Totals {
            seeds: 1,
            completed: report.completed,
            groups: report.groups,
            coverage: report.coverage,
            failure: None,
        })
    }
}

impl Totals {
    fn add(&mut self, world: &Self) {
        self.seeds += world.seeds;
        self.completed += world.completed;
        self.groups += world.groups;
        self.coverage.merge(&world.coverage);
    }
}
