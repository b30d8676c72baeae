//! `svadev-sim`: runs seeded worlds. `docs/simulation.md` says what they check.
//!
//! Exit status: 0 clean, 1 a checker failed, 2 wrong use, 3 something never ended, 4 a panic.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "it is a command for a terminal")]
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use svadev_sim::{Failure, Mutant, Options, Report, run};

const CORRECTNESS: u8 = 1;
const LIVENESS: u8 = 3;
const CRASH: u8 = 4;

/// Run seeded worlds of kernel, IOMMU and accelerators.
#[derive(Parser)]
struct Arguments {
    /// How many seeds to run.
    #[arg(long, default_value_t = 100)]
    seeds: u64,
    /// The first of them.
    #[arg(long, default_value_t = 1)]
    start: u64,
    /// Run this one only.
    #[arg(long, conflicts_with_all = ["seeds", "start"])]
    seed: Option<u64>,
    /// Print every event.
    #[arg(long, short)]
    verbose: bool,
    /// Plant a bug.
    #[arg(long, value_parser = |name: &str| Mutant::from_name(name).ok_or("no such mutant"))]
    mutant: Option<Mutant>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let (start, seeds) = arguments.seed.map_or((arguments.start, arguments.seeds), |seed| (seed, 1));
    let begin = Instant::now();
    let (mut completed, mut groups) = (0, 0);
    for n in 0..seeds {
        let seed = start.wrapping_add(n);
        let report = match catch_unwind(AssertUnwindSafe(|| run(seed, options(&arguments)))) {
            Ok(report) => report,
            Err(_) => return fail(&arguments, seed, "panicked", CRASH),
        };
        match &report.failure {
            None => {}
            Some(failure @ Failure::Correctness(_)) => {
                return fail(&arguments, seed, &failure.to_string(), CORRECTNESS);
            }
            Some(failure @ Failure::Liveness(_)) => return fail(&arguments, seed, &failure.to_string(), LIVENESS),
        }
        completed += report.completed;
        groups += report.groups;
        if seeds == 1 {
            print_report(&report);
        } else if (n + 1) % (seeds / 20).max(1) == 0 {
            let seconds = begin.elapsed().as_secs_f64();
            println!("{}/{seeds} seeds, {completed} descriptors, {groups} page request groups, {seconds:.1} s", n + 1);
        }
    }
    ExitCode::SUCCESS
}

fn options(arguments: &Arguments) -> Options {
    let sink = arguments.verbose.then(|| Box::new(|line: &str| println!("{line}")) as _);
    Options { mutant: arguments.mutant, sink }
}

fn print_report(report: &Report) {
    println!(
        "seed {}: {} steps, {} events, {} descriptors completed, {} dropped, {} groups, log {:016x}",
        report.seed, report.steps, report.events, report.completed, report.dropped, report.groups, report.hash
    );
}

fn fail(arguments: &Arguments, seed: u64, what: &str, status: u8) -> ExitCode {
    let mutant = arguments.mutant.map_or(String::new(), |mutant| format!(" --mutant {}", mutant.name()));
    eprintln!("seed {seed}: {what}");
    eprintln!("replay: cargo run --release -p svadev-sim -- --seed {seed} --verbose{mutant}");
    ExitCode::from(status)
}
