//! The epoll engine: one tokio current-thread runtime, sockets registered with it, and two
//! one-way pumps per connection.
//!
//! What keeps it as cheap as the best: data is read only after readiness, into a borrowed buffer;
//! a short read or a refused write clears the readiness without another call to learn the same;
//! writes are tried before they are waited for. A read also stops short of an urgent byte, with more
//! behind it: on a socket that has one only a read that finds nothing counts.

mod stream;

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::io::{self, IoSlice, Read, Write};
use std::net::Shutdown;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use socket2::{SockRef, Socket};
use tokio::io::unix::AsyncFd;
use tokio::io::{Interest, ReadBuf};
use tokio::runtime::LocalRuntime;
use tokio_util::sync::CancellationToken;

use super::buf::{Buf, Pool, Size};
use super::flow::{Flow, Side};
use super::listen::{self, Ending, Next};
use super::{Accepted, App, Engine, Gauges, dial};

/// The engine. Cheap to clone; lives on one thread.
#[derive(Clone)]
pub struct Epoll {
    pool: Pool,
}

/// A listening socket registered with the runtime.
pub struct Listener {
    fd: AsyncFd<Socket>,
    ending: Ending,
}

/// A connected socket registered with the runtime.
pub struct Stream {
    fd: AsyncFd<Socket>,
    /// Try to read without waiting for readiness: it may have been seen and cleared while somebody
    /// only looked.
    eager: Cell<bool>,
}

/// One way of a relay: bytes from `from` to the other side.
struct Pump<'from, 'to> {
    from: Side,
    source: &'from Stream,
    sink: &'to Stream,
    /// Try to read without waiting for readiness: the first time, because readiness may have been
    /// seen and cleared while the connection waited in the queue.
    eager: bool,
    size: Size,
    state: State,
}

enum State {
    /// Waiting for the source.
    Reading,
    /// `buf[done..filled]` has to go to the sink.
    Writing { buf: Buf, done: usize, filled: usize },
    /// The source has ended and the sink has been told; or the sink is gone.
    Done,
}

/// Bytes one way may move before the others on this thread get their turn, however fast its peers
/// are: a fraction of a millisecond.
const TURN: usize = 1 << 20;

/// What the runtime is told of a socket.
const WATCHED: Interest = Interest::READABLE.add(Interest::WRITABLE).add(Interest::PRIORITY);

/// How many buffers a worker has ready before the first connection: allocated, not yet touched.
const WARM: usize = 16;

impl Epoll {
    /// Run `main` to its end on a runtime of its own, on this thread.
    pub fn run<F, M>(gauges: Arc<Gauges>, main: M) -> io::Result<F::Output>
    where
        M: FnOnce(Self) -> F,
        F: Future,
    {
        let runtime = LocalRuntime::new()?;
        let engine = Self { pool: Pool::new(WARM, gauges) };
        Ok(runtime.block_on(main(engine)))
    }
}

impl Engine for Epoll {
    type Listener = Listener;
    type Stream = Stream;
    type Io = Stream;

    fn listen(&self, listener: Socket) -> io::Result<Listener> {
        Ok(Listener { fd: register(listener)?, ending: Ending::default() })
    }

