//! Finds the lines of the guest kernel's log that mean that something went wrong.
//!
//! A test that provokes such a line on purpose writes `svadev-test: begin <name> expects <dmar-fault|warn>` before and
//! `svadev-test: end <name>` after it to `/dev/kmsg` (docs/design/0001-foundations.md). Lines of the expected kind
//! between the two are not findings. If none comes, that is a finding. A test writes `allows` instead of `expects` if
//! the line may or may not come.
use std::collections::VecDeque;

/// Lines that are shown when the guest failed.
const TAIL: usize = 40;
/// Most findings that are kept: the guest decides how much it prints.
const MAX_FINDINGS: usize = 200;
/// Lines after a finding that are shown with it: registers and the call trace.
const CONTEXT: usize = 6;

/// Kinds of lines that a test may expect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// The IOMMU recorded a fault.
    DmarFault,
    /// The kernel reported a problem of its own.
    Warn,
}

/// Texts that mark a line as an IOMMU fault, as `drivers/iommu/intel/dmar.c` prints them.
const DMAR_FAULTS: [&str; 8] = [
    "handling fault status reg",
    "[fault reason",
    "Invalidation Queue Error",
    "Invalidation Time-out Error",
    "Invalidation Completion Error",
    "Invalid page request",
    "PRQ overflow",
    "SVM disabled",
];

/// Texts that mark a line as a report of a broken kernel.
const WARNINGS: [&str; 24] = [
    "WARNING: ",
    "BUG: ",
    "kernel BUG at",
    "Oops: ",
    "general protection fault",
    "Kernel panic",
    "INFO: task ",
    "INFO: possible",
    "INFO: suspicious",
    "rcu: INFO:",
    "possible recursive locking",
    "circular locking dependency",
    "inconsistent lock state",
    "suspicious RCU usage",
    "sleeping function called",
    "scheduling while atomic",
    "refcount_t: ",
    "UBSAN: ",
    "list_add corruption",
    "list_del corruption",
    "kmemleak: ",
    "Bad page ",
    "unable to handle",
    "nobody cared",
];

#[derive(Debug)]
struct Expectation {
    name: String,
    kind: Kind,
    met: bool,
}

/// Reads the kernel log line by line.
#[derive(Debug, Default)]
pub struct KernelLog {
    tail: VecDeque<String>,
    expected: Option<Expectation>,
    findings: Vec<String>,
    context: usize,
    panic: Option<String>,
}

impl KernelLog {
    /// Takes one line.
    pub fn line(&mut self, line: &str) {
        if self.tail.len() == TAIL {
            self.tail.pop_front();
        }
        self.tail.push_back(line.to_owned());
        let text = message(line);
        if self.panic.is_none() && text.contains("Kernel panic - not syncing") {
            self.panic = Some(text.to_owned());
        }
        if let Some(marker) = text.strip_prefix("svadev-test: ") {
            self.marker(marker);
            return;
        }
        match kind(text) {
            Some(kind) => self.noteworthy(kind, line),
            None if self.context > 0 => {
                self.context -= 1;
                self.find(format!("  {line}"));
            }
            None => {}
        }
    }

    fn marker(&mut self, marker: &str) {
        let mut words = marker.split_whitespace();
        match (words.next(), words.next(), words.next(), words.next()) {
            (Some("begin"), Some(name), Some(verb @ ("expects" | "allows")), Some(kind)) => {
                self.unmet();
                let kind = match kind {
                    "dmar-fault" => Kind::DmarFault,
                    "warn" => Kind::Warn,
                    other => return self.find(format!("unknown kind of line {other:?}: test {name} {verb} it")),
                };
                self.expected = Some(Expectation { name: name.to_owned(), kind, met: verb == "allows" });
            }
            (Some("end"), Some(name), None, None) => match &self.expected {
                Some(expected) if expected.name == name => self.unmet(),
                _ => self.find(format!("test {name} ended without a begin")),
            },
            _ => self.find(format!("unknown marker: svadev-test: {marker}")),
        }
    }

    /// Ends the current expectation.
    fn unmet(&mut self) {
        if let Some(Expectation { name, kind, met: false }) = self.expected.take() {
            let what = match kind {
                Kind::DmarFault => "a DMAR fault",
                Kind::Warn => "a warning",
            };
            self.find(format!("test {name} expected {what} in the kernel log, but none came"));
        }
    }

    fn noteworthy(&mut self, kind: Kind, line: &str) {
        match &mut self.expected {
            Some(expected) if expected.kind == kind => expected.met = true,
            _ => {
                self.find(line.to_owned());
                self.context = if kind == Kind::Warn { CONTEXT } else { 0 };
            }
        }
    }

