//! The last minutes of every port, for whoever looks only once something is wrong: a sample a second,
//! and from the differences of samples rates and percentiles.
//!
//! ```text
//! every second:  counters and histograms as they are ──→ ring of 181 samples
//! when asked:    now − 5 s ago = recent       each sample − the one before = history
//! ```
//!
//! Always true: sampling happens on the control plane and costs the data plane nothing; the ring is
//! bounded, about 200 KiB a port, and a twentieth of that while nobody calls it: samples between which nothing
//! has happened share what they have seen.

use std::collections::{BTreeMap, VecDeque};
use std::iter;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::metrics::{PortMetrics, Snapshot};
use crate::outcome::Reason;

use super::gateway::Gateway;
use super::status::PortStatus;

/// How far apart samples are.
pub(super) const EVERY: Duration = Duration::from_secs(1);

/// Three minutes: long enough to see what was before it went wrong. One more is the one that the
/// oldest is compared with.
const KEEP: usize = 180 + 1;

/// What "now" is: short enough to follow, long enough that a rate does not jump.
const RECENT: Duration = Duration::from_secs(5);

/// The samples of each port, in the order of the status.
#[derive(Debug, Default)]
pub(super) struct History {
    ports: Mutex<Vec<VecDeque<Sample>>>,
}

/// One port at one moment.
#[derive(Debug)]
struct Sample {
    at: Instant,
    limit: Option<u32>,
    active: u64,
    queued: u64,
    seen: Arc<Seen>,
}

/// What had happened by then, since the start of the process.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    accepted: u64,
    admitted: u64,
    refused: [u64; Reason::ALL.len()],
    would_refuse: u64,
    shadow: BTreeMap<u32, u64>,
    waits: Snapshot,
    requests: Snapshot,
    connections: Snapshot,
}

/// What has been going on in the last seconds.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Recent {
    /// How many seconds they are: 5, or fewer right after the start.
    seconds: f64,
    accepted_per_second: f64,
    admitted_per_second: f64,
    /// The reasons there were.
    refused_per_second: BTreeMap<&'static str, f64>,
    would_refuse_per_second: f64,
    /// By candidate limit.
    shadow_per_second: BTreeMap<u32, f64>,
    /// Of those that waited; `None`: there were none.
    wait_seconds: Option<Percentiles>,
    /// Of requests that ended.
    request_seconds: Option<Percentiles>,
    /// Of TCP connections that ended.
    connection_seconds: Option<Percentiles>,
}

/// Estimated from the buckets of a histogram.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
struct Percentiles {
    /// Of how many.
    count: u64,
    p50: f64,
    p90: f64,
    p99: f64,
}

/// One entry a second in each list, the oldest first.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(super) struct Columns {
    every_seconds: u64,
    limit: Vec<Option<u32>>,
    active: Vec<u64>,
    queued: Vec<u64>,
    admitted_per_second: Vec<f64>,
    refused_per_second: Vec<f64>,
    wait_p50: Vec<Option<f64>>,
    wait_p99: Vec<Option<f64>>,
    request_p50: Vec<Option<f64>>,
    request_p99: Vec<Option<f64>>,
    connection_p50: Vec<Option<f64>>,
    connection_p99: Vec<Option<f64>>,
}

impl History {
    /// Take samples for ever.
    pub(super) async fn keep(&self, gateway: &dyn Gateway) {
        let mut tick = tokio::time::interval(EVERY);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            self.sample(&gateway.status().ports, &gateway.ports(), Instant::now());
        }
    }

    fn sample(&self, ports: &[PortStatus], metrics: &[Arc<PortMetrics>], now: Instant) {
        let mut rings = self.lock();
        rings.resize_with(ports.len(), VecDeque::new);
        for ((ring, port), metrics) in rings.iter_mut().zip(ports).zip(metrics) {
            if ring.len() == KEEP {
                ring.pop_front();
            }
            let mut sample = Sample::new(port, metrics, now);
            if let Some(last) = ring.back().filter(|last| last.seen == sample.seen) {
                sample.seen = last.seen.clone();
            }
            ring.push_back(sample);
        }
    }

    /// Of the port in this place of the status: what is going on, and what went on before.
    pub(super) fn of(
        &self,
        place: usize,
        port: &PortStatus,
        metrics: &PortMetrics,
        now: Instant,
    ) -> (Option<Recent>, Columns) {
        let rings = self.lock();
        let Some(ring) = rings.get(place) else {
            return (None, Columns::default());
        };
        let new_enough = ring.partition_point(|sample| now - sample.at > RECENT + EVERY / 2);
        let base = ring.get(new_enough).or(ring.back());
        let recent = base.map(|base| Recent::between(base, &Sample::new(port, metrics, now)));
        (recent, Columns::of(ring))
    }

    fn lock(&self) -> MutexGuard<'_, Vec<VecDeque<Sample>>> {
        self.ports.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Sample {
    fn new(port: &PortStatus, metrics: &PortMetrics, at: Instant) -> Self {
        let mut refused = [0; Reason::ALL.len()];
        metrics.refused().for_each(|(reason, n)| refused[reason as usize] = n);
        Self {
            at,
            limit: port.limit,
            active: port.active,
            queued: port.queued,
            seen: Arc::new(Seen {
                accepted: metrics.accepted(),
                admitted: metrics.admitted(),
                refused,
                would_refuse: port.would_refuse,
                shadow: port.shadow.clone(),
                waits: metrics.waits.snapshot(),
                requests: metrics.requests.snapshot(),
                connections: metrics.connections.snapshot(),
            }),
        }
    }
}

