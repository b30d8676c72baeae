//! KTAP, the Kernel Test Anything Protocol version 1 (Linux, `Documentation/dev-tools/ktap.rst`).
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// Most diagnostic lines that are kept for one test: the guest decides how many it prints.
const MAX_DIAGNOSTICS: usize = 100;
/// Most tests that a plan may announce.
const MAX_TESTS: usize = 100_000;

/// Deepest nesting that is distinguished.
const MAX_DEPTH: usize = 8;
/// Most problems that are kept.
const MAX_PROBLEMS: usize = 100;

/// How a test ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// `ok`
    Pass,
    /// `not ok`
    Fail,
    /// `# SKIP`, and the failures that are known: `# TODO` and `# XFAIL`.
    Skip,
}

/// One test's result, as it also stands in the JSON file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TestResult {
    /// Its name, with its parents' before it: `parent/child`.
    pub name: String,
    /// How it ended.
    pub verdict: Verdict,
    /// Duration in seconds: what the suite reports, otherwise the wall-clock time since the previous result.
    pub seconds: f64,
    /// Why it was skipped, or what failed.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// What it said.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub diagnostics: Vec<String>,
    /// The auditor's reports, only in the auditor's own result.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reports: Vec<serde_json::Value>,
}

/// A level of nesting.
#[derive(Debug, Default)]
struct Level {
    planned: Option<usize>,
    seen: usize,
    subtest: Option<String>,
    /// Deeper levels came since the last result.
    had_children: bool,
    /// How many results there were before the first of this level.
    since: usize,
}

