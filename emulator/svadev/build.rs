//! Puts the commit into the version. Without git, as in a tarball or a package, it is the version alone.
use std::process::Command;

fn main() {
    let version = std::env::var("CARGO_PKG_VERSION").unwrap_or_default();
    println!("cargo::rerun-if-env-changed=SVADEV_COMMIT");
    let given = std::env::var("SVADEV_COMMIT").ok().filter(|commit| !commit.is_empty());
    let commit = given.or_else(commit);
    let text = commit.map_or_else(|| version.clone(), |commit| format!("{version} ({commit})"));
    println!("cargo::rustc-env=SVADEV_VERSION={text}");
}

/// The commit of the checkout that this crate is in.
fn commit() -> Option<String> {
    // A checkout of something else may hold an unpacked tarball of this.
    let root = git(&["rev-parse", "--show-toplevel"])?;
    let here = std::path::Path::new(&root).join("emulator/svadev").canonicalize().ok()?;
    if here != std::path::Path::new(env!("CARGO_MANIFEST_DIR")).canonicalize().ok()? {
        return None;
    }
    // Written at each commit, checkout and rebase.
    println!("cargo::rerun-if-changed={}", git(&["rev-parse", "--path-format=absolute", "--git-path", "logs/HEAD"])?);
    git(&["rev-parse", "--short=12", "HEAD"])
}

fn git(args: &[&str]) -> Option<String> {
    let output = Command::new("git").args(args).output().ok().filter(|output| output.status.success())?;
    Some(String::from_utf8(output.stdout).ok()?.trim().to_owned())
}
