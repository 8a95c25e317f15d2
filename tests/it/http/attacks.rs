//! A1 to A9: what one client can do to the others. Bars: the others' p99 at most doubles, memory stays
//! flat, the attacker is sent away, the application never has more than the limit.

use std::net::SocketAddr;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::support::gateway::Gateway;
use crate::support::ledger::End;
use crate::support::{
    Engine, Over, SOON, Stopwatch, engines, process, scale, skip, slack, sockets, tail, until,
};

use super::client::Http1;
use super::frames::{self, Raw};
use super::http2;
use super::oracle::{HttpOracle, Seen};
use super::{assert_settled, gate};

engines!(
    a1_rapid_reset,
    a1_a_reset_does_not_free_the_slot,
    a2_continuation_flood,
    a3_made_you_reset,
    a4_floods_of_frames,
    a4_empty_data_flood,
    a5_slow_heads_hold_no_slot,
    a5_slow_bodies_and_slow_readers,
    a5_slowhttptest,
    a6_clients_that_do_not_read,
    a9_header_bombs,
    a9_a_head_may_be_as_large_as_that_and_not_larger,
    a9_more_streams_than_allowed,
);

/// What an attack may cost in memory.
const FLAT: u64 = 4 << 20;

/// What is remembered of refusals and of what broke, when there is much of that (`src/journal.rs`).
const REMEMBERED: u64 = 3 << 20;

/// What a client that is slow may cost besides: its connection; and one that takes nothing of an answer a piece
/// of that, and a connection to the application (SECURITY.md).
const CLIENT: u64 = 20 << 10;
const PIECE: u64 = 64 << 10;

/// Somebody who asks 100 times a second. What he sees beside an attack is compared with what he saw before.
struct Bystander {
    p99: Duration,
    /// The same without a gateway: how busy the machine is.
    busy: Duration,
}

impl Bystander {
    /// Until that is enough. He has an address of his own.
    fn measure(to: SocketAddr, enough: impl Fn(usize) -> bool) -> Self {
        let bare = HttpOracle::start();
        let ask = |to| {
            let asked = Stopwatch::start();
            let mut client = Http1::connect_from([127, 0, 0, 2].into(), to);
            client.ask("/work?ms=1", "");
            assert_eq!(client.end(), End::Answered, "the bystander");
            asked.own()
        };
        let (mut through, mut directly) = (Vec::new(), Vec::new());
        while !enough(through.len()) {
            let turn = Instant::now();
            through.push(ask(to));
            directly.push(ask(bare.address));
            std::thread::sleep(Duration::from_millis(10).saturating_sub(turn.elapsed())); // its pace
        }
        let p99 = |mut took: Vec<Duration>| {
            took.sort();
            took[(took.len() as f64 * tail(took.len())) as usize]
        };
        Self { p99: p99(through), busy: p99(directly) }
    }

    /// The bar: not more than twice what it was.
    #[track_caller]
    fn assert_unharmed(&self, before: &Self) {
        let bound = slack(2 * before.p99) + 2 * self.busy;
        let tell = format!("before {:?}, of the machine {:?}", before.p99, self.busy);
        assert!(self.p99 <= bound, "p99 {:?}, {tell}", self.p99);
    }
}

/// The most memory the gateway ever had until it was over.
fn most_memory(gateway: &Gateway, over: &AtomicBool) -> u64 {
    let mut most = 0;
    while !over.load(Ordering::Relaxed) {
        most = most.max(process::rss(gateway.pid));
        std::thread::sleep(Duration::from_millis(5)); // between two looks
    }
    most
}

