//! What the demo comes to: a table, a sentence for each act, and whether every promise was kept. All
//! of it is computed from what was counted.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::lifecycle::Report;

use super::application::{self, CAPACITY};
use super::load::{self, quantile};

/// What the load does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// Half of what the application can carry.
    Calm,
    /// Several times what it can carry.
    Surge,
    /// A drain is asked for under load.
    Drain,
}

/// One act as it was.
pub struct Played {
    pub act: Act,
    /// Whether the gateway stood in front.
    pub gateway: bool,
    /// When clients came: from, to.
    pub came: [Instant; 2],
    /// What they saw.
    pub seen: load::Seen,
    /// What the application saw.
    pub app: application::Seen,
}

/// Everything, to be shown.
pub struct Summary {
    pub engine: &'static str,
    pub reason: String,
    pub limit: usize,
    pub acts: Vec<Played>,
    /// What the gateway says of its drain.
    pub report: Report,
    /// Clients the gateway says it refused.
    pub refused: u64,
}

/// The columns, and how wide they are.
pub const COLUMNS: [(&str, usize); 10] = [
    ("act", 5),
    ("gateway", 7),
    ("came/s", 6),
    ("200/s", 6),
    ("queued", 6),
    ("p50 ms", 6),
    ("p99 ms", 6),
    ("503", 5),
    ("left", 5),
    ("at once", 7),
];

impl Act {
    pub const fn label(self) -> &'static str {
        match self {
            Self::Calm => "calm",
            Self::Surge => "surge",
            Self::Drain => "drain",
        }
    }
}

impl Played {
    fn offered(&self) -> f64 {
        let [begun, ended] = self.came;
        self.seen.offered as f64 / (ended - begun).as_secs_f64()
    }

    /// Answers in time, a second. The last ones may come after the last client.
    fn goodput(&self) -> f64 {
        let [begun, ended] = self.came;
        let until = self.seen.last_served.map_or(ended, |last| last.max(ended));
        self.seen.served.len() as f64 / (until - begun).as_secs_f64()
    }

    /// Goodput as a share of what the application can carry.
    fn share(&self) -> f64 {
        self.goodput() / CAPACITY
    }

    /// Of those who were served, how many had to wait first, as they saw it: half as long again as
    /// the work takes.
    fn queued(&self) -> usize {
        let at_once = application::WORK * 3 / 2;
        self.seen.served.iter().filter(|time| **time > at_once).count()
    }

    fn refused(&self) -> u64 {
        self.seen.refused.len() as u64 + self.seen.late
    }

    /// The share of the application's work whose answer nobody waited for.
    fn in_vain(&self) -> f64 {
        let useful = self.seen.served.len() as f64;
        (1.0 - useful / self.app.worked.max(1) as f64).max(0.0)
    }

    fn p(&self, share: f64) -> Option<f64> {
        quantile(&self.seen.served, share).map(ms)
    }

    /// The cells of its row.
    pub fn row(&self) -> [String; COLUMNS.len()] {
        let or_dash = |ms: Option<f64>| ms.map_or("-".into(), |ms| format!("{ms:.0}"));
        [
            self.act.label().into(),
            with(self.gateway).into(),
            format!("{:.0}", self.offered()),
            format!("{:.0}", self.goodput()),
            self.queued().to_string(),
            or_dash(self.p(0.5)),
            or_dash(self.p(0.99)),
            self.refused().to_string(),
            self.seen.gave_up.to_string(),
            self.app.most.to_string(),
        ]
    }

    fn json(&self) -> Value {
        json!({
            "act": self.act.label(),
            "gateway": self.gateway,
            "seconds": (self.came[1] - self.came[0]).as_secs_f64(),
            "offered": self.seen.offered,
            "served": self.seen.served.len(),
            "queued": self.queued(),
            "refused": self.seen.refused.len(),
            "late": self.seen.late,
            "gave_up": self.seen.gave_up,
            "broken": self.seen.broken,
            "unable": self.seen.unable,
            "offered_per_second": self.offered(),
            "served_per_second": self.goodput(),
            "p50_ms": self.p(0.5),
            "p99_ms": self.p(0.99),
            "refused_p99_ms": quantile(&self.seen.refused, 0.99).map(ms),
            "most_at_once": self.app.most,
            "worked": self.app.worked,
        })
    }
}

impl Summary {
    fn act(&self, act: Act, gateway: bool) -> Option<&Played> {
        self.acts.iter().find(|played| played.act == act && played.gateway == gateway)
    }

