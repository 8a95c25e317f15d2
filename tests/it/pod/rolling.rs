//! P6: the pods are replaced one after the other under load, and nobody loses anything.
//!
//! The application ends at its SIGTERM, whatever is under way. It has no hook of its own; what the injector
//! gives it waits for the gateway's drain. It writes down which requests have come to it: those are the ones
//! that were answered, each once, and no others.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::json;

use super::application::IDS;
use super::balancer::Balancer;
use super::kubelet::{Farewell, LivePod};
use super::network::Network;
use super::specs::{Case, Spec, cases};
use crate::http::client::{Answer, Http1, next_id, wrong_with};
use crate::http::http2::{self, Http2};
use crate::support::gateway::Gateway;
use crate::support::{Over, Rng, SOON, Stopwatch, control, scale, until};

cases!(with_room_to_spare, while_the_queue_is_full);

const NOBODY: [u64; 0] = [];

/// What a request asks the application for.
const WORK: &str = "/work?ms=3";

/// The longest work of a client is a WebSocket's talk: 12 words with a pause after each.
const PAUSE: Duration = Duration::from_millis(25);

const ANNOUNCE: Duration = Duration::from_secs(1);

/// How many ask at once on each kind of connection that is used again: clients of HTTP/1, streams of HTTP/2.
const KEPT: usize = 4;

/// How requests went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Went {
    Answered,
    Refused,
    /// Asked when its connection was just being closed, and came to nobody: to be asked again.
    Again,
    Lost,
}

