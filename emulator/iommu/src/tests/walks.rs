use svadev_fabric::{Access, AtsError, Translation};
use svadev_spec::vtd::registers::offset;
use svadev_spec::vtd::tables::Level;

use super::world::{
    A, D, DEVICE, DOMAIN, Mode, P, PASID, PS, RAM, RW, SS_R, SS_W, US, USER_PAGE, World, XD, pasid_cache,
};
use crate::{FaultReason, UnitConfig};

const PRIVILEGED_READ: Access = Access { privileged: true, ..Access::READ };
const PRIVILEGED_WRITE: Access = Access { privileged: true, ..Access::WRITE };
const EXECUTE: Access = Access { execute: true, ..Access::READ };

/// A high address, so that every level has an index of its own.
const IOVA: u64 = 0x0012_3456_789a_b000;
const IOVA4: u64 = 0x7f12_3456_7000;

#[test]
fn first_stage_pages_of_every_size_at_both_depths() {
    for (top, iova) in [(Level::FIVE, IOVA), (Level::FOUR, IOVA4)] {
        for (size_log2, frame) in [(12, 0x1_2345_6000u64), (21, 0x1_2340_0000), (30, 0x1_4000_0000)] {
            let mut world = World::new();
            let root = world.bind_first_stage(top);
            world.map(root, top, iova, frame | USER_PAGE, size_log2);
            assert_eq!(world.translate_ok(iova, Access::READ_WRITE), (frame, size_log2));
            assert_eq!(world.translate_ok(iova, Access::READ_WRITE), (frame, size_log2), "from the IOTLB");
            assert_eq!(world.unit.counters().walks, 1);
        }
    }
}

#[test]
fn accessed_and_dirty_are_set_as_due() {
    let mut world = World::new();
    let root = world.bind_first_stage(Level::FIVE);
    let leaf = world.map(root, Level::FIVE, IOVA, 0x5000 | USER_PAGE, 12);
    let top = root + 8 * (IOVA >> 48 & 511);
    let read_only = world.translate(Some(PASID), IOVA, Access::READ).unwrap();
    assert_eq!(read_only.access, Access::READ, "No Write gives no right to write");
    assert_eq!(world.load(leaf), 0x5000 | USER_PAGE | A);
    assert_eq!(world.load(top) & (A | D), A);
    // The IOTLB has it, but a request that may write walks again to set dirty.
    assert_eq!(world.translate_ok(IOVA, Access::READ_WRITE), (0x5000, 12));
    assert_eq!(world.load(leaf), 0x5000 | USER_PAGE | A | D);
    assert_eq!(world.load(top) & (A | D), A, "dirty is the leaf's alone");
}

#[test]
fn extended_accessed_is_set_with_eafe() {
    let mut world = World::new();
    let root = world.bind_first_stage(Level::FOUR);
    let entry = world.pasid_entry(DEVICE, PASID.get());
    world.store(entry + 16, world.load(entry + 16) | 1 << 7);
    let leaf = world.map(root, Level::FOUR, 0x7000, 0x5000 | USER_PAGE, 12);
    world.translate_ok(0x7000, Access::READ);
    assert_eq!(world.load(leaf), 0x5000 | USER_PAGE | A | 1 << 10);
}

#[test]
fn nothing_is_set_where_walks_do_not_snoop() {
    let mut world = World::new();
    let root = world.bind_first_stage(Level::FOUR);
    let entry = world.pasid_entry(DEVICE, PASID.get());
    world.store(entry + 8, DOMAIN.into());
    world.map(root, Level::FOUR, 0x7000, 0x5000 | USER_PAGE, 12);
    assert_eq!(world.blocked(0x7000, Access::READ), FaultReason::FirstStageUpdateNotSnooped);
}

