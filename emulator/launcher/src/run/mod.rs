//! One run of a guest: the backend, QEMU, the guest's channels, and every way in which it can end.
pub mod audit;
mod event;
pub mod folder;
mod plan;
mod state;
mod streams;

use std::{collections::BTreeSet, os::fd::OwnedFd, path::Path, process::Stdio, rc::Rc, time::Duration};

use anyhow::Context as _;
use svadev_fabric::Bdf;
use svadev_iommu::Finding;
use tokio::{
    process::{Child, Command},
    sync::{mpsc, watch},
    time::Instant,
};

pub use self::plan::{Ended, Observer, Plan, Terminal};
use self::{
    audit::AuditJudge,
    event::Event,
    folder::RunFolder,
    plan::Attempt,
    state::State,
    streams::{Listeners, Senders},
};
use crate::{
    backend::{Backend, BackendEvent},
    console::{self, Input},
    dmar,
    exit::{Exit, Failure, OrExit as _, Outcome},
    kernel_log::KernelLog,
    qemu::{
        args::{Boot, Channels, CommandLine, without_debugging},
        placement::{MAX_STARTS, Placement},
        process::die_with_parent,
    },
    say::Step,
};

/// Time limit for reading the sockets after QEMU is gone. It should not be reached, since nothing fills them any more.
const DRAIN_LIMIT: Duration = Duration::from_secs(5);

/// How often the end of input is sent to a shell.
const END_OF_INPUT_PERIOD: Duration = Duration::from_secs(1);

/// What is left of a run.
#[derive(Debug)]
pub struct Report {
    /// How it ended.
    pub ended: Outcome<Ended>,
    /// The kernel's log.
    pub kernel_log: KernelLog,
    /// What the auditor said.
    pub audit: AuditJudge,
    /// The backend's counters at the end.
    pub counters: serde_json::Value,
}

/// Standard input, shared by the starts of QEMU one after another.
type Typed = Rc<tokio::sync::Mutex<mpsc::Receiver<Input>>>;

/// Runs a guest on a backend, and restarts QEMU until the DMAR table is right. Without a backend there is no unit: that
/// is used to find out whether QEMU boots at all.
pub async fn run(
    plan: &Plan<'_>,
    folder: &RunFolder,
    backend: Option<&mut Backend>,
    observer: &mut dyn Observer,
) -> Report {
    let logs = match Logs::open(folder.path()).or_exit(Exit::Setup) {
        Ok(logs) => logs,
        Err(failure) => {
            let (kernel_log, audit) = (KernelLog::default(), AuditJudge::default());
            return Report { ended: Err(failure), kernel_log, audit, counters: serde_json::Value::Null };
        }
    };
    let (folder, kernel_log, connected) = (folder.path(), KernelLog::default(), BTreeSet::new());
    let audit = AuditJudge::default();
    let mut runner = Runner { plan, folder, backend, observer, kernel_log, audit, logs, connected };
    let ended = runner.run().await;
    let counters = runner.backend.as_ref().map(|backend| backend.snapshot());
    if let Some(counted) = counters.as_ref().and_then(|counters| counters.audit) {
        runner.audit.counted(counted);
    }
    let counters = counters.and_then(|counters| serde_json::to_value(counters).ok()).unwrap_or_default();
    Report { ended, kernel_log: runner.kernel_log, audit: runner.audit, counters }
}

struct Runner<'a> {
    plan: &'a Plan<'a>,
    folder: &'a Path,
    backend: Option<&'a mut Backend>,
    observer: &'a mut dyn Observer,
    kernel_log: KernelLog,
    audit: AuditJudge,
    logs: Logs,
    /// Functions whose socket has a QEMU at the other end.
    connected: BTreeSet<Bdf>,
}

