//! Second-stage translation (§3.7).
use svadev_mutation::mutant;
use svadev_spec::vtd::FaultReason;
use svadev_spec::vtd::tables::{Level, SecondStageEntry};

use crate::address_space::SecondStage;
use crate::cache::{Leaf, PageSize, PartialWalk, Rights};
use crate::config::Limits;

use super::{Lost, Start, Tables, Want, from_the_lowest, large_page_reserved};

impl SecondStage {
    /// Walks the tables for `address`. `want.execute` and `want.privileged` have no meaning here.
    pub(crate) fn walk(
        &self,
        tables: &mut impl Tables,
        limits: Limits,
        address: u64,
        want: Want,
    ) -> Result<Leaf, FaultReason> {
        let width = self.top.width().min(limits.guest_address_width);
        if address >> width != 0 {
            return Err(FaultReason::AddressTooWide);
        }
        let top = (self.top, PartialWalk::top(self.root));
        let walk = |tables: &mut _, start| self.walk_once(tables, limits, address, want, start);
        from_the_lowest(tables, address, top, walk).unwrap_or(Err(FaultReason::SecondStageUpdateFailed))
    }

    #[inline]
    fn walk_once(
        &self,
        tables: &mut impl Tables,
        limits: Limits,
        address: u64,
        want: Want,
        (mut level, start): Start,
    ) -> Result<Result<Leaf, Lost>, FaultReason> {
        let (mut table, mut read, mut write) = (start.table(), start.read(), start.write());
        loop {
            let at = table + level.entry_offset(address);
            let raw = tables.load(at, level == self.top)?;
            let entry = SecondStageEntry::from(raw);
            if !entry.read() && !entry.write() {
                return Err(FaultReason::SecondStageNotPresent);
            }
            if has_reserved_bits(entry, level, limits) && !mutant!(SecondStageReservedUnchecked) {
                return Err(FaultReason::SecondStageReserved);
            }
            read &= entry.read();
            write &= entry.write();
            if let Some(below) = level.below()
                && !(entry.page_size() && level <= Level::THREE)
            {
                if let Err(Lost) = self.mark(tables, at, raw, false)? {
                    return Ok(Err(Lost));
                }
                table = entry.frame() << 12;
                tables.keep_structure(address, level, PartialWalk::second_stage(table, write, read));
                level = below;
                continue;
            }
            if want.write && !write {
                return Err(FaultReason::NoWrite);
            }
            if want.read && !read {
                return Err(FaultReason::NoRead);
            }
            if !read && !write {
                return Err(FaultReason::SecondStageNotPresent);
            }
            if let Err(Lost) = self.mark(tables, at, raw, want.dirty && write)? {
                return Ok(Err(Lost));
            }
            let rights = Rights { read, write, execute: read };
            return Ok(Ok(Leaf::new(entry.frame() << 12, PageSize::at_level(level), rights)));
        }
    }

    /// Sets accessed and dirty as due, if they are not yet (§3.7.2).
    fn mark(&self, tables: &mut impl Tables, at: u64, raw: u64, dirty: bool) -> Result<Result<(), Lost>, FaultReason> {
        if !self.accessed_dirty {
            return Ok(Ok(()));
        }
        let mut entry = SecondStageEntry::from(raw).with_accessed(true);
        if dirty && !mutant!(ForgetSecondStageDirty) {
            entry.set_dirty(true);
        }
        let marked = u64::from(entry);
        if marked == raw {
            return Ok(Ok(()));
        }
        if !self.page_walk_snoop {
            return Err(FaultReason::SecondStageUpdateNotSnooped);
        }
        tables.exchange(at, raw, marked)
    }
}

/// Reserved: address bits from the host address width to 51, PS where there are no large pages, and the address bits
/// inside a large page (§9.8).
#[inline]
fn has_reserved_bits(entry: SecondStageEntry, level: Level, limits: Limits) -> bool {
    limits.frame_too_wide(entry.frame()) || entry.page_size() && large_page_reserved(entry.frame(), level, limits)
}

/// The legacy-mode condition for one of scalable mode (§7.1.3): the walk is the same, the codes are not.
pub(crate) fn in_legacy_mode(reason: FaultReason, want: Want) -> FaultReason {
    match reason {
        FaultReason::SecondStageAccess | FaultReason::SecondStagePointer => FaultReason::LegacySecondStageAccess,
        FaultReason::SecondStageReserved => FaultReason::LegacySecondStageReserved,
        FaultReason::AddressTooWide | FaultReason::AddressBeyondHost => FaultReason::LegacyAddressTooWide,
        FaultReason::SecondStageNotPresent if want.write => FaultReason::LegacyNoWrite,
        FaultReason::SecondStageNotPresent | FaultReason::NoRead => FaultReason::LegacyNoRead,
        FaultReason::NoWrite => FaultReason::LegacyNoWrite,
        FaultReason::InterruptAddress => FaultReason::LegacyInterruptAddress,
        other => other,
    }
}
