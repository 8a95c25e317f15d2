//! P1, P5, P11: clients that leave after their request was let in. The slot is free when the application
//! has ended, or after `abandon-timeout`; what was half sent is never made to look whole.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::support::gateway::Gateway;
use crate::support::ledger::End;
use crate::support::{
    Engine, Rng, SOON, Stopwatch, engines, pattern, scale, slack, sockets, until,
};

use super::client::Http1;
use super::http2::{self, Http2};
use super::oracle::HttpOracle;
use super::{assert_settled, gate, queued};

engines!(
    the_slot_is_held_until_the_application_has_answered,
    the_slot_is_held_until_the_stream_has_ended,
    an_http2_cancel_holds_the_slot_too,
    an_upload_that_breaks_off_is_not_whole,
    an_http2_upload_that_breaks_off_is_not_whole,
    an_application_that_never_ends_is_abandoned,
    an_http2_stream_that_never_ends_is_abandoned,
    an_answer_that_breaks_off_is_not_whole,
    an_early_answer_does_not_free_the_slot_of_the_upload,
    a_connection_is_reused_only_after_a_clean_exchange,
    a_connection_that_ends_just_when_it_is_used_again,
    a_storm_of_those_who_leave_stays_within_the_limit,
    an_http2_storm_of_resets_stays_within_the_limit,
);

fn one_slot(engine: Engine, app: &HttpOracle, abandon: &str) -> Gateway {
    gate(engine, app.address)
        .set("limit", 1)
        .set("queue-length", 20)
        .set("queue-timeout", "60s")
        .set("abandon-timeout", abandon)
        .start()
}

/// While the application works for one who has left, the next one waits.
#[track_caller]
fn the_next_one_waits(gateway: &Gateway, app: &HttpOracle) {
    let before = app.count();
    let mut next = Http1::asking(gateway.address, "/work?ms=0");
    queued(gateway, 1);
    std::thread::sleep(Duration::from_millis(100)); // long enough to be let in by mistake
    assert_eq!((gateway.port().active, app.count()), (1, before), "nobody else is let in");
    app.release(1);
    assert_eq!(next.end(), End::Answered);
    assert_eq!(app.peak(), 1);
}

fn the_slot_is_held_until_the_application_has_answered(engine: Engine) {
    let app = HttpOracle::start();
    let gateway = one_slot(engine, &app, "30s");
    for reset in [false, true] {
        let client = Http1::asking(gateway.address, "/held");
        until("it is in", SOON, || app.in_progress() == 1);
        if reset {
            client.reset()
        } else {
            drop(client)
        }
        the_next_one_waits(&gateway, &app);
    }
    assert_settled(&gateway, app.address.port());
}

fn the_slot_is_held_until_the_stream_has_ended(engine: Engine) {
    let app = HttpOracle::start();
    let gateway = one_slot(engine, &app, "30s");
    for reset in [false, true] {
        let mut client = Http1::asking(gateway.address, "/held-stream");
        assert_eq!(client.head().expect("an answer has begun").status, 200);
        if reset {
            client.reset()
        } else {
            drop(client)
        }
        the_next_one_waits(&gateway, &app);
    }
    assert_settled(&gateway, app.address.port());
}

/// RST_STREAM, or the end of the connection, before and in the answer.
fn an_http2_cancel_holds_the_slot_too(engine: Engine) {
    let app = HttpOracle::start();
    let gateway = one_slot(engine, &app, "30s");
    for path in ["/held", "/held-stream"] {
        for whole_connection in [false, true] {
            http2::block_on(async {
                let mut client = Http2::connect(gateway.address).await;
                let opened = client.open("GET", path, &[], true).await;
                let (response, mut send) = opened.expect("a stream");
                http2::until("it is in", SOON, || app.in_progress() == 1).await;
                if whole_connection {
                    return;
                }
                send.send_reset(h2::Reason::CANCEL);
                drop(response);
                // While the connection lives on: its RST_STREAM has to be written.
                tokio::time::sleep(Duration::from_millis(20)).await;
                the_next_one_waits(&gateway, &app);
            });
            if whole_connection {
                the_next_one_waits(&gateway, &app);
            }
        }
    }
    assert_settled(&gateway, app.address.port());
}

