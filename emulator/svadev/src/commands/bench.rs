//! `svadev bench`: runs the native suites and those of the guest, and shows a table, a JSON file and a page.
use std::{
    io::{IsTerminal as _, Write as _},
    path::Path,
    time::{Duration, Instant},
};

use anyhow::Context as _;

use crate::cli::BenchArgs;
use svadev_bench::{
    compare,
    guest::{Collected, Word},
    machine::Machine,
    native::{self, Progress},
    report::{Mark, Report, html, table},
    row::{Place, Row, Suite},
};
use svadev_launcher::{
    backend::CounterSource,
    control::Message,
    exit::{Exit, Failure, OrExit as _, Outcome},
    files,
    guest::{self, Image, Request},
    guest_image::Job,
    run::{Ended, Observer, Terminal},
};

/// Time for which a native case is measured, seconds. The guest's program has its own times.
const SECONDS: f64 = 0.8;
const QUICK_SECONDS: f64 = 0.15;

/// Runs it.
pub(crate) fn run(args: &BenchArgs) -> Outcome<u8> {
    if let [a, b] = args.compare.as_slice() {
        let read = |path: &Path| Report::read(path).or_exit(Exit::Usage);
        for line in compare::lines(&read(a)?, &read(b)?) {
            out!("{line}");
        }
        return Ok(Exit::Success.code());
    }
    let wanted = |suite: &Suite| match args.suite.as_slice() {
        [] => !suite.is_on_request(),
        some => some.iter().any(|&choice| Suite::from(choice) == *suite),
    };
    let suites: Vec<_> = Suite::ALL.into_iter().filter(wanted).collect();
    let (here, there) = (!args.guest_only && suites.iter().any(|s| s.is_native()), !args.native);
    let there = there && suites.iter().any(|s| s.is_guests());
    if !here && !there {
        let place = if args.native { "without a guest" } else { "in the guest" };
        return Err(Failure::new(
            Exit::Usage,
            format!("these suites have no case that is measured {place}: choose another suite"),
        ));
    }
    // Report files that cannot be written before the work, not after it.
    for path in args.json.iter().chain(&args.html) {
        files::check_writable(path).or_exit(Exit::Usage)?;
    }
    let seconds = args.seconds_per_case.unwrap_or(if args.quick { QUICK_SECONDS } else { SECONDS });
    let mut report = Report::new(Machine::here(seconds), Vec::new(), Vec::new());
    if report.machine.is_busy() {
        let Machine { load, processors, .. } = &report.machine;
        note!("the host is busy (load {load} on {processors} processors): figures of polled cases will be too high");
    }
    let mut show = Show::new();
    if here {
        let time = Duration::from_secs_f64(seconds);
        report.rows =
            native::run(&suites, time, &mut show).context("the native suites failed").or_exit(Exit::Backend)?;
        show.end();
    }
    let mut ended = Ok(Exit::Success.code());
    if there {
        ended = match in_guest(args, &suites, &mut report.machine, &mut show) {
            Ok((rows, marks, status)) => {
                report.rows.extend(rows);
                report.counters = marks;
                status
            }
            Err(failure) if report.rows.is_empty() => return Err(failure),
            // Show what was measured without a guest even if the guest failed.
            Err(failure) => Err(failure),
        };
    }
    finish(args, &report)?;
    ended
}

/// Shows and writes what there is.
fn finish(args: &BenchArgs, report: &Report) -> Outcome<()> {
    for (name, value) in report.machine.lines() {
        out!("{name}: {value}");
    }
    for line in table::lines(report) {
        out!("{line}");
    }
    if let Some(path) = &args.json {
        files::write(path, report.to_json().or_exit(Exit::Usage)?.as_bytes()).or_exit(Exit::Usage)?;
    }
    if let Some(path) = &args.html {
        files::write(path, html::page(report).as_bytes()).or_exit(Exit::Usage)?;
        say!("the report is in {}", path.canonicalize().unwrap_or_else(|_| path.clone()).display());
    }
    Ok(())
}