    async fn accept(
        &self,
        listener: &Listener,
        stop: &CancellationToken,
    ) -> io::Result<Option<Accepted>> {
        let mut stopped = pin!(stop.cancelled());
        let accepted = poll_fn(|cx| match stopped.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready(None),
            Poll::Pending => listener.poll_accept(cx).map(Some),
        });
        match accepted.await {
            Some(accepted) => accepted.map(Some),
            None => listener.last().await,
        }
    }

    fn listening<'a>(&self, listener: &'a Listener) -> &'a Socket {
        listener.fd.get_ref()
    }

    fn adopt(&self, socket: Socket) -> io::Result<Stream> {
        Stream::new(socket)
    }

    fn dial(&self, app: &App, timeout: Duration) -> impl Future<Output = io::Result<Stream>> {
        dial::dial(self, app, timeout, async |stream: &Stream| stream.fd.writable().await.map(drop))
    }

    async fn peer_left(&self, stream: &Stream) {
        loop {
            let Ok(mut guard) = stream.fd.readable().await else { return };
            if guard.ready().is_read_closed() {
                return;
            }
            // Bytes are there; the end may come behind them, with an edge of its own.
            guard.clear_ready();
            stream.eager.set(true);
        }
    }

    async fn readable(&self, stream: &Stream) {
        // Cleared, so that the next call waits for more; and to be remembered.
        if let Ok(mut guard) = stream.fd.readable().await {
            guard.clear_ready();
        }
        stream.eager.set(true);
    }

    fn open(&self, stream: Stream) -> Stream {
        stream.eager.set(true);
        stream
    }

    fn stream<'a>(&self, io: &'a Stream) -> &'a Stream {
        io
    }

    fn poll_read(
        &self,
        io: &Stream,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        io.poll_read(cx, buf)
    }

    fn poll_write(
        &self,
        io: &Stream,
        cx: &mut Context<'_>,
        bytes: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        io.poll_send(cx, bytes)
    }

    async fn reclaim(&self, io: Stream) -> (Stream, Vec<u8>) {
        (io, Vec::new())
    }

    /// Holds the two pumps and nothing else: every open connection has one.
    fn relay(&self, client: &Stream, app: &Stream, flow: &Rc<Flow>) -> impl Future<Output = ()> {
        let mut up_pump = Pump::new(Side::Client, client, app);
        let mut down_pump = Pump::new(Side::App, app, client);
        poll_fn(move |cx| {
            let up = up_pump.poll(cx, &self.pool, flow);
            let down = down_pump.poll(cx, &self.pool, flow);
            if flow.is_broken_off() {
                return Poll::Ready(());
            }
            let last_words =
                |pump: &Pump<'_, '_>| !pump.is_blocked() && !flow.is_finished(pump.from);
            // Whoever broke it may have sent bytes before: they go on their way for as long as the
            // other side takes them.
            match flow.broken() {
                Some(Side::App) if down.is_pending() && last_words(&down_pump) => Poll::Pending,
                Some(Side::Client) if up.is_pending() && last_words(&up_pump) => Poll::Pending,
                Some(_) => Poll::Ready(()),
                None if up.is_ready() && down.is_ready() => Poll::Ready(()),
                None => Poll::Pending,
            }
        })
    }

    async fn discard(&self, stream: &Stream) {
        // A peer that sends faster than this reads must not keep the thread from the others, nor from the
        // timer that ends it.
        while !self.discard_some(stream).await {
            tokio::task::yield_now().await;
        }
    }

    fn socket<'a>(&self, stream: &'a Stream) -> SockRef<'a> {
        SockRef::from(stream.fd.get_ref())
    }

    fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        tokio::task::spawn_local(task);
    }

    async fn sleep_until(&self, deadline: Instant) {
        tokio::time::sleep_until(deadline.into()).await;
    }
}

impl Epoll {
    /// Throw away what is there, no more of it than belongs to one turn; whether that was the end.
    async fn discard_some(&self, stream: &Stream) -> bool {
        let mut turn = TURN;
        poll_fn(|cx| {
            let mut buf = None;
            loop {
                let Ok(mut guard) = ready!(stream.fd.poll_read_ready(cx)) else {
                    return Poll::Ready(true);
                };
                let buf = buf.get_or_insert_with(|| self.pool.take(Size::Small));
                match stream.fd.get_ref().read(buf) {
                    Ok(0) => return Poll::Ready(true),
                    Ok(_) if turn == 0 => return Poll::Ready(false),
                    Ok(n) => turn = turn.saturating_sub(n),
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => guard.clear_ready(),
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                    Err(_) => return Poll::Ready(true),
                }
            }
        })
        .await
    }
}

impl Listener {
    fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<io::Result<Accepted>> {
        loop {
            let mut guard = ready!(self.fd.poll_read_ready(cx))?;
            match listen::accept(self.fd.get_ref()) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => guard.clear_ready(),
                accepted => return Poll::Ready(accepted),
            }
        }
    }

    /// What is still in the backlog of a listener that is being closed.
    async fn last(&self) -> io::Result<Option<Accepted>> {
        loop {
            match self.ending.step(self.fd.get_ref())? {
                Next::Accepted(accepted) => return Ok(Some(accepted)),
                Next::SettleUntil(at) => tokio::time::sleep_until(at.into()).await,
                Next::Empty => return Ok(None),
            }
        }
    }
}

/// Have the runtime watch `socket`.
#[allow(unsafe_code, reason = "tokio asks for a promise that the descriptor stays open")]
fn register(socket: Socket) -> io::Result<AsyncFd<Socket>> {
    // SAFETY: the socket owns its descriptor and moves into the AsyncFd, which never gives it out:
    // it stays open, and the same, until the AsyncFd is dropped.
    Ok(unsafe { AsyncFd::register_with_interest(socket, WATCHED) }?)
}

