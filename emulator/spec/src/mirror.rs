//! Mirror mode as device and driver see it: registers, the mirror control block in guest memory, and page tables.
//!
//! This is part of the ABI. `docs/mirror.md` says it in prose, `guest-tests/driver/svadev_mirror_hw.h` says it in C,
//! and a test compares them. All integers are little-endian. Every reserved field must be zero.
//!
//! An *address space of the mirror* is named by an [ASID](is_asid): a number of 20 bits with bit 19 set. It stands
//! where a PASID stands: in descriptors, user queues and commands.
//!
//! # Why the parts lie where they do
//! What different sides write is [`LINE`] bytes apart: processors move lines of 64 bytes between their caches, and
//! fetch the other half of 128 with them. So an engine that looks at the invalidation tail between two slices hits its
//! own cache until the driver has posted something.
//!
//! Indexes run freely over 64 bits. They never wrap, so that an index from long ago cannot be taken for a new one.
use bitfield_struct::bitfield;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Distance between fields of different writers, bytes.
pub const LINE: u64 = 128;

/// The bit that an ASID has and a PASID has not: the function's PASID capability advertises 19 bits, so that no IOMMU
/// driver gives out such a value.
pub const ASID_BIT: u32 = 1 << 19;

/// Whether a value of 20 bits names an address space of the mirror.
#[inline]
pub const fn is_asid(value: u32) -> bool {
    value & ASID_BIT != 0
}

/// Offsets of the mirror's registers in [`BAR_REGISTERS`](crate::device::BAR_REGISTERS). They are zero on a device
/// without mirror mode.
pub mod regs {
    /// RW, 64: guest-physical address of the control block, 4 KiB aligned. Read-only while the mirror is on or busy.
    pub const BASE: u64 = 0x100;
    /// RW, 32: [`super::Control`].
    pub const CONTROL: u64 = 0x108;
    /// RO, 32: [`super::Status`].
    pub const STATUS: u64 = 0x10c;
    /// RW, 32: [`super::Vector`]. Read-only while the mirror is on or busy.
    pub const VECTOR: u64 = 0x110;
    /// RO, 32: the ASID of the error in STATUS, or 0 where it concerns none.
    pub const ERROR_ASID: u64 = 0x114;
    /// RO, 64: the address of the error in STATUS: one of the address space, or a guest-physical one of the control
    /// block.
    pub const ERROR_ADDRESS: u64 = 0x118;
    /// WO, 32: wakes the engine with this number, which found nothing to do and went to sleep. A number beyond the
    /// engines wakes all of them. It is a register and no doorbell page: only the driver writes it, and a register
    /// traps no slower than a page.
    pub const KICK: u64 = 0x120;
    /// RO, 32: number of this function's memory among those of the device; see [`super::device_address`].
    pub const DEVMEM_ID: u64 = 0x124;
    /// RO, 64: bytes of this function's device memory, 0 if there is none.
    pub const DEVMEM_SIZE: u64 = 0x128;
}

/// [`regs::CONTROL`].
#[bitfield(u32, order = Lsb)]
#[derive(PartialEq, Eq)]
pub struct Control {
    /// 0 → 1: reads and checks the control block's header, and clears the error. 1 → 0: ends the use of every ASID;
    /// STATUS.busy says how long that takes.
    pub enable: bool,
    #[bits(31)]
    __: u32,
}

/// [`regs::STATUS`].
#[bitfield(u32, order = Lsb)]
#[derive(PartialEq, Eq)]
pub struct Status {
    /// The mirror is on.
    pub enabled: bool,
    /// It was turned off, and an engine may still use an address space.
    pub busy: bool,
    #[bits(6)]
    __: u8,
    /// One of [`error`]: the first one since the mirror was turned on.
    #[bits(8)]
    pub error: u8,
    #[bits(16)]
    __: u16,
}

/// Values of [`Status::error`].
pub mod error {
    /// No error.
    pub const NONE: u8 = 0;
    /// The header could not be read, or a field is out of range. The mirror was not turned on.
    pub const BAD_HEADER: u8 = 1;
    /// The control block is no memory that can be read and written. The mirror translates nothing any more.
    pub const BLOCK_LOST: u8 = 2;
    /// An entry of the address space table has a reserved bit.
    pub const BAD_SPACE: u8 = 3;
    /// A page-table entry has a reserved bit, or a large page at a level or address that has none.
    pub const BAD_ENTRY: u8 = 4;
    /// A page table lies outside of guest memory.
    pub const BAD_TABLE: u8 = 5;
    /// A frame lies outside of guest memory or of device memory.
    pub const BAD_FRAME: u8 = 6;
    /// The head of an event ring is not between tail minus size and tail.
    pub const BAD_EVENT_HEAD: u8 = 7;
    /// The tail of a response ring is not between head and head plus size.
    pub const BAD_RESPONSE_TAIL: u8 = 8;
    /// An entry of the invalidation ring is malformed. Everything was invalidated.
    pub const BAD_INVALIDATION: u8 = 9;
}

