//! What an engine costs: one descriptor, a pass with nothing to do, bandwidth by size. Each figure is the best of several
//! rounds, beside the same host's own `memcpy` where that is the measure.
//!
//! `cargo bench -p svadev-accelerator`. No verdicts: `svadev bench` gives those.
#![allow(clippy::print_stdout, clippy::unwrap_used, reason = "a benchmark prints, and ends where its own set-up fails")]
#![allow(unsafe_code, reason = "measures the host's memcpy on the same memory")]
use std::hint::black_box;
use std::time::Instant;

use svadev_memory::{GuestAddress, GuestMemory};

#[path = "../tests/rig/mod.rs"]
mod rig;
use rig::{BUFFERS, Rig, copy};

const ROUNDS: usize = 15;

/// Nanoseconds of one call, the best of [`ROUNDS`] rounds of `calls`.
fn best(calls: u32, mut call: impl FnMut()) -> f64 {
    let mut best = f64::INFINITY;
    for _ in 0..ROUNDS {
        let start = Instant::now();
        (0..calls).for_each(|_| call());
        best = best.min(start.elapsed().as_secs_f64() * 1e9 / f64::from(calls));
    }
    best
}

fn row(name: &str, value: f64, unit: &str) {
    println!("{name:<52} {value:>12.2} {unit}");
}

fn small_copies(queues: u16) {
    const DEPTH: u32 = 128;
    let mut rig = Rig::new(queues, 21);
    let mut driver =
        || rig.batch(0, DEPTH, |n| copy(BUFFERS + u64::from(n) * 64, BUFFERS + (1 << 20) + u64::from(n) * 64, 64));
    // Long enough for queues without work to be left alone.
    (0..5000).for_each(|_| driver());
    let all = best(500, driver) / f64::from(DEPTH);
    // The driver's half alone: what it writes and reads without a device, so that the engine's half is the difference.
    let mut rig = Rig::new(1, 21);
    let memory = std::sync::Arc::clone(&rig.memory);
    let driver = best(500, || {
        (0..DEPTH).for_each(|n| rig.push(0, &copy(BUFFERS + u64::from(n) * 64, BUFFERS + (1 << 20), 64)));
        let mut entry = [0; 32];
        (0..DEPTH)
            .for_each(|n| memory.read(GuestAddress(0x10_8000 + u64::from(n) * 32), black_box(&mut entry)).unwrap());
    }) / f64::from(DEPTH);
    row(&format!("64 B copy, depth 128, {queues} queues, with driver"), all, "ns");
    row(&format!("64 B copy, depth 128, {queues} queues, engine alone"), all - driver, "ns");
    let idle = best(10_000, || {
        black_box(rig.run());
    });
    row("pass with nothing to do, 1 queue", idle, "ns");
}

fn idle_pass(queues: u16) {
    let mut rig = Rig::new(queues, 21);
    (0..100_000).for_each(|_| {
        black_box(rig.run());
    });
    row(
        &format!("pass with nothing to do, {queues} queues"),
        best(10_000, || {
            black_box(rig.run());
        }),
        "ns",
    );
}

/// Copies over 32 MiB of buffers, one operand after the other, so that neither side works in its first-level cache.
fn bandwidth(size: u64, page_log2: u8) {
    const WINDOW: u64 = 32 << 20;
    let mut rig = Rig::new(1, page_log2);
    let (src, dst) = (BUFFERS, BUFFERS + WINDOW);
    let base = rig.memory.window(GuestAddress(0)).unwrap().host;
    let depth = u32::try_from((WINDOW / size).min(128)).unwrap();
    let batches = u32::try_from(WINDOW / (size * u64::from(depth))).unwrap();
    let len = usize::try_from(size).unwrap();
    let at = |batch: u32, n: u32| u64::from(batch * depth + n) * size;
    let (mut ours, mut hosts) = (f64::INFINITY, f64::INFINITY);
    // In turns, so that what else the machine does meets both.
    for _ in 0..ROUNDS {
        let start = Instant::now();
        (0..batches).for_each(|b| rig.batch(0, depth, |n| copy(src + at(b, n), dst + at(b, n), size)));
        ours = ours.min(start.elapsed().as_secs_f64());
        let start = Instant::now();
        for n in 0..batches * depth {
            let offset = |start: u64| usize::try_from(start + at(0, n)).unwrap();
            // SAFETY: both ranges lie in the rig's memory, do not overlap, and the engine is at rest.
            unsafe {
                let (from, to) = (base.as_ptr().add(offset(src)), base.as_ptr().add(offset(dst)));
                std::ptr::copy_nonoverlapping(black_box(from), black_box(to), len);
            }
        }
        hosts = hosts.min(start.elapsed().as_secs_f64());
    }
    let name = format!("copy of {size} B, pages of 2^{page_log2}");
    #[allow(clippy::cast_precision_loss, reason = "far below 2^52")]
    let gbps = WINDOW as f64 / ours / 1e9;
    println!("{name:<52} {gbps:>12.2} GB/s, {:.2} of memcpy", hosts / ours);
}

fn main() {
    small_copies(1);
    small_copies(256);
    idle_pass(256);
    for page_log2 in [12, 21] {
        [64, 1 << 10, 4 << 10, 16 << 10, 64 << 10, 1 << 20, 16 << 20]
            .into_iter()
            .for_each(|size| bandwidth(size, page_log2));
    }
}
