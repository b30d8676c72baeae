//! KTAP, the Kernel Test Anything Protocol version 1 (Linux, `Documentation/dev-tools/ktap.rst`).
use std::time::{Duration, Instant};

use serde::Serialize;

/// Most diagnostic lines that are kept for one test: the guest decides how many it prints.
const MAX_DIAGNOSTICS: usize = 100;
/// Most tests that a plan may announce.
const MAX_TESTS: usize = 100_000;

/// Deepest nesting that is distinguished.
const MAX_DEPTH: usize = 8;
/// Most problems that are kept.
const MAX_PROBLEMS: usize = 100;

/// How a test ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// `ok`
    Pass,
    /// `not ok`
    Fail,
    /// `# SKIP`
    Skip,
}

/// One test's result, as it also stands in the JSON file.
#[derive(Clone, Debug, Serialize)]
pub struct TestResult {
    /// Its name, with its parents' before it: `parent/child`.
    pub name: String,
    /// How it ended.
    pub verdict: Verdict,
    /// Duration in seconds: what the suite reports, otherwise the wall-clock time since the previous result.
    pub seconds: f64,
    /// Why it was skipped.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// What it said.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub diagnostics: Vec<String>,
    /// The auditor's reports, only in the auditor's own result.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub reports: Vec<svadev_iommu::Finding>,
}

/// A level of nesting.
#[derive(Debug, Default)]
struct Level {
    planned: Option<usize>,
    seen: usize,
    subtest: Option<String>,
    /// Deeper levels came since the last result.
    had_children: bool,
}

/// Reads KTAP line by line.
#[derive(Debug)]
pub struct Parser {
    levels: Vec<Level>,
    diagnostics: Vec<String>,
    results: Vec<TestResult>,
    problems: Vec<String>,
    last: Instant,
}

impl Parser {
    /// At the moment when the first test starts.
    pub fn new(now: Instant) -> Self {
        Self {
            levels: vec![Level::default()],
            diagnostics: Vec::new(),
            results: Vec::new(),
            problems: Vec::new(),
            last: now,
        }
    }

    /// Takes one line; gives the result it completes. A test that only gathers subtests gives none unless it failed.
    pub fn line(&mut self, line: &str, now: Instant) -> Option<&TestResult> {
        let text = line.trim_start_matches(' ');
        // "Subtests are indented by two spaces more than their parent" (§ Nested tests).
        // A guest that indents by thousands must not allocate thousands of levels.
        let depth = ((line.len() - text.len()) / 2).min(MAX_DEPTH);
        self.enter(depth);
        let level = &mut self.levels[depth];
        if let Some(plan) = text.strip_prefix("1..") {
            match plan
                .split_whitespace()
                .next()
                .and_then(|count| count.parse().ok())
                .filter(|&count: &usize| count <= MAX_TESTS)
            {
                Some(count) => level.planned = Some(count),
                None => self.problem(format!("malformed KTAP plan: {text}")),
            }
        } else if let Some(name) = text.strip_prefix("# Subtest: ") {
            // It is announced at the level of the subtests themselves and names their parent.
            level.subtest = Some(name.trim().to_owned());
        } else if let Some(rest) = text.strip_prefix("not ok ") {
            return self.result(depth, Verdict::Fail, rest, now);
        } else if let Some(rest) = text.strip_prefix("ok ") {
            return self.result(depth, Verdict::Pass, rest, now);
        } else if let Some(reason) = text.strip_prefix("Bail out!") {
            self.problem(format!("the suite gave up:{reason}"));
        } else if !text.is_empty() && !text.starts_with("KTAP version") && !text.starts_with("TAP version") {
            self.diagnose(text.strip_prefix("# ").unwrap_or(text));
        }
        None
    }

    fn enter(&mut self, depth: usize) {
        while self.levels.len() <= depth {
            self.levels.last_mut().expect("level 0 is always there").had_children = true;
            self.levels.push(Level::default());
        }
    }

    fn problem(&mut self, text: String) {
        if self.problems.len() < MAX_PROBLEMS {
            self.problems.push(text);
        }
    }

