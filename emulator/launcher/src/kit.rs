//! The kit: QEMU, guest kernel and module tool chain in the user's cache folder, made by the embedded script `ci/kit`.
use std::{
    cell::OnceCell,
    collections::BTreeMap,
    io::Write as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, anyhow, bail};
use serde::Deserialize;

use crate::exit::{Exit, Failure, OrExit as _, Outcome};

/// The set-up script, whole.
const SCRIPT: &str = include_str!("../../../ci/kit");
/// The only layout of `kit.toml` that is understood.
const FORMAT: u32 = 1;

/// What `kit.toml` says is there. The file's presence means that the kit is complete.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
pub struct Kit {
    format: u32,
    /// Wrapper script of `qemu-system-x86_64`.
    pub qemu: PathBuf,
    /// Wrapper script of virtiofsd.
    pub virtiofsd: PathBuf,
    /// bzImage.
    pub kernel: PathBuf,
    /// `uname -r` of that kernel.
    pub kernel_release: String,
    /// Its `/lib/modules/<release>`.
    pub modules_dir: PathBuf,
    /// A static busybox, for the guest.
    pub busybox: PathBuf,
    /// Package versions.
    #[serde(default)]
    pub versions: BTreeMap<String, String>,
}

impl Kit {
    /// From the text of `kit.toml`.
    fn parse(text: &str) -> anyhow::Result<Self> {
        let kit: Self = toml::from_str(text).map_err(|error| anyhow!("{}", error.to_string().trim_end()))?;
        if kit.format != FORMAT {
            bail!("the kit has format {}, but this svadev reads format {FORMAT}: run `svadev kit clean`", kit.format);
        }
        Ok(kit)
    }

    /// The kit if it is there, and when it was made. Nothing is set up.
    pub fn present() -> Outcome<Option<(Self, std::time::SystemTime)>> {
        let file = folder().or_exit(Exit::Setup)?.join("kit.toml");
        let Ok(made) = file.metadata().and_then(|metadata| metadata.modified()) else { return Ok(None) };
        Ok(Some((Self::ensure()?, made)))
    }

    /// The kit of the cache folder, set up now if it is not there.
    pub fn ensure() -> Outcome<Self> {
        let file = folder().or_exit(Exit::Setup)?.join("kit.toml");
        if !file.exists() {
            note!("first use: setting up the kit (QEMU, guest kernel, module tool chain)");
            // Stdout belongs to the guest's program: the script's own output goes to stderr.
            run_script(&["setup".into()], Stdout::AsStderr)?;
        }
        let text = std::fs::read_to_string(&file).with_context(|| file.display().to_string()).or_exit(Exit::Setup)?;
        let kit = Self::parse(&text).with_context(|| file.display().to_string()).or_exit(Exit::Setup)?;
        for path in [&kit.qemu, &kit.virtiofsd, &kit.kernel, &kit.busybox] {
            if !path.exists() {
                let path = path.display();
                return Err(Failure::new(
                    Exit::Setup,
                    format!("the kit is damaged, {path} is missing: run `svadev kit clean`"),
                ));
            }
        }
        Ok(kit)
    }
}

impl Kit {
    /// The kernel's module for disks in memory, if the kit has it.
    pub fn ram_disk_module(&self) -> Option<PathBuf> {
        let folder = self.modules_dir.join("kernel/drivers/block");
        ["brd.ko", "brd.ko.xz", "brd.ko.zst"].map(|name| folder.join(name)).into_iter().find(|path| path.exists())
    }
}

/// The kit, set up at the first use of something in it.
#[derive(Debug, Default)]
pub struct LazyKit(OnceCell<Kit>);

impl LazyKit {
    /// The kit. The first call sets it up if it is missing.
    pub fn get(&self) -> Outcome<&Kit> {
        match self.0.get() {
            Some(kit) => Ok(kit),
            None => {
                let kit = Kit::ensure()?;
                Ok(self.0.get_or_init(|| kit))
            }
        }
    }
}

