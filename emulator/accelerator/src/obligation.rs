//! Answers that several engines owe together: given once, by the one that was last.
use std::sync::Arc;
use std::sync::atomic::Ordering;

use svadev_fabric::InvalidateTag;

use crate::sync::{Count, Primitives, Std};

/// What is answered when every engine has done its part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// An invalidation: `Upstream::invalidate_complete`.
    Invalidate(InvalidateTag),
    /// A change of the memory map: `FunctionPorts::memory_released`.
    Memory(u64),
    /// A function reset: no longer busy, `FunctionPorts::reset_done`.
    Reset,
    /// CONTROL.enable 1 → 0: no longer busy.
    Disable,
    /// COMMAND: no longer busy.
    Command,
}

#[derive(Debug)]
struct Shared<P: Primitives> {
    answer: Answer,
    owed: P::Count,
}

/// One party's share of an [`Answer`]. A move-only value: it is acknowledged exactly once, and dropping it instead is a bug.
#[derive(Debug)]
#[must_use = "somebody waits for this"]
pub(crate) struct Obligation<P: Primitives = Std>(Option<Arc<Shared<P>>>);

impl<P: Primitives> Obligation<P> {
    /// The poster's own share. It keeps the answer open until it has asked everybody.
    pub(crate) fn new(answer: Answer) -> Self {
        Self(Some(Arc::new(Shared { answer, owed: P::Count::new(1) })))
    }

    /// Another share of the same answer.
    pub(crate) fn share(&self) -> Self {
        let shared = self.0.as_ref().expect("only acknowledge empties it, and that consumes it");
        shared.owed.increment(Ordering::Relaxed);
        Self(Some(Arc::clone(shared)))
    }

    /// This party has done its part. The answer, if it was the last one: the caller gives it, with no lock held.
    pub(crate) fn acknowledge(mut self) -> Option<Answer> {
        let shared = self.0.take().expect("only acknowledge empties it, and that consumes it");
        // Release: what this party did before is seen by the last one (acquire), and so by whom it answers.
        (shared.owed.decrement(Ordering::AcqRel) == 1).then_some(shared.answer)
    }
}

impl<P: Primitives> Drop for Obligation<P> {
    fn drop(&mut self) {
        debug_assert!(self.0.is_none() || std::thread::panicking(), "dropped without an answer: {:?}", self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_last_share_yields_the_answer() {
        let own = Obligation::<Std>::new(Answer::Memory(7));
        let (a, b) = (own.share(), own.share());
        assert_eq!(a.acknowledge(), None);
        assert_eq!(own.acknowledge(), None);
        assert_eq!(b.acknowledge(), Some(Answer::Memory(7)));
    }

    #[test]
    #[should_panic(expected = "dropped without an answer")]
    #[cfg(debug_assertions)]
    fn dropping_one_is_a_bug() {
        drop(Obligation::<Std>::new(Answer::Reset));
    }
}
