//! P6 per request: what was read is answered; kept-alive connections are told that it was the last time.

use std::collections::{BTreeMap, HashSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use crate::support::gateway::{Gateway, Setup};
use crate::support::ledger::End;
use crate::support::{Engine, Over, SOON, engines, scale, slack, until};

use super::client::{Http1, assert_refusal};
use super::frames::{self, Raw};
use super::http2::{self, Http2};
use super::oracle::HttpOracle;
use super::{gate, queued};

engines!(
    nothing_is_lost_under_load,
    what_was_sent_before_it_closes_is_answered,
    kept_alive_connections_are_answered_while_it_announces,
    the_last_answer_says_close,
    http2_is_told_to_go_away,
    the_queue_is_served_while_it_closes,
    an_open_tunnel_is_waited_for,
    a_request_on_a_kept_connection_is_refused_politely_or_served,
    idle_kept_connections_do_not_hold_it_up,
    a_silent_connection_does_not_hold_it_up_for_long,
);

/// Wide enough for everybody.
fn wide(engine: Engine, app: &HttpOracle) -> Setup {
    gate(engine, app.address)
        .set("limit", 8)
        .set("queue-length", 200)
        .set("queue-timeout", "60s")
        .set("drain-timeout", "20s")
        .set("grace", "40s")
}

/// What the clients of one drain met.
#[derive(Default)]
struct Books {
    /// Connections that the kernel completed.
    connected: AtomicU64,
    answered: AtomicU64,
    refused: AtomicU64,
    /// Ids of requests that were not answered.
    unanswered: Mutex<Vec<u64>>,
    /// Of these, the ones that were the first on their connection, and how that ended.
    first: Mutex<Vec<(u64, std::io::ErrorKind)>>,
    /// Those that HTTP/2 said would be answered, and were not.
    broken_promises: Mutex<Vec<String>>,
}

impl Books {
    fn connect(&self, gateway: &Gateway) -> Option<Http1> {
        let client = Http1::try_connect(gateway.address).ok()?;
        self.connected.fetch_add(1, Ordering::Relaxed);
        Some(client)
    }
}

/// Keep-alive, one request per connection, HTTP/2 and a tunnel, all in the middle of it when it is told to
/// go: no request that reached us is lost, none that reached the application either, and no stream that
/// GOAWAY counts among those that were taken.
fn nothing_is_lost_under_load(engine: Engine) {
    for _ in 0..scale(3, 50) {
        one_drain(engine);
    }
}

fn one_drain(engine: Engine) {
    let app = HttpOracle::start();
    let mut gateway = wide(engine, &app).set("drain-delay", "200ms").start();
    let (over, books) = (AtomicBool::new(false), Books::default());
    let mut tunnel = books.connect(&gateway).expect("it listens");
    tunnel.ask("/tunnel", "Connection: Upgrade\r\nUpgrade: echo\r\n");
    assert_eq!(tunnel.answer().expect("an answer").status, 101);
    let report = std::thread::scope(|scope| {
        let guard = Over(&over);
        for number in 0..8 {
            let (gateway, books, over) = (&gateway, &books, &over);
            scope.spawn(move || keep_asking(gateway, books, over, number < 6));
        }
        let (gateway, books, over) = (&gateway, &books, &over);
        let two = scope.spawn(move || http2::block_on(keep_asking_http2(gateway, books, over)));
        scope.spawn(move || keep_asking_by_frames(gateway, books, over));
        until("they have begun", SOON, || app.count() > 100);
        let draining = gateway.drain();
        until("it closes", SOON, || gateway.status().phase == "closing");
        until("nobody listens any more", SOON, || books.connect(gateway).is_none());
        tunnel.send("still there");
        assert_eq!(tunnel.raw(11).expect("an echo"), b"still there");
        drop(guard);
        two.join().expect("no panic");
        drop(tunnel);
        draining.report()
    });
    let seen: HashSet<u64> = app.seen().iter().filter_map(|seen| seen.id).collect();
    let unanswered = books.unanswered.into_inner().expect("no panic");
    let lost: Vec<_> = unanswered.iter().filter(|id| seen.contains(id)).collect();
    assert!(lost.is_empty(), "{} reached the application: {lost:?}", lost.len());
    let broken = books.broken_promises.into_inner().expect("no panic");
    assert!(broken.is_empty(), "{broken:?}");
    // Every request that was read here has been answered, with the tunnel's, and nobody else's.
    let (answered, refused) = (books.answered.into_inner(), books.refused.into_inner());
    assert_eq!(read_by(&gateway), (answered + 1, refused), "{:?}", gateway.port());
    let first = books.first.into_inner().expect("no panic");
    // What the kernel had completed when the listener was closed, and nobody accepted, is reset by it.
    let (connected, accepted) = (books.connected.into_inner(), gateway.port().accepted);
    assert!(
        accepted + first.len() as u64 <= connected,
        "on new connections: {first:?}; {connected} were made, {accepted} were accepted"
    );
    assert_eq!(report.cut, 0, "{report:?}");
    assert!(app.peak() <= 8);
    assert!(answered > 100);
    gateway.terminate(slack(Duration::from_secs(2)));
}

/// How many requests the gateway has read, by its own books: let in, and not.
#[track_caller]
fn read_by(gateway: &Gateway) -> (u64, u64) {
    let port = gateway.port();
    (port.admitted, port.refused.values().sum())
}

/// One request after the other, until nobody listens.
fn keep_asking(gateway: &Gateway, books: &Books, over: &AtomicBool, keep: bool) {
    let mut kept = None;
    while !over.load(Ordering::Relaxed) {
        let first = kept.is_none();
        let Some(mut client) = kept.take().or_else(|| books.connect(gateway)) else {
            return;
        };
        client.ask("/work?ms=5", if keep { "" } else { "Connection: close\r\n" });
        match client.answer() {
            Ok(answer) => {
                let own = answer.header("x-id") == Some(client.id.to_string().as_str());
                match answer.status {
                    200 if own => books.answered.fetch_add(1, Ordering::Relaxed),
                    503 => books.refused.fetch_add(1, Ordering::Relaxed),
                    _ => panic!("{answer:?}"),
                };
                let close = answer.header("connection").is_some_and(|value| value == "close");
                kept = (keep && !close).then_some(client);
            }
            Err(error) => {
                books.unanswered.lock().expect("no panic").push(client.id);
                if first {
                    books.first.lock().expect("no panic").push((client.id, error.kind()));
                }
            }
        }
    }
}

/// Four streams side by side, again and again; a stream that was not processed may be asked again
/// elsewhere, so only those that were answered in part count as lost.
async fn keep_asking_http2(gateway: &Gateway, books: &Books, over: &AtomicBool) {
    while !over.load(Ordering::Relaxed) {
        let Ok(mut client) = Http2::try_connect(gateway.address).await else {
            return;
        };
        books.connected.fetch_add(1, Ordering::Relaxed);
        'connection: loop {
            let mut open = Vec::new();
            for _ in 0..4 {
                let id = super::client::next_id();
                let (text, path) = (id.to_string(), "/stream?n=3&ms=2");
                match client.open("GET", path, &[("x-id", text.as_str())], true).await {
                    Ok((response, _)) => open.push((id, response)),
                    Err(_) => break,
                }
            }
            let done = open.len() < 4;
            for (id, response) in open {
                match http2::answer(response).await {
                    Ok(answer) if answer.status == 200 && answer.body.len() == 3_000 => {
                        books.answered.fetch_add(1, Ordering::Relaxed);
                    }
                    Ok(answer) if answer.status == 503 => {
                        books.refused.fetch_add(1, Ordering::Relaxed);
                    }
                    _ => books.unanswered.lock().expect("no panic").push(id),
                }
            }
            if done || over.load(Ordering::Relaxed) {
                break 'connection;
            }
        }
    }
}

