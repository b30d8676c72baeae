//! PCI configuration space of an accelerator and of the IOMMU's function.
//!
//! Holds: reads agree byte by byte; what identifies the function and its capabilities never changes; a write's effects
//! are what changed, no more and no less; a reset leaves nothing, and each is reported once.
use std::sync::Arc;

use svadev_pci::{ConfigEffect, ConfigEffects, ConfigSpace, IommuFunction};
use svadev_spec::pcie::{CONFIG_SPACE_SIZE, extended_capability, header};

use crate::worlds::accelerator::{World, find_capability};
use crate::{Input, Seed};

mod op {
    pub(super) const WRITE: u8 = 0;
    pub(super) const READ: u8 = 1;
    pub(super) const BAR: u8 = 2;
    pub(super) const COMMAND: u8 = 3;
    pub(super) const RESET: u8 = 4;
    pub(super) const RUN: u8 = 5;
    pub(super) const COUNT: u8 = 6;
}

/// Either kind of function.
enum Function {
    Accelerator(Box<World>),
    Iommu(IommuFunction),
}

impl Function {
    fn config(&self) -> &ConfigSpace {
        match self {
            Self::Accelerator(world) => world.config(),
            Self::Iommu(function) => function.config(),
        }
    }

    fn read(&mut self, offset: u64, buf: &mut [u8]) {
        match self {
            Self::Accelerator(world) => world.config_read(offset, buf),
            Self::Iommu(function) => function.config_read(offset, buf),
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> ConfigEffects {
        match self {
            Self::Accelerator(world) => world.config_write(offset, data),
            Self::Iommu(function) => function.config_write(offset, data),
        }
    }

    fn reset(&mut self) {
        match self {
            Self::Accelerator(world) => world.reset(),
            Self::Iommu(function) => function.reset(),
        }
    }
}

/// What effects are about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct State {
    memory_space: bool,
    bus_master: bool,
    interrupt_disable: bool,
    bars: [Option<u64>; header::BARS],
    msi_x: (bool, bool),
    ats: (bool, u8),
    pri: (bool, u32),
    pasid: bool,
}

impl State {
    fn of(config: &ConfigSpace) -> Self {
        Self {
            memory_space: config.command().memory_space(),
            bus_master: config.command().bus_master(),
            interrupt_disable: config.command().interrupt_disable(),
            bars: [0, 1, 2, 3, 4, 5].map(|bar| config.bar_address(bar)),
            msi_x: (config.msi_x().enable(), config.msi_x().function_mask()),
            ats: (config.ats().enable(), 12 + config.ats().smallest_translation_unit()),
            pri: (config.page_requests_enabled(), config.page_request_allocation()),
            pasid: config.pasid().enable(),
        }
    }

    /// As somebody sees it who heard of `effect` only.
    fn told(&mut self, effect: ConfigEffect) {
        match effect {
            ConfigEffect::MemorySpace(on) => self.memory_space = on,
            ConfigEffect::BusMaster(on) => self.bus_master = on,
            ConfigEffect::InterruptDisable(on) => self.interrupt_disable = on,
            ConfigEffect::Bar { bar, address } => {
                self.bars[usize::try_from(bar).expect("one of six")] = address;
            }
            ConfigEffect::MsiX { enabled, masked } => self.msi_x = (enabled, masked),
            ConfigEffect::Ats { enabled, smallest_translation_unit_log2 } => {
                self.ats = (enabled, smallest_translation_unit_log2);
            }
            ConfigEffect::Pri { enabled, allocation } => self.pri = (enabled, allocation),
            ConfigEffect::Pasid { enabled } => self.pasid = enabled,
            ConfigEffect::Flr | ConfigEffect::PriReset => {}
        }
    }
}

pub(super) fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let mut function = match input.u8() % 3 {
        0 => Function::Iommu(IommuFunction::new()),
        _ => Function::Accelerator(Box::new(World::new(0))),
    };
    let fixed = identity(&mut function);
    let fresh = image(&mut function);
    while !input.is_empty() {
        step(&mut function, &mut input);
        assert_eq!(identity(&mut function), fixed, "what identifies the function stays");
        for bar in 0..8 {
            if let Some(address) = function.config().bar_address(bar) {
                let size = function.config().bar_size(bar);
                assert!(size.is_power_of_two() && address.is_multiple_of(size), "BAR {bar} at {address:#x}");
            }
        }
    }
    function.reset();
    if let Function::Accelerator(world) = &mut function {
        world.settle();
        world.check_resets();
    }
    assert_eq!(image(&mut function), fresh, "nothing is left after a reset");
    if let Function::Accelerator(world) = function {
        world.serves_again();
    }
}

fn step(function: &mut Function, input: &mut Input<'_>) {
    match input.below(op::COUNT) {
        op::WRITE => {
            let offset = offset(input);
            let len = input.below(10).into();
            write(function, offset, input.bytes(len));
        }
        op::READ => {
            let (offset, len) = (offset(input), usize::from(input.u8()));
            let mut whole = vec![0xee; len];
            function.read(offset, &mut whole);
            for (n, &byte) in (0u64..).zip(&whole) {
                let mut one = [0xee];
                function.read(offset.saturating_add(n), &mut one);
                assert_eq!(one[0], byte, "byte {n} of a read of {len} at {offset:#x}");
            }
        }
        op::BAR => {
            let bar = u64::from(input.below(6));
            let value = input.u32();
            write(function, u64::from(header::BAR0) + 4 * bar, &value.to_le_bytes());
        }
        op::COMMAND => {
            let value = input.u16();
            write(function, header::COMMAND.into(), &value.to_le_bytes());
        }
        op::RESET => function.reset(),
        op::RUN => {
            if let Function::Accelerator(world) = function {
                world.slices(input.u8().into());
            }
        }
        _ => unreachable!("below the number of operations"),
    }
}

