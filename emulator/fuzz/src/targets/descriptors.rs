//! An accelerator's rings and descriptors: any bytes in them, pages that come and go, page requests answered well and
//! badly.
//!
//! Holds: each descriptor completes once, in a whole entry with a status that the ABI knows; nothing is written where
//! no page leads; the engine comes to rest, every invalidation is over by then; and a clean descriptor is served
//! afterwards.
use std::collections::BTreeMap;

use svadev_spec::device::{
    Code, Descriptor, DescriptorFlags, DescriptorPasid, FaultFlags, MAX_SCATTER_ENTRIES, ScatterEntry, doorbell,
    opcode, regs,
};
use zerocopy::{FromBytes, IntoBytes};

use crate::worlds::accelerator::{QUEUES, World};
use crate::worlds::tables::pasid;
use crate::{Input, Seed};

mod op {
    pub(super) const PUSH: u8 = 0;
    pub(super) const RAW: u8 = 1;
    pub(super) const RUN: u8 = 2;
    pub(super) const REAP: u8 = 3;
    pub(super) const LIST: u8 = 4;
    pub(super) const PAGE: u8 = 5;
    pub(super) const SERVE: u8 = 6;
    pub(super) const TIME: u8 = 7;
    pub(super) const ENABLE: u8 = 8;
    pub(super) const DISABLE: u8 = 9;
    pub(super) const COMMAND: u8 = 10;
    pub(super) const DOORBELL: u8 = 11;
    pub(super) const PARK: u8 = 12;
    pub(super) const MEMORY: u8 = 13;
    pub(super) const RESET: u8 = 14;
    pub(super) const COUNT: u8 = 15;
}

/// Ring sizes, log2: the submission ring's and the completion ring's.
const RINGS: [(u8, u8); 3] = [(3, 3), (2, 4), (4, 1)];

struct Rig {
    world: World,
    /// Of each queue: cookies of descriptors that are in the ring and not completed; `None` where that is unknown,
    /// since its doorbell or ring was spoilt.
    pending: [Option<BTreeMap<u64, ()>>; QUEUES as usize],
    next_cookie: u64,
}

pub(super) fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let header = input.u8();
    let mut world = World::new(header);
    world.configure();
    let mut rig = Rig { world, pending: [const { None }; QUEUES as usize], next_cookie: 1 };
    rig.enable(0, 0, None);
    if header & 0x40 != 0 {
        rig.enable(1, 1, Some(pasid::FIRST));
    }
    while !input.is_empty() {
        rig.step(&mut input);
    }
    rig.end();
}

impl Rig {
    fn enable(&mut self, queue: u8, size: u8, user: Option<u32>) {
        // Only from rest: what was under way would complete into the new ring's count.
        self.world.write32(World::register(queue, regs::QUEUE_CONTROL), 0);
        self.world.settle();
        if self.world.status(queue).enabled() {
            // It still waits for an answer to a page request, and so for the time to pass.
            self.pending[usize::from(queue)] = None;
            return;
        }
        let (sq_log2, cq_log2) = RINGS[usize::from(size) % RINGS.len()];
        self.world.enable(queue, sq_log2, cq_log2, user);
        // The device's own words start over when the engine has taken the enable (docs/device-reference.md).
        self.world.settle();
        self.pending[usize::from(queue)] = Some(BTreeMap::new());
    }

    fn push(&mut self, queue: u8, mut descriptor: Descriptor) {
        let n = usize::from(queue);
        let ring = self.world.rings[n];
        let Some(pending) = &mut self.pending[n] else { return };
        // A driver knows by the completions that it has reaped how much room there is.
        if pending.len() >= 1 << ring.sq_log2 {
            return;
        }
        descriptor.cookie = self.next_cookie;
        self.next_cookie += 1;
        pending.insert(descriptor.cookie, ());
        self.world.push(queue, &descriptor);
        self.world.ring(queue);
    }

