//! `docs/spec-coverage.md` tells the truth: every row has its reason, and every test that it names is there.
use std::collections::HashMap;
use std::path::Path;

const PAGE: &str = include_str!("../../../../docs/spec-coverage.md");

/// The tests in a file of this folder, by name.
fn tests_in(file: &str) -> Vec<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/tests").join(file).with_extension("rs");
    let source = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let names = source.split("fn ").skip(1).filter_map(|rest| rest.split_once('(')).map(|(name, _)| name.to_owned());
    names.collect()
}

/// Every `file::test` or `file::*` between backticks.
fn named() -> Vec<(&'static str, &'static str)> {
    let quoted = PAGE.split('`').skip(1).step_by(2);
    let tests = quoted.filter_map(|text| text.split_once("::"));
    // `file::test` itself is how the page says what such a name means; types have capitals.
    tests.filter(|(file, _)| *file != "file" && file.chars().all(|c| c.is_ascii_lowercase() || c == '_')).collect()
}

#[test]
fn every_test_that_the_page_names_is_there() {
    let mut files: HashMap<&str, Vec<String>> = HashMap::new();
    assert!(named().len() > 50, "the page names its tests");
    for (file, test) in named() {
        let tests = files.entry(file).or_insert_with(|| tests_in(file));
        assert!(tests.iter().any(|t| test == "*" || t == test), "no test {file}::{test}");
    }
}

#[test]
fn every_row_is_explained() {
    let rows = PAGE.lines().filter(|line| line.starts_with("| ") && line.matches(" | ").count() == 3);
    let mut seen = 0;
    for row in rows.filter(|row| !row.starts_with("| section") && !row.starts_with("| ---")) {
        let cells: Vec<&str> = row.trim_matches('|').split(" | ").map(str::trim).collect();
        let [section, state, what, test] = cells[..] else { panic!("{row}") };
        assert!(matches!(state, "yes" | "no"), "{section}: {state}");
        assert!(state == "yes" || !what.is_empty(), "{section} is left out and says no reason");
        assert!(!test.trim_matches('|').trim().is_empty(), "{section} names no test");
        seen += 1;
    }
    assert!(seen > 35, "{seen} rows: the table has another shape now");
}