    fn diagnose(&mut self, text: &str) {
        if self.diagnostics.len() < MAX_DIAGNOSTICS {
            self.diagnostics.push(text.to_owned());
        }
    }

    fn result(&mut self, depth: usize, verdict: Verdict, rest: &str, now: Instant) -> Option<&TestResult> {
        let (number, rest) = rest.split_once(' ').unwrap_or((rest, ""));
        // The directive is a `#` with a blank before it.
        let (name, directive) = rest.split_once(" # ").or_else(|| rest.split_once("# ")).unwrap_or((rest, ""));
        let name = name.trim().trim_start_matches("- ").trim();
        let parents: Vec<&str> = self.levels[1..=depth].iter().filter_map(|level| level.subtest.as_deref()).collect();
        let name = parents.iter().copied().chain([name]).collect::<Vec<_>>().join("/");
        // Deeper levels belong to this test: their plans end here.
        let children = self.levels.split_off(depth + 1);
        for child in &children {
            self.check_plan(child, &name);
        }
        let level = &mut self.levels[depth];
        let had_children = std::mem::take(&mut level.had_children);
        level.seen += 1;
        if number.parse() != Ok(level.seen) {
            let seen = level.seen;
            self.problem(format!("{name}: expected result number {seen}, got {number}"));
        }
        // Our own suites put the test's duration where a directive would be.
        let told = directive
            .strip_suffix('s')
            .and_then(|number| number.parse::<f64>().ok())
            .filter(|s| (0.0..1e6).contains(s));
        let (verdict, reason) = match directive.split_once(' ').unwrap_or((directive, "")) {
            (word, reason) if word.eq_ignore_ascii_case("SKIP") => (Verdict::Skip, reason),
            (word, reason) if word.eq_ignore_ascii_case("TIMEOUT") => (Verdict::Fail, reason),
            _ => (verdict, ""),
        };
        let seconds = told.unwrap_or_else(|| now.saturating_duration_since(self.last).as_secs_f64());
        self.last = now;
        let diagnostics = std::mem::take(&mut self.diagnostics);
        if had_children && verdict == Verdict::Pass {
            return None;
        }
        if self.results.len() == MAX_TESTS {
            self.problem(format!("too many results: only the first {MAX_TESTS} are kept"));
            return None;
        }
        self.results.push(TestResult {
            name,
            verdict,
            seconds,
            reason: reason.trim().to_owned(),
            diagnostics,
            reports: Vec::new(),
        });
        self.results.last()
    }

    fn check_plan(&mut self, level: &Level, name: &str) {
        match level.planned {
            Some(planned) if planned != level.seen => {
                self.problem(format!("{name}: {planned} tests were planned, but {} ran", level.seen));
            }
            None if level.seen > 0 => self.problem(format!("{name}: the KTAP plan is missing")),
            _ => {}
        }
    }

    /// Ends the parsing: no more lines come.
    pub fn finish(mut self) -> Summary {
        let levels = std::mem::take(&mut self.levels);
        if levels[0].planned.is_none() && levels[0].seen == 0 {
            self.problem("the suite printed nothing".into());
        }
        for level in &levels {
            let name = level.subtest.clone().unwrap_or_else(|| "the suite".into());
            self.check_plan(level, &name);
        }
        // Lines after the last result belong to a test that did not finish, or to the suite as a whole.
        let unfinished = levels[0].planned.is_none_or(|planned| levels[0].seen < planned);
        for line in std::mem::take(&mut self.diagnostics).into_iter().filter(|_| unfinished) {
            self.problem(format!("output of a test that did not finish: {line}"));
        }
        Summary { results: self.results, problems: self.problems }
    }

    /// How many results there are of how many planned at the outermost level.
    pub fn progress(&self) -> (usize, Option<usize>) {
        (self.levels[0].seen, self.levels[0].planned)
    }
}

/// All results of a suite.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    /// In the order they came.
    pub results: Vec<TestResult>,
    /// Problems of the suite as a whole, such as a plan that is not met or results out of order.
    pub problems: Vec<String>,
}

