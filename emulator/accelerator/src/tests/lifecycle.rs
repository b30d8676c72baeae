//! Endings: abort, drain, disable, reset, with work in every state.
use std::sync::atomic::Ordering;

use svadev_fabric::ResponseCode;
use svadev_spec::device::{
    AbortSlot, Code, Command, CommandStatus, Completion, Descriptor, DescriptorFlags, Status, command, doorbell,
    opcode, queue_error, regs,
};
use svadev_spec::pcie;

use super::world::*;

const DST: u64 = 0x2_0000_0000;

fn world() -> World {
    let mut w = World::with(|s| s.jobs_per_queue = 4);
    for n in 1..4 {
        w.mmu.bind(Some(pasid(n)));
        w.mmu.map(Some(pasid(n)), DST + 0x10_0000, 12, Page::rw(0x100_0000));
    }
    w.enable(0, 5, None);
    w
}

/// A fill that waits for its page, or one that does not.
fn fill(space: u32, cookie: u64, there: bool) -> Descriptor {
    let dst = DST + if there { 0x10_0000 } else { cookie * 0x1000 };
    for_process(pasid(space), Descriptor { opcode: opcode::FILL, cookie, dst, length: 8, ..Default::default() })
}

fn command(w: &mut World, opcode: u8, space: u32) {
    w.write64(regs::COMMAND, Command::new().with_opcode(opcode).with_pasid(space).into_bits());
}

fn command_status(w: &mut World) -> CommandStatus {
    CommandStatus::from_bits(w.read32(regs::COMMAND_STATUS))
}

fn status(w: &mut World) -> Status {
    Status::from_bits(w.read32(regs::STATUS))
}

fn answer_all(w: &mut World) {
    for request in w.mmu.requests() {
        w.mmu.send(request.prg_index, request.pasid, ResponseCode::Success);
    }
}

fn summary(done: &[Completion]) -> Vec<(u64, Code)> {
    let mut all: Vec<_> = done.iter().map(|c| (c.cookie, code(c))).collect();
    all.sort_by_key(|(cookie, _)| *cookie);
    all
}

#[test]
fn abort_ends_what_runs_and_what_is_still_in_the_ring() {
    let mut w = world();
    // Four jobs fit: two of process 1 and two of process 2 are parked, the rest is in the ring.
    w.submit(0, &[fill(1, 0, false), fill(2, 1, false), fill(1, 2, false), fill(2, 3, false)]);
    w.submit(0, &[fill(1, 4, true), fill(2, 5, true), fill(1, 6, true)]);
    w.settle();
    let before = w.mmu.requests();
    assert_eq!(before.len(), 4);
    command(&mut w, command::ABORT_PASID, 1);
    assert!(command_status(&mut w).busy());
    w.settle();
    // What is written after the command is new work.
    let done = summary(&w.run(0, &[fill(1, 7, true)]));
    use Code::{Aborted, Success};
    assert_eq!(done, [(0, Aborted), (2, Aborted), (4, Aborted), (5, Success), (6, Aborted), (7, Success)]);
    for request in before {
        assert!(
            command_status(&mut w).busy() || request.pasid == Some(pasid(2)),
            "a request of process 1 is unanswered"
        );
        w.mmu.send(request.prg_index, request.pasid, ResponseCode::InvalidRequest);
        w.settle();
    }
    assert!(!command_status(&mut w).busy());
    assert_eq!(
        summary(&w.reap(0)),
        [(1, Code::PageFault), (3, Code::PageFault)],
        "answers to the aborted change nothing"
    );
}

#[test]
fn an_abort_waits_for_answers_no_longer_than_a_page_request_may() {
    let mut w = world();
    w.submit(0, &[fill(1, 0, false)]);
    w.settle();
    command(&mut w, command::ABORT_PASID, 1);
    w.settle();
    w.now += TIMEOUT - 1;
    w.settle();
    assert!(command_status(&mut w).busy());
    w.now += 1;
    w.settle();
    assert_eq!(command_status(&mut w), CommandStatus::new().with_timeout(true));
    command(&mut w, command::ABORT_PASID, 2);
    w.settle();
    assert_eq!(command_status(&mut w), CommandStatus::new(), "the next command says nothing of the last");
}

