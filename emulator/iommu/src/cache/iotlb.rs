//! The IOTLB and the paging-structure caches (§6.2.4, §6.2.5).
use svadev_mutation::mutant;

use super::Clock;
use super::key::{Key, Space};
use super::store::{AuditCursor, Store, TagFloors};

/// Pages that a page-selective invalidation probes one by one; a wider one takes the whole PASID or domain, which is cheaper
/// and allowed (§6.5.2.3: hardware may invalidate more).
const MAX_PROBED_PAGES_LOG2: u8 = 6;

/// Sizes a leaf can have: the classes of IOTLB entries.
const PAGE_SIZES_LOG2: [u8; 3] = [12, 21, 30];

/// Entries that can point to a table, lowest first: the classes of paging-structure cache entries.
const TABLE_LEVELS: [u8; 4] = [2, 3, 4, 5];

/// Entries of the paging-structure caches: enough for 8 GiB of neighbouring 4 KiB pages.
const SHORTCUTS: usize = 4096;

/// A page's translation for user requests that do not execute. One word, address above flags: a structure of small fields would be
/// written in pieces and read as a whole, which processors stall on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mapping(u64);

/// What a walk had found when it left an entry for the table below. One word, as [`Mapping`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shortcut(u64);

const READ: u64 = 1;
const WRITE: u64 = 1 << 1;
const WRITE_KNOWN: u64 = 1 << 2;
const EXECUTE: u64 = 1 << 2;
/// The entry depends on second-stage mappings that its tag does not tell.
const NESTED: u64 = 1 << 3;
/// Two bits above this: the place of a page's size in [`PAGE_SIZES_LOG2`].
const SIZE_SHIFT: u32 = 4;
const ADDRESS: u64 = !0xfff;

fn flag(set: bool, bit: u64) -> u64 {
    if set { bit } else { 0 }
}

impl Mapping {
    /// `None` for a size that no table entry has. `write`: writes are allowed, and the dirty bit is set. `write_known`: that is all there is
    /// to say; clear when the walk was for a request that only reads, so that dirty was left alone.
    pub(crate) fn new(gpa: u64, size_log2: u8, read: bool, write: bool, write_known: bool) -> Option<Self> {
        let class = PAGE_SIZES_LOG2.iter().position(|&s| s == size_log2)? as u64;
        let rights = flag(read, READ) | flag(write, WRITE) | flag(write_known, WRITE_KNOWN);
        Some(Self(gpa & ADDRESS | class << SIZE_SHIFT | rights))
    }

    #[allow(clippy::cast_possible_truncation, reason = "two bits")]
    fn class(self) -> u8 {
        (self.0 >> SIZE_SHIFT & 3) as u8
    }

    /// First byte of the page.
    pub(crate) fn gpa(self) -> u64 {
        self.0 & ADDRESS
    }

    pub(crate) fn size_log2(self) -> u8 {
        12 + 9 * self.class()
    }

    pub(crate) fn read(self) -> bool {
        self.0 & READ != 0
    }

    pub(crate) fn write(self) -> bool {
        self.0 & WRITE != 0
    }

    pub(crate) fn write_known(self) -> bool {
        self.0 & WRITE_KNOWN != 0
    }
}

impl Shortcut {
    /// Address of the table below, and the rights of all entries so far: R/W, U/S and no XD of first-stage entries, W and R of
    /// second-stage ones.
    pub(crate) fn new(table: u64, write: bool, read: bool, execute: bool) -> Self {
        Self(table & ADDRESS | flag(read, READ) | flag(write, WRITE) | flag(execute, EXECUTE))
    }

    pub(crate) fn table(self) -> u64 {
        self.0 & ADDRESS
    }

    /// U/S, or R.
    pub(crate) fn read(self) -> bool {
        self.0 & READ != 0
    }

    /// R/W, or W.
    pub(crate) fn write(self) -> bool {
        self.0 & WRITE != 0
    }

    /// No XD.
    pub(crate) fn execute(self) -> bool {
        self.0 & EXECUTE != 0
    }
}

