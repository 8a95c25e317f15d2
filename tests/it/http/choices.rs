//! Settings that choose: which HTTP the application is spoken to in, how it learns who asked, how many
//! workers there are.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::support::sockets::Watch;
use crate::support::{Engine, SOON, engines, scale, until};

use super::client::Http1;
use super::http2::{self, Http2};
use super::oracle::HttpOracle;
use super::{assert_settled, gate};

engines!(
    the_application_is_spoken_to_as_it_was_chosen,
    an_application_that_does_not_answer_the_question,
    the_application_is_told_in_the_way_that_was_chosen,
    workers_share_the_connections_to_the_application,
);

/// `app-http2`: which version the application sees, of a client of either.
fn the_application_is_spoken_to_as_it_was_chosen(engine: Engine) {
    for (choice, of_one, of_two) in
        [("always", "2", "2"), ("auto", "1.1", "2"), ("never", "1.1", "1.1")]
    {
        let app = HttpOracle::start();
        let setup = gate(engine, app.address).set("limit", 2).set("app-http2", choice);
        let gateway = setup.start();
        assert_eq!(Http1::connect(gateway.address).get("/").status, 200);
        http2::block_on(async {
            let mut client = Http2::connect(gateway.address).await;
            assert_eq!(client.get("/").await.status, 200);
        });
        let seen: Vec<_> = app.seen().iter().map(|seen| seen.version).collect();
        assert_eq!(seen, [of_one, of_two], "app-http2 {choice}");
        assert_settled(&gateway, app.address.port());
    }
}

/// Who waits for the rest of a preface for ever is spoken to in HTTP/1, and not asked each time; the
/// question is one of the connections it is promised.
fn an_application_that_does_not_answer_the_question(engine: Engine) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
    let address = listener.local_addr().expect("bound");
    let asked = std::sync::Arc::new(AtomicUsize::new(0));
    let books = asked.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (mut stream, books) = (stream.expect("accepts"), books.clone());
            std::thread::spawn(move || {
                let mut bytes = [0; 4096];
                while let Ok(1..) = stream.read(&mut bytes) {
                    if bytes.starts_with(b"PRI") {
                        books.fetch_add(1, Ordering::SeqCst);
                        continue;
                    }
                    let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
                }
            });
        }
    });
    let watch = Watch::start(address.port());
    let setup = gate(engine, address).set("limit", 1).set("connect-timeout", "200ms");
    let gateway = setup.start();
    http2::block_on(async {
        let mut client = Http2::connect(gateway.address).await;
        for _ in 0..5 {
            assert_eq!(client.get("/").await.text(), "ok");
        }
    });
    assert_eq!(asked.load(Ordering::SeqCst), 1, "asked once");
    until("its connection, which is kept, is seen", SOON, || watch.peak() > 0);
    assert_eq!(watch.peak(), 1, "connections at once");
    assert_settled(&gateway, address.port());
}

/// `forwarded` and `via`.
fn the_application_is_told_in_the_way_that_was_chosen(engine: Engine) {
    for (choice, x, standard) in [
        ("x-forwarded", true, false),
        ("forwarded", false, true),
        ("both", true, true),
        ("none", false, false),
    ] {
        let app = HttpOracle::start();
        let setup = gate(engine, app.address).set("limit", 1).set("forwarded", choice);
        let gateway = setup.set("via", x).start();
        let mut client = Http1::connect(gateway.address);
        client.ask("/", "Via: 1.0 other\r\nForwarded: for=192.0.2.7\r\n");
        assert_eq!(client.answer().expect("an answer").status, 200);
        let seen = app.seen().pop().expect("one");
        assert_eq!(seen.header("x-forwarded-for").is_some(), x, "{choice}: {seen:?}");
        let all = |name: &str| {
            let found = seen.headers.iter().filter(|(known, _)| known == name);
            found.map(|(_, value)| value.as_str()).collect::<Vec<_>>().join(", ")
        };
        let forwarded = all("forwarded");
        assert!(forwarded.starts_with("for=192.0.2.7"), "{choice}: {forwarded}");
        assert_eq!(forwarded.contains("for=127.0.0.1"), standard, "{choice}: {forwarded}");
        let via = all("via");
        assert!(via.starts_with("1.0 other"), "{choice}: {via}");
        assert_eq!(via.contains("1.1 tidegate"), x, "{choice}: {via}");
        drop(client);
        assert_settled(&gateway, app.address.port());
    }
}

/// P1: the limit is on the connections to the application of all workers together, and none of them
/// is kept from its share by what another keeps idle.
fn workers_share_the_connections_to_the_application(engine: Engine) {
    const LIMIT: usize = 3;
    let app = HttpOracle::start();
    let watch = Watch::start(app.address.port());
    let setup = gate(engine, app.address).set("limit", LIMIT).set("queue-length", 100);
    let gateway = setup.set("workers", 3).set("queue-timeout", "30s").start();
    let each = scale(40, 1_000);
    std::thread::scope(|scope| {
        for _ in 0..24 {
            scope.spawn(|| {
                let mut client = Http1::connect(gateway.address).patience(12 * SOON);
                for _ in 0..each {
                    assert_eq!(client.get("/work?ms=1").status, 200);
                }
            });
        }
    });
    assert_eq!(app.count(), 24 * each);
    assert!(app.peak() <= LIMIT, "{} at once", app.peak());
    assert!(watch.peak() <= LIMIT, "{} connections at once", watch.peak());
    assert_settled(&gateway, app.address.port());
}
