//! Plots as SVG text: lines over a logarithmic axis. Colours are the page's (`html`), so that they follow its light or
//! dark.
use std::fmt::Write as _;

use super::escape::escape;
use crate::row::{Row, number};

const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 300.0;
/// Room for labels: left, right, top, bottom.
const LEFT: f64 = 64.0;
const RIGHT: f64 = 16.0;
const TOP: f64 = 16.0;
const BOTTOM: f64 = 56.0;
/// Classes `c0`… that the page has colours for; more lines use them again.
const COLOURS: usize = 6;

/// A line of a plot.
#[derive(Debug)]
struct Line {
    name: String,
    points: Vec<(f64, f64)>,
}

/// The plots of these rows: those with the same title in one, in order of appearance. A title, and its SVG.
pub(crate) fn plots(rows: &[Row]) -> Vec<(String, String)> {
    let mut titles: Vec<&str> = Vec::new();
    for point in rows.iter().filter_map(|row| row.point.as_ref()) {
        if !titles.contains(&point.plot.as_str()) {
            titles.push(&point.plot);
        }
    }
    titles.into_iter().map(|title| (title.to_owned(), plot(title, rows))).collect()
}

/// The lines of a plot: one for each series, and one for its baseline.
fn collect(title: &str, rows: &[Row]) -> Vec<Line> {
    let mut lines: Vec<Line> = Vec::new();
    let mut add = |name: String, at: (f64, f64)| match lines.iter_mut().find(|line| line.name == name) {
        Some(line) => line.points.push(at),
        None => lines.push(Line { name, points: vec![at] }),
    };
    for row in rows {
        if let Some(point) = row.point.as_ref().filter(|point| point.plot == title) {
            add(point.series.clone(), (point.x, row.value));
            if let (Some(name), Some(value)) = (&row.baseline, row.baseline_value) {
                add(format!("{}: {name}", point.series), (point.x, value));
            }
        }
    }
    lines
}

/// A round number that is not below `value`: 1, 2 or 5 times a power of ten.
fn round_up(value: f64) -> f64 {
    let power = 10f64.powf(value.log10().floor());
    [1.0, 2.0, 5.0].map(|n| n * power).into_iter().find(|&round| round >= value).unwrap_or(10.0 * power)
}

fn plot(title: &str, rows: &[Row]) -> String {
    let lines = collect(title, rows);
    let all = || lines.iter().flat_map(|line| &line.points).filter(|(x, y)| *x > 0.0 && y.is_finite());
    let (mut low, mut high, mut top) = (f64::INFINITY, 0f64, 0f64);
    for &(x, y) in all() {
        (low, high, top) = (low.min(x), high.max(x), top.max(y));
    }
    if !low.is_finite() || top <= 0.0 {
        return String::new();
    }
    let top = round_up(top);
    // One place alone stands in the middle.
    let span = (high / low).log2();
    let across = |x: f64| {
        let share = if span > 0.0 { (x / low).log2() / span } else { 0.5 };
        LEFT + share * (WIDTH - LEFT - RIGHT)
    };
    let down = |y: f64| TOP + (1.0 - y / top) * (HEIGHT - TOP - BOTTOM);

    let unit = rows.iter().find(|row| row.point.as_ref().is_some_and(|p| p.plot == title)).map_or("", |row| &row.unit);
    let axis = rows.iter().filter_map(|row| row.point.as_ref()).find(|p| p.plot == title).map_or("", |p| &p.axis);
    let mut svg = format!(
        "<svg viewBox=\"0 0 {WIDTH} {:.0}\" role=\"img\" aria-label=\"{}\">",
        HEIGHT + 18.0 * lines.len() as f64,
        escape(title)
    );
    for step in 0..=4 {
        let value = top * f64::from(step) / 4.0;
        let y = down(value);
        _ = write!(svg, "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{:.1}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>", WIDTH - RIGHT);
        _ = write!(svg, "<text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>", LEFT - 6.0, y + 4.0, number(value));
    }
    for x in ticks(all().map(|&(x, _)| x)) {
        let at = across(x);
        _ = write!(
            svg,
            "<text x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
            HEIGHT - BOTTOM + 18.0,
            short(x)
        );
    }
    let middle = (LEFT + WIDTH - RIGHT) / 2.0;
    _ = write!(
        svg,
        "<text x=\"{middle:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
        HEIGHT - 18.0,
        escape(axis)
    );
    _ = write!(svg, "<text x=\"4\" y=\"{:.1}\">{}</text>", TOP - 4.0, escape(unit));
    for (index, line) in lines.iter().enumerate() {
        let class = index % COLOURS;
        let mut points: Vec<_> = line.points.iter().filter(|(x, y)| *x > 0.0 && y.is_finite()).collect();
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        let path: Vec<_> = points.iter().map(|(x, y)| format!("{:.1},{:.1}", across(*x), down(*y))).collect();
        _ = write!(svg, "<polyline class=\"line c{class}\" points=\"{}\"/>", path.join(" "));
        for (x, y) in points {
            _ = write!(
                svg,
                "<circle class=\"dot c{class}\" cx=\"{:.1}\" cy=\"{:.1}\" r=\"3\"><title>{}: {} at {}</title></circle>",
                across(*x),
                down(*y),
                escape(&line.name),
                number(*y),
                short(*x)
            );
        }
        let y = HEIGHT + 18.0 * index as f64;
        _ = write!(
            svg,
            "<line class=\"line c{class}\" x1=\"{LEFT}\" x2=\"{}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>",
            LEFT + 24.0
        );
        _ = write!(svg, "<text x=\"{}\" y=\"{:.1}\">{}</text>", LEFT + 32.0, y + 4.0, escape(&line.name));
    }
    svg.push_str("</svg>");
    svg
}

