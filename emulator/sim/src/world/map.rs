//! Changes of a process's mappings: entries first, then invalidations, then what the kernel does with the pages.
use svadev_memory::{GuestAddress, GuestMemory};
use svadev_spec::vtd::tables::FirstStageEntry;

use super::World;
use super::tasks::LARGE_ORDER;
use crate::coverage::Group;
use crate::excuse;
use crate::frames::FRAME_BYTES;
use crate::mutant::Mutant;
use crate::process::{DATA, LARGE, Life, Place, Process, READ_ONLY, Vma, read_frame};
use crate::task::{Change, Kind, Remap, Task};

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
        // Now and then all of it, as if memory were short.
        let order = if change == Change::Evict && self.rng.chance(100) { 6 } else { order };
        if change == Change::Unmap && (page < DATA || page == READ_ONLY) {
            return;
        }
        self.tasks.push(Task::new(Kind::Map(Remap::new(p, change, page, order))));
    }

    pub(super) fn poll_map(&mut self, task: &mut Task) -> bool {
        let Kind::Map(remap) = &mut task.kind else { unreachable!("of this kind") };
        match task.stage {
            0 => {
                if self.processes[remap.p].life != Life::Alive {
                    return true;
                }
                self.take(remap);
                task.stage = 1;
                remap.taken.is_empty()
            }
            1 => {
                let descriptors = self.invalidations(remap);
                if self.mutant == Some(Mutant::FreeEarly) {
                    self.finish_map(remap);
                }
                self.submit(task, &descriptors, false);
                false
            }
            2 => {
                self.finish_map(remap);
                task.stage = 3;
                remap.change != Change::Unmap
            }
            // Unmapped: something new is mapped there when the last descriptor that knew the old one is gone.
            _ => {
                let (p, first) = (remap.p, remap.page);
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
    fn take(&mut self, remap: &mut Remap) {
        let (p, page) = (remap.p, remap.page);
        match remap.change {
            Change::Collapse => self.take_small(remap),
            _ if page >= LARGE && self.processes[p].large.is_some() => self.take_large(remap),
            _ => self.take_pages(remap),
        }
    }

    fn take_pages(&mut self, remap: &mut Remap) {
        let (p, change) = (remap.p, remap.change);
        let id = self.processes[p].id;
        for n in remap.pages() {
            let process = &mut self.processes[p];
            if process.pages[n].busy || process.pages[n].wanted || process.pages[n].vma == Vma::None {
                continue;
            }
            let present = matches!(process.pages[n].place, Place::Frame(_));
            if change == Change::Unmap {
                process.pages[n].vma = Vma::None;
                process.pages[n].swap = None;
            } else if !present {
                continue;
            }
            self.log.count(Group::Fault, change.name());
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
            remap.taken.push((n, old));
            if change == Change::Unmap {
                for flight in self.flights.values_mut().filter(|f| f.process == (p, id) && f.pages().any(|m| m == n)) {
                    flight.excuses |= excuse::FAULT;
                    flight.gone.insert(n);
                }
            }
        }
    }

    /// The invalidation is over: nobody uses the old mappings any more.
    fn finish_map(&mut self, remap: &mut Remap) {
        if remap.order >= LARGE_ORDER {
            self.finish_large(remap);
            return;
        }
        let (p, change) = (remap.p, remap.change);
        for (n, mut old) in std::mem::take(&mut remap.taken) {
            old.set_dirty(old.dirty() && (self.mutant != Some(Mutant::ForgetDirty) || n % 4 != 3));
            let process = &mut self.processes[p];
            let page = &mut process.pages[n];
            page.busy = false;
            let Place::Frame(frame) = page.place else { continue };
            match change {
                Change::Evict => {
                    process.write_out(n, old.dirty());
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
                Change::Collapse | Change::Split => unreachable!("these are of large pages"),
            }
        }
    }
}
