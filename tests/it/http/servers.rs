//! In front of servers that people run, with clients that people use, and the server's own word on how
//! many requests it has in progress (P1, P5).

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use crate::support::gateway::{Gateway, Setup};
use crate::support::{Engine, Over, Rng, SOON, engines, process, scale, skip, sockets, until};

use super::client::Http1;
use super::outside::{self, NO_VENV, Outside, succeed};
use super::{assert_settled, gate};

engines!(beside:
    nginx_with_wrk_and_h2load,
    nginx_never_has_more_connections_than_the_limit,
    gunicorn_with_httpx,
    gunicorn_never_has_more_connections_than_the_limit,
    gunicorn_under_a_storm_of_those_who_leave,
    node_with_httpx_h2_and_websockets,
    node_counts_streams_and_websockets,
    grpcio_with_its_own_client,
    grpcio_bidi_streams_hold_their_slots,
);

/// Its handlers have half a second to end after a reset, which takes a machine with time for them.
mod alone {
    use super::grpcio_under_a_storm_of_cancels;
    crate::support::engines!(grpcio_under_a_storm_of_cancels);
}

/// One less than gunicorn has workers, so that it is not they who keep to it.
const LIMIT: usize = 3;

/// A narrow gate with room for everybody to wait.
fn patient(engine: Engine, app: &Outside) -> Setup {
    let setup = gate(engine, app.address()).set("limit", LIMIT).set("queue-length", 5_000);
    setup.set("queue-timeout", "60s")
}

/// The server's own books: it never had more than the limit, and it has none left.
#[track_caller]
fn assert_within_limit(app: &Outside) {
    until("the application has none left", SOON, || app.counted().in_progress == 0);
    let counted = app.counted();
    assert!((1..=LIMIT as i64).contains(&counted.peak), "{}: {counted:?}", app.name);
}

/// wrk and h2load, 64 at once through a narrow gate; curl with both versions.
fn nginx_with_wrk_and_h2load(engine: Engine) {
    let Some(app) = Outside::nginx() else {
        return skip("nginx is not installed");
    };
    if !process::installed("wrk") || !process::installed("h2load") || !process::installed("curl") {
        return skip("wrk, h2load or curl is not installed");
    }
    // nginx of Debian 12 speaks HTTP/2 in the clear only on ports that speak nothing else.
    let gateway = patient(engine, &app).set("app-http2", "never").start();
    let watch = sockets::Watch::start(app.port());
    let url = format!("http://{}/", gateway.address);
    let seconds = format!("{}s", scale(1, 10));
    let said = succeed(Command::new("wrk").args([
        "-t1",
        "-c64",
        "--timeout",
        "60s",
        "-d",
        &seconds,
        &url,
    ]));
    assert!(!said.contains("Socket errors") && !said.contains("Non-2xx"), "{said}");

    let count = scale(5_000, 100_000).to_string();
    for (clients, streams) in [("1", "32"), ("8", "8")] {
        let mut h2load = Command::new("h2load");
        let said = succeed(h2load.args(["-n", &count, "-c", clients, "-m", streams, &url]));
        assert!(said.contains(&format!(" {count} succeeded, 0 failed, 0 errored")), "{said}");
    }
    let file = format!("http://{}/file", gateway.address);
    for version in ["--http1.1", "--http2-prior-knowledge"] {
        let mut curl = Command::new("curl");
        let output = curl.args(["-sS", version, &file]).output().expect("curl runs");
        assert!(output.status.success(), "{output:?}");
        assert_eq!(output.stdout.len(), 3_000_000, "{version}");
        let mut curl = Command::new("curl");
        let same = succeed(curl.args(["-sSi", version, &format!("{url}empty")]));
        assert!(same.contains(" 204"), "{same}");
    }
    until("it is settled", SOON, || gateway.port().active == 0);
    assert_eq!(gateway.port().peak_active, LIMIT as u64, "they wanted more");
    let most = watch.peak();
    assert!((1..=LIMIT).contains(&most), "the kernel saw {most} connections");
    drop(watch);
    assert_settled(&gateway, app.port());
}

/// 50 at once, each slow: nginx says it never had more connections than the limit.
fn nginx_never_has_more_connections_than_the_limit(engine: Engine) {
    let Some(app) = Outside::nginx() else {
        return skip("nginx is not installed");
    };
    if !process::installed("curl") {
        return skip("curl is not installed");
    }
    let gateway = patient(engine, &app).start();
    let (over, most) = (AtomicBool::new(false), AtomicU64::new(0));
    let watch = sockets::Watch::start(app.port());
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                most.fetch_max(app.active_connections(), Ordering::Relaxed);
            }
        });
        let _over = Over(&over);
        let clients: Vec<_> = (0..50)
            .map(|_| {
                scope.spawn(|| {
                    let mut client = Http1::connect(gateway.address).patience(3 * SOON);
                    client.get("/slow").body.len()
                })
            })
            .collect();
        for client in clients {
            assert_eq!(client.join().expect("no panic"), 4_000);
        }
    });
    let most = most.load(Ordering::Relaxed);
    assert!((1..=LIMIT as u64).contains(&most), "nginx had {most} connections");
    assert!(watch.peak() <= LIMIT, "the kernel saw {} connections", watch.peak());
    drop(watch);
    assert_settled(&gateway, app.port());
}

