//! What the control plane does, as ordinary spans: a start, a change of settings, a drain.
//!
//! ```text
//! spans of TARGET ──tracing-opentelemetry──→ Offer ──offer──→ the queue of the requests' spans
//! ```
//!
//! Always true: the layer sees nothing but [`TARGET`], at whatever log level, and the log never sees that;
//! without a collector there is no layer. These spans are not sampled; beyond [`MOST`] a second they are
//! dropped and counted.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use opentelemetry::Context;
use opentelemetry::trace::TracerProvider;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{
    Sampler, SdkTracerProvider, Span as Begun, SpanData, SpanProcessor,
};
use tracing::field::Empty;
use tracing::{Level, Span, Subscriber, info, info_span};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::registry::LookupSpan;

use super::export::{Queue, Record, scope};

/// The target of these spans, and of what happens in them.
pub const TARGET: &str = "tidegate::control";

/// Spans a second: operators make some a minute, a script in a loop is not to push out the requests'.
const MOST: u32 = 10;

/// From the beginning of the process until it serves.
pub struct Start(Span);

/// A change of settings.
pub struct Change(Span);

/// A drain; its phases are events.
pub struct Drain(Span);

impl Start {
    /// It begins.
    #[expect(clippy::new_without_default, reason = "making one is beginning to measure")]
    pub fn new() -> Self {
        Self(info_span!(
            target: TARGET,
            parent: None,
            "tidegate.start",
            tidegate.engine.name = Empty,
            tidegate.engine.reason = Empty,
        ))
    }

    /// The listeners are open and the workers accept.
    pub fn serving(self, engine: &str, reason: &str) {
        self.0.record("tidegate.engine.name", engine);
        self.0.record("tidegate.engine.reason", reason);
    }
}

impl Change {
    /// It begins. `source`: who wants it.
    pub fn by(source: &'static str) -> Self {
        Self(info_span!(
            target: TARGET,
            parent: None,
            "tidegate.settings.change",
            tidegate.settings.source = source,
            tidegate.settings.keys = Empty,
            tidegate.settings.result = Empty,
            error.type = Empty,
            otel.status_code = Empty,
        ))
    }

    /// These settings are in force.
    pub fn applied(self, keys: &[&str]) {
        self.end("applied", keys);
    }

    /// Nothing has changed.
    pub fn refused(self, keys: &[&str]) {
        self.0.record("error.type", "refused");
        self.0.record("otel.status_code", "error");
        self.end("refused", keys);
    }

    fn end(self, result: &str, keys: &[&str]) {
        self.0.record("tidegate.settings.result", result);
        self.0.record("tidegate.settings.keys", keys.join(","));
    }
}

impl Drain {
    /// It begins, with so many that hold a slot and so many that wait for one.
    pub fn new(cause: &str, in_flight: u64, queued: u64) -> Self {
        Self(info_span!(
            target: TARGET,
            parent: None,
            "tidegate.drain",
            tidegate.drain.cause = cause,
            tidegate.drain.in_flight_at_start = number(in_flight),
            tidegate.drain.queued_at_start = number(queued),
            tidegate.drain.finished = Empty,
            tidegate.drain.cut = Empty,
            tidegate.drain.refused = Empty,
            error.type = Empty,
            otel.status_code = Empty,
        ))
    }

    /// The next phase, with so many connections still open.
    pub fn phase(&self, name: &'static str, open: u64) {
        info!(target: TARGET, parent: &self.0, { tidegate.drain.open = number(open) }, "{name}");
    }

    /// The application has started anew, and the listeners have not been closed.
    pub fn taken_back(self) {
        info!(target: TARGET, parent: &self.0, "taken back");
    }

    /// It is over.
    pub fn ended(self, finished: u64, cut: u64, refused: u64) {
        self.0.record("tidegate.drain.finished", number(finished));
        self.0.record("tidegate.drain.cut", number(cut));
        self.0.record("tidegate.drain.refused", number(refused));
        if cut > 0 {
            self.0.record("error.type", "cut");
            self.0.record("otel.status_code", "error");
        }
    }
}

