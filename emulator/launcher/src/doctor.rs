//! Looks at this host and at a kernel before a run: what is there, what is missing, and what to do about it.
use std::{
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, SystemTime},
};

use nix::sys::resource::{Resource, getrlimit};

use crate::{
    backend::socket_path,
    guest::HostOptions,
    guest_image::build,
    kernel_options::{Options, refusal},
    kit::{self, Kit},
    kvm,
    qemu::process::{find_in_path, users_qemu},
    service::ServeFolder,
    topology::{Accel, Topology},
};

/// A kit that is older than this may have newer packages.
const KIT_AGE: Duration = Duration::from_secs(90 * 86_400);
/// Open files that a run may need, with 64 functions.
const FILES: u64 = 1024;
/// What is needed beside the guest's memory, bytes.
const BESIDE: u64 = 1 << 30;
/// Missing options that are shown; there may be a hundred.
const SHOWN: usize = 12;

/// How something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum State {
    /// As it should be.
    Good,
    /// A run works, but slower or with less.
    Lacking,
    /// No run works.
    Bad,
}

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// About what.
    pub about: &'static str,
    /// How it is.
    pub state: State,
    /// In words: the cause and then the remedy.
    pub text: String,
}

impl Finding {
    fn good(about: &'static str, text: impl Into<String>) -> Self {
        Self { about, state: State::Good, text: text.into() }
    }
    fn lacking(about: &'static str, text: impl Into<String>) -> Self {
        Self { about, state: State::Lacking, text: text.into() }
    }
    fn bad(about: &'static str, text: impl Into<String>) -> Self {
        Self { about, state: State::Bad, text: text.into() }
    }
}

/// Looks at everything. Nothing is changed, built or fetched, and no guest is started.
pub fn examine(topology: &Topology, host: &HostOptions, socket_dir: Option<&Path>) -> Vec<Finding> {
    let mut findings = vec![kvm_finding(topology), qemu_finding(host), kit_finding(host, topology)];
    findings.extend(kernel_findings(topology.machine.kernel.as_deref(), host.kdir.as_deref()));
    findings.extend([programs_finding(host), namespaces_finding(), memory_finding(topology), files_finding()]);
    findings.extend(socket_dir.map(|folder| sockets_finding(folder, topology)));
    findings
}

fn kvm_finding(topology: &Topology) -> Finding {
    match kvm::obstacle(topology) {
        None => Finding::good("KVM", "/dev/kvm opens; a run tries it with a small guest before it is used"),
        Some(reason) if topology.machine.accel == Accel::Kvm => Finding::bad("KVM", reason),
        Some(reason) => Finding::lacking("KVM", format!("{reason}; guests run under TCG, some ten times slower")),
    }
}

fn qemu_finding(host: &HostOptions) -> Finding {
    match &host.qemu {
        Some(choice) => match users_qemu(choice) {
            Ok(path) => Finding::good("QEMU", path.display().to_string()),
            Err(failure) => Finding::bad("QEMU", failure.to_string()),
        },
        None => Finding::good("QEMU", "the kit's"),
    }
}

fn kit_finding(host: &HostOptions, topology: &Topology) -> Finding {
    let needed = host.qemu.is_none() || host.busybox.is_none() || topology.machine.kernel.is_none();
    match Kit::present() {
        Ok(Some((kit, made))) => {
            let old = SystemTime::now().duration_since(made).is_ok_and(|age| age > KIT_AGE);
            let text = format!(
                "Linux {}, QEMU {}",
                kit.kernel_release,
                kit.versions.get("qemu-system-x86").map_or("?", |v| v)
            );
            if old {
                Finding::lacking(
                    "kit",
                    format!("{text}; it is older than 90 days: `svadev kit clean` and `kit setup` get newer packages"),
                )
            } else {
                Finding::good("kit", text)
            }
        }
        Ok(None) if !needed => Finding::good("kit", "not there, and not needed with these options"),
        Ok(None) if find_in_path("apt-get").is_some() => {
            Finding::lacking("kit", "not there: the first run fetches it, or `svadev kit setup`")
        }
        Ok(None) => Finding::bad(
            "kit",
            "not there, and this host has no apt-get to fetch it: give --qemu host, --kernel TREE and --busybox FILE",
        ),
        Err(failure) => Finding::bad("kit", failure.to_string()),
    }
}

