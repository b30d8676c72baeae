//! Requests for translation: ATS and untranslated (chapters 3 and 4).
use std::cell::RefCell;

use svadev_fabric::{Access, AtsError, Bdf, Downstream, Gpa, Iova, Pasid, Translation, TranslationRequest};
use svadev_memory::GuestMemory;
use svadev_mutation::mutant;
use svadev_spec::vtd::fault::TranslationResponse;
use svadev_spec::vtd::registers::translation_table_mode;
use svadev_spec::vtd::{FaultReason, INTERRUPT_RANGE_FIRST, INTERRUPT_RANGE_LAST};

use crate::Unit;
use crate::audit::Value;
use crate::cache::{Mapping, Space};
use crate::config::Caching;
use crate::context::{AddressSpace, Stages};
use crate::fault::{Blocked, Fault, Request, RequestKind};
use crate::resolver::Resolver;
use crate::walk::{
    FirstStage, InMemory, Leaf, Nested, PagingCaches, SecondStageTables, Shortcuts, Want, in_legacy_mode,
};

/// Pages of pass-through are as large as this, in log2 of bytes.
const IDENTITY_SIZE_LOG2: u8 = 21;

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
            return Ok(Translation { untranslated_only: true, ..identity(iova.0, 12, Access::WRITE) });
        }
        let request = Request { requester, pasid, iova, access, kind: RequestKind::Translation };
        let audited = self.audit.is_some();
        let mut resolver = self.resolver();
        let result = match resolver.look_up(&request) {
            // Built where the caller wants it: an answer that is moved as a whole right after it was written field by field costs as much as the
            // lookup.
            Lookup::Hit(mapping) if !audited => return Ok(mapping.translation(access.write)),
            lookup => resolver.resolve_after(lookup, &request),
        };
        drop(resolver);
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
            return Ok(identity(iova.0, 12, access));
        }
        let request = Request { requester, pasid, iova, access, kind: RequestKind::Untranslated };
        let result = if pasid.is_none() && in_interrupt_range(iova.0) {
            Err(Fault { reason: FaultReason::InterruptAddress, fault_processing_disable: false })
        } else {
            self.resolver().resolve(&request)
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

impl<M: GuestMemory> Resolver<'_, M> {
    fn resolve(&mut self, request: &Request) -> Result<Translation, Fault> {
        let lookup = self.look_up(request);
        self.resolve_after(lookup, request)
    }

    /// Most requests find their PASID entry cached, and most of those their page: nothing else is touched then, and nothing larger than
    /// a word copied.
    #[inline]
    fn look_up(&mut self, request: &Request) -> Lookup {
        let Some(entry) = self.cached_entry(request) else { return Lookup::Unknown };
        match self.in_iotlb(entry.space, request.iova.0, want(request, false)) {
            Some(mapping) => {
                self.counters.iotlb_hits += 1;
                Lookup::Hit(mapping)
            }
            None => Lookup::Miss(*entry),
        }
    }

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
        if cacheable && let Some(mapping) = self.in_iotlb(space.space, iova, want) {
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
            let write = page.write && want.dirty;
            if let Some(mapping) = Mapping::new(page.address, page.size_log2, page.read, write, want.dirty) {
                let nested = matches!(space.stages, Stages::Nested(..));
                self.iotlb.insert(space.space, iova, mapping, nested, self.clock);
                if let Some(audit) = &mut self.audit {
                    let value = Value::Page { gpa: mapping.gpa(), read: mapping.read(), write: mapping.write() };
                    audit.page_cached(space.space, iova, mapping.size_log2(), value, nested);
                }
            }
        }
        Ok(translation(page, want))
    }

    /// The mapping that serves a request, if the IOTLB has it.
    #[inline]
    fn in_iotlb(&self, space: Space, iova: u64, want: Want) -> Option<Mapping> {
        self.iotlb.get(space, iova).filter(|mapping| {
            (mapping.write_known() || !want.dirty || mutant!(IotlbHitForgetsDirty))
                && (mapping.write() || !want.write)
                && (mapping.read() || !want.read)
        })
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

    #[inline]
    fn walk(&mut self, space: &AddressSpace, iova: u64, want: Want) -> Result<Leaf, FaultReason> {
        let limits = self.limits;
        let memory = self.view.get_or_init(|| self.memory.view());
        let caches = RefCell::new(PagingCaches {
            iotlb: &mut *self.iotlb,
            clock: &mut *self.clock,
            audit: self.audit.as_deref_mut(),
        });
        let caches = (self.config.caching != Caching::None).then_some(&caches);
        let nested = matches!(space.stages, Stages::Nested(..));
        let doubted = self.config.caching != Caching::Adversarial;
        let shortcuts = Shortcuts::new(caches, space.space, nested, doubted);
        // Second-stage entries are those of the domain, whatever PASID uses them (§6.2.5).
        let of_domain = Shortcuts::new(caches, Space::of_domain(space.space.domain_id()), false, doubted);
        let second_tables = SecondStageTables { memory, shortcuts: of_domain };
        match space.stages {
            Stages::First(first) => first.walk(&InMemory { memory, shortcuts }, limits, iova, want),
            Stages::Second(second) => second.walk(&second_tables, limits, iova, want),
            Stages::Nested(first, second) => {
                let tables = Nested { memory, second, second_tables: &second_tables, limits, shortcuts };
                let levels = if mutant!(NestedForgetsLevelFive) { 4 } else { first.levels };
                let first = FirstStage { levels, ..first };
                let outer = first.walk(&tables, limits, iova, want)?;
                let offset = iova & ((1 << outer.size_log2) - 1);
                // First-stage write permission decides whether this may become a write at all.
                let want = Want { dirty: want.dirty && outer.write, ..want };
                let address = outer.address | offset;
                let inner = second.walk(&second_tables, limits, address, want)?;
                // The page is as large as the smaller of the two.
                let size_log2 = outer.size_log2.min(inner.size_log2);
                let gpa = inner.address | address & ((1 << inner.size_log2) - 1);
                Ok(Leaf {
                    address: gpa >> size_log2 << size_log2,
                    size_log2,
                    read: outer.read && (inner.read || mutant!(NestedIgnoresSecondStageRights)),
                    write: outer.write && (inner.write || mutant!(NestedIgnoresSecondStageRights)),
                    execute: outer.execute,
                })
            }
            Stages::PassThrough => unreachable!("pass-through has no tables"),
        }
    }

    /// §3.9: untranslated addresses are host addresses.
    fn pass_through(&self, iova: u64) -> Result<Translation, FaultReason> {
        if iova >> self.limits.host_address_width != 0 {
            return Err(FaultReason::AddressBeyondHost);
        }
        let leaf = Leaf {
            address: iova >> IDENTITY_SIZE_LOG2 << IDENTITY_SIZE_LOG2,
            size_log2: IDENTITY_SIZE_LOG2,
            read: true,
            write: true,
            execute: false,
        };
        let leaf = without_interrupt_range(leaf, iova)?;
        Ok(identity(iova, leaf.size_log2, Access::READ_WRITE))
    }
}

