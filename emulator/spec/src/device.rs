//! The svadev accelerator as its driver and its programs see it: BARs, registers, doorbells, descriptors, completions.
//!
//! This is the ABI. `docs/device-reference.md` says it in prose, `guest-tests/driver/svadev_hw.h` says it in C, and a
//! test compares all three. All integers are little-endian; every reserved field must be zero, and the device checks
//! it.
//!
//! A *queue* is a pair of rings in memory: the submission ring holds [`Descriptor`]s that software writes, the
//! completion ring holds [`Completion`]s that the device writes. Ring indexes run freely over 32 bits; an entry's slot
//! is `index & (size - 1)`. A queue is one of two kinds, by its [`QueuePasid`] register:
//! - a *user queue* belongs to one PASID: rings, operands and results are virtual addresses of that process;
//! - a *kernel queue* has none: its rings are the driver's own DMA addresses (requests without PASID), and each
//!   descriptor names the PASID its operands belong to ([`Descriptor::pasid`]).
use bitfield_struct::bitfield;
use bitflags::bitflags;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// PCI vendor ID of every svadev function: Red Hat's for virtual devices. QEMU's `docs/specs/pci-ids.rst` leaves 10f0
/// to 10ff of it to experiments, and Linux's virtio driver ignores device IDs above 107f.
pub const PCI_VENDOR_ID: u16 = 0x1af4;
/// PCI device ID of an accelerator function, from the block for experiments.
pub const PCI_DEVICE_ID_ACCELERATOR: u16 = 0x10f0;
/// PCI device ID of the IOMMU function, from the block for experiments.
pub const PCI_DEVICE_ID_IOMMU: u16 = 0x10f1;
/// PCI class code of an accelerator: 12h processing accelerator, 00h.
pub const PCI_CLASS_ACCELERATOR: u32 = 0x12_00_00;
/// PCI class code of the IOMMU function: 08h base peripheral, 06h IOMMU.
pub const PCI_CLASS_IOMMU: u32 = 0x08_06_00;

/// BAR (64-bit) of an accelerator's trapped registers, [`regs`].
pub const BAR_REGISTERS: u32 = 0;
/// BAR (64-bit) of the doorbells: first half shared memory, one [`doorbell`] page a queue; second half trapped, one
/// wake page a queue. A write of any size and value to queue `n`'s wake page does what [`regs::WAKE`] ← `n` does.
pub const BAR_DOORBELLS: u32 = 2;
/// BAR of the MSI-X table (at [`MSIX_TABLE_OFFSET`]) and pending-bit array (at [`MSIX_PBA_OFFSET`]): that of the
/// registers, in two pages of their own at its end. So a BAR is left for device memory.
pub const BAR_MSIX: u32 = BAR_REGISTERS;
/// Offset of the MSI-X table in [`BAR_MSIX`], bytes.
pub const MSIX_TABLE_OFFSET: u32 = 0xe000;
/// Offset of the MSI-X pending-bit array in [`BAR_MSIX`], bytes.
pub const MSIX_PBA_OFFSET: u32 = 0xf000;
/// BAR (64-bit, prefetchable) of device memory. A function without any has no such BAR.
pub const BAR_DEVICE_MEMORY: u32 = 4;
/// Most bytes of device memory of one function.
pub const MAX_DEVICE_MEMORY: u64 = 1 << 30;
/// BAR (64-bit) of the IOMMU function that holds the unit's registers; nothing of the function is memory-mapped.
pub const BAR_UNIT: u32 = 0;
/// Size of [`BAR_UNIT`], bytes: one page, all of the unit's registers being in it (VT-d 4.1 §11.4). 32-bit, so that
/// firmware puts it below 4 GiB whatever the guest's size.
pub const BAR_UNIT_SIZE: u64 = 0x1000;
/// Size of [`BAR_DOORBELLS`], bytes, for so many queues: a power of two, as BARs are. The wake pages start in its
/// middle.
pub const fn bar_doorbells_size(queues: u32) -> u64 {
    2 * DOORBELL_STRIDE * (queues as u64).next_power_of_two()
}
/// Size of a doorbell page and of a wake page, bytes.
pub const DOORBELL_STRIDE: u64 = 0x1000;

