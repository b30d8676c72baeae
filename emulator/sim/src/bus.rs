//! What lies between the functions and the unit: it carries the messages, and watches them.
//!
//! | rule | seen here as |
//! | --- | --- |
//! | one response for each group | a response that no group waits for |
//! | an index rests until its response | a page request whose group is complete and not answered |
//! | nothing for a PASID after `ABORT_PASID` | a request for a PASID that was stopped |
//! | a wait comes after all completions | a wait completed while an older invalidation was not |
//!
//! It also loses invalidations and their completions, if the world has that fault, and has the clock by which they time out.
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use svadev_accelerator::{FunctionPorts, FunctionShared};
use svadev_fabric::{
    Access, AtsError, Bdf, Delivery, Downstream, InvalidateAck, InvalidateRequest, InvalidateTag, Iova, Msi,
    PageGroupResponse, PageRequest, PageRequestOutcome, Pasid, PrgIndex, Translation, TranslationRequest, Upstream,
};
use svadev_iommu::{Unit, UnitConfig};
use svadev_memory::Ram;

use crate::checker::Checker;
use crate::coverage::Group as Count;
use crate::log::Log;
use crate::mutant::Mutant;
use crate::rng::Rng;

/// Fewest and most steps until the unit gives up on an invalidation: long for the functions of this world, and several in a row are less than
/// a page request's patience.
const GIVE_UP_STEPS: (u64, u64) = (60, 240);

/// Data of the unit's interrupts, by which the kernel tells them apart; as bits of [`Bus::take_interrupts`].
pub mod msi {
    /// A fault was recorded, or the invalidation queue stopped.
    pub const FAULT: u32 = 1;
    /// An invalidation wait with IF completed.
    pub const INVALIDATION: u32 = 2;
    /// There are page requests.
    pub const PAGE_REQUEST: u32 = 4;
}

/// A page request group on the wire.
#[derive(Clone, Copy, Debug)]
struct Group {
    pasid: Option<Pasid>,
    /// Its last request was sent: one response is due.
    complete: bool,
    /// The kernel will not answer it: that is one of the faults.
    lost: bool,
}

#[derive(Debug, Default)]
struct Watch {
    groups: BTreeMap<(Bdf, PrgIndex), Group>,
    /// Groups that were answered and will be once more, and such as were forgotten: their answers are dropped.
    strays: BTreeSet<(Bdf, PrgIndex)>,
    /// Where `ABORT_PASID` has ended and nobody has bound since.
    stopped: BTreeSet<(Bdf, Pasid)>,
    /// Invalidations that a function has still to complete.
    pending: BTreeSet<(Bdf, InvalidateTag)>,
    /// Such as do not arrive, there or back: in which step the unit gives up on them.
    lost: BTreeMap<(Bdf, InvalidateTag), u64>,
    /// Completions among them, which arrive after that.
    late: Vec<(Bdf, InvalidateTag)>,
    /// Such as the unit gave up on, which the function may still complete.
    given_up: BTreeSet<(Bdf, InvalidateTag)>,
    /// Which are lost: the chance, in one thousand.
    loss: Option<(Rng, u64)>,
    /// The unit gave up on some, and the kernel has not heard of it.
    timed_out: bool,
    /// How many messages of a kind there were, for mutants that act at some.
    count: u64,
    groups_sent: u64,
}

/// The link.
#[derive(Debug)]
pub struct Bus {
    unit: Mutex<Unit<Arc<Ram>>>,
    functions: OnceLock<Vec<Arc<FunctionShared>>>,
    watch: Mutex<Watch>,
    interrupts: AtomicU32,
    log: Arc<Log>,
    mutant: Option<Mutant>,
}

/// The unit's view of the bus, while its lock is held.
struct Down<'a>(&'a Bus);

impl Bus {
    /// A bus with a unit, and no functions yet.
    pub fn new(config: UnitConfig, ram: Arc<Ram>, log: Arc<Log>, mutant: Option<Mutant>) -> Self {
        Self {
            unit: Mutex::new(Unit::new(config, ram)),
            functions: OnceLock::new(),
            watch: Mutex::default(),
            interrupts: AtomicU32::new(0),
            log,
            mutant,
        }
    }

