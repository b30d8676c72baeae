//! Each point of the gate: held, and released.
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use proptest::prelude::*;
use svadev_fabric::{Access, Bdf, Iova, PageRequest, PageRequestOutcome, PrgIndex};
use svadev_spec::vtd::page_request::{PageRequestHigh, PageRequestLow};
use svadev_spec::vtd::registers::offset;
use svadev_spec::vtd::tables::Level;

use super::world::{DEVICE, DOMAIN, Mode, OTHER, PASID, STATUS, World, pasid_device_tlb, wait_descriptor};
use crate::{FaultReason, Point, PointId, PointKind, Schedule, Verdict};

const PENDING: u32 = 1 << 30;
/// Page requests that came before the wait must be in the queue.
const DRAIN: u64 = 1 << 7;
/// Later descriptors start only after the wait.
const FENCE: u64 = 1 << 6;

/// What a test tells its schedule, and hears from it.
#[derive(Debug, Default)]
struct Plan {
    hold: BTreeSet<PointId>,
    reached: Vec<(PointId, Point)>,
}

/// Holds what its plan names.
#[derive(Debug)]
struct Planned(Arc<Mutex<Plan>>);

impl Schedule for Planned {
    fn reached(&mut self, id: PointId, point: &Point) -> Verdict {
        let mut plan = self.0.lock().unwrap();
        plan.reached.push((id, *point));
        if plan.hold.contains(&id) { Verdict::Hold } else { Verdict::Pass }
    }

    fn still_holds(&mut self, id: PointId) -> bool {
        self.0.lock().unwrap().hold.contains(&id)
    }
}

const fn nth(kind: PointKind, number: u64) -> PointId {
    PointId { kind, number }
}

/// A unit with one first-stage PASID at both functions, whose gate holds these points.
fn world(hold: &[PointId]) -> (World, Arc<Mutex<Plan>>) {
    let mut world = World::new();
    let root = world.bind_first_stage(Level::FOUR);
    world.bind(OTHER, PASID.get(), DOMAIN, Mode::First { root, top: Level::FOUR });
    let plan = Arc::new(Mutex::new(Plan { hold: hold.iter().copied().collect(), reached: Vec::new() }));
    world.unit.set_schedule(Some(Box::new(Planned(Arc::clone(&plan)))), &world.ports);
    (world, plan)
}

impl World {
    fn request_from(&mut self, requester: Bdf, prg: u16) -> PageRequestOutcome {
        let prg_index = PrgIndex::new(prg).unwrap();
        let (iova, access) = (Iova(0x1000), Access::READ);
        let request = PageRequest { requester, pasid: Some(PASID), iova, access, prg_index, last: true };
        self.unit.page_request(request, &self.ports)
    }

    fn release(&mut self, id: PointId) {
        assert!(self.unit.release(id, &self.ports), "{id} is held");
        assert!(!self.unit.release(id, &self.ports), "{id} is released once");
    }

    fn held(&self) -> Vec<PointId> {
        self.unit.held().map(|(id, _)| id).collect()
    }

    /// Requester and group of each page request in the queue.
    fn queued(&mut self) -> Vec<(Bdf, u16)> {
        (0..self.read64(offset::PQT) / 32)
            .map(|index| {
                let [low, high, ..] = self.page_request_descriptor(index);
                (Bdf(PageRequestLow::from(low).requester_id()), PageRequestHigh::from(high).prg_index())
            })
            .collect()
    }
}

#[test]
fn points_are_numbered_by_kind_and_seen_in_order() {
    let (mut world, plan) = world(&[]);
    world.page_request(0x1000, Access::READ, 1, true);
    assert!(world.access(Some(PASID), 0x1000, Access::READ).is_err());
    world.submit(&[pasid_device_tlb(DEVICE, 5, 0x1000, 0), [9 | 1 << 4 | 0x10 << 16 | 5 << 32, 1 << 3]]);
    world.submit(&[[5 | 1 << 4 | 1 << 5 | 7 << 32, STATUS]]);
    world.page_request(0x2000, Access::READ, 2, true);
    let reached: Vec<_> = plan.lock().unwrap().reached.iter().map(|(id, _)| id.to_string()).collect();
    assert_eq!(
        reached,
        [
            "prq.write#1",
            "prq.event#1",
            "fault.record#1",
            "fault.event#1",
            "iq.take#1",
            "devtlb.ack#1",
            "iq.take#2",
            "prg.response#1",
            "iq.take#3",
            "iq.wait#1",
            "iq.event#1",
            "prq.write#2"
        ]
    );
    let reached = std::mem::take(&mut plan.lock().unwrap().reached);
    let kinds: BTreeSet<_> = reached.iter().map(|(id, _)| id.kind).collect();
    assert_eq!(kinds, PointKind::ALL.into(), "every kind was passed");
    assert!(reached.iter().all(|(id, point)| id.kind == point.kind()));
    assert!(matches!(reached[4].1, Point::IqTake { descriptor_type: 8 }));
}

