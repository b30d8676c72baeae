//! Reading of single entries.
use svadev_memory::{GuestAddress, GuestMemory};
use svadev_mutation::mutant;
use svadev_spec::vtd::FaultReason;
use svadev_spec::vtd::registers::RootTableAddress;
use svadev_spec::vtd::tables::Level;

use crate::config::{Limits, UnitConfig};
use crate::request::Fault;

/// How often an entry is read, at most, until two readings in a row are the same. Software changes an entry a few times
/// while it binds or unbinds a PASID; only software that never stops writing reaches this.
const ENTRY_READINGS: u32 = 16;

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

    /// Reads an entry of `N` quadwords as it stood at one moment, or fails with `reason`.
    ///
    /// Hardware reads structures in pieces of 128 bits or more (§9.3, §9.4, §9.6): P and the domain-id of a PASID table
    /// entry come from one read. Here an entry is read by quadwords, and again until two readings in a row are the
    /// same. Otherwise an entry that software clears meanwhile could be cached with domain 0, where no invalidation
    /// finds it. If P (bit 0) is clear, the other quadwords are not read.
    ///
    /// An entry that differs at each of [`ENTRY_READINGS`] readings counts as one that cannot be read: faults are not
    /// cached.
    pub(crate) fn load_entry<const N: usize>(
        &self,
        at: u64,
        reason: FaultReason,
        fpd: bool,
    ) -> Result<[u64; N], Fault> {
        let mut last = self.read_entry(at, reason, fpd)?;
        for _ in 1..ENTRY_READINGS {
            if last[0] & 1 == 0 || mutant!(EntryReadOnce) {
                return Ok(last);
            }
            let again = self.read_entry(at, reason, fpd)?;
            if again == last {
                return Ok(last);
            }
            last = again;
        }
        Err(fault(reason, fpd))
    }

    /// Reads an entry once, the quadword with P first. If P is clear, the others are left at zero.
    fn read_entry<const N: usize>(&self, at: u64, reason: FaultReason, fpd: bool) -> Result<[u64; N], Fault> {
        let mut words = [0; N];
        for (i, at) in (at..).step_by(8).take(N).enumerate() {
            words[i] = self.load(at, reason, fpd)?;
            if words[0] & 1 == 0 {
                break;
            }
        }
        Ok(words)
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
