//! One mapping's place in the table that the signal handler searches: a sequence lock, since a handler takes no lock.
//!
//! Generic over the atomics, so that a model checker can put its own in their place (`models`).
use std::sync::atomic::{AtomicUsize, Ordering, fence};

use super::NOTHING_LOST;

#[cfg(test)]
mod models;

/// What a slot needs of an atomic number and of fences.
pub(crate) trait Number {
    /// Atomic load.
    fn load(&self, order: Ordering) -> usize;
    /// Atomic store.
    fn store(&self, value: usize, order: Ordering);
    /// Atomic addition.
    fn fetch_add(&self, value: usize, order: Ordering) -> usize;
    /// Atomic minimum.
    fn fetch_min(&self, value: usize, order: Ordering) -> usize;
    /// A fence.
    fn fence(order: Ordering);
}

impl Number for AtomicUsize {
    fn load(&self, order: Ordering) -> usize {
        self.load(order)
    }
    fn store(&self, value: usize, order: Ordering) {
        self.store(value, order);
    }
    fn fetch_add(&self, value: usize, order: Ordering) -> usize {
        self.fetch_add(value, order)
    }
    fn fetch_min(&self, value: usize, order: Ordering) -> usize {
        self.fetch_min(value, order)
    }
    fn fence(order: Ordering) {
        fence(order);
    }
}

/// One mapping's place in the table that the signal handler searches.
#[derive(Debug)]
pub(crate) struct Slot<N = AtomicUsize> {
    /// Odd while the fields below change.
    sequence: N,
    /// First address; 0 when the slot is free.
    base: N,
    /// Bytes.
    len: N,
    /// The file's page size, bytes: what a part of the mapping must be aligned to, to be replaced.
    page: N,
    /// Offset of the first lost byte, or [`NOTHING_LOST`].
    lost_from: N,
}

impl Slot {
    /// A slot that nobody has.
    pub(super) const fn free() -> Self {
        Self {
            sequence: AtomicUsize::new(0),
            base: AtomicUsize::new(0),
            len: AtomicUsize::new(0),
            page: AtomicUsize::new(0),
            lost_from: AtomicUsize::new(NOTHING_LOST),
        }
    }
}

impl<N: Number> Slot<N> {
    /// Whether nobody has it; only for those who may call [`Self::set`].
    pub(super) fn is_free(&self) -> bool {
        self.base.load(Ordering::Relaxed) == 0
    }

    /// Gives the slot to a mapping, or with a `base` of 0 to nobody. Callers exclude each other.
    pub(super) fn set(&self, base: usize, len: usize, page: usize) {
        self.sequence.fetch_add(1, Ordering::SeqCst);
        N::fence(Ordering::SeqCst);
        self.base.store(base, Ordering::Relaxed);
        self.len.store(len, Ordering::Relaxed);
        self.page.store(page, Ordering::Relaxed);
        self.lost_from.store(NOTHING_LOST, Ordering::Relaxed);
        self.sequence.fetch_add(1, Ordering::SeqCst);
    }

    /// The mapping's base, length and page size if `address` is in it. A slot that changes meanwhile is another's.
    pub(super) fn find(&self, address: usize) -> Option<(usize, usize, usize)> {
        let before = self.sequence.load(Ordering::Acquire);
        let base = self.base.load(Ordering::Relaxed);
        let len = self.len.load(Ordering::Relaxed);
        let page = self.page.load(Ordering::Relaxed);
        N::fence(Ordering::Acquire);
        let steady = before.is_multiple_of(2) && self.sequence.load(Ordering::Relaxed) == before;
        (steady && base != 0 && address.checked_sub(base).is_some_and(|offset| offset < len))
            .then_some((base, len, page))
    }

    /// Notes that everything from `offset` on is lost.
    pub(super) fn note_lost(&self, offset: usize) {
        self.lost_from.fetch_min(offset, Ordering::SeqCst);
    }

    /// Offset of the first byte known to be lost, or [`NOTHING_LOST`]. Asked after an access, it covers that one.
    #[inline]
    pub(crate) fn lost_from(&self) -> usize {
        // The handler notes the loss before it maps anything, so a load that saw the replacement is followed by one
        // that sees the note. A store has no such order, and needs none: what it wrote into a lost page is lost either
        // way.
        N::fence(Ordering::Acquire);
        self.lost_from.load(Ordering::Relaxed)
    }
}
