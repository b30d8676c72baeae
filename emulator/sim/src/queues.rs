//! How a function's queues are used in every world.

/// Queues of a function: the first are the kernel's, each of the others is one process's.
pub const QUEUES: usize = 4;
/// Number of queues that are the kernel's.
pub const KERNEL_QUEUES: usize = 2;
/// MSI-X vectors: one for each queue.
pub const VECTORS: u32 = 4;
/// Log2 of the entries of each ring.
pub const RING_LOG2: u8 = 5;
/// Entries of each ring.
pub const RING: u32 = 1 << RING_LOG2;
