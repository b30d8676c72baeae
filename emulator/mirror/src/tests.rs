#![allow(clippy::unwrap_used, reason = "a panic is a failed test")]
use std::sync::Arc;

use svadev_fabric::{Gpa, ResponseCode};
use svadev_memory::{GuestAddress, GuestMemory, Ram};
use svadev_spec::mirror::{
    ASID_BIT, EVENT_AGAIN, EVENT_RING, Header, INVALIDATE_ALL, INVALIDATION_TAIL, Invalidation, TableEntry, access,
    engine, error, response,
};
use zerocopy::IntoBytes;

use crate::testing::Driver;
use crate::{Answer, Ask, BadHeader, ControlBlock, Drop, Face, Page, Place, Problem, Side, Walk};

const MS: u64 = 1_000_000;
const BASE: u64 = 0x10_0000;
const TABLES: u64 = 0x20_0000;
const END: u64 = 0x40_0000;
const ASID: u32 = ASID_BIT | 3;

struct World {
    ram: Arc<Ram>,
    driver: Driver<Ram>,
    side: Side<Ram>,
    face: Arc<Face>,
}

impl World {
    fn new() -> Self {
        let ram = Arc::new(Ram::new(8 << 20).unwrap());
        let mut driver = Driver::new(Arc::clone(&ram), BASE, 1, TABLES, END).unwrap();
        driver.create(ASID, false, 5).unwrap();
        let face = Arc::new(Face::new(1));
        let mut side = Side::new(0, Arc::clone(&ram), Arc::clone(&face), 6);
        side.attach(ControlBlock::read(&*ram, BASE, 1).unwrap());
        side.arrive(|_| {}).unwrap();
        Self { ram, driver, side, face }
    }

    fn look(&mut self) -> Vec<Drop> {
        let mut drops = Vec::new();
        self.side.look(|drop| drops.push(drop)).unwrap();
        drops
    }

    fn ask(&self, address: u64) -> Ask {
        Ask { asid: ASID, address, length: 0x3000, write: true, queue: 2, cookie: Some(77) }
    }

    fn error(&self) -> u8 {
        self.face.problem().error
    }
}

fn page(gpa: u64) -> TableEntry {
    TableEntry::new().with_frame(gpa >> 12).with_writable(true)
}

#[test]
fn a_header_is_read_once_and_checked_whole() {
    let ram = Ram::new(2 << 20).unwrap();
    let good = Driver::<Ram>::small_header(2);
    let read = |base: u64, header: &Header| {
        ram.write(GuestAddress(base), header.as_bytes()).unwrap();
        ControlBlock::read(&ram, base, 2)
    };
    let block = read(0x1000, &good).unwrap();
    assert_eq!((block.base(), *block.header()), (0x1000, good));
    assert_eq!(read(0x1800, &good), Err(BadHeader), "not a page");
    assert_eq!(read(0x1000, &Header { engines: 3, ..good }), Err(BadHeader));
    assert_eq!(ControlBlock::read(&ram, 4 << 20, 2), Err(BadHeader), "no memory");
    assert_eq!(ControlBlock::read(&ram, u64::MAX - 0xfff, 2), Err(BadHeader));
}

#[test]
fn walks_find_pages_of_every_size_in_four_and_five_levels() {
    let mut w = World::new();
    let five = ASID_BIT | 4;
    w.driver.create(five, true, 0).unwrap();
    for asid in [ASID, five] {
        for (address, size_log2, entry) in [
            (0x7fff_ffff_f000, 12, page(0x5000)),
            (0x20_0000, 21, page(0x40_0000)),
            (0x4000_0000, 30, page(0x8000_0000)),
            (0x8000_0000, 12, page(0x6000).with_writable(false).with_exclusive(true)),
            (0x9000_0000, 12, page(0x3000_0000_2000).with_device(true)),
        ] {
            assert_eq!(w.side.translate(asid, address), Some(Walk::Missing));
            w.driver.map(asid, address, size_log2, entry).unwrap();
            let first = entry.frame() << 12;
            let place = if entry.device() { Place::Device(first) } else { Place::Guest(Gpa(first)) };
            let found = Page { place, size_log2: u8::try_from(size_log2).unwrap(), writable: entry.writable() };
            for within in [0, (1 << size_log2) - 1] {
                assert_eq!(w.side.translate(asid, address + within), Some(Walk::Page(found)));
            }
        }
    }
    w.driver.map(five, 1 << 52, 12, page(0x5000)).unwrap();
    assert!(matches!(w.side.translate(five, 1 << 52), Some(Walk::Page(_))));
    assert_eq!(w.side.translate(ASID, 1 << 48), Some(Walk::Missing), "beyond four levels");
    assert_eq!(w.side.translate(five, 1 << 57), Some(Walk::Missing), "beyond five levels");
    assert_eq!(w.side.translate(ASID_BIT | 5, 0), None, "no such address space");
    assert_eq!(w.side.translate(ASID_BIT | 16, 0), None, "beyond the table");
    assert_eq!(w.side.translate(3, 0), None, "a PASID");
    assert_eq!(w.face.problem(), Problem::NONE);
}

