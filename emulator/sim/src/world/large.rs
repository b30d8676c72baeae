//! Large pages: 2 MiB or 1 GiB instead of the small pages from [`LARGE`] on, made of them, changed as one, and split
//! again.
use svadev_memory::{GuestAddress, GuestMemory};
use svadev_spec::vtd::tables::FirstStageEntry;

use super::World;
use super::tasks::LARGE_ORDER;
use crate::coverage::Group;
use crate::frames::{FRAME, FRAME_BYTES};
use crate::process::{LARGE, Large, PAGES, Place, Process, Vma};
use crate::task::{Change, Kind, Remap, Task};

impl World {
    pub(crate) fn collapse(&mut self, p: usize) {
        let order = self.rng.pick(&[LARGE_ORDER, 2 * LARGE_ORDER]);
        self.tasks.push(Task::new(Kind::Map(Remap::new(p, Change::Collapse, LARGE, order))));
    }

    /// Takes the small pages away, with their tables, if each of them may be part of a large page and a frame is free.
    pub(super) fn take_small(&mut self, remap: &mut Remap) {
        let process = &mut self.processes[remap.p];
        let fit = process.pages[LARGE..].iter().all(|page| !page.busy && !page.wanted && page.vma == Vma::Writable);
        if process.large.is_some() || !fit {
            return;
        }
        let size_log2 = 12 + remap.order;
        let Some(frame) = self.frames.allocate_large(size_log2) else { return };
        self.log.count(Group::Fault, remap.change.name());
        self.log.event(format_args!("collapse pages of process {} into {} bytes", process.id, 1u64 << size_log2));
        for page in LARGE..PAGES {
            process.pages[page].busy = true;
            process.thaw(page);
        }
        let tables = process.tables.as_mut().expect("an alive process has tables");
        remap.tables = tables.detach(Process::address(LARGE), size_log2);
        remap.frame = Some(frame);
        remap.taken.push((LARGE, FirstStageEntry::new()));
    }

    /// Takes rights away from a large page. It cannot be unmapped, nor always evicted, moved or protected: then it is
    /// split.
    pub(super) fn take_large(&mut self, remap: &mut Remap) {
        let process = &mut self.processes[remap.p];
        let large = process.large.expect("the caller looked");
        if process.pages[LARGE..].iter().any(|page| page.busy || page.wanted) {
            return;
        }
        if remap.change == Change::Unmap || self.rng.chance(400) {
            remap.change = Change::Split;
        }
        if remap.change == Change::Migrate {
            let Some(frame) = self.frames.allocate_large(large.size_log2) else { return };
            remap.frame = Some(frame);
        }
        (remap.page, remap.order) = (LARGE, large.size_log2 - 12);
        self.log.count(
            Group::Path,
            match remap.change {
                Change::Evict => "large page evicted",
                Change::Migrate => "large page moved",
                Change::Protect => "large page protected",
                Change::Split => "large page split",
                Change::Unmap | Change::Collapse => unreachable!("not of a large page"),
            },
        );
        self.log.event(format_args!("{:?} the large page of process {}", remap.change, process.id));
        for page in LARGE..PAGES {
            process.pages[page].busy = true;
            if remap.change != Change::Protect {
                process.thaw(page);
            }
        }
        let tables = process.tables.as_ref().expect("an alive process has tables");
        let (address, size_log2, _) = process.leaf(LARGE);
        let old = match remap.change {
            Change::Protect => tables.change(address, size_log2, |e| e.with_writable(false)),
            _ => tables.clear(address, size_log2),
        };
        remap.taken.push((LARGE, old));
    }

    /// The invalidation is over: nobody uses the old mappings any more.
    pub(super) fn finish_large(&mut self, remap: &mut Remap) {
        let Some((_, old)) = remap.taken.pop() else { return };
        self.processes[remap.p].pages[LARGE..].iter_mut().for_each(|page| page.busy = false);
        match remap.change {
            Change::Collapse => self.finish_collapse(remap),
            Change::Split => self.finish_split(remap.p, old),
            Change::Migrate => self.finish_migrate(remap, old),
            Change::Protect => self.freeze(remap.p),
            Change::Evict => {
                let process = &mut self.processes[remap.p];
                (LARGE..PAGES).for_each(|page| process.write_out(page, old.dirty()));
                self.give_back(remap.p);
            }
            Change::Unmap => unreachable!("not of a large page"),
        }
    }

