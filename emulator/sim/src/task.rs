//! What the kernel does step by step, with other things happening in between: each task is a script whose steps may have to wait.
use svadev_fabric::{Pasid, ResponseCode};
use svadev_memory::{GuestAddress, GuestMemory};
use svadev_spec::vtd::tables::FirstStageEntry;

use crate::flight::excuse;
use crate::frames::{FRAME, FRAME_BYTES};
use crate::functions::{KERNEL_QUEUES, QUEUES};
use crate::mutant::Mutant;
use crate::process::{BASE, DATA, Life, PAGES, Place, Process, READ_ONLY, Served, Vma, read_frame};
use crate::unit_driver::{Descriptor, Group, Waiting, device_tlb_pages, iotlb_pages, pasid_gone, response};
use crate::world::World;

/// A task.
#[derive(Debug)]
pub(crate) struct Task {
    /// It sleeps until then.
    pub(crate) until: u64,
    stage: u8,
    waiting: Option<Waiting>,
    kind: Kind,
}

/// A change of mappings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    Evict,
    Migrate,
    Protect,
    Unmap,
}

#[derive(Debug)]
enum Kind {
    /// Change mappings of `1 << order` pages; entries as they were, for the pages it took.
    Map { p: usize, change: Change, first: usize, order: u8, taken: Vec<(usize, FirstStageEntry)> },
    /// Answer a page request group.
    Answer { f: usize, group: Group, forced: Option<ResponseCode>, twice: bool },
    /// End a process, before (`exit`) or after the driver aborted it; now at function `f`.
    TearDown { p: usize, exit: bool, f: usize, resets: u64 },
    /// Reset a function.
    Reset { f: usize, resets: u64 },
    /// Disable a queue and enable it again.
    Restart { f: usize, q: usize },
    /// Enable page requests again, after a *failure*.
    Revive { f: usize },
}

impl Task {
    fn new(kind: Kind) -> Self {
        Self { until: 0, stage: 0, waiting: None, kind }
    }
}

impl World {
    pub(crate) fn evict(&mut self, p: usize) {
        let order = u8::try_from(self.rng.below(3)).expect("a small number");
        self.change(p, Change::Evict, order);
    }
    pub(crate) fn migrate(&mut self, p: usize) {
        self.change(p, Change::Migrate, 0);
    }
    pub(crate) fn protect(&mut self, p: usize) {
        self.change(p, Change::Protect, 0);
    }
    pub(crate) fn unmap(&mut self, p: usize) {
        self.change(p, Change::Unmap, 0);
    }

    fn change(&mut self, p: usize, change: Change, order: u8) {
        let page = self.any_page();
        if change == Change::Unmap && (page < DATA || page == READ_ONLY) {
            return;
        }
        let first = page >> order << order;
        self.tasks.push(Task::new(Kind::Map { p, change, first, order, taken: Vec::new() }));
    }

    pub(crate) fn answer_later(&mut self, group: Group) {
        let f = self.functions.iter().position(|f| f.bdf == group.bdf).expect("only functions ask");
        let (mut forced, mut delay, mut twice) = (None, 1, false);
        if self.injecting {
            if self.rng.chance(self.faults.delayed_answers) {
                delay = self.rng.within(1, 600);
            }
            if self.rng.chance(self.faults.lost_answers) {
                self.log.event(format_args!("group {} of {} is lost", group.index.get(), group.bdf));
                self.bus.lose(group.bdf, group.index);
                // Its share of the allocation is lost too: others may starve.
                self.excuses[f] |= excuse::TIMEOUT | excuse::DROPPED;
                self.excuse(excuse::TIMEOUT | excuse::DROPPED, |flight| flight.queue.0 == f);
                return;
            }
            if self.rng.chance(self.faults.invalid_answers) {
                forced = Some(ResponseCode::InvalidRequest);
            }
            if self.rng.chance(self.faults.failed_answers) {
                forced = Some(ResponseCode::Failure);
            }
            twice = self.rng.chance(self.faults.duplicated_answers);
        }
        let until = self.step + delay;
        self.tasks.push(Task { until, ..Task::new(Kind::Answer { f, group, forced, twice }) });
    }

