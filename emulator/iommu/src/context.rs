//! From a requester and a PASID to an address space: root, context and PASID tables (§3.4).
use svadev_fabric::{Bdf, Pasid};
use svadev_memory::{GuestAddress, GuestMemory};
use svadev_mutation::mutant;
use svadev_spec::vtd::FaultReason;
use svadev_spec::vtd::registers::translation_table_mode;
use svadev_spec::vtd::tables::{
    CONTEXT_ENTRY_SIZE, ContextHigh, ContextLow, LEGACY_CONTEXT_ENTRY_SIZE, LegacyContextHigh, LegacyContextLow,
    PASID_DIRECTORY_ENTRY_SIZE, PASID_TABLE_BITS, PASID_TABLE_ENTRY_SIZE, PasidDirectoryEntry, PasidTable0,
    PasidTable1, PasidTable2, ROOT_ENTRY_SIZE, RootEntry, legacy_translation_type, translation_type,
};

use crate::UnitConfig;
use crate::cache::{Clock, Floors, Space, Table};
use crate::fault::{Fault, Request, RequestKind};
use crate::observe::{CacheSlot, CachedEntry};
use crate::resolver::Resolver;
use crate::translate::in_interrupt_range;
use crate::walk::{FirstStage, SecondStage};

/// How addresses of one PASID, or of one function, are translated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stages {
    First(FirstStage),
    Second(SecondStage),
    Nested(FirstStage, SecondStage),
    PassThrough,
}

/// What the tables say about the requests of one PASID, or of one function in legacy mode.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct AddressSpace {
    /// Tags of its IOTLB entries.
    pub(crate) space: Space,
    pub(crate) stages: Stages,
    /// FPD of the entries on the way.
    pub(crate) fault_processing_disable: bool,
    /// Faults have the codes of legacy mode.
    pub(crate) legacy: bool,
    /// The context entry on the way lets translation requests in (DTE).
    pub(crate) serves_ats: bool,
    /// The context entry on the way lets requests with PASID in (PASIDE).
    pub(crate) serves_pasids: bool,
}

impl AddressSpace {
    /// For places of the PASID cache that are empty.
    const BLANK: Self = Self {
        space: Space::of_domain(0),
        stages: Stages::PassThrough,
        fault_processing_disable: false,
        legacy: false,
        serves_ats: false,
        serves_pasids: false,
    };
}

/// A context entry.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Context {
    Legacy(LegacyContext),
    Scalable(ScalableContext),
}

impl Context {
    /// For places of the context cache that are empty.
    const BLANK: Self = Self::Legacy(LegacyContext { address_space: AddressSpace::BLANK });

    /// Whether what `old` let in is let in, and led to the same tables.
    pub(crate) fn allows_all_of(&self, old: &Self) -> bool {
        match (self, old) {
            (Self::Legacy(new), Self::Legacy(old)) => {
                let (new, old) = (new.address_space, old.address_space);
                new.space == old.space && new.stages == old.stages && (new.serves_ats || !old.serves_ats)
            }
            (Self::Scalable(new), Self::Scalable(old)) => {
                new.low.frame() == old.low.frame()
                    && new.low.pasid_directory_size() >= old.low.pasid_directory_size()
                    && (new.low.device_tlb_enable() || !old.low.device_tlb_enable())
                    && (new.low.pasid_enable() || !old.low.pasid_enable())
                    && (new.low.page_request_enable() || !old.low.page_request_enable())
                    && (new.high.rid_pasid(), new.high.rid_privileged())
                        == (old.high.rid_pasid(), old.high.rid_privileged())
            }
            _ => false,
        }
    }
}

/// A legacy context entry (§9.3).
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct LegacyContext {
    address_space: AddressSpace,
}

/// A scalable-mode context entry (§9.4).
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct ScalableContext {
    low: ContextLow,
    high: ContextHigh,
}

