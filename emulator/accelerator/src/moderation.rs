//! When a queue's vector is raised: not more often than software asked for, and always once more after the last completion.

/// One queue's interrupts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Moderation {
    /// Least time between two interrupts, ns.
    interval_ns: u64,
    /// So many completions do not wait; 0 for any number.
    count: u32,
    /// Completions that want an interrupt and had none.
    pending: u32,
    /// Before this, ns, only `count` raises.
    quiet_until_ns: u64,
}

/// What is to be done about a queue's interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Due {
    /// Nothing waits for one.
    Nothing,
    /// Raise it now.
    Raise,
    /// Ask again at this time, ns, or when more has completed.
    At(u64),
}

impl Moderation {
    /// `interval_us` and `count` as in `svadev_spec::device::QueueModeration`.
    pub(crate) fn new(interval_us: u16, count: u16) -> Self {
        Self { interval_ns: u64::from(interval_us) * 1000, count: count.into(), pending: 0, quiet_until_ns: 0 }
    }

    /// So many completions that want an interrupt were written.
    pub(crate) fn completed(&mut self, wanted: u32) {
        self.pending = self.pending.saturating_add(wanted);
    }

    /// What is to be done at `now_ns`. After `Raise` it counts as raised.
    pub(crate) fn due(&mut self, now_ns: u64) -> Due {
        if self.pending == 0 {
            return Due::Nothing;
        }
        let many = self.count != 0 && self.pending >= self.count;
        if !many && now_ns < self.quiet_until_ns {
            return Due::At(self.quiet_until_ns);
        }
        self.pending = 0;
        self.quiet_until_ns = now_ns.saturating_add(self.interval_ns);
        Due::Raise
    }

    /// The queue ends: what waits is due at once. Whether there is something.
    pub(crate) fn flush(&mut self) -> bool {
        std::mem::take(&mut self.pending) != 0
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn without_an_interval_nothing_waits() {
        let mut m = Moderation::new(0, 7);
        assert_eq!(m.due(5), Due::Nothing);
        for _ in 0..3 {
            m.completed(1);
            assert_eq!(m.due(5), Due::Raise);
        }
        assert_eq!(m.due(5), Due::Nothing);
    }

    #[test]
    fn the_last_completion_has_its_interrupt_later() {
        let mut m = Moderation::new(10, 3);
        m.completed(1);
        assert_eq!(m.due(1000), Due::Raise);
        m.completed(2);
        assert_eq!(m.due(1001), Due::At(11_000));
        assert_eq!(m.due(11_000), Due::Raise);
        m.completed(3);
        assert_eq!(m.due(11_001), Due::Raise, "three do not wait");
        m.completed(1);
        assert!(m.flush() && !m.flush());
    }

    proptest! {
        /// Driven as an engine drives it: at each completion, and at the times that it names.
        #[test]
        fn never_too_often_never_too_late_and_never_lost(
            interval_us in 0u16..100,
            count in 0u16..10,
            steps in prop::collection::vec((0u64..80_000, 0u32..5), 1..100),
        ) {
            let mut m = Moderation::new(interval_us, count);
            let interval = u64::from(interval_us) * 1000;
            let (mut now, mut at) = (1, None::<u64>);
            let (mut last, mut waiting, mut oldest) = (None::<u64>, 0, 0);
            // Time for what is left at the end.
            for (wait, wanted) in steps.into_iter().chain([(u64::from(u16::MAX) * 1000, 0)]) {
                let next = now + wait;
                loop {
                    let deadline = at.filter(|&at| at <= next);
                    now = deadline.unwrap_or(next);
                    if deadline.is_none() && wanted != 0 {
                        if waiting == 0 {
                            oldest = now;
                        }
                        waiting += wanted;
                        m.completed(wanted);
                    }
                    at = None;
                    match m.due(now) {
                        Due::Nothing => prop_assert_eq!(waiting, 0),
                        Due::At(then) => {
                            prop_assert!(then > now && then <= oldest + interval);
                            at = Some(then);
                        }
                        Due::Raise => {
                            prop_assert!(waiting > 0, "raised for nothing");
                            let full = count != 0 && waiting >= u32::from(count);
                            prop_assert!(full || last.is_none_or(|last| now >= last + interval), "too often");
                            (last, waiting) = (Some(now), 0);
                        }
                    }
                    if deadline.is_none() {
                        break;
                    }
                }
            }
            prop_assert_eq!(waiting, 0, "lost");
        }
    }
}
