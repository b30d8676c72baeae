//! The demonstration: JSON lines on standard output.
#![allow(clippy::print_stderr, reason = "a program whose output is its purpose")]
use std::process::ExitCode;

use svadev_guest::Device;
use svadev_suites::demo;
use svadev_suites::harness::{Stop, timeout_scale};

fn main() -> ExitCode {
    // Not locked: helper processes are forked from here, and this process has one thread.
    match demo::run(Device::paths(), timeout_scale(), std::io::stdout()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Stop::Fail(why) | Stop::Skip(why)) => {
            eprintln!("svadev-demo: {why}");
            ExitCode::FAILURE
        }
    }
}
