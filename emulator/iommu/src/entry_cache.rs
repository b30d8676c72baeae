//! The context cache and the PASID cache.
use svadev_mutation::mutant;

use crate::address_space::{AddressSpace, Stages};
use crate::cache::{Clock, Floors, Table};
use crate::config::UnitConfig;
use crate::request::{Request, RequestKind};
use crate::tables::Context;

/// The context cache and the PASID cache (§6.2.1, §6.2.2).
#[derive(Debug)]
pub(crate) struct EntryCaches {
    contexts: Table<u16, Context>,
    contexts_floor: u64,
    context_sources: Floors,
    pasids: Table<(u16, u32), AddressSpace>,
    pasids_floor: u64,
    pasid_sources: Floors,
    pasid_domains: Floors,
    pasid_tags: Floors,
    /// The latest of the four kinds of floor.
    pasids_latest: u64,
}

/// A function or a domain, and a PASID of it, in one number.
fn pasid_tag(id: u16, pasid: u32) -> u64 {
    u64::from(id) << 32 | u64::from(pasid)
}

/// Fibonacci hashing for the tables: the highest bits of the product depend on every bit of the tag.
fn table_hash(tag: u64) -> u64 {
    tag.wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

impl EntryCaches {
    pub(crate) fn new(config: &UnitConfig) -> Self {
        Self {
            contexts: Table::new(256, 0, Context::BLANK),
            contexts_floor: 0,
            context_sources: Floors::new(),
            pasids: Table::new(config.pasid_cache_entries, (0, 0), AddressSpace::BLANK),
            pasids_floor: 0,
            pasid_sources: Floors::new(),
            pasid_domains: Floors::new(),
            pasid_tags: Floors::new(),
            pasids_latest: 0,
        }
    }

    /// The context entry of `source_id`, unless it was invalidated.
    pub(crate) fn context(&self, source_id: u16) -> Option<&Context> {
        let (entry, born) = self.contexts.get_with_birth(source_id, table_hash(source_id.into()))?;
        let floor = self.contexts_floor.max(self.context_sources.of(source_id.into()));
        (born > floor).then_some(entry)
    }

    /// Fast path in scalable mode: the cached PASID entry for a user-mode, non-execute request with a PASID, if it
    /// may be used without a look at the context entry. `None`: take the slow path.
    #[inline]
    pub(crate) fn serving(&self, request: &Request) -> Option<&AddressSpace> {
        let Request { requester, pasid: Some(pasid), access, kind, .. } = *request else { return None };
        if access.privileged || access.execute {
            return None;
        }
        let entry = self.pasid(requester.0, pasid.get())?;
        let ats = kind == RequestKind::Translation;
        let usable = entry.serves_pasids && (entry.serves_ats || !ats) && !matches!(entry.stages, Stages::PassThrough);
        usable.then_some(entry)
    }

    /// The PASID entry, unless it or its context entry was invalidated. Of the checks of its context entry, only those
    /// are still due that depend on the kind of request.
    #[inline]
    pub(crate) fn pasid(&self, source_id: u16, pasid: u32) -> Option<&AddressSpace> {
        let (entry, born) = self.pasids.get_with_birth((source_id, pasid), table_hash(pasid_tag(source_id, pasid)))?;
        // Most were born after the last invalidation of all.
        let lives = born > self.pasids_latest || born > self.pasid_floor(source_id, entry.tag.domain_id(), pasid);
        lives.then_some(entry)
    }

    #[cold]
    fn pasid_floor(&self, source_id: u16, domain_id: u16, pasid: u32) -> u64 {
        self.pasids_floor
            .max(self.pasid_sources.of(source_id.into()))
            .max(self.pasid_domains.of(domain_id.into()))
            .max(self.pasid_tags.of(pasid_tag(domain_id, pasid)))
    }

    /// Keeps a context entry.
    pub(crate) fn insert_context(&mut self, source_id: u16, context: Context, clock: &mut Clock) {
        self.contexts.insert(source_id, table_hash(source_id.into()), context, clock.tick(), |_, _| true);
    }

    /// Keeps a PASID entry.
    pub(crate) fn insert_pasid(&mut self, source_id: u16, pasid: u32, entry: AddressSpace, clock: &mut Clock) {
        let hash = table_hash(pasid_tag(source_id, pasid));
        self.pasids.insert((source_id, pasid), hash, entry, clock.tick(), |_, _| true);
    }

    /// Calls `f` for the entries that count in up to `count` places of the PASID cache after `cursor`.
    pub(crate) fn each(&self, cursor: &mut usize, count: usize, mut f: impl FnMut((u16, u32), &AddressSpace)) {
        self.pasids.each_after(cursor, count, |(source_id, pasid), _, _| {
            if let Some(entry) = self.pasid(source_id, pasid) {
                f((source_id, pasid), entry);
            }
        });
    }

    /// Calls `f` for every entry of the context cache that counts.
    pub(crate) fn each_context(&self, mut f: impl FnMut(u16, &Context)) {
        self.contexts.each_after(&mut 0, usize::MAX, |source_id, _, _| {
            if let Some(context) = self.context(source_id) {
                f(source_id, context);
            }
        });
    }

    /// Invalidates every context entry, and every PASID entry, for each was reached through one.
    pub(crate) fn invalidate_contexts(&mut self, clock: &mut Clock) {
        self.contexts_floor = clock.tick();
        if !mutant!(ContextInvalidationKeepsPasids) {
            self.invalidate_pasids(clock);
        }
    }

    /// Invalidates the context entries of `source_id` and, with `function_mask`, of its neighbours (§6.5.2.1), and the
    /// PASID entries reached through them.
    pub(crate) fn invalidate_source(&mut self, source_id: u16, function_mask: u8, clock: &mut Clock) {
        let now = self.now_invalidated(clock);
        // FM ignores the function number's highest bit, its two highest, or all three.
        let function_mask = if mutant!(FunctionMaskIgnored) { 0 } else { function_mask & 3 };
        let ignored: u16 = [0b000, 0b100, 0b110, 0b111][usize::from(function_mask)];
        for function in 0..8 {
            if function & !ignored == source_id & 7 & !ignored {
                let source_id = u64::from(source_id & !7 | function);
                self.context_sources.raise(source_id, now);
                if !mutant!(ContextInvalidationKeepsPasids) {
                    self.pasid_sources.raise(source_id, now);
                }
            }
        }
    }

    pub(crate) fn invalidate_pasids(&mut self, clock: &mut Clock) {
        self.pasids_floor = self.now_invalidated(clock);
    }

    pub(crate) fn invalidate_pasid_domain(&mut self, domain_id: u16, clock: &mut Clock) {
        let now = self.now_invalidated(clock);
        self.pasid_domains.raise(domain_id.into(), now);
    }

    pub(crate) fn invalidate_pasid(&mut self, domain_id: u16, pasid: u32, clock: &mut Clock) {
        let now = self.now_invalidated(clock);
        self.pasid_tags.raise(pasid_tag(domain_id, pasid), now);
    }

    /// The time of an invalidation that concerns PASID entries.
    fn now_invalidated(&mut self, clock: &mut Clock) -> u64 {
        self.pasids_latest = clock.tick();
        self.pasids_latest
    }
}
