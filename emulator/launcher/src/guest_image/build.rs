//! Builds the guest's programs and its kernel module.
use std::{
    hash::{Hash as _, Hasher as _},
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, bail};

use crate::{
    exit::{Exit, Failure, OrExit as _, Outcome},
    kit,
    qemu::process::die_with_parent,
    say::{Step, error_line},
};

/// The checkout this program was built from.
const WORKSPACE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");
/// The guest's target: glibc, linked statically.
const TARGET: &str = "x86_64-unknown-linux-gnu";
/// PID 1's program.
pub const INIT: &str = "svadev-init";

/// The guest's programs: those in `folder` if it is given, otherwise built now.
pub fn programs(folder: Option<&Path>) -> Outcome<Vec<PathBuf>> {
    let programs = match folder {
        Some(folder) => programs_in(folder).with_context(|| format!("--guest-bin {}", folder.display())),
        None => build_programs(),
    };
    programs.or_exit(Exit::Setup)
}

/// Where the guest's programs come from, in words. Nothing is built.
///
/// Errors: why there are none, in words.
pub fn origin(folder: Option<&Path>) -> Result<String, String> {
    if let Some(folder) = folder {
        let found = programs_in(folder).map_err(|error| format!("{}: {error:#}", folder.display()))?;
        return Ok(format!("{} in {}", found.len(), folder.display()));
    }
    workspace().map_err(|error| format!("{error:#}"))?;
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    match Command::new(&cargo).arg("--version").stdin(Stdio::null()).output() {
        Ok(output) if output.status.success() => {
            Ok(format!("built with {}", String::from_utf8_lossy(&output.stdout).trim()))
        }
        Ok(output) => Err(why_not_built(&String::from_utf8_lossy(&output.stderr), &output.status.to_string())),
        Err(error) => {
            Err(format!("cannot run {}: {error}: install cargo, or use --guest-bin", Path::new(&cargo).display()))
        }
    }
}

fn programs_in(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    use std::os::unix::fs::PermissionsExt as _;
    let mut programs = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        let meta = path.metadata()?;
        if meta.is_file() && meta.permissions().mode() & 0o111 != 0 {
            programs.push(path);
        }
    }
    if !programs.iter().any(|path| path.ends_with(INIT)) {
        bail!("the program {INIT} is missing");
    }
    Ok(programs)
}

fn build_programs() -> anyhow::Result<Vec<PathBuf>> {
    let workspace = workspace()?;
    let target_dir = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace.join("target"), PathBuf::from);
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(&cargo);
    command
        .current_dir(&workspace)
        .args(["build", "--release", "--bins", "--target", TARGET, "-p", INIT, "-p", "svadev-suites"])
        .args(["--message-format", "json-render-diagnostics", "--target-dir"])
        .arg(target_dir.join("guest"))
        // The image is copied into every guest: symbols stay for backtraces, line tables do not.
        .env("CARGO_PROFILE_RELEASE_STRIP", "debuginfo")
        .env("RUSTFLAGS", "-C target-feature=+crt-static")
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env_remove("CARGO_BUILD_TARGET")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    die_with_parent(&mut command);
    let mut child = command.spawn().with_context(|| {
        format!(
            "cannot run {} to build the guest's programs: install cargo, or use --guest-bin",
            Path::new(&cargo).display()
        )
    })?;
    let _step = Step::begin("building the guest's programs");
    let (stdout, mut stderr) = (child.stdout.take().expect("it was piped"), child.stderr.take().expect("it was piped"));
    let said = std::thread::spawn(move || {
        let mut said = Vec::new();
        _ = std::io::Read::read_to_end(&mut stderr, &mut said);
        String::from_utf8_lossy(&said).into_owned()
    });
    let mut programs = Vec::new();
    for line in BufReader::new(stdout).lines() {
        programs.extend(executable(&line?));
    }
    let status = child.wait()?;
    let said = said.join().unwrap_or_default();
    if !status.success() {
        for line in said.lines() {
            error_line(format_args!("{line}"));
        }
        bail!("the guest's programs do not build: {}", why_not_built(&said, &status.to_string()));
    }
    Ok(programs)
}

/// The cause in what cargo said, and the remedy for the usual ones.
fn why_not_built(said: &str, status: &str) -> String {
    let cause = said.lines().find_map(|line| line.trim().strip_prefix("error"));
    let cause = cause.map_or(status, |line| line.trim_start_matches(|c| c != ' ').trim());
    let remedy = if said.contains("toolchain") {
        "choose a toolchain, as with `rustup default stable`, or use --guest-bin"
    } else if said.contains("can't find crate for `std`") || said.contains("can't find crate for `core`") {
        "install the target with `rustup target add x86_64-unknown-linux-gnu`"
    } else if ["libc.a", "-lc", "crt1.o", "-lm"].iter().any(|word| said.contains(word)) {
        "install the C library's development files (Debian: libc6-dev, Fedora: glibc-static)"
    } else if said.contains("linker `") {
        "install a C compiler"
    } else {
        "see the messages above"
    };
    format!("{cause}: {remedy}")
}

/// The program in one line of cargo's messages (The Cargo Book, "External tools", artifact messages).
fn executable(line: &str) -> Option<PathBuf> {
    let message: serde_json::Value = serde_json::from_str(line).ok()?;
    (message["reason"] == "compiler-artifact").then_some(())?;
    Some(message["executable"].as_str()?.into())
}

