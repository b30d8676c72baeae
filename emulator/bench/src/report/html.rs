//! The report as one self-contained page: style and plots are inside, and there is no script, font or outside link.
use std::fmt::Write as _;

use super::{Report, bars, escape::escape, svg, verdict, verdict_text};
use crate::row::{Place, Row, Suite, number};

const STYLE: &str = "\
:root{color-scheme:light dark;--text:#1a1a1a;--back:#fff;--soft:#666;--rule:#ddd;--good:#1a7f37;--bad:#c62828;\
--c0:#1f6feb;--c1:#bf5b04;--c2:#1a7f37;--c3:#8250df;--c4:#c62828;--c5:#4d7178}\
@media(prefers-color-scheme:dark){:root{--text:#e6e6e6;--back:#16181c;--soft:#9a9a9a;--rule:#3a3d44;--good:#56d364;\
--bad:#ff7b72;--c0:#79b8ff;--c1:#ffab70;--c2:#56d364;--c3:#d2a8ff;--c4:#ff7b72;--c5:#8fb8c0}}\
body{font:15px/1.5 system-ui,sans-serif;color:var(--text);background:var(--back);max-width:70rem;margin:2rem auto;padding:0 1rem}\
h1{font-size:1.5rem}h2{font-size:1.15rem;margin-top:2.2rem;border-bottom:1px solid var(--rule)}\
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}\
th,td{text-align:right;padding:.15rem .6rem;border-bottom:1px solid var(--rule)}\
th:first-child,td:first-child,td.left,th.left{text-align:left}th{color:var(--soft);font-weight:500}\
.reached{color:var(--good)}.missed{color:var(--bad)}.goal td{font-weight:600}\
.wide{overflow-x:auto}.plots{display:flex;flex-wrap:wrap;gap:1.5rem}figure{margin:0;flex:1 1 28rem}\
svg{width:100%;height:auto}svg text{fill:var(--soft);font:12px system-ui,sans-serif}.grid{stroke:var(--rule)}\
.line{fill:none;stroke:currentColor;stroke-width:2}.dot{fill:currentColor}.bar{fill:var(--c0);opacity:.75}\
.c0{color:var(--c0)}.c1{color:var(--c1)}.c2{color:var(--c2)}.c3{color:var(--c3)}.c4{color:var(--c4)}.c5{color:var(--c5)}";

/// The whole page.
pub fn page(report: &Report) -> String {
    let mut html = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width\"><title>svadev bench</title><style>{STYLE}</style></head><body>\n\
         <h1>svadev bench</h1>\n"
    );
    machine(&mut html, report);
    goals(&mut html, report);
    plots(&mut html, report);
    for suite in Suite::ALL {
        for place in [Place::Native, Place::Guest] {
            let rows: Vec<_> = report.rows.iter().filter(|row| row.suite == suite && row.place == place).collect();
            if !rows.is_empty() {
                _ = write!(html, "<h2>{} ({})</h2>", suite.name(), place.name());
                table(&mut html, &rows);
            }
        }
    }
    counters(&mut html, report);
    html.push_str("</body></html>\n");
    html
}

fn machine(html: &mut String, report: &Report) {
    html.push_str("<div class=\"wide\"><table>");
    for (name, value) in report.machine.lines() {
        _ = write!(html, "<tr><th>{name}</th><td class=\"left\">{}</td></tr>", escape(&value));
    }
    html.push_str("</table></div>\n");
}

fn verdict_cell(html: &mut String, text: &str) {
    _ = write!(html, "<td class=\"{text}\">{text}</td>");
}

