//! Export: what was recorded becomes spans and goes to a collector over OTLP.
//!
//! ```text
//! worker threads ──offer──→ bounded queue ──→ one thread: spans, batches ──→ collector
//! ```
//!
//! Always true: offering never waits; what does not fit is dropped, the newest, and counted. A collector
//! that is absent, slow, stuck or hostile keeps that one thread busy and nobody else, and delays the end
//! of the process by [`FLUSH`] at most.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_http::hyper::HyperClient;
use opentelemetry_otlp::tonic_types::metadata::MetadataMap;
use opentelemetry_otlp::{
    ExporterBuildError, Protocol as Otlp, SpanExporter, WithExportConfig, WithHttpConfig,
    WithTonicConfig,
};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{SpanData, SpanExporter as _};
use tokio::sync::Notify;
use tonic::transport::Endpoint;

use super::dial::{Dial, TlsError, Version, Why};
pub use super::dial::{Pem, Tls};

/// Spans that may wait, those on their way included: OpenTelemetry's own default.
pub const QUEUE: usize = 2048;

/// Spans sent at once: OpenTelemetry's own default.
const BATCH: usize = 512;

/// How long the last spans may take at exit.
const FLUSH: Duration = Duration::from_secs(1);

/// How often a collector that takes nothing is spoken of.
const COMPLAIN: Duration = Duration::from_secs(60);

/// Where spans go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The whole URL.
    pub endpoint: String,
    /// How the collector is spoken to.
    pub protocol: Protocol,
    /// Whom to believe there, and who we are, if that is asked; `None`: the URL says `http`.
    pub tls: Option<Tls>,
    /// What else is said with every export, such as a token.
    pub headers: Vec<(String, String)>,
    /// How long one export may take.
    pub timeout: Duration,
    /// How long spans wait for others.
    pub delay: Duration,
    /// What is true of every span: service, pod, node.
    pub resource: Vec<(String, String)>,
}

/// How a collector is spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// OTLP over gRPC.
    Grpc,
    /// OTLP as protobuf over HTTP/1.1.
    Http,
}

/// What was recorded of one thing. It becomes spans only on the exporter's thread.
pub trait Record: Send {
    /// How many spans it will be.
    fn count(&self) -> usize;
    /// The spans.
    fn spans(self: Box<Self>, into: &mut Vec<SpanData>);
}

/// What became of spans so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Taken by the collector.
    pub exported: u64,
    /// Dropped, because too many waited already.
    pub queue_full: u64,
    /// Dropped, because the collector did not take them.
    pub failed: u64,
    /// Dropped, because the control plane made more than it may in a second.
    pub too_many: u64,
}

/// Where records are handed in. Clones are the same queue.
#[derive(Clone)]
pub struct Queue(Arc<Shared>);

/// The exporter's thread; dropping it lets it finish, but not for ever.
pub struct Exporter {
    queue: Queue,
    finished: Receiver<()>,
    /// How long the last spans may take.
    leave: Duration,
}

struct Shared {
    waiting: Mutex<Waiting>,
    /// A batch is there, or the end.
    wake: Notify,
    stopping: AtomicBool,
    exported: AtomicU64,
    queue_full: AtomicU64,
    failed: AtomicU64,
    too_many: AtomicU64,
}

#[derive(Default)]
struct Waiting {
    records: VecDeque<Box<dyn Record>>,
    /// Of these records, and of those on their way.
    spans: usize,
}

/// Who made a span: a part of this program.
pub fn scope(name: &'static str) -> InstrumentationScope {
    InstrumentationScope::builder(name).with_version(env!("CARGO_PKG_VERSION")).build()
}

/// Begin to export what is in `queue`. `leave`: what the last spans may take at exit, if that is less than
/// [`FLUSH`].
pub fn start(queue: Queue, config: Config, leave: Duration) -> io::Result<Exporter> {
    let (done, finished) = sync_channel(1);
    let shared = queue.0.clone();
    thread::Builder::new().name("trace".into()).spawn(move || {
        match tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(1)
            .build()
        {
            Ok(runtime) => runtime.block_on(export(&shared, &config)),
            Err(error) => tracing::error!(%error, "traces are not exported"),
        }
        let _ = done.send(());
        // The name of a collector may still be looked up; nobody waits for that.
    })?;
    Ok(Exporter { queue, finished, leave: leave.min(FLUSH) })
}

