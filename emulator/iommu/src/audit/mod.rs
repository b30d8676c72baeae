//! The auditor: compares what is cached with the tables as they are, and says who forgot an invalidation.
//!
//! It keeps books of its own. Whatever is put into a cache of the unit, and every translation that a function is given, is
//! entered; an invalidation *covers* what it names, and when the wait after it completes, what was covered is struck out. Nothing
//! else is ever struck out, since software does not know what a cache evicts. So, when something cached differs from the tables:
//!
//! | it stands in the books | that means |
//! | --- | --- |
//! | open | software has changed a table and not invalidated yet: its mistake, once that has lasted longer than the limit |
//! | covered | an invalidation is under way, nobody is at fault |
//! | not at all | the invalidation completed, and the translation lived on: our mistake, at once |
//!
//! It shares the walker with the unit (what it checks is the caches), but no code with the caches and their invalidation.
//! No thread and no clock: the caller says what time it is ([`Unit::audit_at`]), gives it slices of work
//! ([`Unit::audit_slice`]) and tells it of each use of a device TLB ([`Unit::audit_use`]).
mod books;
mod check;
mod events;
mod finding;
mod live;
mod scope;

pub use events::Event;
pub use finding::{Cached, Finding, FindingKind};

pub(crate) use books::Value;
pub(crate) use scope::Scope;

use std::collections::BTreeMap;

use svadev_fabric::{Bdf, PageGroupResponse, PageRequest, Pasid};
use svadev_memory::GuestMemory;

use crate::Unit;
use crate::cache::Space;
use crate::context::{AddressSpace, Stages};
use books::{Books, Key};
use check::Cursors;
use events::{EventKind, Ring};
use finding::Findings;

/// Address spaces whose requester is remembered. One more, and those that are known have to do.
const MAX_OWNERS: usize = 1 << 16;

/// How the auditor judges.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AuditConfig {
    /// How long a table may differ from what is cached with no invalidation on its way, ns.
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
    /// Translations that left the books for want of room: what is wrong with them may go unseen.
    pub forgotten: u64,
    /// Mistakes found, repeated ones not counted.
    pub findings: u64,
    /// Of them, those that were not reported: there were too many.
    pub suppressed: u64,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Auditor {
    config: AuditConfig,
    now_ns: u64,
    books: Books,
    /// Who uses an address space of the unit's caches: their tags do not tell.
    owners: BTreeMap<u64, (Bdf, Option<Pasid>)>,
    events: Ring,
    findings: Findings,
    cursors: Cursors,
    checks: u64,
}

impl Auditor {
    fn new(config: AuditConfig) -> Self {
        Self {
            config,
            now_ns: 0,
            books: Books::default(),
            owners: BTreeMap::new(),
            events: Ring::default(),
            findings: Findings::default(),
            cursors: Cursors::default(),
            checks: 0,
        }
    }

    fn event(&mut self, kind: EventKind) {
        self.events.push(Event { at_ns: self.now_ns, kind });
    }

    fn owned(&mut self, space: Space, user: (Bdf, Option<Pasid>)) {
        if self.owners.len() < MAX_OWNERS || self.owners.contains_key(&space.word()) {
            self.owners.insert(space.word(), user);
        }
    }

    /// A walk for someone begins: what is cached on the way belongs to an address space that they use.
    #[cold]
    pub(crate) fn serves(&mut self, entry: &AddressSpace, user: (Bdf, Option<Pasid>)) {
        self.owned(entry.space, user);
        if matches!(entry.stages, Stages::Nested(..)) {
            self.owned(Space::of_domain(entry.space.domain_id()), user);
        }
    }

    /// A page request came in.
    pub(crate) fn page_requested(&mut self, request: PageRequest) {
        self.event(EventKind::PageRequest(request));
    }

    /// Software answered a group.
    pub(crate) fn page_answered(&mut self, to: Bdf, response: PageGroupResponse) {
        self.event(EventKind::PageResponse { to, response });
    }