impl ScalableContext {
    /// How many PASIDs the directory has room for (§9.4, PDTS).
    fn pasid_limit(&self) -> u64 {
        1 << (u32::from(self.low.pasid_directory_size()) + 7 + PASID_TABLE_BITS)
    }
}

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
    /// The highest of the four.
    pasids_latest: u64,
}

/// A function or a domain, and a PASID of it, in one number.
fn pasid_tag(id: u16, pasid: u32) -> u64 {
    u64::from(id) << 32 | u64::from(pasid)
}

/// For the tables. Fibonacci hashing: the highest bits of the product depend on every bit of the tag.
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

    fn context(&self, source_id: u16) -> Option<&Context> {
        let (entry, born) = self.contexts.get_with_birth(source_id, table_hash(source_id.into()))?;
        let floor = self.contexts_floor.max(self.context_sources.of(source_id.into()));
        (born > floor).then_some(entry)
    }

    /// The entry of a user request with a PASID that does not execute, in scalable mode, if it lives, lets the request in and has tables. It
    /// says what its context entry allows, too.
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

    /// A live entry passed every check of its context entry, but for those that depend on the request's kind; it dies with it, too.
    #[inline]
    fn pasid(&self, source_id: u16, pasid: u32) -> Option<&AddressSpace> {
        let (entry, born) = self.pasids.get_with_birth((source_id, pasid), table_hash(pasid_tag(source_id, pasid)))?;
        // Most were born after the last invalidation of all.
        let lives = born > self.pasids_latest || born > self.pasid_floor(source_id, entry.space.domain_id(), pasid);
        lives.then_some(entry)
    }

    #[cold]
    fn pasid_floor(&self, source_id: u16, domain_id: u16, pasid: u32) -> u64 {
        self.pasids_floor
            .max(self.pasid_sources.of(source_id.into()))
            .max(self.pasid_domains.of(domain_id.into()))
            .max(self.pasid_tags.of(pasid_tag(domain_id, pasid)))
    }

    /// Calls `f` for up to `count` places of the PASID cache, after `cursor`, where something lives.
    pub(crate) fn each(&self, cursor: &mut usize, count: usize, mut f: impl FnMut((u16, u32), &AddressSpace)) {
        self.pasids.each_after(cursor, count, |(source_id, pasid), _, _| {
            if let Some(entry) = self.pasid(source_id, pasid) {
                f((source_id, pasid), entry);
            }
        });
    }

    /// Calls `f` for every entry that lives in the context cache.
    pub(crate) fn each_context(&self, mut f: impl FnMut(u16, &Context)) {
        self.contexts.each_after(&mut 0, usize::MAX, |source_id, _, _| {
            if let Some(context) = self.context(source_id) {
                f(source_id, context);
            }
        });
    }

    /// Every context entry, and with them every PASID entry: they were reached through one.
    pub(crate) fn invalidate_contexts(&mut self, clock: &mut Clock) {
        self.contexts_floor = clock.tick();
        if !mutant!(ContextInvalidationKeepsPasids) {
            self.invalidate_pasids(clock);
        }
    }

    /// The context entries of `source_id` and, with `function_mask`, of its neighbours (§6.5.2.1), and the PASID entries
    /// reached through them.
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

    /// The time of an invalidation that takes PASID entries.
    fn now_invalidated(&mut self, clock: &mut Clock) -> u64 {
        self.pasids_latest = clock.tick();
        self.pasids_latest
    }
}

fn fault(reason: FaultReason, fault_processing_disable: bool) -> Fault {
    Fault { reason, fault_processing_disable }
}

