//! Samples, and how they are taken: the thing and its baseline in turn, so that other load affects both.
use std::time::{Duration, Instant};

/// Sorted samples; at least one.
#[derive(Clone, Debug, PartialEq)]
pub struct Samples(Vec<f64>);

impl Samples {
    /// From samples in any order. `None` without any that is a number.
    pub fn new(mut samples: Vec<f64>) -> Option<Self> {
        samples.retain(|sample| sample.is_finite());
        samples.sort_unstable_by(f64::total_cmp);
        (!samples.is_empty()).then_some(Self(samples))
    }

    /// The same in another unit.
    pub fn scaled(&self, factor: f64) -> Self {
        assert!(factor > 0.0, "the order stays");
        Self(self.0.iter().map(|sample| sample * factor).collect())
    }

    /// How many.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// The smallest.
    pub fn min(&self) -> f64 {
        self.0[0]
    }

    /// The sample below which `percent` per cent of them lie, by nearest rank.
    pub fn percentile(&self, percent: usize) -> f64 {
        assert!(percent <= 100, "a percentile");
        let rank = (self.0.len() * percent).div_ceil(100).max(1);
        self.0[rank - 1]
    }

    /// The middle one; of an even number, the mean of the two in the middle.
    pub fn median(&self) -> f64 {
        let middle = self.0.len() / 2;
        if self.0.len().is_multiple_of(2) { (self.0[middle - 1] + self.0[middle]) / 2.0 } else { self.0[middle] }
    }
}

/// A thing and its baseline, measured in turn.
#[derive(Clone, Debug)]
pub struct Pair {
    /// The thing.
    pub thing: Samples,
    /// The baseline.
    pub baseline: Samples,
    /// The median of thing ÷ baseline over the turns. Slow changes of the host affect it less than the ratio of the
    /// medians.
    pub ratio: f64,
}

/// Fewest turns of a case, whatever the time.
pub const MIN_TURNS: usize = 5;

/// Measures one thing, again and again for `time`. The first turn warms up and does not count.
pub fn alone(time: Duration, mut thing: impl FnMut() -> anyhow::Result<f64>) -> anyhow::Result<Samples> {
    thing()?;
    let (start, mut samples) = (Instant::now(), Vec::new());
    while samples.len() < MIN_TURNS || start.elapsed() < time {
        samples.push(thing()?);
    }
    Ok(Samples::new(samples).expect("a measurement is a number"))
}

/// Measures a thing and its baseline in turn for `time`. The first turn of each warms up and does not count.
pub fn paired(
    time: Duration,
    mut thing: impl FnMut() -> anyhow::Result<f64>,
    mut baseline: impl FnMut() -> anyhow::Result<f64>,
) -> anyhow::Result<Pair> {
    thing()?;
    baseline()?;
    let (start, mut things, mut baselines) = (Instant::now(), Vec::new(), Vec::new());
    while things.len() < MIN_TURNS || start.elapsed() < time {
        things.push(thing()?);
        baselines.push(baseline()?);
    }
    let ratios = things.iter().zip(&baselines).map(|(thing, baseline)| thing / baseline).collect();
    let whole = |samples| Samples::new(samples).expect("a measurement is a number above zero");
    Ok(Pair { ratio: whole(ratios).median(), thing: whole(things), baseline: whole(baselines) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_percentiles_by_rank() {
        let odd = Samples::new(vec![3.0, 1.0, 2.0]).unwrap();
        assert_eq!((odd.median(), odd.min(), odd.percentile(99), odd.percentile(0)), (2.0, 1.0, 3.0, 1.0));
        assert_eq!(Samples::new(vec![4.0, 1.0, 2.0, 3.0]).unwrap().median(), 2.5);
        let hundred = Samples::new((1..=100).map(f64::from).collect()).unwrap();
        assert_eq!((hundred.percentile(50), hundred.percentile(99), hundred.percentile(100)), (50.0, 99.0, 100.0));
        assert_eq!(Samples::new(vec![f64::NAN]), None);
    }

    #[test]
    fn the_two_are_measured_in_turn_and_the_first_turn_does_not_count() {
        let order = std::cell::RefCell::new(String::new());
        // Both get slower together: the ratio of each turn stays.
        let turn = std::cell::Cell::new(0.0);
        let pair = paired(
            Duration::ZERO,
            || {
                order.borrow_mut().push('a');
                turn.set(turn.get() + 1.0);
                Ok(3.0 * turn.get())
            },
            || {
                order.borrow_mut().push('b');
                Ok(turn.get())
            },
        )
        .unwrap();
        assert_eq!(order.into_inner(), "ab".repeat(MIN_TURNS + 1));
        assert_eq!((pair.thing.count(), pair.baseline.min(), pair.ratio), (MIN_TURNS, 2.0, 3.0));
    }

    #[test]
    fn an_error_ends_it() {
        assert!(alone(Duration::ZERO, || anyhow::bail!("broken")).is_err());
    }
}
