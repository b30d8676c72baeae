//! Tables in memory: entries changed at random, then requests of functions.
//!
//! Holds: a request costs a bounded number of loads; the walker changes accessed and dirty bits only; what it answers
//! is aligned, within the host's addresses and outside of the interrupt range; and a unit with caches, emptied after
//! each change, answers as one without.
use std::sync::Arc;

use svadev_fabric::{AtsError, Translation, TranslationRequest};
use svadev_iommu::Blocked;
use svadev_memory::{GuestAddress, GuestMemory};
use svadev_spec::vtd::{INTERRUPT_RANGE_FIRST, INTERRUPT_RANGE_LAST};

use crate::worlds::tables::{END, FIRST_LEVEL1, FIRST_LEVEL5, PASID_TABLE, SECOND};
use crate::worlds::unit::{self, QUEUE, World};
use crate::worlds::watched::Event;
use crate::{Input, Seed};

mod op {
    pub(super) const STORE: u8 = 0;
    pub(super) const FLIP: u8 = 1;
    pub(super) const POINT: u8 = 2;
    pub(super) const TRANSLATE: u8 = 3;
    pub(super) const ACCESS: u8 = 4;
    pub(super) const PAGE_REQUEST: u8 = 5;
    pub(super) const FORGET: u8 = 6;
    pub(super) const COUNT: u8 = 7;
}

/// Loads of one request: 5 + 1 second-stage walks of 5 levels each for the 5 levels of the first, an exchange for each
/// entry, and root, context, directory and PASID entries before them.
const MAX_LOADS: u64 = 128;

struct Pair {
    /// With caches.
    cached: World,
    /// Without.
    plain: World,
    /// Software forgets to invalidate: answers may be stale, and are not compared.
    careless: bool,
    /// Tables were changed since the caches were emptied.
    changed: bool,
    /// The walker has set a bit in a table of another kind: one store is a change of two tables, which no rule of
    /// invalidation covers.
    tangled: bool,
}

#[derive(Debug, PartialEq, Eq)]
enum Answer {
    Translation(Result<Translation, AtsError>),
    Access(Result<Translation, Blocked>),
}

pub(super) fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let header = input.u8();
    let caching = header & 1;
    let mut cached = World::cold(unit::config(caching));
    let mut plain = World::over(unit::config(2), Arc::clone(&cached.memory), cached.events.clone());
    for world in [&mut cached, &mut plain] {
        world.bring_up(header & 2 != 0, QUEUE | 1 << 11 | 1);
    }
    let mut pair = Pair { cached, plain, careless: header & 4 != 0, changed: false, tangled: false };
    while !input.is_empty() {
        pair.step(&mut input);
    }
}

/// Where an entry is, from two bytes.
fn entry(input: &mut Input<'_>) -> u64 {
    u64::from(input.u16()) * 8 % END
}

impl Pair {
    fn step(&mut self, input: &mut Input<'_>) {
        match input.below(op::COUNT) {
            op::STORE => {
                let (at, value) = (entry(input), input.u64());
                self.change(at, |_| value);
            }
            op::FLIP => {
                let (at, bit) = (entry(input), input.u8() % 64);
                self.change(at, |old| old ^ 1 << bit);
            }
            op::POINT => {
                // To another table, with the low bits as they come.
                let (at, bits, page) = (entry(input), input.u8(), u64::from(input.u8()));
                self.change(at, |_| page << 12 | u64::from(bits));
            }
            op::TRANSLATE => {
                let (requester, pasid, iova, access) = unit::request(input);
                let request = TranslationRequest { requester, pasid, iova, access };
                self.compare(iova.0, |w| Answer::Translation(w.unit.translate(request, &w.ports)));
            }
            op::ACCESS => {
                let (requester, pasid, iova, access) = unit::request(input);
                self.compare(iova.0, |w| Answer::Access(w.unit.access(requester, pasid, iova, access, &w.ports)));
            }
            op::PAGE_REQUEST => {
                let request = unit::page_request(input);
                self.cached.page_request(request);
                self.bounded();
                self.watch();
            }
            op::FORGET => {
                self.cached.forget_everything();
                self.changed = false;
            }
            _ => unreachable!("below the number of operations"),
        }
    }

    fn change(&mut self, at: u64, change: impl FnOnce(u64) -> u64) {
        let old = self.cached.memory.ram.load_u64(GuestAddress(at)).expect("entries are in memory");
        self.cached.store(at, &change(old).to_le_bytes());
        self.changed = true;
    }

    fn compare(&mut self, iova: u64, ask: impl Fn(&mut World) -> Answer) {
        if self.changed && !self.careless {
            self.cached.forget_everything();
            self.changed = false;
        }
        self.cached.memory.take_loads();
        let answer = ask(&mut self.cached);
        self.bounded();
        self.watch();
        check(&answer, iova);
        let plain = ask(&mut self.plain);
        self.bounded();
        self.watch();
        check(&plain, iova);
        if !self.changed && !self.tangled {
            assert_eq!(answer, plain, "caches change no answer for {iova:#x}");
        }
    }

