//! The IOTLB by itself, for benchmarks.
use crate::cache::{CacheTag, Clock, Leaf, Mapping, PageSize, Rights, TranslationCaches};

/// How many pages [`Lookups::hit`] looks for.
pub const HOT_PAGES: u64 = 64;

/// An IOTLB alone: the same few pages are looked for, and what lies around them differs.
#[derive(Debug)]
pub struct Lookups(TranslationCaches);

impl Lookups {
    /// With `entries` pages of 4 KiB (at least [`HOT_PAGES`]), and as many that were invalidated as `stale` says, in
    /// 4096 PASIDs. Both at most 2^20, the largest IOTLB.
    pub fn new(entries: u64, stale: u64) -> Self {
        let size = usize::try_from((2 * entries.max(256)).next_power_of_two()).expect("small").min(1 << 20);
        let mapping = Mapping::new(Leaf::new(0x5000, PageSize::SIZE_4KIB, Rights::READ_WRITE), true);
        let space = |pasid: u64| CacheTag::new(1, u32::try_from(pasid).expect("20 bits"));
        let (mut iotlb, mut clock) = (TranslationCaches::new(size, false), Clock::default());
        for n in 0..stale {
            iotlb.insert(space(n % 4096), (n / 4096) << 12, mapping, false, &mut clock);
        }
        if stale != 0 {
            iotlb.invalidate_domain(1, &mut clock);
        }
        // The hot ones last: the largest IOTLB has evicted some of the others by then.
        for page in (HOT_PAGES..entries).chain(0..HOT_PAGES) {
            iotlb.insert(space(5), page << 12, mapping, false, &mut clock);
        }
        Self(iotlb)
    }

    /// Looks one of the hot pages up, which one `n` says. It is there.
    #[inline]
    pub fn hit(&self, n: u64) -> bool {
        self.0.get(CacheTag::new(1, 5), (n & (HOT_PAGES - 1)) << 12).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hot_pages_are_found_whatever_lies_around_them() {
        for (entries, stale) in [(64, 0), (1 << 14, 1 << 14), (1 << 20, 1 << 20)] {
            let lookups = Lookups::new(entries, stale);
            assert!((0..HOT_PAGES).all(|n| lookups.hit(n)), "{entries} entries, {stale} stale");
        }
    }
}
