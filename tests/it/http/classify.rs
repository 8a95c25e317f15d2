//! Ports that are `auto`: the client's first bytes decide, and waiting is no way round the limit.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use crate::support::gateway::Setup;
use crate::support::ledger::{Client, End};
use crate::support::oracle::{Oracle, Script};
use crate::support::{Engine, SOON, Stopwatch, engines, slack, until};

use super::client::Http1;
use super::http2::{self, Http2};
use super::oracle::HttpOracle;
use super::{assert_settled, refused};

engines!(
    the_status_says_what_a_port_speaks,
    http1_is_counted_per_request,
    http2_is_counted_per_request,
    a_request_byte_by_byte_is_counted_per_request,
    a_preface_byte_by_byte_is_counted_per_request,
    tls_passes_untouched,
    what_only_begins_like_http_passes_untouched,
    a_server_that_speaks_first_is_tcp,
    waiting_is_no_way_round_the_limit,
    looking_odd_is_no_way_round_the_limit,
    a_silent_connection_holds_a_slot,
    an_unknown_protocol_is_refused_as_tcp,
    a_port_declared_http_never_becomes_a_tunnel,
    silence_is_not_counted_as_waiting,
);

/// `auto` is what a port is when nothing is said.
fn auto(engine: Engine, app: impl ToString) -> Setup {
    Setup::new(engine, app).set("protocol", "auto").set("queue-timeout", "60s")
}

fn the_status_says_what_a_port_speaks(engine: Engine) {
    let oracle = Oracle::start(Script::Echo);
    for protocol in ["auto", "http", "tcp"] {
        let gateway = Setup::new(engine, oracle.address).set("protocol", protocol).start();
        assert_eq!(gateway.port().protocol, protocol);
    }
}

fn http1_is_counted_per_request(engine: Engine) {
    let app = HttpOracle::start();
    let gateway = auto(engine, app.address).set("limit", 1).set("queue-length", 0).start();
    let ask = |client: &mut Http1, method: &str| {
        client.begin(method, "/", "");
        assert_eq!(client.end(), End::Answered, "{method}: idle connections hold no slot");
    };
    // Whoever says nothing at first, and for long, is no client of HTTP.
    let first = |_| {
        let mut client = Http1::connect(gateway.address);
        ask(&mut client, "GET");
        client
    };
    let mut clients: Vec<_> = (0..5).map(first).collect();
    for method in ["POST", "OPTIONS", "DELETE", "PATCH", "PURGE"] {
        clients.iter_mut().for_each(|client| ask(client, method));
    }
    assert_eq!(gateway.port().admitted, 30);
    drop(clients);
    assert_eq!(app.peak(), 1);
    assert_settled(&gateway, app.address.port());
}

fn http2_is_counted_per_request(engine: Engine) {
    let app = HttpOracle::start();
    let gateway = auto(engine, app.address).set("limit", 2).set("queue-length", 0).start();
    http2::block_on(async {
        let mut client = Http2::connect(gateway.address).await;
        let mut other = Http2::connect(gateway.address).await;
        for _ in 0..5 {
            assert_eq!(client.get("/").await.status, 200);
            assert_eq!(other.get("/").await.status, 200);
        }
        let mut held = Vec::new();
        for count in 1..=2 {
            held.push(client.open("GET", "/held", &[], true).await.expect("a stream").0);
            http2::until("it is in", SOON, || app.in_progress() == count).await;
        }
        assert_eq!(other.get("/").await.status, 503);
        app.release(2);
        for response in held {
            assert_eq!(http2::answer(response).await.expect("an answer").status, 200);
        }
    });
    assert_eq!(gateway.port().admitted, 12);
    assert_settled(&gateway, app.address.port());
}