    pub(crate) fn tear_down(&mut self, p: usize, exit: bool) {
        if self.processes[p].life == Life::Alive {
            let process = &mut self.processes[p];
            process.life = Life::Dying;
            let id = process.id;
            self.log.event(format_args!("process {id} {}", if exit { "dies" } else { "is unbound" }));
            let reasons = excuse::ABORTED | excuse::FAULT | excuse::BLOCKED | excuse::DROPPED;
            self.excuse(reasons, |flight| flight.process == (p, id));
            self.tasks.push(Task::new(Kind::TearDown { p, exit, f: 0, resets: 0 }));
        }
    }

    pub(crate) fn reset_function(&mut self, f: usize) {
        if !self.functions[f].resetting {
            self.log.event(format_args!("reset of {f}"));
            let function = &mut self.functions[f];
            function.resetting = true;
            let resets = function.ports.resets();
            function.reset();
            self.excuse(excuse::DROPPED, |flight| flight.queue.0 == f);
            self.tasks.push(Task::new(Kind::Reset { f, resets }));
        }
    }

    pub(crate) fn restart_queue(&mut self, f: usize, q: usize) {
        let function = &mut self.functions[f];
        // A queue that its engine has never seen enabled is disabled without a word for what is in its ring already.
        let seen = q >= KERNEL_QUEUES || function.queues[q].head > 0;
        if function.queues[q].on && seen && !function.resetting {
            self.log.event(format_args!("disable {f}.{q}"));
            // Of a user queue the rings may be away when it stops; a kernel queue completes all it has.
            let user = function.queues[q].user.is_some();
            let halted = function.queue_status(q).halted();
            function.disable(q);
            let reasons = if user || halted { excuse::ABORTED | excuse::DROPPED } else { excuse::ABORTED };
            self.excuse(reasons, |flight| flight.queue == (f, q));
            self.tasks.push(Task::new(Kind::Restart { f, q }));
        }
    }

    /// Queues that halted are started again, if they had a reason to.
    pub(crate) fn watch_queue(&mut self, f: usize, q: usize) {
        let function = &mut self.functions[f];
        if function.resetting || !function.queues[q].on || !function.queue_status(q).halted() {
            return;
        }
        let status = function.queue_status(q);
        self.log.event(format_args!("{f}.{q} halted: {status:?}"));
        self.log.check(q >= KERNEL_QUEUES, || format!("kernel queue {f}.{q} halted: {status:?}"));
        self.reap(f, q);
        self.restart_queue(f, q);
    }

    /// One step of a task; whether it is over.
    pub(crate) fn poll(&mut self, task: &mut Task) -> bool {
        if let Some(waiting) = &task.waiting {
            if !self.unit.is_done(waiting) {
                return false;
            }
            task.waiting = None;
            task.stage += 1;
        }
        match &mut task.kind {
            Kind::Map { .. } => self.poll_map(task),
            Kind::Answer { .. } => self.poll_answer(task),
            Kind::TearDown { .. } => self.poll_tear_down(task),
            &mut Kind::Reset { f, resets } => self.poll_reset(f, resets),
            &mut Kind::Restart { f, q } => self.poll_restart(f, q),
            &mut Kind::Revive { f } => {
                if !self.functions[f].resetting {
                    self.functions[f].restart_page_requests(false);
                }
                true
            }
        }
    }

    /// Submits and waits; the stage goes on when it is over. Tried again where there is no room.
    fn submit(&mut self, task: &mut Task, descriptors: &[Descriptor], drain: bool) {
        task.waiting = self.unit.submit(descriptors, drain);
    }

