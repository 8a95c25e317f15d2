//! One request that was admitted, and the application's answer to it: who holds the slot, and when
//! it is given back.
//!
//! ```text
//!   Slot ── the right to be at the application; dropping it counts the outcome, then frees the place
//!   Lease ─ holds the Slot while both bodies are on their way; shared by request, answer and connection
//! ```
//!
//! Always true: a slot is counted exactly once; it is free only when the answer has been read to its
//! end and the request sent to its end, or the application's connection has ended.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use http::Request;
use hyper::body::Incoming;

use super::account::{Line, Trail};
use super::carrier::Carries;
use super::pulse::Pulse;
use super::streams::Place;
use crate::conn::Port;
use crate::conn::release;
use crate::conn::report::Ended;
use crate::conn::trace::{self, Trace};
use crate::io::Side;
use crate::limit::Permit;
use crate::outcome::{Outcome, Reason};

/// The right of one request to be at the application.
pub struct Slot {
    port: Arc<Port>,
    client: Option<SocketAddr>,
    /// What the request is called.
    trail: Trail,
    /// When the request came.
    arrived: Instant,
    /// When it was let in.
    admitted: Instant,
    /// How it ends if it is dropped now.
    outcome: Cell<Outcome>,
    /// Given back after the rest has been dropped: last.
    _permit: Permit,
}

impl Slot {
    /// A request that has just been let in. Dropped as it is, its client has left.
    pub fn new(
        port: Arc<Port>,
        client: Option<SocketAddr>,
        trail: Trail,
        arrived: Instant,
        admitted: Instant,
        permit: Permit,
    ) -> Self {
        port.metrics.admit();
        if let Some(pulse) = &trail.pulse {
            pulse.begin(admitted);
        }
        let outcome = Cell::new(Outcome::ClientReset);
        Self { port, client, trail, arrived, admitted, outcome, _permit: permit }
    }

    /// Whether it was let in after `moment`.
    pub fn came_after(&self, moment: Instant) -> bool {
        self.admitted > moment
    }

    /// How it ends, unless something else becomes known.
    pub fn will_be(&self, outcome: Outcome) {
        self.outcome.set(outcome);
    }

    /// Its line in the access log.
    pub fn line(&self) -> Option<Arc<Line>> {
        self.trail.line.clone()
    }

    /// What moves of it, if that is watched.
    pub fn pulse(&self) -> Option<Rc<Pulse>> {
        self.trail.pulse.clone()
    }

    /// What is recorded of it for a trace.
    pub const fn trace(&self) -> &Trace {
        &self.trail.trace
    }

    /// So much was carried each way, beside the bodies.
    pub fn carried(&self, bytes: [u64; 2]) {
        if let Some(line) = &self.trail.line {
            line.carried(Side::Client, bytes[0]);
            line.carried(Side::App, bytes[1]);
        }
    }

    /// The application cannot be reached: `request` will not be served. What is recorded of that.
    pub fn refuse<B>(&mut self, request: &Request<B>, reason: Reason) -> Trace {
        self.will_be(Outcome::Refused(reason));
        let arrival = trace::Arrival { port: &self.port, client: self.client, at: self.arrived };
        let trace = std::mem::take(&mut self.trail.trace);
        self.trail.trace = trace.or_refusal(arrival, request, reason, Instant::now());
        self.trail.trace.clone()
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let now = Instant::now();
        let outcome = match &self.trail.pulse {
            Some(pulse) if pulse.has_stopped() => Outcome::IdleTimeout,
            _ => self.outcome.get(),
        };
        let held = now.saturating_duration_since(self.admitted);
        self.port.metrics.free(held);
        if outcome == Outcome::Served {
            self.port.pace.observe(held);
        }
        let waited = self.admitted.saturating_duration_since(self.arrived);
        self.trail.ended(outcome, waited);
        self.trail.trace.end(outcome, Some(self.admitted), now);
        let ended = Ended {
            client: self.client,
            counted_as: None,
            connection: self.trail.connection,
            id: self.trail.id.as_ref(),
            head: None,
            outcome,
            arrived: self.arrived,
            now,
            waited,
            deadline: None,
            told: None,
        };
        release::count_request(&self.port, &ended);
    }
}

