//! A small guest: memory with tables in it, a driver for the registers, and functions that record what they are told.
use std::cell::{Cell, RefCell};
use std::sync::Arc;

use svadev_fabric::{
    Access, AtsError, Bdf, Delivery, Downstream, Gpa, InvalidateAck, InvalidateRequest, InvalidateTag, Iova, Msi,
    PageGroupResponse, PageRequest, PageRequestOutcome, Pasid, PrgIndex, Translation, TranslationRequest,
};
use svadev_memory::{GuestAddress, GuestMemory, Ram};
use svadev_spec::vtd::fault::{FaultRecordHigh, FaultRecordLow};
use svadev_spec::vtd::registers::{FaultStatus, offset};
use svadev_spec::vtd::tables::{Level, PasidTable0, PasidTable1, PasidTable2, translation_type};
use svadev_tables::{FrameRange, FrameSource};

use crate::{Blocked, FAULT_RECORD_OFFSET, FaultReason, Unit, UnitConfig};

pub(super) const DEVICE: Bdf = Bdf(0x0010);
pub(super) const OTHER: Bdf = Bdf(0x00a8);
pub(super) const PASID: Pasid = Pasid::from_low_bits(5);
pub(super) const DOMAIN: u16 = 1;

pub(super) const P: u64 = 1;
pub(super) const RW: u64 = 1 << 1;
pub(super) const US: u64 = 1 << 2;
pub(super) const A: u64 = 1 << 5;
pub(super) const D: u64 = 1 << 6;
pub(super) const PS: u64 = 1 << 7;
pub(super) const XD: u64 = 1 << 63;
pub(super) const USER_PAGE: u64 = P | RW | US;
pub(super) const SS_R: u64 = 1;
pub(super) const SS_W: u64 = 2;

/// Where the tables of the world lie.
pub(super) const ROOT: u64 = 0x1000;
pub(super) const QUEUE: u64 = 0x10_0000;
pub(super) const PRQ: u64 = 0x11_0000;
pub(super) const STATUS: u64 = 0x12_0000;
/// Fresh pages are handed out from here.
pub(super) const FIRST_FREE: u64 = 0x20_0000;
/// Bytes of memory.
pub(super) const RAM: u64 = 0x100_0000;

/// What the functions and the interrupt controller heard.
#[derive(Default)]
pub(super) struct Ports {
    /// Invalidations are answered later.
    pub(super) slow: Cell<bool>,
    /// No function can carry an interrupt.
    pub(super) no_bus_master: Cell<bool>,
    pub(super) invalidations: RefCell<Vec<(Bdf, InvalidateRequest)>>,
    pub(super) responses: RefCell<Vec<(Bdf, PageGroupResponse)>>,
    pub(super) interrupts: RefCell<Vec<(Option<Bdf>, Msi)>>,
}

impl Downstream for Ports {
    fn invalidate(&self, to: Bdf, request: InvalidateRequest) -> InvalidateAck {
        self.invalidations.borrow_mut().push((to, request));
        if self.slow.get() { InvalidateAck::Pending } else { InvalidateAck::Done }
    }
    fn page_group_response(&self, to: Bdf, response: PageGroupResponse) {
        self.responses.borrow_mut().push((to, response));
    }
    fn message_interrupt(&self, via: Option<Bdf>, msi: Msi) -> Delivery {
        if self.no_bus_master.get() {
            return Delivery::Held;
        }
        self.interrupts.borrow_mut().push((via, msi));
        Delivery::Sent
    }
}

impl Ports {
    /// The data of the interrupts so far, which tells events apart, and forgets them.
    pub(super) fn take_interrupts(&self) -> Vec<u32> {
        self.interrupts.borrow_mut().drain(..).map(|(_, msi)| msi.data).collect()
    }
    pub(super) fn tags(&self) -> Vec<InvalidateTag> {
        self.invalidations.borrow().iter().map(|(_, request)| request.tag).collect()
    }
}

/// Which stages a PASID of the world has.
#[derive(Clone, Copy)]
pub(super) enum Mode {
    First { root: u64, top: Level },
    Second { root: u64, top: Level },
    Nested { root: u64, second_root: u64 },
    PassThrough,
}

