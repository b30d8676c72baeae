//! Tests that run every case once, quickly. No time is judged.
use std::collections::BTreeSet;
use std::time::Duration;

use svadev_spec::device::{BAR_REGISTERS, regs};

use super::ring::Ring;
use super::world::{DATA, PASID, Pages};
use super::*;
use crate::row::Goal;

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

/// Hundreds of thousands of descriptors, large and small, go through every loop. No access of the program reaches a
/// socket, where accesses that trap in a guest would end.
#[test]
fn the_hot_path_traps_nowhere() {
    // The engine must not sleep while a test's thread waits for a processor.
    let size = Size { spin_us: Some(600_000_000), ..Size::default() };
    let world = World::new(size, &Processors::take()).unwrap();
    let mut ring = Ring::open(&world, 0, 9, Some(PASID)).unwrap();
    let mut stream = |count| {
        for length in [64, 4096, 0x1_0000] {
            let at = |n: u32, side: u64| Pages::Large.address(DATA.start + side + u64::from(n % 64) * 0x1_0000);
            ring.stream(count / u32::try_from(length / 64).unwrap(), 64, |n| {
                ring::copy(at(n, 0), at(n, 0x400_0000), length)
            })
            .unwrap();
        }
    };
    // The first one wakes the engine.
    stream(64_000);
    let before = world.commands();
    stream(256_000);
    assert_eq!(world.commands(), before, "260 000 descriptors");
    world.function.read_register(BAR_REGISTERS, regs::STATUS).unwrap();
    assert_eq!(world.commands(), before + 1, "the counter counts");
}
