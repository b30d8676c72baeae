//! Running the job's program: its channels, its session, its status.
#![allow(unsafe_code, reason = "an ioctl without a wrapper")]
use std::io::Write;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::thread::JoinHandle;

use anyhow::{Context, Result, anyhow, bail};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::control::Control;
use crate::job::{Job, Mode};
use crate::relay::{self, Form};
use crate::serial::{self, Discipline};
use crate::session;

/// Where programs are looked for.
const PATH: &str = "/bin:/sbin:/usr/bin:/usr/sbin:/usr/local/bin";
/// Status where there is no shell, as shells have it for a program that was not found (POSIX XCU 2.8.2).
const EXIT_NOT_FOUND: u8 = 127;
/// What a signal adds its number to, as shells have it.
const EXIT_SIGNAL: i32 = 128;

/// Run the job and return the status to report.
///
/// # Errors
/// The guest itself is at fault: its own programs or its serial port are missing.
pub(crate) fn run(job: &Job, control: &Arc<Control>) -> Result<u8> {
    match job.mode {
        Mode::Test => run_own(job, "/bin/svadev-smoke", Form::Ktap, Form::KtapDiagnostic, control),
        Mode::Demo => run_own(job, "/bin/svadev-demo", Form::Data, Form::DataDiagnostic, control),
        Mode::Bench => run_own(job, "/bin/svadev-bench", Form::Data, Form::DataDiagnostic, control),
        Mode::Run => run_on_terminal(job, &job.argv, Discipline::Raw, Some(control)),
        Mode::Shell => run_shell(job),
    }
}

/// A program of ours: its output goes to the launcher line by line, its input is empty.
fn run_own(job: &Job, program: &str, out: Form, err: Form, control: &Arc<Control>) -> Result<u8> {
    let mut command = command(job, program);
    command.args(job.filter.as_deref().filter(|f| !f.is_empty())).args(&job.argv);
    command.env("SVADEV_TIMEOUT_SCALE", job.timeout_scale.to_string());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("start {program}"))?;
    let mut relays: Vec<JoinHandle<()>> = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        relays.push(relay::start(stdout, out, control)?);
    }
    if let Some(stderr) = child.stderr.take() {
        relays.push(relay::start(stderr, err, control)?);
    }
    let status = wait_for(child.id())?;
    // Processes that the program left behind may hold the pipes open: without them, the relays end at end of file.
    end_stragglers();
    for relay in relays {
        relay.join().map_err(|_| anyhow!("a relay thread panicked"))?;
    }
    Ok(status)
}

/// A shell for the user.
fn run_shell(job: &Job) -> Result<u8> {
    let has_busybox = Path::new("/bin/busybox").exists();
    let argv: Vec<String> = match (job.argv.is_empty(), has_busybox, Path::new("/bin/sh").exists()) {
        (false, ..) => job.argv.clone(),
        (true, true, _) => vec!["/bin/busybox".into(), "sh".into(), "-l".into()],
        (true, false, true) => vec!["/bin/sh".into(), "-l".into()],
        (true, false, false) => {
            let mut port = serial::open(serial::PROGRAM, Discipline::Terminal)?;
            let _ = port
                .write_all(b"svadev-init: this guest has no shell: neither /bin/busybox nor /bin/sh is in its image\n");
            let _ = nix::sys::termios::tcdrain(&port);
            return Ok(EXIT_NOT_FOUND);
        }
    };
    // A shell that edits lines throws away what was typed before its prompt: that is what says it is ready.
    run_on_terminal(job, &argv, Discipline::Terminal, None)
}

/// A program of the user's: its input, output and error are the program port, which is its controlling terminal.
///
/// `control`: say there that the port takes input.
fn run_on_terminal(job: &Job, argv: &[String], discipline: Discipline, control: Option<&Control>) -> Result<u8> {
    let folder = folder(job);
    if !Path::new(folder).is_dir() {
        bail!("the working folder {folder} is not in the guest");
    }
    let port = serial::open(serial::PROGRAM, discipline)?;
    set_window_size(&port, job);
    if let Some(control) = control {
        control.ready();
    }
    let mut command = command(job, "/proc/self/exe");
    command.arg(if job.framed_input { session::SESSION_WITH_FRAMES } else { session::SESSION }).args(argv);
    command.stdin(port.try_clone()?).stdout(port.try_clone()?).stderr(port);
    let leader = command.spawn().context("start the program's session")?;
    // The port's only holders are the session's from here on.
    drop(command);
    wait_for(leader.id())
}

/// What every program of a job gets.
fn command(job: &Job, program: &str) -> Command {
    let mut command = Command::new(program);
    command.env_clear().env("PATH", PATH).env("HOME", "/root").env("TERM", "linux").envs(&job.env);
    command.current_dir(folder(job));
    command
}

/// The folder that a job's program starts in.
fn folder(job: &Job) -> &str {
    job.cwd.as_deref().unwrap_or("/")
}

/// Give the terminal the size that the launcher's has, where it says so in `LINES` and `COLUMNS`.
fn set_window_size(port: &std::fs::File, job: &Job) {
    let number = |name: &str| job.env.get(name).and_then(|v| v.parse::<u16>().ok()).filter(|&n| n > 0);
    let (Some(ws_row), Some(ws_col)) = (number("LINES"), number("COLUMNS")) else { return };
    let size = libc::winsize { ws_row, ws_col, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCSWINSZ reads one `winsize` from a pointer to a live one; `port` is an open descriptor.
    let _ = unsafe { libc::ioctl(port.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) };
}

/// Wait for one child while reaping everything that was left to us.
fn wait_for(id: u32) -> Result<u8> {
    let child = Pid::from_raw(i32::try_from(id).context("process id")?);
    loop {
        match waitpid(None::<Pid>, None) {
            Ok(WaitStatus::Exited(pid, status)) if pid == child => return Ok(exit_status(status)),
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid == child => {
                return Ok(exit_status(EXIT_SIGNAL + signal as i32));
            }
            // Somebody else's orphan.
            Ok(_) | Err(Errno::EINTR) => {}
            Err(e) => return Err(e).context("wait for the program"),
        }
    }
}

/// A wait status as the byte that is reported.
fn exit_status(status: i32) -> u8 {
    u8::try_from(status).unwrap_or(u8::MAX)
}

/// Kill and reap every process but this one: what a job leaves behind must not outlive it.
pub(crate) fn end_stragglers() {
    assert_eq!(nix::unistd::getpid(), Pid::from_raw(1), "only PID 1 may kill everything else");
    // Everything except the caller and kernel threads (kill(2), pid -1).
    let _ = kill(Pid::from_raw(-1), Signal::SIGKILL);
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(5);
    loop {
        match waitpid(None::<Pid>, Some(WaitPidFlag::WNOHANG)) {
            Err(Errno::ECHILD) => return,
            Ok(WaitStatus::StillAlive) if std::time::Instant::now() >= deadline => {
                crate::kmsg::say("a process does not die within 5 s of SIGKILL");
                return;
            }
            Ok(WaitStatus::StillAlive) => std::thread::sleep(std::time::Duration::from_millis(2)),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_fit_a_byte() {
        assert_eq!(exit_status(0), 0);
        assert_eq!(exit_status(EXIT_SIGNAL + Signal::SIGKILL as i32), 137);
        assert_eq!(exit_status(300), 255);
    }
}
