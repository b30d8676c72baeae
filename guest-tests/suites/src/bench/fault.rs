//! Pages that the device has to ask for: how many a second, against the processor's own first touch.
//!
//! *One request at a time* uses the standard's own limit: *Outstanding Page Request Allocation* (PCIe 6.0 §10.5.2.5) is set to 1, so
//! the same descriptor on the same kind of memory sends groups of one and waits for each.
use std::fs::File;
use std::os::fd::FromRawFd;
use std::os::unix::fs::FileExt;
use std::time::Instant;

use svadev_guest::{Buffer, Descriptor, Device, ScatterEntry, UserQueue};
use svadev_spec::pcie::{extended_capability, pri};
use zerocopy::IntoBytes;

use super::memory::Range;
use super::queue::{all, polled};
use super::stats::rate;
use super::{Bench, RUNS, Row, Samples, Suite};
use crate::harness::{During, Rng, Verdict};
use crate::memory::{PAGE, check_bytes, present_pages, small_pages};
use crate::{check_eq, fail};

pub(super) const SUITE: Suite = Suite { name: "fault", on_request: false, cases: |_| CASES.len(), run };

const CASES: [&str; 5] = [
    "first touch, grouped",
    "first touch, one request at a time",
    "first touch, random order",
    "in the page cache, not mapped",
    "in memory, not in the device TLB",
];
/// Descriptors in flight where pages come in random order.
const DEPTH: usize = 64;
/// What a fill leaves in each 8 bytes.
const PATTERN: u64 = 0x1122_3344_5566_7788;

fn run(bench: &mut Bench<'_>) -> Verdict {
    let setup = bench.setup.clone();
    let device = setup.bound()?;
    let mut queue = UserQueue::create(&device, polled(DEPTH))?;
    let pages = if setup.quick { 128 } else { 512 };
    first_touch(bench, &device, &mut queue, pages)?;
    bench.case(CASES[2])?;
    let by_device = runs(|run| random_order(&mut queue, pages, run))?;
    let by_cpu = runs(|_| cpu_fill(&small_pages(pages * 4096)?))?;
    let row = median(CASES[2], &by_device)?.against("guest CPU's first touch", middle(&by_cpu)?);
    bench.row(&row.note(format!("8 bytes of each of {pages} pages, {DEPTH} descriptors in flight")))?;
    bench.case(CASES[3])?;
    let by_device = runs(|_| device_fill(&mut queue, &page_cache(pages)?))?;
    let by_cpu = runs(|_| cpu_fill(&page_cache(pages)?))?;
    let row = median(CASES[3], &by_device)?.against("guest CPU's first touch", middle(&by_cpu)?);
    bench.row(&row.note(format!("{pages} pages of a memory file, written")))?;
    bench.case(CASES[4])?;
    translation_only(bench, &mut queue, pages)
}

/// Fresh memory by one long fill: in groups, one request at a time, and by the processor; the three take turns.
fn first_touch(bench: &mut Bench<'_>, device: &Device, queue: &mut UserQueue<'_>, pages: usize) -> Verdict {
    bench.case(CASES[0])?;
    let limit = RequestLimit::find(device)?;
    let (mut grouped, mut single, mut by_cpu) = (Samples::default(), Samples::default(), Samples::default());
    for _ in 0..RUNS {
        bench.out.counters("fault grouped: begin")?;
        grouped.push(device_fill(queue, &small_pages(pages * 4096)?)?);
        bench.out.counters("fault grouped: end")?;
        {
            let _one = limit.set(1)?;
            // Fewer pages: this is the slow way, and each page takes as long as the last.
            single.push(device_fill(queue, &small_pages(pages / 4 * 4096)?)?);
        }
        by_cpu.push(cpu_fill(&small_pages(pages * 4096)?)?);
    }
    let (one, cpu) = (middle(&single)?, middle(&by_cpu)?);
    let note = format!("one fill of {pages} pages");
    let row = median(CASES[0], &grouped)?;
    bench.row(&row.clone().against("one request at a time", one).goal("G4").note(&note))?;
    let row = Row { case: format!("{}, against the CPU", CASES[0]), ..row };
    bench.row(&row.against("guest CPU's first touch", cpu).note(&note))?;
    bench.case(CASES[1])?;
    let row = median(CASES[1], &single)?.against("guest CPU's first touch", cpu);
    bench.row(&row.note("outstanding page request allocation set to 1"))
}

