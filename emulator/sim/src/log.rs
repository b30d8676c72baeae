//! The event log: what happened, in order, and a hash of it. Two runs of a seed must have the same.
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::checker::{Checker, Failure};
use crate::coverage::{Coverage, Group};

/// Where the lines of a verbose run go.
pub type Sink = Box<dyn FnMut(&str) + Send>;

struct Inner {
    tick: u64,
    events: u64,
    hash: u64,
    line: String,
    sink: Option<Sink>,
    failure: Option<Failure>,
    coverage: Coverage,
}

/// The log, shared by everything in a world.
pub struct Log(Mutex<Inner>);

impl fmt::Debug for Log {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Log").field("events", &self.events()).finish_non_exhaustive()
    }
}

impl Log {
    /// An empty log; with a sink, each line goes there too.
    pub fn new(sink: Option<Sink>) -> Self {
        // The FNV-1a offset basis.
        let hash = 0xcbf2_9ce4_8422_2325;
        Self(Mutex::new(Inner {
            tick: 0,
            events: 0,
            hash,
            line: String::new(),
            sink,
            failure: None,
            coverage: Coverage::default(),
        }))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Time went on.
    pub fn set_tick(&self, tick: u64) {
        self.lock().tick = tick;
    }

    /// The time.
    pub fn tick(&self) -> u64 {
        self.lock().tick
    }

    /// Something happened. Lines hold no host address and no wall clock time.
    pub fn event(&self, what: fmt::Arguments<'_>) {
        let mut inner = self.lock();
        let inner = &mut *inner;
        inner.line.clear();
        fmt::Write::write_fmt(&mut inner.line, format_args!("{:>7} {what}", inner.tick))
            .expect("strings take everything");
        for &byte in inner.line.as_bytes() {
            inner.hash = (inner.hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
        }
        inner.events += 1;
        if let Some(sink) = &mut inner.sink {
            sink(&inner.line);
        }
    }

    /// A checker's verdict. The first one counts.
    pub fn fail(&self, checker: Checker, what: String) {
        let failure = Failure { checker, what };
        self.event(format_args!("FAILED {failure}"));
        self.lock().failure.get_or_insert(failure);
    }

    /// A checker looks: `what` says what it saw if that must not be.
    pub fn check(&self, checker: Checker, holds: bool, what: impl FnOnce() -> String) {
        self.lock().coverage.count(Group::Checker, checker.name());
        if !holds {
            self.fail(checker, what());
        }
    }

    /// Something happened that worlds are made to reach.
    pub fn count(&self, group: Group, name: &'static str) {
        self.lock().coverage.count(group, name);
    }

    /// As [`count`](Self::count), several times.
    pub fn add(&self, group: Group, name: &'static str, times: u64) {
        if times > 0 {
            self.lock().coverage.add(group, name, times);
        }
    }

    /// What happened so far.
    pub fn coverage(&self) -> Coverage {
        self.lock().coverage.clone()
    }

    /// The first failure.
    pub fn failure(&self) -> Option<Failure> {
        self.lock().failure.clone()
    }

    /// Whether there is a failure.
    pub fn has_failed(&self) -> bool {
        self.lock().failure.is_some()
    }

    /// How many events there were.
    pub fn events(&self) -> u64 {
        self.lock().events
    }

    /// The hash of all lines (FNV-1a, 64 bits).
    pub fn hash(&self) -> u64 {
        self.lock().hash
    }
}
