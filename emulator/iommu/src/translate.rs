//! Requests for translation: ATS and untranslated (chapters 3 and 4).
use svadev_fabric::{Access, AtsError, Bdf, Downstream, Gpa, Iova, Pasid, Translation, TranslationRequest};
use svadev_memory::GuestMemory;
use svadev_mutation::mutant;
use svadev_spec::vtd::fault::TranslationResponse;
use svadev_spec::vtd::registers::translation_table_mode;
use svadev_spec::vtd::{FaultReason, INTERRUPT_RANGE_FIRST, INTERRUPT_RANGE_LAST, in_interrupt_range};

use crate::address_space::FirstStage;
use crate::address_space::{AddressSpace, Stages};
use crate::cache::{CacheTag, Leaf, Mapping, PageSize, Rights, TranslationCaches};
use crate::config::Caching;
use crate::observe::{CacheSlot, CachedEntry};
use crate::parts::{Admission, Walker, walker};
use crate::request::{Blocked, Fault, Request, RequestKind};
use crate::unit::Unit;
use crate::walk::{InMemory, Nested, SecondStageTables, StructureAccess, WalkCaches, Want, in_legacy_mode};

impl<M: GuestMemory> Unit<M> {
    /// Serves an ATS translation request (§4.2). `Ok` without rights is not recorded as a fault; errors are, unless FPD is set.
    pub fn translate(&mut self, request: TranslationRequest, ports: &dyn Downstream) -> Result<Translation, AtsError> {
        self.counters.translation_requests += 1;
        self.last_requester = Some(request.requester);
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
        let answer = match self.resolve(&request) {
            // Return here, before the audit, so that the compiler writes the answer into the caller's slot. The copy
            // otherwise stalls on store forwarding (docs/design/0004-data-path.md).
            Ok(leaf) if !audited => return Ok(answer(leaf)),
            Ok(leaf) => Ok(answer(leaf)),
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

    /// Translates an untranslated access (§3.6 to §3.8). The translation holds until the unit is used again: the access must be
    /// over by then.
    pub fn access(
        &mut self,
        requester: Bdf,
        pasid: Option<Pasid>,
        iova: Iova,
        access: Access,
        ports: &dyn Downstream,
    ) -> Result<Translation, Blocked> {
        self.counters.untranslated_accesses += 1;
        self.last_requester = Some(requester);
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
            Err(Fault { reason: FaultReason::InterruptAddress, fault_processing_disable: false })
        } else {
            self.resolve(&request).map(answer)
        };
        if let (Some(_), Ok(answer)) = (&self.audit, &result) {
            self.audit_access((requester, pasid), iova, answer);
        }
        result.map_err(|fault| {
            self.record_fault(&request, fault, ports);
            Blocked::Fault(fault.reason)
        })
    }

    /// Checks a translated request: an access with an address that a translation completion gave (§4.2.4). It is not translated
    /// again; the context entry must still let the function use its device TLB.
    pub fn translated(
        &mut self,
        requester: Bdf,
        address: Gpa,
        access: Access,
        ports: &dyn Downstream,
    ) -> Result<(), Blocked> {
        self.counters.translated_accesses += 1;
        self.last_requester = Some(requester);
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
    /// Where a request leads, with the rights that it gets. Most requests find their PASID entry cached, and most of those their page: nothing
    /// else is touched then.
    #[inline]
    fn resolve(&mut self, request: &Request) -> Result<Leaf, Fault> {
        let cached = self.config.caching != Caching::None
            && self.root.translation_table_mode() == translation_table_mode::SCALABLE;
        let Some(entry) = cached.then(|| self.entries.serving(request)).flatten() else {
            return self.admission().resolve(request);
        };
        let want = want(request, false);
        match self.caches.serving(entry.tag, request.iova.0, want) {
            Some(leaf) => {
                self.counters.iotlb_hits += 1;
                Ok(given(leaf, want))
            }
            None => walker!(self)
                .by_tables(entry, request, want, true)
                .map_err(|reason| Fault { reason, fault_processing_disable: entry.fault_processing_disable }),
        }
    }
}

impl TranslationCaches {
    /// The page of `iova` as a request may use it, if it is there. Always inlined: callers know most of what is wanted, and the checks go.
    #[inline(always)]
    fn serving(&self, space: CacheTag, iova: u64, want: Want) -> Option<Leaf> {
        let mapping = self.get(space, iova)?;
        let leaf = mapping.leaf();
        let enough = (mapping.write_known() || !want.dirty || mutant!(IotlbHitForgetsDirty))
            && (leaf.write() || !want.write)
            && (leaf.read() || !want.read);
        enough.then_some(leaf)
    }
}

impl<M: GuestMemory> Admission<'_, M> {
    #[inline(never)]
    fn resolve(mut self, request: &Request) -> Result<Leaf, Fault> {
        let (space, privileged) = self.address_space(request)?;
        let want = want(request, privileged);
        self.walker.in_space(&space, request, want).map_err(|reason| Fault {
            reason: if space.legacy { in_legacy_mode(reason, want) } else { reason },
            fault_processing_disable: space.fault_processing_disable,
        })
    }
}

impl<M: GuestMemory> Walker<'_, M> {
    fn in_space(&mut self, space: &AddressSpace, request: &Request, want: Want) -> Result<Leaf, FaultReason> {
        let iova = request.iova.0;
        if space.stages == Stages::PassThrough {
            return self.pass_through(iova);
        }
        // Supervisor and execute requests are rare: they walk, and the IOTLB need not tell their rights apart.
        let cacheable = self.caching() && !want.privileged && !want.execute;
        if cacheable && let Some(leaf) = self.caches.serving(space.tag, iova, want) {
            self.counters.iotlb_hits += 1;
            return Ok(given(leaf, want));
        }
        self.by_tables(space, request, want, cacheable)
    }

