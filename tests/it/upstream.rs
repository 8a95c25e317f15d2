//! Applications that fail: killed, hung, not accepting, stopped; and a gateway that is killed itself.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use rustix::process::Signal;
use socket2::{Domain, Socket, Type};

use crate::support::app_process::AppProcess;
use crate::support::gateway::Setup;
use crate::support::ledger::{self, Client, End, Ledger};
use crate::support::oracle::{Oracle, Script};
use crate::support::{Engine, SOON, Stopwatch, engines, scale, slack, until};

engines!(
    a_killed_application,
    a_hung_application,
    an_application_that_does_not_accept,
    a_stopped_application,
    nobody_listens,
    a_killed_gateway_leaves_nothing,
    its_own_address_is_no_application,
    a_loop_through_another_name,
);

/// T01: kill -9 of the application with 200 in flight: everybody hears it at once, nobody holds a slot,
/// and it serves again as soon as the application is back.
fn a_killed_application(engine: Engine) {
    let app = AppProcess::echo();
    let address = app.address;
    let gateway = Setup::new(engine, address).set("limit", 300).start();
    let mut clients: Vec<_> =
        (0..200).map(|_| Client::connect(gateway.address).expect("connects")).collect();
    for client in &mut clients {
        client.stream.write_all(b"x").expect("writes");
        client.stream.read_exact(&mut [0]).expect("an echo");
    }
    let start = Stopwatch::start();
    app.kill();
    for client in &mut clients {
        let end = client.end();
        assert!(matches!(end, End::Reset | End::Refused), "the end arrives: {end:?}");
    }
    let own = start.own();
    assert!(own < slack(Duration::from_millis(100)), "{own:?}");
    until("no slot is held", slack(Duration::from_secs(1)), || gateway.port().active == 0);

    let end = Client::connect(gateway.address).expect("connects").end();
    assert!(matches!(end, End::Refused | End::Reset), "{end:?}");
    until("it is counted", SOON, || gateway.port().refused("upstream_refused") == 1);

    let _back = AppProcess::start(address, "echo");
    until("it serves again", slack(Duration::from_millis(100)), || {
        let mut client = Client::connect(gateway.address).expect("connects");
        let mut echo = [0];
        client.stream.write_all(b"y").is_ok() && client.stream.read_exact(&mut echo).is_ok()
    });
    drop(clients);
    gateway.assert_clean();
}

/// T02: an application that accepts and never answers: the limit fills, the queue fills, the rest is
/// refused, and `idle-timeout` gives the slots back.
fn a_hung_application(engine: Engine) {
    let oracle = Oracle::start(Script::Stall);
    let gateway = Setup::new(engine, oracle.address)
        .set("limit", 4)
        .set("queue-length", 4)
        .set("queue-timeout", "500ms")
        .set("idle-timeout", "2s")
        .set("abandon-timeout", "200ms")
        .start();
    let ask = |_| Client::asking(gateway.address, Duration::ZERO);
    let mut clients: Vec<_> = gateway.paused(|| (0..50).map(ask).collect());
    until("all but eight are refused", SOON, || gateway.port().refused("queue_full") == 42);
    until("the waiters time out", SOON, || gateway.port().refused("queue_timeout") == 4);
    assert_eq!(gateway.port().active, 4);
    until("the slots come free", SOON, || gateway.port().active == 0);
    let ledger: Ledger = clients.iter_mut().map(Client::end).collect();
    assert_eq!(ledger.of(End::TimedOut) + ledger.of(End::Answered), 0, "{ledger:?}");
    assert_eq!(oracle.peak_alive(), 4);
    gateway.assert_clean();
}

/// T03: an application whose backlog is full: `connect-timeout` is kept, on io_uring too, and the
/// descriptor is free at once.
fn an_application_that_does_not_accept(engine: Engine) {
    let app = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    app.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).expect("binds");
    app.listen(0).expect("listens");
    let address = app.local_addr().expect("bound").as_socket().expect("an address");
    let _fills_the_backlog = TcpStream::connect(address).expect("the one place in the backlog");

    let gateway =
        Setup::new(engine, address).set("limit", 4).set("connect-timeout", "500ms").start();
    let start = Stopwatch::start();
    let mut client = Client::asking(gateway.address, Duration::ZERO);
    assert!(matches!(client.end(), End::Refused | End::Reset));
    let (took, own) = (start.elapsed(), start.own());
    let patience = Duration::from_millis(500);
    assert!(took >= Duration::from_millis(490) && own < patience + slack(patience), "{took:?}");
    until("it is counted", SOON, || gateway.port().refused("upstream_timeout") == 1);
    gateway.assert_clean();
}

