//! What can go wrong between a program and the driver.
use nix::errno::Errno;

use crate::completion::{Completion, UnknownStatus};

/// Short for results of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An operation that the driver or the kernel refused, or an answer that makes no sense.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A system call failed; the driver's header says what each error means for each operation.
    #[error("{operation}: {errno}")]
    System {
        /// What was tried: "bind", "submit", …
        operation: &'static str,
        /// The system call's error.
        errno: Errno,
    },
    /// [`crate::Device::run`] did not see its completion in time.
    #[error("no completion within {seconds} s")]
    NoCompletion {
        /// How long it waited, seconds.
        seconds: u64,
    },
    /// [`crate::Device::run`] met the completion of other work.
    #[error("a completion of other work came first: {0}")]
    ForeignCompletion(Completion),
    /// A completion carries a status that the ABI does not know.
    #[error(transparent)]
    UnknownStatus(#[from] UnknownStatus),
}

impl Error {
    /// The system call's error, if it was one.
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::System { errno, .. } => Some(*errno),
            _ => None,
        }
    }

    /// Makes a [`Error::System`] out of a failed call.
    pub(crate) fn system(operation: &'static str) -> impl FnOnce(Errno) -> Self {
        move |errno| Self::System { operation, errno }
    }
}
