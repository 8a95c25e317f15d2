//! What all connections of a port share, and what all ports of the process share.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use tokio_util::sync::CancellationToken;

use super::Config;
use super::registry::Registry;
use crate::io::App;
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
    config: RwLock<Arc<Config>>,
}

/// What the ports of one process share.
pub struct Shared {
    /// Every open connection.
    pub registry: Registry,
    /// Cancelled when the listeners have to close.
    pub closing: CancellationToken,
    /// Cancelled when what is still open has to be cut.
    pub cut: CancellationToken,
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
        gate: Gate,
        config: Config,
        shared: Arc<Shared>,
    ) -> Self {
        let config = RwLock::new(Arc::new(config));
        Self { listen, apps, app_text, gate, metrics: Arc::default(), shared, config }
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

impl Shared {
    /// Nothing open yet; at most `max_connections` at once. `listening`: every address of ours.
    pub fn new(
        max_connections: u32,
        listening: Vec<SocketAddr>,
        closing: CancellationToken,
        cut: CancellationToken,
    ) -> Self {
        Self {
            registry: Registry::default(),
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

    /// Whether connecting from `local` to `peer` has led to one of our own listening sockets: the
    /// connection would go round in a circle.
    pub fn is_loop(&self, local: SocketAddr, peer: SocketAddr) -> bool {
        let here = local.ip() == peer.ip() || peer.ip().is_loopback();
        here && self.listening.iter().any(|ours| {
            ours.port() == peer.port() && (ours.ip().is_unspecified() || ours.ip() == peer.ip())
        })
    }
}
