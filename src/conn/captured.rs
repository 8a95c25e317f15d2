//! Captured ports: one listening socket for many ports, of which each has its gate. Which port a
//! connection belongs to is known only once it has been accepted, from where it was going.
//!
//! ```text
//!   accepted ── origin ──→ 10.0.0.7:8080 ──→ the gate of 8080, and a way to exactly that address
//!                └ astray: turned away once, counted on the capture port itself
//! ```
//!
//! Always true: a port has one gate, whatever address of it is called and whichever worker takes the
//! call, from its first connection to the end of the process; a way leads only to an address of this
//! machine; there are no more gates than ports that settings name, [`MOST_UNNAMED`] others that somebody
//! has listened on, and one that all further ports share.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Instant;

use socket2::{SockRef, Socket};
use tokio_util::task::TaskTracker;

use super::http::Upstream;
use super::port::{Port, Protocol, Shared};
use super::{Config, accept};
use crate::capture::origin::{self, Astray};
use crate::capture::{PortSet, sockets};
use crate::io::{Accepted, Engine};
use crate::limit::{self, Gate, Mode};
use crate::outcome::Reason;

/// So many ports get a gate of their own because they are called. A program that listens on a new port for
/// every transfer has as many as it likes, and a gate, its counters and its history stay for good.
pub const MOST_UNNAMED: usize = 64;

/// The number that the gate of all further ports is known by; nobody listens on it.
const OTHERS: u16 = 0;

/// What holds on a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Terms {
    /// What clients speak there.
    pub protocol: Protocol,
    /// Settings of the gate.
    pub gate: limit::Settings,
    /// Settings of everything else.
    pub conn: Config,
}

/// What holds on every port there could be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TermsByPort {
    /// Where nothing else is said.
    pub usual: Terms,
    /// The ports that are known beforehand.
    pub named: BTreeMap<u16, Terms>,
    /// Those that are gated; whatever comes to another one is passed.
    pub gated: PortSet,
    /// Those that rules are to bring here, if somebody says so: all are gated unless told otherwise, but whoever
    /// writes the rules by hand need not name them twice.
    pub expected: Option<PortSet>,
}

/// The captured ports of the process.
pub struct Captured {
    /// The listening socket itself: what went astray is counted here.
    pub own: Arc<Port>,
    table: RwLock<Table>,
}

/// Why a connection is not carried on, and where it was going, if that is known.
struct NoWay {
    astray: Astray,
    called: Option<SocketAddr>,
}

struct Table {
    terms: TermsByPort,
    /// In the order in which they were seen first. Nothing is ever taken out.
    ports: Vec<Arc<Port>>,
    /// To ports with a gate of their own.
    ways: HashMap<SocketAddr, Arc<Port>>,
    /// Ports that have a connection behind the gate of the others, maybe; so they stay there.
    sharing: BTreeSet<u16>,
    /// Nobody is admitted any more, on ports that are called for the first time neither.
    closed: bool,
}

impl TermsByPort {
    fn of(&self, port: u16) -> Terms {
        let mut terms = self.named.get(&port).unwrap_or(&self.usual).clone();
        if !self.gated.contains(port) {
            terms.gate.mode = Mode::Off;
        }
        terms
    }

    /// What holds on the gate that these ports share: what is said of ports that are not named, unless less
    /// is allowed on one of them.
    fn of_all(&self, sharing: &BTreeSet<u16>) -> Terms {
        let named = sharing.iter().filter_map(|port| self.named.get(port));
        let all = named.chain([&self.usual]);
        let enforced = all.filter(|terms| terms.gate.mode == Mode::Enforce);
        let strictest = enforced.min_by_key(|terms| terms.gate.limit.map_or(u32::MAX, u32::from));
        let gate = strictest.unwrap_or(&self.usual).gate.clone();
        // Connections that share requests would be kept for each of the ports.
        Terms { protocol: Protocol::Tcp, gate, conn: self.usual.conn.clone() }
    }
}

