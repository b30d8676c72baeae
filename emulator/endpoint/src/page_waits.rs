//! Who waits for which page: what an engine's accesses do when a page is missing.
use std::collections::VecDeque;

use svadev_fabric::{Iova, PageRequest, PageRequestOutcome, Pasid, PrgIndex, ResponseCode, SourceId, Upstream};
use svadev_mirror::Ask;
use svadev_mutation::mutant;

use crate::address::Target;
use crate::device::{Mail, Platform};
use crate::endpoint::Endpoint;
use crate::failure::Failure;
use crate::page_request::{Group, NoGroup};
use crate::requester::{Refusal, Requester};
use crate::span::Slice;
use crate::wait::{Patience, Wait, WaitFor};

/// Most page requests of one group.
pub const MAX_GROUP_PAGES: usize = 64;
const PAGE: u64 = 0x1000;

/// An access that could not be had, and what is to be done about it.
#[derive(Debug)]
pub struct Fault {
    /// What was to be accessed.
    pub target: Target,
    /// Why it could not be.
    pub refusal: Refusal,
    /// Bytes from the target on that will be wanted next, in one piece.
    pub ahead: u64,
    /// Do not ask for the page.
    pub stop: bool,
    /// The queue, for a driver that looks at it.
    pub queue: u16,
    /// The descriptor's cookie; `None` for an access to a queue's rings.
    pub cookie: Option<u64>,
}

/// One engine's parked accesses. `W` names a waiter to the device.
#[derive(Debug)]
pub struct PageWaits<W> {
    engine: usize,
    /// No wait ends before this; `u64::MAX` where there is none. May be early, never late.
    next_deadline_ns: u64,
    /// By page request group index.
    waiters: Box<[Option<W>]>,
    /// By slot of the mirror's tickets.
    mirror_waiters: Box<[Option<W>]>,
    /// Waits for the page request allocation, oldest first. Each waiter is in it at most once.
    line: VecDeque<W>,
    /// Some of the allocation may be free: the line can be tried.
    line_moves: bool,
    /// When the line last moved: a line that moves has no timeout.
    line_moved_ns: u64,
}

/// Whether a wait's time is up: see [`PageWaits::expired`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expiry {
    /// It is not; the next deadline includes it.
    Waiting,
    /// It is, and the access may be tried again.
    Retry,
    /// It is, and the access has failed.
    Failed,
}

impl<W: Copy + PartialEq> PageWaits<W> {
    /// Nothing waits. `parts` is how many waiters there can be at most.
    pub fn new(engine: usize, parts: usize) -> Self {
        Self {
            engine,
            next_deadline_ns: u64::MAX,
            waiters: vec![None; PrgIndex::COUNT].into(),
            mirror_waiters: vec![None; parts].into(),
            line: VecDeque::with_capacity(parts),
            line_moves: false,
            line_moved_ns: 0,
        }
    }

    /// Notes that the engine must run again at `at_ns`, which is returned.
    pub fn deadline(&mut self, at_ns: u64) -> u64 {
        self.next_deadline_ns = self.next_deadline_ns.min(at_ns);
        at_ns
    }

    /// When the first wait may end, ns; `u64::MAX` where there is none.
    #[inline]
    pub fn next_deadline_ns(&self) -> u64 {
        self.next_deadline_ns
    }

    /// Forgets the deadlines: the caller looks at every wait now, and those that go on note theirs again.
    pub fn clear_deadlines(&mut self) {
        self.next_deadline_ns = u64::MAX;
    }

