//! How long things took: counts in fixed buckets, and their sum. Of our own, because whoever shows
//! percentiles has to read the counts back, and because observing must not take a lock.
//!
//! Always true: observing is two relaxed additions and allocates nothing; every count only grows; in
//! a snapshot the last cumulative count is the number of observations it has seen.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Durations, counted.
#[derive(Debug)]
pub struct Histogram {
    /// The upper end of each bucket but the last, which has none. Ascending.
    bounds: &'static [Duration],
    /// One more than there are bounds.
    counts: Box<[AtomicU64]>,
    /// In microseconds, each rounded: nanoseconds would overflow after 200 000 connections that
    /// last a day.
    sum: AtomicU64,
}

/// A [`Histogram`] at one moment, or what happened between two moments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// The upper end of each bucket but the last, which has none. Ascending.
    pub bounds: &'static [Duration],
    /// How many were at most as long as the bound in the same place; and at the end, all.
    pub cumulative: Vec<u64>,
    /// All of them together.
    pub sum: Duration,
}

impl Histogram {
    /// Nothing observed yet. `bounds` ascend.
    pub fn new(bounds: &'static [Duration]) -> Self {
        debug_assert!(bounds.is_sorted(), "bounds ascend");
        let counts = (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect();
        Self { bounds, counts, sum: AtomicU64::new(0) }
    }

    /// Something took this long.
    pub fn observe(&self, took: Duration) {
        let bucket = self.bounds.partition_point(|bound| *bound < took);
        self.counts[bucket].fetch_add(1, Ordering::Relaxed);
        let micros = took.saturating_add(Duration::from_nanos(500)).as_micros();
        self.sum.fetch_add(u64::try_from(micros).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// What has been observed so far. While others observe, the sum may be of a few more or fewer
    /// than the counts.
    pub fn snapshot(&self) -> Snapshot {
        let mut so_far = 0;
        let cumulative = self.counts.iter().map(|count| {
            so_far += count.load(Ordering::Relaxed);
            so_far
        });
        Snapshot {
            bounds: self.bounds,
            cumulative: cumulative.collect(),
            sum: Duration::from_micros(self.sum.load(Ordering::Relaxed)),
        }
    }
}

impl Snapshot {
    /// How many were observed.
    pub fn count(&self) -> u64 {
        self.cumulative.last().copied().unwrap_or(0)
    }

    /// What was observed after `earlier`, a snapshot of the same histogram.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let counts = self.cumulative.iter().zip(&earlier.cumulative);
        Self {
            bounds: self.bounds,
            cumulative: counts.map(|(now, then)| now.saturating_sub(*then)).collect(),
            sum: self.sum.saturating_sub(earlier.sum),
        }
    }

    /// How long they took on average, if there were any.
    pub fn mean(&self) -> Option<Duration> {
        let count = self.count();
        (count > 0).then(|| self.sum.div_f64(count as f64))
    }

    /// The duration that the part `quantile` (0 to 1) of them did not exceed, as if those in one
    /// bucket were spread evenly over it; beyond the last bound, that bound. This is how
    /// `histogram_quantile` of Prometheus estimates, so that all who show it agree. `None`: there
    /// were none.
    pub fn quantile(&self, quantile: f64) -> Option<Duration> {
        let count = self.count();
        if count == 0 {
            return None;
        }
        let rank = quantile.clamp(0.0, 1.0) * count as f64;
        let at = self.cumulative.partition_point(|so_far| (*so_far as f64) < rank);
        let Some(&upper) = self.bounds.get(at) else { return self.bounds.last().copied() };
        let (lower, below) = match at {
            0 => (Duration::ZERO, 0),
            _ => (self.bounds[at - 1], self.cumulative[at - 1]),
        };
        let inside = self.cumulative[at] - below;
        let part = if inside == 0 { 0.0 } else { (rank - below as f64) / inside as f64 };
        Some(lower + (upper - lower).mul_f64(part))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BOUNDS: [Duration; 4] = [
        Duration::from_millis(1),
        Duration::from_millis(10),
        Duration::from_millis(100),
        Duration::from_secs(1),
    ];

    fn of(micros: &[u64]) -> Histogram {
        let histogram = Histogram::new(&BOUNDS);
        micros.iter().for_each(|n| histogram.observe(Duration::from_micros(*n)));
        histogram
    }

    #[test]
    fn a_bound_belongs_to_the_bucket_below_it() {
        let seen = of(&[0, 1_000, 1_001, 100_000, 1_000_001]).snapshot();
        assert_eq!(seen.cumulative, [2, 3, 4, 4, 5]);
        assert_eq!((seen.count(), seen.sum), (5, Duration::from_micros(1_102_002)));
    }

    #[test]
    fn quantiles_are_linear_within_a_bucket() {
        let seen = of(&[5_000; 4]).snapshot();
        assert_eq!(seen.quantile(0.5), Some(Duration::from_micros(5_500)));
        assert_eq!(seen.quantile(1.0), Some(Duration::from_millis(10)));
        assert_eq!(seen.quantile(0.0), Some(Duration::ZERO));
        assert_eq!(of(&[9_000_000]).snapshot().quantile(0.9), Some(Duration::from_secs(1)));
        assert_eq!(of(&[]).snapshot().quantile(0.9), None);
        assert_eq!(of(&[]).snapshot().mean(), None);
    }

    #[test]
    fn the_difference_of_two_moments_is_what_happened_between_them() {
        let histogram = of(&[500, 50_000]);
        let before = histogram.snapshot();
        let later = [2_000, 3_000, 4_000];
        later.iter().for_each(|n| histogram.observe(Duration::from_micros(*n)));
        let between = histogram.snapshot().since(&before);
        assert_eq!(between, of(&later).snapshot());
        assert_eq!(between.mean(), Some(Duration::from_millis(3)));
    }

    proptest! {
        #[test]
        fn every_observation_is_counted_once_and_quantiles_are_off_by_a_bucket_at_most(
            micros in prop::collection::vec(0_u64..1_000_000, 1..200),
            quantile in 0.0..1.0_f64,
        ) {
            let seen = of(&micros).snapshot();
            prop_assert_eq!(seen.count(), micros.len() as u64);
            prop_assert_eq!(seen.sum, Duration::from_micros(micros.iter().sum()));
            for (bound, so_far) in BOUNDS.iter().zip(&seen.cumulative) {
                let exact = micros.iter().filter(|n| Duration::from_micros(**n) <= *bound).count();
                prop_assert_eq!(*so_far, exact as u64);
            }
            let mut sorted = micros.clone();
            sorted.sort_unstable();
            let rank = ((quantile * micros.len() as f64).ceil() as usize).max(1);
            let exact = Duration::from_micros(sorted[rank - 1]);
            let at = BOUNDS.partition_point(|bound| *bound < exact);
            let lower = if at == 0 { Duration::ZERO } else { BOUNDS[at - 1] };
            let estimate = seen.quantile(quantile).expect("there are some");
            prop_assert!((lower..=BOUNDS[at]).contains(&estimate), "{:?} for {:?}", estimate, exact);
        }
    }
}
