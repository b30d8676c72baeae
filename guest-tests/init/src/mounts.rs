//! File systems and system settings of the guest.
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};

use crate::{kmsg, serial};

/// 2 MiB pages to reserve when nobody reserved any: what the smoke suite uses, 32 MiB.
const HUGE_PAGES_2M: u32 = 16;
/// Count of 2 MiB pages in the pool.
const NR_HUGE_PAGES_2M: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages";
/// The virtiofs tag of the host's shared folder, and where it is mounted.
const SHARE: (&str, &str) = ("share", "/mnt/share");
/// Major number of `ttyS*` (`Documentation/admin-guide/devices.txt`: 4, minors from 64).
const TTY_MAJOR: u64 = 4;

/// Mount `/dev` and let go of the console.
///
/// The kernel gave us `/dev/console`, which is `ttyS0`, as standard input and output. While it is open, `ttyS0` and `ttyS2`
/// share ISA interrupt 4, which is edge-triggered: an edge of one can hide the other's. Closed, `ttyS0` needs none
/// (the kernel's console output polls).
///
/// # Errors
/// No devtmpfs. Nodes for the serial ports are then made by hand, so that this can be said.
pub(crate) fn devices() -> Result<()> {
    let mounted = mount_at("devtmpfs", "devtmpfs", "/dev", MsFlags::MS_NOSUID, "mode=0755");
    if mounted.is_err() {
        for (port, minor) in [(serial::CONTROL, 65), (serial::PROGRAM, 66)] {
            // Best effort on the way to a fatal message.
            _ = mknod(port, SFlag::S_IFCHR, Mode::S_IRUSR | Mode::S_IWUSR, makedev(TTY_MAJOR, minor));
        }
    }
    let null = fs::OpenOptions::new().read(true).write(true).open("/dev/null").context("open /dev/null");
    if let Ok(null) = &null {
        nix::unistd::dup2_stdin(null).context("close the console")?;
        nix::unistd::dup2_stdout(null).context("close the console")?;
        nix::unistd::dup2_stderr(null).context("close the console")?;
    }
    mounted.and(null.map(drop))
}

/// Mount everything else that tests and programs expect.
///
/// # Errors
/// One of those that tests need cannot be mounted.
pub(crate) fn file_systems() -> Result<()> {
    let plain = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    let strict = plain | MsFlags::MS_NOEXEC;
    mount_at("proc", "proc", "/proc", strict, "")?;
    mount_at("sysfs", "sysfs", "/sys", strict, "")?;
    mount_over("/tmp", plain, 0o1777)?;
    mount_over("/run", plain, 0o755)?;
    mount_at("tmpfs", "tmpfs", "/dev/shm", plain, "mode=1777")?;
    mount_at("devpts", "devpts", "/dev/pts", MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC, "mode=0620,ptmxmode=0666")?;
    // A user's own kernel may lack these; what needs them says so when it finds them missing.
    for (kind, at) in
        [("debugfs", "/sys/kernel/debug"), ("tracefs", "/sys/kernel/tracing"), ("hugetlbfs", "/dev/hugepages")]
    {
        if let Err(e) = mount_at(kind, kind, at, plain, "") {
            kmsg::say(&format!("{e:#}"));
        }
    }
    Ok(())
}

/// Mount the host's shared folder.
///
/// # Errors
/// The kernel has no virtiofs, or the machine no such device.
pub(crate) fn share() -> Result<()> {
    let (tag, at) = SHARE;
    mount_at(tag, "virtiofs", at, MsFlags::MS_NOSUID | MsFlags::MS_NODEV, "").map_err(|e| {
        let why = match e.downcast_ref::<Errno>() {
            Some(Errno::ENODEV) => "the kernel has no virtiofs (CONFIG_VIRTIO_FS)",
            Some(Errno::EINVAL) => "the machine has no virtiofs device with this tag",
            _ => "virtiofsd may have ended",
        };
        e.context(format!("shared folder: {why}"))
    })
}

/// Settings that only make the guest more useful: none is worth ending it.
pub(crate) fn system_settings() {
    if let Err(e) = nix::unistd::sethostname("svadev") {
        kmsg::say(&format!("sethostname: {e}"));
    }
    if let Err(e) = reserve_huge_pages() {
        kmsg::say(&format!("2 MiB pages: {e:#}"));
    }
    for folder in ["/root", "/var"] {
        let _ = fs::create_dir_all(folder);
    }
    if !Path::new("/var/tmp").exists() {
        let _ = std::os::unix::fs::symlink("/tmp", "/var/tmp");
    }
}

/// Fill the pool of 2 MiB pages unless the kernel command line did.
fn reserve_huge_pages() -> Result<()> {
    let read = || -> Result<u32> {
        let text = fs::read_to_string(NR_HUGE_PAGES_2M).context(NR_HUGE_PAGES_2M)?;
        text.trim().parse().with_context(|| format!("{NR_HUGE_PAGES_2M} is {text:?}"))
    };
    if read()? > 0 {
        return Ok(());
    }
    fs::write(NR_HUGE_PAGES_2M, HUGE_PAGES_2M.to_string()).context(NR_HUGE_PAGES_2M)?;
    let got = read()?;
    if got < HUGE_PAGES_2M {
        bail!("asked for {HUGE_PAGES_2M}, got {got}: little memory, or in pieces");
    }
    Ok(())
}

/// Mount a file system for temporary files over an empty folder. If the image has files there, such as the program to
/// run, it stays as it is.
fn mount_over(at: &str, flags: MsFlags, mode: u32) -> Result<()> {
    if fs::read_dir(at).is_ok_and(|mut entries| entries.next().is_some()) {
        return fs::set_permissions(at, fs::Permissions::from_mode(mode)).with_context(|| format!("chmod {at}"));
    }
    mount_at("tmpfs", "tmpfs", at, flags, &format!("mode={mode:o}"))
}

/// Make the folder and mount; what is mounted there already is taken as it is.
fn mount_at(source: &str, kind: &str, at: &str, flags: MsFlags, options: &str) -> Result<()> {
    fs::create_dir_all(at).with_context(|| format!("make {at}"))?;
    match mount(Some(source), at, Some(kind), flags, Some(options)) {
        Ok(()) | Err(Errno::EBUSY) => Ok(()),
        Err(e) => Err(e).with_context(|| format!("mount {kind} on {at}")),
    }
}
