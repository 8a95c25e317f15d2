//! Running one drain through its phases, and what comes after it.

use std::time::{Duration, Instant};

use serde::Serialize;

use super::restart::Listeners;
use super::schedule::{AfterDrain, CUT_GRACE, Config, Schedule};
use super::{Cause, Lifecycle, Order, Phase};
use crate::telemetry::control;

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
    /// Where the application listens now; `None`: the kernel does not tell.
    fn listeners(&self) -> Option<Listeners> {
        None
    }
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

/// What is to be done after a drain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// The process ends.
    Leave,
    /// It opens its listeners again.
    Serve,
}

/// How often a running drain looks whether anything is left. Only a draining process polls.
const LOOK: Duration = Duration::from_millis(5);

/// How often it looks for the application: the kernel's table is read for it.
const LOOK_FOR_APPLICATION: Duration = Duration::from_millis(50);

/// How long a process that was drained on request goes on answering, unless a signal ends it: others
/// may ask for the report too, every container's hook, a person.
const LINGER: Duration = Duration::from_secs(2);

/// The kubelet sends its last signal when the grace is over. Who has heard of none so long after that is
/// not being ended.
const FORGOTTEN: Duration = Duration::from_secs(5);

/// What a drain that is announced sees of the application.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Seen {
    /// It is as it was.
    Nothing,
    /// Nobody is left to be called, or nobody wants to wait.
    NoReason,
    /// It has started anew, and the drain need not go on.
    Restart,
}

/// A drain that has ended.
pub struct Over<'a> {
    /// What it did.
    pub report: Report,
    run: Run<'a>,
}

/// One drain on its way.
struct Run<'a> {
    life: &'a Lifecycle,
    load: &'a dyn Load,
    config: Config,
    order: Order,
    /// What there was when it began.
    before: Tally,
    /// Where the application listened when it began, if the kernel told.
    listeners: Option<Listeners>,
}

impl Lifecycle {
    /// Wait until a drain is wanted, run it through its phases, and report.
    pub async fn run_drain(&self, config: impl Fn() -> Config, load: &dyn Load) -> Report {
        self.next_drain(config, load).await.report
    }

    /// The same, for those who care for what comes after it. A drain that is taken back while it is only
    /// announced has no report: the next one is waited for.
    pub async fn next_drain<'a>(
        &'a self,
        config: impl Fn() -> Config,
        load: &'a dyn Load,
    ) -> Over<'a> {
        loop {
            self.drain_wanted().await;
            let Some(order) = self.order() else { continue };
            // First of all: the report is about whatever comes from now on.
            let before = load.tally();
            let (config, listeners) = (config(), load.listeners());
            let run = Run { life: self, load, config, order, before, listeners };
            if let Some(report) = run.phases().await {
                return Over { report, run };
            }
        }
    }

    /// After a drain that ended in [`Next::Serve`]: the listeners may be opened again. To be followed by
    /// [`Self::served_again`].
    pub fn reopen(&self) {
        self.inner.closing.lower();
        self.inner.cut.lower();
    }

    /// The listeners are open again.
    pub fn served_again(&self) {
        self.take_back();
    }
}

impl Over<'_> {
    /// What is to be done now, once that is known.
    pub async fn next(&self) -> Next {
        if self.run.config.after_drain == AfterDrain::Exit {
            tokio::select! {
                () = tokio::time::sleep(LINGER) => {}
                () = self.run.life.until(|state| gravest(state.order) >= Cause::Signal) => {}
                () = self.run.life.hurried() => {}
            }
            return Next::Leave;
        }
        let forgotten = self.run.order.at + self.run.config.grace + FORGOTTEN;
        while gravest(self.run.life.order()) < Cause::Signal
            && !self.run.life.inner.hurry.is_cancelled()
        {
            let now = self.run.load.listeners();
            let overdue = Instant::now() >= forgotten && !are_gone(now.as_ref());
            if self.run.may_be_taken_back() && (overdue || self.run.is_replaced(now.as_ref())) {
                // Whoever could not be cut is in the way of those who come.
                let clean = self.run.load.tally().is_empty();
                return if clean { Next::Serve } else { Next::Leave };
            }
            self.run.pause(LOOK_FOR_APPLICATION).await;
        }
        Next::Leave
    }
}

