//! Bars as SVG text, for rows that are no points of a line: a bar for the value, a mark for the baseline.
use std::fmt::Write as _;

use super::escape::escape;
use crate::row::{Place, Row, Suite, number};

const WIDTH: f64 = 640.0;
/// Room for one row, for its name to the left, for its number to the right.
const LINE: f64 = 22.0;
const LEFT: f64 = 270.0;
const RIGHT: f64 = 90.0;
/// Longest name that fits, in characters.
const NAME: usize = 42;
/// If the rows of one figure differ by more than this factor, the axis is logarithmic.
const WIDE: f64 = 50.0;

/// What the rows of one figure have in common: place, suite, unit.
type Key<'r> = (Place, Suite, &'r str);

/// A figure for each place, suite and unit with at least two such rows: its title, and its SVG.
pub(crate) fn bars(rows: &[Row]) -> Vec<(String, String)> {
    let mut groups: Vec<(Key<'_>, Vec<&Row>)> = Vec::new();
    for row in rows.iter().filter(|row| row.point.is_none() && row.value > 0.0) {
        let key = (row.place, row.suite, row.unit.as_str());
        match groups.iter_mut().find(|(other, _)| *other == key) {
            Some((_, group)) => group.push(row),
            None => groups.push((key, vec![row])),
        }
    }
    let figure = |((place, suite, unit), rows): (Key<'_>, Vec<&Row>)| {
        let logarithmic = if spread(&rows) > WIDE { ", logarithmic" } else { "" };
        (format!("{} ({}), {unit}{logarithmic}", suite.name(), place.name()), draw(&rows))
    };
    groups.into_iter().filter(|(_, rows)| rows.len() > 1).map(figure).collect()
}

fn figures<'r>(rows: &'r [&Row]) -> impl Iterator<Item = f64> + 'r {
    rows.iter().flat_map(|row| [Some(row.value), row.baseline_value]).flatten().filter(|value| *value > 0.0)
}

/// The largest figure in units of the smallest.
fn spread(rows: &[&Row]) -> f64 {
    figures(rows).fold(0.0, f64::max) / figures(rows).fold(f64::INFINITY, f64::min)
}

fn draw(rows: &[&Row]) -> String {
    let (low, high) = (figures(rows).fold(f64::INFINITY, f64::min), figures(rows).fold(0.0, f64::max));
    let length = |value: f64| {
        // On a logarithmic axis the smallest still has a bar.
        let share = if high / low > WIDE { 0.05 + 0.95 * (value / low).ln() / (high / low).ln() } else { value / high };
        share * (WIDTH - LEFT - RIGHT)
    };
    let height = LINE * rows.len() as f64 + 4.0;
    let mut svg = format!("<svg viewBox=\"0 0 {WIDTH} {height:.0}\" role=\"img\">");
    for (index, row) in rows.iter().enumerate() {
        let top = LINE * index as f64 + 4.0;
        let name: String = row.case.chars().take(NAME).collect();
        let end = LEFT + length(row.value);
        _ = write!(
            svg,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>\
             <rect class=\"bar\" x=\"{LEFT}\" y=\"{top:.1}\" width=\"{:.1}\" height=\"{:.1}\"><title>{}</title></rect>",
            LEFT - 8.0,
            top + 13.0,
            escape(&name),
            end - LEFT,
            LINE - 6.0,
            escape(&row.case)
        );
        let mut after = end;
        if let (Some(value), Some(name)) = (row.baseline_value.filter(|value| *value > 0.0), &row.baseline) {
            let at = LEFT + length(value);
            after = after.max(at);
            _ = write!(
                svg,
                "<line class=\"line c1\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{:.1}\" y2=\"{:.1}\"><title>{}: {}</title></line>",
                top - 2.0,
                top + LINE - 4.0,
                escape(name),
                number(value)
            );
        }
        _ = write!(svg, "<text x=\"{:.1}\" y=\"{:.1}\">{}</text>", after + 6.0, top + 13.0, number(row.value));
    }
    svg.push_str("</svg>");
    svg
}

#[cfg(test)]
mod tests {
    use super::super::tests::sample;
    use super::*;

    fn row(case: &str, value: f64) -> Row {
        Row::new(Place::Guest, Suite::Trap, case, value, "us")
    }

    #[test]
    fn rows_of_one_suite_and_unit_stand_together() {
        let mut rows = sample().rows;
        assert!(bars(&rows).is_empty(), "a row alone needs no picture");
        rows.push(Row { baseline: Some("<b>".into()), baseline_value: Some(38.5), ..row("write", 38.5) });
        rows.push(Row { unit: "M/s".into(), ..row("rate", 1.0) });
        let figures = bars(&rows);
        assert_eq!(figures.len(), 1);
        let (title, svg) = &figures[0];
        assert_eq!(title, "trap (guest), us");
        assert_eq!((svg.matches("<rect").count(), svg.matches("<line").count()), (2, 1), "{svg}");
        let full = WIDTH - LEFT - RIGHT;
        assert!(
            svg.contains(&format!("width=\"{full:.1}\"")) && svg.contains(&format!("width=\"{:.1}\"", full / 2.0)),
            "{svg}"
        );
        assert!(svg.contains("&lt;b&gt;: 38.50"), "{svg}");
    }

    #[test]
    fn figures_far_apart_get_another_axis() {
        let (title, svg) = bars(&[row("a", 0.01), row("b", 1000.0)]).remove(0);
        assert!(title.ends_with(", logarithmic") && !svg.contains("NaN"), "{title}: {svg}");
        assert!(bars(&[row("a", 0.0), row("b", f64::NAN)]).is_empty());
    }
}
