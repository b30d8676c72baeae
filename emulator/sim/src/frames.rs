//! Page frames of the mock guest. A frame that was freed is poisoned, and must still be so when it is used again: whoever
//! wrote to it meanwhile used a translation after its invalidation was over.
use std::sync::Arc;

use svadev_memory::{GuestAddress, GuestMemory, Ram};

use crate::checker::Checker;
use crate::log::Log;

/// Bytes of a frame.
pub const FRAME: u64 = 0x1000;
/// As an array length.
pub const FRAME_BYTES: usize = 0x1000;
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
}

impl Frames {
    /// The frames of `first..end`, zeroed.
    pub fn new(ram: Arc<Ram>, log: Arc<Log>, first: u64, end: u64) -> Self {
        Self { ram, log, next: first, end, freed: Vec::new() }
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
        self.ram.write(GuestAddress(frame), &[POISON; FRAME_BYTES]).expect("frames are in memory");
        self.freed.push(frame);
    }

    /// Checks every freed frame.
    pub fn verify_all(&self) {
        for &frame in &self.freed {
            self.verify(frame);
        }
    }

    fn verify(&self, frame: u64) {
        let mut bytes = [0; FRAME_BYTES];
        self.ram.read(GuestAddress(frame), &mut bytes).expect("frames are in memory");
        self.log.check(Checker::FreedFrame, bytes == [POISON; FRAME_BYTES], || {
            format!("frame {frame:#x} was written to after it was freed")
        });
    }
}
