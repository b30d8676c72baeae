//! Who waits for which page: events to the driver, and its responses.
//!
//! Each wait has a slot. A token names the slot and how often it was used, so that a response that comes late, or was
//! never asked for, is known and dropped. No engine waits for the driver: an event that finds no room stays in line,
//! and its access stays parked.
use std::collections::VecDeque;

use svadev_fabric::ResponseCode;
use svadev_memory::GuestMemory;
use svadev_mutation::mutant;
use svadev_spec::mirror::{AGAIN_MOST_MS, EVENT_AGAIN, EVENT_RING, Event, access, response};

use crate::words::{Fence, Gone, GuestWords, Word, Words};

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ask {
    /// The address space.
    pub asid: u32,
    /// The address.
    pub address: u64,
    /// Bytes from there on that will be wanted next, at least 1.
    pub length: u64,
    /// It is written to, not read.
    pub write: bool,
    /// The queue.
    pub queue: u16,
    /// The descriptor's cookie; `None` for an access to a queue's rings.
    pub cookie: Option<u64>,
}

/// A wait for a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket {
    slot: u16,
    generation: u32,
}

impl Ticket {
    /// Its slot: no two tickets that wait have the same.
    pub fn slot(self) -> usize {
        self.slot.into()
    }

    fn token(self) -> u64 {
        u64::from(self.slot) | u64::from(self.generation) << 32
    }
}

/// A wait is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The slot of its ticket.
    pub slot: usize,
    /// What the driver said.
    pub code: ResponseCode,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Free,
    /// In line for the event ring.
    Line,
    /// The driver has the event.
    Sent,
    /// The driver said AGAIN.
    Resting {
        until_ns: u64,
    },
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    generation: u32,
    state: State,
    event: Event,
    /// AGAINs so far.
    again: u32,
}

/// The driver's index of a ring is out of range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// The memory is gone.
    Gone,
    /// The word is out of range.
    Bad(Word),
}

impl From<Gone> for Trouble {
    fn from(Gone: Gone) -> Self {
        Self::Gone
    }
}

/// One engine's waits for pages.
#[derive(Debug)]
pub(crate) struct Faults {
    slots: Box<[Slot]>,
    free: Vec<u16>,
    line: VecDeque<u16>,
    /// No slot rests longer than until then, ns; may be early, never late.
    rest_ns: u64,
    event_tail: u64,
    response_head: u64,
}

/// What outlives a pause: a token of before must never be taken for one of after.
#[derive(Clone, Debug, Default)]
pub(crate) struct FaultsState {
    generations: Box<[u32]>,
    event_tail: u64,
    response_head: u64,
}

impl Faults {
    /// Room for so many waits at once.
    pub(crate) fn new(waits: usize) -> Self {
        let count = u16::try_from(waits).expect("an engine has fewer parts than that");
        let empty = Slot { generation: 0, state: State::Free, event: Event::default(), again: 0 };
        Self {
            slots: vec![empty; waits].into(),
            free: (0..count).rev().collect(),
            line: VecDeque::with_capacity(waits),
            rest_ns: u64::MAX,
            event_tail: 0,
            response_head: 0,
        }
    }

    /// The rings are new: they begin at index 0. Whoever waits goes on waiting, and is asked for again.
    pub(crate) fn start(&mut self) {
        (self.event_tail, self.response_head) = (0, 0);
    }

    pub(crate) fn save(&self) -> FaultsState {
        FaultsState {
            generations: self.slots.iter().map(|slot| slot.generation).collect(),
            event_tail: self.event_tail,
            response_head: self.response_head,
        }
    }

    pub(crate) fn restore(&mut self, state: &FaultsState) {
        for (slot, generation) in self.slots.iter_mut().zip(&state.generations) {
            slot.generation = *generation;
        }
        (self.event_tail, self.response_head) = (state.event_tail, state.response_head);
    }

    /// When something must be done next, ns; `u64::MAX` for never.
    pub(crate) fn next_ns(&self) -> u64 {
        self.rest_ns
    }

    /// Whether an event waits for room.
    pub(crate) fn has_line(&self) -> bool {
        !self.line.is_empty()
    }

    /// Asks for a page. The event is sent by [`send`](Self::send).
    pub(crate) fn ask(&mut self, ask: &Ask, generation: u16) -> Ticket {
        let number = self.free.pop().expect("every part of the engine waits for one page at most");
        let slot = &mut self.slots[usize::from(number)];
        let ticket = Ticket { slot: number, generation: slot.generation };
        slot.event = Event {
            token: ticket.token(),
            address: ask.address,
            length: ask.length,
            cookie: ask.cookie.unwrap_or(0),
            asid: ask.asid,
            queue: ask.queue,
            access: if ask.write { access::WRITE } else { access::READ },
            flags: if ask.cookie.is_none() { EVENT_RING } else { 0 },
            generation: generation.into(),
            ..Event::default()
        };
        (slot.state, slot.again) = (State::Line, 0);
        self.line.push_back(number);
        ticket
    }

    /// Nobody waits any more: a response that comes now is stale.
    pub(crate) fn forget(&mut self, ticket: Ticket) {
        debug_assert_eq!(self.slots[ticket.slot()].generation, ticket.generation);
        if self.slots[ticket.slot()].state == State::Line {
            self.line.retain(|&number| number != ticket.slot);
        }
        self.release(ticket.slot);
    }

