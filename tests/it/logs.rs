//! Logs: what is said of requests and connections that are over; who reads too slowly stops nobody (P8), and
//! nothing a client sends says anything in our name.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::http::client::Http1;
use crate::http::gate;
use crate::http::http2::{self, Http2};
use crate::http::oracle::HttpOracle;
use crate::support::gateway::{Gateway, Setup};
use crate::support::ledger::{self, End};
use crate::support::oracle::{Oracle, Script};
use crate::support::{Engine, SOON, engines, until};

engines!(
    the_access_log_has_a_line_for_every_request,
    the_access_log_has_a_line_for_every_connection,
    a_stuck_reader_of_the_access_log_holds_nobody_up,
    a_line_a_second_and_class_and_the_rest_is_counted,
    no_client_forges_a_line,
);

/// The lines of the access log so far: the log itself is text in these tests.
fn lines(gateway: &Gateway) -> Vec<Value> {
    let log = gateway.log();
    // The last line may be on its way.
    let whole = log.rfind('\n').map_or("", |end| &log[..end]);
    let lines = whole.lines().filter(|line| line.starts_with('{'));
    lines.map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"))).collect()
}

/// The line of one request, once it is there.
#[track_caller]
fn line(gateway: &Gateway, id: &str) -> Value {
    let mut found = Vec::new();
    until("its line", SOON, || {
        found = lines(gateway);
        found.retain(|line| line["request_id"] == id);
        !found.is_empty()
    });
    assert_eq!(found.len(), 1, "one line for one request: {found:?}");
    found.swap_remove(0)
}

/// Off by default; on for connections that are open already; without queries, unless they are wanted.
fn the_access_log_has_a_line_for_every_request(engine: Engine) {
    const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
    let app = HttpOracle::start();
    let gateway = gate(engine, app.address).set("limit", 1).set("queue-length", 1).start();
    let named = |id: &str| format!("X-Request-Id: {id}\r\n");
    let mut client = Http1::connect(gateway.address);
    client.ask("/", &named("before"));
    assert_eq!(client.end(), End::Answered);
    gateway.set("access-log", "on");

    let traced = format!("{}traceparent: 00-{TRACE}-b7ad6b7169203331-01\r\n", named("posted"));
    client.begin("POST", "/up?token=secret", &format!("{traced}Content-Length: 1000\r\n"));
    client.send(crate::support::pattern::slice(0, 1000));
    assert_eq!(client.answer().expect("an answer").text(), "1000 intact");
    let posted = line(&gateway, "posted");
    for (key, value) in [
        ("method", "POST"),
        ("path", "/up"),
        ("protocol", "HTTP/1.1"),
        ("outcome", "served"),
        ("trace_id", TRACE),
        ("port", &gateway.address.to_string()),
        ("client", &client.stream.local_addr().expect("connected").to_string()),
    ] {
        assert_eq!(posted[key], value, "{key} of {posted}");
    }
    assert_eq!((&posted["status"], &posted["reason"]), (&200.into(), &Value::Null), "{posted}");
    assert_eq!((&posted["bytes_in"], &posted["bytes_out"]), (&1000.into(), &11.into()), "{posted}");
    assert!(!gateway.log().contains("secret"), "queries are not asked for");

    // One inside, one waits and is served, one is refused, one leaves.
    client.ask("/held", &named("held"));
    until("it is in", SOON, || app.in_progress() == 1);
    let mut waits = Http1::connect(gateway.address);
    waits.ask("/work?ms=1", &named("waits"));
    until("it waits", SOON, || gateway.port().queued == 1);
    let mut late = Http1::connect(gateway.address);
    late.ask("/", &named("late"));
    assert_eq!(late.answer().expect("an answer").status, 503);
    let refused = line(&gateway, "late");
    assert_eq!((&refused["status"], &refused["reason"]), (&503.into(), &"queue_full".into()));
    app.release(1);
    assert_eq!((client.end(), waits.end()), (End::Answered, End::Answered));
    let waited = line(&gateway, "waits");
    assert!(
        waited["wait"].as_f64() > Some(0.0)
            && waited["duration"].as_f64() >= waited["wait"].as_f64(),
        "{waited}"
    );
    assert_eq!(line(&gateway, "held")["wait"], 0.0);

    let mut leaves = Http1::connect(gateway.address);
    leaves.ask("/held", &named("leaves"));
    until("it is in", SOON, || app.in_progress() == 1);
    drop(leaves);
    app.release(1);
    let left = line(&gateway, "leaves");
    assert_eq!(
        (&left["status"], &left["outcome"]),
        (&499.into(), &"client_reset".into()),
        "{left}"
    );

    // What is never offered to the gate has a line too; so has a tunnel, with its bytes.
    client.send("GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\nX-Request-Id: two-hosts\r\n\r\n");
    assert_eq!(client.answer().expect("an answer").status, 400);
    let two_hosts = line(&gateway, "two-hosts");
    assert_eq!(
        (&two_hosts["outcome"], &two_hosts["reason"], &two_hosts["status"]),
        (&"refused".into(), &"not_served".into(), &400.into())
    );
    let mut tunnel = Http1::connect(gateway.address);
    tunnel.ask("/tunnel", &format!("{}Connection: upgrade\r\nUpgrade: echo\r\n", named("tunnel")));
    assert_eq!(tunnel.answer().expect("an answer").status, 101);
    tunnel.send("hello");
    assert_eq!(tunnel.raw(5).expect("an echo"), b"hello");
    drop(tunnel);
    let tunnel = line(&gateway, "tunnel");
    assert_eq!(
        (&tunnel["status"], &tunnel["bytes_in"], &tunnel["bytes_out"]),
        (&101.into(), &5.into(), &5.into())
    );

    gateway.set("access-log", "with-query");
    http2::block_on(async {
        let mut client = Http2::connect(gateway.address).await;
        let (answer, _) = client
            .open("GET", "/down?n=70000", &[("x-request-id", "two")], true)
            .await
            .expect("a stream");
        assert_eq!(http2::answer(answer).await.expect("an answer").body.len(), 70_000);
    });
    let two = line(&gateway, "two");
    assert_eq!((&two["protocol"], &two["query"]), (&"HTTP/2".into(), &"n=70000".into()), "{two}");
    assert_eq!(two["bytes_out"], 70_000, "{two}");

    gateway.set("access-log", "off");
    let count = lines(&gateway).len();
    let mut client = Http1::connect(gateway.address);
    client.ask("/", &named("after"));
    assert_eq!(client.end(), End::Answered);
    // A line that was wanted, after one that was not.
    gateway.set("access-log", "on");
    client.ask("/", &named("last"));
    assert_eq!(client.end(), End::Answered);
    line(&gateway, "last");
    let all = lines(&gateway);
    assert_eq!(all.len(), count + 1, "{all:?}");
    assert!(!gateway.log().contains("before"), "off by default");
}

