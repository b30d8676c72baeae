//! Builder of the tables that a unit walks: root, context and PASID tables of scalable mode, first-stage page tables. It shares
//! types with the walker and no code, and does changes the way a kernel does: each is one store of 8 bytes.
use std::sync::Arc;

use svadev_fabric::{Bdf, Pasid};
use svadev_memory::{GuestAddress, GuestMemory, Ram};
use svadev_spec::vtd::tables::{
    CONTEXT_ENTRY_SIZE, ContextLow, FirstStageEntry, PASID_TABLE_BITS, PASID_TABLE_ENTRY_SIZE, PasidDirectoryEntry,
    PasidTable0, PasidTable1, PasidTable2, ROOT_ENTRY_SIZE, RootEntry, SecondStageEntry, translation_type,
};

use crate::frames::{FRAME, Frames};

/// 64-bit words of guest memory.
#[derive(Clone, Debug)]
struct Words(Arc<Ram>);

impl Words {
    fn load(&self, at: u64) -> u64 {
        self.0.load_u64(GuestAddress(at)).expect("tables are in memory")
    }

    fn store(&self, at: u64, value: u64) {
        self.exchange(at, value);
    }

    /// The unit sets accessed and dirty bits meanwhile, so that a change takes what it finds.
    fn exchange(&self, at: u64, value: u64) -> u64 {
        let mut current = self.load(at);
        loop {
            match self.0.compare_exchange_u64(GuestAddress(at), current, value).expect("tables are in memory") {
                Ok(old) => return old,
                Err(found) => current = found,
            }
        }
    }
}

/// First-stage page tables of one address space (VT-d 4.1 §9.7).
#[derive(Debug)]
pub struct PageTables {
    words: Words,
    root: u64,
    /// 4 or 5; less where these were detached from others.
    levels: u8,
    /// What a second stage takes away from each address that these tables hold: 0 where there is none.
    offset: u64,
    /// Every table of it, the root first.
    tables: Vec<u64>,
}

impl PageTables {
    /// Empty tables of 4 or 5 levels.
    pub fn new(ram: Arc<Ram>, frames: &mut Frames, levels: u8) -> Self {
        Self::nested(ram, frames, levels, 0)
    }

    /// As [`new`](Self::new), in front of a second stage that maps `offset` plus an address to that address.
    pub fn nested(ram: Arc<Ram>, frames: &mut Frames, levels: u8, offset: u64) -> Self {
        assert!(levels == 4 || levels == 5, "first-stage tables have 4 or 5 levels");
        let root = frames.allocate();
        Self { words: Words(ram), root, levels, offset, tables: vec![root] }
    }

    /// Address of the root table, as the stage behind these tables knows it.
    pub fn root(&self) -> u64 {
        self.root + self.offset
    }

    /// 4 or 5.
    pub fn levels(&self) -> u8 {
        self.levels
    }

    /// Where the entry is that maps a page of `1 << size_log2` bytes at `iova`; `None` where a table on the way is missing.
    fn entry(&self, iova: u64, size_log2: u8) -> Option<u64> {
        let mut table = self.root;
        let mut shift = 12 + 9 * (self.levels - 1);
        while shift > size_log2 {
            let entry = FirstStageEntry::from(self.words.load(table + 8 * (iova >> shift & 511)));
            if !entry.present() {
                return None;
            }
            assert!(!entry.page_size(), "a larger page is in the way of {iova:#x}");
            table = (entry.frame() << 12) - self.offset;
            shift -= 9;
        }
        Some(table + 8 * (iova >> shift & 511))
    }

