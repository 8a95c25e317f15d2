//! The layers a request goes through, outermost first. This list is the order in which things are
//! decided; the reason for each place is beside it.

use std::cell::RefCell;
use std::convert::Infallible;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use http::{Request, Response};
use hyper::body::Incoming;
use pin_project_lite::pin_project;
use tower::{Service, ServiceBuilder, service_fn};

use super::account::Account;
use super::admit::{Admit, Admitted};
use super::body::{Busy, ResponseBody};
use super::forward::forward;
use super::name::Name;
use super::screen::Screen;
use super::{Client, headers};
use crate::io::Engine;

/// Everything between hyper's server and hyper's client.
#[rustfmt::skip]
pub fn stack<E: Engine>(client: Rc<Client<E>>) -> impl Service<
    Request<Incoming>,
    Response = Response<ResponseBody>,
    Error = Infallible,
    Future = impl Future<Output = Result<Response<ResponseBody>, Infallible>> + 'static,
> + use<E> {
    let (outer, asked) = (client.clone(), client.clone());
    ServiceBuilder::new()
        // A request has a name before anything is said about it, and every answer bears it, refusals too.
        .layer(Name)
        // What becomes of it is written down, also if it is not served;
        .layer(Account::new(outer))
        // What no proxy of this kind serves costs nobody a slot.
        .layer(Screen::new(asked))
        // The decision. Nothing above it waits, nothing below it runs without a slot.
        .layer(Admit::new(client.clone()))
        // The application. Heads are rewritten only for those who were let in: refusing stays cheap.
        .service(service_fn({
            move |mut admitted: Admitted| {
                headers::for_application(&client, &mut admitted.request);
                admitted.slot.trace().introduce(admitted.request.headers_mut());
                // In a box: it is large, and an idle connection keeps room for what is outside it.
                let forwarded: Pin<Box<dyn Future<Output = _>>> =
                    Box::pin(forward(client.clone(), admitted));
                async move { Ok::<_, Infallible>(forwarded.await) }
            }
        }))
}

/// The stack as hyper's server calls it; marks the connection as busy meanwhile.
pub struct Front<E: Engine, S> {
    client: Rc<Client<E>>,
    stack: RefCell<S>,
}

impl<E: Engine, S> Front<E, S> {
    pub fn new(client: Rc<Client<E>>, stack: S) -> Self {
        Self { client, stack: RefCell::new(stack) }
    }
}

/// A request of HTTP/2 that is not answered: its stream is refused, so that its client may repeat it at once,
/// whatever it asks for (RFC 9113, section 8.7).
#[derive(Debug, thiserror::Error)]
#[error("the request was not processed")]
pub struct NotProcessed(#[source] h2::Error);

pin_project! {
    pub struct Served<F> {
        #[pin]
        served: F,
        busy: Option<Busy>,
    }
}

impl<E: Engine, S> hyper::service::Service<Request<Incoming>> for Front<E, S>
where
    S: Service<Request<Incoming>, Response = Response<ResponseBody>, Error = Infallible>,
{
    type Response = Response<ResponseBody>;
    type Error = NotProcessed;
    type Future = Served<S::Future>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let client = &self.client;
        client.last.set(headers::is_last(&request));
        let (stalled, pulse) = (client.stalled.clone(), client.begin_pulse());
        let busy = Some(match client.http2 {
            true => Busy::many(&client.takers, stalled, pulse),
            false => Busy::one(client.line.head.clone(), stalled, pulse),
        });
        // No layer of the stack has a readiness of its own: what can be full is the gate, and it says
        // so in its answer.
        Served { served: self.stack.borrow_mut().call(request), busy }
    }
}

impl<F> Future for Served<F>
where
    F: Future<Output = Result<Response<ResponseBody>, Infallible>>,
{
    type Output = Result<Response<ResponseBody>, NotProcessed>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let Ok(mut response) = ready!(this.served.poll(cx));
        if response.body().is_not_processed() {
            return Poll::Ready(Err(NotProcessed(h2::Reason::REFUSED_STREAM.into())));
        }
        if let Some(busy) = this.busy.take() {
            busy.answers();
            response.body_mut().busy = Some(busy);
        }
        Poll::Ready(Ok(response))
    }
}
