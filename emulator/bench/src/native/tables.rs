//! What a kernel keeps in guest memory for the unit: root, context and PASID tables, and one address space's page tables.
use std::sync::atomic::Ordering;

use svadev_fabric::Bdf;
use svadev_spec::vtd::tables::{
    CONTEXT_ENTRY_SIZE, ContextLow, FirstStageEntry, PASID_TABLE_BITS, PASID_TABLE_ENTRY_SIZE, PasidDirectoryEntry,
    PasidTable0, PasidTable1, PasidTable2, ROOT_ENTRY_SIZE, RootEntry, translation_type,
};

use super::memory::Shared;

const FRAME: u64 = 0x1000;
/// The domain of every PASID here.
pub(crate) const DOMAIN: u16 = 1;
/// Entries of a table of any level (Intel SDM vol. 3A §5.5.4).
const ENTRIES: u64 = 512;

/// Tables of one unit in memory that is the benchmark's alone: entries are stored before the unit looks at them.
#[derive(Debug)]
pub(crate) struct Tables<'m> {
    memory: &'m Shared,
    /// The next frame that was never used, and the end of those there are.
    free: std::ops::Range<u64>,
    root: u64,
    /// Root of the page tables that every PASID has.
    space: u64,
}

impl<'m> Tables<'m> {
    /// Empty tables, out of the frames in `free`, whose memory is zero.
    pub(crate) fn new(memory: &'m Shared, free: std::ops::Range<u64>) -> Self {
        let mut tables = Self { memory, free, root: 0, space: 0 };
        tables.root = tables.frames(1);
        tables.space = tables.frames(1);
        tables
    }

    /// Address of the root table.
    pub(crate) fn root(&self) -> u64 {
        self.root
    }

    fn frames(&mut self, count: u64) -> u64 {
        let first = self.free.start;
        self.free.start += count * FRAME;
        assert!(self.free.start <= self.free.end, "the benchmark has planned too few frames for its tables");
        first
    }

    fn load(&self, at: u64) -> u64 {
        u64::from_le(self.memory.word(at).load(Ordering::Relaxed))
    }

    fn store(&self, at: u64, value: u64) {
        self.memory.word(at).store(value.to_le(), Ordering::Release);
    }

    /// The table that the entry at `at` points to, made if there is none.
    fn below(&mut self, at: u64, make: impl FnOnce(u64) -> u64) -> u64 {
        let entry = self.load(at);
        if entry & 1 != 0 {
            return entry & !(FRAME - 1) & ((1 << 52) - 1);
        }
        let frame = self.frames(1);
        self.store(at, make(frame / FRAME));
        frame
    }

    /// Lets a function have `pasids` PASIDs from 0 on, all with the same page tables. PASID 0 is that of its requests without
    /// one (RID_PASID, VT-d 4.1 §9.4).
    pub(crate) fn attach(&mut self, bdf: Bdf, pasids: u32) {
        let half = if bdf.device() < 16 { 0 } else { 8 };
        let at = self.root + ROOT_ENTRY_SIZE * u64::from(bdf.bus()) + half;
        let table = self.below(at, |frame| RootEntry::new().with_present(true).with_frame(frame).into());
        // 2^14 directory entries, PDTS 7: room for every PASID.
        let directory = self.frames(32);
        let low = ContextLow::new()
            .with_present(true)
            .with_device_tlb_enable(true)
            .with_pasid_enable(true)
            .with_page_request_enable(true)
            .with_pasid_directory_size(7)
            .with_frame(directory / FRAME);
        self.store(table + CONTEXT_ENTRY_SIZE * u64::from(bdf.devfn() % 128), low.into());
        for pasid in 0..pasids {
            self.bind(directory, pasid);
        }
    }

    /// The PASID table entry of `pasid`: first stage, five levels (VT-d 4.1 §9.6).
    fn bind(&mut self, directory: u64, pasid: u32) {
        let at = directory + 8 * u64::from(pasid >> PASID_TABLE_BITS);
        let table = self.below(at, |frame| PasidDirectoryEntry::new().with_present(true).with_frame(frame).into());
        let entry = table + PASID_TABLE_ENTRY_SIZE * u64::from(pasid & ((1 << PASID_TABLE_BITS) - 1));
        let first = PasidTable2::new().with_first_stage_paging_mode(1).with_first_stage_frame(self.space / FRAME);
        let domain = PasidTable1::new().with_domain_id(DOMAIN).with_page_walk_snoop(true);
        let low = PasidTable0::new()
            .with_present(true)
            .with_address_width(2)
            .with_translation_type(translation_type::FIRST_STAGE);
        self.store(entry + 16, first.into());
        self.store(entry + 8, domain.into());
        self.store(entry, low.into());
    }

    /// Maps the pages of `1 << size_log2` bytes (12, 21 or 30) that cover `len` bytes at `iova` to `gpa`, writable, accessed and
    /// dirty: a walk has nothing to write.
    pub(crate) fn map(&mut self, iova: u64, gpa: u64, len: u64, size_log2: u8) {
        let size = 1u64 << size_log2;
        assert!((iova | gpa).is_multiple_of(size), "pages are naturally aligned");
        for offset in (0..len).step_by(usize::try_from(size).expect("a page's size")) {
            let iova = iova + offset;
            let mut table = self.space;
            let mut shift = 48;
            while shift > size_log2 {
                let open = FirstStageEntry::new().with_present(true).with_writable(true).with_user(true);
                let at = table + 8 * (iova >> shift & (ENTRIES - 1));
                table = self.below(at, |frame| open.with_accessed(true).with_frame(frame).into());
                shift -= 9;
            }
            let leaf = FirstStageEntry::new()
                .with_present(true)
                .with_writable(true)
                .with_user(true)
                .with_accessed(true)
                .with_dirty(true)
                .with_page_size(size_log2 > 12)
                .with_frame((gpa + offset) / FRAME);
            self.store(table + 8 * (iova >> shift & (ENTRIES - 1)), leaf.into());
        }
    }
}
