//! Connections: who gets a seat, how long he may keep it, and how all of them end.
//!
//! API servers keep connections for reuse, so an idle one is closed later than they would do it (90 s), and
//! while the process leaves they are asked to (`Connection: close`, GOAWAY). When all seats are taken,
//! a connection that has never asked anything makes room before one that has, and none that is being answered.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use socket2::Socket;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use crate::io::listen::{self, Ending, Next};

use super::Injector;
use super::service::{Bounds, answer};

/// What is served at an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Face {
    /// Reviews and probes, over TLS.
    Reviews,
    /// Metrics and probes.
    Metrics,
}

/// An address that is listened on.
pub(super) struct Listener(Socket);

/// A few API servers hold 25 each at most; the rest is for a burst.
const SEATS: usize = 512;

/// A handshake is a few packets.
const HANDSHAKE: Duration = Duration::from_secs(5);

/// How long a new connection may ask nothing.
const FIRST_REQUEST: Duration = Duration::from_secs(10);

/// Longer than the 90 s for which API servers keep an idle connection, so that they close it, and never
/// ask on one that we are about to close.
const IDLE: Duration = Duration::from_secs(120);

/// What an answer that is being written may still take when its connection has to go.
const PARTING: Duration = Duration::from_secs(5);

/// Who has just come is about to ask: closing before that would lose what he has sent already.
const NEWCOMER: Duration = Duration::from_secs(1);

/// A head is some hundred bytes.
const MAX_HEAD: usize = 16 * 1024;

/// Reviews under way on one HTTP/2 connection.
const MAX_STREAMS: u32 = 100;

/// What one connection is doing, for those who decide about it.
struct Seat {
    doing: Mutex<Doing>,
    /// Told at every request.
    asked: Notify,
}

#[derive(Clone, Copy, Debug)]
struct Doing {
    /// Requests being answered.
    busy: u32,
    /// It has been answered something.
    served: bool,
    /// When it began to be as it is.
    since: Instant,
}

/// A request being answered; over when dropped.
struct Asking(Arc<Seat>);

struct Host {
    face: Face,
    injector: Arc<Injector>,
    bounds: Arc<Bounds>,
    stop: CancellationToken,
}

/// Listen there, or note why not.
pub(super) fn listen(
    flag: &str,
    address: SocketAddr,
    mistakes: &mut Vec<String>,
) -> Option<Listener> {
    let opened = listen::open(address);
    opened
        .map_err(|error| mistakes.push(format!("cannot listen on {address} (--{flag}): {error}")))
        .ok()
        .map(Listener)
}

impl Listener {
    /// The address that was really bound.
    pub(super) fn local(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()?.as_socket().ok_or_else(|| io::ErrorKind::InvalidInput.into())
    }
}