impl Captured {
    /// Nothing seen yet but the ports that settings name.
    pub fn new(listen: SocketAddr, terms: TermsByPort, shared: Arc<Shared>) -> Self {
        let own = Terms {
            gate: limit::Settings {
                mode: Mode::Off,
                limit: None,
                queue_length: 0,
                shadow_limits: Vec::new(),
                ..terms.usual.gate.clone()
            },
            protocol: Protocol::Tcp,
            conn: terms.usual.conn.clone(),
        };
        let own = Arc::new(port(listen, "where it was going".into(), own, shared));
        let mut table = Table {
            terms,
            ports: Vec::new(),
            ways: HashMap::new(),
            sharing: BTreeSet::new(),
            closed: false,
        };
        let named: Vec<u16> = table.terms.named.keys().copied().collect();
        for number in named {
            table.gate(&own, number);
        }
        Self { own, table: RwLock::new(table) }
    }

    /// The ports seen so far; the first stay where they are.
    pub fn ports(&self) -> Vec<Arc<Port>> {
        self.table.read().unwrap_or_else(PoisonError::into_inner).ports.clone()
    }

    /// New settings, for ports that are known and for those to come.
    pub fn apply(&self, terms: TermsByPort) {
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        table.terms = terms;
        for port in &table.ports {
            let terms = match port.listen.port() {
                OTHERS => table.terms.of_all(&table.sharing),
                number => table.terms.of(number),
            };
            port.gate.apply(&terms.gate);
            port.configure(terms.conn);
        }
        self.own.configure(table.terms.usual.conn.clone());
    }

    /// End admission on every port, on those to come too.
    pub fn close(&self) {
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        table.closed = true;
        for port in &table.ports {
            port.gate.close();
        }
    }

    /// Begin admission again, everywhere.
    pub fn open(&self) {
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        table.closed = false;
        for port in &table.ports {
            port.gate.open();
        }
    }

    /// The way to `called`, which is made when it is called for the first time.
    fn way(&self, called: SocketAddr) -> Result<Arc<Port>, NoWay> {
        let known = self.table.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(way) = known.ways.get(&called) {
            return Ok(way.clone());
        }
        if known.sharing.contains(&called.port())
            && let Some(gate) = known.known(OTHERS)
            && origin::is_here(called)
        {
            return Ok(Arc::new(gate.leading_to(called)));
        }
        let named = known.ports.iter().any(|port| port.listen.port() == called.port());
        drop(known);
        if !origin::is_here(called) {
            return Err(NoWay { astray: Astray::Foreign, called: Some(called) });
        }
        // Whoever scans all ports makes no gates.
        if !named && !sockets::listens_at(called).unwrap_or(true) {
            return Err(NoWay { astray: Astray::Nobody, called: Some(called) });
        }
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        let gate = table.gate(&self.own, called.port());
        let way = Arc::new(gate.leading_to(called));
        if gate.listen.port() != called.port() {
            return Ok(way);
        }
        Ok(table.ways.entry(called).or_insert(way).clone())
    }

    /// Where a connection was going, or why it is not carried there.
    fn route(&self, socket: &Socket, peer: Option<SocketAddr>) -> Result<Arc<Port>, NoWay> {
        let is_ours = |port| self.own.shared.listens_on(port);
        origin::of(SockRef::from(socket), peer, is_ours)
            .map_err(|astray| NoWay { astray, called: None })
            .and_then(|called| self.way(called))
    }

    /// The ports that should come here and have no gate of their own: nobody has called them here yet. Empty:
    /// that is not known, or there is none.
    pub fn uncalled(&self) -> PortSet {
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        let Some(expected) = &table.terms.expected else { return PortSet::default() };
        let called = table.ports.iter().map(|port| port.listen.port());
        let known = called.chain(self.own.shared.own_ports());
        expected.minus(&PortSet::of(known.map(|port| [port; 2])))
    }

    /// Whether ports share a gate, so that not every port that is called is one of [`Self::ports`].
    pub fn is_shared(&self) -> bool {
        !self.table.read().unwrap_or_else(PoisonError::into_inner).sharing.is_empty()
    }

