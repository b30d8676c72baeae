//! Exit statuses, and errors that carry one (docs/design/0001-foundations.md, "Exit statuses of `svadev`").
use std::fmt;

/// The exit status of `svadev`. Otherwise `svadev vm -- PROGRAM` returns the exit status of the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Everything succeeded.
    Success = 0,
    /// A test failed, or the guest kernel's log is not clean.
    TestFailed = 1,
    /// Usage, topology or configuration error.
    Usage = 2,
    /// An auditor report is unexpected, or an expected one is missing (`--audit`).
    Audit = 119,
    /// Set-up is missing or failed: kit, QEMU, kernel, guest programs, module build.
    Setup = 120,
    /// QEMU failed or died.
    Qemu = 121,
    /// The guest kernel panicked.
    GuestPanic = 122,
    /// The guest hung or ran out of time.
    GuestHung = 123,
    /// The backend failed.
    Backend = 124,
    /// The guest's own set-up failed, or it left before its work was done.
    GuestSetup = 125,
    /// Ctrl-C or a signal.
    Interrupted = 130,
}

impl Exit {
    /// The number.
    pub const fn code(self) -> u8 {
        self as u8
    }
}

/// An error with the exit status it leads to.
#[derive(Debug)]
pub struct Failure {
    /// The status.
    pub exit: Exit,
    /// The cause, and then the remedy.
    pub error: anyhow::Error,
}

impl Failure {
    /// From a message.
    pub fn new(exit: Exit, message: impl fmt::Display) -> Self {
        Self { exit, error: anyhow::anyhow!("{message}") }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#}", self.error)
    }
}

/// A result whose error has an exit status. There is no `From` for other errors: the code that meets one must choose.
pub type Outcome<T> = Result<T, Failure>;

/// Gives an error its exit status.
pub trait OrExit<T> {
    /// With `exit` as the status.
    fn or_exit(self, exit: Exit) -> Outcome<T>;
}

impl<T, E: Into<anyhow::Error>> OrExit<T> for Result<T, E> {
    fn or_exit(self, exit: Exit) -> Outcome<T> {
        self.map_err(|error| Failure { exit, error: error.into() })
    }
}
