//! Loading the kernel module and waiting for its devices; where that fails, saying why.
use std::ffi::CString;
use std::fmt::Write;
use std::fs::{self, File};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use nix::errno::Errno;
use nix::kmod::{ModuleInitFlags, finit_module};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use svadev_spec::device::{PCI_DEVICE_ID_ACCELERATOR, PCI_DEVICE_ID_IOMMU, PCI_VENDOR_ID};

use crate::kmsg;

/// Where the launcher puts the module.
pub(crate) const MODULE: &str = "/svadev/svadev.ko";
/// How long devices may take to appear after the module is in.
pub(crate) const DEVICES_TIMEOUT: Duration = Duration::from_secs(10);
/// The folder and the beginning of the device nodes' names.
const NODES: (&str, &str) = ("/dev", "svadev");
/// Where Linux lists PCI functions.
const PCI_DEVICES: &str = "/sys/bus/pci/devices";
/// Kernel log lines in a fatal message.
const LOG_LINES: usize = 8;

/// Load the module with parameters, as `insmod` takes them.
///
/// # Errors
/// The kernel refuses it: the message has the likely cause and the end of the kernel log.
pub(crate) fn load(parameters: &str) -> Result<()> {
    let file = File::open(MODULE).with_context(|| format!("open {MODULE}"))?;
    let mut log = kmsg::Reader::from_now();
    let parameters = CString::new(parameters).context("the module's parameters")?;
    match finit_module(&file, &parameters, ModuleInitFlags::empty()) {
        Ok(()) => Ok(()),
        Err(errno) => {
            let lines = log.lines();
            Err(anyhow!("load {MODULE}: {errno}: {}; kernel log: {}", cause(errno), kmsg::tail(&lines, LOG_LINES)))
        }
    }
}

/// What an errno of finit_module(2) usually means here.
fn cause(errno: Errno) -> &'static str {
    match errno {
        Errno::ENOEXEC => "not a module of this kernel: built for another release or configuration (version magic)",
        Errno::ENOENT => "the kernel lacks a symbol the module needs (IOMMU_SVA off?)",
        Errno::EEXIST => "a module of this name is loaded already",
        Errno::EKEYREJECTED => "the kernel wants signed modules and this signature is wrong",
        Errno::EPERM => "the kernel is locked down or module loading is off",
        Errno::ENODEV => "the module found no device",
        Errno::EBUSY => "a module of this name is being loaded or its names are taken",
        _ => "the module's own set-up failed",
    }
}

/// Wait until every accelerator function on the PCI bus has its device node.
///
/// # Errors
/// There is no function, or not every one was taken in time: the message says what was found of the chain from the IOMMU
/// to the driver.
pub(crate) fn wait_for_devices(timeout: Duration) -> Result<()> {
    // The watch comes before the first look, so nothing can appear unseen between the two.
    let watch = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC).context("inotify")?;
    watch.add_watch(NODES.0, AddWatchFlags::IN_CREATE).context("watch /dev")?;
    let functions = Functions::find(Path::new(PCI_DEVICES))?;
    if functions.accelerators.is_empty() {
        bail!("no svadev accelerator function on the PCI bus: {}", diagnosis(&functions));
    }
    let deadline = Instant::now() + timeout;
    loop {
        let nodes = nodes(Path::new(NODES.0))?;
        if nodes >= functions.accelerators.len() {
            return Ok(());
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            bail!(
                "{nodes} of {} devices appeared as /dev/svadev* in {} s: {}",
                functions.accelerators.len(),
                timeout.as_secs(),
                diagnosis(&functions)
            );
        }
        let mut fds = [PollFd::new(watch.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)) {
            // What the events say does not matter: the folder is looked at again.
            Ok(_) => _ = watch.read_events(),
            Err(Errno::EINTR) => {}
            Err(e) => return Err(e).context("poll for devices"),
        }
    }
}

/// How many device nodes there are.
fn nodes(folder: &Path) -> Result<usize> {
    let is_ours = |name: &str| name.strip_prefix(NODES.1).is_some_and(|n| n.parse::<u32>().is_ok());
    let entries = fs::read_dir(folder).with_context(|| format!("read {}", folder.display()))?;
    Ok(entries.flatten().filter(|e| e.file_name().to_str().is_some_and(is_ours)).count())
}

/// The svadev functions on the PCI bus, by their folders in sysfs.
#[derive(Debug, Default)]
struct Functions {
    accelerators: Vec<PathBuf>,
    iommus: Vec<PathBuf>,
}

impl Functions {
    /// Find them.
    ///
    /// # Errors
    /// No PCI in sysfs.
    fn find(devices: &Path) -> Result<Self> {
        let mut found = Self::default();
        for entry in fs::read_dir(devices).with_context(|| format!("read {}", devices.display()))?.flatten() {
            let path = entry.path();
            if hex(&path.join("vendor")) != Some(PCI_VENDOR_ID) {
                continue;
            }
            match hex(&path.join("device")) {
                Some(PCI_DEVICE_ID_ACCELERATOR) => found.accelerators.push(path),
                Some(PCI_DEVICE_ID_IOMMU) => found.iommus.push(path),
                _ => {}
            }
        }
        found.accelerators.sort();
        found.iommus.sort();
        Ok(found)
    }
}