/// The labels of the axis, or as many of them as fit.
fn ticks(places: impl Iterator<Item = f64>) -> Vec<f64> {
    const MOST: usize = 9;
    let mut places: Vec<f64> = places.collect();
    places.sort_by(f64::total_cmp);
    places.dedup();
    let step = places.len().div_ceil(MOST).max(1);
    places.into_iter().step_by(step).collect()
}

/// A power of 1024 by its letter.
fn short(value: f64) -> String {
    for (letter, unit) in [("Gi", 30), ("Mi", 20), ("Ki", 10)] {
        let unit = f64::from(1u32 << unit);
        if value >= unit {
            return format!("{}{letter}", value / unit);
        }
    }
    format!("{value}")
}

#[cfg(test)]
mod tests {
    use super::super::tests::sample;
    use super::*;

    #[test]
    fn rows_of_a_plot_are_lines_with_their_baseline() {
        let plots = plots(&sample().rows);
        assert_eq!(plots.len(), 1);
        let (title, svg) = &plots[0];
        assert_eq!(title, "by size");
        assert_eq!(svg.matches("<polyline").count(), 2, "the device, and memcpy: {svg}");
        assert_eq!(svg.matches("<circle").count(), 4);
        assert!(svg.contains("device: memcpy"), "{svg}");
        // 5 GB/s of at most 10 is in the middle, at the lowest x on the left.
        let y = TOP + 0.5 * (HEIGHT - TOP - BOTTOM);
        assert!(svg.contains(&format!("points=\"{LEFT:.1},{y:.1} ")), "{svg}");
    }

    #[test]
    fn one_point_or_nothing_to_plot_is_no_trouble() {
        let rows = &sample().rows;
        assert!(plots(&rows[2..]).is_empty());
        let svg = &plots(&rows[..1])[0].1;
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
        let mut none = rows[0].clone();
        none.value = 0.0;
        none.baseline_value = None;
        assert_eq!(plots(&[none])[0].1, "");
    }

    #[test]
    fn axes_are_round_and_short() {
        assert_eq!(
            [round_up(3.2), round_up(10.0), round_up(0.07)].map(number),
            ["5.00", "10.00", "0.10"].map(String::from)
        );
        assert_eq!([short(64.0), short(65536.0), short(1048576.0)], ["64", "64Ki", "1Mi"]);
    }
}
