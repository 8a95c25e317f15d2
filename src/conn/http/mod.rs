//! The story of a connection that speaks HTTP: the unit of admission is the request.
//!
//! ```text
//!   client ══ hyper server ──→ stack: name, screen, admit, rewrite ──→ forward ══ hyper client ══ application
//!     │ one connection           one request, one permit                 upstream: pooled, never more than limit
//!     └ drive: timeouts, drain, cut; what is left when hyper is done
//! ```
//!
//! Always true: nothing of a request but its head, and what came in the same read, is taken from the
//! client before it has a slot; the slot is held to the last byte of both bodies; a connection is
//! closed so that what was written last is read.

mod account;
mod admit;
mod body;
mod carrier;
mod deadline;
mod exchange;
mod forward;
mod frames; // what clients of HTTP/2 send
mod headers;
mod name;
mod pulse; // exchanges in which nothing moves
mod refuse;
mod screen;
mod stack;
mod streams;
mod takers; // clients of HTTP/2 that do not take what they are sent
mod tunnel;
mod unheard;
mod upstream;
mod wire;

use std::cell::{Cell, RefCell};
use std::net::{Shutdown, SocketAddr};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::StatusCode;
use http::header::{HeaderName, HeaderValue};
use hyper::rt::Executor;
use hyper::server::conn::{http1, http2};
use hyper_util::rt::TokioIo;

use super::registry::Stage;
use super::{Conn, Port, QueuedHalfClose};
use crate::io::{Engine, Traffic, sock};
use pulse::Pulse;
pub use refuse::{GrpcStatus, Statuses};
use stack::{Front, stack};
use takers::{StreamTasks, Takers};
use tunnel::{Entrance, Tunnel};
pub use upstream::Upstream;
use wire::{Head, Line, Watch};

/// How a port treats HTTP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// How long the head of a request may take to come, from its first byte; and the first byte of a
    /// new connection.
    pub header_timeout: Duration,
    /// How long the body of a request may keep the application waiting, besides what its bytes earn.
    pub body_timeout: Duration,
    /// The longest head of a request, in bytes.
    pub max_head: usize,
    /// Streams of one HTTP/2 connection at once.
    pub max_streams: u32,
    /// How long an idle connection to the application is kept for the next request.
    pub app_keepalive: Duration,
    /// What requests are told that are refused, where that can be chosen.
    pub statuses: Statuses,
    /// The header by whose value requests are counted per client, instead of their address.
    pub per_client_header: Option<HeaderName>,
    /// The header in which clients say how long they wait, besides `grpc-timeout`.
    pub deadline_header: Option<HeaderName>,
    /// Whether the application is spoken to in HTTP/2.
    pub app_http2: AppHttp2,
    /// How the application is told who the client is.
    pub forwarded: Forwarded,
    /// Whether it is told that there is a gateway.
    pub via: bool,
}

/// Whether the application is spoken to in HTTP/2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AppHttp2 {
    /// When the client speaks it and the application does too.
    Auto,
    /// For every request.
    Always,
    /// For none.
    Never,
}

/// How the application is told who the client is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forwarded {
    /// `X-Forwarded-For`, `-Proto` and `-Host`.
    XForwarded,
    /// `Forwarded` (RFC 7239).
    Forwarded,
    /// Both.
    Both,
    /// Not at all.
    Nothing,
}

/// Which HTTP a client speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// HTTP/1.0 or 1.1.
    One,
    /// HTTP/2 with prior knowledge.
    Two,
}

// Of the headers of one message hyper takes 100; saying so would make it fill a table of 100 for each.

/// What is read of an answer at once.
const APP_BUFFER: usize = 64 * 1024;

/// Streams we open on one HTTP/2 connection to the application, and the heads it may answer with.
const APP_STREAMS: usize = 100;
const APP_HEAD: u32 = 64 * 1024;

/// What one stream, and one connection, may send before somebody reads it.
const STREAM_WINDOW: u32 = 64 * 1024;
const CONNECTION_WINDOW: u32 = 256 * 1024;

