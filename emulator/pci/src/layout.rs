//! What stands in a function's configuration space: reset values, and which bits software may change.
use svadev_spec::pcie::{
    AtsCapability, AtsControl, BAR_32, BAR_64, CONFIG_SPACE_SIZE, CapabilityHeader, Command, DeviceCapabilities,
    DeviceCapabilities2, DeviceControl, DeviceControl2, DeviceStatus, ExtendedCapabilityHeader, MemoryBar, MsiXControl,
    MsiXLocation, PageRequestControl, PageRequestStatus, PasidCapability, PasidControl, PciExpressCapabilities, Status,
    ats, capability, device_type, extended_capability, header, msi_x, pasid, pci_express, pri,
};

use crate::description::{Bar, Description, Identity, MsiX, Pasid, Pri};

/// Offset of the PCI Express capability.
pub(crate) const PCI_EXPRESS: u16 = 0x40;
/// Offset of the MSI-X capability.
const MSI_X: u16 = 0x80;
/// Offset of the first extended capability (§7.6).
const EXTENDED: u16 = 0x100;
/// Distance of extended capabilities, bytes: each of ours fits.
const EXTENDED_STRIDE: u16 = 0x10;

const _: () = assert!(PCI_EXPRESS + pci_express::SIZE <= MSI_X && MSI_X + msi_x::SIZE <= EXTENDED);
const _: () = assert!(ats::SIZE <= EXTENDED_STRIDE && pri::SIZE <= EXTENDED_STRIDE);

/// Reset values, and which bits software may change. Every bit that is in neither mask is read-only.
#[derive(Clone)]
pub(crate) struct Layout {
    pub(crate) reset: [u8; CONFIG_SPACE_SIZE],
    /// RW: takes what is written.
    pub(crate) rw: [u8; CONFIG_SPACE_SIZE],
    /// RW1C: a written 1 clears.
    pub(crate) rw1c: [u8; CONFIG_SPACE_SIZE],
    /// Where each capability is, if the function has it.
    pub(crate) msi_x: Option<u16>,
    pub(crate) ats: Option<u16>,
    pub(crate) pri: Option<u16>,
    pub(crate) pasid: Option<u16>,
}

impl Layout {
    pub(crate) fn new(description: &Description) -> Box<Self> {
        let mut layout = Box::new(Self {
            reset: [0; CONFIG_SPACE_SIZE],
            rw: [0; CONFIG_SPACE_SIZE],
            rw1c: [0; CONFIG_SPACE_SIZE],
            msi_x: None,
            ats: None,
            pri: None,
            pasid: None,
        });
        let Description { identity, bars, msi_x, ats, pri, pasid, function_level_reset } = *description;
        layout.header();
        layout.identity(identity);
        for (index, bar) in bars.into_iter().enumerate() {
            bar.into_iter().for_each(|bar| layout.bar(index, bar));
        }
        let next = if msi_x.is_some() { low_byte(MSI_X) } else { 0 };
        layout.pci_express(next, pasid.is_some(), function_level_reset);
        msi_x.into_iter().for_each(|msi_x| layout.msi_x(msi_x));
        let mut list = ExtendedList::default();
        layout.ats = ats.map(|_| list.append(&mut layout, extended_capability::ATS));
        layout.pri = pri.map(|_| list.append(&mut layout, extended_capability::PRI));
        layout.pasid = pasid.map(|_| list.append(&mut layout, extended_capability::PASID));
        layout.ats.into_iter().for_each(|at| layout.ats_registers(at));
        layout.pri.zip(pri).into_iter().for_each(|(at, pri)| layout.pri_registers(at, pri));
        layout.pasid.zip(pasid).into_iter().for_each(|(at, pasid)| layout.pasid_registers(at, pasid));
        layout
    }

    /// The header but for identity and BARs (§7.5.1). No power management capability, though §7.5.2 asks for one:
    /// software would put the driverless IOMMU function into D3, and its registers with it.
    fn header(&mut self) {
        let command = Command::new()
            .with_memory_space(true)
            .with_bus_master(true)
            .with_parity_error_response(true)
            .with_serr_enable(true)
            .with_interrupt_disable(true);
        let errors = Status::new()
            .with_master_data_parity_error(true)
            .with_signaled_target_abort(true)
            .with_received_target_abort(true)
            .with_received_master_abort(true)
            .with_signaled_system_error(true)
            .with_detected_parity_error(true);
        self.rw16(header::COMMAND, 0, command.into_bits());
        self.rw1c16(header::STATUS, Status::new().with_capabilities_list(true).into_bits(), errors.into_bits());
        self.rw[usize::from(header::CACHE_LINE_SIZE)] = 0xff;
        self.rw[usize::from(header::INTERRUPT_LINE)] = 0xff;
        self.reset[usize::from(header::CAPABILITIES_POINTER)] = low_byte(PCI_EXPRESS);
    }

