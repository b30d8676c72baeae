//! Bugs on purpose, in the wiring and in the mock kernel: each must be caught by some checker on some seed, or the checkers
//! are worth nothing.

/// A planted bug.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutant {
    /// Some device-TLB invalidations never reach their function.
    SkipDeviceTlb,
    /// Invalidations count as complete when they are sent.
    EarlyAck,
    /// Some completions of invalidations are lost.
    LoseCompletion,
    /// Some page group responses are lost.
    LoseAnswer,
    /// Some groups are answered twice.
    AnswerTwice,
    /// Some translations are of another process.
    WrongPasid,
    /// Writes do not set the dirty bit.
    ForgetDirty,
    /// Some wakes are lost.
    LoseWake,
    /// The kernel frees pages before their invalidation is over.
    FreeEarly,
    /// The kernel does not invalidate the unit's own translations.
    SkipIotlb,
    /// The kernel reuses a PASID without aborting and draining it.
    SkipDrain,
}

impl Mutant {
    /// All of them.
    pub const ALL: [Self; 11] = [
        Self::SkipDeviceTlb,
        Self::EarlyAck,
        Self::LoseCompletion,
        Self::LoseAnswer,
        Self::AnswerTwice,
        Self::WrongPasid,
        Self::ForgetDirty,
        Self::LoseWake,
        Self::FreeEarly,
        Self::SkipIotlb,
        Self::SkipDrain,
    ];

    /// Its name, as the command line takes it.
    pub fn name(self) -> String {
        format!("{self:?}")
    }

    /// The one with this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|m| m.name().eq_ignore_ascii_case(name))
    }
}
