//! Remapping hardware registers (chapter 11).
use bitfield_struct::bitfield;

/// Register offsets (§11.4, table 11-1). 64-bit registers may be accessed as two 32-bit halves.
pub mod offset {
    /// Version, 32 bits, RO (§11.4.1).
    pub const VER: u64 = 0x00;
    /// Capability, 64 bits, RO (§11.4.2).
    pub const CAP: u64 = 0x08;
    /// Extended capability, 64 bits, RO (§11.4.3).
    pub const ECAP: u64 = 0x10;
    /// Global command, 32 bits, WO (§11.4.4.1).
    pub const GCMD: u64 = 0x18;
    /// Global status, 32 bits, RO (§11.4.4.2).
    pub const GSTS: u64 = 0x1c;
    /// Root table address, 64 bits, RW (§11.4.5).
    pub const RTADDR: u64 = 0x20;
    /// Context command, 64 bits, RW (§11.4.6.1).
    pub const CCMD: u64 = 0x28;
    /// Fault status, 32 bits, RW1C (§11.4.7.1).
    pub const FSTS: u64 = 0x34;
    /// Fault event control, 32 bits, RW (§11.4.7.2).
    pub const FECTL: u64 = 0x38;
    /// Fault event data, 32 bits, RW (§11.4.7.3).
    pub const FEDATA: u64 = 0x3c;
    /// Fault event address, 32 bits, RW (§11.4.7.4).
    pub const FEADDR: u64 = 0x40;
    /// Fault event upper address, 32 bits, RW (§11.4.7.5).
    pub const FEUADDR: u64 = 0x44;
    /// Invalidation queue head, 64 bits, RO (§11.4.9.1).
    pub const IQH: u64 = 0x80;
    /// Invalidation queue tail, 64 bits, RW (§11.4.9.2).
    pub const IQT: u64 = 0x88;
    /// Invalidation queue address, 64 bits, RW (§11.4.9.3).
    pub const IQA: u64 = 0x90;
    /// Invalidation completion status, 32 bits, RW1C (§11.4.9.4).
    pub const ICS: u64 = 0x9c;
    /// Invalidation event control, 32 bits, RW (§11.4.9.5).
    pub const IECTL: u64 = 0xa0;
    /// Invalidation event data, 32 bits, RW (§11.4.9.6).
    pub const IEDATA: u64 = 0xa4;
    /// Invalidation event address, 32 bits, RW (§11.4.9.7).
    pub const IEADDR: u64 = 0xa8;
    /// Invalidation event upper address, 32 bits, RW (§11.4.9.8).
    pub const IEUADDR: u64 = 0xac;
    /// Invalidation queue error record, 64 bits, RO (§11.4.9.9).
    pub const IQERCD: u64 = 0xb0;
    /// Page request queue head, 64 bits, RW (§11.4.11.1).
    pub const PQH: u64 = 0xc0;
    /// Page request queue tail, 64 bits, RW (§11.4.11.2).
    pub const PQT: u64 = 0xc8;
    /// Page request queue address, 64 bits, RW (§11.4.11.3).
    pub const PQA: u64 = 0xd0;
    /// Page request status, 32 bits, RW1C (§11.4.11.4).
    pub const PRS: u64 = 0xdc;
    /// Page request event control, 32 bits, RW (§11.4.11.5).
    pub const PECTL: u64 = 0xe0;
    /// Page request event data, 32 bits, RW (§11.4.11.6).
    pub const PEDATA: u64 = 0xe4;
    /// Page request event address, 32 bits, RW (§11.4.11.7).
    pub const PEADDR: u64 = 0xe8;
    /// Page request event upper address, 32 bits, RW (§11.4.11.8).
    pub const PEUADDR: u64 = 0xec;
}