fn goals(html: &mut String, report: &Report) {
    html.push_str("<h2>What is to be reached</h2><div class=\"wide\"><table>");
    html.push_str(
        "<tr><th></th><th class=\"left\"></th><th>value</th><th>ratio</th><th>target</th><th>verdict</th></tr>",
    );
    for (goal, rows) in report.goals() {
        let whole = if rows.is_empty() { "not measured" } else { verdict_text(verdict(&rows)) };
        _ = write!(
            html,
            "<tr class=\"goal\"><td>{goal}</td><td class=\"left\">{}</td><td></td><td></td><td></td>",
            goal.text()
        );
        verdict_cell(html, whole);
        html.push_str("</tr>\n");
        for row in rows {
            _ = write!(
                html,
                "<tr><td></td><td class=\"left\">{} ({})</td><td>{} {}</td><td>{}</td><td>{}</td>",
                escape(&row.case),
                row.place.name(),
                number(row.value),
                escape(&row.unit),
                row.ratio.map(number).unwrap_or_default(),
                row.target.map(|target| escape(&target.text(&row.unit))).unwrap_or_default(),
            );
            verdict_cell(html, verdict_text(row.verdict));
            html.push_str("</tr>\n");
        }
    }
    html.push_str("</table></div>\n");
}

fn plots(html: &mut String, report: &Report) {
    let mut plots = svg::plots(&report.rows);
    plots.extend(bars::bars(&report.rows));
    if plots.is_empty() {
        return;
    }
    html.push_str(
        "<h2>Plots</h2><p>Dots and bars are medians; a mark across a bar is its baseline.</p><div class=\"plots\">",
    );
    for (title, svg) in plots {
        _ = writeln!(html, "<figure><figcaption>{}</figcaption>{svg}</figure>", escape(&title));
    }
    html.push_str("</div>\n");
}

fn table(html: &mut String, rows: &[&Row]) {
    html.push_str(
        "<div class=\"wide\"><table><tr><th></th><th>median</th><th>min</th><th>p99</th><th>samples</th>\
         <th class=\"left\">against</th><th>baseline</th><th>ratio</th><th>verdict</th></tr>\n",
    );
    for row in rows {
        _ = write!(
            html,
            "<tr><td>{}{}</td><td>{} {}</td><td>{}</td><td>{}</td><td>{}</td><td class=\"left\">{}</td><td>{}</td><td>{}</td>",
            escape(&row.case),
            row.note.as_deref().map(|note| format!("<br><small>{}</small>", escape(note))).unwrap_or_default(),
            number(row.value),
            escape(&row.unit),
            row.min.map(number).unwrap_or_default(),
            row.p99.map(number).unwrap_or_default(),
            row.n.map(|n| n.to_string()).unwrap_or_default(),
            row.baseline.as_deref().map(escape).unwrap_or_default(),
            row.baseline_value.map(number).unwrap_or_default(),
            row.ratio.map(number).unwrap_or_default(),
        );
        verdict_cell(html, row.verdict.map_or("", |verdict| verdict.name()));
        html.push_str("</tr>\n");
    }
    html.push_str("</table></div>\n");
}

fn counters(html: &mut String, report: &Report) {
    if report.counters.is_empty() {
        return;
    }
    html.push_str("<h2>Counted by the backend</h2><div class=\"wide\"><table>");
    for mark in &report.counters {
        let counted: Vec<_> = mark.counted.iter().map(|(name, n)| format!("{} {n}", escape(name))).collect();
        _ = writeln!(html, "<tr><td>{}</td><td class=\"left\">{}</td></tr>", escape(&mark.label), counted.join(", "));
    }
    html.push_str("</table></div>\n");
}

#[cfg(test)]
mod tests {
    use super::super::tests::sample;
    use super::*;

    #[test]
    fn the_page_has_every_row_and_nothing_from_outside() {
        let html = page(&sample());
        for row in &sample().rows {
            assert!(html.contains(&escape(&row.case)), "{}", row.case);
        }
        assert!(html.contains("<small>slow &amp; sure</small>"));
        assert!(html.contains("one &lt;page&gt;") && html.contains("a &amp; b"), "text is text");
        for outside in ["http:", "https:", "<script", "<link", "@import", "url("] {
            assert!(!html.contains(outside), "{outside}");
        }
        assert!(html.contains("<svg") && html.contains("prefers-color-scheme:dark"));
        assert_eq!(html.matches("<table").count(), html.matches("</table>").count());
        assert_eq!(html.matches("<tr").count(), html.matches("</tr>").count());
        assert_eq!(html.matches("<td").count(), html.matches("</td>").count());
    }
}