/// Value of [`regs::ID`]: "SVAD".
pub const ID_MAGIC: u32 = 0x4441_5653;
/// Major version of this ABI, bits 31:16 of [`regs::VERSION`]. Software refuses a major it does not know.
pub const ABI_MAJOR: u16 = 1;
/// Minor version of this ABI, bits 15:0 of [`regs::VERSION`].
pub const ABI_MINOR: u16 = 3;

/// Longest operand of one descriptor, bytes (1 GiB).
pub const MAX_LENGTH: u64 = 1 << 30;
/// Most entries in a scatter list.
pub const MAX_SCATTER_ENTRIES: u32 = 1024;
/// Smallest and largest ring size, log2 of entries.
pub const RING_LOG2: core::ops::RangeInclusive<u32> = 1..=15;
/// Most queues that the register layout has room for.
pub const MAX_QUEUES: u32 = 256;
/// Registers at [`regs::ABORT`]: so many aborts may be busy at once.
pub const ABORT_SLOTS: u32 = 16;

/// Offsets in [`BAR_REGISTERS`]. Access is by naturally aligned 4 or 8 bytes; anything else reads zero and is ignored.
pub mod regs {
    /// Size of the register BAR, bytes.
    pub const BAR_SIZE: u64 = 0x1_0000;
    /// RO, 32: [`super::ID_MAGIC`].
    pub const ID: u64 = 0x000;
    /// RO, 32: ABI major (31:16) and minor (15:0).
    pub const VERSION: u64 = 0x004;
    /// RO, 64: bit `n` set means opcode `n` is implemented.
    pub const OPCODES: u64 = 0x008;
    /// RO, 32: [`super::Limits`].
    pub const LIMITS: u64 = 0x010;
    /// RO, 32: largest ring, log2 of entries.
    pub const MAX_RING_LOG2: u64 = 0x014;
    /// RO, 64: longest operand, bytes.
    pub const MAX_LENGTH: u64 = 0x018;
    /// RO, 32: most entries in a scatter list.
    pub const MAX_SCATTER: u64 = 0x020;
    /// RO, 32, from ABI 1.2 on: longest time that a command, an abort slot or a disable of the function is busy, ms.
    /// Engines look at the clock between slices of work.
    pub const COMMAND_LIMIT: u64 = 0x024;
    /// RW, 32: [`super::Control`].
    pub const CONTROL: u64 = 0x028;
    /// RO, 32: [`super::Status`].
    pub const STATUS: u64 = 0x02c;
    /// WO, 32: index of a queue whose engine may be asleep.
    pub const WAKE: u64 = 0x030;
    /// RW, 64: [`super::Command`]. A write starts a command; ignored while one is busy.
    pub const COMMAND: u64 = 0x038;
    /// RO, 32: [`super::CommandStatus`].
    pub const COMMAND_STATUS: u64 = 0x040;
    /// RO, 64, from ABI 1.3 on: [`super::Features`].
    pub const FEATURES: u64 = 0x048;
    /// RW, 32, from ABI 1.3 on: the first of [`super::ABORT_SLOTS`] registers, 4 bytes apart: [`super::AbortSlot`]. A
    /// write does what ABORT_PASID does, without COMMAND. It is ignored while this slot is busy.
    pub const ABORT: u64 = 0x080;
    /// First queue's registers.
    pub const QUEUES: u64 = 0x1000;
    /// Distance between queues' registers.
    pub const QUEUE_STRIDE: u64 = 0x40;
    /// RW, 64, in a queue: address of the submission ring, 64-byte aligned.
    pub const QUEUE_SQ_BASE: u64 = 0x00;
    /// RW, 64, in a queue: address of the completion ring, 64-byte aligned.
    pub const QUEUE_CQ_BASE: u64 = 0x08;
    /// RW, 32, in a queue: [`super::QueueSize`].
    pub const QUEUE_SIZE: u64 = 0x10;
    /// RW, 32, in a queue: [`super::QueuePasid`].
    pub const QUEUE_PASID: u64 = 0x14;
    /// RW, 32, in a queue: [`super::QueueVector`].
    pub const QUEUE_VECTOR: u64 = 0x18;
    /// RW, 32, in a queue: bit 0 enables. The other registers are taken on 0 → 1 and are read-only while it is 1.
    /// 1 → 0 completes queued and running work as [`super::Code::Aborted`] where the completion ring has room.
    pub const QUEUE_CONTROL: u64 = 0x1c;
    /// RO, 32, in a queue: [`super::QueueStatus`].
    pub const QUEUE_STATUS: u64 = 0x20;
    /// RW, 32, in a queue: [`super::QueueService`].
    pub const QUEUE_SERVICE: u64 = 0x24;
    /// RO, 64, in a queue: the address whose fault halted it.
    pub const QUEUE_FAULT_ADDRESS: u64 = 0x28;
    /// RW, 32, in a queue: [`super::QueueModeration`].
    pub const QUEUE_MODERATION: u64 = 0x30;
}

