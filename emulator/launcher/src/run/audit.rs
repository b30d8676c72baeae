//! What the auditor found, against what tests announced.
//!
//! A test that plants a mistake writes `svadev-audit: expects <kind> <pasid> <page>` to `/dev/kmsg`, numbers as Rust
//! reads them. The report with exactly these values is expected. Any other report, and any expectation that no report
//! matches, is a problem. Log lines and reports arrive independently, so either order is accepted. The test that
//! announced the report gets a line `svadev:audit <kind> <pasid> <page>` on the control channel.
use svadev_iommu::{AuditCounters, Finding, FindingKind};

/// Expectations that are kept: the guest writes them.
const MAX_EXPECTED: usize = 256;
/// Reports that are kept. The auditor limits their rate, a run has no limit.
const MAX_REPORTS: usize = 1024;

/// A report that a test announced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Expected {
    kind: FindingKind,
    pasid: u32,
    page: u64,
    met: bool,
}

impl Expected {
    /// The rest of a marker.
    fn parse(text: &str) -> Option<Self> {
        let mut words = text.split_whitespace();
        let kind = match words.next()? {
            "missing-invalidation" => FindingKind::MissingInvalidation,
            "stale-after-invalidation" => FindingKind::StaleAfterInvalidation,
            _ => return None,
        };
        let pasid = words.next()?.parse().ok()?;
        let page = u64::from_str_radix(words.next()?.strip_prefix("0x")?, 16).ok()?;
        words.next().is_none().then_some(Self { kind, pasid, page, met: false })
    }

    fn is(&self, finding: &Finding) -> bool {
        let Self { kind, pasid, page, .. } = *self;
        finding.kind == kind && finding.pasid.is_some_and(|p| p.get() == pasid) && finding.page == page
    }

    /// The control line that tells the test.
    fn line(&self) -> String {
        format!("svadev:audit {} {} {:#x}\n", self.kind, self.pasid, self.page)
    }
}

/// A run's reports and expectations.
#[derive(Debug, Default)]
pub struct AuditJudge {
    expected: Vec<Expected>,
    reports: Vec<(Finding, bool)>,
    problems: Vec<String>,
    unkept: usize,
    counters: AuditCounters,
}

impl AuditJudge {
    /// Takes a report; gives the line for the test that announced it, if one did.
    pub fn report(&mut self, finding: Finding) -> Option<String> {
        let expected = self.expected.iter_mut().find(|expected| !expected.met && expected.is(&finding));
        let line = expected.map(|expected| {
            expected.met = true;
            expected.line()
        });
        if self.reports.len() < MAX_REPORTS {
            self.reports.push((finding, line.is_some()));
        } else if line.is_none() {
            self.unkept += 1;
        }
        line
    }

    /// Takes a line of the kernel log, without its time stamp. Returns the line for the test if its report came before.
    pub fn kernel(&mut self, text: &str) -> Option<String> {
        let marker = text.split_once("svadev-audit: ")?.1;
        let Some(mut expected) = marker.strip_prefix("expects ").and_then(Expected::parse) else {
            self.problem(format!("unknown marker: svadev-audit: {marker}"));
            return None;
        };
        let report = self.reports.iter_mut().find(|(finding, was_expected)| !was_expected && expected.is(finding));
        expected.met = report.is_some();
        if let Some((_, was_expected)) = report {
            *was_expected = true;
        }
        if self.expected.len() < MAX_EXPECTED {
            self.expected.push(expected);
        } else {
            self.problem(format!("too many announced reports: only the first {MAX_EXPECTED} are kept"));
        }
        expected.met.then(|| expected.line())
    }

    fn problem(&mut self, text: String) {
        if self.problems.len() < MAX_EXPECTED {
            self.problems.push(text);
        }
    }

    /// Takes what the auditor counted, when the run is over.
    pub fn counted(&mut self, counters: AuditCounters) {
        self.counters = counters;
    }

    /// What the auditor could not check, if anything. It is no mistake of the guest, but the run proves less.
    pub fn gap(&self) -> Option<String> {
        gap(&self.counters)
    }

    /// Every report, and whether a test announced it.
    pub fn reports(&self) -> &[(Finding, bool)] {
        &self.reports
    }