#[test]
fn rights_are_those_of_every_level() {
    let mut world = World::new();
    let root = world.bind_first_stage(Level::FOUR);
    world.map(root, Level::FOUR, 0x7000, 0x5000 | P | US, 12);
    world.map(root, Level::FOUR, 0x8000, 0x6000 | P | RW, 12);
    assert_eq!(world.translate(Some(PASID), 0x7000, Access::READ_WRITE).unwrap().access, Access::READ);
    assert_eq!(world.take_fault(), None, "a translation request takes what it finds");
    assert_eq!(world.blocked(0x7000, Access::WRITE), FaultReason::NoWrite);
    assert_eq!(world.blocked(0x8000, Access::READ), FaultReason::UserToSupervisor);
    assert_eq!(world.translate(Some(PASID), 0x8000, Access::READ), Ok(Translation::NOT_PRESENT));
    let leaf = world.map(root, Level::FOUR, 0x4000_0000, 0x5000 | USER_PAGE, 12);
    let level3 = root_entry(&world, root, 0x4000_0000);
    world.store(level3, world.load(level3) & !RW);
    assert_eq!(world.blocked(0x4000_0000, Access::WRITE), FaultReason::NoWrite);
    assert_eq!(world.load(leaf) & (A | D), 0, "a refused access leaves no trace in the leaf");
}

/// Where the level-3 entry for `iova` is in four-level tables.
fn root_entry(world: &World, root: u64, iova: u64) -> u64 {
    let table = world.load(root + 8 * (iova >> 39 & 511)) & 0xf_ffff_ffff_f000;
    table + 8 * (iova >> 30 & 511)
}

#[test]
fn recoverable_faults_are_not_recorded_for_translation_requests() {
    let mut world = World::new();
    world.bind_first_stage(Level::FOUR);
    for iova in [0x7000, 0x8000_0000_0000, u64::MAX << 12, 1 << 63] {
        assert_eq!(world.translate(Some(PASID), iova, Access::READ), Ok(Translation::NOT_PRESENT));
    }
    for access in [PRIVILEGED_READ, EXECUTE] {
        assert_eq!(world.translate(Some(PASID), 0x7000, access), Ok(Translation::NOT_PRESENT));
    }
    assert_eq!(world.take_fault(), None);
    assert_eq!(world.unit.counters().translations_not_present, 6);
}

#[test]
fn addresses_must_be_canonical() {
    for (top, bad, good) in
        [(Level::FOUR, 0x8000_0000_0000u64, 0xffff_8000_0000_0000u64), (Level::FIVE, 1 << 56, 0xff << 56)]
    {
        let mut world = World::new();
        world.bind_first_stage(top);
        assert_eq!(world.blocked(bad, Access::READ), FaultReason::NotCanonical);
        assert_eq!(world.blocked(good, Access::READ), FaultReason::FirstStageNotPresent);
    }
}

#[test]
fn supervisor_requests_need_sre_and_honour_wpe() {
    let mut world = World::new();
    let root = world.bind_first_stage(Level::FOUR);
    world.map(root, Level::FOUR, 0x7000, 0x5000 | P | XD, 12);
    assert_eq!(world.blocked(0x7000, PRIVILEGED_READ), FaultReason::SupervisorDisabled);
    let entry = world.pasid_entry(DEVICE, PASID.get());
    let qw2 = world.load(entry + 16);
    for (bits, write) in [(1, true), (1 | 1 << 4, false)] {
        world.store(entry + 16, qw2 | bits);
        world.submit_and_wait(&[pasid_cache(DOMAIN, 5)]);
        assert!(world.access(Some(PASID), 0x7000, PRIVILEGED_READ).is_ok());
        assert_eq!(world.access(Some(PASID), 0x7000, PRIVILEGED_WRITE).is_ok(), write, "WPE {bits:#x}");
    }
}

