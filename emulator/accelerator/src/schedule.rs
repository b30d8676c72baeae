//! Which of an engine's queues is served next, and for how much: deficit round robin (Shreedhar and Varghese, 1995).
//!
//! A queue is *active* while it may have something to do. Active queues stand in a ring; the one whose turn it is may
//! spend a quantum times its weight, in the units of [`SLICE_COST`](crate::policy::SLICE_COST). What it overdraws, it
//! owes at its next turns; what it leaves when it runs dry is lost, so that nobody saves up. Over any longer time
//! queues with work thus get shares in proportion to their weights, whatever their descriptors are made of. A queue
//! that is alone in the ring takes from nobody: it may spend what it likes, and owes nothing for it.
//!
//! A queue without work is *watched*: its doorbell is looked at, a few queues a pass. One that stays idle while many
//! are watched is *unwatched*: its doorbell says so, and software wakes it by the wake page. So a pass costs the same
//! with one queue and with hundreds that have nothing to do.
use std::collections::VecDeque;

/// What a queue of weight 1 may spend in one turn. A round over `n` active queues delays each by `n` times this (and
/// their weights), so it is small; a turn costs some cache misses, so it is not tiny.
const QUANTUM: i64 = 8 << 10;

/// Where a queue stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// Off, halted, or left alone until its wake page is written.
    Nowhere,
    /// In `active`.
    Active,
    /// In `watched`, at this index.
    Watched(usize),
}

/// The places of an engine's queues, which are named by their position in the engine. Nothing here allocates once it is
/// made.
#[derive(Debug)]
pub(crate) struct Schedule {
    active: VecDeque<usize>,
    watched: Vec<usize>,
    /// The next of `watched` to be looked at.
    cursor: usize,
    places: Box<[Place]>,
    /// What each active queue may still spend in this turn; below zero, what it owes.
    credit: Box<[i64]>,
}

impl Schedule {
    /// No queue is anywhere yet.
    pub(crate) fn new(queues: usize) -> Self {
        Self {
            active: VecDeque::with_capacity(queues),
            watched: Vec::with_capacity(queues),
            cursor: 0,
            places: vec![Place::Nowhere; queues].into(),
            credit: vec![0; queues].into(),
        }
    }

    /// A queue may have something to do. Nothing changes where it is active already.
    pub(crate) fn activate(&mut self, queue: usize) {
        if self.places[queue] != Place::Active {
            self.unwatch(queue);
            self.places[queue] = Place::Active;
            self.active.push_back(queue);
        }
    }

    /// Whose turn it is, and what it may spend; `weight` is asked for those whose turn begins.
    pub(crate) fn turn(&mut self, weight: impl Fn(usize) -> i64) -> Option<(usize, i64)> {
        // Bounded: each round raises every credit, and a debt is at most one piece of work.
        loop {
            let &queue = self.active.front()?;
            if self.active.len() == 1 {
                return Some((queue, i64::MAX));
            }
            let credit = &mut self.credit[queue];
            if *credit > 0 {
                return Some((queue, *credit));
            }
            *credit += QUANTUM * weight(queue);
            if *credit > 0 {
                return Some((queue, *credit));
            }
            self.active.rotate_left(1);
        }
    }

    /// The queue whose turn it is spent some and may have more to do.
    pub(crate) fn spent(&mut self, queue: usize, cost: i64) {
        debug_assert_eq!(self.active.front(), Some(&queue));
        if self.active.len() == 1 {
            self.credit[queue] = 0;
            return;
        }
        self.credit[queue] -= cost;
        if self.credit[queue] <= 0 {
            self.active.rotate_left(1);
        }
    }

    /// The queue whose turn it is spent some and has no more to do. It is `watched`, or gone until it is activated.
    pub(crate) fn rests(&mut self, queue: usize, cost: i64, watched: bool) {
        let front = self.active.pop_front();
        debug_assert_eq!(front, Some(queue));
        // A debt stays: otherwise a queue that hands over its work piece by piece would never pay.
        self.credit[queue] = if self.active.is_empty() { 0 } else { (self.credit[queue] - cost).min(0) };
        self.places[queue] = Place::Nowhere;
        if watched {
            self.places[queue] = Place::Watched(self.watched.len());
            self.watched.push(queue);
        }
    }

