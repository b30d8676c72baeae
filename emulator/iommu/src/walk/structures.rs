//! The paging-structure caches as a walk uses them (§6.2.5).
use svadev_spec::vtd::tables::Level;

use super::Start;
use crate::cache::{PartialWalk, StructureTag, TranslationCaches};
use crate::observe::{CacheSlot, CachedEntry, Observing};

/// The paging-structure cache entries under one tag.
pub(crate) struct StructureAccess<'a> {
    /// None without caching.
    pub(crate) caches: Option<&'a mut TranslationCaches>,
    /// Hears what is cached.
    pub(crate) observer: Observing<'a>,
    /// A fault found from a cached entry is looked for again from the root. Off in adversarial caching.
    pub(crate) doubted: bool,
    /// Whose entries they are.
    pub(crate) tag: StructureTag,
}

impl StructureAccess<'_> {
    /// The same caches under another tag.
    #[inline]
    pub(crate) fn under(&mut self, tag: StructureTag) -> StructureAccess<'_> {
        let observer: Observing<'_> = match &mut self.observer {
            Some(observer) => Some(&mut **observer),
            None => None,
        };
        StructureAccess { caches: self.caches.as_deref_mut(), observer, doubted: self.doubted, tag }
    }

    /// The lowest cached table on the way to `address`.
    #[inline]
    pub(super) fn lowest(&self, address: u64, top: Level) -> Option<Start> {
        self.caches.as_ref()?.lowest_structure(&self.tag, address, top)
    }

    /// Caches what the entry at `level` on the way to `address` leads to.
    #[inline]
    pub(super) fn keep(&mut self, address: u64, level: Level, partial: PartialWalk) {
        if let Some(caches) = &mut self.caches {
            caches.keep_structure(&self.tag, address, level, partial);
            if let Some(observer) = &mut self.observer {
                let slot = CacheSlot::Structure { tag: self.tag.cache_tag(), iova: address, level };
                observer.filled(slot, CachedEntry::Table(partial), self.tag.nested());
            }
        }
    }
}
