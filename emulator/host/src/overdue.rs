//! The clock by which the unit gives up on device-TLB invalidations.
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use svadev_fabric::{Bdf, InvalidateTag};
use svadev_mutation::mutant;

use crate::bus::Bus;
use crate::events::Events;
use crate::periodic::Periodic;
use crate::platform::Platform;

/// Pause between two looks.
const PERIOD: Duration = Duration::from_secs(5);
/// Number of looks at which an invalidation may be outstanding: a minute and a half (PCIe 6.0 §10.3.1: one minute, plus
/// 50 %). A healthy engine answers after one slice of work.
///
/// An engine can stall if guest memory stalls (userfaultfd, NFS). We count looks instead of elapsed time, so that a
/// SIGSTOP is not held against it.
const PATIENCE: u32 = 18;

/// Starts the thread that looks for them. `scale` stretches the time.
pub(crate) fn start<P: Platform>(bus: Arc<Bus<P>>, scale: u32, events: &Events) -> anyhow::Result<Periodic> {
    let mut overdue = Overdue { patience: PATIENCE.saturating_mul(scale), seen: BTreeMap::new() };
    Periodic::start("overdue", PERIOD, events, move || bus.give_up_on(|outstanding| overdue.look(outstanding)))
}

/// The invalidations that were outstanding at the last look, and for how many looks in a row.
struct Overdue {
    patience: u32,
    seen: BTreeMap<InvalidateTag, u32>,
}

impl Overdue {
    /// Looks at the outstanding invalidations. Returns a function that has not acknowledged one of them for too long.
    fn look(&mut self, outstanding: &mut dyn Iterator<Item = (InvalidateTag, Bdf)>) -> Option<Bdf> {
        let before = std::mem::take(&mut self.seen);
        let mut late = None;
        for (tag, to) in outstanding {
            let looks = before.get(&tag).map_or(0, |looks| looks + 1);
            self.seen.insert(tag, looks);
            let patience = self.patience - u32::from(mutant!(OverdueOneLookEarly));
            late = late.or((looks >= patience).then_some(to));
        }
        late
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_outstanding_for_long_is_overdue_and_what_comes_and_goes_is_not() {
        let mut overdue = Overdue { patience: 3, seen: BTreeMap::new() };
        let mut look = |tags: &[u64]| {
            let mut outstanding =
                tags.iter().map(|&tag| (InvalidateTag::unit(tag), Bdf(0x30 + u16::try_from(tag).unwrap())));
            overdue.look(&mut outstanding)
        };
        assert_eq!(look(&[1, 2]), None);
        assert_eq!(look(&[2, 3]), None, "1 was acknowledged");
        assert_eq!(look(&[2, 3, 4]), None);
        assert_eq!(look(&[2, 3, 4]), Some(Bdf(0x32)));
        assert_eq!(look(&[3, 4]), Some(Bdf(0x33)), "2 was given up");
        assert_eq!(look(&[4]), Some(Bdf(0x34)));
        assert_eq!(look(&[5]), None);
    }
}
