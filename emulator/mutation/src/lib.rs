//! Bugs on purpose, to see that the checks notice. Product code asks at each place where one can be planted:
//!
//! ```text
//! if !self.outstanding.is_empty() && !mutant!(WaitBeforeAcknowledgements) {
//! ```
//!
//! Without the feature `mutants` the answer is the constant `false` and nothing of this is compiled in. With it, which only the test
//! `score` turns on and which does not build in release, it is `true` for the one bug that the environment variable `SVADEV_MUTANT`
//! names. Write a place so that the question is asked only where the answer matters: the first *yes* of a process is reported on its
//! standard error, and a bug whose place was never reached was not caught, whatever failed.
//!
//! `docs/proofs.md` says how the score is made.
#![forbid(unsafe_code)]

#[cfg(all(feature = "mutants", not(debug_assertions)))]
compile_error!("the feature `mutants` plants bugs: it is for the tests of the mutation score, never for a release");

mod list;
pub use list::Mutant;

/// Whether the bug with this name is planted: see the crate.
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

    /// See [`mutant!`](crate::mutant).
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
            // Not `eprintln!`: the test harness keeps what that prints of a test that passes. A closed standard error is no reason to fail.
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