/// The application sees that the body broke off, whichever way its end is told.
fn an_upload_that_breaks_off_is_not_whole(engine: Engine) {
    let app = HttpOracle::start();
    let gateway = one_slot(engine, &app, "30s"); // it is told at once, not when it is abandoned
    for (number, (framing, bytes)) in [
        ("Content-Length: 1000", "half"),
        ("Transfer-Encoding: chunked", "4\r\nhalf\r\n"),
        ("Transfer-Encoding: chunked", "ff\r\nhalf"),
    ]
    .into_iter()
    .enumerate()
    {
        for reset in [false, true] {
            let mut client = Http1::connect(gateway.address);
            client.begin("POST", "/up", &format!("{framing}\r\n"));
            client.send(bytes);
            let sees =
                |app: &HttpOracle| app.seen().last().is_some_and(|seen| seen.id == Some(client.id));
            until("it is in", SOON, || sees(&app));
            if reset {
                client.reset()
            } else {
                drop(client)
            }
            until("the application hears of it", slack(Duration::from_secs(1)), || {
                app.seen().last().is_some_and(|seen| seen.end.is_some())
            });
            let seen = app.seen().pop().expect("just seen");
            assert!(!seen.whole, "{number}: {seen:?}");
            until("the slot is free", SOON, || gateway.port().active == 0);
        }
    }
    assert_eq!(app.peak(), 1);
    assert_settled(&gateway, app.address.port());
}

fn an_http2_upload_that_breaks_off_is_not_whole(engine: Engine) {
    for app_http2 in ["auto", "never"] {
        let app = HttpOracle::start();
        let gateway = gate(engine, app.address)
            .set("limit", 1)
            .set("abandon-timeout", "1s")
            .set("app-http2", app_http2)
            .start();
        http2::block_on(async {
            let mut client = Http2::connect(gateway.address).await;
            let opened = client.open("POST", "/up", &[], false).await;
            let (response, mut send) = opened.expect("a stream");
            send.send_data(vec![b'x'; 5_000].into(), false).expect("within the window");
            http2::until("a part has come", SOON, || {
                app.seen().last().is_some_and(|seen| seen.body == 5_000)
            })
            .await;
            send.send_reset(h2::Reason::CANCEL);
            drop(response);
            http2::until("the application hears of it", slack(Duration::from_secs(1)), || {
                app.seen().last().is_some_and(|seen| seen.end.is_some())
            })
            .await;
        });
        let seen = app.seen().pop().expect("just seen");
        assert!(!seen.whole, "app-http2 {app_http2}: {seen:?}");
        until("the slot is free", SOON, || gateway.port().active == 0);
        assert_settled(&gateway, app.address.port());
    }
}

/// After `abandon-timeout` the application's connection is reset, the slot is free, and it is counted; the
/// application never has more connections than the limit.
fn an_application_that_never_ends_is_abandoned(engine: Engine) {
    let app = HttpOracle::start();
    let gateway = one_slot(engine, &app, "300ms");
    let watch = sockets::Watch::start(app.address.port());
    for count in 1..=3 {
        let client = Http1::asking(gateway.address, "/never");
        until("it is in", SOON, || gateway.port().active == 1 && app.count() == 2 * count - 1);
        until("and seen", SOON, || watch.peak() > 0);
        let left = Stopwatch::start();
        drop(client);
        let mut next = Http1::asking(gateway.address, "/work?ms=0");
        assert_eq!(next.end(), End::Answered);
        let (took, own) = (left.elapsed(), left.own());
        assert!(took >= Duration::from_millis(290), "{took:?}");
        assert!(own < slack(Duration::from_millis(350)), "{took:?}");
        until("it is counted", SOON, || gateway.port().outcome("abandoned") == count as u64);
    }
    assert_eq!(watch.peak(), 1, "connections at the application");
    drop(watch);
    assert_settled(&gateway, app.address.port());
}

fn an_http2_stream_that_never_ends_is_abandoned(engine: Engine) {
    let app = HttpOracle::start();
    let gateway = one_slot(engine, &app, "300ms");
    http2::block_on(async {
        let mut client = Http2::connect(gateway.address).await;
        let opened = client.open("GET", "/never", &[], true).await;
        let (response, mut send) = opened.expect("a stream");
        http2::until("it is in", SOON, || app.count() == 1).await;
        send.send_reset(h2::Reason::CANCEL);
        drop(response);
        let left = Stopwatch::start();
        assert_eq!(client.get("/work?ms=0").await.status, 200, "the connection goes on");
        let (took, own) = (left.elapsed(), left.own());
        assert!(took >= Duration::from_millis(290), "{took:?}");
        assert!(own < slack(Duration::from_millis(350)), "{took:?}");
    });
    until("it is counted", SOON, || gateway.port().outcome("abandoned") == 1);
    assert_settled(&gateway, app.address.port());
}

