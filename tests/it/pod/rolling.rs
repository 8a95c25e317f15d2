//! P6: the pods are replaced one after the other under load, and nobody loses anything.
//!
//! The application ends at its SIGTERM, whatever is under way. It has no hook of its own; what the injector
//! gives it waits for the gateway's drain.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::json;

use super::balancer::Balancer;
use super::kubelet::{Farewell, LivePod};
use super::network::Network;
use super::specs::{Case, Spec, cases};
use crate::http::client::{Http1, wrong_with};
use crate::http::http2::{self, Http2};
use crate::support::{Over, Rng, SOON, Stopwatch, scale};

cases!(with_room_to_spare, while_the_queue_is_full);

/// What a request asks the application for.
const WORK: &str = "/work?ms=3";

/// How long the longest work of a client takes, a WebSocket's talk: 12 words with a pause after each.
const PAUSE: Duration = Duration::from_millis(25);

const ANNOUNCE: Duration = Duration::from_secs(1);

/// How requests went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Went {
    Answered,
    Refused,
    /// On a connection used before, which was closed before a byte of an answer: asked again.
    Again,
    Lost,
}

type Books = BTreeMap<(&'static str, Went), usize>;

/// What all clients share.
#[derive(Default)]
struct Load {
    books: Mutex<Books>,
    /// How many have been asked.
    asked: AtomicUsize,
    /// How long the longest talk was, in milliseconds: as long as this machine made it.
    longest: AtomicU64,
    over: AtomicBool,
}

fn with_room_to_spare(case: Case) {
    let spec = spec(case).set("limit", 100);
    let books = roll(case, &spec, 2);
    let refused = books.iter().filter(|((_, went), _)| *went == Went::Refused);
    assert_eq!(refused.count(), 0, "there was room for everybody: {books:?}");
}

fn while_the_queue_is_full(case: Case) {
    let spec = spec(case).set("limit", 1).set("queue-length", 2).set("queue-timeout", "500ms");
    let spec = spec.set("protocol", "http"); // whoever is slow to ask is told so in words of HTTP
    let books = roll(case, &spec, 1);
    assert!(books.get(&("fresh", Went::Refused)) > Some(&0), "the queue was never full: {books:?}");
}

fn spec(case: Case) -> Spec {
    let wait = json!({ "preStop": { "httpGet": { "path": "/drain/wait", "port": 15821 } } });
    let ready = json!({ "tcpSocket": { "port": 8080 }, "periodSeconds": 1 });
    let spec = Spec::application(case, "http", 8080).with("lifecycle", wait);
    let announce = format!("{}ms", ANNOUNCE.as_millis());
    spec.with("readinessProbe", ready).set("drain-delay", announce).set("queue-length", 100)
}

/// Two pods, each replaced so often, under every kind of client; answers how all requests went.
#[track_caller]
fn roll(case: Case, spec: &Spec, short: usize) -> Books {
    let network = Network::new();
    let balancer = Balancer::start(&network.client);
    let shared = Load::default();
    let mut rng = Rng::new(Rng::announced());
    let farewells = std::thread::scope(|scope| {
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
        let mut farewells = Vec::new();
        // However slow this machine is, so many pods and so many requests.
        while farewells.len() < scale(short, 20)
            || shared.asked.load(Ordering::Relaxed) < scale(1_000, 100_000)
        {
            pods.push(start());
            balancer.tell(at(&pods), Duration::from_millis(100) + rng.millis(400));
            let old = pods.remove(0);
            balancer.tell(at(&pods), Duration::from_millis(100) + rng.millis(400));
            let going = Stopwatch::start();
            farewells.push((old.delete(), going.withheld()));
        }
        shared.over.store(true, Ordering::Relaxed);
        load.join().expect("no panic"); // before the pods go that are left
        farewells
    });
    let books = shared.books.into_inner().unwrap_or_else(PoisonError::into_inner);
    let work = Duration::from_millis(shared.longest.into_inner());
    eprintln!("{books:?}, the longest talk took {work:?}");
    for (farewell, withheld) in &farewells {
        assert_gone_in_time(farewell, work + *withheld);
    }
    let lost = books.iter().filter(|((_, went), _)| *went == Went::Lost);
    assert_eq!(lost.count(), 0, "{books:?}, {farewells:?}");
    let total: usize = books.values().sum();
    eprintln!("{total} requests while {} pods were replaced", farewells.len());
    for who in ["fresh", "kept", "http2", "websocket"] {
        assert!(books.get(&(who, Went::Answered)) > Some(&0), "{who}: {books:?}");
    }
    books
}

/// Its work, twice the announcement (connections came for half of it), and a second; from when the hook has
/// begun the drain, which is a process that the node has to start. What the machine has withheld comes on top.
#[track_caller]
fn assert_gone_in_time(farewell: &BTreeMap<String, Farewell>, work: Duration) {
    let begun = farewell["tidegate"].hook.as_ref().map_or(Duration::ZERO, |(took, _)| *took);
    for gone in farewell.values() {
        assert!(!gone.killed && gone.code == 0, "{farewell:?}");
        let (_, hook) = gone.hook.as_ref().expect("each has one");
        assert!(hook.is_ok(), "{farewell:?}");
        let bound = begun + work + 2 * ANNOUNCE + Duration::from_secs(1);
        assert!(gone.ended < bound, "later than {bound:?}: {farewell:?}");
    }
}

/// Every kind of client at once, until it is over.
fn load(network: &Network, to: SocketAddr, shared: &Load) {
    let enter = |who: &'static str, went: Went| {
        shared.asked.fetch_add(1, Ordering::Relaxed);
        let mut books = shared.books.lock().unwrap_or_else(PoisonError::into_inner);
        *books.entry((who, went)).or_default() += 1;
        if shared.over.load(Ordering::Relaxed) {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    };
    network.client.enter(|| {
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| fresh(to, |went| enter("fresh", went)));
                scope.spawn(|| kept(to, |went| enter("kept", went)));
            }
            scope.spawn(|| http2::block_on(streams(to, |went| enter("http2", went))));
            scope.spawn(|| {
                talks(to, |went, took| {
                    shared.longest.fetch_max(took.as_millis() as u64, Ordering::Relaxed);
                    enter("websocket", went)
                });
            });
        });
    });
}

