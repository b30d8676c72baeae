//! User queues: rings in the program's own memory, submission without a system call.
#![allow(unsafe_code, reason = "submits work by the rule of `Work`; probes and unmaps pages; seccomp")]
use std::io::Read;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use svadev_guest::abi::{self, CreateQueueArgs, DestroyQueueArgs};
use svadev_guest::{
    Buffer, Code, Completion, Descriptor, Device, Priority, QueueState, ScatterEntry, UserQueue, UserQueueOptions,
};
use svadev_spec::device::{doorbell, queue_error};

use super::opcodes::{check_fault, check_success};
use crate::harness::peer::Peer;
use crate::harness::{Context, During, Expected, Test, Verdict, Work};
use crate::memory::{PAGE, check_bytes, present_pages, small_pages};
use crate::{check, check_eq, skip};

pub(super) const TESTS: &[Test] = &[
    Test::each("user_queue.create_and_destroy", create_and_destroy),
    Test::each("user_queue.every_opcode", every_opcode),
    Test::each("user_queue.ring_wraps", ring_wraps),
    Test::each("user_queue.completion_ring_full", completion_ring_full),
    Test::each("user_queue.batch_and_fence", batch_and_fence),
    Test::each("user_queue.faults.wait_on_untouched", faults_wait),
    Test::each("user_queue.faults.stop_policy_and_unmapped", faults_stop),
    Test::each("user_queue.no_system_call", no_system_call).allows(GONE),
    Test::each("user_queue.wakes_a_sleeping_engine", wakes_sleeper),
    Test::each("user_queue.eventfd_wakes", eventfd_wakes),
    Test::each("user_queue.interrupts_are_moderated", moderated),
    Test::each("user_queue.every_priority_is_served", priorities),
    Test::each("user_queue.broken_arguments", broken_arguments),
    Test::each("user_queue.pasid_field_is_reserved", pasid_reserved),
    Test::each("user_queue.halts.bad_tail", bad_tail),
    Test::each("user_queue.halts.bad_cq_head", bad_cq_head),
    Test::each("user_queue.halts.submission_ring_unmapped", sq_unmapped),
    Test::each("user_queue.halts.completion_ring_unmapped", cq_unmapped),
    Test::each("user_queue.limits", limits),
    Test::each("user_queue.pages_end_with_the_queue", pages_end),
    Test::each("user_queue.unbind_while_running", unbind_running),
    Test::each("user_queue.fork_has_no_pages", fork_no_pages),
    Test::each("user_queue.two_processes", two_processes),
    Test::each("user_queue.exit_while_running", exit_running).allows(GONE),
    Test::each("user_queue.sigkill_while_running", kill_running).allows(GONE),
    Test::each("user_queue.reset_takes_queues_away", reset_loses).timeout_s(30).allows(GONE),
];

/// As in `lifetime.rs`: what the device asks for between the death of an address space and its own end is recorded.
const GONE: Expected = Expected::DmarFault;

const POLLED: UserQueueOptions = UserQueueOptions {
    sq_log2: 6,
    cq_log2: 7,
    interrupts: false,
    priority: Priority::Normal,
    interrupt_interval_us: 0,
    interrupt_count: 0,
};

/// Submitting through a queue, by the rule of [`Work`].
trait Ring {
    fn post(&mut self, descriptors: &[Descriptor]) -> usize;
    fn collect(&mut self, c: &Context, count: usize) -> Verdict<Vec<Completion>>;
    fn go(&mut self, c: &Context, descriptor: &Descriptor) -> Verdict<Completion>;
}

impl Ring for UserQueue<'_> {
    fn post(&mut self, descriptors: &[Descriptor]) -> usize {
        // SAFETY: the rule that `Work` states.
        unsafe { self.submit(descriptors) }
    }

    fn collect(&mut self, c: &Context, count: usize) -> Verdict<Vec<Completion>> {
        let mut out = vec![blank(); count];
        let got = self.wait(&mut out, c.limit(Duration::from_secs(10)))?;
        check!(got == count, "expected {count} completions, actual {got}: {:?}, {:?}", &out[..got], self.query());
        Ok(out)
    }

    fn go(&mut self, c: &Context, descriptor: &Descriptor) -> Verdict<Completion> {
        check_eq!(self.post(std::slice::from_ref(descriptor)), 1, "taken of one");
        Ok(self.collect(c, 1)?[0])
    }
}

fn blank() -> Completion {
    Completion { cookie: 0, code: Code::Aborted, fault: svadev_guest::FaultFlags::empty(), bytes_done: 0, result: 0 }
}

fn errno<T: std::fmt::Debug>(result: svadev_guest::Result<T>) -> Option<Errno> {
    result.err().and_then(|e| e.errno())
}

/// Whether the page at an address can be read, without a signal if it cannot: the kernel reads it for write(2).
fn readable(address: u64) -> Verdict<bool> {
    let (_read, write) = nix::unistd::pipe()?;
    let pointer = std::ptr::with_exposed_provenance::<libc::c_void>(usize::try_from(address)?);
    // SAFETY: write(2) reads 4 bytes there or fails with EFAULT; it changes no memory.
    let result = Errno::result(unsafe { libc::write(write.as_raw_fd(), pointer, 4) });
    match result {
        Ok(_) => Ok(true),
        Err(Errno::EFAULT) => Ok(false),
        Err(e) => Err(e.into()),
    }
}

/// Wait until the driver says that the queue stopped, and why.
fn wait_halted(c: &Context, queue: &UserQueue, error: u8, address: u64) -> Verdict {
    let deadline = Instant::now() + c.limit(Duration::from_secs(5));
    loop {
        let query = queue.query()?;
        if query.state != QueueState::Running {
            check_eq!(query.state, QueueState::Halted, "state");
            check_eq!(query.error, error, "reason of the halt");
            check_eq!(query.fault_address, address, "address of the halt");
            return Ok(());
        }
        check!(Instant::now() < deadline, "the queue still runs: {query:?}");
        std::thread::yield_now();
    }
}

