//! Reading of single entries.
use svadev_memory::{GuestAddress, GuestMemory};
use svadev_spec::vtd::FaultReason;
use svadev_spec::vtd::registers::RootTableAddress;
use svadev_spec::vtd::tables::Level;

use crate::config::{Limits, UnitConfig};
use crate::request::Fault;

/// What the decoding of tables needs: memory, the root, and what the unit was built with.
#[derive(Debug)]
pub(crate) struct TableReader<'a, M> {
    pub(crate) memory: &'a M,
    pub(crate) root: RootTableAddress,
    pub(crate) limits: Limits,
    pub(crate) config: &'a UnitConfig,
}

impl<M: GuestMemory> TableReader<'_, M> {
    /// Reads a quadword, or fails with `reason`.
    pub(crate) fn load(&self, at: u64, reason: FaultReason, fpd: bool) -> Result<u64, Fault> {
        self.memory.load_u64(GuestAddress(at)).map_err(|_| fault(reason, fpd))
    }

    /// The topmost level of second-stage tables with this AW. AW is the number of the bit of CAP.SAGAW that must be
    /// set, and two less than the levels (§9.3, §9.6).
    pub(crate) fn second_stage_top(&self, address_width: u8) -> Option<Level> {
        let supported = self.config.capability().second_stage_widths() >> address_width & 1 != 0;
        Level::new(address_width + 2).filter(|_| supported)
    }
}

/// A fault, with FPD as the entries so far have it.
pub(crate) fn fault(reason: FaultReason, fault_processing_disable: bool) -> Fault {
    Fault { reason, fault_processing_disable }
}
