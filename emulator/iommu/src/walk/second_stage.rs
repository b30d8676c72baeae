//! Second-stage translation (§3.7).
use svadev_mutation::mutant;
use svadev_spec::vtd::tables::{Level, SecondStageEntry};

use super::fault::{Stage, WalkEnd, WalkFault};
use super::{Start, Tables, Want, from_the_lowest, large_page_reserved};
use crate::address_space::SecondStage;
use crate::cache::{Leaf, PageSize, PartialWalk, Rights};
use crate::config::Limits;

impl SecondStage {
    /// Walks the tables for `address`. `want.execute` and `want.privileged` have no meaning here.
    pub(crate) fn walk(
        &self,
        tables: &mut impl Tables,
        limits: Limits,
        address: u64,
        want: Want,
    ) -> Result<Leaf, WalkFault> {
        let width = self.top.width().min(limits.guest_address_width);
        if address >> width != 0 {
            return Err(WalkFault::Address(Stage::Second));
        }
        let top = (self.top, PartialWalk::top(self.root));
        let walk = |tables: &mut _, start| self.walk_once(tables, limits, address, want, start);
        from_the_lowest(tables, Stage::Second, address, top, walk)
    }

    /// One attempt, from a known table down.
    #[inline]
    fn walk_once(
        &self,
        tables: &mut impl Tables,
        limits: Limits,
        address: u64,
        want: Want,
        (mut level, start): Start,
    ) -> Result<Leaf, WalkEnd> {
        let (mut table, mut read, mut write) = (start.table(), start.read(), start.write());
        loop {
            let entry_address = table + level.entry_offset(address);
            let raw = tables.load(entry_address, level)?;
            let entry = SecondStageEntry::from(raw);
            if !entry.read() && !entry.write() {
                return Err(WalkFault::at(WalkFault::NotPresent, Stage::Second, level).into());
            }
            if has_reserved_bits(entry, level, limits) && !mutant!(SecondStageReservedUnchecked) {
                return Err(WalkFault::at(WalkFault::Reserved, Stage::Second, level).into());
            }
            read &= entry.read();
            write &= entry.write();
            if let Some(below) = level.below()
                && !(entry.page_size() && level <= Level::THREE)
            {
                // The entry points to a table.
                self.mark(tables, entry_address, level, raw, false)?;
                table = entry.frame() << 12;
                tables.keep_structure(address, level, PartialWalk::second_stage(table, write, read));
                level = below;
                continue;
            }
            // The entry maps a page. Rights are those of all levels together.
            if want.write && !write {
                return Err(WalkFault::NoWrite.into());
            }
            if want.read && !read {
                return Err(WalkFault::NoRead.into());
            }
            if !read && !write {
                return Err(WalkFault::at(WalkFault::NotPresent, Stage::Second, level).into());
            }
            self.mark(tables, entry_address, level, raw, want.dirty && write)?;
            let rights = Rights { read, write, execute: read };
            return Ok(Leaf::new(entry.frame() << 12, PageSize::at_level(level), rights));
        }
    }

    /// Sets accessed and dirty as the rules ask for (§3.7.2), if they are not set yet.
    fn mark(&self, tables: &mut impl Tables, address: u64, level: Level, raw: u64, dirty: bool) -> Result<(), WalkEnd> {
        if !self.accessed_dirty {
            return Ok(());
        }
        let mut entry = SecondStageEntry::from(raw).with_accessed(true);
        if dirty && !mutant!(ForgetSecondStageDirty) {
            entry.set_dirty(true);
        }
        let marked = u64::from(entry);
        if marked == raw {
            return Ok(());
        }
        if !self.page_walk_snoop {
            return Err(WalkFault::at(WalkFault::NotSnooped, Stage::Second, level).into());
        }
        tables.exchange(address, level, raw, marked)
    }
}

/// Reserved: address bits from the host address width to 51, PS where there are no large pages, and the address bits
/// inside a large page (§9.8).
#[inline]
fn has_reserved_bits(entry: SecondStageEntry, level: Level, limits: Limits) -> bool {
    limits.frame_too_wide(entry.frame())
        || entry.page_size() && large_page_reserved(entry.frame(), level, limits.largest_second)
}
