//! Whether the client of an HTTP/2 connection takes what it is sent, stream by stream. The socket does not
//! tell: it is a stream's window that is full.
//!
//! ```text
//!   answer ── hand_out ──→ hyper, h2 ──→ socket
//!               │ since when it has not asked for more        │ a piece is let go of when it is written
//!               └ for too long: this stream is reset          └ the rest of a stream that hyper is done with:
//!                                                               for too long, and the connection ends
//! ```
//!
//! Always true: one stream that is not taken costs the others nothing, as long as it can still be reset;
//! a connection is quiet only when everything that was handed out has been written.

use std::cell::{Cell, RefCell};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes};
use hyper::rt::Executor;
use pin_project_lite::pin_project;
use slab::Slab;

use super::pulse::Pulse;
use crate::io::Engine;

/// The streams of one connection.
#[derive(Default)]
pub struct Takers {
    open: RefCell<Slab<Rc<Stream>>>,
    /// The stream that was begun last, until its task begins.
    newest: RefCell<Option<Rc<Stream>>>,
    /// What is left of those that hyper is done with.
    tails: RefCell<Vec<Tail>>,
    /// Who watches, while nothing is untaken.
    watch: RefCell<Option<Waker>>,
}

/// One stream, as its answer, its task and who watches it know it.
#[derive(Default)]
struct Stream {
    /// Since when its client has left a piece of the answer untaken.
    since: Cell<Option<Instant>>,
    /// Bytes that were handed out and not written yet; and how many that were when it was last looked at.
    out: Arc<AtomicUsize>,
    seen: Cell<usize>,
    /// What moves of it, if that is watched.
    pulse: Option<Rc<Pulse>>,
    /// It is to be reset.
    cut: Cell<bool>,
    /// Its task.
    task: RefCell<Option<Waker>>,
}

/// The last bytes of a stream, which h2 has and the client does not take.
struct Tail {
    out: Arc<AtomicUsize>,
    /// How many there were when it was last looked at, and since when.
    left: usize,
    since: Instant,
}

/// The right to one stream's place among them.
pub struct Taker {
    stream: Rc<Stream>,
    key: usize,
    takers: Rc<Takers>,
}

/// A piece of an answer, as hyper and h2 have it. On a connection that carries many, what is left of it is
/// counted: what has gone was written, or thrown away.
pub struct Piece {
    bytes: Bytes,
    counted: Option<Arc<AtomicUsize>>,
}

impl From<Bytes> for Piece {
    fn from(bytes: Bytes) -> Self {
        Self { bytes, counted: None }
    }
}

impl Piece {
    fn goes(&self, bytes: usize) {
        if let Some(out) = &self.counted {
            out.fetch_sub(bytes, Ordering::Relaxed);
        }
    }
}

impl Buf for Piece {
    fn remaining(&self) -> usize {
        self.bytes.len()
    }

    fn chunk(&self) -> &[u8] {
        &self.bytes
    }

    fn advance(&mut self, count: usize) {
        self.bytes.advance(count);
        self.goes(count);
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        self.goes(self.bytes.len());
    }
}

impl Takers {
    /// A request has come.
    pub fn begin(self: &Rc<Self>, pulse: Option<Rc<Pulse>>) -> Taker {
        let stream = Rc::new(Stream { pulse, ..Stream::default() });
        let key = self.open.borrow_mut().insert(stream.clone());
        *self.newest.borrow_mut() = Some(stream.clone());
        Taker { stream, key, takers: self.clone() }
    }

    /// Whether no request is being served, and all that was answered has been written.
    pub fn is_quiet(&self) -> bool {
        self.open.borrow().is_empty() && self.tails.borrow().iter().all(Tail::is_over)
    }

    /// Reset the streams whose clients have taken nothing of a piece for `patience`. When the next will have;
    /// if none waits for its client, the task is woken when the first does.
    pub fn cut(&self, now: Instant, patience: Duration, cx: &Context<'_>) -> Option<Instant> {
        let mut next: Option<Instant> = None;
        for (_, stream) in &*self.open.borrow() {
            let Some(since) = stream.since.get().filter(|_| !stream.cut.get()) else { continue };
            let left = stream.out.load(Ordering::Relaxed);
            let moved = left < stream.seen.replace(left);
            let since = if moved { now } else { since };
            stream.since.set(Some(since));
            let at = since + patience;
            if at > now {
                next = Some(next.map_or(at, |next| next.min(at)));
                continue;
            }
            stream.cut.set(true);
            stream.wake();
        }
        if next.is_none() {
            *self.watch.borrow_mut() = Some(cx.waker().clone());
        }
        next
    }

