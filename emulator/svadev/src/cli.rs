//! The command line.
use std::{path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand, ValueEnum};

use svadev_bench::row::Suite;
use svadev_launcher::{
    exit::{Exit, OrExit as _, Outcome},
    guest::HostOptions,
    results::Shard,
    topology::{self, Accel, Caching, Levels, Topology},
    unit_options::UnitOverride,
};

/// A shared-virtual-addressing accelerator and its IOMMU, beside stock QEMU and a stock guest kernel.
#[derive(Parser, Debug)]
#[command(version = VERSION, after_help = EXIT_STATUSES)]
pub(crate) struct Cli {
    /// More log output: -v for info, -vv for debug, -vvv for trace.
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub(crate) verbose: u8,
    /// Print only results and errors.
    #[arg(short, long, global = true)]
    pub(crate) quiet: bool,
    /// When to use colours; NO_COLOR and CLICOLOR are obeyed.
    #[arg(long, global = true, value_name = "WHEN", default_value = "auto")]
    pub(crate) color: ColorWhen,
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// When to use colours.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum ColorWhen {
    /// On a terminal.
    #[default]
    Auto,
    /// Everywhere.
    Always,
    /// Nowhere.
    Never,
}

/// The version, and the commit if it is known.
const VERSION: &str = env!("SVADEV_VERSION");

const EXIT_STATUSES: &str = "\
Exit status: 0 success, 1 a test failed or the guest's kernel log is not clean, 2 usage or topology error, \
119 an auditor report is unexpected or an expected one is missing, 120 set-up missing or failed, 121 QEMU failed, \
122 guest kernel panic, 123 guest hung or timed out, 124 backend failed, 125 guest set-up failed, 130 interrupted. \
Otherwise `vm -- PROGRAM` returns the exit status of the program: 127 if it is not found, 126 if it cannot be run, \
128 + N if signal N killed it. `vm --json FILE` says whose the status is.";

/// The subcommands.
#[derive(Subcommand, Debug)]
pub(crate) enum Command {
    /// Boot the guest with the devices and attach the terminal, or run one program in it.
    Vm(VmArgs),
    /// Run only the backend, for a QEMU that is started separately.
    Serve(ServeArgs),
    /// Print the arguments of a QEMU that connects to `svadev serve`.
    QemuArgs(QemuArgsArgs),
    /// Write the DMAR table of the machine.
    Dmar(DmarArgs),
    /// Boot the guest and run the smoke suite in it.
    Test(TestArgs),
    /// Boot the guest, and show what shared virtual addressing does and what it costs.
    Demo(DemoArgs),
    /// Measure everything against baselines of the same run: a table, JSON, and a page with plots.
    Bench(BenchArgs),
    /// Join and convert the results of tests.
    #[command(subcommand)]
    Report(ReportCommand),
    /// Look at this host, and at the kernel of --kernel or --kdir: what is missing, and what to do about it.
    Doctor(DoctorArgs),
    /// Remove what svadev left in the cache and in the folder of sockets.
    Clean(CleanArgs),
    /// Print a script that completes arguments in a shell.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Write the manual pages, one for each subcommand.
    Man {
        /// Folder to write to.
        #[arg(value_name = "DIR")]
        folder: PathBuf,
    },
    /// Manage the kit: QEMU, the guest kernel and its build tools.
    #[command(subcommand)]
    Kit(KitCommand),
}

/// The devices and their IOMMU: a file and what overrides it.
#[derive(Args, Debug, Clone, Default)]
#[command(next_help_heading = "Machine")]
pub(crate) struct BackendArgs {
    /// Topology file, as in qemu-configs/. The default is qemu-configs/default.toml, which is built in.
    #[arg(long, value_name = "FILE")]
    pub(crate) topology: Option<PathBuf>,
    /// IOMMU caching mode.
    #[arg(long)]
    pub(crate) caching: Option<CachingChoice>,
    /// What the IOMMU can do, as in page_requests=off or levels=4; may be given again. qemu-configs/README.md has the
    /// keys. With several units, NAME.KEY=VALUE is for one of them.
    #[arg(long, value_name = "KEY=VALUE")]
    pub(crate) unit: Vec<UnitOverride>,
    /// Compare cached translations with the guest's tables while it runs, and report missing invalidations.
    #[arg(long)]
    pub(crate) audit: bool,
    /// With --audit: report a changed table entry that is not invalidated within this time.
    #[arg(long, value_name = "MS", requires = "audit", value_parser = clap::value_parser!(u64).range(1..=3_600_000))]
    pub(crate) audit_limit: Option<u64>,
}

