//! Which crate may depend on which (`docs/architecture.md`): the arrows that keep the models free of I/O and apart from
//! each other.
#![allow(clippy::unwrap_used, reason = "a panic is a failed test")]
use std::collections::{BTreeMap, BTreeSet};

use cargo_metadata::{DependencyKind, MetadataCommand};

/// Every crate of the workspace and what of ours it may depend on. `svadev-sim` sees every model and the host.
const ARROWS: &[(&str, &[&str])] = &[
    ("svadev-spec", &[]),
    ("svadev-fabric", &["svadev-spec"]),
    ("svadev-mutation", &[]),
    ("svadev-memory", &["svadev-spec", "svadev-mutation"]),
    ("svadev-tables", &["svadev-spec", "svadev-fabric", "svadev-memory"]),
    ("svadev-iommu", &["svadev-spec", "svadev-fabric", "svadev-memory", "svadev-mutation"]),
    ("svadev-pci", &["svadev-spec"]),
    ("svadev-mirror", &["svadev-spec", "svadev-fabric", "svadev-memory", "svadev-mutation"]),
    ("svadev-endpoint", &["svadev-spec", "svadev-fabric", "svadev-memory", "svadev-mirror", "svadev-mutation"]),
    (
        "svadev-accelerator",
        &[
            "svadev-pci",
            "svadev-endpoint",
            "svadev-mirror",
            "svadev-spec",
            "svadev-fabric",
            "svadev-memory",
            "svadev-mutation",
        ],
    ),
    ("svadev-vfio-user", &["svadev-spec"]),
    ("svadev-host", MODELS),
    ("svadev-launcher", &["svadev-spec", "svadev-fabric", "svadev-iommu", "svadev-host"]),
    (
        "svadev-bench",
        &[
            "svadev-spec",
            "svadev-fabric",
            "svadev-memory",
            "svadev-iommu",
            "svadev-tables",
            "svadev-vfio-user",
            "svadev-host",
        ],
    ),
    ("svadev", &["svadev-fabric", "svadev-launcher", "svadev-bench"]),
    ("svadev-sim", BELOW_SIM),
    ("svadev-fuzz", FROM_BELOW),
    ("svadev-guest", &["svadev-spec"]),
    ("svadev-suites", &["svadev-spec", "svadev-guest"]),
    ("svadev-init", &["svadev-spec"]),
];

/// Every crate of ours that a program may be made of, from the bottom up.
const FROM_BELOW: &[&str] = &[
    "svadev-spec",
    "svadev-fabric",
    "svadev-mutation",
    "svadev-memory",
    "svadev-iommu",
    "svadev-mirror",
    "svadev-pci",
    "svadev-endpoint",
    "svadev-accelerator",
    "svadev-vfio-user",
    "svadev-host",
    "svadev-tables",
    "svadev-sim",
];

/// All that is below `host`.
const MODELS: &[&str] = FROM_BELOW.split_at(FROM_BELOW.len() - 3).0;
/// All that the simulation is made of.
const BELOW_SIM: &[&str] = FROM_BELOW.split_at(FROM_BELOW.len() - 1).0;

/// Crates that would bring I/O, threads or clocks into a sans-I/O crate.
const IMPURE: [&str; 4] = ["tokio", "mio", "rand", "crossbeam-channel"];

fn dependencies() -> BTreeMap<String, BTreeSet<String>> {
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/../../Cargo.toml");
    let metadata = MetadataCommand::new().manifest_path(manifest).no_deps().exec().unwrap();
    let of = |package: &cargo_metadata::Package| {
        let real = package.dependencies.iter().filter(|dependency| dependency.kind != DependencyKind::Development);
        (package.name.to_string(), real.map(|dependency| dependency.name.clone()).collect())
    };
    metadata.packages.iter().map(of).collect()
}

#[test]
fn crates_depend_only_along_the_arrows() {
    let dependencies = dependencies();
    let known: BTreeSet<&str> = ARROWS.iter().map(|(name, _)| *name).collect();
    let found: BTreeSet<&str> = dependencies.keys().map(String::as_str).collect();
    assert_eq!(found, known, "a new crate needs its arrows here and in docs/architecture.md");
    for (name, allowed) in ARROWS {
        for dependency in dependencies[*name].iter().filter(|dependency| known.contains(dependency.as_str())) {
            assert!(allowed.contains(&dependency.as_str()), "{name} may not depend on {dependency}");
        }
    }
}

#[test]
fn the_models_bring_no_io() {
    let dependencies = dependencies();
    for name in ["svadev-spec", "svadev-fabric", "svadev-pci", "svadev-endpoint", "svadev-iommu", "svadev-accelerator"]
    {
        for impure in IMPURE {
            assert!(!dependencies[name].contains(impure), "{name} may not depend on {impure}");
        }
    }
}