    /// Maps a page of `1 << size_log2` bytes (12, 21 or 30) at `iova` to `gpa`, for user mode, neither accessed nor dirty.
    /// Returns the entry that was there.
    pub fn map(&mut self, frames: &mut Frames, iova: u64, gpa: u64, size_log2: u8, writable: bool) -> FirstStageEntry {
        assert!(matches!(size_log2, 12 | 21 | 30), "first-stage pages are of 4 KiB, 2 MiB or 1 GiB");
        assert!((iova | gpa).is_multiple_of(1 << size_log2), "pages are naturally aligned");
        let mut table = self.root;
        let mut shift = 12 + 9 * (self.levels - 1);
        while shift > size_log2 {
            let at = table + 8 * (iova >> shift & 511);
            let entry = FirstStageEntry::from(self.words.load(at));
            assert!(!entry.page_size(), "a larger page is in the way of {iova:#x}");
            table = if entry.present() {
                (entry.frame() << 12) - self.offset
            } else {
                let next = frames.allocate();
                self.tables.push(next);
                let open = FirstStageEntry::new().with_present(true).with_writable(true).with_user(true);
                self.words.store(at, open.with_frame((next + self.offset) >> 12).into());
                next
            };
            shift -= 9;
        }
        let leaf = FirstStageEntry::new()
            .with_present(true)
            .with_writable(writable)
            .with_user(true)
            .with_page_size(size_log2 > 12)
            .with_frame((gpa + self.offset) >> 12);
        self.words.exchange(table + 8 * (iova >> shift & 511), leaf.into()).into()
    }

    /// The entry of a page of `1 << size_log2` bytes, all zero where there is none.
    pub fn get(&self, iova: u64, size_log2: u8) -> FirstStageEntry {
        self.entry(iova, size_log2).map_or(FirstStageEntry::new(), |at| self.words.load(at).into())
    }

    /// Replaces the entry of a page, whose tables must be there, by what `change` makes of it; returns the old one.
    pub fn change(
        &self,
        iova: u64,
        size_log2: u8,
        change: impl FnOnce(FirstStageEntry) -> FirstStageEntry,
    ) -> FirstStageEntry {
        let at = self.entry(iova, size_log2).expect("only mapped pages are changed");
        let new = change(self.words.load(at).into());
        self.words.exchange(at, new.into()).into()
    }

    /// Clears the entry of a page; returns what it was, accessed and dirty included.
    pub fn clear(&self, iova: u64, size_log2: u8) -> FirstStageEntry {
        self.change(iova, size_log2, |_| FirstStageEntry::new())
    }

    /// Takes out the tables that map `1 << size_log2` bytes (21 or 30) at `iova` by pages of 4 KiB, as tables of their own: the
    /// unit may walk them, and set bits in them, until the invalidation is over. `None` where there are none.
    pub fn detach(&mut self, iova: u64, size_log2: u8) -> Option<Self> {
        assert!(matches!(size_log2, 21 | 30), "behind an entry that can be of a larger page");
        let at = self.entry(iova, size_log2)?;
        let old = FirstStageEntry::from(self.words.exchange(at, 0));
        assert!(!old.page_size(), "a larger page is in the way of {iova:#x}");
        if !old.present() {
            return None;
        }
        let root = (old.frame() << 12) - self.offset;
        let mut tables = vec![root];
        if size_log2 == 30 {
            let entries = (0..512).map(|n| FirstStageEntry::from(self.words.load(root + 8 * n)));
            for entry in entries.filter(|entry| entry.present()) {
                assert!(!entry.page_size(), "a larger page is in the way of {iova:#x}");
                tables.push((entry.frame() << 12) - self.offset);
            }
        }
        self.tables.retain(|table| !tables.contains(table));
        let levels = (size_log2 - 12) / 9;
        Some(Self { words: self.words.clone(), root, levels, offset: self.offset, tables })
    }

    /// Gives the tables themselves back: only after the invalidations that cover them.
    pub fn free(self, frames: &mut Frames) {
        for table in self.tables {
            frames.free(table);
        }
    }
}

/// Root, context and PASID tables of one unit (VT-d 4.1 §9.2, §9.4 to §9.6).
#[derive(Debug)]
pub struct DeviceTables {
    words: Words,
    root: u64,
}

