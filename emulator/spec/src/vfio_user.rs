//! vfio-user messages: header, commands, payloads.
//!
//! Source: vfio-user Protocol Specification, version 0.9.2 (QEMU `docs/interop/vfio-user.rst`), cited below as
//! *vfio-user* and the section's title. It takes structures and flags from `<linux/vfio.h>`, cited as *vfio.h*.
//!
//! All integers are in the host's byte order (*vfio-user*, "Protocol Specification"). Every payload follows a
//! [`Header`].
use bitflags::bitflags;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Protocol major version. *vfio-user* "VFIO_USER_VERSION".
pub const VERSION_MAJOR: u16 = 0;
/// Newest protocol minor version that is spoken here. *vfio-user* "VFIO_USER_VERSION".
pub const VERSION_MINOR: u16 = 0;
/// `max_data_xfer_size` of a peer that names none, bytes. *vfio-user* "VFIO_USER_VERSION", Capabilities.
pub const DEFAULT_MAX_DATA_XFER_SIZE: u32 = 1 << 20;
/// `max_dma_maps` of a peer that names none. *vfio-user* "VFIO_USER_VERSION", Capabilities.
pub const DEFAULT_MAX_DMA_MAPS: u32 = 65_535;

/// Values of [`Header::command`]. *vfio-user* "Commands".
pub mod command {
    /// Client to server: propose a version and capabilities.
    pub const VERSION: u16 = 1;
    /// Client to server: a range of client memory may be accessed.
    pub const DMA_MAP: u16 = 2;
    /// Client to server: a range of client memory may no longer be accessed.
    pub const DMA_UNMAP: u16 = 3;
    /// Client to server: device flags, number of regions and interrupt types.
    pub const DEVICE_GET_INFO: u16 = 4;
    /// Client to server: one region.
    pub const DEVICE_GET_REGION_INFO: u16 = 5;
    /// Client to server: file descriptors for accesses to sub-regions.
    pub const DEVICE_GET_REGION_IO_FDS: u16 = 6;
    /// Client to server: one interrupt type.
    pub const DEVICE_GET_IRQ_INFO: u16 = 7;
    /// Client to server: signal, mask or trigger interrupts.
    pub const DEVICE_SET_IRQS: u16 = 8;
    /// Client to server: load from a region.
    pub const REGION_READ: u16 = 9;
    /// Client to server: store to a region.
    pub const REGION_WRITE: u16 = 10;
    /// Server to client: load from client memory.
    pub const DMA_READ: u16 = 11;
    /// Server to client: store to client memory.
    pub const DMA_WRITE: u16 = 12;
    /// Client to server: reset the device.
    pub const DEVICE_RESET: u16 = 13;
    /// Client to server: dirty page logging of versions before 0.9.2; clients still know it.
    pub const DIRTY_PAGES: u16 = 14;
    /// Client to server: several stores of at most 8 bytes.
    pub const REGION_WRITE_MULTI: u16 = 15;
    /// Client to server: get, set or probe a device feature (migration).
    pub const DEVICE_FEATURE: u16 = 16;
    /// Client to server: read migration data.
    pub const MIG_DATA_READ: u16 = 17;
    /// Client to server: write migration data.
    pub const MIG_DATA_WRITE: u16 = 18;
}

/// Bits of [`Header::flags`] that hold the message type. *vfio-user* "Header".
pub const TYPE_MASK: u32 = 0xf;
/// Message type: command.
pub const TYPE_COMMAND: u32 = 0;
/// Message type: reply.
pub const TYPE_REPLY: u32 = 1;
/// [`Header::flags`]: the sender of this command wants no reply.
pub const FLAG_NO_REPLY: u32 = 1 << 4;
/// [`Header::flags`]: this reply reports an error, and [`Header::error`] holds it.
pub const FLAG_ERROR: u32 = 1 << 5;

/// What every message begins with, 16 bytes. *vfio-user* "Header".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Header {
    /// Chosen by the sender of a command, echoed in its reply. Need not be unique.
    pub message_id: u16,
    /// One of [`command`], echoed in the reply.
    pub command: u16,
    /// Bytes of the whole message, this header included.
    pub message_size: u32,
    /// [`TYPE_MASK`], [`FLAG_NO_REPLY`], [`FLAG_ERROR`].
    pub flags: u32,
    /// An errno in a reply with [`FLAG_ERROR`], else reserved.
    pub error: u32,
}

/// Fixed part of a VERSION request and reply; optional JSON text, ended by NUL, follows. *vfio-user*
/// "VFIO_USER_VERSION".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Version {
    /// Must be equal on both sides.
    pub major: u16,
    /// The reply's is at most the request's.
    pub minor: u16,
}

