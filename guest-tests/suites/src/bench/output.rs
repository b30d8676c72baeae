//! The lines that the launcher reads: one JSON object each, flushed at once.
use std::io::Write;

use serde_json::{Map, Value, json};

use super::stats::Summary;
use crate::harness::Verdict;

/// A figure of the table.
#[derive(Clone, Debug)]
pub struct Row {
    /// What was measured, within its suite.
    pub case: String,
    /// How much.
    pub value: f64,
    /// In what: `GB/s`, `us`, `ns`, `M/s`, `pages/s`.
    pub unit: &'static str,
    /// What it is compared with, and that figure in the same unit. The ratio is value over baseline.
    pub baseline: Option<(&'static str, f64)>,
    /// The samples that the value is the median of.
    pub summary: Option<Summary>,
    /// The ratio of `design/performance` that this row is about, `G1` to `G7`.
    pub goal: Option<&'static str>,
    /// What a reader has to know to read it.
    pub note: Option<String>,
}

impl Row {
    /// A figure that is the median of samples.
    #[must_use]
    pub fn median(case: impl Into<String>, summary: Summary, unit: &'static str) -> Self {
        Self { summary: Some(summary), ..Self::single(case, summary.p50, unit) }
    }

    /// A figure of its own.
    #[must_use]
    pub fn single(case: impl Into<String>, value: f64, unit: &'static str) -> Self {
        Self { case: case.into(), value, unit, baseline: None, summary: None, goal: None, note: None }
    }

    /// With what it is compared with.
    #[must_use]
    pub fn against(self, baseline: &'static str, value: f64) -> Self {
        Self { baseline: Some((baseline, value)), ..self }
    }

    /// With the goal it is about.
    #[must_use]
    pub fn goal(self, goal: &'static str) -> Self {
        Self { goal: Some(goal), ..self }
    }

    /// With what a reader has to know.
    #[must_use]
    pub fn note(self, note: impl Into<String>) -> Self {
        Self { note: Some(note.into()), ..self }
    }

    fn json(&self, suite: &str) -> Value {
        let mut row = Map::new();
        let mut put = |name: &str, value: Value| _ = row.insert(name.into(), value);
        put("suite", suite.into());
        put("case", self.case.as_str().into());
        put("value", rounded(self.value));
        put("unit", self.unit.into());
        put("baseline", self.baseline.map(|(name, _)| name).into());
        put("baseline_value", self.baseline.map_or(Value::Null, |(_, value)| rounded(value)));
        let ratio = self.baseline.filter(|&(_, value)| value > 0.0).map(|(_, value)| self.value / value);
        put("ratio", ratio.map_or(Value::Null, rounded));
        if let Some(s) = self.summary {
            put("n", s.n.into());
            for (name, value) in [("min", s.min), ("p50", s.p50), ("p90", s.p90), ("p99", s.p99), ("max", s.max)] {
                put(name, rounded(value));
            }
        } else {
            put("n", 1.into());
        }
        if let Some(goal) = self.goal {
            put("goal", goal.into());
        }
        if let Some(note) = &self.note {
            put("note", note.as_str().into());
        }
        Value::Object(row)
    }
}

/// Five digits that count: more would claim more than a shared machine can measure.
fn rounded(value: f64) -> Value {
    if !value.is_normal() {
        return json!(0.0);
    }
    let digits = 4.0 - value.abs().log10().floor();
    let scale = 10_f64.powf(digits);
    json!((value * scale).round() / scale)
}

/// Writes the lines.
pub struct Output<W>(W);

impl<W: Write> Output<W> {
    /// Lines on `out`.
    pub fn new(out: W) -> Self {
        Self(out)
    }

    /// A case begins: how many are done, of how many.
    ///
    /// # Errors
    /// The output cannot be written; so for every method.
    pub fn progress(&mut self, text: &str, done: usize, of: usize) -> Verdict {
        self.line(&json!({ "progress": text, "done": done, "of": of }))
    }

    /// A figure.
    pub fn row(&mut self, suite: &str, row: &Row) -> Verdict {
        self.line(&json!({ "row": row.json(suite) }))
    }

    /// A place at which the launcher notes the backend's counters.
    pub fn counters(&mut self, label: &str) -> Verdict {
        self.line(&json!({ "counters": label }))
    }

    /// All is said.
    pub fn done(&mut self) -> Verdict {
        self.line(&json!({ "done": true }))
    }

    fn line(&mut self, value: &Value) -> Verdict {
        // One write, so that processes that share the stream do not mix their lines.
        Ok(self.0.write_all(format!("{value}\n").as_bytes()).and_then(|()| self.0.flush())?)
    }
}

#[cfg(test)]
mod tests {
    use super::super::stats::Samples;
    use super::*;

    fn lines(write: impl FnOnce(&mut Output<&mut Vec<u8>>)) -> Vec<Value> {
        let mut bytes = Vec::new();
        write(&mut Output::new(&mut bytes));
        String::from_utf8(bytes).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    #[test]
    fn lines_have_the_fields_that_the_launcher_reads() {
        let samples: Samples = [1.0, 2.0, 4.0].into_iter().collect();
        let lines = lines(|out| {
            out.progress("copy 64 B", 0, 7).unwrap();
            let row = Row::median("64 B", samples.summary().unwrap(), "GB/s").against("guest memcpy", 8.0).goal("G1");
            out.row("copy", &row.note("warm")).unwrap();
            out.row("trap", &Row::single("x", 1.5, "us")).unwrap();
            out.counters("a: begin").unwrap();
            out.done().unwrap();
        });
        assert_eq!(lines[0], json!({ "progress": "copy 64 B", "done": 0, "of": 7 }));
        let row = json!({
            "suite": "copy", "case": "64 B", "value": 2.0, "unit": "GB/s", "baseline": "guest memcpy",
            "baseline_value": 8.0, "ratio": 0.25, "n": 3, "min": 1.0, "p50": 2.0, "p90": 4.0, "p99": 4.0, "max": 4.0,
            "goal": "G1", "note": "warm",
        });
        assert_eq!(lines[1], json!({ "row": row }));
        let row = json!({
            "suite": "trap", "case": "x", "value": 1.5, "unit": "us", "baseline": null, "baseline_value": null,
            "ratio": null, "n": 1,
        });
        assert_eq!(lines[2], json!({ "row": row }));
        assert_eq!(lines[3], json!({ "counters": "a: begin" }));
        assert_eq!(lines[4], json!({ "done": true }));
    }

    #[test]
    fn figures_have_five_digits() {
        for (value, expected) in
            [(123_456_789.0, 123_460_000.0), (0.001_234_567, 0.001_234_6), (0.0, 0.0), (-2.5, -2.5)]
        {
            let rounded = rounded(value).as_f64().unwrap();
            assert!((rounded - expected).abs() <= expected.abs() * 1e-9, "{value}: {rounded}");
        }
        assert_eq!(rounded(f64::NAN), json!(0.0));
    }
}
