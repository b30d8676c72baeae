//! Requests for translation: ATS and untranslated (chapters 3 and 4).
use svadev_fabric::{Access, AtsError, Bdf, Downstream, Gpa, Iova, Pasid, Translation, TranslationRequest};
use svadev_memory::GuestMemory;
use svadev_mutation::mutant;
use svadev_spec::vtd::fault::TranslationResponse;
use svadev_spec::vtd::registers::translation_table_mode;
use svadev_spec::vtd::{FaultReason, in_interrupt_range};

use super::{Unit, walker};
use crate::cache::{Leaf, PageSize};
use crate::config::Caching;
use crate::fault_codes::fault_in;
use crate::request::{Blocked, Fault, Request, RequestKind};
use crate::translate::{given, want};

impl<M: GuestMemory> Unit<M> {
    /// Serves an ATS translation request (§4.2). `Ok` without rights is not recorded as a fault. Errors are, unless FPD
    /// is set.
    pub fn translate(&mut self, request: TranslationRequest, ports: &dyn Downstream) -> Result<Translation, AtsError> {
        self.counters.translation_requests += 1;
        self.state.last_requester = Some(request.requester);
        if !self.translation_enabled() {
            // §4.2.3: with remapping disabled there is no translation agent.
            self.counters.translations_refused += 1;
            return Err(AtsError::UnsupportedRequest);
        }
        if self.aborts_dma() {
            self.counters.translations_refused += 1;
            return Err(AtsError::CompleterAbort);
        }
        let TranslationRequest { requester, pasid, iova, access } = request;
        if pasid.is_none() && in_interrupt_range(iova.0) {
            // §3.14: such writes are interrupts and must come untranslated.
            return Ok(Translation { untranslated_only: true, ..untranslated(iova.0, Access::WRITE) });
        }
        let request = Request { requester, pasid, iova, access, kind: RequestKind::Translation };
        let audited = self.audit.is_some();
        let answer = match self.find_page(&request) {
            // Return here, before the audit, so that the compiler writes the answer into the caller's slot. The copy
            // otherwise stalls on store forwarding (docs/design/0004-data-path.md).
            Ok(leaf) if !audited => return Ok(completion(leaf)),
            Ok(leaf) => Ok(completion(leaf)),
            Err(fault) => match fault.reason.translation_response() {
                TranslationResponse::NoRights => {
                    self.counters.translations_not_present += 1;
                    Ok(Translation::NOT_PRESENT)
                }
                TranslationResponse::UnsupportedRequest => {
                    self.counters.translations_refused += 1;
                    self.record_fault(&request, fault, ports);
                    Err(AtsError::UnsupportedRequest)
                }
                TranslationResponse::CompleterAbort => {
                    self.counters.translations_refused += 1;
                    self.record_fault(&request, fault, ports);
                    Err(AtsError::CompleterAbort)
                }
            },
        };
        if audited {
            self.audit_translation(TranslationRequest { requester, pasid, iova, access }, answer);
        }
        answer
    }

    /// Translates an untranslated access (§3.6 to §3.8). The translation holds until the unit is used again: the access
    /// must be over by then.
    pub fn access(
        &mut self,
        requester: Bdf,
        pasid: Option<Pasid>,
        iova: Iova,
        access: Access,
        ports: &dyn Downstream,
    ) -> Result<Translation, Blocked> {
        self.counters.untranslated_accesses += 1;
        self.state.last_requester = Some(requester);
        if self.aborts_dma() {
            return Err(Blocked::AbortDma);
        }
        let write_only = access.write && !access.read;
        if !self.translation_enabled() || (pasid.is_none() && in_interrupt_range(iova.0) && write_only) {
            // Remapping is off, or the write is an interrupt and interrupt remapping is not there (ECAP.IR, §3.14).
            return Ok(untranslated(iova.0, access));
        }
        let request = Request { requester, pasid, iova, access, kind: RequestKind::Untranslated };
        let result = if pasid.is_none() && in_interrupt_range(iova.0) {
            Err(self.interrupt_range_fault(&request))
        } else {
            self.find_page(&request).map(completion)
        };
        if let (Some(_), Ok(answer)) = (&self.audit, &result) {
            self.audit_access((requester, pasid), iova, answer);
        }
        result.map_err(|fault| {
            self.record_fault(&request, fault, ports);
            Blocked::Fault(fault.reason)
        })
    }

    /// The fault of an untranslated request to the interrupt range that is no interrupt (§3.14). Remapping is not
    /// asked, but FPD of the requester's entries counts (§7.1.3).
    #[cold]
    fn interrupt_range_fault(&mut self, request: &Request) -> Fault {
        let reason = match self.state.root.translation_table_mode() {
            translation_table_mode::LEGACY => FaultReason::LegacyInterruptAddress,
            _ => FaultReason::InterruptAddress,
        };
        Fault { reason, fault_processing_disable: self.admission().fault_processing_disable(request) }
    }

    /// Checks a translated request: an access with an address that a translation completion gave (§4.2.4). It is not
    /// translated again, but the context entry must still let the function use its device TLB.
    pub fn translated(
        &mut self,
        requester: Bdf,
        address: Gpa,
        access: Access,
        ports: &dyn Downstream,
    ) -> Result<(), Blocked> {
        self.counters.translated_accesses += 1;
        self.state.last_requester = Some(requester);
        if self.aborts_dma() {
            return Err(Blocked::AbortDma);
        }
        if !self.translation_enabled() {
            return Ok(());
        }
        let kind = RequestKind::Translated;
        let request = Request { requester, pasid: None, iova: Iova(address.0), access, kind };
        let result = self.admission().admit_translated(&request);
        result.map_err(|fault| {
            self.record_fault(&request, fault, ports);
            Blocked::Fault(fault.reason)
        })
    }
}

impl<M: GuestMemory> Unit<M> {
    /// The page that a request leads to, with the rights that it gets. Most requests find their PASID entry cached, and
    /// most of those find their page: nothing else is touched then.
    #[inline]
    fn find_page(&mut self, request: &Request) -> Result<Leaf, Fault> {
        let cached = self.config.caching != Caching::None
            && self.state.root.translation_table_mode() == translation_table_mode::SCALABLE;
        let Some(entry) = cached.then(|| self.entries.serving(request)).flatten() else {
            return self.admission().find_page(request);
        };
        let want = want(request, false);
        match self.caches.serving(entry.tag, request.iova.0, want) {
            Some(leaf) => {
                self.counters.iotlb_hits += 1;
                Ok(given(leaf, want))
            }
            None => walker!(self).by_tables(entry, request, want, true).map_err(|fault| {
                let Fault { reason, fault_processing_disable: fpd } = fault_in(entry, fault, want);
                Fault { reason, fault_processing_disable: fpd && !mutant!(CachedEntryForgetsFpd) }
            }),
        }
    }
}

/// The translation completion for a page (PCIe 6.0 §10.2.3).
#[inline]
fn completion(leaf: Leaf) -> Translation {
    let (read, write, execute, privileged) = (leaf.read(), leaf.write(), leaf.execute(), leaf.privileged());
    Translation {
        gpa: Gpa(leaf.address()),
        size_log2: leaf.size().log2(),
        access: Access { read, write, execute, privileged },
        global: false,
        untranslated_only: false,
    }
}

/// The page of `iova` leads to itself.
fn untranslated(iova: u64, access: Access) -> Translation {
    let gpa = Gpa(iova & !PageSize::SIZE_4KIB.mask());
    Translation { gpa, size_log2: PageSize::SIZE_4KIB.log2(), access, global: false, untranslated_only: false }
}
