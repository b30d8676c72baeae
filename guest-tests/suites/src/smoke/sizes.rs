//! Lengths and alignments: every small one, and those around page and slice boundaries.
use std::collections::BTreeSet;

use svadev_guest::{Buffer, Descriptor};

use super::opcodes::check_success;
use crate::check;
use crate::harness::{Context, Test, Verdict, Work};
use crate::memory::{HUGE, check_bytes, small_pages};

pub(super) const TESTS: &[Test] = &[
    Test::each("copy.sizes", small_sizes),
    Test::each("copy.alignments", alignments),
    Test::each("copy.around_boundaries", around_boundaries),
    Test::each("copy.sixteen_mib", sixteen_mib),
    Test::each("copy.random", random),
    Test::each("copy.neighbours_may_touch", neighbours),
];

/// Bytes before and after a destination that must stay as they are.
const MARGIN: usize = 64;
/// What they are.
const CANARY: u8 = 0xcc;

/// Copy, and check the destination and the bytes around it.
fn copy_and_check(
    c: &Context,
    device: &impl Work,
    data: &[u8],
    src: (&Buffer, usize),
    dst: (&Buffer, usize),
) -> Verdict {
    let (length, (src, from), (dst, to)) = (data.len(), src, dst);
    c.step(format!("copy of {length} bytes from +{from} to +{to}"));
    let before = to.min(MARGIN);
    let after = (dst.len() - to - length).min(MARGIN);
    src.write(from, data);
    dst.write(to - before, &vec![CANARY; before + length + after]);
    let done = device.go(&Descriptor::copy(src.at(from), dst.at(to), length as u64))?;
    let what = format!("{length} bytes from +{from} to +{to}");
    check_success(&done, length as u64, &what)?;
    check_bytes(&dst.bytes(to, length), data, &what)?;
    let around = [dst.bytes(to - before, before), dst.bytes(to + length, after)].concat();
    check_bytes(&around, &vec![CANARY; before + after], &format!("bytes around {what}"))
}

fn small_sizes(c: &Context) -> Verdict {
    let device = c.bound()?;
    let (src, dst) = (small_pages(4 * 4096)?, small_pages(4 * 4096)?);
    let mut rng = c.rng();
    let sizes = (1..=64).chain(4096 - 3..=4096 + 3).chain([127, 128, 129, 1000, 2 * 4096 - 1, 2 * 4096]);
    for size in sizes {
        copy_and_check(c, &device, &rng.bytes(size), (&src, 100), (&dst, 200))?;
    }
    Ok(())
}

/// Source and destination at every alignment within 8 bytes, and at the end of a page.
fn alignments(c: &Context) -> Verdict {
    let device = c.bound()?;
    let (src, dst) = (small_pages(3 * 4096)?, small_pages(3 * 4096)?);
    let mut rng = c.rng();
    for from in (0..8).chain([4091, 4095]) {
        for to in (0..8).chain([4089, 4095]) {
            copy_and_check(c, &device, &rng.bytes(29), (&src, from), (&dst, to))?;
        }
    }
    Ok(())
}

/// One byte less, exactly, one byte more: for a page, the device's 64 KiB slice, and 2 MiB.
fn around_boundaries(c: &Context) -> Verdict {
    let device = c.bound()?;
    let (src, dst) = (Buffer::aligned(HUGE + 4 * 4096, HUGE)?, Buffer::aligned(HUGE + 4 * 4096, HUGE)?);
    let mut rng = c.rng();
    for boundary in [4096, 65536, HUGE] {
        for size in [boundary - 1, boundary, boundary + 1] {
            copy_and_check(c, &device, &rng.bytes(size), (&src, 0), (&dst, 0))?;
        }
        c.step(format!("across {boundary}"));
        copy_and_check(c, &device, &rng.bytes(300), (&src, boundary - 150), (&dst, boundary - 7))?;
    }
    copy_and_check(c, &device, &rng.bytes(65536 + 4096), (&src, 4095), (&dst, 1))
}

fn sixteen_mib(c: &Context) -> Verdict {
    let device = c.bound()?;
    let length = 16 << 20;
    let (src, dst) = (Buffer::aligned(length, HUGE)?, Buffer::aligned(length, HUGE)?);
    copy_and_check(c, &device, &c.rng().bytes(length), (&src, 0), (&dst, 0))?;
    c.step("the device compares what it copied");
    let done = device.go(&Descriptor::compare(src.address(), dst.address(), length as u64))?;
    check_success(&done, length as u64, "compare of 16 MiB")
}

fn random(c: &Context) -> Verdict {
    let device = c.bound()?;
    let (src, dst) = (small_pages(64 * 4096)?, small_pages(64 * 4096)?);
    let mut rng = c.rng();
    let mut tried = BTreeSet::new();
    for _ in 0..50 {
        let log2 = 1 + rng.below(17);
        let size = 1 + rng.below(1 << log2);
        let (from, to) = (rng.below(src.len() - size), rng.below(dst.len() - size));
        copy_and_check(c, &device, &rng.bytes(size), (&src, from), (&dst, to))?;
        tried.insert((size, from, to));
    }
    check!(tried.len() > 40, "expected mostly different copies, actual {} of 50", tried.len());
    Ok(())
}

/// Operands that touch without overlapping are allowed, in both orders.
fn neighbours(c: &Context) -> Verdict {
    let device = c.bound()?;
    let memory = small_pages(4 * 4096)?;
    let data = c.rng().bytes(5000);
    for (from, to) in [(0, 5000), (5000, 0)] {
        memory.fill(0);
        memory.write(from, &data);
        let done = device.go(&Descriptor::copy(memory.at(from), memory.at(to), 5000))?;
        check_success(&done, 5000, &format!("copy from +{from} to +{to}"))?;
        check_bytes(&memory.bytes(to, 5000), &data, "destination")?;
        check_bytes(&memory.bytes(from, 5000), &data, "source")?;
    }
    Ok(())
}