/// A sysfs attribute like `0x1af4`.
fn hex(path: &Path) -> Option<u16> {
    let text = fs::read_to_string(path).ok()?;
    u16::from_str_radix(text.trim().strip_prefix("0x")?, 16).ok()
}

/// What was found of the chain IOMMU function → unit → group → driver, for a message of one line.
fn diagnosis(functions: &Functions) -> String {
    let mut text = String::new();
    let mut add = |part: std::fmt::Arguments<'_>| {
        let separator = if text.is_empty() { "" } else { "; " };
        // Writing to a String does not fail.
        let _ = write!(text, "{separator}{part}");
    };
    add(format_args!("{} IOMMU function(s)", functions.iommus.len()));
    for function in &functions.accelerators {
        let name = function.file_name().unwrap_or_default().to_string_lossy();
        let driver = match fs::read_link(function.join("driver")) {
            Ok(link) => link.file_name().unwrap_or_default().to_string_lossy().into_owned(),
            Err(_) => "none".into(),
        };
        let group = if function.join("iommu_group").exists() { "in an IOMMU group" } else { "in no IOMMU group" };
        add(format_args!("accelerator {name}: driver {driver}, {group}"));
    }
    let units = fs::read_dir("/sys/class/iommu").map_or(0, |d| d.flatten().count());
    if units == 0 {
        let table = Path::new("/sys/firmware/acpi/tables/DMAR").exists();
        add(format_args!(
            "the kernel drives no IOMMU ({}; it needs intel_iommu=on,sm_on)",
            if table { "a DMAR table is there" } else { "there is no DMAR table" }
        ));
    }
    if let Ok(symbols) = fs::read_to_string("/proc/kallsyms")
        && !symbols.lines().any(|l| l.ends_with(" iommu_sva_bind_device"))
    {
        add(format_args!("SVA is compiled out of this kernel (CONFIG_IOMMU_SVA)"));
    }
    if let Ok(release) = fs::read_to_string("/proc/sys/kernel/osrelease")
        && sva_switched_off(&release)
    {
        add(format_args!(
            "kernels from 6.18.2 or a stable update on to 6.19 refuse SVA on x86 (CVE-2025-71089): use 6.19 or newer"
        ));
    }
    let log = kmsg::Reader::from_start().lines();
    let about: Vec<String> =
        log.into_iter().filter(|l| ["DMAR", "svadev", "iommu"].iter().any(|word| l.contains(word))).collect();
    add(format_args!("kernel log: {}", kmsg::tail(&about, LOG_LINES)));
    text
}

/// Whether a kernel of this release may refuse SVA on x86 although it is compiled in.
fn sva_switched_off(release: &str) -> bool {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|n| n.parse::<u32>().unwrap_or(0));
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    version < (6, 19)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_release_decides_whether_sva_may_be_off() {
        assert!(sva_switched_off("6.12.57+deb13-cloud-amd64\n"));
        assert!(sva_switched_off("6.18.0"));
        assert!(!sva_switched_off("6.19.0-rc1"));
        assert!(!sva_switched_off("7.3.4+deb13-cloud-amd64"));
    }

    #[test]
    fn functions_are_found_by_their_ids() {
        let root = std::env::temp_dir().join(format!("svadev-init-test-{}", std::process::id()));
        let function = |name: &str, vendor: &str, device: &str| {
            let at = root.join(name);
            fs::create_dir_all(&at).unwrap();
            fs::write(at.join("vendor"), vendor).unwrap();
            fs::write(at.join("device"), device).unwrap();
        };
        function("0000:00:06.0", "0x1af4\n", "0x10f0\n");
        function("0000:00:05.0", "0x1af4\n", "0x10f0\n");
        function("0000:00:04.0", "0x1af4\n", "0x10f1\n");
        function("0000:00:01.0", "0x8086\n", "0x10f0\n");
        function("0000:00:02.0", "nonsense", "0x10f0\n");
        let found = Functions::find(&root).unwrap();
        fs::remove_dir_all(&root).unwrap();
        assert_eq!(found.accelerators, [root.join("0000:00:05.0"), root.join("0000:00:06.0")]);
        assert_eq!(found.iommus, [root.join("0000:00:04.0")]);
    }

    #[test]
    fn only_numbered_nodes_count() {
        let root = std::env::temp_dir().join(format!("svadev-init-nodes-{}", std::process::id()));
        fs::create_dir_all(&root).unwrap();
        for name in ["svadev0", "svadev1", "svadev", "svadevx", "ttyS0"] {
            fs::write(root.join(name), "").unwrap();
        }
        let count = nodes(&root).unwrap();
        fs::remove_dir_all(&root).unwrap();
        assert_eq!(count, 2);
    }
}
