//! Model 1: invalidations and other messages against an engine that works, sleeps and leaves.
use std::sync::Arc;

use loom::sync::atomic::AtomicBool;
use loom::thread;
use svadev_fabric::{InvalidateAck, InvalidateTag};

use super::*;
use crate::engine_side::{EngineSide, Presence, invalidate};
use crate::mailbox::{Invalidation, Mailbox};
use crate::obligation::{Answer, Obligation};

/// Engines, and a page that its owner takes back.
struct World<P: Primitives> {
    sides: Box<[EngineSide<(), P>]>,
    /// The table entry that leads to `page` is gone. Relaxed, though in truth the unit's mutex orders it: the protocol does
    /// not need that.
    retired: AtomicBool,
    page: Memory,
    /// The answer was given by an engine.
    answered: Event,
    /// What each engine's thread sleeps on.
    wakes: Box<[Event]>,
}

impl<P: Primitives> World<P> {
    fn new(engines: usize) -> Arc<Self> {
        Arc::new(Self {
            sides: (0..engines).map(|_| EngineSide::new(())).collect(),
            retired: AtomicBool::new(false),
            page: Memory::new(),
            answered: Event::new(),
            wakes: (0..engines).map(|_| Event::new()).collect(),
        })
    }

    /// What the guest's kernel and the unit do: change the table, invalidate, wait, and give the page to somebody else.
    fn retire(&self, ask: impl FnOnce(&[EngineSide<(), P>]) -> InvalidateAck) {
        self.retired.store(true, Ordering::Relaxed);
        if ask(&self.sides) == InvalidateAck::Pending {
            self.answered.wait();
        }
        self.page.free();
    }

    /// Puts a message that must be acted on, and wakes as `Endpoint::post` does.
    fn post(&self, engine: usize, put: impl FnOnce(&mut Mailbox<(), P>)) {
        if !self.sides[engine].post(put) {
            self.wakes[engine].signal();
        }
    }
}

/// The one right way, as `Endpoint::invalidate` has it.
fn ask<P: Primitives>(sides: &[EngineSide<(), P>]) -> InvalidateAck {
    invalidate(sides, Invalidation::ALL, Answer::Invalidate(InvalidateTag::unit(1)))
}

/// What an engine may get wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Engines {
    Right,
    /// Arrives, and empties its mailbox only after a slice.
    EmptyTooLate,
    /// Sleeps without having looked once more.
    SleepWithoutLooking,
    /// Leaves without having looked once more.
    LeaveWithoutLooking,
    /// Acknowledges in the middle of a slice.
    AcknowledgeWithinSlice,
}

struct Engine<P: Primitives> {
    world: Arc<World<P>>,
    index: usize,
    way: Engines,
    presence: Presence,
    taken: Mailbox<(), P>,
    /// A cached translation to the page.
    cached: bool,
    /// The mailbox is to be emptied after the slice.
    late: bool,
    /// Messages that were acted on.
    credit: bool,
    answered: u64,
}

impl<P: Primitives> Engine<P> {
    fn new(world: &Arc<World<P>>, index: usize, way: Engines) -> Self {
        let (presence, taken) = (Presence::default(), Mailbox::new(()));
        Self {
            world: Arc::clone(world),
            index,
            way,
            presence,
            taken,
            cached: false,
            late: false,
            credit: false,
            answered: 0,
        }
    }

    fn empty(&mut self) {
        let Self { world, taken, cached, .. } = self;
        world.sides[self.index].take_into(taken);
        for obligation in taken.carry_out(|_| *cached = false) {
            if obligation.acknowledge().is_some() {
                world.answered.signal();
            }
        }
        self.credit |= std::mem::take(&mut taken.credit);
        self.answered |= std::mem::take(&mut taken.answered[0]);
    }

    fn arrive(&mut self) {
        if self.presence.arrive(&self.world.sides[self.index]) {
            if self.way == Engines::EmptyTooLate {
                self.late = true;
            } else {
                self.empty();
            }
        }
    }

