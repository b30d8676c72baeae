//! Which entries of the books an invalidation covers, as the specification words it (§6.5.2). Shares no code with the
//! caches.
use std::ops::RangeInclusive;

use svadev_fabric::{Bdf, InvalidateRange, Iova, Pasid};
use svadev_spec::vtd::tables::Level;

use super::books::{Class, Held, Key, NO_PASID, Place, SIZES_LOG2};
use crate::observe::{CachedEntry, Scope};

impl Scope {
    /// Ranges of the books that have every entry that may be covered. They are short for frequent invalidations, and
    /// whole places for the rest.
    pub(super) fn ranges(&self) -> Vec<RangeInclusive<Key>> {
        match *self {
            Self::Contexts | Self::Source { .. } | Self::Pasids | Self::PasidsOfDomain(_) | Self::Pasid { .. } => {
                vec![Key::first_in(Place::Entries(Bdf(0)))..=Key::last_in(Place::Entries(Bdf(u16::MAX)))]
            }
            Self::Iotlb | Self::Domain(_) => vec![Key::first_in(Place::Unit)..=Key::last_in(Place::Unit)],
            // Nested mappings of the domain go with second-stage pages, wherever they are.
            Self::Pages { tag: space, .. } if !space.has_pasid() => {
                vec![Key::first_in(Place::Unit)..=Key::last_in(Place::Unit)]
            }
            Self::Tag(space) => vec![Key::space(Place::Unit, space.word())],
            Self::Pages { tag: space, iova, pages_log2, .. } => {
                by_class(Place::Unit, space.word(), iova, 12 + u32::from(pages_log2))
            }
            Self::Function { to, global: true, .. } => {
                vec![Key::first_in(Place::Function(to))..=Key::last_in(Place::Function(to))]
            }
            Self::Function { to, pasid, range, .. } => {
                let space = pasid.map_or(NO_PASID, |pasid| pasid.get().into());
                match range {
                    InvalidateRange::All => vec![Key::space(Place::Function(to), space)],
                    InvalidateRange::Naturally { start, size_log2 } => {
                        by_class(Place::Function(to), space, start.0, size_log2.into())
                    }
                }
            }
        }
    }

    /// Whether an entry in one of those ranges is covered.
    pub(super) fn covers(&self, key: &Key, held: &Held) -> bool {
        match (*self, key.place) {
            (Self::Contexts, Place::Entries(_)) | (Self::Iotlb, Place::Unit) => true,
            (Self::Source { source_id, function_mask }, Place::Entries(bdf)) => {
                // FM ignores the function number's highest bit, its two highest, or all three (§6.5.2.1).
                let ignored = [0b000, 0b100, 0b110, 0b111][usize::from(function_mask & 3)];
                (bdf.0 ^ source_id) & !ignored == 0
            }
            (Self::Pasids, Place::Entries(_)) => matches!(held.value, CachedEntry::Pasid(_)),
            (Self::PasidsOfDomain(domain_id), Place::Entries(_)) => {
                matches!(held.value, CachedEntry::Pasid(entry) if entry.tag.domain_id() == domain_id)
            }
            (Self::Pasid { domain_id, pasid }, Place::Entries(_)) => {
                matches!(held.value, CachedEntry::Pasid(entry) if entry.tag.domain_id() == domain_id)
                    && key.space == u64::from(pasid)
            }
            (Self::Domain(domain_id), Place::Unit) => key.space >> 21 == u64::from(domain_id),
            (Self::Tag(space), Place::Unit) => key.space == space.word(),
            (Self::Pages { tag: space, iova, pages_log2, leaf_only }, Place::Unit) => {
                if leaf_only && key.class.level().is_some() {
                    return false;
                }
                let nested = !space.has_pasid() && held.nested && key.space >> 21 == u64::from(space.domain_id());
                let range = InvalidateRange::Naturally { start: Iova(iova), size_log2: 12 + pages_log2 };
                nested || (key.space == space.word() && key.overlaps(range))
            }
            (Self::Function { to, pasid, global, range }, Place::Function(bdf)) => {
                let space = pasid.map_or(NO_PASID, |pasid| pasid.get().into());
                to == bdf && (global || key.space == space) && key.overlaps(range)
            }
            _ => false,
        }
    }

    /// Whether the invalidation may concern a PASID's page of `1 << size_log2` bytes in a domain, or a cached entry on
    /// the way to that page.
    pub(super) fn concerns(&self, domain_id: Option<u16>, pasid: Option<Pasid>, page: u64, size_log2: u8) -> bool {
        let of_domain = |did: u16| domain_id.is_none_or(|domain_id| domain_id == did);
        let number = pasid.map(|pasid| u64::from(pasid.get()));
        match *self {
            Self::Contexts | Self::Source { .. } | Self::Pasids | Self::Iotlb => true,
            Self::PasidsOfDomain(did) | Self::Domain(did) => of_domain(did),
            Self::Pasid { domain_id: did, pasid: of } => of_domain(did) && number == Some(of.into()),
            Self::Tag(space) => of_domain(space.domain_id()) && space.pasid().map(u64::from) == number,
            Self::Pages { tag: space, iova, pages_log2, .. } => {
                let range = InvalidateRange::Naturally { start: Iova(iova), size_log2: 12 + pages_log2 };
                let of = space.pasid().map(u64::from);
                of_domain(space.domain_id()) && (of.is_none() || of == number) && range.overlaps(Iova(page), size_log2)
            }
            Self::Function { pasid: of, global, range, .. } => {
                (global || of == pasid) && range.overlaps(Iova(page), size_log2)
            }
        }
    }
}

/// The keys of every page size and level that overlap the `1 << size_log2` bytes around `iova`.
fn by_class(place: Place, space: u64, iova: u64, size_log2: u32) -> Vec<RangeInclusive<Key>> {
    if size_log2 >= 64 {
        return vec![Key::space(place, space)];
    }
    let first = iova >> size_log2 << size_log2;
    let last = first | ((1u64 << size_log2) - 1);
    let pages = SIZES_LOG2.into_iter().map(Class::Page);
    let tables = Level::WITH_TABLES.into_iter().map(Class::Table);
    pages
        .chain(tables)
        .map(|class| {
            let shift = class.size_log2();
            let key = |number| Key { place, space, class, number };
            key(first >> shift)..=key(last >> shift)
        })
        .collect()
}
