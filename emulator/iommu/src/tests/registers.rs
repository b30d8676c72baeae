use svadev_fabric::{Access, Bdf, Iova};
use svadev_spec::vtd::registers::offset;

use super::world::{DEVICE, OTHER, Ports, World};
use crate::{FAULT_RECORD_OFFSET, IOTLB_REGISTER_OFFSET, REGISTER_SPACE, UnitConfig, VERSION};

#[test]
fn capabilities_are_what_linux_needs_for_sva() {
    let mut world = World::cold(UnitConfig::default());
    let (cap, ecap) = (world.read64(offset::CAP), world.read64(offset::ECAP));
    assert_eq!(world.read32(offset::VER), VERSION);
    // The driver's own macros: cap_fl5lp_support, cap_fl1gp_support, cap_num_fault_regs, cap_fault_reg_offset, …
    assert_eq!((cap >> 60 & 1, cap >> 56 & 1, cap >> 39 & 1, cap >> 7 & 1), (1, 1, 1, 0), "FS5LP, FS1GP, PSI, CM");
    assert_eq!((cap >> 40 & 0xff) + 1, 16);
    assert_eq!((cap >> 24 & 0x3ff) * 16, FAULT_RECORD_OFFSET);
    assert_eq!(cap >> 8 & 0x1f, 0b1110, "SAGAW");
    assert_eq!((cap >> 16 & 0x3f) + 1, 57, "MGAW");
    for (bit, name) in
        [(0, "C"), (1, "QI"), (2, "DT"), (6, "PT"), (29, "PRS"), (40, "PASID"), (42, "PDS"), (43, "SMTS")]
    {
        assert_eq!(ecap >> bit & 1, 1, "ECAP.{name}");
    }
    for (bit, name) in [(46, "SSTS"), (47, "FSTS"), (48, "SMPWCS"), (45, "SSADS"), (26, "NEST")] {
        assert_eq!(ecap >> bit & 1, 1, "ECAP.{name}");
    }
    assert_eq!(ecap >> 3 & 1, 0, "no interrupt remapping");
    assert_eq!((ecap >> 35 & 0x1f) + 1, 20, "PSS");
    assert_eq!((ecap >> 8 & 0x3ff) * 16, IOTLB_REGISTER_OFFSET);
}

#[test]
fn four_level_units_say_so() {
    let mut world = World::cold(UnitConfig { levels5: false, pages_1gib: false, ..UnitConfig::default() });
    let cap = world.read64(offset::CAP);
    assert_eq!((cap >> 60 & 1, cap >> 56 & 1, cap >> 8 & 0x1f, (cap >> 16 & 0x3f) + 1), (0, 0, 0b0110, 48));
}

#[test]
fn odd_accesses_read_zero_and_write_nothing() {
    let mut world = World::cold(UnitConfig::default());
    world.write64(offset::RTADDR, 0x1234_5000);
    for (at, len) in [(offset::CAP, 1), (offset::CAP, 2), (offset::CAP + 4, 8), (offset::CAP + 2, 4), (0xfff, 4)] {
        let mut data = vec![0xaa; len];
        world.unit.read_register(at, &mut data);
        assert!(data.iter().all(|&b| b == 0), "{at:#x}, {len} bytes");
        world.unit.write_register(at, &data, &world.ports);
    }
    for (at, len) in [(offset::RTADDR, 2), (offset::RTADDR + 4, 8), (offset::RTADDR, 16), (offset::RTADDR, 0)] {
        world.unit.write_register(at, &vec![0xff; len], &Ports::default());
    }
    assert_eq!(world.read64(offset::RTADDR), 0x1234_5000);
    let mut beyond = [1; 8];
    world.unit.read_register(u64::MAX - 7, &mut beyond);
    assert_eq!(beyond, [0; 8]);
}

