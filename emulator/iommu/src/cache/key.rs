//! Tags and keys of cached translations.
use std::ops::RangeInclusive;

use svadev_mutation::mutant;

/// The tag of an entry besides its page (§6.2.4, table 6-2): the domain, and the PASID for first-stage and nested
/// mappings. It is one word, for it is copied on the hot path: the domain is above 21 bits that hold a PASID or its
/// absence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CacheTag(u64);

impl CacheTag {
    const NO_PASID: u64 = 1 << 20;

    pub(crate) fn new(domain_id: u16, pasid: u32) -> Self {
        let pasid = if mutant!(IotlbIgnoresPasid) { 0 } else { pasid };
        let domain_id = if mutant!(IotlbIgnoresDomain) { 0 } else { domain_id };
        Self(u64::from(domain_id) << 21 | u64::from(pasid & 0xf_ffff))
    }

    /// The tag of second-stage mappings, which belong to a domain.
    pub(crate) const fn of_domain(domain_id: u16) -> Self {
        Self((domain_id as u64) << 21 | Self::NO_PASID)
    }

    /// The tag as a number of 37 bits.
    pub(crate) fn word(self) -> u64 {
        self.0
    }

    /// The tag that [`word`](Self::word) gave.
    pub(crate) const fn from_word(word: u64) -> Self {
        Self(word)
    }

    #[allow(clippy::cast_possible_truncation, reason = "masked to 20 bits")]
    pub(crate) fn pasid(self) -> Option<u32> {
        self.has_pasid().then_some((self.0 & 0xf_ffff) as u32)
    }

    pub(crate) fn has_pasid(self) -> bool {
        self.0 & Self::NO_PASID == 0
    }

    #[allow(clippy::cast_possible_truncation, reason = "16 bits are left above the PASID")]
    pub(crate) fn domain_id(self) -> u16 {
        (self.0 >> 21) as u16
    }
}

/// A tag, a class of entry (a page size, or a level) and the number of the page or region of that size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Key {
    tag: u64,
    page: u64,
}

impl Key {
    /// The smallest key.
    pub(crate) const FIRST: Self = Self { tag: 0, page: 0 };

    /// `number` is an address shifted right by at least 12, so that 52 bits hold it.
    #[inline]
    pub(crate) fn new(tag: CacheTag, class: u8, number: u64) -> Self {
        Self { tag: tag.word(), page: u64::from(class) << 56 | number }
    }

    /// Every key of one tag.
    pub(crate) fn all_of_tag(tag: CacheTag) -> RangeInclusive<Self> {
        Self { tag: tag.word(), page: 0 }..=Self { tag: tag.word(), page: u64::MAX }
    }

    /// Every key of one domain, whatever the PASID.
    pub(crate) fn all_of_domain(domain_id: u16) -> RangeInclusive<Self> {
        let first = u64::from(domain_id) << 21;
        Self { tag: first, page: 0 }..=Self { tag: first | ((1 << 21) - 1), page: u64::MAX }
    }

    pub(crate) fn tag_word(self) -> u64 {
        self.tag
    }

    pub(crate) fn tag(self) -> CacheTag {
        CacheTag(self.tag)
    }

    #[allow(clippy::cast_possible_truncation, reason = "eight bits are left above the number")]
    pub(crate) fn class(self) -> u8 {
        (self.page >> 56) as u8
    }

    pub(crate) fn number(self) -> u64 {
        self.page & 0x00ff_ffff_ffff_ffff
    }

    #[inline]
    pub(crate) fn hash(self) -> u64 {
        // Odd factors spread neighbouring pages of neighbouring PASIDs. The rotation brings the class into low bits.
        (self.tag.wrapping_mul(0xff51_afd7_ed55_8ccd) ^ self.page.rotate_left(8)).wrapping_mul(0xc4ce_b9fe_1a85_ec53)
    }
}
