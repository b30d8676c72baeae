//! The kernel's half of the unit: registers, invalidation queue, page request queue, used the way Linux uses them.
use std::collections::BTreeMap;
use std::sync::Arc;

use svadev_fabric::{Bdf, Pasid, PrgIndex, ResponseCode};
use svadev_host::{Bus, IommuDevice, IommuState};
use svadev_iommu::FAULT_RECORD_OFFSET;
use svadev_memory::{GuestAddress, GuestMemory, Ram};
use svadev_spec::vtd::fault::FaultRecordHigh;
use svadev_spec::vtd::invalidation::{
    InvalidateAddress, PageGroupResponse, PageGroupResponseIndex, PasidCache, PasidDeviceTlb, PasidDeviceTlbAddress,
    PasidIotlb, Wait, descriptor_type, pasid_cache_granularity, pasid_iotlb_granularity, response_code,
};
use svadev_spec::vtd::page_request::{DESCRIPTOR_SIZE, PageRequestHigh, PageRequestLow};
use svadev_spec::vtd::registers::{
    Capability, FaultStatus, Global, InvalidationQueueAddress, PageRequestQueueAddress, PageRequestStatus,
    RootTableAddress, offset, translation_table_mode,
};
use svadev_vfio_user::Server;

use crate::checker::Checker;
use crate::coverage::Group as Count;
use crate::frames::{FRAME, Frames};
use crate::log::Log;
use crate::mutant::Mutant;
use crate::platform::{Maps, Simulated};
use crate::unit_function::UnitFunction;
use crate::vmm::msi;

/// A descriptor's first two quadwords; the others are zero.
pub type Descriptor = [u64; 2];

/// Log2 of the invalidation queue's pages.
const QUEUE_ORDER: u8 = 1;
const QUEUE_BYTES: u64 = FRAME << QUEUE_ORDER;
/// 256-bit descriptors, as scalable mode demands.
const DESCRIPTOR_BYTES: u64 = 32;
/// What a wait writes; not 0, with which a slot starts.
const DONE: u32 = 2;

/// A submission that is waited for: give it to [`UnitDriver::is_done`] until that says so.
#[derive(Debug, PartialEq, Eq)]
pub struct Waiting(u64);

/// A submission that has a status word.
#[derive(Debug)]
struct Submission {
    descriptors: Vec<Descriptor>,
    drain: bool,
    /// Places of its first descriptor and of its wait, counted from the first descriptor ever submitted.
    first: u64,
    wait: u64,
    /// Some of it timed out: it is submitted again when its wait, which the unit still has before it, is over.
    again: bool,
}

/// A page request as the kernel reads it.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    /// Address of the page.
    pub iova: u64,
    /// It is to be written.
    pub write: bool,
}

/// A fault that the unit recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DmaFault {
    /// Who asked.
    pub bdf: Bdf,
    /// For whom.
    pub pasid: Option<Pasid>,
    /// Why not (VT-d 4.1 table 27).
    pub reason: u8,
}

/// A complete group.
#[derive(Clone, Debug)]
pub struct Group {
    /// Who asked.
    pub bdf: Bdf,
    /// For whom.
    pub pasid: Option<Pasid>,
    /// Which group.
    pub index: PrgIndex,
    /// What for.
    pub requests: Vec<Request>,
}

/// The mock kernel's driver of the unit: registers, invalidation queue, page request queue.
#[derive(Debug)]
pub struct UnitDriver {
    unit: UnitFunction,
    ram: Arc<Ram>,
    log: Arc<Log>,
    queue: u64,
    tail: u64,
    /// Descriptors submitted so far.
    submitted: u64,
    /// Free status words.
    slots: Vec<u64>,
    /// By status word.
    under_way: BTreeMap<u64, Submission>,
    /// Status words of submissions whose wait was aborted, and for which there was no room yet.
    aborted: Vec<u64>,
    /// A planted bug: what timed out is taken for done.
    careless: bool,
    page_requests: u64,
    page_request_bytes: u64,
    page_request_head: u64,
    /// So many bytes before the head are not given back to the unit yet: software may take its time.
    held: u64,
    /// The page request queue overflowed: the unit answered *success* to groups that nobody served.
    pub overflowed: bool,
    /// Groups whose last request has not come.
    partial: BTreeMap<(u16, u16), Vec<Request>>,
}

