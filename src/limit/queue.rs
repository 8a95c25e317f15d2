//! Who waits, in which order, and who has been called but has not come yet.
//!
//! ```text
//!  push ──▶ waiting: 7 8 9 … ──▶ call_head ──▶ called: 5 6 ──▶ leave (takes the slot, or passes it on)
//!              └───────── leave (gave up) ──▶
//! ```
//!
//! Numbers are given once and in order of arrival, so the order of the numbers is first come, first
//! served, and leaving from the middle costs a step down a tree of tens of thousands, not a search.
//! Another discipline would differ in `call_head` alone.
//!
//! Always true: a number is waiting, called, or unknown; one that is neither was sent away.

use std::collections::{BTreeMap, BTreeSet};
use std::task::Waker;

/// A waiter's number, never given twice.
pub(super) type Number = u64;

/// How a ticket stands in the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// It waits for a slot.
    Waiting,
    /// A slot is reserved for it.
    Called,
    /// The gate closed while it waited.
    SentAway,
}

/// The waiting line. Holds no slot itself: whoever calls the head has taken one for it.
#[derive(Default)]
pub(super) struct Queue {
    /// What the next arrival gets.
    next: Number,
    /// Who waits, first come first, with whom to wake; no waker while the ticket owes us a poll.
    waiting: BTreeMap<Number, Option<Waker>>,
    /// Whose slot is reserved but not fetched. A stalled task stays here; others pass it.
    called: BTreeSet<Number>,
}

impl Queue {
    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    pub(super) fn push(&mut self) -> Number {
        let number = self.next;
        self.next += 1;
        self.waiting.insert(number, None);
        number
    }

    /// Reserves the caller's slot for the head; the waker is to be woken once the lock is released.
    pub(super) fn call_head(&mut self) -> Option<Waker> {
        let (number, waker) = self.waiting.pop_first()?;
        self.called.insert(number);
        waker
    }

    pub(super) fn standing(&self, number: Number) -> Standing {
        if self.waiting.contains_key(&number) {
            Standing::Waiting
        } else if self.called.contains(&number) {
            Standing::Called
        } else {
            Standing::SentAway
        }
    }

    /// Sees to it that `waker` is woken when the number is called or sent away. The waker it replaces
    /// is handed out, to be dropped without the lock: a task's last waker may drop the task.
    #[must_use]
    pub(super) fn wake_by(&mut self, number: Number, waker: &Waker) -> Option<Waker> {
        let place = self.waiting.get_mut(&number)?;
        match place {
            Some(known) if known.will_wake(waker) => None,
            _ => place.replace(waker.clone()),
        }
    }

    /// Forgets the number, wherever it stands. The waker is to be dropped without the lock.
    pub(super) fn leave(&mut self, number: Number) -> Option<Waker> {
        self.called.remove(&number);
        self.waiting.remove(&number).flatten()
    }

    /// Sends all who wait away. Who has been called has a slot and keeps it.
    pub(super) fn send_away(&mut self) -> impl Iterator<Item = Waker> {
        std::mem::take(&mut self.waiting).into_values().flatten()
    }

    /// The wakers of all who wait, so that they look again; each leaves a new one when it does.
    pub(super) fn wakers(&mut self) -> impl Iterator<Item = Waker> {
        self.waiting.values_mut().filter_map(Option::take)
    }

    /// 1 for the head; 0 for one that does not wait. Walks the queue: for people, not for the hot path.
    pub(super) fn position(&self, number: Number) -> usize {
        match self.standing(number) {
            Standing::Waiting => self.waiting.range(..=number).count(),
            Standing::Called | Standing::SentAway => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_in_order_of_arrival_and_skips_who_left() {
        let mut queue = Queue::default();
        let [first, second, third] = [queue.push(), queue.push(), queue.push()];
        assert_eq!([first, second, third].map(|n| queue.position(n)), [1, 2, 3]);

        let _ = queue.leave(second);
        assert_eq!([first, second, third].map(|n| queue.position(n)), [1, 0, 2]);

        let _ = queue.call_head();
        assert_eq!(queue.standing(first), Standing::Called);
        assert_eq!(queue.standing(third), Standing::Waiting);
        let _ = queue.call_head();
        assert_eq!(queue.standing(third), Standing::Called);
        assert!(queue.is_empty());
    }

    #[test]
    fn sending_away_spares_who_has_been_called() {
        let mut queue = Queue::default();
        let [called, waiting] = [queue.push(), queue.push()];
        let _ = queue.call_head();
        assert_eq!(queue.send_away().count(), 0, "nobody has left a waker yet");
        assert_eq!(queue.standing(called), Standing::Called);
        assert_eq!(queue.standing(waiting), Standing::SentAway);
    }

    #[test]
    fn hands_out_the_waker_it_replaces() {
        struct Nobody;
        impl std::task::Wake for Nobody {
            fn wake(self: std::sync::Arc<Self>) {}
        }
        let mut queue = Queue::default();
        let number = queue.push();
        assert!(queue.wake_by(number, Waker::noop()).is_none());
        let other = Waker::from(std::sync::Arc::new(Nobody));
        assert!(queue.wake_by(number, &other).is_some());
        assert_eq!(queue.wakers().count(), 1);
        assert_eq!(queue.wakers().count(), 0, "taken, until it looks again");
        assert!(queue.call_head().is_none());
    }
}
