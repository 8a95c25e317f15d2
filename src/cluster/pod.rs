//! The pod's own object, watched: what its annotations are, and that it is being deleted.
//!
//! ```text
//! connect → list (where we are) → watch … → the watch's time is up: watch on from there
//!    ↑                              └ anything else: say why, leave it alone for a while ─┐
//!    └────────────────────────────────────────────────────────────────────────────────────┘
//! ```
//!
//! Always true: it ends only when the pod is being deleted; attempts begin at most 28 s apart and, while
//! they fail, not in quick succession; a line or a list beyond what a pod can be ends the attempt; whoever
//! is silent is noticed by pings, and at the latest after [`QUIET`].

use std::time::{Duration, Instant, SystemTime};

use http::{HeaderMap, header};
use http_body_util::BodyExt;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::{Timestamp, fmt::rfc2822};
use kube::api::{ListParams, WatchParams};
use kube::core::{ObjectList, ObjectMeta, PartialObjectMeta, Request, Resource, WatchEvent};
use tokio::sync::mpsc::Sender;

use super::api::{self, Access, Failure};
use super::backoff::Backoff;
use super::lines::Lines;
use super::views::Annotations;

/// Which pod, and whom to ask.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The pod's name.
    pub name: String,
    /// Its namespace, unless the service account says it.
    pub namespace: Option<String>,
    /// Its unique id, if known: a pod that is made again under the same name is another.
    pub uid: Option<String>,
    /// The API server.
    pub access: Access,
}

/// What has been seen.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// The watch works.
    Watching,
    /// The pod's annotations are these.
    Annotations(Annotations),
    /// The pod is being deleted.
    Deleted {
        /// How long it has until it is killed.
        left: Duration,
    },
    /// The watch does not work; it is tried again.
    Away(Failure),
}

/// The server ends a watch after this, at the latest; spread, so that pods that began together do not stay
/// together.
const WATCH: std::ops::Range<u32> = 240..290;

/// Silence after which a watch is begun anew. Servers send a bookmark about once a minute.
const QUIET: Duration = Duration::from_secs(90);

/// A watch that lasted so long has worked, and one that ends sooner has not.
const LASTING: Duration = Duration::from_secs(30);

/// Where we are in the history of the pods.
struct Place {
    version: String,
    uid: Option<String>,
}

/// The server's clock: nodes' clocks are not the one that deletion is timed by.
struct Clock {
    server: Option<Timestamp>,
    at: Instant,
}

type Object = PartialObjectMeta<Pod>;

/// Watch until the pod is being deleted, or nobody listens any more.
pub async fn watch(config: Config, events: Sender<Event>) {
    let mut backoff = Backoff::default();
    loop {
        let began = Instant::now();
        let failure = match session(&config, &events).await {
            Ok(()) => return,
            Err(failure) => failure,
        };
        if began.elapsed() >= LASTING {
            backoff.reset();
        }
        let pause = backoff.next(failure.asks_for(), chance());
        if events.send(Event::Away(failure)).await.is_err() {
            return;
        }
        // What the attempt took counts: who hangs is not waited for twice.
        tokio::time::sleep_until((began + pause).max(Instant::now() + SHORTEST).into()).await;
    }
}

/// Between the end of one attempt and the beginning of the next.
const SHORTEST: Duration = Duration::from_millis(800);

/// From the first question to the failure. `Ok`: there is nothing left to watch.
async fn session(config: &Config, events: &Sender<Event>) -> Result<(), Failure> {
    let (client, namespace) = api::connect(&config.access).await?;
    let namespace = config.namespace.as_deref().unwrap_or(&namespace);
    let pods = Request::new(Pod::url_path(&(), Some(namespace)));
    let fields = format!("metadata.name={}", config.name);
    let strange = |error: kube::core::request::Error| Failure::Strange(error.to_string());

    let list = pods.list_metadata(&ListParams::default().fields(&fields)).map_err(strange)?;
    let answer = api::ask(&client, list).await?;
    let clock = Clock::of(answer.headers());
    let body = api::whole(answer.into_body(), api::MOST).await?;
    let list: ObjectList<Object> = serde_json::from_slice(&body).map_err(not_understood)?;
    let version = list.metadata.resource_version.clone().unwrap_or_default();
    let mut place = Place { version, uid: config.uid.clone() };
    let ours = list.items.into_iter().find(|pod| pod.metadata.name.as_ref() == Some(&config.name));
    let Some(pod) = ours else {
        return Err(Failure::NoPod(format!("{namespace}/{}", config.name)));
    };
    if told(&pod.metadata, &mut place, &clock, events).await? || say(events, Event::Watching).await
    {
        return Ok(());
    }
    loop {
        let began = Instant::now();
        let timeout = WATCH.start + (f64::from(WATCH.end - WATCH.start) * chance()) as u32;
        let params = WatchParams::default().fields(&fields).timeout(timeout);
        let watch = pods.watch_metadata(&params, &place.version).map_err(strange)?;
        let answer = api::ask(&client, watch).await?;
        if follow(answer, &mut place, events).await? {
            return Ok(());
        }
        if began.elapsed() < LASTING {
            return Err(Failure::Closed);
        }
    }
}

