//! The results of a test run as a file: for scripts (JSON, `docs/schema/test.json`), for CI (JUnit), for kernel CI
//! (KCIDB, KTAP), and joined from the shards of one run.
pub mod junit;
pub mod kcidb;
pub mod merge;

use std::path::Path;

use anyhow::{Context as _, anyhow, ensure};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::{
    files,
    ktap::{TestResult, Verdict},
    topology::{Accel, Topology},
};

/// Version of the layout. It is counted up when a reader of the one before would misread the next one.
pub const FORMAT: u32 = 1;
/// Longest file that is read, bytes.
const MAX_FILE: u64 = 256 << 20;

/// What a file holds, its `kind`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// Results of `svadev test`.
    #[serde(rename = "svadev-test")]
    Test,
    /// Figures of `svadev demo`.
    #[serde(rename = "svadev-demo")]
    Demo,
    /// How `svadev vm` ended.
    #[serde(rename = "svadev-vm")]
    Vm,
    /// Counters of `svadev serve`.
    #[serde(rename = "svadev-serve")]
    Serve,
}

/// A file's frame around its content: the version of the layout, and what it is.
#[derive(Clone, Debug, Serialize)]
pub struct Framed<'a, T> {
    format: u32,
    kind: Kind,
    version: &'static str,
    #[serde(flatten)]
    content: &'a T,
}

impl<'a, T> Framed<'a, T> {
    /// Around this content.
    pub fn new(kind: Kind, content: &'a T) -> Self {
        Self { format: FORMAT, kind, version: env!("CARGO_PKG_VERSION"), content }
    }
}

/// A part of a run: `part` of `parts`, counted from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shard {
    /// Which part.
    pub part: u32,
    /// Of how many.
    pub parts: u32,
}

impl std::str::FromStr for Shard {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parse = |(part, parts): (&str, &str)| Some((part.parse().ok()?, parts.parse().ok()?));
        match text.split_once('/').and_then(parse) {
            Some((part, parts)) if (1..=parts).contains(&part) => Ok(Self { part, parts }),
            _ => Err("invalid shard: write I/N, with I from 1 to N".into()),
        }
    }
}

impl std::fmt::Display for Shard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.part, self.parts)
    }
}

/// The machine that the tests ran on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Machine {
    /// The guest kernel's release; empty if it did not come up.
    pub release: String,
    /// How QEMU executed it.
    pub accel: String,
    /// Virtual CPUs.
    pub cpus: u32,
    /// Memory, bytes.
    pub memory: u64,
    /// Levels of its page tables.
    pub levels: u32,
    /// The IOMMU's caching mode.
    pub caching: String,
    /// Accelerators.
    pub functions: usize,
}

impl Machine {
    /// The machine of a topology, executed like this.
    pub fn of(topology: &Topology, accel: Accel, release: &str) -> Self {
        let machine = &topology.machine;
        Self {
            release: release.to_owned(),
            accel: accel.qemu_name().unwrap_or("auto").to_owned(),
            cpus: machine.cpus,
            memory: machine.memory_bytes,
            levels: machine.levels.count().into(),
            caching: caching_of(topology),
            functions: topology.accelerators.len(),
        }
    }
}

/// The results of a run, or of one part of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Results {
    /// Version of the layout, [`FORMAT`].
    pub format: u32,
    /// What this is.
    pub kind: Kind,
    /// This program's version.
    pub version: String,
    /// When the run began.
    pub started: DateTime<Utc>,
    /// How long it took, in seconds, with all that is around the tests.
    pub seconds: f64,
    /// The exit status.
    pub status: u8,
    /// Why there is a status that no test gave: the guest hung, QEMU died. Empty otherwise.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub failure: String,
    /// Which tests were chosen, as on the command line, without the shard.
    pub chosen: Vec<String>,
    /// Which part of the run this is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shard: Option<Shard>,
    /// The machine.
    pub machine: Machine,
    /// One object for each test.
    pub results: Vec<TestResult>,
}

impl Results {
    /// How many tests ended so.
    pub fn count(&self, verdict: Verdict) -> usize {
        self.results.iter().filter(|result| result.verdict == verdict).count()
    }

    /// The JSON text.
    ///
    /// Errors: none that occurs in practice; a number that JSON does not have.
    pub fn to_json(&self) -> anyhow::Result<String> {
        Ok(serde_json::to_string_pretty(self)? + "\n")
    }

    /// Reads a file that `--json` wrote.
    ///
    /// Errors: it cannot be read, or is none.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let name = path.display();
        let remedy = "use a file that `svadev test --json FILE` wrote";
        let bytes = files::read_start(path, MAX_FILE)?.with_context(|| format!("{name}: no such file: {remedy}"))?;
        let value: serde_json::Value =
            serde_json::from_slice(&bytes).map_err(|error| anyhow!("{name} is not JSON: {error}: {remedy}"))?;
        ensure!(value["kind"] == "svadev-test", "{name} has no test results: {remedy}");
        ensure!(
            value["format"] == FORMAT,
            "{name} has format {}, but this version reads {FORMAT}: run the tests again with it",
            value["format"]
        );
        serde_json::from_value(value).map_err(|error| anyhow!("{name} is damaged: {error}: {remedy}"))
    }
}

