//! The command line.
use std::{path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand, ValueEnum};

use svadev_bench::row::Suite;
use svadev_launcher::{
    exit::{Exit, OrExit as _, Outcome},
    guest::HostOptions,
    topology::{self, Accel, Caching, Levels, Topology},
};

/// A shared-virtual-addressing accelerator and its IOMMU, beside stock QEMU and a stock guest kernel.
#[derive(Parser, Debug)]
#[command(version, after_help = EXIT_STATUSES)]
pub(crate) struct Cli {
    /// More log output; twice for everything.
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub(crate) verbose: u8,
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
}

const EXIT_STATUSES: &str = "\
Exit status: 0 success, 1 a test failed or the guest's kernel log is not clean, 2 usage or topology error, \
119 the auditor found a forgotten invalidation, 120 set-up missing or failed, 121 QEMU failed, 122 guest kernel panic, 123 guest hung or out of time, \
124 backend failed, 125 guest set-up failed, 130 interrupted. `vm -- PROGRAM` otherwise returns the program's own.";

/// The subcommands.
#[derive(Subcommand, Debug)]
pub(crate) enum Command {
    /// Boot the guest with the devices and attach the terminal, or run one program in it.
    Vm(VmArgs),
    /// Run the backend alone, for a QEMU that somebody else starts.
    Serve(ServeArgs),
    /// Print the QEMU arguments of the machine, for `svadev serve`.
    QemuArgs(QemuArgsArgs),
    /// Write the DMAR table of the machine.
    Dmar(DmarArgs),
    /// Boot the guest and run the smoke suite in it.
    Test(TestArgs),
    /// Boot the guest and show what shared virtual addressing does, and what it costs.
    Demo(DemoArgs),
    /// Measure what everything costs, against baselines of the same run: table, JSON, and a page with plots.
    Bench(BenchArgs),
    /// The folder with QEMU, the guest kernel and its build tools.
    #[command(subcommand)]
    Kit(KitCommand),
}

/// The machine: a file and what overrides it.
#[derive(Args, Debug, Clone, Default)]
#[command(next_help_heading = "Machine")]
pub(crate) struct MachineArgs {
    /// Machine description, as in qemu-configs/; the built-in one is qemu-configs/default.toml.
    #[arg(long, value_name = "FILE")]
    pub(crate) topology: Option<PathBuf>,
    /// Virtual CPUs.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=64))]
    pub(crate) cpus: Option<u32>,
    /// Guest RAM, as in 4G.
    #[arg(long, value_name = "SIZE", value_parser = topology::parse_memory)]
    pub(crate) memory: Option<u64>,
    /// Levels of the guest's page tables.
    #[arg(long, value_name = "4|5")]
    pub(crate) levels: Option<Levels>,
    /// How QEMU executes the guest.
    #[arg(long, value_enum)]
    pub(crate) accel: Option<AccelChoice>,
    /// How much the IOMMU remembers.
    #[arg(long)]
    pub(crate) caching: Option<CachingChoice>,
    /// Check everything cached against the guest's tables while it runs, and report forgotten invalidations.
    #[arg(long)]
    pub(crate) audit: bool,
    /// With --audit: how long a table may have changed before its invalidation comes.
    #[arg(long, value_name = "MS", requires = "audit", value_parser = clap::value_parser!(u64).range(1..=3_600_000))]
    pub(crate) audit_limit: Option<u64>,
    /// Kernel to boot: a bzImage, or a kernel build tree (whose modules are then built against it).
    #[arg(long, value_name = "PATH")]
    pub(crate) kernel: Option<PathBuf>,
    /// More kernel command line.
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub(crate) append: Vec<String>,
}

impl MachineArgs {
    /// The machine after all overrides.
    pub(crate) fn topology(&self) -> Outcome<Topology> {
        let mut topology = match &self.topology {
            Some(path) => Topology::load(path),
            None => Topology::parse("default.toml", topology::DEFAULT),
        }
        .or_exit(Exit::Usage)?;
        let machine = &mut topology.machine;
        machine.cpus = self.cpus.unwrap_or(machine.cpus);
        machine.memory_bytes = self.memory.unwrap_or(machine.memory_bytes);
        machine.levels = self.levels.unwrap_or(machine.levels);
        machine.accel = self.accel.map_or(machine.accel, Into::into);
        machine.kernel = self.kernel.clone().or(machine.kernel.take());
        let iommu = &mut topology.iommu;
        iommu.caching = self.caching.map_or(iommu.caching, Into::into);
        if self.audit {
            iommu.audit_limit_ms = self.audit_limit.or(iommu.audit_limit_ms).or(Some(topology::AUDIT_LIMIT_MS));
        }
        let machine = &mut topology.machine;
        for more in &self.append {
            machine.append.push(' ');
            machine.append.push_str(more);
        }
        Ok(topology)
    }
}

