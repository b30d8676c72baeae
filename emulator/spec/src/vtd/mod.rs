//! Intel Virtualization Technology for Directed I/O, Architecture Specification, revision 4.1 (June 2023).
//!
//! Section numbers are those of that revision. Names are the document's, or the Linux driver's where the document only
//! has a mnemonic. Multi-byte values are little-endian; registers and table entries are views of the integer that was
//! read.
pub mod fault;
pub mod invalidation;
mod level;
pub mod page_request;
pub mod registers;
pub mod tables;

pub use fault::FaultReason;

/// First address of the range in which writes are message-signalled interrupts (§3.14).
pub const INTERRUPT_RANGE_FIRST: u64 = 0xfee0_0000;
/// Last address of that range.
pub const INTERRUPT_RANGE_LAST: u64 = 0xfeef_ffff;

/// Whether an address is in the interrupt range (§3.14).
pub const fn in_interrupt_range(address: u64) -> bool {
    INTERRUPT_RANGE_FIRST <= address && address <= INTERRUPT_RANGE_LAST
}
