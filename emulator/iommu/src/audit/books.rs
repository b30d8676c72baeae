//! The books: which entries the caches hold, or may still hold.
use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use svadev_fabric::{Bdf, InvalidateRange, Iova, Pasid};
use svadev_spec::vtd::tables::Level;

use crate::cache::CacheTag;
use crate::observe::{CacheSlot, CachedEntry, Scope};

/// Sizes a page can have.
pub(super) const SIZES_LOG2: [u8; 3] = [12, 21, 30];
/// In place of a PASID, for requests without one.
pub(super) const NO_PASID: u64 = 1 << 20;
/// In place of a PASID, for a context entry.
const CONTEXT: u64 = 1 << 21;

/// Keys in the books: about 25 MB. If a guest has more translated at once, some of them go unseen.
const MAX_KEYS: usize = 1 << 17;
/// Different translations of one page that a function may hold at once: its engines ask at different times.
const MAX_VALUES: usize = 8;
/// Entries that differ from the tables and are checked again in every slice.
const MAX_RECHECKS: usize = 1024;

/// Which caches hold an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Place {
    /// IOTLB and paging-structure caches.
    Unit,
    /// Context and PASID cache, by requester.
    Entries(Bdf),
    /// A function's device TLBs.
    Function(Bdf),
}

/// What kind of entry is held, smallest first in the books.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Class {
    /// A context or PASID entry.
    Entry,
    /// A page, by the log2 of its size.
    Page(u8),
    /// An entry at this level that points to a table.
    Table(Level),
}

impl Class {
    /// Log2 of the bytes that such an entry is about; 0 for a context or PASID entry.
    pub(super) fn size_log2(self) -> u8 {
        match self {
            Self::Entry => 0,
            Self::Page(size_log2) => size_log2,
            Self::Table(level) => level.covers_log2(),
        }
    }

    /// Its level, if it points to a table.
    pub(super) fn level(self) -> Option<Level> {
        match self {
            Self::Table(level) => Some(level),
            Self::Entry | Self::Page(_) => None,
        }
    }
}

/// Which entry of which cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    pub(super) place: Place,
    /// [`CacheTag::word`] in the unit, a PASID, [`NO_PASID`] or [`CONTEXT`] elsewhere.
    pub(super) space: u64,
    pub(super) class: Class,
    /// The number of the page or region: the address divided by its size.
    pub(super) number: u64,
}

impl Key {
    /// The key of an entry in one of the unit's caches.
    pub(super) fn of(slot: CacheSlot) -> Self {
        match slot {
            CacheSlot::Page { tag, iova, size_log2 } => Self::page(tag, iova, size_log2),
            CacheSlot::Structure { tag, iova, level } => Self::table(tag, iova, level),
            CacheSlot::Pasid { requester, pasid } => Self::pasid(requester, pasid),
            CacheSlot::Context { requester } => Self::context(requester),
        }
    }

    pub(super) fn page(space: CacheTag, iova: u64, size_log2: u8) -> Self {
        Self { place: Place::Unit, space: space.word(), class: Class::Page(size_log2), number: iova >> size_log2 }
    }

    pub(super) fn table(space: CacheTag, iova: u64, level: Level) -> Self {
        Self { place: Place::Unit, space: space.word(), class: Class::Table(level), number: level.region(iova) }
    }

    pub(super) fn pasid(requester: Bdf, pasid: u32) -> Self {
        Self { place: Place::Entries(requester), space: pasid.into(), class: Class::Entry, number: 0 }
    }

    pub(super) fn context(requester: Bdf) -> Self {
        Self { place: Place::Entries(requester), space: CONTEXT, class: Class::Entry, number: 0 }
    }

    pub(super) fn given(requester: Bdf, pasid: Option<Pasid>, iova: u64, size_log2: u8) -> Self {
        let space = pasid.map_or(NO_PASID, |pasid| pasid.get().into());
        Self { place: Place::Function(requester), space, class: Class::Page(size_log2), number: iova >> size_log2 }
    }

    pub(super) fn first_in(place: Place) -> Self {
        Self { place, space: 0, class: Class::Entry, number: 0 }
    }

    pub(super) fn last_in(place: Place) -> Self {
        Self { place, space: u64::MAX, class: Class::Table(Level::FIVE), number: u64::MAX }
    }

    pub(super) fn space(place: Place, space: u64) -> RangeInclusive<Self> {
        Self { space, ..Self::first_in(place) }..=Self { space, ..Self::last_in(place) }
    }

    pub(super) fn is_context(&self) -> bool {
        self.space == CONTEXT
    }

    /// Log2 of the bytes that the entry is about.
    pub(super) fn size_log2(&self) -> u8 {
        self.class.size_log2()
    }

    /// The first address that the entry is about.
    pub(super) fn iova(&self) -> u64 {
        self.number << self.size_log2()
    }

    pub(super) fn overlaps(&self, range: InvalidateRange) -> bool {
        range.overlaps(Iova(self.iova()), self.size_log2())
    }
}

/// An entry in the books.
#[derive(Clone, Copy, Debug)]
pub(super) struct Held {
    pub(super) value: CachedEntry,
    /// It depends on second-stage mappings that its key does not name.
    pub(super) nested: bool,
    /// An invalidation covers it and is under way, or software need not invalidate it.
    pub(super) covered: bool,
    /// When it was first seen to differ from the tables.
    pub(super) stale_since_ns: Option<u64>,
    /// Which piece of a large page differed. That piece is checked until it is right again.
    pub(super) stale_offset: u64,
}

