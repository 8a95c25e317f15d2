//! A5: what does not come, or comes a byte at a time. It costs no slot, or costs it for as long as was said,
//! and nobody else notices.

use std::io::ErrorKind;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::support::ledger::{End, Ledger};
use crate::support::{Engine, Over, SOON, Stopwatch, engines, pattern, scale, slack, until};

use super::client::{self, Http1};
use super::http2::{self, Http2};
use super::oracle::HttpOracle;
use super::{assert_settled, gate, queued};

engines!(
    silent_clients_cost_the_others_nothing,
    a_body_that_does_not_come_gives_its_slot_back,
    an_http2_body_that_does_not_come_gives_its_slot_back,
);

/// Ten times as many as the limit connect and say nothing: no slot is held, and whoever speaks is served.
/// They are sent away after `header-timeout`, and come again.
fn silent_clients_cost_the_others_nothing(engine: Engine) {
    const LIMIT: usize = 8;
    let app = HttpOracle::start();
    let gateway = gate(engine, app.address)
        .set("limit", LIMIT)
        .set("queue-length", 0)
        .set("header-timeout", "1s")
        .start();
    let over = AtomicBool::new(false);
    let honest: Ledger = std::thread::scope(|scope| {
        let honest = scope.spawn(|| {
            let mut ends = Vec::new();
            while !over.load(Ordering::Relaxed) {
                ends.push(client::exchange(gateway.address, "/work?ms=1", SOON));
            }
            ends.into_iter().collect()
        });
        let _over = Over(&over);
        for _ in 0..scale(2, 10) {
            let silent: Vec<_> = (0..10 * LIMIT)
                .map(|_| (Stopwatch::start(), Http1::connect(gateway.address)))
                .collect();
            assert!(gateway.port().active <= 1, "the honest one's");
            for (here, mut client) in silent {
                assert!(client.closed(), "without a word");
                assert!(here.elapsed() >= Duration::from_secs(1), "after {:?}", here.elapsed());
                assert!(
                    here.own() <= slack(Duration::from_millis(1_500)),
                    "after {:?}",
                    here.own()
                );
            }
        }
        drop(_over);
        honest.join().expect("no panic")
    });
    assert!(honest.total() > 100 && honest.of(End::Answered) == honest.total(), "{honest:?}");
    assert_settled(&gateway, app.address.port());
}

/// `body-timeout`: 408, and the next one has the slot; the application sees that the body broke off. A byte
/// now and then is no progress.
fn a_body_that_does_not_come_gives_its_slot_back(engine: Engine) {
    let app = HttpOracle::start();
    let gateway = gate(engine, app.address).set("limit", 1).set("body-timeout", "1s").start();
    for trickles in [false, true] {
        let start = Stopwatch::start();
        let mut slow = Http1::connect(gateway.address);
        slow.begin("POST", "/up", "Content-Length: 1000\r\n");
        slow.send(pattern::slice(0, 100));
        until("it has the slot", SOON, || app.in_progress() == 1);
        let mut next = Http1::asking(gateway.address, "/");
        queued(&gateway, 1);
        if trickles {
            trickle(&mut slow, 850);
        }
        let answer = slow.answer().expect("an answer");
        let took = start.own();
        assert_eq!(answer.status, 408, "{answer:?}");
        assert!(start.elapsed() >= Duration::from_secs(1), "after {:?}", start.elapsed());
        assert!(took <= slack(Duration::from_millis(1_500)), "after {took:?}");
        assert!(slow.closed());
        assert_eq!(next.end(), End::Answered);
        assert_broken_off(&app);
    }
    assert_eq!(gateway.port().outcome("client_stalled"), 2, "{:?}", gateway.port());
    assert_settled(&gateway, app.address.port());
}

/// A byte each 20 ms, until there is an answer.
#[track_caller]
fn trickle(client: &mut Http1, at_most: usize) {
    let pace = Some(Duration::from_millis(20));
    client.stream.set_read_timeout(pace).expect("not zero");
    let mut sent = 0;
    while let Err(error) = client.stream.peek(&mut [0]) {
        assert!(matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut), "{error}");
        assert!(sent < at_most, "still not answered after {sent} bytes");
        client.send("x");
        sent += 1;
    }
    client.stream.set_read_timeout(Some(SOON)).expect("not zero");
}

/// The last upload that the application saw ended before its end.
#[track_caller]
fn assert_broken_off(app: &HttpOracle) {
    let upload = || app.seen().into_iter().rfind(|seen| seen.path == "/up").expect("it came");
    until("the application has noticed", SOON, || upload().end.is_some());
    let upload = upload();
    assert!(!upload.whole && upload.end.is_some_and(|end| end.is_err()), "{:?}", app.seen());
}

/// The same for a stream, in either version to the application; the connection's other streams go on.
fn an_http2_body_that_does_not_come_gives_its_slot_back(engine: Engine) {
    for choice in ["auto", "never"] {
        let app = HttpOracle::start();
        let setup = gate(engine, app.address).set("limit", 1).set("app-http2", choice);
        let gateway = setup.set("body-timeout", "1s").start();
        http2::block_on(async {
            let mut client = Http2::connect(gateway.address).await;
            let start = Stopwatch::start();
            let opened = client.open("POST", "/up", &[], false).await;
            let (slow, mut send) = opened.expect("a stream");
            send.send_data(pattern::slice(0, 100).to_vec().into(), false)
                .expect("within the window");
            http2::until("it has the slot", SOON, || app.in_progress() == 1).await;
            let (next, _) = client.open("GET", "/", &[], true).await.expect("a stream");
            let answer = http2::answer(slow).await.expect("an answer");
            assert_eq!(answer.status, 408, "{answer:?}");
            assert!(start.elapsed() >= Duration::from_secs(1), "after {:?}", start.elapsed());
            assert!(start.own() <= slack(Duration::from_millis(1_500)), "after {:?}", start.own());
            assert_eq!(http2::answer(next).await.expect("an answer").status, 200);
        });
        assert_broken_off(&app);
        assert_eq!(gateway.port().outcome("client_stalled"), 1, "{:?}", gateway.port());
        assert_settled(&gateway, app.address.port());
    }
}
