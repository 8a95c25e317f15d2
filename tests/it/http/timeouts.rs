//! A5 and T02 per request: what does not come, and what does not move, holds nothing for ever; on HTTP/2 it
//! is a head or a stream, and the connection only where nothing else is on it.

use std::io::ErrorKind;
use std::time::{Duration, Instant};

use crate::support::gateway::{Gateway, Setup};
use crate::support::ledger::End;
use crate::support::{Engine, SOON, Stopwatch, engines, sockets, until};

use super::client::Http1;
use super::frames::{self, Raw};
use super::http2::{self, Http2};
use super::oracle::HttpOracle;
use super::{assert_settled, gate, queued};

engines!(beside:
    an_http2_greeting_comes_in_time,
    an_http2_head_comes_to_its_end_in_time,
    a_body_and_an_idle_connection_have_no_head_to_come,
    an_idle_http2_connection_is_told_to_go_away,
    an_exchange_in_which_nothing_moves_ends,
    an_answer_in_which_nothing_moves_is_broken_off,
    a_stream_in_which_nothing_moves_leaves_the_others_alone,
    what_moves_goes_on,
    who_waits_in_the_queue_is_not_idle,
    idle_connections_to_the_application_are_closed,
);

const TIMEOUT: Duration = Duration::from_millis(400);

/// ENHANCE_YOUR_CALM.
const CALM: u32 = 11;

fn hurried(engine: Engine, app: &HttpOracle, key: &str) -> Setup {
    gate(engine, app.address).set("limit", 4).set(key, "400ms").set("abandon-timeout", "500ms")
}

/// It has happened; not before its time.
#[track_caller]
fn assert_not_early(start: Instant) {
    let took = start.elapsed();
    assert!(took >= TIMEOUT, "too early: {took:?}");
}

