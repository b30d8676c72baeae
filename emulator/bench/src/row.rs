//! What is measured: suites, rows, targets and verdicts.
use std::fmt;

use serde::{Deserialize, Serialize};

use super::stats::{Pair, Samples};

/// A group of cases.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Suite {
    /// Bandwidth by size, alignment, page size, depth and engines.
    Copy,
    /// From submission to completion.
    Latency,
    /// Page faults of the device.
    Fault,
    /// What changes of a mapping cost.
    Invalidate,
    /// Many processes, many queues.
    Scale,
    /// Register accesses.
    Trap,
    /// What the IOMMU takes to translate.
    Translate,
    /// Many processes with mixed work, every result compared, for a minute; only on request.
    Soak,
}

impl Suite {
    /// In the order of the tables.
    pub const ALL: [Self; 8] = [
        Self::Copy,
        Self::Latency,
        Self::Fault,
        Self::Invalidate,
        Self::Scale,
        Self::Trap,
        Self::Translate,
        Self::Soak,
    ];

    /// As on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Copy => "copy",
            Self::Latency => "latency",
            Self::Fault => "fault",
            Self::Invalidate => "invalidate",
            Self::Scale => "scale",
            Self::Trap => "trap",
            Self::Translate => "translate",
            Self::Soak => "soak",
        }
    }

    /// There are cases of it that need no guest. Page faults need a kernel that serves them.
    pub const fn is_native(self) -> bool {
        !matches!(self, Self::Fault | Self::Soak)
    }

    /// It is measured only if it is asked for.
    pub const fn is_on_request(self) -> bool {
        matches!(self, Self::Soak)
    }

    /// There are cases of it in the guest. Translation is timed where nothing else is.
    pub const fn is_guests(self) -> bool {
        !matches!(self, Self::Translate)
    }
}

/// Where a row was measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Place {
    /// The backend driven in-process, with no guest.
    Native,
    /// By a program in the guest.
    Guest,
}

impl Place {
    /// As in tables.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Guest => "guest",
        }
    }
}

/// A goal, as `docs/performance.md` explains it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Goal {
    /// Streaming copy against memcpy.
    G1,
    /// Polled latency against a shared word.
    G2,
    /// Small copies a second.
    G3,
    /// First touch with grouped page requests.
    G4,
    /// Trapped register read against a blocking server.
    G5,
    /// Translation.
    G6,
    /// Invalidation of a page.
    G7,
}

impl Goal {
    /// All, in order.
    pub const ALL: [Self; 7] = [Self::G1, Self::G2, Self::G3, Self::G4, Self::G5, Self::G6, Self::G7];

    /// What it is, in a few words.
    pub const fn text(self) -> &'static str {
        match self {
            Self::G1 => "streaming copy, against memcpy",
            Self::G2 => "polled 64 B copy, against a shared word",
            Self::G3 => "64 B copies at depth 128, one engine",
            Self::G4 => "first touch with grouped page requests",
            Self::G5 => "trapped read, against a blocking server",
            Self::G6 => "translation: hit, miss, flat",
            Self::G7 => "invalidation of one page",
        }
    }

    /// The target of a row from the guest, which names only the goal. G1 to G3 and G5 to G7 are about the host, so rows
    /// of the guest have no target for them.
    pub const fn of_guest(self) -> Option<Target> {
        match self {
            Self::G4 => Some(Target::ratio_at_least(8.0)),
            _ => None,
        }
    }
}

impl fmt::Display for Goal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::G1 => "G1",
            Self::G2 => "G2",
            Self::G3 => "G3",
            Self::G4 => "G4",
            Self::G5 => "G5",
            Self::G6 => "G6",
            Self::G7 => "G7",
        })
    }
}

/// Which figure a target is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Figure {
    /// [`Row::ratio`].
    Ratio,
    /// [`Row::value`].
    Value,
}

/// A limit for a figure. Reaching the limit exactly is enough.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Target {
    /// What it limits.
    pub of: Figure,
    /// More is better.
    pub at_least: bool,
    /// The limit.
    pub limit: f64,
}