/// Where connections to the application wait for their next request.
pub trait Home {
    /// The exchange of `lease` on connection `key` has ended well: it can carry another.
    fn idle(&self, key: usize, lease: &Lease);
    /// Connection `key`, which `lease` was made for, is to end, whether hyper has noticed why or not.
    fn end(&self, key: usize, lease: &Lease);
    /// The client has left while this answer, a stream's, was on its way.
    fn left(&self, answer: Incoming, lease: Rc<Lease>);
    /// We have reset a stream that the application had not ended: its slot is held a little longer.
    fn settle(&self, slot: Slot);
}

/// What the two bodies of an exchange, and the connection that carries them, share.
pub struct Lease {
    slot: RefCell<Option<Slot>>,
    request: Cell<Way>,
    /// What went wrong with the request on its way, if that is why the exchange ends.
    upload: Cell<Option<Broke>>,
    answer: Cell<Answering>,
    state: Cell<State>,
    /// Whoever waits for the exchange to be over: the connection's task.
    waiting: RefCell<Option<Waker>>,
    /// Whoever sends a stream's request: it stops when nobody waits for the answer.
    sending: RefCell<Option<Waker>>,
    home: Weak<dyn Home>,
    /// The connection, if it carries one exchange at a time.
    link: Option<(usize, Rc<dyn Carries>)>,
    /// Its place on the connection, if that carries many: taken until nobody has to do with it any more.
    place: RefCell<Option<Place>>,
}

/// How far the request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// More of it is to come.
    Going,
    /// All of it was handed over.
    Whole,
    /// The rest of it is not wanted, or will not come.
    Cut,
}

/// Whose fault it is that a request did not come to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Broke {
    /// The client sends too slowly.
    Slow,
    /// The client broke off.
    Off,
}

/// How far the answer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answering {
    /// Its head has yet to come.
    Awaited,
    /// Its head has come.
    Going,
    /// It has been read to its end.
    Read,
}

/// What becomes of an exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It goes on.
    Going,
    /// It ended well, or its slot was taken back.
    Over,
    /// It broke, or its client left: nobody will see it to its end.
    Left,
    /// The application has switched protocols: the connection outlives the exchange.
    Switched,
}

impl Lease {
    /// For a connection that carries one exchange after the other.
    pub fn of_connection(home: Weak<dyn Home>, key: usize, carrier: Rc<dyn Carries>) -> Self {
        Self { link: Some((key, carrier)), ..Self::of_stream(home) }
    }

    /// For one stream of a connection that carries many.
    pub fn of_stream(home: Weak<dyn Home>) -> Self {
        Self {
            slot: RefCell::default(),
            request: Cell::new(Way::Whole),
            upload: Cell::new(None),
            answer: Cell::new(Answering::Awaited),
            state: Cell::new(State::Over),
            waiting: RefCell::default(),
            sending: RefCell::default(),
            home,
            link: None,
            place: RefCell::default(),
        }
    }

    /// A new exchange. `bodiless`: the request is its head.
    pub fn begin(&self, slot: Slot, bodiless: bool) {
        self.request.set(if bodiless { Way::Whole } else { Way::Going });
        self.upload.set(None);
        self.answer.set(Answering::Awaited);
        self.state.set(State::Going);
        *self.slot.borrow_mut() = Some(slot);
    }

    /// It is one of the streams of a connection, and takes this place there.
    pub fn takes(&self, place: Place) {
        *self.place.borrow_mut() = Some(place);
    }

    /// The request's last byte has been handed over.
    pub fn request_sent(&self) {
        self.request.set(Way::Whole);
        self.settle();
    }

    /// hyper wants no more of the request: the application has answered without waiting for the
    /// rest, or the exchange broke.
    pub fn request_cut(&self) {
        self.request.set(Way::Cut);
        self.settle();
        if let Some(waiting) = self.waiting.take() {
            waiting.wake();
        }
    }

    /// Ready when nothing more of the request is on its way: it is whole, or its stream has been reset.
    pub fn poll_request_over(&self, cx: &Context<'_>) -> Poll<()> {
        if self.request.get() != Way::Going {
            return Poll::Ready(());
        }
        *self.waiting.borrow_mut() = Some(cx.waker().clone());
        Poll::Pending
    }

    /// Whether a stream's request is not to be sent any further, because nobody waits for its answer; if it is,
    /// the task is woken when that changes.
    pub fn is_given_up(&self, cx: &Context<'_>) -> bool {
        if self.link.is_some() {
            return false; // the connection's own task sees to that
        }
        let mut sending = self.sending.borrow_mut();
        if !sending.as_ref().is_some_and(|known| known.will_wake(cx.waker())) {
            *sending = Some(cx.waker().clone());
        }
        self.state.get() == State::Left
    }

