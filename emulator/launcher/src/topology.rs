//! The machine: one TOML file from which QEMU's arguments, the DMAR table and the backend's configuration are made.
//!
//! `qemu-configs/README.md` describes the file. Errors name the line and what to write instead.
use std::{collections::BTreeMap, fmt, path::PathBuf, str::FromStr};

use anyhow::{Context as _, bail, ensure};
use serde::Deserialize;
use svadev_fabric::Bdf;
use svadev_iommu::UnitConfig;
use svadev_spec::device::{MAX_DEVICE_MEMORY, MAX_QUEUES};
use toml::Spanned;

use crate::unit_options::{self, UnitOverride};

/// The machine that is used when no `--topology` is given.
pub const DEFAULT: &str = include_str!("../../../qemu-configs/default.toml");

/// Most engines of one function: each is a host thread.
const MAX_ENGINES: i64 = 16;
/// Most MSI-X vectors of one function: QEMU passes one eventfd each.
const MAX_VECTORS: i64 = 64;
/// Highest number of a host CPU: `CPU_SETSIZE` less one (sched_setaffinity(2)).
const MAX_CPU: i64 = 1023;
/// Default of [`AcceleratorFunction::spin_us`]. A submission that follows a completion comes within a few µs. Waking
/// through an eventfd costs about 70 µs on two cores, and a trapped doorbell as much again.
const DEFAULT_SPIN_US: i64 = 50;
/// Longest spin, µs: a second.
const MAX_SPIN_US: i64 = 1_000_000;
/// Least guest memory, bytes: kernel, initial RAM disk and the smoke suite's buffers.
const MIN_MEMORY: u64 = 256 << 20;
/// Most guest memory, bytes.
const MAX_MEMORY: u64 = 1 << 40;

/// A whole machine, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topology {
    /// The virtual machine itself.
    pub machine: Machine,
    /// The functions whose BARs hold the remapping units' registers; at least one.
    pub iommus: Vec<IommuFunction>,
    /// The functions behind them; at least one behind each.
    pub accelerators: Vec<AcceleratorFunction>,
}

/// Processors, memory and what runs on them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    /// Virtual CPUs.
    pub cpus: u32,
    /// Guest RAM, bytes; a multiple of 1 MiB.
    pub memory_bytes: u64,
    /// How instructions are executed.
    pub accel: Accel,
    /// Levels of the guest's page tables.
    pub levels: Levels,
    /// The kernel to boot, instead of the kit's.
    pub kernel: Option<PathBuf>,
    /// More kernel command line.
    pub append: String,
}

/// A remapping unit's own PCI function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IommuFunction {
    /// Name in the file and on the command line.
    pub name: String,
    /// Where it sits.
    pub bdf: Bdf,
    /// What the unit can do, and how it caches.
    pub unit: UnitConfig,
    /// Compare cached translations with the tables, and report a change that is not invalidated within so many
    /// milliseconds. `None` turns the auditor off.
    pub audit_limit_ms: Option<u64>,
}

/// Default of [`IommuFunction::audit_limit_ms`]. On a busy host, a process that was preempted between a change and its
/// flush took a little over 100 ms.
pub const AUDIT_LIMIT_MS: u64 = 500;

/// The unit's caching mode: [`svadev_iommu::Caching`] as it is written in a topology file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Caching {
    /// Cache nothing: every request walks every table.
    None,
    /// Cache present entries until they are invalidated or evicted.
    #[default]
    Strict,
    /// Cache everything for as long as the specification permits.
    Adversarial,
}

impl From<Caching> for svadev_iommu::Caching {
    fn from(caching: Caching) -> Self {
        match caching {
            Caching::None => Self::None,
            Caching::Strict => Self::Strict,
            Caching::Adversarial => Self::Adversarial,
        }
    }
}