fn kernel_findings(kernel: Option<&Path>, kdir: Option<&Path>) -> Vec<Finding> {
    let about = "kernel";
    let Some(tree) = kernel.filter(|kernel| kernel.is_dir()).or(kdir) else { return Vec::new() };
    let name = tree.display().to_string();
    let mut findings = Vec::new();
    match Options::of_tree(tree) {
        Err(error) => findings.push(Finding::bad(about, format!("{error:#}"))),
        Ok(options) => {
            let missing = options.missing(false);
            findings.push(if missing.is_empty() {
                Finding::good(about, format!("{name} has all that a guest needs"))
            } else {
                Finding::bad(about, refusal(&name, &missing))
            });
            let wanted = options.wanted_by_tests();
            if !wanted.is_empty() {
                let lines: String = wanted.iter().take(SHOWN).map(|option| format!("\n    {}", option.line)).collect();
                let more = wanted.len().saturating_sub(SHOWN);
                let more = if more > 0 {
                    format!("\n    and {more} more: ci/kernel-config/base.config has all")
                } else {
                    String::new()
                };
                findings.push(Finding::lacking(about, format!("some tests fail or are skipped without:{lines}{more}")));
            }
        }
    }
    let image = tree.join("arch/x86/boot/bzImage");
    if kernel == Some(tree) && !image.exists() {
        findings.push(Finding::bad(about, format!("{} is missing: build the kernel (make -j)", image.display())));
    }
    findings
}

fn programs_finding(host: &HostOptions) -> Finding {
    let about = "guest programs";
    match build::origin(host.guest_bin.as_deref()) {
        Ok(text) => Finding::good(about, text),
        Err(text) => Finding::bad(about, text),
    }
}

/// The kit's programs run in a user namespace with the kit's own libraries.
fn namespaces_finding() -> Finding {
    let about = "user namespaces";
    let tried = std::process::Command::new("unshare")
        .args(["--user", "--map-root-user", "true"])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .status();
    match tried {
        Ok(status) if status.success() => Finding::good(about, "work"),
        Ok(_) => Finding::lacking(
            about,
            "an ordinary user cannot make one, so the shared folder's daemon runs without its sandbox: set \
             kernel.unprivileged_userns_clone=1 and kernel.apparmor_restrict_unprivileged_userns=0",
        ),
        Err(error) => Finding::lacking(about, format!("cannot be tried: unshare: {error}")),
    }
}

fn memory_finding(topology: &Topology) -> Finding {
    let available = std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| {
        let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
        line.trim().trim_end_matches(" kB").parse::<u64>().ok()
    });
    let (about, wanted) = ("memory", topology.machine.memory_bytes + BESIDE);
    match available.map(|kib| kib << 10) {
        Some(bytes) if bytes < wanted => Finding::lacking(
            about,
            format!(
                "{} MiB are free, and the guest may use {} MiB: a smaller guest has --memory 2G",
                bytes >> 20,
                wanted >> 20
            ),
        ),
        Some(bytes) => Finding::good(about, format!("{} MiB are free", bytes >> 20)),
        None => Finding::lacking(about, "/proc/meminfo does not say how much is free"),
    }
}

fn files_finding() -> Finding {
    let about = "limits";
    match getrlimit(Resource::RLIMIT_NOFILE) {
        Ok((soft, _)) if soft < FILES => {
            Finding::lacking(about, format!("{soft} open files are few for many functions: ulimit -n {FILES}"))
        }
        Ok((soft, _)) => Finding::good(about, format!("{soft} open files")),
        Err(errno) => Finding::lacking(about, format!("open files: {errno}")),
    }
}

/// Where a backend in this folder has its sockets.
fn sockets(folder: &Path, topology: &Topology) -> impl Iterator<Item = PathBuf> {
    topology.functions().map(|function| socket_path(folder, function))
}

fn sockets_finding(folder: &Path, topology: &Topology) -> Finding {
    let about = "sockets";
    let left = sockets(folder, topology).filter(|path| path.exists()).count();
    if left == 0 {
        return Finding::good(about, format!("none in {}", folder.display()));
    }
    match ServeFolder::is_in_use(folder) {
        Ok(true) => Finding::good(about, format!("a backend serves in {}", folder.display())),
        Ok(false) => Finding::lacking(
            about,
            format!(
                "{left} in {} are of a backend that was killed: the next `serve` or `svadev clean` removes them",
                folder.display()
            ),
        ),
        Err(error) => Finding::lacking(about, format!("{error:#}")),
    }
}

