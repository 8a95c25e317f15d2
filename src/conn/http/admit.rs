//! Admit, per request: ask the gate, wait for the slot it promised, or say why there is none. The
//! only layer that decides; everything behind it has a slot.

use std::convert::Infallible;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use http::{Method, Request, Response, Uri};
use hyper::body::Incoming;
use pin_project_lite::pin_project;
use tower::Service;

use super::Client;
use super::account::Trail;
use super::body::ResponseBody;
use super::deadline;
use super::exchange::Slot;
use super::refuse::{Cause, Manner, refuse};
use crate::conn::QueuedHalfClose;
use crate::conn::admit::has_left;
use crate::conn::release;
use crate::conn::report::{Ended, Told};
use crate::conn::trace::{self, Trace};
use crate::io::Engine;
use crate::limit::{self, Entry, Permit, Ticket};
use crate::outcome::{Outcome, Reason};

/// A request and its slot.
pub struct Admitted {
    pub request: Request<Incoming>,
    pub slot: Slot,
}

/// The layer.
#[derive(Clone)]
pub struct Admit<E: Engine> {
    client: Rc<Client<E>>,
}

/// The service it makes.
pub struct Admission<E: Engine, S> {
    client: Rc<Client<E>>,
    inner: S,
}

/// What is known of a request when it asks for a slot.
#[derive(Clone)]
struct Arrival {
    at: Instant,
    /// When its client gives up.
    deadline: Option<Instant>,
    /// Whose share it counts towards.
    counted_as: Option<limit::Client>,
    trail: Trail,
}

type Waiting = Pin<Box<dyn Future<Output = Result<Permit, Reason>>>>;

/// Everything that one who waits for a slot needs.
pub struct Waits<E: Engine, S> {
    waiting: Waiting,
    arrival: Arrival,
    request: Option<Request<Incoming>>,
    client: Rc<Client<E>>,
    inner: S,
}

pin_project! {
    /// What becomes of one request. Small, because it is moved through all the layers: who waits, and
    /// who is refused, is in a box.
    #[project = AdmissionProj]
    pub enum Admitting<E: Engine, S: Service<Admitted>> {
        /// Waiting for a slot.
        Waiting { waits: Box<Waits<E, S>> },
        /// At the application.
        Inside { #[pin] inner: S::Future },
        /// Refused.
        Refused { response: Option<Box<Response<ResponseBody>>> },
    }
}

impl<E: Engine> Admit<E> {
    /// Requests of this client.
    pub fn new(client: Rc<Client<E>>) -> Self {
        Self { client }
    }
}

impl<E: Engine, S> tower::Layer<S> for Admit<E> {
    type Service = Admission<E, S>;

    fn layer(&self, inner: S) -> Self::Service {
        Admission { client: self.client.clone(), inner }
    }
}

impl<E: Engine, S> Service<Request<Incoming>> for Admission<E, S>
where
    S: Service<Admitted, Response = Response<ResponseBody>, Error = Infallible> + Clone,
{
    type Response = Response<ResponseBody>;
    type Error = Infallible;
    type Future = Admitting<E, S>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Incoming>) -> Self::Future {
        let client = &self.client;
        let at = Instant::now();
        let named = client.config.http.deadline_header.as_ref();
        let deadline = deadline::of(request.headers(), named, at);
        let (trail, counted_as) = (Trail::of(client, &request), client.counted_as(&request));
        let mut arrival = Arrival { at, deadline, counted_as, trail };
        if client.one_too_many {
            client.trace(&mut arrival, &request, 1);
            return self.turn_away(&request, arrival, Reason::MaxConnections);
        }
        if deadline.is_some_and(|deadline| client.is_hopeless(at, deadline)) {
            client.trace(&mut arrival, &request, 1);
            return self.turn_away(&request, arrival, Reason::DeadlineUnmeetable);
        }
        match client.port().gate.enter(at, arrival.counted_as) {
            Entry::Admit(permit) => {
                client.trace(&mut arrival, &request, 2);
                let slot = client.slot(arrival, at, permit);
                Admitting::Inside { inner: self.inner.call(Admitted { request, slot }) }
            }
            Entry::Wait(ticket) => {
                client.trace(&mut arrival, &request, 3);
                arrival.trail.trace.waits(|| ticket.position());
                let waits = Waits {
                    waiting: Box::pin(wait(client.clone(), ticket, arrival.clone())),
                    arrival,
                    request: Some(request),
                    client: client.clone(),
                    inner: self.inner.clone(),
                };
                Admitting::Waiting { waits: Box::new(waits) }
            }
            Entry::Refuse(reason) => {
                client.trace(&mut arrival, &request, 1);
                self.turn_away(&request, arrival, reason)
            }
        }
    }
}

