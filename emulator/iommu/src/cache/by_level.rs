//! A direct-mapped table, a part for each level of page tables.
use super::key::{CacheTag, Key};

/// Log2 of the places of a level. At the lowest level they suffice for 8 GiB of neighbouring 4 KiB pages. At the others
/// they suffice for as many processes that use the same addresses.
const PLACES_LOG2: u32 = 12;

const PLACES: usize = 4 << PLACES_LOG2;

/// Half a cache line, so that an entry never lies in two.
#[derive(Clone, Copy, Debug)]
#[repr(align(32))]
struct Entry {
    key: Key,
    /// 0 in an empty place: no floor is lower, so it never counts.
    born: u64,
    value: u64,
}

/// A direct-mapped table: an entry has one place, and a new one replaces what is there. A walk looks at and fills a
/// place at every level, so both must cost next to nothing.
#[derive(Debug)]
pub(crate) struct ByLevel(Box<[Entry; PLACES]>);

/// The part of a place that depends on the tag. It is worked out once for all levels of a walk.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spread(u64);

impl Spread {
    /// Fibonacci hashing: neighbouring PASIDs, which often use the same addresses, get different places.
    #[inline]
    pub(crate) fn of(tag: CacheTag) -> Self {
        Self(tag.word().wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 52)
    }
}

#[allow(clippy::cast_possible_truncation, reason = "14 bits fit any usize")]
#[inline]
fn place(spread: Spread, key: Key) -> usize {
    // Neighbouring regions of a tag have neighbouring places.
    let in_level = (key.number() ^ spread.0) & ((1 << PLACES_LOG2) - 1);
    // Levels 2 to 5 in the order 2, 3, 0, 1.
    ((u64::from(key.class()) & 3) << PLACES_LOG2 | in_level) as usize
}

impl ByLevel {
    pub(crate) fn new() -> Self {
        let blank = Entry { key: Key::FIRST, born: 0, value: 0 };
        Self(vec![blank; PLACES].into_boxed_slice().try_into().expect("as many as there are places"))
    }

    /// The value under `key`, whose tag has this `spread`, if it was born after `floor`.
    #[inline]
    pub(crate) fn get(&self, spread: Spread, key: Key, floor: u64) -> Option<u64> {
        let entry = &self.0[place(spread, key)];
        (entry.key == key && entry.born > floor).then_some(entry.value)
    }

    #[inline]
    pub(crate) fn insert(&mut self, spread: Spread, key: Key, value: u64, born: u64) {
        self.0[place(spread, key)] = Entry { key, born, value };
    }

    /// Removes the value under `key`.
    pub(crate) fn remove(&mut self, key: Key) {
        let entry = &mut self.0[place(Spread::of(key.tag()), key)];
        if entry.key == key {
            entry.born = 0;
        }
    }

    /// Calls `f` for the entries in up to `count` places after `cursor`, invalidated ones included. At the end it
    /// starts again.
    pub(crate) fn each_after(&self, cursor: &mut usize, count: usize, mut f: impl FnMut(Key, u64, u64)) {
        let end = cursor.saturating_add(count).min(PLACES);
        for entry in &self.0[*cursor..end] {
            if entry.born > 0 {
                f(entry.key, entry.value, entry.born);
            }
        }
        *cursor = if end == PLACES { 0 } else { end };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Entries of other levels and of neighbouring regions have places of their own. A region that is as many regions
    /// away as there are places replaces the other one.
    #[test]
    fn a_place_has_one_entry() {
        let tag = CacheTag::new(3, 7);
        let spread = Spread::of(tag);
        let mut table = ByLevel::new();
        let key = |level, number| Key::new(tag, level, number);
        let regions = 1 << PLACES_LOG2;
        for level in 2..=5 {
            for number in 0..regions {
                table.insert(spread, key(level, number), u64::from(level) << 32 | number, 1);
            }
        }
        for level in 2..=5 {
            for number in 0..regions {
                assert_eq!(table.get(spread, key(level, number), 0), Some(u64::from(level) << 32 | number));
                assert_eq!(table.get(spread, key(level, number), 1), None, "born no later than its floor");
            }
        }
        table.insert(spread, key(3, regions + 5), 9, 2);
        assert_eq!(table.get(spread, key(3, 5), 0), None);
        table.remove(key(3, 5));
        assert_eq!(table.get(spread, key(3, regions + 5), 0), Some(9), "another key's");
        table.remove(key(3, regions + 5));
        assert_eq!(table.get(spread, key(3, regions + 5), 0), None);
        let (mut cursor, mut seen, mut rounds) = (0, 0, 0);
        while rounds == 0 || cursor != 0 {
            table.each_after(&mut cursor, 1000, |_, _, _| seen += 1);
            rounds += 1;
        }
        assert_eq!((seen, rounds), (PLACES - 1, PLACES.div_ceil(1000)));
    }
}
