//! The mirror's control block and page tables: words changed at random, between the steps of an engine and of a driver.
//!
//! Holds: nothing panics, and no step of the engine costs more than the rings are long; a page that is found is
//! aligned; after every look, what the driver posted before it is acknowledged; and a driver that starts again with a
//! clean control block is served.
use std::sync::Arc;

use svadev_memory::{GuestAddress, GuestMemory, Ram};
use svadev_mirror::testing::Driver;
use svadev_mirror::{Ask, ControlBlock, Face, Place, Side, Ticket, Walk};
use svadev_spec::mirror::{ASID_BIT, INVALIDATION_TAIL, Invalidation, TableEntry, engine, response};

use crate::{Input, Seed};

mod op {
    pub(super) const STORE: u8 = 0;
    pub(super) const FLIP: u8 = 1;
    pub(super) const MAP: u8 = 2;
    pub(super) const WALK: u8 = 3;
    pub(super) const POST: u8 = 4;
    pub(super) const LOOK: u8 = 5;
    pub(super) const ASK: u8 = 6;
    pub(super) const WORK: u8 = 7;
    pub(super) const RESPOND: u8 = 8;
    pub(super) const REST: u8 = 9;
    pub(super) const COUNT: u8 = 10;
}

const MEMORY: usize = 256 << 10;
const BLOCK: u64 = 0x1_0000;
const TABLES: u64 = 0x2_0000;
const END: u64 = 0x3_0000;
const WAITS: usize = 6;

struct World {
    ram: Arc<Ram>,
    driver: Driver<Ram>,
    side: Side<Ram>,
    tickets: [Option<Ticket>; WAITS],
    now_ns: u64,
}

pub(super) fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let ram = Arc::new(Ram::new(MEMORY).expect("memory for the world"));
    let driver = Driver::new(Arc::clone(&ram), BLOCK, 1, TABLES, END).expect("it is memory");
    let side = Side::new(0, Arc::clone(&ram), Arc::new(Face::new(1)), WAITS);
    let mut world = World { ram, driver, side, tickets: [None; WAITS], now_ns: 0 };
    for n in 0..2 {
        world.driver.create(ASID_BIT | n, n == 1, 7).expect("it is memory");
    }
    world.attach();
    while !input.is_empty() {
        world.step(&mut input);
    }
    world.ends_well();
}

impl World {
    fn attach(&mut self) {
        if let Ok(block) = ControlBlock::read(&*self.ram, BLOCK, 1) {
            self.side.attach(block);
        }
    }

    fn step(&mut self, input: &mut Input<'_>) {
        match input.below(op::COUNT) {
            op::STORE => {
                let (at, value) = (self.word(input), input.u64());
                self.store(at, value);
            }
            op::FLIP => {
                let (at, bit) = (self.word(input), input.u8() % 64);
                let old = self.ram.load_u64(GuestAddress(at)).expect("it is memory");
                self.store(at, old ^ 1 << bit);
            }
            op::MAP => {
                let (asid, address) = (self.asid(input), u64::from(input.u16()) << 12);
                let size_log2 = input.pick(&[12, 12, 21, 30]);
                let entry = TableEntry::from_bits(input.u64());
                // Tables that were changed at random may lead anywhere.
                let _ = self.driver.map(asid, address, size_log2, entry);
            }
            op::WALK => {
                let (asid, address) = (self.asid(input), input.u64() >> (input.u8() % 64));
                if let Some(Walk::Page(page)) = self.side.translate(asid, address) {
                    let (Place::Guest(svadev_fabric::Gpa(first)) | Place::Device(first)) = page.place;
                    assert!([12, 21, 30].contains(&page.size_log2) && first % (1 << page.size_log2) == 0, "{page:?}");
                }
            }
            op::POST => {
                let (asid, flags) = (self.asid(input), u32::from(input.u8() % 8));
                let (first, last) = (u64::from(input.u16()) << 12, u64::from(input.u16()) << 12);
                let _ = self.driver.post(Invalidation { asid, flags, first, last, reserved: 0 });
            }
            op::LOOK => self.look(),
            op::ASK => {
                let slot = usize::from(input.u8()) % WAITS;
                if let Some(ticket) = self.tickets[slot].take() {
                    self.side.forget(ticket);
                }
                let asid = self.asid(input);
                let ask = Ask { asid, address: input.u64(), length: 1, write: input.flag(), queue: 0, cookie: Some(1) };
                if let Some(ticket) = self.side.ask(&ask) {
                    self.tickets[slot] = Some(ticket);
                }
            }
            op::WORK => {
                self.now_ns += u64::from(input.u8()) * 1_000_000;
                let _ = self.side.work(self.now_ns);
                self.answers();
            }
            op::RESPOND => {
                let event = self.driver.event(0).expect("it is memory");
                let token = if input.flag() { event.map_or(0, |event| event.token) } else { input.u64() };
                self.driver.respond_anyhow(0, token, u32::from(input.u8() % 5));
                self.answers();
            }
            op::REST => {
                let _ = self.side.rest();
                if input.flag() {
                    self.look();
                }
            }
            _ => unreachable!("below the number of operations"),
        }
    }

