//! Runs cases, each in a process of its own: a crash or a hang is one failure, and the next case starts clean.
#![allow(unsafe_code, reason = "fork, and pidfd_open, for which there is no wrapper")]
use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork, pipe2, setpgid};

use super::ktap::{Outcome, Totals, Writer};
use super::report::Report;
use super::{Case, Context, Rng, Scope, context, kernel_log, peer};

/// How long a killed process may take to go.
const DEATH_TIMEOUT: Duration = Duration::from_secs(5);
/// Most bytes of output that are kept of one case.
const MAX_OUTPUT: usize = 64 * 1024;

/// What all cases of a run share.
#[derive(Clone, Debug)]
pub struct Run {
    /// Device nodes.
    pub functions: Vec<PathBuf>,
    /// Seed.
    pub seed: u64,
    /// What to multiply time limits by.
    pub scale: f64,
    /// How often every case is run, one round after the other. From two on, names end in `@ROUND`.
    pub repeat: u32,
    /// Cases after one that failed are not run.
    pub fail_fast: bool,
    /// The functions can ask for pages. If not, every page of a test is made present before the device may use it.
    pub page_requests: bool,
}

/// Why a test is skipped that needs page faults of the device.
const NO_PAGE_REQUESTS: &str = "the functions have no page requests: give them back with --unit page_requests=on, or \
                                pri = true in the topology";

impl Run {
    /// Run the cases and write KTAP.
    ///
    /// # Errors
    /// The output cannot be written.
    pub fn all(&self, cases: &[Case], out: impl Write) -> io::Result<Totals> {
        let mut writer = Writer::start(out, cases.len() * self.repeat as usize)?;
        writer.diagnostic(&format!(
            "seed {:#x}, {} function(s), time limits x {}",
            self.seed,
            self.functions.len(),
            self.scale
        ))?;
        if !self.page_requests {
            writer.diagnostic(
                "no page requests: memory is locked in place, and tests that need page faults are skipped",
            )?;
        }
        let mut stopped = false;
        for (round, case) in (1..=self.repeat).flat_map(|round| cases.iter().map(move |case| (round, case))) {
            let name = if self.repeat > 1 { format!("{}@{round}", case.name()) } else { case.name() };
            if stopped {
                let why = "not run: a test failed, and --fail-fast is set".into();
                writer.result(&name, &Outcome::Skipped(why), Duration::ZERO)?;
                continue;
            }
            let start = Instant::now();
            let (outcome, output) = self.one(case);
            let took = start.elapsed();
            writer.diagnostic(&output)?;
            let failed = matches!(outcome, Outcome::Failed(_));
            writer.result(&name, &outcome, took)?;
            stopped = failed && self.fail_fast;
            if failed {
                writer.diagnostic(&self.aftermath())?;
            }
        }
        writer.finish()
    }

    /// Run one case: its outcome and what it printed.
    fn one(&self, case: &Case) -> (Outcome, String) {
        if case.test.scope == Scope::Pair && self.functions.len() < 2 {
            return (Outcome::Skipped("the machine has one function; this test needs two".into()), String::new());
        }
        if case.test.page_requests && !self.page_requests {
            return (Outcome::Skipped(NO_PAGE_REQUESTS.into()), String::new());
        }
        let name = case.name();
        if let Some(marked) = case.test.marked
            && let Err(e) = kernel_log::say(&kernel_log::begin_line(&name, marked))
        {
            return (Outcome::Failed(format!("cannot mark the kernel log: {e:?}")), String::new());
        }
        let (mut outcome, output) = self
            .isolated(&name, case)
            .unwrap_or_else(|e| (Outcome::Failed(format!("cannot run it: {e}")), String::new()));
        if case.test.marked.is_some() {
            // The interrupt of a fault can arrive after the test has ended. The probe sends a page request after that
            // fault, and the interrupt of the page request comes later. So when the page request is answered, the
            // kernel has printed the fault.
            let broken: Vec<_> =
                self.probe().into_iter().filter_map(|(line, serves)| (!serves).then_some(line)).collect();
            if matches!(outcome, Outcome::Passed) && !broken.is_empty() {
                outcome = Outcome::Failed(broken.join("\n"));
            }
            // Where the first marker could be written, so can the second; a reader takes the end of the log as its end.
            let _ = kernel_log::say(&kernel_log::end_line(&name));
        }
        (outcome, output)
    }

