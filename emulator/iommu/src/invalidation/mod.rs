//! The invalidation queue (§6.5.2, §11.4.9) and the register-based commands (§6.5.1).
//!
//! Descriptors are carried out one after another, so a fence asks for nothing more. What takes time is only a
//! function's
//! acknowledgement of a device-TLB invalidation: a wait descriptor that finds one missing *parks* the queue, with the
//! head at
//! the wait, until `Unit::invalidate_complete` has brought the last one.
//!
//! | module | what it holds |
//! | --- | --- |
//! | `ledger` | invalidations that wait for a function's acknowledgement |
//! | `queue` | registers and state of the queue |
//! | `descriptors` | what each descriptor does |
//! | `commands` | what CCMD and IOTLB do |
//! | `engine` | fetches descriptors, parks, reports errors |
mod commands;
mod descriptors;
mod engine;
mod ledger;
mod queue;

pub(crate) use ledger::Ledger;
pub(crate) use queue::InvalidationQueue;
