//! Translation caches (chapter 6): bounded, with lookups and wide invalidations in constant time.
//!
//! Wide invalidations scan nothing. Every entry has the time of its birth. An invalidation of a domain, a PASID, a
//! function or everything raises a *floor* to the present time. An entry counts only if it was born after every floor
//! that applies to it. Floors are kept in small hashed tables, which are read only for entries older than the latest
//! floor. Two tags that share a slot are invalidated together, which §6.5 always allows. A store that may not
//! invalidate early ([`Store::Exact`](store::Store::Exact)) searches its entries instead.
mod by_level;
mod exact;
mod floors;
mod key;
mod leaf;
mod store;
mod structures;
mod table;
mod translations;

pub(crate) use floors::{Clock, Floors};
pub(crate) use key::CacheTag;
pub(crate) use leaf::{Leaf, PageSize, Rights};
pub(crate) use store::ScanCursor;
pub(crate) use structures::{PartialWalk, StructureTag};
pub(crate) use table::Table;
pub(crate) use translations::{Mapping, TranslationCaches};
