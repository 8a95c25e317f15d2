//! The metrics page, made afresh from the status at every scrape, so that no gauge is ever stale.
//! Names and meanings follow the conventions of Prometheus: base units, sums over labels that mean
//! something, and per port
//!
//! ```text
//! tidegate_connections_accepted_total = sum(tidegate_admission_decisions_total) + what still waits
//!                                     = sum(tidegate_connections_total) + tidegate_connections_active
//! ```

use std::fmt;
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use crate::lifecycle::Phase;
use crate::metrics::PortMetrics;

use super::exposition::{Families, Format, Labels, write};
use super::process::Process;
use super::status::{PortStatus, Status};

/// The page. `ports` are in the order of `status.ports`.
pub(super) fn scrape(status: Status, ports: Vec<Arc<PortMetrics>>, format: Format) -> String {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Page { status, ports, process: Process::now() }));
    write(&registry, format)
}

#[derive(Debug)]
struct Page {
    status: Status,
    ports: Vec<Arc<PortMetrics>>,
    process: Option<Process>,
}

impl Collector for Page {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut out = Families(encoder);
        self.about(&mut out)?;
        self.admission(&mut out)?;
        self.connections(&mut out)?;
        self.lifecycle(&mut out)?;
        self.traces(&mut out)?;
        self.process(&mut out)
    }
}

impl Page {
    fn about(&self, out: &mut Families<'_>) -> fmt::Result {
        let Status { version, engine, .. } = &self.status;
        out.info("tidegate_build", "The program", vec![("version", (*version).to_owned())])?;
        let engine = vec![("engine", engine.name.to_owned()), ("reason", engine.reason.clone())];
        out.info("tidegate_io_engine", "How bytes are moved, and why so", engine)
    }

    fn admission(&self, out: &mut Families<'_>) -> fmt::Result {
        let limit = |p: &PortStatus| p.limit.map_or(f64::INFINITY, f64::from);
        out.gauges("tidegate_admission_limit", "Slots at once; +Inf: no limit", self.each(limit))?;
        out.gauges("tidegate_admission_active", "Slots in use", self.each(|p| p.active))?;
        out.gauges(
            "tidegate_admission_peak_active",
            "The most slots ever in use at once",
            self.each(|p| p.peak_active),
        )?;
        out.gauges(
            "tidegate_admission_queue_length",
            "Connections that wait",
            self.each(|p| p.queued),
        )?;
        out.gauges(
            "tidegate_admission_queue_capacity",
            "Places to wait in",
            self.each(|p| u64::from(p.queue_length)),
        )?;
        out.histograms(
            "tidegate_admission_wait_seconds",
            "How long connections waited that did not get a slot at once",
            self.histograms(|m| &m.wait_seconds),
        )?;
        out.counters(
            "tidegate_admission_decisions",
            "Connections the gate admitted or refused",
            self.many(|p| {
                let refused = p.counts.refused_at_the_gate();
                let refused = refused.map(|(why, n)| {
                    (vec![("outcome", "refused".to_owned()), ("reason", why.label().to_owned())], n)
                });
                let admitted = (
                    vec![("outcome", "admitted".to_owned()), ("reason", String::new())],
                    p.counts.admitted,
                );
                std::iter::once(admitted).chain(refused).collect()
            }),
        )?;
        out.counters(
            "tidegate_would_refuse",
            "Connections that enforcing would have refused, while observing",
            self.each(|p| p.would_refuse),
        )?;
        out.counters(
            "tidegate_shadow_refusals",
            "Connections a candidate limit would not have let in at once",
            self.many(|p| {
                p.shadow.iter().map(|(limit, n)| (vec![("limit", limit.to_string())], *n)).collect()
            }),
        )
    }

    fn connections(&self, out: &mut Families<'_>) -> fmt::Result {
        out.counters(
            "tidegate_connections_accepted",
            "Connections accepted",
            self.each(|p| p.counts.accepted),
        )?;
        out.counters(
            "tidegate_connections",
            "Connections that have ended, by how",
            self.many(|p| {
                p.counts
                    .ended()
                    .into_iter()
                    .map(|(how, n)| (vec![("outcome", how.to_owned())], n))
                    .collect()
            }),
        )?;
        out.gauges(
            "tidegate_connections_active",
            "Connections that are open, in whatever stage",
            self.each(|p| p.counts.open()),
        )?;
        out.gauges(
            "tidegate_connections_max",
            "Connections the gateway holds at most",
            vec![(Labels::new(), u64::from(self.status.max_connections))],
        )?;
        out.histograms(
            "tidegate_connection_duration_seconds",
            "From accept to end, of connections that reached the application",
            self.histograms(|m| &m.connection_seconds),
        )?;
        out.counters(
            "tidegate_bytes",
            "Bytes read from clients (in) and from the application (out)",
            self.many(|p| {
                let way = |way: &str| vec![("direction", way.to_owned())];
                vec![(way("in"), p.counts.bytes_in), (way("out"), p.counts.bytes_out)]
            }),
        )?;
        out.gauges(
            "tidegate_pool_buffers_in_use",
            "Relay buffers that hold bytes",
            vec![(Labels::new(), self.status.pools.in_use)],
        )?;
        out.gauges(
            "tidegate_ring_operations",
            "Operations the kernel has not completed",
            vec![(Labels::new(), self.status.ring_ops)],
        )
    }

