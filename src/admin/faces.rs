//! What each face answers: a table of routes, and one function per answer.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Bytes};
use hyper::header::{
    ACCEPT, ALLOW, CONTENT_SECURITY_POLICY, HeaderMap, HeaderValue, REFERRER_POLICY,
};
use hyper::{Method, Request, Response, StatusCode, Uri};
use serde::Serialize;
use serde_json::json;

use crate::lifecycle::{Cause, Phase};

use super::answer::{respond, text};
use super::document::document;
use super::gateway::Gateway;
use super::history::History;
use super::negotiate::Format;
use super::patience::{For, Visitor};
use super::{explain, page, scrape};

/// One of the four addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Face {
    /// For the kubelet: the probes, ours and the application's, and what its hooks wait for.
    Probe,
    /// For the scraper.
    Metrics,
    /// For people and scripts on this machine: reading.
    Admin,
    /// For the gateway's owner: everything.
    Control,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Route {
    Livez,
    Readyz,
    Startupz,
    Metrics,
    Page,
    Status,
    Settings,
    Connections,
    Explain,
    AppProbe,
    DrainWait,
    Drain,
    Set,
    LogLevel,
}

/// A request's body comes from this machine and is small; a client slower than this is stuck.
const BODY_TIMEOUT: Duration = Duration::from_secs(5);

/// Container and kind follow.
const APP_PROBE: &str = "/app-probe/";

/// A page that lists more is of no use to anybody, and costs something every second.
const FEW_CONNECTIONS: u64 = 100;

impl Route {
    fn find(path: &str) -> Option<Self> {
        Some(match path {
            "/livez" => Self::Livez,
            "/readyz" => Self::Readyz,
            "/startupz" => Self::Startupz,
            "/metrics" => Self::Metrics,
            "/" => Self::Page,
            "/status.json" => Self::Status,
            "/settings.json" => Self::Settings,
            "/connections.json" => Self::Connections,
            "/explain" => Self::Explain,
            "/drain/wait" => Self::DrainWait,
            "/drain" => Self::Drain,
            "/set" => Self::Set,
            "/log-level" => Self::LogLevel,
            // A name follows.
            _ if path.starts_with("/explain/") => Self::Explain,
            _ if path.starts_with(APP_PROBE) => Self::AppProbe,
            _ => return None,
        })
    }

    fn changes_something(self) -> bool {
        matches!(self, Self::Drain | Self::Set | Self::LogLevel)
    }

    fn is_on(self, face: Face) -> bool {
        match face {
            Face::Probe => matches!(
                self,
                Self::Livez | Self::Readyz | Self::Startupz | Self::AppProbe | Self::DrainWait
            ),
            Face::Metrics => self == Self::Metrics,
            Face::Admin => {
                !self.changes_something() && !matches!(self, Self::DrainWait | Self::AppProbe)
            }
            Face::Control => true,
        }
    }
}

/// Answer one request.
pub(super) async fn answer<B>(
    face: Face,
    gateway: Arc<dyn Gateway>,
    history: &History,
    visitor: &Visitor,
    request: Request<B>,
) -> Response<Full<Bytes>>
where
    B: Body,
    B::Error: std::fmt::Display,
{
    let Some(route) = Route::find(request.uri().path()).filter(|route| route.is_on(face)) else {
        return text(StatusCode::NOT_FOUND, "there is nothing here");
    };
    let (allowed, allow) = match route.changes_something() {
        true => (request.method() == Method::POST, "POST"),
        false => (matches!(*request.method(), Method::GET | Method::HEAD), "GET, HEAD"),
    };
    if !allowed {
        let mut refusal = text(StatusCode::METHOD_NOT_ALLOWED, "not by this method");
        refusal.headers_mut().insert(ALLOW, HeaderValue::from_static(allow));
        return refusal;
    }
    match route {
        Route::Livez => text(StatusCode::OK, "alive"),
        Route::Readyz => readyz(&*gateway),
        Route::Startupz => phase(&*gateway, |phase| phase >= Phase::Serving),
        Route::Metrics => metrics(&*gateway, request.headers()),
        Route::Page => page(&*gateway, history, request.uri().query()),
        Route::Status => json(StatusCode::OK, &document(&*gateway, history)),
        Route::Settings => json(StatusCode::OK, &gateway.settings()),
        Route::Connections => json(StatusCode::OK, &gateway.connections()),
        Route::Explain => explained(&*gateway, request.uri()),
        Route::AppProbe => app_probe(&*gateway, visitor, request.uri()).await,
        Route::DrainWait => drain_wait(face, &*gateway, visitor).await,
        Route::Drain => drain(&*gateway),
        Route::Set => set(&*gateway, request).await,
        Route::LogLevel => log_level(&*gateway, request).await,
    }
}

