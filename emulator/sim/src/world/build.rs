//! How a world begins: the machine, the driver's probe, the first processes.
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use svadev_accelerator::FunctionSettings;
use svadev_fabric::{Bdf, Pasid};
use svadev_host::{Machine, MachineConfig};
use svadev_iommu::{Caching, UnitConfig};
use svadev_memory::Ram;

use super::{
    FUNCTIONS, IOMMU, KERNEL_DOMAIN, LARGE_FRAMES, MEMORY_BYTES, Options, PATIENCE_STEPS, PROCESSES, RAM_BYTES, RINGS,
    SECOND_STAGE, STEP_NS, World,
};
use crate::coverage::Group;
use crate::faults::Faults;
use crate::frames::{FRAME, FRAME_BYTES, Frames};
use crate::functions::Accelerator;
use crate::log::Log;
use crate::platform::Simulated;
use crate::process::{BASE, DATA, PAGES, Process};
use crate::queues::{KERNEL_QUEUES, QUEUES};
use crate::rng::Rng;
use crate::tables::{Binding, DeviceTables, PageTables, Stages, second_stage};
use crate::unit_driver::UnitDriver;
use crate::unit_function::UnitFunction;
use crate::watch::Watcher;

impl World {
    pub(super) fn new(seed: u64, options: Options) -> Self {
        let mut rng = Rng::new(seed);
        let log = Arc::new(Log::new(options.sink));
        let ram =
            Arc::new(Ram::new(usize::try_from(MEMORY_BYTES).expect("a small world")).expect("memory for the world"));
        let mut frames = Frames::new(Arc::clone(&ram), Arc::clone(&log), FRAME, RAM_BYTES);
        for (size_log2, first) in LARGE_FRAMES {
            (0..=PROCESSES as u64).for_each(|n| frames.free_large(size_log2, first + (n << size_log2)));
        }
        let faults = Faults::draw(&mut rng);
        let levels = rng.pick(&[4, 5]);
        let drawn = rng.pick(&[Caching::None, Caching::Strict, Caching::Adversarial]);
        let caching = options.caching.unwrap_or(drawn);
        let iotlb_entries = rng.pick(&[64, 1024]);
        let by_seed = unit_options(seed, levels);
        let config = UnitConfig { caching, iotlb_entries, pasid_cache_entries: 64, ..by_seed };
        log.count(Group::World, if config.nested { "unit nested" } else { "unit not nested" });
        log.count(Group::World, if levels == 4 { "levels 4" } else { "levels 5" });
        log.count(Group::World, caching_name(caching));
        log.event(format_args!("seed {seed}: levels {levels} {:?} {faults}", config.caching));
        log.event(format_args!("{config:?}"));
        let mut settings = Vec::new();
        let mut allocations = Vec::new();
        for bdf in FUNCTIONS {
            let (function, allocation) = function_settings(&mut rng, bdf, &faults, &log);
            settings.push(function);
            allocations.push(allocation);
        }
        let mut platform = Simulated::new(Arc::clone(&ram), Arc::clone(&log), options.mutant);
        let watch = Watcher::new(Arc::clone(&log), options.mutant);
        let machine_config = MachineConfig { iommu: IOMMU, unit: config, audit: None, functions: settings };
        let machine = make_machine(&machine_config, &mut platform, watch, &log);
        let bus = Arc::clone(&machine.bus);
        let mut device_tables = DeviceTables::new(Arc::clone(&ram), &mut frames);
        for bdf in FUNCTIONS {
            device_tables.attach(&mut frames, bdf);
        }
        // The smallest page request queue has room for 127 requests, of which a slow kernel leaves enough for a group.
        let order = if faults.overflow == 0 { (3, 0) } else { (0, rng.within(86, 94)) };
        let (b, r, l) = (Arc::clone(&bus), Arc::clone(&ram), Arc::clone(&log));
        let maps = Arc::clone(platform.maps(IOMMU));
        let unit = UnitFunction::new(b, machine.iommu, machine.iommu_server, maps, MEMORY_BYTES, Arc::clone(&log));
        let unit = UnitDriver::new(unit, r, l, &mut frames, device_tables.root(), order, options.mutant);
        // Messages cost time: two worlds of three do without.
        let wired = rng.chance(333);
        log.count(Group::World, if wired { "transport vfio-user" } else { "transport direct" });
        let functions: Vec<_> = machine
            .functions
            .into_iter()
            .zip(allocations)
            .map(|(function, allocation)| {
                let maps = platform.maps(function.device.shared().bdf());
                let rng = Rng::new(rng.next_u64());
                Accelerator::new(function, allocation, (maps, MEMORY_BYTES), wired, rng, &log, options.mutant)
            })
            .collect();
        if faults.lost_invalidations != 0 {
            bus.tap().lose_invalidations(Some((Rng::new(rng.next_u64()), faults.lost_invalidations)));
        }
        let pasids = (1..=4).rev().map(|n| (Pasid::from_low_bits(n), 2 + u16::try_from(n).expect("few"))).collect();
        let mut world = Self {
            rng,
            log,
            bus,
            ram,
            frames,
            unit,
            device_tables,
            machine_config,
            memory_tokens: vec![BTreeSet::new(); functions.len()],
            functions,
            processes: Vec::new(),
            flights: BTreeMap::new(),
            tasks: Vec::new(),
            faults,
            mutant: options.mutant,
            step: 0,
            injecting: true,
            pasids,
            next_cookie: 1,
            submitted: 0,
            completed: 0,
            dropped: 0,
            next_token: 1,
            next_process: 1,
            may_fault: BTreeSet::new(),
            kernel_frames: Vec::new(),
            kernel_rings: Vec::new(),
            levels,
            process_second: None,
            page_request_pending: false,
            last_overflow: 0,
            nap_until: 0,
            napped: false,
        };
        world.set_up();
        world
    }

