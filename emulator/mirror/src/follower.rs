//! How an engine follows the invalidation ring. The handshake is the one of `svadev_endpoint`'s mailboxes: an engine
//! says that it is online before it looks, the driver posts before it asks who is online, and each side has a full
//! fence in between. So at least one of them sees the other.
//!
//! The driver posts without asking how far the engines are. An engine that finds more entries than the ring holds drops
//! everything, which is always right. Entries say only what to drop. That an engine has dropped it is said by one word.
use svadev_mutation::mutant;
use svadev_spec::mirror::{INVALIDATE_ALL, INVALIDATE_TABLES, Invalidation, is_asid};

use crate::words::{Fence, Gone, Word, Words};

/// What the engine must drop from its device TLB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drop {
    /// Every translation of the mirror.
    Everything,
    /// The translations of an address space that share a byte with a range.
    Range {
        /// The address space.
        asid: u32,
        /// First address.
        first: u64,
        /// Last address, inclusive.
        last: u64,
    },
}

impl Drop {
    /// What an entry asks for; `None` if it is malformed.
    fn of(entry: Invalidation) -> Option<Self> {
        let Invalidation { asid, flags, first, last, reserved } = entry;
        let clean = is_asid(asid) && asid >> 20 == 0 && flags & !(INVALIDATE_ALL | INVALIDATE_TABLES) == 0;
        let all = flags & INVALIDATE_ALL != 0;
        let range = if all { first == 0 && last == 0 } else { first <= last };
        let last = if all { u64::MAX } else { last };
        (clean && range && reserved == 0).then_some(Self::Range { asid, first, last })
    }
}

/// What a look at the ring led to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Collected {
    /// Somebody sleeps until an engine acknowledges.
    pub(crate) wake: bool,
    /// An entry was malformed.
    pub(crate) malformed: bool,
}

/// One engine's place in the invalidation ring.
#[derive(Debug, Default)]
pub(crate) struct Follower {
    /// Everything below is carried out. The word in the control block is written, and never read back.
    head: u64,
}

impl Follower {
    pub(crate) fn head(&self) -> u64 {
        self.head
    }

    /// Goes online. Whether the ring must be collected before a translation is used.
    #[must_use = "what was posted must be dropped before a translation is used"]
    pub(crate) fn arrive(&self, words: &impl Words) -> Result<bool, Gone> {
        words.store(Word::Online, 1)?;
        words.full_fence(Fence::Arrive);
        Ok(self.look(words)? && !mutant!(MirrorArrivesWithoutLooking))
    }

    /// Online, between two slices: whether the ring must be collected. One load.
    #[inline]
    #[must_use = "what was posted must be dropped before a translation is used"]
    pub(crate) fn look(&self, words: &impl Words) -> Result<bool, Gone> {
        Ok(words.load(Word::InvalidationTail)? != self.head)
    }

    /// Drops what was posted, then acknowledges. `entries` is the ring's size.
    ///
    /// The driver may write the entry one past the tail at any time, and with it overwrite the one that is a ring's
    /// size older. So the oldest entry that is certainly whole is `entries - 1` behind the tail, as it is after
    /// reading.
    pub(crate) fn collect(
        &mut self,
        words: &impl Words,
        entries: u64,
        mut drop: impl FnMut(Drop),
    ) -> Result<Collected, Gone> {
        let limit = if mutant!(MirrorOverrunOffByOne) { entries + 1 } else { entries };
        let mut collected = Collected::default();
        let tail = words.load(Word::InvalidationTail)?;
        let posted = tail.wrapping_sub(self.head);
        let mut whole = posted < limit;
        if whole {
            for n in 0..posted {
                match Drop::of(words.invalidation(self.head.wrapping_add(n))?) {
                    Some(range) => drop(range),
                    None => {
                        collected.malformed = true;
                        whole = false;
                    }
                }
            }
            let now = words.load(Word::InvalidationTail)?;
            let overrun = now.wrapping_sub(self.head) >= limit && !mutant!(MirrorOverrunTestedOnce);
            // A torn entry looks malformed, too, and that is nobody's mistake.
            collected.malformed &= !overrun;
            whole &= !overrun;
        }
        if !whole && !mutant!(MirrorOverrunIgnored) {
            drop(Drop::Everything);
        }
        self.head = tail;
        words.store(Word::InvalidationHead, tail)?;
        words.full_fence(Fence::Acknowledge);
        collected.wake = words.load(Word::Waiters)? != 0 && !mutant!(MirrorWaiterNotWoken);
        Ok(collected)
    }

    /// Goes offline, with no translation in use. Whether it may stay so: nothing was posted in between.
    #[must_use = "a driver that saw the engine online waits for it"]
    pub(crate) fn rest(&self, words: &impl Words) -> Result<bool, Gone> {
        words.store(Word::Online, 0)?;
        words.full_fence(Fence::Rest);
        Ok(!self.look(words)? || mutant!(MirrorRestsWithoutLooking))
    }
}
