//! Translation caches (chapter 6): bounded, with lookups and wide invalidations in constant time.
//!
//! Wide invalidations scan nothing. Every entry carries the time it was born; an invalidation of a domain, a PASID, a function
//! or everything raises a *floor*, and an entry counts only if it was born after every floor it lies under. Floors are kept in
//! small hashed tables, which are looked into only for entries older than the last of them all: two tags that share a slot are
//! invalidated together, which §6.5 always allows. Where nothing may go earlier than it must
//! ([`Store::Exact`](store::Store::Exact)), entries are searched instead.
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