/// The ids of the requests of one kind of client that went so.
type Books = BTreeMap<(&'static str, Went), Vec<u64>>;

/// What all clients share.
#[derive(Default)]
struct Load {
    books: Mutex<Books>,
    /// How many have been asked.
    asked: AtomicUsize,
    /// When each talk began and ended: it took as long as this machine made it.
    talks: Mutex<Vec<(Instant, Instant)>>,
    over: AtomicBool,
}

/// How a pod went.
#[derive(Debug)]
struct Going {
    deleted: Instant,
    gone: Instant,
    /// How long its gateway went on accepting.
    announced: Duration,
    /// What the machine has withheld meanwhile.
    withheld: Duration,
    farewell: BTreeMap<String, Farewell>,
}

fn with_room_to_spare(case: Case) {
    let spec = spec(case).set("limit", 100);
    let books = roll(case, &spec, 2, |_| {});
    assert_eq!(all(&books, Went::Refused), NOBODY, "there was room for everybody");
}

fn while_the_queue_is_full(case: Case) {
    let spec = spec(case).set("limit", 1).set("queue-length", 2).set("queue-timeout", "500ms");
    let spec = spec.set("protocol", "http"); // whoever is slow to ask is told so in words of HTTP
    let port = case.port(8080);
    let full = |gateway: &Gateway| {
        until("the queue is full", SOON, || gateway.port_at(port).queued == 2);
    };
    let books = roll(case, &spec, 1, full);
    assert!(books.contains_key(&("fresh", Went::Refused)), "the queue was full");
}

fn spec(case: Case) -> Spec {
    let wait = json!({ "preStop": { "httpGet": { "path": "/drain/wait", "port": 15821 } } });
    let ready = json!({ "tcpSocket": { "port": 8080 }, "periodSeconds": 1 });
    let spec = Spec::application(case, "http", 8080).with("lifecycle", wait);
    let announce = format!("{}ms", ANNOUNCE.as_millis());
    spec.with("readinessProbe", ready).set("drain-delay", announce).set("queue-length", 100)
}

/// Two pods, replaced so often, each once `ripe` says so, under every kind of client; answers how all requests
/// went.
#[track_caller]
fn roll(case: Case, spec: &Spec, short: usize, ripe: impl Fn(&Gateway)) -> Books {
    let network = Network::new();
    let balancer = Balancer::start(&network.client);
    let shared = Load::default();
    let mut rng = Rng::new(Rng::announced());
    let (goings, mut came) = std::thread::scope(|scope| {
        let _over = Over(&shared.over);
        let start = || {
            let pod = LivePod::start(&network, case.families, spec.clone().pod(), &BTreeMap::new());
            pod.wait_ready();
            pod
        };
        let at = |pods: &[LivePod]| -> Vec<SocketAddr> {
            pods.iter().map(|pod| (pod.address(), case.port(8080)).into()).collect()
        };
        let mut pods = vec![start(), start()];
        balancer.tell(at(&pods), Duration::ZERO);
        let load = scope.spawn(|| load(&network, balancer.address, &shared));
        let (mut goings, mut came) = (Vec::new(), Vec::new());
        // However slow this machine is, so many pods and so many requests.
        while goings.len() < scale(short, 20)
            || shared.asked.load(Ordering::Relaxed) < scale(1_000, 100_000)
        {
            pods.push(start());
            balancer.tell(at(&pods), Duration::from_millis(100) + rng.millis(400));
            let old = pods.remove(0);
            ripe(&old.gateway());
            balancer.tell(at(&pods), Duration::from_millis(100) + rng.millis(400));
            goings.push(delete(&old));
            came.extend(came_to(&old));
        }
        shared.over.store(true, Ordering::Relaxed);
        load.join().expect("no panic"); // before the pods go that are left
        came.extend(pods.iter().flat_map(came_to));
        (goings, came)
    });
    let books = shared.books.into_inner().unwrap_or_else(PoisonError::into_inner);
    let count = |(key, ids): (&(&'static str, Went), &Vec<u64>)| (*key, ids.len());
    let counts: BTreeMap<_, _> = books.iter().map(count).collect();
    let total: usize = counts.values().sum();
    eprintln!("{total} requests while {} pods were replaced: {counts:?}", goings.len());
    assert_eq!(all(&books, Went::Lost), NOBODY, "{counts:?}, {goings:?}");
    came.sort_unstable();
    assert_eq!(came, all(&books, Went::Answered), "what came is what was answered: {counts:?}");
    for who in ["kept", "http2"] {
        let crossed = counts.get(&(who, Went::Again)).copied().unwrap_or(0);
        assert!(crossed <= KEPT * goings.len(), "once for each that ends, at most: {counts:?}");
    }
    for who in ["fresh", "kept", "http2", "websocket"] {
        assert!(counts.contains_key(&(who, Went::Answered)), "{who}: {counts:?}");
    }
    let talks = shared.talks.into_inner().unwrap_or_else(PoisonError::into_inner);
    goings.iter().for_each(|going| assert_gone_in_time(going, &talks));
    books
}

/// The ids of all that went so, in order.
fn all(books: &Books, wanted: Went) -> Vec<u64> {
    let found = books.iter().filter(|((_, went), _)| *went == wanted);
    let mut ids: Vec<_> = found.flat_map(|(_, ids)| ids.iter().copied()).collect();
    ids.sort_unstable();
    ids
}

/// Which requests the application has seen.
fn came_to(pod: &LivePod) -> Vec<u64> {
    let name = IDS.strip_prefix("/tmp/").expect("it is in the volume there");
    let text = std::fs::read_to_string(pod.volume("tmp").join(name)).expect("it has begun");
    text.lines().map(|id| id.parse().expect("an id")).collect()
}

/// Deletes the pod. Its drain cuts nobody.
#[track_caller]
fn delete(pod: &LivePod) -> Going {
    let control = pod.gateway().control();
    let (deleted, going) = (Instant::now(), Stopwatch::start());
    let (farewell, announced) = std::thread::scope(|scope| {
        let announced = scope.spawn(|| announced(&control));
        (pod.delete(), announced.join().expect("no panic"))
    });
    let (gone, withheld) = (Instant::now(), going.withheld());
    let said = pod.process("tidegate").said();
    let report = said.lines().find(|line| line.contains("drained")).expect("the log has a report");
    assert!(report.contains("cut=0 "), "{report}");
    Going { deleted, gone, announced, withheld, farewell }
}

/// How long the gateway goes on accepting from when its drain has begun.
fn announced(control: &Path) -> Duration {
    let mut since = None;
    loop {
        let status = control::call(control, "GET", "/status.json", "", SOON);
        let phase = status.ok().and_then(|reply| {
            let status: serde_json::Value = serde_json::from_str(&reply.body).ok()?;
            status["phase"].as_str().map(str::to_owned)
        });
        match (phase.as_deref(), since) {
            (Some("announcing"), None) => since = Some(Instant::now()),
            (Some("serving" | "announcing"), _) => {}
            (_, since) => return since.map_or(Duration::ZERO, |since| since.elapsed()),
        }
        std::thread::sleep(Duration::from_millis(10)); // between two looks
    }
}

/// Its work, the announcement, which goes on while connections come, up to twice its length, and a second; from
/// when the hook has begun the drain, which is a process that the node has to start. What the machine has
/// withheld comes on top.
#[track_caller]
fn assert_gone_in_time(going: &Going, talks: &[(Instant, Instant)]) {
    let meanwhile =
        |(begun, over): &&(Instant, Instant)| *begun < going.gone && *over > going.deleted;
    let work = talks.iter().filter(meanwhile).map(|(begun, over)| *over - *begun).max();
    let farewell = &going.farewell;
    let begun = farewell["tidegate"].hook.as_ref().map_or(Duration::ZERO, |(took, _)| *took);
    let announced = going.announced.min(2 * ANNOUNCE);
    let bound = begun + announced + work.unwrap_or_default() + Duration::from_secs(1);
    let (gate, app) = (&farewell["tidegate"], &farewell["app"]);
    // What the node takes between the two is its own.
    let whole = app.ended + gate.ended.saturating_sub(gate.told);
    eprintln!("{whole:?} of {bound:?}: {going:?}");
    for gone in [gate, app] {
        assert!(!gone.killed && gone.code == 0, "{farewell:?}");
        let (_, hook) = gone.hook.as_ref().expect("each has one");
        assert!(hook.is_ok(), "{farewell:?}");
    }
    assert!(whole < bound + going.withheld, "later than {bound:?}: {going:?}");
}

/// Every kind of client at once, until it is over.
fn load(network: &Network, to: SocketAddr, shared: &Load) {
    let enter = |who: &'static str, (went, id): (Went, u64)| {
        shared.asked.fetch_add(1, Ordering::Relaxed);
        let mut books = shared.books.lock().unwrap_or_else(PoisonError::into_inner);
        books.entry((who, went)).or_default().push(id);
        if shared.over.load(Ordering::Relaxed) {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    };
    network.client.enter(|| {
        std::thread::scope(|scope| {
            for _ in 0..KEPT {
                scope.spawn(|| fresh(to, |went| enter("fresh", went)));
                scope.spawn(|| kept(to, |went| enter("kept", went)));
            }
            scope.spawn(|| http2::block_on(streams(to, |went| enter("http2", went))));
            scope.spawn(|| {
                talks(to, |went, begun| {
                    let mut talks = shared.talks.lock().unwrap_or_else(PoisonError::into_inner);
                    talks.push((begun, Instant::now()));
                    enter("websocket", went)
                });
            });
        });
    });
}

/// A WebSocket's greeting names nobody.
fn judge(answer: &Answer, id: u64) -> Went {
    let own = answer.header("x-id") == Some(id.to_string().as_str());
    match answer.status {
        200 if own => Went::Answered,
        101 => Went::Answered,
        503 if wrong_with(answer).is_none() => Went::Refused,
        _ => Went::Lost,
    }
}

/// A connection for each request.
fn fresh(to: SocketAddr, mut enter: impl FnMut((Went, u64)) -> ControlFlow<()>) {
    loop {
        let went = match Http1::try_connect(to) {
            Ok(mut client) => {
                client.ask(WORK, "Connection: close\r\n");
                let went = client.answer().map_or(Went::Lost, |answer| judge(&answer, client.id));
                (went, client.id)
            }
            Err(_) => (Went::Lost, 0),
        };
        if enter(went).is_break() {
            return;
        }
    }
}

/// One connection for as many requests as it takes.
fn kept(to: SocketAddr, mut enter: impl FnMut((Went, u64)) -> ControlFlow<()>) {
    let mut connection: Option<Http1> = None;
    loop {
        let used = connection.is_some();
        let went = match connection.take().map_or_else(|| Http1::try_connect(to), Ok) {
            Ok(mut client) => {
                client.ask(WORK, "");
                let id = client.id;
                let went = match client.answer() {
                    Ok(answer) => {
                        let open = answer.header("connection") != Some("close");
                        connection = open.then_some(client);
                        judge(&answer, id)
                    }
                    Err(error) if used && client.was_closed_unheard(&error) => Went::Again,
                    Err(_) => Went::Lost,
                };
                (went, id)
            }
            Err(_) => (Went::Lost, 0),
        };
        if enter(went).is_break() {
            return;
        }
    }
}

/// Requests side by side on one connection of HTTP/2, until a GOAWAY asks for another.
async fn streams(to: SocketAddr, mut enter: impl FnMut((Went, u64)) -> ControlFlow<()>) {
    let enter = &mut enter;
    loop {
        let Ok(mut client) = Http2::try_connect(to).await else {
            if enter((Went::Lost, 0)).is_break() {
                return;
            }
            continue;
        };
        loop {
            let mut asked = Vec::new();
            for _ in 0..KEPT {
                let id = next_id();
                let header = id.to_string();
                match client.open("GET", WORK, &[("x-id", &header)], true).await {
                    Ok((response, _)) => asked.push((response, id)),
                    Err(_) => break, // nothing was asked
                }
            }
            let open = asked.len() == KEPT;
            let mut next = ControlFlow::Continue(());
            for (response, id) in asked {
                let went = match http2::answer(response).await {
                    Ok(answer) => judge(&answer, id),
                    // Said not to have been looked at.
                    Err(error) if error.is_go_away() => Went::Again,
                    Err(error) if error.reason() == Some(h2::Reason::REFUSED_STREAM) => Went::Again,
                    Err(_) => Went::Lost,
                };
                next = enter((went, id));
            }
            if next.is_break() {
                return;
            }
            if !open {
                break;
            }
        }
    }
}

/// WebSockets, each for a talk of a dozen words.
fn talks(to: SocketAddr, mut enter: impl FnMut((Went, u64), Instant) -> ControlFlow<()>) {
    loop {
        let begun = Instant::now();
        let went = talk(to).unwrap_or((Went::Lost, 0));
        if enter(went, begun).is_break() {
            return;
        }
    }
}

fn talk(to: SocketAddr) -> std::io::Result<(Went, u64)> {
    let mut client = Http1::try_connect(to)?.patience(SOON);
    client.ask("/tunnel", "Connection: upgrade\r\nUpgrade: websocket\r\n");
    let answer = client.answer()?;
    let went = judge(&answer, client.id);
    if went != Went::Answered {
        return Ok((went, client.id));
    }
    for word in 0..12_u32 {
        client.send(word.to_le_bytes());
        if client.raw(4)? != word.to_le_bytes() {
            return Ok((Went::Lost, client.id));
        }
        std::thread::sleep(PAUSE); // a talk takes its time
    }
    Ok((Went::Answered, client.id))
}
