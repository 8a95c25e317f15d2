//! Time, less what the machine withheld.
//!
//! A virtual machine's processors are at times given to others: nobody in it runs then, and its clocks go
//! on. The kernel counts that as `steal`. A promise in milliseconds is the gateway's, not the hypervisor's,
//! so bounds from above are held against a [`Stopwatch`]'s own time. Bounds from below, "not before", are
//! about the clock: own time is the shorter of the two.

use std::time::{Duration, Instant};

/// Runs from its start.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stopwatch {
    since: Instant,
    /// What had been withheld by then, since the machine was started.
    stolen: Duration,
}

impl Stopwatch {
    pub(crate) fn start() -> Self {
        Self { stolen: stolen(), since: Instant::now() }
    }

    /// By the clock.
    pub(crate) fn elapsed(&self) -> Duration {
        self.since.elapsed()
    }

    /// What others had of the processors since the start, all of them together: one thing after the other
    /// may have waited for each. So of two processors that are half stolen nothing is left.
    pub(crate) fn withheld(&self) -> Duration {
        self.withheld_at(stolen())
    }

    /// When so much has been withheld since the machine was started.
    fn withheld_at(&self, stolen: Duration) -> Duration {
        stolen.saturating_sub(self.stolen)
    }

    /// What was left of the time that passed; for bounds from above.
    pub(crate) fn own(&self) -> Duration {
        left_of(self.elapsed(), self.withheld())
    }

    /// Whether `bound` is over, in own time.
    pub(crate) fn is_past(&self, bound: Duration) -> bool {
        self.own() >= bound
    }
}

/// Not all of it is ever withheld, of all processors together: a tenth is left, or a clock that stands still
/// would keep every bound, and who waits for one would wait for ever.
fn left_of(elapsed: Duration, withheld: Duration) -> Duration {
    elapsed.saturating_sub(withheld).max(elapsed / 10)
}

/// What hypervisors have withheld of all processors, since the machine was started. Where the kernel does
/// not know, nothing.
fn stolen() -> Duration {
    /// The kernel counts in hundredths of a second, whatever its own clock is (`USER_HZ`).
    const TICK: Duration = Duration::from_millis(10);
    let stat = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    ticks(&stat).map_or(Duration::ZERO, |ticks| TICK * ticks)
}

/// The eighth number of the line that is about all processors.
fn ticks(stat: &str) -> Option<u32> {
    let all = stat.lines().find_map(|line| line.strip_prefix("cpu "))?;
    all.split_ascii_whitespace().nth(7)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::{Duration, Stopwatch, left_of};

    #[test]
    fn a_tenth_of_the_time_is_always_left() {
        let seconds = Duration::from_secs;
        assert_eq!(left_of(seconds(10), Duration::ZERO), seconds(10));
        assert_eq!(left_of(seconds(10), seconds(4)), seconds(6));
        // Two processors, each of which was away for half of the time, or for all of it.
        assert_eq!(left_of(seconds(10), seconds(10)), seconds(1));
        assert_eq!(left_of(seconds(10), seconds(20)), seconds(1));
    }

    #[test]
    fn a_bound_is_over_in_own_time_only() {
        // As if all of it had been withheld, for all time to come.
        let second = Duration::from_secs(1);
        let since = std::time::Instant::now() - 20 * second;
        let away = Stopwatch { since, stolen: second };
        let own = left_of(away.elapsed(), away.withheld_at(61 * second));
        assert!(own >= 2 * second && own < 4 * second, "{own:?}");
    }

    #[test]
    fn steal_is_the_eighth_number() {
        let stat = "cpu  7477 0 2320 20498 328 0 89 612 3 4\ncpu0 1 2 3 4 5 6 7 8 9 10\nintr 5\n";
        assert_eq!(super::ticks(stat), Some(612));
        assert_eq!(super::ticks("cpu  1 2 3 4\n"), None);
    }
}