impl BackendArgs {
    /// The topology after all overrides.
    pub(crate) fn topology(&self) -> Outcome<Topology> {
        let mut topology = match &self.topology {
            Some(path) => Topology::load(path),
            None => Topology::parse("default.toml", topology::DEFAULT),
        }
        .or_exit(Exit::Usage)?;
        for iommu in &mut topology.iommus {
            if let Some(caching) = self.caching {
                iommu.unit.caching = Caching::from(caching).into();
            }
            if self.audit {
                iommu.audit_limit_ms = self.audit_limit.or(iommu.audit_limit_ms).or(Some(topology::AUDIT_LIMIT_MS));
            }
        }
        for option in &self.unit {
            topology.set_unit_option(option).or_exit(Exit::Usage)?;
        }
        Ok(topology)
    }
}

/// The whole machine.
#[derive(Args, Debug, Clone, Default)]
#[command(next_help_heading = "Machine")]
pub(crate) struct MachineArgs {
    /// The devices and their IOMMU.
    #[command(flatten)]
    pub(crate) backend: BackendArgs,
    /// Virtual CPUs.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=64))]
    pub(crate) cpus: Option<u32>,
    /// Guest memory, as in 4G.
    #[arg(long, value_name = "SIZE", value_parser = topology::parse_memory)]
    pub(crate) memory: Option<u64>,
    /// Levels of the guest's page tables.
    #[arg(long, value_name = "4|5")]
    pub(crate) levels: Option<Levels>,
    /// How QEMU executes the guest.
    #[arg(long, value_enum, env = "SVADEV_ACCEL")]
    pub(crate) accel: Option<AccelChoice>,
    /// Kernel to boot: a bzImage, or a kernel build tree. The module is built against the tree.
    #[arg(long, value_name = "PATH", env = "SVADEV_KERNEL")]
    pub(crate) kernel: Option<PathBuf>,
    /// Text to append to the kernel command line; may be given again.
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub(crate) append: Vec<String>,
}

impl MachineArgs {
    /// The machine after all overrides.
    pub(crate) fn topology(&self) -> Outcome<Topology> {
        let mut topology = self.backend.topology()?;
        let machine = &mut topology.machine;
        machine.cpus = self.cpus.unwrap_or(machine.cpus);
        machine.memory_bytes = self.memory.unwrap_or(machine.memory_bytes);
        machine.levels = self.levels.unwrap_or(machine.levels);
        machine.accel = self.accel.map_or(machine.accel, Into::into);
        machine.kernel = self.kernel.clone().or(machine.kernel.take());
        for more in &self.append {
            machine.append.push(' ');
            machine.append.push_str(more);
        }
        topology.check().or_exit(Exit::Usage)?;
        Ok(topology)
    }
}

