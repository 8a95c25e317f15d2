//! Accept: take connections as they come, ask the gate for each at once, and turn away on the spot
//! whoever may neither in nor wait: a refused connection costs no task and no registration.

use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use socket2::Socket;
use tokio_util::task::TaskTracker;

use super::captured::{Captured, Ways};
use super::crowd::{Heard, hear_out};
use super::greet::greet;
use super::http::Upstream;
use super::registry::Registered;
use super::release::{self, count};
use super::{Conn, Port, Protocol, TcpRefuse, serve};
use crate::capture::origin::Astray;
use crate::io::{Accepted, Engine, listen};
use crate::limit::Entry;
use crate::outcome::{Outcome, Reason};

/// The first pause when the machine is out of descriptors or memory, and the longest.
const BACK_OFF: [Duration; 2] = [Duration::from_millis(5), Duration::from_millis(100)];

/// Connections taken in a row before everybody else on this thread gets a turn: a storm of
/// connections to be refused must not starve those that were admitted.
const BATCH: u32 = 16;

/// What a listening socket stands for.
#[derive(Clone)]
pub enum Entrance {
    /// One port.
    Port(Arc<Port>),
    /// All ports that are captured.
    Captured(Arc<Captured>),
}

/// Who takes what is accepted.
enum Taker<E: Engine> {
    /// Connections are what is let in.
    Connections,
    /// First bytes tell; the application's connections, where requests share them.
    Greeter(Rc<Upstream<E>>),
    /// Where a connection was going tells.
    Ways(Ways<E>),
}

/// Accept on one listener until it has to close, then hand over what is left in its backlog.
pub async fn accept<E: Engine>(
    engine: E,
    entrance: Entrance,
    listener: E::Listener,
    connections: TaskTracker,
) {
    let port = entrance.port().clone();
    let stop = port.shared.closing.token();
    let taker = match entrance {
        Entrance::Captured(captured) => Taker::Ways(Ways::new(captured)),
        Entrance::Port(port) if port.protocol == Protocol::Tcp => Taker::Connections,
        Entrance::Port(port) => {
            Taker::Greeter(Upstream::new(engine.clone(), port, connections.clone()))
        }
    };
    let mut exhausted = Exhausted::default();
    let mut in_a_row = 0;
    loop {
        if matches!(taker, Taker::Connections) && holds(&port) {
            room(&port).await;
        }
        match engine.accept(&listener, &stop).await {
            Ok(Some(accepted)) => {
                exhausted.over();
                match &taker {
                    Taker::Connections => begin(&engine, &port, &connections, accepted).await,
                    Taker::Greeter(upstream) => welcome(upstream, &connections, accepted),
                    Taker::Ways(ways) => ways.take(&engine, &connections, accepted).await,
                }
            }
            Ok(None) => return port.unlisten(),
            Err(e) => {
                let pause = exhausted.pause(&e, &port, engine.listening(&listener));
                engine.sleep_until(Instant::now() + pause).await;
            }
        }
        in_a_row += 1;
        if in_a_row % BATCH == 0 {
            tokio::task::yield_now().await;
        }
    }
}

impl Entrance {
    /// The port, or the one on which what goes astray is counted.
    pub fn port(&self) -> &Arc<Port> {
        match self {
            Self::Port(port) => port,
            Self::Captured(captured) => &captured.own,
        }
    }
}

/// The first decision about a connection. Waits only where nobody is to be refused.
pub(super) async fn begin<E: Engine>(
    engine: &E,
    port: &Arc<Port>,
    connections: &TaskTracker,
    (socket, peer): Accepted,
) {
    let entry = port.list(peer, Instant::now());
    settle(engine, port, connections, (socket, entry)).await;
}

/// The decision about a connection that is listed: a drain waits for it.
pub(super) async fn settle<E: Engine>(
    engine: &E,
    port: &Arc<Port>,
    connections: &TaskTracker,
    (socket, entry): (Socket, Registered),
) {
    let peer = entry.client();
    let mut admission = ask(port, peer, entry.since());
    while let Entry::Refuse(Reason::LimitReached | Reason::QueueFull) = admission
        && holds(port)
    {
        // Another worker was quicker, or the limit was lowered: hold what is accepted already.
        room(port).await;
        let now = Instant::now();
        entry.asks(now);
        admission = ask(port, peer, now);
    }
    if let Entry::Refuse(reason) = admission {
        return turn_away(port, socket, entry, reason);
    }
    let Ok(client) = engine.adopt(socket) else {
        port.metrics.admit();
        count(port, &entry, Outcome::Failed, [0, 0]);
        return;
    };
    let config = port.config();
    let conn = Conn { client, app: None, admission: Some(admission), config, entry };
    let story = serve(engine.clone(), port.clone(), conn);
    engine.spawn(connections.track_future(story));
}

