//! Bandwidth of copies by virtual address: by size, alignment, page size, queue depth and number of engines.
//!
//! The baseline is the guest's own memcpy on the same buffers, in the same order, between the device's runs. In an emulated CPU that is
//! what it costs a program there, not what the host's memory can do: the launcher measures that.
use std::path::PathBuf;
use std::time::{Duration, Instant};

use svadev_guest::{Buffer, Descriptor, Device, UserQueue};

use super::memory::Range;
use super::queue::{Lane, all, polled, pump};
use super::stats::{float, rate};
use super::{Bench, RUNS, Row, Samples, Setup, Suite, bound};
use crate::harness::{Rng, Stop, Verdict};
use crate::memory::{GIGANTIC, HUGE, hugetlb, small_pages};

pub(super) const SUITE: Suite = Suite { name: "copy", on_request: false, cases: |setup| cases(setup).len(), run };

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;
/// Most bytes that one case has in flight, so that sources and destinations fit wherever they are put.
const MOST_IN_FLIGHT: usize = 64 * MIB;
/// Bytes in flight by default: beyond a core's own caches, within what a case can check in no time.
const USUAL_IN_FLIGHT: usize = 8 * MIB;

/// Pages that memory consists of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pages {
    Small,
    Huge,
    Gigantic,
}

/// Where a copy starts in its page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Start {
    /// At a multiple of 64.
    Aligned,
    /// One byte further, source and destination.
    OffByOne,
    /// 32 bytes before a page ends, source and destination.
    Crossing,
}

/// What is measured.
#[derive(Clone, Debug)]
struct Case {
    name: String,
    size: usize,
    depth: usize,
    start: Start,
    pages: Pages,
    /// One queue on each engine of all functions, instead of one queue.
    all_engines: bool,
    /// Operations a second are what matters, not bytes.
    counts: bool,
    goal: Option<&'static str>,
}

impl Case {
    fn new(name: String, size: usize) -> Self {
        let depth = (USUAL_IN_FLIGHT / size).clamp(1, 16);
        let (start, pages) = (Start::Aligned, Pages::Small);
        Self { name, size, depth, start, pages, all_engines: false, counts: false, goal: None }
    }

    /// Distance between two copies in flight.
    fn stride(&self) -> usize {
        match self.start {
            Start::Aligned => self.size.next_multiple_of(64),
            Start::OffByOne => (self.size + 1).next_multiple_of(64),
            Start::Crossing => (self.size + 4 * KIB).next_multiple_of(4 * KIB),
        }
    }

    /// Offset of the first.
    fn skew(&self) -> usize {
        match self.start {
            Start::Aligned => 0,
            Start::OffByOne => 1,
            Start::Crossing => 4 * KIB - 32,
        }
    }

    /// Bytes that all sources take, and as many that all destinations do.
    fn span(&self) -> usize {
        (self.stride() * self.depth + self.skew()).next_multiple_of(4 * KIB)
    }

    fn memory(&self, lanes: usize) -> Verdict<Buffer> {
        let length = 2 * self.span() * lanes;
        match self.pages {
            Pages::Small => small_pages(length),
            Pages::Huge => hugetlb(length.next_multiple_of(HUGE), 21),
            Pages::Gigantic => hugetlb(length.next_multiple_of(GIGANTIC), 30),
        }
    }
}

fn named(size: usize) -> String {
    match size {
        MIB.. => format!("{} MiB", size / MIB),
        KIB.. => format!("{} KiB", size / KIB),
        _ => format!("{size} B"),
    }
}

