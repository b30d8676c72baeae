//! Page frames of the mock guest. A frame that was freed is poisoned, and must still be so when it is used again:
//! whoever wrote to it meanwhile used a translation after its invalidation was over.
use std::sync::Arc;

use svadev_memory::{GuestAddress, GuestMemory, Ram};
pub use svadev_tables::FRAME;
use svadev_tables::FrameSource;

use crate::checker::Checker;
use crate::log::Log;

/// As an array length.
pub const FRAME_BYTES: usize = 0x1000;
/// So many frames at the start of a large frame are used; nobody touches the others, and they cost nothing.
pub const LARGE_USED: u64 = 12;
/// What freed frames are filled with.
const POISON: u8 = 0xdb;

/// The allocator.
#[derive(Debug)]
pub struct Frames {
    ram: Arc<Ram>,
    log: Arc<Log>,
    /// Never used frames start here.
    next: u64,
    end: u64,
    /// Freed ones: the last freed is the first used again, which shows stale users soonest.
    freed: Vec<u64>,
    /// Free large frames, with their log2 of bytes, alike.
    large: Vec<(u8, u64)>,
}

impl FrameSource for Frames {
    fn contiguous(&mut self, count: u64) -> u64 {
        self.fresh(count)
    }

    fn allocate(&mut self) -> u64 {
        Self::allocate(self)
    }

    fn free(&mut self, frame: u64) {
        Self::free(self, frame);
    }
}

impl Frames {
    /// The frames of `first..end`, zeroed.
    pub fn new(ram: Arc<Ram>, log: Arc<Log>, first: u64, end: u64) -> Self {
        Self { ram, log, next: first, end, freed: Vec::new(), large: Vec::new() }
    }

    /// A zeroed frame.
    ///
    /// # Panics
    /// Where memory is used up: worlds are made with enough.
    pub fn allocate(&mut self) -> u64 {
        if let Some(frame) = self.freed.pop() {
            self.verify(frame);
            self.ram.write(GuestAddress(frame), &[0; FRAME_BYTES]).expect("frames are in memory");
            return frame;
        }
        self.fresh(1)
    }

    /// `count` zeroed frames in a row, aligned to their size, never used before and never freed.
    pub fn fresh(&mut self, count: u64) -> u64 {
        let first = self.next.next_multiple_of((count * FRAME).next_power_of_two());
        self.next = first + count * FRAME;
        assert!(self.next <= self.end, "the world's memory is used up");
        first
    }

    /// Nobody may use the frame any more.
    pub fn free(&mut self, frame: u64) {
        self.poison(frame);
        self.freed.push(frame);
    }

    /// A frame of `1 << size_log2` bytes, with poison in it; `None` where all are in use.
    pub fn allocate_large(&mut self, size_log2: u8) -> Option<u64> {
        let n = self.large.iter().rposition(|&(size, _)| size == size_log2)?;
        let (_, frame) = self.large.remove(n);
        self.verify_large(frame);
        Some(frame)
    }

    /// Nobody may use the frame of `1 << size_log2` bytes any more, or it is a new one.
    pub fn free_large(&mut self, size_log2: u8, frame: u64) {
        assert!(frame.is_multiple_of(1 << size_log2), "frames are naturally aligned");
        (0..LARGE_USED).for_each(|n| self.poison(frame + n * FRAME));
        self.large.push((size_log2, frame));
    }

    fn poison(&self, frame: u64) {
        self.ram.write(GuestAddress(frame), &[POISON; FRAME_BYTES]).expect("frames are in memory");
    }

    /// Checks every freed frame.
    pub fn verify_all(&self) {
        for &frame in &self.freed {
            self.verify(frame);
        }
        self.large.iter().for_each(|&(_, frame)| self.verify_large(frame));
    }

    fn verify_large(&self, frame: u64) {
        (0..LARGE_USED).for_each(|n| self.verify(frame + n * FRAME));
    }

    fn verify(&self, frame: u64) {
        let mut bytes = [0; FRAME_BYTES];
        self.ram.read(GuestAddress(frame), &mut bytes).expect("frames are in memory");
        self.log.check(Checker::FreedFrame, bytes == [POISON; FRAME_BYTES], || {
            format!("frame {frame:#x} was written to after it was freed")
        });
    }
}
