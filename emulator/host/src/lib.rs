//! The running backend: the IOMMU, the accelerator functions, their engines, and the threads and sockets around them.
//!
//! ```text
//!   socket thread (IOMMU function) ──▶ Bus: Mutex<Unit> ──▶ mailboxes of functions, message interrupts
//!   socket thread (accelerator)    ──▶ Function ──▶ mailboxes of its engines
//!   engine thread                  ──▶ guest memory; Bus on a device-TLB miss; MSI-X eventfds
//! ```
//!
//! # What it knows
//! Threads, the clock, sockets, eventfds, and the order in which things happen between the models: bus mastering before
//! interrupts, releases after the last access, replies after resets.
//!
//! # What it must not know
//! Topology files, command lines, QEMU, the guest. The owner passes a [`HostConfig`] and hears [`HostEvent`]s.
//!
//! # The path through it
//! [`Host::start`] puts the parts together and starts the threads. A VMM's command arrives on a function's socket thread,
//! in `accelerator` or `iommu_function`. From there it goes to the models; their effects come back through `accelerator`'s
//! ports and through `bus`, to `link` (interrupts and replies).
//!
//! `docs/locking.md` has the locks and their order, `docs/lifetimes.md` what is used for how long.
mod accelerator;
mod audit;
mod audit_clock;
mod bus;
mod config;
mod counters;
mod dma_space;
mod doorbells;
mod engine_thread;
mod events;
mod host;
mod interrupts;
mod iommu_function;
mod link;
mod overdue;
mod periodic;
mod spin;

pub use config::{AcceleratorConfig, HostConfig};
pub use counters::{CounterSource, Counters, FunctionCounters};
pub use events::HostEvent;
pub use host::{Host, socket_path};