    /// Deals with an access that could not be had: parks it, with page requests under way, or says why it has failed.
    #[expect(clippy::too_many_arguments, reason = "an engine's parts, which live in the device")]
    pub fn fault<P: Platform, D: Mail>(
        &mut self,
        endpoint: &Endpoint<D>,
        requester: &mut Requester<P>,
        slice: &Slice,
        now_ns: u64,
        waiter: W,
        patience: &mut Patience,
        fault: &Fault,
    ) -> Result<Wait, Failure> {
        match fault.refusal {
            Refusal::Blocked => return Err(Failure::Blocked),
            Refusal::NoMemory => return Err(Failure::NoMemory),
            Refusal::NotPresent if fault.target.space.source() == SourceId::MIRROR => {
                return self.mirror_fault(endpoint, requester, now_ns, waiter, patience, fault);
            }
            // Page requests are the IOMMU's; identity knows no missing page.
            Refusal::NotPresent if fault.target.space.source() != SourceId::UNIT => return Err(Failure::PageFault),
            Refusal::NotPresent => {}
        }
        let timeout_ns = endpoint.settings().page_request_timeout_ns;
        if patience.dropped_since_ns.is_some_and(|t| now_ns >= t.saturating_add(timeout_ns)) {
            return Err(Failure::Timeout);
        }
        if fault.stop || (patience.is_fruitless(now_ns, timeout_ns) && !mutant!(SuccessRetriedForever)) {
            return Err(Failure::PageFault);
        }
        let target = fault.target;
        let mut pages = [0; MAX_GROUP_PAGES];
        let most = if patience.narrow { 1 } else { usize::from(endpoint.settings().group_pages).min(pages.len()) };
        let wanted = missing_pages(requester, slice, fault, most, &mut pages);
        let group = match endpoint.prg().allocate(self.engine, target.space.pasid(), wanted) {
            Ok(group) => group,
            Err(NoGroup::Disabled) => return Err(Failure::PageFault),
            Err(NoGroup::Stopped) => return Err(Failure::PageRequestFailed),
            Err(NoGroup::Starved) => {
                endpoint.engine_counters(self.engine).starved.add(1);
                self.line.push_back(waiter);
                self.line_moves = false;
                let deadline_ns = self.deadline(now_ns.saturating_add(timeout_ns));
                return Ok(Wait { target, reason: WaitFor::Line, deadline_ns });
            }
        };
        // Before the first request: the IOMMU may answer from within.
        let index = usize::from(group.index().get());
        self.waiters[index] = Some(waiter);
        match send(endpoint, requester, self.engine, target, &group, &pages) {
            PageRequestOutcome::Accepted => {
                patience.dropped_since_ns = None;
                let deadline_ns = self.deadline(now_ns.saturating_add(timeout_ns));
                Ok(Wait { target, reason: WaitFor::Response(group), deadline_ns })
            }
            PageRequestOutcome::Dropped => {
                self.waiters[index] = None;
                endpoint.prg().unsent(group, |engine| endpoint.credit(engine));
                let since = *patience.dropped_since_ns.get_or_insert(now_ns);
                let retry_ns = self.deadline(now_ns.saturating_add(timeout_ns.div_ceil(16)));
                let reason = WaitFor::Retry { retry_ns };
                Ok(Wait { target, reason, deadline_ns: since.saturating_add(timeout_ns) })
            }
        }
    }

    /// [`fault`](Self::fault) for a page that is missing in the mirror: the driver is sent an event.
    fn mirror_fault<P: Platform, D: Mail>(
        &mut self,
        endpoint: &Endpoint<D>,
        requester: &mut Requester<P>,
        now_ns: u64,
        waiter: W,
        patience: &mut Patience,
        fault: &Fault,
    ) -> Result<Wait, Failure> {
        let timeout_ns = endpoint.settings().page_request_timeout_ns;
        if fault.stop || patience.is_fruitless(now_ns, timeout_ns) {
            return Err(Failure::PageFault);
        }
        let target = fault.target;
        let ask = Ask {
            asid: target.space.pasid().map_or(0, Pasid::get),
            address: target.iova,
            length: fault.ahead.max(1),
            write: target.write,
            queue: fault.queue,
            cookie: fault.cookie,
        };
        let ticket = requester.mirror_mut().ask(&ask).ok_or(Failure::Blocked)?;
        self.mirror_waiters[ticket.slot()] = Some(waiter);
        endpoint.engine_counters(self.engine).page_requests.add(1);
        let deadline_ns = self.deadline(now_ns.saturating_add(timeout_ns));
        Ok(Wait { target, reason: WaitFor::Event(ticket), deadline_ns })
    }

    /// Takes the one who waits with the ticket of this slot, which was answered.
    pub fn take_mirror_waiter<D: Mail>(
        &mut self,
        endpoint: &Endpoint<D>,
        slot: usize,
        code: ResponseCode,
    ) -> Option<W> {
        self.count(endpoint, code);
        self.mirror_waiters[slot].take()
    }

    fn count<D: Mail>(&self, endpoint: &Endpoint<D>, code: ResponseCode) {
        let counters = endpoint.engine_counters(self.engine);
        match code {
            ResponseCode::Success => counters.responses_success.add(1),
            ResponseCode::InvalidRequest => counters.responses_invalid.add(1),
            ResponseCode::Failure => counters.responses_failure.add(1),
        }
    }

