//! A whole system in one thread on virtual time, made from one seed: mock kernel and driver, and the running backend
//! (`svadev_host`) with the VT-d unit and two accelerators. Processes have memory whose contents are known. The seed
//! chooses the faults. `docs/simulation.md` says what the checkers look for.
//!
//! ```text
//!   world ── turns ──▶ kernel (unit_driver, tasks) ──▶ unit_function ──▶ svadev_host::IommuDevice ─▶ Bus ─▶ Unit
//!     │                driver (functions, work) ──▶ vmm ──▶ svadev_host::Accelerator                  ▲
//!     └────────────────────────────────────────────▶ svadev_accelerator::Engine ─────────────────────┘ watch
//! ```
//!
//! # What it knows
//! What a kernel, a driver and a VMM do, in which orders, and what must hold whatever they do.
//!
//! # What it must not know
//! How the backend is wired: `svadev_host` is the production code, on a platform of this crate ([`platform`]).
//!
//! # The path through it
//! [`run`] makes a world and gives turns until it ends. A turn is a step of a kernel task (`world/`), a read of
//! completions, or a slice of an engine ([`functions`]). [`vmm`] checks the messages from a function to its VMM, and
//! [`watch`] those between functions and unit. A new fault goes into [`faults`] and `world/inject.rs`, a new checker
//! into [`checker`], with a planted bug for it into [`mutant`].
//!
//! [`mirrors`] is a second world, without an IOMMU: a driver that keeps page tables for the accelerator itself.
#![forbid(unsafe_code)]

pub mod batch;
pub mod checker;
pub mod coverage;
pub mod excuse;
pub mod faults;
pub mod flight;
pub mod frames;
pub mod functions;
pub mod log;
pub mod mirrors;
pub mod mutant;
pub mod platform;
pub mod process;
pub mod queues;
pub mod rng;
pub mod tables;
pub mod unit_driver;
pub mod unit_function;
pub mod vmm;
pub mod watch;

mod task;
mod world;

#[cfg(test)]
mod tests;

pub use checker::{Checker, Failure};
pub use coverage::{Coverage, Group};
pub use mirrors::run_mirrors;
pub use mutant::Mutant;
pub use svadev_iommu::Caching;
pub use world::{Options, Report, World, run};
