use std::cell::Cell;
use std::sync::Arc;

use svadev_fabric::{
    Access, Bdf, Delivery, Downstream, InvalidateAck, InvalidateRequest, Iova, Msi, PageGroupResponse, PageRequest,
    PageRequestOutcome, PrgIndex, ResponseCode,
};
use svadev_memory::{GuestAddress, GuestMemory, Ram};
use svadev_spec::vtd::registers::offset;
use svadev_spec::vtd::tables::Level;

use super::world::{DEVICE, PASID, PRQ, RAM, USER_PAGE, World};
use crate::FaultReason;

const PPR: u32 = 1;
const PRO: u32 = 2;

fn world() -> World {
    let mut world = World::new();
    world.bind_first_stage(Level::FOUR);
    world
}

#[test]
fn a_request_is_queued_as_linux_reads_it() {
    let mut world = world();
    assert_eq!(world.page_request(0x7fff_1234_5678, Access::WRITE, 0x155, true), PageRequestOutcome::Accepted);
    let [low, high, private0, private1] = world.page_request_descriptor(0);
    // struct page_req_dsc: type:8, pasid_present:1, rsvd:7, rid:16, pasid:20, exe_req:1, pm_req:1, rsvd2:10
    assert_eq!(low, 1 | 1 << 8 | u64::from(DEVICE.0) << 16 | u64::from(PASID.get()) << 32);
    // rd_req:1, wr_req:1, lpig:1, prg_index:9, addr:52
    assert_eq!(high, 1 << 1 | 1 << 2 | 0x155 << 3 | 0x7fff_1234_5000);
    assert_eq!((private0, private1), (0, 0));
    assert_eq!(world.read64(offset::PQT), 32);
    assert_eq!(world.read32(offset::PRS), PPR);
    assert_eq!(*world.ports.interrupts.borrow(), [(Some(DEVICE), Msi { address: 0xfee0_1000, data: 3 })]);
    world.page_request(0x1000, Access { execute: true, privileged: true, ..Access::READ }, 1, false);
    let [low, high, ..] = world.page_request_descriptor(1);
    assert_eq!((low >> 52, high), (0b11, 0x1000 | 1 << 3 | 1));
    assert_eq!(world.ports.interrupts.borrow().len(), 1, "one event until software clears PPR");
    world.write32(offset::PRS, PPR);
    world.page_request(0x1000, Access::READ, 1, false);
    assert_eq!(world.ports.interrupts.borrow().len(), 2);
}

/// Reads the first descriptor of the queue as soon as the event comes.
struct EagerHandler {
    ram: Arc<Ram>,
    seen: Cell<Option<u64>>,
}

impl Downstream for EagerHandler {
    fn invalidate(&self, _: Bdf, _: InvalidateRequest) -> InvalidateAck {
        unreachable!("nothing is invalidated")
    }
    fn page_group_response(&self, _: Bdf, _: PageGroupResponse) {
        unreachable!("nothing is answered")
    }
    fn message_interrupt(&self, _: Option<Bdf>, _: Msi) -> Delivery {
        self.seen.set(Some(self.ram.load_u64(GuestAddress(PRQ + 8)).unwrap()));
        Delivery::Sent
    }
}

#[test]
fn the_event_comes_after_the_request() {
    let mut world = world();
    let handler = EagerHandler { ram: Arc::clone(&world.ram), seen: Cell::new(None) };
    let request = PageRequest {
        requester: DEVICE,
        pasid: Some(PASID),
        iova: Iova(0x5000),
        access: Access::READ,
        prg_index: PrgIndex::from_low_bits(3),
        last: true,
    };
    assert_eq!(world.unit.page_request(request, &handler), PageRequestOutcome::Accepted);
    assert_eq!(handler.seen.get(), Some(0x5000 | 3 << 3 | 1 << 2 | 1), "a handler that looks at once finds it");
}

#[test]
fn a_full_queue_overflows_and_answers_for_itself() {
    let mut world = world();
    for i in 0..127 {
        assert_eq!(world.page_request(i << 12, Access::READ, 1, false), PageRequestOutcome::Accepted);
    }
    world.ports.take_interrupts();
    world.write32(offset::PRS, PPR);
    assert_eq!(world.page_request(0xaaa000, Access::READ, 2, false), PageRequestOutcome::Dropped);
    assert_eq!(world.read32(offset::PRS), PRO);
    assert_eq!(world.ports.take_interrupts(), [3]);
    assert_eq!(world.page_request(0xbbb000, Access::READ, 2, true), PageRequestOutcome::Accepted);
    let (to, response) = world.ports.responses.borrow()[0];
    assert_eq!((to, response.code, response.prg_index.get()), (DEVICE, ResponseCode::Success, 2));
    assert_eq!(response.pasid, Some(PASID));
    let stop_marker = Access::default();
    assert_eq!(world.page_request(0, stop_marker, 0, true), PageRequestOutcome::Dropped);
    assert_eq!(world.ports.responses.borrow().len(), 1, "a stop marker is never answered");
    // Room alone does not help; software must clear PRO.
    world.write64(offset::PQH, 127 * 32);
    assert_eq!(world.page_request(0xccc000, Access::READ, 3, false), PageRequestOutcome::Dropped);
    world.write32(offset::PRS, PRO);
    assert_eq!(world.page_request(0xddd000, Access::READ, 3, true), PageRequestOutcome::Accepted);
    assert_eq!(world.page_request_descriptor(127)[1], 0xddd000 | 3 << 3 | 1 << 2 | 1);
    assert_eq!(world.read64(offset::PQT), 0, "around the end");
    assert_eq!(world.ports.take_interrupts(), [3]);
    let counters = world.unit.counters();
    assert_eq!(
        (counters.page_requests_queued, counters.page_request_overflows, counters.automatic_responses),
        (128, 1, 1)
    );
}

