//! What `vm`, `test`, `demo` and `dmar` have in common: everything from the command line to a guest that has ended.
use std::{
    cell::OnceCell,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Context as _;

use super::accel;
use crate::{
    backend::{Backend, BackendOptions},
    cli::{HostArgs, MachineArgs},
    exit::{Exit, Failure, OrExit as _, Outcome},
    guest_image::{
        self, Contents, Job,
        build::{self, ModuleTarget},
    },
    kit::{self, Kit},
    qemu::process::{find_in_path, users_qemu},
    run::{self, Ended, Observer, Plan, Report, Terminal, folder::RunFolder},
    topology::Accel,
};

/// What a command wants.
#[derive(Debug)]
pub struct Request<'a> {
    /// Name of the command, for the folder of logs.
    pub command: &'static str,
    /// The machine.
    pub machine: &'a MachineArgs,
    /// The host.
    pub host: &'a HostArgs,
    /// What runs in the guest.
    pub image: Image<'a>,
    /// Folder to share.
    pub share: Option<&'a Path>,
    /// What the guest's program is connected to.
    pub terminal: Terminal,
    /// End as soon as the unit's BAR is placed.
    pub until_placed: bool,
}

/// What the guest boots into.
#[derive(Debug)]
pub enum Image<'a> {
    /// Our image with a job.
    Job {
        /// The job.
        job: Job,
        /// Whether it is of any use without our module.
        needs_module: bool,
    },
    /// The user's.
    Initrd {
        /// The file.
        file: &'a Path,
        /// Append an archive with `/svadev`.
        inject: bool,
    },
}

/// A run that has ended, and its folder.
#[derive(Debug)]
pub struct Finished {
    /// What is left of it.
    pub report: Report,
    /// How QEMU executed it.
    pub accel: Accel,
    /// Its files.
    folder: RunFolder,
    command: &'static str,
    keep: Option<PathBuf>,
}

/// The kit, set up at the first use of something in it.
#[derive(Debug, Default)]
pub struct LazyKit(OnceCell<Kit>);

impl LazyKit {
    fn get(&self) -> Outcome<&Kit> {
        match self.0.get() {
            Some(kit) => Ok(kit),
            None => {
                let kit = Kit::ensure()?;
                Ok(self.0.get_or_init(|| kit))
            }
        }
    }
}

/// A kernel to boot.
#[derive(Debug)]
struct Kernel {
    image: PathBuf,
    release: String,
    kdir: Option<PathBuf>,
    is_kits: bool,
}

/// Prepares and runs a guest.
pub fn run(request: Request<'_>, observer: &mut dyn Observer) -> Outcome<Finished> {
    let topology = request.machine.topology()?;
    let kit = LazyKit::default();
    let host = request.host;
    let qemu = match &host.qemu {
        Some(choice) => users_qemu(choice)?,
        None => kit.get()?.qemu.clone(),
    };
    let kernel = choose_kernel(topology.machine.kernel.as_deref(), host.kdir.as_deref(), &kit)?;
    let busybox = match &host.busybox {
        Some(path) => path.clone(),
        None => kit.get()?.busybox.clone(),
    };
    let share = match request.share {
        Some(folder) => Some((shared_folder(folder)?, choose_virtiofsd(host, &kit)?)),
        None => None,
    };
    let folder = RunFolder::create().or_exit(Exit::Setup)?;
    let (initrd, has_our_init) =
        make_image(&request, &kernel, &kit, &busybox, &folder, topology.iommu.audit_limit_ms.is_some())?;
    let choice = accel::Choice { topology: &topology, qemu: &qemu, kernel: &kernel.image, busybox: &busybox };
    let plan = Plan {
        topology: &topology,
        accel: choice.decide()?,
        qemu: &qemu,
        kernel: &kernel.image,
        initrd: &initrd,
        share: share.as_ref().map(|(folder, virtiofsd)| (folder.as_path(), virtiofsd.as_path())),
        extra: &host.qemu_arg,
        has_our_init,
        timeout: host.timeout.map(Duration::from_secs),
        timeout_scale: host.timeout_scale,
        terminal: request.terminal,
        until_placed: request.until_placed,
    };
    let (report, accel) = (drive(&plan, &folder, observer)?, plan.accel);
    Ok(Finished { report, accel, folder, command: request.command, keep: host.keep.clone() })
}