/// Runs an attack again and again, and judges what it does meanwhile to the others, to memory and to the
/// application, which has seen what is returned.
fn under_attack(
    engine: Engine,
    more: &[(&str, &str)],
    attack: impl Fn(&Gateway) + Sync,
) -> Vec<Seen> {
    let app = HttpOracle::start();
    let setup = gate(engine, app.address).set("limit", 8).set("queue-length", 100);
    let setup = more.iter().fold(setup, |setup, (key, value)| setup.set(key, value));
    let gateway = setup.start();
    let (seconds, many) = (scale(2, 10) as u64, scale(40, 1_000));
    let before = Bystander::measure(gateway.address, |samples| samples >= many);
    let memory = process::rss(gateway.pid);
    let (begun, over) = (AtomicBool::new(false), AtomicBool::new(false));
    let (during, most) = std::thread::scope(|scope| {
        let enough = Over(&over);
        let attacker = scope.spawn(|| {
            let _over = Over(&begun); // who waits for it does not wait in vain
            while !over.load(Ordering::Relaxed) {
                begun.store(true, Ordering::Relaxed);
                attack(&gateway);
                // One attacker: what he has left behind has ended when he comes again.
                until("only the bystander is there", SOON, || gateway.status().connections <= 1);
            }
        });
        let watcher = scope.spawn(|| most_memory(&gateway, &over));
        until("the attack has begun", SOON, || begun.load(Ordering::Relaxed));
        let (start, length) = (Instant::now(), Duration::from_secs(seconds));
        let enough_seen = |samples| samples >= many && start.elapsed() >= length;
        let during = Bystander::measure(gateway.address, enough_seen);
        drop(enough);
        attacker.join().expect("the attack went as it should");
        (during, watcher.join().expect("it only looks"))
    });
    let grown = most.saturating_sub(memory);
    during.assert_unharmed(&before);
    assert!(grown <= FLAT + REMEMBERED, "memory grew by {grown} bytes");
    assert!(app.peak() as u64 <= gateway.port().limit.unwrap_or(0), "{} at once", app.peak());
    until("no slot is held", SOON, || gateway.port().active == 0);
    assert_settled(&gateway, app.address.port());
    app.seen()
}

/// A1: HEADERS and RST_STREAM as fast as the wire takes them: the connection is closed within a second.
fn a1_rapid_reset(engine: Engine) {
    under_attack(engine, &[], |gateway| {
        let mut raw = Raw::connect(gateway.address);
        let head = frames::request("GET", "/work?ms=10", &[]);
        let start = Stopwatch::start();
        let mut sent = 0_u32;
        let flags = frames::END_HEADERS | frames::END_STREAM;
        while (sent as usize) < scale(20_000, 100_000) {
            let mut bytes = Vec::new();
            for _ in 0..50 {
                let stream = 2 * sent + 1;
                bytes.extend(frames::frame(frames::HEADERS, flags, stream, &head));
                let cancel = 8_u32.to_be_bytes();
                bytes.extend(frames::frame(frames::RST_STREAM, 0, stream, &cancel));
                sent += 1;
            }
            if raw.send(&bytes).is_err() {
                break;
            }
        }
        let end = raw.goaway(slack(Duration::from_secs(1)));
        assert!(end.is_ok(), "not sent away after {sent} resets");
        let took = start.own();
        assert!(took <= slack(Duration::from_secs(1)), "sent away after {took:?}, {sent} resets");
    });
}

/// A1: what was reset after it reached the application holds its slot until the application has ended.
fn a1_a_reset_does_not_free_the_slot(engine: Engine) {
    let app = HttpOracle::start();
    let gateway = gate(engine, app.address).set("limit", 3).set("queue-length", 0).start();
    let mut raw = Raw::connect(gateway.address);
    let head = frames::request("GET", "/held", &[]);
    let flags = frames::END_HEADERS | frames::END_STREAM;
    for number in 0..3 {
        raw.send(&frames::frame(frames::HEADERS, flags, 2 * number + 1, &head)).expect("writes");
    }
    until("three are in", SOON, || app.in_progress() == 3);
    for number in 0..3 {
        let cancel = 8_u32.to_be_bytes();
        let reset = frames::frame(frames::RST_STREAM, 0, 2 * number + 1, &cancel);
        raw.send(&reset).expect("writes");
    }
    std::thread::sleep(Duration::from_millis(100)); // long enough to free the slots by mistake
    assert_eq!(gateway.port().active, 3);
    assert_eq!(Http1::connect(gateway.address).get("/").status, 503);
    app.release(3);
    until("the slots are free", SOON, || gateway.port().active == 0);
    assert_eq!((app.count(), app.peak()), (3, 3));
    drop(raw);
    assert_settled(&gateway, app.address.port());
}

