use svadev_fabric::{Access, AtsError, Gpa, PageRequestOutcome, Pasid};
use svadev_spec::vtd::registers::offset;
use svadev_spec::vtd::tables::Level;

use super::world::{DEVICE, DOMAIN, Mode, OTHER, PASID, RAM, ROOT, USER_PAGE, World, pasid_cache};
use crate::{Blocked, FaultReason, UnitConfig};

/// A world with one first-stage page at 0x7000.
fn world() -> World {
    let mut world = World::new();
    let root = world.bind_first_stage(Level::FIVE);
    world.map(root, Level::FIVE, 0x7000, 0x9_9000 | USER_PAGE, 12);
    world
}

#[test]
fn a_bound_pasid_translates() {
    let mut world = world();
    assert_eq!(world.translate_ok(0x7123, Access::READ_WRITE), (0x9_9000, 12));
    assert_eq!(world.access(Some(PASID), 0x7123, Access::READ).unwrap().gpa, Gpa(0x9_9000));
    assert_eq!(world.take_fault(), None);
}

#[test]
fn devices_16_and_up_use_the_upper_half_of_the_root_entry() {
    let mut world = World::new();
    assert!(OTHER.device() >= 16);
    world.bind(OTHER, 0, DOMAIN, Mode::PassThrough);
    let ok = world.unit.access(OTHER, None, svadev_fabric::Iova(0x5000), Access::READ, &world.ports);
    assert_eq!(ok.unwrap().gpa.0, 0);
    assert_eq!(world.access(None, 0x5000, Access::READ).unwrap_err(), Blocked::Fault(FaultReason::RootNotPresent));
}

#[test]
fn requests_without_pasid_use_rid_pasid() {
    let mut world = World::new();
    let root = world.page();
    world.bind(DEVICE, 0, 2, Mode::Second { root, top: Level::FOUR });
    world.map(root, Level::FOUR, 0x3000, 0x8_8003, 12);
    assert_eq!(world.access(None, 0x3000, Access::WRITE).unwrap().gpa, Gpa(0x8_8000));
    let context = world.context_entry(DEVICE);
    world.store(context + 8, 9);
    world.submit_and_wait(&[[1 | 3 << 4 | u64::from(DEVICE.0) << 32, 0]]);
    assert_eq!(
        world.access(None, 0x3000, Access::WRITE).unwrap_err(),
        Blocked::Fault(FaultReason::PasidTableNotPresent)
    );
}

/// One damaged quadword of a structure, and what comes of it.
fn damage(at: impl Fn(&mut World) -> u64, change: impl Fn(u64) -> u64, reason: FaultReason, ats: AtsError) {
    let mut world = world();
    let at = at(&mut world);
    let value = world.load(at);
    world.store(at, change(value));
    assert_eq!(world.blocked(0x7000, Access::READ), reason);
    assert_eq!(world.translate(Some(PASID), 0x7000, Access::READ), Err(ats), "{reason:?}");
    assert_eq!(world.take_fault(), Some((reason.code(), 0x7000)), "translation request, {reason:?}");
    // Entries above the broken one are whole and may be remembered.
    world.store(at, value);
    world.submit_and_wait(&[[1 | 1 << 4, 0]]);
    assert_eq!(world.translate_ok(0x7000, Access::READ), (0x9_9000, 12));
}

#[test]
fn what_is_not_present_is_not_remembered() {
    // CAP.CM is clear: software makes entries present without an invalidation.
    let mut world = World::new();
    assert_eq!(world.blocked(0x7000, Access::READ), FaultReason::RootNotPresent);
    let entry = world.pasid_entry(DEVICE, PASID.get());
    assert_eq!(world.blocked(0x7000, Access::READ), FaultReason::PasidTableNotPresent);
    let root = world.bind_first_stage(Level::FOUR);
    assert_ne!(world.load(entry) & 1, 0);
    assert_eq!(world.blocked(0x7000, Access::READ), FaultReason::FirstStageNotPresent);
    world.map(root, Level::FOUR, 0x7000, 0x5000 | USER_PAGE, 12);
    assert_eq!(world.translate_ok(0x7000, Access::READ), (0x5000, 12));
}

