//! [`Host`]: sockets, threads, and the order in which they start and end.
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;

use anyhow::Context;
use svadev_accelerator::{FunctionSettings, FunctionShared};
use svadev_fabric::Bdf;
use svadev_iommu::AuditConfig;
use svadev_vfio_user::unix::{Options, Owner, Stop, serve};
use svadev_vfio_user::{Device, Sender, Server};

use crate::audit;
use crate::bus::Bus;
use crate::config::{AcceleratorConfig, HostConfig, IommuConfig};
use crate::counters::{CounterSource, Counters};
use crate::engine_thread::{self, Clock, Places};
use crate::events::{Events, HostEvent, PanicWatch};
use crate::machine::{Machine, MachineConfig, MachineFunction};
use crate::overdue;
use crate::periodic::Periodic;
use crate::stuck::{self, Watched};
use crate::threads::Threads;
use crate::waker::Waker;

/// A running host. Dropping it stops it.
#[derive(Debug)]
pub struct Host {
    sockets: Vec<(Bdf, PathBuf)>,
    buses: Vec<Arc<Bus<Threads>>>,
    functions: Vec<Arc<FunctionShared>>,
    senders: Vec<Sender>,
    wakers: Vec<Arc<Waker>>,
    stop: Stop,
    /// The process that is the machine's VMM: all sockets belong to one at a time.
    owner: Owner,
    socket_threads: Vec<JoinHandle<()>>,
    engine_threads: Vec<JoinHandle<()>>,
    /// Threads that do something for the unit now and then.
    periodic_threads: Vec<Periodic>,
}

impl Host {
    /// Makes the sockets and starts every thread. `events` is called from these threads and must not block.
    ///
    /// Errors: a CPU that cannot be used, a socket that cannot be made, or no more descriptors, memory or threads. Then
    /// everything that was made is gone again.
    pub fn start(config: &HostConfig, events: impl Fn(HostEvent) + Send + Sync + 'static) -> anyhow::Result<Self> {
        for function in config.iommus.iter().flat_map(|iommu| &iommu.accelerators) {
            engine_thread::check_cpus(&function.name, &function.cpus)?;
        }
        let events = Events::new(events);
        let mut host = Self {
            sockets: Vec::new(),
            buses: Vec::new(),
            functions: Vec::new(),
            senders: Vec::new(),
            wakers: Vec::new(),
            stop: Stop::new().context("cannot make the eventfd that stops the host")?,
            owner: Owner::default(),
            socket_threads: Vec::new(),
            engine_threads: Vec::new(),
            periodic_threads: Vec::new(),
        };
        let clock = Clock::start();
        for iommu in &config.iommus {
            host.start_machine(config, iommu, clock, &events)?;
        }
        Ok(host)
    }

    /// Makes an IOMMU and what is behind it, and starts their threads.
    fn start_machine(
        &mut self,
        config: &HostConfig,
        iommu: &IommuConfig,
        clock: Clock,
        events: &Events,
    ) -> anyhow::Result<()> {
        let mut platform = Threads::default();
        let machine = Machine::with_events(&machine_config(config, iommu), &mut platform, (), events)?;
        let bus = Arc::clone(&machine.bus);
        self.buses.push(Arc::clone(&bus));
        let mut watched = Vec::new();
        for (accelerator, function) in iommu.accelerators.iter().zip(machine.functions) {
            let MachineFunction { device, server, engines, wakers, memory, .. } = function;
            let shared = Arc::clone(device.shared());
            watched.push(Watched { bdf: shared.bdf(), face: Arc::clone(shared.mirror()), memory });
            let places = Places::new(accelerator);
            for (engine, waker) in engines.into_iter().zip(wakers) {
                let name = format!("{}/e{}", accelerator.name, engine.index());
                self.wakers.push(Arc::clone(&waker));
                let place = places.of(engine.index());
                let watch = PanicWatch::new(events, name.clone());
                self.engine_threads.push(engine_thread::spawn(name, engine, waker, clock, watch, place)?);
            }
            let bdf = shared.bdf();
            self.functions.push(shared);
            self.serve(bdf, config, events, server, device)?;
        }
        if let Some(clock) = machine.audit_clock {
            self.periodic_threads.push(audit::start(Arc::clone(&bus), clock, events.clone())?);
        }
        self.periodic_threads.push(stuck::start(watched, config.timeout_scale, events)?);
        self.periodic_threads.push(overdue::start(bus, config.timeout_scale, events)?);
        self.serve(iommu.bdf, config, events, machine.iommu_server, machine.iommu)
    }