impl Mapping {
    /// The answer to a request, which may be followed by writes if it is `dirty`.
    #[inline]
    fn translation(self, dirty: bool) -> Translation {
        Translation {
            gpa: Gpa(self.gpa()),
            size_log2: self.size_log2(),
            access: Access { read: self.read(), write: self.write() && dirty, execute: false, privileged: false },
            global: false,
            untranslated_only: false,
        }
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
    Translation {
        gpa: Gpa(leaf.address),
        size_log2: leaf.size_log2,
        access: Access {
            read: leaf.read,
            // With No Write honoured (ECAP.NWFS) no right to write is given: dirty was not set for it (§4.2.2).
            write: leaf.write && want.dirty,
            execute: leaf.execute && want.execute,
            privileged: want.privileged,
        },
        global: false,
        untranslated_only: false,
    }
}

fn identity(iova: u64, size_log2: u8, access: Access) -> Translation {
    Translation { gpa: Gpa(iova >> size_log2 << size_log2), size_log2, access, global: false, untranslated_only: false }
}

pub(crate) fn in_interrupt_range(address: u64) -> bool {
    (INTERRUPT_RANGE_FIRST..=INTERRUPT_RANGE_LAST).contains(&address)
}

/// No translation leads into the interrupt range (LGN.4, SGN.8, §3.14). A large page that reaches into it is served in 4 KiB pieces.
#[inline]
fn without_interrupt_range(leaf: Leaf, iova: u64) -> Result<Leaf, FaultReason> {
    let size = 1u64 << leaf.size_log2;
    if leaf.address > INTERRUPT_RANGE_LAST || leaf.address + (size - 1) < INTERRUPT_RANGE_FIRST {
        return Ok(leaf);
    }
    let address = leaf.address | iova & (size - 1) & !0xfff;
    if in_interrupt_range(address) && !mutant!(InterruptRangeUnchecked) {
        return Err(FaultReason::InterruptAddress);
    }
    Ok(Leaf { address, size_log2: 12, ..leaf })
}
