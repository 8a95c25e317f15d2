//! What only a network of its own can show: partitions, and source ports that run into each other.

use std::io::{Read, Write};
use std::time::{Duration, Instant};

use crate::support::gateway::{Gateway, Setup};
use crate::support::ledger::{Client, End, Ledger};
use crate::support::oracle::{Oracle, Script};
use crate::support::{Engine, SOON, Stopwatch, engines, namespace, scale, skip, until};

engines!(
    a_partition_heals,
    a_partition_for_ever,
    an_application_behind_a_partition,
    it_never_dials_itself,
);

const CUT_OFF: [u8; 4] = [127, 0, 0, 9];
const GATEWAY: ([u8; 4], u16) = ([127, 0, 0, 1], 9000);
const APPLICATION: ([u8; 4], u16) = ([127, 0, 0, 1], 8000);

fn start(engine: Engine) -> Gateway {
    let setup = Setup::without_port(engine).set("listen", "127.0.0.1:9000=127.0.0.1:8000");
    namespace::start(setup.set("limit", 1).set("queue-length", 0), "true")
}

/// From here on nothing passes between the cut-off client and the rest, either way.
fn partition(gateway: &Gateway) {
    namespace::nft(gateway, "add table inet cut");
    let hook = "add chain inet cut wall { type filter hook input priority 0; }";
    namespace::nft(gateway, hook);
    namespace::nft(gateway, "add rule inet cut wall ip saddr 127.0.0.9 drop");
    namespace::nft(gateway, "add rule inet cut wall ip daddr 127.0.0.9 drop");
}

fn talk(client: &mut Client, word: u8) {
    client.stream.write_all(&[word]).expect("writes");
    let mut echo = [0];
    client.stream.read_exact(&mut echo).expect("an echo");
    assert_eq!(echo[0], word);
}

/// T09: a client is cut off for a while and comes back: the conversation goes on, byte for byte.
fn a_partition_heals(engine: Engine) {
    if let Some(reason) = namespace::missing() {
        return skip(reason);
    }
    let outage = Duration::from_secs(scale(2, 50) as u64);
    let gateway = start(engine);
    namespace::inside(&gateway, || {
        let oracle = Oracle::start_at(APPLICATION.into(), Script::Echo);
        let client = Client::connect_from(CUT_OFF.into(), GATEWAY.into()).expect("connects");
        let mut client = client.patience(2 * outage + SOON);
        talk(&mut client, 1);
        partition(&gateway);
        client.stream.write_all(&[2, 3]).expect("the kernel takes it");
        std::thread::sleep(outage); // the outage itself
        assert_eq!(oracle.count(), 1, "it is not given up yet");
        namespace::nft(&gateway, "delete table inet cut");
        let mut echo = [0; 2];
        client.stream.read_exact(&mut echo).expect("what was on its way arrives");
        assert_eq!(echo, [2, 3]);
        drop(client);
        until("the application has seen the end", SOON, || oracle.count() == 0);
    });
    gateway.assert_clean();
}

/// T09: a client that has vanished gives its slot back within 90 s: keepalive. In soak only.
fn a_partition_for_ever(engine: Engine) {
    if let Some(reason) = namespace::missing() {
        return skip(reason);
    }
    if scale(0, 1) == 0 {
        return eprintln!("only with SOAK=1: takes 90 s");
    }
    let gateway = start(engine);
    namespace::inside(&gateway, || {
        let oracle = Oracle::start_at(APPLICATION.into(), Script::Echo);
        let mut client = Client::connect_from(CUT_OFF.into(), GATEWAY.into()).expect("connects");
        talk(&mut client, 1);
        partition(&gateway);
        let start = Instant::now();
        until("the slot is free", Duration::from_secs(100), || gateway.port().active == 0);
        eprintln!("the slot was free after {:?}", start.elapsed());
        assert!(start.elapsed() < Duration::from_secs(95), "{:?}", start.elapsed());
        until("the application has seen the end", SOON, || oracle.count() == 0);
    });
    gateway.assert_clean();
}

/// T03, T09: SYNs to the application vanish: `connect-timeout` is kept, and the slot comes free.
fn an_application_behind_a_partition(engine: Engine) {
    if let Some(reason) = namespace::missing() {
        return skip(reason);
    }
    let setup = Setup::without_port(engine).set("listen", "127.0.0.1:9000=127.0.0.9:8000");
    let gateway = namespace::start(setup.set("limit", 1).set("connect-timeout", "400ms"), "true");
    partition(&gateway);
    namespace::inside(&gateway, || {
        for _ in 0..3 {
            let start = Stopwatch::start();
            let mut client = Client::connect(GATEWAY.into()).expect("connects");
            assert!(matches!(client.end(), End::Refused | End::Reset));
            let (took, own) = (start.elapsed(), start.own());
            assert!(
                took > Duration::from_millis(390) && own < Duration::from_millis(1_200),
                "{took:?}"
            );
        }
    });
    until("it is counted", SOON, || gateway.port().refused("upstream_timeout") == 3);
    gateway.assert_clean();
}

/// T37: dialling a closed port out of the range the kernel takes source ports from can connect a socket
/// to itself. Here the range is four ports, so it would happen all the time.
fn it_never_dials_itself(engine: Engine) {
    if let Some(reason) = namespace::missing() {
        return skip(reason);
    }
    let setup = Setup::without_port(engine).set("listen", "127.0.0.1:9000=127.0.0.1:44601");
    let own = [("admin", 9001), ("probe", 9002), ("metrics", 9003)]; // not out of the four
    let setup =
        own.iter().fold(setup, |setup, (face, port)| setup.set(face, format!("127.0.0.1:{port}")));
    let narrow = "echo 44600 44603 >/proc/sys/net/ipv4/ip_local_port_range";
    let gateway = namespace::start(setup, narrow);
    let count = scale(200, 5_000);
    let ledger = namespace::inside(&gateway, || {
        let one = |number: usize| {
            // A source address of its own, so that the four ports do not run out.
            let source = [127, 1, (number / 250) as u8, (number % 250 + 1) as u8];
            let connected = Client::connect_from(source.into(), GATEWAY.into());
            let Ok(mut client) = connected else {
                return End::NotConnected;
            };
            client.ask(Duration::ZERO);
            client.end()
        };
        (0..count).map(one).collect::<Ledger>()
    });
    let refused = ledger.of(End::Refused) + ledger.of(End::Reset);
    assert_eq!(refused, count as u64, "no echo of oneself: {ledger:?}");
    let port = gateway.port();
    assert_eq!(port.refused("upstream_refused") + port.refused("loop"), refused, "{port:?}");
    gateway.assert_clean();
}
