//! What our accelerator does: a PCI function with registers and queues ([`Function`]), and the [`Engine`]s that do
//! the work.
//!
//! # What it knows, and what it must not know
//! It knows its registers, rings, descriptors and operations (`svadev_spec::device`). Translations, page requests and
//! the invalidation handshake are `svadev_endpoint`'s; configuration space is `svadev_pci`'s. It does not know which
//! IOMMU is in front of it. It has no thread, clock or socket: time is an argument, effects are [`FunctionPorts`].
//!
//! # Architecture
//! ```text
//!  socket thread                       engine thread, one an engine
//!  Function ── registers, reset ──▶ ┌────────────────┐ ──▶ Engine::run: mailbox, then one slice of one queue
//!                                   │ FunctionShared │        queue → job → requester (device TLB) → guest memory
//!  IOMMU    ── invalidate, ───────▶ └────────────────┘                     │
//!  (any thread)  page responses      the endpoint                          └──▶ Upstream: translate, page request
//! ```
//! - [`Function`] answers configuration and BAR accesses at once. It never waits for an engine: what needs an engine's
//!   answer shows as *busy* in a register until then.
//! - [`FunctionShared`] is what other threads may call at any time: invalidations, page group responses, changes of the
//!   memory map.
//! - [`Engine`] owns its device TLB and all work under way, and does one bounded slice of it a call. It neither
//!   allocates nor locks while it copies.
//!
//! # The path through it
//! Doorbell → [`Engine::run`] → `Queue::serve` → `queue/rings.rs` fetches the descriptor → `descriptor.rs` checks it →
//! `queue/express.rs` (plain operations whose pages are known) or `job.rs` (all others) → `queue/rings.rs` writes the
//! completion → [`FunctionPorts::interrupt`].
//!
//! # Where new things go
//! | new | goes to |
//! | --- | --- |
//! | an opcode | `svadev_spec::device::opcode`, its check in `descriptor.rs`, its work in `job.rs` |
//! | a register | `svadev_spec::device::regs`, `function.rs` |
//! | something that the function tells its engines | `orders.rs` |
//!
//! # What it does not do
//! Execute and privileged requests. Requests without a PASID while address translation is off end as
//! `TranslationBlocked`, unless the function was made without an IOMMU ([`FunctionSettings::untranslated`]).
mod context;
mod counters;
mod descriptor;
mod doorbell;
mod engine;
mod function;
mod halves;
mod job;
mod mirror_registers;
mod moderation;
mod orders;
mod policy;
mod queue;
mod queue_config;
mod scatter;
mod schedule;
mod shared;
mod state;

#[cfg(test)]
mod tests;

pub use counters::Counters;
pub use doorbell::DoorbellPages;
pub use engine::{Engine, Progress};
pub use function::Function;
pub use shared::{FunctionPorts, FunctionSettings, FunctionShared};
pub use state::FunctionState;