#[test]
fn a_disable_waits_for_answers_no_longer_than_a_page_request_may() {
    for answered in [true, false] {
        let mut w = world();
        w.submit(0, &[fill(1, 0, false)]);
        w.settle();
        let request = w.mmu.requests()[0];
        w.write32(regs::CONTROL, 0);
        w.settle();
        w.now += TIMEOUT - 1;
        w.settle();
        assert_eq!(status(&mut w), Status::new().with_busy(true), "the queues are off, and the answer is missing");
        if answered {
            w.mmu.send(request.prg_index, request.pasid, ResponseCode::Success);
        } else {
            w.now += 1;
        }
        w.settle();
        assert_eq!(status(&mut w), Status::new().with_timeout(!answered));
        w.write32(regs::CONTROL, 1);
        w.write32(regs::CONTROL, 0);
        w.settle();
        assert_eq!(status(&mut w), Status::new().with_busy(!answered), "the next disable is judged anew");
    }
}

#[test]
fn a_reset_ends_a_disable_and_commands_that_no_engine_has_seen() {
    let mut w = world();
    w.submit(0, &[fill(1, 0, false)]);
    w.settle();
    command(&mut w, command::ABORT_PASID, 1);
    w.write32(regs::CONTROL, 0);
    w.function.reset();
    w.settle();
    assert_eq!((status(&mut w), command_status(&mut w)), (Status::new(), CommandStatus::new()));
}

#[test]
fn a_slow_abort_holds_no_other_up() {
    let mut w = world();
    let slot = |w: &mut World, slot: u64| AbortSlot::from_bits(w.read32(regs::ABORT + 4 * slot));
    w.submit(0, &[fill(1, 1, false), fill(2, 2, true)]);
    w.settle();
    let request = w.mmu.requests()[0];
    let start = |pasid| AbortSlot::new().with_busy(true).with_pasid(pasid);
    w.write32(regs::ABORT, start(1).into_bits());
    w.write32(regs::ABORT + 4 * 15, start(2).into_bits());
    w.settle();
    assert_eq!(slot(&mut w, 0), start(1), "its page request is unanswered");
    assert_eq!(slot(&mut w, 15), AbortSlot::new().with_pasid(2));
    w.write32(regs::ABORT, start(3).into_bits());
    w.write32(regs::ABORT + 4, AbortSlot::new().with_pasid(7).into_bits());
    w.write32(regs::ABORT + 4 * 16, start(3).into_bits());
    assert_eq!(slot(&mut w, 0), start(1), "a write to a busy slot is ignored");
    assert_eq!(slot(&mut w, 1), AbortSlot::new(), "so is one without the start bit");
    assert_eq!(slot(&mut w, 16), AbortSlot::new(), "there are 16");
    command(&mut w, command::ABORT_PASID, 3);
    w.settle();
    assert!(!command_status(&mut w).busy(), "COMMAND is not held up, either");
    w.mmu.send(request.prg_index, request.pasid, ResponseCode::Success);
    w.settle();
    assert_eq!(slot(&mut w, 0), AbortSlot::new().with_pasid(1));
    assert_eq!(summary(&w.reap(0)), [(1, Code::Aborted), (2, Code::Success)]);
}