impl UnitDriver {
    /// Brings the unit up, in Linux's order: queued invalidation, root table, translation, page requests.
    pub fn new(
        unit: UnitFunction,
        ram: Arc<Ram>,
        log: Arc<Log>,
        frames: &mut Frames,
        root: u64,
        (page_request_order, held): (u8, u64),
        mutant: Option<Mutant>,
    ) -> Self {
        let status = frames.allocate();
        let queue = frames.fresh(1 << QUEUE_ORDER);
        let page_requests = frames.fresh(1 << page_request_order);
        unit.write64(offset::IQT, 0);
        let address = InvalidationQueueAddress::new()
            .with_queue_size(QUEUE_ORDER)
            .with_descriptor_width(true)
            .with_frame(queue >> 12);
        unit.write64(offset::IQA, address.into());
        let mut command = Global::new().with_queued_invalidation_enable(true);
        unit.write32(offset::GCMD, command.into());
        let root = RootTableAddress::new()
            .with_translation_table_mode(translation_table_mode::SCALABLE)
            .with_frame(root >> 12);
        unit.write64(offset::RTADDR, root.into());
        unit.write32(offset::GCMD, command.with_root_table_pointer(true).into());
        unit.write64(offset::PQH, 0);
        unit.write64(offset::PQT, 0);
        let address =
            PageRequestQueueAddress::new().with_queue_size(page_request_order).with_frame(page_requests >> 12);
        unit.write64(offset::PQA, address.into());
        for (control, data) in
            [(offset::FECTL, msi::FAULT), (offset::IECTL, msi::INVALIDATION), (offset::PECTL, msi::PAGE_REQUEST)]
        {
            unit.write32(control + 4, data);
            unit.write32(control + 8, 0xfee0_0000);
            unit.write32(control + 12, 0);
            unit.write32(control, 0);
        }
        command.set_translation_enable(true);
        unit.write32(offset::GCMD, command.into());
        let state = Global::from(unit.read32(offset::GSTS));
        assert!(state.translation_enable() && state.queued_invalidation_enable(), "the unit is up: {state:?}");
        Self {
            unit,
            ram,
            log,
            queue,
            tail: 0,
            submitted: 0,
            under_way: BTreeMap::new(),
            aborted: Vec::new(),
            careless: mutant == Some(Mutant::IgnoreTimeout),
            slots: (0..FRAME / 8).map(|n| status + 8 * n).collect(),
            page_requests,
            page_request_bytes: FRAME << page_request_order,
            page_request_head: 0,
            held: held * DESCRIPTOR_SIZE,
            overflowed: false,
            partial: BTreeMap::new(),
        }
    }

    /// Puts descriptors and a wait into the invalidation queue; `None`, and nothing done, where there is no room now.
    pub fn submit(&mut self, descriptors: &[Descriptor], drain: bool) -> Option<Waiting> {
        // Who was aborted comes first.
        if self.room() < descriptors.len() as u64 + 1 || !self.aborted.is_empty() {
            return None;
        }
        let slot = self.slots.pop()?;
        self.enqueue(slot, descriptors.to_vec(), drain);
        Some(Waiting(slot))
    }

    /// How many descriptors fit into the queue.
    fn room(&self) -> u64 {
        let head = self.unit.read64(offset::IQH);
        head.wrapping_sub(self.tail + DESCRIPTOR_BYTES) % QUEUE_BYTES / DESCRIPTOR_BYTES
    }

    fn enqueue(&mut self, slot: u64, descriptors: Vec<Descriptor>, drain: bool) {
        self.ram.store_u32(GuestAddress(slot), 0).expect("status words are in memory");
        let wait = Wait::new().with_status_write(true).with_fence(drain).with_page_request_drain(drain);
        let low = u64::from(wait.with_status_data(DONE)) | u64::from(descriptor_type::WAIT);
        let first = self.submitted;
        for [low, high] in descriptors.iter().copied().chain([[low, slot]]) {
            for (n, word) in [low, high, 0, 0].into_iter().enumerate() {
                let at = GuestAddress(self.queue + self.tail + 8 * n as u64);
                self.ram.write(at, &word.to_le_bytes()).expect("the queue is in memory");
            }
            self.tail = (self.tail + DESCRIPTOR_BYTES) % QUEUE_BYTES;
            self.submitted += 1;
        }
        let submission = Submission { descriptors, drain, first, wait: self.submitted - 1, again: false };
        self.under_way.insert(slot, submission);
        self.unit.write64(offset::IQT, self.tail);
    }

