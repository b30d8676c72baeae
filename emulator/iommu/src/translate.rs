//! From an address space and an address to a page (§3.6 to §3.9): through the IOTLB, else by a walk.
use svadev_memory::GuestMemory;
use svadev_mutation::mutant;
use svadev_spec::vtd::tables::Level;
use svadev_spec::vtd::{INTERRUPT_RANGE_FIRST, INTERRUPT_RANGE_LAST, in_interrupt_range};

use crate::address_space::{AddressSpace, FirstStage, Stages};
use crate::cache::{CacheTag, Clock, Leaf, Mapping, PageSize, Rights, TranslationCaches};
use crate::config::{Caching, Limits, UnitConfig};
use crate::counters::Counters;
use crate::observe::{CacheSlot, CachedEntry, Observing};
use crate::request::{Request, RequestKind};
use crate::walk::{Direct, InMemory, Stage, StructureAccess, ThroughSecondStage, WalkFault, Want};

/// The parts of a unit that look up addresses in an address space. One view of memory serves all the structures of a
/// request, so that no change of the memory map falls between them.
pub(crate) struct Walker<'a, M: GuestMemory + 'a> {
    pub(crate) memory: M::View<'a>,
    pub(crate) limits: Limits,
    pub(crate) config: &'a UnitConfig,
    pub(crate) counters: &'a mut Counters,
    pub(crate) clock: &'a mut Clock,
    pub(crate) caches: &'a mut TranslationCaches,
    pub(crate) observer: Observing<'a>,
}

impl<M: GuestMemory> Walker<'_, M> {
    /// Whether anything is cached.
    pub(crate) fn caching(&self) -> bool {
        self.config.caching != Caching::None
    }
}

impl TranslationCaches {
    /// The cached page of `iova`, if the request may use it as it is. Always inlined, for callers know most of what is
    /// wanted and the checks go away.
    #[inline(always)]
    pub(crate) fn serving(&self, space: CacheTag, iova: u64, want: Want) -> Option<Leaf> {
        let mapping = self.get(space, iova)?;
        let leaf = mapping.leaf();
        let enough = (mapping.write_known() || !want.dirty || mutant!(IotlbHitForgetsDirty))
            && (leaf.write() || !want.write)
            && (leaf.read() || !want.read);
        enough.then_some(leaf)
    }
}

impl<M: GuestMemory> Walker<'_, M> {
    pub(crate) fn in_space(&mut self, space: &AddressSpace, request: &Request, want: Want) -> Result<Leaf, WalkFault> {
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

    /// Walks, and caches the page if it is `cacheable`.
    pub(crate) fn by_tables(
        &mut self,
        space: &AddressSpace,
        request: &Request,
        want: Want,
        cacheable: bool,
    ) -> Result<Leaf, WalkFault> {
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
    fn walk(&mut self, space: &AddressSpace, iova: u64, want: Want) -> Result<Leaf, WalkFault> {
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
        let mut structures = StructureAccess {
            caches: (self.config.caching != Caching::None).then_some(&mut *self.caches),
            observer: self.observer.as_deref_mut(),
            doubted: self.config.caching != Caching::Adversarial,
            tag,
        };
        match space.stages {
            Stages::First(first) => {
                let mut tables = InMemory { memory, stage: Stage::First, addresses: Direct, structures };
                first.walk(&mut tables, limits, iova, want)
            }
            Stages::Second(second) => {
                let mut tables = InMemory { memory, stage: Stage::Second, addresses: Direct, structures };
                second.walk(&mut tables, limits, iova, want)
            }
            Stages::Nested(first, second) => {
                let addresses = ThroughSecondStage { second, tag: second_tag, limits };
                let mut tables = InMemory { memory, stage: Stage::First, addresses, structures: structures.under(tag) };
                let top = if mutant!(NestedForgetsLevelFive) { Level::FOUR } else { first.top };
                let first = FirstStage { top, ..first };
                let outer = first.walk(&mut tables, limits, iova, want)?;
                // First-stage write permission decides whether this may become a write at all.
                let want = Want { dirty: want.dirty && outer.write(), ..want };
                let address = outer.at(iova);
                structures.tag = second_tag;
                let mut tables = InMemory { memory, stage: Stage::Second, addresses: Direct, structures };
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
    fn pass_through(&self, iova: u64) -> Result<Leaf, WalkFault> {
        if iova >> self.config.host_address_width != 0 {
            return Err(WalkFault::BeyondHost);
        }
        without_interrupt_range(Leaf::new(iova, PageSize::SIZE_2MIB, Rights::READ_WRITE), iova)
    }
}

#[inline]
pub(crate) fn want(request: &Request, privileged: bool) -> Want {
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
pub(crate) fn given(page: Leaf, want: Want) -> Leaf {
    // With No Write honoured (ECAP.NWFS) no right to write is given: dirty was not set for it (§4.2.2).
    page.limited_to(want.dirty, want.execute, want.privileged)
}

/// Fails if the translation leads into the interrupt range (LGN.4, SGN.8, §3.14). A large page that reaches into it is
/// served in pieces of 4 KiB.
#[inline]
fn without_interrupt_range(leaf: Leaf, iova: u64) -> Result<Leaf, WalkFault> {
    let (address, offsets) = (leaf.address(), leaf.size().mask());
    if address > INTERRUPT_RANGE_LAST || address + offsets < INTERRUPT_RANGE_FIRST {
        return Ok(leaf);
    }
    let address = leaf.at(iova);
    if in_interrupt_range(address) && !mutant!(InterruptRangeUnchecked) {
        return Err(WalkFault::InterruptRange);
    }
    Ok(Leaf::new(address, PageSize::SIZE_4KIB, leaf.rights()))
}