impl<M: GuestMemory> Resolver<'_, M> {
    /// The address space that `request` uses, and whether it is a supervisor request there.
    pub(crate) fn address_space(&mut self, request: &Request) -> Result<(AddressSpace, bool), Fault> {
        match self.context(request)? {
            Context::Legacy(context) => {
                let space = context.address_space;
                if request.kind == RequestKind::Translation && !space.serves_ats {
                    return Err(fault(FaultReason::LegacyContextBlocks, space.fault_processing_disable));
                }
                Ok((space, false))
            }
            Context::Scalable(context) => {
                let fpd = context.low.fault_processing_disable();
                if request.kind == RequestKind::Translation && !context.low.device_tlb_enable() {
                    return Err(fault(FaultReason::DeviceTlbDisabled, fpd));
                }
                let (pasid, privileged, too_large) = match request.pasid {
                    Some(pasid) => (pasid.get(), request.access.privileged, FaultReason::PasidTooLarge),
                    None => {
                        let high = context.high;
                        (high.rid_pasid(), high.rid_privileged(), FaultReason::RidPasidInvalid)
                    }
                };
                if u64::from(pasid) >= context.pasid_limit() || pasid >> self.walker.config.max_pasid_bits != 0 {
                    return Err(fault(too_large, fpd));
                }
                Ok((self.pasid_entry(request.requester, context, pasid)?, privileged))
            }
        }
    }

    /// Whether the context entry of its requester lets a translated request in (§4.2.4).
    pub(crate) fn let_translated_in(&mut self, request: &Request) -> Result<(), Fault> {
        let (serves_ats, fault_processing_disable, codes) = match self.context(request)? {
            Context::Legacy(context) => {
                let space = context.address_space;
                let codes = (FaultReason::LegacyContextBlocks, FaultReason::LegacyInterruptAddress);
                (space.serves_ats, space.fault_processing_disable, codes)
            }
            Context::Scalable(context) => {
                let codes = (FaultReason::DeviceTlbDisabled, FaultReason::InterruptAddress);
                (context.low.device_tlb_enable(), context.low.fault_processing_disable(), codes)
            }
        };
        let (blocked, interrupt) = codes;
        let reason = if !serves_ats {
            blocked
        } else if in_interrupt_range(request.iova.0) {
            // §3.14: interrupts come untranslated.
            interrupt
        } else {
            return Ok(());
        };
        Err(Fault { reason, fault_processing_disable })
    }

    /// The context entry of a requester, checked for what any request of its kind needs of it.
    pub(crate) fn context(&mut self, request: &Request) -> Result<Context, Fault> {
        let scalable = match self.root.translation_table_mode() {
            translation_table_mode::SCALABLE => true,
            translation_table_mode::LEGACY => false,
            _ => return Err(fault(FaultReason::RootTableMode, false)),
        };
        if !scalable && request.kind == RequestKind::PageRequest {
            return Err(fault(FaultReason::PageRequestInLegacyMode, false));
        }
        if !scalable && request.pasid.is_some() {
            return Err(fault(FaultReason::PasidInLegacyMode, false));
        }
        let context = self.cached_context(request.requester, scalable)?;
        if let Context::Scalable(ScalableContext { low, .. }) = context {
            let fpd = low.fault_processing_disable();
            if request.pasid.is_some() && !low.pasid_enable() {
                return Err(fault(FaultReason::PasidDisabled, fpd));
            }
            if request.kind == RequestKind::PageRequest && !low.page_request_enable() {
                return Err(fault(FaultReason::PageRequestDisabled, fpd));
            }
        }
        Ok(context)
    }

    fn cached_context(&mut self, requester: Bdf, scalable: bool) -> Result<Context, Fault> {
        if !self.walker.caches() {
            return self.load_context(requester, scalable);
        }
        if let Some(context) = self.entries.context(requester.0) {
            return Ok(*context);
        }
        let context = self.load_context(requester, scalable)?;
        let born = self.walker.clock.tick();
        self.entries.contexts.insert(requester.0, table_hash(requester.0.into()), context, born, |_, _| true);
        if let Some(observer) = &mut self.walker.observer {
            observer.filled(CacheSlot::Context { requester }, CachedEntry::Context(context), false);
        }
        Ok(context)
    }

    /// The context entry of a requester as it is in memory.
    pub(crate) fn live_context(&self, requester: Bdf) -> Option<Context> {
        let scalable = match self.root.translation_table_mode() {
            translation_table_mode::SCALABLE => true,
            translation_table_mode::LEGACY => false,
            _ => return None,
        };
        self.load_context(requester, scalable).ok()
    }

    /// What the tables in memory say about the requests of a PASID, or of a requester without one.
    pub(crate) fn live_address_space(&self, requester: Bdf, pasid: Option<Pasid>) -> Option<AddressSpace> {
        let context = match (self.live_context(requester)?, pasid) {
            (Context::Legacy(context), None) => return Some(context.address_space),
            (Context::Legacy(_), Some(_)) => return None,
            (Context::Scalable(context), _) => context,
        };
        let pasid = pasid.map_or(context.high.rid_pasid(), Pasid::get);
        let fits = u64::from(pasid) < context.pasid_limit() && pasid >> self.walker.config.max_pasid_bits == 0;
        fits.then(|| self.load_pasid_entry(context, pasid).ok()).flatten()
    }

    fn load_context(&self, requester: Bdf, scalable: bool) -> Result<Context, Fault> {
        if scalable { self.load_scalable_context(requester) } else { self.load_legacy_context(requester) }
    }

    fn load(&self, at: u64, reason: FaultReason, fpd: bool) -> Result<u64, Fault> {
        self.walker.memory.load_u64(GuestAddress(at)).map_err(|_| fault(reason, fpd))
    }

    /// §3.4.3, §9.2, §9.4.
    fn load_scalable_context(&self, requester: Bdf) -> Result<Context, Fault> {
        // The second quadword of a root entry serves devices 16 to 31.
        let upper = u64::from(requester.devfn() >> 7);
        let root_at = (self.root.frame() << 12) + u64::from(requester.bus()) * ROOT_ENTRY_SIZE + upper * 8;
        let root = RootEntry::from(self.load(root_at, FaultReason::RootAccess, false)?);
        if !root.present() {
            return Err(fault(FaultReason::RootNotPresent, false));
        }
        if root.reserved() != 0 || self.walker.limits.frame_too_wide(root.frame()) {
            return Err(fault(FaultReason::RootReserved, false));
        }
        let at = (root.frame() << 12) + u64::from(requester.devfn() & 0x7f) * CONTEXT_ENTRY_SIZE;
        let low = ContextLow::from(self.load(at, FaultReason::ContextAccess, false)?);
        let fpd = low.fault_processing_disable();
        if !low.present() {
            return Err(fault(FaultReason::ContextNotPresent, fpd));
        }
        let high = ContextHigh::from(self.load(at + 8, FaultReason::ContextAccess, fpd)?);
        let reserved = self.load(at + 16, FaultReason::ContextAccess, fpd)?
            | self.load(at + 24, FaultReason::ContextAccess, fpd)?;
        if low.reserved() != 0
            || high.reserved() != 0
            || reserved != 0
            || self.walker.limits.frame_too_wide(low.frame())
        {
            return Err(fault(FaultReason::ContextReserved, fpd));
        }
        Ok(Context::Scalable(ScalableContext { low, high }))
    }

    /// §3.4.2, §9.1, §9.3.
    fn load_legacy_context(&self, requester: Bdf) -> Result<Context, Fault> {
        let root_at = (self.root.frame() << 12) + u64::from(requester.bus()) * ROOT_ENTRY_SIZE;
        let root = RootEntry::from(self.load(root_at, FaultReason::LegacyRootAccess, false)?);
        if !root.present() {
            return Err(fault(FaultReason::LegacyRootNotPresent, false));
        }
        let root_high = self.load(root_at + 8, FaultReason::LegacyRootAccess, false)?;
        if root.reserved() != 0 || root_high != 0 || self.walker.limits.frame_too_wide(root.frame()) {
            return Err(fault(FaultReason::LegacyRootReserved, false));
        }
        let at = (root.frame() << 12) + u64::from(requester.devfn()) * LEGACY_CONTEXT_ENTRY_SIZE;
        let low = LegacyContextLow::from(self.load(at, FaultReason::LegacyContextAccess, false)?);
        let fpd = low.fault_processing_disable();
        if !low.present() {
            return Err(fault(FaultReason::LegacyContextNotPresent, fpd));
        }
        let high = LegacyContextHigh::from(self.load(at + 8, FaultReason::LegacyContextAccess, fpd)?);
        if low.reserved() != 0
            || high.reserved0()
            || high.reserved1() != 0
            || self.walker.limits.frame_too_wide(low.frame())
        {
            return Err(fault(FaultReason::LegacyContextReserved, fpd));
        }
        let invalid = fault(FaultReason::LegacyContextInvalid, fpd);
        let stages = match low.translation_type() {
            legacy_translation_type::UNTRANSLATED | legacy_translation_type::DEVICE_TLB => {
                Stages::Second(SecondStage {
                    root: low.frame() << 12,
                    levels: self.second_stage_levels(high.address_width()).ok_or(invalid)?,
                    accessed_dirty: false,
                    page_walk_snoop: true,
                })
            }
            legacy_translation_type::PASS_THROUGH => Stages::PassThrough,
            _ => return Err(invalid),
        };
        Ok(Context::Legacy(LegacyContext {
            address_space: AddressSpace {
                space: Space::of_domain(high.domain_id()),
                stages,
                fault_processing_disable: fpd,
                legacy: true,
                serves_ats: low.translation_type() == legacy_translation_type::DEVICE_TLB,
                serves_pasids: false,
            },
        }))
    }

    /// AW is the number of the bit of CAP.SAGAW that must be set, and two less than the levels (§9.3, §9.6).
    fn second_stage_levels(&self, address_width: u8) -> Option<u8> {
        let supported = self.walker.config.capability().second_stage_widths() >> address_width & 1 != 0;
        supported.then_some(address_width + 2)
    }

    fn pasid_entry(&mut self, requester: Bdf, context: ScalableContext, pasid: u32) -> Result<AddressSpace, Fault> {
        if !self.walker.caches() {
            return self.load_pasid_entry(context, pasid);
        }
        if let Some(entry) = self.entries.pasid(requester.0, pasid) {
            return Ok(*entry);
        }
        self.walker.counters.pasid_cache_misses += 1;
        let entry = self.load_pasid_entry(context, pasid)?;
        let born = self.walker.clock.tick();
        let hash = table_hash(pasid_tag(requester.0, pasid));
        self.entries.pasids.insert((requester.0, pasid), hash, entry, born, |_, _| true);
        if let Some(observer) = &mut self.walker.observer {
            observer.filled(CacheSlot::Pasid { requester, pasid }, CachedEntry::Pasid(entry), false);
        }
        Ok(entry)
    }

    /// §3.4.4, §9.5, §9.6.
    fn load_pasid_entry(&self, context: ScalableContext, pasid: u32) -> Result<AddressSpace, Fault> {
        let fpd = context.low.fault_processing_disable();
        let directory_at =
            (context.low.frame() << 12) + u64::from(pasid >> PASID_TABLE_BITS) * PASID_DIRECTORY_ENTRY_SIZE;
        let directory = PasidDirectoryEntry::from(self.load(directory_at, FaultReason::PasidDirectoryAccess, fpd)?);
        let fpd = fpd || directory.fault_processing_disable();
        if !directory.present() {
            return Err(fault(FaultReason::PasidDirectoryNotPresent, fpd));
        }
        if directory.reserved() != 0 || self.walker.limits.frame_too_wide(directory.frame()) {
            return Err(fault(FaultReason::PasidDirectoryReserved, fpd));
        }
        let index = u64::from(pasid & ((1 << PASID_TABLE_BITS) - 1));
        let at = (directory.frame() << 12) + index * PASID_TABLE_ENTRY_SIZE;
        // The quadword with P comes first. Software sets P last, so the others are whole if P is set here; it clears P first and
        // the others only after a PASID-cache invalidation, which cannot complete while this function runs (`&mut Unit`).
        let qw0 = PasidTable0::from(self.load(at, FaultReason::PasidTableAccess, fpd)?);
        let fpd = fpd || qw0.fault_processing_disable();
        if !qw0.present() {
            return Err(fault(FaultReason::PasidTableNotPresent, fpd));
        }
        let qw1 = PasidTable1::from(self.load(at + 8, FaultReason::PasidTableAccess, fpd)?);
        let qw2 = PasidTable2::from(self.load(at + 16, FaultReason::PasidTableAccess, fpd)?);
        let stages = self.stages(qw0, qw1, qw2).map_err(|reason| fault(reason, fpd))?;
        let tagged = matches!(stages, Stages::First(_) | Stages::Nested(..));
        Ok(AddressSpace {
            space: if tagged { Space::new(qw1.domain_id(), pasid) } else { Space::of_domain(qw1.domain_id()) },
            stages,
            fault_processing_disable: fpd,
            legacy: false,
            serves_ats: context.low.device_tlb_enable(),
            serves_pasids: context.low.pasid_enable(),
        })
    }

    /// The translation that a PASID table entry asks for, if it may (SPT.3, SPT.4).
    fn stages(&self, qw0: PasidTable0, qw1: PasidTable1, qw2: PasidTable2) -> Result<Stages, FaultReason> {
        let unsupported = (qw2.supervisor_request_enable() && !self.walker.config.supervisor_requests)
            || (qw2.execute_request_enable() && !self.walker.config.execute_requests);
        if qw0.reserved0() || qw0.reserved1() != 0 || qw2.reserved() != 0 || unsupported {
            return Err(FaultReason::PasidTableReserved);
        }
        match qw0.translation_type() {
            translation_type::FIRST_STAGE => Ok(Stages::First(self.first_stage(qw1, qw2)?)),
            translation_type::SECOND_STAGE => Ok(Stages::Second(self.second_stage(qw0, qw1)?)),
            translation_type::NESTED if self.walker.config.nested => {
                Ok(Stages::Nested(self.first_stage(qw1, qw2)?, self.second_stage(qw0, qw1)?))
            }
            translation_type::PASS_THROUGH => Ok(Stages::PassThrough),
            _ => Err(FaultReason::PasidTableInvalid),
        }
    }

    fn first_stage(&self, qw1: PasidTable1, qw2: PasidTable2) -> Result<FirstStage, FaultReason> {
        if self.walker.limits.frame_too_wide(qw2.first_stage_frame()) {
            return Err(FaultReason::PasidTableReserved);
        }
        let levels = match qw2.first_stage_paging_mode() {
            0 => 4,
            1 if self.walker.config.levels5 => 5,
            _ => return Err(FaultReason::PasidTableInvalid),
        };
        Ok(FirstStage {
            root: qw2.first_stage_frame() << 12,
            levels,
            supervisor_requests: qw2.supervisor_request_enable(),
            execute_requests: qw2.execute_request_enable(),
            write_protect: qw2.write_protect_enable(),
            extended_accessed: qw2.extended_accessed_enable(),
            page_walk_snoop: qw1.page_walk_snoop(),
        })
    }

    fn second_stage(&self, qw0: PasidTable0, qw1: PasidTable1) -> Result<SecondStage, FaultReason> {
        if self.walker.limits.frame_too_wide(qw0.second_stage_frame()) {
            return Err(FaultReason::PasidTableReserved);
        }
        Ok(SecondStage {
            root: qw0.second_stage_frame() << 12,
            levels: self.second_stage_levels(qw0.address_width()).ok_or(FaultReason::PasidTableInvalid)?,
            accessed_dirty: qw0.second_stage_accessed_dirty(),
            page_walk_snoop: qw1.page_walk_snoop(),
        })
    }
}