/// [`regs::VECTOR`].
#[bitfield(u32, order = Lsb)]
#[derive(PartialEq, Eq)]
pub struct Vector {
    /// MSI-X vector of events, and of acknowledgements that are waited for.
    #[bits(8)]
    pub vector: u8,
    #[bits(23)]
    __: u32,
    /// Raise it.
    pub enable: bool,
}

/// Value of [`Header::magic`]: "MIRR".
pub const MAGIC: u32 = 0x5252_494d;
/// Value of [`Header::version`].
pub const VERSION: u32 = 1;

/// The control block's header, at its start. The device reads it once, when the mirror is turned on.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Header {
    /// [`MAGIC`].
    pub magic: u32,
    /// [`VERSION`].
    pub version: u32,
    /// Log2 of the address space table's entries, in [`SPACES_LOG2`]. ASIDs from this number on are refused.
    pub spaces_log2: u8,
    /// Log2 of the invalidation ring's entries, in [`INVALIDATIONS_LOG2`].
    pub invalidations_log2: u8,
    /// Log2 of each event ring's entries, in [`EVENTS_LOG2`].
    pub events_log2: u8,
    /// Log2 of each response ring's entries, in [`RESPONSES_LOG2`].
    pub responses_log2: u8,
    /// Engine blocks: the function's engines, as LIMITS says.
    pub engines: u32,
    /// Reserved.
    pub reserved: [u64; 6],
}

/// Range of [`Header::spaces_log2`]: a line at least.
pub const SPACES_LOG2: core::ops::RangeInclusive<u8> = 4..=16;
/// Range of [`Header::invalidations_log2`]: a line at least.
pub const INVALIDATIONS_LOG2: core::ops::RangeInclusive<u8> = 2..=14;
/// Range of [`Header::events_log2`]: a line at least.
pub const EVENTS_LOG2: core::ops::RangeInclusive<u8> = 1..=12;
/// Range of [`Header::responses_log2`]: a line at least.
pub const RESPONSES_LOG2: core::ops::RangeInclusive<u8> = 3..=14;

/// u64, written by the driver: index one past the last entry of the invalidation ring.
pub const INVALIDATION_TAIL: u64 = 0x080;
/// u64, written by the driver: not 0 while somebody sleeps until an engine acknowledges. An engine that finds it so
/// after it acknowledged raises the mirror's vector.
pub const WAITERS: u64 = 0x100;
/// The address space table: entries of 8 bytes, [`SpaceEntry`].
pub const SPACES: u64 = 0x1000;

/// Offsets in an engine block.
pub mod engine {
    /// u64, written by the engine: not 0 while it may use translations of the mirror.
    pub const ONLINE: u64 = 0x00;
    /// u64, written by the engine: every entry of the invalidation ring below this index is carried out.
    pub const INVALIDATION_HEAD: u64 = 0x08;
    /// u64, written by the engine: index one past the last event.
    pub const EVENT_TAIL: u64 = 0x10;
    /// u64, written by the engine: index of the next response it will read.
    pub const RESPONSE_HEAD: u64 = 0x18;
    /// u64, written by the driver: index of the next event it will read.
    pub const EVENT_HEAD: u64 = 0x80;
    /// u64, written by the driver: index one past the last response.
    pub const RESPONSE_TAIL: u64 = 0x88;
    /// The event ring. The response ring follows it.
    pub const EVENTS: u64 = 0x100;
}

impl Header {
    /// Offset of the invalidation ring.
    pub const fn invalidations(&self) -> u64 {
        SPACES + ((size_of::<u64>() as u64) << self.spaces_log2)
    }
    /// Offset of the block of engine `n`.
    pub const fn engine(&self, n: u64) -> u64 {
        let first = self.invalidations() + ((size_of::<Invalidation>() as u64) << self.invalidations_log2);
        first + n * (self.responses() + ((size_of::<Response>() as u64) << self.responses_log2))
    }
    /// Offset of the response ring in an engine block.
    pub const fn responses(&self) -> u64 {
        engine::EVENTS + ((size_of::<Event>() as u64) << self.events_log2)
    }
    /// Bytes of the whole control block.
    pub const fn bytes(&self) -> u64 {
        self.engine(self.engines as u64)
    }
    /// Whether every field is in range, for a function with so many engines.
    pub fn is_valid(&self, engines: u32) -> bool {
        self.magic == MAGIC
            && self.version == VERSION
            && SPACES_LOG2.contains(&self.spaces_log2)
            && INVALIDATIONS_LOG2.contains(&self.invalidations_log2)
            && EVENTS_LOG2.contains(&self.events_log2)
            && RESPONSES_LOG2.contains(&self.responses_log2)
            && self.engines == engines
            && self.reserved == [0; 6]
    }
}