    /// Connects the functions: once.
    pub fn connect(&self, functions: Vec<Arc<FunctionShared>>) {
        self.functions.set(functions).expect("functions are connected once");
    }

    fn watch(&self) -> MutexGuard<'_, Watch> {
        self.watch.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn function(&self, bdf: Bdf) -> Option<&Arc<FunctionShared>> {
        self.functions.get()?.iter().find(|f| f.bdf() == bdf)
    }

    /// Every call into the unit comes through here.
    fn with_unit<T>(&self, call: impl FnOnce(&mut Unit<Arc<Ram>>, &Down<'_>) -> T) -> T {
        let mut unit = self.unit.lock().unwrap_or_else(PoisonError::into_inner);
        let waits = unit.counters().waits;
        let before = self.watch().pending.clone();
        let result = call(&mut unit, &Down(self));
        if unit.counters().waits != waits {
            let early = before.intersection(&self.watch().pending).next().copied();
            self.log.check(Checker::WaitOrder, early.is_none(), || {
                let (bdf, tag) = early.expect("there is one");
                format!("a wait completed before invalidation {} of {bdf} did", tag.number)
            });
        }
        result
    }

    /// Reads a 32-bit register.
    pub fn read32(&self, at: u64) -> u32 {
        let mut data = [0; 4];
        self.with_unit(|unit, _| unit.read_register(at, &mut data));
        u32::from_le_bytes(data)
    }

    /// Reads a 64-bit register.
    pub fn read64(&self, at: u64) -> u64 {
        let mut data = [0; 8];
        self.with_unit(|unit, _| unit.read_register(at, &mut data));
        u64::from_le_bytes(data)
    }

    /// Writes a 32-bit register.
    pub fn write32(&self, at: u64, value: u32) {
        self.with_unit(|unit, down| unit.write_register(at, &value.to_le_bytes(), down));
    }

    /// Writes a 64-bit register.
    pub fn write64(&self, at: u64, value: u64) {
        self.with_unit(|unit, down| unit.write_register(at, &value.to_le_bytes(), down));
    }

    /// A Stop Marker of a function (PCIe 6.0 §10.4.1.2): no more page requests of the PASID follow, and no answer.
    pub fn stop_marker(&self, requester: Bdf, pasid: Pasid) {
        let (iova, prg_index) = (Iova(0), PrgIndex::from_low_bits(0));
        let request =
            PageRequest { requester, pasid: Some(pasid), iova, access: Access::default(), prg_index, last: true };
        let outcome = self.with_unit(|unit, down| unit.page_request(request, down));
        self.log.event(format_args!("{requester} stop marker for PASID {pasid} -> {outcome:?}"));
    }

    /// What the unit counted.
    pub fn unit_counters(&self) -> svadev_iommu::Counters {
        self.with_unit(|unit, _| unit.counters().clone())
    }

    /// Which interrupts came since the last call: bits of [`msi`].
    pub fn take_interrupts(&self) -> u32 {
        self.interrupts.swap(0, Ordering::Relaxed)
    }

    /// Invalidations that the unit still waits for.
    pub fn outstanding_invalidations(&self) -> usize {
        self.with_unit(|unit, _| unit.outstanding_invalidations().count())
    }

    /// From now on, invalidations are lost with this chance, in one thousand; `None`: no more.
    pub fn lose_invalidations(&self, loss: Option<(Rng, u64)>) {
        self.watch().loss = loss;
    }

    /// Whether the next message about an invalidation is lost; if so, the unit gives up on it after a while.
    fn loses(&self, to: Bdf, tag: InvalidateTag) -> bool {
        let now = self.log.tick();
        let watch = &mut *self.watch();
        let Some((rng, chance)) = &mut watch.loss else { return false };
        let lost = rng.chance(*chance);
        if lost {
            watch.lost.insert((to, tag), now + rng.within(GIVE_UP_STEPS.0, GIVE_UP_STEPS.1));
            self.log.count(Count::Fault, "lost_invalidations");
        }
        lost
    }

    /// Gives up on what was lost long enough ago. With it the unit forgets all that is not completed (VT-d 4.1 §6.5.2.10).
    pub fn give_up(&self) {
        let now = self.log.tick();
        let due = self.watch().lost.iter().find(|&(_, &step)| step <= now).map(|(&key, _)| key);
        let Some((bdf, tag)) = due else { return };
        self.log.event(format_args!("{bdf} invalidation {} timed out", tag.number));
        let late = self.with_unit(|unit, down| {
            unit.invalidate_timed_out(bdf, down);
            let watch = &mut *down.0.watch();
            watch.lost.clear();
            watch.given_up.append(&mut watch.pending);
            watch.timed_out = true;
            std::mem::take(&mut watch.late)
        });
        for (bdf, tag) in late {
            self.invalidate_complete(bdf, tag);
        }
    }

    /// Whether invalidations timed out since the last call.
    pub fn take_timed_out(&self) -> bool {
        std::mem::take(&mut self.watch().timed_out)
    }

    /// The kernel will never answer this group.
    pub fn lose(&self, bdf: Bdf, index: PrgIndex) {
        if let Some(group) = self.watch().groups.get_mut(&(bdf, index)) {
            group.lost = true;
        }
    }

    /// The kernel will answer this group twice.
    pub fn expect_duplicate(&self, bdf: Bdf, index: PrgIndex) {
        self.watch().strays.insert((bdf, index));
    }

    /// Page requests of a function were reset (PRI *Reset*): it has forgotten its groups.
    pub fn forget_groups(&self, bdf: Bdf) {
        let watch = &mut *self.watch();
        let gone: Vec<_> = watch.groups.iter().filter(|(key, _)| key.0 == bdf).map(|(key, g)| (*key, g.lost)).collect();
        for (key, lost) in gone {
            watch.groups.remove(&key);
            if !lost {
                watch.strays.insert(key);
            }
        }
    }

    /// Groups without an answer, but for those that will get none; of one PASID or of all.
    pub fn unanswered(&self, of: Option<(Bdf, Pasid)>) -> usize {
        let meant = |key: &(Bdf, PrgIndex), g: &Group| of.is_none_or(|(bdf, p)| key.0 == bdf && g.pasid == Some(p));
        self.watch().groups.iter().filter(|(key, g)| !g.lost && meant(key, g)).count()
    }

    /// Whether a group of the PASID will never be answered.
    pub fn has_lost(&self, bdf: Bdf, pasid: Pasid) -> bool {
        self.watch().groups.iter().any(|(key, g)| key.0 == bdf && g.lost && g.pasid == Some(pasid))
    }

    /// Groups sent so far.
    pub fn groups_sent(&self) -> u64 {
        self.watch().groups_sent
    }

    /// `ABORT_PASID` has ended.
    pub fn stop(&self, bdf: Bdf, pasid: Pasid) {
        self.watch().stopped.insert((bdf, pasid));
    }

    /// The PASID is bound again.
    pub fn start(&self, bdf: Bdf, pasid: Pasid) {
        self.watch().stopped.remove(&(bdf, pasid));
    }

    fn check_not_stopped(&self, what: &str, bdf: Bdf, pasid: Option<Pasid>) {
        if let Some(pasid) = pasid {
            let stopped = self.watch().stopped.contains(&(bdf, pasid));
            self.log.check(Checker::AfterAbort, !stopped, || {
                format!("{what} of {bdf} for PASID {pasid} after ABORT_PASID ended")
            });
        }
    }

    /// Whether a mutant strikes now: at every `every`th message of its kind.
    fn strikes(&self, mutant: Mutant, every: u64) -> bool {
        if self.mutant != Some(mutant) {
            return false;
        }
        let mut watch = self.watch();
        watch.count += 1;
        watch.count.is_multiple_of(every)
    }
}

impl Upstream for Bus {
    fn translate(&self, mut request: TranslationRequest) -> Result<Translation, AtsError> {
        self.check_not_stopped("translation request", request.requester, request.pasid);
        if let Some(pasid) = request.pasid
            && self.strikes(Mutant::WrongPasid, 16)
        {
            request.pasid = Some(Pasid::from_low_bits(u64::from(pasid.get() ^ 1)));
        }
        let mut result = self.with_unit(|unit, down| unit.translate(request, down));
        if let Ok(translation) = &mut result {
            match translation.size_log2 {
                21 => self.log.count(Count::Path, "translation of 2 MiB"),
                30 => self.log.count(Count::Path, "translation of 1 GiB"),
                _ => {}
            }
            translation.access.write |= self.mutant == Some(Mutant::GiveWrite) && translation.access.read;
        }
        self.log.event(format_args!(
            "{} translate {:?} {}{} -> {result:x?}",
            request.requester,
            request.pasid.map(Pasid::get),
            request.iova,
            if request.access.write { " write" } else { "" }
        ));
        result
    }