#[test]
fn tables_that_cannot_be_are_errors_with_asid_and_address() {
    let reserved = |bit: u64| TableEntry::from_bits(page(0x5000).into_bits() | 1 << bit);
    for (name, size_log2, entry, code) in [
        ("a reserved bit", 12, reserved(2), error::BAD_ENTRY),
        ("another one", 12, reserved(63), error::BAD_ENTRY),
        ("an unaligned large page", 21, page(0x5000), error::BAD_ENTRY),
        ("a page of 512 GiB", 39, page(0), error::BAD_ENTRY),
    ] {
        let mut w = World::new();
        w.driver.map(ASID, 0x8000_0000, size_log2, entry).unwrap();
        assert_eq!(w.side.translate(ASID, 0x8000_0123), Some(Walk::Bad(code)), "{name}");
        assert_eq!(w.face.problem(), Problem { error: code, asid: ASID, address: 0x8000_0123 }, "{name}");
    }
    // Three bad roots: a table outside of memory, a table in device memory, and a table whose child is the table
    // itself.
    let root = |w: &World, entry: TableEntry| {
        // Address 0x8000_0000 is below the first entry.
        w.ram.store_u64(GuestAddress(TABLES), entry.with_present(true).into_bits()).unwrap();
    };
    let mut w = World::new();
    root(&w, page(0x7fff_0000_0000));
    assert_eq!(w.side.translate(ASID, 0x8000_0000), Some(Walk::Bad(error::BAD_TABLE)));
    assert_eq!(w.error(), error::BAD_TABLE);
    root(&w, page(0x5000).with_device(true));
    assert_eq!(w.side.translate(ASID, 0x8000_0000), Some(Walk::Bad(error::BAD_ENTRY)));
    assert_eq!(w.error(), error::BAD_TABLE, "the first one counts");
    root(&w, page(TABLES));
    assert_eq!(
        w.side.translate(ASID, 0),
        Some(Walk::Page(Page { place: Place::Guest(Gpa(TABLES)), size_log2: 12, writable: true })),
        "a loop ends with the levels"
    );
    // An entry of the table of address spaces.
    let mut w = World::new();
    w.driver.spoil(0x1000 + 3 * 8, 1 << 3 | 1).unwrap();
    assert_eq!((w.side.translate(ASID, 0), w.error()), (None, error::BAD_SPACE));
}

#[test]
fn an_invalidation_is_acknowledged_by_an_engine_that_is_online() {
    let mut w = World::new();
    w.driver.map(ASID, 0x1000, 12, page(0x5000)).unwrap();
    let mut wait = w.driver.invalidate(ASID, 0x1000, 0x1fff).unwrap();
    assert_eq!(wait.engines(), [0]);
    assert_eq!(w.look(), [Drop::Range { asid: ASID, first: 0x1000, last: 0x1fff }]);
    assert!(w.driver.is_over(&mut wait));
    assert_eq!(w.look(), [], "once");
    assert!(!w.side.take_wake(), "nobody sleeps");
    assert!(w.driver.invalidate(ASID, 0x1000, 0x1fff).unwrap().engines().is_empty(), "nothing was mapped");
}

