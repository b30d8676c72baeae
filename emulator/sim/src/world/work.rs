//! Random descriptors: made, submitted, and checked when they complete.
use svadev_fabric::Pasid;
use svadev_memory::{GuestAddress, GuestMemory};
use svadev_spec::device::{Code, Completion, Descriptor, DescriptorFlags, DescriptorPasid, ScatterEntry, opcode};
use zerocopy::{FromBytes, IntoBytes};

use super::{PATIENCE_STEPS, World};
use crate::checker::Checker;
use crate::coverage::Group;
use crate::excuse;
use crate::flight::{self, Flight, pages};
use crate::frames::FRAME_BYTES;
use crate::mutant::Mutant;
use crate::process::{BASE, DATA, LIST_PAGE, LISTS, Life, PAGES, Page, Process, Vma};
use crate::queues::{KERNEL_QUEUES, QUEUES, RING};

const DESCRIPTOR: u64 = size_of::<Descriptor>() as u64;
const COMPLETION: u64 = size_of::<Completion>() as u64;
/// Bytes of a piece of the list page.
const LIST_BYTES: usize = FRAME_BYTES / LISTS;
/// First byte, from the process's base on, and length.
type Range = (usize, usize);
/// Most entries of a list.
const ENTRIES: u64 = (LIST_BYTES / size_of::<ScatterEntry>()) as u64;

impl World {
    /// Submits one random descriptor somewhere, if that can be done now.
    pub(crate) fn submit_work(&mut self) {
        let f = self.rng.index(self.functions.len());
        let q = self.rng.index(QUEUES);
        let queue = self.functions[f].queues[q];
        let p = match queue.user {
            Some(pasid) => self.processes.iter().position(|p| p.life != Life::Dead && p.pasid == pasid),
            None if q < KERNEL_QUEUES => Some(self.rng.index(self.processes.len())),
            None => None,
        };
        let Some(p) = p else { return };
        let ready = queue.on
            && !self.functions[f].resetting
            && self.processes[p].life == Life::Alive
            && self.processes[p].bound[f]
            && self.in_queue(f, q) < RING as usize;
        if ready && let Some((flight, descriptor)) = self.make(f, q, p) {
            self.launch(flight, descriptor);
        }
    }

    fn in_queue(&self, f: usize, q: usize) -> usize {
        self.flights.values().filter(|flight| flight.queue == (f, q)).count()
    }

    /// A range of data pages in which nobody writes, and, with `write`, nobody reads; `None` where chance found none.
    /// Nobody starts to read a page that is just being unmapped: it may be there for a while, and what was written to
    /// it meanwhile is in no book.
    fn range(&mut self, p: usize, len: usize, write: bool, not: Option<(usize, usize)>) -> Option<(usize, usize)> {
        let first = DATA * FRAME_BYTES;
        let start = first + self.rng.index(PAGES * FRAME_BYTES - first - len + 1);
        let free = pages((start, len)).all(|page| {
            let page = &self.processes[p].pages[page];
            let going = page.vma == Vma::None && page.busy;
            page.writers == 0 && if write { page.readers == 0 } else { !going }
        });
        let apart = not.is_none_or(|other| pages(other).all(|page| !pages((start, len)).contains(&page)));
        (free && apart).then_some((start, len))
    }

    fn make(&mut self, f: usize, q: usize, p: usize) -> Option<(Flight, Descriptor)> {
        let choices = [1, 2, 2, 2, 2, 2, 3, 3, 3, 4, 4, 5, 0];
        let opcode = self.rng.pick(&choices);
        let most = self.rng.pick(&[64, 3000, 9000, 90_000]);
        let len = 1 + self.rng.index(most);
        let reads = matches!(opcode, opcode::COPY | opcode::COMPARE | opcode::CRC32C);
        let second = matches!(opcode, opcode::COPY | opcode::COMPARE | opcode::FILL);
        let writes = matches!(opcode, opcode::COPY | opcode::FILL);
        let src = if reads { Some(self.range(p, len, false, None)?) } else { None };
        let dst = if second { Some(self.range(p, len, writes, src)?) } else { None };
        let operand = match opcode {
            opcode::FILL => self.rng.next_u64(),
            opcode::CRC32C => self.rng.next_u64() & 0xffff_ffff,
            _ => 0,
        };
        if opcode == opcode::COMPARE && self.rng.chance(700) {
            // Alike, or else most comparisons would end at the first byte: compare something with itself.
            return self.finish(f, q, p, opcode, (src, src), operand);
        }
        self.finish(f, q, p, opcode, (src, dst), operand)
    }

