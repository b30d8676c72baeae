//! What all threads of a function see of its mirror: the first error, and how far each engine is.
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use svadev_memory::{GuestAddress, GuestMemory};
use svadev_spec::mirror::{INVALIDATION_TAIL, error};

/// What is wrong with what the driver wrote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Problem {
    /// One of [`svadev_spec::mirror::error`].
    pub error: u8,
    /// The ASID; 0 where it concerns none.
    pub asid: u32,
    /// An address of the address space, or a guest-physical one of the control block.
    pub address: u64,
}

impl Problem {
    /// Nothing is wrong.
    pub const NONE: Self = Self { error: error::NONE, asid: 0, address: 0 };
}

/// How far an engine is, for a watchdog. Everything in it is the engine's word and not the guest's.
#[derive(Debug, Default)]
pub struct Watch {
    online: AtomicBool,
    looks: AtomicU64,
    head: AtomicU64,
}

impl Watch {
    /// The engine may use translations of the mirror.
    pub fn is_online(&self) -> bool {
        self.online.load(Ordering::Acquire)
    }

    /// How often it has looked at the invalidation ring.
    pub fn looks(&self) -> u64 {
        self.looks.load(Ordering::Acquire)
    }

    /// The index below which it has acknowledged.
    pub fn head(&self) -> u64 {
        self.head.load(Ordering::Acquire)
    }

    pub(crate) fn set_online(&self, online: bool) {
        self.online.store(online, Ordering::Release);
    }

    /// The engine has looked. It is the only writer.
    pub(crate) fn looked(&self, head: u64) {
        self.head.store(head, Ordering::Relaxed);
        self.looks.store(self.looks.load(Ordering::Relaxed).wrapping_add(1), Ordering::Release);
    }
}

/// What a function's threads share of its mirror.
#[derive(Debug)]
pub struct Face {
    problem: Mutex<Problem>,
    engines: Box<[Watch]>,
    /// Guest-physical address of the control block while the mirror is on; `u64::MAX` while it is off.
    block: AtomicU64,
}

impl Face {
    /// Of a function with so many engines.
    pub fn new(engines: usize) -> Self {
        Self {
            problem: Mutex::new(Problem::NONE),
            engines: (0..engines).map(|_| Watch::default()).collect(),
            block: AtomicU64::new(u64::MAX),
        }
    }

    /// Says where the control block is, or that the mirror is off.
    pub fn set_block(&self, base: Option<u64>) {
        self.block.store(base.unwrap_or(u64::MAX), Ordering::Release);
    }

    /// Whether something is posted that an engine has not acknowledged. The guest's word: it proves nothing alone.
    pub fn is_behind<M: GuestMemory + ?Sized>(&self, engine: usize, memory: &M) -> bool {
        let base = self.block.load(Ordering::Acquire);
        let tail = base.checked_add(INVALIDATION_TAIL).and_then(|at| memory.load_u64(GuestAddress(at)).ok());
        tail.is_some_and(|tail| tail != self.engine(engine).head())
    }

    /// The first problem since the mirror was turned on.
    pub fn problem(&self) -> Problem {
        *self.problem.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a problem. Only the first one counts: those after it may be its consequence.
    pub fn report(&self, problem: Problem) {
        let mut first = self.problem.lock().unwrap_or_else(PoisonError::into_inner);
        if first.error == error::NONE {
            *first = problem;
        }
    }

    /// Forgets the problem.
    pub fn clear(&self) {
        *self.problem.lock().unwrap_or_else(PoisonError::into_inner) = Problem::NONE;
    }

    /// How far an engine is.
    pub fn engine(&self, engine: usize) -> &Watch {
        &self.engines[engine]
    }

    /// How far each engine is.
    pub fn engines(&self) -> &[Watch] {
        &self.engines
    }
}