/// Capability register (CAP, offset 08h, 64 bits, RO, §11.4.2).
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct Capability {
    /// ND: 2^(4 + 2·ND) domain identifiers.
    #[bits(3)]
    pub domains: u8,
    #[bits(1)]
    __: u8,
    /// RWBF: software must flush write buffers.
    pub required_write_buffer_flushing: bool,
    /// PLMR: protected low memory region.
    pub protected_low_memory: bool,
    /// PHMR: protected high memory region.
    pub protected_high_memory: bool,
    /// CM: not-present and erroneous entries may be cached.
    pub caching_mode: bool,
    /// SAGAW: bit 1 is 39-bit (3 levels), bit 2 is 48-bit (4 levels), bit 3 is 57-bit (5 levels) second-stage tables.
    #[bits(5)]
    pub second_stage_widths: u8,
    #[bits(3)]
    __: u8,
    /// MGAW: maximum guest address width, less one.
    #[bits(6)]
    pub maximum_guest_address_width: u8,
    /// ZLR: zero-length reads of write-only pages are served.
    pub zero_length_read: bool,
    __: bool,
    /// FRO: offset of the fault recording registers, in units of 16 bytes.
    #[bits(10)]
    pub fault_recording_offset: u16,
    /// SSLPS: bit 0 is 2 MiB, bit 1 is 1 GiB second-stage pages.
    #[bits(4)]
    pub second_stage_large_pages: u8,
    __: bool,
    /// PSI: page-selective invalidation.
    pub page_selective_invalidation: bool,
    /// NFR: number of fault recording registers, less one.
    pub fault_recording_registers: u8,
    /// MAMV: maximum address mask of a page-selective invalidation.
    #[bits(6)]
    pub maximum_address_mask: u8,
    /// DWD: IOTLB invalidation drains writes.
    pub drain_write: bool,
    /// DRD: IOTLB invalidation drains reads.
    pub drain_read: bool,
    /// FS1GP: 1 GiB first-stage pages.
    pub first_stage_1gib_pages: bool,
    #[bits(2)]
    __: u8,
    /// PI: posted interrupts.
    pub posted_interrupts: bool,
    /// FS5LP: five-level first-stage tables.
    pub first_stage_5level: bool,
    /// ECMDS: enhanced commands.
    pub enhanced_commands: bool,
    /// ESIRTPS: setting the interrupt remapping table pointer invalidates the caches.
    pub enhanced_set_irtp: bool,
    /// ESRTPS: setting the root table pointer invalidates the caches.
    pub enhanced_set_rtp: bool,
}

/// Extended capability register (ECAP, offset 10h, 64 bits, RO, §11.4.3).
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct ExtendedCapability {
    /// C: table walks are coherent with the processors' caches.
    pub page_walk_coherency: bool,
    /// QI: queued invalidation.
    pub queued_invalidation: bool,
    /// DT: device TLBs.
    pub device_tlb: bool,
    /// IR: interrupt remapping.
    pub interrupt_remapping: bool,
    /// EIM: extended interrupt mode.
    pub extended_interrupt_mode: bool,
    __: bool,
    /// PT: pass-through.
    pub pass_through: bool,
    /// SC: snoop control.
    pub snoop_control: bool,
    /// IRO: offset of the IOTLB registers, in units of 16 bytes.
    #[bits(10)]
    pub iotlb_register_offset: u16,
    #[bits(2)]
    __: u8,
    /// MHMV: maximum handle mask of an interrupt entry cache invalidation.
    #[bits(4)]
    pub maximum_handle_mask: u8,
    #[bits(2)]
    __: u8,
    /// NEST: nested translation.
    pub nested: bool,
    #[bits(2)]
    __: u8,
    /// PRS: page requests.
    pub page_request: bool,
    /// ERS: execute requests.
    pub execute_request: bool,
    /// SRS: supervisor requests.
    pub supervisor_request: bool,
    __: bool,
    /// NWFS: the No Write flag of translation requests is honoured.
    pub no_write_flag: bool,
    /// EAFS: extended accessed flag of first-stage entries.
    pub extended_accessed_flag: bool,
    /// PSS: PASID size, in bits, less one.
    #[bits(5)]
    pub pasid_size: u8,
    /// PASID: requests with PASID.
    pub pasid: bool,
    /// DIT: device TLB invalidation throttle.
    pub device_tlb_invalidation_throttle: bool,
    /// PDS: page request drain.
    pub page_request_drain: bool,
    /// SMTS: scalable mode.
    pub scalable_mode: bool,
    /// VCS: virtual commands.
    pub virtual_command: bool,
    /// SSADS: second-stage accessed and dirty bits.
    pub second_stage_accessed_dirty: bool,
    /// SSTS: second-stage translation (in scalable mode).
    pub second_stage: bool,
    /// FSTS: first-stage translation.
    pub first_stage: bool,
    /// SMPWCS: scalable-mode page-walk coherency.
    pub scalable_mode_page_walk_coherency: bool,
    /// RPS: RID-PASID.
    pub rid_pasid: bool,
    __: bool,
    /// PMS: performance monitoring.
    pub performance_monitoring: bool,
    /// ADMS: abort-DMA mode.
    pub abort_dma_mode: bool,
    /// RPRIVS: RID_PRIV of context entries.
    pub rid_privileged: bool,
    #[bits(4)]
    __: u8,
    /// SMS: stop markers in the page request queue.
    pub stop_marker: bool,
    #[bits(5)]
    __: u8,
}

