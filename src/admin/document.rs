//! The status as it is served: what the gateway says of this moment, and with it what has been going
//! on and how far a drain has come.

use std::time::Instant;

use serde::Serialize;
use serde_json::{Value, json};

use crate::lifecycle::{Cause, Draining, Phase};

use super::gateway::Gateway;
use super::history::History;
use super::status::Status;

/// How far a drain has come.
#[derive(Debug, PartialEq, Serialize)]
struct Progress {
    cause: Cause,
    /// Since it began.
    seconds: f64,
    in_flight_at_start: u64,
    queued_at_start: u64,
    /// Connections accepted since it began.
    late_arrivals: u64,
    /// Connections that were carried to their end since it began.
    finished: u64,
    /// Connections refused since it began.
    refused: u64,
    /// Slots in use and waiters now.
    left: u64,
    /// Until the listeners close, unless connections still arrive then; `None`: they are closed.
    closes_in_seconds: Option<f64>,
    /// Until what is left is cut.
    cut_in_seconds: f64,
}

/// `/status.json`: every field of [`Status`]; in each port `recent`, the last 5 seconds, and `history`,
/// an entry a second of the last 3 minutes; and while a drain is under way, `draining`. When it is
/// over, `drain` has its report instead.
pub(super) fn document(gateway: &dyn Gateway, history: &History) -> Value {
    let status = gateway.status();
    let mut document = serde_json::to_value(&status).unwrap_or_default();
    let now = Instant::now();
    let draining = gateway.lifecycle().draining().filter(|_| status.drain.is_none());
    document["draining"] = json!(draining.map(|drain| Progress::of(&drain, &status, now)));
    for (place, (port, metrics)) in status.ports.iter().zip(gateway.ports()).enumerate() {
        let (recent, columns) = history.of(place, port, &metrics, now);
        document["ports"][place]["recent"] = json!(recent);
        document["ports"][place]["history"] = json!(columns);
    }
    document
}

impl Progress {
    fn of(drain: &Draining, status: &Status, now: Instant) -> Self {
        let sum = |of: fn(&super::PortStatus) -> u64| status.ports.iter().map(of).sum::<u64>();
        let accepted = sum(|port| port.counts.accepted);
        let finished = sum(|port| {
            let outcomes = port.counts.outcomes.iter();
            outcomes.filter(|(how, _)| **how != "cut").map(|(_, n)| n).sum()
        });
        let refused = sum(|port| port.counts.refused.values().sum());
        let before = drain.before;
        let until = |then: Instant| then.saturating_duration_since(now).as_secs_f64();
        Self {
            cause: drain.cause,
            seconds: (now - drain.started).as_secs_f64(),
            in_flight_at_start: before.active,
            queued_at_start: before.queued,
            late_arrivals: accepted.saturating_sub(before.accepted),
            finished: finished.saturating_sub(before.finished),
            refused: refused.saturating_sub(before.refused),
            left: sum(|port| port.active + port.queued),
            closes_in_seconds: (status.phase <= Phase::Announcing).then(|| until(drain.closes)),
            cut_in_seconds: until(drain.cuts),
        }
    }
}
