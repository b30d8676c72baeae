//! Files for programs to read.
use std::path::Path;

use anyhow::Context as _;

use svadev_launcher::exit::{Exit, OrExit as _, Outcome};

/// Writes results for a program to read.
pub(crate) fn write_json(path: &Path, value: &impl serde::Serialize) -> Outcome<()> {
    let write = || -> anyhow::Result<()> {
        let mut text = serde_json::to_string_pretty(value)?;
        text.push('\n');
        std::fs::write(path, text)?;
        Ok(())
    };
    write().with_context(|| format!("cannot write {}", path.display())).or_exit(Exit::Usage)
}