/// `M` is how the unit reaches `ram`.
pub(super) struct World<M: GuestMemory = Arc<Ram>> {
    pub(super) unit: Unit<M>,
    pub(super) ram: Arc<Ram>,
    pub(super) ports: Ports,
    free: FrameRange,
    pub(super) tail: u64,
}

impl World {
    /// A unit that software has brought up in scalable mode, with the events at data 1 (fault), 2 (invalidation), 3
    /// (page request).
    pub(super) fn new() -> Self {
        Self::with(UnitConfig::default())
    }

    pub(super) fn with(config: UnitConfig) -> Self {
        let mut world = Self::cold(config);
        world.bring_up();
        world
    }

    /// A unit that software has not touched.
    pub(super) fn cold(config: UnitConfig) -> Self {
        Self::over(config, Arc::clone)
    }
}

impl<M: GuestMemory> World<M> {
    /// A unit that software has not touched, which reaches memory through what `memory` makes.
    pub(super) fn over(config: UnitConfig, memory: impl FnOnce(&Arc<Ram>) -> M) -> Self {
        let ram = Arc::new(Ram::new(usize::try_from(RAM).unwrap()).unwrap());
        let unit = Unit::new(config, memory(&ram));
        Self { unit, ram, ports: Ports::default(), free: FrameRange::new(FIRST_FREE..RAM), tail: 0 }
    }

    /// What software does after a reset: queues, root table, translation.
    pub(super) fn bring_up(&mut self) {
        self.set_up_queues();
        self.write64(offset::RTADDR, ROOT | 1 << 10);
        self.write32(offset::GCMD, 1 << 26 | 1 << 30);
        assert_eq!(self.read32(offset::GSTS), 1 << 26 | 1 << 30);
        self.write32(offset::GCMD, 1 << 26 | 1 << 31);
        assert_eq!(self.read32(offset::GSTS), 1 << 26 | 1 << 30 | 1 << 31);
    }

    fn set_up_queues(&mut self) {
        for (control, data) in [(offset::FECTL, 1), (offset::IECTL, 2), (offset::PECTL, 3)] {
            self.write32(control + 4, data);
            self.write32(control + 8, 0xfee0_1000);
            self.write32(control + 12, 0);
            self.write32(control, 0);
        }
        self.write64(offset::IQT, 0);
        // 256-bit descriptors, two pages.
        self.write64(offset::IQA, QUEUE | 1 << 11 | 1);
        self.write64(offset::PQH, 0);
        self.write64(offset::PQT, 0);
        // One page: 128 requests.
        self.write64(offset::PQA, PRQ);
    }

    pub(super) fn read32(&mut self, at: u64) -> u32 {
        let mut data = [0; 4];
        self.unit.read_register(at, &mut data);
        u32::from_le_bytes(data)
    }
    pub(super) fn read64(&mut self, at: u64) -> u64 {
        let mut data = [0; 8];
        self.unit.read_register(at, &mut data);
        u64::from_le_bytes(data)
    }
    pub(super) fn write32(&mut self, at: u64, value: u32) {
        self.unit.write_register(at, &value.to_le_bytes(), &self.ports);
    }
    pub(super) fn write64(&mut self, at: u64, value: u64) {
        self.unit.write_register(at, &value.to_le_bytes(), &self.ports);
    }

    pub(super) fn load(&self, at: u64) -> u64 {
        self.ram.load_u64(GuestAddress(at)).unwrap()
    }
    pub(super) fn store(&self, at: u64, value: u64) {
        self.ram.write(GuestAddress(at), &value.to_le_bytes()).unwrap();
    }
    pub(super) fn page(&mut self) -> u64 {
        self.free.allocate()
    }

    /// Every page below this and from [`FIRST_FREE`] was handed out.
    pub(super) fn first_free(&self) -> u64 {
        self.free.next()
    }

    /// Where the context entry of `bdf` is.
    pub(super) fn context_entry(&mut self, bdf: Bdf) -> u64 {
        svadev_tables::context_entry(&self.ram, &mut self.free, ROOT, bdf)
    }

