//! The status: one JSON document for people, scripts and `tidegate status`. The metrics are made
//! from it as well, so that both always tell the same story.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::SystemTime;

use serde::{Serialize, Serializer};

use crate::lifecycle::{Phase, Report};
use crate::metrics::PortMetrics;
use crate::outcome::Reason;

/// What the gateway is doing.
#[derive(Clone, Debug, Serialize)]
pub struct Status {
    /// Of the program.
    pub version: &'static str,
    /// How bytes are moved.
    pub engine: Engine,
    /// Where the process is in its life.
    pub phase: Phase,
    /// Data-plane threads.
    pub workers: usize,
    /// The ports, in the order they were given.
    pub ports: Vec<PortStatus>,
    /// Open connections, in whatever stage.
    pub connections: u64,
    /// How many there may be.
    pub max_connections: u32,
    /// The buffer pools.
    pub pools: Pools,
    /// Log lines nobody read in time.
    pub dropped_lines: DroppedLines,
    /// Operations the kernel has not completed (io_uring).
    pub ring_ops: u64,
    /// The address that was really bound.
    pub admin: SocketAddr,
    /// The address that was really bound.
    pub probe: SocketAddr,
    /// The address that was really bound.
    pub metrics: SocketAddr,
    /// Since the start of the process.
    pub uptime_seconds: f64,
    /// The last change of settings, or the start.
    pub last_reload: Reload,
    /// In a pod: everything that does not hold as it was written.
    pub remarks: Vec<Remark>,
    /// The watch of the own pod, if there is one.
    pub own_pod: Option<OwnPod>,
    /// What the drain did, once it is over.
    pub drain: Option<Report>,
    /// Some container of the pod has a hook of its own, and may end before a drain does.
    pub drain_partial: bool,
    /// Drains that were taken back, since the start.
    pub drains_taken_back: u64,
    /// What became of traces, if anybody collects them.
    pub traces: Option<Traces>,
}

/// What became of spans so far.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Traces {
    /// Taken by the collector.
    pub exported: u64,
    /// Dropped, because too many waited already.
    pub queue_full: u64,
    /// Dropped, because the collector did not take them.
    pub export_failed: u64,
    /// Dropped, because the control plane made more than it may in a second.
    pub too_many: u64,
    /// Requests not recorded, because more than `trace-max-spans` a second would have been.
    pub capped: u64,
}

/// How bytes are moved.
#[derive(Clone, Debug, Serialize)]
pub struct Engine {
    /// `uring` or `epoll`.
    pub name: &'static str,
    /// Why this one.
    pub reason: String,
}

/// The buffer pools.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Pools {
    /// Buffers that hold bytes.
    pub in_use: u64,
}

/// Log lines that were dropped, because whoever reads them was too slow.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct DroppedLines {
    /// Of stderr.
    pub log: u64,
    /// Of stdout.
    pub access: u64,
}

/// How the last change of settings went.
#[derive(Clone, Debug, Serialize)]
pub struct Reload {
    /// Whether it was applied.
    pub ok: bool,
    /// What was wrong with it.
    pub error: Option<String>,
    /// When settings were last applied; for the metrics.
    #[serde(skip)]
    pub last_success: SystemTime,
}

/// Something somebody has written that does not hold as it was written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Remark {
    /// Who: `operator`, `template`, `namespace`, `workload`, `annotations`, `live` or `ceilings`.
    pub source: &'static str,
    /// `invalid`, `unreadable`, `unknown`, `needs_restart`, `unused` or `clamped`.
    pub reason: &'static str,
    /// What, and what is allowed.
    pub text: String,
}

/// The watch of the own pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct OwnPod {
    /// Whether changes are told at once.
    pub watching: bool,
    /// Why not, since it failed last.
    pub error: Option<String>,
    /// Attempts that failed, by reason.
    pub failures: BTreeMap<&'static str, u64>,
    /// Whether the pod is being deleted.
    pub deleted: bool,
}

/// One port.
#[derive(Clone, Debug, Serialize)]
pub struct PortStatus {
    /// The address that was really bound; port 0 stands for captured ports that share a gate, and is
    /// written `other`.
    #[serde(serialize_with = "with_other")]
    pub listen: SocketAddr,
    /// The application as the user wrote it.
    pub app: String,
    /// It is where captured connections come in: what is refused here was going nowhere.
    pub entrance: bool,
    /// `tcp`.
    pub protocol: &'static str,
    /// `enforce`, `observe` or `off`.
    pub mode: &'static str,
    /// Slots at once; `None`: as many as come.
    pub limit: Option<u32>,
    /// Slots in use.
    pub active: u64,
    /// Connections that wait.
    pub queued: u64,
    /// Places to wait in.
    pub queue_length: u32,
    /// The most slots that were ever in use at once.
    pub peak_active: u64,
    /// Connections the application has that do not come from here; of the entrance, those from other machines to
    /// captured ports that were never called here. `None`: it cannot be seen from here.
    pub bypass: Option<u64>,
    /// Counters, taken at one moment.
    #[serde(flatten)]
    pub counts: Counts,
    /// While observing: connections that enforcing would have refused.
    pub would_refuse: u64,
    /// By candidate limit: connections it would not have let in at once.
    pub shadow: BTreeMap<u32, u64>,
}