    fn identity(&mut self, identity: Identity) {
        let Identity { vendor, device, class, revision } = identity;
        assert!(class < 1 << 24, "a class code has 24 bits, not {class:#x}");
        self.ro16(header::VENDOR_ID, vendor);
        self.ro16(header::DEVICE_ID, device);
        self.ro16(header::SUBSYSTEM_VENDOR_ID, vendor);
        self.ro16(header::SUBSYSTEM_ID, device);
        // One dword: revision below, class code in the upper three bytes.
        self.ro32(header::REVISION_ID, class << 8 | u32::from(revision));
    }

    fn bar(&mut self, index: usize, bar: Bar) {
        assert!(bar.size.is_power_of_two() && (16..1 << 31).contains(&bar.size), "a memory BAR of {} bytes", bar.size);
        let offset = bar_offset(index);
        let width = if bar.wide { BAR_64 } else { BAR_32 };
        self.ro32(offset, MemoryBar::new().with_width(width).with_prefetchable(bar.prefetchable).into_bits());
        let address = (!(bar.size - 1)).to_le_bytes();
        let bytes = if bar.wide { &address[..] } else { &address[..4] };
        self.rw[usize::from(offset)..][..bytes.len()].copy_from_slice(bytes);
    }

    /// PCI Express capability (§7.5.3). The function is a root complex integrated endpoint: it sits on the root bus,
    /// has no link, and needs no ATSR entry to use ATS. QEMU makes it an endpoint where it is put behind a port.
    fn pci_express(&mut self, next: u8, has_pasid: bool, function_level_reset: bool) {
        let mut capabilities_2 = DeviceCapabilities2::new();
        if has_pasid {
            capabilities_2 = capabilities_2
                .with_completion_timeout_disable(true)
                // A PASID travels in an End-End TLP prefix (§6.20.2.1). Linux does not enable PASID without, and says
                // nothing.
                .with_extended_fmt_field(true)
                .with_end_end_tlp_prefix(true)
                .with_max_end_end_tlp_prefixes(1);
        }
        self.capability(PCI_EXPRESS, capability::PCI_EXPRESS, next);
        let capabilities = PciExpressCapabilities::new()
            .with_version(2)
            .with_device_type(device_type::ROOT_COMPLEX_INTEGRATED_ENDPOINT);
        self.ro16(PCI_EXPRESS + pci_express::CAPABILITIES, capabilities.into_bits());
        let capabilities = DeviceCapabilities::new()
            .with_role_based_error_reporting(true)
            .with_function_level_reset(function_level_reset);
        self.ro32(PCI_EXPRESS + pci_express::DEVICE_CAPABILITIES, capabilities.into_bits());
        let control = DeviceControl::new()
            .with_correctable_error_reporting(true)
            .with_non_fatal_error_reporting(true)
            .with_fatal_error_reporting(true)
            .with_unsupported_request_reporting(true)
            .with_max_read_request_size(0b111);
        // Max_Read_Request_Size is 512 bytes after a reset (§7.5.3.4).
        let reset = DeviceControl::new().with_max_read_request_size(0b010);
        self.rw16(PCI_EXPRESS + pci_express::DEVICE_CONTROL, reset.into_bits(), control.into_bits());
        let errors = DeviceStatus::new()
            .with_correctable_error(true)
            .with_non_fatal_error(true)
            .with_fatal_error(true)
            .with_unsupported_request(true);
        self.rw1c16(PCI_EXPRESS + pci_express::DEVICE_STATUS, 0, errors.into_bits());
        self.ro32(PCI_EXPRESS + pci_express::DEVICE_CAPABILITIES_2, capabilities_2.into_bits());
        let control =
            DeviceControl2::new().with_completion_timeout_disable(capabilities_2.completion_timeout_disable());
        self.rw16(PCI_EXPRESS + pci_express::DEVICE_CONTROL_2, 0, control.into_bits());
    }

