//! Forward: send an admitted request to the application and hand its answer back. The innermost
//! service: whatever comes here has a slot.

use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::{Request, Response, StatusCode};
use hyper::body::{Body, Incoming};
use pin_project_lite::pin_project;

use super::admit::Admitted;
use super::body::{Answer, RequestBody, ResponseBody, Upload};
use super::exchange::{Broke, Lease, Slot};
use super::pulse::Pulse;
use super::refuse::{Cause, Manner, refuse};
use super::streams::is_our_reset;
use super::tunnel::Tunnel;
use super::upstream::Unanswered;
use super::wire::alarm;
use super::{AppHttp2, Client, headers};
use crate::conn::trace::Trace;
use crate::io::Engine;
use crate::outcome::{Outcome, Reason};

/// Connections that may turn out to have ended before the request was sent, until the application is
/// believed to be gone.
const TRIES: usize = 3;

/// A connection that has been idle for as long may be one that its application is just about to close.
/// None closes one sooner; and who is busy has no connection that was idle for so long, and pays nothing.
const RESTED: Duration = Duration::from_millis(500);

/// Serve one admitted request.
#[allow(clippy::manual_async_fn, reason = "an async fn would keep room for its arguments twice")]
pub fn forward<E: Engine>(
    client: Rc<Client<E>>,
    admitted: Admitted,
) -> impl Future<Output = Response<ResponseBody>> {
    let watched = Watched::of(&client, &admitted).map(Box::new);
    let Admitted { request, slot } = admitted;
    let exchange = async move {
        let manner = Manner::of(&request);
        let asks_to_switch = headers::wanted_upgrade(&request).is_some();
        // In boxes: most requests go to an application that speaks HTTP/1.
        // There is no gRPC but on HTTP/2.
        let is_grpc = client.http2 && manner.is_grpc();
        let by_stream = !asks_to_switch
            && match client.config.http.app_http2 {
                AppHttp2::Always => true,
                AppHttp2::Auto if is_grpc => true,
                AppHttp2::Auto if client.http2 => Box::pin(takes_http2(&client)).await,
                AppHttp2::Auto | AppHttp2::Never => false,
            };
        let answered = if by_stream {
            Box::pin(stream(&client, request, slot, is_grpc)).await
        } else {
            connection(&client, request, slot, is_grpc).await
        };
        answer(&client, &manner, asks_to_switch, answered)
    };
    Forward { exchange, watched }
}

pin_project! {
    /// An exchange that has no answer yet, and is given up when nothing moves of it any more.
    struct Forward<F, E: Engine> {
        #[pin]
        exchange: F,
        watched: Option<Box<Watched<E>>>,
    }
}

/// Who is told that nothing moves, and how.
struct Watched<E: Engine> {
    client: Rc<Client<E>>,
    pulse: Rc<Pulse>,
    manner: Manner,
    trace: Trace,
}

impl<E: Engine> Watched<E> {
    fn of(client: &Rc<Client<E>>, Admitted { request, slot }: &Admitted) -> Option<Self> {
        let (pulse, trace) = (slot.pulse()?, slot.trace().clone());
        Some(Self { client: client.clone(), pulse, manner: Manner::of(request), trace })
    }
}

impl<F: Future<Output = Response<ResponseBody>>, E: Engine> Future for Forward<F, E> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        match this.watched {
            Some(watched) if watched.pulse.has_stopped() => {
                let response = say(&watched.client, &watched.manner, Cause::AppIsSilent);
                watched.trace.refused(&response);
                Poll::Ready(response)
            }
            _ => this.exchange.poll(cx),
        }
    }
}

