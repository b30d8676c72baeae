//! The auditor's thread: it goes through the unit's caches a slice at a time, and passes on what was found.
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::bus::Bus;
use super::periodic::Periodic;
use super::{BackendEvent, Events};

/// Pause between two slices.
const PERIOD: Duration = Duration::from_millis(1);
/// Entries a slice looks at in each cache: some 100 µs, for which engines and vCPUs may have to wait.
const BUDGET: usize = 256;
/// The most that the auditor's clock advances between two slices. Where the host stalls everyone, the guest has not had the time either.
const MAX_STEP: Duration = Duration::from_millis(4);

/// The auditor's clock: time that the guest may be held to, ns.
#[derive(Debug, Default)]
pub(super) struct AuditClock(AtomicU64);

impl AuditClock {
    /// As of the last slice.
    pub(super) fn now_ns(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    fn advance(&self, passed: Duration) {
        let step = u64::try_from(passed.min(MAX_STEP).as_nanos()).expect("a few milliseconds");
        self.0.fetch_add(step, Ordering::Relaxed);
    }
}

/// Starts the thread.
pub(super) fn start(bus: Arc<Bus>, clock: Arc<AuditClock>, events: Events) -> anyhow::Result<Periodic> {
    let mut last = Instant::now();
    Periodic::start("audit", PERIOD, &events.clone(), move || {
        clock.advance(std::mem::replace(&mut last, Instant::now()).elapsed());
        for finding in bus.audit_slice(BUDGET) {
            events.send(BackendEvent::Audit(Box::new(finding)));
        }
    })
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
