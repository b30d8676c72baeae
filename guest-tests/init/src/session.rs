//! The session of a program on the terminal: `svadev-init --session PROGRAM ARGUMENTS…`, a process of its own.
//!
//! When a session's leader ends, the kernel hangs its terminal up and throws away what has not been sent yet. So the program
//! is not the leader: this is, and it ends only when the port has sent everything.
#![allow(unsafe_code, reason = "a signal handler, and becoming a session's leader")]
use std::io::{ErrorKind, Write, stdin, stdout};
use std::os::fd::AsFd;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

/// First argument that makes `svadev-init` a session's leader.
pub(crate) const SESSION: &str = "--session";
/// The same, with a pipe for the program's standard input, filled by [`crate::frames`].
pub(crate) const SESSION_WITH_FRAMES: &str = "--session-with-frames";
/// Status of a program that was not found and of one that cannot be run, as shells have it (POSIX XCU 2.8.2).
const EXIT_NOT_FOUND: u8 = 127;
const EXIT_NOT_EXECUTABLE: u8 = 126;
/// What a signal adds its number to, as shells have it.
const EXIT_SIGNAL: i32 = 128;
/// How long the port may take to send what is left; a launcher that does not read must not keep the guest for ever.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

/// The program's standard input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Input {
    /// The terminal itself.
    Terminal,
    /// A pipe, which ends where the frames that come in on the terminal say so.
    Frames,
}

/// Lead a session on the terminal that is standard input, run the program in it, return its status.
pub(crate) fn lead(argv: &[String], input: Input) -> u8 {
    match argv {
        [program, arguments @ ..] => run(program, arguments, input),
        [] => EXIT_NOT_FOUND,
    }
}

fn run(program: &str, arguments: &[String], input: Input) -> u8 {
    let status = match start_session().map(|()| start_and_wait(program, arguments, input)) {
        Ok(Ok(status)) => exit_status(status),
        Ok(Err(e)) => {
            say(&format!("cannot run {program}: {}", why_not(program, &e)));
            if e.kind() == ErrorKind::NotFound { EXIT_NOT_FOUND } else { EXIT_NOT_EXECUTABLE }
        }
        Err(e) => {
            say(&format!("cannot set up the terminal: {e:#}"));
            EXIT_NOT_EXECUTABLE
        }
    };
    drain();
    status
}

fn start_and_wait(program: &str, arguments: &[String], input: Input) -> std::io::Result<ExitStatus> {
    let mut command = Command::new(program);
    command.args(arguments);
    if input == Input::Frames {
        command.stdin(Stdio::piped());
    }
    let mut child = command.spawn()?;
    if let Some(pipe) = child.stdin.take() {
        crate::frames::start(stdin(), pipe)?;
    }
    child.wait()
}

/// Become a session's leader with standard input as its terminal, deaf to the keyboard's signals, which are the program's.
fn start_session() -> Result<()> {
    nix::unistd::setsid().context("setsid")?;
    // SAFETY: TIOCSCTTY takes an integer and touches no memory; descriptor 0 is open for all of a process' life.
    Errno::result(unsafe { libc::ioctl(0, libc::TIOCSCTTY, 0) }).context("TIOCSCTTY")?;
    extern "C" fn nothing(_: i32) {}
    // A handler rather than SIG_IGN: exec(2) sets it back, so the program gets the default.
    let deaf = SigAction::new(SigHandler::Handler(nothing), SaFlags::SA_RESTART, SigSet::empty());
    for signal in [Signal::SIGINT, Signal::SIGQUIT, Signal::SIGTSTP] {
        // SAFETY: the handler does nothing, so it is safe at any moment.
        unsafe { sigaction(signal, &deaf) }.context("sigaction")?;
    }
    Ok(())
}

/// A status as the byte that is reported.
fn exit_status(status: ExitStatus) -> u8 {
    let number = status.code().or_else(|| status.signal().map(|s| EXIT_SIGNAL + s)).unwrap_or(i32::from(u8::MAX));
    u8::try_from(number).unwrap_or(u8::MAX)
}

/// Say something on the terminal, raw or not.
fn say(text: &str) {
    let mut out = stdout().lock();
    let _ = out.write_all(format!("svadev-init: {text}\r\n").as_bytes());
    let _ = out.flush();
}

/// Wait until the launcher has had every byte, for a bounded time.
fn drain() {
    let (done, wait) = std::sync::mpsc::channel();
    let body = move || {
        let _ = nix::sys::termios::tcdrain(stdout().as_fd());
        let _ = done.send(());
    };
    if std::thread::Builder::new().name("drain".into()).spawn(body).is_ok() {
        let _ = wait.recv_timeout(DRAIN_TIMEOUT);
    }
}

/// Why a program cannot be run, in the words of the likely mistake.
fn why_not(program: &str, error: &std::io::Error) -> String {
    match error.kind() {
        ErrorKind::NotFound if program.contains('/') && Path::new(program).exists() => {
            "the file is there but its interpreter is not: link it statically, or put its dynamic loader and libraries \
             in the guest"
                .into()
        }
        ErrorKind::NotFound if program.contains('/') => "no such file in the guest".into(),
        ErrorKind::NotFound => format!("not found in {}", std::env::var("PATH").unwrap_or_default()),
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_fit_a_byte() {
        assert_eq!(exit_status(ExitStatus::from_raw(0)), 0);
        assert_eq!(exit_status(ExitStatus::from_raw(7 << 8)), 7);
        assert_eq!(exit_status(ExitStatus::from_raw(9)), 137);
    }

    #[test]
    fn a_missing_loader_is_told_from_a_missing_program() {
        let missing = std::io::Error::from(ErrorKind::NotFound);
        assert!(why_not("/proc/self/exe", &missing).contains("interpreter"));
        assert!(why_not("/nonexistent/x", &missing).contains("no such file"));
        assert!(why_not("x", &missing).contains("not found in"));
    }
}
