//! Models of the handshake with the guest's driver, for every interleaving and every value that a load may return. What
//! runs is the code of the product ([`Follower`]) and of the driver in `testing`, on loom's atomics: two posters that
//! share nothing with the engine but memory, as the guest's CPUs do.
//!
//! Each model is followed by variants that lack one thing and must fail.
#![allow(clippy::unwrap_used, reason = "a panic is a failed test")]
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use loom::sync::Mutex;
use loom::sync::atomic::{AtomicU64, fence};
use loom::thread;
use svadev_spec::mirror::{ASID_BIT, Invalidation};

use crate::follower::{Drop, Follower};
use crate::testing::is_acknowledged;
use crate::words::{Fence, Gone, Word, Words};

const ENTRIES: u64 = 2;
const ASID: u32 = ASID_BIT | 1;

/// Lacks nothing.
const WHOLE: u8 = 0;
/// The driver has no fence between its tail and *online*.
const NO_POST_FENCE: u8 = 1;
/// The engine has no fence between *online* and the tail.
const NO_ARRIVE_FENCE: u8 = 2;
/// The engine has no fence between *offline* and the tail.
const NO_REST_FENCE: u8 = 3;
/// The engine says that it is offline by a relaxed store.
const RELAXED_OFFLINE: u8 = 4;
/// The engine acknowledges by a relaxed store.
const RELAXED_HEAD: u8 = 5;
/// The engine takes an entry for whole that may be overwritten.
const ONE_ENTRY_MORE: u8 = 6;
/// A call that finds nothing mapped returns at once.
const NO_WAIT_FOR_OTHERS: u8 = 7;
/// Tables are freed without a wait.
const NO_WAIT_FOR_TABLES: u8 = 8;
/// The engine has no fence between its acknowledgement and *waiters*.
const NO_ACKNOWLEDGE_FENCE: u8 = 9;
/// The driver has no fence between *waiters* and its last look.
const NO_SLEEP_FENCE: u8 = 10;

/// Runs `model` for every interleaving with at most `preemptions` preemptions, and says how many executions those were.
fn check(preemptions: usize, model: impl Fn() + Send + Sync + 'static) -> usize {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = builder.preemption_bound.or(Some(preemptions));
    let executions = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&executions);
    builder.check(move || {
        count.fetch_add(1, Ordering::Relaxed);
        model();
    });
    executions.load(Ordering::Relaxed)
}

/// The control block of a function with one engine, in memory that only atomics touch.
struct Block<const LACKS: u8> {
    tail: AtomicU64,
    waiters: AtomicU64,
    online: AtomicU64,
    head: AtomicU64,
    ring: [[AtomicU64; 2]; 2],
    /// The page-table entry of each page: 0 is not present.
    pages: [AtomicU64; 2],
    /// The driver's lock around its ring, with the tail and what was posted last for the range.
    lock: Mutex<(u64, u64)>,
}

impl<const LACKS: u8> Block<LACKS> {
    fn new() -> Self {
        let zero = || AtomicU64::new(0);
        Self {
            tail: zero(),
            waiters: zero(),
            online: zero(),
            head: zero(),
            ring: [[zero(), zero()], [zero(), zero()]],
            pages: [AtomicU64::new(1), AtomicU64::new(1)],
            lock: Mutex::new((0, 0)),
        }
    }

    fn entry(&self, index: u64) -> &[AtomicU64; 2] {
        &self.ring[usize::try_from(index % ENTRIES).unwrap()]
    }

    /// The driver writes an entry for `page`, then the tail. The caller holds the lock.
    fn post(&self, state: &mut (u64, u64), page: u64) -> u64 {
        let [first, last] = self.entry(state.0);
        // Two stores: an engine may see one of them.
        first.store(page, Ordering::Relaxed);
        last.store(page, Ordering::Relaxed);
        state.0 += 1;
        state.1 = state.0;
        self.tail.store(state.0, Ordering::Release);
        self.full_fence(Fence::Post);
        state.0
    }

    fn wait(&self, index: u64) {
        while !is_acknowledged(self, index) {
            thread::yield_now();
        }
    }
}

