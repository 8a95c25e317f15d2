//! How long to leave somebody alone who cannot answer.

use std::time::Duration;

/// After the first failure.
const LEAST: Duration = Duration::from_millis(800);

/// The longest pause. Attempts begin no further apart than this, however long each of them takes: so
/// whoever comes back is found within 30 s.
const MOST: Duration = Duration::from_secs(28);

/// Doubles with every failure; half of each pause is chance, so that a thousand pods do not come at once.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    failures: u32,
}

impl Backoff {
    /// How long after the last attempt began the next may begin. `least`: what the server asked for.
    /// `chance`: from 0 to 1.
    pub(super) fn next(&mut self, least: Option<Duration>, chance: f64) -> Duration {
        let pause = LEAST.saturating_mul(1 << self.failures.min(10)).min(MOST);
        self.failures = self.failures.saturating_add(1);
        let floor = if self.failures == 1 { LEAST } else { pause / 2 };
        let pause = floor + (pause.saturating_sub(floor)).mul_f64(chance.clamp(0.0, 1.0));
        pause.max(least.unwrap_or_default()).min(MOST)
    }

    /// It works again.
    pub(super) fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_and_stay_within_their_bounds() {
        for chance in [0.0, 0.5, 1.0, 7.0] {
            let mut backoff = Backoff::default();
            let pauses: Vec<_> = (0..40).map(|_| backoff.next(None, chance)).collect();
            assert!(pauses.iter().all(|pause| (LEAST..=MOST).contains(pause)), "{pauses:?}");
            assert!(pauses[39] >= MOST / 2, "{pauses:?}");
            backoff.reset();
            assert_eq!(backoff.next(None, chance), LEAST);
        }
        let asked = Backoff::default().next(Some(Duration::from_secs(5)), 0.3);
        assert_eq!(asked, Duration::from_secs(5));
        assert_eq!(Backoff::default().next(Some(Duration::from_secs(3600)), 0.3), MOST);
    }
}
