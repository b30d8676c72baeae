//! What configuration space allows an endpoint's requests to do.
use svadev_fabric::SourceId;
use svadev_mutation::mutant;

use crate::address::SpaceId;

/// What configuration space allows the engines to do, in one word.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Gate {
    /// *Bus Master Enable* (PCIe 6.0 §7.5.1.1.3): the function may access memory at all.
    pub bus_master: bool,
    /// ATS *Enable* (PCIe 6.0 §10.5.1.3).
    pub ats: bool,
    /// PASID *Enable* (PCIe 6.0 §7.8.9.3).
    pub pasid: bool,
}

impl Gate {
    /// Whether requests for an address space may be sent at all. Every source needs bus mastering. The IOMMU needs
    /// ATS, and PASID for a space that has one. The mirror and device memory need neither. Identity has no PASIDs.
    #[inline]
    pub fn allows(self, space: SpaceId) -> bool {
        let source = match space.source() {
            SourceId::IDENTITY => space.pasid().is_none(),
            SourceId::MIRROR | SourceId::DEVICE => true,
            _ => self.ats && (self.pasid || space.pasid().is_none()),
        };
        (self.bus_master || mutant!(BusMasterUnchecked)) && source
    }

    pub(crate) fn to_bits(self) -> u32 {
        u32::from(self.bus_master) | u32::from(self.ats) << 1 | u32::from(self.pasid) << 2
    }

    pub(crate) fn from_bits(bits: u32) -> Self {
        Self { bus_master: bits & 1 != 0, ats: bits & 2 != 0, pasid: bits & 4 != 0 }
    }
}