/// Every page once, in no order, 8 bytes each, many at once.
fn random_order(queue: &mut UserQueue<'_>, pages: usize, run: u32) -> Verdict<f64> {
    let memory = small_pages(pages * 4096)?;
    let mut rng = Rng::new(run.into(), "random order");
    let mut order: Vec<usize> = (0..pages).collect();
    for n in (1..pages).rev() {
        order.swap(n, rng.below(n + 1));
    }
    let work: Vec<Descriptor> =
        order.iter().map(|page| Descriptor::fill(memory.at(page * 4096), 8, PATTERN + *page as u64)).collect();
    let start = Instant::now();
    for some in work.chunks(DEPTH) {
        all(queue, some)?;
    }
    let time = start.elapsed();
    for page in 0..pages {
        check_bytes(&memory.bytes(page * 4096, 8), &(PATTERN + page as u64).to_le_bytes(), "a page's first bytes")?;
    }
    Ok(rate(pages as u64, time))
}

/// The device looks translations up for pages that are there: no page request, and the same again from its TLB.
fn translation_only(bench: &mut Bench<'_>, queue: &mut UserQueue<'_>, pages: usize) -> Verdict {
    let list = small_pages(pages * size_of::<ScatterEntry>())?;
    let (mut cold, mut warm) = (Samples::default(), Samples::default());
    for run in 0..RUNS {
        let memory = small_pages(pages * 4096)?;
        Range::new(&memory, 0, memory.len()).set(1);
        let entries: Vec<ScatterEntry> =
            (0..pages).map(|page| ScatterEntry { address: memory.at(page * 4096), length: 8 }).collect();
        list.write(0, entries.as_bytes());
        let length = 8 * pages as u64;
        let work = Descriptor::crc32c(0, length).with_src_list(list.address(), u32::try_from(pages)?);
        let expected = crc32c::crc32c(&vec![1; 8 * pages]);
        let mut timed = || -> Verdict<f64> {
            let start = Instant::now();
            let done = super::queue::one(queue, &work)?;
            let time = start.elapsed();
            check_eq!(done.crc32c(), Some(expected), "CRC of {pages} pages, run {run}");
            Ok(time.as_secs_f64() * 1e9 / f64::from(u32::try_from(pages)?))
        };
        cold.push(timed()?);
        warm.push(timed()?);
    }
    let row = Row { unit: "ns", ..median(CASES[4], &cold)? }.against("in the device TLB", middle(&warm)?);
    bench.row(&row.note(format!("a page; a list of {pages} pages, 8 bytes each")))
}

/// Fill memory by one descriptor, check it, and say how many pages a second that were.
fn device_fill(queue: &mut UserQueue<'_>, memory: &Buffer) -> Verdict<f64> {
    let pages = memory.len() / 4096;
    check_eq!(present_pages(memory)?, 0, "pages mapped before the first touch");
    let start = Instant::now();
    all(queue, &[Descriptor::fill(memory.address(), memory.len() as u64, PATTERN)])?;
    let time = start.elapsed();
    check_eq!(present_pages(memory)?, pages, "pages that the device brought in");
    for page in 0..pages {
        check_bytes(&memory.bytes(page * 4096 + 4088, 8), &PATTERN.to_le_bytes(), "a page's last bytes")?;
    }
    Ok(rate(pages as u64, time))
}

/// The same by the processor.
fn cpu_fill(memory: &Buffer) -> Verdict<f64> {
    let pages = memory.len() / 4096;
    check_eq!(present_pages(memory)?, 0, "pages mapped before the first touch");
    let start = Instant::now();
    for page in 0..pages {
        Range::new(memory, page * 4096, 4096).set(0x5a);
    }
    Ok(rate(pages as u64, start.elapsed()))
}

/// Pages of a memory file that are in memory, mapped at a place that nobody has touched.
#[allow(unsafe_code, reason = "memfd_create's descriptor becomes a file")]
fn page_cache(pages: usize) -> Verdict<Buffer> {
    // SAFETY: the name is a literal with its NUL.
    let fd = nix::errno::Errno::result(unsafe { libc::memfd_create(c"svadev-bench".as_ptr(), libc::MFD_CLOEXEC) })?;
    // SAFETY: the kernel has just made this descriptor for us.
    let file = unsafe { File::from_raw_fd(fd) };
    for page in 0..pages as u64 {
        file.write_all_at(&[0x77; 4096], page * PAGE)?;
    }
    Ok(Buffer::file(&file, 0, pages * 4096, true)?)
}