    /// A word of the control block or of a table.
    fn word(&self, input: &mut Input<'_>) -> u64 {
        let offset = u64::from(input.u16()) & !7;
        let base = input.pick(&[BLOCK, BLOCK + self.driver.engine_offset(0), TABLES]);
        base + offset % 0x4000
    }

    fn store(&self, at: u64, value: u64) {
        self.ram.store_u64(GuestAddress(at), value).expect("it is memory");
    }

    fn asid(&self, input: &mut Input<'_>) -> u32 {
        ASID_BIT | u32::from(input.u8() % 4)
    }

    fn look(&mut self) {
        let mut drops = 0;
        if self.side.look(|_| drops += 1).is_err() || !self.side.is_on() {
            return;
        }
        assert!(drops <= 8, "{drops} drops of a ring of 8 entries");
        let load = |offset| self.ram.load_u64(GuestAddress(BLOCK + offset)).expect("it is memory");
        let head = load(self.driver.engine_offset(0) + engine::INVALIDATION_HEAD);
        // Nobody else runs: the head is the tail, unless the head itself was changed since.
        if drops > 0 {
            assert_eq!(head, load(INVALIDATION_TAIL), "it is acknowledged");
        }
    }

    fn answers(&mut self) {
        let mut answers = 0;
        while let Ok(Some(answer)) = self.side.response(self.now_ns) {
            let ticket = self.tickets.iter_mut().find(|ticket| ticket.is_some_and(|t| t.slot() == answer.slot));
            assert!(ticket.is_some_and(|ticket| ticket.take().is_some()), "an answer for nobody");
            answers += 1;
            assert!(answers <= WAITS, "more answers than waits");
        }
    }

    /// With a clean control block, all is well again.
    fn ends_well(&mut self) {
        for ticket in self.tickets.iter_mut().filter_map(Option::take) {
            self.side.forget(ticket);
        }
        self.side.detach(false);
        let mut driver = Driver::new(Arc::clone(&self.ram), BLOCK, 1, TABLES, END).expect("it is memory");
        driver.create(ASID_BIT, false, 1).expect("it is memory");
        self.attach();
        self.look();
        let ask = Ask { asid: ASID_BIT, address: 0x5000, length: 1, write: false, queue: 0, cookie: None };
        let ticket = self.side.ask(&ask).expect("there is such an address space");
        self.side.work(self.now_ns).expect("it is memory");
        let event = driver.event(0).expect("it is memory").expect("an event");
        driver.map(ASID_BIT, 0x5000, 12, TableEntry::new().with_frame(5)).expect("it is memory");
        driver.respond(0, event.token, response::SUCCESS);
        let answer = self.side.response(self.now_ns).expect("it is memory").expect("an answer");
        assert_eq!(answer.slot, ticket.slot());
        assert!(matches!(self.side.translate(ASID_BIT, 0x5000), Some(Walk::Page(_))));
    }
}

pub(super) fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let fault = Seed::new().bytes(&[op::LOOK, op::ASK, 0, 0]).bytes(&0x5000u64.to_le_bytes()).bytes(&[
        1,
        op::WORK,
        0,
        op::RESPOND,
        1,
        3,
        op::WORK,
        1,
        op::RESPOND,
        1,
        0,
        op::REST,
        1,
    ]);
    let tables = Seed::new()
        .bytes(&[op::MAP, 0, 5, 0, 0])
        .bytes(&0x7003u64.to_le_bytes())
        .bytes(&[op::WALK, 0])
        .bytes(&0x5000u64.to_le_bytes())
        .bytes(&[0, op::STORE, 0, 0, 2])
        .bytes(&0x2_0003u64.to_le_bytes())
        .bytes(&[op::WALK, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    let ring = (0..9).fold(Seed::new().bytes(&[op::LOOK]), |seed, n| seed.bytes(&[op::POST, 0, 0, n, 0, n, 0]));
    vec![
        ("fault", fault.done()),
        ("tables", tables.done()),
        ("overrun", ring.bytes(&[op::LOOK, op::FLIP, 0x80, 0, 0, 63, op::LOOK, op::REST, 1]).done()),
    ]
}