#[test]
fn an_abort_slot_says_that_it_ended_at_the_limit() {
    let mut w = world();
    w.submit(0, &[fill(1, 0, false)]);
    w.settle();
    w.write32(regs::ABORT + 4, AbortSlot::new().with_busy(true).with_pasid(1).into_bits());
    w.settle();
    w.now += TIMEOUT;
    w.settle();
    let ended = AbortSlot::new().with_pasid(1).with_timeout(true);
    assert_eq!(AbortSlot::from_bits(w.read32(regs::ABORT + 4)), ended);
    w.function.reset();
    w.settle();
    assert_eq!(AbortSlot::from_bits(w.read32(regs::ABORT + 4)), AbortSlot::new(), "a reset forgets it");
}

/// A guest that never reads its completions.
#[test]
fn a_drain_ends_at_the_limit_that_the_function_states() {
    let mut w = world();
    assert_eq!(u64::from(w.read32(regs::COMMAND_LIMIT)), TIMEOUT / 1_000_000);
    w.enable_with(1, 5, 1, None);
    w.submit(1, &(0..4).map(|n| fill(1, n, true)).collect::<Vec<_>>());
    w.settle();
    command(&mut w, command::DRAIN_PASID, 1);
    w.now += TIMEOUT - 1;
    w.settle();
    assert!(command_status(&mut w).busy());
    w.now += TIMEOUT;
    w.settle();
    assert_eq!(command_status(&mut w), CommandStatus::new().with_timeout(true));
    command(&mut w, command::ABORT_PASID, 1);
    w.settle();
    assert_eq!(command_status(&mut w), CommandStatus::new(), "an abort is the way out");
}

/// An abort that still waits for an answer knows indexes of before the queue was enabled again: they mean nothing now.
#[test]
fn abort_does_not_reach_into_a_queue_s_next_run() {
    let mut w = world();
    w.enable(1, 5, None);
    w.run(1, &[fill(1, 0, true), fill(1, 1, true), fill(1, 2, true)]);
    w.submit(0, &[fill(1, 3, false)]);
    w.settle();
    let request = w.mmu.requests()[0];
    command(&mut w, command::ABORT_PASID, 1);
    w.settle();
    w.write32(World::register(1, regs::QUEUE_CONTROL), 0);
    w.settle();
    w.enable(1, 5, None);
    w.settle();
    assert!(command_status(&mut w).busy());
    assert_eq!(code(&w.run_one(1, fill(1, 4, true))), Code::Success, "new work, though the abort is not over");
    w.mmu.send(request.prg_index, request.pasid, ResponseCode::Success);
    w.settle();
    assert!(!command_status(&mut w).busy());
    assert_eq!(code(&w.run_one(1, fill(1, 5, true))), Code::Success, "the PASID's next owner is not aborted");
}

#[test]
fn drain_does_not_wait_for_indexes_of_a_queue_s_last_run() {
    let mut w = world();
    w.enable(1, 5, None);
    w.run(1, &[fill(1, 0, true), fill(1, 1, true), fill(1, 2, true)]);
    w.submit(0, &[fill(1, 3, false)]);
    w.settle();
    let index = w.last_group();
    command(&mut w, command::DRAIN_PASID, 1);
    w.settle();
    w.write32(World::register(1, regs::QUEUE_CONTROL), 0);
    w.settle();
    w.enable(1, 5, None);
    w.settle();
    assert!(command_status(&mut w).busy(), "queue 0 still has work");
    w.mmu.respond(index, ResponseCode::InvalidRequest);
    w.settle();
    assert!(!command_status(&mut w).busy());
}

#[test]
fn abort_drops_the_process_s_translations() {
    let mut w = world();
    w.run(0, &[fill(1, 0, true), fill(2, 1, true)]);
    command(&mut w, command::ABORT_PASID, 1);
    w.settle();
    w.mmu.translated();
    w.run(0, &[fill(1, 0, true), fill(2, 1, true)]);
    assert_eq!(w.mmu.translated().iter().map(|t| t.pasid).collect::<Vec<_>>(), [Some(pasid(1))]);
}

