//! Every instrument of the data plane, in one struct per port. Counting is one relaxed atomic
//! addition; names, labels and text formats are the admin server's business (`admin/`), gauges are
//! read at scrape time from what they describe.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use prometheus_client::metrics::histogram::Histogram;

use crate::outcome::{Outcome, Reason};

/// What happened on one port so far. Counters only grow.
#[derive(Debug)]
pub struct PortMetrics {
    accepted: AtomicU64,
    admitted: AtomicU64,
    carried: [AtomicU64; Outcome::CARRIED.len()],
    refused: [AtomicU64; Reason::ALL.len()],
    /// Bytes read from clients, and from the application; the relays add to them as they go.
    pub bytes: Arc<[AtomicU64; 2]>,
    /// Seconds an admitted or refused connection waited in the queue; only those that waited.
    pub wait_seconds: Histogram,
    /// Seconds from accept to release of connections that reached the application.
    pub connection_seconds: Histogram,
}

/// Waits are judged against `queue-timeout`, typically 0.1 to 5 s.
const WAIT_BUCKETS: [f64; 12] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0];

/// Connections live from a request to a day.
const CONNECTION_BUCKETS: [f64; 12] =
    [0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0, 600.0, 3600.0, 86_400.0];

impl Default for PortMetrics {
    fn default() -> Self {
        Self {
            accepted: AtomicU64::new(0),
            admitted: AtomicU64::new(0),
            carried: Default::default(),
            refused: Default::default(),
            bytes: Arc::default(),
            wait_seconds: Histogram::new(WAIT_BUCKETS),
            connection_seconds: Histogram::new(CONNECTION_BUCKETS),
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
        self.wait_seconds.observe(waited.as_secs_f64());
    }

    /// A connection ended.
    pub fn end(&self, outcome: Outcome, lasted: Duration) {
        let counter = match outcome {
            Outcome::Refused(reason) => &self.refused[reason as usize],
            carried => {
                self.connection_seconds.observe(lasted.as_secs_f64());
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
