//! `scale`: the same small copies for many processes, and through many queues.
use std::time::Instant;

use super::Session;
use super::ring::{self, Ring};
use super::wait::Spin;
use super::world::{DATA, PASID, Pages, Size, World};
use crate::row::{Row, Suite};
use crate::stats::paired;

/// Copies of one turn.
const TURN: u32 = 1 << 14;
/// Descriptors under way, in all queues together.
const DEPTH: u32 = 128;

fn small(n: u32) -> svadev_spec::device::Descriptor {
    let slot = u64::from(n % DEPTH) * 64;
    let at = |gpa| Pages::Large.address(gpa);
    ring::copy(at(DATA.start + slot), at(DATA.start + 0x10_0000 + slot), 64)
}

pub(super) fn run(session: &mut Session<'_>) -> anyhow::Result<()> {
    pasids(session)?;
    queues(session)
}

/// One kernel queue, whose descriptors belong to a growing number of processes in turn.
fn pasids(session: &mut Session<'_>) -> anyhow::Result<()> {
    let world = session.world(Size { pasids: 4097, ..Size::default() })?;
    let ring = std::cell::RefCell::new(Ring::open(&world, 0, 9, None)?);
    let count = session.turn(TURN);
    let turn = |pasids: u32| {
        let copies = |n: u32| ring::for_pasid(small(n), PASID + n % pasids);
        // Wakes the engine before the clock starts.
        ring.borrow_mut().stream(2 * DEPTH, DEPTH, copies)?;
        let start = Instant::now();
        ring.borrow_mut().stream(count, DEPTH, copies)?;
        Ok(millions_per_s(count, start))
    };
    for pasids in [1, 4, 16, 64, 256, 1024, 4096] {
        let case = format!("64 B copies, {pasids} PASIDs in turn");
        session.case(Suite::Scale, &case);
        let pair = paired(session.time, || turn(pasids), || turn(1))?;
        let row = Row::compared(Suite::Scale, case, &pair, "M/s", "one PASID");
        session.rows.push(row.plotted("64 B copies a second", "by PASIDs", f64::from(pasids), "PASIDs or queues"));
    }
    Ok(())
}

/// A growing number of user queues in turn, with the same total depth.
fn queues(session: &mut Session<'_>) -> anyhow::Result<()> {
    const MOST: u16 = 256;
    let world = session.world(Size { queues: MOST, ..Size::default() })?;
    let rings: Vec<_> =
        (0..MOST).map(|queue| Ring::open(&world, queue, 8, Some(PASID))).collect::<anyhow::Result<_>>()?;
    let (rings, count) = (std::cell::RefCell::new(rings), session.turn(TURN));
    for queues in [1u16, 4, 16, 64, 256] {
        let case = format!("64 B copies, {queues} queues in turn");
        session.case(Suite::Scale, &case);
        let turn = |queues: u16| {
            let rings = &mut rings.borrow_mut()[..usize::from(queues)];
            // Wakes the engine, and makes it poll every queue, before the clock starts.
            turn(&world, rings, 4 * DEPTH)?;
            turn(&world, rings, count)
        };
        let pair = paired(session.time, || turn(queues), || turn(1))?;
        let row = Row::compared(Suite::Scale, case, &pair, "M/s", "one queue");
        session.rows.push(row.plotted("64 B copies a second", "by queues", f64::from(queues), "PASIDs or queues"));
    }
    Ok(())
}

fn turn(world: &World, rings: &mut [Ring<'_>], count: u32) -> anyhow::Result<f64> {
    let each = (DEPTH / u32::try_from(rings.len()).expect("few queues")).max(1);
    let (mut put, mut done) = (0, 0);
    let start = Instant::now();
    let mut spin = Spin::default();
    while done < count {
        let before = done;
        for ring in rings.iter_mut() {
            while ring.poll()? {
                done += 1;
            }
            while put < count && ring.pending() < each {
                ring.put(&small(put));
                put += 1;
            }
            ring.ring()?;
        }
        if done == before && spin.once() && start.elapsed() > super::wait::PATIENCE {
            rings.iter().try_for_each(|ring| world.check_queue(ring.number()))?;
            anyhow::bail!("only {done} of {count} copies were completed in {:?}", start.elapsed());
        }
    }
    Ok(millions_per_s(count, start))
}

fn millions_per_s(count: u32, since: Instant) -> f64 {
    f64::from(count) / since.elapsed().as_secs_f64() / 1e6
}
