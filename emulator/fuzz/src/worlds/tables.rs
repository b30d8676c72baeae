//! Tables at fixed addresses, so that an input can damage any entry by its number. Layout of the first 64 KiB of
//! memory:
//!
//! | page | what |
//! | --- | --- |
//! | 1 | root table of scalable mode: bus 0 |
//! | 2 | context table: functions [`DEVICE`] and [`OTHER`] |
//! | 3 | PASID directory, 128 entries |
//! | 4 | PASID table: PASIDs 0 to 63 |
//! | 5 | first stage, level 5 |
//! | 6 to 9 | first stage, levels 4 to 1 |
//! | 10 to 13 | second stage, levels 4 to 1 |
//! | 14, 15 | context table and root table of legacy mode |
//!
//! Virtual addresses: 4 KiB pages below 2 MiB, a 2 MiB page from there, a 1 GiB page from 1 GiB, in every space.
use svadev_fabric::Bdf;
use svadev_memory::{GuestAddress, GuestMemory, Ram};
use svadev_spec::vtd::tables::{
    ContextLow, LegacyContextHigh, LegacyContextLow, PasidDirectoryEntry, PasidTable0, PasidTable1, PasidTable2,
    RootEntry, legacy_translation_type, translation_type,
};

pub(crate) const DEVICE: Bdf = Bdf(0x0028);
pub(crate) const OTHER: Bdf = Bdf(0x0030);

pub(crate) const ROOT: u64 = 0x1000;
const CONTEXT: u64 = 0x2000;
const DIRECTORY: u64 = 0x3000;
pub(crate) const PASID_TABLE: u64 = 0x4000;
pub(crate) const FIRST_LEVEL5: u64 = 0x5000;
pub(crate) const FIRST: u64 = 0x6000;
/// The last level of the first stage.
pub(crate) const FIRST_LEVEL1: u64 = 0x9000;
pub(crate) const SECOND: u64 = 0xa000;
const LEGACY_CONTEXT: u64 = 0xe000;
pub(crate) const LEGACY_ROOT: u64 = 0xf000;
/// Everything above is below this.
pub(crate) const END: u64 = 0x1_0000;

/// PASIDs of the table, by what they lead to.
pub(crate) mod pasid {
    pub(crate) const FIRST: u32 = 1;
    pub(crate) const FIRST_LEVEL5: u32 = 2;
    pub(crate) const SECOND: u32 = 3;
    pub(crate) const NESTED: u32 = 4;
    pub(crate) const PASS_THROUGH: u32 = 5;
    /// In [`FIRST`]'s domain, with other pages at the same addresses: its level-4 table is the level-5 table of
    /// another.
    pub(crate) const NEIGHBOUR: u32 = 6;
}

/// Domain of the PASID with this number.
pub(crate) fn domain(pasid: u32) -> u16 {
    let owner = if pasid == pasid::NEIGHBOUR { pasid::FIRST } else { pasid };
    u16::try_from(owner % 64).expect("below 64") + 16
}

const P: u64 = 1;
const W: u64 = 2;
const U: u64 = 4;
const PS: u64 = 1 << 7;
const XD: u64 = 1 << 63;

/// Writes all of them. `data` is the guest-physical address of what the first 4 KiB pages map, one after the other.
pub(crate) fn build(ram: &Ram, data: u64) {
    let store = |at: u64, value: u64| {
        ram.write(GuestAddress(at), &value.to_le_bytes()).expect("tables are in memory");
    };
    store(ROOT, RootEntry::new().with_present(true).with_frame(CONTEXT >> 12).into());
    store(LEGACY_ROOT, RootEntry::new().with_present(true).with_frame(LEGACY_CONTEXT >> 12).into());
    for function in [DEVICE, OTHER] {
        let devfn = u64::from(function.devfn());
        let context = ContextLow::new()
            .with_present(true)
            .with_device_tlb_enable(true)
            .with_pasid_enable(true)
            .with_page_request_enable(true)
            .with_frame(DIRECTORY >> 12);
        store(CONTEXT + 32 * devfn, context.into());
        let legacy = LegacyContextLow::new()
            .with_present(true)
            .with_translation_type(legacy_translation_type::DEVICE_TLB)
            .with_frame(SECOND >> 12);
        store(LEGACY_CONTEXT + 16 * devfn, legacy.into());
        store(LEGACY_CONTEXT + 16 * devfn + 8, LegacyContextHigh::new().with_address_width(2).with_domain_id(9).into());
    }
    store(DIRECTORY, PasidDirectoryEntry::new().with_present(true).with_frame(PASID_TABLE >> 12).into());
    pasids(store);
    pages(store, data);
}

/// PASID 0 is the driver's own space (RID_PASID).
fn pasids(store: impl Fn(u64, u64)) {
    for (number, kind) in [
        (0, translation_type::FIRST_STAGE),
        (pasid::FIRST, translation_type::FIRST_STAGE),
        (pasid::FIRST_LEVEL5, translation_type::FIRST_STAGE),
        (pasid::SECOND, translation_type::SECOND_STAGE),
        (pasid::NESTED, translation_type::NESTED),
        (pasid::PASS_THROUGH, translation_type::PASS_THROUGH),
        (pasid::NEIGHBOUR, translation_type::FIRST_STAGE),
    ] {
        let level5 = number == pasid::FIRST_LEVEL5;
        let first = if level5 || number == pasid::NEIGHBOUR { FIRST_LEVEL5 } else { FIRST };
        let at = PASID_TABLE + 64 * u64::from(number);
        store(at + 8, PasidTable1::new().with_domain_id(domain(number)).with_page_walk_snoop(true).into());
        if matches!(kind, translation_type::FIRST_STAGE | translation_type::NESTED) {
            let entry = PasidTable2::new()
                .with_first_stage_paging_mode(u8::from(level5))
                .with_execute_request_enable(true)
                .with_supervisor_request_enable(true)
                .with_first_stage_frame(first >> 12);
            store(at + 16, entry.into());
        }
        let mut entry = PasidTable0::new().with_present(true).with_address_width(2).with_translation_type(kind);
        if matches!(kind, translation_type::SECOND_STAGE | translation_type::NESTED) {
            entry = entry.with_second_stage_frame(SECOND >> 12).with_second_stage_accessed_dirty(true);
        }
        store(at, entry.into());
    }
}

fn pages(store: impl Fn(u64, u64), data: u64) {
    store(FIRST_LEVEL5, FIRST | P | W | U);
    for level in 0..3 {
        let table = FIRST + 0x1000 * level;
        store(table, (table + 0x1000) | P | W | U);
        let table = SECOND + 0x1000 * level;
        store(table, (table + 0x1000) | 0b11);
    }
    // The second levels' second entry is a 2 MiB page, the third's a 1 GiB page.
    for (table, rights) in [(FIRST, P | W | U), (SECOND, 0b11)] {
        store(table + 0x1000 + 8, rights | PS);
        store(table + 0x2000 + 8, rights | PS);
    }
    for n in 0..64 {
        let rights = match n {
            // Read-only, supervisor's, not to be executed, absent.
            48..52 => P | U,
            52..56 => P | W,
            56..60 => P | W | U | XD,
            60..64 => 0,
            _ => P | W | U,
        };
        store(FIRST_LEVEL1 + 8 * n, if rights == 0 { 0 } else { (data + 0x1000 * n) | rights });
    }
    // The second stage maps the low 2 MiB to themselves, so that nested tables are found.
    for n in 0..512 {
        store(SECOND + 0x3000 + 8 * n, (0x1000 * n) | 0b11);
    }
}
