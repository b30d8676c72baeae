//! Missing pages: parking, policies, answers of every kind, and what happens when none comes.
use svadev_fabric::{Pasid, PrgIndex, ResponseCode};
use svadev_spec::device::{Code, Completion, Descriptor, DescriptorFlags, FaultFlags, ScatterEntry, opcode};
use svadev_spec::pcie::{self, extended_capability, header};
use zerocopy::IntoBytes;

use super::world::*;

const P: u32 = 5;
const SRC: u64 = 0x5000_0000;
const DST: u64 = 0x6000_0000;
const SRC_GPA: u64 = 0x100_0000;
const DST_GPA: u64 = 0x180_0000;
const PAGE: u64 = 0x1000;

fn space() -> Option<Pasid> {
    Some(pasid(P))
}

/// A kernel queue; destination mapped, sources not.
fn world_with(change: impl FnOnce(&mut crate::FunctionSettings)) -> World {
    let mut w = World::with(change);
    w.enable(0, 8, None);
    w.map(space(), DST, DST_GPA, 64 * PAGE);
    w
}

fn world() -> World {
    world_with(|_| ())
}

fn copy(cookie: u64, page: u64, length: u64) -> Descriptor {
    let (src, dst) = (SRC + page * PAGE, DST + page * PAGE);
    for_process(pasid(P), Descriptor { opcode: opcode::COPY, cookie, src, dst, length, ..Default::default() })
}

fn map_source(w: &World, page: u64) {
    w.mmu.map(space(), SRC + page * PAGE, 12, Page::rw(SRC_GPA + page * PAGE));
}

fn summary(c: &Completion) -> (Code, u64, u64, u8) {
    (code(c), c.bytes_done, c.result, c.fault)
}

const READ_AT: u8 = FaultFlags::ADDRESS_VALID.bits();

#[test]
fn a_parked_descriptor_lets_others_pass_and_resumes_where_it_was() {
    let mut w = world();
    map_source(&w, 0);
    w.write(SRC_GPA, &noise(1, 0x2000));
    let done = w.run(0, &[copy(1, 0, 0x2000), copy(2, 0, 64), Descriptor { cookie: 3, ..Default::default() }]);
    assert_eq!(done.iter().map(|c| c.cookie).collect::<Vec<_>>(), [2, 3]);
    let asked = w.mmu.requests();
    assert_eq!(asked.len(), 1);
    assert_eq!((asked[0].iova.0, asked[0].pasid, asked[0].last), (SRC + PAGE, space(), true));
    assert!(asked[0].access.read && !asked[0].access.write);
    map_source(&w, 1);
    w.mmu.respond(asked[0].prg_index, ResponseCode::Success);
    w.settle();
    let done = w.reap(0);
    assert_eq!(summary(&done[0]), (Code::Success, 0x2000, 0, 0));
    assert!(w.read(DST_GPA, 0x2000) == noise(1, 0x2000));
}

#[test]
fn an_invalid_page_fails_with_its_address_and_what_was_done() {
    let mut w = world();
    map_source(&w, 0);
    w.submit(0, &[copy(1, 0, 0x1800)]);
    w.settle();
    w.mmu.respond(w.last_group(), ResponseCode::InvalidRequest);
    w.settle();
    assert_eq!(summary(&w.reap(0)[0]), (Code::PageFault, PAGE, SRC + PAGE, READ_AT));
}

#[test]
fn stop_on_fault_asks_for_nothing() {
    let mut w = world();
    map_source(&w, 0);
    let stop = Descriptor { flags: DescriptorFlags::STOP_ON_FAULT.bits(), ..copy(1, 0, 0x1800) };
    assert_eq!(summary(&w.run_one(0, stop)), (Code::PageFault, PAGE, SRC + PAGE, READ_AT));
    assert!(w.mmu.requests().is_empty());
    map_source(&w, 1);
    assert_eq!(code(&w.run_one(0, stop)), Code::Success);
}

