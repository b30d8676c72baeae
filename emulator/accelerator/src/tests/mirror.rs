//! Mirror mode: a test plays the guest's driver, beside an IOMMU that has spaces of its own.
use std::sync::Arc;

use svadev_fabric::Pasid;
use svadev_memory::{GuestAddress, GuestMemory};
use svadev_mirror::testing::Driver;
use svadev_spec::device::{Code, Completion, Descriptor, DescriptorFlags, FaultFlags, command, opcode, regs};
use svadev_spec::mirror::{
    ASID_BIT, EVENT_AGAIN, EVENT_RING, Event, Invalidation, Status, TableEntry, access, error, regs as mirror, response,
};
use svadev_spec::pcie::header;

use super::world::*;

const ASID: u32 = ASID_BIT | 3;
const BASE: u64 = 0x200_0000;
const TABLES: u64 = 0x210_0000;
const END: u64 = 0x240_0000;
const SRC: u64 = 0x5000_0000;
const DST: u64 = 0x6000_0000;
const SRC_GPA: u64 = 0x100_0000;
const DST_GPA: u64 = 0x180_0000;
const PAGE: u64 = 0x1000;
const MS: u64 = 1_000_000;

fn asid() -> Pasid {
    pasid(ASID)
}

fn page(gpa: u64) -> TableEntry {
    TableEntry::new().with_frame(gpa >> 12).with_writable(true)
}

struct Mirror {
    w: World,
    driver: Driver<Memory>,
}

impl Mirror {
    fn new() -> Self {
        let mut w = World::with(|settings| settings.page_request_timeout_ns = 1000 * MS);
        w.enable(0, 6, None);
        let mut driver = Driver::new(Arc::clone(&w.memory), BASE, 1, TABLES, END).unwrap();
        driver.create(ASID, false, 9).unwrap();
        let mut new = Self { w, driver };
        new.turn_on();
        new
    }

    fn turn_on(&mut self) {
        self.w.write64(mirror::BASE, BASE);
        self.w.write32(mirror::VECTOR, 1 << 31 | 3);
        self.w.write32(mirror::CONTROL, 1);
        assert_eq!(self.status(), Status::new().with_enabled(true));
        self.w.settle();
    }

    fn status(&mut self) -> Status {
        Status::from_bits(self.w.read32(mirror::STATUS))
    }

    fn map(&mut self, address: u64, gpa: u64, len: u64) {
        for at in (0..len).step_by(0x1000) {
            self.driver.map(ASID, address + at, 12, page(gpa + at)).unwrap();
        }
    }

    fn event(&mut self) -> Event {
        self.driver.event(0).unwrap().expect("an event")
    }

    fn answer(&mut self, event: &Event, code: u32) -> Vec<Completion> {
        if self.driver.respond(0, event.token, code).unwrap() {
            self.w.write32(mirror::KICK, 0);
        }
        self.w.settle();
        self.w.reap(0)
    }

    fn interrupts(&self) -> Vec<u16> {
        std::mem::take(&mut *self.w.ports.interrupts.lock().unwrap())
    }
}

fn copy(cookie: u64, page: u64, length: u64) -> Descriptor {
    let (src, dst) = (SRC + page * PAGE, DST + page * PAGE);
    for_process(asid(), Descriptor { opcode: opcode::COPY, cookie, src, dst, length, ..Default::default() })
}

const READ_AT: u8 = FaultFlags::ADDRESS_VALID.bits();

#[test]
fn an_asid_is_translated_by_the_driver_and_a_pasid_by_the_iommu() {
    let mut m = Mirror::new();
    m.map(SRC, SRC_GPA, PAGE);
    m.map(DST, DST_GPA, PAGE);
    m.w.map(Some(pasid(3)), SRC, SRC_GPA + 0x10_0000, PAGE);
    m.w.map(Some(pasid(3)), DST, DST_GPA + 0x10_0000, PAGE);
    m.w.write(SRC_GPA, &noise(1, 0x1000));
    m.w.write(SRC_GPA + 0x10_0000, &noise(2, 0x1000));
    let other = Descriptor { cookie: 2, ..for_process(pasid(3), copy(0, 0, PAGE)) };
    let done = m.w.run(0, &[copy(1, 0, PAGE), other]);
    assert_eq!(done.iter().map(code).collect::<Vec<_>>(), [Code::Success, Code::Success]);
    assert_eq!(m.w.read(DST_GPA, 0x1000), noise(1, 0x1000));
    assert_eq!(m.w.read(DST_GPA + 0x10_0000, 0x1000), noise(2, 0x1000));
    assert!(m.w.mmu.translated().iter().all(|request| request.pasid != Some(asid())));
}

