//! One run of a check, with a mutant or without.
use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use svadev_mutation::{Mutant, REACHED, SELECTION};

use crate::build::Binaries;
use crate::checks::{Check, MODELS};

/// No check takes anywhere near as long; one that does hangs, and is stopped.
const LIMIT: Duration = Duration::from_secs(300);

/// The status of a test program in which tests failed (Rust's test harness).
const TESTS_FAILED: i32 = 101;

/// How a run ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Passed,
    /// An assertion failed, in this test.
    Failed(String),
    /// It hung, crashed, or ran nothing.
    Other(String),
}

/// A run.
pub(crate) struct Run {
    pub(crate) outcome: Outcome,
    /// The mutant did the wrong thing at least once.
    pub(crate) reached: bool,
    /// All that it printed.
    pub(crate) output: String,
}

/// A crate's test program.
fn program(binaries: &Binaries, krate: &str) -> Command {
    let binary = binaries.get(krate).unwrap_or_else(|| panic!("no tests of {krate} were built"));
    let mut command = Command::new(&binary.program);
    command.current_dir(&binary.folder).env_remove(SELECTION);
    command
}

/// The names of a crate's tests.
pub(crate) fn list(binaries: &Binaries, krate: &str) -> Vec<String> {
    let output = program(binaries, krate).arg("--list").output().expect("a test program that was just built starts");
    assert!(output.status.success(), "--list of {krate}: {}", output.status);
    let text = String::from_utf8(output.stdout).expect("names are UTF-8");
    text.lines().filter_map(|line| line.strip_suffix(": test")).map(str::to_owned).collect()
}

/// Runs `check`'s tests in a process of their own.
pub(crate) fn run(binaries: &Binaries, check: Check, mutant: Option<Mutant>) -> Run {
    let mut command = program(binaries, check.krate);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.args(check.tests);
    if check.tests.is_empty() {
        command.args(["--skip", MODELS]);
    }
    // Property tests: the same cases every time, no search for a smaller one, nothing written beside the sources.
    command.env("PROPTEST_RNG_SEED", "1").env("PROPTEST_MAX_SHRINK_ITERS", "0");
    command.env("PROPTEST_DISABLE_FAILURE_PERSISTENCE", "true");
    command.env("RUST_BACKTRACE", "0");
    if let Some(mutant) = mutant {
        command.env(SELECTION, mutant.name());
    }
    let mut child = command.spawn().unwrap_or_else(|e| panic!("tests of {}: {e}", check.krate));
    let (sender, receiver) = mpsc::channel();
    read_to_end(child.stdout.take().expect("piped"), sender.clone());
    read_to_end(child.stderr.take().expect("piped"), sender);
    let mut output = String::new();
    let mut hung = false;
    for _ in 0..2 {
        // A process that ends closes both.
        match receiver.recv_timeout(LIMIT) {
            Ok(text) => output.push_str(&text),
            Err(_) => {
                hung = true;
                let _ = child.kill();
                break;
            }
        }
    }
    let status = child.wait().expect("our own child can be waited for");
    let reached = mutant.is_some_and(|mutant| output.lines().any(|l| l.strip_prefix(REACHED) == Some(mutant.name())));
    let outcome = if hung { Outcome::Other("stopped after hanging".into()) } else { judge(status, &output) };
    Run { outcome, reached, output }
}

fn read_to_end(mut from: impl Read + Send + 'static, to: mpsc::Sender<String>) {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = from.read_to_end(&mut bytes);
        let _ = to.send(String::from_utf8_lossy(&bytes).into_owned());
    });
}

fn judge(status: ExitStatus, output: &str) -> Outcome {
    if let Some(signal) = status.signal() {
        return Outcome::Other(format!("killed by signal {signal}"));
    }
    let failed = output
        .lines()
        .find_map(|line| line.strip_prefix("test ")?.strip_suffix(" ... FAILED"))
        .map(|name| name.split(' ').next().unwrap_or(name).to_owned());
    match (status.code(), failed) {
        (Some(TESTS_FAILED), Some(test)) if output.contains("panicked at") => Outcome::Failed(test),
        (Some(0), None) if output.contains("running 0 tests") => Outcome::Other("runs no test".into()),
        (Some(0), None) => Outcome::Passed,
        _ => Outcome::Other(format!("ended with {status}\n{output}")),
    }
}
