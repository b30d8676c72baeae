//! The walk through the driver's page tables: no lock, no cache, and nothing in them is trusted.
//!
//! The driver clears entries first and frees tables last, after every engine has acknowledged that. So a walk that
//! meets a table meets one that is not freed. If the driver breaks that rule, the walk reads other memory of the guest:
//! its own mistake, which harms nobody else. The number of levels ends every walk, loops or not.
use svadev_fabric::Gpa;
use svadev_memory::{GuestAddress, GuestMemory};
use svadev_mutation::mutant;
use svadev_spec::mirror::{PAGE_BITS, SpaceEntry, TABLE_BITS, TableEntry, error};

/// Where a page is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In guest memory.
    Guest(Gpa),
    /// In device memory, at this device address.
    Device(u64),
}

/// A page that is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Page {
    /// Its first byte, aligned to its size.
    pub place: Place,
    /// Log2 of its bytes: 12, 21 or 30.
    pub size_log2: u8,
    /// The device may write.
    pub writable: bool,
}

/// What a walk found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Walk {
    /// A page.
    Page(Page),
    /// Nothing.
    Missing,
    /// Tables that cannot be: one of [`error`].
    Bad(u8),
}

const PAGE_LOG2: u32 = 12;
const LEVEL_LOG2: u32 = 9;

/// Walks the tables of an address space.
pub fn walk<M: GuestMemory + ?Sized>(memory: &M, space: SpaceEntry, address: u64) -> Walk {
    let levels = if space.five_levels() { 5 } else { 4 };
    if address >> (PAGE_LOG2 + levels * LEVEL_LOG2) != 0 {
        return Walk::Missing;
    }
    let mut table = space.root() << PAGE_LOG2;
    for level in (1..=levels).rev() {
        let shift = PAGE_LOG2 + (level - 1) * LEVEL_LOG2;
        let index = address >> shift & ((1 << LEVEL_LOG2) - 1);
        let Ok(word) = memory.load_u64(GuestAddress(table + index * 8)) else { return Walk::Bad(error::BAD_TABLE) };
        let entry = TableEntry::from_bits(word);
        if !entry.present() {
            return Walk::Missing;
        }
        if level == 1 || entry.large() {
            return page(entry, level, shift);
        }
        if word & !TABLE_BITS != 0 && !mutant!(MirrorReservedBitsIgnored) {
            return Walk::Bad(error::BAD_ENTRY);
        }
        table = entry.frame() << PAGE_LOG2;
    }
    unreachable!("level 1 ends every walk")
}

/// What an entry that maps a page says.
fn page(entry: TableEntry, level: u32, shift: u32) -> Walk {
    let first = entry.frame() << PAGE_LOG2;
    let large = entry.large();
    let clean = (entry.into_bits() & !PAGE_BITS == 0 || mutant!(MirrorReservedBitsIgnored))
        && large == (level > 1)
        && level <= 3
        && first & ((1 << shift) - 1) == 0;
    if !clean {
        return Walk::Bad(error::BAD_ENTRY);
    }
    let place = if entry.device() { Place::Device(first) } else { Place::Guest(Gpa(first)) };
    let size_log2 = u8::try_from(shift).expect("at most 30");
    Walk::Page(Page { place, size_log2, writable: entry.writable() || mutant!(MirrorWriteRightIgnored) })
}
