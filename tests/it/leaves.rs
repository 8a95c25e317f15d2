//! Clients that leave: what they held comes free, but only when the application has let go (P1, P2, P11).

use std::time::Duration;

use crate::support::gateway::{Gateway, Setup};
use crate::support::ledger::{self, Client, End};
use crate::support::oracle::{Oracle, Script};
use crate::support::{
    Engine, Rng, SOON, Stopwatch, engines, process, scale, slack, sockets, until,
};

engines!(
    a_waiter_that_left_is_never_forwarded,
    a_waiter_that_half_closes_is_gone,
    a_waiter_that_half_closes_may_be_kept,
    the_slot_is_free_when_the_application_has_ended,
    an_application_that_never_ends_is_abandoned,
    a_silent_connection_times_out,
    a_client_that_does_not_read_is_cut,
    a_client_that_reads_slowly_is_served,
    clients_that_do_not_read_starve_nobody,
    ten_thousand_idle_connections,
    a_hundred_thousand_cancelled,
);

fn one_slot(engine: Engine, oracle: &Oracle) -> (Setup, Duration) {
    let setup = Setup::new(engine, oracle.address)
        .set("limit", 1)
        .set("queue-length", 10)
        .set("queue-timeout", "60s");
    (setup, slack(Duration::from_millis(50)))
}

fn occupy(gateway: &Gateway, oracle: &Oracle) -> Client {
    let client = Client::asking(gateway.address, Duration::ZERO);
    until("the slot is taken", SOON, || oracle.ids().len() == 1);
    client
}

/// P2, T06: FIN or RST of a waiter takes it out of the queue within 50 ms; it is never dialled for.
fn a_waiter_that_left_is_never_forwarded(engine: Engine) {
    let oracle = Oracle::start(Script::Held);
    let (setup, at_once) = one_slot(engine, &oracle);
    let gateway = setup.start();
    let mut first = occupy(&gateway, &oracle);
    let ask = || Client::asking(gateway.address, Duration::ZERO);
    let (closes, resets, mut stays) = (ask(), ask(), ask());
    until("three wait", SOON, || gateway.port().queued == 3);
    drop(closes);
    until("the one that closed is out", at_once, || gateway.port().queued == 2);
    resets.reset();
    until("the one that reset is out", at_once, || gateway.port().queued == 1);
    oracle.release(2);
    assert_eq!(first.end(), End::Answered);
    assert_eq!(stays.end(), End::Answered);
    assert_eq!(oracle.ids(), [first.id, stays.id]);
    assert_eq!(oracle.arrived(), 2, "those who left were not dialled for");
    until("it is counted", SOON, || gateway.port().refused("client_gone") == 2);
    gateway.assert_clean();
}

/// While it waits, a half-close means the client has gone (`queued-half-close gone`).
fn a_waiter_that_half_closes_is_gone(engine: Engine) {
    let oracle = Oracle::start(Script::Held);
    let (setup, at_once) = one_slot(engine, &oracle);
    let gateway = setup.start();
    let mut first = occupy(&gateway, &oracle);
    let waiter = Client::asking(gateway.address, Duration::ZERO);
    until("it waits", SOON, || gateway.port().queued == 1);
    waiter.half_close();
    until("it is out", at_once, || gateway.port().queued == 0);
    until("it is counted", SOON, || gateway.port().refused("client_gone") == 1);
    oracle.release(1);
    assert_eq!(first.end(), End::Answered);
    gateway.assert_clean();
}

/// With `queued-half-close keep` it keeps its place and is answered.
fn a_waiter_that_half_closes_may_be_kept(engine: Engine) {
    let oracle = Oracle::start(Script::Held);
    let (setup, at_once) = one_slot(engine, &oracle);
    let gateway = setup.set("queued-half-close", "keep").start();
    let mut first = occupy(&gateway, &oracle);
    let ask = || Client::asking(gateway.address, Duration::ZERO);
    let (mut half, resets) = (ask(), ask());
    until("two wait", SOON, || gateway.port().queued == 2);
    half.half_close();
    resets.reset();
    until("only the reset one is out", at_once, || gateway.port().queued == 1);
    oracle.release(2);
    assert_eq!(first.end(), End::Answered);
    assert_eq!(half.end(), End::Answered);
    gateway.assert_clean();
}

