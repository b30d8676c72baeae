//! Guest-physical memory: regions of the VMM's files, mapped into this process.
//!
//! This crate knows files, mappings, addresses and the SIGBUS of a truncated file. It must not know who accesses
//! memory, nor any layout in it. Most of the unsafe code of the workspace is here.
//!
//! - [`GuestMemory`] is all that the IOMMU and the device know of it: whole reads and writes, the few atomic accesses
//!   that table walks and queues need, and windows of host memory for those who may keep a pointer.
//! - [`MemoryMap`] is one function's view: the regions that the VMM told it of (`DMA_MAP`, `DMA_UNMAP`).
//! - [`Mappings`] is the process's: each file behind those regions, mapped once.
//! - [`DeviceMemory`] is what the device has on board: files of our own, which a VMM may map as BARs.
//! - [`Ram`] is one flat block from address 0, for tests and for the simulated world.
//!
//! The path: `DMA_MAP` becomes [`MemoryMap::map`], which maps the file through [`Mappings`]. A walk takes a view
//! ([`GuestMemory::view`]) and loads words; an engine takes a [`HostWindow`] and keeps its pointer. `DMA_UNMAP` becomes
//! [`MemoryMap::unmap`]. The memory stays mapped until the caller drops what that returns ([`Retired`]).
//!
//! Where new things go: a kind of access is a method of [`GuestMemory`] with its implementation in `access.rs` and
//! `map.rs`; a kind of backing is a case in `mappings.rs`.
//!
//! Addresses are `vm_memory::GuestAddress`. The crates above have their own word for it, `svadev_fabric::Gpa`, with the
//! same number inside; this crate does not depend on the fabric.
//!
//! The guest's CPUs read and write the same bytes at any time. Accesses are therefore volatile or atomic, never through
//! a Rust reference. `docs/design/0002-guest-memory.md` says why it is built this way.
mod access;
mod device;
mod map;
mod mappings;
mod ram;
mod sigbus;

pub use access::{GuestMemory, HostWindow, MemoryError};
pub use device::DeviceMemory;
pub use map::{KeptView, MAX_REGIONS, MapError, MemoryMap, MemoryView, Region, Retired, UnmapError};
pub use mappings::{MappingError, Mappings};
pub use ram::Ram;
pub use vm_memory::GuestAddress;

/// What regions, their sizes and their file offsets are multiples of, bytes.
pub const PAGE_SIZE: usize = 4096;