#[test]
fn execute_requests_need_ere_and_a_page_that_allows_it() {
    let mut world = World::new();
    let root = world.bind_first_stage(Level::FOUR);
    world.map(root, Level::FOUR, 0x7000, 0x5000 | USER_PAGE, 12);
    world.map(root, Level::FOUR, 0x8000, 0x6000 | USER_PAGE | XD, 12);
    assert_eq!(world.blocked(0x7000, EXECUTE), FaultReason::ExecuteDisabled);
    let entry = world.pasid_entry(DEVICE, PASID.get());
    world.store(entry + 16, world.load(entry + 16) | 2);
    world.submit_and_wait(&[pasid_cache(DOMAIN, 5)]);
    assert!(world.access(Some(PASID), 0x7000, EXECUTE).unwrap().access.execute);
    assert_eq!(world.blocked(0x8000, EXECUTE), FaultReason::NoExecute);
    let completion = world.translate(Some(PASID), 0x8000, EXECUTE).unwrap();
    assert!(completion.access.read && !completion.access.execute);
}

#[test]
fn units_without_supervisor_or_execute_requests_reserve_the_bits() {
    for bit in [1, 2] {
        let mut world =
            World::with(UnitConfig { supervisor_requests: false, execute_requests: false, ..UnitConfig::default() });
        world.bind_first_stage(Level::FOUR);
        let entry = world.pasid_entry(DEVICE, PASID.get());
        world.store(entry + 16, world.load(entry + 16) | bit);
        assert_eq!(world.blocked(0, Access::READ), FaultReason::PasidTableReserved);
    }
}

#[test]
fn reserved_bits_of_first_stage_entries_are_checked() {
    let config = UnitConfig { host_address_width: 40, ..UnitConfig::default() };
    // (level of the entry, bits, size of the leaf)
    for (level, bits, size_log2) in [
        (Level::ONE, 1u64 << 40, 12),
        (Level::ONE, 1 << 51, 12),
        (Level::TWO, 1 << 13, 21),
        (Level::TWO, 1 << 20, 21),
        (Level::THREE, 1 << 29, 30),
        (Level::THREE, 1 << 13, 30),
        (Level::FOUR, PS, 12),
        (Level::FIVE, PS, 12),
    ] {
        let mut world = World::with(config.clone());
        let root = world.bind_first_stage(Level::FIVE);
        let leaf = world.map(root, Level::FIVE, 0, USER_PAGE | 0x4000_0000, size_log2);
        assert_eq!(world.translate_ok(0, Access::READ).1, size_log2);
        world.submit_and_wait(&[[2 | 1 << 4, 0]]);
        let at = match level {
            Level::FIVE => root,
            Level::FOUR => world.load(root) & 0xf_ffff_ffff_f000,
            _ => leaf,
        };
        world.store(at, world.load(at) | bits);
        assert_eq!(world.blocked(0, Access::READ), FaultReason::FirstStageReserved, "level {level}, {bits:#x}");
    }
    // Bit 12 of a large page is PAT, and bits 52 to 62 are software's.
    let mut world = World::with(config);
    let root = world.bind_first_stage(Level::FIVE);
    world.map(root, Level::FIVE, 0, USER_PAGE | 1 << 12 | 0x7ff << 52 | 0x20_0000, 21);
    assert_eq!(world.translate_ok(0, Access::READ), (0x20_0000, 21));
}

#[test]
fn one_gib_pages_can_be_left_out() {
    let mut world = World::with(UnitConfig { pages_1gib: false, ..UnitConfig::default() });
    let root = world.bind_first_stage(Level::FOUR);
    world.map(root, Level::FOUR, 0, USER_PAGE, 30);
    assert_eq!(world.blocked(0, Access::READ), FaultReason::FirstStageReserved);
}

#[test]
fn second_stage_pages_of_2_mib_can_be_left_out() {
    let mut world = World::with(UnitConfig { pages_2mib: false, ..UnitConfig::default() });
    assert_eq!((world.read64(offset::CAP) >> 34 & 0xf, world.read64(offset::CAP) >> 56 & 1), (0, 0), "SSLPS and FS1GP");
    for (size_log2, frame) in [(21, 0x20_0000), (30, 0x4000_0000)] {
        let root = world.page();
        world.bind(DEVICE, PASID.get(), DOMAIN, Mode::Second { root, top: Level::FOUR });
        world.map(root, Level::FOUR, 0, frame | SS_R, size_log2);
        assert_eq!(world.blocked(0, Access::READ), FaultReason::SecondStageReserved);
        world.submit_and_wait(&[pasid_cache(DOMAIN, PASID.get())]);
    }
    // The first stage has them always.
    let root = world.bind_first_stage(Level::FOUR);
    world.map(root, Level::FOUR, 0, 0x20_0000 | USER_PAGE, 21);
    assert_eq!(world.translate_ok(0, Access::READ), (0x20_0000, 21));
}

