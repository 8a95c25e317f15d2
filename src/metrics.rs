//! Every instrument of the data plane, in one struct per port. Counting is one relaxed atomic
//! addition; names, labels and text formats are the admin server's business (`admin/`), gauges are
//! read at scrape time from what they describe.

mod demand;
mod histogram;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::outcome::{Outcome, Reason};

pub use demand::Demand;
pub use histogram::{Histogram, Snapshot};

/// What happened on one port so far. Counters only grow.
#[derive(Debug)]
pub struct PortMetrics {
    accepted: AtomicU64,
    admitted: AtomicU64,
    /// TCP connections, which are units of admission themselves.
    ended_connections: Ended,
    /// Requests.
    ended_requests: Ended,
    /// Connections that have closed and were no unit of admission: requests came on them, or nothing.
    carriers: AtomicU64,
    /// Connections to the application that were made, and those of them that have ended.
    app_connections: [AtomicU64; 2],
    /// Slots given back, and how long they were held together, in microseconds.
    slots: [AtomicU64; 2],
    /// Bytes read from clients, and from the application; the relays add to them as they go.
    pub bytes: Arc<[AtomicU64; 2]>,
    /// How long who was not let in at once waited in the queue, whether admitted or refused then.
    pub waits: Histogram,
    /// From accept to release, of TCP connections that reached the application.
    pub connections: Histogram,
    /// From arrival to the end of both bodies, of requests that reached the application.
    pub requests: Histogram,
}

/// How units of admission of one kind have ended.
#[derive(Debug, Default)]
struct Ended {
    carried: [AtomicU64; Outcome::CARRIED.len()],
    refused: [AtomicU64; Reason::ALL.len()],
}

/// Steps of 1, 2 and 5, so that a percentile is off by half at most. What is shorter than a
/// millisecond nobody notices. The default timeouts of the queue, 1 and 5 s, have a little room: who
/// waited in vain is found a moment after them, and must not count as a wait of twice that.
const WAITS: [Duration; 14] = [
    Duration::from_millis(1),
    Duration::from_millis(2),
    Duration::from_millis(5),
    Duration::from_millis(10),
    Duration::from_millis(20),
    Duration::from_millis(50),
    Duration::from_millis(100),
    Duration::from_millis(200),
    Duration::from_millis(500),
    Duration::from_millis(1050),
    Duration::from_millis(2050),
    Duration::from_millis(5050),
    Duration::from_secs(10),
    Duration::from_secs(60),
];

/// A request of a quick application takes half a millisecond, a stream or a connection a day. In the
/// middle, where people wait for answers, steps of 1, 2 and 5; beyond a minute it is enough to know
/// the kind.
const DURATIONS: [Duration; 19] = [
    Duration::from_micros(500),
    Duration::from_millis(1),
    Duration::from_millis(2),
    Duration::from_millis(5),
    Duration::from_millis(10),
    Duration::from_millis(20),
    Duration::from_millis(50),
    Duration::from_millis(100),
    Duration::from_millis(200),
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(5),
    Duration::from_secs(10),
    Duration::from_secs(30),
    Duration::from_secs(60),
    Duration::from_secs(600),
    Duration::from_secs(3600),
    Duration::from_secs(86_400),
];

impl Default for PortMetrics {
    fn default() -> Self {
        Self {
            accepted: AtomicU64::new(0),
            admitted: AtomicU64::new(0),
            ended_connections: Ended::default(),
            ended_requests: Ended::default(),
            carriers: AtomicU64::new(0),
            app_connections: Default::default(),
            slots: Default::default(),
            bytes: Arc::default(),
            waits: Histogram::new(&WAITS),
            connections: Histogram::new(&DURATIONS),
            requests: Histogram::new(&DURATIONS),
        }
    }
}

impl PortMetrics {
    /// A connection was accepted.
    pub fn accept(&self) {
        self.accepted.fetch_add(1, Ordering::Relaxed);
    }

    /// A connection got a slot.
    pub fn admit(&self) {
        self.admitted.fetch_add(1, Ordering::Relaxed);
    }

    /// A connection left the queue, one way or the other, after `waited`.
    pub fn wait(&self, waited: Duration) {
        self.waits.observe(waited);
    }

    /// A TCP connection ended.
    pub fn end(&self, outcome: Outcome, lasted: Duration) {
        self.ended_connections.count(outcome, &self.connections, lasted);
    }

    /// A request ended.
    pub fn end_request(&self, outcome: Outcome, lasted: Duration) {
        self.ended_requests.count(outcome, &self.requests, lasted);
    }

