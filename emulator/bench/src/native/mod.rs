//! The same engines, unit and sockets with nobody in the guest: this thread is VMM, kernel and program, so that an
//! emulated processor is not what is measured.
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

/// Who is told how far it is.
pub trait Progress {
    /// This is measured now.
    fn case(&mut self, place: Place, suite: Suite, case: &str);
}

/// A run of the native suites.
pub struct Session<'p> {
    /// How long one case may take.
    pub time: Duration,
    /// Turns are shorter than usual by this.
    shorter: u32,
    progress: &'p mut dyn Progress,
    processors: Processors,
    rows: Vec<Row>,
}

impl Session<'_> {
    /// Says what is measured next.
    fn case(&mut self, suite: Suite, case: &str) {
        self.progress.case(Place::Native, suite, case);
    }

    /// How long a turn is that usually has `count` steps.
    fn turn(&self, count: u32) -> u32 {
        (count / self.shorter).max(2)
    }

    fn world(&self, size: Size) -> anyhow::Result<World> {
        World::new(size, &self.processors)
    }
}

/// Runs suites, each case for about `time`, or without any time as little of each as there can be; those with nothing
/// native are passed over. Errors: the system's, and anything that comes out wrong: a descriptor that fails, a byte
/// that differs.
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