/// What `svadev clean` can remove.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leftover {
    /// The file or folder.
    pub path: PathBuf,
    /// Its size with all that is in it, bytes.
    pub bytes: u64,
    /// What it is.
    pub what: &'static str,
}

/// What is there to remove. `kit`: the kit, too.
///
/// Errors: there is no home folder.
pub fn leftovers(topology: &Topology, socket_dir: Option<&Path>, kit: bool) -> anyhow::Result<Vec<Leftover>> {
    let cache = kit::cache_folder()?;
    let mut places = vec![
        (cache.join("logs"), "logs of runs that failed"),
        (cache.join("module"), "modules that were built for guests"),
        (cache.join("programs"), "programs that were built for guests"),
        (cache.join("placement"), "where firmware puts the IOMMU"),
        (cache.join("kvm-probe"), "whether KVM works"),
        (cache.join("own-kernel"), "kernels that ci/own-kernel built"),
    ];
    if kit {
        places.push((cache.join("kit"), "the kit"));
    }
    if let Some(folder) = socket_dir
        && ServeFolder::is_in_use(folder).is_ok_and(|used| !used)
    {
        places.extend(sockets(folder, topology).map(|path| (path, "a socket of a backend that was killed")));
    }
    let found = |(path, what): (PathBuf, &'static str)| {
        path.symlink_metadata().ok().map(|_| Leftover { bytes: size(&path), path, what })
    };
    Ok(places.into_iter().filter_map(found).collect())
}

/// Removes it.
///
/// Errors: those of the file system.
pub fn remove(leftover: &Leftover) -> std::io::Result<()> {
    if leftover.path.symlink_metadata()?.is_dir() {
        std::fs::remove_dir_all(&leftover.path)
    } else {
        std::fs::remove_file(&leftover.path)
    }
}

fn size(path: &Path) -> u64 {
    let Ok(metadata) = path.symlink_metadata() else { return 0 };
    if !metadata.is_dir() {
        return metadata.len();
    }
    std::fs::read_dir(path).into_iter().flatten().flatten().map(|entry| size(&entry.path())).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology;

    fn default_topology() -> Topology {
        Topology::parse("t", topology::DEFAULT).unwrap()
    }

    #[test]
    fn a_tree_is_examined_from_nothing_to_all_that_is_wanted() {
        let tree = tempfile::tempdir().unwrap();
        let states = || kernel_findings(Some(tree.path()), None).iter().map(|f| f.state).collect::<Vec<_>>();
        assert_eq!(states(), [State::Bad, State::Bad], "no .config, no bzImage");
        let base = include_str!("../../../ci/kernel-config/base.config");
        std::fs::write(tree.path().join(".config"), "CONFIG_64BIT=y\n").unwrap();
        assert_eq!(states(), [State::Bad, State::Lacking, State::Bad]);
        std::fs::create_dir_all(tree.path().join("arch/x86/boot")).unwrap();
        std::fs::write(tree.path().join("arch/x86/boot/bzImage"), "").unwrap();
        std::fs::write(tree.path().join(".config"), base.replace("CONFIG_USERFAULTFD=y", "")).unwrap();
        assert_eq!(states(), [State::Good, State::Lacking]);
        let text = kernel_findings(Some(tree.path()), None)[1].text.clone();
        assert!(text.contains("CONFIG_USERFAULTFD=y"), "{text}");
        std::fs::write(tree.path().join(".config"), base).unwrap();
        assert_eq!(states(), [State::Good]);
    }

    #[test]
    fn sockets_that_a_killed_backend_left_are_found_and_removed_and_a_living_ones_are_not() {
        let folder = tempfile::tempdir().unwrap();
        let topology = default_topology();
        assert_eq!(sockets_finding(folder.path(), &topology).state, State::Good);
        let alive = ServeFolder::take(folder.path(), &topology).unwrap();
        let socket = socket_path(folder.path(), topology.functions().next().unwrap());
        drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
        let left =
            || leftovers(&topology, Some(folder.path()), false).unwrap().into_iter().find(|left| left.path == socket);
        assert_eq!((sockets_finding(folder.path(), &topology).state, left()), (State::Good, None));
        drop(alive);
        assert_eq!(sockets_finding(folder.path(), &topology).state, State::Lacking);
        remove(&left().unwrap()).unwrap();
        assert!(!socket.exists());
    }
}
