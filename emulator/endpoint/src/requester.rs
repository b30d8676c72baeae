//! The ATS requester: from an address of a process to memory of this one, through the device TLB or the IOMMU.
#![allow(unsafe_code, reason = "turns host windows of guest memory into spans")]
use std::collections::BTreeMap;
use std::ptr::NonNull;
use std::sync::{Arc, OnceLock};

use svadev_fabric::{
    Access, Bdf, CachedUse, Gpa, InvalidateRange, Iova, Pasid, SourceId, Translation, TranslationRequest, Upstream,
};
use svadev_memory::{DeviceMemory, GuestAddress, GuestMemory, HostWindow, MemoryError};
use svadev_mirror::{Answer, ControlBlock, Drop, Lost, Page, Place, Side, Walk};
use svadev_mutation::mutant;
use svadev_spec::mirror::is_asid;

use crate::address::{SpaceId, Target};
use crate::counters::EngineCounters;
use crate::device::{Mail, Platform};
use crate::endpoint::Endpoint;
use crate::gate::Gate;
use crate::mailbox::{Invalidation, Whose};
use crate::span::{Slice, Span};
use crate::tlb::{DeviceTlb, Rights, SIZES_LOG2};

/// Why an address leads nowhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Address translation is off, or the IOMMU refused the request itself: nothing is bound there.
    Blocked,
    /// No translation, or one without the right that is needed: the page may be asked for.
    NotPresent,
    /// The translation leads to no memory, or to memory that forbids the access.
    NoMemory,
}

/// A window of guest memory that a translation leads to.
#[derive(Clone, Copy)]
struct Placed {
    /// First byte of the page.
    host: NonNull<u8>,
    size_log2: u8,
    rights: Rights,
}

/// One engine's requester.
pub struct Requester<P: Platform> {
    bdf: Bdf,
    source: SourceId,
    tlb: DeviceTlb,
    /// Only when uses are audited.
    given: Option<Box<Given>>,
    memory: Arc<P::Memory>,
    upstream: Arc<P::Upstream>,
    counters: Arc<EngineCounters>,
    mirror: Side<P::Memory>,
    device_memory: Arc<OnceLock<Arc<DeviceMemory>>>,
}

// SAFETY: the host pointers in the TLB are addresses of shared mappings, valid from any thread; memory, upstream
// and counters are `Send + Sync` by the bounds and may be moved in their Arcs.
unsafe impl<P: Platform> Send for Requester<P> {}

impl<P: Platform> Requester<P> {
    /// The requester of an endpoint's engine, which has at most `waits` accesses parked at once.
    pub fn new<D: Mail>(
        engine: usize,
        endpoint: &Endpoint<D>,
        memory: Arc<P::Memory>,
        upstream: Arc<P::Upstream>,
        waits: usize,
    ) -> Self {
        let settings = endpoint.settings();
        let tlb = DeviceTlb::new(settings.tlb_entries);
        let given = settings.audit.then(|| Box::new(Given::new(settings.tlb_entries)));
        let mirror = Side::new(engine, Arc::clone(&memory), Arc::clone(endpoint.mirror()), waits);
        Self {
            mirror,
            device_memory: Arc::clone(endpoint.device_memory()),
            bdf: settings.bdf,
            source: settings.source,
            tlb,
            given,
            memory,
            upstream,
            counters: Arc::clone(endpoint.engine_counters(engine)),
        }
    }

    /// The IOMMU in front of it.
    pub fn upstream(&self) -> &P::Upstream {
        &self.upstream
    }

    /// The requester ID.
    pub fn bdf(&self) -> Bdf {
        self.bdf
    }

    /// The endpoint's own address space of a PASID or an ASID, or of requests without one.
    #[inline]
    pub fn space(&self, pasid: Option<Pasid>) -> SpaceId {
        let source = match pasid {
            Some(pasid) if is_asid(pasid.get()) => SourceId::MIRROR,
            _ => self.source,
        };
        SpaceId::new(source, pasid)
    }