#[test]
fn a_missing_page_is_an_event_and_a_response_resumes_where_it_was() {
    let mut m = Mirror::new();
    m.map(SRC, SRC_GPA, 2 * PAGE);
    m.map(DST, DST_GPA, PAGE);
    m.w.write(SRC_GPA, &noise(1, 0x2000));
    assert!(m.w.run(0, &[copy(7, 0, 2 * PAGE)]).is_empty());
    assert_eq!(m.interrupts(), [3]);
    let event = m.event();
    assert_eq!((event.address, event.length, event.asid, event.generation), (DST + PAGE, PAGE, ASID, 9));
    assert_eq!((event.access, event.cookie, event.queue, event.flags), (access::WRITE, 7, 0, 0));
    m.map(DST + PAGE, DST_GPA + PAGE, PAGE);
    let done = m.answer(&event, response::SUCCESS);
    assert_eq!((code(&done[0]), done[0].bytes_done), (Code::Success, 2 * PAGE));
    assert_eq!(m.w.read(DST_GPA, 0x2000), noise(1, 0x2000));
    assert!(m.w.mmu.requests().is_empty(), "no page request");
}

#[test]
fn each_response_has_its_code() {
    for (answer, expected) in [
        (response::INVALID, Code::PageFault),
        (response::FAILURE, Code::PageRequestFailed),
        (77, Code::PageRequestFailed),
    ] {
        let mut m = Mirror::new();
        m.map(DST, DST_GPA, PAGE);
        m.w.submit(0, &[copy(1, 0, PAGE)]);
        m.w.settle();
        let event = m.event();
        let done = m.answer(&event, answer);
        assert_eq!((code(&done[0]), done[0].result, done[0].fault), (expected, SRC, READ_AT));
    }
    let mut m = Mirror::new();
    let stop = Descriptor { flags: DescriptorFlags::STOP_ON_FAULT.bits(), ..copy(1, 0, PAGE) };
    assert_eq!(code(&m.w.run_one(0, stop)), Code::PageFault);
    assert_eq!(m.driver.event(0).unwrap(), None);
}

#[test]
fn again_is_asked_again_and_the_time_limit_runs_on() {
    let mut m = Mirror::new();
    m.map(DST, DST_GPA, PAGE);
    m.w.submit(0, &[copy(1, 0, PAGE)]);
    m.w.settle();
    let first = m.event();
    let start = m.w.now;
    let mut event = first;
    let mut pauses = 0;
    loop {
        assert!(m.answer(&event, response::AGAIN).is_empty());
        m.w.now += (1 << pauses.min(6)) * MS;
        pauses += 1;
        m.w.settle();
        let Some(again) = m.driver.event(0).unwrap() else { break };
        assert_eq!((again.token, again.flags), (first.token, EVENT_AGAIN));
        event = again;
    }
    assert!((1000 * MS..1064 * MS).contains(&(m.w.now - start)), "{}", m.w.now - start);
    let done = m.w.reap(0);
    assert_eq!((code(&done[0]), done[0].result), (Code::PageRequestTimeout, SRC));
}

#[test]
fn a_page_that_is_served_and_never_there_is_a_fault_in_the_end() {
    let mut m = Mirror::new();
    m.map(DST, DST_GPA, PAGE);
    m.w.submit(0, &[copy(1, 0, PAGE)]);
    m.w.settle();
    for n in 0..200 {
        let Some(event) = m.driver.event(0).unwrap() else { panic!("{n}: neither an event nor an end") };
        m.w.now += 50 * MS;
        if let Some(done) = m.answer(&event, response::SUCCESS).first() {
            assert_eq!((code(done), done.result), (Code::PageFault, SRC));
            return;
        }
    }
    panic!("it asks for ever");
}

