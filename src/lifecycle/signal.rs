//! What every connection has to notice when it happens: that listeners close, that what is left is cut.
//!
//! Always true: looking costs a load; whoever waits is woken once; what was raised is lowered only when
//! nobody is left who waits for it.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};

use tokio::sync::Notify;
use tokio::sync::futures::OwnedNotified;
use tokio_util::sync::CancellationToken;

/// Something that happens once in the life of a connection, and that every one has to notice.
#[derive(Clone, Default)]
pub struct Signal {
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    /// Set before anybody is woken.
    raised: AtomicBool,
    waiters: Arc<Notify>,
    /// The same for the accept loops; a new one after every lowering.
    token: Mutex<CancellationToken>,
}

/// Resolves when a [`Signal`] is raised; polled again by the same task, it costs a load.
pub struct Raised {
    signal: Signal,
    notified: Pin<Box<OwnedNotified>>,
    /// Who is woken.
    waker: Option<Waker>,
}

impl Signal {
    /// Let everybody know.
    pub fn raise(&self) {
        self.state.raised.store(true, Ordering::Release);
        self.token().cancel();
        self.state.waiters.notify_waiters();
    }

    /// It is as if it had never happened. Only when all who could have noticed are gone.
    pub fn lower(&self) {
        *self.state.token.lock().unwrap_or_else(PoisonError::into_inner) = CancellationToken::new();
        self.state.raised.store(false, Ordering::Release);
    }

    /// Whether it has happened.
    pub fn is_raised(&self) -> bool {
        self.state.raised.load(Ordering::Acquire)
    }

    /// Resolves when it has happened.
    pub async fn raised(&self) {
        // Whoever is registered is woken, even if he has not been polled: looking comes second.
        let notified = self.state.waiters.notified();
        if !self.is_raised() {
            notified.await;
        }
    }

    /// The same, for those who are polled for many other reasons.
    pub fn watch(&self) -> Raised {
        let notified = Box::pin(self.state.waiters.clone().notified_owned());
        Raised { signal: self.clone(), notified, waker: None }
    }

    /// The same as a token, until it is lowered.
    pub fn token(&self) -> CancellationToken {
        self.state.token.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Future for Raised {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if self.signal.is_raised() {
            return Poll::Ready(());
        }
        // The flag is set before anybody is woken: who is woken for it, sees it above.
        if self.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            return Poll::Pending;
        }
        self.waker = Some(cx.waker().clone());
        self.notified.as_mut().poll(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn whoever_waits_is_told_and_after_the_lowering_there_is_nothing_to_tell() {
        let signal = Signal::default();
        for _ in 0..2 {
            let (token, watch) = (signal.token(), signal.watch());
            let told = async { tokio::join!(signal.raised(), watch, token.cancelled()) };
            let mut told = std::pin::pin!(told);
            assert!(futures_ready(told.as_mut()).is_none(), "nothing has happened");
            signal.raise();
            told.await;
            signal.raised().await;
            assert!(signal.is_raised());
            signal.lower();
            assert!(!signal.is_raised() && !signal.token().is_cancelled());
        }
    }

    fn futures_ready<F: Future>(future: Pin<&mut F>) -> Option<F::Output> {
        match future.poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(output) => Some(output),
            Poll::Pending => None,
        }
    }
}