/// Offsets in a queue's doorbell page: plain memory shared by guest and device, so a load or a store never traps.
///
/// What software writes, what the device writes all the time, and what it hardly ever writes but software reads at each
/// submission are 128 bytes apart: processors move lines of 64 bytes between their caches, and fetch the other half of
/// 128 with them.
pub mod doorbell {
    /// u32, written by software: free-running index one past the last descriptor written.
    pub const SQ_TAIL: u64 = 0x00;
    /// u32, written by software: free-running index of the next completion it will read.
    pub const CQ_HEAD: u64 = 0x04;
    /// u32, written by the device: free-running index of the next descriptor it will fetch.
    pub const SQ_HEAD: u64 = 0x80;
    /// u32, written by the device: free-running index one past the last completion written.
    pub const CQ_TAIL: u64 = 0x84;
    /// u32, written by the device: not 0 when its engine sleeps, or has stopped looking at a queue that was long idle.
    /// After a store to `SQ_TAIL` or `CQ_HEAD` and a full fence, software that reads not 0 here must write the wake
    /// page (or [`super::regs::WAKE`]).
    pub const ARMED: u64 = 0x100;
}

/// [`regs::LIMITS`]: how many of what the function has.
#[bitfield(u32, order = Lsb)]
pub struct Limits {
    /// Queues.
    #[bits(16)]
    pub queues: u16,
    /// MSI-X vectors.
    #[bits(8)]
    pub vectors: u8,
    /// Engines.
    #[bits(8)]
    pub engines: u8,
}

/// [`regs::CONTROL`].
#[bitfield(u32, order = Lsb)]
pub struct Control {
    /// Queues run only while this is set. 1 → 0 aborts everything and disables every queue.
    pub enable: bool,
    #[bits(31)]
    __: u32,
}

/// [`regs::STATUS`].
#[bitfield(u32, order = Lsb)]
#[derive(PartialEq, Eq)]
pub struct Status {
    /// The function is enabled.
    pub enabled: bool,
    /// A reset or a disable is still being carried out by the engines. From ABI 1.3 on a disable is busy until the
    /// IOMMU has answered every page request, too, or until [`regs::COMMAND_LIMIT`].
    pub busy: bool,
    /// The last disable ended at its limit: page requests are unanswered.
    pub timeout: bool,
    #[bits(29)]
    __: u32,
}

bitflags! {
    /// [`regs::FEATURES`]: what this function can do, as the machine is.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Features: u64 {
        /// Addresses of processes: the function has the capabilities ATS and PASID.
        const PROCESS_ADDRESSES = 1 << 0;
        /// Pages that are not there can be asked for: the function has the capability PRI.
        const PAGE_REQUESTS = 1 << 1;
        /// Mirror mode: the registers of [`crate::mirror`].
        const MIRROR = 1 << 2;
        /// A kernel queue's descriptors may name the space of each operand ([`OperandSpaces`]).
        const OPERAND_SPACES = 1 << 3;
        /// The function has device memory.
        const DEVICE_MEMORY = 1 << 4;
    }
}

/// [`regs::COMMAND`].
#[bitfield(u64, order = Lsb)]
pub struct Command {
    /// One of [`command`].
    #[bits(8)]
    pub opcode: u8,
    #[bits(24)]
    __: u32,
    /// Operand: a PASID.
    #[bits(20)]
    pub pasid: u32,
    #[bits(12)]
    __: u16,
}

/// Values of [`Command::opcode`].
pub mod command {
    /// Complete all work of the PASID as [`super::Code::Aborted`], drop its translations, and end only when no access
    /// of the function for that PASID can still be under way, and the IOMMU has answered every page request that was
    /// sent for it (or the time for page requests is over). The answers change nothing.
    pub const ABORT_PASID: u8 = 1;
    /// End when all work of the PASID that was in a ring when the command was written has completed, or at the limit.
    pub const DRAIN_PASID: u8 = 2;
}