/// That a queue works: one copy, with its bytes.
fn check_serves(c: &Context, queue: &mut UserQueue) -> Verdict {
    let memory = small_pages(2 * 4096)?;
    memory.write(0, &[0x6b; 4096]);
    let done = queue.go(c, &Descriptor::copy(memory.address(), memory.at(4096), PAGE))?;
    check_success(&done, PAGE, "copy through a user queue")?;
    check_bytes(&memory.bytes(4096, 4096), &[0x6b; 4096], "copy through a user queue")
}

fn create_and_destroy(c: &Context) -> Verdict {
    let device = c.bound()?;
    let before = device.query()?.user_queues;
    for round in 0..20 {
        c.step(format!("round {round}"));
        let mut queue = UserQueue::create(&device, POLLED)?;
        check_eq!(device.query()?.user_queues, before + 1, "user queues of the function");
        check_eq!(queue.query()?.state, QueueState::Running, "state of a new queue");
        check_serves(c, &mut queue)?;
        check_eq!(queue.in_flight(), 0, "in flight");
        queue.destroy()?;
        check_eq!(device.query()?.user_queues, before, "user queues of the function");
    }
    c.step("the kernel queue serves the same context");
    check_success(&Work::go(&device, &Descriptor::nop())?, 0, "NOP")
}

fn every_opcode(c: &Context) -> Verdict {
    let device = c.bound()?;
    let mut queue = UserQueue::create(&device, POLLED)?;
    let memory = small_pages(4 * 4096)?;
    let data = c.rng().bytes(4096);
    memory.write(0, &data);
    check_success(&queue.go(c, &Descriptor::nop())?, 0, "NOP")?;
    check_success(&queue.go(c, &Descriptor::drain())?, 0, "DRAIN")?;
    let copy = Descriptor::copy(memory.address(), memory.at(4096), PAGE).with_cookie(0x1234_5678_9abc_def0);
    let done = queue.go(c, &copy)?;
    check_success(&done, PAGE, "COPY")?;
    check_eq!(done.cookie, 0x1234_5678_9abc_def0, "cookie");
    check_bytes(&memory.bytes(4096, 4096), &data, "COPY")?;
    let fill = Descriptor::fill(memory.at(8192), PAGE, 0x0102_0304_0506_0708);
    check_success(&queue.go(c, &fill)?, PAGE, "FILL")?;
    check_bytes(&memory.bytes(8192, 4096), &0x0102_0304_0506_0708_u64.to_le_bytes().repeat(512), "FILL")?;
    let equal = Descriptor::compare(memory.address(), memory.at(4096), PAGE);
    check_success(&queue.go(c, &equal)?, PAGE, "COMPARE of equal bytes")?;
    memory.write(4096 + 77, &[data[77] ^ 1]);
    check_eq!(queue.go(c, &equal)?.mismatch_offset(), Some(77), "offset of the difference");
    let crc = queue.go(c, &Descriptor::crc32c(memory.address(), PAGE))?;
    check_eq!(crc.crc32c(), Some(crc32c::crc32c(&data)), "CRC32C");
    let list = small_pages(4096)?;
    let entries = [
        ScatterEntry { address: memory.at(12288), length: 1000 },
        ScatterEntry { address: memory.at(12288 + 2000), length: 96 },
    ];
    super::scatter::write_list(&list, 0, &entries);
    let scattered = Descriptor::copy(memory.address(), 0, 1096).with_dst_list(list.address(), 2);
    check_success(&queue.go(c, &scattered)?, 1096, "COPY to a list")?;
    check_bytes(&memory.bytes(12288 + 2000, 96), &data[1000..1096], "second piece of a list")?;
    check_eq!(queue.go(c, &Descriptor::new(200))?.code, Code::BadOpcode, "unknown opcode");
    Ok(())
}

/// Many laps around the smallest ring and an odd pair of sizes, each completion once and in its place.
fn ring_wraps(c: &Context) -> Verdict {
    let device = c.bound()?;
    for (sq_log2, cq_log2) in [(1, 1), (1, 4), (5, 2), (8, 8)] {
        c.step(format!("rings of 2^{sq_log2} and 2^{cq_log2}"));
        let mut queue = UserQueue::create(&device, UserQueueOptions { sq_log2, cq_log2, ..POLLED })?;
        let count = 40_u64 << sq_log2.max(cq_log2);
        let memory = small_pages(4096)?;
        memory.fill(0);
        let (mut posted, mut seen) = (0, 0);
        let mut out = [blank(); 8];
        let deadline = Instant::now() + c.limit(Duration::from_secs(10));
        while seen < count {
            while posted < count {
                // Each fenced, so that completions come in order, and a fill that leaves its number.
                let fill = Descriptor::fill(memory.at(usize::try_from(posted % 512)? * 8), 8, posted);
                if queue.post(&[fill.with_cookie(posted).fenced()]) == 0 {
                    break;
                }
                posted += 1;
            }
            let got = queue.wait(&mut out, Duration::from_millis(1))?;
            for done in &out[..got] {
                check_success(done, 8, "fill")?;
                check_eq!(done.cookie, seen, "cookie, in order");
                seen += 1;
            }
            check!(Instant::now() < deadline, "{seen} of {count} completions: {:?}", queue.query());
        }
        for slot in 0..count.min(512) {
            let last = (count - 1 - slot) / 512 * 512 + slot;
            let at = usize::try_from(slot)? * 8;
            check_bytes(&memory.bytes(at, 8), &last.to_le_bytes(), &format!("what fill {last} left"))?;
        }
    }
    Ok(())
}

