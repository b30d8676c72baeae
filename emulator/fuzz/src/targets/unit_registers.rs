//! The unit's register page: any access at any offset, with requests of functions between.
//!
//! Holds: read-only registers keep their value, halves agree with the whole, requests are counted once, a reset leaves
//! nothing.
use svadev_fabric::{Gpa, InvalidateTag, TranslationRequest};
use svadev_iommu::{Blocked, REGISTER_SPACE, Unit, VERSION};
use svadev_spec::vtd::registers::offset;

use crate::worlds::tables::{DEVICE, ROOT};
use crate::worlds::unit::{self, QUEUE, RAM, STATUS, World};
use crate::{Input, Seed};

/// Operations, by the first byte modulo their number.
mod op {
    pub(super) const WRITE32: u8 = 0;
    pub(super) const WRITE64: u8 = 1;
    pub(super) const WRITE_ANY: u8 = 2;
    pub(super) const READ: u8 = 3;
    pub(super) const POKE: u8 = 4;
    pub(super) const TRANSLATE: u8 = 5;
    pub(super) const ACCESS: u8 = 6;
    pub(super) const PAGE_REQUEST: u8 = 7;
    pub(super) const COMPLETE: u8 = 8;
    pub(super) const TIME_OUT: u8 = 9;
    pub(super) const REPEAT: u8 = 10;
    pub(super) const RESET: u8 = 11;
    pub(super) const TRANSLATED: u8 = 12;
    pub(super) const COUNT: u8 = 13;
}

/// Registers that are worth finding, in the order of their bytes in an input.
const REGISTERS: [u64; 24] = [
    offset::GCMD,
    offset::RTADDR,
    offset::CCMD,
    offset::FSTS,
    offset::FECTL,
    offset::FEDATA,
    offset::FEADDR,
    offset::IQT,
    offset::IQA,
    offset::ICS,
    offset::IECTL,
    offset::IEADDR,
    offset::PQH,
    offset::PQT,
    offset::PQA,
    offset::PRS,
    offset::PECTL,
    offset::IQH,
    offset::IQERCD,
    0xf0,
    0xf8,
    0x808,
    0x80c,
    0x83c,
];

fn register(input: &mut Input<'_>) -> u64 {
    let byte = input.u8();
    match usize::from(byte) {
        n if n < 2 * REGISTERS.len() => REGISTERS[n % REGISTERS.len()],
        n if n < 0xf0 => 4 * n as u64,
        _ => input.u16().into(),
    }
}

pub(super) fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let header = input.u8();
    let mut world = World::cold(unit::config(header));
    if header & 0x40 != 0 {
        world.bring_up(header & 0x80 != 0, QUEUE | 1 << 11 | 1);
    }
    while !input.is_empty() {
        step(&mut world, &mut input);
        world.check();
        check_constants(&mut world);
    }
    world.unit.reset();
    let mut fresh = Unit::new(world.unit.config().clone(), std::sync::Arc::clone(&world.memory));
    for at in (0..REGISTER_SPACE).step_by(8) {
        let (mut new, mut old) = ([0; 8], [0; 8]);
        fresh.read_register(at, &mut new);
        world.unit.read_register(at, &mut old);
        assert_eq!(old, new, "{at:#x} after a reset");
    }
    serves_again(world);
}

