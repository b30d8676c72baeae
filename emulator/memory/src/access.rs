//! The access trait.
#![allow(unsafe_code, reason = "a window is a host pointer that threads may share")]

use std::fmt::Debug;
use std::ptr::NonNull;
use std::sync::Arc;

use vm_memory::GuestAddress;

/// Why guest-physical memory could not be accessed. The guest or the VMM causes all of these errors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MemoryError {
    /// There is no memory at some byte of the access.
    #[error("no guest memory at {0:#x}")]
    NotMapped(u64),
    /// There is memory, but the VMM gave no file for it (ROMs, other functions' BARs), so only the VMM can access it.
    #[error("guest memory at {0:#x} came without a file")]
    Unreachable(u64),
    /// The memory there may not be accessed this way.
    #[error("guest memory at {0:#x} forbids the access")]
    Forbidden(u64),
    /// There is memory, but its backing file was truncated before it.
    #[error("the file behind guest memory at {0:#x} is gone")]
    Lost(u64),
    /// An atomic access is not naturally aligned.
    #[error("atomic access to {0:#x} is not aligned")]
    Misaligned(u64),
}

/// A piece of guest memory as host memory.
///
/// # Lifetime (rule L10)
/// The pointer stays valid until the owner of the memory map has removed the region *and* every holder of windows has
/// then acknowledged that it uses none of them any more. A holder acknowledges only between two pieces of work, after
/// it dropped every window it kept: see `svadev_accelerator` on `memory_changed`.
#[derive(Clone, Copy, Debug)]
pub struct HostWindow {
    /// First byte, where `gpa` is.
    pub host: NonNull<u8>,
    /// First byte's guest-physical address.
    pub gpa: GuestAddress,
    /// Bytes; all of one region, contiguous on both sides.
    pub len: u64,
    /// Reads are allowed.
    pub readable: bool,
    /// Writes are allowed.
    pub writable: bool,
}

// SAFETY: a window is an address and a length; its users promise volatile or atomic accesses, which are as good from
// one thread as from another.
unsafe impl Send for HostWindow {}
// SAFETY: as above.
unsafe impl Sync for HostWindow {}

/// Access to guest-physical memory, from any thread.
pub trait GuestMemory: Send + Sync {
    /// What a caller keeps from one [`Self::view`] to the next; empty by default.
    type Kept: Default + Debug + Send;

    /// The type of a view, which [`Self::view`] returns.
    type View<'a>: GuestMemory
    where
        Self: 'a;

    /// The memory as it is mapped now, for several accesses. That is cheaper than single accesses, and the map does not
    /// change between them. `kept` makes the next view cheap, but it may keep files mapped that were unmapped
    /// meanwhile. So its owner replaces it by the default when it is told that the map has changed.
    fn view<'a>(&'a self, kept: &'a mut Self::Kept) -> Self::View<'a>;

    /// Fills `buf` from `gpa`. The data may be torn by concurrent stores of the guest. On error, the content of `buf`
    /// is unspecified.
    fn read(&self, gpa: GuestAddress, buf: &mut [u8]) -> Result<(), MemoryError>;

    /// Writes `buf` to `gpa`. On error, some of it may have been written.
    fn write(&self, gpa: GuestAddress, buf: &[u8]) -> Result<(), MemoryError>;

    /// Loads 8 naturally aligned bytes at once, little-endian, with acquire ordering.
    fn load_u64(&self, gpa: GuestAddress) -> Result<u64, MemoryError>;

    /// Stores 4 naturally aligned bytes at once, little-endian, with release ordering: a guest that sees them sees all
    /// that was written before.
    fn store_u32(&self, gpa: GuestAddress, value: u32) -> Result<(), MemoryError>;

    /// Stores 8 naturally aligned bytes at once, little-endian, with release ordering.
    fn store_u64(&self, gpa: GuestAddress, value: u64) -> Result<(), MemoryError>;

    /// Replaces 8 naturally aligned bytes if they are `current`; `Ok(Err(found))` if they are not.
    fn compare_exchange_u64(&self, gpa: GuestAddress, current: u64, new: u64) -> Result<Result<u64, u64>, MemoryError>;

    /// The window around `gpa`: as much of its region as is contiguous in host memory.
    fn window(&self, gpa: GuestAddress) -> Result<HostWindow, MemoryError>;
}

/// Implements [`GuestMemory`] for pointers to it.
macro_rules! forward {
    ($for:ty) => {
        impl<M: GuestMemory> GuestMemory for $for {
            type Kept = M::Kept;
            type View<'v>
                = M::View<'v>
            where
                Self: 'v;

            fn view<'v>(&'v self, kept: &'v mut M::Kept) -> M::View<'v> {
                (**self).view(kept)
            }
            fn read(&self, gpa: GuestAddress, buf: &mut [u8]) -> Result<(), MemoryError> {
                (**self).read(gpa, buf)
            }
            fn write(&self, gpa: GuestAddress, buf: &[u8]) -> Result<(), MemoryError> {
                (**self).write(gpa, buf)
            }
            fn load_u64(&self, gpa: GuestAddress) -> Result<u64, MemoryError> {
                (**self).load_u64(gpa)
            }
            fn store_u32(&self, gpa: GuestAddress, value: u32) -> Result<(), MemoryError> {
                (**self).store_u32(gpa, value)
            }
            fn store_u64(&self, gpa: GuestAddress, value: u64) -> Result<(), MemoryError> {
                (**self).store_u64(gpa, value)
            }
            fn compare_exchange_u64(
                &self,
                gpa: GuestAddress,
                current: u64,
                new: u64,
            ) -> Result<Result<u64, u64>, MemoryError> {
                (**self).compare_exchange_u64(gpa, current, new)
            }
            fn window(&self, gpa: GuestAddress) -> Result<HostWindow, MemoryError> {
                (**self).window(gpa)
            }
        }
    };
}

forward!(&M);
forward!(Arc<M>);
