//! Running the built program: one at a time, in a runtime folder of its own that must be empty afterwards.
#![allow(clippy::unwrap_used, reason = "a test's harness: a panic is a failed test")]
use std::{
    io::Write as _,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tempfile::TempDir;

/// How long anything may take; a run in trouble ends by its own limits before.
const PATIENCE: Duration = Duration::from_secs(900);

static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

pub(crate) fn stdout_of(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

pub(crate) fn stderr_of(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A call of the program, being put together.
pub(crate) struct Svadev {
    args: Vec<String>,
    scaled: bool,
    input: String,
    runtime: TempDir,
    cache: Option<TempDir>,
}

impl Svadev {
    pub(crate) fn new(args: &[&str]) -> Self {
        let runtime = tempfile::Builder::new().prefix("svt").tempdir().unwrap();
        Self { args: owned(args), scaled: true, input: String::new(), runtime, cache: None }
    }

    /// More arguments.
    pub(crate) fn args(mut self, args: &[&str]) -> Self {
        self.args.extend(owned(args));
        self
    }

    /// What stands on its standard input.
    pub(crate) fn input(mut self, input: &str) -> Self {
        self.input = input.to_owned();
        self
    }

    /// With its own time limits, not those for a busy test machine.
    pub(crate) fn unscaled(mut self) -> Self {
        self.scaled = false;
        self
    }

    /// In a runtime folder that another run left.
    pub(crate) fn with_runtime(mut self, runtime: TempDir) -> Self {
        self.runtime = runtime;
        self
    }

    /// With a cache that remembers nothing but the kit.
    pub(crate) fn with_fresh_cache(mut self) -> Self {
        let cache = tempfile::tempdir().unwrap();
        let ours = cache.path().join("svadev");
        std::fs::create_dir(&ours).unwrap();
        std::os::unix::fs::symlink(kit(), ours.join("kit")).unwrap();
        self.cache = Some(cache);
        self
    }

    /// Starts it.
    pub(crate) fn start(self) -> Run {
        let turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let folder = tempfile::tempdir().unwrap();
        let (out, err) = (folder.path().join("out"), folder.path().join("err"));
        let mut command = Command::new(env!("CARGO_BIN_EXE_svadev"));
        let takes_scale = ["vm", "test", "demo", "dmar"].contains(&self.args[0].as_str()) && self.scaled;
        command.arg(&self.args[0]);
        if takes_scale {
            command.args(["--timeout-scale", "5"]);
        }
        command.args(&self.args[1..]).env("XDG_RUNTIME_DIR", self.runtime.path());
        if let Some(cache) = &self.cache {
            command.env("XDG_CACHE_HOME", cache.path());
        }
        command.stdin(Stdio::piped());
        command.stdout(std::fs::File::create(&out).unwrap()).stderr(std::fs::File::create(&err).unwrap());
        let mut child = command.spawn().unwrap();
        // A program that ends without reading closes the pipe early.
        _ = child.stdin.take().unwrap().write_all(self.input.as_bytes());
        Run { child, folder, runtime: self.runtime, _cache: self.cache, _turn: turn }
    }

    /// Runs it to its end.
    pub(crate) fn run(self) -> Output {
        self.start().finish()
    }
}

/// A call that runs.
pub(crate) struct Run {
    child: Child,
    folder: TempDir,
    runtime: TempDir,
    _cache: Option<TempDir>,
    _turn: MutexGuard<'static, ()>,
}

impl Run {
    /// The QEMU that it started, once there is one.
    pub(crate) fn wait_for_qemu(&mut self) -> Pid {
        let parent = self.child.id();
        let children = format!("/proc/{parent}/task/{parent}/children");
        self.wait("QEMU", || {
            let text = std::fs::read_to_string(&children).unwrap_or_default();
            text.split_whitespace().filter_map(|pid| pid.parse().ok()).find(|pid| is_qemu(*pid)).map(Pid::from_raw)
        })
    }

    /// Waits until its standard output has a text.
    pub(crate) fn wait_for_output(&mut self, text: &str) {
        self.wait_for_text("out", text);
    }

    /// Waits until its standard error has a text that no earlier call of this waited for.
    pub(crate) fn wait_for_error(&mut self, text: &str) {
        self.wait_for_text("err", text);
    }

    fn wait_for_text(&mut self, file: &str, text: &str) {
        let path = self.folder.path().join(file);
        let seen = self.folder.path().join(format!("{file}.seen"));
        let from: usize = std::fs::read_to_string(&seen).ok().and_then(|n| n.parse().ok()).unwrap_or(0);
        let end = self.wait(text, || {
            let bytes = std::fs::read(&path).unwrap();
            let all = String::from_utf8_lossy(&bytes[from.min(bytes.len())..]).into_owned();
            all.find(text).map(|at| from + at + text.len())
        });
        std::fs::write(seen, end.to_string()).unwrap();
    }

    fn wait<T>(&mut self, what: &str, mut look: impl FnMut() -> Option<T>) -> T {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(found) = look() {
                return found;
            }
            let err = || std::fs::read_to_string(self.folder.path().join("err")).unwrap_or_default();
            assert!(self.child.try_wait().unwrap().is_none(), "svadev ended before {what}: {}", err());
            assert!(Instant::now() < deadline, "no {what}: {}", err());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub(crate) fn signal(&mut self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.child.id()).unwrap()), signal).unwrap();
    }

    /// Waits for its end, and checks that nothing stayed behind.
    pub(crate) fn finish(self) -> Output {
        let (output, runtime) = self.finish_dirty();
        let left: Vec<PathBuf> =
            std::fs::read_dir(runtime.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert!(left.is_empty(), "left behind: {left:?}");
        let marker = runtime.path().to_str().unwrap();
        let processes: Vec<String> = processes_with(marker);
        assert!(processes.is_empty(), "still running: {processes:?}");
        output
    }

    /// Waits for its end; what stayed behind is the caller's.
    pub(crate) fn finish_dirty(mut self) -> (Output, TempDir) {
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            if Instant::now() >= deadline {
                _ = self.child.kill();
                panic!("svadev does not end: {}", std::fs::read_to_string(self.folder.path().join("err")).unwrap());
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        let read = |name: &str| std::fs::read(self.folder.path().join(name)).unwrap();
        (Output { status, stdout: read("out"), stderr: read("err") }, self.runtime)
    }
}

/// Waits until a process that is not ours to wait for has ended.
pub(crate) fn wait_until_gone(pid: Pid) {
    let deadline = Instant::now() + Duration::from_secs(30);
    // A zombie that nobody reaps counts as gone: it holds nothing.
    let alive = || {
        let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        text.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
    };
    while alive() {
        assert!(Instant::now() < deadline, "{pid} is still there");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The kit's QEMU with these arguments and nothing to boot, for as long as the test wants.
pub(crate) fn bare_qemu(args: &[String]) -> Child {
    let mut command = Command::new(kit().join("bin/qemu-system-x86_64"));
    command.args(args).args(["-display", "none", "-nodefaults", "-accel", "tcg"]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

fn kit() -> PathBuf {
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    let kit = cache.unwrap_or_else(|| std::env::home_dir().unwrap().join(".cache")).join("svadev/kit");
    if !kit.join("kit.toml").exists() {
        let status = Command::new(env!("CARGO_BIN_EXE_svadev")).args(["kit", "setup"]).status().unwrap();
        assert!(status.success(), "kit setup: {status}");
    }
    kit
}

fn is_qemu(pid: i32) -> bool {
    command_line(Path::new(&format!("/proc/{pid}"))).is_some_and(|line| line.contains("-acpitable"))
}

fn processes_with(marker: &str) -> Vec<String> {
    let folders = std::fs::read_dir("/proc").unwrap().map(|entry| entry.unwrap().path());
    folders.filter_map(|folder| command_line(&folder)).filter(|line| line.contains(marker)).collect()
}

fn command_line(folder: &Path) -> Option<String> {
    let bytes = std::fs::read(folder.join("cmdline")).ok()?;
    Some(String::from_utf8_lossy(&bytes).replace('\0', " "))
}

fn owned(args: &[&str]) -> Vec<String> {
    args.iter().map(|&arg| arg.to_owned()).collect()
}