#[test]
fn an_engine_that_is_offline_is_not_waited_for_and_looks_before_it_uses_anything() {
    let mut w = World::new();
    assert!(w.side.rest().unwrap());
    w.driver.map(ASID, 0x1000, 12, page(0x5000)).unwrap();
    assert!(w.driver.invalidate(ASID, 0x1000, 0x1fff).unwrap().engines().is_empty());
    let mut drops = Vec::new();
    w.side.arrive(|drop| drops.push(drop)).unwrap();
    assert_eq!(drops, [Drop::Range { asid: ASID, first: 0x1000, last: 0x1fff }]);
    w.driver.post(Invalidation { asid: ASID, last: 1, ..Invalidation::default() }).unwrap();
    assert!(!w.side.rest().unwrap(), "the driver saw it online, and waits");
}

#[test]
fn a_call_that_finds_nothing_waits_for_what_was_posted_before() {
    let mut w = World::new();
    w.driver.map(ASID, 0x1000, 12, page(0x5000)).unwrap();
    let first = w.driver.invalidate(ASID, 0x1000, 0x1fff).unwrap();
    let mut second = w.driver.invalidate(ASID, 0x1000, 0x1fff).unwrap();
    assert_eq!((first.engines(), second.engines()), (&[0][..], &[0][..]));
    w.look();
    assert!(w.driver.is_over(&mut second));
}

#[test]
fn who_sleeps_until_an_engine_acknowledges_is_woken() {
    let mut w = World::new();
    w.driver.set_waiters(1);
    assert!(w.look().is_empty() && !w.side.take_wake(), "nothing was acknowledged");
    w.driver.post(Invalidation { asid: ASID, last: 1, ..Invalidation::default() }).unwrap();
    w.look();
    assert!(w.side.take_wake() && !w.side.take_wake());
}

#[test]
fn a_ring_that_was_overrun_drops_everything() {
    let post = |w: &mut World, n: u64| {
        for n in 0..n {
            let (first, last) = (n << 12, n << 12 | 0xfff);
            w.driver.post(Invalidation { asid: ASID, first, last, ..Invalidation::default() }).unwrap();
        }
    };
    let mut w = World::new();
    post(&mut w, 7);
    assert_eq!(w.look().len(), 7, "all but the one that may be written");
    // The ring has 8 entries: the oldest of 8 may be overwritten while it is read.
    post(&mut w, 8);
    assert_eq!(w.look(), [Drop::Everything]);
    post(&mut w, 100);
    let mut wait = w.driver.post(Invalidation { asid: ASID, last: 1, ..Invalidation::default() }).unwrap();
    assert_eq!(w.look(), [Drop::Everything]);
    assert!(w.driver.is_over(&mut wait));
    // A tail that goes backwards, or wraps, is one that was overrun.
    w.driver.spoil(INVALIDATION_TAIL, 3).unwrap();
    assert_eq!(w.look(), [Drop::Everything]);
    w.driver.spoil(INVALIDATION_TAIL, u64::MAX).unwrap();
    assert_eq!(w.look(), [Drop::Everything]);
    assert_eq!(w.error(), error::NONE, "that is nobody's mistake");
}

#[test]
fn malformed_entries_drop_everything_and_are_reported() {
    let good = Invalidation { asid: ASID, first: 0x1000, last: 0x1fff, ..Invalidation::default() };
    for bad in [
        Invalidation { asid: 3, ..good },
        Invalidation { asid: ASID | 1 << 20, ..good },
        Invalidation { flags: 4, ..good },
        Invalidation { flags: INVALIDATE_ALL, ..good },
        Invalidation { last: 0xfff, ..good },
        Invalidation { reserved: 1, ..good },
    ] {
        let mut w = World::new();
        let mut wait = w.driver.post(bad).unwrap();
        assert_eq!(w.look(), [Drop::Everything], "{bad:x?}");
        assert_eq!(w.error(), error::BAD_INVALIDATION);
        assert!(w.driver.is_over(&mut wait), "and it is acknowledged");
    }
    let mut w = World::new();
    w.driver.post(Invalidation { asid: ASID, flags: INVALIDATE_ALL, ..Invalidation::default() }).unwrap();
    assert_eq!(w.look(), [Drop::Range { asid: ASID, first: 0, last: u64::MAX }]);
}

