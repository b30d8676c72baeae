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
//! [`Machine::new`] makes the parts on a [`Platform`] and connects them, without a thread. [`Host::start`] makes a
//! machine for each IOMMU and gives each part a thread; the simulated world calls the parts in turn. A VMM's command
//! arrives in a function's vfio-user server, which calls `accelerator` or `iommu_function`. From there it goes to the
//! models; their effects come back through `accelerator`'s ports and through `bus`, to `link` (interrupts and replies)
//! and `releases` (unmapped memory).
//!
//! What differs between a process and a simulated world is a [`Platform`]. What happens in a fixed order between the
//! models belongs into `accelerator` or `bus`. What needs a thread or a clock belongs beside `host`.
//!
//! `docs/locking.md` has the locks and their order, `docs/lifetimes.md` what is used for how long.
mod accelerator;
mod audit;
mod audit_clock;
mod bus;
mod config;
mod counters;
mod device_memory;
mod doorbells;
mod engine_thread;
mod events;
mod host;
mod interrupts;
mod iommu_function;
mod link;
mod machine;
mod overdue;
mod periodic;
mod platform;
mod releases;
mod spin;
mod stuck;
mod threads;
mod waker;

pub use accelerator::{Accelerator, AcceleratorState};
pub use bus::{Bus, Down, HostEngine};
pub use config::{AcceleratorConfig, HostConfig, IommuConfig};
pub use counters::{CounterSource, Counters, FunctionCounters, UnitCounters};
pub use events::HostEvent;
pub use host::{Host, socket_path};
pub use iommu_function::{IommuDevice, IommuState};
pub use machine::{Machine, MachineConfig, MachineFunction};
pub use platform::{Doorbells, GuestMaps, Platform, Tap, Wake};
