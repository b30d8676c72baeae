//! The IOTLB (§6.2.4), and its invalidations, which concern the paging-structure caches as well.
use std::ops::RangeInclusive;

use svadev_mutation::mutant;
use svadev_spec::vtd::tables::Level;

use super::Clock;
use super::key::{CacheTag, Key};
use super::leaf::{FIRST_FREE, Leaf, PageSize, flag};
use super::store::{ScanCursor, Store, TagFloors};
use super::structures::{PartialWalk, StructureTag, Structures};

/// Log2 of the pages up to which a page-selective invalidation removes them one by one. A wider one invalidates the
/// whole PASID or domain, which is cheaper and allowed (§6.5.2.3: hardware may invalidate more).
const MAX_PROBED_PAGES_LOG2: u8 = 6;

/// The translation of a page for user requests that do not execute: the word of a leaf, and flags of the IOTLB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mapping(u64);

const WRITE_KNOWN: u64 = FIRST_FREE;
/// The entry depends on second-stage mappings that its tag does not name.
const NESTED: u64 = FIRST_FREE << 1;

impl Mapping {
    /// `write_known`: the walk was for a possible write, so `leaf`'s right to write is final and the dirty bit is
    /// set. If it is clear, a write must walk again.
    #[inline]
    pub(crate) fn new(leaf: Leaf, write_known: bool) -> Self {
        Self(leaf.word() | flag(write_known, WRITE_KNOWN))
    }

    #[inline]
    pub(crate) fn leaf(self) -> Leaf {
        Leaf::from_word(self.0)
    }

    #[inline]
    pub(crate) fn write_known(self) -> bool {
        self.0 & WRITE_KNOWN != 0
    }
}

/// The IOTLB and the paging-structure caches, which every invalidation of the IOTLB concerns as well. Entries are
/// packed words.
#[derive(Debug)]
pub(crate) struct TranslationCaches {
    floors: TagFloors,
    pages: Store<u64>,
    structures: Structures,
    /// Which of [`PageSize::ALL`] were put in since the last invalidation of everything: the others need no look.
    sizes: [bool; 3],
    /// A nested mapping was put in. Its second stage has no page tag of its own (§6.5.2.3).
    nested: bool,
    /// An invalidation removes nothing that it does not name.
    exact: bool,
}

impl TranslationCaches {
    /// `exact`: entries are removed only when they must be.
    pub(crate) fn new(entries: usize, exact: bool) -> Self {
        Self {
            floors: TagFloors::new(),
            pages: Store::new(entries, exact, 0),
            structures: Structures::new(exact.then_some(entries)),
            sizes: [false; 3],
            nested: false,
            exact,
        }
    }

    /// The mapping of the page around `iova`.
    #[inline]
    pub(crate) fn get(&self, tag: CacheTag, iova: u64) -> Option<Mapping> {
        for size in PageSize::ALL {
            if self.sizes[usize::from(size.index())] {
                let key = Key::new(tag, size.index(), iova >> size.log2());
                if let Some(packed) = self.pages.get(&self.floors, key) {
                    return Some(Mapping(packed));
                }
            }
        }
        None
    }

    /// Keeps the mapping of the page around `iova`.
    pub(crate) fn insert(&mut self, tag: CacheTag, iova: u64, mapping: Mapping, nested: bool, clock: &mut Clock) {
        let size = mapping.leaf().size();
        self.sizes[usize::from(size.index())] = true;
        self.nested |= nested;
        let key = Key::new(tag, size.index(), iova >> size.log2());
        self.pages.insert(&self.floors, key, mapping.0 | flag(nested, NESTED), clock);
    }

    /// `tag` as walks use it, which look for paging-structure entries and keep new ones.
    #[inline]
    pub(crate) fn structure_tag(&mut self, tag: CacheTag, nested: bool, clock: &mut Clock) -> StructureTag {
        self.nested |= nested;
        StructureTag::new(tag, &self.floors, nested, clock)
    }

    /// The lowest table on the way to `iova` that is known, and its level. `top` is the topmost table's.
    #[inline]
    pub(crate) fn lowest_structure(&self, tag: &StructureTag, iova: u64, top: Level) -> Option<(Level, PartialWalk)> {
        self.structures.lowest(tag, iova, top)
    }

