//! Translation caches (chapter 6): bounded, with lookups and wide invalidations in constant time.
//!
//! Wide invalidations scan nothing. Every entry carries the time it was born; an invalidation of a domain, a PASID, a function
//! or everything raises a *floor*, and an entry counts only if it was born after every floor it lies under. Floors are kept in
//! small hashed tables: two tags that share a slot are invalidated together, which §6.5 always allows.
mod floors;
mod iotlb;
mod table;

pub(crate) use floors::{Clock, Floors};
pub(crate) use iotlb::{Iotlb, Lookup, Mapping, Space};
pub(crate) use table::Table;
