//! Captured traffic, in networks laid out like a pod: a client in one, the application and the gateway in
//! another, a wire between them. The application listens where it always does and is told nothing; the
//! gateway runs without any capability.

mod beside; // who is not captured is counted
mod loops; // nobody goes round in a circle, and nothing else is reachable
mod rules; // what is written, and what is left alone

use std::net::{Ipv6Addr, SocketAddr};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::support::gateway::{Gateway, Setup};
use crate::support::ledger::{Client, End, Ledger, closed_loop, exchange};
use crate::support::namespace::{self, POD, Pod};
use crate::support::oracle::{Oracle, Script};
use crate::support::server::Server;
use crate::support::{Engine, Over, SOON, engines, process, scale, skip, until};

engines!(
    limited_queued_and_refused_over_both_families,
    each_port_has_its_gate,
    who_may_wait_holds_up_no_other_port,
    postgresql_sees_no_client_of_loopback,
    rules_change_under_traffic,
    what_had_nowhere_to_go_is_explained,
    another_port_that_is_called_takes_no_drain_back,
    many_short_lived_listeners_share_a_gate,
);

/// In a pod, an application of its own on every address, and the gateway that captures.
struct Scene {
    gateway: Gateway,
    pod: Pod,
}

const APP: u16 = 8080;

fn any(port: u16) -> SocketAddr {
    (Ipv6Addr::UNSPECIFIED, port).into()
}

fn capturing(engine: Engine) -> Setup {
    Setup::without_port(engine).set("capture", "[::]:15801")
}

impl Scene {
    /// Rules for `ports`, and a gateway of `setup` without any capability.
    #[track_caller]
    fn new(pod: Pod, ports: &str, setup: Setup) -> Self {
        let (installed, said) = pod.capture("install", &["--include-inbound-ports", ports]);
        assert!(installed, "{said}");
        let gateway = start(&pod, setup);
        let status = std::fs::read_to_string(format!("/proc/{}/status", gateway.pid));
        let status = status.expect("it runs");
        assert!(status.contains("CapEff:\t0000000000000000"), "it needs no capability: {status}");
        Self { gateway, pod }
    }

    fn oracle(&self, port: u16, script: Script) -> Oracle {
        self.pod.inside(|| Oracle::start_at(any(port), script))
    }
}

/// A gateway in the pod that may do nothing a user may not.
#[track_caller]
fn start(pod: &Pod, setup: Setup) -> Gateway {
    let mut words = pod.launcher();
    let drop = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs"];
    words.extend(drop.map(str::to_owned));
    let words: Vec<_> = words.iter().map(String::as_str).collect();
    setup.through(&words).start()
}

/// What a test of this file needs.
fn missing() -> Option<&'static str> {
    let lacking = !process::installed("setpriv");
    namespace::missing().or(lacking.then_some("setpriv is not installed"))
}

/// P1, P2, P4: over IPv4 and IPv6 at once, by two workers: one gate.
fn limited_queued_and_refused_over_both_families(engine: Engine) {
    if let Some(reason) = missing() {
        return skip(reason);
    }
    let setup = capturing(engine).set("limit", 4).set("queue-length", 4).set("workers", 2);
    let scene = Scene::new(Pod::new(), "8080", setup.set("queue-timeout", "10s"));
    let oracle = scene.oracle(APP, Script::Held);
    let to = |number: usize| SocketAddr::new(POD[number % 2], APP);
    let held = scene.pod.outside(|| {
        let mut held: Vec<_> = (0..4).map(|at| Client::asking(to(at), Duration::ZERO)).collect();
        until("four are in", SOON, || oracle.count() == 4);
        held.extend((4..8).map(|at| Client::asking(to(at), Duration::ZERO)));
        until("four wait", SOON, || scene.gateway.port_at(APP).queued == 4);
        for at in 0..8 {
            assert_eq!(exchange(to(at), Duration::ZERO, SOON), End::Refused, "number {at}");
        }
        oracle.release(8);
        held.iter_mut().map(Client::end).collect::<Ledger>()
    });
    assert_eq!(held.of(End::Answered), 8, "{held:?}");
    // From now on the application answers at once, and both families come as they will.
    let total = scale(200, 5_000);
    oracle.release(total);
    let ledger = scene.pod.outside(|| {
        closed_loop(16, total, |number, _| exchange(to(number), Duration::from_millis(5), SOON))
    });
    let (answered, refused) = (8 + ledger.of(End::Answered), 8 + ledger.of(End::Refused));
    let total = 16 + total;
    assert_eq!(answered + refused, total as u64, "{ledger:?}");
    assert_eq!(oracle.peak(), 4, "as many as may, and no more");
    scene.gateway.assert_clean();
    let port = scene.gateway.port_at(APP);
    assert_eq!((port.accepted, port.admitted), (total as u64, answered), "{port:?}");
    assert_eq!(port.refused("queue_full"), refused, "{port:?}");
    assert_eq!(scene.gateway.port_at(15801).accepted, 0, "nobody went astray");
}