    /// Whether the submission is over; then its status word is free again.
    pub fn is_done(&mut self, waiting: &Waiting) -> bool {
        self.recover();
        if self.status(waiting.0) != DONE {
            return false;
        }
        if self.under_way.get(&waiting.0).expect("somebody waits for it").again {
            self.aborted.push(waiting.0);
            self.submit_aborted();
            return false;
        }
        self.under_way.remove(&waiting.0);
        self.slots.push(waiting.0);
        true
    }

    fn status(&self, slot: u64) -> u32 {
        let word = self.ram.load_u64(GuestAddress(slot)).expect("status words are in memory");
        u32::try_from(word).expect("the unit writes 32 bits into a word of 64")
    }

    /// After a time-out the unit has dropped a wait and stopped (VT-d 4.1 §6.5.2.10). What may have missed its function
    /// is submitted again, as Linux's `qi_check_fault()` and `qi_submit_sync()` do, and the unit goes on.
    fn recover(&mut self) {
        if FaultStatus::from(self.unit.read32(offset::FSTS)).invalidation_timeout_error() {
            self.log.check(Checker::UnitFaults, self.unit.bus.tap().take_timed_out(), || "nothing timed out".into());
            self.log.count(Count::Path, "invalidation timed out");
            let left = self.tail.wrapping_sub(self.unit.read64(offset::IQH)) % QUEUE_BYTES / DESCRIPTOR_BYTES;
            let head = self.submitted - left;
            let unfinished: Vec<_> = self.under_way.keys().copied().filter(|&slot| self.status(slot) != DONE).collect();
            for slot in unfinished {
                let submission = self.under_way.get_mut(&slot).expect("listed");
                if self.careless {
                    self.ram.store_u32(GuestAddress(slot), DONE).expect("status words are in memory");
                } else if self.aborted.contains(&slot) {
                    // It is not in the queue.
                } else if submission.wait < head {
                    self.aborted.push(slot);
                } else {
                    submission.again |= submission.first < head;
                }
            }
            self.unit.write32(offset::FSTS, FaultStatus::new().with_invalidation_timeout_error(true).into());
        }
        self.submit_aborted();
    }

    /// Submits again what was aborted, as far as there is room: the invalidations, since answers to page requests are
    /// not lost and must not come twice.
    fn submit_aborted(&mut self) {
        while let Some(&slot) = self.aborted.first() {
            let mut submission = self.under_way.remove(&slot).expect("aborted, and waited for");
            let answer = u64::from(descriptor_type::PAGE_GROUP_RESPONSE);
            submission.descriptors.retain(|[low, _]| low & 0xf != answer);
            if self.room() < submission.descriptors.len() as u64 + 1 {
                self.under_way.insert(slot, submission);
                return;
            }
            self.aborted.remove(0);
            self.enqueue(slot, submission.descriptors, submission.drain);
        }
    }

    /// Whether nothing is left in the invalidation queue, and nothing to be put into it again.
    pub fn is_idle(&self) -> bool {
        self.unit.read64(offset::IQH) == self.tail
            && self.under_way.iter().all(|(&slot, submission)| self.status(slot) == DONE && !submission.again)
    }

    /// Reads fault status and records, and clears the records. Queue errors are the mock kernel's fault, or the unit's.
    pub fn take_faults(&mut self) -> Vec<DmaFault> {
        self.recover();
        let status = FaultStatus::from(self.unit.read32(offset::FSTS));
        let broken = status.invalidation_queue_error()
            || status.invalidation_completion_error()
            || status.invalidation_timeout_error();
        self.log.check(Checker::UnitFaults, !broken, || format!("the invalidation queue reports an error: {status:?}"));
        let records = 1 + u64::from(Capability::from(self.unit.read64(offset::CAP)).fault_recording_registers());
        let mut faults = Vec::new();
        // From the first pending one on, until one is free (VT-d 4.1 §7.2.1).
        for n in (0..records).map(|n| (u64::from(status.fault_record_index()) + n) % records) {
            let at = FAULT_RECORD_OFFSET + 16 * n;
            let record = FaultRecordHigh::from(self.unit.read64(at + 8));
            if !record.fault() {
                break;
            }
            let pasid = record.pasid_present().then(|| Pasid::from_low_bits(record.pasid().into()));
            let fault = DmaFault { bdf: Bdf(record.source_id()), pasid, reason: record.fault_reason() };
            self.log.event(format_args!("{fault:?}"));
            self.log.count(Count::Path, "DMA fault recorded");
            faults.push(fault);
            self.unit.write32(at + 12, 1 << 31);
        }
        self.unit.write32(offset::FSTS, FaultStatus::new().with_primary_fault_overflow(true).into());
        faults
    }

