//! [`Host`]: sockets, threads, and the order in which they start and end.
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;

use anyhow::Context;
use svadev_accelerator::{Engine, Function, FunctionSettings, FunctionShared};
use svadev_fabric::Bdf;
use svadev_iommu::AuditConfig;
use svadev_memory::{Mappings, MemoryMap};
use svadev_vfio_user::unix::{Options, Stop, serve};
use svadev_vfio_user::{Device, Limits, Sender, Server};

use crate::accelerator::{Accelerator, Ports};
use crate::audit;
use crate::audit_clock::AuditClock;
use crate::bus::Bus;
use crate::config::{AcceleratorConfig, HostConfig};
use crate::counters::{CounterSource, Counters};
use crate::doorbells;
use crate::engine_thread::{self, Clock, Places, Waker};
use crate::events::{Events, HostEvent, PanicWatch};
use crate::iommu_function::IommuDevice;
use crate::link::Link;
use crate::overdue;
use crate::periodic::Periodic;

/// A running host. Dropping it stops it.
#[derive(Debug)]
pub struct Host {
    sockets: Vec<(Bdf, PathBuf)>,
    bus: Arc<Bus>,
    functions: Vec<Arc<FunctionShared>>,
    senders: Vec<Sender>,
    wakers: Vec<Arc<Waker>>,
    stop: Stop,
    socket_threads: Vec<JoinHandle<()>>,
    engine_threads: Vec<JoinHandle<()>>,
    /// They look after the unit.
    periodic_threads: Vec<Periodic>,
}

impl Host {
    /// Makes the sockets and starts every thread. `events` is called from these threads and must not block.
    ///
    /// Errors: a CPU that cannot be used, a socket that cannot be made, or no more descriptors, memory or threads. Then
    /// everything that was made is gone again.
    pub fn start(config: &HostConfig, events: impl Fn(HostEvent) + Send + Sync + 'static) -> anyhow::Result<Self> {
        for function in &config.accelerators {
            engine_thread::check_cpus(&function.name, &function.cpus)?;
        }
        let events = Events::new(events);
        let mappings = Mappings::new();
        let memory = Arc::new(MemoryMap::new(mappings.clone()));
        let mut bus = Bus::new(config.unit.clone(), config.iommu, Arc::clone(&memory));
        let audit_clock = config.audit_limit_ms.map(|limit_ms| {
            let clock = Arc::new(AuditClock::default());
            // A host on which everything takes longer lets a guest's vCPUs wait between a change and its invalidation, too.
            let limit_ns = (limit_ms * 1_000_000).saturating_mul(config.timeout_scale.into());
            bus.start_audit(AuditConfig { limit_ns }, Arc::clone(&clock));
            clock
        });
        let bus = Arc::new(bus);
        let mut host = Self {
            sockets: Vec::new(),
            bus: Arc::clone(&bus),
            functions: Vec::new(),
            senders: Vec::new(),
            wakers: Vec::new(),
            stop: Stop::new().context("no eventfd to stop the host with")?,
            socket_threads: Vec::new(),
            engine_threads: Vec::new(),
            periodic_threads: Vec::new(),
        };
        let clock = Clock::start();

        let mut parts = Vec::new();
        for function in &config.accelerators {
            parts.push(Parts::new(function, config, &bus, &mappings, &events, audit_clock.is_some())?);
        }
        // Connected before the first thread starts: from then on anybody may call the bus.
        bus.connect(parts.iter().map(|p| (Arc::clone(p.accelerator.shared()), Arc::clone(&p.link))));
        let mut placement = config.accelerators.iter().map(Places::new);
        for Parts { name, accelerator, server, engines, wakers, .. } in parts {
            let shared = Arc::clone(accelerator.shared());
            let places = placement.next().expect("one for each function");
            for (engine, waker) in engines.into_iter().zip(wakers) {
                let name = format!("{name}/e{}", engine.index());
                host.wakers.push(Arc::clone(&waker));
                let place = places.of(engine.index());
                let watch = PanicWatch::new(&events, name.clone());
                host.engine_threads.push(engine_thread::spawn(name, engine, waker, clock, watch, place)?);
            }
            let bdf = shared.bdf();
            host.functions.push(shared);
            host.serve(bdf, config, &events, server, accelerator)?;
        }
        if let Some(clock) = audit_clock {
            host.periodic_threads.push(audit::start(Arc::clone(&bus), clock, events.clone())?);
        }
        host.periodic_threads.push(overdue::start(Arc::clone(&bus), config.timeout_scale, &events)?);
        let device = IommuDevice::new(bus, memory, events.clone());
        host.serve(config.iommu, config, &events, Server::new(Limits::default()), device)?;
        Ok(host)
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
        let (stop, events, name) = (self.stop.clone(), events.clone(), format!("socket {bdf}"));
        let watch = PanicWatch::new(&events, name.clone());
        let thread = std::thread::Builder::new().name(name).spawn(move || {
            let _watch = watch;
            if let Err(error) = serve(&listener, &mut server, &mut device, &Options::default(), &stop) {
                events.send(HostEvent::Fatal(format!("function {bdf} can no longer be served: {error}")));
            }
        });
        self.socket_threads.push(thread.context("no thread for a socket")?);
        Ok(())
    }

