//! A store that keeps every entry as long as it may ([`Caching::Adversarial`](crate::Caching::Adversarial)).
use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use super::key::{CacheTag, Key};

/// Entries by key. An invalidation removes exactly what it names, and an entry makes room only when the store is full.
/// Lookups and insertions are marked cold, so that this store is not inlined into the default one's fast path.
#[derive(Debug)]
pub(crate) struct Exact<V> {
    entries: BTreeMap<Key, V>,
    capacity: usize,
    /// The last entry that made room. The next one after it is the next to go.
    victim: Key,
}

impl<V: Copy> Exact<V> {
    pub(crate) fn new(capacity: usize) -> Self {
        Self { entries: BTreeMap::new(), capacity, victim: Key::FIRST }
    }

    #[cold]
    pub(crate) fn get(&self, key: Key) -> Option<V> {
        self.entries.get(&key).copied()
    }

    #[cold]
    pub(crate) fn insert(&mut self, key: Key, value: V) {
        if self.entries.insert(key, value).is_none() && self.entries.len() > self.capacity {
            let mut others = self.entries.range(self.victim..).chain(&self.entries).map(|(&k, _)| k);
            let victim = others.find(|&k| k != key).expect("a full store has more than one entry");
            self.entries.remove(&victim);
            self.victim = victim;
        }
    }

    /// Calls `f` for up to `count` entries after `cursor`; starts again when it came to the end.
    pub(crate) fn each_after(&self, cursor: &mut Option<Key>, count: usize, mut f: impl FnMut(Key, V)) {
        use std::ops::Bound::{Excluded, Unbounded};
        let mut last = None;
        let mut entries = self.entries.range((cursor.map_or(Unbounded, Excluded), Unbounded));
        for (&key, &value) in entries.by_ref().take(count) {
            f(key, value);
            last = Some(key);
        }
        *cursor = last.filter(|_| entries.next().is_some());
    }

    pub(crate) fn clear(&mut self) {
        self.entries.clear();
    }

    /// Drops the entries of `tag` and `class` from number `first` to `last`.
    pub(crate) fn drop_range(&mut self, tag: CacheTag, class: u8, first: u64, last: u64) {
        self.drop_if(Key::new(tag, class, first)..=Key::new(tag, class, last), |_| true);
    }

    /// Drops the entries in `range` that `doomed` names. It looks at no other: an invalidation takes time in proportion
    /// to the entries that it may concern.
    pub(crate) fn drop_if(&mut self, range: RangeInclusive<Key>, doomed: impl Fn(V) -> bool) {
        let doomed: Vec<Key> =
            self.entries.range(range).filter(|&(_, &value)| doomed(value)).map(|(&key, _)| key).collect();
        for key in doomed {
            self.entries.remove(&key);
        }
    }
}