/// An accelerator's PCI function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AcceleratorFunction {
    /// Name in logs and tables.
    pub name: String,
    /// Where it sits.
    pub bdf: Bdf,
    /// The unit that it is behind: its place in [`Topology::iommus`].
    pub iommu: usize,
    /// It has ATS. Without, it cannot translate, and has no PRI either.
    pub ats: bool,
    /// It has PRI: it can ask for pages.
    pub pri: bool,
    /// PASID width, bits.
    pub pasid_bits: u8,
    /// Queues, `1..=MAX_QUEUES`.
    pub queues: u16,
    /// Engines, each a thread.
    pub engines: u8,
    /// MSI-X vectors.
    pub vectors: u8,
    /// Bytes of device memory: a power of two, or 0 for none. It takes memory of the host as it is used.
    pub device_memory: u64,
    /// Host CPUs that engines are pinned to, in turn. If there are none, engines are not pinned.
    pub cpus: Vec<usize>,
    /// Longest time that an idle engine polls before it sleeps, µs.
    pub spin_us: u32,
}

/// QEMU's accelerator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Accel {
    /// KVM if a probe boots a kernel with it, else TCG.
    Auto,
    /// KVM. It is an error if KVM does not work.
    Kvm,
    /// QEMU's own translator.
    Tcg,
}

impl Accel {
    /// As QEMU's `-accel` calls it; `None` as long as it is undecided.
    pub const fn qemu_name(self) -> Option<&'static str> {
        match self {
            Self::Auto => None,
            Self::Kvm => Some("kvm"),
            Self::Tcg => Some("tcg"),
        }
    }
}

/// Levels of page tables: 48-bit or 57-bit linear addresses (Intel SDM vol. 3A §5.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Levels {
    /// LA57 is hidden from the guest.
    Four,
    /// The guest has LA57.
    Five,
}

impl Levels {
    /// 4 or 5.
    pub const fn count(self) -> u8 {
        match self {
            Self::Four => 4,
            Self::Five => 5,
        }
    }
}

impl FromStr for Levels {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "4" => Ok(Self::Four),
            "5" => Ok(Self::Five),
            _ => Err("invalid number of page-table levels: write 4 or 5".into()),
        }
    }
}

impl fmt::Display for Levels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.count())
    }
}

/// Bytes from `1073741824`, `1024M`, `1G`, `1GiB`, in guest memory's limits.
pub fn parse_memory(text: &str) -> Result<u64, String> {
    let bytes = parse_size(text)?;
    if bytes > MAX_MEMORY {
        return Err(format!("{text} is too large: the limit is 1T"));
    }
    if bytes < MIN_MEMORY {
        return Err(format!("{text} is too small: the guest needs at least {} MiB", MIN_MEMORY >> 20));
    }
    if bytes % (1 << 20) != 0 {
        return Err(format!("{text} is not a multiple of 1M"));
    }
    Ok(bytes)
}

/// Bytes of device memory: a power of two from 1 MiB to 1 GiB, or 0.
fn parse_device_memory(text: &str) -> Result<u64, String> {
    let bytes = parse_size(text)?;
    let good = bytes == 0 || (bytes.is_power_of_two() && (1 << 20..=MAX_DEVICE_MEMORY).contains(&bytes));
    if good {
        Ok(bytes)
    } else {
        Err(format!("invalid size {text:?}: write a power of two from 1M to 1G, or 0 for none"))
    }
}

/// Bytes from a number and a unit.
fn parse_size(text: &str) -> Result<u64, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let shift = match unit.trim().to_ascii_uppercase().as_str() {
        "" | "B" => 0,
        "K" | "KIB" => 10,
        "M" | "MIB" => 20,
        "G" | "GIB" => 30,
        "T" | "TIB" => 40,
        _ => return Err(format!("invalid size {text:?}: write a number and K, M, G or T, as in 4G")),
    };
    let number: u64 =
        number.parse().map_err(|_| format!("invalid size {text:?}: write a number and K, M, G or T, as in 4G"))?;
    number.checked_mul(1 << shift).ok_or_else(|| format!("{text} is too large: the limit is 1T"))
}

