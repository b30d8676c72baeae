//! A whole system in one thread on virtual time, made from one seed: mock kernel and driver, the VT-d unit, two accelerators,
//! processes with memory whose contents are known, and the faults that the seed chose. Checkers watch; `docs/simulation.md` says
//! what for.
//!
//! ```text
//!   world ── turns ──▶ kernel (unit_driver, task) ──▶ svadev_iommu::Unit ◀──┐
//!     │                driver (functions, work)  ──▶ svadev_accelerator::Function │ bus: carries and watches
//!     └─────────────────────────────────────────────▶ svadev_accelerator::Engine ─┘
//! ```
#![forbid(unsafe_code)]

pub mod batch;
pub mod bus;
pub mod checker;
pub mod coverage;
pub mod faults;
pub mod flight;
pub mod frames;
pub mod functions;
pub mod log;
pub mod mutant;
pub mod process;
pub mod rng;
pub mod tables;
pub mod unit_driver;
pub mod wire;

mod task;
mod work;
mod world;

#[cfg(test)]
mod tests;

pub use checker::{Checker, Failure};
pub use coverage::{Coverage, Group};
pub use mutant::Mutant;
pub use svadev_iommu::Caching;
pub use world::{Options, Report, World, run};
