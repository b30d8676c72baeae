//! `copy`: bandwidth, against the host's memcpy on the same buffers.
use std::time::Instant;

use anyhow::ensure;

use super::Session;
use super::ring::{self, Ring};
use super::wait::{PATIENCE, Spin};
use super::world::{DATA, PASID, Pages, Size, World};
use crate::row::{Goal, Row, Suite, Target, bytes};
use crate::stats::{Pair, paired};

/// Where targets begin. Sources begin at the start of `DATA`.
const TARGETS: u64 = DATA.start + (DATA.end - DATA.start) / 2;
/// Log2 of a ring's entries.
const RING_LOG2: u8 = 9;
/// Bytes that one turn copies, within limits for the number of descriptors.
const TURN: u64 = 8 << 20;

/// One way to copy.
#[derive(Clone, Copy, Debug)]
pub(super) struct Work {
    /// Bytes of a descriptor.
    pub(super) size: u64,
    /// Descriptors under way at most, in each queue.
    pub(super) depth: u32,
    /// What maps the buffers.
    pub(super) pages: Pages,
    /// Offset of sources and targets in their pages.
    pub(super) offsets: (u64, u64),
    /// Descriptors of one turn.
    pub(super) count: u32,
}

impl Work {
    pub(super) fn new(session: &Session<'_>, size: u64, depth: u32) -> Self {
        let count = u32::try_from(TURN / size).expect("a turn has few descriptors");
        let count = session.turn(count.clamp(depth.clamp(2, 4), 1 << 15));
        Self { size, depth, pages: Pages::Large, offsets: (0, 0), count }
    }

    /// Distance between buffers. Small ones are next to each other, as in an array; larger ones begin at pages.
    fn stride(&self) -> u64 {
        let size = self.size + self.offsets.0.max(self.offsets.1);
        if size < 0x1000 { size.next_multiple_of(64) } else { size.next_multiple_of(0x1000) }
    }

    /// Different buffers.
    fn slots(&self) -> u32 {
        let room = (TARGETS - DATA.start) / self.stride();
        self.depth.min(u32::try_from(room).unwrap_or(u32::MAX))
    }

    /// Guest-physical source and target of descriptor `n`.
    fn buffers(&self, n: u32) -> (u64, u64) {
        let at = u64::from(n % self.slots()) * self.stride();
        (DATA.start + at + self.offsets.0, TARGETS + at + self.offsets.1)
    }

    fn len(&self) -> usize {
        usize::try_from(self.size).expect("a buffer in memory")
    }
}

