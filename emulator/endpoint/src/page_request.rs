//! Page request groups of one function: which index belongs to which engine, and how many requests may be outstanding
//! (PCIe 6.0 §10.4).
//!
//! An index is used again only after its response has come: a late response could otherwise be taken for another
//! group's. So a group whose requester gave up stays *abandoned*, with its share of the allocation, until it is
//! answered.
use std::sync::{Mutex, MutexGuard, PoisonError};

use svadev_fabric::{PageGroupResponse, Pasid, PrgIndex, ResponseCode};
use svadev_mutation::mutant;

/// A group that was allocated, in the hands of whoever waits for it. A move-only value: it goes back to the table
/// exactly once, through [`PrgTable::collect`], [`PrgTable::abandon`] or [`PrgTable::unsent`].
#[derive(Debug)]
#[must_use = "the index stays taken until the group goes back to the table"]
pub struct Group {
    index: PrgIndex,
    pages: u16,
    returned: bool,
}

impl Group {
    /// Its index.
    pub fn index(&self) -> PrgIndex {
        self.index
    }
    /// How many page requests it may hold.
    pub fn pages(&self) -> u16 {
        self.pages
    }
    fn give_back(mut self) -> usize {
        self.returned = true;
        usize::from(self.index.get())
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        debug_assert!(self.returned || std::thread::panicking(), "page request group {:?} was lost", self.index);
    }
}

/// Why no group could be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoGroup {
    /// Software has not enabled page requests (PCIe 6.0 §10.5.2.2).
    Disabled,
    /// A *response failure* stopped the interface until software enables it again (PCIe 6.0 §10.4.2.1).
    Stopped,
    /// All indices or all of the allocation is outstanding. The engine is told when some is free again.
    Starved,
}

/// What happened since the PRI status register was last shown (PCIe 6.0 §10.5.2.3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PriStatus {
    /// A *response failure* was received (*RF*).
    pub response_failure: bool,
    /// A response came for a group that is not outstanding (*UPRGI*).
    pub unexpected_index: bool,
    /// No page request is outstanding now (*Stopped*, once the interface is disabled).
    pub idle: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Free,
    /// Sent, and the engine waits for the answer.
    Waiting,
    /// Sent, and nobody waits any more.
    Abandoned,
    /// Answered; the engine has not looked yet.
    Answered(ResponseCode),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    state: State,
    engine: usize,
    pasid: Option<Pasid>,
    pages: u16,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Inner {
    entries: [Entry; PrgIndex::COUNT],
    /// Where the search for a free index starts: round-robin, so that an index rests as long as possible.
    next: usize,
    /// Indices not free.
    taken: usize,
    /// Page requests outstanding, abandoned ones included.
    outstanding: u32,
    /// *Outstanding Page Request Allocation* (PCIe 6.0 §10.5.2.5).
    allocation: u32,
    enabled: bool,
    stopped: bool,
    /// Not shown yet.
    events: PriStatus,
    /// Engines with work in line for a group, or with an abort or a disable that waits for answers.
    starved: Box<[bool]>,
}

/// The table as a plain value, to be saved and restored. Nobody waits for a group in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PrgState(Inner);

/// The table. Its lock is taken after the IOMMU's and before a mailbox's (the `wake` arguments), and never waited
/// under.
#[derive(Debug)]
pub struct PrgTable {
    inner: Mutex<Inner>,
}

impl PrgTable {
    /// An empty table; nothing may be sent yet.
    pub fn new(engines: usize) -> Self {
        let free = Entry { state: State::Free, engine: 0, pasid: None, pages: 0 };
        Self {
            inner: Mutex::new(Inner {
                entries: [free; PrgIndex::COUNT],
                next: 0,
                taken: 0,
                outstanding: 0,
                allocation: 0,
                enabled: false,
                stopped: false,
                events: PriStatus::default(),
                starved: vec![false; engines].into(),
            }),
        }
    }