    /// What is wrong, a line each, when the run is over.
    pub fn problems(&self) -> Vec<String> {
        let unexpected = self.reports.iter().filter(|(_, expected)| !expected).map(|(finding, _)| summary(finding));
        let unmet = self.expected.iter().filter(|expected| !expected.met).map(|expected| {
            let Expected { kind, pasid, page, .. } = expected;
            format!("a test expected the report {kind} of PASID {pasid}, page {page:#x}, but none came")
        });
        let mut problems: Vec<_> = unexpected.chain(unmet).chain(self.problems.iter().cloned()).collect();
        if self.unkept > 0 {
            problems.push(format!("{} more reports were not kept", self.unkept));
        }
        if self.counters.suppressed > 0 {
            problems
                .push(format!("{} findings were only counted, because they came too fast", self.counters.suppressed));
        }
        problems
    }
}

/// What an auditor with these counters did not check.
pub fn gap(counters: &AuditCounters) -> Option<String> {
    let AuditCounters { forgotten, .. } = *counters;
    (forgotten > 0)
        .then(|| format!("{forgotten} translations were not checked, because the auditor ran out of space for them"))
}

/// One line of a report.
fn summary(finding: &Finding) -> String {
    let text = finding.to_string();
    let mut lines = text.lines().map(str::trim);
    lines.by_ref().take(3).collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use svadev_fabric::{Bdf, Pasid};
    use svadev_iommu::Cached;

    use super::*;

    fn finding(page: u64) -> Finding {
        Finding {
            kind: FindingKind::MissingInvalidation,
            cache: Cached::DeviceTlb,
            requester: Bdf(0x30),
            pasid: Some(Pasid::new(3).unwrap()),
            page,
            size_log2: 12,
            old: "a".into(),
            new: "b".into(),
            age_ns: 1,
            in_use: false,
            at_ns: 2,
            events: Vec::new(),
        }
    }

    const MARKER: &str = "[    3.1] svadev-audit: expects missing-invalidation 3 0x7000";
    const LINE: &str = "svadev:audit missing-invalidation 3 0x7000\n";

    #[test]
    fn an_announced_report_is_fine_whichever_comes_first() {
        let mut judge = AuditJudge::default();
        assert_eq!(judge.kernel(MARKER), None);
        assert_eq!(judge.problems().len(), 1, "until it comes");
        assert_eq!(judge.report(finding(0x7000)).as_deref(), Some(LINE));
        assert!(judge.problems().is_empty());
        let mut judge = AuditJudge::default();
        assert_eq!(judge.report(finding(0x7000)), None);
        assert_eq!(judge.kernel(MARKER).as_deref(), Some(LINE));
        assert!(judge.problems().is_empty() && judge.reports()[0].1);
    }

    #[test]
    fn what_nobody_announced_is_a_problem() {
        let mut judge = AuditJudge::default();
        judge.kernel(MARKER);
        assert_eq!(judge.report(finding(0x8000)), None);
        assert_eq!(judge.problems().len(), 2, "the wrong one came, the right one did not");
        judge.report(finding(0x7000));
        assert_eq!(judge.report(finding(0x7000)), None, "one announcement, one report");
        assert_eq!(judge.problems().len(), 2);
    }

    #[test]
    fn what_was_not_reported_or_not_seen_is_told() {
        let mut judge = AuditJudge::default();
        judge.counted(AuditCounters { checks: 5, held: 5, ..AuditCounters::default() });
        assert!(judge.problems().is_empty() && judge.gap().is_none());
        judge.counted(AuditCounters { suppressed: 3, findings: 3, ..AuditCounters::default() });
        assert!(judge.problems()[0].starts_with("3 findings"));
        judge.counted(AuditCounters { forgotten: 7, ..AuditCounters::default() });
        assert!(judge.problems().is_empty() && judge.gap().unwrap().starts_with("7 translations"));
    }

    #[test]
    fn a_bad_marker_is_a_problem_and_floods_are_bounded() {
        for text in
            ["svadev-audit: x", "svadev-audit: expects rain 1 0x1", "svadev-audit: expects missing-invalidation 1 5"]
        {
            let mut judge = AuditJudge::default();
            judge.kernel(text);
            assert_eq!(judge.problems().len(), 1, "{text}");
        }
        let mut judge = AuditJudge::default();
        for page in 0..5000 {
            judge.kernel(MARKER);
            judge.report(finding(page << 13));
        }
        assert!(judge.reports.len() == MAX_REPORTS && judge.expected.len() == MAX_EXPECTED);
        assert!(judge.problems().last().unwrap().contains("more reports"));
    }
}
