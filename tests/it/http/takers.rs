//! P1, P5, P6, P10: streams. A client that does not take one answer costs the others nothing; what was handed
//! out is written before the connection ends; an application's streams are counted until they end, and its
//! slots held until it has ended them, or for as long as that can be known.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::time::Duration;

use crate::support::ledger::End;
use crate::support::{Engine, SOON, Stopwatch, engines, slack, sockets, until};

use super::client::Http1;
use super::frames::{self, Raw};
use super::http2::{self, Http2};
use super::oracle::HttpOracle;
use super::{assert_settled, gate, queued};

engines!(
    beside:
    the_tail_of_an_answer_outlives_the_farewell,
    half_a_head_is_heard_out_when_it_closes,
    a_stream_that_is_not_taken_costs_the_others_nothing,
    a_stream_that_is_taken_slowly_goes_on,
    a_stream_whose_upload_is_open_is_reset_on_both_sides,
    a_conversation_that_is_stuck_both_ways_ends_with_its_client,
    small_answers_that_nobody_takes_are_given_up,
    an_application_full_of_streams_gets_another_connection,
    streams_that_were_cancelled_leave_no_connection,
    a_conversation_may_pause,
    an_upload_that_breaks_off_holds_its_slot_a_little,
    whoever_speaks_late_leaves_no_connection_behind,
    an_http2_application_that_reads_nothing_is_let_go,
    deadlines_are_only_observed_without_a_limit,
);

const GET: u8 = frames::END_HEADERS | frames::END_STREAM;

/// A client of HTTP/2 that takes so much of each answer before it grants more.
fn taking(gateway: std::net::SocketAddr, window: u32) -> Raw {
    let mut raw = Raw::connect(gateway);
    let setting = [&[0, 4][..], &window.to_be_bytes()].concat();
    raw.send(&frames::frame(frames::SETTINGS, 0, 0, &setting)).expect("writes");
    raw
}

fn get(raw: &mut Raw, stream: u32, path: &str) {
    let head = frames::request("GET", path, &[]);
    raw.send(&frames::frame(frames::HEADERS, GET, stream, &head)).expect("writes");
}

fn grant(raw: &mut Raw, stream: u32, bytes: u32) {
    let update = frames::frame(frames::WINDOW_UPDATE, 0, stream, &bytes.to_be_bytes());
    raw.send(&update).expect("writes");
}

/// P5, P6: the last bytes of an answer are with the gateway when the drain has long told everybody to go, and
/// the client takes them a little at a time.
fn the_tail_of_an_answer_outlives_the_farewell(engine: Engine) {
    const LENGTH: usize = 48 << 10;
    let app = HttpOracle::start();
    let mut gateway = gate(engine, app.address)
        .set("limit", 2)
        .set("drain-timeout", "20s")
        .set("grace", "40s")
        .start();
    let mut raw = taking(gateway.address, 16 << 10);
    get(&mut raw, 1, &format!("/held-down?n={LENGTH}"));
    until("it is in", SOON, || app.count() == 1);
    let draining = gateway.drain();
    until("it closes", SOON, || gateway.status().phase == "closing");
    std::thread::sleep(Duration::from_millis(1500)); // longer than an idle connection would be kept
    app.release(1);
    let (mut taken, mut granted, mut ended) = (0, 16 << 10, false);
    while !ended {
        let frame = raw.read().unwrap_or_else(|error| panic!("after {taken} bytes: {error}"));
        if frame.kind == frames::DATA {
            taken += frame.payload.len();
            ended = frame.flags & frames::END_STREAM != 0;
            if taken == granted {
                std::thread::sleep(Duration::from_millis(20)); // it takes its time
                grant(&mut raw, 1, 1000);
                granted += 1000;
            }
        }
    }
    assert_eq!(taken, LENGTH);
    drop(raw);
    let report = draining.report();
    assert_eq!((report.finished, report.cut), (1, 0), "{report:?}");
    gateway.terminate(slack(Duration::from_secs(2)));
}

