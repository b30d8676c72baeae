//! Model: a slot goes from one mapping to another while a handler searches it, on another thread and for another
//! address.
//!
//! The handler must never put a mapping together from parts of two: it would map zero pages over somebody's memory.
use std::sync::Arc;

use super::*;

/// Lacks nothing.
const WHOLE: u8 = 0;
/// The writer's fence is none.
const NO_WRITER_FENCE: u8 = 1;
/// The reader's fence is none.
const NO_READER_FENCE: u8 = 2;
/// Every access is relaxed.
const RELAXED: u8 = 3;

#[derive(Debug)]
struct LoomNumber<const LACKS: u8>(loom::sync::atomic::AtomicUsize);

impl<const LACKS: u8> LoomNumber<LACKS> {
    fn new(value: usize) -> Self {
        Self(loom::sync::atomic::AtomicUsize::new(value))
    }
    fn order(order: Ordering) -> Ordering {
        if LACKS == RELAXED { Ordering::Relaxed } else { order }
    }
}

impl<const LACKS: u8> Number for LoomNumber<LACKS> {
    fn load(&self, order: Ordering) -> usize {
        self.0.load(Self::order(order))
    }
    fn store(&self, value: usize, order: Ordering) {
        self.0.store(value, Self::order(order));
    }
    fn fetch_add(&self, value: usize, order: Ordering) -> usize {
        self.0.fetch_add(value, Self::order(order))
    }
    fn fetch_min(&self, value: usize, order: Ordering) -> usize {
        self.0.fetch_min(value, Self::order(order))
    }
    fn fence(order: Ordering) {
        // The writer's is sequentially consistent, the reader's acquire.
        let lacking = if order == Ordering::SeqCst { NO_WRITER_FENCE } else { NO_READER_FENCE };
        if LACKS != lacking {
            loom::sync::atomic::fence(order);
        }
    }
}

/// Two mappings that overlap, as they may one after the other. 205 is in both, and in some mixtures of them.
const FIRST: (usize, usize, usize) = (100, 200, 1);
const SECOND: (usize, usize, usize) = (200, 10, 2);
const ADDRESS: usize = 205;

/// Every interleaving with at most four preemptions.
fn handed_on<const LACKS: u8>() -> usize {
    let executions = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&executions);
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = builder.preemption_bound.or(Some(4));
    builder.check(move || {
        count.fetch_add(1, Ordering::Relaxed);
        let number = LoomNumber::<LACKS>::new;
        let (base, len, page) = FIRST;
        let lost_from = number(NOTHING_LOST);
        let slot = Slot { sequence: number(2), base: number(base), len: number(len), page: number(page), lost_from };
        let slot = Arc::new(slot);
        let writer = {
            let slot = Arc::clone(&slot);
            loom::thread::spawn(move || {
                slot.set(0, 0, 0);
                slot.set(SECOND.0, SECOND.1, SECOND.2);
            })
        };
        let found = slot.find(ADDRESS);
        assert!([None, Some(FIRST), Some(SECOND)].contains(&found), "torn: {found:?}");
        writer.join().unwrap();
        assert_eq!(slot.find(ADDRESS), Some(SECOND));
    });
    executions.load(Ordering::Relaxed)
}

#[test]
fn a_slot_is_found_whole_or_not_at_all() {
    let executions = handed_on::<WHOLE>();
    println!("{executions} executions");
    assert!(executions > 100, "{executions}");
}

#[test]
#[should_panic(expected = "torn")]
fn a_writer_without_its_fence() {
    handed_on::<NO_WRITER_FENCE>();
}

#[test]
#[should_panic(expected = "torn")]
fn a_reader_without_its_fence() {
    handed_on::<NO_READER_FENCE>();
}

#[test]
#[should_panic(expected = "torn")]
fn a_sequence_that_orders_nothing() {
    handed_on::<RELAXED>();
}
