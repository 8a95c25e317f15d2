//! Name: a request that comes without an `x-request-id` is given one, and its answer bears it.
//!
//! Always true: a name is unique among all processes with great likelihood, and in order within one; what
//! the client or the application has said is left as it is.

use std::cell::RefCell;
use std::convert::Infallible;
use std::hash::{BuildHasher, RandomState};
use std::pin::Pin;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use bytes::BytesMut;
use http::header::{Entry, HeaderName, HeaderValue};
use http::{Request, Response};
use pin_project_lite::pin_project;
use tower::Service;

/// The header.
pub const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Digits of a name: of the process, and of the request.
const LENGTH: usize = 32;

/// Names are cut from a block that is allocated for so many of them. Few, because a request that lasts
/// keeps its block.
const BLOCK: usize = 32 * LENGTH;

/// The layer.
#[derive(Clone, Copy)]
pub struct Name;

/// The service it makes.
#[derive(Clone)]
pub struct Named<S> {
    inner: S,
}

pin_project! {
    /// A request on its way, and its name.
    pub struct Naming<F> {
        #[pin]
        inner: F,
        name: Option<HeaderValue>,
    }
}

impl<S> tower::Layer<S> for Name {
    type Service = Named<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Named { inner }
    }
}

impl<S, B, C> Service<Request<B>> for Named<S>
where
    S: Service<Request<B>, Response = Response<C>, Error = Infallible>,
{
    type Response = Response<C>;
    type Error = Infallible;
    type Future = Naming<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let name = match request.headers_mut().entry(X_REQUEST_ID) {
            Entry::Occupied(own) => own.get().clone(),
            Entry::Vacant(none) => none.insert(new_name()).clone(),
        };
        Naming { inner: self.inner.call(request), name: Some(name) }
    }
}

impl<F, C> Future for Naming<F>
where
    F: Future<Output = Result<Response<C>, Infallible>>,
{
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let Ok(mut response) = ready!(this.inner.poll(cx));
        if let (Some(name), Entry::Vacant(none)) =
            (this.name.take(), response.headers_mut().entry(X_REQUEST_ID))
        {
            none.insert(name);
        }
        Poll::Ready(Ok(response))
    }
}

fn new_name() -> HeaderValue {
    static PROCESS: LazyLock<[u8; LENGTH / 2]> =
        LazyLock::new(|| hex(RandomState::new().hash_one(0)));
    static COUNT: AtomicU64 = AtomicU64::new(0);
    thread_local! {
        static BLOCK_LEFT: RefCell<BytesMut> = RefCell::default();
    }
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let name = BLOCK_LEFT.with_borrow_mut(|block| {
        if block.capacity() < LENGTH {
            *block = BytesMut::with_capacity(BLOCK);
        }
        block.extend_from_slice(&*PROCESS);
        block.extend_from_slice(&hex(count));
        block.split().freeze()
    });
    HeaderValue::from_maybe_shared(name).expect("digits")
}

/// Sixteen digits.
fn hex(number: u64) -> [u8; LENGTH / 2] {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    std::array::from_fn(|at| DIGITS[(number >> (60 - 4 * at)) as usize & 15])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_differ_and_are_in_order_across_blocks() {
        let names: Vec<HeaderValue> = (0..100).map(|_| new_name()).collect();
        assert!(names.iter().all(|name| name.len() == LENGTH));
        assert!(names.is_sorted_by(|a, b| a.as_bytes() < b.as_bytes()));
    }
}