/// P6: of the next request on a kept connection a part has been read when the drain closes.
fn half_a_head_is_heard_out_when_it_closes(engine: Engine) {
    let app = HttpOracle::start();
    let mut gateway = gate(engine, app.address).set("limit", 2).set("drain-timeout", "20s").start();
    let mut client = Http1::connect(gateway.address);
    assert_eq!(client.get("/").status, 200);
    let before = gateway.metric("tidegate_bytes_total", "in");
    client.send("GET / HTTP/1.1\r\nHo");
    until("it is read", SOON, || gateway.metric("tidegate_bytes_total", "in") > before);
    let draining = gateway.drain();
    until("it closes", SOON, || gateway.status().phase == "closing");
    until("nobody listens", SOON, || TcpStream::connect(gateway.address).is_err());
    client.send("st: app\r\n\r\n");
    let answer = client.answer().expect("what was begun is answered");
    assert_eq!((answer.status, answer.header("connection")), (200, Some("close")), "{answer:?}");
    drop(client);
    assert_eq!(draining.report().cut, 0);
    gateway.terminate(slack(Duration::from_secs(2)));
}

/// P5: many share a connection, as behind an ingress; who does not take its answer loses its stream only.
fn a_stream_that_is_not_taken_costs_the_others_nothing(engine: Engine) {
    let app = HttpOracle::start();
    let gateway = gate(engine, app.address)
        .set("limit", 4)
        .set("write-stall-timeout", "1s")
        .set("abandon-timeout", "1s")
        .start();
    let mut raw = taking(gateway.address, 15 << 10);
    get(&mut raw, 1, "/down?n=1000000");
    get(&mut raw, 3, "/stream?n=15&ms=200"); // 3 s, and within its window
    let (mut reset, mut whole) = (false, false);
    while !(reset && whole) {
        let frame = raw.read().expect("the connection goes on");
        assert_ne!(frame.kind, frames::GOAWAY, "{frame:?}");
        match (frame.kind, frame.stream) {
            (frames::RST_STREAM, 1) => reset = true,
            (frames::RST_STREAM, 3) => panic!("the other one was reset: {frame:?}"),
            (frames::DATA, 3) => whole |= frame.flags & frames::END_STREAM != 0,
            _ => {}
        }
    }
    get(&mut raw, 5, "/");
    while {
        let frame = raw.read().expect("the connection goes on");
        (frame.stream, frame.flags & frames::END_STREAM) != (5, frames::END_STREAM)
    } {}
    until("it is counted", SOON, || gateway.port().outcome("client_stalled") == 1);
    assert_eq!(gateway.port().outcome("served"), 2);
    drop(raw);
    assert_settled(&gateway, app.address.port());
}

/// P5: a client that takes a few bytes now and then is slow, and not stuck: what counts are bytes, not pieces.
fn a_stream_that_is_taken_slowly_goes_on(engine: Engine) {
    const LENGTH: usize = 8_000;
    let app = HttpOracle::start();
    let gateway =
        gate(engine, app.address).set("limit", 1).set("write-stall-timeout", "3s").start();
    let mut raw = taking(gateway.address, 200);
    get(&mut raw, 1, &format!("/down?n={LENGTH}"));
    let (mut taken, mut ended) = (0, false);
    while !ended {
        let frame = raw.read().unwrap_or_else(|error| panic!("after {taken} bytes: {error}"));
        assert!(frame.kind != frames::RST_STREAM, "after {taken} bytes: {frame:?}");
        if frame.kind == frames::DATA {
            taken += frame.payload.len();
            ended = frame.flags & frames::END_STREAM != 0;
            std::thread::sleep(Duration::from_millis(100)); // its pace: 4 s in all
            grant(&mut raw, 1, 200);
        }
    }
    assert_eq!(taken, LENGTH);
    drop(raw);
    assert_settled(&gateway, app.address.port());
}

