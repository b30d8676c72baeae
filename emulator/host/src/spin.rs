//! How long an engine without work looks for more before it sleeps. The time follows how often looking has found work.

/// Divisor of the longest spin: a spin is never shorter than this share, so that a change to a busy time is noticed.
const LEAST: u64 = 16;

/// The spin time of one engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Spin {
    most_ns: u64,
    now_ns: u64,
}

impl Spin {
    /// Spins of at most `most_ns`, which is also the first one.
    pub(crate) fn new(most_ns: u64) -> Self {
        Self { most_ns, now_ns: most_ns }
    }

    /// The time to look for work now, ns.
    pub(crate) fn limit_ns(self) -> u64 {
        self.now_ns
    }

    /// Notes that work came while the engine looked, or after `slept_ns` of sleep. If a longer look would have found
    /// it, the next look is longer. If even the longest would not, the next is shorter, and the CPU is free for others.
    pub(crate) fn work_came(&mut self, slept_ns: u64) {
        let least = self.most_ns / LEAST;
        let next = if slept_ns <= self.most_ns { self.now_ns.saturating_mul(2) } else { self.now_ns / 2 };
        self.now_ns = next.clamp(least, self.most_ns);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looking_in_vain_gets_shorter_and_pays_again_when_it_pays() {
        let mut spin = Spin::new(16_000);
        assert_eq!(spin.limit_ns(), 16_000);
        for expected in [8000, 4000, 2000, 1000, 1000] {
            spin.work_came(1_000_000);
            assert_eq!(spin.limit_ns(), expected);
        }
        spin.work_came(15_000);
        spin.work_came(0);
        assert_eq!(spin.limit_ns(), 4000);
        for _ in 0..9 {
            spin.work_came(0);
        }
        assert_eq!(spin.limit_ns(), 16_000);
        let mut none = Spin::new(0);
        none.work_came(0);
        assert_eq!(none.limit_ns(), 0);
    }
}
