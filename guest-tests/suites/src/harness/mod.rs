//! The harness: tests as values, each run in a process of its own, results as KTAP.

pub mod args;
mod context;
pub mod kernel_log;
pub mod ktap;
pub mod needs;
pub mod peer;
pub mod report;
mod rng;
pub mod runner;
mod verdict;

pub use context::{Context, Work};
pub use kernel_log::{Expected, Marked};
pub use rng::Rng;
pub use verdict::{During, Stop, Verdict};

use std::time::Duration;

/// How long a test may take unless it says otherwise. Most take milliseconds; this is for one that hangs.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(15);

/// What a test is run on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Once on each function; `/svadevN` is added to the name.
    Each,
    /// Once, on the first two functions together.
    Pair,
}

/// One test.
#[derive(Clone, Copy, Debug)]
pub struct Test {
    /// Its name: topic, what holds, dots between. Rules of `docs/lifetimes.md` by their number: `lifetime.L3.…`.
    pub name: &'static str,
    /// What it runs on.
    pub scope: Scope,
    /// After how long it counts as hung, on a machine of scale 1.
    pub timeout: Duration,
    /// What it provokes in the kernel log.
    pub marked: Option<Marked>,
    /// It needs page faults of the device: it is skipped where no page can be asked for.
    pub page_requests: bool,
    /// The test itself.
    pub run: fn(&Context) -> Verdict,
}

impl Test {
    /// A test of one function.
    #[must_use]
    pub const fn each(name: &'static str, run: fn(&Context) -> Verdict) -> Self {
        Self { name, scope: Scope::Each, timeout: DEFAULT_TIMEOUT, marked: None, page_requests: false, run }
    }

    /// A test of two functions together.
    #[must_use]
    pub const fn pair(name: &'static str, run: fn(&Context) -> Verdict) -> Self {
        Self { name, scope: Scope::Pair, timeout: DEFAULT_TIMEOUT, marked: None, page_requests: false, run }
    }

    /// It takes longer than most.
    #[must_use]
    pub const fn timeout_s(mut self, seconds: u64) -> Self {
        self.timeout = Duration::from_secs(seconds);
        self
    }

    /// It needs page faults of the device.
    #[must_use]
    pub const fn needs_page_requests(mut self) -> Self {
        self.page_requests = true;
        self
    }

    /// It provokes something in the kernel log.
    #[must_use]
    pub const fn expects(mut self, what: Expected) -> Self {
        self.marked = Some(Marked::Expects(what));
        self
    }

    /// It may provoke something in the kernel log.
    #[must_use]
    pub const fn allows(mut self, what: Expected) -> Self {
        self.marked = Some(Marked::Allows(what));
        self
    }
}

/// One run of one test.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// The test.
    pub test: Test,
    /// The function it runs on; the first of two for [`Scope::Pair`].
    pub function: usize,
}

impl Case {
    /// Name of the run.
    #[must_use]
    pub fn name(&self) -> String {
        match self.test.scope {
            Scope::Each => format!("{}/svadev{}", self.test.name, self.function),
            Scope::Pair => self.test.name.to_owned(),
        }
    }
}

/// Every run of these tests on so many functions, in order.
#[must_use]
pub fn cases(tests: &[Test], functions: usize) -> Vec<Case> {
    let runs = |test: &Test| match test.scope {
        Scope::Each => functions,
        Scope::Pair => 1,
    };
    tests.iter().flat_map(|&test| (0..runs(&test)).map(move |function| Case { test, function })).collect()
}

/// What to multiply time limits by: init passes on the job's `timeout_scale`.
#[must_use]
pub fn timeout_scale() -> f64 {
    let scale = std::env::var("SVADEV_TIMEOUT_SCALE").ok().and_then(|s| s.parse().ok());
    scale.filter(|s: &f64| s.is_finite() && *s > 0.0).unwrap_or(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tests_run_on_each_function_or_once_on_both() {
        let tests = [Test::each("a.b", |_| Ok(())), Test::pair("c", |_| Ok(()))];
        let names: Vec<String> = cases(&tests, 2).iter().map(Case::name).collect();
        assert_eq!(names, ["a.b/svadev0", "a.b/svadev1", "c"]);
    }
}
