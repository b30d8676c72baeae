//! What a user queue refuses: arguments, fields, indexes and rings that cannot be.
use std::os::fd::AsRawFd;

use nix::errno::Errno;
use svadev_guest::abi::{self, CreateQueueArgs, DestroyQueueArgs};
use svadev_guest::{Buffer, Code, Descriptor, Device, UserQueue};
use svadev_spec::device::{doorbell, queue_error};

use super::{POLLED, Ring, check_serves, create_args, errno, wait_halted};
use crate::check_eq;
use crate::harness::{Context, Verdict, Work};
use crate::memory::{PAGE, check_bytes, small_pages};
use crate::smoke::opcodes::check_success;

pub(super) fn broken_arguments(c: &Context) -> Verdict {
    let device = c.open()?;
    check_eq!(errno(UserQueue::create(&device, POLLED)), Some(Errno::EINVAL), "create before bind");
    device.bind()?;
    let rings = small_pages(16 * 4096)?;
    let good = create_args(&rings)?;
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
pub(super) fn pasid_reserved(c: &Context) -> Verdict {
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

pub(super) fn bad_tail(c: &Context) -> Verdict {
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

pub(super) fn bad_cq_head(c: &Context) -> Verdict {
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

pub(super) fn sq_unmapped(c: &Context) -> Verdict {
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

pub(super) fn cq_unmapped(c: &Context) -> Verdict {
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

pub(super) fn limits(c: &Context) -> Verdict {
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