/// What a PASID table entry leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stages {
    /// First-stage tables of 4 or 5 levels at a root.
    First {
        /// Address of the root.
        root: u64,
        /// 4 or 5.
        levels: u8,
    },
    /// Second-stage tables of 4 levels at a root.
    Second(u64),
    /// First-stage tables, whose addresses go through second-stage tables of 4 levels.
    Nested {
        /// First-stage root, as the second stage knows it.
        root: u64,
        /// 4 or 5.
        levels: u8,
        /// Second-stage root.
        second: u64,
    },
    /// Addresses are those of memory.
    PassThrough,
}

/// A PASID's address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Binding {
    /// What translates.
    pub stages: Stages,
    /// Domain the caches tag it with.
    pub domain_id: u16,
}

impl PageTables {
    /// These tables in a domain, in front of a second stage if they were made for one.
    pub fn binding(&self, domain_id: u16, second: Option<u64>) -> Binding {
        let (root, levels) = (self.root(), self.levels);
        let stages = match second {
            Some(second) => Stages::Nested { root, levels, second },
            None => Stages::First { root, levels },
        };
        Binding { stages, domain_id }
    }
}

/// Maps `bytes` from `iova` on to memory from 0 on in new second-stage tables of 4 levels (VT-d 4.1 §9.8), by pages of
/// `1 << size_log2` bytes. Returns the root. `iova` is a multiple of 1 GiB.
pub fn second_stage(ram: &Arc<Ram>, frames: &mut Frames, iova: u64, bytes: u64, size_log2: u8) -> u64 {
    assert!(matches!(size_log2, 12 | 21 | 30), "second-stage pages are of 4 KiB, 2 MiB or 1 GiB");
    let words = Words(Arc::clone(ram));
    let root = frames.allocate();
    for page in (0..bytes).step_by(1 << size_log2) {
        let (mut table, mut shift) = (root, 39);
        while shift > size_log2 {
            let at = table + 8 * ((iova + page) >> shift & 511);
            let entry = SecondStageEntry::from(words.load(at));
            table = entry.frame() << 12;
            if !entry.read() {
                table = frames.allocate();
                let open = SecondStageEntry::new().with_read(true).with_write(true);
                words.store(at, open.with_frame(table >> 12).into());
            }
            shift -= 9;
        }
        let leaf = SecondStageEntry::new().with_read(true).with_write(true).with_page_size(size_log2 > 12);
        words.store(table + 8 * ((iova + page) >> shift & 511), leaf.with_frame(page >> 12).into());
    }
    root
}

/// PASID directories have room for 2^20 PASIDs: 2^14 entries, PDTS 7.
const DIRECTORY_FRAMES: u64 = 32;

impl DeviceTables {
    /// An empty root table.
    pub fn new(ram: Arc<Ram>, frames: &mut Frames) -> Self {
        Self { words: Words(ram), root: frames.allocate() }
    }

    /// Address of the root table.
    pub fn root(&self) -> u64 {
        self.root
    }

    fn table(&self, frames: &mut Frames, at: u64, make: impl FnOnce(u64) -> u64) -> u64 {
        let entry = self.words.load(at);
        if entry & 1 != 0 {
            return entry & !(FRAME - 1);
        }
        let frame = frames.allocate();
        self.words.store(at, make(frame >> 12));
        frame
    }

    /// Copies the root table to another frame, which becomes the root table; returns the old one.
    pub fn move_root(&mut self, frames: &mut Frames) -> u64 {
        let new = frames.allocate();
        for at in (0..FRAME).step_by(8) {
            self.words.store(new + at, self.words.load(self.root + at));
        }
        std::mem::replace(&mut self.root, new)
    }