/// What is read and thrown away of a client that sends on after its last answer, so that it can read
/// that answer: were the socket closed at once, a RST would overtake it.
const LINGER: Duration = Duration::from_millis(500);

/// How long an HTTP/2 client has to answer the two steps of a farewell before its idle connection is
/// closed.
const FAREWELL: Duration = Duration::from_secs(1);

/// One client's connection, as every request on it sees it.
pub struct Client<E: Engine> {
    upstream: Rc<Upstream<E>>,
    config: Arc<super::Config>,
    address: Option<SocketAddr>,
    /// Its number in the list of connections.
    connection: u64,
    http2: bool,
    line: Rc<Line<E>>,
    /// What the connection list shows of it.
    traffic: Arc<Traffic>,
    /// The requests being served, if there can be several.
    takers: Rc<Takers>,
    /// What moves of the request that came last, if that is watched.
    pulse: RefCell<Option<Rc<Pulse>>>,
    /// It ends because the client does not take what it is sent.
    stalled: Rc<Cell<bool>>,
    /// What the application is told of the client, ready to be put into a request.
    forwarded_for: Option<HeaderValue>,
    forwarded: Option<HeaderValue>,
    /// The gateway holds as many connections as it may without this one: its requests are refused.
    one_too_many: bool,
    /// It has said that it sends nothing more after the request that is being served.
    last: Cell<bool>,
    /// Set once the application has switched protocols.
    tunnel: RefCell<Option<Tunnel<E>>>,
}

impl<E: Engine> Client<E> {
    fn new(
        upstream: Rc<Upstream<E>>,
        conn: &Conn<E, ()>,
        line: Rc<Line<E>>,
        version: Version,
        one_too_many: bool,
    ) -> Self {
        let address = conn.entry.client();
        let ip = address.map(|address| address.ip());
        let node = ip.map(|ip| if ip.is_ipv4() { ip.to_string() } else { format!("\"[{ip}]\"") });
        let value = |text: String| HeaderValue::try_from(text).ok();
        Self {
            config: conn.config.clone(),
            address,
            connection: conn.entry.id(),
            http2: version == Version::Two,
            line,
            traffic: conn.entry.traffic().clone(),
            takers: Rc::default(),
            pulse: RefCell::default(),
            stalled: Rc::default(),
            forwarded_for: ip.and_then(|ip| value(ip.to_string())),
            forwarded: node.and_then(|node| value(format!("for={node}"))),
            one_too_many,
            last: Cell::new(false),
            tunnel: RefCell::default(),
            upstream,
        }
    }

    fn port(&self) -> &Port {
        &self.upstream.port
    }

    /// Whether it is one too many, and has heard so: on HTTP/1 each refusal says that it is the last.
    fn has_told_enough(&self) -> bool {
        self.one_too_many && self.http2 && !self.takers.is_quiet()
    }

    /// Count the bytes that were carried since the last time.
    fn count_bytes(&self) {
        let news = self.line.news();
        if news != [0, 0] {
            self.traffic.add(&self.port().metrics.bytes, news);
            if !self.http2
                && let Some(pulse) = &*self.pulse.borrow()
            {
                pulse.beat();
            }
        }
    }

    /// A request has come: what moves of it is to be watched, if there is an `idle-timeout`.
    fn begin_pulse(&self) -> Option<Rc<Pulse>> {
        self.config.idle_timeout?;
        let pulse = Rc::<Pulse>::default();
        *self.pulse.borrow_mut() = Some(pulse.clone());
        Some(pulse)
    }
}

/// Why a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// hyper is done with it.
    Done,
    /// hyper is done with it, because of a head that it has answered so.
    Unheard(StatusCode),
    /// A request's head did not come in time.
    SlowHead,
    /// The client did not take its answer.
    Stalled,
    /// Still open at the end of the drain.
    Cut,
    /// Nothing moved for `idle-timeout`, between two requests.
    Idle,
    /// The same, while an answer was on its way.
    Still,
    /// The client sends frame after frame that is no part of a request.
    Flood,
}

impl End {
    fn of(done: hyper::Result<()>) -> Self {
        let answered = done.err().and_then(|error| unheard::answered(&error));
        answered.map_or(Self::Done, Self::Unheard)
    }
}