/// A2: a head that never ends: closed before it is large. A frame is sent when the gateway has taken the one
/// before, so that none is on its way when it closes.
fn a2_continuation_flood(engine: Engine) {
    under_attack(engine, &[], |gateway| {
        for round in 0..scale(5, 100) {
            let mut raw = Raw::connect(gateway.address);
            let from = raw.0.local_addr().expect("connected").port();
            let fields = frames::block(&[("x-flood", "y".repeat(100).as_str())]).repeat(9);
            let head = frames::request("GET", "/", &[]);
            let begin = frames::frame(frames::HEADERS, frames::END_STREAM, 1, &head);
            raw.send(&begin).expect("writes");
            let more = frames::frame(frames::CONTINUATION, 0, 1, &fields);
            let mut taken = 0;
            while raw.send(&more).is_ok() && !matches!(raw.discard(), Ok(0) | Err(_)) {
                taken += 1;
                assert!(taken < 64, "round {round}: not closed after {taken} frames of 1 KiB");
                until("the frame is taken", SOON, || {
                    sockets::unread(gateway.address.port(), from).is_none_or(|unread| unread == 0)
                });
            }
        }
    });
}

/// A3: frames that make the server reset streams itself: counted, and the connection closed. The variants
/// take turns.
fn a3_made_you_reset(engine: Engine) {
    let zero = |stream| frames::frame(frames::WINDOW_UPDATE, 0, stream, &[0; 4]);
    let overflow = |stream| frames::frame(frames::WINDOW_UPDATE, 0, stream, &[0x7f, 255, 255, 255]);
    let late_data = |stream| frames::frame(frames::DATA, 0, stream, b"x");
    let variants: [&(dyn Fn(u32) -> Vec<u8> + Sync); 3] = [&zero, &overflow, &late_data];
    let round = AtomicUsize::new(0);
    // What was let in has a slot, as it should: some are left for others.
    let more = [("limit", "16"), ("per-client-limit", "8")];
    under_attack(engine, &more, |gateway| {
        let variant = variants[round.fetch_add(1, Ordering::Relaxed) % variants.len()];
        let mut raw = Raw::connect(gateway.address);
        let head = frames::request("GET", "/", &[]);
        let flags = frames::END_HEADERS | frames::END_STREAM;
        let mut sent = 0;
        while sent < 5_000 {
            let stream = 2 * sent + 1;
            let mut bytes = frames::frame(frames::HEADERS, flags, stream, &head);
            bytes.extend(variant(stream));
            if raw.send(&bytes).is_err() || matches!(raw.discard(), Ok(0) | Err(_)) {
                return;
            }
            sent += 1;
            std::thread::sleep(Duration::from_micros(100)); // so that the answer can be seen
        }
        assert!(raw.goaway(slack(Duration::from_secs(1))).is_ok(), "not sent away");
    });
    assert!(round.into_inner() >= variants.len(), "each had its turn");
}

/// A4: PING and SETTINGS want answers that nobody reads: what is owed stays small. PRIORITY and
/// WINDOW_UPDATE want none, and cost next to nothing.
fn a4_floods_of_frames(engine: Engine) {
    let ping = frames::frame(frames::PING, 0, 0, b"tidegate");
    let settings = frames::frame(frames::SETTINGS, 0, 0, &[0, 4, 0, 1, 0, 0]);
    let priority = frames::frame(frames::PRIORITY, 0, 1, &[0, 0, 0, 0, 15]);
    let update = frames::frame(frames::WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1]);
    for flood in [ping, settings, priority, update] {
        under_attack(engine, &[], |gateway| {
            let mut raw = Raw::connect(gateway.address);
            let patience = Some(Duration::from_millis(500));
            raw.0.set_write_timeout(patience).expect("not zero");
            let many = flood.repeat(1_000);
            for _ in 0..scale(100, 1_000) {
                if raw.send(&many).is_err() {
                    break; // sent away, or no longer read
                }
            }
        });
    }
}

/// A4: DATA without a byte, as many as one likes: the connection is ended. What it was a part of holds a
/// slot until the application has ended, so there are more slots than that takes.
fn a4_empty_data_flood(engine: Engine) {
    under_attack(engine, &[("abandon-timeout", "500ms"), ("limit", "64")], |gateway| {
        until("slots are left for others", SOON, || gateway.port().active < 48);
        let mut raw = Raw::connect(gateway.address);
        raw.0.set_write_timeout(Some(Duration::from_millis(500))).expect("not zero");
        let head = frames::request("POST", "/up", &[]);
        let begin = frames::frame(frames::HEADERS, frames::END_HEADERS, 1, &head);
        raw.send(&begin).expect("writes");
        let many = frames::frame(frames::DATA, 0, 1, b"").repeat(1_000);
        for _ in 0..scale(100, 1_000) {
            if raw.send(&many).is_err() {
                break;
            }
        }
    });
}

