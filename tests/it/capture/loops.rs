//! A13, A22, T36: whatever is dialled, it is one refusal or a correct pass; nobody goes round in a circle,
//! and nothing is left behind.

use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use super::{APP, Scene, any, capturing, explained, missing, start};
use crate::support::gateway::Port;
use crate::support::ledger::{Client, End, exchange};
use crate::support::namespace::{CLIENT, POD, Pod};
use crate::support::oracle::{Oracle, Script};
use crate::support::{Engine, SOON, engines, process, skip, until};

engines!(
    nobody_goes_round_in_a_circle,
    a_dial_that_comes_back_is_known,
    nothing_is_carried_to_others,
    only_the_documented_ports_are_open,
);

fn talk(to: SocketAddr) -> End {
    exchange(to, Duration::ZERO, SOON)
}

/// A table that redirects what this machine sends.
fn output_rule(what: &str) -> String {
    format!(
        "add table inet round
         add chain inet round out {{ type nat hook output priority -100 ; }}
         add rule inet round out {what} redirect to :15801"
    )
}

/// Every way to dial the gateway or the application, from outside and from inside.
fn nobody_goes_round_in_a_circle(engine: Engine) {
    if let Some(reason) = missing() {
        return skip(reason);
    }
    let own =
        [("admin", "127.0.0.1:15820"), ("probe", "0.0.0.0:15821"), ("metrics", "0.0.0.0:15822")];
    let setup = own.iter().fold(capturing(engine), |setup, (face, at)| setup.set(face, at));
    let scene = Scene::new(Pod::new(), "all", setup.set("limit", 4));
    let oracle = scene.oracle(APP, Script::Work);
    let gateway = &scene.gateway;
    let before = process::cpu_ticks(gateway.pid);
    let astray = || gateway.port_at(15801).refused("loop");

    // The capture port itself: one refusal each.
    let mut refused = 0;
    let mut is_refused = |to: SocketAddr| {
        assert_eq!(talk(to), End::Refused, "{to}");
        refused += 1;
        assert_eq!(astray(), refused, "{to}: once");
    };
    scene.pod.outside(|| POD.iter().for_each(|pod| is_refused((*pod, 15801).into())));
    let local = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into(), POD[0], POD[1]];
    scene.pod.inside(|| local.iter().for_each(|ip| is_refused((*ip, 15801).into())));
    let mapped = Ipv4Addr::LOCALHOST.to_ipv6_mapped();
    scene.pod.inside(|| is_refused((mapped, 15801).into()));

    // The faces: what is for this machine only is not there, the rest answers and is never gated.
    scene.pod.outside(|| {
        TcpStream::connect((POD[0], 15820)).expect_err("admin is for this machine");
        for port in [15821, 15822] {
            TcpStream::connect((POD[0], port)).expect("for kubelets and scrapers");
        }
    });

    // The application, from inside: beside the gateway, as it must be, or our dials would be captured.
    let accepted = || {
        let port = |port: &&Port| port.listen.ends_with(":8080");
        gateway.status().ports.iter().find(port).map_or(0, |port| port.accepted)
    };
    scene.pod.inside(|| {
        for ip in local.into_iter().chain([mapped.into()]) {
            assert_eq!(talk((ip, APP).into()), End::Answered, "{ip}");
        }
    });
    assert_eq!(accepted(), 0, "none of them through the gateway");
    // From outside: through it, to the very address.
    scene.pod.outside(|| {
        POD.iter().for_each(|pod| assert_eq!(talk((*pod, APP).into()), End::Answered));
    });
    assert_eq!(accepted(), 2);
    assert_eq!(oracle.arrived(), 7);

    gateway.assert_clean();
    let spent = process::cpu_ticks(gateway.pid) - before;
    assert!(spent < 100, "{spent} ticks of 10 ms for two dozen connections");
}

/// Somebody's rules redirect what this machine sends, the gateway's own dials as well: each of them comes
/// back once, and is known.
fn a_dial_that_comes_back_is_known(engine: Engine) {
    if let Some(reason) = missing() {
        return skip(reason);
    }
    let pod = Pod::new();
    let gateway =
        start(&pod, capturing(engine).set("limit", 100).set("include-inbound-ports", "8080"));
    let _oracle = pod.inside(|| Oracle::start_at(any(APP), Script::Work));
    let round = output_rule("tcp dport 8080");
    pod.succeed(&["nft", &round]);
    let before = process::cpu_ticks(gateway.pid);
    let dials = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into(), POD[0], POD[1]];
    for (ip, count) in dials.into_iter().zip(1..) {
        let mut client = pod.inside(|| Client::asking((ip, APP).into(), Duration::ZERO));
        let end = client.end();
        assert!(matches!(end, End::Refused | End::Reset), "{ip}: {end:?}");
        until("it is known", SOON, || gateway.port_at(15801).refused("loop") == count);
        let first = gateway.port_at(APP);
        assert_eq!(first.accepted, count, "it went round once: {first:?}");
    }
    let spent = process::cpu_ticks(gateway.pid) - before;
    assert!(spent < 100, "{spent} ticks of 10 ms for four connections");
    gateway.assert_clean();

    // With the gateway's user left out, the same rules capture this machine's own traffic, as tests of
    // whole programs do: others' dials are served although they begin here.
    pod.succeed(&["nft", "delete table inet round"]);
    let others = output_rule("meta skuid 15800 tcp dport 8080");
    pod.succeed(&["nft", &others]);
    let ask = "exec 3<>/dev/tcp/127.0.0.1/8080; printf '\\1\\0\\0\\0\\0\\0\\0\\0\\0\\0\\0\\0\\0\\0\\0\\0' >&3; wc -c <&3";
    let user = ["setpriv", "--reuid=15800", "--clear-groups", "bash", "-c", ask];
    assert_eq!(pod.succeed(&user).trim(), "8", "an answer");
    gateway.assert_clean();
    assert_eq!(gateway.port_at(APP).admitted, 5);
}

