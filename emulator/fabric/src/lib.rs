//! What passes between a PCI function and whoever translates for it: the PCIe transactions of address translation.
//!
//! This crate knows the messages, the identifiers in them and the two port traits. It must not know a function or an
//! IOMMU. Neither of them knows the other's type: `svadev-host` connects them.
//!
//! ```text
//!   function ── TranslationRequest, PageRequest, InvalidateCompletion ──▶ IOMMU     trait [`Upstream`]
//!   function ◀── InvalidateRequest, PageGroupResponse ─────────────────── IOMMU     trait [`Downstream`]
//!                                     message interrupts (MSI) ◀───────── IOMMU     trait [`Downstream`]
//! ```
//!
//! The path: a function asks [`Upstream::translate`]. If the answer has no rights, it sends [`Upstream::page_request`]
//! and gets [`Downstream::page_group_response`] later. When the guest changes a table, the IOMMU sends
//! [`Downstream::invalidate`].
//!
//! Where new things go: a transaction is a type in `messages.rs` and a method of the trait of its receiver; an
//! identifier is a type in `ids.rs`; a second translation source is a [`SourceId`].
//!
//! # The invalidation contract
//! [`Downstream::invalidate`] never waits. [`InvalidateAck::Done`] means that no access through an older translation is
//! under way *and* that none can start; [`InvalidateAck::Pending`] promises one later [`Upstream::invalidate_complete`]
//! with the same tag, which says the same. The IOMMU completes an invalidation wait only after all of them. A requester
//! may call [`Upstream`] from any thread, but never while it holds a lock that its `invalidate` or
//! `page_group_response` takes: the IOMMU calls those with its own lock held (`docs/locking.md`).
#![forbid(unsafe_code)]

mod ids;
mod messages;
pub mod testing;

pub use ids::{Bdf, Gpa, IdError, Iova, Pasid, PrgIndex, SourceId};
pub use messages::{
    Access, AtsError, CachedUse, Delivery, InvalidateAck, InvalidateRange, InvalidateRequest, InvalidateTag, Msi,
    PageGroupResponse, PageRequest, PageRequestOutcome, ResponseCode, Translation, TranslationRequest,
};

/// What a function asks of the IOMMU in front of it.
pub trait Upstream: Send + Sync {
    /// ATS Translation Request (PCIe 6.0 §10.2.2). `Ok` with neither read nor write means *no translation here*: the
    /// requester may send a [`PageRequest`]. `Err` means that requests of this requester are refused.
    fn translate(&self, request: TranslationRequest) -> Result<Translation, AtsError>;

    /// PRI Page Request message (PCIe 6.0 §10.4.1). Exactly one [`Downstream::page_group_response`] follows for each
    /// group whose last request was [`PageRequestOutcome::Accepted`], unless the guest never answers.
    fn page_request(&self, request: PageRequest) -> PageRequestOutcome;

    /// Invalidate Completion (PCIe 6.0 §10.3.2) for an [`InvalidateAck::Pending`]. Called exactly once for each.
    fn invalidate_complete(&self, requester: Bdf, tag: InvalidateTag);

    /// The requester uses a translation that it holds. Called only when auditing is on. It must not block or veto the
    /// access.
    fn audit_use(&self, _used: CachedUse) {}
}

/// What the IOMMU asks of the functions behind it and of the interrupt controller.
pub trait Downstream {
    /// Invalidate Request (PCIe 6.0 §10.3.1) to one function. See the crate's invalidation contract.
    /// A function that does not exist, or has ATS disabled, holds no translation: `Done`.
    fn invalidate(&self, to: Bdf, request: InvalidateRequest) -> InvalidateAck;

    /// PRG Response message (PCIe 6.0 §10.4.2) to one function. The function drops a response that it does not wait
    /// for.
    fn page_group_response(&self, to: Bdf, response: PageGroupResponse);

    /// A memory write to the interrupt address range. `via` is the function whose traffic caused it, where there is
    /// one: the IOMMU's own function cannot be used, since Linux never enables its bus mastering.
    ///
    /// [`Delivery::Held`] means that nobody could send it: no function may master the bus. The IOMMU keeps it pending
    /// and asks again.
    fn message_interrupt(&self, via: Option<Bdf>, msi: Msi) -> Delivery;
}
