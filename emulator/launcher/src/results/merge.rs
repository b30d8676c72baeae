//! Joins the results of the shards of one run.
use std::collections::{BTreeMap, BTreeSet};

use anyhow::{bail, ensure};

use super::Results;
use crate::ktap::{TestResult, Verdict};

/// Rows about a whole run, which every shard has.
const ABOUT_THE_RUN: &str = "svadev/";

/// Joins files, each with its name for messages. Tests come in the order of the shards.
///
/// The status is that of the first shard that has another than 0.
///
/// Errors: they are no shards of one run, one is missing, or a test ran in two of them.
pub fn merge(files: &[(String, Results)]) -> anyhow::Result<Results> {
    let mut files: Vec<&(String, Results)> = files.iter().collect();
    files.sort_by_key(|(_, results)| results.shard.map(|shard| shard.part));
    let Some((first_name, first)) = files.first() else { bail!("no file to join") };
    let mut present = BTreeSet::new();
    for (name, results) in &files {
        let Some(shard) = results.shard else {
            ensure!(files.len() == 1, "{name} is a whole run and no shard: join files of `svadev test --shard I/N`");
            continue;
        };
        let same = first.shard.is_some_and(|other| other.parts == shard.parts) && results.chosen == first.chosen;
        ensure!(
            same,
            "{name} and {first_name} are shards of different runs: use the same tests and the same N for all of them"
        );
        ensure!(present.insert(shard.part), "{name}: shard {shard} comes twice");
    }
    if let Some(shard) = first.shard {
        let missing: Vec<_> = (1..=shard.parts).filter(|part| !present.contains(part)).collect();
        let names = missing.iter().map(|part| format!("{part}/{}", shard.parts)).collect::<Vec<_>>().join(", ");
        ensure!(missing.is_empty(), "shards are missing: {names}: give the files of all {} shards", shard.parts);
    }
    let mut merged = Results { shard: None, results: Vec::new(), ..first.clone() };
    let (mut seen, mut about) = (BTreeMap::new(), BTreeMap::<String, TestResult>::new());
    for (name, results) in &files {
        for result in &results.results {
            if result.name.starts_with(ABOUT_THE_RUN) {
                join_rows(about.entry(result.name.clone()).or_insert_with(|| blank(&result.name)), result, results);
            } else if let Some(other) = seen.insert(result.name.clone(), name.clone()) {
                bail!("{} ran in {other} and in {name}: they are no shards of one run", result.name);
            } else {
                merged.results.push(result.clone());
            }
        }
    }
    merged.results.extend(about.into_values());
    let bad = files.iter().map(|(_, results)| results).find(|results| results.status != 0);
    merged.status = bad.map_or(0, |results| results.status);
    merged.failure =
        files.iter().map(|(_, results)| &results.failure).find(|text| !text.is_empty()).cloned().unwrap_or_default();
    merged.started = files.iter().map(|(_, results)| results.started).min().unwrap_or(first.started);
    merged.seconds = files.iter().map(|(_, results)| results.seconds).sum();
    Ok(merged)
}

fn blank(name: &str) -> TestResult {
    TestResult {
        name: name.to_owned(),
        verdict: Verdict::Pass,
        seconds: 0.0,
        reason: String::new(),
        diagnostics: Vec::new(),
        reports: Vec::new(),
    }
}

/// Adds one shard's row to the joined one. Its lines say which shard they are from.
fn join_rows(row: &mut TestResult, more: &TestResult, from: &Results) {
    if more.verdict == Verdict::Fail {
        row.verdict = Verdict::Fail;
    }
    row.seconds += more.seconds;
    if row.reason.is_empty() {
        row.reason.clone_from(&more.reason);
    }
    let shard = from.shard.map(|shard| format!("shard {shard}: ")).unwrap_or_default();
    row.diagnostics.extend(more.diagnostics.iter().map(|line| format!("{shard}{line}")));
    row.reports.extend(more.reports.iter().cloned());
}

#[cfg(test)]
mod tests {
    use super::super::{
        Shard, junit, kcidb,
        tests::{check, result, sample},
    };
    use super::*;

    fn part(part: u32, parts: u32, names: &[&str]) -> (String, Results) {
        let results = names.iter().map(|name| result(name, Verdict::Pass)).collect();
        let shard = Some(Shard { part, parts });
        (format!("{part}.json"), Results { shard, results, status: 0, ..sample() })
    }

    #[test]
    fn shards_in_any_order_are_one_run_whose_files_are_valid() {
        let mut second = part(2, 2, &["b", "svadev/run"]);
        second.1.results[1].verdict = Verdict::Fail;
        second.1.results[1].diagnostics = vec!["kernel log: BUG".into()];
        second.1.status = 1;
        let merged = merge(&[second, part(1, 2, &["a", "svadev/run"])]).unwrap();
        let names: Vec<_> = merged.results.iter().map(|result| result.name.as_str()).collect();
        assert_eq!(names, ["a", "b", "svadev/run"]);
        assert_eq!((merged.status, merged.shard, merged.seconds), (1, None, 25.0));
        assert_eq!(merged.results[2].verdict, Verdict::Fail);
        assert_eq!(merged.results[2].diagnostics, ["shard 2/2: kernel log: BUG"]);
        check("test.json", &serde_json::to_value(&merged).unwrap()).unwrap();
        check("kcidb.json", &kcidb::document(&merged, &kcidb::Identity::new("a", None).unwrap())).unwrap();
        quick_junit::Report::deserialize_from_str(&junit::document(&merged).unwrap()).unwrap();
    }

    #[test]
    fn what_is_no_set_of_shards_is_refused() {
        let refused = |files: &[(String, Results)], words: &str| {
            let error = format!("{:#}", merge(files).unwrap_err());
            assert!(error.contains(words), "{error}");
        };
        refused(&[], "no file");
        refused(&[part(1, 3, &["a"]), part(3, 3, &["b"])], "missing: 2/3");
        refused(&[part(1, 2, &["a"]), part(1, 2, &["b"])], "comes twice");
        refused(&[part(1, 2, &["a"]), part(2, 2, &["a"])], "a ran in 1.json and in 2.json");
        refused(&[part(1, 2, &["a"]), part(2, 3, &["b"])], "different runs");
        let mut other = part(2, 2, &["b"]);
        other.1.chosen = vec!["lifetime".into()];
        refused(&[part(1, 2, &["a"]), other], "different runs");
        let whole = ("w.json".to_owned(), Results { shard: None, ..sample() });
        refused(&[whole.clone(), part(1, 2, &["a"])], "no shard");
        assert_eq!(merge(std::slice::from_ref(&whole)).unwrap(), whole.1);
    }
}