    /// The space of device memory, whose addresses are device addresses.
    #[inline]
    pub fn device_space(&self) -> SpaceId {
        SpaceId::new(SourceId::DEVICE, None)
    }

    /// Drops translations from the device TLB.
    pub fn invalidate(&mut self, invalidation: Invalidation) {
        if invalidation == Invalidation::ALL {
            // The memory map may have changed.
            self.mirror.memory_changed();
        }
        self.tlb.invalidate(invalidation);
    }

    /// The engine's side of the mirror.
    pub fn mirror(&self) -> &Side<P::Memory> {
        &self.mirror
    }

    /// The engine's side of the mirror, to ask for pages and to save it.
    pub fn mirror_mut(&mut self) -> &mut Side<P::Memory> {
        &mut self.mirror
    }

    /// Turns the mirror on for this engine, which is online and has no translation of it. Without bus mastering it
    /// begins when that comes.
    pub fn mirror_attach(&mut self, block: ControlBlock, gate: Gate) {
        self.mirror.attach(block);
        self.mirror_look(gate);
    }

    /// Turns the mirror off: drops its translations. No access of the mirror is parked any more. With `tell`, the
    /// control block says so.
    pub fn mirror_detach(&mut self, tell: bool) {
        self.mirror_lost();
        self.mirror.detach(tell);
    }

    /// Drops what the driver has posted, and acknowledges it. Returns whether the driver had posted something, or the
    /// engine has come online.
    ///
    /// An engine that was offline for the mirror goes online. It calls this after it emptied its mailbox and before it
    /// uses a translation, and again between two slices. Without bus mastering the control block is out of reach, and
    /// no translation can be used.
    #[inline]
    pub fn mirror_look(&mut self, gate: Gate) -> bool {
        if !self.mirror.is_on() {
            return false;
        }
        if !gate.bus_master {
            self.mirror.mute();
            return false;
        }
        let tlb = &mut self.tlb;
        match self.mirror.look(|drop| drop_from(tlb, drop)) {
            Ok(posted) => posted,
            Err(Lost) => self.mirror_lost(),
        }
    }

    /// Goes offline for the mirror, with no translation in use. `false`: something was posted, or there is a response.
    /// Then it arrives at once.
    #[must_use = "who must not sleep arrives again"]
    pub fn mirror_rest(&mut self, gate: Gate) -> bool {
        if !gate.bus_master {
            self.mirror.mute();
        }
        match self.mirror.rest() {
            Ok(rests) => rests,
            Err(Lost) => !self.mirror_lost(),
        }
    }

    /// Goes offline for the mirror, whatever responses there are: no access is parked.
    pub fn mirror_leave(&mut self, gate: Gate) {
        if !gate.bus_master {
            self.mirror.mute();
        }
        let tlb = &mut self.tlb;
        if self.mirror.leave(|drop| drop_from(tlb, drop)) == Err(Lost) {
            self.mirror_lost();
        }
    }

    /// The next response of the mirror's driver that ends a wait.
    pub fn mirror_response(&mut self, gate: Gate, now_ns: u64) -> Option<Answer> {
        if !gate.bus_master {
            return None;
        }
        self.mirror.response(now_ns).unwrap_or_else(|Lost| {
            self.mirror_lost();
            None
        })
    }

    /// Sends the mirror's events.
    #[inline]
    pub fn mirror_work(&mut self, gate: Gate, now_ns: u64) {
        if gate.bus_master && self.mirror.work(now_ns) == Err(Lost) {
            self.mirror_lost();
        }
    }

    /// The mirror is gone, and with it what it said.
    #[cold]
    fn mirror_lost(&mut self) -> bool {
        drop_from(&mut self.tlb, Drop::Everything);
        true
    }

