//! Invalidation descriptors in memory, of any shape, with functions that answer late.
//!
//! Holds: a wait completes only when every older invalidation has; nothing but a wait's status and page requests is
//! written; one doorbell costs no more than the ring has entries; the head steps over no wait that is not over and over
//! no type that there is not; a queue that waits for nobody and has no error is empty; and a new start serves a clean
//! wait.
use std::collections::BTreeSet;

use svadev_fabric::{Bdf, InvalidateTag, TranslationRequest};
use svadev_memory::{GuestAddress, GuestMemory};
use svadev_spec::vtd::registers::{FaultStatus, Global, InvalidationQueueAddress, InvalidationQueueError, offset};

use crate::worlds::tables::{DEVICE, OTHER, domain};
use crate::worlds::unit::{self, QUEUE, STATUS, World};
use crate::worlds::watched::Event;
use crate::{Input, Seed};

mod op {
    pub(super) const PUSH: u8 = 0;
    pub(super) const RAW: u8 = 1;
    pub(super) const RING: u8 = 2;
    pub(super) const TAIL: u8 = 3;
    pub(super) const COMPLETE: u8 = 4;
    pub(super) const STRAY: u8 = 5;
    pub(super) const TIME_OUT: u8 = 6;
    pub(super) const CLEAR: u8 = 7;
    pub(super) const RESTART: u8 = 8;
    pub(super) const LATER: u8 = 9;
    pub(super) const TRANSLATE: u8 = 10;
    pub(super) const COUNT: u8 = 11;
}

struct Rig {
    world: World,
    /// Where the next descriptor goes, bytes.
    tail: u64,
    /// Completions that functions owe.
    owed: BTreeSet<(Bdf, InvalidateTag)>,
    invalidations: u64,
    /// Where the head was, bytes, and how many waits were over, when the last operation ended.
    head: u64,
    waits: u64,
}

pub(super) fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let header = input.u8();
    let mut world = World::cold(unit::config(header));
    let queue = InvalidationQueueAddress::new()
        .with_frame(QUEUE >> 12)
        .with_queue_size(header >> 2 & 1)
        .with_descriptor_width(header & 8 == 0);
    world.bring_up(header & 16 != 0, queue.into());
    let mut rig = Rig { world, tail: 0, owed: BTreeSet::new(), invalidations: 0, head: 0, waits: 0 };
    while !input.is_empty() {
        rig.step(&mut input);
        rig.check();
    }
    rig.serves_a_clean_wait();
}

impl Rig {
    fn address(&mut self) -> InvalidationQueueAddress {
        self.world.read64(offset::IQA).into()
    }

    fn width(&mut self) -> u64 {
        if self.address().descriptor_width() { 32 } else { 16 }
    }

    fn bytes(&mut self) -> u64 {
        4096 << self.address().queue_size()
    }

    fn push(&mut self, descriptor: [u64; 4]) {
        let (width, bytes) = (self.width(), self.bytes());
        let all = descriptor.map(u64::to_le_bytes).concat();
        let used = usize::try_from(width).expect("16 or 32");
        self.world.store(QUEUE + self.tail, &all[..used]);
        self.tail = (self.tail + width) % bytes;
    }

    fn step(&mut self, input: &mut Input<'_>) {
        match input.below(op::COUNT) {
            op::PUSH => {
                let [low, high] = descriptor(input);
                self.push([low, high, 0, 0]);
            }
            op::RAW => self.push([input.u64(), input.u64(), input.u64(), input.u64()]),
            op::RING => {
                let tail = self.tail;
                self.world.write64(offset::IQT, tail);
            }
            op::TAIL => {
                let tail = u64::from(input.u16()) << 4;
                self.world.write64(offset::IQT, tail);
            }
            op::COMPLETE => {
                let n = usize::from(input.u8());
                if let Some(&(bdf, tag)) = self.owed.iter().nth(n % self.owed.len().max(1)) {
                    self.owed.remove(&(bdf, tag));
                    self.world.unit.invalidate_complete(bdf, tag, &self.world.ports);
                }
            }
            op::STRAY => {
                // Never owed: the function was never asked with this tag.
                let tag = InvalidateTag::unit(u64::MAX - u64::from(input.u8()));
                self.world.unit.invalidate_complete(DEVICE, tag, &self.world.ports);
                let status = FaultStatus::from(self.world.read32(offset::FSTS));
                assert!(status.invalidation_completion_error(), "ICE says that an answer came to nothing");
            }
            op::TIME_OUT => {
                let bdf = input.pick(&[DEVICE, OTHER]);
                let due = self.owed.iter().any(|&(to, _)| to == bdf);
                if due {
                    // The unit gives up on all of them.
                    self.owed.clear();
                }
                self.world.unit.invalidate_timed_out(bdf, &self.world.ports);
                let status = FaultStatus::from(self.world.read32(offset::FSTS));
                assert!(!due || status.invalidation_timeout_error(), "ITE");
                let head = self.world.read64(offset::IQH);
                let next = (self.head + self.width()) % self.bytes();
                assert!(
                    head == self.head || due && head == next,
                    "the wait that hoped for it is given up, and no more"
                );
                self.head = head;
            }
            op::CLEAR => self.world.write32(offset::FSTS, input.u8().into()),
            op::RESTART => self.restart(),
            op::LATER => self.world.answer_later(input.u64()),
            op::TRANSLATE => {
                let (requester, pasid, iova, access) = unit::request(input);
                let request = TranslationRequest { requester, pasid, iova, access };
                let _ = self.world.unit.translate(request, &self.world.ports);
            }
            _ => unreachable!("below the number of operations"),
        }
    }

