//! P4: whoever was refused can be told why, with the numbers, by `tidegate explain`.

use std::net::IpAddr;
use std::process::{Command, Output};
use std::time::Duration;

use serde_json::Value;

use crate::http::client::Http1;
use crate::http::oracle::HttpOracle;
use crate::http::{gate, queued, refused};
use crate::support::gateway::{Gateway, Setup, binary};
use crate::support::ledger::{self, Client, End};
use crate::support::oracle::{Oracle, Script};
use crate::support::{Engine, SOON, engines, until};

engines!(
    a_refused_request_is_explained_with_its_numbers,
    each_reason_has_its_own_sentence,
    a_refused_connection_is_explained_by_its_number,
    whoever_chooses_the_id_hides_nothing,
);

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
        let log = gateway.log();
        let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let line = lines.into_iter().find(|line| line["reason"] == "limit_reached");
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
    assert_eq!(known_as(r"\xff\x80\x20\x22}{"), Some(1), "as it is shown");

    let output = explain(&gateway, &["no-such-id\u{1b}[31m"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("nothing is known of") && said.contains("was served"), "{said}");
    assert!(!said.contains('\u{1b}'), "{said:?}");
    app.release(1);
    assert_eq!(held.end(), End::Answered);
}
