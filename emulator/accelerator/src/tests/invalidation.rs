//! Invalidations and changes of the memory map: what they wait for, and that nothing old is used after them.
use std::sync::atomic::{AtomicBool, Ordering};

use svadev_fabric::{InvalidateAck, InvalidateRange, InvalidateRequest, InvalidateTag, Pasid};
use svadev_spec::device::{Code, Descriptor, opcode};

use super::world::*;

const P: u32 = 3;
const SRC: u64 = 0x1_0000_0000;
const DST: u64 = 0x2_0000_0000;
const SRC_GPA: u64 = 0x100_0000;
const DST_GPA: u64 = 0x180_0000;
const MIB: u64 = 0x10_0000;

fn space() -> Option<Pasid> {
    Some(pasid(P))
}

fn world_with(change: impl FnOnce(&mut crate::FunctionSettings)) -> World {
    let mut w = World::with(change);
    w.enable(0, 8, None);
    w.map(space(), SRC, SRC_GPA, MIB);
    w.map(space(), DST, DST_GPA, MIB);
    w
}

fn copy(length: u64) -> Descriptor {
    for_process(pasid(P), Descriptor { opcode: opcode::COPY, src: SRC, dst: DST, length, ..Default::default() })
}

#[test]
fn a_slice_boundary_acknowledges_and_nothing_old_is_used_after_it() {
    let mut w = world_with(|_| ());
    w.write(SRC_GPA, &vec![0x11; usize::try_from(MIB).unwrap()]);
    w.submit(0, &[copy(MIB)]);
    assert!(w.step() && w.step() && w.step());
    let done = w.read(DST_GPA, usize::try_from(MIB).unwrap()).iter().filter(|&&b| b == 0x11).count();
    assert!(done > 0 && done < usize::try_from(MIB).unwrap(), "in the middle: {done}");
    // Both operands move to other frames.
    let (new_src, new_dst) = (0x240_0000, 0x280_0000);
    w.write(new_src, &vec![0x22; usize::try_from(MIB).unwrap()]);
    w.map(space(), SRC, new_src, MIB);
    w.map(space(), DST, new_dst, MIB);
    assert_eq!(w.invalidate(1, space(), SRC, 20), InvalidateAck::Pending);
    assert_eq!(w.invalidate(2, space(), DST, 20), InvalidateAck::Pending);
    assert!(w.mmu.completed().is_empty(), "not before the engine has said so");
    w.step();
    let mut tags = w.mmu.completed();
    tags.sort();
    assert_eq!(tags, [InvalidateTag::unit(1), InvalidateTag::unit(2)]);
    // From here on the old frames belong to somebody else.
    let mine = w.read(DST_GPA, usize::try_from(MIB).unwrap());
    w.write(SRC_GPA, &vec![0x33; usize::try_from(MIB).unwrap()]);
    w.settle();
    assert_eq!(code(&w.reap(0)[0]), Code::Success);
    assert!(
        w.read(DST_GPA, usize::try_from(MIB).unwrap()) == mine,
        "the old destination was written after the acknowledgement"
    );
    let moved = w.read(new_dst, usize::try_from(MIB).unwrap());
    assert!(!moved.contains(&0x33), "the old source was read after the acknowledgement");
    assert_eq!(moved.iter().filter(|&&b| b == 0x22).count(), usize::try_from(MIB).unwrap() - done);
    assert!(w.mmu.completed().is_empty(), "once and only once");
}

