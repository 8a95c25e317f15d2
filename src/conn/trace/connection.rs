//! One TCP connection, as it is recorded when it has ended, and its spans: one of ours, as the conventions
//! have none for it, and a wait if there was one.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use opentelemetry::TraceId;
use opentelemetry::trace::SpanKind;
use opentelemetry_sdk::trace::SpanData;

use super::new_span;
use super::span::{Clock, broken, context_of, ended_so, from, pair, push, span, waited_so};
use crate::conn::Port;
use crate::conn::registry::Registered;
use crate::outcome::{Fault, Outcome};
use crate::telemetry::export::Record;

/// One TCP connection.
pub struct Connection {
    trace: TraceId,
    listen: SocketAddr,
    peer: Option<SocketAddr>,
    app: Box<str>,
    outcome: Outcome,
    bytes: [u64; 2],
    accepted: Instant,
    wait: Option<(Duration, u32)>,
    ended: Instant,
}

impl Connection {
    /// One that ends now.
    pub fn new(
        trace: TraceId,
        port: &Port,
        entry: &Registered,
        outcome: Outcome,
        bytes: [u64; 2],
        ended: Instant,
    ) -> Self {
        Self {
            trace,
            listen: port.listen,
            peer: entry.client(),
            app: port.app_text.as_str().into(),
            outcome,
            bytes,
            accepted: entry.since(),
            wait: entry.waited().map(|waited| (waited, port.gate.limit())),
            ended,
        }
    }
}

impl Record for Connection {
    fn count(&self) -> usize {
        1 + usize::from(self.wait.is_some())
    }

    fn spans(self: Box<Self>, into: &mut Vec<SpanData>) {
        let clock = Clock::now();
        let id = new_span();
        let mut about = vec![pair("network.transport", "tcp")];
        from(&mut about, self.peer, self.listen);
        about.push(pair("server.port", i64::from(self.listen.port())));
        about.push(pair("tidegate.application", self.app.to_string()));
        let [received, sent] = self.bytes.map(|count| i64::try_from(count).unwrap_or(i64::MAX));
        about.push(pair("tidegate.network.io.receive", received));
        about.push(pair("tidegate.network.io.transmit", sent));
        ended_so(&mut about, self.outcome);
        let failure = match self.outcome {
            Outcome::Refused(reason) if reason.fault() != Fault::Client => Some(reason.label()),
            outcome => broken(outcome),
        };
        push(&mut about, "error.type", failure);
        let times = clock.at(self.accepted)..clock.at(self.ended);
        let context = context_of(self.trace, id, None);
        let kind = SpanKind::Server;
        into.push(span(
            context,
            None,
            kind,
            "tidegate.connection".into(),
            times,
            about,
            failure.is_some(),
        ));
        if let Some((waited, limit)) = self.wait {
            let context = context_of(self.trace, new_span(), None);
            let times = clock.at(self.accepted)..clock.at(self.accepted + waited);
            let about = waited_so(waited, limit);
            into.push(span(
                context,
                Some(id),
                SpanKind::Internal,
                "admission.wait".into(),
                times,
                about,
                false,
            ));
        }
    }
}