/// A program that does not collect stops its own queue, and nothing is lost.
fn completion_ring_full(c: &Context) -> Verdict {
    let device = c.bound()?;
    let mut queue = UserQueue::create(&device, UserQueueOptions { sq_log2: 5, cq_log2: 1, ..POLLED })?;
    let mut other = UserQueue::create(&device, POLLED)?;
    let batch: Vec<Descriptor> = (0..32).map(|i| Descriptor::nop().with_cookie(i)).collect();
    check_eq!(queue.post(&batch), 32, "taken of a ring's worth");
    c.step("another queue works while this one has no room for completions");
    check_serves(c, &mut other)?;
    check_eq!(queue.query()?.state, QueueState::Running, "state of a queue whose completion ring is full");
    check_eq!(queue.in_flight(), 32, "in flight");
    c.step("collecting two at a time");
    let mut cookies = Vec::new();
    while cookies.len() < 32 {
        cookies.extend(queue.collect(c, 2)?.iter().map(|d| d.cookie));
    }
    cookies.sort_unstable();
    check_eq!(cookies, (0..32).collect::<Vec<u64>>(), "cookies, one completion for each");
    check_serves(c, &mut queue)
}

fn batch_and_fence(c: &Context) -> Verdict {
    const PAGES: usize = 32;
    let device = c.bound()?;
    let mut queue = UserQueue::create(&device, POLLED)?;
    let (memory, out) = (small_pages(PAGES * 4096)?, small_pages(PAGES * 4096)?);
    out.fill(0);
    let length = memory.len() as u64;
    let batch = [
        Descriptor::fill(memory.address(), length, 0x33).with_cookie(1),
        Descriptor::copy(memory.address(), out.address(), length).fenced().with_cookie(2),
        Descriptor::drain().with_cookie(3),
        Descriptor::nop().fenced().with_cookie(4),
    ];
    check_eq!(queue.post(&batch), 4, "taken");
    let done = queue.collect(c, 4)?;
    let order: Vec<u64> = done.iter().map(|d| d.cookie).collect();
    check_eq!(order, [1, 2, 3, 4], "order of completions across fences");
    check_bytes(&out.bytes(0, out.len()), &0x33_u64.to_le_bytes().repeat(out.len() / 8), "copy behind a fence")?;
    c.step("without a fence, what needs no page overtakes what waits for hundreds");
    let slow = small_pages(300 * 4096)?;
    let pair =
        [Descriptor::fill(slow.address(), slow.len() as u64, 1).with_cookie(1), Descriptor::nop().with_cookie(2)];
    check_eq!(queue.post(&pair), 2, "taken");
    let order: Vec<u64> = queue.collect(c, 2)?.iter().map(|d| d.cookie).collect();
    check_eq!(order, [2, 1], "order of completions without a fence");
    Ok(())
}

/// Neither the rings nor the operands were ever touched: the device asks for all of it.
fn faults_wait(c: &Context) -> Verdict {
    let device = c.bound()?;
    // Big rings, most pages of which nobody has touched.
    let mut queue = UserQueue::create(&device, UserQueueOptions { sq_log2: 9, cq_log2: 10, ..POLLED })?;
    let memory = small_pages(200 * 4096)?;
    let work: Vec<Descriptor> =
        (0..200).map(|i| Descriptor::fill(memory.at(i * 4096), PAGE, i as u64).with_cookie(i as u64)).collect();
    check_eq!(queue.post(&work), 200, "taken");
    for done in queue.collect(c, 200)? {
        check_success(&done, PAGE, "fill of an untouched page")?;
    }
    check_eq!(present_pages(&memory)?, 200, "pages that the device brought in");
    for i in 0..200 {
        check_bytes(&memory.bytes(i * 4096, 8), &(i as u64).to_le_bytes(), "fill")?;
    }
    Ok(())
}

fn faults_stop(c: &Context) -> Verdict {
    let device = c.bound()?;
    let mut queue = UserQueue::create(&device, POLLED)?;
    let memory = small_pages(2 * 4096)?;
    memory.write(0, &[1]);
    let fill = Descriptor::fill(memory.address(), 2 * PAGE, 0).stop_on_fault();
    check_fault(&queue.go(c, &fill)?, memory.at(4096), PAGE, true, "fill that stops at an untouched page")?;
    check_eq!(present_pages(&memory)?, 1, "pages in memory");
    let gone = small_pages(4096)?.unmap();
    check_fault(&queue.go(c, &Descriptor::crc32c(gone, PAGE))?, gone, 0, false, "CRC of unmapped memory")?;
    check_serves(c, &mut queue)
}

/// A descriptor that keeps the engine busy: 1 GiB of filling, over and over the same megabyte.
fn busy_work() -> Verdict<(Buffer, Buffer, Descriptor)> {
    const MEGABYTE: u64 = 1 << 20;
    let memory = small_pages(1 << 20)?;
    memory.fill(0);
    let list = small_pages(1024 * size_of::<ScatterEntry>())?;
    let entries = vec![ScatterEntry { address: memory.address(), length: MEGABYTE }; 1024];
    super::scatter::write_list(&list, 0, &entries);
    let work = Descriptor::fill(0, 1024 * MEGABYTE, 7).with_dst_list(list.address(), 1024);
    Ok((memory, list, work))
}

