//! P4: whoever was refused can be told why, with the numbers, by `tidegate explain`.

use std::net::IpAddr;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::http::client::Http1;
use crate::http::oracle::HttpOracle;
use crate::http::{gate, queued, refused};
use crate::support::collector::Sink;
use crate::support::gateway::{Gateway, Setup, binary};
use crate::support::ledger::{self, Client, End};
use crate::support::oracle::{Oracle, Script};
use crate::support::{Engine, SOON, engines, run, until};

engines!(
    a_refused_request_is_explained_with_its_numbers,
    each_reason_has_its_own_sentence,
    a_refused_connection_is_explained_by_its_number,
    whoever_chooses_the_id_hides_nothing,
    what_nobody_serves_is_written_down_too,
    a_head_that_came_to_nothing_is_written_down_too,
);

/// The lines of the access log.
fn access_log(gateway: &Gateway) -> Vec<Value> {
    let log = gateway.log();
    log.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

fn explain(gateway: &Gateway, arguments: &[&str]) -> Output {
    let mut command = Command::new(binary());
    command.arg("explain").args(arguments).arg("--control").arg(gateway.control());
    command.output().expect("the program runs")
}

#[track_caller]
fn text(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout.clone()).expect("UTF-8")
}

#[track_caller]
fn known(gateway: &Gateway, id: &str) -> Value {
    serde_json::from_str(&text(&explain(gateway, &[id, "--json"]))).expect("JSON")
}

/// By the id in the answer, over the read-only address; nothing of it on the faces for others.
fn a_refused_request_is_explained_with_its_numbers(engine: Engine) {
    let app = HttpOracle::start();
    let setup = gate(engine, app.address).set("limit", 1).set("queue-length", 1);
    let gateway = setup.set("queue-timeout", "60s").start();
    let nothing = text(&explain(&gateway, &[]));
    assert!(nothing.contains("nothing has been refused"), "{nothing}");
    let mut held: Vec<_> = (0..2).map(|_| Http1::asking(gateway.address, "/held")).collect();
    until("it is full", SOON, || gateway.port().queued == 1 && app.count() == 1);
    let mut client = Http1::connect(gateway.address);
    let answer = client.get("/some/path?token=secret");
    let id = answer.header("x-request-id").expect("every answer has one");

    let faces: Value = serde_json::from_str(&gateway.call("GET", "/status.json", "").body).unwrap();
    let face = |name: &str| faces[name].as_str().expect("an address").parse().expect("one");
    let over_admin = Http1::connect(face("admin")).get_from("localhost", &format!("/explain/{id}"));
    assert_eq!(over_admin.status, 200, "{}", over_admin.text());
    for other in ["probe", "metrics"] {
        let over = Http1::connect(face(other)).get_from("localhost", &format!("/explain/{id}"));
        assert_eq!(over.status, 404, "{other}");
    }

    let admin = face("admin").to_string();
    let output = Command::new(binary()).args(["explain", id, "--admin", &admin]).output();
    let said = text(&output.expect("the program runs"));
    let retry = answer.header("retry-after").expect("a refusal says when");
    let port = gateway.address.to_string();
    for words in [
        id,
        "GET /some/path)",
        "refused (queue_full)",
        &port,
        "1 of 1 slots were taken and 1 of 1 places in the queue",
        "told 503",
        &format!("come again after {retry} s"),
        "What to do:",
        "tidegate set limit.",
    ] {
        assert!(said.contains(words), "{words:?} is not in:\n{said}");
    }
    assert!(!said.contains("secret"), "a query is nobody's business:\n{said}");
    let known = known(&gateway, id);
    assert_eq!(known["client"], client.stream.local_addr().expect("connected").to_string());
    assert_eq!((&known["request"]["status"], &known["of_that_name"]), (&503.into(), &1.into()));
    let list = text(&explain(&gateway, &["--last", "5"]));
    assert!(list.lines().count() == 2 && list.contains(id), "{list}");
    app.release(2);
    for client in &mut held {
        assert_eq!(client.end(), End::Answered);
    }
}