/// One figure for each run.
fn runs(one: impl FnMut(u32) -> Verdict<f64>) -> Verdict<Samples> {
    (0..RUNS).map(one).collect()
}

fn middle(samples: &Samples) -> Verdict<f64> {
    match samples.summary() {
        Some(summary) => Ok(summary.p50),
        None => fail!("no samples"),
    }
}

fn median(case: &str, samples: &Samples) -> Verdict<Row> {
    match samples.summary() {
        Some(summary) => Ok(Row::median(case, summary, "pages/s")),
        None => fail!("{case}: no samples"),
    }
}

/// The register with how many page requests a function may have outstanding.
struct RequestLimit {
    config: File,
    /// Where the capability is.
    pri: u64,
    usual: u32,
}

/// First extended capability in configuration space (PCIe 6.0 §7.6).
const EXTENDED: u64 = 0x100;

impl RequestLimit {
    fn find(device: &Device) -> Verdict<Self> {
        let path = format!("/sys/bus/pci/devices/{}/config", device.query()?.pci_address);
        let config = File::options().read(true).write(true).open(&path).during(&path)?;
        let mut read = |at: u64| -> Verdict<u32> {
            let mut word = [0; 4];
            config.read_exact_at(&mut word, at).during(&path)?;
            Ok(u32::from_le_bytes(word))
        };
        let Some(pri) = find_capability(&mut read, extended_capability::PRI.into())? else {
            fail!("{path}: no page request capability");
        };
        let usual = read(pri + u64::from(pri::OUTSTANDING_ALLOCATION))?;
        Ok(Self { config, pri, usual })
    }

    /// Sets it, until the guard is dropped. No request is outstanding: nothing is in flight.
    fn set(&self, requests: u32) -> Verdict<LimitGuard<'_>> {
        let guard = LimitGuard(self);
        self.write(requests).during("set the page request allocation")?;
        let mut now = [0; 4];
        let offset = self.pri + u64::from(pri::OUTSTANDING_ALLOCATION);
        self.config.read_exact_at(&mut now, offset).during("read the page request allocation")?;
        check_eq!(u32::from_le_bytes(now), requests, "page request allocation");
        Ok(guard)
    }

    /// The allocation may change only while page requests are disabled (PCIe 6.0 §10.5.2.5).
    fn write(&self, requests: u32) -> std::io::Result<()> {
        let control = self.pri + u64::from(pri::CONTROL);
        self.config.write_all_at(&[0, 0], control)?;
        self.config.write_all_at(&requests.to_le_bytes(), self.pri + u64::from(pri::OUTSTANDING_ALLOCATION))?;
        self.config.write_all_at(&[1, 0], control)
    }
}

/// Offset of an extended capability (PCIe 6.0 §7.6.3: ID in bits 15:0, next in 31:20).
fn find_capability(mut read: impl FnMut(u64) -> Verdict<u32>, id: u32) -> Verdict<Option<u64>> {
    let mut at = EXTENDED;
    // As many as there is room for: a list that goes round ends, too.
    for _ in 0..(4096 - EXTENDED) / 8 {
        let header = read(at)?;
        if header & 0xffff == id {
            return Ok(Some(at));
        }
        at = u64::from(header >> 20);
        if at < EXTENDED {
            return Ok(None);
        }
    }
    Ok(None)
}

struct LimitGuard<'l>(&'l RequestLimit);

impl Drop for LimitGuard<'_> {
    fn drop(&mut self) {
        // A function that is gone by now has no use for it.
        let _ = self.0.write(self.0.usual);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_are_found_in_a_list_that_ends() {
        let list = |at: u64| {
            Ok(match at {
                0x100 => 0x1101_000f,
                0x110 => 0x1201_0013,
                _ => 0x0001_001b,
            })
        };
        assert_eq!(find_capability(list, 0x13).unwrap(), Some(0x110));
        assert_eq!(find_capability(list, 0x1b).unwrap(), Some(0x120));
        assert_eq!(find_capability(list, 0x99).unwrap(), None);
        assert_eq!(find_capability(|_| Ok(0x1001_0001), 0x99).unwrap(), None, "a list that goes round");
    }

    #[test]
    fn the_processor_touches_memory_for_the_first_time() {
        assert!(cpu_fill(&small_pages(4 * 4096).unwrap()).unwrap() > 0.0);
        let again = small_pages(4096).unwrap();
        again.write(0, &[1]);
        assert!(cpu_fill(&again).is_err());
        assert!(cpu_fill(&page_cache(4).unwrap()).unwrap() > 0.0);
    }
}
