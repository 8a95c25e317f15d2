//! P6: when it is told to go, it finishes what it has, in order, and nothing is lost.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::support::gateway::{Draining, Gateway, Setup};
use crate::support::ledger::{self, Client, End, Ledger};
use crate::support::oracle::{Oracle, Script};
use crate::support::{
    Engine, Over, Rng, SOON, Stopwatch, engines, namespace, process, run, scale, skip, slack, until,
};

engines!(
    five_hundred_in_flight_and_two_hundred_queued,
    the_backlog_is_served_or_refused,
    a_stuck_client_does_not_pass_the_deadline,
    the_deadline_leaves_a_reserve_of_the_grace,
    the_queue_is_served_while_it_closes,
    a_full_queue_still_refuses,
    announcing_still_accepts,
    the_announcement_goes_on_while_connections_arrive,
    a_second_signal_means_now,
    draining_twice_is_draining_once,
    an_idle_gateway_leaves_at_once,
    waiting_for_a_drain_starts_none,
    a_hundred_bytes_in_the_middle_survive,
);

/// P6, T11: under load, with 500 in flight and 200 waiting: none is lost, the waiters are served in the
/// order they came, and the report says what the clients say.
fn five_hundred_in_flight_and_two_hundred_queued(engine: Engine) {
    let seed = Rng::announced();
    let mut rng = Rng::new(seed);
    let longest = scale(1_500, 8_000) as u64;
    let oracle = Oracle::start(Script::Work);
    let mut gateway = Setup::new(engine, oracle.address)
        .set("workers", 1) // of two, one may be held up with a waiter it has let in
        .set("limit", 500)
        .set("queue-length", 200)
        .set("queue-timeout", "60s")
        .set("drain-timeout", "60s")
        .set("grace", "90s")
        .start();
    let mut ask = || {
        let work = Duration::from_millis(200 + rng.below(longest));
        Client::asking(gateway.address, work)
    };
    // The first 500 are asked to work only once all are in, so that none has ended before the drain.
    let idle = (0..500).map(|_| Client::connect(gateway.address).expect("connects"));
    let mut clients: Vec<_> = idle.collect();
    until("500 in flight", SOON, || oracle.count() == 500);
    clients.extend((0..200).map(|_| ask()));
    until("200 wait", SOON, || gateway.port().queued == 200);
    let order: Vec<u64> = clients[500..].iter().map(|client| client.id).collect();

    let draining = gateway.drain();
    let mut rng = Rng::new(seed ^ 1);
    for client in &mut clients[..500] {
        client.ask(Duration::from_millis(200 + rng.below(longest)));
    }
    let late = std::thread::scope(|scope| {
        let load = scope.spawn(|| {
            // As long as the queue is, for the last.
            let late = |_, _| ledger::exchange(gateway.address, Duration::ZERO, 6 * SOON);
            ledger::closed_loop(4, 400, late)
        });
        let ledger: Ledger = clients.iter_mut().map(Client::end).collect();
        assert_eq!(ledger.of(End::Answered), 700, "{ledger:?}");
        load.join().expect("no panic")
    });
    let report = draining.report();
    let answered: Vec<u64> = oracle.ids();
    let waited: Vec<u64> = answered.iter().copied().filter(|id| order.contains(id)).collect();
    assert_sorted_but_for(&waited, &order, 20);
    assert_eq!(late.of(End::Lost) + late.of(End::Reset) + late.of(End::TimedOut), 0, "{late:?}");
    assert_eq!(report.in_flight_at_start, 500, "{report:?}");
    assert_eq!(report.queued_at_start, 200, "{report:?}");
    assert_eq!(report.finished, 700 + late.of(End::Answered), "{report:?} {late:?}");
    assert_eq!(report.cut, 0, "{report:?}");
    assert_eq!(report.refused, late.of(End::Refused), "{report:?} {late:?}");
    assert_eq!(oracle.peak(), 500);
    gateway.terminate(slack(Duration::from_secs(2)));
}

/// The application reads the requests in the order of admission, but for a few that were let in together.
fn assert_sorted_but_for(served: &[u64], order: &[u64], places: usize) {
    assert_eq!(served.len(), order.len());
    for (place, id) in order.iter().enumerate() {
        let at = served.iter().position(|other| other == id).expect("it was served");
        assert!(
            at.abs_diff(place) <= places,
            "number {place} to come was number {at} to be served"
        );
    }
}