/// httpx keeps connections, streams and leaves; gunicorn never does more at once than the limit.
fn gunicorn_with_httpx(engine: Engine) {
    let (Some(app), Some(mut client)) = (Outside::gunicorn(), outside::client("client_httpx.py"))
    else {
        return skip(NO_VENV);
    };
    let gateway = patient(engine, &app).set("app-http2", "never").start();
    let watch = sockets::Watch::start(app.port());
    let url = format!("http://{}", gateway.address);
    succeed(client.args([&url, "1"]));
    let mut client = outside::client("client_httpx.py").expect("just had it");
    succeed(client.args([&url, "2"]));
    assert_within_limit(&app);
    assert!(watch.peak() <= LIMIT, "the kernel saw {} connections", watch.peak());
    drop(watch);
    assert_settled(&gateway, app.port());
}

/// 2000 clients keep their connections to us open, before and after a request of each; gunicorn never has
/// more than the limit.
fn gunicorn_never_has_more_connections_than_the_limit(engine: Engine) {
    let Some(app) = Outside::gunicorn() else {
        return skip(NO_VENV);
    };
    let gateway = patient(engine, &app).start();
    let watch = sockets::Watch::start(app.port());
    let count = scale(300, 2_000);
    let mut clients: Vec<_> =
        (0..count).map(|_| Http1::connect(gateway.address).patience(6 * SOON)).collect();
    for round in 1..=2 {
        for client in &mut clients {
            client.ask("/work?ms=1", "");
        }
        for client in &mut clients {
            let answer = client.answer().expect("an answer");
            assert_eq!((answer.status, answer.text().as_str()), (200, "worked"));
        }
        assert_eq!(app.counted().begun, round * count);
    }
    assert_eq!(gateway.status().connections, count as u64, "all are still there");
    assert_eq!(gateway.port().admitted, 2 * count as u64, "each request was counted");
    assert_within_limit(&app);
    assert!((1..=LIMIT).contains(&watch.peak()), "the kernel saw {} connections", watch.peak());
    drop((clients, watch));
    assert_settled(&gateway, app.port());
}

/// Clients that leave before, in and after the wait, the upload, the answer: gunicorn finishes what it
/// has begun, and never has more than the limit.
fn gunicorn_under_a_storm_of_those_who_leave(engine: Engine) {
    let Some(app) = Outside::gunicorn() else {
        return skip(NO_VENV);
    };
    let gateway = patient(engine, &app).start();
    let watch = sockets::Watch::start(app.port());
    storm_of_those_who_leave(&gateway, scale(300, 5_000));
    assert_within_limit(&app);
    assert!(watch.peak() <= LIMIT, "the kernel saw {} connections", watch.peak());
    drop(watch);
    assert_settled(&gateway, app.port());
}

fn storm_of_those_who_leave(gateway: &Gateway, count: usize) {
    let seed = Rng::announced();
    let turn = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for number in 0..24 {
            let turn = &turn;
            scope.spawn(move || {
                let mut rng = Rng::new(seed + number);
                while turn.fetch_add(1, Ordering::Relaxed) < count as u64 {
                    leave_somewhere(gateway, &mut rng);
                }
            });
        }
    });
}

fn leave_somewhere(gateway: &Gateway, rng: &mut Rng) {
    let mut client = Http1::connect(gateway.address);
    match rng.below(4) {
        0 => client.ask("/work?ms=15", ""),
        1 => client.ask("/stream?n=6&ms=3", ""),
        2 => {
            client.begin("POST", "/upload", "Content-Length: 20000\r\n");
            let sent = if rng.below(2) == 0 { 20_000 } else { rng.below(20_000) };
            client.send(vec![b'x'; sent as usize]);
        }
        _ => {
            client.ask("/work?ms=5", "");
            client.ask("/work?ms=5", ""); // pipelined
        }
    }
    std::thread::sleep(rng.millis(60)); // leaves at some point of its wait or its answer
    if rng.below(2) == 0 {
        client.reset();
    }
}

