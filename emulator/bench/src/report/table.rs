//! The report in a terminal.
use super::{Report, verdict, verdict_text};
use crate::row::{Figure, Place, Row, Suite, number};

/// Aligns columns: the first `left` of them to the left, numbers to the right.
pub fn columns(rows: &[Vec<String>], left: usize) -> Vec<String> {
    let count = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<_> = (0..count).map(width).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).enumerate().map(|(column, (cell, &width))| {
            if column < left { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
        });
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect()
}

fn optional(value: Option<f64>) -> String {
    value.map(number).unwrap_or_default()
}

/// The figure that a target is about, with its unit.
fn figure(row: &Row) -> String {
    match row.target.map(|target| target.of) {
        Some(Figure::Ratio) => row.ratio.map_or_else(|| "—".to_owned(), |ratio| format!("{} ×", number(ratio))),
        _ => format!("{} {}", number(row.value), row.unit),
    }
}

/// Every row, grouped by suite and place; then the goals.
pub fn lines(report: &Report) -> Vec<String> {
    let mut lines = Vec::new();
    for suite in Suite::ALL {
        for place in [Place::Native, Place::Guest] {
            let rows: Vec<_> = report.rows.iter().filter(|row| row.suite == suite && row.place == place).collect();
            if !rows.is_empty() {
                lines.extend([String::new(), format!("{} ({})", suite.name(), place.name())]);
                lines.extend(columns(&suite_rows(&rows), 1));
            }
        }
    }
    lines.extend([String::new(), "What is to be reached".to_owned()]);
    lines.extend(columns(&goal_rows(report), 3));
    lines
}

fn suite_rows(rows: &[&Row]) -> Vec<Vec<String>> {
    let head = ["", "median", "", "p99", "baseline", "ratio", "target", "", ""].map(str::to_owned).to_vec();
    let row = |row: &&Row| {
        vec![
            format!("  {}", row.case),
            number(row.value),
            row.unit.clone(),
            optional(row.p99),
            optional(row.baseline_value),
            row.ratio.map(|ratio| format!("{} ×", number(ratio))).unwrap_or_default(),
            row.target.map(|target| target.text(&row.unit)).unwrap_or_default(),
            row.verdict.map_or(String::new(), |verdict| verdict.name().to_owned()),
            row.baseline.as_ref().map(|name| format!("against {name}")).unwrap_or_default(),
        ]
    };
    std::iter::once(head).chain(rows.iter().map(row)).collect()
}

fn goal_rows(report: &Report) -> Vec<Vec<String>> {
    let mut lines = vec![["", "", "", "figure", "target", "verdict"].map(str::to_owned).to_vec()];
    for (goal, rows) in report.goals() {
        let whole = if rows.is_empty() { "not measured" } else { verdict_text(verdict(&rows)) };
        let cells =
            [goal.to_string(), goal.text().to_owned(), String::new(), String::new(), String::new(), whole.into()];
        lines.push(cells.to_vec());
        for row in rows {
            lines.push(vec![
                String::new(),
                format!("  {}", row.case),
                row.place.name().to_owned(),
                figure(row),
                row.target.map(|target| target.text(&row.unit)).unwrap_or_default(),
                verdict_text(row.verdict).to_owned(),
            ]);
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::super::tests::sample;
    use super::*;

    #[test]
    fn every_row_and_every_goal_is_in_the_table() {
        let text = lines(&sample()).join("\n");
        for row in &sample().rows {
            assert!(text.contains(&row.case), "{text}");
        }
        for wanted in ["copy (native)", "trap (guest)", "0.50 ×", "≥ 0.8 ×", "1.50 us", "against memcpy"] {
            assert!(text.contains(wanted), "{wanted}: {text}");
        }
        let goals: Vec<_> = text.lines().skip_while(|line| !line.starts_with("What is")).collect();
        let of = |goal: &str| goals.iter().find(|line| line.starts_with(goal)).unwrap().to_string();
        assert!(of("G1").ends_with("missed"), "{text}");
        assert!(of("G2").ends_with("not measured"), "{text}");
        assert!(of("G7").ends_with("reached"), "{text}");
    }

    #[test]
    fn columns_are_aligned_by_characters() {
        let rows = [vec!["≥ a".to_owned(), "1".to_owned()], vec!["b".to_owned(), "10".to_owned()]];
        assert_eq!(columns(&rows, 1), ["≥ a   1", "b    10"]);
    }
}