/// [`regs::COMMAND_STATUS`].
#[bitfield(u32, order = Lsb)]
#[derive(PartialEq, Eq)]
pub struct CommandStatus {
    /// The last command has not ended.
    pub busy: bool,
    /// The last command's opcode is unknown; it did nothing.
    pub bad: bool,
    /// The last command ended at its limit ([`regs::COMMAND_LIMIT`]). After ABORT_PASID, page requests are unanswered.
    /// After DRAIN_PASID, work of the PASID goes on.
    pub timeout: bool,
    #[bits(29)]
    __: u32,
}

/// A register at [`regs::ABORT`].
#[bitfield(u32, order = Lsb)]
#[derive(PartialEq, Eq)]
pub struct AbortSlot {
    /// The PASID whose abort was written here last.
    #[bits(20)]
    pub pasid: u32,
    #[bits(10)]
    __: u16,
    /// The last abort of this slot ended at its limit ([`regs::COMMAND_LIMIT`]): page requests are unanswered. Ignored
    /// in a write.
    pub timeout: bool,
    /// Written 1: start. Read 1: the abort has not ended. A write with 0 here is ignored.
    pub busy: bool,
}

/// [`regs::QUEUE_SIZE`].
#[bitfield(u32, order = Lsb)]
pub struct QueueSize {
    /// Log2 of the submission ring's entries.
    #[bits(8)]
    pub sq_log2: u8,
    /// Log2 of the completion ring's entries.
    #[bits(8)]
    pub cq_log2: u8,
    #[bits(16)]
    __: u16,
}

/// [`regs::QUEUE_PASID`].
#[bitfield(u32, order = Lsb)]
pub struct QueuePasid {
    /// The process the queue belongs to; zero for a kernel queue.
    #[bits(20)]
    pub pasid: u32,
    #[bits(11)]
    __: u16,
    /// This is a user queue.
    pub user: bool,
}

/// [`regs::QUEUE_VECTOR`].
#[bitfield(u32, order = Lsb)]
pub struct QueueVector {
    /// MSI-X vector to raise.
    #[bits(8)]
    pub vector: u8,
    #[bits(23)]
    __: u32,
    /// Raise it; otherwise completions are silent.
    pub enable: bool,
}

/// [`regs::QUEUE_SERVICE`].
#[bitfield(u32, order = Lsb)]
pub struct QueueService {
    /// One of [`Priority`].
    #[bits(8)]
    pub priority: u8,
    #[bits(24)]
    __: u32,
}

/// [`QueueService::priority`]: how much of its engine a queue gets while others have work, too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum Priority {
    /// Two shares.
    #[default]
    Normal = 0,
    /// One share.
    Low = 1,
    /// Four shares.
    High = 2,
    /// Eight shares.
    Urgent = 3,
}

impl Priority {
    /// The priority with this value, if there is one.
    pub fn from_raw(raw: u8) -> Option<Self> {
        [Self::Normal, Self::Low, Self::High, Self::Urgent].into_iter().find(|&priority| priority as u8 == raw)
    }

    /// Shares.
    pub const fn weight(self) -> u8 {
        match self {
            Self::Low => 1,
            Self::Normal => 2,
            Self::High => 4,
            Self::Urgent => 8,
        }
    }
}

/// [`regs::QUEUE_MODERATION`]. The last completion that wants an interrupt always has one, if late.
#[bitfield(u32, order = Lsb)]
#[derive(PartialEq, Eq)]
pub struct QueueModeration {
    /// Least time between two interrupts, µs; 0 for none.
    #[bits(16)]
    pub interval_us: u16,
    /// So many completions that want an interrupt do not wait for that time; 0 for any number.
    #[bits(16)]
    pub count: u16,
}

/// [`regs::QUEUE_STATUS`].
#[bitfield(u32, order = Lsb)]
pub struct QueueStatus {
    /// The queue runs.
    pub enabled: bool,
    /// The queue stopped by itself, for the reason in `error`; disabling it clears this.
    pub halted: bool,
    #[bits(6)]
    __: u8,
    /// One of [`queue_error`].
    #[bits(8)]
    pub error: u8,
    #[bits(16)]
    __: u16,
}

