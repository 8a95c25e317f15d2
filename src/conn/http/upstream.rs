//! Connections to the application: made when a request needs one, kept for the next, never more than
//! the limit in all.
//!
//! ```text
//!   connection() ── an idle one, or a seat and a dial ──→ exchange ──→ idle ──→ closed after a while
//!                                                           └ ended otherwise: half-close, wait for
//!                                                             the application's end, then free the slot
//! ```
//!
//! Always true: open connections of all workers together never outnumber the limit; one carries the
//! next request only after a complete exchange; a seat is given back when the application has ended
//! its connection; so is a slot whose exchange broke, after `abandon-timeout` at the latest.

use std::cell::RefCell;
use std::future::poll_fn;
use std::net::Shutdown;
use std::pin::{Pin, pin};
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, Response};
use hyper::body::{Body, Incoming};
use hyper::client::conn::{TrySendError, http1};
use hyper_util::rt::TokioIo;
use slab::Slab;
use tokio::sync::{Notify, oneshot};
use tokio_util::task::TaskTracker;

use super::body::RequestBody;
use super::carrier::{Carrier, Carries};
use super::exchange::{Home, Lease, Slot, State};
use super::streams::Streams;
use super::wire::{Head, Line, Watch};
use crate::conn::seats::Seat;
use crate::conn::{Config, Port, connect};
use crate::io::{Engine, sock};
use crate::outcome::{Outcome, Reason};

/// How long an application may take to end a connection after its last exchange before it is reset.
const PARTING: Duration = Duration::from_secs(1);

/// One worker's connections to the application of one port.
pub struct Upstream<E: Engine> {
    pub engine: E,
    pub port: Arc<Port>,
    pub tasks: TaskTracker,
    pub(super) streams: Streams,
    links: RefCell<Slab<Link<E>>>,
    /// The one used last at the end: the others grow old and are closed.
    idle: RefCell<Vec<(usize, Instant)>>,
    /// Rung when the first connection becomes idle, and when there is one for streams.
    kept: Notify,
    myself: Weak<Self>,
}

/// One connection.
struct Link<E: Engine> {
    /// `None`: it is to end.
    sender: Option<http1::SendRequest<RequestBody>>,
    lease: Rc<Lease>,
    carrier: Rc<Carrier<E>>,
    /// Who takes it over once hyper is done with it.
    taker: Option<oneshot::Sender<Switched<E>>>,
}

/// A connection that carries no HTTP any more, and what had been read of it.
pub struct Switched<E: Engine> {
    pub line: Rc<Line<E>>,
    pub read: Bytes,
    pub seat: Seat,
}

/// An answer, or why hyper has none.
type Answered = Result<Response<Incoming>, TrySendError<Request<RequestBody>>>;

/// Why a request got no answer.
pub enum Unanswered {
    /// It was not sent: the connection had ended before.
    Unsent(Box<Request<RequestBody>>),
    /// The application could not be reached with it.
    Unreached(Reason, Box<Request<RequestBody>>),
    /// The exchange broke.
    Broken(hyper::Error),
}

impl<E: Engine> Upstream<E> {
    /// No connection yet. `tasks`: what the worker has to wait for before it ends.
    pub fn new(engine: E, port: Arc<Port>, tasks: TaskTracker) -> Rc<Self> {
        let upstream = Rc::new_cyclic(|myself| Self {
            engine: engine.clone(),
            port,
            tasks: tasks.clone(),
            streams: Streams::default(),
            links: RefCell::default(),
            idle: RefCell::default(),
            kept: Notify::new(),
            myself: myself.clone(),
        });
        engine.spawn(tasks.track_future(keep_house(upstream.clone())));
        upstream
    }

    /// A connection that is ready for a request at once, and since when it has been idle.
    pub fn idle_connection(&self) -> Option<(usize, Instant)> {
        let (key, _) = *self.idle.borrow().last()?;
        let ready = self.links.borrow().get(key)?.sender.as_ref()?.is_ready();
        if !ready {
            return None;
        }
        self.pop_idle()
    }