/// The same without a library, which does not tell what GOAWAY said of its streams.
fn keep_asking_by_frames(gateway: &Gateway, books: &Books, over: &AtomicBool) {
    while !over.load(Ordering::Relaxed) {
        let Ok(mut raw) = Raw::try_connect(gateway.address) else { return };
        books.connected.fetch_add(1, Ordering::Relaxed);
        // The streams that are open: whether the answer is 200, and the length of its body.
        let mut open: BTreeMap<u32, (bool, usize)> = BTreeMap::new();
        let (mut taken, mut farewells, mut answered) = (u32::MAX, 0, 0);
        let mut next = (1..).step_by(2);
        while farewells == 0 && !over.load(Ordering::Relaxed) {
            for stream in next.by_ref().take(4) {
                let id = super::client::next_id().to_string();
                open.insert(stream, (false, 0));
                let _ = raw.ask(stream, "/stream?n=3&ms=2", &[("x-id", &id)]); // shows when it is read
            }
            while !open.is_empty()
                && let Ok(frame) = raw.read()
            {
                let _ = raw.pong(&frame);
                if frame.kind == frames::GOAWAY {
                    assert_eq!(frame.number(4), 0, "NO_ERROR");
                    (taken, farewells) = (frame.number(0), farewells + 1);
                }
                let Some((ok, length)) = open.get_mut(&frame.stream) else { continue };
                match frame.kind {
                    frames::HEADERS => *ok |= frame.payload[0] == frames::STATUS_200,
                    frames::DATA => {
                        *length += frame.payload.len();
                        let credit = (frame.payload.len() as u32).max(1).to_be_bytes();
                        let _ = raw.send(&frames::frame(frames::WINDOW_UPDATE, 0, 0, &credit));
                    }
                    _ => {}
                }
                if frame.ends_stream() {
                    let (ok, length) = (*ok, *length);
                    open.remove(&frame.stream);
                    assert!(!ok || length == 3_000, "{length} bytes of an answer");
                    let count = if ok { &books.answered } else { &books.refused };
                    count.fetch_add(1, Ordering::Relaxed);
                    answered += 1;
                }
            }
            if !open.is_empty() {
                break;
            }
        }
        // The first GOAWAY counts all streams that can be, the last one those that were taken.
        let counted = |stream: &u32| farewells > 1 && *stream <= taken;
        let silent = farewells == 0 && answered > 0;
        if silent && !open.is_empty() || open.keys().any(counted) {
            let tell = format!("{open:?} open, {farewells} GOAWAY, streams up to {taken} taken");
            books.broken_promises.lock().expect("no panic").push(tell);
        }
    }
}

