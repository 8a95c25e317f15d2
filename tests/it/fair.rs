//! P2 and P3: first come, first served; nobody barges; nobody is served after too long a wait.

use std::time::Duration;

use crate::support::gateway::{Gateway, Setup};
use crate::support::ledger::{Client, End};
use crate::support::oracle::{Oracle, Script};
use crate::support::{Engine, SOON, Stopwatch, engines, slack, until};

engines!(
    five_hundred_are_served_in_order,
    nobody_barges_while_the_limit_is_raised,
    a_newcomer_does_not_pass_a_waiter,
    nobody_is_served_after_the_queue_timeout,
    changing_the_queue_timeout_counts_for_newcomers,
);

const WAITERS: usize = 500;

fn patient(engine: Engine, oracle: &Oracle) -> Gateway {
    Setup::new(engine, oracle.address)
        .set("limit", 1)
        .set("queue-length", WAITERS)
        .set("queue-timeout", "120s")
        .start()
}

/// Queues `count` clients behind those that wait already, each seen in the queue before the next comes.
fn queue_up(gateway: &Gateway, count: usize) -> Vec<Client> {
    let before = gateway.port().queued;
    let one = |index: usize| {
        let client = Client::asking(gateway.address, Duration::ZERO);
        let queued = before + index as u64 + 1;
        until("it waits", SOON, || gateway.port().queued == queued);
        client
    };
    (0..count).map(one).collect()
}

fn occupy(gateway: &Gateway, oracle: &Oracle) -> Client {
    let client = Client::asking(gateway.address, Duration::ZERO);
    until("the slot is taken", SOON, || oracle.ids().len() == 1);
    client
}

/// P2: the waiters are served in the order of their arrival.
fn five_hundred_are_served_in_order(engine: Engine) {
    let oracle = Oracle::start(Script::Held);
    let gateway = patient(engine, &oracle);
    let first = occupy(&gateway, &oracle);
    let waiters = queue_up(&gateway, WAITERS);
    let mut clients: Vec<_> = std::iter::once(first).chain(waiters).collect();
    let order: Vec<u64> = clients.iter().map(|client| client.id).collect();
    oracle.release(WAITERS + 1);
    for client in &mut clients {
        assert_eq!(client.end(), End::Answered);
    }
    assert_eq!(oracle.ids(), order);
    assert_eq!(oracle.peak(), 1);
    gateway.assert_clean();
}

/// P2: when the limit is raised the waiters go first, in order; those let in together may change places
/// among themselves on their way to the application.
fn nobody_barges_while_the_limit_is_raised(engine: Engine) {
    const STEP: usize = 25;
    let oracle = Oracle::start(Script::Held);
    let gateway = patient(engine, &oracle);
    let mut clients = vec![occupy(&gateway, &oracle)];
    clients.extend(queue_up(&gateway, 200));
    let order: Vec<u64> = clients.iter().map(|client| client.id).collect();
    for limit in (STEP..=175).step_by(STEP) {
        gateway.set("limit", limit);
        clients.push(Client::asking(gateway.address, Duration::ZERO)); // would like to barge
        until("as many as fit are in", SOON, || oracle.ids().len() == limit);
        let mut served = oracle.ids();
        let mut expected = order[..limit].to_vec();
        served.sort_unstable();
        expected.sort_unstable();
        assert_eq!(served, expected, "the first {limit} to come are the first in");
    }
    oracle.release(clients.len());
    for client in &mut clients {
        assert_eq!(client.end(), End::Answered);
    }
    gateway.assert_clean();
}

/// P2: a slot that comes free belongs to the head of the queue, also while newcomers hammer.
fn a_newcomer_does_not_pass_a_waiter(engine: Engine) {
    let oracle = Oracle::start(Script::Held);
    let gateway = patient(engine, &oracle);
    let mut clients = vec![occupy(&gateway, &oracle)];
    clients.extend(queue_up(&gateway, 20));
    let order: Vec<u64> = clients.iter().map(|client| client.id).collect();
    let late = std::thread::scope(|scope| {
        let newcomers = scope.spawn(|| {
            let ask = |_| Client::asking(gateway.address, Duration::ZERO);
            (0..200).map(ask).collect::<Vec<_>>()
        });
        oracle.release(21);
        newcomers.join().expect("no panic")
    });
    oracle.release(late.len());
    clients.extend(late);
    for client in &mut clients {
        assert_eq!(client.end(), End::Answered);
    }
    assert_eq!(oracle.ids()[..21], order);
    gateway.assert_clean();
}

/// P3: a waiter gets the slot before its timeout, or is refused then; never served later. Slots come
/// free all the time, shortly before, at and after the moment each waiter's time is over.
fn nobody_is_served_after_the_queue_timeout(engine: Engine) {
    const TIMEOUT: Duration = Duration::from_millis(200);
    let oracle = Oracle::start(Script::Work);
    let gateway = Setup::new(engine, oracle.address)
        .set("limit", 2)
        .set("queue-length", 1_000)
        .set("queue-timeout", "200ms")
        .start();
    // 60 clients need 2 slots for 20 ms each: 600 ms of work, of which 200 ms fit.
    let (mut clients, start) = gateway.paused(|| {
        let ask = |_| Client::asking(gateway.address, Duration::from_millis(20));
        ((0..60).map(ask).collect::<Vec<_>>(), Stopwatch::start())
    });
    let ends: Vec<(End, Duration, Duration)> = std::thread::scope(|scope| {
        let end = |client: &mut Client| (client.end(), start.elapsed(), start.own());
        let threads = clients.iter_mut().map(|client| scope.spawn(move || end(client)));
        let threads: Vec<_> = threads.collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
    });
    let late = slack(Duration::from_millis(10));
    for (end, took, own) in &ends {
        match end {
            End::Answered => {
                assert!(*own < TIMEOUT + late + slack(Duration::from_millis(20)), "{took:?}")
            }
            End::Refused | End::Reset => {
                assert!(*took >= TIMEOUT, "refused after only {took:?}");
                let soon = slack(Duration::from_millis(150));
                assert!(*own < TIMEOUT + soon, "refused after {took:?}");
            }
            other => panic!("{other:?} after {took:?}"),
        }
    }
    let refused = ends.iter().filter(|(end, ..)| *end != End::Answered).count();
    assert!(refused > 0 && refused < 60, "{refused} of 60 refused");
    until("it is counted", SOON, || gateway.port().refused("queue_timeout") == refused as u64);
    assert_eq!(ends.iter().filter(|(end, ..)| *end == End::Reset).count(), 0, "refusals are FIN");
    gateway.assert_clean();
}

/// P3: the queue timeout can be changed while it runs.
fn changing_the_queue_timeout_counts_for_newcomers(engine: Engine) {
    let oracle = Oracle::start(Script::Held);
    let gateway = patient(engine, &oracle);
    let mut first = occupy(&gateway, &oracle);
    gateway.set("queue-timeout", "150ms");
    let start = Stopwatch::start();
    let mut waiter = Client::asking(gateway.address, Duration::ZERO);
    assert_eq!(waiter.end(), End::Refused);
    let (waited, own) = (start.elapsed(), start.own());
    assert!(waited >= Duration::from_millis(150), "{waited:?}");
    assert!(own < slack(Duration::from_millis(160)), "{waited:?}");
    oracle.release(1);
    assert_eq!(first.end(), End::Answered);
    gateway.assert_clean();
}