#[test]
fn stop_markers_are_queued() {
    let mut world = world();
    assert_eq!(world.page_request(0, Access::default(), 0, true), PageRequestOutcome::Accepted);
    assert_eq!(world.page_request_descriptor(0)[1], 1 << 2);
}

#[test]
fn the_ring_is_never_left_whatever_head_and_tail_say() {
    let mut world = world();
    world.store(0x11_1000, 0x5a5a);
    for (head, tail) in [(u64::MAX, u64::MAX), (0x7_ffe0, 0x5_5540), (0x1000, 0xfff), (0, 0x2000)] {
        world.write64(offset::PQH, head);
        world.write64(offset::PQT, tail);
        for i in 0..300 {
            world.page_request(i << 12, Access::READ, 1, i % 2 == 0);
        }
        world.write32(offset::PRS, PPR | PRO);
        assert!(world.read64(offset::PQT) < 0x1000);
    }
    assert_eq!(world.load(0x11_1000), 0x5a5a);
    assert_eq!(world.load(0x11_0000 - 8), 0);
}

#[test]
fn a_ring_outside_memory_fails_the_group() {
    let mut world = world();
    world.write64(offset::PQA, RAM);
    assert_eq!(world.page_request(0x1000, Access::READ, 4, true), PageRequestOutcome::Accepted);
    assert_eq!(world.ports.responses.borrow()[0].1.code, ResponseCode::Failure);
    assert_eq!(world.page_request(0x1000, Access::READ, 4, false), PageRequestOutcome::Dropped);
    assert_eq!(world.read32(offset::PRS), 0);
}

#[test]
fn blocked_page_requests_are_recorded_and_fail() {
    let mut world = world();
    let at = world.context_entry(DEVICE);
    world.store(at, world.load(at) & !(1 << 4));
    assert_eq!(world.page_request(0x5000, Access::WRITE, 1, true), PageRequestOutcome::Accepted);
    assert_eq!(world.ports.responses.borrow()[0].1.code, ResponseCode::Failure);
    let (_, high) = world.take_fault_record().unwrap();
    assert_eq!(
        (high.fault_reason(), high.type1(), high.type2()),
        (FaultReason::PageRequestDisabled.code(), false, true)
    );
    assert_eq!(world.page_request(0x5000, Access::WRITE, 1, false), PageRequestOutcome::Dropped);
    world.write64(offset::RTADDR, 0x1000);
    world.write32(offset::GCMD, 1 << 26 | 1 << 30 | 1 << 31);
    world.take_fault();
    world.page_request(0x5000, Access::WRITE, 1, true);
    assert_eq!(world.take_fault(), Some((FaultReason::PageRequestInLegacyMode.code(), 0x5000)));
    world.write32(offset::GCMD, 1 << 26);
    assert_eq!(world.page_request(0x5000, Access::WRITE, 1, true), PageRequestOutcome::Dropped);
    assert_eq!(world.take_fault(), None, "with translation off nobody serves page requests");
}

#[test]
fn a_page_request_makes_the_unit_look_again() {
    let mut world = World::new();
    let root = world.bind_first_stage(Level::FOUR);
    let leaf = world.map(root, Level::FOUR, 0x7000, 0x5000 | (USER_PAGE & !2), 12);
    assert!(!world.translate(Some(PASID), 0x7000, Access::WRITE).unwrap().access.write);
    // Software may give a right without an invalidation, and count on the page request that follows the refusal.
    world.store(leaf, 0x5000 | USER_PAGE);
    world.page_request(0x7000, Access::WRITE, 1, true);
    assert!(world.translate(Some(PASID), 0x7000, Access::WRITE).unwrap().access.write);
}

#[test]
fn a_masked_page_request_event_is_held_back() {
    let mut world = world();
    world.write32(offset::PECTL, 1 << 31);
    world.page_request(0x1000, Access::READ, 1, true);
    assert_eq!(world.ports.take_interrupts(), [0; 0]);
    world.write32(offset::PECTL, 0);
    assert_eq!(world.ports.take_interrupts(), [3]);
}

#[test]
fn an_event_that_a_function_lost_is_sent_again_another_way() {
    let mut world = world();
    world.unit.repeat_interrupts(&world.ports);
    assert_eq!(world.ports.take_interrupts(), [0; 0], "nothing is pending");
    world.page_request(0x1000, Access::READ, 1, true);
    let msi = Msi { address: 0xfee0_1000, data: 3 };
    assert_eq!(*world.ports.interrupts.borrow(), [(Some(DEVICE), msi)]);
    world.unit.repeat_interrupts(&world.ports);
    assert_eq!(world.ports.interrupts.borrow()[1..], [(None, msi)], "not through the function that stopped");
    world.write32(offset::PRS, PPR);
    world.ports.take_interrupts();
    world.unit.repeat_interrupts(&world.ports);
    assert_eq!(world.ports.take_interrupts(), [0; 0], "software has seen it");
    // A masked event is held back, and sent on unmasking, once.
    world.write32(offset::PECTL, 1 << 31);
    world.page_request(0x1000, Access::READ, 1, true);
    world.unit.repeat_interrupts(&world.ports);
    assert_eq!(world.ports.take_interrupts(), [0; 0]);
    world.write32(offset::PECTL, 0);
    assert_eq!(world.ports.take_interrupts(), [3]);
}
