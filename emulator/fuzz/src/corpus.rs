//! The kept inputs: `corpus/<target>/*` beside this crate's manifest.
use std::path::{Path, PathBuf};
use std::{fs, io};

use crate::Target;

/// Where a target's inputs are kept in the repository.
pub fn folder(target: &Target) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target.name)
}

/// A target's kept inputs, sorted by file name; none where there is no folder.
pub fn load(folder: &Path) -> io::Result<Vec<(PathBuf, Vec<u8>)>> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut paths = entries.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>()?;
    paths.sort();
    paths.into_iter().map(|path| fs::read(&path).map(|data| (path, data))).collect()
}

/// Writes a target's seeds into `folder`, as `seed-<name>`.
pub fn write_seeds(target: &Target, folder: &Path) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    for (name, data) in (target.seeds)() {
        fs::write(folder.join(format!("seed-{name}")), data)?;
    }
    Ok(())
}
