//! Everything once, quickly; no time is judged.
use std::collections::BTreeSet;
use std::time::Duration;

use super::*;
use crate::bench::row::Goal;

struct Cases(BTreeSet<String>);

impl Progress for Cases {
    fn case(&mut self, place: Place, suite: Suite, case: &str) {
        assert_eq!(place, Place::Native);
        assert!(self.0.insert(format!("{} {case}", suite.name())), "{case} is measured twice");
    }
}

#[test]
fn every_native_case_gives_a_row_and_correct_data() {
    let mut cases = Cases(BTreeSet::new());
    // Copies are compared byte by byte, and translations with what the tables say: a wrong one is an error.
    let rows = run(&Suite::ALL, Duration::ZERO, &mut cases).unwrap();
    let measured: BTreeSet<_> = rows.iter().map(|row| format!("{} {}", row.suite.name(), row.case)).collect();
    assert_eq!(measured, cases.0);
    for row in &rows {
        assert!(row.value.is_finite() && row.value > 0.0, "{row:?}");
        assert_eq!(row.baseline.is_some(), row.ratio.is_some(), "{row:?}");
        assert_eq!(row.goal.is_some(), row.verdict.is_some(), "{row:?}");
    }
    let goals: BTreeSet<_> = rows.iter().filter_map(|row| row.goal).collect();
    let native: BTreeSet<_> = Goal::ALL.into_iter().filter(|goal| *goal != Goal::G4).collect();
    assert_eq!(goals, native, "page requests need a kernel that serves them; every other goal is native");
    let suites: BTreeSet<_> = rows.iter().map(|row| row.suite).collect();
    assert_eq!(suites, Suite::ALL.into_iter().filter(|suite| suite.is_native()).collect());
}
