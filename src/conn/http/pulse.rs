//! Pulse: whether anything moves of an exchange, for `idle-timeout`. There is one only where there is such a
//! timeout; who looks after the connection looks at it.
//!
//! Always true: who waits for a slot is not watched, the queue has a timeout of its own; what has stopped never
//! moves again, and its slot says so whatever else becomes of it.

use std::cell::Cell;
use std::time::{Duration, Instant};

/// What is known of one exchange.
#[derive(Default)]
pub struct Pulse {
    /// When something moved last; `None` before it has a slot, and when it is over.
    moved: Cell<Option<Instant>>,
    /// Bytes of its answer that the client had still to take when that was last looked at.
    left: Cell<usize>,
    /// Its answer has begun.
    answering: Cell<bool>,
    stopped: Cell<bool>,
}

impl Pulse {
    /// It has got its slot.
    pub fn begin(&self, now: Instant) {
        self.moved.set(Some(now));
    }

    /// Something has moved.
    pub fn beat(&self) {
        if self.moved.get().is_some() {
            self.moved.set(Some(Instant::now()));
        }
    }

    /// Its answer has begun.
    pub fn answers(&self) {
        self.answering.set(true);
        self.beat();
    }

    /// It is over, or somebody else's affair.
    pub fn end(&self) {
        self.moved.set(None);
    }

    /// Since when nothing has moved.
    pub fn since(&self) -> Option<Instant> {
        self.moved.get()
    }

    /// Nothing has moved for too long. Whether its answer had begun: then that can only be broken off.
    pub fn stop(&self) -> bool {
        self.stopped.set(true);
        self.end();
        self.answering.get()
    }

    /// Whether nothing has moved for too long.
    pub fn has_stopped(&self) -> bool {
        self.stopped.get()
    }

    /// When nothing will have moved for `timeout`, for one of many on a connection. `left`: bytes of its answer
    /// that its client has yet to take. One that waits for its slot is to be looked at again by then.
    pub fn due(&self, now: Instant, timeout: Duration, left: usize) -> Instant {
        if self.left.replace(left) > left {
            self.beat();
        }
        self.since().unwrap_or(now) + timeout
    }
}
