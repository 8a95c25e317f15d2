//! The metrics page, made afresh from the status at every scrape, so that no gauge is ever stale.
//! Names and meanings follow the conventions of Prometheus: base units, sums over labels that mean
//! something, and per port
//!
//! ```text
//! tidegate_connections_accepted_total = sum(tidegate_admission_decisions_total) + what still waits
//!                                     = sum(tidegate_connections_total) + tidegate_connections_active
//! ```

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeCounterValue, EncodeGaugeValue, EncodeMetric, NoLabelSet, text,
};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::exemplar::Exemplar;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use crate::lifecycle::Phase;
use crate::metrics::PortMetrics;

use super::process::Process;
use super::status::{PortStatus, Status};

/// How the page is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    /// What Prometheus has read since it exists.
    Classic,
    /// Its successor.
    OpenMetrics,
}

impl Format {
    /// The format a client asks for.
    pub(super) fn negotiate(accept: &str) -> Self {
        let asked = accept.contains("application/openmetrics-text");
        if asked { Self::OpenMetrics } else { Self::Classic }
    }

    /// What to call it.
    pub(super) const fn content_type(self) -> &'static str {
        match self {
            Self::Classic => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// The page. `ports` are in the order of `status.ports`.
pub(super) fn scrape(status: Status, ports: Vec<Arc<PortMetrics>>, format: Format) -> String {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Page { status, ports, process: Process::now() }));
    let mut page = String::with_capacity(16 * 1024);
    text::encode(&mut page, &registry).expect("writing to a string cannot fail");
    match format {
        Format::OpenMetrics => page.replace(" inf\n", " +Inf\n"),
        Format::Classic => classic(&page),
    }
}

#[derive(Debug)]
struct Page {
    status: Status,
    ports: Vec<Arc<PortMetrics>>,
    process: Option<Process>,
}

type Labels = Vec<(&'static str, String)>;

impl Collector for Page {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut out = Families(encoder);
        self.about(&mut out)?;
        self.admission(&mut out)?;
        self.connections(&mut out)?;
        self.lifecycle(&mut out)?;
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

struct Families<'a>(DescriptorEncoder<'a>);

impl Families<'_> {
    fn info(&mut self, name: &str, help: &str, labels: Labels) -> fmt::Result {
        self.0.encode_descriptor(name, help, None, MetricType::Info)?.encode_info(&labels)
    }

    fn gauges<V>(&mut self, name: &str, help: &str, series: Vec<(Labels, V)>) -> fmt::Result
    where
        V: EncodeGaugeValue,
    {
        let mut family = self.0.encode_descriptor(name, help, None, MetricType::Gauge)?;
        series.iter().try_for_each(|(labels, value)| match labels.is_empty() {
            true => family.encode_gauge(value),
            false => family.encode_family(labels)?.encode_gauge(value),
        })
    }

    /// `name` without `_total`.
    fn counters<V>(&mut self, name: &str, help: &str, series: Vec<(Labels, V)>) -> fmt::Result
    where
        V: EncodeCounterValue,
    {
        const PLAIN: Option<&Exemplar<NoLabelSet, f64>> = None;
        let mut family = self.0.encode_descriptor(name, help, None, MetricType::Counter)?;
        series.iter().try_for_each(|(labels, value)| match labels.is_empty() {
            true => family.encode_counter(value, PLAIN),
            false => family.encode_family(labels)?.encode_counter(value, PLAIN),
        })
    }

    fn histograms(
        &mut self,
        name: &str,
        help: &str,
        series: Vec<(Labels, Histogram)>,
    ) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, None, MetricType::Histogram)?;
        series
            .iter()
            .try_for_each(|(labels, histogram)| histogram.encode(family.encode_family(labels)?))
    }
}

/// OpenMetrics text as the classic format: a counter's name has its `_total` also in HELP and TYPE,
/// an info is a gauge, and there are no UNIT and no EOF lines.
fn classic(page: &str) -> String {
    let mut types: HashMap<&str, &str> = HashMap::new();
    for line in page.lines() {
        if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|l| l.split_once(' ')) {
            types.insert(name, kind);
        }
    }
    let mut out = String::with_capacity(page.len());
    for line in page.lines() {
        let comment = line.strip_prefix("# ").and_then(|rest| rest.split_once(' '));
        let Some((word, rest)) = comment else {
            if line != "# EOF" {
                out += line
                    .strip_suffix(" inf")
                    .map_or(line.to_owned(), |l| l.to_owned() + " +Inf")
                    .as_str();
                out.push('\n');
            }
            continue;
        };
        let (name, text) = rest.split_once(' ').unwrap_or((rest, ""));
        let (suffix, kind) = match types.get(name) {
            Some(&"counter") => ("_total", "counter"),
            Some(&"info") => ("_info", "gauge"),
            Some(kind) => ("", *kind),
            None => ("", "untyped"),
        };
        match word {
            "HELP" => out += &format!("# HELP {name}{suffix} {text}\n"),
            "TYPE" => out += &format!("# TYPE {name}{suffix} {kind}\n"),
            _ => {}
        }
    }
    out
}
