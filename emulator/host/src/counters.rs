//! What a host counted since it started.
use std::sync::Arc;

use serde::Serialize;
use svadev_accelerator::FunctionShared;
use svadev_iommu::AuditCounters;
use svadev_vfio_user::Sender;

use crate::bus::Bus;
use crate::threads::Threads;

/// The counters of all parts of a host.
#[derive(Clone, Debug, Serialize)]
pub struct Counters {
    /// The IOMMUs' counters, in the order of the configuration.
    pub units: Vec<UnitCounters>,
    /// The auditors' counters together, if there is an auditor.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub audit: Option<AuditCounters>,
    /// The accelerator functions' counters, in the order of the configuration.
    pub functions: Vec<FunctionCounters>,
    /// Commands that VMMs sent, over all sockets. An access of a guest that traps is one; so is what a VMM does on
    /// its own.
    pub commands: u64,
}

/// What one IOMMU counted.
#[derive(Clone, Debug, Serialize)]
pub struct UnitCounters {
    /// The address of its function, as `lspci` prints it.
    pub bdf: String,
    /// What it did.
    #[serde(flatten)]
    pub counters: svadev_iommu::Counters,
}

/// What one accelerator function counted.
#[derive(Clone, Debug, Serialize)]
pub struct FunctionCounters {
    /// The function's address, as `lspci` prints it.
    pub bdf: String,
    /// What its engines did.
    #[serde(flatten)]
    pub counters: svadev_accelerator::Counters,
}

/// Reads a host's counters, also from another thread and while the host runs.
#[derive(Clone, Debug)]
pub struct CounterSource {
    pub(crate) buses: Vec<Arc<Bus<Threads>>>,
    pub(crate) functions: Vec<Arc<FunctionShared>>,
    pub(crate) senders: Vec<Sender>,
}

impl CounterSource {
    /// The counters as they are now.
    pub fn read(&self) -> Counters {
        let function = |shared: &Arc<FunctionShared>| FunctionCounters {
            bdf: shared.bdf().to_string(),
            counters: shared.counters(),
        };
        let functions = self.functions.iter().map(function).collect();
        let commands = self.senders.iter().map(|sender| sender.counters().commands).sum();
        let unit =
            |bus: &Arc<Bus<Threads>>| UnitCounters { bdf: bus.iommu_bdf().to_string(), counters: bus.unit_counters() };
        let units = self.buses.iter().map(unit).collect();
        let audit = self.buses.iter().filter_map(|bus| bus.audit_counters()).reduce(|a, b| a + b);
        Counters { units, audit, functions, commands }
    }
}
