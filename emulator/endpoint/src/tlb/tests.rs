use std::collections::HashMap;

use proptest::prelude::*;

use svadev_fabric::Pasid;

use super::*;

const RW: Rights = Rights { read: true, write: true };
const RO: Rights = Rights { read: true, write: false };

fn pasid(n: u32) -> SpaceId {
    SpaceId::new(SourceId::UNIT, Some(Pasid::new(n).unwrap()))
}

const NONE: SpaceId = SpaceId::new(SourceId::UNIT, None);
const IDENTITY: SpaceId = SpaceId::new(SourceId::IDENTITY, None);

fn host(n: usize) -> NonNull<u8> {
    NonNull::new(std::ptr::without_provenance_mut(n)).unwrap()
}

fn range(start: u64, size_log2: u8) -> InvalidateRange {
    InvalidateRange::Naturally { start: Iova(start), size_log2 }
}

#[test]
fn pages_of_each_size_are_found_under_their_own_space_only() {
    let mut tlb = DeviceTlb::new(64);
    tlb.insert(pasid(1), 0x1234, 12, host(0x1000), RW);
    tlb.insert(pasid(1), 0x4020_0000, 21, host(0x20_0000), RO);
    tlb.insert(NONE, 0x1_4000_0000, 30, host(0x4000_0000), RW);
    assert_eq!(tlb.lookup(pasid(1), 0x1fff).unwrap().host, host(0x1000));
    assert_eq!(tlb.lookup(pasid(1), 0x403f_ffff).unwrap().rights, RO);
    assert_eq!(tlb.lookup(NONE, 0x1_7fff_ffff).unwrap().size_log2, 30);
    assert!(tlb.lookup(NONE, 0x1234).is_none());
    assert!(tlb.lookup(pasid(2), 0x1234).is_none());
    assert!(tlb.lookup(pasid(0), 0x1_4000_0000).is_none(), "PASID 0 is not *no PASID*");
}

#[test]
fn a_new_translation_replaces_all_that_cover_the_address() {
    let mut tlb = DeviceTlb::new(64);
    tlb.insert(NONE, 0x20_0000, 12, host(0x1000), RO);
    tlb.insert(NONE, 0x20_0000, 21, host(0x20_0000), RW);
    assert_eq!(tlb.lookup(NONE, 0x20_0000).unwrap().size_log2, 21);
    tlb.insert(NONE, 0x20_1000, 12, host(0x3000), RO);
    assert_eq!(tlb.len(), 1, "the split page is gone");
}

#[test]
fn a_small_range_takes_a_large_page_with_it() {
    let mut tlb = DeviceTlb::new(64);
    tlb.insert(pasid(1), 0x4000_0000, 30, host(0x1000), RW);
    tlb.insert(pasid(2), 0x4000_0000, 30, host(0x1000), RW);
    tlb.invalidate(Invalidation { whose: Whose::Space(pasid(1)), range: range(0x4abc_d000, 12) });
    assert!(tlb.lookup(pasid(1), 0x4000_0000).is_none());
    assert!(tlb.lookup(pasid(2), 0x4000_0000).is_some());
    tlb.invalidate(Invalidation { whose: Whose::Source(SourceId::UNIT), range: range(0x4abc_d000, 12) });
    assert_eq!(tlb.len(), 0, "a global invalidation reaches every PASID");
    tlb.insert(pasid(1), 0x4000_0000, 30, host(0x1000), RW);
    tlb.insert(IDENTITY, 0x4000_0000, 30, host(0x1000), RW);
    tlb.invalidate(Invalidation { whose: Whose::Source(SourceId::UNIT), range: InvalidateRange::All });
    assert!(tlb.lookup(IDENTITY, 0x4000_0000).is_some(), "another source's entries stay");
    assert_eq!(tlb.len(), 1);
    tlb.invalidate(Invalidation::ALL);
    assert_eq!(tlb.len(), 0);
}

proptest! {
    /// Whatever happens, the TLB holds nothing that a map with the same history does not hold.
    #[test]
    fn nothing_survives_its_invalidation(ops in prop::collection::vec(
        (any::<bool>(), 0u32..4, 0u64..64, 0usize..3, 12u8..40, any::<bool>(), any::<bool>()), 1..200)) {
        let mut tlb = DeviceTlb::new(32);
        let mut model: HashMap<(u32, u8, u64), usize> = HashMap::new();
        let mut next = 0x1000;
        for (insert, space, page, class, size_log2, global, all) in ops {
            let iova = page * 0x8_3000;
            let space_of = |s: u32| if s > 0 { pasid(s) } else { NONE };
            if insert {
                next += 0x1000;
                let log2 = SIZES_LOG2[class];
                model.retain(|&(s, l, p), _| s != space || iova >> l != p);
                model.insert((space, log2, iova >> log2), next);
                tlb.insert(space_of(space), iova, log2, host(next), RW);
            } else {
                let r = if all { InvalidateRange::All } else { range(iova >> size_log2 << size_log2, size_log2) };
                model.retain(|&(s, l, p), _| !((global || s == space) && r.overlaps(Iova(p << l), l)));
                let whose = if global { Whose::Source(SourceId::UNIT) } else { Whose::Space(space_of(space)) };
                tlb.invalidate(Invalidation { whose, range: r });
            }
            for s in 0..4 {
                for page in 0..64u64 {
                    let iova = page * 0x8_3000;
                    if let Some(hit) = tlb.lookup(space_of(s), iova) {
                        prop_assert_eq!(model.get(&(s, hit.size_log2, iova >> hit.size_log2)), Some(&hit.host.as_ptr().addr()));
                    }
                }
            }
            prop_assert!(tlb.len() <= 32);
        }
    }
}

#[test]
fn neighbouring_pages_and_neighbouring_processes_spread_over_the_sets() {
    for (pages, spaces) in [(1024, 1), (1, 1024), (32, 32), (4, 256)] {
        let mut tlb = DeviceTlb::new(4096);
        for space in 0..spaces {
            for page in 0..pages {
                tlb.insert(pasid(space), 0x7f12_3450_0000 + page * 0x1000, 12, host(0x1000), RW);
            }
        }
        assert!(tlb.len() > 950, "{pages} pages of {spaces} processes: {} of 1024 kept", tlb.len());
    }
}
