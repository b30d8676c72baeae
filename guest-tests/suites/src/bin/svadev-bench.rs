//! The benchmarks: JSON lines on standard output.
#![allow(clippy::print_stderr, reason = "a program whose output is its purpose")]
use std::process::ExitCode;

use svadev_guest::Device;
use svadev_suites::bench::{self, Args};
use svadev_suites::harness::{Stop, timeout_scale};

/// The command line makes no sense.
const EXIT_USAGE: u8 = 2;

fn main() -> ExitCode {
    let args = match Args::parse(std::env::args().skip(1)) {
        Ok(args) => args,
        Err(text) => {
            eprintln!("svadev-bench: {text}");
            return EXIT_USAGE.into();
        }
    };
    let functions = if args.functions.is_empty() { Device::paths() } else { args.functions.clone() };
    // Not locked: processes are forked from here, and this one has one thread.
    match bench::run(&args, functions, timeout_scale(), std::io::stdout()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Stop::Fail(why) | Stop::Skip(why)) => {
            eprintln!("svadev-bench: {why}");
            ExitCode::FAILURE
        }
    }
}