/// `BB:DD.F`, hexadecimal as `lspci` prints it.
pub fn parse_address(text: &str) -> Result<Bdf, String> {
    let fail = || format!("invalid PCI address {text:?}: write bus:device.function in hexadecimal, as in 00:05.0");
    let (bus, rest) = text.split_once(':').ok_or_else(fail)?;
    let (device, function) = rest.split_once('.').ok_or_else(fail)?;
    let part = |text: &str| {
        let digits = (1..=2).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_hexdigit());
        digits.then(|| u8::from_str_radix(text, 16).ok()).flatten().ok_or_else(fail)
    };
    Bdf::new(part(bus)?, part(device)?, part(function)?).ok_or_else(fail)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawTopology {
    #[serde(default)]
    machine: RawMachine,
    iommu: Option<RawIommu>,
    iommus: Option<Spanned<Vec<RawIommu>>>,
    accelerators: Spanned<Vec<RawAccelerator>>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct RawMachine {
    cpus: Option<Spanned<i64>>,
    memory: Option<Spanned<String>>,
    accel: Option<Accel>,
    levels: Option<Spanned<i64>>,
    kernel: Option<PathBuf>,
    #[serde(default)]
    append: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawIommu {
    name: Option<Spanned<String>>,
    address: Spanned<String>,
    #[serde(default)]
    caching: Caching,
    #[serde(default)]
    unit: BTreeMap<Spanned<String>, toml::Value>,
    #[serde(default)]
    audit: bool,
    audit_limit_ms: Option<u64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawAccelerator {
    name: Option<Spanned<String>>,
    address: Spanned<String>,
    iommu: Option<Spanned<String>>,
    ats: Option<bool>,
    pri: Option<Spanned<bool>>,
    pasid_bits: Option<Spanned<i64>>,
    queues: Option<Spanned<i64>>,
    engines: Option<Spanned<i64>>,
    vectors: Option<Spanned<i64>>,
    device_memory: Option<Spanned<String>>,
    cpus: Option<Vec<Spanned<i64>>>,
    spin_us: Option<Spanned<i64>>,
}

impl Topology {
    /// From the text of a topology file; `file` is what error messages call it.
    pub fn parse(file: &str, text: &str) -> anyhow::Result<Self> {
        let raw: RawTopology =
            toml::from_str(text).map_err(|error| anyhow::anyhow!("{file}: {}", error.to_string().trim_end()))?;
        let at = Locator { file, text };
        let machine = parse_machine(&at, raw.machine)?;
        let mut taken = Vec::new();
        let iommus = match (raw.iommu, raw.iommus) {
            (Some(iommu), None) => vec![iommu],
            (None, Some(iommus)) if !iommus.get_ref().is_empty() => iommus.into_inner(),
            (Some(_), Some(iommus)) => {
                bail!(
                    "{}: there is an [iommu] section, too: write [[iommus]] for each unit",
                    at.line(iommus.span().start)
                )
            }
            (None, _) => bail!("{file}: there is no unit: add an [iommu] section"),
        };
        let iommus = iommus.into_iter().enumerate().map(|(index, raw)| parse_iommu(&at, index, raw, &mut taken));
        let iommus = iommus.collect::<anyhow::Result<Vec<_>>>()?;
        if let Some(twice) = iommus.iter().enumerate().find(|(n, one)| iommus[..*n].iter().any(|o| o.name == one.name))
        {
            bail!("{file}: two units have the name {:?}: choose another", twice.1.name);
        }
        let (span, raws) = (raw.accelerators.span(), raw.accelerators.into_inner());
        ensure!(!raws.is_empty(), "{}: there is no accelerator: add an [[accelerators]] section", at.line(span.start));
        let mut accelerators: Vec<AcceleratorFunction> = Vec::new();
        for (index, raw) in raws.iter().enumerate() {
            let function = parse_accelerator(&at, index, raw, &iommus, &mut taken)?;
            if let Some(name) = &raw.name {
                let twice = accelerators.iter().any(|other| other.name == function.name);
                ensure!(
                    !twice,
                    "{}: the name {:?} is already in use: choose another",
                    at.line(name.span().start),
                    function.name
                );
            }
            accelerators.push(function);
        }
        for (index, iommu) in iommus.iter().enumerate() {
            let used = accelerators.iter().any(|function| function.iommu == index);
            ensure!(used, "{file}: nothing is behind {}: write iommu = {:?} at an accelerator", iommu.name, iommu.name);
        }
        Ok(Self { machine, iommus, accelerators })
    }

    /// Applies an option of the command line to the units that it means.
    ///
    /// Errors: there is no unit of this name.
    pub fn set_unit_option(&mut self, option: &UnitOverride) -> anyhow::Result<()> {
        let UnitOverride { unit: name, key, value } = option;
        let mut found = false;
        for iommu in self.iommus.iter_mut().filter(|iommu| name.as_ref().is_none_or(|name| *name == iommu.name)) {
            unit_options::set(&mut iommu.unit, key, value).map_err(|error| anyhow::anyhow!("--unit: {error}"))?;
            found = true;
        }
        let names: Vec<_> = self.iommus.iter().map(|iommu| iommu.name.as_str()).collect();
        ensure!(found, "--unit: there is no unit {:?}: write {}", name.as_deref().unwrap_or(""), names.join(" or "));
        Ok(())
    }

    /// Checks what the file and the command line say together.
    ///
    /// Errors: a unit cannot address the guest's memory.
    pub fn check(&self) -> anyhow::Result<()> {
        // q35 puts what does not fit below 4 GiB above it.
        let end = self.machine.memory_bytes + (4 << 30);
        for iommu in &self.iommus {
            let bits = iommu.unit.host_address_width;
            ensure!(
                end <= 1 << bits,
                "address_bits = {bits} of {} is too small for {} MiB of memory: write {} or more",
                iommu.name,
                self.machine.memory_bytes >> 20,
                u64::BITS - (end - 1).leading_zeros()
            );
        }
        Ok(())
    }

    /// Host address width that the firmware tells the guest, bits: the widest unit's.
    pub fn host_address_width(&self) -> u8 {
        self.iommus.iter().map(|iommu| iommu.unit.host_address_width).max().unwrap_or(UnitConfig::HOST_ADDRESS_WIDTH)
    }

    /// Whether a unit is audited.
    pub fn is_audited(&self) -> bool {
        self.iommus.iter().any(|iommu| iommu.audit_limit_ms.is_some())
    }

    /// A unit as messages call it.
    pub fn unit_name(&self, index: usize) -> &str {
        if self.iommus.len() == 1 { "the IOMMU" } else { &self.iommus[index].name }
    }

    /// The unit that `bdf` carries: its place in [`Topology::iommus`].
    pub fn unit_at(&self, bdf: Bdf) -> Option<usize> {
        self.iommus.iter().position(|iommu| iommu.bdf == bdf)
    }

    /// From a file.
    pub fn load(path: &std::path::Path) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| format!("--topology {}", path.display()))?;
        Self::parse(&path.display().to_string(), &text)
    }

    /// Every function of ours, the IOMMUs' first, in the order QEMU is told of them.
    pub fn functions(&self) -> impl Iterator<Item = Bdf> {
        self.iommus.iter().map(|iommu| iommu.bdf).chain(self.accelerators.iter().map(|function| function.bdf))
    }
}

/// Turns byte offsets into `file:line:column`.
struct Locator<'a> {
    file: &'a str,
    text: &'a str,
}