    /// The driver probes its functions, and processes start.
    fn set_up(&mut self) {
        let to = self.kernel_binding();
        for (f, bdf) in FUNCTIONS.into_iter().enumerate() {
            let none = Pasid::from_low_bits(0);
            self.device_tables.set_pasid(&mut self.frames, bdf, none, to);
            self.functions[f].bring_up();
            for q in 0..KERNEL_QUEUES {
                self.enable_kernel_queue(f, q);
            }
        }
        let nested = self.rng.chance(250) && self.machine_config.unit.nested;
        self.process_second = nested.then(|| {
            // A hypervisor's stage below the kernel's: one for all processes, who have domains of their own.
            let size_log2 = self.rng.pick(&[21, 30]);
            second_stage(&self.ram, &mut self.frames, SECOND_STAGE, MEMORY_BYTES, size_log2)
        });
        let name = if self.process_second.is_some() { "processes nested" } else { "processes first-stage" };
        self.log.event(format_args!("{name}"));
        self.log.count(Group::World, name);
        for p in 0..PROCESSES {
            let process = self.make_process();
            self.processes.push(process);
            self.bind(p);
        }
    }

    /// How the driver's own DMA is translated, as the seed says; the memory of its rings with it.
    fn kernel_binding(&mut self) -> Binding {
        let count = 2 * FUNCTIONS.len() * QUEUES;
        self.kernel_frames = (0..count).map(|_| self.frames.allocate()).collect();
        let size_log2 = self.rng.pick(&[12, 21]);
        let choice = match self.rng.below(4) {
            2 if !self.machine_config.unit.nested => 0,
            choice => choice,
        };
        let (name, stages) = match choice {
            0 => {
                let root = self.kernel_tables(0);
                ("kernel DMA first-stage", Stages::First { root, levels: self.levels })
            }
            1 => {
                self.kernel_rings = (0..count).map(|n| SECOND_STAGE + self.kernel_frames[n]).collect();
                let root = second_stage(&self.ram, &mut self.frames, SECOND_STAGE, RAM_BYTES, size_log2);
                ("kernel DMA second-stage", Stages::Second(root))
            }
            2 => {
                let root = self.kernel_tables(SECOND_STAGE);
                let second = second_stage(&self.ram, &mut self.frames, SECOND_STAGE, RAM_BYTES, size_log2);
                ("kernel DMA nested", Stages::Nested { root, levels: self.levels, second })
            }
            _ => {
                self.kernel_rings = self.kernel_frames.clone();
                ("kernel DMA pass-through", Stages::PassThrough)
            }
        };
        self.log.event(format_args!("{name}"));
        self.log.count(Group::World, name);
        Binding { stages, domain_id: KERNEL_DOMAIN }
    }

    /// First-stage tables of the driver's rings, whose addresses have `offset` added; the root.
    fn kernel_tables(&mut self, offset: u64) -> u64 {
        let mut own = PageTables::nested(Arc::clone(&self.ram), &mut self.frames, self.levels, offset);
        self.kernel_rings = (0..self.kernel_frames.len()).map(|n| RINGS + n as u64 * FRAME).collect();
        for (&address, &frame) in self.kernel_rings.iter().zip(&self.kernel_frames) {
            own.map(&mut self.frames, address, frame, 12, true);
        }
        own.root()
    }

    pub(crate) fn enable_kernel_queue(&mut self, f: usize, q: usize) {
        let n = (f * QUEUES + q) * 2;
        self.enable_queue(f, q, None, (self.kernel_rings[n], self.kernel_rings[n + 1]));
    }