/// Values of [`QueueStatus::error`].
pub mod queue_error {
    /// No error.
    pub const NONE: u8 = 0;
    /// A register was out of range when the queue was enabled; it was not enabled.
    pub const BAD_CONFIG: u8 = 1;
    /// The tail was more than the ring's size ahead of the head.
    pub const BAD_TAIL: u8 = 2;
    /// The completion head was outside what the device has written.
    pub const BAD_CQ_HEAD: u8 = 3;
    /// The submission ring could not be read at the fault address.
    pub const SQ_FAULT: u8 = 4;
    /// The completion ring could not be written at the fault address.
    pub const CQ_FAULT: u8 = 5;
}

/// Values of [`Descriptor::opcode`].
pub mod opcode {
    /// Complete at once.
    pub const NOP: u8 = 0;
    /// Complete when everything before it in the queue has completed.
    pub const DRAIN: u8 = 1;
    /// Copy `length` bytes from `src` to `dst`. The two must not overlap.
    pub const COPY: u8 = 2;
    /// Fill `length` bytes at `dst` with the 8 bytes of `operand`, repeated, starting with its lowest.
    pub const FILL: u8 = 3;
    /// Compare `length` bytes at `src` and `dst`; [`super::Completion::result`] is the offset of the first difference.
    pub const COMPARE: u8 = 4;
    /// CRC-32C (Castagnoli, reflected, as RFC 3720 appendix B.4) of `length` bytes at `src`, continuing from the CRC in
    /// `operand` (0 to start).
    pub const CRC32C: u8 = 5;
    /// Translate `length` bytes at `src` ahead, so that later accesses hit the engine's device TLB: for reading, or for
    /// writing with 1 in `operand`. Pages that are not there are asked for, as any operand's. No byte is read or
    /// written.
    pub const PREFETCH: u8 = 6;
    /// Forget the translations of `length` bytes at `src` in the device TLB of the queue's engine. Never faults.
    pub const DROP: u8 = 7;
    /// Bit mask of the opcodes above, as in [`super::regs::OPCODES`].
    pub const IMPLEMENTED: u64 = 0b1111_1111;
}

bitflags! {
    /// [`Descriptor::flags`].
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct DescriptorFlags: u8 {
        /// Raise the queue's vector when this completes.
        const INTERRUPT = 1 << 0;
        /// Start only when everything before it in the queue has completed.
        const FENCE = 1 << 1;
        /// On a page that is not there, stop and report instead of asking for the page.
        const STOP_ON_FAULT = 1 << 2;
        /// `src` is the address of a list of `src_entries` [`ScatterEntry`]s.
        const SRC_LIST = 1 << 3;
        /// `dst` is the address of a list of `dst_entries` [`ScatterEntry`]s.
        const DST_LIST = 1 << 4;
    }
}

/// [`Descriptor::spaces`]: what kind of address each operand has. One of [`operand_space`] each.
#[bitfield(u16, order = Lsb)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct OperandSpaces {
    /// The source's, or that of its list's entries.
    #[bits(2)]
    pub src: u8,
    /// The destination's, or that of its list's entries.
    #[bits(2)]
    pub dst: u8,
    /// That of the lists themselves.
    #[bits(2)]
    pub list: u8,
    #[bits(10)]
    __: u16,
}

/// Values of the fields of [`OperandSpaces`].
pub mod operand_space {
    /// An address of the process that [`DescriptorPasid`](super::DescriptorPasid) names, or the driver's own DMA
    /// address if it names none.
    pub const VIRTUAL: u8 = 0;
    /// The driver's own DMA address.
    pub const DMA: u8 = 1;
    /// A device address: device memory of any function of the device
    /// ([`device_address`](crate::mirror::device_address)).
    pub const DEVICE_MEMORY: u8 = 2;
}

/// [`Descriptor::pasid`].
#[bitfield(u32, order = Lsb)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct DescriptorPasid {
    /// The process whose addresses the descriptor holds.
    #[bits(20)]
    pub pasid: u32,
    #[bits(11)]
    __: u16,
    /// The addresses belong to `pasid`; otherwise they are the driver's own DMA addresses.
    pub valid: bool,
}

