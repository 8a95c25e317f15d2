//! Which requests are recorded. Decided before anything is made, from a few atomics and lots drawn
//! without a lock: who is not recorded costs nothing else.
//!
//! Always true: no more than `most` spans are asked for in a second, whoever asks and however; only one
//! refusal a second and reason goes beyond.

use std::cell::Cell;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Instant;

use opentelemetry::{SpanId, TraceId};

use super::Context;
use crate::outcome::Reason;

/// How requests are chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sampling {
    /// Of those that begin a trace: this many of 2^63.
    pub share: u64,
    /// Whether a caller that says whether it records is followed.
    pub parent_based: bool,
    /// Spans a second.
    pub most: u32,
}

/// The decision, for all threads.
pub(super) struct Sampler {
    share: AtomicU64,
    parent_based: bool,
    most: AtomicU32,
    /// The second, and the spans asked for in it: high and low half.
    window: AtomicU64,
    /// By reason, the second after the one in which a refusal was last recorded for its own sake.
    refusals: [AtomicU32; Reason::ALL.len()],
    /// Requests that would have been recorded, had they not been too many.
    capped: AtomicU64,
    started: Instant,
}

impl Sampling {
    /// A share as a number from 0 to 1, of 2^63.
    pub fn share(ratio: f64) -> u64 {
        (ratio.clamp(0.0, 1.0) * (1u64 << 63) as f64) as u64
    }
}

impl Sampler {
    pub(super) fn new(sampling: Sampling) -> Self {
        Self {
            share: AtomicU64::new(sampling.share),
            parent_based: sampling.parent_based,
            most: AtomicU32::new(sampling.most),
            window: AtomicU64::new(0),
            refusals: Default::default(),
            capped: AtomicU64::new(0),
            started: Instant::now(),
        }
    }

    pub(super) fn apply(&self, sampling: Sampling) {
        self.share.store(sampling.share, Ordering::Relaxed);
        self.most.store(sampling.most, Ordering::Relaxed);
    }

    pub(super) fn capped(&self) -> u64 {
        self.capped.load(Ordering::Relaxed)
    }

    /// The trace in which this is recorded with so many spans, if it is.
    pub(super) fn choose(
        &self,
        caller: Option<Context>,
        spans: u32,
        now: Instant,
    ) -> Option<TraceId> {
        let wanted = match caller {
            Some(caller) if self.parent_based => caller.is_sampled().then_some(caller.trace),
            Some(caller) => self.draws(low(caller.trace)).then_some(caller.trace),
            None => {
                let lot = random();
                // Others who sample by the id come to the same conclusion.
                self.draws(lot).then(|| new_trace(lot))
            }
        }?;
        if self.has_room(spans, now) {
            return Some(wanted);
        }
        self.capped.fetch_add(1, Ordering::Relaxed);
        None
    }

    /// The trace in which a refusal is recorded for its own sake: the first of its reason in a second.
    pub(super) fn choose_refusal(
        &self,
        caller: Option<Context>,
        reason: Reason,
        now: Instant,
    ) -> Option<TraceId> {
        let next = self.second(now).saturating_add(1);
        let last = &self.refusals[reason as usize];
        let seen = last.load(Ordering::Relaxed);
        let won = seen < next
            && last.compare_exchange(seen, next, Ordering::Relaxed, Ordering::Relaxed).is_ok();
        won.then(|| caller.map_or_else(|| new_trace(random()), |caller| caller.trace))
    }

    fn draws(&self, lot: u64) -> bool {
        lot >> 1 < self.share.load(Ordering::Relaxed)
    }

    fn has_room(&self, spans: u32, now: Instant) -> bool {
        let (second, most) = (self.second(now), self.most.load(Ordering::Relaxed));
        let take = |window: u64| {
            let (of, used) = ((window >> 32) as u32, window as u32);
            // Another thread may be in the next second already.
            let (of, used) = if of < second { (second, 0) } else { (of, used) };
            let used = used.checked_add(spans).filter(|used| *used <= most)?;
            Some(u64::from(of) << 32 | u64::from(used))
        };
        self.window.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok()
    }

    /// From 1, so that a window of zeros is in the past.
    fn second(&self, now: Instant) -> u32 {
        let seconds = now.saturating_duration_since(self.started).as_secs();
        u32::try_from(seconds).unwrap_or(u32::MAX - 1).saturating_add(1)
    }
}

fn low(trace: TraceId) -> u64 {
    let bytes = trace.to_bytes();
    u64::from_be_bytes(std::array::from_fn(|at| bytes[8 + at]))
}

