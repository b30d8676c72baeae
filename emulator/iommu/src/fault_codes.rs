//! Fault reason codes of translations: the one place where the neutral end of a walk becomes a code of §7.1.3.
use svadev_spec::vtd::FaultReason;

use crate::address_space::{AddressSpace, Stages};
use crate::request::Fault;
use crate::walk::{EntryAt, Stage, WalkFault, Want};

/// The fault condition of a request whose translation in `space` ended in `fault`.
#[cold]
pub(crate) fn fault_in(space: &AddressSpace, fault: WalkFault, want: Want) -> Fault {
    let reason = if space.legacy { legacy(space, fault, want) } else { scalable(space, fault) };
    Fault { reason, fault_processing_disable: space.fault_processing_disable }
}

/// Scalable mode: SPT.5 and SPT.6, SFS, SSS and SGN.
fn scalable(space: &AddressSpace, fault: WalkFault) -> FaultReason {
    use FaultReason as F;
    use Stage::{First, Second};
    match fault {
        WalkFault::SupervisorRefused => F::SupervisorDisabled,
        WalkFault::ExecuteRefused => F::ExecuteDisabled,
        WalkFault::Address(First) => F::NotCanonical,
        WalkFault::Address(Second) => F::AddressTooWide,
        // The pointer to the topmost table stands in the PASID table entry, and has codes of its own.
        WalkFault::Unreadable(at) if is_topmost(space, at) => match at.stage {
            First => F::FirstStagePointer,
            Second => F::SecondStagePointer,
        },
        WalkFault::Unreadable(EntryAt { stage: First, .. }) => F::FirstStageAccess,
        WalkFault::Unreadable(EntryAt { stage: Second, .. }) => F::SecondStageAccess,
        WalkFault::NotPresent(EntryAt { stage: First, .. }) => F::FirstStageNotPresent,
        WalkFault::NotPresent(EntryAt { stage: Second, .. }) => F::SecondStageNotPresent,
        WalkFault::Reserved(EntryAt { stage: First, .. }) => F::FirstStageReserved,
        WalkFault::Reserved(EntryAt { stage: Second, .. }) => F::SecondStageReserved,
        WalkFault::NotSnooped(EntryAt { stage: First, .. }) => F::FirstStageUpdateNotSnooped,
        WalkFault::NotSnooped(EntryAt { stage: Second, .. }) => F::SecondStageUpdateNotSnooped,
        WalkFault::NotUpdated(First) => F::FirstStageUpdateFailed,
        WalkFault::NotUpdated(Second) => F::SecondStageUpdateFailed,
        WalkFault::SupervisorPage => F::UserToSupervisor,
        WalkFault::NoRead => F::NoRead,
        WalkFault::NoWrite => F::NoWrite,
        WalkFault::NoExecute => F::NoExecute,
        WalkFault::EntryAddress => F::NestedEntryAddressTooWide,
        WalkFault::EntryNoRead(level) if is_topmost(space, EntryAt { stage: First, level }) => F::NestedTopEntryNoRead,
        WalkFault::EntryNoRead(_) => F::NestedEntryNoRead,
        WalkFault::EntryNoWrite => F::NestedEntryNoWrite,
        WalkFault::BeyondHost => F::AddressBeyondHost,
        WalkFault::InterruptRange => F::InterruptAddress,
    }
}

/// Legacy mode: LSS and LGN. There is only a second stage, whose accessed and dirty bits are not used, and
/// pass-through.
fn legacy(space: &AddressSpace, fault: WalkFault, want: Want) -> FaultReason {
    use FaultReason as F;
    match fault {
        WalkFault::Unreadable(_) => F::LegacySecondStageAccess,
        WalkFault::Reserved(_) => F::LegacySecondStageReserved,
        WalkFault::Address(_) | WalkFault::BeyondHost => F::LegacyAddressTooWide,
        WalkFault::NotPresent(_) if want.write => F::LegacyNoWrite,
        WalkFault::NotPresent(_) | WalkFault::NoRead => F::LegacyNoRead,
        WalkFault::NoWrite => F::LegacyNoWrite,
        WalkFault::InterruptRange => F::LegacyInterruptAddress,
        // None of the others arises without a first stage and without accessed and dirty bits.
        other => scalable(space, other),
    }
}

/// Whether an entry is in the topmost table of its stage.
fn is_topmost(space: &AddressSpace, at: EntryAt) -> bool {
    let top = match (space.stages, at.stage) {
        (Stages::First(first) | Stages::Nested(first, _), Stage::First) => first.top,
        (Stages::Second(second) | Stages::Nested(_, second), Stage::Second) => second.top,
        _ => return false,
    };
    at.level == top
}

#[cfg(test)]
mod tests {
    use svadev_spec::vtd::tables::Level;

    use super::*;
    use crate::address_space::SecondStage;

    const WRITE: Want =
        Want { read: false, write: true, execute: false, execute_demanded: true, privileged: false, dirty: true };
    const READ: Want = Want { read: true, write: false, dirty: false, ..WRITE };

    fn space(legacy: bool) -> AddressSpace {
        let second = SecondStage { root: 0, top: Level::FOUR, accessed_dirty: !legacy, page_walk_snoop: true };
        AddressSpace { stages: Stages::Second(second), legacy, fault_processing_disable: true, ..AddressSpace::BLANK }
    }

    fn at(level: Level) -> EntryAt {
        EntryAt { stage: Stage::Second, level }
    }

    #[test]
    fn an_entry_of_the_topmost_table_has_a_code_of_its_own() {
        let reason = |level| fault_in(&space(false), WalkFault::Unreadable(at(level)), READ).reason;
        assert_eq!(reason(Level::FOUR), FaultReason::SecondStagePointer);
        assert_eq!(reason(Level::THREE), FaultReason::SecondStageAccess);
        assert!(fault_in(&space(false), WalkFault::NoRead, READ).fault_processing_disable, "FPD is the space's");
    }

    #[test]
    fn legacy_mode_has_codes_of_its_own() {
        use FaultReason as F;
        let not_present = WalkFault::NotPresent(at(Level::ONE));
        for (fault, want, reason) in [
            (WalkFault::Unreadable(at(Level::FOUR)), READ, F::LegacySecondStageAccess),
            (WalkFault::Unreadable(at(Level::ONE)), READ, F::LegacySecondStageAccess),
            (WalkFault::Reserved(at(Level::TWO)), READ, F::LegacySecondStageReserved),
            (WalkFault::Address(Stage::Second), READ, F::LegacyAddressTooWide),
            (WalkFault::BeyondHost, READ, F::LegacyAddressTooWide),
            (not_present, READ, F::LegacyNoRead),
            (not_present, WRITE, F::LegacyNoWrite),
            (WalkFault::NoRead, READ, F::LegacyNoRead),
            (WalkFault::NoWrite, WRITE, F::LegacyNoWrite),
            (WalkFault::InterruptRange, READ, F::LegacyInterruptAddress),
        ] {
            assert_eq!(fault_in(&space(true), fault, want).reason, reason, "{fault:?}");
        }
    }
}