impl Recent {
    fn between(then: &Sample, now: &Sample) -> Self {
        // A rate over a few milliseconds would be any number.
        let seconds = (now.at - then.at).as_secs_f64().max(0.5);
        let (now, then) = (&*now.seen, &*then.seen);
        let rate = |now: u64, then: u64| round(now.saturating_sub(then) as f64 / seconds);
        let refused = Reason::ALL.into_iter().map(|reason| {
            (reason.label(), rate(now.refused[reason as usize], then.refused[reason as usize]))
        });
        // A candidate that was not there counts from nothing.
        let shadow = now.shadow.iter().map(|(limit, n)| {
            let before = then.shadow.get(limit).copied().unwrap_or(0);
            (*limit, rate(*n, before))
        });
        Self {
            seconds: round(seconds),
            accepted_per_second: rate(now.accepted, then.accepted),
            admitted_per_second: rate(now.admitted, then.admitted),
            refused_per_second: refused.filter(|(_, rate)| *rate > 0.0).collect(),
            would_refuse_per_second: rate(now.would_refuse, then.would_refuse),
            shadow_per_second: shadow.collect(),
            wait_seconds: Percentiles::of(&now.waits.since(&then.waits)),
            request_seconds: Percentiles::of(&now.requests.since(&then.requests)),
            connection_seconds: Percentiles::of(&now.connections.since(&then.connections)),
        }
    }
}

impl Percentiles {
    fn of(seen: &Snapshot) -> Option<Self> {
        let at = |quantile| seen.quantile(quantile).map(seconds);
        Some(Self { count: seen.count(), p50: at(0.5)?, p90: at(0.9)?, p99: at(0.99)? })
    }
}

impl Columns {
    fn of(ring: &VecDeque<Sample>) -> Self {
        let mut columns = Self { every_seconds: EVERY.as_secs(), ..Self::default() };
        for (then, now) in iter::zip(ring, ring.iter().skip(1)) {
            columns.add(then, now);
        }
        columns
    }

    fn add(&mut self, then: &Sample, now: &Sample) {
        let apart = (now.at - then.at).as_secs_f64().max(0.5);
        let rate = |now: u64, then: u64| round(now.saturating_sub(then) as f64 / apart);
        self.limit.push(now.limit);
        self.active.push(now.active);
        self.queued.push(now.queued);
        let (now, then) = (&*now.seen, &*then.seen);
        self.admitted_per_second.push(rate(now.admitted, then.admitted));
        self.refused_per_second.push(rate(now.turned_away(), then.turned_away()));
        let between = |of: fn(&Seen) -> &Snapshot, quantile| {
            of(now).since(of(then)).quantile(quantile).map(seconds)
        };
        self.wait_p50.push(between(|seen| &seen.waits, 0.5));
        self.wait_p99.push(between(|seen| &seen.waits, 0.99));
        self.request_p50.push(between(|seen| &seen.requests, 0.5));
        self.request_p99.push(between(|seen| &seen.requests, 0.99));
        self.connection_p50.push(between(|seen| &seen.connections, 0.5));
        self.connection_p99.push(between(|seen| &seen.connections, 0.99));
    }
}

impl Seen {
    /// Refused, but for those who left by themselves.
    fn turned_away(&self) -> u64 {
        let turned_away = Reason::ALL.into_iter().filter(|reason| !reason.is_its_clients());
        turned_away.map(|reason| self.refused[reason as usize]).sum()
    }
}

/// Microseconds are as fine as a histogram is.
fn seconds(duration: Duration) -> f64 {
    duration.as_micros() as f64 / 1e6
}

