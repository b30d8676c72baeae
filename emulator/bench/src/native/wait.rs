//! Waiting for another processor.
use std::sync::atomic::{Ordering, fence};
use std::time::Duration;

/// How long anything may take before it counts as broken.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A wait for another processor, which lets others have this one when it takes long.
#[derive(Debug, Default)]
pub(crate) struct Spin(u32);

impl Spin {
    /// Waits a moment. Returns true now and then: time to look at a clock, which costs as much as many moments.
    pub(crate) fn once(&mut self) -> bool {
        std::hint::spin_loop();
        self.0 = self.0.wrapping_add(1);
        let long = self.0.is_multiple_of(1 << 10);
        if long {
            std::thread::yield_now();
        }
        long
    }
}

/// Orders a store to a doorbell word before the load of `ARMED` (`svadev_spec::device::doorbell`).
pub(crate) fn full_fence() {
    fence(Ordering::SeqCst);
}
