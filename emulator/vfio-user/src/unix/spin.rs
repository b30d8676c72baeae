//! How long to look for the next message before going to sleep.
use std::time::Duration;

/// The window's length when it opens.
const FIRST: Duration = Duration::from_micros(10);

/// How long the thread polls before it sleeps. Accesses come in bursts, and waking a thread costs more than answering.
/// So the window grows when a slightly longer poll would have caught the message, and shrinks when waits are long.
#[derive(Debug)]
pub(super) struct Spin {
    window: Duration,
    max: Duration,
}

impl Spin {
    pub(super) fn new(max: Duration) -> Self {
        Self { window: FIRST.min(max), max }
    }

    pub(super) fn window(&self) -> Duration {
        self.window
    }

    /// A message came after `wait`.
    pub(super) fn waited(&mut self, wait: Duration) {
        if wait <= self.window {
            return;
        }
        self.window = if wait <= self.max {
            (self.window * 2).clamp(FIRST.min(self.max), self.max)
        } else if self.window > FIRST {
            self.window / 2
        } else {
            Duration::ZERO
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const US: Duration = Duration::from_micros(1);

    #[test]
    fn bursts_open_the_window_and_long_waits_close_it() {
        let mut spin = Spin::new(100 * US);
        for _ in 0..10 {
            spin.waited(90 * US);
        }
        assert_eq!(spin.window(), 100 * US, "never beyond the maximum");
        spin.waited(5 * US);
        assert_eq!(spin.window(), 100 * US, "a wait inside the window changes nothing");
        for _ in 0..10 {
            spin.waited(Duration::from_secs(1));
        }
        assert_eq!(spin.window(), Duration::ZERO);
        spin.waited(50 * US);
        assert_eq!(spin.window(), FIRST);
    }

    #[test]
    fn a_maximum_of_zero_never_spins() {
        let mut spin = Spin::new(Duration::ZERO);
        for wait in [0, 1, 1000] {
            spin.waited(wait * US);
            assert_eq!(spin.window(), Duration::ZERO);
        }
    }
}