#[test]
fn aborts_of_many_processes_are_remembered_or_waited_for() {
    let mut w = world();
    for n in 1..200 {
        w.mmu.bind(Some(pasid(n)));
    }
    w.enable_with(1, 8, 8, None);
    w.submit(1, &[fill(300, 0, false)]);
    w.mmu.bind(Some(pasid(300)));
    w.settle();
    // A fence holds everything up that the aborts are about.
    let fence = Descriptor { flags: DescriptorFlags::FENCE.bits(), ..fill(1, 1, true) };
    let queued: Vec<_> = std::iter::once(fence).chain((1..100).map(|n| fill(n, u64::from(n) + 1, false))).collect();
    w.submit(1, &queued);
    w.settle();
    let mut aborted = 0;
    let mut others = Vec::new();
    for n in 1..100 {
        command(&mut w, command::ABORT_PASID, n);
        w.settle();
        others.extend(w.mmu.requests());
        for request in others.extract_if(.., |request| request.pasid == Some(pasid(n))) {
            w.mmu.send(request.prg_index, request.pasid, ResponseCode::InvalidRequest);
        }
        w.settle();
        if command_status(&mut w).busy() {
            break;
        }
        aborted = n;
    }
    assert!((60..99).contains(&aborted), "some fit: {aborted}");
    // The first fails, and so does all that was not aborted; on the way there is room again.
    let mut done = Vec::new();
    while done.len() < queued.len() + 1 {
        let mut asked = w.mmu.requests();
        asked.append(&mut others);
        assert!(!asked.is_empty(), "{} of {}", done.len(), queued.len() + 1);
        for request in asked {
            w.mmu.respond(request.prg_index, ResponseCode::InvalidRequest);
        }
        w.settle();
        done.extend(summary(&w.reap(1)));
    }
    assert!(!command_status(&mut w).busy());
    let ended: Vec<_> = done.iter().filter(|(_, code)| *code == Code::Aborted).map(|(cookie, _)| *cookie).collect();
    for n in 1..=aborted {
        assert!(ended.contains(&(u64::from(n) + 1)), "process {n} was aborted");
    }
}

#[test]
fn a_user_queue_of_an_aborted_process_halts() {
    let mut w = world();
    let p = pasid(1);
    w.map(Some(p), World::sq_base(1), World::sq_base(1), 0x1000);
    w.map(Some(p), World::cq_base(1), World::cq_base(1), 0x1000);
    w.enable(1, 4, Some(p));
    let own = |cookie, there| Descriptor { pasid: Default::default(), ..fill(1, cookie, there) };
    w.submit(1, &[own(0, false), own(1, false)]);
    w.settle();
    command(&mut w, command::ABORT_PASID, 1);
    w.settle();
    assert_eq!(summary(&w.reap(1)), [(0, Code::Aborted), (1, Code::Aborted)]);
    for request in w.mmu.requests() {
        w.mmu.send(request.prg_index, request.pasid, ResponseCode::InvalidRequest);
    }
    w.settle();
    assert!(!command_status(&mut w).busy());
    assert_eq!((w.status(1).halted(), w.status(1).error()), (true, queue_error::NONE));
    w.mmu.translated();
    w.submit(1, &[own(2, true)]);
    w.settle();
    assert!(w.mmu.translated().is_empty(), "no access of the process any more, not for its rings either");
}

#[test]
fn drain_ends_when_what_was_there_has_completed() {
    let mut w = world();
    w.submit(0, &[fill(1, 0, false), fill(2, 1, false)]);
    w.settle();
    command(&mut w, command::DRAIN_PASID, 1);
    w.settle();
    assert!(command_status(&mut w).busy());
    // Commands are ignored while one is busy.
    command(&mut w, command::ABORT_PASID, 1);
    w.submit(0, &[fill(1, 2, false)]);
    w.settle();
    assert!(w.reap(0).is_empty());
    let first = w.mmu.requests().iter().find(|r| r.iova.0 == DST).unwrap().prg_index;
    w.mmu.respond(first, ResponseCode::InvalidRequest);
    w.settle();
    assert!(!command_status(&mut w).busy(), "neither the other process's work nor newer work counts");
    assert_eq!(summary(&w.reap(0)), [(0, Code::PageFault)]);
}