    /// Every function's socket. The last one is the IOMMU's.
    pub fn sockets(&self) -> &[(Bdf, PathBuf)] {
        &self.sockets
    }

    /// Writes a register of the unit as its socket thread does. For benchmarks that leave out the cost of a trap.
    pub fn write_unit_register(&self, offset: u64, data: &[u8]) {
        self.bus.write_register(offset, data);
    }

    /// What reads the counters later, from any thread.
    pub fn counter_source(&self) -> CounterSource {
        let (functions, senders) = (self.functions.clone(), self.senders.clone());
        CounterSource { bus: Arc::clone(&self.bus), functions, senders }
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
        // Sockets first: what their disconnection posts to an engine is carried out while that engine still runs.
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

/// An accelerator, put together but not yet on its threads.
struct Parts {
    name: String,
    accelerator: Accelerator,
    server: Server,
    link: Arc<Link>,
    engines: Vec<Engine<svadev_endpoint::On<MemoryMap, Bus>>>,
    wakers: Vec<Arc<Waker>>,
}

impl Parts {
    fn new(
        function: &AcceleratorConfig,
        config: &HostConfig,
        bus: &Arc<Bus>,
        mappings: &Mappings,
        events: &Events,
        audit: bool,
    ) -> anyhow::Result<Self> {
        let AcceleratorConfig { name, bdf, queues, engines, vectors, .. } = function;
        let server = Server::new(Limits::default());
        let link = Arc::new(Link::new(server.sender(), u16::from(*vectors)));
        let wakers = (0..*engines).map(|_| Waker::new()).collect::<anyhow::Result<Vec<_>>>()?;
        let ports = Arc::new(Ports::new(Arc::clone(&link), wakers.clone()));
        let memory = Arc::new(MemoryMap::new(mappings.clone()));
        let (pages, file) = doorbells::shared_pages(*queues)?;
        let usual = FunctionSettings::new(*bdf);
        let settings = FunctionSettings {
            queues: *queues,
            engines: *engines,
            vectors: *vectors,
            page_request_timeout_ns: usual.page_request_timeout_ns * u64::from(config.timeout_scale),
            audit,
            ..usual
        };
        let (upstream, function_ports) = (Arc::clone(bus), Arc::clone(&ports));
        let (function, engines) = Function::new(settings, Arc::clone(&memory), upstream, function_ports, pages);
        let accelerator = Accelerator::new(function, ports, memory, file, events.clone(), Arc::clone(bus));
        Ok(Self { name: name.clone(), accelerator, server, link, engines, wakers })
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
            queues: 64,
            engines: 1,
            vectors: 4,
            cpus: Vec::new(),
            spin_us: 50,
        };
        let config = HostConfig {
            iommu: Bdf::new(0, 5, 0).unwrap(),
            unit: UnitConfig::default(),
            audit_limit_ms: None,
            accelerators: vec![accelerator(6), accelerator(7)],
            socket_dir: folder.path().to_owned(),
            timeout_scale: 1,
        };
        let host = Host::start(&config, drop).unwrap();
        assert_eq!(host.sockets().len(), 3);
        assert!(host.sockets().iter().all(|(_, path)| path.exists()));
        let counters = serde_json::to_value(host.snapshot()).unwrap();
        assert_eq!(counters["functions"][1]["bdf"], "00:07.0");
        host.stop();
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