#[test]
fn every_structure_fault_has_its_code() {
    use AtsError::{CompleterAbort, UnsupportedRequest};
    use FaultReason as F;
    let root = |_: &mut World| 0x1000;
    let context = |w: &mut World| w.context_entry(DEVICE);
    let directory = |w: &mut World| {
        let at = w.context_entry(DEVICE);
        w.load(at) & !0xfff
    };
    let entry = |w: &mut World| w.pasid_entry(DEVICE, PASID.get());
    let outside = |v: u64| v & 0xfff | RAM;

    damage(root, |_| 0, F::RootNotPresent, UnsupportedRequest);
    damage(root, |v| v | 2, F::RootReserved, CompleterAbort);
    damage(root, outside, F::ContextAccess, CompleterAbort);
    damage(context, |v| v & !1, F::ContextNotPresent, UnsupportedRequest);
    damage(context, |v| v | 1 << 5, F::ContextReserved, CompleterAbort);
    damage(|w| w.context_entry(DEVICE) + 8, |v| v | 1 << 30, F::ContextReserved, CompleterAbort);
    damage(|w| w.context_entry(DEVICE) + 24, |_| 1, F::ContextReserved, CompleterAbort);
    damage(context, |v| v & !(1 << 3), F::PasidDisabled, UnsupportedRequest);
    damage(context, outside, F::PasidDirectoryAccess, CompleterAbort);
    damage(directory, |v| v & !1, F::PasidDirectoryNotPresent, UnsupportedRequest);
    damage(directory, |v| v | 4, F::PasidDirectoryReserved, CompleterAbort);
    damage(directory, outside, F::PasidTableAccess, CompleterAbort);
    damage(entry, |v| v & !1, F::PasidTableNotPresent, UnsupportedRequest);
    damage(entry, |v| v | 1 << 5, F::PasidTableReserved, CompleterAbort);
    damage(entry, |v| v & !(7 << 6), F::PasidTableInvalid, CompleterAbort);
    damage(entry, |v| v | 7 << 6, F::PasidTableInvalid, CompleterAbort);
    damage(|w| w.pasid_entry(DEVICE, 5) + 16, |v| v | 1 << 8, F::PasidTableReserved, CompleterAbort);
    damage(|w| w.pasid_entry(DEVICE, 5) + 8, |v| v | 1 << 16, F::PasidTableReserved, CompleterAbort);
    damage(|w| w.pasid_entry(DEVICE, 5) + 8, |v| v | 1 << 22, F::PasidTableReserved, CompleterAbort);
    damage(|w| w.pasid_entry(DEVICE, 5) + 24, |_| 1, F::PasidTableReserved, CompleterAbort);
    damage(|w| w.pasid_entry(DEVICE, 5) + 56, |_| 1 << 63, F::PasidTableReserved, CompleterAbort);
    damage(|w| w.pasid_entry(DEVICE, 5) + 16, |v| v | 2 << 2, F::PasidTableInvalid, CompleterAbort);
    damage(|w| w.pasid_entry(DEVICE, 5) + 16, outside, F::FirstStagePointer, CompleterAbort);
}

#[test]
fn a_root_table_outside_memory_is_a_fault() {
    for (rtaddr, reason) in [
        (RAM | 1 << 10, FaultReason::RootAccess),
        (u64::MAX << 12 | 1 << 10, FaultReason::RootAccess),
        (2 << 10, FaultReason::RootTableMode),
        (0, FaultReason::PasidInLegacyMode),
    ] {
        let mut world = World::new();
        world.write64(offset::RTADDR, rtaddr);
        world.write32(offset::GCMD, 1 << 30 | 1 << 31);
        assert_eq!(world.blocked(0x7000, Access::READ), reason);
    }
}

