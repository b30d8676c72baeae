//! A PCI Express function as software sees it: configuration space, base address registers, the MSI-X table, resets.
//! Sections are of the PCI Express Base Specification 6.0.
//!
//! # What it knows, and what it must not know
//! A function is described by values: a [`Description`] with its [`Identity`], its [`Bar`]s and its capabilities
//! ([`MsiX`], [`Ats`], [`Pri`], [`Pasid`]). [`ConfigSpace`] is made from one. This crate does not know what a
//! function does: no queue, no engine, no IOMMU. It has no thread, clock or socket.
//!
//! # The path through it
//! A configuration write → [`ConfigSpace::write`] → each bit as `layout` allows → [`ConfigEffects`]: what the write
//! changed, in the order in which the function must act on it. A read of the MSI-X BAR → [`MsiXTable`].
//!
//! # Where new things go
//! | new | goes to |
//! | --- | --- |
//! | a capability | a value in `description.rs`, its registers in `layout.rs`, its table row in `tests.rs` |
//! | something that follows from a write | a [`ConfigEffect`] in `effect.rs` |
//! | a register's layout | `svadev_spec::pcie` |
#![forbid(unsafe_code)]

mod config;
mod description;
mod effect;
mod iommu_function;
mod layout;
mod msi_x;
#[cfg(test)]
mod tests;

pub use config::{ConfigSpace, ConfigState};
pub use description::{Ats, Bar, Description, Identity, MsiX, Pasid, Pri};
pub use effect::{ConfigEffect, ConfigEffects};
pub use iommu_function::IommuFunction;
pub use msi_x::MsiXTable;