impl<E: Engine, S: Service<Admitted>> Admission<E, S> {
    fn turn_away(
        &self,
        request: &Request<Incoming>,
        mut arrival: Arrival,
        reason: Reason,
    ) -> Admitting<E, S> {
        let now = arrival.at;
        let response = self.client.turn_away(request, &mut arrival, now, reason);
        Admitting::Refused { response: Some(Box::new(response)) }
    }
}

impl<E: Engine> Client<E> {
    /// Count a refusal, and say it. `now`: until when it waited.
    fn turn_away(
        &self,
        request: &Request<Incoming>,
        arrival: &mut Arrival,
        now: Instant,
        reason: Reason,
    ) -> Response<ResponseBody> {
        let (port, statuses) = (self.port(), self.config.http.statuses);
        let (response, told) = refuse(port, statuses, &Manner::of(request), Cause::Reason(reason));
        let trace = std::mem::take(&mut arrival.trail.trace);
        arrival.trail.trace = trace.or_refusal(self.came(arrival.at), request, reason, now);
        let trace = &arrival.trail.trace;
        if now > arrival.at {
            trace.waited(now);
        }
        trace.refused(&response);
        trace.end(Outcome::Refused(reason), None, Instant::now());
        let head = Some((request.method(), request.uri()));
        self.refused(arrival, now, reason, head, Some(told));
        response
    }

    fn refused(
        &self,
        arrival: &Arrival,
        now: Instant,
        reason: Reason,
        head: Option<(&Method, &Uri)>,
        told: Option<Told>,
    ) {
        let Arrival { at, deadline, counted_as, trail } = arrival;
        let outcome = Outcome::Refused(reason);
        let waited = now.saturating_duration_since(*at);
        trail.ended(outcome, waited);
        let ended = Ended {
            client: self.address,
            counted_as: *counted_as,
            connection: trail.connection,
            id: trail.id.as_ref(),
            head,
            outcome,
            arrived: *at,
            now,
            waited,
            deadline: deadline.map(|deadline| deadline.saturating_duration_since(*at)),
            told,
        };
        release::count_request(self.port(), &ended);
    }

    /// Whom a request is counted for: the name it bears, if there is to be one, else its address.
    fn counted_as(&self, request: &Request<Incoming>) -> Option<limit::Client> {
        let header = self.config.http.per_client_header.as_ref();
        let name = header.and_then(|header| request.headers().get(header));
        match name {
            Some(name) => Some(limit::Client::named(name.as_bytes())),
            None => self.address.map(|address| address.ip().into()),
        }
    }

    fn slot(&self, arrival: Arrival, admitted: Instant, permit: Permit) -> Slot {
        let port = self.upstream.port.clone();
        Slot::new(port, self.address, arrival.trail, arrival.at, admitted, permit)
    }

    /// Begin to record a request that will be so many spans, if it is to be.
    fn trace(&self, arrival: &mut Arrival, request: &Request<Incoming>, spans: u32) {
        arrival.trail.trace = Trace::begin(self.came(arrival.at), request, spans);
    }

    fn came(&self, at: Instant) -> trace::Arrival<'_> {
        trace::Arrival { port: &self.upstream.port, client: self.address, at }
    }

    /// Whether a request would, at the pace of late, be answered only after its deadline. Never while nobody
    /// waits: were the pace known to be slower than all deadlines, nobody would be let in to show that it is not.
    fn is_hopeless(&self, now: Instant, deadline: Instant) -> bool {
        let port = self.port();
        if !port.gate.is_enforcing() {
            return false;
        }
        let left = deadline.saturating_duration_since(now);
        let Some(mean) = port.pace.mean() else { return left.is_zero() };
        let queued = port.gate.queued();
        // Those who wait go first; then this one takes its time.
        let wait = if queued == 0 {
            Duration::ZERO
        } else {
            mean.mul_f64(f64::from(queued) / f64::from(port.gate.limit().max(1)))
        };
        left.is_zero() || queued > 0 && wait + mean > left
    }
}

