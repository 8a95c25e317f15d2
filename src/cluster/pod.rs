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
        let failure = match session(&config, &events, LASTING).await {
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

/// From the first question to the failure. `Ok`: there is nothing left to watch. A watch is good that ends
/// after `lasting`.
async fn session(
    config: &Config,
    events: &Sender<Event>,
    lasting: Duration,
) -> Result<(), Failure> {
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
    let mut place = Place { version: version.clone(), uid: config.uid.clone() };
    let ours = list.items.into_iter().find(|pod| pod.metadata.name.as_ref() == Some(&config.name));
    let Some(pod) = ours else {
        return Err(Failure::NoPod(format!("{namespace}/{}", config.name)));
    };
    if told(&pod.metadata, &mut place, &clock, events).await? || say(events, Event::Watching).await
    {
        return Ok(());
    }
    // The pod's own version is that of its last change, which the server may have forgotten long ago.
    place.version = version;
    loop {
        let began = Instant::now();
        let timeout = WATCH.start + (f64::from(WATCH.end - WATCH.start) * chance()) as u32;
        let params = WatchParams::default().fields(&fields).timeout(timeout);
        let watch = pods.watch_metadata(&params, &place.version).map_err(strange)?;
        let answer = api::ask(&client, watch).await?;
        if follow(answer, &mut place, events).await? {
            return Ok(());
        }
        if began.elapsed() < lasting {
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

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Write};
    use std::net::{SocketAddr, TcpListener};
    use std::thread::JoinHandle;

    use serde_json::{Value, json};

    use super::*;

    /// Gives these answers to one question each, then none; answers what was asked.
    fn server(answers: Vec<(u16, String)>) -> (SocketAddr, JoinHandle<Vec<String>>) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("bound");
        let serve = move || {
            let mut asked = Vec::new();
            for (status, body) in answers {
                let (stream, _) = listener.accept().expect("a question");
                let mut lines = BufReader::new(&stream).lines().map_while(Result::ok);
                asked.push(lines.next().expect("a request"));
                lines.find(String::is_empty).expect("the end of its head");
                let head = format!("HTTP/1.1 {status} x\r\nConnection: close\r\n\r\n");
                (&stream).write_all((head + &body).as_bytes()).expect("it reads");
            }
            asked
        };
        (address, std::thread::spawn(serve))
    }

    fn pod(version: u32, limit: u32) -> Value {
        json!({ "name": "web", "uid": "1", "resourceVersion": version.to_string(),
            "annotations": { "limit": limit.to_string() } })
    }

    fn line(kind: &str, metadata: &Value) -> String {
        let object = json!({ "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": metadata });
        format!("{}\n", json!({ "type": kind, "object": object }))
    }

    /// What a session with such a server comes to: what was asked, what was seen, and why it ended.
    async fn played(
        answers: Vec<(u16, String)>,
        lasting: Duration,
    ) -> (Vec<String>, Vec<Event>, Failure) {
        let (address, asked) = server(answers);
        let dir = tempfile::tempdir().expect("a directory");
        let kubeconfig = dir.path().join("kubeconfig");
        let context = json!({ "cluster": "c", "user": "u", "namespace": "shop" });
        let text = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "c",
            "contexts": [{ "name": "c", "context": context }],
            "clusters": [{ "name": "c", "cluster": { "server": format!("http://{address}") } }],
            "users": [{ "name": "u", "user": {} }],
        });
        std::fs::write(&kubeconfig, text.to_string()).expect("written");
        let access = Access::Kubeconfig(kubeconfig);
        let config = Config { name: "web".into(), namespace: None, uid: None, access };
        let (tell, mut events) = tokio::sync::mpsc::channel(100);
        let failure = session(&config, &tell, lasting).await.expect_err("it has to end");
        drop(tell);
        let mut seen = Vec::new();
        while let Some(event) = events.recv().await {
            seen.push(event);
        }
        (asked.join().expect("no panic"), seen, failure)
    }

    fn list() -> (u16, String) {
        let list = json!({ "kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1",
            "metadata": { "resourceVersion": "100" }, "items": [{ "metadata": pod(90, 3) }] });
        (200, list.to_string())
    }

    fn bookmark(version: &str) -> (u16, String) {
        (200, line("BOOKMARK", &json!({ "resourceVersion": version, "creationTimestamp": null })))
    }

    #[tokio::test]
    async fn a_watch_whose_time_is_up_goes_on_from_the_last_word() {
        let gone = json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": "too old resource version", "reason": "Expired", "code": 410 });
        let answers = vec![
            list(),
            bookmark("140"),
            (200, line("MODIFIED", &pod(141, 4))),
            (200, String::new()),
            (410, gone.to_string()),
        ];
        let (asked, seen, failure) = played(answers, Duration::ZERO).await;
        let from = |question: &String| {
            let (_, rest) = question.split_once("resourceVersion=")?;
            rest.split(['&', ' ']).next().map(str::to_owned)
        };
        let from: Vec<_> = asked.iter().map(from).collect();
        let expected = [None, Some("100"), Some("140"), Some("141"), Some("141")];
        assert_eq!(from, expected.map(|version| version.map(str::to_owned)), "{asked:?}");
        let said = |limit: &str| Event::Annotations([("limit".into(), limit.into())].into());
        assert_eq!(seen, [said("3"), Event::Watching, said("4")]);
        assert_eq!(failure, Failure::Gone, "as a status");
    }

    #[tokio::test]
    async fn a_watch_that_ends_at_once_is_none() {
        let (asked, _, failure) = played(vec![list(), bookmark("140")], LASTING).await;
        assert_eq!((asked.len(), failure), (2, Failure::Closed));
    }
}
