//! The paging-structure caches (§6.2.5): the tables that walks passed through.
use std::ops::RangeInclusive;

use svadev_mutation::mutant;
use svadev_spec::vtd::tables::{FirstStageEntry, Level};

use super::Clock;
use super::by_level::{ByLevel, Spread};
use super::exact::Exact;
use super::key::{CacheTag, Key};
use super::leaf::flag;
use super::store::{ScanCursor, TagFloors};

/// The smallest capacity of an exact store.
const EXACT_ENTRIES: usize = 4096;

/// A partial walk: the address of the next table and the rights accumulated so far, packed into one word as
/// [`Leaf`](super::Leaf) is. Rights lie where first-stage entries have them (§9.7), so that one more level costs two
/// operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PartialWalk(u64);

/// Above bit 11.
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
/// R/W.
const WRITE: u64 = 1 << 1;
/// U/S.
const READ: u64 = 1 << 2;
/// Not XD.
const EXECUTE: u64 = 1 << 63;
const RIGHTS: u64 = READ | WRITE | EXECUTE;
/// The entry depends on second-stage mappings that its tag does not name.
const NESTED: u64 = 1 << 3;

impl PartialWalk {
    /// The topmost table: nothing is forbidden yet.
    #[inline]
    pub(crate) fn top(table: u64) -> Self {
        Self(table & ADDRESS | RIGHTS)
    }

    /// Address of the table below, and the rights of all second-stage entries so far.
    #[inline]
    pub(crate) fn second_stage(table: u64, write: bool, read: bool) -> Self {
        Self(table & ADDRESS | flag(read, READ) | flag(write, WRITE) | EXECUTE)
    }

    /// What `entry` in this table leads to.
    #[inline]
    pub(crate) fn through(self, entry: FirstStageEntry) -> Self {
        let allowed = u64::from(entry) ^ EXECUTE;
        let above = self.0 | flag(mutant!(UpperWriteIgnored), WRITE);
        Self(allowed & ADDRESS | allowed & above & RIGHTS)
    }

    #[inline]
    pub(crate) fn table(self) -> u64 {
        self.0 & ADDRESS
    }

    /// U/S, or R.
    #[inline]
    pub(crate) fn read(self) -> bool {
        self.0 & READ != 0
    }

    /// R/W, or W.
    #[inline]
    pub(crate) fn write(self) -> bool {
        self.0 & WRITE != 0
    }

    /// No XD.
    #[inline]
    pub(crate) fn execute(self) -> bool {
        self.0 & EXECUTE != 0
    }
}

/// A cache tag as the paging-structure caches use it, worked out once for all levels of a walk.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StructureTag {
    tag: CacheTag,
    spread: Spread,
    /// Entries born up to this time do not count.
    floor: u64,
    /// When new entries are born.
    born: u64,
    /// [`NESTED`] or nothing.
    flags: u64,
}

impl StructureTag {
    #[inline]
    pub(super) fn new(tag: CacheTag, floors: &TagFloors, nested: bool, clock: &mut Clock) -> Self {
        let tag = if mutant!(PagingCachesIgnorePasid) { CacheTag::of_domain(tag.domain_id()) } else { tag };
        let (spread, floor) = (Spread::of(tag), floors.of(tag.word()));
        Self { tag, spread, floor, born: clock.tick(), flags: flag(nested, NESTED) }
    }

    pub(crate) fn cache_tag(&self) -> CacheTag {
        self.tag
    }

    /// Whether entries depend on second-stage mappings as well.
    pub(crate) fn nested(&self) -> bool {
        self.flags != 0
    }

    #[inline]
    fn key(&self, level: Level, iova: u64) -> Key {
        Key::new(self.tag, level.number(), level.region(iova))
    }
}

/// The paging-structure caches. Entries have tag, level and region; a key's class is the level.
#[derive(Debug)]
pub(crate) enum Structures {
    /// Fast. An entry may be removed early: when another one needs its place, or when two tags share a floor.
    Direct(ByLevel),
    /// Entries stay as long as the specification permits.
    Exact(Exact<u64>),
}

