//! Where the register page has what an implementation places: the offsets that CAP and ECAP tell (§11.4.2, §11.4.3).

/// Bytes of the register space, and of the BAR that shows it.
pub const REGISTER_SPACE: u64 = 4096;

/// VER: architecture version 3.0 and later, which has scalable mode (§11.4.1).
pub const VERSION: u32 = 0x30;

/// Offset of the IVA and IOTLB registers (ECAP.IRO · 16).
pub const IOTLB_REGISTER_OFFSET: u64 = 0xf0;

/// Offset of the fault recording registers (CAP.FRO · 16).
pub const FAULT_RECORD_OFFSET: u64 = 0x800;

/// Fault recording registers that fit the register space.
pub const MAX_FAULT_RECORDS: u8 = 128;
const _: () = assert!(FAULT_RECORD_OFFSET + 16 * MAX_FAULT_RECORDS as u64 <= REGISTER_SPACE);
