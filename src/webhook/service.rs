//! What is answered at which path: reviews, one path for each level of Pod Security, and the probes.
//!
//! ```text
//! /inject/privileged  /inject/baseline  /inject/restricted      and each with /mesh: a mesh adds its proxy there
//! ```
//!
//! A namespace's labels are not in a review, and asking the API server for them would take rights; so
//! there is a webhook for each level, which the API server chooses by the namespace's label.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Incoming};
use hyper::header::{ACCEPT, ALLOW, CONNECTION, CONTENT_TYPE, HeaderMap, HeaderValue};
use hyper::{Method, Request, Response, StatusCode, Version};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::admin::answer::{respond, text};
use crate::admin::negotiate::Format;
use crate::inject::{Context, PodSecurity};

use super::metrics::{Ended, page};
use super::review::{Decision, Malformed, Reviewed, review};
use super::{Injector, server::Face};

/// The largest review that is read. Pods are of some 10 KiB; the API server itself takes 3 MiB at most.
pub(super) const MAX_BODY: usize = 1024 * 1024;

/// How long a body may take, from the head on: as long as the API server would wait for an answer.
const BODY_TIMEOUT: Duration = Duration::from_secs(5);

/// How much of a body that is too large is read and thrown away, and for how long: closing with bytes
/// unread would reset the client before he reads why.
const SWALLOW: usize = 4 * 1024 * 1024;
const SWALLOW_TIMEOUT: Duration = Duration::from_secs(1);

/// Bytes of bodies that may be in memory at once.
const ROOM: usize = 32 * 1024 * 1024;

/// A larger body is judged on a thread of its own, one at a time: parsed, JSON that is made for it takes many
/// times its size, and longer than others should wait; no longer than its bytes are worth, but a MiB has many.
const LARGE: usize = 16 * 1024;

/// What all requests share.
pub(super) struct Bounds {
    room: Arc<Semaphore>,
    large: Arc<Semaphore>,
}

/// Why a body was not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unread {
    TooLarge,
    TooSlow,
    /// Too many others are being read.
    NoRoom,
    /// The client has gone.
    Broken,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { room: Arc::new(Semaphore::new(ROOM)), large: Arc::new(Semaphore::new(1)) }
    }
}

