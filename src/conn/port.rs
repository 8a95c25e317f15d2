//! What all connections of a port share, and what all ports of the process share.

use std::net::SocketAddr;
use std::ops::Deref;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use socket2::Socket;
use tokio_util::task::TaskTracker;

use super::Config;
use super::registry::{Registered, Registry};
use super::seats::Seats;
use super::trace::Tracer;
use crate::access::{self, Wanted};
use crate::io::App;
use crate::io::listen::{self, Backlog};
use crate::journal::Journal;
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
    /// Connections to the application that carry HTTP, of all workers.
    pub seats: Arc<Seats>,
    /// The [`Wanted`] of the settings, where a request finds it without a lock.
    access_log: AtomicU8,
    /// A descriptor of the listening socket, to ask the kernel about its backlog. Gone as soon as a
    /// worker has stopped accepting, so that the socket closes when the workers have closed theirs.
    listener: Mutex<Option<Socket>>,
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
    /// What was refused or broke of late.
    pub journal: Arc<Journal>,
    /// Where requests that are over are written down, if somebody wants it.
    pub access: access::Log,
    /// Raised when the listeners have to close.
    pub closing: Signal,
    /// Raised when what is still open has to be cut.
    pub cut: Signal,
    /// What is recorded for traces, if anybody collects them.
    pub tracer: Option<Arc<Tracer>>,
    max_connections: AtomicU32,
    /// Connections beyond these that are being told so.
    heard: AtomicU32,
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
            protocol,
            pace: Pace::default(),
            seats: Arc::default(),
            access_log: AtomicU8::new(begin_access_log(&shared, config.access_log)),
            shared,
            listener: Mutex::new(None),
            config: RwLock::new(Arc::new(config)),
        };
        Self { listen, apps, app_text, gated: Arc::new(gated) }
    }

    /// Another way to the same gate: what was called is what is dialled.
    pub fn leading_to(&self, called: SocketAddr) -> Self {
        let (apps, app_text) = (vec![App::Tcp(called)], called.to_string());
        Self { listen: called, apps, app_text, gated: self.gated.clone() }
    }

    /// Count and list a connection that has just been accepted: from now on a drain waits for it.
    pub fn list(&self, client: Option<SocketAddr>, since: Instant) -> Registered {
        self.shared.registry.add(self.listen, &self.metrics, client, since)
    }
}

impl Deref for Port {
    type Target = Gated;

    fn deref(&self) -> &Gated {
        &self.gated
    }
}

impl Gated {
    /// Keep this descriptor of the listening socket, for [`Gated::backlog`].
    pub fn listens_on(&self, socket: Socket) {
        *self.listener.lock().unwrap_or_else(PoisonError::into_inner) = Some(socket);
    }

    /// A worker accepts no more here.
    pub fn unlisten(&self) {
        self.listener.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    /// Connections that wait in the kernel to be accepted. `None`: it does not listen any more, or
    /// the kernel does not say.
    pub fn backlog(&self) -> Option<Backlog> {
        let listener = self.listener.lock().unwrap_or_else(PoisonError::into_inner);
        listen::backlog(listener.as_ref()?)
    }

    /// Connections to the application that are open, whatever they carry.
    pub fn app_connections(&self) -> u64 {
        u64::from(self.seats.open()) + self.metrics.app_connections()
    }

    /// The settings for a connection that comes now.
    pub fn config(&self) -> Arc<Config> {
        self.config.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What is written to the access log.
    pub fn access_log(&self) -> Wanted {
        Wanted::from_u8(self.access_log.load(Ordering::Relaxed))
    }

    /// New settings, for connections that come from now on; the gate has its own already.
    pub fn configure(&self, config: Config) {
        self.access_log.store(begin_access_log(&self.shared, config.access_log), Ordering::Relaxed);
        *self.config.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(config);
        self.seats.limit_changed();
    }
}

/// What a port will write to the access log, whose thread runs from now on if that is anything.
fn begin_access_log(shared: &Shared, wanted: Wanted) -> u8 {
    if wanted != Wanted::Off
        && let Err(error) = shared.access.begin()
    {
        tracing::error!(%error, "the thread that writes the access log cannot be started");
    }
    wanted as u8
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
            journal: Arc::default(),
            access: access::Log::default(),
            accepting: TaskTracker::new(),
            closing,
            cut,
            tracer,
            max_connections: AtomicU32::new(max_connections),
            heard: AtomicU32::new(0),
            listening,
        }
    }

    /// Connections the gateway itself may hold, of all ports together.
    pub fn max_connections(&self) -> u32 {
        self.max_connections.load(Ordering::Relaxed)
    }

    /// Connections beyond these that are being told so.
    pub fn heard(&self) -> u64 {
        u64::from(self.heard.load(Ordering::Relaxed))
    }

    /// One more, if there is room for it; to be taken back with [`Shared::has_heard`].
    pub fn hears(&self) -> bool {
        /// One of eight, and no more than these: what is held for nothing is to be small.
        const MOST: u32 = 64;
        let most = (self.max_connections() / 8).clamp(1, MOST);
        let more = |heard| (heard < most).then_some(heard + 1);
        self.heard.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok()
    }

    /// One less.
    pub fn has_heard(&self) {
        self.heard.fetch_sub(1, Ordering::Relaxed);
    }

    /// Change how many.
    pub fn set_max_connections(&self, most: u32) {
        self.max_connections.store(most, Ordering::Relaxed);
    }

    /// Whether a port is one of those this process listens on, at whatever address.
    pub fn listens_on(&self, port: u16) -> bool {
        self.listening.iter().any(|ours| ours.port() == port)
    }

    /// The ports this process listens on.
    pub fn own_ports(&self) -> Vec<u16> {
        self.listening.iter().map(SocketAddr::port).collect()
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
