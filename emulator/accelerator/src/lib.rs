//! What our accelerator does: a PCI function with registers and queues ([`Function`]), and the [`Engine`]s that do the work.
//!
//! # Architecture
//! ```text
//!  socket thread                       engine thread, one an engine
//!  Function ── registers, reset ──▶ ┌────────────────┐ ──▶ Engine::run: mailbox, then one slice of one queue
//!                                   │ FunctionShared │        queue → job → requester (device TLB) → guest memory
//!  IOMMU    ── invalidate, ───────▶ └────────────────┘                     │
//!  (any thread)  page responses      mailboxes, PRG table                  └──▶ Upstream: translate, page request
//! ```
//! - [`Function`] answers configuration and BAR accesses at once. It never waits for an engine: what needs an engine's word
//!   shows as *busy* in a register until that word is in.
//! - [`FunctionShared`] is what other threads may call at any time: invalidations, page group responses, changes of the
//!   memory map. `engine_side` is the protocol that says whether an engine must be waited for.
//! - [`Engine`] owns its device TLB and all work under way, and does one bounded slice of it a call. It neither allocates nor
//!   locks while it copies.
//!
//! No threads, clocks or sockets: time is an argument, effects are [`FunctionPorts`] and `svadev_fabric::Upstream`.
//!
//! # What it does not do
//! Untranslated requests (everything goes through ATS), execute and privileged requests, and PASID-less traffic while
//! address translation is off: all of that ends as `TranslationBlocked`.
mod context;
mod copy;
mod counters;
mod descriptor;
mod doorbell;
mod engine;
mod engine_side;
mod function;
mod handshake;
mod job;
mod mailbox;
mod moderation;
mod obligation;
mod page_request;
mod queue;
mod queue_config;
mod requester;
mod scatter;
mod schedule;
mod shared;
mod sync;
mod tlb;
mod wait;

#[cfg(test)]
mod tests;

pub use counters::Counters;
pub use doorbell::DoorbellPages;
pub use engine::{Engine, Progress};
pub use function::{Function, description};
pub use shared::{FunctionPorts, FunctionSettings, FunctionShared};
