//! The driver's edges: pages that never come, users without rights, signals, and a device that goes away.
#![allow(unsafe_code, reason = "signal handlers, and loading and unloading the module")]
mod ends;
mod rights;
mod signals;
mod slow;
mod slow_file;

use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use svadev_guest::Device;

use crate::harness::{Context, During, Test, Verdict};
use crate::{check, check_eq};

/// Every test.
pub(super) fn tests() -> Vec<Test> {
    [slow::TESTS, rights::TESTS, signals::TESTS, ends::TESTS].concat()
}

fn errno<T: std::fmt::Debug>(result: svadev_guest::Result<T>) -> Option<Errno> {
    result.err().and_then(|e| e.errno())
}

/// A file of the function's class device in sysfs.
fn class_file(c: &Context, name: &str) -> Verdict<String> {
    let node = c.path().file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
    let path = format!("/sys/class/svadev/{node}/{name}");
    Ok(std::fs::read_to_string(&path).during(path)?.trim().to_owned())
}

/// Waits until a file of the class device says something.
fn wait_for_class_file(c: &Context, name: &str, wanted: &str, limit: Duration) -> Verdict {
    let deadline = Instant::now() + c.limit(limit);
    loop {
        let text = class_file(c, name)?;
        if text == wanted {
            return Ok(());
        }
        check!(Instant::now() < deadline, "{name} of {} is {text} and not {wanted}", c.path().display());
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The function's folder in sysfs.
fn pci_folder(device: &Device) -> Verdict<String> {
    Ok(format!("/sys/bus/pci/devices/{}", device.query()?.pci_address))
}

fn write(path: impl AsRef<Path>, text: &str) -> Verdict {
    std::fs::write(&path, text).during(format!("write {text} to {}", path.as_ref().display()))
}

/// Waits until a path is there, or not.
fn wait_for_path(c: &Context, path: &Path, there: bool) -> Verdict {
    let deadline = Instant::now() + c.limit(Duration::from_secs(10));
    while path.exists() != there {
        check!(Instant::now() < deadline, "{} is not as expected: there: {there}", path.display());
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// What whoever holds a file of a function that is gone must find.
fn check_gone(device: &Device) -> Verdict {
    check_eq!(errno(device.query()), Some(Errno::ENODEV), "query of a device that is gone");
    check_eq!(errno(device.bind()), Some(Errno::ENODEV), "bind on a device that is gone");
    check_eq!(errno(device.unbind()), Some(Errno::ENODEV), "unbind on a device that is gone");
    Ok(())
}