    /// The invalidations for a range of a process: of the unit once, of each function's device TLB.
    fn invalidations(&self, p: usize, first: usize, order: u8) -> Vec<Descriptor> {
        let process = &self.processes[p];
        let address = Process::address(first);
        let bound = (0..self.functions.len()).filter(|&f| process.bound[f]);
        let mut all: Vec<_> =
            bound.map(|f| device_tlb_pages(self.functions[f].bdf, process.pasid, address, order)).collect();
        if !all.is_empty() && self.mutant != Some(Mutant::SkipIotlb) {
            all.insert(0, iotlb_pages(process.domain_id, process.pasid, address, order));
        }
        all
    }

    fn poll_map(&mut self, task: &mut Task) -> bool {
        let Kind::Map { p, change, first, order, taken } = &mut task.kind else { unreachable!("of this kind") };
        let (p, change, first, order) = (*p, *change, *first, *order);
        match task.stage {
            0 => {
                if self.processes[p].life != Life::Alive {
                    return true;
                }
                *taken = self.take(p, change, first..(first + (1 << order)).min(PAGES));
                if taken.is_empty() {
                    return true;
                }
                task.stage = 1;
                false
            }
            1 => {
                let descriptors = self.invalidations(p, first, order);
                if self.mutant == Some(Mutant::FreeEarly) {
                    self.finish_map(task);
                }
                self.submit(task, &descriptors, false);
                false
            }
            2 => {
                self.finish_map(task);
                task.stage = 3;
                change != Change::Unmap
            }
            // Unmapped: something new is mapped there when the last descriptor that knew the old one is gone.
            _ => {
                let page = &self.processes[p].pages[first];
                if self.processes[p].life != Life::Alive {
                    return true;
                }
                if page.readers + page.writers > 0 {
                    return false;
                }
                let mut noise = Box::new([0; FRAME_BYTES]);
                self.rng.fill(&mut noise[..]);
                let process = &mut self.processes[p];
                process.oracle[first * FRAME_BYTES..][..FRAME_BYTES].copy_from_slice(&noise[..]);
                process.pages[first].swap = Some(noise);
                process.pages[first].vma = Vma::Writable;
                true
            }
        }
    }

    /// Takes rights away from pages that have them: entries first, as a kernel does. Faults have to wait from here on.
    fn take(&mut self, p: usize, change: Change, pages: std::ops::Range<usize>) -> Vec<(usize, FirstStageEntry)> {
        let (id, mut taken) = (self.processes[p].id, Vec::new());
        for n in pages {
            let process = &mut self.processes[p];
            if process.pages[n].busy || process.pages[n].vma == Vma::None {
                continue;
            }
            let present = matches!(process.pages[n].place, Place::Frame(_));
            if change == Change::Unmap {
                process.pages[n].vma = Vma::None;
                process.pages[n].swap = None;
            } else if !present {
                continue;
            }
            self.log.event(format_args!("{change:?} page {n} of process {id}"));
            let process = &mut self.processes[p];
            process.pages[n].busy = true;
            if change != Change::Protect {
                process.thaw(n);
            }
            let tables = process.tables.as_ref().expect("an alive process has tables");
            let old = match (present, change) {
                (false, _) => FirstStageEntry::new(),
                (true, Change::Protect) => tables.change(Process::address(n), 12, |e| e.with_writable(false)),
                (true, _) => tables.clear(Process::address(n), 12),
            };
            taken.push((n, old));
            if change == Change::Unmap {
                for flight in self.flights.values_mut().filter(|f| f.process == (p, id) && f.pages().any(|m| m == n)) {
                    flight.excuses |= excuse::FAULT;
                    flight.gone.insert(n);
                }
            }
        }
        taken
    }

