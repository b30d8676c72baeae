//! Page tables in guest memory: where their entries are, and how they are read and marked.
use svadev_memory::{GuestAddress, GuestMemory};
use svadev_mutation::mutant;
use svadev_spec::vtd::tables::Level;

use super::fault::{Stage, WalkEnd, WalkFault};
use super::structures::StructureAccess;
use super::{Start, Tables, Want};
use crate::address_space::SecondStage;
use crate::cache::{PartialWalk, StructureTag};
use crate::config::Limits;

/// Page tables of one stage in guest memory. `A` says how the address of an entry leads there.
pub(crate) struct InMemory<'a, M, A> {
    pub(crate) memory: &'a M,
    pub(crate) stage: Stage,
    pub(crate) addresses: A,
    pub(crate) structures: StructureAccess<'a>,
}

/// From the address of an entry to the guest-physical address where it is.
pub(crate) trait EntryAddresses<M> {
    /// The guest-physical address of the entry at `address`, which is in a table at `level`. The walk reads the entry,
    /// and if `write`, sets bits in it.
    fn locate(
        &self,
        memory: &M,
        structures: &mut StructureAccess<'_>,
        address: u64,
        level: Level,
        write: bool,
    ) -> Result<u64, WalkFault>;
}

/// The addresses of entries are guest-physical already.
pub(crate) struct Direct;

impl<M> EntryAddresses<M> for Direct {
    #[inline]
    fn locate(&self, _: &M, _: &mut StructureAccess<'_>, address: u64, _: Level, _: bool) -> Result<u64, WalkFault> {
        Ok(address)
    }
}

/// The addresses of first-stage entries go through the second stage (nested translation, §3.8).
pub(crate) struct ThroughSecondStage {
    pub(crate) second: SecondStage,
    /// Of `second`'s paging-structure cache entries.
    pub(crate) tag: StructureTag,
    pub(crate) limits: Limits,
}

impl<M: GuestMemory> EntryAddresses<M> for ThroughSecondStage {
    fn locate(
        &self,
        memory: &M,
        structures: &mut StructureAccess<'_>,
        address: u64,
        level: Level,
        write: bool,
    ) -> Result<u64, WalkFault> {
        if mutant!(NestedTablesUntranslated) {
            return Ok(address);
        }
        let want = Want { read: true, write, execute: false, execute_demanded: false, privileged: false, dirty: write };
        let structures = structures.under(self.tag);
        let mut tables = InMemory { memory, stage: Stage::Second, addresses: Direct, structures };
        let leaf = self.second.walk(&mut tables, self.limits, address, want).map_err(|fault| match fault {
            WalkFault::Address(_) => WalkFault::EntryAddress,
            WalkFault::NoRead => WalkFault::EntryNoRead(level),
            WalkFault::NoWrite => WalkFault::EntryNoWrite,
            other => other,
        })?;
        Ok(leaf.at(address))
    }
}

impl<M: GuestMemory, A: EntryAddresses<M>> Tables for InMemory<'_, M, A> {
    #[inline]
    fn load(&mut self, address: u64, level: Level) -> Result<u64, WalkFault> {
        let at = self.addresses.locate(self.memory, &mut self.structures, address, level, false)?;
        let unreadable = |_| WalkFault::at(WalkFault::Unreadable, self.stage, level);
        self.memory.load_u64(GuestAddress(at)).map_err(unreadable)
    }

    fn exchange(&mut self, address: u64, level: Level, old: u64, new: u64) -> Result<(), WalkEnd> {
        let at = self.addresses.locate(self.memory, &mut self.structures, address, level, true)?;
        match self.memory.compare_exchange_u64(GuestAddress(at), old, new) {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err(WalkEnd::LostRace),
            Err(_) => Err(WalkFault::NotUpdated(self.stage).into()),
        }
    }

    #[inline]
    fn lowest_structure(&self, address: u64, top: Level) -> Option<Start> {
        self.structures.lowest(address, top)
    }

    #[inline]
    fn keep_structure(&mut self, address: u64, level: Level, partial: PartialWalk) {
        self.structures.keep(address, level, partial);
    }

    fn doubts_structures(&self) -> bool {
        self.structures.doubted
    }
}