/// P1: a stream is reset because its client does not take the answer, with more of the request to come: the
/// client and the application both hear of it, and only then the slot is free.
fn a_stream_whose_upload_is_open_is_reset_on_both_sides(engine: Engine) {
    let app = HttpOracle::start();
    let gateway = gate(engine, app.address)
        .set("limit", 1)
        .set("queue-length", 20)
        .set("queue-timeout", "60s")
        .set("app-http2", "always")
        .set("write-stall-timeout", "1s")
        .start();
    for count in 1..=2 {
        let mut raw = taking(gateway.address, 1000);
        let head = frames::request("POST", "/down?n=1000000", &[]);
        raw.send(&frames::frame(frames::HEADERS, frames::END_HEADERS, 1, &head)).expect("writes");
        until("it is in", SOON, || app.count() == 2 * count - 1);
        let mut next = Http1::asking(gateway.address, "/work?ms=0");
        loop {
            let frame = raw.read().expect("the connection goes on");
            if frame.kind == frames::RST_STREAM {
                break assert_eq!(frame.stream, 1);
            }
        }
        assert_eq!(next.end(), End::Answered);
        assert!(app.seen()[2 * count - 2].end.is_some(), "the application has heard of it");
    }
    assert_eq!(app.peak(), 1);
    assert_eq!(gateway.port().outcome("client_stalled"), 2);
}

/// P1, P11: an application that does not read because nobody takes what it says: when its client leaves, what
/// it says is read, so that it reads, so that its stream can be reset.
fn a_conversation_that_is_stuck_both_ways_ends_with_its_client(engine: Engine) {
    let app = HttpOracle::start();
    let gateway = gate(engine, app.address).set("limit", 1).set("app-http2", "always").start();
    http2::block_on(async {
        let mut client = Http2::connect(gateway.address).await;
        for _ in 0..2 {
            let opened = client.open("POST", "/echo", &[], false).await;
            let (response, mut send) = opened.expect("a stream");
            let much = vec![b'x'; 16 << 20];
            let upload = http2::upload(&mut send, &much);
            let stuck = tokio::time::timeout(Duration::from_secs(1), upload).await;
            assert!(stuck.is_err(), "nobody takes so much: {stuck:?}");
            send.send_reset(h2::Reason::CANCEL);
            drop(response);
            http2::until("the slot is free", SOON, || gateway.port().active == 0).await;
        }
    });
    assert_eq!((app.peak(), app.connections()), (1, 1));
    until("the application has heard of it", SOON, || {
        app.seen().iter().all(|seen| seen.end.is_some())
    });
}

/// P10, A6: an answer that has been read whole, and that nobody takes, is not kept for ever: not where it waits
/// for a window of nothing, nor where a byte of it was taken.
fn small_answers_that_nobody_takes_are_given_up(engine: Engine) {
    let app = HttpOracle::start();
    let gateway =
        gate(engine, app.address).set("limit", 200).set("write-stall-timeout", "1s").start();
    let mut none = taking(gateway.address, 0);
    let mut one = taking(gateway.address, 1);
    for stream in (1..200).step_by(2) {
        get(&mut none, stream, "/down?n=4000");
        get(&mut one, stream, "/down?n=4000");
    }
    let start = Stopwatch::start();
    let mut reset = 0;
    while reset < 100 {
        let frame = none.read().expect("each stream is reset, the connection goes on");
        assert_ne!(frame.kind, frames::DATA, "{frame:?}");
        reset += usize::from(frame.kind == frames::RST_STREAM);
    }
    // What h2 has of a stream can no longer be reset.
    while one.read().is_ok() {}
    assert!(start.own() < slack(Duration::from_secs(3)), "{start:?}");
    until("one connection is left", SOON, || gateway.status().connections == 1);
    drop((none, one));
    assert_settled(&gateway, app.address.port());
}

/// P5, P13: answers that last for long do not keep others waiting for room on their connection.
fn an_application_full_of_streams_gets_another_connection(engine: Engine) {
    let app = HttpOracle::start();
    let gateway = gate(engine, app.address).set("limit", 200).set("app-http2", "always").start();
    http2::block_on(async {
        let mut clients =
            [Http2::connect(gateway.address).await, Http2::connect(gateway.address).await];
        let mut open = Vec::new();
        for number in 0..101 {
            let client = &mut clients[number / 60];
            let opened = client.open("GET", "/held-stream", &[], true).await;
            let head = http2::head(opened.expect("a stream").0);
            let head = tokio::time::timeout(SOON, head).await;
            open.push(head.unwrap_or_else(|_| panic!("no head, number {number}")).expect("a head"));
        }
        assert_eq!(app.connections(), 2, "the application takes 100 streams on one");
        app.release(101);
        for (mut answer, body) in open {
            http2::rest(&mut answer, body.expect("more")).await.expect("whole");
            assert_eq!(answer.body, b"first last");
        }
    });
    assert_settled_but(&gateway, 2);
}