bitflags! {
    /// [`DmaMap::flags`]. *vfio-user* "VFIO_USER_DMA_MAP".
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct DmaMapFlags: u32 {
        /// The server may read the range.
        const READ = 1 << 0;
        /// The server may write the range.
        const WRITE = 1 << 1;
        /// The file can be mapped. *libvfio-user*, 2026; a file without this flag and [`FILE_IO`](Self::FILE_IO) can be
        /// mapped, too.
        const MMAP = 1 << 2;
        /// The file can be read and written at its offset. *libvfio-user*, 2026.
        const FILE_IO = 1 << 3;
    }

    /// [`DmaUnmap::flags`]. *vfio.h* `VFIO_DMA_UNMAP_FLAG_*`.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct DmaUnmapFlags: u32 {
        /// A dirty bitmap follows the request and is to be filled in.
        const GET_DIRTY_BITMAP = 1 << 0;
        /// Unmap everything; address and size are 0.
        const ALL = 1 << 1;
        /// Keep the mapping and forget its virtual address.
        const VADDR = 1 << 2;
    }

    /// [`DeviceInfo::flags`]. *vfio.h* `VFIO_DEVICE_FLAGS_*`.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct DeviceInfoFlags: u32 {
        /// DEVICE_RESET is supported.
        const RESET = 1 << 0;
        /// A PCI device.
        const PCI = 1 << 1;
    }

    /// [`RegionInfo::flags`]. *vfio.h* `VFIO_REGION_INFO_FLAG_*`.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct RegionInfoFlags: u32 {
        /// REGION_READ is allowed.
        const READ = 1 << 0;
        /// REGION_WRITE is allowed.
        const WRITE = 1 << 1;
        /// The region can be mapped, wholly or in the areas of [`CAP_SPARSE_MMAP`].
        const MMAP = 1 << 2;
        /// Capabilities follow at [`RegionInfo::cap_offset`].
        const CAPS = 1 << 3;
    }

    /// [`IrqInfo::flags`]. *vfio.h* `VFIO_IRQ_INFO_*`.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct IrqInfoFlags: u32 {
        /// Signalled through eventfds.
        const EVENTFD = 1 << 0;
        /// The mask and unmask actions are supported.
        const MASKABLE = 1 << 1;
        /// Masks itself when triggered.
        const AUTOMASKED = 1 << 2;
        /// Set up as a whole: to add interrupts, disable all first.
        const NORESIZE = 1 << 3;
    }

    /// [`IrqSet::flags`]: one bit of `DATA_*` and one of `ACTION_*`. *vfio.h* `VFIO_IRQ_SET_*`.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct IrqSetFlags: u32 {
        /// No data: the action is for every interrupt of the range.
        const DATA_NONE = 1 << 0;
        /// One byte an interrupt: the action is for those that are not 0.
        const DATA_BOOL = 1 << 1;
        /// One eventfd an interrupt, as ancillary data.
        const DATA_EVENTFD = 1 << 2;
        /// Mask, or the eventfd to signal when masked.
        const ACTION_MASK = 1 << 3;
        /// Unmask, or the eventfd to signal when unmasked.
        const ACTION_UNMASK = 1 << 4;
        /// Trigger, or the eventfd to signal when triggered.
        const ACTION_TRIGGER = 1 << 5;
    }
}

/// Payload of a DMA_MAP request; the reply has none. *vfio-user* "VFIO_USER_DMA_MAP".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct DmaMap {
    /// Size of this structure, bytes.
    pub argsz: u32,
    /// [`DmaMapFlags`].
    pub flags: u32,
    /// Offset in the file of the descriptor that came with the message, bytes.
    pub offset: u64,
    /// First DMA address.
    pub address: u64,
    /// Bytes.
    pub size: u64,
}

/// Payload of a DMA_UNMAP request and reply. *vfio-user* "VFIO_USER_DMA_UNMAP".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct DmaUnmap {
    /// Most bytes of reply payload that the client takes.
    pub argsz: u32,
    /// [`DmaUnmapFlags`].
    pub flags: u32,
    /// First DMA address of an earlier DMA_MAP.
    pub address: u64,
    /// Bytes of an earlier DMA_MAP; in the reply, bytes unmapped.
    pub size: u64,
}

/// Payload of a DEVICE_GET_INFO request and reply. *vfio-user* "VFIO_USER_DEVICE_GET_INFO".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct DeviceInfo {
    /// Request: most bytes of reply payload. Reply: bytes needed.
    pub argsz: u32,
    /// [`DeviceInfoFlags`].
    pub flags: u32,
    /// Number of regions.
    pub num_regions: u32,
    /// Number of interrupt types.
    pub num_irqs: u32,
}

/// Payload of a DEVICE_GET_REGION_INFO request and reply. *vfio.h* `struct vfio_region_info`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct RegionInfo {
    /// Request: most bytes of reply payload. Reply: bytes needed, capabilities included.
    pub argsz: u32,
    /// [`RegionInfoFlags`].
    pub flags: u32,
    /// One of [`region`].
    pub index: u32,
    /// Offset of the first [`CapHeader`] from this structure's start, bytes.
    pub cap_offset: u32,
    /// Bytes; 0 when the region is absent.
    pub size: u64,
    /// Where the region begins in the file of the reply's descriptor, bytes.
    pub offset: u64,
}

/// Header of a region capability. *vfio.h* `struct vfio_info_cap_header`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct CapHeader {
    /// [`CAP_SPARSE_MMAP`].
    pub id: u16,
    /// Version of this capability.
    pub version: u16,
    /// Offset of the next capability from the start of [`RegionInfo`], bytes; 0 ends the list.
    pub next: u32,
}