fn new_trace(low: u64) -> TraceId {
    // Never all zeros, which is no id.
    TraceId::from(u128::from(random().max(1)) << 64 | u128::from(low))
}

/// A span's id.
pub(super) fn new_span() -> SpanId {
    SpanId::from(random().max(1))
}

/// xoroshiro128++ (Blackman and Vigna, 2019), one per thread, begun where nobody else's is: spans need
/// ids that differ, not secrets.
fn random() -> u64 {
    thread_local! {
        static STATE: Cell<[u64; 2]> = Cell::new([0, 1].map(|n| RandomState::new().hash_one(n)));
    }
    STATE.with(|state| {
        let [s0, mut s1] = state.get();
        let result = s0.wrapping_add(s1).rotate_left(17).wrapping_add(s0);
        s1 ^= s0;
        state.set([s0.rotate_left(49) ^ s1 ^ s1 << 21, s1.rotate_left(28)]);
        result
    })
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::time::Duration;

    use super::*;

    fn sampler(ratio: f64, parent_based: bool, most: u32) -> Sampler {
        Sampler::new(Sampling { share: Sampling::share(ratio), parent_based, most })
    }

    fn caller(sampled: bool) -> Context {
        let flags = if sampled { "01" } else { "00" };
        let text = format!("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-{flags}");
        Context::parse(text.as_bytes()).expect("well formed")
    }

    #[test]
    fn a_ratio_is_kept_and_its_ends_are_exact() {
        let chosen = |ratio| {
            let sampler = sampler(ratio, true, u32::MAX);
            (0..100_000).filter(|_| sampler.choose(None, 1, Instant::now()).is_some()).count()
        };
        assert_eq!((chosen(0.0), chosen(1.0)), (0, 100_000));
        let some = chosen(0.01);
        assert!((800..1200).contains(&some), "{some} of 100000 at 0.01");
    }

    #[test]
    fn a_caller_is_followed_or_judged_by_its_id() {
        let now = Instant::now();
        let follows = sampler(0.0, true, 9);
        assert_eq!(follows.choose(Some(caller(true)), 1, now), Some(caller(true).trace));
        assert_eq!(sampler(1.0, true, 9).choose(Some(caller(false)), 1, now), None);
        assert_eq!(sampler(0.0, false, 9).choose(Some(caller(true)), 1, now), None);
        // Its low half is 0xa3ce929d0e0e4736: above 0.5, below 0.7 of all.
        assert!(sampler(0.7, false, 9).choose(Some(caller(false)), 1, now).is_some());
        assert!(sampler(0.5, false, 9).choose(Some(caller(false)), 1, now).is_none());
    }

    /// A28: nobody raises it above the cap.
    #[test]
    fn the_cap_holds_for_those_who_insist_too() {
        let sampler = sampler(1.0, true, 10);
        let start = sampler.started;
        let asked = |at: Instant| {
            (0..100).filter(|_| sampler.choose(Some(caller(true)), 3, at).is_some()).count()
        };
        assert_eq!(asked(start), 3, "nine spans of ten");
        assert_eq!(asked(start + Duration::from_millis(999)), 0);
        assert_eq!(asked(start + Duration::from_secs(1)), 3);
        assert_eq!(asked(start), 0, "a thread that is late");
        assert_eq!(sampler.capped(), 394);
    }

    #[test]
    fn one_refusal_a_second_and_reason() {
        let sampler = sampler(0.0, true, 0);
        let start = sampler.started;
        let refusals = |reason, at| {
            (0..100).filter(|_| sampler.choose_refusal(None, reason, at).is_some()).count()
        };
        for second in 0..3 {
            let at = start + Duration::from_secs(second);
            assert_eq!(refusals(Reason::QueueFull, at), 1);
            assert_eq!(refusals(Reason::Draining, at), 1);
        }
        let caller = caller(false);
        let later = start + Duration::from_secs(9);
        let chosen = sampler.choose_refusal(Some(caller), Reason::QueueFull, later);
        assert_eq!(chosen, Some(caller.trace));
    }

    #[test]
    fn ids_differ_between_threads_and_are_valid() {
        let ids = || (0..10_000).map(|_| (new_trace(random()), new_span())).collect::<Vec<_>>();
        let other = std::thread::spawn(ids).join().expect("no panic");
        let all: Vec<_> = ids().into_iter().chain(other).collect();
        let distinct: HashSet<_> = all.iter().collect();
        assert_eq!(distinct.len(), 20_000);
        assert!(all.iter().all(|(t, s)| *t != TraceId::INVALID && *s != SpanId::INVALID));
    }
}