    fn finish_collapse(&mut self, remap: &mut Remap) {
        let frame = remap.frame.take().expect("it was allocated before");
        let (mut writable, mut dirty) = (true, false);
        for page in LARGE..PAGES {
            let process = &mut self.processes[remap.p];
            let bytes = process.contents(page);
            if let Place::Frame(small) = process.pages[page].place {
                let tables = remap.tables.as_ref().expect("what is mapped has tables");
                let old = tables.get(Process::address(page), 12);
                writable &= old.writable();
                dirty |= old.dirty();
                process.write_out(page, old.dirty());
                self.frames.free(small);
            }
            self.place(remap.p, page, frame, &bytes);
        }
        if let Some(tables) = remap.tables.take() {
            tables.free(&mut self.frames);
        }
        let process = &mut self.processes[remap.p];
        let large = Large { size_log2: 12 + remap.order, frame };
        let tables = process.tables.as_mut().expect("pages are freed before tables");
        tables.map(&mut self.frames, Process::address(LARGE), frame, large.size_log2, writable);
        tables.change(Process::address(LARGE), large.size_log2, |e| e.with_dirty(e.dirty() || dirty));
        process.large = Some(large);
        if !writable {
            self.freeze(remap.p);
        }
    }

    fn finish_split(&mut self, p: usize, old: FirstStageEntry) {
        let small: Vec<_> = (LARGE..PAGES).map(|page| (page, self.processes[p].contents(page))).collect();
        self.give_back(p);
        for (page, bytes) in small {
            let frame = self.frames.allocate();
            self.ram.write(GuestAddress(frame), &bytes).expect("frames are in memory");
            let process = &mut self.processes[p];
            let tables = process.tables.as_mut().expect("pages are freed before tables");
            tables.map(&mut self.frames, Process::address(page), frame, 12, old.writable());
            tables.change(Process::address(page), 12, |e| e.with_dirty(e.dirty() || old.dirty()));
            process.pages[page].place = Place::Frame(frame);
        }
    }

    fn finish_migrate(&mut self, remap: &mut Remap, old: FirstStageEntry) {
        let frame = remap.frame.take().expect("it was allocated before");
        let pages: Vec<_> = (LARGE..PAGES).map(|page| (page, self.processes[remap.p].contents(page))).collect();
        let size_log2 = self.give_back(remap.p);
        for (page, bytes) in pages {
            self.place(remap.p, page, frame, &bytes);
        }
        let process = &mut self.processes[remap.p];
        process.large = Some(Large { size_log2, frame });
        let tables = process.tables.as_mut().expect("pages are freed before tables");
        tables.map(&mut self.frames, Process::address(LARGE), frame, size_log2, old.writable());
        tables.change(Process::address(LARGE), size_log2, |e| e.with_dirty(e.dirty() || old.dirty()));
    }

    /// Puts a page to its place in a large frame.
    fn place(&mut self, p: usize, page: usize, large: u64, bytes: &[u8; FRAME_BYTES]) {
        let frame = large + (page - LARGE) as u64 * FRAME;
        self.ram.write(GuestAddress(frame), bytes).expect("frames are in memory");
        self.processes[p].pages[page].place = Place::Frame(frame);
    }

    /// Frees the large frame of a process, in which no page is from now on; its log2 of bytes.
    fn give_back(&mut self, p: usize) -> u8 {
        let process = &mut self.processes[p];
        let large = process.large.take().expect("it is a large page");
        process.pages[LARGE..].iter_mut().for_each(|page| page.place = Place::Out);
        self.frames.free_large(large.size_log2, large.frame);
        large.size_log2
    }

    /// The large page may not be written: it must not change.
    fn freeze(&mut self, p: usize) {
        let process = &mut self.processes[p];
        for page in LARGE..PAGES {
            process.pages[page].frozen = Some(Box::new(process.contents(page)));
        }
    }
}
