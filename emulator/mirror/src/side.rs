//! The mirror as one engine has it.
use std::sync::Arc;

use svadev_memory::GuestMemory;
use svadev_spec::mirror::{SpaceEntry, error};

use crate::block::ControlBlock;
use crate::face::{Face, Problem};
use crate::faults::{Answer, Ask, Faults, FaultsState, Ticket, Trouble};
use crate::follower::{Collected, Drop, Follower};
use crate::walk::{Walk, walk};
use crate::words::{Gone, GuestWords, Word};

/// The control block is no memory any more. The mirror is off for this engine: its owner drops every translation of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lost;

/// What of an engine's side is to be saved.
#[derive(Clone, Debug, Default)]
pub struct SideState {
    block: Option<ControlBlock>,
    faults: FaultsState,
}

/// One engine's side of the mirror. Off when it is made.
#[derive(Debug)]
pub struct Side<M: GuestMemory + ?Sized> {
    engine: usize,
    memory: Arc<M>,
    kept: M::Kept,
    face: Arc<Face>,
    block: Option<ControlBlock>,
    follower: Follower,
    faults: Faults,
    /// It has said that it is online, and may use translations.
    online: bool,
    /// The mirror's vector is to be raised.
    wake: bool,
}

impl<M: GuestMemory + ?Sized> Side<M> {
    /// The side of engine `engine`, which has at most `waits` waits for pages at once.
    pub fn new(engine: usize, memory: Arc<M>, face: Arc<Face>, waits: usize) -> Self {
        Self {
            engine,
            memory,
            kept: M::Kept::default(),
            face,
            block: None,
            follower: Follower::default(),
            faults: Faults::new(waits),
            online: false,
            wake: false,
        }
    }

    /// Whether the mirror is on for this engine.
    #[inline]
    pub fn is_on(&self) -> bool {
        self.block.is_some()
    }

    /// What the function's threads share.
    pub fn face(&self) -> &Arc<Face> {
        &self.face
    }

    /// Turns the mirror on. The engine has no translation of it, and is offline until it [arrives](Self::arrive).
    pub fn attach(&mut self, block: ControlBlock) {
        self.block = Some(block);
        self.faults.start();
        self.follower = Follower::default();
    }

    /// Turns the mirror off. Its owner has dropped every translation, and nobody waits. With `tell`, the control block
    /// says so; otherwise nothing is written.
    pub fn detach(&mut self, tell: bool) {
        if tell && self.is_on() {
            let _lost_is_off = self.with(|words, follower, _| follower.rest(words));
        }
        self.mute();
        self.block = None;
        self.wake = false;
    }

    /// The control block is out of reach for now, and so are all translations: as if offline, but nothing says so in
    /// the control block. It [arrives](Self::arrive) before it uses one again.
    pub fn mute(&mut self) {
        self.online = false;
        self.face.engine(self.engine).set_online(false);
    }

    /// The memory map has changed. What was kept of it goes.
    pub fn memory_changed(&mut self) {
        self.kept = M::Kept::default();
    }

    /// Goes online, and drops what was posted meanwhile.
    pub fn arrive(&mut self, drop: impl FnMut(Drop)) -> Result<(), Lost> {
        if !self.is_on() {
            return Ok(());
        }
        let posted = self.with(|words, follower, _| follower.arrive(words))?;
        self.online = true;
        self.watch();
        if posted { self.collect(drop) } else { Ok(()) }
    }

    /// Between two slices: drops what was posted, and acknowledges it. Returns whether something was posted. If nothing
    /// was, it costs one load. An engine that is offline arrives, and the result is `true`.
    #[inline]
    pub fn look(&mut self, drop: impl FnMut(Drop)) -> Result<bool, Lost> {
        if !self.is_on() {
            return Ok(false);
        }
        if !self.online {
            self.arrive(drop)?;
            return Ok(true);
        }
        let posted = self.with(|words, follower, _| follower.look(words))?;
        if posted {
            self.collect(drop)?;
        } else {
            self.face.engine(self.engine).looked(self.follower.head());
        }
        Ok(posted)
    }

    #[cold]
    fn collect(&mut self, mut drop: impl FnMut(Drop)) -> Result<(), Lost> {
        let collected = self.with(|words, follower, _| {
            let entries = 1 << words.block.header().invalidations_log2;
            follower.collect(words, entries, &mut drop)
        });
        let Collected { wake, malformed } = match collected {
            Ok(collected) => collected,
            Err(lost) => {
                drop(Drop::Everything);
                return Err(lost);
            }
        };
        self.wake |= wake;
        if malformed {
            self.report(error::BAD_INVALIDATION, 0, Word::InvalidationTail);
        }
        self.face.engine(self.engine).looked(self.follower.head());
        Ok(())
    }

    /// Before the thread sleeps, with no translation in use: goes offline. Whether it may sleep: nothing was posted in
    /// between, and there are no responses. If not, it [arrives](Self::arrive) at once.
    #[must_use = "who must not sleep arrives again"]
    pub fn rest(&mut self) -> Result<bool, Lost> {
        if !self.is_on() || !self.online {
            return Ok(true);
        }
        self.mute();
        self.with(|words, follower, faults| {
            let rests = follower.rest(words)?;
            let asleep = rests && !faults.has_response(words)?;
            // A head out of range was reported when an event was to be sent.
            Ok(asleep && !matches!(faults.may_send(words), Ok(true)))
        })
    }

    fn watch(&self) {
        let watch = self.face.engine(self.engine);
        watch.looked(self.follower.head());
        watch.set_online(true);
    }