    fn page_request(&self, mut request: PageRequest) -> PageRequestOutcome {
        if self.mutant == Some(Mutant::ReuseIndex)
            && let Some(&(_, index)) =
                self.watch().groups.iter().find(|(key, g)| key.0 == request.requester && g.complete).map(|(key, _)| key)
        {
            request.prg_index = index;
        }
        let PageRequest { requester, pasid, prg_index, last, .. } = request;
        self.check_not_stopped("page request", requester, pasid);
        let key = (requester, prg_index);
        {
            let mut watch = self.watch();
            let group = watch.groups.entry(key).or_insert(Group { pasid, complete: false, lost: false });
            let reused = group.complete || group.pasid != pasid;
            group.complete = last;
            watch.groups_sent += u64::from(last);
            drop(watch);
            self.log.check(Checker::IndexRests, !reused, || {
                format!("{requester} uses group {} before its response", prg_index.get())
            });
        }
        let outcome = self.with_unit(|unit, down| unit.page_request(request, down));
        if last && outcome == PageRequestOutcome::Dropped {
            self.watch().groups.remove(&key);
        }
        self.log.event(format_args!(
            "{requester} page request {:?} {} group {}{} -> {outcome:?}",
            pasid.map(Pasid::get),
            request.iova,
            prg_index.get(),
            if last { " last" } else { "" },
        ));
        outcome
    }

