//! The space against a table of its own, software's ways through it, and random writes.
use proptest::prelude::*;

use svadev_spec::pcie::CONFIG_SPACE_SIZE;

use super::*;

const IOMMU: Description = IommuFunction::DESCRIPTION;

/// 32 KiB of registers, 2 × 32 pages of doorbells, 8 KiB for MSI-X; all capabilities.
const ACCELERATOR: Description = Description {
    msi_x: Some(MsiX { vectors: 5, bar: 4, table_offset: 0, pending_offset: 0x1000 }),
    ats: Some(Ats),
    pri: Some(Pri { capacity: 512 }),
    pasid: Some(Pasid { width: 20 }),
    ..Description::new(Identity { vendor: 0x1af4, device: 0x10f0, class: 0x12_00_00, revision: 1 })
        .with_bar(0, Bar { size: 0x8000, wide: true, prefetchable: false })
        .with_bar(2, Bar { size: 0x4_0000, wide: true, prefetchable: false })
        .with_bar(4, Bar { size: 0x2000, wide: true, prefetchable: false })
};

/// A dword of configuration space: offset, value after reset, writable bits, bits that a written 1 clears. Written from
/// the specification's tables, not from `layout`; dwords that are not here are read-only zero.
type Dword = (u64, u32, u32, u32);

const IOMMU_TABLE: &[Dword] = &[
    (0x00, 0x10f1_1af4, 0, 0),
    (0x04, 0x0010_0000, 0x0000_0546, 0xf900_0000),
    (0x08, 0x0806_0001, 0, 0),
    (0x0c, 0, 0x0000_00ff, 0),
    (0x10, 0x0000_0000, 0xffff_f000, 0),
    (0x2c, 0x10f1_1af4, 0, 0),
    (0x34, 0x0000_0040, 0, 0),
    (0x3c, 0, 0x0000_00ff, 0),
    (0x40, 0x0092_0010, 0, 0),
    (0x44, 0x0000_8000, 0, 0),
    (0x48, 0x0000_2000, 0x0000_700f, 0x000f_0000),
];

const ACCELERATOR_TABLE: &[Dword] = &[
    (0x00, 0x10f0_1af4, 0, 0),
    (0x04, 0x0010_0000, 0x0000_0546, 0xf900_0000),
    (0x08, 0x1200_0001, 0, 0),
    (0x0c, 0, 0x0000_00ff, 0),
    (0x10, 0x0000_0004, 0xffff_8000, 0),
    (0x14, 0, 0xffff_ffff, 0),
    (0x18, 0x0000_0004, 0xfffc_0000, 0),
    (0x1c, 0, 0xffff_ffff, 0),
    (0x20, 0x0000_0004, 0xffff_e000, 0),
    (0x24, 0, 0xffff_ffff, 0),
    (0x2c, 0x10f0_1af4, 0, 0),
    (0x34, 0x0000_0040, 0, 0),
    (0x3c, 0, 0x0000_00ff, 0),
    (0x40, 0x0092_8010, 0, 0),
    (0x44, 0x1000_8000, 0, 0),
    (0x48, 0x0000_2000, 0x0000_700f, 0x000f_0000),
    (0x64, 0x0070_0010, 0, 0),
    (0x68, 0, 0x0000_0010, 0),
    (0x80, 0x0004_0011, 0xc000_0000, 0),
    (0x84, 0x0000_0004, 0, 0),
    (0x88, 0x0000_1004, 0, 0),
    (0x100, 0x1101_000f, 0, 0),
    (0x104, 0x0000_0060, 0x801f_0000, 0),
    (0x110, 0x1201_0013, 0, 0),
    (0x114, 0x8100_0000, 0x0000_0001, 0x0003_0000),
    (0x118, 512, 0, 0),
    (0x11c, 0, 0xffff_ffff, 0),
    (0x120, 0x0001_001b, 0, 0),
    (0x124, 0x0000_1400, 0x0001_0000, 0),
];

const TABLES: [(Description, &[Dword]); 2] = [(IOMMU, IOMMU_TABLE), (ACCELERATOR, ACCELERATOR_TABLE)];

