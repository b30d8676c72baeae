//! What the protocols between threads are made of. They are generic over it, so that a model checker can put its own in
//! place and try every interleaving of the very code that runs (`models`).
use std::fmt::Debug;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering, fence};
use std::sync::{Mutex, PoisonError};

/// One family of primitives. [`Std`] is the one that products use.
pub trait Primitives: Debug + Send + Sync + 'static {
    /// A boolean.
    type Flag: Flag;
    /// A number that only ever counts up or down by one.
    type Count: Count;
    /// A lock around a `T`.
    type Lock<T: Debug + Send>: Lock<T>;
    /// A sequentially consistent fence. `at` names it for a checker that wants to know what happens without it.
    fn full_fence(at: Fence);
}

/// The fences of [`Handshake`](crate::handshake::Handshake).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fence {
    /// Between *posted* and the look at *online*.
    Post,
    /// Between *online* and the look at *posted*.
    GoOnline,
    /// Between *offline*, with the doorbells armed, and the look at *posted* and at the doorbells.
    GoOffline,
}

/// An atomic boolean; see [`AtomicBool`].
pub trait Flag: Debug + Send + Sync {
    /// With this value.
    fn new(value: bool) -> Self;
    /// Atomic load.
    fn load(&self, order: Ordering) -> bool;
    /// Atomic store.
    fn store(&self, value: bool, order: Ordering);
    /// Atomic exchange.
    fn swap(&self, value: bool, order: Ordering) -> bool;
}

/// An atomic counter; see [`AtomicUsize`].
pub trait Count: Debug + Send + Sync {
    /// With this value.
    fn new(value: usize) -> Self;
    /// One more; what it was.
    fn increment(&self, order: Ordering) -> usize;
    /// One less; what it was.
    fn decrement(&self, order: Ordering) -> usize;
}

/// Mutual exclusion; see [`Mutex`].
pub trait Lock<T>: Debug + Send + Sync {
    /// Around this value.
    fn new(value: T) -> Self;
    /// Calls `f` with the lock held.
    fn with<R>(&self, f: impl FnOnce(&mut T) -> R) -> R;
}

/// The standard library's.
#[derive(Debug)]
pub struct Std;

impl Primitives for Std {
    type Flag = AtomicBool;
    type Count = AtomicUsize;
    type Lock<T: Debug + Send> = Mutex<T>;

    #[inline]
    fn full_fence(_at: Fence) {
        fence(Ordering::SeqCst);
    }
}

impl Flag for AtomicBool {
    fn new(value: bool) -> Self {
        Self::new(value)
    }
    #[inline]
    fn load(&self, order: Ordering) -> bool {
        self.load(order)
    }
    #[inline]
    fn store(&self, value: bool, order: Ordering) {
        self.store(value, order);
    }
    #[inline]
    fn swap(&self, value: bool, order: Ordering) -> bool {
        self.swap(value, order)
    }
}

impl Count for AtomicUsize {
    fn new(value: usize) -> Self {
        Self::new(value)
    }
    fn increment(&self, order: Ordering) -> usize {
        self.fetch_add(1, order)
    }
    fn decrement(&self, order: Ordering) -> usize {
        self.fetch_sub(1, order)
    }
}

impl<T: Debug + Send> Lock<T> for Mutex<T> {
    fn new(value: T) -> Self {
        Self::new(value)
    }
    fn with<R>(&self, f: impl FnOnce(&mut T) -> R) -> R {
        // Every update under a lock is one statement; a panic elsewhere leaves no half of one.
        f(&mut self.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
