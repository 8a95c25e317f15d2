//! The phases of the process and its drain: one handle to start it, one place that runs it.
//!
//! ```text
//! Starting → Serving → Announcing ──────→ Closing ─────────→ Drained
//!                      not ready, still   listeners closed,  everything ended,
//!                      accepting          queue served       or was cut at the deadline
//! ```
//!
//! Always true: phases only move forwards; starting a drain twice is starting it once; the drain
//! ends `min(3 s, grace/4)` before the grace it was told, whatever the connections do.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use serde::Serialize;
use tokio::sync::watch;
use tokio_util::sync::{
    CancellationToken, WaitForCancellationFuture, WaitForCancellationFutureOwned,
};

use crate::telemetry::control;

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
}

/// Where the process is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Not all listeners are open yet.
    Starting,
    /// Open for business.
    Serving,
    /// Draining: not ready any more, still accepting until the news has spread.
    Announcing,
    /// Draining: the listeners are closed, what was admitted or queued goes on.
    Closing,
    /// Nothing is left.
    Drained,
}

/// Why a drain began.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// SIGTERM or SIGINT.
    Signal,
    /// `tidegate drain`, over the control socket.
    Request,
    /// A worker could not go on.
    Failure,
}

impl Cause {
    fn label(self) -> &'static str {
        match self {
            Self::Signal => "signal",
            Self::Request => "request",
            Self::Failure => "failure",
        }
    }
}

/// What the data plane carries, as the drain needs to know it. Counters only grow.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    /// Connections that hold a slot now.
    pub active: u64,
    /// Connections that wait for a slot now.
    pub queued: u64,
    /// Connections that are open now, in whatever stage.
    pub open: u64,
    /// Listeners that may still hand out connections now: the last of a backlog is accepted after
    /// the listeners have been told to close.
    pub accepting: u64,
    /// Connections accepted so far.
    pub accepted: u64,
    /// Connections carried to the application that ended without being cut, so far.
    pub finished: u64,
    /// Connections cut at the end of a drain, so far.
    pub cut: u64,
    /// Connections refused so far.
    pub refused: u64,
}

impl Tally {
    /// Whether nothing is left, and nothing can come.
    fn is_empty(&self) -> bool {
        self.open == 0 && self.accepting == 0
    }
}

/// The data plane, as the drain sees it.
pub trait Load: Send + Sync {
    /// What it carries now.
    fn tally(&self) -> Tally;
    /// Refuse whatever still waits, and whatever still comes.
    fn close_gates(&self);
}

/// What a drain did, for the log, the status and `tidegate drain`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// What started it.
    pub cause: Cause,
    /// Connections that held a slot when it started.
    pub in_flight_at_start: u64,
    /// Connections that waited for a slot when it started.
    pub queued_at_start: u64,
    /// Connections that were carried to their end during the drain.
    pub finished: u64,
    /// Connections still open at the deadline, and cut.
    pub cut: u64,
    /// Connections that arrived after the drain had started.
    pub late_arrivals: u64,
    /// Connections refused during the drain.
    pub refused: u64,
    /// How long it took.
    pub seconds: f64,
}

/// A drain that has begun, for those who watch it.
#[derive(Clone, Copy, Debug)]
pub struct Draining {
    /// What started it.
    pub cause: Cause,
    /// When.
    pub started: Instant,
    /// What there was when it started.
    pub before: Tally,
    /// When the listeners close, unless connections still arrive then.
    pub closes: Instant,
    /// When what is left is cut.
    pub cuts: Instant,
}

/// The handle everybody shares: read the phase, start the drain, await its end.
#[derive(Clone)]
pub struct Lifecycle {
    inner: Arc<Inner>,
}

struct Inner {
    phase: watch::Sender<Phase>,
    /// Cancelled when somebody wants the drain to start; the first cause wins.
    wanted: CancellationToken,
    cause: Mutex<Option<(Cause, Instant)>>,
    /// Cancelled when the wait is over: a second signal, which means now.
    hurry: CancellationToken,
    /// Raised when the listeners have to close.
    closing: Signal,
    /// Raised when what is still open has to be cut.
    cut: Signal,
    /// Set before the phase is left that comes before a drain.
    draining: OnceLock<Draining>,
    report: watch::Sender<Option<Report>>,
}

/// Something that happens once in the life of the process, and that every connection has to notice.
#[derive(Clone, Default)]
pub struct Signal {
    /// Set before the token is cancelled: looking costs a load.
    raised: Arc<AtomicBool>,
    token: CancellationToken,
}

