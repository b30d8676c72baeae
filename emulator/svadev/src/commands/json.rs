//! Files for programs to read.
use std::path::Path;

use svadev_launcher::exit::{Exit, OrExit as _, Outcome};
use svadev_launcher::files;

/// Writes results for a program to read. `-` is standard output.
pub(crate) fn write_json(path: &Path, value: &impl serde::Serialize) -> Outcome<()> {
    let mut text = serde_json::to_string_pretty(value).or_exit(Exit::Usage)?;
    text.push('\n');
    files::write(path, text.as_bytes()).or_exit(Exit::Usage)
}

/// Checks before the work that its results can be written.
pub(crate) fn check_writable(path: Option<&Path>) -> Outcome<()> {
    path.map_or(Ok(()), |path| files::check_writable(path).or_exit(Exit::Usage))
}
