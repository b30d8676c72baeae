//! `svadev test`: the smoke suite, and the kernel log beside it.
use std::{io::IsTerminal as _, time::Instant};

use anyhow::Context as _;

use super::result_files::{Writer, print};
use crate::cli::TestArgs;
use svadev_launcher::{
    control::Message,
    exit::{Exit, Failure, OrExit as _, Outcome},
    guest::{self, Image, Request},
    guest_image::{Job, build},
    ktap::{Parser, TestResult, Verdict},
    results::{FORMAT, Kind, Machine, Results},
    run::{Ended, Observer, Terminal, audit::AuditJudge},
    say::is_quiet,
};

/// The guest's program.
const PROGRAM: &str = "svadev-smoke";

/// Runs it.
pub(crate) fn run(args: &TestArgs) -> Outcome<u8> {
    let files = Writer::new(&args.files)?;
    if args.list {
        return list(args);
    }
    let (started, since) = (chrono::Utc::now(), Instant::now());
    let job = Job { mode: "test", argv: args.argv(), ..Job::default() };
    let topology = args.machine.topology()?;
    let request = Request {
        command: "test",
        topology: topology.clone(),
        host: args.host.options(),
        image: Image::Job { job, needs_module: true },
        share: None,
        terminal: Terminal::Log,
        until_placed: false,
    };
    let progress = std::io::stderr().is_terminal() && !is_quiet();
    let mut suite = Suite { parser: Parser::new(since), progress, release: String::new() };
    let mut finished = guest::run(request, &mut suite)?;
    let machine = Machine::of(&topology, finished.accel, &suite.release);
    suite.clear_progress();
    let summary = suite.parser.finish();
    // A suite that gives up before its first test says why in one line, at the end: no test is to blame.
    let gave_up = summary.gave_up.clone().filter(|_| summary.results.is_empty());
    let mut problems = if gave_up.is_some() { Vec::new() } else { summary.problems.clone() };
    problems.extend(finished.report.kernel_log.findings().iter().map(|line| format!("kernel log: {line}")));
    // If the suite's status says that something failed, a failed test must be among the results.
    let failed = summary.count(Verdict::Fail);
    if let (Ok(Ended::Exit(status @ 1..)), 0, None) = (&finished.report.ended, failed, &gave_up) {
        problems.push(format!("the suite ended with status {status}, but no test failed"));
    }
    if finished.report.ended.as_ref().is_ok_and(|ended| !matches!(ended, Ended::Exit(_))) {
        problems.push("the guest powered off before the suite ended".into());
    }
    let audit_problems = finished.report.audit.problems();
    for problem in audit_problems.iter().map(|line| format!("audit: {line}")).chain(problems.iter().cloned()) {
        out!("# {problem}");
    }
    out!(
        "{} passed, {failed} failed, {} skipped in {:.1} s{}",
        summary.count(Verdict::Pass),
        summary.count(Verdict::Skip),
        summary.duration().as_secs_f64(),
        if problems.is_empty() && audit_problems.is_empty() { "" } else { "; see the lines that begin with # above" }
    );
    let mut results = with_problems(summary.results, &problems);
    results.extend(audit_result(&finished.report.audit, finished.report.counters.get("audit").is_some()));
    let bad = failed > 0 || !problems.is_empty();
    let mut ended = finished.conclude(bad);
    if let (Ok(_), Some(why)) = (&ended, gave_up) {
        ended = Err(Failure::new(Exit::GuestSetup, why));
    }
    let status = match &ended {
        Err(failure) => failure.exit,
        Ok(_) if bad => Exit::TestFailed,
        Ok(_) => Exit::Success,
    };
    let written = files.write(&Results {
        format: FORMAT,
        kind: Kind::Test,
        version: env!("CARGO_PKG_VERSION").into(),
        started,
        seconds: since.elapsed().as_secs_f64(),
        status: status.code(),
        failure: ended.as_ref().err().map(ToString::to_string).unwrap_or_default(),
        chosen: args.chosen(),
        shard: args.shard,
        machine,
        results,
    });
    ended?;
    // A verdict counts more than a file that cannot be written.
    if bad { Ok(status.code()) } else { written.map(|()| status.code()) }
}

/// Prints the names of the tests. The guest's program knows them, and needs no guest for that.
fn list(args: &TestArgs) -> Outcome<u8> {
    let topology = args.machine.topology()?;
    let programs = build::programs(args.host.guest_bin.as_deref())?;
    let program = programs.iter().find(|program| program.ends_with(PROGRAM));
    let program = program.with_context(|| format!("the program {PROGRAM} is missing")).or_exit(Exit::Setup)?;
    let functions = topology.accelerators.len().to_string();
    let mut command = std::process::Command::new(program);
    command.args(["--list", "--functions", &functions]).args(args.argv());
    let status = command.status().with_context(|| program.display().to_string()).or_exit(Exit::Setup)?;
    Ok(if status.success() { Exit::Success } else { Exit::Usage }.code())
}

/// Adds the problems that belong to no test, as a failed test of their own, so that no reader misses them.
fn with_problems(mut results: Vec<TestResult>, problems: &[String]) -> Vec<TestResult> {
    if !problems.is_empty() {
        results.push(TestResult {
            name: "svadev/run".into(),
            verdict: Verdict::Fail,
            seconds: 0.0,
            reason: String::new(),
            diagnostics: problems.to_vec(),
            reports: Vec::new(),
        });
    }
    results
}

/// The auditor's result: passed if the reports are those that tests announced. `None` without an auditor.
fn audit_result(audit: &AuditJudge, audited: bool) -> Option<TestResult> {
    let diagnostics = audit.problems();
    let verdict = if diagnostics.is_empty() { Verdict::Pass } else { Verdict::Fail };
    let reports = audit.reports().iter().filter_map(|(finding, _)| serde_json::to_value(finding).ok()).collect();
    let (name, reason) = ("svadev/audit".into(), audit.gap().unwrap_or_default());
    audited.then_some(TestResult { name, verdict, seconds: 0.0, reason, diagnostics, reports })
}

struct Suite {
    parser: Parser,
    progress: bool,
    release: String,
}

impl Suite {
    fn clear_progress(&self) {
        if self.progress {
            use std::io::Write as _;
            _ = write!(std::io::stderr().lock(), "\r\x1b[K");
        }
    }

    fn show_progress(&self) {
        if self.progress {
            use std::io::Write as _;
            let (seen, planned) = self.parser.progress();
            let planned = planned.map_or("?".to_owned(), |planned| planned.to_string());
            _ = write!(std::io::stderr().lock(), "[{seen}/{planned}] ");
        }
    }
}

impl Observer for Suite {
    fn control(&mut self, message: &Message) {
        match message {
            Message::Hello(release) => {
                note!("the guest is up: Linux {release}");
                self.release.clone_from(release);
            }
            Message::Ktap(line) => {
                self.clear_progress();
                let result = self.parser.line(line, Instant::now());
                if let Some(result) = result.filter(|result| !is_quiet() || result.verdict == Verdict::Fail) {
                    print(result);
                }
                self.show_progress();
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
    fn problems_are_a_failed_test_in_the_results() {
        assert!(with_problems(Vec::new(), &[]).is_empty());
        let results = with_problems(Vec::new(), &["kernel log: BUG: x".into()]);
        assert_eq!((results[0].verdict, results[0].diagnostics.len()), (Verdict::Fail, 1));
    }
}