    /// Goes offline, whatever responses there are: nobody waits for one. Acknowledges what is posted meanwhile.
    pub fn leave(&mut self, mut drop: impl FnMut(Drop)) -> Result<(), Lost> {
        while self.is_on() && self.online {
            self.mute();
            if !self.with(|words, follower, _| follower.rest(words))? {
                self.arrive(&mut drop)?;
            }
        }
        Ok(())
    }

    /// Walks the tables of an address space. `None`: there is no such address space, or the mirror is off. What is
    /// wrong with the tables was reported.
    pub fn translate(&mut self, asid: u32, address: u64) -> Option<Walk> {
        let space = self.space(asid)?;
        let walk = walk(&self.memory.view(&mut self.kept), space, address);
        if let Walk::Bad(error) = walk {
            self.face.report(Problem { error, asid, address });
        }
        Some(walk)
    }

    /// Reports a page that a walk found, and that is nowhere.
    pub fn bad_frame(&self, asid: u32, address: u64) {
        self.face.report(Problem { error: error::BAD_FRAME, asid, address });
    }

    /// The entry of an address space, if there is one.
    fn space(&mut self, asid: u32) -> Option<SpaceEntry> {
        let at = self.block.as_ref()?.space(asid)?;
        let Ok(word) = self.memory.view(&mut self.kept).load_u64(at) else {
            self.face.report(Problem { error: error::BLOCK_LOST, asid, address: at.0 });
            return None;
        };
        let entry = SpaceEntry::from_bits(word);
        let clean = SpaceEntry::new()
            .with_valid(true)
            .with_five_levels(entry.five_levels())
            .with_root(entry.root())
            .with_generation(entry.generation());
        if entry.valid() && entry != clean {
            self.face.report(Problem { error: error::BAD_SPACE, asid, address: at.0 });
            return None;
        }
        entry.valid().then_some(entry)
    }

    /// Asks for a page, and waits for it. [`work`](Self::work) sends the event. `None`: there is no such address space
    /// any more.
    pub fn ask(&mut self, ask: &Ask) -> Option<Ticket> {
        let generation = self.space(ask.asid)?.generation();
        Some(self.faults.ask(ask, generation))
    }

    /// Nobody waits any more.
    pub fn forget(&mut self, ticket: Ticket) {
        self.faults.forget(ticket);
    }

    /// Sends the events that are in line, or have rested after an AGAIN.
    #[inline]
    pub fn work(&mut self, now_ns: u64) -> Result<(), Lost> {
        if self.is_on() && (self.faults.has_line() || now_ns >= self.faults.next_ns()) {
            let sent = self.with(|words, _, faults| settle(faults.send(words, now_ns)))?;
            self.wake |= self.noted(sent, false);
        }
        Ok(())
    }

    /// The next response that ends a wait, if there is one. Those that nobody waits for are dropped.
    pub fn response(&mut self, now_ns: u64) -> Result<Option<Answer>, Lost> {
        if !self.is_on() {
            return Ok(None);
        }
        let answer = self.with(|words, _, faults| {
            if !faults.has_response(words)? {
                return Ok(Ok(None));
            }
            settle(faults.response(words, now_ns))
        })?;
        Ok(self.noted(answer, None))
    }

    /// When [`work`](Self::work) has something to do without being woken, ns; `u64::MAX` for never.
    #[inline]
    pub fn next_ns(&self) -> u64 {
        if self.is_on() { self.faults.next_ns() } else { u64::MAX }
    }

    /// Whether the mirror's vector must be raised now.
    #[inline]
    pub fn take_wake(&mut self) -> bool {
        std::mem::take(&mut self.wake)
    }

    /// The state of an engine that is offline and has no waits.
    pub fn save(&self) -> SideState {
        SideState { block: self.block, faults: self.faults.save() }
    }

    /// Goes on with a saved state, offline and without translations.
    pub fn restore(&mut self, state: &SideState) {
        self.block = state.block;
        self.faults.restore(&state.faults);
        // An engine without translations may begin anywhere: what is posted from now on is after this.
        self.follower = Follower::default();
    }

    /// Calls with the words as they are in memory now. If they are gone, the mirror is off from now on.
    #[inline]
    fn with<T>(
        &mut self,
        call: impl FnOnce(&GuestWords<'_, M::View<'_>>, &mut Follower, &mut Faults) -> Result<T, Gone>,
    ) -> Result<T, Lost> {
        let Self { block, memory, kept, follower, faults, engine, .. } = self;
        let block = block.as_ref().expect("callers have seen that it is on");
        let result = {
            let view = memory.view(kept);
            call(&GuestWords::new(&view, block, *engine), follower, faults)
        };
        result.map_err(|Gone| self.lose())
    }

    #[cold]
    fn lose(&mut self) -> Lost {
        let address = self.block.as_ref().map_or(0, ControlBlock::base);
        self.face.report(Problem { error: error::BLOCK_LOST, asid: 0, address });
        self.detach(false);
        Lost
    }

    /// The value, or the default after a report of what is wrong.
    fn noted<T>(&self, result: Result<T, Word>, default: T) -> T {
        result.unwrap_or_else(|word| {
            let error = if word == Word::EventHead { error::BAD_EVENT_HEAD } else { error::BAD_RESPONSE_TAIL };
            self.report(error, 0, word);
            default
        })
    }

    fn report(&self, error: u8, asid: u32, word: Word) {
        let Some(block) = &self.block else { return };
        let address = GuestWords::new(&*self.memory, block, self.engine).address(word);
        self.face.report(Problem { error, asid, address });
    }
}

/// Memory that is gone ends everything; an index out of range is only reported.
fn settle<T>(result: Result<T, Trouble>) -> Result<Result<T, Word>, Gone> {
    match result {
        Ok(value) => Ok(Ok(value)),
        Err(Trouble::Bad(word)) => Ok(Err(word)),
        Err(Trouble::Gone) => Err(Gone),
    }
}