#[test]
fn abort_dma_mode_refuses_everything_and_records_nothing() {
    let mut world = world();
    assert!(world.translate(Some(PASID), 0x7000, Access::READ).is_ok());
    world.write64(offset::RTADDR, 3 << 10);
    assert!(world.translate(Some(PASID), 0x7000, Access::READ).is_ok(), "until the root pointer is set");
    world.write32(offset::GCMD, 1 << 26 | 1 << 30 | 1 << 31);
    assert_eq!(world.translate(Some(PASID), 0x7000, Access::READ), Err(AtsError::CompleterAbort));
    assert_eq!(world.translate(None, 0xfee0_0000, Access::WRITE), Err(AtsError::CompleterAbort));
    assert_eq!(world.access(Some(PASID), 0x7000, Access::READ), Err(Blocked::AbortDma));
    assert_eq!(world.access(None, 0xfee0_0000, Access::WRITE), Err(Blocked::AbortDma));
    assert_eq!(world.translated(0x5000, Access::WRITE), Err(Blocked::AbortDma));
    assert_eq!(world.page_request(0x7000, Access::READ, 1, true), PageRequestOutcome::Dropped);
    assert_eq!((world.take_fault(), world.ports.take_interrupts()), (None, vec![]));
    assert_eq!(world.unit.counters().faults_recorded, 0);
    // The mode needs no tables, and going back does.
    world.write64(offset::RTADDR, ROOT | 1 << 10);
    world.write32(offset::GCMD, 1 << 26 | 1 << 30 | 1 << 31);
    assert!(world.translate(Some(PASID), 0x7000, Access::READ).is_ok());
}

#[test]
fn translated_requests_need_dte_and_are_no_interrupts() {
    let mut world = world();
    assert_eq!(world.translated(0x5000, Access::WRITE), Ok(()));
    assert_eq!(world.translated(0xfee0_1000, Access::WRITE), Err(Blocked::Fault(FaultReason::InterruptAddress)));
    let (_, high) = world.take_fault_record().unwrap();
    assert_eq!((high.address_type(), high.pasid_present(), high.type1()), (0b10, false, false));
    let at = world.context_entry(DEVICE);
    world.store(at, world.load(at) & !(1 << 2));
    assert_eq!(world.translated(0x5000, Access::READ), Ok(()), "the context cache still has it");
    world.submit_and_wait(&[[1 | 1 << 4, 0]]);
    assert_eq!(world.translated(0x5000, Access::READ), Err(Blocked::Fault(FaultReason::DeviceTlbDisabled)));
    let (low, high) = world.take_fault_record().unwrap();
    assert_eq!((low.fault_info(), high.address_type(), high.type1()), (5, 0b10, true));
    // FPD keeps it out of the log, but not in memory.
    world.store(at, world.load(at) | 2);
    world.submit_and_wait(&[[1 | 1 << 4, 0]]);
    assert!(world.translated(0x5000, Access::READ).is_err());
    assert_eq!(world.take_fault(), None);
    world.write32(offset::GCMD, 1 << 26);
    assert_eq!(world.translated(0x5000, Access::READ), Ok(()), "nothing is checked with translation off");
}

#[test]
fn translated_requests_stay_within_the_host_address_width() {
    let mut world = World::with(UnitConfig { host_address_width: 40, ..UnitConfig::default() });
    world.bind_first_stage(Level::FOUR);
    assert_eq!(world.translated((1 << 40) - 1, Access::WRITE), Ok(()));
    assert_eq!(world.translated(1 << 40, Access::WRITE), Err(Blocked::Fault(FaultReason::AddressBeyondHost)));
    let (low, high) = world.take_fault_record().unwrap();
    assert_eq!((low.fault_info(), high.address_type()), (1 << 28, 0b10));
}

#[test]
fn rid_priv_is_reserved_without_supervisor_requests() {
    for supervisor_requests in [true, false] {
        let mut world = World::with(UnitConfig { supervisor_requests, ..UnitConfig::default() });
        world.bind(DEVICE, 0, DOMAIN, Mode::PassThrough);
        let context = world.context_entry(DEVICE);
        world.store(context + 8, 1 << 20);
        let expected = if supervisor_requests { Ok(()) } else { Err(Blocked::Fault(FaultReason::ContextReserved)) };
        assert_eq!(world.access(None, 0x5000, Access::READ).map(|_| ()), expected);
    }
}

