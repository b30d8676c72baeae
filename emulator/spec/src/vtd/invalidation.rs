//! Invalidation descriptors (§6.5.2).
use bitfield_struct::bitfield;

/// Descriptor types, bits 3:0 with bits 11:9 zero (§6.5.2).
pub mod descriptor_type {
    /// Context-cache invalidate (§6.5.2.1).
    pub const CONTEXT_CACHE: u8 = 0x1;
    /// IOTLB invalidate (§6.5.2.3).
    pub const IOTLB: u8 = 0x2;
    /// Device-TLB invalidate (§6.5.2.5).
    pub const DEVICE_TLB: u8 = 0x3;
    /// Interrupt entry cache invalidate (§6.5.2.7).
    pub const INTERRUPT_ENTRY_CACHE: u8 = 0x4;
    /// Invalidation wait (§6.5.2.8).
    pub const WAIT: u8 = 0x5;
    /// PASID-based IOTLB invalidate (§6.5.2.4).
    pub const PASID_IOTLB: u8 = 0x6;
    /// PASID-cache invalidate (§6.5.2.2).
    pub const PASID_CACHE: u8 = 0x7;
    /// PASID-based device-TLB invalidate (§6.5.2.6).
    pub const PASID_DEVICE_TLB: u8 = 0x8;
    /// Page group response (§7.5.1).
    pub const PAGE_GROUP_RESPONSE: u8 = 0x9;
}

/// Why the invalidation queue stopped: IQERCD.IQEI (§11.4.9.9).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum QueueError {
    /// The tail points outside the queue.
    InvalidTail = 0x1,
    /// A descriptor could not be read, or a wait's status could not be written.
    Fetch = 0x2,
    /// The type is not known.
    InvalidType = 0x3,
    /// A reserved field is not zero, or a field has a reserved value.
    Reserved = 0x4,
    /// 128-bit descriptors in scalable mode, or a descriptor that needs 256 bits.
    InvalidWidth = 0x5,
    /// The tail is not aligned to 256-bit descriptors.
    UnalignedTail = 0x6,
    /// The translation table mode (RTADDR.TTM) is reserved.
    InvalidMode = 0x7,
}

/// Granularities of a context-cache invalidation (§6.5.2.1, §11.4.6.1).
pub mod context_granularity {
    /// Everything.
    pub const GLOBAL: u8 = 1;
    /// One domain.
    pub const DOMAIN: u8 = 2;
    /// One function.
    pub const DEVICE: u8 = 3;
}

/// Granularities of an IOTLB invalidation (§6.5.2.3, §11.4.6.3).
pub mod iotlb_granularity {
    /// Everything.
    pub const GLOBAL: u8 = 1;
    /// One domain.
    pub const DOMAIN: u8 = 2;
    /// Pages of one domain.
    pub const PAGE: u8 = 3;
}

/// Granularities of a PASID-cache invalidation (§6.5.2.2).
pub mod pasid_cache_granularity {
    /// One domain.
    pub const DOMAIN: u8 = 0;
    /// One PASID of one domain.
    pub const PASID: u8 = 1;
    /// Everything.
    pub const GLOBAL: u8 = 3;
}

/// Granularities of a PASID-based IOTLB invalidation (§6.5.2.4).
pub mod pasid_iotlb_granularity {
    /// One PASID of one domain.
    pub const PASID: u8 = 2;
    /// Pages of one PASID of one domain.
    pub const PAGE: u8 = 3;
}

/// Low quadword of any descriptor.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct DescriptorHeader {
    /// Type, bits 3:0.
    #[bits(4)]
    pub type_low: u8,
    #[bits(5)]
    __: u8,
    /// Type, bits 6:4: zero in every type so far.
    #[bits(3)]
    pub type_high: u8,
    #[bits(52)]
    __: u64,
}

/// Context-cache invalidate, low quadword (§6.5.2.1). The high one is reserved.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct ContextCache {
    #[bits(4)]
    __: u8,
    /// G: see [`context_granularity`].
    #[bits(2)]
    pub granularity: u8,
    #[bits(3)]
    pub reserved0: u8,
    #[bits(3)]
    __: u8,
    #[bits(4)]
    pub reserved1: u8,
    /// DID; ignored in scalable mode.
    pub domain_id: u16,
    /// SID.
    pub source_id: u16,
    /// FM: how many of the source-id's low function bits are ignored.
    #[bits(2)]
    pub function_mask: u8,
    #[bits(14)]
    pub reserved2: u16,
}

/// PASID-cache invalidate, low quadword (§6.5.2.2). The high one is reserved.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct PasidCache {
    #[bits(4)]
    __: u8,
    /// G: see [`pasid_cache_granularity`].
    #[bits(2)]
    pub granularity: u8,
    #[bits(3)]
    pub reserved0: u8,
    #[bits(3)]
    __: u8,
    #[bits(4)]
    pub reserved1: u8,
    /// DID.
    pub domain_id: u16,
    /// PASID.
    #[bits(20)]
    pub pasid: u32,
    #[bits(12)]
    pub reserved2: u16,
}

/// IOTLB invalidate, low quadword (§6.5.2.3).
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct Iotlb {
    #[bits(4)]
    __: u8,
    /// G: see [`iotlb_granularity`].
    #[bits(2)]
    pub granularity: u8,
    /// DW: drain writes.
    pub drain_writes: bool,
    /// DR: drain reads.
    pub drain_reads: bool,
    pub reserved0: bool,
    #[bits(3)]
    __: u8,
    #[bits(4)]
    pub reserved1: u8,
    /// DID.
    pub domain_id: u16,
    pub reserved2: u32,
}