/// What of the host is used, and how long it may take.
#[derive(Args, Debug, Clone, Default)]
#[command(next_help_heading = "Host")]
pub(crate) struct HostArgs {
    /// QEMU to use instead of the kit's: a program, or `host` for the one in PATH.
    #[arg(long, value_name = "PATH|host")]
    pub(crate) qemu: Option<PathBuf>,
    /// Kernel build tree for the guest's module, where --kernel is not one.
    #[arg(long, value_name = "DIR")]
    pub(crate) kdir: Option<PathBuf>,
    /// Folder with the guest's programs, instead of building them.
    #[arg(long, value_name = "DIR", env = "SVADEV_GUEST_BIN_DIR")]
    pub(crate) guest_bin: Option<PathBuf>,
    /// Static busybox for the guest, instead of the kit's.
    #[arg(long, value_name = "FILE")]
    pub(crate) busybox: Option<PathBuf>,
    /// One more argument for QEMU; may be given again.
    #[arg(long, value_name = "ARG", allow_hyphen_values = true)]
    pub(crate) qemu_arg: Vec<String>,
    /// Keep the run's logs and files in this folder.
    #[arg(long, value_name = "DIR")]
    pub(crate) keep: Option<PathBuf>,
    /// End everything after so many seconds, with status 123.
    #[arg(long, value_name = "SECS", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) timeout: Option<u64>,
    /// Stretch every built-in time limit, for a slow or busy host.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub(crate) timeout_scale: u32,
}

impl HostArgs {
    /// The same without clap.
    pub(crate) fn options(&self) -> HostOptions {
        let Self { qemu, kdir, guest_bin, busybox, qemu_arg, keep, timeout, timeout_scale } = self.clone();
        let timeout = timeout.map(Duration::from_secs);
        HostOptions { qemu, kdir, guest_bin, busybox, qemu_args: qemu_arg, keep, timeout, timeout_scale }
    }
}

/// [`Accel`] on the command line.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum AccelChoice {
    /// KVM if a probe proves that it boots, else TCG.
    Auto,
    /// KVM or nothing.
    Kvm,
    /// QEMU's own translator.
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
    /// Nothing: every request walks every table.
    None,
    /// What one would expect: present entries, until they are invalidated or evicted.
    Strict,
    /// Everything, for as long as the specification permits.
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
    /// Bandwidth by size, alignment, page size, depth and engines.
    Copy,
    /// From submission to completion.
    Latency,
    /// Page faults of the device.
    Fault,
    /// What changes of a mapping cost.
    Invalidate,
    /// Many processes, many queues.
    Scale,
    /// Register accesses.
    Trap,
    /// What the IOMMU takes to translate.
    Translate,
    /// Many processes with mixed work, every result compared, for a minute; only on request.
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
pub(crate) struct VmArgs {
    /// The machine.
    #[command(flatten)]
    pub(crate) machine: MachineArgs,
    /// The host.
    #[command(flatten)]
    pub(crate) host: HostArgs,
    /// Initial RAM disk to boot as it is, instead of ours.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["share", "program"])]
    pub(crate) initrd: Option<PathBuf>,
    /// With --initrd: append an archive that holds only /svadev (the module, and the programs in /svadev/bin).
    #[arg(long, requires = "initrd")]
    pub(crate) inject: bool,
    /// Host folder to mount in the guest on /mnt/share.
    #[arg(long, value_name = "DIR")]
    pub(crate) share: Option<PathBuf>,
    /// Do not show the guest's kernel log.
    #[arg(short, long)]
    pub(crate) quiet: bool,
    /// Program of the host (packed with its shared libraries) or of the guest to run, and its arguments.
    #[arg(last = true, value_name = "PROGRAM [ARGS]")]
    pub(crate) program: Vec<String>,
}

/// `svadev test`
#[derive(Args, Debug)]
pub(crate) struct TestArgs {
    /// Run only the tests whose name contains this.
    pub(crate) filter: Option<String>,
    /// The machine.
    #[command(flatten)]
    pub(crate) machine: MachineArgs,
    /// The host.
    #[command(flatten)]
    pub(crate) host: HostArgs,
    /// Write the results here: one object a test.
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
}