#[test]
fn translation_requests_need_dte() {
    let mut world = world();
    let at = world.context_entry(DEVICE);
    world.store(at, world.load(at) & !(1 << 2));
    assert_eq!(world.translate(Some(PASID), 0x7000, Access::READ), Err(AtsError::UnsupportedRequest));
    assert_eq!(world.take_fault(), Some((FaultReason::DeviceTlbDisabled.code(), 0x7000)));
    assert!(world.access(Some(PASID), 0x7000, Access::READ).is_ok(), "untranslated requests do not");
}

#[test]
fn what_one_kind_of_request_left_in_the_caches_does_not_serve_another() {
    // DTE clear: an untranslated access fills the caches, and a translation request is blocked all the same.
    let mut world = world();
    let at = world.context_entry(DEVICE);
    world.store(at, world.load(at) & !(1 << 2));
    assert!(world.access(Some(PASID), 0x7000, Access::READ_WRITE).is_ok());
    assert_eq!(world.translate(Some(PASID), 0x7000, Access::READ), Err(AtsError::UnsupportedRequest));
    // PASIDE clear: a request without PASID fills the entry of RID_PASID, which a request with that PASID must not use.
    let mut world = World::new();
    let root = world.page();
    world.bind(DEVICE, 0, DOMAIN, Mode::First { root, top: Level::FOUR });
    world.map(root, Level::FOUR, 0x7000, 0x5000 | USER_PAGE, 12);
    let at = world.context_entry(DEVICE);
    world.store(at, world.load(at) & !(1 << 3));
    for _ in 0..2 {
        assert!(world.access(None, 0x7000, Access::READ_WRITE).is_ok());
        let pasid0 = Some(Pasid::from_low_bits(0));
        assert_eq!(world.access(pasid0, 0x7000, Access::READ).unwrap_err(), Blocked::Fault(FaultReason::PasidDisabled));
    }
}

#[test]
fn privileged_and_execute_requests_do_not_use_what_user_requests_left() {
    let mut world = world();
    assert!(world.access(Some(PASID), 0x7000, Access::READ_WRITE).is_ok());
    let privileged = Access { privileged: true, ..Access::READ };
    assert_eq!(world.blocked(0x7000, privileged), FaultReason::SupervisorDisabled);
    let execute = Access { execute: true, ..Access::READ };
    assert_eq!(world.blocked(0x7000, execute), FaultReason::ExecuteDisabled);
}

#[test]
fn pasids_beyond_the_directory_or_the_unit_are_refused() {
    let mut world = World::with(UnitConfig { max_pasid_bits: 14, ..UnitConfig::default() });
    world.bind_first_stage(Level::FOUR);
    let large = Pasid::new(1 << 14).unwrap();
    assert_eq!(world.access(Some(large), 0, Access::READ).unwrap_err(), Blocked::Fault(FaultReason::PasidTooLarge));
    let at = world.context_entry(DEVICE);
    // PDTS 0: 2^13 PASIDs.
    world.store(at, world.load(at) & !(7 << 9));
    world.submit_and_wait(&[[1 | 1 << 4, 0]]);
    let large = Pasid::new(1 << 13).unwrap();
    assert_eq!(world.access(Some(large), 0, Access::READ).unwrap_err(), Blocked::Fault(FaultReason::PasidTooLarge));
    world.store(at + 8, 1 << 13);
    world.submit_and_wait(&[[1 | 1 << 4, 0]]);
    assert_eq!(world.access(None, 0, Access::READ).unwrap_err(), Blocked::Fault(FaultReason::RidPasidInvalid));
}

