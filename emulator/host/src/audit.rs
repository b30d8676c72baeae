//! The auditor's thread: checks the unit's caches a slice at a time, and passes on what was found.
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::audit_clock::AuditClock;
use crate::bus::Bus;
use crate::events::{Events, HostEvent};
use crate::periodic::Periodic;
use crate::platform::Platform;

/// Pause between two slices.
const PERIOD: Duration = Duration::from_millis(1);
/// Number of entries that a slice checks in each cache. It takes some 100 µs. Engines and vCPUs may have to wait for
/// it.
const BUDGET: usize = 256;
/// Starts the thread.
pub(crate) fn start<P: Platform>(bus: Arc<Bus<P>>, clock: Arc<AuditClock>, events: Events) -> anyhow::Result<Periodic> {
    let mut last = Instant::now();
    Periodic::start("audit", PERIOD, &events.clone(), move || {
        clock.advance(std::mem::replace(&mut last, Instant::now()).elapsed());
        for finding in bus.audit_slice(BUDGET) {
            events.send(HostEvent::Audit(Box::new(finding)));
        }
    })
}
