//! The auditor: compares what is cached with the tables as they are, and reports who forgot an invalidation.
//!
//! It keeps books of its own. An entry that is put into a cache of the unit is added, and so is every translation that
//! a function is given. An invalidation *covers* the entries that it names. When the wait after it completes, the
//! covered entries are removed. Nothing else is ever removed, for software does not know what a cache evicts. A cached
//! entry that differs from the tables is judged by the books:
//!
//! | in the books | meaning |
//! | --- | --- |
//! | open | Software changed a table and has not invalidated yet: its mistake once that lasts longer than the limit. |
//! | covered | An invalidation is under way: nobody is at fault. |
//! | not there | The invalidation completed and the translation lived on: our mistake, at once. |
//!
//! It shares the walker with the unit, for what it checks is the caches. It shares no code with the caches and their
//! invalidation. It has no thread and no clock. The caller says what time it is
//! ([`Unit::audit_at`](crate::Unit::audit_at)), gives it slices of work
//! ([`Unit::audit_slice`](crate::Unit::audit_slice)), and tells it of each use of a device TLB
//! ([`Unit::audit_use`](crate::Unit::audit_use)).
mod books;
mod check;
mod events;
mod finding;
mod live;
mod scope;

pub use events::HistoryEvent;
pub use finding::{Cached, Finding, FindingKind};

use std::collections::BTreeMap;

use svadev_fabric::{Bdf, PageGroupResponse, PageRequest, Pasid};

use crate::address_space::{AddressSpace, Stages};
use crate::cache::CacheTag;
use crate::observe::{CacheSlot, CachedEntry, Observer, Observing, Scope};
use books::{Books, Key};
use check::Cursors;
use events::History;
use finding::Findings;

/// Address spaces whose requester is remembered. Beyond that number, no further ones are.
const MAX_OWNERS: usize = 1 << 16;

/// How the auditor judges.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AuditConfig {
    /// How long a table may differ from a cached entry with no invalidation under way, ns.
    pub limit_ns: u64,
}

impl Default for AuditConfig {
    fn default() -> Self {
        Self { limit_ns: 500_000_000 }
    }
}

/// What the auditor did so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct AuditCounters {
    /// Comparisons with the tables.
    pub checks: u64,
    /// Translations and entries in the books.
    pub held: u64,
    /// Entries that were dropped from the books for want of room: a mistake about them may go unseen.
    pub forgotten: u64,
    /// Mistakes found, repeated ones not counted.
    pub findings: u64,
    /// Of those, the ones that were not reported: there were too many.
    pub suppressed: u64,
}

/// The counters of two auditors together.
impl std::ops::Add for AuditCounters {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        let Self { checks, held, forgotten, findings, suppressed } = other;
        Self {
            checks: self.checks + checks,
            held: self.held + held,
            forgotten: self.forgotten + forgotten,
            findings: self.findings + findings,
            suppressed: self.suppressed + suppressed,
        }
    }
}

/// Compares what is cached with the tables as they are, and reports whose invalidation is missing.
#[derive(Debug)]
pub(crate) struct Auditor {
    config: AuditConfig,
    books: Books,
    /// Who uses each address space of the unit's caches: the tags do not say.
    owners: BTreeMap<u64, (Bdf, Option<Pasid>)>,
    history: History,
    findings: Findings,
    cursors: Cursors,
    checks: u64,
}

impl Auditor {
    pub(crate) fn new(config: AuditConfig) -> Self {
        Self {
            config,
            books: Books::default(),
            owners: BTreeMap::new(),
            history: History::default(),
            findings: Findings::default(),
            cursors: Cursors::default(),
            checks: 0,
        }
    }

    /// Sets the time.
    pub(crate) fn set_time(&mut self, now_ns: u64) {
        self.history.set_time(now_ns);
    }

    /// The findings since the last call.
    pub(crate) fn take_findings(&mut self) -> Vec<Finding> {
        self.findings.take()
    }

    /// What it did.
    pub(crate) fn counters(&self) -> AuditCounters {
        AuditCounters {
            checks: self.checks,
            held: self.books.len() as u64,
            forgotten: self.books.forgotten(),
            findings: self.findings.found(),
            suppressed: self.findings.suppressed(),
        }
    }

    /// Software need not invalidate what `function` was given so far.
    pub(crate) fn forget(&mut self, function: Bdf) {
        self.books.stop_reporting(Some(function));
    }

    fn owned(&mut self, space: CacheTag, user: (Bdf, Option<Pasid>)) {
        if self.owners.len() < MAX_OWNERS || self.owners.contains_key(&space.word()) {
            self.owners.insert(space.word(), user);
        }
    }

    /// Whether an entry that a function was given differed from the tables when it was last checked.
    #[cfg(test)]
    pub(crate) fn stale(&self, function: Bdf) -> bool {
        self.books.stale(function)
    }
}

impl Observer for Auditor {
    #[cold]
    fn walk_begins(&mut self, entry: &AddressSpace, user: (Bdf, Option<Pasid>)) {
        self.owned(entry.tag, user);
        if matches!(entry.stages, Stages::Nested(..)) {
            self.owned(CacheTag::of_domain(entry.tag.domain_id()), user);
        }
    }

    #[cold]
    fn filled(&mut self, slot: CacheSlot, entry: CachedEntry, nested: bool) {
        self.books.enter(Key::of(slot), entry, nested);
    }

    fn page_dropped(&mut self, space: CacheTag, iova: u64) {
        self.books.remove(Scope::Pages { tag: space, iova, pages_log2: 0, leaf_only: false });
    }

    fn invalidated(&mut self, scope: Scope) {
        self.history.invalidated(scope);
        self.books.cover(scope);
    }

    fn completed(&mut self) {
        self.history.completed();
        self.books.complete();
    }

    fn abandoned(&mut self) {
        self.books.abandon();
    }

    /// Translations that functions hold were given before: software need not invalidate them any more.
    fn emptied(&mut self) {
        self.books.remove(Scope::Iotlb);
        self.books.remove(Scope::Contexts);
        self.books.stop_reporting(None);
        self.books.abandon();
        self.owners.clear();
    }

    fn page_requested(&mut self, request: PageRequest) {
        self.history.page_requested(request);
    }

    fn page_answered(&mut self, to: Bdf, response: PageGroupResponse) {
        self.history.page_answered(to, response);
    }
}

/// The auditor as an observer, if there is one.
#[inline]
pub(crate) fn observing(audit: &mut Option<Box<Auditor>>) -> Observing<'_> {
    match audit {
        Some(audit) => Some(&mut **audit),
        None => None,
    }
}