/// What the client is told.
fn answer<E: Engine>(
    client: &Client<E>,
    manner: &Manner,
    asks_to_switch: bool,
    answered: Answered,
) -> Response<ResponseBody> {
    let (mut response, lease, key) = match answered {
        Ok(answered) => answered,
        Err((cause, trace)) => {
            let response = say(client, manner, cause);
            trace.refused(&response);
            return response;
        }
    };
    lease.answers();
    lease.trace().answered(&response);
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        headers::for_client(&mut response);
        return response.map(|body| ResponseBody::answer(Answer::new(body, lease)));
    }
    match key {
        Some(key) if asks_to_switch => {
            let app = client.upstream.switched(key);
            *client.tunnel.borrow_mut() = Some(Tunnel { app, lease });
            headers::for_client(&mut response);
            response.map(|_| ResponseBody::EMPTY)
        }
        _ => {
            lease.will_be(Outcome::AppReset);
            lease.broken(true);
            say(client, manner, Cause::AppTalksNonsense)
        }
    }
}

fn say<E: Engine>(client: &Client<E>, manner: &Manner, cause: Cause) -> Response<ResponseBody> {
    refuse(client.port(), client.config.http.statuses, manner, cause).0
}

/// Whether the application understands HTTP/2.
async fn takes_http2<E: Engine>(client: &Client<E>) -> bool {
    client.upstream.speaks_http2(&client.config).await
}

/// An answer, what is shared about it, and the connection if it is one of its own; or why there is
/// none, and what is recorded of that.
type Answered = Result<(Response<Incoming>, Rc<Lease>, Option<usize>), (Cause, Trace)>;

/// Send the request by a connection of its own, by another if that had ended before it was sent; or, as
/// RFC 9112 9.5 has it, just while it was, if the request may be sent twice.
fn connection<E: Engine>(
    client: &Client<E>,
    mut request: Request<Incoming>,
    slot: Slot,
    is_grpc: bool,
) -> impl Future<Output = Answered> {
    headers::as_http1(&mut request);
    let upstream = &client.upstream;
    let (parts, incoming) = request.into_parts();
    let body = body(client, incoming, &slot, is_grpc);
    let mut next = Some((Request::from_parts(parts, body), slot));
    async move {
        let (mut dialled, mut doubled) = (0, 0);
        loop {
            let reached = match upstream.idle_connection() {
                Some((key, since)) => Ok((key, Some(since))),
                None if dialled == TRIES => Err(Reason::UpstreamRefused),
                None => {
                    dialled += 1;
                    Box::pin(upstream.connection(&client.config)).await
                }
            };
            // Taken only now: what is held while it waits is kept room for, in every request.
            let (mut ready, mut slot) = next.take().expect("set before each round");
            let (key, since) = match reached {
                Ok(reached) => reached,
                Err(reason) => {
                    let trace = slot.refuse(&ready, reason);
                    return Err((Cause::Reason(reason), trace));
                }
            };
            let lease = upstream.lease(key);
            let rested = since.is_some_and(|since| slot.came_after(since + RESTED));
            let again = if rested && doubled < TRIES { twice(&ready) } else { None };
            ready.body_mut().bind(&lease);
            lease.begin(slot, ready.body().is_end_stream());
            let waiting = Waiting(Some(&lease));
            let answered = upstream.send(key, ready).await;
            waiting.over();
            match answered {
                Ok(response) => return Ok((response, lease, Some(key))),
                Err(Unanswered::Unsent(unsent)) => match lease.take() {
                    Some(slot) => next = Some((*unsent, slot)),
                    None => return Err((Cause::Reason(Reason::UpstreamRefused), Trace::NONE)),
                },
                Err(other) => {
                    let again = again.filter(|_| has_ended(&lease, &other));
                    let Some((again, slot)) = again.and_then(|again| Some((again, lease.take()?)))
                    else {
                        return Err(fail(&lease, &other));
                    };
                    doubled += 1;
                    next = Some((*again, slot));
                }
            }
        }
    }
}

/// A copy of the request, if it may be sent twice: it asks for what changes nothing more the second
/// time (RFC 9110 9.2.2), and is no more than a head.
fn twice(request: &Request<RequestBody>) -> Option<Box<Request<RequestBody>>> {
    let may = request.method().is_idempotent() && request.body().is_end_stream();
    may.then(|| {
        let mut again = Request::new(RequestBody::Empty);
        *again.method_mut() = request.method().clone();
        *again.uri_mut() = request.uri().clone();
        *again.version_mut() = request.version();
        *again.headers_mut() = request.headers().clone();
        Box::new(again)
    })
}

