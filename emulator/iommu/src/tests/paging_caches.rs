//! Paging-structure caches (§6.2.5): seen by what a walk finds after software changed an entry that points to a table.
use svadev_fabric::{Access, Pasid};
use svadev_spec::vtd::registers::offset;
use svadev_spec::vtd::tables::Level;

use super::world::{
    DEVICE, DOMAIN, Mode, PASID, RAM, SS_R, SS_W, USER_PAGE, World, pasid_cache, pasid_iotlb_page, wait_descriptor,
};
use crate::{Caching, UnitConfig};

const CACHING: [Caching; 2] = [Caching::Strict, Caching::Adversarial];
/// Invalidation hint.
const IH: u64 = 1 << 6;

/// What the level-2 entry for 0x7000 and 0x9000 leads to before and after software changed it.
const OLD: u64 = 0x5000;
const NEW: u64 = 0x6000;

fn caching(caching: Caching) -> World {
    World::with(UnitConfig { caching, ..UnitConfig::default() })
}

/// A table whose entry for 0x9000 is `to`, and that the level-2 entry at `at` will point to.
fn redirect(world: &mut World, at: u64, bits: u64, to: u64) {
    let table = world.page();
    world.store(table + 8 * 9, to | bits);
    world.store(at, table | bits);
}

/// 0x7000 was translated, so that the way to it is cached; then the way changed. 0x9000, never translated, tells which
/// way is taken.
fn changed(mode: Caching) -> World {
    let mut world = caching(mode);
    let root = world.bind_first_stage(Level::FOUR);
    world.map(root, Level::FOUR, 0x7000, 0x4000 | USER_PAGE, 12);
    let leaf = world.map(root, Level::FOUR, 0x9000, OLD | USER_PAGE, 12);
    world.translate_ok(0x7000, Access::READ);
    let level2 = level2_entry(&world, root, leaf);
    redirect(&mut world, level2, USER_PAGE, NEW);
    world
}

/// Where the entry is that points to the table of `leaf`, in four-level tables for addresses below 2 MiB.
fn level2_entry(world: &World, root: u64, leaf: u64) -> u64 {
    let next = |at: u64| world.load(at) & 0xf_ffff_ffff_f000;
    let level2 = next(next(root));
    assert_eq!(next(level2), leaf & !0xfff);
    level2
}

fn leads_to(world: &mut World) -> u64 {
    world.translate_ok(0x9000, Access::READ).0
}

#[test]
fn the_way_to_a_page_stays_until_it_is_invalidated() {
    let pasid_iotlb = |did: u64, pasid: u64| [6 | 2 << 4 | did << 16 | pasid << 32, 0];
    let page = |high: u64| [2 | 3 << 4 | u64::from(DOMAIN) << 16, high];
    let cases = [
        ("a wait", wait_descriptor(1), OLD),
        ("global", [2 | 1 << 4, 0], NEW),
        ("this domain", [2 | 2 << 4 | 1 << 16, 0], NEW),
        ("another domain", [2 | 2 << 4 | 2 << 16, 0], OLD),
        ("pages of the domain: second stage only", page(0x9000), OLD),
        ("this PASID", pasid_iotlb(1, 5), NEW),
        ("another PASID", pasid_iotlb(1, 6), OLD),
        ("this PASID in another domain", pasid_iotlb(2, 5), OLD),
        ("this page", pasid_iotlb_page(1, 5, 0x9000, 0), NEW),
        ("this page, only leaves changed", pasid_iotlb_page(1, 5, 0x9000, IH), OLD),
        ("a page that shares the entry", pasid_iotlb_page(1, 5, 0x1f_f000, 0), NEW),
        ("a page that does not", pasid_iotlb_page(1, 5, 0x20_0000, 0), OLD),
        ("64 pages that share it", pasid_iotlb_page(1, 5, 0x4_0000, 6), NEW),
        ("64 pages, only leaves changed", pasid_iotlb_page(1, 5, 0, 6 | IH), OLD),
        ("512 pages with it", pasid_iotlb_page(1, 5, 0, 9), NEW),
        ("PASID cache only", pasid_cache(1, 5), OLD),
    ];
    for mode in CACHING {
        for (name, descriptor, to) in cases {
            let mut world = changed(mode);
            world.submit_and_wait(&[descriptor]);
            assert_eq!(leads_to(&mut world), to, "{name}, {mode:?}");
            assert_eq!(world.read32(offset::FSTS) & 0xff, 0);
        }
    }
    let mut world = changed(Caching::None);
    assert_eq!(leads_to(&mut world), NEW);
}

