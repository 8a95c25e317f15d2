//! P2, P3 per request: in order, no longer than promised, never for those who have left, never for those
//! whom the answer would reach too late.

use std::time::{Duration, Instant};

use crate::support::gateway::Gateway;
use crate::support::ledger::End;
use crate::support::{Engine, SOON, Stopwatch, engines, slack, until};

use super::client::{Answer, Http1, assert_refusal};
use super::http2::{self, Http2};
use super::oracle::HttpOracle;
use super::{assert_settled, gate, queued, refused};

engines!(
    first_come_first_served,
    whoever_left_is_never_forwarded,
    whoever_left_with_an_unread_body_is_never_forwarded,
    whoever_left_with_a_second_request_is_never_forwarded,
    a_half_closed_waiter_is_gone,
    an_http2_waiter_that_resets_is_never_forwarded,
    an_http2_connection_that_ends_takes_its_waiters_along,
    nobody_waits_longer_than_promised,
    a_deadline_that_has_no_room_is_refused_at_arrival,
    a_deadline_that_passes_in_the_queue,
    a_header_may_tell_the_deadline,
    a_missed_deadline_may_be_504,
    an_idle_connection_holds_no_slot,
    requests_on_one_connection_go_one_after_the_other,
);

/// One slot, taken by the client returned; room for 20 to wait.
fn occupied(engine: Engine, app: &HttpOracle) -> (Gateway, Http1) {
    occupied_with(engine, app, "queue-timeout", "60s")
}

fn occupied_with(engine: Engine, app: &HttpOracle, key: &str, value: &str) -> (Gateway, Http1) {
    let setup = gate(engine, app.address).set("limit", 1).set("queue-length", 20);
    let gateway = setup.set("queue-timeout", "60s").set(key, value).start();
    let first = Http1::asking(gateway.address, "/held");
    until("the slot is taken", SOON, || app.count() == 1);
    (gateway, first)
}

/// FIFO, over HTTP/1 and HTTP/2 alike.
fn first_come_first_served(engine: Engine) {
    let app = HttpOracle::start();
    let (gateway, mut first) = occupied(engine, &app);
    http2::block_on(async {
        let mut two = Http2::connect(gateway.address).await;
        let (mut ones, mut streams, mut order) = (Vec::new(), Vec::new(), vec![first.id]);
        for number in 0..10_u64 {
            if number % 2 == 0 {
                let client = Http1::asking(gateway.address, "/held");
                order.push(client.id);
                ones.push(client);
            } else {
                let id = (1_000_000 + number).to_string();
                order.push(1_000_000 + number);
                let headers = [("x-id", id.as_str())];
                let opened = two.open("GET", "/held", &headers, true).await;
                streams.push(opened.expect("a stream").0);
            }
            http2::until("it waits", SOON, || gateway.port().queued == number + 1).await;
        }
        app.release(11);
        for stream in streams {
            assert_eq!(http2::answer(stream).await.expect("an answer").status, 200);
        }
        assert_eq!(first.end(), End::Answered);
        for client in &mut ones {
            assert_eq!(client.end(), End::Answered);
        }
        assert_eq!(app.ids(), order);
    });
    drop(first);
    assert_eq!(app.peak(), 1);
    assert_settled(&gateway, app.address.port());
}

/// Each `leave` waits in the queue and leaves, with FIN and with RST; it is out within 50 ms, and only the
/// others reach the application.
fn never_forwarded(engine: Engine, leave: &[&dyn Fn(&mut Http1)]) {
    let app = HttpOracle::start();
    let (gateway, mut first) = occupied(engine, &app);
    let at_once = slack(Duration::from_millis(50));
    let mut gone = 0;
    let mut stays = Http1::asking(gateway.address, "/held");
    queued(&gateway, 1);
    for leave in leave {
        for reset in [false, true] {
            let mut client = Http1::connect(gateway.address);
            leave(&mut client);
            queued(&gateway, 2);
            if reset {
                client.reset();
            } else {
                drop(client);
            }
            until("it is out of the queue", at_once, || gateway.port().queued == 1);
            gone += 1;
        }
    }
    app.release(2);
    assert_eq!((first.end(), stays.end()), (End::Answered, End::Answered));
    assert_eq!(app.ids(), [first.id, stays.id], "those who left were not forwarded");
    assert_eq!(app.count(), 2, "{:?}", app.seen());
    refused(&gateway, "client_gone", gone);
    drop((first, stays));
    assert_settled(&gateway, app.address.port());
}

fn whoever_left_is_never_forwarded(engine: Engine) {
    never_forwarded(engine, &[&|client: &mut Http1| client.ask("/gone", "")]);
}