/// Under seccomp's strict mode any system call but read, write and exit is death. How often a submission finds the engine
/// asleep, and so traps, is a matter of timing: a figure for a benchmark, not for a test.
fn no_system_call(c: &Context) -> Verdict {
    const ROUNDS: u64 = 200;
    let (results, to_parent) = nix::unistd::pipe()?;
    let child = Peer::start(|_| {
        let device = c.bound()?;
        let mut queue = UserQueue::create(&device, POLLED)?;
        let memory = small_pages(2 * 4096)?;
        memory.fill(0x21);
        let copy = Descriptor::copy(memory.address(), memory.at(4096), PAGE);
        let mut out = [blank(); 4];
        check_success(&queue.go(c, &copy)?, PAGE, "copy before")?;
        let wakes = queue.wakes();
        // SAFETY: prctl takes numbers only.
        Errno::result(unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_STRICT) }).during("seccomp")?;
        let mut succeeded = 0;
        for _ in 0..ROUNDS {
            // SAFETY: the rule that `Work` states.
            unsafe { queue.submit(&[copy]) };
            loop {
                match queue.poll_completions(&mut out) {
                    Ok(0) => std::hint::spin_loop(),
                    Ok(_) => break,
                    Err(_) => return end_strictly(),
                }
            }
            succeeded += u64::from(out[0].is_success());
        }
        let words = [succeeded, queue.wakes() - wakes];
        // SAFETY: write(2) reads the words' own memory. Nothing else may be called: not even send(2), as sockets would.
        unsafe { libc::write(to_parent.as_raw_fd(), words.as_ptr().cast(), size_of_val(&words)) };
        end_strictly()
    })?;
    // The child's end is then the only one: its death ends the read.
    drop(to_parent);
    let mut words = [0; 16];
    std::fs::File::from(results).read_exact(&mut words).during("results of the child: it died of a system call")?;
    let word = |i: usize| u64::from_ne_bytes(words[8 * i..8 * i + 8].try_into().expect("eight bytes"));
    let (succeeded, wakes) = (word(0), word(1));
    check_eq!(succeeded, ROUNDS, "copies done under seccomp's strict mode");
    check!(wakes <= ROUNDS, "{ROUNDS} submissions rang a sleeping engine {wakes} times");
    child.join()?;
    c.still_serves()
}

/// exit(2) of this thread, the only one: exit_group(2), which every library uses, is forbidden under strict seccomp.
fn end_strictly() -> Verdict {
    // SAFETY: ends the thread; nothing of it is used afterwards.
    unsafe { libc::syscall(libc::SYS_exit, 0) };
    unreachable!("exit(2) does not return")
}

/// An idle engine sleeps and says so, and one store to the wake page is enough.
fn wakes_sleeper(c: &Context) -> Verdict {
    let device = c.bound()?;
    let mut queue = UserQueue::create(&device, POLLED)?;
    check_serves(c, &mut queue)?;
    c.step("waiting until the engine sleeps");
    let deadline = Instant::now() + c.limit(Duration::from_secs(5));
    let pointer = queue.doorbell_address() + doorbell::ARMED;
    let pointer = std::ptr::with_exposed_provenance::<u32>(usize::try_from(pointer)?);
    // SAFETY: a word of a page that is mapped as long as the queue is.
    while unsafe { pointer.read_volatile() } == 0 {
        check!(Instant::now() < deadline, "the engine never says that it sleeps");
        std::thread::sleep(Duration::from_millis(1));
    }
    let wakes = queue.wakes();
    check_success(&queue.go(c, &Descriptor::nop())?, 0, "NOP for an engine that slept")?;
    // Another function's or process' work may have woken it in between; the harness runs one test at a time.
    check_eq!(queue.wakes() - wakes, 1, "stores to the wake page");
    Ok(())
}

fn eventfd_wakes(c: &Context) -> Verdict {
    let device = c.bound()?;
    let mut queue = UserQueue::create(&device, UserQueueOptions { interrupts: true, ..POLLED })?;
    let memory = small_pages(400 * 4096)?;
    // Of the vectors that user queues share; where there is one vector only, that is the kernel queue's.
    let name = c.path().file_name().unwrap_or_default().display();
    let counter = |which: &str| -> Verdict<u64> {
        let path = format!("/sys/class/svadev/{name}/stats/{which}");
        Ok(std::fs::read_to_string(&path).during(&path)?.trim().parse()?)
    };
    let count = || -> Verdict<u64> { Ok(counter("user_interrupts")? + counter("interrupts")?) };
    let before = count()?;
    check_eq!(queue.post(&[Descriptor::fill(memory.address(), memory.len() as u64, 1)]), 1, "taken");
    let mut out = [blank(); 2];
    let start = Instant::now();
    let limit = c.limit(Duration::from_secs(10));
    let got = queue.wait(&mut out[..1], limit)?;
    check_eq!(got, 1, "completions of a slow fill");
    check_success(&out[0], memory.len() as u64, "slow fill")?;
    check!(start.elapsed() < limit, "the wait was not woken, it ran out after {:?}", start.elapsed());
    check!(count()? > before, "the completion raised no interrupt");
    c.step("a queue that halts wakes its sleeper");
    let ring = queue.take_sq();
    drop(ring);
    // SAFETY: the ring is unmapped, so there is no descriptor to carry out.
    unsafe { queue.ring_doorbell(doorbell::SQ_TAIL, 2) };
    let start = Instant::now();
    check_eq!(queue.wait(&mut out, limit)?, 0, "completions of a queue that halted");
    check!(start.elapsed() < limit, "the sleeper was not woken by the halt");
    Ok(())
}

/// Interrupts of the vectors that user queues share; where there is one vector only, that is the kernel queue's.
fn interrupts(c: &Context) -> Verdict<u64> {
    let name = c.path().file_name().unwrap_or_default().display();
    let mut sum = 0;
    for which in ["user_interrupts", "interrupts"] {
        let path = format!("/sys/class/svadev/{name}/stats/{which}");
        sum += std::fs::read_to_string(&path).during(&path)?.trim().parse::<u64>()?;
    }
    Ok(sum)
}

