//! Fault recording and reporting (chapter 7, §11.4.7).
use svadev_fabric::{Bdf, Downstream, Pasid};
use svadev_memory::GuestMemory;
use svadev_mutation::mutant;
use svadev_spec::vtd::fault::{FaultRecordHigh, FaultRecordLow};
use svadev_spec::vtd::registers::FaultStatus;

use super::Unit;
use crate::fault_log::FaultRecord;
use crate::gate::Point;
use crate::interrupts::EventKind;
use crate::request::{Fault, Request, RequestKind};

impl<M: GuestMemory> Unit<M> {
    /// Records a fault and sends the fault event if it is the first (§7.2, §7.3). If FPD was set or there is no room,
    /// the fault is not recorded.
    pub(crate) fn record_fault(&mut self, request: &Request, fault: Fault, ports: &dyn Downstream) {
        if fault.fault_processing_disable && fault.reason.is_qualified() && !mutant!(FaultProcessingDisableIgnored) {
            self.counters.faults_suppressed += 1;
            return;
        }
        let Request { requester, pasid, iova, .. } = *request;
        tracing::debug!(%requester, ?pasid, iova = iova.0, reason = ?fault.reason, "fault");
        if mutant!(FaultNotRecorded) {
            return;
        }
        let pasid = request.pasid.map_or(0, Pasid::get) ^ u32::from(mutant!(FaultWithWrongPasid));
        let (type1, type2) = request_type(request);
        let record = FaultRecord {
            low: FaultRecordLow::new().with_fault_info(request.iova.0 >> 12),
            high: FaultRecordHigh::new()
                .with_source_id(request.requester.0)
                .with_type1(type1)
                .with_type2(type2)
                .with_privileged(request.access.privileged)
                .with_execute(request.access.execute)
                .with_pasid_present(request.pasid.is_some())
                .with_pasid(pasid)
                .with_fault_reason(fault.reason.code())
                .with_address_type(match request.kind {
                    RequestKind::Untranslated | RequestKind::PageRequest => 0b00,
                    RequestKind::Translation => 0b01,
                    RequestKind::Translated => 0b10,
                })
                .with_fault(true),
        };
        if !self.holds(|| Point::FaultRecord { low: record.low, high: record.high }) {
            self.log_fault(record, request.requester, ports);
        }
    }

    /// Puts a fault into a recording register, and sends the fault event if it is the first.
    pub(super) fn log_fault(&mut self, record: FaultRecord, requester: Bdf, ports: &dyn Downstream) {
        let quiet = !self.state.faults.any_status();
        if self.state.faults.push(record) {
            self.counters.faults_recorded += 1;
        } else {
            self.counters.faults_lost += 1;
        }
        if quiet {
            self.raise_event(EventKind::Fault, Some(requester), ports);
        }
    }

    /// Sets status bits of the invalidation queue, and sends the fault event if there was no status before (§7.3).
    pub(crate) fn set_queue_status(
        &mut self,
        set: impl FnOnce(&mut FaultStatus),
        via: Option<Bdf>,
        ports: &dyn Downstream,
    ) {
        let quiet = !self.state.faults.any_status();
        set(&mut self.state.faults.sticky);
        if quiet {
            self.raise_event(EventKind::Fault, via, ports);
        }
    }

    /// A write to FSTS clears the bits that are 1 in it, but for PPF, which follows the records (§11.4.7.1).
    pub(crate) fn write_fault_status(&mut self, value: u32, ports: &dyn Downstream) {
        let clear = FaultStatus::from(value);
        let sticky = &mut self.state.faults.sticky;
        let was_stopped = sticky.invalidation_queue_error() || sticky.invalidation_timeout_error();
        sticky.set_primary_fault_overflow(sticky.primary_fault_overflow() && !clear.primary_fault_overflow());
        sticky.set_invalidation_queue_error(sticky.invalidation_queue_error() && !clear.invalidation_queue_error());
        sticky.set_invalidation_completion_error(
            sticky.invalidation_completion_error() && !clear.invalidation_completion_error(),
        );
        sticky
            .set_invalidation_timeout_error(sticky.invalidation_timeout_error() && !clear.invalidation_timeout_error());
        self.state.queue.forget_errors(self.state.faults.sticky);
        self.fault_status_changed();
        if was_stopped && !self.state.faults.queue_stopped() {
            self.process_queue(ports);
        }
    }

    /// A write to the high half of a recording register: F is write-1-to-clear, the rest is read-only (§11.4.7.6).
    pub(crate) fn write_fault_record(&mut self, index: usize, value: u64) {
        if FaultRecordHigh::from(value).fault()
            && let Some(record) = self.state.faults.records.get_mut(index)
        {
            record.high.set_fault(false);
            self.fault_status_changed();
        }
    }

    fn fault_status_changed(&mut self) {
        if !self.state.faults.any_status() {
            self.event_serviced(EventKind::Fault);
        }
    }
}

/// T1 and T2 of a fault record (§11.4.7.6). An access that reads and writes in one go is an AtomicOp. A translation
/// request is none: it asks for both rights at once.
fn request_type(request: &Request) -> (bool, bool) {
    let access = request.access;
    match request.kind {
        RequestKind::PageRequest => (false, true),
        RequestKind::Untranslated | RequestKind::Translated if access.read && access.write => (true, true),
        _ => (!access.write, false),
    }
}