#[test]
fn tables_outside_memory_or_at_themselves_end_in_a_fault() {
    let mut world = World::new();
    let root = world.bind_first_stage(Level::FIVE);
    world.store(root, RAM | USER_PAGE);
    assert_eq!(world.blocked(0, Access::READ), FaultReason::FirstStageAccess);
    assert_eq!(world.translate(Some(PASID), 0, Access::READ), Err(AtsError::CompleterAbort));
    world.take_fault();
    // Every level is the root: the walk still has only five steps, and ends at the root as a page.
    world.store(root, root | USER_PAGE);
    assert_eq!(world.translate_ok(0, Access::READ), (root, 12));
}

#[test]
fn second_stage_pages_of_every_size_and_depth() {
    for top in [Level::THREE, Level::FOUR, Level::FIVE] {
        for (size_log2, frame) in [(12, 0x1_2345_6000u64), (21, 0x1_2340_0000), (30, 0x1_4000_0000)] {
            let mut world = World::new();
            let root = world.page();
            world.bind(DEVICE, 5, 2, Mode::Second { root, top });
            let leaf = world.map(root, top, 0x40_0000_0000, frame | SS_R | SS_W, size_log2);
            assert_eq!(world.translate_ok(0x40_0000_0000, Access::READ_WRITE), (frame, size_log2));
            assert_eq!(world.load(leaf) & (1 << 8 | 1 << 9), 0, "no accessed or dirty without SSADE");
            let beyond = 1 << top.width();
            assert_eq!(world.blocked(beyond, Access::READ), FaultReason::AddressTooWide);
        }
    }
}

#[test]
fn second_stage_rights_reserved_bits_and_accessed_dirty() {
    let mut world = World::with(UnitConfig { host_address_width: 40, ..UnitConfig::default() });
    let root = world.page();
    let entry = world.bind(DEVICE, 5, 2, Mode::Second { root, top: Level::FOUR });
    world.store(entry, world.load(entry) | 1 << 9);
    let leaf = world.map(root, Level::FOUR, 0x1000, 0x5000 | SS_R | SS_W, 12);
    world.translate_ok(0x1000, Access::READ);
    assert_eq!(world.load(leaf) & (1 << 8 | 1 << 9), 1 << 8);
    world.translate_ok(0x1000, Access::WRITE);
    assert_eq!(world.load(leaf) & (1 << 8 | 1 << 9), 1 << 8 | 1 << 9);
    world.map(root, Level::FOUR, 0x2000, 0x5000 | SS_R, 12);
    world.map(root, Level::FOUR, 0x3000, 0x5000 | SS_W, 12);
    world.map(root, Level::FOUR, 0x4000, 0x5000, 12);
    world.map(root, Level::FOUR, 0x5000, 1 << 40 | SS_R, 12);
    assert_eq!(world.blocked(0x2000, Access::WRITE), FaultReason::NoWrite);
    assert_eq!(world.blocked(0x3000, Access::READ), FaultReason::NoRead);
    assert_eq!(world.blocked(0x4000, Access::READ), FaultReason::SecondStageNotPresent);
    assert_eq!(world.blocked(0x5000, Access::READ), FaultReason::SecondStageReserved);
    let write_only = world.translate(Some(PASID), 0x3000, Access::READ_WRITE).unwrap();
    assert!(!write_only.access.read && write_only.access.write);
    world.store(root, RAM | SS_R | SS_W);
    assert_eq!(world.blocked(0x6000, Access::READ), FaultReason::SecondStageAccess);
}

