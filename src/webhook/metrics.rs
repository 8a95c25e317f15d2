//! What the webhook counts, and its metrics page. Counting is a relaxed addition; gauges are read when
//! somebody asks.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::registry::Registry;

use crate::admin::exposition::{Families, Labels, write};
use crate::admin::negotiate::Format;
use crate::admin::process::Process;
use crate::metrics::Histogram;

use super::Injector;

/// How a review ended. The label of the metric, and the word in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// The pod gets a gateway.
    Patched,
    /// It needs nothing.
    Unchanged,
    /// It cannot have one; it starts without.
    Refused,
    /// It was no review.
    Malformed,
    /// It was more than we read.
    TooLarge,
    /// It did not come in time.
    TooSlow,
    /// Too much of others was under way.
    Overloaded,
    /// A flaw of ours.
    Failed,
}

/// What is read again when it changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    Certificate,
    Operator,
}

/// Everything that is counted.
#[derive(Debug)]
pub(super) struct Metrics {
    reviews: [AtomicU64; Ended::ALL.len()],
    took: Histogram,
    outdated: AtomicU64,
    /// Put in force, and refused; by source.
    reloads: [[AtomicU64; 2]; 2],
    /// The last one could not be used; by source.
    stale: [AtomicBool; 2],
    /// Accepted, closed.
    pub(super) connections: [AtomicU64; 2],
    pub(super) handshakes_failed: AtomicU64,
    /// Closed because all seats were taken.
    pub(super) evicted: AtomicU64,
}

/// A review's own work is well below a millisecond; 10 ms are promised for nearly all of them.
const BOUNDS: [Duration; 10] = [
    Duration::from_micros(100),
    Duration::from_micros(250),
    Duration::from_micros(500),
    Duration::from_millis(1),
    Duration::from_micros(2500),
    Duration::from_millis(5),
    Duration::from_millis(10),
    Duration::from_millis(25),
    Duration::from_millis(100),
    Duration::from_secs(1),
];

impl Ended {
    const ALL: [Self; 8] = [
        Self::Patched,
        Self::Unchanged,
        Self::Refused,
        Self::Malformed,
        Self::TooLarge,
        Self::TooSlow,
        Self::Overloaded,
        Self::Failed,
    ];

    pub(super) const fn label(self) -> &'static str {
        match self {
            Self::Patched => "patched",
            Self::Unchanged => "unchanged",
            Self::Refused => "refused",
            Self::Malformed => "malformed",
            Self::TooLarge => "too_large",
            Self::TooSlow => "too_slow",
            Self::Overloaded => "overloaded",
            Self::Failed => "failed",
        }
    }
}

impl Source {
    const ALL: [Self; 2] = [Self::Certificate, Self::Operator];

    const fn label(self) -> &'static str {
        match self {
            Self::Certificate => "certificate",
            Self::Operator => "operator",
        }
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            reviews: Default::default(),
            took: Histogram::new(&BOUNDS),
            outdated: AtomicU64::default(),
            reloads: Default::default(),
            stale: Default::default(),
            connections: Default::default(),
            handshakes_failed: AtomicU64::default(),
            evicted: AtomicU64::default(),
        }
    }
}

impl Metrics {
    /// A review ended so. `took`: from its last byte to the answer, if it was judged.
    pub(super) fn reviewed(&self, ended: Ended, took: Option<Duration>) {
        self.reviews[ended as usize].fetch_add(1, Ordering::Relaxed);
        if let Some(took) = took {
            self.took.observe(took);
        }
    }

    /// A pod came with a sidecar of another version than we would have given it.
    pub(super) fn saw_outdated(&self) {
        self.outdated.fetch_add(1, Ordering::Relaxed);
    }

    /// A file was read again.
    pub(super) fn reloaded(&self, source: Source, applied: bool) {
        self.reloads[source as usize][usize::from(!applied)].fetch_add(1, Ordering::Relaxed);
        self.stale[source as usize].store(!applied, Ordering::Relaxed);
    }

    /// How many have been answered in whatever way.
    pub(super) fn reviews(&self) -> u64 {
        self.reviews.iter().map(|count| count.load(Ordering::Relaxed)).sum()
    }
}

