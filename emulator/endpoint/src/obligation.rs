//! Answers that several engines owe together: given once, by the one that was last.
use std::fmt::Debug;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use svadev_fabric::InvalidateTag;

use crate::sync::{Count, Primitives, Std};

/// What is answered when every engine has done its part. `A` is what the device itself answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer<A> {
    /// An invalidation: `Upstream::invalidate_complete`.
    Invalidate(InvalidateTag),
    /// A change of the memory map: [`Ports::memory_released`](crate::Ports::memory_released).
    Memory(u64),
    /// Something that the device asked of all its engines.
    Device(A),
}

#[derive(Debug)]
struct Shared<A, P: Primitives> {
    answer: Answer<A>,
    /// Parties that have not done their part.
    open: P::Count,
}

/// One party's share of an [`Answer`]. A move-only value: it is acknowledged exactly once, and dropping it instead is a bug.
#[derive(Debug)]
#[must_use = "somebody waits for this"]
pub struct Obligation<A: Debug, P: Primitives = Std>(Option<Arc<Shared<A, P>>>);

impl<A: Copy + Debug, P: Primitives> Obligation<A, P> {
    /// The poster's own share. It keeps the answer open until it has asked everybody.
    pub fn new(answer: Answer<A>) -> Self {
        Self(Some(Arc::new(Shared { answer, open: P::Count::new(1) })))
    }

    /// Another share of the same answer.
    pub fn share(&self) -> Self {
        let shared = self.0.as_ref().expect("only acknowledge empties it, and that consumes it");
        shared.open.increment(Ordering::Relaxed);
        Self(Some(Arc::clone(shared)))
    }

    /// This party has done its part. The answer, if it was the last one: the caller gives it, with no lock held.
    pub fn acknowledge(mut self) -> Option<Answer<A>> {
        let shared = self.0.take().expect("only acknowledge empties it, and that consumes it");
        // Release: what this party did before is seen by the last one (acquire), and so by whom it answers.
        (shared.open.decrement(Ordering::AcqRel) == 1).then_some(shared.answer)
    }
}

impl<A: Debug, P: Primitives> Drop for Obligation<A, P> {
    fn drop(&mut self) {
        debug_assert!(self.0.is_none() || std::thread::panicking(), "dropped without an answer: {:?}", self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_last_share_yields_the_answer() {
        let own = Obligation::<(), Std>::new(Answer::Memory(7));
        let (a, b) = (own.share(), own.share());
        assert_eq!(a.acknowledge(), None);
        assert_eq!(own.acknowledge(), None);
        assert_eq!(b.acknowledge(), Some(Answer::Memory(7)));
    }

    #[test]
    #[should_panic(expected = "dropped without an answer")]
    #[cfg(debug_assertions)]
    fn dropping_one_is_a_bug() {
        drop(Obligation::<(), Std>::new(Answer::Device(())));
    }
}
