//! The plan of a run, its observer, and the ways it can end.
use std::{path::Path, time::Duration};

use crate::{
    backend::CounterSource,
    control::Message,
    exit::Outcome,
    topology::{Accel, Topology},
};

/// What to run.
#[derive(Debug)]
pub struct Plan<'a> {
    /// The machine.
    pub topology: &'a Topology,
    /// `topology.machine.accel`, decided.
    pub accel: Accel,
    /// QEMU.
    pub qemu: &'a Path,
    /// bzImage.
    pub kernel: &'a Path,
    /// Initial RAM disk.
    pub initrd: &'a Path,
    /// Folder to share, and the virtiofsd to do it.
    pub share: Option<(&'a Path, &'a Path)>,
    /// The user's own QEMU arguments.
    pub extra: &'a [String],
    /// PID 1 is ours: it reports that it started, then that it is alive, and at last the exit status.
    pub has_our_init: bool,
    /// End everything after this time.
    pub timeout: Option<Duration>,
    /// A guest that is silent for long has hung. Without it, only `timeout` ends a silent guest.
    pub watchdog: bool,
    /// Multiplies the built-in time limits.
    pub timeout_scale: u32,
    /// The guest's program is connected to our standard streams.
    pub terminal: Terminal,
    /// End as soon as the units' BARs are placed.
    pub until_placed: bool,
}

/// What the guest's program is connected to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Terminal {
    /// A log file.
    Log,
    /// Our standard streams, as they are.
    Streams,
    /// Our standard streams. Input goes in frames, so that the program sees its end.
    Frames,
    /// Our standard streams. A terminal passes every key on.
    Shell,
}

/// Receives the guest's messages while it runs.
pub trait Observer {
    /// A control line.
    fn control(&mut self, message: &Message);
    /// A line of the kernel log.
    fn kernel(&mut self, line: &str);
    /// The backend has started, and this reads its counters. Called once, before anything else.
    fn backend(&mut self, _counters: CounterSource) {}
}

/// How a run ended by itself.
#[derive(Debug, PartialEq, Eq)]
pub enum Ended {
    /// PID 1 reported the job's status.
    Exit(u8),
    /// The guest powered off without one.
    PoweredOff,
    /// The units' BARs were placed here, which was all that was wanted.
    Placed(Vec<u64>),
    /// The user ended the run at the terminal.
    Quit,
}

/// How one start of QEMU ended.
pub(super) enum Attempt {
    /// For good.
    Ended(Outcome<Ended>),
    /// Firmware put a unit's BAR elsewhere than the DMAR table says: where they all are.
    Misplaced(Vec<u64>),
}
