//! The state of one start of QEMU, and how it ends.
use std::{
    collections::BTreeSet, fmt, io, os::unix::process::ExitStatusExt as _, path::Path, process::ExitStatus,
    time::Duration,
};

use svadev_fabric::Bdf;
use tokio::{sync::watch, time::Instant};

use super::{
    event::{Channel, Event},
    plan::{Attempt, Ended, Observer, Plan},
    streams::Senders,
};
use crate::{
    control::Message,
    exit::{Exit, Failure, Outcome},
    kernel_log::KernelLog,
    qemu::qmp,
};

/// Longest time from QEMU's start to PID 1's first word.
const HELLO_LIMIT: Duration = Duration::from_secs(120);
/// Longest silence of PID 1, which says that it is alive every two seconds.
const SILENCE_LIMIT: Duration = Duration::from_secs(30);
/// Time for a guest that is done to power off.
const POWER_OFF_LIMIT: Duration = Duration::from_secs(20);
/// Time for a guest that has panicked to print its last words.
const LAST_WORDS_LIMIT: Duration = Duration::from_secs(3);
/// Time between two looks at the guest.
pub(super) const LOOK: Duration = Duration::from_secs(1);

/// The time that the guest had. It stands still while the machine is stopped: by a debugger, by QEMU's monitor, or
/// because QEMU or this process was stopped by a signal, as the host's suspend or Ctrl-Z do.
#[derive(Debug)]
struct MachineClock {
    now: Duration,
    looked: Instant,
}

impl MachineClock {
    /// Adds the time since the last look. A longer pause than a look should take was a stop of this process.
    fn look(&mut self, running: bool) {
        let passed = self.looked.elapsed();
        self.looked = Instant::now();
        if running {
            self.now += passed.min(2 * LOOK);
        }
    }
}

/// One start of QEMU.
pub(super) struct State<'a> {
    plan: &'a Plan<'a>,
    /// Where the DMAR table says that the units are, in the topology's order; `None` without a table.
    addresses: Option<Vec<u64>>,
    /// This start only finds out where the units are.
    learning: bool,
    clock: MachineClock,
    /// QEMU has stopped the machine.
    stopped: bool,
    /// The user was told that the machine is stopped.
    told_stopped: bool,
    /// End of the time that the user allowed.
    timeout_at: Option<Instant>,
    senders: Senders,
    ready: watch::Sender<bool>,
    /// When PID 1 was heard last, on the machine's clock; `None` before its first word.
    heard: Option<Duration>,
    /// Where firmware has put the units so far.
    found: Vec<Option<u64>>,
    /// Every unit is where the table says.
    placed: bool,
    misplaced: Option<Vec<u64>>,
    /// What decided the end. The first cause counts: what comes after it follows from it.
    decision: Option<Outcome<Ended>>,
    /// When QEMU must have ended by itself after the decision, on the machine's clock.
    end_by: Option<Duration>,
    shutdown_reason: Option<String>,
    ended: BTreeSet<Channel>,
    /// QEMU must be killed.
    pub(super) must_stop: bool,
    /// QEMU has ended like this.
    pub(super) status: Option<io::Result<ExitStatus>>,
    /// Until when the data that QEMU left in its sockets is read.
    pub(super) drain_until: Option<Instant>,
}

impl<'a> State<'a> {
    pub(super) fn new(
        plan: &'a Plan<'a>,
        addresses: Option<Vec<u64>>,
        learning: bool,
        timeout_at: Option<Instant>,
        senders: Senders,
        ready: watch::Sender<bool>,
    ) -> Self {
        Self {
            plan,
            addresses,
            learning,
            clock: MachineClock { now: Duration::ZERO, looked: Instant::now() },
            stopped: false,
            told_stopped: false,
            timeout_at,
            senders,
            ready,
            heard: None,
            found: vec![None; plan.topology.iommus.len()],
            placed: false,
            misplaced: None,
            decision: None,
            end_by: None,
            shutdown_reason: None,
            ended: BTreeSet::new(),
            must_stop: false,
            status: None,
            drain_until: None,
        }
    }

    /// Sends a line to the guest's control port. A guest that reads nothing misses it.
    pub(super) fn tell(&self, line: String) {
        if self.senders.control.try_send(line.into_bytes()).is_err() {
            tracing::warn!("the guest does not read its control port: a line is lost");
        }
    }

    /// A built-in time limit, multiplied for this host.
    fn scaled(&self, limit: Duration) -> Duration {
        limit * self.plan.timeout_scale
    }

