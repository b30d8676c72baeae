//! The world of mirrors: a driver that keeps page tables for one accelerator, processes that change their memory while
//! it works on it, and die, and no IOMMU. The accelerator is the running backend's; the driver's words to it are those
//! of `svadev_mirror::testing`.
//!
//! A page's frame changes like this: entries cleared, posted, acknowledged; contents moved; the frame poisoned and
//! given to whoever comes next. So an access that comes after the acknowledgement writes over poison, or reads it.
use std::collections::BTreeMap;
use std::sync::Arc;

use svadev_accelerator::FunctionSettings;
use svadev_fabric::{Bdf, Pasid};
use svadev_host::{Machine, MachineConfig};
use svadev_iommu::UnitConfig;
use svadev_memory::{GuestAddress, GuestMemory, Ram};
use svadev_mirror::testing::{Driver, Wait};
use svadev_spec::device::{Code, Completion, Descriptor, DescriptorPasid, opcode};
use svadev_spec::mirror::{ASID_BIT, Event, Status, TableEntry, access, regs, response};
use zerocopy::IntoBytes;

use crate::functions::Accelerator;
use crate::log::Log;
use crate::platform::Simulated;
use crate::queues::{RING, VECTORS};
use crate::rng::Rng;
use crate::watch::Watcher;

const FUNCTION: Bdf = Bdf(0x0010);
const IOMMU: Bdf = Bdf(0x0008);
const MEMORY: u64 = 8 << 20;
const RINGS: u64 = 0x8_0000;
const BLOCK: u64 = 0x10_0000;
const TABLES: u64 = 0x20_0000;
const FRAMES: u64 = 0x60_0000;
const PAGE: u64 = 0x1000;
const PAGE_BYTES: usize = 0x1000;
/// Every process has its pages at the same addresses.
const BASE: u64 = 0x7f00_0000_0000;
const PAGES: usize = 12;
/// A page that does not exist.
const HOLE: usize = 7;
const PROCESSES: usize = 3;
/// Frames beyond those of the pages.
const SPARE: usize = 6;
const STEP_NS: u64 = 1000;
const STEPS: u64 = 3000;
/// Most steps until everything has ended.
const BOUND: u64 = 200_000;
/// The mirror's vector: queue 0 has vector 0.
const VECTOR: usize = 3;

/// What happened in a world.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Happened {
    /// Descriptors that were done.
    pub copies: u64,
    /// Events that were answered, AGAINs among them.
    pub events: u64,
    /// AGAINs.
    pub again: u64,
    /// Changes of a page that an engine had to acknowledge.
    pub waits: u64,
    /// Changes that nobody had to.
    pub free: u64,
    /// Processes that died.
    pub deaths: u64,
    /// Times that the mirror was turned off and on.
    pub restarts: u64,
    /// Engines that were kicked.
    pub kicks: u64,
}

impl std::ops::AddAssign for Happened {
    fn add_assign(&mut self, other: Self) {
        let Self { copies, events, again, waits, free, deaths, restarts, kicks } = other;
        self.copies += copies;
        self.events += events;
        self.again += again;
        self.waits += waits;
        self.free += free;
        self.deaths += deaths;
        self.restarts += restarts;
        self.kicks += kicks;
    }
}

struct Page {
    frame: u64,
    /// Its mapping is being changed.
    busy: bool,
    /// Counts its changes: who began to serve a fault before one does not finish after it.
    seq: u64,
    readers: u32,
    writers: u32,
}

struct Process {
    asid: u32,
    generation: u16,
    alive: bool,
    pages: Vec<Page>,
    oracle: Vec<[u8; PAGE_BYTES]>,
    flights: u32,
}

struct Flight {
    process: usize,
    generation: u16,
    src: (usize, usize),
    dst: (usize, usize),
    len: usize,
    /// It may end otherwise than with success.
    excused: bool,
}

enum Task {
    /// A fault is being served, since a step, for a page with this sequence.
    Serve { engine: usize, event: Event, until: u64, seq: u64 },
    /// A page moves when every engine has acknowledged.
    Move { process: usize, page: usize, wait: Wait },
    /// A process dies: abort, then destroy.
    Die { process: usize, wait: Option<Wait> },
    /// The mirror is off, and comes again.
    Restart,
}