/// A5: heads that never end hold no slot, and are cut after `header-timeout`, the first one as well as the
/// next on a kept connection.
fn a5_slow_heads_hold_no_slot(engine: Engine) {
    let app = HttpOracle::start();
    let setup = gate(engine, app.address).set("limit", 1).set("queue-length", 0);
    let gateway = setup.set("header-timeout", "1s").start();
    let start = Stopwatch::start();
    let mut slow: Vec<_> = (0..100)
        .map(|_| {
            let mut client = Http1::connect(gateway.address);
            client.send("GET / HTTP/1.1\r\nHost: app\r\nX-Slow: ");
            client
        })
        .collect();
    let known = || {
        let mut client = gateway.paused(|| Http1::asking(gateway.address, "/"));
        assert_eq!(client.answer().expect("an answer").status, 200);
        client
    };
    let (mut again, mut honest) = (known(), known());
    again.send("GET / HT");
    for client in &mut slow {
        client.send("y"); // a byte now and then is no progress
        assert_eq!(honest.get("/").status, 200, "the honest one");
    }
    assert_eq!(gateway.port().active, 0);
    slow.push(again);
    for mut client in slow {
        match client.answer() {
            Ok(answer) => assert_eq!(answer.status, 408, "{answer:?}"),
            Err(error) => {
                assert!(!matches!(error.kind(), std::io::ErrorKind::WouldBlock), "{error}")
            }
        }
    }
    let took = start.own();
    assert!(took < slack(Duration::from_secs(2)), "cut after {took:?}");
    drop(honest);
    assert_settled(&gateway, app.address.port());
}

/// A5, A6: whoever got a slot and then stalls loses it after `write-stall-timeout`; memory stays flat.
fn a5_slow_bodies_and_slow_readers(engine: Engine) {
    let app = HttpOracle::start();
    let gateway = gate(engine, app.address)
        .set("limit", 20)
        .set("queue-length", 100)
        .set("queue-timeout", "20s")
        .set("write-stall-timeout", "1s")
        .set("abandon-timeout", "1s")
        .start();
    let readers: Vec<_> =
        (0..20).map(|_| Http1::asking(gateway.address, "/down?n=100000000")).collect();
    until("they have had all slots", SOON, || gateway.port().admitted == 20);
    let mut honest = Http1::connect(gateway.address).patience(2 * SOON);
    honest.ask("/work?ms=0", "");
    assert_eq!(honest.end(), End::Answered, "as soon as they were cut");
    until("all were cut", SOON, || gateway.port().active == 0);
    drop((readers, honest));
    assert_settled(&gateway, app.address.port());
}

/// A5 with Debian's slowhttptest: slow heads, slow bodies, slow readers, ranges. Its bodies and readers hold
/// what slots one address may have; an honest client at another address is served as before.
fn a5_slowhttptest(engine: Engine) {
    if !process::installed("slowhttptest") {
        return skip("slowhttptest is not installed");
    }
    let connections = scale(200, 2_000);
    let seconds = scale(3, 20).to_string();
    for mode in ["-H", "-B", "-X", "-R"] {
        let app = HttpOracle::start();
        let gateway = gate(engine, app.address)
            .set("limit", 4)
            .set("queue-length", 100)
            .set("per-client-limit", 2)
            .set("header-timeout", "2s")
            .set("body-timeout", "2s")
            .set("write-stall-timeout", "2s")
            .set("abandon-timeout", "1s")
            .start();
        let many = scale(40, 1_000);
        let before = Bystander::measure(gateway.address, |samples| samples >= many);
        let memory = process::rss(gateway.pid);
        let url = format!("http://{}/down?n=100000", gateway.address);
        let over = AtomicBool::new(false);
        let (during, most) = std::thread::scope(|scope| {
            let _over = Over(&over);
            let honest = scope
                .spawn(|| Bystander::measure(gateway.address, |_| over.load(Ordering::Relaxed)));
            let watcher = scope.spawn(|| most_memory(&gateway, &over));
            let guard = Over(&over);
            let mut attack = Command::new("slowhttptest");
            attack.args([mode, "-c", &connections.to_string(), "-r", "200", "-i", "1"]);
            let attack = attack.args(["-l", &seconds, "-p", "5", "-u", &url]).output();
            drop(guard);
            assert_slow_in_vain(mode, &String::from_utf8_lossy(&attack.expect("it runs").stdout));
            let honest = honest.join().expect("the honest client was served");
            (honest, watcher.join().expect("it only looks"))
        });
        during.assert_unharmed(&before);
        let (grown, allowed) =
            (most.saturating_sub(memory), connections as u64 * CLIENT + 4 * PIECE + FLAT);
        assert!(grown <= allowed, "{mode}: memory grew by {grown} bytes");
        until("no slot is held", 4 * SOON, || gateway.port().active == 0);
        assert_settled(&gateway, app.address.port());
    }
}