/// Each of these is refused for another reason, and that is what is said.
fn each_reason_has_its_own_sentence(engine: Engine) {
    let app = HttpOracle::start();
    let gateway = gate(engine, app.address)
        .set("limit", 1)
        .set("queue-length", 4)
        .set("queue-timeout", "200ms")
        .set("per-client-limit", 3)
        .set("deadline-header", "x-patience")
        .start();
    let from = |host: u8, id: &str, more: &str| {
        let mut client = Http1::connect_from(IpAddr::from([127, 0, 0, host]), gateway.address);
        client.ask("/held", &format!("X-Request-Id: {id}\r\n{more}"));
        client
    };
    let mut held = from(2, "held", "");
    until("it is in", SOON, || app.in_progress() == 1);

    assert_eq!(from(3, "too-long", "").answer().expect("an answer").status, 503);
    let waited = known(&gateway, "too-long");
    assert_eq!(waited["reason"], "queue_timeout");
    assert!(waited["waited_seconds"].as_f64() >= Some(0.2), "{waited}");
    assert_eq!(waited["queue_timeout_seconds"], 0.2);

    gateway.set("queue-timeout", "60s");
    assert_eq!(from(3, "in-a-hurry", "X-Patience: 50\r\n").answer().expect("one").status, 503);
    let hurried = known(&gateway, "in-a-hurry");
    assert_eq!(
        (&hurried["reason"], &hurried["request"]["deadline_seconds"]),
        (&"deadline_unmeetable".into(), &0.05.into())
    );

    let mut waiting: Vec<_> = (0..3).map(|_| from(4, "waits", "")).collect();
    queued(&gateway, 3);
    assert_eq!(from(4, "too-many", "").answer().expect("an answer").status, 429);
    let many = known(&gateway, "too-many");
    assert_eq!(many["reason"], "per_client_limit");
    assert_eq!((&many["of_this_client"], &many["per_client_limit"]), (&3.into(), &3.into()));
    assert_eq!((&many["queued"], &many["queue_length"]), (&3.into(), &4.into()));

    let leaves = from(5, "leaves", "");
    queued(&gateway, 4);
    drop(leaves);
    refused(&gateway, "client_gone", 1);
    assert_eq!(known(&gateway, "leaves")["fault"], "client");

    app.release(4);
    assert_eq!(held.end(), End::Answered);
    for client in &mut waiting {
        assert_eq!(client.end(), End::Answered);
    }
    drop(app);
    assert_eq!(from(6, "alone", "").answer().expect("an answer").status, 502);
    let alone = known(&gateway, "alone");
    assert_eq!(
        (&alone["reason"], &alone["fault"]),
        (&"upstream_refused".into(), &"application".into())
    );
}

/// A connection has no id of its own; its number is in the log line.
fn a_refused_connection_is_explained_by_its_number(engine: Engine) {
    let oracle = Oracle::start(Script::Held);
    let gateway = Setup::new(engine, oracle.address)
        .set("limit", 1)
        .set("queue-length", 0)
        .set("log-level", "debug")
        .set("log-format", "json")
        .start();
    let mut inside = Client::asking(gateway.address, Duration::ZERO);
    until("one is in", SOON, || oracle.count() == 1);
    assert_eq!(ledger::exchange(gateway.address, Duration::ZERO, SOON), End::Refused);
    let mut number = None;
    until("its line", SOON, || {
        let lines = access_log(&gateway);
        let line = lines.iter().find(|line| line["reason"] == "limit_reached");
        number = line.and_then(|line| line["connection"].as_u64());
        number.is_some()
    });
    let number = number.expect("just seen").to_string();
    let said = text(&explain(&gateway, &[&number]));
    for words in ["Connection ", &number, "refused (limit_reached)", "1 of 1 slots", "tcp-refuse"] {
        assert!(said.contains(words), "{words:?} is not in:\n{said}");
    }
    assert!(known(&gateway, &number)["request"].is_null());
    oracle.release(1);
    assert_eq!(inside.end(), End::Answered);
    gateway.assert_clean();
}