/// The guest's suites: rows, counters, and the status that its part of the run leads to. What it measured before it
/// failed is kept.
fn in_guest(
    args: &BenchArgs,
    suites: &[Suite],
    machine: &mut Machine,
    show: &mut Show,
) -> Outcome<(Vec<Row>, Vec<Mark>, Outcome<u8>)> {
    let mut argv = Vec::new();
    for suite in suites.iter().filter(|suite| suite.is_guests()) {
        argv.extend(["--suite".to_owned(), suite.name().to_owned()]);
    }
    if args.quick {
        argv.push("--quick".into());
    }
    if let Some(seconds) = args.seconds_per_case {
        argv.extend(["--seconds-per-case".into(), seconds.to_string()]);
    }
    let request = Request {
        command: "bench",
        topology: args.machine.topology()?,
        host: args.host.options(),
        image: Image::Job { job: Job { mode: "bench", argv, ..Job::default() }, needs_module: true },
        share: None,
        terminal: Terminal::Log,
        until_placed: false,
    };
    let mut watch = Watch { show, collected: Collected::default(), release: String::new() };
    let mut finished = guest::run(request, &mut watch)?;
    let Watch { show, collected, release } = watch;
    show.end();
    let topology = args.machine.topology()?;
    let (cpus, caching) = (topology.machine.cpus, topology.iommus[0].unit.caching);
    let accel = finished.accel.qemu_name().unwrap_or("?");
    machine.guest = format!("Linux {release}, {cpus} CPUs under {accel}, IOMMU caching {caching:?}");
    let findings = finished.report.kernel_log.findings().to_vec();
    for finding in &findings {
        out!("# kernel log: {finding}");
    }
    let status = match finished.conclude(!findings.is_empty()) {
        Ok(Ended::Exit(0)) if findings.is_empty() && collected.done => Ok(Exit::Success.code()),
        Ok(Ended::Exit(_) | Ended::Quit) => Ok(Exit::TestFailed.code()),
        Ok(Ended::PoweredOff | Ended::Placed(_)) => Ok(Exit::GuestSetup.code()),
        Err(failure) => Err(failure),
    };
    Ok((collected.rows, collected.marks, status))
}

/// Shows progress: on a terminal in one line that changes, otherwise in a line for each case.
struct Show {
    since: Instant,
    terminal: bool,
    count: u32,
}

impl Show {
    fn new() -> Self {
        Self { since: Instant::now(), terminal: std::io::stderr().is_terminal(), count: 0 }
    }

    fn line(&self, text: &str) {
        let seconds = self.since.elapsed().as_secs();
        if svadev_launcher::say::is_quiet() {
            return;
        }
        if self.terminal {
            // Errors: a terminal that has gone is no reason to stop.
            _ = write!(std::io::stderr().lock(), "\r\x1b[K{seconds:4} s  {text}");
        } else {
            note!("{seconds} s: {text}");
        }
    }

    /// Leaves the line that changes.
    fn end(&self) {
        if self.terminal {
            _ = write!(std::io::stderr().lock(), "\r\x1b[K");
        }
    }
}

impl Progress for Show {
    fn case(&mut self, place: Place, suite: Suite, case: &str) {
        self.count += 1;
        self.line(&format!("{} {:3}  {}: {case}", place.name(), self.count, suite.name()));
    }
}

/// Listens to the guest.
struct Watch<'s> {
    show: &'s mut Show,
    collected: Collected,
    release: String,
}

impl Observer for Watch<'_> {
    fn backend(&mut self, counters: CounterSource) {
        self.collected.set_source(counters);
    }

    fn control(&mut self, message: &Message) {
        match message {
            Message::Hello(release) => {
                // The text goes into files and pages.
                self.release = release.chars().filter(|c| !c.is_control()).take(80).collect();
                self.show.line(&format!("the guest is up: Linux {}", self.release));
            }
            Message::Data(object) => {
                let word = Word::parse(object);
                match &word {
                    Word::Progress { text, done, of } => self.show.line(&format!("guest {done}/{of}  {text}")),
                    Word::Text(text) => self.show.line(&format!("guest: {text}")),
                    Word::Unknown => tracing::warn!("unknown object from the guest: {object}"),
                    Word::Row(_) | Word::Counters(_) | Word::Done => {}
                }
                if !self.collected.take(&word) {
                    tracing::warn!("the guest sends too much, so this is dropped: {object}");
                }
            }
            _ => {}
        }
    }

    fn kernel(&mut self, _: &str) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_that_cannot_be_written_is_named_before_the_work() {
        let error = files::check_writable(Path::new("/no/such/folder/a.html")).unwrap_err();
        let text = format!("{error:#}");
        assert!(text.contains("cannot write /no/such/folder/a.html"), "{text}");
    }
}