impl Locator<'_> {
    fn line(&self, offset: usize) -> String {
        let before = &self.text[..offset.min(self.text.len())];
        let line = before.matches('\n').count() + 1;
        let column = before.len() - before.rfind('\n').map_or(0, |newline| newline + 1) + 1;
        format!("{}:{line}:{column}", self.file)
    }

    fn number(
        &self,
        what: &str,
        value: Option<&Spanned<i64>>,
        default: i64,
        range: std::ops::RangeInclusive<i64>,
    ) -> anyhow::Result<i64> {
        let Some(value) = value else { return Ok(default) };
        let number = *value.get_ref();
        if !range.contains(&number) {
            let place = self.line(value.span().start);
            bail!("{place}: {what} = {number} is out of range: write {} to {}", range.start(), range.end());
        }
        Ok(number)
    }
}

fn parse_machine(at: &Locator<'_>, raw: RawMachine) -> anyhow::Result<Machine> {
    let cpus = at.number("cpus", raw.cpus.as_ref(), 2, 1..=64)?;
    let memory_bytes = match &raw.memory {
        None => 4 << 30,
        Some(text) => parse_memory(text.get_ref())
            .map_err(|error| anyhow::anyhow!("{}: memory: {error}", at.line(text.span().start)))?,
    };
    let levels = match at.number("levels", raw.levels.as_ref(), 5, 4..=5)? {
        4 => Levels::Four,
        _ => Levels::Five,
    };
    Ok(Machine {
        cpus: u32::try_from(cpus).expect("checked to be small"),
        memory_bytes,
        accel: raw.accel.unwrap_or(Accel::Auto),
        levels,
        kernel: raw.kernel,
        append: raw.append,
    })
}