/// Runs a turn, spread over the queues; returns GB/s. Before the clock starts, each buffer is copied once. Otherwise
/// engines that fell asleep during the baseline, and cold caches, would count.
fn by_engines(work: &Work, rings: &mut [Ring<'_>]) -> anyhow::Result<f64> {
    carry_out(work, rings, work.slots().min(work.count))?;
    let start = Instant::now();
    carry_out(work, rings, work.count)?;
    Ok(gb_per_s(work, start))
}

fn carry_out(work: &Work, rings: &mut [Ring<'_>], count: u32) -> anyhow::Result<()> {
    let start = Instant::now();
    if let [ring] = rings {
        ring.stream(count, work.depth, |n| {
            let (from, to) = work.buffers(n);
            ring::copy(work.pages.address(from), work.pages.address(to), work.size)
        })?;
    } else {
        let (mut put, mut spin) = (0, Spin::default());
        while put < count || rings.iter().any(|ring| ring.pending() != 0) {
            for ring in rings.iter_mut() {
                while put < count && ring.pending() < work.depth {
                    let (from, to) = work.buffers(put);
                    ring.put(&ring::copy(work.pages.address(from), work.pages.address(to), work.size));
                    put += 1;
                }
                ring.ring()?;
                while ring.poll()? {}
            }
            ensure!(!spin.once() || start.elapsed() < PATIENCE, "copies on several queues were not completed in time");
        }
    }
    Ok(())
}

/// The same copies by this thread, after the same warm-up.
fn by_memcpy(world: &World, work: &Work) -> f64 {
    let copy = |count: u32| {
        for n in 0..count {
            let (from, to) = work.buffers(n);
            world.memory.copy(from, to, work.len());
        }
    };
    copy(work.slots().min(work.count));
    let start = Instant::now();
    copy(work.count);
    gb_per_s(work, start)
}

/// Converts: a byte per nanosecond is a GB per second.
fn gb_per_s(work: &Work, since: Instant) -> f64 {
    let bytes = u64::from(work.count) * work.size;
    bytes as f64 / since.elapsed().as_secs_f64() / 1e9
}

/// Fills the sources, has each copied once by the engines, and compares.
fn verify(world: &World, work: &Work, rings: &mut [Ring<'_>]) -> anyhow::Result<()> {
    for n in 0..work.slots() {
        let (from, to) = work.buffers(n);
        world.memory.fill(from, work.len(), u64::from(n));
        world.memory.fill(to, work.len(), !u64::from(n));
    }
    let mut done = 0;
    while done < work.slots() {
        done += work.count;
        by_engines(work, rings)?;
    }
    // A turn with fewer descriptors than slots uses only the first slots: the others were never copied.
    for n in 0..work.slots().min(work.count) {
        let (_, to) = work.buffers(n);
        let differs = world.memory.differs(to, work.len(), u64::from(n));
        ensure!(differs.is_none(), "{work:?}: copy {n} differs from its source at byte {differs:?}");
    }
    Ok(())
}

/// Opens a queue for each engine.
pub(super) fn open(world: &World, pasid: u32) -> anyhow::Result<Vec<Ring<'_>>> {
    (0..u16::from(world.engines())).map(|queue| Ring::open(world, queue, RING_LOG2, Some(pasid))).collect()
}

/// Copies as `work` says and compares with memcpy.
pub(super) fn measure(
    session: &Session<'_>,
    world: &World,
    rings: &mut [Ring<'_>],
    work: &Work,
) -> anyhow::Result<Pair> {
    verify(world, work, rings)?;
    paired(session.time, || by_engines(work, rings), || Ok(by_memcpy(world, work)))
}

pub(super) fn run(session: &mut Session<'_>) -> anyhow::Result<()> {
    const BY_SIZE: &str = "Copy bandwidth by size";
    let world = session.world(Size::default())?;
    let mut rings = open(&world, PASID)?;
    let mut add = |session: &mut Session<'_>, case: String, work: Work, finish: &dyn Fn(Row) -> Row| {
        session.case(Suite::Copy, &case);
        let pair = measure(session, &world, &mut rings, &work)?;
        session.rows.push(finish(Row::compared(Suite::Copy, case, &pair, "GB/s", "memcpy")));
        anyhow::Ok(())
    };

    for log2 in (6..=26).step_by(2) {
        let work = Work::new(session, 1 << log2, depth_for(1 << log2));
        let case = format!("{}, depth {}", bytes(work.size), work.depth);
        add(session, case, work, &|row| {
            // 4 KiB, and sizes from 64 KiB on, have a target. 64 MiB fits in no cache, neither for the device nor for
            // the baseline.
            let row = match work.size {
                0x1000 => row.aiming(Goal::G1, Target::ratio_at_least(0.80)),
                size if size >= 0x1_0000 => row.aiming(Goal::G1, Target::ratio_at_least(0.95)),
                _ => row,
            };
            row.plotted(BY_SIZE, "device", work.size as f64, "bytes of a copy")
        })?;
    }
    for (name, offsets) in
        [("source 1 byte off", (1, 0)), ("target 1 byte off", (0, 1)), ("both 32 bytes off", (32, 32))]
    {
        for size in [0x1000, 0x1_0000] {
            let work = Work { offsets, ..Work::new(session, size, depth_for(size)) };
            add(session, format!("{}, {name}", bytes(size)), work, &|row| row)?;
        }
    }
    for pages in [Pages::Small, Pages::Huge] {
        for size in [0x1000, 0x1_0000, 0x10_0000] {
            let work = Work { pages, ..Work::new(session, size, depth_for(size)) };
            add(session, format!("{}, {}", bytes(size), pages.name()), work, &|row| row)?;
        }
    }
    for size in [0x1000, 0x1_0000] {
        for depth in [1, 2, 4, 64] {
            add(session, format!("{} by depth: {depth}", bytes(size)), Work::new(session, size, depth), &|row| {
                row.plotted("Copy bandwidth by depth", bytes(size), f64::from(depth), "descriptors under way")
            })?;
        }
    }
    drop(rings);
    drop(world);
    engines(session)
}

/// The depth at which the engine never waits for the program. Large descriptors need less.
fn depth_for(size: u64) -> u32 {
    match size {
        0..=0x1000 => 128,
        0x1001..=0x1_0000 => 16,
        0x1_0001..=0x10_0000 => 4,
        _ => 2,
    }
}

/// Two engines, against one engine with the same program.
fn engines(session: &mut Session<'_>) -> anyhow::Result<()> {
    for engines in [2, 4] {
        let world = session.world(Size { engines, ..Size::default() })?;
        let mut rings = open(&world, PASID)?;
        let case = format!("64 KiB, {engines} engines");
        session.case(Suite::Copy, &case);
        let pair = measure(session, &world, &mut rings, &Work::new(session, 0x1_0000, 16))?;
        session.rows.push(Row::compared(Suite::Copy, case, &pair, "GB/s", "memcpy, one processor"));
    }
    Ok(())
}