#[test]
fn a_sleeping_engine_is_not_waited_for_and_uses_nothing_old() {
    let mut w = world_with(|_| ());
    w.write(SRC_GPA, &[1; 64]);
    w.run(0, &[copy(64)]);
    w.settle();
    assert!(w.engines[0].park());
    w.mmu.map(space(), SRC, 12, Page::rw(SRC_GPA + 0x1000));
    w.write(SRC_GPA + 0x1000, &[2; 64]);
    let wakes = w.ports.wakes.load(Ordering::Relaxed);
    assert_eq!(w.invalidate(1, space(), SRC, 12), InvalidateAck::Done);
    assert_eq!(w.ports.wakes.load(Ordering::Relaxed), wakes, "nor woken");
    w.run(0, &[copy(64)]);
    assert_eq!(w.read(DST_GPA, 64), [2; 64]);
    assert!(w.mmu.completed().is_empty(), "it was done at once");
}

#[test]
fn only_the_last_engine_completes() {
    let mut w = world_with(|s| s.engines = 3);
    w.settle();
    assert!(w.engines[2].park());
    assert_eq!(w.invalidate(7, None, 0, 12), InvalidateAck::Pending);
    let now = w.now;
    w.engines[1].run(now);
    assert!(w.mmu.completed().is_empty());
    w.engines[0].run(now);
    assert_eq!(w.mmu.completed(), [InvalidateTag::unit(7)]);
    w.engines[2].run(now);
    assert!(w.mmu.completed().is_empty());
}

#[test]
fn an_engine_does_not_leave_before_it_has_answered() {
    let mut w = world_with(|_| ());
    w.settle();
    assert_eq!(w.invalidate(1, space(), SRC, 12), InvalidateAck::Pending);
    assert!(!w.engines[0].park(), "somebody waits");
    assert_eq!(w.mmu.completed(), [InvalidateTag::unit(1)]);
    assert!(w.engines[0].park());
}

#[test]
fn more_than_the_mailbox_holds_collapses_and_each_is_answered() {
    let mut w = world_with(|_| ());
    w.map(Some(pasid(P + 1)), SRC, SRC_GPA, 0x1000);
    let other = for_process(pasid(P + 1), Descriptor { opcode: opcode::CRC32C, src: SRC, length: 8, ..copy(8) });
    w.run(0, &[copy(MIB), Descriptor { dst: 0, ..other }]);
    for n in 0..500 {
        assert_eq!(w.invalidate(n, space(), SRC + n * 0x1000, 12), InvalidateAck::Pending);
    }
    w.step();
    let mut tags = w.mmu.completed();
    tags.sort();
    assert_eq!(tags, (0..500).map(InvalidateTag::unit).collect::<Vec<_>>());
    w.mmu.translated();
    w.run(0, &[Descriptor { dst: 0, ..other }]);
    assert!(!w.mmu.translated().is_empty(), "everything was dropped, the other process's too");
}

#[test]
fn an_invalidation_reaches_its_process_and_a_global_one_all() {
    let mut w = world_with(|_| ());
    w.map(Some(pasid(P + 1)), SRC, SRC_GPA, 0x1000);
    w.map(None, SRC, SRC_GPA, 0x1000);
    let crc = |space: Option<Pasid>| {
        let d = Descriptor { opcode: opcode::CRC32C, src: SRC, length: 8, ..Default::default() };
        space.map_or(d, |p| for_process(p, d))
    };
    let all = [crc(None), crc(space()), crc(Some(pasid(P + 1)))];
    let asked = |w: &mut World| {
        w.mmu.translated();
        w.run(0, &all);
        let mut spaces: Vec<_> = w.mmu.translated().iter().filter(|t| t.iova.0 == SRC).map(|t| t.pasid).collect();
        spaces.sort();
        spaces
    };
    assert_eq!(asked(&mut w).len(), 3);
    assert_eq!(asked(&mut w), [], "cached");
    let _ = w.invalidate(1, space(), SRC, 12);
    assert_eq!(asked(&mut w), [space()]);
    let _ = w.invalidate(2, None, SRC, 12);
    assert_eq!(asked(&mut w), [None], "without PASID: those that were asked for without one");
    let everything = InvalidateRequest {
        tag: InvalidateTag::unit(3),
        pasid: space(),
        global: true,
        range: InvalidateRange::Naturally { start: svadev_fabric::Iova(SRC), size_log2: 12 },
    };
    let _ = w.function.shared().invalidate(everything);
    assert_eq!(asked(&mut w).len(), 3);
}

