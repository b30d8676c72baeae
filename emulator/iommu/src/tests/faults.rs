use svadev_fabric::Access;
use svadev_spec::vtd::registers::{FaultStatus, offset};
use svadev_spec::vtd::tables::Level;

use super::world::{DEVICE, PASID, World};
use crate::{FAULT_RECORD_OFFSET, FaultReason, UnitConfig};

const MASKED: u32 = 1 << 31;
const PENDING: u32 = 1 << 30;

fn fault(world: &mut World, iova: u64, access: Access) {
    assert!(world.access(Some(PASID), iova, access).is_err());
}

#[test]
fn a_record_tells_who_what_and_where() {
    let mut world = World::new();
    world.bind_first_stage(Level::FOUR);
    fault(&mut world, 0x7fff_1234, Access::WRITE);
    let (low, high) = world.take_fault_record().unwrap();
    assert_eq!(low.fault_info(), 0x7fff1);
    assert_eq!(high.source_id(), DEVICE.0);
    assert_eq!((high.pasid_present(), high.pasid()), (true, PASID.get()));
    assert_eq!((high.type1(), high.type2(), high.address_type()), (false, false, 0), "a write, untranslated");
    assert_eq!(high.fault_reason(), FaultReason::FirstStageNotPresent.code());
    assert_eq!(world.ports.interrupts.borrow()[0].0, Some(DEVICE), "the event goes out through the function");
    fault(&mut world, 0, Access { execute: true, privileged: true, ..Access::READ });
    let (_, high) = world.take_fault_record().unwrap();
    assert_eq!((high.type1(), high.execute(), high.privileged()), (true, true, true));
    fault(&mut world, 0, Access::READ_WRITE);
    let (_, high) = world.take_fault_record().unwrap();
    assert_eq!((high.type1(), high.type2()), (true, true), "an AtomicOp");
    assert!(world.translated(0xfee0_0000, Access::READ_WRITE).is_err());
    let (_, high) = world.take_fault_record().unwrap();
    assert_eq!((high.type1(), high.type2(), high.address_type()), (true, true, 2), "a translated one");
    let entry = world.pasid_entry(DEVICE, PASID.get());
    world.store(entry, 0);
    world.submit_and_wait(&[[7 | 3 << 4, 0]]);
    for (access, type1) in [(Access::READ, true), (Access::WRITE, false), (Access::READ_WRITE, false)] {
        assert!(world.translate(Some(PASID), 0x1000, access).is_err());
        let (_, high) = world.take_fault_record().unwrap();
        assert_eq!(high.address_type(), 1, "a translation request");
        assert_eq!((high.type1(), high.type2()), (type1, false), "of {access:?}");
    }
    let _ = world.access(None, 0x1000, Access::READ);
    assert!(!world.take_fault_record().unwrap().1.pasid_present());
}

#[test]
fn records_fill_up_overflow_and_start_over() {
    let mut world = World::with(UnitConfig { fault_records: 4, ..UnitConfig::default() });
    world.bind_first_stage(Level::FOUR);
    for i in 0..6 {
        fault(&mut world, i << 12, Access::READ);
    }
    let status = FaultStatus::from(world.read32(offset::FSTS));
    assert!(status.primary_fault_overflow() && status.primary_pending_fault());
    assert_eq!(world.ports.take_interrupts(), [1], "one event for all");
    assert_eq!((world.unit.counters().faults_recorded, world.unit.counters().faults_lost), (4, 2));
    // Software clears them all in turn from FRI, as Linux does.
    for i in 0..4 {
        let at = FAULT_RECORD_OFFSET + 16 * i;
        assert_eq!(world.read64(at) >> 12, i);
        world.write32(at + 12, 1 << 31);
        assert_eq!(world.read32(at + 12) >> 31, 0);
    }
    fault(&mut world, 0x9000, Access::READ);
    assert_eq!(world.unit.counters().faults_lost, 3, "overflow holds until it is cleared");
    world.write32(offset::FSTS, 1);
    assert_eq!(world.read32(offset::FSTS) & 0xff, 0);
    fault(&mut world, 0xa000, Access::READ);
    assert_eq!(world.take_fault(), Some((FaultReason::FirstStageNotPresent.code(), 0xa000)));
    assert_eq!(world.ports.take_interrupts(), [1]);
}

#[test]
fn the_first_pending_record_is_told_around_the_end() {
    let mut world = World::with(UnitConfig { fault_records: 2, ..UnitConfig::default() });
    world.bind_first_stage(Level::FOUR);
    for i in 0..5 {
        fault(&mut world, i << 12, Access::READ);
        let status = FaultStatus::from(world.read32(offset::FSTS));
        assert_eq!(u64::from(status.fault_record_index()), i % 2);
        assert_eq!(world.take_fault().unwrap().1, i << 12);
    }
}

#[test]
fn a_masked_event_is_held_back_and_sent_on_unmasking() {
    let mut world = World::new();
    world.bind_first_stage(Level::FOUR);
    world.write32(offset::FECTL, MASKED);
    fault(&mut world, 0, Access::READ);
    assert_eq!(world.ports.take_interrupts(), [0; 0]);
    assert_eq!(world.read32(offset::FECTL), MASKED | PENDING);
    world.write32(offset::FECTL, 0);
    assert_eq!(world.ports.take_interrupts(), [1]);
    assert_eq!(world.read32(offset::FECTL), 0);
    // Serviced while masked: nothing is left to send.
    world.take_fault();
    world.write32(offset::FECTL, MASKED);
    fault(&mut world, 0, Access::READ);
    world.take_fault();
    assert_eq!(world.read32(offset::FECTL), MASKED);
    world.write32(offset::FECTL, 0);
    assert_eq!(world.ports.take_interrupts(), [0; 0]);
}

#[test]
fn records_are_read_only_but_for_f() {
    let mut world = World::new();
    world.bind_first_stage(Level::FOUR);
    fault(&mut world, 0x5000, Access::READ);
    let before = world.read64(FAULT_RECORD_OFFSET + 8);
    world.write64(FAULT_RECORD_OFFSET, u64::MAX);
    world.write32(FAULT_RECORD_OFFSET + 8, u32::MAX);
    world.write32(FAULT_RECORD_OFFSET + 12, 0x7fff_ffff);
    assert_eq!(world.read64(FAULT_RECORD_OFFSET), 0x5000);
    assert_eq!(world.read64(FAULT_RECORD_OFFSET + 8), before);
    world.write32(offset::FSTS, 2);
    assert_eq!(world.read32(offset::FSTS) & 2, 2, "PPF follows the records");
}

#[test]
fn a_pending_fault_event_is_repeated_until_software_has_seen_the_fault() {
    let mut world = World::new();
    world.bind_first_stage(Level::FOUR);
    fault(&mut world, 0x1000, Access::READ);
    world.ports.take_interrupts();
    world.unit.repeat_interrupts(&world.ports);
    assert_eq!(world.ports.interrupts.borrow()[0].0, None, "not through the function that stopped");
    assert_eq!(world.ports.take_interrupts(), [1]);
    assert!(world.take_fault_record().is_some());
    world.unit.repeat_interrupts(&world.ports);
    assert_eq!(world.ports.take_interrupts(), [0; 0]);
}