/// Whether the connection ended in place of an answer.
fn has_ended(lease: &Lease, unanswered: &Unanswered) -> bool {
    let Unanswered::Broken(error) = unanswered else { return false };
    matches!(judge(lease, error), (Outcome::AppReset, Cause::AppBroke))
}

/// An exchange without an answer yet. Dropped so, its client has left.
struct Waiting<'a>(Option<&'a Lease>);

impl Waiting<'_> {
    fn over(mut self) {
        self.0 = None;
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if let Some(lease) = self.0 {
            lease.left_waiting();
        }
    }
}

/// Send the request as a stream of a connection it shares with others.
async fn stream<E: Engine>(
    client: &Client<E>,
    mut request: Request<Incoming>,
    slot: Slot,
    is_grpc: bool,
) -> Answered {
    let upstream = &client.upstream;
    headers::as_http2(&mut request);
    let lease = upstream.stream_lease();
    let (parts, incoming) = request.into_parts();
    let mut ready = Request::from_parts(parts, body(client, incoming, &slot, is_grpc));
    ready.body_mut().bind(&lease);
    lease.begin(slot, ready.body().is_end_stream());
    for _ in 0..TRIES {
        match upstream.stream(&client.config, ready, lease.clone()).await {
            Ok(response) => return Ok((response, lease, None)),
            Err(Unanswered::Unsent(unsent)) => ready = *unsent,
            Err(other) => return Err(fail(&lease, &other)),
        }
    }
    Err(fail(&lease, &Unanswered::Unreached(Reason::UpstreamRefused, Box::new(ready))))
}

/// Whose fault it was that no answer came. A stream's slot is given back, held a little if it is we who
/// have reset it; a connection's own task sees to its slot.
fn fail(lease: &Lease, unanswered: &Unanswered) -> (Cause, Trace) {
    let (outcome, cause) = match unanswered {
        Unanswered::Broken(error) => judge(lease, error),
        Unanswered::Unreached(reason, _) => (Outcome::Refused(*reason), Cause::Reason(*reason)),
        Unanswered::Unsent(_) => (Outcome::AppReset, Cause::AppBroke),
    };
    let trace = match unanswered {
        Unanswered::Unreached(reason, request) => lease.refuse(request, *reason),
        Unanswered::Broken(_) | Unanswered::Unsent(_) => lease.trace(),
    };
    let by_us = matches!(unanswered, Unanswered::Broken(error) if is_our_reset(error));
    lease.will_be(outcome);
    lease.broken(by_us);
    (cause, trace)
}

/// The body as it is sent, not bound to an exchange yet.
fn body<E: Engine>(
    client: &Client<E>,
    incoming: Incoming,
    slot: &Slot,
    is_grpc: bool,
) -> RequestBody {
    if incoming.is_end_stream() {
        return RequestBody::Empty;
    }
    let engine = client.upstream.engine.clone();
    // A call of gRPC may be silent for as long as it likes, and its answer may begin at its end.
    let patience = (!is_grpc).then_some(client.config.http.body_timeout);
    let alarm_at = Box::new(move |at| alarm(&engine, at));
    RequestBody::Upload(Box::new(Upload::new(incoming, patience, slot, alarm_at)))
}

/// Whose fault it was that no answer came.
fn judge(lease: &Lease, error: &hyper::Error) -> (Outcome, Cause) {
    match lease.how_upload_broke() {
        Some(Broke::Slow) => (Outcome::ClientStalled, Cause::TooSlow),
        Some(Broke::Off) => (Outcome::ClientReset, Cause::Incomplete),
        None if error.is_parse() => (Outcome::AppReset, Cause::AppTalksNonsense),
        None => (Outcome::AppReset, Cause::AppBroke),
    }
}