/// Let a connection in whose first bytes tell what it is; the gate is asked when it is known.
pub(super) fn welcome<E: Engine>(
    upstream: &Rc<Upstream<E>>,
    connections: &TaskTracker,
    (socket, peer): Accepted,
) {
    let (engine, port) = (&upstream.engine, &upstream.port);
    let entry = port.list(peer, Instant::now());
    let heard = match is_crowded(port) {
        false => None,
        true => match Heard::of(port) {
            Some(heard) => Some(heard),
            None => return turn_away(port, socket, entry, Reason::MaxConnections),
        },
    };
    let Ok(client) = engine.adopt(socket) else {
        port.metrics.admit();
        count(port, &entry, Outcome::Failed, [0, 0]);
        return;
    };
    let conn = Conn { client, app: None, admission: None, config: port.config(), entry };
    match heard {
        None => engine.spawn(connections.track_future(greet(upstream.clone(), conn))),
        Some(heard) => {
            let told = hear_out(upstream.clone(), conn, heard);
            engine.spawn(connections.track_future(told));
        }
    }
}

/// Whether the gateway itself holds as many connections as it may.
fn is_crowded(port: &Port) -> bool {
    port.shared.registry.open() > u64::from(port.shared.max_connections()) + port.shared.heard()
}

/// Whether connections that do not fit are to wait instead of being refused.
pub(super) fn holds(port: &Port) -> bool {
    port.config().tcp_refuse == TcpRefuse::Hold && !port.shared.closing.is_raised()
}

/// Everything that can keep a connection out, cheapest first.
pub(super) fn ask(port: &Port, peer: Option<SocketAddr>, now: Instant) -> Entry {
    if is_crowded(port) {
        return Entry::Refuse(Reason::MaxConnections);
    }
    port.gate.enter(now, peer.map(|peer| peer.ip().into()))
}

/// Turn away a connection that no gate is asked about.
pub(super) fn refuse(port: &Port, (socket, peer): Accepted, reason: Reason) {
    let entry = port.list(peer, Instant::now());
    turn_away(port, socket, entry, reason);
}

/// Turn away one that was captured and has nowhere to go.
pub(super) fn refuse_astray(
    port: &Port,
    (socket, peer): Accepted,
    (reason, astray): (Reason, Astray),
) {
    let entry = port.list(peer, Instant::now());
    release::count_astray(port, &entry, reason, astray);
    part(port, socket, entry);
}

fn turn_away(port: &Port, socket: Socket, entry: Registered, reason: Reason) {
    count(port, &entry, Outcome::Refused(reason), [0, 0]);
    part(port, socket, entry);
}

fn part(port: &Port, socket: Socket, entry: Registered) {
    release::refuse((&socket).into(), port.config().tcp_refuse);
    drop(socket);
    drop(entry);
}

/// Resolves when a connection that came now would be admitted or queued, or nobody is to wait.
async fn room(port: &Port) {
    tokio::select! {
        () = std::future::poll_fn(|cx| port.gate.poll_room(cx)) => {}
        () = port.shared.closing.raised() => {}
    }
}

/// What to do while accept(2) fails: pause, longer each time, and let a descriptor kept in reserve
/// answer one client meanwhile, so that the backlog does not just sit there.
struct Exhausted {
    pause: Duration,
    /// Some descriptor, to be closed when one is needed.
    reserve: Option<File>,
    told: Option<Instant>,
}

impl Default for Exhausted {
    fn default() -> Self {
        Self { pause: BACK_OFF[0], reserve: reserve(), told: None }
    }
}

fn reserve() -> Option<File> {
    File::open("/dev/null").ok()
}

impl Exhausted {
    fn over(&mut self) {
        if self.pause > BACK_OFF[0] {
            self.pause = BACK_OFF[0];
            if self.reserve.is_none() {
                self.reserve = reserve();
            }
        }
    }

    /// Say so, at most once a second; refuse one client with the reserve; and how long to pause.
    fn pause(&mut self, error: &io::Error, port: &Port, listener: &Socket) -> Duration {
        if listen::is_exhaustion(error) && self.reserve.take().is_some() {
            if let Ok(accepted) = listen::accept(listener) {
                refuse(port, accepted, Reason::MaxConnections);
            }
            self.reserve = reserve();
        }
        let now = Instant::now();
        if self.told.is_none_or(|told| now - told >= Duration::from_secs(1)) {
            self.told = Some(now);
            let advice = if listen::is_exhaustion(error) {
                "raise the limit on open files (ulimit -n) or lower max-connections"
            } else {
                "this is unexpected; connections wait in the kernel meanwhile"
            };
            tracing::warn!(port = %port.listen, %error, advice, "cannot accept connections");
        }
        let pause = self.pause;
        self.pause = (pause * 2).min(BACK_OFF[1]);
        pause
    }
}
