//! Waiting for a page: what a parked descriptor or a parked ring access keeps, and what it may still try.
use svadev_fabric::ResponseCode;
use svadev_mirror::Ticket;
use svadev_mutation::mutant;

use crate::address::Target;
use crate::failure::Failure;
use crate::page_request::Group;

/// How often in a row a page may at least be *served* and yet not be there, with no byte of progress in between.
///
/// Each *success* says that the kernel made the page present. It may be gone again before the engine asks: reclaimed,
/// dropped by MADV_DONTNEED, or its rights taken back by fork. A program that drops a page in a loop can win that race any
/// number of times on a busy machine, so the count alone is no reason to fail: the time for page requests must be over
/// as well (L7). Tables that never show what the kernel says they do would otherwise keep a descriptor going for ever.
pub const PATIENCE: u8 = 16;

/// What a piece of work has gone through since it last made progress.
#[derive(Clone, Copy, Debug, Default)]
pub struct Patience {
    /// *Success* responses with no progress after them.
    pub successes: u8,
    /// When the first fault since then was.
    pub faulting_since_ns: Option<u64>,
    /// Ask for the needed page alone. Set for good once a group was *invalid*: a page further on may not exist, and the
    /// work must then fail only when it gets there.
    pub narrow: bool,
    /// When the IOMMU first dropped a request of this access, if it has accepted none since.
    pub dropped_since_ns: Option<u64>,
}

impl Patience {
    /// Whether asking again is of no use: pages were served again and again, for so long, and were never there.
    pub(crate) fn is_fruitless(&mut self, now_ns: u64, timeout_ns: u64) -> bool {
        let since = *self.faulting_since_ns.get_or_insert(now_ns);
        self.successes >= PATIENCE && now_ns >= since.saturating_add(timeout_ns)
    }

    /// Something was done.
    pub fn progress(&mut self) {
        self.successes = 0;
        self.faulting_since_ns = None;
        self.dropped_since_ns = None;
    }
}

/// What a wait is for.
#[derive(Debug)]
pub enum WaitFor {
    /// A page group response.
    Response(Group),
    /// A response of the mirror's driver.
    Event(Ticket),
    /// Room in the page request allocation.
    Line,
    /// Nothing: the IOMMU dropped the request, so that no response will come. Its queue may be enabled again, or
    /// have room: ask again at `retry_ns`.
    Retry {
        /// When.
        retry_ns: u64,
    },
}

/// A parked access.
#[derive(Debug)]
pub struct Wait {
    /// What is waited for.
    pub target: Target,
    /// Why.
    pub reason: WaitFor,
    /// When it fails.
    pub deadline_ns: u64,
}

/// What becomes of work when its wait is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resume {
    /// Try the access again.
    Retry,
    /// Give up, with this code and the target's address.
    Fail(Failure),
}

impl Patience {
    /// A response to a group of `pages` came (PCIe 6.0 §10.4.2.1).
    pub fn response(&mut self, code: ResponseCode, pages: u16) -> Resume {
        match code {
            ResponseCode::Success => {
                self.successes = self.successes.saturating_add(1);
                Resume::Retry
            }
            ResponseCode::InvalidRequest if pages > 1 && !self.narrow && !mutant!(InvalidIsNotNarrowed) => {
                self.narrow = true;
                Resume::Retry
            }
            ResponseCode::InvalidRequest => Resume::Fail(Failure::PageFault),
            ResponseCode::Failure => Resume::Fail(Failure::PageRequestFailed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_invalid_group_is_asked_for_again_page_by_page_once() {
        let mut patience = Patience::default();
        assert_eq!(patience.response(ResponseCode::InvalidRequest, 8), Resume::Retry);
        assert!(patience.narrow);
        assert_eq!(patience.response(ResponseCode::InvalidRequest, 1), Resume::Fail(Failure::PageFault));
        assert_eq!(Patience::default().response(ResponseCode::InvalidRequest, 1), Resume::Fail(Failure::PageFault));
        assert_eq!(Patience::default().response(ResponseCode::Failure, 8), Resume::Fail(Failure::PageRequestFailed));
    }
}