/// Starts the backend, runs the plan on it, stops it.
fn drive(plan: &Plan<'_>, folder: &RunFolder, observer: &mut dyn Observer) -> Outcome<Report> {
    block_on(async {
        let options = BackendOptions { socket_dir: folder.path().to_owned(), timeout_scale: plan.timeout_scale };
        let mut backend =
            Backend::start(plan.topology, &options).context("starting the backend").or_exit(Exit::Backend)?;
        observer.backend(backend.counter_source());
        let report = run::run(plan, folder, Some(&mut backend), observer).await;
        backend.stop();
        Ok(report)
    })?
}

/// Runs a future, with local tasks, on this thread: children are tied to the life of the thread that starts them.
pub fn block_on<F: Future>(future: F) -> Outcome<F::Output> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().or_exit(Exit::Setup)?;
    let output = tokio::task::LocalSet::new().block_on(&runtime, future);
    // A thread may still sit in a read of standard input: it is not waited for.
    runtime.shutdown_background();
    Ok(output)
}

fn make_image(
    request: &Request<'_>,
    kernel: &Kernel,
    kit: &LazyKit,
    busybox: &Path,
    folder: &RunFolder,
    audit: bool,
) -> Outcome<(PathBuf, bool)> {
    let out = folder.path().join("initrd.cpio");
    match &request.image {
        Image::Initrd { file, inject: false } => {
            file.metadata().with_context(|| format!("--initrd {}", file.display())).or_exit(Exit::Usage)?;
            Ok((file.to_path_buf(), false))
        }
        Image::Initrd { file, inject: true } => {
            let module = find_module(kernel, kit, false)?;
            let programs = build::programs(request.host.guest_bin.as_deref())?;
            guest_image::append(file, &programs, module.as_deref(), &out).context("--initrd").or_exit(Exit::Setup)?;
            Ok((out, false))
        }
        Image::Job { job, needs_module } => {
            let programs = build::programs(request.host.guest_bin.as_deref())?;
            let module = find_module(kernel, kit, *needs_module)?;
            let mut job = job.clone();
            job.share = request.share.is_some();
            job.timeout_scale = request.host.timeout_scale;
            if audit && job.mode == "test" {
                // Tests may plant a mistake, now that someone looks.
                job.env.insert("SVADEV_AUDIT".into(), "1".into());
                job.module_parameters = "plant=1".into();
            }
            let contents = Contents { programs: &programs, busybox, module: module.as_deref(), job };
            guest_image::write(contents, &out).or_exit(Exit::Setup)?;
            Ok((out, true))
        }
    }
}

/// The module for a kernel; without a tree to build it in, an error or, where it can be done without, nothing.
fn find_module(kernel: &Kernel, kit: &LazyKit, needed: bool) -> Outcome<Option<PathBuf>> {
    if !kernel.is_kits && kernel.kdir.is_none() {
        let release = &kernel.release;
        let text = format!("no build tree for the kernel {release}: give one with --kdir");
        if needed {
            return Err(Failure::new(Exit::Setup, text));
        }
        say!("{text}; going on without the driver");
        return Ok(None);
    }
    if kernel.is_kits {
        kit.get()?;
    }
    build::module(&ModuleTarget { release: kernel.release.clone(), kdir: kernel.kdir.clone() }).map(Some)
}

fn choose_kernel(choice: Option<&Path>, kdir: Option<&Path>, kit: &LazyKit) -> Outcome<Kernel> {
    let Some(choice) = choice else {
        let kit = kit.get()?;
        let (image, release) = (kit.kernel.clone(), kit.kernel_release.clone());
        return Ok(Kernel { image, release, kdir: kdir.map(Path::to_owned), is_kits: kdir.is_none() });
    };
    let locate = || -> anyhow::Result<Kernel> {
        let (image, tree) = if choice.is_dir() {
            (choice.join("arch/x86/boot/bzImage"), Some(choice.to_owned()))
        } else {
            (choice.to_owned(), None)
        };
        let release = bzimage_release(&image).with_context(|| image.display().to_string())?;
        let installed = || Some(Path::new("/lib/modules").join(&release).join("build")).filter(|tree| tree.exists());
        let kdir = kdir.map(Path::to_owned).or(tree).or_else(installed);
        Ok(Kernel { image, release, kdir, is_kits: false })
    };
    locate().with_context(|| format!("--kernel {}", choice.display())).or_exit(Exit::Setup)
}