#[test]
fn fpd_keeps_faults_out_of_the_log() {
    type At = fn(&mut World) -> u64;
    let places: [At; 3] = [
        |w| w.context_entry(DEVICE),
        |w| {
            let at = w.context_entry(DEVICE);
            w.load(at) & !0xfff
        },
        |w| w.pasid_entry(DEVICE, 5),
    ];
    for at in places {
        let mut world = world();
        let at = at(&mut world);
        world.store(at, world.load(at) | 2);
        assert_eq!(
            world.access(Some(PASID), 0x8000, Access::READ).unwrap_err(),
            Blocked::Fault(FaultReason::FirstStageNotPresent)
        );
        // As Linux leaves the entry of a dead process: FPD alone.
        world.store(at, 2);
        world.submit_and_wait(&[[1 | 1 << 4, 0], pasid_cache(DOMAIN, 5)]);
        assert!(world.access(Some(PASID), 0x7000, Access::READ).is_err());
        assert_eq!(world.translate(Some(PASID), 0x7000, Access::READ), Err(AtsError::UnsupportedRequest));
        assert_eq!(world.take_fault(), None);
        assert_eq!(world.unit.counters().faults_suppressed, 3);
    }
}

#[test]
fn fpd_counts_with_a_cached_entry() {
    let mut world = world();
    let entry = world.pasid_entry(DEVICE, PASID.get());
    world.store(entry, world.load(entry) | 2);
    assert!(world.access(Some(PASID), 0x7000, Access::READ).is_ok(), "the PASID entry is cached now");
    assert!(world.access(Some(PASID), 0x8000, Access::READ).is_err());
    assert_eq!(world.take_fault(), None);
    assert_eq!(world.unit.counters().faults_suppressed, 1);
}

#[test]
fn a_directory_has_room_for_every_pasid_that_its_size_says() {
    for size in 0..8u64 {
        let mut world = World::new();
        let largest = (1u32 << (13 + size)) - 1;
        let context = {
            world.pasid_entry(DEVICE, 0);
            world.context_entry(DEVICE)
        };
        world.store(context, world.load(context) & !(7 << 9) | size << 9);
        for pasid in [largest, largest / 2 + 1] {
            world.bind(DEVICE, pasid, DOMAIN, Mode::PassThrough);
            assert!(
                world.access(Pasid::new(pasid).ok(), 0x5000, Access::READ).is_ok(),
                "PDTS {size}, PASID {pasid:#x}"
            );
        }
        if let Ok(beyond) = Pasid::new(largest + 1) {
            let fault = Blocked::Fault(FaultReason::PasidTooLarge);
            assert_eq!(world.access(Some(beyond), 0x5000, Access::READ), Err(fault));
        }
    }
}

#[test]
fn rid_priv_makes_requests_without_pasid_supervisor_requests() {
    let mut world = World::new();
    let root = world.page();
    let entry = world.bind(DEVICE, 0, DOMAIN, Mode::First { root, top: Level::FOUR });
    // SRE; a supervisor page.
    world.store(entry + 16, world.load(entry + 16) | 1);
    world.map(root, Level::FOUR, 0x7000, 0x5000 | USER_PAGE & !4, 12);
    let fault = Blocked::Fault(FaultReason::UserToSupervisor);
    assert_eq!(world.access(None, 0x7000, Access::READ), Err(fault));
    let context = world.context_entry(DEVICE);
    world.store(context + 8, 1 << 20);
    world.submit_and_wait(&[[1 | 1 << 4, 0]]);
    assert_eq!(world.access(None, 0x7000, Access::READ).unwrap().gpa, Gpa(0x5000));
}

#[test]
fn a_unit_without_nested_translation_refuses_its_entries() {
    for nested in [true, false] {
        let mut world = World::with(UnitConfig { nested, ..UnitConfig::default() });
        let (root, second_root) = (world.page(), world.page());
        world.bind(DEVICE, PASID.get(), DOMAIN, Mode::Nested { root, second_root });
        let reason = if nested { FaultReason::SecondStageNotPresent } else { FaultReason::PasidTableInvalid };
        assert_eq!(world.blocked(0x7000, Access::READ), reason);
        assert_eq!(world.read64(offset::ECAP) >> 26 & 1, u64::from(nested), "ECAP.NEST");
    }
}

