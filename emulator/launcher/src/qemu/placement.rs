//! Where firmware puts the unit's BAR. The address is a guess, remembered from the last run, which the backend then
//! checks (docs/design/0001-foundations.md, "Where the DMAR table's address comes from").
use std::{
    hash::{Hash as _, Hasher as _},
    path::{Path, PathBuf},
};

/// Most starts of QEMU in one run: with the guess, with the address that was found, and one more if firmware moved the
/// BAR.
pub const MAX_STARTS: u32 = 3;
/// The first guess for an unknown machine. A wrong guess costs one start of QEMU.
const FIRST_GUESS: u64 = 0xfebf_f000;

/// The remembered address of one machine.
#[derive(Debug)]
pub struct Placement {
    file: PathBuf,
    address: u64,
    known: bool,
}

impl Placement {
    /// For a QEMU and its arguments. `volatile` is a folder whose name changes from run to run and means nothing.
    pub fn load(cache: &Path, qemu: &Path, args: &[String], volatile: &Path) -> Self {
        let mut hasher = std::hash::DefaultHasher::new();
        qemu.hash(&mut hasher);
        if let Ok(meta) = qemu.metadata() {
            meta.len().hash(&mut hasher);
            meta.modified().ok().hash(&mut hasher);
        }
        let volatile = volatile.display().to_string();
        for arg in args {
            arg.replace(&volatile, "").hash(&mut hasher);
        }
        let file = cache.join("placement").join(format!("{:016x}", hasher.finish()));
        let remembered = std::fs::read_to_string(&file).ok().and_then(|text| {
            let address = u64::from_str_radix(text.trim().strip_prefix("0x")?, 16).ok()?;
            // A damaged file is only a bad guess, but the table needs a page-aligned address.
            (address != 0 && address & 0xfff == 0).then_some(address)
        });
        Self { file, address: remembered.unwrap_or(FIRST_GUESS), known: remembered.is_some() }
    }

    /// Whether the address is one that was learnt.
    pub const fn is_known(&self) -> bool {
        self.known
    }

    /// The best guess.
    pub const fn address(&self) -> u64 {
        self.address
    }

    /// Remembers where the BAR is. If the file cannot be written, the next run needs one more start.
    pub fn learn(&mut self, address: u64) {
        if self.known && self.address == address {
            return;
        }
        (self.address, self.known) = (address, true);
        let folder = self.file.parent().expect("load() put it in a folder");
        let temporary = self.file.with_extension(std::process::id().to_string());
        let write = || -> std::io::Result<()> {
            std::fs::create_dir_all(folder)?;
            std::fs::write(&temporary, format!("{address:#x}\n"))?;
            std::fs::rename(&temporary, &self.file)
        };
        if let Err(error) = write() {
            tracing::warn!("{}: {error}", self.file.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_learnt_is_the_next_guess_of_the_same_machine_only() {
        let cache = tempfile::tempdir().unwrap();
        let load = |run: &str, cpus: &str| {
            let args = ["-smp".to_owned(), cpus.to_owned(), format!("path={run}/a.sock")];
            Placement::load(cache.path(), Path::new("/bin/sh"), &args, Path::new(run))
        };
        let mut placement = load("/run/one", "2");
        assert!(!placement.known);
        placement.learn(0x38_0000_0000);
        assert_eq!((load("/run/two", "2").address(), load("/run/two", "2").known), (0x38_0000_0000, true));
        assert!(!load("/run/two", "1").known);
    }

    #[test]
    fn a_damaged_file_is_ignored() {
        let cache = tempfile::tempdir().unwrap();
        let load = || Placement::load(cache.path(), Path::new("/bin/sh"), &[], Path::new("/run/x"));
        load().learn(0x1000);
        for text in ["", "0x", "0x123", "0x0", "\u{0}", "zebra"] {
            std::fs::write(&load().file, text).unwrap();
            assert!(!load().known, "{text:?}");
        }
    }
}
