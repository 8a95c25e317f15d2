//! The HTTP rig tests itself without a gateway.

use std::time::Duration;

use crate::support::ledger::{self, End};
use crate::support::{SOON, pattern, skip, turn_beside, until};

use super::client::{self, Http1};
use super::frames::{self, Raw};
use super::http2::{self, Http2};
use super::oracle::HttpOracle;
use super::outside::{self, Outside, succeed};

/// Clients of HTTP/1 and the application agree about who was answered what, and how many at once.
#[test]
fn the_application_answers_and_counts() {
    let _turn = turn_beside();
    let app = HttpOracle::start();
    let ledger =
        ledger::closed_loop(8, 200, |_, _| client::exchange(app.address, "/work?ms=1", SOON));
    assert_eq!(ledger.of(End::Answered), 200, "{ledger:?}");
    assert_eq!((app.count(), app.connections()), (200, 200));
    assert!(app.peak() <= 8, "{} at once from 8 clients", app.peak());
    until("all are over", SOON, || app.in_progress() == 0);
}

/// One connection carries one request after the other, whatever ends their bodies.
#[test]
fn a_connection_is_kept() {
    let _turn = turn_beside();
    let app = HttpOracle::start();
    let mut client = Http1::connect(app.address);
    let body = pattern::slice(0, 50_000);
    assert_eq!(client.get("/").text(), "ok");
    assert_eq!(client.get("/stream?n=3&ms=1").body.len(), 3000);
    assert_eq!(client.post("/up", body).text(), "50000 intact");
    assert_eq!(client.post("/up", &body[1..]).text(), "49999 damaged");
    assert_eq!(client.get("/down?n=100000").body.len(), 100_000);
    assert_eq!(client.get("/down-chunked?n=100000").body.len(), 100_000);
    assert_eq!(client.get("/status?code=204").status, 204);
    assert_eq!(client.get("/hints").status, 200);
    let trailers = client.get("/trailers").trailers;
    assert_eq!(trailers, [("x-sum".to_owned(), "4".to_owned())]);
    client.begin("HEAD", "/down?n=5", "");
    let head = client.answer_to("HEAD").expect("an answer");
    assert_eq!((head.header("content-length"), head.body.len()), (Some("5"), 0));
    client.begin("POST", "/up", "Transfer-Encoding: chunked\r\nExpect: 100-continue\r\n");
    assert_eq!(client.head().expect("a go-ahead").status, 100);
    client.send("3;extension=1\r\n");
    client.send(pattern::slice(0, 3));
    client.send("\r\n0\r\nX-Sum: 3\r\n\r\n");
    assert_eq!(client.answer().expect("an answer").text(), "3 intact");
    let seen = app.seen();
    assert!(seen.iter().all(|seen| seen.connection == 0), "one connection: {seen:?}");
    assert_eq!(seen.last().expect("some").trailers, [("x-sum".to_owned(), "3".to_owned())]);
    assert_eq!(client.get("/to-close").text(), "until closed");
    assert!(client.closed());
}

/// A tunnel begins after the 101.
#[test]
fn the_application_upgrades() {
    let _turn = turn_beside();
    let app = HttpOracle::start();
    let mut client = Http1::connect(app.address);
    client.ask("/tunnel", "Connection: upgrade\r\nUpgrade: echo\r\n");
    assert_eq!(client.answer().expect("an answer").status, 101);
    client.send("hello");
    assert_eq!(client.raw(5).expect("an echo"), b"hello");
    assert_eq!(app.in_progress(), 1);
    drop(client);
    until("the tunnel has ended", SOON, || app.in_progress() == 0);
}