    fn finish(
        &mut self,
        f: usize,
        q: usize,
        p: usize,
        opcode: u8,
        (src, dst): (Option<Range>, Option<Range>),
        operand: u64,
    ) -> Option<(Flight, Descriptor)> {
        let stop = (src.is_some() || dst.is_some()) && self.rng.chance(100);
        let mut flags = DescriptorFlags::empty();
        let interrupt = self.rng.chance(500) || self.functions[f].interrupt_driven[q];
        flags.set(DescriptorFlags::INTERRUPT, interrupt);
        flags.set(DescriptorFlags::FENCE, self.rng.chance(50));
        flags.set(DescriptorFlags::STOP_ON_FAULT, stop);
        let process = &self.processes[p];
        let (new, answer) = outcome(process, opcode, src, dst, operand);
        let writes = dst.filter(|_| matches!(opcode, opcode::COPY | opcode::FILL));
        // A page that is just being unmapped may be there for a while.
        let most = reach(process, src, |page| page.vma == Vma::None && !page.busy)
            .min(reach(process, writes, |page| page.vma != Vma::Writable && !page.busy))
            .min(reach(process, dst, |page| page.vma == Vma::None && !page.busy));
        let length = src.or(dst).map_or(0, |(_, len)| len as u64);
        let mut excuses = self.functions[f].standing_excuses(q);
        let touched = || src.into_iter().chain(dst).flat_map(pages);
        if stop || touched().any(|page| process.pages[page].vma != Vma::Writable) {
            excuses |= excuse::FAULT;
        }
        let mut flight = Flight {
            queue: (f, q),
            process: (p, process.id),
            opcode,
            src,
            dst,
            new,
            answer,
            most: most.min(length),
            since: self.step,
            excuses,
            lists: Vec::new(),
            gone: dst.into_iter().flat_map(pages).filter(|&page| process.pages[page].vma == Vma::None).collect(),
        };
        let mut descriptor = Descriptor { opcode, cookie: self.next_cookie, length, operand, ..Default::default() };
        if let Some(range) = src {
            (descriptor.src, descriptor.src_entries) = self.operand(p, range, &mut flight)?;
            flags.set(DescriptorFlags::SRC_LIST, descriptor.src_entries != 0);
        }
        if let Some(range) = dst {
            let Some(operand) = self.operand(p, range, &mut flight) else {
                self.processes[p].lists.extend(flight.lists);
                return None;
            };
            (descriptor.dst, descriptor.dst_entries) = operand;
            flags.set(DescriptorFlags::DST_LIST, descriptor.dst_entries != 0);
        }
        descriptor.flags = flags.bits();
        if q < KERNEL_QUEUES {
            let pasid = self.processes[p].pasid.get();
            descriptor.pasid = DescriptorPasid::new().with_pasid(pasid).with_valid(true);
        }
        Some((flight, descriptor))
    }

    /// Address and entries of an operand, now and then as a list of pieces; `None` where the list cannot be written
    /// now.
    fn operand(&mut self, p: usize, (start, len): (usize, usize), flight: &mut Flight) -> Option<(u64, u32)> {
        let address = BASE + start as u64;
        let pieces = self.rng.within(1, ENTRIES);
        if !self.rng.chance(250) || (len as u64) < pieces {
            return Some((address, 0));
        }
        let process = &mut self.processes[p];
        let piece = *process.lists.first()?;
        let each = len as u64 / pieces;
        let entries: Vec<_> = (0..pieces)
            .map(|n| ScatterEntry {
                address: address + n * each,
                length: if n + 1 == pieces { len as u64 - n * each } else { each },
            })
            .collect();
        let list = Process::address(LIST_PAGE) + (piece * LIST_BYTES) as u64;
        if !process.write(&mut self.frames, list, entries.as_bytes()) {
            return None;
        }
        process.lists.remove(&piece);
        flight.lists.push(piece);
        Some((list, u32::try_from(pieces).expect("a few")))
    }

    /// Writes the descriptor into its ring and rings.
    fn launch(&mut self, flight: Flight, descriptor: Descriptor) {
        let (f, q) = flight.queue;
        let (p, id) = flight.process;
        let queue = self.functions[f].queues[q];
        let at = queue.rings.0 + u64::from(queue.tail % RING) * DESCRIPTOR;
        let written = match queue.user {
            Some(_) => self.processes[p].write(&mut self.frames, at, descriptor.as_bytes()),
            None => {
                let at = self.kernel_gpa(at);
                self.ram.write(GuestAddress(at), descriptor.as_bytes()).expect("rings are in memory");
                true
            }
        };
        if !written {
            self.processes[p].lists.extend(flight.lists);
            return;
        }
        self.log.event(format_args!(
            "submit {} to {f}.{q} for process {id}: opcode {} length {:#x} src {:?} dst {:?}",
            descriptor.cookie, descriptor.opcode, descriptor.length, flight.src, flight.dst
        ));
        self.reserve(&flight, true);
        self.flights.insert(descriptor.cookie, flight);
        self.next_cookie += 1;
        self.submitted += 1;
        let slots = if self.mutant == Some(Mutant::SubmitTwice) && self.next_cookie % 16 == 7 { 2 } else { 1 };
        if slots == 2 && queue.user.is_none() {
            let again = self.kernel_gpa(queue.rings.0 + u64::from(queue.tail.wrapping_add(1) % RING) * DESCRIPTOR);
            self.ram.write(GuestAddress(again), descriptor.as_bytes()).expect("rings are in memory");
        }
        self.functions[f].queues[q].tail = queue.tail.wrapping_add(slots);
        self.functions[f].ring(q);
    }