#[test]
fn a_unit_without_a_first_stage_refuses_its_entries() {
    let mut world = World::with(UnitConfig { first_stage: false, ..UnitConfig::default() });
    let (root, second_root) = (world.page(), world.page());
    let ecap = world.read64(offset::ECAP);
    assert_eq!((ecap >> 26 & 1, ecap >> 46 & 3), (0, 1), "ECAP.NEST, ECAP.SSTS and ECAP.FSTS");
    for mode in [Mode::First { root, top: Level::FOUR }, Mode::Nested { root, second_root }] {
        world.bind(DEVICE, PASID.get(), DOMAIN, mode);
        assert_eq!(world.blocked(0x7000, Access::READ), FaultReason::PasidTableInvalid);
    }
    world.bind(DEVICE, PASID.get(), DOMAIN, Mode::PassThrough);
    assert_eq!(world.access(Some(PASID), 0x7000, Access::READ).unwrap().gpa, Gpa(0));
}

#[test]
fn a_unit_without_page_requests_has_pre_reserved_and_refuses_requests() {
    let mut world = World::with(UnitConfig { page_requests: false, ..UnitConfig::default() });
    let ecap = world.read64(offset::ECAP);
    assert_eq!((ecap >> 29 & 1, ecap >> 42 & 1), (0, 0), "ECAP.PRS and ECAP.PDS");
    world.bind(DEVICE, PASID.get(), DOMAIN, Mode::PassThrough);
    assert_eq!(world.blocked(0x7000, Access::READ), FaultReason::ContextReserved);
    let context = world.context_entry(DEVICE);
    world.store(context, world.load(context) & !(1 << 4));
    assert_eq!(world.translate_ok(0x7000, Access::READ), (0, 21));
    assert_eq!(world.page_request(0x7000, Access::READ, 1, true), PageRequestOutcome::Accepted);
    assert_eq!(world.ports.responses.borrow()[0].1.code, svadev_fabric::ResponseCode::Failure);
    assert_eq!(world.take_fault(), Some((FaultReason::PageRequestDisabled.code(), 0x7000)));
}

#[test]
fn a_unit_without_scalable_mode_has_nothing_that_needs_it() {
    let mut world = World::cold(UnitConfig { scalable: false, ..UnitConfig::default() });
    // C, QI, DT, PT, SC, IRO, and ADMS.
    let iotlb = crate::IOTLB_REGISTER_OFFSET / 16;
    assert_eq!(world.read64(offset::ECAP), 1 | 1 << 1 | 1 << 2 | 1 << 6 | 1 << 7 | iotlb << 8 | 1 << 52);
    world.write64(offset::IQA, 0x10_0000 | 1 << 11);
    assert_eq!(world.read64(offset::IQA), 0x10_0000, "DW is reserved");
    world.write64(offset::RTADDR, ROOT | 1 << 10);
    world.write32(offset::GCMD, 1 << 30 | 1 << 31);
    assert_eq!(world.blocked(0x7000, Access::READ), FaultReason::RootTableMode);
    world.write64(offset::RTADDR, ROOT);
    world.write32(offset::GCMD, 1 << 30 | 1 << 31);
    let blocked = world.access(None, 0x7000, Access::READ);
    assert_eq!(blocked, Err(Blocked::Fault(FaultReason::LegacyRootNotPresent)));
}

#[test]
fn an_incoherent_unit_says_so_in_both_modes() {
    let mut world = World::cold(UnitConfig { coherent: false, ..UnitConfig::default() });
    let ecap = world.read64(offset::ECAP);
    assert_eq!((ecap & 1, ecap >> 48 & 1), (0, 0), "ECAP.C and ECAP.SMPWCS");
}