/// Resolves when a [`Signal`] is raised; polled again by the same task, it costs a load.
pub struct Raised {
    raised: Arc<AtomicBool>,
    cancelled: Pin<Box<WaitForCancellationFutureOwned>>,
    /// Who is woken.
    waker: Option<Waker>,
}

impl Signal {
    /// Let everybody know.
    pub fn raise(&self) {
        self.raised.store(true, Ordering::Release);
        self.token.cancel();
    }

    /// Whether it has happened.
    pub fn is_raised(&self) -> bool {
        self.raised.load(Ordering::Acquire)
    }

    /// Resolves when it has happened.
    pub fn raised(&self) -> WaitForCancellationFuture<'_> {
        self.token.cancelled()
    }

    /// The same, for those who are polled for many other reasons.
    pub fn watch(&self) -> Raised {
        let cancelled = Box::pin(self.token.clone().cancelled_owned());
        Raised { raised: self.raised.clone(), cancelled, waker: None }
    }

    /// The same as a token.
    pub fn token(&self) -> &CancellationToken {
        &self.token
    }
}

impl Future for Raised {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if self.raised.load(Ordering::Acquire) {
            return Poll::Ready(());
        }
        // The flag is set before anybody is woken: who is woken for it, sees it above.
        if self.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            return Poll::Pending;
        }
        self.waker = Some(cx.waker().clone());
        self.cancelled.as_mut().poll(cx)
    }
}

/// How long somebody who waits for a drain waits for it to begin: a hook that runs for another
/// reason (a restarted container) must not hold that up.
const BEGIN: Duration = Duration::from_secs(1);

/// How often a running drain looks whether anything is left. Only a draining process polls.
const LOOK: Duration = Duration::from_millis(5);

/// What cut connections get to end before the process leaves anyway: a part of the budget.
const CUT_GRACE: Duration = Duration::from_millis(500);

impl Default for Lifecycle {
    fn default() -> Self {
        Self::new()
    }
}

impl Lifecycle {
    /// A process that has just started.
    pub fn new() -> Self {
        Self {
            inner: Arc::new(Inner {
                phase: watch::Sender::new(Phase::Starting),
                wanted: CancellationToken::new(),
                cause: Mutex::new(None),
                hurry: CancellationToken::new(),
                closing: Signal::default(),
                cut: Signal::default(),
                draining: OnceLock::new(),
                report: watch::Sender::new(None),
            }),
        }
    }

    /// The phase now.
    pub fn phase(&self) -> Phase {
        *self.inner.phase.borrow()
    }

    /// Every listener is open.
    pub fn serving(&self) {
        self.advance(Phase::Serving);
    }

    /// Whether a load balancer should send new connections here.
    pub fn ready(&self) -> bool {
        self.phase() == Phase::Serving
    }

    /// Start the drain; the second call changes nothing and says so with `false`.
    pub fn drain(&self, cause: Cause) -> bool {
        let mut first = self.inner.cause.lock().unwrap_or_else(PoisonError::into_inner);
        if first.is_some() {
            return false;
        }
        *first = Some((cause, Instant::now()));
        self.inner.wanted.cancel();
        true
    }

    /// A second signal: do not wait any longer, cut what is left.
    pub fn hurry(&self) {
        self.inner.hurry.cancel();
    }

    /// Resolves when nobody is to be waited for any more.
    pub async fn hurried(&self) {
        self.inner.hurry.cancelled().await;
    }

    /// Raised when the listeners have to close.
    pub fn closing(&self) -> Signal {
        self.inner.closing.clone()
    }

    /// Raised when every connection that is still open has to be cut.
    pub fn cut(&self) -> Signal {
        self.inner.cut.clone()
    }

    /// Resolves as soon as a drain has been asked for.
    pub async fn drain_wanted(&self) {
        self.inner.wanted.cancelled().await;
    }

    /// The report, once the drain is over; `None` if none begins within [`BEGIN`].
    pub async fn drained_if_begun(&self) -> Option<Report> {
        tokio::time::timeout(BEGIN, self.drain_wanted()).await.ok()?;
        Some(self.drained().await)
    }

    /// The report, once the drain is over.
    pub async fn drained(&self) -> Report {
        let mut reports = self.inner.report.subscribe();
        let report = reports.wait_for(Option::is_some).await.expect("the sender lives in self");
        report.clone().expect("waited for Some")
    }

    /// The report, if the drain is over.
    pub fn report(&self) -> Option<Report> {
        self.inner.report.borrow().clone()
    }

