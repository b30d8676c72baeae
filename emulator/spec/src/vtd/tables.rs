//! Structures in memory: root, context, PASID and page tables (chapter 9).
use bitfield_struct::bitfield;

pub use super::level::Level;

/// One half of a scalable-mode root entry, or the low half of a legacy one (§9.1, §9.2).
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct RootEntry {
    /// P, LP or UP: the context table is present.
    pub present: bool,
    #[bits(11)]
    pub reserved: u16,
    /// CTP, LCTP or UCTP, in units of 4 KiB.
    #[bits(52)]
    pub frame: u64,
}

/// Bytes of a root entry: two quadwords, one for devices 0 to 15, one for 16 to 31 (§9.2).
pub const ROOT_ENTRY_SIZE: u64 = 16;
/// Bytes of a legacy context entry (§9.3).
pub const LEGACY_CONTEXT_ENTRY_SIZE: u64 = 16;
/// Bytes of a scalable-mode context entry (§9.4).
pub const CONTEXT_ENTRY_SIZE: u64 = 32;
/// Bytes of a PASID directory entry (§9.5).
pub const PASID_DIRECTORY_ENTRY_SIZE: u64 = 8;
/// Bytes of a PASID table entry (§9.6).
pub const PASID_TABLE_ENTRY_SIZE: u64 = 64;
/// Log2 of the entries of a PASID table (§3.4.3).
pub const PASID_TABLE_BITS: u32 = 6;

/// Legacy context entry, low quadword (§9.3).
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct LegacyContextLow {
    /// P.
    pub present: bool,
    /// FPD: qualified faults are not recorded.
    pub fault_processing_disable: bool,
    /// TT: see [`legacy_translation_type`].
    #[bits(2)]
    pub translation_type: u8,
    #[bits(8)]
    pub reserved: u8,
    /// SSPTPTR, in units of 4 KiB.
    #[bits(52)]
    pub frame: u64,
}

/// Legacy context entry, high quadword (§9.3).
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct LegacyContextHigh {
    /// AW: levels of the second-stage tables, less two.
    #[bits(3)]
    pub address_width: u8,
    #[bits(4)]
    __: u8,
    pub reserved0: bool,
    /// DID.
    pub domain_id: u16,
    #[bits(40)]
    pub reserved1: u64,
}

/// Values of the TT field of a legacy context entry (§9.3).
pub mod legacy_translation_type {
    /// Second-stage translation of untranslated requests; others are blocked.
    pub const UNTRANSLATED: u8 = 0;
    /// Second-stage translation; translation requests and translated requests are served.
    pub const DEVICE_TLB: u8 = 1;
    /// Pass-through of untranslated requests; others are blocked.
    pub const PASS_THROUGH: u8 = 2;
}

/// Scalable-mode context entry, first quadword (§9.4).
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct ContextLow {
    /// P.
    pub present: bool,
    /// FPD: qualified faults are not recorded.
    pub fault_processing_disable: bool,
    /// DTE: translation requests and translated requests are served.
    pub device_tlb_enable: bool,
    /// PASIDE: requests with PASID are served.
    pub pasid_enable: bool,
    /// PRE: page requests are served.
    pub page_request_enable: bool,
    #[bits(4)]
    pub reserved: u8,
    /// PDTS: the PASID directory has 2^(PDTS + 7) entries.
    #[bits(3)]
    pub pasid_directory_size: u8,
    /// PASIDDIRPTR, in units of 4 KiB.
    #[bits(52)]
    pub frame: u64,
}

/// Scalable-mode context entry, second quadword (§9.4). The third and fourth are reserved.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct ContextHigh {
    /// RID_PASID: the PASID of requests without one.
    #[bits(20)]
    pub rid_pasid: u32,
    /// RID_PRIV: requests without PASID are supervisor requests.
    pub rid_privileged: bool,
    #[bits(43)]
    pub reserved: u64,
}

/// PASID directory entry (§9.5).
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct PasidDirectoryEntry {
    /// P.
    pub present: bool,
    /// FPD: qualified faults are not recorded.
    pub fault_processing_disable: bool,
    #[bits(10)]
    pub reserved: u16,
    /// SMPTBLPTR, in units of 4 KiB.
    #[bits(52)]
    pub frame: u64,
}