/// No more interrupts than the time that went by allows, however many completions; and the last one wakes its sleeper.
fn moderated(c: &Context) -> Verdict {
    const INTERVAL_US: u16 = 20_000;
    let device = c.bound()?;
    let options = UserQueueOptions { interrupts: true, interrupt_interval_us: INTERVAL_US, ..POLLED };
    let mut queue = UserQueue::create(&device, options)?;
    let before = interrupts(c)?;
    let start = Instant::now();
    for _ in 0..200 {
        check_success(&queue.go(c, &Descriptor::nop())?, 0, "NOP")?;
    }
    let raised = interrupts(c)? - before;
    let allowed = start.elapsed().as_micros() / u128::from(INTERVAL_US) + 1;
    check!(u128::from(raised) <= allowed, "{raised} interrupts, expected {allowed} at most");
    // Sleeps on the eventfd for the last: `go` polls, this does not.
    let memory = small_pages(400 * 4096)?;
    check_eq!(queue.post(&[Descriptor::fill(memory.address(), memory.len() as u64, 1)]), 1, "taken");
    let mut out = [blank()];
    check_eq!(queue.wait(&mut out, c.limit(Duration::from_secs(10)))?, 1, "completions");
    check_success(&out[0], memory.len() as u64, "fill")
}

fn priorities(c: &Context) -> Verdict {
    let device = c.bound()?;
    let memory = small_pages(4096)?;
    let all = [Priority::Low, Priority::Normal, Priority::High, Priority::Urgent];
    let mut queues = Vec::new();
    for priority in all {
        queues.push(UserQueue::create(&device, UserQueueOptions { priority, ..POLLED })?);
    }
    for queue in &mut queues {
        check_eq!(queue.post(&[Descriptor::fill(memory.address(), PAGE, 3); 8]), 8, "taken");
    }
    for (queue, priority) in queues.iter_mut().zip(all) {
        for done in queue.collect(c, 8)? {
            check_success(&done, PAGE, &format!("{priority:?}"))?;
        }
    }
    Ok(())
}

fn broken_arguments(c: &Context) -> Verdict {
    let device = c.open()?;
    check_eq!(errno(UserQueue::create(&device, POLLED)), Some(Errno::EINVAL), "create before bind");
    device.bind()?;
    let rings = small_pages(16 * 4096)?;
    let good = CreateQueueArgs {
        argsz: u32::try_from(size_of::<CreateQueueArgs>())?,
        sq: rings.address(),
        cq: rings.at(4096),
        sq_log2: 4,
        cq_log2: 4,
        eventfd: -1,
        ..Default::default()
    };
    let before = device.query()?.user_queues;
    let null = std::fs::File::open("/dev/null")?;
    let bad = [
        ("argsz", Errno::EINVAL, CreateQueueArgs { argsz: 40, ..good }),
        ("flags", Errno::EINVAL, CreateQueueArgs { flags: 1, ..good }),
        ("priority", Errno::EINVAL, CreateQueueArgs { priority: 4, ..good }),
        ("interrupt interval", Errno::EINVAL, CreateQueueArgs { interrupt_interval_us: 0x1_0000, ..good }),
        ("interrupt count", Errno::EINVAL, CreateQueueArgs { interrupt_count: 0x1_0000, ..good }),
        ("reserved", Errno::EINVAL, CreateQueueArgs { reserved: 1, ..good }),
        ("alignment of sq", Errno::EINVAL, CreateQueueArgs { sq: rings.at(32), ..good }),
        ("alignment of cq", Errno::EINVAL, CreateQueueArgs { cq: rings.at(1), ..good }),
        ("sq in the kernel's half", Errno::EINVAL, CreateQueueArgs { sq: 0xffff_8880_0000_0000, ..good }),
        ("cq that wraps", Errno::EINVAL, CreateQueueArgs { cq: !63, ..good }),
        ("sq_log2 0", Errno::EINVAL, CreateQueueArgs { sq_log2: 0, ..good }),
        ("sq_log2 16", Errno::EINVAL, CreateQueueArgs { sq_log2: 16, ..good }),
        ("cq_log2 16", Errno::EINVAL, CreateQueueArgs { cq_log2: 16, ..good }),
        ("cq_log2 of all ones", Errno::EINVAL, CreateQueueArgs { cq_log2: u32::MAX, ..good }),
        ("eventfd -2", Errno::EINVAL, CreateQueueArgs { eventfd: -2, ..good }),
        ("eventfd that is not open", Errno::EBADF, CreateQueueArgs { eventfd: 1 << 20, ..good }),
        ("eventfd that is none", Errno::EINVAL, CreateQueueArgs { eventfd: null.as_raw_fd(), ..good }),
        ("output queue", Errno::EINVAL, CreateQueueArgs { queue: 1, ..good }),
        ("output offset", Errno::EINVAL, CreateQueueArgs { wake_offset: 1, ..good }),
    ];
    for (what, expected, mut args) in bad {
        // SAFETY: the kernel reads and writes at most the structure; no queue is made, so nobody uses the rings.
        check_eq!(unsafe { abi::create_queue(device.as_raw_fd(), &raw mut args) }, Err(expected), "{what}");
    }
    check_eq!(device.query()?.user_queues, before, "user queues after all these errors");
    c.step("destroying what is not there");
    let mut destroy = DestroyQueueArgs { argsz: 16, queue: 0, ..Default::default() };
    for queue in [0, 1, 63, 255, u32::MAX] {
        destroy.queue = queue;
        // SAFETY: as above.
        let result = unsafe { abi::destroy_queue(device.as_raw_fd(), &raw mut destroy) };
        check_eq!(result, Err(Errno::ENOENT), "destroy of queue {queue}");
    }
    c.step("mapping what is not there, and what is, in wrong ways");
    let queue = UserQueue::create(&device, POLLED)?;
    for offset in [0_i64, 4096, 511 * 4096, 512 * 4096, 1 << 40] {
        let map = Buffer::file(&device, offset, 4096, true);
        check_eq!(errno(map), Some(Errno::EINVAL), "map at {offset:#x}");
    }
    let mut args = good;
    // SAFETY: as above; the queue that is made is never rung, and its rings stay until it is destroyed.
    check_eq!(unsafe { abi::create_queue(device.as_raw_fd(), &raw mut args) }, Ok(0), "create by hand");
    let offset = i64::try_from(args.doorbell_offset)?;
    check_eq!(errno(Buffer::file(&device, offset, 4096, false)), Some(Errno::EINVAL), "private mapping");
    check_eq!(errno(Buffer::file(&device, offset, 8192, true)), Some(Errno::EINVAL), "two pages");
    let other = c.bound()?;
    check_eq!(errno(Buffer::file(&other, offset, 4096, true)), Some(Errno::EINVAL), "another context's queue");
    destroy.queue = args.queue;
    // SAFETY: as above.
    let result = unsafe { abi::destroy_queue(other.as_raw_fd(), &raw mut destroy) };
    check_eq!(result, Err(Errno::ENOENT), "destroy by another context");
    // SAFETY: as above.
    check_eq!(unsafe { abi::destroy_queue(device.as_raw_fd(), &raw mut destroy) }, Ok(0), "destroy");
    check_eq!(errno(Buffer::file(&device, offset, 4096, true)), Some(Errno::EINVAL), "map after destroy");
    queue.destroy()?;
    Ok(())
}

