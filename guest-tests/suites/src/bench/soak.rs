//! Many processes with several queues each, mixed work for a minute, every result verified, and how fair the shares were.
//!
//! What a process was served is the bytes of its completed work between a common start and a common end. All processes have the
//! same mix, and enough in flight that the device, not the guest's scheduler, is what they share. Most of the bytes are compared or
//! summed up by the device, with a result that is known beforehand; what is copied and filled is compared by the processor.
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use svadev_guest::{Buffer, Code, Completion, Descriptor, Device, UserQueue};

use super::memory::Range;
use super::queue::{blank, polled, submit};
use super::stats::rate;
use super::{Bench, Row, Samples, Setup, Suite, bound};
use crate::harness::peer::{Line, Peer};
use crate::harness::{Rng, Verdict};
use crate::memory::small_pages;
use crate::{check, check_eq, fail};

pub(super) const SUITE: Suite = Suite { name: "soak", on_request: true, cases: |_| 1, run };

const PROCESSES: usize = 64;
const QUEUES: usize = 4;
/// Descriptors in flight in each queue.
const DEPTH: usize = 8;
/// Memory of one place in a queue, source and destination each: copies and fills, which the processor checks.
const ROOM: usize = 4 << 10;
/// Memory that all places of a process compare and sum up, twice the same. So large that what is in flight keeps the device busy
/// for longer than the guest's scheduler takes to come around to the process again: the shares are the device's then.
const LARGE: usize = 1 << 20;
/// Lengths of that work are multiples of this.
const STEP: usize = 64 << 10;
/// How long a process goes on after the end, until all its work is done and checked.
const LAST_WORK: Duration = Duration::from_secs(60);

/// What a process only reads: two ranges of the same bytes, and the CRC of each multiple of `STEP` of them.
struct Large<'b> {
    one: Range<'b>,
    other: Range<'b>,
    crcs: Vec<u32>,
}

/// One place in a queue: its memory, what is in flight there, and what its completion must say.
struct Place<'b> {
    src: Range<'b>,
    dst: Range<'b>,
    expected: Expected,
}

#[derive(Clone, Copy, Debug)]
enum Expected {
    Copied(usize),
    Filled(usize, u64),
    Equal(usize),
    Different(usize),
    Crc(u32, usize),
}

fn run(bench: &mut Bench<'_>) -> Verdict {
    let setup = bench.setup.clone();
    let queues = queues_of_each(&setup)?;
    bench.case(&format!("{PROCESSES} processes with {queues} queues each, {:?}", setup.soak))?;
    let served = SharedWords::new(PROCESSES)?;
    let mut peers = Vec::new();
    for number in 0..PROCESSES {
        let (setup, served) = (&setup, &served);
        peers.push(Peer::start(move |line| be_a_process(setup, line, number, queues, served))?);
    }
    for peer in &mut peers {
        check_eq!(peer.line.wait_long(setup.limit(LAST_WORK))?, 0, "word of a process that is ready");
    }
    let start = Instant::now();
    for peer in &mut peers {
        peer.line.send(0)?;
    }
    let mut descriptors = 0;
    for peer in &mut peers {
        descriptors += peer.line.wait_long(setup.soak + setup.limit(LAST_WORK))?;
    }
    let took = start.elapsed();
    // All at once give up their queues and their PASID, which the device does one after another.
    for peer in peers {
        peer.join_within(setup.limit(LAST_WORK))?;
    }
    let bytes: Vec<u64> = (0..PROCESSES).map(|n| served.word(n).load(Ordering::Acquire)).collect();
    let shares: Samples = bytes.iter().map(|&bytes| rate(bytes, setup.soak) / 1e9).collect();
    let mean = shares.mean();
    let Some(summary) = shares.summary() else { fail!("no process was served") };
    check!(bytes.iter().any(|&bytes| bytes > 0), "no process was served");
    let (farthest, least) = spread(&bytes, setup.functions.len());
    let note = format!("{PROCESSES} processes, {queues} queues each, {descriptors} descriptors verified in {took:.1?}");
    bench.row(&Row::median("bytes served to a process", summary, "GB/s").against("mean", mean).note(&note))?;
    // A function's engines share out its time; that two functions get the same of the host's is the host's affair.
    let row = Row::single("least served over most served, of one function", least, "share");
    bench.row(&row.note("1 is perfectly fair"))?;
    let row = Row::single("farthest share from the function's mean", farthest, "share");
    bench.row(&row.note("0 is perfectly fair; 0.2 is the limit that the project sets itself"))?;
    let total = rate(bytes.iter().sum(), setup.soak) / 1e9;
    bench.row(&Row::single("all processes together", total, "GB/s").note(note))
}

