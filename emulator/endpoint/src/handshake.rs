//! The invalidation handshake of `docs/design/0001-foundations.md`: two flags and two fences.
//!
//! An engine is *online* while it may hold a translation in use. A poster puts its message where the engine will look,
//! then calls [`Handshake::post`]; the engine calls [`Handshake::go_online`] before it uses a translation and
//! [`Handshake::go_offline`] when it uses none any more. The two pairs of *store, full fence, load* make sure that at
//! least one side sees the other (Dekker): either the poster hears that the engine is online, and so will empty its
//! mailbox, or the engine hears that something was posted before it uses any translation.
//!
//! `docs/locking.md` says what is proven about it.
use std::sync::atomic::Ordering;

use svadev_mutation::mutant;

use crate::sync::{Fence, Flag, Primitives, Std};

/// One engine's side of the handshake. Any number of posters, one engine.
#[derive(Debug)]
pub(crate) struct Handshake<P: Primitives = Std> {
    /// The engine may hold a translation in use. Written by the engine only.
    online: P::Flag,
    /// Something was posted since the engine last looked.
    posted: P::Flag,
}

impl<P: Primitives> Handshake<P> {
    /// An engine starts offline: it has never seen a translation.
    pub(crate) fn new() -> Self {
        Self { online: P::Flag::new(false), posted: P::Flag::new(false) }
    }

    /// Poster, after its message is in place: whether the engine is online, and so must be waited for.
    ///
    /// `false` means that every access the engine made is over (acquire pairs with the release of `go_offline`), and that
    /// it empties its mailbox before the next one.
    pub(crate) fn post(&self) -> bool {
        self.posted.store(true, Ordering::Release);
        P::full_fence(Fence::Post);
        self.online.load(Ordering::Acquire) && !mutant!(SliceIsNotWaitedFor)
    }

    /// Engine: may use translations from now on, *after* emptying its mailbox if this returns `true`.
    #[must_use = "a posted message must be taken before a translation is used"]
    pub(crate) fn go_online(&self) -> bool {
        self.online.store(true, Ordering::Relaxed);
        P::full_fence(Fence::GoOnline);
        self.take()
    }

    /// Engine, with no translation in use: uses none until `go_online`. `true` says that something was posted in between;
    /// whoever posted it may be waiting, so the engine must go online again and empty its mailbox.
    #[must_use = "a poster that saw the engine online waits for it"]
    pub(crate) fn go_offline(&self) -> bool {
        self.online.store(false, Ordering::Release);
        P::full_fence(Fence::GoOffline);
        self.posted.load(Ordering::Acquire) && !mutant!(SleepWithoutLooking)
    }

    /// Engine, between two slices: whether its mailbox has something; the flag is clear afterwards. One load if not.
    pub(crate) fn take(&self) -> bool {
        self.posted.load(Ordering::Acquire) && self.posted.swap(false, Ordering::AcqRel)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicBool, AtomicU64};

    use super::*;

    #[test]
    fn an_offline_engine_is_not_waited_for_but_hears_of_it() {
        let h = Handshake::<Std>::new();
        assert!(!h.post());
        assert!(h.go_online(), "what was posted while offline is seen first");
        assert!(!h.take());
        assert!(h.post(), "online: the poster waits");
        assert!(h.go_offline(), "and the engine hears that it may not just leave");
        assert!(h.go_online());
        assert!(!h.go_offline());
    }

    /// A value that the engine may read only while online, retired by a poster; a stale read is what must not happen.
    #[test]
    fn no_use_after_an_acknowledged_post() {
        const ROUNDS: u64 = 20_000;
        let handshake = Handshake::<Std>::new();
        // The mailbox: the newest retired generation. `live` is the newest that may be used.
        let mailbox = Mutex::new(0u64);
        let acknowledged = AtomicU64::new(0);
        let in_use = AtomicU64::new(u64::MAX);
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut retired = 0;
                let mut empty = || {
                    retired = *mailbox.lock().unwrap();
                    acknowledged.store(retired, Ordering::Release);
                    retired
                };
                let mut current = 0;
                while !stop.load(Ordering::Relaxed) {
                    if handshake.go_online() {
                        current = empty();
                    }
                    for _ in 0..3 {
                        in_use.store(current, Ordering::SeqCst);
                        std::hint::spin_loop();
                        in_use.store(u64::MAX, Ordering::SeqCst);
                        if handshake.take() {
                            current = empty();
                        }
                    }
                    while handshake.go_offline() {
                        if handshake.go_online() {
                            current = empty();
                        }
                    }
                }
            });
            for generation in 1..=ROUNDS {
                *mailbox.lock().unwrap() = generation;
                if handshake.post() {
                    while acknowledged.load(Ordering::Acquire) < generation {
                        // The engine may also leave: then it has looked again and acknowledged, or will before any use.
                        std::hint::spin_loop();
                        std::thread::yield_now();
                    }
                }
                let used = in_use.load(Ordering::SeqCst);
                assert!(
                    used == u64::MAX || used >= generation,
                    "generation {used} in use after {generation} was posted"
                );
            }
            stop.store(true, Ordering::Relaxed);
        });
    }
}
