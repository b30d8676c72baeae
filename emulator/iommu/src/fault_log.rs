//! The fault recording registers and the status over them (§7.2, §11.4.7).
use svadev_spec::vtd::fault::{FaultRecordHigh, FaultRecordLow};
use svadev_spec::vtd::registers::FaultStatus;

/// One fault recording register.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct FaultRecord {
    pub(crate) low: FaultRecordLow,
    pub(crate) high: FaultRecordHigh,
}

/// The fault recording registers and the status register over them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FaultLog {
    pub(crate) records: Box<[FaultRecord]>,
    /// PFO, IQE, ICE and ITE. PPF and FRI are worked out.
    pub(crate) sticky: FaultStatus,
    /// The register that the next fault goes into.
    next: usize,
    /// FRI: the register that the first pending fault went into.
    first: usize,
}

impl FaultLog {
    pub(crate) fn new(records: u8) -> Self {
        Self {
            records: vec![FaultRecord::default(); records.into()].into(),
            sticky: FaultStatus::new(),
            next: 0,
            first: 0,
        }
    }

    pub(crate) fn pending(&self) -> bool {
        self.records.iter().any(|r| r.high.fault())
    }

    /// FSTS (§11.4.7.1).
    pub(crate) fn status(&self) -> FaultStatus {
        self.sticky
            .with_primary_pending_fault(self.pending())
            .with_fault_record_index(u8::try_from(self.first).expect("there are at most 128 records"))
    }

    pub(crate) fn any_status(&self) -> bool {
        self.sticky != FaultStatus::new() || self.pending()
    }

    /// Whether an error keeps the invalidation queue from going on.
    pub(crate) fn queue_stopped(&self) -> bool {
        self.sticky.invalidation_queue_error() || self.sticky.invalidation_timeout_error()
    }

    /// Puts a fault into the next register. False when it is lost: overflow is set, or is set now (§7.2.1).
    pub(crate) fn push(&mut self, record: FaultRecord) -> bool {
        if self.sticky.primary_fault_overflow() {
            return false;
        }
        if self.records[self.next].high.fault() {
            self.sticky.set_primary_fault_overflow(true);
            return false;
        }
        if !self.pending() {
            self.first = self.next;
        }
        self.records[self.next] = record;
        self.next = (self.next + 1) % self.records.len();
        true
    }
}
