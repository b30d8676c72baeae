//! The story: what a process can do with a device that follows its pointers, and what happens when memory or process go.
use std::io::Write;
use std::time::{Duration, Instant};

use serde_json::json;
use svadev_guest::{Code, Descriptor, Device};

use super::Teller;
use crate::harness::peer::{Line, Peer};
use crate::harness::{Context, Expected, Marked, Verdict, Work, kernel_log};
use crate::memory::{check_bytes, present_pages, small_pages};
use crate::{check, check_eq};

/// Memory of each process' copy.
const LENGTH: usize = 64 * 4096;
/// Pages of the work that is under way when its process is killed.
const LONG_PAGES: usize = 1024;

pub(super) fn tell(c: &Context, out: &mut Teller<impl Write>) -> Verdict {
    // The second process is forked first, before this one holds anything that it would inherit.
    let mut second = Peer::start(|line| second_process(c, line))?;
    let devices = [c.bound_on(0)?, c.bound_on(1)?];
    bind(&devices, &mut second, out)?;
    fault_in(c, &devices[0], &mut second, out)?;
    unmap(&devices[0], out)?;
    kill(c, second, out)?;
    teardown(&devices, out)
}

/// The second process: on the second function, step by step as the first one says.
fn second_process(c: &Context, line: &mut Line) -> Verdict {
    let device = c.bound_on(1)?;
    line.send(u64::from(device.query()?.pasid.unwrap_or(0)))?;
    line.recv()?;
    let (missing, present, _) = copy_into_untouched(&device, &c.rng().bytes(LENGTH))?;
    line.send(missing as u64)?;
    line.send(present as u64)?;
    line.recv()?;
    let memory = small_pages(LONG_PAGES * 4096)?;
    device.post_all(&[Descriptor::fill(memory.address(), memory.len() as u64, 1)])?;
    line.send(u64::from(device.query()?.in_flight))?;
    loop {
        std::thread::park();
    }
}

fn bind(devices: &[Device; 2], second: &mut Peer, out: &mut Teller<impl Write>) -> Verdict {
    let (queries, theirs) = ([devices[0].query()?, devices[1].query()?], second.line.recv()?);
    let ours = queries[0].pasid.map_or(0, u64::from);
    check_eq!(queries[1].pasid, queries[0].pasid, "PASID of one process on two functions");
    check!(ours != theirs, "two processes have one PASID, {ours}");
    let text = format!(
        "process 1 binds on {} and {}: PASID {ours} on both; process 2 binds on {}: PASID {theirs}",
        queries[0].pci_address, queries[1].pci_address, queries[1].pci_address
    );
    out.event("bind", &text, json!({ "pasids": [ours, theirs] }))
}

/// Copy into memory that nobody touched and verify: pages that were there before, after, and the time.
fn copy_into_untouched(device: &Device, data: &[u8]) -> Verdict<(usize, usize, Duration)> {
    let (src, dst) = (small_pages(data.len())?, small_pages(data.len())?);
    src.write(0, data);
    let before = present_pages(&dst)?;
    let start = Instant::now();
    let done = device.go(&Descriptor::copy(src.address(), dst.address(), data.len() as u64))?;
    let took = start.elapsed();
    check!(done.is_success(), "copy into untouched memory: {done}");
    let after = present_pages(&dst)?;
    check_bytes(&dst.bytes(0, data.len()), data, "copy")?;
    let crc = device.go(&Descriptor::crc32c(dst.address(), data.len() as u64))?;
    check_eq!(crc.crc32c(), Some(crc32c::crc32c(data)), "the device's CRC of what it copied");
    Ok((before, after, took))
}

fn fault_in(c: &Context, device: &Device, second: &mut Peer, out: &mut Teller<impl Write>) -> Verdict {
    second.line.send(0)?;
    let (before, after, took) = copy_into_untouched(device, &c.rng().bytes(LENGTH))?;
    let theirs = (second.line.recv()?, second.line.recv()?);
    let text = format!(
        "both copy {} KiB by plain pointers into memory that nobody touched: process 1 had {before} of {} pages, the device \
         had {after} brought in, in {:.1} ms; process 2: {} and {}",
        LENGTH / 1024,
        LENGTH / 4096,
        took.as_secs_f64() * 1e3,
        theirs.0,
        theirs.1
    );
    out.event("fault_in", &text, json!({ "pages_before": before, "pages_after": after, "bytes": LENGTH }))?;
    let text = "data verified in both processes, by their own loads and by the device's CRC-32C";
    out.event("verify", text, json!({}))
}

fn unmap(device: &Device, out: &mut Teller<impl Write>) -> Verdict {
    let (memory, other) = (small_pages(4 * 4096)?, small_pages(4 * 4096)?);
    memory.fill(1);
    let before = device.go(&Descriptor::copy(memory.address(), other.address(), 4 * 4096))?;
    check!(before.is_success(), "copy before munmap: {before}");
    let gone = memory.unmap();
    let after = device.go(&Descriptor::copy(gone, other.address(), 4 * 4096))?;
    check_eq!(after.code, Code::PageFault, "copy after munmap: {after}");
    check_eq!(after.fault_address(), Some(gone), "address of the fault");
    let text = format!(
        "process 1 unmaps memory that the device has just read: the next access ends in a page fault at {gone:#x}"
    );
    out.event("munmap_fault", &text, json!({ "address": format!("{gone:#x}") }))
}

fn kill(c: &Context, mut second: Peer, out: &mut Teller<impl Write>) -> Verdict {
    second.line.send(0)?;
    let in_flight = second.line.recv()?;
    // What the device asks for between the process's death and the driver's word may be recorded as a fault.
    let name = "demo.kill";
    kernel_log::say(&kernel_log::begin_line(name, Marked::Allows(Expected::DmarFault)))?;
    let start = Instant::now();
    second.kill()?;
    let took = start.elapsed();
    let function = Device::open(&c.functions[1])?;
    function.bind()?;
    let memory = small_pages(4096)?;
    let done = function.go(&Descriptor::fill(memory.address(), 4096, 1))?;
    check!(done.is_success(), "the second function after its user was killed: {done}");
    // Its page request came after the fault on the same way, so the fault is in the log by now.
    kernel_log::say(&kernel_log::end_line(name))?;
    let text = format!(
        "process 2 is killed with {in_flight} descriptor(s) in flight: gone in {:.1} ms, and its function serves the next",
        took.as_secs_f64() * 1e3
    );
    out.event("kill", &text, json!({ "in_flight": in_flight }))
}

fn teardown(devices: &[Device; 2], out: &mut Teller<impl Write>) -> Verdict {
    for device in devices {
        device.unbind()?;
        let left = device.query()?;
        check_eq!((left.pasid, left.in_flight, left.uncollected), (None, 0, 0), "what is left after unbind");
    }
    out.event("teardown", "process 1 unbinds both functions: no binding, no work, no completion is left", json!({}))
}
