//! JUnit XML, which most CI systems show.
use std::time::Duration;

use anyhow::Context as _;
use quick_junit::{NonSuccessKind, Report, TestCase, TestCaseStatus, TestSuite};

use super::Results;
use crate::ktap::Verdict;

/// The document. A test's class is its suite, the part of its name before the first point. Characters that XML does not
/// have are left out.
///
/// Errors: none that occurs in practice; the text cannot be made.
pub fn document(results: &Results) -> anyhow::Result<String> {
    let mut report = Report::new("svadev");
    let started = results.started;
    report.set_timestamp(started).set_time(seconds(results.seconds));
    let mut suite = TestSuite::new("svadev");
    suite.set_timestamp(started).set_time(seconds(results.seconds));
    let machine = &results.machine;
    for (name, value) in [
        ("release", machine.release.clone()),
        ("accel", machine.accel.clone()),
        ("cpus", machine.cpus.to_string()),
        ("levels", machine.levels.to_string()),
        ("caching", machine.caching.clone()),
        ("svadev", results.version.clone()),
    ] {
        suite.add_property((name, value.as_str()));
    }
    for result in &results.results {
        let output = result.diagnostics.join("\n");
        let status = match result.verdict {
            Verdict::Pass => TestCaseStatus::success(),
            Verdict::Skip => {
                let mut status = TestCaseStatus::skipped();
                status.set_message(result.reason.as_str());
                status
            }
            Verdict::Fail => {
                let mut status = TestCaseStatus::non_success(NonSuccessKind::Failure);
                let first = result.diagnostics.first().unwrap_or(&result.reason);
                status.set_type("failed").set_message(first.as_str()).set_description(output.as_str());
                status
            }
        };
        suite.add_test_case(case(&result.name, status, result.seconds, &output));
    }
    if !results.failure.is_empty() {
        let mut status = TestCaseStatus::non_success(NonSuccessKind::Error);
        status.set_type("ended").set_message(results.failure.as_str());
        suite.add_test_case(case("svadev/ended", status, 0.0, ""));
    }
    report.add_test_suite(suite);
    report.to_string().context("cannot make the JUnit document")
}

fn case(name: &str, status: TestCaseStatus, time: f64, output: &str) -> TestCase {
    let mut case = TestCase::new(name, status);
    let class = name.split(['.', '/']).next().unwrap_or_default();
    case.set_classname(format!("svadev.{class}")).set_time(seconds(time));
    if !output.is_empty() {
        case.set_system_out(output);
    }
    case
}

fn seconds(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::super::tests::sample;
    use super::*;

    #[test]
    fn the_document_is_read_back_with_every_verdict() {
        let mut results = sample();
        results.failure = "the guest hangs".into();
        let text = document(&results).unwrap();
        let report = Report::deserialize_from_str(&text).unwrap();
        assert_eq!((report.tests, report.failures, report.errors), (4, 1, 1));
        let suite = &report.test_suites[0];
        let names: Vec<_> = suite.test_cases.iter().map(|case| case.name.as_str()).collect();
        assert_eq!(names, ["copy.small/svadev0", "copy.large/svadev0", "copy.huge", "svadev/ended"]);
        assert_eq!(suite.test_cases[1].classname.as_ref().unwrap().as_str(), "svadev.copy");
        let TestCaseStatus::Skipped { message, .. } = &suite.test_cases[2].status else { panic!("{text}") };
        assert_eq!(message.as_ref().unwrap().as_str(), "no <page>");
        assert!(!text.contains('\x1b'), "{text}");
    }
}
