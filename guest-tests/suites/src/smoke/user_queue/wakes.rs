//! Who sleeps and who is woken: no system call while the engine is awake, wake pages, interrupts, priorities.
use std::io::Read;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use svadev_guest::{Descriptor, Priority, UserQueue, UserQueueOptions};
use svadev_spec::device::doorbell;

use super::{POLLED, Ring, blank, check_serves};
use crate::harness::peer::Peer;
use crate::harness::{Context, During, Verdict};
use crate::memory::{PAGE, small_pages};
use crate::smoke::opcodes::check_success;
use crate::{check, check_eq};

/// Under seccomp's strict mode any system call but read, write and exit is death. How often a submission finds the engine
/// asleep, and so traps, is a matter of timing: a figure for a benchmark, not for a test.
pub(super) fn no_system_call(c: &Context) -> Verdict {
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
pub(super) fn wakes_sleeper(c: &Context) -> Verdict {
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

pub(super) fn eventfd_wakes(c: &Context) -> Verdict {
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
pub(super) fn moderated(c: &Context) -> Verdict {
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

pub(super) fn priorities(c: &Context) -> Verdict {
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