/// The forms of a line, without its indentation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Line<'a> {
    Version,
    /// What stands for the number of tests.
    Plan(&'a str),
    /// The name of the test that the lines of this level belong to.
    Subtest(&'a str),
    /// The verdict, the number, and the rest.
    Result(Verdict, &'a str, &'a str),
    /// The reason.
    BailOut(&'a str),
    /// Everything else: diagnostics and lines of no known form.
    Diagnostic,
}

impl<'a> Line<'a> {
    fn of(text: &'a str) -> Self {
        let text = text.trim_end();
        if text.starts_with("KTAP version") || text.starts_with("TAP version") {
            return Self::Version;
        }
        if let Some(plan) = text.strip_prefix("1..") {
            return Self::Plan(plan.split_whitespace().next().unwrap_or_default());
        }
        if let Some(name) = text.strip_prefix("# Subtest: ") {
            return Self::Subtest(name.trim());
        }
        if let Some(reason) = text.strip_prefix("Bail out!") {
            return Self::BailOut(reason);
        }
        let failed = text.strip_prefix("not ok ").map(|rest| (Verdict::Fail, rest));
        let Some((verdict, rest)) = failed.or_else(|| text.strip_prefix("ok ").map(|rest| (Verdict::Pass, rest)))
        else {
            return Self::Diagnostic;
        };
        let (number, rest) = rest.split_once(' ').unwrap_or((rest, ""));
        match !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()) {
            true => Self::Result(verdict, number, rest),
            false => Self::Diagnostic,
        }
    }
}

/// Reads KTAP line by line.
#[derive(Debug)]
pub struct Parser {
    levels: Vec<Level>,
    diagnostics: Vec<String>,
    results: Vec<TestResult>,
    problems: Vec<String>,
    gave_up: Option<String>,
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
            gave_up: None,
            last: now,
        }
    }

    /// Takes one line; gives the result it completes. A test that only gathers subtests gives none unless it failed.
    pub fn line(&mut self, line: &str, now: Instant) -> Option<&TestResult> {
        let text = line.trim_start_matches(' ');
        let kind = Line::of(text);
        if kind == Line::Diagnostic {
            // Lines of no known form may be indented as they like, and begin no subtest (§ Unknown lines).
            if !text.is_empty() {
                self.diagnose(text.strip_prefix("# ").unwrap_or(text));
            }
            return None;
        }
        // "One level of indentation is two spaces" (§ Nested tests).
        // A guest that indents by thousands must not allocate thousands of levels.
        let depth = ((line.len() - text.len()) / 2).min(MAX_DEPTH);
        self.enter(depth);
        match kind {
            Line::Plan(count) => {
                match count.parse().ok().filter(|&count: &usize| count <= MAX_TESTS) {
                    Some(count) => self.levels[depth].planned = Some(count),
                    None => self.problem(format!("malformed KTAP plan: {text}")),
                }
                None
            }
            // It is announced at the level of the subtests themselves and names their parent.
            Line::Subtest(name) => {
                self.levels[depth].subtest = Some(name.to_owned());
                None
            }
            Line::BailOut(reason) => {
                self.problem(format!("the suite gave up:{reason}"));
                self.gave_up.get_or_insert_with(|| reason.trim().to_owned());
                None
            }
            Line::Result(verdict, number, rest) => self.result(depth, verdict, number, rest, now),
            Line::Version | Line::Diagnostic => None,
        }
    }

    fn enter(&mut self, depth: usize) {
        while self.levels.len() <= depth {
            self.levels.last_mut().expect("level 0 is always there").had_children = true;
            self.levels.push(Level { since: self.results.len(), ..Level::default() });
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

    fn result(
        &mut self,
        depth: usize,
        verdict: Verdict,
        number: &str,
        rest: &str,
        now: Instant,
    ) -> Option<&TestResult> {
        // A description has no `#`.
        let (name, directive) = rest.split_once('#').unwrap_or((rest, ""));
        let directive = directive.trim();
        let name = name.trim().trim_start_matches("- ").trim();
        let unnamed = format!("test {number}");
        let name = if name.is_empty() { &unnamed } else { name };
        let parents: Vec<&str> = self.levels[1..=depth].iter().filter_map(|level| level.subtest.as_deref()).collect();
        let name = parents.iter().copied().chain([name]).collect::<Vec<_>>().join("/");
        // Deeper levels belong to this test: their plans end here.
        let children = self.levels.split_off(depth + 1);
        for child in &children {
            self.check_plan(child, &name);
        }
        // Without a `# Subtest` line, subtests learn only now whose they are.
        if let Some(child) = children.first().filter(|child| child.subtest.is_none()) {
            let own = name.rsplit('/').next().unwrap_or_default().len();
            let at = name.len() - own;
            for result in self.results.iter_mut().skip(child.since) {
                result.name.insert_str(at.min(result.name.len()), &format!("{}/", &name[at..]));
            }
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
            // A failure that is known is neither a success nor news.
            ("TODO" | "XFAIL", _) => (Verdict::Skip, directive),
            ("TIMEOUT" | "ERROR", _) => (Verdict::Fail, directive),
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
        if levels[0].planned.is_none() && levels[0].seen == 0 && self.gave_up.is_none() {
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
        Summary { results: self.results, problems: self.problems, gave_up: self.gave_up }
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
    /// Why the suite gave up, if it did.
    pub gave_up: Option<String>,
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

/// Results as a KTAP document, flat, whole even if the guest's own ended early.
pub fn document(results: &[TestResult]) -> String {
    let mut text = format!("KTAP version 1\n1..{}\n", results.len());
    for (number, result) in (1..).zip(results) {
        for line in result.diagnostics.iter().flat_map(|text| text.lines()) {
            text += &format!("# {}\n", line.trim_end());
        }
        let ok = if result.verdict == Verdict::Fail { "not ok" } else { "ok" };
        // A description ends at a `#`, and a line at its end.
        let plain = |text: &str| text.replace('#', "").replace(['\n', '\r'], " ");
        let (name, reason) = (plain(&result.name), plain(&result.reason));
        let data = match result.verdict {
            Verdict::Skip => format!("SKIP {reason}"),
            Verdict::Pass | Verdict::Fail => format!("{:.3}s", result.seconds),
        };
        text += format!("{ok} {number} {name} # {data}").trim_end();
        text.push('\n');
    }
    text
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
    fn a_suite_that_gives_up_before_its_first_test_says_why_in_one_line() {
        let mut parser = Parser::new(Instant::now());
        parser.line("Bail out! the unit has no scalable mode", Instant::now());
        let summary = parser.finish();
        assert_eq!(summary.gave_up.as_deref(), Some("the unit has no scalable mode"));
        assert_eq!(summary.problems, ["the suite gave up: the unit has no scalable mode"]);
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

    /// The example of the specification: subtests know their parent only when its result comes.
    #[test]
    fn the_specifications_example_is_read_as_it_explains() {
        let summary = run("KTAP version 1\n1..1\n  KTAP version 1\n  1..3\n    KTAP version 1\n    1..1\n    \
             # test_1: initializing test_1\n    ok 1 test_1\n  ok 1 example_test_1\n    KTAP version 1\n    1..2\n    \
             ok 1 test_1 # SKIP test_1 skipped\n    ok 2 test_2\n  ok 2 example_test_2\n    KTAP version 1\n    \
             1..3\n    \
             ok 1 test_1\n    # test_2: FAIL\n    not ok 2 test_2\n    ok 3 test_3 # SKIP test_3 skipped\n  \
             not ok 3 example_test_3\nnot ok 1 main_test\n");
        assert!(summary.problems.is_empty(), "{:?}", summary.problems);
        let brief: Vec<_> = summary.results.iter().map(|r| (r.name.as_str(), r.verdict)).collect();
        use Verdict::{Fail, Pass, Skip};
        assert_eq!(
            brief,
            [
                ("main_test/example_test_1/test_1", Pass),
                ("main_test/example_test_2/test_1", Skip),
                ("main_test/example_test_2/test_2", Pass),
                ("main_test/example_test_3/test_1", Pass),
                ("main_test/example_test_3/test_2", Fail),
                ("main_test/example_test_3/test_3", Skip),
                ("main_test/example_test_3", Fail),
                ("main_test", Fail),
            ]
        );
        assert_eq!(summary.results[0].diagnostics, ["test_1: initializing test_1"]);
        assert_eq!(summary.results[1].reason, "test_1 skipped");
    }

    #[test]
    fn lines_of_no_known_form_influence_no_result() {
        let summary =
            run("KTAP version 1\n1..2\n        a kernel line\nok then\nok 1 a\nnot ok, says b\nok 2 b # rcode=0\n");
        assert!(summary.problems.is_empty(), "{:?}", summary.problems);
        let brief: Vec<_> = summary.results.iter().map(|r| (r.name.as_str(), r.verdict)).collect();
        assert_eq!(brief, [("a", Verdict::Pass), ("b", Verdict::Pass)]);
        assert_eq!(summary.results[0].diagnostics, ["a kernel line", "ok then"]);
    }

    #[test]
    fn every_directive_has_its_meaning_and_an_unknown_one_has_none() {
        use Verdict::{Fail, Pass, Skip};
        for (line, verdict, reason) in [
            ("not ok 1 a # SKIP no device", Skip, "no device"),
            ("ok 1 # SKIP", Skip, ""),
            ("not ok 1 a # TODO known", Skip, "TODO known"),
            ("ok 1 a # XFAIL known", Skip, "XFAIL known"),
            ("not ok 1 a # TIMEOUT 30 seconds", Fail, "TIMEOUT 30 seconds"),
            ("not ok 1 a # ERROR no memory", Fail, "ERROR no memory"),
            ("ok 1 a # LATER maybe", Pass, ""),
            ("not ok 1 a", Fail, ""),
        ] {
            let summary = run(&format!("KTAP version 1\n1..1\n{line}\n"));
            assert!(summary.problems.is_empty(), "{line}: {:?}", summary.problems);
            assert_eq!((summary.results[0].verdict, summary.results[0].reason.as_str()), (verdict, reason), "{line}");
        }
        assert_eq!(run("1..1\nok 1\n").results[0].name, "test 1");
    }

    #[test]
    fn a_written_document_is_read_back() {
        let text = "KTAP version 1\n1..3\n# one\nok 1 a.b/svadev0 # 0.250s\n# x\n# y\n\
                    not ok 2 c # 1.000s\nok 3 d # SKIP no page\n";
        assert_eq!(document(&run(text).results), text);
        let mut results = run(text).results;
        results[0].name = "a#b\nok 9 forged".into();
        assert_eq!(run(&document(&results)).results.len(), 3);
        assert!(run(&document(&results)).problems.is_empty());
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