/// P6: connections which the kernel has completed but the gateway has not accepted are served or
/// refused, not reset, when the listener closes.
fn the_backlog_is_served_or_refused(engine: Engine) {
    for _ in 0..scale(5, 100) {
        backlog_at_sigterm(engine); // again and again: it is a race between two threads of the gateway
    }
}

fn backlog_at_sigterm(engine: Engine) {
    let oracle = Oracle::start(Script::Work);
    let mut gateway =
        Setup::new(engine, oracle.address).set("limit", 10).set("queue-length", 20).start();
    let mut clients = gateway.paused(|| {
        let ask = |_| Client::asking(gateway.address, Duration::ZERO);
        let clients: Vec<_> = (0..100).map(ask).collect();
        gateway.signal(Signal::TERM);
        clients
    });
    let ledger: Ledger = clients.iter_mut().map(Client::end).collect();
    assert_eq!(ledger.of(End::Answered) + ledger.of(End::Refused), 100, "{ledger:?}");
    assert!(oracle.peak() <= 10);
    assert_eq!(gateway.wait_exit(SOON).code(), Some(0));
}

/// P6, T12: a client that never ends is cut at the deadline: exit 0, and it is counted.
fn a_stuck_client_does_not_pass_the_deadline(engine: Engine) {
    let oracle = Oracle::start(Script::Stall);
    let mut gateway = Setup::new(engine, oracle.address).set("drain-timeout", "1s").start();
    let mut stuck = Client::asking(gateway.address, Duration::ZERO);
    until("it is in", SOON, || oracle.count() == 1);
    let start = Stopwatch::start();
    let report = gateway.drain().report();
    let (took, own) = (start.elapsed(), start.own());
    assert_eq!((report.in_flight_at_start, report.finished, report.cut), (1, 0, 1));
    let deadline = Duration::from_secs(1);
    assert!(took >= Duration::from_millis(900) && own < deadline + slack(deadline), "{took:?}");
    assert_ne!(stuck.end(), End::TimedOut, "the stuck client was let go");
    gateway.terminate(slack(Duration::from_secs(2)));
}

/// P6: by SIGTERM alone it ends min(3 s, grace/4) before the grace is over.
fn the_deadline_leaves_a_reserve_of_the_grace(engine: Engine) {
    let oracle = Oracle::start(Script::Stall);
    let mut gateway = Setup::new(engine, oracle.address).set("grace", "4s").start();
    let _stuck = Client::asking(gateway.address, Duration::ZERO);
    until("it is in", SOON, || oracle.count() == 1);
    let told = Instant::now();
    let own = gateway.terminate(Duration::from_secs(4));
    let took = told.elapsed();
    assert!(took > Duration::from_secs(2), "the work could have had 3 s, it got {took:?}");
    assert!(own < Duration::from_millis(3_500), "nothing was left of the grace: {own:?}");
}

/// P6: waiters are still let in while it drains, one after the other and in order.
fn the_queue_is_served_while_it_closes(engine: Engine) {
    let oracle = Oracle::start(Script::Held);
    let mut gateway = waiting_room(engine, &oracle, 20);
    let mut clients = fill(&gateway, &oracle, 20);
    let draining = gateway.drain();
    until("it closes", SOON, || gateway.status().phase == "closing");
    // The phase is told first; whoever slips in before the worker has heard of it is answered.
    until("nobody listens any more", SOON, || TcpStream::connect(gateway.address).is_err());
    oracle.release(21);
    for client in &mut clients {
        assert_eq!(client.end(), End::Answered);
    }
    let order: Vec<u64> = clients.iter().map(|client| client.id).collect();
    assert_eq!(oracle.ids(), order);
    let report = draining.report();
    assert_eq!((report.in_flight_at_start, report.queued_at_start, report.finished), (1, 20, 21));
    gateway.terminate(slack(Duration::from_secs(2)));
}

fn waiting_room(engine: Engine, oracle: &Oracle, queue: usize) -> Gateway {
    Setup::new(engine, oracle.address)
        .set("limit", 1)
        .set("queue-length", queue)
        .set("queue-timeout", "60s")
        .set("drain-timeout", "20s")
        .start()
}

/// Takes the slot, then fills the queue one by one.
fn fill(gateway: &Gateway, oracle: &Oracle, queue: usize) -> Vec<Client> {
    let mut clients = vec![Client::asking(gateway.address, Duration::ZERO)];
    until("the slot is taken", SOON, || oracle.count() == 1);
    for queued in 1..=queue as u64 {
        clients.push(Client::asking(gateway.address, Duration::ZERO));
        until("it waits", SOON, || gateway.port().queued == queued);
    }
    clients
}