/// Answer one request.
pub(super) async fn answer(
    face: Face,
    injector: Arc<Injector>,
    bounds: Arc<Bounds>,
    request: Request<Incoming>,
) -> Response<Full<Bytes>> {
    let version = request.version();
    let mut response = match (face, request.uri().path()) {
        (_, "/livez") => reading(&request, || text(StatusCode::OK, "alive")),
        (_, "/readyz") => reading(&request, || match injector.readiness() {
            Ok(()) => text(StatusCode::OK, "ready"),
            Err(why) => text(StatusCode::SERVICE_UNAVAILABLE, &why),
        }),
        (Face::Metrics, "/metrics") => reading(&request, || metrics(&injector, request.headers())),
        (Face::Reviews, path) => match place(path) {
            Some(context) => reviewed(&injector, &bounds, context, request).await,
            None => nothing(),
        },
        (Face::Metrics, _) => nothing(),
    };
    // Who is told so comes back on another connection, to somebody else. HTTP/2 has GOAWAY.
    if injector.is_leaving() && version < Version::HTTP_2 {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// What a path says about the namespace.
fn place(path: &str) -> Option<Context> {
    let rest = path.strip_prefix("/inject/")?;
    let (level, mesh) = match rest.strip_suffix("/mesh") {
        Some(level) => (level, true),
        None => (rest, false),
    };
    let pod_security = match level {
        "privileged" => PodSecurity::Privileged,
        "baseline" => PodSecurity::Baseline,
        "restricted" => PodSecurity::Restricted,
        _ => return None,
    };
    Some(Context { pod_security, mesh, ..Context::default() })
}

async fn reviewed(
    injector: &Arc<Injector>,
    bounds: &Bounds,
    context: Context,
    request: Request<Incoming>,
) -> Response<Full<Bytes>> {
    if request.method() != Method::POST {
        return not_by_this_method("POST");
    }
    if !is_json(request.headers()) {
        return text(StatusCode::UNSUPPORTED_MEDIA_TYPE, "a review is application/json");
    }
    let (body, _room) = match read(request.into_body(), bounds).await {
        Ok(read) => read,
        Err(unread) => {
            let (ended, status, why) = unread.told();
            injector.metrics.reviewed(ended, None);
            return text(status, why);
        }
    };
    let begun = Instant::now();
    let judged = judge(injector, bounds, context, body).await;
    let took = begun.elapsed();
    let ended = match &judged {
        None => Ended::Failed,
        Some(Err(_)) => Ended::Malformed,
        Some(Ok(reviewed)) => match reviewed.decision {
            Decision::Patched => Ended::Patched,
            Decision::Unchanged => Ended::Unchanged,
            Decision::Refused => Ended::Refused,
        },
    };
    injector.metrics.reviewed(ended, Some(took));
    match judged {
        None => {
            tracing::error!("a flaw of ours: a review made us panic, and is answered 500");
            text(StatusCode::INTERNAL_SERVER_ERROR, "a flaw of the injector; see its log")
        }
        Some(Err(malformed)) => {
            tracing::debug!("{malformed}");
            text(StatusCode::BAD_REQUEST, &malformed.to_string())
        }
        Some(Ok(reviewed)) => {
            if reviewed.outdated {
                injector.metrics.saw_outdated();
            }
            say(&reviewed, ended, took);
            respond(StatusCode::OK, "application/json", reviewed.answer)
        }
    }
}

fn say(reviewed: &Reviewed, ended: Ended, took: Duration) {
    let Reviewed { namespace, name, why, outdated, .. } = reviewed;
    let (result, seconds) = (ended.label(), took.as_secs_f64());
    match ended {
        Ended::Unchanged => {
            tracing::debug!(namespace, pod = name, result, why, outdated, seconds, "reviewed");
        }
        _ => tracing::info!(namespace, pod = name, result, why, outdated, seconds, "reviewed"),
    }
}

/// `None`: it panicked.
async fn judge(
    injector: &Arc<Injector>,
    bounds: &Bounds,
    context: Context,
    body: Bytes,
) -> Option<Result<Reviewed, Malformed>> {
    let operator = injector.operator();
    if body.len() <= LARGE {
        // Nothing that is shared is changed in there.
        return catch_unwind(AssertUnwindSafe(|| review(&body, context, &operator))).ok();
    }
    let _one = bounds.large.acquire().await;
    tokio::task::spawn_blocking(move || review(&body, context, &operator)).await.ok()
}

/// The body, and the room it takes.
async fn read(
    mut body: Incoming,
    bounds: &Bounds,
) -> Result<(Bytes, Option<OwnedSemaphorePermit>), Unread> {
    if body.size_hint().lower() > MAX_BODY as u64 {
        swallow(&mut body).await;
        return Err(Unread::TooLarge);
    }
    let reading = async {
        let mut bytes = BytesMut::new();
        let mut room: Option<OwnedSemaphorePermit> = None;
        while let Some(frame) = body.frame().await {
            let Ok(data) = frame.map_err(|_| Unread::Broken)?.into_data() else { continue };
            if bytes.len() + data.len() > MAX_BODY {
                return Err(Unread::TooLarge);
            }
            // Charged as it comes: announcing a megabyte takes nothing from others.
            let more = u32::try_from(data.len()).expect("at most MAX_BODY");
            let more = bounds.room.clone().try_acquire_many_owned(more);
            let more = more.map_err(|_| Unread::NoRoom)?;
            match &mut room {
                Some(room) => room.merge(more),
                None => room = Some(more),
            }
            bytes.extend_from_slice(&data);
        }
        Ok((bytes.freeze(), room))
    };
    let read = tokio::time::timeout(BODY_TIMEOUT, reading).await.unwrap_or(Err(Unread::TooSlow));
    if matches!(read, Err(Unread::TooLarge)) {
        swallow(&mut body).await;
    }
    read
}

/// Read what nobody wants, within bounds.
async fn swallow(body: &mut Incoming) {
    let reading = async {
        let mut left = SWALLOW;
        while left > 0
            && let Some(Ok(frame)) = body.frame().await
        {
            left = left.saturating_sub(frame.data_ref().map_or(0, Bytes::len));
        }
    };
    let _ = tokio::time::timeout(SWALLOW_TIMEOUT, reading).await;
}

impl Unread {
    const fn told(self) -> (Ended, StatusCode, &'static str) {
        match self {
            Self::TooLarge => {
                let why = "a review may have 1 MiB";
                (Ended::TooLarge, StatusCode::PAYLOAD_TOO_LARGE, why)
            }
            Self::TooSlow => {
                let why = "the review did not arrive within 5 s";
                (Ended::TooSlow, StatusCode::REQUEST_TIMEOUT, why)
            }
            Self::NoRoom => {
                let why = "too many reviews are under way";
                (Ended::Overloaded, StatusCode::SERVICE_UNAVAILABLE, why)
            }
            Self::Broken => (Ended::Malformed, StatusCode::BAD_REQUEST, "the review broke off"),
        }
    }
}

fn is_json(headers: &HeaderMap) -> bool {
    let Some(kind) = headers.get(CONTENT_TYPE) else { return false };
    let kind = kind.to_str().unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default();
    kind.trim().eq_ignore_ascii_case("application/json")
}

fn metrics(injector: &Arc<Injector>, headers: &HeaderMap) -> Response<Full<Bytes>> {
    let accept = headers.get_all(ACCEPT).into_iter().filter_map(|value| value.to_str().ok());
    let format = Format::negotiate(accept);
    respond(StatusCode::OK, format.content_type(), page(injector, format))
}

fn reading(
    request: &Request<Incoming>,
    answer: impl FnOnce() -> Response<Full<Bytes>>,
) -> Response<Full<Bytes>> {
    match *request.method() {
        Method::GET | Method::HEAD => answer(),
        _ => not_by_this_method("GET, HEAD"),
    }
}

fn not_by_this_method(allowed: &'static str) -> Response<Full<Bytes>> {
    let mut refusal = text(StatusCode::METHOD_NOT_ALLOWED, "not by this method");
    refusal.headers_mut().insert(ALLOW, HeaderValue::from_static(allowed));
    refusal
}

fn nothing() -> Response<Full<Bytes>> {
    text(
        StatusCode::NOT_FOUND,
        "there is nothing here: reviews go to /inject/privileged, /inject/baseline or /inject/restricted",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_says_what_holds_in_the_namespace() {
        let level = |path| place(path).map(|context| (context.pod_security, context.mesh));
        assert_eq!(level("/inject/privileged"), Some((PodSecurity::Privileged, false)));
        assert_eq!(level("/inject/restricted"), Some((PodSecurity::Restricted, false)));
        assert_eq!(level("/inject/baseline/mesh"), Some((PodSecurity::Baseline, true)));
        for path in [
            "/",
            "/inject",
            "/inject/",
            "/inject/Restricted",
            "/inject/restricted/",
            "/inject/mesh",
        ] {
            assert_eq!(level(path), None, "{path}");
        }
    }
}