    /// Stops watching a queue.
    pub(crate) fn unwatch(&mut self, queue: usize) {
        if let Place::Watched(at) = self.places[queue] {
            self.watched.swap_remove(at);
            if let Some(&moved) = self.watched.get(at) {
                self.places[moved] = Place::Watched(at);
            }
            self.places[queue] = Place::Nowhere;
        }
    }

    /// Whether a queue is neither served nor watched.
    pub(crate) fn is_nowhere(&self, queue: usize) -> bool {
        self.places[queue] == Place::Nowhere
    }

    /// The queues that are watched.
    pub(crate) fn watched(&self) -> &[usize] {
        &self.watched
    }

    /// The next watched queue to look at, round after round.
    pub(crate) fn next_watched(&mut self) -> Option<usize> {
        self.cursor = if self.cursor + 1 < self.watched.len() { self.cursor + 1 } else { 0 };
        self.watched.get(self.cursor).copied()
    }

    /// Whether no queue is active.
    pub(crate) fn is_idle(&self) -> bool {
        self.active.is_empty()
    }

    /// Takes every queue out.
    pub(crate) fn clear(&mut self) {
        self.active.clear();
        self.watched.clear();
        self.places.fill(Place::Nowhere);
        self.credit.fill(0);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn places_are_exclusive() {
        let mut s = Schedule::new(3);
        (0..3).for_each(|q| s.activate(q));
        for q in 0..3 {
            let alone = q == 2;
            assert_eq!(s.turn(|_| 1), Some((q, if alone { i64::MAX } else { QUANTUM })));
            s.rests(q, 1, true);
        }
        assert!(s.is_idle());
        s.activate(0);
        s.activate(0);
        assert_eq!(s.watched(), [2, 1]);
        s.unwatch(2);
        assert_eq!(s.watched(), [1]);
        assert_eq!((s.next_watched(), s.next_watched()), (Some(1), Some(1)));
        s.clear();
        assert_eq!((s.next_watched(), s.turn(|_| 1)), (None, None));
    }

    #[test]
    fn what_is_left_is_lost_and_what_is_owed_stays() {
        let mut s = Schedule::new(2);
        // The other one stays behind it, so that it is never alone.
        let turn = |s: &mut Schedule, cost| {
            s.activate(0);
            s.activate(1);
            if s.active.front() == Some(&1) {
                s.active.rotate_left(1);
            }
            let turn = s.turn(|_| 1);
            s.rests(0, cost, true);
            turn
        };
        assert_eq!(turn(&mut s, 1), Some((0, QUANTUM)));
        assert_eq!(turn(&mut s, QUANTUM + 5), Some((0, QUANTUM)));
        assert_eq!(turn(&mut s, 0), Some((0, QUANTUM - 5)));
    }

    #[test]
    fn who_is_alone_owes_nothing() {
        let mut s = Schedule::new(2);
        s.activate(0);
        assert_eq!(s.turn(|_| 1), Some((0, i64::MAX)));
        s.spent(0, 100 * QUANTUM);
        s.activate(1);
        assert_eq!(s.turn(|_| 1), Some((0, QUANTUM)));
    }

    proptest! {
        /// Queues that always have work get shares in proportion to their weights, whatever a piece of it costs.
        #[test]
        fn shares_are_proportional(queues in prop::collection::vec((0u32..4, 1i64..40_000), 2..64)) {
            let weight = |q: usize| 1 << queues[q].0;
            let mut s = Schedule::new(queues.len());
            (0..queues.len()).for_each(|q| s.activate(q));
            let mut spent = vec![0; queues.len()];
            let rounds = 200;
            while spent[0] < rounds * QUANTUM * weight(0) {
                let (q, mut credit) = s.turn(weight).unwrap();
                let before = credit;
                while credit > 0 {
                    credit -= queues[q].1;
                }
                spent[q] += before - credit;
                s.spent(q, before - credit);
            }
            // In units of weight, all are as far as the first, but for a turn and what one piece overdraws.
            for (q, &cost) in spent.iter().enumerate() {
                let (one, other) = (spent[0] / weight(0), cost / weight(q));
                prop_assert!((one - other).abs() <= 2 * QUANTUM + 40_000, "queue {q}: {other}, the first: {one}");
            }
        }
    }
}