#[test]
fn unknown_commands_say_so() {
    let mut w = world();
    for value in [3, 0, 1 << 8 | 1, 1 << 52 | 1] {
        w.write64(regs::COMMAND, value);
        assert!(command_status(&mut w).bad() && !command_status(&mut w).busy(), "{value:#x}");
    }
    command(&mut w, command::DRAIN_PASID, 1);
    w.settle();
    assert!(!command_status(&mut w).bad() && !command_status(&mut w).busy());
}

#[test]
fn disabling_a_queue_completes_what_is_in_it() {
    let mut w = world();
    let all: Vec<_> = (0..10).map(|n| fill(1, n, false)).collect();
    w.submit(0, &all);
    w.settle();
    w.write32(World::register(0, regs::QUEUE_CONTROL), 0);
    assert!(w.status(0).enabled(), "until the engine has said so");
    w.settle();
    assert!(!w.status(0).enabled());
    assert_eq!(summary(&w.reap(0)), (0..10).map(|n| (n, Code::Aborted)).collect::<Vec<_>>());
    assert_eq!(w.mmu.requests().len(), 4, "nothing was asked for on the way");
    w.enable(0, 5, None);
    assert_eq!(w.run(0, &[fill(1, 1, true)]).len(), 1);
}

#[test]
fn a_disabled_queue_completes_only_what_there_is_room_for() {
    let mut w = world();
    w.enable_with(1, 5, 2, None);
    w.submit(1, &(0..10).map(|n| fill(1, n, false)).collect::<Vec<_>>());
    w.settle();
    w.write32(World::register(1, regs::QUEUE_CONTROL), 0);
    w.settle();
    assert!(!w.status(1).enabled());
    assert_eq!(w.reap(1).len(), 4);
}

#[test]
fn off_and_on_again_between_two_slices() {
    let mut w = world();
    w.submit(0, &[fill(1, 0, false)]);
    w.settle();
    w.write32(World::register(0, regs::QUEUE_CONTROL), 0);
    w.enable(0, 5, None);
    w.settle();
    assert!(w.status(0).enabled());
    w.rings[0].head = 0;
    assert_eq!(summary(&w.run(0, &[fill(1, 5, true)])), [(5, Code::Success)], "the new ring begins at 0");
}

#[test]
fn disabling_the_function_disables_every_queue() {
    let mut w = world();
    w.enable(1, 4, None);
    w.submit(0, &[fill(1, 0, false)]);
    w.submit(1, &[fill(1, 1, false)]);
    w.settle();
    w.write32(regs::CONTROL, 0);
    assert!(status(&mut w).busy());
    answer_all(&mut w);
    w.settle();
    assert!(!status(&mut w).busy() && !status(&mut w).enabled());
    assert!(!w.status(0).enabled() && !w.status(1).enabled());
    assert_eq!(summary(&w.reap(0)), [(0, Code::Aborted)]);
    assert_eq!(summary(&w.reap(1)), [(1, Code::Aborted)]);
    assert_eq!(w.read32(World::register(0, regs::QUEUE_CONTROL)), 0);
    // Queues may be set up before the function is enabled, and run only then.
    w.enable(0, 5, None);
    w.submit(0, &[fill(1, 2, true)]);
    w.settle();
    assert!(w.engines[0].park(), "a bell that may not be answered does not keep it awake");
    w.write32(regs::CONTROL, 1);
    w.settle();
    assert_eq!(summary(&w.reap(0)), [(2, Code::Success)]);
}