    /// The table now.
    ///
    /// # Panics
    /// If an access waits for a group. Abandon the group first: after a restore the access asks again.
    pub fn save(&self) -> PrgState {
        let mut state = PrgState(self.lock().clone());
        state.0.starved.fill(false);
        let waits = |entry: &Entry| matches!(entry.state, State::Waiting | State::Answered(_));
        assert!(!state.0.entries.iter().any(waits), "a group that is waited for cannot be saved");
        state
    }

    /// Goes on with a table that was saved.
    pub fn restore(&self, state: &PrgState) {
        *self.lock() = state.0.clone();
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Every update is complete before the lock is released, and a panic elsewhere does not make it less so.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The PRI control registers changed. Enabling (0 → 1) clears what a failure left (PCIe 6.0 §10.4.2.1).
    /// Calls `wake` for each engine whose line may move.
    pub fn configure(&self, enabled: bool, allocation: u32, wake: impl FnMut(usize)) {
        let mut inner = self.lock();
        if enabled && !inner.enabled {
            inner.stopped = false;
        }
        inner.enabled = enabled;
        inner.allocation = allocation;
        inner.release_line(wake);
    }

    /// A group for at most `wanted` page requests; it may get fewer, at least one.
    pub fn allocate(&self, engine: usize, pasid: Option<Pasid>, wanted: u16) -> Result<Group, NoGroup> {
        debug_assert!(wanted > 0);
        let mut inner = self.lock();
        let inner = &mut *inner;
        if inner.stopped {
            return Err(NoGroup::Stopped);
        }
        if !inner.enabled {
            return Err(NoGroup::Disabled);
        }
        let allocation = if mutant!(AllocationIgnored) { u32::MAX } else { inner.allocation };
        let room = allocation.saturating_sub(inner.outstanding);
        if room == 0 || inner.taken == PrgIndex::COUNT {
            inner.starved[engine] = true;
            return Err(NoGroup::Starved);
        }
        let free = (0..PrgIndex::COUNT)
            .map(|n| (inner.next + n) % PrgIndex::COUNT)
            .find(|&n| inner.entries[n].state == State::Free)
            .expect("`taken` counts the entries that are not free");
        let pages = wanted.min(u16::try_from(room).unwrap_or(u16::MAX));
        inner.entries[free] = Entry { state: State::Waiting, engine, pasid, pages };
        inner.next = (free + 1) % PrgIndex::COUNT;
        inner.taken += 1;
        inner.outstanding += u32::from(pages);
        Ok(Group { index: PrgIndex::from_low_bits(free as u64), pages, returned: false })
    }

    /// A response came. The engine to tell, if one waits for it. `stopped` work of a failure is found by the engines
    /// themselves when they next allocate.
    pub fn answer(&self, response: PageGroupResponse, wake: impl FnMut(usize)) -> Option<usize> {
        let mut inner = self.lock();
        let index = usize::from(response.prg_index.get());
        let entry = &mut inner.entries[index];
        let known = matches!(entry.state, State::Waiting | State::Abandoned)
            // A response for another process's group is not this group's (PCIe 6.0 §10.4.2).
            && (response.pasid.is_none() || response.pasid == entry.pasid || mutant!(ResponseOfAnyPasid));
        if !known {
            inner.events.unexpected_index = true;
            return None;
        }
        let engine = entry.engine;
        let waiting = entry.state == State::Waiting;
        if waiting {
            entry.state = State::Answered(response.code);
        }
        if response.code == ResponseCode::Failure {
            inner.stopped = true;
            inner.events.response_failure = true;
        }
        if !waiting {
            inner.free(index);
            inner.release_line(wake);
        } else if response.code == ResponseCode::Failure {
            inner.release_line(wake);
        }
        waiting.then_some(engine)
    }

    /// Whether the group was answered, and how; then it is free again.
    pub fn collect(&self, group: Group, wake: impl FnMut(usize)) -> Result<ResponseCode, Group> {
        let mut inner = self.lock();
        match inner.entries[usize::from(group.index.get())].state {
            State::Answered(code) => {
                inner.free(group.give_back());
                inner.release_line(wake);
                Ok(code)
            }
            State::Waiting => Err(group),
            State::Free | State::Abandoned => unreachable!("a group is in the table while somebody holds it"),
        }
    }

    /// Nobody waits for the group any more. Its index and its allocation stay taken until the response comes.
    pub fn abandon(&self, group: Group, wake: impl FnMut(usize)) {
        let mut inner = self.lock();
        let index = group.give_back();
        match inner.entries[index].state {
            State::Waiting if mutant!(IndexReusedUnanswered) => inner.free(index),
            State::Waiting => inner.entries[index].state = State::Abandoned,
            State::Answered(_) => {
                inner.free(index);
                inner.release_line(wake);
            }
            State::Free | State::Abandoned => unreachable!("a group is in the table while somebody holds it"),
        }
    }

    /// The IOMMU dropped the group's last request, so that no response will come: the group is free at once.
    pub fn unsent(&self, group: Group, wake: impl FnMut(usize)) {
        let mut inner = self.lock();
        let index = group.give_back();
        inner.free(index);
        inner.release_line(wake);
    }

    /// PRI *Reset* (PCIe 6.0 §10.5.2.2), which software may ask for while page requests are disabled: what is
    /// outstanding is forgotten. Whoever waits is answered *failure*: `answered` is called with engine and index.
    pub fn reset(&self, mut answered: impl FnMut(usize, usize)) {
        let mut inner = self.lock();
        for index in 0..PrgIndex::COUNT {
            match inner.entries[index].state {
                State::Waiting => {
                    inner.entries[index].state = State::Answered(ResponseCode::Failure);
                    answered(inner.entries[index].engine, index);
                }
                State::Abandoned => inner.free(index),
                State::Free | State::Answered(_) => {}
            }
        }
    }

    /// Whether a page request of the PASID is unanswered. If so, `engine` is told as it is told of free room: when
    /// something that nobody waits for was answered.
    pub fn is_outstanding(&self, engine: usize, pasid: Pasid) -> bool {
        let mut inner = self.lock();
        let unanswered = |e: &Entry| matches!(e.state, State::Waiting | State::Abandoned) && e.pasid == Some(pasid);
        let found = inner.entries.iter().any(unanswered);
        inner.starved[engine] |= found;
        found
    }

    /// Whether any page request is unanswered. If so, `engine` is told as for [`is_outstanding`](Self::is_outstanding).
    pub fn is_any_outstanding(&self, engine: usize) -> bool {
        let mut inner = self.lock();
        let found = inner.entries.iter().any(|e| matches!(e.state, State::Waiting | State::Abandoned));
        inner.starved[engine] |= found;
        found
    }

    /// For the PRI status register: events are taken, since software clears them there.
    pub fn take_status(&self) -> PriStatus {
        let mut inner = self.lock();
        let idle = inner.taken == 0;
        PriStatus { idle, ..std::mem::take(&mut inner.events) }
    }
}

impl Inner {
    fn free(&mut self, index: usize) {
        let entry = &mut self.entries[index];
        debug_assert_ne!(entry.state, State::Free);
        entry.state = State::Free;
        self.outstanding -= u32::from(entry.pages);
        self.taken -= 1;
    }