#[test]
fn a_failure_response_stops_page_requests_until_they_are_enabled_again() {
    let mut w = world();
    w.submit(0, &[copy(1, 0, 64), copy(2, 1, 64)]);
    w.settle();
    let groups = w.mmu.requests();
    assert_eq!(groups.len(), 2);
    w.mmu.respond(groups[0].prg_index, ResponseCode::Failure);
    w.settle();
    assert_eq!(summary(&w.reap(0)[0]), (Code::PageRequestFailed, 0, SRC, READ_AT));
    assert_eq!(code(&w.run_one(0, copy(3, 2, 64))), Code::PageRequestFailed, "none is sent any more");
    // RF is bit 0 of the PRI status register (PCIe 6.0 §10.5.2.3).
    let status = w.capability(extended_capability::PRI) + u64::from(pcie::pri::STATUS);
    let mut word = [0; 2];
    w.function.config_read(status, &mut word);
    assert_eq!(word[0] & 1, 1);
    let _ = w.function.config_write(status, &1u16.to_le_bytes());
    w.function.config_read(status, &mut word);
    assert_eq!(word[0] & 1, 0, "cleared, and not shown again");
    // The other group was sent before and is answered.
    map_source(&w, 1);
    w.mmu.respond(groups[1].prg_index, ResponseCode::Success);
    w.settle();
    assert_eq!(code(&w.reap(0)[0]), Code::Success);
    w.set_allocation(8);
    w.submit(0, &[copy(4, 4, 64)]);
    w.settle();
    assert_eq!(w.mmu.requests().len(), 1, "sent again");
}

#[test]
fn no_answer_in_time_is_an_error_and_a_late_one_is_absorbed() {
    let mut w = world();
    w.submit(0, &[copy(1, 0, 64)]);
    w.settle();
    let index = w.last_group();
    assert_eq!(w.engines[0].run(w.now), crate::Progress::Idle { until_ns: Some(w.now + TIMEOUT) });
    w.now += TIMEOUT - 1;
    w.settle();
    assert!(w.reap(0).is_empty());
    w.now += 1;
    w.settle();
    assert_eq!(summary(&w.reap(0)[0]), (Code::PageRequestTimeout, 0, SRC, READ_AT));
    // All other indices are used before the one whose answer is still to come; it is never among them.
    w.mmu.set_kernel(Kernel::Serve);
    for n in 0..600 {
        w.mmu.map_lazily(space(), SRC, Page::rw(SRC_GPA));
        assert_eq!(code(&w.run_one(0, copy(n, 0, 64))), Code::Success);
        w.mmu.unmap(space(), SRC, 12);
        let _ = w.invalidate(n, space(), SRC, 12);
    }
    assert_eq!(w.function.shared().counters().groups, 601);
    w.mmu.send(index, space(), ResponseCode::InvalidRequest);
    w.settle();
    assert!(w.reap(0).is_empty());
}

#[test]
fn an_outstanding_index_is_not_taken_again() {
    let mut w = world();
    w.submit(0, &[copy(1, 0, 64)]);
    w.settle();
    let late = w.last_group();
    w.now += TIMEOUT;
    w.settle();
    w.reap(0);
    // Twice around all indices.
    for n in 0..2 * PrgIndex::COUNT as u64 {
        w.submit(0, &[copy(n, 1, 64)]);
        w.settle();
        let group = w.last_group();
        assert_ne!(group, late, "after {n} others");
        w.mmu.respond(group, ResponseCode::InvalidRequest);
        w.settle();
        assert_eq!(code(&w.reap(0)[0]), Code::PageFault);
    }
}