fn step(world: &mut World, input: &mut Input<'_>) {
    match input.below(op::COUNT) {
        op::WRITE32 => {
            let (at, value) = (register(input), input.u32());
            world.write32(at, value);
        }
        op::WRITE64 => {
            let (at, value) = (register(input), input.u64());
            world.write64(at, value);
        }
        op::WRITE_ANY => {
            let (at, len) = (input.u64(), input.below(17).into());
            let data = input.bytes(len);
            world.unit.write_register(at, data, &world.ports);
        }
        op::READ => read(world, register(input), input.below(20).into()),
        op::POKE => {
            let at = u64::from(input.u16()) << 3;
            world.store(at % RAM, &input.array::<8>());
        }
        op::TRANSLATE => {
            let (requester, pasid, iova, access) = unit::request(input);
            let request = TranslationRequest { requester, pasid, iova, access };
            let before = faults(world);
            let result = world.unit.translate(request, &world.ports);
            assert!(faults(world) - before <= u64::from(result.is_err()), "only what is refused is a fault");
        }
        op::ACCESS => {
            let (requester, pasid, iova, access) = unit::request(input);
            let before = faults(world);
            let result = world.unit.access(requester, pasid, iova, access, &world.ports);
            let blocked = matches!(result, Err(Blocked::Fault(_)));
            assert_eq!(faults(world) - before, u64::from(blocked), "each blocked access is a fault");
        }
        op::TRANSLATED => {
            let (requester, _, iova, access) = unit::request(input);
            let before = faults(world);
            let result = world.unit.translated(requester, Gpa(iova.0), access, &world.ports);
            let blocked = matches!(result, Err(Blocked::Fault(_)));
            assert_eq!(faults(world) - before, u64::from(blocked), "each blocked access is a fault");
        }
        op::PAGE_REQUEST => {
            world.page_request(unit::page_request(input));
        }
        op::COMPLETE => world.unit.invalidate_complete(DEVICE, InvalidateTag::unit(input.u8().into()), &world.ports),
        op::TIME_OUT => world.unit.invalidate_timed_out(DEVICE, &world.ports),
        op::REPEAT => world.unit.repeat_interrupts(&world.ports),
        op::RESET => world.unit.reset(),
        _ => unreachable!("below the number of operations"),
    }
}

/// Faults recorded, suppressed and lost.
fn faults(world: &World) -> u64 {
    let c = world.unit.counters();
    c.faults_recorded + c.faults_suppressed + c.faults_lost
}

/// A read of any size, and the halves of one of 8 bytes.
fn read(world: &mut World, at: u64, len: usize) {
    let mut data = vec![0xee; len];
    world.unit.read_register(at, &mut data);
    if !matches!(len, 4 | 8) || !at.is_multiple_of(len as u64) || at >= REGISTER_SPACE {
        assert!(data.iter().all(|&byte| byte == 0), "{len} bytes at {at:#x} are no register");
    } else if len == 8 {
        let halves = [world.read32(at), world.read32(at + 4)].map(u32::to_le_bytes).concat();
        assert_eq!(data, halves, "{at:#x} by halves");
    }
}

fn check_constants(world: &mut World) {
    assert_eq!(world.read32(offset::VER), VERSION);
    assert_eq!(world.read64(offset::CAP), u64::from(world.unit.config().capability()));
    assert_eq!(world.read64(offset::ECAP), u64::from(world.unit.config().extended_capability()));
    // Bits of GSTS that a unit without interrupt remapping can show (VT-d 4.1 §11.4.4.2).
    assert_eq!(world.read32(offset::GSTS) & !(1 << 31 | 1 << 30 | 1 << 26), 0);
}

/// Software can bring the unit up again, and a wait completes.
fn serves_again(mut world: World) {
    world.answer_later(0);
    world.bring_up(false, QUEUE | 1 << 11 | 1);
    let wait = [5 | 1 << 5 | 0x5a5a << 32, STATUS];
    world.store(QUEUE, &wait.map(u64::to_le_bytes).concat());
    world.write64(offset::IQT, 32);
    assert_eq!(world.read64(offset::IQH), 32, "the queue runs");
    let mut status = [0; 4];
    svadev_memory::GuestMemory::read(&world.memory.ram, svadev_memory::GuestAddress(STATUS), &mut status)
        .expect("the status is in memory");
    assert_eq!(u32::from_le_bytes(status), 0x5a5a, "the wait wrote its status");
}

