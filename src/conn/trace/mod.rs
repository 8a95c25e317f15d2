//! Traces: one record per request, from which the exporter's thread makes a server span, a wait if there
//! was one, and a client span to the application; one record per TCP connection.
//!
//! ```text
//!   head ──→ sample: recorded? ──no──→ nothing is made, the head goes on as it came
//!                        └yes──→ Trace: the application is told our client span; who holds the last
//!                                copy of it hands it in: the slot, the refusal, the answer
//! ```
//!
//! Always true: whether something is recorded is decided before anything is made; a refusal that is
//! recorded for its own sake is made afterwards, with the times it had.

mod connection;
mod context;
mod exchange;
mod sample;
mod span;
mod words;

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use http::{HeaderMap, Request, Response};
use opentelemetry::TraceId;

use connection::Connection;
pub use context::Context;
use context::{TRACEPARENT, TRACESTATE};
use exchange::{Exchange, Wait};
pub use sample::Sampling;
use sample::{Sampler, new_span};

use super::Port;
use super::registry::Registered;
use crate::outcome::{Outcome, Reason};
use crate::telemetry::export::{Counts, Queue};

/// Decides what is recorded, for all threads, and knows where it goes.
pub struct Tracer {
    sampler: Sampler,
    queue: Queue,
}

/// What is recorded of one request, or nothing. Copies are the same record; it is handed in when the
/// last is dropped.
#[derive(Clone, Default)]
pub struct Trace(Option<Rc<Told>>);

struct Told {
    tracer: Arc<Tracer>,
    /// Taken when it is handed in.
    exchange: RefCell<Option<Box<Exchange>>>,
}

/// A request that may be recorded: where it came, and when.
#[derive(Clone, Copy)]
pub struct Arrival<'a> {
    pub port: &'a Arc<Port>,
    pub client: Option<SocketAddr>,
    pub at: Instant,
}

impl Tracer {
    /// Records go to `queue`.
    pub fn new(sampling: Sampling, queue: Queue) -> Self {
        Self { sampler: Sampler::new(sampling), queue }
    }

    /// From now on.
    pub fn apply(&self, sampling: Sampling) {
        self.sampler.apply(sampling);
    }

    /// What became of spans so far.
    pub fn counts(&self) -> Counts {
        self.queue.counts()
    }

    /// Requests that would have been recorded, had they not been too many.
    pub fn capped(&self) -> u64 {
        self.sampler.capped()
    }

    /// The trace in which a request with this head is recorded, with so many spans, if it is. This is
    /// all that those cost who are not.
    pub fn choose(&self, head: &HeaderMap, spans: u32, now: Instant) -> Option<TraceId> {
        self.sampler.choose(Context::of(head), spans, now)
    }

    /// A TCP connection has ended.
    pub(super) fn connection(
        &self,
        port: &Port,
        entry: &Registered,
        outcome: Outcome,
        bytes: [u64; 2],
    ) {
        let now = Instant::now();
        let waited = entry.waited();
        let spans = if waited.is_some() { 2 } else { 1 };
        let trace = self.sampler.choose(None, spans, now).or_else(|| match outcome {
            Outcome::Refused(reason) => self.sampler.choose_refusal(None, reason, now),
            _ => None,
        });
        if let Some(trace) = trace {
            let connection = Connection::new(trace, port, entry, outcome, bytes, now);
            self.queue.offer(Box::new(connection));
        }
    }
}

impl Trace {
    /// Of nothing.
    pub const NONE: Self = Self(None);

    /// Of a request that is about to be decided, with so many spans.
    pub fn begin<B>(arrival: Arrival<'_>, request: &Request<B>, spans: u32) -> Self {
        let Some(tracer) = &arrival.port.shared.tracer else { return Self::NONE };
        match tracer.choose(request.headers(), spans, arrival.at) {
            Some(trace) => Self::told(tracer, trace, arrival, request),
            None => Self::NONE,
        }
    }

    /// Of a request that was refused; made now if it is not recorded yet and the first of its reason
    /// in this second.
    pub fn or_refusal<B>(
        self,
        arrival: Arrival<'_>,
        request: &Request<B>,
        reason: Reason,
        now: Instant,
    ) -> Self {
        let (None, Some(tracer)) = (&self.0, &arrival.port.shared.tracer) else { return self };
        let caller = Context::of(request.headers());
        match tracer.sampler.choose_refusal(caller, reason, now) {
            Some(trace) => Self::told(tracer, trace, arrival, request),
            None => self,
        }
    }

    fn told<B>(
        tracer: &Arc<Tracer>,
        trace: TraceId,
        arrival: Arrival<'_>,
        request: &Request<B>,
    ) -> Self {
        let exchange = Exchange::new(trace, arrival, request);
        let exchange = RefCell::new(Some(Box::new(exchange)));
        Self(Some(Rc::new(Told { tracer: tracer.clone(), exchange })))
    }

    /// The trace's id, for whoever else speaks of the request.
    pub fn id(&self) -> Option<TraceId> {
        let told = self.0.as_ref()?;
        told.exchange.borrow().as_ref().map(|exchange| exchange.trace)
    }

    /// It waits, at this place of the queue.
    pub fn waits(&self, position: impl FnOnce() -> usize) {
        self.note(|exchange| exchange.position = u32::try_from(position()).ok());
    }

    /// It does not wait any more.
    pub fn waited(&self, until: Instant) {
        self.note(|exchange| exchange.wait = Some(Wait::of(&exchange.port, until)));
    }

    /// Tell the application that our client span calls it.
    pub fn introduce(&self, headers: &mut HeaderMap) {
        self.note(|exchange| {
            headers.insert(TRACEPARENT, exchange.for_application());
            if exchange.caller.is_none() {
                // Nobody knows whose it is: it belongs to the trace that could not be read.
                headers.remove(TRACESTATE);
            }
        });
    }

    /// The application has answered.
    pub fn answered<B>(&self, response: &Response<B>) {
        self.note(|exchange| exchange.answered(response, true));
    }

    /// We have answered ourselves.
    pub fn refused<B>(&self, response: &Response<B>) {
        self.note(|exchange| exchange.answered(response, false));
    }

    /// The application's last words.
    pub fn trailers(&self, trailers: &HeaderMap) {
        self.note(|exchange| exchange.trailers(trailers));
    }

    /// It is over. `admitted`: when it was let in, if it was.
    pub fn end(&self, outcome: Outcome, admitted: Option<Instant>, now: Instant) {
        self.note(|exchange| exchange.end = Some((outcome, admitted, now)));
    }

    fn note(&self, what: impl FnOnce(&mut Exchange)) {
        if let Some(told) = &self.0
            && let Some(exchange) = &mut *told.exchange.borrow_mut()
        {
            what(exchange);
        }
    }
}

impl Drop for Told {
    fn drop(&mut self) {
        if let Some(exchange) = self.exchange.take() {
            self.tracer.queue.offer(exchange);
        }
    }
}
