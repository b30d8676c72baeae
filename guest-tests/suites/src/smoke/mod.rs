//! The smoke suite.

mod bad;
mod faults;
mod opcodes;
mod pages;
mod queue;
mod scatter;
mod sizes;

use crate::harness::Test;

/// Every test, in the order they run: from what everything needs to what is unusual.
#[must_use]
pub fn tests() -> Vec<Test> {
    [opcodes::TESTS, sizes::TESTS, scatter::TESTS, pages::TESTS, faults::TESTS, bad::TESTS, queue::TESTS].concat()
}

/// If the command line is a helper's, which a test of exec(2) started, be that helper and say how it went.
#[must_use]
pub fn exec_helper(_args: impl Iterator<Item = String>) -> Option<std::process::ExitCode> {
    None
}