/// How far the farthest process is from the mean of those on its function, and the least over the most that two of one function
/// got. Process n is on function n modulo `functions`.
#[allow(clippy::cast_precision_loss, reason = "far more digits than a share needs")]
fn spread(bytes: &[u64], functions: usize) -> (f64, f64) {
    let (mut farthest, mut least) = (0.0_f64, 1.0_f64);
    for function in 0..functions {
        let shares: Vec<f64> = bytes.iter().skip(function).step_by(functions).map(|&bytes| bytes as f64).collect();
        let mean = shares.iter().sum::<f64>() / shares.len().max(1) as f64;
        let (low, high) = shares.iter().fold((f64::MAX, 0.0_f64), |(low, high), &s| (low.min(s), high.max(s)));
        if mean > 0.0 {
            farthest = farthest.max(high / mean - 1.0).max(1.0 - low / mean);
            least = least.min(low / high);
        }
    }
    (farthest, least)
}

/// As many queues as wanted, or fewer if the functions have not so many.
fn queues_of_each(setup: &Setup) -> Verdict<usize> {
    let mut room = usize::MAX;
    for path in &setup.functions {
        room = room.min(usize::try_from(Device::open(path)?.query()?.queues)? - 1);
    }
    let on_each = PROCESSES.div_ceil(setup.functions.len());
    let queues = (room / on_each).min(QUEUES);
    check!(
        queues > 0,
        "{} function(s) with {room} user queues each are too few for {PROCESSES}",
        setup.functions.len()
    );
    Ok(queues)
}

/// Words that all processes share.
struct SharedWords(Buffer);

impl SharedWords {
    fn new(count: usize) -> Verdict<Self> {
        Ok(Self(Buffer::new(count * 64, svadev_guest::Backing::AnonymousShared)?))
    }

    #[allow(unsafe_code, reason = "a word of a mapping as an atomic")]
    fn word(&self, n: usize) -> &AtomicU64 {
        let address = std::ptr::with_exposed_provenance_mut(usize::try_from(self.0.at(n * 64)).expect("64 bits"));
        assert!(n * 64 + 8 <= self.0.len(), "a word that there is");
        // SAFETY: within the mapping (asserted), aligned to 64, accessed as an atomic only, mapped as long as `self`.
        unsafe { AtomicU64::from_ptr(address) }
    }
}

fn be_a_process(setup: &Setup, line: &mut Line, number: usize, queues: usize, served: &SharedWords) -> Verdict {
    let device = bound(&setup.functions[number % setup.functions.len()])?;
    let memory = small_pages(2 * queues * DEPTH * ROOM)?;
    let twice = small_pages(2 * LARGE)?;
    let mut rng = Rng::new(number as u64, "soak");
    let large = Large::new(&twice, &mut rng);
    let mut lanes: Vec<(UserQueue<'_>, Vec<Place<'_>>)> = Vec::new();
    for queue in 0..queues {
        let places = (0..DEPTH).map(|n| Place::new(&memory, queue * DEPTH + n, &mut rng)).collect();
        lanes.push((UserQueue::create(&device, polled(DEPTH))?, places));
    }
    line.send(0)?;
    check_eq!(line.wait_long(setup.limit(LAST_WORK))?, 0, "word to start");
    let end = Instant::now() + setup.soak;
    let give_up = end + setup.limit(LAST_WORK);
    let (mut out, mut again) = ([blank(); DEPTH], Vec::with_capacity(DEPTH));
    let (mut bytes, mut descriptors, mut in_flight) = (0_u64, 0_u64, queues * DEPTH);
    for (queue, places) in &mut lanes {
        let work: Vec<Descriptor> =
            (0..).zip(places).map(|(n, place)| place.next(&large, &mut rng).with_cookie(n)).collect();
        submit(queue, &work)?;
    }
    while in_flight > 0 {
        let mut progress = false;
        for (queue, places) in &mut lanes {
            let got = queue.poll_completions(&mut out)?;
            let now = Instant::now();
            again.clear();
            for done in &out[..got] {
                let place = &mut places[usize::try_from(done.cookie)?];
                place.verify(done)?;
                descriptors += 1;
                if now < end {
                    bytes += done.bytes_done;
                    again.push(place.next(&large, &mut rng).with_cookie(done.cookie));
                }
            }
            in_flight -= got - again.len();
            submit(queue, &again)?;
            progress |= got > 0;
            check!(now < give_up, "work that does not end: {:?}", queue.query());
        }
        if !progress {
            // Others have work, too.
            std::thread::yield_now();
        }
    }
    served.word(number).store(bytes, Ordering::Release);
    line.send(descriptors)
}

impl<'b> Large<'b> {
    fn new(memory: &'b Buffer, rng: &mut Rng) -> Self {
        let (one, other) = (Range::new(memory, 0, LARGE), Range::new(memory, LARGE, LARGE));
        let mut crc = 0;
        let crcs = (0..LARGE).step_by(STEP).map(|at| {
            let data = rng.bytes(STEP);
            memory.write(at, &data);
            crc = crc32c::crc32c_append(crc, &data);
            crc
        });
        let crcs = crcs.collect();
        other.copy_from(&one, LARGE);
        Self { one, other, crcs }
    }
}

impl<'b> Place<'b> {
    fn new(memory: &'b Buffer, n: usize, rng: &mut Rng) -> Self {
        let (src, dst) = (Range::new(memory, 2 * n * ROOM, ROOM), Range::new(memory, (2 * n + 1) * ROOM, ROOM));
        let data = rng.bytes(ROOM);
        memory.write(2 * n * ROOM, &data);
        dst.copy_from(&src, ROOM);
        Self { src, dst, expected: Expected::Equal(0) }
    }

