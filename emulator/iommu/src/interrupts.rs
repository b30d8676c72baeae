//! The three events with an interrupt message of their own: fault, invalidation completion, page request.
use svadev_fabric::Msi;
use svadev_spec::vtd::registers::EventControl;

/// Control, data and address registers of one event (§11.4.7.2 and following).
#[derive(Clone, Debug)]
pub(crate) struct Event {
    control: EventControl,
    pub(crate) data: u32,
    pub(crate) address: u32,
    pub(crate) upper_address: u32,
}

impl Event {
    /// IM resets to 1 (§11.4.7.2): a message to address 0 before software has programmed the registers would be a stray write.
    pub(crate) fn new() -> Self {
        Self { control: EventControl::new().with_interrupt_mask(true), data: 0, address: 0, upper_address: 0 }
    }

    pub(crate) fn control(&self) -> u32 {
        self.control.into()
    }

    /// The condition arose: the message to send now, or none while IM holds it back as IP.
    #[must_use]
    pub(crate) fn raise(&mut self) -> Option<Msi> {
        if self.control.interrupt_mask() {
            self.control.set_interrupt_pending(true);
            return None;
        }
        Some(self.message())
    }

    /// Software wrote the control register: IM is its own, IP is ours. Clearing IM sends what was held back.
    #[must_use]
    pub(crate) fn write_control(&mut self, value: u32) -> Option<Msi> {
        self.control.set_interrupt_mask(EventControl::from(value).interrupt_mask());
        if self.control.interrupt_mask() || !self.control.interrupt_pending() {
            return None;
        }
        self.control.set_interrupt_pending(false);
        Some(self.message())
    }

    /// Software cleared every status bit behind the event: what was held back is moot (§11.4.7.2, IP).
    pub(crate) fn serviced(&mut self) {
        self.control.set_interrupt_pending(false);
    }

    fn message(&self) -> Msi {
        // Bits 1:0 of the address are reserved.
        Msi { address: u64::from(self.upper_address) << 32 | u64::from(self.address & !3), data: self.data }
    }
}
