//! P4: who cannot be served is told at once, in the way that was chosen, and counted by reason.

use std::net::IpAddr;
use std::time::Duration;

use crate::support::gateway::{Gateway, Setup};
use crate::support::ledger::{self, Client, End};
use crate::support::oracle::{Oracle, Script};
use crate::support::{Engine, SOON, Stopwatch, engines, scale, slack, tail, until};

engines!(
    a_full_queue_refuses_quickly,
    without_a_queue_the_limit_refuses,
    a_refusal_is_a_fin_even_after_the_client_spoke,
    reset_refuses_with_a_reset,
    hold_lets_the_kernel_wait,
    one_client_has_its_own_cap,
    three_times_too_many_for_a_while,
);

/// A gateway with one slot, taken; the queue holds `queue`.
fn full(engine: Engine, oracle: &Oracle, queue: usize) -> (Gateway, Vec<Client>) {
    let gateway = Setup::new(engine, oracle.address)
        .set("limit", 1)
        .set("queue-length", queue)
        .set("queue-timeout", "60s")
        .start();
    let held = (0..=queue).map(|_| Client::asking(gateway.address, Duration::ZERO));
    let held = held.collect();
    until("it is full", SOON, || {
        let port = gateway.port();
        port.active == 1 && port.queued == queue as u64
    });
    (gateway, held)
}

fn finish(gateway: &Gateway, oracle: &Oracle, held: &mut [Client]) {
    oracle.release(held.len());
    for client in held {
        assert_eq!(client.end(), End::Answered);
    }
    gateway.assert_clean();
}

/// P4: 99 of 100 refusals of a full queue take at most 5 ms.
fn a_full_queue_refuses_quickly(engine: Engine) {
    let oracle = Oracle::start(Script::Held);
    let (gateway, mut held) = full(engine, &oracle, 4);
    let count = scale(500, 5_000);
    let mut took = hdrhistogram::Histogram::<u64>::new(3).expect("3 digits");
    for _ in 0..count {
        let start = Stopwatch::start();
        let mut client = Client::connect(gateway.address).expect("connects");
        assert_eq!(client.end(), End::Refused);
        took.record(start.own().as_micros() as u64).expect("in range");
    }
    let p99 = Duration::from_micros(took.value_at_quantile(tail(count)));
    assert!(p99 <= slack(Duration::from_millis(5)), "p99 {p99:?}");
    until("it is counted", SOON, || gateway.port().refused("queue_full") == count as u64);
    assert_eq!(oracle.arrived(), 1, "the application heard nothing of it");
    finish(&gateway, &oracle, &mut held);
}

/// P4: without a queue the reason is the limit.
fn without_a_queue_the_limit_refuses(engine: Engine) {
    let oracle = Oracle::start(Script::Held);
    let (gateway, mut held) = full(engine, &oracle, 0);
    let mut client = Client::connect(gateway.address).expect("connects");
    assert_eq!(client.end(), End::Refused);
    until("it is counted", SOON, || gateway.port().refused("limit_reached") == 1);
    finish(&gateway, &oracle, &mut held);
}

/// P4: a client that has spoken before it is refused reads the FIN too, not a RST caused by what it said.
fn a_refusal_is_a_fin_even_after_the_client_spoke(engine: Engine) {
    let oracle = Oracle::start(Script::Held);
    let (gateway, mut held) = full(engine, &oracle, 1);
    let count = scale(300, 3_000) as u64;
    let ledger = ledger::closed_loop(4, count as usize, |_, _| {
        ledger::exchange(gateway.address, Duration::ZERO, SOON)
    });
    let polite = ledger.of(End::Refused);
    assert!(polite * 1000 >= count * 999, "{polite} of {count} read a FIN: {ledger:?}");
    until("it is counted", SOON, || gateway.port().refused("queue_full") == count);
    finish(&gateway, &oracle, &mut held);
}

/// `tcp-refuse reset`: the refusal is a RST.
fn reset_refuses_with_a_reset(engine: Engine) {
    let oracle = Oracle::start(Script::Held);
    let gateway = Setup::new(engine, oracle.address)
        .set("limit", 1)
        .set("queue-length", 0)
        .set("tcp-refuse", "reset")
        .start();
    let mut first = Client::asking(gateway.address, Duration::ZERO);
    until("it is full", SOON, || oracle.ids().len() == 1);
    for _ in 0..50 {
        // The RST may be there before connect(2) returns.
        let end = Client::connect(gateway.address).map_or(End::Reset, |mut client| client.end());
        assert_eq!(end, End::Reset);
    }
    until("it is counted", SOON, || gateway.port().refused("limit_reached") == 50);
    oracle.release(1);
    assert_eq!(first.end(), End::Answered);
    gateway.assert_clean();
}

