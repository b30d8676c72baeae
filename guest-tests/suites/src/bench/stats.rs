//! What a number of samples says.
use std::time::Duration;

/// Samples of one thing in one unit.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Samples(Vec<f64>);

/// A summary of samples, in their unit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Summary {
    /// How many there were.
    pub n: usize,
    /// The smallest.
    pub min: f64,
    /// Half are at or below.
    pub p50: f64,
    /// Nine of ten are at or below.
    pub p90: f64,
    /// 99 of 100 are at or below.
    pub p99: f64,
    /// The largest.
    pub max: f64,
}

impl Samples {
    /// Room for so many, so that storing one allocates nothing.
    #[must_use]
    pub fn with_capacity(capacity: usize) -> Self {
        Self(Vec::with_capacity(capacity))
    }

    /// Store a sample.
    ///
    /// # Panics
    /// It is not a finite number.
    pub fn push(&mut self, sample: f64) {
        assert!(sample.is_finite(), "a sample is a number");
        self.0.push(sample);
    }

    /// Store a time, in microseconds.
    pub fn push_micros(&mut self, time: Duration) {
        self.push(time.as_secs_f64() * 1e6);
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What they say; nothing if there are none.
    #[must_use]
    pub fn summary(&self) -> Option<Summary> {
        let mut sorted = self.0.clone();
        sorted.sort_unstable_by(f64::total_cmp);
        let (&min, &max) = (sorted.first()?, sorted.last()?);
        // Nearest rank: the smallest sample that so many of a thousand are at or below.
        let rank = |per_mille: usize| sorted[(sorted.len() * per_mille).div_ceil(1000).max(1) - 1];
        Some(Summary { n: sorted.len(), min, p50: rank(500), p90: rank(900), p99: rank(990), max })
    }

    /// Arithmetic mean; 0 of none.
    #[must_use]
    pub fn mean(&self) -> f64 {
        if self.0.is_empty() { 0.0 } else { self.0.iter().sum::<f64>() / float(self.0.len() as u64) }
    }
}

impl FromIterator<f64> for Samples {
    fn from_iter<I: IntoIterator<Item = f64>>(samples: I) -> Self {
        let mut all = Self::default();
        samples.into_iter().for_each(|sample| all.push(sample));
        all
    }
}

/// A count as a figure for people.
#[must_use]
pub(super) fn float(count: u64) -> f64 {
    #[allow(
        clippy::cast_precision_loss,
        reason = "counts of a benchmark are far below 2^53, and figures have three digits"
    )]
    let number = count as f64;
    number
}

/// So many in that time, a second.
#[must_use]
pub(super) fn rate(count: u64, time: Duration) -> f64 {
    // A clock that did not move between two looks is no reason for an infinite figure.
    float(count) / time.max(Duration::from_nanos(1)).as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_samples_of_the_nearest_rank() {
        let s = (1..=1000).rev().map(f64::from).collect::<Samples>().summary().unwrap();
        assert_eq!((s.n, s.min, s.p50, s.p90, s.p99, s.max), (1000, 1.0, 500.0, 900.0, 990.0, 1000.0));
        let s = [3.0, 1.0, 2.0].into_iter().collect::<Samples>().summary().unwrap();
        assert_eq!((s.min, s.p50, s.p90, s.p99, s.max), (1.0, 2.0, 3.0, 3.0, 3.0));
    }

    #[test]
    fn one_sample_is_all_percentiles_and_none_says_nothing() {
        let s = [7.0].into_iter().collect::<Samples>().summary().unwrap();
        assert_eq!((s.n, s.min, s.p50, s.p99, s.max), (1, 7.0, 7.0, 7.0, 7.0));
        assert_eq!(Samples::default().summary(), None);
    }

    #[test]
    fn means_and_rates() {
        assert!([1.0, 2.0, 6.0].into_iter().collect::<Samples>().mean() == 3.0);
        assert!(rate(500, Duration::from_millis(250)) == 2000.0);
        assert!(rate(1, Duration::ZERO).is_finite());
    }
}
