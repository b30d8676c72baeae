//! The invalidation queue at work (§6.5.2, §11.4.9) and the register-based commands (§6.5.1).
//!
//! Descriptors are carried out one after another, so a fence asks for nothing more. Only a function's acknowledgement
//! of a device-TLB invalidation takes time. A wait descriptor that finds one missing *parks* the queue, with the head
//! at the wait, until [`Unit::invalidate_complete`](super::Unit::invalidate_complete) has brought the last one.
//!
//! | module | what it does |
//! | --- | --- |
//! | `engine` | fetches descriptors, parks, reports errors |
//! | `descriptors` | carries out each type of descriptor |
//! | `commands` | carries out CCMD and IOTLB |
mod commands;
mod descriptors;
mod engine;