    /// Makes a function's socket and starts the thread that serves it.
    fn serve<D: Device + Send + 'static>(
        &mut self,
        bdf: Bdf,
        config: &HostConfig,
        events: &Events,
        mut server: Server,
        mut device: D,
    ) -> anyhow::Result<()> {
        let path = socket_path(&config.socket_dir, bdf);
        let listener =
            UnixListener::bind(&path).with_context(|| format!("cannot make the socket {}", path.display()))?;
        self.sockets.push((bdf, path));
        self.senders.push(server.sender());
        let (stop, owner) = (self.stop.clone(), self.owner.clone());
        let (events, name) = (events.clone(), format!("socket {bdf}"));
        let watch = PanicWatch::new(&events, name.clone());
        let thread = std::thread::Builder::new().name(name).spawn(move || {
            let _watch = watch;
            if let Err(error) = serve(&listener, &mut server, &mut device, &Options::default(), &owner, &stop) {
                events.send(HostEvent::Fatal(format!("the server of function {bdf} failed: {error}")));
            }
        });
        self.socket_threads.push(thread.context("cannot start a socket's thread")?);
        Ok(())
    }

    /// Every function's socket. Each IOMMU's comes after those of the functions behind it.
    pub fn sockets(&self) -> &[(Bdf, PathBuf)] {
        &self.sockets
    }

    /// Writes a register of the first unit as its socket thread does. For benchmarks that leave out the cost of a trap.
    pub fn write_unit_register(&self, offset: u64, data: &[u8]) {
        self.buses[0].write_register(offset, data);
    }

    /// A reader of the counters for later, from any thread.
    pub fn counter_source(&self) -> CounterSource {
        let (functions, senders) = (self.functions.clone(), self.senders.clone());
        CounterSource { buses: self.buses.clone(), functions, senders }
    }

    /// The counters as they are now.
    pub fn snapshot(&self) -> Counters {
        self.counter_source().read()
    }

    /// Ends every thread and removes the sockets.
    pub fn stop(self) {}
}

impl Drop for Host {
    fn drop(&mut self) {
        self.periodic_threads.clear();
        // Sockets end first. A disconnection posts work to the engines, which still run then.
        self.stop.trigger();
        for thread in self.socket_threads.drain(..) {
            let _ = thread.join();
        }
        self.wakers.iter().for_each(|waker| waker.stop());
        for thread in self.engine_threads.drain(..) {
            let _ = thread.join();
        }
        for (_, path) in &self.sockets {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Where a function's socket is in a folder. The name is short, since a socket's path has 107 bytes at most.
pub fn socket_path(folder: &Path, bdf: Bdf) -> PathBuf {
    folder.join(format!("{:02x}-{:02x}.{}.sock", bdf.bus(), bdf.device(), bdf.function()))
}

/// The machine of an IOMMU.
fn machine_config(config: &HostConfig, iommu: &IommuConfig) -> MachineConfig {
    let scale = u64::from(config.timeout_scale);
    let function = |accelerator: &AcceleratorConfig| {
        let AcceleratorConfig { bdf, ats, pri, pasid_bits, queues, engines, vectors, device_memory, .. } = *accelerator;
        let usual = FunctionSettings::new(bdf);
        let page_request_timeout_ns = usual.page_request_timeout_ns * scale;
        let audit = iommu.audit_limit_ms.is_some();
        let usual = FunctionSettings { page_request_timeout_ns, audit, device_memory, ..usual };
        FunctionSettings { ats, pri, pasid_bits, queues, engines, vectors, ..usual }
    };
    MachineConfig {
        iommu: iommu.bdf,
        unit: iommu.unit.clone(),
        // On a slow host the guest's vCPUs also wait longer between a change and its invalidation.
        audit: iommu.audit_limit_ms.map(|ms| AuditConfig { limit_ns: (ms * 1_000_000).saturating_mul(scale) }),
        functions: iommu.accelerators.iter().map(function).collect(),
    }
}

#[cfg(test)]
mod tests {
    use svadev_iommu::UnitConfig;

    use super::*;

    #[test]
    fn a_host_makes_its_sockets_and_takes_them_away() {
        let folder = tempfile::tempdir().unwrap();
        let accelerator = |device: u8| AcceleratorConfig {
            name: format!("sva{device}"),
            bdf: Bdf::new(0, device, 0).unwrap(),
            ats: true,
            pri: true,
            pasid_bits: 19,
            queues: 64,
            engines: 1,
            vectors: 4,
            device_memory: 0,
            cpus: Vec::new(),
            spin_us: 50,
        };
        let iommu = |bdf: u8, accelerators| IommuConfig {
            bdf: Bdf::new(0, bdf, 0).unwrap(),
            unit: UnitConfig::default(),
            audit_limit_ms: None,
            accelerators,
        };
        let config = HostConfig {
            iommus: vec![iommu(5, vec![accelerator(6), accelerator(7)]), iommu(8, vec![accelerator(9)])],
            socket_dir: folder.path().to_owned(),
            timeout_scale: 1,
        };
        let host = Host::start(&config, drop).unwrap();
        assert_eq!(host.sockets().len(), 5);
        assert!(host.sockets().iter().all(|(_, path)| path.exists()));
        let counters = serde_json::to_value(host.snapshot()).unwrap();
        assert_eq!(counters["functions"][1]["bdf"], "00:07.0");
        assert_eq!(counters["units"][1]["bdf"], "00:08.0");
        host.stop();
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