#[test]
fn a_dropped_request_is_asked_for_again_until_time_is_up() {
    let mut w = world();
    w.mmu.set_kernel(Kernel::Drop);
    w.submit(0, &[copy(1, 0, 64)]);
    w.settle();
    w.now += TIMEOUT / 8;
    w.mmu.map_lazily(space(), SRC, Page::rw(SRC_GPA));
    w.mmu.set_kernel(Kernel::Serve);
    w.settle();
    assert_eq!(code(&w.reap(0)[0]), Code::Success, "the queue was enabled meanwhile");
    w.mmu.set_kernel(Kernel::Drop);
    w.submit(0, &[copy(2, 1, 64)]);
    let start = w.now;
    let mut waited = 0;
    while w.reap(0).is_empty() {
        w.settle();
        w.now += TIMEOUT / 32;
        waited = w.now - start;
        assert!(waited <= 2 * TIMEOUT, "it must end");
    }
    assert!(waited >= TIMEOUT);
    assert!(w.function.shared().counters().page_requests_dropped > 4);
}

#[test]
fn a_right_that_grows_without_invalidation_is_noticed() {
    let mut w = world();
    map_source(&w, 0);
    w.mmu.map(space(), DST, 12, Page::ro(DST_GPA));
    let read = for_process(pasid(P), Descriptor { opcode: opcode::CRC32C, src: DST, length: 64, ..Default::default() });
    assert_eq!(code(&w.run_one(0, read)), Code::Success, "read-only is enough to read, and is cached now");
    w.submit(0, &[copy(1, 0, 64)]);
    w.settle();
    let asked = w.mmu.requests();
    assert!(asked[0].access.write && asked[0].iova.0 == DST);
    w.mmu.map(space(), DST, 12, Page::rw(DST_GPA));
    w.mmu.respond(asked[0].prg_index, ResponseCode::Success);
    w.settle();
    assert_eq!(code(&w.reap(0)[0]), Code::Success);
}

#[test]
fn success_that_never_comes_true_ends() {
    let mut w = world();
    w.mmu.set_kernel(Kernel::Lie);
    w.submit(0, &[copy(1, 0, 64)]);
    for _ in 0..99 {
        w.step();
        w.now += TIMEOUT / 100;
    }
    assert!(w.reap(0).is_empty(), "a page may be served and gone again for as long as a page request may take");
    for _ in 0..9 {
        w.step();
        w.now += TIMEOUT / 100;
    }
    assert_eq!(summary(&w.reap(0)[0]), (Code::PageFault, 0, SRC, READ_AT));
    assert!(w.function.shared().counters().groups > 16);
}

#[test]
fn a_page_that_is_dropped_again_and_again_is_no_fault() {
    let mut w = world();
    w.mmu.set_kernel(Kernel::Lie);
    w.submit(0, &[copy(1, 0, 64)]);
    for _ in 0..50 {
        w.step();
    }
    map_source(&w, 0);
    w.mmu.map(space(), DST, 12, Page::rw(DST_GPA));
    for _ in 0..9 {
        w.step();
    }
    assert_eq!(code(&w.reap(0)[0]), Code::Success);
}

#[test]
fn several_missing_pages_are_asked_for_together() {
    let mut w = world_with(|s| s.group_pages = 8);
    w.mmu.set_kernel(Kernel::Serve);
    for page in 0..20 {
        w.mmu.map_lazily(space(), SRC + page * PAGE, Page::rw(SRC_GPA + page * PAGE));
    }
    map_source(&w, 2);
    w.write(SRC_GPA, &noise(2, 20 * 0x1000));
    let c = w.run_one(0, copy(1, 0, 20 * PAGE));
    assert_eq!(summary(&c), (Code::Success, 20 * PAGE, 0, 0));
    assert!(w.read(DST_GPA, 20 * 0x1000) == noise(2, 20 * 0x1000));
    let counters = w.function.shared().counters();
    assert_eq!((counters.groups, counters.page_requests), (3, 19), "the page that is there is not asked for");
}

