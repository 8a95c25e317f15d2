//! HTTP/2 to the application: one connection carries many exchanges, so the slot is a stream's.
//!
//! An application that speaks HTTP/2 without TLS cannot be asked for it; it is tried once per port and
//! worker: a preface and empty settings, which only HTTP/2 answers with settings. One that says nothing
//! is asked again after [`ASK_AGAIN`].
//!
//! Always true: a stream whose client has left is read to its end for `abandon-timeout` at most,
//! its slot held, if the request had been sent to its end. A request that was broken off can only be
//! reset (an early end would look like a whole one); after that nothing can be heard of it, and its
//! slot is held for [`SETTLE`] more, so that resets do not start work faster than that.

use std::cell::{Cell, RefCell};
use std::io;
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use http::{Request, Response};
use hyper::body::{Body, Incoming};
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::TokioIo;

use super::body::RequestBody;
use super::exchange::{Home, Lease, Slot};
use super::upstream::{Unanswered, Upstream};
use super::wire::Watch;
use super::{APP_HEAD, APP_STREAMS, CONNECTION_WINDOW, STREAM_WINDOW, Tasks};
use crate::conn::Config;
use crate::io::{Engine, sock};
use crate::outcome::{Outcome, Reason};

/// How long a slot is held after its stream was reset.
const SETTLE: Duration = Duration::from_millis(500);

/// How long an application that did not answer the question is taken to speak HTTP/1.
const ASK_AGAIN: Duration = Duration::from_secs(10);

/// A preface and empty settings (RFC 9113, section 3.4).
const HELLO: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// The type of a frame of settings, and where in a frame's head it is (RFC 9113, section 4.1).
const SETTINGS: (usize, u8) = (3, 4);

/// One worker's HTTP/2 connections to the application of one port.
#[derive(Default)]
pub struct Streams {
    links: RefCell<Vec<Rc<Link>>>,
    /// When those that are idle are looked for again.
    look_at: Cell<Option<Instant>>,
    spoken: Cell<Spoken>,
}

/// Whether the application speaks HTTP/2.
#[derive(Clone, Copy, Debug, Default)]
enum Spoken {
    /// It was not asked yet, or could not be reached.
    #[default]
    Unknown,
    /// Its answer.
    Known(bool),
    /// It did not answer then.
    Silent(Instant),
}

/// One connection.
struct Link {
    sender: SendRequest<RequestBody>,
    /// Those that have not ended: their answers may take long after their heads.
    streams: Cell<usize>,
    /// How many it has carried, and how many it had when those that are idle were last looked for.
    carried: Cell<u64>,
    seen: Cell<u64>,
    /// As many as the application takes at once, and no more than we would.
    most: Cell<usize>,
}

/// A stream's place on its connection; dropping it gives it back.
pub struct Place(Rc<Link>);

/// An exchange that has no answer yet; dropped before, its client has left.
struct Unfinished<E: Engine> {
    answer: Option<Pin<Box<dyn Future<Output = Answered>>>>,
    lease: Rc<Lease>,
    upstream: Rc<Upstream<E>>,
}

type Answered = Result<Response<Incoming>, Unanswered>;

impl Streams {
    /// Have all connections end when their streams have.
    pub fn close(&self) {
        self.links.take();
    }

    /// Have connections end that have carried nothing between two looks, which are `keep` apart. When to look
    /// again, while there are any.
    pub fn look_after(&self, now: Instant, keep: Duration) -> Option<Instant> {
        let mut links = self.links.borrow_mut();
        let due = self.look_at.get();
        if links.is_empty() || due.is_some_and(|at| now < at) {
            self.look_at.set(due.filter(|_| !links.is_empty()));
            return self.look_at.get();
        }
        links.retain(|link| {
            let carried = link.carried.get();
            let idle = link.streams.get() == 0 && link.seen.replace(carried) == carried;
            !(idle && due.is_some())
        });
        self.look_at.set((!links.is_empty()).then(|| now + keep));
        self.look_at.get()
    }

    fn idle_link(&self) -> Option<Rc<Link>> {
        let mut links = self.links.borrow_mut();
        links.retain(|link| !link.sender.is_closed());
        let room = |link: &&Rc<Link>| link.streams.get() < link.most.get();
        links.iter().find(room).cloned()
    }
}