/// An entry of the address space table. The driver stores it at once.
#[bitfield(u64, order = Lsb)]
#[derive(PartialEq, Eq)]
pub struct SpaceEntry {
    /// There is such an address space.
    pub valid: bool,
    /// Its tables have 5 levels, not 4.
    pub five_levels: bool,
    #[bits(10)]
    __: u16,
    /// Guest-physical address of the root table, above its low 12 bits.
    #[bits(40)]
    pub root: u64,
    /// Chosen by the driver and returned in events: so it knows events of an address space that had this ASID before.
    #[bits(12)]
    pub generation: u16,
}

/// An entry of the invalidation ring. Entries say what the device TLBs must drop. Who acknowledges has dropped it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Invalidation {
    /// The address space.
    pub asid: u32,
    /// [`INVALIDATE_ALL`], [`INVALIDATE_TABLES`].
    pub flags: u32,
    /// First address, inclusive. 0 with ALL.
    pub first: u64,
    /// Last address, inclusive, so that no range wraps. 0 with ALL.
    pub last: u64,
    /// Reserved.
    pub reserved: u64,
}

/// [`Invalidation::flags`]: every address.
pub const INVALIDATE_ALL: u32 = 1 << 0;
/// [`Invalidation::flags`]: page tables were removed, too. Today's device caches none, and does nothing more for it.
pub const INVALIDATE_TABLES: u32 = 1 << 1;

/// A page is missing: an entry of an event ring, 64 bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Event {
    /// To be returned in the response.
    pub token: u64,
    /// The address that is missing.
    pub address: u64,
    /// Bytes from that address to the end of the operand's piece, at least 1: what will be wanted next.
    pub length: u64,
    /// The descriptor's cookie; 0 with [`EVENT_RING`].
    pub cookie: u64,
    /// The address space.
    pub asid: u32,
    /// The queue.
    pub queue: u16,
    /// One of [`access`].
    pub access: u8,
    /// [`EVENT_RING`], [`EVENT_AGAIN`].
    pub flags: u8,
    /// [`SpaceEntry::generation`] of the address space.
    pub generation: u32,
    /// Zero.
    pub reserved0: u32,
    /// Zero.
    pub reserved1: u64,
    /// Index of this entry plus one, written last.
    pub seq: u64,
}

/// [`Event::flags`]: the access is one to a user queue's own rings.
pub const EVENT_RING: u8 = 1 << 0;
/// [`Event::flags`]: the last response to this token was AGAIN.
pub const EVENT_AGAIN: u8 = 1 << 1;

/// Values of [`Event::access`].
pub mod access {
    /// The page is read.
    pub const READ: u8 = 1;
    /// The page is written.
    pub const WRITE: u8 = 2;
    /// The page must belong to the device alone. Reserved: no engine asks for it today.
    pub const EXCLUSIVE: u8 = 4;
}

/// An answer to an event: an entry of a response ring, 16 bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Response {
    /// The event's token. One that nobody waits with is dropped.
    pub token: u64,
    /// One of [`response`].
    pub code: u32,
    /// Zero.
    pub reserved: u32,
}

/// Values of [`Response::code`]. Any other counts as FAILURE.
pub mod response {
    /// The page is in the tables: the device walks again.
    pub const SUCCESS: u32 = 0;
    /// The page does not exist, or forbids the access.
    pub const INVALID: u32 = 1;
    /// The address space is gone, or the driver cannot serve it.
    pub const FAILURE: u32 = 2;
    /// Not now. The device sends the event again after 1, 2, 4, … 64 ms, within the descriptor's time limit.
    pub const AGAIN: u32 = 3;
}

/// Longest time before an event is sent again after AGAIN, ms.
pub const AGAIN_MOST_MS: u64 = 64;

