//! A host of a topology's functions, and its events as a stream.
use std::ops::Deref;
use std::path::PathBuf;

use svadev_host::{AcceleratorConfig, Host, HostConfig, IommuConfig};
pub use svadev_host::{CounterSource, HostEvent as BackendEvent, socket_path};
use tokio::sync::mpsc;

use crate::topology::{AcceleratorFunction, IommuFunction, Topology};

/// What a topology does not say about a host.
#[derive(Clone, Debug)]
pub struct BackendOptions {
    /// Folder for the sockets. It must exist, and only its owner should be able to enter it.
    pub socket_dir: PathBuf,
    /// Multiplies every time limit.
    pub timeout_scale: u32,
}

/// A running host. Dropping it stops it.
#[derive(Debug)]
pub struct Backend {
    host: Host,
    events: mpsc::UnboundedReceiver<BackendEvent>,
}

impl Backend {
    /// Makes the sockets and starts every thread. Errors: those of [`Host::start`].
    pub fn start(topology: &Topology, options: &BackendOptions) -> anyhow::Result<Self> {
        let (sender, events) = mpsc::unbounded_channel();
        // The receiver may be gone already, when the launcher ends.
        let host = Host::start(&host_config(topology, options), move |event| drop(sender.send(event)))?;
        Ok(Self { host, events })
    }

    /// What happened.
    pub fn events(&mut self) -> &mut mpsc::UnboundedReceiver<BackendEvent> {
        &mut self.events
    }

    /// Ends every thread and removes the sockets.
    pub fn stop(self) {
        self.host.stop();
    }
}

impl Deref for Backend {
    type Target = Host;

    fn deref(&self) -> &Host {
        &self.host
    }
}

/// The host of a topology.
fn host_config(topology: &Topology, options: &BackendOptions) -> HostConfig {
    let iommu = |(index, iommu): (usize, &IommuFunction)| {
        let behind = topology.accelerators.iter().filter(|function| function.iommu == index);
        IommuConfig {
            bdf: iommu.bdf,
            unit: iommu.unit.clone(),
            audit_limit_ms: iommu.audit_limit_ms,
            accelerators: behind.map(accelerator_config).collect(),
        }
    };
    HostConfig {
        iommus: topology.iommus.iter().enumerate().map(iommu).collect(),
        socket_dir: options.socket_dir.clone(),
        timeout_scale: options.timeout_scale,
    }
}

fn accelerator_config(function: &AcceleratorFunction) -> AcceleratorConfig {
    let function = function.clone();
    let AcceleratorFunction { name, bdf, iommu: _, ats, pri, pasid_bits, queues, engines, vectors, .. } = function;
    let AcceleratorFunction { device_memory, cpus, spin_us, .. } = function;
    AcceleratorConfig { name, bdf, ats, pri, pasid_bits, queues, engines, vectors, device_memory, cpus, spin_us }
}
