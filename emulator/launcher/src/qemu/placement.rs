//! Where firmware puts the units' BARs. The addresses are a guess, remembered from the last run, which the backend then
//! checks (docs/design/0001-foundations.md, "Where the DMAR table's address comes from").
use std::{
    hash::{Hash as _, Hasher as _},
    path::{Path, PathBuf},
};

/// Most starts of QEMU in one run: with the guess, with the address that was found, and one more if firmware moved the
/// BAR.
pub const MAX_STARTS: u32 = 3;

/// The remembered addresses of one machine.
#[derive(Debug)]
pub struct Placement {
    file: PathBuf,
    addresses: Vec<u64>,
    known: bool,
}

impl Placement {
    /// For a QEMU and its arguments. `guess` is taken for an unknown machine: if it is wrong, QEMU is started once
    /// more. `volatile` is a folder whose name changes from run to run and means nothing.
    pub fn load(cache: &Path, qemu: &Path, args: &[String], volatile: &Path, guess: Vec<u64>) -> Self {
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
        let parse = |line: &str| {
            let address = u64::from_str_radix(line.strip_prefix("0x")?, 16).ok()?;
            // A damaged file is only a bad guess, but the table needs page-aligned addresses.
            (address != 0 && address & 0xfff == 0).then_some(address)
        };
        let remembered: Option<Vec<u64>> =
            std::fs::read_to_string(&file).ok().and_then(|text| text.split_whitespace().map(parse).collect());
        let remembered = remembered.filter(|addresses| addresses.len() == guess.len());
        let known = remembered.is_some();
        Self { file, addresses: remembered.unwrap_or(guess), known }
    }

    /// Whether the address is one that was learnt.
    pub const fn is_known(&self) -> bool {
        self.known
    }

    /// The best guess.
    pub fn addresses(&self) -> &[u64] {
        &self.addresses
    }

    /// Remembers where the BARs are. If the file cannot be written, the next run needs one more start.
    pub fn learn(&mut self, addresses: Vec<u64>) {
        if self.known && self.addresses == addresses {
            return;
        }
        (self.addresses, self.known) = (addresses, true);
        let text: String = self.addresses.iter().map(|address| format!("{address:#x}\n")).collect();
        let folder = self.file.parent().expect("load() put it in a folder");
        let temporary = self.file.with_extension(std::process::id().to_string());
        let write = || -> std::io::Result<()> {
            std::fs::create_dir_all(folder)?;
            std::fs::write(&temporary, &text)?;
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
            Placement::load(cache.path(), Path::new("/bin/sh"), &args, Path::new(run), vec![0x1000, 0x2000])
        };
        let mut placement = load("/run/one", "2");
        assert!(!placement.known);
        assert_eq!(placement.addresses(), [0x1000, 0x2000]);
        placement.learn(vec![0x38_0000_0000, 0x39_0000_0000]);
        assert_eq!(load("/run/two", "2").addresses(), [0x38_0000_0000, 0x39_0000_0000]);
        assert!(load("/run/two", "2").known);
        assert!(!load("/run/two", "1").known);
    }

    #[test]
    fn a_damaged_file_is_ignored() {
        let cache = tempfile::tempdir().unwrap();
        let load = || Placement::load(cache.path(), Path::new("/bin/sh"), &[], Path::new("/run/x"), vec![0x9000]);
        load().learn(vec![0x1000]);
        for text in ["", "0x1000 0x2000", "0x", "0x123", "0x0", "\u{0}", "zebra"] {
            std::fs::write(&load().file, text).unwrap();
            assert!(!load().known, "{text:?}");
        }
    }
}
