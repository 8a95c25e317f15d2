//! The layers a request goes through, outermost first. This list is the order in which things are
//! decided; the reason for each place is beside it.

use std::cell::RefCell;
use std::convert::Infallible;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use http::{HeaderValue, Request, Response};
use hyper::body::Incoming;
use pin_project_lite::pin_project;
use tower::{Service, ServiceBuilder, service_fn};
use tower_http::request_id::{
    MakeRequestId, PropagateRequestIdLayer, RequestId, SetRequestIdLayer,
};

use super::account::Account;
use super::admit::{Admit, Admitted};
use super::body::{Busy, ResponseBody};
use super::forward::forward;
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
    let (outer, asked, inner) = (client.clone(), client.clone(), client.clone());
    ServiceBuilder::new()
        // A request has a name before anything is said about it,
        .layer(SetRequestIdLayer::x_request_id(Names))
        // and every answer bears it, refusals too.
        .layer(PropagateRequestIdLayer::x_request_id())
        // What becomes of it is written down, also if it is not served;
        .layer(Account::new(outer))
        // What no proxy of this kind serves costs nobody a slot.
        .layer(Screen::new(asked))
        // The decision. Nothing above it waits, nothing below it runs without a slot.
        .layer(Admit::new(client.clone()))
        // Heads are rewritten only for those who were let in: refusing stays cheap.
        .map_request(move |mut admitted: Admitted| {
            headers::for_application(&inner, &mut admitted.request);
            admitted.slot.trace().introduce(admitted.request.headers_mut());
            admitted
        })
        // The application.
        .service(service_fn({
            move |admitted: Admitted| {
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
    type Error = Infallible;
    type Future = Served<S::Future>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let client = &self.client;
        let busy = Some(match client.http2 {
            true => Busy::many(client.streams.clone(), client.stalled.clone()),
            false => Busy::one(client.line.head.clone(), client.stalled.clone()),
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
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let Ok(mut response) = ready!(this.served.poll(cx));
        response.body_mut().busy = this.busy.take();
        Poll::Ready(Ok(response))
    }
}

/// Names for requests that come without one: unique among all processes with great likelihood, and
/// in order within one.
#[derive(Clone, Copy)]
struct Names;

impl MakeRequestId for Names {
    fn make_request_id<B>(&mut self, _: &Request<B>) -> Option<RequestId> {
        use std::hash::{BuildHasher, RandomState};
        use std::sync::LazyLock;
        static PROCESS: LazyLock<u64> = LazyLock::new(|| RandomState::new().hash_one(0));
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = [hex(*PROCESS), hex(count)].concat();
        HeaderValue::try_from(name).ok().map(RequestId::new)
    }
}

/// Sixteen digits.
fn hex(number: u64) -> [u8; 16] {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    std::array::from_fn(|at| DIGITS[(number >> (60 - 4 * at)) as usize & 15])
}