/// Ids that are not unique, not text, or not there.
fn whoever_chooses_the_id_hides_nothing(engine: Engine) {
    let app = HttpOracle::start();
    let gateway = gate(engine, app.address).set("limit", 1).set("queue-length", 0).start();
    let mut held = Http1::asking(gateway.address, "/held");
    until("it is full", SOON, || app.in_progress() == 1);
    let mut client = Http1::connect(gateway.address);
    let mut ask = |id: &[u8]| {
        client.send(b"GET / HTTP/1.1\r\nHost: app\r\nX-Request-Id: ");
        client.send(id);
        client.send(b"\r\n\r\n");
        assert_eq!(client.answer().expect("an answer").status, 503);
    };
    for _ in 0..3 {
        ask(b"the/same?id #1");
    }
    ask("x".repeat(1000).as_bytes());
    ask(b"\xff\x80 \"}{");
    let known_as = |id: &str| known(&gateway, id)["of_that_name"].as_u64();
    assert_eq!(known_as("the/same?id #1"), Some(3));
    let said = text(&explain(&gateway, &["the/same?id #1"]));
    assert!(said.contains("There are 3 of that name"), "{said}");
    assert_eq!(known_as(&"x".repeat(1000)), Some(1));
    assert_eq!(known_as(&"x".repeat(100_000)), Some(1), "as much as is kept is the same");
    assert_eq!(known_as(r"\xff\x80\x20\x22}{"), Some(1), "as it is shown");

    let output = explain(&gateway, &["no-such-id\u{1b}[31m"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("nothing is known of") && said.contains("was served"), "{said}");
    assert!(!said.contains('\u{1b}'), "{said:?}");
    app.release(1);
    assert_eq!(held.end(), End::Answered);
}

/// What is answered before it asks for a slot: in the journal, the access log, the metrics and, the first of a
/// second, in a trace; and it is nobody who was turned away.
fn what_nobody_serves_is_written_down_too(engine: Engine) {
    let (app, sink) = (HttpOracle::start(), Sink::start());
    let gateway = gate(engine, app.address)
        .set("limit", 1)
        .set("access-log", "on")
        .set("trace-sampling", 0)
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://{}", sink.address))
        .env("OTEL_BSP_SCHEDULE_DELAY", 20)
        .start();
    let heads = [
        ("two-hosts", "GET /a?secret=1 HTTP/1.1\r\nHost: a\r\nHost: b\r\n", 400, "one Host header"),
        ("no-host", "GET /a HTTP/1.1\r\n", 400, "one Host header"),
        ("elsewhere", "CONNECT other.example:443 HTTP/1.1\r\nHost: a\r\n", 405, "another host"),
    ];
    for (id, head, status, words) in heads {
        let mut client = Http1::connect(gateway.address);
        client.send(format!("{head}X-Request-Id: {id}\r\n\r\n").as_bytes());
        assert_eq!(client.answer().expect("an answer").status, status, "{id}");
        let known = known(&gateway, id);
        assert_eq!((&known["reason"], &known["fault"]), (&"not_served".into(), &"client".into()));
        assert_eq!(known["request"]["status"], status);
        let said = text(&explain(&gateway, &[id]));
        assert!(said.contains(words) && !said.contains("secret"), "{said}");
        let told = format!("told {status}");
        assert!(said.contains(&told) && !said.contains("raise the limit"), "{said}");
    }
    refused(&gateway, "not_served", heads.len() as u64);
    assert_eq!(gateway.metric("tidegate_requests_total", "not_served"), heads.len() as f64);
    assert_eq!(gateway.metric("tidegate_admission_decisions_total", ""), 0.0, "nobody asked");
    let list = text(&explain(&gateway, &[]));
    assert!(list.contains("nothing has been refused"), "{list}");
    let spans = sink.wait_for("one", |spans| !spans.is_empty());
    let span = &spans[0];
    assert_eq!(span.get("tidegate.reason"), Some("not_served"), "{span:#?}");
    assert_eq!(span.get("http.response.status_code"), Some("400"), "{span:#?}");
    assert!(!span.failed, "what a client did to itself is no error of ours: {span:#?}");
    until("its line", SOON, || {
        let lines = access_log(&gateway);
        heads.iter().all(|(id, _, status, _)| {
            let line = lines.iter().find(|line| line["request_id"] == *id);
            line.is_some_and(|l| l["reason"] == "not_served" && l["status"] == *status)
        })
    });
    assert_eq!(app.count(), 0);
    until("nobody is left", SOON, || gateway.status().connections == 0);
    gateway.assert_clean();
}

/// What never became a request, because its head is wrong, too long or too slow: the same, by the number of its
/// connection. Also when requests were served on that before.
fn a_head_that_came_to_nothing_is_written_down_too(engine: Engine) {
    let (app, sink) = (HttpOracle::start(), Sink::start());
    let gateway = gate(engine, app.address)
        .set("limit", 1)
        .set("access-log", "on")
        .set("max-header-bytes", 200_000)
        .set("trace-sampling", 0)
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://{}", sink.address))
        .env("OTEL_BSP_SCHEDULE_DELAY", 20)
        .start();
    let wrong = "GET /wrong?secret=1 HTTP/1.1\r\nHost: a\r\nBad Field: x\r\n\r\n".to_owned();
    let long_path = format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "x".repeat(100_000));
    // Twice what is allowed: more than hyper reads in one go.
    let long = format!("GET /long HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "x".repeat(400_000));
    let slow = "GET /slow HTTP/1.1\r\nHost: a\r\n".to_owned();
    let heads = [
        (wrong, 400, "/wrong", "cannot be read as HTTP/1.1"),
        (long_path, 414, "*", "path is longer"),
        (long, 431, "/long", "max-header-bytes"),
        (slow, 408, "/slow", "header-timeout"),
    ];
    for (count, (head, status, path, words)) in (1..).zip(&heads) {
        if *status == 408 {
            gateway.set("header-timeout", "300ms");
        }
        let mut client = gateway.paused(|| Http1::asking(gateway.address, "/"));
        assert_eq!(client.answer().expect("an answer").status, 200);
        let sent = Instant::now();
        client.send(head.as_bytes());
        assert_eq!(client.answer().expect("an answer").status, *status);
        assert!(client.closed(), "{status}");
        let mut line = Value::Null;
        until("its line", SOON, || {
            let mut lines = access_log(&gateway);
            lines.retain(|line| line["reason"] == "not_served");
            line = lines.last().cloned().unwrap_or_default();
            lines.len() == count
        });
        assert_eq!((&line["status"], &line["path"]), (&Value::from(*status), &Value::from(*path)));
        assert_eq!(line["request_id"], "", "{line}");
        let number = line["connection"].to_string();
        let known = known(&gateway, &number);
        assert_eq!((&known["reason"], &known["fault"]), (&"not_served".into(), &"client".into()));
        assert_eq!(known["request"]["status"], *status);
        let said = text(&explain(&gateway, &[&number]));
        assert!(said.contains(words) && said.contains(&format!("told {status}")), "{said}");
        assert!(!said.contains("secret") && !said.contains("  "), "{said}");
        let lasted = known["lasted_seconds"].as_f64().expect("a number");
        assert!(lasted <= sent.elapsed().as_secs_f64(), "since its first byte: {known}");
        assert!(*status != 408 || lasted >= 0.3, "since its first byte: {known}");
    }
    refused(&gateway, "not_served", heads.len() as u64);
    assert_eq!(gateway.metric("tidegate_requests_total", "not_served"), heads.len() as f64);
    assert_eq!(gateway.metric("tidegate_requests_total", "outcome=\"served\""), heads.len() as f64);
    let spans = sink.wait_for("one", |spans| !spans.is_empty());
    let span = &spans[0];
    assert_eq!(span.get("tidegate.reason"), Some("not_served"), "{span:#?}");
    assert_eq!(span.get("http.response.status_code"), Some("400"), "{span:#?}");
    assert_eq!((span.get("url.path"), span.failed), (Some("/wrong"), false), "{span:#?}");
    assert_eq!(app.count(), heads.len());
    until("nobody is left", SOON, || {
        gateway.status().connections == 0 && gateway.port().active == 0
    });
}

/// While nothing has been pushed out, nobody is told that it may have been.
#[test]
fn what_is_not_known_is_not_too_old_unless_something_is_gone() {
    run(Engine::Epoll, |engine| {
        let app = HttpOracle::start();
        let gateway = gate(engine, app.address).set("limit", 1).set("queue-length", 0).start();
        let unknown = || {
            let output = explain(&gateway, &["no-such-id"]);
            assert_eq!(output.status.code(), Some(1), "{output:?}");
            String::from_utf8_lossy(&output.stderr).into_owned()
        };
        let (fresh, old) = ("nothing has been refused or broken off here", "it came more than ");
        let said = unknown();
        assert!(said.contains(fresh) && !said.contains(old), "{said}");
        let mut held = Http1::asking(gateway.address, "/held");
        until("it is full", SOON, || app.in_progress() == 1);
        let mut client = Http1::connect(gateway.address);
        assert_eq!(client.get("/").status, 503);
        let said = unknown();
        assert!(said.contains("is still here") && !said.contains(old), "{said}");
        // More than are kept.
        for _ in 0..8192 {
            assert_eq!(client.get("/").status, 503);
        }
        let said = unknown();
        assert!(said.contains(old) && !said.contains("all that was refused"), "{said}");
        app.release(1);
        assert_eq!(held.end(), End::Answered);
    });
}
