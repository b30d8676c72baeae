//! PCI configuration space: offsets and registers.
//!
//! Sections without another name are of the PCI Express Base Specification, revision 6.0; "PCI 3.0" is the PCI Local
//! Bus Specification, revision 3.0. Registers are given with the access that software has: RO, RW, RW1C (a written 1
//! clears); fields named `__` are reserved, and read 0.
use bitfield_struct::bitfield;

/// Size of a function's configuration space, bytes (§7.2).
pub const CONFIG_SPACE_SIZE: usize = 4096;
/// Size of the part that PCI has too, bytes; capabilities are linked below this, extended capabilities from here on
/// (§7.2).
pub const PCI_CONFIG_SPACE_SIZE: u16 = 256;

/// Offsets in the type 0 header (§7.5.1.1, §7.5.1.2).
pub mod header {
    /// RO, 16.
    pub const VENDOR_ID: u16 = 0x00;
    /// RO, 16.
    pub const DEVICE_ID: u16 = 0x02;
    /// RW, 16: [`super::Command`].
    pub const COMMAND: u16 = 0x04;
    /// RW1C, 16: [`super::Status`].
    pub const STATUS: u16 = 0x06;
    /// RO, 8.
    pub const REVISION_ID: u16 = 0x08;
    /// RO, 24: programming interface, subclass, base class.
    pub const CLASS_CODE: u16 = 0x09;
    /// RW, 8: kept for software, without effect (§7.5.1.1.7).
    pub const CACHE_LINE_SIZE: u16 = 0x0c;
    /// RO, 8: 0 is a type 0 header (§7.5.1.1.9).
    pub const HEADER_TYPE: u16 = 0x0e;
    /// RW, 32 each: six base address registers (§7.5.1.2.1).
    pub const BAR0: u16 = 0x10;
    /// Base address registers of a type 0 header.
    pub const BARS: usize = 6;
    /// RO, 16.
    pub const SUBSYSTEM_VENDOR_ID: u16 = 0x2c;
    /// RO, 16.
    pub const SUBSYSTEM_ID: u16 = 0x2e;
    /// RO, 8: offset of the first capability (§7.5.1.1.11).
    pub const CAPABILITIES_POINTER: u16 = 0x34;
    /// RW, 8: kept for software, without effect (§7.5.1.1.12).
    pub const INTERRUPT_LINE: u16 = 0x3c;
    /// RO, 8: 0 is no INTx (§7.5.1.1.13).
    pub const INTERRUPT_PIN: u16 = 0x3d;
}

/// Command register (§7.5.1.1.3).
#[bitfield(u16, order = Lsb)]
#[derive(PartialEq, Eq)]
pub struct Command {
    /// Answers I/O space accesses. RO 0 without I/O BARs.
    pub io_space: bool,
    /// Answers memory space accesses.
    pub memory_space: bool,
    /// May issue memory requests, message interrupts included.
    pub bus_master: bool,
    #[bits(3)]
    __: u8,
    /// Reports poisoned TLPs in [`Status::master_data_parity_error`].
    pub parity_error_response: bool,
    __: bool,
    /// Reports errors to the root complex.
    pub serr_enable: bool,
    __: bool,
    /// May not raise INTx.
    pub interrupt_disable: bool,
    #[bits(5)]
    __: u8,
}

/// Status register (§7.5.1.1.4).
#[bitfield(u16, order = Lsb)]
#[derive(PartialEq, Eq)]
pub struct Status {
    /// RO: accesses may follow a reset at once.
    pub immediate_readiness: bool,
    #[bits(2)]
    __: u8,
    /// RO: INTx is raised.
    pub interrupt_status: bool,
    /// RO: there are capabilities; always 1.
    pub capabilities_list: bool,
    #[bits(3)]
    __: u8,
    /// RW1C.
    pub master_data_parity_error: bool,
    #[bits(2)]
    __: u8,
    /// RW1C.
    pub signaled_target_abort: bool,
    /// RW1C.
    pub received_target_abort: bool,
    /// RW1C.
    pub received_master_abort: bool,
    /// RW1C.
    pub signaled_system_error: bool,
    /// RW1C.
    pub detected_parity_error: bool,
}

/// The low, read-only bits of a memory BAR (§7.5.1.2.1, PCI 3.0 §6.2.5.1).
#[bitfield(u32, order = Lsb)]
#[derive(PartialEq, Eq)]
pub struct MemoryBar {
    /// It is an I/O BAR, not a memory BAR.
    pub io: bool,
    /// One of [`BAR_32`], [`BAR_64`].
    #[bits(2)]
    pub width: u8,
    /// Reads have no side effects.
    pub prefetchable: bool,
    /// Bits 31:4 of the address, of which those below the BAR's size are read-only 0.
    #[bits(28)]
    pub address: u32,
}