/// T04: an application that is stopped for a while loses nothing and is not dialled anew.
fn a_stopped_application(engine: Engine) {
    let app = AppProcess::work();
    let gateway =
        Setup::new(engine, app.address).set("limit", 20).set("queue-timeout", "30s").start();
    let mut clients: Vec<_> =
        (0..10).map(|_| Client::connect(gateway.address).expect("connects")).collect();
    until("ten are in", SOON, || gateway.port().active == 10);
    app.signal(Signal::STOP);
    clients.iter_mut().for_each(|client| client.ask(Duration::ZERO));
    clients.extend((0..10).map(|_| Client::asking(gateway.address, Duration::ZERO)));
    std::thread::sleep(Duration::from_millis(scale(500, 5_000) as u64)); // the outage itself
    app.signal(Signal::CONT);
    let ledger: Ledger = clients.iter_mut().map(Client::end).collect();
    assert_eq!(ledger.of(End::Answered), 20, "{ledger:?}");
    assert_eq!(gateway.port().admitted, 20);
    gateway.assert_clean();
}

/// An application that is not there: refused at once with its reason; served when it comes.
fn nobody_listens(engine: Engine) {
    let address = Oracle::start(Script::Work).address; // dropped: a port that was free just now
    let gateway = Setup::new(engine, address).set("limit", 4).start();
    for _ in 0..20 {
        let start = Stopwatch::start();
        let end = ledger::exchange(gateway.address, Duration::ZERO, SOON);
        assert!(matches!(end, End::Refused | End::Reset), "{end:?}");
        assert!(start.own() < slack(Duration::from_millis(100)), "{start:?}");
    }
    until("all are counted", SOON, || gateway.port().refused("upstream_refused") == 20);
    let _oracle = Oracle::start_at(address, Script::Work);
    assert_eq!(ledger::exchange(gateway.address, Duration::ZERO, SOON), End::Answered);
    gateway.assert_clean();
}

/// T17: kill -9 of the gateway with many in flight: the kernel has it off the table within a second, and
/// the next one binds the same address.
fn a_killed_gateway_leaves_nothing(engine: Engine) {
    let count = scale(500, 1_000);
    let oracle = Oracle::start(Script::Echo);
    let mut gateway = Setup::new(engine, oracle.address).set("limit", 2_000).start();
    let mut clients: Vec<_> =
        (0..count).map(|_| Client::connect(gateway.address).expect("connects")).collect();
    until("all are in", SOON, || oracle.count() == count);
    for client in &mut clients {
        client.stream.write_all(&[0; 100]).expect("writes");
    }
    let start = Stopwatch::start();
    gateway.signal(Signal::KILL);
    gateway.wait_exit(slack(Duration::from_secs(1)));
    until("the application sees them end", slack(Duration::from_secs(1)), || oracle.count() == 0);
    let own = start.own();
    assert!(own < slack(Duration::from_secs(1)), "{own:?}");

    until("nobody listens", SOON, || TcpStream::connect(gateway.address).is_err());
    let listen = format!("{}={}", gateway.address, oracle.address);
    let again = Setup::without_port(engine).set("listen", listen).start();
    assert_eq!(again.address, gateway.address);
    let mut client = Client::connect(again.address).expect("connects");
    client.stream.write_all(b"x").expect("writes");
    client.stream.read_exact(&mut [0]).expect("an echo");
    drop(client);
    again.assert_clean();
}

/// T36: a gateway told to forward to its own address says so at the start, or refuses each as a loop.
fn its_own_address_is_no_application(engine: Engine) {
    let port = Oracle::start(Script::Work).address.port(); // dropped: free
    let own = format!("127.0.0.1:{port}");
    let setup = Setup::without_port(engine).set("listen", format!("{own}={own}"));
    let (status, log) = setup.start_in_vain();
    assert_eq!(status.code(), Some(78), "{log}");
    assert!(log.contains(&own), "the message names the address: {log}");
}

/// T36: a loop that cannot be seen at the start (it listens on every address) is refused once per
/// connection, without a storm.
fn a_loop_through_another_name(engine: Engine) {
    let port = Oracle::start(Script::Work).address.port(); // dropped: free
    let listen = format!("0.0.0.0:{port}=127.0.0.2:{port}");
    let setup = Setup::without_port(engine).set("listen", listen).set("limit", 50);
    let gateway = match setup.try_start() {
        Ok(gateway) => gateway,
        Err((status, log)) => {
            return assert_eq!(status.code(), Some(78), "refused at the start: {log}");
        }
    };
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let end = ledger::exchange(address, Duration::ZERO, SOON);
    assert!(matches!(end, End::Refused | End::Reset), "{end:?}");
    until("it is counted", SOON, || gateway.port().refused("loop") == 1);
    let seen = gateway.port();
    assert!(seen.accepted <= 2, "one connection became {}", seen.accepted);
    gateway.assert_clean();
}
