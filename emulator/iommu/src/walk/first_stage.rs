//! First-stage translation (§3.6).
use svadev_mutation::mutant;
use svadev_spec::vtd::tables::{FirstStageEntry, Level};

use super::fault::{Stage, WalkEnd, WalkFault};
use super::{Start, Tables, Want, from_the_lowest, large_page_reserved};
use crate::address_space::FirstStage;
use crate::cache::{Leaf, PageSize, PartialWalk, Rights};
use crate::config::Limits;

impl FirstStage {
    /// Walks the tables for `address`.
    pub(crate) fn walk(
        &self,
        tables: &mut impl Tables,
        limits: Limits,
        address: u64,
        want: Want,
    ) -> Result<Leaf, WalkFault> {
        if want.privileged && !self.supervisor_requests && !mutant!(SupervisorRequestsUnchecked) {
            return Err(WalkFault::SupervisorRefused);
        }
        if want.execute && !self.execute_requests {
            return Err(WalkFault::ExecuteRefused);
        }
        if !self.is_canonical(address) && !mutant!(CanonicalUnchecked) {
            return Err(WalkFault::Address(Stage::First));
        }
        let top = (self.top, PartialWalk::top(self.root));
        let walk = |tables: &mut _, start| self.walk_once(tables, limits, address, want, start);
        from_the_lowest(tables, Stage::First, address, top, walk)
    }

    /// Whether bits 63 to 47 (or 56) are all the same (SGN.1).
    fn is_canonical(&self, address: u64) -> bool {
        let unused = 64 - self.top.width();
        ((address << unused).cast_signed() >> unused).cast_unsigned() == address
    }

    /// One attempt, from a known table down.
    #[inline]
    fn walk_once(
        &self,
        tables: &mut impl Tables,
        limits: Limits,
        address: u64,
        want: Want,
        (mut level, mut path): Start,
    ) -> Result<Leaf, WalkEnd> {
        loop {
            let entry_address = path.table() | level.entry_offset(address);
            let raw = tables.load(entry_address, level)?;
            let entry = FirstStageEntry::from(raw);
            if !entry.present() {
                return Err(WalkFault::at(WalkFault::NotPresent, Stage::First, level).into());
            }
            if has_reserved_bits(entry, level, limits) && !mutant!(FirstStageReservedUnchecked) {
                return Err(WalkFault::at(WalkFault::Reserved, Stage::First, level).into());
            }
            path = path.through(entry);
            if let Some(below) = level.below()
                && !(entry.page_size() && level <= Level::THREE)
            {
                // The entry points to a table.
                self.mark(tables, entry_address, level, raw, false)?;
                let forgetful = mutant!(PagingCachesForgetRights);
                tables.keep_structure(address, level, if forgetful { PartialWalk::top(path.table()) } else { path });
                level = below;
                continue;
            }
            // The entry maps a page. Rights are those of all levels together (§3.6.1). If WPE is clear, a supervisor
            // may write to read-only pages.
            let write = path.write() || (want.privileged && (!self.write_protect || mutant!(WriteProtectIgnored)));
            self.check_rights(want, path.read(), write, path.execute())?;
            self.mark(tables, entry_address, level, raw, want.dirty && write)?;
            let rights = Rights { read: true, write, execute: path.execute() && self.execute_requests };
            return Ok(Leaf::new(path.table(), PageSize::at_level(level), rights));
        }
    }

    fn check_rights(&self, want: Want, user: bool, write: bool, execute: bool) -> Result<(), WalkFault> {
        if !user && !want.privileged && !mutant!(UserSupervisorIgnored) {
            return Err(WalkFault::SupervisorPage);
        }
        if want.write && !write {
            return Err(WalkFault::NoWrite);
        }
        if want.execute && want.execute_demanded && !execute {
            return Err(WalkFault::NoExecute);
        }
        Ok(())
    }

    /// Sets accessed, extended accessed and dirty as the rules ask for (§3.6.2), if they are not set yet.
    #[inline]
    fn mark(&self, tables: &mut impl Tables, address: u64, level: Level, raw: u64, dirty: bool) -> Result<(), WalkEnd> {
        let due = FirstStageEntry::new()
            .with_accessed(!mutant!(ForgetAccessed))
            .with_extended_accessed(self.extended_accessed)
            .with_dirty(dirty && !mutant!(ForgetDirty));
        let marked = raw | u64::from(due);
        if marked == raw {
            return Ok(());
        }
        if !self.page_walk_snoop {
            return Err(WalkFault::at(WalkFault::NotSnooped, Stage::First, level).into());
        }
        match tables.exchange(address, level, raw, marked) {
            Err(WalkEnd::LostRace) if mutant!(LostRaceIsIgnored) => Ok(()),
            end => end,
        }
    }
}

/// Reserved: address bits from the host address width to 51, PS where there are no large pages, and the address bits
/// inside a large page but for bit 12, PAT (§9.7).
#[inline]
fn has_reserved_bits(entry: FirstStageEntry, level: Level, limits: Limits) -> bool {
    limits.frame_too_wide(entry.frame())
        || entry.page_size() && large_page_reserved(entry.frame() & !1, level, limits.largest_first)
}