/// The release in a bzImage (Linux, `Documentation/arch/x86/boot.rst`: `header` at 0202h, `kernel_version` at 020Eh).
fn bzimage_release(path: &Path) -> anyhow::Result<String> {
    use std::os::unix::fs::FileExt as _;
    let file = std::fs::File::open(path)?;
    let mut header = [0; 0x210];
    let short = "this is no bzImage: give arch/x86/boot/bzImage, or the build tree itself";
    file.read_exact_at(&mut header, 0).context(short)?;
    anyhow::ensure!(&header[0x202..0x206] == b"HdrS", short);
    // "a pointer to a NUL-terminated human-readable kernel version number string, less 0x200".
    let offset = u64::from(u16::from_le_bytes([header[0x20e], header[0x20f]])) + 0x200;
    let mut text = [0; 256];
    let count = file.read_at(&mut text, offset)?;
    let text = text[..count].split(|&byte| byte == 0).next().unwrap_or_default();
    let text = std::str::from_utf8(text).context("its version is no text")?;
    Ok(text.split(' ').next().unwrap_or_default().to_owned())
}

fn shared_folder(folder: &Path) -> Outcome<PathBuf> {
    let path = folder.canonicalize().with_context(|| format!("--share {}", folder.display())).or_exit(Exit::Usage)?;
    if !path.is_dir() {
        return Err(Failure::new(Exit::Usage, format!("--share {}: not a folder", folder.display())));
    }
    Ok(path)
}

/// The kit's, unless nothing else of the kit is used and the host has one.
fn choose_virtiofsd(host: &HostArgs, kit: &LazyKit) -> Outcome<PathBuf> {
    if host.qemu.is_some() {
        let usual = ["/usr/libexec/virtiofsd", "/usr/lib/virtiofsd", "/usr/lib/qemu/virtiofsd"].map(PathBuf::from);
        if let Some(path) = find_in_path("virtiofsd").or_else(|| usual.into_iter().find(|path| path.exists())) {
            return Ok(path);
        }
    }
    Ok(kit.get()?.virtiofsd.clone())
}

impl Finished {
    /// How it ended; if it failed, after showing the end of the kernel log. Files are kept where they should be:
    /// everything where the user said so, else the logs of a run that failed in the cache folder.
    pub fn conclude(self, also_failed: bool) -> Outcome<Ended> {
        let failed = also_failed || self.report.ended.is_err();
        let interrupted = self.report.ended.as_ref().is_err_and(|failure| failure.exit == Exit::Interrupted);
        if self.report.ended.is_err() && !interrupted {
            for line in self.report.kernel_log.tail() {
                say!("| {line}");
            }
        }
        if let Some(gap) = self.report.audit.gap() {
            say!("audit: {gap}");
        }
        let audit = self.report.audit.problems();
        match (self.keep_files((failed || !audit.is_empty()) && !interrupted), failed) {
            (Ok(Some(place)), true) => say!("logs: {}", place.display()),
            (Ok(_), _) => {}
            (Err(error), _) => say!("the logs could not be kept: {error:#}"),
        }
        match (self.report.ended, audit.len()) {
            (Ok(_), count @ 1..) if !also_failed => {
                let message = format!("the auditor: {}{}", audit[0], if count > 1 { "; and more, above" } else { "" });
                Err(Failure::new(Exit::Audit, message))
            }
            (ended, _) => ended,
        }
    }

    fn keep_files(&self, failed: bool) -> anyhow::Result<Option<PathBuf>> {
        if let Some(keep) = &self.keep {
            self.folder.copy_to(keep, false)?;
            return Ok(Some(keep.clone()));
        }
        if !failed {
            return Ok(None);
        }
        let place = kit::cache_folder()?.join("logs").join(self.command);
        _ = std::fs::remove_dir_all(&place);
        self.folder.copy_to(&place, true)?;
        Ok(Some(place))
    }
}

/// Writes results for a program to read.
pub fn write_json(path: &Path, value: &impl serde::Serialize) -> Outcome<()> {
    let write = || -> anyhow::Result<()> {
        let mut text = serde_json::to_string_pretty(value)?;
        text.push('\n');
        std::fs::write(path, text)?;
        Ok(())
    };
    write().with_context(|| format!("--json {}", path.display())).or_exit(Exit::Usage)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bzimage_tells_its_release() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("bzImage");
        let mut image = vec![0; 0x400];
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x20e..0x210].copy_from_slice(&0x100_u16.to_le_bytes());
        image[0x300..0x30d].copy_from_slice(b"7.3.4-x (me) ");
        std::fs::write(&path, &image).unwrap();
        assert_eq!(bzimage_release(&path).unwrap(), "7.3.4-x");
        std::fs::write(&path, b"\x7fELF").unwrap();
        assert!(bzimage_release(&path).unwrap_err().to_string().contains("arch/x86/boot/bzImage"));
        image[0x20e..0x210].copy_from_slice(&0xffff_u16.to_le_bytes());
        std::fs::write(&path, &image).unwrap();
        assert_eq!(bzimage_release(&path).unwrap(), "", "a pointer outside the file reads nothing");
    }
}
