//! The smoke suite: KTAP on standard output.
#![allow(clippy::print_stderr, clippy::print_stdout, reason = "a program whose output is its purpose")]
use std::process::ExitCode;

use svadev_guest::Device;
use svadev_suites::harness::args::Args;
use svadev_suites::harness::runner::Run;
use svadev_suites::harness::{Case, cases, needs, timeout_scale};
use svadev_suites::smoke;

/// A test failed.
const EXIT_FAILED: u8 = 1;
/// The command line makes no sense, or nothing matches.
const EXIT_USAGE: u8 = 2;
/// The machine lacks what every test needs.
const EXIT_SETUP: u8 = 125;
/// Functions that `--list` assumes where there are none: the usual machine's.
const USUAL_FUNCTIONS: usize = 2;

fn main() -> ExitCode {
    if let Some(status) = smoke::exec_helper(std::env::args().skip(1)) {
        return status;
    }
    let args = match Args::parse(std::env::args().skip(1)) {
        Ok(args) => args,
        Err(text) => return usage(&text),
    };
    let functions = Device::paths();
    let usual = args.functions.unwrap_or(USUAL_FUNCTIONS);
    let count = if args.list && functions.is_empty() { usual } else { functions.len() };
    let selected: Vec<Case> = args.select(cases(&smoke::tests(), count));
    if args.list {
        selected.iter().for_each(|case| println!("{}", case.name()));
        return ExitCode::SUCCESS;
    }
    if functions.is_empty() {
        return usage("there is no /dev/svadev0: is the driver loaded?");
    }
    if selected.is_empty() {
        return usage("no test is left by filters and shard; --list shows them all");
    }
    if let Some(missing) = needs::missing(&functions) {
        println!("Bail out! {missing}");
        return EXIT_SETUP.into();
    }
    let page_requests = needs::have_page_requests(&functions);
    let (repeat, fail_fast) = (args.repeat, args.fail_fast);
    let run = Run { functions, seed: args.seed, scale: timeout_scale(), repeat, fail_fast, page_requests };
    match run.all(&selected, std::io::stdout().lock()) {
        Ok(totals) if totals.failed == 0 => ExitCode::SUCCESS,
        Ok(_) => EXIT_FAILED.into(),
        Err(e) => {
            eprintln!("svadev-smoke: standard output: {e}");
            EXIT_FAILED.into()
        }
    }
}

fn usage(text: &str) -> ExitCode {
    eprintln!("svadev-smoke: {text}");
    EXIT_USAGE.into()
}