    fn reserve(&mut self, flight: &Flight, take: bool) {
        let process = &mut self.processes[flight.process.0];
        let change = |count: &mut u32| *count = if take { *count + 1 } else { *count - 1 };
        for page in flight.src.into_iter().flat_map(pages) {
            change(&mut process.pages[page].readers);
        }
        let writes = matches!(flight.opcode, opcode::COPY | opcode::FILL);
        for page in flight.dst.into_iter().flat_map(pages) {
            let page = &mut process.pages[page];
            change(if writes { &mut page.writers } else { &mut page.readers });
        }
    }

    /// Enables a queue again or for the first time, with a completion ring that has nothing in it yet.
    pub(crate) fn enable_queue(&mut self, f: usize, q: usize, user: Option<Pasid>, rings: (u64, u64)) {
        match user {
            Some(pasid) => {
                let process = self.processes.iter_mut().find(|p| p.pasid == pasid && p.life == Life::Alive);
                let page = Process::page_at(rings.1).expect("rings are in the process");
                process.expect("only the living have queues").zero(page);
            }
            None => {
                let at = GuestAddress(self.kernel_gpa(rings.1));
                self.ram.write(at, &[0; FRAME_BYTES]).expect("rings are in memory");
            }
        }
        self.functions[f].enable(q, user, rings);
    }

    /// Reads the completions of a queue.
    pub(crate) fn reap(&mut self, f: usize, q: usize) {
        let user = self.functions[f].queues[q].user;
        let p = user.and_then(|u| self.processes.iter().position(|p| p.pasid == u && p.life != Life::Dead));
        let never_enabled = self.functions[f].queues[q].rings.1 == 0 || (user.is_none() && q >= KERNEL_QUEUES);
        if self.functions[f].resetting || user.is_some() != p.is_some() || never_enabled {
            return;
        }
        let mut read = false;
        loop {
            let queue = self.functions[f].queues[q];
            let completion = self.read_completion(queue.rings.1 + u64::from(queue.head % RING) * COMPLETION, p);
            // CQ_TAIL is the device's, and may be of before the queue was enabled; the sequence number says what is
            // new.
            if completion.seq != queue.head.wrapping_add(1) {
                break;
            }
            self.functions[f].queues[q].head = queue.head.wrapping_add(1);
            self.complete((f, q), &completion);
            read = true;
        }
        if read {
            self.functions[f].consume(q);
        }
    }

    fn read_completion(&self, at: u64, user: Option<usize>) -> Completion {
        let mut bytes = [0; size_of::<Completion>()];
        match user {
            Some(p) => {
                let start = usize::try_from(at - BASE).expect("inside a process");
                bytes.copy_from_slice(&self.processes[p].bytes(start, size_of::<Completion>()));
            }
            None => self.ram.read(GuestAddress(self.kernel_gpa(at)), &mut bytes).expect("rings are in memory"),
        }
        Completion::read_from_bytes(&bytes).expect("it has the right size")
    }

    fn complete(&mut self, queue: (usize, usize), completion: &Completion) {
        let cookie = completion.cookie;
        self.log.event(format_args!(
            "complete {cookie}: {:?}, {:#x} done",
            Code::from_raw(completion.status),
            completion.bytes_done
        ));
        let Some(mut flight) = self.flights.remove(&cookie) else {
            self.log.fail(Checker::Once, format!("{cookie} completes, and is not under way"));
            return;
        };
        self.completed += 1;
        flight.excuses |= self.fruitless(&flight);
        self.log.check(Checker::Once, flight.queue == queue, || format!("{cookie} completes in another queue"));
        if let Some(code) = Code::from_raw(completion.status) {
            self.log.count(Group::Completion, flight::name(code));
        }
        let (checker, verdict) = flight.judge(completion);
        self.log.check(checker, verdict.is_ok(), || {
            format!("{cookie}, opcode {}: {}", flight.opcode, verdict.expect_err("it is wrong"))
        });
        self.land(cookie, flight, completion.bytes_done);
    }