    /// Makes the context entry of a function: ATS, PASID and page requests on, RID_PASID 0.
    pub fn attach(&mut self, frames: &mut Frames, bdf: Bdf) {
        let half = if bdf.device() < 16 { 0 } else { 8 };
        let at = self.root + ROOT_ENTRY_SIZE * u64::from(bdf.bus()) + half;
        let table = self.table(frames, at, |frame| RootEntry::new().with_present(true).with_frame(frame).into());
        let entry = table + CONTEXT_ENTRY_SIZE * u64::from(bdf.devfn() % 128);
        let directory = frames.fresh(DIRECTORY_FRAMES);
        let low = ContextLow::new()
            .with_present(true)
            .with_device_tlb_enable(true)
            .with_pasid_enable(true)
            .with_page_request_enable(true)
            .with_pasid_directory_size(7)
            .with_frame(directory >> 12);
        // The second quadword is RID_PASID 0 and not privileged; the entry becomes present with its first.
        self.words.store(entry + 8, 0);
        self.words.store(entry, low.into());
    }

    fn directory(&self, bdf: Bdf) -> u64 {
        let half = if bdf.device() < 16 { 0 } else { 8 };
        let table = self.words.load(self.root + ROOT_ENTRY_SIZE * u64::from(bdf.bus()) + half) & !(FRAME - 1);
        let low = ContextLow::from(self.words.load(table + CONTEXT_ENTRY_SIZE * u64::from(bdf.devfn() % 128)));
        assert!(low.present(), "{bdf} is attached");
        low.frame() << 12
    }

    fn pasid_entry(&mut self, frames: &mut Frames, bdf: Bdf, pasid: Pasid) -> u64 {
        let at = self.directory(bdf) + 8 * u64::from(pasid.get() >> PASID_TABLE_BITS);
        let present = |frame| PasidDirectoryEntry::new().with_present(true).with_frame(frame).into();
        let table = self.table(frames, at, present);
        table + PASID_TABLE_ENTRY_SIZE * u64::from(pasid.get() & ((1 << PASID_TABLE_BITS) - 1))
    }

    /// Fills in a PASID table entry that is not present, the quadword with P last.
    pub fn set_pasid(&mut self, frames: &mut Frames, bdf: Bdf, pasid: Pasid, to: Binding) {
        let at = self.pasid_entry(frames, bdf, pasid);
        assert_eq!(self.words.load(at) & 1, 0, "PASID {pasid} of {bdf} is in use");
        let domain = PasidTable1::new().with_domain_id(to.domain_id).with_page_walk_snoop(true);
        let first = |root: u64, levels: u8| {
            PasidTable2::new().with_first_stage_paging_mode(levels - 4).with_first_stage_frame(root >> 12)
        };
        // Second-stage tables have four levels, and their accessed and dirty bits are in use.
        let low = PasidTable0::new().with_present(true).with_address_width(2);
        let second = |root: u64| low.with_second_stage_frame(root >> 12).with_second_stage_accessed_dirty(true);
        let (low, first) = match to.stages {
            Stages::First { root, levels } => {
                (low.with_translation_type(translation_type::FIRST_STAGE), first(root, levels))
            }
            Stages::Second(root) => {
                (second(root).with_translation_type(translation_type::SECOND_STAGE), PasidTable2::new())
            }
            Stages::Nested { root, levels, second: under } => {
                (second(under).with_translation_type(translation_type::NESTED), first(root, levels))
            }
            Stages::PassThrough => (low.with_translation_type(translation_type::PASS_THROUGH), PasidTable2::new()),
        };
        self.words.store(at + 16, first.into());
        self.words.store(at + 8, domain.into());
        self.words.store(at, low.into());
    }

    /// Clears P, and sets FPD where faults of what is under way are expected.
    pub fn clear_pasid(&mut self, frames: &mut Frames, bdf: Bdf, pasid: Pasid, fault_processing_disable: bool) {
        let at = self.pasid_entry(frames, bdf, pasid);
        self.words.store(at, PasidTable0::new().with_fault_processing_disable(fault_processing_disable).into());
    }
}