    fn invalidate_complete(&self, requester: Bdf, tag: InvalidateTag) {
        if self.strikes(Mutant::AckTwice, 8) {
            self.watch().pending.remove(&(requester, tag));
        }
        let late = self.watch().given_up.remove(&(requester, tag));
        let known = late || self.watch().pending.remove(&(requester, tag));
        self.log.check(Checker::Acknowledge, known, || {
            format!("{requester} completes invalidation {} that is not pending", tag.number)
        });
        self.log.event(format_args!("{requester} completes invalidation {}", tag.number));
        if late {
            self.log.count(Count::Path, "invalidation completed too late");
        } else if self.loses(requester, tag) {
            let watch = &mut *self.watch();
            watch.pending.insert((requester, tag));
            watch.late.push((requester, tag));
            self.log.event(format_args!("which does not arrive in time"));
            return;
        }
        if self.mutant == Some(Mutant::EarlyAck) || self.strikes(Mutant::LoseCompletion, 8) {
            return;
        }
        self.with_unit(|unit, down| unit.invalidate_complete(requester, tag, down));
    }
}

impl Downstream for Down<'_> {
    fn invalidate(&self, to: Bdf, request: InvalidateRequest) -> InvalidateAck {
        let Some(function) = self.0.function(to) else { return InvalidateAck::Done };
        if self.0.strikes(Mutant::SkipDeviceTlb, 4) {
            return InvalidateAck::Done;
        }
        let lost = self.0.loses(to, request.tag);
        let ack = if lost { InvalidateAck::Pending } else { function.invalidate(request) };
        if ack == InvalidateAck::Pending {
            self.0.watch().pending.insert((to, request.tag));
        }
        self.0.log.event(format_args!(
            "{to} invalidate {} {:?} {:?} -> {}",
            request.tag.number,
            request.pasid.map(Pasid::get),
            request.range,
            if lost { "lost".into() } else { format!("{ack:?}") }
        ));
        if self.0.mutant == Some(Mutant::EarlyAck) { InvalidateAck::Done } else { ack }
    }

