//! The one word everybody races for: how many are inside, how many may be, and whether somebody has
//! to be asked first.
//!
//! ```text
//!  63    62 ............ 32   31 ............ 0
//! SLOW      limit (31 bits)     in use (32 bits)
//! ```
//!
//! Always true:
//! - `in use` is the number of live permits and granted tickets.
//! - SLOW is set and cleared only under the gate's lock. While it is set, nobody changes the word
//!   without that lock, because the ways that take no lock succeed only on a word without it.
//!
//! Ordering: giving back releases and taking acquires, so that what one holder did is seen by the
//! next. Everything else rests on the order of changes to this single word, which every
//! compare-and-swap sees whole; nothing here needs sequential consistency.

use super::sync::{AtomicU64, Ordering};
use std::num::NonZeroU32;

const SLOW: u64 = 1 << 63;
const LIMIT_SHIFT: u32 = 32;

/// A limit no machine can reach; it needs no case of its own anywhere.
pub(super) const UNLIMITED: u32 = (1 << 31) - 1;

/// How many are inside, how many may be, and whether the lock has to be asked first.
pub(super) struct Word(AtomicU64);

/// One reading of the word.
#[derive(Clone, Copy)]
struct Reading(u64);

impl Reading {
    fn in_use(self) -> u32 {
        self.0 as u32 // the low half, by layout
    }

    fn limit(self) -> u32 {
        ((self.0 & !SLOW) >> LIMIT_SHIFT) as u32
    }

    fn slow(self) -> bool {
        self.0 & SLOW != 0
    }

    fn full(self) -> bool {
        self.in_use() >= self.limit()
    }
}

impl Word {
    pub(super) fn new(limit: Option<NonZeroU32>) -> Self {
        Self(AtomicU64::new(limit_bits(limit)))
    }

    /// Takes a slot without the lock, and tells how many were taken before. `None` when all are, or
    /// when somebody would be passed by.
    pub(super) fn take(&self) -> Option<u32> {
        let free = |word: Reading| !word.slow() && !word.full();
        self.change(|word| free(word).then_some(word.0 + 1)).map(Reading::in_use)
    }

    /// Takes a slot for whoever is next; only under the lock.
    pub(super) fn take_locked(&self) -> Option<u32> {
        self.change(|word| (!word.full()).then_some(word.0 + 1)).map(Reading::in_use)
    }

    /// Gives a slot back without the lock; false when somebody waits for it, and nothing was done.
    #[must_use]
    pub(super) fn give_back(&self) -> bool {
        self.change(|word| (!word.slow()).then(|| word.0 - 1)).is_some()
    }

    /// Gives a slot back; only under the lock, and then it is to be offered to the queue.
    pub(super) fn give_back_locked(&self) {
        let before = Reading(self.0.fetch_sub(1, Ordering::AcqRel));
        debug_assert!(before.in_use() > 0, "a slot was given back twice");
    }

    /// Sends everybody to the lock from now on, unless a slot is free: then false. Only under the lock.
    ///
    /// One step, so that true means: all slots are taken, and stay so until the lock is released. Had we
    /// looked first and set SLOW second, a permit dropped between the two would find SLOW clear and leave
    /// quietly, and somebody would be put to wait beside a free slot.
    #[must_use]
    pub(super) fn slow_down_if_full(&self) -> bool {
        self.change(|word| word.full().then_some(word.0 | SLOW)).is_some()
    }

    /// Sends everybody to the lock from now on. Only under the lock.
    pub(super) fn slow_down(&self) {
        self.0.fetch_or(SLOW, Ordering::AcqRel);
    }

    /// Nobody waits any more: the lock need not be asked. Only under the lock.
    pub(super) fn speed_up(&self) {
        if self.read().slow() {
            self.0.fetch_and(!SLOW, Ordering::AcqRel);
        }
    }

    /// Puts another limit into force. A lower one takes nothing from anybody. Only under the lock.
    pub(super) fn set_limit(&self, limit: Option<NonZeroU32>) {
        let kept = SLOW | u64::from(u32::MAX);
        self.change(|word| Some(word.0 & kept | limit_bits(limit)));
    }

    pub(super) fn in_use(&self) -> u32 {
        self.read().in_use()
    }

    pub(super) fn limit(&self) -> u32 {
        self.read().limit()
    }

    pub(super) fn slow(&self) -> bool {
        self.read().slow()
    }

    /// Whether all slots are taken; exact under the lock while SLOW is set, else a moment old.
    pub(super) fn full(&self) -> bool {
        self.read().full()
    }

    fn read(&self) -> Reading {
        Reading(self.0.load(Ordering::Acquire))
    }

    /// Compare-and-swap until it succeeds or `next` declines; returns the reading that was replaced.
    fn change(&self, next: impl Fn(Reading) -> Option<u64>) -> Option<Reading> {
        let mut seen = self.read();
        loop {
            let wanted = next(seen)?;
            match self.0.compare_exchange_weak(seen.0, wanted, Ordering::AcqRel, Ordering::Acquire)
            {
                Ok(_) => return Some(seen),
                Err(newer) => seen = Reading(newer),
            }
        }
    }
}

fn limit_bits(limit: Option<NonZeroU32>) -> u64 {
    let limit = limit.map_or(UNLIMITED, |limit| limit.get().min(UNLIMITED));
    u64::from(limit) << LIMIT_SHIFT
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limit(n: u32) -> Option<NonZeroU32> {
        NonZeroU32::new(n)
    }

    #[test]
    fn takes_up_to_the_limit_and_no_further() {
        let word = Word::new(limit(2));
        assert_eq!(word.take(), Some(0));
        assert_eq!(word.take(), Some(1));
        assert_eq!(word.take(), None);
        assert!(word.give_back());
        assert_eq!(word.take(), Some(1));
    }

    #[test]
    fn a_slow_word_moves_only_under_the_lock() {
        let word = Word::new(limit(1));
        assert!(!word.slow_down_if_full(), "a slot is free");
        assert_eq!(word.take(), Some(0));
        assert!(word.slow_down_if_full());
        assert!(!word.give_back());
        word.give_back_locked();
        assert_eq!(word.take(), None);
        assert_eq!(word.take_locked(), Some(0));
    }

    #[test]
    fn a_limit_beyond_the_field_is_as_good_as_none() {
        for huge in [None, limit(UNLIMITED), limit(u32::MAX)] {
            let word = Word::new(limit(1));
            assert!(word.take().is_some());
            word.slow_down();
            word.set_limit(huge);
            assert!(word.slow() && !word.full());
            assert_eq!(word.in_use(), 1);
            word.speed_up();
            assert_eq!(word.take(), Some(1));
        }
    }
}
