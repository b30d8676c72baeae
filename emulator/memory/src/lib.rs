//! Guest-physical memory.
//!
//! - [`GuestMemory`] is all that the IOMMU and the device know of it: whole reads and writes, the few atomic accesses that
//!   table walks and queues need, and windows of host memory for those who may keep a pointer.
//! - [`MemoryMap`] is one function's view: the regions that the VMM told it of (`DMA_MAP`, `DMA_UNMAP`).
//! - [`Mappings`] is the process's: each file behind those regions, mapped once.
//! - [`Ram`] is one flat block from address 0, for tests and for the simulated world.
//!
//! Addresses are `vm_memory::GuestAddress`. The crates above have their own word for it, `svadev_fabric::Gpa`, with the
//! same number inside; this crate does not depend on the fabric.
//!
//! Everything here may change under our hands: the guest's CPUs read and write the same bytes. Accesses are therefore
//! volatile or atomic, never through a Rust reference. `docs/design/0002-guest-memory.md` says why it is built this way.
mod access;
mod map;
mod mappings;
mod ram;
mod sigbus;

pub use access::{GuestMemory, HostWindow, MemoryError};
pub use map::{KeptView, MAX_REGIONS, MapError, MemoryMap, MemoryView, Region, Retired, UnmapError};
pub use mappings::{MappingError, Mappings};
pub use ram::Ram;
pub use vm_memory::GuestAddress;

/// What regions, their sizes and their file offsets are multiples of, bytes.
pub const PAGE_SIZE: usize = 4096;