/// The preface alone, or half a frame after it: it is sent away.
fn an_http2_greeting_comes_in_time(engine: Engine) {
    let app = HttpOracle::start();
    let gateway = hurried(engine, &app, "header-timeout").start();
    for begins in [&b""[..], b"\0\0\x06\x04\0", b"\0\0\x06\x04\0\0\0\0\0\0\x03"] {
        let start = Instant::now();
        let mut raw = Raw(std::net::TcpStream::connect(gateway.address).expect("it listens"));
        raw.send(&[b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", begins].concat()).expect("writes");
        assert_eq!(raw.goaway(SOON).expect("an end"), Some(CALM), "{begins:?}");
        assert_not_early(start);
    }
    assert_settled(&gateway, app.address.port());
}

/// Fields that are to go on in another frame, which does not come, or a byte at a time. Streams before it have
/// been served, and the client is told which was the last.
fn an_http2_head_comes_to_its_end_in_time(engine: Engine) {
    let app = HttpOracle::start();
    let gateway = hurried(engine, &app, "header-timeout").start();
    let head = frames::request("GET", "/", &[]);
    let flags = frames::END_HEADERS | frames::END_STREAM;
    for dribbles in [false, true] {
        let mut raw = Raw::connect(gateway.address);
        raw.send(&frames::frame(frames::HEADERS, flags, 1, &head)).expect("writes");
        while raw.read().expect("an answer").stream != 1 {}
        std::thread::sleep(TIMEOUT); // the greeting's clock has long stopped
        let (start, patience) = (Instant::now(), Stopwatch::start());
        raw.send(&frames::frame(frames::HEADERS, frames::END_STREAM, 3, &head)).expect("writes");
        let fields = frames::block(&[("x-slow", "y".repeat(100).as_str())]);
        let mut more = frames::frame(frames::CONTINUATION, 0, 3, &fields.repeat(9)).into_iter();
        raw.0.set_read_timeout(Some(Duration::from_millis(20))).expect("not zero");
        let goaway = loop {
            match raw.read() {
                Ok(frame) if frame.kind == frames::GOAWAY => break frame,
                Ok(_) => {}
                Err(error)
                    if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) =>
                {
                    assert!(!patience.is_past(SOON), "it is still open");
                    if let Some(byte) = more.next().filter(|_| dribbles) {
                        let _ = raw.send(&[byte]);
                    }
                }
                Err(error) => panic!("ended without a GOAWAY: {error}"),
            }
        };
        assert_not_early(start);
        assert_eq!(goaway.payload, [0, 0, 0, 1, 0, 0, 0, 11], "the first was served");
    }
    assert_eq!(app.count(), 2);
    assert_settled(&gateway, app.address.port());
}

/// A piece of a body may take as long as the application waits for it, and between streams there is no head.
fn a_body_and_an_idle_connection_have_no_head_to_come(engine: Engine) {
    let app = HttpOracle::start();
    let gateway = hurried(engine, &app, "header-timeout").start();
    let mut raw = Raw::connect(gateway.address);
    let head = frames::request("POST", "/echo", &[]);
    raw.send(&frames::frame(frames::HEADERS, frames::END_HEADERS, 1, &head)).expect("writes");
    let data = frames::frame(frames::DATA, frames::END_STREAM, 1, b"piece");
    raw.send(&data[..11]).expect("writes");
    std::thread::sleep(3 * TIMEOUT); // a measurement: nothing is to happen meanwhile
    raw.send(&data[11..]).expect("writes");
    let mut body = Vec::new();
    loop {
        let frame = raw.read().expect("an answer");
        assert_ne!(frame.kind, frames::GOAWAY);
        if frame.kind == frames::DATA {
            body.extend(frame.payload);
        }
        if frame.stream == 1 && frame.flags & frames::END_STREAM != 0 {
            break;
        }
    }
    assert_eq!(body, b"piece");
    std::thread::sleep(3 * TIMEOUT); // the same
    let head = frames::request("GET", "/", &[]);
    let flags = frames::END_HEADERS | frames::END_STREAM;
    raw.send(&frames::frame(frames::HEADERS, flags, 3, &head)).expect("writes");
    while raw.read().expect("an answer").stream != 3 {}
    drop(raw);
    assert_settled(&gateway, app.address.port());
}

/// NO_ERROR, and the end; not while a stream is open, however long, if something moves.
fn an_idle_http2_connection_is_told_to_go_away(engine: Engine) {
    let app = HttpOracle::start();
    let gateway = hurried(engine, &app, "idle-timeout").start();
    let mut raw = Raw::connect(gateway.address);
    let head = frames::request("GET", "/", &[]);
    let flags = frames::END_HEADERS | frames::END_STREAM;
    let start = Instant::now();
    raw.send(&frames::frame(frames::HEADERS, flags, 1, &head)).expect("writes");
    assert_eq!(raw.goaway(SOON).expect("an end"), Some(0));
    assert_not_early(start);
    // It need not answer the PING that comes with it.
    while raw.read().is_ok() {}
    assert_eq!((app.count(), gateway.port().outcome("served")), (1, 1));
    assert_settled(&gateway, app.address.port());
}

fn over(gateway: &Gateway, count: u64) {
    until("the slots are free", SOON, || gateway.port().active == 0);
    assert_eq!(gateway.port().outcome("idle_timeout"), count, "{:?}", gateway.port());
}

/// An application that does not answer: 504, over HTTP/1 and HTTP/2, and UNAVAILABLE to gRPC. The application
/// is told, and its slot is free when it has ended, or after `abandon-timeout`.
fn an_exchange_in_which_nothing_moves_ends(engine: Engine) {
    let app = HttpOracle::start();
    let gateway = hurried(engine, &app, "idle-timeout").start();
    let mut client = Http1::connect(gateway.address);
    for (method, more) in [("GET", ""), ("POST", "Content-Length: 9\r\n")] {
        let start = Instant::now();
        client.begin(method, "/never", more);
        let answer = client.answer().expect("an answer");
        assert_eq!(answer.status, 504, "{answer:?}");
        let said = answer.header("proxy-status");
        assert_eq!(said, Some("tidegate; error=http_response_timeout"), "{answer:?}");
        assert_not_early(start);
        client = Http1::connect(gateway.address);
    }
    over(&gateway, 2);
    drop(client);
    http2::block_on(async {
        let mut client = Http2::connect(gateway.address).await;
        let grpc = [("content-type", "application/grpc"), ("te", "trailers")];
        for (headers, status, said) in [(&[][..], 504, None), (&grpc[..], 200, Some("14"))] {
            let start = Instant::now();
            let opened = client.open("POST", "/never", headers, false).await;
            let (response, _body) = opened.expect("a stream");
            let answer = http2::answer(response).await.expect("an answer");
            assert_eq!((answer.status, answer.header("grpc-status")), (status, said));
            assert_not_early(start);
        }
    });
    over(&gateway, 4);
    assert_settled(&gateway, app.address.port());
}

/// What has begun can only be broken off: it must not look as if it were whole, however it is told where it
/// ends.
fn an_answer_in_which_nothing_moves_is_broken_off(engine: Engine) {
    let app = HttpOracle::start();
    let gateway = hurried(engine, &app, "idle-timeout").start();
    for version in ["1.0", "1.1"] {
        let start = Instant::now();
        let mut client = Http1::connect(gateway.address);
        client.send(format!("GET /held-stream HTTP/{version}\r\nHost: app\r\n\r\n"));
        let answer = client.answer();
        assert!(answer.is_err(), "{version}: {answer:?}");
        assert_not_early(start);
    }
    over(&gateway, 2);
    assert_settled(&gateway, app.address.port());
}

/// One stream is silent, another is not: only the silent one is reset.
fn a_stream_in_which_nothing_moves_leaves_the_others_alone(engine: Engine) {
    let app = HttpOracle::start();
    let gateway = hurried(engine, &app, "idle-timeout").start();
    http2::block_on(async {
        let mut client = Http2::connect(gateway.address).await;
        let (silent, _) = client.open("GET", "/held-stream", &[], true).await.expect("a stream");
        let (_, silent) = http2::head(silent).await.expect("a head");
        let mut silent = silent.expect("a body");
        let cut = tokio::task::spawn_local(async move {
            while let Some(part) = silent.data().await {
                if let Err(error) = part {
                    return error.reason();
                }
            }
            panic!("it looks as if it were whole")
        });
        while !cut.is_finished() {
            assert_eq!(client.get("/work?ms=5").await.status, 200, "the others go on");
        }
        assert_eq!(cut.await.expect("no panic"), Some(h2::Reason::CANCEL));
        assert_eq!(client.get("/").await.status, 200);
    });
    over(&gateway, 1);
    assert_settled(&gateway, app.address.port());
}

/// A conversation in which each side speaks in time may last for as long as it likes.
fn what_moves_goes_on(engine: Engine) {
    let app = HttpOracle::start();
    let gateway = hurried(engine, &app, "idle-timeout").start();
    http2::block_on(async {
        let mut client = Http2::connect(gateway.address).await;
        let (response, mut send) =
            client.open("POST", "/echo", &[], false).await.expect("a stream");
        let (_, body) = http2::head(response).await.expect("a head");
        let (mut body, begun) = (body.expect("a body"), Instant::now());
        let mut last = begun;
        while begun.elapsed() < 4 * TIMEOUT {
            let sent = send.send_data("x".into(), false);
            let echo = match sent {
                Ok(()) => body.data().await.is_some_and(|part| part.is_ok()),
                Err(_) => false,
            };
            // Unless the machine stood still for so long.
            let gap = last.elapsed();
            assert!(echo || gap >= TIMEOUT / 2, "ended after {:?}, {gap:?}", begun.elapsed());
            if !echo {
                return;
            }
            last = Instant::now();
            tokio::time::sleep(TIMEOUT / 8).await; // its pace
        }
    });
    assert_settled(&gateway, app.address.port());
}

/// The queue has a timeout of its own; the clock begins with the slot.
fn who_waits_in_the_queue_is_not_idle(engine: Engine) {
    let app = HttpOracle::start();
    let setup = gate(engine, app.address).set("limit", 1).set("queue-timeout", "60s");
    let gateway = setup.start();
    let mut first = Http1::asking(gateway.address, "/held");
    until("it is in", SOON, || app.in_progress() == 1);
    gateway.set("idle-timeout", "400ms"); // of those who come from now on
    let mut waits = Http1::asking(gateway.address, "/work?ms=0");
    queued(&gateway, 1);
    std::thread::sleep(2 * TIMEOUT); // a measurement: nothing is to happen meanwhile
    assert_eq!(gateway.port().queued, 1);
    app.release(1);
    assert_eq!((first.end(), waits.end()), (End::Answered, End::Answered));
    drop((first, waits));
    assert_settled(&gateway, app.address.port());
}

/// `app-keepalive`, for connections that carry one exchange at a time and for those that carry many.
fn idle_connections_to_the_application_are_closed(engine: Engine) {
    for speaks in ["never", "always"] {
        let app = HttpOracle::start();
        let setup = gate(engine, app.address).set("limit", 2).set("app-keepalive", "400ms");
        let gateway = setup.set("app-http2", speaks).start();
        let mut client = Http1::connect(gateway.address);
        for round in 1..=2 {
            let start = Instant::now();
            assert_eq!(client.get("/").status, 200);
            assert_eq!(app.connections(), round, "{speaks}");
            let kept = || sockets::open_at_either(app.address.port()).len();
            until("it is closed", SOON, || kept() == 0);
            assert_not_early(start);
        }
        drop(client);
        assert_settled(&gateway, app.address.port());
    }
}