    /// Where the driver's own memory is.
    pub(crate) fn kernel_gpa(&self, address: u64) -> u64 {
        let page = self.kernel_rings.iter().position(|&ring| ring == address & !(FRAME - 1));
        self.kernel_frames[page.expect("the driver uses its rings only")] + address % FRAME
    }

    pub(crate) fn make_process(&mut self) -> Process {
        let ids = self.pasids.pop().expect("there are more PASIDs than processes");
        let offset = self.process_second.map_or(0, |_| SECOND_STAGE);
        let tables = PageTables::nested(Arc::clone(&self.ram), &mut self.frames, self.levels, offset);
        let mut oracle = vec![0; PAGES * FRAME_BYTES];
        self.rng.fill(&mut oracle[DATA * FRAME_BYTES..]);
        let id = self.next_process;
        self.next_process += 1;
        let world = (Arc::clone(&self.ram), Arc::clone(&self.log));
        Process::new(id, ids, (tables, FUNCTIONS.len()), oracle, world)
    }

    /// Binds a new process to every function, and gives it a queue where one is free.
    pub(crate) fn bind(&mut self, p: usize) {
        let process = &self.processes[p];
        let tables = process.tables.as_ref().expect("a new process has tables");
        let to = tables.binding(process.domain_id, self.process_second);
        self.log.event(format_args!("bind process {} to PASID {}", process.id, process.pasid));
        for (f, bdf) in FUNCTIONS.into_iter().enumerate() {
            let process = &mut self.processes[p];
            self.bus.tap().start(bdf, process.pasid);
            self.device_tables.set_pasid(&mut self.frames, bdf, process.pasid, to);
            process.bound[f] = true;
            let function = &mut self.functions[f];
            let free = (KERNEL_QUEUES..QUEUES).find(|&q| function.queues[q].user.is_none() && !function.queues[q].on);
            if let Some(q) = free {
                let rings = (BASE + 2 * f as u64 * FRAME, BASE + (2 * f as u64 + 1) * FRAME);
                function.queues[q].user = Some(process.pasid);
                function.queues[q].rings = rings;
                if !function.resetting {
                    let pasid = self.processes[p].pasid;
                    self.enable_queue(f, q, Some(pasid), rings);
                }
            }
        }
    }
}

/// What the unit can do beyond what its driver needs, by a sequence of its own. The driver uses five levels if it has
/// them, PASIDs below 8, and memory below 2^33.
fn unit_options(seed: u64, levels: u8) -> UnitConfig {
    let mut rng = Rng::new(!seed);
    UnitConfig {
        host_address_width: u8::try_from(rng.within(36, 52)).expect("few bits"),
        max_pasid_bits: u8::try_from(rng.within(3, 20)).expect("few bits"),
        levels5: levels == 5 || rng.chance(500),
        nested: !rng.chance(125),
        supervisor_requests: rng.chance(500),
        execute_requests: rng.chance(500),
        coherent: rng.chance(500),
        ..UnitConfig::default()
    }
}

/// A machine that says in the log what its owner is told.
pub(super) fn make_machine(
    config: &MachineConfig,
    platform: &mut Simulated,
    watch: Watcher,
    log: &Arc<Log>,
) -> Machine<Simulated> {
    let events = Arc::clone(log);
    let machine = Machine::new(config, platform, watch, move |event| events.event(format_args!("host: {event:?}")));
    machine.expect("memory for the machine")
}

fn function_settings(rng: &mut Rng, bdf: Bdf, faults: &Faults, log: &Log) -> (FunctionSettings, u32) {
    let mut settings = FunctionSettings::new(bdf);
    (settings.queues, settings.vectors) = (4, 4);
    settings.engines = rng.pick(&[1, 2]);
    settings.jobs_per_queue = rng.pick(&[1, 4, 64]);
    settings.list_jobs_per_queue = rng.pick(&[1, 4]);
    settings.tlb_entries = rng.pick(&[4, 64, 1024]);
    // Only the greedy fill a page request queue.
    let greedy = faults.overflow > 0;
    settings.group_pages = if greedy { rng.pick(&[8, 32]) } else { rng.pick(&[1, 3, 8, 32]) };
    settings.page_request_timeout_ns = PATIENCE_STEPS * STEP_NS;
    let allocation = if greedy { 512 } else { rng.pick(&[1, 8, 64, 512]) };
    log.event(format_args!("{settings:?} allocation {allocation}"));
    (settings, allocation)
}

/// As it is counted.
fn caching_name(caching: Caching) -> &'static str {
    match caching {
        Caching::None => "caching none",
        Caching::Strict => "caching strict",
        Caching::Adversarial => "caching adversarial",
        _ => unreachable!("there are three"),
    }
}
