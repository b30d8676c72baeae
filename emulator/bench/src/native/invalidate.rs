//! `invalidate`: the backend's cost of invalidating one page, from the write of the queue's tail to the wait's status
//! in memory. The guest's own part is not included.
use std::cell::RefCell;
use std::time::Instant;

use super::Session;
use super::ring::{self, Ring};
use super::world::{DATA, PASID, Pages, Size, World};
use crate::row::{Goal, Row, Suite, Target};
use crate::stats::{Pair, Samples, alone};

/// Bytes of the copies that keep an engine busy.
const LOAD: u64 = 64 << 20;
/// Most bytes that an engine copies before it looks at its messages (`docs/design/0001-foundations.md`).
const SLICE: u64 = 64 << 10;
/// Invalidations of one turn.
const TURN: u64 = 100;

/// The page to invalidate. Nobody uses it any more.
fn page(n: u64) -> u64 {
    Pages::Small.address(DATA.end - 0x1000 * (1 + n % 64))
}

pub(super) fn run(session: &mut Session<'_>) -> anyhow::Result<()> {
    let world = session.world(Size::default())?;
    let ring = RefCell::new(Ring::open(&world, 0, 4, Some(PASID))?);
    idle(session, &world)?;
    loaded(session, &world, &ring)
}

fn microseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e6
}

fn idle(session: &mut Session<'_>, world: &World) -> anyhow::Result<()> {
    let case = "one page, engines asleep";
    session.case(Suite::Invalidate, case);
    let mut trips = Vec::new();
    alone(session.time, || {
        for n in 0..TURN {
            let announced = world.announce(page(n));
            let start = Instant::now();
            announced.tell()?;
            trips.push(microseconds(start));
        }
        Ok(0.0)
    })?;
    let samples = Samples::new(trips).expect("many invalidations");
    let row = Row::measured(Suite::Invalidate, case, &samples, "us");
    session.rows.push(row.aiming(Goal::G7, Target::value_at_most(2.0)));
    Ok(())
}

/// Invalidates under full copy load, where the engine acknowledges between two slices. The baseline is the time of one
/// slice at the copy speed during the measurement.
fn loaded(session: &mut Session<'_>, world: &World, ring: &RefCell<Ring<'_>>) -> anyhow::Result<()> {
    let case = "one page, engine copying";
    session.case(Suite::Invalidate, case);
    let descriptor = ring::copy(Pages::Large.address(DATA.start), Pages::Large.address(DATA.start + LOAD), LOAD);
    let (mut trips, mut slices) = (Vec::new(), Vec::new());
    alone(session.time * 2, || {
        let mut ring = ring.borrow_mut();
        ring.put(&descriptor);
        ring.ring()?;
        // The descriptor is fetched: the engine is busy until the completion.
        ring.wait_fetched()?;
        let start = Instant::now();
        let before = trips.len();
        while !ring.poll()? {
            let announced = world.announce(page(trips.len() as u64));
            let asked = Instant::now();
            announced.tell()?;
            trips.push(microseconds(asked));
        }
        slices.push(microseconds(start) / (LOAD / SLICE) as f64);
        // The engine may have been idle at the last invalidation.
        if trips.len() > before {
            trips.pop();
        }
        Ok(0.0)
    })?;
    let (Some(thing), Some(slice)) = (Samples::new(trips), Samples::new(slices)) else {
        anyhow::bail!("no invalidation came during a copy of 64 MiB");
    };
    let pair = Pair { ratio: thing.median() / slice.median(), thing, baseline: slice };
    let row = Row::compared(Suite::Invalidate, case, &pair, "us", "a slice of 64 KiB");
    session.rows.push(row.aiming(Goal::G7, Target::ratio_at_most(1.0)));
    Ok(())
}
