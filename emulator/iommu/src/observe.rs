//! What the unit reports about its own work.
//!
//! The code that fills caches, answers requests and completes invalidations calls an [`Observer`] and does not know
//! which one. The auditor, its history and the counters are observers. Nothing that an observer does changes what the
//! unit does.
use std::fmt;

use svadev_fabric::{Bdf, InvalidateRange, PageGroupResponse, PageRequest, Pasid};
use svadev_spec::vtd::tables::Level;

use crate::address_space::{AddressSpace, Stages};
use crate::cache::{CacheTag, PartialWalk};
use crate::tables::Context;

/// An observer of the unit. Every method has an empty default, so that an observer implements only what concerns it.
pub(crate) trait Observer {
    /// A walk begins. What it caches belongs to `space`, which `user` uses.
    fn walk_begins(&mut self, _space: &AddressSpace, _user: (Bdf, Option<Pasid>)) {}

    /// A cache of the unit holds `entry` from now on. `nested`: the entry depends on second-stage mappings that its
    /// tag does not name.
    fn filled(&mut self, _slot: CacheSlot, _entry: CachedEntry, _nested: bool) {}

    /// The unit dropped its own entries for a page because a function requested that page (§7.4).
    fn page_dropped(&mut self, _space: CacheTag, _iova: u64) {}

    /// Software asked for an invalidation.
    fn invalidated(&mut self, _scope: Scope) {}

    /// All invalidations so far are complete: a wait descriptor completed, or a register-based command.
    fn completed(&mut self) {}

    /// Invalidations that are under way will never complete: they timed out, or the queue was restarted.
    fn abandoned(&mut self) {}

    /// The unit's caches are empty: after a reset, or with a new root table.
    fn emptied(&mut self) {}

    /// A page request message arrived.
    fn page_requested(&mut self, _request: PageRequest) {}

    /// Software answered a page request group.
    fn page_answered(&mut self, _to: Bdf, _response: PageGroupResponse) {}
}

/// Nobody listens.
impl Observer for () {}

/// An observer, if there is one.
pub(crate) type Observing<'a> = Option<&'a mut (dyn Observer + 'static)>;

/// Which entry of which cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CacheSlot {
    /// The IOTLB's entry for a page.
    Page {
        /// Its tag.
        tag: CacheTag,
        /// An address in the page.
        iova: u64,
        /// Log2 of the page's size.
        size_log2: u8,
    },
    /// The paging-structure cache's entry at a level.
    Structure {
        /// Its tag.
        tag: CacheTag,
        /// An address that the entry covers.
        iova: u64,
        /// Level of the entry that points to the next table.
        level: Level,
    },
    /// The PASID cache's entry.
    Pasid {
        /// The function that uses it.
        requester: Bdf,
        /// Its PASID.
        pasid: u32,
    },
    /// The context cache's entry.
    Context {
        /// The function that it is for.
        requester: Bdf,
    },
}

/// What a cached entry says.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum CachedEntry {
    /// A page's address and rights.
    Page {
        /// First byte of the page.
        gpa: u64,
        /// Reads are allowed.
        read: bool,
        /// Writes are allowed.
        write: bool,
    },
    /// A paging-structure cache entry.
    Table(PartialWalk),
    /// A PASID cache entry.
    Pasid(AddressSpace),
    /// A context cache entry.
    Context(Context),
}

impl fmt::Display for CachedEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let flag = |set: bool, name: char| if set { name } else { '-' };
        match self {
            Self::Page { gpa, read, write } => write!(f, "page at {gpa:#x}, {}{}", flag(*read, 'r'), flag(*write, 'w')),
            Self::Table(structure) => write!(
                f,
                "table at {:#x}, {}{}{}",
                structure.table(),
                flag(structure.read(), 'r'),
                flag(structure.write(), 'w'),
                flag(structure.execute(), 'x')
            ),
            Self::Pasid(entry) => {
                write!(f, "domain {}, ", entry.tag.domain_id())?;
                match entry.stages {
                    Stages::First(first) => write!(f, "first-stage tables at {:#x}", first.root),
                    Stages::Second(second) => write!(f, "second-stage tables at {:#x}", second.root),
                    Stages::Nested(first, second) => {
                        write!(f, "first-stage tables at {:#x}, second-stage at {:#x}", first.root, second.root)
                    }
                    Stages::PassThrough => f.write_str("pass-through"),
                }
            }
            Self::Context(context) => write!(f, "{context:?}"),
        }
    }
}

