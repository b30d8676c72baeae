//! What stands in a function's configuration space: which capabilities, which reset values, which bits software may change.
use svadev_spec::device::{
    ABI_MAJOR, BAR_DOORBELLS, BAR_MSIX, BAR_MSIX_SIZE, BAR_REGISTERS, BAR_UNIT, BAR_UNIT_SIZE, MAX_QUEUES,
    MSIX_PBA_OFFSET, PCI_CLASS_ACCELERATOR, PCI_CLASS_IOMMU, PCI_DEVICE_ID_ACCELERATOR, PCI_DEVICE_ID_IOMMU,
    PCI_VENDOR_ID, bar_doorbells_size, regs,
};
use svadev_spec::pcie::{
    AtsCapability, AtsControl, BAR_32, BAR_64, CONFIG_SPACE_SIZE, CapabilityHeader, Command, DeviceCapabilities,
    DeviceCapabilities2, DeviceControl, DeviceControl2, DeviceStatus, ExtendedCapabilityHeader, MemoryBar, MsiXControl,
    MsiXLocation, PageRequestControl, PageRequestStatus, PasidCapability, PasidControl, PciExpressCapabilities, Status,
    ats, capability, device_type, extended_capability, header, msi_x, pasid, pci_express, pri,
};

/// Offset of the PCI Express capability.
pub(super) const PCI_EXPRESS: u16 = 0x40;
/// Offset of the MSI-X capability.
pub(super) const MSI_X: u16 = 0x80;
/// Offset of the ATS capability: the first extended capability must be here (§7.6).
pub(super) const ATS: u16 = 0x100;
/// Offset of the page request capability.
pub(super) const PRI: u16 = 0x110;
/// Offset of the PASID capability.
pub(super) const PASID: u16 = 0x120;

const _: () = assert!(PCI_EXPRESS + pci_express::SIZE <= MSI_X && MSI_X + msi_x::SIZE <= ATS);
const _: () = assert!(ATS + ats::SIZE <= PRI && PRI + pri::SIZE <= PASID);

/// Most page requests that a function can have outstanding: as many as there are group indices (§10.4.1).
pub const OUTSTANDING_PAGE_REQUESTS: u32 = 512;

/// Which kind of function a configuration space belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FunctionKind {
    /// The IOMMU's own function: a BAR of registers, no driver, no request of its own, so nothing of ATS, PRI or PASID.
    Iommu,
    /// An accelerator.
    Accelerator {
        /// MSI-X vectors, 1 to 255.
        vectors: u16,
        /// Queues, 1 to `MAX_QUEUES`.
        queues: u16,
    },
}

/// A memory BAR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Bar {
    /// Bytes, a power of two.
    pub(super) size: u64,
    /// It takes two base address registers.
    pub(super) wide: bool,
}

/// Reset values, and which bits software may change. Every bit that is in neither mask is read-only.
#[derive(Clone)]
pub(super) struct Layout {
    pub(super) reset: [u8; CONFIG_SPACE_SIZE],
    /// RW: takes what is written.
    pub(super) rw: [u8; CONFIG_SPACE_SIZE],
    /// RW1C: a written 1 clears.
    pub(super) rw1c: [u8; CONFIG_SPACE_SIZE],
    pub(super) bars: [Option<Bar>; header::BARS],
}

impl Layout {
    pub(super) fn new(kind: FunctionKind) -> Box<Self> {
        let mut layout = Box::new(Self {
            reset: [0; CONFIG_SPACE_SIZE],
            rw: [0; CONFIG_SPACE_SIZE],
            rw1c: [0; CONFIG_SPACE_SIZE],
            bars: [None; header::BARS],
        });
        layout.common();
        match kind {
            FunctionKind::Iommu => layout.iommu(),
            FunctionKind::Accelerator { vectors, queues } => layout.accelerator(vectors, queues),
        }
        layout
    }

    fn iommu(&mut self) {
        self.identity(PCI_DEVICE_ID_IOMMU, PCI_CLASS_IOMMU);
        self.bar(BAR_UNIT, Bar { size: BAR_UNIT_SIZE, wide: false });
        self.pci_express(0, DeviceCapabilities2::new());
    }

    fn accelerator(&mut self, vectors: u16, queues: u16) {
        assert!((1..=255).contains(&vectors), "a function has 1 to 255 vectors, not {vectors}");
        assert!((1..=MAX_QUEUES).contains(&u32::from(queues)), "a function has 1 to {MAX_QUEUES} queues, not {queues}");
        assert!(u64::from(vectors) * msi_x::TABLE_ENTRY_SIZE <= u64::from(MSIX_PBA_OFFSET));
        self.identity(PCI_DEVICE_ID_ACCELERATOR, PCI_CLASS_ACCELERATOR);
        self.bar(BAR_REGISTERS, Bar { size: regs::BAR_SIZE, wide: true });
        self.bar(BAR_DOORBELLS, Bar { size: bar_doorbells_size(u32::from(queues)), wide: true });
        self.bar(BAR_MSIX, Bar { size: BAR_MSIX_SIZE, wide: true });
        let capabilities = DeviceCapabilities2::new()
            .with_completion_timeout_disable(true)
            // A PASID travels in an End-End TLP prefix (§6.20.2.1). Linux does not enable PASID without, and says nothing.
            .with_extended_fmt_field(true)
            .with_end_end_tlp_prefix(true)
            .with_max_end_end_tlp_prefixes(1);
        self.pci_express(low_byte(MSI_X), capabilities);
        self.msi_x(vectors);
        self.ats();
        self.pri();
        self.pasid();
    }