#[test]
fn a_held_page_request_is_not_in_the_queue() {
    let (mut world, _) = world(&[nth(PointKind::PrqWrite, 1)]);
    assert_eq!(world.request_from(DEVICE, 1), PageRequestOutcome::Accepted);
    assert_eq!((world.read64(offset::PQT), world.read32(offset::PRS)), (0, 0));
    assert_eq!(world.ports.take_interrupts(), [0; 0]);
    world.release(nth(PointKind::PrqWrite, 1));
    assert_eq!(world.queued(), [(DEVICE, 1)]);
    assert_eq!((world.read32(offset::PRS), world.ports.take_interrupts()), (1, vec![3]));
}

#[test]
fn page_requests_of_a_function_stay_in_order() {
    let (mut world, _) = world(&[nth(PointKind::PrqWrite, 1), nth(PointKind::PrqWrite, 4)]);
    for (requester, prg) in [(DEVICE, 1), (DEVICE, 2), (OTHER, 3), (DEVICE, 4), (DEVICE, 5)] {
        assert_eq!(world.request_from(requester, prg), PageRequestOutcome::Accepted);
    }
    assert_eq!(world.queued(), [(OTHER, 3)], "the other function's overtakes");
    world.release(nth(PointKind::PrqWrite, 1));
    assert_eq!(world.queued(), [(OTHER, 3), (DEVICE, 1), (DEVICE, 2)]);
    world.release(nth(PointKind::PrqWrite, 4));
    assert_eq!(world.queued(), [(OTHER, 3), (DEVICE, 1), (DEVICE, 2), (DEVICE, 4), (DEVICE, 5)]);
    assert_eq!(world.held(), []);
}

#[test]
fn a_held_page_request_that_is_released_behind_another_waits_for_it() {
    let (mut world, _) = world(&[nth(PointKind::PrqWrite, 1), nth(PointKind::PrqWrite, 2)]);
    world.request_from(DEVICE, 1);
    world.request_from(DEVICE, 2);
    world.release(nth(PointKind::PrqWrite, 2));
    assert_eq!(world.queued(), []);
    world.release(nth(PointKind::PrqWrite, 1));
    assert_eq!(world.queued(), [(DEVICE, 1), (DEVICE, 2)]);
}

#[test]
fn a_held_page_request_is_not_drained() {
    let (mut world, _) = world(&[nth(PointKind::PrqWrite, 1)]);
    world.request_from(DEVICE, 1);
    world.submit(&[wait_descriptor(1)]);
    assert_eq!(world.load(STATUS), 1, "a wait without PD asks for nothing");
    let [low, high] = wait_descriptor(2);
    world.submit(&[[low | DRAIN, high], wait_descriptor(3)]);
    assert_eq!(world.load(STATUS), 1, "a wait with PD does, and the queue waits with it");
    assert_eq!(world.unit.counters().waits_parked, 1);
    world.release(nth(PointKind::PrqWrite, 1));
    assert_eq!((world.queued(), world.load(STATUS)), (vec![(DEVICE, 1)], 3));
    assert_eq!(world.unit.counters().waits, 3);
}

#[test]
fn a_drain_ends_when_translation_is_disabled() {
    let (mut world, _) = world(&[nth(PointKind::PrqWrite, 1)]);
    world.request_from(DEVICE, 1);
    let [low, high] = wait_descriptor(2);
    world.submit(&[[low | DRAIN, high]]);
    assert_eq!(world.load(STATUS), 0);
    world.write32(offset::GCMD, 1 << 26);
    assert_eq!((world.held(), world.queued(), world.load(STATUS)), (vec![], vec![], 2));
}