/// P2: hyper alone does not look for the client's end behind a body that nobody reads.
fn whoever_left_with_an_unread_body_is_never_forwarded(engine: Engine) {
    let post = |sent: usize, length: usize| {
        move |client: &mut Http1| {
            client.begin("POST", "/gone", &format!("Content-Length: {length}\r\n"));
            client.send(vec![b'x'; sent]);
        }
    };
    let chunked = |client: &mut Http1| {
        client.begin("POST", "/gone", "Transfer-Encoding: chunked\r\n");
        client.send("5\r\nhello\r\n");
    };
    let expecting = |client: &mut Http1| {
        client.begin("POST", "/gone", "Content-Length: 10\r\nExpect: 100-continue\r\n");
    };
    never_forwarded(
        engine,
        &[
            &post(0, 1_000),
            &post(500, 1_000),
            &post(1_000, 1_000),
            &post(20_000, 40_000),
            &chunked,
            &expecting,
        ],
    );
}

/// P2: nor behind a request that waits its turn.
fn whoever_left_with_a_second_request_is_never_forwarded(engine: Engine) {
    let pipelined = |client: &mut Http1| {
        client.ask("/gone", "");
        client.ask("/gone-too", "");
    };
    let with_body = |client: &mut Http1| {
        client.begin("POST", "/gone", "Content-Length: 5\r\n");
        client.send("hello");
        client.ask("/gone-too", "");
    };
    never_forwarded(engine, &[&pipelined, &with_body]);
}

/// `queued-half-close gone` is the default; `keep` keeps it.
fn a_half_closed_waiter_is_gone(engine: Engine) {
    let app = HttpOracle::start();
    let (gateway, mut first) = occupied(engine, &app);
    let waiter = Http1::asking(gateway.address, "/gone");
    queued(&gateway, 1);
    waiter.stream.shutdown(std::net::Shutdown::Write).expect("half-closes");
    until("it is out", slack(Duration::from_millis(50)), || gateway.port().queued == 0);
    refused(&gateway, "client_gone", 1);
    app.release(1);
    assert_eq!(first.end(), End::Answered);
    drop((first, waiter));
    assert_eq!(app.count(), 1);
    assert_settled(&gateway, app.address.port());

    let app = HttpOracle::start();
    let (gateway, mut first) = occupied_with(engine, &app, "queued-half-close", "keep");
    let mut waiter = Http1::asking(gateway.address, "/held");
    queued(&gateway, 1);
    waiter.stream.shutdown(std::net::Shutdown::Write).expect("half-closes");
    app.release(2);
    assert_eq!((first.end(), waiter.end()), (End::Answered, End::Answered));
}

/// RST_STREAM of a waiter, with its body unread and without.
fn an_http2_waiter_that_resets_is_never_forwarded(engine: Engine) {
    let app = HttpOracle::start();
    let (gateway, mut first) = occupied(engine, &app);
    let at_once = slack(Duration::from_millis(50));
    http2::block_on(async {
        let mut client = Http2::connect(gateway.address).await;
        let (stays, _) = client.open("GET", "/held", &[], true).await.expect("a stream");
        http2::until("it waits", SOON, || gateway.port().queued == 1).await;
        for end in [true, false] {
            let opened = client.open("POST", "/gone", &[], end).await;
            let (response, mut send) = opened.expect("a stream");
            if !end {
                send.send_data(vec![b'x'; 5_000].into(), false).expect("within the window");
            }
            http2::until("it waits", SOON, || gateway.port().queued == 2).await;
            send.send_reset(h2::Reason::CANCEL);
            drop(response);
            http2::until("it is out", at_once, || gateway.port().queued == 1).await;
        }
        app.release(2);
        assert_eq!(http2::answer(stays).await.expect("an answer").status, 200);
    });
    assert_eq!(first.end(), End::Answered);
    assert_eq!(app.count(), 2, "{:?}", app.seen());
    refused(&gateway, "client_gone", 2);
    drop(first);
    assert_settled(&gateway, app.address.port());
}

fn an_http2_connection_that_ends_takes_its_waiters_along(engine: Engine) {
    let app = HttpOracle::start();
    let (gateway, mut first) = occupied(engine, &app);
    http2::block_on(async {
        let mut client = Http2::connect(gateway.address).await;
        let mut waiting = Vec::new();
        for count in 1..=5 {
            waiting.push(client.open("GET", "/gone", &[], true).await.expect("a stream"));
            http2::until("it waits", SOON, || gateway.port().queued == count).await;
        }
    });
    until("all are out", slack(Duration::from_millis(50)), || gateway.port().queued == 0);
    app.release(1);
    assert_eq!(first.end(), End::Answered);
    assert_eq!(app.count(), 1);
    refused(&gateway, "client_gone", 5);
    drop(first);
    assert_settled(&gateway, app.address.port());
}

