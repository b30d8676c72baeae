//! The gate: holds back what the guest or a function would see, until it is released.
//!
//! The unit passes a [`Point`] wherever it is about to do something that can be seen from outside. A [`Schedule`]
//! decides at each of them: pass, or hold. What is held is kept here as the point itself, which has all that is needed
//! to go on. Without a schedule there is no gate, and a point costs one branch.
//!
//! All points are passed by calls of one `&mut Unit`, so the calls of a schedule have one order, and a log of them
//! replays.
use std::fmt;

use svadev_fabric::{Bdf, InvalidateTag, PageGroupResponse, PageRequest};
use svadev_spec::vtd::fault::{FaultRecordHigh, FaultRecordLow};

use crate::interrupts::EventKind;

/// Points held at once. A guest decides how many arise, so there is a bound: beyond it, every point passes.
const MAX_HELD: usize = 1024;

/// A place where the unit does something that can be seen from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Point {
    /// A page request goes into the queue.
    PrqWrite(PageRequest),
    /// The page request event is sent.
    PrqEvent,
    /// A function hears the answer to a page request group.
    PrgResponse {
        /// The function.
        to: Bdf,
        /// The answer.
        response: PageGroupResponse,
    },
    /// The unit begins an invalidation descriptor.
    IqTake {
        /// Its type (§6.5.2).
        descriptor_type: u8,
    },
    /// A wait completes: its status is written.
    IqWait {
        /// Address and data of the status (SW).
        status: Option<(u64, u32)>,
        /// The completion event is raised (IF).
        interrupt: bool,
        /// Later descriptors start only after this one (FN). Held back, such a wait stops the queue.
        fence: bool,
    },
    /// The invalidation completion event is sent.
    IqEvent,
    /// A function's acknowledgement of a device-TLB invalidation counts.
    DevTlbAck {
        /// The function.
        from: Bdf,
        /// Which invalidation.
        tag: InvalidateTag,
    },
    /// A fault goes into a fault recording register.
    FaultRecord {
        /// Low half of the register.
        low: FaultRecordLow,
        /// High half of the register.
        high: FaultRecordHigh,
    },
    /// The fault event is sent.
    FaultEvent,
}

/// The kinds of [`Point`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum PointKind {
    /// [`Point::PrqWrite`].
    PrqWrite,
    /// [`Point::PrqEvent`].
    PrqEvent,
    /// [`Point::PrgResponse`].
    PrgResponse,
    /// [`Point::IqTake`].
    IqTake,
    /// [`Point::IqWait`].
    IqWait,
    /// [`Point::IqEvent`].
    IqEvent,
    /// [`Point::DevTlbAck`].
    DevTlbAck,
    /// [`Point::FaultRecord`].
    FaultRecord,
    /// [`Point::FaultEvent`].
    FaultEvent,
}

impl PointKind {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::PrqWrite,
        Self::PrqEvent,
        Self::PrgResponse,
        Self::IqTake,
        Self::IqWait,
        Self::IqEvent,
        Self::DevTlbAck,
        Self::FaultRecord,
        Self::FaultEvent,
    ];

    /// Its name in schedules and logs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::PrqWrite => "prq.write",
            Self::PrqEvent => "prq.event",
            Self::PrgResponse => "prg.response",
            Self::IqTake => "iq.take",
            Self::IqWait => "iq.wait",
            Self::IqEvent => "iq.event",
            Self::DevTlbAck => "devtlb.ack",
            Self::FaultRecord => "fault.record",
            Self::FaultEvent => "fault.event",
        }
    }
}

/// Which point: the n-th of its kind, counted from 1 since the schedule was set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PointId {
    /// Its kind.
    pub kind: PointKind,
    /// Its number.
    pub number: u64,
}

impl fmt::Display for PointId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}#{}", self.kind.name(), self.number)
    }
}

impl Point {
    /// Its kind.
    pub const fn kind(&self) -> PointKind {
        match self {
            Self::PrqWrite(_) => PointKind::PrqWrite,
            Self::PrqEvent => PointKind::PrqEvent,
            Self::PrgResponse { .. } => PointKind::PrgResponse,
            Self::IqTake { .. } => PointKind::IqTake,
            Self::IqWait { .. } => PointKind::IqWait,
            Self::IqEvent => PointKind::IqEvent,
            Self::DevTlbAck { .. } => PointKind::DevTlbAck,
            Self::FaultRecord { .. } => PointKind::FaultRecord,
            Self::FaultEvent => PointKind::FaultEvent,
        }
    }

    /// The point at which an event is sent.
    pub(crate) const fn of_event(kind: EventKind) -> Self {
        match kind {
            EventKind::Fault => Self::FaultEvent,
            EventKind::Invalidation => Self::IqEvent,
            EventKind::PageRequest => Self::PrqEvent,
        }
    }
}