#[test]
fn a_page_that_is_asked_for_ahead_does_not_fail_the_work_early() {
    let mut w = world_with(|s| s.group_pages = 8);
    w.mmu.set_kernel(Kernel::Serve);
    for page in 0..3 {
        w.mmu.map_lazily(space(), SRC + page * PAGE, Page::rw(SRC_GPA));
    }
    let c = w.run_one(0, copy(1, 0, 8 * PAGE));
    assert_eq!(summary(&c), (Code::PageFault, 3 * PAGE, SRC + 3 * PAGE, READ_AT), "three pages were there");
}

#[test]
fn a_group_stays_within_the_operand() {
    let mut w = world_with(|s| s.group_pages = 8);
    w.submit(0, &[copy(1, 0, 2 * PAGE + 1)]);
    w.settle();
    let asked = w.mmu.requests();
    assert_eq!(asked.iter().map(|r| r.iova.0).collect::<Vec<_>>(), [SRC, SRC + PAGE, SRC + 2 * PAGE]);
    assert_eq!(asked.iter().map(|r| r.last).collect::<Vec<_>>(), [false, false, true]);
}

#[test]
fn the_allocation_is_a_limit_and_the_line_moves() {
    let mut w = world_with(|s| (s.engines, s.group_pages) = (2, 8));
    w.enable(1, 8, None);
    w.set_allocation(3);
    for page in 0..10 {
        w.submit(usize::try_from(page % 2).unwrap(), &[copy(page, page, 64)]);
    }
    let mut completed = 0;
    while completed < 10 {
        w.settle();
        let asked = w.mmu.requests();
        assert!((1..=3).contains(&asked.len()), "{} outstanding", asked.len());
        let page = (asked[0].iova.0 - SRC) / PAGE;
        map_source(&w, page);
        w.mmu.respond(asked[0].prg_index, ResponseCode::Success);
        w.settle();
        completed += w.reap(0).len() + w.reap(1).len();
    }
    assert!(w.function.shared().counters().starved >= 7);
}

#[test]
fn more_faults_than_indices_wait_in_line_and_all_complete() {
    let mut w = world_with(|s| s.jobs_per_queue = 256);
    for queue in 1..4 {
        w.enable(queue, 8, None);
    }
    w.map(space(), DST, DST_GPA, 1024 * PAGE);
    for page in 0..1000 {
        w.submit(usize::try_from(page / 250).unwrap(), &[copy(page, page, 8)]);
    }
    w.settle();
    assert_eq!(w.mmu.requests().len(), 512, "as many as there are indices");
    let mut done = 0;
    while done < 1000 {
        let asked = w.mmu.requests();
        assert!(!asked.is_empty());
        for request in asked {
            map_source(&w, (request.iova.0 - SRC) / PAGE);
            w.mmu.respond(request.prg_index, ResponseCode::Success);
        }
        w.settle();
        let completions: Vec<_> = (0..4).flat_map(|q| w.reap(q)).collect();
        assert!(completions.iter().all(|c| code(c) == Code::Success));
        done += completions.len();
    }
}

#[test]
fn a_line_that_does_not_move_ends_too() {
    let mut w = world();
    w.set_allocation(1);
    w.submit(0, &[copy(1, 0, 64), copy(2, 1, 64)]);
    w.settle();
    w.now += TIMEOUT;
    w.settle();
    let done = w.reap(0);
    assert_eq!(done.iter().map(code).collect::<Vec<_>>(), [Code::PageRequestTimeout; 2]);
}

#[test]
fn an_answer_for_another_process_changes_nothing() {
    let mut w = world();
    w.submit(0, &[copy(1, 0, 64)]);
    w.settle();
    let index = w.last_group();
    w.mmu.send(index, Some(pasid(P + 1)), ResponseCode::InvalidRequest);
    w.settle();
    assert!(w.reap(0).is_empty());
    map_source(&w, 0);
    w.mmu.send(index, space(), ResponseCode::Success);
    w.mmu.send(index, space(), ResponseCode::InvalidRequest);
    w.settle();
    assert_eq!(w.reap(0).iter().map(code).collect::<Vec<_>>(), [Code::Success]);
}

