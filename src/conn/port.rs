//! What all connections of a port share, and what all ports of the process share.

use std::net::SocketAddr;
use std::ops::Deref;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use tokio::sync::Notify;
use tokio_util::task::TaskTracker;

use super::Config;
use super::registry::Registry;
use crate::io::App;
use crate::lifecycle::Signal;
use crate::limit::Gate;
use crate::metrics::PortMetrics;

/// One way in: what clients call, and where it leads. Everything else about it is [`Gated`].
pub struct Port {
    /// Where it listens, with the port the kernel chose if it was told 0; of a captured connection,
    /// the address that was called.
    pub listen: SocketAddr,
    /// The application's addresses, to be tried in this order.
    pub apps: Vec<App>,
    /// The application's address as the user wrote it.
    pub app_text: String,
    gated: Arc<Gated>,
}

/// What is behind one gate: its settings, its counters. A captured port has one for all addresses of
/// the machine.
pub struct Gated {
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
    /// Rung when the application has a connection less.
    pub app_room: Notify,
    /// Rung when somebody needs an idle connection of another worker to be closed.
    pub app_spare: Notify,
    /// Connections to the application that carry HTTP, of all workers.
    app_connections: AtomicU32,
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

/// The right to one connection to the application of an HTTP port; dropping it gives it back.
pub struct AppSeat {
    port: Arc<Port>,
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
        let gated = Gated {
            gate,
            metrics: Arc::default(),
            shared,
            protocol,
            pace: Pace::default(),
            app_room: Notify::new(),
            app_spare: Notify::new(),
            app_connections: AtomicU32::new(0),
            config: RwLock::new(Arc::new(config)),
        };
        Self { listen, apps, app_text, gated: Arc::new(gated) }
    }

    /// Another way to the same gate: what was called is what is dialled.
    pub fn leading_to(&self, called: SocketAddr) -> Self {
        let (apps, app_text) = (vec![App::Tcp(called)], called.to_string());
        Self { listen: called, apps, app_text, gated: self.gated.clone() }
    }
}

impl Deref for Port {
    type Target = Gated;

    fn deref(&self) -> &Gated {
        &self.gated
    }
}

impl Gated {
    /// Whether the application may have one more connection that carries HTTP.
    pub fn has_app_room(&self) -> bool {
        self.app_connections.load(Ordering::Acquire) < self.gate.limit()
    }

    /// Whether it has more than it may: the limit was lowered.
    pub fn has_too_many_app_connections(&self) -> bool {
        self.app_connections.load(Ordering::Acquire) > self.gate.limit()
    }

    /// The settings for a connection that comes now.
    pub fn config(&self) -> Arc<Config> {
        self.config.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// New settings, for connections that come from now on.
    pub fn configure(&self, config: Config) {
        *self.config.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(config);
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

impl AppSeat {
    /// One more connection, if the limit allows it.
    pub fn take(port: &Arc<Port>) -> Option<Self> {
        let limit = port.gate.limit();
        let more = |open: u32| (open < limit).then_some(open + 1);
        let taken = port.app_connections.fetch_update(Ordering::AcqRel, Ordering::Acquire, more);
        taken.ok().map(|_| Self { port: port.clone() })
    }
}

impl Drop for AppSeat {
    fn drop(&mut self) {
        self.port.app_connections.fetch_sub(1, Ordering::AcqRel);
        self.port.app_room.notify_one();
    }
}

impl Shared {
    /// Nothing open yet; at most `max_connections` at once. `listening`: every address of ours.
    pub fn new(
        max_connections: u32,
        listening: Vec<SocketAddr>,
        closing: Signal,
        cut: Signal,
    ) -> Self {
        Self {
            registry: Registry::default(),
            accepting: TaskTracker::new(),
            closing,
            cut,
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

    /// Whether a port is one of those this process listens on, at whatever address.
    pub fn listens_on(&self, port: u16) -> bool {
        self.listening.iter().any(|ours| ours.port() == port)
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
