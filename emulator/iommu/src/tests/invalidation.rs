use svadev_fabric::{
    Access, Bdf, InvalidateRange, InvalidateTag, Iova, PageGroupResponse, Pasid, PrgIndex, ResponseCode,
};
use svadev_spec::vtd::invalidation::QueueError;
use svadev_spec::vtd::registers::{FaultStatus, InvalidationQueueError, offset};
use svadev_spec::vtd::tables::Level;

use super::world::{
    DEVICE, DOMAIN, Mode, OTHER, PASID, QUEUE, RAM, SS_R, SS_W, STATUS, USER_PAGE, World, pasid_cache,
    pasid_device_tlb, pasid_iotlb_page, wait_descriptor,
};
use crate::{AuditConfig, Caching, UnitConfig};

/// A cached first-stage page at 0x7000, and where its leaf is.
fn cached() -> (World, u64) {
    let mut world = World::new();
    let root = world.bind_first_stage(Level::FOUR);
    let leaf = world.map(root, Level::FOUR, 0x7000, 0x5000 | USER_PAGE, 12);
    assert_eq!(world.translate_ok(0x7000, Access::READ_WRITE), (0x5000, 12));
    world.store(leaf, 0x6000 | USER_PAGE);
    (world, leaf)
}

fn is_stale(world: &mut World) -> bool {
    world.translate_ok(0x7000, Access::READ_WRITE).0 == 0x5000
}

#[test]
fn translations_stay_until_they_are_invalidated() {
    let global_iotlb = [2 | 1 << 4, 0];
    let domain_iotlb = |did: u64| [2 | 2 << 4 | did << 16, 0];
    let page_iotlb = [2 | 3 << 4 | u64::from(DOMAIN) << 16, 0x7000];
    let pasid_iotlb = |did: u64, pasid: u64| [6 | 2 << 4 | did << 16 | pasid << 32, 0];
    let cases = [
        ("a wait", wait_descriptor(1), true),
        ("global", global_iotlb, false),
        ("this domain", domain_iotlb(1), false),
        ("another domain", domain_iotlb(2), true),
        ("pages of the domain: second stage only", page_iotlb, true),
        ("this PASID", pasid_iotlb(1, 5), false),
        ("another PASID", pasid_iotlb(1, 6), true),
        ("this PASID in another domain", pasid_iotlb(2, 5), true),
        ("this page", pasid_iotlb_page(1, 5, 0x7000, 0), false),
        ("a neighbour", pasid_iotlb_page(1, 5, 0x6000, 0), true),
        ("two pages with it", pasid_iotlb_page(1, 5, 0x6000, 1), false),
        ("eight pages with it", pasid_iotlb_page(1, 5, 0x0, 3), false),
        ("512 pages with it", pasid_iotlb_page(1, 5, 0x0, 9), false),
        // Linux takes the smallest aligned block around a range: huge for two pages on both sides of a boundary.
        ("2 GiB with it", pasid_iotlb_page(1, 5, 0x0, 19), false),
        ("2^45 pages with it", pasid_iotlb_page(1, 5, 0x0, 45), false),
        ("2^51 pages with it", pasid_iotlb_page(1, 5, 0x0, 51), false),
        ("PASID cache only", pasid_cache(1, 5), true),
    ];
    for (name, descriptor, stale) in cases {
        let (mut world, _) = cached();
        assert!(is_stale(&mut world));
        world.submit_and_wait(&[descriptor]);
        assert_eq!(is_stale(&mut world), stale, "{name}");
        assert_eq!(world.read32(offset::FSTS) & 0xff, 0);
    }
}

#[test]
fn without_caching_nothing_is_stale() {
    let mut world = World::with(UnitConfig { caching: Caching::None, ..UnitConfig::default() });
    let root = world.bind_first_stage(Level::FOUR);
    let leaf = world.map(root, Level::FOUR, 0x7000, 0x5000 | USER_PAGE, 12);
    world.translate_ok(0x7000, Access::READ);
    world.store(leaf, 0x6000 | USER_PAGE);
    assert_eq!(world.translate_ok(0x7000, Access::READ).0, 0x6000);
    let other_root = world.page();
    world.bind(DEVICE, 5, DOMAIN, Mode::First { root: other_root, top: Level::FOUR });
    assert!(world.access(Some(PASID), 0x7000, Access::READ).is_err());
}

