//! The folder of one run: sockets, logs, the image. It is removed at the end of the run. If the run was killed, the
//! next run removes it.
use std::{
    fs::File,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, ensure};
use nix::fcntl::{Flock, FlockArg};

/// Beginning of the folders' names.
const PREFIX: &str = "svadev-run-";
/// The file whose lock says that the run is alive.
const LOCK: &str = "lock";
/// Longest path of a socket, bytes (unix(7), `sun_path`), less the longest name that is put in the folder.
const MAX_PATH: usize = 107 - 24;

/// The folder, locked as long as this lives.
#[derive(Debug)]
pub struct RunFolder {
    folder: tempfile::TempDir,
    _lock: Flock<File>,
}

impl RunFolder {
    /// A new one in the user's runtime folder, or where temporary files go.
    pub fn create() -> anyhow::Result<Self> {
        let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
        let base = runtime.filter(|path| is_usable(path)).unwrap_or_else(std::env::temp_dir);
        sweep(&base);
        Self::create_in(&base)
    }

    fn create_in(base: &Path) -> anyhow::Result<Self> {
        let folder =
            tempfile::Builder::new().prefix(PREFIX).tempdir_in(base).with_context(|| base.display().to_string())?;
        let length = folder.path().as_os_str().len();
        ensure!(
            length <= MAX_PATH,
            "the path {} is too long for a socket: set TMPDIR to a shorter path",
            folder.path().display()
        );
        let file = File::create_new(folder.path().join(LOCK))?;
        let lock = Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| errno)?;
        Ok(Self { folder, _lock: lock })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Copies the files of the run to a folder that stays; `logs_only` leaves out the large ones.
    pub fn copy_to(&self, to: &Path, logs_only: bool) -> anyhow::Result<()> {
        std::fs::create_dir_all(to).with_context(|| to.display().to_string())?;
        for entry in std::fs::read_dir(self.path())? {
            let entry = entry?;
            let name = entry.file_name();
            let is_log = name.to_str().is_some_and(|name| name.ends_with(".log") || name.ends_with(".txt"));
            if entry.file_type()?.is_file() && name != LOCK && (is_log || !logs_only) {
                let target = to.join(name);
                std::fs::copy(entry.path(), &target).with_context(|| target.display().to_string())?;
            }
        }
        Ok(())
    }
}

fn is_usable(path: &Path) -> bool {
    path.is_absolute()
        && path.as_os_str().len() + 24 <= MAX_PATH
        && nix::unistd::access(path, nix::unistd::AccessFlags::W_OK).is_ok()
}

/// Removes the folders of runs that were killed: nobody holds their lock.
fn sweep(base: &Path) {
    let Ok(entries) = std::fs::read_dir(base) else { return };
    for entry in entries.flatten() {
        if !entry.file_name().to_string_lossy().starts_with(PREFIX) {
            continue;
        }
        // A folder without a lock is one that is being made at this moment, or somebody else's.
        let Ok(file) = File::open(entry.path().join(LOCK)) else { continue };
        if Flock::lock(file, FlockArg::LockExclusiveNonblock).is_ok() {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_abandoned_folders_are_swept() {
        let base = tempfile::tempdir().unwrap();
        let alive = RunFolder::create_in(base.path()).unwrap();
        let dead = base.path().join("svadev-run-dead");
        let fresh = base.path().join("svadev-run-fresh");
        let other = base.path().join("other");
        for folder in [&dead, &fresh, &other] {
            std::fs::create_dir(folder).unwrap();
        }
        std::fs::write(dead.join(LOCK), "").unwrap();
        std::fs::write(other.join(LOCK), "").unwrap();
        sweep(base.path());
        assert!(alive.path().exists() && fresh.exists() && other.exists() && !dead.exists());
        let path = alive.path().to_owned();
        drop(alive);
        assert!(!path.exists());
    }

    #[test]
    fn logs_are_copied_and_the_image_only_when_asked_for() {
        let base = tempfile::tempdir().unwrap();
        let run = RunFolder::create_in(base.path()).unwrap();
        std::fs::write(run.path().join("qemu.log"), "x").unwrap();
        std::fs::write(run.path().join("initrd.cpio"), "x").unwrap();
        let to = base.path().join("kept");
        run.copy_to(&to, true).unwrap();
        assert!(to.join("qemu.log").exists() && !to.join("initrd.cpio").exists() && !to.join(LOCK).exists());
        run.copy_to(&to, false).unwrap();
        assert!(to.join("initrd.cpio").exists());
    }
}