/// PASID table entry, first quadword (§9.6).
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct PasidTable0 {
    /// P.
    pub present: bool,
    /// FPD: qualified faults are not recorded.
    pub fault_processing_disable: bool,
    /// AW: levels of the second-stage tables, less two.
    #[bits(3)]
    pub address_width: u8,
    pub reserved0: bool,
    /// PGTT: see [`translation_type`].
    #[bits(3)]
    pub translation_type: u8,
    /// SSADE: set accessed and dirty in second-stage entries.
    pub second_stage_accessed_dirty: bool,
    #[bits(2)]
    pub reserved1: u8,
    /// SSPTPTR, in units of 4 KiB.
    #[bits(52)]
    pub second_stage_frame: u64,
}

/// Values of PGTT (§9.6).
pub mod translation_type {
    /// First-stage.
    pub const FIRST_STAGE: u8 = 1;
    /// Second-stage.
    pub const SECOND_STAGE: u8 = 2;
    /// Nested.
    pub const NESTED: u8 = 3;
    /// Pass-through.
    pub const PASS_THROUGH: u8 = 4;
}

/// PASID table entry, second quadword (§9.6).
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct PasidTable1 {
    /// DID.
    pub domain_id: u16,
    #[bits(7)]
    pub reserved: u8,
    /// PWSNP: page walks snoop the processors' caches.
    pub page_walk_snoop: bool,
    /// PGSNP: accesses snoop the processors' caches.
    pub page_snoop: bool,
    /// Memory types of earlier revisions (CD, EMTE, EMT, PAT); reserved now.
    #[bits(39)]
    __: u64,
}

/// PASID table entry, third quadword (§9.6). The others are reserved.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct PasidTable2 {
    /// SRE: supervisor requests are served.
    pub supervisor_request_enable: bool,
    /// ERE: execute requests are served.
    pub execute_request_enable: bool,
    /// FSPM: 0 is four levels, 1 is five.
    #[bits(2)]
    pub first_stage_paging_mode: u8,
    /// WPE: supervisor requests honour write protection.
    pub write_protect_enable: bool,
    /// NXE and SMEP of revision 3.0; later revisions reserve them.
    #[bits(2)]
    __: u8,
    /// EAFE: set the extended accessed bit in first-stage entries.
    pub extended_accessed_enable: bool,
    #[bits(4)]
    pub reserved: u8,
    /// FSPTPTR, in units of 4 KiB.
    #[bits(52)]
    pub first_stage_frame: u64,
}

/// First-stage paging entry of any level (§9.7).
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct FirstStageEntry {
    /// P.
    pub present: bool,
    /// R/W: writes are allowed.
    pub writable: bool,
    /// U/S: user requests are allowed.
    pub user: bool,
    /// PWT and PCD: no meaning here.
    #[bits(2)]
    __: u8,
    /// A.
    pub accessed: bool,
    /// D (leaf only).
    pub dirty: bool,
    /// PS: this entry maps a page (levels 2 and 3). PAT at level 1.
    pub page_size: bool,
    /// G: no meaning since revision 3.0.
    __: bool,
    __: bool,
    /// EA: extended accessed.
    pub extended_accessed: bool,
    __: bool,
    /// The page or the next table, in units of 4 KiB. Bit 0 of a large page's frame is PAT.
    #[bits(40)]
    pub frame: u64,
    #[bits(11)]
    __: u16,
    /// XD: execution is not allowed.
    pub execute_disable: bool,
}

/// Second-stage paging entry of any level (§9.8).
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct SecondStageEntry {
    /// R.
    pub read: bool,
    /// W.
    pub write: bool,
    /// X: no meaning here.
    __: bool,
    #[bits(4)]
    __: u8,
    /// PS: this entry maps a page (levels 2 and 3).
    pub page_size: bool,
    /// A.
    pub accessed: bool,
    /// D (leaf only).
    pub dirty: bool,
    __: bool,
    /// SNP (leaf only): accesses snoop.
    pub snoop: bool,
    /// The page or the next table, in units of 4 KiB.
    #[bits(40)]
    pub frame: u64,
    #[bits(12)]
    __: u16,
}
