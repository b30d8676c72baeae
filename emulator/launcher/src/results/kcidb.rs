//! KCIDB, the common reports of kernel CI systems: JSON of schema 5.3 (the package `kcidb-io` has the schema).
//!
//! Each test is an object with the path `svadev.SUITE.TEST`. A test belongs to a build, and a build to a checkout. If
//! the CI system has reported the build itself, `build` is its ID, and neither is written. Otherwise a checkout and a
//! build stand for the guest's kernel, so that the file is complete.
use std::time::Duration;

use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};
use serde_json::{Value, json};

use super::Results;
use crate::ktap::{TestResult, Verdict};

/// Longest excerpt of a log, characters.
const MAX_EXCERPT: usize = 16_384;

/// Whose the report is.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The CI system's name: lower-case letters, digits and `_`.
    pub origin: String,
    /// The ID of a build that the CI system has reported.
    pub build: Option<String>,
}

impl Identity {
    /// Checks the words.
    ///
    /// Errors: what KCIDB would not take, in words.
    pub fn new(origin: &str, build: Option<&str>) -> Result<Self, String> {
        let is_word = |text: &str| {
            !text.is_empty() && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
        };
        if !is_word(origin) {
            return Err(format!("invalid origin {origin:?}: use lower-case letters, digits and _"));
        }
        if let Some(id) = build
            && !id.split_once(':').is_some_and(|(word, rest)| is_word(word) && !rest.contains('\0'))
        {
            return Err(format!("invalid build ID {id:?}: write ORIGIN:ID"));
        }
        Ok(Self { origin: origin.to_owned(), build: build.map(str::to_owned) })
    }
}

/// The document.
pub fn document(results: &Results, identity: &Identity) -> Value {
    let Identity { origin, build } = identity;
    let plain = |text: &str| text.replace('\0', "");
    let release = match results.machine.release.as_str() {
        "" => "unknown",
        release => release,
    };
    let own = format!("{origin}:svadev-{}", plain(release));
    let build_id = build.clone().unwrap_or_else(|| own.clone());
    let run = results.started.timestamp_millis();
    let mut start = results.started;
    let mut tests = Vec::new();
    for (number, result) in (1..).zip(&results.results) {
        let mut test = json!({
            "id": format!("{origin}:svadev-{run}-{number}"),
            "origin": origin,
            "build_id": build_id,
            "path": path(&result.name),
            "comment": plain(&result.name),
            "status": status(result),
            "duration": result.seconds,
            "start_time": written(start),
            "environment": {"comment": environment(results)},
        });
        if !result.reason.is_empty() {
            test["misc"] = json!({"reason": result.reason});
        }
        if !result.diagnostics.is_empty() {
            test["log_excerpt"] =
                plain(&result.diagnostics.join("\n")).chars().take(MAX_EXCERPT).collect::<String>().into();
        }
        tests.push(test);
        start = after(start, result.seconds);
    }
    if !results.failure.is_empty() {
        tests.push(json!({
            "id": format!("{origin}:svadev-{run}-ended"), "origin": origin, "build_id": build_id,
            "path": "svadev.ended", "status": "MISS", "start_time": written(results.started),
            "comment": plain(&results.failure),
        }));
    }
    let mut document = json!({"version": {"major": 5, "minor": 3}, "tests": tests});
    if build.is_none() {
        document["checkouts"] = json!([{
            "id": own, "origin": origin, "comment": format!("Linux {}", plain(release)), "valid": true,
        }]);
        document["builds"] = json!([{
            "id": own, "checkout_id": own, "origin": origin, "architecture": "x86_64", "status": "PASS",
        }]);
    }
    document
}

/// A path has words of letters, digits, `_` and `-` with points between them.
fn path(name: &str) -> String {
    let word = |c: char| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' };
    let words = name.split(['.', '/']).filter(|part| !part.is_empty());
    let words: Vec<String> = words.map(|part| part.chars().map(word).collect()).collect();
    format!("svadev.{}", words.join(".")).trim_end_matches('.').to_owned()
}

fn status(result: &TestResult) -> &'static str {
    match result.verdict {
        Verdict::Pass => "PASS",
        Verdict::Skip => "SKIP",
        Verdict::Fail => "FAIL",
    }
}

fn environment(results: &Results) -> String {
    let machine = &results.machine;
    format!(
        "QEMU ({}), {} CPUs, {} page-table levels, IOMMU caching {}",
        machine.accel, machine.cpus, machine.levels, machine.caching
    )
}

fn written(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::Millis, true)
}

fn after(start: DateTime<Utc>, seconds: f64) -> DateTime<Utc> {
    let time = Duration::try_from_secs_f64(seconds).ok().and_then(|time| TimeDelta::from_std(time).ok());
    time.and_then(|time| start.checked_add_signed(time)).unwrap_or(start)
}

#[cfg(test)]
mod tests {
    use super::super::tests::{check, result, sample};
    use super::*;

    #[test]
    fn the_document_follows_the_schema_with_and_without_a_build_of_ones_own() {
        let mut results = sample();
        results.results.push(result("odd näme//x.@2", Verdict::Fail));
        results.failure = "the guest hangs".into();
        for build in [None, Some("ci_2:b/1")] {
            let document = document(&results, &Identity::new("ci_2", build).unwrap());
            check("kcidb.json", &document).unwrap();
            assert_eq!(document["builds"].is_null(), build.is_some());
            let tests = document["tests"].as_array().unwrap();
            let brief: Vec<_> =
                tests.iter().map(|t| (t["path"].as_str().unwrap(), t["status"].as_str().unwrap())).collect();
            assert_eq!(
                brief,
                [
                    ("svadev.copy.small.svadev0", "PASS"),
                    ("svadev.copy.large.svadev0", "FAIL"),
                    ("svadev.copy.huge", "SKIP"),
                    ("svadev.odd_n_me.x._2", "FAIL"),
                    ("svadev.ended", "MISS"),
                ]
            );
            assert_eq!(tests[1]["start_time"], "2026-11-21T16:04:05.250Z");
        }
    }

    #[test]
    fn what_the_format_does_not_take_is_named() {
        for (origin, build, words) in [
            ("My CI", None, "lower-case"),
            ("", None, "lower-case"),
            ("a", Some("x"), "ORIGIN:ID"),
            ("a", Some("B:1"), "ORIGIN:ID"),
        ] {
            assert!(Identity::new(origin, build).unwrap_err().contains(words));
        }
    }

    #[test]
    fn a_long_log_is_cut() {
        let mut results = sample();
        results.results[1].diagnostics = vec!["é\0".repeat(30_000)];
        let document = document(&results, &Identity::new("a", None).unwrap());
        check("kcidb.json", &document).unwrap();
        assert_eq!(document["tests"][1]["log_excerpt"].as_str().unwrap().chars().count(), MAX_EXCERPT);
    }
}
