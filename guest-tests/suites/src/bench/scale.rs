//! Whether it stays as fast with many processes and many queues: each figure is compared with that for one.
//!
//! Processes are forked with the memory that they work on, so the same addresses mean other pages in each. Their work is submitted
//! by this process, in turn and naming their PASIDs (`SVADEV_SUBMIT_RAW`): with thousands of processes on two processors, their own
//! turns would be all that one measures.
use std::time::{Duration, Instant};

use svadev_guest::{Buffer, Descriptor, Device, SubmitFlags, UserQueue};

use super::latency::sampled;
use super::queue::{Lane, all, one, polled, pump};
use super::stats::rate;
use super::{Bench, RUNS, Row, Samples, Setup, Suite, bound};
use crate::harness::peer::{Line, Peer};
use crate::harness::{During, Rng, Stop, Verdict, Work};
use crate::memory::{check_bytes, small_pages};
use crate::{check, fail};

pub(super) const SUITE: Suite =
    Suite { name: "scale", on_request: false, cases: |setup| process_steps(setup).len() + QUEUE_STEPS.len(), run };

/// Bytes of a copy.
const BYTES: usize = 64;
/// Descriptors in flight through the kernel queue, below what one context may have.
const BATCH: usize = 128;
/// Descriptors in flight in each queue.
const DEPTH: usize = 4;
/// Queues that are tried; more than there are is as many as there are.
const QUEUE_STEPS: [usize; 5] = [1, 4, 16, 64, 256];
/// How long forking and binding may take in all. What is not there by then is not measured, and the row says so.
const FORKING_TIME: Duration = Duration::from_secs(60);
/// How long the kernel queue may take for a batch.
const BATCH_TIMEOUT: Duration = Duration::from_secs(20);

fn process_steps(setup: &Setup) -> &'static [usize] {
    if setup.quick { &[1, 16, 64] } else { &[1, 16, 64, 256, 1024, 4096] }
}

fn run(bench: &mut Bench<'_>) -> Verdict {
    // Before anything is bound: processes inherit as little as possible.
    processes(bench)?;
    queues(bench)
}

/// Lets this process have a socket to each of so many.
#[allow(unsafe_code, reason = "setrlimit")]
fn allow_files(count: usize) -> Verdict {
    let most = count as u64 + 256;
    let limit = libc::rlimit { rlim_cur: most, rlim_max: most };
    // SAFETY: the kernel reads a live structure.
    let result = unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) };
    nix::errno::Errno::result(result).during("allow a socket to each process")?;
    Ok(())
}

/// A forked process that is bound.
struct Bound {
    peer: Peer,
    pasid: u32,
}

/// What each process works on: the source, and the destination half a page further.
fn descriptor(memory: &Buffer, pasid: u32) -> Descriptor {
    Descriptor::copy(memory.address(), memory.at(2048), BYTES as u64).with_pasid(Some(pasid))
}

/// A process: bind, write bytes of its own, wait until its work is done, check it.
fn be_a_process(setup: &Setup, memory: &Buffer, line: &mut Line, number: usize) -> Verdict {
    let device = setup.bound()?;
    let data = Rng::new(number as u64, "scale").bytes(BYTES);
    memory.write(0, &data);
    memory.write(2048, &[0; BYTES]);
    let Some(pasid) = device.query()?.pasid else { fail!("bound, but without PASID") };
    line.send(pasid.into())?;
    // The end of the stream, or a word: either way it is over.
    line.wait_long(setup.limit(FORKING_TIME * 5))?;
    check_bytes(&memory.bytes(2048, BYTES), &data, &format!("copy in process {number}"))?;
    line.send(1)
}

fn processes(bench: &mut Bench<'_>) -> Verdict {
    let setup = bench.setup.clone();
    let steps = process_steps(&setup);
    allow_files(*steps.last().expect("there are steps"))?;
    let memory = small_pages(4096)?;
    memory.fill(0);
    let submitter = Device::open(&setup.functions[0])?;
    let mut bound: Vec<Bound> = Vec::new();
    let (started, mut stopped) = (Instant::now(), None);
    let mut single = None;
    for &step in steps {
        bench.case(&format!("{step} processes"))?;
        while bound.len() < step && stopped.is_none() {
            if started.elapsed() > setup.limit(FORKING_TIME) {
                stopped = Some(format!("forking and binding took longer than {FORKING_TIME:?}"));
                break;
            }
            match start_process(&setup, &memory, bound.len()) {
                Ok(one) => bound.push(one),
                Err(Stop::Fail(why) | Stop::Skip(why)) => stopped = Some(why),
            }
        }
        check!(!bound.is_empty(), "not even one process: {stopped:?}");
        let samples = in_turn(&setup, &submitter, &memory, &bound)?;
        let Some(summary) = samples.summary() else { fail!("no samples") };
        let one = *single.get_or_insert(summary.p50);
        let note = match &stopped {
            None => format!("64 B copies by the kernel queue, each of the next of {step} PASIDs"),
            Some(why) => format!("only {} processes: {why}", bound.len()),
        };
        bench.row(&Row::median(format!("{step} processes"), summary, "M/s").against("1 process", one).note(note))?;
        if stopped.is_some() {
            break;
        }
    }
    // Each checks what the device wrote for it, and only for it.
    for mut one in bound {
        one.peer.line.send(1)?;
        one.peer.line.recv()?;
        one.peer.join()?;
    }
    Ok(())
}