impl Place {
    fn on(link: Rc<Link>) -> Self {
        link.streams.set(link.streams.get() + 1);
        link.carried.set(link.carried.get() + 1);
        Self(link)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.streams.set(self.0.streams.get() - 1);
    }
}

/// Whether it is we who have reset the stream: the application has not ended it.
pub fn is_our_reset(error: &hyper::Error) -> bool {
    let cause =
        std::error::Error::source(error).and_then(|cause| cause.downcast_ref::<h2::Error>());
    cause.is_some_and(|cause| cause.is_reset() && !cause.is_remote())
}

impl<E: Engine> Upstream<E> {
    /// Whether the application speaks HTTP/2.
    pub async fn speaks_http2(&self, config: &Config) -> bool {
        match self.streams.spoken.get() {
            Spoken::Known(spoken) => return spoken,
            Spoken::Silent(since) if since.elapsed() < ASK_AGAIN => return false,
            Spoken::Silent(_) | Spoken::Unknown => {}
        }
        let spoken = self.ask_for_http2(config).await.unwrap_or(Spoken::Unknown);
        self.streams.spoken.set(spoken);
        matches!(spoken, Spoken::Known(true))
    }

    async fn ask_for_http2(&self, config: &Config) -> Result<Spoken, Reason> {
        // It may turn out to be an application that is promised so many connections and no more.
        let seat = self.seat(config).await?;
        let line = self.reach(config).await?;
        let asked = async {
            line.write_all(HELLO).await?;
            let mut head = [0; 9];
            let mut read = 0;
            while read <= SETTINGS.0 {
                match line.read(&mut head[read..]).await? {
                    0 => return Ok(false),
                    n => read += n,
                }
            }
            Ok::<_, io::Error>(head[SETTINGS.0] == SETTINGS.1)
        };
        let spoken = tokio::select! {
            // Who breaks the connection off has understood nothing.
            spoken = asked => Spoken::Known(spoken.unwrap_or(false)),
            () = self.engine.sleep_until(Instant::now() + config.connect_timeout) => {
                Spoken::Silent(Instant::now())
            }
        };
        let halt = matches!(spoken, Spoken::Silent(_)).then_some(Outcome::Abandoned);
        self.let_go(line, seat, halt);
        Ok(spoken)
    }

    /// Send a request as one stream of a connection.
    pub async fn stream(
        self: &Rc<Self>,
        config: &Config,
        request: Request<RequestBody>,
        lease: Rc<Lease>,
    ) -> Answered {
        let link = match self.streams.idle_link() {
            Some(link) => link,
            None => match self.open_link(config).await {
                Ok(link) => link,
                Err(reason) => return Err(Unanswered::Unreached(reason, Box::new(request))),
            },
        };
        let mut sender = link.sender.clone();
        lease.takes(Place::on(link));
        let answer = sender.try_send_request(request);
        let answer = async move {
            answer.await.map_err(|mut failed| match failed.take_message() {
                Some(request) => Unanswered::Unsent(Box::new(request)),
                None => Unanswered::Broken(failed.into_error()),
            })
        };
        Unfinished { answer: Some(Box::pin(answer)), lease, upstream: self.clone() }.await
    }