impl<const LACKS: u8> Words for Block<LACKS> {
    fn load(&self, word: Word) -> Result<u64, Gone> {
        Ok(match word {
            Word::InvalidationTail => self.tail.load(Ordering::Acquire),
            Word::Waiters => self.waiters.load(Ordering::Acquire),
            Word::Online => self.online.load(Ordering::Acquire),
            Word::InvalidationHead => self.head.load(Ordering::Acquire),
            _ => unreachable!("no events here"),
        })
    }
    fn store(&self, word: Word, value: u64) -> Result<(), Gone> {
        let order = |lacking| if LACKS == lacking { Ordering::Relaxed } else { Ordering::Release };
        match word {
            Word::Online => self.online.store(value, order(RELAXED_OFFLINE)),
            Word::InvalidationHead => self.head.store(value, order(RELAXED_HEAD)),
            _ => unreachable!("the engine writes nothing else"),
        }
        Ok(())
    }
    fn invalidation(&self, index: u64) -> Result<Invalidation, Gone> {
        let [first, last] = self.entry(index);
        let (first, last) = (first.load(Ordering::Acquire), last.load(Ordering::Acquire));
        Ok(Invalidation { asid: ASID, first, last, ..Invalidation::default() })
    }
    fn full_fence(&self, at: Fence) {
        let lacking = match at {
            Fence::Post => NO_POST_FENCE,
            Fence::Arrive => NO_ARRIVE_FENCE,
            Fence::Rest => NO_REST_FENCE,
            Fence::Acknowledge => NO_ACKNOWLEDGE_FENCE,
            Fence::Driver => NO_SLEEP_FENCE,
            Fence::Event => u8::MAX,
        };
        if LACKS != lacking {
            fence(Ordering::SeqCst);
        }
    }
}

/// Memory that loom checks: every access must be ordered before its end.
struct Memory(loom::cell::UnsafeCell<bool>);

#[allow(unsafe_code, reason = "memory that a model frees is an UnsafeCell, whose accesses loom checks")]
mod memory {
    use super::Memory;

    // SAFETY: that accesses exclude each other is what is checked: loom panics before it lets two in at once.
    unsafe impl Sync for Memory {}

    impl Memory {
        pub(super) fn new() -> Self {
            Self(loom::cell::UnsafeCell::new(false))
        }
        pub(super) fn access(&self) {
            // SAFETY: loom has checked that nobody writes.
            self.0.with(|freed| assert!(!unsafe { *freed }, "accessed after it was freed"));
        }
        pub(super) fn free(&self) {
            // SAFETY: loom has checked that nobody reads or writes.
            self.0.with_mut(|freed| unsafe { *freed = true });
        }
    }
}

/// An engine with a device TLB of two pages.
struct Engine<'a, const LACKS: u8> {
    block: &'a Block<LACKS>,
    follower: Follower,
    tlb: [bool; 2],
    /// It found that a driver sleeps until it acknowledges, and raised its vector.
    woke: bool,
}

impl<const LACKS: u8> Engine<'_, LACKS> {
    fn collect(&mut self) {
        let Self { block, follower, tlb, woke } = self;
        let entries = if LACKS == ONE_ENTRY_MORE { ENTRIES + 1 } else { ENTRIES };
        let collected = follower
            .collect(*block, entries, |drop| match drop {
                Drop::Everything => *tlb = [false; 2],
                Drop::Range { first, last, .. } => {
                    (first..=last).for_each(|page| tlb[usize::try_from(page).unwrap()] = false);
                }
            })
            .unwrap();
        *woke |= collected.wake;
    }

    /// Uses the pages that are mapped, through the TLB where it has them.
    fn slice(&mut self, memory: &[Memory; 2]) {
        for (page, memory) in memory.iter().enumerate() {
            if !self.tlb[page] {
                self.tlb[page] = self.block.pages[page].load(Ordering::Acquire) != 0;
            }
            if self.tlb[page] {
                memory.access();
            }
        }
    }

    fn arrive(&mut self) {
        if self.follower.arrive(self.block).unwrap() {
            self.collect();
        }
    }

    fn look(&mut self) {
        if self.follower.look(self.block).unwrap() {
            self.collect();
        }
    }

    /// Sleeps until the end of the model.
    fn leave(&mut self) {
        while !self.follower.rest(self.block).unwrap() {
            self.arrive();
        }
    }
}

