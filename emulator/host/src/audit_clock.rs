//! The time that the auditor measures stale entries by.
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use svadev_mutation::mutant;

/// Most that the clock advances between two slices. If the host stalls everyone, the guest did not have that time
/// either.
const MAX_STEP: Duration = Duration::from_millis(4);

/// Time that the guest may be held to, ns.
#[derive(Debug, Default)]
pub(crate) struct AuditClock(AtomicU64);

impl AuditClock {
    /// The time as of the last slice.
    pub(crate) fn now_ns(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// Advances by the time that passed since the last slice, or by [`MAX_STEP`] if more did.
    pub(crate) fn advance(&self, passed: Duration) {
        let passed = if mutant!(StalledAuditClockRuns) { passed } else { passed.min(MAX_STEP) };
        let step = u64::try_from(passed.as_nanos()).expect("a short time");
        self.0.fetch_add(step, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stall_is_not_the_guests_time() {
        let clock = AuditClock::default();
        clock.advance(Duration::from_millis(1));
        clock.advance(Duration::from_secs(60));
        assert_eq!(clock.now_ns(), 5_000_000);
    }
}