/// Parses a PCI address that is free on QEMU's `pcie.0`.
fn parse_slot(at: &Locator<'_>, address: &Spanned<String>, taken: &mut Vec<Bdf>) -> anyhow::Result<Bdf> {
    let place = at.line(address.span().start);
    let bdf = parse_address(address.get_ref()).map_err(|error| anyhow::anyhow!("{place}: {error}"))?;
    // A root-complex integrated endpoint is what Linux allows ATS for without an ATSR entry in the DMAR table.
    ensure!(
        bdf.bus() == 0,
        "{place}: {bdf} is not on bus 00: functions are root-complex integrated endpoints; write 00:DD.0"
    );
    // One slot each: Linux looks for functions 1 to 7 only behind a multi-function function 0.
    ensure!(
        bdf.function() == 0,
        "{place}: {bdf} is not function 0: each function has a slot of its own; write 00:DD.0"
    );
    ensure!(
        (1..=0x1e).contains(&bdf.device()),
        "{place}: {bdf}: slots 00 and 1f belong to the q35 machine: choose 01 to 1e"
    );
    ensure!(!taken.contains(&bdf), "{place}: {bdf} is already in use by another function: choose another slot");
    taken.push(bdf);
    Ok(bdf)
}

fn parse_iommu(at: &Locator<'_>, index: usize, raw: RawIommu, taken: &mut Vec<Bdf>) -> anyhow::Result<IommuFunction> {
    let name = parse_name(at, raw.name.as_ref(), || format!("iommu{index}"))?;
    let mut unit = UnitConfig { caching: raw.caching.into(), ..UnitConfig::default() };
    for (key, value) in &raw.unit {
        // A switch or a number is written as on the command line.
        let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        unit_options::set(&mut unit, key.get_ref(), &value)
            .map_err(|error| anyhow::anyhow!("{}: {error}", at.line(key.span().start)))?;
    }
    let limit = raw.audit_limit_ms.unwrap_or(AUDIT_LIMIT_MS);
    let bdf = parse_slot(at, &raw.address, taken)?;
    Ok(IommuFunction { name, bdf, unit, audit_limit_ms: raw.audit.then_some(limit) })
}