/// P1: a client that leaves does not free its slot; the application's own end does.
fn the_slot_is_free_when_the_application_has_ended(engine: Engine) {
    let oracle = Oracle::start(Script::Held);
    let (setup, _) = one_slot(engine, &oracle);
    let gateway = setup.start();
    drop(occupy(&gateway, &oracle));
    let mut waiter = Client::asking(gateway.address, Duration::ZERO);
    until("it waits", SOON, || gateway.port().queued == 1);
    assert_eq!(gateway.port().active, 1, "the application is still at work for one that has left");
    assert_eq!(oracle.arrived(), 1);
    oracle.release(1);
    until("the waiter is let in", SOON, || oracle.arrived() == 2);
    oracle.release(1);
    assert_eq!(waiter.end(), End::Answered);
    assert_eq!(oracle.peak(), 1);
    gateway.assert_clean();
}

/// P1: an application that does not end is reset after `abandon-timeout`; the kernel saw one at a time.
fn an_application_that_never_ends_is_abandoned(engine: Engine) {
    let oracle = Oracle::start(Script::Stall);
    let watch = sockets::Watch::start(oracle.address.port());
    let (setup, _) = one_slot(engine, &oracle);
    let gateway = setup.set("abandon-timeout", "300ms").start();
    for number in 1..=3 {
        let client = Client::asking(gateway.address, Duration::ZERO);
        until("it is in", SOON, || oracle.arrived() == number);
        drop(client);
    }
    until("three were abandoned", SOON, || {
        let port = gateway.port();
        port.outcome("abandoned") + port.refused("abandoned") == 3
    });
    assert!(oracle.peak_alive() <= 1, "{} at once", oracle.peak_alive());
    assert!(watch.peak() <= 1);
    gateway.assert_clean();
}

/// T02: nothing moves for `idle-timeout`, and the slot is free.
fn a_silent_connection_times_out(engine: Engine) {
    let oracle = Oracle::start(Script::Stall);
    let (setup, _) = one_slot(engine, &oracle);
    let gateway = setup.set("idle-timeout", "300ms").set("abandon-timeout", "300ms").start();
    let start = Stopwatch::start();
    let mut client = Client::asking(gateway.address, Duration::ZERO);
    assert_ne!(client.end(), End::TimedOut);
    let own = start.own();
    assert!(start.elapsed() >= Duration::from_millis(290), "not before: {:?}", start.elapsed());
    assert!(own < slack(Duration::from_millis(600)), "{own:?}");
    until("it is counted", SOON, || gateway.port().outcome("idle_timeout") == 1);
    gateway.assert_clean();
}

/// `write-stall-timeout`: a client that takes nothing does not keep the slot for ever.
fn a_client_that_does_not_read_is_cut(engine: Engine) {
    let oracle = Oracle::start(Script::EndFirst(64 << 20));
    let (setup, _) = one_slot(engine, &oracle);
    let gateway = setup.set("write-stall-timeout", "500ms").set("abandon-timeout", "500ms").start();
    let _client = Client::connect(gateway.address).expect("connects");
    until("it is counted", SOON, || gateway.port().outcome("client_stalled") == 1);
    gateway.assert_clean();
}

/// P9: `write-stall-timeout` is about taking nothing; who takes a little now and then is not stuck,
/// however large the buffers are that have to empty before the gateway can write again.
fn a_client_that_reads_slowly_is_served(engine: Engine) {
    use std::io::Read;
    let oracle = Oracle::start(Script::EndFirst(64 << 20));
    let (setup, _) = one_slot(engine, &oracle);
    let gateway = setup.set("write-stall-timeout", "600ms").start();
    let mut client = Client::connect(gateway.address).expect("connects");
    let start = std::time::Instant::now();
    let mut sip = [0; 64 << 10];
    while start.elapsed() < Duration::from_secs(3) {
        client.stream.read_exact(&mut sip).expect("still served");
        // The pause is the behaviour under test: shorter than the patience, longer than a turn.
        std::thread::sleep(Duration::from_millis(60));
    }
    assert_eq!(gateway.port().outcome("client_stalled"), 0);
    drop(client);
    gateway.assert_clean();
}

