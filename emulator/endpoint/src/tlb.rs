//! The device TLB (*Address Translation Cache*, PCIe 6.0 §10.1): what the IOMMU answered, until it takes it back.
//!
//! Set-associative, with one set of tags for pages of 4 KiB, 2 MiB and 1 GiB: a lookup probes one set for each size that
//! is present at all, so its cost depends neither on how many entries there are nor on how many are stale. A translation of
//! another size is kept as the largest of these that fits into it. An entry belongs to the PASID that asked for it,
//! *global* ones too, so that every invalidation that may concern it finds it under its own PASID.
use std::ptr::NonNull;

use svadev_fabric::{InvalidateRange, Iova, SourceId};
use svadev_mutation::mutant;

use crate::address::{SpaceId, Target};
use crate::mailbox::{Invalidation, Whose};

/// Page sizes the TLB knows, smallest first.
pub const SIZES_LOG2: [u8; 3] = [12, 21, 30];
const WAYS: usize = 4;

fn space_key(space: SpaceId) -> u32 {
    if mutant!(TlbIgnoresPasid) {
        return 0;
    }
    space.bits()
}

/// Whether a space's word is one of a source's.
fn is_of(space: u32, source: SourceId) -> bool {
    space.to_le_bytes()[3] == source.0 || mutant!(TlbIgnoresPasid)
}

/// Read and write rights of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rights {
    pub(crate) read: bool,
    pub(crate) write: bool,
}

impl Rights {
    /// Whether they are enough for an access.
    pub(crate) fn allow(self, target: Target) -> bool {
        if target.write { self.write || mutant!(TlbHitIgnoresWrite) } else { self.read }
    }
}

/// The space of an entry that is not there: no space has all bits set.
const NOBODY: u32 = u32::MAX;

#[derive(Clone, Copy, Debug)]
struct Entry {
    /// Page number at its own size, above two bits for the size's index in [`SIZES_LOG2`].
    page: u64,
    /// Where the page is in this process: an address only. It is used within slices (`copy::Slice`).
    host: NonNull<u8>,
    /// Whose it is; [`NOBODY`] in an empty place.
    space: u32,
    rights: Rights,
}

impl Entry {
    const EMPTY: Self =
        Self { page: 0, host: NonNull::dangling(), space: NOBODY, rights: Rights { read: false, write: false } };

    fn is_live(&self) -> bool {
        self.space != NOBODY
    }

    fn class(&self) -> usize {
        usize::from((self.page & 3) as u8)
    }

    /// First address of the page.
    fn start(&self) -> u64 {
        self.page >> 2 << SIZES_LOG2[self.class()]
    }
}

/// `page` and `class` as an entry has them.
fn tag(class: usize, page: u64) -> u64 {
    page << 2 | class as u64
}

/// Aligned to two cache lines, which processors fetch together.
#[derive(Clone, Copy, Debug)]
#[repr(align(128))]
struct Set([Entry; WAYS]);

/// What a lookup found.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Hit {
    /// First byte of the page.
    pub(crate) host: NonNull<u8>,
    /// Log2 of the page's size.
    pub(crate) size_log2: u8,
    pub(crate) rights: Rights,
}

/// One engine's device TLB. Owned by its thread: not shared, no lock.
#[derive(Debug)]
pub(crate) struct DeviceTlb {
    sets: Box<[Set]>,
    /// How far a hash is shifted to leave a set's number.
    shift: u32,
    /// Live entries of each size: a size without any is not probed.
    live: [usize; SIZES_LOG2.len()],
    /// The way to evict next, when a set is full.
    victim: usize,
}

impl DeviceTlb {
    /// At least `entries` entries, all empty.
    pub(crate) fn new(entries: usize) -> Self {
        // Two sets at least: with one, the hash would be shifted by all of its bits.
        let sets = (entries.next_power_of_two() / WAYS).max(2);
        Self {
            sets: vec![Set([Entry::EMPTY; WAYS]); sets].into(),
            shift: 64 - sets.trailing_zeros(),
            live: [0; SIZES_LOG2.len()],
            victim: 0,
        }
    }

    #[allow(clippy::cast_possible_truncation, reason = "after the shift the number is below the number of sets")]
    #[inline]
    fn set(&self, space: u32, class: usize, page: u64) -> usize {
        // Fibonacci hashing: neighbouring pages and neighbouring PASIDs go to different sets. Only the product's highest bits
        // depend on all of the key's.
        let key = page ^ u64::from(space) << 40 ^ (class as u64) << 62;
        (key.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> self.shift) as usize
    }

    /// The entry that covers an address.
    #[inline]
    pub(crate) fn lookup(&self, space: SpaceId, iova: u64) -> Option<Hit> {
        let space = space_key(space);
        for (class, &size_log2) in SIZES_LOG2.iter().enumerate() {
            if self.live[class] == 0 {
                continue;
            }
            let page = iova >> size_log2;
            let tag = tag(class, page);
            let set = &self.sets[self.set(space, class, page)];
            if let Some(e) = set.0.iter().find(|e| e.page == tag && e.space == space) {
                return Some(Hit { host: e.host, size_log2, rights: e.rights });
            }
        }
        None
    }

