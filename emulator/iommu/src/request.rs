//! Requests from functions, and the conditions that block them.
use svadev_fabric::{Access, Bdf, Iova, Pasid};
use svadev_spec::vtd::FaultReason;

/// Kinds of request, as the fault record tells them apart (FRCD.T1, T2, AT).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RequestKind {
    /// An access with an untranslated address (AT 00).
    Untranslated,
    /// An ATS translation request (AT 01).
    Translation,
    /// An access with an address that an ATS completion gave (AT 10).
    Translated,
    /// A page request message.
    PageRequest,
}

/// A request, as far as tables and faults care.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Request {
    pub(crate) requester: Bdf,
    pub(crate) pasid: Option<Pasid>,
    pub(crate) iova: Iova,
    pub(crate) access: Access,
    pub(crate) kind: RequestKind,
}

/// A fault condition that a request met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) reason: FaultReason,
    /// FPD was set in one of the entries on the way (§7.1.3).
    pub(crate) fault_processing_disable: bool,
}

/// An access was blocked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Blocked {
    /// It completes as an Unsupported Request, and the reason is recorded unless FPD says no.
    #[error("blocked: {0:?}")]
    Fault(FaultReason),
    /// All requests are aborted, and none is recorded: abort-DMA mode (§3.4.5).
    #[error("aborted: the unit is in abort-DMA mode")]
    AbortDma,
}
