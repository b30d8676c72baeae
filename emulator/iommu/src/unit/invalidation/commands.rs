//! The register-based commands CCMD and IOTLB (§6.5.1).
use svadev_memory::GuestMemory;
use svadev_spec::vtd::registers::{ContextCommand, IotlbInvalidate};

use crate::unit::Unit;

impl<M: GuestMemory> Unit<M> {
    /// A write to CCMD with ICC set (§11.4.6.1). Refused while the queue is enabled: CAIG stays 0.
    pub(crate) fn context_command(&mut self, command: ContextCommand) -> ContextCommand {
        let done = !self.global.queued_invalidation_enable()
            && self
                .invalidate_contexts(command.requested_granularity(), command.source_id(), command.function_mask())
                .is_ok();
        let actual = if done { command.requested_granularity() } else { 0 };
        command.with_invalidate(false).with_actual_granularity(actual)
    }

    /// A write to IOTLB with IVT set (§11.4.6.3). Refused while the queue is enabled: IAIG stays 0.
    pub(crate) fn iotlb_command(&mut self, command: IotlbInvalidate) -> IotlbInvalidate {
        let address = self.invalidate_address;
        let done = !self.global.queued_invalidation_enable()
            && self.invalidate_iotlb(command.requested_granularity(), command.domain_id(), address).is_ok();
        let actual = if done { command.requested_granularity() } else { 0 };
        command.with_invalidate(false).with_actual_granularity(actual)
    }
}
