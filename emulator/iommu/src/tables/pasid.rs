//! PASID directory and table entries (§9.5, §9.6).
use svadev_memory::GuestMemory;
use svadev_mutation::mutant;
use svadev_spec::vtd::FaultReason;
use svadev_spec::vtd::tables::{
    Level, PASID_DIRECTORY_ENTRY_SIZE, PASID_TABLE_BITS, PASID_TABLE_ENTRY_SIZE, PasidDirectoryEntry, PasidTable0,
    PasidTable1, PasidTable2, translation_type,
};

use super::context::ScalableContext;
use super::entry::{TableReader, fault};
use crate::address_space::{AddressSpace, FirstStage, SecondStage, Stages};
use crate::cache::CacheTag;
use crate::request::Fault;

impl<M: GuestMemory> TableReader<'_, M> {
    /// The address space that the PASID entry of `pasid` describes, behind a context entry (§3.4.4, §9.5, §9.6).
    pub(crate) fn load_pasid_entry(&self, context: ScalableContext, pasid: u32) -> Result<AddressSpace, Fault> {
        let fpd = context.low.fault_processing_disable();
        let directory_at =
            (context.low.frame() << 12) + u64::from(pasid >> PASID_TABLE_BITS) * PASID_DIRECTORY_ENTRY_SIZE;
        let directory = PasidDirectoryEntry::from(self.load(directory_at, FaultReason::PasidDirectoryAccess, fpd)?);
        let fpd = fpd || directory.fault_processing_disable();
        if !directory.present() {
            return Err(fault(FaultReason::PasidDirectoryNotPresent, fpd));
        }
        if directory.reserved() != 0 || self.limits.frame_too_wide(directory.frame()) {
            return Err(fault(FaultReason::PasidDirectoryReserved, fpd));
        }
        let index = u64::from(pasid & ((1 << PASID_TABLE_BITS) - 1));
        let at = (directory.frame() << 12) + index * PASID_TABLE_ENTRY_SIZE;
        let [qw0, qw1, qw2] = self.load_entry(at, FaultReason::PasidTableAccess, fpd)?;
        let (qw0, qw1, qw2) = (PasidTable0::from(qw0), PasidTable1::from(qw1), PasidTable2::from(qw2));
        let fpd = fpd || qw0.fault_processing_disable();
        if !qw0.present() {
            return Err(fault(FaultReason::PasidTableNotPresent, fpd));
        }
        for word in 3..8 {
            if self.load(at + 8 * word, FaultReason::PasidTableAccess, fpd)? != 0 && !mutant!(PasidTableTailUnchecked) {
                return Err(fault(FaultReason::PasidTableReserved, fpd));
            }
        }
        let stages = self.stages(qw0, qw1, qw2).map_err(|reason| fault(reason, fpd))?;
        let tagged = matches!(stages, Stages::First(_) | Stages::Nested(..));
        Ok(AddressSpace {
            tag: if tagged { CacheTag::new(qw1.domain_id(), pasid) } else { CacheTag::of_domain(qw1.domain_id()) },
            stages,
            fault_processing_disable: fpd,
            legacy: false,
            serves_ats: context.low.device_tlb_enable(),
            serves_pasids: context.low.pasid_enable(),
        })
    }

    /// The stages that a PASID table entry asks for, if the unit has them (SPT.3, SPT.4).
    fn stages(&self, qw0: PasidTable0, qw1: PasidTable1, qw2: PasidTable2) -> Result<Stages, FaultReason> {
        let unsupported = (qw2.supervisor_request_enable() && !self.config.supervisor_requests)
            || (qw2.execute_request_enable() && !self.config.execute_requests);
        if qw0.reserved0() || qw0.reserved1() != 0 || qw1.reserved() != 0 || qw2.reserved() != 0 || unsupported {
            return Err(FaultReason::PasidTableReserved);
        }
        match qw0.translation_type() {
            translation_type::FIRST_STAGE => Ok(Stages::First(self.first_stage(qw1, qw2)?)),
            translation_type::SECOND_STAGE => Ok(Stages::Second(self.second_stage(qw0, qw1)?)),
            translation_type::NESTED if self.config.nested || mutant!(NestedUnconfigured) => {
                Ok(Stages::Nested(self.first_stage(qw1, qw2)?, self.second_stage(qw0, qw1)?))
            }
            translation_type::PASS_THROUGH => Ok(Stages::PassThrough),
            _ => Err(FaultReason::PasidTableInvalid),
        }
    }

    fn first_stage(&self, qw1: PasidTable1, qw2: PasidTable2) -> Result<FirstStage, FaultReason> {
        if !self.config.first_stage && !mutant!(FirstStageUnconfigured) {
            return Err(FaultReason::PasidTableInvalid);
        }
        if self.limits.frame_too_wide(qw2.first_stage_frame()) {
            return Err(FaultReason::PasidTableReserved);
        }
        let top = match qw2.first_stage_paging_mode() {
            0 => Level::FOUR,
            1 if self.config.levels5 => Level::FIVE,
            _ => return Err(FaultReason::PasidTableInvalid),
        };
        Ok(FirstStage {
            root: qw2.first_stage_frame() << 12,
            top,
            supervisor_requests: qw2.supervisor_request_enable(),
            execute_requests: qw2.execute_request_enable(),
            write_protect: qw2.write_protect_enable(),
            extended_accessed: qw2.extended_accessed_enable(),
            page_walk_snoop: qw1.page_walk_snoop(),
        })
    }

    fn second_stage(&self, qw0: PasidTable0, qw1: PasidTable1) -> Result<SecondStage, FaultReason> {
        if self.limits.frame_too_wide(qw0.second_stage_frame()) {
            return Err(FaultReason::PasidTableReserved);
        }
        Ok(SecondStage {
            root: qw0.second_stage_frame() << 12,
            top: self.second_stage_top(qw0.address_width()).ok_or(FaultReason::PasidTableInvalid)?,
            accessed_dirty: qw0.second_stage_accessed_dirty(),
            page_walk_snoop: qw1.page_walk_snoop(),
        })
    }
}