/// OpenTelemetry has signed numbers only; an unsigned one would become a text.
fn number(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// What hands these spans to the exporter's thread, and takes notice of no others.
pub(super) fn layer<S>(queue: Queue) -> impl Layer<S>
where
    S: Subscriber + for<'span> LookupSpan<'span>,
{
    let provider = SdkTracerProvider::builder()
        .with_sampler(Sampler::AlwaysOn)
        .with_span_processor(Offer { queue, window: Mutex::new((Instant::now(), 0)) })
        // Who we are, the exporter says.
        .with_resource(Resource::builder_empty().build())
        .build();
    tracing_opentelemetry::layer()
        .with_tracer(provider.tracer_with_scope(scope("tidegate::control")))
        .with_location(false)
        .with_threads(false)
        .with_target(false)
        .with_tracked_inactivity(false)
        .with_context_activation(false)
        .with_filter(Targets::new().with_target(TARGET, Level::INFO))
}

/// Offers what has ended to the queue, and so never waits.
struct Offer {
    queue: Queue,
    /// When the second began, and the spans in it.
    window: Mutex<(Instant, u32)>,
}

impl Offer {
    fn has_room(&self, now: Instant) -> bool {
        let mut window = self.window.lock().unwrap_or_else(PoisonError::into_inner);
        if now.saturating_duration_since(window.0) >= Duration::from_secs(1) {
            *window = (now, 0);
        }
        window.1 += 1;
        window.1 <= MOST
    }
}

impl SpanProcessor for Offer {
    fn on_start(&self, _: &mut Begun, _: &Context) {}

    fn on_end(&self, span: SpanData) {
        if self.has_room(Instant::now()) {
            self.queue.offer(Box::new(span));
        } else {
            self.queue.turn_away();
        }
    }

    /// The exporter's thread sends what waits by itself, at the end too.
    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
        Ok(())
    }
}

impl std::fmt::Debug for Offer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Offer").finish_non_exhaustive()
    }
}

impl Record for SpanData {
    fn count(&self) -> usize {
        1
    }

    fn spans(self: Box<Self>, into: &mut Vec<SpanData>) {
        into.push(*self);
    }
}

#[cfg(test)]
mod tests {
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    /// Everything that waits in the queue.
    fn waiting(queue: &Queue) -> Vec<SpanData> {
        queue.take()
    }

    #[test]
    fn only_our_target_is_seen_and_no_more_than_the_cap() {
        let queue = Queue::idle();
        let subscriber = tracing_subscriber::registry().with(layer(queue.clone()));
        tracing::subscriber::with_default(subscriber, || {
            let elsewhere = info_span!(target: "h2::proto", "send_headers");
            let _inside = elsewhere.enter();
            let drain = Drain::new("signal", 3, 1);
            drain.phase("announcing", 4);
            info!(parent: &drain.0, "of another target");
            drain.ended(2, 1, 0);
            (0..MOST + 5).for_each(|_| Change::by("set").applied(&["limit"]));
        });
        let spans = waiting(&queue);
        // The seconds of a slow machine may be two.
        assert!(spans.len() >= MOST as usize, "{} spans", spans.len());
        assert_eq!(spans.len() as u64 + queue.counts().too_many, 1 + u64::from(MOST) + 5);
        let drain = &spans[0];
        assert_eq!((&*drain.name, drain.events.len()), ("tidegate.drain", 1));
        assert_eq!(&*drain.events[0].name, "announcing");
        let failed = opentelemetry::trace::Status::error("");
        assert_eq!(drain.status, failed, "it cut one");
        assert_eq!(drain.parent_span_id, opentelemetry::SpanId::INVALID);
    }

    #[test]
    fn a_second_has_so_many() {
        let offer = Offer { queue: Queue::idle(), window: Mutex::new((Instant::now(), 0)) };
        let start = Instant::now();
        let asked = |at| (0..100).filter(|_| offer.has_room(at)).count();
        assert_eq!(asked(start), MOST as usize);
        assert_eq!(asked(start + Duration::from_millis(2000)), MOST as usize);
        assert_eq!(asked(start), 0, "a clock that is late");
    }
}
