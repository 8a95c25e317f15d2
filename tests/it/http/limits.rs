//! P1 and A4: a limit that changes under load; a deadline at a known pace; frames that are no part of a request.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::support::ledger::End;
use crate::support::{Engine, Over, Rng, SOON, engines, scale, sockets, until};

use super::client::{self, Http1};
use super::frames::{self, Raw};
use super::oracle::HttpOracle;
use super::{assert_settled, gate, queued, refused};

engines!(beside:
    a_storm_under_a_changing_limit,
    a_lower_limit_is_kept_by_requests_and_connections,
    a_deadline_is_held_against_the_pace_of_late,
    floods_of_frames_end_in_goaway,
    a_client_that_reads_what_it_asked_for_is_no_flood,
);

/// The limit goes up and down under requests on new and on kept connections. While it is higher than it is
/// going to be nobody is let in beyond; once the lower one is settled it is kept.
fn a_storm_under_a_changing_limit(engine: Engine) {
    const MOST: u64 = 12;
    let seed = Rng::announced();
    let app = HttpOracle::start();
    let watch = sockets::Watch::start(app.address.port());
    let gateway = gate(engine, app.address)
        .set("limit", MOST)
        .set("queue-length", 40)
        .set("queue-timeout", "60s")
        .start();
    let (over, answered) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        let guard = Over(&over);
        for number in 0..24 {
            let (gateway, over, answered) = (&gateway, &over, &answered);
            scope.spawn(move || {
                let mut kept = Http1::connect(gateway.address);
                while !over.load(Ordering::Relaxed) {
                    let end = if number % 2 == 0 {
                        kept.ask("/work?ms=5", "");
                        kept.end()
                    } else {
                        client::exchange(gateway.address, "/work?ms=5", SOON)
                    };
                    assert_eq!(end, End::Answered);
                    answered.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let mut rng = Rng::new(seed);
        for _ in 0..scale(20, 400) {
            let limit = 1 + rng.below(MOST);
            gateway.set("limit", limit);
            until("it is kept by the gate", SOON, || gateway.port().active <= limit);
            // Whoever was let in before has left the gate, and the application before that.
            for _ in 0..20 {
                let here = app.in_progress() as u64;
                assert!(here <= limit, "{here} at once under a limit of {limit}");
            }
            let before = answered.load(Ordering::Relaxed);
            until("it goes on", SOON, || answered.load(Ordering::Relaxed) > before + 10);
        }
        drop(guard);
    });
    gateway.set("limit", MOST); // against which the peak is held
    assert!(app.peak() as u64 <= MOST, "{} at once", app.peak());
    assert!(watch.peak() as u64 <= MOST, "the kernel saw {} connections", watch.peak());
    assert_settled(&gateway, app.address.port());
}

/// Nobody is thrown out, nobody let in; connections that were kept for more are closed.
fn a_lower_limit_is_kept_by_requests_and_connections(engine: Engine) {
    let app = HttpOracle::start();
    let setup = gate(engine, app.address).set("limit", 6).set("queue-timeout", "60s");
    let gateway = setup.set("app-keepalive", "60s").start();
    let open = || sockets::open_at_either(app.address.port()).len();
    let mut held: Vec<_> = (0..6).map(|_| Http1::asking(gateway.address, "/held")).collect();
    until("six are in", SOON, || app.in_progress() == 6);
    gateway.set("limit", 2);
    let mut next = Http1::asking(gateway.address, "/held");
    queued(&gateway, 1);
    app.release(4);
    until("four have ended", SOON, || app.in_progress() == 2);
    until("and their connections", SOON, || open() == 2);
    assert_eq!((app.count(), gateway.port().queued), (6, 1), "nobody was let in");
    app.release(3);
    for client in &mut held {
        assert_eq!(client.end(), End::Answered);
    }
    assert_eq!(next.end(), End::Answered);
    let mut all: Vec<_> = (0..8).map(|_| Http1::asking(gateway.address, "/work?ms=5")).collect();
    for client in &mut all {
        assert_eq!(client.end(), End::Answered);
        assert!(open() <= 2, "{} connections", open());
    }
    assert_eq!(app.peak(), 6);
    gateway.set("limit", 1);
    until("one is too many", SOON, || open() <= 1);
    drop((held, next, all));
    gateway.set("limit", 6); // against which the peak is held
    assert_settled(&gateway, app.address.port());
}

/// A request has taken a second; five wait: the sixth cannot be served in less than six. It is refused when it
/// comes, long before its deadline, and costs nobody a place.
fn a_deadline_is_held_against_the_pace_of_late(engine: Engine) {
    let app = HttpOracle::start();
    let setup = gate(engine, app.address).set("limit", 1).set("queue-length", 6);
    let setup = setup.set("queue-timeout", "60s").set("deadline-header", "x-deadline");
    let gateway = setup.start();
    let mut client = Http1::connect(gateway.address);
    assert_eq!(client.get("/work?ms=1000").status, 200);
    until("it is over", SOON, || gateway.port().active == 0);
    let mut held = vec![Http1::asking(gateway.address, "/held")];
    until("the slot is taken", SOON, || app.in_progress() == 1);
    for count in 1..=5 {
        held.push(Http1::asking(gateway.address, "/held"));
        queued(&gateway, count);
    }
    let asked = Instant::now();
    client.ask("/gone", "X-Deadline: 5500\r\n");
    let answer = client.answer().expect("an answer");
    let took = asked.elapsed();
    assert_eq!(answer.status, 503, "{answer:?}");
    let said = answer.header("proxy-status").unwrap_or_default();
    assert!(said.contains("details=\"deadline_unmeetable\""), "{answer:?}");
    assert!(took < Duration::from_millis(5500), "it has waited for its deadline: {took:?}");
    refused(&gateway, "deadline_unmeetable", 1);
    // Who has the time waits.
    client.ask("/held", "X-Deadline: 600000\r\n");
    queued(&gateway, 6);
    held.push(client);
    app.release(7);
    for client in &mut held {
        assert_eq!(client.end(), End::Answered);
    }
    drop(held);
    assert_eq!(app.count(), 8);
    assert_settled(&gateway, app.address.port());
}

/// A4: frames that want answers, and frames that want none, from a client that reads everything: after at most
/// as many as are allowed it is told to calm down. Others are served meanwhile.
fn floods_of_frames_end_in_goaway(engine: Engine) {
    /// Twice as many as are allowed in one window, what a read can hold of them, and one flood's own frames.
    const MOST: usize = 10_000;
    let app = HttpOracle::start();
    let gateway = gate(engine, app.address).set("limit", 2).start();
    for (kind, flood, code) in [
        ("PING", frames::frame(frames::PING, 0, 0, b"tidegate"), 11),
        ("an answer to PING", frames::frame(frames::PING, frames::ACK, 0, b"tidegate"), 11),
        ("SETTINGS", frames::frame(frames::SETTINGS, 0, 0, &[0, 4, 0, 1, 0, 0]), 11),
        ("PRIORITY", frames::frame(frames::PRIORITY, 0, 1, &[0, 0, 0, 0, 15]), 11),
        ("WINDOW_UPDATE", frames::frame(frames::WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1]), 11),
        ("unknown", frames::frame(0xfa, 0, 0, b"?"), 11),
        ("empty DATA", frames::frame(frames::DATA, 0, 1, b""), 11),
    ] {
        let mut raw = Raw::connect(gateway.address);
        if kind == "empty DATA" {
            let head = frames::request("POST", "/up", &[]);
            raw.send(&frames::frame(frames::HEADERS, frames::END_HEADERS, 1, &head)).expect("one");
        }
        let mut reads = Raw(raw.0.try_clone().expect("a descriptor"));
        let end = std::thread::scope(|scope| {
            let end = scope.spawn(move || reads.goaway(SOON));
            for _ in 0..MOST {
                if raw.send(&flood).is_err() {
                    break;
                }
            }
            end.join().expect("no panic")
        });
        assert_eq!(end.map_err(|error| error.kind()), Ok(Some(code)), "{kind}");
        assert_eq!(Http1::connect(gateway.address).get("/").status, 200);
    }
    until("no slot is held", SOON, || gateway.port().active == 0);
    assert_settled(&gateway, app.address.port());
}

/// A client that measures its link by PING and grants each byte anew is served for as long as it gets something.
fn a_client_that_reads_what_it_asked_for_is_no_flood(engine: Engine) {
    let app = HttpOracle::start();
    let gateway = gate(engine, app.address).set("limit", 2).start();
    let mut raw = Raw::connect(gateway.address);
    let head = frames::request("GET", "/down?n=20000000", &[]);
    let flags = frames::END_HEADERS | frames::END_STREAM;
    raw.send(&frames::frame(frames::HEADERS, flags, 1, &head)).expect("writes");
    let (mut got, mut asked) = (0, 0);
    while got < 20_000_000 {
        let frame = raw.read().unwrap_or_else(|error| panic!("after {got} bytes: {error}"));
        assert!(!matches!(frame.kind, frames::GOAWAY | frames::RST_STREAM), "{frame:?}");
        if frame.kind != frames::DATA {
            continue;
        }
        got += frame.payload.len();
        let length = (frame.payload.len() as u32).to_be_bytes();
        for stream in [0, 1] {
            let update = frames::frame(frames::WINDOW_UPDATE, 0, stream, &length);
            raw.send(&update).expect("writes");
        }
        raw.send(&frames::frame(frames::PING, 0, 0, b"how far?")).expect("writes");
        asked += 3;
    }
    assert!(asked > 2_000, "{asked} frames are no test");
    drop(raw);
    until("no slot is held", SOON, || gateway.port().active == 0);
    assert_settled(&gateway, app.address.port());
}
