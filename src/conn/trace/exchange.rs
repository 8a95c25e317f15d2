//! One request, as it is recorded, and its spans: a server span, a wait if there was one, a client span if
//! it came to the application.
//!
//! A29: of what a client sends there is its method, its path, the names of its query's fields, its host,
//! its user agent and its request id, each bounded in length; nothing else.

use std::borrow::Cow;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use http::header::{CONTENT_TYPE, HOST, HeaderMap, HeaderName, HeaderValue, USER_AGENT};
use http::{Method, Request, Response, Version};
use opentelemetry::trace::{SpanContext, SpanKind};
use opentelemetry::{KeyValue, SpanId, TraceId};
use opentelemetry_sdk::trace::SpanData;

use super::context::{self, Context};
use super::span::{Clock, broken, context_of, ended_so, from, pair, push, span, waited_so};
use super::words::{
    bounded, cut, field_names, grpc_status, grpc_word, host_and_port, is_grpc, is_known, version,
};
use super::{Arrival, new_span};
use crate::conn::Port;
use crate::io::App;
use crate::outcome::{Outcome, Reason};
use crate::telemetry::export::Record;

const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// One request.
pub struct Exchange {
    pub trace: TraceId,
    /// What its caller said.
    pub caller: Option<Context>,
    pub port: Arc<Port>,
    /// Its place in the queue when it came.
    pub position: Option<u32>,
    pub wait: Option<Wait>,
    /// How it ended, when it had been let in, and when it ended.
    pub end: Option<(Outcome, Option<Instant>, Instant)>,
    state: Option<Box<str>>,
    server: SpanId,
    client: SpanId,
    peer: Option<SocketAddr>,
    arrived: Instant,
    method: Method,
    path: Box<str>,
    query: Option<Box<str>>,
    host: Option<Box<str>>,
    agent: Option<Box<str>>,
    id: Option<Box<str>>,
    version: Version,
    grpc: bool,
    answer: Option<Said>,
}

/// What the client was told.
#[derive(Clone, Copy)]
struct Said {
    status: u16,
    grpc: Option<u8>,
    by_application: bool,
}

/// A wait in the queue.
pub struct Wait {
    until: Instant,
    limit: u32,
    active: u32,
}

impl Wait {
    /// Over now.
    pub fn of(port: &Port, until: Instant) -> Self {
        Self { until, limit: port.gate.limit(), active: port.gate.active() }
    }
}

impl Exchange {
    /// What of a request is recorded. Copied: a head's memory is not kept until it is exported.
    pub fn new<B>(trace: TraceId, arrival: Arrival<'_>, request: &Request<B>) -> Self {
        let (uri, headers) = (request.uri(), request.headers());
        let text = |name: HeaderName| headers.get(name).and_then(bounded);
        let caller = Context::of(headers);
        Self {
            trace,
            caller,
            port: arrival.port.clone(),
            position: None,
            wait: None,
            end: None,
            state: caller.and_then(|_| context::state(headers)),
            server: new_span(),
            client: new_span(),
            peer: arrival.client,
            arrived: arrival.at,
            method: request.method().clone(),
            path: cut(uri.path()).into(),
            query: uri.query().map(field_names),
            host: uri.authority().map(|a| cut(a.as_str()).into()).or_else(|| text(HOST)),
            agent: text(USER_AGENT),
            id: text(X_REQUEST_ID),
            version: request.version(),
            grpc: headers.get(CONTENT_TYPE).is_some_and(is_grpc),
            answer: None,
        }
    }

    /// What the application is told of the span that calls it.
    pub fn for_application(&self) -> HeaderValue {
        Context::for_application(self.trace, self.client, self.caller)
    }

    /// The client gets this head.
    pub fn answered<B>(&mut self, response: &Response<B>, by_application: bool) {
        let status = response.status().as_u16();
        self.answer = Some(Said { status, grpc: grpc_status(response.headers()), by_application });
    }