    /// The invalidation is over: nobody uses the old mappings any more.
    fn finish_map(&mut self, task: &mut Task) {
        let Kind::Map { p, change, taken, .. } = &mut task.kind else { unreachable!("of this kind") };
        for (n, old) in std::mem::take(taken) {
            let process = &mut self.processes[*p];
            let page = &mut process.pages[n];
            page.busy = false;
            let Place::Frame(frame) = page.place else { continue };
            match change {
                Change::Evict => {
                    // A clean page is on disk already.
                    if old.dirty() || page.swap.is_none() {
                        page.swap = Some(Box::new(read_frame(&self.ram, frame)));
                    }
                    page.place = Place::Out;
                    self.frames.free(frame);
                }
                Change::Unmap => {
                    page.place = Place::Out;
                    self.frames.free(frame);
                }
                Change::Migrate => {
                    let new = self.frames.allocate();
                    let bytes = read_frame(&self.ram, frame);
                    self.ram.write(GuestAddress(new), &bytes).expect("frames are in memory");
                    let tables = process.tables.as_mut().expect("pages are freed before tables");
                    tables.map(&mut self.frames, Process::address(n), new, 12, old.writable());
                    tables.change(Process::address(n), 12, |e| e.with_dirty(e.dirty() || old.dirty()));
                    page.place = Place::Frame(new);
                    self.frames.free(frame);
                }
                Change::Protect => page.frozen = Some(Box::new(read_frame(&self.ram, frame))),
            }
        }
    }

    fn poll_answer(&mut self, task: &mut Task) -> bool {
        let Kind::Answer { f, group, forced, twice } = &mut task.kind else { unreachable!("of this kind") };
        if task.stage > 0 {
            return true;
        }
        let f = *f;
        let p = group.pasid.and_then(|pasid| self.process_of(f, pasid));
        let mut code = ResponseCode::Success;
        for request in &group.requests {
            let page = Process::page_at(request.iova);
            let served = match (p, page) {
                (Some(p), Some(page)) => self.processes[p].fault_in(&mut self.frames, page, request.write),
                _ => Served::Never,
            };
            match served {
                Served::Yes => {}
                Served::Busy => {
                    task.until = self.step + 5;
                    return false;
                }
                Served::Never => code = ResponseCode::InvalidRequest,
            }
        }
        let code = forced.unwrap_or(code);
        let mut descriptors = vec![response(group, code)];
        if *twice || (self.mutant == Some(Mutant::AnswerTwice) && group.index.get() % 8 == 7) {
            descriptors.push(descriptors[0]);
            if *twice {
                self.bus.expect_duplicate(group.bdf, group.index);
            }
        }
        let Some(waiting) = self.unit.submit(&descriptors, false) else { return false };
        task.waiting = Some(waiting);
        match code {
            ResponseCode::Success => {}
            ResponseCode::InvalidRequest => {
                let pages: Vec<_> = group.requests.iter().filter_map(|r| Process::page_at(r.iova)).collect();
                let pasid = group.pasid;
                self.excuse_pages(f, pasid, &pages);
            }
            ResponseCode::Failure => {
                let reasons = excuse::FAILED | excuse::DROPPED;
                self.excuses[f] |= reasons;
                self.excuse(reasons, |flight| flight.queue.0 == f);
                let until = self.step + self.rng.within(1, 300);
                self.tasks.push(Task { until, ..Task::new(Kind::Revive { f }) });
            }
        }
        false
    }

    /// These pages were refused: whoever needs them may fail; a queue whose rings or lists they are may halt.
    fn excuse_pages(&mut self, f: usize, pasid: Option<Pasid>, refused: &[usize]) {
        let Some(p) = pasid.and_then(|pasid| self.process_of(f, pasid)) else { return };
        let process = (p, self.processes[p].id);
        let shared = refused.iter().any(|&page| page < DATA);
        for flight in self.flights.values_mut().filter(|flight| flight.process == process && flight.queue.0 == f) {
            if shared || flight.pages().any(|page| refused.contains(&page)) {
                flight.excuses |= excuse::FAULT;
            }
            if shared {
                flight.excuses |= excuse::DROPPED | excuse::ABORTED;
            }
        }
    }

