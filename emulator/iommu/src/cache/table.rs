//! A set-associative table.

/// Entries of a set.
const WAYS: usize = 4;

#[derive(Clone, Copy, Debug)]
struct Entry<K, V> {
    key: K,
    /// 0 in an empty place: no floor is lower, so it never counts.
    born: u64,
    value: V,
}

/// Aligned to cache lines: a set of 32-byte entries is two neighbouring ones, which processors fetch together.
#[derive(Clone, Copy, Debug)]
#[repr(align(128))]
struct Set<K, V>([Entry<K, V>; WAYS]);

/// A fixed number of entries in sets of four. A full set replaces its entries in turn, invalidated ones first.
#[derive(Debug)]
pub(crate) struct Table<K, V> {
    sets: Box<[Set<K, V>]>,
    /// How far a hash is shifted to leave a set's number.
    shift: u32,
    victim: usize,
}

impl<K: Copy + Eq, V: Copy> Table<K, V> {
    /// `entries` is a power of two, at least 8. `key` and `value` fill empty places and are never found.
    pub(crate) fn new(entries: usize, key: K, value: V) -> Self {
        assert!(entries.is_power_of_two() && entries >= 2 * WAYS, "table of {entries} entries");
        let sets = entries / WAYS;
        Self {
            sets: vec![Set([Entry { key, born: 0, value }; WAYS]); sets].into(),
            shift: 64 - sets.trailing_zeros(),
            victim: 0,
        }
    }

    /// The set of a hash whose highest bits depend on all of the key.
    #[allow(clippy::cast_possible_truncation, reason = "after the shift the number is below the number of sets")]
    #[inline]
    fn set(&self, hash: u64) -> usize {
        (hash >> self.shift) as usize
    }

    /// The value under `key`, and when it was born.
    #[inline]
    pub(crate) fn get_with_birth(&self, key: K, hash: u64) -> Option<(&V, u64)> {
        let set = &self.sets[self.set(hash)];
        set.0.iter().find(|e| e.key == key && e.born > 0).map(|e| (&e.value, e.born))
    }

    /// Keeps a value. It replaces the one with the same key, else one that is not `alive`, else the next in turn.
    #[inline]
    pub(crate) fn insert(&mut self, key: K, hash: u64, value: V, born: u64, alive: impl Fn(K, u64) -> bool) {
        let set = self.set(hash);
        let ways = &mut self.sets[set].0;
        let way = ways
            .iter()
            .position(|e| e.key == key)
            .or_else(|| ways.iter().position(|e| e.born == 0 || !alive(e.key, e.born)))
            .unwrap_or_else(|| {
                self.victim = (self.victim + 1) % WAYS;
                self.victim
            });
        ways[way] = Entry { key, born, value };
    }

    /// Calls `f` for the entries in up to `count` sets after `cursor`, invalidated ones included. At the end it starts
    /// again.
    pub(crate) fn each_after(&self, cursor: &mut usize, count: usize, mut f: impl FnMut(K, &V, u64)) {
        let end = cursor.saturating_add(count).min(self.sets.len());
        for set in &self.sets[*cursor..end] {
            set.0.iter().filter(|e| e.born > 0).for_each(|e| f(e.key, &e.value, e.born));
        }
        *cursor = if end == self.sets.len() { 0 } else { end };
    }

    /// Removes the value under `key`.
    pub(crate) fn remove(&mut self, key: K, hash: u64) {
        let set = self.set(hash);
        for entry in &mut self.sets[set].0 {
            if entry.key == key {
                entry.born = 0;
            }
        }
    }
}
