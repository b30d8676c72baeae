//! [`Machine`]: unit, functions and engines, wired up and without a thread. Its owner drives all of them.
//!
//! A [`Host`](crate::Host) has one for each IOMMU, and gives each part a thread. A simulated world calls them in turn,
//! in an order of its own.
use std::os::fd::OwnedFd;
use std::sync::Arc;

use svadev_accelerator::{Function, FunctionSettings};
use svadev_fabric::Bdf;
use svadev_iommu::{AuditConfig, UnitConfig};
use svadev_memory::DeviceMemory;
use svadev_vfio_user::{Limits, Server};

use crate::accelerator::{Accelerator, Files, Ports};
use crate::audit_clock::AuditClock;
use crate::bus::{Bus, HostEngine};
use crate::device_memory;
use crate::events::{Events, HostEvent};
use crate::iommu_function::IommuDevice;
use crate::link::Link;
use crate::platform::{Doorbells, Platform};

/// What a machine is made of.
#[derive(Clone, Debug)]
pub struct MachineConfig {
    /// The function whose BAR holds the unit's registers.
    pub iommu: Bdf,
    /// How the unit behaves.
    pub unit: UnitConfig,
    /// With a value, the unit is audited.
    pub audit: Option<AuditConfig>,
    /// The accelerator functions behind the unit.
    pub functions: Vec<FunctionSettings>,
}

/// Unit, functions and engines, connected to each other.
pub struct Machine<P: Platform> {
    /// The way between the functions and the unit.
    pub bus: Arc<Bus<P>>,
    /// The unit's own function, to be served by `iommu_server`.
    pub iommu: IommuDevice<P>,
    /// The vfio-user server of the unit's function.
    pub iommu_server: Server,
    /// The accelerator functions, in the order of the configuration.
    pub functions: Vec<MachineFunction<P>>,
    /// The auditor's clock, if there is an auditor.
    pub(crate) audit_clock: Option<Arc<AuditClock>>,
}

/// One accelerator function of a machine.
pub struct MachineFunction<P: Platform> {
    /// The function, to be served by `server`.
    pub device: Accelerator<P>,
    /// Its vfio-user server.
    pub server: Server,
    /// Its engines, in order.
    pub engines: Vec<HostEngine<P>>,
    /// What wakes each engine.
    pub wakers: Vec<Arc<P::Waker>>,
    /// Its view of guest memory.
    pub(crate) memory: Arc<P::Memory>,
    link: Arc<Link>,
}

impl<P: Platform> Machine<P> {
    /// Makes every part and connects them. `events` is called by whoever drives a part, and must not block.
    ///
    /// Errors: those of the platform.
    pub fn new(
        config: &MachineConfig,
        platform: &mut P,
        tap: P::Tap,
        events: impl Fn(HostEvent) + Send + Sync + 'static,
    ) -> anyhow::Result<Self> {
        Self::with_events(config, platform, tap, &Events::new(events))
    }

    pub(crate) fn with_events(
        config: &MachineConfig,
        platform: &mut P,
        tap: P::Tap,
        events: &Events,
    ) -> anyhow::Result<Self> {
        let (memory, maps) = platform.memory(config.iommu);
        let mut bus = Bus::new(config.unit.clone(), config.iommu, memory, tap);
        let audit_clock = config.audit.map(|audit| {
            let clock = Arc::new(AuditClock::default());
            bus.start_audit(audit, Arc::clone(&clock));
            clock
        });
        let bus = Arc::new(bus);
        let mut settings = config.functions.clone();
        for (function, number) in settings.iter_mut().zip(0..) {
            function.number = number;
        }
        let (device_memory, files) = device_memory::make(&settings)?;
        let functions = settings.into_iter().zip(files).map(|(settings, file)| {
            MachineFunction::new(settings, platform, &bus, events, Arc::clone(&device_memory), file)
        });
        let functions = functions.collect::<anyhow::Result<Vec<_>>>()?;
        // Connected before anything is driven: from then on anybody may call the bus.
        bus.connect(functions.iter().map(|f| (Arc::clone(f.device.shared()), Arc::clone(&f.link))));
        let iommu = IommuDevice::new(Arc::clone(&bus), maps, events.clone());
        Ok(Self { bus, iommu, iommu_server: Server::new(Limits::default()), functions, audit_clock })
    }
}

impl<P: Platform> MachineFunction<P> {
    fn new(
        settings: FunctionSettings,
        platform: &mut P,
        bus: &Arc<Bus<P>>,
        events: &Events,
        device_memory: Arc<DeviceMemory>,
        memory_file: Option<OwnedFd>,
    ) -> anyhow::Result<Self> {
        let server = Server::new(Limits::default());
        let link = Arc::new(Link::new(server.sender(), settings.vectors.into()));
        let wakers = (0..settings.engines.into()).map(|engine| platform.waker(settings.bdf, engine));
        let wakers = wakers.collect::<anyhow::Result<Vec<_>>>()?;
        let ports = Arc::new(Ports::<P>::new(Arc::clone(&link), wakers.clone()));
        let (memory, maps) = platform.memory(settings.bdf);
        let Doorbells { pages, file } = platform.doorbells(settings.queues)?;
        let (upstream, function_ports) = (Arc::clone(bus), Arc::clone(&ports));
        let (function, engines) = Function::new(settings, Arc::clone(&memory), upstream, function_ports, pages);
        function.shared().set_device_memory(device_memory);
        let files = Files { doorbells: file, device_memory: memory_file };
        let device = Accelerator::new(function, ports, maps, files, events.clone(), Arc::clone(bus));
        Ok(Self { device, server, engines, wakers, memory, link })
    }
}