/// PASID-based IOTLB invalidate, low quadword (§6.5.2.4).
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct PasidIotlb {
    #[bits(4)]
    __: u8,
    /// G: see [`pasid_iotlb_granularity`].
    #[bits(2)]
    pub granularity: u8,
    #[bits(3)]
    pub reserved0: u8,
    #[bits(3)]
    __: u8,
    #[bits(4)]
    pub reserved1: u8,
    /// DID.
    pub domain_id: u16,
    /// PASID.
    #[bits(20)]
    pub pasid: u32,
    #[bits(12)]
    pub reserved2: u16,
}

/// High quadword of the IOTLB and PASID-based IOTLB invalidates, and the IVA register (§6.5.2.3, §6.5.2.4, §11.4.6.2).
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct InvalidateAddress {
    /// AM: 2^AM pages.
    #[bits(6)]
    pub address_mask: u8,
    /// IH: only leaf entries changed.
    pub invalidation_hint: bool,
    #[bits(5)]
    pub reserved: u8,
    /// ADDR, in units of 4 KiB.
    #[bits(52)]
    pub frame: u64,
}

/// Device-TLB invalidate, low quadword (§6.5.2.5).
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct DeviceTlb {
    #[bits(4)]
    __: u8,
    #[bits(5)]
    pub reserved0: u8,
    #[bits(3)]
    __: u8,
    /// PFSID, bits 3:0.
    #[bits(4)]
    pub pf_source_id_low: u8,
    /// MIP: how many invalidations the function takes at a time.
    #[bits(5)]
    pub max_invalidations_pending: u8,
    #[bits(11)]
    pub reserved1: u16,
    /// SID.
    pub source_id: u16,
    #[bits(4)]
    pub reserved2: u8,
    /// PFSID, bits 15:4.
    #[bits(12)]
    pub pf_source_id_high: u16,
}

/// Device-TLB invalidate, high quadword (§6.5.2.5).
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct DeviceTlbAddress {
    /// S: more than one page; the lowest clear bit of ADDR says how many.
    pub size: bool,
    #[bits(11)]
    pub reserved: u16,
    /// ADDR, in units of 4 KiB.
    #[bits(52)]
    pub frame: u64,
}

/// PASID-based device-TLB invalidate, low quadword (§6.5.2.6).
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct PasidDeviceTlb {
    #[bits(4)]
    __: u8,
    /// MIP: how many invalidations the function takes at a time.
    #[bits(5)]
    pub max_invalidations_pending: u8,
    #[bits(3)]
    __: u8,
    /// PFSID, bits 3:0.
    #[bits(4)]
    pub pf_source_id_low: u8,
    /// SID.
    pub source_id: u16,
    /// PASID.
    #[bits(20)]
    pub pasid: u32,
    /// PFSID, bits 15:4.
    #[bits(12)]
    pub pf_source_id_high: u16,
}

/// PASID-based device-TLB invalidate, high quadword (§6.5.2.6).
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct PasidDeviceTlbAddress {
    /// G: the entries of every PASID.
    pub global: bool,
    #[bits(10)]
    pub reserved: u16,
    /// S: more than one page; the lowest clear bit of ADDR says how many.
    pub size: bool,
    /// ADDR, in units of 4 KiB.
    #[bits(52)]
    pub frame: u64,
}

/// Interrupt entry cache invalidate, low quadword (§6.5.2.7).
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct InterruptEntryCache {
    #[bits(4)]
    __: u8,
    /// G: index-selective, else global.
    pub selective: bool,
    #[bits(4)]
    __: u8,
    #[bits(3)]
    __: u8,
    #[bits(15)]
    __: u16,
    /// IM: 2^IM entries.
    #[bits(5)]
    pub index_mask: u8,
    /// IIDX: first entry.
    pub index: u16,
    __: u16,
}

/// Invalidation wait, low quadword (§6.5.2.8).
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct Wait {
    #[bits(4)]
    __: u8,
    /// IF: raise the invalidation completion event.
    pub interrupt: bool,
    /// SW: write the status data to the status address.
    pub status_write: bool,
    /// FN: later descriptors start only after this one.
    pub fence: bool,
    /// PD: page requests that came before must be in the queue.
    pub page_request_drain: bool,
    pub reserved0: bool,
    #[bits(3)]
    __: u8,
    #[bits(20)]
    pub reserved1: u32,
    /// Status data.
    pub status_data: u32,
}

/// Page group response, low quadword (§7.5.1).
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct PageGroupResponse {
    #[bits(4)]
    __: u8,
    /// PP: there is a PASID.
    pub pasid_present: bool,
    #[bits(4)]
    pub reserved0: u8,
    #[bits(3)]
    __: u8,
    /// RC: see [`response_code`].
    #[bits(4)]
    pub response_code: u8,
    /// RID.
    pub requester_id: u16,
    /// PASID.
    #[bits(20)]
    pub pasid: u32,
    #[bits(12)]
    pub reserved1: u16,
}

/// Page group response, second quadword (§7.5.1). The third and fourth are reserved.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct PageGroupResponseIndex {
    #[bits(2)]
    pub reserved0: u8,
    /// LPIG (last page in group) until revision 4.0, which reserves it. Linux set it in every response, and hardware
    /// ignores it.
    __: bool,
    /// PRG index.
    #[bits(9)]
    pub prg_index: u16,
    #[bits(52)]
    pub reserved1: u64,
}

/// Response codes (§7.5.1; PCIe 6.0 §10.4.2.1).
pub mod response_code {
    /// Success.
    pub const SUCCESS: u8 = 0x0;
    /// Invalid request.
    pub const INVALID: u8 = 0x1;
    /// Response failure.
    pub const FAILURE: u8 = 0xf;
}