/// [`MemoryBar::width`]: anywhere in 32-bit space.
pub const BAR_32: u8 = 0b00;
/// [`MemoryBar::width`]: anywhere in 64-bit space; the next BAR is the upper half.
pub const BAR_64: u8 = 0b10;

/// First two bytes of a capability (§7.5.3.1, PCI 3.0 §6.7).
#[bitfield(u16, order = Lsb)]
#[derive(PartialEq, Eq)]
pub struct CapabilityHeader {
    /// One of [`capability`].
    #[bits(8)]
    pub id: u8,
    /// Offset of the next one, 0 in the last.
    #[bits(8)]
    pub next: u8,
}

/// Values of [`CapabilityHeader::id`] (PCI Code and ID Assignment Specification 1.11 §2).
pub mod capability {
    /// PCI Express (§7.5.3).
    pub const PCI_EXPRESS: u8 = 0x10;
    /// MSI-X (§7.7.2).
    pub const MSI_X: u8 = 0x11;
}

/// First four bytes of an extended capability (§7.6.3).
#[bitfield(u32, order = Lsb)]
#[derive(PartialEq, Eq)]
pub struct ExtendedCapabilityHeader {
    /// One of [`extended_capability`].
    #[bits(16)]
    pub id: u16,
    /// Version of the capability.
    #[bits(4)]
    pub version: u8,
    /// Offset of the next one, 0 in the last.
    #[bits(12)]
    pub next: u16,
}

/// Values of [`ExtendedCapabilityHeader::id`] (PCI Code and ID Assignment Specification 1.11 §3).
pub mod extended_capability {
    /// Address Translation Services (§10.5.1).
    pub const ATS: u16 = 0x000f;
    /// Page Request Interface (§10.5.2).
    pub const PRI: u16 = 0x0013;
    /// Process Address Space ID (§7.8.9).
    pub const PASID: u16 = 0x001b;
}

/// Offsets in the PCI Express capability (§7.5.3).
pub mod pci_express {
    /// RO, 16: [`super::PciExpressCapabilities`].
    pub const CAPABILITIES: u16 = 0x02;
    /// RO, 32: [`super::DeviceCapabilities`].
    pub const DEVICE_CAPABILITIES: u16 = 0x04;
    /// RW, 16: [`super::DeviceControl`].
    pub const DEVICE_CONTROL: u16 = 0x08;
    /// RW1C, 16: [`super::DeviceStatus`].
    pub const DEVICE_STATUS: u16 = 0x0a;
    /// RO, 32: [`super::DeviceCapabilities2`].
    pub const DEVICE_CAPABILITIES_2: u16 = 0x24;
    /// RW, 16: [`super::DeviceControl2`].
    pub const DEVICE_CONTROL_2: u16 = 0x28;
    /// Size of version 2 of the capability, bytes. Link, slot and root registers are 0 in a root complex integrated
    /// endpoint.
    pub const SIZE: u16 = 0x3c;
}

/// PCI Express Capabilities register (§7.5.3.2).
#[bitfield(u16, order = Lsb)]
#[derive(PartialEq, Eq)]
pub struct PciExpressCapabilities {
    /// 2, since PCI Express 2.0.
    #[bits(4)]
    pub version: u8,
    /// One of [`device_type`].
    #[bits(4)]
    pub device_type: u8,
    /// Of a port: it has a slot.
    pub slot: bool,
    /// Of a port: vector of its own interrupts.
    #[bits(5)]
    pub interrupt_message: u8,
    #[bits(2)]
    __: u8,
}

/// Values of [`PciExpressCapabilities::device_type`] (§7.5.3.2, table 7-17).
pub mod device_type {
    /// PCI Express endpoint.
    pub const ENDPOINT: u8 = 0b0000;
    /// Root Complex Integrated Endpoint: on the root bus, without a link.
    pub const ROOT_COMPLEX_INTEGRATED_ENDPOINT: u8 = 0b1001;
}

/// Device Capabilities register (§7.5.3.3).
#[bitfield(u32, order = Lsb)]
#[derive(PartialEq, Eq)]
pub struct DeviceCapabilities {
    /// Largest payload, `128 << n` bytes.
    #[bits(3)]
    pub max_payload_size: u8,
    #[bits(2)]
    pub phantom_functions: u8,
    /// 8-bit tags as a requester.
    pub extended_tag: bool,
    #[bits(9)]
    __: u16,
    /// Always 1 since PCI Express 1.1.
    pub role_based_error_reporting: bool,
    #[bits(12)]
    __: u16,
    /// [`DeviceControl::initiate_flr`] works (§6.6.2).
    pub function_level_reset: bool,
    #[bits(3)]
    __: u8,
}