    /// GCMD.QIE off and on: the head starts over, and nobody waits for anything.
    fn restart(&mut self) {
        self.world.write32(offset::GCMD, 1 << 31);
        self.owed.clear();
        self.head = 0;
        self.check();
        self.tail = 0;
        self.world.write64(offset::IQT, 0);
        self.world.write32(offset::FSTS, 0x70);
        self.world.write32(offset::GCMD, 1 << 31 | 1 << 26);
    }

    fn check(&mut self) {
        let events = self.world.check();
        let entries = self.bytes() / self.width();
        assert!(events.len() as u64 <= 3 * entries, "{} events for {entries} descriptors", events.len());
        let overwritten = events.iter().any(|event| matches!(event, Event::Store { at, .. } if in_queue(*at)));
        for event in events {
            match event {
                Event::Invalidate { to, tag, pending } => {
                    self.invalidations += 1;
                    if pending {
                        assert!(self.owed.insert((to, tag)), "a tag is used once");
                    }
                }
                Event::Store { .. } => assert!(self.owed.is_empty(), "a wait completed before {:?}", self.owed),
                Event::Exchange { old, new, .. } => World::check_exchange(old, new),
                Event::Write { .. } => panic!("nobody sent a page request"),
                Event::Response { .. } | Event::Interrupt(_) => {}
            }
        }
        let unit = &self.world.unit;
        assert_eq!(unit.counters().invalidations_device_tlb, self.invalidations, "each is sent once");
        let waiting: BTreeSet<_> = unit.outstanding_invalidations().map(|(tag, to)| (to, tag)).collect();
        assert_eq!(waiting, self.owed, "the unit waits for what is owed");
        let head = self.world.read64(offset::IQH);
        assert!(head < self.bytes() && head.is_multiple_of(self.width()), "the head {head:#x} is at a descriptor");
        let stopped = FaultStatus::from(self.world.read32(offset::FSTS)).invalidation_queue_error();
        let error = InvalidationQueueError::from(self.world.read64(offset::IQERCD)).queue_error_information();
        assert_eq!(stopped, error != 0, "IQE has a reason, and only IQE has");
        let stopped = stopped || FaultStatus::from(self.world.read32(offset::FSTS)).invalidation_timeout_error();
        let running = Global::from(self.world.read32(offset::GSTS)).queued_invalidation_enable();
        if running && !stopped && self.owed.is_empty() {
            assert_eq!(head, self.world.read64(offset::IQT), "nothing keeps the queue from its tail");
        }
        self.check_passed(head, overwritten);
    }

    /// Looks at the descriptors that the head has gone over since the last time, unless a status was written over the
    /// queue.
    fn check_passed(&mut self, head: u64, overwritten: bool) {
        let (width, bytes) = (self.width(), self.bytes());
        let mut waits = 0;
        while self.head != head && !overwritten {
            let at = GuestAddress(QUEUE + self.head);
            let kind = self.world.memory.ram.load_u64(at).expect("the queue is in memory") & 0xe0f;
            assert!((1..=9).contains(&kind), "the head went over a descriptor of type {kind:#x}");
            waits += u64::from(kind == 5);
            self.head = (self.head + width) % bytes;
        }
        let before = std::mem::replace(&mut self.waits, self.world.unit.counters().waits);
        assert!(overwritten || self.waits - before == waits, "the head goes over waits that are over");
        self.head = head;
    }

    fn serves_a_clean_wait(&mut self) {
        self.restart();
        self.world.answer_later(0);
        // A context-cache invalidation is allowed in every mode, and a wait of 128 bits is not in scalable mode.
        let scalable = self.world.read64(offset::RTADDR) & 0xc00 != 0;
        let wide = self.width() == 32;
        self.push([1 | 1 << 4, 0, 0, 0]);
        self.push([5 | 1 << 5 | 0x77 << 32, STATUS, 0, 0]);
        self.world.write64(offset::IQT, self.tail);
        self.check();
        let head = self.world.read64(offset::IQH);
        if wide || !scalable {
            assert_eq!(head, self.tail, "a clean queue is carried out");
        } else {
            assert_eq!(head, 0, "scalable mode takes wide descriptors only");
        }
    }
}