    /// Whether the page request queue has overflowed, and the kernel has not noticed yet.
    pub fn is_overflowing(&self) -> bool {
        PageRequestStatus::from(self.unit.read32(offset::PRS)).overflow()
    }

    /// Takes what is in the page request queue; the groups that are complete now.
    pub fn take_page_requests(&mut self) -> Vec<Group> {
        let pending = PageRequestStatus::new().with_pending(true);
        self.unit.write32(offset::PRS, pending.into());
        let tail = self.unit.read64(offset::PQT);
        let mut groups = Vec::new();
        while self.page_request_head != tail {
            groups.extend(self.take_page_request());
            self.page_request_head = (self.page_request_head + DESCRIPTOR_SIZE) % self.page_request_bytes;
        }
        let free = (self.page_request_head + self.page_request_bytes - self.held) % self.page_request_bytes;
        self.unit.write64(offset::PQH, free);
        if self.is_overflowing() && self.unit.read64(offset::PQT) == self.page_request_head {
            // Whatever is incomplete was answered by the unit (VT-d 4.1 §7.4.1).
            self.partial.clear();
            self.overflowed = true;
            self.log.event(format_args!("page request queue overflow"));
            self.log.count(Count::Path, "page request queue overflow");
            self.unit.write32(offset::PRS, PageRequestStatus::new().with_overflow(true).into());
        }
        groups
    }

    fn take_page_request(&mut self) -> Option<Group> {
        let at = self.page_requests + self.page_request_head;
        let load = |at| self.ram.load_u64(GuestAddress(at)).expect("the queue is in memory");
        let (low, high) = (PageRequestLow::from(load(at)), PageRequestHigh::from(load(at + 8)));
        let request = Request { iova: high.frame() << 12, write: high.write() };
        let key = (low.requester_id(), high.prg_index());
        if !high.last() {
            self.partial.entry(key).or_default().push(request);
            return None;
        }
        if !high.read() && !high.write() {
            // A Stop Marker: nobody waits for an answer (PCIe 6.0 §10.4.1.2).
            self.log.count(Count::Path, "stop marker received");
            return None;
        }
        let mut requests = self.partial.remove(&key).unwrap_or_default();
        requests.push(request);
        Some(Group {
            bdf: Bdf(low.requester_id()),
            pasid: low.pasid_present().then(|| Pasid::from_low_bits(low.pasid().into())),
            index: PrgIndex::from_low_bits(high.prg_index().into()),
            requests,
        })
    }

    /// Sets another root table, with the same in it: the unit forgets the old one at once (CAP.ESRTPS, VT-d 4.1 §6.6).
    pub fn set_root(&self, root: u64) {
        let address = RootTableAddress::new()
            .with_translation_table_mode(translation_table_mode::SCALABLE)
            .with_frame(root >> 12);
        self.unit.write64(offset::RTADDR, address.into());
        let state = Global::from(self.unit.read32(offset::GSTS)).with_root_table_pointer(true);
        self.unit.write32(offset::GCMD, state.into());
    }

    /// Turns the invalidation queue off and on again, if nothing is in it (VT-d 4.1 §6.5.2): it starts over. Whether it
    /// was done.
    pub fn restart_queue(&mut self) -> bool {
        if !self.is_idle() {
            return false;
        }
        let state = Global::from(self.unit.read32(offset::GSTS)).with_root_table_pointer(false);
        self.unit.write32(offset::GCMD, state.with_queued_invalidation_enable(false).into());
        self.unit.write64(offset::IQT, 0);
        self.unit.write32(offset::GCMD, state.with_queued_invalidation_enable(true).into());
        self.tail = 0;
        true
    }

    /// Starts the page request queue over; the caller has just taken what was in it.
    pub fn restart_page_requests(&mut self) {
        self.unit.write64(offset::PQT, 0);
        self.unit.write64(offset::PQH, 0);
        self.page_request_head = 0;
    }

