//! What is decided under the gate's lock: about an arrival that found no free slot, about a ticket that
//! looks, about a slot that came free. Why this is enough is said at the top of `gate.rs`.

use super::queue::{Number, Queue, Standing};
use super::shadow::Shadow;
use super::word::Word;
use super::{Mode, Settings};
use crate::outcome::Reason;
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

/// As good as no timeout, and still a time that can be added to any other.
const FOREVER: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// How many may be parked for room before the first is woken to look again: far more than there are
/// accept loops, and a bound on callers that come with a new waker each time.
pub(super) const MAX_ROOM_WAITERS: usize = 64;

/// Everything the lock guards.
pub(super) struct Line {
    pub(super) settings: Settings,
    pub(super) queue: Queue,
    /// Whom to wake when an arrival would no longer be refused for want of room.
    room: Vec<Waker>,
    /// Set by the end of a drain; cleared only if that is taken back.
    closed: bool,
}

/// Whom to wake once the lock is released; room for one without an allocation, the usual case.
#[derive(Default)]
pub(super) struct Calls {
    first: Option<Waker>,
    more: Vec<Waker>,
}

/// What is decided about an arrival.
pub(super) enum Decision {
    /// It has a slot; so many were taken before.
    Admit(u32),
    /// It is in the queue.
    Wait(Number),
    /// It has to go.
    Refuse(Reason),
}

/// What a ticket finds when it looks.
pub(super) enum Verdict {
    /// Nothing yet.
    Waiting,
    /// A slot was reserved and is now the caller's.
    Admitted,
    /// A slot was reserved and is now the caller's, who is too late to use it.
    TooLate,
    /// It left the queue without a slot.
    Left(Reason),
}

impl Line {
    pub(super) fn new(settings: &Settings) -> Self {
        Self {
            settings: settings.clone(),
            queue: Queue::default(),
            room: Vec::new(),
            closed: false,
        }
    }

    pub(super) fn closed(&self) -> bool {
        self.closed
    }

    /// Decides about an arrival that did not get past the word.
    pub(super) fn decide(&mut self, word: &Word) -> Decision {
        if self.closed {
            return Decision::Refuse(Reason::Draining);
        }
        loop {
            if self.queue.is_empty()
                && let Some(found) = word.take_locked()
            {
                return Decision::Admit(found);
            }
            if self.queue_full() {
                return Decision::Refuse(match self.settings.queue_length {
                    0 => Reason::LimitReached,
                    _ => Reason::QueueFull,
                });
            }
            if word.slow_down_if_full() {
                return Decision::Wait(self.queue.push());
            }
            // A permit was dropped since we looked, which can only be while nobody waits: look again.
        }
    }

    /// Judges a ticket. The waker that comes with the verdict is to be dropped without the lock.
    pub(super) fn look(
        &mut self,
        number: Number,
        enqueued: Instant,
        now: Instant,
        waker: &Waker,
    ) -> (Verdict, Option<Waker>) {
        let deadline = self.deadline(enqueued);
        match self.queue.standing(number) {
            Standing::Waiting if now < deadline => {
                (Verdict::Waiting, self.queue.wake_by(number, waker))
            }
            Standing::Waiting => (Verdict::Left(Reason::QueueTimeout), self.queue.leave(number)),
            // Only a gate that enforces has a timeout; in the other modes all who waited are let in.
            Standing::Called if now > deadline && self.settings.mode == Mode::Enforce => {
                (Verdict::TooLate, self.queue.leave(number))
            }
            Standing::Called => (Verdict::Admitted, self.queue.leave(number)),
            Standing::SentAway => (Verdict::Left(Reason::Draining), None),
        }
    }

    /// Forgets a ticket nobody polls any more; whether a slot was reserved for it, which is now the
    /// caller's. The waker is to be dropped without the lock.
    pub(super) fn leave(&mut self, number: Number) -> (bool, Option<Waker>) {
        let called = self.queue.standing(number) == Standing::Called;
        (called, self.queue.leave(number))
    }

    /// Parks `waker` until there is room, unless there is.
    pub(super) fn room(&mut self, word: &Word, waker: &Waker, calls: &mut Calls) -> Poll<()> {
        // One step, as for who is about to wait in the queue, and for the same reason.
        if self.has_room(word) || !word.slow_down_if_full() {
            return Poll::Ready(());
        }
        if !self.room.iter().any(|known| known.will_wake(waker)) {
            if self.room.len() == MAX_ROOM_WAITERS {
                calls.push(self.room.remove(0));
            }
            self.room.push(waker.clone());
        }
        Poll::Pending
    }

    /// Ends admission. Who has been called keeps the slot.
    pub(super) fn close(&mut self, word: &Word, calls: &mut Calls) {
        self.closed = true;
        word.slow_down();
        calls.extend(self.queue.send_away());
    }

    /// Begins admission again.
    pub(super) fn open(&mut self) {
        self.closed = false;
    }

    /// Makes true again what always holds when the lock is free: no slot is free while somebody waits,
    /// nobody is parked for room there is, and SLOW is set only for a reason. The one place that hands
    /// slots on.
    pub(super) fn settle(&mut self, word: &Word, shadow: &Shadow, calls: &mut Calls) {
        // While anybody waits SLOW is set, so no arrival can take the slot from under the head's nose.
        while !self.queue.is_empty()
            && let Some(found) = word.take_locked()
        {
            shadow.in_flight(found + 1);
            calls.extend(self.queue.call_head());
        }
        if !self.room.is_empty() && self.has_room(word) {
            calls.extend(self.room.drain(..));
        }
        if self.queue.is_empty() && self.room.is_empty() && !self.closed {
            word.speed_up();
        }
    }

    pub(super) fn deadline(&self, enqueued: Instant) -> Instant {
        enqueued + self.settings.queue_timeout.min(FOREVER)
    }

    fn queue_full(&self) -> bool {
        self.queue.len() >= self.settings.queue_length as usize
    }

    /// Whether an arrival would be told neither `limit_reached` nor `queue_full`.
    fn has_room(&self, word: &Word) -> bool {
        self.closed || !self.queue_full() || (self.queue.is_empty() && !word.full())
    }
}

impl Calls {
    pub(super) fn push(&mut self, waker: Waker) {
        match self.first {
            None => self.first = Some(waker),
            Some(_) => self.more.push(waker),
        }
    }

    pub(super) fn extend(&mut self, wakers: impl IntoIterator<Item = Waker>) {
        wakers.into_iter().for_each(|waker| self.push(waker));
    }

    pub(super) fn wake(self) {
        self.first.into_iter().chain(self.more).for_each(Waker::wake);
    }
}
