//! The words of the control block that one engine and the driver share. The protocols are generic over them, so that a
//! model checker can put its own in their place.
use svadev_memory::GuestMemory;
use svadev_spec::mirror::{Event, INVALIDATION_TAIL, Invalidation, Response, WAITERS, engine};
use zerocopy::{IntoBytes, transmute};

use crate::block::ControlBlock;

/// A word that one side writes and the other one reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Word {
    InvalidationTail,
    Waiters,
    Online,
    InvalidationHead,
    EventTail,
    ResponseHead,
    EventHead,
    ResponseTail,
}

/// The full fences of the protocols, each between a store and the load of a word that the other side stores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fence {
    /// Driver: between the invalidation tail and the look at *online*.
    Post,
    /// Engine: between *online* and the look at the tails.
    Arrive,
    /// Engine: between *offline* and the look at the tails.
    Rest,
    /// Engine: between the acknowledgement and the look at *waiters*.
    Acknowledge,
    /// Engine: between the event tail and the look at the event head.
    Event,
    /// Driver: between *waiters* and the look at the acknowledgement, between the event head and the look at the event
    /// tail, between the response tail and the look at *online*.
    Driver,
}

/// The memory of the control block is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Gone;

/// The words as one engine, or the driver with that engine in mind, sees them.
pub(crate) trait Words {
    /// Loads a word, acquire.
    fn load(&self, word: Word) -> Result<u64, Gone>;
    /// Stores a word, release.
    fn store(&self, word: Word, value: u64) -> Result<(), Gone>;
    /// Loads an entry of the invalidation ring. The driver may be writing it.
    fn invalidation(&self, index: u64) -> Result<Invalidation, Gone>;
    /// A full fence.
    fn full_fence(&self, at: Fence);
}

/// The words in guest memory.
pub(crate) struct GuestWords<'a, M: ?Sized> {
    pub(crate) memory: &'a M,
    pub(crate) block: &'a ControlBlock,
    /// Offset of the engine's block.
    engine: u64,
}

impl<'a, M: GuestMemory + ?Sized> GuestWords<'a, M> {
    pub(crate) fn new(memory: &'a M, block: &'a ControlBlock, engine: usize) -> Self {
        Self { memory, block, engine: block.header().engine(engine as u64) }
    }

    fn offset(&self, word: Word) -> u64 {
        match word {
            Word::InvalidationTail => INVALIDATION_TAIL,
            Word::Waiters => WAITERS,
            Word::Online => self.engine + engine::ONLINE,
            Word::InvalidationHead => self.engine + engine::INVALIDATION_HEAD,
            Word::EventTail => self.engine + engine::EVENT_TAIL,
            Word::ResponseHead => self.engine + engine::RESPONSE_HEAD,
            Word::EventHead => self.engine + engine::EVENT_HEAD,
            Word::ResponseTail => self.engine + engine::RESPONSE_TAIL,
        }
    }

    fn load_at(&self, offset: u64) -> Result<u64, Gone> {
        self.memory.load_u64(self.block.at(offset)).map_err(|_| Gone)
    }

    fn store_at(&self, offset: u64, value: u64) -> Result<(), Gone> {
        self.memory.store_u64(self.block.at(offset), value).map_err(|_| Gone)
    }

    fn event_at(&self, index: u64) -> u64 {
        let slot = index & ((1 << self.block.header().events_log2) - 1);
        self.engine + engine::EVENTS + slot * size_of::<Event>() as u64
    }

    fn response_at(&self, index: u64) -> u64 {
        let header = self.block.header();
        let slot = index & ((1 << header.responses_log2) - 1);
        self.engine + header.responses() + slot * size_of::<Response>() as u64
    }

    fn invalidation_at(&self, index: u64) -> u64 {
        let header = self.block.header();
        let slot = index & ((1 << header.invalidations_log2) - 1);
        header.invalidations() + slot * size_of::<Invalidation>() as u64
    }

    /// Writes an event, its sequence number last.
    pub(crate) fn store_event(&self, index: u64, event: &Event) -> Result<(), Gone> {
        let words: [u64; 8] = transmute!(*event);
        let at = self.event_at(index);
        for (n, word) in words.into_iter().enumerate() {
            self.store_at(at + 8 * n as u64, u64::from_le(word))?;
        }
        Ok(())
    }

    /// Reads an event: the driver's part.
    pub(crate) fn event(&self, index: u64) -> Result<Event, Gone> {
        let mut event = Event::default();
        self.memory.read(self.block.at(self.event_at(index)), event.as_mut_bytes()).map_err(|_| Gone)?;
        Ok(event)
    }

    /// Reads a response.
    pub(crate) fn response(&self, index: u64) -> Result<Response, Gone> {
        let at = self.response_at(index);
        let words = [self.load_at(at)?.to_le(), self.load_at(at + 8)?.to_le()];
        Ok(transmute!(words))
    }

    /// Writes a response: the driver's part.
    pub(crate) fn store_response(&self, index: u64, response: &Response) -> Result<(), Gone> {
        self.memory.write(self.block.at(self.response_at(index)), response.as_bytes()).map_err(|_| Gone)
    }

    /// Writes an entry of the invalidation ring: the driver's part.
    pub(crate) fn store_invalidation(&self, index: u64, entry: &Invalidation) -> Result<(), Gone> {
        self.memory.write(self.block.at(self.invalidation_at(index)), entry.as_bytes()).map_err(|_| Gone)
    }

    /// Guest-physical address of a word, for an error report.
    pub(crate) fn address(&self, word: Word) -> u64 {
        self.block.at(self.offset(word)).0
    }
}

impl<M: GuestMemory + ?Sized> Words for GuestWords<'_, M> {
    #[inline]
    fn load(&self, word: Word) -> Result<u64, Gone> {
        self.load_at(self.offset(word))
    }
    fn store(&self, word: Word, value: u64) -> Result<(), Gone> {
        self.store_at(self.offset(word), value)
    }
    fn invalidation(&self, index: u64) -> Result<Invalidation, Gone> {
        let at = self.invalidation_at(index);
        let mut words = [0; 4];
        for (n, word) in words.iter_mut().enumerate() {
            *word = self.load_at(at + 8 * n as u64)?.to_le();
        }
        Ok(transmute!(words))
    }
    fn full_fence(&self, _at: Fence) {
        std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
    }
}
