//! Runs a guest from the user's choices to its end: kernel, image, backend, run, and the files that are kept.
use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Context as _;

use crate::{
    backend::{Backend, BackendOptions},
    exit::{Exit, Failure, OrExit as _, Outcome},
    guest_image::{self, Contents, Job, build},
    kernel::{Kernel, choose_kernel, find_module},
    kernel_options,
    kit::{self, LazyKit},
    kvm,
    qemu::{
        args::shell_quoted,
        process::{find_in_path, users_qemu},
    },
    run::{self, Ended, Observer, Plan, Report, Terminal, folder::RunFolder},
    runtime::block_on,
    topology::{Accel, Topology},
};

/// What is used of the host, and time limits.
#[derive(Clone, Debug)]
pub struct HostOptions {
    /// QEMU to use instead of the kit's: a program, or `host` for the one in PATH.
    pub qemu: Option<PathBuf>,
    /// Kernel build tree for the guest's module.
    pub kdir: Option<PathBuf>,
    /// Folder with the guest's programs. Without it they are built.
    pub guest_bin: Option<PathBuf>,
    /// Static busybox for the guest, instead of the kit's.
    pub busybox: Option<PathBuf>,
    /// More arguments for QEMU.
    pub qemu_args: Vec<String>,
    /// Folder in which the run's logs and files are kept.
    pub keep: Option<PathBuf>,
    /// Time after which everything ends.
    pub timeout: Option<Duration>,
    /// End a guest that has been silent for long.
    pub watchdog: bool,
    /// Port of a debugger's stub in QEMU, on the loopback interface.
    pub gdb: Option<u16>,
    /// Multiplies every built-in time limit.
    pub timeout_scale: u32,
}

/// What a command wants.
#[derive(Debug)]
pub struct Request<'a> {
    /// Name of the command, for the folder of logs.
    pub command: &'static str,
    /// The machine.
    pub topology: Topology,
    /// The host.
    pub host: HostOptions,
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
        /// Whether the job needs our module.
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

/// Prepares and runs a guest.
pub fn run(request: Request<'_>, observer: &mut dyn Observer) -> Outcome<Finished> {
    let topology = &request.topology;
    let kit = LazyKit::default();
    let host = &request.host;
    let qemu = match &host.qemu {
        Some(choice) => users_qemu(choice)?,
        None => kit.get()?.qemu.clone(),
    };
    if let (Image::Job { .. }, Some(tree)) =
        (&request.image, topology.machine.kernel.as_deref().filter(|kernel| kernel.is_dir()))
    {
        kernel_options::check(tree, request.share.is_some()).context("--kernel").or_exit(Exit::Setup)?;
    }
    let kernel = choose_kernel(topology.machine.kernel.as_deref(), host.kdir.as_deref(), &kit)?;
    let busybox = match &host.busybox {
        Some(path) => path.clone(),
        None => kit.get()?.busybox.clone(),
    };
    let share = match request.share {
        Some(folder) => Some((shared_folder(folder)?, choose_virtiofsd(host, &kit)?)),
        None => None,
    };
    let mut extra = host.qemu_args.clone();
    if let Some(port) = host.gdb {
        extra.extend(["-gdb".to_owned(), format!("tcp:127.0.0.1:{port}")]);
        say!("debugger: {}", gdb_command(topology.machine.kernel.as_deref(), port));
    }
    let folder = RunFolder::create().or_exit(Exit::Setup)?;
    let (initrd, has_our_init) = make_image(&request, &kernel, &kit, &busybox, &folder, topology.is_audited())?;
    let choice = kvm::Choice { topology, qemu: &qemu, kernel: &kernel.image, busybox: &busybox };
    let plan = Plan {
        topology,
        accel: choice.decide()?,
        qemu: &qemu,
        kernel: &kernel.image,
        initrd: &initrd,
        share: share.as_ref().map(|(folder, virtiofsd)| (folder.as_path(), virtiofsd.as_path())),
        extra: &extra,
        has_our_init,
        timeout: host.timeout,
        watchdog: host.watchdog,
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
            Backend::start(plan.topology, &options).context("cannot start the backend").or_exit(Exit::Backend)?;
        observer.backend(backend.counter_source());
        let report = run::run(plan, folder, Some(&mut backend), observer).await;
        backend.stop();
        Ok(report)
    })?
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
            if matches!(job.mode, "test" | "bench") {
                // Tests and the bench name PASIDs themselves.
                job.module_parameters = "raw=1".into();
            }
            if audit && job.mode == "test" {
                // Tests may plant mistakes, since the auditor looks for them.
                job.env.insert("SVADEV_AUDIT".into(), "1".into());
                job.module_parameters = "plant=1 raw=1".into();
            }
            let ram_disk = if kernel.is_kits && job.mode == "test" { kit.get()?.ram_disk_module() } else { None };
            let contents = Contents {
                programs: &programs,
                busybox,
                module: module.as_deref(),
                ram_disk: ram_disk.as_deref(),
                job,
                share: request.share,
            };
            guest_image::write(contents, &out).or_exit(Exit::Setup)?;
            Ok((out, true))
        }
    }
}

/// What a person types to debug the guest's kernel.
fn gdb_command(kernel: Option<&Path>, port: u16) -> String {
    let vmlinux = kernel.map(|tree| tree.join("vmlinux")).filter(|vmlinux| vmlinux.exists());
    let program = match &vmlinux {
        Some(vmlinux) => format!("gdb {}", shell_quoted(&[vmlinux.display().to_string()])),
        None => "gdb".to_owned(),
    };
    format!("{program} -ex 'target remote :{port}'")
}

fn shared_folder(folder: &Path) -> Outcome<PathBuf> {
    let path = folder.canonicalize().with_context(|| format!("--share {}", folder.display())).or_exit(Exit::Usage)?;
    if !path.is_dir() {
        return Err(Failure::new(Exit::Usage, format!("--share {} is not a folder", folder.display())));
    }
    Ok(path)
}

/// Chooses a virtiofsd. If nothing else of the kit is used and the host has one, it is the host's, otherwise the kit's.
fn choose_virtiofsd(host: &HostOptions, kit: &LazyKit) -> Outcome<PathBuf> {
    if host.qemu.is_some() {
        let usual = ["/usr/libexec/virtiofsd", "/usr/lib/virtiofsd", "/usr/lib/qemu/virtiofsd"].map(PathBuf::from);
        if let Some(path) = find_in_path("virtiofsd").or_else(|| usual.into_iter().find(|path| path.exists())) {
            return Ok(path);
        }
    }
    Ok(kit.get()?.virtiofsd.clone())
}

impl Finished {
    /// Returns how the run ended. If it failed, shows the end of the kernel log first. With `--keep`, all files are
    /// kept in that folder. Otherwise the logs of a failed run are kept in the cache folder.
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
            (Err(error), _) => say!("cannot keep the logs: {error:#}"),
        }
        match (self.report.ended, audit.len()) {
            (Ok(_), count @ 1..) if !also_failed => {
                let message = format!("audit: {}{}", audit[0], if count > 1 { " (more above)" } else { "" });
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