    /// Where the PASID table entry is; makes the way there, with ATS, PASID and PRI on.
    pub(super) fn pasid_entry(&mut self, bdf: Bdf, pasid: u32) -> u64 {
        let at = self.context_entry(bdf);
        if self.load(at) == 0 {
            svadev_tables::fill_context_entry(&self.ram, &mut self.free, at);
        }
        let directory = self.load(at) & !0xfff;
        svadev_tables::pasid_entry(&self.ram, &mut self.free, directory, pasid)
    }

    /// Fills a PASID table entry in, as Linux does: P last.
    pub(super) fn bind(&mut self, bdf: Bdf, pasid: u32, domain_id: u16, mode: Mode) -> u64 {
        let at = self.pasid_entry(bdf, pasid);
        let qw0 = PasidTable0::new().with_address_width(2);
        let qw1 = PasidTable1::new().with_domain_id(domain_id).with_page_walk_snoop(true);
        let mut qw2 = PasidTable2::new();
        let qw0 = match mode {
            Mode::First { root, top } => {
                qw2 = qw2.with_first_stage_paging_mode(top.number() - 4).with_first_stage_frame(root >> 12);
                qw0.with_translation_type(translation_type::FIRST_STAGE)
            }
            Mode::Second { root, top } => qw0
                .with_translation_type(translation_type::SECOND_STAGE)
                .with_address_width(top.number() - 2)
                .with_second_stage_frame(root >> 12),
            Mode::Nested { root, second_root } => {
                qw2 = qw2.with_first_stage_frame(root >> 12);
                qw0.with_translation_type(translation_type::NESTED).with_second_stage_frame(second_root >> 12)
            }
            Mode::PassThrough => qw0.with_translation_type(translation_type::PASS_THROUGH),
        };
        self.store(at + 8, qw1.into());
        self.store(at + 16, qw2.into());
        self.store(at, qw0.with_present(true).into());
        at
    }

    /// A first-stage PASID with empty tables; returns the root.
    pub(super) fn bind_first_stage(&mut self, top: Level) -> u64 {
        let root = self.page();
        self.bind(DEVICE, PASID.get(), DOMAIN, Mode::First { root, top });
        root
    }

    /// Maps a page of `1 << size_log2` bytes; returns where the leaf entry is. Tables on the way are open to
    /// everything.
    pub(super) fn map(&mut self, root: u64, top: Level, iova: u64, leaf: u64, size_log2: u8) -> u64 {
        let tables = (root, top.number());
        let at = svadev_tables::leaf_entry(&self.ram, &mut self.free, tables, iova, size_log2, USER_PAGE);
        self.store(at, leaf | if size_log2 > 12 { PS } else { 0 });
        at
    }

    pub(super) fn translate(
        &mut self,
        pasid: Option<Pasid>,
        iova: u64,
        access: Access,
    ) -> Result<Translation, AtsError> {
        let request = TranslationRequest { requester: DEVICE, pasid, iova: Iova(iova), access };
        self.unit.translate(request, &self.ports)
    }

    /// A translation request of [`DEVICE`] with [`PASID`] that must give a page: its address and size.
    pub(super) fn translate_ok(&mut self, iova: u64, access: Access) -> (u64, u8) {
        let translation = self.translate(Some(PASID), iova, access).unwrap();
        assert!(translation.access.allows(access), "{iova:#x}: {translation:?} instead of {access:?}");
        (translation.gpa.0, translation.size_log2)
    }

    pub(super) fn translated(&mut self, address: u64, access: Access) -> Result<(), Blocked> {
        self.unit.translated(DEVICE, Gpa(address), access, &self.ports)
    }

    pub(super) fn access(&mut self, pasid: Option<Pasid>, iova: u64, access: Access) -> Result<Translation, Blocked> {
        self.unit.access(DEVICE, pasid, Iova(iova), access, &self.ports)
    }

