//! The phases of the process and its drain: one handle to start it, one place that runs it.
//!
//! ```text
//! Starting → Serving → Announcing ──────→ Closing ─────────→ Drained
//!               ↑      not ready, still   listeners closed,  everything ended,
//!               │      accepting          queue served       or was cut at the deadline
//!               └──────────┴── taken back: it was only asked for, ──┘
//!                              and the application has started anew
//! ```
//!
//! Always true: starting a drain twice is starting it once; the drain ends `min(3 s, grace/4)` before
//! the grace it was told, whatever the connections do; what a signal or the pod's deletion has started
//! is never taken back.

mod drain;
mod restart;
mod schedule;
mod signal;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde::Serialize;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub use drain::{Draining, Load, Next, Over, Report, Tally};
pub use restart::Listeners;
pub use schedule::{AfterDrain, Config};
pub use signal::{Raised, Signal};

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

/// Why a drain began; the later in this list, the less there is to be hoped for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// `tidegate drain`, over the control socket: a hook, which also runs when a container is
    /// restarted, or a person.
    Request,
    /// The pod is being deleted.
    Deletion,
    /// SIGTERM or SIGINT.
    Signal,
    /// A worker could not go on.
    Failure,
}

impl Cause {
    fn label(self) -> &'static str {
        match self {
            Self::Request => "request",
            Self::Deletion => "deletion",
            Self::Signal => "signal",
            Self::Failure => "failure",
        }
    }
}

/// The handle everybody shares: read the phase, start the drain, await its end.
#[derive(Clone)]
pub struct Lifecycle {
    inner: Arc<Inner>,
}

struct Inner {
    state: watch::Sender<State>,
    /// Cancelled when the wait is over: a second signal, which means now.
    hurry: CancellationToken,
    /// Raised when the listeners have to close.
    closing: Signal,
    /// Raised when what is still open has to be cut.
    cut: Signal,
    /// How many drains were taken back.
    taken_back: AtomicU64,
    /// How long a drain is waited for.
    begin: Duration,
}

/// Changed as a whole, so that nobody sees a phase without its drain.
#[derive(Debug)]
struct State {
    phase: Phase,
    order: Option<Order>,
    /// Set before the phase is left that comes before a drain.
    draining: Option<Draining>,
    report: Option<Report>,
}

/// That a drain is wanted.
#[derive(Clone, Copy, Debug)]
struct Order {
    /// What wanted it first.
    cause: Cause,
    /// When that was.
    at: Instant,
    /// The gravest of all who have wanted it since.
    gravest: Cause,
    /// When the process is killed, if somebody knows.
    killed: Option<Instant>,
}

/// The longest that somebody who waits for a drain waits for it to begin. All hooks of a pod are started at
/// once, but the one that begins the drain starts a process first, which on a node that has too much to do
/// takes its seconds (1.2 s were seen); whoever gave up before it would end the application under load. A
/// hook that runs for another reason, because its container is restarted, is held up for as long.
const BEGIN: Duration = Duration::from_secs(5);

impl Lifecycle {
    /// A process that has just started, and that is killed `grace` after it was told to end.
    pub fn new(grace: Duration) -> Self {
        let state = State { phase: Phase::Starting, order: None, draining: None, report: None };
        Self {
            inner: Arc::new(Inner {
                state: watch::Sender::new(state),
                hurry: CancellationToken::new(),
                closing: Signal::default(),
                cut: Signal::default(),
                taken_back: AtomicU64::new(0),
                begin: BEGIN.min(grace / 4),
            }),
        }
    }

    /// The phase now.
    pub fn phase(&self) -> Phase {
        self.inner.state.borrow().phase
    }

    /// Every listener is open.
    pub fn serving(&self) {
        self.advance(Phase::Serving);
    }

    /// Whether a load balancer should send new connections here.
    pub fn ready(&self) -> bool {
        let state = self.inner.state.borrow();
        state.phase == Phase::Serving && state.order.is_none()
    }