    /// Fork, run, watch.
    fn isolated(&self, name: &str, case: &Case) -> Result<(Outcome, String), Errno> {
        let report = Report::shared();
        let (output, child_output) = pipe2(OFlag::O_CLOEXEC)?;
        // SAFETY: the runner has one thread, so the child may do anything.
        match unsafe { fork() }? {
            ForkResult::Child => {
                drop(output);
                let context = Context {
                    name: name.to_owned(),
                    functions: self.functions.clone(),
                    function: case.function,
                    seed: self.seed,
                    scale: self.scale,
                    report,
                };
                be_the_test(child_output, &context, case, self.page_requests)
            }
            ForkResult::Parent { child } => {
                drop(child_output);
                // The child does it too: whoever comes first. Then the group exists before anything could need killing.
                let _ = setpgid(child, child);
                Ok(self.watch(child, output, report, case.test.timeout.mul_f64(self.scale)))
            }
        }
    }

    /// Follow a test's process to its end or its time limit.
    fn watch(&self, child: Pid, output: OwnedFd, report: &Report, limit: Duration) -> (Outcome, String) {
        let mut output = Output::new(output);
        let end = wait_for_end(child, &mut output, limit);
        // What is left of its group, helper processes first of all, ends with it.
        let hung = end.is_none().then(|| where_it_waits(child));
        let _ = kill(Pid::from_raw(-child.as_raw()), Signal::SIGKILL);
        let step = report.last_step().map_or_else(|| "before its first step".to_owned(), |s| format!("at: {s}"));
        let outcome = match end {
            Some(WaitStatus::Exited(_, 0)) => {
                report.outcome().unwrap_or_else(|| Outcome::Failed(format!("it ended without a verdict, {step}")))
            }
            Some(WaitStatus::Exited(_, status)) => Outcome::Failed(format!("it exited with status {status}, {step}")),
            Some(WaitStatus::Signaled(_, signal, _)) => Outcome::Failed(format!("it was killed by {signal}, {step}")),
            Some(other) => Outcome::Failed(format!("it ended strangely: {other:?}, {step}")),
            None => {
                let gone = wait_for_end(child, &mut output, DEATH_TIMEOUT).is_some();
                let rest = if gone { String::new() } else { "\nit does not even die of SIGKILL".into() };
                let threads = hung.unwrap_or_default();
                Outcome::Failed(format!("no end within {:.1}s, {step}\n{threads}{rest}", limit.as_secs_f64()))
            }
        };
        output.drain();
        (with_step(outcome, report), output.text())
    }

    /// After a failure: do the functions still work? Whoever reads a row of failures wants to know where it began.
    fn aftermath(&self) -> String {
        self.probe().into_iter().map(|(line, _)| line).collect::<Vec<_>>().join("\n")
    }

    /// What a page fault on each function says about it, and whether it serves.
    fn probe(&self) -> Vec<(String, bool)> {
        let probe = |path: &PathBuf| {
            let name = path.display();
            // In a process of its own too: a device that hangs must not take the runner along.
            let case = Case { test: super::Test::each("probe", probe_test), function: self.index_of(path) };
            match self.isolated("probe", &case) {
                Ok((Outcome::Passed, _)) => (format!("{name} still serves"), true),
                Ok((Outcome::Failed(why) | Outcome::Skipped(why), _)) => {
                    (format!("{name} no longer serves: {why}"), false)
                }
                Err(e) => (format!("{name} cannot be probed: {e}"), false),
            }
        };
        self.functions.iter().map(probe).collect()
    }

    fn index_of(&self, path: &PathBuf) -> usize {
        self.functions.iter().position(|p| p == path).unwrap_or(0)
    }
}

/// The probe of [`Run::probe`].
fn probe_test(context: &Context) -> super::Verdict {
    context::serves(context.path(), &mut Rng::new(context.seed, "probe"))
}

/// A failed check says at which step.
fn with_step(outcome: Outcome, report: &Report) -> Outcome {
    match (outcome, report.last_step()) {
        (Outcome::Failed(why), Some(step)) if !why.contains(&step) => {
            Outcome::Failed(format!("{why}\nlast step: {step}"))
        }
        (outcome, _) => outcome,
    }
}

