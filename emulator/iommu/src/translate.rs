//! Requests for translation: ATS and untranslated (chapters 3 and 4).
use svadev_fabric::{Access, AtsError, Bdf, Downstream, Gpa, Iova, Pasid, Translation, TranslationRequest};
use svadev_memory::GuestMemory;
use svadev_mutation::mutant;
use svadev_spec::vtd::fault::TranslationResponse;
use svadev_spec::vtd::registers::translation_table_mode;
use svadev_spec::vtd::{FaultReason, INTERRUPT_RANGE_FIRST, INTERRUPT_RANGE_LAST};

use crate::Unit;
use crate::audit::Value;
use crate::cache::{Iotlb, Leaf, Mapping, PageSize, Rights, Space};
use crate::config::Caching;
use crate::context::{AddressSpace, Stages};
use crate::fault::{Blocked, Fault, Request, RequestKind};
use crate::resolver::Resolver;
use crate::walk::{FirstStage, InMemory, Nested, PagingCaches, SecondStageTables, Shortcuts, Want, in_legacy_mode};

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
        let result = match self.look_up(&request) {
            // Built where the caller wants it: an answer that is moved as a whole right after it was written field by field costs as much as the
            // lookup.
            Lookup::Hit(mapping) if !audited => return Ok(mapping.translation(access.write)),
            lookup => self.resolver().resolve_after(lookup, &request),
        };
        let answer = match result {
            Ok(translation) => Ok(translation),
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
            let lookup = self.look_up(&request);
            self.resolver().resolve_after(lookup, &request)
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
        let result = self.resolver().let_translated_in(&request);
        result.map_err(|fault| {
            self.record_fault(&request, fault, ports);
            Blocked::Fault(fault.reason)
        })
    }
}

/// What the caches know about a request.
enum Lookup {
    /// Its page.
    Hit(Mapping),
    /// Its PASID entry, and that this has tables, but not its page.
    Miss(AddressSpace),
    /// Nothing, or what the rare requests need more than that for.
    Unknown,
}

impl<M: GuestMemory> Unit<M> {
    /// Most requests find their PASID entry cached, and most of those their page: nothing else is touched then, and nothing larger than
    /// a word copied.
    #[inline]
    fn look_up(&mut self, request: &Request) -> Lookup {
        let Some(entry) = self.cached_entry(request) else { return Lookup::Unknown };
        match self.iotlb.serving(entry.space, request.iova.0, want(request, false)) {
            Some(mapping) => {
                self.counters.iotlb_hits += 1;
                Lookup::Hit(mapping)
            }
            None => Lookup::Miss(*entry),
        }
    }

    /// The PASID entry of a user request with a PASID that does not execute, if it is cached, lets the request in and has tables. It says what
    /// its context entry allows, too.
    #[inline]
    fn cached_entry(&self, request: &Request) -> Option<&AddressSpace> {
        let Request { requester, pasid: Some(pasid), access, kind, .. } = *request else {
            return None;
        };
        if self.config.caching == Caching::None
            || access.privileged
            || access.execute
            || self.root.translation_table_mode() != translation_table_mode::SCALABLE
        {
            return None;
        }
        let entry = self.entries.pasid(requester.0, pasid.get())?;
        let ats = kind == RequestKind::Translation;
        let usable = entry.serves_pasids && (entry.serves_ats || !ats) && !matches!(entry.stages, Stages::PassThrough);
        usable.then_some(entry)
    }
}

impl Iotlb {
    /// The mapping that serves a request, if it is there.
    #[inline]
    fn serving(&self, space: Space, iova: u64, want: Want) -> Option<Mapping> {
        self.get(space, iova).filter(|mapping| {
            (mapping.write_known() || !want.dirty || mutant!(IotlbHitForgetsDirty))
                && (mapping.leaf().write() || !want.write)
                && (mapping.leaf().read() || !want.read)
        })
    }
}

