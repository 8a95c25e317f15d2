//! Account: what is kept of a request's head, so that it can be said at the end how it went; and its
//! line in the access log, if there is one.
//!
//! Always true: the line is written once, when nothing of the exchange is left: no body on its way,
//! no slot held. While nobody wants lines, a request costs one look at an atomic number.

use std::convert::Infallible;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant, SystemTime};

use http::header::HeaderValue;
use http::{Request, Response, StatusCode, Version};
use hyper::body::Incoming;
use opentelemetry::TraceId;
use pin_project_lite::pin_project;
use tower::Service;

use super::Client;
use super::body::ResponseBody;
use super::name::X_REQUEST_ID;
use super::pulse::Pulse;
use crate::access::{self, Clipped, Ending, Entry, MOST_NAME, MOST_PATH, Wanted};
use crate::conn::Port;
use crate::conn::trace::{self, Trace};
use crate::io::{Engine, Side};
use crate::outcome::Outcome;

/// nginx's word for a client that left before it was answered.
const CLIENT_LEFT: u16 = 499;

/// A request's line in the access log; written when the last who holds it lets go.
pub struct Line {
    port: Arc<Port>,
    arrived: Instant,
    bytes: [AtomicU64; 2],
    entry: Mutex<Option<Box<Entry>>>,
}

/// What a request is called, once its head has gone.
#[derive(Clone)]
pub struct Trail {
    /// The client's connection.
    pub connection: u64,
    /// `x-request-id`.
    pub id: Option<HeaderValue>,
    /// If one is wanted.
    pub line: Option<Arc<Line>>,
    /// What moves of it, if that is watched.
    pub pulse: Option<Rc<Pulse>>,
    /// What is recorded for a trace, once it is decided whether something is.
    pub trace: Trace,
}

/// The layer.
pub struct Account<E: Engine> {
    client: Rc<Client<E>>,
}

/// The service it makes.
pub struct Accounted<E: Engine, S> {
    client: Rc<Client<E>>,
    inner: S,
}

pin_project! {
    /// A request on its way, and its line.
    pub struct Accounting<F> {
        #[pin]
        inner: F,
        line: Option<Arc<Line>>,
    }
}

impl Trail {
    /// Of a request that has been given a name.
    pub fn of<E: Engine, B>(client: &Client<E>, request: &Request<B>) -> Self {
        let wanted = client.port().access_log() != Wanted::Off;
        Self {
            connection: client.connection,
            id: request.headers().get(X_REQUEST_ID).cloned(),
            line: if wanted { request.extensions().get::<Arc<Line>>().cloned() } else { None },
            pulse: client.pulse.borrow().clone(),
            trace: Trace::NONE,
        }
    }

    /// How it went, and how long it had waited.
    pub fn ended(&self, outcome: Outcome, waited: Duration) {
        if let Some(line) = &self.line {
            line.write(|entry| {
                entry.outcome = Ending(Some(outcome));
                entry.wait = waited;
                if let (Some(request), Some(trace)) = (&mut entry.request, self.trace.id()) {
                    request.trace_id = digits(trace);
                }
            });
        }
    }
}

impl Line {
    fn of<E: Engine, B>(
        client: &Client<E>,
        request: &Request<B>,
        wanted: Wanted,
        arrived: Instant,
    ) -> Self {
        let (uri, headers) = (request.uri(), request.headers());
        let query = uri.query().filter(|_| wanted == Wanted::WithQuery);
        let id = headers.get(X_REQUEST_ID);
        let request = access::Request {
            method: Clipped::of(request.method().as_str().as_bytes(), MOST_NAME),
            path: Clipped::of(uri.path().as_bytes(), MOST_PATH),
            query: query.map(|query| Clipped::of(query.as_bytes(), MOST_PATH)),
            status: CLIENT_LEFT,
            request_id: Clipped::of(id.map_or(&[], HeaderValue::as_bytes), MOST_NAME),
            trace_id: trace::Context::of(headers).and_then(|caller| digits(caller.trace)),
        };
        let entry = Entry {
            time: SystemTime::UNIX_EPOCH,
            port: client.port().listen,
            client: client.address,
            connection: client.connection,
            protocol: if client.http2 { "HTTP/2" } else { "HTTP/1.1" },
            request: Some(Box::new(request)),
            wait: Duration::ZERO,
            duration: Duration::ZERO,
            outcome: Ending(None),
            bytes_in: 0,
            bytes_out: 0,
        };
        Self {
            port: client.upstream.port.clone(),
            arrived,
            bytes: [AtomicU64::new(0), AtomicU64::new(0)],
            entry: Mutex::new(Some(Box::new(entry))),
        }
    }

    /// So much has passed from `side`.
    pub fn carried(&self, side: Side, bytes: u64) {
        self.bytes[side as usize].fetch_add(bytes, Ordering::Relaxed);
    }

    /// The client gets this status.
    pub fn answered(&self, status: StatusCode) {
        self.write(|entry| {
            if let Some(request) = &mut entry.request {
                request.status = status.as_u16();
            }
        });
    }

    fn write(&self, what: impl FnOnce(&mut Entry)) {
        if let Some(entry) = &mut *self.entry.lock().unwrap_or_else(PoisonError::into_inner) {
            what(entry);
        }
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        let entry = self.entry.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        let Some(mut entry) = entry else { return };
        entry.time = SystemTime::now();
        entry.duration = self.arrived.elapsed();
        [entry.bytes_in, entry.bytes_out] = self.bytes.each_mut().map(|bytes| *bytes.get_mut());
        self.port.shared.access.write(entry);
    }
}

/// Begin a request's line, if one is wanted; the request carries it on. `arrived`: unless it is now.
pub fn open<E: Engine, B>(
    client: &Client<E>,
    request: &mut Request<B>,
    arrived: Option<Instant>,
) -> Option<Arc<Line>> {
    let wanted = client.port().access_log();
    if wanted == Wanted::Off {
        return None;
    }
    let line = Line::of(client, request, wanted, arrived.unwrap_or_else(Instant::now));
    if request.version() == Version::HTTP_10 {
        line.write(|entry| entry.protocol = "HTTP/1.0");
    }
    let line = Arc::new(line);
    request.extensions_mut().insert(line.clone());
    Some(line)
}

/// As it is written.
fn digits(trace: TraceId) -> Option<[u8; 32]> {
    trace.to_string().as_bytes().try_into().ok()
}

impl<E: Engine> Account<E> {
    /// Requests of this client.
    pub fn new(client: Rc<Client<E>>) -> Self {
        Self { client }
    }
}

impl<E: Engine, S> tower::Layer<S> for Account<E> {
    type Service = Accounted<E, S>;

    fn layer(&self, inner: S) -> Self::Service {
        Accounted { client: self.client.clone(), inner }
    }
}

impl<E: Engine, S> Service<Request<Incoming>> for Accounted<E, S>
where
    S: Service<Request<Incoming>, Response = Response<ResponseBody>, Error = Infallible>,
{
    type Response = Response<ResponseBody>;
    type Error = Infallible;
    type Future = Accounting<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Incoming>) -> Self::Future {
        let line = open(&self.client, &mut request, None);
        Accounting { inner: self.inner.call(request), line }
    }
}

impl<F> Future for Accounting<F>
where
    F: Future<Output = Result<Response<ResponseBody>, Infallible>>,
{
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let Ok(mut response) = ready!(this.inner.poll(cx));
        if let Some(line) = this.line.take() {
            line.answered(response.status());
            response.body_mut().line = Some(line);
        }
        Poll::Ready(Ok(response))
    }
}
