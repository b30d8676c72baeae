//! Rings, opcodes, fences and page faults of user queues.
use std::time::{Duration, Instant};

use svadev_guest::{Code, Descriptor, QueueState, ScatterEntry, UserQueue, UserQueueOptions};

use super::{POLLED, Ring, blank, check_serves};
use crate::harness::{Context, Verdict, Work};
use crate::memory::{PAGE, check_bytes, present_pages, small_pages};
use crate::smoke::opcodes::{check_fault, check_success};
use crate::{check, check_eq};

pub(super) fn create_and_destroy(c: &Context) -> Verdict {
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

pub(super) fn every_opcode(c: &Context) -> Verdict {
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
    crate::smoke::scatter::write_list(&list, 0, &entries);
    let scattered = Descriptor::copy(memory.address(), 0, 1096).with_dst_list(list.address(), 2);
    check_success(&queue.go(c, &scattered)?, 1096, "COPY to a list")?;
    check_bytes(&memory.bytes(12288 + 2000, 96), &data[1000..1096], "second piece of a list")?;
    check_eq!(queue.go(c, &Descriptor::new(200))?.code, Code::BadOpcode, "unknown opcode");
    Ok(())
}

/// Many laps around the smallest ring and an odd pair of sizes, each completion once and in its place.
pub(super) fn ring_wraps(c: &Context) -> Verdict {
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
pub(super) fn completion_ring_full(c: &Context) -> Verdict {
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

pub(super) fn batch_and_fence(c: &Context) -> Verdict {
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
pub(super) fn faults_wait(c: &Context) -> Verdict {
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

pub(super) fn faults_stop(c: &Context) -> Verdict {
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