    /// A flight is over: its memory is checked, and free for others.
    fn land(&mut self, cookie: u64, flight: Flight, done: u64) {
        let (p, id) = flight.process;
        if self.processes[p].id != id || self.processes[p].life == Life::Dead {
            return;
        }
        let verdict = flight.settle(&mut self.processes[p], done);
        self.log.check(Checker::Bytes, verdict.is_ok(), || {
            format!("{cookie}, opcode {}: {}", flight.opcode, verdict.expect_err("it is wrong"))
        });
        self.reserve(&flight, false);
        self.processes[p].lists.extend(flight.lists);
    }

    /// What is left of a queue that was stopped or reset will never complete.
    pub(crate) fn drop_flights(&mut self, mut meant: impl FnMut(&Flight) -> bool) {
        let gone: Vec<_> = self.flights.iter().filter(|(_, flight)| meant(flight)).map(|(&cookie, _)| cookie).collect();
        for cookie in gone {
            let flight = self.flights.remove(&cookie).expect("it was just found");
            self.log.event(format_args!("drop {cookie}"));
            let excused = (flight.excuses | self.fruitless(&flight)) & excuse::DROPPED != 0;
            self.log.count(Group::Completion, "dropped");
            self.log.check(Checker::Once, excused, || format!("{cookie} was lost without a reason"));
            self.dropped += 1;
            self.land(cookie, flight, 0);
        }
    }

    /// Gives flights a reason to fail.
    pub(crate) fn excuse(&mut self, what: u8, meant: impl Fn(&Flight) -> bool) {
        for flight in self.flights.values_mut().filter(|flight| meant(flight)) {
            flight.excuses |= what;
        }
    }

    /// Work gives up on a page when it was *served* often, and for long, and is not there: the unit says so of groups
    /// that its full queue had no room for.
    fn fruitless(&self, flight: &Flight) -> u8 {
        let lasted = self.step >= flight.since + PATIENCE_STEPS;
        let overflow = self.last_overflow > flight.since || self.unit.is_overflowing();
        let reasons = if lasted && overflow { excuse::FAULT } else { 0 };
        excuse::in_queue(flight.queue.1, reasons)
    }

    /// Gives all work of a function a reason to fail.
    pub(crate) fn excuse_function(&mut self, f: usize, what: u8) {
        for flight in self.flights.values_mut().filter(|flight| flight.queue.0 == f) {
            flight.excuses |= excuse::in_queue(flight.queue.1, what);
        }
    }

    /// The process on whose behalf a function uses a PASID.
    pub(crate) fn process_of(&self, f: usize, pasid: Pasid) -> Option<usize> {
        self.processes.iter().position(|p| p.pasid == pasid && p.bound[f] && p.tables.is_some())
    }
}

/// What a descriptor writes and how it ends if nothing is in its way.
fn outcome(
    process: &Process,
    opcode: u8,
    src: Option<(usize, usize)>,
    dst: Option<(usize, usize)>,
    operand: u64,
) -> (Vec<u8>, (Code, u64, u64)) {
    let bytes = |(start, len): (usize, usize)| &process.oracle[start..start + len];
    let (read, length) = (src.map_or(&[][..], bytes), src.or(dst).map_or(0, |(_, len)| len as u64));
    match opcode {
        opcode::COPY => (read.to_vec(), (Code::Success, length, 0)),
        opcode::FILL => {
            let pattern = operand.to_le_bytes().into_iter().cycle();
            (pattern.take(usize::try_from(length).expect("a range")).collect(), (Code::Success, length, 0))
        }
        opcode::COMPARE => {
            let other = dst.map_or(&[][..], bytes);
            match read.iter().zip(other).position(|(a, b)| a != b) {
                Some(n) => (Vec::new(), (Code::Mismatch, n as u64, n as u64)),
                None => (Vec::new(), (Code::Success, length, 0)),
            }
        }
        opcode::CRC32C => {
            let seed = u32::try_from(operand).expect("made to fit");
            (Vec::new(), (Code::Success, length, crc32c::crc32c_append(seed, read).into()))
        }
        _ => (Vec::new(), (Code::Success, 0, 0)),
    }
}

/// How many bytes of a range can be had before a page that is `bad`.
fn reach(process: &Process, range: Option<(usize, usize)>, bad: impl Fn(&Page) -> bool) -> u64 {
    let Some(range) = range else { return u64::MAX };
    match pages(range).find(|&page| bad(&process.pages[page])) {
        Some(page) => (page * FRAME_BYTES).saturating_sub(range.0) as u64,
        None => u64::MAX,
    }
}