#[test]
fn a_list_may_be_missing_in_the_middle() {
    let mut w = world();
    for page in [0, 1] {
        map_source(&w, page);
    }
    let entries: Vec<_> = (0..600).map(|n| ScatterEntry { address: SRC + n, length: 1 }).collect();
    // The list lies across source pages 40, 41 and 42, of which only the first is there.
    w.write(SRC_GPA + 41 * PAGE - 16, entries.as_bytes());
    map_source(&w, 40);
    let list = Descriptor {
        flags: DescriptorFlags::SRC_LIST.bits(),
        src: SRC + 41 * PAGE - 16,
        src_entries: 600,
        ..copy(1, 0, 600)
    };
    w.write(SRC_GPA, &noise(3, 600));
    w.submit(0, &[list]);
    for page in [41, 42, 43] {
        w.settle();
        assert_eq!(w.mmu.requests()[0].iova.0, SRC + page * PAGE);
        // What was read already is not read again: changing it changes nothing.
        w.write(SRC_GPA + 41 * PAGE - 16, &[0xff; 16]);
        map_source(&w, page);
        w.mmu.respond(w.last_group(), ResponseCode::Success);
    }
    w.settle();
    assert_eq!(summary(&w.reap(0)[0]), (Code::Success, 600, 0, 0));
    assert!(w.read(DST_GPA, 600) == noise(3, 600));
}

#[test]
fn what_may_not_be_cached_is_asked_for_each_time() {
    let mut w = world();
    w.mmu.map(space(), SRC, 12, Page { untranslated_only: true, ..Page::rw(SRC_GPA) });
    for _ in 0..3 {
        w.mmu.translated();
        assert_eq!(code(&w.run_one(0, copy(1, 0, 64))), Code::Success);
        assert_eq!(w.mmu.translated().iter().filter(|t| t.iova.0 == SRC).count(), 1);
    }
}

#[test]
fn configuration_space_gates_everything() {
    let mut w = world();
    map_source(&w, 0);
    assert_eq!(code(&w.run_one(0, copy(1, 0, 64))), Code::Success);
    let pri = w.capability(extended_capability::PRI) + u64::from(pcie::pri::CONTROL);
    let _ = w.function.config_write(pri, &0u16.to_le_bytes());
    assert_eq!(code(&w.run_one(0, copy(2, 9, 64))), Code::PageFault, "page requests are off");
    let ats = w.capability(extended_capability::ATS) + u64::from(pcie::ats::CONTROL);
    let pasid_control = w.capability(extended_capability::PASID) + u64::from(pcie::pasid::CONTROL);
    let _ = w.function.config_write(ats, &0u16.to_le_bytes());
    let _ = w.function.config_write(pasid_control, &0u16.to_le_bytes());
    let _ = w.function.config_write(ats, &(1u16 << 15).to_le_bytes());
    assert_eq!(code(&w.run_one(0, copy(3, 0, 64))), Code::TranslationBlocked, "PASID is off");
    let _ = w.function.config_write(header::COMMAND.into(), &2u16.to_le_bytes());
    w.submit(0, &[copy(4, 0, 64)]);
    w.settle();
    assert!(w.status(0).halted(), "without bus mastering not even the ring can be read");
}

#[test]
fn the_kernel_may_forget_what_is_outstanding() {
    let mut w = world();
    w.submit(0, &[copy(1, 0, 64)]);
    w.settle();
    let control = w.capability(extended_capability::PRI) + u64::from(pcie::pri::CONTROL);
    let _ = w.function.config_write(control, &0u16.to_le_bytes());
    // Reset is bit 1 (PCIe 6.0 §10.5.2.2).
    let _ = w.function.config_write(control, &2u16.to_le_bytes());
    w.settle();
    assert_eq!(code(&w.reap(0)[0]), Code::PageRequestFailed);
}
