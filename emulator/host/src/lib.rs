//! The backend: every function's socket, every engine's thread, the unit between them, and who calls whom.
//!
//! ```text
//!   socket thread (IOMMU function) ──▶ Bus: Mutex<Unit> ──▶ mailboxes of functions, message interrupts
//!   socket thread (accelerator)    ──▶ Function ──▶ mailboxes of its engines
//!   engine thread                  ──▶ guest memory; Bus on a device-TLB miss; MSI-X eventfds
//! ```
//!
//! `docs/locking.md` has the locks and their order, `docs/lifetimes.md` what is used for how long.
mod accelerator;
mod audit;
mod bus;
mod dma_space;
mod doorbells;
mod engine_thread;
mod interrupts;
mod iommu_function;
mod link;
mod overdue;
mod periodic;
mod spin;

use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;

use anyhow::Context;
use serde::Serialize;
use svadev_accelerator::{Engine, Function, FunctionSettings, FunctionShared};
use svadev_fabric::Bdf;
use svadev_iommu::{AuditConfig, AuditCounters, Finding, UnitConfig};
use svadev_memory::{Mappings, MemoryMap};
use svadev_vfio_user::unix::{Options, Stop, serve};
use svadev_vfio_user::{Device, Limits, Sender, Server};
use tokio::sync::mpsc;

use self::accelerator::{Accelerator, Ports};
use self::audit::AuditClock;
use self::bus::Bus;
use self::engine_thread::{Clock, Places, Waker};
use self::iommu_function::IommuDevice;
use self::link::Link;
use self::periodic::Periodic;
use crate::topology::{AcceleratorFunction, Topology};

/// How to run a backend.
#[derive(Clone, Debug)]
pub(crate) struct BackendOptions {
    /// Folder for the sockets; must exist, and only its owner should be able to enter it.
    pub socket_dir: PathBuf,
    /// Stretches the built-in time limits, of page requests above all: on a busy host the guest's kernel takes long over them.
    pub timeout_scale: u32,
}

/// What happens in a backend that the launcher wants to know.
#[derive(Clone, Debug)]
pub(crate) enum BackendEvent {
    /// A VMM attached to a function, and gave it memory.
    Connected(Bdf),
    /// It is gone. The function is as new, and another one may come.
    Disconnected(Bdf),
    /// Firmware or kernel placed the unit's registers here, and they are decoded.
    UnitPlaced {
        /// Guest-physical address.
        address: u64,
    },
    /// The auditor found something.
    Audit(Box<Finding>),
    /// A socket can no longer be served. The backend should be stopped.
    Fatal(String),
}

/// Where events go. Nobody listening is no error: the launcher may be on its way out.
#[derive(Clone, Debug)]
struct Events(mpsc::UnboundedSender<BackendEvent>);

impl Events {
    fn send(&self, event: BackendEvent) {
        tracing::debug!(?event, "backend");
        let _ = self.0.send(event);
    }
}

/// Tells the launcher when a thread of the backend panics: the guest would wait for it for ever.
struct PanicWatch {
    events: Events,
    thread: String,
}

impl Drop for PanicWatch {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.events
                .send(BackendEvent::Fatal(format!("the thread {:?} panicked; its message is above", self.thread)));
        }
    }
}

/// A running backend. Dropping it stops it.
#[derive(Debug)]
pub(crate) struct Backend {
    sockets: Vec<(Bdf, PathBuf)>,
    events: mpsc::UnboundedReceiver<BackendEvent>,
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

/// What the backend counted since it started.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Counters {
    /// The VT-d unit.
    pub unit: svadev_iommu::Counters,
    /// The auditor, if there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub audit: Option<AuditCounters>,
    /// The accelerator functions, in the topology's order.
    pub functions: Vec<FunctionCounters>,
    /// Commands of the VMM, over all sockets. A guest's access that traps is one; so is what the VMM does on its own.
    pub commands: u64,
}

/// What one accelerator function counted.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct FunctionCounters {
    /// Where it sits.
    pub bdf: String,
    /// What its engines did.
    #[serde(flatten)]
    pub counters: svadev_accelerator::Counters,
}

/// Reads a backend's counters, also while somebody else runs it.
#[derive(Clone, Debug)]
pub(crate) struct CounterSource {
    bus: Arc<Bus>,
    functions: Vec<Arc<FunctionShared>>,
    senders: Vec<Sender>,
}

