//! Floors: when entries were last invalidated.

/// Slots of a table of floors.
const SLOTS: usize = 4096;

/// Time, counted in cache events. 64 bits do not wrap in the life of a process.
#[derive(Debug, Default)]
pub(crate) struct Clock(u64);

impl Clock {
    /// A time later than every one before.
    pub(crate) fn tick(&mut self) -> u64 {
        self.0 += 1;
        self.0
    }
}

/// When the entries under each tag of one kind were last invalidated.
#[derive(Debug)]
pub(crate) struct Floors {
    slots: Box<[u64; SLOTS]>,
}

impl Floors {
    pub(crate) fn new() -> Self {
        Self { slots: Box::new([0; SLOTS]) }
    }

    #[allow(clippy::cast_possible_truncation, reason = "12 bits fit any usize")]
    fn slot(tag: u64) -> usize {
        // Fibonacci hashing: neighbouring tags, which are the usual ones, get different slots.
        (tag.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 52) as usize
    }

    /// Invalidates the entries under `tag` that were born before `now`.
    pub(crate) fn raise(&mut self, tag: u64, now: u64) {
        self.slots[Self::slot(tag)] = now;
    }

    /// Entries under `tag` count if they were born after this time.
    #[inline]
    pub(crate) fn of(&self, tag: u64) -> u64 {
        self.slots[Self::slot(tag)]
    }
}