/// Device Control register (§7.5.3.4).
#[bitfield(u16, order = Lsb)]
#[derive(PartialEq, Eq)]
pub struct DeviceControl {
    /// RW.
    pub correctable_error_reporting: bool,
    /// RW.
    pub non_fatal_error_reporting: bool,
    /// RW.
    pub fatal_error_reporting: bool,
    /// RW.
    pub unsupported_request_reporting: bool,
    /// RO 0 in a function that never sets the attribute.
    pub relaxed_ordering: bool,
    /// RO 0 in a function whose largest payload is 128 bytes.
    #[bits(3)]
    pub max_payload_size: u8,
    /// RO 0 without [`DeviceCapabilities::extended_tag`].
    pub extended_tag: bool,
    /// RO 0 without phantom functions.
    pub phantom_functions: bool,
    /// RO 0 without auxiliary power.
    pub aux_power: bool,
    /// RO 0 in a function that never sets the attribute.
    pub no_snoop: bool,
    /// RW: largest read request, `128 << n` bytes. 2 after a reset.
    #[bits(3)]
    pub max_read_request_size: u8,
    /// Writing 1 resets the function (§6.6.2); reads 0.
    pub initiate_flr: bool,
}

/// Device Status register (§7.5.3.5).
#[bitfield(u16, order = Lsb)]
#[derive(PartialEq, Eq)]
pub struct DeviceStatus {
    /// RW1C.
    pub correctable_error: bool,
    /// RW1C.
    pub non_fatal_error: bool,
    /// RW1C.
    pub fatal_error: bool,
    /// RW1C.
    pub unsupported_request: bool,
    /// RO.
    pub aux_power: bool,
    /// RO: requests that want an answer are under way.
    pub transactions_pending: bool,
    #[bits(10)]
    __: u16,
}

/// Device Capabilities 2 register (§7.5.3.15); fields that say nothing of an endpoint here are left out.
#[bitfield(u32, order = Lsb)]
#[derive(PartialEq, Eq)]
pub struct DeviceCapabilities2 {
    /// 0: the timeout is the implementation's own.
    #[bits(4)]
    pub completion_timeout_ranges: u8,
    /// The timeout can be switched off. Required of a function that issues requests of its own.
    pub completion_timeout_disable: bool,
    #[bits(15)]
    __: u16,
    /// 3-bit Fmt field. Goes with `end_end_tlp_prefix`.
    pub extended_fmt_field: bool,
    /// End-End TLP prefixes, which carry PASIDs (§6.20.2.1).
    pub end_end_tlp_prefix: bool,
    /// How many of them in one TLP; 0 means 4.
    #[bits(2)]
    pub max_end_end_tlp_prefixes: u8,
    #[bits(8)]
    __: u8,
}

/// Device Control 2 register (§7.5.3.16); fields that are RO 0 here are left out.
#[bitfield(u16, order = Lsb)]
#[derive(PartialEq, Eq)]
pub struct DeviceControl2 {
    /// RO 0 without ranges.
    #[bits(4)]
    pub completion_timeout_value: u8,
    /// RW.
    pub completion_timeout_disable: bool,
    #[bits(11)]
    __: u16,
}

/// Offsets in the MSI-X capability (§7.7.2).
pub mod msi_x {
    /// RW, 16: [`super::MsiXControl`].
    pub const CONTROL: u16 = 0x02;
    /// RO, 32: [`super::MsiXLocation`] of the table.
    pub const TABLE: u16 = 0x04;
    /// RO, 32: [`super::MsiXLocation`] of the pending-bit array.
    pub const PENDING_BITS: u16 = 0x08;
    /// Size of the capability, bytes.
    pub const SIZE: u16 = 0x0c;
    /// Size of a table entry, bytes (§7.7.2.5).
    pub const TABLE_ENTRY_SIZE: u64 = 16;
}

/// MSI-X Message Control register (§7.7.2.2).
#[bitfield(u16, order = Lsb)]
#[derive(PartialEq, Eq)]
pub struct MsiXControl {
    /// RO: entries of the table, less one.
    #[bits(11)]
    pub table_size: u16,
    #[bits(3)]
    __: u8,
    /// RW: all vectors are masked.
    pub function_mask: bool,
    /// RW: interrupts are MSI-X.
    pub enable: bool,
}