/// The tool's own verdict: its test came to an end, and it was answered whenever it looked.
#[track_caller]
fn assert_slow_in_vain(mode: &str, said: &str) {
    let mut plain = said.split('\u{1b}');
    let first = plain.next().unwrap_or_default().to_owned();
    let plain =
        plain.fold(first, |plain, part| plain + part.split_once('m').map_or("", |cut| cut.1));
    let ends = ["Hit test time limit", "No open connections left"];
    assert!(ends.iter().any(|end| plain.contains(end)), "{mode}: {plain}");
    let mut looks = plain.split("service available:").skip(1).peekable();
    assert!(looks.peek().is_some(), "{mode}: {plain}");
    assert!(looks.all(|look| look.trim_start().starts_with("YES")), "{mode}: {plain}");
}

/// A6: connections that never read what they asked for, HTTP/1 and HTTP/2: 104 KiB each, and not more; on io_uring
/// 120, until it is seen that they do not.
fn a6_clients_that_do_not_read(engine: Engine) {
    let count = scale(100, 1_000);
    let app = HttpOracle::start();
    let gateway = gate(engine, app.address)
        .set("limit", 2 * count)
        .set("write-stall-timeout", "2s")
        .set("abandon-timeout", "1s")
        .start();
    let memory = process::rss(gateway.pid);
    let head = frames::request("GET", "/down?n=100000000", &[]);
    let flags = frames::END_HEADERS | frames::END_STREAM;
    let ones: Vec<_> =
        (0..count).map(|_| Http1::asking(gateway.address, "/down?n=100000000")).collect();
    let twos: Vec<_> = (0..count)
        .map(|_| {
            let mut raw = Raw::connect(gateway.address);
            raw.send(&frames::frame(frames::HEADERS, flags, 1, &head)).expect("writes");
            raw
        })
        .collect();
    until("all have a slot", SOON, || gateway.port().admitted == 2 * count as u64);
    let grown = process::rss(gateway.pid).saturating_sub(memory);
    let in_flight = if engine == Engine::Uring { 16 << 10 } else { 0 };
    let allowed = 2 * count as u64 * (2 * CLIENT + PIECE + in_flight) + FLAT;
    assert!(grown <= allowed, "memory grew by {grown} bytes for {} clients", 2 * count);
    until("all were cut", 3 * SOON, || gateway.port().active == 0);
    drop((ones, twos));
    assert_settled(&gateway, app.address.port());
}

/// A9: many fields, long fields, fields that HPACK makes long: refused, memory stays flat, and the application
/// is not asked.
fn a9_header_bombs(engine: Engine) {
    let told = AtomicUsize::new(0);
    let seen = under_attack(engine, &[], |gateway| {
        for _ in 0..scale(20, 500) {
            let mut client = Http1::connect(gateway.address);
            client.send("GET /bomb HTTP/1.1\r\nHost: app\r\n");
            client.send("X: y\r\n".repeat(20_000));
            match client.answer() {
                Ok(answer) => {
                    assert_eq!(answer.status, 431, "{answer:?}");
                    told.fetch_add(1, Ordering::Relaxed);
                }
                // It was still sending when nobody listened any more.
                Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset),
            }
            // 3900 bytes in the dynamic table, then 2000 references of one byte to it.
            let mut block = frames::request("GET", "/bomb", &[]);
            block.extend([
                0x40,
                1,
                b'x',
                0x7f,
                0x80 | (3_900 - 127) as u8 & 0x7f,
                ((3_900 - 127) >> 7) as u8,
            ]);
            block.extend([b'y'; 3_900]);
            block.extend([0xbe; 2_000]);
            let mut raw = Raw::connect(gateway.address);
            let flags = frames::END_HEADERS | frames::END_STREAM;
            raw.send(&frames::frame(frames::HEADERS, flags, 1, &block)).expect("writes");
            let sent_away = raw.goaway(SOON).expect("it is answered");
            assert_eq!(sent_away, Some(11), "ENHANCE_YOUR_CALM");
        }
    });
    assert!(told.into_inner() > 0, "most of them are told");
    assert!(!seen.iter().any(|seen| seen.path == "/bomb"), "the application was asked");
}