struct World {
    rng: Rng,
    log: Arc<Log>,
    ram: Arc<Ram>,
    function: Accelerator,
    driver: Driver<Ram>,
    processes: Vec<Process>,
    free: Vec<u64>,
    flights: BTreeMap<u64, Flight>,
    tasks: Vec<Task>,
    cookie: u64,
    step: u64,
    /// The mirror is off, or about to be.
    off: bool,
    /// The mirror's handler runs.
    handling: bool,
    happened: Happened,
}

/// Runs the world of mirrors of a seed. An error says what went wrong.
pub fn run_mirrors(seed: u64) -> Result<Happened, String> {
    let mut world = World::new(seed);
    world.live().map_err(|what| format!("seed {seed}, step {}: {what}", world.step))?;
    match world.log.failure() {
        Some(failure) => Err(format!("seed {seed}: {failure:?}")),
        None => Ok(world.happened),
    }
}

fn poison(frame: u64) -> Vec<u8> {
    (0xdead_0000_0000_0000 | frame).to_le_bytes().repeat(PAGE_BYTES / 8)
}

fn ensure(holds: bool, what: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(what()) }
}

impl World {
    fn new(seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let log = Arc::new(Log::new(None));
        let ram = Arc::new(Ram::new(usize::try_from(MEMORY).expect("small")).expect("memory for the world"));
        let mut settings = FunctionSettings::new(FUNCTION);
        (settings.queues, settings.vectors) = (4, 4);
        settings.engines = rng.pick(&[1, 2]);
        settings.jobs_per_queue = rng.pick(&[1, 4, 64]);
        settings.tlb_entries = rng.pick(&[4, 64, 1024]);
        settings.page_request_timeout_ns = u64::MAX / 4;
        settings.untranslated = true;
        let engines = settings.engines;
        let mut platform = Simulated::new(Arc::clone(&ram), Arc::clone(&log), None);
        let watch = Watcher::new(Arc::clone(&log), None);
        let unit = UnitConfig::default();
        let config = MachineConfig { iommu: IOMMU, unit, audit: None, functions: vec![settings] };
        let machine = Machine::new(&config, &mut platform, watch, |_| ()).expect("memory for the machine");
        let function = machine.functions.into_iter().next().expect("it has one");
        let maps = platform.maps(FUNCTION);
        let wired = rng.chance(200);
        let function_rng = Rng::new(rng.next_u64());
        let mut function = Accelerator::new(function, 1, (maps, MEMORY), wired, function_rng, &log, None);
        function.start_bus_mastering();
        function.vmm.enable_vectors(VECTORS);
        function.start();
        for queue in 0..2 {
            let rings = RINGS + queue as u64 * 2 * PAGE;
            function.enable(queue, None, (rings, rings + PAGE));
        }
        let driver = Driver::new(Arc::clone(&ram), BLOCK, engines, TABLES, FRAMES).expect("it is memory");
        let frames = (0..PROCESSES * PAGES + SPARE).map(|n| FRAMES + n as u64 * PAGE).collect::<Vec<_>>();
        for &frame in &frames {
            ram.write(GuestAddress(frame), &poison(frame)).expect("it is memory");
        }
        let mut world = Self {
            rng,
            log,
            ram,
            function,
            driver,
            processes: Vec::new(),
            free: frames,
            flights: BTreeMap::new(),
            tasks: Vec::new(),
            cookie: 1,
            step: 0,
            off: false,
            handling: false,
            happened: Happened::default(),
        };
        for n in 0..PROCESSES {
            let process = world.born(ASID_BIT | u32::try_from(n).expect("few"), 1).expect("the world is new");
            world.processes.push(process);
        }
        world.turn_on();
        world
    }

    fn turn_on(&mut self) {
        self.function.write64(regs::BASE, BLOCK);
        self.function.write32(regs::VECTOR, 1 << 31 | u32::try_from(VECTOR).expect("small"));
        self.function.write32(regs::CONTROL, 1);
        self.off = false;
    }

    fn status(&mut self) -> Status {
        Status::from_bits(self.function.read32(regs::STATUS))
    }

