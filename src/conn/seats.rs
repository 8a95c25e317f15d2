//! Room at an HTTP application: its connections from all workers together never outnumber the limit.
//!
//! ```text
//!   a worker with a slot and no seat ── room() ──→ one more is wanted ─┐
//!                  ▲                                                   ▼
//!                  └──── a seat is free ←── drop(Seat) ←── hear(): a worker closes an idle connection
//! ```
//!
//! Always true: a want is heard by one worker at most, and closes one connection; a want that nobody
//! has heard is remembered until somebody has an idle connection, or the one who wants has gone.

use std::pin::pin;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Notify;

/// The seats of one port.
#[derive(Default)]
pub struct Seats {
    taken: AtomicU32,
    wants: Mutex<Wants>,
    /// As in `wants`, to be looked at in passing.
    unheard: AtomicU32,
    /// Rung when a seat is given back, or there may be more of them.
    freed: Notify,
    /// Rung when one more is wanted, or there may be fewer of them.
    asked: Notify,
}

#[derive(Default)]
struct Wants {
    /// Those who wait for room.
    waiting: u32,
    /// Of these, for whom nobody closes a connection yet.
    unheard: u32,
}

/// The right to one connection to the application; dropping it gives it back.
pub struct Seat {
    seats: Arc<Seats>,
}

/// Somebody waits for room; dropped, it does not any more.
struct Want<'a>(&'a Seats);

impl Seats {
    /// One more connection, if no more than `limit` are open then.
    pub fn take(self: &Arc<Self>, limit: u32) -> Option<Seat> {
        let more = |taken: u32| (taken < limit).then_some(taken + 1);
        let taken = self.taken.fetch_update(Ordering::AcqRel, Ordering::Acquire, more);
        taken.ok().map(|_| Seat { seats: self.clone() })
    }

    /// How many more are open than `limit`: it was lowered.
    pub fn excess(&self, limit: u32) -> u32 {
        self.taken.load(Ordering::Acquire).saturating_sub(limit)
    }

    /// Wait until it makes sense to try again.
    pub async fn room(&self, limit: impl Fn() -> u32) {
        // First be among those who are told, then look: what is given back later is heard of.
        let mut freed = pin!(self.freed.notified());
        freed.as_mut().enable();
        if self.taken.load(Ordering::Acquire) < limit() {
            return;
        }
        let _want = Want::new(self);
        self.asked.notify_waiters();
        freed.await;
    }

    /// Whether a connection has to be closed for somebody. Who is told so has to close one.
    pub fn hear(&self) -> bool {
        if self.unheard.load(Ordering::SeqCst) == 0 {
            return false;
        }
        self.change(|wants| {
            let wanted = wants.unheard > 0;
            wants.unheard -= u32::from(wanted);
            wanted
        })
    }

    /// Resolves when there may be something to hear. Whoever looks after it was made, and then waits
    /// for it, misses nothing.
    pub fn asked(&self) -> impl Future<Output = ()> {
        self.asked.notified()
    }

    /// The limit may have changed.
    pub fn limit_changed(&self) {
        self.freed.notify_waiters();
        self.asked.notify_waiters();
    }

    fn change<T>(&self, change: impl FnOnce(&mut Wants) -> T) -> T {
        let mut wants = self.wants.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = change(&mut wants);
        self.unheard.store(wants.unheard, Ordering::SeqCst);
        changed
    }
}

impl<'a> Want<'a> {
    fn new(seats: &'a Seats) -> Self {
        seats.change(|wants| {
            wants.waiting += 1;
            wants.unheard += 1;
        });
        Self(seats)
    }
}

impl Drop for Want<'_> {
    fn drop(&mut self) {
        // If a connection is being closed for this one, its seat is the next one's.
        self.0.change(|wants| {
            wants.waiting -= 1;
            wants.unheard = wants.unheard.min(wants.waiting);
        });
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.seats.taken.fetch_sub(1, Ordering::AcqRel);
        self.seats.freed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;
    use std::task::{Context, Poll, Waker};

    #[test]
    fn there_are_as_many_as_the_limit() {
        let seats = Arc::new(Seats::default());
        let one = seats.take(2).expect("the first");
        let two = seats.take(2).expect("the second");
        assert!(seats.take(2).is_none());
        assert_eq!((seats.excess(2), seats.excess(1)), (0, 1));
        drop(one);
        assert!(seats.take(2).is_some());
        drop(two);
    }

    #[test]
    fn a_want_is_heard_once_and_until_it_has_gone() {
        let seats = Arc::new(Seats::default());
        let taken = seats.take(1).expect("the only one");
        let mut cx = Context::from_waker(Waker::noop());
        let mut waits = [0, 1].map(|_| Box::pin(seats.room(|| 1)));
        assert!(!seats.hear(), "nobody wants anything yet");
        assert!(waits.iter_mut().all(|wait| wait.as_mut().poll(&mut cx).is_pending()));
        assert!(seats.hear());
        let [first, mut second] = waits;
        // A connection is being closed for one of them: the other still wants one.
        drop(first);
        assert!(seats.hear());
        assert!(!seats.hear(), "for nobody else");
        drop(taken);
        assert_eq!(second.as_mut().poll(&mut cx), Poll::Ready(()));
    }

    #[test]
    fn a_seat_given_back_while_somebody_begins_to_wait_is_not_lost() {
        let seats = Arc::new(Seats::default());
        let taken = RefCell::new(seats.take(1));
        // The limit is asked for right after the look at what is open.
        let mut wait = pin!(seats.room(|| {
            taken.take();
            1
        }));
        let mut cx = Context::from_waker(Waker::noop());
        assert_eq!(wait.as_mut().poll(&mut cx), Poll::Ready(()));
    }
}