    /// Forgets the translations of some bytes, at most 64 KiB and not across a multiple of it. What a slice holds stays
    /// good for the slice: the translations are as valid as before.
    pub fn drop_range(&mut self, space: SpaceId, iova: u64, len: u64) {
        debug_assert!((1..=64 << 10).contains(&len));
        let first = iova >> SIZES_LOG2[0];
        for page in first..=(iova + (len - 1)) >> SIZES_LOG2[0] {
            let range = InvalidateRange::Naturally { start: Iova(page << SIZES_LOG2[0]), size_log2: SIZES_LOG2[0] };
            self.tlb.invalidate(Invalidation { whose: Whose::Space(space), range });
        }
    }

    /// The memory at an address, to the end of its page. A cached translation without the needed right is asked for
    /// again: software may raise rights in a table without invalidating, so that only asking tells.
    pub fn access<'s>(&mut self, slice: &'s Slice, target: Target) -> Result<Span<'s>, Refusal> {
        if !slice.gate.allows(target.space) {
            return Err(Refusal::Blocked);
        }
        match self.cached(slice, target) {
            Some(span) => Ok(span),
            None => self.translate(slice, target),
        }
    }

    /// As [`access`](Self::access), where the device TLB has the translation.
    #[inline]
    fn cached<'s>(&self, slice: &'s Slice, target: Target) -> Option<Span<'s>> {
        let (start, page) = self.cached_page(slice, target)?;
        Some(page.skip(usize::try_from(target.iova - start).expect("below 1 GiB")))
    }

    /// The page around an address, where the device TLB has its translation: its first address, and all of it.
    #[inline]
    pub fn cached_page<'s>(&self, slice: &'s Slice, target: Target) -> Option<(u64, Span<'s>)> {
        if !slice.gate.allows(target.space) {
            return None;
        }
        let hit = self.tlb.lookup(target.space, target.iova)?;
        let placed = Placed { host: hit.host, size_log2: hit.size_log2, rights: hit.rights };
        placed.rights.allow(target).then(|| {
            self.counters.tlb_hits.add(1);
            if self.given.is_some() {
                self.audit_use(target, hit.size_log2);
            }
            (target.iova & !low_mask(hit.size_log2), Self::span(slice, target, placed))
        })
    }

    /// Whether every use of a translation is to be told to the IOMMU.
    pub fn is_audited(&self) -> bool {
        self.given.is_some()
    }

    /// All of a page.
    #[inline]
    fn span<'s>(slice: &'s Slice, target: Target, placed: Placed) -> Span<'s> {
        debug_assert!(placed.rights.allow(target));
        let len = usize::try_from(1u64 << placed.size_log2).expect("at most 1 GiB");
        // SAFETY: `place` found the whole page inside one host window, readable or writable as `rights` say. The window
        // is valid until this engine acknowledges a memory change, which drops it from the TLB; that happens when the
        // engine empties its mailbox, never during a slice (`copy::Slice`).
        unsafe { Span::new(slice, placed.host, len) }
    }

    /// Asks the IOMMU, and keeps the answer where that is allowed.
    fn translate<'s>(&mut self, slice: &'s Slice, target: Target) -> Result<Span<'s>, Refusal> {
        self.counters.translations.add(1);
        let request = TranslationRequest {
            requester: self.bdf,
            pasid: target.space.pasid(),
            iova: Iova(target.iova),
            access: target.access(),
        };
        if target.space.source() == SourceId::MIRROR {
            return self.translate_mirror(slice, target);
        }
        // PCIe 6.0 §10.2.3: UR and CA end the request; there is no page to ask for.
        let translation = match target.space.source() {
            SourceId::IDENTITY | SourceId::DEVICE => identity(request),
            _ => self.upstream.translate(request).map_err(|_| Refusal::Blocked)?,
        };
        if !translation.access.allows(target.access()) {
            self.counters.not_present.add(1);
            return Err(Refusal::NotPresent);
        }
        let placed = self.place(target, translation)?;
        Ok(self.keep(slice, target, translation, placed))
    }

    /// Walks the driver's tables, and keeps the answer.
    fn translate_mirror<'s>(&mut self, slice: &'s Slice, target: Target) -> Result<Span<'s>, Refusal> {
        let asid = target.space.pasid().map_or(0, Pasid::get);
        let Page { place, size_log2, writable } = match self.mirror.translate(asid, target.iova) {
            None => return Err(Refusal::Blocked),
            Some(Walk::Page(page)) if page.writable || !target.write => page,
            Some(Walk::Page(_) | Walk::Missing) => {
                self.counters.not_present.add(1);
                return Err(Refusal::NotPresent);
            }
            Some(Walk::Bad(_)) => return Err(Refusal::NoMemory),
        };
        let gpa = match place {
            Place::Guest(gpa) => gpa,
            Place::Device(first) => Gpa(first),
        };
        let access = if writable { Access::READ_WRITE } else { Access::READ };
        let translation = Translation { gpa, size_log2, access, global: false, untranslated_only: false };
        let placed = match place {
            Place::Guest(_) => self.place(target, translation),
            Place::Device(_) => self.place_in_device_memory(target, translation),
        };
        let placed = placed.inspect_err(|_| self.mirror.bad_frame(asid, target.iova))?;
        Ok(self.keep(slice, target, translation, placed))
    }

    /// The span of a translation, which is kept in the device TLB where that is allowed.
    fn keep<'s>(&mut self, slice: &'s Slice, target: Target, translation: Translation, placed: Placed) -> Span<'s> {
        let page = Self::span(slice, target, placed);
        let span = page.skip(usize::try_from(target.iova & low_mask(placed.size_log2)).expect("below 1 GiB"));
        // PCIe 6.0 §10.2.3: with U set, only untranslated requests are allowed; the answer serves this access and no
        // other.
        if translation.untranslated_only && !mutant!(UntranslatedOnlyIsKept) {
            return span.once();
        }
        self.tlb.insert(target.space, target.iova, placed.size_log2, placed.host, placed.rights);
        self.keep_given(target, translation, placed.size_log2);
        span
    }

    /// Remembers for the audit where an entry leads that was just put into the device TLB.
    fn keep_given(&mut self, target: Target, translation: Translation, size_log2: u8) {
        let Some(given) = &mut self.given else { return };
        if given.is_full() {
            // Dropping translations is always allowed, and keeps the two in step.
            self.tlb.clear();
            given.pages.clear();
        } else {
            let within = target.iova & low_mask(translation.size_log2) & !low_mask(size_log2);
            given.insert(target, size_log2, translation.gpa.0 + within);
        }
    }

    /// Tells the IOMMU that an entry is used.
    #[cold]
    fn audit_use(&self, target: Target, size_log2: u8) {
        let gpa = self.given.as_ref().and_then(|given| given.gpa(target, size_log2));
        let gpa = gpa.expect("every entry of the device TLB came with an address");
        if target.space.source() != SourceId::UNIT {
            return;
        }
        let Target { space, iova, .. } = target;
        self.upstream.audit_use(CachedUse {
            requester: self.bdf,
            pasid: space.pasid(),
            iova: Iova(iova),
            gpa: Gpa(gpa),
            access: target.access(),
        });
    }

    /// Finds the page in guest memory: the largest size the TLB knows that both the translation and one host window
    /// cover.
    fn place(&self, target: Target, translation: Translation) -> Result<Placed, Refusal> {
        if target.space.source() == SourceId::DEVICE {
            return self.place_in_device_memory(target, translation);
        }
        Self::place_by(target, translation, |gpa| match self.memory.window(GuestAddress(gpa)) {
            Ok(window) => Some(window),
            // The VMM has no file for it, but it may be our own BAR.
            Err(MemoryError::Unreachable(_)) => self.device_memory.get()?.window_at_bar(gpa),
            Err(_) => None,
        })
    }

    /// [`place`](Self::place) in device memory.
    fn place_in_device_memory(&self, target: Target, translation: Translation) -> Result<Placed, Refusal> {
        Self::place_by(target, translation, |address| self.device_memory.get()?.window(address))
    }

    /// [`place`](Self::place) in the memory that `window` finds.
    fn place_by(
        target: Target,
        translation: Translation,
        window: impl Fn(u64) -> Option<HostWindow>,
    ) -> Result<Placed, Refusal> {
        for &size_log2 in SIZES_LOG2.iter().rev().filter(|&&s| s <= translation.size_log2.max(SIZES_LOG2[0])) {
            // The translation covers `1 << translation.size_log2` bytes from `gpa`; this is the piece around the
            // address.
            let within = target.iova & low_mask(translation.size_log2) & !low_mask(size_log2);
            let gpa = translation.gpa.0.checked_add(within).ok_or(Refusal::NoMemory)?;
            let window = window(gpa).ok_or(Refusal::NoMemory)?;
            let Some(before) = gpa.checked_sub(window.gpa.0) else { return Err(Refusal::NoMemory) };
            if window.len.checked_sub(before).is_none_or(|left| left < 1 << size_log2) {
                continue;
            }
            if !(if target.write { window.writable } else { window.readable }) {
                return Err(Refusal::NoMemory);
            }
            let before = usize::try_from(before).map_err(|_| Refusal::NoMemory)?;
            // SAFETY: `before` is inside the window (above), which is one mapping.
            let host = unsafe { window.host.add(before) };
            let rights = Rights {
                read: translation.access.read && window.readable,
                write: translation.access.write && window.writable,
            };
            return Ok(Placed { host, size_log2, rights });
        }
        Err(Refusal::NoMemory)
    }
}