#[test]
fn large_pages_go_with_any_page_inside() {
    for (size_log2, inside) in [(21, 0x1f_f000u64), (30, 0x3fff_f000)] {
        let mut world = World::new();
        let root = world.bind_first_stage(Level::FOUR);
        let leaf = world.map(root, Level::FOUR, 0, 0x4000_0000 | USER_PAGE, size_log2);
        world.translate_ok(0, Access::READ);
        world.store(leaf, 0x8000_0000 | USER_PAGE | 1 << 7);
        world.submit_and_wait(&[pasid_iotlb_page(DOMAIN, 5, 1 << size_log2, 0)]);
        assert_eq!(world.translate_ok(0, Access::READ).0, 0x4000_0000, "the page after it");
        world.submit_and_wait(&[pasid_iotlb_page(DOMAIN, 5, inside, 0)]);
        assert_eq!(world.translate_ok(0, Access::READ).0, 0x8000_0000);
    }
}

#[test]
fn second_stage_and_nested_mappings_go_by_domain_pages() {
    let mut world = World::new();
    let root = world.page();
    world.bind(DEVICE, 5, 2, Mode::Second { root, top: Level::FOUR });
    let leaf = world.map(root, Level::FOUR, 0x7000, 0x5000 | SS_R | SS_W, 12);
    world.translate_ok(0x7000, Access::READ_WRITE);
    world.store(leaf, 0x6000 | SS_R | SS_W);
    world.submit_and_wait(&[[2 | 3 << 4 | 2 << 16, 0x8000]]);
    assert_eq!(world.translate_ok(0x7000, Access::READ_WRITE).0, 0x5000);
    world.submit_and_wait(&[[2 | 3 << 4 | 2 << 16, 0x7000]]);
    assert_eq!(world.translate_ok(0x7000, Access::READ_WRITE).0, 0x6000);

    let (first, second_root) = (world.page(), world.page());
    world.bind(DEVICE, 9, 4, Mode::Nested { root: first, second_root });
    for page in (0..RAM).step_by(0x20_0000) {
        world.map(second_root, Level::FOUR, page, page | SS_R | SS_W, 21);
    }
    let inner = world.map(second_root, Level::FOUR, 0x80_0000_0000, 0x5000 | SS_R | SS_W, 12);
    world.map(first, Level::FOUR, 0x7000, 0x80_0000_0000 | USER_PAGE, 12);
    let pasid = Pasid::new(9).unwrap();
    assert_eq!(world.translate(Some(pasid), 0x7000, Access::READ).unwrap().gpa.0, 0x5000);
    world.store(inner, 0x6000 | SS_R | SS_W);
    assert_eq!(world.translate(Some(pasid), 0x7000, Access::READ).unwrap().gpa.0, 0x5000);
    world.submit_and_wait(&[[2 | 3 << 4 | 4 << 16, 0x80_0000_0000]]);
    assert_eq!(world.translate(Some(pasid), 0x7000, Access::READ).unwrap().gpa.0, 0x6000);
}

#[test]
fn pasid_entries_stay_until_they_are_invalidated() {
    let cases = [
        ("a wait", wait_descriptor(1), true),
        ("this PASID", pasid_cache(1, 5), false),
        ("another PASID", pasid_cache(1, 6), true),
        ("this PASID in another domain", pasid_cache(2, 5), true),
        ("the domain", [7 | 1 << 16, 0], false),
        ("another domain", [7 | 2 << 16, 0], true),
        ("global", [7 | 3 << 4, 0], false),
        ("this function's context", [1 | 3 << 4 | u64::from(DEVICE.0) << 32, 0], false),
        ("another function's context", [1 | 3 << 4 | u64::from(OTHER.0) << 32, 0], true),
        ("all contexts", [1 | 1 << 4, 0], false),
        ("IOTLB only", [2 | 1 << 4, 0], true),
    ];
    for (name, descriptor, stale) in cases {
        let (mut world, _) = cached();
        let entry = world.pasid_entry(DEVICE, 5);
        world.store(entry, world.load(entry) & !1);
        world.submit_and_wait(&[descriptor]);
        assert_eq!(world.translate(Some(PASID), 0x7000, Access::READ).is_ok(), stale, "{name}");
    }
}