#[test]
fn a_held_event_is_pending_until_it_is_released() {
    for (kind, control, data) in [
        (PointKind::FaultEvent, offset::FECTL, 1),
        (PointKind::IqEvent, offset::IECTL, 2),
        (PointKind::PrqEvent, offset::PECTL, 3),
    ] {
        let (mut world, _) = world(&[nth(kind, 1)]);
        for _ in 0..2 {
            match data {
                1 => assert!(world.access(Some(PASID), 0x1000, Access::READ).is_err()),
                2 => world.submit(&[[5 | 1 << 4, 0]]),
                _ => drop(world.request_from(DEVICE, 1)),
            }
        }
        assert_eq!((world.read32(control), world.ports.take_interrupts()), (PENDING, vec![]));
        // Neither a retry nor a write to the control register gets past the gate.
        world.unit.retry_events(&world.ports);
        world.write32(control, 0);
        assert_eq!((world.read32(control), world.ports.take_interrupts()), (PENDING, vec![]));
        world.release(nth(kind, 1));
        assert_eq!((world.read32(control), world.ports.take_interrupts()), (0, vec![data]));
    }
}

#[test]
fn a_held_event_that_software_has_seen_is_not_sent() {
    let (mut world, _) = world(&[nth(PointKind::PrqEvent, 1)]);
    world.request_from(DEVICE, 1);
    world.write32(offset::PRS, 1);
    assert_eq!((world.read32(offset::PECTL), world.held()), (0, vec![]));
    world.request_from(DEVICE, 2);
    assert_eq!(world.ports.take_interrupts(), [3], "the next one is a new event");
}

#[test]
fn a_held_descriptor_is_not_begun() {
    let (mut world, plan) = world(&[nth(PointKind::IqTake, 2)]);
    world.ports.slow.set(true);
    world.submit(&[pasid_device_tlb(DEVICE, 5, 0x1000, 0), wait_descriptor(1)]);
    assert_eq!((world.read64(offset::IQH), world.ports.tags().len()), (32, 1));
    assert_eq!(world.unit.counters().waits_parked, 0);
    world.release(nth(PointKind::IqTake, 2));
    assert_eq!(world.unit.counters().waits_parked, 1, "it waits for the acknowledgement like any other");
    let tag = world.ports.tags()[0];
    world.unit.invalidate_complete(DEVICE, tag, &world.ports);
    assert_eq!((world.load(STATUS), world.read64(offset::IQH)), (1, 64));
    let takes = plan.lock().unwrap().reached.iter().filter(|(id, _)| id.kind == PointKind::IqTake).count();
    assert_eq!(takes, 2, "a descriptor is taken once, however often it is tried");
}

#[test]
fn a_held_wait_does_not_stop_the_queue() {
    let (mut world, _) = world(&[nth(PointKind::IqWait, 1)]);
    world.submit(&[[5 | 1 << 4 | 1 << 5 | 1 << 32, STATUS], [5 | 1 << 5 | 2 << 32, STATUS + 8]]);
    assert_eq!((world.load(STATUS), world.load(STATUS + 8)), (0, 2));
    assert_eq!((world.read32(offset::ICS), world.unit.counters().waits), (0, 1));
    world.release(nth(PointKind::IqWait, 1));
    assert_eq!((world.load(STATUS), world.read32(offset::ICS)), (1, 1));
    assert_eq!((world.ports.take_interrupts(), world.unit.counters().waits), (vec![2], 2));
}

#[test]
fn a_held_wait_with_a_fence_stops_the_queue() {
    let (mut world, _) = world(&[nth(PointKind::IqWait, 1)]);
    let [low, high] = wait_descriptor(1);
    world.submit(&[[low | FENCE, high], [5 | 1 << 5 | 2 << 32, STATUS + 8]]);
    world.submit(&[[5 | 1 << 5 | 3 << 32, STATUS + 16]]);
    assert_eq!((world.load(STATUS), world.load(STATUS + 8), world.load(STATUS + 16)), (0, 0, 0));
    world.release(nth(PointKind::IqWait, 1));
    assert_eq!((world.load(STATUS), world.load(STATUS + 8), world.load(STATUS + 16)), (1, 2, 3));
}

#[test]
fn a_held_wait_whose_status_cannot_be_written_is_an_error() {
    let (mut world, _) = world(&[nth(PointKind::IqWait, 1)]);
    world.submit(&[[5 | 1 << 5 | 1 << 32, super::world::RAM]]);
    assert_eq!(world.read32(offset::FSTS), 0);
    world.release(nth(PointKind::IqWait, 1));
    assert_eq!(world.read32(offset::FSTS) & 1 << 4, 1 << 4, "IQE");
    assert_eq!(world.unit.counters().waits, 0);
}

