//! Processes of the mock guest: their memory, and what must be in it.
use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

use svadev_fabric::Pasid;
use svadev_memory::{GuestAddress, GuestMemory, Ram};

use crate::checker::Checker;
use crate::frames::{FRAME, FRAME_BYTES, Frames, LARGE_USED};
use crate::log::Log;
use crate::tables::PageTables;

/// Every process has its pages at the same addresses, so that nothing but the PASID tells them apart.
pub const BASE: u64 = 0x7f00_4000_0000 - LARGE as u64 * FRAME;
/// Pages 2f and 2f + 1 are the rings of the process's queue on function f.
pub const LIST_PAGE: usize = 4;
/// The first page that descriptors work on.
pub const DATA: usize = 5;
/// A page that is never writable.
pub const READ_ONLY: usize = 33;
/// The first page at a boundary of 1 GiB: this one and all after it may become one large page.
pub const LARGE: usize = 40;
/// Pages of a process.
pub const PAGES: usize = 52;

const _: () = assert!(BASE.is_multiple_of(FRAME) && (PAGES - LARGE) as u64 == LARGE_USED);

/// What a process may do with a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vma {
    /// Nothing: there is no such page.
    None,
    /// Read.
    ReadOnly,
    /// Read and write.
    Writable,
}

/// Where a page is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In a frame.
    Frame(u64),
    /// In [`Page::swap`], or never written.
    Out,
}

/// A page.
#[derive(Debug)]
pub struct Page {
    /// What it is for.
    pub vma: Vma,
    /// Where it is.
    pub place: Place,
    /// Its contents on disk, right as long as its table entry is not dirty.
    pub swap: Option<Box<[u8; FRAME_BYTES]>>,
    /// Somebody is changing the mapping: faults have to wait.
    pub busy: bool,
    /// A fault waited, and has not been served: the next change waits for that, or a page that always changes is never
    /// there.
    pub wanted: bool,
    /// Its contents when writing was forbidden: they cannot change before it is allowed again.
    pub frozen: Option<Box<[u8; FRAME_BYTES]>>,
    /// Descriptors that read it.
    pub readers: u32,
    /// Descriptors that write it.
    pub writers: u32,
}

/// A large page, from [`LARGE`] on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Large {
    /// Log2 of its bytes: 21 or 30.
    pub size_log2: u8,
    /// Its frame, in which each page has its place.
    pub frame: u64,
}

/// Whether a fault was served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Served {
    /// The page is there.
    Yes,
    /// Later: its mapping is being changed.
    Busy,
    /// Never: there is no such page, or it may not be written.
    Never,
}

/// What a process is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    /// It submits work.
    Alive,
    /// It is being torn down.
    Dying,
    /// Its memory is gone.
    Dead,
}

/// A process of the mock guest: its memory, and what must be in it.
#[derive(Debug)]
pub struct Process {
    /// Its name in the log: never used again.
    pub id: u64,
    /// Its PASID, on every function it is bound to.
    pub pasid: Pasid,
    /// Its domain.
    pub domain_id: u16,
    /// Its page tables; `None` when they were freed.
    pub tables: Option<PageTables>,
    /// Its pages, from [`BASE`] on.
    pub pages: Vec<Page>,
    /// The last of them are one large page.
    pub large: Option<Large>,
    /// What must be in them, as far as no descriptor is under way.
    pub oracle: Vec<u8>,
    /// On which functions the PASID is bound.
    pub bound: Vec<bool>,
    /// What it is doing.
    pub life: Life,
    /// Free pieces of the list page.
    pub lists: BTreeSet<usize>,
    ram: Arc<Ram>,
    log: Arc<Log>,
}

/// Pieces of the list page, each for one list.
pub const LISTS: usize = 32;

impl Process {
    /// A process with no page in memory, whose data is `oracle`.
    pub fn new(
        id: u64,
        (pasid, domain_id): (Pasid, u16),
        (tables, functions): (PageTables, usize),
        oracle: Vec<u8>,
        (ram, log): (Arc<Ram>, Arc<Log>),
    ) -> Self {
        let page = |n: usize| Page {
            vma: if n == READ_ONLY { Vma::ReadOnly } else { Vma::Writable },
            place: Place::Out,
            swap: Some(Box::new(oracle[n * FRAME_BYTES..][..FRAME_BYTES].try_into().expect("a whole page"))),
            busy: false,
            wanted: false,
            frozen: None,
            readers: 0,
            writers: 0,
        };
        Self {
            id,
            pasid,
            domain_id,
            tables: Some(tables),
            pages: (0..PAGES).map(page).collect(),
            large: None,
            oracle,
            bound: vec![false; functions],
            life: Life::Alive,
            lists: (0..LISTS).collect(),
            ram,
            log,
        }
    }

    /// Address of a page.
    pub fn address(page: usize) -> u64 {
        BASE + page as u64 * FRAME
    }

    /// The page of an address, if it is one of a process.
    pub fn page_at(address: u64) -> Option<usize> {
        let page = usize::try_from(address.checked_sub(BASE)? / FRAME).ok()?;
        (page < PAGES).then_some(page)
    }