    /// When [`Self::look`] is to be called next.
    pub(super) fn deadline(&self) -> Instant {
        if let Some(drain_until) = self.drain_until {
            return drain_until;
        }
        let look = self.clock.looked + LOOK;
        self.timeout_at.filter(|_| self.decision.is_none()).map_or(look, |timeout_at| timeout_at.min(look))
    }

    /// When a built-in limit is reached, on the machine's clock.
    fn limit(&self) -> Option<Duration> {
        match (self.decision.is_some(), self.heard) {
            (true, _) => self.end_by,
            (false, _) if !self.plan.has_our_init || !self.plan.watchdog => None,
            (false, None) => Some(self.scaled(HELLO_LIMIT)),
            (false, Some(heard)) => Some(heard + self.scaled(SILENCE_LIMIT)),
        }
    }

    /// Looks at the guest: decides what it means if a limit has passed. `running`: QEMU's process is not stopped.
    pub(super) fn look(&mut self, running: bool) {
        let running = running && !self.stopped;
        self.clock.look(running);
        if !running && !self.told_stopped {
            say!("the guest is stopped: time limits stand still until it goes on");
        }
        self.told_stopped = !running;
        if self.decision.is_none() && self.timeout_at.is_some_and(|timeout_at| timeout_at <= Instant::now()) {
            return self.fail(Exit::GuestHung, "the guest ran longer than --timeout allows");
        }
        if self.limit().is_none_or(|limit| self.clock.now < limit) {
            return;
        }
        if let Some(decision) = &mut self.decision {
            if matches!(decision, Ok(Ended::Exit(_))) {
                *decision = Err(Failure::new(Exit::GuestHung, "the guest finished its work, but did not power off"));
            }
            self.must_stop = true;
        } else if self.heard.is_none() {
            let limit = self.scaled(HELLO_LIMIT).as_secs();
            self.fail(Exit::GuestHung, format!("the guest did not come up within {limit} s: try --timeout-scale"));
        } else {
            let limit = self.scaled(SILENCE_LIMIT).as_secs();
            self.fail(Exit::GuestHung, format!("the guest hangs: PID 1 has been silent for {limit} s"));
        }
    }

    /// Records a failure. QEMU must be killed now.
    pub(super) fn fail(&mut self, exit: Exit, message: impl fmt::Display) {
        self.decide(Err(Failure::new(exit, message)));
        self.must_stop = true;
    }

    fn decide(&mut self, how: Outcome<Ended>) {
        self.decision.get_or_insert(how);
    }

    /// Decides the end. QEMU should end by itself within `limit`.
    fn ends_within(&mut self, how: Outcome<Ended>, limit: Duration) {
        if self.decision.is_none() {
            self.end_by = Some(self.clock.now + self.scaled(limit));
            self.decision = Some(how);
        }
    }

    /// Handles an event of the guest or the terminal.
    pub(super) fn event(&mut self, event: Event, observer: &mut dyn Observer, kernel_log: &mut KernelLog) {
        match event {
            Event::Kernel(line) => {
                kernel_log.line(&line);
                observer.kernel(&line);
                if let Some(panic) = kernel_log.panic() {
                    let failure = Failure::new(Exit::GuestPanic, format!("the guest kernel panicked: {panic}"));
                    self.ends_within(Err(failure), LAST_WORDS_LIMIT);
                }
            }
            Event::Control(line) => self.control(Message::parse(&line), observer),
            Event::Qmp(message) => self.qmp(message),
            Event::ProgramSpoke => _ = self.ready.send(true),
            Event::Ended(channel) => _ = self.ended.insert(channel),
            Event::Quit => {
                self.decide(Ok(Ended::Quit));
                self.must_stop = true;
            }
            Event::Signal(name) => self.fail(Exit::Interrupted, format!("interrupted by {name}")),
        }
    }

    fn control(&mut self, message: Message, observer: &mut dyn Observer) {
        observer.control(&message);
        if let Message::Unknown(line) = &message {
            tracing::warn!("unknown line from the guest: {line:?}");
            return;
        }
        self.heard = Some(self.clock.now);
        match message {
            Message::Ready => _ = self.ready.send(true),
            Message::Fatal(text) => {
                let failure = Failure::new(Exit::GuestSetup, format!("the guest's set-up failed: {text}"));
                self.ends_within(Err(failure), POWER_OFF_LIMIT);
            }
            Message::Exit(status) => self.ends_within(Ok(Ended::Exit(status)), POWER_OFF_LIMIT),
            Message::Hello(release) => {
                tracing::info!("the guest runs Linux {release}");
                if self.addresses.is_some() && !self.placed {
                    self.fail(Exit::Backend, "the guest has booted, but the IOMMU's BAR was never enabled");
                }
            }
            Message::Alive | Message::Ktap(_) | Message::Data(_) | Message::Unknown(_) => {}
        }
    }