    /// The rest of the request will not come, and whose fault that is.
    pub fn upload_broke(&self, how: Broke) {
        self.upload.set(Some(how));
    }

    /// Why the rest of the request will not come, if it will not.
    pub fn how_upload_broke(&self) -> Option<Broke> {
        self.upload.get()
    }

    /// Whether the request has been handed over to its end.
    pub fn is_request_whole(&self) -> bool {
        self.request.get() == Way::Whole
    }

    /// The answer's head has come.
    pub fn answers(&self) {
        self.answer.set(Answering::Going);
    }

    /// Whether the answer is on its way.
    pub fn is_answering(&self) -> bool {
        self.answer.get() == Answering::Going
    }

    /// The answer's last byte has been read.
    pub fn answer_read(&self) {
        self.answer.set(Answering::Read);
        self.settle();
    }

    /// The exchange broke. For a stream that is the end if the application broke it off; if we did,
    /// `by_us`, the application has yet to hear of it. What becomes of a connection is for its task to see.
    pub fn broken(&self, by_us: bool) {
        self.turn(State::Left);
        match (&self.link, self.home.upgrade()) {
            (Some(_), _) => self.end(),
            (None, Some(home)) if by_us => {
                if let Some(slot) = self.take() {
                    home.settle(slot);
                }
            }
            (None, _) => drop(self.take()),
        }
    }

    /// The client has left before the answer came.
    pub fn left_waiting(&self) {
        self.turn(State::Left);
        self.end();
    }

    /// The client has left while the answer was on its way. A connection ends; a stream is read on.
    pub fn left(self: &Rc<Self>, answer: Incoming) {
        self.turn(State::Left);
        match (&self.link, self.home.upgrade()) {
            (None, Some(home)) => home.left(answer, self.clone()),
            _ => self.end(),
        }
    }

    fn end(&self) {
        if let (Some((key, _)), Some(home)) = (&self.link, self.home.upgrade()) {
            home.end(*key, self);
        }
    }

    /// The connection, if it carries one exchange at a time.
    pub fn carrier(&self) -> Option<&dyn Carries> {
        self.link.as_ref().map(|(_, carrier)| &**carrier)
    }

    /// The connection carries something else from now on; the slot stays with it.
    pub fn switch(&self) {
        self.turn(State::Switched);
    }

    /// How the exchange ends unless it ends well.
    pub fn will_be(&self, outcome: Outcome) {
        if let Some(slot) = &*self.slot.borrow() {
            slot.will_be(outcome);
        }
    }

    /// What is recorded of it.
    pub fn trace(&self) -> Trace {
        self.slot.borrow().as_ref().map_or(Trace::NONE, |slot| slot.trail.trace.clone())
    }

    /// The application cannot be reached: what is recorded of that.
    pub fn refuse<B>(&self, request: &Request<B>, reason: Reason) -> Trace {
        let mut slot = self.slot.borrow_mut();
        slot.as_mut().map_or(Trace::NONE, |slot| slot.refuse(request, reason))
    }

    /// Take the slot of an exchange that did not end by itself.
    pub fn take(&self) -> Option<Slot> {
        let slot = self.slot.borrow_mut().take();
        if let Some(waiting) = self.waiting.take() {
            waiting.wake();
        }
        slot
    }

    /// Ready when it is known what becomes of the exchange.
    pub fn poll_decided(&self, cx: &Context<'_>) -> Poll<State> {
        let state = if self.slot.borrow().is_none() { State::Over } else { self.state.get() };
        if state != State::Going {
            return Poll::Ready(state);
        }
        *self.waiting.borrow_mut() = Some(cx.waker().clone());
        Poll::Pending
    }

    fn turn(&self, state: State) {
        self.state.set(state);
        for waker in [&self.waiting, &self.sending] {
            if let Some(waker) = waker.take() {
                waker.wake();
            }
        }
    }

    fn settle(&self) {
        let going = self.state.get() == State::Going;
        if !going || self.request.get() == Way::Going || self.answer.get() != Answering::Read {
            return;
        }
        let Some(slot) = self.take() else { return };
        slot.will_be(Outcome::Served);
        self.turn(State::Over);
        // The connection first: whoever gets the slot finds it there.
        if let (Some((key, _)), Some(home)) = (&self.link, self.home.upgrade()) {
            home.idle(*key, self);
        }
        drop(slot);
    }
}
