//! Screen: requests that no proxy of this kind serves are answered before they cost anybody a slot. They
//! are counted and written down like those that the gate refuses.

use std::convert::Infallible;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use http::header::{CONNECTION, HOST, HeaderValue};
use http::{Method, Request, Response, StatusCode, Version};
use hyper::body::Incoming;
use pin_project_lite::pin_project;
use tower::Service;

use super::Client;
use super::account::Trail;
use super::body::ResponseBody;
use super::refuse::{Cause, Manner, refuse};
use crate::conn::release;
use crate::conn::report::{Ended, Told};
use crate::conn::trace::{self, Trace};
use crate::io::Engine;
use crate::outcome::{Outcome, Reason};

/// The layer.
pub struct Screen<E: Engine> {
    client: Rc<Client<E>>,
}

/// The service it makes.
pub struct Screened<E: Engine, S> {
    client: Rc<Client<E>>,
    inner: S,
}

pin_project! {
    /// What becomes of one request.
    #[project = ScreeningProj]
    pub enum Screening<F> {
        Passed { #[pin] inner: F },
        /// In a box: it is rare, and the rest is moved with it.
        Answered { response: Option<Box<Response<ResponseBody>>> },
    }
}

impl<E: Engine> Screen<E> {
    /// Requests of this client.
    pub fn new(client: Rc<Client<E>>) -> Self {
        Self { client }
    }
}

impl<E: Engine, S> tower::Layer<S> for Screen<E> {
    type Service = Screened<E, S>;

    fn layer(&self, inner: S) -> Self::Service {
        Screened { client: self.client.clone(), inner }
    }
}

impl<E: Engine, S> Service<Request<Incoming>> for Screened<E, S>
where
    S: Service<Request<Incoming>, Response = Response<ResponseBody>, Error = Infallible>,
{
    type Response = Response<ResponseBody>;
    type Error = Infallible;
    type Future = Screening<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Incoming>) -> Self::Future {
        let Some((status, text)) = objection(&request) else {
            return Screening::Passed { inner: self.inner.call(request) };
        };
        let response = self.client.object(&request, Cause::NotServed(status, text));
        Screening::Answered { response: Some(Box::new(response)) }
    }
}

impl<E: Engine> Client<E> {
    /// Say what is wrong with a request.
    fn object<B>(&self, request: &Request<B>, cause: Cause) -> Response<ResponseBody> {
        let (port, statuses) = (self.port(), self.config.http.statuses);
        let (mut response, told) = refuse(port, statuses, &Manner::of(request), cause);
        if !self.http2 {
            // Who sent this may mean something else by what follows.
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        self.not_served(request, Instant::now(), &response, told);
        response
    }

    /// A request was told `response` because it is none that is served here: write it down.
    pub(super) fn not_served<B, C>(
        &self,
        request: &Request<B>,
        arrived: Instant,
        response: &Response<C>,
        told: Told,
    ) {
        const OUTCOME: Outcome = Outcome::Refused(Reason::NotServed);
        let (port, now) = (&self.upstream.port, Instant::now());
        let came = trace::Arrival { port, client: self.address, at: arrived };
        let trace = Trace::begin(came, request, 1);
        let trace = trace.or_refusal(came, request, Reason::NotServed, now);
        trace.refused(response);
        trace.end(OUTCOME, None, now);
        let trail = Trail { trace, ..Trail::of(self, request) };
        trail.ended(OUTCOME, Duration::ZERO);
        let ended = Ended {
            client: self.address,
            counted_as: None,
            connection: trail.connection,
            id: trail.id.as_ref(),
            head: Some((request.method(), request.uri())),
            outcome: OUTCOME,
            arrived,
            now,
            waited: Duration::ZERO,
            deadline: None,
            told: Some(told),
        };
        release::count_request(port, &ended);
    }
}

impl<F> Future for Screening<F>
where
    F: Future<Output = Result<Response<ResponseBody>, Infallible>>,
{
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project() {
            ScreeningProj::Passed { inner } => inner.poll(cx),
            ScreeningProj::Answered { response } => {
                Poll::Ready(Ok(*response.take().expect("polled once when ready")))
            }
        }
    }
}

/// Why a request is not served, if it is not.
fn objection<B>(request: &Request<B>) -> Option<(StatusCode, &'static str)> {
    if request.method() == Method::CONNECT {
        return Some((StatusCode::METHOD_NOT_ALLOWED, "This is not a proxy for other hosts."));
    }
    let uri = request.uri();
    if request.version() < Version::HTTP_2 && uri.scheme().is_none() && uri.authority().is_some() {
        return Some((
            StatusCode::BAD_REQUEST,
            "The target of a request is a path or a whole address.",
        ));
    }
    let mut hosts = request.headers().get_all(HOST).iter();
    match (hosts.next(), hosts.next()) {
        (_, Some(_)) => Some((StatusCode::BAD_REQUEST, "A request has one Host header.")),
        (None, _) if request.version() == Version::HTTP_11 && uri.authority().is_none() => {
            Some((StatusCode::BAD_REQUEST, "A request of HTTP/1.1 has a Host header."))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_served() {
        let status = |method: &str, uri: &str, version, hosts: usize| {
            let mut request = Request::builder().method(method).uri(uri).version(version);
            for _ in 0..hosts {
                request = request.header(HOST, "a");
            }
            objection(&request.body(()).unwrap()).map(|(status, _)| status.as_u16())
        };
        assert_eq!(status("GET", "/", Version::HTTP_11, 1), None);
        assert_eq!(status("GET", "/", Version::HTTP_10, 0), None);
        assert_eq!(status("GET", "http://a/", Version::HTTP_2, 0), None);
        assert_eq!(status("GET", "/", Version::HTTP_11, 0), Some(400));
        assert_eq!(status("GET", "/", Version::HTTP_11, 2), Some(400));
        assert_eq!(status("GET", "http://a/", Version::HTTP_11, 1), None);
        assert_eq!(status("OPTIONS", "*", Version::HTTP_11, 1), None);
        assert_eq!(status("GET", "a", Version::HTTP_11, 1), Some(400));
        assert_eq!(status("CONNECT", "a:1", Version::HTTP_11, 1), Some(405));
    }
}
