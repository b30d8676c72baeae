//! The watchdog of mirror mode. Without an IOMMU, nothing but an engine's own look at the invalidation ring keeps it
//! from memory that the guest has taken back. So an engine that no longer looks ends the process: a process that is
//! gone writes nothing.
use std::sync::Arc;
use std::time::Duration;

use svadev_fabric::Bdf;
use svadev_memory::GuestMemory;
use svadev_mirror::Face;
use svadev_mutation::mutant;

use crate::events::Events;
use crate::periodic::Periodic;

/// Pause between two looks.
const PERIOD: Duration = Duration::from_millis(100);
/// Looks in a row at which an engine may be the same: 2 s. A slice takes some 10 µs. The driver waits longer than that.
///
/// We count looks instead of elapsed time, so that a process that was stopped, or is being debugged, is not ended for
/// it.
const PATIENCE: u32 = 20;

/// A function to watch.
pub(crate) struct Watched<M> {
    pub(crate) bdf: Bdf,
    pub(crate) face: Arc<Face>,
    pub(crate) memory: Arc<M>,
}

/// Starts the watchdog. `scale` stretches the time.
pub(crate) fn start<M: GuestMemory + 'static>(
    functions: Vec<Watched<M>>,
    scale: u32,
    events: &Events,
) -> anyhow::Result<Periodic> {
    let mut stuck = Stuck::new(functions, PATIENCE.saturating_mul(scale));
    Periodic::start("mirror", PERIOD, events, move || {
        if let Some((bdf, engine)) = stuck.look() {
            tracing::error!(
                %bdf,
                engine,
                "an engine does not acknowledge an invalidation of the mirror, so that it may use memory that the guest \
                 took back: the backend ends. If this host is only slow, raise --timeout-scale"
            );
            // Not an exit: that would let the engine go on while it cleans up.
            std::process::abort();
        }
    })
}

/// What an engine was like at the last look, and for how many looks in a row.
struct Seen {
    looks: u64,
    times: u32,
}

struct Stuck<M> {
    functions: Vec<(Watched<M>, Vec<Seen>)>,
    patience: u32,
}

impl<M: GuestMemory> Stuck<M> {
    fn new(functions: Vec<Watched<M>>, patience: u32) -> Self {
        let seen = |face: &Face| face.engines().iter().map(|_| Seen { looks: 0, times: 0 }).collect();
        let functions = functions.into_iter().map(|watched| {
            let seen = seen(&watched.face);
            (watched, seen)
        });
        Self { functions: functions.collect(), patience }
    }

    /// Looks at all engines. Returns one that may use translations, has not looked for too long, and has something to
    /// acknowledge. Only the last of these is the guest's word.
    fn look(&mut self) -> Option<(Bdf, usize)> {
        let mut late = None;
        for (Watched { bdf, face, memory }, seen) in &mut self.functions {
            for (engine, (watch, seen)) in face.engines().iter().zip(seen).enumerate() {
                let looks = watch.looks();
                if !watch.is_online() || looks != seen.looks || !face.is_behind(engine, &**memory) {
                    *seen = Seen { looks, times: 0 };
                    continue;
                }
                seen.times += 1;
                if seen.times >= self.patience && !mutant!(MirrorWatchdogSleeps) {
                    late = late.or(Some((*bdf, engine)));
                }
            }
        }
        late
    }
}

#[cfg(test)]
mod tests {
    use svadev_memory::Ram;
    use svadev_mirror::testing::Driver;
    use svadev_mirror::{ControlBlock, Side};
    use svadev_spec::mirror::{ASID_BIT, Invalidation};

    use super::*;

    #[test]
    fn only_an_engine_that_has_stopped_looking_with_something_posted_is_stuck() {
        let ram = Arc::new(Ram::new(1 << 20).unwrap());
        let mut driver = Driver::new(Arc::clone(&ram), 0x1_0000, 1, 0x8_0000, 0x9_0000).unwrap();
        let face = Arc::new(Face::new(1));
        let mut side = Side::new(0, Arc::clone(&ram), Arc::clone(&face), 1);
        let bdf = Bdf(0x28);
        let watched = Watched { bdf, face: Arc::clone(&face), memory: Arc::clone(&ram) };
        let mut stuck = Stuck::new(vec![watched], 3);
        let all_well = |stuck: &mut Stuck<Ram>| (0..10).for_each(|_| assert_eq!(stuck.look(), None));
        all_well(&mut stuck);
        let block = ControlBlock::read(&*ram, 0x1_0000, 1).unwrap();
        face.set_block(Some(block.base()));
        side.attach(block);
        side.arrive(|_| {}).unwrap();
        all_well(&mut stuck);
        driver.post(Invalidation { asid: ASID_BIT, last: 1, ..Invalidation::default() }).unwrap();
        let looks: Vec<_> = (0..4).map(|_| stuck.look()).collect();
        assert_eq!(looks, [None, None, Some((bdf, 0)), Some((bdf, 0))]);
        side.look(|_| {}).unwrap();
        all_well(&mut stuck);
        // A guest that writes nonsense harms an engine that looks in no way.
        for tail in 0..20 {
            driver.spoil(svadev_spec::mirror::INVALIDATION_TAIL, tail * 7).unwrap();
            side.look(|_| {}).unwrap();
            driver.spoil(svadev_spec::mirror::INVALIDATION_TAIL, u64::MAX).unwrap();
            assert_eq!(stuck.look(), None);
        }
        // One that sleeps is not online, and one whose mirror is off is not watched.
        side.leave(|_| {}).unwrap();
        driver.spoil(svadev_spec::mirror::INVALIDATION_TAIL, 7).unwrap();
        all_well(&mut stuck);
        side.arrive(|_| {}).unwrap();
        driver.spoil(svadev_spec::mirror::INVALIDATION_TAIL, 9).unwrap();
        face.set_block(None);
        all_well(&mut stuck);
    }
}