    fn poll_reset(&mut self, f: usize, resets: u64) -> bool {
        let now = self.functions[f].ports.resets();
        if now == resets {
            return false;
        }
        self.log.check(now == resets + 1, || format!("function {f} says {} times that a reset is over", now - resets));
        self.drop_flights(|flight| flight.queue.0 == f);
        let function = &mut self.functions[f];
        let busy = function.is_busy();
        self.log.check(!busy, || format!("function {f} is busy after its reset"));
        function.resetting = false;
        function.bring_up();
        for q in 0..QUEUES {
            let queue = self.functions[f].queues[q];
            self.functions[f].queues[q].on = false;
            match queue.user {
                None if q < KERNEL_QUEUES => self.enable_kernel_queue(f, q),
                Some(pasid) if self.processes.iter().any(|p| p.pasid == pasid && p.life == Life::Alive) => {
                    self.enable_queue(f, q, Some(pasid), queue.rings);
                }
                // The ring keeps what the reset left in it: nobody reads it again.
                _ => self.functions[f].queues[q].rings = (0, 0),
            }
        }
        true
    }

    fn poll_restart(&mut self, f: usize, q: usize) -> bool {
        if self.functions[f].resetting {
            return false;
        }
        if self.functions[f].queues[q].on {
            return true;
        }
        self.reap(f, q);
        let status = self.functions[f].queue_status(q);
        if status.enabled() || status.halted() {
            return false;
        }
        self.reap(f, q);
        self.drop_flights(|flight| flight.queue == (f, q));
        match self.functions[f].queues[q].user {
            None if q < KERNEL_QUEUES => self.enable_kernel_queue(f, q),
            Some(pasid) if self.processes.iter().any(|p| p.pasid == pasid && p.life == Life::Alive) => {
                let rings = self.functions[f].queues[q].rings;
                self.enable_queue(f, q, Some(pasid), rings);
            }
            _ => {}
        }
        true
    }

    fn poll_tear_down(&mut self, task: &mut Task) -> bool {
        let Kind::TearDown { p, exit, f, resets } = &mut task.kind else { unreachable!("of this kind") };
        let (p, exit) = (*p, *exit);
        let (pasid, domain_id) = (self.processes[p].pasid, self.processes[p].domain_id);
        let skip = self.mutant == Some(Mutant::SkipDrain);
        match task.stage {
            // 0 to 2: release, from exit_mmap(): before the driver knows (L4).
            0 if !exit => task.stage = if skip { 7 } else { 3 },
            0 | 7 => {
                if self.processes[p].pages.iter().all(|page| !page.busy) {
                    for function in &self.functions {
                        self.device_tables.clear_pasid(&mut self.frames, function.bdf, pasid, exit);
                    }
                    task.stage += 1;
                }
            }
            1 | 8 => {
                let bdfs: Vec<_> = self.functions.iter().map(|function| function.bdf).collect();
                let all: Vec<_> = bdfs.into_iter().flat_map(|bdf| pasid_gone(bdf, domain_id, pasid)).collect();
                self.submit(task, &all, false);
            }
            2 => {
                self.release(p);
                task.stage = if skip { 10 } else { 3 };
            }
            // 3, 4: the driver stops its functions one by one.
            3 => {
                if *f == self.functions.len() {
                    task.stage = 5;
                    return false;
                }
                let function = &mut self.functions[*f];
                if !function.resetting && !function.command_taken {
                    function.command_taken = true;
                    *resets = function.ports.resets();
                    function.abort(pasid);
                    task.stage = 4;
                }
            }
            4 => {
                let function = &mut self.functions[*f];
                if !function.resetting && !function.is_command_busy() {
                    function.command_taken = false;
                    let bdf = function.bdf;
                    task.stage = 3;
                    // A reset ends commands, too: then the abort is done again.
                    if function.ports.resets() == *resets {
                        self.log.event(format_args!("PASID {pasid} of {bdf} is aborted"));
                        self.bus.stop(bdf, pasid);
                        let (left, late) =
                            (self.bus.unanswered(Some((bdf, pasid))), self.excuses[*f] & excuse::TIMEOUT);
                        self.log.check(left == 0 || late != 0, || {
                            format!("ABORT_PASID {pasid} of {bdf} ended with {left} groups unanswered")
                        });
                        *f += 1;
                    }
                }
            }
            // 5, 6: its queues go.
            5 => {
                for f in 0..self.functions.len() {
                    for q in KERNEL_QUEUES..QUEUES {
                        let queue = self.functions[f].queues[q];
                        if queue.user == Some(pasid) && queue.on && !self.functions[f].resetting {
                            self.reap(f, q);
                            self.functions[f].disable(q);
                        }
                    }
                }
                task.stage = 6;
            }
            6 => {
                if self.queues_are_off(p, pasid) {
                    task.stage = if exit { 10 } else { 7 };
                }
            }
            9 => {
                self.release(p);
                task.stage = 10;
            }
            // 10 to 12: drain, and unbind.
            10 => {
                let answering = self
                    .tasks
                    .iter()
                    .any(|t| matches!(&t.kind, Kind::Answer { group, .. } if group.pasid == Some(pasid)));
                if skip || (!answering && self.unit.no_page_requests()) {
                    task.stage = 11;
                }
            }
            11 => {
                let bdfs: Vec<_> = self.functions.iter().map(|function| function.bdf).collect();
                let all: Vec<_> = bdfs.into_iter().flat_map(|bdf| pasid_gone(bdf, domain_id, pasid)).collect();
                self.submit(task, &all[1..], true);
            }
            _ => {
                self.unbind(p, pasid);
                return true;
            }
        }
        false
    }