impl Runner<'_> {
    async fn run(&mut self) -> Outcome<Ended> {
        let channels = Channels::within(self.folder);
        let listeners = Rc::new(Listeners::bind(&channels).or_exit(Exit::Setup)?);
        let (events, mut receiver) = mpsc::channel(256);
        watch_signals(&events).or_exit(Exit::Setup)?;
        let functions = self.backend.as_ref().map(|backend| backend.sockets().to_vec()).unwrap_or_default();
        let dmar = self.backend.is_some().then(|| self.folder.join("dmar.bin"));
        let share = self.plan.share.map(|_| self.folder.join("share.sock"));
        let line = |extra: &[String]| {
            CommandLine {
                topology: self.plan.topology,
                accel: self.plan.accel,
                functions: &functions,
                dmar: dmar.as_deref(),
                boot: Some(Boot { kernel: self.plan.kernel, initrd: Some(self.plan.initrd) }),
                channels: Some(&channels),
                share: share.as_deref(),
                extra,
            }
            .build()
        };
        let args = line(self.plan.extra);
        // Where the BAR is does not depend on a debugger, and a machine that is stopped never places it.
        let plain_args = line(&without_debugging(self.plan.extra));
        self.write_command(&args).or_exit(Exit::Setup)?;
        let cache = crate::kit::cache_folder().or_exit(Exit::Setup)?;
        let mut placement = dmar.as_ref().map(|_| {
            let guess = dmar::unknown_addresses(self.plan.topology);
            Placement::load(&cache, self.plan.qemu, &plain_args, self.folder, guess)
        });

        let output = (self.plan.terminal != Terminal::Log).then(console::Output::start);
        let sink = match &output {
            Some(output) => output.sender(),
            None => log_sink(&self.folder.join("program.log")).or_exit(Exit::Setup)?,
        };
        let raw = match self.plan.terminal {
            Terminal::Shell => console::RawTerminal::enter().or_exit(Exit::Setup)?,
            Terminal::Log | Terminal::Streams | Terminal::Frames => None,
        };
        let typed = (self.plan.terminal != Terminal::Log)
            .then(|| Rc::new(tokio::sync::Mutex::new(console::read_input(raw.is_some()))));
        let deadline = self.plan.timeout.map(|limit| Instant::now() + limit);

        let mut ended = Err(Failure::new(
            Exit::Backend,
            format!("firmware placed an IOMMU's BAR at another address at each of {MAX_STARTS} starts"),
        ));
        for _ in 0..MAX_STARTS {
            if let (Some(file), Some(placement)) = (&dmar, &placement) {
                let table = dmar::table(self.plan.topology, placement.addresses());
                std::fs::write(file, table).with_context(|| file.display().to_string()).or_exit(Exit::Setup)?;
            }
            let (share, typed) = (share.as_deref(), typed.as_ref());
            let learning = args != plain_args && placement.as_ref().is_some_and(|placement| !placement.is_known());
            let args = if learning { &plain_args } else { &args };
            let start = Start { args, learning, listeners: &listeners, share, sink: &sink, typed, deadline };
            let addresses = placement.as_ref().map(|placement| placement.addresses().to_vec());
            match self.attempt(start, addresses, &events, &mut receiver).await {
                Attempt::Ended(how) => {
                    ended = how;
                    break;
                }
                Attempt::Misplaced(addresses) => {
                    tracing::info!("BARs are at {addresses:#x?}: rewriting the DMAR table and restarting QEMU");
                    if let Some(placement) = &mut placement {
                        placement.learn(addresses);
                    }
                }
            }
        }
        if let (Ok(_), Some(placement)) = (&ended, &mut placement) {
            placement.learn(placement.addresses().to_vec());
        }
        drop(sink);
        drop(raw);
        if let Some(output) = output {
            output.finish().await;
        }
        ended
    }

    fn write_command(&self, args: &[String]) -> anyhow::Result<()> {
        let mut words = vec![self.plan.qemu.display().to_string()];
        words.extend_from_slice(args);
        let file = self.folder.join("qemu-command.txt");
        std::fs::write(&file, crate::qemu::args::shell_quoted(&words) + "\n")
            .with_context(|| file.display().to_string())
    }

    /// Starts QEMU once and stays until it is gone, and with it everything that was started for it.
    async fn attempt(
        &mut self,
        start: Start<'_>,
        addresses: Option<Vec<u64>>,
        events: &mpsc::Sender<Event>,
        receiver: &mut mpsc::Receiver<Event>,
    ) -> Attempt {
        let share = match start.start_share(self.plan, self.folder) {
            Ok(share) => share,
            Err(failure) => return Attempt::Ended(Err(failure)),
        };
        let mut qemu = match start.start_qemu(self.plan, self.folder) {
            Ok(qemu) => qemu,
            Err(failure) => return Attempt::Ended(Err(failure)),
        };
        let (gone, is_gone) = watch::channel(false);
        let (senders, inputs) = streams::inputs();
        let (ready, is_ready) = watch::channel(false);
        let serve = {
            let (listeners, events, sink) = (start.listeners.clone(), events.clone(), start.sink.clone());
            tokio::task::spawn_local(async move { listeners.serve(events, sink, inputs, is_gone).await })
        };
        let typing = start.typed.map(|typed| {
            let form = self.plan.terminal;
            tokio::task::spawn_local(forward_typed(typed.clone(), senders.clone(), is_ready, events.clone(), form))
        });
        let mut booting = (self.plan.terminal == Terminal::Log).then(|| Step::begin("booting the guest"));
        let mut state = State::new(self.plan, addresses, start.learning, start.deadline, senders, ready);
        loop {
            let deadline = state.deadline();
            tokio::select! {
                event = receiver.recv() => {
                    let event = event.expect("this function holds a sender");
                    self.logs.write(&event);
                    if matches!(event, Event::Control(_)) {
                        drop(booting.take());
                    }
                    if let Event::Kernel(line) = &event
                        && let Some(line) = self.audit.kernel(line)
                    {
                        state.tell(line);
                    }
                    state.event(event, self.observer, &mut self.kernel_log);
                }
                event = next_backend_event(&mut self.backend) => self.backend_event(event, &mut state),
                status = qemu.wait(), if state.status.is_none() => {
                    state.status = Some(status);
                    _ = gone.send(true);
                    state.drain_until = Some(Instant::now() + DRAIN_LIMIT);
                }
                () = tokio::time::sleep_until(deadline) => {
                    if state.status.is_some() {
                        break;
                    }
                    state.look(qemu.id().is_none_or(is_running));
                }
            }
            if state.must_stop && state.status.is_none() {
                // It may have died meanwhile: the next `wait` tells.
                _ = qemu.start_kill();
            }
            if state.is_over() {
                break;
            }
        }
        serve.abort();
        if let Some(typing) = typing {
            typing.abort();
        }
        drop(share);
        self.await_disconnection().await;
        state.conclude(self.folder)
    }

    fn backend_event(&mut self, event: Option<BackendEvent>, state: &mut State<'_>) {
        match event {
            Some(BackendEvent::Connected(bdf)) => _ = self.connected.insert(bdf),
            Some(BackendEvent::Disconnected(bdf)) => _ = self.connected.remove(&bdf),
            Some(BackendEvent::UnitPlaced { unit, address }) => state.unit_placed(unit, address),
            Some(BackendEvent::Audit(finding)) => {
                if let Some(line) = self.audit_report(*finding) {
                    state.tell(line);
                }
            }
            Some(BackendEvent::Fatal(text)) => {
                state.fail(Exit::Backend, format!("the backend failed: {text}"));
            }
            None => state.fail(Exit::Backend, "the backend ended unexpectedly"),
        }
    }

    /// Shows and keeps a report; gives the line for the test that announced it.
    fn audit_report(&mut self, finding: Finding) -> Option<String> {
        let text = finding.to_string();
        let line = self.audit.report(finding);
        let note = if line.is_some() { "expected by a test: " } else { "" };
        say!("audit: {note}{text}");
        line
    }

    /// Waits until the backend has no connection, so that no late event counts for the next QEMU.
    async fn await_disconnection(&mut self) {
        let deadline = Instant::now() + DRAIN_LIMIT;
        while !self.connected.is_empty() {
            match tokio::time::timeout_at(deadline, next_backend_event(&mut self.backend)).await {
                Ok(Some(BackendEvent::Disconnected(bdf))) => _ = self.connected.remove(&bdf),
                Ok(Some(BackendEvent::Audit(finding))) => _ = self.audit_report(*finding),
                Ok(Some(_)) => {}
                Ok(None) => return,
                Err(_) => {
                    tracing::warn!("the backend still holds connections: {:?}", self.connected);
                    self.connected.clear();
                }
            }
        }
    }
}