#[test]
fn every_level_is_kept_and_the_lowest_is_used() {
    for mode in CACHING {
        let mut world = caching(mode);
        let root = world.bind_first_stage(Level::FIVE);
        // One address that shares the first `n` levels with 0x7000 each.
        let others = [0x9000u64, 0x20_0000, 1 << 30, 1 << 39];
        world.map(root, Level::FIVE, 0x7000, 0x4000 | USER_PAGE, 12);
        for other in others {
            world.map(root, Level::FIVE, other, OLD | USER_PAGE, 12);
        }
        world.translate_ok(0x7000, Access::READ);
        // Nobody who starts at the root finds anything any more.
        world.store(root, 0);
        for other in others {
            assert_eq!(world.translate_ok(other, Access::READ).0, OLD, "{other:#x}, {mode:?}");
        }
        assert!(!world.translate(Some(PASID), 1 << 48, Access::READ).unwrap().is_present(), "nothing in common");
    }
}

#[test]
fn rights_above_a_kept_entry_count() {
    for mode in CACHING {
        let mut world = caching(mode);
        let root = world.bind_first_stage(Level::FOUR);
        let first = world.map(root, Level::FOUR, 0x7000, 0x4000 | USER_PAGE, 12);
        world.map(root, Level::FOUR, 0x8000, 0x4000 | USER_PAGE, 12);
        let level2 = level2_entry(&world, root, first);
        world.store(level2, world.load(level2) & !2);
        for iova in [0x7000, 0x8000] {
            assert!(!world.translate(Some(PASID), iova, Access::READ_WRITE).unwrap().access.write, "{mode:?}");
        }
    }
}

#[test]
fn more_rights_above_are_found_at_once_or_after_the_page_request() {
    for (mode, at_once) in [(Caching::Strict, true), (Caching::Adversarial, false)] {
        let mut world = caching(mode);
        let root = world.bind_first_stage(Level::FOUR);
        let first = world.map(root, Level::FOUR, 0x7000, 0x4000 | USER_PAGE, 12);
        world.map(root, Level::FOUR, 0x8000, 0x4000 | USER_PAGE, 12);
        let level2 = level2_entry(&world, root, first);
        world.store(level2, world.load(level2) & !2);
        assert!(world.access(Some(PASID), 0x7000, Access::READ).is_ok());
        // More is allowed now, and nothing was invalidated: a fault is permitted, and a second one after a page request
        // is not.
        world.store(level2, world.load(level2) | 2);
        assert_eq!(world.access(Some(PASID), 0x8000, Access::WRITE).is_ok(), at_once, "{mode:?}");
        world.page_request(0x8000, Access::WRITE, 1, true);
        assert!(world.access(Some(PASID), 0x8000, Access::WRITE).is_ok());
    }
}

#[test]
fn what_is_not_present_is_no_way() {
    for mode in CACHING {
        let mut world = caching(mode);
        let root = world.bind_first_stage(Level::FOUR);
        assert!(!world.translate(Some(PASID), 0x7000, Access::READ).unwrap().is_present());
        world.map(root, Level::FOUR, 0x7000, OLD | USER_PAGE, 12);
        assert_eq!(world.translate_ok(0x7000, Access::READ).0, OLD, "{mode:?}");
    }
}

