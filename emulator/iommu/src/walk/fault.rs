//! How a walk can end without a page. Neutral: what a unit calls the fault is decided in `fault_codes`.
use svadev_spec::vtd::tables::Level;

/// The stage that a page table belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// First-stage tables.
    First,
    /// Second-stage tables.
    Second,
}

/// A page-table entry, by the table that it is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct EntryAt {
    /// Stage of the table.
    pub(crate) stage: Stage,
    /// Level of the table.
    pub(crate) level: Level,
}

/// Why an address has no translation, or none for this request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WalkFault {
    /// The address does not fit the tables: it is not canonical (first stage) or too wide (second stage).
    Address(Stage),
    /// Supervisor requests are not let in.
    SupervisorRefused,
    /// Execute requests are not let in.
    ExecuteRefused,
    /// An entry cannot be read: no memory is there.
    Unreadable(EntryAt),
    /// An entry is not present.
    NotPresent(EntryAt),
    /// An entry has reserved bits set.
    Reserved(EntryAt),
    /// Accessed or dirty must be set in an entry, and page walks do not snoop.
    NotSnooped(EntryAt),
    /// Accessed or dirty cannot be set in an entry: no memory is there, or another agent was quicker every time.
    NotUpdated(Stage),
    /// A user request meets a supervisor page.
    SupervisorPage,
    /// There is no right to read.
    NoRead,
    /// There is no right to write.
    NoWrite,
    /// There is no right to execute.
    NoExecute,
    /// Nested: the address of a first-stage entry is too wide for the second stage.
    EntryAddress,
    /// Nested: the second stage gives no right to read the first-stage entry at this level.
    EntryNoRead(Level),
    /// Nested: the second stage gives no right to set accessed or dirty in a first-stage entry.
    EntryNoWrite,
    /// Pass-through: the address is beyond the host address width.
    BeyondHost,
    /// The address leads into the interrupt range.
    InterruptRange,
}

impl WalkFault {
    /// A fault at an entry. Out of line, so that the loop of a walk does not carry the parts of a fault along.
    #[cold]
    #[inline(never)]
    pub(crate) fn at(fault: fn(EntryAt) -> Self, stage: Stage, level: Level) -> Self {
        fault(EntryAt { stage, level })
    }
}

/// How one attempt at a walk ended without a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WalkEnd {
    /// The tables say no.
    Fault(WalkFault),
    /// Another agent changed an entry between the read and the write of it.
    LostRace,
}

impl From<WalkFault> for WalkEnd {
    #[inline]
    fn from(fault: WalkFault) -> Self {
        Self::Fault(fault)
    }
}