#[test]
fn halves_make_a_whole() {
    let mut world = World::cold(UnitConfig::default());
    world.write32(offset::RTADDR + 4, 0x12);
    world.write32(offset::RTADDR, 0x3456_7c00);
    assert_eq!(world.read64(offset::RTADDR), 0x12_3456_7c00);
    assert_eq!(world.read32(offset::RTADDR + 4), 0x12);
    let mut both = [0; 8];
    world.unit.read_register(offset::GCMD, &mut both);
    assert_eq!(both, [0; 8], "GCMD is write-only, GSTS is clear");
}

#[test]
fn every_offset_takes_anything() {
    let mut world = World::new();
    for at in (0..REGISTER_SPACE).step_by(4) {
        for value in [0, u32::MAX, 0x5555_5555] {
            world.write32(at, value);
            world.read32(at);
        }
        world.write64(at & !7, u64::MAX);
        world.read64(at & !7);
    }
}

#[test]
fn root_pointer_takes_effect_with_srtp() {
    let mut world = World::cold(UnitConfig::default());
    assert_eq!(world.read32(offset::GSTS), 0);
    world.write64(offset::RTADDR, 0x1400);
    assert_eq!(world.read32(offset::GSTS), 0);
    world.write32(offset::GCMD, 1 << 30);
    assert_eq!(world.read32(offset::GSTS), 1 << 30);
    // Compatibility format, interrupt remapping and write buffers are not there and do not stick.
    world.write32(offset::GCMD, 1 << 23 | 1 << 24 | 1 << 25 | 1 << 27);
    assert_eq!(world.read32(offset::GSTS), 1 << 30);
}

#[test]
fn register_commands_work_while_the_queue_is_off() {
    let mut world = World::cold(UnitConfig::default());
    world.write64(offset::CCMD, 1 << 63 | 1 << 61);
    assert_eq!(world.read64(offset::CCMD), 1 << 61 | 1 << 59, "ICC clear, CAIG tells");
    // In halves: the command starts with the upper one.
    world.write32(offset::CCMD, 0x10 << 16);
    world.write32(offset::CCMD + 4, 1 << 31 | 3 << 29);
    assert_eq!(world.read64(offset::CCMD) >> 59, 0b0_11_11);
    let iotlb = IOTLB_REGISTER_OFFSET + 8;
    for granularity in 1..=3u64 {
        world.write64(IOTLB_REGISTER_OFFSET, 0x7000);
        world.write64(iotlb, 1 << 63 | granularity << 60);
        assert_eq!(world.read64(iotlb) >> 57, granularity << 3 | granularity);
    }
    // An address mask beyond CAP.MAMV is refused.
    world.write64(IOTLB_REGISTER_OFFSET, 52);
    world.write64(iotlb, 1 << 63 | 3 << 60);
    assert_eq!(world.read64(iotlb) >> 57, 3 << 3);
    world.write32(offset::GCMD, 1 << 26);
    world.write64(offset::CCMD, 1 << 63 | 1 << 61);
    assert_eq!(world.read64(offset::CCMD), 1 << 61, "refused while the queue is on");
    world.write64(offset::RTADDR, 1 << 10);
    world.write32(offset::GCMD, 1 << 30);
    world.write64(offset::CCMD, 1 << 63 | 1 << 61);
    assert_eq!(world.read64(offset::CCMD), 1 << 61, "refused in scalable mode");
    world.write64(iotlb, 1 << 63 | 1 << 60);
    assert_eq!(world.read64(iotlb), 1 << 60, "the same");
}