/// What the guest said, in files.
struct Logs {
    console: std::fs::File,
    control: std::fs::File,
}

impl Logs {
    fn open(folder: &Path) -> anyhow::Result<Self> {
        Ok(Self { console: log_file(&folder.join("console.log"))?, control: log_file(&folder.join("control.log"))? })
    }

    fn write(&mut self, event: &Event) {
        use std::io::Write as _;
        // A full disk must not end the run.
        match event {
            Event::Kernel(line) => _ = writeln!(self.console, "{line}"),
            Event::Control(line) => _ = writeln!(self.control, "{line}"),
            _ => {}
        }
    }
}

/// The backend's next event. Without a backend it waits without end.
async fn next_backend_event(backend: &mut Option<&mut Backend>) -> Option<BackendEvent> {
    match backend {
        Some(backend) => backend.events().recv().await,
        None => std::future::pending().await,
    }
}

/// What one start of QEMU needs.
struct Start<'a> {
    args: &'a [String],
    /// This start only finds out where the unit's BAR is.
    learning: bool,
    listeners: &'a Rc<Listeners>,
    share: Option<&'a Path>,
    sink: &'a mpsc::Sender<Vec<u8>>,
    typed: Option<&'a Typed>,
    deadline: Option<Instant>,
}

impl Start<'_> {
    fn start_qemu(&self, plan: &Plan<'_>, folder: &Path) -> Outcome<Child> {
        let log = log_file(&folder.join("qemu.log")).or_exit(Exit::Setup)?;
        let mut command = std::process::Command::new(plan.qemu);
        command.args(self.args).stdin(Stdio::null()).stdout(log.try_clone().or_exit(Exit::Setup)?).stderr(log);
        spawn(command).with_context(|| format!("cannot start {}", plan.qemu.display())).or_exit(Exit::Qemu)
    }

    /// virtiofsd, on a socket that is there before it starts. It serves one QEMU and ends.
    fn start_share(&self, plan: &Plan<'_>, folder: &Path) -> Outcome<Option<Child>> {
        let (Some((shared, virtiofsd)), Some(socket)) = (plan.share, self.share) else { return Ok(None) };
        let start = || -> anyhow::Result<Child> {
            _ = std::fs::remove_file(socket);
            let listener = std::os::unix::net::UnixListener::bind(socket)?;
            let log = log_file(&folder.join("virtiofsd.log"))?;
            let mut command = std::process::Command::new(virtiofsd);
            // The socket is its standard input. Without privileges it cannot shut itself in; it opens nothing outside
            // the shared folder by the rules of the file system protocol.
            let sandbox = if nix::unistd::geteuid().is_root() { "chroot" } else { "none" };
            command.arg("--fd=0").arg("--sandbox").arg(sandbox).arg("--shared-dir").arg(shared);
            command.stdin(OwnedFd::from(listener)).stdout(log.try_clone()?).stderr(log);
            spawn(command)
        };
        start().context("cannot start virtiofsd").or_exit(Exit::Setup).map(Some)
    }
}

