//! Helper processes of a test, and the line to them.
#![allow(unsafe_code, reason = "fork")]
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use nix::cmsg_space;
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork};

use super::verdict::{During, Stop, Verdict};
use crate::{check, check_eq, fail};

/// How long one side waits for the other's word. Above any single step's time, below a test's.
const WORD_TIMEOUT: Duration = Duration::from_secs(10);
/// Status of a helper that failed.
const EXIT_FAILED: i32 = 1;

/// One end of the line between a test and a helper: 64-bit words, and descriptors.
pub struct Line(UnixStream);

impl Line {
    fn new(stream: UnixStream) -> Verdict<Self> {
        stream.set_read_timeout(Some(WORD_TIMEOUT))?;
        Ok(Self(stream))
    }

    /// Say a word.
    ///
    /// # Errors
    /// The other side is gone.
    pub fn send(&mut self, word: u64) -> Verdict {
        self.0.write_all(&word.to_le_bytes()).during("tell the other process")
    }

    /// Hear a word.
    ///
    /// # Errors
    /// The other side is gone or silent.
    pub fn recv(&mut self) -> Verdict<u64> {
        let mut word = [0; 8];
        self.0.read_exact(&mut word).during("hear from the other process")?;
        Ok(u64::from_le_bytes(word))
    }

    /// Hear a word from someone who may work for so long before.
    ///
    /// # Errors
    /// As [`recv`](Self::recv).
    pub fn wait_long(&mut self, timeout: Duration) -> Verdict<u64> {
        self.0.set_read_timeout(Some(timeout))?;
        let word = self.recv();
        self.0.set_read_timeout(Some(WORD_TIMEOUT))?;
        word
    }

    /// Pass a file descriptor (unix(7), `SCM_RIGHTS`).
    ///
    /// # Errors
    /// The other side is gone.
    pub fn send_fd(&mut self, fd: &impl AsRawFd) -> Verdict {
        let fds = [fd.as_raw_fd()];
        let rights = [ControlMessage::ScmRights(&fds)];
        sendmsg::<()>(self.0.as_raw_fd(), &[std::io::IoSlice::new(&[0])], &rights, MsgFlags::empty(), None)
            .during("pass a descriptor")?;
        Ok(())
    }

    /// Take a file descriptor.
    ///
    /// # Errors
    /// The other side is gone, silent, or passed none.
    pub fn recv_fd(&mut self) -> Verdict<OwnedFd> {
        let mut space = cmsg_space!([i32; 1]);
        let mut byte = [0];
        let mut parts = [std::io::IoSliceMut::new(&mut byte)];
        let message = recvmsg::<()>(self.0.as_raw_fd(), &mut parts, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)
            .during("take a descriptor")?;
        for control in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(fds) = control
                && let [fd] = fds[..]
            {
                // SAFETY: the kernel has just made this descriptor for us; nobody else knows its number.
                return Ok(unsafe { OwnedFd::from_raw_fd(fd) });
            }
        }
        fail!("no descriptor came with the message")
    }
}

/// A helper process. Killed and reaped when dropped.
pub struct Peer {
    pid: Pid,
    /// The line to it.
    pub line: Line,
    reaped: bool,
}

impl Peer {
    /// Fork a helper that runs `body` and ends; it keeps a copy of everything that the test has.
    ///
    /// # Errors
    /// No process or no socket.
    ///
    /// # Panics
    /// This process has other threads: a helper forked then could find any lock taken.
    pub fn start(body: impl FnOnce(&mut Line) -> Verdict) -> Verdict<Self> {
        assert_eq!(threads(), 1, "helpers are forked before threads are started");
        let (ours, theirs) = UnixStream::pair()?;
        // SAFETY: this process has one thread, as just asserted, so the child may do anything.
        match unsafe { fork() }.during("fork")? {
            ForkResult::Parent { child } => Ok(Self { pid: child, line: Line::new(ours)?, reaped: false }),
            ForkResult::Child => {
                drop(ours);
                let run =
                    || nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).during("prctl").and_then(|()| Line::new(theirs));
                let verdict = match run() {
                    Ok(mut line) => guarded(|| body(&mut line)),
                    Err(e) => Err(e),
                };
                end_process(&verdict)
            }
        }
    }

    /// Its process ID.
    #[must_use]
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Kill it with SIGKILL and reap it.
    ///
    /// # Errors
    /// It does not die in time.
    pub fn kill(mut self) -> Verdict {
        kill(self.pid, Signal::SIGKILL).during("kill the helper")?;
        match self.reap(WORD_TIMEOUT)? {
            WaitStatus::Signaled(_, Signal::SIGKILL, _) => Ok(()),
            other => fail!("helper after SIGKILL: expected its death by it, actual {other:?}"),
        }
    }

    /// Wait until it ends, which it must do well.
    ///
    /// # Errors
    /// It failed (its reason is among the diagnostics), crashed, or does not end in time.
    pub fn join(self) -> Verdict {
        self.join_within(WORD_TIMEOUT)
    }

    /// As [`join`](Self::join), for one that has work for so long.
    ///
    /// # Errors
    /// As [`join`](Self::join).
    pub fn join_within(mut self, timeout: Duration) -> Verdict {
        let status = self.reap(timeout)?;
        check_eq!(status, WaitStatus::Exited(self.pid, 0), "end of the helper process");
        Ok(())
    }

    /// Wait for its end, for a bounded time.
    fn reap(&mut self, timeout: Duration) -> Verdict<WaitStatus> {
        let deadline = Instant::now() + timeout;
        loop {
            match waitpid(self.pid, Some(WaitPidFlag::WNOHANG)).during("wait for the helper")? {
                WaitStatus::StillAlive => {}
                status => {
                    self.reaped = true;
                    return Ok(status);
                }
            }
            check!(Instant::now() < deadline, "the helper process did not end within {timeout:?}");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        if !self.reaped {
            // The test has failed before it came to join or kill: its helper must not go on.
            let _ = kill(self.pid, Signal::SIGKILL);
            let _ = self.reap(Duration::from_secs(2));
        }
    }
}

/// Run `body`; a panic is a failure.
pub(super) fn guarded(body: impl FnOnce() -> Verdict) -> Verdict {
    match std::panic::catch_unwind(std::panic::AssertUnwindSafe(body)) {
        Ok(verdict) => verdict,
        Err(payload) => {
            let text = payload.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| payload.downcast_ref::<&str>().copied()).unwrap_or("no text");
            Err(Stop::Fail(format!("panic: {text}")))
        }
    }
}

/// End a forked process with its verdict, without running what the parent has registered for its own end.
#[allow(clippy::print_stderr, reason = "standard error of a test's process is the runner's pipe")]
fn end_process(verdict: &Verdict) -> ! {
    let status = match verdict {
        Ok(()) => 0,
        Err(Stop::Fail(why) | Stop::Skip(why)) => {
            eprintln!("helper process: {why}");
            EXIT_FAILED
        }
    };
    // SAFETY: _exit(2) has no preconditions.
    unsafe { libc::_exit(status) }
}

/// Threads of this process.
fn threads() -> usize {
    std::fs::read_dir("/proc/self/task").map_or(1, |d| d.flatten().count())
}
