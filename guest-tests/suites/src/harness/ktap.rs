//! KTAP, version 1, out (`Documentation/dev-tools/ktap.rst`).
use std::io::{self, Write};
use std::time::Duration;

/// What became of one test.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It held.
    Passed,
    /// It did not, or crashed, or hung: why.
    Failed(String),
    /// The machine cannot run it: why. Never for what the machine should have.
    Skipped(String),
}

/// Counts of outcomes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Tests that passed.
    pub passed: usize,
    /// Tests that failed.
    pub failed: usize,
    /// Tests that the machine cannot run.
    pub skipped: usize,
}

/// Writes one KTAP document, line by line, each flushed: the reader sees how far a run got before it died.
pub struct Writer<W> {
    out: W,
    number: usize,
    totals: Totals,
}

impl<W: Write> Writer<W> {
    /// Write the version line and the plan.
    ///
    /// # Errors
    /// The output cannot be written; so for every method.
    pub fn start(mut out: W, tests: usize) -> io::Result<Self> {
        writeln!(out, "KTAP version 1\n1..{tests}")?;
        out.flush()?;
        Ok(Self { out, number: 0, totals: Totals::default() })
    }

    /// Write a diagnostic, each of its lines as one.
    pub fn diagnostic(&mut self, text: &str) -> io::Result<()> {
        for line in text.lines() {
            writeln!(self.out, "# {}", line.trim_end())?;
        }
        self.out.flush()
    }

    /// Write a result; a failure's reason goes before it as diagnostics.
    pub fn result(&mut self, name: &str, outcome: &Outcome, took: Duration) -> io::Result<()> {
        self.number += 1;
        let (verdict, directive) = match outcome {
            Outcome::Passed => {
                self.totals.passed += 1;
                ("ok", String::new())
            }
            Outcome::Failed(why) => {
                self.totals.failed += 1;
                self.diagnostic(&format!("{name}: {why}"))?;
                ("not ok", String::new())
            }
            Outcome::Skipped(why) => {
                self.totals.skipped += 1;
                ("ok", format!(" SKIP {}", why.lines().next().unwrap_or_default()))
            }
        };
        let time = if directive.is_empty() { format!(" {:.3}s", took.as_secs_f64()) } else { directive };
        writeln!(self.out, "{verdict} {} {name} #{time}", self.number)?;
        self.out.flush()
    }

    /// Write the totals as a diagnostic, as kselftest does, and return them.
    pub fn finish(mut self) -> io::Result<Totals> {
        let Totals { passed, failed, skipped } = self.totals;
        self.diagnostic(&format!("Totals: pass:{passed} fail:{failed} skip:{skipped}"))?;
        Ok(self.totals)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_has_plan_results_and_totals() {
        let mut out = Vec::new();
        let mut w = Writer::start(&mut out, 3).unwrap();
        w.result("a.b/svadev0", &Outcome::Passed, Duration::from_millis(12)).unwrap();
        w.result("c", &Outcome::Failed("expected 1\nactual 2".into()), Duration::from_secs(2)).unwrap();
        w.result("d", &Outcome::Skipped("no 1 GiB page".into()), Duration::ZERO).unwrap();
        let totals = w.finish().unwrap();
        assert_eq!(totals, Totals { passed: 1, failed: 1, skipped: 1 });
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "KTAP version 1\n1..3\nok 1 a.b/svadev0 # 0.012s\n# c: expected 1\n# actual 2\nnot ok 2 c # 2.000s\n\
             ok 3 d # SKIP no 1 GiB page\n# Totals: pass:1 fail:1 skip:1\n"
        );
    }

    #[test]
    fn every_line_of_a_diagnostic_is_marked() {
        let mut out = Vec::new();
        let mut w = Writer::start(&mut out, 0).unwrap();
        w.diagnostic("one\ntwo  \n").unwrap();
        assert!(String::from_utf8(out).unwrap().ends_with("# one\n# two\n"));
    }
}