/// Offsets of what the tests drive.
const COMMAND: u64 = 0x04;
const BAR0: u64 = 0x10;
const DEVICE_CONTROL: u64 = 0x48;
const ATS_CONTROL: u64 = 0x106;
const PRI_CONTROL: u64 = 0x114;
const PRI_STATUS: u64 = 0x116;
const PRI_ALLOCATION: u64 = 0x11c;
const PASID_CONTROL: u64 = 0x126;

fn expected(table: &[Dword], offset: u64) -> Dword {
    table.iter().copied().find(|row| row.0 == offset).unwrap_or((offset, 0, 0, 0))
}

fn read32(space: &ConfigSpace, offset: u64) -> u32 {
    let mut bytes = [0; 4];
    space.read(offset, &mut bytes);
    u32::from_le_bytes(bytes)
}

fn read16(space: &ConfigSpace, offset: u64) -> u16 {
    let mut bytes = [0; 2];
    space.read(offset, &mut bytes);
    u16::from_le_bytes(bytes)
}

fn write32(space: &mut ConfigSpace, offset: u64, value: u32) -> Vec<ConfigEffect> {
    space.write(offset, &value.to_le_bytes()).into_iter().collect()
}

fn write16(space: &mut ConfigSpace, offset: u64, value: u16) -> Vec<ConfigEffect> {
    space.write(offset, &value.to_le_bytes()).into_iter().collect()
}

fn all(space: &ConfigSpace) -> Vec<u8> {
    let mut bytes = vec![0; CONFIG_SPACE_SIZE];
    space.read(0, &mut bytes);
    bytes
}

#[test]
fn every_bit_is_what_the_table_says() {
    for (kind, table) in TABLES {
        for offset in (0..4096).step_by(4) {
            let (_, reset, rw, rw1c) = expected(table, offset);
            assert_eq!(read32(&ConfigSpace::new(kind), offset), reset, "{kind:?} {offset:#x} after reset");
            for bit in (0..32).map(|n| 1_u32 << n) {
                // Written on its own, over zeros and over ones.
                for ones in [false, true] {
                    let mut space = ConfigSpace::new(kind);
                    let at = usize::try_from(offset).unwrap();
                    let start = if ones { reset | rw | rw1c } else { reset & !rw };
                    space.bytes[at..at + 4].copy_from_slice(&start.to_le_bytes());
                    let value = if ones { !bit & !rw1c | bit & rw1c } else { bit };
                    // Function level reset is a matter of its own.
                    let value = if offset == DEVICE_CONTROL { value & !0x8000 } else { value };
                    let _ = space.write(offset, &value.to_le_bytes());
                    let mut after = (start & !rw | value & rw) & !(value & rw1c);
                    if kind == ACCELERATOR && offset == PRI_CONTROL && bit == 1 && !ones {
                        // Stopped is read-only, but an enable clears it.
                        after &= !(1 << 24);
                    }
                    let seen = read32(&space, offset);
                    assert_eq!(seen, after, "{kind:?} {offset:#x} bit {bit:#x} over {start:#x}");
                }
            }
        }
    }
}

#[test]
fn capability_lists_are_well_formed() {
    for (kind, standard, extended) in
        [(IOMMU, &[0x10_u8][..], &[][..]), (ACCELERATOR, &[0x10, 0x11], &[0x000f_u16, 0x0013, 0x001b])]
    {
        let space = ConfigSpace::new(kind);
        assert_eq!(read16(&space, 0x06) & 1 << 4, 1 << 4, "there is a list");
        let (mut found, mut at) = (Vec::new(), u64::from(read16(&space, 0x34) & 0xff));
        while at != 0 {
            assert!(at >= 0x40 && at.is_multiple_of(4) && at < 0x100);
            let header = read16(&space, at);
            found.push(u8::try_from(header & 0xff).unwrap());
            assert!(found.len() <= 48, "the list ends");
            at = u64::from(header >> 8);
        }
        assert_eq!(found, standard);

        let (mut found, mut at) = (Vec::new(), 0x100_u64);
        while at != 0 {
            assert!(at >= 0x100 && at.is_multiple_of(4));
            let header = read32(&space, at);
            if header == 0 {
                // §7.6.1: no extended capability at all is ID, version and next pointer 0.
                assert_eq!(at, 0x100);
                break;
            }
            assert_eq!(header >> 16 & 0xf, 1);
            found.push(u16::try_from(header & 0xffff).unwrap());
            assert!(found.len() <= 960, "the list ends");
            at = u64::from(header >> 20);
        }
        assert_eq!(found, extended);
    }
}

