//! What a function did, for metrics.
use svadev_endpoint::Counter;

/// What an engine of the accelerator counts, beside what every endpoint does.
#[derive(Debug, Default)]
pub(crate) struct EngineCounters {
    /// Completion records written.
    pub(crate) completions: Counter,
    /// Operand bytes done.
    pub(crate) bytes: Counter,
    /// Vectors raised.
    pub(crate) interrupts: Counter,
}

/// A snapshot of a function's counters, summed over its engines, since the function was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Counters {
    /// Completion records written.
    pub completions: u64,
    /// Operand bytes done.
    pub bytes: u64,
    /// Vectors raised.
    pub interrupts: u64,
    /// What every endpoint counts: translations, page requests, invalidations.
    #[serde(flatten)]
    pub endpoint: svadev_endpoint::Counters,
}

impl Counters {
    pub(crate) fn sum<'a>(sets: impl Iterator<Item = &'a EngineCounters>, endpoint: svadev_endpoint::Counters) -> Self {
        let mut sum = Self { endpoint, ..Self::default() };
        for set in sets {
            sum.completions = sum.completions.wrapping_add(set.completions.get());
            sum.bytes = sum.bytes.wrapping_add(set.bytes.get());
            sum.interrupts = sum.interrupts.wrapping_add(set.interrupts.get());
        }
        sum
    }
}

impl std::ops::Deref for Counters {
    type Target = svadev_endpoint::Counters;
    fn deref(&self) -> &svadev_endpoint::Counters {
        &self.endpoint
    }
}