#[test]
fn a_queue_that_is_enabled_after_the_function_was_off_and_on_stays_on() {
    let mut w = world();
    w.enable(1, 4, None);
    w.submit(0, &[fill(1, 0, false)]);
    w.submit(1, &[fill(1, 1, false)]);
    w.settle();
    // The engine sees all of it at once.
    w.write32(regs::CONTROL, 0);
    w.write32(regs::CONTROL, 1);
    w.enable(0, 5, None);
    assert!(status(&mut w).busy());
    answer_all(&mut w);
    w.settle();
    assert!(status(&mut w).enabled() && !status(&mut w).busy(), "queue 0 was off in between");
    assert!(w.status(0).enabled() && !w.status(1).enabled());
    w.rings[0].head = 0;
    assert_eq!(summary(&w.run(0, &[fill(1, 2, true)])), [(2, Code::Success)]);
    assert_eq!(w.read32(World::register(0, regs::QUEUE_CONTROL)), 1);
}

#[test]
fn an_enable_before_the_function_is_off_does_not_hold() {
    let mut w = world();
    w.enable(1, 4, None);
    w.write32(regs::CONTROL, 0);
    w.write32(regs::CONTROL, 1);
    w.settle();
    assert!(!status(&mut w).busy() && !w.status(0).enabled() && !w.status(1).enabled());
}

#[test]
fn reset_leaves_nothing_and_writes_nothing() {
    for flr in [false, true] {
        let mut w = world();
        w.submit(0, &[fill(1, 0, false), fill(1, 1, true)]);
        command(&mut w, command::DRAIN_PASID, 1);
        w.settle();
        let group = w.last_group();
        let tail = w.word(0, doorbell::CQ_TAIL);
        let before = w.read(World::cq_base(0), 0x400);
        if flr {
            // PCI Express capability at 0x40: device control, bit 15.
            let _ =
                w.function.config_write(0x40 + u64::from(pcie::pci_express::DEVICE_CONTROL), &0x8000u16.to_le_bytes());
        } else {
            w.function.reset();
        }
        assert!(status(&mut w).busy());
        assert_eq!((tail, w.ports.resets.load(Ordering::Relaxed)), (1, 0));
        w.settle();
        assert_eq!(w.ports.resets.load(Ordering::Relaxed), 1);
        assert!(!status(&mut w).busy() && !command_status(&mut w).busy());
        assert!(w.read(World::cq_base(0), 0x400) == before, "no write after a reset");
        assert_eq!(w.word(0, doorbell::SQ_TAIL), 0);
        assert_eq!(w.read64(World::register(0, regs::QUEUE_SQ_BASE)), 0);
        w.mmu.send(group, None, ResponseCode::Success);
        w.configure();
        w.enable(0, 5, None);
        assert_eq!(summary(&w.run(0, &[fill(1, 9, true)])), [(9, Code::Success)]);
    }
}

#[test]
fn resets_pile_up_without_harm() {
    let mut w = world();
    for _ in 0..5 {
        w.function.reset();
    }
    w.settle();
    assert_eq!(w.ports.resets.load(Ordering::Relaxed), 5);
    assert!(!status(&mut w).busy());
}

#[test]
fn the_last_word_counts_while_a_queue_is_stopping() {
    let mut w = world();
    w.enable_with(1, 10, 10, None);
    let control = World::register(1, regs::QUEUE_CONTROL);
    w.submit(1, &vec![fill(1, 0, false); 600]);
    w.settle();
    // More than one slice's worth ends as aborted, so that each of these is heard while the queue is still stopping.
    for value in [0, 1, 0] {
        w.write32(control, value);
        w.step();
    }
    w.settle();
    assert!(!w.status(1).enabled(), "off, on, off");
    assert_eq!(w.word(1, doorbell::CQ_TAIL), 600);
    w.write32(control, 1);
    w.ring_word(1, doorbell::SQ_TAIL, 0);
    w.settle();
    assert!(w.status(1).enabled());
    assert_eq!(w.word(1, doorbell::CQ_TAIL), 0);
}
