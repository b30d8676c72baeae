//! `latency`: from submission to completion, and how many small copies one engine does a second.
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::os::fd::AsFd as _;
use svadev_spec::vfio_user::irq;

use super::Session;
use super::copy::Work;
use super::ring::{self, Ring};
use super::wait::Spin;
use super::world::{DATA, PASID, Pages, Size, World};
use crate::row::{Goal, Row, Suite, Target};
use crate::stats::{Pair, Samples, alone, paired};

/// Round trips of one turn.
const TURN: u32 = 500;

/// A word in a cache line of its own, and its value at rest.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Word(AtomicU32);

/// What two threads share.
#[derive(Debug, Default)]
struct Table {
    ball: Word,
    back: Word,
    /// 0 rest, 1 play, 2 end.
    mode: Word,
}

const REST: u32 = 0;
const PLAY: u32 = 1;
const END: u32 = 2;

/// A thread in the engine's place. It answers each word with a word until it is told to end.
struct Echo {
    table: Arc<Table>,
    thread: Option<JoinHandle<()>>,
}

impl Echo {
    fn start(session: &Session<'_>) -> anyhow::Result<Self> {
        let table = Arc::new(Table::default());
        let theirs = Arc::clone(&table);
        let start = || std::thread::Builder::new().name("echo".into()).spawn(move || echo(&theirs));
        let thread = session.processors.apart(1, start).context("cannot start the thread for the shared word")?;
        Ok(Self { table, thread: Some(thread) })
    }

    fn mode(&self, mode: u32) {
        self.table.mode.0.store(mode, Ordering::Release);
        if let Some(thread) = &self.thread {
            thread.thread().unpark();
        }
    }

    /// Runs one turn of round trips; returns the median, ns.
    fn turn(&self, count: u32) -> anyhow::Result<f64> {
        self.mode(PLAY);
        let base = self.table.ball.0.load(Ordering::Relaxed);
        let round = |n: u32| {
            self.table.ball.0.store(n, Ordering::Release);
            let mut spin = Spin::default();
            while self.table.back.0.load(Ordering::Acquire) != n {
                spin.once();
            }
        };
        // The first round trip waits for the thread to wake up.
        round(base.wrapping_add(1));
        let trips = (2..count + 2).map(|n| {
            let start = Instant::now();
            round(base.wrapping_add(n));
            nanoseconds(start)
        });
        let median = Samples::new(trips.collect()).context("no round trip was measured")?.median();
        self.mode(REST);
        Ok(median)
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.mode(END);
        if let Some(thread) = self.thread.take() {
            _ = thread.join();
        }
    }
}

fn echo(table: &Table) {
    let mut last = 0;
    loop {
        match table.mode.0.load(Ordering::Acquire) {
            END => return,
            REST => std::thread::park(),
            _ => {
                let ball = table.ball.0.load(Ordering::Acquire);
                if ball != last {
                    table.back.0.store(ball, Ordering::Release);
                    last = ball;
                }
                std::hint::spin_loop();
            }
        }
    }
}

fn nanoseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e9
}

/// A 64 B copy of the only buffer there is.
fn small() -> svadev_spec::device::Descriptor {
    let at = |gpa| Pages::Large.address(gpa);
    ring::copy(at(DATA.start), at(DATA.start + 0x1000), 64)
}

/// Runs one turn of copies, one at a time; returns the median, ns.
fn one_by_one(ring: &mut Ring<'_>, count: u32) -> anyhow::Result<f64> {
    let mut trips = Vec::new();
    for _ in 0..=count {
        let start = Instant::now();
        ring.put(&small());
        ring.ring()?;
        ring.next()?;
        trips.push(nanoseconds(start));
    }
    // The first copy found the engine asleep: that belongs to another row.
    Ok(Samples::new(trips.split_off(1)).context("no round trip was measured")?.median())
}