/// The checkout's root.
fn workspace() -> anyhow::Result<PathBuf> {
    Path::new(WORKSPACE)
        .canonicalize()
        .with_context(|| format!("the checkout that svadev was built from is gone ({WORKSPACE}): use --guest-bin"))
}

/// A kernel to build the module for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModuleTarget {
    /// `uname -r`.
    pub release: String,
    /// Its build tree; `None` for the kit's kernel.
    pub kdir: Option<PathBuf>,
}

/// The guest's module for a kernel, from the cache if it was built before from the same sources for the same kernel.
pub fn module(target: &ModuleTarget) -> Outcome<PathBuf> {
    let source = workspace().or_exit(Exit::Setup)?.join("guest-tests/driver");
    let key = module_key(&source, target).with_context(|| source.display().to_string()).or_exit(Exit::Setup)?;
    let folder = kit::cache_folder().or_exit(Exit::Setup)?.join("module").join(format!("{key:016x}"));
    let module = folder.join("svadev.ko");
    if !module.exists() {
        let _step = Step::begin(format!("building the guest's module for {}", target.release));
        std::fs::create_dir_all(&folder).with_context(|| folder.display().to_string()).or_exit(Exit::Setup)?;
        kit::build_module(&source, &folder, target.kdir.as_deref())?;
    }
    if !module.exists() {
        return Err(Failure::new(
            Exit::Setup,
            format!("the module build succeeded, but {} is missing", module.display()),
        ));
    }
    Ok(module)
}

/// A number that changes when the sources or the kernel change.
fn module_key(source: &Path, target: &ModuleTarget) -> anyhow::Result<u64> {
    let mut hasher = std::hash::DefaultHasher::new();
    target.release.hash(&mut hasher);
    target.kdir.hash(&mut hasher);
    if let Some(kdir) = &target.kdir {
        // A rebuilt kernel may keep its release, but not its symbol versions.
        for name in ["Module.symvers", ".config"] {
            kdir.join(name).metadata().and_then(|meta| meta.modified()).ok().hash(&mut hasher);
        }
    }
    hash_folder(source, &mut hasher)?;
    Ok(hasher.finish())
}

fn hash_folder(folder: &Path, hasher: &mut std::hash::DefaultHasher) -> anyhow::Result<()> {
    let mut entries = std::fs::read_dir(folder)?.collect::<Result<Vec<_>, _>>()?;
    entries.sort_by_key(std::fs::DirEntry::file_name);
    for entry in entries {
        let path = entry.path();
        if path.is_dir() {
            hash_folder(&path, hasher)?;
        } else if is_source(&path) {
            path.hash(hasher);
            std::fs::read(&path)?.hash(hasher);
        }
    }
    Ok(())
}

fn is_source(path: &Path) -> bool {
    let named = ["Kbuild", "Makefile"].iter().any(|name| path.ends_with(name));
    named || path.extension().is_some_and(|extension| extension == "c" || extension == "h")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_stand_in_cargos_messages() {
        let line = r#"{"reason":"compiler-artifact","executable":"/t/release/svadev-init"}"#;
        assert_eq!(executable(line), Some("/t/release/svadev-init".into()));
        assert_eq!(executable(r#"{"reason":"compiler-artifact","executable":null}"#), None);
        assert_eq!(executable(r#"{"reason":"build-finished","success":true}"#), None);
        assert_eq!(executable("warning"), None);
    }

    #[test]
    fn the_cause_is_cargos_and_the_remedy_fits_it() {
        let toolchain = "error: rustup could not choose a version of cargo to run, because one wasn't specified \
                         explicitly, and no default is configured.\nhelp: run 'rustup default stable' to download \
                         the latest stable release of Rust and set it as your default toolchain.\n";
        for (said, cause, remedy) in [
            (toolchain, "could not choose a version", "rustup default stable"),
            ("error[E0463]: can't find crate for `std`\n", "can't find crate", "rustup target add"),
            ("error: linking with `cc` failed\n  = note: cannot find -lc\n", "linking with", "libc6-dev"),
            ("error: linker `cc` not found\n", "linker `cc` not found", "C compiler"),
            ("error: no space left\n", "no space left", "messages above"),
            ("", "exit status: 101", "messages above"),
        ] {
            let text = why_not_built(said, "exit status: 101");
            assert!(text.contains(cause) && text.contains(remedy), "{text}");
            assert_eq!(text.contains("libc6-dev"), said.contains("-lc"), "{text}");
        }
    }

    #[test]
    fn the_key_follows_sources_and_kernel_but_not_build_products() {
        let folder = tempfile::tempdir().unwrap();
        let target = |release: &str| ModuleTarget { release: release.into(), kdir: None };
        let key = |release: &str| module_key(folder.path(), &target(release)).unwrap();
        std::fs::write(folder.path().join("a.c"), "int a;").unwrap();
        let before = key("7.3");
        assert_ne!(before, key("7.4"));
        std::fs::write(folder.path().join("a.o"), "object").unwrap();
        assert_eq!(before, key("7.3"));
        std::fs::write(folder.path().join("a.c"), "int b;").unwrap();
        assert_ne!(before, key("7.3"));
    }
}