/// Two pages, each of which a driver thread of its own unmaps and frees while the engine uses both: it comes, works,
/// looks, works, and goes.
fn two_posters<const LACKS: u8>() {
    let shared = loom::sync::Arc::new((Block::<LACKS>::new(), [Memory::new(), Memory::new()]));
    let posters = [0, 1].map(|page: usize| {
        let shared = loom::sync::Arc::clone(&shared);
        thread::spawn(move || {
            let (block, memory) = &*shared;
            let index = {
                let mut state = block.lock.lock().unwrap();
                block.pages[page].store(0, Ordering::Relaxed);
                block.post(&mut state, page as u64)
            };
            // Not for ever: with two that wait, there is no end to the interleavings. Who has not heard frees nothing.
            if is_acknowledged(block, index) || {
                thread::yield_now();
                is_acknowledged(block, index)
            } {
                memory[page].free();
            }
        })
    });
    let (block, memory) = &*shared;
    let mut engine = Engine { block, follower: Follower::default(), tlb: [true; 2], woke: false };
    engine.arrive();
    engine.slice(memory);
    engine.look();
    engine.slice(memory);
    engine.leave();
    for poster in posters {
        poster.join().unwrap();
    }
}

/// One poster, and an engine that goes and comes again.
fn comes_and_goes<const LACKS: u8>() {
    let shared = loom::sync::Arc::new((Block::<LACKS>::new(), [Memory::new(), Memory::new()]));
    let poster = {
        let shared = loom::sync::Arc::clone(&shared);
        thread::spawn(move || {
            let (block, memory) = &*shared;
            let index = {
                let mut state = block.lock.lock().unwrap();
                block.pages[0].store(0, Ordering::Relaxed);
                block.post(&mut state, 0)
            };
            block.wait(index);
            memory[0].free();
        })
    };
    let (block, memory) = &*shared;
    let mut engine = Engine { block, follower: Follower::default(), tlb: [true, false], woke: false };
    for _ in 0..2 {
        engine.arrive();
        engine.slice(memory);
        engine.leave();
    }
    poster.join().unwrap();
}

/// The ring holds two entries. One thread posts an entry and a second one whose writing may be under way while the
/// engine reads the first.
fn torn<const LACKS: u8>() {
    let shared = loom::sync::Arc::new((Block::<LACKS>::new(), [Memory::new(), Memory::new()]));
    let poster = {
        let shared = loom::sync::Arc::clone(&shared);
        thread::spawn(move || {
            let (block, memory) = &*shared;
            // Page 0 is unmapped first; what follows in the ring is about page 1.
            block.pages[0].store(0, Ordering::Relaxed);
            let first = block.post(&mut block.lock.lock().unwrap(), 0);
            block.post(&mut block.lock.lock().unwrap(), 1);
            block.post(&mut block.lock.lock().unwrap(), 1);
            block.wait(first);
            memory[0].free();
        })
    };
    let (block, memory) = &*shared;
    let mut engine = Engine { block, follower: Follower::default(), tlb: [true, false], woke: false };
    engine.arrive();
    engine.slice(memory);
    engine.look();
    engine.slice(memory);
    engine.leave();
    poster.join().unwrap();
}

/// Two callbacks for the same range. The one that finds the entry gone posts nothing; it must wait for what the other
/// one posted. Either may be the one that frees the page: here the second one does.
fn nothing_was_mapped<const LACKS: u8>() {
    let shared = loom::sync::Arc::new((Block::<LACKS>::new(), [Memory::new(), Memory::new()]));
    let first = {
        let shared = loom::sync::Arc::clone(&shared);
        thread::spawn(move || {
            let (block, _) = &*shared;
            let mut state = block.lock.lock().unwrap();
            block.pages[0].store(0, Ordering::Relaxed);
            block.post(&mut state, 0);
            // It waits outside of the lock, and is slow about it: the second one does not wait for it.
        })
    };
    let second = {
        let shared = loom::sync::Arc::clone(&shared);
        thread::spawn(move || {
            let (block, memory) = &*shared;
            let last_posted = {
                let state = block.lock.lock().unwrap();
                if block.pages[0].load(Ordering::Relaxed) != 0 {
                    return;
                }
                state.1
            };
            if LACKS != NO_WAIT_FOR_OTHERS {
                fence(Ordering::SeqCst);
                block.wait(last_posted);
            }
            memory[0].free();
        })
    };
    let (block, memory) = &*shared;
    let mut engine = Engine { block, follower: Follower::default(), tlb: [true, false], woke: false };
    engine.arrive();
    engine.slice(memory);
    engine.leave();
    first.join().unwrap();
    second.join().unwrap();
}