/// The caching mode of the units; one for each if they differ.
fn caching_of(topology: &Topology) -> String {
    let mut modes: Vec<_> = topology.iommus.iter().map(|iommu| format!("{:?}", iommu.unit.caching)).collect();
    modes.dedup();
    modes.join("+").to_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    pub(super) fn result(name: &str, verdict: Verdict) -> TestResult {
        let diagnostics =
            if verdict == Verdict::Fail { vec!["want 1".into(), "got \x1b[2".into()] } else { Vec::new() };
        let reason = if verdict == Verdict::Skip { "no <page>".into() } else { String::new() };
        TestResult { name: name.into(), verdict, seconds: 0.25, reason, diagnostics, reports: Vec::new() }
    }

    pub(super) fn sample() -> Results {
        Results {
            format: FORMAT,
            kind: Kind::Test,
            version: "0.1.0".into(),
            started: "2026-11-21T16:04:05Z".parse().unwrap(),
            seconds: 12.5,
            status: 1,
            failure: String::new(),
            chosen: vec!["copy".into()],
            shard: Some(Shard { part: 1, parts: 2 }),
            machine: Machine { release: "7.3.4".into(), accel: "tcg".into(), cpus: 2, levels: 5, ..Machine::default() },
            results: vec![
                result("copy.small/svadev0", Verdict::Pass),
                result("copy.large/svadev0", Verdict::Fail),
                result("copy.huge", Verdict::Skip),
            ],
        }
    }

    /// Checks a value against a schema of `docs/schema`.
    pub(super) fn check(schema: &str, value: &Value) -> Result<(), String> {
        let path = format!("{}/../../docs/schema/{schema}", env!("CARGO_MANIFEST_DIR"));
        let text = std::fs::read_to_string(&path).unwrap();
        let mut compiler = boon::Compiler::new();
        compiler.enable_format_assertions();
        compiler.add_resource(schema, serde_json::from_str(&text).unwrap()).unwrap();
        let mut schemas = boon::Schemas::new();
        let index = compiler.compile(schema, &mut schemas).unwrap();
        schemas.validate(value, index).map_err(|error| format!("{error:#}"))
    }

    #[test]
    fn what_is_written_follows_the_schema_and_is_read_back() {
        let results = sample();
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("r.json");
        std::fs::write(&file, results.to_json().unwrap()).unwrap();
        assert_eq!(Results::read(&file).unwrap(), results);
        let value = serde_json::to_value(&results).unwrap();
        check("test.json", &value).unwrap();
        // Every object is closed, so a field that the schema does not know is noticed.
        for (pointer, key) in [("", "x"), ("/machine", "x"), ("/results/0", "x"), ("/shard", "x")] {
            let mut wrong = value.clone();
            wrong.pointer_mut(pointer).unwrap()[key] = json!(1);
            assert!(check("test.json", &wrong).is_err(), "{pointer}/{key}");
        }
        for (pointer, bad) in [("/format", json!(2)), ("/results/0/verdict", json!("ok")), ("/started", json!("today"))]
        {
            let mut wrong = value.clone();
            *wrong.pointer_mut(pointer).unwrap() = bad;
            assert!(check("test.json", &wrong).is_err(), "{pointer}");
        }
    }

    #[test]
    fn the_other_files_follow_their_schemas() {
        let figures =
            json!({"figures": [{"name": "copy", "value": 1.5, "unit": "GB/s"}, {"name": "unit.walks", "value": 3}]});
        check("demo.json", &serde_json::to_value(Framed::new(Kind::Demo, &figures)).unwrap()).unwrap();
        let counters = json!({"counters": {"units": [{"bdf": "00:05.0", "walks": 3}], "functions": []}});
        check("serve.json", &serde_json::to_value(Framed::new(Kind::Serve, &counters)).unwrap()).unwrap();
        let end = json!({"status": 3, "by": "program", "kernel_log": ["BUG: x"]});
        check("vm.json", &serde_json::to_value(Framed::new(Kind::Vm, &end)).unwrap()).unwrap();
        assert!(check("demo.json", &figures).is_err() && check("serve.json", &counters).is_err());
    }

    #[test]
    fn a_file_that_holds_no_results_is_named_with_cause_and_remedy() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("b.json");
        let message = || format!("{:#}", Results::read(&path).unwrap_err());
        assert!(message().contains("no such file"), "{}", message());
        for (text, cause) in [
            ("{", "is not JSON"),
            ("[]", "no test results"),
            (r#"{"kind": "svadev-test", "format": 9}"#, "format 9"),
            (r#"{"kind": "svadev-test", "format": 1}"#, "is damaged"),
        ] {
            std::fs::write(&path, text).unwrap();
            assert!(message().contains(cause) && message().contains("b.json"), "{}", message());
        }
    }
}
