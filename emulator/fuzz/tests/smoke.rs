//! Replays every kept input, and a fixed number of random ones for each target: what runs in every `cargo test`.
#![allow(clippy::unwrap_used, reason = "a panic is a failed test")]
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use svadev_fuzz::alloc::Counting;
use svadev_fuzz::{TARGETS, Target, corpus, mutate};
use svadev_sim::rng::Rng;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Random inputs for each target.
const RANDOM: usize = 1000;
/// Most that all kept inputs may take in the repository, bytes.
const MAX_CORPUS: usize = 300 << 10;

fn smoke(name: &str) {
    let target = Target::find(name).unwrap();
    let kept = corpus::load(&corpus::folder(target)).unwrap();
    assert!(!kept.is_empty(), "{name} has a corpus");
    for (path, data) in &kept {
        check(target, data, path);
    }
    let inputs: Vec<_> = kept.into_iter().map(|(_, data)| data).collect();
    let mut rng = Rng::new(1);
    for n in 0..RANDOM {
        let data = mutate::mutate(&inputs, &mut rng);
        check(target, &data, &Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{n}")));
    }
}

/// A failing input is left at `path`, for `--replay`.
fn check(target: &Target, data: &[u8], path: &Path) {
    if catch_unwind(AssertUnwindSafe(|| target.check(data))).is_err() {
        fs::write(path, data).unwrap();
        panic!("replay: cargo run -p svadev-fuzz -- --target {} --replay {}", target.name, path.display());
    }
}

macro_rules! smoke {
    ($($name:ident)*) => {
        $(#[test]
        fn $name() {
            smoke(stringify!($name));
        })*

        #[test]
        fn every_target_has_a_test() {
            let tests = [$(stringify!($name)),*];
            assert!(TARGETS.iter().map(|target| target.name).eq(tests));
        }
    };
}

smoke!(vfio_user config_space unit_registers invalidation_queue tables descriptors accelerator_bars mirror);

#[test]
fn seeds_in_the_corpus_are_what_the_code_makes() {
    for target in TARGETS {
        for (name, data) in (target.seeds)() {
            let path = corpus::folder(target).join(format!("seed-{name}"));
            let kept = fs::read(&path).unwrap_or_default();
            assert!(kept == data, "{} is old: cargo run -p svadev-fuzz -- --seed-corpus", path.display());
        }
    }
}

#[test]
fn the_corpus_is_small() {
    let sizes = TARGETS.iter().flat_map(|target| corpus::load(&corpus::folder(target)).unwrap());
    let all: usize = sizes.map(|(_, data)| data.len()).sum();
    assert!(all <= MAX_CORPUS, "{all} bytes");
}

#[test]
fn a_run_that_allocates_too_much_is_a_failure() {
    let greedy =
        Target { name: "greedy", about: "", run: |_| drop(vec![1u8; 2 << 20]), seeds: Vec::new, memory: 1 << 20 };
    let failure = catch_unwind(|| greedy.check(&[])).unwrap_err();
    assert!(failure.downcast_ref::<String>().unwrap().contains("bytes in use"));
}
