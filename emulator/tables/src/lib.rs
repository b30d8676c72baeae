//! What a kernel keeps in memory for a VT-d unit: root, context and PASID tables of scalable mode, and page tables.
//!
//! It is for tests, benchmarks and the simulated kernel. It knows the layouts of `svadev-spec` and shares no code with
//! the unit's walk. It must not know the unit, nor who owns the memory: [`TableMemory`] and [`FrameSource`] are
//! arguments. Changes are made as a kernel makes them: each is one store of 8 bytes, and the one that makes an entry
//! present comes last.
//!
//! The path: [`DeviceTables::attach`] makes a function's context entry. [`PageTables::map`] maps pages.
//! [`PageTables::binding`] and [`DeviceTables::set_pasid`] give a PASID of the function these pages.
//! [`context_entry`], [`pasid_entry`] and [`leaf_entry`] find or make the place of one entry, for tests that write any
//! bits into it.
//!
//! Where new things go: a kind of address space in [`Stages`], a change of a page in [`PageTables`].
use svadev_fabric::{Bdf, Pasid};
use svadev_memory::{GuestAddress, GuestMemory};
use svadev_spec::vtd::tables::{
    CONTEXT_ENTRY_SIZE, ContextLow, FirstStageEntry, PASID_TABLE_BITS, PASID_TABLE_ENTRY_SIZE, PasidDirectoryEntry,
    PasidTable0, PasidTable1, PasidTable2, ROOT_ENTRY_SIZE, RootEntry, SecondStageEntry, translation_type,
};

/// Bytes of a frame.
pub const FRAME: u64 = 0x1000;

/// Memory as the processor that changes the tables sees it, in aligned words of 64 bits. Addresses are in memory.
pub trait TableMemory {
    /// Loads a word.
    fn load(&self, at: u64) -> u64;

    /// Replaces a word in one step and returns what it was. The unit may set accessed and dirty bits at any time.
    fn exchange(&self, at: u64, value: u64) -> u64;

    /// Stores a word. The unit sees it after all that was stored before.
    fn store(&self, at: u64, value: u64) {
        self.exchange(at, value);
    }
}

impl<M: GuestMemory> TableMemory for M {
    fn load(&self, at: u64) -> u64 {
        self.load_u64(GuestAddress(at)).expect("tables are in memory")
    }

    fn exchange(&self, at: u64, value: u64) -> u64 {
        let mut current = self.load(at);
        loop {
            match self.compare_exchange_u64(GuestAddress(at), current, value).expect("tables are in memory") {
                Ok(old) => return old,
                Err(found) => current = found,
            }
        }
    }
}

/// Where frames for tables come from. They are filled with zeros.
pub trait FrameSource {
    /// Takes `count` frames in a row that are never given back; returns the address of the first.
    fn contiguous(&mut self, count: u64) -> u64;

    /// Takes one frame.
    fn allocate(&mut self) -> u64 {
        self.contiguous(1)
    }

    /// Gives a frame back that [`allocate`](Self::allocate) returned.
    fn free(&mut self, frame: u64);
}

/// Frames of a range, one after the other. None of them is used again.
#[derive(Clone, Debug)]
pub struct FrameRange {
    next: u64,
    end: u64,
}

impl FrameRange {
    /// The frames of a range of addresses.
    pub fn new(range: std::ops::Range<u64>) -> Self {
        Self { next: range.start, end: range.end }
    }

    /// The first frame that was not handed out.
    pub fn next(&self) -> u64 {
        self.next
    }
}

impl FrameSource for FrameRange {
    fn contiguous(&mut self, count: u64) -> u64 {
        let first = self.next;
        self.next += count * FRAME;
        assert!(self.next <= self.end, "there are too few frames for the tables");
        first
    }

    fn free(&mut self, _: u64) {}
}

/// Physical addresses have at most 52 bits.
const FRAME_MASK: u64 = 0xf_ffff_ffff_f000;

/// The table that the entry at `at` points to. If the entry is not present, a new table takes its place, with the bits
/// of `open` beside its address.
fn table_below(memory: &(impl TableMemory + ?Sized), frames: &mut impl FrameSource, at: u64, open: u64) -> u64 {
    let entry = memory.load(at);
    if entry != 0 {
        return entry & FRAME_MASK;
    }
    let frame = frames.allocate();
    memory.store(at, open | frame);
    frame
}

/// Where the entry of a function is in the tables below a root table. Makes the context table if there is none.
pub fn context_entry(memory: &impl TableMemory, frames: &mut impl FrameSource, root: u64, bdf: Bdf) -> u64 {
    let half = if bdf.device() < 16 { 0 } else { 8 };
    let at = root + ROOT_ENTRY_SIZE * u64::from(bdf.bus()) + half;
    let table = table_below(memory, frames, at, RootEntry::new().with_present(true).into());
    table + CONTEXT_ENTRY_SIZE * u64::from(bdf.devfn() % 128)
}