/// Ports of a range, seen for the first time when they are called: each has the limit for itself, and
/// settings of single ports hold, also later ones. A port that nobody listens on gets no gate.
fn each_port_has_its_gate(engine: Engine) {
    if let Some(reason) = missing() {
        return skip(reason);
    }
    let setup = capturing(engine).set("limit", 2).set("queue-length", 0).also("limit", "8001=1");
    let scene = Scene::new(Pod::new(), "8000-8999", setup);
    let oracles = [8000, 8001, 8002].map(|port| scene.oracle(port, Script::Held));
    let held = scene.pod.outside(|| {
        let mut held = Vec::new();
        for (port, limit) in [(8000, 2), (8001, 1), (8002, 2)] {
            for at in 0..limit {
                held.push(Client::asking((POD[at % 2], port).into(), Duration::ZERO));
            }
        }
        until("all are admitted", SOON, || oracles.iter().map(Oracle::count).sum::<usize>() == 5);
        for port in [8000, 8001, 8002] {
            assert_eq!(exchange((POD[0], port).into(), Duration::ZERO, SOON), End::Refused);
        }
        for port in 8100..8150 {
            assert_eq!(exchange((POD[0], port).into(), Duration::ZERO, SOON), End::Refused);
        }
        held
    });
    let ports: Vec<_> = scene.gateway.status().ports.into_iter().map(|port| port.listen).collect();
    assert_eq!(
        ports.len(),
        4,
        "capture itself, one that is named, two that were called: {ports:?}"
    );
    scene.gateway.set("limit.8002", 3);
    scene.pod.outside(|| {
        let _third = Client::asking((POD[1], 8002).into(), Duration::ZERO);
        until("a third is admitted", SOON, || oracles[2].count() == 3);
        oracles.iter().for_each(|oracle| oracle.release(3));
    });
    drop(held);
    scene.gateway.assert_clean();
    let astray = scene.gateway.port_at(15801);
    assert_eq!(astray.refused("upstream_refused"), 50, "{astray:?}");
}

/// `tcp-refuse=hold`: a connection to a full port waits; those to other ports do not.
fn who_may_wait_holds_up_no_other_port(engine: Engine) {
    if let Some(reason) = missing() {
        return skip(reason);
    }
    let setup = capturing(engine).set("limit", 1).set("queue-length", 0).set("tcp-refuse", "hold");
    let scene = Scene::new(Pod::new(), "8080,8081", setup);
    let full = scene.oracle(8080, Script::Held);
    let free = scene.oracle(8081, Script::Work);
    scene.pod.outside(|| {
        let mut first = Client::asking((POD[0], 8080).into(), Duration::ZERO);
        until("the first is admitted", SOON, || full.count() == 1);
        let mut second = Client::asking((POD[1], 8080).into(), Duration::ZERO);
        for _ in 0..20 {
            let answered = exchange((POD[0], 8081).into(), Duration::ZERO, SOON);
            assert_eq!(answered, End::Answered);
        }
        assert_eq!(full.arrived(), 1);
        full.release(2);
        assert_eq!([first.end(), second.end()], [End::Answered; 2]);
    });
    drop((full, free));
    scene.gateway.assert_clean();
}

