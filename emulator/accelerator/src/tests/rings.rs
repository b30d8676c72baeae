//! Rings and doorbells: order, room, wrapping, and words that cannot be true.
use svadev_fabric::ResponseCode;
use svadev_spec::device::{Code, Descriptor, DescriptorFlags, doorbell, opcode, queue_error};

use super::world::*;
use crate::Progress;

const SRC: u64 = 0x1_0000_0000;
const DST: u64 = 0x2_0000_0000;

fn nop(cookie: u64) -> Descriptor {
    Descriptor { cookie, ..Default::default() }
}

fn cookies(done: &[svadev_spec::device::Completion]) -> Vec<u64> {
    done.iter().map(|c| c.cookie).collect()
}

/// A fill of a process's page that is not there.
fn parked(cookie: u64) -> Descriptor {
    let fill = Descriptor { opcode: opcode::FILL, cookie, dst: DST + cookie * 0x1000, length: 8, ..Default::default() };
    for_process(pasid(1), fill)
}

fn world() -> World {
    let mut w = World::new();
    w.mmu.bind(Some(pasid(1)));
    w.enable(0, 4, None);
    w
}

fn serve(w: &mut World, cookie: u64) {
    let at = DST + cookie * 0x1000;
    w.mmu.map(Some(pasid(1)), at, 12, Page::rw(0x100_0000 + cookie * 0x1000));
    let request = *w.mmu.requests().iter().find(|r| r.iova.0 == at).expect("it was asked for");
    w.mmu.respond(request.prg_index, ResponseCode::Success);
    w.settle();
}

#[test]
fn rings_wrap_many_times_and_over_32_bits() {
    let mut w = world();
    for round in 0..40 {
        let batch: Vec<_> = (0..7).map(|n| nop(round * 7 + n)).collect();
        assert_eq!(cookies(&w.run(0, &batch)), batch.iter().map(|d| d.cookie).collect::<Vec<_>>());
    }
    let near = u64::from(u32::MAX) - 20;
    w.engines[0].set_indexes(0, near);
    let word = u32::try_from(near).unwrap();
    (w.rings[0].tail, w.rings[0].head) = (word, word);
    w.ring_word(0, doorbell::CQ_HEAD, word);
    w.ring_word(0, doorbell::CQ_TAIL, word);
    for round in 0..10 {
        let batch: Vec<_> = (0..5).map(|n| nop(round * 5 + n)).collect();
        assert_eq!(cookies(&w.run(0, &batch)), batch.iter().map(|d| d.cookie).collect::<Vec<_>>());
    }
    assert_eq!(w.word(0, doorbell::SQ_HEAD), word.wrapping_add(50));
    assert!(w.rings[0].head < 100, "past the wrap");
}

#[test]
fn a_full_completion_ring_holds_work_up_and_loses_nothing() {
    let mut w = world();
    w.enable_with(1, 6, 1, None);
    let batch: Vec<_> = (0..40).map(nop).collect();
    w.submit(1, &batch);
    w.settle();
    assert_eq!(w.word(1, doorbell::CQ_TAIL), 2, "two entries and no more");
    let mut seen = Vec::new();
    while seen.len() < 40 {
        let done = w.reap(1);
        assert!(!done.is_empty() && done.len() <= 2);
        seen.extend(cookies(&done));
        w.settle();
    }
    assert_eq!(seen, (0..40).collect::<Vec<_>>());
}

#[test]
fn a_fence_starts_after_and_a_drain_completes_after_all_before() {
    let mut w = world();
    let fenced = Descriptor { flags: DescriptorFlags::FENCE.bits(), ..nop(2) };
    let drain = Descriptor { opcode: opcode::DRAIN, ..nop(4) };
    assert_eq!(cookies(&w.run(0, &[parked(0), nop(1), fenced, nop(3), drain, nop(5)])), [1]);
    serve(&mut w, 0);
    assert_eq!(cookies(&w.reap(0)), [0, 2, 3, 4, 5]);
    assert_eq!(cookies(&w.run(0, &[parked(6), drain, nop(7), drain, nop(8)])), [7, 8], "a drain holds nobody up");
    serve(&mut w, 6);
    assert_eq!(cookies(&w.reap(0)), [6, 4, 4]);
}

