//! An accelerator's BARs: registers, doorbell pages and MSI-X table by any access, while the engine runs.
//!
//! Holds: read-only registers keep their value; accesses that are none read zero; a reset leaves nothing; a clean
//! descriptor is served afterwards.
use svadev_spec::device::{
    ABI_MAJOR, ABI_MINOR, BAR_DOORBELLS, BAR_MSIX, BAR_REGISTERS, DOORBELL_STRIDE, ID_MAGIC, doorbell, regs,
};

use crate::worlds::accelerator::{QUEUES, World};
use crate::{Input, Seed};

mod op {
    pub(super) const REGISTER: u8 = 0;
    pub(super) const QUEUE: u8 = 1;
    pub(super) const DOORBELL: u8 = 2;
    pub(super) const WRITE_ANY: u8 = 3;
    pub(super) const READ: u8 = 4;
    pub(super) const CONFIG: u8 = 5;
    pub(super) const RUN: u8 = 6;
    pub(super) const PARK: u8 = 7;
    pub(super) const RESET: u8 = 8;
    pub(super) const MEMORY: u8 = 9;
    pub(super) const COUNT: u8 = 10;
}

const REGISTERS: [u64; 8] = [
    regs::CONTROL,
    regs::COMMAND,
    regs::COMMAND + 4,
    regs::WAKE,
    regs::STATUS,
    regs::COMMAND_STATUS,
    regs::ABORT,
    regs::ABORT + 4,
];
const BARS: [u32; 4] = [BAR_REGISTERS, BAR_DOORBELLS, BAR_MSIX, 5];

pub(super) fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let mut world = World::new(0);
    let fresh = registers(&mut world);
    if input.flag() {
        world.configure();
    }
    while !input.is_empty() {
        step(&mut world, &mut input);
        assert_eq!(world.read32(regs::ID), ID_MAGIC);
        assert_eq!(world.read32(regs::VERSION), u32::from(ABI_MAJOR) << 16 | u32::from(ABI_MINOR));
    }
    world.reset();
    world.settle();
    world.check_resets();
    assert_eq!(registers(&mut world), fresh, "nothing is left after a reset");
    world.serves_again();
}

/// All registers, and the MSI-X table.
fn registers(world: &mut World) -> Vec<u32> {
    let end = regs::QUEUES + u64::from(QUEUES) * regs::QUEUE_STRIDE;
    let mut all: Vec<u32> = (0..end).step_by(4).map(|at| world.read32(at)).collect();
    for at in (0..16 * u64::from(QUEUES)).step_by(4) {
        let mut word = [0; 4];
        world.bar_read(BAR_MSIX, at, &mut word);
        all.push(u32::from_le_bytes(word));
    }
    all
}

fn step(world: &mut World, input: &mut Input<'_>) {
    match input.below(op::COUNT) {
        op::REGISTER => {
            let (at, value) = (input.pick(&REGISTERS), input.u64());
            if value >> 32 == 0 {
                world.write32(at, u32::try_from(value).expect("just looked at"));
            } else {
                world.write64(at, value);
            }
        }
        op::QUEUE => queue_register(world, input),
        op::DOORBELL => {
            let (queue, word, value) = (input.below(QUEUES), input.u8(), input.u32());
            let offset = u64::from(queue) * DOORBELL_STRIDE + u64::from(word) * 4;
            world.bar_write(BAR_DOORBELLS, offset, &value.to_le_bytes());
            let mut back = [0; 4];
            world.bar_read(BAR_DOORBELLS, offset, &mut back);
            assert_eq!(u32::from_le_bytes(back), value, "a doorbell page is memory");
        }
        op::WRITE_ANY => {
            let (bar, at, len) = (input.pick(&BARS), place(input), input.below(18).into());
            let data = input.bytes(len);
            world.bar_write(bar, at, data);
        }
        op::READ => {
            let (bar, at, len) = (input.pick(&BARS), place(input), input.below(70).into());
            let mut data = vec![0xee; len];
            world.bar_read(bar, at, &mut data);
            let register = matches!(len, 4 | 8) && at.is_multiple_of(len as u64);
            if (bar == BAR_REGISTERS && !register) || bar == 5 || at >= world.config().bar_size(bar) {
                assert!(data.iter().all(|&byte| byte == 0), "{len} bytes at {at:#x} of BAR {bar} are nothing");
            }
        }
        op::CONFIG => {
            let (at, value) = (u64::from(input.u8()) * 2, input.u16());
            let _ = world.config_write(at, &value.to_le_bytes());
        }
        op::RUN => {
            world.slices(input.u8().into());
            world.now_ns += 100;
        }
        op::PARK => {
            world.engine.park();
        }
        op::RESET => world.reset(),
        op::MEMORY => {
            let at = u64::from(input.u16());
            world.store(at << 2, &input.array::<8>());
        }
        _ => unreachable!("below the number of operations"),
    }
}