    fn release(&mut self, number: u16) {
        let slot = &mut self.slots[usize::from(number)];
        slot.state = State::Free;
        if !mutant!(MirrorTokenReused) {
            slot.generation = slot.generation.wrapping_add(1);
        }
        self.free.push(number);
    }

    /// Sends what is in line and has rested, as far as there is room. Whether the driver must be told: it had read
    /// everything that was sent before, and may not look again by itself.
    pub(crate) fn send<M: GuestMemory + ?Sized>(
        &mut self,
        words: &GuestWords<'_, M>,
        now_ns: u64,
    ) -> Result<bool, Trouble> {
        if now_ns >= self.rest_ns {
            self.end_rests(now_ns);
        }
        if self.line.is_empty() {
            return Ok(false);
        }
        let room = self.room(words)?;
        let first = self.event_tail;
        while self.event_tail - first < room
            && let Some(number) = self.line.pop_front()
        {
            let slot = &mut self.slots[usize::from(number)];
            slot.event.seq = self.event_tail + 1;
            words.store_event(self.event_tail, &slot.event)?;
            slot.state = State::Sent;
            self.event_tail += 1;
        }
        if self.event_tail == first {
            return Ok(false);
        }
        words.store(Word::EventTail, self.event_tail)?;
        words.full_fence(Fence::Event);
        // The driver moves its head, has a full fence, and looks at the tail again. So one of the two sees the other.
        Ok(words.load(Word::EventHead)? == first && !mutant!(MirrorEventWithoutInterrupt))
    }

    /// Whether an event that waits for room has some by now.
    pub(crate) fn may_send<M: GuestMemory + ?Sized>(&self, words: &GuestWords<'_, M>) -> Result<bool, Trouble> {
        Ok(self.has_line() && self.room(words)? > 0)
    }

    fn room<M: GuestMemory + ?Sized>(&self, words: &GuestWords<'_, M>) -> Result<u64, Trouble> {
        let entries = 1u64 << words.block.header().events_log2;
        let unread = self.event_tail.wrapping_sub(words.load(Word::EventHead)?);
        match entries.checked_sub(unread) {
            Some(0) if mutant!(MirrorEventRingOverrun) => Ok(entries),
            Some(room) => Ok(room),
            None => Err(Trouble::Bad(Word::EventHead)),
        }
    }

    fn end_rests(&mut self, now_ns: u64) {
        self.rest_ns = u64::MAX;
        for (slot, number) in self.slots.iter_mut().zip(0..) {
            match slot.state {
                State::Resting { until_ns } if now_ns >= until_ns => {
                    slot.state = State::Line;
                    self.line.push_back(number);
                }
                State::Resting { until_ns } => self.rest_ns = self.rest_ns.min(until_ns),
                _ => {}
            }
        }
    }

    /// The next response that ends a wait.
    pub(crate) fn response<M: GuestMemory + ?Sized>(
        &mut self,
        words: &GuestWords<'_, M>,
        now_ns: u64,
    ) -> Result<Option<Answer>, Trouble> {
        let entries = 1u64 << words.block.header().responses_log2;
        let tail = words.load(Word::ResponseTail)?;
        if tail.wrapping_sub(self.response_head) > entries {
            // What is between is not to be told from nonsense.
            self.response_head = tail;
            words.store(Word::ResponseHead, tail)?;
            return Err(Trouble::Bad(Word::ResponseTail));
        }
        let mut answer = None;
        let first = self.response_head;
        while self.response_head != tail && answer.is_none() {
            let response = words.response(self.response_head)?;
            self.response_head = self.response_head.wrapping_add(1);
            answer = self.answered(response.token, response.code, now_ns);
        }
        if self.response_head != first {
            words.store(Word::ResponseHead, self.response_head)?;
        }
        Ok(answer)
    }

    /// Whether there are responses.
    pub(crate) fn has_response<M: GuestMemory + ?Sized>(&self, words: &GuestWords<'_, M>) -> Result<bool, Gone> {
        Ok(words.load(Word::ResponseTail)? != self.response_head)
    }

    fn answered(&mut self, token: u64, code: u32, now_ns: u64) -> Option<Answer> {
        let number = u16::try_from(token & u64::from(u32::MAX)).ok()?;
        let slot = self.slots.get_mut(usize::from(number))?;
        let fresh = u64::from(slot.generation) == token >> 32 || mutant!(MirrorStaleResponseTaken);
        if !fresh || slot.state != State::Sent {
            return None;
        }
        let code = match code {
            response::AGAIN => {
                let pause_ms = (1u64 << slot.again.min(31)).min(AGAIN_MOST_MS);
                slot.again = slot.again.saturating_add(1);
                slot.event.flags |= EVENT_AGAIN;
                let until_ns = now_ns.saturating_add(pause_ms * 1_000_000);
                slot.state = State::Resting { until_ns };
                self.rest_ns = self.rest_ns.min(until_ns);
                return None;
            }
            response::SUCCESS => ResponseCode::Success,
            response::INVALID => ResponseCode::InvalidRequest,
            _ => ResponseCode::Failure,
        };
        self.release(number);
        Some(Answer { slot: number.into(), code })
    }
}