    /// Tells the engines that had to wait that it may be worth asking again.
    fn release_line(&mut self, mut wake: impl FnMut(usize)) {
        for (engine, starved) in self.starved.iter_mut().enumerate() {
            if std::mem::take(starved) {
                wake(engine);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn enabled(allocation: u32) -> PrgTable {
        let table = PrgTable::new(2);
        table.configure(true, allocation, |_| ());
        table
    }

    fn response(index: PrgIndex, code: ResponseCode) -> PageGroupResponse {
        PageGroupResponse { pasid: None, prg_index: index, code }
    }

    #[test]
    fn nothing_is_sent_before_software_allows_it() {
        let table = PrgTable::new(1);
        assert_eq!(table.allocate(0, None, 1).unwrap_err(), NoGroup::Disabled);
        table.configure(true, 0, |_| ());
        assert_eq!(table.allocate(0, None, 1).unwrap_err(), NoGroup::Starved);
    }

    #[test]
    fn an_index_is_not_used_again_before_its_response() {
        let table = enabled(1);
        let group = table.allocate(0, None, 8).unwrap();
        let index = group.index();
        assert_eq!(group.pages(), 1, "the allocation allows no more");
        table.abandon(group, |_| ());
        assert_eq!(table.allocate(1, None, 1).unwrap_err(), NoGroup::Starved);
        let mut woken = Vec::new();
        assert_eq!(table.answer(response(index, ResponseCode::Success), |e| woken.push(e)), None);
        assert_eq!(woken, [1], "the engine in line hears of it");
        let group = table.allocate(1, None, 1).unwrap();
        table.unsent(group, |_| ());
        assert!(table.take_status().idle);
    }

    #[test]
    fn a_pasid_is_outstanding_until_its_last_answer() {
        let (table, pasid) = (enabled(u32::MAX), Pasid::new(5).unwrap());
        let group = table.allocate(0, Some(pasid), 1).unwrap();
        let index = group.index();
        table.abandon(group, |_| ());
        assert!(!table.is_outstanding(1, Pasid::MAX));
        assert!(table.is_outstanding(1, pasid));
        let mut woken = Vec::new();
        assert_eq!(table.answer(response(index, ResponseCode::InvalidRequest), |e| woken.push(e)), None);
        assert_eq!(woken, [1], "who asked hears of it");
        assert!(!table.is_outstanding(1, pasid));
    }

    #[test]
    fn all_indices_can_be_outstanding_and_no_more() {
        let table = enabled(u32::MAX);
        let groups: Vec<_> = (0..PrgIndex::COUNT).map(|_| table.allocate(0, None, 1).unwrap()).collect();
        assert_eq!(table.allocate(0, None, 1).unwrap_err(), NoGroup::Starved);
        for group in groups {
            assert_eq!(table.answer(response(group.index(), ResponseCode::Success), |_| ()), Some(0));
            assert_eq!(table.collect(group, |_| ()).unwrap(), ResponseCode::Success);
        }
        assert!(table.take_status().idle);
    }

    #[test]
    fn responses_nobody_asked_for_change_nothing_but_the_status() {
        let table = enabled(4);
        let pasid = Pasid::new(5).unwrap();
        let group = table.allocate(0, Some(pasid), 1).unwrap();
        let other = PageGroupResponse {
            pasid: Some(Pasid::new(6).unwrap()),
            prg_index: group.index(),
            code: ResponseCode::Success,
        };
        assert_eq!(table.answer(other, |_| ()), None);
        assert!(table.take_status().unexpected_index);
        assert!(!table.take_status().unexpected_index);
        let group = table.collect(group, |_| ()).unwrap_err();
        assert_eq!(table.answer(PageGroupResponse { pasid: Some(pasid), ..other }, |_| ()), Some(0));
        assert_eq!(table.answer(PageGroupResponse { pasid: Some(pasid), ..other }, |_| ()), None, "a duplicate");
        assert!(table.take_status().unexpected_index);
        assert_eq!(table.collect(group, |_| ()).unwrap(), ResponseCode::Success);
    }

    #[test]
    fn a_failure_stops_page_requests_until_they_are_enabled_again() {
        let table = enabled(4);
        let group = table.allocate(0, None, 1).unwrap();
        assert_eq!(table.answer(response(group.index(), ResponseCode::Failure), |_| ()), Some(0));
        assert_eq!(table.collect(group, |_| ()).unwrap(), ResponseCode::Failure);
        assert_eq!(table.allocate(0, None, 1).unwrap_err(), NoGroup::Stopped);
        table.configure(true, 4, |_| ());
        assert_eq!(table.allocate(0, None, 1).unwrap_err(), NoGroup::Stopped, "a write that changes nothing");
        table.configure(false, 4, |_| ());
        table.configure(true, 4, |_| ());
        let group = table.allocate(0, None, 1).unwrap();
        table.unsent(group, |_| ());
    }
}
