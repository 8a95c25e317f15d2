//! The families that are per port: admission, requests, connections, and what the kernel does before.

use std::collections::BTreeMap;
use std::fmt;

use super::{Families, Labels, Page, Port, one};

impl Page {
    pub(super) fn admission(&self, out: &mut Families<'_>) -> fmt::Result {
        out.gauges(
            "tidegate_admission_limit",
            "Slots at once that are enforced; +Inf: none",
            // The entrance is no gate: what passes beside it is told of, whatever holds on other ports.
            self.many(|p| match p.status.entrance {
                true => Vec::new(),
                false => vec![(Labels::new(), p.enforced_limit())],
            }),
        )?;
        out.gauges("tidegate_admission_active", "Slots in use", self.each(|p| p.status.active))?;
        out.gauges(
            "tidegate_admission_peak_active",
            "The most slots ever in use at once",
            self.each(|p| p.status.peak_active),
        )?;
        out.gauges(
            "tidegate_admission_queue_length",
            "Connections and requests that wait for a slot",
            self.each(|p| p.status.queued),
        )?;
        out.gauges(
            "tidegate_admission_queue_capacity",
            "Places to wait in",
            self.each(|p| u64::from(p.status.queue_length)),
        )?;
        out.gauges(
            "tidegate_admission_demand_ratio",
            "Slots asked for of late, those of the refused too, over the limit; absent without a limit",
            self.many(|p| p.demand_ratio().map(|ratio| (Labels::new(), ratio)).into_iter().collect()),
        )?;
        out.histograms(
            "tidegate_admission_wait_seconds",
            "How long those waited that did not get a slot at once, admitted or refused in the end",
            self.histograms(|_| true, |m| &m.waits),
        )?;
        out.counters(
            "tidegate_admission_decisions",
            "Connections and requests that the gate admitted or refused",
            self.many(|p| {
                let counts = &p.status.counts;
                let refused = counts.refused_at_the_gate().map(|(why, n)| {
                    (vec![("outcome", "refused".to_owned()), ("reason", why.label().to_owned())], n)
                });
                let admitted = (
                    vec![("outcome", "admitted".to_owned()), ("reason", String::new())],
                    counts.admitted,
                );
                std::iter::once(admitted).chain(refused).collect()
            }),
        )
    }

    /// What is only tried out.
    pub(super) fn trials(&self, out: &mut Families<'_>) -> fmt::Result {
        out.counters(
            "tidegate_would_refuse",
            "What enforcing would have refused, while observing",
            self.each(|p| p.status.would_refuse),
        )?;
        out.counters(
            "tidegate_shadow_refusals",
            "What a candidate limit would not have let in at once, while observing",
            self.many(|p| {
                let shadow = p.status.shadow.iter();
                shadow.map(|(limit, n)| (vec![("limit", limit.to_string())], *n)).collect()
            }),
        )
    }

    pub(super) fn requests(&self, out: &mut Families<'_>) -> fmt::Result {
        out.counters(
            "tidegate_requests",
            "Requests that have ended, by how",
            self.many(|p| match p.has_requests() {
                true => by_outcome(p.metrics.requests_ended()),
                false => Vec::new(),
            }),
        )?;
        out.histograms(
            "tidegate_request_duration_seconds",
            "From arrival to the end of both bodies, of requests that reached the application",
            self.histograms(|p| p.has_requests(), |m| &m.requests),
        )
    }