/// Every case, as [`Setup::quick`] says.
fn cases(setup: &Setup) -> Vec<Case> {
    let mut cases = Vec::new();
    let sizes: &[usize] = match setup.quick {
        true => &[64, 4 * KIB, 64 * KIB, MIB, 16 * MIB],
        false => &[64, 256, KIB, 4 * KIB, 16 * KIB, 64 * KIB, 256 * KIB, MIB, 4 * MIB, 16 * MIB, 64 * MIB],
    };
    for &size in sizes {
        let goal = (size == 4 * KIB || size >= 64 * KIB).then_some("G1");
        cases.push(Case { goal, ..Case::new(named(size), size) });
    }
    let sizes: &[usize] = if setup.quick { &[4 * KIB] } else { &[64, 4 * KIB, 64 * KIB] };
    for (start, text) in [(Start::OffByOne, "off by one"), (Start::Crossing, "page-crossing")] {
        for &size in sizes {
            cases.push(Case { start, ..Case::new(format!("{}, {text}", named(size)), size) });
        }
    }
    for (pages, text) in [(Pages::Small, "4 KiB"), (Pages::Huge, "2 MiB"), (Pages::Gigantic, "1 GiB")] {
        // Quick runs do without what takes a second to clear.
        if !setup.quick || pages != Pages::Gigantic {
            cases.push(Case { pages, depth: 8, ..Case::new(format!("1 MiB in {text} pages"), MIB) });
        }
    }
    let sizes: &[usize] = if setup.quick { &[64] } else { &[64, 4 * KIB, 64 * KIB] };
    for &size in sizes {
        for depth in [1, 8, 64, 128] {
            let goal = (size == 64 && depth == 128).then_some("G3");
            let name = format!("{} at depth {depth}", named(size));
            cases.push(Case { depth, counts: size == 64, goal, ..Case::new(name, size) });
        }
    }
    for all_engines in [false, true] {
        let text = if all_engines { "all engines" } else { "one engine" };
        cases.push(Case { all_engines, ..Case::new(format!("64 KiB on {text}"), 64 * KIB) });
    }
    debug_assert!(cases.iter().all(|case| case.span() <= 2 * MOST_IN_FLIGHT), "memory of a case is bounded");
    cases
}

fn run(bench: &mut Bench<'_>) -> Verdict {
    for case in cases(&bench.setup) {
        bench.case(&case.name)?;
        match measure(&bench.setup, &case) {
            Ok(row) => bench.row(&row)?,
            // A guest kernel may have no pages of that size to give: the row says so.
            Err(Stop::Fail(why)) if case.pages != Pages::Small => {
                bench.row(&Row::single(&case.name, 0.0, "GB/s").note(format!("not measured: {why}")))?;
            }
            Err(stop) => return Err(stop),
        }
    }
    Ok(())
}

/// Functions to use and how many queues on each: one, or one for each engine there is.
fn places(setup: &Setup, all: bool) -> Verdict<Vec<(PathBuf, usize)>> {
    if !all {
        return Ok(vec![(setup.functions[0].clone(), 1)]);
    }
    let engines = |path: &PathBuf| Ok((path.clone(), usize::try_from(Device::open(path)?.query()?.engines)?));
    setup.functions.iter().map(engines).collect()
}

fn measure(setup: &Setup, case: &Case) -> Verdict<Row> {
    let places = places(setup, case.all_engines)?;
    let devices: Vec<Device> = places.iter().map(|(path, _)| bound(path)).collect::<Verdict<_>>()?;
    let mut queues: Vec<UserQueue<'_>> = Vec::new();
    for (device, (_, count)) in devices.iter().zip(&places) {
        for _ in 0..*count {
            // Numbers are given in order, and the engine is the number modulo the engines: as many queues, as many engines.
            queues.push(UserQueue::create(device, polled(case.depth))?);
        }
    }
    let lanes = queues.len();
    let memory = case.memory(lanes)?;
    let pairs = pairs(case, &memory, lanes);
    let mut rng = Rng::new(0x5eed, &case.name);
    pairs.iter().for_each(|(src, _)| src.randomize(&mut rng));
    let clear = || pairs.iter().for_each(|(_, dst)| dst.set(0));
    let check = |when: &str| pairs.iter().try_for_each(|(src, dst)| dst.check_same(src, when));
    let work: Vec<Descriptor> =
        (pairs.iter()).map(|(src, dst)| Descriptor::copy(src.address(), dst.address(), case.size as u64)).collect();
    clear();
    for (queue, work) in queues.iter_mut().zip(work.chunks(case.depth)) {
        all(queue, work)?;
    }
    check("the first copies")?;
    let mut lanes: Vec<Lane<'_, '_>> =
        queues.iter_mut().zip(work.chunks(case.depth)).map(|(queue, work)| Lane::new(queue, work)).collect();
    let (mut by_device, mut by_cpu) = (Samples::default(), Samples::default());
    let piece = best_piece(&pairs, case.size);
    let figure = |done: u64, time: Duration| match case.counts {
        true => rate(done, time) / 1e6,
        false => rate(done, time) * float(case.size as u64) / 1e9,
    };
    for run in 0..RUNS {
        let pumped = pump(&mut lanes, setup.run_time(2))?;
        by_device.push(figure(pumped.done, pumped.time));
        if run == 0 {
            check("copies under load")?;
        }
        let (done, time) = memcpy(&pairs, piece, setup.run_time(2));
        by_cpu.push(figure(done, time));
        clear();
    }
    let (by_device, by_cpu) = (by_device.summary().expect("runs"), by_cpu.summary().expect("runs"));
    let unit = if case.counts { "M/s" } else { "GB/s" };
    let row = Row { goal: case.goal, ..Row::median(&case.name, by_device, unit).against("guest memcpy", by_cpu.p50) };
    Ok(row.note(format!("{} in flight", case.depth * lanes.len())))
}

