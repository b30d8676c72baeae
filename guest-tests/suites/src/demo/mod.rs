//! The demonstration: a story with two processes and two functions, then what it costs, as JSON lines.
//!
//! `{"event": …, "text": …}` tells a step, for people; further fields hold its numbers. `{"figure": …, "value": …, "unit": …}`
//! is one measurement. The launcher adds what only it can see: page requests, invalidations, bytes.

mod figures;
mod story;

use std::io::{self, Write};
use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Map, Value, json};

use crate::harness::report::Report;
use crate::harness::{Context, Verdict};

/// Writes JSON lines, each flushed.
pub struct Teller<W>(W);

impl<W: Write> Teller<W> {
    /// Tell on `out`.
    pub fn new(out: W) -> Self {
        Self(out)
    }

    /// Tell a step.
    ///
    /// # Errors
    /// The output cannot be written; so for every method.
    pub fn event(&mut self, name: &str, text: &str, fields: Value) -> Verdict {
        let mut line = Map::new();
        line.insert("event".into(), name.into());
        line.insert("text".into(), text.into());
        if let Value::Object(fields) = fields {
            line.extend(fields);
        }
        self.line(&Value::Object(line))
    }

    /// Tell a measurement.
    pub fn figure(&mut self, name: &str, value: f64, unit: &str) -> Verdict {
        // Three digits behind the point: more would claim more than a shared machine can measure.
        self.line(&json!({ "figure": name, "value": (value * 1000.0).round() / 1000.0, "unit": unit }))
    }

    fn line(&mut self, value: &Value) -> Verdict {
        let result: io::Result<()> = writeln!(self.0, "{value}").and_then(|()| self.0.flush());
        Ok(result?)
    }
}

/// Tell the whole story on these functions; at least two.
///
/// # Errors
/// A step did not go as it must.
pub fn run(functions: Vec<PathBuf>, scale: f64, out: impl Write) -> Verdict {
    crate::check!(functions.len() >= 2, "the demonstration needs two functions, this machine has {}", functions.len());
    let context =
        Context { name: "demo".into(), functions, function: 0, seed: 0x5eed, scale, report: Report::shared() };
    let mut teller = Teller::new(out);
    story::tell(&context, &mut teller)?;
    figures::measure(&context, &mut teller)
}

/// Microseconds, as figures have them.
fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_json_with_the_promised_fields() {
        let mut out = Vec::new();
        let mut teller = Teller::new(&mut out);
        teller.event("bind", "it binds", json!({ "pasid": 3 })).unwrap();
        teller.figure("latency_p50", 12.345_678, "us").unwrap();
        let text = String::from_utf8(out).unwrap();
        let lines: Vec<Value> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
        assert_eq!(lines[0], json!({ "event": "bind", "text": "it binds", "pasid": 3 }));
        assert_eq!(lines[1], json!({ "figure": "latency_p50", "value": 12.346, "unit": "us" }));
    }

    #[test]
    fn one_function_is_not_enough() {
        assert!(run(vec!["/nonexistent/svadev0".into()], 1.0, Vec::new()).is_err());
    }
}