    /// A connection that is ready for a request: an idle one, and since when it has been so, or a new
    /// one.
    pub async fn connection(&self, config: &Config) -> Result<(usize, Option<Instant>), Reason> {
        let deadline = Instant::now() + config.connect_timeout;
        loop {
            while let Some((key, since)) = self.pop_idle() {
                if self.is_ready(key).await {
                    return Ok((key, Some(since)));
                }
            }
            match self.port.seats.take(self.port.gate.limit()) {
                Some(seat) => return Ok((self.dial(config, seat).await?, None)),
                // The room is another worker's idle connection, or one that is being closed.
                None => self.room(deadline).await?,
            }
        }
    }

    /// Have idle connections looked for: there is another one.
    pub(super) fn look_after_house(&self) {
        self.kept.notify_one();
    }

    /// Room for one more connection, at the cost of an idle one if there is no other.
    pub(super) async fn seat(&self, config: &Config) -> Result<Seat, Reason> {
        let deadline = Instant::now() + config.connect_timeout;
        loop {
            if let Some(seat) = self.port.seats.take(self.port.gate.limit()) {
                return Ok(seat);
            }
            if let Some((key, _)) = self.pop_idle() {
                self.close(key);
            }
            self.room(deadline).await?;
        }
    }

    /// Wait until there may be room for one more connection.
    async fn room(&self, deadline: Instant) -> Result<(), Reason> {
        tokio::select! {
            biased;
            () = self.port.seats.room(|| self.port.gate.limit()) => Ok(()),
            () = self.engine.sleep_until(deadline) => Err(Reason::UpstreamTimeout),
        }
    }

    /// Send a request on connection `key`, which [`connection`](Self::connection) has just named.
    pub fn send(
        &self,
        key: usize,
        request: Request<RequestBody>,
    ) -> impl Future<Output = Result<Response<Incoming>, Unanswered>> + use<E> {
        let begun = self.begin(key, request);
        async move {
            let (carrier, answer) = begun?;
            let carrier: &dyn Carries = &*carrier;
            let mut answer = pin!(answer);
            let answered = poll_fn(|cx| carrier.poll(cx, |cx| answer.as_mut().poll(cx))).await;
            answered.map_err(|mut failed| {
                carrier.hand_back(false);
                match failed.take_message() {
                    Some(request) => Unanswered::Unsent(Box::new(request)),
                    None => Unanswered::Broken(failed.into_error()),
                }
            })
        }
    }

    /// Hand a request to hyper, if the connection is still open. One that is only a head is carried by
    /// the task that waits for its answer.
    fn begin(
        &self,
        key: usize,
        request: Request<RequestBody>,
    ) -> Result<(Rc<Carrier<E>>, impl Future<Output = Answered> + use<E>), Unanswered> {
        let mut links = self.links.borrow_mut();
        let Some(Link { sender: Some(sender), carrier, .. }) = links.get_mut(key) else {
            return Err(Unanswered::Unsent(Box::new(request)));
        };
        let answer = if request.body().is_end_stream() {
            carrier.lend(|| sender.try_send_request(request))
        } else {
            sender.try_send_request(request)
        };
        Ok((carrier.clone(), answer))
    }

    /// What the exchange on connection `key` shares.
    pub fn lease(&self, key: usize) -> Rc<Lease> {
        self.links.borrow()[key].lease.clone()
    }

    /// The application has switched protocols on connection `key`: who gets it when hyper is done.
    pub fn switched(&self, key: usize) -> oneshot::Receiver<Switched<E>> {
        let (tell, told) = oneshot::channel();
        if let Some(link) = self.links.borrow_mut().get_mut(key) {
            link.lease.switch();
            link.taker = Some(tell);
        }
        told
    }

    fn pop_idle(&self) -> Option<(usize, Instant)> {
        self.idle.borrow_mut().pop()
    }

    /// Whether connection `key` can take a request, once it has noticed that its last one is over.
    async fn is_ready(&self, key: usize) -> bool {
        poll_fn(|cx| {
            let mut links = self.links.borrow_mut();
            let Some(sender) = links.get_mut(key).and_then(|link| link.sender.as_mut()) else {
                return Poll::Ready(false);
            };
            sender.poll_ready(cx).map(|ready| ready.is_ok())
        })
        .await
    }

    /// A new connection, by nobody watched yet.
    pub(super) async fn reach(&self, config: &Config) -> Result<Rc<Line<E>>, Reason> {
        let header = connect::header(&self.port, config, None);
        let stream = connect::connect(&self.engine, &self.port, config, header).await;
        let stream = stream.map_err(|outcome| match outcome {
            Outcome::Refused(reason) => reason,
            _ => Reason::Draining,
        })?;
        Ok(Line::new(&self.engine, stream, Head::Busy))
    }

