//! What the guest's program says: rows, progress, and places at which the backend's counters are noted.
//!
//! The guest is not trusted: what is no row is reported and left out, and there is a limit to everything.
use std::collections::BTreeMap;

use serde_json::Value;

use super::report::Mark;
use super::row::{Goal, Place, Row, Suite};
use svadev_host::CounterSource;

/// Most rows of a guest.
const MAX_ROWS: usize = 2000;
/// Most places.
const MAX_MARKS: usize = 200;
/// Longest text, in characters.
const MAX_TEXT: usize = 120;

/// One object of the guest's.
#[derive(Clone, Debug, PartialEq)]
pub enum Word {
    /// It is here, of so many cases.
    Progress {
        /// What it does now.
        text: String,
        /// How many cases are done.
        done: u64,
        /// Of how many.
        of: u64,
    },
    /// It measured something.
    Row(Box<Row>),
    /// Note the counters now.
    Counters(String),
    /// Everything was measured.
    Done,
    /// Something for the reader, such as a program's standard error.
    Text(String),
    /// None of these.
    Unknown,
}

/// Text without what could move a terminal's cursor, and not too much of it.
fn text(value: &Value) -> Option<String> {
    let clean = value.as_str()?.chars().take(MAX_TEXT).map(|c| if c.is_control() { ' ' } else { c });
    Some(clean.collect())
}

impl Word {
    /// From an object.
    pub fn parse(object: &Value) -> Self {
        let parse = || {
            if let Some(label) = text(&object["counters"]) {
                return Some(Self::Counters(label));
            }
            if let Some(progress) = text(&object["progress"]) {
                let number = |key: &str| object[key].as_u64().unwrap_or(0);
                return Some(Self::Progress { text: progress, done: number("done"), of: number("of") });
            }
            if object["row"].is_object() {
                return row(&object["row"]).map(|row| Self::Row(Box::new(row)));
            }
            if object["done"] == true {
                return Some(Self::Done);
            }
            text(&object["text"]).map(Self::Text)
        };
        parse().unwrap_or(Self::Unknown)
    }
}

/// A row. Its verdict is ours to find.
fn row(value: &Value) -> Option<Row> {
    let suite: Suite = serde_json::from_value(value["suite"].clone()).ok()?;
    let figure = |key: &str| value[key].as_f64().filter(|figure| figure.is_finite());
    let row = Row {
        baseline: text(&value["baseline"]),
        baseline_value: figure("baseline_value"),
        ratio: figure("ratio"),
        n: value["n"].as_u64(),
        min: figure("min"),
        p50: figure("p50"),
        p99: figure("p99"),
        note: text(&value["note"]),
        ..Row::new(Place::Guest, suite, text(&value["case"])?, figure("value")?, &text(&value["unit"])?)
    };
    let goal: Option<Goal> = serde_json::from_value(value["goal"].clone()).ok();
    Some(match goal.and_then(|goal| Some((goal, goal.of_guest()?))) {
        Some((goal, target)) => row.aiming(goal, target),
        None => row,
    })
}

/// Rows and marks of a run.
#[derive(Debug, Default)]
pub struct Collected {
    /// What was measured.
    pub rows: Vec<Row>,
    /// Counters between places.
    pub marks: Vec<Mark>,
    /// The program said that it was through.
    pub done: bool,
    source: Option<CounterSource>,
    before: BTreeMap<String, u64>,
}

impl Collected {
    /// Marks read the counters here.
    pub fn set_source(&mut self, source: CounterSource) {
        self.before = flat(&source);
        self.source = Some(source);
    }

    /// Takes what is kept of a word. False where there was too much.
    pub fn take(&mut self, word: &Word) -> bool {
        match word {
            Word::Row(row) if self.rows.len() < MAX_ROWS => self.rows.push((**row).clone()),
            Word::Counters(label) if self.marks.len() < MAX_MARKS => self.mark(label),
            Word::Row(_) | Word::Counters(_) => return false,
            Word::Done => self.done = true,
            Word::Progress { .. } | Word::Text(_) | Word::Unknown => {}
        }
        true
    }

