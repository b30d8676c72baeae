//! One function's view of guest-physical memory: regions are mapped and unmapped while other threads read.
use std::fmt;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use svadev_mutation::mutant;
use vm_memory::{Bytes, GuestAddress, VolatileMemory, VolatileMemoryError, VolatileSlice};

use crate::mappings::{Mapping, Words};
use crate::sigbus;
use crate::{GuestMemory, HostWindow, MappingError, Mappings, MemoryError, PAGE_SIZE};

#[cfg(test)]
mod tests;

const _: () = assert!(size_of::<usize>() == size_of::<u64>(), "offsets in a mapping are as wide as guest addresses");

/// Most regions in one map. A VMM makes some twenty. The bound limits the memory that a broken VMM can use here. It is
/// Linux's default for one container (`dma_entry_limit` of `vfio_iommu_type1`).
pub const MAX_REGIONS: usize = 65_535;

/// A region of guest memory, as in the VMM's `DMA_MAP`.
#[derive(Debug)]
pub struct Region {
    /// First byte's guest-physical address, a multiple of [`PAGE_SIZE`].
    pub gpa: GuestAddress,
    /// Bytes, a multiple of [`PAGE_SIZE`], not 0.
    pub size: u64,
    /// Where the region starts in the file, bytes, a multiple of [`PAGE_SIZE`].
    pub offset: u64,
    /// The function may read.
    pub read: bool,
    /// The function may write.
    pub write: bool,
    /// The file. If there is none, the region exists, but every access is [`MemoryError::Unreachable`].
    pub fd: Option<OwnedFd>,
}

/// Why a region was not mapped. The map is unchanged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MapError {
    /// No bytes.
    #[error("a region of no bytes")]
    Empty,
    /// Address, size or offset is not a multiple of [`PAGE_SIZE`].
    #[error("a region's address, size and offset must be multiples of {PAGE_SIZE}")]
    Unaligned,
    /// Address plus size, or offset plus size, does not fit 64 bits.
    #[error("a region's end does not fit 64 bits")]
    Overflow,
    /// Some of it is mapped already, at this address.
    #[error("guest-physical {0:#x} is mapped already")]
    Overlap(u64),
    /// There are [`MAX_REGIONS`].
    #[error("more than {MAX_REGIONS} regions")]
    TooMany,
    /// The file could not be mapped.
    #[error(transparent)]
    Mapping(#[from] MappingError),
}

/// Why nothing was unmapped. The map is unchanged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnmapError {
    /// No bytes.
    #[error("an unmap of no bytes")]
    Empty,
    /// Address or size is not a multiple of [`PAGE_SIZE`].
    #[error("an unmap's address and size must be multiples of {PAGE_SIZE}")]
    Unaligned,
    /// Address plus size does not fit 64 bits.
    #[error("an unmap's end does not fit 64 bits")]
    Overflow,
    /// No region is in the range.
    #[error("nothing is mapped there")]
    NotMapped,
    /// The range ends inside the region that starts here. Only whole regions are unmapped
    /// (`VFIO_IOMMU_UNMAP_DMA`, Linux `include/uapi/linux/vfio.h`).
    #[error("the range cuts the region at {0:#x} in two")]
    Splits(u64),
}

/// Regions that are no longer in the map, but whose host memory is still mapped, for holders of a [`HostWindow`].
///
/// Drop it when all holders have acknowledged that they hold none (`memory_changed`). Only then is the memory unmapped
/// and the file closed. Readers of the map itself need no such wait: they hold the view that they read through.
#[must_use = "dropping this unmaps the memory: first hear from every holder of windows"]
pub struct Retired {
    regions: Vec<Entry>,
}

impl Retired {
    /// Bytes that were unmapped.
    pub fn bytes(&self) -> u64 {
        self.regions.iter().map(|entry| entry.size).sum()
    }

    /// What was unmapped, in order of address: first address and bytes.
    pub fn ranges(&self) -> impl Iterator<Item = (GuestAddress, u64)> {
        self.regions.iter().map(|entry| (GuestAddress(entry.start), entry.size))
    }

    /// Nothing was unmapped.
    pub fn is_empty(&self) -> bool {
        self.regions.is_empty()
    }
}