fn phase(gateway: &dyn Gateway, good: impl Fn(Phase) -> bool) -> Response<Full<Bytes>> {
    let phase = gateway.lifecycle().phase();
    let status = if good(phase) { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    text(status, word(phase))
}

/// Listening, and not draining; the settings in force can always be used. A change of settings that failed
/// is no reason: the last good ones hold.
fn readyz(gateway: &dyn Gateway) -> Response<Full<Bytes>> {
    let life = gateway.lifecycle();
    let status = if life.ready() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    text(status, word(life.phase()))
}

/// What the pod's specification says is asked, and nothing of the request that asks for it.
async fn app_probe(gateway: &dyn Gateway, visitor: &Visitor, uri: &Uri) -> Response<Full<Bytes>> {
    let name = uri.path().strip_prefix(APP_PROBE).unwrap_or_default();
    let Some(place) = visitor.wait(For::Probe) else { return too_many() };
    let probes = gateway.probes();
    let verdict = tokio::select! {
        verdict = probes.run(name) => verdict,
        () = place.is_lost() => return too_many(),
    };
    match verdict {
        Some(verdict) => {
            let code = StatusCode::from_u16(verdict.code()).unwrap_or(StatusCode::BAD_GATEWAY);
            text(code, &format!("{}: {}", verdict.finding.label(), verdict.why))
        }
        None => text(StatusCode::NOT_FOUND, "there is no such probe"),
    }
}

/// Starts nothing; the network is told no more than that it is over.
async fn drain_wait(face: Face, gateway: &dyn Gateway, visitor: &Visitor) -> Response<Full<Bytes>> {
    let Some(place) = visitor.wait(For::Drain) else { return too_many() };
    let life = gateway.lifecycle();
    let report = tokio::select! {
        report = life.drained_if_begun() => report,
        () = place.is_lost() => return too_many(),
    };
    match face {
        Face::Control => json(StatusCode::OK, &report),
        _ if report.is_some() => text(StatusCode::OK, "drained"),
        _ => text(StatusCode::OK, "nothing drains"),
    }
}

fn too_many() -> Response<Full<Bytes>> {
    text(StatusCode::SERVICE_UNAVAILABLE, "too many wait already")
}

fn word(phase: Phase) -> &'static str {
    match phase {
        Phase::Starting => "starting",
        Phase::Serving => "serving",
        Phase::Announcing => "announcing",
        Phase::Closing => "closing",
        Phase::Drained => "drained",
    }
}

fn metrics(gateway: &dyn Gateway, headers: &HeaderMap) -> Response<Full<Bytes>> {
    let accept = headers.get_all(ACCEPT).into_iter().filter_map(|value| value.to_str().ok());
    let format = Format::negotiate(accept);
    let body = scrape::scrape(gateway, format);
    respond(StatusCode::OK, format.content_type(), body)
}