/// What only the metrics show: facts of the moment that the status does without.
#[derive(Clone, Debug)]
pub struct Vitals {
    /// In the order of [`Status::ports`].
    pub ports: Vec<PortVitals>,
    /// Changes of settings since the start.
    pub changes: Changes,
}

/// What only the metrics show of one port.
#[derive(Clone, Copy, Debug)]
pub struct PortVitals {
    /// Connections that wait in the kernel to be accepted, and how many may; `None` once it has
    /// stopped listening.
    pub backlog: Option<[u32; 2]>,
    /// Connections to the application that are open.
    pub app_connections: u64,
    /// Slots that those who were refused of late would have held at once.
    pub turned_away: f64,
}

/// Changes of settings since the start: how many were put in force, and how many were not.
#[derive(Clone, Copy, Debug, Default)]
pub struct Changes {
    /// The file was read again: `[applied, refused]`.
    pub file: [u64; 2],
    /// Over the control socket: `[applied, refused]`.
    pub live: [u64; 2],
    /// The pod's annotations: `[applied, refused]`, even if only a part was refused.
    pub annotations: [u64; 2],
    /// The namespace's ConfigMap, the same.
    pub namespace: [u64; 2],
}

/// What happened on a port so far, read in an order that keeps the sums true while traffic flows:
/// what ended first, what was admitted next, what was accepted last.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Connections accepted.
    pub accepted: u64,
    /// Connections that got a slot.
    pub admitted: u64,
    /// How connections ended that were not refused at the gate.
    pub outcomes: BTreeMap<&'static str, u64>,
    /// Every reason there is.
    pub refused: BTreeMap<&'static str, u64>,
    /// Bytes read from clients.
    pub bytes_in: u64,
    /// Bytes read from the application.
    pub bytes_out: u64,
}

/// The name of what has no number of its own.
pub(super) const OTHER: &str = "other";

fn with_other<S: Serializer>(listen: &SocketAddr, to: S) -> Result<S::Ok, S::Error> {
    match listen.port() {
        0 => to.collect_str(&format_args!("{}{OTHER}", listen.to_string().trim_end_matches('0'))),
        _ => listen.serialize(to),
    }
}

impl Counts {
    /// The counters now.
    pub fn read(metrics: &PortMetrics) -> Self {
        let outcomes: BTreeMap<_, _> =
            metrics.carried().map(|(outcome, n)| (outcome.label(), n)).collect();
        let refused: BTreeMap<_, _> = metrics.refused().map(|(why, n)| (why.label(), n)).collect();
        let [bytes_in, bytes_out] = metrics.bytes();
        let admitted = metrics.admitted();
        Self { accepted: metrics.accepted(), admitted, outcomes, refused, bytes_in, bytes_out }
    }

    /// What the gate refused, by reason. With `admitted` and what still waits it sums up to all who
    /// asked for a slot: TCP connections and requests.
    pub fn refused_at_the_gate(&self) -> impl Iterator<Item = (Reason, u64)> {
        Reason::ALL
            .into_iter()
            .filter(|reason| reason.is_of_the_gate())
            .map(|reason| (reason, self.refused_for(reason)))
    }

    fn refused_for(&self, reason: Reason) -> u64 {
        self.refused.get(reason.label()).copied().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;
    use std::time::Duration;

    use super::*;
    use crate::outcome::Outcome;

    #[test]
    fn admitted_and_refused_at_the_gate_are_all_who_asked() {
        let metrics = PortMetrics::default();
        let end = |outcome, admitted| {
            metrics.accept();
            if admitted {
                metrics.admit();
            }
            metrics.bytes[0].fetch_add(1, Ordering::Relaxed);
            metrics.bytes[1].fetch_add(2, Ordering::Relaxed);
            metrics.end(outcome, Duration::ZERO);
        };
        end(Outcome::Served, true);
        end(Outcome::Abandoned, true);
        end(Outcome::Refused(Reason::UpstreamRefused), true);
        end(Outcome::Refused(Reason::QueueFull), false);
        end(Outcome::Refused(Reason::ClientGone), false);
        metrics.accept();

        let counts = Counts::read(&metrics);
        let refused: u64 = counts.refused_at_the_gate().map(|(_, n)| n).sum();
        assert_eq!((counts.accepted, counts.admitted, refused), (6, 3, 2));
        assert_eq!(counts.refused.len(), Reason::ALL.len());
        assert_eq!((counts.bytes_in, counts.bytes_out), (5, 10));
    }
}