#[test]
fn a_function_mask_covers_neighbours() {
    for (mask, source, stale) in
        [(0u64, 0x0014u64, true), (1, 0x0014, false), (2, 0x0012, false), (2, 0x0011, true), (3, 0x0017, false)]
    {
        let (mut world, _) = cached();
        let context = world.context_entry(DEVICE);
        world.store(context, world.load(context) & !1);
        world.submit_and_wait(&[[1 | 3 << 4 | source << 32 | mask << 48, 0]]);
        assert_eq!(world.translate(Some(PASID), 0x7000, Access::READ).is_ok(), stale, "FM {mask} of {source:#x}");
    }
}

#[test]
fn device_tlb_invalidations_reach_the_function() {
    let mut world = World::new();
    let sid = u64::from(DEVICE.0);
    world.submit_and_wait(&[
        [3 | sid << 32, 0x7000],
        [3 | sid << 32, 0x7000 | 1],
        [3 | sid << 32, ((1u64 << 63) - 1) & !0xfff | 1],
        pasid_device_tlb(DEVICE, 5, 0x7000, 0),
        pasid_device_tlb(DEVICE, 5, 0x20_0000, 9),
        pasid_device_tlb(DEVICE, 5, 0, 52),
        [8 | sid << 16, 0x7000 | 1],
    ]);
    let heard: Vec<_> =
        world.ports.invalidations.borrow().iter().map(|(to, r)| (*to, r.pasid, r.global, r.range)).collect();
    let naturally = |start, size_log2| InvalidateRange::Naturally { start: Iova(start), size_log2 };
    assert_eq!(
        heard,
        [
            (DEVICE, None, false, naturally(0x7000, 12)),
            // Bits 14:12 are ones, bit 15 is the lowest clear one: 16 pages.
            (DEVICE, None, false, naturally(0, 16)),
            (DEVICE, None, false, InvalidateRange::All),
            (DEVICE, Some(PASID), false, naturally(0x7000, 12)),
            (DEVICE, Some(PASID), false, naturally(0x20_0000, 21)),
            (DEVICE, Some(PASID), false, InvalidateRange::All),
            (DEVICE, Some(Pasid::new(0).unwrap()), true, naturally(0x7000, 12)),
        ]
    );
}

#[test]
fn a_wait_is_over_only_after_every_acknowledgement() {
    let mut world = World::new();
    world.ports.slow.set(true);
    let one = pasid_device_tlb(DEVICE, 5, 0x7000, 0);
    world.submit(&[one, pasid_device_tlb(OTHER, 5, 0x7000, 0), wait_descriptor(7), one]);
    let tags = world.ports.tags();
    assert_eq!(tags.len(), 2, "nothing after the wait has started");
    assert_eq!((world.load(STATUS), world.read64(offset::IQH)), (0, 64));
    world.unit.invalidate_complete(OTHER, tags[1], &world.ports);
    assert_eq!(world.load(STATUS), 0);
    // A second tail while the queue is parked changes nothing.
    world.submit(&[wait_descriptor(8)]);
    assert_eq!((world.load(STATUS), world.ports.tags().len()), (0, 2));
    world.unit.invalidate_complete(DEVICE, tags[0], &world.ports);
    assert_eq!(world.load(STATUS), 7);
    assert_eq!(world.read64(offset::IQH), 4 * 32, "on to the next wait");
    let last = world.ports.tags()[2];
    assert_eq!(world.unit.outstanding_invalidations().collect::<Vec<_>>(), [(last, DEVICE)]);
    world.unit.invalidate_complete(DEVICE, last, &world.ports);
    assert_eq!((world.load(STATUS), world.read64(offset::IQH)), (8, 5 * 32));
    assert_eq!(world.unit.counters().waits_parked, 2);
    assert_eq!(world.read32(offset::FSTS), 0);
}