    /// The unit's state: see [`UnitFunction::save`].
    pub fn save(&self) -> IommuState {
        self.unit.save()
    }

    /// Goes on with another unit: see [`UnitFunction::replace`].
    pub fn replace(
        &mut self,
        bus: Arc<Bus<Simulated>>,
        device: IommuDevice<Simulated>,
        server: Server,
        maps: &Arc<Maps>,
    ) {
        self.unit.replace(bus, device, server, maps);
    }

    /// The machine ends: see [`UnitFunction::end`].
    pub fn end(&mut self, way: u64) {
        self.unit.end(way);
    }

    /// Whether the page request queue is empty.
    pub fn no_page_requests(&self) -> bool {
        self.unit.read64(offset::PQT) == self.page_request_head
    }
}

/// PASID-selective invalidations after a PASID table entry was cleared (VT-d 4.1 §6.5.3.1).
pub fn pasid_gone(bdf: Bdf, domain_id: u16, pasid: Pasid) -> [Descriptor; 3] {
    let cache = PasidCache::new()
        .with_granularity(pasid_cache_granularity::PASID)
        .with_domain_id(domain_id)
        .with_pasid(pasid.get());
    let iotlb = PasidIotlb::new()
        .with_granularity(pasid_iotlb_granularity::PASID)
        .with_domain_id(domain_id)
        .with_pasid(pasid.get());
    [
        [u64::from(cache) | u64::from(descriptor_type::PASID_CACHE), 0],
        [u64::from(iotlb) | u64::from(descriptor_type::PASID_IOTLB), 0],
        device_tlb_all(bdf, pasid),
    ]
}

fn device_tlb_all(bdf: Bdf, pasid: Pasid) -> Descriptor {
    // Every address bit below bit 63 set, and S: everything (PCIe 6.0 §10.3.2).
    let range = PasidDeviceTlbAddress::new().with_size(true).with_frame((1 << 51) - 1);
    [device_tlb_low(bdf, pasid), range.into()]
}

fn device_tlb_low(bdf: Bdf, pasid: Pasid) -> u64 {
    let low = PasidDeviceTlb::new().with_source_id(bdf.0).with_pasid(pasid.get()).with_max_invalidations_pending(31);
    u64::from(low) | u64::from(descriptor_type::PASID_DEVICE_TLB)
}

/// Drops the unit's translations of `1 << order` pages at `iova`, which is aligned to that; with `leaf_only`, not what
/// it knows of the tables on the way.
pub fn iotlb_pages(domain_id: u16, pasid: Pasid, (iova, order): (u64, u8), leaf_only: bool) -> Descriptor {
    let low = PasidIotlb::new()
        .with_granularity(pasid_iotlb_granularity::PAGE)
        .with_domain_id(domain_id)
        .with_pasid(pasid.get());
    let high =
        InvalidateAddress::new().with_address_mask(order).with_frame(iova >> 12).with_invalidation_hint(leaf_only);
    [u64::from(low) | u64::from(descriptor_type::PASID_IOTLB), high.into()]
}

/// Drops a function's translations of `1 << order` pages at `iova`, which is aligned to that.
pub fn device_tlb_pages(bdf: Bdf, pasid: Pasid, iova: u64, order: u8) -> Descriptor {
    // The lowest `order - 1` frame bits set, the next clear, and S (PCIe 6.0 §10.3.2).
    let ones = if order == 0 { 0 } else { (1u64 << (order - 1)) - 1 };
    let high = PasidDeviceTlbAddress::new().with_size(order > 0).with_frame(iova >> 12 | ones);
    [device_tlb_low(bdf, pasid), high.into()]
}

/// The answer to a group (VT-d 4.1 §7.5.1).
pub fn response(group: &Group, code: ResponseCode) -> Descriptor {
    let code = match code {
        ResponseCode::Success => response_code::SUCCESS,
        ResponseCode::InvalidRequest => response_code::INVALID,
        ResponseCode::Failure => response_code::FAILURE,
    };
    let low = PageGroupResponse::new()
        .with_pasid_present(group.pasid.is_some())
        .with_pasid(group.pasid.map_or(0, Pasid::get))
        .with_requester_id(group.bdf.0)
        .with_response_code(code);
    let high = PageGroupResponseIndex::new().with_prg_index(group.index.get());
    [u64::from(low) | u64::from(descriptor_type::PAGE_GROUP_RESPONSE), high.into()]
}