/// Serve until `stop`; then no connection is accepted that had not begun, and those that are there end as
/// soon as they are answered, or at `cut`.
pub(super) async fn serve(
    face: Face,
    listener: Listener,
    injector: Arc<Injector>,
    stop: CancellationToken,
    cut: CancellationToken,
) -> io::Result<()> {
    let Listener(socket) = listener;
    let listener = TcpListener::from_std(socket.try_clone()?.into())?;
    let host = Host { face, injector, bounds: Arc::default(), stop };
    let mut tasks = JoinSet::new();
    let mut seats: VecDeque<(Arc<Seat>, AbortHandle)> = VecDeque::new();
    let ending = Ending::default();
    loop {
        let accepted = tokio::select! {
            accepted = accept(&listener, &socket, &ending, &host.stop) => accepted,
            Some(_) = tasks.join_next() => continue,
        };
        let socket = match accepted {
            Ok(Some(socket)) => socket,
            Ok(None) => break,
            Err(error) => {
                // Out of descriptors, most likely: others need them more.
                tracing::warn!(%error, "cannot accept a connection");
                sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        seats.retain(|(_, task)| !task.is_finished());
        if seats.len() >= SEATS && !host.make_room(&mut seats) {
            continue;
        }
        let seat = Arc::new(Seat::new());
        let task = tasks.spawn(host.connection(socket, seat.clone()));
        seats.push_back((seat, task));
    }
    drop((listener, socket));
    let all = async { while tasks.join_next().await.is_some() {} };
    tokio::select! { () = all => {} () = cut.cancelled() => {} }
    Ok(())
}

/// The next connection; `None` when there will be no more. `socket` is the listener's own.
async fn accept(
    listener: &TcpListener,
    socket: &Socket,
    ending: &Ending,
    stop: &CancellationToken,
) -> io::Result<Option<TcpStream>> {
    if !stop.is_cancelled() {
        tokio::select! {
            accepted = listener.accept() => return accepted.map(|(stream, _)| Some(stream)),
            () = stop.cancelled() => {}
        }
    }
    loop {
        match ending.step(socket)? {
            Next::Accepted((stream, _)) => return TcpStream::from_std(stream.into()).map(Some),
            Next::SettleUntil(_) => sleep(Duration::from_millis(5)).await,
            Next::Empty => return Ok(None),
        }
    }
}

impl Host {
    /// Close the connection that is missed least. `false`: all are being answered.
    fn make_room(&self, seats: &mut VecDeque<(Arc<Seat>, AbortHandle)>) -> bool {
        self.injector.metrics.evicted.fetch_add(1, Ordering::Relaxed);
        let idle = seats.iter().enumerate().filter_map(|(at, (seat, _))| {
            let doing = *seat.lock();
            (doing.busy == 0).then_some((doing.served, doing.since, at))
        });
        let Some((_, _, at)) = idle.min() else { return false };
        if let Some((_, task)) = seats.remove(at) {
            task.abort();
        }
        true
    }

    fn connection(
        &self,
        socket: TcpStream,
        seat: Arc<Seat>,
    ) -> impl Future<Output = ()> + Send + 'static {
        let Self { face, injector, bounds, stop } = self;
        let (face, injector) = (*face, injector.clone());
        let (bounds, stop) = (bounds.clone(), stop.clone());
        let open = Open::new(face, injector.clone());
        async move {
            let _open = open;
            if face == Face::Metrics {
                return speak(face, injector, bounds, socket, false, seat, stop).await;
            }
            let acceptor = TlsAcceptor::from(injector.identity().tls.clone());
            match timeout(HANDSHAKE, acceptor.accept(socket)).await {
                Ok(Ok(tls)) => {
                    let is_http2 = tls.get_ref().1.alpn_protocol() == Some(b"h2");
                    speak(face, injector, bounds, tls, is_http2, seat, stop).await;
                }
                failed => {
                    injector.metrics.handshakes_failed.fetch_add(1, Ordering::Relaxed);
                    let why = match failed {
                        Ok(Err(error)) => error.to_string(),
                        _ => "it took too long".to_owned(),
                    };
                    tracing::debug!(why, "a TLS handshake failed");
                }
            }
        }
    }
}

async fn speak<S>(
    face: Face,
    injector: Arc<Injector>,
    bounds: Arc<Bounds>,
    socket: S,
    is_http2: bool,
    seat: Arc<Seat>,
    stop: CancellationToken,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let front = {
        let seat = seat.clone();
        service_fn(move |request: Request<Incoming>| {
            let asking = Asking::new(seat.clone());
            let answer = answer(face, injector.clone(), bounds.clone(), request);
            async move {
                let answer = answer.await;
                drop(asking);
                Ok::<_, Infallible>(answer)
            }
        })
    };
    let socket = TokioIo::new(socket);
    if is_http2 {
        let connection = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .max_concurrent_streams(MAX_STREAMS)
            .max_header_list_size(MAX_HEAD as u32)
            // Floods of resets end the connection.
            .max_pending_accept_reset_streams(20)
            .max_local_error_reset_streams(128)
            // A peer that has vanished is found out.
            .keep_alive_interval(Duration::from_secs(30))
            .keep_alive_timeout(Duration::from_secs(10))
            .serve_connection(socket, front);
        drive(pin!(connection), &seat, &stop, |c| c.graceful_shutdown()).await;
    } else {
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            // The seat has a deadline.
            .header_read_timeout(None)
            .max_buf_size(MAX_HEAD)
            .serve_connection(socket, front);
        drive(pin!(connection), &seat, &stop, |c| c.graceful_shutdown()).await;
    }
}

/// Let hyper work until it is done, or there is a reason to stop it.
async fn drive<C: Future<Output = hyper::Result<()>>>(
    mut connection: Pin<&mut C>,
    seat: &Seat,
    stop: &CancellationToken,
    graceful: impl Fn(Pin<&mut C>),
) {
    tokio::select! {
        _ = connection.as_mut() => return,
        () = seat.overstayed() => {}
        () = stop.cancelled() => tokio::select! {
            _ = connection.as_mut() => return,
            // At once if it has asked before.
            () = seat.asked.notified() => {}
            () = sleep(NEWCOMER) => {}
        }
    }
    graceful(connection.as_mut());
    let _ = timeout(PARTING, connection).await;
}

impl Seat {
    fn new() -> Self {
        let doing = Doing { busy: 0, served: false, since: Instant::now() };
        Self { doing: Mutex::new(doing), asked: Notify::new() }
    }

    fn lock(&self) -> MutexGuard<'_, Doing> {
        self.doing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Until it has asked nothing for too long.
    async fn overstayed(&self) {
        loop {
            let doing = *self.lock();
            let now = Instant::now();
            let until = match doing {
                Doing { busy: 1.., .. } => now + FIRST_REQUEST,
                Doing { served: false, since, .. } => since + FIRST_REQUEST,
                Doing { since, .. } => since + IDLE,
            };
            if until <= now {
                return;
            }
            sleep_until(until).await;
        }
    }
}

impl Asking {
    fn new(seat: Arc<Seat>) -> Self {
        seat.lock().busy += 1;
        seat.asked.notify_one();
        Self(seat)
    }
}

impl Drop for Asking {
    fn drop(&mut self) {
        let mut doing = self.0.lock();
        doing.busy -= 1;
        doing.served = true;
        doing.since = Instant::now();
    }
}

/// A connection in the books.
struct Open(Option<Arc<Injector>>);

impl Open {
    fn new(face: Face, injector: Arc<Injector>) -> Self {
        let counted = (face == Face::Reviews).then_some(injector);
        if let Some(injector) = &counted {
            injector.metrics.connections[0].fetch_add(1, Ordering::Relaxed);
        }
        Self(counted)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        if let Some(injector) = &self.0 {
            injector.metrics.connections[1].fetch_add(1, Ordering::Relaxed);
        }
    }
}
