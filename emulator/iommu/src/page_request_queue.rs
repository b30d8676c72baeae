//! Registers and descriptors of the page request queue (§7.4.1, §11.4.11).
use svadev_fabric::{PageRequest, Pasid};
use svadev_spec::vtd::page_request::{DESCRIPTOR_SIZE, PageRequestHigh, PageRequestLow, TYPE_PAGE_REQUEST};
use svadev_spec::vtd::registers::{PageRequestQueueAddress, PageRequestStatus};

/// Registers of the queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PageRequestQueue {
    /// PQA.
    pub(crate) address: PageRequestQueueAddress,
    /// PQH, in bytes, as software wrote it.
    pub(crate) head: u64,
    /// PQT, in bytes.
    pub(crate) tail: u64,
    /// PRS.
    pub(crate) status: PageRequestStatus,
}

impl PageRequestQueue {
    pub(crate) fn new() -> Self {
        Self { address: PageRequestQueueAddress::new(), head: 0, tail: 0, status: PageRequestStatus::new() }
    }

    fn bytes(&self) -> u64 {
        4096 << self.address.queue_size()
    }

    /// The offset of a descriptor inside the queue, from an offset that software may have written.
    pub(crate) fn inside(&self, offset: u64) -> u64 {
        offset & (self.bytes() - DESCRIPTOR_SIZE)
    }
}

/// The descriptor of a page request (§7.4.1.1). There is no private data, so its quadwords are zero.
pub(crate) fn descriptor(request: &PageRequest) -> [u8; 32] {
    let low = PageRequestLow::new()
        .with_kind(TYPE_PAGE_REQUEST)
        .with_pasid_present(request.pasid.is_some())
        .with_requester_id(request.requester.0)
        .with_pasid(request.pasid.map_or(0, Pasid::get))
        .with_execute(request.access.execute)
        .with_privileged(request.access.privileged);
    let high = PageRequestHigh::new()
        .with_read(request.access.read)
        .with_write(request.access.write)
        .with_last(request.last)
        .with_prg_index(request.prg_index.get())
        .with_frame(request.iova.0 >> 12);
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&u64::from(low).to_le_bytes());
    bytes[8..16].copy_from_slice(&u64::from(high).to_le_bytes());
    bytes
}