impl Drop for Exporter {
    fn drop(&mut self) {
        self.queue.0.stopping.store(true, Ordering::Release);
        self.queue.0.wake.notify_one();
        let _ = self.finished.recv_timeout(self.leave);
    }
}

impl Queue {
    /// Nobody takes anything out of it yet.
    pub(super) fn new() -> Self {
        Self(Arc::new(Shared {
            waiting: Mutex::default(),
            wake: Notify::new(),
            stopping: AtomicBool::new(false),
            exported: AtomicU64::new(0),
            queue_full: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            too_many: AtomicU64::new(0),
        }))
    }

    /// A queue that is never emptied; for measurements.
    pub fn idle() -> Self {
        Self::new()
    }

    /// Have this exported, unless too much waits already.
    pub fn offer(&self, record: Box<dyn Record>) {
        let shared = &*self.0;
        let count = record.count();
        let mut waiting = shared.lock();
        let before = waiting.spans;
        if before + count > QUEUE {
            drop(waiting);
            shared.queue_full.fetch_add(count as u64, Ordering::Relaxed);
            return;
        }
        waiting.spans += count;
        waiting.records.push_back(record);
        drop(waiting);
        // Waking the thread is a system call: once for a batch.
        if before < BATCH && before + count >= BATCH {
            shared.wake.notify_one();
        }
    }

    /// One that is not even offered, because of too many like it.
    pub(super) fn turn_away(&self) {
        self.0.too_many.fetch_add(1, Ordering::Relaxed);
    }

    /// What waits, as spans.
    #[cfg(test)]
    pub(super) fn take(&self) -> Vec<SpanData> {
        self.0.batch()
    }

