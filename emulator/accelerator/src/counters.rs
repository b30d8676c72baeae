//! What a function did, for metrics. One writer a set (its engine), so counting is a load and a store.
use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Counters of one engine.
        #[derive(Debug, Default)]
        pub(crate) struct EngineCounters { $(pub(crate) $name: Counter,)* }

        /// A snapshot of a function's counters, summed over its engines, since the function was made.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
        pub struct Counters { $($(#[$doc])* pub $name: u64,)* }

        impl Counters {
            pub(crate) fn sum<'a>(sets: impl Iterator<Item = &'a EngineCounters>) -> Self {
                let mut sum = Self::default();
                for set in sets {
                    $(sum.$name = sum.$name.wrapping_add(set.$name.get());)*
                }
                sum
            }
        }
    };
}

counters! {
    /// Completion records written.
    completions,
    /// Operand bytes done.
    bytes,
    /// Translations found in a device TLB.
    tlb_hits,
    /// ATS translation requests sent.
    translations,
    /// Translations answered *not present*, or without the right that was needed.
    not_present,
    /// Page request groups sent.
    groups,
    /// Page requests sent.
    page_requests,
    /// Page requests the IOMMU dropped.
    page_requests_dropped,
    /// Groups answered *success*.
    responses_success,
    /// Groups answered *invalid request*.
    responses_invalid,
    /// Groups answered *response failure*.
    responses_failure,
    /// Groups not answered in time.
    page_request_timeouts,
    /// Descriptors that waited in line for the page request allocation.
    starved,
    /// Invalidations carried out.
    invalidations,
    /// Vectors raised.
    interrupts,
    /// Times the engine went to sleep.
    parks,
}

/// A counter with a single writer and any readers.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    /// Adds; only ever called on the engine's own thread.
    pub(crate) fn add(&self, n: u64) {
        self.0.store(self.get().wrapping_add(n), Ordering::Relaxed);
    }
    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
