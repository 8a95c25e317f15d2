//! What all connections of a port share, and what all ports of the process share.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

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
    /// Our own ends of the connections to applications. A client that comes from one of them is
    /// ourselves: the connection went round in a circle.
    own_ends: Mutex<HashSet<SocketAddr>>,
}

/// Our end of a connection to the application, known as ours while this lives.
pub struct OwnEnd {
    addr: SocketAddr,
    shared: Arc<Shared>,
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
    /// Nothing open yet; at most `max_connections` at once.
    pub fn new(max_connections: u32, closing: CancellationToken, cut: CancellationToken) -> Self {
        Self {
            registry: Registry::default(),
            closing,
            cut,
            max_connections: AtomicU32::new(max_connections),
            own_ends: Mutex::default(),
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

    /// Remember `addr` as our own end until the answer is dropped.
    pub fn own(self: &Arc<Self>, addr: SocketAddr) -> OwnEnd {
        self.own_ends.lock().unwrap_or_else(PoisonError::into_inner).insert(addr);
        OwnEnd { addr, shared: self.clone() }
    }

    /// Whether a connection from `peer` is one of our own.
    pub fn is_own(&self, peer: SocketAddr) -> bool {
        self.own_ends.lock().unwrap_or_else(PoisonError::into_inner).contains(&peer)
    }
}

impl Drop for OwnEnd {
    fn drop(&mut self) {
        self.shared.own_ends.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.addr);
    }
}