/// P11: requests that were broken off before their answers came give their places back.
fn streams_that_were_cancelled_leave_no_connection(engine: Engine) {
    let app = HttpOracle::start();
    let gateway = gate(engine, app.address)
        .set("limit", 200)
        .set("app-http2", "always")
        .set("abandon-timeout", "100ms")
        .start();
    http2::block_on(async {
        let mut client = Http2::connect(gateway.address).await;
        for round in 1..=3 {
            let mut begun = Vec::new();
            for end in [false, true] {
                for _ in 0..25 {
                    begun.push(client.open("POST", "/never", &[], end).await.expect("a stream"));
                }
            }
            http2::until("they are in", SOON, || app.count() == 50 * round).await;
            for (response, mut send) in begun {
                send.send_reset(h2::Reason::CANCEL);
                drop(response);
            }
            http2::until("their slots are free", SOON, || gateway.port().active == 0).await;
        }
    });
    assert_eq!(app.connections(), 1, "150 streams, never more than 50 at once");
    assert_settled_but(&gateway, 1);
}

/// P5: a conversation in both directions, and a call of gRPC before its answer begins, may be silent for
/// longer than a body may keep the application waiting.
fn a_conversation_may_pause(engine: Engine) {
    for app_http2 in ["auto", "never"] {
        let app = HttpOracle::start();
        let gateway = gate(engine, app.address)
            .set("limit", 2)
            .set("app-http2", app_http2)
            .set("body-timeout", "2s")
            .start();
        http2::block_on(async {
            let mut client = Http2::connect(gateway.address).await;
            let grpc = [("content-type", "application/grpc"), ("te", "trailers")];
            let pause = || tokio::time::sleep(Duration::from_millis(600)); // five times: longer in all
            for (path, headers, echoes) in [("/echo", &[][..], true), ("/up", &grpc[..], false)] {
                let opened = client.open("POST", path, headers, false).await;
                let (response, mut send) = opened.expect("a stream");
                let mut response = std::pin::pin!(http2::head(response));
                send.send_data("one".into(), false).expect("within the window");
                let early =
                    if echoes { Some(response.as_mut().await.expect("a head")) } else { None };
                for number in 1..=5 {
                    pause().await;
                    send.send_data("more".into(), number == 5).expect("within the window");
                }
                let (mut answer, body) = match early {
                    Some(early) => early,
                    None => response.await.expect("a head"),
                };
                http2::rest(&mut answer, body.expect("more")).await.expect("to its end");
                let expected = if echoes { "onemoremoremoremoremore" } else { "23 damaged" };
                assert_eq!(answer.text(), expected, "{path}, app-http2 {app_http2}: {answer:?}");
            }
        });
        drop(gateway);
    }
}

/// P1: when a client breaks its upload off, we reset the stream; the application works on for a while, and
/// nobody else is let in meanwhile. It is the client's fault, and it is told so.
fn an_upload_that_breaks_off_holds_its_slot_a_little(engine: Engine) {
    let app = HttpOracle::start();
    let gateway = gate(engine, app.address)
        .set("limit", 1)
        .set("queue-length", 20)
        .set("queue-timeout", "60s")
        .set("app-http2", "always")
        .start();
    for count in 1..=4 {
        let mut client = Http1::connect(gateway.address);
        client.begin("POST", "/work?ms=50", "Content-Length: 100\r\n");
        client.send("x");
        until("it is in", SOON, || app.count() == 2 * count - 1);
        let mut next = Http1::asking(gateway.address, "/work?ms=0");
        queued(&gateway, 1);
        client.stream.shutdown(Shutdown::Write).expect("half");
        if let Ok(answer) = client.answer() {
            assert_eq!(answer.status, 400, "{answer:?}");
        }
        assert_eq!(next.end(), End::Answered);
    }
    until("the slot is free", SOON, || gateway.port().active == 0);
    assert_eq!(app.peak(), 1, "{:?}", app.seen());
    assert_eq!(gateway.port().outcome("client_reset"), 4, "{:?}", gateway.port());
}