impl Target {
    /// A ratio of at least so much.
    pub const fn ratio_at_least(limit: f64) -> Self {
        Self { of: Figure::Ratio, at_least: true, limit }
    }
    /// A ratio of at most so much.
    pub const fn ratio_at_most(limit: f64) -> Self {
        Self { of: Figure::Ratio, at_least: false, limit }
    }
    /// A value of at least so much, in the row's unit.
    pub const fn value_at_least(limit: f64) -> Self {
        Self { of: Figure::Value, at_least: true, limit }
    }
    /// A value of at most so much, in the row's unit.
    pub const fn value_at_most(limit: f64) -> Self {
        Self { of: Figure::Value, at_least: false, limit }
    }

    /// As in a table: `≥ 0.95 ×`.
    pub fn text(self, unit: &str) -> String {
        let sign = if self.at_least { '≥' } else { '≤' };
        let unit = match self.of {
            Figure::Ratio => "×",
            Figure::Value => unit,
        };
        format!("{sign} {} {unit}", self.limit)
    }
}

/// Whether a target was reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// It was.
    Reached,
    /// It was not.
    Missed,
}

impl Verdict {
    /// As in tables.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Reached => "reached",
            Self::Missed => "missed",
        }
    }
}

/// Where a row is in a plot: rows of one series are joined by a line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Point {
    /// The plot's title.
    pub plot: String,
    /// The line's name.
    pub series: String,
    /// Place on the horizontal axis, above 0; the axis is logarithmic.
    pub x: f64,
    /// What `x` is, in plain words with its unit.
    pub axis: String,
}

/// One measurement.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// Where.
    pub place: Place,
    /// Which suite.
    pub suite: Suite,
    /// What was measured; with place and suite, the row's identity.
    pub case: String,
    /// The figure, a median.
    pub value: f64,
    /// Its unit.
    pub unit: String,
    /// What it is compared with.
    pub baseline: Option<String>,
    /// The baseline's figure, in the same unit.
    pub baseline_value: Option<f64>,
    /// Value ÷ baseline.
    pub ratio: Option<f64>,
    /// The goal it belongs to.
    pub goal: Option<Goal>,
    /// What is to be reached.
    pub target: Option<Target>,
    /// Whether it was.
    pub verdict: Option<Verdict>,
    /// Samples.
    pub n: Option<u64>,
    /// The smallest sample.
    pub min: Option<f64>,
    /// The median sample.
    pub p50: Option<f64>,
    /// The 99th percentile.
    pub p99: Option<f64>,
    /// For plots.
    pub point: Option<Point>,
    /// A remark for the reader.
    #[serde(default)]
    pub note: Option<String>,
}

impl Row {
    /// A row with nothing but a value.
    pub fn new(place: Place, suite: Suite, case: impl Into<String>, value: f64, unit: &str) -> Self {
        Self {
            place,
            suite,
            case: case.into(),
            value,
            unit: unit.to_owned(),
            baseline: None,
            baseline_value: None,
            ratio: None,
            goal: None,
            target: None,
            verdict: None,
            n: None,
            min: None,
            p50: None,
            p99: None,
            point: None,
            note: None,
        }
    }

    /// A native row from samples.
    pub fn measured(suite: Suite, case: impl Into<String>, samples: &Samples, unit: &str) -> Self {
        Self {
            n: Some(samples.count() as u64),
            min: Some(samples.min()),
            p50: Some(samples.percentile(50)),
            p99: Some(samples.percentile(99)),
            ..Self::new(Place::Native, suite, case, samples.median(), unit)
        }
    }

    /// A native row from a thing and its baseline.
    pub fn compared(suite: Suite, case: impl Into<String>, pair: &Pair, unit: &str, baseline: &str) -> Self {
        Self {
            baseline: Some(baseline.to_owned()),
            baseline_value: Some(pair.baseline.median()),
            ratio: Some(pair.ratio),
            ..Self::measured(suite, case, &pair.thing, unit)
        }
    }

    /// Adds the goal and the verdict.
    pub fn aiming(mut self, goal: Goal, target: Target) -> Self {
        self.goal = Some(goal);
        self.target = Some(target);
        self.verdict = self.judge(target);
        self
    }