/// Mostly where something is.
fn offset(input: &mut Input<'_>) -> u64 {
    match input.u8() {
        byte @ 0..=0x3f => u64::from(byte) * 4,
        byte @ 0x40..=0x9f => 0x100 + u64::from(byte - 0x40) * 4,
        0xa0..=0xef => input.u16().into(),
        _ => input.u64(),
    }
}

fn write(function: &mut Function, offset: u64, data: &[u8]) {
    let mut told = State::of(function.config());
    let before = image(function);
    let effects = function.write(offset, data);
    for effect in effects {
        told.told(effect);
    }
    assert_eq!(told, State::of(function.config()), "the effects of a write at {offset:#x} are what changed");
    if offset >= CONFIG_SPACE_SIZE as u64 || data.is_empty() {
        assert!(effects.is_empty() && image(function) == before, "there is nothing at {offset:#x}");
    }
}

fn image(function: &mut Function) -> Vec<u8> {
    let mut bytes = vec![0; CONFIG_SPACE_SIZE];
    function.read(0, &mut bytes);
    bytes
}

/// Identification, and the chain of extended capabilities: their identifiers and places.
fn identity(function: &mut Function) -> (Vec<u8>, Vec<[u8; 4]>) {
    let bytes = image(function);
    let fixed = [&bytes[..4], &bytes[8..12], &bytes[14..15], &bytes[0x2c..0x30], &bytes[0x34..0x35]].concat();
    let mut chain = Vec::new();
    let mut at = 0x100;
    while at != 0 {
        assert!(chain.len() < 64, "the list of capabilities ends");
        let dword: [u8; 4] = bytes[at..at + 4].try_into().expect("four bytes");
        chain.push(dword);
        at = usize::from(u16::from_le_bytes([dword[2], dword[3]]) >> 4) & !3;
    }
    (fixed, chain)
}

pub(super) fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let world = World::new(0);
    let config = Arc::new(world.config().clone());
    let at = |id| find_capability(&config, id);
    let write = |seed: Seed, offset: u64, bytes: &[u8]| {
        let offset = u16::try_from(offset).expect("in configuration space");
        seed.u8(op::WRITE).u8(0xa0).u16(offset).u8(u8::try_from(bytes.len()).expect("few")).bytes(bytes)
    };
    // As firmware and a kernel enumerate: size each BAR, place it, enable.
    let enumerate = |kind: u8| {
        let seed = Seed::new().u8(kind).repeat(6, |seed, bar| {
            let bar = u8::try_from(bar).expect("six");
            seed.u8(op::BAR).u8(bar).u32(u32::MAX).u8(op::READ).u8(4 + bar).u8(4)
        });
        let seed = seed.repeat(6, |seed, bar| {
            let place = if bar % 2 == 0 { 0xfd00_0000 + 0x10_0000 * u32::try_from(bar).expect("six") } else { 0 };
            seed.u8(op::BAR).u8(u8::try_from(bar).expect("six")).u32(place)
        });
        seed.u8(op::COMMAND).u16(6).u8(op::READ).u8(0).u8(255)
    };
    // As intel-iommu enables PASID, ATS and PRI, and disables them in the other order.
    let enable = |seed: Seed| {
        let seed = write(seed, at(extended_capability::PASID) + 6, &[1, 0]);
        let seed = write(seed, at(extended_capability::PRI) + 12, &[32, 0, 0, 0]);
        let seed = write(seed, at(extended_capability::PRI) + 4, &[1, 0]);
        write(seed, at(extended_capability::ATS) + 6, &[0, 0x80])
    };
    let disable = |seed: Seed| {
        let seed = write(seed, at(extended_capability::ATS) + 6, &[0, 0]);
        let seed = write(seed, at(extended_capability::PRI) + 4, &[0, 0]);
        let seed = write(seed, at(extended_capability::PRI) + 4, &[2, 0]);
        write(seed, at(extended_capability::PASID) + 6, &[0, 0])
    };
    let express = |seed: Seed| {
        // The PCI Express capability's device control, wherever it is: FLR at any dword of the first 256 bytes.
        seed.repeat(48, |seed, n| {
            seed.u8(op::WRITE).u8(u8::try_from(16 + n).expect("few")).u8(2).u16(0x8000).u8(op::RUN).u8(2)
        })
    };
    vec![
        ("enumerate-iommu", enumerate(0).done()),
        ("enumerate", enumerate(1).done()),
        ("translation-services", disable(enable(enumerate(1)).u8(op::RUN).u8(3)).done()),
        ("reset-while-enabled", enable(enumerate(1)).u8(op::RESET).u8(op::RUN).u8(1).done()),
        ("function-level-reset", express(enable(enumerate(1))).done()),
        (
            "wide-write",
            Seed::new()
                .u8(2)
                .u8(op::WRITE)
                .u8(0)
                .u8(9)
                .bytes(&[0xff; 9])
                .u8(op::WRITE)
                .u8(0xa0)
                .u16(0xffd)
                .u8(9)
                .bytes(&[0xff; 9])
                .done(),
        ),
    ]
}