fn in_queue(at: u64) -> bool {
    (QUEUE..QUEUE + 0x2000).contains(&at)
}

/// A descriptor near what is valid: type, fields, and now and then a bit too many.
fn descriptor(input: &mut Input<'_>) -> [u64; 2] {
    let kind = u64::from(input.u8() % 12);
    let granularity = u64::from(input.u8() & 3) << 4;
    let pasid = u32::from(input.u8() % 8);
    let source = u64::from(input.pick(&[DEVICE, DEVICE, OTHER, Bdf(0xffff)]).0);
    let address = u64::from(input.u8() % 64) << 12;
    let mask = u64::from(input.u8());
    let spoil = input.u8();
    let domain_id = u64::from(domain(pasid)) << 16;
    let pasid = u64::from(pasid) << 32;
    let [low, high] = match kind {
        1 => [granularity | domain_id | source << 32, 0],
        2 => [granularity | domain_id, address | mask & 0x7f],
        3 => [source << 32, address | mask & 1],
        5 => [granularity | (mask & 3) << 6 | (0x1234 + mask) << 32, STATUS + (address >> 12) * 4],
        6 => [granularity | domain_id | pasid, address | mask & 0x7f],
        7 => [granularity | domain_id | pasid, 0],
        8 => [source << 16 | pasid, address | mask & 1 | (mask & 2) << 10],
        9 => [granularity & 16 | (mask & 15) << 12 | source << 16 | pasid, (mask & 0x7f) << 3],
        _ => [granularity | domain_id, address],
    };
    // One bit in eight of these: the rest stays clean.
    let bad = if spoil >= 0xe0 { 1u64 << (spoil & 31) << (mask & 31) } else { 0 };
    [(kind | low) ^ bad, high]
}

pub(super) fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let push = |seed: Seed, kind: u8, granularity: u8, mask: u8| {
        seed.u8(op::PUSH).bytes(&[kind, granularity, 1, 0, 3, mask, 0])
    };
    let wait = |seed: Seed| push(seed, 5, 3, 0).u8(op::RING);
    let translate = |seed: Seed| seed.u8(op::TRANSLATE).bytes(&[0x34, 1, 3]);
    let every = |header| {
        let seed = [
            (1, 1),
            (1, 2),
            (1, 3),
            (2, 1),
            (2, 2),
            (2, 3),
            (3, 0),
            (4, 0),
            (6, 2),
            (6, 3),
            (7, 0),
            (7, 1),
            (7, 3),
            (8, 0),
            (9, 1),
        ]
        .into_iter()
        .fold(translate(Seed::new().u8(header)), |seed, (kind, granularity)| push(seed, kind, granularity, 0));
        translate(wait(seed))
    };
    // As intel_pasid_tear_down_entry() ends a binding: PASID cache, PASID-based IOTLB, device TLB, wait.
    let teardown = |header| {
        let seed = push(translate(Seed::new().u8(header)), 7, 1, 0);
        let seed = push(seed, 6, 2, 0);
        push(seed, 8, 0, 0)
    };
    let late = |header| {
        let seed = Seed::new().u8(header).u8(op::LATER).u64(u64::MAX);
        let seed = push(push(seed, 8, 0, 1), 3, 0, 0);
        wait(seed)
    };
    vec![
        ("every-type", every(0).done()),
        ("every-type-adversarial", every(5).done()),
        ("narrow-legacy", every(0x18).done()),
        ("narrow-scalable", every(8).u8(op::CLEAR).u8(0x10).done()),
        ("teardown", wait(teardown(0)).done()),
        ("late-answers", late(0).u8(op::COMPLETE).u8(1).u8(op::COMPLETE).u8(0).done()),
        ("time-out", late(1).u8(op::TIME_OUT).u8(0).u8(op::STRAY).u8(0).u8(op::CLEAR).u8(0x70).u8(op::RING).done()),
        ("restart-while-late", late(2).u8(op::RESTART).u8(op::RING).done()),
        (
            "error-and-on",
            Seed::new()
                .u8(0)
                .u8(op::RAW)
                .u64(0xf)
                .u64(0)
                .u64(0)
                .u64(0)
                .u8(op::RING)
                .u8(op::CLEAR)
                .u8(0x10)
                .u8(op::TAIL)
                .u16(0x7ff)
                .done(),
        ),
        (
            "round-and-round",
            Seed::new()
                .u8(4)
                .repeat(140, |s, _| push(s, 6, 3, 0))
                .u8(op::RING)
                .repeat(140, |s, _| push(s, 8, 0, 0))
                .u8(op::RING)
                .done(),
        ),
    ]
}
