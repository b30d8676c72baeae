//! What happens to a run.
use crate::qemu::qmp;

/// Everything that can happen.
#[derive(Debug)]
pub(crate) enum Event {
    Kernel(String),
    Control(String),
    Qmp(qmp::Message),
    ProgramSpoke,
    Ended(Channel),
    Quit,
    Signal(&'static str),
}

/// A channel that ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Channel {
    Console,
    Control,
    Program,
    Qmp,
}