/// T05: a client never takes a broken answer for a whole one.
fn an_answer_that_breaks_off_is_not_whole(engine: Engine) {
    let app = HttpOracle::start();
    let gateway = one_slot(engine, &app, "1s");
    for _ in 0..5 {
        let mut client = Http1::asking(gateway.address, "/break?n=100");
        assert!(matches!(client.end(), End::Lost | End::Reset));
        assert!(client.closed());
    }
    http2::block_on(async {
        let mut client = Http2::connect(gateway.address).await;
        let (response, _) = client.open("GET", "/break?n=100", &[], true).await.expect("one");
        let answer = http2::answer(response).await;
        if let Ok(answer) = answer {
            assert!(answer.status >= 500, "{answer:?}");
        }
        assert_eq!(client.get("/").await.status, 200, "the connection goes on");
    });
    assert_settled(&gateway, app.address.port());
}

/// P5: an answer that is complete while the upload still runs does not free the slot.
fn an_early_answer_does_not_free_the_slot_of_the_upload(engine: Engine) {
    let app = HttpOracle::start();
    let gateway = one_slot(engine, &app, "30s");
    let mut client = Http1::connect(gateway.address);
    let body = pattern::slice(0, 10_000);
    client.begin("POST", "/early?status=200", "Content-Length: 10000\r\n");
    client.send(&body[..5_000]);
    assert_eq!(client.head().expect("an early answer").status, 200);
    assert_eq!((gateway.port().active, app.in_progress()), (1, 1));
    client.send(&body[5_000..]);
    assert_eq!(client.raw(5).expect("the rest"), b"early");
    assert!(!app.seen()[0].damaged && app.seen()[0].whole);
    until("the slot is free", SOON, || gateway.port().active == 0);
    drop(client);
    assert_settled(&gateway, app.address.port());
}

/// What one client left behind on a connection to the application is never given to another.
fn a_connection_is_reused_only_after_a_clean_exchange(engine: Engine) {
    let app = HttpOracle::start();
    let gateway = one_slot(engine, &app, "200ms");
    let body = pattern::slice(0, 60_000);
    for round in 0..scale(10, 200) {
        let mut deaf = Http1::connect(gateway.address);
        deaf.begin("POST", "/deaf?status=413", "Content-Length: 60000\r\n");
        deaf.send(body);
        let answer = deaf.answer();
        if let Ok(answer) = answer {
            assert!(matches!(answer.status, 413 | 502), "{answer:?}");
        }
        let leaves = Http1::asking(gateway.address, "/down?n=3000000");
        until("it is let in", SOON, || gateway.port().active <= 1 && gateway.port().queued == 0);
        drop(leaves);
        let mut client = Http1::connect(gateway.address);
        assert_eq!(client.post("/up", body).text(), "60000 intact", "round {round}");
        client.ask("/work?ms=0", "");
        assert_eq!(client.end(), End::Answered, "round {round}");
    }
    assert!(app.seen().iter().all(|seen| seen.path.starts_with('/')), "nothing else was read");
    assert_eq!(app.peak(), 1);
    assert_settled(&gateway, app.address.port());
}

/// The application closes an idle connection in the moment in which a request comes over it. What may be
/// sent twice is, over another; what may not is answered 502, and so is who breaks a busy connection.
fn a_connection_that_ends_just_when_it_is_used_again(engine: Engine) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
    let address = listener.local_addr().expect("bound");
    let heard = Arc::new(Mutex::new(Vec::new()));
    let books = heard.clone();
    std::thread::spawn(move || {
        for (number, stream) in listener.incoming().enumerate() {
            let (mut stream, books) = (stream.expect("accepts"), books.clone());
            std::thread::spawn(move || {
                for answers in [true, false] {
                    let mut bytes = [0; 4096];
                    let Ok(length @ 1..) = stream.read(&mut bytes) else { return };
                    let head = String::from_utf8_lossy(&bytes[..length]);
                    let method = head.split(' ').next().unwrap_or_default().to_owned();
                    books.lock().expect("whole").push((number, method));
                    if answers {
                        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
                    }
                }
            });
        }
    });
    let heard = || {
        let heard = std::mem::take(&mut *heard.lock().expect("whole"));
        heard.iter().map(|(number, method)| format!("{number} {method}")).collect::<Vec<_>>()
    };
    let gateway = gate(engine, address).set("limit", 1).set("app-keepalive", "10m").start();
    let mut client = Http1::connect(gateway.address);
    let rest = || std::thread::sleep(Duration::from_millis(700)); // what makes a connection suspect
    assert_eq!(client.get("/").status, 200);
    rest();
    assert_eq!(client.get("/").status, 200);
    assert_eq!(heard(), ["0 GET", "0 GET", "1 GET"]);
    rest();
    assert_eq!(client.post("/", b"once").status, 502);
    assert_eq!(heard(), ["1 POST"]);
    client.send("GET / HTTP/1.1\r\nHost: app\r\n\r\n".repeat(2)); // no rest between the two
    assert_eq!([(); 2].map(|()| client.answer().expect("an answer").status), [200, 502]);
    assert_eq!(heard(), ["2 GET", "2 GET"]);
    drop(client);
    assert_settled(&gateway, address.port());
    let port = gateway.port();
    assert_eq!((port.admitted, port.outcomes["served"], port.outcomes["app_reset"]), (5, 3, 2));
}