#[test]
fn a_tail_that_cannot_be_true_halts_the_queue_alone() {
    let mut w = world();
    w.enable(1, 4, None);
    w.submit(0, &[parked(0)]);
    w.settle();
    w.ring_word(0, doorbell::SQ_TAIL, 1 + 17);
    w.settle();
    let status = w.status(0);
    assert!(status.halted() && !status.enabled());
    assert_eq!(status.error(), queue_error::BAD_TAIL);
    assert_eq!(w.reap(0).iter().map(code).collect::<Vec<_>>(), [Code::Aborted], "what ran is over");
    assert_eq!(*w.ports.interrupts.lock().unwrap(), [0], "software is told");
    assert_eq!(cookies(&w.run(1, &[nop(9)])), [9]);
    w.write32(World::register(0, svadev_spec::device::regs::QUEUE_CONTROL), 0);
    w.settle();
    assert!(!w.status(0).halted());
    w.enable(0, 4, None);
    assert_eq!(cookies(&w.run(0, &[nop(10)])), [10]);
}

#[test]
fn a_completion_head_that_cannot_be_true_halts_the_queue() {
    for head in [1, u32::MAX, 0x8000_0000] {
        let mut w = world();
        w.ring_word(0, doorbell::CQ_HEAD, head);
        w.submit(0, &[nop(1)]);
        w.settle();
        assert_eq!(w.status(0).error(), queue_error::BAD_CQ_HEAD);
        assert_eq!(w.word(0, doorbell::CQ_TAIL), 0);
    }
}

#[test]
fn a_user_queue_waits_for_its_rings_like_for_any_memory() {
    let mut w = world();
    let p = pasid(4);
    w.mmu.bind(Some(p));
    w.enable(1, 4, Some(p));
    w.submit(1, &[nop(1)]);
    w.settle();
    let asked = w.mmu.requests();
    assert_eq!((asked[0].iova.0, asked[0].pasid), (World::sq_base(1), Some(p)));
    assert_eq!(cookies(&w.run(0, &[nop(7)])), [7], "other queues go on");
    w.mmu.map(Some(p), World::sq_base(1), 12, Page::rw(World::sq_base(1)));
    w.mmu.respond(asked[0].prg_index, ResponseCode::Success);
    w.settle();
    let asked = w.mmu.requests();
    assert_eq!(asked[0].iova.0, World::cq_base(1));
    assert!(asked[0].access.write);
    w.mmu.map(Some(p), World::cq_base(1), 12, Page::rw(World::cq_base(1)));
    w.mmu.respond(asked[0].prg_index, ResponseCode::Success);
    w.settle();
    assert_eq!(cookies(&w.reap(1)), [1]);
    let mut foreign = nop(2);
    foreign.pasid = svadev_spec::device::DescriptorPasid::new().with_pasid(1).with_valid(true);
    assert_eq!(code(&w.run(1, &[foreign])[0]), Code::BadReserved, "a user queue names no other process");
}

#[test]
fn rings_that_are_not_there_halt_their_queue_with_the_address() {
    let p = pasid(4);
    let mut w = world();
    w.mmu.bind(Some(p));
    w.enable(1, 4, Some(p));
    w.submit(1, &[nop(1)]);
    w.settle();
    w.mmu.respond(w.last_group(), ResponseCode::InvalidRequest);
    w.settle();
    assert_eq!((w.status(1).error(), w.status(1).halted()), (queue_error::SQ_FAULT, true));
    let address = World::register(1, svadev_spec::device::regs::QUEUE_FAULT_ADDRESS);
    assert_eq!(w.read64(address), World::sq_base(1));
    let mut w = world();
    w.map(Some(p), World::sq_base(1), World::sq_base(1), 0x1000);
    w.enable(1, 4, Some(p));
    w.submit(1, &[nop(1)]);
    w.settle();
    w.now += TIMEOUT;
    w.settle();
    assert_eq!(w.status(1).error(), queue_error::CQ_FAULT);
    assert_eq!(w.read64(address), World::cq_base(1));
    assert_eq!(w.word(1, doorbell::CQ_TAIL), 0, "nothing claims to have been written");
}