    fn born(&mut self, asid: u32, generation: u16) -> Result<Process, String> {
        self.driver.create(asid, self.rng.chance(500), generation).map_err(|e| format!("no frame for tables: {e}"))?;
        let mut pages = Vec::new();
        let mut oracle = Vec::new();
        for _ in 0..PAGES {
            let mut bytes = [0; PAGE_BYTES];
            self.rng.fill(&mut bytes);
            let frame = self.take_frame(&bytes)?;
            pages.push(Page { frame, busy: false, seq: 0, readers: 0, writers: 0 });
            oracle.push(bytes);
        }
        Ok(Process { asid, generation, alive: true, pages, oracle, flights: 0 })
    }

    /// A free frame with these contents. Its poison is whole: nobody has written to it since it was freed.
    fn take_frame(&mut self, bytes: &[u8]) -> Result<u64, String> {
        let at = self.rng.index(self.free.len());
        let frame = self.free.swap_remove(at);
        ensure(self.bytes(frame) == poison(frame), || format!("frame {frame:#x} was written after it was freed"))?;
        self.ram.write(GuestAddress(frame), bytes).expect("it is memory");
        Ok(frame)
    }

    fn free_frame(&mut self, frame: u64) {
        self.ram.write(GuestAddress(frame), &poison(frame)).expect("it is memory");
        self.free.push(frame);
    }

    fn bytes(&self, frame: u64) -> Vec<u8> {
        let mut bytes = vec![0; PAGE_BYTES];
        self.ram.read(GuestAddress(frame), &mut bytes).expect("it is memory");
        bytes
    }

    fn live(&mut self) -> Result<(), String> {
        for _ in 0..STEPS {
            match self.rng.below(100) {
                0..30 => self.submit(),
                30..45 => self.change()?,
                45 if self.rng.chance(300) => self.die(),
                46 if self.rng.chance(60) => self.restart(),
                _ => {}
            }
            self.turn()?;
        }
        for _ in 0..BOUND {
            if self.flights.is_empty() && self.tasks.is_empty() {
                break;
            }
            self.turn()?;
        }
        let (flights, tasks) = (self.flights.len(), self.tasks.len());
        ensure(flights == 0 && tasks == 0, || format!("{flights} descriptors and {tasks} tasks never end"))?;
        for p in 0..self.processes.len() {
            self.verify(p)?;
        }
        for frame in std::mem::take(&mut self.free) {
            ensure(self.bytes(frame) == poison(frame), || format!("frame {frame:#x} was written after it was freed"))?;
        }
        let error = self.status().error();
        ensure(error == 0, || format!("the device reports error {error}"))
    }

    fn verify(&self, p: usize) -> Result<(), String> {
        let process = &self.processes[p];
        for (n, (page, oracle)) in process.pages.iter().zip(&process.oracle).enumerate() {
            let same = !process.alive || self.bytes(page.frame) == *oracle;
            ensure(same, || format!("page {n} of process {:x} is not what was written to it", process.asid))?;
        }
        Ok(())
    }

    fn turn(&mut self) -> Result<(), String> {
        self.step += 1;
        match self.rng.below(10) {
            0..5 => {
                let engine = self.rng.index(self.function.engines());
                let sleepy = self.rng.chance(500);
                self.function.turn(engine, self.step * STEP_NS, sleepy);
                Ok(())
            }
            5 => (0..2).try_for_each(|queue| self.reap(queue)),
            6 => {
                self.handle();
                Ok(())
            }
            _ if self.tasks.is_empty() => Ok(()),
            _ => {
                let at = self.rng.index(self.tasks.len());
                let task = self.tasks.swap_remove(at);
                if let Some(task) = self.poll(task)? {
                    self.tasks.push(task);
                }
                Ok(())
            }
        }
    }

    /// The interrupt handler: reads all events, then looks once more. It runs only after an interrupt.
    fn handle(&mut self) {
        self.handling |= self.function.vmm.take_fired(VECTOR);
        if !self.handling || self.off {
            return;
        }
        self.handling = false;
        for engine in 0..self.function.engines() {
            while let Some(event) = self.driver.event(engine).expect("it is memory") {
                let until = self.step + self.rng.below(60);
                let seq = self.page_of(&event).map_or(0, |(p, page)| self.processes[p].pages[page].seq);
                self.tasks.push(Task::Serve { engine, event, until, seq });
                // A handler that is slow: the ring fills up meanwhile. It comes again by itself.
                if self.rng.chance(100) {
                    self.handling = true;
                    break;
                }
            }
        }
        // Room was made: an engine that sleeps may have events that found none.
        self.kick_all();
    }

