//! The guest's module compiles for older kernels: `ci/old-kernels`.
#![allow(clippy::unwrap_used, reason = "a panic is a failed test")]
use std::path::Path;
use std::process::Command;

/// `ci/old-kernels` has no headers in its cache, and no network to fetch them.
const NETWORK: i32 = 13;

#[test]
fn the_module_compiles_for_older_kernels() {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../ci/old-kernels");
    let output = Command::new(&script).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let complained = String::from_utf8_lossy(&output.stderr);
    if output.status.code() == Some(NETWORK) {
        println!("skipped: {complained}");
        return;
    }
    assert!(output.status.success(), "{}: {complained}", output.status);
    assert_eq!(said.lines().collect::<Vec<_>>(), ["ok: Linux 6.1.0-54", "ok: Linux 6.12.117+deb13"]);
}
