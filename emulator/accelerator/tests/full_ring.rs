//! A descriptor's place in its ring is free by the time its completion can be seen: a driver that keeps the ring full submits the
//! next one for each completion, without a look at anything else.
use std::sync::atomic::{AtomicBool, Ordering};

use svadev_spec::device::{Descriptor, doorbell, opcode};

mod rig;
use rig::{BUFFERS, RING_LOG2, Rig, copy};

const QUEUE: usize = 0;
/// Until every translation is in the device TLB.
const WARM: u32 = 100;
const ROUNDS: u32 = 200_000;

/// Small work, which is completed while it is fetched, and work that takes a job.
fn work(n: u32) -> Descriptor {
    match n % 3 {
        0 => Descriptor { opcode: opcode::NOP, ..Descriptor::default() },
        1 => copy(BUFFERS, BUFFERS + 0x1000, 64),
        _ => Descriptor { opcode: opcode::CRC32C, src: BUFFERS, length: 64, ..Descriptor::default() },
    }
}

#[test]
fn a_completion_means_that_the_ring_has_room() {
    let mut rig = Rig::new(1, 12);
    rig.batch(QUEUE, WARM, work);
    let mut engine = rig.engines.remove(0);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut now_ns = 1 << 20;
            while !stop.load(Ordering::Relaxed) {
                now_ns += 1000;
                engine.run(now_ns);
            }
        });
        (0..1 << RING_LOG2).for_each(|n| rig.push(QUEUE, &work(n)));
        rig.ring(QUEUE);
        for completed in WARM + 1..=WARM + ROUNDS {
            while rig.reap(QUEUE).is_none() {
                std::hint::spin_loop();
            }
            let head = rig.function.shared().doorbells().load(QUEUE, doorbell::SQ_HEAD);
            let free = head.wrapping_sub(completed) < 1 << RING_LOG2;
            if !free {
                stop.store(true, Ordering::Relaxed);
            }
            assert!(free, "{completed} completions, and the device says that it has taken {head} descriptors");
            rig.release(QUEUE);
            rig.push(QUEUE, &work(completed));
            rig.ring(QUEUE);
        }
        stop.store(true, Ordering::Relaxed);
    });
}