/// One piece of work, 64 bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Descriptor {
    /// One of [`opcode`].
    pub opcode: u8,
    /// [`DescriptorFlags`].
    pub flags: u8,
    /// [`OperandSpaces`] in a kernel queue; zero in a user queue.
    pub spaces: OperandSpaces,
    /// [`DescriptorPasid`] in a kernel queue; zero in a user queue, whose descriptors all belong to the queue's PASID.
    pub pasid: DescriptorPasid,
    /// Returned in the completion, not looked at.
    pub cookie: u64,
    /// Source address, or address of the source list.
    pub src: u64,
    /// Destination address, or address of the destination list.
    pub dst: u64,
    /// Bytes, `1..=MAX_LENGTH` for opcodes that have operands, zero otherwise. A list's lengths add up to it.
    pub length: u64,
    /// Pattern of FILL, starting value of CRC32C, 1 in a PREFETCH for writing, zero otherwise.
    pub operand: u64,
    /// Entries of the source list, zero without one.
    pub src_entries: u32,
    /// Entries of the destination list, zero without one.
    pub dst_entries: u32,
    /// Reserved.
    pub reserved1: u64,
}

/// One piece of a scatter list, 16 bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct ScatterEntry {
    /// Address of the first byte.
    pub address: u64,
    /// Bytes, not 0.
    pub length: u64,
}

/// What became of a descriptor, 32 bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Completion {
    /// The descriptor's cookie.
    pub cookie: u64,
    /// Bytes done from the start of the operands, in order: everything below was done, nothing at or above is promised.
    pub bytes_done: u64,
    /// CRC of CRC32C (low 32 bits), offset of COMPARE's first difference, or the fault's address where `fault` says so.
    pub result: u64,
    /// One of [`Code`].
    pub status: u16,
    /// [`FaultFlags`].
    pub fault: u8,
    /// Zero.
    pub reserved: u8,
    /// Free-running index of this entry plus one, written last: the entry is whole when it reads what software expects.
    pub seq: u32,
}

bitflags! {
    /// [`Completion::fault`].
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct FaultFlags: u8 {
        /// `result` is the address at fault.
        const ADDRESS_VALID = 1 << 0;
        /// The access was a write.
        const WRITE = 1 << 1;
    }
}

/// [`Completion::status`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Code {
    /// Done, and equal if it was a COMPARE.
    Success = 0,
    /// COMPARE found a difference; `result` says where.
    Mismatch = 1,
    /// Unknown opcode.
    BadOpcode = 0x10,
    /// Unknown flag, or one that the opcode has no use for.
    BadFlags = 0x11,
    /// Length zero, above the maximum, or given to an opcode without operands.
    BadLength = 0x12,
    /// A reserved field, or one that the opcode does not use, is not zero.
    BadReserved = 0x13,
    /// COPY's source and destination overlap.
    Overlap = 0x14,
    /// A list has no entry, too many, an entry of no length, or lengths that do not add up.
    BadList = 0x15,
    /// An operand wraps around the address space.
    BadAddress = 0x16,
    /// The page is not there or forbids the access: the kernel said *invalid request*, or the policy is to stop.
    PageFault = 0x20,
    /// The page request was answered *response failure*: page requests are off until software enables them again.
    PageRequestFailed = 0x21,
    /// No answer to a page request in time.
    PageRequestTimeout = 0x22,
    /// The IOMMU answered *unsupported request* or *completer abort*: nothing is bound there.
    TranslationBlocked = 0x23,
    /// The translation leads to no memory.
    MemoryError = 0x24,
    /// The PASID was aborted, the queue disabled, or the function reset.
    Aborted = 0x30,
}

impl Code {
    /// The code with this value, if there is one.
    pub fn from_raw(raw: u16) -> Option<Self> {
        Some(match raw {
            0 => Self::Success,
            1 => Self::Mismatch,
            0x10 => Self::BadOpcode,
            0x11 => Self::BadFlags,
            0x12 => Self::BadLength,
            0x13 => Self::BadReserved,
            0x14 => Self::Overlap,
            0x15 => Self::BadList,
            0x16 => Self::BadAddress,
            0x20 => Self::PageFault,
            0x21 => Self::PageRequestFailed,
            0x22 => Self::PageRequestTimeout,
            0x23 => Self::TranslationBlocked,
            0x24 => Self::MemoryError,
            0x30 => Self::Aborted,
            _ => return None,
        })
    }
}

const _: () = assert!(size_of::<Descriptor>() == 64);
const _: () = assert!(size_of::<Completion>() == 32);
const _: () = assert!(size_of::<ScatterEntry>() == 16);