impl Stream {
    fn new(socket: Socket) -> io::Result<Self> {
        Ok(Self { fd: register(socket)?, eager: Cell::new(false) })
    }

    /// Whether an urgent byte may be there. Asks nobody but the runtime; also true at the end.
    fn may_be_urgent(&self) -> bool {
        self.fd.try_io(Interest::PRIORITY, |_| Ok(())).is_ok()
    }

    /// Nothing can be read, so neither can anything urgent.
    fn nothing_is_urgent(&self) {
        let _: io::Result<()> =
            self.fd.try_io(Interest::PRIORITY, |_| Err(io::ErrorKind::WouldBlock.into()));
    }
}

impl<'from, 'to> Pump<'from, 'to> {
    fn new(from: Side, source: &'from Stream, sink: &'to Stream) -> Self {
        let state = State::Reading;
        Self { from, source, sink, eager: true, size: Size::Small, state }
    }

    /// Whether there are bytes the sink does not take. Only true of a pump that is pending.
    const fn is_blocked(&self) -> bool {
        matches!(self.state, State::Writing { .. })
    }

    /// Move what can be moved now. Ready when this way has ended, whichever way it did.
    fn poll(&mut self, cx: &mut Context<'_>, pool: &Pool, flow: &Flow) -> Poll<()> {
        let mut turn = TURN;
        loop {
            match &mut self.state {
                State::Done => return Poll::Ready(()),
                State::Reading => {
                    let Some((buf, filled)) = ready!(self.poll_read(cx, pool, flow)) else {
                        self.state = State::Done;
                        continue;
                    };
                    self.state = State::Writing { buf, done: 0, filled };
                }
                State::Writing { buf, done, filled } => {
                    let to = self.from.other();
                    match ready!(self.sink.poll_write(cx, &buf[*done..*filled], to, flow)) {
                        Ok(n) => {
                            flow.moved(self.from, n);
                            *done += n;
                            if done == filled {
                                self.state = State::Reading;
                            }
                            turn = turn.saturating_sub(n);
                            if turn == 0 {
                                cx.waker().wake_by_ref();
                                return Poll::Pending;
                            }
                        }
                        Err(_) => {
                            flow.fail(to);
                            self.state = State::Done;
                        }
                    }
                }
            }
        }
    }

    /// Bytes from the source; `None` when there will be no more.
    fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        pool: &Pool,
        flow: &Flow,
    ) -> Poll<Option<(Buf, usize)>> {
        loop {
            let mut guard = None;
            if !self.eager {
                match ready!(self.source.fd.poll_read_ready(cx)) {
                    Ok(ready) => guard = Some(ready),
                    Err(_) => return Poll::Ready(self.end(flow, true)),
                }
            }
            let mut buf = pool.take(self.size);
            match self.source.fd.get_ref().read(&mut buf) {
                Ok(0) => return Poll::Ready(self.end(flow, false)),
                Ok(n) => {
                    let short = n < buf.len();
                    self.size = if short { Size::Small } else { Size::Large };
                    if short && !self.source.may_be_urgent() {
                        // Nothing is left to read: what comes later comes with an edge.
                        self.eager = false;
                        if let Some(mut guard) = guard {
                            guard.clear_ready();
                        }
                    }
                    return Poll::Ready(Some((buf, n)));
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    self.eager = false;
                    self.source.nothing_is_urgent();
                    if let Some(mut guard) = guard {
                        guard.clear_ready();
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Poll::Ready(self.end(flow, true)),
            }
        }
    }

    fn end(&self, flow: &Flow, broken: bool) -> Option<(Buf, usize)> {
        if broken {
            flow.fail(self.from);
            return None;
        }
        flow.finish(self.from);
        if flow.passes_on_end_of(self.from) {
            let _ = self.sink.fd.get_ref().shutdown(Shutdown::Write);
        }
        None
    }
}

impl Stream {
    fn poll_write(
        &self,
        cx: &mut Context<'_>,
        bytes: &[u8],
        to: Side,
        flow: &Flow,
    ) -> Poll<io::Result<usize>> {
        loop {
            match self.fd.get_ref().write(bytes) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                written => return Poll::Ready(written),
            }
            flow.block(to);
            let mut guard = ready!(self.fd.poll_write_ready(cx))?;
            match self.fd.get_ref().write(bytes) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => guard.clear_ready(),
                written => return Poll::Ready(written),
            }
        }
    }
}