#[test]
fn outstanding_invalidations_are_bounded() {
    let mut world = World::new();
    world.ports.slow.set(true);
    // 255 descriptors fill the queue; twice that may be outstanding at most 256 times.
    let many = vec![pasid_device_tlb(DEVICE, 5, 0x7000, 0); 200];
    world.submit(&many);
    assert_eq!(world.ports.tags().len(), 200);
    world.submit(&many);
    assert_eq!(world.ports.tags().len(), 256, "parked");
    for i in 0..400 {
        let tag = world.ports.tags()[i];
        world.unit.invalidate_complete(DEVICE, tag, &world.ports);
    }
    assert_eq!(world.read64(offset::IQH), world.tail);
    assert_eq!(world.unit.outstanding_invalidations().count(), 0);
}

#[test]
fn unexpected_completions_are_errors_and_late_ones_are_not() {
    let mut world = World::new();
    world.ports.slow.set(true);
    world.submit(&[pasid_device_tlb(DEVICE, 5, 0x7000, 0), wait_descriptor(1)]);
    let tag = world.ports.tags()[0];
    // Somebody else's, and one that was never sent.
    for (who, tag) in [(OTHER, tag), (DEVICE, InvalidateTag::unit(1000))] {
        world.unit.invalidate_complete(who, tag, &world.ports);
        assert!(FaultStatus::from(world.read32(offset::FSTS)).invalidation_completion_error());
        assert_eq!(InvalidationQueueError::from(world.read64(offset::IQERCD)).completion_source_id(), who.0);
        assert_eq!(world.load(STATUS), 0);
        assert_eq!(world.ports.take_interrupts(), [1]);
        world.write32(offset::FSTS, 1 << 5);
        assert_eq!(world.read64(offset::IQERCD), 0);
    }
    world.unit.reset();
    world.unit.invalidate_complete(DEVICE, tag, &world.ports);
    assert_eq!(world.read32(offset::FSTS), 0, "from before the reset");
}

#[test]
fn a_restarted_queue_waits_for_nothing_of_before() {
    let mut world = World::new();
    world.ports.slow.set(true);
    world.submit(&[pasid_device_tlb(DEVICE, 5, 0x7000, 0), wait_descriptor(1)]);
    let tag = world.ports.tags()[0];
    world.write32(offset::GCMD, 1 << 31);
    assert_eq!(world.unit.outstanding_invalidations().count(), 0);
    world.write64(offset::IQT, 0);
    world.tail = 0;
    world.write32(offset::GCMD, 1 << 31 | 1 << 26);
    world.submit_and_wait(&[]);
    world.unit.invalidate_complete(DEVICE, tag, &world.ports);
    assert_eq!(world.read32(offset::FSTS), 0, "late, and no error");
}

#[test]
fn a_timeout_aborts_the_wait_and_stops_the_queue() {
    let mut world = World::new();
    world.ports.slow.set(true);
    world.submit(&[pasid_device_tlb(DEVICE, 5, 0x7000, 0), wait_descriptor(1)]);
    world.unit.invalidate_timed_out(OTHER, &world.ports);
    assert_eq!(world.read32(offset::FSTS), 0, "that one owes nothing");
    world.unit.invalidate_timed_out(DEVICE, &world.ports);
    assert!(FaultStatus::from(world.read32(offset::FSTS)).invalidation_timeout_error());
    assert_eq!(InvalidationQueueError::from(world.read64(offset::IQERCD)).timeout_source_id(), DEVICE.0);
    // qi_check_fault() looks for the aborted wait just before the head.
    assert_eq!((world.load(STATUS), world.read64(offset::IQH)), (0, 64));
    world.submit(&[wait_descriptor(2)]);
    assert_eq!(world.load(STATUS), 0);
    world.write32(offset::FSTS, 1 << 6);
    assert_eq!(world.load(STATUS), 2);
}