impl fmt::Debug for Retired {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.ranges()).finish()
    }
}

/// A region's place in a file.
#[derive(Clone, Debug)]
struct Backing {
    mapping: Arc<Mapping>,
    offset: u64,
}

/// A region in the map.
#[derive(Clone, Debug)]
struct Entry {
    start: u64,
    size: u64,
    read: bool,
    write: bool,
    backing: Option<Backing>,
}

/// How many bytes into a mapping a 64-bit offset is.
#[allow(clippy::cast_possible_truncation, reason = "the two have the same width, asserted above")]
const fn in_mapping(offset: u64) -> usize {
    offset as usize
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Want {
    Read,
    Write,
    ReadWrite,
}

impl Entry {
    /// One past the last byte; `map` has checked that it fits.
    fn end(&self) -> u64 {
        self.start + self.size
    }

    fn contains(&self, gpa: u64) -> bool {
        gpa.wrapping_sub(self.start) < self.size
    }

    #[inline]
    fn backing(&self, gpa: u64, want: Want) -> Result<&Backing, MemoryError> {
        if (want != Want::Write && !self.read) || (want != Want::Read && !self.write && !mutant!(ReadOnlyRegionWritten))
        {
            return Err(MemoryError::Forbidden(gpa));
        }
        self.backing.as_ref().ok_or(MemoryError::Unreachable(gpa))
    }

    /// Calls `access` for the `len` bytes at `gpa`, all of them in this region. If any of the bytes is lost, before or
    /// during the access, that is an error.
    #[inline]
    fn access<T>(
        &self,
        gpa: u64,
        len: usize,
        want: Want,
        access: impl FnOnce(&VolatileSlice<'_>) -> Result<T, VolatileMemoryError>,
    ) -> Result<T, MemoryError> {
        let Backing { mapping, offset } = self.backing(gpa, want)?;
        let offset = in_mapping(offset + (gpa - self.start));
        let lost = || match mapping.lost_from() {
            lost if lost < offset + len && !mutant!(LostBytesUnnoticed) => {
                Err(MemoryError::Lost(gpa + lost.saturating_sub(offset) as u64))
            }
            _ => Ok(()),
        };
        if want != Want::Read {
            // A write to lost memory would allocate memory of this process.
            lost()?;
        }
        let result = access(&mapping.slice(offset, len)).map_err(|error| match error {
            VolatileMemoryError::Misaligned { .. } => MemoryError::Misaligned(gpa),
            other => unreachable!("the slice has exactly the bytes that are accessed: {other}"),
        })?;
        lost()?;
        Ok(result)
    }
}

/// A [`MemoryMap`] at one moment: its regions, sorted by address, none overlapping.
#[derive(Debug)]
pub struct MemoryView {
    regions: Vec<Entry>,
    /// Index of the largest region, 0 if there is none. It is the guest's RAM, which nearly every access is about.
    largest: usize,
    /// Its first address and its words, if they may be read: where tables are walked.
    words: Option<(u64, Words)>,
    /// No other view of any map has this number.
    generation: u64,
}

/// The next view's number. All maps share the counter, so that a view of one map is never taken for a view of another.
static NEXT_GENERATION: AtomicU64 = AtomicU64::new(1);

impl MemoryView {
    fn new(regions: Vec<Entry>) -> Self {
        let generation = NEXT_GENERATION.fetch_add(1, Ordering::Relaxed);
        let largest = (0..regions.len()).max_by_key(|&index| regions[index].size).unwrap_or(0);
        let words = regions.get(largest).filter(|entry| entry.read).and_then(|entry| {
            let Backing { mapping, offset } = entry.backing.as_ref()?;
            Some((entry.start, Words::new(mapping, in_mapping(*offset), in_mapping(entry.size))))
        });
        Self { regions, largest, words, generation }
    }

    /// Index of the first region that ends after `gpa`.
    #[inline]
    fn first_ending_after(&self, gpa: u64) -> usize {
        match self.regions.get(self.largest) {
            Some(entry) if entry.contains(gpa) => self.largest,
            _ => self.regions.partition_point(|entry| entry.end() <= gpa),
        }
    }

    #[inline]
    fn find(&self, gpa: u64) -> Result<&Entry, MemoryError> {
        match self.regions.get(self.first_ending_after(gpa)) {
            Some(entry) if entry.contains(gpa) => Ok(entry),
            _ => Err(MemoryError::NotMapped(gpa)),
        }
    }

    /// Splits `len` bytes from `gpa` at the borders of regions: region, address, and the piece's range in the whole.
    fn pieces(
        &self,
        gpa: GuestAddress,
        len: usize,
    ) -> impl Iterator<Item = Result<(&Entry, u64, std::ops::Range<usize>), MemoryError>> {
        let mut done = 0;
        let mut index = self.first_ending_after(gpa.0);
        std::iter::from_fn(move || {
            if done == len {
                return None;
            }
            // Cannot wrap: a region ends at or after the byte before this one, and its end fits.
            let at = gpa.0 + done as u64;
            let entry = match self.regions.get(index) {
                Some(entry) if entry.contains(at) => entry,
                _ => {
                    done = len;
                    return Some(Err(MemoryError::NotMapped(at)));
                }
            };
            let from = done;
            done += in_mapping((entry.end() - at).min((len - done) as u64));
            index += 1;
            Some(Ok((entry, at, from..done)))
        })
    }
}

/// The regions of one function. Readers never wait, not even during a change. Changes wait for each other.
#[derive(Debug)]
pub struct MemoryMap {
    mappings: Mappings,
    now: ArcSwap<MemoryView>,
    /// Number of the view in `now`, stored after it.
    generation: AtomicU64,
    /// Orders changes. Readers do not take it.
    changes: Mutex<()>,
}

impl MemoryMap {
    /// A map without regions, whose files will be shared through `mappings`.
    pub fn new(mappings: Mappings) -> Self {
        let view = MemoryView::new(Vec::new());
        let generation = AtomicU64::new(view.generation);
        Self { mappings, now: ArcSwap::from_pointee(view), generation, changes: Mutex::new(()) }
    }

    /// The map as it is now. The view does not change, and keeps its regions mapped.
    pub fn now(&self) -> Arc<MemoryView> {
        self.now.load_full()
    }

    /// Adds a region.
    pub fn map(&self, region: Region) -> Result<(), MapError> {
        let Region { gpa, size, offset, read, write, fd } = region;
        if size == 0 {
            return Err(MapError::Empty);
        }
        if !aligned(gpa.0 | size | offset) {
            return Err(MapError::Unaligned);
        }
        let end = gpa.0.checked_add(size).ok_or(MapError::Overflow)?;
        offset.checked_add(size).ok_or(MapError::Overflow)?;

        let _changes = self.changes.lock().unwrap_or_else(PoisonError::into_inner);
        let old = self.now.load();
        let index = old.first_ending_after(gpa.0);
        if let Some(next) = old.regions.get(index)
            && next.start < end
            && !mutant!(RegionOverlapUnchecked)
        {
            return Err(MapError::Overlap(next.start.max(gpa.0)));
        }
        if old.regions.len() >= MAX_REGIONS {
            return Err(MapError::TooMany);
        }
        let backing = match fd {
            Some(fd) => Some(Backing { mapping: self.mappings.get(fd.as_fd(), offset, size, write)?, offset }),
            None => None,
        };
        let mut regions = Vec::with_capacity(old.regions.len() + 1);
        regions.extend_from_slice(&old.regions[..index]);
        regions.push(Entry { start: gpa.0, size, read, write, backing });
        regions.extend_from_slice(&old.regions[index..]);
        self.publish(regions);
        Ok(())
    }

    /// Removes every region in `gpa..gpa + size`. The range must contain at least one region, and must not cut one.
    pub fn unmap(&self, gpa: GuestAddress, size: u64) -> Result<Retired, UnmapError> {
        if size == 0 {
            return Err(UnmapError::Empty);
        }
        if !aligned(gpa.0 | size) {
            return Err(UnmapError::Unaligned);
        }
        let end = gpa.0.checked_add(size).ok_or(UnmapError::Overflow)?;

        let _changes = self.changes.lock().unwrap_or_else(PoisonError::into_inner);
        let old = self.now.load();
        let first = old.first_ending_after(gpa.0);
        let last = old.regions.partition_point(|entry| entry.start < end);
        if first >= last {
            return Err(UnmapError::NotMapped);
        }
        for edge in [&old.regions[first], &old.regions[last - 1]] {
            if edge.start < gpa.0 || edge.end() > end {
                return Err(UnmapError::Splits(edge.start));
            }
        }
        let mut regions = old.regions.clone();
        let retired = regions.drain(first..last).collect();
        if !mutant!(UnmapKeepsRegion) {
            self.publish(regions);
        }
        Ok(Retired { regions: retired })
    }

    /// Removes every region.
    pub fn unmap_all(&self) -> Retired {
        let _changes = self.changes.lock().unwrap_or_else(PoisonError::into_inner);
        let old = self.now.load();
        if old.regions.is_empty() {
            return Retired { regions: Vec::new() };
        }
        self.publish(Vec::new());
        Retired { regions: old.regions.clone() }
    }

    /// A number that changes whenever a [`HostWindow`] may have become stale: with every change of the map, and with
    /// every loss to a truncated file. A window is good if this was read before [`GuestMemory::window`] and is the same
    /// now. After an access through a window, the same number says that the access saw no memory that was lost.
    pub fn generation(&self) -> u64 {
        // Both only grow, so their sum changes when either does.
        self.generation.load(Ordering::Acquire).wrapping_add(sigbus::losses())
    }

    /// The regions: first address, bytes, and whether there is a file behind them.
    pub fn regions(&self) -> Vec<(GuestAddress, u64, bool)> {
        let now = self.now.load();
        now.regions.iter().map(|e| (GuestAddress(e.start), e.size, e.backing.is_some())).collect()
    }

    #[cold]
    fn renew(&self, kept: &mut Option<Arc<MemoryView>>) {
        *kept = Some(self.now());
    }

    /// Publishes `regions`. The caller holds `changes`.
    fn publish(&self, regions: Vec<Entry>) {
        let view = MemoryView::new(regions);
        let generation = view.generation;
        self.now.store(Arc::new(view));
        // A reader that sees the new number sees the new view. A reader that sees the old number uses the old view, as
        // if the change came later.
        self.generation.store(generation, Ordering::Release);
    }
}

fn aligned(value: u64) -> bool {
    value.is_multiple_of(PAGE_SIZE as u64)
}

impl MemoryView {
    fn access<T>(
        &self,
        gpa: GuestAddress,
        len: usize,
        want: Want,
        access: impl FnOnce(&VolatileSlice<'_>) -> Result<T, VolatileMemoryError>,
    ) -> Result<T, MemoryError> {
        if !gpa.0.is_multiple_of(len as u64) {
            return Err(MemoryError::Misaligned(gpa.0));
        }
        // Naturally aligned and smaller than a page: never in two regions.
        self.find(gpa.0)?.access(gpa.0, len, want, access)
    }

    #[cold]
    fn load_u64_anywhere(&self, gpa: GuestAddress) -> Result<u64, MemoryError> {
        self.access(gpa, 8, Want::Read, |slice| {
            Ok(u64::from_le(slice.get_atomic_ref::<AtomicU64>(0)?.load(Ordering::Acquire)))
        })
    }
}

impl GuestMemory for MemoryView {
    type Kept = ();
    type View<'a> = &'a Self;

    fn view<'a>(&'a self, (): &'a mut ()) -> &'a Self {
        self
    }

    fn read(&self, gpa: GuestAddress, buf: &mut [u8]) -> Result<(), MemoryError> {
        for piece in self.pieces(gpa, buf.len()) {
            let (entry, at, range) = piece?;
            entry.access(at, range.len(), Want::Read, |slice| slice.read_slice(&mut buf[range], 0))?;
        }
        Ok(())
    }

    fn write(&self, gpa: GuestAddress, buf: &[u8]) -> Result<(), MemoryError> {
        for piece in self.pieces(gpa, buf.len()) {
            let (entry, at, range) = piece?;
            entry.access(at, range.len(), Want::Write, |slice| slice.write_slice(&buf[range], 0))?;
        }
        Ok(())
    }

    #[inline]
    fn load_u64(&self, gpa: GuestAddress) -> Result<u64, MemoryError> {
        if let Some((start, words)) = &self.words
            && let Some(value) = words.load(gpa.0.wrapping_sub(*start))
        {
            return Ok(value);
        }
        self.load_u64_anywhere(gpa)
    }

    fn store_u32(&self, gpa: GuestAddress, value: u32) -> Result<(), MemoryError> {
        self.access(gpa, 4, Want::Write, |slice| {
            slice.get_atomic_ref::<AtomicU32>(0)?.store(value.to_le(), Ordering::Release);
            Ok(())
        })
    }

    fn store_u64(&self, gpa: GuestAddress, value: u64) -> Result<(), MemoryError> {
        self.access(gpa, 8, Want::Write, |slice| {
            slice.get_atomic_ref::<AtomicU64>(0)?.store(value.to_le(), Ordering::Release);
            Ok(())
        })
    }

    fn compare_exchange_u64(&self, gpa: GuestAddress, current: u64, new: u64) -> Result<Result<u64, u64>, MemoryError> {
        self.access(gpa, 8, Want::ReadWrite, |slice| {
            Ok(slice
                .get_atomic_ref::<AtomicU64>(0)?
                .compare_exchange(current.to_le(), new.to_le(), Ordering::AcqRel, Ordering::Acquire)
                .map(u64::from_le)
                .map_err(u64::from_le))
        })
    }

    fn window(&self, gpa: GuestAddress) -> Result<HostWindow, MemoryError> {
        let entry = self.find(gpa.0)?;
        let backing = entry.backing.as_ref().ok_or(MemoryError::Unreachable(gpa.0))?;
        // If the file was truncated, the window ends where the file does.
        let left = (backing.mapping.lost_from() as u64).saturating_sub(backing.offset).min(entry.size);
        if gpa.0 - entry.start >= left {
            return Err(MemoryError::Lost(gpa.0));
        }
        Ok(HostWindow {
            host: backing.mapping.host(in_mapping(backing.offset)),
            gpa: GuestAddress(entry.start),
            len: left,
            readable: entry.read,
            writable: entry.write,
        })
    }
}

/// The last view of a [`MemoryMap`], to use again if the map has not changed. That costs one load; taking a new view
/// costs atomic read-modify-write operations, which stall the processor. As long as a view is kept, regions that were
/// unmapped meanwhile stay mapped.
#[derive(Debug, Default)]
pub struct KeptView(Option<Arc<MemoryView>>);

/// Each access uses the map as it is at that moment.
impl GuestMemory for MemoryMap {
    type Kept = KeptView;
    type View<'a> = &'a MemoryView;

    #[inline]
    fn view<'a>(&'a self, KeptView(kept): &'a mut KeptView) -> &'a MemoryView {
        let generation = self.generation.load(Ordering::Acquire);
        if kept.as_ref().is_none_or(|view| view.generation != generation && !mutant!(KeptViewNotRenewed)) {
            self.renew(kept);
        }
        kept.as_ref().expect("filled just now")
    }

    fn read(&self, gpa: GuestAddress, buf: &mut [u8]) -> Result<(), MemoryError> {
        self.now.load().read(gpa, buf)
    }

    fn write(&self, gpa: GuestAddress, buf: &[u8]) -> Result<(), MemoryError> {
        self.now.load().write(gpa, buf)
    }

    fn load_u64(&self, gpa: GuestAddress) -> Result<u64, MemoryError> {
        self.now.load().load_u64(gpa)
    }

    fn store_u32(&self, gpa: GuestAddress, value: u32) -> Result<(), MemoryError> {
        self.now.load().store_u32(gpa, value)
    }

    fn store_u64(&self, gpa: GuestAddress, value: u64) -> Result<(), MemoryError> {
        self.now.load().store_u64(gpa, value)
    }

    fn compare_exchange_u64(&self, gpa: GuestAddress, current: u64, new: u64) -> Result<Result<u64, u64>, MemoryError> {
        self.now.load().compare_exchange_u64(gpa, current, new)
    }

    fn window(&self, gpa: GuestAddress) -> Result<HostWindow, MemoryError> {
        self.now.load().window(gpa)
    }
}