    fn kick_all(&mut self) {
        self.function.write32(regs::KICK, u32::MAX);
    }

    fn page_of(&self, event: &Event) -> Option<(usize, usize)> {
        let p = self.processes.iter().position(|process| {
            process.asid == event.asid && u32::from(process.generation) == event.generation && process.alive
        })?;
        let page = usize::try_from(event.address.checked_sub(BASE)? / PAGE).ok()?;
        (page < PAGES).then_some((p, page))
    }

    fn poll(&mut self, task: Task) -> Result<Option<Task>, String> {
        match task {
            Task::Serve { until, .. } if self.step < until => Ok(Some(task)),
            Task::Serve { engine, event, seq, .. } => {
                let code = self.serve(&event, seq)?;
                match self.driver.respond(engine, event.token, code) {
                    // Off: the rings are not looked at any more.
                    _ if self.off => {}
                    None => return Ok(Some(Task::Serve { engine, event, until: self.step + 50, seq })),
                    Some(true) => {
                        self.happened.kicks += 1;
                        self.function.write32(regs::KICK, u32::try_from(engine).expect("few"));
                    }
                    Some(false) => {}
                }
                self.happened.events += 1;
                self.happened.again += u64::from(code == response::AGAIN);
                Ok(None)
            }
            Task::Move { process, page, mut wait } => {
                if !self.off && !self.driver.is_over(&mut wait) {
                    return Ok(Some(Task::Move { process, page, wait }));
                }
                if self.off && self.status().busy() {
                    return Ok(Some(Task::Move { process, page, wait }));
                }
                let old = self.processes[process].pages[page].frame;
                let bytes = self.bytes(old);
                let new = self.take_frame(&bytes)?;
                self.free_frame(old);
                let page = &mut self.processes[process].pages[page];
                (page.frame, page.busy) = (new, false);
                Ok(None)
            }
            Task::Die { process, wait } => self.dying(process, wait),
            Task::Restart => {
                // What was served for the time before is over: its tokens are stale.
                let others = self.tasks.iter().any(|task| !matches!(task, Task::Serve { .. }));
                if self.status().busy() || others {
                    return Ok(Some(Task::Restart));
                }
                self.tasks.retain(|task| !matches!(task, Task::Serve { .. }));
                self.driver.restart().expect("it is memory");
                self.turn_on();
                self.happened.restarts += 1;
                Ok(None)
            }
        }
    }

    /// Serves a fault that somebody began to serve at `seq`.
    fn serve(&mut self, event: &Event, seq: u64) -> Result<u32, String> {
        let Some((p, page)) = self.page_of(event) else { return Ok(response::FAILURE) };
        if page == HOLE {
            return Ok(response::INVALID);
        }
        // As far as the operand goes, pages that can be had at once are mapped ahead.
        let last = usize::try_from((event.address - BASE + (event.length - 1)) / PAGE).expect("small").min(PAGES - 1);
        let process = &self.processes[p];
        let at = &process.pages[page];
        if at.busy || at.seq != seq || self.rng.chance(50) {
            return Ok(response::AGAIN);
        }
        let write = event.access == access::WRITE;
        for n in page..=last {
            let Page { frame, busy, .. } = self.processes[p].pages[n];
            if busy || n == HOLE {
                break;
            }
            let entry = TableEntry::new().with_frame(frame >> 12).with_writable(write || self.rng.chance(300));
            let address = BASE + n as u64 * PAGE;
            let asid = self.processes[p].asid;
            let before = self.driver.mapped(asid, address).expect("it is memory");
            let entry = entry.with_writable(entry.writable() || before.is_some_and(|entry| entry.writable()));
            self.driver.map(asid, address, 12, entry).map_err(|e| format!("no frame for tables: {e}"))?;
        }
        Ok(response::SUCCESS)
    }