    fn step(&mut self, input: &mut Input<'_>) {
        match input.below(op::COUNT) {
            op::PUSH => {
                let queue = input.below(QUEUES);
                let descriptor = descriptor(input);
                self.push(queue, descriptor);
            }
            op::RAW => {
                let queue = input.below(QUEUES);
                let descriptor = Descriptor::read_from_bytes(&input.array::<64>()).expect("any bits are one");
                self.push(queue, descriptor);
            }
            op::RUN => {
                self.world.slices(input.u8().into());
            }
            op::REAP => self.reap(input.below(QUEUES)),
            op::LIST => self.list(input),
            op::PAGE => {
                let (page, rights) = (input.u8(), input.u8());
                self.world.set_page(page, rights.into());
                if rights & 8 == 0 {
                    self.world.forget_page(page);
                }
            }
            op::SERVE => self.world.serve_page_requests(input.u8()),
            op::TIME => self.world.now_ns += u64::from(input.u16()),
            op::ENABLE => {
                let (queue, size, user) = (input.below(QUEUES), input.u8(), input.u8());
                self.enable(queue, size, (user & 1 != 0).then_some(u32::from(user) >> 1));
            }
            op::DISABLE => {
                let queue = input.below(QUEUES);
                self.world.write32(World::register(queue, regs::QUEUE_CONTROL), 0);
                // Aborted work completes where the ring has room: not all of it.
                self.pending[usize::from(queue)] = None;
            }
            op::COMMAND => {
                let (opcode, pasid) = (u64::from(input.u8() % 4), u64::from(input.u8() % 8));
                self.world.write64(regs::COMMAND, opcode | pasid << 32);
            }
            op::DOORBELL => {
                let (queue, word, value) = (input.below(QUEUES), input.flag(), input.u32());
                let word = if word { doorbell::SQ_TAIL } else { doorbell::CQ_HEAD };
                self.world.ring_word(queue, word, value);
                self.pending[usize::from(queue)] = None;
            }
            op::PARK => {
                self.world.engine.park();
            }
            op::MEMORY => {
                let _ = input.u8();
                self.world.change_memory();
            }
            op::RESET => {
                self.world.reset();
                self.world.settle();
                self.world.configure();
                self.pending = [const { None }; QUEUES as usize];
            }
            _ => unreachable!("below the number of operations"),
        }
    }

    /// A scatter list somewhere in the process's memory, entries as they come.
    fn list(&mut self, input: &mut Input<'_>) {
        let at = list_address(input.u8());
        for n in 0..u64::from(input.u8() % 16) {
            let place = input.u8();
            let entry = if place == 0xff {
                ScatterEntry { address: input.u64(), length: input.u64() }
            } else {
                ScatterEntry { address: data_address(place), length: u64::from(input.u16() & 0x3fff) }
            };
            self.world.store(at + 16 * n, entry.as_bytes());
        }
    }

    fn reap(&mut self, queue: u8) {
        let n = usize::from(queue);
        // An unknown number of completions under way, or a ring whose pages were taken or written over: not looked at.
        if self.pending[n].is_none() {
            return;
        }
        while let Some(completion) = self.world.reap_one(queue) {
            if self.world.status(queue).halted() {
                self.pending[n] = None;
                return;
            }
            let pending = self.pending[n].as_mut().expect("just looked at");
            // A descriptor may well write over the rings: they are memory of its process. Then nothing is promised.
            if completion.seq != self.world.rings[n].head {
                self.pending[n] = None;
                return;
            }
            assert!(Code::from_raw(completion.status).is_some(), "{completion:?} has a status that the ABI knows");
            assert!(FaultFlags::from_bits(completion.fault).is_some() && completion.reserved == 0, "{completion:?}");
            assert!(pending.remove(&completion.cookie).is_some(), "{completion:?} for a descriptor that is pending");
        }
    }

    /// Time passes, and every descriptor is over.
    fn end(mut self) {
        for _ in 0..64 {
            self.world.settle();
            for queue in 0..QUEUES {
                self.reap(queue);
            }
            self.world.serve_page_requests(0);
            self.world.now_ns += 10_000;
        }
        self.world.settle();
        self.world.check_invalidations();
        self.world.check_canary();
        for queue in 0..QUEUES {
            self.reap(queue);
            let halted = self.world.status(queue).halted();
            let n = usize::from(queue);
            if let Some(pending) = self.pending[n].as_ref().filter(|_| !halted) {
                assert!(pending.is_empty(), "queue {queue} never completed {pending:?}");
            }
        }
        self.world.serves_again();
    }
}

/// Operands lie in pages 16 to 63, four starts a page.
fn data_address(byte: u8) -> u64 {
    0x1_0000 + u64::from(byte) * 0x400
}

fn list_address(byte: u8) -> u64 {
    0x1_8000 + u64::from(byte % 64) * 0x100
}

/// A descriptor near what is valid.
fn descriptor(input: &mut Input<'_>) -> Descriptor {
    let opcode = input.u8() % 8;
    let flags = DescriptorFlags::from_bits_truncate(input.u8());
    let owner = input.u8() % 8;
    let (src, dst) = (input.u8(), input.u8());
    let length = u64::from(input.u16());
    let spoil = input.u8();
    let mut d = Descriptor { opcode, flags: flags.bits(), ..Default::default() };
    if owner != 0 {
        d.pasid = DescriptorPasid::new().with_pasid(owner.into()).with_valid(true);
    }
    let list = |flag, byte| if flags.contains(flag) { list_address(byte) } else { data_address(byte) };
    if matches!(opcode, opcode::COPY | opcode::COMPARE | opcode::CRC32C) {
        d.src = list(DescriptorFlags::SRC_LIST, src);
        d.src_entries = u32::from(flags.contains(DescriptorFlags::SRC_LIST)) * u32::from(src % 17);
    }
    if matches!(opcode, opcode::COPY | opcode::COMPARE | opcode::FILL) {
        d.dst = list(DescriptorFlags::DST_LIST, dst);
        d.dst_entries = u32::from(flags.contains(DescriptorFlags::DST_LIST)) * u32::from(dst % 17);
    }
    if opcode > opcode::DRAIN {
        d.length = length;
    }
    if matches!(opcode, opcode::FILL | opcode::CRC32C) {
        d.operand = u64::from(spoil);
    }
    match spoil {
        0xf0 => d.length = input.u64(),
        0xf1 => d.src = input.u64(),
        0xf2 => d.dst = input.u64(),
        0xf3 => d.src_entries = MAX_SCATTER_ENTRIES + u32::from(input.u8()) - 128,
        0xf4 => d.flags = input.u8(),
        0xf5 => d.reserved1 = 1,
        0xf6 => d.operand = input.u64(),
        0xf7 => d.pasid = input.u32().into(),
        _ => {}
    }
    d
}

