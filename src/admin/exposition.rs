//! How metrics are written: OpenMetrics by prometheus-client, and from that the classic text.

use std::collections::HashMap;
use std::fmt;
use std::time::Duration;

use prometheus_client::encoding::{
    DescriptorEncoder, EncodeCounterValue, EncodeGaugeValue, NoLabelSet, text,
};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::exemplar::Exemplar;
use prometheus_client::registry::{Registry, Unit};

use crate::metrics::Snapshot;

use super::negotiate::Format;

/// The labels of one series.
pub(crate) type Labels = Vec<(&'static str, String)>;

/// The page of a registry.
pub(crate) fn write(registry: &Registry, format: Format) -> String {
    let mut page = String::with_capacity(16 * 1024);
    text::encode(&mut page, registry).expect("writing to a string cannot fail");
    // Both formats have "+Inf"; the encoder writes Rust's "inf".
    let page = page.replace(" inf\n", " +Inf\n");
    match format {
        Format::OpenMetrics => page,
        Format::Classic => classic(&page),
    }
}

/// Families of metrics, written one after the other.
pub(crate) struct Families<'a>(pub(crate) DescriptorEncoder<'a>);

impl Families<'_> {
    pub(crate) fn info(&mut self, name: &str, help: &str, labels: Labels) -> fmt::Result {
        self.0.encode_descriptor(name, help, None, MetricType::Info)?.encode_info(&labels)
    }

    pub(crate) fn gauges<V>(
        &mut self,
        name: &str,
        help: &str,
        series: Vec<(Labels, V)>,
    ) -> fmt::Result
    where
        V: EncodeGaugeValue,
    {
        let (name, unit) = unit_of(name);
        let mut family = self.0.encode_descriptor(name, help, unit.as_ref(), MetricType::Gauge)?;
        series.iter().try_for_each(|(labels, value)| match labels.is_empty() {
            true => family.encode_gauge(value),
            false => family.encode_family(labels)?.encode_gauge(value),
        })
    }

    /// `name` without `_total`.
    pub(crate) fn counters<V>(
        &mut self,
        name: &str,
        help: &str,
        series: Vec<(Labels, V)>,
    ) -> fmt::Result
    where
        V: EncodeCounterValue,
    {
        const PLAIN: Option<&Exemplar<NoLabelSet, f64>> = None;
        let (name, unit) = unit_of(name);
        let mut family =
            self.0.encode_descriptor(name, help, unit.as_ref(), MetricType::Counter)?;
        series.iter().try_for_each(|(labels, value)| match labels.is_empty() {
            true => family.encode_counter(value, PLAIN),
            false => family.encode_family(labels)?.encode_counter(value, PLAIN),
        })
    }

    pub(crate) fn histograms(
        &mut self,
        name: &str,
        help: &str,
        series: Vec<(Labels, Snapshot)>,
    ) -> fmt::Result {
        const PLAIN: Option<&HashMap<usize, Exemplar<NoLabelSet, f64>>> = None;
        let (name, unit) = unit_of(name);
        let kind = MetricType::Histogram;
        let mut family = self.0.encode_descriptor(name, help, unit.as_ref(), kind)?;
        series.iter().try_for_each(|(labels, seen)| {
            let (sum, count, buckets) = (seen.sum.as_secs_f64(), seen.count(), buckets(seen));
            match labels.is_empty() {
                true => family.encode_histogram(sum, count, &buckets, PLAIN),
                false => {
                    family.encode_family(labels)?.encode_histogram(sum, count, &buckets, PLAIN)
                }
            }
        })
    }
}

/// The unit that a name ends in, which OpenMetrics wants to be said, and what is before it.
fn unit_of(name: &str) -> (&str, Option<Unit>) {
    let (front, last) = name.rsplit_once('_').unwrap_or((name, ""));
    let unit = match last {
        "seconds" => Unit::Seconds,
        "bytes" => Unit::Bytes,
        "ratio" => Unit::Other("ratio".to_owned()),
        _ => return (name, None),
    };
    (front, Some(unit))
}

/// As the encoder wants them: each bound with the count of its own bucket.
fn buckets(seen: &Snapshot) -> Vec<(f64, u64)> {
    let bounds = seen.bounds.iter().map(Duration::as_secs_f64).chain([f64::INFINITY]);
    let mut below = 0;
    let counts =
        seen.cumulative.iter().map(|so_far| so_far - std::mem::replace(&mut below, *so_far));
    bounds.zip(counts).collect()
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
                out.push_str(line);
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