impl Structures {
    /// `exact`: entries are removed only when they must be, and there is room for at least this many.
    pub(crate) fn new(exact: Option<usize>) -> Self {
        match exact {
            Some(entries) => Self::Exact(Exact::new(entries.max(EXACT_ENTRIES))),
            None => Self::Direct(ByLevel::new()),
        }
    }

    /// The lowest table on the way to `iova` that is known, and its level. `top` is the topmost table's.
    #[inline]
    pub(crate) fn lowest(&self, tag: &StructureTag, iova: u64, top: Level) -> Option<(Level, PartialWalk)> {
        let Self::Direct(direct) = self else { return self.lowest_exactly(tag, iova, top) };
        let mut table = Level::ONE;
        while table < top {
            // The entry that points to the table is one level higher.
            let level = table.above();
            if let Some(packed) = direct.get(tag.spread, tag.key(level, iova), tag.floor) {
                return Some((table, PartialWalk(packed)));
            }
            table = level;
        }
        None
    }

    #[cold]
    fn lowest_exactly(&self, tag: &StructureTag, iova: u64, top: Level) -> Option<(Level, PartialWalk)> {
        let Self::Exact(exact) = self else { return None };
        let levels = Level::WITH_TABLES.into_iter().take_while(|&level| level <= top);
        levels.into_iter().find_map(|level| Some((level.below()?, PartialWalk(exact.get(tag.key(level, iova))?))))
    }

    /// Keeps what the entry at `level` on the way to `iova` leads to.
    #[inline]
    pub(crate) fn insert(&mut self, tag: &StructureTag, iova: u64, level: Level, partial: PartialWalk) {
        let key = tag.key(level, iova);
        let packed = partial.0 | tag.flags;
        match self {
            Self::Direct(direct) => direct.insert(tag.spread, key, packed, tag.born),
            Self::Exact(exact) => exact.insert(key, packed),
        }
    }

    /// Calls `f` for the entries that count among the next `count` places or entries: tag, level, an address that the
    /// entry covers, and what it says.
    pub(crate) fn each_after(
        &self,
        floors: &TagFloors,
        cursor: &mut ScanCursor,
        count: usize,
        mut f: impl FnMut(CacheTag, Level, u64, PartialWalk),
    ) {
        let mut f = |key: Key, packed| {
            let level = Level::new(key.class()).expect("the class of a structure's key is its level");
            f(key.tag(), level, key.number() << level.covers_log2(), PartialWalk(packed & !NESTED));
        };
        match self {
            Self::Direct(direct) => direct.each_after(&mut cursor.set, count, |key, packed, born| {
                if floors.lets_live(key.tag_word(), born) {
                    f(key, packed);
                }
            }),
            Self::Exact(exact) => exact.each_after(&mut cursor.key, count, f),
        }
    }

    /// Drops the entries of `tag` that cover addresses from `first` to `last`. The caller bounds the number of pages
    /// between them unless the store is exact.
    pub(crate) fn drop_range(&mut self, tag: CacheTag, first: u64, last: u64) {
        for level in Level::WITH_TABLES {
            let (first, last) = (level.region(first), level.region(last));
            let level = level.number();
            match self {
                Self::Direct(direct) => {
                    for number in first..=last {
                        direct.remove(Key::new(tag, level, number));
                    }
                }
                Self::Exact(exact) => exact.drop_range(tag, level, first, last),
            }
        }
    }

    /// Drops the entries that `doomed` names by key and by whether they are nested, if the store is exact. In the other
    /// store, floors do that.
    pub(crate) fn drop_exactly(&mut self, range: RangeInclusive<Key>, doomed: impl Fn(bool) -> bool) {
        if let Self::Exact(exact) = self {
            exact.drop_if(range, |packed| doomed(packed & NESTED != 0));
        }
    }

    pub(crate) fn clear_exactly(&mut self) {
        if let Self::Exact(exact) = self {
            exact.clear();
        }
    }
}
