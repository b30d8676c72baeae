//! What to run: `/svadev/job.json`.
use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Result, ensure};
use serde::Deserialize;

/// What kind of job this is.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Mode {
    /// The smoke suite; its output is KTAP.
    Test,
    /// The demonstration; its output is JSON lines.
    Demo,
    /// The benchmarks; their output is JSON lines.
    Bench,
    /// A program of the user's.
    Run,
    /// A shell for the user.
    Shell,
}

/// The job, as the launcher wrote it. Unknown fields are refused: the two sides are built together.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Job {
    /// What kind of job.
    pub(crate) mode: Mode,
    /// Which tests: those whose name contains this. Absent or empty: all.
    #[serde(default)]
    pub(crate) filter: Option<String>,
    /// Program and arguments of [`Mode::Run`]; further arguments of the other programs.
    #[serde(default)]
    pub(crate) argv: Vec<String>,
    /// Folder to run in; `/` when absent.
    #[serde(default)]
    pub(crate) cwd: Option<String>,
    /// Environment variables to add.
    #[serde(default)]
    pub(crate) env: BTreeMap<String, String>,
    /// Standard input of the program is a pipe, and what comes in on the port goes into it by [`crate::frames`]: a serial port
    /// cannot say where input ends.
    #[serde(default)]
    pub(crate) framed_input: bool,
    /// Mount the host's shared folder.
    #[serde(default)]
    pub(crate) share: bool,
    /// What the module is loaded with.
    #[serde(default)]
    pub(crate) module_parameters: String,
    /// What to multiply every timeout by; more for slow machines.
    #[serde(default = "unscaled")]
    pub(crate) timeout_scale: f64,
}

fn unscaled() -> f64 {
    1.0
}

/// Largest sensible [`Job::timeout_scale`].
const MAX_TIMEOUT_SCALE: f64 = 1000.0;

impl Job {
    /// Read a job.
    ///
    /// # Errors
    /// Not a job, or one that cannot be run.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        let job: Self = serde_json::from_str(text)?;
        ensure!(
            job.timeout_scale > 0.0 && job.timeout_scale <= MAX_TIMEOUT_SCALE,
            "timeout_scale is {}: it must be above 0 and at most {MAX_TIMEOUT_SCALE}",
            job.timeout_scale
        );
        ensure!(job.mode != Mode::Run || !job.argv.is_empty(), "mode \"run\" needs a program in \"argv\"");
        let nul = |s: &str| s.contains('\0');
        ensure!(
            !job.argv.iter().any(|s| nul(s)) && !job.env.iter().any(|(k, v)| nul(k) || nul(v) || k.contains('=')),
            "an argument or environment variable holds a NUL or a name with '='"
        );
        Ok(job)
    }

    /// A time limit on this machine.
    pub(crate) fn scaled(&self, limit: Duration) -> Duration {
        limit.mul_f64(self.timeout_scale)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_job_is_read() {
        let job = Job::parse(
            r#"{"mode": "run", "filter": "x", "argv": ["prog", "a b"], "cwd": "/mnt/share", "env": {"K": "v"},
                "share": true, "module_parameters": "plant=1", "timeout_scale": 2}"#,
        )
        .unwrap();
        assert_eq!(job.mode, Mode::Run);
        assert_eq!(job.argv, ["prog", "a b"]);
        assert_eq!(job.cwd.as_deref(), Some("/mnt/share"));
        assert_eq!(job.env["K"], "v");
        assert!(job.share);
        assert_eq!(job.module_parameters, "plant=1");
        assert_eq!(job.scaled(Duration::from_secs(5)), Duration::from_secs(10));
    }

    #[test]
    fn a_benchmark_takes_arguments() {
        let job = Job::parse(r#"{"mode": "bench", "argv": ["--suite", "copy", "--quick"]}"#).unwrap();
        assert_eq!((job.mode, job.argv.len()), (Mode::Bench, 3));
    }

    #[test]
    fn absent_and_null_fields_have_defaults() {
        let job = Job::parse(r#"{"mode": "test", "filter": null, "cwd": null}"#).unwrap();
        assert_eq!(job.mode, Mode::Test);
        assert!(job.filter.is_none() && job.argv.is_empty() && !job.share);
        assert_eq!(job.scaled(Duration::from_secs(5)), Duration::from_secs(5));
    }

    #[test]
    fn what_cannot_be_run_is_refused() {
        for text in [
            "",
            "{}",
            r#"{"mode": "dance"}"#,
            r#"{"mode": "run"}"#,
            r#"{"mode": "test", "timeout_scale": 0}"#,
            r#"{"mode": "test", "timeout_scale": -1}"#,
            r#"{"mode": "test", "timeout_scale": 1e9}"#,
            r#"{"mode": "test", "fliter": "x"}"#,
            r#"{"mode": "run", "argv": ["a\u0000b"]}"#,
            r#"{"mode": "run", "argv": ["a"], "env": {"A=B": "c"}}"#,
        ] {
            assert!(Job::parse(text).is_err(), "{text}");
        }
    }
}
