//! What a PCI function implements to be seen by a VMM: the [`Device`] trait and the values that cross it.
use std::fmt;
use std::os::fd::{BorrowedFd, OwnedFd};

use nix::errno::Errno;
use svadev_spec::vfio_user::{SparseArea, irq, region};

use crate::sender::ReplyToken;

/// One PCI function as the VMM's vfio-user client sees it. Called on the socket thread only.
///
/// A vCPU, and QEMU's big lock with it, waits for most of these calls: they do what is at hand and return. Nothing here
/// may wait for the client, whose answer the same thread would have to read. What takes longer is answered later
/// ([`UnmapReply::Later`], [`ResetReply::Later`]).
///
/// The [`Server`](crate::Server) has checked what it can: indexes are below the counts of [`Device::device_info`],
/// accesses lie inside the region and are allowed by its flags, maps do not overlap, unmaps match a map.
pub trait Device {
    /// What kind of device this is, and how many regions and interrupt types it has.
    fn device_info(&self) -> DeviceInfo;

    /// The region `index` (`svadev_spec::vfio_user::region`). May not change while a client is connected. Called for
    /// each access, so it must be cheap.
    fn region(&self, index: u32) -> RegionInfo<'_>;

    /// The interrupt type `index` (`svadev_spec::vfio_user::irq`). May not change while a client is connected.
    fn irq(&self, index: u32) -> IrqInfo;

    /// Loads `data.len()` bytes, at least 1, at `offset` of `region`. `data` is zero on entry. An error is sent to the
    /// client.
    fn region_read(&mut self, region: u32, offset: u64, data: &mut [u8]) -> Result<(), Errno>;

    /// Stores `data`, at least 1 byte, at `offset` of `region`. An error is sent to the client unless the write was
    /// posted.
    fn region_write(&mut self, region: u32, offset: u64, data: &[u8]) -> Result<(), Errno>;

    /// Acts on interrupts `set.start..set.start + set.count` of a type. A count of 0 disables the whole type.
    fn set_irqs(&mut self, set: SetIrqs<'_>) -> Result<(), Errno>;

    /// Client memory may be accessed from now on. The descriptor is the device's to keep or close.
    fn dma_map(&mut self, map: DmaMap) -> Result<(), Errno>;

    /// Client memory may no longer be accessed. The answer promises that no access is under way any more, so it may
    /// come
    /// [`Later`](UnmapReply::Later), by [`Sender::complete`](crate::Sender::complete) with `token`. Until then replies
    /// to younger maps, unmaps and resets are held back, and a range that overlaps may already be mapped again. An
    /// error that comes later does not bring the mapping back.
    fn dma_unmap(&mut self, range: DmaUnmap, token: ReplyToken) -> UnmapReply;

    /// Resets the function. As with [`Device::dma_unmap`], the answer may come later.
    fn reset(&mut self, token: ReplyToken) -> ResetReply;

    /// The client is gone. The device drops the client's maps and interrupts. It may keep its other state for the next
    /// client (*vfio-user* "Client Disconnection") or reset itself. Not called unless a connection was made.
    fn disconnected(&mut self);
}

/// What kind of device this is. The PCI flag is always sent: the protocol knows no other devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// DEVICE_RESET is supported.
    pub reset: bool,
    /// Number of regions.
    pub regions: u32,
    /// Number of interrupt types.
    pub irqs: u32,
}

impl DeviceInfo {
    /// A PCI device with the standard regions and interrupt types and nothing beyond.
    pub const fn pci(reset: bool) -> Self {
        Self { reset, regions: region::COUNT, irqs: irq::COUNT }
    }
}

/// One region of a device.
#[derive(Clone, Copy, Debug, Default)]
pub struct RegionInfo<'a> {
    /// Bytes; 0 when the region is absent.
    pub size: u64,
    /// May be loaded from.
    pub read: bool,
    /// May be stored to.
    pub write: bool,
    /// How the client may map it, if it may.
    pub mmap: Option<RegionMmap<'a>>,
}

