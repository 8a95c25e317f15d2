//! A connection as hyper sees it, and what the one who watches it has to know: whether a request's
//! head is on its way, whether the peer takes what is written, whether it has ended.

use std::cell::{Cell, RefCell};
use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};
use std::time::{Duration, Instant};

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::frames::{Flood, Frames};
use crate::io::{Engine, sock};

/// What is read of a connection before others have their turn. A client that always has more to say, and of
/// which nothing has to wait (h2 answers a PING by itself), would keep its thread from all of them.
const TURN: usize = 4 * 1024;

/// One connection, shared by hyper and by who watches it.
pub struct Line<E: Engine> {
    engine: E,
    io: E::Io,
    /// Bytes are expected that have to come in time: since when the first of them is here.
    pub head: Rc<Cell<Head>>,
    /// What a client of HTTP/2 sends.
    frames: RefCell<Option<Box<Frames>>>,
    /// It floods us.
    flooded: Cell<bool>,
    /// Since when the peer does not take what is written.
    blocked: Cell<Option<Instant>>,
    /// Who has to know of that, if it is not who writes.
    watcher: RefCell<Option<Waker>>,
    /// The peer has ended, or broken, the connection.
    ended: Cell<bool>,
    /// How many bytes may still be read in this turn; without end, if it takes none.
    turn: Cell<usize>,
    read: Cell<u64>,
    written: Cell<u64>,
    /// What of these two was told by [`Line::news`].
    told: Cell<[u64; 2]>,
}

/// Where the next request's head is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Head {
    /// Not expected: a request is being served, or many may be.
    Busy,
    /// The connection has been between two requests since then.
    Idle(Instant),
    /// Its first bytes came then.
    Since(Instant),
}

/// What hyper is given.
pub struct Wire<E: Engine>(Rc<Line<E>>);

impl<E: Engine> Line<E> {
    /// Read and write `stream` a piece at a time.
    pub fn new(engine: &E, stream: E::Stream, head: Head) -> Rc<Self> {
        Rc::new(Self {
            io: engine.open(stream),
            engine: engine.clone(),
            head: Rc::new(Cell::new(head)),
            frames: RefCell::default(),
            flooded: Cell::new(false),
            blocked: Cell::new(None),
            watcher: RefCell::default(),
            ended: Cell::new(false),
            turn: Cell::new(usize::MAX),
            read: Cell::new(0),
            written: Cell::new(0),
            told: Cell::default(),
        })
    }

    /// The end that hyper reads from and writes to.
    pub fn wire(self: &Rc<Self>) -> Wire<E> {
        Wire(self.clone())
    }

    /// Where the next request's head is.
    pub fn head(&self) -> Head {
        self.head.get()
    }

    /// From now on no more is read than belongs to one turn, until the next one begins.
    pub fn begin_turn(&self) {
        self.turn.set(TURN);
    }

    /// From now on the client speaks HTTP/2.
    pub fn begin_frames(&self) {
        *self.frames.borrow_mut() = Some(Box::new(Frames::new(Instant::now())));
    }

    /// The last request of HTTP/2 whose head is whole, if that is what the client speaks.
    pub fn last_stream(&self) -> Option<u32> {
        self.frames.borrow().as_ref().map(|frames| frames.last())
    }

    /// Whether the client sends frame after frame that is no part of a request; nothing more is read of it.
    pub fn is_flooded(&self) -> bool {
        self.flooded.get()
    }

    /// Since when the peer does not take what is written.
    pub fn blocked(&self) -> Option<Instant> {
        self.blocked.get()
    }

    /// Wake `waker` when the peer does not take what another task writes.
    pub fn tell_when_blocked(&self, waker: &Waker) {
        let mut watcher = self.watcher.borrow_mut();
        if !watcher.as_ref().is_some_and(|known| known.will_wake(waker)) {
            *watcher = Some(waker.clone());
        }
    }

    /// Give the peer as long again: it has acknowledged some of it.
    pub fn blocked_anew(&self) {
        self.blocked.set(Some(Instant::now()));
    }

    /// Whether the peer has ended, or broken, the connection.
    pub fn has_ended(&self) -> bool {
        self.ended.get()
    }

    /// Whether the peer has ever sent anything.
    pub fn has_spoken(&self) -> bool {
        self.read.get() > 0
    }

    /// Bytes read and written.
    pub fn carried(&self) -> [u64; 2] {
        [self.read.get(), self.written.get()]
    }

    /// Bytes read and written since this was asked last.
    pub fn news(&self) -> [u64; 2] {
        let now = self.carried();
        let told = self.told.replace(now);
        [0, 1].map(|way| now[way] - told[way])
    }

    /// The connection itself.
    pub fn stream(&self) -> &E::Stream {
        self.engine.stream(&self.io)
    }

