//! Function-level reset, by sysfs, as an administrator does it.
use std::time::Duration;

use svadev_guest::{Code, Descriptor, Device};

use super::opcodes::check_success;
use crate::harness::{Context, During, Expected, Test, Verdict, Work};
use crate::memory::{PAGE, small_pages};
use crate::{check, check_eq, fail};

pub(super) const TESTS: &[Test] = &[
    Test::each("reset.idle", idle).timeout_s(30),
    Test::each("reset.with_work_in_flight", in_flight).timeout_s(30).allows(Expected::DmarFault),
    Test::pair("reset.one_function_leaves_the_other", other_function).timeout_s(30),
];

/// Reset the function behind a context.
fn reset(device: &Device) -> Verdict {
    let path = format!("/sys/bus/pci/devices/{}/reset", device.query()?.pci_address);
    std::fs::write(&path, "1").during(path)
}

/// Bindings survive, and the context goes on.
fn idle(c: &Context) -> Verdict {
    let device = c.bound()?;
    let (pasid, resets) = (device.query()?.pasid, device.query()?.resets);
    check_success(&device.go(&Descriptor::nop())?, 0, "before the reset")?;
    c.step("resetting");
    reset(&device)?;
    let after = device.query()?;
    check_eq!(after.resets, resets + 1, "count of resets");
    check_eq!(after.pasid, pasid, "PASID after the reset");
    let memory = small_pages(2 * 4096)?;
    memory.write(0, &[6; 4096]);
    check_success(&device.go(&Descriptor::copy(memory.address(), memory.at(4096), PAGE))?, PAGE, "after the reset")?;
    check_eq!(memory.get(8191), 6, "last byte copied after the reset");
    c.still_serves()
}

/// Work in flight ends as aborted or as done, each descriptor once, and work after it is done. What is enough to be in flight still when
/// the reset comes depends on the host: if it was not, there is more of it the next time.
fn in_flight(c: &Context) -> Verdict {
    let device = c.bound()?;
    for pages in [40, 160, 640] {
        if reset_under(c, &device, pages)? {
            check_success(&device.go(&Descriptor::nop())?, 0, "after the reset")?;
            return c.still_serves();
        }
    }
    fail!("each time all work was done before the reset came: nothing was shown")
}

/// Resets while descriptors fill `pages` untouched pages each. Whether one of them was in flight.
fn reset_under(c: &Context, device: &Device, pages: usize) -> Verdict<bool> {
    const COUNT: usize = 32;
    let memory = small_pages(COUNT * pages * 4096)?;
    let length = (pages * 4096) as u64;
    let work: Vec<Descriptor> = (0..COUNT)
        .map(|i| Descriptor::fill(memory.at(i * pages * 4096), length, u64::MAX).with_cookie(i as u64))
        .collect();
    device.post_all(&work)?;
    c.step(format!("resetting with {} in flight, of {pages} pages each", device.query()?.in_flight));
    reset(device)?;
    c.step("collecting what was in flight");
    let done = device.collect(COUNT, c.limit(Duration::from_secs(10)))?;
    let mut cookies: Vec<u64> = done.iter().map(|d| d.cookie).collect();
    cookies.sort_unstable();
    check_eq!(cookies, (0..COUNT as u64).collect::<Vec<_>>(), "cookies, one completion for each");
    for completion in &done {
        check!(
            matches!(completion.code, Code::Success | Code::Aborted),
            "after a reset: expected Success or Aborted, actual {completion}"
        );
    }
    check_success(&device.go(&Descriptor::fill(memory.address(), PAGE, 0))?, PAGE, "after the reset")?;
    Ok(done.iter().any(|d| d.code == Code::Aborted))
}

/// One function is reset while the other works for the same process.
fn other_function(c: &Context) -> Verdict {
    const PAGES: usize = 200;
    let (first, second) = (c.bound_on(0)?, c.bound_on(1)?);
    let memory = small_pages(PAGES * 4096)?;
    second.post_all(&[Descriptor::fill(memory.address(), memory.len() as u64, 1)])?;
    c.step("resetting the first function while the second works");
    reset(&first)?;
    let done = second.collect(1, c.limit(Duration::from_secs(10)))?;
    check_success(&done[0], memory.len() as u64, "the second function's work")?;
    check_success(&first.go(&Descriptor::crc32c(memory.address(), PAGE))?, PAGE, "the first function after its reset")
}
