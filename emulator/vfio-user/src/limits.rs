//! How large messages may be, and how many mappings there may be.
use svadev_spec::vfio_user::{DEFAULT_MAX_DATA_XFER_SIZE, DEFAULT_MAX_DMA_MAPS};

/// Room beside the data of the longest message: the header, and fixed payload fields of at most 16 bytes.
const MESSAGE_OVERHEAD: usize = 32;
/// Messages that carry no data of a transfer are below this, bytes: QEMU pads REGION_WRITE_MULTI to 200 writes (4824),
/// DEVICE_SET_IRQS brings a byte for each of at most 2048 vectors.
const SMALL_MESSAGE: usize = 8 << 10;

/// What the server tells its clients about itself, and holds them to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Most descriptors in one message. QEMU accepts at most 16, and sends that many MSI-X eventfds at a time. Clients
    /// are told so, and DEVICE_SET_IRQS may bring more.
    pub max_msg_fds: u32,
    /// Most data in one message, bytes.
    pub max_data_xfer_size: u32,
    /// Most DMA mappings at a time.
    pub max_dma_maps: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self { max_msg_fds: 16, max_data_xfer_size: DEFAULT_MAX_DATA_XFER_SIZE, max_dma_maps: DEFAULT_MAX_DMA_MAPS }
    }
}

impl Limits {
    /// Size of the longest message, header included, bytes.
    pub(crate) fn max_message(&self) -> usize {
        (self.max_data_xfer_size as usize + MESSAGE_OVERHEAD).max(SMALL_MESSAGE)
    }
}