    /// Walks, and keeps what it found if it is `cacheable`.
    fn by_tables(
        &mut self,
        space: &AddressSpace,
        request: &Request,
        want: Want,
        cacheable: bool,
    ) -> Result<Leaf, FaultReason> {
        let iova = request.iova.0;
        self.counters.iotlb_misses += 1;
        self.counters.walks += 1;
        if let Some(observer) = &mut self.observer {
            observer.walk_begins(space, (request.requester, request.pasid));
        }
        let leaf = self.walk(space, iova, want)?;
        let page = without_interrupt_range(leaf, iova)?;
        if cacheable {
            // Without dirty set, later writes must walk again: they find `write_known` clear.
            let page = page.limited_to(want.dirty, false, false);
            let nested = matches!(space.stages, Stages::Nested(..));
            self.caches.insert(space.tag, iova, Mapping::new(page, want.dirty), nested, self.clock);
            if let Some(observer) = &mut self.observer {
                let slot = CacheSlot::Page { tag: space.tag, iova, size_log2: page.size().log2() };
                let entry = CachedEntry::Page { gpa: page.address(), read: page.read(), write: page.write() };
                observer.filled(slot, entry, nested);
            }
        }
        Ok(given(page, want))
    }

    #[inline]
    fn walk(&mut self, space: &AddressSpace, iova: u64, want: Want) -> Result<Leaf, FaultReason> {
        let limits = self.limits;
        let memory = &self.memory;
        let nested = matches!(space.stages, Stages::Nested(..));
        let tag = self.caches.structure_tag(space.tag, nested, self.clock);
        // Second-stage entries are those of the domain, whatever PASID uses them (§6.2.5).
        let second_tag = if nested {
            self.caches.structure_tag(CacheTag::of_domain(space.tag.domain_id()), false, self.clock)
        } else {
            tag
        };
        let mut caches = WalkCaches {
            caches: &mut *self.caches,
            observer: self.observer.as_deref_mut(),
            doubted: self.config.caching != Caching::Adversarial,
        };
        let mut caches = (self.config.caching != Caching::None).then_some(&mut caches);
        match space.stages {
            Stages::First(first) => {
                let mut tables = InMemory { memory, structures: StructureAccess { caches, tag } };
                first.walk(&mut tables, limits, iova, want)
            }
            Stages::Second(second) => {
                let mut tables = SecondStageTables { memory, structures: StructureAccess { caches, tag } };
                second.walk(&mut tables, limits, iova, want)
            }
            Stages::Nested(first, second) => {
                let structures = StructureAccess { caches: caches.as_deref_mut(), tag };
                let mut tables = Nested { memory, second, second_tag, limits, structures };
                let levels = if mutant!(NestedForgetsLevelFive) { 4 } else { first.levels };
                let first = FirstStage { levels, ..first };
                let outer = first.walk(&mut tables, limits, iova, want)?;
                // First-stage write permission decides whether this may become a write at all.
                let want = Want { dirty: want.dirty && outer.write(), ..want };
                let address = outer.at(iova);
                let mut tables = SecondStageTables { memory, structures: StructureAccess { caches, tag: second_tag } };
                let inner = second.walk(&mut tables, limits, address, want)?;
                let ignored = mutant!(NestedIgnoresSecondStageRights);
                let rights = Rights {
                    read: outer.read() && (inner.read() || ignored),
                    write: outer.write() && (inner.write() || ignored),
                    execute: outer.execute(),
                };
                // The page is as large as the smaller of the two.
                Ok(Leaf::new(inner.at(address), outer.size().min(inner.size()), rights))
            }
            Stages::PassThrough => unreachable!("pass-through has no tables"),
        }
    }