#[test]
fn legacy_tables_have_as_many_levels_as_aw_says() {
    for (width, top, beyond) in [(1u64, Level::THREE, 39), (2, Level::FOUR, 48), (3, Level::FIVE, 57)] {
        let mut world = World::new();
        let (root_table, contexts, tables) = (world.page(), world.page(), world.page());
        world.store(root_table, contexts | 1);
        let at = contexts + 16 * u64::from(DEVICE.devfn());
        world.store(at + 8, width | 7 << 8);
        world.store(at, tables | 1);
        world.map(tables, top, 0x3000, 0x8_8000 | 3, 12);
        world.write64(offset::RTADDR, root_table);
        world.write32(offset::GCMD, 1 << 30 | 1 << 31);
        assert_eq!(world.access(None, 0x3000, Access::WRITE).unwrap().gpa, Gpa(0x8_8000), "AW {width}");
        let too_wide = Blocked::Fault(FaultReason::LegacyAddressTooWide);
        assert_eq!(world.access(None, 1 << beyond, Access::READ), Err(too_wide));
    }
}

#[test]
fn pass_through_is_the_identity_up_to_the_host_width() {
    let mut world = World::with(UnitConfig { host_address_width: 40, ..UnitConfig::default() });
    world.bind(DEVICE, 5, DOMAIN, Mode::PassThrough);
    assert_eq!(world.translate_ok(0x12_3456_7000, Access::READ_WRITE), (0x12_3440_0000, 21));
    assert_eq!(world.blocked(1 << 40, Access::READ), FaultReason::AddressBeyondHost);
    assert_eq!(world.blocked(0xfee0_0000, Access::READ), FaultReason::InterruptAddress);
    assert_eq!(world.translate_ok(0xfed0_0000, Access::READ), (0xfec0_0000, 21));
}

#[test]
fn the_interrupt_range_is_special_without_pasid() {
    let mut world = World::new();
    world.bind(DEVICE, 0, DOMAIN, Mode::PassThrough);
    assert_eq!(world.access(None, 0xfee0_1000, Access::WRITE).unwrap().gpa, Gpa(0xfee0_1000));
    assert_eq!(
        world.access(None, 0xfee0_1000, Access::READ).unwrap_err(),
        Blocked::Fault(FaultReason::InterruptAddress)
    );
    let completion = world.translate(None, 0xfee0_1000, Access::WRITE).unwrap();
    assert!(completion.untranslated_only && completion.access == Access::WRITE);
}

#[test]
fn a_read_of_the_interrupt_range_has_the_code_of_its_mode_and_obeys_fpd() {
    let mut world = World::new();
    let pasid_entry = world.bind(DEVICE, 0, DOMAIN, Mode::PassThrough);
    let blocked = |world: &mut World, access| world.access(None, 0xfee0_1000, access).unwrap_err();
    for access in [Access::READ, Access::READ_WRITE] {
        assert_eq!(blocked(&mut world, access), Blocked::Fault(FaultReason::InterruptAddress));
        assert_eq!(world.take_fault(), Some((FaultReason::InterruptAddress.code(), 0xfee0_1000)));
    }
    let context = world.context_entry(DEVICE);
    for at in [context, pasid_entry] {
        let value = world.load(at);
        world.store(at, value | 2);
        world.submit_and_wait(&[[1 | 1 << 4, 0]]);
        assert_eq!(blocked(&mut world, Access::READ), Blocked::Fault(FaultReason::InterruptAddress));
        assert_eq!(world.take_fault(), None, "FPD is set");
        world.store(at, value);
        world.submit_and_wait(&[[1 | 1 << 4, 0]]);
    }

    let (root_table, contexts) = (world.page(), world.page());
    let at = contexts + 16 * u64::from(DEVICE.devfn());
    world.store(root_table, contexts | 1);
    for (low, recorded) in [(0, true), (1 | 2 << 2, true), (1 | 2 | 2 << 2, false)] {
        world.store(at, low);
        world.write64(offset::RTADDR, root_table);
        world.write32(offset::GCMD, 1 << 30 | 1 << 31);
        assert_eq!(blocked(&mut world, Access::READ), Blocked::Fault(FaultReason::LegacyInterruptAddress));
        let record = recorded.then_some((FaultReason::LegacyInterruptAddress.code(), 0xfee0_1000));
        assert_eq!(world.take_fault(), record);
        assert_eq!(world.access(None, 0xfee0_1000, Access::WRITE).unwrap().gpa, Gpa(0xfee0_1000), "an interrupt");
    }
}