    /// MSI-X capability (§7.7.2).
    fn msi_x(&mut self, table: MsiX) {
        let MsiX { vectors, bar, table_offset, pending_offset } = table;
        assert!((1..=2048).contains(&vectors), "a function has 1 to 2048 vectors, not {vectors}");
        let table = u64::from(vectors) * msi_x::TABLE_ENTRY_SIZE;
        assert!(table <= pending_offset.into() && pending_offset.is_multiple_of(8), "pending bits in the MSI-X table");
        self.msi_x = Some(MSI_X);
        self.capability(MSI_X, capability::MSI_X, 0);
        let reset = MsiXControl::new().with_table_size(vectors - 1);
        let control = MsiXControl::new().with_function_mask(true).with_enable(true);
        self.rw16(MSI_X + msi_x::CONTROL, reset.into_bits(), control.into_bits());
        assert!(table_offset.is_multiple_of(8), "the MSI-X table is not aligned");
        let table = MsiXLocation::new().with_bar(bar).with_offset_qwords(table_offset / 8);
        self.ro32(MSI_X + msi_x::TABLE, table.into_bits());
        let pending = MsiXLocation::new().with_bar(bar).with_offset_qwords((table_offset + pending_offset) / 8);
        self.ro32(MSI_X + msi_x::PENDING_BITS, pending.into_bits());
    }

    /// ATS capability (§10.5.1). Invalidate Queue Depth 0 means 32, the most: no number of requests is refused.
    fn ats_registers(&mut self, at: u16) {
        let capability = AtsCapability::new().with_page_aligned_request(true).with_global_invalidate(true);
        self.ro16(at + ats::CAPABILITY, capability.into_bits());
        let control = AtsControl::new().with_smallest_translation_unit(0x1f).with_enable(true);
        self.rw16(at + ats::CONTROL, 0, control.into_bits());
    }

    /// Page request capability (§10.5.2).
    fn pri_registers(&mut self, at: u16, limits: Pri) {
        let control = PageRequestControl::new().with_enable(true);
        self.rw16(at + pri::CONTROL, 0, control.into_bits());
        let reset = PageRequestStatus::new().with_stopped(true).with_prg_response_pasid_required(true);
        let noted = PageRequestStatus::new().with_response_failure(true).with_unexpected_prg_index(true);
        self.rw1c16(at + pri::STATUS, reset.into_bits(), noted.into_bits());
        self.ro32(at + pri::OUTSTANDING_CAPACITY, limits.capacity);
        self.rw[usize::from(at + pri::OUTSTANDING_ALLOCATION)..][..4].fill(0xff);
    }

    /// PASID capability (§7.8.9). Execute and privileged requests are not offered.
    fn pasid_registers(&mut self, at: u16, limits: Pasid) {
        assert!(limits.width <= 20, "a PASID has at most 20 bits, not {}", limits.width);
        self.ro16(at + pasid::CAPABILITY, PasidCapability::new().with_max_width(limits.width).into_bits());
        self.rw16(at + pasid::CONTROL, 0, PasidControl::new().with_enable(true).into_bits());
    }

    fn capability(&mut self, offset: u16, id: u8, next: u8) {
        self.ro16(offset, CapabilityHeader::new().with_id(id).with_next(next).into_bits());
    }

    fn ro16(&mut self, offset: u16, value: u16) {
        self.reset[usize::from(offset)..][..2].copy_from_slice(&value.to_le_bytes());
    }

    fn ro32(&mut self, offset: u16, value: u32) {
        self.reset[usize::from(offset)..][..4].copy_from_slice(&value.to_le_bytes());
    }

    fn rw16(&mut self, offset: u16, reset: u16, mask: u16) {
        self.ro16(offset, reset);
        self.rw[usize::from(offset)..][..2].copy_from_slice(&mask.to_le_bytes());
    }

    fn rw1c16(&mut self, offset: u16, reset: u16, mask: u16) {
        self.ro16(offset, reset);
        self.rw1c[usize::from(offset)..][..2].copy_from_slice(&mask.to_le_bytes());
    }
}

/// The list of extended capabilities, in the making.
#[derive(Default)]
struct ExtendedList {
    /// The last one: its offset and ID.
    last: Option<(u16, u16)>,
}

impl ExtendedList {
    /// Adds a capability behind the last one; its offset.
    fn append(&mut self, layout: &mut Layout, id: u16) -> u16 {
        let at = self.last.map_or(EXTENDED, |(last, _)| last + EXTENDED_STRIDE);
        if let Some((last, last_id)) = self.last {
            layout.ro32(last, Self::header(last_id, at));
        }
        layout.ro32(at, Self::header(id, 0));
        self.last = Some((at, id));
        at
    }

    fn header(id: u16, next: u16) -> u32 {
        ExtendedCapabilityHeader::new().with_id(id).with_version(1).with_next(next).into_bits()
    }
}

/// Offset of base address register `index`.
pub(crate) fn bar_offset(index: usize) -> u16 {
    header::BAR0 + 4 * u16::try_from(index).expect("one of six")
}

/// An offset in the first 256 bytes, as capability pointers are.
fn low_byte(offset: u16) -> u8 {
    u8::try_from(offset).expect("capabilities are in the first 256 bytes")
}
