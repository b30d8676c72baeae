//! How a queue's submitter and its engine use the doorbell page, so that no submission finds the engine asleep for
//! ever.
//!
//! ```text
//!   submitter                         engine that wants to sleep
//!   store SQ_TAIL (publish)           store ARMED = 1 (publish)
//!   full fence                        full fence
//!   load ARMED; not 0: wake           load SQ_TAIL; moved: do not sleep
//! ```
//! Each stores, fences, then loads what the other stores: at least one of the two sees the other. The same holds of
//! `CQ_HEAD` where the engine waits for room in the completion ring. Both sides of this repository call what is here,
//! and the model that is checked for every interleaving calls it too.
use core::sync::atomic::{AtomicU32, Ordering, fence};

/// A little-endian word of a doorbell page. [`AtomicU32`] is one; a model checker's is another.
pub trait Word {
    /// Atomic load.
    fn load(&self, order: Ordering) -> u32;
    /// Atomic store.
    fn store(&self, value: u32, order: Ordering);
    /// A sequentially consistent fence.
    fn full_fence();
}

impl Word for AtomicU32 {
    #[inline]
    fn load(&self, order: Ordering) -> u32 {
        self.load(order)
    }
    #[inline]
    fn store(&self, value: u32, order: Ordering) {
        self.store(value, order);
    }
    #[inline]
    fn full_fence() {
        fence(Ordering::SeqCst);
    }
}

/// Stores a word, release: who observes it sees what was written before, ring entries above all.
#[inline]
pub fn publish<W: Word>(word: &W, value: u32) {
    word.store(value.to_le(), Ordering::Release);
}

/// Loads a word, acquire: what its writer wrote before is seen.
#[inline]
pub fn observe<W: Word>(word: &W) -> u32 {
    u32::from_le(word.load(Ordering::Acquire))
}

/// Submitter, after it has published `SQ_TAIL` or `CQ_HEAD`: whether the engine sleeps, perhaps without having seen
/// that, and must be woken. `armed` is the word [`super::device::doorbell::ARMED`].
#[inline]
#[must_use = "an engine that sleeps does not look at its doorbells"]
pub fn must_wake<W: Word>(armed: &W) -> bool {
    W::full_fence();
    armed.load(Ordering::Relaxed) != 0
}
