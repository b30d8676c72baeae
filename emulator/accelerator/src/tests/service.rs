//! Who is served when: shares, priorities, and queues that nobody looks at.
use svadev_spec::device::{BAR_DOORBELLS, DOORBELL_STRIDE, Descriptor, Priority, doorbell, opcode, regs};

use super::world::*;

const SRC: u64 = 0x7000_0000;
const DST: u64 = 0x7800_0000;
const BYTES: u64 = 0x10_0000;

fn world(queues: u16) -> World {
    let w = World::with(|s| s.queues = queues);
    for queue in 0..u32::from(queues) {
        let space = Some(pasid(queue + 1));
        w.map(space, SRC, 0x100_0000, BYTES);
        w.map(space, DST, 0x200_0000, BYTES);
    }
    w
}

fn prioritize(w: &mut World, queue: usize, priority: Priority) {
    w.write32(World::register(queue, regs::QUEUE_SERVICE), u32::from(priority as u8));
}

fn copy(queue: usize, length: u64) -> Descriptor {
    let d = Descriptor { opcode: opcode::COPY, src: SRC, dst: DST, length, ..Default::default() };
    for_process(pasid(u32::try_from(queue).unwrap() + 1), d)
}

/// Keeps every queue's ring full of copies of its own size for a number of passes, and says what each got, in bytes and as many
/// for each descriptor.
fn compete(w: &mut World, sizes: &[u64], passes: usize) -> Vec<u64> {
    let mut got = vec![0; sizes.len()];
    for (queue, &size) in sizes.iter().enumerate() {
        w.submit(queue, &vec![copy(queue, size); 64]);
    }
    for _ in 0..passes {
        assert!(w.step());
        for (queue, &size) in sizes.iter().enumerate() {
            let done = w.reap(queue);
            got[queue] += done.iter().map(|c| c.bytes_done + 512).sum::<u64>();
            w.submit(queue, &vec![copy(queue, size); done.len()]);
        }
    }
    got
}

#[test]
fn equal_queues_get_equal_shares_whatever_their_descriptors() {
    let sizes = [64, 700, 4096, 9000, 65_536, 500_000, 100, 1 << 20];
    let mut w = world(8);
    (0..8).for_each(|queue| w.enable(queue, 6, None));
    let got = compete(&mut w, &sizes, 4000);
    let fair = got.iter().sum::<u64>() / 8;
    for (size, share) in sizes.iter().zip(&got) {
        assert!(share.abs_diff(fair) * 10 < fair, "copies of {size} got {share}, fair is {fair}: {got:?}");
    }
}

#[test]
fn shares_follow_priorities() {
    let priorities = [Priority::Low, Priority::Normal, Priority::High, Priority::Urgent];
    let mut w = world(4);
    for (queue, priority) in priorities.into_iter().enumerate() {
        prioritize(&mut w, queue, priority);
        w.enable(queue, 6, None);
    }
    let got = compete(&mut w, &[4096, 64, 65_536, 4096], 4000);
    for (priority, share) in priorities.into_iter().zip(&got) {
        let fair = got.iter().sum::<u64>() * u64::from(priority.weight()) / 15;
        assert!(share.abs_diff(fair) * 10 < fair, "{priority:?} got {share}, fair is {fair}: {got:?}");
    }
}

#[test]
fn a_queue_that_faults_or_halts_costs_the_others_nothing() {
    let mut w = world(4);
    (0..4).for_each(|queue| w.enable(queue, 6, None));
    // One waits for a page with all it has, one halts over its tail, one has a completion ring that it never empties.
    w.submit(
        0,
        &[for_process(pasid(1), Descriptor { opcode: opcode::FILL, dst: 0x1000, length: 1, ..Default::default() }); 64],
    );
    w.ring_word(1, doorbell::SQ_TAIL, 1000);
    w.enable_with(2, 6, 1, None);
    w.submit(2, &[Descriptor::default(); 64]);
    w.settle();
    assert!(w.status(1).halted());
    let before = w.function.shared().counters().bytes;
    w.submit(3, &vec![copy(3, 0x1000); 48]);
    let mut passes = 0;
    while w.step() {
        passes += 1;
    }
    assert_eq!(w.function.shared().counters().bytes - before, 48 * 0x1000);
    assert_eq!(w.reap(3).len(), 48);
    // 48 descriptors of 4608 fill four slices, and the visits to it a little of a fifth.
    assert!(passes <= 5, "{passes} passes");
}