/// P7, P10: clients that send and never read pin little, and nobody else waits for what they pin.
fn clients_that_do_not_read_starve_nobody(engine: Engine) {
    use std::io::Write;
    let oracle = Oracle::start(Script::Echo);
    let gateway = Setup::new(engine, oracle.address).start();
    let stuck: Vec<_> = (0..scale(150, 1_100))
        .map(|_| {
            let client = Client::connect(gateway.address).expect("connects");
            client.stream.set_nonblocking(true).expect("set");
            client
        })
        .collect();
    // Until none of them can send any more: both ways of each are full.
    let mut full = 0;
    while full < 20 {
        let sent = stuck.iter().filter(|c| (&c.stream).write(&[7; 16 << 10]).is_ok()).count();
        full = if sent == 0 { full + 1 } else { 0 };
        std::thread::sleep(Duration::from_millis(5));
    }
    let mut other = Client::connect(gateway.address).expect("connects");
    let start = Stopwatch::start();
    echo_once(&mut other);
    let own = start.own();
    assert!(own < slack(Duration::from_millis(300)), "{own:?}");
    drop((stuck, other));
    gateway.assert_clean();
}

/// P10, P11, T40: idle connections cost little memory, and busy ones do not notice them.
fn ten_thousand_idle_connections(engine: Engine) {
    /// A quarter of what the application's backlog holds: on a busy machine it does not get to
    /// accept while we connect, and what does not fit the kernel drops, until the dials time out.
    const BURST: usize = 1_000;
    let fds =
        rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(u64::MAX);
    // Each is two descriptors in the gateway and two in this process, which plays both ends.
    let most = (fds.min(1 << 20) as usize - 1_000) / 2;
    let count = scale(2_000, 10_000).min(most);
    let oracle = Oracle::start(Script::Echo);
    let gateway = Setup::new(engine, oracle.address).start();
    let warm: Vec<_> =
        (0..100).map(|_| Client::connect(gateway.address).expect("connects")).collect();
    until("warm", SOON, || oracle.count() == 100);
    drop(warm);
    until("cool", SOON, || oracle.count() == 0);

    let before = process::rss(gateway.pid);
    let mut idle = Vec::with_capacity(count);
    while idle.len() < count {
        let more = (count - idle.len()).min(BURST);
        idle.extend((0..more).map(|_| Client::connect(gateway.address).expect("connects")));
        until("all are there", 3 * SOON, || oracle.count() == idle.len());
    }
    let each = process::rss(gateway.pid).saturating_sub(before) / count as u64;
    eprintln!("{} bytes for each of {count} idle connections", each);
    // Not a timing: the same number on any machine, but for the allocator.
    assert!(each <= 2_048, "{each} bytes for each idle connection");

    let mut took = hdrhistogram::Histogram::<u64>::new(3).expect("3 digits");
    let mut busy = Client::connect(gateway.address).expect("connects");
    // Enough of them that a hiccup of the machine is no p99.
    for _ in 0..2_000 {
        let start = Stopwatch::start();
        echo_once(&mut busy);
        took.record(start.own().as_micros() as u64).expect("in range");
    }
    let p99 = Duration::from_micros(took.value_at_quantile(0.99));
    assert!(p99 < Duration::from_millis(20), "p99 of an echo beside them: {p99:?}");
    drop((idle, busy));
    gateway.assert_clean();
}

fn echo_once(client: &mut Client) {
    use std::io::{Read, Write};
    client.stream.write_all(b"x").expect("writes");
    client.stream.read_exact(&mut [0]).expect("an echo");
}

/// P11, T23: connections that are broken off in every state leave nothing behind.
fn a_hundred_thousand_cancelled(engine: Engine) {
    let seed = Rng::announced();
    let oracle = Oracle::start(Script::Work);
    let (setup, _) = one_slot(engine, &oracle);
    let gateway = setup.set("queue-timeout", "50ms").set("abandon-timeout", "200ms").start();
    let count = scale(5_000, 100_000);
    ledger::closed_loop(16, count, |_, turn| {
        let mut rng = Rng::new(seed ^ turn);
        let Ok(mut client) = Client::connect(gateway.address) else {
            return End::NotConnected;
        };
        if rng.below(2) == 0 {
            client.ask(rng.millis(3));
        }
        if rng.below(4) == 0 {
            std::thread::sleep(rng.millis(5)); // in the queue, or with the application
        }
        if rng.below(3) == 0 {
            drop(client);
        } else {
            client.reset();
        }
        End::Left
    });
    assert!(oracle.peak_alive() <= 1);
    gateway.assert_clean();
}