    /// §3.9: untranslated addresses are host addresses.
    fn pass_through(&self, iova: u64) -> Result<Leaf, FaultReason> {
        if iova >> self.config.host_address_width != 0 {
            return Err(FaultReason::AddressBeyondHost);
        }
        without_interrupt_range(Leaf::new(iova, PageSize::SIZE_2MIB, Rights::READ_WRITE), iova)
    }
}

#[inline]
fn want(request: &Request, privileged: bool) -> Want {
    let access = request.access;
    // Without a PASID prefix there is no way to ask for execution.
    let execute = access.execute && request.pasid.is_some();
    match request.kind {
        // A translation request takes the rights it finds. Without No Write it may be followed by writes.
        RequestKind::Translation | RequestKind::PageRequest => {
            Want { read: false, write: false, execute, execute_demanded: false, privileged, dirty: access.write }
        }
        RequestKind::Untranslated | RequestKind::Translated => Want {
            read: access.read,
            write: access.write,
            execute,
            execute_demanded: true,
            privileged,
            dirty: access.write,
        },
    }
}

/// What a request gets of a page's rights.
#[inline]
fn given(page: Leaf, want: Want) -> Leaf {
    // With No Write honoured (ECAP.NWFS) no right to write is given: dirty was not set for it (§4.2.2).
    page.limited_to(want.dirty, want.execute, want.privileged)
}

#[inline]
fn answer(leaf: Leaf) -> Translation {
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

/// No translation leads into the interrupt range (LGN.4, SGN.8, §3.14). A large page that reaches into it is served in 4 KiB pieces.
#[inline]
fn without_interrupt_range(leaf: Leaf, iova: u64) -> Result<Leaf, FaultReason> {
    let (address, offsets) = (leaf.address(), leaf.size().mask());
    if address > INTERRUPT_RANGE_LAST || address + offsets < INTERRUPT_RANGE_FIRST {
        return Ok(leaf);
    }
    let address = leaf.at(iova);
    if in_interrupt_range(address) && !mutant!(InterruptRangeUnchecked) {
        return Err(FaultReason::InterruptAddress);
    }
    Ok(Leaf::new(address, PageSize::SIZE_4KIB, leaf.rights()))
}