    fn find(&mut self, text: String) {
        if self.findings.len() < MAX_FINDINGS {
            self.findings.push(text);
        }
    }

    /// The panic message, if the kernel panicked.
    pub fn panic(&self) -> Option<&str> {
        self.panic.as_deref()
    }

    /// The last lines.
    pub fn tail(&self) -> impl Iterator<Item = &str> {
        self.tail.iter().map(String::as_str)
    }

    /// The findings, when the log has ended.
    pub fn findings(&mut self) -> &[String] {
        self.unmet();
        &self.findings
    }
}

/// The line without time stamp and caller: `[    1.234567][    T1] `.
fn message(line: &str) -> &str {
    let mut text = line;
    while let Some((stamp, rest)) = text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        let is_stamp = !stamp.is_empty()
            && stamp.trim().bytes().all(|b| b.is_ascii_digit() || b == b'.' || b == b'T' || b == b'C');
        if !is_stamp {
            break;
        }
        text = rest;
    }
    text.strip_prefix(' ').unwrap_or(text)
}

fn kind(text: &str) -> Option<Kind> {
    if text.starts_with("DMAR: ") && DMAR_FAULTS.iter().any(|what| text.contains(what)) {
        return Some(Kind::DmarFault);
    }
    WARNINGS.iter().any(|what| text.contains(what)).then_some(Kind::Warn)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings(text: &str) -> Vec<String> {
        let mut log = KernelLog::default();
        text.lines().for_each(|line| log.line(line));
        log.findings().to_vec()
    }

    const FAULT: &str = "[    3.100000] DMAR: [DMA Write PASID 0x1] Request device [0000:00:06.0] fault addr 0x1000 [fault reason 0x5a] x";

    #[test]
    fn an_ordinary_boot_is_clean() {
        let boot = "[    0.000000] Linux version 7.3.4\n[    0.011111] DMAR: Host address width 48\n[    0.5] DMAR: dmar0: Using Queued invalidation\n[    0.6] Spectre V2 : Mitigation: IBRS\nplain line\n";
        assert!(findings(boot).is_empty());
    }

    #[test]
    fn faults_and_warnings_are_found_with_their_trace() {
        assert_eq!(findings(FAULT), [FAULT]);
        let warn = "[ 1.0][  T42] WARNING: CPU: 0 PID: 42 at mm/x.c:1 f+0x1/0x2\n[ 1.0] RIP: 0010:f\n";
        assert_eq!(findings(warn).len(), 2, "the line and what follows it");
    }

    #[test]
    fn an_expected_fault_is_fine_and_a_missing_one_is_not() {
        let wrapped = |inner: &str| {
            format!("[ 3.0] svadev-test: begin wild expects dmar-fault\n{inner}\n[ 3.2] svadev-test: end wild\n")
        };
        assert!(findings(&wrapped(FAULT)).is_empty());
        assert_eq!(findings(&wrapped("")), ["test wild expected a DMAR fault in the kernel log, but none came"]);
        assert_eq!(
            findings(&wrapped("[ 3.1] BUG: bad")).len(),
            2,
            "another kind is not expected, and the fault is missing"
        );
        assert_eq!(findings(&format!("{}{FAULT}\n", wrapped(FAULT))).len(), 1, "the expectation ends with its test");
    }

    #[test]
    fn an_allowed_fault_may_come_or_not() {
        let wrapped =
            |inner: &str| format!("svadev-test: begin exit allows dmar-fault\n{inner}\nsvadev-test: end exit\n");
        assert!(findings(&wrapped(FAULT)).is_empty());
        assert!(findings(&wrapped("")).is_empty());
        assert_eq!(findings(&wrapped("[ 3.1] BUG: bad")).len(), 1, "but nothing of another kind");
    }

    #[test]
    fn an_expectation_that_never_ends_is_judged_at_the_end() {
        assert_eq!(findings("[ 1] svadev-test: begin a expects warn\n").len(), 1);
        assert_eq!(findings("[ 1] svadev-test: end a\n").len(), 1);
        assert_eq!(findings("[ 1] svadev-test: begin a expects rain\n").len(), 1);
    }

    #[test]
    fn a_panic_is_noticed_and_the_tail_is_short() {
        let mut log = KernelLog::default();
        for n in 0..100 {
            log.line(&format!("[ 1.0] line {n}"));
        }
        log.line("[ 2.0] Kernel panic - not syncing: sysrq triggered crash");
        assert_eq!(log.panic(), Some("Kernel panic - not syncing: sysrq triggered crash"));
        assert_eq!(log.tail().count(), TAIL);
    }
}