    /// A mapping went into the IOTLB.
    #[cold]
    pub(crate) fn page_cached(&mut self, space: Space, iova: u64, size_log2: u8, value: Value, nested: bool) {
        self.books.enter(Key::page(space, iova, size_log2), value, nested);
    }

    /// The entry at `level` on the way to `iova` went into a paging-structure cache.
    #[cold]
    pub(crate) fn table_cached(&mut self, space: Space, iova: u64, level: u8, value: Value, nested: bool) {
        self.books.enter(Key::table(space, iova, level), value, nested);
    }

    /// An entry went into the PASID cache.
    #[cold]
    pub(crate) fn pasid_cached(&mut self, requester: Bdf, pasid: u32, value: Value) {
        self.books.enter(Key::pasid(requester, pasid), value, false);
    }

    /// An entry went into the context cache.
    #[cold]
    pub(crate) fn context_cached(&mut self, requester: Bdf, value: Value) {
        self.books.enter(Key::context(requester), value, false);
    }

    /// Software asked for an invalidation.
    pub(crate) fn invalidated(&mut self, scope: Scope) {
        self.event(EventKind::Invalidation(scope));
        self.books.cover(scope);
    }

    /// A right was raised, or a page made present, and the unit dropped by itself what it knew (§7.4).
    pub(crate) fn page_forgotten(&mut self, space: Space, iova: u64) {
        self.books.strike(Scope::Pages { space, iova, pages_log2: 0, leaf_only: false });
    }

    /// All invalidations so far have completed: a wait descriptor did, or a register-based command.
    pub(crate) fn completed(&mut self) {
        self.event(EventKind::Completed);
        self.books.complete();
    }

    /// Invalidations under way will never be waited for: they timed out, or the queue was restarted.
    pub(crate) fn abandoned(&mut self) {
        self.books.abandon();
    }

    /// Whether something that a function was given differs from the tables, as of the last look at it.
    #[cfg(test)]
    pub(crate) fn stale(&self, function: Bdf) -> bool {
        self.books.stale(function)
    }

    /// The unit's own caches are empty; what functions hold is of another time.
    pub(crate) fn emptied(&mut self) {
        self.books.strike(Scope::Iotlb);
        self.books.strike(Scope::Contexts);
        self.books.excuse_functions(None);
        self.books.abandon();
        self.owners.clear();
    }
}

impl<M: GuestMemory> Unit<M> {
    /// Starts the auditor, with empty books: call it before the unit is used.
    pub fn start_audit(&mut self, config: AuditConfig) {
        self.audit = Some(Box::new(Auditor::new(config)));
    }

    /// Says what time it is. Time that the guest did not have should not be counted: a change is timed by this clock alone.
    pub fn audit_at(&mut self, now_ns: u64) {
        if let Some(audit) = &mut self.audit {
            audit.now_ns = audit.now_ns.max(now_ns);
        }
    }

    /// The findings since the last call.
    pub fn take_audit_findings(&mut self) -> Vec<Finding> {
        self.audit.as_mut().map_or_else(Vec::new, |audit| audit.findings.take())
    }

    /// What the auditor did; `None` without one.
    pub fn audit_counters(&self) -> Option<AuditCounters> {
        let audit = self.audit.as_ref()?;
        Some(AuditCounters {
            checks: audit.checks,
            held: audit.books.len() as u64,
            forgotten: audit.books.forgotten(),
            findings: audit.findings.found(),
            suppressed: audit.findings.suppressed(),
        })
    }

    /// A function has dropped its device TLB of its own accord, or must not use it (reset, ATS switched off): software need not
    /// invalidate there what it was given.
    pub fn audit_forget(&mut self, function: Bdf) {
        if let Some(audit) = &mut self.audit {
            audit.books.excuse_functions(Some(function));
        }
    }
}