/// A pause between any two bytes, some of them longer than the silence that begins a TCP connection.
fn a_request_byte_by_byte_is_counted_per_request(engine: Engine) {
    let app = HttpOracle::start();
    let gateway = auto(engine, app.address).set("limit", 1).start();
    let mut client = Http1::connect(gateway.address);
    for (at, byte) in b"GET / HTTP/1.1\r\nHost: app\r\n\r\n".iter().enumerate() {
        client.send([*byte]);
        std::thread::sleep(Duration::from_millis(if at % 9 == 3 { 120 } else { 5 })); // its pace
    }
    assert_eq!(client.answer().expect("an answer").status, 200);
    until("no slot is held", SOON, || gateway.port().active == 0);
    assert_eq!(client.get("/").status, 200);
    assert_eq!((gateway.port().admitted, app.count()), (2, 2));
    drop(client);
    assert_settled(&gateway, app.address.port());
}

fn a_preface_byte_by_byte_is_counted_per_request(engine: Engine) {
    let app = HttpOracle::start();
    let gateway = auto(engine, app.address).set("limit", 1).start();
    let mut stream = TcpStream::connect(gateway.address).expect("connects");
    stream.set_nodelay(true).expect("TCP_NODELAY");
    stream.set_read_timeout(Some(SOON)).expect("a timeout");
    for byte in b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0" {
        stream.write_all(&[*byte]).expect("writes");
        std::thread::sleep(Duration::from_millis(5)); // its pace
    }
    let mut frame = [0; 9];
    stream.read_exact(&mut frame).expect("SETTINGS come back");
    assert_eq!(frame[3], 4, "a SETTINGS frame: {frame:?}");
    until("no slot is held", SOON, || gateway.port().active == 0);
    assert_eq!(gateway.port().admitted, 0, "no request yet");
    drop(stream);
    assert_settled(&gateway, app.address.port());
}

/// The bytes of a ClientHello, and any others: the application gets them as they are, in one connection.
fn passes_untouched(engine: Engine, bytes: &[u8]) {
    let oracle = Oracle::start(Script::Echo);
    let gateway = auto(engine, oracle.address).set("limit", 1).set("queue-length", 0).start();
    let mut client = Client::connect(gateway.address).expect("connects");
    client.stream.write_all(bytes).expect("writes");
    let mut echo = vec![0; bytes.len()];
    client.stream.read_exact(&mut echo).expect("an echo");
    assert_eq!(echo, bytes);
    let port = gateway.port();
    assert_eq!((port.active, port.admitted), (1, 1), "the connection holds a slot");
    client.half_close();
    assert_eq!(client.stream.read(&mut [0]).expect("the end"), 0);
    until("the slot is free", SOON, || gateway.port().active == 0);
    drop(client);
    assert_settled(&gateway, oracle.address.port());
}

fn tls_passes_untouched(engine: Engine) {
    let mut hello = b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03".to_vec();
    hello.extend_from_slice(&[7; 506]);
    passes_untouched(engine, &hello);
}

fn what_only_begins_like_http_passes_untouched(engine: Engine) {
    for bytes in [
        &b"GET key\r\n"[..],
        b"PRI * something else\r\n\r\n",
        b"\0\0\0\x08\x04\xd2\x16\x2f",
        b"*1\r\n$4\r\nPING\r\n",
        b"SSH-2.0-client\r\n",
        b"GET / HTCPCP/1.0\n",
    ] {
        passes_untouched(engine, bytes);
    }
}

/// A banner comes to a client that says nothing, soon after the 100 ms of silence, and bytes pass.
fn a_server_that_speaks_first_is_tcp(engine: Engine) {
    let oracle = Oracle::start(Script::SpeakFirst(b"220 ready\r\n"));
    let gateway = auto(engine, oracle.address).set("limit", 1).start();
    let start = Stopwatch::start();
    let mut client = Client::connect(gateway.address).expect("connects");
    let mut banner = [0; 11];
    client.stream.read_exact(&mut banner).expect("a banner");
    let took = start.own();
    assert!(took < slack(Duration::from_millis(120)), "{took:?}");
    assert_eq!(&banner, b"220 ready\r\n");
    client.stream.write_all(b"GET / HTTP/1.1\r\n\r\n").expect("writes");
    let mut echo = [0; 18];
    client.stream.read_exact(&mut echo).expect("an echo: it is TCP now");
    assert_eq!(&echo, b"GET / HTTP/1.1\r\n\r\n");
    assert_eq!(gateway.port().active, 1);
    drop(client);
    assert_settled(&gateway, oracle.address.port());
}

