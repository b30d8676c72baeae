//! A set-associative table.

/// Entries of a set.
const WAYS: usize = 4;

#[derive(Clone, Copy, Debug)]
struct Entry<K, V> {
    key: K,
    value: V,
    born: u64,
}

/// A fixed number of entries in sets of four; a full set loses its entries in turn.
#[derive(Debug)]
pub(crate) struct Table<K, V> {
    entries: Box<[Option<Entry<K, V>>]>,
    /// Bits of a set's number.
    set_bits: u32,
    victim: usize,
}

impl<K: Copy + Eq, V: Copy> Table<K, V> {
    /// `entries` is a power of two, at least 4.
    pub(crate) fn new(entries: usize) -> Self {
        assert!(entries.is_power_of_two() && entries >= WAYS, "table of {entries} entries");
        Self { entries: vec![None; entries].into(), set_bits: (entries / WAYS).trailing_zeros(), victim: 0 }
    }

    fn set(&self, hash: u64) -> usize {
        // Fibonacci hashing: the highest bits of the product are those that depend on every bit of the hash.
        let set = hash.wrapping_mul(0x9e37_79b9_7f4a_7c15).checked_shr(64 - self.set_bits).unwrap_or(0);
        usize::try_from(set).expect("fewer bits than the table's size") * WAYS
    }

    /// The value under `key`, and when it was born.
    pub(crate) fn get(&self, key: K, hash: u64) -> Option<(V, u64)> {
        let set = self.set(hash);
        self.entries[set..set + WAYS].iter().flatten().find(|e| e.key == key).map(|e| (e.value, e.born))
    }

    /// Puts a value in, in place of one with the same key, else in a free place, else in place of another.
    pub(crate) fn insert(&mut self, key: K, hash: u64, value: V, born: u64) {
        let set = self.set(hash);
        let ways = &mut self.entries[set..set + WAYS];
        let way = ways
            .iter()
            .position(|e| e.as_ref().is_some_and(|e| e.key == key))
            .or_else(|| ways.iter().position(Option::is_none))
            .unwrap_or_else(|| {
                self.victim = (self.victim + 1) % WAYS;
                self.victim
            });
        ways[way] = Some(Entry { key, value, born });
    }

    /// Takes the value under `key` out.
    pub(crate) fn remove(&mut self, key: K, hash: u64) {
        let set = self.set(hash);
        for entry in &mut self.entries[set..set + WAYS] {
            if entry.as_ref().is_some_and(|e| e.key == key) {
                *entry = None;
            }
        }
    }
}