/// What is used of the host, and time limits.
#[derive(Args, Debug, Clone, Default)]
#[command(next_help_heading = "Host")]
pub(crate) struct HostArgs {
    /// QEMU binary to use instead of the kit's; `host` takes the one in PATH.
    #[arg(long, value_name = "PATH|host", env = "SVADEV_QEMU")]
    pub(crate) qemu: Option<PathBuf>,
    /// Kernel build tree for the guest's module, if --kernel is not a build tree.
    #[arg(long, value_name = "DIR")]
    pub(crate) kdir: Option<PathBuf>,
    /// Use the guest programs in this folder instead of building them.
    #[arg(long, value_name = "DIR", env = "SVADEV_GUEST_BIN_DIR")]
    pub(crate) guest_bin: Option<PathBuf>,
    /// Static busybox for the guest to use instead of the kit's.
    #[arg(long, value_name = "FILE", env = "SVADEV_BUSYBOX")]
    pub(crate) busybox: Option<PathBuf>,
    /// Additional argument for QEMU; may be given again.
    #[arg(long, value_name = "ARG", allow_hyphen_values = true)]
    pub(crate) qemu_arg: Vec<String>,
    /// Keep the run's logs and files in this folder.
    #[arg(long, value_name = "DIR")]
    pub(crate) keep: Option<PathBuf>,
    /// Stop after this many seconds, with exit status 123.
    #[arg(long, value_name = "SECS", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) timeout: Option<u64>,
    /// Let a debugger attach to the guest's kernel at this port of the loopback interface (1234 if none is given). The
    /// kernel is not placed at random, and the line to type is printed.
    #[arg(long, value_name = "PORT", num_args = 0..=1, require_equals = true, default_missing_value = "1234",
        value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) gdb: Option<u16>,
    /// Do not end a guest that has been silent for long.
    #[arg(long)]
    pub(crate) no_watchdog: bool,
    /// Multiply every built-in time limit by this, for a slow or busy host.
    #[arg(long, value_name = "N", default_value_t = 1, env = "SVADEV_TIMEOUT_SCALE",
        value_parser = clap::value_parser!(u32).range(1..=100))]
    pub(crate) timeout_scale: u32,
}

impl HostArgs {
    /// The options as the launcher takes them.
    pub(crate) fn options(&self) -> HostOptions {
        let Self { qemu, kdir, guest_bin, busybox, qemu_arg, keep, timeout, gdb, no_watchdog, timeout_scale } =
            self.clone();
        let (timeout, watchdog) = (timeout.map(Duration::from_secs), !no_watchdog);
        let qemu_args = qemu_arg;
        HostOptions { qemu, kdir, guest_bin, busybox, qemu_args, keep, timeout, watchdog, gdb, timeout_scale }
    }
}

/// [`Accel`] on the command line.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum AccelChoice {
    /// KVM if a probe boots a kernel with it, else TCG.
    Auto,
    /// KVM. It is an error if KVM does not work.
    Kvm,
    /// TCG, QEMU's binary translator.
    Tcg,
}

impl From<AccelChoice> for Accel {
    fn from(choice: AccelChoice) -> Self {
        match choice {
            AccelChoice::Auto => Self::Auto,
            AccelChoice::Kvm => Self::Kvm,
            AccelChoice::Tcg => Self::Tcg,
        }
    }
}

/// [`Caching`] on the command line.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum CachingChoice {
    /// Cache nothing: every request walks every table.
    None,
    /// Cache present entries until they are invalidated or evicted.
    Strict,
    /// Cache everything for as long as the specification permits.
    Adversarial,
}

impl From<CachingChoice> for Caching {
    fn from(choice: CachingChoice) -> Self {
        match choice {
            CachingChoice::None => Self::None,
            CachingChoice::Strict => Self::Strict,
            CachingChoice::Adversarial => Self::Adversarial,
        }
    }
}

/// [`Suite`] on the command line.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum SuiteChoice {
    /// Copy bandwidth by size, alignment, page size, depth and engines.
    Copy,
    /// Time from submission to completion.
    Latency,
    /// Cost of page faults of the device.
    Fault,
    /// Cost of changes to a mapping.
    Invalidate,
    /// Many processes and many queues.
    Scale,
    /// Cost of register accesses.
    Trap,
    /// Time that the IOMMU takes to translate.
    Translate,
    /// Many processes with mixed work, all results compared, for a minute. Runs only if it is named.
    Soak,
}

impl From<SuiteChoice> for Suite {
    fn from(choice: SuiteChoice) -> Self {
        match choice {
            SuiteChoice::Copy => Self::Copy,
            SuiteChoice::Latency => Self::Latency,
            SuiteChoice::Fault => Self::Fault,
            SuiteChoice::Invalidate => Self::Invalidate,
            SuiteChoice::Scale => Self::Scale,
            SuiteChoice::Trap => Self::Trap,
            SuiteChoice::Translate => Self::Translate,
            SuiteChoice::Soak => Self::Soak,
        }
    }
}