/// Read a watch to its end. `true`: there is nothing left to watch.
async fn follow(
    answer: http::Response<kube::client::Body>,
    place: &mut Place,
    events: &Sender<Event>,
) -> Result<bool, Failure> {
    let clock = Clock::of(answer.headers());
    let mut body = answer.into_body();
    let mut lines = Lines::new(api::MOST);
    loop {
        while let Some(line) = lines.next().map_err(|_| Failure::TooLong)? {
            let event: WatchEvent<Object> =
                serde_json::from_slice(&line).map_err(not_understood)?;
            let over = match event {
                WatchEvent::Added(pod) | WatchEvent::Modified(pod) => {
                    told(&pod.metadata, place, &clock, events).await?
                }
                WatchEvent::Deleted(pod) => {
                    let left = clock.left(&pod.metadata).unwrap_or_default();
                    ours(&pod.metadata, place)? && say(events, Event::Deleted { left }).await
                }
                WatchEvent::Bookmark(bookmark) => {
                    place.version = bookmark.metadata.resource_version;
                    false
                }
                WatchEvent::Error(status) => {
                    return Err(Failure::of_status(status.code, &status.message, None));
                }
            };
            if over {
                return Ok(true);
            }
        }
        let frame = tokio::time::timeout(QUIET, body.frame()).await;
        match frame.map_err(|_| Failure::Silent)? {
            None => return Ok(false),
            Some(Err(error)) => return Err(Failure::Unreachable(api::causes(&error))),
            Some(Ok(frame)) => lines.take(frame.data_ref().map_or(&[][..], |data| data)),
        }
    }
}

/// Pass on what a state of the pod says. `true`: there is nothing left to watch.
async fn told(
    pod: &ObjectMeta,
    place: &mut Place,
    clock: &Clock,
    events: &Sender<Event>,
) -> Result<bool, Failure> {
    if !ours(pod, place)? {
        return Ok(false);
    }
    if let Some(version) = &pod.resource_version {
        place.version.clone_from(version);
    }
    let annotations = pod.annotations.clone().unwrap_or_default();
    if say(events, Event::Annotations(annotations)).await {
        return Ok(true);
    }
    match clock.left(pod) {
        Some(left) => {
            say(events, Event::Deleted { left }).await;
            Ok(true)
        }
        None => Ok(false),
    }
}

/// Whether it is the pod we are in.
fn ours(pod: &ObjectMeta, place: &mut Place) -> Result<bool, Failure> {
    match (&place.uid, &pod.uid) {
        (Some(ours), Some(theirs)) if ours != theirs => {
            Err(Failure::NoPod("of ours: one that was made later has its name".into()))
        }
        (None, Some(uid)) => {
            place.uid = Some(uid.clone());
            Ok(true)
        }
        _ => Ok(true),
    }
}

/// Whether nobody listens any more.
async fn say(events: &Sender<Event>, event: Event) -> bool {
    let last = matches!(event, Event::Deleted { .. });
    events.send(event).await.is_err() || last
}

impl Clock {
    fn of(headers: &HeaderMap) -> Self {
        let date = headers.get(header::DATE).and_then(|date| date.to_str().ok());
        // GMT is one of its obsolete names for UTC.
        let server = date.and_then(|date| rfc2822::parse(date).ok()).map(|date| date.timestamp());
        Self { server, at: Instant::now() }
    }

    fn now(&self) -> Timestamp {
        let since = self.at.elapsed();
        let there = self.server.and_then(|server| server.checked_add(since).ok());
        there.or_else(|| SystemTime::now().try_into().ok()).unwrap_or_default()
    }

    /// How long a pod that is being deleted has: until its time is over, and never longer than it was given.
    fn left(&self, pod: &ObjectMeta) -> Option<Duration> {
        let end = pod.deletion_timestamp.as_ref()?.0;
        let left = Duration::try_from(end.duration_since(self.now())).unwrap_or_default();
        let given = pod.deletion_grace_period_seconds.and_then(|given| u64::try_from(given).ok());
        Some(given.map_or(left, |given| left.min(Duration::from_secs(given))))
    }
}

fn not_understood(error: serde_json::Error) -> Failure {
    Failure::Strange(error.to_string())
}

/// From 0 to 1.
fn chance() -> f64 {
    let mut bytes = [0; 4];
    // Without chance the pods come together, which the server survives.
    let _ = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
    f64::from(u32::from_le_bytes(bytes)) / f64::from(u32::MAX)
}
