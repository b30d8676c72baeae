//! The ledger of a source of invalidations: the ones that functions have not acknowledged yet.
//!
//! It has no clock. The caller that has one looks at what is outstanding and says when to give up.
use std::collections::BTreeMap;

use svadev_fabric::{Bdf, InvalidateTag, SourceId};
use svadev_mutation::mutant;

/// Device-TLB invalidations that may be under way at once.
const MAX_OUTSTANDING: usize = 256;

/// Invalidations of one source that were sent and not acknowledged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ledger {
    source: SourceId,
    /// The number of the next tag. Tags are never used twice, so a late acknowledgement is recognised.
    next: u64,
    outstanding: BTreeMap<InvalidateTag, Bdf>,
}

/// How an acknowledgement fits the ledger.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Acknowledged {
    /// It was missing.
    Expected,
    /// Its invalidation was given up by a reset, a restart of the queue, or a time-out.
    Late,
    /// Its tag was never sent by this source, or not to this function.
    Unexpected,
}

impl Ledger {
    /// An empty ledger of `source`.
    pub(crate) fn new(source: SourceId) -> Self {
        Self { source, next: 0, outstanding: BTreeMap::new() }
    }

    /// An empty ledger that goes on with the numbers of this one.
    pub(crate) fn successor(&self) -> Self {
        Self { source: self.source, next: self.next, outstanding: BTreeMap::new() }
    }

    /// Whether so many acknowledgements are missing that nothing more may be sent.
    pub(crate) fn is_full(&self) -> bool {
        self.outstanding.len() >= MAX_OUTSTANDING
    }

    /// Whether no acknowledgement is missing.
    pub(crate) fn is_empty(&self) -> bool {
        self.outstanding.is_empty()
    }

    /// Whether an acknowledgement of `requester` is missing.
    pub(crate) fn waits_for(&self, requester: Bdf) -> bool {
        self.outstanding.values().any(|&to| to == requester)
    }

    /// What was sent and not acknowledged, oldest first.
    pub(crate) fn outstanding(&self) -> impl Iterator<Item = (InvalidateTag, Bdf)> + '_ {
        self.outstanding.iter().map(|(&tag, &to)| (tag, to))
    }

    /// A tag for one more invalidation.
    pub(crate) fn new_tag(&mut self) -> InvalidateTag {
        let tag = InvalidateTag { source: self.source, number: self.next };
        self.next += 1;
        tag
    }

    /// `to` will acknowledge `tag`.
    pub(crate) fn expect(&mut self, tag: InvalidateTag, to: Bdf) {
        self.outstanding.insert(tag, to);
    }

    /// `requester` acknowledged `tag`.
    pub(crate) fn acknowledge(&mut self, requester: Bdf, tag: InvalidateTag) -> Acknowledged {
        match self.outstanding.get(&tag) {
            Some(&to) if to == requester || mutant!(AcknowledgementFromAnyone) => {
                self.outstanding.remove(&tag);
                Acknowledged::Expected
            }
            None if tag.source == self.source && tag.number < self.next => Acknowledged::Late,
            _ => Acknowledged::Unexpected,
        }
    }

    /// Gives up on every acknowledgement that is missing.
    pub(crate) fn give_up(&mut self) {
        self.outstanding.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: Bdf = Bdf(0x100);
    const OTHER: Bdf = Bdf(0x200);

    #[test]
    fn an_acknowledgement_counts_once_and_from_its_function() {
        let mut ledger = Ledger::new(SourceId::UNIT);
        let never_sent = InvalidateTag::unit(1);
        let tag = ledger.new_tag();
        ledger.expect(tag, ONE);
        assert!(ledger.waits_for(ONE) && !ledger.waits_for(OTHER) && !ledger.is_empty());
        assert_eq!(ledger.acknowledge(OTHER, tag), Acknowledged::Unexpected);
        assert_eq!(ledger.acknowledge(ONE, never_sent), Acknowledged::Unexpected);
        assert_eq!(ledger.outstanding().collect::<Vec<_>>(), [(tag, ONE)]);
        assert_eq!(ledger.acknowledge(ONE, tag), Acknowledged::Expected);
        assert!(ledger.is_empty());
        assert_eq!(ledger.acknowledge(ONE, tag), Acknowledged::Late);
    }

    #[test]
    fn what_was_given_up_is_late_and_its_tag_is_not_used_again() {
        let mut ledger = Ledger::new(SourceId::UNIT);
        let (first, second) = (ledger.new_tag(), ledger.new_tag());
        ledger.expect(first, ONE);
        ledger.expect(second, OTHER);
        let mut next = ledger.successor();
        ledger.give_up();
        for mut ledger in [ledger, next.successor()] {
            assert!(ledger.is_empty());
            assert_eq!(ledger.acknowledge(ONE, first), Acknowledged::Late);
            assert_eq!(ledger.acknowledge(OTHER, second), Acknowledged::Late);
        }
        assert!(next.new_tag().number > second.number);
    }

    /// Each source counts from 0, so two sources give out the same numbers.
    #[test]
    fn a_tag_of_another_source_is_not_of_this_ledger() {
        let mut ledger = Ledger::new(SourceId::UNIT);
        let tag = ledger.new_tag();
        ledger.expect(tag, ONE);
        let mut other = Ledger::new(SourceId::IDENTITY);
        let foreign = other.new_tag();
        assert_eq!(foreign.number, tag.number);
        assert_eq!(ledger.acknowledge(ONE, foreign), Acknowledged::Unexpected);
        assert!(ledger.waits_for(ONE));
        assert_eq!(ledger.acknowledge(ONE, tag), Acknowledged::Expected);
        assert_eq!(ledger.acknowledge(ONE, foreign), Acknowledged::Unexpected, "it is not late: it was never sent");
    }

    #[test]
    fn it_is_full_at_its_bound() {
        let mut ledger = Ledger::new(SourceId::UNIT);
        for sent in 0..MAX_OUTSTANDING {
            assert!(!ledger.is_full(), "after {sent}");
            let tag = ledger.new_tag();
            ledger.expect(tag, ONE);
        }
        assert!(ledger.is_full());
    }
}