/// P6, T13: a drain that begins while the queue is full loses nobody, and refuses with a reason.
fn a_full_queue_still_refuses(engine: Engine) {
    let oracle = Oracle::start(Script::Held);
    let mut gateway = {
        let setup = Setup::new(engine, oracle.address).set("limit", 1).set("queue-length", 5);
        setup
            .set("queue-timeout", "60s")
            .set("drain-timeout", "20s")
            .set("drain-delay", "1s")
            .start()
    };
    let mut clients = fill(&gateway, &oracle, 5);
    let (draining, mut late) = gateway.paused(|| {
        let late = Client::asking(gateway.address, Duration::ZERO);
        gateway.signal(Signal::TERM);
        (gateway.await_drain(), late)
    });
    assert_eq!(late.end(), End::Refused);
    until("it is counted", SOON, || {
        let port = gateway.port();
        port.refused("queue_full") + port.refused("draining") == 1
    });
    oracle.release(6);
    for client in &mut clients {
        assert_eq!(client.end(), End::Answered);
    }
    assert_eq!(draining.report().cut, 0);
    assert_eq!(gateway.wait_exit(slack(Duration::from_secs(2))).code(), Some(0));
}

/// P6: during `drain-delay` it says it is not ready and still serves whoever comes.
fn announcing_still_accepts(engine: Engine) {
    let oracle = Oracle::start(Script::Work);
    let mut gateway =
        Setup::new(engine, oracle.address).set("drain-delay", "60s").set("grace", "5m").start();
    let draining = gateway.drain();
    assert_eq!(gateway.status().phase, "announcing");
    for late in 0..50 {
        let end = ledger::exchange(gateway.address, Duration::ZERO, SOON);
        assert_eq!(end, End::Answered, "number {late} to come late");
    }
    assert_eq!(gateway.status().phase, "announcing");
    drop(oracle); // without an application there is nothing to announce
    let report = draining.report();
    assert_eq!((report.late_arrivals, report.cut), (50, 0), "{report:?}");
    gateway.terminate(slack(Duration::from_secs(2)));
}

/// Whoever still calls has not heard of it: it is announced for longer, but not for more than twice as long.
fn the_announcement_goes_on_while_connections_arrive(engine: Engine) {
    let oracle = Oracle::start(Script::Work);
    let mut gateway = Setup::new(engine, oracle.address).set("drain-delay", "1s").start();
    let (start, over) = (Stopwatch::start(), AtomicBool::new(false));
    let draining = gateway.drain();
    let (ledger, took, own) = std::thread::scope(|scope| {
        let over = Over(&over);
        let load = scope.spawn(|| {
            let mut ledger = Ledger::default();
            while !over.0.load(Ordering::Relaxed) {
                ledger.enter(ledger::exchange(gateway.address, Duration::ZERO, SOON));
            }
            ledger
        });
        until("it closes", SOON, || gateway.status().phase != "announcing");
        let (took, own) = (start.elapsed(), start.own());
        over.0.store(true, Ordering::Relaxed);
        (load.join().expect("no panic"), took, own)
    });
    // With nobody it were a second; a quarter of that more must then be quiet.
    assert!(took >= Duration::from_millis(1_250), "{took:?}");
    // Twice as long at most.
    assert!(own < Duration::from_secs(2) + slack(Duration::from_secs(1)), "{took:?}");
    let report = draining.report();
    assert!(report.late_arrivals > 0, "{report:?} {ledger:?}");
    let lost = ledger.of(End::Lost) + ledger.of(End::Reset) + ledger.of(End::TimedOut);
    assert_eq!((lost, report.cut), (0, 0), "{ledger:?} {report:?}");
    gateway.terminate(slack(Duration::from_secs(2)));
}

/// A second signal cuts what is left at once.
fn a_second_signal_means_now(engine: Engine) {
    let oracle = Oracle::start(Script::Stall);
    let mut gateway =
        Setup::new(engine, oracle.address).set("drain-timeout", "60s").set("grace", "90s").start();
    let _stuck = Client::asking(gateway.address, Duration::ZERO);
    until("it is in", SOON, || oracle.count() == 1);
    gateway.signal(Signal::TERM);
    until("it closes", SOON, || gateway.status().phase == "closing");
    gateway.signal(Signal::TERM);
    let status = gateway.wait_exit(slack(Duration::from_secs(1)));
    assert!(status.code().is_some(), "it ended by itself: {status}");
}

