//! Page table walks: first-stage, second-stage, and one inside the other.
//!
//! A walk is one function over [`Tables`], which reads entries and sets bits in them. What the tables lie in, guest-physical
//! memory or the second stage's input, is the implementation's business; so a faster way to read, or a start further down from a
//! paging-structure cache, changes no rule.
mod first_stage;
mod second_stage;

pub(crate) use first_stage::FirstStage;
pub(crate) use second_stage::{SecondStage, in_legacy_mode};

use svadev_memory::{GuestAddress, GuestMemory};
use svadev_spec::vtd::FaultReason;

/// Walks that lose every race for an accessed or dirty bit are given up after this many (SFS.10, SSS.6): a guest that
/// changes an entry for ever must not hold the unit for ever.
const MAX_WALKS: u32 = 16;

/// Widths and sizes the unit was built with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Address bits from here up to 51 are reserved in entries.
    pub(crate) host_address_width: u8,
    /// CAP.MGAW + 1.
    pub(crate) guest_address_width: u8,
    /// Level-3 entries may map pages.
    pub(crate) pages_1gib: bool,
}

impl Limits {
    /// Whether an address in units of 4 KiB has bits at or above the host address width.
    pub(crate) fn frame_too_wide(&self, frame: u64) -> bool {
        frame >> (self.host_address_width - 12) != 0
    }
}

/// What a walk is for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Want {
    /// Rights that must be there, else the walk ends in a fault. A translation request demands none: it takes what it gets.
    pub(crate) read: bool,
    /// As `read`.
    pub(crate) write: bool,
    /// Execute request.
    pub(crate) execute: bool,
    /// The right to execute must be there if `execute` asks for it.
    pub(crate) execute_demanded: bool,
    /// Supervisor request.
    pub(crate) privileged: bool,
    /// If writes are allowed, the requester may make some: dirty must be set. False for reads, and with *No Write*.
    pub(crate) dirty: bool,
}

/// Where a walk ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Leaf {
    /// First byte of the page.
    pub(crate) address: u64,
    pub(crate) size_log2: u8,
    pub(crate) read: bool,
    pub(crate) write: bool,
    pub(crate) execute: bool,
}

/// Another agent changed the entry between our read and our write.
pub(crate) struct Lost;

/// How a walker reaches the entries.
pub(crate) trait Tables {
    /// Reads the entry at `address`. `top` says that it is in the first table: the faults have codes of their own.
    fn load(&self, address: u64, top: bool) -> Result<u64, FaultReason>;

    /// Replaces the entry at `address`, if it is still `old`.
    fn exchange(&self, address: u64, old: u64, new: u64) -> Result<Result<(), Lost>, FaultReason>;
}

/// First-stage tables at guest-physical addresses.
pub(crate) struct InMemory<'a, M>(pub(crate) &'a M);

impl<M: GuestMemory> Tables for InMemory<'_, M> {
    fn load(&self, address: u64, top: bool) -> Result<u64, FaultReason> {
        let fault = if top { FaultReason::FirstStagePointer } else { FaultReason::FirstStageAccess };
        self.0.load_u64(GuestAddress(address)).map_err(|_| fault)
    }

    fn exchange(&self, address: u64, old: u64, new: u64) -> Result<Result<(), Lost>, FaultReason> {
        match self.0.compare_exchange_u64(GuestAddress(address), old, new) {
            Ok(result) => Ok(result.map(|_| ()).map_err(|_| Lost)),
            Err(_) => Err(FaultReason::FirstStageUpdateFailed),
        }
    }
}

/// Second-stage tables. They always lie at guest-physical addresses (what the guest's own stage calls host-physical).
pub(crate) struct SecondStageTables<'a, M>(pub(crate) &'a M);

impl<M: GuestMemory> Tables for SecondStageTables<'_, M> {
    fn load(&self, address: u64, top: bool) -> Result<u64, FaultReason> {
        let fault = if top { FaultReason::SecondStagePointer } else { FaultReason::SecondStageAccess };
        self.0.load_u64(GuestAddress(address)).map_err(|_| fault)
    }

    fn exchange(&self, address: u64, old: u64, new: u64) -> Result<Result<(), Lost>, FaultReason> {
        match self.0.compare_exchange_u64(GuestAddress(address), old, new) {
            Ok(result) => Ok(result.map(|_| ()).map_err(|_| Lost)),
            Err(_) => Err(FaultReason::SecondStageUpdateFailed),
        }
    }
}

/// First-stage tables whose addresses go through the second stage (nested translation, §3.8).
pub(crate) struct Nested<'a, M> {
    pub(crate) memory: &'a M,
    pub(crate) second: SecondStage,
    pub(crate) limits: Limits,
}

impl<M: GuestMemory> Nested<'_, M> {
    fn translate(&self, address: u64, write: bool, top: bool) -> Result<u64, FaultReason> {
        let want = Want { read: true, write, execute: false, execute_demanded: false, privileged: false, dirty: write };
        let leaf =
            self.second.walk(&SecondStageTables(self.memory), self.limits, address, want).map_err(|e| match e {
                FaultReason::AddressTooWide => FaultReason::NestedEntryAddressTooWide,
                FaultReason::NoRead if top => FaultReason::NestedTopEntryNoRead,
                FaultReason::NoRead => FaultReason::NestedEntryNoRead,
                FaultReason::NoWrite => FaultReason::NestedEntryNoWrite,
                other => other,
            })?;
        Ok(leaf.address | address & ((1 << leaf.size_log2) - 1))
    }
}

impl<M: GuestMemory> Tables for Nested<'_, M> {
    fn load(&self, address: u64, top: bool) -> Result<u64, FaultReason> {
        InMemory(self.memory).load(self.translate(address, false, top)?, top)
    }

    fn exchange(&self, address: u64, old: u64, new: u64) -> Result<Result<(), Lost>, FaultReason> {
        InMemory(self.memory).exchange(self.translate(address, true, false)?, old, new)
    }
}

/// Nine bits of `address` choose an entry at `level` (1 is the lowest): the entry's offset in its table.
fn entry_offset(address: u64, level: u8) -> u64 {
    (address >> (12 + 9 * (level - 1)) & 0x1ff) * 8
}

/// Log2 of the bytes an entry at `level` maps.
fn size_log2(level: u8) -> u8 {
    12 + 9 * (level - 1)
}