/// Where the entries of the device TLB lead in guest memory: they themselves know only the place in this process.
/// Drops from a device TLB what the mirror's driver says.
fn drop_from(tlb: &mut DeviceTlb, drop: Drop) {
    if mutant!(MirrorDropsNothing) {
        return;
    }
    match drop {
        Drop::Everything => {
            tlb.invalidate(Invalidation { whose: Whose::Source(SourceId::MIRROR), range: InvalidateRange::All });
        }
        Drop::Range { asid, first, last } => {
            let space = SpaceId::new(SourceId::MIRROR, Some(Pasid::from_low_bits(asid.into())));
            tlb.invalidate_span(space, first, last);
        }
    }
}

/// Entries that are gone may stand here still; one that came again has replaced its predecessor.
struct Given {
    /// By address space, log2 of the size, and page number.
    pages: BTreeMap<(SpaceId, u8, u64), u64>,
    capacity: usize,
}

impl Given {
    fn new(tlb_entries: usize) -> Self {
        Self { pages: BTreeMap::new(), capacity: 16 * tlb_entries.max(64) }
    }

    fn is_full(&self) -> bool {
        self.pages.len() >= self.capacity
    }

    fn insert(&mut self, target: Target, size_log2: u8, gpa: u64) {
        self.pages.insert((target.space, size_log2, target.iova >> size_log2), gpa);
    }

    /// Where `target` leads through an entry of that size.
    fn gpa(&self, target: Target, size_log2: u8) -> Option<u64> {
        let page = self.pages.get(&(target.space, size_log2, target.iova >> size_log2))?;
        Some(page + (target.iova & low_mask(size_log2)))
    }
}

/// The translation of a function without an IOMMU: every address is the guest-physical one, in pages of 1 GiB, as far
/// as there is memory.
fn identity(request: TranslationRequest) -> Translation {
    let size_log2 = SIZES_LOG2[SIZES_LOG2.len() - 1];
    Translation {
        gpa: Gpa(request.iova.0 & !low_mask(size_log2)),
        size_log2,
        access: Access::READ_WRITE,
        global: false,
        untranslated_only: false,
    }
}

fn low_mask(size_log2: u8) -> u64 {
    if size_log2 >= 64 { u64::MAX } else { (1 << size_log2) - 1 }
}