/// A program cannot name another PASID: in a user queue the field is reserved.
fn pasid_reserved(c: &Context) -> Verdict {
    let device = c.bound()?;
    let mut queue = UserQueue::create(&device, POLLED)?;
    let memory = small_pages(4096)?;
    memory.fill(0x42);
    let fill = Descriptor::fill(memory.address(), PAGE, 0);
    let own = device.query()?.pasid;
    for pasid in [own, Some(0), Some(0xf_ffff)] {
        check_eq!(queue.go(c, &fill.with_pasid(pasid))?.code, Code::BadReserved, "PASID {pasid:?}");
    }
    check_bytes(&memory.bytes(0, 4096), &[0x42; 4096], "memory")?;
    check_success(&queue.go(c, &fill)?, PAGE, "without a PASID")
}

fn bad_tail(c: &Context) -> Verdict {
    let device = c.bound()?;
    let (mut queue, mut other) = (UserQueue::create(&device, POLLED)?, UserQueue::create(&device, POLLED)?);
    for tail in [65, 1 << 16, 1 << 31, u32::MAX] {
        c.step(format!("tail {tail:#x}"));
        // SAFETY: the device must not fetch anything; should it do so, the ring is zeros, which are NOPs.
        unsafe { queue.ring_doorbell(doorbell::SQ_TAIL, tail) };
        wait_halted(c, &queue, queue_error::BAD_TAIL, 0)?;
        check_serves(c, &mut other)?;
        queue = UserQueue::create(&device, POLLED)?;
    }
    check_serves(c, &mut queue)
}

fn bad_cq_head(c: &Context) -> Verdict {
    let device = c.bound()?;
    let (mut queue, mut other) = (UserQueue::create(&device, POLLED)?, UserQueue::create(&device, POLLED)?);
    for head in [1, 1 << 31, u32::MAX] {
        c.step(format!("completion head {head:#x}"));
        // SAFETY: no descriptor is in the ring.
        unsafe { queue.ring_doorbell(doorbell::CQ_HEAD, head) };
        // The device looks at it when it has a completion to write.
        check_eq!(queue.post(&[Descriptor::nop()]), 1, "taken");
        wait_halted(c, &queue, queue_error::BAD_CQ_HEAD, 0)?;
        check_serves(c, &mut other)?;
        queue = UserQueue::create(&device, POLLED)?;
    }
    check_serves(c, &mut queue)
}

fn sq_unmapped(c: &Context) -> Verdict {
    let device = c.bound()?;
    let (mut queue, mut other) = (UserQueue::create(&device, POLLED)?, UserQueue::create(&device, POLLED)?);
    check_serves(c, &mut queue)?;
    let Some(ring) = queue.take_sq() else { unreachable!("taken once") };
    let address = ring.unmap();
    // SAFETY: the ring is unmapped, so there is no descriptor to carry out.
    unsafe { queue.ring_doorbell(doorbell::SQ_TAIL, 3) };
    wait_halted(c, &queue, queue_error::SQ_FAULT, address + 64)?;
    check_serves(c, &mut other)?;
    queue.destroy()?;
    check_success(&Work::go(&device, &Descriptor::nop())?, 0, "NOP through the kernel queue")
}

fn cq_unmapped(c: &Context) -> Verdict {
    let device = c.bound()?;
    let (mut queue, mut other) = (UserQueue::create(&device, POLLED)?, UserQueue::create(&device, POLLED)?);
    check_serves(c, &mut queue)?;
    // SAFETY: the ring is unmapped at once, and nothing is mapped until the queue is gone.
    let Some(ring) = (unsafe { queue.take_cq() }) else { unreachable!("taken once") };
    let address = ring.unmap();
    check_eq!(queue.post(&[Descriptor::nop(), Descriptor::nop()]), 2, "taken");
    wait_halted(c, &queue, queue_error::CQ_FAULT, address + 32)?;
    queue.destroy()?;
    check_serves(c, &mut other)
}

