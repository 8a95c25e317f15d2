//! The bodies of an exchange. They pass frames on as they come; on the way they tell the [`Lease`]
//! when they have come to their end, and the request's watches that its client goes on sending.

use std::cell::Cell;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use super::account::Line;
use super::exchange::{Broke, Lease, Slot};
use super::pulse::Pulse;
use super::streams::is_our_reset;
use super::takers::{Piece, Taker, Takers};
use super::wire::{Alarm, Head};
use crate::io::Side;
use crate::outcome::Outcome;

/// Bytes that earn a second of waiting: the slowest link worth a slot (Apache's `MinRate`).
const LEAST_RATE: u64 = 500;

/// What goes wrong with a request on its way to the application.
#[derive(Debug, thiserror::Error)]
pub enum UploadError {
    /// The client broke off.
    #[error("the client did not send its request to the end")]
    Client(#[source] hyper::Error),
    /// It sends too slowly to be worth a slot.
    #[error("the client sends its request too slowly")]
    Slow,
    /// Nobody waits for the answer any more: the stream is to be reset.
    #[error("the client has left")]
    GivenUp(#[source] h2::Error),
}

/// A request's body.
pub struct Upload {
    incoming: Incoming,
    /// Set before it is sent.
    lease: Option<Rc<Lease>>,
    /// In the access log, if there is one.
    line: Option<Arc<Line>>,
    /// What moves of it, if that is watched.
    pulse: Option<Rc<Pulse>>,
    /// How to make an alarm; the engine's business.
    alarm_at: Box<dyn Fn(Instant) -> Alarm>,
    alarm: Option<Alarm>,
    /// How long it may keep the application waiting, besides what its bytes earn; for ever, if not said.
    patience: Option<Duration>,
    received: u64,
    waited: Duration,
    waits_since: Option<Instant>,
    done: bool,
}

impl Upload {
    /// The body of a request that has one.
    pub fn new(
        incoming: Incoming,
        patience: Option<Duration>,
        slot: &Slot,
        alarm_at: Box<dyn Fn(Instant) -> Alarm>,
    ) -> Self {
        Self {
            incoming,
            patience,
            lease: None,
            line: slot.line(),
            pulse: slot.pulse(),
            alarm_at,
            alarm: None,
            received: 0,
            waited: Duration::ZERO,
            waits_since: None,
            done: false,
        }
    }

    /// How long the client may keep us waiting in all, for what it has sent so far.
    fn allowed(&self, patience: Duration) -> Duration {
        patience + Duration::from_secs(self.received / LEAST_RATE)
    }

    fn is_answering(&self) -> bool {
        self.lease.as_ref().is_some_and(|lease| lease.is_answering())
    }

    fn tell(&self, what: impl FnOnce(&Lease)) {
        if let Some(lease) = &self.lease {
            what(lease);
        }
    }

    fn end(&mut self) {
        if !std::mem::replace(&mut self.done, true) {
            self.tell(Lease::request_sent);
        }
    }

    /// Nothing has come: for too long? While the application answers it is not kept waiting: that is a
    /// conversation.
    fn poll_slow(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(patience) = self.patience else { return Poll::Pending };
        loop {
            let now = Instant::now();
            let left = if self.is_answering() {
                self.waits_since = Some(now);
                patience
            } else {
                let since = *self.waits_since.get_or_insert(now);
                self.allowed(patience).saturating_sub(self.waited + (now - since))
            };
            if left.is_zero() {
                return Poll::Ready(());
            }
            // Kept from one wait to the next: it is only looked at when it rings.
            let alarm = self.alarm.get_or_insert_with(|| (self.alarm_at)(Instant::now() + left));
            ready!(alarm.as_mut().poll(cx));
            self.alarm = None;
        }
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        if !self.done {
            self.tell(Lease::request_cut);
        }
    }
}

impl Body for Upload {
    type Data = Bytes;
    type Error = UploadError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, UploadError>>> {
        let this = &mut *self;
        if this.lease.as_ref().is_some_and(|lease| lease.is_given_up(cx)) {
            let reset = h2::Reason::CANCEL.into();
            return Poll::Ready(Some(Err(UploadError::GivenUp(reset))));
        }
        let Poll::Ready(frame) = Pin::new(&mut this.incoming).poll_frame(cx) else {
            ready!(this.poll_slow(cx));
            this.tell(|lease| {
                lease.will_be(Outcome::ClientStalled);
                lease.upload_broke(Broke::Slow);
            });
            return Poll::Ready(Some(Err(UploadError::Slow)));
        };
        if let Some(since) = this.waits_since.take()
            && !this.is_answering()
        {
            this.waited += since.elapsed();
        }
        Poll::Ready(match frame {
            Some(Ok(frame)) => {
                let length = length(&frame);
                this.received += length;
                if let Some(pulse) = &this.pulse {
                    pulse.beat();
                }
                if let Some(line) = &this.line {
                    line.carried(Side::Client, length);
                }
                if frame.is_trailers() || this.incoming.is_end_stream() {
                    this.end();
                }
                Some(Ok(frame))
            }
            Some(Err(error)) => {
                this.tell(|lease| lease.upload_broke(Broke::Off));
                Some(Err(UploadError::Client(error)))
            }
            None => {
                this.end();
                None
            }
        })
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}

fn length(frame: &Frame<Bytes>) -> u64 {
    frame.data_ref().map_or(0, |data| data.len() as u64)
}

/// What is sent to the application.
pub enum RequestBody {
    /// Nothing but the head.
    Empty,
    /// What the client sends.
    Upload(Box<Upload>),
}

impl RequestBody {
    /// Which exchange it is part of, from now on.
    pub fn bind(&mut self, lease: &Rc<Lease>) {
        if let Self::Upload(upload) = self {
            upload.lease = Some(lease.clone());
        }
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = UploadError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, UploadError>>> {
        match &mut *self {
            Self::Empty => Poll::Ready(None),
            Self::Upload(upload) => Pin::new(&mut **upload).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Upload(upload) => upload.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Upload(upload) => upload.size_hint(),
        }
    }
}

/// The application's answer, on its way to the client.
pub struct Answer {
    /// `None` once it was left to others.
    incoming: Option<Incoming>,
    lease: Rc<Lease>,
    done: bool,
}

impl Answer {
    /// An answer whose head has been read.
    pub fn new(incoming: Incoming, lease: Rc<Lease>) -> Self {
        let ended = incoming.is_end_stream();
        let mut answer = Self { incoming: Some(incoming), lease, done: false };
        if ended {
            answer.end();
        }
        answer
    }

    fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let Some(incoming) = &mut self.incoming else { return Poll::Ready(None) };
        let frame = ready!(match self.lease.carrier() {
            Some(carrier) => carrier.poll(cx, |cx| Pin::new(&mut *incoming).poll_frame(cx)),
            None => Pin::new(&mut *incoming).poll_frame(cx),
        });
        if let Some(Ok(frame)) = &frame
            && let Some(trailers) = frame.trailers_ref()
        {
            self.lease.trace().trailers(trailers);
        }
        match &frame {
            // Nothing comes after trailers, and nobody may ask.
            Some(Ok(frame)) if frame.is_data() && !incoming.is_end_stream() => {}
            Some(Ok(_)) | None => self.end(),
            Some(Err(error)) => {
                self.done = true;
                self.lease.will_be(match self.lease.how_upload_broke() {
                    Some(Broke::Slow) => Outcome::ClientStalled,
                    Some(Broke::Off) => Outcome::ClientReset,
                    None => Outcome::AppReset,
                });
                self.lease.broken(is_our_reset(error));
            }
        }
        Poll::Ready(frame)
    }

    fn end(&mut self) {
        if !std::mem::replace(&mut self.done, true) {
            self.lease.answer_read();
        }
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        if !self.done
            && let Some(incoming) = self.incoming.take()
        {
            self.lease.left(incoming);
        }
    }
}

/// What is sent to the client.
pub struct ResponseBody {
    content: Content,
    /// Dropped with the body: the connection is between two requests then.
    pub busy: Option<Busy>,
    /// Its request's, in the access log, if there is one.
    pub line: Option<Arc<Line>>,
}

enum Content {
    /// Nothing but the head.
    Empty,
    /// Not even that: the client is to take it for a request that was never seen.
    NotProcessed,
    /// A few words of our own.
    Words(Bytes),
    /// The application's.
    Answer(Answer),
}

/// A request is being served.
pub struct Busy {
    on: On,
    /// The connection ends because its client does not take what it is sent.
    stalled: Rc<Cell<bool>>,
    /// What moves of it, if that is watched.
    pulse: Option<Rc<Pulse>>,
}

enum On {
    /// A connection that serves one at a time.
    One(Rc<Cell<Head>>),
    /// One that serves many.
    Many(Taker),
}

impl Busy {
    /// From now until it is dropped, on a connection that serves one at a time.
    pub fn one(head: Rc<Cell<Head>>, stalled: Rc<Cell<bool>>, pulse: Option<Rc<Pulse>>) -> Self {
        head.set(Head::Busy);
        Self { on: On::One(head), stalled, pulse }
    }

    /// From now until it is dropped, on one that serves many.
    pub fn many(takers: &Rc<Takers>, stalled: Rc<Cell<bool>>, pulse: Option<Rc<Pulse>>) -> Self {
        Self { on: On::Many(takers.begin(pulse.clone())), stalled, pulse }
    }

    /// The answer has begun.
    pub fn answers(&self) {
        if let Some(pulse) = &self.pulse {
            pulse.answers();
        }
    }

    /// Whether it ends because its client does not take what it is sent.
    fn is_stalled(&self) -> bool {
        self.stalled.get() || matches!(&self.on, On::Many(taker) if taker.is_cut())
    }

    /// So much of the answer is handed out.
    fn hand_out(&self, bytes: Bytes) -> Piece {
        if let Some(pulse) = &self.pulse {
            pulse.beat();
        }
        match &self.on {
            On::One(_) => bytes.into(),
            On::Many(taker) => taker.hand_out(bytes),
        }
    }

    /// What was handed out has been taken, and more of it is waited for.
    fn waits(&self) {
        if let On::Many(taker) = &self.on {
            taker.waits();
        }
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        if let Some(pulse) = &self.pulse {
            pulse.end();
        }
        if let On::One(head) = &self.on {
            head.set(Head::Idle(Instant::now()));
        }
    }
}

impl Drop for ResponseBody {
    fn drop(&mut self) {
        if let (Content::Answer(answer), Some(busy)) = (&self.content, &self.busy)
            && busy.is_stalled()
        {
            answer.lease.will_be(Outcome::ClientStalled);
        }
    }
}

impl ResponseBody {
    /// Nothing but the head.
    pub const EMPTY: Self = Self::of(Content::Empty);

    /// None: its stream is to be refused.
    pub const NOT_PROCESSED: Self = Self::of(Content::NotProcessed);

    /// Whether its stream is to be refused instead.
    pub const fn is_not_processed(&self) -> bool {
        matches!(self.content, Content::NotProcessed)
    }

    /// A few words of our own.
    pub const fn words(words: Bytes) -> Self {
        Self::of(Content::Words(words))
    }

    /// The application's.
    pub const fn answer(answer: Answer) -> Self {
        Self::of(Content::Answer(answer))
    }

    const fn of(content: Content) -> Self {
        Self { content, busy: None, line: None }
    }
}

impl Body for ResponseBody {
    type Data = Piece;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Piece>, hyper::Error>>> {
        let this = &mut *self;
        let polled = match &mut this.content {
            Content::Empty | Content::NotProcessed => Poll::Ready(None),
            Content::Words(words) => {
                let words = std::mem::take(words);
                this.content = Content::Empty;
                Poll::Ready((!words.is_empty()).then(|| Ok(Frame::data(words))))
            }
            Content::Answer(answer) => answer.poll_frame(cx),
        };
        if let (Some(line), Poll::Ready(Some(Ok(frame)))) = (&this.line, &polled) {
            line.carried(Side::App, length(frame));
        }
        if let (Some(busy), Poll::Pending) = (&this.busy, &polled) {
            busy.waits();
        }
        let hand_out = |bytes| match &this.busy {
            Some(busy) => busy.hand_out(bytes),
            None => bytes.into(),
        };
        polled.map_ok(|frame| frame.map_data(hand_out))
    }

    fn is_end_stream(&self) -> bool {
        match &self.content {
            Content::Empty | Content::NotProcessed => true,
            Content::Words(words) => words.is_empty(),
            Content::Answer(answer) => answer.incoming.as_ref().is_none_or(Body::is_end_stream),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.content {
            Content::Empty | Content::NotProcessed => SizeHint::with_exact(0),
            Content::Words(words) => SizeHint::with_exact(words.len() as u64),
            Content::Answer(answer) => {
                answer.incoming.as_ref().map_or(SizeHint::with_exact(0), Body::size_hint)
            }
        }
    }
}