#[test]
fn bars_are_sized_and_placed_as_firmware_does_it() {
    let mut space = ConfigSpace::new(ACCELERATOR);
    let sizes: Vec<_> = (0..7).map(|bar| space.bar_size(bar)).collect();
    assert_eq!(sizes, [0x8000, 0, 0x4_0000, 0, 0x2000, 0, 0]);
    for bar in [0, 2, 4] {
        let at = BAR0 + 4 * u64::from(bar);
        assert_eq!(write32(&mut space, at, u32::MAX), [], "memory space is off: nothing is decoded");
        assert_eq!(write32(&mut space, at + 4, u32::MAX), []);
        let mask = u64::from(read32(&space, at + 4)) << 32 | u64::from(read32(&space, at) & !0xf);
        assert_eq!((!mask).wrapping_add(1), space.bar_size(bar));
        assert_eq!(read32(&space, at) & 0xf, 4, "64-bit, not prefetchable memory");
    }
    let _ = write32(&mut space, BAR0, 0xfebf_0000);
    let _ = write32(&mut space, BAR0 + 4, 0);
    let _ = write32(&mut space, BAR0 + 8, 0x1234_5678);
    let _ = write32(&mut space, BAR0 + 12, 0x8);
    assert_eq!(space.bar_address(0), None);
    let on = write16(&mut space, COMMAND, 0x2);
    assert_eq!(
        on,
        [
            ConfigEffect::MemorySpace(true),
            ConfigEffect::Bar { bar: 0, address: Some(0xfebf_0000) },
            ConfigEffect::Bar { bar: 2, address: Some(0x8_1234_0000) },
        ],
        "BAR 4 is still being sized"
    );
    assert_eq!(write32(&mut space, BAR0, u32::MAX), [ConfigEffect::Bar { bar: 0, address: None }], "sized while on");
    let back = write32(&mut space, BAR0, 0xfebf_0000);
    assert_eq!(back, [ConfigEffect::Bar { bar: 0, address: Some(0xfebf_0000) }]);
    assert_eq!(write32(&mut space, BAR0, 0), [ConfigEffect::Bar { bar: 0, address: None }], "0 is no place");
    assert_eq!(write32(&mut space, BAR0 + 4, 1), [ConfigEffect::Bar { bar: 0, address: Some(1 << 32) }]);
    let off = write16(&mut space, COMMAND, 0);
    assert_eq!(off[0], ConfigEffect::MemorySpace(false));
    assert_eq!((0..6).filter_map(|bar| space.bar_address(bar)).count(), 0);

    // The IOMMU's is a 32-bit one.
    let mut space = ConfigSpace::new(IOMMU);
    let _ = write16(&mut space, COMMAND, 0x2);
    let _ = write32(&mut space, BAR0, u32::MAX);
    assert_eq!((read32(&space, BAR0), space.bar_address(0)), (0xffff_f000, None));
    let placed = write32(&mut space, BAR0, 0xfebf_1abc);
    assert_eq!(placed, [ConfigEffect::Bar { bar: 0, address: Some(0xfebf_1000) }]);
    assert_eq!((space.bar_size(0), space.bar_size(1)), (0x1000, 0));
}

#[test]
fn effects_say_what_changed_and_only_that() {
    let mut space = ConfigSpace::new(ACCELERATOR);
    assert_eq!(write16(&mut space, COMMAND, 0x4), [ConfigEffect::BusMaster(true)]);
    assert_eq!(write16(&mut space, COMMAND, 0x4), [], "again");
    assert!(space.command().bus_master());
    assert_eq!(write16(&mut space, COMMAND, 0x404), [ConfigEffect::InterruptDisable(true)]);
    assert_eq!(write16(&mut space, COMMAND, 0x444), [], "nobody asks for parity error response");
    assert_eq!(write16(&mut space, 0x82, 0x8000), [ConfigEffect::MsiX { enabled: true, masked: false }]);
    assert_eq!(write16(&mut space, 0x82, 0xc000), [ConfigEffect::MsiX { enabled: true, masked: true }]);
    assert_eq!(space.msi_x().table_size(), 4);
    assert_eq!(write16(&mut space, PASID_CONTROL, 0x7), [ConfigEffect::Pasid { enabled: true }]);
    assert_eq!(read16(&space, PASID_CONTROL), 1, "neither execute nor privileged");
    let on = write16(&mut space, ATS_CONTROL, 0x8003);
    assert_eq!(on, [ConfigEffect::Ats { enabled: true, smallest_translation_unit_log2: 15 }]);
    assert_eq!(write32(&mut space, 0x0c, u32::MAX), [], "kept for software");
    assert_eq!(write32(&mut space, 0x0, u32::MAX), []);
    // A byte of a register is as good as the whole.
    assert_eq!(
        space.write(ATS_CONTROL + 1, &[0]).into_iter().collect::<Vec<_>>(),
        [ConfigEffect::Ats { enabled: false, smallest_translation_unit_log2: 15 }]
    );
}