/// [`CapHeader::id`]: only some areas of the region can be mapped. *vfio.h* `VFIO_REGION_INFO_CAP_SPARSE_MMAP`.
pub const CAP_SPARSE_MMAP: u16 = 1;
/// [`CapHeader::version`] of [`CAP_SPARSE_MMAP`].
pub const CAP_SPARSE_MMAP_VERSION: u16 = 1;

/// What follows the [`CapHeader`] of [`CAP_SPARSE_MMAP`]; then [`SparseArea`]s.
/// *vfio.h* `struct vfio_region_info_cap_sparse_mmap`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SparseMmap {
    /// Number of areas.
    pub nr_areas: u32,
    /// 0.
    pub reserved: u32,
}

/// One area of a region that can be mapped. *vfio.h* `struct vfio_region_sparse_mmap_area`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SparseArea {
    /// From the region's start, bytes.
    pub offset: u64,
    /// Bytes.
    pub size: u64,
}

/// Payload of a DEVICE_GET_REGION_IO_FDS request, and the fixed part of its reply.
/// *vfio-user* "VFIO_USER_DEVICE_GET_REGION_IO_FDS".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct RegionIoFds {
    /// Request: most bytes of reply payload. Reply: bytes needed, sub-regions included.
    pub argsz: u32,
    /// 0.
    pub flags: u32,
    /// One of [`region`].
    pub index: u32,
    /// Number of sub-regions that follow.
    pub count: u32,
}

/// Payload of a DEVICE_GET_IRQ_INFO request and reply. *vfio.h* `struct vfio_irq_info`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct IrqInfo {
    /// Request: most bytes of reply payload. Reply: bytes needed.
    pub argsz: u32,
    /// [`IrqInfoFlags`].
    pub flags: u32,
    /// One of [`irq`].
    pub index: u32,
    /// Number of interrupts of this type.
    pub count: u32,
}

/// Fixed part of a DEVICE_SET_IRQS request; the reply has no payload. *vfio.h* `struct vfio_irq_set`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct IrqSet {
    /// Bytes of this structure and of the data in the payload.
    pub argsz: u32,
    /// [`IrqSetFlags`].
    pub flags: u32,
    /// One of [`irq`].
    pub index: u32,
    /// First interrupt.
    pub start: u32,
    /// Number of interrupts; 0 with `DATA_NONE` and `ACTION_TRIGGER` disables the whole type.
    pub count: u32,
}

/// Fixed part of REGION_READ and REGION_WRITE, requests and replies; data follows where there is any.
/// *vfio-user* "VFIO_USER_REGION_READ", "VFIO_USER_REGION_WRITE".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct RegionAccess {
    /// From the region's start, bytes.
    pub offset: u64,
    /// One of [`region`].
    pub region: u32,
    /// Bytes of data.
    pub count: u32,
}

/// Fixed part of a REGION_WRITE_MULTI request, and its reply; in the request [`WriteOne`]s follow.
/// *vfio-user* "VFIO_USER_REGION_WRITE_MULTI".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct WriteMulti {
    /// Request: number of writes that follow. Reply: number of writes completed.
    pub wr_cnt: u64,
}

/// One write of a REGION_WRITE_MULTI request. *vfio-user* "Single Device Write Format".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct WriteOne {
    /// From the region's start, bytes.
    pub offset: u64,
    /// One of [`region`].
    pub region: u32,
    /// Bytes of `data` that count, at most 8.
    pub count: u32,
    /// The bytes to write.
    pub data: [u8; 8],
}

/// Fixed part of DMA_READ and DMA_WRITE, requests and replies; data follows where there is any.
/// *vfio-user* "VFIO_USER_DMA_READ", "VFIO_USER_DMA_WRITE".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct DmaAccess {
    /// First DMA address.
    pub address: u64,
    /// Bytes of data.
    pub count: u64,
}

/// Region indexes of a PCI device. *vfio.h* `VFIO_PCI_*_REGION_INDEX`.
pub mod region {
    /// First of the six BARs, 0..=5.
    pub const BAR0: u32 = 0;
    /// Last of the six BARs.
    pub const BAR5: u32 = 5;
    /// Expansion ROM.
    pub const ROM: u32 = 6;
    /// Configuration space.
    pub const CONFIG: u32 = 7;
    /// Legacy VGA ranges.
    pub const VGA: u32 = 8;
    /// Number of region indexes.
    pub const COUNT: u32 = 9;
}

/// Interrupt type indexes of a PCI device. *vfio.h* `VFIO_PCI_*_IRQ_INDEX`.
pub mod irq {
    /// INTx.
    pub const INTX: u32 = 0;
    /// MSI.
    pub const MSI: u32 = 1;
    /// MSI-X.
    pub const MSIX: u32 = 2;
    /// Error notification.
    pub const ERR: u32 = 3;
    /// Request to release the device.
    pub const REQ: u32 = 4;
    /// Number of interrupt type indexes.
    pub const COUNT: u32 = 5;
}
