//! `svadev report`: joins and converts results.
use super::result_files::{Writer, print};
use crate::cli::ReportCommand;
use svadev_launcher::{
    exit::{Exit, OrExit as _, Outcome},
    ktap::Verdict,
    results::{Results, merge},
};

/// Runs it.
pub(crate) fn run(command: &ReportCommand) -> Outcome<u8> {
    let ReportCommand::Merge { inputs, files } = command;
    let writer = Writer::new(files)?;
    let read = |path: &std::path::PathBuf| Ok((path.display().to_string(), Results::read(path)?));
    let parts = inputs.iter().map(read).collect::<anyhow::Result<Vec<_>>>().or_exit(Exit::Usage)?;
    let merged = merge::merge(&parts).or_exit(Exit::Usage)?;
    for result in merged.results.iter().filter(|result| result.verdict == Verdict::Fail) {
        print(result);
    }
    out!(
        "{} passed, {} failed, {} skipped in {} files{}",
        merged.count(Verdict::Pass),
        merged.count(Verdict::Fail),
        merged.count(Verdict::Skip),
        parts.len(),
        if merged.failure.is_empty() { String::new() } else { format!("; {}", merged.failure) }
    );
    writer.write(&merged)?;
    Ok(merged.status)
}