/// `svadev vm`
#[derive(Args, Debug)]
#[command(
    after_help = "With --quiet, the guest's kernel log is hidden, too. A program below /mnt/share is taken from \
the shared folder; its libraries are packed."
)]
pub(crate) struct VmArgs {
    /// Initial RAM disk to boot unchanged, instead of the built one.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["share", "program"])]
    pub(crate) initrd: Option<PathBuf>,
    /// With --initrd: append an archive with /svadev (the module, and the programs in /svadev/bin).
    #[arg(long, requires = "initrd")]
    pub(crate) inject: bool,
    /// Folder of the host to mount in the guest at /mnt/share.
    #[arg(long, value_name = "DIR")]
    pub(crate) share: Option<PathBuf>,
    /// Write the exit status, whose it is, and the findings in the kernel log to this file, as JSON.
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
    /// Program to run in the guest, and its arguments. A program of the host is packed with its shared libraries.
    #[arg(last = true, value_name = "PROGRAM [ARGS]")]
    pub(crate) program: Vec<String>,
    /// The machine.
    #[command(flatten)]
    pub(crate) machine: MachineArgs,
    /// The host.
    #[command(flatten)]
    pub(crate) host: HostArgs,
}

/// `svadev test`
#[derive(Args, Debug)]
pub(crate) struct TestArgs {
    /// Run only the tests whose name contains one of these.
    #[arg(value_name = "FILTER")]
    pub(crate) filters: Vec<String>,
    /// Of those, leave out the tests whose name contains this; may be given again.
    #[arg(long, value_name = "TEXT")]
    pub(crate) exclude: Vec<String>,
    /// Print the names of the tests, and run none.
    #[arg(long)]
    pub(crate) list: bool,
    /// Run the tests in an order that follows from this number, with data that does.
    #[arg(long, value_name = "N")]
    pub(crate) seed: Option<u64>,
    /// Run every test this many times.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) repeat: u32,
    /// Skip the tests after one that failed.
    #[arg(long)]
    pub(crate) fail_fast: bool,
    /// Run part I of N: N runs with the same filters run each test once. `report merge` joins their JSON files.
    #[arg(long, value_name = "I/N")]
    pub(crate) shard: Option<Shard>,
    /// The files to write.
    #[command(flatten)]
    pub(crate) files: ResultFiles,
    /// The machine.
    #[command(flatten)]
    pub(crate) machine: MachineArgs,
    /// The host.
    #[command(flatten)]
    pub(crate) host: HostArgs,
}

impl TestArgs {
    /// The arguments of the guest's program.
    pub(crate) fn argv(&self) -> Vec<String> {
        let shard = self.shard.iter().flat_map(|shard| ["--shard".to_owned(), shard.to_string()]);
        shard.chain(self.chosen()).collect()
    }

    /// The same without the shard: what all shards of a run have in common.
    pub(crate) fn chosen(&self) -> Vec<String> {
        let mut argv = Vec::new();
        if let Some(seed) = self.seed {
            argv.extend(["--shuffle".into(), "--seed".into(), seed.to_string()]);
        }
        argv.extend(self.exclude.iter().flat_map(|text| ["--exclude".to_owned(), text.clone()]));
        if self.repeat > 1 {
            argv.extend(["--repeat".into(), self.repeat.to_string()]);
        }
        argv.extend(self.fail_fast.then(|| "--fail-fast".to_owned()));
        argv.extend(self.filters.clone());
        argv
    }
}

/// `svadev doctor`
#[derive(Args, Debug)]
#[command(after_help = "Exit status: 0 a run can work, 120 something keeps every run from working.")]
pub(crate) struct DoctorArgs {
    /// The machine.
    #[command(flatten)]
    pub(crate) machine: MachineArgs,
    /// The host.
    #[command(flatten)]
    pub(crate) host: HostArgs,
}

/// `svadev clean`
#[derive(Args, Debug)]
pub(crate) struct CleanArgs {
    /// Say what would be removed, and remove nothing.
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Remove the kit, too: QEMU, the guest kernel and its build tools.
    #[arg(long)]
    pub(crate) kit: bool,
    /// Folder of sockets. The default is that of `serve`.
    #[arg(long, value_name = "DIR")]
    pub(crate) socket_dir: Option<PathBuf>,
    /// The devices whose sockets they are.
    #[command(flatten)]
    pub(crate) backend: BackendArgs,
}

