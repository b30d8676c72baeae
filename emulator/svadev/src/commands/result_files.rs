//! Results of tests as people and programs read them.
use std::path::Path;

use super::json::{check_writable, write_json};
use crate::cli::ResultFiles;
use svadev_launcher::{
    control::printable,
    exit::{Exit, Failure, OrExit as _, Outcome},
    files,
    ktap::{self, TestResult, Verdict},
    results::{Results, junit, kcidb},
    say::Style,
};

/// The files to write, checked before the work.
pub(crate) struct Writer<'a> {
    files: &'a ResultFiles,
    identity: kcidb::Identity,
}

impl<'a> Writer<'a> {
    /// Checks that all of them can be written.
    pub(crate) fn new(files: &'a ResultFiles) -> Outcome<Self> {
        let ResultFiles { json, junit, ktap, kcidb, kcidb_origin, kcidb_build } = files;
        for path in [json, junit, ktap, kcidb] {
            check_writable(path.as_deref())?;
        }
        let identity = kcidb::Identity::new(kcidb_origin, kcidb_build.as_deref());
        let identity = identity.map_err(|text| Failure::new(Exit::Usage, text))?;
        Ok(Self { files, identity })
    }

    /// Writes all of them.
    pub(crate) fn write(&self, results: &Results) -> Outcome<()> {
        let text = |path: &Path, text: String| files::write(path, text.as_bytes()).or_exit(Exit::Usage);
        let ResultFiles { json, junit, ktap, kcidb, .. } = self.files;
        if let Some(path) = json {
            text(path, results.to_json().or_exit(Exit::Usage)?)?;
        }
        if let Some(path) = junit {
            text(path, junit::document(results).or_exit(Exit::Usage)? + "\n")?;
        }
        if let Some(path) = ktap {
            text(path, ktap::document(&results.results))?;
        }
        if let Some(path) = kcidb {
            write_json(path, &kcidb::document(results, &self.identity))?;
        }
        Ok(())
    }
}

/// Prints a result as a line, and the lines of a test that failed below it.
pub(crate) fn print(result: &TestResult) {
    let word = match result.verdict {
        Verdict::Pass => Style::Good.on("ok  "),
        Verdict::Fail => Style::Bad.on("FAIL"),
        Verdict::Skip => Style::Aside.on("skip"),
    };
    let reason = if result.reason.is_empty() { String::new() } else { format!(": {}", result.reason) };
    out!("{word} {} ({:.3} s){reason}", result.name, result.seconds);
    if result.verdict == Verdict::Fail {
        for line in &result.diagnostics {
            out!("     {}", printable(line));
        }
    }
}
