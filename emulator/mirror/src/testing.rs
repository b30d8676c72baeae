//! The driver's side of the protocol, for tests, the simulated world and fuzzing. It is also the shortest description
//! of what a driver must do, in the order in which it must be done.
//!
//! It works on the guest's memory and nothing else. What it cannot do is tell the device: registers and kicks are the
//! caller's.
use std::collections::BTreeMap;
use std::sync::Arc;

use svadev_memory::{GuestAddress, GuestMemory, MemoryError};
use svadev_spec::mirror::{
    ASID_BIT, Event, Header, INVALIDATE_ALL, INVALIDATE_TABLES, INVALIDATION_TAIL, Invalidation, MAGIC, Response,
    SPACES, SpaceEntry, TableEntry, VERSION,
};
use zerocopy::IntoBytes;

use crate::block::ControlBlock;
use crate::words::{Fence, GuestWords, Word, Words};

/// Whether an engine has acknowledged what is below `index`, or need not: one that is offline looks before it uses a
/// translation again. Asked after a post and a full fence; true once is true for good.
pub(crate) fn is_acknowledged(words: &impl Words, index: u64) -> bool {
    let online = words.load(Word::Online).expect("the driver's own memory");
    online == 0 || words.load(Word::InvalidationHead).expect("the driver's own memory") >= index
}

/// A wait for acknowledgements.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wait {
    index: u64,
    engines: Vec<usize>,
}

impl Wait {
    /// The engines that are still to acknowledge.
    pub fn engines(&self) -> &[usize] {
        &self.engines
    }
}

/// One address space as the driver keeps it.
#[derive(Clone, Copy, Debug)]
struct Space {
    root: u64,
    levels: u32,
    /// Index one past the last entry that was posted for it.
    last_posted: u64,
}

/// A driver. Sizes are those of a small header unless [`with_header`](Self::with_header) says otherwise.
#[derive(Debug)]
pub struct Driver<M: GuestMemory> {
    memory: Arc<M>,
    block: ControlBlock,
    tail: u64,
    /// Index of the next event to read, and one past the last response, by engine.
    rings: Vec<(u64, u64)>,
    spaces: BTreeMap<u32, Space>,
    /// Next free frame for tables, and the end of the memory for them.
    next: u64,
    end: u64,
    free: Vec<u64>,
}

impl<M: GuestMemory> Driver<M> {
    /// The header that tests use: small rings, so that they wrap soon.
    pub fn small_header(engines: u8) -> Header {
        Header {
            magic: MAGIC,
            version: VERSION,
            spaces_log2: 4,
            invalidations_log2: 3,
            events_log2: 2,
            responses_log2: 3,
            engines: engines.into(),
            reserved: [0; 6],
        }
    }

    /// Writes a control block at `base`, and keeps tables in the 4 KiB pages from `tables` to `end`.
    pub fn new(memory: Arc<M>, base: u64, engines: u8, tables: u64, end: u64) -> Result<Self, MemoryError> {
        Self::with_header(memory, base, Self::small_header(engines), tables, end)
    }

    /// The same with a header of the caller's.
    pub fn with_header(memory: Arc<M>, base: u64, header: Header, tables: u64, end: u64) -> Result<Self, MemoryError> {
        memory.write(GuestAddress(base), &vec![0; usize::try_from(header.bytes()).expect("a few MiB")])?;
        memory.write(GuestAddress(base), header.as_bytes())?;
        let engines = u8::try_from(header.engines).expect("a function has at most 255");
        let block = ControlBlock::read(&*memory, base, engines).expect("the header is in order");
        let rings = vec![(0, 0); usize::from(engines)];
        Ok(Self { memory, block, tail: 0, rings, spaces: BTreeMap::new(), next: tables, end, free: Vec::new() })
    }

    /// Guest-physical address of the control block, for MIRROR_BASE.
    pub fn base(&self) -> u64 {
        self.block.base()
    }

    /// Zeroes the rings and the engine blocks, as a driver does before it turns the mirror on again.
    pub fn restart(&mut self) -> Result<(), MemoryError> {
        let header = *self.block.header();
        let (base, spaces) = (self.base(), header.invalidations());
        let words = vec![0; usize::try_from(SPACES - INVALIDATION_TAIL).expect("a page")];
        self.memory.write(GuestAddress(base + INVALIDATION_TAIL), &words)?;
        let rest = vec![0; usize::try_from(header.bytes() - spaces).expect("a few MiB")];
        self.memory.write(GuestAddress(base + spaces), &rest)?;
        self.tail = 0;
        self.rings.fill((0, 0));
        self.spaces.values_mut().for_each(|space| space.last_posted = 0);
        Ok(())
    }