/// P1: a client of an `auto` port is silent, so that the application is dialled for it, and speaks HTTP after
/// all. The application, which is slow to notice, has one connection from us, and not a second one.
fn whoever_speaks_late_leaves_no_connection_behind(engine: Engine) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
    let address = listener.local_addr().expect("bound"); // it accepts nothing, the kernel does
    let gateway = gate(engine, address)
        .set("protocol", "auto")
        .set("limit", 1)
        .set("queue-length", 10)
        .set("queue-timeout", "60s")
        .start();
    let watch = sockets::Watch::start(address.port());
    for _ in 0..2 {
        let mut late = Http1::connect(gateway.address);
        until("the application is dialled for it", SOON, || {
            gateway.port().active == 1 && sockets::open_at(address.port()).len() == 1
        });
        late.ask("/", "");
        until("its request has a slot", SOON, || gateway.port().admitted > 0);
        drop(late);
        until("the slot is free", 4 * SOON, || gateway.port().active == 0);
        gateway.set("abandon-timeout", "200ms");
    }
    assert_eq!(watch.peak(), 1, "connections at the application");
}

/// P11: an application that speaks HTTP/2 and does not read: after `write-stall-timeout` its connection is
/// reset, whoever waits is told, and no slot is held.
fn an_http2_application_that_reads_nothing_is_let_go(engine: Engine) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
    let address = listener.local_addr().expect("bound");
    let app = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("dialled");
        let most = 0x7fff_ffff_u32;
        let wide = [&[0, 4][..], &most.to_be_bytes()].concat();
        let settings = frames::frame(frames::SETTINGS, 0, 0, &wide);
        let more = (most - 65_535).to_be_bytes();
        let update = frames::frame(frames::WINDOW_UPDATE, 0, 0, &more);
        stream.write_all(&[settings, update].concat()).expect("writes");
        let mut preface = [0; 24];
        stream.read_exact(&mut preface).expect("a preface");
        stream // and that was all
    });
    let gateway = gate(engine, address)
        .set("limit", 1)
        .set("app-http2", "always")
        .set("write-stall-timeout", "1s")
        .set("abandon-timeout", "1s")
        .start();
    let mut client = Http1::connect(gateway.address);
    client.begin("POST", "/", "Content-Length: 100000000\r\n");
    let upload = client.stream.try_clone().expect("a second handle");
    let sends = std::thread::spawn(move || while (&upload).write_all(&[b'x'; 65_536]).is_ok() {});
    let stream = app.join().expect("no panic");
    if let Ok(answer) = client.answer() {
        assert_eq!(answer.status, 502, "{answer:?}");
    }
    until("the slot is free", SOON, || gateway.port().active == 0);
    until("the connection has gone", SOON, || sockets::open_at(address.port()).is_empty());
    drop((client, stream));
    sends.join().expect("no panic");
}

/// P13: who only observes refuses nobody, whatever a client says of its patience.
fn deadlines_are_only_observed_without_a_limit(engine: Engine) {
    let app = HttpOracle::start();
    let gateway = gate(engine, app.address).set("deadline-header", "x-patience").start();
    let mut client = Http1::connect(gateway.address);
    client.ask("/", "X-Patience: 0\r\n");
    assert_eq!(client.end(), End::Answered);
    gateway.set("limit", 5);
    let mut client = Http1::connect(gateway.address);
    client.ask("/", "X-Patience: 0\r\n");
    assert_eq!(client.answer().expect("a refusal").status, 503);
}

/// As [`assert_settled`], with so many connections to an application of HTTP/2, which are kept.
#[track_caller]
fn assert_settled_but(gateway: &crate::support::gateway::Gateway, kept: i64) {
    until("nothing is left", slack(Duration::from_secs(2)), || {
        let status = gateway.status();
        let busy = status.ports.iter().any(|port| port.active > 0 || port.queued > 0);
        !busy && status.connections == 0 && gateway.fds_since_start() <= kept
    });
}