/// The child's half: run the test, leave the verdict in the report, end.
fn be_the_test(output: OwnedFd, context: &Context, case: &Case, page_requests: bool) -> ! {
    let verdict = peer::guarded(|| {
        setpgid(Pid::from_raw(0), Pid::from_raw(0))?;
        nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
        nix::unistd::dup2_stdout(&output)?;
        nix::unistd::dup2_stderr(&output)?;
        drop(output);
        if !page_requests {
            use nix::sys::mman::{MlockAllFlags, mlockall};
            mlockall(MlockAllFlags::MCL_CURRENT | MlockAllFlags::MCL_FUTURE)?;
        }
        (case.test.run)(context)
    });
    context.report.store(&verdict);
    // SAFETY: _exit(2) has no preconditions; the runner's own buffers and handlers are not run twice.
    unsafe { libc::_exit(0) }
}

/// Wait for a process's end while taking its output; `None` when the time is over.
fn wait_for_end(child: Pid, output: &mut Output, limit: Duration) -> Option<WaitStatus> {
    let deadline = Instant::now() + limit;
    let pidfd = pidfd_open(child).ok();
    loop {
        match waitpid(child, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) | Err(Errno::EINTR) => {}
            Ok(status) => return Some(status),
            Err(_) => return None,
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return None;
        }
        let mut fds: Vec<PollFd<'_>> = output.fd().into_iter().map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
        fds.extend(pidfd.iter().map(|fd| PollFd::new(fd.as_fd(), PollFlags::POLLIN)));
        // Without a pidfd (Linux before 5.3) the end is looked for every few milliseconds.
        let wait = if pidfd.is_some() { left } else { left.min(Duration::from_millis(5)) };
        let _ = poll(&mut fds, PollTimeout::try_from(wait).unwrap_or(PollTimeout::MAX));
        output.drain();
    }
}

/// pidfd_open(2).
fn pidfd_open(pid: Pid) -> Result<OwnedFd, Errno> {
    // SAFETY: the call takes two integers and touches no memory.
    let fd = Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0) })?;
    let fd = i32::try_from(fd).map_err(|_| Errno::EBADF)?;
    // SAFETY: the kernel has just made this descriptor for us; nobody else knows its number.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Where each thread of a hung process waits, as far as `/proc` says.
fn where_it_waits(pid: Pid) -> String {
    let mut lines = Vec::new();
    for task in std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
        let read = |name: &str| std::fs::read_to_string(task.path().join(name)).unwrap_or_default();
        let stack: Vec<String> = read("stack").lines().take(8).map(|l| l.replace("[<0>] ", "")).collect();
        let id = task.file_name();
        lines.push(format!(
            "thread {} ({}) waits in {}: {}",
            id.to_string_lossy(),
            read("comm").trim(),
            read("wchan"),
            stack.join(" < ")
        ));
    }
    lines.join("\n")
}

/// What a test prints, taken without blocking.
struct Output {
    pipe: Option<File>,
    bytes: Vec<u8>,
}

impl Output {
    fn new(pipe: OwnedFd) -> Self {
        // Should this fail, reads block until the test ends: late, not wrong.
        let _ = fcntl(&pipe, FcntlArg::F_SETFL(OFlag::O_NONBLOCK));
        Self { pipe: Some(pipe.into()), bytes: Vec::new() }
    }

    fn fd(&self) -> Option<std::os::fd::BorrowedFd<'_>> {
        self.pipe.as_ref().map(|p| {
            debug_assert!(p.as_raw_fd() >= 0);
            p.as_fd()
        })
    }

    fn drain(&mut self) {
        let mut chunk = [0; 4096];
        while let Some(pipe) = &mut self.pipe {
            match pipe.read(&mut chunk) {
                Ok(0) => self.pipe = None,
                Ok(n) => {
                    let room = MAX_OUTPUT.saturating_sub(self.bytes.len());
                    self.bytes.extend_from_slice(&chunk[..n.min(room)]);
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => return,
                Err(_) => self.pipe = None,
            }
        }
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes).into_owned()
    }
}

#[cfg(test)]
mod tests;
