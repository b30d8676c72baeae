//! The tables that a kernel would make for the unit, in the benchmark's memory.
use std::sync::atomic::Ordering;

use svadev_fabric::{Bdf, Pasid};
use svadev_tables::{DeviceTables, FrameRange, PageTables, TableMemory};

use super::memory::Shared;

/// The domain of every PASID here.
pub(crate) const DOMAIN: u16 = 1;

impl TableMemory for &Shared {
    fn load(&self, at: u64) -> u64 {
        u64::from_le(self.word(at).load(Ordering::Relaxed))
    }

    fn exchange(&self, at: u64, value: u64) -> u64 {
        u64::from_le(self.word(at).swap(value.to_le(), Ordering::AcqRel))
    }
}

/// Tables of one unit, and one address space that every PASID has.
#[derive(Debug)]
pub(crate) struct Tables<'m> {
    frames: FrameRange,
    devices: DeviceTables<&'m Shared>,
    space: PageTables<&'m Shared>,
}

impl<'m> Tables<'m> {
    /// Empty tables, out of the frames in `free`, whose memory is zero.
    pub(crate) fn new(memory: &'m Shared, free: std::ops::Range<u64>) -> Self {
        let mut frames = FrameRange::new(free);
        let devices = DeviceTables::new(memory, &mut frames);
        let space = PageTables::new(memory, &mut frames, 5);
        Self { frames, devices, space }
    }

    /// Lets a function have `pasids` PASIDs from 0 on, all with the same page tables. PASID 0 is that of its requests
    /// without one (RID_PASID, VT-d 4.1 §9.4).
    pub(crate) fn attach(&mut self, bdf: Bdf, pasids: u32) {
        self.devices.attach(&mut self.frames, bdf);
        let binding = self.space.binding(DOMAIN, None);
        for pasid in 0..pasids {
            self.devices.set_pasid(&mut self.frames, bdf, Pasid::from_low_bits(pasid.into()), binding);
        }
    }

    /// Maps the pages of `1 << size_log2` bytes (12, 21 or 30) that cover `len` bytes at `iova` to `gpa`, writable.
    pub(crate) fn map(&mut self, iova: u64, gpa: u64, len: u64, size_log2: u8) {
        for offset in (0..len).step_by(1 << size_log2) {
            self.space.map(&mut self.frames, iova + offset, gpa + offset, size_log2, true);
        }
    }

    /// Sets accessed and dirty everywhere, so that a walk has nothing to write. Returns the address of the root table.
    pub(crate) fn finish(self) -> u64 {
        self.space.set_accessed_and_dirty();
        self.devices.root()
    }
}