/// PostgreSQL with rules that turn loopback away: remote clients come from the pod's own address.
fn postgresql_sees_no_client_of_loopback(engine: Engine) {
    if let Some(reason) = missing() {
        return skip(reason);
    }
    const BIN: &str = "/usr/lib/postgresql/15/bin";
    if !process::installed(&format!("{BIN}/postgres")) || !process::installed("psql") {
        return skip("PostgreSQL is not installed");
    }
    let scene = Scene::new(Pod::new(), "5432", capturing(engine).set("limit", 2));
    let as_postgres = |program: &str| {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups"]);
        command.arg(format!("{BIN}/{program}")).current_dir("/");
        command
    };
    let server = scene.pod.inside(|| {
        Server::start_at(5432, |dir, port| {
            let owner = Command::new("chown").args(["-R", "postgres"]).arg(dir).status();
            assert!(owner.expect("chown runs").success());
            let data = dir.join("data");
            let mut init = as_postgres("initdb");
            let init = init.args(["--auth=trust", "--no-sync", "-D"]).arg(&data).output();
            assert!(init.expect("initdb runs").status.success());
            let rules = "local all all trust\nhost all all 127.0.0.0/8 reject\nhost all all ::1/128 reject\n\
                         host all all 10.7.0.0/24 trust\nhost all all fd07::/64 trust\n";
            std::fs::write(data.join("pg_hba.conf"), rules).expect("writes");
            let mut command = as_postgres("postgres");
            command.arg("-D").arg(&data).arg("-k").arg(dir);
            command.args(["-p", &port.to_string(), "-c", "fsync=off", "-c", "listen_addresses=*"]);
            command
        })
    });
    for pod in POD {
        let ask = || {
            let mut psql = Command::new("psql");
            psql.args(["-h", &pod.to_string(), "-p", "5432", "-U", "postgres", "-Atqc"]);
            psql.args(["select host(inet_client_addr())", "postgres"]);
            psql.env("PGGSSENCMODE", "disable").env("PGSSLMODE", "disable");
            let output = psql.output().expect("psql runs");
            String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).trim().to_owned()
        };
        scene.pod.outside(|| {
            let mut said = String::new();
            until("PostgreSQL is ready", SOON, || {
                said = ask();
                !said.contains("starting up")
            });
            assert_eq!(said, pod.to_string());
        });
    }
    drop(server);
    scene.gateway.assert_clean();
}

/// T38: rules are exchanged as a whole: while the ports change again and again, every connection to one that
/// is captured before and after is captured, and answered.
fn rules_change_under_traffic(engine: Engine) {
    if let Some(reason) = missing() {
        return skip(reason);
    }
    let scene = Scene::new(Pod::new(), "8080", capturing(engine).set("limit", 64));
    let oracle = scene.oracle(APP, Script::Work);
    let (wanted, over) = (scale(60, 2_000), AtomicBool::new(false));
    let ledger: Ledger = std::thread::scope(|scope| {
        let _over = Over(&over);
        let (pod, over) = (&scene.pod, &over);
        let client = move |at: usize| {
            pod.outside(|| {
                let mut ledger = Ledger::default();
                while !over.load(Ordering::Relaxed) {
                    ledger.enter(exchange((POD[at % 2], APP).into(), Duration::ZERO, SOON));
                }
                ledger
            })
        };
        let clients: Vec<_> = (0..4).map(|at| scope.spawn(move || client(at))).collect();
        for change in 0..wanted {
            let ports = ["8080", "8000-9000", "all", "80,8080,9090"][change % 4];
            let excluded = ["none", "9000-9100"][change / 4 % 2];
            let flags = ["--include-inbound-ports", ports, "--exclude-inbound-ports", excluded];
            let (installed, said) = pod.capture("install", &flags);
            assert!(installed, "{said}");
        }
        over.store(true, Ordering::Relaxed);
        clients.into_iter().map(|client| client.join().expect("no panic")).sum()
    });
    let total = ledger.total();
    assert_eq!(ledger.of(End::Answered), total, "{ledger:?}");
    assert_eq!(oracle.arrived() as u64, total);
    scene.gateway.assert_clean();
    let beside = total - scene.gateway.port_at(APP).accepted;
    eprintln!("{beside} of {total} connections passed beside in {wanted} changes");
    assert_eq!(beside, 0, "of {total} in {wanted} changes");
}

/// The last refusal, as people read it.
fn explained(gateway: &Gateway) -> String {
    let recent = gateway.call("GET", "/explain?last=1", "").body;
    let recent: serde_json::Value = serde_json::from_str(&recent).expect("JSON");
    let connection = &recent["recent"][0]["connection"];
    gateway.call("GET", &format!("/explain/{connection}"), "").body
}

/// Whoever dials the capture port was not redirected; whoever looks for open ports had no slot, and no
/// application fails because of it.
fn what_had_nowhere_to_go_is_explained(engine: Engine) {
    if let Some(reason) = missing() {
        return skip(reason);
    }
    let scene = Scene::new(Pod::new(), "all", capturing(engine).set("limit", 4));
    let gateway = &scene.gateway;
    let talk = |port| {
        scene.pod.outside(|| exchange((POD[0], port).into(), Duration::ZERO, SOON));
    };
    talk(15801);
    let direct = explained(gateway);
    assert!(direct.contains("it was not redirected"), "{direct}");
    assert!(!direct.contains("leads back"), "{direct}");
    talk(8100);
    let closed = explained(gateway);
    assert!(closed.contains("nobody listens on that port"), "{closed}");
    assert!(closed.contains(&format!("{}:8100", POD[0])), "which one: {closed}");
    assert!(!closed.contains("had a slot"), "{closed}");

    let astray = gateway.port_at(15801);
    assert_eq!((astray.refused("loop"), astray.refused("upstream_refused")), (1, 1));
    assert_eq!(astray.admitted, 0, "nobody had a slot");
    (8200..8230).for_each(talk);
    let page = gateway.call("GET", "/", "").body;
    assert!(page.contains("to ports that nobody listens on"), "{page}");
    assert!(!page.contains("application fails"), "{page}");
    gateway.assert_clean();
}