#[test]
fn an_event_says_what_is_missing_and_a_response_ends_the_wait() {
    let mut w = World::new();
    let ticket = w.side.ask(&w.ask(0x1234)).unwrap();
    assert_eq!(w.driver.event(0).unwrap(), None);
    w.side.work(0).unwrap();
    assert!(w.side.take_wake());
    let event = w.driver.event(0).unwrap().unwrap();
    assert_eq!((event.address, event.length, event.cookie, event.asid), (0x1234, 0x3000, 77, ASID));
    assert_eq!((event.queue, event.access, event.flags, event.generation, event.seq), (2, access::WRITE, 0, 5, 1));
    assert_eq!(w.side.response(0), Ok(None));
    assert_eq!(w.driver.respond(0, event.token, response::SUCCESS), Some(false));
    assert_eq!(w.side.response(0), Ok(Some(Answer { slot: ticket.slot(), code: ResponseCode::Success })));
    assert_eq!(w.driver.respond(0, event.token, response::SUCCESS), Some(false));
    assert_eq!(w.side.response(0), Ok(None), "once");
    // A ring access has no cookie, and a driver that reads slowly is told once.
    let ring = Ask { cookie: None, write: false, ..w.ask(1) };
    w.side.ask(&ring).unwrap();
    w.side.work(0).unwrap();
    assert!(w.side.take_wake());
    w.side.ask(&ring).unwrap();
    w.side.work(0).unwrap();
    assert!(!w.side.take_wake(), "the driver has not read the one before");
    let event = w.driver.event(0).unwrap().unwrap();
    assert_eq!((event.access, event.flags, event.cookie), (access::READ, EVENT_RING, 0));
}

#[test]
fn stale_and_invented_tokens_are_dropped() {
    let mut w = World::new();
    let old = w.side.ask(&w.ask(0x1000)).unwrap();
    w.side.work(0).unwrap();
    let token = w.driver.event(0).unwrap().unwrap().token;
    w.side.forget(old);
    let new = w.side.ask(&w.ask(0x2000)).unwrap();
    assert_eq!(new.slot(), old.slot(), "the slot is used again");
    w.driver.respond(0, new.slot() as u64 | 1 << 32, response::SUCCESS);
    assert_eq!(w.side.response(0), Ok(None), "its event was not sent yet");
    w.side.work(0).unwrap();
    for token in [token, u64::MAX, 6, 0xffff_ffff, 1 << 63] {
        w.driver.respond(0, token, response::SUCCESS);
        assert_eq!(w.side.response(0), Ok(None), "{token:x}");
    }
    let token = w.driver.event(0).unwrap().unwrap().token;
    w.driver.respond(0, token, 99);
    assert_eq!(w.side.response(0), Ok(Some(Answer { slot: new.slot(), code: ResponseCode::Failure })));
}

#[test]
fn again_is_asked_again_after_a_pause_that_doubles() {
    let mut w = World::new();
    w.side.ask(&w.ask(0x1000)).unwrap();
    w.side.work(0).unwrap();
    let mut now = 0;
    let first = w.driver.event(0).unwrap().unwrap();
    for pause in [1, 2, 4, 8, 16, 32, 64, 64, 64] {
        w.driver.respond(0, first.token, response::AGAIN);
        assert_eq!(w.side.response(now), Ok(None));
        assert_eq!(w.side.next_ns(), now + pause * MS);
        w.side.work(now + pause * MS - 1).unwrap();
        assert_eq!(w.driver.event(0).unwrap(), None);
        now += pause * MS;
        w.side.work(now).unwrap();
        let event = w.driver.event(0).unwrap().unwrap();
        assert_eq!((event.token, event.flags), (first.token, EVENT_AGAIN));
        assert_eq!(w.side.next_ns(), u64::MAX);
    }
}

#[test]
fn an_event_without_room_stays_in_line_and_nobody_waits() {
    let mut w = World::new();
    for n in 0..6 {
        w.side.ask(&w.ask(n << 12)).unwrap();
    }
    w.side.work(0).unwrap();
    assert!(w.side.rest().unwrap(), "there is no room: the engine may sleep");
    w.side.arrive(|_| {}).unwrap();
    // The ring has 4 entries. One that is read makes room for one.
    assert_eq!(w.driver.event(0).unwrap().unwrap().address, 0);
    assert!(!w.side.rest().unwrap(), "there is room");
    w.side.arrive(|_| {}).unwrap();
    w.side.work(0).unwrap();
    for n in 1..5 {
        assert_eq!(w.driver.event(0).unwrap().unwrap().address, n << 12);
    }
    assert_eq!(w.driver.event(0).unwrap(), None);
    w.side.work(0).unwrap();
    assert_eq!(w.driver.event(0).unwrap().unwrap().address, 5 << 12);
}

