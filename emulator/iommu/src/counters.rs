//! Counters of a unit, for people to read.
use svadev_fabric::{Bdf, PageGroupResponse, PageRequest, ResponseCode};

use crate::observe::{Observer, Scope};

/// Event counts since the unit was made; a reset does not clear them.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Counters {
    /// ATS translation requests.
    pub translation_requests: u64,
    /// Translation requests answered *no rights*: a page request may follow.
    pub translations_not_present: u64,
    /// Translation requests answered Unsupported Request or Completer Abort.
    pub translations_refused: u64,
    /// Untranslated accesses.
    pub untranslated_accesses: u64,
    /// Accesses with addresses that translation completions gave, checked by [`crate::Unit::translated`].
    pub translated_accesses: u64,
    /// Page table walks.
    pub walks: u64,
    /// IOTLB hits.
    pub iotlb_hits: u64,
    /// IOTLB misses.
    pub iotlb_misses: u64,
    /// PASID cache misses.
    pub pasid_cache_misses: u64,
    /// Page request messages received.
    pub page_requests: u64,
    /// Page requests put into the queue.
    pub page_requests_queued: u64,
    /// Times the page request queue overflowed (PRS.PRO set).
    pub page_request_overflows: u64,
    /// Page requests lost with no response.
    pub page_requests_dropped: u64,
    /// Groups the unit answered by itself.
    pub automatic_responses: u64,
    /// Page group responses of software: success.
    pub responses_success: u64,
    /// Page group responses of software: invalid request.
    pub responses_invalid: u64,
    /// Page group responses of software: failure.
    pub responses_failure: u64,
    /// Context-cache invalidations.
    pub invalidations_context: u64,
    /// PASID-cache invalidations.
    pub invalidations_pasid_cache: u64,
    /// IOTLB invalidations.
    pub invalidations_iotlb: u64,
    /// PASID-based IOTLB invalidations.
    pub invalidations_pasid_iotlb: u64,
    /// Device-TLB invalidations, with and without PASID.
    pub invalidations_device_tlb: u64,
    /// Interrupt entry cache invalidations.
    pub invalidations_interrupt: u64,
    /// Invalidation waits completed.
    pub waits: u64,
    /// Times the queue had to wait for a function's completion.
    pub waits_parked: u64,
    /// Times the invalidation queue stopped at an error.
    pub queue_errors: u64,
    /// Faults recorded.
    pub faults_recorded: u64,
    /// Faults not recorded: FPD was set.
    pub faults_suppressed: u64,
    /// Faults lost: no recording register was free.
    pub faults_lost: u64,
    /// Message interrupts sent.
    pub interrupts: u64,
}

impl Observer for Counters {
    fn invalidated(&mut self, scope: Scope) {
        match scope {
            Scope::Contexts | Scope::Source { .. } => self.invalidations_context += 1,
            Scope::Pasids | Scope::PasidsOfDomain(_) | Scope::Pasid { .. } => self.invalidations_pasid_cache += 1,
            Scope::Function { .. } => self.invalidations_device_tlb += 1,
            Scope::Tag(_) => self.invalidations_pasid_iotlb += 1,
            // PASID-based invalidations always have a PASID, the others never.
            Scope::Pages { tag, .. } if tag.has_pasid() => self.invalidations_pasid_iotlb += 1,
            Scope::Iotlb | Scope::Domain(_) | Scope::Pages { .. } => self.invalidations_iotlb += 1,
        }
    }

    fn page_requested(&mut self, _: PageRequest) {
        self.page_requests += 1;
    }

    fn page_answered(&mut self, _: Bdf, response: PageGroupResponse) {
        match response.code {
            ResponseCode::Success => self.responses_success += 1,
            ResponseCode::InvalidRequest => self.responses_invalid += 1,
            ResponseCode::Failure => self.responses_failure += 1,
        }
    }
}