#[test]
fn pasid_control_holds_while_ats_is_enabled() {
    let mut space = ConfigSpace::new(ACCELERATOR);
    let _ = write16(&mut space, ATS_CONTROL, 0x8000);
    assert_eq!(write16(&mut space, PASID_CONTROL, 1), []);
    assert!(!space.pasid().enable());
    let _ = write16(&mut space, ATS_CONTROL, 0);
    assert_eq!(write16(&mut space, PASID_CONTROL, 1), [ConfigEffect::Pasid { enabled: true }]);
    // One write over all of it goes in order of address: ATS on, then the PASID bit is held.
    let mut bytes = all(&space);
    bytes[0x107] = 0x80;
    bytes[0x126] = 0;
    let once = space.write(0x100, &bytes[0x100..0x140]).into_iter().collect::<Vec<_>>();
    assert_eq!(once, [ConfigEffect::Ats { enabled: true, smallest_translation_unit_log2: 12 }]);
    assert!(space.pasid().enable());
}

#[test]
fn page_requests_stop_when_the_function_says_so() {
    let mut space = ConfigSpace::new(ACCELERATOR);
    // Linux: reset, read status for Stopped, write the allocation, enable.
    assert_eq!(write16(&mut space, PRI_CONTROL, 2), [ConfigEffect::PriReset]);
    assert_eq!(read16(&space, PRI_CONTROL), 0, "the reset bit reads 0");
    assert_eq!(read16(&space, PRI_STATUS), 0x8100);
    let allocation = write32(&mut space, PRI_ALLOCATION, 32);
    assert_eq!(allocation, [ConfigEffect::Pri { enabled: false, allocation: 32 }]);
    assert_eq!(write16(&mut space, PRI_CONTROL, 1), [ConfigEffect::Pri { enabled: true, allocation: 32 }]);
    assert_eq!(read16(&space, PRI_STATUS), 0x8000, "it may be sending");
    assert_eq!(write32(&mut space, PRI_ALLOCATION, 64), [], "held while enabled");
    assert_eq!(space.page_request_allocation(), 32);
    assert_eq!(write16(&mut space, PRI_CONTROL, 3), [], "no reset while enabled");
    space.set_page_requests_stopped();
    assert_eq!(read16(&space, PRI_STATUS), 0x8000, "not while enabled");

    assert_eq!(write16(&mut space, PRI_CONTROL, 0), [ConfigEffect::Pri { enabled: false, allocation: 32 }]);
    assert_eq!(read16(&space, PRI_STATUS), 0x8000, "requests may be outstanding");
    space.set_page_requests_stopped();
    assert_eq!(read16(&space, PRI_STATUS), 0x8100);
    let _ = write32(&mut space, PRI_ALLOCATION, u32::MAX);
    assert_eq!(space.page_request_allocation(), 512, "never above the capacity");

    space.set_response_failure();
    space.set_unexpected_prg_index();
    assert_eq!(read16(&space, PRI_STATUS), 0x8103);
    assert_eq!(write16(&mut space, PRI_STATUS, 0x1), []);
    assert_eq!(read16(&space, PRI_STATUS), 0x8102);
    assert_eq!(write16(&mut space, PRI_STATUS, 0xffff), []);
    assert_eq!(read16(&space, PRI_STATUS), 0x8100);
}

