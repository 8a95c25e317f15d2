//! What the machine allows: descriptors run out, and the gateway has a ceiling of its own.

use std::time::Duration;

use crate::support::gateway::Setup;
use crate::support::ledger::{self, Client, End};
use crate::support::oracle::{Oracle, Script};
use crate::support::{Engine, SOON, engines, process, slack, until};

engines!(descriptors_run_out, max_connections_refuses_the_rest, the_ceiling_comes_from_nofile);

/// T25: more clients than descriptors: no spinning, no death, and it serves again when they leave.
fn descriptors_run_out(engine: Engine) {
    let oracle = Oracle::start(Script::Echo);
    let gateway = Setup::new(engine, oracle.address)
        .set("max-connections", 10_000) // so that the kernel refuses, not we
        .through(&["prlimit", "--nofile=128:128"])
        .start();
    let clients: Vec<_> =
        (0..300).map(|_| Client::connect(gateway.address).expect("the backlog is long")).collect();
    let mut served = 0;
    until("nobody else is served", SOON, || {
        let before = std::mem::replace(&mut served, oracle.count());
        before == served && served > 20
    });
    let ticks = process::cpu_ticks(gateway.pid);
    std::thread::sleep(Duration::from_secs(1)); // the time over which the processor is measured
    let used = process::cpu_ticks(gateway.pid) - ticks;
    assert!(used < 3 * 20, "{used} % of a core while out of descriptors");
    let lines = gateway.log().lines().count();
    assert!(lines < 100, "{lines} lines of log");
    drop(clients);
    until("it serves again", SOON + slack(Duration::from_millis(200)), || {
        let client = Client::connect(gateway.address).expect("connects");
        echoes(client.patience(Duration::from_secs(1)))
    });
    gateway.assert_clean();
}

fn echoes(mut client: Client) -> bool {
    use std::io::{Read, Write};
    client.stream.write_all(b"x").is_ok() && client.stream.read_exact(&mut [0]).is_ok()
}

/// `max-connections` bounds what the gateway itself holds, active and queued.
fn max_connections_refuses_the_rest(engine: Engine) {
    let oracle = Oracle::start(Script::Held);
    let gateway = Setup::new(engine, oracle.address)
        .set("limit", 5)
        .set("queue-length", 100)
        .set("queue-timeout", "60s")
        .set("max-connections", 10)
        .start();
    let mut kept: Vec<_> =
        (0..10).map(|_| Client::asking(gateway.address, Duration::ZERO)).collect();
    until("ten are held", SOON, || {
        let port = gateway.port();
        (port.active, port.queued) == (5, 5)
    });
    for _ in 0..20 {
        assert_eq!(ledger::exchange(gateway.address, Duration::ZERO, SOON), End::Refused);
    }
    until("it is counted", SOON, || gateway.port().refused("max_connections") == 20);
    oracle.release(10);
    for client in &mut kept {
        assert_eq!(client.end(), End::Answered);
    }
    gateway.assert_clean();
}

/// Without the key, the ceiling is what the descriptors allow: the rest is refused, never an EMFILE.
fn the_ceiling_comes_from_nofile(engine: Engine) {
    let oracle = Oracle::start(Script::Echo);
    let gateway =
        Setup::new(engine, oracle.address).through(&["prlimit", "--nofile=256:256"]).start();
    let clients: Vec<_> =
        (0..300).map(|_| Client::connect(gateway.address).expect("connects")).collect();
    until("the rest is refused", SOON, || {
        let port = gateway.port();
        port.active + port.refused("max_connections") == 300
    });
    until("the application has most of what 256 descriptors carry", SOON, || oracle.count() >= 60);
    drop(clients);
    gateway.assert_clean();
}