/// More invalidations than may be under way: the rest wait in the queue, and come after the time-out.
#[test]
fn a_timeout_takes_nothing_that_was_not_sent() {
    const MOST: usize = 256;
    let mut world = World::new();
    world.ports.slow.set(true);
    for _ in 0..=MOST {
        world.submit(&[pasid_device_tlb(DEVICE, 5, 0x7000, 0)]);
        // The queue is smaller than that: it wraps.
        assert!(world.ports.tags().len() <= MOST);
    }
    world.submit(&[wait_descriptor(1)]);
    assert_eq!(world.ports.tags().len(), MOST, "parked at the last");
    world.unit.invalidate_timed_out(DEVICE, &world.ports);
    assert_eq!(world.ports.tags().len(), MOST, "stopped");
    world.write32(offset::FSTS, 1 << 6);
    let tags = world.ports.tags();
    assert_eq!((tags.len(), world.load(STATUS)), (MOST + 1, 0), "sent, and waited for");
    world.unit.invalidate_complete(DEVICE, tags[0], &world.ports);
    assert_eq!((world.read32(offset::FSTS), world.load(STATUS)), (0, 0), "late");
    world.unit.invalidate_complete(DEVICE, tags[MOST], &world.ports);
    assert_eq!(world.load(STATUS), 1);
}

#[test]
fn bad_descriptors_stop_the_queue_until_iqe_is_cleared() {
    let did = u64::from(DOMAIN) << 16;
    let cases: [(&str, [u64; 2], QueueError); 26] = [
        ("reserved bits of a context-cache invalidation", [1 | 1 << 4 | 1 << 6, 0], QueueError::Reserved),
        ("the same, high", [1 | 1 << 4, 1], QueueError::Reserved),
        ("the same, above FM", [1 | 1 << 4 | 1 << 50, 0], QueueError::Reserved),
        ("reserved bits of an IOTLB invalidation", [2 | 1 << 4 | 1 << 8, 0], QueueError::Reserved),
        ("the same, upper half", [2 | 1 << 4 | 1 << 32, 0], QueueError::Reserved),
        ("the same, address", [2 | 3 << 4, 1 << 7], QueueError::Reserved),
        ("reserved bits of a PASID-based one", [6 | 2 << 4 | 1 << 6, 0], QueueError::Reserved),
        ("the same, above the PASID", [6 | 2 << 4 | 1 << 52, 0], QueueError::Reserved),
        ("PASID-based granularity 1", [6 | 1 << 4, 0], QueueError::Reserved),
        ("reserved bits of a PASID-cache invalidation", [7 | 3 << 4, 1], QueueError::Reserved),
        ("reserved bits of a device-TLB invalidation", [3, 1 << 5], QueueError::Reserved),
        ("the same, PASID-based", [8, 1 << 5], QueueError::Reserved),
        ("a status address that is not aligned", [5 | 1 << 5, STATUS + 2], QueueError::Reserved),
        ("an unknown type", [0xb, 0], QueueError::InvalidType),
        ("type 0", [0, 0], QueueError::InvalidType),
        ("page stream response", [0xa, 0], QueueError::InvalidType),
        ("upper type bits", [5 | 1 << 9, 0], QueueError::InvalidType),
        ("context granularity 0", [1, 0], QueueError::Reserved),
        ("IOTLB granularity 0", [2, 0], QueueError::Reserved),
        ("address mask beyond MAMV", [2 | 3 << 4, 52], QueueError::Reserved),
        ("PASID-based address mask beyond MAMV", [6 | 3 << 4 | did, 63], QueueError::Reserved),
        ("PASID-based granularity 0", [6, 0], QueueError::Reserved),
        ("PASID cache granularity 2", [7 | 2 << 4, 0], QueueError::Reserved),
        ("reserved bits of a wait", [5 | 1 << 5 | 1 << 8, STATUS], QueueError::Reserved),
        ("reserved bits of a response", [9, 1 << 63], QueueError::Reserved),
        ("status outside memory", [5 | 1 << 5, RAM], QueueError::Fetch),
    ];
    for (name, descriptor, error) in cases {
        let mut world = World::new();
        world.submit(&[wait_descriptor(1), descriptor, wait_descriptor(2)]);
        assert_eq!((world.load(STATUS), world.read64(offset::IQH)), (1, 32), "{name}: the head is at it");
        assert!(FaultStatus::from(world.read32(offset::FSTS)).invalidation_queue_error(), "{name}");
        assert_eq!(world.read64(offset::IQERCD), error as u64, "{name}");
        assert_eq!(world.ports.take_interrupts(), [1]);
        // qi_check_fault() puts a wait in its place and clears the error.
        world.store(0x10_0000 + 32, 5);
        world.store(0x10_0000 + 40, 0);
        world.write32(offset::FSTS, 1 << 4);
        assert_eq!((world.load(STATUS), world.read64(offset::IQH)), (2, 96), "{name}: on it goes");
        assert_eq!(world.read64(offset::IQERCD), 0);
    }
}

