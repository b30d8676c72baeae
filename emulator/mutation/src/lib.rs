//! Bugs that can be planted in product code, to see whether the tests notice. Product code asks at each such place:
//!
//! ```text
//! if !self.outstanding.is_empty() && !mutant!(WaitBeforeAcknowledgements) {
//! ```
//!
//! This crate knows the names of the bugs and which one is planted. It must not know the code that asks: product crates
//! depend on it.
//!
//! Without the feature `mutants` the answer is the constant `false`, so nothing of this is compiled in. Only the test
//! `score` turns the feature on, and the feature does not build in release. With it, the answer is `true` for the one
//! bug that the environment variable `SVADEV_MUTANT` names.
//!
//! The path: `tests/score` builds the product crates with the feature. For each bug it runs the test that must catch
//! it. The first `true` of a process is reported on its standard error. If a bug's place was not reached, the bug
//! counts as not caught, whatever failed. So write a place so that the question is asked only where the answer matters.
//!
//! Where new things go: a bug's name in `list.rs`, its place beside the right code, and the test that catches it in
//! `tests/score/checks.rs`. `docs/proofs.md` says how the score is made.
#![forbid(unsafe_code)]

#[cfg(all(feature = "mutants", not(debug_assertions)))]
compile_error!("the feature `mutants` plants bugs: it is for the tests of the mutation score, never for a release");

mod list;
pub use list::Mutant;

/// Whether the bug with this name is planted. The crate's head page describes how to use it.
#[macro_export]
macro_rules! mutant {
    ($name:ident) => {
        $crate::is_planted($crate::Mutant::$name)
    };
}

/// Names the bug to plant, in a build with the feature `mutants`.
pub const SELECTION: &str = "SVADEV_MUTANT";

/// What a process says on a line of its own, followed by the bug's name, when it first does the wrong thing.
pub const REACHED: &str = "mutant reached: ";

/// Use [`mutant!`].
#[cfg(not(feature = "mutants"))]
#[doc(hidden)]
#[inline(always)]
#[must_use]
pub const fn is_planted(_: Mutant) -> bool {
    false
}

/// Use [`mutant!`].
#[cfg(feature = "mutants")]
#[doc(hidden)]
pub use planted::is_planted;

#[cfg(feature = "mutants")]
mod planted {
    use std::io::Write;
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::{Mutant, REACHED, SELECTION};

    /// Whether this bug is planted. Reports it on standard error the first time.
    #[must_use]
    pub fn is_planted(mutant: Mutant) -> bool {
        static SELECTED: OnceLock<Option<Mutant>> = OnceLock::new();
        static SAID: AtomicBool = AtomicBool::new(false);
        let selected = SELECTED.get_or_init(|| {
            let name = std::env::var(SELECTION).ok()?;
            Some(Mutant::from_name(&name).unwrap_or_else(|| panic!("{SELECTION}: there is no mutant {name}")))
        });
        if *selected != Some(mutant) {
            return false;
        }
        if !SAID.swap(true, Ordering::Relaxed) {
            // Not `eprintln!`: the test harness hides what that prints in a test that passes. If standard error is
            // closed, nothing is lost.
            let _ = writeln!(std::io::stderr(), "\n{REACHED}{mutant:?}");
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_back() {
        for mutant in Mutant::ALL {
            assert_eq!(Mutant::from_name(mutant.name()), Some(*mutant));
        }
        assert_eq!(Mutant::from_name("NoSuchBug"), None);
    }

    /// The environment of an ordinary test run plants nothing, whatever features the build has.
    #[test]
    fn nothing_is_planted_by_itself() {
        if std::env::var_os(SELECTION).is_none() {
            assert!(Mutant::ALL.iter().all(|&mutant| !is_planted(mutant)));
        }
    }
}