    fn lifecycle(&self, out: &mut Families<'_>) -> fmt::Result {
        let state: u64 = match self.status.phase {
            Phase::Starting | Phase::Serving => 0,
            Phase::Announcing => 1,
            Phase::Closing => 2,
            Phase::Drained => 3,
        };
        let cut =
            self.status.ports.iter().filter_map(|p| p.counts.outcomes.get("cut")).sum::<u64>();
        let reload = &self.status.last_reload;
        let since = reload.last_success.duration_since(UNIX_EPOCH).unwrap_or_default();
        out.gauges(
            "tidegate_drain_state",
            "0 not draining, 1 announcing, 2 closing, 3 drained",
            one(state),
        )?;
        out.counters("tidegate_drain_cut", "Connections cut at the end of a drain", one(cut))?;
        out.gauges(
            "tidegate_config_last_reload_successful",
            "Whether the last change of settings was applied",
            one(u64::from(reload.ok)),
        )?;
        out.gauges(
            "tidegate_config_last_reload_success_timestamp_seconds",
            "When settings were last applied",
            one(since.as_secs_f64()),
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

    fn process(&self, out: &mut Families<'_>) -> fmt::Result {
        let Some(process) = self.process else {
            return Ok(());
        };
        out.counters("process_cpu_seconds", "CPU time used", one(process.cpu_seconds))?;
        out.gauges("process_resident_memory_bytes", "Memory in use", one(process.resident_bytes))?;
        out.gauges("process_open_fds", "Open descriptors", one(process.open_fds))?;
        if let Some(max) = process.max_fds {
            out.gauges("process_max_fds", "Descriptors that may be open", one(max))?;
        }
        out.gauges(
            "process_start_time_seconds",
            "When the process started",
            one(process.start_time_seconds),
        )?;
        out.gauges("process_threads", "Threads", one(process.threads))
    }

    /// One series per port.
    fn each<V>(&self, value: impl Fn(&PortStatus) -> V) -> Vec<(Labels, V)> {
        self.many(|port| vec![(Labels::new(), value(port))])
    }

    /// Several series per port.
    fn many<V>(&self, values: impl Fn(&PortStatus) -> Vec<(Labels, V)>) -> Vec<(Labels, V)> {
        let mut series = Vec::new();
        for port in &self.status.ports {
            for (mut labels, value) in values(port) {
                labels.insert(0, ("port", self.label(port)));
                series.push((labels, value));
            }
        }
        series
    }

    fn histograms(&self, of: impl Fn(&PortMetrics) -> &Histogram) -> Vec<(Labels, Histogram)> {
        let ports = self.status.ports.iter().zip(&self.ports);
        ports.map(|(port, m)| (vec![("port", self.label(port))], of(m).clone())).collect()
    }

    /// The port's number, unless two addresses share it.
    fn label(&self, port: &PortStatus) -> String {
        let number = port.listen.port();
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

    use super::super::status::{Counts, Engine, Pools, Reload, Traces};
    use super::*;
    use crate::outcome::{Outcome, Reason};

    fn port(listen: &str, limit: Option<u32>, metrics: &PortMetrics) -> PortStatus {
        PortStatus {
            listen: listen.parse().expect("an address"),
            app: "127.0.0.1:3000".into(),
            protocol: "tcp",
            mode: "enforce",
            limit,
            active: 2,
            queued: 1,
            queue_length: 16,
            peak_active: 3,
            counts: Counts::read(metrics),
            would_refuse: 0,
            shadow: [(25, 4)].into(),
        }
    }

    fn page(format: Format) -> String {
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
        let status = Status {
            version: "0.1.0",
            engine: Engine { name: "epoll", reason: "asked \"so\"".into() },
            phase: Phase::Closing,
            workers: 1,
            ports: vec![
                port("0.0.0.0:8080", Some(8), &metrics),
                port("0.0.0.0:8081", None, &PortMetrics::default()),
            ],
            connections: 1,
            max_connections: 100,
            pools: Pools { in_use: 0 },
            ring_ops: 0,
            admin: local,
            probe: local,
            metrics: local,
            uptime_seconds: 1.0,
            last_reload: Reload { ok: true, error: None, last_success: SystemTime::now() },
            drain: None,
            traces: Some(Traces {
                exported: 5,
                queue_full: 2,
                export_failed: 1,
                too_many: 3,
                capped: 7,
            }),
        };
        scrape(status, vec![metrics, Arc::default()], format)
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
            "tidegate_connections_active{port=\"8080\"} 1",
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
        ] {
            has(&page, line);
        }
        assert!(page.contains("\nprocess_cpu_seconds_total "));
        assert!(!page.contains("# EOF") && !page.contains("# UNIT") && !page.contains("unknown"));
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
    fn openmetrics_is_asked_for_by_name() {
        let accept =
            "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3";
        assert_eq!(Format::negotiate(accept), Format::OpenMetrics);
        assert_eq!(Format::negotiate("text/plain"), Format::Classic);
        assert_eq!(Format::negotiate("*/*"), Format::Classic);
        let page = page(Format::OpenMetrics);
        assert!(page.ends_with("# EOF\n"));
        has(&page, "# TYPE tidegate_build info");
        has(&page, "# TYPE tidegate_admission_decisions counter");
        has(&page, "tidegate_admission_limit{port=\"8081\"} +Inf");
    }
}