/// Global command register and, with the same layout, global status register (GCMD 18h WO, GSTS 1Ch RO, 32 bits,
/// §11.4.4).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct Global {
    #[bits(23)]
    __: u32,
    /// CFI / CFIS: compatibility format interrupts.
    pub compatibility_format_interrupt: bool,
    /// SIRTP / IRTPS: set interrupt remapping table pointer.
    pub interrupt_remap_table_pointer: bool,
    /// IRE / IRES: interrupt remapping enable.
    pub interrupt_remapping_enable: bool,
    /// QIE / QIES: queued invalidation enable.
    pub queued_invalidation_enable: bool,
    /// WBF / WBFS: write buffer flush.
    pub write_buffer_flush: bool,
    /// EAFL: deprecated, reserved.
    __: bool,
    /// SFL: deprecated, reserved.
    __: bool,
    /// SRTP / RTPS: set root table pointer.
    pub root_table_pointer: bool,
    /// TE / TES: translation enable.
    pub translation_enable: bool,
}

/// Root table address register (RTADDR, offset 20h, 64 bits, RW, §11.4.5).
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct RootTableAddress {
    #[bits(10)]
    __: u16,
    /// TTM: see [`translation_table_mode`].
    #[bits(2)]
    pub translation_table_mode: u8,
    /// RTA, in units of 4 KiB.
    #[bits(52)]
    pub frame: u64,
}

/// Values of RTADDR.TTM (§11.4.5).
pub mod translation_table_mode {
    /// Legacy mode.
    pub const LEGACY: u8 = 0b00;
    /// Scalable mode.
    pub const SCALABLE: u8 = 0b01;
    /// Reserved.
    pub const RESERVED: u8 = 0b10;
    /// Abort-DMA mode; reserved unless ECAP.ADMS.
    pub const ABORT_DMA: u8 = 0b11;
}

/// Context command register (CCMD, offset 28h, 64 bits, RW, §11.4.6.1).
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct ContextCommand {
    /// DID.
    pub domain_id: u16,
    /// SID.
    pub source_id: u16,
    /// FM: how many of the source-id's low function bits are ignored.
    #[bits(2)]
    pub function_mask: u8,
    #[bits(25)]
    __: u32,
    /// CAIG: granularity that was carried out; 0 says that the command was refused.
    #[bits(2)]
    pub actual_granularity: u8,
    /// CIRG: requested granularity, as in [`super::invalidation::context_granularity`].
    #[bits(2)]
    pub requested_granularity: u8,
    /// ICC: write 1 to start; reads 0 when done.
    pub invalidate: bool,
}

