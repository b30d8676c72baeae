//! The report of a run: rows, the machine, counters, and the ways to show them.
mod bars;
mod escape;
pub mod html;
mod svg;
pub mod table;

use std::path::Path;

use anyhow::{anyhow, ensure};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::machine::Machine;
use super::row::{Goal, Row, Verdict};

/// Version of the file.
const FORMAT: u32 = 1;
/// Longest file that is read, bytes.
const MAX_FILE: u64 = 64 << 20;

/// A run, as `--json` writes it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Version of the layout, `FORMAT`.
    pub format: u32,
    /// Where and when.
    pub machine: Machine,
    /// One object a row.
    pub rows: Vec<Row>,
    /// The backend's counters at places that the guest program marked: what was counted since the place before.
    #[serde(default)]
    pub counters: Vec<Mark>,
}

/// Counters at one place.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Mark {
    /// The place's name.
    pub label: String,
    /// What was counted since the last one, by path, where it is not 0.
    pub counted: std::collections::BTreeMap<String, u64>,
}

impl Report {
    /// A report of these rows.
    pub fn new(machine: Machine, rows: Vec<Row>, counters: Vec<Mark>) -> Self {
        Self { format: FORMAT, machine, rows, counters }
    }

    /// Its JSON text with a line for each row, so that files can be compared by eye, too.
    pub fn to_json(&self) -> serde_json::Result<String> {
        let lines = |values: Vec<String>| match values.is_empty() {
            true => "[]".to_owned(),
            false => format!("[\n  {}\n]", values.join(",\n  ")),
        };
        let rows = self.rows.iter().map(serde_json::to_string).collect::<serde_json::Result<_>>()?;
        let marks = self.counters.iter().map(serde_json::to_string).collect::<serde_json::Result<_>>()?;
        let machine = serde_json::to_string(&self.machine)?;
        Ok(format!(
            "{{\"format\": {}, \"machine\": {machine},\n\"rows\": {},\n\"counters\": {}}}\n",
            self.format,
            lines(rows),
            lines(marks)
        ))
    }

    /// Reads a file with what `to_json` gives. Errors name the file, the cause and then the remedy.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let name = path.display();
        let remedy = "use a file that `svadev bench --json FILE` wrote";
        let size = path.metadata().map_err(|error| anyhow!("cannot read {name}: {error}: {remedy}"))?.len();
        ensure!(size <= MAX_FILE, "{name} is too large for a report ({size} bytes): {remedy}");
        let text = std::fs::read_to_string(path).map_err(|error| anyhow!("cannot read {name}: {error}: {remedy}"))?;
        let value: Value =
            serde_json::from_str(&text).map_err(|error| anyhow!("{name} is not JSON: {error}: {remedy}"))?;
        let format = value["format"].as_u64();
        ensure!(format.is_some(), "{name} is JSON, but not a report: {remedy}");
        ensure!(
            format == Some(FORMAT.into()),
            "{name} has format {}, but this version reads {FORMAT}: measure again with it",
            value["format"]
        );
        serde_json::from_value(value).map_err(|error| anyhow!("{name} is damaged: {error}: {remedy}"))
    }

    /// Each goal with its rows.
    pub fn goals(&self) -> impl Iterator<Item = (Goal, Vec<&Row>)> {
        Goal::ALL
            .into_iter()
            .map(|goal| (goal, self.rows.iter().filter(|row| row.goal == Some(goal) && row.target.is_some()).collect()))
    }
}

/// A goal is reached if all of its rows are; `None` where nothing was measured.
pub fn verdict(rows: &[&Row]) -> Option<Verdict> {
    let all = rows.iter().filter_map(|row| row.verdict).collect::<Vec<_>>();
    match all.as_slice() {
        [] => None,
        some if some.contains(&Verdict::Missed) => Some(Verdict::Missed),
        _ => Some(Verdict::Reached),
    }
}

/// A verdict in a table, and where there is none.
pub fn verdict_text(verdict: Option<Verdict>) -> &'static str {
    verdict.map_or("—", Verdict::name)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::row::{Place, Suite, Target};

    /// A small report of every kind of row.
    pub(crate) fn sample() -> Report {
        let copy = |case: &str, value, baseline, limit| {
            let row = Row {
                baseline: Some("memcpy".into()),
                baseline_value: Some(baseline),
                ratio: Some(value / baseline),
                ..Row::new(Place::Native, Suite::Copy, case, value, "GB/s")
            };
            row.aiming(Goal::G1, Target::ratio_at_least(limit)).plotted("by size", "device", value * 100.0, "bytes")
        };
        let rows = vec![
            copy("4 KiB", 5.0, 10.0, 0.8),
            copy("64 KiB", 9.9, 10.0, 0.95),
            Row::new(Place::Native, Suite::Invalidate, "one <page>", 1.5, "us")
                .aiming(Goal::G7, Target::value_at_most(2.0)),
            Row {
                note: Some("slow & sure".into()),
                ..Row::new(Place::Guest, Suite::Trap, "register read", 77.0, "us")
            },
        ];
        let machine = Machine { cpu: "a & b".into(), ..Machine::default() };
        let counted = [("unit.walks".to_owned(), 3)].into();
        Report::new(machine, rows, vec![Mark { label: "after copy".into(), counted }])
    }

    #[test]
    fn a_report_is_read_as_it_was_written_one_row_a_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.json");
        let report = sample();
        std::fs::write(&path, report.to_json().unwrap()).unwrap();
        assert_eq!(Report::read(&path).unwrap(), report);
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text.lines().filter(|line| line.contains("\"case\"")).count(), report.rows.len());
        let empty = Report::new(Machine::default(), Vec::new(), Vec::new());
        std::fs::write(&path, empty.to_json().unwrap()).unwrap();
        assert!(Report::read(&path).unwrap().rows.is_empty());
    }

    #[test]
    fn a_file_that_is_not_a_report_is_named_with_cause_and_remedy() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("b.json");
        let message = || format!("{:#}", Report::read(&path).unwrap_err());
        assert!(message().contains("No such file") && message().contains("bench --json"), "{}", message());
        for (text, cause) in [
            ("{", "is not JSON"),
            ("[]", "not a report"),
            (r#"{"format": 9}"#, "format 9"),
            (r#"{"format": 1, "machine": 3}"#, "is damaged"),
        ] {
            std::fs::write(&path, text).unwrap();
            assert!(message().contains(cause) && message().contains("b.json"), "{}", message());
        }
    }

    #[test]
    fn a_goal_is_missed_if_one_of_its_rows_is() {
        let report = sample();
        let verdicts: Vec<_> = report.goals().map(|(goal, rows)| (goal, verdict(&rows))).collect();
        assert_eq!(verdicts[0], (Goal::G1, Some(Verdict::Missed)));
        assert_eq!(verdicts[1], (Goal::G2, None), "nothing was measured");
        assert_eq!(verdicts[6], (Goal::G7, Some(Verdict::Reached)));
    }
}