/// Whether a process is not stopped by a signal or a debugger (proc_pid_stat(5), field 3).
fn is_running(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The name, in parentheses, may hold anything.
    let state = stat.rsplit_once(") ").and_then(|(_, fields)| fields.chars().next());
    !matches!(state, Some('T' | 't'))
}

/// Starts a child that dies with us, and when its handle is dropped.
fn spawn(mut command: std::process::Command) -> anyhow::Result<Child> {
    die_with_parent(&mut command);
    // A terminal's Ctrl-C is for us: we end the others in our own order.
    std::os::unix::process::CommandExt::process_group(&mut command, 0);
    Ok(Command::from(command).kill_on_drop(true).spawn()?)
}

fn log_file(path: &Path) -> anyhow::Result<std::fs::File> {
    std::fs::OpenOptions::new().create(true).append(true).open(path).with_context(|| path.display().to_string())
}

/// Where a program's output goes when nobody wants to see it.
fn log_sink(path: &Path) -> anyhow::Result<mpsc::Sender<Vec<u8>>> {
    let mut file = log_file(path)?;
    let (sender, mut receiver) = mpsc::channel::<Vec<u8>>(16);
    tokio::task::spawn_local(async move {
        while let Some(bytes) = receiver.recv().await {
            // A full disk must not end the run.
            _ = std::io::Write::write_all(&mut file, &bytes);
        }
    });
    Ok(sender)
}

fn watch_signals(events: &mpsc::Sender<Event>) -> anyhow::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    for (kind, name) in [
        (SignalKind::interrupt(), "SIGINT"),
        (SignalKind::terminate(), "SIGTERM"),
        (SignalKind::hangup(), "SIGHUP"),
        (SignalKind::quit(), "SIGQUIT"),
    ] {
        let (mut stream, events) = (signal(kind)?, events.clone());
        tokio::task::spawn_local(async move {
            while stream.recv().await.is_some() && events.send(Event::Signal(name)).await.is_ok() {}
        });
    }
    Ok(())
}

/// Input with its length before it; none is the end (`guest-tests/init/src/frames.rs`).
fn frame(bytes: &[u8]) -> Vec<u8> {
    let length = u16::try_from(bytes.len()).expect("input comes in chunks of 4 KiB at most");
    [&length.to_be_bytes(), bytes].concat()
}

/// Passes standard input to the guest's program once it reads: a UART drops what comes earlier.
async fn forward_typed(
    typed: Typed,
    senders: Senders,
    mut ready: watch::Receiver<bool>,
    events: mpsc::Sender<Event>,
    form: Terminal,
) {
    if ready.wait_for(|ready| *ready).await.is_err() {
        return;
    }
    let mut typed = typed.lock().await;
    while let Some(input) = typed.recv().await {
        match input {
            Input::Bytes(bytes) if form == Terminal::Frames => _ = senders.program.send(frame(&bytes)).await,
            Input::Bytes(bytes) => _ = senders.program.send(bytes).await,
            // A terminal that edits lines turns Ctrl-D into the end of input. The end of a pipe is seen at every read.
            // A Ctrl-D is seen once, or never if it comes between two readers.
            Input::End if form == Terminal::Shell => loop {
                _ = senders.program.send(vec![console::END_OF_INPUT]).await;
                tokio::time::sleep(END_OF_INPUT_PERIOD).await;
            },
            Input::End if form == Terminal::Frames => _ = senders.program.send(frame(&[])).await,
            // Input of a raw terminal ended: the terminal hung up.
            Input::End => {}
            Input::Quit => _ = events.send(Event::Quit).await,
            Input::Help => say!("{}", console::HELP.trim_end()),
        }
    }
}