    /// Translates if it must, and accesses the page if there is a translation.
    fn slice(&mut self) {
        if !self.presence.is_online() {
            self.arrive();
        } else if self.presence.look(&self.world.sides[self.index]) {
            self.empty();
        }
        self.cached = self.cached || !self.world.retired.load(Ordering::Relaxed);
        if self.cached {
            if self.way == Engines::AcknowledgeWithinSlice && self.presence.look(&self.world.sides[self.index]) {
                self.empty();
            }
            self.world.page.access();
        }
        if std::mem::take(&mut self.late) {
            self.empty();
        }
    }

    /// Sleeps until it is woken, if it may.
    fn rest(&mut self) {
        let may_sleep = self.presence.rest(&self.world.sides[self.index], || (), || false);
        if may_sleep || self.way == Engines::SleepWithoutLooking {
            self.world.wakes[self.index].wait();
        }
        self.arrive();
    }

    fn leave(mut self) {
        let mut presence = std::mem::take(&mut self.presence);
        let world = Arc::clone(&self.world);
        if self.way == Engines::LeaveWithoutLooking {
            self.empty();
            let _ = world.sides[self.index].handshake.go_offline();
        } else {
            presence.leave(&world.sides[self.index], || self.empty());
        }
    }
}

/// An engine works, sleeps, and works again when the page was taken back. Every interleaving.
fn working_and_sleeping<const LACKS: u8>(
    way: Engines,
    ask: impl FnOnce(&[EngineSide<(), Loom<LACKS>>]) -> InvalidateAck + Copy + Send + Sync + 'static,
) -> usize {
    check(None, move || {
        let world = World::<Loom<LACKS>>::new(1);
        let mut engine = Engine::new(&world, 0, way);
        let thread = thread::spawn(move || {
            engine.slice();
            engine.slice();
            engine.rest();
            engine.slice();
        });
        world.retire(ask);
        // Only now: for the invalidation, the engine was not woken if it sleeps.
        world.wakes[0].signal();
        thread.join().unwrap();
    })
}

#[test]
fn no_access_after_an_answered_invalidation() {
    let executions = working_and_sleeping::<WHOLE>(Engines::Right, ask);
    println!("{executions} executions");
    assert!(executions > 100, "{executions}");
}

#[test]
#[should_panic(expected = "Causality violation")]
fn a_poster_without_its_fence() {
    working_and_sleeping::<NO_POST_FENCE>(Engines::Right, ask);
}

#[test]
#[should_panic(expected = "Causality violation")]
fn an_engine_that_arrives_without_its_fence() {
    working_and_sleeping::<NO_ONLINE_FENCE>(Engines::Right, ask);
}

#[test]
#[should_panic(expected = "deadlock")]
fn an_engine_that_goes_to_sleep_without_its_fence() {
    working_and_sleeping::<NO_OFFLINE_FENCE>(Engines::Right, ask);
}

#[test]
#[should_panic(expected = "Causality violation")]
fn flags_that_order_nothing() {
    working_and_sleeping::<RELAXED_FLAGS>(Engines::Right, ask);
}

#[test]
#[should_panic(expected = "freed")]
fn an_engine_that_empties_its_mailbox_too_late() {
    working_and_sleeping::<WHOLE>(Engines::EmptyTooLate, ask);
}

#[test]
#[should_panic(expected = "deadlock")]
fn an_engine_that_sleeps_without_looking_once_more() {
    working_and_sleeping::<WHOLE>(Engines::SleepWithoutLooking, ask);
}

#[test]
#[should_panic(expected = "Causality violation")]
fn an_engine_that_acknowledges_in_the_middle_of_a_slice() {
    working_and_sleeping::<WHOLE>(Engines::AcknowledgeWithinSlice, ask);
}

#[test]
#[should_panic(expected = "deadlock")]
fn a_poster_that_posts_before_its_message_is_in_place() {
    working_and_sleeping::<WHOLE>(Engines::Right, |sides| {
        let online = sides[0].handshake.post();
        let own = Obligation::new(Answer::Invalidate(InvalidateTag::unit(1)));
        sides[0].mailbox.with(|mailbox| {
            mailbox.invalidate(Invalidation::ALL);
            if online {
                mailbox.due.push(own.share());
            }
        });
        if own.acknowledge().is_some() { InvalidateAck::Done } else { InvalidateAck::Pending }
    });
}

