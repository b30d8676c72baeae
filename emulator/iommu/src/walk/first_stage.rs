//! First-stage translation (§3.6).
use svadev_mutation::mutant;
use svadev_spec::vtd::FaultReason;
use svadev_spec::vtd::tables::{FirstStageEntry, Level};

use crate::address_space::FirstStage;
use crate::cache::{Leaf, PageSize, PartialWalk, Rights};
use crate::config::Limits;

use super::{Lost, Start, Tables, Want, from_the_lowest, large_page_reserved};

impl FirstStage {
    /// Whether bits 63 to 47 (or 56) are all the same (SGN.1).
    fn is_canonical(&self, address: u64) -> bool {
        let unused = 64 - self.top.width();
        ((address << unused).cast_signed() >> unused).cast_unsigned() == address
    }

    /// Walks the tables for `address`.
    pub(crate) fn walk(
        &self,
        tables: &mut impl Tables,
        limits: Limits,
        address: u64,
        want: Want,
    ) -> Result<Leaf, FaultReason> {
        if want.privileged && !self.supervisor_requests && !mutant!(SupervisorRequestsUnchecked) {
            return Err(FaultReason::SupervisorDisabled);
        }
        if want.execute && !self.execute_requests {
            return Err(FaultReason::ExecuteDisabled);
        }
        if !self.is_canonical(address) && !mutant!(CanonicalUnchecked) {
            return Err(FaultReason::NotCanonical);
        }
        let top = (self.top, PartialWalk::top(self.root));
        let walk = |tables: &mut _, start| self.walk_once(tables, limits, address, want, start);
        from_the_lowest(tables, address, top, walk).unwrap_or(Err(FaultReason::FirstStageUpdateFailed))
    }

    #[inline]
    fn walk_once(
        &self,
        tables: &mut impl Tables,
        limits: Limits,
        address: u64,
        want: Want,
        (mut level, mut path): Start,
    ) -> Result<Result<Leaf, Lost>, FaultReason> {
        loop {
            let at = path.table() | level.entry_offset(address);
            let raw = tables.load(at, level == self.top)?;
            let entry = FirstStageEntry::from(raw);
            if !entry.present() {
                return Err(FaultReason::FirstStageNotPresent);
            }
            if has_reserved_bits(entry, level, limits) && !mutant!(FirstStageReservedUnchecked) {
                return Err(FaultReason::FirstStageReserved);
            }
            path = path.through(entry);
            if let Some(below) = level.below()
                && !(entry.page_size() && level <= Level::THREE)
            {
                if let Err(Lost) = self.mark(tables, at, raw, false)? {
                    return Ok(Err(Lost));
                }
                let forgetful = mutant!(PagingCachesForgetRights);
                tables.keep_structure(address, level, if forgetful { PartialWalk::top(path.table()) } else { path });
                level = below;
                continue;
            }
            // Rights are those of all levels together (§3.6.1). Without WPE a supervisor may write to read-only pages.
            let write = path.write() || (want.privileged && (!self.write_protect || mutant!(WriteProtectIgnored)));
            self.check_rights(want, path.read(), write, path.execute())?;
            if let Err(Lost) = self.mark(tables, at, raw, want.dirty && write)? {
                return Ok(Err(Lost));
            }
            let rights = Rights { read: true, write, execute: path.execute() && self.execute_requests };
            return Ok(Ok(Leaf::new(path.table(), PageSize::at_level(level), rights)));
        }
    }

    fn check_rights(&self, want: Want, user: bool, write: bool, execute: bool) -> Result<(), FaultReason> {
        if !user && !want.privileged && !mutant!(UserSupervisorIgnored) {
            return Err(FaultReason::UserToSupervisor);
        }
        if want.write && !write {
            return Err(FaultReason::NoWrite);
        }
        if want.execute && want.execute_demanded && !execute {
            return Err(FaultReason::NoExecute);
        }
        Ok(())
    }

    /// Sets accessed, extended accessed and dirty as due (§3.6.2), if they are not yet.
    #[inline]
    fn mark(&self, tables: &mut impl Tables, at: u64, raw: u64, dirty: bool) -> Result<Result<(), Lost>, FaultReason> {
        let due = FirstStageEntry::new()
            .with_accessed(!mutant!(ForgetAccessed))
            .with_extended_accessed(self.extended_accessed)
            .with_dirty(dirty && !mutant!(ForgetDirty));
        let marked = raw | u64::from(due);
        if marked == raw {
            return Ok(Ok(()));
        }
        if !self.page_walk_snoop {
            return Err(FaultReason::FirstStageUpdateNotSnooped);
        }
        let exchanged = tables.exchange(at, raw, marked)?;
        Ok(if mutant!(LostRaceIsIgnored) { Ok(()) } else { exchanged })
    }
}

/// Reserved: address bits from the host address width to 51, PS where there are no large pages, and the address bits
/// inside a large page but for bit 12, PAT (§9.7).
#[inline]
fn has_reserved_bits(entry: FirstStageEntry, level: Level, limits: Limits) -> bool {
    limits.frame_too_wide(entry.frame()) || entry.page_size() && large_page_reserved(entry.frame() & !1, level, limits)
}