    /// And these last words.
    pub fn trailers(&mut self, trailers: &HeaderMap) {
        if let Some(answer) = &mut self.answer {
            answer.grpc = answer.grpc.or_else(|| grpc_status(trailers));
        }
    }

    fn name(&self) -> Cow<'static, str> {
        match self.rpc_method() {
            Some(method) if self.knows_method() => method.to_owned().into(),
            _ if is_known(&self.method) => self.method.as_str().to_owned().into(),
            _ => "HTTP".into(),
        }
    }

    /// `package.Service/Method`.
    fn rpc_method(&self) -> Option<&str> {
        if self.grpc { self.path.strip_prefix('/') } else { None }
    }

    /// The application has answered, and not that it has no such method: so there are only so many.
    fn knows_method(&self) -> bool {
        const UNIMPLEMENTED: u8 = 12;
        self.answer.is_some_and(|answer| {
            answer.by_application && answer.grpc.is_some_and(|code| code != UNIMPLEMENTED)
        })
    }

    /// What both sides of the gateway have in common.
    fn about(&self) -> Vec<KeyValue> {
        let mut about = Vec::with_capacity(24);
        if is_known(&self.method) {
            about.push(pair("http.request.method", self.method.as_str().to_owned()));
        } else {
            about.push(pair("http.request.method", "_OTHER"));
            about.push(pair("http.request.method_original", cut(self.method.as_str()).to_owned()));
        }
        if let Some(method) = self.rpc_method() {
            about.push(pair("rpc.system.name", "grpc"));
            if self.knows_method() {
                about.push(pair("rpc.method", method.to_owned()));
            } else {
                about.push(pair("rpc.method", "_OTHER"));
                about.push(pair("rpc.method_original", method.to_owned()));
            }
        }
        about
    }

    fn answer_to(&self, about: &mut Vec<KeyValue>, answer: Said) {
        about.push(pair("http.response.status_code", i64::from(answer.status)));
        if let (true, Some(code)) = (self.grpc, answer.grpc) {
            about.push(pair("rpc.response.status_code", grpc_word(code)));
        }
    }

    fn server_span(&self, clock: Clock) -> SpanData {
        let (outcome, _, ended) = self.end(clock);
        let mut about = self.about();
        about.push(pair("url.scheme", "http"));
        about.push(pair("url.path", self.path.to_string()));
        push(&mut about, "url.query", self.query.as_deref());
        push(&mut about, "user_agent.original", self.agent.as_deref());
        push(&mut about, "tidegate.request.id", self.id.as_deref());
        about.push(pair("network.protocol.version", version(self.version)));
        if let Some((host, port)) = self.host.as_deref().map(|host| host_and_port(host, 80)) {
            about.push(pair("server.address", host.to_owned()));
            about.push(pair("server.port", port));
        }
        from(&mut about, self.peer, self.port.listen);
        ended_so(&mut about, outcome);
        let answer = self.answer;
        answer.inspect(|answer| self.answer_to(&mut about, *answer));
        let failure = self.failure(outcome);
        push(&mut about, "error.type", failure.as_deref());
        let mut span = span(
            self.context(self.server),
            self.caller.map(|caller| caller.parent),
            SpanKind::Server,
            self.name(),
            clock.at(self.arrived)..clock.at(ended),
            about,
            failure.is_some(),
        );
        span.parent_span_is_remote = self.caller.is_some();
        span
    }

    fn wait_span(&self, wait: &Wait, clock: Clock) -> SpanData {
        let waited = wait.until.saturating_duration_since(self.arrived);
        let mut about = waited_so(waited, wait.limit);
        about.push(pair("tidegate.admission.active", i64::from(wait.active)));
        if let Some(position) = self.position {
            about.push(pair("tidegate.admission.queue.position", i64::from(position)));
        }
        let refused = self.end.and_then(|(outcome, admitted, _)| match outcome {
            Outcome::Refused(reason) if admitted.is_none() => Some(reason),
            _ => None,
        });
        push(&mut about, "tidegate.reason", refused.map(Reason::label));
        span(
            self.context(new_span()),
            Some(self.server),
            SpanKind::Internal,
            "admission.wait".into(),
            clock.at(self.arrived)..clock.at(wait.until),
            about,
            false,
        )
    }

    /// The call to the application, if it came to that.
    fn client_span(&self, clock: Clock) -> Option<SpanData> {
        let (outcome, admitted, ended) = self.end(clock);
        let admitted = admitted?;
        let mut about = self.about();
        let path = match &self.query {
            Some(query) => format!("{}?{query}", self.path),
            None => self.path.to_string(),
        };
        let app = &*self.port.app_text;
        match app.strip_prefix("unix:") {
            Some(socket) => {
                about.push(pair("server.address", socket.to_owned()));
                about.push(pair("network.transport", "unix"));
                about.push(pair("url.full", format!("http://localhost{path}")));
            }
            None => {
                let (host, port) = host_and_port(app, 80);
                about.push(pair("server.address", host.to_owned()));
                about.push(pair("server.port", port));
                about.push(pair("url.full", format!("http://{app}{path}")));
            }
        }
        if let [App::Tcp(address)] = &self.port.apps[..] {
            about.push(pair("network.peer.address", address.ip().to_string()));
            about.push(pair("network.peer.port", i64::from(address.port())));
        }
        let answer = self.answer.filter(|answer| answer.by_application);
        answer.inspect(|answer| self.answer_to(&mut about, *answer));
        let failure = match answer {
            Some(Said { grpc: Some(code), .. }) if self.grpc && code != 0 => Some(grpc_word(code)),
            Some(Said { status, .. }) if status >= 400 => Some(status.to_string().into()),
            Some(_) | None => broken(outcome).map(Cow::from),
        };
        push(&mut about, "error.type", failure.as_deref());
        let name = self.name();
        let times = clock.at(admitted)..clock.at(ended);
        let context = self.context(self.client);
        let parent = Some(self.server);
        Some(span(context, parent, SpanKind::Client, name, times, about, failure.is_some()))
    }

    /// What the server span's `error.type` is. What a client did to itself, 4xx among it, is no error.
    fn failure(&self, outcome: Outcome) -> Option<Cow<'static, str>> {
        /// UNKNOWN, DEADLINE_EXCEEDED, UNIMPLEMENTED, INTERNAL, UNAVAILABLE, DATA_LOSS.
        const OURS: [u8; 6] = [2, 4, 12, 13, 14, 15];
        let failed = self.answer.is_some_and(|answer| {
            answer.status >= 500
                || self.grpc && answer.grpc.is_some_and(|code| OURS.contains(&code))
        });
        match (outcome, self.answer) {
            (Outcome::Refused(reason), _) if failed => Some(reason.label().into()),
            (Outcome::Refused(_), Some(_)) => None,
            (_, Some(Said { status, .. })) if failed && status >= 500 => {
                Some(status.to_string().into())
            }
            (_, Some(Said { grpc: Some(code), .. })) if failed => Some(grpc_word(code)),
            _ => broken(outcome).map(Cow::from),
        }
    }

    /// A record that nobody ended is of a connection that broke.
    fn end(&self, clock: Clock) -> (Outcome, Option<Instant>, Instant) {
        self.end.unwrap_or((Outcome::ClientReset, None, clock.now))
    }

    fn context(&self, span: SpanId) -> SpanContext {
        let state = self.state.as_deref().and_then(|state| state.parse().ok());
        context_of(self.trace, span, state)
    }
}

impl Record for Exchange {
    fn count(&self) -> usize {
        let called = self.end.is_some_and(|(_, admitted, _)| admitted.is_some());
        1 + usize::from(self.wait.is_some()) + usize::from(called)
    }

    fn spans(self: Box<Self>, into: &mut Vec<SpanData>) {
        let clock = Clock::now();
        into.push(self.server_span(clock));
        into.extend(self.wait.as_ref().map(|wait| self.wait_span(wait, clock)));
        into.extend(self.client_span(clock));
    }
}
