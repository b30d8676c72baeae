//! A unit over watched memory, and what holds for it whatever it was told.
use std::sync::Arc;
use std::sync::atomic::Ordering;

use svadev_fabric::{Access, Bdf, Iova, PageRequest, PageRequestOutcome, Pasid, PrgIndex};
use svadev_iommu::{Caching, FAULT_RECORD_OFFSET, Unit, UnitConfig};
use svadev_memory::{GuestAddress, GuestMemory};
use svadev_spec::vtd::registers::{FaultStatus, Global, offset};

use super::tables::{self, DEVICE, OTHER};
use super::watched::{Event, Events, Ports, Watched};
use crate::Input;

/// Guest memory, bytes.
pub(crate) const RAM: u64 = 0x8_0000;
/// The invalidation queue: two pages.
pub(crate) const QUEUE: u64 = 0x1_0000;
/// The page request queue: one page, 128 requests.
pub(crate) const PAGE_REQUESTS: u64 = 0x1_4000;
/// Where waits put their status.
pub(crate) const STATUS: u64 = 0x1_6000;
/// What the first stage's small pages map: 64 pages.
pub(crate) const DATA: u64 = 0x2_0000;

/// A unit and all it touches.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) unit: Unit<Arc<Watched>>,
    pub(crate) memory: Arc<Watched>,
    pub(crate) ports: Ports,
    pub(crate) events: Events,
    /// Responses and interrupts seen so far.
    responses: u64,
    interrupts: u64,
}

/// Small caches, so that entries make room for others soon.
pub(crate) fn config(caching: u8) -> UnitConfig {
    let caching = match caching % 3 {
        0 => Caching::Strict,
        1 => Caching::Adversarial,
        _ => Caching::None,
    };
    UnitConfig { caching, iotlb_entries: 64, pasid_cache_entries: 64, fault_records: 4, ..UnitConfig::default() }
}

impl World {
    /// A unit that software has not touched, over memory with tables in it.
    pub(crate) fn cold(config: UnitConfig) -> Self {
        let events = Events::default();
        let memory = Arc::new(Watched::new(usize::try_from(RAM).expect("a small constant"), events.clone()));
        tables::build(&memory.ram, DATA);
        Self::over(config, memory, events)
    }

    /// One more unit over the same memory.
    pub(crate) fn over(config: UnitConfig, memory: Arc<Watched>, events: Events) -> Self {
        let unit = Unit::new(config, Arc::clone(&memory));
        Self { unit, memory, ports: Ports::new(events.clone()), events, responses: 0, interrupts: 0 }
    }

    /// As a kernel brings it up: events at data 1 (fault), 2 (invalidation), 3 (page request), translation on.
    pub(crate) fn bring_up(&mut self, legacy: bool, queue_address: u64) {
        for (control, data) in [(offset::FECTL, 1), (offset::IECTL, 2), (offset::PECTL, 3)] {
            self.write32(control + 4, data);
            self.write32(control + 8, 0xfee0_1000);
            self.write32(control, 0);
        }
        self.write64(offset::IQT, 0);
        self.write64(offset::IQA, queue_address);
        self.write64(offset::PQA, PAGE_REQUESTS);
        self.write64(offset::RTADDR, if legacy { tables::LEGACY_ROOT } else { tables::ROOT | 1 << 10 });
        self.forget_everything();
        self.write32(
            offset::GCMD,
            Global::new().with_queued_invalidation_enable(true).with_translation_enable(true).into(),
        );
    }

    /// Latches the root table again, which empties every cache (CAP.ESRTPS, VT-d 4.1 §6.6).
    pub(crate) fn forget_everything(&mut self) {
        let on = Global::from(self.read32(offset::GSTS));
        self.write32(offset::GCMD, on.with_root_table_pointer(true).into());
    }

    pub(crate) fn read32(&mut self, at: u64) -> u32 {
        let mut data = [0; 4];
        self.unit.read_register(at, &mut data);
        u32::from_le_bytes(data)
    }
    pub(crate) fn read64(&mut self, at: u64) -> u64 {
        let mut data = [0; 8];
        self.unit.read_register(at, &mut data);
        u64::from_le_bytes(data)
    }
    pub(crate) fn write32(&mut self, at: u64, value: u32) {
        self.unit.write_register(at, &value.to_le_bytes(), &self.ports);
    }
    pub(crate) fn write64(&mut self, at: u64, value: u64) {
        self.unit.write_register(at, &value.to_le_bytes(), &self.ports);
    }
    /// A store of the guest's, if there is memory.
    pub(crate) fn store(&self, at: u64, bytes: &[u8]) {
        let _ = self.memory.ram.write(GuestAddress(at), bytes);
    }