#[test]
fn a_context_command_of_a_device_takes_its_entry_only() {
    let mut world = World::new();
    let (root_table, contexts) = (world.page(), world.page());
    let at = |bdf: Bdf| contexts + 16 * u64::from(bdf.devfn());
    world.write32(offset::GCMD, 1 << 31);
    world.store(root_table, contexts | 1);
    // TT 2, domain 7: passed through.
    for bdf in [DEVICE, OTHER] {
        world.store(at(bdf) + 8, 2 | 7 << 8);
        world.store(at(bdf), 1 | 2 << 2);
    }
    world.write64(offset::RTADDR, root_table);
    world.write32(offset::GCMD, 1 << 30 | 1 << 31);
    let passes =
        |world: &mut World, bdf| world.unit.access(bdf, None, Iova(0x5000), Access::READ, &world.ports).is_ok();
    assert!(passes(&mut world, DEVICE) && passes(&mut world, OTHER));
    for bdf in [DEVICE, OTHER] {
        world.store(at(bdf), 0);
    }
    assert!(passes(&mut world, DEVICE) && passes(&mut world, OTHER), "cached");
    // ICC, CIRG 3; the domain is another number than the source.
    world.write64(offset::CCMD, 1 << 63 | 3 << 61 | u64::from(DEVICE.0) << 16 | 7);
    assert_eq!(world.read64(offset::CCMD) >> 59, 0b0_11_11);
    assert!(!passes(&mut world, DEVICE) && passes(&mut world, OTHER));
}

#[test]
fn the_queue_address_is_fixed_while_the_queue_runs() {
    let mut world = World::new();
    let before = world.read64(offset::IQA);
    world.write64(offset::IQA, 0x55_5000);
    world.write32(offset::IQA, 0x66_6000);
    assert_eq!(world.read64(offset::IQA), before);
    world.submit_and_wait(&[]);
    world.write32(offset::GCMD, 1 << 31);
    world.write64(offset::IQA, 0x55_5000);
    assert_eq!(world.read64(offset::IQA), 0x55_5000);
}

/// Xen writes address and upper address of an event at once.
#[test]
fn a_wide_write_reaches_both_registers() {
    let mut world = World::cold(UnitConfig::default());
    for control in [offset::FECTL, offset::IECTL, offset::PECTL] {
        world.write64(control + 8, 0x12_fee0_1000);
        assert_eq!((world.read32(control + 8), world.read32(control + 12)), (0xfee0_1000, 0x12), "{control:#x}");
    }
}

#[test]
fn reset_is_power_on() {
    let mut world = World::new();
    world.unit.reset();
    let mut fresh = World::cold(UnitConfig::default());
    for at in (0..REGISTER_SPACE).step_by(4) {
        assert_eq!(world.read32(at), fresh.read32(at), "{at:#x}");
    }
    assert_eq!(world.read32(offset::FECTL), 1 << 31, "IM is set");
}

#[test]
fn what_is_not_there_reads_zero() {
    let mut world = World::cold(UnitConfig::default());
    let (cap, ecap) = (world.read64(offset::CAP), world.read64(offset::ECAP));
    for (bit, name) in [(5, "PLMR"), (6, "PHMR"), (7, "CM"), (59, "PI"), (61, "ECMDS")] {
        assert_eq!(cap >> bit & 1, 0, "CAP.{name}");
    }
    for (bit, name) in [(3, "IR"), (4, "EIM"), (25, "MTS"), (44, "VCS"), (51, "PMS")] {
        assert_eq!(ecap >> bit & 1, 0, "ECAP.{name}");
    }
    // PMEN to PHMLIMIT, IRTA, MTRRCAP, PERFCAP, ECMD to ECCAP, VCMD to VCCAP: writable nowhere.
    for at in [0x64, 0x68, 0x6c, 0x70, 0x78, 0xb8, 0x100, 0x300, 0x400, 0x408, 0x410, 0x430, 0xe00, 0xe10, 0xe30] {
        world.write32(at, u32::MAX);
        assert_eq!(world.read32(at), 0, "{at:#x}");
    }
    // SIRTP, IRE, CFI: no status ever says that they were taken.
    world.write32(offset::GCMD, 1 << 25 | 1 << 24 | 1 << 23);
    assert_eq!(world.read32(offset::GSTS), 0);
}