/// Fifty connections that have carried a request each.
fn kept(gateway: &Gateway) -> Vec<Http1> {
    let mut kept: Vec<_> = (0..50).map(|_| Http1::connect(gateway.address)).collect();
    for client in &mut kept {
        assert_eq!(client.get("/").status, 200);
    }
    kept
}

/// What is on its way on a kept connection when it begins to close is answered. The gateway stands still
/// while it is sent, and when it is told to go.
fn what_was_sent_before_it_closes_is_answered(engine: Engine) {
    let app = HttpOracle::start();
    let mut gateway = wide(engine, &app).start();
    let mut kept = kept(&gateway);
    let mut two = Raw::connect(gateway.address);
    two.ask(1, "/", &[]).expect("writes");
    while !two.read().expect("an answer").ends_stream() {}
    gateway.paused(|| {
        for client in &mut kept {
            client.ask("/", "");
        }
        two.ask(3, "/", &[]).expect("writes");
        gateway.signal(rustix::process::Signal::TERM);
    });
    for client in &mut kept {
        assert_eq!(client.end(), End::Answered);
        assert!(client.closed());
    }
    let (mut last, mut answered) = (0, false);
    while let Ok(frame) = two.read() {
        let _ = two.pong(&frame); // it may have been closed already
        answered |= frame.stream == 3 && frame.ends_stream();
        if frame.kind == frames::GOAWAY {
            last = frame.number(0);
        }
    }
    assert!(answered && last >= 3, "answered: {answered}, streams up to {last} taken");
    assert_eq!(app.count(), 102, "each of them once, twice");
    assert_eq!(gateway.wait_exit(SOON).code(), Some(0), "a drain ends with exit 0");
}

