//! What all spans have in common: names and attributes by OpenTelemetry's semantic conventions (HTTP as
//! stable since 1.23, RPC as renamed in 1.39), what is ours under `tidegate.`.

use std::borrow::Cow;
use std::net::SocketAddr;
use std::sync::LazyLock;
use std::time::{Duration, Instant, SystemTime};

use opentelemetry::trace::{SpanContext, SpanKind, Status, TraceFlags, TraceState};
use opentelemetry::{InstrumentationScope, KeyValue, SpanId, TraceId, Value};
use opentelemetry_sdk::trace::SpanData;

use crate::outcome::{Fault, Outcome};
use crate::telemetry::export::scope;

/// Both clocks at one moment: spans have the wall's time, requests are timed by the other.
#[derive(Clone, Copy)]
pub struct Clock {
    pub now: Instant,
    wall: SystemTime,
}

impl Clock {
    pub fn now() -> Self {
        Self { now: Instant::now(), wall: SystemTime::now() }
    }

    pub fn at(self, at: Instant) -> SystemTime {
        self.wall.checked_sub(self.now.saturating_duration_since(at)).unwrap_or(self.wall)
    }
}

pub fn span(
    span_context: SpanContext,
    parent: Option<SpanId>,
    span_kind: SpanKind,
    name: Cow<'static, str>,
    times: std::ops::Range<SystemTime>,
    attributes: Vec<KeyValue>,
    failed: bool,
) -> SpanData {
    static SCOPE: LazyLock<InstrumentationScope> = LazyLock::new(|| scope("tidegate"));
    SpanData {
        span_context,
        parent_span_id: parent.unwrap_or(SpanId::INVALID),
        parent_span_is_remote: false,
        span_kind,
        name,
        start_time: times.start,
        end_time: times.end,
        attributes,
        dropped_attributes_count: 0,
        events: Default::default(),
        links: Default::default(),
        status: if failed { Status::error("") } else { Status::Unset },
        instrumentation_scope: SCOPE.clone(),
    }
}

pub fn context_of(trace: TraceId, span: SpanId, state: Option<TraceState>) -> SpanContext {
    SpanContext::new(trace, span, TraceFlags::SAMPLED, false, state.unwrap_or_default())
}

pub fn pair(key: &'static str, value: impl Into<Value>) -> KeyValue {
    KeyValue::new(key, value)
}

pub fn push(about: &mut Vec<KeyValue>, key: &'static str, value: Option<&str>) {
    about.extend(value.map(|value| pair(key, value.to_owned())));
}

/// Who called, and where. What clients say about themselves is not believed.
pub fn from(about: &mut Vec<KeyValue>, peer: Option<SocketAddr>, local: SocketAddr) {
    if let Some(peer) = peer {
        let ip = peer.ip();
        about.push(pair("client.address", ip.to_string()));
        about.push(pair("network.peer.address", ip.to_string()));
        about.push(pair("network.peer.port", i64::from(peer.port())));
        about.push(pair("network.type", if ip.is_ipv4() { "ipv4" } else { "ipv6" }));
    }
    about.push(pair("network.local.port", i64::from(local.port())));
}

pub fn ended_so(about: &mut Vec<KeyValue>, outcome: Outcome) {
    about.push(pair("tidegate.outcome", outcome.label()));
    if let Outcome::Refused(reason) = outcome {
        about.push(pair("tidegate.reason", reason.label()));
    }
}

pub fn waited_so(waited: Duration, limit: u32) -> Vec<KeyValue> {
    vec![
        pair("tidegate.admission.limit", i64::from(limit)),
        pair("tidegate.admission.wait.duration", waited.as_secs_f64()),
    ]
}

/// What went wrong on the way, if it was not the client.
pub fn broken(outcome: Outcome) -> Option<&'static str> {
    match outcome {
        Outcome::Served | Outcome::ClientReset | Outcome::ClientStalled => None,
        Outcome::Refused(reason) if reason.fault() == Fault::Client => None,
        Outcome::Refused(reason) => Some(reason.label()),
        other => Some(other.label()),
    }
}
