//! Memory that left the map and is released when no engine uses it any more.
use std::collections::HashMap;
use std::sync::Mutex;

use svadev_mutation::mutant;
use svadev_vfio_user::{ReplyToken, Sender};

use crate::platform::GuestMaps;

/// Memory that left the map but may still be in use by an engine, and the replies that wait for it.
pub(crate) struct Releases<G: GuestMaps> {
    sender: Sender,
    waiting: Mutex<Waiting<G>>,
}

struct Waiting<G: GuestMaps> {
    next: u64,
    memory: HashMap<u64, (G::Retired, Option<ReplyToken>)>,
}

impl<G: GuestMaps> Releases<G> {
    /// Nothing waits. Replies go out through `sender`.
    pub(crate) fn new(sender: Sender) -> Self {
        Self { sender, waiting: Mutex::new(Waiting { next: 0, memory: HashMap::new() }) }
    }

    /// Keeps `retired` until [`Self::release`] with the returned token, which then also answers `reply`.
    pub(crate) fn hold(&self, retired: G::Retired, reply: Option<ReplyToken>) -> u64 {
        let mut waiting = self.lock();
        let token = waiting.next;
        waiting.next += 1;
        waiting.memory.insert(token, (retired, reply));
        token
    }

    /// Unmaps memory that nobody uses any more, and answers who waits for it.
    ///
    /// The engine that is last to let go calls it, with the token of [`Self::hold`]. A second call finds nothing (L5).
    pub(crate) fn release(&self, token: u64) {
        let released = self.lock().memory.remove(&token);
        if let Some((retired, reply)) = released {
            let bytes = G::bytes(&retired);
            // Unmapped before it is answered: the VMM takes the answer to mean that nobody has it mapped.
            drop(retired);
            if let Some(reply) = reply
                && !mutant!(UnmapNeverAnswered)
            {
                self.sender.complete(reply, Ok(bytes));
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Waiting<G>> {
        self.waiting.lock().expect("no holder of the waiting releases panics")
    }
}
