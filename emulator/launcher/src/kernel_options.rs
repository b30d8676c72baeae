//! What a kernel's `.config` must have, read before a boot that could only fail.
//!
//! `ci/kernel-config/base.config` lists all that the suites use. What a guest cannot come up without is listed here
//! with its reason.
use std::{collections::BTreeMap, fmt, path::Path};

use anyhow::{Context as _, bail, ensure};

/// All options of which the suites use something.
const BASE: &str = include_str!("../../../ci/kernel-config/base.config");

/// Options without which no guest comes up, and what each is for. All are built in: the guest has no other modules.
const NEEDED: &[(&str, &str)] = &[
    ("64BIT", "x86-64"),
    ("PCI", "the devices"),
    ("PCI_MSI", "their interrupts"),
    ("ACPI", "the table that names the IOMMU"),
    ("INTEL_IOMMU", "the IOMMU"),
    ("INTEL_IOMMU_SVM", "shared virtual addressing"),
    ("MODULES", "the guest's driver is a module"),
    ("PRINTK", "the kernel log"),
    ("TTY", "the serial ports"),
    ("SERIAL_8250", "the serial ports"),
    ("SERIAL_8250_CONSOLE", "the kernel log on a serial port"),
    ("UNIX98_PTYS", "PID 1 mounts devpts"),
    ("BLK_DEV_INITRD", "the initial RAM disk"),
    ("BINFMT_ELF", "programs"),
    ("FUTEX", "programs with threads"),
    ("PROC_FS", "PID 1 mounts /proc"),
    ("SYSFS", "PID 1 mounts /sys"),
    ("DEVTMPFS", "PID 1 mounts /dev"),
    ("SHMEM", "PID 1 mounts /tmp"),
    ("TMPFS", "PID 1 mounts /tmp"),
];
/// The same for a shared folder.
const NEEDED_TO_SHARE: &[(&str, &str)] = &[("VIRTIO_PCI", "--share"), ("FUSE_FS", "--share"), ("VIRTIO_FS", "--share")];
/// Serial ports that are used: kernel log, control lines, the program's terminal.
const PORTS: u32 = 3;

/// An option that a kernel lacks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missing {
    /// The line for `.config`.
    pub line: String,
    /// What it has instead: `m`, a number, or nothing.
    pub has: Option<String>,
    /// What it is for.
    pub reason: &'static str,
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let has = self.has.as_ref().map(|has| format!(", it is {has}")).unwrap_or_default();
        write!(f, "{}   # {}{has}", self.line, self.reason)
    }
}

/// A kernel's configuration.
#[derive(Clone, Debug, Default)]
pub struct Options(BTreeMap<String, String>);

impl Options {
    /// Of a build tree.
    ///
    /// Errors: the tree is not configured, or its `.config` cannot be read.
    pub fn of_tree(tree: &Path) -> anyhow::Result<Self> {
        let path = tree.join(".config");
        match std::fs::read_to_string(&path) {
            Ok(text) => Ok(Self::parse(&text)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                bail!("{} has no .config: configure and build the kernel first", tree.display())
            }
            Err(error) => Err(error).with_context(|| path.display().to_string()),
        }
    }

    /// From the text of a `.config`.
    pub fn parse(text: &str) -> Self {
        let pairs = text.lines().filter_map(|line| line.trim().strip_prefix("CONFIG_")?.split_once('='));
        Self(pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect())
    }

    /// What a guest cannot come up without.
    pub fn missing(&self, share: bool) -> Vec<Missing> {
        let more = if share { NEEDED_TO_SHARE } else { &[] };
        let mut missing: Vec<_> =
            NEEDED.iter().chain(more).filter_map(|&(name, why)| self.lacks(name, "y", why)).collect();
        for name in ["SERIAL_8250_NR_UARTS", "SERIAL_8250_RUNTIME_UARTS"] {
            let ports = self.0.get(name).and_then(|value| value.parse::<u32>().ok());
            if ports.is_none_or(|ports| ports < PORTS) {
                let (line, has) = (format!("CONFIG_{name}=4"), self.0.get(name).cloned());
                missing.push(Missing { line, has, reason: "kernel log, control lines and the program's terminal" });
            }
        }
        missing
    }

