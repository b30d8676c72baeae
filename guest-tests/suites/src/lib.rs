//! Test programs for the guest: the smoke suite and the demonstration, and the harness that they share.

pub mod demo;
pub mod harness;
pub mod memory;
pub mod smoke;