    async fn dial(&self, config: &Config, seat: Seat) -> Result<usize, Reason> {
        let line = self.reach(config).await?;
        let shaken = http1::Builder::new()
            .max_buf_size(super::APP_BUFFER)
            .handshake(TokioIo::new(line.wire()))
            .await;
        let Ok((sender, connection)) = shaken else { return Err(Reason::UpstreamRefused) };
        let mut links = self.links.borrow_mut();
        let entry = links.vacant_entry();
        let key = entry.key();
        let home: Weak<dyn Home> = self.myself.clone();
        let carrier = Carrier::new(connection, line.clone());
        let lease = Rc::new(Lease::of_connection(home, key, carrier.clone()));
        let (sender, taker) = (Some(sender), None);
        entry.insert(Link { sender, lease: lease.clone(), carrier: carrier.clone(), taker });
        drop(links);
        if let Some(upstream) = self.myself.upgrade() {
            let task = upstream.carry(key, carrier, line, lease, seat, config.clone());
            self.engine.spawn(self.tasks.track_future(task));
        }
        Ok(key)
    }

    /// The life of one connection.
    async fn carry(
        self: Rc<Self>,
        key: usize,
        carrier: Rc<Carrier<E>>,
        line: Rc<Line<E>>,
        lease: Rc<Lease>,
        seat: Seat,
        config: Config,
    ) {
        let halt = self.drive(&carrier, &line, config.write_stall_timeout).await;
        let read = match (halt, carrier.take()) {
            (None, Some(connection)) => connection.into_parts().read_buf,
            _ => Bytes::new(),
        };
        // hyper may be done before those who read the answer are.
        let state = match halt {
            None => self.decided(&lease).await,
            Some(_) => State::Left,
        };
        let taker = self.remove(key).taker;
        match (state, taker) {
            (State::Switched, Some(taker)) => {
                let _ = taker.send(Switched { line, read, seat });
                return;
            }
            (State::Over, _) => self.wind_up(line, None, halt, PARTING).await,
            _ => self.wind_up(line, lease.take(), halt, config.abandon_timeout).await,
        }
        drop(seat);
    }

    /// What becomes of the exchange whose connection hyper is done with.
    async fn decided(&self, lease: &Lease) -> State {
        tokio::select! {
            biased;
            state = poll_fn(|cx| lease.poll_decided(cx)) => state,
            () = self.port.shared.cut.raised() => State::Left,
        }
    }

    /// Have hyper work until it is done, or there is a reason to stop it.
    async fn drive(
        &self,
        carrier: &Carrier<E>,
        line: &Line<E>,
        patience: Duration,
    ) -> Option<Outcome> {
        let mut watch = Watch::new(&self.engine);
        let mut cut = self.port.shared.cut.watch();
        poll_fn(|cx| {
            if carrier.poll_own(cx).is_ready() {
                return Poll::Ready(None);
            }
            if Pin::new(&mut cut).poll(cx).is_ready() {
                return Poll::Ready(Some(Outcome::Cut));
            }
            watch.poll_stalled(line, patience, cx).map(|()| Some(Outcome::AppStalled))
        })
        .await
    }

    /// A connection will not be used again: tell the application so, and wait until it has ended, so
    /// that it never has more connections than seats. A slot that is still held is held as long.
    async fn wind_up(
        &self,
        line: Rc<Line<E>>,
        slot: Option<Slot>,
        halt: Option<Outcome>,
        patience: Duration,
    ) {
        let will_be = |outcome| {
            if let Some(slot) = &slot {
                slot.will_be(outcome);
            }
        };
        let ended = line.has_ended();
        let Some((stream, _)) = line.reclaim().await else { return };
        if let Some(outcome) = halt {
            will_be(outcome);
            sock::reset(self.engine.socket(&stream));
        } else if !ended {
            let _ = self.engine.socket(&stream).shutdown(Shutdown::Write);
            let deadline = Instant::now() + patience;
            tokio::select! {
                biased;
                () = self.engine.discard(&stream) => {}
                () = self.engine.sleep_until(deadline) => {
                    will_be(Outcome::Abandoned);
                    sock::reset(self.engine.socket(&stream));
                }
                () = self.port.shared.cut.raised() => {
                    will_be(Outcome::Cut);
                    sock::reset(self.engine.socket(&stream));
                }
            }
        }
        drop(stream);
        drop(slot);
    }