#[test]
fn bad_tails_and_places_stop_the_queue() {
    for (tail, error) in
        [(0x2000u32, QueueError::InvalidTail), (0x7_ffe0, QueueError::InvalidTail), (0x10, QueueError::UnalignedTail)]
    {
        let mut world = World::new();
        world.write32(offset::IQT, tail);
        assert_eq!(world.read64(offset::IQERCD), error as u64, "{tail:#x}");
        assert_eq!(world.read64(offset::IQH), 0);
    }
    for (iqa, error) in [
        (RAM | 1 << 11, QueueError::Fetch),
        (u64::MAX << 12 | 1 << 11, QueueError::Fetch),
        (0x10_0000, QueueError::InvalidWidth),
    ] {
        let mut world = World::new();
        world.write32(offset::GCMD, 1 << 31);
        world.write64(offset::IQA, iqa);
        world.write32(offset::GCMD, 1 << 31 | 1 << 26);
        world.write32(offset::IQT, 0x40);
        assert_eq!(world.read64(offset::IQERCD), error as u64, "{iqa:#x}");
    }
}

#[test]
fn narrow_descriptors_work_in_legacy_mode() {
    let mut world = World::cold(UnitConfig::default());
    world.write64(offset::IQA, 0x10_0000);
    world.write32(offset::GCMD, 1 << 26);
    for (i, [low, high]) in [[1 | 1 << 4, 0], [2 | 1 << 4, 0], [4, 0], wait_descriptor(3)].into_iter().enumerate() {
        world.store(0x10_0000 + 16 * i as u64, low);
        world.store(0x10_0008 + 16 * i as u64, high);
    }
    world.write32(offset::IQT, 64);
    assert_eq!((world.load(STATUS), world.read64(offset::IQH)), (3, 64));
    world.store(0x10_0000 + 64, 7 | 3 << 4);
    world.write32(offset::IQT, 80);
    assert_eq!(world.read64(offset::IQERCD), QueueError::InvalidWidth as u64);
}

#[test]
fn the_queue_wraps_and_restarts_at_zero() {
    let mut world = World::new();
    for i in 0..600u32 {
        world.store(STATUS, 0);
        world.submit(&[[4, 0], wait_descriptor(i + 1)]);
        assert_eq!(world.load(STATUS), u64::from(i + 1));
    }
    world.write32(offset::GCMD, 1 << 31);
    assert_eq!(world.read64(offset::IQH), 0);
    world.write64(offset::IQT, 0);
    world.tail = 0;
    world.write32(offset::GCMD, 1 << 31 | 1 << 26);
    world.submit_and_wait(&[]);
}

