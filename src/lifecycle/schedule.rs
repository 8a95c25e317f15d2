//! When a drain does what: the instants that follow from the delay, the timeout and the grace.

use std::time::{Duration, Instant};

/// How a drain is paced. Durations are measured from the moment the drain starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// How long to go on accepting after readiness has turned false; up to twice that while new
    /// connections still arrive.
    pub drain_delay: Duration,
    /// How long admitted and queued work may take once the listeners are closed. `None`: all that
    /// `grace` leaves.
    pub drain_timeout: Option<Duration>,
    /// How long the process has in all before it is killed.
    pub grace: Duration,
    /// What becomes of a drain that was only asked for.
    pub after_drain: AfterDrain,
}

/// What follows when a drain is over that was asked for, and no signal has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AfterDrain {
    /// The process ends.
    Exit,
    /// It waits for its end, which somebody else decides about; if the application starts anew instead, or
    /// the grace has long been over, it serves again. In a pod: a process that ended by itself would be
    /// restarted.
    Stay,
}

/// What cut connections get to end before the process leaves anyway: a part of the budget.
pub(super) const CUT_GRACE: Duration = Duration::from_millis(500);

/// The instants of one drain.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Schedule {
    pub(super) announce: Instant,
    pub(super) announce_latest: Instant,
    /// How long nothing must arrive before the announcement counts as heard.
    pub(super) quiet: Duration,
    /// When what is left is cut.
    pub(super) deadline: Instant,
    /// When the drain is over, whatever is left.
    pub(super) end: Instant,
}

impl Config {
    /// What has to be left of the grace when the drain ends.
    pub fn reserve(&self) -> Duration {
        Duration::from_secs(3).min(self.grace / 4)
    }

    /// The same with the time that is really left, when somebody knows when the process is killed.
    pub(super) fn until(self, start: Instant, killed: Option<Instant>) -> Self {
        let told = killed.map(|killed| killed.saturating_duration_since(start));
        Self { grace: told.unwrap_or(self.grace), ..self }
    }

    /// The deadline holds whatever happens; when time is short, the announcement shrinks first.
    pub(super) fn schedule(&self, start: Instant) -> Schedule {
        let budget = self.grace - self.reserve();
        let announce = match self.drain_timeout {
            Some(timeout) => self.drain_delay.min(budget.saturating_sub(timeout)),
            None => self.drain_delay.min(budget / 2),
        };
        let latest = (announce * 2).min(budget - budget / 4).max(announce);
        let work = self.drain_timeout.map_or(budget, |timeout| latest + timeout);
        Schedule {
            announce: start + announce,
            announce_latest: start + latest,
            quiet: (announce / 4).max(Duration::from_millis(50)),
            deadline: start + work.min(budget - CUT_GRACE.min(budget / 10)),
            end: start + budget,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn secs(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    fn config(delay: u64, timeout: Option<u64>, grace: u64) -> Config {
        Config {
            drain_delay: secs(delay),
            drain_timeout: timeout.map(secs),
            grace: secs(grace),
            after_drain: AfterDrain::Exit,
        }
    }

    fn schedule(delay: u64, timeout: Option<u64>, grace: u64) -> (Duration, Duration) {
        let start = Instant::now();
        let schedule = config(delay, timeout, grace).schedule(start);
        (schedule.announce - start, schedule.deadline - start)
    }

    #[test]
    fn the_drain_ends_before_the_grace_it_was_told() {
        assert_eq!(schedule(5, None, 30), (secs(5), secs(27) - CUT_GRACE));
        assert_eq!(schedule(0, None, 8), (secs(0), secs(6) - CUT_GRACE));
    }

    #[test]
    fn when_time_is_short_the_announcement_shrinks_first() {
        assert_eq!(schedule(5, Some(25), 30), (secs(2), secs(27) - CUT_GRACE));
        assert_eq!(schedule(60, Some(60), 30), (secs(0), secs(27) - CUT_GRACE));
        assert_eq!(schedule(5, None, 8).0, secs(3));
    }

    #[test]
    fn while_connections_arrive_the_announcement_is_at_most_twice_as_long() {
        let latest = |delay, timeout, grace| {
            let start = Instant::now();
            let schedule = config(delay, timeout, grace).schedule(start);
            (schedule.announce_latest - start, schedule.deadline - start)
        };
        assert_eq!(latest(5, None, 30).0, secs(10));
        assert_eq!(latest(0, None, 30).0, secs(0));
        assert_eq!(latest(5, Some(10), 60), (secs(10), secs(20)), "the work has its time after it");
        // A quarter of what there is stays for the work, and what was shrunk is doubled.
        assert_eq!(latest(5, None, 8).0, Duration::from_millis(4_500));
        assert_eq!(latest(5, Some(25), 30).0, secs(4));
    }

    #[test]
    fn a_deletion_that_was_seen_knows_better_than_the_settings_when_the_end_is() {
        let start = Instant::now();
        for grace in [8, 120] {
            let told = config(5, None, 30).until(start, Some(start + secs(grace)));
            assert_eq!(told.schedule(start), config(5, None, grace).schedule(start));
        }
        let late = config(5, None, 30).until(start, Some(start - secs(1)));
        assert_eq!(late.schedule(start).end, start, "now");
        assert_eq!(config(5, None, 30).until(start, None), config(5, None, 30));
    }
}
