//! The device TLB (*Address Translation Cache*, PCIe 6.0 §10.1): what the IOMMU answered, until it takes it back.
//!
//! Set-associative, with one set of tags for pages of 4 KiB, 2 MiB and 1 GiB: a lookup probes one set for each size that
//! is present at all, so its cost depends neither on how many entries there are nor on how many are stale. A translation of
//! another size is kept as the largest of these that fits into it. An entry belongs to the PASID that asked for it,
//! *global* ones too, so that every invalidation that may concern it finds it under its own PASID.
use std::ptr::NonNull;

use svadev_fabric::{InvalidateRange, Iova, Pasid};
use svadev_mutation::mutant;

use crate::mailbox::Invalidation;
use crate::requester::Target;

/// Page sizes the TLB knows, smallest first.
pub(crate) const SIZES_LOG2: [u8; 3] = [12, 21, 30];
const WAYS: usize = 4;

/// The address space of a request, as a number: a PASID, or this for requests without one.
const NO_PASID: u32 = 1 << 20;

fn space_key(space: Option<Pasid>) -> u32 {
    if mutant!(TlbIgnoresPasid) {
        return 0;
    }
    space.map_or(NO_PASID, Pasid::get)
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

#[derive(Clone, Copy, Debug)]
struct Entry {
    /// Page number at its own size; meaningless when not `live`.
    page: u64,
    /// Where the page is in this process: an address only. It is used within slices (`copy::Slice`).
    host: NonNull<u8>,
    space: u32,
    /// Index into [`SIZES_LOG2`].
    class: u8,
    rights: Rights,
    live: bool,
}

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
    entries: Box<[Entry]>,
    /// Sets minus one; the number of sets is a power of two.
    mask: u64,
    /// Live entries of each size: a size without any is not probed.
    live: [usize; SIZES_LOG2.len()],
    /// The way to evict next, when a set is full.
    victim: usize,
}

impl DeviceTlb {
    /// At least `entries` entries, all empty.
    pub(crate) fn new(entries: usize) -> Self {
        let count = entries.next_power_of_two().max(WAYS);
        let empty = Entry {
            page: 0,
            host: NonNull::dangling(),
            space: 0,
            class: 0,
            rights: Rights { read: false, write: false },
            live: false,
        };
        Self {
            entries: vec![empty; count].into(),
            mask: (count / WAYS) as u64 - 1,
            live: [0; SIZES_LOG2.len()],
            victim: 0,
        }
    }

    fn set(&mut self, space: u32, class: usize, page: u64) -> &mut [Entry] {
        let start = self.set_start(space, class, page);
        &mut self.entries[start..start + WAYS]
    }

    fn set_start(&self, space: u32, class: usize, page: u64) -> usize {
        // Fibonacci hashing: neighbouring pages and neighbouring PASIDs go to different sets.
        let key = page ^ u64::from(space) << 40 ^ (class as u64) << 62;
        // Only the product's highest bits depend on all of the key's.
        let hash = key.wrapping_mul(0x9e37_79b9_7f4a_7c15).checked_shr(self.mask.leading_zeros()).unwrap_or(0);
        usize::try_from(hash).expect("a table in memory has fewer sets than usize can count") * WAYS
    }

    /// The entry that covers an address.
    pub(crate) fn lookup(&self, space: Option<Pasid>, iova: u64) -> Option<Hit> {
        let space = space_key(space);
        for (class, &size_log2) in SIZES_LOG2.iter().enumerate() {
            if self.live[class] == 0 {
                continue;
            }
            let page = iova >> size_log2;
            let start = self.set_start(space, class, page);
            for e in &self.entries[start..start + WAYS] {
                if e.page == page && e.space == space && usize::from(e.class) == class && e.live {
                    return Some(Hit { host: e.host, size_log2, rights: e.rights });
                }
            }
        }
        None
    }

    /// Keeps the page of `1 << size_log2` bytes around `iova`, which starts at `host`; replaces whatever covers `iova`.
    pub(crate) fn insert(&mut self, space: Option<Pasid>, iova: u64, size_log2: u8, host: NonNull<u8>, rights: Rights) {
        let class = SIZES_LOG2.iter().position(|&s| s == size_log2).expect("callers choose from SIZES_LOG2");
        let space = space_key(space);
        for (other, size_log2) in SIZES_LOG2.into_iter().enumerate() {
            self.remove(space, other, iova >> size_log2);
        }
        let page = iova >> size_log2;
        self.victim = (self.victim + 1) % WAYS;
        let victim = self.victim;
        let set = self.set(space, class, page);
        let way = set.iter().position(|e| !e.live).unwrap_or(victim);
        let old = std::mem::replace(
            &mut set[way],
            Entry { page, host, space, class: u8::try_from(class).expect("three classes"), rights, live: true },
        );
        if old.live {
            self.live[usize::from(old.class)] -= 1;
        }
        self.live[class] += 1;
    }

    fn remove(&mut self, space: u32, class: usize, page: u64) {
        if self.live[class] == 0 {
            return;
        }
        let mut removed = 0;
        for e in self.set(space, class, page) {
            if e.live && e.page == page && e.space == space && usize::from(e.class) == class {
                e.live = false;
                removed += 1;
            }
        }
        self.live[class] -= removed;
    }

    /// Drops all that an invalidation covers. A range of few pages costs a probe a page, never more than a pass over the TLB.
    pub(crate) fn invalidate(&mut self, invalidation: Invalidation) {
        match invalidation.range {
            InvalidateRange::All if invalidation.global => self.clear(),
            InvalidateRange::Naturally { start, size_log2 } if !invalidation.global => {
                self.invalidate_range(space_key(invalidation.pasid), start.0, size_log2);
            }
            range => self.sweep((!invalidation.global).then(|| space_key(invalidation.pasid)), range),
        }
    }

    fn invalidate_range(&mut self, space: u32, start: u64, size_log2: u8) {
        let pages_log2 = size_log2.saturating_sub(SIZES_LOG2[0]);
        if pages_log2 >= 63 || 1u64 << pages_log2 > self.mask {
            return self.sweep(Some(space), InvalidateRange::Naturally { start: Iova(start), size_log2 });
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

    /// A pass over all entries: those of one address space, or of all.
    fn sweep(&mut self, space: Option<u32>, range: InvalidateRange) {
        for e in self.entries.iter_mut().filter(|e| e.live) {
            let class = usize::from(e.class);
            let size_log2 = SIZES_LOG2[class];
            if space.is_none_or(|s| s == e.space) && range.overlaps(Iova(e.page << size_log2), size_log2) {
                e.live = false;
                self.live[class] -= 1;
            }
        }
    }

    /// Drops everything.
    pub(crate) fn clear(&mut self) {
        if self.live != [0; SIZES_LOG2.len()] {
            for e in &mut self.entries {
                e.live = false;
            }
            self.live = [0; SIZES_LOG2.len()];
        }
    }

    /// Live entries.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        debug_assert_eq!(self.live.iter().sum::<usize>(), self.entries.iter().filter(|e| e.live).count());
        self.live.iter().sum()
    }
}

#[cfg(test)]
mod tests;
