//! The rig tests itself without a gateway: an oracle that is wrong would prove anything.

use std::io::{Read, Write};
use std::time::Duration;

use crate::support::ledger::{self, Client, End};
use crate::support::oracle::{Oracle, Script};
use crate::support::pattern::{self, Checker};
use crate::support::{SOON, sockets, turn_beside, until};

/// The oracle answers each client its own id, and counts them all.
#[test]
fn the_oracle_answers_and_counts() {
    let _turn = turn_beside();
    let oracle = Oracle::start(Script::Work);
    let ledger = ledger::closed_loop(8, 200, |_, _| {
        ledger::exchange(oracle.address, Duration::from_millis(1), SOON)
    });
    assert_eq!(ledger.of(End::Answered), 200, "{ledger:?}");
    assert_eq!(oracle.arrived(), 200);
    assert!(oracle.peak() <= 8, "{} at once from 8 clients", oracle.peak());
    until("all are closed", SOON, || oracle.count() == 0);
}

/// A connection that was reset is dead at once by the kernel's word, though the oracle holds it still.
#[test]
fn the_oracle_knows_the_dead() {
    let _turn = turn_beside();
    let oracle = Oracle::start(Script::Stall);
    let clients: Vec<_> =
        (0..5).map(|_| Client::connect(oracle.address).expect("connects")).collect();
    until("five arrived", SOON, || oracle.arrived() == 5);
    assert_eq!(oracle.peak_alive(), 5);
    clients.into_iter().for_each(Client::reset);
    let _sixth = Client::connect(oracle.address).expect("connects");
    until("the sixth arrived", SOON, || oracle.arrived() == 6);
    assert_eq!(oracle.count(), 6, "the oracle itself has not read and cannot know");
    assert_eq!(oracle.arrivals()[5].alive, 1, "the kernel does");
}

/// A client that has gone without a RST keeps its connection alive at the application.
#[test]
fn the_oracle_counts_those_who_only_closed() {
    let _turn = turn_beside();
    let oracle = Oracle::start(Script::Stall);
    drop(Client::connect(oracle.address).expect("connects"));
    let _second = Client::connect(oracle.address).expect("connects");
    until("both arrived", SOON, || oracle.arrived() == 2);
    assert_eq!(oracle.arrivals()[1].alive, 2);
}

/// The kernel's table agrees with the oracle.
#[test]
fn the_socket_table_is_read_right() {
    let _turn = turn_beside();
    let oracle = Oracle::start(Script::Stall);
    let watch = sockets::Watch::start(oracle.address.port());
    let clients: Vec<_> =
        (0..7).map(|_| Client::connect(oracle.address).expect("connects")).collect();
    until("seven are seen", SOON, || sockets::open_at(oracle.address.port()).len() == 7);
    until("and twice in a row", SOON, || watch.peak() == 7);
    clients.into_iter().for_each(Client::reset);
    until("none is left", SOON, || sockets::open_at(oracle.address.port()).is_empty());
    assert_eq!(watch.peak(), 7);
}

/// Held requests are answered when told, and no sooner.
#[test]
fn the_oracle_holds_until_told() {
    let _turn = turn_beside();
    let oracle = Oracle::start(Script::Held);
    let mut clients: Vec<_> =
        (0..3).map(|_| Client::asking(oracle.address, Duration::ZERO)).collect();
    until("three are read", SOON, || oracle.ids().len() == 3);
    oracle.release(1);
    until("one is answered", SOON, || oracle.count() == 2);
    oracle.release(2);
    for client in &mut clients {
        assert_eq!(client.end(), End::Answered);
    }
}

/// The ledger tells a refusal, a reset, a silence and a loss apart.
#[test]
fn the_ledger_tells_ends_apart() {
    let _turn = turn_beside();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
    let address = listener.local_addr().expect("bound");
    let accept = || listener.accept().expect("accept").0;

    let mut client = Client::connect(address).expect("connects");
    drop(accept());
    assert_eq!(client.end(), End::Refused);

    let mut client = Client::connect(address).expect("connects");
    ledger::reset(accept());
    assert_eq!(client.end(), End::Reset);

    let client = Client::connect(address).expect("connects");
    let _kept = accept();
    assert_eq!(client.patience(Duration::from_millis(10)).end(), End::TimedOut);

    let mut client = Client::connect(address).expect("connects");
    accept().write_all(&[0; 3]).expect("writes");
    assert_eq!(client.end(), End::Lost);

    drop(listener);
    let end = ledger::exchange(address, Duration::ZERO, SOON);
    assert_eq!(end, End::NotConnected);
}

/// A byte lost, doubled or changed does not get past the checker.
#[test]
fn the_pattern_shows_damage() {
    let _turn = turn_beside();
    let good: Vec<u8> = pattern::slice(0, 5000).to_vec();
    let checked = |bytes: &[u8]| {
        let mut checker = Checker::default();
        bytes.chunks(7).for_each(|part| checker.take(part));
        checker.damaged
    };
    assert!(!checked(&good));
    assert!(checked(&good[1..]));
    let mut changed = good.clone();
    changed[4000] ^= 1;
    assert!(checked(&changed));
}

/// RST in the middle of a response reaches a client without a gateway, so it can be asked of one with.
#[test]
fn the_oracle_resets() {
    let _turn = turn_beside();
    let oracle = Oracle::start(Script::ResetAfter(1000));
    let mut client = Client::connect(oracle.address).expect("connects");
    client.stream.write_all(b"?").expect("writes");
    until("it has ended", SOON, || {
        oracle.arrivals().first().is_some_and(|first| first.end.is_some())
    });
    let mut bytes = Vec::new();
    let end = client.stream.read_to_end(&mut bytes);
    assert_eq!(end.expect_err("a RST").kind(), std::io::ErrorKind::ConnectionReset);
}
