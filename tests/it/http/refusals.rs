//! P4: what can be chosen of what is told; too many connections; and those who still wait when a drain is over.

use std::io::{Read, Write};
use std::net::TcpStream;

use crate::support::gateway::{Gateway, Setup};
use crate::support::ledger::End;
use crate::support::{Engine, SOON, engines, until};

use super::client::{Http1, assert_refusal};
use super::http2::{self, Http2};
use super::oracle::HttpOracle;
use super::{assert_settled, gate, queued, refused};

engines!(beside:
    grpc_may_be_told_resource_exhausted,
    each_cause_has_its_status_of_grpc,
    http2_streams_may_be_refused,
    too_many_connections_are_told_so,
    whoever_says_nothing_is_not_heard_for_long,
    who_waits_at_the_end_of_a_drain_is_told_so,
);

const GRPC: [(&str, &str); 2] = [("content-type", "application/grpc"), ("te", "trailers")];

/// One slot, taken by the client returned; nobody waits.
fn full(setup: Setup, app: &HttpOracle) -> (Gateway, Http1) {
    let gateway = setup.set("limit", 1).set("queue-length", 0).start();
    let held = Http1::asking(gateway.address, "/held");
    until("the slot is taken", SOON, || app.in_progress() == 1);
    (gateway, held)
}

async fn grpc(client: &mut Http2) -> Option<String> {
    let (response, _) = client.open("POST", "/call", &GRPC, true).await.expect("a stream");
    let answer = http2::answer(response).await.expect("an answer");
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.header("grpc-status").map(str::to_owned)
}

/// `grpc-refuse-status`: for want of room alone.
fn grpc_may_be_told_resource_exhausted(engine: Engine) {
    let app = HttpOracle::start();
    let setup = gate(engine, app.address).set("grpc-refuse-status", "resource-exhausted");
    let (gateway, mut held) = full(setup, &app);
    http2::block_on(async {
        let mut client = Http2::connect(gateway.address).await;
        assert_eq!(grpc(&mut client).await.as_deref(), Some("8"));
        gateway.set("grpc-refuse-status", "unavailable"); // for connections from now on
        let mut client = Http2::connect(gateway.address).await;
        assert_eq!(grpc(&mut client).await.as_deref(), Some("14"));
    });
    app.release(1);
    assert_eq!(held.end(), End::Answered);
    drop(held);
    assert_settled(&gateway, app.address.port());
}

/// A client beyond its share: RESOURCE_EXHAUSTED. An application that is down: UNAVAILABLE.
fn each_cause_has_its_status_of_grpc(engine: Engine) {
    let app = HttpOracle::start();
    let setup = gate(engine, app.address).set("limit", 4).set("per-client-limit", 1);
    let gateway = setup.start();
    let mut held = Http1::asking(gateway.address, "/held");
    until("it is in", SOON, || app.in_progress() == 1);
    http2::block_on(async {
        let mut client = Http2::connect(gateway.address).await;
        assert_eq!(grpc(&mut client).await.as_deref(), Some("8"));
        app.release(1);
        assert_eq!(held.end(), End::Answered);
        http2::until("it is over", SOON, || gateway.port().active == 0).await;
        drop(app);
        assert_eq!(grpc(&mut client).await.as_deref(), Some("14"));
    });
    refused(&gateway, "per_client_limit", 1);
    refused(&gateway, "upstream_refused", 1);
}

/// `http2-refuse=reset`: REFUSED_STREAM, whatever was asked, where it may be asked again; the connection and its
/// other streams go on. Over HTTP/1 it is the answer.
fn http2_streams_may_be_refused(engine: Engine) {
    let app = HttpOracle::start();
    let (gateway, mut held) = full(gate(engine, app.address).set("http2-refuse", "reset"), &app);
    http2::block_on(async {
        let mut client = Http2::connect(gateway.address).await;
        for headers in [&[][..], &GRPC[..]] {
            for end in [true, false] {
                let opened = client.open("POST", "/up", headers, end).await;
                let error = http2::answer(opened.expect("a stream").0).await.expect_err("refused");
                assert_eq!(error.reason(), Some(h2::Reason::REFUSED_STREAM), "{error}");
            }
        }
        let late =
            [("content-type", "application/grpc"), ("te", "trailers"), ("grpc-timeout", "0m")];
        let (response, _) = client.open("POST", "/call", &late, true).await.expect("a stream");
        let answer = http2::answer(response).await.expect("it is not to come again");
        assert_eq!(answer.header("grpc-status"), Some("4"), "{answer:?}");
        let answer = Http1::connect(gateway.address).get("/");
        assert_refusal(&answer, 503, "connection_limit_reached", "limit_reached");
        app.release(1);
        assert_eq!(held.end(), End::Answered);
        http2::until("there is room", SOON, || gateway.port().active == 0).await;
        assert_eq!(client.get("/").await.status, 200);
    });
    refused(&gateway, "limit_reached", 5);
    assert_eq!(app.count(), 2);
    drop(held);
    assert_settled(&gateway, app.address.port());
}