/// A client that waits 150 ms and then speaks HTTP has one connection to the application waiting for it
/// and one slot; but its requests are counted one by one, before and after, and never beside the limit.
fn waiting_is_no_way_round_the_limit(engine: Engine) {
    let app = HttpOracle::start();
    let gateway = auto(engine, app.address).set("limit", 2).set("queue-length", 20).start();
    for round in 1..=2 {
        let mut late: Vec<_> = (0..2).map(|_| Http1::connect(gateway.address)).collect();
        until("both have a slot", SOON, || gateway.port().active == 2);
        let mut quick = Http1::asking(gateway.address, "/work?ms=0");
        until("a third waits", SOON, || gateway.port().queued == 1);
        for client in &mut late {
            client.ask("/work?ms=50", "");
        }
        for client in &mut late {
            assert_eq!(client.end(), End::Answered, "round {round}");
        }
        assert_eq!(quick.end(), End::Answered, "round {round}");
        until("idle, they hold no slot", SOON, || gateway.port().active == 0);
        // Kept alive, six requests at once have two slots.
        let mut all: Vec<_> = (0..4).map(|_| Http1::connect(gateway.address)).collect();
        all.append(&mut late);
        for client in &mut all {
            client.ask("/work?ms=30", "");
        }
        for client in &mut all {
            assert_eq!(client.end(), End::Answered, "round {round}");
        }
        drop(all);
        until("nobody is left", SOON, || gateway.status().connections <= 1);
    }
    assert!(app.peak() <= 2, "{} at once", app.peak());
    assert_eq!(app.count(), 18);
    assert_settled(&gateway, app.address.port());
}

/// What servers take for a request is one here, whatever comes before it and however it is called.
fn looking_odd_is_no_way_round_the_limit(engine: Engine) {
    let app = HttpOracle::start();
    let gateway = auto(engine, app.address).set("limit", 1).set("queue-length", 20).start();
    let method = "M".repeat(33);
    let odd =
        ["\r\n".repeat(600), "\n".repeat(5000), format!("{method} / HTTP/1.1\r\nHost: a\r\n\r\n")];
    let served = |start: &String| {
        let mut client = gateway.paused(|| {
            let mut client = Http1::connect(gateway.address);
            client.send(start); // all of it is there before anybody looks
            client
        });
        if start.starts_with('M') {
            assert_eq!(client.answer().expect("an answer").status, 200);
        }
        (0..5).for_each(|_| client.ask("/work?ms=5", ""));
        (0..5).for_each(|at| assert_eq!(client.answer().expect("an answer").status, 200, "{at}"));
    };
    odd.iter().for_each(served);
    assert_eq!((gateway.port().admitted, app.count()), (16, 16), "each took a slot");
    // And what hyper does not take is refused by it, and is no tunnel.
    for line in ["A B HTTP/1.1", "GET  / HTTP/1.1", "GET\t/\tHTTP/1.1", "GET / HTTP/2.0"] {
        let mut client = Http1::connect(gateway.address);
        client.send(format!("{line}\r\nHost: a\r\n\r\n"));
        let status = client.answer().expect("an answer").status;
        assert!((400..=505).contains(&status), "{line}: {status}");
    }
    assert_eq!((app.peak(), app.count()), (1, 16));
    assert_settled(&gateway, app.address.port());
}

