//! The IOTLB (§6.2.4).
use super::{Clock, Floors, Table};

/// Pages that a page-selective invalidation probes one by one; a wider one takes the whole PASID or domain, which is cheaper
/// and allowed (§6.5.2.3: hardware may invalidate more).
const MAX_PROBED_PAGES_LOG2: u8 = 6;

/// Sizes a leaf can have.
const PAGE_SIZES_LOG2: [u8; 3] = [12, 21, 30];

/// What an entry is tagged with besides its page (§6.2.4, table 6-2): the domain, and for first-stage and nested mappings the
/// PASID.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Space {
    pub(crate) domain_id: u16,
    pub(crate) pasid: Option<u32>,
}

impl Space {
    fn hash(self) -> u64 {
        // 21 bits hold a PASID or its absence.
        u64::from(self.domain_id) << 21 | u64::from(self.pasid.map_or(1 << 20, |p| p & 0xf_ffff))
    }
}

/// A page's translation for user requests that do not execute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mapping {
    /// First byte of the page.
    pub(crate) gpa: u64,
    pub(crate) size_log2: u8,
    pub(crate) read: bool,
    /// Writes are allowed, and the dirty bit is set.
    pub(crate) write: bool,
    /// `write` says all there is to say. Clear when the walk was for a request that only reads, so that dirty was left alone.
    pub(crate) write_known: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Key {
    space: Space,
    page: u64,
    size_log2: u8,
}

impl Key {
    fn hash(self) -> u64 {
        // Two odd factors keep neighbouring pages of neighbouring PASIDs apart.
        let space = self.space.hash().wrapping_mul(0xff51_afd7_ed55_8ccd);
        (self.page ^ space).wrapping_add(u64::from(self.size_log2)).wrapping_mul(0xc4ce_b9fe_1a85_ec53)
    }
}

/// What a lookup found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lookup {
    Hit(Mapping),
    Miss,
}

/// The IOTLB.
#[derive(Debug)]
pub(crate) struct Iotlb {
    table: Table<Key, Mapping>,
    all: u64,
    domains: Floors,
    pasids: Floors,
    /// Which of [`PAGE_SIZES_LOG2`] were ever put in: the others need no probe.
    sizes: [bool; 3],
    /// A nested mapping was put in: its second stage has no page tag of its own (§6.5.2.3).
    nested: bool,
}

impl Iotlb {
    pub(crate) fn new(entries: usize) -> Self {
        Self {
            table: Table::new(entries),
            all: 0,
            domains: Floors::new(),
            pasids: Floors::new(),
            sizes: [false; 3],
            nested: false,
        }
    }

    fn alive(&self, space: Space, born: u64) -> bool {
        born > self.all && self.domains.allows(space.domain_id.into(), born) && self.pasids.allows(space.hash(), born)
    }

    /// The mapping of the page around `iova`.
    pub(crate) fn get(&self, space: Space, iova: u64) -> Lookup {
        for (size_log2, used) in PAGE_SIZES_LOG2.into_iter().zip(self.sizes) {
            if !used {
                continue;
            }
            let key = Key { space, page: iova >> size_log2, size_log2 };
            if let Some((mapping, born)) = self.table.get(key, key.hash())
                && self.alive(space, born)
            {
                return Lookup::Hit(mapping);
            }
        }
        Lookup::Miss
    }

    /// Remembers the mapping of the page around `iova`.
    pub(crate) fn insert(&mut self, space: Space, iova: u64, mapping: Mapping, nested: bool, clock: &mut Clock) {
        let Some(size) = PAGE_SIZES_LOG2.iter().position(|&s| s == mapping.size_log2) else {
            return;
        };
        self.sizes[size] = true;
        self.nested |= nested;
        let key = Key { space, page: iova >> mapping.size_log2, size_log2: mapping.size_log2 };
        self.table.insert(key, key.hash(), mapping, clock.tick());
    }

    pub(crate) fn invalidate_all(&mut self, clock: &mut Clock) {
        self.all = clock.tick();
        self.sizes = [false; 3];
        self.nested = false;
    }

    /// Every mapping of the domain, of whatever stage.
    pub(crate) fn invalidate_domain(&mut self, domain_id: u16, clock: &mut Clock) {
        self.domains.raise(domain_id.into(), clock.tick());
    }

    /// Every first-stage and nested mapping of one PASID of the domain.
    pub(crate) fn invalidate_pasid(&mut self, space: Space, clock: &mut Clock) {
        self.pasids.raise(space.hash(), clock.tick());
    }

    /// The mappings that share a byte with `1 << pages_log2` pages around `iova`.
    ///
    /// Without a PASID that is a page-selective-within-domain invalidation: second-stage mappings of those pages, and every nested
    /// mapping of the domain, since a nested mapping depends on second-stage pages that its tag does not tell.
    pub(crate) fn invalidate_pages(&mut self, space: Space, iova: u64, pages_log2: u8, clock: &mut Clock) {
        if space.pasid.is_none() && self.nested {
            return self.invalidate_domain(space.domain_id, clock);
        }
        if pages_log2 > MAX_PROBED_PAGES_LOG2 {
            return match space.pasid {
                Some(_) => self.invalidate_pasid(space, clock),
                None => self.invalidate_domain(space.domain_id, clock),
            };
        }
        for (size_log2, used) in PAGE_SIZES_LOG2.into_iter().zip(self.sizes) {
            if !used {
                continue;
            }
            let range_log2 = 12 + pages_log2;
            let first = (iova >> range_log2 << range_log2) >> size_log2;
            let count = 1u64 << range_log2.saturating_sub(size_log2);
            for page in first..first + count {
                let key = Key { space, page, size_log2 };
                self.table.remove(key, key.hash());
            }
        }
    }
}