/// The gateway holds as many connections as it may: those beyond are told so, in their own language, and closed;
/// what the first few have sent is read, so that no reset overtakes the answer.
fn too_many_connections_are_told_so(engine: Engine) {
    for protocol in ["http", "auto"] {
        let app = HttpOracle::start();
        let setup = gate(engine, app.address).set("protocol", protocol).set("limit", 8);
        let gateway = setup.set("max-connections", 8).start();
        let mut held: Vec<_> = (0..8)
            .map(|count| {
                let client = Http1::asking(gateway.address, "/held");
                until("it is in", SOON, || app.in_progress() == count + 1);
                client
            })
            .collect();
        for _ in 0..10 {
            let mut client = Http1::connect(gateway.address);
            client.begin("POST", "/up", "Content-Length: 40000\r\n");
            client.send(vec![b'x'; 40_000]);
            let answer = client.answer().expect("an answer");
            assert_refusal(&answer, 503, "connection_limit_reached", "max_connections");
            assert_eq!(answer.header("connection"), Some("close"), "{answer:?}");
            assert!(client.closed());
            drop(client);
            until("there is room for the next", SOON, || gateway.status().connections == 8);
        }
        http2::block_on(async {
            let mut client = Http2::connect(gateway.address).await;
            assert_eq!(grpc(&mut client).await.as_deref(), Some("14"));
            drop(client);
            let settled = || gateway.status().connections == 8;
            http2::until("there is room for the next", SOON, settled).await;
            let mut client = Http2::connect(gateway.address).await;
            let answer = client.get("/").await;
            assert_refusal(&answer, 503, "connection_limit_reached", "max_connections");
        });
        refused(&gateway, "max_connections", 12);
        until("they are gone", SOON, || gateway.status().connections == 8);
        app.release(8);
        for client in &mut held {
            assert_eq!(client.end(), End::Answered);
        }
        drop(held);
        assert_eq!(app.count(), 8, "the application heard nothing of them");
        assert_settled(&gateway, app.address.port());
    }
}

/// One of eight is heard at a time, and none for long: the others, and who speaks no HTTP, see the end.
fn whoever_says_nothing_is_not_heard_for_long(engine: Engine) {
    let app = HttpOracle::start();
    let setup = gate(engine, app.address).set("limit", 8).set("max-connections", 8);
    let gateway = setup.start();
    let mut held: Vec<_> = (0..8).map(|_| Http1::asking(gateway.address, "/held")).collect();
    until("all are in", SOON, || app.in_progress() == 8);
    let connect = || {
        let stream = TcpStream::connect(gateway.address).expect("it listens");
        stream.set_read_timeout(Some(SOON)).expect("not zero");
        stream
    };
    let mut silent: Vec<_> = (0..20).map(|_| connect()).collect();
    refused(&gateway, "max_connections", 20);
    for stream in &mut silent {
        assert_eq!(stream.read(&mut [0]).expect("the end"), 0);
    }
    until("they are gone", SOON, || gateway.status().connections == 8);
    let mut stalls = connect();
    stalls.write_all(b"GET / HTT").expect("writes");
    until("it is gone", SOON, || matches!(stalls.read(&mut [0]), Ok(0) | Err(_)));
    until("nobody else is left", SOON, || gateway.status().connections == 8);
    app.release(8);
    for client in &mut held {
        assert_eq!(client.end(), End::Answered);
    }
    drop(held);
    assert_settled(&gateway, app.address.port());
}

/// Those who still wait when the time of a drain is over are told that it is, over HTTP/1, HTTP/2 and gRPC.
fn who_waits_at_the_end_of_a_drain_is_told_so(engine: Engine) {
    let app = HttpOracle::start();
    let setup = gate(engine, app.address).set("limit", 1).set("queue-length", 20);
    let setup = setup.set("queue-timeout", "60s").set("drain-delay", "0s");
    let mut gateway = setup.set("drain-timeout", "1s").set("grace", "40s").start();
    let held = Http1::asking(gateway.address, "/never");
    until("the slot is taken", SOON, || app.in_progress() == 1);
    let mut one = Http1::asking(gateway.address, "/held");
    queued(&gateway, 1);
    http2::block_on(async {
        let mut client = Http2::connect(gateway.address).await;
        let (two, _) = client.open("GET", "/held", &[], true).await.expect("a stream");
        http2::until("it waits", SOON, || gateway.port().queued == 2).await;
        let (call, _) = client.open("POST", "/held", &GRPC, true).await.expect("a stream");
        http2::until("it waits", SOON, || gateway.port().queued == 3).await;
        let draining = gateway.drain();
        let two = http2::answer(two).await.expect("an answer");
        assert_refusal(&two, 503, "destination_unavailable", "draining");
        let call = http2::answer(call).await.expect("an answer");
        assert_eq!((call.status, call.header("grpc-status")), (200, Some("14")), "{call:?}");
        let another = client.open("GET", "/", &[], true).await;
        assert!(another.is_err(), "it was told to go away");
        let answer = one.answer().expect("an answer");
        assert_refusal(&answer, 503, "destination_unavailable", "draining");
        assert_eq!(answer.header("connection"), Some("close"), "{answer:?}");
        assert_eq!(answer.header("retry-after"), Some("0"), "{answer:?}");
        assert!(one.closed());
        let report = draining.report();
        assert_eq!((report.queued_at_start, report.refused), (3, 3), "{report:?}");
    });
    drop(held);
    assert_eq!(app.count(), 1);
    gateway.terminate(SOON);
}