#[test]
fn a_held_acknowledgement_is_missing() {
    for slow in [false, true] {
        let (mut world, _) = world(&[nth(PointKind::DevTlbAck, 1)]);
        world.ports.slow.set(slow);
        world.submit(&[pasid_device_tlb(DEVICE, 5, 0x1000, 0), wait_descriptor(1)]);
        let tag = world.ports.tags()[0];
        if slow {
            world.unit.invalidate_complete(DEVICE, tag, &world.ports);
        }
        assert_eq!(world.unit.outstanding_invalidations().collect::<Vec<_>>(), [(tag, DEVICE)]);
        assert_eq!(world.load(STATUS), 0);
        world.release(nth(PointKind::DevTlbAck, 1));
        assert_eq!((world.unit.outstanding_invalidations().count(), world.load(STATUS)), (0, 1));
    }
}

#[test]
fn a_held_acknowledgement_of_what_was_given_up_is_late() {
    let (mut world, _) = world(&[nth(PointKind::DevTlbAck, 1)]);
    world.submit(&[pasid_device_tlb(DEVICE, 5, 0x1000, 0), wait_descriptor(1)]);
    world.unit.invalidate_timed_out(DEVICE, &world.ports);
    world.write32(offset::FSTS, 1 << 6);
    world.release(nth(PointKind::DevTlbAck, 1));
    assert_eq!(world.read32(offset::FSTS), 0, "no unexpected completion");
}

#[test]
fn a_held_response_has_not_reached_its_function() {
    let (mut world, _) = world(&[nth(PointKind::PrgResponse, 1)]);
    let response = |prg: u64| [9 | 1 << 4 | u64::from(DEVICE.0) << 16 | 5 << 32, prg << 3];
    world.submit(&[response(1), response(2), wait_descriptor(1)]);
    assert_eq!(world.load(STATUS), 1, "the queue goes on");
    let heard = |world: &World| -> Vec<u16> {
        world.ports.responses.borrow().iter().map(|(_, response)| response.prg_index.get()).collect()
    };
    assert_eq!(heard(&world), [2]);
    world.release(nth(PointKind::PrgResponse, 1));
    assert_eq!(heard(&world), [2, 1]);
}

#[test]
fn a_held_fault_is_not_recorded() {
    let (mut world, _) = world(&[nth(PointKind::FaultRecord, 1)]);
    assert!(world.access(Some(PASID), 0x1000, Access::READ).is_err());
    assert_eq!((world.read32(offset::FSTS), world.ports.take_interrupts()), (0, vec![]));
    world.release(nth(PointKind::FaultRecord, 1));
    assert_eq!(world.take_fault(), Some((FaultReason::FirstStageNotPresent.code(), 0x1000)));
    assert_eq!(world.ports.interrupts.borrow()[0].0, Some(DEVICE));
}

/// Holds one point of each kind.
fn hold_everything() -> World {
    let kinds = PointKind::ALL.map(|kind| nth(kind, 1));
    let (mut world, _) = world(&kinds);
    world.request_from(DEVICE, 1);
    assert!(world.access(Some(PASID), 0x1000, Access::READ).is_err());
    // The event is raised by what passes.
    world.request_from(OTHER, 2);
    assert!(world.access(Some(PASID), 0x2000, Access::READ).is_err());
    world.submit(&[[9 | 1 << 4 | u64::from(DEVICE.0) << 16 | 5 << 32, 1 << 3]]);
    world.release(nth(PointKind::IqTake, 1));
    world.submit(&[[5 | 1 << 4, 0], [5 | 1 << 4, 0], pasid_device_tlb(DEVICE, 5, 0x1000, 0)]);
    let kinds: BTreeSet<_> = world.held().iter().map(|id| id.kind).collect();
    let all = PointKind::ALL.into_iter().filter(|&kind| kind != PointKind::IqTake).collect();
    assert_eq!(kinds, all);
    world.ports.take_interrupts();
    world
}

#[test]
fn a_reset_forgets_what_is_held() {
    let mut world = hold_everything();
    world.unit.reset();
    assert_eq!(world.held(), []);
    world.bring_up();
    world.unit.poll_gate(&world.ports);
    assert_eq!(world.ports.take_interrupts(), [0; 0]);
    assert_eq!(world.ports.responses.borrow().len(), 0);
    assert_eq!(world.read64(offset::PQT), 0);
    world.request_from(DEVICE, 3);
    assert_eq!(world.queued(), [(DEVICE, 3)], "the count goes on, so this is not the first");
}