fn limits(c: &Context) -> Verdict {
    let devices: Vec<Device> = (0..8).map(|_| c.bound()).collect::<Verdict<_>>()?;
    let query = devices[0].query()?;
    let per_context = usize::try_from(query.max_user_queues)?;
    let mut free = usize::try_from(query.queues - 1 - query.user_queues)?;
    let mut queues = Vec::new();
    for device in &devices {
        for _ in 0..per_context.min(free) {
            queues.push(UserQueue::create(device, POLLED)?);
        }
        if free <= per_context {
            let expected = if free == per_context { Errno::EBUSY } else { Errno::ENOSPC };
            check_eq!(errno(UserQueue::create(device, POLLED)), Some(expected), "one more, with {} made", queues.len());
            free = 0;
            break;
        }
        free -= per_context;
        check_eq!(errno(UserQueue::create(device, POLLED)), Some(Errno::EBUSY), "one more of one context");
    }
    check_eq!(free, 0, "queues that eight contexts could not take");
    let fresh = c.bound()?;
    check_eq!(errno(UserQueue::create(&fresh, POLLED)), Some(Errno::ENOSPC), "one more than the function has");
    c.step(format!("all {} queues work at once", queues.len()));
    let memory = small_pages(queues.len() * 4096)?;
    for (i, queue) in queues.iter_mut().enumerate() {
        let fill = Descriptor::fill(memory.at(i * 4096), PAGE, i as u64).with_cookie(i as u64);
        check_eq!(queue.post(&[fill]), 1, "taken by queue {i}");
    }
    for (i, queue) in queues.iter_mut().enumerate() {
        let done = queue.collect(c, 1)?[0];
        check_success(&done, PAGE, "fill")?;
        check_eq!(done.cookie, i as u64, "cookie of queue {i}");
        check_bytes(&memory.bytes(i * 4096, 8), &(i as u64).to_le_bytes(), &format!("fill by queue {i}"))?;
    }
    drop(queues);
    let mut queue = UserQueue::create(&fresh, POLLED)?;
    check_serves(c, &mut queue)
}

/// A mapping that is kept does not lead to the queue's next owner.
fn pages_end(c: &Context) -> Verdict {
    let device = c.bound()?;
    let rings = small_pages(2 * 4096)?;
    let mut args = CreateQueueArgs {
        argsz: u32::try_from(size_of::<CreateQueueArgs>())?,
        sq: rings.address(),
        cq: rings.at(4096),
        sq_log2: 4,
        cq_log2: 4,
        eventfd: -1,
        ..Default::default()
    };
    // SAFETY: the kernel reads and writes at most the structure; the rings stay until the queue is destroyed.
    unsafe { abi::create_queue(device.as_raw_fd(), &raw mut args) }?;
    let doorbell = Buffer::file(&device, i64::try_from(args.doorbell_offset)?, 4096, true)?;
    let wake = Buffer::file(&device, i64::try_from(args.wake_offset)?, 4096, true)?;
    check!(readable(doorbell.address())?, "the doorbell page of a live queue cannot be read");
    check!(readable(wake.address())?, "the wake page of a live queue cannot be read");
    let mut destroy = DestroyQueueArgs { argsz: 16, queue: args.queue, ..Default::default() };
    // SAFETY: as above.
    unsafe { abi::destroy_queue(device.as_raw_fd(), &raw mut destroy) }?;
    check!(!readable(doorbell.address())?, "the doorbell page can be read after the queue was destroyed");
    c.step("the next owner of the number");
    let other = c.bound()?;
    let mut queue = UserQueue::create(&other, POLLED)?;
    check!(!readable(doorbell.address())?, "the doorbell page leads to another queue");
    check!(!readable(wake.address())?, "the wake page leads to another queue");
    check_serves(c, &mut queue)
}

fn unbind_running(c: &Context) -> Verdict {
    let device = c.bound()?;
    let before = device.query()?.user_queues;
    let (_target, _list, work) = busy_work()?;
    let mut queues = [UserQueue::create(&device, POLLED)?, UserQueue::create(&device, POLLED)?];
    for queue in &mut queues {
        check_eq!(queue.post(&[work; 8]), 8, "taken");
    }
    c.step("unbinding with 16 GiB of work queued");
    let start = Instant::now();
    device.unbind()?;
    check!(start.elapsed() < c.limit(Duration::from_secs(3)), "unbind took {:?}", start.elapsed());
    check_eq!(device.query()?.user_queues, before, "user queues after unbind");
    for queue in &queues {
        check_eq!(errno(queue.query()), Some(Errno::ENOENT), "query of a queue that unbind ended");
        check!(!readable(queue.doorbell_address())?, "the doorbell page can be read after unbind");
    }
    device.bind()?;
    let mut queue = UserQueue::create(&device, POLLED)?;
    drop(queues);
    // The old ones' end must not have taken the new one with it.
    check_serves(c, &mut queue)?;
    c.still_serves()
}

fn fork_no_pages(c: &Context) -> Verdict {
    let device = c.bound()?;
    let mut queue = UserQueue::create(&device, POLLED)?;
    check!(readable(queue.doorbell_address())?, "the doorbell page cannot be read by its owner");
    let mut child = Peer::start(|line| {
        check!(!readable(queue.doorbell_address())?, "the child can read the parent's doorbell page");
        check!(!readable(queue.wake_address())?, "the child can read the parent's wake page");
        for offset in 1..64 {
            let map = Buffer::file(&device, offset * 4096, 4096, true);
            check!(matches!(errno(map), Some(Errno::EINVAL | Errno::EPERM)), "the child mapped page {offset}");
        }
        check_eq!(errno(UserQueue::create(&device, POLLED)), Some(Errno::EPERM), "the child's create");
        let mut destroy = DestroyQueueArgs { argsz: 16, queue: queue.id(), ..Default::default() };
        // SAFETY: the kernel reads at most the structure.
        let result = unsafe { abi::destroy_queue(device.as_raw_fd(), &raw mut destroy) };
        check_eq!(result, Err(Errno::EPERM), "the child's destroy");
        let own = c.bound()?;
        check_serves(c, &mut UserQueue::create(&own, POLLED)?)?;
        line.send(0)
    })?;
    child.line.recv()?;
    child.join()?;
    check_serves(c, &mut queue)
}