    /// What some tests use beyond that: they fail or are skipped without it.
    pub fn wanted_by_tests(&self) -> Vec<Missing> {
        let base = Self::parse(BASE);
        let needed = |name: &str| NEEDED.iter().any(|(needed, _)| *needed == name) || name.starts_with("SERIAL_8250_");
        let lacks = |(name, value): (&String, &String)| {
            let good = needed(name) || (value == "m" && self.0.get(name).is_some_and(|has| has == "y"));
            if good { None } else { self.lacks(name, value, "some tests") }
        };
        base.0.iter().filter(|(_, value)| matches!(value.as_str(), "y" | "m")).filter_map(lacks).collect()
    }

    fn lacks(&self, name: &str, value: &str, reason: &'static str) -> Option<Missing> {
        let has = self.0.get(name).cloned();
        (has.as_deref() != Some(value)).then(|| Missing { line: format!("CONFIG_{name}={value}"), has, reason })
    }
}

/// Refuses a build tree whose kernel cannot come up as a guest. The text has the lines to set.
///
/// Errors: options are missing, or the tree is not configured.
pub fn check(tree: &Path, share: bool) -> anyhow::Result<()> {
    let missing = Options::of_tree(tree)?.missing(share);
    ensure!(missing.is_empty(), "{}", refusal(&tree.display().to_string(), &missing));
    Ok(())
}

/// The cause, and the lines to set.
pub fn refusal(tree: &str, missing: &[Missing]) -> String {
    let lines: String = missing.iter().map(|option| format!("\n    {option}")).collect();
    format!(
        "the kernel in {tree} cannot be a guest: {} options are not as they must be. Put these lines at the end of \
         {tree}/.config, run `make olddefconfig` and build it again:{lines}",
        missing.len()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_that_the_suites_use_lacks_nothing() {
        let base = Options::parse(BASE);
        assert_eq!((base.missing(true), base.wanted_by_tests()), (Vec::new(), Vec::new()));
    }

    #[test]
    fn each_missing_option_is_named_with_its_line_and_its_reason() {
        for &(name, reason) in NEEDED {
            for (line, has) in [(format!("# CONFIG_{name} is not set"), None), (format!("CONFIG_{name}=m"), Some("m"))]
            {
                let text = BASE.replace(&format!("CONFIG_{name}=y\n"), &format!("{line}\n"));
                let missing = Options::parse(&text).missing(false);
                let expected = Missing { line: format!("CONFIG_{name}=y"), has: has.map(str::to_owned), reason };
                assert_eq!(missing, [expected]);
            }
        }
        let few = BASE.replace("NR_UARTS=8", "NR_UARTS=2");
        assert_eq!(Options::parse(&few).missing(false)[0].line, "CONFIG_SERIAL_8250_NR_UARTS=4");
        let no_share = Options::parse(&BASE.replace("CONFIG_VIRTIO_FS=y", "CONFIG_VIRTIO_FS=m"));
        assert_eq!((no_share.missing(false).len(), no_share.missing(true).len()), (0, 1));
        assert_eq!(no_share.wanted_by_tests().len(), 1);
    }

    #[test]
    fn a_tree_is_refused_with_the_lines_to_set() {
        let tree = tempfile::tempdir().unwrap();
        let error = |text: &str| {
            std::fs::write(tree.path().join(".config"), text).unwrap();
            check(tree.path(), false).map_err(|error| error.to_string())
        };
        assert!(check(tree.path(), false).unwrap_err().to_string().contains("no .config"));
        assert_eq!(error(BASE), Ok(()));
        let text = error("CONFIG_64BIT=y\n").unwrap_err();
        assert!(text.contains("\n    CONFIG_INTEL_IOMMU_SVM=y   # shared virtual addressing"), "{text}");
        assert!(text.contains("make olddefconfig"), "{text}");
    }
}