/// A nested PASID: the second stage maps the first 16 MiB to itself, in 4 KiB or 2 MiB pages.
fn nested(world: &mut World) -> (u64, u64) {
    let (root, second_root) = (world.page(), world.page());
    world.bind(DEVICE, 5, 3, Mode::Nested { root, second_root });
    for page in (0..RAM).step_by(0x20_0000) {
        world.map(second_root, Level::FOUR, page, page | SS_R | SS_W, 21);
    }
    (root, second_root)
}

#[test]
fn nested_translation_goes_through_both_stages() {
    let mut world = World::new();
    let (root, second_root) = nested(&mut world);
    world.map(second_root, Level::FOUR, 0x80_0000_0000, 0x9_9000 | SS_R | SS_W, 12);
    let leaf = world.map(root, Level::FOUR, 0x7000, 0x80_0000_0000 | USER_PAGE, 12);
    assert_eq!(world.translate_ok(0x7000, Access::READ_WRITE), (0x9_9000, 12));
    assert_eq!(world.load(leaf) & (A | D), A | D);
    // A large page over small ones is as large as the small ones.
    world.map(root, Level::FOUR, 0x4000_0000, 0x80_0000_0000 | USER_PAGE, 21);
    assert_eq!(world.translate_ok(0x4000_0000, Access::READ), (0x9_9000, 12));
    // No second-stage mapping behind the page, or behind the tables.
    world.map(root, Level::FOUR, 0x8000, 0x90_0000_0000 | USER_PAGE, 12);
    assert_eq!(world.blocked(0x8000, Access::READ), FaultReason::SecondStageNotPresent);
    world.store(root + 8, 1 << 50 | USER_PAGE);
    assert_eq!(world.blocked(1 << 39, Access::READ), FaultReason::NestedEntryAddressTooWide);
}

#[test]
fn nested_rights_are_those_of_both_stages() {
    let mut world = World::new();
    let (root, second_root) = nested(&mut world);
    world.map(second_root, Level::FOUR, 0x80_0000_0000, 0x9_9000 | SS_R, 12);
    world.map(root, Level::FOUR, 0x7000, 0x80_0000_0000 | USER_PAGE, 12);
    assert_eq!(world.blocked(0x7000, Access::WRITE), FaultReason::NoWrite);
    assert_eq!(world.translate(Some(PASID), 0x7000, Access::READ_WRITE).unwrap().access, Access::READ);
    // A first-stage table that the second stage lets nobody write: accessed cannot be set.
    let table = world.page();
    world.map(second_root, Level::FOUR, 0x80_0020_0000, table | SS_R, 12);
    world.store(root + 8, 0x80_0020_0000 | USER_PAGE);
    world.store(table, (table & !0xfff) | USER_PAGE);
    assert_eq!(world.blocked(1 << 39, Access::READ), FaultReason::NestedEntryNoWrite);
}

#[test]
fn translations_into_the_interrupt_range_are_refused() {
    let mut world = World::new();
    let root = world.bind_first_stage(Level::FOUR);
    world.map(root, Level::FOUR, 0x7000, 0xfee0_1000 | USER_PAGE, 12);
    world.map(root, Level::FOUR, 0x4000_0000, 0xc000_0000 | USER_PAGE, 30);
    assert_eq!(world.blocked(0x7000, Access::READ), FaultReason::InterruptAddress);
    assert_eq!(world.blocked(0x4000_0000 + 0x3ee0_1000, Access::READ), FaultReason::InterruptAddress);
    assert_eq!(world.translate_ok(0x4000_5000, Access::READ), (0xc000_5000, 12), "the rest in small pieces");
    // With a PASID, the input address is not special.
    world.map(root, Level::FOUR, 0xfee0_1000, 0x5000 | USER_PAGE, 12);
    assert_eq!(world.translate_ok(0xfee0_1000, Access::READ), (0x5000, 12));
}
