//! Admission: which requests the context and PASID entries let in, and which address space they use (§3.4).
use svadev_fabric::{Bdf, Pasid};
use svadev_memory::GuestMemory;
use svadev_mutation::mutant;
use svadev_spec::vtd::FaultReason;
use svadev_spec::vtd::in_interrupt_range;
use svadev_spec::vtd::registers::{RootTableAddress, translation_table_mode};

use crate::address_space::AddressSpace;
use crate::cache::Leaf;
use crate::entry_cache::EntryCaches;
use crate::fault_codes::fault_in;
use crate::observe::{CacheSlot, CachedEntry};
use crate::request::{Fault, Request, RequestKind};
use crate::tables::{Context, ScalableContext, TableReader, fault};
use crate::translate::{Walker, want};

/// The parts of a unit that find the address space of a request (§3.4), and those that look up addresses in it.
pub(crate) struct Admission<'a, M: GuestMemory + 'a> {
    pub(crate) root: RootTableAddress,
    pub(crate) entries: &'a mut EntryCaches,
    pub(crate) walker: Walker<'a, M>,
}

impl<M: GuestMemory> Admission<'_, M> {
    /// Reads the tables as they are in memory.
    fn tables<'a>(&'a self) -> TableReader<'a, impl GuestMemory + 'a> {
        let walker = &self.walker;
        TableReader { memory: &walker.memory, root: self.root, limits: walker.limits, config: walker.config }
    }

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
                        let privileged = high.rid_privileged() && !mutant!(RidPrivIgnored);
                        (high.rid_pasid(), privileged, FaultReason::RidPasidInvalid)
                    }
                };
                if u64::from(pasid) >= context.pasid_limit() || pasid >> self.walker.config.max_pasid_bits != 0 {
                    return Err(fault(too_large, fpd));
                }
                Ok((self.pasid_entry(request.requester, context, pasid)?, privileged))
            }
        }
    }

    /// Whether FPD is set in one of the entries on the way to the address space of `request`, as far as they lead.
    pub(crate) fn fault_processing_disable(&mut self, request: &Request) -> bool {
        match self.address_space(request) {
            Ok((space, _)) => space.fault_processing_disable,
            Err(fault) => fault.fault_processing_disable,
        }
    }

    /// Whether the context entry of its requester lets a translated request in (§4.2.4).
    pub(crate) fn admit_translated(&mut self, request: &Request) -> Result<(), Fault> {
        let too_wide = self.walker.limits.frame_too_wide(request.iova.0 >> 12);
        let (serves_ats, fault_processing_disable, codes) = match self.context(request)? {
            Context::Legacy(context) => {
                let space = context.address_space;
                let codes = (
                    FaultReason::LegacyContextBlocks,
                    FaultReason::LegacyInterruptAddress,
                    FaultReason::LegacyAddressTooWide,
                );
                (space.serves_ats, space.fault_processing_disable, codes)
            }
            Context::Scalable(context) => {
                let codes =
                    (FaultReason::DeviceTlbDisabled, FaultReason::InterruptAddress, FaultReason::AddressBeyondHost);
                (context.low.device_tlb_enable(), context.low.fault_processing_disable(), codes)
            }
        };
        let (blocked, interrupt, beyond_host) = codes;
        let reason = if !serves_ats {
            blocked
        } else if in_interrupt_range(request.iova.0) {
            // §3.14: interrupts come untranslated.
            interrupt
        } else if too_wide {
            beyond_host
        } else {
            return Ok(());
        };
        Err(Fault { reason, fault_processing_disable })
    }

    /// The context entry of a requester, with the checks that every request of its kind needs.
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
        if !self.walker.caching() {
            return self.tables().load_context(requester, scalable);
        }
        if let Some(context) = self.entries.context(requester.0) {
            return Ok(*context);
        }
        let context = self.tables().load_context(requester, scalable)?;
        self.entries.insert_context(requester.0, context, self.walker.clock);
        if let Some(observer) = &mut self.walker.observer {
            observer.filled(CacheSlot::Context { requester }, CachedEntry::Context(context), false);
        }
        Ok(context)
    }

    fn pasid_entry(&mut self, requester: Bdf, context: ScalableContext, pasid: u32) -> Result<AddressSpace, Fault> {
        if !self.walker.caching() {
            return self.tables().load_pasid_entry(context, pasid);
        }
        if let Some(entry) = self.entries.pasid(requester.0, pasid) {
            return Ok(*entry);
        }
        self.walker.counters.pasid_cache_misses += 1;
        let entry = self.tables().load_pasid_entry(context, pasid)?;
        self.entries.insert_pasid(requester.0, pasid, entry, self.walker.clock);
        if let Some(observer) = &mut self.walker.observer {
            observer.filled(CacheSlot::Pasid { requester, pasid }, CachedEntry::Pasid(entry), false);
        }
        Ok(entry)
    }

    /// The context entry of a requester as it is in memory.
    pub(crate) fn live_context(&self, requester: Bdf) -> Option<Context> {
        let scalable = match self.root.translation_table_mode() {
            translation_table_mode::SCALABLE => true,
            translation_table_mode::LEGACY => false,
            _ => return None,
        };
        self.tables().load_context(requester, scalable).ok()
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
        fits.then(|| self.tables().load_pasid_entry(context, pasid).ok()).flatten()
    }
}

impl<M: GuestMemory> Admission<'_, M> {
    /// The page that a request leads to, with the rights that it gets.
    #[inline(never)]
    pub(crate) fn find_page(mut self, request: &Request) -> Result<Leaf, Fault> {
        let (space, privileged) = self.address_space(request)?;
        let want = want(request, privileged);
        self.walker.in_space(&space, request, want).map_err(|fault| fault_in(&space, fault, want))
    }
}