/// An entry of a page table, at any level: close to x86's, so that tools and readers know it.
#[bitfield(u64, order = Lsb)]
#[derive(PartialEq, Eq)]
pub struct TableEntry {
    /// There is something here. All else means nothing without it.
    pub present: bool,
    /// The device may write. Looked at in the entry that maps a page, not in those above.
    pub writable: bool,
    #[bits(5)]
    __: u8,
    /// At level 2 or 3: maps 2 MiB or 1 GiB. Zero elsewhere.
    pub large: bool,
    #[bits(4)]
    __: u8,
    /// Address of the next table or of the page, above its low 12 bits: guest-physical, or a
    /// [device address](device_address) with `device`.
    #[bits(40)]
    pub frame: u64,
    /// Maps device memory. Zero in an entry that names a table.
    pub device: bool,
    /// The page was taken away from the CPUs (`make_device_exclusive`). The device does not look at it.
    pub exclusive: bool,
    #[bits(10)]
    __: u16,
}

/// The bits of [`TableEntry`] that mean something in an entry that maps a page.
pub const PAGE_BITS: u64 = TableEntry::new()
    .with_present(true)
    .with_writable(true)
    .with_large(true)
    .with_frame((1 << 40) - 1)
    .with_device(true)
    .with_exclusive(true)
    .into_bits();
/// The bits of [`TableEntry`] that mean something in an entry that names a table.
pub const TABLE_BITS: u64 =
    TableEntry::new().with_present(true).with_writable(true).with_frame((1 << 40) - 1).into_bits();

/// Where the function's number starts in a device address.
pub const DEVICE_NUMBER_SHIFT: u32 = 44;

/// The *device address* of a byte of device memory: `number` is [`regs::DEVMEM_ID`] of the function whose memory it is.
/// It names the memory and not the BAR: it does not depend on where the BAR is, or whether it is decoded.
pub const fn device_address(number: u8, offset: u64) -> u64 {
    (number as u64) << DEVICE_NUMBER_SHIFT | offset
}

const _: () = assert!(size_of::<Header>() == 64);
const _: () = assert!(size_of::<Invalidation>() == 32);
const _: () = assert!(size_of::<Event>() == 64);
const _: () = assert!(size_of::<Response>() == 16);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_different_writers_are_lines_apart_in_every_geometry() {
        for (spaces_log2, invalidations_log2, events_log2, responses_log2) in
            [(4, 2, 1, 3), (16, 14, 12, 14), (8, 6, 5, 4)]
        {
            let header = Header {
                magic: MAGIC,
                version: VERSION,
                spaces_log2,
                invalidations_log2,
                events_log2,
                responses_log2,
                engines: 3,
                ..Header::default()
            };
            assert!(header.is_valid(3) && !header.is_valid(2));
            let starts = starts(&header);
            assert!(starts.iter().all(|start| start % LINE == 0), "{starts:x?}");
            assert!(starts.windows(2).all(|pair| pair[0] < pair[1]), "{starts:x?}");
            assert_eq!(header.engine(1) - header.engine(0), header.responses() + (16 << responses_log2));
        }
        const {
            assert!(INVALIDATION_TAIL / LINE != WAITERS / LINE);
            assert!(engine::RESPONSE_HEAD / LINE != engine::EVENT_HEAD / LINE);
        }
    }

    fn starts(header: &Header) -> [u64; 6] {
        [
            SPACES,
            header.invalidations(),
            header.engine(0),
            header.engine(0) + header.responses(),
            header.engine(1),
            header.bytes(),
        ]
    }

    #[test]
    fn a_field_out_of_range_is_not_valid() {
        let good = Header {
            magic: MAGIC,
            version: VERSION,
            spaces_log2: 8,
            invalidations_log2: 8,
            events_log2: 8,
            responses_log2: 8,
            engines: 1,
            reserved: [0; 6],
        };
        assert!(good.is_valid(1));
        for bad in [
            Header { magic: 0, ..good },
            Header { version: 2, ..good },
            Header { spaces_log2: 3, ..good },
            Header { spaces_log2: 17, ..good },
            Header { invalidations_log2: 1, ..good },
            Header { invalidations_log2: 64, ..good },
            Header { events_log2: 0, ..good },
            Header { events_log2: 255, ..good },
            Header { responses_log2: 2, ..good },
            Header { responses_log2: 15, ..good },
            Header { engines: 0, ..good },
            Header { reserved: [0, 0, 0, 0, 0, 1], ..good },
        ] {
            assert!(!bad.is_valid(1), "{bad:x?}");
        }
    }

    #[test]
    fn asids_are_the_upper_half_of_twenty_bits() {
        assert!(!is_asid(0x7_ffff) && is_asid(0x8_0000) && is_asid(0xf_ffff));
        assert_eq!(device_address(3, 0x1000), 0x3000_0000_1000);
        assert_eq!(PAGE_BITS, 0x003f_ffff_ffff_f083);
        assert_eq!(TABLE_BITS, 0x000f_ffff_ffff_f003);
    }
}
