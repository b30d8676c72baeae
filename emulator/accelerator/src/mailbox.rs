//! What other threads tell one engine. Bounded: where more comes than fits, it collapses into something that says as much.
use std::vec::Drain;

use svadev_fabric::{InvalidateRange, InvalidateRequest, Iova, Pasid, PrgIndex};
use svadev_spec::device::MAX_QUEUES;

use crate::obligation::Obligation;
use crate::queue_config::QueueConfig;
use crate::sync::{Primitives, Std};

/// Invalidations kept apart before they collapse into *everything*, which is always allowed.
const INVALIDATIONS: usize = 64;

/// Device-TLB entries to drop: an [`InvalidateRequest`] without its tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Invalidation {
    /// Entries of this PASID, or those that were requested without one.
    pub(crate) pasid: Option<Pasid>,
    /// Entries of every PASID and of none.
    pub(crate) global: bool,
    /// Which addresses.
    pub(crate) range: InvalidateRange,
}

impl Invalidation {
    /// Everything there is.
    pub(crate) const ALL: Self = Self { pasid: None, global: true, range: InvalidateRange::All };

    /// All that belongs to one PASID.
    pub(crate) const fn pasid(pasid: Pasid) -> Self {
        Self { pasid: Some(pasid), global: false, range: InvalidateRange::All }
    }
}

impl From<InvalidateRequest> for Invalidation {
    fn from(request: InvalidateRequest) -> Self {
        let range = match request.range {
            // A range below a page or of the whole space and more is not one that the fabric sends: take it as all.
            InvalidateRange::Naturally { size_log2, .. } if !(12..64).contains(&size_log2) => InvalidateRange::All,
            InvalidateRange::Naturally { start, size_log2 } => {
                InvalidateRange::Naturally { start: Iova(start.0 >> size_log2 << size_log2), size_log2 }
            }
            InvalidateRange::All => InvalidateRange::All,
        };
        Self { pasid: request.pasid, global: request.global, range }
    }
}

/// Changes of one queue that its engine has not taken: first the disable, then the enable.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct QueueChange {
    /// 1 → 0 was written.
    pub(crate) disable: bool,
    /// 0 → 1 was written, after that.
    pub(crate) enable: Option<QueueConfig>,
}

/// A command of the COMMAND register (`svadev_spec::device::command`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Command {
    /// ABORT_PASID.
    Abort(Pasid),
    /// DRAIN_PASID.
    Drain(Pasid),
}

/// One engine's mailbox.
#[derive(Debug)]
pub(crate) struct Mailbox<P: Primitives = Std> {
    /// At most [`INVALIDATIONS`]; allocated at construction.
    pub(crate) invalidations: Vec<Invalidation>,
    /// Answers owed once the invalidations were carried out. The IOMMU has at most a queue's worth of them outstanding,
    /// since a wait descriptor holds its queue up; changes of the memory map come one at a time.
    pub(crate) owed: Vec<Obligation<P>>,
    /// Bit n: the group with index n that this engine sent was answered.
    pub(crate) answered: [u64; PrgIndex::COUNT / 64],
    /// Page request credits became free while this engine had jobs in line for them.
    pub(crate) credit: bool,
    /// Resets owed. What else is in the mailbox was posted after the newest.
    pub(crate) resets: Vec<Obligation<P>>,
    /// CONTROL.enable 1 → 0 owed.
    pub(crate) disables: Vec<Obligation<P>>,
    /// By queue number; this engine's queues only are ever set.
    pub(crate) queues: Box<[QueueChange]>,
    /// Some element of `queues` is set.
    pub(crate) queues_changed: bool,
    /// Bit n: the wake page of queue n was written.
    pub(crate) rung: [u64; MAX_QUEUES as usize / 64],
    /// Every doorbell is to be looked at: the function was enabled.
    pub(crate) rung_all: bool,
    /// The command in progress.
    pub(crate) command: Option<(Command, Obligation<P>)>,
}

impl<P: Primitives> Mailbox<P> {
    pub(crate) fn new(queues: usize) -> Self {
        Self {
            invalidations: Vec::with_capacity(INVALIDATIONS),
            owed: Vec::with_capacity(INVALIDATIONS),
            answered: [0; PrgIndex::COUNT / 64],
            credit: false,
            resets: Vec::with_capacity(4),
            disables: Vec::with_capacity(4),
            queues: vec![QueueChange::default(); queues].into(),
            queues_changed: false,
            rung: [0; MAX_QUEUES as usize / 64],
            rung_all: false,
            command: None,
        }
    }

    /// The wake page of a queue was written.
    pub(crate) fn ring(&mut self, queue: usize) {
        self.rung[queue / 64] |= 1 << (queue % 64);
    }

    /// Adds an invalidation, collapsing all of them where there is no more room.
    pub(crate) fn invalidate(&mut self, invalidation: Invalidation) {
        if self.invalidations.len() == INVALIDATIONS {
            self.invalidations.clear();
            self.invalidations.push(Invalidation::ALL);
        } else if self.invalidations.first() != Some(&Invalidation::ALL) {
            self.invalidations.push(invalidation);
        }
    }

    /// A reset outdates the queue changes that came before it.
    pub(crate) fn reset(&mut self, obligation: Obligation<P>) {
        self.queues.fill(QueueChange::default());
        self.queues_changed = false;
        self.resets.push(obligation);
    }

    /// Takes everything: `taken`, which is empty, and the mailbox change places. Nothing is allocated.
    pub(crate) fn take_into(&mut self, taken: &mut Self) {
        debug_assert!(taken.is_empty(), "what was taken before was not handled");
        std::mem::swap(self, taken);
    }

    /// Of a mailbox that was taken: carries the invalidations out, and only then yields what is owed for them.
    pub(crate) fn carry_out(&mut self, mut invalidate: impl FnMut(Invalidation)) -> Drain<'_, Obligation<P>> {
        while let Some(invalidation) = self.invalidations.pop() {
            invalidate(invalidation);
        }
        self.owed.drain(..)
    }

    fn is_empty(&self) -> bool {
        self.invalidations.is_empty()
            && self.owed.is_empty()
            && self.answered == [0; PrgIndex::COUNT / 64]
            && !self.credit
            && self.resets.is_empty()
            && self.disables.is_empty()
            && !self.queues_changed
            && self.rung == [0; MAX_QUEUES as usize / 64]
            && !self.rung_all
            && self.command.is_none()
    }
}

impl<P: Primitives> Drop for Mailbox<P> {
    /// The engine and the function are gone: whoever waited is gone with them.
    fn drop(&mut self) {
        let command = self.command.take().map(|(_, obligation)| obligation);
        for obligation in self.owed.drain(..).chain(self.resets.drain(..)).chain(self.disables.drain(..)).chain(command)
        {
            let _nobody_hears = obligation.acknowledge();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_mailbox_collapses_into_everything() {
        let mut mailbox = Mailbox::<Std>::new(1);
        for n in 0..INVALIDATIONS as u64 {
            let range = InvalidateRange::Naturally { start: Iova(n << 12), size_log2: 12 };
            mailbox.invalidate(Invalidation { pasid: None, global: false, range });
        }
        assert_eq!(mailbox.invalidations.len(), INVALIDATIONS);
        for _ in 0..3 {
            mailbox.invalidate(Invalidation::pasid(Pasid::MAX));
            assert_eq!(mailbox.invalidations, [Invalidation::ALL]);
        }
        assert!(mailbox.invalidations.capacity() < 2 * INVALIDATIONS);
    }
}