/// HTTP/2: streams side by side on one connection, bodies both ways, trailers, a reset.
#[test]
fn the_application_speaks_http2() {
    let _turn = turn_beside();
    let app = HttpOracle::start();
    http2::block_on(async {
        let mut client = Http2::connect(app.address).await;
        assert_eq!(client.get("/").await.text(), "ok");
        let body = pattern::slice(0, 60_000);
        assert_eq!(client.post("/up", body).await.text(), "60000 intact");
        assert_eq!(client.post("/echo", body).await.body, body);
        assert_eq!(client.get("/down?n=3000000").await.body.len(), 3_000_000);
        assert_eq!(client.get("/trailers").await.trailers, [("x-sum".to_owned(), "4".to_owned())]);
        let (first, _) = client.open("GET", "/held", &[], true).await.expect("a stream");
        let (second, _) = client.open("GET", "/held", &[], true).await.expect("a stream");
        http2::until("two are held", SOON, || app.in_progress() == 2).await;
        app.release(2);
        assert_eq!(http2::answer(first).await.expect("an answer").status, 200);
        assert_eq!(http2::answer(second).await.expect("an answer").status, 200);
    });
    assert_eq!(app.connections(), 1);
    assert!(app.seen().iter().all(|seen| seen.version == "2"));
}

/// An application that breaks off is noticed.
#[test]
fn the_client_tells_a_broken_answer() {
    let _turn = turn_beside();
    let app = HttpOracle::start();
    assert_eq!(client::exchange(app.address, "/break?n=10", SOON), End::Lost);
    let impatient = Duration::from_millis(20);
    assert_eq!(client::exchange(app.address, "/never", impatient), End::TimedOut);
}

/// The servers and clients from outside agree with each other, and the servers' books are right.
#[test]
fn servers_and_clients_from_outside_agree() {
    let _turn = turn_beside();
    let apps = (Outside::nginx(), Outside::gunicorn(), Outside::node(), Outside::grpcio());
    let (Some(nginx), Some(gunicorn), Some(node), Some(grpcio)) = apps else {
        return skip("nginx, node or what tests/apps/setup installs is missing");
    };
    let run = |name: &str, arguments: &[&str]| {
        succeed(outside::client(name).expect("it is installed").args(arguments));
    };
    for app in [&gunicorn, &node] {
        run("client_httpx.py", &[&format!("http://{}", app.address()), "1"]);
    }
    run("client_websockets.py", &[&format!("ws://{}/socket", node.address()), "3"]);
    run("client_grpc.py", &[&grpcio.address(), "calls"]);
    // Node and gunicorn do not speak HTTP/2 in the clear: the h2 library is tried through the gateway.
    run("client_grpc.py", &[&grpcio.address(), "storm", "50", "1"]);
    let address = nginx.address().parse().expect("an address");
    assert_eq!(Http1::connect(address).get("/").text(), "ok");
    for (app, most) in [(&gunicorn, 4), (&node, 8), (&grpcio, 100)] {
        until("it has ended", SOON, || app.counted().in_progress == 0);
        let counted = app.counted();
        assert!((2..=most).contains(&counted.peak), "{}: {counted:?}", app.name);
    }
    until(
        "nginx writes its books",
        SOON,
        || matches!(&nginx.lines()[..], [line] if line.starts_with("- GET / ")),
    );
}

/// The load of `overload` without a gateway: what the application can do is what it is said to do.
#[test]
fn the_workers_have_the_capacity_they_are_said_to_have() {
    let _turn = turn_beside();
    let app = HttpOracle::start();
    let start = std::time::Instant::now();
    let ledger =
        ledger::closed_loop(16, 80, |_, _| client::exchange(app.address, "/worker?ms=20", SOON));
    assert_eq!(ledger.of(End::Answered), 80, "{ledger:?}");
    assert!(start.elapsed() >= Duration::from_millis(200), "8 workers: {:?}", start.elapsed());
}

/// Frames made by hand are understood by a library.
#[test]
fn frames_by_hand_are_http2() {
    let _turn = turn_beside();
    let app = HttpOracle::start();
    let mut raw = Raw::connect(app.address);
    let head = frames::request("GET", "/", &[("x-id", "7")]);
    let flags = frames::END_HEADERS | frames::END_STREAM;
    raw.send(&frames::frame(frames::HEADERS, flags, 1, &head)).expect("writes");
    let answer = std::iter::from_fn(|| raw.read().ok()).find(|frame| frame.stream == 1);
    assert_eq!(answer.expect("an answer").kind, frames::HEADERS);
    assert_eq!(app.ids(), [7]);
}
