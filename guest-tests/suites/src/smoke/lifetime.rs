//! Lifetimes: the rules of `docs/lifetimes.md`, by number, and two processes or two functions at once.
#![allow(unsafe_code, reason = "exec of a helper needs a descriptor that is not closed")]
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::process::{Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use svadev_guest::{Code, Descriptor, Device};

use super::opcodes::check_success;
use crate::harness::peer::{Line, Peer};
use crate::harness::{Context, During, Expected, Stop, Test, Verdict, Work};
use crate::memory::{PAGE, check_bytes, small_pages};
use crate::{check, check_eq, fail};

pub(super) const TESTS: &[Test] = &[
    Test::each("lifetime.L1.context_outlives_its_mm", outlives_mm).allows(GONE),
    Test::each("lifetime.L1.fd_passed_after_owner_death", passed_fd).allows(GONE),
    Test::each("lifetime.L2.fork_inherits_the_file_not_the_binding", fork_no_binding).needs_page_requests(),
    Test::pair("lifetime.L3.one_mm_two_functions", one_mm_two_functions),
    Test::pair("lifetime.L3.unbind_in_either_order", unbind_orders),
    Test::each("lifetime.L4.exit_with_work_in_flight", exit_in_flight).allows(GONE),
    Test::each("lifetime.L4.sigkill_with_work_in_flight", kill_in_flight).allows(GONE),
    Test::each("lifetime.L4.segfault_with_work_in_flight", segfault_in_flight).allows(GONE),
    Test::pair("lifetime.L4.sigkill_on_two_functions", kill_on_two).allows(GONE),
    Test::each("lifetime.L5.close_after_unbind_and_exit_after_close", teardown_twice),
    Test::each("lifetime.L8.bind_unbind_pairs", bind_unbind_pairs),
    Test::each("lifetime.L8.unbind_with_work_in_flight", unbind_in_flight),
    Test::each("lifetime.L8.parallel_bind_and_unbind", parallel_binds).needs_page_requests().timeout_s(20),
    Test::each("lifetime.L11.unbind_races_with_exit", unbind_races_exit).timeout_s(20).allows(GONE),
    Test::each("lifetime.exec_ends_the_binding", exec_ends_binding).allows(GONE),
    Test::each("lifetime.exec_closes_the_file", exec_closes),
    Test::each("lifetime.pasid_is_used_again", pasid_reuse),
    Test::each("isolation.two_processes_one_function", two_processes).needs_page_requests(),
    Test::pair("isolation.pasid_bound_elsewhere_is_blocked", bound_elsewhere)
        // Not `expects`: the kernel prints ten faults in five seconds at most, and others may have used them up.
        .allows(Expected::DmarFault),
    Test::each("isolation.many_processes", many_processes).needs_page_requests().timeout_s(30).allows(GONE),
];

/// A process that dies with work in flight is gone from the PASID table before the device hears of it, and what the device asks
/// for in between is blocked and recorded: by the unit as by hardware. Linux means to suppress that with FPD, but sets it only
/// after three invalidation waits, or not at all (`docs/found.md`).
const GONE: Expected = Expected::DmarFault;

/// Descriptors that keep the device busy for a while: fills of memory that nobody touched.
fn long_work(pages: usize) -> Verdict<(svadev_guest::Buffer, Vec<Descriptor>)> {
    let memory = small_pages(pages * 4096)?;
    let work = (0..8).map(|i| {
        let part = memory.len() / 8;
        Descriptor::fill(memory.at(i * part), part as u64, u64::MAX).with_cookie(i as u64)
    });
    let work = work.collect();
    Ok((memory, work))
}

fn errno<T: std::fmt::Debug>(result: svadev_guest::Result<T>) -> Option<Errno> {
    result.err().and_then(|e| e.errno())
}

/// What whoever holds the file of a dead address space must find.
fn check_dead(c: &Context, device: &Device) -> Verdict {
    c.step("collecting what the dead process left in flight");
    let deadline = Instant::now() + c.limit(Duration::from_secs(10));
    let end = loop {
        match device.wait(1, 64, Some(Duration::from_secs(1))) {
            Ok(done) => {
                for completion in done {
                    check!(
                        matches!(
                            completion.code,
                            Code::Success | Code::TranslationBlocked | Code::PageFault | Code::Aborted
                        ),
                        "work of a dead process: expected Success, TranslationBlocked, PageFault or Aborted, actual \
                         {completion}"
                    );
                }
            }
            Err(e) => break e,
        }
        check!(Instant::now() < deadline, "wait on a dead context never says ESRCH: {:?}", device.query());
    };
    check_eq!(end.errno(), Some(Errno::ESRCH), "wait on a dead context with nothing left");
    check_eq!(errno(device.post(&[Descriptor::nop()])), Some(Errno::ESRCH), "submit on a dead context");
    c.step("unbinding the dead binding, and binding this process instead");
    device.unbind().during("unbind of a dead binding")?;
    check_eq!(errno(device.unbind()), Some(Errno::EINVAL), "second unbind");
    device.bind().during("bind of this process on the same context")?;
    check_success(&device.go(&Descriptor::nop())?, 0, "NOP of the new owner")?;
    c.still_serves()
}

/// The file outlives the process that bound it: its opener holds it.
fn outlives_mm(c: &Context) -> Verdict {
    let device = c.open()?;
    let mut owner = Peer::start(|line| {
        device.bind()?;
        let (_memory, work) = long_work(64)?;
        device.post_all(&work)?;
        line.send(0)?;
        line.recv()?;
        Ok(())
    })?;
    owner.line.recv()?;
    check_eq!(errno(device.post(&[Descriptor::nop()])), Some(Errno::EPERM), "submit by one who did not bind");
    check_eq!(errno(device.unbind()), Some(Errno::EPERM), "unbind by one who did not bind");
    c.step("the owner exits with work in flight");
    owner.line.send(0)?;
    owner.join()?;
    check_dead(c, &device)
}

/// The file travels over a socket to a process that outlives its owner.
fn passed_fd(c: &Context) -> Verdict {
    let mut owner = Peer::start(|line| {
        let device = c.bound()?;
        line.send_fd(&device)?;
        let (_memory, work) = long_work(64)?;
        device.post_all(&work)?;
        line.send(0)?;
        loop {
            std::thread::park();
        }
    })?;
    let device = Device::from(owner.line.recv_fd()?);
    owner.line.recv()?;
    check!(device.query()?.pasid.is_some(), "a passed context that is bound has no PASID");
    owner.kill()?;
    check_dead(c, &device)
}

fn fork_no_binding(c: &Context) -> Verdict {
    let device = c.bound()?;
    let memory = small_pages(2 * 4096)?;
    memory.fill(3);
    let mut child = Peer::start(|line| {
        check_eq!(errno(device.post(&[Descriptor::nop()])), Some(Errno::EPERM), "the child's submit");
        check_eq!(errno(device.unbind()), Some(Errno::EPERM), "the child's unbind");
        check_eq!(errno(device.bind()), Some(Errno::EBUSY), "the child's bind of a bound context");
        let own = c.bound()?;
        check!(own.query()?.pasid != device.query()?.pasid, "parent and child have one PASID");
        check_success(&own.go(&Descriptor::fill(memory.address(), PAGE, 0))?, PAGE, "the child's own work")?;
        check_bytes(&memory.bytes(0, 4096), &[0; 4096], "the child's memory")?;
        line.send(0)
    })?;
    child.line.recv()?;
    child.join()?;
    c.step("the child has closed its copies of the file: the parent's binding lives");
    check_bytes(&memory.bytes(0, 4096), &[3; 4096], "the parent's memory")?;
    let copy = device.go(&Descriptor::copy(memory.address(), memory.at(4096), PAGE))?;
    check_success(&copy, PAGE, "the parent's work after its child ended")
}

fn one_mm_two_functions(c: &Context) -> Verdict {
    let (first, second) = (c.bound_on(0)?, c.bound_on(1)?);
    check_eq!(first.query()?.pasid, second.query()?.pasid, "PASID of one process on two functions");
    let memory = small_pages(3 * 8 * 4096)?;
    let length = 8 * 4096;
    let data = c.rng().bytes(length);
    memory.write(0, &data);
    c.step("a chain: the first function copies, the second copies the copy");
    let one = first.go(&Descriptor::copy(memory.address(), memory.at(length), length as u64))?;
    check_success(&one, length as u64, "first function")?;
    let two = second.go(&Descriptor::copy(memory.at(length), memory.at(2 * length), length as u64))?;
    check_success(&two, length as u64, "second function")?;
    check_bytes(&memory.bytes(2 * length, length), &data, "copy of the copy")?;
    c.step("munmap reaches both");
    let gone = memory.unmap();
    for device in [&first, &second] {
        super::opcodes::check_fault(&device.go(&Descriptor::crc32c(gone, PAGE))?, gone, 0, false, "after munmap")?;
    }
    Ok(())
}

fn unbind_orders(c: &Context) -> Verdict {
    for first in [0, 1] {
        let devices = [c.bound_on(0)?, c.bound_on(1)?];
        c.step(format!("unbinding function {first} first"));
        devices[first].unbind()?;
        check_eq!(errno(devices[first].post(&[Descriptor::nop()])), Some(Errno::EINVAL), "submit where unbound");
        let memory = small_pages(4096)?;
        let other = &devices[1 - first];
        check_success(&other.go(&Descriptor::fill(memory.address(), PAGE, 1))?, PAGE, "where still bound")?;
        other.unbind()?;
    }
    Ok(())
}

/// A process that binds, starts long work and says so; `end` is how it then ends.
fn dies_with_work(c: &Context, functions: &[usize], end: impl FnOnce(&mut Line) -> Verdict) -> Verdict<Peer> {
    let mut victim = Peer::start(|line| {
        let mut all = Vec::new();
        for &function in functions {
            let device = c.bound_on(function)?;
            let (memory, work) = long_work(256)?;
            device.post_all(&work)?;
            all.push((device, memory));
        }
        line.send(0)?;
        end(line)
    })?;
    victim.line.recv()?;
    Ok(victim)
}

fn exit_in_flight(c: &Context) -> Verdict {
    for round in 0..3 {
        c.step(format!("round {round}: exit"));
        dies_with_work(c, &[c.function], |_| {
            // SAFETY: _exit(2) has no preconditions; unlike a return it drops nothing, so the file is closed by the kernel.
            unsafe { libc::_exit(0) }
        })?
        .join()?;
        c.still_serves()?;
    }
    Ok(())
}

fn wait_for_ever(_: &mut Line) -> Verdict {
    loop {
        std::thread::park();
    }
}

fn kill_in_flight(c: &Context) -> Verdict {
    for round in 0..3 {
        c.step(format!("round {round}: SIGKILL"));
        dies_with_work(c, &[c.function], wait_for_ever)?.kill()?;
        c.still_serves()?;
    }
    Ok(())
}

fn segfault_in_flight(c: &Context) -> Verdict {
    // A real one: Rust's handler takes a SIGSEGV that was only sent for a mistake, and lets the process go on.
    let victim = dies_with_work(c, &[c.function], |_| {
        let nowhere = std::ptr::without_provenance::<u8>(8);
        // SAFETY: not sound on purpose: nothing is mapped in the first page, and the load ends the process.
        let byte = unsafe { nowhere.read_volatile() };
        fail!("read {byte} from the first page")
    })?;
    match victim.join() {
        Err(Stop::Fail(why)) if why.contains("SIGSEGV") => c.still_serves(),
        other => fail!("the helper should have died of SIGSEGV: {other:?}"),
    }
}

fn kill_on_two(c: &Context) -> Verdict {
    for _ in 0..2 {
        c.step("SIGKILL of a process with work on both functions");
        dies_with_work(c, &[0, 1], wait_for_ever)?.kill()?;
        for function in [0, 1] {
            let device = c.bound_on(function)?;
            let memory = small_pages(4096)?;
            check_success(&device.go(&Descriptor::fill(memory.address(), PAGE, 1))?, PAGE, "afterwards")?;
        }
    }
    Ok(())
}

fn teardown_twice(c: &Context) -> Verdict {
    let mut child = Peer::start(|line| {
        let device = c.bound()?;
        check_success(&device.go(&Descriptor::nop())?, 0, "NOP")?;
        device.unbind()?;
        check_eq!(errno(device.unbind()), Some(Errno::EINVAL), "second unbind");
        drop(device);
        let left_open = c.bound()?;
        std::mem::forget(left_open);
        line.send(0)
    })?;
    child.line.recv()?;
    child.join()?;
    c.still_serves()
}

fn bind_unbind_pairs(c: &Context) -> Verdict {
    let device = c.open()?;
    let memory = small_pages(4096)?;
    for round in 0..20 {
        device.bind().during(format!("round {round}"))?;
        check_eq!(errno(device.bind()), Some(Errno::EBUSY), "round {round}: second bind");
        check_success(&device.go(&Descriptor::fill(memory.address(), PAGE, round))?, PAGE, "fill while bound")?;
        device.unbind().during(format!("round {round}"))?;
        check_eq!(errno(device.unbind()), Some(Errno::EINVAL), "round {round}: second unbind");
    }
    Ok(())
}

/// When unbind returns, all work has its completion and no access is under way.
fn unbind_in_flight(c: &Context) -> Verdict {
    let device = c.bound()?;
    let (memory, work) = long_work(256)?;
    device.post_all(&work)?;
    c.step("unbinding with work in flight");
    device.unbind()?;
    check_eq!(device.query()?.in_flight, 0, "in flight after unbind");
    let before = memory.bytes(0, memory.len());
    let done = device.collect(work.len(), Duration::ZERO)?;
    let mut cookies: Vec<u64> = done.iter().map(|d| d.cookie).collect();
    cookies.sort_unstable();
    check_eq!(cookies, (0..work.len() as u64).collect::<Vec<_>>(), "cookies, one completion for each");
    for completion in &done {
        check!(
            matches!(completion.code, Code::Success | Code::Aborted),
            "after unbind: expected Success or Aborted, actual {completion}"
        );
    }
    check_bytes(&memory.bytes(0, memory.len()), &before, "memory after unbind returned")?;
    c.still_serves()
}

/// Processes that bind and unbind at the same time, each checking its own data.
fn parallel_binds(c: &Context) -> Verdict {
    let mut helpers = Vec::new();
    for number in 0..4_u8 {
        helpers.push(Peer::start(|line| {
            line.recv()?;
            let memory = small_pages(4096)?;
            for round in 0..15_u8 {
                let device = c.bound()?;
                let value = number * 16 + round;
                let fill = Descriptor::fill(memory.address(), PAGE, u64::from_ne_bytes([value; 8]));
                check_success(&device.go(&fill)?, PAGE, "fill")?;
                check_bytes(&memory.bytes(0, 4096), &[value; 4096], "own memory")?;
                device.unbind()?;
            }
            line.send(0)
        })?);
    }
    for helper in &mut helpers {
        helper.line.send(0)?;
    }
    for mut helper in helpers {
        helper.line.recv()?;
        helper.join()?;
    }
    c.still_serves()
}

/// Unbind and exit at the same time: one thread unbinds and binds while the process is killed at a random moment.
fn unbind_races_exit(c: &Context) -> Verdict {
    let mut rng = c.rng();
    for round in 0..15 {
        c.step(format!("round {round}"));
        let mut victim = Peer::start(|line| {
            let (device, stop) = (c.open()?, AtomicBool::new(false));
            let (_memory, work) = long_work(64)?;
            line.send(0)?;
            while !stop.load(Ordering::Relaxed) {
                device.bind()?;
                device.post_all(&work)?;
                device.unbind()?;
                device.collect(work.len(), Duration::ZERO)?;
            }
            Ok(())
        })?;
        victim.line.recv()?;
        // Not a wait for anything: the moment of death is what varies.
        std::thread::sleep(Duration::from_micros(rng.below(20_000) as u64));
        victim.kill()?;
    }
    c.still_serves()
}

/// First argument of a helper that exec(2) starts.
const EXEC_HELPER: &str = "--exec-helper";

/// What a helper started by [`exec_ends_binding`] does: see what is left of an inherited context.
pub(super) fn exec_helper(mut args: impl Iterator<Item = String>) -> Option<ExitCode> {
    if args.next().as_deref() != Some(EXEC_HELPER) {
        return None;
    }
    let path = args.next().unwrap_or_default();
    // The runner reads standard error.
    let verdict = inherited(&path);
    if let Err(e) = &verdict {
        eprint_line(&format!("after exec: {e:?}"));
    }
    Some(if verdict.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

#[allow(clippy::print_stderr, reason = "a helper's reason goes to the test's output")]
fn eprint_line(text: &str) {
    eprintln!("{text}");
}

/// Standard input is a context that was bound before exec(2).
fn inherited(path: &str) -> Verdict {
    let fd: OwnedFd = std::io::stdin().as_fd().try_clone_to_owned()?;
    let device = Device::from(fd);
    let deadline = Instant::now() + Duration::from_secs(10);
    let end = loop {
        match device.wait(1, 64, Some(Duration::from_secs(1))) {
            Ok(_) => check!(Instant::now() < deadline, "wait never says ESRCH: {:?}", device.query()),
            Err(e) => break e,
        }
    };
    check_eq!(end.errno(), Some(Errno::ESRCH), "wait after exec with nothing left");
    check_eq!(errno(device.post(&[Descriptor::nop()])), Some(Errno::ESRCH), "submit after exec");
    device.unbind().during("unbind of the old program's binding")?;
    device.bind().during("bind of the new program")?;
    check_success(&device.go(&Descriptor::nop())?, 0, "NOP of the new program")?;
    check!(std::path::Path::new(path).exists(), "{path} is gone");
    Ok(())
}

/// The old program's address space is gone: the new program finds a dead context and may bind anew.
fn exec_ends_binding(c: &Context) -> Verdict {
    let path = c.path().to_string_lossy().into_owned();
    let helper = Peer::start(|_| {
        let device = c.bound()?;
        let (_memory, work) = long_work(64)?;
        device.post_all(&work)?;
        nix::unistd::dup2_stdin(&device)?;
        // Only exec itself returns here, with its error.
        let error = std::os::unix::process::CommandExt::exec(
            Command::new("/proc/self/exe").args([EXEC_HELPER, &path]).stdin(Stdio::inherit()),
        );
        fail!("exec: {error}")
    })?;
    helper.join()?;
    c.still_serves()
}

/// Opened files are close-on-exec, so a program started by mistake holds nothing.
fn exec_closes(c: &Context) -> Verdict {
    let device = c.bound()?;
    let flags = FdFlag::from_bits_retain(fcntl(&device, FcntlArg::F_GETFD)?);
    check!(flags.contains(FdFlag::FD_CLOEXEC), "the file is not close-on-exec");
    c.step("a program is started while the context is bound: its exec ends nothing here");
    let list = Command::new("/proc/self/exe").arg("--list").output().during("start a program")?;
    check!(list.status.success(), "the program ended with {}", list.status);
    check!(device.as_raw_fd() > 2, "the device's file took a standard descriptor");
    check_success(&device.go(&Descriptor::nop())?, 0, "the parent's work")
}

/// A PASID that is free again is used again, and leads to the new process only.
fn pasid_reuse(c: &Context) -> Verdict {
    let mut seen = Vec::new();
    for round in 0..10_u8 {
        c.step(format!("round {round}"));
        let mut owner = Peer::start(|line| {
            let device = c.bound()?;
            let memory = small_pages(4 * 4096)?;
            memory.fill(round);
            let done = device.go(&Descriptor::copy(memory.address(), memory.at(2 * 4096), 2 * PAGE))?;
            check_success(&done, 2 * PAGE, "copy")?;
            check_bytes(&memory.bytes(2 * 4096, 2 * 4096), &[round; 2 * 4096], "own bytes, not an earlier process'")?;
            line.send(u64::from(device.query()?.pasid.unwrap_or(0)))
        })?;
        seen.push(owner.line.recv()?);
        owner.join()?;
    }
    seen.sort_unstable();
    seen.dedup();
    check!(seen.len() < 10, "expected a PASID to be used again within 10 processes, actual PASIDs {seen:?}");
    Ok(())
}

/// Two processes with memory at the same addresses and different contents.
fn two_processes(c: &Context) -> Verdict {
    const LENGTH: usize = 8 * 4096;
    let memory = small_pages(2 * LENGTH)?;
    memory.write(0, &[1; LENGTH]);
    let copy = Descriptor::copy(memory.address(), memory.at(LENGTH), LENGTH as u64);
    let mut other = Peer::start(|line| {
        memory.write(0, &[2; LENGTH]);
        let device = c.bound()?;
        line.send(u64::from(device.query()?.pasid.unwrap_or(0)))?;
        line.recv()?;
        for round in 0..30 {
            check_success(&device.go(&copy)?, LENGTH as u64, "the other process' copy")?;
            check_bytes(&memory.bytes(LENGTH, LENGTH), &[2; LENGTH], &format!("round {round}: the other's copy"))?;
        }
        line.send(0)
    })?;
    let device = c.bound()?;
    let (theirs, ours) = (other.line.recv()?, device.query()?.pasid.map_or(0, u64::from));
    check!(theirs != 0 && ours != 0 && theirs != ours, "expected two PASIDs, actual {ours} and {theirs}");
    other.line.send(0)?;
    for round in 0..30 {
        check_success(&device.go(&copy)?, LENGTH as u64, "copy")?;
        check_bytes(&memory.bytes(LENGTH, LENGTH), &[1; LENGTH], &format!("round {round}: copy"))?;
    }
    other.line.recv()?;
    other.join()
}

/// A PASID that is bound on one function leads nowhere on the other.
fn bound_elsewhere(c: &Context) -> Verdict {
    let here = c.bound_on(0)?;
    let there = Device::open(&c.functions[1])?;
    let memory = small_pages(2 * 4096)?;
    memory.fill(0x66);
    let copy = Descriptor::fill(memory.address(), PAGE, 0).with_pasid(here.query()?.pasid);
    let done = there.go_raw(&copy)?;
    check_eq!(done.code, Code::TranslationBlocked, "on the function where it is not bound: {done}");
    check_bytes(&memory.bytes(0, 4096), &[0x66; 4096], "memory")?;
    check_success(&here.go_raw(&copy)?, PAGE, "on the function where it is bound")
}

/// Many processes at once on one function, each with data of its own.
fn many_processes(c: &Context) -> Verdict {
    const COUNT: usize = 16;
    let mut helpers = Vec::new();
    for number in 0..COUNT {
        let value = u8::try_from(number)? + 1;
        helpers.push(Peer::start(|line| {
            line.recv()?;
            let device = c.bound()?;
            let memory = small_pages(8 * 4096)?;
            memory.write(0, &[value; 4 * 4096]);
            for _ in 0..4 {
                let done = device.go(&Descriptor::copy(memory.address(), memory.at(4 * 4096), 4 * PAGE))?;
                check_success(&done, 4 * PAGE, "copy")?;
                check_bytes(&memory.bytes(4 * 4096, 4 * 4096), &[value; 4 * 4096], "own bytes")?;
            }
            line.send(0)
        })?);
    }
    for helper in &mut helpers {
        helper.line.send(0)?;
    }
    for mut helper in helpers {
        helper.line.recv()?;
        helper.join()?;
    }
    Ok(())
}