/// Rates are read by people.
fn round(rate: f64) -> f64 {
    (rate * 100.0).round() / 100.0
}

#[cfg(test)]
mod tests {
    use std::slice;

    use super::super::status::Counts;
    use super::*;
    use crate::outcome::Outcome;

    fn port(active: u64) -> PortStatus {
        PortStatus {
            listen: ([127, 0, 0, 1], 8080).into(),
            app: "127.0.0.1:3000".into(),
            entrance: false,
            protocol: "http",
            mode: "enforce",
            limit: Some(8),
            active,
            queued: 0,
            queue_length: 16,
            peak_active: active,
            bypass: None,
            counts: Counts::default(),
            would_refuse: 0,
            shadow: BTreeMap::new(),
        }
    }

    #[test]
    fn rates_and_percentiles_are_of_the_last_seconds() {
        let (history, metrics) = (History::default(), Arc::new(PortMetrics::default()));
        let start = Instant::now();
        for second in 0..300 {
            // Ten a second for a long time, then a hundred, and a tenth of them refused.
            let arrivals = if second < 290 { 10 } else { 100 };
            history.sample(
                &[port(arrivals)],
                slice::from_ref(&metrics),
                start + Duration::from_secs(second),
            );
            for n in 0..arrivals {
                metrics.accept();
                match n % 10 {
                    0 => metrics.end_request(Outcome::Refused(Reason::QueueFull), Duration::ZERO),
                    _ => metrics.end_request(Outcome::Served, Duration::from_millis(15)),
                }
            }
        }
        let now = start + Duration::from_secs(300);
        let (recent, columns) = history.of(0, &port(3), &metrics, now);
        let recent = recent.expect("there are samples");
        assert!((recent.accepted_per_second - 100.0).abs() < 0.01, "{recent:?}");
        assert_eq!(recent.refused_per_second, [("queue_full", 10.0)].into());
        let requests = recent.request_seconds.expect("some ended");
        assert_eq!(requests.count, 450);
        assert!((0.01..=0.02).contains(&requests.p99), "{requests:?}");
        assert_eq!((recent.wait_seconds, recent.connection_seconds), (None, None));

        assert_eq!(columns.active.len(), 180);
        assert_eq!(columns.active.last(), Some(&100));
        assert_eq!(columns.active.first(), Some(&10));
        assert_eq!(columns.refused_per_second.last(), Some(&10.0));
        assert_eq!(columns.refused_per_second.first(), Some(&1.0));
        assert_eq!(columns.wait_p99, [None; 180]);
        assert!(history.lock()[0].len() <= KEEP, "bounded");
    }

    #[test]
    fn samples_between_which_nothing_happened_share_what_they_have_seen() {
        let (history, metrics) = (History::default(), Arc::new(PortMetrics::default()));
        let start = Instant::now();
        for second in 0..200 {
            if second == 100 {
                metrics.accept();
            }
            let now = start + Duration::from_secs(second);
            history.sample(&[port(0)], slice::from_ref(&metrics), now);
        }
        let rings = history.lock();
        let mut seen: Vec<_> = rings[0].iter().map(|sample| Arc::as_ptr(&sample.seen)).collect();
        seen.dedup();
        assert_eq!((rings[0].len(), seen.len()), (KEEP, 2));
    }

    #[test]
    fn right_after_the_start_there_is_nothing_to_compare_with() {
        let (history, metrics) = (History::default(), Arc::new(PortMetrics::default()));
        let now = Instant::now();
        assert_eq!(history.of(0, &port(0), &metrics, now), (None, Columns::default()));
        history.sample(&[port(0)], slice::from_ref(&metrics), now);
        metrics.accept();
        let (recent, columns) = history.of(0, &port(0), &metrics, now);
        assert!((recent.expect("one sample").accepted_per_second - 2.0).abs() < 0.01);
        assert_eq!(columns.active.len(), 0);
    }

    #[test]
    fn who_left_by_himself_was_not_turned_away() {
        let (history, metrics) = (History::default(), Arc::new(PortMetrics::default()));
        let start = Instant::now();
        history.sample(&[port(0)], slice::from_ref(&metrics), start);
        metrics.end_request(Outcome::Refused(Reason::ClientGone), Duration::ZERO);
        metrics.end_request(Outcome::Refused(Reason::QueueTimeout), Duration::ZERO);
        history.sample(&[port(0)], slice::from_ref(&metrics), start + EVERY);
        let (_, columns) = history.of(0, &port(0), &metrics, start + EVERY);
        assert_eq!(columns.refused_per_second, [1.0]);
    }
}