#[test]
fn ring_indexes_out_of_range_are_errors_and_harm_nobody() {
    let mut w = World::new();
    let at = w.driver.engine_offset(0);
    w.driver.spoil(at + engine::EVENT_HEAD, 9).unwrap();
    w.side.ask(&w.ask(0x1000)).unwrap();
    w.side.work(0).unwrap();
    assert_eq!(
        w.face.problem(),
        Problem { error: error::BAD_EVENT_HEAD, asid: 0, address: BASE + at + engine::EVENT_HEAD }
    );
    assert!(w.side.rest().unwrap());
    w.side.arrive(|_| {}).unwrap();
    w.driver.spoil(at + engine::EVENT_HEAD, 0).unwrap();
    w.side.work(0).unwrap();
    assert!(w.driver.event(0).unwrap().is_some(), "it goes on with a good one");

    w.face.clear();
    w.driver.spoil(at + engine::RESPONSE_TAIL, 9).unwrap();
    assert_eq!(w.side.response(0), Ok(None));
    assert_eq!(w.error(), error::BAD_RESPONSE_TAIL);
    assert_eq!(w.side.response(0), Ok(None));
}

#[test]
fn a_control_block_that_leaves_memory_turns_the_mirror_off() {
    let ram = Arc::new(Ram::new(8 << 20).unwrap());
    // The header fits, and the engine's block does not.
    let base = (8 << 20) - 0x1000;
    ram.write(GuestAddress(base), Driver::<Ram>::small_header(1).as_bytes()).unwrap();
    let face = Arc::new(Face::new(1));
    let mut side = Side::new(0, Arc::clone(&ram), Arc::clone(&face), 2);
    let block = ControlBlock::read(&*ram, base, 1).unwrap();
    side.attach(block);
    assert_eq!(side.arrive(|_| {}), Err(crate::Lost));
    assert!(!side.is_on());
    assert_eq!(face.problem(), Problem { error: error::BLOCK_LOST, asid: 0, address: base });
    assert_eq!((side.translate(ASID, 0), side.rest(), side.response(0)), (None, Ok(true), Ok(None)));
}

#[test]
fn a_saved_side_goes_on_with_its_rings_and_takes_no_old_token() {
    let mut w = World::new();
    let ticket = w.side.ask(&w.ask(0x1000)).unwrap();
    w.side.work(0).unwrap();
    let old = w.driver.event(0).unwrap().unwrap();
    w.side.forget(ticket);
    assert!(w.side.rest().unwrap());
    let state = w.side.save();
    let mut side = Side::new(0, Arc::clone(&w.ram), Arc::clone(&w.face), 6);
    side.restore(&state);
    side.arrive(|_| {}).unwrap();
    side.ask(&w.ask(0x2000)).unwrap();
    side.work(0).unwrap();
    let new = w.driver.event(0).unwrap().unwrap();
    assert_eq!((new.seq, new.address), (2, 0x2000));
    w.driver.respond(0, old.token, response::SUCCESS);
    assert_eq!(side.response(0), Ok(None));
    w.driver.respond(0, new.token, response::SUCCESS);
    assert!(side.response(0).unwrap().is_some());
}

#[test]
fn a_watchdog_sees_the_engines_own_word() {
    let mut w = World::new();
    let face = Arc::clone(&w.face);
    let watch = face.engine(0);
    assert!(watch.is_online());
    let looks = watch.looks();
    w.look();
    assert!(watch.looks() > looks);
    w.driver.post(Invalidation { asid: ASID, last: 1, ..Invalidation::default() }).unwrap();
    assert_eq!(watch.head(), 0);
    w.look();
    assert_eq!(watch.head(), 1);
    assert!(w.side.rest().unwrap() && !watch.is_online());
}