impl CounterSource {
    /// The counters as they are now.
    pub(crate) fn read(&self) -> Counters {
        let function = |shared: &Arc<FunctionShared>| FunctionCounters {
            bdf: shared.bdf().to_string(),
            counters: shared.counters(),
        };
        let functions = self.functions.iter().map(function).collect();
        let commands = self.senders.iter().map(|sender| sender.counters().commands).sum();
        Counters { unit: self.bus.unit_counters(), audit: self.bus.audit_counters(), functions, commands }
    }
}

impl Backend {
    /// Makes the sockets and starts every thread. What was made is gone again on error.
    pub(crate) fn start(topology: &Topology, options: &BackendOptions) -> anyhow::Result<Self> {
        for function in &topology.accelerators {
            engine_thread::check_cpus(&function.name, &function.cpus)?;
        }
        let (sender, events) = mpsc::unbounded_channel();
        let mappings = Mappings::new();
        let memory = Arc::new(MemoryMap::new(mappings.clone()));
        let unit = UnitConfig { caching: topology.iommu.caching.into(), ..UnitConfig::default() };
        let mut bus = Bus::new(unit, topology.iommu.bdf, Arc::clone(&memory));
        let audit_clock = topology.iommu.audit_limit_ms.map(|limit_ms| {
            let clock = Arc::new(AuditClock::default());
            // A host on which everything takes longer lets a guest's vCPUs wait between a change and its invalidation, too.
            let limit_ns = (limit_ms * 1_000_000).saturating_mul(options.timeout_scale.into());
            bus.start_audit(AuditConfig { limit_ns }, Arc::clone(&clock));
            clock
        });
        let bus = Arc::new(bus);
        let mut backend = Self {
            sockets: Vec::new(),
            events,
            bus: Arc::clone(&bus),
            functions: Vec::new(),
            senders: Vec::new(),
            wakers: Vec::new(),
            stop: Stop::new().context("no eventfd to stop the backend with")?,
            socket_threads: Vec::new(),
            engine_threads: Vec::new(),
            periodic_threads: Vec::new(),
        };
        let events = Events(sender);
        let clock = Clock::start();

        let mut parts = Vec::new();
        for function in &topology.accelerators {
            parts.push(Parts::new(function, options, &bus, &mappings, &events, audit_clock.is_some())?);
        }
        // Connected before the first thread starts: from then on anybody may call the bus.
        bus.connect(parts.iter().map(|p| (Arc::clone(p.accelerator.shared()), Arc::clone(&p.link))));
        let mut placement = topology.accelerators.iter().map(Places::new);
        for Parts { name, accelerator, server, engines, wakers, .. } in parts {
            let shared = Arc::clone(accelerator.shared());
            let places = placement.next().expect("one for each function");
            for (engine, waker) in engines.into_iter().zip(wakers) {
                let name = format!("{name}/e{}", engine.index());
                backend.wakers.push(Arc::clone(&waker));
                let place = places.of(engine.index());
                let watch = PanicWatch { events: events.clone(), thread: name.clone() };
                backend.engine_threads.push(engine_thread::spawn(name, engine, waker, clock, watch, place)?);
            }
            let bdf = shared.bdf();
            backend.functions.push(shared);
            backend.serve(bdf, options, &events, server, accelerator)?;
        }
        if let Some(clock) = audit_clock {
            backend.periodic_threads.push(audit::start(Arc::clone(&bus), clock, events.clone())?);
        }
        backend.periodic_threads.push(overdue::start(Arc::clone(&bus), options.timeout_scale, &events)?);
        let device = IommuDevice::new(bus, memory, events.clone());
        backend.serve(topology.iommu.bdf, options, &events, Server::new(Limits::default()), device)?;
        Ok(backend)
    }

