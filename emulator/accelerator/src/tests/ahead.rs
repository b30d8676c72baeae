//! PREFETCH and DROP, and interrupts that wait.
use svadev_spec::device::{Code, Descriptor, DescriptorFlags, QueueModeration, opcode, regs};

use super::world::*;
use crate::Progress;

const BASE: u64 = 0x7000_0000;
const GPA: u64 = 0x100_0000;

fn over(opcode: u8, at: u64, length: u64, operand: u64) -> Descriptor {
    for_process(pasid(1), Descriptor { opcode, src: at, length, operand, ..Default::default() })
}

fn crc(at: u64, length: u64) -> Descriptor {
    over(opcode::CRC32C, at, length, 0)
}

#[test]
fn what_was_prefetched_hits_and_what_was_dropped_misses() {
    let mut w = World::new();
    w.enable(0, 5, None);
    w.map(Some(pasid(1)), BASE, GPA, 0x10_0000);
    w.settle();
    w.mmu.translated();
    // From the middle of a page to the middle of another: 17 pages.
    let done = w.run_one(0, over(opcode::PREFETCH, BASE + 0x800, 0x1_0000, 0));
    assert_eq!((code(&done), done.bytes_done, done.result), (Code::Success, 0x1_0000, 0));
    let asked = w.mmu.translated();
    let pages: Vec<_> = asked.iter().filter(|t| t.pasid.is_some()).map(|t| t.iova.0 >> 12).collect();
    assert_eq!(pages, (0..17).map(|n| (BASE >> 12) + n).collect::<Vec<_>>());
    assert!(asked.iter().all(|t| t.pasid.is_none() || !t.access.write));
    let _ = w.run_one(0, crc(BASE, 0x1_1000));
    assert!(w.mmu.translated().iter().all(|t| t.pasid.is_none()), "every page hits");
    let done = w.run_one(0, over(opcode::DROP, BASE + 0x1fff, 2, 0));
    assert_eq!((code(&done), done.bytes_done), (Code::Success, 2));
    let _ = w.run_one(0, crc(BASE, 0x1_1000));
    let pages: Vec<_> = w.mmu.translated().iter().filter(|t| t.pasid.is_some()).map(|t| t.iova.0).collect();
    assert_eq!(pages, [BASE + 0x1000, BASE + 0x2000]);
}

#[test]
fn a_drop_concerns_one_process_and_large_pages_too() {
    let mut w = World::new();
    w.enable(0, 5, None);
    let huge = 0x4000_0000;
    for n in [1, 2] {
        w.mmu.map(Some(pasid(n)), huge, 21, Page::rw(0x200_0000));
    }
    let other = |d: Descriptor| for_process(pasid(2), d);
    let _ = w.run(0, &[crc(huge, 8), other(crc(huge, 8))]);
    let _ = w.mmu.translated();
    // As long as there may be, with no page present elsewhere: bounded by slices, and nothing faults.
    let done = w.run_one(0, over(opcode::DROP, huge + 0x1f_ffff, 1 << 30, 0));
    assert_eq!((code(&done), done.bytes_done), (Code::Success, 1 << 30));
    let _ = w.run(0, &[crc(huge, 8), other(crc(huge, 8))]);
    let asked: Vec<_> = w.mmu.translated().iter().filter_map(|t| t.pasid).collect();
    assert_eq!(asked, [pasid(1)]);
}

#[test]
fn prefetch_asks_for_pages_and_fails_as_an_access_would() {
    let mut w = World::with(|s| s.group_pages = 8);
    w.enable(0, 5, None);
    w.mmu.set_kernel(Kernel::Serve);
    w.mmu.bind(Some(pasid(1)));
    for n in 0..4 {
        w.mmu.map_lazily(Some(pasid(1)), BASE + n * 0x1000, Page::rw(GPA + n * 0x1000));
    }
    let stop = DescriptorFlags::STOP_ON_FAULT.bits();
    let done = w.run_one(0, Descriptor { flags: stop, ..over(opcode::PREFETCH, BASE, 0x4000, 1) });
    assert_eq!((code(&done), done.result), (Code::PageFault, BASE));
    let done = w.run_one(0, over(opcode::PREFETCH, BASE, 0x4000, 1));
    assert_eq!(code(&done), Code::Success);
    assert!((0..4).all(|n| w.mmu.is_mapped(Some(pasid(1)), BASE + n * 0x1000)));
    let done = w.run_one(0, over(opcode::PREFETCH, BASE, 0x5000, 0));
    assert_eq!((code(&done), done.bytes_done, done.result), (Code::PageFault, 0x4000, BASE + 0x4000));
}

/// One completion that wants an interrupt, and how many were raised until then.
fn interrupted(w: &mut World) -> usize {
    let nop = Descriptor { flags: DescriptorFlags::INTERRUPT.bits(), ..Default::default() };
    assert_eq!(w.run(0, &[nop]).len(), 1);
    w.ports.interrupts.lock().unwrap().len()
}

#[test]
fn interrupts_wait_for_their_time_and_none_is_lost() {
    let mut w = World::new();
    let moderation = QueueModeration::new().with_interval_us(100).with_count(3);
    w.write32(World::register(0, regs::QUEUE_MODERATION), moderation.into_bits());
    assert_eq!(w.read32(World::register(0, regs::QUEUE_MODERATION)), moderation.into_bits());
    w.enable(0, 5, None);
    let start = w.now;
    assert_eq!(interrupted(&mut w), 1, "the first has nothing to wait for");
    assert_eq!(interrupted(&mut w), 1);
    let idle = w.engines[0].run(w.now);
    assert_eq!(idle, Progress::Idle { until_ns: Some(start + 100_000) });
    assert!(w.engines[0].park(), "it may sleep until then");
    w.now += 100_000;
    w.settle();
    assert_eq!(w.ports.interrupts.lock().unwrap().len(), 2);
    assert_eq!(w.engines[0].run(w.now), Progress::Idle { until_ns: None });
    assert_eq!((interrupted(&mut w), interrupted(&mut w), interrupted(&mut w)), (2, 2, 3), "three do not wait");
    assert_eq!(interrupted(&mut w), 3);
    w.write32(World::register(0, regs::QUEUE_CONTROL), 0);
    w.settle();
    assert_eq!(w.ports.interrupts.lock().unwrap().len(), 4, "a queue that ends leaves none behind");
}
