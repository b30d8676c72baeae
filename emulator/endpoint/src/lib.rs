//! What any device with shared virtual addressing needs: a requester with PASID, ATS and PRI, its device TLB, page
//! request groups, and the handshake that says when an invalidation is over.
//!
//! # What it knows, and what it must not know
//! It knows the messages of `svadev_fabric` and guest memory. It does not know what a device does: no register, no
//! queue, no descriptor. It does not know who translates either: that is behind `svadev_fabric::Upstream`. It has no
//! thread, no clock and no socket: time is an argument, effects go through [`Ports`].
//!
//! # The parts
//! ```text
//!  other threads                            one thread an engine
//!  Endpoint ── post ──▶ EngineSide ──▶ Presence: may translations be in use?
//!     invalidate          Mailbox           │
//!     memory_changed      Handshake         ▼
//!     page_group_response            Slice ─▶ Requester (device TLB) ─▶ Span: bytes of guest memory
//!                        PrgTable ◀── PageWaits: who waits for which page
//! ```
//! - [`Endpoint`] is what other threads may call at any time: invalidations, page group responses, changes of the
//!   memory map. A device adds its own mail to its engines ([`Mail`]).
//! - [`Presence`] is an engine's own side of the handshake. An engine empties its mailbox, makes a [`Slice`], works
//!   through [`Span`]s that cannot outlive it, and looks into the mailbox again.
//! - [`Requester`] turns an address of a process into a span, through the device TLB or the IOMMU.
//! - The requester also has the engine's side of the mirror: [`Requester::mirror_look`] and its like are the second
//!   handshake, with the guest's driver, beside the one with the mailbox.
//! - [`PageWaits`] parks what misses a page, asks for it, and says who may go on.
//!
//! # The path through it
//! [`Requester::access`] → device TLB, or a translation request → a span, or a [`Refusal`] → [`PageWaits::fault`] →
//! page requests → [`Endpoint::page_group_response`] → mailbox → [`PageWaits::collect`] → the access again.
//!
//! # Where new things go
//! | new | goes to |
//! | --- | --- |
//! | a source of translations | `svadev_fabric::SourceId`, and what it gates to `gate.rs` |
//! | a message to engines that every device needs | `mailbox.rs`; one of a device's own to its [`Mail`] |
//! | a way to touch guest memory | `span.rs` |
mod address;
mod counters;
mod device;
mod endpoint;
mod engine_side;
mod failure;
mod gate;
mod handshake;
mod mailbox;
mod obligation;
mod page_request;
mod page_waits;
mod requester;
mod span;
mod sync;
mod tlb;
mod wait;

pub use address::{SpaceId, Target};
pub use counters::{Counter, Counters, EngineCounters};
pub use device::{Mail, On, Platform, Ports};
pub use endpoint::{Endpoint, EndpointSettings};
pub use engine_side::{EngineSide, Presence};
pub use failure::Failure;
pub use gate::Gate;
pub use mailbox::{Invalidation, Mailbox, Whose};
pub use obligation::{Answer, Obligation};
pub use page_request::{Group, NoGroup, PrgState, PrgTable, PriStatus};
pub use page_waits::{Expiry, Fault, MAX_GROUP_PAGES, PageWaits};
pub use requester::{Refusal, Requester};
pub use span::{Slice, Span};
pub use tlb::SIZES_LOG2;
pub use wait::{PATIENCE, Patience, Resume, Wait, WaitFor};
