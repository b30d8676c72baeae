//! The native suites measure the same engines, unit and sockets without a guest. This thread plays VMM, kernel and
//! program, so that no emulated processor is part of the figures.
mod copy;
mod invalidate;
mod latency;
mod memory;
mod processors;
mod ring;
mod scale;
mod tables;
mod translate;
mod trap;
mod wait;
mod world;

use std::time::Duration;

use self::processors::Processors;
use self::world::{Size, World};
use super::row::{Place, Row, Suite};

/// Hears which case is measured.
pub trait Progress {
    /// A case begins.
    fn case(&mut self, place: Place, suite: Suite, case: &str);
}

/// A run of the native suites.
pub struct Session<'p> {
    /// How long one case may take.
    pub time: Duration,
    /// Divides the usual length of a turn.
    shorter: u32,
    progress: &'p mut dyn Progress,
    processors: Processors,
    rows: Vec<Row>,
}

impl Session<'_> {
    /// Reports the case that is measured next.
    fn case(&mut self, suite: Suite, case: &str) {
        self.progress.case(Place::Native, suite, case);
    }

    /// The number of steps in a turn that usually has `count`.
    fn turn(&self, count: u32) -> u32 {
        (count / self.shorter).max(2)
    }

    fn world(&self, size: Size) -> anyhow::Result<World> {
        World::new(size, &self.processors)
    }
}

/// Runs suites, each case for about `time`. If `time` is 0, each case runs as short as possible. Suites without native
/// cases are skipped. Errors: those of the system, a descriptor that fails, a byte that differs.
pub fn run(suites: &[Suite], time: Duration, progress: &mut dyn Progress) -> anyhow::Result<Vec<Row>> {
    let shorter = if time.is_zero() { 64 } else { 1 };
    let mut session = Session { time, shorter, progress, processors: Processors::take(), rows: Vec::new() };
    for suite in suites {
        match suite {
            Suite::Copy => copy::run(&mut session)?,
            Suite::Latency => latency::run(&mut session)?,
            Suite::Invalidate => invalidate::run(&mut session)?,
            Suite::Scale => scale::run(&mut session)?,
            Suite::Trap => trap::run(&mut session)?,
            Suite::Translate => translate::run(&mut session)?,
            Suite::Fault | Suite::Soak => {}
        }
    }
    Ok(session.rows)
}

#[cfg(test)]
mod tests;