    /// Start the drain; the second call starts none and says so with `false`, but what it is called for
    /// counts: whatever a signal has asked for too is not taken back.
    pub fn drain(&self, cause: Cause) -> bool {
        self.want(cause, None)
    }

    /// The pod is being deleted, and its processes are killed at `killed`, which counts instead of the
    /// grace of the settings. Starts a drain unless one runs; may be called again with another time.
    pub fn deleted(&self, killed: Instant) -> bool {
        self.want(Cause::Deletion, Some(killed))
    }

    fn want(&self, cause: Cause, killed: Option<Instant>) -> bool {
        let mut first = false;
        self.inner.state.send_modify(|state| {
            first = state.order.is_none();
            let new = Order { cause, at: Instant::now(), gravest: cause, killed };
            let order = state.order.get_or_insert(new);
            order.gravest = order.gravest.max(cause);
            order.killed = killed.or(order.killed);
        });
        first
    }

    /// A second signal: do not wait any longer, cut what is left.
    pub fn hurry(&self) {
        self.inner.hurry.cancel();
    }

    /// Resolves when nobody is to be waited for any more.
    async fn hurried(&self) {
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
        self.until(|state| state.order.is_some()).await;
    }

    /// The report, once the drain is over; `None` if none begins within 5 s, or within a quarter of the
    /// grace where that is less, or if it is taken back.
    pub async fn drained_if_begun(&self) -> Option<Report> {
        tokio::time::timeout(self.inner.begin, self.drain_wanted()).await.ok()?;
        self.until(|state| state.report.is_some() || state.order.is_none()).await;
        self.report()
    }

    /// The report, once a drain is over.
    pub async fn drained(&self) -> Report {
        let mut states = self.inner.state.subscribe();
        let state = states.wait_for(|state| state.report.is_some()).await;
        state.expect("the sender lives in self").report.clone().expect("waited for it")
    }

    /// The report, if the drain is over.
    pub fn report(&self) -> Option<Report> {
        self.inner.state.borrow().report.clone()
    }

    /// The drain, once it has begun.
    pub fn draining(&self) -> Option<Draining> {
        self.inner.state.borrow().draining
    }

    /// How many drains were taken back so far.
    pub fn taken_back(&self) -> u64 {
        self.inner.taken_back.load(Ordering::Relaxed)
    }

    /// All connections are gone and the listeners are open again, or have never been closed: it is as
    /// if no drain had been asked for.
    fn take_back(&self) {
        self.inner.taken_back.fetch_add(1, Ordering::Relaxed);
        self.inner.state.send_modify(|state| {
            let phase = Phase::Serving;
            *state = State { phase, order: None, draining: None, report: None };
        });
    }

    /// What has been asked for, while it is.
    fn order(&self) -> Option<Order> {
        self.inner.state.borrow().order
    }

    async fn until(&self, wanted: impl FnMut(&State) -> bool) {
        let mut states = self.inner.state.subscribe();
        states.wait_for(wanted).await.expect("the sender lives in self");
    }

    fn advance(&self, to: Phase) {
        self.inner.state.send_if_modified(|state| {
            let forwards = state.phase < to;
            if forwards {
                state.phase = to;
            }
            forwards
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_first_cause_counts() {
        let life = Lifecycle::new(Duration::from_secs(30));
        assert!(life.drain(Cause::Signal));
        assert!(!life.drain(Cause::Request));
        let order = life.order().expect("wanted");
        assert_eq!((order.cause, order.gravest), (Cause::Signal, Cause::Signal));
    }

    #[test]
    fn whatever_is_graver_counts_for_what_comes_after() {
        let life = Lifecycle::new(Duration::from_secs(30));
        assert!(life.drain(Cause::Request));
        let killed = Instant::now() + Duration::from_secs(7);
        assert!(!life.deleted(killed));
        assert!(!life.drain(Cause::Request), "a second hook");
        let order = life.order().expect("wanted");
        assert_eq!((order.cause, order.gravest), (Cause::Request, Cause::Deletion));
        assert_eq!(order.killed, Some(killed));
    }
}
