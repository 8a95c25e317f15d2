//! The metrics page, made afresh at every scrape, so that no gauge is ever stale. Names and meanings
//! follow the conventions of Prometheus: base units, sums over labels that mean something, labels of
//! few values; and per port
//!
//! ```text
//! tidegate_connections_accepted_total = sum(tidegate_connections_total) + tidegate_connections_active{direction="in"}
//! sum(tidegate_admission_decisions_total) = who asked for a slot and does not wait: TCP connections, requests
//! ```
//!
//! Always true: a page is as long for ten thousand connections as for none.

mod traffic;

use std::fmt;
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::registry::Registry;

use crate::lifecycle::Phase;
use crate::metrics::{Histogram, PortMetrics, Snapshot};
use crate::probes::{Finding, Probes};

use super::exposition::{Families, Labels, write};
use super::gateway::Gateway;
use super::negotiate::Format;
use super::process::{Network, Process, Tracking};
use super::status::{OTHER, PortStatus, PortVitals, Status, Vitals};

/// The page.
pub(super) fn scrape(gateway: &dyn Gateway, format: Format) -> String {
    let page = Page {
        status: gateway.status(),
        vitals: gateway.vitals(),
        metrics: gateway.ports(),
        probes: gateway.probes(),
        process: Process::now(),
        network: Network::now(),
        tracking: Tracking::now(),
    };
    page.written(format)
}

/// What is shown. The three that are per port are in the same order.
#[derive(Debug)]
struct Page {
    status: Status,
    vitals: Vitals,
    metrics: Vec<Arc<PortMetrics>>,
    probes: Arc<Probes>,
    process: Option<Process>,
    network: Option<Network>,
    tracking: Option<Tracking>,
}

/// One port, from all sides.
#[derive(Clone, Copy)]
struct Port<'a> {
    status: &'a PortStatus,
    vitals: &'a PortVitals,
    metrics: &'a PortMetrics,
}

/// Why a setting may not hold as it was written.
const REMARKS: [&str; 6] =
    ["invalid", "unreadable", "unknown", "needs_restart", "unused", "clamped"];

const PHASES: [(Phase, &str); 5] = [
    (Phase::Starting, "starting"),
    (Phase::Serving, "serving"),
    (Phase::Announcing, "announcing"),
    (Phase::Closing, "closing"),
    (Phase::Drained, "drained"),
];

impl Collector for Page {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut out = Families(encoder);
        self.about(&mut out)?;
        self.admission(&mut out)?;
        self.trials(&mut out)?;
        self.requests(&mut out)?;
        self.connections(&mut out)?;
        self.backlog(&mut out)?;
        self.engine(&mut out)?;
        self.lifecycle(&mut out)?;
        self.probes(&mut out)?;
        self.settings(&mut out)?;
        self.traces(&mut out)?;
        self.process.map_or(Ok(()), |process| process.encode(&mut out))
    }
}