/// `tcp-refuse hold`: nobody is refused; those who do not fit wait in the kernel's backlog, or, when
/// another worker was quicker, in the hands of the one that accepted them.
fn hold_lets_the_kernel_wait(engine: Engine) {
    for workers in [1, 2] {
        hold_with(engine, workers);
    }
}

fn hold_with(engine: Engine, workers: u32) {
    let oracle = Oracle::start(Script::Held);
    let gateway = Setup::new(engine, oracle.address)
        .set("limit", 2)
        .set("queue-length", 2)
        .set("queue-timeout", "60s")
        .set("tcp-refuse", "hold")
        .set("workers", workers)
        .start();
    let mut clients: Vec<_> =
        (0..30).map(|_| Client::asking(gateway.address, Duration::ZERO)).collect();
    until("2 are in", SOON, || oracle.ids().len() == 2);
    let ledger = ledger::end_all_while(&mut clients, || {
        for served in 1..=30 {
            oracle.release(1);
            until("the next is in", SOON, || oracle.arrived() == 30.min(served + 2));
        }
    });
    assert_eq!(ledger.of(End::Answered), 30, "{ledger:?}");
    assert!(oracle.peak() <= 2);
    assert_eq!(gateway.port().refused.values().sum::<u64>(), 0);
    gateway.assert_clean();
}

/// Per-client cap: active and queued of one source address count; others are not affected; live change.
fn one_client_has_its_own_cap(engine: Engine) {
    let oracle = Oracle::start(Script::Held);
    let gateway = Setup::new(engine, oracle.address)
        .set("limit", 4)
        .set("queue-length", 20)
        .set("queue-timeout", "60s")
        .set("per-client-limit", 3)
        .start();
    let from = |host: u8| {
        let source = IpAddr::from([127, 0, 0, host]);
        let mut client = Client::connect_from(source, gateway.address).expect("connects");
        client.ask(Duration::ZERO);
        client
    };
    let mut kept: Vec<_> = (0..3).map(|_| from(2)).collect();
    until("three of .2 are in", SOON, || oracle.count() == 3);
    assert_eq!(from(2).end(), End::Refused);
    kept.extend((0..3).map(|_| from(3))); // one active, two queued: both count
    until("one is in, two wait", SOON, || oracle.count() == 4 && gateway.port().queued == 2);
    assert_eq!(from(3).end(), End::Refused);
    kept.push(from(4));
    until("another client may wait", SOON, || gateway.port().queued == 3);
    until("it is counted", SOON, || gateway.port().refused("per_client_limit") == 2);

    gateway.set("per-client-limit", 4);
    kept.push(from(2));
    until("the new cap holds", SOON, || gateway.port().queued == 4);
    oracle.release(kept.len());
    for client in &mut kept {
        assert_eq!(client.end(), End::Answered);
    }
    until("all are over", SOON, || gateway.port().active == 0);
    let mut again = from(2);
    oracle.release(1);
    assert_eq!(again.end(), End::Answered, "what has ended no longer counts");
    gateway.assert_clean();
}

/// P3, P4, T41: three times more than fits, for a while: the books agree, and afterwards it is as before.
fn three_times_too_many_for_a_while(engine: Engine) {
    const WORK: Duration = Duration::from_millis(10);
    let oracle = Oracle::start(Script::Work);
    let gateway = Setup::new(engine, oracle.address)
        .set("limit", 4)
        .set("queue-length", 4)
        .set("queue-timeout", "100ms")
        .start();
    let ledger = ledger::closed_loop(24, scale(1_500, 20_000), |_, _| {
        ledger::exchange(gateway.address, WORK, SOON)
    });
    // A client has its answer a moment before its connection is over.
    until("all are over", SOON, || gateway.port().active == 0);
    let port = gateway.port();
    assert_eq!(ledger.of(End::Answered) + ledger.of(End::Refused), ledger.total(), "{ledger:?}");
    assert_eq!(port.outcome("served"), ledger.of(End::Answered), "{port:?}");
    assert_eq!(port.refused.values().sum::<u64>(), ledger.of(End::Refused), "{port:?}");
    assert_eq!(oracle.peak(), 4);

    until("latency is back to normal", SOON, || {
        let start = Stopwatch::start();
        assert_eq!(ledger::exchange(gateway.address, WORK, SOON), End::Answered);
        start.own() < slack(WORK + Duration::from_millis(10))
    });
    gateway.assert_clean();
}