pub(super) fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let index = |register| {
        u8::try_from(REGISTERS.iter().position(|&r| r == register).expect("a register of the list")).expect("few")
    };
    let write32 = |seed: Seed, at, value| seed.u8(op::WRITE32).u8(index(at)).u32(value);
    let write64 = |seed: Seed, at, value| seed.u8(op::WRITE64).u8(index(at)).u64(value);
    // As dmar_enable_qi() and the scalable-mode start of a kernel write it.
    let start = |header| {
        let seed = write64(Seed::new().u8(header), offset::IQT, 0);
        let seed = write64(seed, offset::IQA, QUEUE | 1 << 11 | 1);
        let seed = write32(seed, offset::GCMD, 1 << 26);
        let seed = write64(seed, offset::RTADDR, ROOT | 1 << 10);
        let seed = write32(seed, offset::GCMD, 1 << 30 | 1 << 26);
        let seed = write64(seed, offset::PQA, unit::PAGE_REQUESTS);
        let seed = write32(seed, offset::PECTL, 0);
        write32(seed, offset::GCMD, 1 << 31 | 1 << 26)
    };
    let traffic = |seed: Seed| {
        seed.u8(op::TRANSLATE)
            .bytes(&[0x34, 1, 3])
            .u8(op::ACCESS)
            .bytes(&[0x34, 1, 62])
            .u8(op::PAGE_REQUEST)
            .bytes(&[0x34, 1, 61, 0x03])
            .u8(op::ACCESS)
            .bytes(&[0x30, 5])
            .u8(op::TRANSLATE)
            .bytes(&[0x3b, 0x77, 0x01, 1, 9])
            .u8(op::TRANSLATED)
            .bytes(&[0x30, 5])
    };
    let serviced = |seed: Seed| {
        let seed = write32(traffic(seed), offset::PRS, 3);
        let seed = write64(seed, offset::PQH, 32);
        let seed = write32(seed, 0x80c, 1 << 31);
        write32(seed, offset::FSTS, 0x7f).u8(op::REPEAT)
    };
    let registers = |seed: Seed| {
        let seed = write32(seed, offset::GCMD, 1 << 31);
        let seed = write64(seed, offset::CCMD, 1 << 63 | 3 << 61 | 0x28 << 16);
        let seed = write64(seed, 0xf0, 0x3000);
        let seed = write64(seed, 0xf8, 1 << 63 | 3 << 60 | 17 << 32);
        seed.u8(op::READ).u8(index(0xf8)).u8(8).u8(op::READ).u8(index(offset::CCMD)).u8(4)
    };
    let queue = |seed: Seed| {
        let poke =
            |seed: Seed, at: u64, value| seed.u8(op::POKE).u16(u16::try_from(at >> 3).expect("in memory")).u64(value);
        let seed = poke(poke(seed, QUEUE, 6 | 3 << 4 | 17 << 16 | 1 << 32), QUEUE + 8, 0x3000);
        let seed = poke(poke(seed, QUEUE + 32, 5 | 3 << 4 | 7 << 32), QUEUE + 40, STATUS);
        write32(write64(seed, offset::IQT, 64), offset::ICS, 1).u8(op::COMPLETE).u8(0).u8(op::TIME_OUT)
    };
    vec![
        ("start", start(0).done()),
        ("traffic", serviced(start(1)).done()),
        ("queue", queue(traffic(start(2))).done()),
        ("register-commands", registers(traffic(Seed::new().u8(0x40))).done()),
        (
            "abort-dma",
            traffic(write32(write64(start(0), offset::RTADDR, 3 << 10), offset::GCMD, 1 << 31 | 1 << 30 | 1 << 26))
                .done(),
        ),
        ("legacy", serviced(Seed::new().u8(0xc0)).u8(op::RESET).done()),
        (
            "odd-sizes",
            Seed::new()
                .u8(0x41)
                .u8(op::WRITE_ANY)
                .u64(0x1b)
                .u8(3)
                .bytes(&[1; 3])
                .u8(op::READ)
                .u8(0xf1)
                .u16(0xffe)
                .u8(7)
                .done(),
        ),
    ]
}