impl Run<'_> {
    /// `None`: taken back.
    async fn phases(&self) -> Option<Report> {
        let (life, load, before) = (self.life, self.load, self.before);
        let Order { cause, at: started, .. } = self.order;
        let Schedule { announce: closes, deadline: cuts, .. } = self.schedule();
        let draining = Draining { cause, started, before, closes, cuts };
        life.inner.state.send_modify(|state| state.draining = Some(draining));
        let span = control::Drain::new(cause.label(), before.active, before.queued);

        life.advance(Phase::Announcing);
        span.phase("announcing", before.open);
        if !self.announce().await {
            span.taken_back();
            life.take_back();
            return None;
        }

        life.advance(Phase::Closing);
        span.phase("closing", load.tally().open);
        life.inner.closing.raise();
        self.wait_until_empty(|schedule| schedule.deadline, true).await;

        let left = load.tally().open;
        if left > 0 {
            span.phase("cutting", left);
        }
        load.close_gates();
        life.inner.cut.raise();
        let latest = Instant::now() + CUT_GRACE;
        self.wait_until_empty(|schedule| schedule.end.min(latest), false).await;

        let after = load.tally();
        let report = Report {
            cause,
            in_flight_at_start: before.active,
            queued_at_start: before.queued,
            finished: after.finished - before.finished,
            cut: after.cut - before.cut + after.open,
            late_arrivals: after.accepted - before.accepted,
            refused: after.refused - before.refused,
            seconds: started.elapsed().as_secs_f64(),
        };
        span.ended(report.finished, report.cut, report.refused);
        life.inner.state.send_modify(|state| {
            state.phase = Phase::Drained;
            state.report = Some(report.clone());
        });
        Some(report)
    }

    /// Go on accepting until the news has had time to spread: `announce` long, and up to twice that while
    /// connections still arrive; no longer if there is no application any more. Whether to go on.
    async fn announce(&self) -> bool {
        let mut arrivals = self.load.tally().accepted;
        let mut heard = self.watch_until(|schedule| schedule.announce).await;
        while heard == Seen::Nothing && Instant::now() < self.schedule().announce_latest {
            let seen = self.load.tally().accepted;
            if seen == arrivals {
                break;
            }
            arrivals = seen;
            let quiet = Instant::now() + self.schedule().quiet;
            heard = self.watch_until(|schedule| quiet.min(schedule.announce_latest)).await;
        }
        heard != Seen::Restart
    }

    /// Wait until then, which may change meanwhile, or until there is no reason to.
    async fn watch_until(&self, then: impl Fn(&Schedule) -> Instant) -> Seen {
        loop {
            let now = self.load.listeners();
            if self.may_be_taken_back() && self.is_replaced(now.as_ref()) {
                return Seen::Restart;
            }
            if are_gone(now.as_ref()) || self.life.inner.hurry.is_cancelled() {
                return Seen::NoReason;
            }
            let left = then(&self.schedule()).saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Seen::Nothing;
            }
            self.pause(left.min(LOOK_FOR_APPLICATION)).await;
        }
    }

    async fn wait_until_empty(&self, deadline: impl Fn(&Schedule) -> Instant, hurried: bool) {
        // An accept loop that has ended has listed what it accepted: with none left, an empty list
        // stays empty.
        while !self.load.tally().is_empty() && Instant::now() < deadline(&self.schedule()) {
            if hurried && self.life.inner.hurry.is_cancelled() {
                return;
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Nothing but a hook or a person wants it, and nobody ends the process.
    fn may_be_taken_back(&self) -> bool {
        let only_asked = gravest(self.life.order()) == Cause::Request;
        self.config.after_drain == AfterDrain::Stay && only_asked
    }

    /// Whether the application is another one than when it began. What was not seen is no reason.
    fn is_replaced(&self, now: Option<&Listeners>) -> bool {
        now.zip(self.listeners.as_ref()).is_some_and(|(now, before)| now.replace(before))
    }

    /// With what is known now of when the process is killed.
    fn schedule(&self) -> Schedule {
        let killed = self.life.order().and_then(|order| order.killed);
        let schedule = self.config.clone().until(self.order.at, killed).schedule(self.order.at);
        self.life.inner.state.send_if_modified(|state| {
            if let Some(draining) = &mut state.draining {
                (draining.closes, draining.cuts) = (schedule.announce, schedule.deadline);
            }
            false
        });
        schedule
    }

    async fn pause(&self, duration: Duration) {
        tokio::select! {
            () = tokio::time::sleep(duration) => {}
            () = self.life.hurried() => {}
        }
    }
}

fn are_gone(application: Option<&Listeners>) -> bool {
    application.is_some_and(Listeners::are_gone)
}

fn gravest(order: Option<Order>) -> Cause {
    order.map_or(Cause::Request, |order| order.gravest)
}