/// While it announces, whoever has a connection is served as before, and so is who comes.
fn kept_alive_connections_are_answered_while_it_announces(engine: Engine) {
    let app = HttpOracle::start();
    let mut gateway = wide(engine, &app).set("drain-delay", "60s").set("grace", "5m").start();
    let mut kept = Http1::connect(gateway.address);
    assert_eq!(kept.get("/").status, 200);
    let draining = gateway.drain();
    for answered in 0..20 {
        assert_eq!(gateway.status().phase, "announcing");
        assert_eq!(kept.get("/").status, 200, "after {answered}");
        assert_eq!(Http1::connect(gateway.address).get("/").status, 200, "a new one");
    }
    drop(kept);
    drop(app); // without an application there is nothing to announce
    assert_eq!(draining.report().cut, 0);
    gateway.terminate(slack(Duration::from_secs(2)));
}

/// An answer given while it closes says so, and the connection is closed after it.
fn the_last_answer_says_close(engine: Engine) {
    let app = HttpOracle::start();
    let mut gateway = wide(engine, &app).set("workers", 1).start();
    let mut client = Http1::asking(gateway.address, "/held");
    until("it is in", SOON, || app.in_progress() == 1);
    let mut idle = Http1::connect(gateway.address);
    assert_eq!(idle.get("/").status, 200);
    let draining = gateway.drain();
    // Connections hear of it a moment after it is in the status, in the order in which they came.
    assert!(idle.closed());
    assert_eq!(gateway.status().phase, "closing");
    app.release(1);
    let answer = client.answer().expect("an answer");
    assert_eq!((answer.status, answer.header("connection")), (200, Some("close")), "{answer:?}");
    assert!(client.closed());
    let report = draining.report();
    assert_eq!((report.finished, report.cut), (1, 0), "{report:?}");
    gateway.terminate(slack(Duration::from_secs(2)));
}

/// GOAWAY that names every stream, then one that names the last; the open stream is finished.
fn http2_is_told_to_go_away(engine: Engine) {
    let app = HttpOracle::start();
    let mut gateway = wide(engine, &app).start();
    let mut raw = Raw::connect(gateway.address);
    let head = frames::request("GET", "/held", &[]);
    let flags = frames::END_HEADERS | frames::END_STREAM;
    raw.send(&frames::frame(frames::HEADERS, flags, 1, &head)).expect("writes");
    until("it is in", SOON, || app.in_progress() == 1);
    let draining = gateway.drain();
    let (mut last, mut answered) = (Vec::new(), false);
    // To the end of the connection, which the gateway closes.
    while let Ok(frame) = raw.read() {
        match frame.kind {
            frames::GOAWAY => {
                let number = |at: usize| {
                    u32::from_be_bytes(frame.payload[at..at + 4].try_into().expect("4 bytes"))
                };
                assert_eq!(number(4), 0, "NO_ERROR");
                last.push(number(0));
                if last.len() == 1 {
                    app.release(1);
                }
            }
            frames::PING if frame.flags == 0 => {
                raw.send(&frames::frame(frames::PING, frames::ACK, 0, &frame.payload))
                    .expect("writes");
            }
            _ if frame.stream == 1 && frame.flags & frames::END_STREAM != 0 => answered = true,
            frames::RST_STREAM => panic!("the stream was cut: {frame:?}"),
            _ => {}
        }
    }
    assert!(answered, "the stream was finished");
    assert_eq!(last, [0x7fff_ffff, 1], "at first every stream, then the last one");
    let report = draining.report();
    assert_eq!((report.finished, report.cut), (1, 0), "{report:?}");
    gateway.terminate(slack(Duration::from_secs(2)));
}

/// Those who wait are let in one after the other, in order.
fn the_queue_is_served_while_it_closes(engine: Engine) {
    let app = HttpOracle::start();
    let mut gateway = wide(engine, &app).set("limit", 1).start();
    let mut clients = vec![Http1::asking(gateway.address, "/held")];
    until("the slot is taken", SOON, || app.count() == 1);
    for count in 1..=10 {
        clients.push(Http1::asking(gateway.address, "/held"));
        queued(&gateway, count);
    }
    let draining = gateway.drain();
    until("it closes", SOON, || gateway.status().phase == "closing");
    app.release(11);
    for client in &mut clients {
        assert_eq!(client.end(), End::Answered);
    }
    let order: Vec<u64> = clients.iter().map(|client| client.id).collect();
    assert_eq!(app.ids(), order);
    let report = draining.report();
    assert_eq!((report.in_flight_at_start, report.queued_at_start), (1, 10), "{report:?}");
    assert_eq!((report.finished, report.cut), (11, 0), "{report:?}");
    gateway.terminate(slack(Duration::from_secs(2)));
}