/// The page.
pub(super) fn page(injector: &Arc<Injector>, format: Format) -> String {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Page(injector.clone())));
    write(&registry, format)
}

struct Page(Arc<Injector>);

impl fmt::Debug for Page {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Page")
    }
}

impl Collector for Page {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut out = Families(encoder);
        out.info(
            "tidegate_build",
            "The program",
            vec![("version", env!("CARGO_PKG_VERSION").to_owned())],
        )?;
        self.reviews(&mut out)?;
        self.files(&mut out)?;
        self.connections(&mut out)?;
        Process::now().map_or(Ok(()), |process| process.encode(&mut out))
    }
}

impl Page {
    fn reviews(&self, out: &mut Families<'_>) -> fmt::Result {
        let metrics = &self.0.metrics;
        let series = Ended::ALL.into_iter().zip(&metrics.reviews);
        let series = series.map(|(ended, count)| (label("result", ended.label()), get(count)));
        out.counters(
            "tidegate_webhook_reviews",
            "Admission reviews, by what became of them",
            series.collect(),
        )?;
        out.histograms(
            "tidegate_webhook_review_duration_seconds",
            "From the last byte of a review to the answer",
            one(metrics.took.snapshot()),
        )?;
        out.counters(
            "tidegate_webhook_outdated_sidecars",
            "Pods that came with a sidecar of another version than this injector's",
            one(get(&metrics.outdated)),
        )
    }

    fn files(&self, out: &mut Families<'_>) -> fmt::Result {
        let metrics = &self.0.metrics;
        let [from, until] = self.0.identity().seconds();
        out.gauges(
            "tidegate_webhook_certificate_not_before_timestamp_seconds",
            "When the certificate in use begins to be valid",
            one(from),
        )?;
        out.gauges(
            "tidegate_webhook_certificate_expiry_timestamp_seconds",
            "When the certificate in use expires",
            one(until),
        )?;
        let reloads = Source::ALL.into_iter().zip(&metrics.reloads).flat_map(|(source, counts)| {
            ["applied", "refused"].into_iter().zip(counts).map(move |(result, count)| {
                (vec![("source", source.label().into()), ("result", result.into())], get(count))
            })
        });
        out.counters(
            "tidegate_webhook_reloads",
            "Files that changed, and whether they were put in force",
            reloads.collect(),
        )?;
        let stale = Source::ALL.into_iter().zip(&metrics.stale);
        let good = stale.map(|(source, stale)| {
            (label("source", source.label()), u64::from(!stale.load(Ordering::Relaxed)))
        });
        out.gauges(
            "tidegate_webhook_last_reload_successful",
            "Whether what is there now is in force; 0: it cannot be used, and what was before holds",
            good.collect(),
        )
    }

    fn connections(&self, out: &mut Families<'_>) -> fmt::Result {
        let metrics = &self.0.metrics;
        // In this order none can seem to have closed before it came.
        let [_, closed] = &metrics.connections;
        let closed = get(closed);
        let accepted = get(&metrics.connections[0]);
        out.counters(
            "tidegate_webhook_connections_accepted",
            "Connections to the address of reviews",
            one(accepted),
        )?;
        out.gauges(
            "tidegate_webhook_connections_active",
            "Those that are open",
            one(accepted.saturating_sub(closed)),
        )?;
        out.counters(
            "tidegate_webhook_connections_evicted",
            "Connections that were closed because all places were taken",
            one(get(&metrics.evicted)),
        )?;
        out.counters(
            "tidegate_webhook_tls_handshakes_failed",
            "Clients that did not take the certificate, spoke no TLS, or were too slow",
            one(get(&metrics.handshakes_failed)),
        )
    }
}

fn get(count: &AtomicU64) -> u64 {
    count.load(Ordering::Relaxed)
}

fn label(name: &'static str, value: &str) -> Labels {
    vec![(name, value.to_owned())]
}

fn one<V>(value: V) -> Vec<(Labels, V)> {
    vec![(Labels::new(), value)]
}
