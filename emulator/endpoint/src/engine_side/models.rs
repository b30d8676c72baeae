//! Models of the protocols between threads, for every interleaving and every value that a load may return.
//!
//! What runs here is the code of the product ([`EngineSide`](super::EngineSide), [`Presence`](super::Presence), the mailbox,
//! the obligations, the submitter's half in `svadev_spec::doorbell`), with loom's primitives under it. A model adds the
//! threads, the memory that must not be touched too late, and an event to sleep on. A poster or an engine that nobody wakes
//! is a deadlock, which loom reports; an access that is not ordered after or before what it must be, a causality violation.
//!
//! Each model is followed by variants that lack one thing. A variant must fail: so the model would notice if the product
//! lacked it.
#![allow(unsafe_code, reason = "memory that a model frees is an UnsafeCell, whose accesses loom checks")]
use std::fmt::Debug;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use loom::cell::UnsafeCell;
use loom::sync::{Condvar, Mutex};

use crate::sync::{Count, Fence, Flag, Lock, Primitives};

mod invalidation;
mod removal;
mod sleep;

/// Runs `model` for every interleaving with at most `preemptions` preemptions (with `None`, for every one), and says how many
/// executions those were: a model that hardly branches proves little, so its test asks for a least number. A switch where
/// a thread blocks or ends is no preemption. `LOOM_MAX_PREEMPTIONS` in the environment is another bound for all of them.
fn check(preemptions: impl Into<Option<usize>>, model: impl Fn() + Send + Sync + 'static) -> usize {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = builder.preemption_bound.or(preemptions.into());
    let executions = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&executions);
    builder.check(move || {
        count.fetch_add(1, Ordering::Relaxed);
        model();
    });
    executions.load(Ordering::Relaxed)
}

/// Lacks nothing.
const WHOLE: u8 = 0;
/// Lacks the fence between *posted* and *online*.
const NO_POST_FENCE: u8 = 1;
/// Lacks the fence between *online* and *posted*.
const NO_ONLINE_FENCE: u8 = 2;
/// Lacks the fence between *offline* and *posted*.
const NO_OFFLINE_FENCE: u8 = 3;
/// Every access to a flag is relaxed.
const RELAXED_FLAGS: u8 = 4;
/// Every count of obligations is relaxed.
const RELAXED_COUNTS: u8 = 5;

/// Loom's primitives, but for what is lacking.
#[derive(Debug)]
struct Loom<const LACKS: u8>;

impl<const LACKS: u8> Primitives for Loom<LACKS> {
    type Flag = LoomFlag<LACKS>;
    type Count = LoomCount<LACKS>;
    type Lock<T: Debug + Send> = Mutex<T>;

    fn full_fence(at: Fence) {
        let lacking = match at {
            Fence::Post => NO_POST_FENCE,
            Fence::GoOnline => NO_ONLINE_FENCE,
            Fence::GoOffline => NO_OFFLINE_FENCE,
        };
        if LACKS != lacking {
            loom::sync::atomic::fence(Ordering::SeqCst);
        }
    }
}

#[derive(Debug)]
struct LoomFlag<const LACKS: u8>(loom::sync::atomic::AtomicBool);

impl<const LACKS: u8> LoomFlag<LACKS> {
    fn order(order: Ordering) -> Ordering {
        if LACKS == RELAXED_FLAGS { Ordering::Relaxed } else { order }
    }
}

impl<const LACKS: u8> Flag for LoomFlag<LACKS> {
    fn new(value: bool) -> Self {
        Self(loom::sync::atomic::AtomicBool::new(value))
    }
    fn load(&self, order: Ordering) -> bool {
        self.0.load(Self::order(order))
    }
    fn store(&self, value: bool, order: Ordering) {
        self.0.store(value, Self::order(order));
    }
    fn swap(&self, value: bool, order: Ordering) -> bool {
        self.0.swap(value, Self::order(order))
    }
}

#[derive(Debug)]
struct LoomCount<const LACKS: u8>(loom::sync::atomic::AtomicUsize);

impl<const LACKS: u8> LoomCount<LACKS> {
    fn order(order: Ordering) -> Ordering {
        if LACKS == RELAXED_COUNTS { Ordering::Relaxed } else { order }
    }
}

impl<const LACKS: u8> Count for LoomCount<LACKS> {
    fn new(value: usize) -> Self {
        Self(loom::sync::atomic::AtomicUsize::new(value))
    }
    fn increment(&self, order: Ordering) -> usize {
        self.0.fetch_add(1, Self::order(order))
    }
    fn decrement(&self, order: Ordering) -> usize {
        if std::thread::panicking() {
            // A model failed, and its mailboxes are dropped with what nobody will hear any more: loom is gone by now.
            return usize::MAX;
        }
        self.0.fetch_sub(1, Self::order(order))
    }
}

impl<T: Debug + Send> Lock<T> for Mutex<T> {
    fn new(value: T) -> Self {
        Self::new(value)
    }
    fn with<R>(&self, f: impl FnOnce(&mut T) -> R) -> R {
        f(&mut self.lock().unwrap())
    }
}

/// An eventfd: a signal is kept until somebody waits.
#[derive(Debug)]
struct Event {
    signalled: Mutex<bool>,
    changed: Condvar,
}

impl Event {
    fn new() -> Self {
        Self { signalled: Mutex::new(false), changed: Condvar::new() }
    }
    fn signal(&self) {
        *self.signalled.lock().unwrap() = true;
        self.changed.notify_one();
    }
    fn wait(&self) {
        let mut signalled = self.signalled.lock().unwrap();
        while !*signalled {
            signalled = self.changed.wait(signalled).unwrap();
        }
        *signalled = false;
    }
}

/// Memory that is there until it is freed, and that whoever frees it must know to be unused. Loom sees to it that every
/// access is ordered before the end or after the beginning of the other's.
#[derive(Debug)]
struct Memory {
    freed: UnsafeCell<bool>,
}

// SAFETY: that accesses exclude each other is what is checked: loom panics before it lets two in at once.
unsafe impl Sync for Memory {}

impl Memory {
    fn new() -> Self {
        Self { freed: UnsafeCell::new(false) }
    }
    fn access(&self) {
        // SAFETY: loom has checked that nobody writes.
        self.freed.with(|freed| assert!(!unsafe { *freed }, "accessed after it was freed"));
    }
    fn free(&self) {
        // SAFETY: loom has checked that nobody reads or writes.
        self.freed.with_mut(|freed| assert!(!std::mem::replace(unsafe { &mut *freed }, true), "freed twice"));
    }
}