    fn mark(&mut self, label: &str) {
        let Some(source) = &self.source else { return };
        let now = flat(source);
        let since = |(name, count): (&String, &u64)| {
            let more = count.saturating_sub(self.before.get(name).copied().unwrap_or(0));
            (more != 0).then(|| (name.clone(), more))
        };
        self.marks.push(Mark { label: label.to_owned(), counted: now.iter().filter_map(since).collect() });
        self.before = now;
    }
}

/// Counters by their path: `unit.walks`, `00:06.0.bytes`.
fn flat(source: &CounterSource) -> BTreeMap<String, u64> {
    let counters = source.read();
    let mut all = BTreeMap::new();
    let mut add = |path: &str, value: Result<Value, serde_json::Error>| {
        let Ok(Value::Object(object)) = value else { return };
        all.extend(object.iter().filter_map(|(name, value)| Some((format!("{path}.{name}"), value.as_u64()?))));
    };
    for (index, unit) in counters.units.iter().enumerate() {
        // Names that are the same in every machine with one unit.
        let name = if counters.units.len() == 1 { "unit".to_owned() } else { format!("unit{index}") };
        add(&name, serde_json::to_value(&unit.counters));
    }
    for function in &counters.functions {
        add(&function.bdf, serde_json::to_value(function.counters));
    }
    all
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::row::Verdict;

    #[test]
    fn what_the_program_says_is_understood() {
        let progress = Word::parse(&json!({"progress": "copy 64 KiB", "done": 12, "of": 80}));
        assert_eq!(progress, Word::Progress { text: "copy 64 KiB".into(), done: 12, of: 80 });
        assert_eq!(Word::parse(&json!({"counters": "after copy"})), Word::Counters("after copy".into()));
        assert_eq!(Word::parse(&json!({"done": true})), Word::Done);
        let Word::Row(row) = Word::parse(&json!({"row": {"suite": "fault", "case": "grouped", "value": 12.5,
            "unit": "pages/s", "baseline": "one at a time", "baseline_value": 1.25, "ratio": 10.0, "n": 7, "min": 1.0,
            "p50": 2.0, "p99": 3.0, "goal": "G4"}}))
        else {
            panic!("a row")
        };
        assert_eq!((row.place, row.suite, row.n, row.p99), (Place::Guest, Suite::Fault, Some(7), Some(3.0)));
        assert_eq!((row.goal, row.verdict), (Some(Goal::G4), Some(Verdict::Reached)));
        let Word::Row(row) = Word::parse(&json!({"row": {"suite": "copy", "case": "c", "value": 1, "unit": "GB/s",
            "baseline": null, "ratio": 0.5, "goal": "G1"}}))
        else {
            panic!("a row")
        };
        assert_eq!((row.goal, row.baseline), (None, None), "G1 is about the host");
    }

    #[test]
    fn what_a_guest_may_send_instead_is_unknown_or_cut() {
        for object in [
            json!({}),
            json!({"row": 3}),
            json!({"row": {"suite": "dance", "case": "c", "value": 1, "unit": "s"}}),
            json!({"row": {"suite": "copy", "case": "c", "value": "1", "unit": "s"}}),
            json!({"row": {"suite": "copy", "value": 1, "unit": "s"}}),
            json!({"done": false}),
        ] {
            assert_eq!(Word::parse(&object), Word::Unknown, "{object}");
        }
        let long = "x\u{1b}".repeat(MAX_TEXT);
        let Word::Counters(label) = Word::parse(&json!({ "counters": long })) else { panic!("a place") };
        assert!(label.chars().count() == MAX_TEXT && !label.contains('\u{1b}'));
    }

    #[test]
    fn there_is_a_limit_to_rows() {
        let word = Word::parse(&json!({"row": {"suite": "copy", "case": "c", "value": 1, "unit": "s"}}));
        let mut collected = Collected::default();
        assert_eq!((0..MAX_ROWS + 5).filter(|_| collected.take(&word)).count(), MAX_ROWS);
        assert!(collected.take(&Word::Done) && collected.done);
        assert!(collected.take(&Word::Counters("nowhere to read".into())) && collected.marks.is_empty());
    }
}