#[test]
fn after_an_acknowledgement_nothing_is_used_that_was_taken_out() {
    let mut m = Mirror::new();
    m.map(SRC, SRC_GPA, PAGE);
    m.map(DST, DST_GPA, PAGE);
    m.w.write(SRC_GPA, &[1; 64]);
    m.w.run_one(0, copy(1, 0, 64));
    // The page goes elsewhere. The engine has it in its device TLB.
    let mut wait = m.driver.invalidate(ASID, SRC, SRC + PAGE - 1).unwrap();
    assert_eq!(wait.engines(), [0], "the engine is online");
    m.driver.set_waiters(1);
    m.interrupts();
    m.w.step();
    assert!(m.driver.is_over(&mut wait));
    assert_eq!(m.interrupts(), [3], "somebody slept");
    m.driver.set_waiters(0);
    m.w.write(SRC_GPA + PAGE, &[2; 64]);
    m.map(SRC, SRC_GPA + PAGE, PAGE);
    m.w.run_one(0, copy(2, 0, 64));
    assert_eq!(m.w.read(DST_GPA, 64), [2; 64]);
    // A right that is taken away.
    m.driver.invalidate(ASID, DST, DST + PAGE - 1).unwrap();
    m.driver.map(ASID, DST, 12, page(DST_GPA).with_writable(false)).unwrap();
    assert!(m.w.run(0, &[copy(3, 0, 64)]).is_empty());
    assert_eq!(m.event().access, access::WRITE);
}

#[test]
fn an_engine_that_sleeps_is_not_waited_for() {
    let mut m = Mirror::new();
    m.map(SRC, SRC_GPA, PAGE);
    m.map(DST, DST_GPA, PAGE);
    m.w.run_one(0, copy(1, 0, 64));
    m.w.settle();
    assert!(m.w.engines[0].park());
    assert!(m.driver.invalidate(ASID, SRC, SRC + PAGE - 1).unwrap().engines().is_empty());
    assert!(m.w.run(0, &[copy(2, 0, 64)]).is_empty());
    assert_eq!(m.event().address, SRC);
    // One that the driver has found online looks once more before it sleeps.
    m.w.settle();
    m.driver.post(Invalidation { asid: ASID, last: 1, ..Invalidation::default() }).unwrap();
    assert!(!m.w.engines[0].park());
}

#[test]
fn a_response_wakes_an_engine_that_sleeps() {
    let mut m = Mirror::new();
    m.map(DST, DST_GPA, PAGE);
    m.w.submit(0, &[copy(1, 0, 64)]);
    m.w.settle();
    assert!(m.w.engines[0].park());
    let event = m.event();
    m.map(SRC, SRC_GPA, PAGE);
    assert_eq!(m.driver.respond(0, event.token, response::SUCCESS), Some(true), "offline: kick it");
    let wakes = m.w.ports.wakes.load(std::sync::atomic::Ordering::Relaxed);
    m.w.write32(mirror::KICK, 0);
    assert_eq!(m.w.ports.wakes.load(std::sync::atomic::Ordering::Relaxed), wakes + 1);
    m.w.settle();
    assert_eq!(code(&m.w.reap(0)[0]), Code::Success);
}

#[test]
fn an_abort_of_an_asid_waits_for_no_answer_and_late_ones_are_stale() {
    let mut m = Mirror::new();
    m.map(DST, DST_GPA, PAGE);
    m.w.submit(0, &[copy(1, 0, 64)]);
    m.w.settle();
    let event = m.event();
    m.w.write64(regs::COMMAND, u64::from(command::ABORT_PASID) | u64::from(ASID) << 32);
    m.w.settle();
    assert_eq!(m.w.read32(regs::COMMAND_STATUS), 0, "over");
    assert_eq!(code(&m.w.reap(0)[0]), Code::Aborted);
    m.w.submit(0, &[copy(2, 0, 64)]);
    m.w.settle();
    let second = m.event();
    assert!(m.answer(&event, response::INVALID).is_empty(), "the answer to the first one");
    m.map(SRC, SRC_GPA, PAGE);
    assert_eq!(code(&m.answer(&second, response::SUCCESS)[0]), Code::Success);
}

#[test]
fn turning_it_off_ends_what_waits_and_leaves_the_control_block_alone() {
    let mut m = Mirror::new();
    m.map(DST, DST_GPA, PAGE);
    m.map(SRC + PAGE, SRC_GPA, PAGE);
    m.map(DST + PAGE, DST_GPA, PAGE);
    m.w.run_one(0, copy(1, 1, 64));
    m.w.submit(0, &[copy(2, 0, 64)]);
    m.w.settle();
    m.w.write32(mirror::CONTROL, 0);
    assert_eq!(m.status(), Status::new().with_busy(true));
    m.w.write64(mirror::BASE, 0x1000);
    assert_eq!(m.w.read64(mirror::BASE), BASE, "read-only while it is busy");
    m.w.settle();
    assert_eq!(m.status(), Status::new());
    assert_eq!(code(&m.w.reap(0)[0]), Code::TranslationBlocked);
    let block = |m: &Mirror| m.w.read(BASE, 0x4000);
    let before = block(&m);
    assert_eq!(code(&m.w.run_one(0, copy(3, 1, 64))), Code::TranslationBlocked, "the device TLB forgot it");
    assert!(m.w.engines[0].park());
    assert_eq!(block(&m), before);
    // On again: rings begin at 0, and what was mapped still is.
    m.driver.restart().unwrap();
    m.turn_on();
    assert_eq!(code(&m.w.run_one(0, copy(4, 1, 64))), Code::Success);
    m.w.submit(0, &[copy(5, 0, 64)]);
    m.w.settle();
    assert_eq!(m.event().seq, 1);
}