    /// The kernel changes a page: it moves when the device is out.
    fn change(&mut self) -> Result<(), String> {
        let p = self.rng.index(self.processes.len());
        let n = self.rng.index(PAGES);
        if self.off || !self.processes[p].alive || self.processes[p].pages[n].busy || self.free.len() <= 2 {
            return Ok(());
        }
        let asid = self.processes[p].asid;
        let first = BASE + n as u64 * PAGE;
        let wait = self.driver.invalidate(asid, first, first + (PAGE - 1)).expect("it is memory");
        let page = &mut self.processes[p].pages[n];
        (page.busy, page.seq) = (true, page.seq + 1);
        let counted = if wait.engines().is_empty() { &mut self.happened.free } else { &mut self.happened.waits };
        *counted += 1;
        self.tasks.push(Task::Move { process: p, page: n, wait });
        Ok(())
    }

    fn die(&mut self) {
        let p = self.rng.index(self.processes.len());
        if self.off || !self.processes[p].alive || self.processes[p].pages.iter().any(|page| page.busy) {
            return;
        }
        if self.function.is_command_busy() || self.tasks.iter().any(|task| matches!(task, Task::Die { .. })) {
            return;
        }
        self.processes[p].alive = false;
        let asid = self.processes[p].asid;
        self.excuse(|flight| flight.process == p);
        self.function.abort(Pasid::from_low_bits(asid.into()));
        self.tasks.push(Task::Die { process: p, wait: None });
    }

    fn dying(&mut self, p: usize, wait: Option<Wait>) -> Result<Option<Task>, String> {
        let asid = self.processes[p].asid;
        if self.function.is_command_busy() || self.processes[p].flights > 0 {
            return Ok(Some(Task::Die { process: p, wait }));
        }
        let mut wait = match wait {
            Some(wait) => wait,
            None => self.driver.destroy(asid).expect("it is memory"),
        };
        let over = if self.off { !self.status().busy() } else { self.driver.is_over(&mut wait) };
        if !over {
            return Ok(Some(Task::Die { process: p, wait: Some(wait) }));
        }
        self.driver.free(asid).expect("it is memory");
        for n in 0..PAGES {
            let frame = self.processes[p].pages[n].frame;
            self.free_frame(frame);
        }
        let generation = self.processes[p].generation.wrapping_add(1) & 0xfff;
        self.processes[p] = self.born(asid, generation)?;
        self.happened.deaths += 1;
        Ok(None)
    }

    fn restart(&mut self) {
        if self.off || self.tasks.iter().any(|task| matches!(task, Task::Die { .. })) {
            return;
        }
        self.off = true;
        self.excuse(|_| true);
        self.function.write32(regs::CONTROL, 0);
        self.tasks.push(Task::Restart);
    }

    fn excuse(&mut self, meant: impl Fn(&Flight) -> bool) {
        for flight in self.flights.values_mut().filter(|flight| meant(flight)) {
            flight.excused = true;
        }
    }

    fn submit(&mut self) {
        let p = self.rng.index(self.processes.len());
        let queue = self.rng.index(2);
        let len = 1 + self.rng.index(2 * PAGE_BYTES);
        let mut place = || {
            let at = self.rng.index(PAGES * PAGE_BYTES - len + 1);
            (at / PAGE_BYTES, (at + len - 1) / PAGE_BYTES, at)
        };
        let (src, dst) = (place(), place());
        let apart = src.1 < dst.0 || dst.1 < src.0;
        let process = &self.processes[p];
        let clear = (src.0..=src.1).all(|n| process.pages[n].writers == 0)
            && (dst.0..=dst.1).all(|n| process.pages[n].writers == 0 && process.pages[n].readers == 0);
        let in_queue = self.flights.len() < RING as usize / 2;
        if !apart || !clear || !process.alive || !in_queue || self.off {
            return;
        }
        let touches_hole = (src.0..=src.1).chain(dst.0..=dst.1).any(|n| n == HOLE);
        let cookie = self.cookie;
        self.cookie += 1;
        let pasid = DescriptorPasid::new().with_pasid(process.asid).with_valid(true);
        let (from, to) = (BASE + src.2 as u64, BASE + dst.2 as u64);
        let descriptor = Descriptor {
            opcode: opcode::COPY,
            cookie,
            pasid,
            src: from,
            dst: to,
            length: len as u64,
            ..Default::default()
        };
        let flight = Flight {
            process: p,
            generation: process.generation,
            src: (src.2, src.2 + len),
            dst: (dst.2, dst.2 + len),
            len,
            excused: touches_hole,
        };
        let (src, dst) = ((src.0, src.1), (dst.0, dst.1));
        let process = &mut self.processes[p];
        process.flights += 1;
        (src.0..=src.1).for_each(|n| process.pages[n].readers += 1);
        (dst.0..=dst.1).for_each(|n| process.pages[n].writers += 1);
        self.flights.insert(cookie, flight);
        let ring = self.function.queues[queue];
        let at = ring.rings.0 + u64::from(ring.tail % RING) * size_of::<Descriptor>() as u64;
        self.ram.write(GuestAddress(at), descriptor.as_bytes()).expect("it is memory");
        self.function.queues[queue].tail = ring.tail.wrapping_add(1);
        self.function.ring(queue);
    }

