//! MOVES BYTES. Knows nothing of limits.
//!
//! [`Engine`] is the one face of the two ways to do I/O; `conn/` is written against it and never
//! asks which one it has. The choice is made once, at start-up, by [`probe`].
//!
//! ```text
//!             trait Engine   listen  accept  dial  peer_left  relay  discard  spawn  sleep
//!            ┌──────┴──────┐
//!          epoll          uring        tokio / a tokio-uring thread with a relay ring of its own
//! ```
//!
//! Always true: a future returned here may be dropped at any time without losing a descriptor, a
//! byte that was promised, or memory the kernel may still write to; nothing is read from a
//! connection before `relay`, `discard` or `open`.

pub mod buf;
mod dial;
pub mod epoll;
pub mod flow;
pub mod listen;
pub mod probe;
pub mod sock;
pub mod uring;

use std::future::Future;
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::atomic::AtomicU64;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use socket2::{SockRef, Socket};
use tokio::io::ReadBuf;
use tokio_util::sync::CancellationToken;

pub use flow::{Flow, Side, Traffic};

/// Where the application listens.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum App {
    /// A TCP address.
    Tcp(SocketAddr),
    /// A Unix socket's path.
    Unix(PathBuf),
}

/// Which engine to use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum EngineChoice {
    /// io_uring where the start-up ladder passes, epoll otherwise.
    #[default]
    Auto,
    /// io_uring, or do not start.
    Uring,
    /// epoll.
    Epoll,
}

/// A connection as accept(2) gives it: non-blocking, with its peer's address if it has one.
pub type Accepted = (Socket, Option<SocketAddr>);

/// What a worker needs from its runtime. Every method is called on the worker's own thread.
pub trait Engine: Clone + Unpin + 'static {
    /// A listening socket.
    type Listener: 'static;
    /// A connected socket. Dropping it closes it, at once: nothing of the engine keeps it open.
    type Stream: 'static;
    /// A connected socket that is read and written a piece at a time, for those who have to look at
    /// the bytes. Dropping it closes it, too.
    type Io: 'static;

    /// Take over a bound, listening socket.
    fn listen(&self, listener: Socket) -> io::Result<Self::Listener>;

    /// The next connection. Until `stop` is cancelled it waits; after that it hands out what had
    /// begun its handshake, and then answers `Ok(None)`.
    fn accept(
        &self,
        listener: &Self::Listener,
        stop: &CancellationToken,
    ) -> impl Future<Output = io::Result<Option<Accepted>>>;

    /// The listening socket itself.
    fn listening<'a>(&self, listener: &'a Self::Listener) -> &'a Socket;

    /// Take over an accepted socket.
    fn adopt(&self, socket: Socket) -> io::Result<Self::Stream>;

    /// A new connection to the application, within `timeout`.
    fn dial(&self, app: &App, timeout: Duration) -> impl Future<Output = io::Result<Self::Stream>>;

    /// Resolves when the peer has sent FIN or RST, even behind unread bytes. Reads nothing.
    fn peer_left(&self, stream: &Self::Stream) -> impl Future<Output = ()>;

    /// Move bytes both ways until both ways have ended or one broke; tells `flow` all it does.
    /// Half-close is passed on, data read before a reset is delivered first. After
    /// `Flow::break_off` it ends soon, and nothing of it is left in the kernel. The sockets stay
    /// open.
    fn relay(
        &self,
        client: &Self::Stream,
        app: &Self::Stream,
        flow: &Rc<Flow>,
    ) -> impl Future<Output = ()>;

    /// Read and throw away until the peer has ended.
    fn discard(&self, stream: &Self::Stream) -> impl Future<Output = ()>;

    /// The socket itself, for options, addresses and small writes.
    fn socket<'a>(&self, stream: &'a Self::Stream) -> SockRef<'a>;

    /// Resolves when there is something to read: bytes, or the end. Reads nothing.
    fn readable(&self, stream: &Self::Stream) -> impl Future<Output = ()>;

    /// Read and write this connection a piece at a time from now on.
    fn open(&self, stream: Self::Stream) -> Self::Io;

    /// The connection behind it.
    fn stream<'a>(&self, io: &'a Self::Io) -> &'a Self::Stream;

    /// Read what is there into `buf`; an empty read is the end. One task at a time.
    fn poll_read(
        &self,
        io: &Self::Io,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>>;

    /// Write what fits of these, in order. One task at a time.
    fn poll_write(
        &self,
        io: &Self::Io,
        cx: &mut Context<'_>,
        bytes: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>>;

    /// The connection itself again, for [`Engine::relay`] or [`Engine::discard`], and bytes that were
    /// taken from the kernel and not read.
    fn reclaim(&self, io: Self::Io) -> impl Future<Output = (Self::Stream, Vec<u8>)>;

    /// Run a task on this thread.
    fn spawn(&self, task: impl Future<Output = ()> + 'static);

    /// Resolves at `deadline`, not before.
    fn sleep_until(&self, deadline: Instant) -> impl Future<Output = ()>;
}

/// What the engines hold at the moment, for the status page and the leak tests. All of it is back
/// at zero when nothing is open.
#[derive(Debug, Default)]
pub struct Gauges {
    /// Relay buffers that hold bytes.
    pub buffers: AtomicU64,
    /// Operations the kernel has not completed (io_uring).
    pub ring_ops: AtomicU64,
}