/// On TCP ports the unit is the connection.
fn the_access_log_has_a_line_for_every_connection(engine: Engine) {
    let oracle = Oracle::start(Script::Work);
    let setup = Setup::new(engine, oracle.address).set("limit", 1).set("queue-length", 1);
    let gateway = setup.set("access-log", "on").start();
    let ledger = ledger::closed_loop(4, 40, |_, _| {
        ledger::exchange(gateway.address, Duration::from_millis(5), SOON)
    });
    until("all have a line", SOON, || lines(&gateway).len() == 40);
    let lines = lines(&gateway);
    let with =
        |outcome: &str| lines.iter().filter(|line| line["outcome"] == outcome).count() as u64;
    assert_eq!(with("served"), ledger.of(End::Answered), "{ledger:?}");
    assert_eq!(with("refused"), ledger.of(End::Refused), "{ledger:?}");
    for line in lines {
        let served = line["outcome"] == "served";
        let bytes = if served { [16, 8] } else { [0, 0] };
        assert_eq!([&line["bytes_in"], &line["bytes_out"]], bytes, "{line}");
        assert_eq!((&line["protocol"], line.get("path")), (&"tcp".into(), None));
    }
}

/// P8: stdout is a pipe that nobody reads.
fn a_stuck_reader_of_the_access_log_holds_nobody_up(engine: Engine) {
    let dir = tempfile::tempdir().expect("a directory");
    let pipe = dir.path().join("pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().expect("coreutils").success());
    let nonblocking = rustix::fs::OFlags::NONBLOCK.bits() as i32;
    let reader =
        OpenOptions::new().read(true).custom_flags(nonblocking).open(&pipe).expect("opens");
    let app = HttpOracle::start();
    let gateway = gate(engine, app.address)
        .set("access-log", "on")
        .through(&["sh", "-c", "exec \"$@\" >\"$0\"", pipe.to_str().expect("UTF-8")])
        .start();
    let dropped = || gateway.metric("tidegate_log_lines_dropped_total", "access");
    let mut client = Http1::connect(gateway.address);
    let mut sent = 0;
    while dropped() == 0.0 {
        for _ in 0..500 {
            assert_eq!(client.get("/").status, 200, "after {sent}");
        }
        sent += 500;
        assert!(sent < 50_000, "a queue that is not bounded");
    }
    assert_eq!(gateway.port().outcome("served"), sent);
    drop(reader);
}

/// 200 refusals: each is in a line or counted by one, and the level changes live.
fn a_line_a_second_and_class_and_the_rest_is_counted(engine: Engine) {
    let app = HttpOracle::start();
    let setup = gate(engine, app.address).set("limit", 1).set("queue-length", 0);
    let gateway = setup.set("log-format", "json").start();
    let mut held = Http1::asking(gateway.address, "/held");
    until("it is full", SOON, || app.in_progress() == 1);
    let mut client = Http1::connect(gateway.address);
    assert_eq!(client.get("/").status, 503);
    assert!(!gateway.log().contains("limit_reached"), "not at info");
    gateway.set("log-level", "debug");
    // That second of the one before is over.
    until("a line", SOON, || {
        assert_eq!(client.get("/").status, 503);
        gateway.log().contains("limit_reached")
    });
    let told = |gateway: &Gateway| {
        let all = lines(gateway);
        let told = all.iter().filter(|line| line["reason"] == "limit_reached");
        let (mut own, mut suppressed) = (0, 0);
        for line in told {
            own += u64::from(line["message"] == "request ended");
            suppressed += line["suppressed"].as_u64().unwrap_or(0);
        }
        (own, suppressed)
    };
    let before = gateway.port().refused("limit_reached");
    let (own, suppressed) = told(&gateway);
    let start = std::time::Instant::now();
    for _ in 0..200 {
        assert_eq!(client.get("/").status, 503);
    }
    let seconds = start.elapsed().as_secs() + 2;
    let refused = gateway.port().refused("limit_reached") - before;
    assert_eq!(refused, 200);
    // One line may have opened the second in which the first of these came, and owes some of before.
    until("all have been told", SOON, || {
        let now = told(&gateway);
        now.0 - own + now.1 - suppressed >= 200
    });
    let (now, _) = told(&gateway);
    assert!(now - own <= seconds, "{} lines in {seconds} s", now - own);
    gateway.set("log-level", "info");
    let length = gateway.log().len();
    assert_eq!(client.get("/").status, 503);
    app.release(1);
    assert_eq!(held.end(), End::Answered);
    let log = gateway.log();
    assert!(!log[length.min(log.len())..].contains("request ended"), "{log}");
}

/// Bytes that end lines, move cursors or close quotes, where a client can put them.
fn no_client_forges_a_line(engine: Engine) {
    let app = HttpOracle::start();
    let setup = gate(engine, app.address).set("limit", 1).set("queue-length", 0);
    let gateway = setup.set("log-level", "debug").set("access-log", "with-query").start();
    let mut held = Http1::asking(gateway.address, "/held");
    until("it is full", SOON, || app.in_progress() == 1);
    let nasty: [&[u8]; 8] = [
        b"\"},{\"outcome\":\"served",
        b"x outcome=\"served\" level=ERROR",
        b"\xe2\x80\xa8\xe2\x80\xae\xc2\x85\xc2\x9b31m",
        b"\xff\xfe\x9b",
        b"\t{\"time\":1}",
        b"\x1b[2J\x1b[31m",
        b"a\nINFO tidegate: all is well",
        b"\x00\x7f",
    ];
    for (bytes, number) in nasty.into_iter().zip(1..) {
        // hyper turns some of these away by itself; none is dropped silently.
        for place in ["path", "id", "method"] {
            let mut client = Http1::connect(gateway.address);
            let path: Vec<u8> = [&b"/"[..], if place == "path" { bytes } else { b"" }].concat();
            let id = if place == "id" { bytes } else { b"plain" };
            let method = if place == "method" { bytes } else { b"GET" };
            let head =
                [method, b" ", &path, b" HTTP/1.1\r\nHost: app\r\nX-Request-Id: ", id, b"\r\n\r\n"];
            let _ = client.stream.write_all(&head.concat());
            if let Ok(answer) = client.answer() {
                assert!(matches!(answer.status, 400..=599), "{number} in {place}: {answer:?}");
            }
        }
    }
    app.release(1);
    assert_eq!(held.end(), End::Answered);
    let count = gateway.port().refused("limit_reached");
    assert!(count >= 3, "hyper lets some through: {count}");
    until("all have a line", SOON, || {
        lines(&gateway).iter().filter(|line| line["reason"] == "limit_reached").count() as u64
            == count
    });
    let served = || lines(&gateway).iter().filter(|line| line["outcome"] == "served").count();
    until("what was held has a line", SOON, || served() > 0);
    for line in gateway.log().split('\n').filter(|line| !line.is_empty()) {
        assert!(
            !line.contains(|c: char| c.is_control() || "\u{2028}\u{202e}".contains(c)),
            "{line:?}"
        );
        let ours = line.starts_with("{\"time\":\"20") || line.starts_with("20");
        assert!(ours, "{line:?}");
    }
    assert_eq!(served(), 1, "only what was held");
}
