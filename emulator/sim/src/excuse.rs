//! Why a descriptor may end without success, as bits.
use crate::queues::KERNEL_QUEUES;

/// A page does not exist or forbids the access, the policy is to stop, or the kernel said *invalid*.
pub const FAULT: u8 = 1;
/// The kernel said *failure*.
pub const FAILED: u8 = 2;
/// An answer was lost, or late.
pub const TIMEOUT: u8 = 4;
/// The PASID was unbound, or the function was being reset.
pub const BLOCKED: u8 = 8;
/// The PASID was aborted, or the queue disabled.
pub const ABORTED: u8 = 16;
/// The queue may have gone without a word.
pub const DROPPED: u8 = 32;

/// These reasons for the work of a queue: they hit the rings of a process's queue as well, which stops it. The rings of
/// a kernel queue are always there.
pub const fn in_queue(queue: usize, reasons: u8) -> u8 {
    if reasons != 0 && queue >= KERNEL_QUEUES { reasons | ABORTED | DROPPED } else { reasons }
}