/// Behind the pod, for the client; behind the client, for the pod. Nobody has them.
const ELSEWHERE: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(10, 8, 0, 9)),
    IpAddr::V6(Ipv6Addr::new(0xfd08, 0, 0, 0, 0, 0, 0, 9)),
];

/// Somebody's rules redirect what is for a face of the gateway, and what is for another machine and only
/// passes here: each is refused once, as what it is, and nobody is dialled for it.
fn nothing_is_carried_to_others(engine: Engine) {
    if let Some(reason) = missing() {
        return skip(reason);
    }
    let setup = capturing(engine).set("limit", 4).set("metrics", "[::]:15822");
    let scene = Scene::new(Pod::new(), "8080", setup);
    let mut rules = "add table inet astray
        add chain inet astray pre { type nat hook prerouting priority -110 ; }
        add rule inet astray pre tcp dport 15822 redirect to :15801
        add chain inet astray out { type filter hook output priority 0 ; }"
        .to_owned();
    for ((to, pod), client) in ELSEWHERE.into_iter().zip(POD).zip(CLIENT) {
        let family = if to.is_ipv4() { "ip" } else { "ip6" };
        rules += &format!(
            "\nadd rule inet astray pre {family} daddr {to} tcp dport {APP} redirect to :15801
             add rule inet astray out {family} daddr {to} counter"
        );
        let route = |by: IpAddr| {
            ["ip", "route", "add"].map(str::to_owned).into_iter().chain([
                to.to_string(),
                "via".into(),
                by.to_string(),
            ])
        };
        let mut words = route(pod);
        let mut command = Command::new(words.next().expect("a program"));
        command.args(words);
        assert!(scene.pod.outside(|| command.status().expect("ip runs").success()));
        let words: Vec<_> = route(client).collect();
        scene.pod.succeed(&words.iter().map(String::as_str).collect::<Vec<_>>());
    }
    scene.pod.succeed(&["nft", &rules]);
    let gateway = &scene.gateway;
    let ours =
        POD.map(|pod| (SocketAddr::new(pod, 15822), "it was going to a port of the gateway"));
    let foreign = ELSEWHERE.map(|to| (SocketAddr::new(to, APP), "it was going to another machine"));
    for ((to, why), count) in ours.into_iter().chain(foreign).zip(1..) {
        assert_eq!(scene.pod.outside(|| talk(to)), End::Refused, "{to}");
        let astray = gateway.port_at(15801);
        assert_eq!((astray.accepted, astray.refused("loop")), (count, count), "{to}: {astray:?}");
        let explained = explained(gateway);
        assert!(explained.contains(why), "{to}: {explained}");
    }
    let out = scene.pod.succeed(&["nft", "list", "chain", "inet", "astray", "out"]);
    assert_eq!(out.matches("counter packets 0 bytes 0").count(), 2, "nobody was dialled: {out}");
    gateway.assert_clean();
}

/// A22: a scan of every port, from outside, over both families.
fn only_the_documented_ports_are_open(engine: Engine) {
    if let Some(reason) = missing() {
        return skip(reason);
    }
    let own = [("admin", "127.0.0.1:15820"), ("probe", "[::]:15821"), ("metrics", "[::]:15822")];
    let setup = own.iter().fold(capturing(engine), |setup, (face, at)| setup.set(face, at));
    let scene = Scene::new(Pod::new(), "8080", setup.set("include-inbound-ports", "8080"));
    let _oracle = scene.oracle(APP, Script::Work);
    for (pod, client) in POD.into_iter().zip(CLIENT) {
        let next = AtomicU32::new(1);
        let open = scene.pod.outside(|| {
            assert_ne!(pod, client);
            std::thread::scope(|scope| {
                let scan = || {
                    let mut open = Vec::new();
                    while let Ok(port) = u16::try_from(next.fetch_add(1, Ordering::Relaxed)) {
                        if let Ok(mut stream) = TcpStream::connect((pod, port)) {
                            let _ = stream.set_read_timeout(Some(Duration::from_millis(10)));
                            let _ = stream.read(&mut [0]); // whoever answers speaks; nobody has to
                            open.push(port);
                        }
                    }
                    open
                };
                let threads: Vec<_> = (0..4).map(|_| scope.spawn(scan)).collect();
                let found = threads.into_iter().flat_map(|t| t.join().expect("no panic"));
                let mut found: Vec<_> = found.collect();
                found.sort_unstable();
                found
            })
        });
        assert_eq!(open, [APP, 15801, 15821, 15822], "{pod}");
    }
    scene.gateway.assert_clean();
}