/// Where the MSI-X table or pending-bit array is (§7.7.2.3, §7.7.2.4).
#[bitfield(u32, order = Lsb)]
#[derive(PartialEq, Eq)]
pub struct MsiXLocation {
    /// Which BAR.
    #[bits(3)]
    pub bar: u8,
    /// Offset in it, in units of 8 bytes.
    #[bits(29)]
    pub offset_qwords: u32,
}

/// Offsets in the ATS extended capability (§10.5.1).
pub mod ats {
    /// RO, 16: [`super::AtsCapability`].
    pub const CAPABILITY: u16 = 0x04;
    /// RW, 16: [`super::AtsControl`].
    pub const CONTROL: u16 = 0x06;
    /// Size of the capability, bytes.
    pub const SIZE: u16 = 0x08;
}

/// ATS Capability register (§10.5.1.2).
#[bitfield(u16, order = Lsb)]
#[derive(PartialEq, Eq)]
pub struct AtsCapability {
    /// Invalidate requests that can be under way; 0 means 32.
    #[bits(5)]
    pub invalidate_queue_depth: u8,
    /// Untranslated addresses are always page-aligned.
    pub page_aligned_request: bool,
    /// Invalidate requests may be global (§10.3.8).
    pub global_invalidate: bool,
    #[bits(9)]
    __: u16,
}

/// ATS Control register (§10.5.1.3).
#[bitfield(u16, order = Lsb)]
#[derive(PartialEq, Eq)]
pub struct AtsControl {
    /// RW: no translation or invalidation is smaller than `4096 << n` bytes.
    #[bits(5)]
    pub smallest_translation_unit: u8,
    #[bits(10)]
    __: u16,
    /// RW: the function may cache translations.
    pub enable: bool,
}

/// Offsets in the page request extended capability (§10.5.2).
pub mod pri {
    /// RW, 16: [`super::PageRequestControl`].
    pub const CONTROL: u16 = 0x04;
    /// RW1C, 16: [`super::PageRequestStatus`].
    pub const STATUS: u16 = 0x06;
    /// RO, 32: most page requests that the function can have outstanding (§10.5.2.4).
    pub const OUTSTANDING_CAPACITY: u16 = 0x08;
    /// RW, 32: most page requests that it may have outstanding (§10.5.2.5).
    pub const OUTSTANDING_ALLOCATION: u16 = 0x0c;
    /// Size of the capability, bytes.
    pub const SIZE: u16 = 0x10;
}

/// Page Request Control register (§10.5.2.2).
#[bitfield(u16, order = Lsb)]
#[derive(PartialEq, Eq)]
pub struct PageRequestControl {
    /// RW: the function may send page requests.
    pub enable: bool,
    /// Writing 1 while `enable` is 0 forgets outstanding requests; reads 0.
    pub reset: bool,
    #[bits(14)]
    __: u16,
}

/// Page Request Status register (§10.5.2.3).
#[bitfield(u16, order = Lsb)]
#[derive(PartialEq, Eq)]
pub struct PageRequestStatus {
    /// RW1C: a response of *failure* came.
    pub response_failure: bool,
    /// RW1C: a response came for a group that has no request.
    pub unexpected_prg_index: bool,
    #[bits(6)]
    __: u8,
    /// RO: while disabled, no request is outstanding; 1 after a reset.
    pub stopped: bool,
    #[bits(6)]
    __: u8,
    /// RO: expects a PASID in responses to requests with one.
    pub prg_response_pasid_required: bool,
}

/// Offsets in the PASID extended capability (§7.8.9).
pub mod pasid {
    /// RO, 16: [`super::PasidCapability`].
    pub const CAPABILITY: u16 = 0x04;
    /// RW, 16: [`super::PasidControl`].
    pub const CONTROL: u16 = 0x06;
    /// Size of the capability, bytes.
    pub const SIZE: u16 = 0x08;
}

/// PASID Capability register (§7.8.9.2).
#[bitfield(u16, order = Lsb)]
#[derive(PartialEq, Eq)]
pub struct PasidCapability {
    __: bool,
    /// Can ask for execute permission.
    pub execute: bool,
    /// Can ask for privileged mode.
    pub privileged: bool,
    #[bits(5)]
    __: u8,
    /// Bits of a PASID, 0 to 20.
    #[bits(5)]
    pub max_width: u8,
    #[bits(3)]
    __: u8,
}

/// PASID Control register (§7.8.9.3).
#[bitfield(u16, order = Lsb)]
#[derive(PartialEq, Eq)]
pub struct PasidControl {
    /// RW: requests may carry a PASID.
    pub enable: bool,
    /// RO 0 without [`PasidCapability::execute`].
    pub execute: bool,
    /// RO 0 without [`PasidCapability::privileged`].
    pub privileged: bool,
    #[bits(13)]
    __: u16,
}