impl Page {
    fn written(self, format: Format) -> String {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(self));
        write(&registry, format)
    }

    fn about(&self, out: &mut Families<'_>) -> fmt::Result {
        let Status { version, engine, .. } = &self.status;
        out.info("tidegate_build", "The program", vec![("version", (*version).to_owned())])?;
        let engine = vec![("engine", engine.name.to_owned()), ("reason", engine.reason.clone())];
        out.info("tidegate_io_engine", "How bytes are moved, and why so", engine)?;
        out.gauges(
            "tidegate_port_info",
            "What the port carries, and whether its limit is obeyed",
            self.many(|p| {
                let protocol = ("protocol", p.status.protocol.to_owned());
                vec![(vec![protocol, ("mode", p.status.mode.to_owned())], 1_u64)]
            }),
        )
    }

    fn engine(&self, out: &mut Families<'_>) -> fmt::Result {
        out.gauges("tidegate_workers", "Data-plane threads", one(self.status.workers as u64))?;
        out.gauges(
            "tidegate_pool_buffers_in_use",
            "Relay buffers that hold bytes",
            one(self.status.pools.in_use),
        )?;
        out.gauges(
            "tidegate_ring_operations",
            "Operations the kernel has not completed",
            one(self.status.ring_ops),
        )
    }

    fn lifecycle(&self, out: &mut Families<'_>) -> fmt::Result {
        let now = self.status.phase;
        let phases = PHASES
            .into_iter()
            .map(|(phase, word)| (vec![("phase", word.to_owned())], u64::from(phase == now)));
        out.gauges("tidegate_phase", "1 for where the process is in its life", phases.collect())?;
        let state: u64 = match now {
            Phase::Starting | Phase::Serving => 0,
            Phase::Announcing => 1,
            Phase::Closing => 2,
            Phase::Drained => 3,
        };
        out.gauges(
            "tidegate_drain_state",
            "0 not draining, 1 announcing, 2 closing, 3 drained",
            one(state),
        )?;
        let cut = self.status.ports.iter().filter_map(|p| p.counts.outcomes.get("cut"));
        out.counters(
            "tidegate_drain_cut",
            "Connections and requests cut at the end of a drain",
            one(cut.sum::<u64>()),
        )?;
        out.counters(
            "tidegate_drains_taken_back",
            "Drains after which the gateway served again",
            one(self.status.drains_taken_back),
        )
    }

    fn probes(&self, out: &mut Families<'_>) -> fmt::Result {
        let series = self.probes.counts().flat_map(|(name, counts)| {
            Finding::ALL.into_iter().zip(counts).map(move |(finding, n)| {
                let labels = vec![
                    ("container", name.container.clone()),
                    ("kind", name.kind.to_owned()),
                    ("result", finding.label().to_owned()),
                ];
                (labels, n)
            })
        });
        let series: Vec<_> = series.collect();
        if series.is_empty() {
            return Ok(());
        }
        out.counters(
            "tidegate_app_probes",
            "Probes of the application done for the kubelet, by what they found",
            series,
        )
    }

    fn settings(&self, out: &mut Families<'_>) -> fmt::Result {
        let reload = &self.status.last_reload;
        let since = reload.last_success.duration_since(UNIX_EPOCH).unwrap_or_default();
        out.gauges(
            "tidegate_config_last_reload_successful",
            "Whether all settings could be used as they were given last",
            one(u64::from(reload.ok)),
        )?;
        out.gauges(
            "tidegate_config_last_reload_success_timestamp_seconds",
            "When settings were last put in force",
            one(since.as_secs_f64()),
        )?;
        let changes = self.vitals.changes;
        let sources = [
            ("file", changes.file),
            ("live", changes.live),
            ("annotations", changes.annotations),
            ("namespace", changes.namespace),
        ];
        let series = sources.into_iter().flat_map(|(source, results)| {
            ["applied", "refused"].into_iter().zip(results).map(move |(result, n)| {
                (vec![("source", source.to_owned()), ("result", result.to_owned())], n)
            })
        });
        out.counters(
            "tidegate_config_changes",
            "Changes of settings, by where they came from and whether they were put in force",
            series.collect(),
        )?;
        let troubles = REMARKS.map(|reason| {
            let remarks = self.status.remarks.iter();
            let number = remarks.filter(|remark| remark.reason == reason).count();
            (vec![("reason", reason.to_owned())], number)
        });
        out.gauges(
            "tidegate_config_remarks",
            "In a pod: settings that do not hold as they were written",
            troubles.into(),
        )?;
        if let Some(watch) = &self.status.own_pod {
            out.gauges(
                "tidegate_own_pod_watched",
                "Whether the API server tells at once what becomes of the pod",
                one(u64::from(watch.watching)),
            )?;
            let failures = watch.failures.iter();
            out.counters(
                "tidegate_own_pod_watch_failures",
                "Attempts to watch the pod that failed",
                failures.map(|(why, n)| (vec![("reason", (*why).to_owned())], *n)).collect(),
            )?;
        }
        let dropped = self.status.dropped_lines;
        out.counters(
            "tidegate_log_lines_dropped",
            "Log lines that were dropped because nobody read them fast enough",
            vec![
                (vec![("log", "log".to_owned())], dropped.log),
                (vec![("log", "access".to_owned())], dropped.access),
            ],
        )
    }

    fn traces(&self, out: &mut Families<'_>) -> fmt::Result {
        let Some(traces) = self.status.traces else {
            return Ok(());
        };
        out.counters(
            "tidegate_trace_spans_exported",
            "Spans the collector has taken",
            one(traces.exported),
        )?;
        let why = |why: &str| vec![("reason", why.to_owned())];
        let dropped = vec![
            (why("queue_full"), traces.queue_full),
            (why("export_failed"), traces.export_failed),
            (why("too_many"), traces.too_many),
        ];
        out.counters("tidegate_trace_spans_dropped", "Spans that got lost", dropped)?;
        out.counters(
            "tidegate_trace_requests_capped",
            "Requests not recorded because of trace-max-spans",
            one(traces.capped),
        )
    }

    /// One series per port.
    fn each<V>(&self, mut value: impl FnMut(Port<'_>) -> V) -> Vec<(Labels, V)> {
        self.many(|port| vec![(Labels::new(), value(port))])
    }

    /// Several series per port.
    fn many<V>(&self, mut values: impl FnMut(Port<'_>) -> Vec<(Labels, V)>) -> Vec<(Labels, V)> {
        let mut series = Vec::new();
        for port in self.ports() {
            for (mut labels, value) in values(port) {
                labels.insert(0, ("port", self.label(port.status)));
                series.push((labels, value));
            }
        }
        series
    }

    /// One histogram for each port that can have any of it.
    fn histograms(
        &self,
        has: impl Fn(Port<'_>) -> bool,
        of: impl Fn(&PortMetrics) -> &Histogram,
    ) -> Vec<(Labels, Snapshot)> {
        self.many(|port| match has(port) {
            true => vec![(Labels::new(), of(port.metrics).snapshot())],
            false => Vec::new(),
        })
    }

    fn ports(&self) -> impl Iterator<Item = Port<'_>> {
        let ports = self.status.ports.iter().zip(&self.vitals.ports).zip(&self.metrics);
        ports.map(|((status, vitals), metrics)| Port { status, vitals, metrics })
    }

    /// The port's number, unless two addresses share it.
    fn label(&self, port: &PortStatus) -> String {
        let number = port.listen.port();
        if number == 0 {
            return OTHER.to_owned();
        }
        match self.status.ports.iter().filter(|p| p.listen.port() == number).count() {
            1 => number.to_string(),
            _ => port.listen.to_string(),
        }
    }
}

fn one<V>(value: V) -> Vec<(Labels, V)> {
    vec![(Labels::new(), value)]
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::sync::atomic::Ordering;
    use std::time::{Duration, SystemTime};

    use super::super::status::{Changes, Counts, Engine, Pools, Reload, Traces};
    use super::*;
    use crate::admin::{DroppedLines, OwnPod, Remark};
    use crate::outcome::{Outcome, Reason};
    use crate::probes::Plan;

    fn port(listen: &str, limit: Option<u32>, metrics: &PortMetrics) -> PortStatus {
        PortStatus {
            listen: listen.parse().expect("an address"),
            app: "127.0.0.1:3000".into(),
            entrance: false,
            protocol: "tcp",
            mode: "enforce",
            limit,
            active: 2,
            queued: 1,
            queue_length: 16,
            peak_active: 3,
            bypass: None,
            counts: Counts::read(metrics),
            would_refuse: 0,
            shadow: [(25, 4)].into(),
        }
    }

    fn probes() -> Probes {
        let spec = r#"{"app/liveness": {"tcpSocket": {"port": 80}}}"#;
        Probes::new(&Plan::parse([127, 0, 0, 1].into(), spec), Vec::new())
    }

    fn page(format: Format) -> String {
        whole().written(format)
    }

    fn whole() -> Page {
        let metrics = Arc::new(PortMetrics::default());
        for outcome in [Outcome::Served, Outcome::Refused(Reason::QueueFull)] {
            metrics.accept();
            if outcome == Outcome::Served {
                metrics.admit();
            }
            metrics.bytes[1].fetch_add(20, Ordering::Relaxed);
            metrics.end(outcome, Duration::from_millis(1));
        }
        metrics.accept();
        metrics.wait(Duration::from_millis(3));
        let local = SocketAddr::from(([127, 0, 0, 1], 1));
        let vitals = Vitals {
            ports: vec![
                PortVitals { backlog: Some([3, 128]), app_connections: 2, turned_away: 5.0 },
                PortVitals { backlog: None, app_connections: 0, turned_away: 0.0 },
            ],
            changes: Changes { file: [1, 2], live: [3, 4], ..Changes::default() },
        };
        let status = Status {
            version: "0.1.0",
            engine: Engine { name: "epoll", reason: "asked \"so\"".into() },
            phase: Phase::Closing,
            workers: 1,
            ports: vec![
                port("0.0.0.0:8080", Some(8), &metrics),
                PortStatus {
                    entrance: false,
                    protocol: "http",
                    mode: "observe",
                    ..port("0.0.0.0:8081", Some(4), &PortMetrics::default())
                },
            ],
            connections: 1,
            max_connections: 100,
            pools: Pools { in_use: 0 },
            dropped_lines: DroppedLines { log: 7, access: 0 },
            ring_ops: 0,
            admin: local,
            probe: local,
            metrics: local,
            uptime_seconds: 1.0,
            last_reload: Reload { ok: true, error: None, last_success: SystemTime::now() },
            remarks: vec![Remark {
                source: "annotations",
                reason: "invalid",
                text: "limit".into(),
            }],
            own_pod: Some(OwnPod { failures: [("silent", 2)].into(), ..OwnPod::default() }),
            drain: None,
            drain_partial: false,
            drains_taken_back: 2,
            traces: Some(Traces {
                exported: 5,
                queue_full: 2,
                export_failed: 1,
                too_many: 3,
                capped: 7,
            }),
        };
        let metrics = vec![metrics, Arc::default()];
        let network = Some(Network { listen_overflows: 1, listen_drops: 2 });
        let probes = Arc::new(probes());
        let tracking = Some(Tracking { entries: 12, most: 65_536 });
        Page { status, vitals, metrics, probes, process: Process::now(), network, tracking }
    }

    fn has(page: &str, line: &str) {
        assert!(page.lines().any(|other| other == line), "{line:?} is not in:\n{page}");
    }

    #[test]
    fn the_classic_page_is_what_prometheus_has_always_read() {
        let page = page(Format::Classic);
        for line in [
            "# TYPE tidegate_build_info gauge",
            "tidegate_build_info{version=\"0.1.0\"} 1",
            "tidegate_io_engine_info{engine=\"epoll\",reason=\"asked \\\"so\\\"\"} 1",
            "tidegate_admission_limit{port=\"8080\"} 8.0",
            "tidegate_admission_limit{port=\"8081\"} +Inf",
            "# TYPE tidegate_admission_decisions_total counter",
            "tidegate_admission_decisions_total{port=\"8080\",outcome=\"admitted\",reason=\"\"} 1",
            "tidegate_admission_decisions_total{port=\"8080\",outcome=\"refused\",reason=\"queue_full\"} 1",
            "tidegate_connections_total{port=\"8080\",outcome=\"served\"} 1",
            "tidegate_connections_total{port=\"8080\",outcome=\"refused\"} 1",
            "tidegate_connections_total{port=\"8080\",outcome=\"http\"} 0",
            "tidegate_connections_active{port=\"8080\",direction=\"in\"} 1",
            "tidegate_connections_active{port=\"8080\",direction=\"out\"} 2",
            "tidegate_requests_total{port=\"8081\",outcome=\"served\"} 0",
            "tidegate_request_duration_seconds_count{port=\"8081\"} 0",
            "tidegate_connection_duration_seconds_bucket{le=\"0.001\",port=\"8080\"} 1",
            "tidegate_admission_demand_ratio{port=\"8080\"} 1.0",
            "tidegate_admission_demand_ratio{port=\"8081\"} 0.75",
            "tidegate_port_info{port=\"8081\",protocol=\"http\",mode=\"observe\"} 1",
            "tidegate_listen_backlog{port=\"8080\"} 3",
            "tidegate_listen_backlog_capacity{port=\"8080\"} 128",
            "tidegate_listen_overflows_total 1",
            "tidegate_conntrack_entries 12",
            "tidegate_conntrack_entries_max 65536",
            "tidegate_phase{phase=\"closing\"} 1",
            "tidegate_phase{phase=\"serving\"} 0",
            "tidegate_config_changes_total{source=\"file\",result=\"refused\"} 2",
            "tidegate_log_lines_dropped_total{log=\"log\"} 7",
            "tidegate_bytes_total{port=\"8080\",direction=\"out\"} 40",
            "tidegate_shadow_refusals_total{port=\"8080\",limit=\"25\"} 4",
            "tidegate_trace_spans_exported_total 5",
            "tidegate_trace_spans_dropped_total{reason=\"queue_full\"} 2",
            "# TYPE tidegate_admission_wait_seconds histogram",
            "tidegate_admission_wait_seconds_count{port=\"8080\"} 1",
            "tidegate_admission_wait_seconds_bucket{le=\"0.005\",port=\"8080\"} 1",
            "tidegate_drain_state 2",
            "tidegate_drain_cut_total 0",
            "tidegate_config_last_reload_successful 1",
            "tidegate_config_remarks{reason=\"invalid\"} 1",
            "tidegate_config_remarks{reason=\"clamped\"} 0",
            "tidegate_own_pod_watched 0",
            "tidegate_own_pod_watch_failures_total{reason=\"silent\"} 2",
        ] {
            has(&page, line);
        }
        assert!(page.contains("\nprocess_cpu_seconds_total "));
        for absent in [
            "tidegate_requests_total{port=\"8080\"",
            "tidegate_connection_duration_seconds_count{port=\"8081\"",
            "tidegate_listen_backlog{port=\"8081\"",
        ] {
            assert!(!page.contains(absent), "{absent} cannot be:\n{page}");
        }
        assert!(!page.contains("# EOF") && !page.contains("# UNIT") && !page.contains(" unknown"));
        // One HELP and one TYPE for each family, and every sample under its own.
        let mut family = "";
        for line in page.lines() {
            match line.strip_prefix("# TYPE ") {
                Some(rest) => family = rest.split(' ').next().expect("a name"),
                None if line.starts_with('#') => {}
                None => assert!(line.starts_with(family), "{line} under {family}"),
            }
        }
    }

    #[test]
    fn openmetrics_has_types_of_its_own_and_an_end() {
        let page = page(Format::OpenMetrics);
        assert!(page.ends_with("# EOF\n"));
        has(&page, "# TYPE tidegate_build info");
        has(&page, "# TYPE tidegate_admission_decisions counter");
        has(&page, "tidegate_admission_limit{port=\"8081\"} +Inf");
        has(&page, "# UNIT tidegate_admission_demand_ratio ratio");
        // Of each family the kind, a help that says something, and the unit that its name ends in.
        let of = |word: &str| -> std::collections::BTreeMap<&str, &str> {
            let lines = page.lines().filter_map(|line| line.strip_prefix(word));
            lines.map(|rest| rest.split_once(' ').expect("a name and a word")).collect()
        };
        let (types, helps, units) = (of("# TYPE "), of("# HELP "), of("# UNIT "));
        assert!(types.len() > 40, "{types:?}");
        for (name, kind) in &types {
            assert!(["counter", "gauge", "histogram", "info"].contains(kind), "{name}: {kind}");
            assert!(helps.get(name).is_some_and(|help| help.len() > 5), "{name}: {helps:?}");
            let unit = ["seconds", "bytes", "ratio"].into_iter().find(|unit| name.ends_with(unit));
            assert_eq!(units.get(name).copied(), unit, "{name}");
            let is_counter = page.contains(&format!("\n{name}_total"));
            assert_eq!(is_counter, *kind == "counter", "{name}");
        }
        assert_eq!(types.keys().collect::<Vec<_>>(), helps.keys().collect::<Vec<_>>());
    }

    /// What a series costs is paid by whoever stores it, for ever: their number depends on ports and on
    /// settings, and on nothing that a client says.
    #[test]
    fn labels_are_few_and_of_our_own_choice() {
        const PORTS: u16 = 300;
        let metrics = Arc::new(PortMetrics::default());
        for reason in Reason::ALL {
            metrics.end(Outcome::Refused(reason), Duration::ZERO);
            metrics.end_request(Outcome::Refused(reason), Duration::ZERO);
        }
        let shadow = (1..=crate::limit::MAX_SHADOW_LIMITS as u32).map(|limit| (limit, 1)).collect();
        let of = |count: u16| {
            let ports = (0..count).map(|n| PortStatus {
                entrance: false,
                protocol: "auto",
                bypass: Some(1),
                shadow: std::collections::BTreeMap::clone(&shadow),
                ..port(&format!("0.0.0.0:{}", 1000 + n), Some(8), &metrics)
            });
            let mut page = whole();
            page.status.ports = ports.collect();
            page.metrics = vec![metrics.clone(); usize::from(count)];
            let vitals =
                PortVitals { backlog: Some([3, 128]), app_connections: 2, turned_away: 5.0 };
            page.vitals.ports = vec![vitals; usize::from(count)];
            page.written(Format::Classic)
        };
        let series = |page: &str| page.lines().filter(|line| !line.starts_with('#')).count();
        let (one, many) = (of(1), of(PORTS));
        let each = (series(&many) - series(&one)) / usize::from(PORTS - 1);
        assert_eq!(series(&many), series(&one) + usize::from(PORTS - 1) * each);
        assert!(each < 200, "{each} series a port");
        // Containers and kinds of probes are those of the pod's specification.
        let known = "container direction engine kind le limit log mode outcome phase port protocol reason result \
                     source version";
        let known: Vec<_> = known.split(' ').collect();
        for line in many.lines().filter(|line| !line.starts_with('#')) {
            let labels = line.split_once('{').map_or("", |(_, rest)| rest);
            let names = labels.split("=\"").filter_map(|part| part.rsplit(['{', ',', '"']).next());
            let names = names.filter(|name| !name.is_empty() && !name.contains('}'));
            for name in names {
                assert!(known.contains(&name), "{name:?} of {line}");
            }
        }
    }
}