fn start_process(setup: &Setup, memory: &Buffer, number: usize) -> Verdict<Bound> {
    let mut peer = Peer::start(|line| be_a_process(setup, memory, line, number))?;
    let pasid = u32::try_from(peer.line.recv()?)?;
    Ok(Bound { peer, pasid })
}

/// Millions of copies a second, each in the next process.
fn in_turn(setup: &Setup, submitter: &Device, memory: &Buffer, bound: &[Bound]) -> Verdict<Samples> {
    let mut next = bound.iter().map(|one| descriptor(memory, one.pasid)).cycle();
    let mut batch = move || -> Vec<Descriptor> { next.by_ref().take(BATCH).collect() };
    let submit = |work: &[Descriptor]| -> Verdict {
        check!(submitter.post_with(work, SubmitFlags::RAW)? == work.len(), "not all descriptors were taken");
        for done in submitter.collect(work.len(), setup.limit(BATCH_TIMEOUT))? {
            check!(done.is_success(), "{done}");
        }
        Ok(())
    };
    // Every process once: from then on translations are where they can be.
    for _ in 0..bound.len().div_ceil(BATCH) {
        submit(&batch())?;
    }
    (0..RUNS)
        .map(|_| {
            let (start, mut done) = (Instant::now(), 0);
            while start.elapsed() < setup.run_time(1) {
                submit(&batch())?;
                done += BATCH as u64;
            }
            Ok(rate(done, start.elapsed()) / 1e6)
        })
        .collect()
}

/// All queues at work, and one queue at work among the others.
fn queues(bench: &mut Bench<'_>) -> Verdict {
    let setup = bench.setup.clone();
    let path = &setup.functions[0];
    let query = Device::open(path)?.query()?;
    // One is the driver's own.
    let (most, of_context) = (usize::try_from(query.queues)? - 1, usize::try_from(query.max_user_queues)?);
    check!(most > 0 && of_context > 0, "the function has no user queues: {query:?}");
    let devices: Vec<Device> = (0..most.div_ceil(of_context)).map(|_| bound(path)).collect::<Verdict<_>>()?;
    let mut queues: Vec<UserQueue<'_>> = Vec::new();
    let memory = small_pages(most * 4096)?;
    Rng::new(0x5eed, "queues").bytes(memory.len()).chunks(4096).enumerate().for_each(|(n, page)| {
        memory.write(n * 4096, page);
    });
    // Each queue copies the first quarter of its own page to the other three.
    let work: Vec<[Descriptor; DEPTH]> = (0..most)
        .map(|n| {
            let at = |k: usize| memory.at(n * 4096 + k * BYTES);
            std::array::from_fn(|k| Descriptor::copy(at(0), at(k + 1), BYTES as u64))
        })
        .collect();
    let (mut rate_of_one, mut time_of_one) = (None, None);
    for step in QUEUE_STEPS {
        let count = step.min(most);
        bench.case(&format!("{step} queues"))?;
        while queues.len() < count {
            let mut queue = UserQueue::create(&devices[queues.len() / of_context], polled(DEPTH))?;
            all(&mut queue, &work[queues.len()])?;
            queues.push(queue);
        }
        let mut rates = Samples::default();
        let mut lanes: Vec<Lane<'_, '_>> =
            queues.iter_mut().zip(&work).map(|(queue, work)| Lane::new(queue, work)).collect();
        for _ in 0..RUNS {
            let pumped = pump(&mut lanes, setup.run_time(2))?;
            rates.push(rate(pumped.done, pumped.time) / 1e6);
        }
        drop(lanes);
        let times = sampled(setup.per_case / 2, || one(&mut queues[0], &work[0][0]).map(drop))?;
        let (Some(rates), Some(times)) = (rates.summary(), times.summary()) else { fail!("no samples") };
        let note =
            if count < step { format!("only {count} queues: the function has no more; ") } else { String::new() };
        let row = Row::median(format!("{step} queues, all at work"), rates, "M/s")
            .against("1 queue", *rate_of_one.get_or_insert(rates.p50));
        bench.row(&row.note(format!("{note}64 B copies, {DEPTH} in flight in each")))?;
        let row = Row::median(format!("{step} queues, one at work"), times, "us")
            .against("1 queue", *time_of_one.get_or_insert(times.p50));
        bench.row(&row.note(format!("{note}64 B copy, polled")))?;
    }
    for n in 0..queues.len() {
        let expected = memory.bytes(n * 4096, BYTES);
        for k in 1..=DEPTH {
            check_bytes(&memory.bytes(n * 4096 + k * BYTES, BYTES), &expected, &format!("copy {k} of queue {n}"))?;
        }
    }
    Ok(())
}