/// `svadev demo`
#[derive(Args, Debug)]
pub(crate) struct DemoArgs {
    /// The machine.
    #[command(flatten)]
    pub(crate) machine: MachineArgs,
    /// The host.
    #[command(flatten)]
    pub(crate) host: HostArgs,
    /// Write the table's figures here.
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
}

/// `svadev bench`
#[derive(Args, Debug)]
#[command(
    after_help = "Exit status: 0 measured, whatever the verdicts (and with --compare, whatever the changes); 1 the guest's \
program failed or its kernel log is not clean; 2 usage, or a file that cannot be read or written; otherwise as for `test`."
)]
pub(crate) struct BenchArgs {
    /// Measure this suite only; may be given again.
    #[arg(long, value_enum, value_name = "SUITE")]
    pub(crate) suite: Vec<SuiteChoice>,
    /// Less time for each case: everything in under two minutes.
    #[arg(long)]
    pub(crate) quick: bool,
    /// Only what needs no guest: the same engines, driven in-process. No kit is needed.
    #[arg(long)]
    pub(crate) native: bool,
    /// Only what is measured in the guest.
    #[arg(long, conflicts_with = "native")]
    pub(crate) guest_only: bool,
    /// How long each case is measured, seconds.
    #[arg(long, value_name = "SECS", value_parser = parse_seconds)]
    pub(crate) seconds_per_case: Option<f64>,
    /// Write the results here: one object a row, and the machine.
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
    /// Write the page with plots here.
    #[arg(long, value_name = "FILE", default_value = "svadev-bench.html")]
    pub(crate) html: PathBuf,
    /// Measure nothing: compare two files that `--json` wrote.
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
    text.parse().ok().filter(|s| (0.01..=600.0).contains(s)).ok_or_else(|| "write 0.01 to 600".into())
}

/// `svadev serve`
#[derive(Args, Debug)]
pub(crate) struct ServeArgs {
    /// The machine.
    #[command(flatten)]
    pub(crate) machine: MachineArgs,
    /// Folder for the sockets, as given to `qemu-args`; made if it is missing.
    #[arg(long, value_name = "DIR")]
    pub(crate) socket_dir: Option<PathBuf>,
    /// Keep this DMAR table right: it is rewritten when QEMU's firmware places the unit elsewhere.
    #[arg(long, value_name = "FILE")]
    pub(crate) dmar: Option<PathBuf>,
    /// Write the backend's counters here when it ends.
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
}

/// `svadev qemu-args`
#[derive(Args, Debug)]
pub(crate) struct QemuArgsArgs {
    /// The machine.
    #[command(flatten)]
    pub(crate) machine: MachineArgs,
    /// The sockets' folder, as given to `serve`.
    #[arg(long, value_name = "DIR")]
    pub(crate) socket_dir: Option<PathBuf>,
    /// The DMAR table's file, as given to `serve` or `dmar`.
    #[arg(long, value_name = "FILE")]
    pub(crate) dmar: PathBuf,
    /// How to print.
    #[arg(long, value_enum, default_value_t = Format::Shell)]
    pub(crate) format: Format,
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
    /// The machine.
    #[command(flatten)]
    pub(crate) machine: MachineArgs,
    /// The host.
    #[command(flatten)]
    pub(crate) host: HostArgs,
    /// Guest-physical address of the unit's BAR, or `auto` to learn it by starting QEMU for a moment.
    #[arg(long, value_name = "ADDRESS|auto", value_parser = parse_unit_address)]
    pub(crate) address: UnitAddress,
    /// File to write.
    #[arg(short, long, value_name = "FILE")]
    pub(crate) output: PathBuf,
}

/// Where the unit's BAR is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum UnitAddress {
    /// To be learnt.
    Auto,
    /// Known.
    At(u64),
}

fn parse_unit_address(text: &str) -> Result<UnitAddress, String> {
    if text == "auto" {
        return Ok(UnitAddress::Auto);
    }
    let number = match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => text.parse(),
    };
    match number {
        Ok(address) if address != 0 && address & 0xfff == 0 && address < 1 << 52 => Ok(UnitAddress::At(address)),
        Ok(_) => Err("the unit's registers begin at a page of guest-physical memory".into()),
        Err(_) => Err("write auto, or a number as in 0xfebff000".into()),
    }
}

/// `svadev kit`
#[derive(Subcommand, Debug)]
pub(crate) enum KitCommand {
    /// Fetch what is missing.
    Setup {
        /// Arguments for the set-up script, such as `--mirror URL`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Say what is there.
    Status,
    /// Remove it all.
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
        assert_eq!(args.filter.as_deref(), Some("copy"));
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
}