#[test]
fn a_reset_turns_it_off_and_writes_nothing() {
    let mut m = Mirror::new();
    m.w.submit(0, &[copy(2, 0, 64)]);
    m.w.settle();
    let before = m.w.read(BASE, 0x4000);
    m.w.function.reset();
    m.w.settle();
    assert_eq!(m.w.read(BASE, 0x4000), before);
    assert_eq!((m.status(), m.w.read64(mirror::BASE), m.w.read32(mirror::VECTOR)), (Status::new(), 0, 0));
    m.w.configure();
    m.w.rings.fill(Ring::default());
    m.w.enable(0, 6, None);
    assert_eq!(code(&m.w.run_one(0, copy(3, 0, 64))), Code::TranslationBlocked);
}

#[test]
fn without_bus_mastering_the_control_block_is_out_of_reach() {
    let mut m = Mirror::new();
    m.map(SRC, SRC_GPA, PAGE);
    m.map(DST, DST_GPA, PAGE);
    m.w.run_one(0, copy(1, 0, 64));
    let _ = m.w.function.config_write(header::COMMAND.into(), &2u16.to_le_bytes());
    m.driver.invalidate(ASID, SRC, SRC + PAGE - 1).unwrap();
    let before = m.w.read(BASE, 0x4000);
    m.w.settle();
    assert!(m.w.engines[0].park());
    assert_eq!(m.w.read(BASE, 0x4000), before);
    let _ = m.w.function.config_write(header::COMMAND.into(), &6u16.to_le_bytes());
    m.w.submit(0, &[copy(2, 0, 64)]);
    m.w.settle();
    assert_eq!(m.event().address, SRC, "what was posted meanwhile is dropped");
    // It cannot be turned on without, either.
    m.w.write32(mirror::CONTROL, 0);
    m.w.settle();
    let _ = m.w.function.config_write(header::COMMAND.into(), &2u16.to_le_bytes());
    m.w.write32(mirror::CONTROL, 1);
    assert_eq!(m.status(), Status::new().with_error(error::BAD_HEADER));
}

#[test]
fn what_is_wrong_with_tables_ends_the_descriptor_and_is_in_registers() {
    for (entry, expected) in [
        (page(0x7f_0000_0000), error::BAD_FRAME),
        (page(0x1000).with_device(true), error::BAD_FRAME),
        (TableEntry::from_bits(1 << 2 | SRC_GPA), error::BAD_ENTRY),
    ] {
        let mut m = Mirror::new();
        m.map(DST, DST_GPA, PAGE);
        m.driver.map(ASID, SRC, 12, entry).unwrap();
        let done = m.w.run_one(0, copy(1, 0, 64));
        assert_eq!((code(&done), done.result, done.fault), (Code::MemoryError, SRC, READ_AT));
        assert_eq!(m.status(), Status::new().with_enabled(true).with_error(expected));
        assert_eq!((m.w.read32(mirror::ERROR_ASID), m.w.read64(mirror::ERROR_ADDRESS)), (ASID, SRC));
        // Everybody else is served, and the next one too.
        m.w.map(Some(pasid(3)), SRC, SRC_GPA, PAGE);
        m.w.map(Some(pasid(3)), DST, DST_GPA, PAGE);
        assert_eq!(code(&m.w.run_one(0, for_process(pasid(3), copy(2, 0, 64)))), Code::Success);
        m.map(SRC, SRC_GPA, PAGE);
        assert_eq!(code(&m.w.run_one(0, copy(3, 0, 64))), Code::Success);
    }
}

