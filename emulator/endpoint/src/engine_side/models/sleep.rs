//! Model 2: the doorbell against an engine that goes to sleep.
use std::sync::Arc;

use loom::thread;
use svadev_spec::doorbell::{Word, must_wake, observe, publish};

use super::*;
use crate::engine_side::{EngineSide, Presence};

/// A word of a doorbell page under loom. `FENCE`: the submitter's fence is one. `ORDERED`: orders are what they say.
#[derive(Debug)]
struct LoomWord<const FENCE: bool, const ORDERED: bool>(loom::sync::atomic::AtomicU32);

impl<const FENCE: bool, const ORDERED: bool> Word for LoomWord<FENCE, ORDERED> {
    fn load(&self, order: Ordering) -> u32 {
        self.0.load(if ORDERED { order } else { Ordering::Relaxed })
    }
    fn store(&self, value: u32, order: Ordering) {
        self.0.store(value, if ORDERED { order } else { Ordering::Relaxed });
    }
    fn full_fence() {
        if FENCE {
            loom::sync::atomic::fence(Ordering::SeqCst);
        }
    }
}

/// What may be wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Right,
    /// The submitter looks at `ARMED`, then stores its word.
    LookThenStore,
    /// The engine looks at the doorbell, then arms.
    LookThenArm,
    /// The engine arms, but does not look again.
    NoSecondLook,
    /// The engine notes which word it has seen after it served the queue, not before.
    SeenTooLate,
}

/// A ring of two entries, its doorbell page and its engine.
struct World<P: Primitives, W> {
    side: EngineSide<(), P>,
    tail: W,
    armed: W,
    ring: [UnsafeCell<u32>; 2],
    wake: Event,
}

// SAFETY: as for `Memory`: that accesses to the ring exclude each other is what loom checks.
unsafe impl<P: Primitives, W: Sync> Sync for World<P, W> {}
// SAFETY: as above.
unsafe impl<P: Primitives, W: Send> Send for World<P, W> {}

impl<P: Primitives, W: Word> World<P, W> {
    /// As `UserQueue::submit`: the entry, the tail, the wake.
    fn submit(&self, index: u32, way: Way) {
        // SAFETY: loom has checked that nobody reads or writes.
        self.ring[index as usize].with_mut(|entry| unsafe { *entry = index + 1 });
        let wake = if way == Way::LookThenStore {
            let wake = must_wake(&self.armed);
            publish(&self.tail, index + 1);
            wake
        } else {
            publish(&self.tail, index + 1);
            must_wake(&self.armed)
        };
        if wake {
            self.wake.signal();
        }
    }

    fn fetch(&self, index: u32) {
        // SAFETY: loom has checked that nobody writes.
        let entry = self.ring[index as usize].with(|entry| unsafe { *entry });
        assert_eq!(entry, index + 1, "an entry is whole once the tail says that it is there");
    }

    /// An engine's thread: as `Engine::run`, `park` and `unpark` do it, `Queue::serve` and `is_rung` among them, until all
    /// `entries` were fetched.
    fn engine(&self, entries: u32, way: Way) {
        let mut presence = Presence::default();
        let (mut head, mut seen) = (0, 0);
        while head < entries {
            if !presence.is_online() {
                let _nothing_is_posted = presence.arrive(&self.side);
                publish(&self.armed, 0);
            }
            seen = if way == Way::SeenTooLate { seen } else { observe(&self.tail) };
            let tail = observe(&self.tail);
            let worked = head < tail;
            while head < tail {
                self.fetch(head);
                head += 1;
            }
            if way == Way::SeenTooLate {
                seen = observe(&self.tail);
            }
            if worked {
                continue;
            }
            let arm = || {
                if way != Way::LookThenArm {
                    publish(&self.armed, 1);
                }
            };
            let rung = || {
                let rung = observe(&self.tail) != seen && way != Way::NoSecondLook;
                if way == Way::LookThenArm {
                    publish(&self.armed, 1);
                }
                rung
            };
            if presence.rest(&self.side, arm, rung) {
                self.wake.wait();
            }
        }
    }
}

/// A program submits `entries` times, each time waking the engine only if it must; the engine sleeps whenever it may. A
/// submission that the engine sleeps through is a deadlock.
fn submissions<const LACKS: u8, const FENCE: bool, const ORDERED: bool>(
    preemptions: impl Into<Option<usize>>,
    entries: u32,
    way: Way,
) -> usize {
    check(preemptions, move || {
        let word = || LoomWord::<FENCE, ORDERED>(loom::sync::atomic::AtomicU32::new(0));
        let world = Arc::new(World {
            side: EngineSide::<(), Loom<LACKS>>::new(()),
            tail: word(),
            armed: word(),
            ring: [UnsafeCell::new(0), UnsafeCell::new(0)],
            wake: Event::new(),
        });
        let other = Arc::clone(&world);
        let engine = thread::spawn(move || other.engine(entries, way));
        (0..entries).for_each(|index| world.submit(index, way));
        engine.join().unwrap();
    })
}

/// Every interleaving.
#[test]
fn no_submission_is_slept_through() {
    let executions = submissions::<WHOLE, true, true>(None, 1, Way::Right);
    println!("{executions} executions");
    assert!(executions > 100, "{executions}");
}

/// The engine may be waking up from the first, or going to sleep after it. At most five preemptions.
#[test]
fn no_submission_is_slept_through_after_another() {
    let executions = submissions::<WHOLE, true, true>(5, 2, Way::Right);
    println!("{executions} executions");
    assert!(executions > 1000, "{executions}");
}

#[test]
#[should_panic(expected = "deadlock")]
fn a_submitter_without_its_fence() {
    submissions::<WHOLE, false, true>(5, 2, Way::Right);
}

#[test]
#[should_panic(expected = "deadlock")]
fn an_engine_that_arms_without_a_fence() {
    submissions::<NO_OFFLINE_FENCE, true, true>(5, 2, Way::Right);
}

#[test]
#[should_panic(expected = "deadlock")]
fn a_submitter_that_looks_before_it_stores() {
    submissions::<WHOLE, true, true>(5, 2, Way::LookThenStore);
}

#[test]
#[should_panic(expected = "deadlock")]
fn an_engine_that_looks_before_it_arms() {
    submissions::<WHOLE, true, true>(5, 2, Way::LookThenArm);
}

#[test]
#[should_panic(expected = "deadlock")]
fn an_engine_that_does_not_look_again() {
    submissions::<WHOLE, true, true>(5, 2, Way::NoSecondLook);
}

#[test]
#[should_panic(expected = "deadlock")]
fn an_engine_that_notes_a_word_after_it_served_the_queue() {
    submissions::<WHOLE, true, true>(5, 2, Way::SeenTooLate);
}

#[test]
#[should_panic(expected = "Causality violation")]
fn words_that_order_no_entries() {
    submissions::<WHOLE, true, false>(5, 2, Way::Right);
}