    /// A connection closed that was no unit of admission: requests came on it, or nothing.
    pub fn carrier_closed(&self) {
        self.carriers.fetch_add(1, Ordering::Relaxed);
    }

    /// A connection to the application was made.
    pub fn app_connected(&self) {
        self.app_connections[0].fetch_add(1, Ordering::Relaxed);
    }

    /// A connection to the application ended.
    pub fn app_disconnected(&self) {
        self.app_connections[1].fetch_add(1, Ordering::Relaxed);
    }

    /// A slot was given back after it had been `held`.
    pub fn free(&self, held: Duration) {
        self.slots[0].fetch_add(1, Ordering::Relaxed);
        let micros = u64::try_from(held.as_micros()).unwrap_or(u64::MAX);
        self.slots[1].fetch_add(micros, Ordering::Relaxed);
    }

    /// Connections accepted so far.
    pub fn accepted(&self) -> u64 {
        self.accepted.load(Ordering::Relaxed)
    }

    /// Connections that got a slot so far.
    pub fn admitted(&self) -> u64 {
        self.admitted.load(Ordering::Relaxed)
    }

    /// Connections and requests refused so far, by reason.
    pub fn refused(&self) -> impl Iterator<Item = (Reason, u64)> {
        let [connections, requests] = self.ended();
        let of = |ended: &Ended, why| ended.refused[why as usize].load(Ordering::Relaxed);
        Reason::ALL.into_iter().map(move |why| (why, of(connections, why) + of(requests, why)))
    }

    /// Connections and requests that reached the application and have ended, by outcome.
    pub fn carried(&self) -> impl Iterator<Item = (Outcome, u64)> {
        let [connections, requests] = self.ended();
        let of = |ended: &Ended, at: usize| ended.carried[at].load(Ordering::Relaxed);
        let all = Outcome::CARRIED.into_iter().enumerate();
        all.map(move |(at, outcome)| (outcome, of(connections, at) + of(requests, at)))
    }

    /// Connections that have ended, each under one label: TCP connections by their outcome, `http` for
    /// those that requests came on, or nothing.
    pub fn connections_ended(&self) -> BTreeMap<&'static str, u64> {
        let mut ended = self.ended_connections.by_label();
        ended.insert("http", self.carriers.load(Ordering::Relaxed));
        ended
    }

    /// Requests that have ended, by their outcome.
    pub fn requests_ended(&self) -> BTreeMap<&'static str, u64> {
        self.ended_requests.by_label()
    }

    /// Connections to the application that are open. Those that carry HTTP/1 are kept in seats and
    /// counted there.
    pub fn app_connections(&self) -> u64 {
        // What has ended first: it had been made before.
        let [made, ended] = &self.app_connections;
        let ended = ended.load(Ordering::Relaxed);
        made.load(Ordering::Relaxed).saturating_sub(ended)
    }

    /// Slots given back so far, and how long they were held together.
    pub fn slots(&self) -> (u64, Duration) {
        let [count, micros] = &self.slots;
        let count = count.load(Ordering::Relaxed);
        (count, Duration::from_micros(micros.load(Ordering::Relaxed)))
    }

    fn ended(&self) -> [&Ended; 2] {
        [&self.ended_connections, &self.ended_requests]
    }

    /// Bytes read from clients and from the application.
    pub fn bytes(&self) -> [u64; 2] {
        [0, 1].map(|side: usize| self.bytes[side].load(Ordering::Relaxed))
    }
}

impl Ended {
    fn count(&self, outcome: Outcome, durations: &Histogram, lasted: Duration) {
        let counter = match outcome {
            Outcome::Refused(reason) => &self.refused[reason as usize],
            carried => {
                durations.observe(lasted);
                let at = Outcome::CARRIED.iter().position(|other| *other == carried);
                &self.carried[at.expect("every outcome that is no refusal is in CARRIED")]
            }
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// Each under one label: what the gate refused is `refused`, what failed after it was admitted has
    /// the label of why.
    fn by_label(&self) -> BTreeMap<&'static str, u64> {
        let carried = Outcome::CARRIED.into_iter().zip(&self.carried);
        let carried = carried.map(|(outcome, n)| (outcome.label(), n));
        let refused = Reason::ALL.into_iter().zip(&self.refused).map(|(reason, n)| {
            let label = if reason.is_of_the_gate() {
                Outcome::Refused(reason).label()
            } else {
                reason.label()
            };
            (label, n)
        });
        let mut ended = BTreeMap::new();
        for (label, n) in carried.chain(refused) {
            *ended.entry(label).or_default() += n.load(Ordering::Relaxed);
        }
        ended
    }
}