#[test]
fn second_stage_ways_belong_to_the_domain() {
    let page = |high: u64| [2 | 3 << 4 | 2 << 16, high];
    for mode in CACHING {
        for (descriptor, to) in [
            (wait_descriptor(1), OLD),
            (page(0x9000), NEW),
            (page(0x9000 | IH), OLD),
            (page(0x20_0000), OLD),
            ([2 | 2 << 4 | 2 << 16, 0], NEW),
            ([6 | 2 << 4 | 2 << 16 | 5 << 32, 0], OLD),
        ] {
            let mut world = caching(mode);
            let root = world.page();
            let bits = SS_R | SS_W;
            world.bind(DEVICE, 5, 2, Mode::Second { root, top: Level::FOUR });
            world.bind(DEVICE, 6, 2, Mode::Second { root, top: Level::FOUR });
            world.map(root, Level::FOUR, 0x7000, 0x4000 | bits, 12);
            let mut table = root;
            for _ in 0..2 {
                table = world.load(table) & !0xfff;
            }
            let leaf_table = world.load(table) & !0xfff;
            world.store(leaf_table + 8 * 9, OLD | bits);
            world.translate_ok(0x7000, Access::READ);
            redirect(&mut world, table, bits, NEW);
            world.submit_and_wait(&[descriptor]);
            let other = world.translate(Some(Pasid::from_low_bits(6)), 0x9000, Access::READ).unwrap();
            assert_eq!(other.gpa.0, to, "{descriptor:x?}, {mode:?}");
        }
    }
}

#[test]
fn nested_ways_go_with_pages_of_the_domain() {
    for mode in CACHING {
        for (descriptor, to) in [
            (wait_descriptor(1), OLD),
            ([2 | 3 << 4 | 3 << 16, 0x1000], NEW),
            (pasid_iotlb_page(3, 5, 0x9000, 0), NEW),
            (pasid_iotlb_page(3, 5, 0x9000, IH), OLD),
        ] {
            let mut world = caching(mode);
            let (root, second_root) = (world.page(), world.page());
            world.bind(DEVICE, 5, 3, Mode::Nested { root, second_root });
            for page in (0..RAM).step_by(0x20_0000) {
                world.map(second_root, Level::FOUR, page, page | SS_R | SS_W, 21);
            }
            world.map(root, Level::FOUR, 0x7000, 0x4000 | USER_PAGE, 12);
            let leaf = world.map(root, Level::FOUR, 0x9000, OLD | USER_PAGE, 12);
            world.translate_ok(0x7000, Access::READ);
            let level2 = level2_entry(&world, root, leaf);
            redirect(&mut world, level2, USER_PAGE, NEW);
            world.submit_and_wait(&[descriptor]);
            assert_eq!(leads_to(&mut world), to, "{descriptor:x?}, {mode:?}");
        }
    }
}

#[test]
fn the_invalidation_address_register_has_the_hint_too() {
    for (hint, to) in [(IH, OLD), (0, NEW)] {
        let mut world = caching(Caching::Strict);
        let (root, bits) = (world.page(), SS_R | SS_W);
        // Register-based commands are for legacy mode: TT 1, AW 1, domain 2.
        let (root_table, contexts) = (world.page(), world.page());
        world.store(root_table, contexts | 1);
        world.store(contexts + 16 * u64::from(DEVICE.devfn()) + 8, 1 | 2 << 8);
        world.store(contexts + 16 * u64::from(DEVICE.devfn()), root | 1 | 1 << 2);
        world.write64(offset::RTADDR, root_table);
        world.write32(offset::GCMD, 1 << 30 | 1 << 31);
        world.map(root, Level::THREE, 0x7000, 0x4000 | bits, 12);
        world.map(root, Level::THREE, 0x9000, OLD | bits, 12);
        world.translate(None, 0x7000, Access::READ).unwrap();
        let level2 = world.load(root) & !0xfff;
        redirect(&mut world, level2, bits, NEW);
        world.write64(crate::IOTLB_REGISTER_OFFSET, 0x9000 | hint);
        world.write64(crate::IOTLB_REGISTER_OFFSET + 8, 1 << 63 | 3 << 60 | 2 << 32);
        assert_eq!(world.read64(crate::IOTLB_REGISTER_OFFSET + 8) >> 57 & 3, 3, "carried out as pages");
        assert_eq!(world.translate(None, 0x9000, Access::READ).unwrap().gpa.0, to);
    }
}