/// Silence takes a slot after 100 ms: the application may be about to speak. It comes free when the client
/// leaves.
fn a_silent_connection_holds_a_slot(engine: Engine) {
    let oracle = Oracle::start(Script::Echo);
    let gateway = auto(engine, oracle.address).set("limit", 1).set("queue-length", 0).start();
    let start = Instant::now();
    let silent = Client::connect(gateway.address).expect("connects");
    until("it has a slot", SOON, || gateway.port().active == 1);
    let took = start.elapsed();
    assert!(took >= Duration::from_millis(60), "not before it was silent for a while: {took:?}");
    until("the application is dialled", SOON, || oracle.count() == 1);
    let mut asks = gateway.paused(|| Http1::asking(gateway.address, "/")); // it was never silent
    assert_eq!(asks.answer().expect("an answer").status, 503);
    drop(asks);
    drop(silent);
    until("the slot is free", SOON, || gateway.port().active == 0);
    assert_eq!(oracle.peak(), 1);
    assert_settled(&gateway, oracle.address.port());
}

/// TCP at the limit is refused with a FIN, HTTP with a 503.
fn an_unknown_protocol_is_refused_as_tcp(engine: Engine) {
    let oracle = Oracle::start(Script::Echo);
    let gateway = auto(engine, oracle.address).set("limit", 1).set("queue-length", 0).start();
    let mut first = Client::connect(gateway.address).expect("connects");
    first.stream.write_all(b"\x16\x03\x01hello").expect("writes");
    first.stream.read_exact(&mut [0; 8]).expect("an echo");
    let mut second = Client::connect(gateway.address).expect("connects");
    second.stream.write_all(b"\x16\x03\x01hello").expect("writes");
    assert_eq!(second.end(), End::Refused);
    let mut asks = gateway.paused(|| Http1::asking(gateway.address, "/")); // it was never silent
    assert_eq!(asks.answer().expect("an answer").status, 503);
    drop(asks);
    refused(&gateway, "limit_reached", 2);
    drop(first);
    assert_settled(&gateway, oracle.address.port());
}

/// On a port declared `http` bytes that are not HTTP are answered 400 or closed, and not passed on.
fn a_port_declared_http_never_becomes_a_tunnel(engine: Engine) {
    let oracle = Oracle::start(Script::Echo);
    let gateway = Setup::new(engine, oracle.address).set("protocol", "http").start();
    for bytes in [&b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03\r\n\r\n"[..], b"HELO me\r\n\r\n"] {
        let mut client = Client::connect(gateway.address).expect("connects");
        client.stream.write_all(bytes).expect("writes");
        let mut answer = Vec::new();
        let _ = client.stream.read_to_end(&mut answer);
        let answer = String::from_utf8_lossy(&answer).into_owned();
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 400"), "{answer}");
    }
    assert_eq!(oracle.arrived(), 0);
}

/// Before it asks for a slot a silent client is listened to for 100 ms: that is nobody's queue.
fn silence_is_not_counted_as_waiting(engine: Engine) {
    let oracle = Oracle::start(Script::Held);
    let gateway = auto(engine, oracle.address).set("limit", 1).start();
    let mut first = Client::asking(gateway.address, Duration::ZERO);
    until("the first is in", SOON, || oracle.count() == 1);
    let begun = Instant::now();
    let mut silent = Client::connect(gateway.address).expect("connects");
    until("it waits", SOON, || gateway.port().queued == 1);
    oracle.release(1);
    assert_eq!(first.end(), End::Answered);
    let there = || oracle.arrived() == 2 && gateway.port().queued == 0;
    until("its turn has come", SOON, there);
    let all = begun.elapsed().as_secs_f64();
    let waited = gateway.metric("tidegate_admission_wait_seconds_sum", "");
    assert!(waited > 0.0 && waited <= all - 0.099, "{waited} s of {all} s in the queue");
    silent.ask(Duration::ZERO);
    oracle.release(1);
    assert_eq!(silent.end(), End::Answered);
    gateway.assert_clean();
}