/// Serve all requests of one connection.
pub(super) async fn serve<E: Engine>(upstream: Rc<Upstream<E>>, conn: Conn<E>, version: Version) {
    converse(upstream, conn, version, false).await;
}

/// Refuse all requests of one connection: there are too many.
pub(super) async fn refuse_all<E: Engine>(
    upstream: Rc<Upstream<E>>,
    conn: Conn<E>,
    version: Version,
) {
    converse(upstream, conn, version, true).await;
}

async fn converse<E: Engine>(
    upstream: Rc<Upstream<E>>,
    conn: Conn<E>,
    version: Version,
    one_too_many: bool,
) {
    let (engine, port) = (upstream.engine.clone(), upstream.port.clone());
    let (stream, conn) = conn.part();
    conn.entry.enter(Stage::Serving);
    let line = Line::new(&engine, stream, Head::Since(conn.entry.since()));
    let client = Rc::new(Client::new(upstream, &conn, line.clone(), version, one_too_many));
    let over = match version {
        Version::One => serve_one(&engine, &client).await,
        Version::Two => Over::End(serve_two(&engine, &client).await),
    };
    client.count_bytes();
    let last = client.last.get();
    drop(client);
    match over {
        Over::End(end) => close(&engine, line, end, last).await,
        Over::Switched(tunnel, read) => {
            tunnel::carry(&engine, &port, Entrance { line, read, conn }, tunnel).await;
        }
    }
}

/// What becomes of a connection when hyper is done with it.
enum Over<E: Engine> {
    End(End),
    Switched(Tunnel<E>, Bytes),
}

/// HTTP/1.
async fn serve_one<E: Engine>(engine: &E, client: &Rc<Client<E>>) -> Over<E> {
    let front = Front::new(client.clone(), stack(client.clone()));
    let io = TokioIo::new(client.line.wire());
    let mut connection = http1::Builder::new()
        // The timers are ours: hyper's would run, and be allocated, for every idle connection.
        .header_read_timeout(None)
        .max_buf_size(client.config.http.max_head)
        .auto_date_header(false)
        .half_close(client.config.queued_half_close == QueuedHalfClose::Keep)
        .serve_connection(io, front);
    let end = drive(engine, client, Pin::new(&mut connection), |c| c.graceful_shutdown()).await;
    let tunnel = client.tunnel.borrow_mut().take();
    match tunnel {
        Some(tunnel) if end == End::Done => {
            Over::Switched(tunnel, connection.into_parts().read_buf)
        }
        _ => {
            client.note_unheard(end, &connection.into_parts().read_buf);
            Over::End(end)
        }
    }
}

/// HTTP/2.
async fn serve_two<E: Engine>(engine: &E, client: &Rc<Client<E>>) -> End {
    client.line.begin_frames();
    let front = Front::new(client.clone(), stack(client.clone()));
    let io = TokioIo::new(client.line.wire());
    let connection = http2::Builder::new(StreamTasks::new(engine, &client.takers))
        .max_concurrent_streams(client.config.http.max_streams)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(u32::try_from(client.config.http.max_head).unwrap_or(u32::MAX))
        // Streams that were reset, by either side, and are not cleared away yet: floods of them end
        // the connection (CVE-2023-44487, CVE-2025-8671).
        .max_pending_accept_reset_streams(20)
        .max_local_error_reset_streams(128)
        .auto_date_header(false)
        .serve_connection(io, front);
    drive(engine, client, pin!(connection), |c| c.graceful_shutdown()).await
}