    /// Where the entry is that maps a page, and the log2 of the bytes that it maps; all pages that it maps.
    pub fn leaf(&self, page: usize) -> (u64, u8, Range<usize>) {
        match self.large {
            Some(large) if page >= LARGE => (Self::address(LARGE), large.size_log2, LARGE..PAGES),
            _ => (Self::address(page), 12, page..page + 1),
        }
    }

    /// Makes a page present, as the kernel's fault handler does.
    pub fn fault_in(&mut self, frames: &mut Frames, page: usize, write: bool) -> Served {
        let (address, size_log2, span) = self.leaf(page);
        let Some(tables) = &mut self.tables else { return Served::Never };
        let entry = &mut self.pages[page];
        let possible = entry.vma == Vma::Writable || (entry.vma == Vma::ReadOnly && !write);
        if possible && entry.busy {
            return Served::Busy;
        }
        entry.wanted = false;
        if !possible {
            return Served::Never;
        }
        match entry.place {
            Place::Frame(_) => {
                if write && !tables.get(address, size_log2).writable() {
                    // A right that is given needs no invalidation.
                    tables.change(address, size_log2, |e| e.with_writable(true));
                    span.for_each(|page| self.thaw(page));
                }
            }
            Place::Out => {
                let frame = frames.allocate();
                let zeros = [0; FRAME_BYTES];
                let bytes = entry.swap.as_deref().unwrap_or(&zeros);
                self.ram.write(GuestAddress(frame), bytes).expect("frames are in memory");
                // Read faults map read-only now and then, as for a page that is shared.
                tables.map(
                    frames,
                    address,
                    frame,
                    12,
                    entry.vma == Vma::Writable && (write || !page.is_multiple_of(3)),
                );
                entry.place = Place::Frame(frame);
            }
        }
        Served::Yes
    }

    /// Checks that nobody wrote to a page since writing was forbidden.
    pub fn thaw(&mut self, page: usize) {
        if let Place::Frame(frame) = self.pages[page].place {
            check_frozen(&self.ram, &self.log, &mut self.pages[page], frame, self.id, page);
        }
    }

    /// The processor writes, on behalf of the process. `false`, and nothing done, where a page is busy.
    pub fn write(&mut self, frames: &mut Frames, address: u64, bytes: &[u8]) -> bool {
        let Some(page) = Self::page_at(address) else { return false };
        assert!(address % FRAME + bytes.len() as u64 <= FRAME, "the processor writes one page at a time");
        if self.fault_in(frames, page, true) != Served::Yes {
            return false;
        }
        let Place::Frame(frame) = self.pages[page].place else { unreachable!("the page was just made present") };
        let tables = self.tables.as_ref().expect("the page is mapped");
        let (leaf, size_log2, _) = self.leaf(page);
        tables.change(leaf, size_log2, |e| e.with_accessed(true).with_dirty(true));
        self.ram.write(GuestAddress(frame + address % FRAME), bytes).expect("frames are in memory");
        true
    }

    /// A page that is in a frame is so no more. A clean page is on disk already.
    pub fn write_out(&mut self, page: usize, dirty: bool) {
        let bytes = self.contents(page);
        let entry = &mut self.pages[page];
        if let Some(swap) = entry.swap.as_deref().filter(|_| !dirty) {
            self.log.check(Checker::Dirty, *swap == bytes, || format!("page {page} was written to and is clean"));
        } else {
            entry.swap = Some(Box::new(bytes));
        }
        entry.place = Place::Out;
    }

    /// Zeroes a page wherever it is, as if the process had done so before anything else happened to it.
    pub fn zero(&mut self, page: usize) {
        let page = &mut self.pages[page];
        let zeros = [0; FRAME_BYTES];
        if let Place::Frame(frame) = page.place {
            self.ram.write(GuestAddress(frame), &zeros).expect("frames are in memory");
        }
        for copy in [&mut page.swap, &mut page.frozen].into_iter().flatten() {
            **copy = zeros;
        }
    }

    /// What is in the page now, wherever that is.
    pub fn contents(&self, page: usize) -> [u8; FRAME_BYTES] {
        match self.pages[page].place {
            Place::Frame(frame) => read_frame(&self.ram, frame),
            Place::Out => self.pages[page].swap.as_deref().copied().unwrap_or([0; FRAME_BYTES]),
        }
    }

    /// What is in memory now at `start..start + len`, counted from [`BASE`].
    pub fn bytes(&self, start: usize, len: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(len);
        let mut at = start;
        while at < start + len {
            let (page, offset) = (at / FRAME_BYTES, at % FRAME_BYTES);
            let take = (FRAME_BYTES - offset).min(start + len - at);
            bytes.extend_from_slice(&self.contents(page)[offset..offset + take]);
            at += take;
        }
        bytes
    }
}

/// The contents of a frame.
pub fn read_frame(ram: &Ram, frame: u64) -> [u8; FRAME_BYTES] {
    let mut bytes = [0; FRAME_BYTES];
    ram.read(GuestAddress(frame), &mut bytes).expect("frames are in memory");
    bytes
}

fn check_frozen(ram: &Ram, log: &Log, page: &mut Page, frame: u64, id: u64, number: usize) {
    if let Some(frozen) = page.frozen.take() {
        let same = *frozen == read_frame(ram, frame);
        log.check(Checker::FrozenPage, same, || {
            format!("page {number} of process {id} changed while it was read-only")
        });
    }
}