    /// A connection that carried no exchange is done with: end it, and give its seat back then.
    pub(super) fn let_go(&self, line: Rc<Line<E>>, seat: Seat, halt: Option<Outcome>) {
        let Some(upstream) = self.myself.upgrade() else { return };
        self.engine.spawn(self.tasks.track_future(async move {
            upstream.wind_up(line, None, halt, PARTING).await;
            drop(seat);
        }));
    }

    fn remove(&self, key: usize) -> Link<E> {
        self.idle.borrow_mut().retain(|(idle, _)| *idle != key);
        self.links.borrow_mut().remove(key)
    }

    /// Have connection `key` end.
    fn close(&self, key: usize) {
        let mut links = self.links.borrow_mut();
        let Some(link) = links.get_mut(key) else { return };
        let (sender, carrier) = (link.sender.take(), link.carrier.clone());
        drop(links);
        carrier.hand_back(false);
        drop(sender);
    }
}

impl<E: Engine> Upstream<E> {
    /// Whether `lease` is still that of connection `key`: the key of one that has ended is given again.
    fn owns(&self, key: usize, lease: &Lease) -> bool {
        self.links.borrow().get(key).is_some_and(|link| std::ptr::eq(&*link.lease, lease))
    }
}

impl<E: Engine> Home for Upstream<E> {
    fn end(&self, key: usize, lease: &Lease) {
        if self.owns(key, lease) {
            self.close(key);
        }
    }

    fn settle(&self, slot: Slot) {
        if let Some(upstream) = self.myself.upgrade() {
            upstream.settle_apart(slot);
        }
    }

    fn left(&self, body: Incoming, lease: Rc<Lease>) {
        if let Some(upstream) = self.myself.upgrade() {
            upstream.leave_stream(body, lease);
        }
    }

    fn idle(&self, key: usize, lease: &Lease) {
        if !self.owns(key, lease) {
            return;
        }
        let links = self.links.borrow();
        let Some(Link { sender: Some(sender), carrier, .. }) = links.get(key) else { return };
        let keep = !sender.is_closed();
        carrier.hand_back(sender.is_ready());
        drop(links);
        let port = &self.port;
        let excess = port.seats.excess(port.gate.limit()) > 0;
        if !keep || port.shared.closing.is_raised() || excess || port.seats.hear() {
            return self.close(key);
        }
        let mut idle = self.idle.borrow_mut();
        if idle.is_empty() {
            self.kept.notify_one();
        }
        idle.push((key, Instant::now()));
    }
}

/// Close what has been idle for long, what others have no room for, and at last everything.
async fn keep_house<E: Engine>(upstream: Rc<Upstream<E>>) {
    let port = &*upstream.port;
    loop {
        // From here on nobody asks in vain.
        let asked = pin!(port.seats.asked());
        let keep = port.config().http.app_keepalive;
        let now = Instant::now();
        for key in superfluous(&upstream, now, keep) {
            upstream.close(key);
        }
        let streams = upstream.streams.look_after(now, keep);
        let oldest = upstream.idle.borrow().first().map(|(_, since)| *since + keep);
        let next = [oldest, streams].into_iter().flatten().min();
        let old = async {
            match next {
                Some(at) => upstream.engine.sleep_until(at).await,
                None => upstream.kept.notified().await,
            }
        };
        tokio::select! {
            () = asked => {}
            () = old => {}
            () = port.shared.closing.raised() => break,
        }
    }
    for (key, _) in upstream.idle.take() {
        upstream.close(key);
    }
    upstream.streams.close();
}

/// Take the idle connections that are to end now out of the list.
fn superfluous<E: Engine>(upstream: &Upstream<E>, now: Instant, keep: Duration) -> Vec<usize> {
    let port = &*upstream.port;
    let mut idle = upstream.idle.borrow_mut();
    let mut count = idle.iter().take_while(|(_, since)| now >= *since + keep).count();
    count = count.max(port.seats.excess(port.gate.limit()) as usize).min(idle.len());
    while count < idle.len() && port.seats.hear() {
        count += 1;
    }
    idle.drain(..count).map(|(key, _)| key).collect()
}