    fn through_the_gateway(&self) -> impl Iterator<Item = &Played> {
        self.acts.iter().filter(|played| played.gateway)
    }

    /// Clients whose connection ended without their answer, although the gateway had not refused
    /// them: admitted, or waiting, and then lost.
    fn lost(&self) -> u64 {
        let unanswered: u64 =
            self.through_the_gateway().map(|played| played.seen.refused.len() as u64).sum();
        let broken: u64 = self.through_the_gateway().map(|played| played.seen.broken).sum();
        unanswered.saturating_sub(self.refused) + broken
    }

    /// The most the application had at once from the gateway.
    fn most(&self) -> usize {
        self.through_the_gateway().map(|played| played.app.most).max().unwrap_or(0)
    }

    /// The promises that were not kept.
    pub fn broken(&self) -> Vec<String> {
        let mut broken = Vec::new();
        let (most, limit) = (self.most(), self.limit);
        if most > limit {
            broken.push(format!("the application had {most} at once; the limit is {limit}"));
        }
        match self.lost() {
            0 => {}
            lost => broken.push(format!("{lost} lost: admitted or waiting, and never answered")),
        }
        match self.report.cut {
            0 => {}
            cut => broken.push(format!("{cut} cut at the end of the drain")),
        }
        broken
    }

    /// What was seen, in words.
    pub fn sentences(&self) -> Vec<String> {
        let acts = [self.calm(), self.surge()].into_iter().flatten();
        acts.chain([self.drain()]).chain(self.unable()).collect()
    }

    fn calm(&self) -> Option<String> {
        let (bare, behind) = (self.act(Act::Calm, false)?, self.act(Act::Calm, true)?);
        let turned_away = match behind.refused() {
            0 => "nobody was turned away".to_owned(),
            n => format!("{n} of {} were turned away", behind.seen.offered),
        };
        let (before, after) = (bare.p(0.5)?, behind.p(0.5)?);
        Some(format!(
            "Calm: the median answer took {before:.1} ms without the gateway and {after:.1} ms with \
             it; {turned_away}."
        ))
    }

    fn surge(&self) -> Option<String> {
        let (bare, behind) = (self.act(Act::Surge, false)?, self.act(Act::Surge, true)?);
        let percent = |share: f64| format!("{:.0} %", share * 100.0);
        let told = match quantile(&behind.seen.refused, 0.99) {
            Some(time) => format!("{} read a 503 (p99 {:.1} ms)", behind.refused(), ms(time)),
            None => "nobody read a 503".into(),
        };
        Some(format!(
            "Surge: without the gateway {} of what the application can carry ({CAPACITY:.0}/s) reached \
             a client in time, and {} of its work was for clients that had left. With the gateway {} \
             did, {told}, and the application never had more than {} at once.",
            percent(bare.share()),
            percent(bare.in_vain()),
            percent(behind.share()),
            behind.app.most,
        ))
    }

    fn drain(&self) -> String {
        let Report { in_flight_at_start, queued_at_start, finished, cut, seconds, .. } =
            self.report;
        let late = self.act(Act::Drain, true).map_or(0, |played| played.seen.late);
        format!(
            "Drain: asked for with {in_flight_at_start} in flight and {queued_at_start} waiting, it \
             carried {finished} to their end in {seconds:.2} s: {cut} cut, {} lost. {late} clients \
             came when the door was closed.",
            self.lost(),
        )
    }

    fn unable(&self) -> Option<String> {
        let unable: u64 = self.acts.iter().map(|played| played.seen.unable).sum();
        let advice = "is it out of file descriptors (ulimit -n) or of local ports?";
        (unable > 0)
            .then(|| format!("{unable} clients could not set out on this machine: {advice}"))
    }

    /// Everything, for programs.
    pub fn json(&self) -> Value {
        json!({
            "engine": { "name": self.engine, "reason": self.reason },
            "application": {
                "workers": application::WORKERS,
                "work_ms": ms(application::WORK),
                "capacity_per_second": CAPACITY,
            },
            "limit": self.limit,
            "patience_ms": ms(load::PATIENCE),
            "acts": self.acts.iter().map(Played::json).collect::<Vec<_>>(),
            "most_at_once": self.most(),
            "drain": self.report,
            "lost": self.lost(),
            "broken": self.broken(),
        })
    }
}

pub const fn with(gateway: bool) -> &'static str {
    if gateway { "with" } else { "without" }
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}