#[test]
fn function_level_reset_resets_all_of_it() {
    let fresh = all(&ConfigSpace::new(ACCELERATOR));
    let mut space = ConfigSpace::new(ACCELERATOR);
    let _ = write32(&mut space, BAR0, 0xfebf_0000);
    let _ = write16(&mut space, COMMAND, 0x6);
    let _ = write16(&mut space, PASID_CONTROL, 1);
    let _ = write16(&mut space, PRI_CONTROL, 1);
    let _ = write16(&mut space, ATS_CONTROL, 0x8000);
    space.set_response_failure();
    assert_eq!(read16(&space, 0x116) & 1, 1);
    let effects = write16(&mut space, DEVICE_CONTROL, 0x8000 | 0x2000);
    assert_eq!(
        effects,
        [
            ConfigEffect::Flr,
            ConfigEffect::BusMaster(false),
            ConfigEffect::MemorySpace(false),
            ConfigEffect::Bar { bar: 0, address: None },
            ConfigEffect::Pasid { enabled: false },
            ConfigEffect::Ats { enabled: false, smallest_translation_unit_log2: 12 },
            ConfigEffect::Pri { enabled: false, allocation: 0 },
        ]
    );
    assert_eq!(all(&space), fresh);
    // The bit is in the upper byte, which may be written on its own; and it works in a function at rest.
    assert_eq!(space.write(DEVICE_CONTROL + 1, &[0x80]).into_iter().collect::<Vec<_>>(), [ConfigEffect::Flr]);
    assert!(space.write(DEVICE_CONTROL, &[0x80]).is_empty(), "that byte has no such bit");
    let _ = write16(&mut space, COMMAND, 0x6);
    space.reset();
    assert_eq!(all(&space), fresh);
}

#[test]
fn accesses_of_any_place_and_size_are_safe() {
    let mut space = ConfigSpace::new(ACCELERATOR);
    let mut bytes = [0; 8];
    space.read(4092, &mut bytes);
    assert_eq!(bytes, [0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]);
    for offset in [4096, u64::from(u32::MAX), u64::MAX - 1, u64::MAX] {
        assert_eq!(read32(&space, offset), u32::MAX);
        assert_eq!(write32(&mut space, offset, u32::MAX), []);
    }
    assert!(space.write(0x10, &[]).is_empty());
    let before = all(&space);
    let _ = write32(&mut space, 4094, u32::MAX);
    assert_eq!(all(&space), before);
    // More than all of it: everything from BAR 0 on, and far beyond, in one write. The FLR bit is among it, so what it
    // leaves is what was written after that.
    let effects: Vec<_> = space.write(0, &[0xff; 10_000]).into_iter().collect();
    assert_eq!(effects[0], ConfigEffect::Flr);
    assert!(!space.command().bus_master() && space.ats().enable());
}

#[test]
fn the_iommus_function_has_nothing_to_translate_with() {
    let mut space = ConfigSpace::new(IOMMU);
    space.set_page_requests_stopped();
    space.set_response_failure();
    space.set_unexpected_prg_index();
    let effects: Vec<_> = space.write(0x80, &[0xff; 4096]).into_iter().collect();
    assert_eq!(effects, []);
    assert!(!space.ats().enable() && !space.pasid().enable() && !space.page_requests_enabled());
    assert!(!space.msi_x().enable());
    assert_eq!(all(&space), all(&ConfigSpace::new(IOMMU)));
}

/// The unit must not lose its state under a kernel that uses it for other functions.
#[test]
fn the_iommus_function_has_no_function_level_reset() {
    let mut space = ConfigSpace::new(IOMMU);
    assert_eq!(read32(&space, 0x44) & 1 << 28, 0, "Device Capabilities");
    let placed = ConfigEffect::Bar { bar: 0, address: Some(0xfebf_0000) };
    let _ = write16(&mut space, COMMAND, 2);
    assert_eq!(write32(&mut space, BAR0, 0xfebf_0000), [placed]);
    assert_eq!(write16(&mut space, DEVICE_CONTROL, 0x8000), []);
    assert_eq!((read32(&space, BAR0), space.command().memory_space()), (0xfebf_0000, true));
    assert_eq!(read16(&space, DEVICE_CONTROL) & 0x8000, 0);
}

