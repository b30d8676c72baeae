//! The mutation score: builds the product crates' tests with the feature `mutants`, runs them with each bug planted in
//! turn, and fails unless every one is caught.
//!
//! ```text
//!   cargo test -p svadev-mutation --test score                      all of them
//!   cargo test -p svadev-mutation --test score -- TlbIgnoresPasid   one
//! ```
//!
//! *Caught* means that an assertion failed in a process that had reached the bug. A crash, a hang or a build that fails
//! is not a catch. With no bug planted the same checks must pass. `docs/proofs.md` has the whole story.
#![allow(clippy::print_stdout, reason = "its output is the score")]
mod build;
mod checks;
mod run;

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use svadev_mutation::Mutant;

use build::Binaries;
use checks::{ALL_CHECKS, first_check};
use run::Outcome;

/// As others see this test.
const NAME: &str = "mutation_score";

/// What became of a mutant.
struct Row {
    mutant: Mutant,
    /// The test that failed, or why the mutant counts as alive.
    verdict: Result<String, String>,
    time: Duration,
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.iter().any(|a| a == "--list") {
        println!("{NAME}: test");
        return ExitCode::SUCCESS;
    }
    let Some(mutants) = chosen(&arguments) else {
        println!("{NAME} ... filtered out");
        return ExitCode::SUCCESS;
    };
    let begin = Instant::now();
    build::assert_product_is_clean();
    let binaries = build::build();
    println!("{NAME}: built in {:.0} s, without the feature in any product", begin.elapsed().as_secs_f64());
    if !checks_exist(&binaries) {
        return ExitCode::FAILURE;
    }
    let begin = Instant::now();
    if !checks_pass_without_mutants(&binaries) {
        return ExitCode::FAILURE;
    }
    println!("{NAME}: without a mutant all checks pass, in {:.0} s", begin.elapsed().as_secs_f64());
    let rows = run_all(&binaries, &mutants);
    print_table(&rows);
    let caught = rows.iter().filter(|row| row.verdict.is_ok()).count();
    println!("{NAME}: {caught} of {} caught, {} %", rows.len(), 100 * caught / rows.len());
    if caught == rows.len() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The mutants that the command line means: those it names in part, all when it names none or this test; `None` when it
/// means other tests.
fn chosen(arguments: &[String]) -> Option<Vec<Mutant>> {
    let filters: Vec<&String> = arguments.iter().filter(|a| !a.starts_with('-')).collect();
    if filters.is_empty() || filters.iter().any(|f| NAME.contains(f.as_str())) {
        return Some(Mutant::ALL.to_vec());
    }
    let named = |mutant: &&Mutant| filters.iter().any(|f| mutant.name().contains(f.as_str()));
    let mutants: Vec<Mutant> = Mutant::ALL.iter().filter(named).copied().collect();
    (!mutants.is_empty()).then_some(mutants)
}

/// A test that was renamed would no longer be the one that is there for its mutant.
fn checks_exist(binaries: &Binaries) -> bool {
    let names: BTreeMap<&str, Vec<String>> =
        binaries.keys().map(|krate| (krate.as_str(), run::list(binaries, krate))).collect();
    let mut complete = true;
    for check in Mutant::ALL.iter().map(|&mutant| first_check(mutant)).chain(ALL_CHECKS.iter().copied()) {
        let of_crate = names.get(check.krate).unwrap_or_else(|| panic!("no tests of {} were built", check.krate));
        for part in check.missing(of_crate) {
            println!("{NAME}: checks.rs names {part} in {}, which has no such test", check.krate);
            complete = false;
        }
    }
    complete
}

/// A check that fails anyway catches nothing.
fn checks_pass_without_mutants(binaries: &Binaries) -> bool {
    let mut clean = true;
    for check in ALL_CHECKS {
        let run = run::run(binaries, *check, None);
        if run.outcome != Outcome::Passed || run.reached {
            println!(
                "{NAME}: {check} without a mutant: {:?}, reached one: {}\n{}",
                run.outcome, run.reached, run.output
            );
            clean = false;
        }
    }
    clean
}

/// Runs every mutant, on as many threads as there are processors. The rows are in the order of `mutants`.
fn run_all(binaries: &Binaries, mutants: &[Mutant]) -> Vec<Row> {
    let next = Mutex::new(mutants.iter());
    let rows = Mutex::new(Vec::new());
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    // Two statements: the lock must be free while the mutant runs.
                    let mutant = next.lock().expect("no thread panics with it").next().copied();
                    let Some(mutant) = mutant else { return };
                    let row = hunt(binaries, mutant);
                    rows.lock().expect("no thread panics with it").push(row);
                }
            });
        }
    });
    let mut rows = rows.into_inner().expect("no thread panics with it");
    rows.sort_by_key(|row| mutants.iter().position(|&mutant| mutant == row.mutant));
    rows
}

/// Looks for a check that catches a mutant: the one that is there for it, then all.
fn hunt(binaries: &Binaries, mutant: Mutant) -> Row {
    let begin = Instant::now();
    let mut reached = false;
    let mut odd = None;
    let mut verdict = None;
    for check in std::iter::once(&first_check(mutant)).chain(ALL_CHECKS) {
        let run = run::run(binaries, *check, Some(mutant));
        reached |= run.reached;
        match run.outcome {
            Outcome::Failed(test) if run.reached => {
                verdict = Some(format!("{} {test}", check.krate));
                break;
            }
            Outcome::Failed(test) => odd = Some(format!("{check}: {test} failed without reaching it")),
            Outcome::Other(how) => odd = Some(format!("{check}: {how}, which is not a failed assertion")),
            Outcome::Passed => {}
        }
    }
    let alive = || match (odd, reached) {
        (Some(odd), _) => odd,
        (None, true) => "ALIVE: every check passes".into(),
        (None, false) => "its code is never reached".into(),
    };
    Row { mutant, verdict: verdict.ok_or_else(alive), time: begin.elapsed() }
}

fn print_table(rows: &[Row]) {
    println!("\n{:<36} | {:<92} | seconds", "variant", "caught by");
    for Row { mutant, verdict, time } in rows {
        let (mark, what) = match verdict {
            Ok(test) => ("", test),
            Err(why) => ("NOT CAUGHT: ", why),
        };
        println!("{:<36} | {:<92} | {:>6.1}", mutant.name(), format!("{mark}{what}"), time.as_secs_f64());
    }
    println!();
}