    /// Makes a function's socket and starts the thread that serves it.
    fn serve<D: Device + Send + 'static>(
        &mut self,
        bdf: Bdf,
        options: &BackendOptions,
        events: &Events,
        mut server: Server,
        mut device: D,
    ) -> anyhow::Result<()> {
        let path = socket_path(&options.socket_dir, bdf);
        let listener =
            UnixListener::bind(&path).with_context(|| format!("cannot make the socket {}", path.display()))?;
        self.sockets.push((bdf, path));
        self.senders.push(server.sender());
        let (stop, events, name) = (self.stop.clone(), events.clone(), format!("socket {bdf}"));
        let watch = PanicWatch { events: events.clone(), thread: name.clone() };
        let thread = std::thread::Builder::new().name(name).spawn(move || {
            let _watch = watch;
            if let Err(error) = serve(&listener, &mut server, &mut device, &Options::default(), &stop) {
                events.send(BackendEvent::Fatal(format!("function {bdf} can no longer be served: {error}")));
            }
        });
        self.socket_threads.push(thread.context("no thread for a socket")?);
        Ok(())
    }

    /// The functions' sockets.
    pub(crate) fn sockets(&self) -> &[(Bdf, PathBuf)] {
        &self.sockets
    }

    /// What happened.
    pub(crate) fn events(&mut self) -> &mut mpsc::UnboundedReceiver<BackendEvent> {
        &mut self.events
    }

    /// A write to the unit's registers as its socket thread makes it, for benchmarks of what the guest's traps add nothing to.
    pub(crate) fn write_unit_register(&self, offset: u64, data: &[u8]) {
        self.bus.write_register(offset, data);
    }

    /// What reads the counters later, from wherever.
    pub(crate) fn counter_source(&self) -> CounterSource {
        let (functions, senders) = (self.functions.clone(), self.senders.clone());
        CounterSource { bus: Arc::clone(&self.bus), functions, senders }
    }

    /// What was counted so far.
    pub(crate) fn snapshot(&self) -> Counters {
        self.counter_source().read()
    }

    /// Ends every thread and removes the sockets.
    pub(crate) fn stop(self) {}
}

impl Drop for Backend {
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

/// Where a function's socket is in a folder. Short: a socket's path has 107 bytes at most.
pub(crate) fn socket_path(folder: &Path, bdf: Bdf) -> PathBuf {
    folder.join(format!("{:02x}-{:02x}.{}.sock", bdf.bus(), bdf.device(), bdf.function()))
}

/// An accelerator, put together but not yet on its threads.
struct Parts {
    name: String,
    accelerator: Accelerator,
    server: Server,
    link: Arc<Link>,
    engines: Vec<Engine<MemoryMap, Bus>>,
    wakers: Vec<Arc<Waker>>,
}

impl Parts {
    fn new(
        topology: &AcceleratorFunction,
        options: &BackendOptions,
        bus: &Arc<Bus>,
        mappings: &Mappings,
        events: &Events,
        audit: bool,
    ) -> anyhow::Result<Self> {
        let AcceleratorFunction { name, bdf, queues, engines, vectors, .. } = topology;
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
            page_request_timeout_ns: usual.page_request_timeout_ns * u64::from(options.timeout_scale),
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
    use super::*;

    #[test]
    fn a_thread_that_panics_is_heard_of_and_one_that_ends_is_not() {
        let (sender, mut events) = mpsc::unbounded_channel();
        let watch = |thread: &str| PanicWatch { events: Events(sender.clone()), thread: thread.into() };
        let (good, bad) = (watch("good"), watch("bad"));
        std::thread::spawn(move || drop(good)).join().unwrap();
        let panicked = std::thread::spawn(move || {
            let _watch = bad;
            panic!("on purpose");
        });
        assert!(panicked.join().is_err());
        let Some(BackendEvent::Fatal(text)) = events.try_recv().ok() else { panic!("no word of the panic") };
        assert!(text.contains("bad"), "{text}");
        assert!(events.try_recv().is_err());
    }

    #[test]
    fn a_backend_makes_its_sockets_and_takes_them_away() {
        let folder = tempfile::tempdir().unwrap();
        let topology = Topology::parse("default.toml", crate::topology::DEFAULT).unwrap();
        let options = BackendOptions { socket_dir: folder.path().to_owned(), timeout_scale: 1 };
        let backend = Backend::start(&topology, &options).unwrap();
        assert_eq!(backend.sockets().len(), 3);
        assert!(backend.sockets().iter().all(|(_, path)| path.exists()));
        let counters = serde_json::to_value(backend.snapshot()).unwrap();
        assert_eq!(counters["functions"][1]["bdf"], "00:07.0");
        backend.stop();
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