/// The entries that caches hold, or may still hold.
#[derive(Debug, Default)]
pub(super) struct Books {
    held: BTreeMap<Key, Vec<Held>>,
    /// Keys with entries that the next completion removes. A key may be listed twice.
    covered: Vec<Key>,
    rechecks: Vec<Key>,
    /// The last key that was dropped for want of room.
    victim: Option<Key>,
    forgotten: u64,
}

impl Books {
    /// An entry is held from now on. In a cache of the unit it replaces the one before.
    pub(super) fn enter(&mut self, key: Key, value: CachedEntry, nested: bool) {
        let held = Held { value, nested, covered: false, stale_since_ns: None, stale_offset: 0 };
        let values = self.held.entry(key).or_default();
        if !matches!(key.place, Place::Function(_)) {
            values.clear();
        }
        match values.iter_mut().find(|held| held.value == value) {
            // Given out again after an invalidation that may be under way.
            Some(known) => known.covered = false,
            None => {
                if values.len() == MAX_VALUES {
                    values.remove(0);
                    self.forgotten += 1;
                }
                values.push(held);
            }
        }
        if self.held.len() > MAX_KEYS {
            self.make_room(key);
        }
    }

    fn make_room(&mut self, keep: Key) {
        let after = self.victim.unwrap_or(Key::first_in(Place::Unit));
        let victim = self.held.range(after..).chain(&self.held).map(|(&key, _)| key).find(|&key| key != keep);
        if let Some(victim) = victim {
            self.held.remove(&victim);
            self.victim = Some(victim);
            self.forgotten += 1;
        }
    }

    fn each_covered(&mut self, scope: Scope, mut f: impl FnMut(Key, &mut Held)) {
        for range in scope.ranges() {
            for (key, values) in self.held.range_mut(range) {
                values.iter_mut().filter(|held| scope.covers(key, held)).for_each(|held| f(*key, held));
            }
        }
    }

    /// An invalidation is under way.
    pub(super) fn cover(&mut self, scope: Scope) {
        let mut keys = std::mem::take(&mut self.covered);
        self.each_covered(scope, |key, held| {
            if !std::mem::replace(&mut held.covered, true) {
                keys.push(key);
            }
        });
        self.covered = keys;
        // A guest can have entries covered and given out again for ever without a wait. Beyond this bound they are no
        // longer reported.
        if self.covered.len() > 2 * MAX_KEYS {
            self.covered.clear();
            self.forgotten += 1;
        }
    }

    /// Every invalidation that was under way is complete.
    pub(super) fn complete(&mut self) {
        for key in std::mem::take(&mut self.covered) {
            if let Some(values) = self.held.get_mut(&key) {
                values.retain(|held| !held.covered);
                if values.is_empty() {
                    self.held.remove(&key);
                }
            }
        }
    }

    /// Invalidations under way will not complete. Entries that they covered may still be held, and are not reported.
    pub(super) fn abandon(&mut self) {
        self.covered.clear();
    }

    /// Removes entries at once.
    pub(super) fn remove(&mut self, scope: Scope) {
        let mut keys = Vec::new();
        for range in scope.ranges() {
            for (key, values) in self.held.range_mut(range) {
                values.retain(|held| !scope.covers(key, held));
                if values.is_empty() {
                    keys.push(*key);
                }
            }
        }
        for key in keys {
            self.held.remove(&key);
        }
    }

    /// From now on, stale entries of this function (or of all functions) are not reported.
    pub(super) fn stop_reporting(&mut self, function: Option<Bdf>) {
        let (first, last) = function.map_or((Bdf(0), Bdf(u16::MAX)), |bdf| (bdf, bdf));
        let range = Key::first_in(Place::Function(first))..=Key::last_in(Place::Function(last));
        for held in self.held.range_mut(range).flat_map(|(_, values)| values) {
            held.covered = true;
        }
    }

    /// The entries under a key.
    pub(super) fn get(&self, key: &Key) -> &[Held] {
        self.held.get(key).map_or(&[], Vec::as_slice)
    }

    pub(super) fn get_mut(&mut self, key: &Key) -> &mut [Held] {
        self.held.get_mut(key).map_or(&mut [], Vec::as_mut_slice)
    }

    /// The keys after `after`, or the first ones, up to `count`.
    pub(super) fn keys_after(&self, after: Option<Key>, count: usize) -> Vec<Key> {
        use std::ops::Bound::{Excluded, Unbounded};
        let from = after.map_or(Unbounded, Excluded);
        self.held.range((from, Unbounded)).take(count).map(|(&key, _)| key).collect()
    }

    /// An entry differs from the tables: it is checked again soon.
    pub(super) fn recheck(&mut self, key: Key) {
        if self.rechecks.len() < MAX_RECHECKS {
            self.rechecks.push(key);
        }
    }

    pub(super) fn take_rechecks(&mut self) -> Vec<Key> {
        let mut keys = std::mem::take(&mut self.rechecks);
        keys.sort_unstable();
        keys.dedup();
        keys
    }

    #[cfg(test)]
    pub(super) fn stale(&self, function: Bdf) -> bool {
        let place = Place::Function(function);
        let range = Key::first_in(place)..=Key::last_in(place);
        self.held.range(range).flat_map(|(_, values)| values).any(|held| held.stale_since_ns.is_some())
    }

    pub(super) fn len(&self) -> usize {
        self.held.len()
    }

    /// How many entries were dropped for want of room. If any were, an entry that is not in the books proves nothing.
    pub(super) fn forgotten(&self) -> u64 {
        self.forgotten
    }
}
