//! What other limits would have done: counted on live traffic, so that people find their number
//! before anybody is refused.
//!
//! Nothing here decides. The counts are statistics, read and written without order between them; one
//! that runs while a candidate is replaced may be counted for its successor.

use super::sync::{AtomicU32, AtomicU64, Ordering};
use super::{MAX_SHADOW_LIMITS, Mode, Settings};
use std::num::NonZeroU32;

/// Set in the nominal limit's word while the gate only observes.
const OBSERVING: u64 = 1 << 32;

/// What the gate has seen.
pub(super) struct Shadow {
    /// The limit that observing would enforce (0: none) in the low half, and OBSERVING.
    nominal: AtomicU64,
    /// Arrivals let in only because the gate observed.
    would_refuse: AtomicU64,
    /// The most ever in flight, in every mode.
    peak: AtomicU32,
    candidates: [Candidate; MAX_SHADOW_LIMITS],
}

/// One limit somebody thinks of.
struct Candidate {
    /// 0: the cell is unused.
    limit: AtomicU32,
    /// Arrivals that found at least `limit` in flight.
    refused: AtomicU64,
}

impl Shadow {
    pub(super) fn new(settings: &Settings) -> Self {
        let shadow = Self {
            nominal: AtomicU64::new(0),
            would_refuse: AtomicU64::new(0),
            peak: AtomicU32::new(0),
            candidates: std::array::from_fn(|_| Candidate {
                limit: AtomicU32::new(0),
                refused: AtomicU64::new(0),
            }),
        };
        shadow.apply(settings);
        shadow
    }

    /// Replaces the candidates; those that stay keep their counts. Only under the gate's lock.
    pub(super) fn apply(&self, settings: &Settings) {
        let nominal = settings.limit.map_or(0, |limit| u64::from(limit.get()));
        let observing = match settings.mode {
            Mode::Observe => OBSERVING,
            Mode::Enforce | Mode::Off => 0,
        };
        self.nominal.store(nominal | observing, Ordering::Relaxed);

        let wanted = || settings.shadow_limits.iter().take(MAX_SHADOW_LIMITS);
        for cell in &self.candidates {
            if !wanted().any(|limit| cell.is(limit.get())) {
                cell.limit.store(0, Ordering::Relaxed);
                cell.refused.store(0, Ordering::Relaxed);
            }
        }
        for limit in wanted() {
            if self.cell(limit.get()).is_none()
                && let Some(unused) = self.cell(0)
            {
                unused.limit.store(limit.get(), Ordering::Relaxed);
            }
        }
    }

    /// Counts one admitted arrival that found `found` in flight, and perhaps its client beyond the cap.
    pub(super) fn arrival(&self, found: u32, beyond_cap: bool) {
        self.in_flight(found + 1);
        let word = self.nominal.load(Ordering::Relaxed);
        if word & OBSERVING == 0 {
            return;
        }
        let nominal = word as u32; // the low half, by layout
        if beyond_cap || (nominal != 0 && found >= nominal) {
            self.would_refuse.fetch_add(1, Ordering::Relaxed);
        }
        for cell in &self.candidates {
            let limit = cell.limit.load(Ordering::Relaxed);
            if limit != 0 && found >= limit {
                cell.refused.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Remembers the peak. Looks before it writes: the line is shared by all workers.
    pub(super) fn in_flight(&self, now: u32) {
        if now > self.peak.load(Ordering::Relaxed) {
            self.peak.fetch_max(now, Ordering::Relaxed);
        }
    }

    pub(super) fn peak(&self) -> u32 {
        self.peak.load(Ordering::Relaxed)
    }

    pub(super) fn would_refuse(&self) -> u64 {
        self.would_refuse.load(Ordering::Relaxed)
    }

    /// Each candidate with what it would have refused, in the order of the settings.
    pub(super) fn counts(&self, candidates: &[NonZeroU32]) -> Vec<(u32, u64)> {
        candidates
            .iter()
            .filter_map(|limit| {
                let cell = self.cell(limit.get())?;
                Some((limit.get(), cell.refused.load(Ordering::Relaxed)))
            })
            .collect()
    }

    fn cell(&self, limit: u32) -> Option<&Candidate> {
        self.candidates.iter().find(|cell| cell.is(limit))
    }
}

impl Candidate {
    fn is(&self, limit: u32) -> bool {
        self.limit.load(Ordering::Relaxed) == limit
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn observing(limit: u32, candidates: &[u32]) -> Settings {
        Settings {
            mode: Mode::Observe,
            limit: NonZeroU32::new(limit),
            shadow_limits: candidates.iter().filter_map(|&n| NonZeroU32::new(n)).collect(),
            ..Settings::plain(Mode::Observe)
        }
    }

    #[test]
    fn counts_arrivals_each_candidate_would_have_refused() {
        let settings = observing(3, &[2, 4, 9]);
        let shadow = Shadow::new(&settings);
        for found in 0..5 {
            shadow.arrival(found, false);
        }
        assert_eq!(shadow.counts(&settings.shadow_limits), [(2, 3), (4, 1), (9, 0)]);
        assert_eq!(shadow.would_refuse(), 2);
        assert_eq!(shadow.peak(), 5);
    }

    #[test]
    fn an_arrival_beyond_cap_and_limit_would_be_refused_once() {
        let shadow = Shadow::new(&observing(1, &[]));
        shadow.arrival(0, true);
        shadow.arrival(1, true);
        assert_eq!(shadow.would_refuse(), 2);
    }

    #[test]
    fn candidates_that_stay_keep_their_counts() {
        let shadow = Shadow::new(&observing(0, &[1, 2, 3]));
        shadow.arrival(5, false);
        let changed = observing(0, &[4, 3]);
        shadow.apply(&changed);
        assert_eq!(shadow.counts(&changed.shadow_limits), [(4, 0), (3, 1)]);
        let back = observing(0, &[3, 1]);
        shadow.apply(&back);
        assert_eq!(shadow.counts(&back.shadow_limits), [(3, 1), (1, 0)]);
    }

    #[test]
    fn all_candidates_can_be_replaced_at_once() {
        let many = |from: u32| observing(0, &(from..from + 16).collect::<Vec<_>>());
        let shadow = Shadow::new(&many(1));
        shadow.apply(&many(101));
        assert_eq!(shadow.counts(&many(101).shadow_limits).len(), MAX_SHADOW_LIMITS);
    }

    #[test]
    fn enforcing_and_off_remember_only_the_peak() {
        for mode in [Mode::Enforce, Mode::Off] {
            let settings = Settings { mode, ..observing(1, &[1]) };
            let shadow = Shadow::new(&settings);
            shadow.arrival(6, true);
            assert_eq!(shadow.would_refuse(), 0);
            assert_eq!(shadow.counts(&settings.shadow_limits), [(1, 0)]);
            assert_eq!(shadow.peak(), 7);
        }
    }
}
