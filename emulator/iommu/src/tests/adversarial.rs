//! [`Caching::Adversarial`]: nothing goes that no invalidation names, and no entry makes room before a cache is full.
use svadev_fabric::{Access, Pasid};
use svadev_spec::vtd::tables::Level;

use super::world::{
    DEVICE, DOMAIN, Mode, PASID, RAM, SS_R, SS_W, STATUS, USER_PAGE, World, pasid_cache, pasid_iotlb_page,
    wait_descriptor,
};
use crate::{Caching, UnitConfig};

const ENTRIES: u64 = 64;

fn adversarial() -> World {
    World::with(UnitConfig {
        caching: Caching::Adversarial,
        iotlb_entries: usize::try_from(ENTRIES).unwrap(),
        ..UnitConfig::default()
    })
}

fn misses(world: &World) -> u64 {
    world.unit.counters().iotlb_misses
}

#[test]
fn a_cache_is_filled_to_the_last_entry() {
    // Strides that would meet in few sets of a set-associative cache.
    for stride in [0x1000u64, 0x10_0000, 0x4000_0000] {
        let mut world = adversarial();
        let root = world.bind_first_stage(Level::FOUR);
        for i in 0..=ENTRIES {
            world.map(root, Level::FOUR, i * stride, 0x5000 | USER_PAGE, 12);
        }
        for round in 0..2 {
            for i in 0..ENTRIES {
                world.translate_ok(i * stride, Access::READ);
            }
            assert_eq!(misses(&world), ENTRIES, "stride {stride:#x}, round {round}");
        }
        // One more takes the place of exactly one.
        world.translate_ok(ENTRIES * stride, Access::READ);
        let mut gone = 0;
        for i in 0..=ENTRIES {
            let before = misses(&world);
            world.access(Some(PASID), i * stride, Access::READ).unwrap();
            gone += misses(&world) - before;
            if gone != 0 {
                break;
            }
        }
        assert_eq!(gone, 1);
    }
}

#[test]
fn other_tags_take_nothing_along() {
    let mut world = adversarial();
    let root = world.bind_first_stage(Level::FOUR);
    let leaf = world.map(root, Level::FOUR, 0x7000, 0x5000 | USER_PAGE, 12);
    world.translate_ok(0x7000, Access::READ);
    world.store(leaf, 0x6000 | USER_PAGE);
    // More tags than floors: in a table of floors some would share ours.
    for batch in 0..100u64 {
        let descriptors: Vec<_> = (0..100)
            .flat_map(|i| {
                let other = batch * 100 + i + 6;
                [[6 | 2 << 4 | 1 << 16 | other << 32, 0], [2 | 2 << 4 | other << 16, 0]]
            })
            .collect();
        world.submit_and_wait(&descriptors);
    }
    assert_eq!(world.translate_ok(0x7000, Access::READ).0, 0x5000);
    world.submit_and_wait(&[[6 | 2 << 4 | 1 << 16 | 5 << 32, 0]]);
    assert_eq!(world.translate_ok(0x7000, Access::READ).0, 0x6000);
}

#[test]
fn wide_ranges_take_their_pages_only() {
    for (order, count) in [(7u64, 128u64), (9, 512), (18, 1 << 18)] {
        let mut world = adversarial();
        let root = world.bind_first_stage(Level::FOUR);
        let end = count << 12;
        // First and last page inside, first page after: each with its old and its new place.
        let pages = [(0, true), (end - 0x1000, true), (end, false)];
        let leaves = pages.map(|(iova, _)| world.map(root, Level::FOUR, iova, 0x5000 | USER_PAGE, 12));
        for (iova, _) in pages {
            world.translate_ok(iova, Access::READ);
        }
        for leaf in leaves {
            world.store(leaf, 0x6000 | USER_PAGE);
        }
        world.submit_and_wait(&[pasid_iotlb_page(DOMAIN, 5, 0, order)]);
        for (iova, inside) in pages {
            let place = if inside { 0x6000 } else { 0x5000 };
            assert_eq!(world.translate_ok(iova, Access::READ).0, place, "{iova:#x} of {count} pages");
        }
    }
}

#[test]
fn pages_of_a_domain_take_no_first_stage_mapping_along() {
    let mut world = adversarial();
    let (root, nested_root, second_root) = (world.page(), world.page(), world.page());
    world.bind(DEVICE, 5, 3, Mode::First { root, top: Level::FOUR });
    world.bind(DEVICE, 6, 3, Mode::Nested { root: nested_root, second_root });
    for page in (0..RAM).step_by(0x20_0000) {
        world.map(second_root, Level::FOUR, page, page | SS_R | SS_W, 21);
    }
    let leaves = [root, nested_root].map(|root| world.map(root, Level::FOUR, 0x7000, 0x5000 | USER_PAGE, 12));
    let nested = Some(Pasid::from_low_bits(6));
    world.translate_ok(0x7000, Access::READ);
    assert_eq!(world.translate(nested, 0x7000, Access::READ).unwrap().gpa.0, 0x5000);
    for leaf in leaves {
        world.store(leaf, 0x6000 | USER_PAGE);
    }
    world.submit_and_wait(&[[2 | 3 << 4 | 3 << 16, 0x100_0000]]);
    assert_eq!(world.translate_ok(0x7000, Access::READ).0, 0x5000, "first-stage: stays");
    assert_eq!(world.translate(nested, 0x7000, Access::READ).unwrap().gpa.0, 0x6000, "nested: goes");
}

