//! `svadev bench --compare A.json B.json`.
use std::cmp::Ordering;

use super::report::{Report, table::columns};
use super::row::{Better, Row, better, number};

/// Changes below this are called the same, per cent: rows of two runs on a quiet machine differ by as much.
const SAME_PERCENT: f64 = 5.0;

/// What became of a row's figure from A to B.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Change {
    /// It is not in A.
    Added,
    /// It is not in B.
    Removed,
    /// Less than [`SAME_PERCENT`] apart.
    Same(f64),
    /// By so many per cent.
    Better(f64),
    /// By so many per cent.
    Worse(f64),
    /// By so many per cent, of a unit that says nothing about it, or whose values cannot be compared.
    Other(Option<f64>),
}

fn change(a: Option<&Row>, b: Option<&Row>) -> Option<Change> {
    let (a, b) = match (a, b) {
        (None, None) => return None,
        (None, Some(_)) => return Some(Change::Added),
        (Some(_), None) => return Some(Change::Removed),
        (Some(a), Some(b)) => (a, b),
    };
    if a.unit != b.unit || a.value <= 0.0 {
        return Some(Change::Other(None));
    }
    let percent = (b.value / a.value - 1.0) * 100.0;
    Some(match (better(&a.unit), percent.abs() < SAME_PERCENT, percent.partial_cmp(&0.0)) {
        (_, true, _) => Change::Same(percent),
        (Some(Better::More), _, Some(Ordering::Greater)) | (Some(Better::Less), _, Some(Ordering::Less)) => {
            Change::Better(percent)
        }
        (Some(_), ..) => Change::Worse(percent),
        (None, ..) => Change::Other(Some(percent)),
    })
}

impl Change {
    fn text(self) -> (String, &'static str) {
        match self {
            Self::Added => (String::new(), "only in B"),
            Self::Removed => (String::new(), "only in A"),
            Self::Same(percent) => (format!("{percent:+.1} %"), "same"),
            Self::Better(percent) => (format!("{percent:+.1} %"), "better"),
            Self::Worse(percent) => (format!("{percent:+.1} %"), "worse"),
            Self::Other(Some(percent)) => (format!("{percent:+.1} %"), ""),
            Self::Other(None) => (String::new(), "not comparable"),
        }
    }
}

/// A table of every row of either report, and a summary. Rows are the same if place, suite and case are.
pub fn lines(a: &Report, b: &Report) -> Vec<String> {
    let same = |x: &Row, y: &Row| (x.place, x.suite, &x.case) == (y.place, y.suite, &y.case);
    let find = |report: &Report, row: &Row| report.rows.iter().find(|other| same(other, row)).cloned();
    let mut pairs: Vec<(Option<Row>, Option<Row>)> =
        a.rows.iter().map(|row| (Some(row.clone()), find(b, row))).collect();
    pairs.extend(b.rows.iter().filter(|row| find(a, row).is_none()).map(|row| (None, Some(row.clone()))));

    let mut rows = vec![["", "", "A", "B", "", "change", "ratio A", "ratio B", ""].map(str::to_owned).to_vec()];
    let mut counts = [0; 3];
    for (a, b) in &pairs {
        let (Some(row), Some(change)) = (a.as_ref().or(b.as_ref()), change(a.as_ref(), b.as_ref())) else { continue };
        match change {
            Change::Better(_) => counts[0] += 1,
            Change::Worse(_) => counts[1] += 1,
            Change::Same(_) => counts[2] += 1,
            _ => {}
        }
        let value = |row: &Option<Row>| row.as_ref().map(|row| number(row.value)).unwrap_or_default();
        let ratio = |row: &Option<Row>| row.as_ref().and_then(|row| row.ratio).map(number).unwrap_or_default();
        let (percent, word) = change.text();
        rows.push(vec![
            format!("{} ({})", row.suite.name(), row.place.name()),
            row.case.clone(),
            value(a),
            value(b),
            row.unit.clone(),
            percent,
            ratio(a),
            ratio(b),
            word.to_owned(),
        ]);
    }
    let about = |name: &str, report: &Report| {
        let machine = &report.machine;
        format!("{name}: {}, {}, load {} before", machine.date, machine.cpu, machine.load)
    };
    let mut lines = vec![about("A", a), about("B", b)];
    if a.machine.cpu != b.machine.cpu || a.machine.processors != b.machine.processors {
        lines.push("Two machines: compare the ratios, not the times.".to_owned());
    }
    lines.push(String::new());
    lines.extend(columns(&rows, 2));
    let [better, worse, same] = counts;
    lines.push(String::new());
    lines.push(format!("{better} better, {worse} worse, {same} the same within {SAME_PERCENT} %"));
    lines
}

#[cfg(test)]
mod tests {
    use super::super::report::tests::sample;
    use super::*;
    use crate::row::{Place, Suite};

    fn row(value: f64, unit: &str) -> Row {
        Row::new(Place::Native, Suite::Copy, "c", value, unit)
    }

    #[test]
    fn the_unit_says_what_is_better() {
        let of = |a: f64, b: f64, unit: &str| change(Some(&row(a, unit)), Some(&row(b, unit))).unwrap();
        assert_eq!(of(10.0, 12.0, "GB/s"), Change::Better(19.999_999_999_999_996));
        assert!(matches!(of(10.0, 12.0, "us"), Change::Worse(_)));
        assert!(matches!(of(10.0, 8.0, "us"), Change::Better(_)));
        assert!(matches!(of(10.0, 8.0, "M/s"), Change::Worse(_)));
        assert!(matches!(of(10.0, 10.2, "M/s"), Change::Same(_)));
        assert!(matches!(of(10.0, 20.0, "bananas"), Change::Other(Some(_))));
        assert_eq!(of(0.0, 20.0, "us"), Change::Other(None));
        assert_eq!(change(Some(&row(1.0, "us")), Some(&row(1.0, "ns"))), Some(Change::Other(None)));
    }

    #[test]
    fn rows_of_one_report_only_are_there_too() {
        let (a, mut b) = (sample(), sample());
        b.rows[0].value *= 2.0;
        b.rows[1].case = "128 KiB".into();
        let text = lines(&a, &b).join("\n");
        let line = |case: &str| text.lines().find(|line| line.contains(&format!(" {case} "))).unwrap().to_owned();
        assert!(line("4 KiB").ends_with("better") && line("4 KiB").contains("+100.0 %"), "{text}");
        assert!(line("64 KiB").ends_with("only in A"), "{text}");
        assert!(line("128 KiB").ends_with("only in B"), "{text}");
        assert!(text.ends_with("1 better, 0 worse, 2 the same within 5 %"), "{text}");
        assert!(!text.contains("Two machines"));
        b.machine.processors += 1;
        assert!(lines(&a, &b).join("\n").contains("Two machines"));
    }
}