    /// Sends a page request; what its outcome says must agree with what was seen.
    pub(crate) fn page_request(&mut self, request: PageRequest) -> PageRequestOutcome {
        let before = self.unit.counters().clone();
        let outcome = self.unit.page_request(request, &self.ports);
        let after = self.unit.counters();
        let queued = after.page_requests_queued - before.page_requests_queued;
        let answered = after.automatic_responses - before.automatic_responses;
        let dropped = after.page_requests_dropped - before.page_requests_dropped;
        assert_eq!(queued + answered + dropped, 1, "a page request is queued, answered or dropped");
        assert_eq!(outcome == PageRequestOutcome::Dropped, dropped == 1, "who asked is told");
        assert!(answered == 0 || request.last, "only groups are answered");
        outcome
    }

    /// What holds at any time. Returns the events since the last call.
    pub(crate) fn check(&mut self) -> Vec<Event> {
        let events = self.events.take();
        for event in &events {
            match event {
                Event::Response { .. } => self.responses += 1,
                Event::Interrupt(_) => self.interrupts += 1,
                _ => {}
            }
        }
        let c = self.unit.counters();
        let by_software = c.responses_success + c.responses_invalid + c.responses_failure;
        assert_eq!(c.automatic_responses + by_software, self.responses, "each response is sent once");
        assert_eq!(c.interrupts, self.interrupts, "each interrupt is sent once");
        assert_eq!(c.page_requests, c.page_requests_queued + c.page_requests_dropped + c.automatic_responses);
        self.check_faults();
        events
    }

    fn check_faults(&mut self) {
        let records = u64::from(self.unit.config().fault_records);
        let pending: Vec<bool> =
            (0..records).map(|n| self.read32(FAULT_RECORD_OFFSET + 16 * n + 12) >> 31 != 0).collect();
        let status = FaultStatus::from(self.read32(offset::FSTS));
        assert_eq!(status.primary_pending_fault(), pending.contains(&true), "PPF is the OR of all F");
        assert!(u64::from(status.fault_record_index()) < records, "FRI is a record");
    }

    /// Whether tables were changed by the walker in a way that is not its own: only accessed and dirty bits are.
    pub(crate) fn check_exchange(old: u64, new: u64) {
        // A 5, D 6, EA 10 of the first stage; A 8, D 9 of the second (VT-d 4.1 §9.7, §9.8).
        const ACCESSED_DIRTY: u64 = 1 << 5 | 1 << 6 | 1 << 8 | 1 << 9 | 1 << 10;
        assert_eq!(old & !new, 0, "the walker clears nothing");
        assert_eq!((old ^ new) & !ACCESSED_DIRTY, 0, "the walker sets accessed and dirty bits only");
    }

    /// Functions answer these of the coming invalidations later, by bits.
    pub(crate) fn answer_later(&self, later: u64) {
        self.ports.later.store(later, Ordering::Relaxed);
    }
}

/// Who asks, with which PASID, for what and where: in 4 bytes or more.
pub(crate) fn request(input: &mut Input<'_>) -> (Bdf, Option<Pasid>, Iova, Access) {
    let bits = input.u8();
    let requester = match bits & 3 {
        0 | 1 => DEVICE,
        2 => OTHER,
        _ => Bdf(input.u16()),
    };
    let pasid = match bits >> 2 & 3 {
        0 => None,
        1 | 2 => Some(Pasid::from_low_bits((input.u8() % 8).into())),
        _ => Some(Pasid::from_low_bits(input.u32().into())),
    };
    let access = Access {
        read: bits & 1 << 4 != 0,
        write: bits & 1 << 5 != 0,
        execute: bits & 1 << 6 != 0,
        privileged: bits & 1 << 7 != 0,
    };
    let place = input.u8();
    let iova = match place {
        0..=63 => u64::from(place) << 12,
        64..=95 => 0x20_0000 + (u64::from(input.u16()) << 5),
        96..=127 => 0x4000_0000 + u64::from(input.u32() & 0x3fff_ffff),
        128..=159 => 0xfee0_0000 + u64::from(input.u16()),
        _ => input.u64(),
    };
    (requester, pasid, Iova(iova), access)
}

/// A page request, from one more byte than [`request`].
pub(crate) fn page_request(input: &mut Input<'_>) -> PageRequest {
    let (requester, pasid, iova, access) = request(input);
    let bits = input.u8();
    let prg_index = PrgIndex::from_low_bits((bits >> 1).into());
    PageRequest { requester, pasid, iova, access, prg_index, last: bits & 1 != 0 }
}
