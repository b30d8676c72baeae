//! Where one engine is told things, and how it listens: the handshake and the mailbox together.
//!
//! Posters have [`EngineSide::post`] and [`invalidate`], the engine has [`Presence`]. What they promise, and what is checked
//! for every interleaving (`models`):
//! - Once an invalidation was answered, at once or later, no access through what it retired is under way or follows.
//! - No message is lost, and no poster waits for ever: an engine that goes to sleep or leaves looks once more.
//! - An engine whose thread sleeps has seen every doorbell that was rung without a wake.
use svadev_fabric::InvalidateAck;

use crate::device::Mail;
use crate::handshake::Handshake;
use crate::mailbox::{Invalidation, Mailbox};
use crate::obligation::{Answer, Obligation};
use crate::sync::{Lock, Primitives, Std};

#[cfg(test)]
mod models;

/// One engine's mailbox, and the handshake that says whether the engine must be waited for.
#[derive(Debug)]
pub struct EngineSide<D: Mail, P: Primitives = Std> {
    handshake: Handshake<P>,
    /// Lock order: the IOMMU's lock, then this; nothing is taken or called under it.
    mailbox: P::Lock<Mailbox<D, P>>,
}

impl<D: Mail, P: Primitives> EngineSide<D, P> {
    /// Of an engine that has not arrived yet; `mail` is the device's part of its mailbox, empty.
    pub fn new(mail: D) -> Self {
        Self { handshake: Handshake::new(), mailbox: P::Lock::new(Mailbox::new(mail)) }
    }

    /// Puts something into the mailbox. Whether the engine is online, and so finds it by itself; an offline one finds it when
    /// it arrives, and is to be woken if it must act.
    #[must_use = "an engine that sleeps has to be woken for what it must act on"]
    pub fn post(&self, put: impl FnOnce(&mut Mailbox<D, P>)) -> bool {
        self.mailbox.with(|mailbox| {
            put(mailbox);
            self.handshake.post()
        })
    }

    /// Engine: moves everything into `taken`, which is empty.
    pub fn take_into(&self, taken: &mut Mailbox<D, P>) {
        self.mailbox.with(|mailbox| mailbox.take_into(taken));
    }
}

/// Tells every engine to drop translations. `Done`: none is in use; `Pending`: the engine that is last to acknowledge gets
/// `answer` to give.
pub(crate) fn invalidate<D: Mail, P: Primitives>(
    sides: &[EngineSide<D, P>],
    invalidation: Invalidation,
    answer: Answer<D::Answer>,
) -> InvalidateAck {
    let mut own: Option<Obligation<D::Answer, P>> = None;
    for side in sides {
        side.mailbox.with(|mailbox| {
            mailbox.invalidate(invalidation);
            // Under the mailbox lock: an engine that goes offline after this looks into the mailbox again, and finds the
            // obligation there. An offline one is not woken: it empties its mailbox before it uses a translation.
            if side.handshake.post() {
                mailbox.due.push(own.get_or_insert_with(|| Obligation::new(answer)).share());
            }
        });
    }
    match own.map(Obligation::acknowledge) {
        None | Some(Some(_)) => InvalidateAck::Done,
        Some(None) => InvalidateAck::Pending,
    }
}

/// The engine's own word on whether it is online. Where a method says that the mailbox must be emptied, it is emptied with
/// [`EngineSide::take_into`] and [`Mailbox::carry_out`] before a translation is used.
#[derive(Debug, Default)]
pub struct Presence {
    online: bool,
}

impl Presence {
    /// Whether translations may be in use.
    pub fn is_online(&self) -> bool {
        self.online
    }

    /// Goes online. Whether the mailbox must be emptied.
    #[must_use = "a posted message must be taken before a translation is used"]
    pub fn arrive<D: Mail, P: Primitives>(&mut self, side: &EngineSide<D, P>) -> bool {
        self.online = true;
        side.handshake.go_online()
    }

    /// Between two slices, online: whether the mailbox must be emptied. One load if not.
    #[must_use = "a poster waits for what it posted"]
    pub fn look<D: Mail, P: Primitives>(&self, side: &EngineSide<D, P>) -> bool {
        debug_assert!(self.online, "an engine that is offline arrives first");
        side.handshake.take()
    }

    /// With no translation in use: `arm`s the doorbells, goes offline, and looks once more. `true`: the thread may sleep until
    /// it is woken, then arrives. `false`: something was posted, or the doorbells are `rung`: arrive at once.
    ///
    /// Software stores its word, then a full fence, then loads `ARMED` ([`svadev_spec::doorbell`]); here `ARMED` is stored,
    /// then a full fence, then the words are loaded: at least one of the two sees the other.
    #[must_use = "who must not sleep arrives again"]
    pub fn rest<D: Mail, P: Primitives>(
        &mut self,
        side: &EngineSide<D, P>,
        arm: impl FnOnce(),
        rung: impl FnOnce() -> bool,
    ) -> bool {
        arm();
        let posted = side.handshake.go_offline();
        self.online = false;
        !posted && !rung()
    }

    /// Goes offline for good. `empty` empties the mailbox and uses nothing any more; it is called until no poster can be
    /// waiting.
    pub fn leave<D: Mail, P: Primitives>(&mut self, side: &EngineSide<D, P>, mut empty: impl FnMut()) {
        self.online = false;
        loop {
            empty();
            if !(side.handshake.go_offline() && side.handshake.take()) {
                break;
            }
        }
    }
}