/// Where the entry of a PASID is in the tables below a directory. Makes the PASID table if there is none.
pub fn pasid_entry(memory: &impl TableMemory, frames: &mut impl FrameSource, directory: u64, pasid: u32) -> u64 {
    let at = directory + 8 * u64::from(pasid >> PASID_TABLE_BITS);
    let table = table_below(memory, frames, at, PasidDirectoryEntry::new().with_present(true).into());
    table + PASID_TABLE_ENTRY_SIZE * u64::from(pasid & ((1 << PASID_TABLE_BITS) - 1))
}

/// Where the entry is that maps a page of `1 << size_log2` bytes at `iova`, in page tables of `levels` levels. Makes
/// the tables on the way, with the bits of `open` in the entries that lead to them.
pub fn leaf_entry(
    memory: &impl TableMemory,
    frames: &mut impl FrameSource,
    (root, levels): (u64, u8),
    iova: u64,
    size_log2: u8,
    open: u64,
) -> u64 {
    let (mut table, mut shift) = (root, 12 + 9 * (levels - 1));
    while shift > size_log2 {
        table = table_below(memory, frames, table + 8 * (iova >> shift & 511), open);
        shift -= 9;
    }
    table + 8 * (iova >> shift & 511)
}

/// PASID directories have room for 2^20 PASIDs: 2^14 entries, PDTS 7.
const DIRECTORY_FRAMES: u64 = 32;

/// Makes a context entry present: ATS, PASID and page requests on, RID_PASID 0, room for 2^20 PASIDs. Returns the PASID
/// directory.
pub fn fill_context_entry(memory: &impl TableMemory, frames: &mut impl FrameSource, entry: u64) -> u64 {
    let directory = frames.contiguous(DIRECTORY_FRAMES);
    let low = ContextLow::new()
        .with_present(true)
        .with_device_tlb_enable(true)
        .with_pasid_enable(true)
        .with_page_request_enable(true)
        .with_pasid_directory_size(7)
        .with_frame(directory >> 12);
    // The second quadword is RID_PASID 0 and not privileged; the entry becomes present with its first.
    memory.store(entry + 8, 0);
    memory.store(entry, low.into());
    directory
}

/// First-stage page tables of one address space (VT-d 4.1 §9.7).
#[derive(Debug)]
pub struct PageTables<M> {
    memory: M,
    root: u64,
    /// 4 or 5; less where these were detached from others.
    levels: u8,
    /// What a second stage takes away from each address that these tables hold: 0 where there is none.
    offset: u64,
    /// Every table of it, the root first.
    tables: Vec<u64>,
}

impl<M: TableMemory + Clone> PageTables<M> {
    /// Empty tables of 4 or 5 levels.
    pub fn new(memory: M, frames: &mut impl FrameSource, levels: u8) -> Self {
        Self::nested(memory, frames, levels, 0)
    }

    /// As [`new`](Self::new), in front of a second stage that maps `offset` plus an address to that address.
    pub fn nested(memory: M, frames: &mut impl FrameSource, levels: u8, offset: u64) -> Self {
        assert!(levels == 4 || levels == 5, "first-stage tables have 4 or 5 levels");
        let root = frames.allocate();
        Self { memory, root, levels, offset, tables: vec![root] }
    }

    /// Address of the root table, as the stage behind these tables knows it.
    pub fn root(&self) -> u64 {
        self.root + self.offset
    }

    /// 4 or 5.
    pub fn levels(&self) -> u8 {
        self.levels
    }

    /// Where the entry is that maps a page of `1 << size_log2` bytes at `iova`; `None` where a table on the way is
    /// missing.
    fn entry(&self, iova: u64, size_log2: u8) -> Option<u64> {
        let mut table = self.root;
        let mut shift = 12 + 9 * (self.levels - 1);
        while shift > size_log2 {
            let entry = FirstStageEntry::from(self.memory.load(table + 8 * (iova >> shift & 511)));
            if !entry.present() {
                return None;
            }
            assert!(!entry.page_size(), "a larger page is in the way of {iova:#x}");
            table = (entry.frame() << 12) - self.offset;
            shift -= 9;
        }
        Some(table + 8 * (iova >> shift & 511))
    }