/// What becomes of a point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The unit goes on.
    Pass,
    /// The unit keeps it until it is released.
    Hold,
}

/// Decides what passes.
pub trait Schedule: fmt::Debug + Send {
    /// The unit came to a point.
    fn reached(&mut self, id: PointId, point: &Point) -> Verdict;

    /// Whether a point that was held is still to be held. Asked by [`Unit::poll_gate`](crate::Unit::poll_gate).
    fn still_holds(&mut self, id: PointId) -> bool;
}

/// Lets everything pass.
#[derive(Debug)]
struct PassAll;

impl Schedule for PassAll {
    fn reached(&mut self, _: PointId, _: &Point) -> Verdict {
        Verdict::Pass
    }

    fn still_holds(&mut self, _: PointId) -> bool {
        false
    }
}

/// A point that is held.
#[derive(Clone, Copy, Debug)]
struct Held {
    id: PointId,
    point: Point,
    /// It was released, and only an older page request of its function is in the way.
    released: bool,
}

/// A schedule, and what it holds.
#[derive(Debug)]
pub(crate) struct Gate {
    schedule: Box<dyn Schedule>,
    /// How many points of each kind were reached.
    reached: [u64; PointKind::ALL.len()],
    /// Oldest first.
    held: Vec<Held>,
}

impl Gate {
    /// Nothing was reached yet.
    pub(crate) fn new(schedule: Box<dyn Schedule>) -> Self {
        Self { schedule, reached: [0; PointKind::ALL.len()], held: Vec::new() }
    }

    /// Whether `point` is held. If so, it is kept.
    #[cold]
    pub(crate) fn holds(&mut self, point: Point) -> bool {
        let kind = point.kind();
        let count = &mut self.reached[kind as usize];
        *count += 1;
        let id = PointId { kind, number: *count };
        let verdict = self.schedule.reached(id, &point);
        // The page requests of one function arrive in the order in which it sent them (PCIe 6.0 §10.4.1).
        let behind = matches!(point, Point::PrqWrite(request) if self.is_behind(&request, self.held.len()));
        let held = (verdict == Verdict::Hold || behind) && self.held.len() < MAX_HELD;
        if held {
            self.held.push(Held { id, point, released: verdict == Verdict::Pass });
        }
        held
    }

    /// Whether one of the first `len` points that are held is a page request of the same function.
    fn is_behind(&self, request: &PageRequest, len: usize) -> bool {
        self.held[..len]
            .iter()
            .any(|held| matches!(held.point, Point::PrqWrite(earlier) if earlier.requester == request.requester))
    }

    /// Holds nothing any more: every point passes, and what is held is released.
    pub(crate) fn open(&mut self) {
        self.schedule = Box::new(PassAll);
        self.held.iter_mut().for_each(|held| held.released = true);
    }

    /// Releases a point. Whether it was held; [`next_released`](Self::next_released) gives it out.
    pub(crate) fn release(&mut self, id: PointId) -> bool {
        let held = self.held.iter_mut().find(|held| held.id == id && !held.released);
        held.map(|held| held.released = true).is_some()
    }

    /// Releases the points that the schedule does not hold any more.
    pub(crate) fn poll(&mut self) {
        for held in self.held.iter_mut().filter(|held| !held.released) {
            held.released = !self.schedule.still_holds(held.id);
        }
    }

    /// Takes out the oldest point that may go: it was released, and no older page request of its function is held.
    pub(crate) fn next_released(&mut self) -> Option<Point> {
        let index = (0..self.held.len()).find(|&index| {
            let held = &self.held[index];
            held.released && !matches!(&held.point, Point::PrqWrite(request) if self.is_behind(request, index))
        })?;
        Some(self.held.remove(index).point)
    }

    /// Forgets the points that `doomed` names.
    pub(crate) fn forget(&mut self, doomed: impl Fn(&Point) -> bool) {
        self.held.retain(|held| !doomed(&held.point));
    }

    /// Releases the points that `chosen` names.
    pub(crate) fn release_if(&mut self, chosen: impl Fn(&Point) -> bool) {
        self.held.iter_mut().filter(|held| chosen(&held.point)).for_each(|held| held.released = true);
    }

    /// Whether a point that `wanted` names is held.
    pub(crate) fn is_holding(&self, wanted: impl Fn(&Point) -> bool) -> bool {
        self.held.iter().any(|held| wanted(&held.point))
    }

    /// What is held, oldest first.
    pub(crate) fn held(&self) -> impl Iterator<Item = (PointId, &Point)> {
        self.held.iter().map(|held| (held.id, &held.point))
    }
}