    fn qmp(&mut self, message: qmp::Message) {
        match message {
            // The queue is empty at the greeting: nothing was sent before it.
            qmp::Message::Greeting => {
                _ = self.senders.qmp.try_send(qmp::CAPABILITIES.to_vec());
                _ = self.senders.qmp.try_send(qmp::QUERY_STATUS.to_vec());
            }
            qmp::Message::Shutdown { reason } => self.shutdown_reason = Some(reason),
            qmp::Message::Error(text) => tracing::warn!("QEMU's monitor reports an error: {text}"),
            qmp::Message::Stopped => self.stopped = true,
            qmp::Message::Resumed => self.stopped = false,
            qmp::Message::Other => {}
        }
    }

    /// Handles that a unit's BAR was placed. Firmware places one after the other: a wrong table is made anew when all
    /// places are known.
    pub(super) fn unit_placed(&mut self, unit: Bdf, address: u64) {
        let (Some(index), Some(expected)) = (self.plan.topology.unit_at(unit), &self.addresses) else { return };
        let name = self.plan.topology.unit_name(index);
        tracing::debug!("{name}'s BAR is at {address:#x}");
        if self.placed {
            let expected = expected[index];
            if address != expected {
                let text = format!(
                    "the guest moved {name}'s BAR from {expected:#x} to {address:#x}, so its own IOMMU driver cannot \
                     find it: add intremap=off to the kernel command line"
                );
                self.fail(Exit::GuestSetup, text);
            }
            return;
        }
        self.found[index] = Some(address);
        let Some(found) = self.found.iter().copied().collect::<Option<Vec<u64>>>() else { return };
        if self.plan.until_placed {
            self.decide(Ok(Ended::Placed(found)));
            self.must_stop = true;
        } else if self.learning {
            self.misplaced = Some(found);
            self.must_stop = true;
        } else if found == *expected {
            self.placed = true;
        } else {
            self.misplaced = Some(found);
            self.must_stop = true;
        }
    }

    /// Whether no more events can come.
    pub(super) fn is_over(&self) -> bool {
        self.status.is_some() && self.ended.len() == 4
    }

    /// The result of this start of QEMU.
    pub(super) fn conclude(self, folder: &Path) -> Attempt {
        if let (Some(addresses), None) = (self.misplaced, &self.decision) {
            return Attempt::Misplaced(addresses);
        }
        Attempt::Ended(self.decision.unwrap_or_else(|| {
            let status = self.status.expect("the loop ends only after QEMU has");
            match (self.shutdown_reason.as_deref(), status) {
                (_, Err(error)) => Err(Failure::new(Exit::Qemu, format!("cannot wait for QEMU: {error}"))),
                (Some("guest-shutdown"), Ok(status)) if status.success() => Ok(Ended::PoweredOff),
                (Some("guest-reset"), Ok(status)) if status.success() => Err(Failure::new(
                    Exit::GuestPanic,
                    "the guest reset itself without a message (a triple fault, or a reboot)",
                )),
                (Some(reason), Ok(status)) if status.success() => {
                    Err(Failure::new(Exit::Qemu, format!("QEMU was stopped by something else ({reason})")))
                }
                (_, Ok(status)) => Err(Failure::new(Exit::Qemu, format!("QEMU {}{}", how(status), last_words(folder)))),
            }
        }))
    }
}

/// How a process ended, in words.
fn how(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("ended with status {code}"),
        (None, Some(signal)) => {
            let name = nix::sys::signal::Signal::try_from(signal).map_or("?", nix::sys::signal::Signal::as_str);
            format!("was killed by signal {signal} ({name})")
        }
        (None, None) => status.to_string(),
    }
}

/// The end of what QEMU printed.
fn last_words(folder: &Path) -> String {
    let text = std::fs::read(folder.join("qemu.log")).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> =
        text.lines().filter(|line| !line.trim().is_empty() && !line.contains(": warning: ")).collect();
    match &lines[lines.len().saturating_sub(3)..] {
        [] => String::new(),
        last => format!(": {}", last.join("; ")),
    }
}

#[cfg(test)]
#[path = "state_tests.rs"]
mod tests;