    /// The next piece of work here. Whatever it was before, the destination is the source's copy again.
    fn next(&mut self, large: &Large<'_>, rng: &mut Rng) -> Descriptor {
        let written = 1 + rng.below(ROOM);
        let steps = 1 + rng.below(LARGE / STEP);
        let (one, other, length) = (large.one.address(), large.other.address(), steps * STEP);
        let (src, dst) = (self.src.address(), self.dst.address());
        let (descriptor, expected) = match rng.below(8) {
            0 => {
                self.dst.part(0, written).set(0xee);
                (Descriptor::copy(src, dst, written as u64), Expected::Copied(written))
            }
            1 => {
                let pattern = rng.next_u64();
                (Descriptor::fill(dst, written as u64, pattern), Expected::Filled(written, pattern))
            }
            2 => {
                let at = rng.below(ROOM);
                self.dst.flip(at);
                (Descriptor::compare(src, dst, ROOM as u64), Expected::Different(at))
            }
            3 | 4 => (Descriptor::compare(one, other, length as u64), Expected::Equal(length)),
            _ => (Descriptor::crc32c(one, length as u64), Expected::Crc(large.crcs[steps - 1], length)),
        };
        self.expected = expected;
        descriptor
    }

    /// Check what was done, and put the destination in order.
    fn verify(&self, done: &Completion) -> Verdict {
        let length = match self.expected {
            Expected::Copied(length) => {
                self.dst.part(0, length).check_same(&self.src.part(0, length), "copy")?;
                length
            }
            Expected::Filled(length, pattern) => {
                self.dst.part(0, length).check_pattern(pattern)?;
                self.dst.part(0, length).copy_from(&self.src.part(0, length), length);
                length
            }
            Expected::Different(at) => {
                check_eq!(done.mismatch_offset(), Some(at as u64), "offset of the planted difference");
                self.dst.flip(at);
                return Ok(());
            }
            Expected::Equal(length) => length,
            Expected::Crc(crc, length) => {
                check_eq!(done.crc32c(), Some(crc), "CRC");
                length
            }
        };
        check!(done.code == Code::Success && done.bytes_done == length as u64, "{:?}: {done}", self.expected);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the device would do.
    fn carry_out(place: &Place<'_>, descriptor: &Descriptor) -> Completion {
        let length = descriptor.raw.length;
        let mut done = Completion { code: Code::Success, bytes_done: length, ..blank() };
        let length = usize::try_from(length).unwrap();
        match place.expected {
            Expected::Copied(_) => place.dst.part(0, length).copy_from(&place.src.part(0, length), length),
            Expected::Filled(_, pattern) => place.dst.part(0, length).fill_pattern(pattern),
            Expected::Different(at) => {
                (done.code, done.result, done.bytes_done) = (Code::Mismatch, at as u64, at as u64)
            }
            Expected::Equal(_) => {}
            Expected::Crc(crc, _) => done.result = crc.into(),
        }
        done
    }

    #[test]
    fn right_results_pass_and_wrong_ones_do_not() {
        let (memory, twice) = (small_pages(2 * ROOM).unwrap(), small_pages(2 * LARGE).unwrap());
        let mut rng = Rng::new(1, "soak test");
        let large = Large::new(&twice, &mut rng);
        let mut place = Place::new(&memory, 0, &mut rng);
        for _ in 0..200 {
            let work = place.next(&large, &mut rng);
            let done = carry_out(&place, &work);
            place.verify(&done).unwrap();
            place.dst.check_same(&place.src, "left over from the work before").unwrap();
            let work = place.next(&large, &mut rng);
            let done = carry_out(&place, &work);
            let spoilt = match place.expected {
                Expected::Copied(_) | Expected::Filled(..) => {
                    place.dst.flip(0);
                    done
                }
                Expected::Different(_) | Expected::Crc(..) => Completion { result: done.result ^ 1, ..done },
                Expected::Equal(_) => Completion { code: Code::Mismatch, ..done },
            };
            assert!(place.verify(&spoilt).is_err(), "{:?}", place.expected);
            place = Place::new(&memory, 0, &mut rng);
        }
    }

    #[test]
    fn shares_are_compared_within_a_function() {
        let (farthest, least) = spread(&[100, 900, 100, 1100], 2);
        assert!((farthest - 0.1).abs() < 1e-9 && (least - 900.0 / 1100.0).abs() < 1e-9, "{farthest} {least}");
        assert_eq!(spread(&[0, 5], 2), (0.0, 1.0));
        assert_eq!(spread(&[0, 10], 1), (1.0, 0.0));
    }

    #[test]
    fn shared_words_are_apart() {
        let words = SharedWords::new(3).unwrap();
        words.word(2).store(7, Ordering::Release);
        assert_eq!((words.word(1).load(Ordering::Acquire), words.word(2).load(Ordering::Acquire)), (0, 7));
    }
}