/// IOTLB invalidate register (IOTLB, offset ECAP.IRO · 16 + 8, 64 bits, RW, §11.4.6.3).
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct IotlbInvalidate {
    __: u32,
    /// DID.
    pub domain_id: u16,
    /// DW: drain writes.
    pub drain_writes: bool,
    /// DR: drain reads.
    pub drain_reads: bool,
    #[bits(7)]
    __: u8,
    /// IAIG: granularity that was carried out; 0 says that the command was refused.
    #[bits(2)]
    pub actual_granularity: u8,
    __: bool,
    /// IIRG: requested granularity, as in [`super::invalidation::iotlb_granularity`].
    #[bits(2)]
    pub requested_granularity: u8,
    __: bool,
    /// IVT: write 1 to start; reads 0 when done.
    pub invalidate: bool,
}

/// Fault status register (FSTS, offset 34h, 32 bits, RW1C but for PPF and FRI, §11.4.7.1).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct FaultStatus {
    /// PFO: a fault was lost, all recording registers being in use.
    pub primary_fault_overflow: bool,
    /// PPF, RO: some recording register holds a fault.
    pub primary_pending_fault: bool,
    #[bits(2)]
    __: u8,
    /// IQE: the invalidation queue stopped at a bad descriptor.
    pub invalidation_queue_error: bool,
    /// ICE: an unexpected invalidation completion came.
    pub invalidation_completion_error: bool,
    /// ITE: an invalidation completion did not come in time.
    pub invalidation_timeout_error: bool,
    /// Page request overflow moved to PRS; reserved.
    __: bool,
    /// FRI, RO: the recording register that holds the first pending fault.
    pub fault_record_index: u8,
    __: u16,
}

/// Event control of the fault, invalidation and page request events (FECTL, IECTL, PECTL, 32 bits, §11.4.7.2).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct EventControl {
    #[bits(30)]
    __: u32,
    /// IP, RO: a message is held back.
    pub interrupt_pending: bool,
    /// IM: messages are held back.
    pub interrupt_mask: bool,
}

/// Invalidation queue address register (IQA, offset 90h, 64 bits, RW, §11.4.9.3).
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct InvalidationQueueAddress {
    /// QS: the queue is 2^QS pages of 4 KiB.
    #[bits(3)]
    pub queue_size: u8,
    #[bits(8)]
    __: u8,
    /// DW: descriptors are 256 bits wide, else 128.
    pub descriptor_width: bool,
    /// IQA, in units of 4 KiB.
    #[bits(52)]
    pub frame: u64,
}

/// Invalidation queue error record register (IQERCD, offset B0h, 64 bits, RO, §11.4.9.9).
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct InvalidationQueueError {
    /// IQEI: see [`super::invalidation::QueueError`].
    #[bits(4)]
    pub queue_error_information: u8,
    #[bits(28)]
    __: u32,
    /// ITESID: the function whose completion did not come.
    pub timeout_source_id: u16,
    /// ICESID: the function whose completion was unexpected.
    pub completion_source_id: u16,
}

/// Page request queue address register (PQA, offset D0h, 64 bits, RW, §11.4.11.3).
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct PageRequestQueueAddress {
    /// PQS: the queue is 2^PQS pages of 4 KiB, that is 2^(PQS + 7) descriptors.
    #[bits(3)]
    pub queue_size: u8,
    #[bits(9)]
    __: u16,
    /// PQA, in units of 4 KiB.
    #[bits(52)]
    pub frame: u64,
}

/// Page request status register (PRS, offset DCh, 32 bits, RW1C, §11.4.11.4).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct PageRequestStatus {
    /// PPR: a page request was put into the queue.
    pub pending: bool,
    /// PRO: a page request was lost; no more are queued until this is cleared.
    pub overflow: bool,
    #[bits(30)]
    __: u32,
}