/// P3: refused after `queue-timeout`, and 10 ms.
fn nobody_waits_longer_than_promised(engine: Engine) {
    let app = HttpOracle::start();
    let (gateway, mut first) = occupied_with(engine, &app, "queue-timeout", "300ms");
    let asked = Stopwatch::start();
    let mut waiters: Vec<_> = (0..10).map(|_| Http1::asking(gateway.address, "/gone")).collect();
    for waiter in &mut waiters {
        let answer = waiter.answer().expect("an answer");
        assert_refusal(&answer, 503, "connection_limit_reached", "queue_timeout");
        let (waited, own) = (asked.elapsed(), asked.own());
        assert!(waited >= Duration::from_millis(295), "{waited:?}");
        assert!(own <= slack(Duration::from_millis(310)), "{waited:?}");
    }
    refused(&gateway, "queue_timeout", 10);
    app.release(1);
    assert_eq!(first.end(), End::Answered);
    assert_eq!(app.count(), 1);
    drop((first, waiters));
    assert_settled(&gateway, app.address.port());
}

/// A deadline of 0 cannot be met. One that can is let in while nobody waits, whatever the pace of late: what is
/// not let in teaches nothing of the pace.
fn a_deadline_that_has_no_room_is_refused_at_arrival(engine: Engine) {
    let app = HttpOracle::start();
    let gateway = gate(engine, app.address).set("limit", 1).set("queue-length", 5).start();
    http2::block_on(async {
        let mut client = Http2::connect(gateway.address).await;
        let grpc = |timeout| {
            [("content-type", "application/grpc"), ("te", "trailers"), ("grpc-timeout", timeout)]
        };
        let (response, _) = client.open("POST", "/call", &grpc("0m"), true).await.expect("one");
        let answer = http2::answer(response).await.expect("an answer");
        assert_eq!(answer.status, 200, "{answer:?}");
        assert_eq!(answer.header("grpc-status"), Some("4"), "DEADLINE_EXCEEDED: {answer:?}");
        assert_eq!(app.count(), 0);
        let (response, _) = client.open("POST", "/call", &grpc("5S"), true).await.expect("one");
        let answer = http2::answer(response).await.expect("an answer");
        assert_eq!(answer.trailers, [("grpc-status".to_owned(), "0".to_owned())], "{answer:?}");
    });
    refused(&gateway, "deadline_unmeetable", 1);
    assert!(app.seen()[0].header("grpc-timeout").is_some(), "it is passed on");
    assert_settled(&gateway, app.address.port());
}

/// At dequeue: whoever's deadline has passed meanwhile is not forwarded, and whoever comes after is.
fn a_deadline_that_passes_in_the_queue(engine: Engine) {
    let app = HttpOracle::start();
    let (gateway, mut first) = occupied(engine, &app);
    http2::block_on(async {
        let mut client = Http2::connect(gateway.address).await;
        let headers =
            [("content-type", "application/grpc"), ("te", "trailers"), ("grpc-timeout", "100m")];
        let (doomed, _) = client.open("POST", "/call", &headers, true).await.expect("a stream");
        http2::until("it waits, or was refused at once", SOON, || {
            gateway.port().queued == 1 || gateway.port().refused("deadline_unmeetable") == 1
        })
        .await;
        let asked = Instant::now(); // at the latest
        let (after, _) = client.open("GET", "/held", &[], true).await.expect("a stream");
        tokio::time::sleep_until((asked + Duration::from_millis(150)).into()).await; // the deadline passes
        app.release(2);
        let answer = http2::answer(doomed).await.expect("a refusal");
        assert_eq!(answer.header("grpc-status"), Some("4"), "DEADLINE_EXCEEDED: {answer:?}");
        assert_eq!(http2::answer(after).await.expect("an answer").status, 200);
    });
    assert_eq!(first.end(), End::Answered);
    assert_eq!(app.count(), 2, "{:?}", app.seen());
    refused(&gateway, "deadline_unmeetable", 1);
    drop(first);
    assert_settled(&gateway, app.address.port());
}

