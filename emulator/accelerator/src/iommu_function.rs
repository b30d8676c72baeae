//! The PCI function that carries an IOMMU's registers in a BAR. It is configuration space only: the registers themselves are
//! the unit's, and whoever owns both routes [`BAR_UNIT`](svadev_spec::device::BAR_UNIT) there.
use crate::config::{ConfigEffects, ConfigSpace};

/// The IOMMU function. No driver binds to it; its bus mastering is never on.
#[derive(Debug)]
pub struct IommuFunction {
    config: ConfigSpace,
}

impl IommuFunction {
    /// With this configuration space, made for [`FunctionKind::Iommu`](crate::config::FunctionKind).
    pub fn new(config: ConfigSpace) -> Self {
        Self { config }
    }

    /// Fills `buf` from configuration space.
    pub fn config_read(&self, offset: u64, buf: &mut [u8]) {
        self.config.read(offset, buf);
    }

    /// Writes configuration space. Of the effects, a BAR's new address concerns the owner of the unit.
    pub fn config_write(&mut self, offset: u64, data: &[u8]) -> ConfigEffects {
        self.config.write(offset, data)
    }

    /// Resets the function: its configuration space. The unit keeps its state, as remapping hardware outside the function.
    pub fn reset(&mut self) {
        self.config.reset();
    }

    /// Its configuration space.
    pub fn config(&self) -> &ConfigSpace {
        &self.config
    }
}
