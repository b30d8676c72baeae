//! Levels of page tables (§3.6, §3.7): which address bits choose an entry, and what an entry covers.
use core::fmt;

/// A level of page tables, 1 to 5. Entries at level 1 map pages of 4 KiB; level 5 is the highest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Level(u8);

impl Level {
    /// The lowest level.
    pub const ONE: Self = Self(1);
    /// Page directories: an entry covers 2 MiB.
    pub const TWO: Self = Self(2);
    /// An entry covers 1 GiB.
    pub const THREE: Self = Self(3);
    /// An entry covers 512 GiB.
    pub const FOUR: Self = Self(4);
    /// The highest level: an entry covers 256 TiB.
    pub const FIVE: Self = Self(5);
    /// Levels whose entries can point to a table, lowest first.
    pub const WITH_TABLES: [Self; 4] = [Self::TWO, Self::THREE, Self::FOUR, Self::FIVE];

    /// The level with this number, if there is one.
    #[inline]
    pub const fn new(number: u8) -> Option<Self> {
        if matches!(number, 1..=5) { Some(Self(number)) } else { None }
    }

    /// Its number, 1 to 5.
    #[inline]
    pub const fn number(self) -> u8 {
        self.0
    }

    /// The next lower level; none below level 1.
    #[inline]
    pub const fn below(self) -> Option<Self> {
        if self.0 > 1 { Some(Self(self.0 - 1)) } else { None }
    }

    /// The next higher level. Not to be asked of level 5.
    #[inline]
    pub const fn above(self) -> Self {
        debug_assert!(self.0 < 5, "level 5 is the highest");
        Self(self.0 + 1)
    }

    /// Log2 of the bytes that an entry at this level covers: 12, 21, 30, 39, 48.
    #[inline]
    pub const fn covers_log2(self) -> u8 {
        3 + 9 * self.0
    }

    /// Bits of the addresses that tables translate whose topmost table is at this level: 21, 30, 39, 48, 57.
    #[inline]
    pub const fn width(self) -> u8 {
        12 + 9 * self.0
    }

    /// The number of the region around `address` that an entry at this level covers.
    #[inline]
    pub const fn region(self, address: u64) -> u64 {
        address >> (3 + 9 * self.0 as u32)
    }

    /// The entry for `address` in its table, 0 to 511.
    #[inline]
    pub const fn index(self, address: u64) -> u64 {
        self.region(address) & 0x1ff
    }

    /// The offset in bytes of the entry for `address` in its table.
    #[inline]
    pub const fn entry_offset(self, address: u64) -> u64 {
        // The index times eight, in one shift.
        address >> (9 * self.0 as u32) & 0xff8
    }

    /// Whether PS makes an entry at this level map a large page, where `largest` is the level of the largest pages
    /// (CAP.FS1GP, CAP.SSLPS). At levels where it does not, PS is reserved; at level 1 there is no PS.
    #[inline]
    pub const fn has_large_pages(self, largest: Self) -> bool {
        self.0 > 1 && self.0 <= largest.0
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_five() {
        let all = [Level::ONE, Level::TWO, Level::THREE, Level::FOUR, Level::FIVE];
        assert!((0..=u8::MAX).filter_map(Level::new).eq(all));
        assert_eq!(Level::ONE.below(), None);
        for pair in all.windows(2) {
            assert_eq!((pair[0].above(), pair[1].below()), (pair[1], Some(pair[0])));
        }
    }

    #[test]
    fn an_entry_covers_as_much_as_the_table_below_it() {
        let all = || (1..=5).filter_map(Level::new);
        assert!(all().map(Level::covers_log2).eq([12, 21, 30, 39, 48]));
        assert!(all().map(Level::width).eq([21, 30, 39, 48, 57]));
    }

    #[test]
    fn an_address_is_taken_apart_nine_bits_at_a_time() {
        let address = 1 << 48 | 2 << 39 | 3 << 30 | 4 << 21 | 5 << 12 | 6;
        for (number, index) in (1..=5).zip([5, 4, 3, 2, 1]) {
            let level = Level::new(number).unwrap();
            assert_eq!((level.index(address), level.entry_offset(address)), (index, 8 * index));
        }
        assert_eq!(Level::TWO.region(address), address >> 21);
    }

    #[test]
    fn large_pages_are_at_levels_two_and_three() {
        let with = |largest| (1..=5).filter_map(Level::new).filter(move |level| level.has_large_pages(largest));
        assert!(with(Level::ONE).eq([]));
        assert!(with(Level::TWO).eq([Level::TWO]));
        assert!(with(Level::THREE).eq([Level::TWO, Level::THREE]));
    }
}
