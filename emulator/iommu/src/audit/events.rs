//! The last events of a unit.
use std::collections::VecDeque;
use std::fmt;

use svadev_fabric::{Access, Bdf, PageGroupResponse, PageRequest, Pasid, ResponseCode};

use crate::observe::{Observer, Scope};

/// Events that are kept.
const CAPACITY: usize = 4096;
/// Events that a finding shows, at most.
const SHOWN: usize = 24;

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum EventKind {
    /// A translation was given out.
    Translation {
        /// The function.
        requester: Bdf,
        /// The PASID.
        pasid: Option<Pasid>,
        /// The address.
        iova: u64,
        /// First byte of the page.
        gpa: u64,
        /// Log2 of its size.
        size_log2: u8,
        /// Rights.
        access: Access,
    },
    /// There was no translation.
    NoTranslation {
        /// The function.
        requester: Bdf,
        /// The PASID.
        pasid: Option<Pasid>,
        /// The address.
        iova: u64,
    },
    /// A page request came in.
    PageRequest(PageRequest),
    /// Software answered a group.
    PageResponse {
        /// The function.
        to: Bdf,
        /// The answer.
        response: PageGroupResponse,
    },
    /// Software asked for an invalidation.
    Invalidation(Scope),
    /// The invalidations so far are complete.
    Completed,
}

/// Something that happened, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HistoryEvent {
    /// On the auditor's clock, ns.
    pub at_ns: u64,
    pub(super) kind: EventKind,
}

/// The page whose events are wanted.
#[derive(Clone, Copy, Debug)]
pub(super) struct Subject {
    pub(super) domain_id: Option<u16>,
    pub(super) pasid: Option<Pasid>,
    pub(super) page: u64,
    pub(super) size_log2: u8,
}

impl Subject {
    fn has(&self, pasid: Option<Pasid>, iova: u64) -> bool {
        pasid == self.pasid && iova >> self.size_log2 == self.page >> self.size_log2
    }

    fn is_of(&self, kind: &EventKind) -> bool {
        match kind {
            EventKind::Translation { pasid, iova, .. } | EventKind::NoTranslation { pasid, iova, .. } => {
                self.has(*pasid, *iova)
            }
            EventKind::PageRequest(request) => self.has(request.pasid, request.iova.0),
            EventKind::PageResponse { response, .. } => response.pasid == self.pasid,
            EventKind::Invalidation(scope) => scope.concerns(self.domain_id, self.pasid, self.page, self.size_log2),
            EventKind::Completed => false,
        }
    }
}

/// The last events, oldest first.
#[derive(Debug, Default)]
pub(super) struct History {
    /// The auditor's clock: events are stamped with it.
    now_ns: u64,
    events: VecDeque<HistoryEvent>,
}

impl History {
    /// The time on the auditor's clock, ns.
    pub(super) fn now_ns(&self) -> u64 {
        self.now_ns
    }

    /// Sets the clock. It never goes back.
    pub(super) fn set_time(&mut self, now_ns: u64) {
        self.now_ns = self.now_ns.max(now_ns);
    }

    /// Keeps an event with the present time.
    pub(super) fn push(&mut self, kind: EventKind) {
        if self.events.len() == CAPACITY {
            self.events.pop_front();
        }
        self.events.push_back(HistoryEvent { at_ns: self.now_ns, kind });
    }

    /// The last events about something, and for each invalidation among them the completion after it; oldest first.
    pub(super) fn about(&self, subject: Subject) -> Vec<HistoryEvent> {
        let mut found = Vec::new();
        let mut invalidating = false;
        for event in &self.events {
            let completes = event.kind == EventKind::Completed && std::mem::take(&mut invalidating);
            if completes || subject.is_of(&event.kind) {
                invalidating |= matches!(event.kind, EventKind::Invalidation(_));
                found.push(*event);
            }
        }
        found.split_off(found.len().saturating_sub(SHOWN))
    }
}

impl Observer for History {
    fn invalidated(&mut self, scope: Scope) {
        self.push(EventKind::Invalidation(scope));
    }

    fn completed(&mut self) {
        self.push(EventKind::Completed);
    }

    fn page_requested(&mut self, request: PageRequest) {
        self.push(EventKind::PageRequest(request));
    }

    fn page_answered(&mut self, to: Bdf, response: PageGroupResponse) {
        self.push(EventKind::PageResponse { to, response });
    }
}

/// Time in seconds, and what happened.
impl fmt::Display for HistoryEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (seconds, rest) = (self.at_ns / 1_000_000_000, self.at_ns % 1_000_000_000);
        write!(f, "{seconds}.{:06} {}", rest / 1000, self.kind)
    }
}

impl fmt::Display for EventKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let flag = |set: bool, name: char| if set { name } else { '-' };
        match self {
            Self::Translation { requester, iova, gpa, size_log2, access, .. } => write!(
                f,
                "{requester} was told {iova:#x} -> {gpa:#x}, 2^{size_log2} bytes, {}{}",
                flag(access.read, 'r'),
                flag(access.write, 'w')
            ),
            Self::NoTranslation { requester, iova, .. } => write!(f, "{requester} was told {iova:#x} -> nothing"),
            Self::PageRequest(request) => write!(
                f,
                "{} requested the page at {}, {}{}, group {}{}",
                request.requester,
                request.iova,
                flag(request.access.read, 'r'),
                flag(request.access.write, 'w'),
                request.prg_index.get(),
                if request.last { ", last" } else { "" }
            ),
            Self::PageResponse { to, response } => {
                let code = match response.code {
                    ResponseCode::Success => "success",
                    ResponseCode::InvalidRequest => "invalid",
                    ResponseCode::Failure => "failure",
                };
                write!(f, "group {} of {to} was answered: {code}", response.prg_index.get())
            }
            Self::Invalidation(scope) => write!(f, "invalidate {scope}"),
            Self::Completed => f.write_str("invalidations complete"),
        }
    }
}
