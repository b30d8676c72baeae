//! State of the invalidation queue (§11.4.9). What the descriptors do is in `unit::invalidation`.
//!
//! | module | what it holds |
//! | --- | --- |
//! | `ledger` | invalidations that wait for a function's acknowledgement |
//! | `queue` | registers of the queue, and what its head waits for |
mod ledger;
mod queue;

pub(crate) use ledger::{Acknowledged, Ledger};
pub(crate) use queue::{InvalidationQueue, Parked};
