//! The benchmarks: what programs get from the device, measured where they are, as JSON lines on standard output.
//!
//! | line | says |
//! | --- | --- |
//! | `{"progress": text, "done": n, "of": n}` | a case begins |
//! | `{"row": {…}}` | a figure, see [`Row`] |
//! | `{"counters": label}` | a place at which the launcher notes the backend's counters |
//! | `{"done": true}` | the end |
//!
//! Each suite runs in a process of its own, so that one that fails neither ends nor disturbs the others. A figure is the median of
//! several runs, and its baseline is measured between them: what else the host does meets both. What is measured is also checked for
//! the right result, before the clock starts and once after.

mod args;
mod copy;
mod fault;
mod invalidate;
mod latency;
mod memory;
mod output;
mod queue;
mod scale;
mod soak;
mod stats;
mod trap;

pub use args::Args;
pub use output::{Output, Row};
pub use stats::{Samples, Summary};

use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use svadev_guest::Device;

use crate::check;
use crate::harness::peer::Peer;
use crate::harness::{During, Stop, Verdict};

/// How often a figure is measured; the row has the median.
const RUNS: u32 = 5;
/// How long a suite may take on a machine of scale 1, before it counts as hung.
const SUITE_TIMEOUT: Duration = Duration::from_secs(300);

/// A suite.
#[derive(Debug)]
pub struct Suite {
    /// Its name.
    pub name: &'static str,
    /// It runs only if it is asked for.
    on_request: bool,
    /// How many cases it will announce.
    cases: fn(&Setup) -> usize,
    run: fn(&mut Bench<'_>) -> Verdict,
}

/// All suites, in the order in which they run.
pub const SUITES: &[Suite] =
    &[copy::SUITE, latency::SUITE, trap::SUITE, invalidate::SUITE, fault::SUITE, scale::SUITE, soak::SUITE];

/// What all suites share.
#[derive(Clone, Debug)]
struct Setup {
    functions: Vec<PathBuf>,
    quick: bool,
    per_case: Duration,
    soak: Duration,
    scale: f64,
}

impl Setup {
    /// The first function, with this process bound.
    fn bound(&self) -> Verdict<Device> {
        bound(&self.functions[0])
    }

    /// The time for one of the runs of a case, where each run has so many parts.
    fn run_time(&self, parts: u32) -> Duration {
        self.per_case / (RUNS * parts)
    }

    /// A time limit on this machine.
    fn limit(&self, limit: Duration) -> Duration {
        limit.mul_f64(self.scale)
    }
}

/// A function with this process bound.
fn bound(path: &std::path::Path) -> Verdict<Device> {
    let device = Device::open(path).during(path.display())?;
    device.bind().during(path.display())?;
    Ok(device)
}

/// What a suite gets.
struct Bench<'o> {
    setup: Setup,
    suite: &'static str,
    out: Output<&'o mut dyn Write>,
    done: usize,
    of: usize,
}

impl Bench<'_> {
    /// A case begins.
    fn case(&mut self, name: &str) -> Verdict {
        let text = format!("{} {name}", self.suite);
        self.out.progress(&text, self.done, self.of)?;
        self.done += 1;
        Ok(())
    }

    /// A figure of this suite.
    fn row(&mut self, row: &Row) -> Verdict {
        self.out.row(self.suite, row)
    }
}

/// Run what `args` ask for on these functions and write the lines.
///
/// # Errors
/// A suite failed; the others have run.
pub fn run(args: &Args, functions: Vec<PathBuf>, scale: f64, mut out: impl Write) -> Verdict {
    check!(!functions.is_empty(), "there is no /dev/svadev0: is the driver loaded?");
    let setup = Setup { functions, quick: args.quick, per_case: args.per_case, soak: args.soak, scale };
    let asked = |suite: &&Suite| match args.suites.is_empty() {
        true => !suite.on_request,
        false => args.suites.iter().any(|name| name == suite.name),
    };
    let suites: Vec<&Suite> = SUITES.iter().filter(asked).collect();
    let of = suites.iter().map(|suite| (suite.cases)(&setup)).sum();
    let mut done = 0;
    let mut failed = Vec::new();
    for suite in suites {
        let mut bench =
            Bench { setup: setup.clone(), suite: suite.name, out: Output::new(&mut out as &mut dyn Write), done, of };
        let limit = setup.limit(SUITE_TIMEOUT) + setup.soak;
        let verdict = Peer::start(|_| (suite.run)(&mut bench)).and_then(|peer| peer.join_within(limit));
        if let Err(Stop::Fail(why) | Stop::Skip(why)) = verdict {
            failed.push(format!("{}: {why}", suite.name));
        }
        done += (suite.cases)(&setup);
    }
    Output::new(&mut out).done()?;
    check!(failed.is_empty(), "{}", failed.join("; "));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suites_have_names_of_their_own() {
        let mut names: Vec<&str> = SUITES.iter().map(|suite| suite.name).collect();
        names.sort_unstable();
        let count = names.len();
        names.dedup();
        assert_eq!(names.len(), count);
    }

    #[test]
    fn nothing_runs_without_a_function() {
        let args = Args::parse([]).unwrap();
        assert!(run(&args, Vec::new(), 1.0, Vec::new()).is_err());
    }
}