pub(super) fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let owner = u8::try_from(pasid::FIRST).expect("small");
    let push = |seed: Seed, opcode: u8, flags: u8, src: u8, dst: u8, length: u16| {
        seed.u8(op::PUSH).bytes(&[0, opcode, flags, owner, src, dst]).u16(length).u8(0)
    };
    let run = |seed: Seed| seed.u8(op::RUN).u8(40).u8(op::REAP).u8(0);
    let each = |seed: Seed, flags: u8| {
        (opcode::NOP..=opcode::CRC32C).fold(seed, |seed, opcode| push(seed, opcode, flags, 4, 40, 0x1800))
    };
    let lists = |seed: Seed| {
        let seed = seed.u8(op::LIST).u8(3).u8(3).bytes(&[8, 0, 1, 16, 0, 2, 24, 0, 3]);
        seed.u8(op::LIST).u8(2).u8(2).bytes(&[64, 0, 2, 80, 0, 4])
    };
    let lists = push(run(lists(Seed::new().u8(0))), opcode::COPY, 0x18, 3, 2, 0x600);
    // Page 30 is missing: asked for, mapped, served.
    let fault = |code| {
        let seed = Seed::new().u8(1).u8(op::PAGE).bytes(&[30, 0]).u8(op::PAGE).bytes(&[31, 0]);
        let seed = push(seed, opcode::COPY, 0, 56, 100, 0x1000).u8(op::RUN).u8(20);
        run(seed.u8(op::PAGE).bytes(&[30, 7]).u8(op::PAGE).bytes(&[31, 7]).u8(op::SERVE).u8(code))
    };
    let user = |seed: Seed| {
        let push = |seed: Seed, opcode: u8| seed.u8(op::PUSH).bytes(&[1, opcode, 1, 0, 0, 64]).u16(0x900).u8(0);
        push(push(seed, opcode::FILL), opcode::COMPARE).u8(op::RUN).u8(30).u8(op::REAP).u8(1)
    };
    let abort = push(push(Seed::new().u8(0), opcode::FILL, 0, 0, 180, 0x4000), opcode::CRC32C, 2, 0, 0, 0x4000);
    let abort = abort.u8(op::RUN).u8(3).u8(op::COMMAND).bytes(&[1, owner]).u8(op::RUN).u8(9).u8(op::SERVE).u8(1);
    let restart = run(each(Seed::new().u8(0), 0)).u8(op::DISABLE).u8(0).u8(op::RUN).u8(4);
    let restart = each(restart.u8(op::ENABLE).bytes(&[0, 2, 0]), 1);
    vec![
        ("each-opcode", run(each(run(each(Seed::new().u8(0), 0)), 1)).done()),
        ("fences", run(each(Seed::new().u8(2), 3)).done()),
        ("lists", run(lists).done()),
        ("page-fault", fault(0).done()),
        ("page-fault-invalid", fault(1).done()),
        ("page-fault-failure", fault(15).done()),
        ("page-fault-stop", run(push(Seed::new().u8(0), opcode::COPY, 4, 170, 30, 0x4000)).done()),
        ("user-queue", user(Seed::new().u8(0x40)).done()),
        ("abort", run(abort).done()),
        (
            "time-out",
            run(push(Seed::new().u8(0), opcode::FILL, 0, 0, 176, 0x100).u8(op::RUN).u8(9).u8(op::TIME).u16(2000))
                .done(),
        ),
        ("disable-and-on", run(restart).done()),
        (
            "bad-doorbell",
            run(push(Seed::new().u8(0), 0, 0, 0, 0, 0).u8(op::DOORBELL).bytes(&[0, 1, 0, 1, 0, 0])).done(),
        ),
        (
            "park-and-unmap",
            run(each(Seed::new().u8(1), 0).u8(op::PARK).u8(op::PAGE).bytes(&[17, 0]).u8(op::MEMORY).u8(3))
                .u8(op::PARK)
                .done(),
        ),
        (
            "reset",
            run(each(Seed::new().u8(0), 0).u8(op::RUN).u8(2).u8(op::RESET).u8(op::ENABLE).bytes(&[0, 0, 0])).done(),
        ),
    ]
}
