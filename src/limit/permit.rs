//! The right to be inside, and the hope for it.
//!
//! Always true: a slot in use belongs to exactly one permit, or to one ticket that has been called. A
//! ticket parts with its slot only by becoming a permit, so [`Permit`]'s `Drop` is the only decrement.

use super::gate::Seat;
use super::line::Verdict;
use super::queue::Number;
use crate::outcome::Reason;
use std::fmt;
use std::task::{Context, Poll};
use std::time::Instant;

/// The right to one slot. Dropping it gives the slot to the next who waits.
#[must_use = "dropping the permit gives the slot back"]
pub struct Permit {
    /// Left after the slot has been given back, so that a client never has more than its share inside.
    seat: Seat,
}

/// A place in the queue. Dropping it leaves the queue at once, or passes on the slot it was called to.
#[must_use = "dropping the ticket leaves the queue"]
pub struct Ticket {
    /// `None` once `poll` has answered.
    place: Option<Place>,
}

struct Place {
    seat: Seat,
    number: Number,
    /// The wait is counted from here.
    enqueued: Instant,
}

impl Permit {
    /// For a slot just taken in the seat's gate, or reserved in it and just fetched.
    pub(super) fn new(seat: Seat) -> Self {
        Self { seat }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.seat.shared().give_back();
    }
}

impl Ticket {
    pub(super) fn new(seat: Seat, number: Number, enqueued: Instant) -> Self {
        Self { place: Some(Place { seat, number, enqueued }) }
    }

    /// Ready with a permit when its turn has come, with a reason when it has waited too long or the
    /// gate has closed. The caller sees to it that it is polled at the [`deadline`](Self::deadline).
    ///
    /// # Panics
    ///
    /// When polled after it was ready, like a future.
    pub fn poll(&mut self, now: Instant, cx: &mut Context<'_>) -> Poll<Result<Permit, Reason>> {
        let Place { seat, number, enqueued } = self.waiting();
        let (verdict, _replaced_waker) =
            seat.shared().with_line(|line, _| line.look(*number, *enqueued, now, cx.waker()));
        match verdict {
            Verdict::Waiting => Poll::Pending,
            Verdict::Admitted => Poll::Ready(Ok(self.fetch())),
            Verdict::TooLate => {
                drop(self.fetch()); // the reservation goes to the next
                Poll::Ready(Err(Reason::QueueTimeout))
            }
            Verdict::Left(reason) => {
                self.place = None;
                Poll::Ready(Err(reason))
            }
        }
    }

    /// When the wait ends under the queue timeout in force now. Every change of settings wakes the
    /// ticket's task, which then has to look here again.
    pub fn deadline(&self) -> Instant {
        let place = self.waiting();
        place.seat.deadline(place.enqueued)
    }

    /// 1 at the head of the queue; 0 when a slot is reserved already. Counts through the queue, under
    /// its lock: for people, not for every poll.
    pub fn position(&self) -> usize {
        let place = self.waiting();
        place.seat.position(place.number)
    }

    /// The slot reserved for this ticket, which the line has just forgotten.
    fn fetch(&mut self) -> Permit {
        let place = self.place.take().expect("the line knew it a moment ago");
        Permit::new(place.seat)
    }

    fn waiting(&self) -> &Place {
        self.place.as_ref().expect("a ticket is not used after it was ready")
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let Some(Place { seat, number, .. }) = self.place.take() else {
            return;
        };
        let (called, _waker) = seat.shared().with_line(|line, _| line.leave(number));
        if called {
            drop(Permit::new(seat)); // the reservation goes to the next
        }
    }
}

impl fmt::Debug for Permit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Permit").finish_non_exhaustive()
    }
}

impl fmt::Debug for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ticket").field("done", &self.place.is_none()).finish_non_exhaustive()
    }
}