#[test]
fn with_translation_disabled_addresses_pass_and_ats_does_not() {
    let mut world = world();
    world.write32(offset::GCMD, 1 << 26);
    assert_eq!(world.access(Some(PASID), 0x7123, Access::READ).unwrap().gpa, Gpa(0x7000));
    assert_eq!(world.translate(Some(PASID), 0x7000, Access::READ), Err(AtsError::UnsupportedRequest));
    assert_eq!(world.take_fault(), None);
}

#[test]
fn legacy_mode_walks_legacy_tables() {
    let mut world = World::new();
    let (root_table, contexts, tables) = (world.page(), world.page(), world.page());
    world.write64(offset::RTADDR, root_table);
    world.write32(offset::GCMD, 1 << 30 | 1 << 31);
    let fault = |world: &mut World, access| world.access(None, 0x3000, access).unwrap_err();
    assert_eq!(fault(&mut world, Access::READ), Blocked::Fault(FaultReason::LegacyRootNotPresent));
    world.store(root_table, contexts | 1);
    assert_eq!(fault(&mut world, Access::READ), Blocked::Fault(FaultReason::LegacyContextNotPresent));
    let at = contexts + 16 * u64::from(DEVICE.devfn());
    world.store(at + 8, 2 | 7 << 8);
    world.store(at, tables | 1);
    assert_eq!(fault(&mut world, Access::READ), Blocked::Fault(FaultReason::LegacyNoRead));
    assert_eq!(fault(&mut world, Access::WRITE), Blocked::Fault(FaultReason::LegacyNoWrite));
    world.map(tables, Level::FOUR, 0x3000, 0x8_8000 | 1, 12);
    assert_eq!(world.access(None, 0x3000, Access::READ).unwrap().gpa, Gpa(0x8_8000));
    assert_eq!(fault(&mut world, Access::WRITE), Blocked::Fault(FaultReason::LegacyNoWrite));
    assert_eq!(
        world.access(None, 1 << 48, Access::READ).unwrap_err(),
        Blocked::Fault(FaultReason::LegacyAddressTooWide)
    );
    // TT 0 blocks translation requests and translated ones, TT 1 serves them, TT 2 passes through.
    assert_eq!(world.translate(None, 0x3000, Access::READ), Err(AtsError::UnsupportedRequest));
    let translated = |world: &mut World, address| world.translated(address, Access::READ);
    assert_eq!(translated(&mut world, 0x8_8000), Err(Blocked::Fault(FaultReason::LegacyContextBlocks)));
    let flush = |world: &mut World| {
        world.write32(offset::GCMD, 1 << 31);
        world.write64(offset::CCMD, 1 << 63 | 1 << 61);
        world.write64(crate::IOTLB_REGISTER_OFFSET + 8, 1 << 63 | 1 << 60);
    };
    world.store(at, tables | 1 | 1 << 2);
    flush(&mut world);
    assert_eq!(world.translate(None, 0x3000, Access::READ).unwrap().gpa, Gpa(0x8_8000));
    assert_eq!(translated(&mut world, 0x8_8000), Ok(()));
    assert_eq!(translated(&mut world, 1 << 52), Err(Blocked::Fault(FaultReason::LegacyAddressTooWide)));
    let interrupt = Err(Blocked::Fault(FaultReason::LegacyInterruptAddress));
    assert_eq!(translated(&mut world, 0xfee0_0000), interrupt);
    world.store(at, 1 | 2 << 2);
    flush(&mut world);
    assert_eq!(world.access(None, 0x60_3000, Access::WRITE).unwrap().gpa, Gpa(0x60_0000));
    world.store(at, 1 | 3 << 2);
    flush(&mut world);
    assert_eq!(fault(&mut world, Access::READ), Blocked::Fault(FaultReason::LegacyContextInvalid));
    world.store(at, 1 | 1 << 4);
    assert_eq!(fault(&mut world, Access::READ), Blocked::Fault(FaultReason::LegacyContextReserved));
}