#[test]
fn waits_raise_the_invalidation_event() {
    let mut world = World::new();
    let interrupt = [5 | 1 << 4, 0];
    world.submit(&[interrupt, interrupt]);
    assert_eq!(world.ports.take_interrupts(), [2], "once until IWC is cleared");
    assert_eq!(world.read32(offset::ICS), 1);
    world.write32(offset::ICS, 1);
    assert_eq!(world.read32(offset::ICS), 0);
    world.write32(offset::IECTL, 1 << 31);
    world.submit(&[interrupt]);
    assert_eq!(world.read32(offset::IECTL), 0b11 << 30);
    world.write32(offset::IECTL, 0);
    assert_eq!(world.ports.take_interrupts(), [2]);
    // Fence and drain: descriptors are carried out in order, so both hold by themselves.
    world.store(STATUS, 0);
    world.submit(&[[5 | 1 << 5 | 1 << 6 | 1 << 7 | 9 << 32, STATUS]]);
    assert_eq!(world.load(STATUS), 9);
}

#[test]
fn page_group_responses_reach_the_function() {
    let mut world = World::new();
    for code in [0u64, 1, 0xf, 3] {
        world.submit_and_wait(&[[9 | 1 << 4 | code << 12 | u64::from(OTHER.0) << 16 | 5 << 32, 0x123 << 3]]);
    }
    world.submit_and_wait(&[[9 | 0x0010 << 16, 7 << 3]]);
    let response = |code| PageGroupResponse { pasid: Some(PASID), prg_index: PrgIndex::new(0x123).unwrap(), code };
    let without_pasid =
        PageGroupResponse { pasid: None, prg_index: PrgIndex::new(7).unwrap(), code: ResponseCode::Success };
    assert_eq!(
        *world.ports.responses.borrow(),
        [
            (OTHER, response(ResponseCode::Success)),
            (OTHER, response(ResponseCode::InvalidRequest)),
            (OTHER, response(ResponseCode::Failure)),
            (OTHER, response(ResponseCode::Failure)),
            (Bdf(0x0010), without_pasid),
        ]
    );
    let counters = world.unit.counters();
    assert_eq!((counters.responses_success, counters.responses_invalid, counters.responses_failure), (2, 1, 2));
}

#[test]
fn the_upper_half_of_a_wide_descriptor_is_reserved() {
    for (word, descriptor) in [2, 3].into_iter().flat_map(|word| {
        [wait_descriptor(7), [2 | 1 << 4, 0], pasid_cache(1, 5), [9, 0]].map(|descriptor| (word, descriptor))
    }) {
        let mut world = World::new();
        world.store(QUEUE + 8 * word, 1 << 40);
        world.submit(&[descriptor]);
        assert_eq!((world.load(STATUS), world.read64(offset::IQH)), (0, 0), "quadword {word} of {descriptor:x?}");
        assert_eq!(world.read64(offset::IQERCD), QueueError::Reserved as u64);
        world.store(QUEUE + 8 * word, 0);
        world.write32(offset::FSTS, 1 << 4);
        assert_eq!(world.read64(offset::IQH), 32);
    }
}

