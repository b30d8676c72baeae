//! The smoke suite.

mod audit;
mod bad;
mod changes;
mod driver;
mod faults;
mod lifetime;
mod opcodes;
mod pages;
mod queue;
mod reset;
mod scatter;
mod sizes;
mod user_queue;

use std::process::ExitCode;

use crate::harness::Test;

/// Every test, in the order they run: from what everything needs to what is unusual.
#[must_use]
pub fn tests() -> Vec<Test> {
    [
        opcodes::TESTS,
        sizes::TESTS,
        scatter::TESTS,
        pages::TESTS,
        faults::TESTS,
        bad::TESTS,
        queue::TESTS,
        changes::TESTS,
        lifetime::TESTS,
        user_queue::TESTS,
        audit::TESTS,
        reset::TESTS,
        &driver::tests(),
    ]
    .concat()
}

/// If the command line is a helper's, which a test of exec(2) started, be that helper and say how it went.
#[must_use]
pub fn exec_helper(args: impl Iterator<Item = String>) -> Option<ExitCode> {
    lifetime::exec_helper(args)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::harness::cases;

    #[test]
    fn names_are_unique_and_safe_in_ktap() {
        let names: Vec<String> = cases(&tests(), 2).iter().map(|c| c.name()).collect();
        let unique: BTreeSet<&String> = names.iter().collect();
        assert_eq!(unique.len(), names.len());
        let plain = |c: char| c.is_ascii_alphanumeric() || "._/".contains(c);
        assert!(names.iter().all(|n| n.chars().all(plain)), "a name has a character that KTAP gives a meaning");
    }
}