    /// End the streams of which nothing has moved for `timeout`: those whose answer has begun are reset, the
    /// others are answered for the application. When the next will have stopped.
    pub fn stop(&self, now: Instant, timeout: Duration) -> Option<Instant> {
        let mut next: Option<Instant> = None;
        for (_, stream) in &*self.open.borrow() {
            let Some(pulse) = stream.pulse.as_ref().filter(|pulse| !pulse.has_stopped()) else {
                continue;
            };
            let at = pulse.due(now, timeout, stream.out.load(Ordering::Relaxed));
            if at > now {
                next = Some(next.map_or(at, |next| next.min(at)));
                continue;
            }
            if pulse.stop() {
                stream.cut.set(true);
            }
            stream.wake();
        }
        next
    }

    /// Since when the client has taken nothing of what is left of a stream that can no longer be reset.
    pub fn untaken_since(&self, now: Instant) -> Option<Instant> {
        let mut tails = self.tails.borrow_mut();
        tails.retain(|tail| !tail.is_over());
        tails.iter_mut().map(|tail| tail.untaken_since(now)).min()
    }
}

impl Stream {
    fn wake(&self) {
        if let Some(task) = self.task.take() {
            task.wake();
        }
    }
}

impl Tail {
    fn left(&self) -> usize {
        self.out.load(Ordering::Relaxed)
    }

    fn is_over(&self) -> bool {
        self.left() == 0
    }

    fn untaken_since(&mut self, now: Instant) -> Instant {
        let left = self.left();
        if left < self.left {
            (self.left, self.since) = (left, now);
        }
        self.since
    }
}

impl Taker {
    /// A piece of the answer goes out; its client has yet to take it.
    pub fn hand_out(&self, bytes: Bytes) -> Piece {
        let stream = &self.stream;
        stream.since.set(Some(Instant::now()));
        if let Some(watch) = self.takers.watch.take() {
            watch.wake();
        }
        let before = stream.out.fetch_add(bytes.len(), Ordering::Relaxed);
        stream.seen.set(before + bytes.len());
        Piece { bytes, counted: Some(stream.out.clone()) }
    }

    /// It has been taken, and the next piece is waited for.
    pub fn waits(&self) {
        self.stream.since.set(None);
    }

    /// Whether it is reset because its client does not take it.
    pub fn is_cut(&self) -> bool {
        self.stream.cut.get()
    }
}

impl Drop for Taker {
    fn drop(&mut self) {
        self.takers.open.borrow_mut().remove(self.key);
        let left = self.stream.out.load(Ordering::Relaxed);
        if left > 0 && !self.is_cut() {
            let out = self.stream.out.clone();
            self.takers.tails.borrow_mut().push(Tail { out, left, since: Instant::now() });
        }
    }
}

/// hyper's tasks run where the connection does; those of streams can be ended.
#[derive(Clone)]
pub struct StreamTasks<E> {
    engine: E,
    takers: Rc<Takers>,
}

impl<E: Engine> StreamTasks<E> {
    /// For the streams of one connection.
    pub fn new(engine: &E, takers: &Rc<Takers>) -> Self {
        Self { engine: engine.clone(), takers: takers.clone() }
    }
}

impl<E: Engine, F: Future<Output = ()> + 'static> Executor<F> for StreamTasks<E> {
    fn execute(&self, task: F) {
        // hyper has the request served and its task begun in one go.
        match self.takers.newest.take() {
            Some(stream) => self.engine.spawn(StreamTask { task, stream }),
            None => self.engine.spawn(task),
        }
    }
}

pin_project! {
    /// The task of one stream. Dropped, the stream is reset.
    struct StreamTask<F> {
        #[pin]
        task: F,
        stream: Rc<Stream>,
    }
}

impl<F: Future<Output = ()>> Future for StreamTask<F> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.project();
        if this.stream.cut.get() || this.task.poll(cx).is_ready() {
            return Poll::Ready(());
        }
        let mut task = this.stream.task.borrow_mut();
        if !task.as_ref().is_some_and(|task| task.will_wake(cx.waker())) {
            *task = Some(cx.waker().clone());
        }
        Poll::Pending
    }
}