/// Files with test results. `-` is standard output.
#[derive(Args, Debug, Clone, Default)]
#[command(next_help_heading = "Results")]
pub(crate) struct ResultFiles {
    /// Write the results to this file, as JSON with one object for each test (docs/schema/test.json).
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
    /// Write the results to this file, as JUnit XML.
    #[arg(long, value_name = "FILE")]
    pub(crate) junit: Option<PathBuf>,
    /// Write the results to this file, as KTAP version 1.
    #[arg(long, value_name = "FILE")]
    pub(crate) ktap: Option<PathBuf>,
    /// Write the results to this file, as KCIDB JSON (schema 5.3).
    #[arg(long, value_name = "FILE")]
    pub(crate) kcidb: Option<PathBuf>,
    /// With --kcidb: name of the CI system.
    #[arg(long, value_name = "NAME", default_value = "svadev", requires = "kcidb")]
    pub(crate) kcidb_origin: String,
    /// With --kcidb: ID of the build that the CI system has reported. Without it, a checkout and a build are written.
    #[arg(long, value_name = "ORIGIN:ID", requires = "kcidb")]
    pub(crate) kcidb_build: Option<String>,
}

/// `svadev report`
#[derive(Subcommand, Debug)]
pub(crate) enum ReportCommand {
    /// Join the results of all shards of one run. The exit status is that of the run.
    Merge {
        /// Files that `svadev test --shard I/N --json FILE` wrote; one file is read as it is.
        #[arg(value_name = "A.json", required = true)]
        inputs: Vec<PathBuf>,
        /// The files to write.
        #[command(flatten)]
        files: ResultFiles,
    },
}

/// `svadev demo`
#[derive(Args, Debug)]
pub(crate) struct DemoArgs {
    /// Write the figures of the table to this file, as JSON.
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
    /// The machine.
    #[command(flatten)]
    pub(crate) machine: MachineArgs,
    /// The host.
    #[command(flatten)]
    pub(crate) host: HostArgs,
}

/// `svadev bench`
#[derive(Args, Debug)]
#[command(after_help = "Exit status: 0 everything was measured, whatever the verdicts (with --compare, the changes); \
1 the guest's program failed or its kernel log is not clean; 2 usage error, or a file that cannot be read or written; \
otherwise as for `test`.")]
pub(crate) struct BenchArgs {
    /// Measure only this suite; may be given again.
    #[arg(long, value_enum, value_name = "SUITE")]
    pub(crate) suite: Vec<SuiteChoice>,
    /// Measure each case for a shorter time: everything takes less than two minutes.
    #[arg(long)]
    pub(crate) quick: bool,
    /// Measure only what needs no guest (and no kit): the same engines, driven in this process.
    #[arg(long)]
    pub(crate) native: bool,
    /// Measure only what is measured in the guest.
    #[arg(long, conflicts_with = "native")]
    pub(crate) guest_only: bool,
    /// Time for which each case is measured, in seconds.
    #[arg(long, value_name = "SECS", value_parser = parse_seconds)]
    pub(crate) seconds_per_case: Option<f64>,
    /// Write the results to this file, as JSON with one object for each row, and the machine.
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
    /// Write a page with plots to this file.
    #[arg(long, value_name = "FILE")]
    pub(crate) html: Option<PathBuf>,
    /// Compare two files that `--json` wrote, without measuring.
    #[arg(long, num_args = 2, value_names = ["A.json", "B.json"],
        conflicts_with_all = ["suite", "quick", "native", "guest_only", "seconds_per_case", "json"])]
    pub(crate) compare: Vec<PathBuf>,
    /// The machine.
    #[command(flatten)]
    pub(crate) machine: MachineArgs,
    /// The host.
    #[command(flatten)]
    pub(crate) host: HostArgs,
}

fn parse_seconds(text: &str) -> Result<f64, String> {
    text.parse().ok().filter(|s| (0.01..=600.0).contains(s)).ok_or_else(|| "invalid time: write 0.01 to 600".into())
}