    /// Keeps what the entry at `level` on the way to `iova` leads to. The entry must be present and have accessed set
    /// (§6.2.5). No invalidation came since the tag was made.
    #[inline]
    pub(crate) fn keep_structure(&mut self, tag: &StructureTag, iova: u64, level: Level, partial: PartialWalk) {
        self.structures.insert(tag, iova, level, partial);
    }

    /// Calls `f` for mappings among the next `count` places: tag, first address, and what the entry says.
    pub(crate) fn each_page(&self, cursor: &mut ScanCursor, count: usize, mut f: impl FnMut(CacheTag, u64, Mapping)) {
        self.pages.each_after(&self.floors, cursor, count, |key, packed| {
            let mapping = Mapping(packed);
            f(key.tag(), key.number() << mapping.leaf().size().log2(), mapping);
        });
    }

    /// Calls `f` for paging-structure cache entries among the next `count` places: tag, level, an address that the
    /// entry covers, and what it says.
    pub(crate) fn each_structure(
        &self,
        cursor: &mut ScanCursor,
        count: usize,
        f: impl FnMut(CacheTag, Level, u64, PartialWalk),
    ) {
        self.structures.each_after(&self.floors, cursor, count, f);
    }

    pub(crate) fn invalidate_all(&mut self, clock: &mut Clock) {
        self.floors.raise_all(clock);
        self.pages.clear_exactly();
        self.structures.clear_exactly();
        self.sizes = [false; 3];
        self.nested = false;
    }

    /// Invalidates every mapping of the domain, of whatever stage.
    pub(crate) fn invalidate_domain(&mut self, domain_id: u16, clock: &mut Clock) {
        if mutant!(DomainInvalidationDoesNothing) {
            return;
        }
        self.floors.raise_domain(domain_id, clock);
        self.drop_exactly(&Key::all_of_domain(domain_id));
    }

    /// Invalidates every first-stage and nested mapping of one PASID of the domain.
    pub(crate) fn invalidate_pasid(&mut self, tag: CacheTag, clock: &mut Clock) {
        if mutant!(PasidInvalidationDoesNothing) {
            return;
        }
        self.floors.raise_space(tag, clock);
        self.drop_exactly(&Key::all_of_tag(tag));
    }

    fn drop_exactly(&mut self, range: &RangeInclusive<Key>) {
        self.pages.drop_exactly(range.clone(), |_| true);
        self.structures.drop_exactly(range.clone(), |_| true);
    }

    /// Invalidates the mappings that overlap `1 << pages_log2` pages around `iova`. Unless `leaf_only` (IH), also the
    /// paging-structure entries on the way to them: with IH, software has changed no entry that points to a table.
    ///
    /// Without a PASID this is a page-selective-within-domain invalidation. It invalidates second-stage mappings of
    /// those pages and every nested mapping of the domain, since a nested mapping depends on second-stage pages that
    /// its tag does not name.
    pub(crate) fn invalidate_pages(
        &mut self,
        tag: CacheTag,
        iova: u64,
        pages_log2: u8,
        leaf_only: bool,
        clock: &mut Clock,
    ) {
        if !self.exact {
            if !tag.has_pasid() && self.nested {
                return self.invalidate_domain(tag.domain_id(), clock);
            }
            if pages_log2 > MAX_PROBED_PAGES_LOG2 {
                return if tag.has_pasid() {
                    self.invalidate_pasid(tag, clock);
                } else {
                    self.invalidate_domain(tag.domain_id(), clock);
                };
            }
        } else if !tag.has_pasid() && self.nested {
            let domain = Key::all_of_domain(tag.domain_id());
            self.pages.drop_exactly(domain.clone(), |packed| packed & NESTED != 0);
            if !leaf_only {
                self.structures.drop_exactly(domain, |nested| nested);
            }
        }
        let range_log2 = 12 + pages_log2;
        let first = iova >> range_log2 << range_log2;
        let mut last = first | ((1 << range_log2) - 1);
        if pages_log2 > 0 && mutant!(PageInvalidationOffByOne) {
            last -= 0x1000;
        }
        for size in PageSize::ALL {
            if self.sizes[usize::from(size.index())]
                && (size == PageSize::SIZE_4KIB || !mutant!(PageInvalidationForgetsLargePages))
            {
                self.pages.drop_range(tag, size.index(), first >> size.log2(), last >> size.log2());
            }
        }
        if !leaf_only && !mutant!(PageInvalidationKeepsPaths) {
            self.structures.drop_range(tag, first, last);
        }
    }
}
