//! What other threads tell one engine. It is bounded: if more invalidations come than fit, they become one of
//! everything.
use std::vec::Drain;

use svadev_fabric::{InvalidateRange, InvalidateRequest, Iova, PrgIndex, SourceId};

use crate::address::SpaceId;
use crate::device::Mail;
use crate::obligation::Obligation;
use crate::sync::{Primitives, Std};

/// Invalidations kept apart before they collapse into *everything*, which is always allowed.
const INVALIDATIONS: usize = 64;

/// Whose device-TLB entries an invalidation covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whose {
    /// Those of every source.
    Everyone,
    /// Those of every space of a source (*Global Invalidate*, PCIe 6.0 §10.3.8).
    Source(SourceId),
    /// Those of one space.
    Space(SpaceId),
}

/// Device-TLB entries to drop: an [`InvalidateRequest`] without its tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Invalidation {
    /// Whose.
    pub whose: Whose,
    /// Which addresses.
    pub range: InvalidateRange,
}

impl Invalidation {
    /// Everything there is.
    pub const ALL: Self = Self { whose: Whose::Everyone, range: InvalidateRange::All };

    /// All that belongs to one space.
    pub const fn space(space: SpaceId) -> Self {
        Self { whose: Whose::Space(space), range: InvalidateRange::All }
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
        let source = request.tag.source;
        let whose =
            if request.global { Whose::Source(source) } else { Whose::Space(SpaceId::new(source, request.pasid)) };
        Self { whose, range }
    }
}

/// One engine's mailbox.
#[derive(Debug)]
pub struct Mailbox<D: Mail, P: Primitives = Std> {
    /// At most [`INVALIDATIONS`]; allocated at construction.
    pub(crate) invalidations: Vec<Invalidation>,
    /// Answers that are due once the invalidations were carried out. The IOMMU has at most a queue's worth of them
    /// outstanding, since a wait descriptor holds its queue up; changes of the memory map come one at a time.
    pub(crate) due: Vec<Obligation<D::Answer, P>>,
    /// Bit n: the group with index n that this engine sent was answered.
    pub answered: [u64; PrgIndex::COUNT / 64],
    /// Page request credits became free while accesses of this engine were in line for them.
    pub credit: bool,
    /// What the device itself mails.
    pub device: D,
}

impl<D: Mail, P: Primitives> Mailbox<D, P> {
    /// Nothing, with an empty part of the device's.
    pub fn new(device: D) -> Self {
        Self {
            invalidations: Vec::with_capacity(INVALIDATIONS),
            due: Vec::with_capacity(INVALIDATIONS),
            answered: [0; PrgIndex::COUNT / 64],
            credit: false,
            device,
        }
    }

    /// Adds an invalidation, collapsing all of them where there is no more room.
    pub fn invalidate(&mut self, invalidation: Invalidation) {
        if self.invalidations.len() == INVALIDATIONS {
            self.invalidations.clear();
            self.invalidations.push(Invalidation::ALL);
        } else if self.invalidations.first() != Some(&Invalidation::ALL) {
            self.invalidations.push(invalidation);
        }
    }

    /// Takes everything: `taken`, which is empty, and the mailbox change places. Nothing is allocated.
    pub fn take_into(&mut self, taken: &mut Self) {
        debug_assert!(taken.is_empty(), "what was taken before was not handled");
        std::mem::swap(self, taken);
    }

    /// Of a mailbox that was taken: carries the invalidations out, and only then yields the answers that are due.
    pub fn carry_out(&mut self, mut invalidate: impl FnMut(Invalidation)) -> Drain<'_, Obligation<D::Answer, P>> {
        while let Some(invalidation) = self.invalidations.pop() {
            invalidate(invalidation);
        }
        self.due.drain(..)
    }

    fn is_empty(&self) -> bool {
        self.invalidations.is_empty()
            && self.due.is_empty()
            && self.answered == [0; PrgIndex::COUNT / 64]
            && !self.credit
            && self.device.is_empty()
    }
}

impl<D: Mail, P: Primitives> Drop for Mailbox<D, P> {
    /// The engine and the function are gone: whoever waited is gone with them.
    fn drop(&mut self) {
        for obligation in self.due.drain(..) {
            let _nobody_hears = obligation.acknowledge();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_mailbox_collapses_into_everything() {
        let mut mailbox = Mailbox::<(), Std>::new(());
        for n in 0..INVALIDATIONS as u64 {
            let range = InvalidateRange::Naturally { start: Iova(n << 12), size_log2: 12 };
            mailbox.invalidate(Invalidation { whose: Whose::Space(SpaceId::new(SourceId::UNIT, None)), range });
        }
        assert_eq!(mailbox.invalidations.len(), INVALIDATIONS);
        for _ in 0..3 {
            mailbox.invalidate(Invalidation::space(SpaceId::new(SourceId::UNIT, None)));
            assert_eq!(mailbox.invalidations, [Invalidation::ALL]);
        }
        assert!(mailbox.invalidations.capacity() < 2 * INVALIDATIONS);
    }
}
