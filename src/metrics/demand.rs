//! Demand: how many times its limit a port is asked for. A port that sheds load looks healthy by its
//! CPU; whoever scales by demand sees what was turned away too.
//!
//! ```text
//! (active + queued + refusals/s × mean time a slot is held) / limit
//! ```
//!
//! The last term is Little's law: as many slots as those who were refused would have held.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::PortMetrics;

/// How long the past is that rates are taken from. Autoscalers look every 15 s (Kubernetes'
/// `--horizontal-pod-autoscaler-sync-period`).
const WINDOW: Duration = Duration::from_secs(15);

/// What one port was asked for of late. Sampled about once a second, by whoever keeps it.
#[derive(Debug, Default)]
pub struct Demand {
    samples: VecDeque<Sample>,
}

#[derive(Clone, Copy, Debug)]
struct Sample {
    at: Instant,
    /// For want of slots.
    refused: u64,
    freed: u64,
    held: Duration,
}

impl Demand {
    /// Remember how things stand now, and forget what is older than needed.
    pub fn sample(&mut self, metrics: &PortMetrics, now: Instant) {
        // One stays that is older, so that the window is always whole.
        while self.samples.get(1).is_some_and(|second| now - second.at >= WINDOW) {
            self.samples.pop_front();
        }
        self.samples.push_back(Sample::of(metrics, now));
    }

    /// Slots that those who were refused of late would have held at once.
    pub fn turned_away(&self, metrics: &PortMetrics, now: Instant) -> f64 {
        let last = Sample::of(metrics, now);
        let Some(first) = self.samples.front() else { return 0.0 };
        // Over a few milliseconds a rate would be any number.
        let seconds = now.saturating_duration_since(first.at).max(Duration::from_secs(1));
        let rate = last.refused.saturating_sub(first.refused) as f64 / seconds.as_secs_f64();
        let of_late =
            (last.freed.saturating_sub(first.freed), last.held.saturating_sub(first.held));
        let (freed, held) = if of_late.0 > 0 { of_late } else { (last.freed, last.held) };
        if freed == 0 { 0.0 } else { rate * held.as_secs_f64() / freed as f64 }
    }
}

impl Sample {
    fn of(metrics: &PortMetrics, at: Instant) -> Self {
        let refused = metrics.refused().filter(|(reason, _)| reason.is_want_of_slots());
        let refused = refused.map(|(_, n)| n).sum();
        let (freed, held) = metrics.slots();
        Self { at, refused, freed, held }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outcome::{Outcome, Reason};

    fn refuse(metrics: &PortMetrics, times: u32, reason: Reason) {
        (0..times).for_each(|_| metrics.end_request(Outcome::Refused(reason), Duration::ZERO));
    }

    #[test]
    fn the_refused_would_have_held_as_many_slots_as_littles_law_says() {
        let (metrics, start) = (PortMetrics::default(), Instant::now());
        let mut demand = Demand::default();
        assert_eq!(demand.turned_away(&metrics, start), 0.0);
        demand.sample(&metrics, start);
        (0..50).for_each(|_| metrics.free(Duration::from_millis(200)));
        refuse(&metrics, 60, Reason::QueueFull);
        refuse(&metrics, 40, Reason::QueueTimeout);
        // Nothing that more slots would help against.
        refuse(&metrics, 1000, Reason::PerClientLimit);
        refuse(&metrics, 1000, Reason::UpstreamRefused);
        // 100 in 10 s, 200 ms each: two slots.
        let later = start + Duration::from_secs(10);
        assert!((demand.turned_away(&metrics, later) - 2.0).abs() < 1e-9);
    }

    #[test]
    fn what_is_long_ago_is_forgotten_but_for_how_long_slots_are_held() {
        let (metrics, start) = (PortMetrics::default(), Instant::now());
        let mut demand = Demand::default();
        demand.sample(&metrics, start);
        refuse(&metrics, 100, Reason::LimitReached);
        metrics.free(Duration::from_secs(2));
        let second = |n| start + Duration::from_secs(n);
        for n in 1..100 {
            demand.sample(&metrics, second(n));
        }
        assert!(demand.samples.len() <= 17, "{}", demand.samples.len());
        assert_eq!(demand.turned_away(&metrics, second(100)), 0.0);
        // Nothing has ended since, so the mean is that of before.
        refuse(&metrics, 16, Reason::LimitReached);
        let away = demand.turned_away(&metrics, second(100));
        assert!((away - 2.0).abs() < 0.2, "{away}");
    }
}