#[test]
fn a_change_of_the_memory_map_is_released_between_slices() {
    let mut w = world_with(|_| ());
    w.submit(0, &[copy(MIB)]);
    w.step();
    assert_eq!(w.function.shared().memory_changed(42), InvalidateAck::Pending);
    assert!(w.ports.released.lock().unwrap().is_empty());
    w.mmu.translated();
    w.step();
    assert_eq!(*w.ports.released.lock().unwrap(), [42]);
    assert!(!w.mmu.translated().is_empty(), "host pointers of before are forgotten");
    w.settle();
    assert!(w.engines[0].park());
    assert_eq!(w.function.shared().memory_changed(43), InvalidateAck::Done);
    assert_eq!(*w.ports.released.lock().unwrap(), [42]);
}

#[test]
fn an_engine_that_is_gone_owes_nothing() {
    let mut w = world_with(|_| ());
    w.mmu.unmap(space(), SRC, 12);
    w.submit(0, &[copy(64)]);
    w.settle();
    assert_eq!(w.invalidate(1, space(), SRC, 12), InvalidateAck::Pending);
    w.engines.clear();
    assert_eq!(w.mmu.completed(), [InvalidateTag::unit(1)]);
    assert_eq!(w.invalidate(2, space(), SRC, 12), InvalidateAck::Done);
}

struct SetOnDrop<'a>(&'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

/// Two threads: one copies a page again and again, the other moves the page between frames, and gives each old frame away
/// once its invalidation is complete.
#[test]
fn no_copy_sees_a_frame_after_its_invalidation_completed() {
    const ROUNDS: u8 = 200;
    let mut w = world_with(|_| ());
    let (mmu, memory, shared) = (w.mmu.clone(), w.memory.clone(), w.shared());
    let frames = [0x300_0000, 0x300_1000];
    let page = |byte: u8| [byte; 0x1000];
    w.write(frames[0], &page(1));
    w.mmu.map(space(), SRC, 12, Page::rw(frames[0]));
    let (stop, gone) = (AtomicBool::new(false), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let (stop, gone) = (&stop, &gone);
        scope.spawn(move || {
            use svadev_memory::{GuestAddress, GuestMemory};
            for round in 0..ROUNDS {
                let (old, new) = (frames[usize::from(round % 2)], frames[usize::from((round + 1) % 2)]);
                memory.write(GuestAddress(new), &page(1 + round % 100)).unwrap();
                mmu.map(space(), SRC, 12, Page::rw(new));
                let tag = InvalidateTag::unit(round.into());
                let ack = shared.invalidate(InvalidateRequest {
                    tag,
                    pasid: space(),
                    global: false,
                    range: InvalidateRange::Naturally { start: svadev_fabric::Iova(SRC), size_log2: 12 },
                });
                if ack == InvalidateAck::Pending {
                    while !mmu.completed().contains(&tag) {
                        assert!(!gone.load(Ordering::Acquire), "the engine's thread left without an answer");
                        std::thread::yield_now();
                    }
                }
                // Somebody else's now.
                memory.write(GuestAddress(old), &page(0xdd)).unwrap();
                std::thread::yield_now();
            }
            stop.store(true, Ordering::Release);
        });
        // However this thread ends: the other must not wait for it for ever.
        let _leaving = SetOnDrop(gone);
        let mut copies = 0;
        while !stop.load(Ordering::Acquire) {
            let c = w.run_one(0, copy(0x1000));
            assert_eq!(code(&c), Code::Success);
            assert!(!w.read(DST_GPA, 0x1000).contains(&0xdd), "a frame was read after it was given away");
            copies += 1;
            if copies % 3 == 0 {
                w.engines[0].park();
            }
        }
    });
}