    /// Adds the place in a plot.
    pub fn plotted(self, plot: &str, series: impl Into<String>, x: f64, axis: &str) -> Self {
        let point = Point { plot: plot.to_owned(), series: series.into(), x, axis: axis.to_owned() };
        Self { point: Some(point), ..self }
    }

    fn judge(&self, target: Target) -> Option<Verdict> {
        let figure = match target.of {
            Figure::Ratio => self.ratio?,
            Figure::Value => self.value,
        };
        let reached = if target.at_least { figure >= target.limit } else { figure <= target.limit };
        Some(if reached { Verdict::Reached } else { Verdict::Missed })
    }
}

/// Whether more or less of a unit is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Better {
    /// Rates.
    More,
    /// Times.
    Less,
}

/// Whether more or less of a unit is better; `None` for an unknown unit.
pub fn better(unit: &str) -> Option<Better> {
    match unit {
        "ns" | "us" | "µs" | "ms" | "s" => Some(Better::Less),
        rate if rate.ends_with("/s") => Some(Better::More),
        _ => None,
    }
}

/// `4 KiB`, `64 B`, `1 MiB`.
pub fn bytes(count: u64) -> String {
    match count {
        mib if mib >= 1 << 20 && mib.is_multiple_of(1 << 20) => format!("{} MiB", mib >> 20),
        kib if kib >= 1 << 10 && kib.is_multiple_of(1 << 10) => format!("{} KiB", kib >> 10),
        _ => format!("{count} B"),
    }
}

/// Formats a number with three or four significant digits.
pub fn number(value: f64) -> String {
    match value.abs() {
        a if a >= 1000.0 => format!("{value:.0}"),
        a if a >= 100.0 => format!("{value:.1}"),
        a if a >= 0.1 || a == 0.0 => format!("{value:.2}"),
        _ => format!("{value:.4}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(value: f64, ratio: Option<f64>) -> Row {
        Row { ratio, ..Row::new(Place::Native, Suite::Copy, "c", value, "us") }
    }

    #[test]
    fn verdicts_look_at_the_figure_that_the_target_is_about() {
        let verdict = |row: Row, target| row.aiming(Goal::G1, target).verdict;
        assert_eq!(verdict(row(9.0, Some(0.95)), Target::ratio_at_least(0.95)), Some(Verdict::Reached));
        assert_eq!(verdict(row(9.0, Some(0.94)), Target::ratio_at_least(0.95)), Some(Verdict::Missed));
        assert_eq!(verdict(row(9.0, None), Target::ratio_at_least(0.95)), None, "without a ratio there is no verdict");
        assert_eq!(verdict(row(2.0, Some(9.0)), Target::value_at_most(2.0)), Some(Verdict::Reached));
        assert_eq!(verdict(row(2.1, Some(0.1)), Target::value_at_most(2.0)), Some(Verdict::Missed));
    }

    #[test]
    fn units_say_which_way_is_better() {
        for (unit, way) in [("us", Some(Better::Less)), ("GB/s", Some(Better::More)), ("pages/s", Some(Better::More))] {
            assert_eq!(better(unit), way, "{unit}");
        }
        assert_eq!(better("bananas"), None);
    }

    #[test]
    fn figures_are_short() {
        assert_eq!([bytes(64), bytes(4096), bytes(3 << 20), bytes(1500)], ["64 B", "4 KiB", "3 MiB", "1500 B"]);
        assert_eq!(
            [number(12345.6), number(123.45), number(1.234), number(0.0123)],
            ["12346", "123.5", "1.23", "0.0123"]
        );
        assert_eq!(Target::ratio_at_least(0.95).text("GB/s"), "≥ 0.95 ×");
        assert_eq!(Target::value_at_most(2.0).text("us"), "≤ 2 us");
    }

    #[test]
    fn a_row_survives_json() {
        let row = row(1.5, Some(0.5)).aiming(Goal::G7, Target::value_at_most(2.0)).plotted("p", "s", 4.0, "bytes");
        let text = serde_json::to_string(&row).unwrap();
        assert!(text.contains(r#""place":"native","suite":"copy","case":"c","value":1.5"#), "{text}");
        assert_eq!(serde_json::from_str::<Row>(&text).unwrap(), row);
    }
}
