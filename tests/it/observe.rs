//! P13: without a limit it only watches, and says what a limit would have done.

use std::time::Duration;

use crate::support::gateway::Setup;
use crate::support::ledger::{self, Client, End};
use crate::support::oracle::{Oracle, Script};
use crate::support::{Engine, SOON, engines, until};

engines!(without_a_limit_it_watches, observing_a_limit_refuses_nobody, the_mode_changes_live);

/// P13: nobody waits or is refused; the peak and each shadow limit's refusals are counted.
fn without_a_limit_it_watches(engine: Engine) {
    let oracle = Oracle::start(Script::Held);
    let gateway = Setup::new(engine, oracle.address).set("shadow-limits", "1,2,50").start();
    let mut clients = Vec::new();
    for number in 1..=10 {
        clients.push(Client::asking(gateway.address, Duration::ZERO));
        until("it is in", SOON, || oracle.count() == number);
    }
    let port = gateway.port();
    assert_eq!((port.mode.as_str(), port.limit), ("observe", None));
    assert_eq!((port.active, port.queued, port.peak_active), (10, 0, 10));
    oracle.release(10);
    for client in &mut clients {
        assert_eq!(client.end(), End::Answered);
    }
    let shadow = gateway.port().shadow;
    let counted = |limit: &str| shadow.get(limit).copied();
    assert_eq!(counted("1"), Some(9), "{shadow:?}");
    assert_eq!(counted("2"), Some(8), "{shadow:?}");
    assert_eq!(counted("50"), Some(0), "{shadow:?}");
    gateway.assert_clean();
}

/// P13: with a limit and mode `observe` it decides and counts, and lets everybody in.
fn observing_a_limit_refuses_nobody(engine: Engine) {
    let oracle = Oracle::start(Script::Held);
    let gateway = Setup::new(engine, oracle.address)
        .set("mode", "observe")
        .set("limit", 3)
        .set("queue-length", 0)
        .start();
    let mut clients: Vec<_> =
        (0..10).map(|_| Client::asking(gateway.address, Duration::ZERO)).collect();
    until("all are in", SOON, || oracle.count() == 10);
    let port = gateway.port();
    assert_eq!((port.mode.as_str(), port.would_refuse), ("observe", 7), "{port:?}");
    oracle.release(10);
    for client in &mut clients {
        assert_eq!(client.end(), End::Answered);
    }
    assert_eq!(gateway.port().refused.values().sum::<u64>(), 0);
    gateway.assert_clean();
}

/// P13: `mode off` is the kill switch, and `enforce` holds again afterwards.
fn the_mode_changes_live(engine: Engine) {
    let oracle = Oracle::start(Script::Held);
    let gateway = Setup::new(engine, oracle.address).set("limit", 1).set("queue-length", 0).start();
    let mut clients = vec![Client::asking(gateway.address, Duration::ZERO)];
    until("one is in", SOON, || oracle.count() == 1);
    assert_eq!(ledger::exchange(gateway.address, Duration::ZERO, SOON), End::Refused);
    gateway.set("mode", "off");
    clients.extend((0..5).map(|_| Client::asking(gateway.address, Duration::ZERO)));
    until("everybody is in", SOON, || oracle.count() == 6);
    gateway.set("mode", "enforce");
    assert_eq!(ledger::exchange(gateway.address, Duration::ZERO, SOON), End::Refused);
    oracle.release(6);
    for client in &mut clients {
        assert_eq!(client.end(), End::Answered);
    }
    until("all have gone", SOON, || gateway.port().active == 0);
    let mut one = Client::asking(gateway.address, Duration::ZERO);
    oracle.release(1);
    assert_eq!(one.end(), End::Answered);
    gateway.assert_clean();
}