    /// What became of them so far.
    pub fn counts(&self) -> Counts {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let Shared { exported, queue_full, failed, too_many, .. } = &*self.0;
        Counts {
            exported: read(exported),
            queue_full: read(queue_full),
            failed: read(failed),
            too_many: read(too_many),
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next batch; empty if nothing waits.
    fn batch(&self) -> Vec<SpanData> {
        let mut records = Vec::new();
        let mut count = 0;
        let mut waiting = self.lock();
        while let Some(record) = waiting.records.front()
            && (count == 0 || count + record.count() <= BATCH)
        {
            count += record.count();
            records.extend(waiting.records.pop_front());
        }
        drop(waiting);
        let mut spans = Vec::with_capacity(count);
        records.into_iter().for_each(|record| record.spans(&mut spans));
        spans
    }

    /// These are no longer on their way.
    fn settle(&self, count: usize, taken: bool) {
        self.lock().spans -= count;
        let counter = if taken { &self.exported } else { &self.failed };
        counter.fetch_add(count as u64, Ordering::Relaxed);
    }
}

/// Nothing can be sent.
#[derive(Debug, thiserror::Error)]
enum BuildError {
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error("{0}; look at OTEL_EXPORTER_OTLP_ENDPOINT and its sisters")]
    Address(#[from] tonic::transport::Error),
    #[error("{0}; look at OTEL_EXPORTER_OTLP_ENDPOINT and its sisters")]
    Exporter(#[from] ExporterBuildError),
}

/// The thread's work, until it is told to stop and has sent what was left.
async fn export(shared: &Shared, config: &Config) {
    let mut line = Line { config, exporter: None, why: Why::default() };
    let mut health = Health::default();
    loop {
        tokio::select! {
            () = tokio::time::sleep(config.delay) => {}
            () = shared.wake.notified() => {}
        }
        let last = shared.stopping.load(Ordering::Acquire);
        loop {
            let spans = shared.batch();
            if spans.is_empty() {
                break;
            }
            let count = spans.len();
            let sent = line.send(spans).await;
            shared.settle(count, sent.is_ok());
            health.note(sent, &config.endpoint);
        }
        if last {
            return;
        }
    }
}

/// The line to the collector.
struct Line<'a> {
    config: &'a Config,
    /// Made when there is something to send.
    exporter: Option<SpanExporter>,
    why: Why,
}

impl Line<'_> {
    async fn send(&mut self, spans: Vec<SpanData>) -> Result<(), String> {
        let exporter = match &mut self.exporter {
            Some(exporter) => exporter,
            none => {
                let built = build(self.config, &self.why).map_err(|error| error.to_string())?;
                none.insert(built)
            }
        };
        self.why.take();
        // The exporter has a timeout of its own; this one also bounds what it does besides.
        let sent = tokio::time::timeout(self.config.timeout, exporter.export(spans)).await;
        let sent = sent.map_err(|_| "it did not answer in time".to_owned());
        let sent = sent.and_then(|sent| sent.map_err(|error| error.to_string()));
        let sent = sent.map_err(|error| match self.why.take() {
            Some(why) => format!("{error}: {why}"),
            None => error,
        });
        if sent.is_err() && self.config.tls.as_ref().is_some_and(Tls::has_files) {
            // They may have been renewed: they are read again.
            self.exporter = None;
        }
        sent
    }
}

/// Whether the collector is said to take nothing, and when that was last said.
#[derive(Default)]
struct Health {
    failing: bool,
    complained: Option<Instant>,
}

impl Health {
    fn note(&mut self, sent: Result<(), String>, endpoint: &str) {
        let lately = self.complained.is_some_and(|at| at.elapsed() < COMPLAIN);
        match sent {
            Err(error) if !lately => {
                (self.failing, self.complained) = (true, Some(Instant::now()));
                let advice = "traffic is not affected";
                tracing::warn!(endpoint, error, advice, "the collector does not take spans");
            }
            Ok(()) if self.failing => {
                self.failing = false;
                tracing::info!(endpoint, "the collector takes spans again");
            }
            Err(_) | Ok(()) => {}
        }
    }
}

fn build(config: &Config, why: &Why) -> Result<SpanExporter, BuildError> {
    let dial = |version| Dial::new(config.tls.as_ref(), version, why.clone());
    let mut exporter = match config.protocol {
        Protocol::Grpc => {
            let endpoint = Endpoint::from_shared(config.endpoint.clone())?.timeout(config.timeout);
            SpanExporter::builder()
                .with_tonic()
                .with_channel(endpoint.connect_with_connector_lazy(dial(Version::Two)?))
                .with_timeout(config.timeout)
                .with_metadata(MetadataMap::from_headers(headers(config)))
                .build()?
        }
        Protocol::Http => SpanExporter::builder()
            .with_http()
            .with_http_client(HyperClient::new(dial(Version::One)?, config.timeout, None))
            .with_protocol(Otlp::HttpBinary)
            .with_endpoint(&config.endpoint)
            .with_timeout(config.timeout)
            .with_headers(config.headers.iter().cloned().collect())
            .build()?,
    };
    let resource = config.resource.iter().map(|(k, v)| KeyValue::new(k.clone(), v.clone()));
    exporter.set_resource(&Resource::builder_empty().with_attributes(resource).build());
    Ok(exporter)
}

fn headers(config: &Config) -> http::HeaderMap {
    let pairs = config.headers.iter();
    pairs
        .filter_map(|(name, value)| Some((name.parse().ok()?, value.parse().ok()?)))
        .collect::<Vec<(http::HeaderName, http::HeaderValue)>>()
        .into_iter()
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Three;

    impl Record for Three {
        fn count(&self) -> usize {
            3
        }

        fn spans(self: Box<Self>, _: &mut Vec<SpanData>) {}
    }

    /// A29: bounded, the newest dropped, counted.
    #[test]
    fn the_queue_is_bounded_and_counts_what_it_drops() {
        let queue = Queue::new();
        for _ in 0..1000 {
            queue.offer(Box::new(Three));
        }
        let fit = QUEUE / 3;
        assert_eq!(queue.counts().queue_full, (1000 - fit as u64) * 3);
        // What is on its way still counts.
        queue.0.batch();
        queue.offer(Box::new(Three));
        assert_eq!(queue.counts().queue_full, (1001 - fit as u64) * 3);
        queue.0.settle(3, false);
        queue.offer(Box::new(Three));
        let queue_full = (1001 - fit as u64) * 3;
        let counts = Counts { queue_full, failed: 3, ..Counts::default() };
        assert_eq!(queue.counts(), counts);
    }

    #[test]
    fn a_batch_is_no_larger_than_it_may_be() {
        let queue = Queue::new();
        (0..BATCH).for_each(|_| queue.offer(Box::new(Three)));
        queue.0.batch();
        assert_eq!(queue.0.lock().records.len(), BATCH - BATCH / 3);
    }
}