fn judge(status: u16, refusal: bool) -> Went {
    match status {
        200 | 101 => Went::Answered,
        503 if refusal => Went::Refused,
        _ => Went::Lost,
    }
}

/// A connection for each request.
fn fresh(to: SocketAddr, mut enter: impl FnMut(Went) -> ControlFlow<()>) {
    loop {
        let went = Http1::try_connect(to).and_then(|mut client| {
            client.ask(WORK, "Connection: close\r\n");
            client.answer()
        });
        let went =
            went.map_or(Went::Lost, |answer| judge(answer.status, wrong_with(&answer).is_none()));
        if enter(went).is_break() {
            return;
        }
    }
}

/// One connection for as many requests as it takes.
fn kept(to: SocketAddr, mut enter: impl FnMut(Went) -> ControlFlow<()>) {
    let mut connection: Option<Http1> = None;
    loop {
        let used = connection.is_some();
        let asked = connection.take().map_or_else(|| Http1::try_connect(to), Ok);
        let went = asked.and_then(|mut client| {
            client.ask(WORK, "");
            let answer = client.answer()?;
            if answer.header("connection") != Some("close") {
                connection = Some(client);
            }
            Ok(judge(answer.status, wrong_with(&answer).is_none()))
        });
        let closed = if used { Went::Again } else { Went::Lost };
        if enter(went.unwrap_or(closed)).is_break() {
            return;
        }
    }
}

/// Requests side by side on one connection of HTTP/2, until a GOAWAY asks for another.
async fn streams(to: SocketAddr, mut enter: impl FnMut(Went) -> ControlFlow<()>) {
    let enter = &mut enter;
    loop {
        let Ok(mut client) = Http2::try_connect(to).await else {
            if enter(Went::Lost).is_break() {
                return;
            }
            continue;
        };
        loop {
            let mut asked = Vec::new();
            for _ in 0..4 {
                match client.open("GET", WORK, &[], true).await {
                    Ok((response, _)) => asked.push(response),
                    Err(_) => break, // nothing was asked
                }
            }
            let open = asked.len() == 4;
            for response in asked {
                let went = match http2::answer(response).await {
                    Ok(answer) => judge(answer.status, wrong_with(&answer).is_none()),
                    // Said not to have been looked at.
                    Err(error) if error.is_go_away() => Went::Again,
                    Err(error) if error.reason() == Some(h2::Reason::REFUSED_STREAM) => Went::Again,
                    Err(_) => Went::Lost,
                };
                if enter(went).is_break() {
                    return;
                }
            }
            if !open {
                break;
            }
        }
    }
}

/// WebSockets, each for a talk of a dozen words.
fn talks(to: SocketAddr, mut enter: impl FnMut(Went, Duration) -> ControlFlow<()>) {
    loop {
        let start = Instant::now();
        let went = talk(to).unwrap_or(Went::Lost);
        if enter(went, start.elapsed()).is_break() {
            return;
        }
    }
}

fn talk(to: SocketAddr) -> std::io::Result<Went> {
    let mut client = Http1::try_connect(to)?.patience(SOON);
    client.ask("/tunnel", "Connection: upgrade\r\nUpgrade: websocket\r\n");
    let answer = client.answer()?;
    if answer.status != 101 {
        return Ok(judge(answer.status, wrong_with(&answer).is_none()));
    }
    for word in 0..12_u32 {
        client.send(word.to_le_bytes());
        if client.raw(4)? != word.to_le_bytes() {
            return Ok(Went::Lost);
        }
        std::thread::sleep(PAUSE); // a talk takes its time
    }
    Ok(Went::Answered)
}