/// The IOTLB, and the paging-structure caches, which every invalidation of it governs as well. Entries are
/// packed words.
#[derive(Debug)]
pub(crate) struct Iotlb {
    floors: TagFloors,
    pages: Store<u64>,
    shortcuts: Store<u64>,
    /// Which of [`PAGE_SIZES_LOG2`] were ever put in: the others need no probe.
    sizes: [bool; 3],
    /// A nested mapping was put in: its second stage has no page tag of its own (§6.5.2.3).
    nested: bool,
    /// Nothing goes that an invalidation does not name.
    exact: bool,
}

impl Iotlb {
    /// `exact`: entries go only when they must.
    pub(crate) fn new(entries: usize, exact: bool) -> Self {
        Self {
            floors: TagFloors::new(),
            pages: Store::new(entries, exact, 0),
            shortcuts: Store::new(SHORTCUTS.max(if exact { entries } else { 0 }), exact, 0),
            sizes: [false; 3],
            nested: false,
            exact,
        }
    }

    /// The mapping of the page around `iova`.
    #[inline]
    pub(crate) fn get(&self, space: Space, iova: u64) -> Option<Mapping> {
        let Store::Sets(pages) = &self.pages else {
            return self.get_slowly(space, iova);
        };
        let floor = self.floors.of(space.word());
        for class in 0..3 {
            if self.sizes[usize::from(class)] {
                let key = Key::new(space, class, iova >> (12 + 9 * class));
                if let Some(&packed) = pages.get(key, key.hash(), floor) {
                    return Some(Mapping(packed));
                }
            }
        }
        None
    }

    #[cold]
    fn get_slowly(&self, space: Space, iova: u64) -> Option<Mapping> {
        let key = |class: u8| Key::new(space, class, iova >> (12 + 9 * class));
        (0..3).find_map(|class| self.pages.get(&self.floors, key(class))).map(Mapping)
    }

    /// Remembers the mapping of the page around `iova`.
    pub(crate) fn insert(&mut self, space: Space, iova: u64, mapping: Mapping, nested: bool, clock: &mut Clock) {
        self.sizes[usize::from(mapping.class())] = true;
        self.nested |= nested;
        let key = Key::new(space, mapping.class(), iova >> mapping.size_log2());
        self.pages.insert(&self.floors, key, mapping.0 | flag(nested, NESTED), clock);
    }

    /// The lowest table on the way to `iova` that is known, and its level; `levels` is the top one's.
    #[inline]
    pub(crate) fn shortcut(&self, space: Space, iova: u64, levels: u8) -> Option<(u8, Shortcut)> {
        let space = path_tag(space);
        let key = |level| Key::new(space, level, iova >> region_log2(level));
        let Store::Sets(shortcuts) = &self.shortcuts else {
            return (2..=levels).find_map(|level| {
                let packed = self.shortcuts.get(&self.floors, key(level))?;
                Some((level - 1, Shortcut(packed)))
            });
        };
        let floor = self.floors.of(space.word());
        for level in 2..=levels {
            let key = key(level);
            if let Some(&packed) = shortcuts.get(key, key.hash(), floor) {
                return Some((level - 1, Shortcut(packed)));
            }
        }
        None
    }

    /// Remembers what the entry at `level` on the way to `iova` leads to. It must be present, and accessed must be set in it (§6.2.5).
    #[inline]
    pub(crate) fn keep_shortcut(
        &mut self,
        space: Space,
        iova: u64,
        level: u8,
        shortcut: Shortcut,
        nested: bool,
        clock: &mut Clock,
    ) {
        self.nested |= nested;
        let space = path_tag(space);
        let key = Key::new(space, level, iova >> region_log2(level));
        self.shortcuts.insert(&self.floors, key, shortcut.0 | flag(nested, NESTED), clock);
    }

    /// Calls `f` for mappings among the next `count` places.
    pub(crate) fn each_page(&self, cursor: &mut AuditCursor, count: usize, mut f: impl FnMut(Key, Mapping)) {
        self.pages.each_after(&self.floors, cursor, count, |key, packed| f(key, Mapping(packed)));
    }