    /// The drain, once it has begun.
    pub fn draining(&self) -> Option<Draining> {
        self.inner.draining.get().copied()
    }

    /// Wait until a drain is wanted, run it through its phases, and report.
    pub async fn run_drain(&self, config: impl Fn() -> Config, load: &dyn Load) -> Report {
        self.drain_wanted().await;
        let (cause, start) = self
            .inner
            .cause
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .expect("a wanted drain has a cause");
        let before = load.tally();
        let schedule = config().schedule(start);
        let (closes, cuts) = (schedule.announce, schedule.deadline);
        // Nobody else sets it: a process drains once.
        let _ = self.inner.draining.set(Draining { cause, started: start, before, closes, cuts });
        let span = control::Drain::new(cause.label(), before.active, before.queued);

        self.advance(Phase::Announcing);
        span.phase("announcing", before.open);
        self.announce(&schedule, load).await;

        self.advance(Phase::Closing);
        span.phase("closing", load.tally().open);
        self.inner.closing.raise();
        self.wait_until_empty(schedule.deadline, load, true).await;

        let left = load.tally().open;
        if left > 0 {
            span.phase("cutting", left);
        }
        load.close_gates();
        self.inner.cut.raise();
        let end = schedule.end.min(Instant::now() + CUT_GRACE);
        self.wait_until_empty(end, load, false).await;

        let after = load.tally();
        let report = Report {
            cause,
            in_flight_at_start: before.active,
            queued_at_start: before.queued,
            finished: after.finished - before.finished,
            cut: after.cut - before.cut + after.open,
            late_arrivals: after.accepted - before.accepted,
            refused: after.refused - before.refused,
            seconds: start.elapsed().as_secs_f64(),
        };
        span.ended(report.finished, report.cut, report.refused);
        self.advance(Phase::Drained);
        self.inner.report.send_replace(Some(report.clone()));
        report
    }

    /// Go on accepting until the news has had time to spread: `announce` long, and up to twice
    /// that while connections still arrive.
    async fn announce(&self, schedule: &Schedule, load: &dyn Load) {
        let mut arrivals = load.tally().accepted;
        self.pause(schedule.announce.saturating_duration_since(Instant::now())).await;
        while Instant::now() < schedule.announce_latest && !self.inner.hurry.is_cancelled() {
            let seen = load.tally().accepted;
            if seen == arrivals {
                return;
            }
            arrivals = seen;
            let left = schedule.announce_latest.saturating_duration_since(Instant::now());
            self.pause(schedule.quiet.min(left)).await;
        }
    }

    async fn wait_until_empty(&self, deadline: Instant, load: &dyn Load, hurried: bool) {
        // An accept loop that has ended has listed what it accepted: with none left, an empty list
        // stays empty.
        while !load.tally().is_empty() && Instant::now() < deadline {
            if hurried && self.inner.hurry.is_cancelled() {
                return;
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    async fn pause(&self, duration: Duration) {
        tokio::select! {
            () = tokio::time::sleep(duration) => {}
            () = self.inner.hurry.cancelled() => {}
        }
    }

    fn advance(&self, to: Phase) {
        self.inner.phase.send_if_modified(|phase| {
            let forwards = *phase < to;
            if forwards {
                *phase = to;
            }
            forwards
        });
    }
}

/// The instants of one drain.
#[derive(Debug, PartialEq, Eq)]
struct Schedule {
    announce: Instant,
    announce_latest: Instant,
    /// How long nothing must arrive before the announcement counts as heard.
    quiet: Duration,
    /// When what is left is cut.
    deadline: Instant,
    /// When the drain is over, whatever is left.
    end: Instant,
}

impl Config {
    /// What has to be left of the grace when the drain ends.
    pub fn reserve(&self) -> Duration {
        Duration::from_secs(3).min(self.grace / 4)
    }

    /// The deadline holds whatever happens; when time is short, the announcement shrinks first.
    fn schedule(&self, start: Instant) -> Schedule {
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

    fn schedule(delay: u64, timeout: Option<u64>, grace: u64) -> (Duration, Duration) {
        let start = Instant::now();
        let config = Config {
            drain_delay: secs(delay),
            drain_timeout: timeout.map(secs),
            grace: secs(grace),
        };
        let schedule = config.schedule(start);
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
    fn only_the_first_cause_counts() {
        let life = Lifecycle::new();
        assert!(life.drain(Cause::Signal));
        assert!(!life.drain(Cause::Request));
    }
}