    /// Turn away what has no way: no gate is asked about it.
    fn refuse(&self, (socket, peer): Accepted, NoWay { astray, called }: NoWay) {
        let reason = match astray {
            Astray::Nobody => Reason::UpstreamRefused,
            Astray::Direct | Astray::Ours | Astray::Circle | Astray::Foreign => Reason::Loop,
        };
        if reason == Reason::Loop {
            let client = peer.map(tracing::field::display);
            tracing::debug!(port = %self.own.listen, client, why = astray.why(), "a connection went astray");
        }
        // Counted at the capture port, and written down with the port that was meant.
        match called {
            Some(called) => {
                let meant = self.own.leading_to(called);
                accept::refuse_astray(&meant, (socket, peer), (reason, astray));
            }
            None => accept::refuse_astray(&self.own, (socket, peer), (reason, astray)),
        }
    }
}

impl Table {
    /// The gate of a port, which is made when it is asked for the first time.
    fn gate(&mut self, own: &Arc<Port>, number: u16) -> Arc<Port> {
        if let Some(port) = self.known(number) {
            return port;
        }
        if self.sharing.contains(&number) {
            return self.known(OTHERS).expect("it was made when the first port came to share it");
        }
        let is_named = self.terms.named.contains_key(&number);
        if is_named || self.unnamed() < MOST_UNNAMED {
            return self.make(own, number, "captured", self.terms.of(number));
        }
        if !self.terms.gated.contains(number) {
            // The capture port's own gate lets everybody pass.
            return own.clone();
        }
        self.sharing.insert(number);
        self.known(OTHERS).unwrap_or_else(|| {
            tracing::warn!(
                port = number, own_gates = MOST_UNNAMED,
                "so many captured ports have been called that this one and further ones share one gate, as TCP; \
                 those that settings name at the start have their own"
            );
            self.make(own, OTHERS, "further captured ports", self.terms.of_all(&self.sharing))
        })
    }

    fn known(&self, number: u16) -> Option<Arc<Port>> {
        self.ports.iter().find(|port| port.listen.port() == number).cloned()
    }

    /// How many ports have a gate only because they were called.
    fn unnamed(&self) -> usize {
        let named = &self.terms.named;
        self.ports.iter().filter(|port| !named.contains_key(&port.listen.port())).count()
    }

    fn make(&mut self, own: &Port, number: u16, text: &str, terms: Terms) -> Arc<Port> {
        let listen = SocketAddr::new(own.listen.ip(), number);
        let port = Arc::new(port(listen, text.to_owned(), terms, own.shared.clone()));
        if self.closed {
            port.gate.close();
        }
        self.ports.push(port.clone());
        port
    }
}

fn port(listen: SocketAddr, text: String, terms: Terms, shared: Arc<Shared>) -> Port {
    let Terms { protocol, gate, conn } = terms;
    Port::new(listen, text, Vec::new(), protocol, Gate::new(&gate), conn, shared)
}

/// One worker's end of the captured ports: who shares connections to which address.
pub(super) struct Ways<E: Engine> {
    captured: Arc<Captured>,
    known: RefCell<HashMap<SocketAddr, Rc<Upstream<E>>>>,
}

impl<E: Engine> Ways<E> {
    pub(super) fn new(captured: Arc<Captured>) -> Self {
        Self { captured, known: RefCell::default() }
    }

    /// The first decision about a connection that was captured.
    pub(super) async fn take(&self, engine: &E, tasks: &TaskTracker, (socket, peer): Accepted) {
        let port = match self.captured.route(&socket, peer) {
            Ok(port) => port,
            Err(no_way) => return self.captured.refuse((socket, peer), no_way),
        };
        if port.protocol != Protocol::Tcp {
            let mut known = self.known.borrow_mut();
            let made = || Upstream::new(engine.clone(), port.clone(), tasks.clone());
            let upstream = known.entry(port.listen).or_insert_with(made);
            return accept::welcome(upstream, tasks, (socket, peer));
        }
        if accept::holds(&port) {
            // It may have to wait, and nobody else on this listener for it.
            let listed = (socket, port.list(peer, Instant::now()));
            let (here, counted) = (engine.clone(), tasks.clone());
            let waits = async move { accept::settle(&here, &port, &counted, listed).await };
            return engine.spawn(tasks.track_future(waits));
        }
        accept::begin(engine, &port, tasks, (socket, peer)).await;
    }
}
