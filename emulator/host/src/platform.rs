//! What a machine stands on: guest memory, sleeping engines and doorbell memory, and who watches the bus.
//!
//! The running process has mappings, eventfds and memory files ([`Threads`](crate::threads::Threads)). A simulated
//! world has plain memory and recorders. Everything between is the same code.
use std::os::fd::OwnedFd;
use std::sync::Arc;

use nix::errno::Errno;
use svadev_accelerator::DoorbellPages;
use svadev_fabric::{
    AtsError, Bdf, InvalidateAck, InvalidateRequest, InvalidateTag, Msi, PageGroupResponse, PageRequest,
    PageRequestOutcome, Translation, TranslationRequest,
};
use svadev_iommu::Unit;
use svadev_memory::GuestMemory;
use svadev_vfio_user::{DmaMap, DmaUnmap};

/// The parts of a machine that differ between a process with threads and a simulated world.
pub trait Platform: Sized + 'static {
    /// Guest memory, as engines and unit access it.
    type Memory: GuestMemory + Send + Sync + 'static;
    /// Changes what is mapped in one function's view of guest memory.
    type Maps: GuestMaps;
    /// Wakes one engine.
    type Waker: Wake;
    /// Watches the messages between functions and unit.
    type Tap: Tap<Self::Memory>;

    /// A view of guest memory for one function, and what changes it. Nothing is mapped yet.
    fn memory(&mut self, function: Bdf) -> (Arc<Self::Memory>, Self::Maps);

    /// What wakes this engine. Errors: the system's.
    fn waker(&mut self, function: Bdf, engine: usize) -> anyhow::Result<Arc<Self::Waker>>;

    /// Zeroed doorbell pages for `queues` queues. Errors: the system's.
    fn doorbells(&mut self, queues: u16) -> anyhow::Result<Doorbells>;
}

/// A function's doorbell pages.
#[derive(Debug)]
pub struct Doorbells {
    /// The pages, as engines read them.
    pub pages: DoorbellPages,
    /// The file behind them. With it, a VMM can map the pages into the guest.
    pub file: Option<OwnedFd>,
}

/// Changes the mappings of guest memory.
pub trait GuestMaps: Send + Sync + 'static {
    /// Memory that left the map. Accesses that are under way may use it until it is dropped.
    type Retired: Send;

    /// Carries out a `DMA_MAP`. An error is sent to the VMM.
    fn map(&self, map: DmaMap) -> Result<(), Errno>;

    /// Carries out a `DMA_UNMAP`. An error is sent to the VMM, and leaves the map as it was.
    fn unmap(&self, range: DmaUnmap) -> Result<Self::Retired, Errno>;

    /// Unmaps everything.
    fn unmap_all(&self) -> Self::Retired;

    /// Number of bytes that left the map.
    fn bytes(retired: &Self::Retired) -> u64;
}

/// Wakes one engine.
pub trait Wake: Send + Sync + 'static {
    /// Wakes the engine now, or when it next goes to sleep. Does not block.
    fn wake(&self);
}

/// Watches the messages between functions and unit, and may change or drop them. Each method passes the message on by
/// default, which costs nothing.
pub trait Tap<M: GuestMemory>: Send + Sync + 'static {
    /// A function asks for a translation.
    #[inline]
    fn translate(
        &self,
        request: TranslationRequest,
        next: impl FnOnce(TranslationRequest) -> Result<Translation, AtsError>,
    ) -> Result<Translation, AtsError> {
        next(request)
    }

    /// A function sends a page request.
    #[inline]
    fn page_request(
        &self,
        request: PageRequest,
        next: impl FnOnce(PageRequest) -> PageRequestOutcome,
    ) -> PageRequestOutcome {
        next(request)
    }

    /// A function completes an invalidation.
    #[inline]
    fn invalidate_complete(&self, requester: Bdf, tag: InvalidateTag, next: impl Fn(Bdf, InvalidateTag)) {
        next(requester, tag);
    }

    /// The unit invalidates entries of a function's device TLB. Called with the unit locked.
    #[inline]
    fn invalidate(
        &self,
        to: Bdf,
        request: InvalidateRequest,
        next: impl FnOnce(InvalidateRequest) -> InvalidateAck,
    ) -> InvalidateAck {
        let _ = to;
        next(request)
    }

    /// The unit answers a page request group. Called with the unit locked.
    #[inline]
    fn page_group_response(&self, to: Bdf, response: PageGroupResponse, next: impl Fn(PageGroupResponse)) {
        let _ = to;
        next(response);
    }

    /// The unit sends an interrupt through `function`, or loses it for want of a bus master. Called with the unit
    /// locked.
    #[inline]
    fn message_interrupt(&self, function: Option<Bdf>, msi: Msi) {
        let _ = (function, msi);
    }

    /// Calls into the unit, whose lock is held.
    #[inline]
    fn inside<T>(&self, unit: &mut Unit<Arc<M>>, call: impl FnOnce(&mut Unit<Arc<M>>) -> T) -> T {
        call(unit)
    }
}

/// Nobody watches.
impl<M: GuestMemory> Tap<M> for () {}
