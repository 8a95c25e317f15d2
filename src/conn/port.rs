//! What all connections of a port share, and what all ports of the process share.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use tokio_util::task::TaskTracker;

use super::Config;
use super::registry::Registry;
use super::seats::Seats;
use super::trace::Tracer;
use crate::io::App;
use crate::lifecycle::Signal;
use crate::limit::Gate;
use crate::metrics::PortMetrics;

/// One listening port: its gate, its settings, its counters.
pub struct Port {
    /// Where it listens, with the port the kernel chose if it was told 0.
    pub listen: SocketAddr,
    /// The application's addresses, to be tried in this order.
    pub apps: Vec<App>,
    /// The application's address as the user wrote it.
    pub app_text: String,
    /// Who may in.
    pub gate: Gate,
    /// What happened here so far.
    pub metrics: Arc<PortMetrics>,
    /// What the ports have in common.
    pub shared: Arc<Shared>,
    /// What clients speak here.
    pub protocol: Protocol,
    /// How long requests take (HTTP).
    pub pace: Pace,
    /// Connections to the application that carry HTTP, of all workers.
    pub seats: Arc<Seats>,
    config: RwLock<Arc<Config>>,
}

/// What clients speak on a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// Their first bytes tell.
    Auto,
    /// HTTP/1 or HTTP/2: a slot is a request.
    Http,
    /// Anything: a slot is a connection.
    Tcp,
}

/// How long the application takes for a request: a moving average.
#[derive(Debug, Default)]
pub struct Pace {
    /// In nanoseconds; 0: nothing is known.
    mean: AtomicU64,
}

/// What the ports of one process share.
pub struct Shared {
    /// Every open connection.
    pub registry: Registry,
    /// The accept loops that have not ended; each holds a token from before its thread starts.
    pub accepting: TaskTracker,
    /// Raised when the listeners have to close.
    pub closing: Signal,
    /// Raised when what is still open has to be cut.
    pub cut: Signal,
    /// What is recorded for traces, if anybody collects them.
    pub tracer: Option<Arc<Tracer>>,
    max_connections: AtomicU32,
    /// Every address this process listens on.
    listening: Vec<SocketAddr>,
}

impl Port {
    /// A port that has not accepted anything yet.
    pub fn new(
        listen: SocketAddr,
        app_text: String,
        apps: Vec<App>,
        protocol: Protocol,
        gate: Gate,
        config: Config,
        shared: Arc<Shared>,
    ) -> Self {
        Self {
            listen,
            apps,
            app_text,
            gate,
            metrics: Arc::default(),
            shared,
            protocol,
            pace: Pace::default(),
            seats: Arc::default(),
            config: RwLock::new(Arc::new(config)),
        }
    }

    /// The settings for a connection that comes now.
    pub fn config(&self) -> Arc<Config> {
        self.config.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// New settings, for connections that come from now on; the gate has its own already.
    pub fn configure(&self, config: Config) {
        *self.config.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(config);
        self.seats.limit_changed();
    }
}

impl Protocol {
    /// The word in settings and status.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Http => "http",
            Self::Tcp => "tcp",
        }
    }
}

impl Pace {
    /// A request took this long. Workers may overwrite each other's: an average loses little.
    pub fn observe(&self, took: Duration) {
        /// How much of the past one request makes forgotten: an eighth, as TCP's round-trip time
        /// (RFC 6298).
        const WEIGHT: u64 = 8;
        let took = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX / 2).max(1);
        let mean = self.mean.load(Ordering::Relaxed);
        let next = if mean == 0 { took } else { mean - mean / WEIGHT + took / WEIGHT };
        self.mean.store(next.max(1), Ordering::Relaxed);
    }

    /// How long a request takes, if any has been seen.
    pub fn mean(&self) -> Option<Duration> {
        match self.mean.load(Ordering::Relaxed) {
            0 => None,
            nanos => Some(Duration::from_nanos(nanos)),
        }
    }
}

impl Shared {
    /// Nothing open yet; at most `max_connections` at once. `listening`: every address of ours.
    pub fn new(
        max_connections: u32,
        listening: Vec<SocketAddr>,
        closing: Signal,
        cut: Signal,
        tracer: Option<Arc<Tracer>>,
    ) -> Self {
        Self {
            registry: Registry::default(),
            accepting: TaskTracker::new(),
            closing,
            cut,
            tracer,
            max_connections: AtomicU32::new(max_connections),
            listening,
        }
    }

    /// Connections the gateway itself may hold, of all ports together.
    pub fn max_connections(&self) -> u32 {
        self.max_connections.load(Ordering::Relaxed)
    }

    /// Change how many.
    pub fn set_max_connections(&self, most: u32) {
        self.max_connections.store(most, Ordering::Relaxed);
    }

    /// Whether connecting from `local` to `peer` has led to one of our own listening sockets: the
    /// connection would go round in a circle.
    pub fn is_loop(&self, local: SocketAddr, peer: SocketAddr) -> bool {
        let here = local.ip() == peer.ip() || peer.ip().is_loopback();
        here && self.listening.iter().any(|ours| {
            ours.port() == peer.port() && (ours.ip().is_unspecified() || ours.ip() == peer.ip())
        })
    }
}