impl RegionInfo<'_> {
    /// A region that is not there.
    pub const ABSENT: RegionInfo<'static> = RegionInfo { size: 0, read: false, write: false, mmap: None };

    /// A region of `size` bytes whose every access is a message.
    pub const fn trapped(size: u64) -> RegionInfo<'static> {
        RegionInfo { size, read: true, write: true, mmap: None }
    }
}

/// How a region can be mapped by the client.
#[derive(Clone, Copy, Debug)]
pub struct RegionMmap<'a> {
    /// Shared memory that holds the region. Duplicated for the client.
    pub fd: BorrowedFd<'a>,
    /// Where the region begins in the file, bytes.
    pub offset: u64,
    /// The parts that can be mapped, page-aligned and inside the region; empty means the whole region.
    pub areas: &'a [SparseArea],
}

/// One interrupt type of a device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IrqInfo {
    /// Number of interrupts; 0 when the type is absent.
    pub count: u32,
    /// Signalled through eventfds.
    pub eventfd: bool,
    /// The mask and unmask actions are supported.
    pub maskable: bool,
    /// Masks itself when triggered.
    pub automasked: bool,
    /// Set up as a whole.
    pub noresize: bool,
}

/// A decoded DEVICE_SET_IRQS.
#[derive(Debug)]
pub struct SetIrqs<'a> {
    /// Interrupt type.
    pub index: u32,
    /// First interrupt.
    pub start: u32,
    /// Number of interrupts. 0 comes only with [`Action::Trigger`] and [`Data::None`]: disable the whole type.
    pub count: u32,
    /// What to do.
    pub action: Action,
    /// To which of them, or how to signal.
    pub data: Data<'a>,
}

/// What DEVICE_SET_IRQS asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Mask, or set the eventfd to signal when masked.
    Mask,
    /// Unmask, or set the eventfd to signal when unmasked.
    Unmask,
    /// Trigger, or set the eventfd to signal when triggered.
    Trigger,
}

/// What comes with DEVICE_SET_IRQS.
#[derive(Debug)]
pub enum Data<'a> {
    /// The action is for every interrupt of the range.
    None,
    /// The action is for those whose byte, of `count` bytes, is not 0.
    Bool(&'a [u8]),
    /// `count` eventfds to signal; `None` takes the interrupt's eventfd away.
    EventFd(Vec<Option<OwnedFd>>),
}

/// A decoded DMA_MAP: client memory that may be accessed. Page-aligned.
#[derive(Debug)]
pub struct DmaMap {
    /// First address.
    pub gpa: u64,
    /// Bytes, not 0; `gpa + size - 1` does not overflow.
    pub size: u64,
    /// Where the memory begins in the file of `fd`, bytes.
    pub offset: u64,
    /// May be read.
    pub read: bool,
    /// May be written.
    pub write: bool,
    /// The file to map; without one, access is by message only.
    pub fd: Option<OwnedFd>,
}

/// A decoded DMA_UNMAP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DmaUnmap {
    /// The mapping that was made with this address and size, bytes.
    Range {
        /// First address.
        address: u64,
        /// Bytes.
        size: u64,
    },
    /// Every mapping.
    All,
}

/// How [`Device::dma_unmap`] answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum UnmapReply {
    /// Done: bytes unmapped, or an error that leaves the mapping as it was. The token may be dropped.
    Done(Result<u64, Errno>),
    /// The token's holder answers.
    Later,
}

/// How [`Device::reset`] answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum ResetReply {
    /// Done. The token may be dropped.
    Done,
    /// The token's holder answers.
    Later,
}

impl fmt::Display for DmaUnmap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Range { address, size } => write!(f, "{address:#x}+{size:#x}"),
            Self::All => f.write_str("all"),
        }
    }
}
