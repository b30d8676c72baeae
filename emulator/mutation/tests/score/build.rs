//! The build with the feature, in a target folder of its own, so that it never mixes with an ordinary one.
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use cargo_metadata::Message;

/// Crates whose tests are the checks.
const CRATES: [&str; 7] = [
    "svadev-iommu",
    "svadev-mirror",
    "svadev-endpoint",
    "svadev-accelerator",
    "svadev-memory",
    "svadev-host",
    "svadev-sim",
];

/// A crate's test program, and the folder that it is run in.
pub(crate) struct Binary {
    pub(crate) program: PathBuf,
    pub(crate) folder: PathBuf,
}

/// By crate.
pub(crate) type Binaries = BTreeMap<String, Binary>;

/// Cargo, in this workspace, with what is already here.
fn cargo(subcommand: &str) -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.arg(subcommand).args(["--locked", "--offline", "--manifest-path"]);
    cargo.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml"));
    cargo
}

/// What ships has no mutant in it, whatever features it is built with.
pub(crate) fn assert_product_is_clean() {
    let output = cargo("tree")
        .args(["--package", "svadev", "--edges", "features", "--all-features", "--prefix", "none"])
        .stderr(Stdio::inherit())
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "cargo tree: {}", output.status);
    let tree = String::from_utf8(output.stdout).expect("cargo prints UTF-8");
    assert!(tree.contains("svadev-mutation"), "the product crates have places for mutants:\n{tree}");
    assert!(!tree.contains("feature \"mutants\""), "svadev can be built with the feature `mutants`:\n{tree}");
}

/// Builds the tests.
pub(crate) fn build() -> Binaries {
    let mut cargo = cargo("test");
    cargo.args(["--no-run", "--lib", "--message-format", "json-render-diagnostics"]);
    cargo.args(["--features", "svadev-mutation/mutants", "--package", "svadev-mutation", "--target-dir"]);
    cargo.arg(Path::new(env!("CARGO_TARGET_TMPDIR")).join("mutants"));
    for krate in CRATES {
        cargo.args(["--package", krate]);
    }
    // Nobody debugs these programs, and they build sooner without.
    cargo.env("CARGO_PROFILE_DEV_DEBUG", "false");
    let output = cargo.stderr(Stdio::inherit()).output().expect("cargo runs");
    assert!(output.status.success(), "the build with mutants failed: {}", output.status);
    Message::parse_stream(&output.stdout[..])
        .filter_map(|message| match message.expect("cargo prints what its library reads") {
            Message::CompilerArtifact(artifact) if artifact.profile.test => {
                let folder = artifact.manifest_path.parent().expect("a manifest is in a folder").into();
                let program = artifact.executable?.into();
                Some((artifact.target.name.replace('_', "-"), Binary { program, folder }))
            }
            _ => None,
        })
        .collect()
}