/// Let hyper work until it is done, or there is a reason to stop it.
async fn drive<E: Engine, C: Future<Output = hyper::Result<()>>>(
    engine: &E,
    client: &Client<E>,
    mut connection: Pin<&mut C>,
    graceful: impl Fn(Pin<&mut C>),
) -> End {
    let (line, config) = (&*client.line, &*client.config);
    let shared = &client.port().shared;
    let mut closing = shared.closing.watch();
    let mut cut = shared.cut.watch();
    let (mut told, mut rests) = (None, None);
    let (mut head, mut stall, mut quiet) =
        (Watch::new(engine), Watch::new(engine), Watch::new(engine));
    std::future::poll_fn(|cx| {
        line.begin_turn();
        let done = connection.as_mut().poll(cx);
        // A connection may last for days: not only at its end.
        client.count_bytes();
        if let Poll::Ready(done) = done {
            return Poll::Ready(if line.is_flooded() { End::Flood } else { End::of(done) });
        }
        if told.is_none()
            && (Pin::new(&mut closing).poll(cx).is_ready() && !has_more(client)
                || client.has_told_enough()
                || poll_rested(client, &mut rests, &mut head, cx).is_ready())
        {
            told = Some(Instant::now());
            graceful(connection.as_mut());
            if let Poll::Ready(done) = connection.as_mut().poll(cx) {
                return Poll::Ready(End::of(done));
            }
        }
        if Pin::new(&mut cut).poll(cx).is_ready() {
            return Poll::Ready(End::Cut);
        }
        if let Poll::Ready(end) = poll_head(line, config, &mut head, cx) {
            return Poll::Ready(end);
        }
        if client.http2 {
            if let Poll::Ready(end) = poll_streams(client, told, &mut quiet, cx) {
                return Poll::Ready(end);
            }
        } else if let Poll::Ready(is_answering) = poll_still(client, &mut head, cx) {
            if is_answering {
                return Poll::Ready(End::Still);
            }
            // It is answered for the application, which has not.
            if let Poll::Ready(done) = connection.as_mut().poll(cx) {
                return Poll::Ready(End::of(done));
            }
        }
        stall.poll_stalled(line, config.write_stall_timeout, cx).map(|()| {
            client.stalled.set(true);
            End::Stalled
        })
    })
    .await
}

/// Whether a connection of HTTP/2 has had no request for too long: `since` when.
fn poll_rested<E: Engine>(
    client: &Client<E>,
    since: &mut Option<Instant>,
    watch: &mut Watch<E>,
    cx: &mut Context<'_>,
) -> Poll<()> {
    let Some(timeout) = client.config.idle_timeout.filter(|_| client.http2) else {
        return Poll::Pending;
    };
    if !client.takers.is_quiet() {
        *since = None;
        return Poll::Pending;
    }
    watch.poll_past(*since.get_or_insert_with(Instant::now) + timeout, cx)
}

/// Whether nothing has moved for too long of the one request that is being served; and whether its answer has
/// begun.
fn poll_still<E: Engine>(
    client: &Client<E>,
    watch: &mut Watch<E>,
    cx: &mut Context<'_>,
) -> Poll<bool> {
    let Some(timeout) = client.config.idle_timeout else { return Poll::Pending };
    let pulse = client.pulse.borrow();
    let Some((pulse, since)) = pulse.as_ref().and_then(|pulse| Some((pulse, pulse.since()?)))
    else {
        return Poll::Pending;
    };
    watch.poll_past(since + timeout, cx).map(|()| pulse.stop())
}

/// Whether a connection of HTTP/2 ends, because it has been told so and has nothing more to do, or because its
/// client does not take what is left of its answers. Streams that are not taken, or in which nothing moves, are
/// ended.
fn poll_streams<E: Engine>(
    client: &Client<E>,
    told: Option<Instant>,
    watch: &mut Watch<E>,
    cx: &mut Context<'_>,
) -> Poll<End> {
    let (takers, patience) = (&client.takers, client.config.write_stall_timeout);
    // A client that does not answer the PING of a drain does not hold it up.
    let quiet = takers.is_quiet() && client.line.blocked().is_none();
    let farewell = told.filter(|_| quiet).map(|told| told + FAREWELL);
    let untaken = takers.untaken_since(Instant::now()).map(|since| since + patience);
    loop {
        let now = Instant::now();
        if farewell.is_some_and(|at| now >= at) {
            return Poll::Ready(End::Done);
        }
        if untaken.is_some_and(|at| now >= at) {
            client.stalled.set(true);
            return Poll::Ready(End::Stalled);
        }
        let next = takers.cut(now, patience, cx);
        let still = client.config.idle_timeout.and_then(|timeout| takers.stop(now, timeout));
        let Some(next) = [farewell, untaken, next, still].into_iter().flatten().min() else {
            return Poll::Pending;
        };
        ready!(watch.poll_past(next, cx));
    }
}

