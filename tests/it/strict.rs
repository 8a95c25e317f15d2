//! P1: the application never has more than `limit` at once, whatever the clients and the operator do.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::support::gateway::{Gateway, Setup};
use crate::support::ledger::{self, Client, End};
use crate::support::oracle::{Oracle, Script};
use crate::support::{Engine, Over, Rng, SOON, engines, scale, sockets, until};

engines!(
    a_storm_under_a_changing_limit,
    lowering_the_limit_kills_nobody_and_admits_nobody,
    raising_the_limit_admits_the_waiters,
    every_port_has_its_own_gate,
    workers_share_the_gate,
);

/// P1, P11, T23, T43: short connections that cancel, reset, half-close and time out, while the limit
/// goes up and down every 50 ms; afterwards nothing is left.
fn a_storm_under_a_changing_limit(engine: Engine) {
    const PERIOD: Duration = Duration::from_millis(50);
    let seed = Rng::announced();
    let oracle = Oracle::start(Script::Work);
    let watch = sockets::Watch::start(oracle.address.port());
    let gateway = Setup::new(engine, oracle.address)
        .set("limit", 16)
        .set("queue-length", 40)
        .set("queue-timeout", "200ms")
        .set("abandon-timeout", "1s")
        .start();

    let limits = Mutex::new(vec![Set::now(16)]);
    let over = AtomicBool::new(false);
    let ledger = std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut rng = Rng::new(seed);
            let mut next = Instant::now();
            while !over.load(Ordering::Relaxed) {
                let limit = 1 + rng.below(16);
                let mut set = Set::now(limit as usize);
                gateway.set("limit", limit);
                until("it is kept", SOON, || gateway.port().active <= limit);
                set.settled = Instant::now();
                limits.lock().expect("not poisoned").push(set);
                next += PERIOD; // the storm's own clock, not a synchronisation
                std::thread::sleep(next.saturating_duration_since(Instant::now()));
            }
        });
        let _over = Over(&over);
        ledger::closed_loop(48, scale(3_000, 20_000), |_, turn| {
            stormy(&gateway, &mut Rng::new(seed ^ (turn << 20)))
        })
    });

    assert_eq!(ledger.of(End::Lost), 0, "{ledger:?}");
    let (answered, total) = (ledger.of(End::Answered), ledger.total());
    assert!(answered * 20 > total, "most of the storm passed by the application: {ledger:?}");
    assert!(watch.peak() <= 16, "the kernel saw {} at once", watch.peak());
    let limits = limits.into_inner().expect("not poisoned");
    for arrival in oracle.arrivals() {
        let allowed = allowed_at(arrival.at, &limits);
        let alive = arrival.alive;
        assert!(alive <= allowed, "{alive} alive under a limit of at most {allowed}");
    }
    gateway.assert_clean();
    until("the application has none left", SOON, || oracle.count() == 0);
}

/// One change of the limit.
struct Set {
    /// It was not in force before.
    asked: Instant,
    /// From then on not more than it allows were there: who was let in under another limit has gone, or
    /// counts as one of them.
    settled: Instant,
    limit: usize,
}

impl Set {
    fn now(limit: usize) -> Self {
        let now = Instant::now();
        Self { asked: now, settled: now, limit }
    }
}

/// The most that can have been let in and be there when a connection arrived `at`, however long it was
/// underway: a limit is kept until the next one is settled.
fn allowed_at(at: Instant, limits: &[Set]) -> usize {
    let next = |index: usize| limits.get(index + 1);
    let in_force = limits.iter().enumerate().filter(|(index, set)| {
        set.asked <= at && next(*index).is_none_or(|next| at <= next.settled)
    });
    let highest = in_force.map(|(_, set)| set.limit).max();
    highest.expect("some limit is always in force")
}

/// One short connection that may leave in any way.
fn stormy(gateway: &Gateway, rng: &mut Rng) -> End {
    let Ok(client) = Client::connect(gateway.address) else {
        return End::NotConnected;
    };
    let mut client = client.patience(Duration::from_millis(1 + rng.below(300)));
    let work = rng.millis(20);
    match rng.below(12) {
        0 => client.reset(), // before a word
        1 => drop(client),   // the same, politely
        2 => {
            client.ask(work);
            client.reset();
        }
        3 => {
            client.ask(work);
            std::thread::sleep(rng.millis(120)); // leaves at some point of its wait or its answer
            client.reset();
        }
        4 => {
            client.ask(work);
            std::thread::sleep(rng.millis(120));
            drop(client);
        }
        5 => {
            client.ask(work);
            client.half_close(); // gone while it waits, kept once admitted
            return client.end();
        }
        _ => {
            client.ask(work);
            return client.end();
        }
    }
    End::Left
}