    fn words(&self, engine: usize) -> GuestWords<'_, M> {
        GuestWords::new(&*self.memory, &self.block, engine)
    }

    /// Makes an address space. `asid` has bit 19 set, and lies within the table.
    pub fn create(&mut self, asid: u32, five_levels: bool, generation: u16) -> Result<(), MemoryError> {
        let root = self.frame()?;
        let entry = SpaceEntry::new()
            .with_valid(true)
            .with_five_levels(five_levels)
            .with_root(root >> 12)
            .with_generation(generation & 0xfff);
        self.spaces.insert(asid, Space { root, levels: if five_levels { 5 } else { 4 }, last_posted: self.tail });
        self.memory.store_u64(self.space_at(asid), entry.into_bits())
    }

    /// Takes an address space out of the table, and posts that. Its tables are freed by [`free`](Self::free), after
    /// the wait. Whoever was parked is to be answered, or was aborted.
    pub fn destroy(&mut self, asid: u32) -> Result<Wait, MemoryError> {
        self.memory.store_u64(self.space_at(asid), 0)?;
        let all = Invalidation { asid, flags: INVALIDATE_ALL | INVALIDATE_TABLES, ..Invalidation::default() };
        self.post(all)
    }

    /// Frees the tables of an address space that was destroyed, after every engine has acknowledged that.
    pub fn free(&mut self, asid: u32) -> Result<(), MemoryError> {
        let Some(space) = self.spaces.remove(&asid) else { return Ok(()) };
        self.free_table(space.root, space.levels)
    }

    fn free_table(&mut self, table: u64, level: u32) -> Result<(), MemoryError> {
        for index in 0..512 {
            let entry = TableEntry::from_bits(self.memory.load_u64(GuestAddress(table + 8 * index))?);
            if level > 1 && entry.present() && !entry.large() {
                self.free_table(entry.frame() << 12, level - 1)?;
            }
        }
        self.free.push(table);
        Ok(())
    }

    fn space_at(&self, asid: u32) -> GuestAddress {
        GuestAddress(self.base() + SPACES + 8 * u64::from(asid & !ASID_BIT))
    }

    fn frame(&mut self) -> Result<u64, MemoryError> {
        let frame = match self.free.pop() {
            Some(frame) => frame,
            None if self.next < self.end => {
                self.next += 0x1000;
                self.next - 0x1000
            }
            None => return Err(MemoryError::NotMapped(self.end)),
        };
        self.memory.write(GuestAddress(frame), &[0; 0x1000])?;
        Ok(frame)
    }

    /// Address of the entry that maps `address` with pages of `size_log2`; makes the tables above it where `make`.
    fn entry_at(&mut self, asid: u32, address: u64, size_log2: u32, make: bool) -> Result<Option<u64>, MemoryError> {
        let Some(&Space { root, levels, .. }) = self.spaces.get(&asid) else { return Ok(None) };
        let mut table = root;
        let mut level = levels;
        loop {
            let shift = 12 + 9 * (level - 1);
            let at = table + 8 * (address >> shift & 0x1ff);
            let entry = TableEntry::from_bits(self.memory.load_u64(GuestAddress(at))?);
            if shift == size_log2 || entry.large() {
                return Ok(Some(at));
            }
            if entry.present() {
                table = entry.frame() << 12;
            } else if make {
                table = self.frame()?;
                let entry = TableEntry::new().with_present(true).with_writable(true).with_frame(table >> 12);
                self.memory.store_u64(GuestAddress(at), entry.into_bits())?;
            } else {
                return Ok(None);
            }
            level -= 1;
        }
    }

    /// Maps a page of `1 << size_log2` bytes (12, 21 or 30) at `address`. `page` is where it is, and what may be done.
    pub fn map(&mut self, asid: u32, address: u64, size_log2: u32, page: TableEntry) -> Result<(), MemoryError> {
        let entry = page.with_present(true).with_large(size_log2 > 12);
        match self.entry_at(asid, address, size_log2, true)? {
            Some(at) => self.memory.store_u64(GuestAddress(at), entry.into_bits()),
            None => Ok(()),
        }
    }

    /// What the tables say about an address: the entry that maps it.
    pub fn mapped(&mut self, asid: u32, address: u64) -> Result<Option<TableEntry>, MemoryError> {
        let Some(at) = self.entry_at(asid, address, 12, false)? else { return Ok(None) };
        let entry = TableEntry::from_bits(self.memory.load_u64(GuestAddress(at))?);
        Ok(entry.present().then_some(entry))
    }

    /// Clears the page around an address, and says whether there was one. The caller posts it.
    pub fn clear(&mut self, asid: u32, address: u64) -> Result<bool, MemoryError> {
        if self.mapped(asid, address)?.is_none() {
            return Ok(false);
        }
        let at = self.entry_at(asid, address, 12, false)?.expect("it was there just now");
        self.memory.store_u64(GuestAddress(at), 0)?;
        Ok(true)
    }

    /// The invalidate callback: clears what is mapped from `first` to `last`, posts, and says what to wait for.
    ///
    /// If nothing was mapped, nothing is posted. Then the wait is for what was posted before: an engine may not have
    /// acknowledged yet what another call has cleared.
    pub fn invalidate(&mut self, asid: u32, first: u64, last: u64) -> Result<Wait, MemoryError> {
        let mut cleared = false;
        let mut address = first & !0xfff;
        while address <= last {
            cleared |= self.clear(asid, address)?;
            let Some(next) = address.checked_add(0x1000) else { break };
            address = next;
        }
        if cleared {
            return self.post(Invalidation { asid, first, last, ..Invalidation::default() });
        }
        let index = self.spaces.get(&asid).map_or(0, |space| space.last_posted);
        Ok(self.wait_for(index))
    }

    /// Writes an entry of the invalidation ring. The driver holds the ring's lock here.
    pub fn post(&mut self, entry: Invalidation) -> Result<Wait, MemoryError> {
        let index = self.tail;
        let words = self.words(0);
        words.store_invalidation(index, &entry).expect("the driver's own memory");
        words.store(Word::InvalidationTail, index + 1).expect("the driver's own memory");
        words.full_fence(Fence::Post);
        self.tail = index + 1;
        if let Some(space) = self.spaces.get_mut(&entry.asid) {
            space.last_posted = self.tail;
        }
        Ok(self.wait_for(self.tail))
    }

    fn wait_for(&self, index: u64) -> Wait {
        let mut wait = Wait { index, engines: (0..self.rings.len()).collect() };
        self.is_over(&mut wait);
        wait
    }

    /// Whether every engine has acknowledged, or is offline.
    pub fn is_over(&self, wait: &mut Wait) -> bool {
        let index = wait.index;
        wait.engines.retain(|&engine| !is_acknowledged(&self.words(engine), index));
        wait.engines.is_empty()
    }

    /// Says whether somebody sleeps until an engine acknowledges. The driver looks once more before it sleeps.
    pub fn set_waiters(&self, waiters: u64) {
        let words = self.words(0);
        words.store(Word::Waiters, waiters).expect("the driver's own memory");
        words.full_fence(Fence::Driver);
    }

    /// The next event of an engine.
    pub fn event(&mut self, engine: usize) -> Result<Option<Event>, MemoryError> {
        let words = self.words(engine);
        let head = self.rings[engine].0;
        if words.load(Word::EventTail).expect("the driver's own memory") == head {
            return Ok(None);
        }
        let event = words.event(head).expect("the driver's own memory");
        words.store(Word::EventHead, head + 1).expect("the driver's own memory");
        words.full_fence(Fence::Driver);
        self.rings[engine].0 = head + 1;
        Ok(Some(event))
    }

    /// Answers whatever room there is, as a broken driver does.
    pub fn respond_anyhow(&mut self, engine: usize, token: u64, code: u32) {
        let words = self.words(engine);
        let tail = self.rings[engine].1;
        words.store_response(tail, &Response { token, code, reserved: 0 }).expect("the driver's own memory");
        words.store(Word::ResponseTail, tail + 1).expect("the driver's own memory");
        self.rings[engine].1 = tail + 1;
    }

    /// Answers an event. Whether the engine must be kicked: it is offline, and may not look by itself. `None`: there
    /// is no room in the ring yet.
    pub fn respond(&mut self, engine: usize, token: u64, code: u32) -> Option<bool> {
        let words = self.words(engine);
        let tail = self.rings[engine].1;
        let unread = tail - words.load(Word::ResponseHead).expect("the driver's own memory");
        if unread == 1 << self.block.header().responses_log2 {
            return None;
        }
        words.store_response(tail, &Response { token, code, reserved: 0 }).expect("the driver's own memory");
        words.store(Word::ResponseTail, tail + 1).expect("the driver's own memory");
        words.full_fence(Fence::Driver);
        let kick = words.load(Word::Online).expect("the driver's own memory") == 0;
        self.rings[engine].1 = tail + 1;
        Some(kick)
    }

    /// Writes any value to a word that the driver owns, as a broken driver does.
    pub fn spoil(&self, offset: u64, value: u64) -> Result<(), MemoryError> {
        self.memory.store_u64(GuestAddress(self.base() + offset), value)
    }

    /// Offset of an engine's block in the control block.
    pub fn engine_offset(&self, engine: usize) -> u64 {
        self.block.header().engine(engine as u64)
    }
}