/// Whether the next request's head is late, or the connection has been idle for too long.
fn poll_head<E: Engine>(
    line: &Line<E>,
    config: &super::Config,
    watch: &mut Watch<E>,
    cx: &mut Context<'_>,
) -> Poll<End> {
    match (line.head(), config.idle_timeout) {
        (Head::Busy, _) | (Head::Idle(_), None) => Poll::Pending,
        (Head::Since(since), _) => {
            watch.poll_past(since + config.http.header_timeout, cx).map(|()| End::SlowHead)
        }
        (Head::Idle(since), Some(timeout)) => {
            watch.poll_past(since + timeout, cx).map(|()| End::Idle)
        }
    }
}

/// Whether the client has begun to say something between two requests: that is answered before the
/// connection closes.
fn has_more<E: Engine>(client: &Client<E>) -> bool {
    match client.line.head() {
        // On HTTP/2 that is what a farewell in two steps is for.
        Head::Busy => false,
        _ if client.http2 => false,
        // hyper has the beginning of a head.
        Head::Since(_) if client.line.has_spoken() => true,
        Head::Since(_) | Head::Idle(_) => {
            sock::peek(&client.line.socket(), &mut [0]).is_ok_and(|length| length > 0)
        }
    }
}

/// End a client's connection so that what was written last is read. `last`: it has said that it sends
/// nothing more.
async fn close<E: Engine>(engine: &E, line: Rc<Line<E>>, end: End, last: bool) {
    say_why(&line, end);
    let ended = line.has_ended();
    if Rc::strong_count(&line) > 1 {
        // Streams of HTTP/2 that have not noticed yet; the socket closes with the last of them.
        let _ = line.socket().shutdown(Shutdown::Both);
        return;
    }
    let Some((stream, _)) = line.reclaim().await else { return };
    let socket = engine.socket(&stream);
    match end {
        // To a client that counts no bytes of it, an answer must not look as if it were whole.
        End::Stalled | End::Still => sock::reset(socket),
        // Closed with nothing unread, what was written is delivered, and then the end.
        End::Done if last && !sock::peek(&socket, &mut [0]).is_ok_and(|length| length > 0) => {}
        End::Done | End::Unheard(_) | End::SlowHead | End::Idle | End::Cut | End::Flood
            if !ended =>
        {
            let _ = socket.shutdown(Shutdown::Write);
            linger(engine, &stream).await;
        }
        _ => {}
    }
}

/// Tell a client what hyper does not. If there is no room for so little, it does not read anyway.
fn say_why<E: Engine>(line: &Line<E>, end: End) {
    const LATE: &[u8] =
        b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
    /// ENHANCE_YOUR_CALM (RFC 9113, section 7), after a GOAWAY's head and the last stream.
    const CALM: [u8; 4] = [0, 0, 0, 11];
    match (end, line.last_stream()) {
        (End::SlowHead, None) if line.has_spoken() => {
            let _ = line.socket().send(LATE);
        }
        // All frames before have been written to their ends.
        (End::SlowHead | End::Flood, Some(last)) if line.blocked().is_none() => {
            let goaway = [&b"\0\0\x08\x07\0\0\0\0\0"[..], &last.to_be_bytes(), &CALM].concat();
            let _ = line.socket().send(&goaway);
        }
        _ => {}
    }
}

/// Read what the client still sends, for a while.
pub(super) async fn linger<E: Engine>(engine: &E, stream: &E::Stream) {
    let deadline = Instant::now() + LINGER;
    tokio::select! {
        () = engine.discard(stream) => {}
        () = engine.sleep_until(deadline) => {}
    }
}

/// hyper's tasks run where the connection does.
#[derive(Clone)]
struct Tasks<E>(E);

impl<E: Engine, F: Future<Output = ()> + 'static> Executor<F> for Tasks<E> {
    fn execute(&self, task: F) {
        self.0.spawn(task);
    }
}
