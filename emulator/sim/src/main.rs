//! `svadev-sim`: runs seeded worlds. `docs/simulation.md` says what they check.
//!
//! Exit status: 0 clean, 1 a checker failed, 2 wrong use, 3 something never ended, 4 a panic, 5 a seed had two stories,
//! or a planted bug was not seen by its checkers, 141 nobody reads any more what is said.
#![allow(clippy::print_stderr, reason = "it is a command for a terminal")]
use std::io::Write as _;
use std::num::NonZeroUsize;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use svadev_sim::batch::{Batch, Ended, Totals};
use svadev_sim::{Caching, Mutant, Options, run};

const CORRECTNESS: u8 = 1;
const LIVENESS: u8 = 3;
const CRASH: u8 = 4;
const UNPROVEN: u8 = 5;
/// As a shell says it of a program that SIGPIPE ended: 128 + 13.
const NO_READER: i32 = 141;

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
    /// How many to run at a time; as many as there are processors if it is not said.
    #[arg(long)]
    jobs: Option<NonZeroUsize>,
    /// What the unit remembers, in every world: none, strict or adversarial. Otherwise the seed says.
    #[arg(long, value_parser = caching)]
    caching: Option<Caching>,
    /// Run each seed twice, and compare what happened.
    #[arg(long)]
    repeat: bool,
    /// Print every event of the one seed.
    #[arg(long, short, requires = "seed")]
    verbose: bool,
    /// Plant a bug, and run seeds until it is seen; `all` plants one after the other.
    #[arg(long, value_parser = Planted::parse)]
    mutant: Option<Planted>,
}

/// What `--mutant` says.
#[derive(Clone, Copy)]
enum Planted {
    One(Mutant),
    All,
}

impl Planted {
    fn parse(name: &str) -> Result<Self, String> {
        if name.eq_ignore_ascii_case("all") {
            return Ok(Self::All);
        }
        Mutant::from_name(name).map(Self::One).ok_or_else(|| {
            let names: Vec<_> = Mutant::ALL.iter().map(|mutant| mutant.name()).collect();
            format!("the mutants are all, {}", names.join(", "))
        })
    }
}

fn caching(name: &str) -> Result<Caching, String> {
    match name {
        "none" => Ok(Caching::None),
        "strict" => Ok(Caching::Strict),
        "adversarial" => Ok(Caching::Adversarial),
        _ => Err("none, strict or adversarial".to_owned()),
    }
}

fn caching_argument(caching: Option<Caching>) -> &'static str {
    match caching {
        Some(Caching::None) => " --caching none",
        Some(Caching::Strict) => " --caching strict",
        Some(Caching::Adversarial) => " --caching adversarial",
        _ => "",
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match (arguments.seed, arguments.mutant) {
        (_, Some(Planted::All)) => mutants(&arguments),
        (Some(seed), mutant) => single(&arguments, seed, planted(mutant)),
        (None, mutant) => many(&arguments, planted(mutant)),
    }
}

fn planted(mutant: Option<Planted>) -> Option<Mutant> {
    match mutant {
        Some(Planted::One(mutant)) => Some(mutant),
        Some(Planted::All) | None => None,
    }
}

fn batch(arguments: &Arguments, mutant: Option<Mutant>) -> Batch {
    let jobs = arguments.jobs.or_else(|| std::thread::available_parallelism().ok());
    Batch {
        start: arguments.start,
        seeds: arguments.seeds,
        jobs: jobs.map_or(1, NonZeroUsize::get),
        mutant,
        caching: arguments.caching,
        twice: arguments.repeat,
    }
}

/// A line for whoever reads. Nobody may be left (`| head`): then there is nothing more to do, and that is no failure of
/// a world.
fn say(line: std::fmt::Arguments<'_>) {
    if let Err(error) = writeln!(std::io::stdout(), "{line}") {
        if error.kind() == std::io::ErrorKind::BrokenPipe {
            std::process::exit(NO_READER);
        }
        panic!("cannot write what there is to say: {error}");
    }
}