#[test]
fn accessed_dirty_and_rights_stay_as_they_were() {
    let mut world = adversarial();
    let root = world.bind_first_stage(Level::FOUR);
    let leaf = world.map(root, Level::FOUR, 0x7000, 0x5000 | USER_PAGE, 12);
    world.translate_ok(0x7000, Access::READ_WRITE);
    // Software takes dirty, accessed and the right to write away, and does not invalidate.
    let taken = 0x5000 | USER_PAGE & !2;
    world.store(leaf, taken);
    assert!(world.access(Some(PASID), 0x7000, Access::WRITE).is_ok());
    assert_eq!(world.load(leaf), taken, "a hit sets nothing");
    world.submit_and_wait(&[pasid_iotlb_page(DOMAIN, 5, 0x7000, 1 << 6)]);
    assert!(world.access(Some(PASID), 0x7000, Access::WRITE).is_err());
    assert!(world.access(Some(PASID), 0x7000, Access::READ).is_ok());
    assert_eq!(world.load(leaf), taken | 1 << 5);
}

#[test]
fn resets_and_new_root_tables_leave_nothing() {
    for caching in [Caching::Strict, Caching::Adversarial] {
        let mut world = World::with(UnitConfig { caching, ..UnitConfig::default() });
        let root = world.bind_first_stage(Level::FOUR);
        let leaf = world.map(root, Level::FOUR, 0x7000, 0x5000 | USER_PAGE, 12);
        world.translate_ok(0x7000, Access::READ);
        world.store(leaf, 0x6000 | USER_PAGE);
        // A new root table pointer drops everything, too (CAP.ESRTPS, §6.6).
        world.write32(svadev_spec::vtd::registers::offset::GCMD, 1 << 31 | 1 << 30 | 1 << 26);
        assert_eq!(world.translate_ok(0x7000, Access::READ).0, 0x6000, "{caching:?}");
        world.store(leaf, 0x8000 | USER_PAGE);
        world.unit.reset();
        world.bring_up();
        assert_eq!(world.translate_ok(0x7000, Access::READ).0, 0x8000, "{caching:?}, after a reset");
    }
}

#[test]
fn a_teardown_as_linux_does_it_leaves_nothing() {
    for caching in [Caching::Strict, Caching::Adversarial] {
        let mut world = World::with(UnitConfig { caching, ..UnitConfig::default() });
        let root = world.bind_first_stage(Level::FIVE);
        world.map(root, Level::FIVE, 0x7000, 0x5000 | USER_PAGE, 12);
        world.translate_ok(0x7000, Access::READ_WRITE);
        // intel_pasid_tear_down_entry(): P off, PASID cache, PASID-based IOTLB, device TLB, wait.
        let entry = world.pasid_entry(DEVICE, 5);
        world.store(entry, world.load(entry) & !1);
        world.submit_and_wait(&[pasid_cache(DOMAIN, 5), [6 | 2 << 4 | u64::from(DOMAIN) << 16 | 5 << 32, 0]]);
        assert!(world.access(Some(PASID), 0x7000, Access::READ).is_err());
        // The same PASID and domain for another process.
        let other = world.page();
        world.map(other, Level::FIVE, 0x8000, 0x6000 | USER_PAGE, 12);
        world.bind(DEVICE, 5, DOMAIN, Mode::First { root: other, top: Level::FIVE });
        assert!(!world.translate(Some(PASID), 0x7000, Access::READ).unwrap().is_present(), "{caching:?}");
        assert_eq!(world.translate_ok(0x8000, Access::READ).0, 0x6000);
    }
}

#[test]
fn a_drain_finds_the_page_requests_before_it_in_the_queue() {
    let mut world = adversarial();
    world.bind_first_stage(Level::FOUR);
    for i in 0..3 {
        world.page_request(0x7000 + (i << 12), Access::READ, 1, i == 2);
    }
    world.store(STATUS, 0);
    let [low, high] = wait_descriptor(4);
    world.submit(&[[low | 1 << 7, high]]);
    assert_eq!(world.load(STATUS), 4);
    for i in 0..3 {
        assert_eq!(world.page_request_descriptor(i)[1] & !0xfff, 0x7000 + (i << 12));
    }
    assert_eq!(world.read64(svadev_spec::vtd::registers::offset::PQT), 3 * 32);
}
