//! Watches the messages between functions and unit.
//!
//! | rule | seen here as |
//! | --- | --- |
//! | one response for each group | a response that no group waits for |
//! | an index rests until its response | a page request whose group is complete and not answered |
//! | nothing for a PASID after `ABORT_PASID` | a request for a PASID that was stopped |
//! | a wait comes after all completions | a wait completed while an older invalidation was not |
//!
//! It also loses invalidations and their completions, if the world has that fault, and has the clock by which they time
//! out.
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use svadev_fabric::{
    Access, AtsError, Bdf, InvalidateAck, InvalidateRequest, InvalidateTag, Iova, PageGroupResponse, PageRequest,
    PageRequestOutcome, Pasid, PrgIndex, Translation, TranslationRequest, Upstream,
};
use svadev_host::{Bus, Platform, Tap};
use svadev_iommu::Unit;
use svadev_memory::Ram;

use crate::checker::Checker;
use crate::coverage::Group as Count;
use crate::log::Log;
use crate::mutant::Mutant;
use crate::rng::Rng;

/// Fewest and most steps until the unit gives up on an invalidation: long for the functions of this world, and several
/// in a row are less than a page request's patience.
const GIVE_UP_STEPS: (u64, u64) = (60, 240);

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
struct State {
    groups: BTreeMap<(Bdf, PrgIndex), Group>,
    /// Groups that get another answer, and groups that were forgotten: their answers are dropped.
    strays: BTreeSet<(Bdf, PrgIndex)>,
    /// Where `ABORT_PASID` has ended and nobody has bound since.
    stopped: BTreeSet<(Bdf, Pasid)>,
    /// Invalidations that a function has still to complete.
    pending: BTreeSet<(Bdf, InvalidateTag)>,
    /// Invalidations that are lost on the way there or back, and the step in which the unit gives up on them.
    lost: BTreeMap<(Bdf, InvalidateTag), u64>,
    /// Lost completions, which arrive after that step.
    late: Vec<(Bdf, InvalidateTag)>,
    /// Invalidations that the unit gave up on, which the function may still complete.
    given_up: BTreeSet<(Bdf, InvalidateTag)>,
    /// The chance that one is lost, in one thousand.
    loss: Option<(Rng, u64)>,
    /// The unit gave up on some, and the kernel has not heard of it.
    timed_out: bool,
    /// How many messages of a kind there were, for mutants that act at some.
    count: u64,
    groups_sent: u64,
}

/// The watcher.
#[derive(Debug)]
pub struct Watch {
    state: Mutex<State>,
    log: Arc<Log>,
    mutant: Option<Mutant>,
}