/// Lets everything go idle for long enough to be left alone.
fn leave_alone(w: &mut World) {
    w.settle();
    w.now += 2_000_000;
    for _ in 0..100 {
        w.step();
    }
}

fn wake(w: &mut World, queue: usize) {
    let half = w.function.bar_size(BAR_DOORBELLS) / 2;
    w.function.bar_write(BAR_DOORBELLS, half + queue as u64 * DOORBELL_STRIDE, &1u32.to_le_bytes());
}

fn armed(w: &World) -> Vec<usize> {
    (0..w.rings.len()).filter(|&queue| w.word(queue, doorbell::ARMED) != 0).collect()
}

#[test]
fn long_idle_queues_are_left_alone_until_their_wake_page_is_written() {
    let mut w = world(40);
    (0..40).for_each(|queue| w.enable(queue, 4, None));
    leave_alone(&mut w);
    assert_eq!(armed(&w).len(), 24, "sixteen are looked at however idle they are");
    let alone = armed(&w)[0];
    w.submit(alone, &[Descriptor { cookie: 5, ..Default::default() }]);
    w.settle();
    assert!(w.reap(alone).is_empty(), "nobody looks");
    wake(&mut w, alone);
    w.settle();
    assert_eq!(w.reap(alone)[0].cookie, 5);
    assert_eq!(w.word(alone, doorbell::ARMED), 0);
    // Now it is looked at again.
    w.submit(alone, &[Descriptor { cookie: 6, ..Default::default() }]);
    w.settle();
    assert_eq!(w.reap(alone)[0].cookie, 6);
}

#[test]
fn a_queue_that_is_left_alone_is_heard_by_a_sleeping_engine_too() {
    let mut w = world(40);
    (0..40).for_each(|queue| w.enable(queue, 4, None));
    leave_alone(&mut w);
    let alone = armed(&w)[3];
    assert!(w.engines[0].park());
    assert_eq!(armed(&w).len(), 40);
    w.submit(alone, &[Descriptor::default()]);
    wake(&mut w, alone);
    assert!(w.ports.wakes.load(std::sync::atomic::Ordering::Relaxed) > 0);
    w.settle();
    assert_eq!(w.reap(alone).len(), 1);
    // Those that were looked at before are looked at again, but for one whose place this one takes.
    assert_eq!(armed(&w).len(), 24);
    assert!(!armed(&w).contains(&alone));
}

#[test]
fn a_queue_that_is_left_alone_is_enabled_and_reset_as_any() {
    let mut w = world(40);
    (0..40).for_each(|queue| w.enable(queue, 4, None));
    leave_alone(&mut w);
    let alone = armed(&w)[0];
    w.write32(World::register(alone, regs::QUEUE_CONTROL), 0);
    w.settle();
    assert!(!w.status(alone).enabled());
    w.enable(alone, 4, None);
    w.submit(alone, &[Descriptor::default()]);
    w.settle();
    assert_eq!(w.reap(alone).len(), 1);
    w.function.reset();
    w.settle();
    assert_eq!(armed(&w).len(), 0);
}

#[test]
fn many_queues_that_are_used_now_and_then_stop_trapping() {
    const QUEUES: usize = 64;
    let mut w = world(u16::try_from(QUEUES).unwrap());
    (0..QUEUES).for_each(|queue| w.enable(queue, 4, None));
    leave_alone(&mut w);
    let mut wakes = Vec::new();
    for _ in 0..20 {
        let mut round = 0;
        for queue in 0..QUEUES {
            w.submit(queue, &[Descriptor::default()]);
            if w.word(queue, doorbell::ARMED) != 0 {
                round += 1;
                wake(&mut w, queue);
            }
            // A pass looks at some of the watched queues only.
            for _ in 0..QUEUES {
                w.step();
            }
            assert_eq!(w.reap(queue).len(), 1);
            // A round takes 6.4 ms, so each queue idles for longer than the least time.
            w.now += 100_000;
        }
        wakes.push(round);
    }
    assert!(wakes[0] >= QUEUES - 16, "they were left alone: {wakes:?}");
    assert_eq!(wakes.iter().skip(5).sum::<usize>(), 0, "wakes, round by round: {wakes:?}");
}