/// `svadev serve`
#[derive(Args, Debug)]
pub(crate) struct ServeArgs {
    /// Folder for the sockets, the same as for `qemu-args`. It is created if it does not exist.
    #[arg(long, value_name = "DIR")]
    pub(crate) socket_dir: Option<PathBuf>,
    /// Instance: another name has another default folder for the sockets.
    #[arg(long, value_name = "NAME", conflicts_with = "socket_dir", value_parser = parse_name)]
    pub(crate) name: Option<String>,
    /// Group that may connect, as QEMU's under libvirt. It may enter the folder, too.
    #[arg(long, value_name = "GROUP")]
    pub(crate) socket_group: Option<String>,
    /// Rights of the sockets, octal. The default is 600, with --socket-group 660.
    #[arg(long, value_name = "MODE", value_parser = parse_mode)]
    pub(crate) socket_mode: Option<u32>,
    /// DMAR table to keep up to date: it is rewritten if firmware places the IOMMU's BAR at another address.
    #[arg(long, value_name = "FILE")]
    pub(crate) dmar: Option<PathBuf>,
    /// Write the backend's counters to this file at the end, as JSON.
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
    /// Multiply every built-in time limit by this, for a slow or busy host.
    #[arg(long, value_name = "N", default_value_t = 1, env = "SVADEV_TIMEOUT_SCALE",
        value_parser = clap::value_parser!(u32).range(1..=100))]
    pub(crate) timeout_scale: u32,
    /// The devices and their IOMMU.
    #[command(flatten)]
    pub(crate) backend: BackendArgs,
}

fn parse_name(text: &str) -> Result<String, String> {
    let good =
        !text.is_empty() && text.len() <= 20 && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b));
    good.then(|| text.to_owned()).ok_or_else(|| "invalid name: use at most 20 letters, digits, - and _".into())
}

fn parse_mode(text: &str) -> Result<u32, String> {
    let mode = u32::from_str_radix(text, 8).ok().filter(|mode| mode & !0o666 == 0);
    mode.ok_or_else(|| "invalid mode: write it as in 660, with rights to read and write only".into())
}

/// `svadev qemu-args`
#[derive(Args, Debug)]
pub(crate) struct QemuArgsArgs {
    /// Folder of the sockets, the same as for `serve`.
    #[arg(long, value_name = "DIR")]
    pub(crate) socket_dir: Option<PathBuf>,
    /// Instance, the same as for `serve`.
    #[arg(long, value_name = "NAME", conflicts_with = "socket_dir", value_parser = parse_name)]
    pub(crate) name: Option<String>,
    /// File with the DMAR table, the same as for `serve` or `dmar`.
    #[arg(long, value_name = "FILE")]
    pub(crate) dmar: PathBuf,
    /// Output format.
    #[arg(long, value_enum, default_value_t = Format::Shell)]
    pub(crate) format: Format,
    /// The machine.
    #[command(flatten)]
    pub(crate) machine: MachineArgs,
}

/// How `svadev qemu-args` prints.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// Words quoted for a POSIX shell: `eval qemu-system-x86_64 "$(svadev qemu-args …)"`.
    Shell,
    /// A JSON array of strings.
    Json,
    /// Elements for a libvirt domain.
    LibvirtXml,
}

/// `svadev dmar`
#[derive(Args, Debug)]
pub(crate) struct DmarArgs {
    /// Guest-physical address of the IOMMU's BAR, or `auto` to start QEMU briefly and find it. With several units,
    /// their addresses with commas between, in the topology's order.
    #[arg(long, value_name = "ADDRESS|auto", value_parser = parse_unit_address)]
    pub(crate) address: UnitAddress,
    /// File to write.
    #[arg(short, long, value_name = "FILE")]
    pub(crate) output: PathBuf,
    /// The machine.
    #[command(flatten)]
    pub(crate) machine: MachineArgs,
    /// The host.
    #[command(flatten)]
    pub(crate) host: HostArgs,
}

/// The addresses of the IOMMUs' BARs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum UnitAddress {
    /// Find it.
    Auto,
    /// At these addresses.
    At(Vec<u64>),
}

