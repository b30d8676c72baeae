//! What changes of a mapping cost the program, with its address space bound and its pages in the device TLB, and not bound.
//!
//! The difference is what the kernel's notifier, the IOMMU and the device add. Between the marks `invalidate CASE: begin` and `… end`
//! only the bound part runs, so the launcher can say from its counters how much of that was the backend's.
use std::time::{Duration, Instant};

use nix::sys::mman::{MmapAdvise, ProtFlags};
use svadev_guest::{Buffer, Descriptor, Device, UserQueue};

use super::queue::{all, polled};
use super::{Bench, RUNS, Row, Samples, Suite};
use crate::harness::{During, Verdict};
use crate::memory::{PAGE, check_bytes, small_pages};
use crate::{check, fail};

pub(super) const SUITE: Suite =
    Suite { name: "invalidate", on_request: false, cases: |_| CHANGES.len() * PAGES.len(), run };

const CHANGES: [Change; 3] = [Change::Unmap, Change::Protect, Change::DontNeed];
const PAGES: [usize; 3] = [1, 16, 512];
/// Fewest samples of a run, however long they take.
const FEWEST: usize = 4;
/// Most samples of a run.
const MOST: usize = 2000;

/// What is done to the memory.
#[derive(Clone, Copy, Debug)]
enum Change {
    Unmap,
    /// Takes the right to write away.
    Protect,
    DontNeed,
}

impl Change {
    fn name(self) -> &'static str {
        match self {
            Self::Unmap => "munmap",
            Self::Protect => "mprotect",
            Self::DontNeed => "MADV_DONTNEED",
        }
    }
}

/// Memory of a case, as it has to be before each change: in memory, writable.
struct Target {
    change: Change,
    pages: usize,
    memory: Option<Buffer>,
}

impl Target {
    fn prepare(&mut self) -> Verdict<&Buffer> {
        let memory = match self.memory.take() {
            Some(memory) => memory,
            None => small_pages(self.pages * 4096)?,
        };
        if matches!(self.change, Change::Protect) {
            memory.protect(0, memory.len(), ProtFlags::PROT_READ | ProtFlags::PROT_WRITE)?;
        }
        for page in 0..self.pages {
            memory.write(page * 4096, &[1; 8]);
        }
        Ok(self.memory.insert(memory))
    }

    /// Makes the change and says how long that took.
    fn change(&mut self) -> Verdict<Duration> {
        let Some(memory) = self.memory.take() else { fail!("the memory was not prepared") };
        let length = memory.len();
        let start = Instant::now();
        match self.change {
            Change::Unmap => {
                memory.unmap();
                return Ok(start.elapsed());
            }
            Change::Protect => memory.protect(0, length, ProtFlags::PROT_READ)?,
            Change::DontNeed => memory.advise(0, length, MmapAdvise::MADV_DONTNEED)?,
        }
        let took = start.elapsed();
        self.memory = Some(memory);
        Ok(took)
    }
}

fn run(bench: &mut Bench<'_>) -> Verdict {
    let device = Device::open(&bench.setup.functions[0])?;
    for change in CHANGES {
        for pages in PAGES {
            let case = format!("{} of {pages} page{}", change.name(), if pages == 1 { "" } else { "s" });
            bench.case(&case)?;
            let row = measure(bench, &device, &case, change, pages).during(&case)?;
            bench.row(&row)?;
        }
    }
    Ok(())
}

fn measure(bench: &mut Bench<'_>, device: &Device, case: &str, change: Change, pages: usize) -> Verdict<Row> {
    let time = bench.setup.run_time(2);
    let (mut bound, mut unbound) = (Samples::with_capacity(MOST), Samples::with_capacity(MOST));
    for run in 0..RUNS {
        let mut target = Target { change, pages, memory: None };
        samples(&mut unbound, time, &mut target, |_| Ok(()))?;
        device.bind()?;
        let mut queue = UserQueue::create(device, polled(1))?;
        if run == 0 {
            takes_effect(&mut queue, change)?;
        }
        bench.out.counters(&format!("invalidate {case}: begin"))?;
        samples(&mut bound, time, &mut target, |memory| {
            // The device writes each page, so that its TLB holds a writable translation of each.
            all(&mut queue, &[Descriptor::fill(memory.address(), memory.len() as u64, 2)])
        })?;
        bench.out.counters(&format!("invalidate {case}: end"))?;
        queue.destroy()?;
        device.unbind()?;
    }
    let count = bound.len();
    let (Some(bound), Some(unbound)) = (bound.summary(), unbound.summary()) else { fail!("no samples") };
    let note = format!("{count} changes with the process bound");
    Ok(Row::median(case, bound, "us").against("not bound", unbound.p50).note(note))
}

/// Prepare, let the device touch it, change: for so long.
fn samples(
    into: &mut Samples,
    time: Duration,
    target: &mut Target,
    mut touch: impl FnMut(&Buffer) -> Verdict,
) -> Verdict {
    // One that does not count: the first of everything is slow.
    touch(target.prepare()?)?;
    target.change()?;
    let (start, before) = (Instant::now(), into.len());
    while into.len() - before < FEWEST || (into.len() - before < MOST / RUNS as usize && start.elapsed() < time) {
        touch(target.prepare()?)?;
        into.push_micros(target.change()?);
    }
    Ok(())
}

/// The device must not get at the old page after the change: that is what the time is spent for.
fn takes_effect(queue: &mut UserQueue<'_>, change: Change) -> Verdict {
    let mut target = Target { change, pages: 1, memory: None };
    let address = target.prepare()?.address();
    all(queue, &[Descriptor::fill(address, PAGE, 2)])?;
    target.change()?;
    let write = Descriptor::fill(address, PAGE, 0x0505_0505_0505_0505).stop_on_fault();
    super::queue::submit(queue, &[write])?;
    let mut out = [super::queue::blank()];
    let got = queue.wait(&mut out, Duration::from_secs(10))?;
    check!(
        got == 1 && out[0].fault_address() == Some(address),
        "the device wrote through a translation that is gone: {}",
        out[0]
    );
    if let Some(memory) = &target.memory {
        let expected = if matches!(change, Change::Protect) { [2, 0, 0, 0, 0, 0, 0, 0] } else { [0; 8] };
        check_bytes(&memory.bytes(0, 8), &expected, "memory after the change")?;
    }
    Ok(())
}