/// Two processes with several queues each, at the same addresses: each finds its own bytes only.
fn two_processes(c: &Context) -> Verdict {
    const ROUNDS: u64 = 50;
    // Three processes, four queues each where the function has as many.
    let count = usize::try_from((c.open()?.query()?.queues - 1) / 3)?.min(4);
    if count == 0 {
        skip!("the function has too few queues for three processes");
    }
    let shared_place = small_pages(2 * count * 4096)?;
    let run = |mark: u64| -> Verdict {
        let device = c.bound()?;
        let mut queues: Vec<UserQueue> =
            (0..count).map(|_| UserQueue::create(&device, POLLED)).collect::<svadev_guest::Result<_>>()?;
        for round in 0..ROUNDS {
            for (i, queue) in queues.iter_mut().enumerate() {
                let (a, b) = (shared_place.at(2 * i * 4096), shared_place.at((2 * i + 1) * 4096));
                let value = mark << 32 | round << 8 | i as u64;
                let batch = [
                    Descriptor::fill(a, PAGE, value).with_cookie(value),
                    Descriptor::copy(a, b, PAGE).fenced().with_cookie(value + (1 << 62)),
                ];
                check_eq!(queue.post(&batch), 2, "taken");
            }
            for (i, queue) in queues.iter_mut().enumerate() {
                let value = mark << 32 | round << 8 | i as u64;
                let done = queue.collect(c, 2)?;
                check_eq!([done[0].cookie, done[1].cookie], [value, value + (1 << 62)], "cookies of process {mark}");
                check!(done.iter().all(Completion::is_success), "process {mark}: {done:?}");
                let found = shared_place.bytes((2 * i + 1) * 4096, 4096);
                check_bytes(&found, &value.to_le_bytes().repeat(512), &format!("process {mark}, queue {i}"))?;
            }
        }
        Ok(())
    };
    let first = Peer::start(|_| run(1))?;
    let second = Peer::start(|_| run(2))?;
    run(3)?;
    first.join()?;
    second.join()
}

/// A helper that has a context with queues full of work, and says so.
fn worker(c: &Context, exit: bool) -> Verdict<Peer> {
    Peer::start(|line| {
        let device = c.bound()?;
        let (_target, _list, work) = busy_work()?;
        let missing = small_pages(500 * 4096)?;
        let mut queues: Vec<UserQueue> = (0..3)
            .map(|_| UserQueue::create(&device, UserQueueOptions { interrupts: true, ..POLLED }))
            .collect::<svadev_guest::Result<_>>()?;
        let slow = Descriptor::fill(missing.address(), missing.len() as u64, 1);
        for queue in &mut queues {
            check_eq!(queue.post(&[work, slow, work, Descriptor::nop().fenced()]), 4, "taken");
        }
        line.send(0)?;
        line.recv()?;
        if exit {
            // Without running what would destroy the queues: the kernel finds them as they are.
            // SAFETY: _exit(2) has no preconditions.
            unsafe { libc::_exit(0) };
        }
        loop {
            std::thread::park();
        }
    })
}

/// After its death a process has left no queue behind, and the function serves.
fn check_gone(c: &Context, before: u32) -> Verdict {
    let device = c.open()?;
    let deadline = Instant::now() + c.limit(Duration::from_secs(5));
    while device.query()?.user_queues != before {
        check!(Instant::now() < deadline, "queues of a dead process remain: {:?}", device.query());
        std::thread::sleep(Duration::from_millis(1));
    }
    device.bind()?;
    check_serves(c, &mut UserQueue::create(&device, POLLED)?)?;
    c.still_serves()
}

fn exit_running(c: &Context) -> Verdict {
    let before = c.open()?.query()?.user_queues;
    let mut peer = worker(c, true)?;
    peer.line.recv()?;
    peer.line.send(0)?;
    peer.join()?;
    check_gone(c, before)
}

fn kill_running(c: &Context) -> Verdict {
    let before = c.open()?.query()?.user_queues;
    let mut peer = worker(c, false)?;
    peer.line.recv()?;
    peer.kill()?;
    check_gone(c, before)
}

fn reset_loses(c: &Context) -> Verdict {
    let device = c.bound()?;
    let (_target, _list, work) = busy_work()?;
    let mut busy = UserQueue::create(&device, UserQueueOptions { interrupts: true, ..POLLED })?;
    let idle = UserQueue::create(&device, POLLED)?;
    check_eq!(busy.post(&[work; 4]), 4, "taken");
    c.step("resetting");
    let path = format!("/sys/bus/pci/devices/{}/reset", device.query()?.pci_address);
    std::fs::write(&path, "1").during(path)?;
    for queue in [&busy, &idle] {
        check_eq!(queue.query()?.state, QueueState::Lost, "state after the reset");
        check!(!readable(queue.doorbell_address())?, "the doorbell page can be read after the reset");
        check!(!readable(queue.wake_address())?, "the wake page can be read after the reset");
    }
    c.step("a sleeper is woken, and gets what was written before");
    let mut out = [blank(); 8];
    let start = Instant::now();
    let got = busy.wait(&mut out, c.limit(Duration::from_secs(10)))?;
    check!(start.elapsed() < c.limit(Duration::from_secs(9)), "the wait on a lost queue ran out");
    check!(
        out[..got].iter().all(|d| matches!(d.code, Code::Success | Code::Aborted)),
        "after a reset: expected Success or Aborted, actual {:?}",
        &out[..got]
    );
    check_eq!(busy.post(&[Descriptor::nop()]), 0, "taken by a lost queue");
    c.step("new queues work, with the lost ones still there and after they are gone");
    check_serves(c, &mut UserQueue::create(&device, POLLED)?)?;
    busy.destroy()?;
    idle.destroy()?;
    check_serves(c, &mut UserQueue::create(&device, POLLED)?)?;
    c.still_serves()
}