impl Watch {
    fn new(log: Arc<Log>, mutant: Option<Mutant>) -> Self {
        Self { state: Mutex::default(), log, mutant }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on, invalidations are lost with this chance, in one thousand; `None`: no more.
    pub fn lose_invalidations(&self, loss: Option<(Rng, u64)>) {
        self.state().loss = loss;
    }

    /// Whether the next message about an invalidation is lost; if so, the unit gives up on it after a while.
    fn loses(&self, to: Bdf, tag: InvalidateTag) -> bool {
        let now = self.log.tick();
        let state = &mut *self.state();
        let Some((rng, chance)) = &mut state.loss else { return false };
        let lost = rng.chance(*chance);
        if lost {
            state.lost.insert((to, tag), now + rng.within(GIVE_UP_STEPS.0, GIVE_UP_STEPS.1));
            self.log.count(Count::Fault, "lost_invalidations");
        }
        lost
    }

    /// Whether invalidations timed out since the last call.
    pub fn take_timed_out(&self) -> bool {
        std::mem::take(&mut self.state().timed_out)
    }

    /// The kernel will never answer this group.
    pub fn lose(&self, bdf: Bdf, index: PrgIndex) {
        if let Some(group) = self.state().groups.get_mut(&(bdf, index)) {
            group.lost = true;
        }
    }

    /// The kernel will answer this group twice.
    pub fn expect_duplicate(&self, bdf: Bdf, index: PrgIndex) {
        self.state().strays.insert((bdf, index));
    }

    /// Page requests of a function were reset (PRI *Reset*): it has forgotten its groups.
    pub fn forget_groups(&self, bdf: Bdf) {
        let state = &mut *self.state();
        let gone: Vec<_> = state.groups.iter().filter(|(key, _)| key.0 == bdf).map(|(key, g)| (*key, g.lost)).collect();
        for (key, lost) in gone {
            state.groups.remove(&key);
            if !lost {
                state.strays.insert(key);
            }
        }
    }

    /// Groups without an answer, but for those that will get none; of one PASID or of all.
    pub fn unanswered(&self, of: Option<(Bdf, Pasid)>) -> usize {
        let meant = |key: &(Bdf, PrgIndex), g: &Group| of.is_none_or(|(bdf, p)| key.0 == bdf && g.pasid == Some(p));
        self.state().groups.iter().filter(|(key, g)| !g.lost && meant(key, g)).count()
    }

    /// Whether a group of the PASID will never be answered.
    pub fn has_lost(&self, bdf: Bdf, pasid: Pasid) -> bool {
        self.state().groups.iter().any(|(key, g)| key.0 == bdf && g.lost && g.pasid == Some(pasid))
    }

    /// Groups sent so far.
    pub fn groups_sent(&self) -> u64 {
        self.state().groups_sent
    }

    /// `ABORT_PASID` has ended.
    pub fn stop(&self, bdf: Bdf, pasid: Pasid) {
        self.state().stopped.insert((bdf, pasid));
    }

    /// The PASID is bound again.
    pub fn start(&self, bdf: Bdf, pasid: Pasid) {
        self.state().stopped.remove(&(bdf, pasid));
    }

    fn check_not_stopped(&self, what: &str, bdf: Bdf, pasid: Option<Pasid>) {
        if let Some(pasid) = pasid {
            let stopped = self.state().stopped.contains(&(bdf, pasid));
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
        let mut state = self.state();
        state.count += 1;
        state.count.is_multiple_of(every)
    }
}

/// Gives up on what was lost long enough ago. With it the unit forgets all that is not completed (VT-d 4.1 §6.5.2.10).
pub fn give_up<P: Platform<Tap = Watcher>>(bus: &Bus<P>) {
    let watch = bus.tap();
    let now = watch.log.tick();
    let due = watch.state().lost.iter().find(|&(_, &step)| step <= now).map(|(&key, _)| key);
    let Some((bdf, tag)) = due else { return };
    watch.log.event(format_args!("{bdf} invalidation {} timed out", tag.number));
    let mut late = Vec::new();
    bus.give_up_on(|_| {
        let state = &mut *watch.state();
        state.lost.clear();
        state.given_up.append(&mut state.pending);
        state.timed_out = true;
        late = std::mem::take(&mut state.late);
        Some(bdf)
    });
    for (bdf, tag) in late {
        bus.invalidate_complete(bdf, tag);
    }
}

/// Sends a Stop Marker of a function (PCIe 6.0 §10.4.1.2): no more page requests of the PASID follow, and no answer.
pub fn stop_marker<P: Platform<Tap = Watcher>>(bus: &Bus<P>, requester: Bdf, pasid: Pasid) {
    let (iova, prg_index) = (Iova(0), PrgIndex::from_low_bits(0));
    let request = PageRequest { requester, pasid: Some(pasid), iova, access: Access::default(), prg_index, last: true };
    bus.page_request(request);
}

/// The watcher as a machine has it: a machine that goes on where another one ended has the same.
#[derive(Clone, Debug)]
pub struct Watcher(Arc<Watch>);

impl Watcher {
    /// A watcher that has seen nothing.
    pub fn new(log: Arc<Log>, mutant: Option<Mutant>) -> Self {
        Self(Arc::new(Watch::new(log, mutant)))
    }
}

impl std::ops::Deref for Watcher {
    type Target = Watch;

    fn deref(&self) -> &Watch {
        &self.0
    }
}

impl Tap<Ram> for Watcher {
    fn translate(
        &self,
        mut request: TranslationRequest,
        next: impl FnOnce(TranslationRequest) -> Result<Translation, AtsError>,
    ) -> Result<Translation, AtsError> {
        self.check_not_stopped("translation request", request.requester, request.pasid);
        if let Some(pasid) = request.pasid
            && self.strikes(Mutant::WrongPasid, 16)
        {
            request.pasid = Some(Pasid::from_low_bits(u64::from(pasid.get() ^ 1)));
        }
        let mut result = next(request);
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

    fn page_request(
        &self,
        mut request: PageRequest,
        next: impl FnOnce(PageRequest) -> PageRequestOutcome,
    ) -> PageRequestOutcome {
        let PageRequest { requester, pasid, last, access, .. } = request;
        if last && !access.read && !access.write {
            let outcome = next(request);
            self.log
                .event(format_args!("{requester} stop marker for PASID {:?} -> {outcome:?}", pasid.map(Pasid::get)));
            return outcome;
        }
        if self.mutant == Some(Mutant::ReuseIndex)
            && let Some(&(_, index)) =
                self.state().groups.iter().find(|(key, g)| key.0 == requester && g.complete).map(|(key, _)| key)
        {
            request.prg_index = index;
        }
        let prg_index = request.prg_index;
        self.check_not_stopped("page request", requester, pasid);
        let key = (requester, prg_index);
        {
            let mut state = self.state();
            let group = state.groups.entry(key).or_insert(Group { pasid, complete: false, lost: false });
            let reused = group.complete || group.pasid != pasid;
            group.complete = last;
            state.groups_sent += u64::from(last);
            drop(state);
            self.log.check(Checker::IndexRests, !reused, || {
                format!("{requester} uses group {} before its response", prg_index.get())
            });
        }
        let outcome = next(request);
        if last && outcome == PageRequestOutcome::Dropped {
            self.state().groups.remove(&key);
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

    fn invalidate_complete(&self, requester: Bdf, tag: InvalidateTag, next: impl Fn(Bdf, InvalidateTag)) {
        if self.strikes(Mutant::AckTwice, 8) {
            self.state().pending.remove(&(requester, tag));
        }
        let late = self.state().given_up.remove(&(requester, tag));
        let known = late || self.state().pending.remove(&(requester, tag));
        self.log.check(Checker::Acknowledge, known, || {
            format!("{requester} completes invalidation {} that is not pending", tag.number)
        });
        self.log.event(format_args!("{requester} completes invalidation {}", tag.number));
        if late {
            self.log.count(Count::Path, "invalidation completed too late");
        } else if self.loses(requester, tag) {
            let state = &mut *self.state();
            state.pending.insert((requester, tag));
            state.late.push((requester, tag));
            self.log.event(format_args!("which does not arrive in time"));
            return;
        }
        if self.mutant == Some(Mutant::EarlyAck) || self.strikes(Mutant::LoseCompletion, 8) {
            return;
        }
        next(requester, tag);
    }

    fn invalidate(
        &self,
        to: Bdf,
        request: InvalidateRequest,
        next: impl FnOnce(InvalidateRequest) -> InvalidateAck,
    ) -> InvalidateAck {
        if self.strikes(Mutant::SkipDeviceTlb, 4) {
            return InvalidateAck::Done;
        }
        let lost = self.loses(to, request.tag);
        let ack = if lost { InvalidateAck::Pending } else { next(request) };
        if ack == InvalidateAck::Pending {
            self.state().pending.insert((to, request.tag));
        }
        self.log.event(format_args!(
            "{to} invalidate {} {:?} {:?} -> {}",
            request.tag.number,
            request.pasid.map(Pasid::get),
            request.range,
            if lost { "lost".into() } else { format!("{ack:?}") }
        ));
        if self.mutant == Some(Mutant::EarlyAck) { InvalidateAck::Done } else { ack }
    }

    fn page_group_response(&self, to: Bdf, response: PageGroupResponse, next: impl Fn(PageGroupResponse)) {
        let key = (to, response.prg_index);
        let expected = {
            let state = &mut *self.state();
            match state.groups.get(&key) {
                Some(group) if group.complete => state.groups.remove(&key).is_some(),
                _ => state.strays.remove(&key),
            }
        };
        let (index, code) = (response.prg_index.get(), response.code);
        self.log
            .check(Checker::OneResponse, expected, || format!("group {index} of {to} is answered and nobody asked"));
        self.log.event(format_args!("{to} response to group {index}: {code:?}"));
        if !self.strikes(Mutant::LoseAnswer, 8) {
            next(response);
        }
    }

    fn inside<T>(&self, unit: &mut Unit<Arc<Ram>>, call: impl FnOnce(&mut Unit<Arc<Ram>>) -> T) -> T {
        let waits = unit.counters().waits;
        let before = self.state().pending.clone();
        let result = call(unit);
        if unit.counters().waits != waits {
            let early = before.intersection(&self.state().pending).next().copied();
            self.log.check(Checker::WaitOrder, early.is_none(), || {
                let (bdf, tag) = early.expect("there is one");
                format!("a wait completed before invalidation {} of {bdf} did", tag.number)
            });
        }
        result
    }
}