    fn page_group_response(&self, to: Bdf, response: PageGroupResponse) {
        let key = (to, response.prg_index);
        let expected = {
            let watch = &mut *self.0.watch();
            match watch.groups.get(&key) {
                Some(group) if group.complete => watch.groups.remove(&key).is_some(),
                _ => watch.strays.remove(&key),
            }
        };
        let (index, code) = (response.prg_index.get(), response.code);
        self.0
            .log
            .check(Checker::OneResponse, expected, || format!("group {index} of {to} is answered and nobody asked"));
        self.0.log.event(format_args!("{to} response to group {index}: {code:?}"));
        if self.0.strikes(Mutant::LoseAnswer, 8) {
            return;
        }
        if let Some(function) = self.0.function(to) {
            function.page_group_response(response);
        }
    }

    fn message_interrupt(&self, _via: Option<Bdf>, msi: Msi) -> Delivery {
        if !self.0.strikes(Mutant::LoseInterrupt, 4) {
            self.0.interrupts.fetch_or(msi.data, Ordering::Relaxed);
        }
        Delivery::Sent
    }
}

/// What a function says to the world around it.
#[derive(Debug)]
pub struct Ports {
    wakes: Vec<AtomicBool>,
    vectors: AtomicU64,
    resets: AtomicU64,
    released: Mutex<Vec<u64>>,
    log: Arc<Log>,
    lose_wakes: bool,
    release_twice: bool,
    wake_count: AtomicU64,
}

impl Ports {
    /// For a function with so many engines.
    pub fn new(engines: usize, log: Arc<Log>, mutant: Option<Mutant>) -> Self {
        Self {
            wakes: (0..engines).map(|_| AtomicBool::new(false)).collect(),
            vectors: AtomicU64::new(0),
            resets: AtomicU64::new(0),
            released: Mutex::default(),
            log,
            lose_wakes: mutant == Some(Mutant::LoseWake),
            release_twice: mutant == Some(Mutant::ReleaseTwice),
            wake_count: AtomicU64::new(0),
        }
    }

    /// Whether the engine was woken since the last call.
    pub fn take_wake(&self, engine: usize) -> bool {
        self.wakes[engine].swap(false, Ordering::Relaxed)
    }

    /// Resets that are over, since the function was made.
    pub fn resets(&self) -> u64 {
        self.resets.load(Ordering::Relaxed)
    }

    /// Tokens of memory changes that are over, since the last call.
    pub fn take_released(&self) -> Vec<u64> {
        std::mem::take(&mut self.released.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Vectors raised so far.
    pub fn vectors(&self) -> u64 {
        self.vectors.load(Ordering::Relaxed)
    }
}

impl FunctionPorts for Ports {
    fn interrupt_pending(&self, _vector: u16) -> bool {
        false
    }
    fn interrupt(&self, vector: u16) {
        self.vectors.fetch_add(1, Ordering::Relaxed);
        self.log.event(format_args!("vector {vector}"));
    }
    fn wake(&self, engine: usize) {
        let count = self.wake_count.fetch_add(1, Ordering::Relaxed);
        if !(self.lose_wakes && count % 4 == 3) {
            self.wakes[engine].store(true, Ordering::Relaxed);
        }
    }
    fn memory_released(&self, token: u64) {
        let times = if self.release_twice && token % 4 == 3 { 2 } else { 1 };
        self.released.lock().unwrap_or_else(PoisonError::into_inner).extend(std::iter::repeat_n(token, times));
    }
    fn reset_done(&self) {
        self.resets.fetch_add(1 + u64::from(self.release_twice), Ordering::Relaxed);
    }
}
