//! BARs as a driver sees them.
use svadev_spec::device::{
    BAR_DOORBELLS, BAR_MSIX, BAR_REGISTERS, DOORBELL_STRIDE, Features, ID_MAGIC, Limits, MAX_LENGTH, MSIX_PBA_OFFSET,
    MSIX_TABLE_OFFSET, doorbell, opcode, queue_error, regs,
};

use super::world::*;

#[test]
fn identity_and_limits() {
    let mut w = World::new();
    assert_eq!(w.read32(regs::ID), ID_MAGIC);
    assert_eq!(w.read32(regs::VERSION), 0x1_0003);
    assert_eq!(w.read64(regs::OPCODES), opcode::IMPLEMENTED);
    assert_eq!(w.read64(regs::MAX_LENGTH), MAX_LENGTH);
    assert_eq!((w.read32(regs::MAX_RING_LOG2), w.read32(regs::MAX_SCATTER)), (15, 1024));
    let limits = Limits::from_bits(w.read32(regs::LIMITS));
    let features = Features::PROCESS_ADDRESSES | Features::PAGE_REQUESTS | Features::MIRROR | Features::OPERAND_SPACES;
    assert_eq!(w.read64(regs::FEATURES), features.bits());
    assert_eq!((limits.queues(), limits.vectors(), limits.engines()), (4, 4, 1));
    assert_eq!(w.read64(regs::ID), 0x1_0003 << 32 | u64::from(ID_MAGIC), "two registers at once");
}

#[test]
fn other_accesses_read_zero_and_are_ignored() {
    let mut w = World::new();
    for (offset, len) in
        [(0u64, 1usize), (0, 2), (0, 3), (2, 4), (4, 8), (0, 16), (0, 0), (u64::MAX - 3, 4), (0x8000, 4)]
    {
        let mut data = vec![0xff; len];
        w.function.bar_read(BAR_REGISTERS, offset, &mut data);
        assert!(data.iter().all(|&b| b == 0), "{offset:#x} {len}");
        w.function.bar_write(BAR_REGISTERS, offset, &vec![0xff; len]);
    }
    w.function.bar_write(BAR_REGISTERS, regs::CONTROL, &[0]);
    assert_eq!(w.read32(regs::CONTROL), 1, "one byte is no register access");
    let mut data = [0xff; 4];
    w.function.bar_read(5, 0, &mut data);
    assert_eq!(data, [0; 4]);
}

#[test]
fn queue_registers_are_locked_while_it_is_enabled() {
    let mut w = World::new();
    let at = |register| World::register(2, register);
    w.write32(at(regs::QUEUE_SQ_BASE), 0x4000);
    w.write32(at(regs::QUEUE_SQ_BASE) + 4, 1);
    assert_eq!(w.read64(at(regs::QUEUE_SQ_BASE)), 0x1_0000_4000);
    w.enable(2, 4, None);
    w.write64(at(regs::QUEUE_SQ_BASE), 0);
    w.write32(at(regs::QUEUE_SIZE), 0);
    assert_eq!(w.read64(at(regs::QUEUE_SQ_BASE)), World::sq_base(2));
    assert_eq!(w.read32(at(regs::QUEUE_SIZE)), 0x404);
    w.write32(World::register(4, regs::QUEUE_SIZE), 5);
    assert_eq!(w.read32(World::register(4, regs::QUEUE_SIZE)), 0, "there is no queue 4");
}

#[test]
fn a_bad_configuration_does_not_enable() {
    let mut w = World::new();
    let at = |register| World::register(1, register);
    w.write32(at(regs::QUEUE_SIZE), 0x1010);
    w.write32(at(regs::QUEUE_CONTROL), 1);
    assert_eq!(w.status(1).error(), queue_error::BAD_CONFIG);
    assert!(!w.status(1).enabled());
    assert_eq!(w.read32(at(regs::QUEUE_CONTROL)), 0);
    w.enable(1, 4, None);
    assert_eq!(w.status(1).error(), queue_error::NONE);
}

#[test]
fn doorbells_and_wake_pages_by_trapped_access() {
    let mut w = World::new();
    let wakes = |w: &World| w.ports.wakes.load(std::sync::atomic::Ordering::Relaxed);
    w.function.bar_write(BAR_DOORBELLS, DOORBELL_STRIDE + doorbell::SQ_TAIL, &7u32.to_le_bytes());
    assert_eq!(w.word(1, doorbell::SQ_TAIL), 7);
    let mut data = [0; 8];
    w.function.bar_read(BAR_DOORBELLS, DOORBELL_STRIDE, &mut data);
    assert_eq!(data, [7, 0, 0, 0, 0, 0, 0, 0]);
    let before = wakes(&w);
    let half = w.function.bar_size(BAR_DOORBELLS) / 2;
    for (offset, data) in [(half, &[0u8][..]), (half + 3 * DOORBELL_STRIDE + 0xff8, &[0; 8]), (half + 1, &[0; 2])] {
        w.function.bar_write(BAR_DOORBELLS, offset, data);
    }
    w.write32(regs::WAKE, 3);
    assert_eq!(wakes(&w), before + 4);
    w.write32(regs::WAKE, 4);
    w.function.bar_write(BAR_DOORBELLS, 2 * half, &[1]);
    assert_eq!(wakes(&w), before + 4, "there is no queue 4");
}

#[test]
fn the_msi_x_table_is_kept_and_nothing_is_pending() {
    let mut w = World::new();
    let table = u64::from(MSIX_TABLE_OFFSET);
    w.function.bar_write(BAR_MSIX, table + 16, &[1, 2, 3, 4]);
    w.function.bar_write(BAR_MSIX, table + 62, &[1, 2, 3, 4]);
    w.function.bar_write(BAR_MSIX, u64::from(MSIX_PBA_OFFSET), &[0xff; 8]);
    let mut data = [0xff; 8];
    w.function.bar_read(BAR_MSIX, table + 16, &mut data);
    assert_eq!(data, [1, 2, 3, 4, 0, 0, 0, 0]);
    w.function.bar_read(BAR_MSIX, u64::from(MSIX_PBA_OFFSET), &mut data);
    assert_eq!(data, [0; 8]);
}