    /// Keeps the page of `1 << size_log2` bytes around `iova`, which starts at `host`; replaces whatever covers `iova`.
    pub(crate) fn insert(&mut self, space: SpaceId, iova: u64, size_log2: u8, host: NonNull<u8>, rights: Rights) {
        let class = SIZES_LOG2.iter().position(|&s| s == size_log2).expect("callers choose from SIZES_LOG2");
        let space = space_key(space);
        for (other, size_log2) in SIZES_LOG2.into_iter().enumerate() {
            self.remove(space, other, iova >> size_log2);
        }
        let page = iova >> size_log2;
        self.victim = (self.victim + 1) % WAYS;
        let set = self.set(space, class, page);
        let ways = &mut self.sets[set].0;
        let way = ways.iter().position(|e| !e.is_live()).unwrap_or(self.victim);
        let old = std::mem::replace(&mut ways[way], Entry { page: tag(class, page), host, space, rights });
        if old.is_live() {
            self.live[old.class()] -= 1;
        }
        self.live[class] += 1;
    }

    fn remove(&mut self, space: u32, class: usize, page: u64) {
        if self.live[class] == 0 {
            return;
        }
        let tag = tag(class, page);
        let set = self.set(space, class, page);
        for e in &mut self.sets[set].0 {
            if e.page == tag && e.space == space {
                *e = Entry::EMPTY;
                self.live[class] -= 1;
            }
        }
    }

    /// Drops all that an invalidation covers. A range of few pages costs a probe a page, never more than a pass over the TLB.
    pub(crate) fn invalidate(&mut self, invalidation: Invalidation) {
        match (invalidation.whose, invalidation.range) {
            (Whose::Everyone, InvalidateRange::All) => self.clear(),
            (Whose::Space(space), InvalidateRange::Naturally { start, size_log2 }) => {
                self.invalidate_range(space_key(space), start.0, size_log2);
            }
            (Whose::Everyone, range) => self.sweep(|_| true, range),
            (Whose::Source(source), range) => self.sweep(|space| is_of(space, source), range),
            (Whose::Space(space), range) => self.sweep(|s| s == space_key(space), range),
        }
    }

    fn invalidate_range(&mut self, space: u32, start: u64, size_log2: u8) {
        let pages_log2 = size_log2.saturating_sub(SIZES_LOG2[0]);
        if pages_log2 >= 63 || 1u64 << pages_log2 >= self.sets.len() as u64 {
            return self.sweep(|s| s == space, InvalidateRange::Naturally { start: Iova(start), size_log2 });
        }
        for (class, &class_log2) in SIZES_LOG2.iter().enumerate() {
            let first = start >> class_log2;
            if class > 0 && mutant!(TlbInvalidationForgetsLargePages) {
                break;
            }
            let mut pages = 1u64 << size_log2.saturating_sub(class_log2);
            if pages > 1 && mutant!(TlbInvalidationOffByOne) {
                pages -= 1;
            }
            for page in first..first + pages {
                self.remove(space, class, page);
            }
        }
    }

    /// Drops a space's pages that share a byte with a range. Few pages cost a probe each, never more than a pass.
    pub(crate) fn invalidate_span(&mut self, space: SpaceId, first: u64, last: u64) {
        let space = space_key(space);
        let pages = (last >> SIZES_LOG2[0]) - (first >> SIZES_LOG2[0]);
        if pages < self.sets.len() as u64 {
            for (class, &size_log2) in SIZES_LOG2.iter().enumerate() {
                for page in first >> size_log2..=last >> size_log2 {
                    self.remove(space, class, page);
                }
            }
            return;
        }
        for e in self.sets.iter_mut().flat_map(|set| &mut set.0).filter(|e| e.space == space) {
            let class = e.class();
            let end = e.start() + ((1 << SIZES_LOG2[class]) - 1);
            if e.start() <= last && end >= first {
                *e = Entry::EMPTY;
                self.live[class] -= 1;
            }
        }
    }

    /// A pass over all entries, for those whose space is one of `whose`.
    fn sweep(&mut self, whose: impl Fn(u32) -> bool, range: InvalidateRange) {
        for e in self.sets.iter_mut().flat_map(|set| &mut set.0).filter(|e| e.is_live()) {
            let class = e.class();
            if whose(e.space) && range.overlaps(Iova(e.start()), SIZES_LOG2[class]) {
                *e = Entry::EMPTY;
                self.live[class] -= 1;
            }
        }
    }

    /// Drops everything.
    pub(crate) fn clear(&mut self) {
        if self.live != [0; SIZES_LOG2.len()] {
            self.sets.fill(Set([Entry::EMPTY; WAYS]));
            self.live = [0; SIZES_LOG2.len()];
        }
    }

    /// Live entries.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        debug_assert_eq!(
            self.live.iter().sum::<usize>(),
            self.sets.iter().flat_map(|set| &set.0).filter(|e| e.is_live()).count()
        );
        self.live.iter().sum()
    }
}

#[cfg(test)]
mod tests;
