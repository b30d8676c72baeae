//! The unit and its auditor: starts it, gives it time and slices of work, and shows it every answer.
use svadev_fabric::{Access, AtsError, Bdf, Iova, Pasid, Translation, TranslationRequest};
use svadev_memory::GuestMemory;

use super::Unit;
use crate::audit::{AuditConfig, AuditCounters, Auditor, Finding};

impl<M: GuestMemory> Unit<M> {
    /// Starts the auditor, with empty books: call it before the unit is used.
    pub fn start_audit(&mut self, config: AuditConfig) {
        self.audit = Some(Box::new(Auditor::new(config)));
    }

    /// Says what time it is. Leave out time that the guest did not have: the age of a change is measured by this
    /// clock alone.
    pub fn audit_at(&mut self, now_ns: u64) {
        if let Some(audit) = &mut self.audit {
            audit.set_time(now_ns);
        }
    }

    /// The findings since the last call.
    pub fn take_audit_findings(&mut self) -> Vec<Finding> {
        self.audit.as_mut().map_or_else(Vec::new, |audit| audit.take_findings())
    }

    /// What the auditor did; `None` without one.
    pub fn audit_counters(&self) -> Option<AuditCounters> {
        self.audit.as_ref().map(|audit| audit.counters())
    }

    /// A function has dropped its device TLB of its own accord, or must not use it (reset, ATS switched off):
    /// software need not invalidate there what the function was given.
    pub fn audit_forget(&mut self, function: Bdf) {
        if let Some(audit) = &mut self.audit {
            audit.forget(function);
        }
    }

    /// One slice of background work: about `budget` entries of the books and as many of each cache. Afterwards,
    /// [`Unit::take_audit_findings`].
    pub fn audit_slice(&mut self, budget: usize) {
        self.with_audit(|unit, audit| audit.slice(&unit.admission(), budget));
    }

    /// A function uses an entry of its device TLB: `iova` leads to `gpa`, with these rights. The entry was given to it
    /// by a translation with this requester and PASID.
    pub fn audit_use(&mut self, function: Bdf, pasid: Option<Pasid>, iova: Iova, gpa: u64, access: Access) {
        self.with_audit(|unit, audit| audit.device_use(&unit.admission(), (function, pasid), iova.0, gpa, access));
    }

    /// The answer to a translation request goes out.
    #[cold]
    pub(super) fn audit_translation(&mut self, request: TranslationRequest, answer: Result<Translation, AtsError>) {
        self.with_audit(|unit, audit| audit.answered(&unit.admission(), request, answer));
    }

    /// An untranslated access was let through.
    #[cold]
    pub(super) fn audit_access(&mut self, user: (Bdf, Option<Pasid>), iova: Iova, answer: &Translation) {
        self.with_audit(|unit, audit| audit.unit_use(&unit.admission(), user, iova.0, answer));
    }

    /// Lends the auditor out of the unit, so that both can be used. Does nothing while remapping is off or all DMA is
    /// aborted (§3.4.5).
    fn with_audit(&mut self, f: impl FnOnce(&mut Self, &mut Auditor)) {
        if let Some(mut audit) = self.audit.take() {
            if self.translation_enabled() && !self.aborts_dma() {
                f(self, &mut audit);
            }
            self.audit = Some(audit);
        }
    }
}
