//! A user without rights: what it can do, and what it cannot take from others.
use std::time::Duration;

use nix::errno::Errno;
use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};
use svadev_guest::{
    Code, Completion, Descriptor, Device, FaultFlags, Priority, SubmitFlags, UserQueue, UserQueueOptions, abi,
};

use super::errno;
use super::slow_file::SlowFile;
use crate::harness::peer::Peer;
use crate::harness::{Context, Test, Verdict, Work};
use crate::memory::{PAGE, small_pages};
use crate::{check, check_eq};

pub(super) const TESTS: &[Test] = &[
    Test::each("rights.an_ordinary_user_works", works),
    Test::each("rights.a_user_leaves_slots_to_others", slots).timeout_s(30),
    Test::each("rights.a_user_leaves_queues_to_others", queues),
];

/// `nobody` on Debian.
const NOBODY: u32 = 65534;

/// Becomes an ordinary user for good.
fn drop_rights(uid: u32) -> Verdict {
    setgroups(&[])?;
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(uid));
    setresgid(gid, gid, gid)?;
    setresuid(uid, uid, uid)?;
    Ok(())
}

/// Everything but what needs a capability.
fn works(c: &Context) -> Verdict {
    let user = Peer::start(|_| {
        drop_rights(NOBODY)?;
        let device = c.bound()?;
        let memory = small_pages(2 * 4096)?;
        memory.write(0, &[7; 4096]);
        check!(device.go(&Descriptor::copy(memory.address(), memory.at(4096), PAGE))?.is_success(), "a copy failed");
        check_eq!(memory.get(8191), 7, "last byte copied");
        let raw = device.post_with(&[Descriptor::nop()], SubmitFlags::RAW);
        check_eq!(errno(raw), Some(Errno::EPERM), "RAW without CAP_SYS_RAWIO");
        let urgent = UserQueueOptions { priority: Priority::Urgent, ..UserQueueOptions::POLLED };
        check_eq!(errno(UserQueue::create(&device, urgent).map(drop)), Some(Errno::EPERM), "an urgent queue");
        let mut queue = UserQueue::create(&device, UserQueueOptions { interrupts: true, ..UserQueueOptions::POLLED })?;
        // SAFETY: a NOP names no memory.
        check_eq!(unsafe { queue.submit(&[Descriptor::nop()]) }, 1, "descriptors taken");
        let nothing =
            Completion { cookie: 0, code: Code::Aborted, fault: FaultFlags::empty(), bytes_done: 0, result: 0 };
        let mut done = [nothing];
        check_eq!(queue.wait(&mut done, c.limit(Duration::from_secs(5)))?, 1, "completions");
        check_eq!(done[0].code, Code::Success, "a NOP of a user queue");
        Ok(())
    })?;
    user.join()?;
    c.still_serves()
}

/// Work that waits for a page fills the kernel's ring. A user never gets all of it: others find room at once.
fn slots(c: &Context) -> Verdict {
    let mut file = SlowFile::mount()?;
    let mut greedy = Peer::start(|line| {
        let memory = file.map()?;
        drop_rights(NOBODY)?;
        let work = vec![Descriptor::crc32c(memory.address(), PAGE); abi::MAX_IN_FLIGHT as usize];
        let mut devices = Vec::new();
        let mut taken = 0;
        // More than enough for the whole ring. Bound before the first page is missing: that holds mmap_lock.
        for _ in 0..20 {
            let device = Device::open_nonblocking(c.path())?;
            device.bind()?;
            devices.push(device);
        }
        for device in &devices {
            while let Ok(count) = device.post(&work) {
                taken += count;
            }
        }
        line.send(taken as u64)?;
        line.recv()?;
        Ok(())
    })?;
    file.wait_for_read()?;
    let taken = greedy.line.recv()?;
    check!(taken >= 64, "only {taken} descriptors were taken");
    let device = Device::open_nonblocking(c.path())?;
    device.bind()?;
    check_eq!(device.post(&[Descriptor::nop()])?, 1, "descriptors of another user that are taken, beside {taken}");
    file.let_go()?;
    let done = device.collect(1, c.limit(Duration::from_secs(25)))?;
    check!(done[0].is_success(), "another user's NOP: {}", done[0]);
    greedy.line.send(0)?;
    greedy.join()?;
    c.still_serves()
}

/// A user gets as many queues of the function as it leaves free.
fn queues(c: &Context) -> Verdict {
    let usable = u64::from(c.open()?.query()?.queues) - 1;
    let mut greedy = Peer::start(|line| {
        drop_rights(NOBODY)?;
        let mut devices = Vec::new();
        let mut made = 0;
        let refused = 'all: loop {
            let device = c.bound()?;
            for _ in 0..abi::MAX_USER_QUEUES {
                match UserQueue::create(&device, UserQueueOptions::POLLED) {
                    // It stays until its context goes.
                    Ok(queue) => std::mem::forget(queue),
                    Err(error) => break 'all error,
                }
                made += 1;
            }
            devices.push(device);
        };
        check_eq!(refused.errno(), Some(Errno::EDQUOT), "one more after {made} queues");
        line.send(made)?;
        line.recv()?;
        Ok(())
    })?;
    let made = greedy.line.recv()?;
    check_eq!(made, usable.div_ceil(2), "queues of {usable} that one user gets");
    let device = c.bound()?;
    let queue = UserQueue::create(&device, UserQueueOptions::POLLED)?;
    drop(queue);
    greedy.line.send(0)?;
    greedy.join()?;
    c.still_serves()
}
