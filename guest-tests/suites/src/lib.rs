//! Test programs for the guest: the smoke suite, the demonstration and the benchmarks, and the harness that they share.

pub mod bench;
pub mod demo;
pub mod harness;
pub mod memory;
pub mod smoke;
pub mod swap;
