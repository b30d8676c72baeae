//! The VT-d remapping unit of Intel's Architecture Specification, revision 4.1: a state machine without input or
//! output.
//!
//! # What it knows, and what it must not know
//! [`Unit`] has the registers, caches and queues of one unit, over a [`svadev_memory::GuestMemory`]. It speaks to
//! functions through [`svadev_fabric`] only. It knows no thread, clock, socket or accelerator. Nothing here waits or
//! sleeps, and nothing loops or allocates by a number of the guest's without a bound. Layouts are in
//! [`svadev_spec::vtd`].
//!
//! # Three ways through it
//! A **register write** ([`Unit::write_register`]): `unit::registers` finds the register. A new tail starts
//! `unit::invalidation`, which fetches descriptors and carries them out, or parks at a wait.
//!
//! A **translation** ([`Unit::translate`], [`Unit::access`]): `admission` finds the address space of requester and
//! PASID, by way of `entry_cache` or `tables`. `translate` finds the page in it, by way of `cache` or `walk`. A walk
//! that ends without a page gets its code in `fault_codes`, and `unit::fault` records it.
//!
//! An **invalidation**: `unit::invalidation` raises floors in `cache` and `entry_cache`, and sends a request to a
//! function. `invalidation::Ledger` waits for the acknowledgement ([`Unit::invalidate_complete`]); then the wait's
//! status is written. A **page request** ([`Unit::page_request`]) goes into its queue and raises an event
//! (`unit::events`).
//!
//! `observe` hears what happens on these ways; `audit` and `counters` listen. `gate` can hold back what the guest would
//! see next ([`Unit::set_schedule`]).
//!
//! # Where new things go
//! | what | where |
//! | --- | --- |
//! | a register | offset in `svadev_spec::vtd::registers`, or in `layout` if the unit places it; `unit/registers.rs` |
//! | a capability | [`UnitConfig`], which fills CAP and ECAP |
//! | a descriptor | layout in `svadev_spec::vtd::invalidation`; `unit/invalidation/descriptors.rs` |
//! | a fault condition | `walk/fault.rs` and `fault_codes.rs` for a walk's, `tables` or `admission` for a structure's |
//! | an observer | a type that implements `observe::Observer`, called by `Unit::report` or `audit::observing` |
//! | a place to hold something back | a [`Point`]; `Unit::holds` where it arises, and `Unit::go_on` for its release |
//! | state | a field of [`UnitState`], or of [`Unit`] if no guest can see it |
//!
//! # What it does not implement
//! Interrupt remapping and posted interrupts (ECAP.IR, CAP.PI), performance monitoring, enhanced and virtual commands,
//! protected memory regions, snooping and memory types as such. `docs/spec-coverage.md` goes section by section.
#![forbid(unsafe_code)]

mod address_space;
mod admission;
mod audit;
mod cache;
mod config;
mod counters;
mod entry_cache;
mod fault_codes;
mod fault_log;
mod gate;
mod interrupts;
mod invalidation;
mod layout;
pub mod measure;
mod observe;
mod page_request_queue;
mod request;
mod tables;
mod translate;
mod unit;
mod walk;

#[cfg(test)]
mod tests;

pub use audit::{AuditConfig, AuditCounters, Cached, Finding, FindingKind, HistoryEvent};
pub use config::{Caching, MAX_ADDRESS_MASK, UnitConfig};
pub use counters::Counters;
pub use gate::{Point, PointId, PointKind, Schedule, Verdict};
pub use layout::{FAULT_RECORD_OFFSET, IOTLB_REGISTER_OFFSET, MAX_FAULT_RECORDS, REGISTER_SPACE, VERSION};
pub use request::Blocked;
pub use svadev_spec::vtd::FaultReason;
pub use unit::{Unit, UnitState};