    fn bounded(&self) {
        let loads = self.cached.memory.take_loads();
        assert!(loads <= MAX_LOADS, "{loads} loads for one request");
    }

    /// Looks at what the unit that was just asked has changed. Both share the list, and each its own interrupts.
    fn watch(&mut self) {
        for event in self.cached.events.take() {
            match event {
                Event::Exchange { at, old, new } => {
                    World::check_exchange(old, new);
                    let (first, second) = ((FIRST_LEVEL5..SECOND), (SECOND..END - 0x2000));
                    let of_second = (old ^ new) & (1 << 8 | 1 << 9) != 0;
                    self.tangled |= !if of_second { second } else { first }.contains(&at);
                }
                Event::Write { at, len } => {
                    assert_eq!(len, 32, "a page request");
                    assert!((unit::PAGE_REQUESTS..unit::PAGE_REQUESTS + 0x1000).contains(&at), "in its queue");
                }
                Event::Store { .. } | Event::Invalidate { .. } => panic!("no request asks for {event:?}"),
                Event::Response { .. } | Event::Interrupt(_) => {}
            }
        }
    }
}

/// Whatever the tables say, an answer has a form.
fn check(answer: &Answer, iova: u64) {
    let translation = match answer {
        Answer::Translation(Ok(t)) if t.is_present() => t,
        Answer::Access(Ok(t)) => t,
        _ => return,
    };
    let size = 1u64 << translation.size_log2;
    assert!((12..=30).contains(&translation.size_log2), "{translation:?}");
    assert!(translation.gpa.0.is_multiple_of(size), "{translation:?} is aligned to its size");
    if matches!(answer, Answer::Translation(_)) && !translation.untranslated_only {
        let end = translation.gpa.0.checked_add(size).expect("no page wraps");
        assert!(end <= 1 << 52, "{translation:?} is within the host's addresses");
        let byte = translation.gpa.0 | iova & (size - 1);
        assert!(!(INTERRUPT_RANGE_FIRST..=INTERRUPT_RANGE_LAST).contains(&byte), "{translation:?} leads to interrupts");
    }
}

pub(super) fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    // Every PASID, four pages each of another kind.
    let ask = |seed: Seed, op: u8, rights: u8| {
        seed.repeat(7, |seed, pasid| {
            let pasid = u8::try_from(pasid).expect("below 7");
            seed.repeat(4, |seed, n| {
                let seed = seed.u8(op).u8(rights | 4).u8(pasid);
                match n {
                    0 => seed.u8(3),
                    1 => seed.u8(50),
                    2 => seed.u8(64).u16(0x80),
                    _ => seed.u8(96).u32(0x1234_5678),
                }
            })
        })
    };
    let at = |address: u64| u16::try_from(address / 8).expect("in the tables");
    let plain = |header| ask(ask(Seed::new().u8(header), op::TRANSLATE, 0x30), op::ACCESS, 0x10);
    let damage = |seed: Seed| {
        let seed = seed.u8(op::FLIP).u16(at(FIRST_LEVEL1 + 8 * 3)).u8(0);
        let seed = ask(seed, op::TRANSLATE, 0x10).u8(op::STORE).u16(at(FIRST_LEVEL1 + 8 * 3)).u64(0x2_0007 | 1 << 52);
        let seed = ask(seed, op::ACCESS, 0x20).u8(op::POINT).u16(at(PASID_TABLE + 64)).u8(0x49).u8(0);
        ask(seed.u8(op::FORGET), op::ACCESS, 0x60)
    };
    let loops = Seed::new().u8(0).u8(op::POINT).u16(at(FIRST_LEVEL5)).u8(0x27).u8(5);
    let loops = loops.u8(op::POINT).u16(at(SECOND)).u8(3).u8(10);
    let page_requests = ask(Seed::new().u8(1), op::PAGE_REQUEST, 0x10);
    vec![
        ("strict", plain(0).done()),
        ("adversarial", plain(1).done()),
        (
            "legacy",
            ask(Seed::new().u8(2), op::ACCESS, 0x30)
                .u8(op::TRANSLATE)
                .u8(0x30)
                .u8(3)
                .u8(op::ACCESS)
                .u8(0x20)
                .u8(7)
                .done(),
        ),
        ("damaged", damage(plain(1)).done()),
        ("careless", damage(plain(5)).done()),
        ("tables-in-a-circle", ask(loops, op::ACCESS, 0x30).done()),
        ("page-requests", ask(page_requests, op::TRANSLATE, 0x20).done()),
    ]
}