    /// The reason why an untranslated access of [`DEVICE`] with [`PASID`] is blocked, checked against the record of it.
    pub(super) fn blocked(&mut self, iova: u64, access: Access) -> FaultReason {
        let Blocked::Fault(reason) = self.access(Some(PASID), iova, access).unwrap_err() else {
            panic!("aborted, not blocked");
        };
        assert_eq!(self.take_fault(), Some((reason.code(), iova & !0xfff)), "{reason:?} is recorded");
        reason
    }

    /// Reads the first pending fault record and clears it, as Linux does.
    pub(super) fn take_fault(&mut self) -> Option<(u8, u64)> {
        let (low, high) = self.take_fault_record()?;
        Some((high.fault_reason(), low.fault_info() << 12))
    }

    pub(super) fn take_fault_record(&mut self) -> Option<(FaultRecordLow, FaultRecordHigh)> {
        let status = FaultStatus::from(self.read32(offset::FSTS));
        if !status.primary_pending_fault() {
            return None;
        }
        let at = FAULT_RECORD_OFFSET + 16 * u64::from(status.fault_record_index());
        let record = (self.read64(at).into(), FaultRecordHigh::from(self.read64(at + 8)));
        assert!(record.1.fault(), "FRI points to a pending fault");
        self.write32(at + 12, 1 << 31);
        Some(record)
    }

    pub(super) fn page_request(&mut self, iova: u64, access: Access, prg: u16, last: bool) -> PageRequestOutcome {
        let prg_index = PrgIndex::new(prg).unwrap();
        let request = PageRequest { requester: DEVICE, pasid: Some(PASID), iova: Iova(iova), access, prg_index, last };
        self.unit.page_request(request, &self.ports)
    }

    /// The quadwords of the descriptor at `index` of the page request queue.
    pub(super) fn page_request_descriptor(&self, index: u64) -> [u64; 4] {
        [0, 8, 16, 24].map(|i| self.load(PRQ + 32 * index + i))
    }

    /// Puts descriptors into the invalidation queue and moves the tail.
    pub(super) fn submit(&mut self, descriptors: &[[u64; 2]]) {
        for [low, high] in descriptors {
            self.store(QUEUE + self.tail, *low);
            self.store(QUEUE + self.tail + 8, *high);
            self.tail = (self.tail + 32) % 0x2000;
        }
        self.write32(offset::IQT, u32::try_from(self.tail).unwrap());
    }

    /// Submits descriptors with a wait after them, which must be over at once.
    pub(super) fn submit_and_wait(&mut self, descriptors: &[[u64; 2]]) {
        self.store(STATUS, 0);
        let mut all = descriptors.to_vec();
        all.push(wait_descriptor(7));
        self.submit(&all);
        assert_eq!(self.load(STATUS), 7, "the wait is over");
        assert_eq!(self.read64(offset::IQH), self.tail);
    }
}

/// Type 5, SW, with data to [`STATUS`].
pub(super) fn wait_descriptor(data: u32) -> [u64; 2] {
    [5 | 1 << 5 | u64::from(data) << 32, STATUS]
}

/// Type 6, one page of a PASID.
pub(super) fn pasid_iotlb_page(domain_id: u16, pasid: u32, iova: u64, mask: u64) -> [u64; 2] {
    [6 | 3 << 4 | u64::from(domain_id) << 16 | u64::from(pasid) << 32, iova | mask]
}

/// Type 7, one PASID.
pub(super) fn pasid_cache(domain_id: u16, pasid: u32) -> [u64; 2] {
    [7 | 1 << 4 | u64::from(domain_id) << 16 | u64::from(pasid) << 32, 0]
}

/// Type 8, as Linux builds it: `order` pages in log2.
pub(super) fn pasid_device_tlb(bdf: Bdf, pasid: u32, iova: u64, order: u32) -> [u64; 2] {
    let low = 8 | u64::from(bdf.0) << 16 | u64::from(pasid) << 32;
    if order == 0 {
        return [low, iova];
    }
    let ones = (1u128 << (order + 12)) - 0x1000;
    let high = (iova | u64::try_from(ones & u128::from(u64::MAX)).unwrap()) & !(1u64 << (11 + order)) | 1 << 11;
    [low, high]
}
