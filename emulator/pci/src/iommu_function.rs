//! The PCI function that carries an IOMMU's registers in a BAR. It is configuration space only: the registers are the
//! unit's, and whoever owns both routes [`BAR_UNIT`] there.
use svadev_spec::device::{ABI_MAJOR, BAR_UNIT, BAR_UNIT_SIZE, PCI_CLASS_IOMMU, PCI_DEVICE_ID_IOMMU, PCI_VENDOR_ID};

use crate::{Bar, ConfigEffects, ConfigSpace, ConfigState, Description, Identity};

/// The IOMMU function. No driver binds to it, and its bus mastering is never on. It sends no request of its own, so
/// it has no ATS, PRI or PASID. It has no function level reset: the unit behind it is in use as long as any function
/// is, and software resets a function for that function's sake.
#[derive(Debug)]
pub struct IommuFunction {
    config: ConfigSpace,
}

impl IommuFunction {
    /// What it is made of.
    pub const DESCRIPTION: Description = Description::new(Identity {
        vendor: PCI_VENDOR_ID,
        device: PCI_DEVICE_ID_IOMMU,
        class: PCI_CLASS_IOMMU,
        revision: ABI_MAJOR.to_le_bytes()[0],
    })
    .with_bar(BAR_UNIT, Bar { size: BAR_UNIT_SIZE, wide: false, prefetchable: false })
    .without_function_level_reset();

    /// The function after reset.
    pub fn new() -> Self {
        Self { config: ConfigSpace::new(Self::DESCRIPTION) }
    }

    /// Fills `buf` from configuration space.
    pub fn config_read(&self, offset: u64, buf: &mut [u8]) {
        self.config.read(offset, buf);
    }

    /// Writes configuration space. Of the effects, a BAR's new address concerns the owner of the unit.
    pub fn config_write(&mut self, offset: u64, data: &[u8]) -> ConfigEffects {
        self.config.write(offset, data)
    }

    /// Goes on with a configuration space that was saved.
    pub fn restore(&mut self, state: &ConfigState) {
        self.config.restore(state);
    }

    /// Resets the function's configuration space. The VMM resets the machine; the owner of the unit then resets the
    /// unit.
    pub fn reset(&mut self) {
        self.config.reset();
    }

    /// Its configuration space.
    pub fn config(&self) -> &ConfigSpace {
        &self.config
    }
}

impl Default for IommuFunction {
    fn default() -> Self {
        Self::new()
    }
}