/// Capabilities are values: a function without one has the others, in a list without a gap.
#[test]
fn a_capability_that_is_left_out_leaves_no_gap() {
    let space = ConfigSpace::new(Description { ats: None, pri: None, ..ACCELERATOR });
    assert_eq!(read32(&space, 0x100), 0x0001_001b, "PASID is the first and the last");
    let mut space = ConfigSpace::new(Description { pri: None, ..ACCELERATOR });
    assert_eq!((read32(&space, 0x100), read32(&space, 0x110)), (0x1101_000f, 0x0001_001b));
    assert_eq!(write16(&mut space, 0x116, 1), [ConfigEffect::Pasid { enabled: true }]);
    assert!(!space.page_requests_enabled());
    assert_eq!(space.page_request_allocation(), 0);
}

#[test]
#[should_panic(expected = "1 to 2048 vectors")]
fn a_function_without_vectors_is_our_own_mistake() {
    ConfigSpace::new(Description {
        msi_x: Some(MsiX { vectors: 0, bar: 4, table_offset: 0, pending_offset: 0x1000 }),
        ..ACCELERATOR
    });
}

fn any_write() -> impl Strategy<Value = (u64, Vec<u8>)> {
    let offset = prop_oneof![4 => 0..0x140_u64, 1 => 0..4100_u64];
    let size = prop_oneof![8 => 1..9_usize, 1 => 1..4097_usize];
    (offset, size).prop_flat_map(|(offset, size)| (Just(offset), prop::collection::vec(any::<u8>(), size)))
}

proptest! {
    /// Read-only bits never change, effects tell every change of what is watched, and following them from the start
    /// gives the space's own state.
    #[test]
    fn random_writes_change_only_what_they_may(
        kind in prop_oneof![Just(IOMMU), Just(ACCELERATOR)],
        writes in prop::collection::vec(any_write(), 1..40),
    ) {
        let table = TABLES.iter().find(|row| row.0 == kind).unwrap().1;
        let mut space = ConfigSpace::new(kind);
        let (mut bars, mut bus_master, mut ats, mut pasid, mut pri) = ([None; 6], false, false, false, (false, 0));
        for (offset, data) in writes {
            for effect in space.write(offset, &data) {
                match effect {
                    ConfigEffect::Bar { bar, address } => bars[usize::try_from(bar).unwrap()] = address,
                    ConfigEffect::BusMaster(on) => bus_master = on,
                    ConfigEffect::Ats { enabled, .. } => ats = enabled,
                    ConfigEffect::Pasid { enabled } => pasid = enabled,
                    ConfigEffect::Pri { enabled, allocation } => pri = (enabled, allocation),
                    ConfigEffect::Flr | ConfigEffect::MemorySpace(_) | ConfigEffect::InterruptDisable(_)
                    | ConfigEffect::MsiX { .. } | ConfigEffect::PriReset => {}
                }
            }
            for at in (0..4096).step_by(4) {
                let (_, reset, rw, rw1c) = expected(table, at);
                // Stopped is read-only to software and moves with the enable bit.
                let free = rw | rw1c | if at == PRI_CONTROL && kind == ACCELERATOR { 1 << 24 } else { 0 };
                prop_assert_eq!(read32(&space, at) & !free, reset & !free, "{:#x}", at);
                prop_assert_eq!(read32(&space, at) & rw1c, 0, "nothing sets those but the device");
            }
            prop_assert_eq!(bars, [0, 1, 2, 3, 4, 5].map(|bar| space.bar_address(bar)));
            prop_assert_eq!(bus_master, space.command().bus_master());
            prop_assert_eq!(ats, space.ats().enable());
            prop_assert_eq!(pasid, space.pasid().enable());
            prop_assert_eq!(pri, (space.page_requests_enabled(), space.page_request_allocation()));
        }
    }

    /// A write in pieces is the same write, as long as it does not reset on the way.
    #[test]
    fn a_write_is_the_sum_of_its_aligned_pieces((offset, mut data) in any_write()) {
        for (at, byte) in (offset..).zip(&mut data) {
            if at == DEVICE_CONTROL + 1 {
                *byte &= 0x7f;
            }
        }
        let mut at_once = ConfigSpace::new(ACCELERATOR);
        let _ = at_once.write(offset, &data);
        let mut in_pieces = ConfigSpace::new(ACCELERATOR);
        let mut at = 0;
        while at < data.len() {
            let len = (4 - usize::try_from((offset + at as u64) % 4).unwrap()).min(data.len() - at);
            let _ = in_pieces.write(offset + at as u64, &data[at..at + len]);
            at += len;
        }
        prop_assert_eq!(all(&at_once), all(&in_pieces));
    }
}
