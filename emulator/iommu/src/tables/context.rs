//! Root and context entries (§9.1 to §9.4).
use svadev_fabric::Bdf;
use svadev_memory::GuestMemory;
use svadev_mutation::mutant;
use svadev_spec::vtd::FaultReason;
use svadev_spec::vtd::tables::{
    CONTEXT_ENTRY_SIZE, ContextHigh, ContextLow, LEGACY_CONTEXT_ENTRY_SIZE, LegacyContextHigh, LegacyContextLow,
    PASID_TABLE_BITS, ROOT_ENTRY_SIZE, RootEntry, legacy_translation_type,
};

use super::entry::{TableReader, fault};
use crate::address_space::{AddressSpace, SecondStage, Stages};
use crate::cache::CacheTag;
use crate::request::Fault;

/// A context entry.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Context {
    Legacy(LegacyContext),
    Scalable(ScalableContext),
}

impl Context {
    /// Fills empty places of the context cache.
    pub(crate) const BLANK: Self = Self::Legacy(LegacyContext { address_space: AddressSpace::BLANK });

    /// Whether this entry lets in everything that `old` let in, and leads to the same tables.
    pub(crate) fn allows_all_of(&self, old: &Self) -> bool {
        match (self, old) {
            (Self::Legacy(new), Self::Legacy(old)) => {
                let (new, old) = (new.address_space, old.address_space);
                new.tag == old.tag && new.stages == old.stages && (new.serves_ats || !old.serves_ats)
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
    pub(crate) address_space: AddressSpace,
}

/// A scalable-mode context entry (§9.4).
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct ScalableContext {
    pub(crate) low: ContextLow,
    pub(crate) high: ContextHigh,
}

impl ScalableContext {
    /// How many PASIDs the directory has room for (§9.4, PDTS).
    pub(crate) fn pasid_limit(&self) -> u64 {
        let directory_bits = if mutant!(PasidDirectoryHalved) { 6 } else { 7 };
        1 << (u32::from(self.low.pasid_directory_size()) + directory_bits + PASID_TABLE_BITS)
    }
}

impl<M: GuestMemory> TableReader<'_, M> {
    /// The context entry of a requester. Call it in legacy or scalable mode only.
    pub(crate) fn load_context(&self, requester: Bdf, scalable: bool) -> Result<Context, Fault> {
        if scalable { self.load_scalable_context(requester) } else { self.load_legacy_context(requester) }
    }

    /// Reads the root and context entries of scalable mode (§3.4.3, §9.2, §9.4).
    fn load_scalable_context(&self, requester: Bdf) -> Result<Context, Fault> {
        // The second quadword of a root entry serves devices 16 to 31.
        let upper = u64::from(requester.devfn() >> 7);
        let root_at = (self.root.frame() << 12) + u64::from(requester.bus()) * ROOT_ENTRY_SIZE + upper * 8;
        let root = RootEntry::from(self.load(root_at, FaultReason::RootAccess, false)?);
        if !root.present() {
            return Err(fault(FaultReason::RootNotPresent, false));
        }
        if root.reserved() != 0 || self.limits.frame_too_wide(root.frame()) {
            return Err(fault(FaultReason::RootReserved, false));
        }
        let at = (root.frame() << 12) + u64::from(requester.devfn() & 0x7f) * CONTEXT_ENTRY_SIZE;
        let [low, high, third, fourth] = self.load_entry(at, FaultReason::ContextAccess, false)?;
        let (low, high) = (ContextLow::from(low), ContextHigh::from(high));
        let fpd = low.fault_processing_disable();
        if !low.present() {
            return Err(fault(FaultReason::ContextNotPresent, fpd));
        }
        // RID_PRIV is reserved without ECAP.RPRIVS, and PRE without ECAP.PRS.
        let unsupported = high.rid_privileged() && !self.config.supervisor_requests
            || low.page_request_enable() && !self.config.page_requests;
        if low.reserved() != 0
            || high.reserved() != 0
            || third | fourth != 0
            || unsupported
            || self.limits.frame_too_wide(low.frame())
        {
            return Err(fault(FaultReason::ContextReserved, fpd));
        }
        Ok(Context::Scalable(ScalableContext { low, high }))
    }

    /// Reads the root and context entries of legacy mode (§3.4.2, §9.1, §9.3).
    fn load_legacy_context(&self, requester: Bdf) -> Result<Context, Fault> {
        let root_at = (self.root.frame() << 12) + u64::from(requester.bus()) * ROOT_ENTRY_SIZE;
        let root = RootEntry::from(self.load(root_at, FaultReason::LegacyRootAccess, false)?);
        if !root.present() {
            return Err(fault(FaultReason::LegacyRootNotPresent, false));
        }
        let root_high = self.load(root_at + 8, FaultReason::LegacyRootAccess, false)?;
        if root.reserved() != 0 || root_high != 0 || self.limits.frame_too_wide(root.frame()) {
            return Err(fault(FaultReason::LegacyRootReserved, false));
        }
        let at = (root.frame() << 12) + u64::from(requester.devfn()) * LEGACY_CONTEXT_ENTRY_SIZE;
        let [low, high] = self.load_entry(at, FaultReason::LegacyContextAccess, false)?;
        let (low, high) = (LegacyContextLow::from(low), LegacyContextHigh::from(high));
        let fpd = low.fault_processing_disable();
        if !low.present() {
            return Err(fault(FaultReason::LegacyContextNotPresent, fpd));
        }
        if low.reserved() != 0 || high.reserved0() || high.reserved1() != 0 || self.limits.frame_too_wide(low.frame()) {
            return Err(fault(FaultReason::LegacyContextReserved, fpd));
        }
        let invalid = fault(FaultReason::LegacyContextInvalid, fpd);
        let stages = match low.translation_type() {
            legacy_translation_type::UNTRANSLATED | legacy_translation_type::DEVICE_TLB => {
                Stages::Second(SecondStage {
                    root: low.frame() << 12,
                    top: self
                        .second_stage_top(if mutant!(LegacyWidthIgnored) { 2 } else { high.address_width() })
                        .ok_or(invalid)?,
                    accessed_dirty: false,
                    page_walk_snoop: true,
                })
            }
            legacy_translation_type::PASS_THROUGH => Stages::PassThrough,
            _ => return Err(invalid),
        };
        Ok(Context::Legacy(LegacyContext {
            address_space: AddressSpace {
                tag: CacheTag::of_domain(high.domain_id()),
                stages,
                fault_processing_disable: fpd,
                legacy: true,
                serves_ats: low.translation_type() == legacy_translation_type::DEVICE_TLB,
                serves_pasids: false,
            },
        }))
    }
}