/// A9: up to 32 KiB and 100 fields pass (of HTTP/1 what came in the same read, too; of HTTP/2 as many as fit, of which each counts 32 bytes more), and what
/// is larger is told so and not forwarded.
fn a9_a_head_may_be_as_large_as_that_and_not_larger(engine: Engine) {
    let app = HttpOracle::start();
    let gateway = gate(engine, app.address).set("limit", 1).start();
    let of_length = |length: usize| {
        let begin = "GET / HTTP/1.1\r\nHost: app\r\nX: ";
        format!("{begin}{}\r\n\r\n", "x".repeat(length - begin.len() - 4))
    };
    let of_fields = |count: usize| {
        format!("GET / HTTP/1.1\r\nHost: app\r\n{}\r\n", "X: y\r\n".repeat(count - 1))
    };
    let (most, fields) = (32 << 10, 100);
    for (head, status) in [
        (of_length(most - 1), 200),
        (of_length(2 * most + 1), 431),
        (of_fields(fields), 200),
        (of_fields(fields + 1), 431),
    ] {
        let mut client = Http1::connect(gateway.address);
        client.send(&head);
        let answer = client.answer().expect("an answer");
        assert_eq!(answer.status, status, "{} bytes: {answer:?}", head.len());
    }
    // What HPACK has of them: a name and a value of a byte each. The four of a request come to 160 bytes.
    let each = 1 + 1 + 32;
    let fit = (most - 4 * 32 - ":method:scheme:path:authorityGEThttp/app".len()) / each;
    for (count, status) in [(fit, &[frames::STATUS_200][..]), (fit + 1, &frames::STATUS_431)] {
        let mut block = frames::request("GET", "/", &[]);
        block.extend([0, 1, b'x', 1, b'y'].repeat(count));
        let mut raw = Raw::connect(gateway.address);
        let flags = frames::END_HEADERS | frames::END_STREAM;
        raw.send(&frames::frame(frames::HEADERS, flags, 1, &block)).expect("writes");
        let answer = std::iter::from_fn(|| raw.read().ok()).find(|frame| frame.stream == 1);
        let answer = answer.expect("an answer");
        assert!(answer.payload.starts_with(status), "{count} fields: {answer:?}");
    }
    assert_eq!(app.count(), 3);
    until("no slot is held", SOON, || gateway.port().active == 0);
    assert_settled(&gateway, app.address.port());
}

/// `http2-max-streams`: one more than allowed is refused, or never read; the connection lives.
fn a9_more_streams_than_allowed(engine: Engine) {
    for (set, most) in [(None, 100), (Some(7), 7_usize)] {
        let app = HttpOracle::start();
        let setup = gate(engine, app.address).set("limit", 1_000);
        let setup = set.into_iter().fold(setup, |setup, most| setup.set("http2-max-streams", most));
        let gateway = setup.start();
        let mut raw = Raw::connect(gateway.address);
        for number in 0..most as u32 + 50 {
            raw.ask(2 * number + 1, "/held", &[]).expect("writes");
        }
        until("as many as may are in", SOON, || app.in_progress() >= most);
        std::thread::sleep(Duration::from_millis(100)); // long enough for one too many
        assert_eq!(app.peak(), most, "streams on a connection");
        app.release(most);
        until("they are over", SOON, || gateway.port().active == 0);
        http2::block_on(async {
            let mut other = http2::Http2::connect(gateway.address).await;
            assert_eq!(other.get("/").await.status, 200);
        });
        drop(raw);
        assert_settled(&gateway, app.address.port());
    }
}