/// P1, T43: lowering the limit ends nothing, and admits nothing until usage has fallen below it.
fn lowering_the_limit_kills_nobody_and_admits_nobody(engine: Engine) {
    let oracle = Oracle::start(Script::Held);
    let gateway = Setup::new(engine, oracle.address)
        .set("limit", 20)
        .set("queue-length", 10)
        .set("queue-timeout", "60s")
        .start();
    let ask = || Client::asking(gateway.address, Duration::ZERO);
    let mut clients: Vec<_> = (0..20).map(|_| ask()).collect();
    until("20 are in flight", SOON, || oracle.ids().len() == 20);
    gateway.set("limit", 5);
    clients.extend((0..10).map(|_| ask()));
    until("10 wait", SOON, || gateway.port().queued == 10);
    assert_eq!(oracle.count(), 20, "nobody was cut");

    let ledger = ledger::end_all_while(&mut clients, || {
        for left in (5..20).rev() {
            oracle.release(1);
            until("one was answered", SOON, || gateway.port().active == left);
            assert_eq!(oracle.arrived(), 20, "nobody is admitted with {left} in flight, limit 5");
        }
        oracle.release(1);
        until("the first waiter is let in", SOON, || oracle.arrived() == 21);
        assert_eq!(gateway.port().active, 5);
        oracle.release(14);
    });
    assert_eq!(ledger.of(End::Answered), 30, "{ledger:?}");
    gateway.assert_clean();
}

/// P1, T43: raising the limit lets in as many waiters as now fit, at once.
fn raising_the_limit_admits_the_waiters(engine: Engine) {
    let oracle = Oracle::start(Script::Held);
    let gateway = Setup::new(engine, oracle.address)
        .set("limit", 2)
        .set("queue-length", 20)
        .set("queue-timeout", "60s")
        .start();
    let mut clients: Vec<_> =
        (0..20).map(|_| Client::asking(gateway.address, Duration::ZERO)).collect();
    until("2 in, 18 waiting", SOON, || oracle.ids().len() == 2 && gateway.port().queued == 18);
    gateway.set("limit", 12);
    until("12 in", SOON, || oracle.count() == 12);
    let port = gateway.port();
    assert_eq!((port.limit, port.active, port.queued), (Some(12), 12, 8));
    oracle.release(20);
    for client in &mut clients {
        assert_eq!(client.end(), End::Answered);
    }
    assert_eq!(oracle.peak(), 12);
    gateway.assert_clean();
}

/// P1: each port has its own gate, and its own live limit.
fn every_port_has_its_own_gate(engine: Engine) {
    let oracles = [Oracle::start(Script::Held), Oracle::start(Script::Held)];
    let gateway = Setup::new(engine, oracles[0].address)
        .port(oracles[1].address)
        .set("limit", 3)
        .set("queue-length", 20)
        .set("queue-timeout", "60s")
        .start();
    gateway.set(&format!("limit.{}", gateway.listens[1].port()), 5);
    let mut clients = Vec::new();
    for listen in &gateway.listens {
        clients.extend((0..8).map(|_| Client::asking(*listen, Duration::ZERO)));
    }
    until("3 and 5 in", SOON, || oracles[0].count() == 3 && oracles[1].count() == 5);
    until("the rest waits", SOON, || {
        let ports = gateway.status().ports;
        (ports[0].queued, ports[1].queued) == (5, 3)
    });
    oracles.iter().for_each(|oracle| oracle.release(8));
    for client in &mut clients {
        assert_eq!(client.end(), End::Answered);
    }
    assert_eq!((oracles[0].peak(), oracles[1].peak()), (3, 5));
    gateway.assert_clean();
}

/// P1: several workers share one gate.
fn workers_share_the_gate(engine: Engine) {
    let oracle = Oracle::start(Script::Work);
    let gateway = Setup::new(engine, oracle.address)
        .set("workers", 3)
        .set("limit", 6)
        .set("queue-length", 100)
        .set("queue-timeout", "60s")
        .start();
    let ledger = ledger::closed_loop(40, scale(1_000, 10_000), |_, _| {
        ledger::exchange(gateway.address, Duration::from_millis(1), SOON)
    });
    assert_eq!(ledger.of(End::Answered), ledger.total(), "{ledger:?}");
    assert_eq!(oracle.peak(), 6);
    gateway.assert_clean();
}