#[test]
fn long_work_in_one_queue_does_not_starve_another() {
    let mut w = world();
    w.enable(1, 4, None);
    w.map(Some(pasid(1)), SRC, 0x100_0000, 0x40_0000);
    w.map(Some(pasid(1)), DST, 0x200_0000, 0x40_0000);
    let long = Descriptor { opcode: opcode::COPY, src: SRC, dst: DST, length: 0x40_0000, ..nop(0) };
    w.submit(0, &[for_process(pasid(1), long); 4]);
    w.step();
    w.submit(1, &[nop(1)]);
    for _ in 0..3 {
        w.step();
    }
    assert_eq!(cookies(&w.reap(1)), [1], "served within a round");
    assert_eq!(cookies(&w.run(0, &[nop(5)])).len(), 5);
}

#[test]
fn short_work_passes_long_work_of_its_own_queue() {
    let mut w = world();
    w.map(Some(pasid(1)), SRC, 0x100_0000, 0x40_0000);
    w.map(Some(pasid(1)), DST, 0x200_0000, 0x40_0000);
    let long = Descriptor { opcode: opcode::COPY, src: SRC, dst: DST, length: 0x40_0000, ..nop(0) };
    let done = w.run(0, &[for_process(pasid(1), long), nop(1)]);
    assert_eq!(cookies(&done), [1, 0]);
}

#[test]
fn an_engine_sleeps_only_when_nothing_was_rung() {
    let mut w = world();
    w.settle();
    assert!(w.engines[0].park());
    assert_eq!(w.word(0, doorbell::ARMED), 1);
    w.submit(0, &[nop(1)]);
    assert!(w.engines[0].unpark() || w.word(0, doorbell::ARMED) == 0);
    w.settle();
    assert_eq!(cookies(&w.reap(0)), [1]);
    w.settle();
    w.submit(0, &[nop(2)]);
    assert!(!w.engines[0].park(), "rung between the last look and arming");
    assert_eq!(w.word(0, doorbell::ARMED), 0);
    w.settle();
    assert_eq!(cookies(&w.reap(0)), [2]);
}

#[test]
fn an_engine_that_waits_for_a_page_may_sleep() {
    let mut w = world();
    w.submit(0, &[parked(0)]);
    w.settle();
    assert_eq!(w.engines[0].run(w.now), Progress::Idle { until_ns: Some(w.now + TIMEOUT) });
    assert!(w.engines[0].park());
    let wakes = w.ports.wakes.load(std::sync::atomic::Ordering::Relaxed);
    w.mmu.map(Some(pasid(1)), DST, 12, Page::rw(0x100_0000));
    w.mmu.respond(w.last_group(), ResponseCode::Success);
    assert_eq!(w.ports.wakes.load(std::sync::atomic::Ordering::Relaxed), wakes + 1, "the answer wakes it");
    w.settle();
    assert_eq!(cookies(&w.reap(0)), [0]);
}

#[test]
fn a_slice_ends_whatever_the_work_is_made_of() {
    use svadev_spec::device::ScatterEntry;
    use zerocopy::IntoBytes;
    let mut w = World::with(|s| s.tlb_entries = 4);
    w.enable(0, 8, None);
    w.map(Some(pasid(1)), SRC, 0x100_0000, 0x40_0000);
    w.map(Some(pasid(1)), DST, 0x200_0000, 0x1000);
    // One byte of each of 1024 pages, with a TLB that holds four.
    let entries: Vec<_> = (0..1024).map(|n| ScatterEntry { address: SRC + n * 0x1000, length: 1 }).collect();
    w.write(0x300_0000, entries.as_bytes());
    w.map(Some(pasid(1)), SRC + 0x1000_0000, 0x300_0000, 0x4000);
    let scattered = Descriptor {
        opcode: opcode::COPY,
        flags: DescriptorFlags::SRC_LIST.bits(),
        src: SRC + 0x1000_0000,
        src_entries: 1024,
        dst: DST,
        length: 1024,
        ..nop(0)
    };
    w.submit(0, &[for_process(pasid(1), scattered); 50]);
    w.mmu.translated();
    let mut slices = 0;
    while w.step() {
        let asked = w.mmu.translated().len();
        assert!(asked <= 4096, "{asked} translations in one slice");
        slices += 1;
    }
    assert!(slices > 50, "{slices}");
    assert_eq!(w.reap(0).len(), 50);
    w.submit(0, &vec![nop(1); 200]);
    w.step();
    assert!(w.reap(0).len() <= 129, "tiny work is counted too");
}