/// P5: a tunnel goes on until its ends want to end.
fn an_open_tunnel_is_waited_for(engine: Engine) {
    let app = HttpOracle::start();
    let mut gateway = wide(engine, &app).start();
    let mut tunnel = Http1::connect(gateway.address);
    tunnel.ask("/tunnel", "Connection: Upgrade\r\nUpgrade: echo\r\n");
    assert_eq!(tunnel.answer().expect("an answer").status, 101);
    let draining = gateway.drain();
    until("it closes", SOON, || gateway.status().phase == "closing");
    for _ in 0..20 {
        tunnel.send("hello");
        assert_eq!(tunnel.raw(5).expect("an echo"), b"hello");
    }
    drop(tunnel);
    let report = draining.report();
    assert_eq!((report.finished, report.cut), (1, 0), "{report:?}");
    gateway.terminate(slack(Duration::from_millis(500)));
}

/// A request that begins on a kept connection while it closes: answered, refused as `draining`, or not
/// read at all; never half.
fn a_request_on_a_kept_connection_is_refused_politely_or_served(engine: Engine) {
    let app = HttpOracle::start();
    let mut gateway = wide(engine, &app).start();
    let mut busy = Http1::asking(gateway.address, "/held");
    until("it is in", SOON, || app.in_progress() == 1);
    let mut kept: Vec<_> = (0..20).map(|_| Http1::connect(gateway.address)).collect();
    for client in &mut kept {
        assert_eq!(client.get("/").status, 200);
    }
    let draining = gateway.drain();
    for client in &mut kept {
        client.ask("/work?ms=0", "");
    }
    let mut answered = (21, 0);
    for client in &mut kept {
        match client.answer() {
            Ok(answer) if answer.status == 503 => {
                assert_refusal(&answer, 503, "destination_unavailable", "draining");
                assert_eq!(answer.header("connection"), Some("close"), "{answer:?}");
                answered.1 += 1;
            }
            Ok(answer) => {
                assert_eq!(answer.status, 200, "{answer:?}");
                answered.0 += 1;
            }
            Err(_) => assert!(!app.ids().contains(&client.id), "it reached the application"),
        }
    }
    app.release(1);
    assert_eq!(busy.end(), End::Answered);
    assert_eq!(draining.report().cut, 0);
    assert_eq!(read_by(&gateway), answered, "what was read was answered");
    gateway.terminate(slack(Duration::from_secs(2)));
}

/// Connections that are only kept are closed; nobody waits for them.
fn idle_kept_connections_do_not_hold_it_up(engine: Engine) {
    let app = HttpOracle::start();
    let mut gateway = wide(engine, &app).start();
    let kept = kept(&gateway);
    let mut two = Raw::connect(gateway.address);
    until("all are there", SOON, || gateway.status().connections == 51);
    let polite = std::thread::spawn(move || {
        while let Ok(frame) = two.read() {
            if frame.kind == frames::PING && frame.flags & frames::ACK == 0 {
                let _ = two.send(&frames::frame(frames::PING, frames::ACK, 0, &frame.payload));
            }
        }
    });
    let took = gateway.terminate(SOON);
    // There is no work, and no announcement. Those that do not close their ends are waited for half of that.
    assert!(took < slack(Duration::from_secs(1)), "{took:?}");
    polite.join().expect("no panic");
    drop(kept);
}

/// A connection on which nothing was ever said may be about to say something, but not for longer than
/// `header-timeout`.
fn a_silent_connection_does_not_hold_it_up_for_long(engine: Engine) {
    let app = HttpOracle::start();
    let mut gateway = wide(engine, &app).set("header-timeout", "1s").start();
    let silent = Http1::connect(gateway.address);
    until("it is there", SOON, || gateway.port().accepted == 1);
    let took = gateway.terminate(SOON);
    assert!(took < slack(Duration::from_secs(1)), "{took:?}");
    drop(silent);
}