/// One register of one queue, with values that are often good.
fn queue_register(world: &mut World, input: &mut Input<'_>) {
    let (queue, register, kind) = (input.below(QUEUES), u64::from(input.u8() % 16) * 4, input.u8());
    let value = match register {
        _ if kind >= 0xc0 => input.u64(),
        regs::QUEUE_SQ_BASE | regs::QUEUE_CQ_BASE => u64::from(kind) << 12,
        regs::QUEUE_SIZE => u64::from(kind & 7) | u64::from(kind >> 3 & 7) << 8,
        regs::QUEUE_PASID if kind & 1 != 0 => u64::from(kind >> 1) | 1 << 31,
        regs::QUEUE_VECTOR if kind & 1 != 0 => u64::from(kind >> 1) | 1 << 31,
        regs::QUEUE_CONTROL => u64::from(kind & 1),
        _ => 0,
    };
    let at = World::register(queue, register);
    match u32::try_from(value) {
        Ok(value) if register % 8 != 0 || kind & 2 != 0 => world.write32(at, value),
        _ => world.write64(at & !7, value),
    }
}

fn place(input: &mut Input<'_>) -> u64 {
    match input.u8() {
        byte @ 0..=0x7f => u64::from(byte) * 4,
        byte @ 0x80..=0xbf => regs::QUEUES + u64::from(byte - 0x80) * 4,
        0xc0..=0xef => input.u16().into(),
        _ => input.u64(),
    }
}

pub(super) fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let word = |at: u64| u8::try_from(at / 4).expect("in the first kilobyte");
    let queue = |seed: Seed, register: u64, kind: u8| seed.u8(op::QUEUE).bytes(&[0, word(register), kind]);
    let enable = |seed: Seed| {
        let seed = queue(queue(seed, regs::QUEUE_SQ_BASE, 0), regs::QUEUE_CQ_BASE, 2);
        let seed = queue(queue(seed, regs::QUEUE_SIZE, 0x1b), regs::QUEUE_PASID, 0);
        queue(queue(seed, regs::QUEUE_VECTOR, 1), regs::QUEUE_CONTROL, 1)
    };
    let ring =
        |seed: Seed, tail| seed.u8(op::DOORBELL).bytes(&[0, word(doorbell::SQ_TAIL)]).u32(tail).u8(op::RUN).u8(20);
    let running = || ring(enable(Seed::new().u8(1)), 3);
    let command = |seed: Seed, value| seed.u8(op::REGISTER).u8(1).u64(value).u8(op::RUN).u8(5);
    let look = |seed: Seed| {
        [0x00, 0x02, 0x0a, 0x10, 0x80, 0x88].into_iter().fold(seed, |seed, at| seed.u8(op::READ).bytes(&[0, at, 8]))
    };
    vec![
        ("look", look(Seed::new().u8(0)).done()),
        ("enable-and-ring", look(ring(running(), 4)).done()),
        ("commands", command(command(command(running(), 1 | 1 << 32), 2 | 1 << 32), 9).done()),
        ("disable", queue(running(), regs::QUEUE_CONTROL, 0).u8(op::RUN).u8(3).u8(op::REGISTER).u8(0).u64(0).done()),
        ("reset-while-running", ring(enable(running().u8(op::RESET)), 2).u8(op::PARK).done()),
        ("tail-too-far", ring(enable(Seed::new().u8(1)), 1000).done()),
        (
            "msi-x-table",
            Seed::new()
                .u8(1)
                .u8(op::WRITE_ANY)
                .bytes(&[2, 3, 16])
                .bytes(&[0x5a; 16])
                .u8(op::READ)
                .bytes(&[2, 0, 64])
                .done(),
        ),
        (
            "odd-accesses",
            Seed::new()
                .u8(1)
                .u8(op::WRITE_ANY)
                .bytes(&[0, 0xf0])
                .u64(u64::MAX)
                .u8(8)
                .bytes(&[1; 8])
                .u8(op::READ)
                .bytes(&[1, 0xf0])
                .u64(u64::MAX - 3)
                .u8(4)
                .done(),
        ),
        ("bus-master-off", ring(running().u8(op::CONFIG).u8(2).u16(0), 5).u8(op::MEMORY).u16(0).u64(2).done()),
    ]
}