    /// Maps a page of `1 << size_log2` bytes (12, 21 or 30) at `iova` to `gpa`, for user mode, neither accessed nor
    /// dirty. Returns the entry that was there.
    pub fn map(
        &mut self,
        frames: &mut impl FrameSource,
        iova: u64,
        gpa: u64,
        size_log2: u8,
        writable: bool,
    ) -> FirstStageEntry {
        assert!(matches!(size_log2, 12 | 21 | 30), "first-stage pages are of 4 KiB, 2 MiB or 1 GiB");
        assert!((iova | gpa).is_multiple_of(1 << size_log2), "pages are naturally aligned");
        let mut table = self.root;
        let mut shift = 12 + 9 * (self.levels - 1);
        while shift > size_log2 {
            let at = table + 8 * (iova >> shift & 511);
            let entry = FirstStageEntry::from(self.memory.load(at));
            assert!(!entry.page_size(), "a larger page is in the way of {iova:#x}");
            table = if entry.present() {
                (entry.frame() << 12) - self.offset
            } else {
                let next = frames.allocate();
                self.tables.push(next);
                let open = FirstStageEntry::new().with_present(true).with_writable(true).with_user(true);
                self.memory.store(at, open.with_frame((next + self.offset) >> 12).into());
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
        self.memory.exchange(table + 8 * (iova >> shift & 511), leaf.into()).into()
    }

    /// The entry of a page of `1 << size_log2` bytes, all zero where there is none.
    pub fn get(&self, iova: u64, size_log2: u8) -> FirstStageEntry {
        self.entry(iova, size_log2).map_or(FirstStageEntry::new(), |at| self.memory.load(at).into())
    }

    /// Sets accessed and dirty in every entry, as if each page had been written: a walk has nothing to write.
    pub fn set_accessed_and_dirty(&self) {
        for at in self.tables.iter().flat_map(|table| (0..512).map(move |n| table + 8 * n)) {
            let entry = FirstStageEntry::from(self.memory.load(at));
            if entry.present() {
                self.memory.store(at, entry.with_accessed(true).with_dirty(true).into());
            }
        }
    }

    /// Replaces the entry of a page, whose tables must be there, by what `change` makes of it; returns the old one.
    pub fn change(
        &self,
        iova: u64,
        size_log2: u8,
        change: impl FnOnce(FirstStageEntry) -> FirstStageEntry,
    ) -> FirstStageEntry {
        let at = self.entry(iova, size_log2).expect("only mapped pages are changed");
        let new = change(self.memory.load(at).into());
        self.memory.exchange(at, new.into()).into()
    }

    /// Clears the entry of a page; returns what it was, accessed and dirty included.
    pub fn clear(&self, iova: u64, size_log2: u8) -> FirstStageEntry {
        self.change(iova, size_log2, |_| FirstStageEntry::new())
    }

    /// Takes out the tables that map `1 << size_log2` bytes (21 or 30) at `iova` by pages of 4 KiB, as tables of their
    /// own: the unit may walk them, and set bits in them, until the invalidation is over. `None` where there are none.
    pub fn detach(&mut self, iova: u64, size_log2: u8) -> Option<Self> {
        assert!(matches!(size_log2, 21 | 30), "behind an entry that can be of a larger page");
        let at = self.entry(iova, size_log2)?;
        let old = FirstStageEntry::from(self.memory.exchange(at, 0));
        assert!(!old.page_size(), "a larger page is in the way of {iova:#x}");
        if !old.present() {
            return None;
        }
        let root = (old.frame() << 12) - self.offset;
        let mut tables = vec![root];
        if size_log2 == 30 {
            let entries = (0..512).map(|n| FirstStageEntry::from(self.memory.load(root + 8 * n)));
            for entry in entries.filter(|entry| entry.present()) {
                assert!(!entry.page_size(), "a larger page is in the way of {iova:#x}");
                tables.push((entry.frame() << 12) - self.offset);
            }
        }
        self.tables.retain(|table| !tables.contains(table));
        let levels = (size_log2 - 12) / 9;
        Some(Self { memory: self.memory.clone(), root, levels, offset: self.offset, tables })
    }

    /// Gives the tables themselves back: only after the invalidations that cover them.
    pub fn free(self, frames: &mut impl FrameSource) {
        for table in self.tables {
            frames.free(table);
        }
    }
}

/// Root, context and PASID tables of one unit (VT-d 4.1 §9.2, §9.4 to §9.6).
#[derive(Debug)]
pub struct DeviceTables<M> {
    memory: M,
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

impl<M: TableMemory + Clone> PageTables<M> {
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
pub fn second_stage(
    memory: &impl TableMemory,
    frames: &mut impl FrameSource,
    iova: u64,
    bytes: u64,
    size_log2: u8,
) -> u64 {
    assert!(matches!(size_log2, 12 | 21 | 30), "second-stage pages are of 4 KiB, 2 MiB or 1 GiB");
    let root = frames.allocate();
    let open = SecondStageEntry::new().with_read(true).with_write(true);
    for page in (0..bytes).step_by(1 << size_log2) {
        let at = leaf_entry(memory, frames, (root, 4), iova + page, size_log2, open.into());
        memory.store(at, open.with_page_size(size_log2 > 12).with_frame(page >> 12).into());
    }
    root
}

impl<M: TableMemory> DeviceTables<M> {
    /// An empty root table.
    pub fn new(memory: M, frames: &mut impl FrameSource) -> Self {
        Self { memory, root: frames.allocate() }
    }

    /// Address of the root table.
    pub fn root(&self) -> u64 {
        self.root
    }

    /// Copies the root table to another frame, which becomes the root table; returns the old one.
    pub fn move_root(&mut self, frames: &mut impl FrameSource) -> u64 {
        let new = frames.allocate();
        for at in (0..FRAME).step_by(8) {
            self.memory.store(new + at, self.memory.load(self.root + at));
        }
        std::mem::replace(&mut self.root, new)
    }

    /// Makes the context entry of a function: ATS, PASID and page requests on, RID_PASID 0.
    pub fn attach(&mut self, frames: &mut impl FrameSource, bdf: Bdf) {
        let entry = context_entry(&self.memory, frames, self.root, bdf);
        fill_context_entry(&self.memory, frames, entry);
    }

    fn pasid_entry(&mut self, frames: &mut impl FrameSource, bdf: Bdf, pasid: Pasid) -> u64 {
        let entry = context_entry(&self.memory, frames, self.root, bdf);
        let low = ContextLow::from(self.memory.load(entry));
        assert!(low.present(), "{bdf} is attached");
        pasid_entry(&self.memory, frames, low.frame() << 12, pasid.get())
    }

    /// Fills in a PASID table entry that is not present, the quadword with P last.
    pub fn set_pasid(&mut self, frames: &mut impl FrameSource, bdf: Bdf, pasid: Pasid, to: Binding) {
        let at = self.pasid_entry(frames, bdf, pasid);
        assert_eq!(self.memory.load(at) & 1, 0, "PASID {pasid} of {bdf} is in use");
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
        self.memory.store(at + 16, first.into());
        self.memory.store(at + 8, domain.into());
        self.memory.store(at, low.into());
    }

    /// Clears P, and sets FPD where faults of what is under way are expected.
    pub fn clear_pasid(
        &mut self,
        frames: &mut impl FrameSource,
        bdf: Bdf,
        pasid: Pasid,
        fault_processing_disable: bool,
    ) {
        let at = self.pasid_entry(frames, bdf, pasid);
        self.memory.store(at, PasidTable0::new().with_fault_processing_disable(fault_processing_disable).into());
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use svadev_memory::Ram;

    use super::*;

    #[test]
    fn a_binding_leads_from_the_root_table_to_the_page() {
        let ram = Arc::new(Ram::new(1 << 20).expect("a megabyte can be had"));
        let mut frames = FrameRange::new(FRAME..1 << 20);
        let (bdf, pasid) = (Bdf(0x00a8), Pasid::from_low_bits(77));
        let mut devices = DeviceTables::new(Arc::clone(&ram), &mut frames);
        let mut pages = PageTables::new(Arc::clone(&ram), &mut frames, 5);
        devices.attach(&mut frames, bdf);
        pages.map(&mut frames, 0x7f_ffff_f000, 0x5000, 12, true);
        devices.set_pasid(&mut frames, bdf, pasid, pages.binding(3, None));

        let context = context_entry(&ram, &mut frames, devices.root(), bdf);
        let directory = ContextLow::from(ram.load(context)).frame() << 12;
        let entry = pasid_entry(&ram, &mut frames, directory, pasid.get());
        assert!(PasidTable0::from(ram.load(entry)).present());
        assert_eq!(PasidTable1::from(ram.load(entry + 8)).domain_id(), 3);
        let root = PasidTable2::from(ram.load(entry + 16)).first_stage_frame() << 12;
        let before = frames.next();
        let leaf = leaf_entry(&ram, &mut frames, (root, 5), 0x7f_ffff_f000, 12, 1);
        assert_eq!(FirstStageEntry::from(ram.load(leaf)), pages.get(0x7f_ffff_f000, 12));
        assert_eq!(frames.next(), before, "every table was there");
        pages.set_accessed_and_dirty();
        let entry = pages.clear(0x7f_ffff_f000, 12);
        assert!(entry.accessed() && entry.dirty() && entry.frame() == 5);
        assert!(!pages.get(0x7f_ffff_f000, 12).present());
    }
}