/// P6: a port that is called for the first time while a drain is announced has not started anew: nobody on
/// the network takes a drain back.
fn another_port_that_is_called_takes_no_drain_back(engine: Engine) {
    if let Some(reason) = missing() {
        return skip(reason);
    }
    let setup = capturing(engine).set("drain-delay", "1s").env("TIDEGATE_POD_IP", POD[0]);
    let mut scene = Scene::new(Pod::new(), "all", setup);
    let _oracles = [8080, 9090].map(|port| scene.oracle(port, Script::Work));
    let call = |pod: &Pod, port| {
        let end = pod.outside(|| exchange((POD[0], port).into(), Duration::ZERO, SOON));
        assert_eq!(end, End::Answered, "port {port}");
    };
    call(&scene.pod, 8080);
    let gateway = &mut scene.gateway;
    gateway.drain();
    until("it is announced", SOON, || gateway.status().phase == "announcing");
    call(&scene.pod, 9090);
    until("it has drained", SOON, || gateway.status().phase == "drained");
    assert_eq!(gateway.metric("tidegate_drains_taken_back_total", ""), 0.0);
    gateway.terminate(SOON);
}

/// P10, P11: a program listens on a port for every transfer, and each is called once. What is kept of it is
/// bounded, and so is what the application has at once (P1).
fn many_short_lived_listeners_share_a_gate(engine: Engine) {
    if let Some(reason) = missing() {
        return skip(reason);
    }
    let setup = capturing(engine).set("limit", 2).set("queue-length", 0);
    let scene = Scene::new(Pod::new(), "all", setup.also("limit", "30002=1"));
    let gateway = &scene.gateway;
    let call = |port| {
        let _oracle = scene.oracle(port, Script::Work);
        scene.pod.outside(|| exchange((POD[0], port).into(), Duration::ZERO, SOON))
    };
    let wanted = scale(150, 2_000) as u16;
    let (first, rest) = (20_000..20_064, 20_064..20_000 + wanted);
    first.for_each(|port| assert_eq!(call(port), End::Answered));
    let before = process::rss(gateway.pid);
    rest.for_each(|port| assert_eq!(call(port), End::Answered));
    let grown = process::rss(gateway.pid).saturating_sub(before);
    assert!(grown < 2 << 20, "{grown} bytes");

    // The capture port, the one with settings, 64 that were called, and the rest.
    let ports = gateway.status().ports;
    assert_eq!(ports.len(), 3 + 64);
    let other = ports.last().expect("there are some");
    assert!(other.listen.ends_with(":other"), "{other:?}");
    assert_eq!(other.admitted, u64::from(wanted) - 64);
    let admitted = "port=\"other\",outcome=\"admitted\"";
    let counted = gateway.metric("tidegate_admission_decisions_total", admitted);
    assert_eq!(counted, f64::from(wanted - 64));

    let oracles = [30_000, 30_001, 30_002].map(|port| scene.oracle(port, Script::Held));
    scene.pod.outside(|| {
        let mut held =
            [0, 1].map(|at| Client::asking((POD[at], 30_000 + at as u16).into(), Duration::ZERO));
        until("they are in", SOON, || oracles[0].count() + oracles[1].count() == 2);
        let third = exchange((POD[0], 30_001).into(), Duration::ZERO, SOON);
        assert_eq!(third, End::Refused, "there are two slots for all of them");
        let mut named = Client::asking((POD[0], 30_002).into(), Duration::ZERO);
        until("it has its own", SOON, || oracles[2].count() == 1);
        oracles.iter().for_each(|oracle| oracle.release(1));
        assert_eq!(held.each_mut().map(Client::end), [End::Answered; 2]);
        assert_eq!(named.end(), End::Answered);
    });
    gateway.assert_clean();
    // What is allowed one of those that share is all that they have: it may be the one who takes it.
    gateway.set("limit.30001", 1);
    assert_eq!(gateway.status().ports.last().and_then(|port| port.limit), Some(1));
}