/// httpx with both versions, the h2 library, and `websockets`, one after the other.
fn node_with_httpx_h2_and_websockets(engine: Engine) {
    let Some(app) = Outside::node() else {
        return skip("node is not installed");
    };
    if outside::client("client_httpx.py").is_none() {
        return skip(NO_VENV);
    }
    let gateway = patient(engine, &app).set("app-http2", "never").start();
    let (address, url) = (gateway.address.to_string(), format!("http://{}", gateway.address));
    let socket = format!("ws://{}/socket", gateway.address);
    let runs: [(&str, [&str; 2]); 4] = [
        ("client_httpx.py", [&url, "1"]),
        ("client_httpx.py", [&url, "2"]),
        ("client_h2.py", [&address, "40"]),
        ("client_websockets.py", [&socket, "12"]),
    ];
    for (name, arguments) in runs {
        succeed(outside::client(name).expect("just had it").args(arguments));
    }
    assert_within_limit(&app);
    assert_settled(&gateway, app.port());
}

/// A WebSocket and an event stream hold a slot each until they end (P5); the storm beside them has the
/// other one.
fn node_counts_streams_and_websockets(engine: Engine) {
    let Some(app) = Outside::node() else {
        return skip("node is not installed");
    };
    let gateway = patient(engine, &app).start();
    let mut socket = Http1::connect(gateway.address);
    let key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n";
    socket.ask("/socket", &format!("Connection: Upgrade\r\nUpgrade: websocket\r\n{key}"));
    let answer = socket.answer().expect("an answer");
    assert_eq!(answer.status, 101, "{answer:?}");
    let accept = answer.header("sec-websocket-accept");
    assert_eq!(accept, Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="), "{answer:?}");
    let mut events = Http1::asking(gateway.address, "/events?n=100000&ms=20");
    let head = events.head().expect("an answer");
    assert_eq!(head.header("content-type"), Some("text/event-stream"));
    until("both hold a slot", SOON, || gateway.port().active == 2);
    storm_of_those_who_leave(&gateway, scale(200, 2_000));
    until("the storm is over", SOON, || gateway.port().active == 2);
    socket.send([0x81, 0x85, 0, 0, 0, 0, b'h', b'e', b'l', b'l', b'o']);
    assert_eq!(socket.raw(7).expect("an echo"), b"\x81\x05hello");
    socket.send([0x88, 0x82, 0, 0, 0, 0, 0x03, 0xe8]);
    assert_eq!(socket.raw(4).expect("a close"), [0x88, 2, 0x03, 0xe8]);
    assert!(socket.closed());
    drop((socket, events));
    assert_within_limit(&app);
    assert_settled(&gateway, app.port());
}

/// Each kind of call, a deadline, an unknown method.
fn grpcio_with_its_own_client(engine: Engine) {
    let (Some(app), Some(mut client)) = (Outside::grpcio(), outside::client("client_grpc.py"))
    else {
        return skip(NO_VENV);
    };
    let gateway = patient(engine, &app).start();
    succeed(client.args([&gateway.address.to_string(), "calls"]));
    until("the application has none left", SOON, || app.counted().in_progress == 0);
    assert_settled(&gateway, app.port());
}

/// Calls of all kinds, many of them cancelled or too late: the handlers of grpcio that run at once, also
/// those whose client has gone, are never more than the limit.
fn grpcio_under_a_storm_of_cancels(engine: Engine) {
    let (Some(app), Some(mut client)) = (Outside::grpcio(), outside::client("client_grpc.py"))
    else {
        return skip(NO_VENV);
    };
    let gateway = patient(engine, &app).start();
    let (count, seed) = (scale(200, 3_000).to_string(), (Rng::announced() % 1_000).to_string());
    succeed(client.args([&gateway.address.to_string(), "storm", &count, &seed]));
    assert_within_limit(&app);
    assert_settled(&gateway, app.port());
}

/// Three open bidi streams on one connection hold three slots (P5).
fn grpcio_bidi_streams_hold_their_slots(engine: Engine) {
    let (Some(app), Some(mut client)) = (Outside::grpcio(), outside::client("client_grpc.py"))
    else {
        return skip(NO_VENV);
    };
    let gateway = patient(engine, &app).start();
    client.args([&gateway.address.to_string(), "hold", "3"]);
    let mut child =
        client.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("the client runs");
    let mut said = BufReader::new(child.stdout.take().expect("piped")).lines();
    assert_eq!(said.next().expect("a line").expect("UTF-8"), "held");
    assert_eq!((gateway.port().active, app.counted().in_progress), (3, 3));
    child.stdin.take().expect("piped").write_all(b"\n").expect("it reads");
    assert_eq!(said.next().expect("a line").expect("UTF-8"), "done");
    assert!(child.wait().expect("our child").success());
    until("the slots are free", Duration::from_secs(5), || gateway.port().active == 0);
    assert_within_limit(&app);
    assert_settled(&gateway, app.port());
}