impl<M: GuestMemory> Resolver<'_, M> {
    fn resolve_after(&mut self, lookup: Lookup, request: &Request) -> Result<Translation, Fault> {
        match lookup {
            Lookup::Hit(mapping) => Ok(mapping.translation(request.access.write)),
            Lookup::Miss(entry) => self
                .translate_by_tables(&entry, request, want(request, false), true)
                .map_err(|reason| Fault { reason, fault_processing_disable: entry.fault_processing_disable }),
            Lookup::Unknown => self.resolve_slowly(request),
        }
    }

    #[inline(never)]
    fn resolve_slowly(&mut self, request: &Request) -> Result<Translation, Fault> {
        let (space, privileged) = self.address_space(request)?;
        let want = want(request, privileged);
        self.translate_in(&space, request, want).map_err(|reason| Fault {
            reason: if space.legacy { in_legacy_mode(reason, want) } else { reason },
            fault_processing_disable: space.fault_processing_disable,
        })
    }

    fn translate_in(
        &mut self,
        space: &AddressSpace,
        request: &Request,
        want: Want,
    ) -> Result<Translation, FaultReason> {
        let iova = request.iova.0;
        if space.stages == Stages::PassThrough {
            return self.pass_through(iova);
        }
        // Supervisor and execute requests are rare: they walk, and the IOTLB need not tell their rights apart.
        let cacheable = self.config.caching != Caching::None && !want.privileged && !want.execute;
        if cacheable && let Some(mapping) = self.iotlb.serving(space.space, iova, want) {
            self.counters.iotlb_hits += 1;
            return Ok(mapping.translation(want.dirty));
        }
        self.translate_by_tables(space, request, want, cacheable)
    }

    /// Walks, and keeps what it found if it is `cacheable`.
    fn translate_by_tables(
        &mut self,
        space: &AddressSpace,
        request: &Request,
        want: Want,
        cacheable: bool,
    ) -> Result<Translation, FaultReason> {
        let iova = request.iova.0;
        self.counters.iotlb_misses += 1;
        self.counters.walks += 1;
        if let Some(audit) = &mut self.audit {
            audit.serves(space, (request.requester, request.pasid));
        }
        let leaf = self.walk(space, iova, want)?;
        let page = without_interrupt_range(leaf, iova)?;
        if cacheable {
            // Without dirty set, later writes must walk again: they find `write_known` clear.
            let page = page.write_if(want.dirty);
            let nested = matches!(space.stages, Stages::Nested(..));
            self.iotlb.insert(space.space, iova, Mapping::new(page, want.dirty), nested, self.clock);
            if let Some(audit) = &mut self.audit {
                let value = Value::Page { gpa: page.address(), read: page.read(), write: page.write() };
                audit.page_cached(space.space, iova, page.size().log2(), value, nested);
            }
        }
        Ok(translation(page, want))
    }

    #[inline]
    fn walk(&mut self, space: &AddressSpace, iova: u64, want: Want) -> Result<Leaf, FaultReason> {
        let limits = self.limits;
        let memory = &self.memory;
        let nested = matches!(space.stages, Stages::Nested(..));
        let tag = self.iotlb.path_tag(space.space, nested, self.clock);
        // Second-stage entries are those of the domain, whatever PASID uses them (§6.2.5).
        let second_tag = if nested {
            self.iotlb.path_tag(Space::of_domain(space.space.domain_id()), false, self.clock)
        } else {
            tag
        };
        let mut caches = PagingCaches {
            iotlb: &mut *self.iotlb,
            audit: self.audit.as_deref_mut(),
            doubted: self.config.caching != Caching::Adversarial,
        };
        let mut caches = (self.config.caching != Caching::None).then_some(&mut caches);
        match space.stages {
            Stages::First(first) => {
                let mut tables = InMemory { memory, shortcuts: Shortcuts { caches, tag } };
                first.walk(&mut tables, limits, iova, want)
            }
            Stages::Second(second) => {
                let mut tables = SecondStageTables { memory, shortcuts: Shortcuts { caches, tag } };
                second.walk(&mut tables, limits, iova, want)
            }
            Stages::Nested(first, second) => {
                let shortcuts = Shortcuts { caches: caches.as_deref_mut(), tag };
                let mut tables = Nested { memory, second, second_tag, limits, shortcuts };
                let levels = if mutant!(NestedForgetsLevelFive) { 4 } else { first.levels };
                let first = FirstStage { levels, ..first };
                let outer = first.walk(&mut tables, limits, iova, want)?;
                // First-stage write permission decides whether this may become a write at all.
                let want = Want { dirty: want.dirty && outer.write(), ..want };
                let address = outer.at(iova);
                let mut tables = SecondStageTables { memory, shortcuts: Shortcuts { caches, tag: second_tag } };
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
    fn pass_through(&self, iova: u64) -> Result<Translation, FaultReason> {
        if iova >> self.config.host_address_width != 0 {
            return Err(FaultReason::AddressBeyondHost);
        }
        let leaf = Leaf::new(iova, PageSize::SIZE_2MIB, Rights { read: true, write: true, execute: false });
        let leaf = without_interrupt_range(leaf, iova)?;
        Ok(answer(leaf, Access::READ_WRITE))
    }
}

impl Mapping {
    /// The answer to a request, which may be followed by writes if it is `dirty`.
    #[inline]
    fn translation(self, dirty: bool) -> Translation {
        let leaf = self.leaf();
        answer(leaf, Access { read: leaf.read(), write: leaf.write() && dirty, execute: false, privileged: false })
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

fn translation(leaf: Leaf, want: Want) -> Translation {
    let access = Access {
        read: leaf.read(),
        // With No Write honoured (ECAP.NWFS) no right to write is given: dirty was not set for it (§4.2.2).
        write: leaf.write() && want.dirty,
        execute: leaf.execute() && want.execute,
        privileged: want.privileged,
    };
    answer(leaf, access)
}

#[inline]
fn answer(leaf: Leaf, access: Access) -> Translation {
    Translation {
        gpa: Gpa(leaf.address()),
        size_log2: leaf.size().log2(),
        access,
        global: false,
        untranslated_only: false,
    }
}

/// The page of `iova` leads to itself.
fn untranslated(iova: u64, access: Access) -> Translation {
    let gpa = Gpa(iova & !PageSize::SIZE_4KIB.mask());
    Translation { gpa, size_log2: PageSize::SIZE_4KIB.log2(), access, global: false, untranslated_only: false }
}

pub(crate) fn in_interrupt_range(address: u64) -> bool {
    (INTERRUPT_RANGE_FIRST..=INTERRUPT_RANGE_LAST).contains(&address)
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
