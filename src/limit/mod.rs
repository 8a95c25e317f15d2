//! Decides how much traffic is let in at once. One [`Gate`] per port; no socket, no runtime and no
//! clock of its own, so that tests, the model checker and a simulator run the very same code.
//!
//! ```text
//!              ┌─ Refuse(reason)
//!  enter(now) ─┼─ Wait(Ticket) ── poll(now) ─┬─ Err(reason)
//!              │                             ▼
//!              └─ Admit(Permit) ◀────────────┘      drop(Permit): the slot goes to the head of the queue
//! ```
//!
//! Always true:
//! - Live permits and reservations never outnumber the limit, except those from before it was lowered
//!   or enforced; nothing is admitted until they have fallen below it.
//! - Nobody is admitted past somebody who waits.
//! - Dropping a [`Permit`] is the only way to give a slot back. A reservation that is not taken up
//!   becomes a permit for an instant, and is dropped.

mod clients;
mod gate;
mod line;
mod permit;
mod queue;
mod shadow;
mod sync;
mod word;

pub use clients::Client;
pub use gate::Gate;
pub use permit::{Permit, Ticket};

use crate::outcome::Reason;
use std::fmt;
use std::num::NonZeroU32;
use std::str::FromStr;
use std::time::Duration;

/// How many candidate limits one port may try at once: each costs an arrival two loads.
pub const MAX_SHADOW_LIMITS: usize = 16;

/// What the gate says to an arrival.
#[must_use = "dropping the answer gives up the slot or the place in the queue"]
#[derive(Debug)]
pub enum Entry {
    /// Come in; the slot is held until the permit is dropped.
    Admit(Permit),
    /// Wait in the queue: poll the ticket.
    Wait(Ticket),
    /// Go away, and why.
    Refuse(Reason),
}

/// Whether the settings are obeyed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mode {
    /// Admit, queue and refuse.
    Enforce,
    /// Admit everybody at once; count what enforcing would have refused.
    Observe,
    /// Admit everybody at once; count only how many are in flight.
    Off,
}

/// The word is none of a [`Mode`]'s.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownMode(String);

/// One port's admission settings, already validated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Whether the rest is obeyed.
    pub mode: Mode,
    /// The most in flight at once; `None`: nothing is limited, and nobody waits.
    pub limit: Option<NonZeroU32>,
    /// The most that may wait; 0: who finds no slot is refused at once.
    pub queue_length: u32,
    /// The longest anybody waits.
    pub queue_timeout: Duration,
    /// The most one client may have active and queued.
    pub per_client_limit: Option<NonZeroU32>,
    /// Limits tried on live traffic while observing; at most [`MAX_SHADOW_LIMITS`].
    pub shadow_limits: Vec<NonZeroU32>,
}

/// One gate at one moment, for people and metrics.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// What is in force.
    pub settings: Settings,
    /// Slots taken: permits, and reservations about to become permits.
    pub active: u32,
    /// How many wait, those with a reservation not counted.
    pub queued: u32,
    /// The most ever active at once.
    pub peak_active: u32,
    /// Each candidate limit, with the arrivals that found at least as many active while observing.
    pub shadow: Vec<(u32, u64)>,
    /// Arrivals admitted while observing that the limit without a queue, or the per-client limit, would
    /// have refused.
    pub would_refuse: u64,
}

impl Mode {
    /// The word used in settings, metrics and logs.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Enforce => "enforce",
            Self::Observe => "observe",
            Self::Off => "off",
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.label())
    }
}

impl FromStr for Mode {
    type Err = UnknownMode;

    fn from_str(word: &str) -> Result<Self, UnknownMode> {
        [Self::Enforce, Self::Observe, Self::Off]
            .into_iter()
            .find(|mode| mode.label() == word)
            .ok_or_else(|| UnknownMode(word.to_owned()))
    }
}

impl fmt::Display for UnknownMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "unknown mode {:?}: use enforce, observe or off", self.0)
    }
}

impl std::error::Error for UnknownMode {}

impl Settings {
    /// The limit that is in force: none unless it is enforced.
    fn enforced_limit(&self) -> Option<NonZeroU32> {
        match self.mode {
            Mode::Enforce => self.limit,
            Mode::Observe | Mode::Off => None,
        }
    }

    /// Nothing limited, nothing observed; tests change what they are about.
    #[cfg(test)]
    fn plain(mode: Mode) -> Self {
        Self {
            mode,
            limit: None,
            queue_length: 0,
            queue_timeout: Duration::from_secs(1),
            per_client_limit: None,
            shadow_limits: Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_mode_is_read_back_from_its_own_word() {
        for mode in [Mode::Enforce, Mode::Observe, Mode::Off] {
            assert_eq!(mode.to_string().parse(), Ok(mode));
        }
    }

    #[test]
    fn an_unknown_mode_is_named_with_what_is_allowed() {
        let error = "on".parse::<Mode>().unwrap_err();
        assert_eq!(error.to_string(), "unknown mode \"on\": use enforce, observe or off");
    }
}