    /// The header but for identity and BARs (§7.5.1). No power management capability, though §7.5.2 asks for one: software
    /// would put the driverless IOMMU function into D3, and its registers with it.
    fn common(&mut self) {
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

    fn identity(&mut self, device: u16, class: u32) {
        self.ro16(header::VENDOR_ID, PCI_VENDOR_ID);
        self.ro16(header::DEVICE_ID, device);
        self.ro16(header::SUBSYSTEM_VENDOR_ID, PCI_VENDOR_ID);
        self.ro16(header::SUBSYSTEM_ID, device);
        // One dword: revision below, class code in the upper three bytes.
        self.ro32(header::REVISION_ID, class << 8 | u32::from(ABI_MAJOR));
    }

    fn bar(&mut self, index: u32, bar: Bar) {
        assert!(bar.size.is_power_of_two() && (16..1 << 31).contains(&bar.size), "a memory BAR of {} bytes", bar.size);
        let index = usize::try_from(index).expect("a small number");
        self.bars[index] = Some(bar);
        let offset = bar_offset(index);
        let width = if bar.wide { BAR_64 } else { BAR_32 };
        self.ro32(offset, MemoryBar::new().with_width(width).into_bits());
        let address = (!(bar.size - 1)).to_le_bytes();
        let bytes = if bar.wide { &address[..] } else { &address[..4] };
        self.rw[usize::from(offset)..][..bytes.len()].copy_from_slice(bytes);
    }

    /// PCI Express capability (§7.5.3). The function is a root complex integrated endpoint: it sits on the root bus, has no link,
    /// and needs no ATSR entry to use ATS. QEMU makes it an endpoint where it is put behind a port.
    fn pci_express(&mut self, next: u8, capabilities_2: DeviceCapabilities2) {
        self.capability(PCI_EXPRESS, capability::PCI_EXPRESS, next);
        let capabilities = PciExpressCapabilities::new()
            .with_version(2)
            .with_device_type(device_type::ROOT_COMPLEX_INTEGRATED_ENDPOINT);
        self.ro16(PCI_EXPRESS + pci_express::CAPABILITIES, capabilities.into_bits());
        let capabilities =
            DeviceCapabilities::new().with_role_based_error_reporting(true).with_function_level_reset(true);
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
    fn msi_x(&mut self, vectors: u16) {
        self.capability(MSI_X, capability::MSI_X, 0);
        let reset = MsiXControl::new().with_table_size(vectors - 1);
        let control = MsiXControl::new().with_function_mask(true).with_enable(true);
        self.rw16(MSI_X + msi_x::CONTROL, reset.into_bits(), control.into_bits());
        let bar = u8::try_from(BAR_MSIX).expect("one of six");
        self.ro32(MSI_X + msi_x::TABLE, MsiXLocation::new().with_bar(bar).into_bits());
        let pending = MsiXLocation::new().with_bar(bar).with_offset_qwords(MSIX_PBA_OFFSET / 8);
        self.ro32(MSI_X + msi_x::PENDING_BITS, pending.into_bits());
    }

    /// ATS capability (§10.5.1). Invalidate Queue Depth 0 is 32, the most: requests are mailed, and a full mailbox collapses
    /// into *invalidate everything*, so no number of them is refused.
    fn ats(&mut self) {
        self.extended_capability(ATS, extended_capability::ATS, PRI);
        let capability = AtsCapability::new().with_page_aligned_request(true).with_global_invalidate(true);
        self.ro16(ATS + ats::CAPABILITY, capability.into_bits());
        let control = AtsControl::new().with_smallest_translation_unit(0x1f).with_enable(true);
        self.rw16(ATS + ats::CONTROL, 0, control.into_bits());
    }

    /// Page request capability (§10.5.2).
    fn pri(&mut self) {
        self.extended_capability(PRI, extended_capability::PRI, PASID);
        let control = PageRequestControl::new().with_enable(true);
        self.rw16(PRI + pri::CONTROL, 0, control.into_bits());
        let reset = PageRequestStatus::new().with_stopped(true).with_prg_response_pasid_required(true);
        let noted = PageRequestStatus::new().with_response_failure(true).with_unexpected_prg_index(true);
        self.rw1c16(PRI + pri::STATUS, reset.into_bits(), noted.into_bits());
        self.ro32(PRI + pri::OUTSTANDING_CAPACITY, OUTSTANDING_PAGE_REQUESTS);
        self.rw[usize::from(PRI + pri::OUTSTANDING_ALLOCATION)..][..4].fill(0xff);
    }

    /// PASID capability (§7.8.9). The engines never execute and never act for the supervisor, so they cannot ask to.
    fn pasid(&mut self) {
        self.extended_capability(PASID, extended_capability::PASID, 0);
        self.ro16(PASID + pasid::CAPABILITY, PasidCapability::new().with_max_width(20).into_bits());
        self.rw16(PASID + pasid::CONTROL, 0, PasidControl::new().with_enable(true).into_bits());
    }

    fn capability(&mut self, offset: u16, id: u8, next: u8) {
        self.ro16(offset, CapabilityHeader::new().with_id(id).with_next(next).into_bits());
    }

    fn extended_capability(&mut self, offset: u16, id: u16, next: u16) {
        self.ro32(offset, ExtendedCapabilityHeader::new().with_id(id).with_version(1).with_next(next).into_bits());
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

/// Offset of base address register `index`.
pub(super) fn bar_offset(index: usize) -> u16 {
    header::BAR0 + 4 * u16::try_from(index).expect("one of six")
}

/// An offset in the first 256 bytes, as capability pointers are.
fn low_byte(offset: u16) -> u8 {
    u8::try_from(offset).expect("capabilities are in the first 256 bytes")
}