/// One world, with its events if they are wanted.
fn single(arguments: &Arguments, seed: u64, mutant: Option<Mutant>) -> ExitCode {
    let world = || {
        let sink = arguments.verbose.then(|| Box::new(|line: &str| say(format_args!("{line}"))) as _);
        run(seed, Options { mutant, caching: arguments.caching, sink })
    };
    let Ok(report) = catch_unwind(AssertUnwindSafe(world)) else {
        return fail(arguments, seed, mutant, &Ended::Panicked);
    };
    say(format_args!(
        "seed {seed}: {} steps, {} events, {} descriptors completed, {} dropped, {} groups, log {:016x}",
        report.steps, report.events, report.completed, report.dropped, report.groups, report.hash
    ));
    if let Some(failure) = report.failure {
        return fail(arguments, seed, mutant, &Ended::Failed(failure));
    }
    if arguments.repeat {
        let again = run(seed, Options { mutant, caching: arguments.caching, sink: None });
        say(format_args!("again: log {:016x}", again.hash));
        if again.hash != report.hash {
            return fail(arguments, seed, mutant, &Ended::Differs);
        }
    }
    ExitCode::SUCCESS
}

/// Many worlds, up to the first failure.
fn many(arguments: &Arguments, mutant: Option<Mutant>) -> ExitCode {
    let begin = Instant::now();
    let batch = batch(arguments, mutant);
    let each = (batch.seeds / 20).max(1);
    let totals = batch.run(|totals: &Totals| {
        if totals.seeds.is_multiple_of(each) && totals.failure.is_none() {
            say(format_args!(
                "{}/{} seeds, {} descriptors, {} page request groups, {:.1} s",
                totals.seeds,
                batch.seeds,
                totals.completed,
                totals.groups,
                begin.elapsed().as_secs_f64()
            ));
        }
    });
    if let Some((seed, ended)) = &totals.failure {
        return fail(arguments, *seed, mutant, ended);
    }
    say(format_args!("\n{}", totals.coverage));
    say(format_args!(
        "{} seeds from {} on are clean: {} jobs, {:.1} s",
        totals.seeds,
        batch.start,
        batch.jobs,
        begin.elapsed().as_secs_f64()
    ));
    ExitCode::SUCCESS
}

/// Every planted bug: which checker sees it first, and on which seed.
fn mutants(arguments: &Arguments) -> ExitCode {
    let mut missed = 0;
    say(format_args!("{:<18} {:<16} {:>6}  replay", "mutant", "checker", "seed"));
    for &mutant in Mutant::ALL {
        let totals = batch(arguments, Some(mutant)).run(|_| ());
        let (seen, seed) = match &totals.failure {
            Some((seed, ended)) => (ended.checker(), Some(*seed)),
            None => (None, None),
        };
        let proven = seen.is_some_and(|checker| mutant.caught_by().contains(&checker));
        missed += u32::from(!proven);
        let by = seen.map_or("nobody", |checker| checker.name());
        let replay = seed.map_or(String::new(), |seed| replay(arguments, seed, Some(mutant)));
        let note = if proven { "" } else { "  NOT BY ITS CHECKERS" };
        say(format_args!("{:<18} {by:<16} {:>6}  {replay}{note}", mutant.name(), seed.unwrap_or_default()));
    }
    say(format_args!(
        "{} of {} planted bugs are seen by their checkers",
        Mutant::ALL.len() - missed as usize,
        Mutant::ALL.len()
    ));
    if missed == 0 { ExitCode::SUCCESS } else { ExitCode::from(UNPROVEN) }
}

fn replay(arguments: &Arguments, seed: u64, mutant: Option<Mutant>) -> String {
    let mutant = mutant.map_or(String::new(), |mutant| format!(" --mutant {}", mutant.name()));
    let caching = caching_argument(arguments.caching);
    format!("cargo run --release -p svadev-sim -- --seed {seed}{caching}{mutant} --verbose")
}

fn fail(arguments: &Arguments, seed: u64, mutant: Option<Mutant>, ended: &Ended) -> ExitCode {
    eprintln!("seed {seed}: {ended}");
    let repeat = if *ended == Ended::Differs { " --repeat" } else { "" };
    eprintln!("replay: {}{repeat}", replay(arguments, seed, mutant));
    ExitCode::from(match ended {
        Ended::Failed(failure) if failure.is_liveness() => LIVENESS,
        Ended::Failed(_) => CORRECTNESS,
        Ended::Panicked => CRASH,
        Ended::Differs => UNPROVEN,
    })
}