/// T14: being told three times to drain is being told once.
fn draining_twice_is_draining_once(engine: Engine) {
    let oracle = Oracle::start(Script::Held);
    let mut gateway = waiting_room(engine, &oracle, 1);
    let mut clients = fill(&gateway, &oracle, 1);
    let drains = [gateway.drain(), gateway.drain(), gateway.drain()];
    until("it closes", SOON, || gateway.status().phase == "closing");
    oracle.release(2);
    for client in &mut clients {
        assert_eq!(client.end(), End::Answered);
    }
    for report in drains.map(Draining::report) {
        assert_eq!((report.in_flight_at_start, report.finished, report.cut), (1, 2, 0));
    }
    gateway.terminate(slack(Duration::from_secs(2)));
}

/// T16: with nothing to finish, SIGTERM ends it within 2 s (250 ms after the last close, and the delay).
fn an_idle_gateway_leaves_at_once(engine: Engine) {
    let oracle = Oracle::start(Script::Work);
    let mut gateway = Setup::new(engine, oracle.address).start();
    assert_eq!(ledger::exchange(gateway.address, Duration::ZERO, SOON), End::Answered);
    let took = gateway.terminate(SOON);
    assert!(took < slack(Duration::from_millis(250)), "{took:?}");
}

/// `/drain/wait` never starts a drain; when none begins within a quarter of the grace it answers.
fn waiting_for_a_drain_starts_none(engine: Engine) {
    let oracle = Oracle::start(Script::Work);
    let gateway = Setup::new(engine, oracle.address).set("grace", "4s").start();
    let start = Stopwatch::start();
    let reply = gateway.call("GET", "/drain/wait", "");
    assert!(reply.code < 500, "{}", reply.body);
    // A quarter of the grace.
    assert!(start.own() < Duration::from_secs(1) + slack(Duration::from_secs(1)), "{start:?}");
    assert_eq!(gateway.status().phase, "serving");
    assert_eq!(ledger::exchange(gateway.address, Duration::ZERO, SOON), End::Answered);
    gateway.assert_clean();
}

/// P5, P6: a conversation in the middle goes on during the drain, and ends it when it ends.
fn a_hundred_bytes_in_the_middle_survive(engine: Engine) {
    let oracle = Oracle::start(Script::Echo);
    let mut gateway = Setup::new(engine, oracle.address).set("drain-timeout", "20s").start();
    let mut stream = TcpStream::connect(gateway.address).expect("connects");
    stream.set_read_timeout(Some(SOON)).expect("a timeout");
    let mut draining = None;
    for number in 0..100_u8 {
        if number == 50 {
            draining = Some(gateway.drain());
            until("it closes", SOON, || gateway.status().phase == "closing");
        }
        stream.write_all(&[number]).expect("writes");
        let mut echo = [0];
        stream.read_exact(&mut echo).expect("reads");
        assert_eq!(echo[0], number);
    }
    drop(stream);
    let report = draining.expect("in the middle").report();
    assert_eq!((report.finished, report.cut), (1, 0));
    let took = gateway.terminate(SOON);
    assert!(took < slack(Duration::from_millis(250)), "after the last close: {took:?}");
}

/// In a container the gateway is process 1, which hears of no signal it has not asked for: one that comes
/// while it is still starting is kept until it can be obeyed.
#[test]
fn a_signal_that_comes_during_the_start_is_not_lost() {
    if let Some(missing) = namespace::missing() {
        return skip(missing);
    }
    run(Engine::Epoll, |engine| {
        let oracle = Oracle::start(Script::Work);
        for _ in 0..scale(5, 50) {
            let setup = Setup::new(engine, oracle.address).choosing().set("grace", "5m");
            let mut gateway =
                setup.through(&["unshare", "--pid", "--fork", "--kill-child"]).launch();
            // It has opened its addresses, and has yet to try its engine and to start its workers.
            until("it has begun to start", SOON, || gateway.control().exists());
            let path = format!("/proc/{0}/task/{0}/children", gateway.pid);
            let first = std::fs::read_to_string(path).expect("it runs");
            process::signal(first.trim().parse().expect("one child"), Signal::TERM);
            assert_eq!(gateway.wait_exit(SOON).code(), Some(0));
        }
    });
}