fn parse_unit_address(text: &str) -> Result<UnitAddress, String> {
    if text == "auto" {
        return Ok(UnitAddress::Auto);
    }
    text.split(',').map(parse_bar_address).collect::<Result<_, _>>().map(UnitAddress::At)
}

fn parse_bar_address(text: &str) -> Result<u64, String> {
    let number = match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => text.parse(),
    };
    match number {
        Ok(address) if address != 0 && address & 0xfff == 0 && address < 1 << 52 => Ok(address),
        Ok(_) => Err("invalid address: the IOMMU's BAR is page-aligned, not 0 and below 2^52".into()),
        Err(_) => Err("invalid address: write auto, or a number as in 0xfebff000".into()),
    }
}

/// `svadev kit`
#[derive(Subcommand, Debug)]
pub(crate) enum KitCommand {
    /// Download and install what is missing.
    Setup {
        /// Arguments for the set-up script, as in `--mirror URL`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Show what is installed.
    Status,
    /// Remove the kit.
    Clean,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_is_consistent() {
        use clap::CommandFactory as _;
        Cli::command().debug_assert();
    }

    #[test]
    fn flags_override_the_file() {
        let cli =
            Cli::try_parse_from(["svadev", "test", "copy", "--cpus", "1", "--levels", "4", "--memory", "1G"]).unwrap();
        let Command::Test(args) = cli.command else { panic!("parsed as test") };
        assert_eq!(args.argv(), ["copy"]);
        let machine = args.machine.topology().unwrap().machine;
        assert_eq!((machine.cpus, machine.levels, machine.memory_bytes), (1, Levels::Four, 1 << 30));
    }

    #[test]
    fn a_program_keeps_its_own_flags() {
        let cli = Cli::try_parse_from(["svadev", "vm", "--quiet", "--", "./prog", "--cpus", "-x"]).unwrap();
        let Command::Vm(args) = cli.command else { panic!("parsed as vm") };
        assert_eq!(args.program, ["./prog", "--cpus", "-x"]);
    }

    #[test]
    fn bad_flags_are_named_with_what_would_do() {
        for (line, name) in [
            (&["svadev", "vm", "--levels", "6"][..], "4 or 5"),
            (&["svadev", "vm", "--memory", "3X"], "--memory"),
            (&["svadev", "vm", "--cpus", "0"], "--cpus"),
            (&["svadev", "vm", "--accel", "xen"], "tcg"),
            (&["svadev", "dmar", "--address", "0xfebff001", "-o", "f"], "page"),
            (&["svadev", "vm", "--initrd", "i", "--share", "d"], "--share"),
            (&["svadev", "serve", "--cpus", "2"], "--cpus"),
            (&["svadev", "serve", "--socket-mode", "777"], "660"),
            (&["svadev", "serve", "--name", "a/b"], "letters"),
            (&["svadev", "test", "--shard", "3/2"], "I from 1 to N"),
            (&["svadev", "bench", "--suite", "dance"], "latency"),
            (&["svadev", "bench", "--compare", "a.json"], "--compare"),
            (&["svadev", "bench", "--native", "--guest-only"], "--native"),
            (&["svadev", "bench", "--seconds-per-case", "nan"], "0.01 to 600"),
        ] {
            let error = Cli::try_parse_from(line).unwrap_err();
            assert_eq!(error.exit_code(), i32::from(Exit::Usage.code()));
            assert!(error.to_string().contains(name), "{error}");
        }
    }

    /// The service manager's unit calls it with arguments that exist.
    #[test]
    fn the_systemd_unit_starts_serve() {
        let unit = include_str!("../../../qemu-configs/svadev@.service");
        let value =
            |key: &str| unit.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('=')).expect("its key");
        let line = value("ExecStart").replace("%i", "one").replace("/usr/bin/", "");
        let Command::Serve(args) = Cli::try_parse_from(line.split_whitespace()).unwrap().command else {
            panic!("{line}")
        };
        assert_eq!(args.socket_dir, Some("/run/svadev/one".into()));
        assert_eq!((value("Type"), value("NotifyAccess"), value("RuntimeDirectory")), ("notify", "main", "svadev"));
    }
}
