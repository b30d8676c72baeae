//! What an endpoint did, for metrics. Each set has one writer, its engine: counting is a load and a store.
use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Counters of one engine.
        #[derive(Debug, Default)]
        pub struct EngineCounters { $($(#[$doc])* pub $name: Counter,)* }

        /// A snapshot of an endpoint's counters, summed over its engines, since the endpoint was made.
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
    /// Accesses that waited in line for the page request allocation.
    starved,
    /// Invalidations carried out.
    invalidations,
    /// Times an engine went to sleep.
    parks,
}

/// A counter with a single writer and any readers.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds; only ever called on the engine's own thread.
    #[inline]
    pub fn add(&self, n: u64) {
        self.0.store(self.get().wrapping_add(n), Ordering::Relaxed);
    }

    /// The count.
    #[inline]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