    fn reap(&mut self, queue: usize) -> Result<(), String> {
        let mut read = false;
        loop {
            let ring = self.function.queues[queue];
            let mut completion = Completion::default();
            let at = ring.rings.1 + u64::from(ring.head % RING) * size_of::<Completion>() as u64;
            self.ram.read(GuestAddress(at), completion.as_mut_bytes()).expect("it is memory");
            if completion.seq != ring.head.wrapping_add(1) {
                break;
            }
            self.function.queues[queue].head = ring.head.wrapping_add(1);
            self.complete(&completion)?;
            read = true;
        }
        if read {
            self.function.consume(queue);
        }
        Ok(())
    }

    fn complete(&mut self, completion: &Completion) -> Result<(), String> {
        let cookie = completion.cookie;
        let flight = self.flights.remove(&cookie).ok_or(format!("{cookie} completes, and is not under way"))?;
        let process = &mut self.processes[flight.process];
        if process.generation != flight.generation {
            return Err(format!("{cookie} completes after its process is gone"));
        }
        process.flights -= 1;
        let pages = |range: (usize, usize)| range.0 / PAGE_BYTES..=(range.1 - 1) / PAGE_BYTES;
        pages(flight.src).for_each(|n| process.pages[n].readers -= 1);
        pages(flight.dst).for_each(|n| process.pages[n].writers -= 1);
        let code = Code::from_raw(completion.status);
        let done = usize::try_from(completion.bytes_done).unwrap_or(usize::MAX);
        let whole = code == Some(Code::Success) && done == flight.len;
        let reason =
            matches!(code, Some(Code::Aborted | Code::TranslationBlocked | Code::PageFault | Code::PageRequestFailed));
        ensure(whole || (flight.excused && reason && done <= flight.len), || {
            format!("{cookie} ends with {code:?} after {done} of {} bytes, and has no reason", flight.len)
        })?;
        self.happened.copies += u64::from(whole);
        // What was done is in the destination; beyond it, anything that the source has may be there already.
        let len = if whole { flight.len } else { done };
        for n in 0..len {
            let byte = process.oracle[(flight.src.0 + n) / PAGE_BYTES][(flight.src.0 + n) % PAGE_BYTES];
            process.oracle[(flight.dst.0 + n) / PAGE_BYTES][(flight.dst.0 + n) % PAGE_BYTES] = byte;
        }
        for n in len..flight.len {
            let at = flight.dst.0 + n;
            let mut now = [0];
            let frame = process.pages[at / PAGE_BYTES].frame;
            let within = (at % PAGE_BYTES) as u64;
            self.ram.read(GuestAddress(frame + within), &mut now).expect("it is memory");
            let source = process.oracle[(flight.src.0 + n) / PAGE_BYTES][(flight.src.0 + n) % PAGE_BYTES];
            let oracle = &mut process.oracle[at / PAGE_BYTES][at % PAGE_BYTES];
            if now[0] != *oracle && now[0] != source {
                return Err(format!("{cookie}: byte {n} of its destination is neither old nor new"));
            }
            *oracle = now[0];
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mirror_seeds_are_clean_and_reach_everything() {
        let mut total = Happened::default();
        for seed in 0..60 {
            total += run_mirrors(seed).unwrap_or_else(|what| panic!("{what}"));
        }
        let Happened { copies, events, again, waits, free, deaths, restarts, kicks } = total;
        let least = [copies / 1000, events / 2000, again / 100, waits / 500, free / 500, deaths / 20, restarts / 10];
        assert!(least.iter().all(|&times| times > 0) && kicks > 50, "{total:?}");
    }
}
