//! How long an engine without work looks for more before it sleeps: as long as that has paid lately.

/// The share of the longest spin that is always tried, so that a busy time is noticed.
const LEAST: u64 = 16;

/// An engine's patience.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Spin {
    most_ns: u64,
    now_ns: u64,
}

impl Spin {
    /// Never longer than `most_ns`; begins with that.
    pub(crate) fn new(most_ns: u64) -> Self {
        Self { most_ns, now_ns: most_ns }
    }

    /// How long to look for work now, ns.
    pub(crate) fn limit_ns(self) -> u64 {
        self.now_ns
    }

    /// Work came while it looked, or after `slept_ns` of sleep. Where looking longer would have found it, it is longer
    /// next time; where even the longest would not, shorter: a processor is worth something to others.
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
