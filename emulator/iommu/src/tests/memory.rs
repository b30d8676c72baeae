//! Memory that leaves the map between two requests.
use std::sync::Arc;

use svadev_fabric::testing::Silent;
use svadev_fabric::{Access, Iova};
use svadev_memory::{GuestAddress, Mappings, MemoryMap, Region};
use svadev_spec::vtd::FaultReason;
use svadev_spec::vtd::registers::offset;

use super::world::{DEVICE, PASID};
use crate::{Blocked, Unit, UnitConfig};

const BYTES: u64 = 0x10_0000;

#[test]
fn memory_that_is_gone_is_not_kept() {
    let mappings = Mappings::new();
    let map = Arc::new(MemoryMap::new(mappings.clone()));
    let file = tempfile::tempfile().unwrap();
    file.set_len(BYTES).unwrap();
    let gpa = GuestAddress(0);
    map.map(Region { gpa, size: BYTES, offset: 0, read: true, write: true, fd: Some(file.into()) }).unwrap();
    let mut unit = Unit::new(UnitConfig::default(), Arc::clone(&map));
    unit.write_register(offset::RTADDR, &(0x1000u64 | 1 << 10).to_le_bytes(), &Silent);
    for command in [1u32 << 30, 1 << 31] {
        unit.write_register(offset::GCMD, &command.to_le_bytes(), &Silent);
    }
    let access = |unit: &mut Unit<_>| unit.access(DEVICE, Some(PASID), Iova(0), Access::READ, &Silent).unwrap_err();
    assert_eq!(access(&mut unit), Blocked::Fault(FaultReason::RootNotPresent));

    drop(map.unmap(gpa, BYTES).unwrap());
    unit.memory_changed();
    assert!(mappings.is_empty(), "the unit keeps memory that it was told is gone");
    assert_eq!(access(&mut unit), Blocked::Fault(FaultReason::RootAccess), "and does not see it");
}