impl Summary {
    /// How many tests ended so.
    pub fn count(&self, verdict: Verdict) -> usize {
        self.results.iter().filter(|result| result.verdict == verdict).count()
    }
    /// All the time that results account for.
    pub fn duration(&self) -> Duration {
        Duration::from_secs_f64(self.results.iter().map(|result| result.seconds).sum())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(text: &str) -> Summary {
        let start = Instant::now();
        let mut parser = Parser::new(start);
        for (line, second) in text.lines().zip(1..) {
            parser.line(line, start + Duration::from_secs(second));
        }
        parser.finish()
    }

    #[test]
    fn flat_results() {
        let summary = run(
            "KTAP version 1\n1..3\n# looked at x\nok 1 copy\nok 2 - huge # SKIP no 1 GiB page\n# want 1\n# got 2\nnot ok 3 crc\n",
        );
        assert!(summary.problems.is_empty(), "{:?}", summary.problems);
        let brief: Vec<_> = summary.results.iter().map(|r| (r.name.as_str(), r.verdict)).collect();
        assert_eq!(brief, [("copy", Verdict::Pass), ("huge", Verdict::Skip), ("crc", Verdict::Fail)]);
        assert_eq!(summary.results[1].reason, "no 1 GiB page");
        assert_eq!(summary.results[2].diagnostics, ["want 1", "got 2"]);
        assert_eq!(summary.results[2].seconds, 3.0);
    }

    #[test]
    fn a_duration_in_the_directives_place_is_the_tests() {
        let summary =
            run("KTAP version 1\n1..2\nok 1 a/svadev0 # 0.250s\nnot ok 2 b # NaNs\n# Totals: pass:1 fail:1 skip:0\n");
        assert!(summary.problems.is_empty(), "{:?}", summary.problems);
        assert_eq!((summary.results[0].name.as_str(), summary.results[0].seconds), ("a/svadev0", 0.25));
        assert_eq!(summary.results[1].seconds, 1.0);
    }

    #[test]
    fn nested_results_carry_their_parents_name_and_are_counted_once() {
        let summary = run(
            "KTAP version 1\n1..2\n  KTAP version 1\n  # Subtest: sva0\n  1..2\n  ok 1 a\n  not ok 2 b\nnot ok 1 sva0\n  # Subtest: sva1\n  1..1\n  ok 1 a\nok 2 sva1\n",
        );
        assert!(summary.problems.is_empty(), "{:?}", summary.problems);
        let brief: Vec<_> = summary.results.iter().map(|r| (r.name.as_str(), r.verdict)).collect();
        assert_eq!(
            brief,
            [("sva0/a", Verdict::Pass), ("sva0/b", Verdict::Fail), ("sva0", Verdict::Fail), ("sva1/a", Verdict::Pass)]
        );
    }

    #[test]
    fn a_plan_that_is_not_met_is_a_problem() {
        assert_eq!(
            run("1..2\nok 1 a\n# about b\n").problems,
            ["the suite: 2 tests were planned, but 1 ran", "output of a test that did not finish: about b"]
        );
        assert_eq!(run("").problems, ["the suite printed nothing"]);
        assert_eq!(run("ok 1 a\n").problems, ["the suite: the KTAP plan is missing"]);
        assert_eq!(run("1..1\nok 2 a\n").problems, ["a: expected result number 1, got 2"]);
        assert_eq!(run("1..1\n  1..2\n  ok 1 x\nok 1 a\n").problems, ["a: 2 tests were planned, but 1 ran"]);
        assert_eq!(run("1..1\nok 1 a\nBail out! no device\n").problems, ["the suite gave up: no device"]);
    }

    #[test]
    fn a_hostile_stream_allocates_little() {
        let deep = format!("{}ok 1 x", " ".repeat(60_000));
        let mut parser = Parser::new(Instant::now());
        for _ in 0..1000 {
            parser.line(&deep, Instant::now());
            parser.line("# chatter", Instant::now());
            parser.line("1..99999999999999999999", Instant::now());
        }
        assert!(parser.diagnostics.len() <= MAX_DIAGNOSTICS && parser.levels.len() <= 9);
    }
}