/// The queue. The client is watched meanwhile, so that nobody is forwarded who has left.
async fn wait<E: Engine>(
    client: Rc<Client<E>>,
    mut ticket: Ticket,
    arrival: Arrival,
) -> Result<Permit, Reason> {
    let engine = &client.upstream.engine;
    let line = &client.line;
    let deadline = arrival.deadline;
    let keep = client.config.queued_half_close == QueuedHalfClose::Keep;
    let gone = || has_left(line.socket(), keep);
    let until = |ticket: &Ticket| deadline.map_or(ticket.deadline(), |d| d.min(ticket.deadline()));
    let undecided = Undecided { client: &client, arrival: &arrival, decided: false };
    // On HTTP/2 hyper reads on, and drops this when the stream or the connection ends.
    let mut watching = !client.http2;
    let mut left = pin!(engine.peer_left(line.stream()));
    let mut alarm_at = until(&ticket);
    let mut alarm = pin!(engine.sleep_until(alarm_at));
    let decided = std::future::poll_fn(|cx| {
        if watching && left.as_mut().poll(cx).is_ready() {
            watching = false;
            if gone() {
                return Poll::Ready(Err(Reason::ClientGone));
            }
        }
        loop {
            let now = Instant::now();
            if let Poll::Ready(admitted) = ticket.poll(now, cx) {
                return Poll::Ready(match admitted {
                    Ok(_) if gone() => Err(Reason::ClientGone),
                    Ok(_) if deadline.is_some_and(|deadline| now >= deadline) => {
                        Err(Reason::DeadlineUnmeetable)
                    }
                    admitted => admitted,
                });
            }
            if deadline.is_some_and(|deadline| now >= deadline) {
                return Poll::Ready(Err(Reason::DeadlineUnmeetable));
            }
            // The timeout may have been changed meanwhile; the gate wakes us then.
            if until(&ticket) != alarm_at {
                alarm_at = until(&ticket);
                alarm.set(engine.sleep_until(alarm_at));
            }
            ready!(alarm.as_mut().poll(cx));
        }
    })
    .await;
    undecided.decided();
    decided
}

/// A request that waits. Dropped undecided, its client has left: that is an outcome too.
struct Undecided<'a, E: Engine> {
    client: &'a Client<E>,
    arrival: &'a Arrival,
    decided: bool,
}

impl<E: Engine> Undecided<'_, E> {
    /// It got its slot, or was refused, and that is counted elsewhere.
    fn decided(mut self) {
        self.decided = true;
    }
}

impl<E: Engine> Drop for Undecided<'_, E> {
    fn drop(&mut self) {
        let now = Instant::now();
        let trace = &self.arrival.trail.trace;
        self.client.port().metrics.wait(now.saturating_duration_since(self.arrival.at));
        trace.waited(now);
        if !self.decided {
            trace.end(Outcome::Refused(Reason::ClientGone), None, now);
            self.client.refused(self.arrival, now, Reason::ClientGone, None, None);
        }
    }
}

impl<E: Engine, S> Future for Admitting<E, S>
where
    S: Service<Admitted, Response = Response<ResponseBody>, Error = Infallible>,
{
    type Output = Result<Response<ResponseBody>, Infallible>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        loop {
            let next = match self.as_mut().project() {
                AdmissionProj::Waiting { waits } => {
                    let Waits { waiting, arrival, request, client, inner } = &mut **waits;
                    let permit = ready!(waiting.as_mut().poll(cx));
                    let request = request.take().expect("taken once, as the state changes");
                    let now = Instant::now();
                    match permit {
                        Ok(permit) => {
                            let slot = client.slot(arrival.clone(), now, permit);
                            Admitting::Inside { inner: inner.call(Admitted { request, slot }) }
                        }
                        Err(reason) => {
                            let response = client.turn_away(&request, arrival, now, reason);
                            Admitting::Refused { response: Some(Box::new(response)) }
                        }
                    }
                }
                AdmissionProj::Inside { inner } => return inner.poll(cx),
                AdmissionProj::Refused { response } => {
                    return Poll::Ready(Ok(*response.take().expect("polled once when ready")));
                }
            };
            self.set(next);
        }
    }
}
