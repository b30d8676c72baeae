//! The guest kernel's log: marking what a test provokes on purpose, and waiting for lines.
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::verdict::{During, Verdict};

/// Longest record that `/dev/kmsg` hands out, bytes (`CONSOLE_EXT_LOG_MAX` in `kernel/printk/internal.h`).
const RECORD_MAX: usize = 8192;

/// What a test provokes in the kernel log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// A fault that the IOMMU records and the kernel prints.
    DmarFault,
    /// A kernel warning.
    Warn,
}

impl Expected {
    fn word(self) -> &'static str {
        match self {
            Self::DmarFault => "dmar-fault",
            Self::Warn => "warn",
        }
    }
}

/// How sure a test is of what it provokes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Marked {
    /// It must come.
    Expects(Expected),
    /// It may come: whether it does is a race that either side may win.
    Allows(Expected),
}

/// The marker before a test that provokes something, for whoever judges the log.
#[must_use]
pub fn begin_line(name: &str, marked: Marked) -> String {
    let (verb, what) = match marked {
        Marked::Expects(what) => ("expects", what),
        Marked::Allows(what) => ("allows", what),
    };
    format!("svadev-test: begin {name} {verb} {}", what.word())
}

/// The marker after it.
#[must_use]
pub fn end_line(name: &str) -> String {
    format!("svadev-test: end {name}")
}

/// Write one line into the kernel log.
///
/// # Errors
/// `/dev/kmsg` cannot be written.
pub fn say(line: &str) -> Verdict {
    let mut log = OpenOptions::new().write(true).open("/dev/kmsg").during("open /dev/kmsg")?;
    log.write_all(format!("{line}\n").as_bytes()).during("write /dev/kmsg")
}

/// Follows the kernel log from a moment on.
pub struct Follower(File);

impl Follower {
    /// Everything logged after this call.
    ///
    /// # Errors
    /// `/dev/kmsg` cannot be read.
    pub fn from_now() -> Verdict<Self> {
        let flags = libc::O_NONBLOCK | libc::O_CLOEXEC;
        let mut file = OpenOptions::new().read(true).custom_flags(flags).open("/dev/kmsg").during("open /dev/kmsg")?;
        file.seek(SeekFrom::End(0)).during("seek /dev/kmsg")?;
        Ok(Self(file))
    }

    /// Wait for a line that `wanted` accepts; `None` when the time is over.
    ///
    /// # Errors
    /// `/dev/kmsg` cannot be read.
    pub fn wait_for(&mut self, timeout: Duration, wanted: impl Fn(&str) -> bool) -> Verdict<Option<String>> {
        let deadline = Instant::now() + timeout;
        let mut record = [0; RECORD_MAX];
        loop {
            match self.0.read(&mut record) {
                Ok(n) => {
                    let text = String::from_utf8_lossy(&record[..n]);
                    // `prefix;text\n KEY=value\n…` (Documentation/ABI/testing/dev-kmsg)
                    let line = text.split_once(';').and_then(|(_, rest)| rest.lines().next()).unwrap_or_default();
                    if wanted(line) {
                        return Ok(Some(line.to_owned()));
                    }
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return Ok(None);
                    }
                    let mut fds = [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
                    poll(&mut fds, PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)).during("poll /dev/kmsg")?;
                }
                // The ring went round: lines were lost, the oldest that is left comes next.
                Err(e) if e.raw_os_error() == Some(libc::EPIPE) || e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e).during("read /dev/kmsg"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markers_are_as_the_launcher_reads_them() {
        let expects = Marked::Expects(Expected::DmarFault);
        assert_eq!(begin_line("raw.pasid", expects), "svadev-test: begin raw.pasid expects dmar-fault");
        assert_eq!(begin_line("x", Marked::Allows(Expected::Warn)), "svadev-test: begin x allows warn");
        assert_eq!(end_line("raw.pasid"), "svadev-test: end raw.pasid");
    }
}
