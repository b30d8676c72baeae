//! The VT-d remapping unit of Intel's Architecture Specification, revision 4.1, as a state machine without input or output.
//!
//! # Architecture
//! [`Unit`] holds registers, caches and queues of one unit, over a [`svadev_memory::GuestMemory`]. Everything is `&mut self`; what goes
//! out goes through the [`svadev_fabric::Downstream`] that the caller passes in. Nothing here waits, sleeps, allocates by the guest's
//! numbers, or loops by them without a bound.
//!
//! | who calls | what |
//! | --- | --- |
//! | the socket thread of the unit's PCI function | [`Unit::read_register`], [`Unit::write_register`], [`Unit::reset`] |
//! | engines, through `svadev_fabric::Upstream` | [`Unit::translate`], [`Unit::page_request`], [`Unit::invalidate_complete`] |
//! | functions without a device TLB | [`Unit::access`] |
//! | whoever owns a clock | [`Unit::invalidate_timed_out`], [`Unit::audit_at`], [`Unit::audit_slice`] |
//!
//! A request goes from requester and PASID to an address space (`context`: root, context and PASID tables), then through the page
//! tables (`walk`), with caches on both ways (`cache`). Invalidations come in through a queue (`invalidation`), page requests go out
//! through another (`page_request`), faults into registers (`fault`), each with an interrupt event (`interrupts`). Layouts are in
//! [`svadev_spec::vtd`].
//!
//! # What it does not implement
//! Interrupt remapping and posted interrupts (ECAP.IR, CAP.PI), performance monitoring, enhanced and virtual commands, protected
//! memory regions, snooping and memory types as such. `docs/spec-coverage.md` goes section by section.
//!
//! # Key constants
//! [`REGISTER_SPACE`], [`FAULT_RECORD_OFFSET`], [`IOTLB_REGISTER_OFFSET`], [`MAX_ADDRESS_MASK`]; capabilities are in [`UnitConfig`].
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
pub use unit::Unit;
