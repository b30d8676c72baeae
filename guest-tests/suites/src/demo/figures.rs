//! What it costs, measured in the guest. Each figure has a baseline measured by the same clock in the same run.
use std::hint::black_box;
use std::io::Write;
use std::time::{Duration, Instant};

use svadev_guest::{Buffer, Descriptor, Device};

use super::{Teller, micros};
use crate::check;
use crate::harness::{Context, Verdict, Work};
use crate::memory::small_pages;

/// Copies of each size are repeated for about this long.
const BANDWIDTH_TIME: Duration = Duration::from_millis(400);
/// Copies in flight at once while bandwidth is measured.
const DEPTH: usize = 16;
/// Sizes that are measured.
const SIZES: [(usize, &str); 4] = [(4 << 10, "4KiB"), (64 << 10, "64KiB"), (1 << 20, "1MiB"), (16 << 20, "16MiB")];
/// Submissions of the latency measurement.
const LATENCY_ROUNDS: usize = 1000;
/// Pages of the fault measurement.
const FAULT_PAGES: usize = 512;

pub(super) fn measure(c: &Context, out: &mut Teller<impl Write>) -> Verdict {
    let device = c.bound_on(0)?;
    bandwidth(&device, out)?;
    latency(&device, out)?;
    faults(&device, out)?;
    Ok(device.unbind()?)
}

/// Warm copies by virtual address, and the guest's own memcpy.
fn bandwidth(device: &Device, out: &mut Teller<impl Write>) -> Verdict {
    for (size, name) in SIZES {
        let (src, dst) = (Buffer::anonymous(size)?, Buffer::anonymous(size)?);
        src.fill(0x5a);
        dst.fill(0);
        let copy = Descriptor::copy(src.address(), dst.address(), size as u64);
        // The first one brings the translations in.
        check!(device.go(&copy)?.is_success(), "a warm copy of {name} failed");
        // No two copies of one destination at once: large ones go one by one.
        let depth = if size <= 64 << 10 { DEPTH } else { 1 };
        let targets = Buffer::anonymous(size * depth)?;
        targets.fill(0);
        let batch: Vec<Descriptor> =
            (0..depth).map(|i| Descriptor::copy(src.address(), targets.at(i * size), size as u64)).collect();
        let measured = repeat(|| {
            device.post_all(&batch)?;
            for done in device.collect(depth, Duration::from_secs(20))? {
                check!(done.is_success(), "a warm copy of {name}: {done}");
            }
            Ok(size * depth)
        })?;
        out.figure(&format!("copy_bandwidth_{name}"), measured, "MB/s")?;
        let (from, mut to) = (vec![0x5a_u8; size], vec![0_u8; size]);
        let memcpy = repeat(|| {
            black_box(&mut to[..]).copy_from_slice(black_box(&from[..]));
            Ok(size)
        })?;
        out.figure(&format!("memcpy_bandwidth_{name}"), memcpy, "MB/s")?;
    }
    Ok(())
}

/// Repeat `work`, which says how many bytes it moved, and return MB/s.
fn repeat(mut work: impl FnMut() -> Verdict<usize>) -> Verdict<f64> {
    let (start, mut bytes) = (Instant::now(), 0_u64);
    while start.elapsed() < BANDWIDTH_TIME {
        bytes += work()? as u64;
    }
    #[allow(clippy::cast_precision_loss, reason = "a figure for people")]
    let bytes = bytes as f64;
    Ok(bytes / 1e6 / start.elapsed().as_secs_f64())
}

/// From before the submission to after the completion was collected, system calls included: 64 bytes, one at a time.
fn latency(device: &Device, out: &mut Teller<impl Write>) -> Verdict {
    let memory = small_pages(4096)?;
    memory.fill(1);
    let copy = Descriptor::copy(memory.address(), memory.at(2048), 64);
    let mut times = Vec::with_capacity(LATENCY_ROUNDS);
    for _ in 0..LATENCY_ROUNDS {
        let start = Instant::now();
        let done = device.go(&copy)?;
        times.push(start.elapsed());
        check!(done.is_success(), "a copy of 64 bytes: {done}");
    }
    times.sort_unstable();
    for (name, per_mille) in [("p50", 500), ("p90", 900), ("p99", 990), ("max", 1000)] {
        let index = (LATENCY_ROUNDS * per_mille / 1000).min(LATENCY_ROUNDS - 1);
        out.figure(&format!("latency_64B_{name}"), micros(times[index]), "us")?;
    }
    Ok(())
}

/// Never-touched pages, 4 KiB each: brought in by the device, and by the processor.
fn faults(device: &Device, out: &mut Teller<impl Write>) -> Verdict {
    let pages = f64::from(u32::try_from(FAULT_PAGES)?);
    let cold = small_pages(FAULT_PAGES * 4096)?;
    let start = Instant::now();
    let done = device.go(&Descriptor::fill(cold.address(), cold.len() as u64, 1))?;
    let by_device = start.elapsed();
    check!(done.is_success(), "fill of {FAULT_PAGES} untouched pages: {done}");
    let start = Instant::now();
    let done = device.go(&Descriptor::fill(cold.address(), cold.len() as u64, 2))?;
    let warm = start.elapsed();
    check!(done.is_success(), "fill of {FAULT_PAGES} pages: {done}");
    let touched = small_pages(FAULT_PAGES * 4096)?;
    let start = Instant::now();
    for page in 0..FAULT_PAGES {
        touched.write(page * 4096, &[1]);
    }
    let by_cpu = start.elapsed();
    out.figure("page_fault_device", micros(by_device.saturating_sub(warm)) / pages, "us/page")?;
    out.figure("page_fault_cpu", micros(by_cpu) / pages, "us/page")
}
