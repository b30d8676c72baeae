//! Pages as walks find them: address, size and rights.
use svadev_spec::vtd::tables::Level;

/// A page size, as the level that maps it, less one: 0 is 4 KiB, 1 is 2 MiB, 2 is 1 GiB. Two bits, as a leaf has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PageSize(u8);

impl PageSize {
    pub(crate) const ALL: [Self; 3] = [Self(0), Self(1), Self(2)];
    pub(crate) const SIZE_4KIB: Self = Self(0);
    pub(crate) const SIZE_2MIB: Self = Self(1);

    /// What an entry at `level`, 1 to 3, maps.
    #[inline]
    pub(crate) fn at_level(level: Level) -> Self {
        debug_assert!(level <= Level::THREE, "entries at level {level} map nothing");
        Self((level.number() - 1) & 3)
    }

    /// Log2 of bytes.
    #[inline]
    pub(crate) fn log2(self) -> u8 {
        12 + 9 * (self.0 & 3)
    }

    /// Bytes, less one.
    #[inline]
    pub(crate) fn mask(self) -> u64 {
        (1 << self.log2()) - 1
    }

    pub(crate) fn min(self, other: Self) -> Self {
        Self(self.0.min(other.0))
    }

    /// The place in [`ALL`](Self::ALL).
    #[inline]
    pub(crate) fn index(self) -> u8 {
        self.0
    }
}

/// The page that a walk found, and its rights. It is one word with the address above the flags. Small fields would be
/// written one by one and read as a whole, which stalls store forwarding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Leaf(u64);

/// What a request may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rights {
    pub(crate) read: bool,
    pub(crate) write: bool,
    pub(crate) execute: bool,
}

impl Rights {
    pub(crate) const READ_WRITE: Self = Self { read: true, write: true, execute: false };
}

const READ: u64 = 1;
const WRITE: u64 = 1 << 1;
const EXECUTE: u64 = 1 << 2;
/// The rights are a supervisor's.
const PRIVILEGED: u64 = 1 << 3;
/// Bits from here up to the size are free for a cache that keeps leaves.
pub(super) const FIRST_FREE: u64 = 1 << 4;
/// Two bits above this: the page's size.
const SIZE_SHIFT: u32 = 10;
const ADDRESS: u64 = !0xfff;

/// `bit` if it is `set`.
#[inline]
pub(super) fn flag(set: bool, bit: u64) -> u64 {
    if set { bit } else { 0 }
}

impl Leaf {
    /// The page around `address`.
    #[inline]
    pub(crate) fn new(address: u64, size: PageSize, rights: Rights) -> Self {
        let rights = flag(rights.read, READ) | flag(rights.write, WRITE) | flag(rights.execute, EXECUTE);
        Self(address & !size.mask() | u64::from(size.0) << SIZE_SHIFT | rights)
    }

    /// The leaf that [`word`](Self::word) gave. Free bits may be set.
    #[inline]
    pub(super) fn from_word(word: u64) -> Self {
        Self(word)
    }

    #[inline]
    pub(super) fn word(self) -> u64 {
        self.0
    }

    /// First byte of the page.
    #[inline]
    pub(crate) fn address(self) -> u64 {
        self.0 & ADDRESS
    }

    #[allow(clippy::cast_possible_truncation, reason = "two bits")]
    #[inline]
    pub(crate) fn size(self) -> PageSize {
        PageSize((self.0 >> SIZE_SHIFT & 3) as u8)
    }

    /// The address that `input` leads to, if `input` is in the page that the walk was for.
    #[inline]
    pub(crate) fn at(self, input: u64) -> u64 {
        self.address() | input & self.size().mask()
    }

    #[inline]
    pub(crate) fn read(self) -> bool {
        self.0 & READ != 0
    }

    #[inline]
    pub(crate) fn write(self) -> bool {
        self.0 & WRITE != 0
    }

    #[inline]
    pub(crate) fn execute(self) -> bool {
        self.0 & EXECUTE != 0
    }

    #[inline]
    pub(crate) fn rights(self) -> Rights {
        Rights { read: self.read(), write: self.write(), execute: self.execute() }
    }

    #[inline]
    pub(crate) fn privileged(self) -> bool {
        self.0 & PRIVILEGED != 0
    }

    /// The same page without the rights to write and to execute unless they are asked for, and marked as a supervisor's
    /// if it is one.
    #[inline]
    pub(crate) fn limited_to(self, write: bool, execute: bool, privileged: bool) -> Self {
        Self(self.0 & !flag(!write, WRITE) & !flag(!execute, EXECUTE) | flag(privileged, PRIVILEGED))
    }
}
