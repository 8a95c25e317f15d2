//! Dial: a non-blocking connect, seen through within its time. The engines differ only in how they
//! wait until a socket is writable.
//!
//! ```text
//!   start ─┬→ Done ─────────────────────────────────→ connected
//!     ▲    ├→ InProgress ─→ writable, and no error ─────┘
//!     └────┴─ BacklogFull: later
//! ```
//!
//! Always true: a connect that is given up while it is in progress is reset, for the application may
//! have accepted it all the same.

use std::io;
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use super::{App, Engine, sock};

/// How far a non-blocking connect has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Connecting {
    /// Connected.
    Done,
    /// Wait until the socket is writable, then ask it for its error.
    InProgress,
    /// A Unix socket's backlog is full, and nothing tells when it has room: ask again later.
    BacklogFull,
}

/// When to ask a full Unix backlog again.
const BACKLOG_RETRY: Duration = Duration::from_millis(5);

/// As [`Engine::dial`]. `writable` resolves when the stream is, or cannot be waited for.
pub(super) async fn dial<E: Engine>(
    engine: &E,
    app: &App,
    timeout: Duration,
    writable: impl AsyncFnOnce(&E::Stream) -> io::Result<()>,
) -> io::Result<E::Stream> {
    let connected = {
        let (socket, addr) = socket_for(app)?;
        match start(&socket, &addr)? {
            Connecting::Done => return engine.adopt(socket),
            // In a box: next door it is done by now, and an open connection keeps no room for it.
            begun => {
                let deadline = Instant::now() + timeout;
                Box::pin(see_through(engine, socket, addr, begun, deadline, writable))
            }
        }
    };
    connected.await
}

/// See a connect that has begun through.
async fn see_through<E: Engine>(
    engine: &E,
    socket: Socket,
    addr: SockAddr,
    mut connecting: Connecting,
    deadline: Instant,
    writable: impl AsyncFnOnce(&E::Stream) -> io::Result<()>,
) -> io::Result<E::Stream> {
    while connecting == Connecting::BacklogFull {
        if Instant::now() >= deadline {
            return Err(io::ErrorKind::TimedOut.into());
        }
        engine.sleep_until(Instant::now() + BACKLOG_RETRY).await;
        connecting = start(&socket, &addr)?;
    }
    let stream = engine.adopt(socket)?;
    if connecting == Connecting::InProgress {
        // The connection first: late is better than never, and to be known.
        let connected = tokio::select! {
            biased;
            waited = writable(&stream) => waited.and_then(|()| error_of(engine, &stream)),
            () = engine.sleep_until(deadline) => Err(io::ErrorKind::TimedOut.into()),
        };
        connected.inspect_err(|_| sock::reset(engine.socket(&stream)))?;
    }
    Ok(stream)
}

/// Why the connect of a writable socket has failed, if it has.
fn error_of<E: Engine>(engine: &E, stream: &E::Stream) -> io::Result<()> {
    engine.socket(stream).take_error()?.map_or(Ok(()), Err)
}

/// A fresh non-blocking socket for `app`, its options set, and the address to connect it to.
fn socket_for(app: &App) -> io::Result<(Socket, SockAddr)> {
    match app {
        App::Tcp(addr) => {
            let domain = Domain::for_address(*addr);
            let socket = Socket::new(domain, Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
            socket.set_tcp_nodelay(true)?;
            socket.set_out_of_band_inline(true)?; // as on the listener: no byte is left out
            Ok((socket, SockAddr::from(*addr)))
        }
        App::Unix(path) => {
            let socket = Socket::new(Domain::UNIX, Type::STREAM.nonblocking(), None)?;
            Ok((socket, SockAddr::unix(path)?))
        }
    }
}

/// Start to connect. A loopback peer with room in its backlog has answered by the time the first
/// call returns; asking again costs a call and saves a turn of the loop.
fn start(socket: &Socket, to: &SockAddr) -> io::Result<Connecting> {
    let mut asked = 0;
    loop {
        let Err(e) = socket.connect(to) else { return Ok(Connecting::Done) };
        asked += 1;
        match e.raw_os_error() {
            Some(libc::EISCONN) => return Ok(Connecting::Done),
            Some(libc::EINTR) => {}
            Some(libc::EINPROGRESS) if asked == 1 => {}
            Some(libc::EINPROGRESS | libc::EALREADY) => return Ok(Connecting::InProgress),
            Some(libc::EAGAIN) => return Ok(Connecting::BacklogFull),
            _ => return Err(e),
        }
    }
}