/// `svadev`'s folder in the user's cache.
pub fn cache_folder() -> anyhow::Result<PathBuf> {
    let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    // The XDG base directory specification: a relative path is to be ignored.
    let cache = absolute("XDG_CACHE_HOME").or_else(|| std::env::home_dir().map(|home| home.join(".cache")));
    Ok(cache
        .filter(|path| path.is_absolute())
        .context("there is no home folder: set XDG_CACHE_HOME or HOME")?
        .join("svadev"))
}

fn folder() -> anyhow::Result<PathBuf> {
    Ok(cache_folder()?.join("kit"))
}

/// Where the script's standard output goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stdout {
    /// To ours.
    Inherit,
    /// To our standard error.
    AsStderr,
}

/// Runs the set-up script with these arguments and waits for it.
pub fn run_script(args: &[std::ffi::OsString], stdout: Stdout) -> Outcome<()> {
    let mut file = tempfile::Builder::new().prefix("svadev-kit-").tempfile().or_exit(Exit::Setup)?;
    file.write_all(SCRIPT.as_bytes()).and_then(|()| file.flush()).or_exit(Exit::Setup)?;
    let mut command = Command::new("bash");
    command.arg(file.path()).args(args);
    if stdout == Stdout::AsStderr {
        command.stdout(std::io::stderr());
    }
    crate::qemu::process::die_with_parent(&mut command);
    let status = command.status().context("cannot run bash, which the kit's script needs").or_exit(Exit::Setup)?;
    if !status.success() {
        let what = args.first().map(|word| word.to_string_lossy().into_owned()).unwrap_or_default();
        return Err(Failure::new(Exit::Setup, format!("kit {what} failed ({status}): see the messages above")));
    }
    Ok(())
}

/// Builds the guest's module from `source` into `out`, for the kit's kernel or a build tree.
pub fn build_module(source: &Path, out: &Path, kdir: Option<&Path>) -> Outcome<()> {
    let mut args = vec!["module".into(), source.as_os_str().into(), out.as_os_str().into()];
    if let Some(kdir) = kdir {
        args.extend(["--kdir".into(), kdir.as_os_str().into()]);
    }
    run_script(&args, Stdout::AsStderr)
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMPLETE: &str = r#"format = 1
qemu = "/k/bin/qemu-system-x86_64"
virtiofsd = "/k/bin/virtiofsd"
kernel = "/k/vmlinuz"
kernel_release = "7.3.4-cloud-amd64"
modules_dir = "/k/modules"
busybox = "/k/busybox"
root = "/k/root"
module_build = "/k/bin/module-build"

[versions]
"qemu-system-x86" = "1:11.1.3"
"#;

    #[test]
    fn a_complete_file_is_read() {
        let kit = Kit::parse(COMPLETE).unwrap();
        assert_eq!(kit.qemu, Path::new("/k/bin/qemu-system-x86_64"));
        assert_eq!(kit.kernel_release, "7.3.4-cloud-amd64");
        assert_eq!(kit.versions["qemu-system-x86"], "1:11.1.3");
    }

    #[test]
    fn another_format_or_a_missing_key_is_refused() {
        assert!(
            Kit::parse(&COMPLETE.replace("format = 1", "format = 2")).unwrap_err().to_string().contains("kit clean")
        );
        assert!(Kit::parse(&COMPLETE.replace("busybox", "box")).unwrap_err().to_string().contains("busybox"));
    }

    #[test]
    fn the_embedded_script_writes_the_format_that_is_read() {
        assert!(SCRIPT.contains("format = 1"));
        for key in ["qemu", "virtiofsd", "kernel", "kernel_release", "modules_dir", "busybox"] {
            assert!(SCRIPT.contains(key), "ci/kit does not write {key}");
        }
    }
}