    /// The socket itself.
    pub fn socket(&self) -> SockRef<'_> {
        self.engine.socket(self.stream())
    }

    /// Write all of `bytes`; for what hyper does not say.
    pub async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let write =
                |cx: &mut Context<'_>| self.engine.poll_write(&self.io, cx, &[IoSlice::new(bytes)]);
            match std::future::poll_fn(write).await? {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                n => bytes = &bytes[n..],
            }
        }
        Ok(())
    }

    /// Read some; for what hyper does not hear. 0 is the end.
    pub async fn read(&self, bytes: &mut [u8]) -> io::Result<usize> {
        let mut buf = ReadBuf::new(bytes);
        std::future::poll_fn(|cx| self.engine.poll_read(&self.io, cx, &mut buf)).await?;
        Ok(buf.filled().len())
    }

    /// The connection itself again, and what was read of it and not asked for. Once hyper is gone
    /// nobody else has it.
    pub async fn reclaim(self: Rc<Self>) -> Option<(E::Stream, Vec<u8>)> {
        let line = Rc::into_inner(self)?;
        Some(line.engine.reclaim(line.io).await)
    }

    /// The client has sent these.
    fn heed(&self, bytes: &[u8]) -> Result<(), Flood> {
        let mut frames = self.frames.borrow_mut();
        let Some(frames) = &mut *frames else { return Ok(()) };
        let was_open = frames.is_open();
        let has_closed =
            frames.take(bytes, self.written.get()).inspect_err(|_| self.flooded.set(true))?;
        if !frames.is_open() {
            self.head.set(Head::Busy);
        } else if has_closed || !was_open {
            self.head.set(Head::Since(Instant::now()));
        }
        Ok(())
    }

    fn poll_write(&self, cx: &mut Context<'_>, bytes: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        match self.engine.poll_write(&self.io, cx, bytes) {
            Poll::Ready(Ok(n)) => {
                self.blocked.set(None);
                self.written.set(self.written.get() + n as u64);
                Poll::Ready(Ok(n))
            }
            Poll::Ready(Err(error)) => {
                self.ended.set(true);
                Poll::Ready(Err(error))
            }
            Poll::Pending => {
                if self.blocked.get().is_none() {
                    self.blocked.set(Some(Instant::now()));
                    if let Some(watcher) = &*self.watcher.borrow() {
                        watcher.wake_by_ref();
                    }
                }
                Poll::Pending
            }
        }
    }
}

/// A timer of the engine, in a box: few connections need one.
pub type Alarm = Pin<Box<dyn Future<Output = ()>>>;

/// A timer that rings at `at`.
pub fn alarm<E: Engine>(engine: &E, at: Instant) -> Alarm {
    let engine = engine.clone();
    Box::pin(async move { engine.sleep_until(at).await })
}

/// Notices a peer that does not take what is written to it, and other deadlines of its line.
pub struct Watch<E: Engine> {
    engine: E,
    alarm: Option<(Instant, Alarm)>,
    /// What the peer's kernel had not acknowledged when it was last asked.
    unacknowledged: Option<Option<i32>>,
}

impl<E: Engine> Watch<E> {
    pub fn new(engine: &E) -> Self {
        Self { engine: engine.clone(), alarm: None, unacknowledged: None }
    }

    /// Ready when the peer has taken nothing for `patience`. It is asked twice: between the two
    /// it has to have acknowledged something.
    pub fn poll_stalled(
        &mut self,
        line: &Line<E>,
        patience: Duration,
        cx: &mut Context<'_>,
    ) -> Poll<()> {
        loop {
            let Some(since) = line.blocked() else {
                self.unacknowledged = None;
                return Poll::Pending;
            };
            ready!(self.poll_past(since + patience / 2, cx));
            let now = sock::unacknowledged(line.socket());
            let before = self.unacknowledged.replace(now);
            if before.is_some_and(|before| now >= before) {
                return Poll::Ready(());
            }
            line.blocked_anew();
        }
    }

    /// Ready when `deadline` has passed; until then the task is woken in time.
    pub fn poll_past(&mut self, deadline: Instant, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            if Instant::now() >= deadline {
                return Poll::Ready(());
            }
            // An alarm that rings earlier is as good: then it is set again.
            let (_, alarm) = match &mut self.alarm {
                Some(set) if set.0 <= deadline => set,
                unset => unset.insert((deadline, alarm(&self.engine, deadline))),
            };
            ready!(alarm.as_mut().poll(cx));
            self.alarm = None;
        }
    }
}

impl<E: Engine> AsyncRead for Wire<E> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let line = &*self.0;
        if line.turn.get() == 0 {
            // Woken when sockets and timers of the others have been looked after.
            return pin!(tokio::task::yield_now()).poll(cx).map(Ok);
        }
        let before = buf.filled().len();
        let read = ready!(line.engine.poll_read(&line.io, cx, buf));
        let count = buf.filled().len() - before;
        line.turn.set(line.turn.get().saturating_sub(count));
        line.read.set(line.read.get() + count as u64);
        if count == 0 && buf.remaining() > 0 || read.is_err() {
            line.ended.set(true);
        } else if let Head::Idle(_) = line.head.get() {
            line.head.set(Head::Since(Instant::now()));
        } else if let Err(flood) = line.heed(&buf.filled()[before..]) {
            return Poll::Ready(Err(io::Error::other(flood)));
        }
        Poll::Ready(read)
    }
}

impl<E: Engine> AsyncWrite for Wire<E> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.0.poll_write(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        /// A head and a short body: copying them together costs less than telling the kernel of two.
        const TOGETHER: usize = 1024;
        let length: usize = bytes.iter().map(|slice| slice.len()).sum();
        if bytes.len() < 2 || length > TOGETHER {
            return self.0.poll_write(cx, bytes);
        }
        let mut joined = [0; TOGETHER];
        let mut at = 0;
        for slice in bytes {
            joined[at..at + slice.len()].copy_from_slice(slice);
            at += slice.len();
        }
        self.0.poll_write(cx, &[IoSlice::new(&joined[..at])])
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    /// Who watches the line ends it, in the right order.
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