    /// Whether the queues of a dying process are off; what they still had is gone then.
    fn queues_are_off(&mut self, p: usize, pasid: Pasid) -> bool {
        let mut off = true;
        for f in 0..self.functions.len() {
            for q in KERNEL_QUEUES..QUEUES {
                if self.functions[f].queues[q].user != Some(pasid) {
                    continue;
                }
                let busy =
                    self.tasks.iter().any(|t| matches!(t.kind, Kind::Restart { f: g, q: r } if (f, q) == (g, r)));
                let function = &mut self.functions[f];
                if function.queues[q].on && !function.resetting {
                    function.disable(q);
                }
                let status = function.queue_status(q);
                if function.resetting || busy || status.enabled() || status.halted() {
                    off = false;
                    continue;
                }
                if self.processes[p].life != Life::Dead {
                    self.reap(f, q);
                }
                self.drop_flights(|flight| flight.queue == (f, q));
                self.functions[f].queues[q].user = None;
            }
        }
        off
    }

    /// The process's memory goes.
    fn release(&mut self, p: usize) {
        // Kernel queues may still have descriptors of it, which will end as aborted; what they did no longer matters.
        let process = &mut self.processes[p];
        for page in &mut process.pages {
            if let Place::Frame(frame) = page.place {
                page.place = Place::Out;
                self.frames.free(frame);
            }
        }
        if let Some(tables) = process.tables.take() {
            tables.free(&mut self.frames);
        }
        process.life = Life::Dead;
        self.log.event(format_args!("the memory of process {} is gone", process.id));
    }

    /// The PASID is free, and a new process comes.
    fn unbind(&mut self, p: usize, pasid: Pasid) {
        for (f, function) in self.functions.iter().enumerate() {
            let left = self.bus.unanswered(Some((function.bdf, pasid)));
            let late = self.excuses[f] & excuse::TIMEOUT;
            self.log.check(left == 0 || late != 0, || format!("PASID {pasid} is reused with {left} groups unanswered"));
        }
        self.log.event(format_args!("unbind PASID {pasid}"));
        let domain_id = self.processes[p].domain_id;
        self.pasids.push((pasid, domain_id));
        let process = self.make_process();
        self.processes[p] = process;
        self.bind(p);
    }
}

const _: () = assert!(BASE.is_multiple_of(FRAME));
