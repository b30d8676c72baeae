//! Entries under tags, with every invalidation that tags allow, in one of two ways.
use std::ops::RangeInclusive;

use super::exact::Exact;
use super::key::{CacheTag, Key};
use super::{Clock, Floors, Table};

/// The floors of domains and PASIDs, shared by the stores that the same invalidations concern.
#[derive(Debug)]
pub(crate) struct TagFloors {
    all: u64,
    domains: Floors,
    pasids: Floors,
    /// The highest of all.
    latest: u64,
}

impl TagFloors {
    pub(crate) fn new() -> Self {
        Self { all: 0, domains: Floors::new(), pasids: Floors::new(), latest: 0 }
    }

    /// Entries of `tag` count if they were born after this time.
    #[inline]
    pub(crate) fn of(&self, tag_word: u64) -> u64 {
        self.all.max(self.domains.of(tag_word >> 21)).max(self.pasids.of(tag_word))
    }

    /// Whether an entry of `tag` counts. Most were born after the latest invalidation of all: then no floor is read.
    #[inline]
    pub(crate) fn lets_live(&self, tag_word: u64, born: u64) -> bool {
        born > self.latest || self.lets_live_by_tag(tag_word, born)
    }

    #[cold]
    fn lets_live_by_tag(&self, tag_word: u64, born: u64) -> bool {
        born > self.of(tag_word)
    }

    pub(crate) fn raise_all(&mut self, clock: &mut Clock) {
        self.latest = clock.tick();
        self.all = self.latest;
    }

    pub(crate) fn raise_domain(&mut self, domain_id: u16, clock: &mut Clock) {
        self.latest = clock.tick();
        self.domains.raise(domain_id.into(), self.latest);
    }

    pub(crate) fn raise_space(&mut self, tag: CacheTag, clock: &mut Clock) {
        self.latest = clock.tick();
        self.pasids.raise(tag.word(), self.latest);
    }
}

/// Where a scan of a store goes on.
#[derive(Debug, Default)]
pub(crate) struct ScanCursor {
    pub(super) set: usize,
    pub(super) key: Option<Key>,
}

/// A bounded number of entries.
#[derive(Debug)]
pub(crate) enum Store<V> {
    /// Fast. An entry may be removed early: when a set is full, or when two tags share a floor.
    Sets(Table<Key, V>),
    /// Entries stay as long as the specification permits.
    Exact(Exact<V>),
}

impl<V: Copy> Store<V> {
    pub(crate) fn new(entries: usize, exact: bool, blank: V) -> Self {
        if exact { Self::Exact(Exact::new(entries)) } else { Self::Sets(Table::new(entries, Key::FIRST, blank)) }
    }

    #[inline]
    pub(crate) fn get(&self, floors: &TagFloors, key: Key) -> Option<V> {
        match self {
            Self::Sets(table) => {
                let (&value, born) = table.get_with_birth(key, key.hash())?;
                floors.lets_live(key.tag_word(), born).then_some(value)
            }
            Self::Exact(exact) => exact.get(key),
        }
    }

    #[inline]
    pub(crate) fn insert(&mut self, floors: &TagFloors, key: Key, value: V, clock: &mut Clock) {
        match self {
            Self::Sets(table) => {
                let alive = |key: Key, born| floors.lets_live(key.tag_word(), born);
                table.insert(key, key.hash(), value, clock.tick(), alive);
            }
            Self::Exact(exact) => exact.insert(key, value),
        }
    }

    /// Calls `f` for the entries that count among the next `count` sets or entries.
    pub(crate) fn each_after(
        &self,
        floors: &TagFloors,
        cursor: &mut ScanCursor,
        count: usize,
        mut f: impl FnMut(Key, V),
    ) {
        match self {
            Self::Sets(table) => table.each_after(&mut cursor.set, count, |key, &value, born| {
                if floors.lets_live(key.tag_word(), born) {
                    f(key, value);
                }
            }),
            Self::Exact(exact) => exact.each_after(&mut cursor.key, count, f),
        }
    }

    /// Drops the entries of `tag` and `class` from number `first` to `last`. The caller bounds their number unless
    /// the store is exact.
    pub(crate) fn drop_range(&mut self, tag: CacheTag, class: u8, first: u64, last: u64) {
        match self {
            Self::Sets(table) => {
                for number in first..=last {
                    let key = Key::new(tag, class, number);
                    table.remove(key, key.hash());
                }
            }
            Self::Exact(exact) => exact.drop_range(tag, class, first, last),
        }
    }

    /// Drops the entries in `range` that `doomed` names, if the store is exact. In the other store, floors do that.
    pub(crate) fn drop_exactly(&mut self, range: RangeInclusive<Key>, doomed: impl Fn(V) -> bool) {
        if let Self::Exact(exact) = self {
            exact.drop_if(range, doomed);
        }
    }

    pub(crate) fn clear_exactly(&mut self) {
        if let Self::Exact(exact) = self {
            exact.clear();
        }
    }
}