#[test]
fn disabling_translation_forgets_requests_and_faults() {
    let mut world = hold_everything();
    world.write32(offset::GCMD, 1 << 26);
    let held: Vec<_> = world.held().iter().map(|id| id.kind).collect();
    assert!(!held.contains(&PointKind::PrqWrite) && !held.contains(&PointKind::FaultRecord), "{held:?}");
    assert_eq!(world.queued(), [(OTHER, 2)]);
}

#[test]
fn disabling_the_queue_ends_what_it_had_not_finished() {
    let mut world = hold_everything();
    world.write32(offset::GCMD, 1 << 31);
    let held: BTreeSet<_> = world.held().iter().map(|id| id.kind).collect();
    let left =
        [PointKind::PrqWrite, PointKind::PrqEvent, PointKind::IqEvent, PointKind::FaultRecord, PointKind::FaultEvent];
    assert_eq!(held, left.into());
    assert_eq!(world.ports.responses.borrow().len(), 1, "an answer had left the queue already");
    assert_eq!(world.unit.outstanding_invalidations().count(), 0);
}

#[test]
fn a_descriptor_that_was_not_begun_is_gone_with_the_queue() {
    let (mut world, _) = world(&[nth(PointKind::IqTake, 1)]);
    world.submit(&[wait_descriptor(1)]);
    assert_eq!(world.held(), [nth(PointKind::IqTake, 1)]);
    world.write32(offset::GCMD, 1 << 31);
    assert_eq!((world.held(), world.load(STATUS)), (vec![], 0));
}

#[test]
fn a_poll_releases_what_the_schedule_holds_no_more() {
    let (mut world, plan) = world(&[nth(PointKind::PrqWrite, 1), nth(PointKind::PrqWrite, 2)]);
    world.request_from(DEVICE, 1);
    world.request_from(OTHER, 2);
    world.unit.poll_gate(&world.ports);
    assert_eq!(world.queued(), []);
    plan.lock().unwrap().hold.remove(&nth(PointKind::PrqWrite, 2));
    world.unit.poll_gate(&world.ports);
    assert_eq!((world.queued(), world.held()), (vec![(OTHER, 2)], vec![nth(PointKind::PrqWrite, 1)]));
}

#[test]
fn a_schedule_that_ends_holds_nothing() {
    let mut world = hold_everything();
    world.unit.set_schedule(None, &world.ports);
    assert_eq!(world.held(), []);
    let mut queued = world.queued();
    queued.sort();
    assert_eq!(queued, [(DEVICE, 1), (OTHER, 2)]);
    assert_eq!(world.ports.responses.borrow().len(), 1);
    assert_eq!(world.unit.outstanding_invalidations().count(), 0);
    let mut interrupts = world.ports.take_interrupts();
    interrupts.sort_unstable();
    assert_eq!(interrupts, [1, 2, 3]);
    world.submit_and_wait(&[]);
}

#[test]
fn there_is_a_bound_on_what_is_held() {
    let all: Vec<_> = (1..=1100).map(|number| nth(PointKind::PrgResponse, number)).collect();
    let (mut world, _) = world(&all);
    for _ in 0..1100 {
        world.submit(&[[9 | 1 << 4 | u64::from(DEVICE.0) << 16 | 5 << 32, 1 << 3]]);
    }
    assert_eq!((world.held().len(), world.ports.responses.borrow().len()), (1024, 76));
}

/// What a guest and its functions do, and what a schedule releases.
#[derive(Clone, Copy, Debug)]
enum Step {
    PageRequest { other: bool },
    Fault,
    Invalidate { slow: bool },
    Acknowledge,
    Wait { drain: bool, fence: bool },
    Respond,
    Release(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => any::<bool>().prop_map(|other| Step::PageRequest { other }),
        1 => Just(Step::Fault),
        2 => any::<bool>().prop_map(|slow| Step::Invalidate { slow }),
        2 => Just(Step::Acknowledge),
        3 => (any::<bool>(), any::<bool>()).prop_map(|(drain, fence)| Step::Wait { drain, fence }),
        1 => Just(Step::Respond),
        4 => (0usize..8).prop_map(Step::Release),
    ]
}

/// Holds what the next bit says.
#[derive(Debug)]
struct Random(Vec<bool>);