/// What is invalidated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scope {
    /// Every context entry, and the PASID entries behind them (§6.5.2.1).
    Contexts,
    /// The context entry of a requester and of those that FM adds, and the PASID entries behind them.
    Source {
        /// SID.
        source_id: u16,
        /// FM.
        function_mask: u8,
    },
    /// Every PASID entry (§6.5.2.2).
    Pasids,
    /// The PASID entries of a domain.
    PasidsOfDomain(u16),
    /// The PASID entries of a PASID in a domain.
    Pasid {
        /// DID.
        domain_id: u16,
        /// PASID.
        pasid: u32,
    },
    /// The whole IOTLB and the paging-structure caches (§6.5.2.3).
    Iotlb,
    /// The entries of the IOTLB and the paging-structure caches for a domain.
    Domain(u16),
    /// The entries of the IOTLB and the paging-structure caches for a PASID in a domain (§6.5.2.4).
    Tag(CacheTag),
    /// The entries of the IOTLB and the paging-structure caches for some pages.
    Pages {
        /// Domain, and PASID if there is one.
        tag: CacheTag,
        /// An address in the pages.
        iova: u64,
        /// AM.
        pages_log2: u8,
        /// IH.
        leaf_only: bool,
    },
    /// A function's device TLB (§6.5.2.5, §6.5.2.6).
    Function {
        /// The function.
        to: Bdf,
        /// Its PASID.
        pasid: Option<Pasid>,
        /// Every PASID.
        global: bool,
        /// Addresses.
        range: InvalidateRange,
    },
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Contexts => f.write_str("context cache, all"),
            Self::Source { source_id, function_mask } => {
                write!(f, "context cache of {}, function mask {function_mask}", Bdf(source_id))
            }
            Self::Pasids => f.write_str("PASID cache, all"),
            Self::PasidsOfDomain(domain_id) => write!(f, "PASID cache of domain {domain_id}"),
            Self::Pasid { domain_id, pasid } => write!(f, "PASID cache of domain {domain_id} PASID {pasid}"),
            Self::Iotlb => f.write_str("IOTLB, all"),
            Self::Domain(domain_id) => write!(f, "IOTLB of domain {domain_id}"),
            Self::Tag(tag) => write!(f, "IOTLB of {}", named(tag)),
            Self::Pages { tag, iova, pages_log2, leaf_only } => {
                let log2 = 12 + u32::from(pages_log2);
                let start = iova.checked_shr(log2).and_then(|n| n.checked_shl(log2)).unwrap_or(0);
                write!(f, "IOTLB of {}, 2^{pages_log2} pages from {start:#x}", named(tag))?;
                if leaf_only { f.write_str(", leaves only") } else { Ok(()) }
            }
            Self::Function { to, pasid, global, range } => {
                write!(f, "device TLB of {to}")?;
                match pasid {
                    _ if global => f.write_str(", all PASIDs")?,
                    Some(pasid) => write!(f, ", PASID {pasid}")?,
                    None => f.write_str(", no PASID")?,
                }
                match range {
                    InvalidateRange::All => f.write_str(", all pages"),
                    InvalidateRange::Naturally { start, size_log2 } => {
                        write!(f, ", 2^{} pages from {start}", size_log2.saturating_sub(12))
                    }
                }
            }
        }
    }
}

fn named(tag: CacheTag) -> String {
    let domain_id = tag.domain_id();
    tag.pasid().map_or_else(|| format!("domain {domain_id}"), |pasid| format!("domain {domain_id} PASID {pasid}"))
}