/// Source and destination of each copy in flight, lane after lane.
fn pairs<'b>(case: &Case, memory: &'b Buffer, lanes: usize) -> Vec<(Range<'b>, Range<'b>)> {
    let (span, stride, skew) = (case.span(), case.stride(), case.skew());
    let of_lane = |lane: usize| {
        let base = lane * 2 * span;
        (0..case.depth).map(move |n| {
            let at = base + skew + n * stride;
            (Range::new(memory, at, case.size), Range::new(memory, at + span, case.size))
        })
    };
    (0..lanes).flat_map(of_lane).collect()
}

/// In what pieces the C library's memcpy is fastest here. For sizes in between it uses `rep movsb`, which is the best that a processor
/// has and the worst that an emulated one has: there, pieces below that are ten times as fast.
fn best_piece(pairs: &[(Range<'_>, Range<'_>)], size: usize) -> usize {
    let timed = |piece: usize| {
        let start = Instant::now();
        pairs[0].1.copy_from(&pairs[0].0, piece);
        start.elapsed()
    };
    // The first copy also warms the memory up for the one after it.
    let _ = timed(size);
    if timed(2 * KIB) < timed(size) { 2 * KIB } else { size }
}

/// The processor's copies of the same, for so long: how many, in what time.
fn memcpy(pairs: &[(Range<'_>, Range<'_>)], piece: usize, time: Duration) -> (u64, Duration) {
    let start = Instant::now();
    let mut done = 0;
    loop {
        for (src, dst) in pairs {
            dst.copy_from(src, piece);
        }
        done += pairs.len() as u64;
        let elapsed = start.elapsed();
        if elapsed >= time {
            return (done, elapsed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn setup(quick: bool) -> Setup {
        Setup { functions: Vec::new(), quick, per_case: Duration::ZERO, soak: Duration::ZERO, scale: 1.0 }
    }

    #[test]
    fn copies_of_a_case_neither_overlap_nor_leave_the_memory() {
        for case in cases(&setup(false)).into_iter().filter(|case| case.pages != Pages::Gigantic && case.size <= MIB) {
            let memory = small_pages(2 * case.span() * 2).unwrap();
            let mut starts: Vec<u64> =
                pairs(&case, &memory, 2).iter().flat_map(|(src, dst)| [src.address(), dst.address()]).collect();
            starts.sort_unstable();
            assert!(starts.windows(2).all(|w| w[1] - w[0] >= case.size as u64), "{}", case.name);
            assert_eq!(starts.len(), 4 * case.depth);
        }
    }

    #[test]
    fn copies_start_where_their_names_say() {
        for case in cases(&setup(false)).into_iter().filter(|case| case.pages == Pages::Small && case.size <= MIB) {
            let memory = small_pages(2 * case.span()).unwrap();
            for (src, dst) in pairs(&case, &memory, 1) {
                let expected = match case.start {
                    Start::Aligned => |at: u64| at.is_multiple_of(64),
                    Start::OffByOne => |at: u64| at % 64 == 1,
                    Start::Crossing => |at: u64| at % 4096 == 4064,
                };
                assert!(expected(src.address()) && expected(dst.address()), "{}", case.name);
            }
        }
    }

    #[test]
    fn a_quick_run_has_fewer_cases() {
        assert!(cases(&setup(true)).len() < cases(&setup(false)).len());
    }
}