    async fn open_link(self: &Rc<Self>, config: &Config) -> Result<Rc<Link>, Reason> {
        let line = self.reach(config).await?;
        let shaken = http2::Builder::new(Tasks(self.engine.clone()))
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_header_list_size(APP_HEAD)
            .handshake(TokioIo::new(line.wire()))
            .await;
        let Ok((sender, mut connection)) = shaken else { return Err(Reason::UpstreamRefused) };
        let most = Cell::new(APP_STREAMS);
        let (streams, carried, seen) = (Cell::new(0), Cell::new(0), Cell::new(0));
        let link = Rc::new(Link { sender, streams, carried, seen, most });
        let told = Rc::downgrade(&link);
        self.streams.links.borrow_mut().push(link.clone());
        self.look_after_house();
        let (upstream, patience) = (self.clone(), config.write_stall_timeout);
        self.engine.spawn(self.tasks.track_future(async move {
            upstream.port.metrics.app_connected();
            let mut watch = Watch::new(&upstream.engine);
            let mut cut = upstream.port.shared.cut.watch();
            let halted = std::future::poll_fn(|cx| {
                if Pin::new(&mut connection).poll(cx).is_ready() {
                    return Poll::Ready(false);
                }
                if let Some(link) = told.upgrade() {
                    let most = connection.current_max_send_streams();
                    link.most.set(most.clamp(1, APP_STREAMS));
                }
                // It is another task of hyper's that writes.
                line.tell_when_blocked(cx.waker());
                let halted = Pin::new(&mut cut).poll(cx).is_ready()
                    || watch.poll_stalled(&line, patience, cx).is_ready();
                if halted { Poll::Ready(true) } else { Poll::Pending }
            })
            .await;
            if halted {
                // That other task has the socket; now it hears that it is over.
                sock::reset(line.socket());
            }
            upstream.port.metrics.app_disconnected();
        }));
        Ok(link)
    }

    /// A lease for one stream.
    pub fn stream_lease(self: &Rc<Self>) -> Rc<Lease> {
        let home: Weak<dyn Home> = Rc::downgrade(&(self.clone() as Rc<dyn Home>));
        Rc::new(Lease::of_stream(home))
    }

    /// Read what is left of an exchange whose client has gone.
    async fn wind_up_stream(
        self: Rc<Self>,
        lease: Rc<Lease>,
        answer: impl Future<Output = Option<Incoming>>,
    ) {
        let Some(slot) = lease.take() else { return };
        let config = self.port.config();
        let whole = lease.is_request_whole();
        // Told that nobody waits any more, hyper resets the stream as soon as it asks for more of the request. It
        // does not ask while the application takes none of what it has; and that may be because nobody reads what
        // it says.
        let reset = std::future::poll_fn(|cx| match whole {
            true => Poll::Pending,
            false => lease.poll_request_over(cx),
        });
        tokio::select! {
            biased;
            () = reset => return self.settle(slot).await,
            () = read_on(answer) => {}
            () = self.engine.sleep_until(Instant::now() + config.abandon_timeout) => {
                slot.will_be(Outcome::Abandoned);
            }
            () = self.port.shared.cut.raised() => slot.will_be(Outcome::Cut),
        }
        drop(slot);
    }

    /// Hold the slot of a stream that we have reset.
    pub fn settle_apart(self: Rc<Self>, slot: Slot) {
        let (engine, tasks) = (self.engine.clone(), self.tasks.clone());
        engine.spawn(tasks.track_future(async move { self.settle(slot).await }));
    }

    async fn settle(&self, slot: Slot) {
        tokio::select! {
            () = self.engine.sleep_until(Instant::now() + SETTLE) => {}
            () = self.port.shared.cut.raised() => {}
        }
        drop(slot);
    }

    /// The client of an answer that is on its way has gone.
    pub fn leave_stream(self: Rc<Self>, body: Incoming, lease: Rc<Lease>) {
        let (engine, tasks) = (self.engine.clone(), self.tasks.clone());
        let rest = self.wind_up_stream(lease, std::future::ready(Some(body)));
        engine.spawn(tasks.track_future(rest));
    }
}

/// Read an answer to its end, for nobody.
async fn read_on(answer: impl Future<Output = Option<Incoming>>) {
    let Some(mut body) = answer.await else { return };
    while let Some(Ok(_)) = std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {}
}

impl<E: Engine> Future for Unfinished<E> {
    type Output = Answered;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Answered> {
        let answer = self.answer.as_mut().expect("polled until it is ready");
        let answered = answer.as_mut().poll(cx);
        if answered.is_ready() {
            self.answer = None;
        }
        answered
    }
}

impl<E: Engine> Drop for Unfinished<E> {
    fn drop(&mut self) {
        let Some(answer) = self.answer.take() else { return };
        let upstream = self.upstream.clone();
        let rest = async move { answer.await.ok().map(Response::into_body) };
        let task = upstream.clone().wind_up_stream(self.lease.clone(), rest);
        upstream.engine.spawn(upstream.tasks.track_future(task));
    }
}
