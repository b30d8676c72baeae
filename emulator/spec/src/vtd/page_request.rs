//! Page request descriptors (§7.4.1.1).
use bitfield_struct::bitfield;

/// Bytes of a descriptor: four quadwords, of which the last two are private data (zero here).
pub const DESCRIPTOR_SIZE: u64 = 32;
/// The only descriptor type.
pub const TYPE_PAGE_REQUEST: u8 = 0x01;

/// First quadword.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct PageRequestLow {
    /// [`TYPE_PAGE_REQUEST`].
    pub kind: u8,
    /// PP: there is a PASID.
    pub pasid_present: bool,
    #[bits(7)]
    __: u8,
    /// RID: who.
    pub requester_id: u16,
    /// PASID.
    #[bits(20)]
    pub pasid: u32,
    /// EXR: execute.
    pub execute: bool,
    /// PMR: supervisor.
    pub privileged: bool,
    #[bits(10)]
    __: u16,
}

/// Second quadword.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct PageRequestHigh {
    /// RDR: read.
    pub read: bool,
    /// WRR: write.
    pub write: bool,
    /// LPIG: last in group.
    pub last: bool,
    /// PRG index.
    #[bits(9)]
    pub prg_index: u16,
    /// ADDR, in units of 4 KiB.
    #[bits(52)]
    pub frame: u64,
}