/// A driver that sleeps until an engine acknowledges, and an engine that goes to sleep, too.
fn sleeper<const LACKS: u8>() {
    let block = loom::sync::Arc::new(Block::<LACKS>::new());
    let poster = {
        let block = loom::sync::Arc::clone(&block);
        thread::spawn(move || {
            let index = block.post(&mut block.lock.lock().unwrap(), 0);
            if is_acknowledged(&*block, index) {
                return false;
            }
            block.waiters.store(1, Ordering::Relaxed);
            block.full_fence(Fence::Driver);
            !is_acknowledged(&*block, index)
        })
    };
    let mut engine = Engine { block: &block, follower: Follower::default(), tlb: [false; 2], woke: false };
    engine.arrive();
    engine.look();
    engine.leave();
    let asleep = poster.join().unwrap();
    assert!(!asleep || engine.woke, "the driver sleeps, and so does the engine");
}

/// A driver that trims a table while an engine walks: `pages[0]` is the entry above it, `memory[0]` the table.
fn trimmed<const LACKS: u8>() {
    let shared = loom::sync::Arc::new((Block::<LACKS>::new(), [Memory::new(), Memory::new()]));
    let trimmer = {
        let shared = loom::sync::Arc::clone(&shared);
        thread::spawn(move || {
            let (block, memory) = &*shared;
            let index = {
                let mut state = block.lock.lock().unwrap();
                block.pages[0].store(0, Ordering::Relaxed);
                block.post(&mut state, 0)
            };
            if LACKS != NO_WAIT_FOR_TABLES {
                block.wait(index);
            }
            memory[0].free();
        })
    };
    let (block, memory) = &*shared;
    let mut engine = Engine { block, follower: Follower::default(), tlb: [false; 2], woke: false };
    for _ in 0..2 {
        engine.arrive();
        // No cache of tables: each walk begins at the root.
        if block.pages[0].load(Ordering::Acquire) != 0 {
            memory[0].access();
        }
        engine.leave();
    }
    trimmer.join().unwrap();
}

#[test]
fn no_page_is_used_after_two_posters_have_heard_that_it_is_dropped() {
    let executions = check(2, two_posters::<WHOLE>);
    assert!(executions > 1000, "{executions}");
}

#[test]
fn an_engine_that_goes_and_comes_uses_nothing_that_was_dropped_meanwhile() {
    let executions = check(3, comes_and_goes::<WHOLE>);
    assert!(executions > 300, "{executions}");
}

#[test]
fn an_entry_that_is_overwritten_while_it_is_read_is_not_believed() {
    let executions = check(3, torn::<WHOLE>);
    assert!(executions > 300, "{executions}");
}

#[test]
fn a_callback_that_finds_nothing_waits_for_the_one_before() {
    let executions = check(3, nothing_was_mapped::<WHOLE>);
    assert!(executions > 300, "{executions}");
}

#[test]
fn a_table_is_not_freed_under_a_walk() {
    let executions = check(3, trimmed::<WHOLE>);
    assert!(executions > 100, "{executions}");
}

#[test]
fn a_driver_that_sleeps_until_an_engine_acknowledges_is_woken() {
    let executions = check(3, sleeper::<WHOLE>);
    assert!(executions > 100, "{executions}");
}

/// Each fails for want of one thing.
macro_rules! lacking {
    ($($name:ident: $model:ident without $lacking:ident,)+) => {
        $(
            #[test]
            #[should_panic]
            fn $name() {
                check(3, $model::<$lacking>);
            }
        )+
    };
}

lacking! {
    a_driver_needs_its_fence: comes_and_goes without NO_POST_FENCE,
    an_engine_that_arrives_needs_its_fence: comes_and_goes without NO_ARRIVE_FENCE,
    an_engine_that_rests_needs_its_fence: sleeper without NO_REST_FENCE,
    an_acknowledgement_needs_a_fence_before_the_look_at_waiters: sleeper without NO_ACKNOWLEDGE_FENCE,
    a_driver_needs_a_fence_before_it_sleeps: sleeper without NO_SLEEP_FENCE,
    an_engine_that_rests_says_so_with_release: comes_and_goes without RELAXED_OFFLINE,
    an_acknowledgement_is_a_release: two_posters without RELAXED_HEAD,
    one_entry_more_is_one_too_many: torn without ONE_ENTRY_MORE,
    the_unacknowledged_rule_is_needed: nothing_was_mapped without NO_WAIT_FOR_OTHERS,
    tables_need_an_acknowledgement_before_they_are_freed: trimmed without NO_WAIT_FOR_TABLES,
}
