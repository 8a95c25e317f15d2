//! Every open connection, for the connection list, `max-connections` and the drain.
//!
//! Always true: a connection is listed from before its first decision until after its last; the
//! list costs one short lock at either end of a connection and none in between.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::io::Traffic;
use crate::metrics::PortMetrics;

/// How far a connection has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Stage {
    /// Accepted, waiting for a slot.
    Queued,
    /// Its first bytes are to tell what it speaks.
    Greeting,
    /// Requests are served on it.
    Serving,
    /// It has a slot; the application is being dialled.
    Connecting,
    /// Bytes move.
    Relaying,
    /// The client has left, the application has not finished yet.
    Ending,
}

/// The list of open connections.
#[derive(Default)]
pub struct Registry {
    rows: Arc<Rows>,
}

#[derive(Default)]
struct Rows {
    open: AtomicU64,
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    rows: Vec<Option<Arc<Row>>>,
    free: Vec<usize>,
    next_id: u64,
}

/// One open connection, readable from any thread.
pub struct Row {
    /// Unique in this process.
    pub id: u64,
    /// The port that accepted it.
    pub port: SocketAddr,
    /// Who it is from.
    pub client: Option<SocketAddr>,
    /// When it was accepted.
    pub since: Instant,
    /// Bytes carried so far.
    pub traffic: Arc<Traffic>,
    stage: AtomicU8,
    /// How long it was there before it asked the gate for a slot, in units of 10 µs, so that half a day fits.
    asked: AtomicU32,
    /// How long it was in the queue then, in the same units; 0: it was not.
    waited: AtomicU32,
    /// Its end has been counted, as that of a unit of admission.
    counted: AtomicBool,
    /// The application has a connection for it.
    dialled: AtomicBool,
    metrics: Arc<PortMetrics>,
}

/// The listing of one connection; dropping it takes it off the list.
pub struct Registered {
    row: Arc<Row>,
    index: usize,
    rows: Arc<Rows>,
}

impl Stage {
    /// The word in the connection list.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Greeting => "greeting",
            Self::Serving => "serving",
            Self::Connecting => "connecting",
            Self::Relaying => "relaying",
            Self::Ending => "ending",
        }
    }

    const fn from_u8(value: u8) -> Self {
        match value {
            0 => Self::Queued,
            1 => Self::Greeting,
            2 => Self::Serving,
            3 => Self::Connecting,
            4 => Self::Relaying,
            _ => Self::Ending,
        }
    }
}

impl Registry {
    /// Count and list a connection that has just been accepted.
    pub fn add(
        &self,
        port: SocketAddr,
        metrics: &Arc<PortMetrics>,
        client: Option<SocketAddr>,
        since: Instant,
    ) -> Registered {
        metrics.accept();
        self.rows.open.fetch_add(1, Ordering::Relaxed);
        let mut table = self.rows.table.lock().unwrap_or_else(PoisonError::into_inner);
        table.next_id += 1;
        let row = Arc::new(Row {
            id: table.next_id,
            port,
            client,
            since,
            traffic: Arc::default(),
            stage: AtomicU8::new(Stage::Queued as u8),
            asked: AtomicU32::new(0),
            waited: AtomicU32::new(0),
            counted: AtomicBool::new(false),
            dialled: AtomicBool::new(false),
            metrics: metrics.clone(),
        });
        let index = match table.free.pop() {
            Some(index) => {
                table.rows[index] = Some(row.clone());
                index
            }
            None => {
                table.rows.push(Some(row.clone()));
                table.rows.len() - 1
            }
        };
        drop(table);
        Registered { row, index, rows: self.rows.clone() }
    }

    /// How many connections are open.
    pub fn open(&self) -> u64 {
        self.rows.open.load(Ordering::Relaxed)
    }

    /// The open connections, oldest first.
    pub fn list(&self) -> Vec<Arc<Row>> {
        let table = self.rows.table.lock().unwrap_or_else(PoisonError::into_inner);
        let mut rows: Vec<_> = table.rows.iter().flatten().cloned().collect();
        drop(table);
        rows.sort_by_key(|row| row.id);
        rows
    }
}

impl Row {
    /// How far it has come.
    pub fn stage(&self) -> Stage {
        Stage::from_u8(self.stage.load(Ordering::Relaxed))
    }
}

impl Registered {
    /// It has come to `stage`.
    pub fn enter(&self, stage: Stage) {
        self.row.stage.store(stage as u8, Ordering::Relaxed);
    }

    /// It asks the gate for a slot only now.
    pub fn asks(&self, now: Instant) {
        let late = now.saturating_duration_since(self.since());
        self.row.asked.store(units(late), Ordering::Relaxed);
    }

    /// How long ago it asked the gate for a slot.
    pub fn since_it_asked(&self, now: Instant) -> Duration {
        let late = length(self.row.asked.load(Ordering::Relaxed));
        now.saturating_duration_since(self.since() + late)
    }

    /// It has been in the queue for so long, and is no more.
    pub fn has_waited(&self, waited: Duration) {
        self.row.waited.store(units(waited).max(1), Ordering::Relaxed);
    }

    /// How long it was in the queue, if it was.
    pub fn waited(&self) -> Option<Duration> {
        let units = self.row.waited.load(Ordering::Relaxed);
        (units > 0).then(|| length(units))
    }

    /// Its end has been counted, as that of a unit of admission.
    pub fn counted(&self) {
        self.row.counted.store(true, Ordering::Relaxed);
    }

    /// The application has a connection for it now, or not any more.
    pub fn dialled(&self, has: bool) {
        let had = self.row.dialled.swap(has, Ordering::Relaxed);
        match (had, has) {
            (false, true) => self.row.metrics.app_connected(),
            (true, false) => self.row.metrics.app_disconnected(),
            _ => {}
        }
    }

    /// When it was accepted.
    pub fn since(&self) -> Instant {
        self.row.since
    }

    /// Who it is from.
    pub fn client(&self) -> Option<SocketAddr> {
        self.row.client
    }

    /// Unique in this process.
    pub fn id(&self) -> u64 {
        self.row.id
    }

    /// The byte counters of its relay.
    pub fn traffic(&self) -> &Arc<Traffic> {
        &self.row.traffic
    }
}

/// A duration in the units of a [`Row`].
fn units(duration: Duration) -> u32 {
    u32::try_from(duration.as_micros() / 10).unwrap_or(u32::MAX)
}

fn length(units: u32) -> Duration {
    Duration::from_micros(u64::from(units) * 10)
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.dialled(false);
        if !self.row.counted.load(Ordering::Relaxed) {
            self.row.metrics.carrier_closed();
        }
        let mut table = self.rows.table.lock().unwrap_or_else(PoisonError::into_inner);
        table.rows[self.index] = None;
        table.free.push(self.index);
        drop(table);
        self.rows.open.fetch_sub(1, Ordering::Relaxed);
    }
}