/// A name in the file, or the default.
fn parse_name(
    at: &Locator<'_>,
    name: Option<&Spanned<String>>,
    default: impl FnOnce() -> String,
) -> anyhow::Result<String> {
    let Some(name) = name else { return Ok(default()) };
    let (place, name) = (at.line(name.span().start), name.get_ref());
    let good = (1..=32).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    ensure!(good, "{place}: invalid name {name:?}: write 1 to 32 characters of a-z, 0-9 and -");
    Ok(name.clone())
}

fn parse_accelerator(
    at: &Locator<'_>,
    index: usize,
    raw: &RawAccelerator,
    iommus: &[IommuFunction],
    taken: &mut Vec<Bdf>,
) -> anyhow::Result<AcceleratorFunction> {
    let name = parse_name(at, raw.name.as_ref(), || format!("sva{index}"))?;
    let iommu = match &raw.iommu {
        None => 0,
        Some(wanted) => {
            let names: Vec<_> = iommus.iter().map(|iommu| iommu.name.as_str()).collect();
            let (place, wanted) = (at.line(wanted.span().start), wanted.get_ref());
            let found = names.iter().position(|name| name == wanted);
            found.with_context(|| format!("{place}: there is no unit {wanted:?}: write {}", names.join(" or ")))?
        }
    };
    let ats = raw.ats.unwrap_or(true);
    if let Some(pri) = raw.pri.as_ref().filter(|pri| *pri.get_ref() && !ats) {
        bail!("{}: pri = true needs ATS: write ats = true, or pri = false", at.line(pri.span().start));
    }
    let pri = raw.pri.as_ref().map_or(ats, |pri| *pri.get_ref());
    let pasid_bits = at.number("pasid_bits", raw.pasid_bits.as_ref(), 19, 1..=19)?;
    let bdf = parse_slot(at, &raw.address, taken)?;
    let queues = at.number("queues", raw.queues.as_ref(), 64, 1..=i64::from(MAX_QUEUES))?;
    let engines = at.number("engines", raw.engines.as_ref(), 1, 1..=MAX_ENGINES.min(queues))?;
    let vectors = at.number("vectors", raw.vectors.as_ref(), 4, 1..=MAX_VECTORS)?;
    let device_memory = match &raw.device_memory {
        None => MAX_DEVICE_MEMORY,
        Some(text) => parse_device_memory(text.get_ref())
            .map_err(|error| anyhow::anyhow!("{}: device_memory: {error}", at.line(text.span().start)))?,
    };
    let spin_us = at.number("spin_us", raw.spin_us.as_ref(), DEFAULT_SPIN_US, 0..=MAX_SPIN_US)?;
    let cpus = raw.cpus.iter().flatten().map(|cpu| at.number("cpus", Some(cpu), 0, 0..=MAX_CPU));
    let cpus = cpus.map(|cpu| Ok(usize::try_from(cpu?).expect("checked to be small")));
    Ok(AcceleratorFunction {
        cpus: cpus.collect::<anyhow::Result<_>>()?,
        spin_us: u32::try_from(spin_us).expect("checked to be small"),
        name,
        bdf,
        iommu,
        ats,
        pri,
        pasid_bits: u8::try_from(pasid_bits).expect("checked to be small"),
        device_memory,
        queues: u16::try_from(queues).expect("checked to be small"),
        engines: u8::try_from(engines).expect("checked to be small"),
        vectors: u8::try_from(vectors).expect("checked to be small"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        Topology::parse("m.toml", text).unwrap_err().to_string()
    }

    #[test]
    fn every_profile_is_a_machine_and_says_what_its_name_says() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../qemu-configs");
        let load = |name: &str| Topology::load(&std::path::Path::new(folder).join(name)).unwrap();
        let default = load("default.toml");
        assert_eq!(default.iommus[0].bdf, Bdf::new(0, 5, 0).unwrap());
        assert!(default.accelerators.len() >= 2, "one process on two functions is what the SVA core was written for");
        assert_eq!((default.machine.cpus, default.machine.levels), (2, Levels::Five));
        assert_eq!(load("four-level.toml").machine.levels, Levels::Four);
        assert_eq!(load("one-cpu.toml").machine.cpus, 1);
        let two = load("two-units.toml");
        assert!(two.iommus.len() == 2 && two.iommus[0].unit != two.iommus[1].unit);
        assert!(load("two-engines.toml").accelerators.iter().all(|function| function.engines == 2));
    }

    #[test]
    fn addresses() {
        assert_eq!(parse_address("00:1e.0"), Ok(Bdf::new(0, 0x1e, 0).unwrap()));
        for bad in ["", "5", "00:05", "00:20.0", "00:05.8", "000:5.0", "+0:05.0", "00:05.0 "] {
            assert!(parse_address(bad).unwrap_err().contains("00:05.0"), "{bad:?} must be refused with an example");
        }
    }

    #[test]
    fn sizes() {
        assert_eq!(parse_memory("3G"), Ok(3 << 30));
        assert_eq!(["0", "1M", "1G"].map(parse_device_memory), [Ok(0), Ok(1 << 20), Ok(1 << 30)]);
        for bad in ["3M", "2G", "4K", "lots", ""] {
            assert!(parse_device_memory(bad).is_err(), "{bad:?}");
        }
        assert_eq!(parse_memory("1024MiB"), Ok(1 << 30));
        assert_eq!(parse_memory("1073741824"), Ok(1 << 30));
        for bad in ["", "G", "3X", "-1G", "99999999999999999999", "18446744073709551615T", "255M", "268435457"] {
            assert!(parse_memory(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn errors_name_the_line_and_the_remedy() {
        let unknown = error("[iommu]\naddress = \"00:05.0\"\n[[accelerators]]\naddress = \"00:06.0\"\nquees = 3\n");
        assert!(unknown.contains("line 5") && unknown.contains("quees") && unknown.contains("queues"), "{unknown}");
        let slot = error("[iommu]\naddress = \"00:05.0\"\n[[accelerators]]\naddress = \"00:05.0\"\n");
        assert!(slot.starts_with("m.toml:4:11: 00:05.0 is already in use"), "{slot}");
        let range = error("[iommu]\naddress = \"00:05.0\"\n[[accelerators]]\naddress = \"00:06.0\"\nqueues = 300\n");
        assert!(range.starts_with("m.toml:5:10: queues = 300") && range.contains("1 to 256"), "{range}");
        let bus = error("[iommu]\naddress = \"01:05.0\"\naccelerators = []\n");
        assert!(bus.contains("line 3"), "an unknown key of [iommu]: {bus}");
        let none = error("accelerators = []\n[iommu]\naddress = \"00:05.0\"\n");
        assert!(none.starts_with("m.toml:1:") && none.contains("[[accelerators]]"), "{none}");
        let memory = error(
            "[machine]\nmemory = \"1M\"\n[iommu]\naddress = \"00:05.0\"\n[[accelerators]]\naddress = \"00:06.0\"\n",
        );
        assert!(memory.starts_with("m.toml:2:10: memory:"), "{memory}");
    }

    #[test]
    fn engines_have_cpus_and_patience() {
        let text = "[iommu]\naddress = \"00:05.0\"\n[[accelerators]]\naddress = \"00:06.0\"\n";
        let plain = Topology::parse("m.toml", text).unwrap();
        assert_eq!((&*plain.accelerators[0].cpus, plain.accelerators[0].spin_us), (&[][..], 50));
        let pinned = Topology::parse("m.toml", &format!("{text}cpus = [2, 5]\nspin_us = 0\n")).unwrap();
        assert_eq!((&*pinned.accelerators[0].cpus, pinned.accelerators[0].spin_us), (&[2, 5][..], 0));
        let wrong = error(&format!("{text}cpus = [1, -1]\n"));
        assert!(wrong.starts_with("m.toml:5:12: cpus = -1 is out of range"), "{wrong}");
    }

    #[test]
    fn units_and_functions_lack_what_the_file_says() {
        let text = "[[iommus]]\naddress = \"00:05.0\"\n[[iommus]]\nname = \"old\"\naddress = \"00:04.0\"\n\
                    unit = { levels = 4, page_requests = false }\n\
                    [[accelerators]]\naddress = \"00:06.0\"\n\
                    [[accelerators]]\naddress = \"00:07.0\"\niommu = \"old\"\npri = false\npasid_bits = 8\n";
        let mut machine = Topology::parse("m.toml", text).unwrap();
        assert_eq!(machine.iommus[0].unit, UnitConfig::default());
        assert!(!machine.iommus[1].unit.levels5 && !machine.iommus[1].unit.page_requests);
        let [first, second] = &machine.accelerators[..] else { panic!("two") };
        assert_eq!((first.iommu, first.ats, first.pri, first.pasid_bits), (0, true, true, 19));
        assert_eq!((second.iommu, second.ats, second.pri, second.pasid_bits), (1, true, false, 8));
        machine.set_unit_option(&"old.address_bits=40".parse().unwrap()).unwrap();
        assert_eq!((machine.iommus[0].unit.host_address_width, machine.iommus[1].unit.host_address_width), (52, 40));
        assert_eq!(machine.host_address_width(), 52);
        machine.set_unit_option(&"caching=none".parse().unwrap()).unwrap();
        assert!(machine.iommus.iter().all(|iommu| iommu.unit.caching == svadev_iommu::Caching::None));
        let unknown = machine.set_unit_option(&"new.caching=none".parse().unwrap()).unwrap_err().to_string();
        assert!(unknown.contains("\"new\"") && unknown.contains("iommu0 or old"), "{unknown}");
        machine.check().unwrap();
        machine.set_unit_option(&"old.address_bits=36".parse().unwrap()).unwrap();
        machine.machine.memory_bytes = 100 << 30;
        let narrow = machine.check().unwrap_err().to_string();
        assert!(narrow.contains("address_bits = 36 of old") && narrow.contains("write 37 or more"), "{narrow}");
    }

    #[test]
    fn wrong_units_are_refused_with_line_value_and_remedy() {
        let function = "[[accelerators]]\naddress = \"00:06.0\"\n";
        let value = error(&format!("[iommu]\naddress = \"00:05.0\"\nunit = {{ levels = 6 }}\n{function}"));
        assert_eq!(value, "m.toml:3:10: levels = 6 is not allowed: write 4 or 5");
        let key = error(&format!("[iommu]\naddress = \"00:05.0\"\nunit = {{ prs = true }}\n{function}"));
        assert!(key.starts_with("m.toml:3:10: unknown key \"prs\"") && key.contains("page_requests"), "{key}");
        let unit = error(&format!("[iommu]\naddress = \"00:05.0\"\n{function}iommu = \"iommu1\"\n"));
        assert_eq!(unit, "m.toml:5:9: there is no unit \"iommu1\": write iommu0");
        let unused = format!("[[iommus]]\naddress = \"00:05.0\"\n[[iommus]]\naddress = \"00:04.0\"\n{function}");
        assert!(error(&unused).contains("nothing is behind iommu1"), "{}", error(&unused));
        let pri = error(&format!("[iommu]\naddress = \"00:05.0\"\n{function}ats = false\npri = true\n"));
        assert!(pri.starts_with("m.toml:6:7: pri = true needs ATS"), "{pri}");
        assert!(error(function).contains("there is no unit"));
    }

    #[test]
    fn more_engines_than_queues_are_refused() {
        let text = "[iommu]\naddress = \"00:05.0\"\n[[accelerators]]\naddress = \"00:06.0\"\nqueues = 1\nengines = 2\n";
        assert!(error(text).starts_with("m.toml:6:11: engines = 2"));
    }
}