#[test]
#[should_panic(expected = "deadlock")]
fn a_poster_that_says_what_is_owed_without_the_mailbox_lock() {
    working_and_sleeping::<WHOLE>(Engines::Right, |sides| {
        let own = Obligation::new(Answer::Invalidate(InvalidateTag::unit(1)));
        if sides[0].post(|mailbox| mailbox.invalidate(Invalidation::ALL)) {
            let share = own.share();
            sides[0].mailbox.with(|mailbox| mailbox.due.push(share));
        }
        if own.acknowledge().is_some() { InvalidateAck::Done } else { InvalidateAck::Pending }
    });
}

/// An engine works and leaves for good, while a page is taken back. Every interleaving.
fn leaving<const LACKS: u8>(way: Engines) -> usize {
    check(None, move || {
        let world = World::<Loom<LACKS>>::new(1);
        let mut engine = Engine::new(&world, 0, way);
        let thread = thread::spawn(move || {
            engine.slice();
            engine.leave();
        });
        world.retire(ask);
        thread.join().unwrap();
    })
}

#[test]
fn an_engine_that_leaves_is_heard() {
    let executions = leaving::<WHOLE>(Engines::Right);
    println!("{executions} executions");
    assert!(executions > 50, "{executions}");
}

#[test]
#[should_panic(expected = "deadlock")]
fn an_engine_that_leaves_without_looking_once_more() {
    leaving::<WHOLE>(Engines::LeaveWithoutLooking);
}

#[test]
#[should_panic(expected = "deadlock")]
fn an_engine_that_leaves_without_its_fence() {
    leaving::<NO_OFFLINE_FENCE>(Engines::Right);
}

/// Two engines have the page; whoever is last to drop it answers for both. At most three preemptions.
fn two_engines<const LACKS: u8>() -> usize {
    check(3, || {
        let world = World::<Loom<LACKS>>::new(2);
        let threads = [0, 1].map(|index| {
            let mut engine = Engine::new(&world, index, Engines::Right);
            thread::spawn(move || {
                engine.slice();
                engine.leave();
            })
        });
        world.retire(ask);
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    })
}

#[test]
fn the_last_of_two_engines_answers_for_both() {
    let executions = two_engines::<WHOLE>();
    println!("{executions} executions");
    assert!(executions > 500, "{executions}");
}

#[test]
#[should_panic(expected = "Causality violation")]
fn counts_of_obligations_that_order_nothing() {
    two_engines::<RELAXED_COUNTS>();
}

/// Two posters have messages that the engine must act on; it sleeps whenever it may. At most three preemptions.
fn messages<const LACKS: u8>(way: Engines, wake: bool) -> usize {
    check(3, move || {
        let world = World::<Loom<LACKS>>::new(1);
        let mut engine = Engine::new(&world, 0, way);
        let thread = thread::spawn(move || {
            engine.slice();
            while !engine.credit || engine.answered == 0 {
                engine.rest();
                engine.slice();
            }
        });
        let other = Arc::clone(&world);
        let poster = thread::spawn(move || other.post(0, |mailbox| mailbox.answered[0] |= 1));
        if wake {
            world.post(0, |mailbox| mailbox.credit = true);
        } else {
            let _ = world.sides[0].post(|mailbox| mailbox.credit = true);
        }
        poster.join().unwrap();
        thread.join().unwrap();
    })
}

#[test]
fn no_message_is_lost_and_a_sleeper_is_woken() {
    let executions = messages::<WHOLE>(Engines::Right, true);
    println!("{executions} executions");
    assert!(executions > 500, "{executions}");
}

#[test]
#[should_panic(expected = "deadlock")]
fn messages_to_an_engine_that_goes_to_sleep_without_its_fence() {
    messages::<NO_OFFLINE_FENCE>(Engines::Right, true);
}

#[test]
#[should_panic(expected = "deadlock")]
fn messages_of_a_poster_without_its_fence() {
    messages::<NO_POST_FENCE>(Engines::Right, true);
}

#[test]
#[should_panic(expected = "deadlock")]
fn messages_to_an_engine_that_sleeps_without_looking_once_more() {
    messages::<WHOLE>(Engines::SleepWithoutLooking, true);
}

#[test]
#[should_panic(expected = "deadlock")]
fn messages_that_wake_nobody() {
    messages::<WHOLE>(Engines::Right, false);
}
