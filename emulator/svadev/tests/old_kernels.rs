//! The guest's module compiles for older kernels: `ci/old-kernels`.
#![allow(clippy::unwrap_used, reason = "a panic is a failed test")]
use std::path::Path;
use std::process::Command;

#[test]
fn the_module_compiles_for_older_kernels() {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../ci/old-kernels");
    let output = Command::new(&script).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let complained = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {complained}", output.status);
    let kernels: Vec<_> = said.lines().collect();
    let [six_one, six_twelve] = kernels[..] else { panic!("two kernels, not {kernels:?}") };
    assert!(six_one.starts_with("ok: Linux 6.1.") && six_twelve.starts_with("ok: Linux 6.12."), "{kernels:?}");
}
