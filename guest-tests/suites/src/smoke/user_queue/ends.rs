//! How user queues end: with the queue, the binding, the process, the function.
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use svadev_guest::abi::{self, DestroyQueueArgs};
use svadev_guest::{Buffer, Code, Completion, Descriptor, QueueState, ScatterEntry, UserQueue, UserQueueOptions};

use super::{POLLED, Ring, blank, check_serves, create_args, errno, readable};
use crate::harness::peer::Peer;
use crate::harness::{Context, During, Verdict};
use crate::memory::{PAGE, check_bytes, small_pages};
use crate::{check, check_eq, skip};

/// A descriptor that keeps the engine busy: 1 GiB of filling, over and over the same megabyte.
fn busy_work() -> Verdict<(Buffer, Buffer, Descriptor)> {
    const MEGABYTE: u64 = 1 << 20;
    let memory = small_pages(1 << 20)?;
    memory.fill(0);
    let list = small_pages(1024 * size_of::<ScatterEntry>())?;
    let entries = vec![ScatterEntry { address: memory.address(), length: MEGABYTE }; 1024];
    crate::smoke::scatter::write_list(&list, 0, &entries);
    let work = Descriptor::fill(0, 1024 * MEGABYTE, 7).with_dst_list(list.address(), 1024);
    Ok((memory, list, work))
}

/// A mapping that is kept does not lead to the queue's next owner.
pub(super) fn pages_end(c: &Context) -> Verdict {
    let device = c.bound()?;
    let rings = small_pages(2 * 4096)?;
    let mut args = create_args(&rings)?;
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

pub(super) fn unbind_running(c: &Context) -> Verdict {
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

pub(super) fn fork_no_pages(c: &Context) -> Verdict {
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
pub(super) fn two_processes(c: &Context) -> Verdict {
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

pub(super) fn exit_running(c: &Context) -> Verdict {
    let before = c.open()?.query()?.user_queues;
    let mut peer = worker(c, true)?;
    peer.line.recv()?;
    peer.line.send(0)?;
    peer.join()?;
    check_gone(c, before)
}

pub(super) fn kill_running(c: &Context) -> Verdict {
    let before = c.open()?.query()?.user_queues;
    let mut peer = worker(c, false)?;
    peer.line.recv()?;
    peer.kill()?;
    check_gone(c, before)
}

pub(super) fn reset_loses(c: &Context) -> Verdict {
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
