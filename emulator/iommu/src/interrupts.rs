//! The three events with an interrupt message of their own: fault, invalidation completion, page request.
use svadev_fabric::Msi;
use svadev_spec::vtd::registers::EventControl;

/// What an interrupt is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EventKind {
    /// A fault was recorded, or the invalidation queue met an error (FECTL).
    Fault,
    /// A wait with IF completed (IECTL).
    Invalidation,
    /// A page request is in the queue, or was lost (PECTL).
    PageRequest,
}

impl EventKind {
    /// All of them.
    pub(crate) const ALL: [Self; 3] = [Self::Fault, Self::Invalidation, Self::PageRequest];
}

/// Control, data and address registers of one event (§11.4.7.2 and following).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Event {
    control: EventControl,
    pub(crate) data: u32,
    pub(crate) address: u32,
    pub(crate) upper_address: u32,
}

impl Event {
    /// IM resets to 1 (§11.4.7.2): a message to address 0 before software has programmed the registers would be a
    /// stray write.
    pub(crate) fn new() -> Self {
        Self { control: EventControl::new().with_interrupt_mask(true), data: 0, address: 0, upper_address: 0 }
    }

    /// The control register.
    pub(crate) fn control(&self) -> u32 {
        self.control.into()
    }

    /// The condition arose. IP is set until the message is sent: IM may hold it back, or nothing behind the unit may be
    /// able to carry it (§11.4.7.2, *other transient hardware conditions*).
    pub(crate) fn raise(&mut self) {
        self.control.set_interrupt_pending(true);
    }

    /// The message that is to be sent now: IP is set and IM is clear.
    pub(crate) fn due(&self) -> Option<Msi> {
        (self.control.interrupt_pending() && !self.control.interrupt_mask()).then(|| self.message())
    }

    /// The message was sent.
    pub(crate) fn sent(&mut self) {
        self.control.set_interrupt_pending(false);
    }

    /// Software wrote the control register: IM is its own, IP is the unit's.
    pub(crate) fn write_control(&mut self, value: u32) {
        self.control.set_interrupt_mask(EventControl::from(value).interrupt_mask());
    }

    /// Software cleared every status bit behind the event: a pending message is not sent any more (§11.4.7.2, IP).
    pub(crate) fn serviced(&mut self) {
        self.control.set_interrupt_pending(false);
    }

    fn message(&self) -> Msi {
        // Bits 1:0 of the address are reserved.
        Msi { address: u64::from(self.upper_address) << 32 | u64::from(self.address & !3), data: self.data }
    }
}