/// `deadline-header`: milliseconds.
fn a_header_may_tell_the_deadline(engine: Engine) {
    let app = HttpOracle::start();
    let (gateway, mut first) = occupied_with(engine, &app, "deadline-header", "x-deadline-ms");
    let mut doomed = Http1::connect(gateway.address);
    doomed.ask("/gone", "X-Deadline-Ms: 100\r\n");
    let mut roomy = Http1::connect(gateway.address);
    roomy.ask("/held", "X-Deadline-Ms: 600000\r\n");
    until("both wait, or the first was refused already", SOON, || {
        let port = gateway.port();
        port.queued + port.refused("deadline_unmeetable") == 2
    });
    let asked = Instant::now(); // at the latest
    std::thread::sleep(Duration::from_millis(150).saturating_sub(asked.elapsed())); // the deadline passes
    app.release(2);
    let answer = doomed.answer().expect("an answer");
    assert_eq!(answer.status, 503, "{answer:?}");
    let said = answer.header("proxy-status").unwrap_or_default();
    assert!(said.contains("details=\"deadline_unmeetable\""), "{answer:?}");
    assert_eq!((first.end(), roomy.end()), (End::Answered, End::Answered));
    assert_eq!(app.count(), 2);
    refused(&gateway, "deadline_unmeetable", 1);
    drop((first, doomed, roomy));
    assert_settled(&gateway, app.address.port());
}

/// `deadline-status 504`, set while it runs: at arrival and at dequeue, for HTTP/1 and HTTP/2. What has no room is told
/// as before, and gRPC in its own words.
fn a_missed_deadline_may_be_504(engine: Engine) {
    let app = HttpOracle::start();
    let (gateway, mut first) = occupied_with(engine, &app, "deadline-header", "x-deadline-ms");
    gateway.set("deadline-status", 504);
    let told = |answer: &Answer| {
        assert_eq!(answer.status, 504, "{answer:?}");
        let said = answer.header("proxy-status").unwrap_or_default();
        assert_eq!(
            said,
            "tidegate; error=connection_limit_reached; details=\"deadline_unmeetable\""
        );
        assert_eq!(answer.header("retry-after"), None, "its time is over: {answer:?}");
    };
    let mut one = Http1::connect(gateway.address);
    one.ask("/", "X-Deadline-Ms: 0\r\n");
    told(&one.answer().expect("an answer at arrival"));
    one.ask("/", "X-Deadline-Ms: 100\r\n");
    told(&one.answer().expect("an answer at dequeue"));
    http2::block_on(async {
        let mut two = Http2::connect(gateway.address).await;
        for patience in ["0", "100"] {
            let (response, _) =
                two.open("GET", "/", &[("x-deadline-ms", patience)], true).await.expect("a stream");
            told(&http2::answer(response).await.expect("an answer"));
        }
        let grpc =
            [("content-type", "application/grpc"), ("te", "trailers"), ("x-deadline-ms", "0")];
        let (response, _) = two.open("POST", "/call", &grpc, true).await.expect("a stream");
        let answer = http2::answer(response).await.expect("an answer");
        assert_eq!((answer.status, answer.header("grpc-status")), (200, Some("4")), "{answer:?}");
    });
    refused(&gateway, "deadline_unmeetable", 5);
    gateway.set("queue-length", 0);
    let answer = Http1::connect(gateway.address).get("/");
    assert_refusal(&answer, 503, "connection_limit_reached", "limit_reached");
    app.release(1);
    assert_eq!(first.end(), End::Answered);
    assert_eq!(app.count(), 1, "{:?}", app.seen());
    drop((first, one));
    assert_settled(&gateway, app.address.port());
}

/// The unit is the request: 50 idle connections and a limit of 1.
fn an_idle_connection_holds_no_slot(engine: Engine) {
    let app = HttpOracle::start();
    let gateway = gate(engine, app.address).set("limit", 1).set("queue-length", 0).start();
    let mut clients: Vec<_> = (0..50).map(|_| Http1::connect(gateway.address)).collect();
    for round in 0..3 {
        for client in &mut clients {
            assert_eq!(client.get("/").status, 200, "round {round}");
        }
    }
    assert_eq!(gateway.port().admitted, 150);
    assert_eq!(gateway.port().active, 0);
    drop(clients);
    assert_eq!(app.peak(), 1);
    assert_settled(&gateway, app.address.port());
}

/// Pipelining gains nobody a second slot, and keeps the order of the answers.
fn requests_on_one_connection_go_one_after_the_other(engine: Engine) {
    let app = HttpOracle::start();
    let gateway = gate(engine, app.address).set("limit", 10).start();
    let mut client = Http1::connect(gateway.address);
    let mut ids = Vec::new();
    for _ in 0..5 {
        client.ask("/work?ms=20", "");
        ids.push(client.id);
    }
    for id in &ids {
        let answer = client.answer().expect("an answer");
        assert_eq!(answer.header("x-id"), Some(id.to_string().as_str()));
    }
    assert_eq!((app.ids(), app.peak()), (ids, 1));
    drop(client);
    assert_settled(&gateway, app.address.port());
}
