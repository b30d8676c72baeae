//! Guest-physical memory.
//!
//! - [`GuestMemory`] is all that the IOMMU and the device know of it: whole reads and writes, the few atomic accesses that
//!   table walks and queues need, and windows of host memory for those who may keep a pointer.
//! - [`Ram`] is one flat block from address 0, for tests and for the simulated world.
//!
//! Addresses are `vm_memory::GuestAddress`. The crates above have their own word for it, `svadev_fabric::Gpa`, with the
//! same number inside; this crate does not depend on the fabric.
//!
//! Everything here may change under our hands: the guest's CPUs read and write the same bytes. Accesses are therefore
//! volatile or atomic, never through a Rust reference.
#![allow(unsafe_code, reason = "host pointers into guest memory are handed out and used here")]
mod access;
mod ram;

pub use access::{GuestMemory, HostWindow, MemoryError};
pub use ram::Ram;
pub use vm_memory::GuestAddress;
