//! The register-based commands CCMD and IOTLB (§6.5.1). They are carried out while the queue is disabled, and not in
//! scalable mode: PASID-based entries can be invalidated by descriptors only.
use svadev_memory::GuestMemory;
use svadev_mutation::mutant;
use svadev_spec::vtd::invalidation::context_granularity;
use svadev_spec::vtd::registers::{ContextCommand, IotlbInvalidate};

use crate::unit::Unit;

impl<M: GuestMemory> Unit<M> {
    /// Whether register-based commands are carried out.
    fn takes_commands(&self) -> bool {
        !self.state.global.queued_invalidation_enable() && !self.scalable()
    }

    /// Carries out a write to CCMD with ICC set (§11.4.6.1). CAIG stays 0 if it is refused.
    pub(crate) fn context_command(&mut self, command: ContextCommand) -> ContextCommand {
        let granularity = command.requested_granularity();
        let skipped = granularity == context_granularity::DEVICE && mutant!(ContextCommandOfDeviceDoesNothing);
        let done = self.takes_commands()
            && (skipped || self.invalidate_contexts(granularity, command.source_id(), command.function_mask()).is_ok());
        let actual = if done { granularity } else { 0 };
        command.with_invalidate(false).with_actual_granularity(actual)
    }

    /// Carries out a write to IOTLB with IVT set (§11.4.6.3). IAIG stays 0 if it is refused.
    pub(crate) fn iotlb_command(&mut self, command: IotlbInvalidate) -> IotlbInvalidate {
        let address = self.state.invalidate_address;
        let done = self.takes_commands()
            && self.invalidate_iotlb(command.requested_granularity(), command.domain_id(), address).is_ok();
        let actual = if done { command.requested_granularity() } else { 0 };
        command.with_invalidate(false).with_actual_granularity(actual)
    }
}
