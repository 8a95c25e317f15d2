//! Captured ports: one listening socket for many ports, of which each has its gate. Which port a
//! connection belongs to is known only once it has been accepted, from where it was going.
//!
//! ```text
//!   accepted ── origin ──→ 10.0.0.7:8080 ──→ the gate of 8080, and a way to exactly that address
//!                └ astray: turned away once, counted on the capture port itself
//! ```
//!
//! Always true: a port has one gate, whatever address of it is called and whichever worker takes the
//! call; a way leads only to an address of this machine; there are no more gates than ports that
//! settings name or that somebody listens on.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
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
}

/// The captured ports of the process.
pub struct Captured {
    /// The listening socket itself: what went astray is counted here.
    pub own: Arc<Port>,
    table: RwLock<Table>,
}

struct Table {
    terms: TermsByPort,
    /// In the order in which they were seen first. Nothing is ever taken out.
    ports: Vec<Arc<Port>>,
    ways: HashMap<SocketAddr, Arc<Port>>,
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
            ..terms.usual.clone()
        };
        let own = Arc::new(port(listen, "where it was going".into(), own, shared));
        let mut table = Table { terms, ports: Vec::new(), ways: HashMap::new(), closed: false };
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
            let terms = table.terms.of(port.listen.port());
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
    fn way(&self, called: SocketAddr) -> Result<Arc<Port>, Reason> {
        let known = self.table.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(way) = known.ways.get(&called) {
            return Ok(way.clone());
        }
        let named = known.ports.iter().any(|port| port.listen.port() == called.port());
        drop(known);
        if !origin::is_here(called) {
            self.tell(Astray::Foreign, None);
            return Err(Reason::Loop);
        }
        // Whoever scans all ports makes no gates.
        if !named && !sockets::listens_at(called).unwrap_or(true) {
            return Err(Reason::UpstreamRefused);
        }
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        let way = Arc::new(table.gate(&self.own, called.port()).leading_to(called));
        Ok(table.ways.entry(called).or_insert(way).clone())
    }

    /// Where a connection was going, or why it is not carried there.
    fn route(&self, socket: &Socket, peer: Option<SocketAddr>) -> Result<Arc<Port>, Reason> {
        let shared = &self.own.shared;
        match origin::of(SockRef::from(socket), peer, |port| shared.listens_on(port)) {
            Ok(called) => self.way(called),
            Err(astray) => {
                self.tell(astray, peer);
                Err(Reason::Loop)
            }
        }
    }

    fn tell(&self, astray: Astray, client: Option<SocketAddr>) {
        let client = client.map(tracing::field::display);
        tracing::debug!(port = %self.own.listen, client, why = astray.why(), "a connection went astray");
    }
}

impl Table {
    /// The gate of a port, which is made when it is asked for the first time.
    fn gate(&mut self, own: &Port, number: u16) -> Arc<Port> {
        if let Some(port) = self.ports.iter().find(|port| port.listen.port() == number) {
            return port.clone();
        }
        let listen = SocketAddr::new(own.listen.ip(), number);
        let text = "captured".to_owned();
        let port = Arc::new(port(listen, text, self.terms.of(number), own.shared.clone()));
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
        // One socket takes both families; the rest of the story is not about that.
        let peer = peer.map(|peer| match peer.ip().to_canonical() {
            ip if ip.is_ipv4() => SocketAddr::new(ip, peer.port()),
            _ => peer,
        });
        let port = match self.captured.route(&socket, peer) {
            Ok(port) => port,
            Err(reason) => {
                let own = &self.captured.own;
                if reason != Reason::Loop {
                    own.metrics.admit();
                }
                return accept::refuse(own, (socket, peer), reason);
            }
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