/// P1: clients that come and leave at any point; the application's own count stays within the limit.
fn a_storm_of_those_who_leave_stays_within_the_limit(engine: Engine) {
    let app = HttpOracle::start();
    let gateway = gate(engine, app.address)
        .set("limit", 4)
        .set("queue-length", 8)
        .set("queue-timeout", "60ms")
        .set("abandon-timeout", "2s")
        .start();
    let watch = sockets::Watch::start(app.address.port());
    let (seed, count, turn) = (Rng::announced(), scale(600, 20_000) as u64, AtomicU64::new(0));
    std::thread::scope(|scope| {
        for number in 0..20 {
            let (turn, gateway) = (&turn, &gateway);
            scope.spawn(move || {
                let mut rng = Rng::new(seed + number);
                while turn.fetch_add(1, Ordering::Relaxed) < count {
                    come_and_leave(gateway, &mut rng);
                }
            });
        }
    });
    assert!(app.peak() <= 4, "{} requests at once", app.peak());
    assert!(watch.peak() <= 4, "{} connections at once", watch.peak());
    drop(watch);
    app.all_over();
    assert_settled(&gateway, app.address.port());
}

fn come_and_leave(gateway: &Gateway, rng: &mut Rng) {
    let mut client = Http1::connect(gateway.address);
    let paths = ["/work?ms=10", "/stream?n=5&ms=3", "/down?n=500000", "/deaf?status=200"];
    let path = paths[rng.below(4) as usize];
    if rng.below(3) == 0 {
        client.begin("POST", "/up", "Content-Length: 30000\r\n");
        client.send(vec![b'x'; rng.below(30_001) as usize]);
    } else {
        client.ask(path, "");
    }
    match rng.below(5) {
        0 => client.reset(),
        1 => drop(client),
        2 => {
            std::thread::sleep(rng.millis(50)); // leaves at some point of its wait or its answer
            client.reset();
        }
        3 => {
            std::thread::sleep(rng.millis(50));
            drop(client);
        }
        _ => {
            let mut client = client.patience(Duration::from_millis(200));
            let _ = client.end();
        }
    }
}

/// The same by RST_STREAM, with HTTP/2 and with HTTP/1 towards the application.
fn an_http2_storm_of_resets_stays_within_the_limit(engine: Engine) {
    for app_http2 in ["auto", "never"] {
        let app = HttpOracle::start();
        let gateway = gate(engine, app.address)
            .set("limit", 4)
            .set("queue-length", 50)
            .set("queue-timeout", "60ms")
            .set("app-http2", app_http2)
            .start();
        let mut rng = Rng::new(Rng::announced());
        http2::block_on(async {
            let mut client = Http2::connect(gateway.address).await;
            for _ in 0..scale(20, 500) {
                let mut streams = Vec::new();
                for _ in 0..12 {
                    let path = ["/work?ms=10", "/stream?n=5&ms=3"][rng.below(2) as usize];
                    let opened = client.open("GET", path, &[], true).await;
                    let Ok(opened) = opened else {
                        client = Http2::connect(gateway.address).await; // it had enough of resets
                        break;
                    };
                    streams.push(opened);
                }
                tokio::time::sleep(rng.millis(40)).await; // at some point of the wait or the answer
                for (number, (response, mut send)) in streams.into_iter().enumerate() {
                    if number % 3 == 0 {
                        let _ = http2::answer(response).await;
                    } else {
                        send.send_reset(h2::Reason::CANCEL);
                    }
                }
            }
        });
        assert!(app.peak() <= 4, "app-http2 {app_http2}: {} requests at once", app.peak());
        app.all_over();
        assert_settled(&gateway, app.address.port());
    }
}