/// The page; `?reload=5` shows it again every 5 seconds where scripts may not run.
fn page(gateway: &dyn Gateway, history: &History, query: Option<&str>) -> Response<Full<Bytes>> {
    let status = document(gateway, history);
    let few = status["connections"].as_u64().is_none_or(|open| open <= FEW_CONNECTIONS);
    let connections = few.then(|| gateway.connections());
    let nonce = page::nonce();
    let content = page::Content {
        status: &status,
        settings: &gateway.settings(),
        connections: connections.as_deref(),
        now: SystemTime::now(),
    };
    let frame = page::Frame { nonce: &nonce, purpose: page::Purpose::of(query) };
    let body = page::html(&content, &frame);
    let mut response = respond(StatusCode::OK, "text/html; charset=utf-8", body);
    let policy = HeaderValue::try_from(page::policy(&nonce)).expect("a nonce is hexadecimal");
    response.headers_mut().insert(CONTENT_SECURITY_POLICY, policy);
    response.headers_mut().insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    response
}

/// Why something was refused, or, without a name, what was refused of late.
fn explained(gateway: &dyn Gateway, uri: &Uri) -> Response<Full<Bytes>> {
    let journal = gateway.journal();
    let name = uri.path().strip_prefix("/explain/").unwrap_or_default();
    if name.is_empty() {
        return json(StatusCode::OK, &explain::recent(&journal, uri.query()));
    }
    match explain::explain(&journal, &explain::decoded(name)) {
        Ok(known) => json(StatusCode::OK, &known),
        Err(unknown) => json(StatusCode::NOT_FOUND, &unknown),
    }
}

fn drain(gateway: &dyn Gateway) -> Response<Full<Bytes>> {
    let started = gateway.lifecycle().drain(Cause::Request);
    let phase = gateway.lifecycle().phase();
    json(StatusCode::ACCEPTED, &json!({ "phase": phase, "started": started }))
}

async fn set<B>(gateway: &dyn Gateway, request: Request<B>) -> Response<Full<Bytes>>
where
    B: Body,
    B::Error: std::fmt::Display,
{
    let applied = match strings(request).await {
        Ok(changes) if changes.is_empty() => Err(vec!["no setting is named".to_owned()]),
        Ok(changes) => gateway.set(changes),
        Err(problem) => Err(vec![problem]),
    };
    match applied {
        Ok(applied) => json(StatusCode::OK, &json!({ "applied": applied })),
        Err(mistakes) => json(StatusCode::BAD_REQUEST, &json!({ "mistakes": mistakes })),
    }
}

async fn log_level<B>(gateway: &dyn Gateway, request: Request<B>) -> Response<Full<Bytes>>
where
    B: Body,
    B::Error: std::fmt::Display,
{
    let applied = match strings(request).await {
        Ok(changes) => match changes.get("level") {
            Some(level) => gateway.set_log_level(level).map(|()| level.clone()),
            None => Err("`level` is missing".to_owned()),
        },
        Err(problem) => Err(problem),
    };
    match applied {
        Ok(level) => json(StatusCode::OK, &json!({ "applied": [format!("log-level={level}")] })),
        Err(mistake) => json(StatusCode::BAD_REQUEST, &json!({ "mistakes": [mistake] })),
    }
}

/// The body, which is a JSON object of strings.
async fn strings<B>(request: Request<B>) -> Result<BTreeMap<String, String>, String>
where
    B: Body,
    B::Error: std::fmt::Display,
{
    let body = tokio::time::timeout(BODY_TIMEOUT, request.into_body().collect())
        .await
        .map_err(|_| "the request's body did not arrive in time".to_owned())?
        .map_err(|error| format!("the request's body cannot be read: {error}"))?;
    serde_json::from_slice(&body.to_bytes())
        .map_err(|error| format!("the request's body must be a JSON object of strings: {error}"))
}

fn json(status: StatusCode, value: &impl Serialize) -> Response<Full<Bytes>> {
    match serde_json::to_vec(value) {
        Ok(body) => respond(status, "application/json", body),
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
    }
}
