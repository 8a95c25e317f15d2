//! Every instrument of the data plane, in one struct per port. Counting is one relaxed atomic
//! addition; names, labels and text formats are the admin server's business (`admin/`), gauges are
//! read at scrape time from what they describe.

mod histogram;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::outcome::{Outcome, Reason};

pub use histogram::{Histogram, Snapshot};

/// What happened on one port so far. Counters only grow.
#[derive(Debug)]
pub struct PortMetrics {
    accepted: AtomicU64,
    admitted: AtomicU64,
    carried: [AtomicU64; Outcome::CARRIED.len()],
    refused: [AtomicU64; Reason::ALL.len()],
    /// Bytes read from clients, and from the application; the relays add to them as they go.
    pub bytes: Arc<[AtomicU64; 2]>,
    /// How long who was not let in at once waited in the queue, whether admitted or refused then.
    pub waits: Histogram,
    /// From accept to release, of TCP connections that reached the application.
    pub connections: Histogram,
    /// From arrival to the end of both bodies, of requests that reached the application.
    pub requests: Histogram,
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
            carried: Default::default(),
            refused: Default::default(),
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
        self.count(outcome, &self.connections, lasted);
    }

    /// A request ended.
    pub fn end_request(&self, outcome: Outcome, lasted: Duration) {
        self.count(outcome, &self.requests, lasted);
    }

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

    /// Connections accepted so far.
    pub fn accepted(&self) -> u64 {
        self.accepted.load(Ordering::Relaxed)
    }

    /// Connections that got a slot so far.
    pub fn admitted(&self) -> u64 {
        self.admitted.load(Ordering::Relaxed)
    }

    /// Connections refused so far, by reason.
    pub fn refused(&self) -> impl Iterator<Item = (Reason, u64)> {
        Reason::ALL.into_iter().map(|r| (r, self.refused[r as usize].load(Ordering::Relaxed)))
    }

    /// Connections that reached the application and have ended, by outcome.
    pub fn carried(&self) -> impl Iterator<Item = (Outcome, u64)> {
        Outcome::CARRIED
            .into_iter()
            .zip(&self.carried)
            .map(|(outcome, count)| (outcome, count.load(Ordering::Relaxed)))
    }

    /// Bytes read from clients and from the application.
    pub fn bytes(&self) -> [u64; 2] {
        [0, 1].map(|side: usize| self.bytes[side].load(Ordering::Relaxed))
    }
}