    /// Calls `f` for paging-structure cache entries among the next `count` places; a key's class is the level.
    pub(crate) fn each_shortcut(&self, cursor: &mut AuditCursor, count: usize, mut f: impl FnMut(Key, Shortcut)) {
        self.shortcuts.each_after(&self.floors, cursor, count, |key, packed| f(key, Shortcut(packed & !NESTED)));
    }

    pub(crate) fn invalidate_all(&mut self, clock: &mut Clock) {
        self.floors.raise_all(clock);
        self.pages.clear_exactly();
        self.shortcuts.clear_exactly();
        self.sizes = [false; 3];
        self.nested = false;
    }

    /// Every mapping of the domain, of whatever stage.
    pub(crate) fn invalidate_domain(&mut self, domain_id: u16, clock: &mut Clock) {
        if mutant!(DomainInvalidationDoesNothing) {
            return;
        }
        self.floors.raise_domain(domain_id, clock);
        self.drop_exactly(|key, _| key.domain_id() == domain_id);
    }

    /// Every first-stage and nested mapping of one PASID of the domain.
    pub(crate) fn invalidate_pasid(&mut self, space: Space, clock: &mut Clock) {
        if mutant!(PasidInvalidationDoesNothing) {
            return;
        }
        self.floors.raise_space(space, clock);
        self.drop_exactly(|key, _| key.space_word() == space.word());
    }

    fn drop_exactly(&mut self, doomed: impl Fn(Key, u64) -> bool) {
        self.pages.drop_exactly(&doomed);
        self.shortcuts.drop_exactly(&doomed);
    }

    /// The mappings that share a byte with `1 << pages_log2` pages around `iova`, and the way to them unless `leaf_only` (IH): then
    /// software has changed no entry that points to a table.
    ///
    /// Without a PASID that is a page-selective-within-domain invalidation: second-stage mappings of those pages, and every nested
    /// mapping of the domain, since a nested mapping depends on second-stage pages that its tag does not tell.
    pub(crate) fn invalidate_pages(
        &mut self,
        space: Space,
        iova: u64,
        pages_log2: u8,
        leaf_only: bool,
        clock: &mut Clock,
    ) {
        if !self.exact {
            if !space.has_pasid() && self.nested {
                return self.invalidate_domain(space.domain_id(), clock);
            }
            if pages_log2 > MAX_PROBED_PAGES_LOG2 {
                return if space.has_pasid() {
                    self.invalidate_pasid(space, clock);
                } else {
                    self.invalidate_domain(space.domain_id(), clock);
                };
            }
        } else if !space.has_pasid() && self.nested {
            let nested = |key: Key, packed: u64| key.domain_id() == space.domain_id() && packed & NESTED != 0;
            self.pages.drop_exactly(nested);
            if !leaf_only {
                self.shortcuts.drop_exactly(nested);
            }
        }
        let range_log2 = 12 + pages_log2;
        let first = iova >> range_log2 << range_log2;
        let mut last = first | ((1 << range_log2) - 1);
        if pages_log2 > 0 && mutant!(PageInvalidationOffByOne) {
            last -= 0x1000;
        }
        for (class, size_log2) in (0..).zip(PAGE_SIZES_LOG2) {
            if self.sizes[usize::from(class)] && (class == 0 || !mutant!(PageInvalidationForgetsLargePages)) {
                self.pages.drop_range(space, class, first >> size_log2, last >> size_log2);
            }
        }
        if !leaf_only && !mutant!(PageInvalidationKeepsPaths) {
            for level in TABLE_LEVELS {
                let size_log2 = region_log2(level);
                self.shortcuts.drop_range(space, level, first >> size_log2, last >> size_log2);
            }
        }
    }
}

/// What paging-structure cache entries of `space` are tagged with: the same.
#[inline]
fn path_tag(space: Space) -> Space {
    if mutant!(PagingCachesIgnorePasid) { Space::of_domain(space.domain_id()) } else { space }
}

/// Log2 of the bytes that an entry at `level` covers.
#[inline]
fn region_log2(level: u8) -> u8 {
    12 + 9 * (level - 1)
}