impl Schedule for Random {
    fn reached(&mut self, _: PointId, _: &Point) -> Verdict {
        if self.0.pop().unwrap_or(false) { Verdict::Hold } else { Verdict::Pass }
    }

    fn still_holds(&mut self, _: PointId) -> bool {
        true
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever is held and released, in whatever order: page requests of a function stay in order, a drain and a fence
    /// keep what they promise, and in the end nothing is lost.
    #[test]
    fn what_is_held_is_neither_lost_nor_overtaken_where_it_must_not_be(
        steps in prop::collection::vec(step(), 1..60),
        holds in prop::collection::vec(any::<bool>(), 0..120),
    ) {
        let mut world = world(&[]).0;
        world.unit.set_schedule(Some(Box::new(Random(holds))), &world.ports);
        let mut sent = Vec::new();
        // Address of the status, whether it has a fence, and how many page requests it must find in the queue.
        let mut waits: Vec<(u64, bool, usize)> = Vec::new();
        let (mut acknowledged, mut responses, mut faults) = (0, 0, 0);
        for step in steps {
            match step {
                Step::PageRequest { other } => {
                    let to = if other { OTHER } else { DEVICE };
                    sent.push((to, u16::try_from(sent.len()).unwrap()));
                    world.request_from(to, sent[sent.len() - 1].1);
                }
                Step::Fault => {
                    faults += 1;
                    prop_assert!(world.access(Some(PASID), 0x1000, Access::READ).is_err());
                }
                Step::Invalidate { slow } => {
                    world.ports.slow.set(slow);
                    world.submit(&[pasid_device_tlb(DEVICE, 5, 0x1000, 0)]);
                }
                Step::Acknowledge => {
                    world.ports.slow.set(false);
                    let next = world.ports.tags().get(acknowledged).copied();
                    acknowledged += usize::from(next.is_some());
                    // One that was acknowledged at once, or whose acknowledgement is held, is not outstanding or late.
                    let late = |world: &World, tag| !world.unit.outstanding_invalidations().any(|(t, _)| t == tag);
                    if let Some(tag) = next.filter(|&tag| !late(&world, tag)) {
                        world.unit.invalidate_complete(DEVICE, tag, &world.ports);
                    }
                }
                Step::Wait { drain, fence } => {
                    let at = STATUS + 8 * waits.len() as u64;
                    waits.push((at, fence, if drain { sent.len() } else { 0 }));
                    let flags = if drain { DRAIN } else { 0 } | if fence { FENCE } else { 0 };
                    world.submit(&[[5 | 1 << 5 | flags | 1 << 32, at]]);
                }
                Step::Respond => {
                    responses += 1;
                    world.submit(&[[9 | 1 << 4 | u64::from(DEVICE.0) << 16 | 5 << 32, 1 << 3]]);
                }
                Step::Release(n) => {
                    let id = world.held().get(n).copied();
                    id.map(|id| world.unit.release(id, &world.ports));
                }
            }
            let queued = world.queued();
            for (n, &(at, _, drains)) in waits.iter().enumerate().filter(|(_, wait)| world.load(wait.0) != 0) {
                let fenced = waits[..n].iter().all(|&(before, fence, _)| !fence || world.load(before) != 0);
                prop_assert!(fenced, "the wait at {at:#x} is over before a fence before it");
                let drained = sent[..drains].iter().all(|request| queued.contains(request));
                prop_assert!(drained, "the wait at {at:#x} is over before a page request before it is in the queue");
            }
        }
        world.unit.set_schedule(None, &world.ports);
        world.ports.slow.set(false);
        let outstanding: Vec<_> = world.unit.outstanding_invalidations().collect();
        for (tag, from) in outstanding {
            world.unit.invalidate_complete(from, tag, &world.ports);
        }
        let queued = world.queued();
        for function in [DEVICE, OTHER] {
            let of = |all: &[(Bdf, u16)]| all.iter().filter(|(bdf, _)| *bdf == function).copied().collect::<Vec<_>>();
            prop_assert_eq!(of(&queued), of(&sent));
        }
        prop_assert!(waits.iter().all(|&(at, ..)| world.load(at) != 0), "every wait is over");
        prop_assert_eq!(world.ports.responses.borrow().len(), responses);
        prop_assert_eq!(world.unit.counters().faults_recorded + world.unit.counters().faults_lost, faults);
        prop_assert_eq!(world.unit.outstanding_invalidations().count(), 0);
        prop_assert_eq!(world.read64(offset::IQH), world.read64(offset::IQT));
    }
}
