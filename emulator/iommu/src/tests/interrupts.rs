//! Messages that nobody behind the unit can carry.
use svadev_fabric::Access;
use svadev_spec::vtd::registers::offset;
use svadev_spec::vtd::tables::Level;

use super::world::{PASID, World};

const MASKED: u32 = 1 << 31;
const PENDING: u32 = 1 << 30;
/// A wait that raises the invalidation completion event and writes no status.
const WAIT_WITH_EVENT: [u64; 2] = [5 | 1 << 4, 0];

/// Raises one of the three events. Data of their messages: 1 is a fault, 2 a completed wait, 3 a page request.
fn raise(world: &mut World, data: u32) {
    match data {
        1 => assert!(world.access(Some(PASID), 0x1000, Access::READ).is_err()),
        2 => world.submit(&[WAIT_WITH_EVENT]),
        _ => drop(world.page_request(0x1000, Access::READ, 1, true)),
    }
}

/// Control and status register of an event, and the bits that clear the status.
const EVENTS: [(u32, u64, u64, u32); 2] = [(2, offset::IECTL, offset::ICS, 1), (3, offset::PECTL, offset::PRS, 1)];

fn world() -> World {
    let mut world = World::new();
    world.bind_first_stage(Level::FOUR);
    world
}

#[test]
fn an_event_that_nobody_can_send_stays_pending() {
    for (data, control) in [(1, offset::FECTL), (2, offset::IECTL), (3, offset::PECTL)] {
        let mut world = world();
        world.ports.no_bus_master.set(true);
        raise(&mut world, data);
        assert_eq!(world.read32(control), PENDING, "event {data}");
        assert_eq!(world.unit.counters().interrupts, 0);
        world.unit.retry_events(&world.ports);
        assert_eq!(world.read32(control), PENDING, "still nobody");
        world.ports.no_bus_master.set(false);
        world.unit.retry_events(&world.ports);
        assert_eq!((world.ports.take_interrupts(), world.read32(control)), (vec![data], 0));
        world.unit.retry_events(&world.ports);
        assert_eq!(world.ports.take_interrupts(), [0; 0], "once");
        assert_eq!(world.unit.counters().interrupts, 1);
    }
}

#[test]
fn a_pending_event_that_is_masked_waits_for_both() {
    let mut world = world();
    world.ports.no_bus_master.set(true);
    raise(&mut world, 3);
    world.write32(offset::PECTL, MASKED);
    world.ports.no_bus_master.set(false);
    world.unit.retry_events(&world.ports);
    assert_eq!((world.ports.take_interrupts(), world.read32(offset::PECTL)), (vec![], MASKED | PENDING));
    world.ports.no_bus_master.set(true);
    world.write32(offset::PECTL, 0);
    assert_eq!(world.read32(offset::PECTL), PENDING, "unmasked, and nobody can send it");
    world.ports.no_bus_master.set(false);
    world.unit.retry_events(&world.ports);
    assert_eq!((world.ports.take_interrupts(), world.read32(offset::PECTL)), (vec![3], 0));
}

#[test]
fn a_pending_event_whose_cause_is_gone_is_not_sent() {
    for (data, control, status, clear) in EVENTS {
        let mut world = world();
        world.ports.no_bus_master.set(true);
        raise(&mut world, data);
        world.write32(status, clear);
        assert_eq!(world.read32(control), 0, "event {data}");
        world.ports.no_bus_master.set(false);
        world.unit.retry_events(&world.ports);
        assert_eq!(world.ports.take_interrupts(), [0; 0]);
    }
}

#[test]
fn a_lost_completion_event_is_sent_again() {
    let mut world = world();
    raise(&mut world, 2);
    assert_eq!(world.ports.take_interrupts(), [2]);
    world.unit.repeat_interrupts(&world.ports);
    assert_eq!(world.ports.take_interrupts(), [2], "software has not looked at ICS");
    world.write32(offset::ICS, 1);
    world.unit.repeat_interrupts(&world.ports);
    assert_eq!(world.ports.take_interrupts(), [0; 0]);
}

#[test]
fn an_event_that_was_lost_and_cannot_be_repeated_stays_pending() {
    let mut world = world();
    raise(&mut world, 3);
    world.ports.take_interrupts();
    // The only function that could carry it stops while the message is on its way, and starts again later.
    world.ports.no_bus_master.set(true);
    world.unit.repeat_interrupts(&world.ports);
    assert_eq!(world.read32(offset::PECTL), PENDING);
    world.ports.no_bus_master.set(false);
    world.unit.retry_events(&world.ports);
    assert_eq!(world.ports.take_interrupts(), [3]);
}

#[test]
fn an_event_serviced_while_masked_is_not_sent() {
    let mut world = World::new();
    world.bind_first_stage(Level::FOUR);
    for control in [offset::IECTL, offset::PECTL] {
        world.write32(control, 1 << 31);
    }
    let _ = world.page_request(0x7000, Access::READ, 1, true);
    world.submit(&[[5 | 1 << 4, 0]]);
    for (control, status) in [(offset::IECTL, offset::ICS), (offset::PECTL, offset::PRS)] {
        assert_eq!(world.read32(control) >> 30, 0b11, "{control:#x}: IM and IP");
        world.write32(status, 1);
        assert_eq!(world.read32(control) >> 30, 0b10, "{control:#x}: IM");
        world.write32(control, 0);
    }
    assert_eq!(world.ports.take_interrupts(), [0; 0]);
}

#[test]
fn a_reset_forgets_pending_events() {
    let mut world = world();
    world.ports.no_bus_master.set(true);
    raise(&mut world, 3);
    world.unit.reset();
    assert_eq!(world.read32(offset::PECTL), MASKED);
    world.write32(offset::PECTL, 0);
    world.ports.no_bus_master.set(false);
    world.unit.retry_events(&world.ports);
    assert_eq!(world.ports.take_interrupts(), [0; 0]);
}
