//! What a host is made of: plain values, from whatever file or command line they come.
use std::path::PathBuf;

use svadev_fabric::Bdf;
use svadev_iommu::UnitConfig;

/// Everything that [`Host::start`](crate::Host::start) needs to know.
#[derive(Clone, Debug)]
pub struct HostConfig {
    /// The IOMMUs, with what is behind each.
    pub iommus: Vec<IommuConfig>,
    /// Folder for the sockets. It must exist, and only its owner should be able to enter it.
    pub socket_dir: PathBuf,
    /// Multiplies every time limit. A busy host and its guest take longer for everything, page requests above all.
    pub timeout_scale: u32,
}

/// One IOMMU.
#[derive(Clone, Debug)]
pub struct IommuConfig {
    /// The function whose BAR holds the IOMMU's registers.
    pub bdf: Bdf,
    /// What the IOMMU can do, and how it caches.
    pub unit: UnitConfig,
    /// With a value, the auditor runs. It reports a stale cache entry whose table changed this many milliseconds ago.
    pub audit_limit_ms: Option<u64>,
    /// The functions behind the IOMMU.
    pub accelerators: Vec<AcceleratorConfig>,
}

/// One accelerator function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AcceleratorConfig {
    /// Name for people: threads, logs and errors carry it.
    pub name: String,
    /// Requester ID.
    pub bdf: Bdf,
    /// It has ATS, and so can translate.
    pub ats: bool,
    /// It has PRI, and so can ask for pages. PRI needs ATS.
    pub pri: bool,
    /// PASID width, bits: 1 to 20.
    pub pasid_bits: u8,
    /// Number of queues, `1..=MAX_QUEUES`.
    pub queues: u16,
    /// Number of engines, `1..=queues`. Each is a thread.
    pub engines: u8,
    /// Number of MSI-X vectors, at least 1.
    pub vectors: u8,
    /// Host CPUs that the engines are pinned to, in turn. If there are none, engines are not pinned.
    pub cpus: Vec<usize>,
    /// Bytes of device memory: a power of two, or 0 for none.
    pub device_memory: u64,
    /// Longest time that an engine without work looks for more before it sleeps, µs.
    pub spin_us: u32,
}