#[test]
fn a_bad_header_is_refused_with_its_address() {
    let mut m = Mirror::new();
    m.w.write32(mirror::CONTROL, 0);
    m.w.settle();
    for (base, vector) in [(0x123_4000, 0), (BASE + 0x800, 0), (RAM, 0), (BASE, 4), (BASE, 1 << 8)] {
        m.w.write64(mirror::BASE, base);
        m.w.write32(mirror::VECTOR, vector);
        m.w.write32(mirror::CONTROL, 1);
        assert_eq!(m.status(), Status::new().with_error(error::BAD_HEADER), "{base:x} {vector:x}");
        assert_eq!((m.w.read32(mirror::ERROR_ASID), m.w.read64(mirror::ERROR_ADDRESS)), (0, base));
    }
    m.driver.restart().unwrap();
    m.turn_on();
    assert_eq!(m.status().error(), error::NONE, "a good one clears it");
    // Changes of the header mean nothing now.
    m.driver.spoil(0, 0).unwrap();
    m.driver.spoil(8, u64::MAX).unwrap();
    m.w.submit(0, &[copy(1, 0, 64)]);
    m.w.settle();
    assert_eq!(m.event().address, SRC);
}

#[test]
fn a_user_queue_of_an_asid_has_its_rings_in_the_mirror() {
    let mut m = Mirror::new();
    m.w.enable(1, 4, Some(asid()));
    let (sq, cq) = (World::sq_base(1), World::cq_base(1));
    let none = Descriptor { cookie: 5, ..Descriptor::default() };
    m.w.submit(1, &[none]);
    m.w.settle();
    let event = m.event();
    assert_eq!((event.address, event.flags, event.queue, event.access), (sq, EVENT_RING, 1, access::READ));
    m.map(sq & !0xfff, sq & !0xfff, PAGE);
    m.answer(&event, response::SUCCESS);
    let event = m.event();
    assert_eq!((event.address, event.flags, event.access), (cq, EVENT_RING, access::WRITE));
    m.map(cq & !0xfff, cq & !0xfff, PAGE);
    m.answer(&event, response::SUCCESS);
    assert_eq!(m.w.reap(1).iter().map(|c| c.cookie).collect::<Vec<_>>(), [5]);
}

#[test]
fn a_flood_of_faults_loses_none() {
    let mut m = Mirror::new();
    m.map(DST, DST_GPA, 64 * PAGE);
    // The event ring holds 4, the response ring 8, and the queue has 64 jobs.
    let copies: Vec<_> = (0..60).map(|n| copy(n, n, 64)).collect();
    m.w.submit(0, &copies);
    m.w.settle();
    let mut done = Vec::new();
    while done.len() < copies.len() {
        let event = m.event();
        m.map(event.address, SRC_GPA + (event.address - SRC), PAGE);
        done.extend(m.answer(&event, response::SUCCESS));
    }
    assert!(done.iter().all(|completion| code(completion) == Code::Success));
    assert_eq!(m.driver.event(0).unwrap(), None);
}

#[test]
fn a_function_that_is_saved_goes_on_with_its_mirror() {
    let mut m = Mirror::new();
    m.map(DST, DST_GPA, PAGE);
    m.w.write(SRC_GPA, &noise(1, 64));
    m.w.submit(0, &[copy(1, 0, 64)]);
    m.w.settle();
    let old = m.event();
    m.w.function.pause(&mut m.w.engines, m.w.now);
    assert!(m.driver.invalidate(ASID, DST, DST).unwrap().engines().is_empty(), "a paused engine is offline");
    m.map(DST, DST_GPA, PAGE);
    let state = m.w.function.save(&m.w.engines);
    m.w.replace();
    m.w.function.restore(&mut m.w.engines, &state);
    m.w.settle();
    assert_eq!(m.status(), Status::new().with_enabled(true));
    let new = m.event();
    assert_eq!((new.address, new.seq), (SRC, 2), "it asks again");
    assert!(m.answer(&old, response::SUCCESS).is_empty(), "a token of before is stale");
    m.map(SRC, SRC_GPA, PAGE);
    assert_eq!(code(&m.answer(&new, response::SUCCESS)[0]), Code::Success);
    assert_eq!(m.w.read(DST_GPA, 64), noise(1, 64));
}

#[test]
fn memory_that_leaves_the_map_is_left_by_the_mirror_too() {
    let mut m = Mirror::new();
    m.map(SRC, SRC_GPA, PAGE);
    m.map(DST, DST_GPA, PAGE);
    m.w.run_one(0, copy(1, 0, 64));
    let _pending = m.w.shared().memory_changed(7);
    m.w.step();
    assert_eq!(*m.w.ports.released.lock().unwrap(), [7]);
    m.w.memory.ram.store_u64(GuestAddress(BASE + 0x2000), 0).unwrap();
    assert_eq!(code(&m.w.run_one(0, copy(2, 0, 64))), Code::Success);
}