pub(super) fn run(session: &mut Session<'_>) -> anyhow::Result<()> {
    let world = session.world(Size::default())?;
    let mut ring = Ring::open(&world, 0, 9, Some(PASID))?;
    polled(session, &mut ring)?;
    rate(session, &world, &mut ring)?;
    asleep(session, &mut ring)?;
    interrupt(session, &world, &mut ring)
}

fn polled(session: &mut Session<'_>, ring: &mut Ring<'_>) -> anyhow::Result<()> {
    let case = "64 B copy, polled";
    session.case(Suite::Latency, case);
    let echo = Echo::start(session)?;
    let count = session.turn(TURN);
    let pair = paired(session.time * 2, || one_by_one(ring, count), || echo.turn(count))?;
    let row = Row::compared(Suite::Latency, case, &pair, "ns", "shared word, there and back");
    session.rows.push(row.aiming(Goal::G2, Target::ratio_at_most(2.0)));
    Ok(())
}

/// Small copies per second, at several depths. Goal G3 is about depth 128.
fn rate(session: &mut Session<'_>, world: &World, ring: &mut Ring<'_>) -> anyhow::Result<()> {
    for depth in [1u32, 8, 32, 128] {
        let case = format!("64 B copies, depth {depth}");
        session.case(Suite::Latency, &case);
        let pair = small_copies(session, world, ring, &Work::new(session, 64, depth))?;
        let row = Row::compared(Suite::Latency, case, &pair, "M/s", "memcpy of 64 B").plotted(
            "64 B copies a second by depth",
            "one engine",
            f64::from(depth),
            "descriptors under way",
        );
        session.rows.push(match depth {
            128 => row.aiming(Goal::G3, Target::value_at_least(10.0)),
            _ => row,
        });
    }
    Ok(())
}

/// Millions of copies a second.
fn small_copies(session: &Session<'_>, world: &World, ring: &mut Ring<'_>, work: &Work) -> anyhow::Result<Pair> {
    let pair = super::copy::measure(session, world, std::slice::from_mut(ring), work)?;
    let per_second = |samples: &Samples| samples.scaled(1e3 / work.size as f64);
    Ok(Pair { thing: per_second(&pair.thing), baseline: per_second(&pair.baseline), ratio: pair.ratio })
}

/// The engine sleeps: a trapped write wakes it.
fn asleep(session: &mut Session<'_>, ring: &mut Ring<'_>) -> anyhow::Result<()> {
    let case = "64 B copy, engine asleep";
    session.case(Suite::Latency, case);
    let samples = alone(session.time, || {
        // Far longer than an engine spins: if it is still awake then, it never sleeps.
        let since = Instant::now();
        loop {
            std::thread::sleep(Duration::from_millis(1));
            let start = Instant::now();
            ring.put(&small());
            let woke = ring.ring()?;
            ring.next()?;
            if woke {
                return Ok(nanoseconds(start) / 1e3);
            }
            ensure!(since.elapsed() < Duration::from_secs(10), "the engine did not go to sleep in time");
        }
    })?;
    session.rows.push(Row::measured(Suite::Latency, case, &samples, "us"));
    Ok(())
}

/// The program sleeps, and an interrupt wakes it. The baseline is the same between two threads.
fn interrupt(session: &mut Session<'_>, world: &World, ring: &mut Ring<'_>) -> anyhow::Result<()> {
    let case = "64 B copy, interrupt";
    session.case(Suite::Latency, case);
    let event = EventFd::from_flags(EfdFlags::EFD_CLOEXEC)?;
    world.function.set_irq(irq::MSIX, 0, event.as_fd())?;
    let samples = alone(session.time, || {
        let start = Instant::now();
        ring.put(&ring::with_interrupt(small()));
        ring.ring()?;
        event.read()?;
        ensure!(ring.poll()?, "an interrupt came before its completion");
        Ok(nanoseconds(start) / 1e3)
    })?;
    session.rows.push(Row::measured(Suite::Latency, case, &samples, "us"));
    Ok(())
}
