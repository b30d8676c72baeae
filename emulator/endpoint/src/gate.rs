//! What configuration space allows an endpoint's requests to do.
use svadev_fabric::Pasid;
use svadev_mutation::mutant;

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
    /// Whether requests for an address space may be sent at all.
    #[inline]
    pub fn allows(self, space: Option<Pasid>) -> bool {
        (self.bus_master || mutant!(BusMasterUnchecked)) && self.ats && (self.pasid || space.is_none())
    }

    pub(crate) fn to_bits(self) -> u32 {
        u32::from(self.bus_master) | u32::from(self.ats) << 1 | u32::from(self.pasid) << 2
    }

    pub(crate) fn from_bits(bits: u32) -> Self {
        Self { bus_master: bits & 1 != 0, ats: bits & 2 != 0, pasid: bits & 4 != 0 }
    }
}
