//! Fuzzing: a target for each surface where bytes come in that a guest or a VMM chose. `docs/fuzzing.md` says how to
//! run them.
//!
//! # Architecture
//! A [`Target`] turns any bytes into a run of the code behind one surface ([`Input`] reads them as operations) and
//! panics where an invariant does not hold. It has no other state: the same bytes give the same run. Three drivers use
//! them: the runner of this crate (`main.rs`, any stable toolchain), libFuzzer (`libfuzzer/`, guided by coverage), and
//! the test `tests/smoke.rs`, which replays the kept corpus.
//!
//! # Key constants
//! [`MAX_INPUT`]; [`Target::memory`] for each target.
pub mod alloc;
pub mod corpus;
pub mod minimize;
pub mod mutate;

mod input;
mod targets;
mod worlds;

pub use input::{Input, Seed};
pub use targets::TARGETS;

/// Longest input that is looked at, bytes. What it makes a target do is bounded by it.
pub const MAX_INPUT: usize = 4096;

/// One surface.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// What it is called on the command line and in the corpus folder.
    pub name: &'static str,
    /// The surface, in a few words.
    pub about: &'static str,
    /// Runs the code behind it. Panics where an invariant does not hold.
    pub run: fn(&[u8]),
    /// Inputs with the shape of real traffic, by name.
    pub seeds: fn() -> Vec<(&'static str, Vec<u8>)>,
    /// Most bytes that one run may have in use at one time.
    pub memory: i64,
}

impl Target {
    /// The target of this name.
    pub fn find(name: &str) -> Option<&'static Self> {
        TARGETS.iter().find(|target| target.name == name)
    }

    /// Runs one input and holds it to the memory limit, where [`alloc::Counting`] is the program's allocator.
    ///
    /// # Panics
    /// Where an invariant does not hold: that is a finding.
    pub fn check(&self, data: &[u8]) {
        let data = &data[..data.len().min(MAX_INPUT)];
        let ((), peak) = alloc::peak(|| (self.run)(data));
        assert!(peak <= self.memory, "{}: {peak} bytes in use at one time, more than {}", self.name, self.memory);
    }
}

/// Runs one input of the target with this name: what libFuzzer calls.
///
/// # Panics
/// Where there is no such target, and where an invariant does not hold.
pub fn check(target: &str, data: &[u8]) {
    Target::find(target).expect("a target of this name").check(data);
}