/// A long queue does not hold the unit until it is empty, and goes on without a write of the guest.
#[test]
fn a_long_queue_is_carried_out_in_pieces() {
    for (caching, audited, most) in [
        (Caching::Strict, false, 4096),
        (Caching::None, false, 4096),
        (Caching::Adversarial, false, 256),
        (Caching::Strict, true, 64),
    ] {
        let mut world = World::with(UnitConfig { caching, ..UnitConfig::default() });
        if audited {
            world.unit.start_audit(AuditConfig::default());
        }
        // 16384 descriptors of 32 bytes.
        let (large, bytes) = (0x80_0000, 512 << 10);
        for at in (large..large + bytes).step_by(32) {
            world.store(at, 2 | 2 << 4 | 9 << 16);
        }
        let last = large + bytes - 64;
        world.store(last, wait_descriptor(7)[0]);
        world.store(last + 8, STATUS);
        world.write32(offset::GCMD, 1 << 31);
        world.write64(offset::IQA, large | 1 << 11 | 7);
        world.write64(offset::IQT, 0);
        world.write32(offset::GCMD, 1 << 31 | 1 << 26);
        world.write64(offset::IQT, bytes - 32);
        let mut head = world.read64(offset::IQH);
        assert_eq!(head, 32 * most, "one piece");
        while world.unit.queue_is_unfinished() {
            assert_eq!(world.load(STATUS), 0);
            world.unit.continue_queue(&world.ports);
            assert!((head + 32..=head + 32 * most).contains(&world.read64(offset::IQH)), "{caching:?}, {audited}");
            head = world.read64(offset::IQH);
        }
        assert_eq!((head, world.load(STATUS)), (bytes - 32, 7));
        world.unit.continue_queue(&world.ports);
        assert_eq!(world.read64(offset::IQH), head, "nothing is left to do");
        // An unfinished queue that is switched off is over.
        world.store(STATUS, 0);
        world.write64(offset::IQT, bytes - 64);
        assert!(world.unit.queue_is_unfinished());
        world.write32(offset::GCMD, 1 << 31);
        assert!(!world.unit.queue_is_unfinished());
    }
}

#[test]
fn a_reserved_table_mode_stops_the_queue() {
    let mut world = World::new();
    world.write64(offset::RTADDR, 2 << 10);
    world.write32(offset::GCMD, 1 << 26 | 1 << 30);
    world.submit(&[wait_descriptor(7)]);
    assert_eq!((world.load(STATUS), world.read64(offset::IQERCD)), (0, QueueError::InvalidMode as u64));
    for mode in [0u64, 1, 3] {
        let mut world = World::new();
        world.write64(offset::RTADDR, mode << 10);
        world.write32(offset::GCMD, 1 << 26 | 1 << 30);
        world.submit_and_wait(&[]);
    }
}

/// Linux until 6.17 sets bit 66, which was LPIG before revision 4.0.
#[test]
fn a_page_group_response_may_have_the_bit_of_earlier_revisions() {
    let mut world = World::new();
    world.submit_and_wait(&[[9 | 1 << 4 | u64::from(OTHER.0) << 16 | 5 << 32, 0x123 << 3 | 1 << 2]]);
    let response =
        PageGroupResponse { pasid: Some(PASID), prg_index: PrgIndex::new(0x123).unwrap(), code: ResponseCode::Success };
    assert_eq!(*world.ports.responses.borrow(), [(OTHER, response)]);
    for bit in [0, 1, 12, 63] {
        let mut world = World::new();
        world.submit(&[[9 | 1 << 4 | u64::from(OTHER.0) << 16 | 5 << 32, 0x123 << 3 | 1 << bit]]);
        assert!(FaultStatus::from(world.read32(offset::FSTS)).invalidation_queue_error(), "bit {bit}");
        assert_eq!(*world.ports.responses.borrow(), []);
    }
}

#[test]
fn many_pasids_and_pages_have_room_beside_each_other() {
    // A quarter of the IOTLB: sets of four overflow seldom, whatever the pattern.
    for (pasids, pages) in [(4096u64, 1u64), (64, 64), (1, 4096)] {
        let mut world = World::new();
        let root = world.page();
        for page in 0..pages {
            world.map(root, Level::FOUR, page << 12, page << 12 | USER_PAGE, 12);
        }
        for pasid in 0..pasids {
            world.bind(DEVICE, u32::try_from(pasid).unwrap(), DOMAIN, Mode::First { root, top: Level::FOUR });
        }
        for round in 0..2 {
            let before = world.unit.counters().iotlb_misses;
            for (pasid, page) in (0..pasids).flat_map(|pasid| (0..pages).map(move |page| (pasid, page))) {
                let translation = world.translate(Some(Pasid::from_low_bits(pasid)), page << 12, Access::READ);
                assert_eq!(translation.unwrap().gpa.0, page << 12);
            }
            let misses = world.unit.counters().iotlb_misses - before;
            assert!(if round == 0 { misses == 4096 } else { misses < 200 }, "{pasids} × {pages}: {misses} misses");
        }
    }
}