    pub(super) fn connections(&self, out: &mut Families<'_>) -> fmt::Result {
        // What has ended before what was accepted: the difference is never negative.
        let ended: Vec<_> = self.metrics.iter().map(|m| m.connections_ended()).collect();
        let accepted: Vec<_> = self.metrics.iter().map(|m| m.accepted()).collect();
        let of_port = |at: usize| accepted[at].saturating_sub(ended[at].values().sum());
        let open: Vec<u64> = (0..accepted.len()).map(of_port).collect();

        let mut accepted = accepted.into_iter();
        out.counters(
            "tidegate_connections_accepted",
            "Connections accepted",
            self.many(|_| accepted.next().map(|n| (Labels::new(), n)).into_iter().collect()),
        )?;
        let mut ended = ended.into_iter();
        out.counters(
            "tidegate_connections",
            "Connections that have ended, by how; http: requests came on it, or nothing",
            self.many(|_| ended.next().map(by_outcome).unwrap_or_default()),
        )?;
        let mut open = open.into_iter();
        out.gauges(
            "tidegate_connections_active",
            "Connections that are open: from clients (in), to the application (out)",
            self.many(|p| {
                let clients = open.next().unwrap_or(0);
                ways(clients, p.vitals.app_connections)
            }),
        )?;
        out.gauges(
            "tidegate_bypass_connections",
            "Connections that reach the application beside the gateway, by the kernel's socket table",
            self.many(|p| p.status.bypass.map(|n| (Labels::new(), n)).into_iter().collect()),
        )?;
        out.gauges(
            "tidegate_connections_max",
            "Connections from clients the gateway holds at most, of all ports",
            one(u64::from(self.status.max_connections)),
        )?;
        out.histograms(
            "tidegate_connection_duration_seconds",
            "From accept to end, of TCP connections that reached the application",
            self.histograms(|p| p.has_tcp(), |m| &m.connections),
        )?;
        out.counters(
            "tidegate_bytes",
            "Bytes read from clients (in) and from the application (out)",
            self.many(|p| ways(p.status.counts.bytes_in, p.status.counts.bytes_out)),
        )
    }

    /// What the kernel does before a connection is ours.
    pub(super) fn backlog(&self, out: &mut Families<'_>) -> fmt::Result {
        let of = |which: usize| {
            self.many(|p| {
                let backlog = p.vitals.backlog.into_iter();
                backlog.map(|backlog| (Labels::new(), u64::from(backlog[which]))).collect()
            })
        };
        out.gauges("tidegate_listen_backlog", "Connections nobody has accepted yet", of(0))?;
        out.gauges(
            "tidegate_listen_backlog_capacity",
            "Connections the kernel keeps until they are accepted, at most",
            of(1),
        )?;
        if let Some(tracking) = self.tracking {
            out.gauges(
                "tidegate_conntrack_entries",
                "Connections the kernel tracks in this network namespace, which what is captured needs",
                one(tracking.entries),
            )?;
            out.gauges(
                "tidegate_conntrack_entries_max",
                "Connections the kernel tracks at most; beyond that new ones are dropped",
                one(tracking.most),
            )?;
        }
        let Some(network) = self.network else {
            return Ok(());
        };
        out.counters(
            "tidegate_listen_overflows",
            "Connections the kernel dropped because a backlog was full, in this network namespace",
            one(network.listen_overflows),
        )?;
        out.counters(
            "tidegate_listen_drops",
            "Connections the kernel dropped before they were accepted, in this network namespace",
            one(network.listen_drops),
        )
    }
}

impl Port<'_> {
    fn has_requests(self) -> bool {
        self.status.protocol != "tcp"
    }

    fn has_tcp(self) -> bool {
        self.status.protocol != "http"
    }

    fn enforced_limit(self) -> f64 {
        let limit = self.status.limit.filter(|_| self.status.mode == "enforce");
        limit.map_or(f64::INFINITY, f64::from)
    }

    /// How many times the limit it is asked for, whether that is enforced or only observed.
    fn demand_ratio(self) -> Option<f64> {
        let limit = f64::from(self.status.limit?);
        let here = (self.status.active + self.status.queued) as f64;
        Some((here + self.vitals.turned_away) / limit)
    }
}

/// From clients, and from the application.
fn ways(inward: u64, outward: u64) -> Vec<(Labels, u64)> {
    let way = |word: &str| vec![("direction", word.to_owned())];
    vec![(way("in"), inward), (way("out"), outward)]
}

fn by_outcome(ended: BTreeMap<&'static str, u64>) -> Vec<(Labels, u64)> {
    ended.into_iter().map(|(how, n)| (vec![("outcome", how.to_owned())], n)).collect()
}