    /// Ends a wait whose waiter has gone.
    pub fn cancel<P: Platform, D: Mail>(
        &mut self,
        endpoint: &Endpoint<D>,
        requester: &mut Requester<P>,
        waiter: W,
        wait: Wait,
    ) {
        match wait.reason {
            WaitFor::Response(group) => {
                self.waiters[usize::from(group.index().get())] = None;
                endpoint.prg().abandon(group, |engine| endpoint.credit(engine));
            }
            WaitFor::Event(ticket) => {
                self.mirror_waiters[ticket.slot()] = None;
                requester.mirror_mut().forget(ticket);
            }
            WaitFor::Line => self.line.retain(|w| *w != waiter),
            WaitFor::Retry { .. } => {}
        }
    }

    /// Who waits for the group with this index.
    pub fn waiter(&self, index: usize) -> Option<W> {
        self.waiters[index]
    }

    /// The answer to a group, if there is one; the group is over then.
    pub fn collect<D: Mail>(&mut self, endpoint: &Endpoint<D>, group: Group) -> Result<ResponseCode, Group> {
        let index = usize::from(group.index().get());
        let code = endpoint.prg().collect(group, |engine| endpoint.credit(engine))?;
        self.waiters[index] = None;
        self.count(endpoint, code);
        Ok(code)
    }

    /// Some of the allocation is free.
    pub fn credit(&mut self, now_ns: u64) {
        self.line_moves = true;
        self.line_moved_ns = now_ns;
    }

    /// The next in line that may ask again.
    pub fn next_in_line(&mut self) -> Option<W> {
        if !self.line_moves {
            return None;
        }
        let next = self.line.pop_front();
        self.line_moves = next.is_some();
        next
    }

    /// Whether a wait's time is up, and if so whether it may try again. Otherwise its time is noted. `timeout_ns` is
    /// the endpoint's `page_request_timeout_ns`.
    pub fn expired(&mut self, wait: &Wait, now_ns: u64, timeout_ns: u64) -> Expiry {
        let (due_ns, expiry) = match wait.reason {
            WaitFor::Retry { retry_ns } => (retry_ns, Expiry::Retry),
            WaitFor::Line => (wait.deadline_ns.max(self.line_moved_ns.saturating_add(timeout_ns)), Expiry::Failed),
            WaitFor::Response(_) | WaitFor::Event(_) => (wait.deadline_ns, Expiry::Failed),
        };
        if now_ns >= due_ns {
            return expiry;
        }
        self.deadline(due_ns);
        Expiry::Waiting
    }
}

/// The pages to ask for together, at most `most`: the one that is needed, then those ahead of it that are missing, too.
fn missing_pages<P: Platform>(
    requester: &mut Requester<P>,
    slice: &Slice,
    fault: &Fault,
    most: usize,
    pages: &mut [u64],
) -> u16 {
    let first = fault.target.iova & !(PAGE - 1);
    pages[0] = first;
    let mut count = 1;
    // The piece was checked not to wrap, so its last byte has an address.
    let last = fault.target.iova + (fault.ahead.max(1) - 1);
    let mut page = first;
    while count < most && last - page >= PAGE {
        page += PAGE;
        match requester.access(slice, Target { iova: page, ..fault.target }) {
            Ok(_) => {}
            Err(Refusal::NotPresent) => {
                pages[count] = page;
                count += 1;
            }
            Err(Refusal::Blocked | Refusal::NoMemory) => break,
        }
        // What is there already does not count, but looking has a limit too.
        if page - first >= PAGE * most as u64 {
            break;
        }
    }
    u16::try_from(count).expect("at most 64")
}

/// Sends a group's page requests. The outcome of the last one says whether a response will come.
fn send<P: Platform, D: Mail>(
    endpoint: &Endpoint<D>,
    requester: &Requester<P>,
    engine: usize,
    target: Target,
    group: &Group,
    pages: &[u64],
) -> PageRequestOutcome {
    let count = usize::from(group.pages());
    let counters = endpoint.engine_counters(engine);
    let mut outcome = PageRequestOutcome::Dropped;
    for (n, &page) in pages[..count].iter().enumerate() {
        outcome = requester.upstream().page_request(PageRequest {
            requester: requester.bdf(),
            pasid: target.space.pasid(),
            iova: Iova(page),
            access: target.access(),
            prg_index: group.index(),
            last: n + 1 == count,
        });
        if outcome == PageRequestOutcome::Dropped {
            counters.page_requests_dropped.add(1);
        }
    }
    counters.groups.add(1);
    counters.page_requests.add(count as u64);
    outcome
}
