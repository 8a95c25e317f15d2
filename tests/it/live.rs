//! Settings in a pod: annotations by file and by the API server, the namespace's ConfigMap, `tidegate set`.
//! What is in force is what was last valid, whoever is mistaken or away, and traffic notices nothing.

mod resumed; // watches that end as they should

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::net::Ipv6Addr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::Value;

use crate::probes::ask;
use crate::support::apiserver::{ApiServer, Fault};
use crate::support::cluster::Cluster;
use crate::support::edits::{self, APPLIED, Books};
use crate::support::gateway::{Gateway, Setup};
use crate::support::kubelet::{self, Volume};
use crate::support::ledger::{Client, End, Ledger, closed_loop, exchange};
use crate::support::oracle::{Oracle, Script};
use crate::support::{
    Engine, Over, Rng, SOON, Stopwatch, engines, namespace, process, run, scale, skip, slack, tail,
    until,
};

engines!(beside:
    the_files_of_the_kubelet_are_followed,
    edits_at_random_under_load,
    an_api_server_that_fails_touches_nothing,
    a_deletion_that_is_seen_begins_a_drain,
    whatever_ends_it_joins_the_drain_under_way,
);

/// "Recovered within 30 s."
const RECOVERED: Duration = Duration::from_secs(30);

/// How long an exchange may take of a client that comes ten times in a second.
const AT_ONCE: Duration = Duration::from_millis(100);

/// A gateway in a pod, which is told what the template said.
fn in_a_pod(engine: Engine, app: impl ToString, template: &str) -> Setup {
    Setup::new(engine, app).set("template-annotations", template)
}

/// The same, watched by this API server.
fn watched(engine: Engine, app: impl ToString, api: &ApiServer) -> Setup {
    in_a_pod(engine, app, "{}")
        .env("TIDEGATE_WATCH_OWN_POD", "true")
        .env("POD_NAME", api.pod())
        .env("KUBECONFIG", api.file("kubeconfig").display())
}

fn annotated(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    let owned =
        |(name, value): &(&str, &str)| (format!("tidegate.dev/{name}"), (*value).to_owned());
    pairs.iter().map(owned).collect()
}

fn status(gateway: &Gateway) -> Value {
    serde_json::from_str(&gateway.call("GET", "/status.json", "").body).expect("JSON")
}

/// Source and reason of everything that does not hold as it was written.
fn remarks(gateway: &Gateway) -> Vec<String> {
    let status = status(gateway);
    let all = status["remarks"].as_array().expect("a list").iter();
    let word = |remark: &Value, of: &str| remark[of].as_str().expect("a text").to_owned();
    all.map(|remark| format!("{} {}", word(remark, "source"), word(remark, "reason"))).collect()
}

fn is_watched(gateway: &Gateway) -> bool {
    status(gateway)["own_pod"]["watching"] == true
}

#[track_caller]
fn until_limit(gateway: &Gateway, limit: Option<u64>, bound: Duration) {
    until(&format!("the limit is {limit:?}"), bound, || gateway.port().limit == limit);
}

/// Every exchange is answered.
#[track_caller]
fn served(gateway: &Gateway, exchanges: usize) {
    let one = |_, _| exchange(gateway.address, Duration::ZERO, SOON);
    let ledger = closed_loop(2, exchanges, one);
    assert_eq!(ledger.of(End::Answered), exchanges as u64, "{ledger:?}");
}

/// The downward API's file and the ConfigMap, swapped, renamed, written in place, broken; and back.
fn the_files_of_the_kubelet_are_followed(engine: Engine) {
    let oracle = Oracle::start(Script::Work);
    let (downward, config) = (Volume::new(), Volume::new());
    let annotations = |pairs: &[(&str, &str)]| kubelet::annotations(&annotated(pairs));
    let put = |text: &str| downward.put(&[("annotations", text), ("labels", "app=\"shop\"")]);
    put(&annotations(&[("limit", "3"), ("inject", "enabled")]));
    let gateway = in_a_pod(engine, oracle.address, r#"{"limit":"3"}"#)
        .set("annotations", downward.file("annotations").display())
        .set("namespace-config", config.path().display())
        .set("workload", "shop")
        .set("ceilings", r#"{"limit":"500"}"#)
        .start();
    assert_eq!(gateway.port().limit, Some(3));
    for limit in [7, 8, 9] {
        put(&annotations(&[("limit", &limit.to_string()), ("note", "a=\"b\"\n\u{1f30a}")]));
        until_limit(&gateway, Some(limit), slack(APPLIED));
    }
    let setting = gateway.call("GET", "/settings.json", "").body;
    assert!(setting.contains("\"origin\":\"annotation\""), "{setting}");

    put(&annotations(&[("limit", "many"), ("queue-length", "77"), ("limmit", "1")]));
    until("the rest is taken", slack(APPLIED), || gateway.port().queue_length == 77);
    assert_eq!(gateway.port().limit, Some(9), "the last good one stays");
    assert_eq!(remarks(&gateway), ["annotations invalid", "annotations unknown"]);
    let face = gateway.status().probe;
    assert_eq!(ask(face, "GET /readyz", "").0, 200, "a mistake is no reason not to be ready");
    assert_eq!(gateway.metric("tidegate_config_last_reload_successful", ""), 0.0);
    until("it is in the log", SOON, || {
        let log = gateway.log();
        log.contains("many") && log.contains("an integer from 1 to 1000000")
    });
    let garbage: [&[u8]; 4] =
        [&[0xff, 0, 0xfe], b"tidegate.dev/limit=\"1", b"limit=\"\\q\"", b"\0"];
    for bad in garbage.into_iter().chain([&*vec![b'\n'; 2 << 20]]) {
        let (path, new) = (downward.file("annotations"), downward.file("new"));
        fs::write(&new, bad).expect("written");
        fs::rename(&new, &path).expect("renamed");
        let unreadable = || remarks(&gateway) == ["annotations unreadable"];
        until("it is seen and not used", slack(APPLIED), unreadable);
        assert_eq!(gateway.port().limit, Some(9));
        fs::write(&new, annotations(&[("limit", "9")])).expect("written");
        fs::rename(new, path).expect("renamed");
        until("all is well", slack(APPLIED), || remarks(&gateway).is_empty());
    }
    assert_eq!(gateway.metric("tidegate_config_last_reload_successful", ""), 1.0);

    config.put(&[("_all", "limit: 5\n"), ("other", "limit: 99\n")]);
    fs::write(downward.file("annotations"), annotations(&[])).expect("written in place");
    until_limit(&gateway, Some(5), slack(APPLIED));
    config.put(&[("_all", "mode: off\n"), ("shop", "limit: 600\n")]);
    until("the kill switch", slack(APPLIED), || gateway.port().mode == "off");
    until_limit(&gateway, Some(500), slack(APPLIED)); // the ceiling
    assert_eq!(remarks(&gateway), ["workload clamped"]);
    config.put(&[]);
    until_limit(&gateway, Some(3), slack(APPLIED)); // what the template said
    assert_eq!(gateway.port().mode, "enforce");
    served(&gateway, 20);
    gateway.assert_clean();
}

/// A thousand edits of every kind, of every source, while clients come and go: after each of them what is in
/// force is what was last valid, and nobody has lost a byte.
fn edits_at_random_under_load(engine: Engine) {
    let mut rng = Rng::new(Rng::announced());
    let oracle = Oracle::start(Script::Work);
    let api = ApiServer::start();
    let (downward, config) = (Volume::new(), Volume::new());
    downward.put(&[("annotations", "")]);
    let gateway = watched(engine, oracle.address, &api)
        .set("annotations", downward.file("annotations").display())
        .set("namespace-config", config.path().display())
        .set("workload", "shop")
        .set("ceilings", r#"{"limit":"30","queue-length":"80"}"#)
        .set("limit", 8)
        .set("queue-length", 16)
        .set("mode", "enforce")
        .set("shadow-limits", 50)
        .set("drain-timeout", "10s")
        .start();
    until("it is watched", SOON, || is_watched(&gateway));
    let port = gateway.address.port();
    let books = Books::new(&gateway, &[(port, port)]);
    let mut books = books.ceiling("limit", 30).ceiling("queue-length", 80);
    let say = |books: &Books, source: usize| {
        if source == edits::ANNOTATIONS {
            api.annotate(&books.annotations());
            downward.put(&[("annotations", &edits::annotations(books))]);
        } else {
            let files = edits::files(books);
            let files: Vec<_> = files.iter().map(|(name, text)| (&**name, &**text)).collect();
            config.put(&files);
        }
    };
    let over = AtomicBool::new(false);
    let ledger: Ledger = std::thread::scope(|scope| {
        let _over = Over(&over);
        let client = || {
            let mut ledger = Ledger::default();
            while !over.load(Ordering::Relaxed) {
                ledger.enter(exchange(gateway.address, Duration::from_millis(2), SOON));
            }
            ledger
        };
        let clients: Vec<_> = (0..4).map(|_| scope.spawn(client)).collect();
        edits::at_random(&mut rng, scale(80, 1000), &gateway, &mut books, &say);
        over.store(true, Ordering::Relaxed);
        clients.into_iter().map(|client| client.join().expect("no panic")).sum()
    });
    let polite = ledger.of(End::Answered) + ledger.of(End::Refused);
    assert!(ledger.of(End::Answered) > 0 && polite == ledger.total(), "{ledger:?}");
    assert_eq!(api.breaches(), Vec::<String>::new());
}

/// T33: whatever the API server does, traffic is served all the while and as quickly as ever, next to no CPU is
/// spent, and a change that was made meanwhile holds within 30 s of its being back.
fn an_api_server_that_fails_touches_nothing(engine: Engine) {
    let faults = [
        Fault::Absent,
        Fault::Unauthorized,
        Fault::Forbidden,
        Fault::Gone,
        Fault::Busy,
        Fault::Closing,
        Fault::Endless,
        Fault::Hung,
    ];
    // The watch does not know which engine there is; in short, the other one sees the extremes.
    let all = engine == Engine::Epoll || scale(0, 1) == 1;
    let faults: Vec<_> = faults
        .into_iter()
        .filter(|fault| all || matches!(fault, Fault::Absent | Fault::Endless))
        .collect();
    let window = Duration::from_secs(scale(3, 60) as u64);
    // Short windows begin with the first attempts, which are close together, and the build is not optimised.
    let most = if scale(0, 1) == 1 { 0.01 } else { 0.3 };
    let oracle = Oracle::start(Script::Work);
    for fault in faults {
        let api = ApiServer::start();
        if fault == Fault::Absent {
            api.fail(fault); // from the beginning
        }
        let gateway = watched(engine, oracle.address, &api).set("limit", 1000).start();
        let over = AtomicBool::new(false);
        let (spent, recovered, mut took) = std::thread::scope(|scope| {
            let over = Over(&over);
            let traffic = scope.spawn(|| slow_traffic(&gateway, over.0));
            if fault != Fault::Absent {
                until("it is watched", SOON, || is_watched(&gateway));
                api.fail(fault);
                until("it is noticed", RECOVERED, || !is_watched(&gateway));
            }
            // What the traffic costs is the workers'.
            let control =
                |thread: &str| !thread.starts_with("tidegate-w") && !thread.starts_with("iou-");
            let ticks = process::cpu_ticks_of(gateway.pid, control);
            std::thread::sleep(window); // a measurement
            let ticks = process::cpu_ticks_of(gateway.pid, control) - ticks;
            api.annotate(&annotated(&[("limit", "7")]));
            let back = Stopwatch::start();
            api.fail(Fault::Nothing);
            until("all is well", RECOVERED, || {
                gateway.port().limit == Some(7) && is_watched(&gateway)
            });
            let recovered = back.own();
            over.0.store(true, Ordering::Relaxed);
            let spent = ticks as f64 / 100.0 / window.as_secs_f64();
            (spent, recovered, traffic.join().expect("no panic"))
        });
        took.sort_unstable();
        let late = took[((took.len() - 1) as f64 * tail(took.len())) as usize];
        eprintln!(
            "{fault:?}: {:.2} % of a CPU, back after {recovered:?}; {} exchanges, of which the tail took {late:?}",
            spent * 100.0,
            took.len()
        );
        assert!(spent < most, "{fault:?}: {spent} of a CPU");
        assert!(recovered <= RECOVERED, "{fault:?}: {recovered:?}");
        assert!(late < slack(AT_ONCE), "{fault:?}: {late:?} of {took:?}");
        let reasons = match fault {
            Fault::Unauthorized => &["unauthorized"][..],
            Fault::Forbidden => &["forbidden"],
            Fault::Gone => &["gone"],
            Fault::Busy => &["busy"],
            Fault::Endless => &["too_long"],
            Fault::Absent | Fault::Closing | Fault::Hung | Fault::Nothing => {
                &["unreachable", "silent"]
            }
        };
        let failures = status(&gateway)["own_pod"]["failures"].clone();
        let seen = |reason: &&str| failures[*reason].as_u64() > Some(0);
        assert!(reasons.iter().any(seen), "{fault:?}: {failures}");
        let log = gateway.log();
        let lines = log.lines().filter(|line| line.contains("not watched")).count();
        assert!(lines < 10, "{lines} lines about the same trouble\n{log}");
        assert_eq!(api.breaches(), Vec::<String>::new());
        served(&gateway, 20);
    }
}

/// One exchange after the other, each of which is answered: how long they took, in own time.
fn slow_traffic(gateway: &Gateway, over: &AtomicBool) -> Vec<Duration> {
    let mut took = Vec::new();
    while !over.load(Ordering::Relaxed) {
        let watch = Stopwatch::start();
        assert_eq!(exchange(gateway.address, Duration::ZERO, SOON), End::Answered);
        took.push(watch.own());
        std::thread::sleep(Duration::from_millis(100)); // a client's own time
    }
    took
}

/// The drain ends within what the deletion leaves, whatever `grace` says.
fn a_deletion_that_is_seen_begins_a_drain(engine: Engine) {
    let oracle = Oracle::start(Script::Work);
    let api = ApiServer::start();
    let gateway = watched(engine, oracle.address, &api).set("grace", "5m").start();
    until("it is watched", SOON, || is_watched(&gateway));
    let mut quick = Client::asking(gateway.address, Duration::from_millis(300));
    let mut stuck = Client::asking(gateway.address, Duration::from_secs(600));
    until("both are served", SOON, || gateway.port().active == 2);
    let start = Stopwatch::start();
    api.delete(8);
    assert_eq!(quick.end(), End::Answered);
    assert_ne!(stuck.end(), End::Answered, "cut");
    let own = start.own();
    assert!(own < slack(Duration::from_secs(8)), "{own:?}");
    until("it says so", SOON, || gateway.log().contains("cause=Deletion"));
}

/// What wants a pod to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Word {
    Hook,
    Signal,
    Deletion,
}

/// A hook, SIGTERM and the deletion that is seen, in whichever order: one drain, which takes the deadline of
/// the deletion, loses nobody and tells everybody who waits for it the same.
fn whatever_ends_it_joins_the_drain_under_way(engine: Engine) {
    use Word::{Deletion, Hook, Signal};
    let orders = [[Hook, Deletion, Signal], [Deletion, Hook, Signal], [Signal, Deletion, Hook]];
    // The watch does not know which engine there is.
    let all = engine == Engine::Epoll || scale(0, 1) == 1;
    for order in orders.into_iter().take(if all { 3 } else { 1 }) {
        joined(engine, order);
    }
}

fn joined(engine: Engine, order: [Word; 3]) {
    let oracle = Oracle::start(Script::Held);
    let api = ApiServer::start();
    let setup = watched(engine, oracle.address, &api).env("TIDEGATE_POD_IP", "127.0.0.1");
    let setup = setup.set("limit", 4).set("queue-length", 8).set("queue-timeout", "60s");
    let mut gateway = setup.set("grace", "5m").start();
    until("it is watched", SOON, || is_watched(&gateway));
    let one = |_| Client::asking(gateway.address, Duration::ZERO);
    let mut stuck = Client::connect(gateway.address).expect("the gateway listens");
    stuck.stream.write_all(&[0; 8]).expect("half of a request");
    let mut served: Vec<_> = (0..3).map(one).collect();
    until("four are served", SOON, || oracle.count() == 4);
    served.extend((0..2).map(one));
    until("two wait", SOON, || gateway.port().queued == 2);

    let face = gateway.status().probe;
    let waits = std::thread::spawn(move || ask(face, "GET /drain/wait", ""));
    let (mut hook, mut deleted) = (None, None);
    for word in order {
        match word {
            Word::Hook => hook = Some(gateway.drain()),
            Word::Signal => gateway.signal(rustix::process::Signal::TERM),
            Word::Deletion => {
                deleted = Some(Stopwatch::start());
                api.delete(5);
                until("it is seen", SOON, || status(&gateway)["own_pod"]["deleted"] == true);
            }
        }
        until("it closes", SOON, || gateway.status().phase == "closing");
    }
    oracle.release(5); // every word has been said
    for client in &mut served {
        assert_eq!(client.end(), End::Answered, "{order:?}");
    }
    assert_ne!(stuck.end(), End::Answered);
    let deleted = deleted.expect("one of them");
    let (took, own) = (deleted.elapsed(), deleted.own());
    // Of the 5 s, told in whole seconds, a quarter is left, and half a second for what is cut to end.
    assert!(took > Duration::from_secs(2), "{order:?}: cut before its time: {took:?}");
    assert!(own < slack(Duration::from_secs(5)), "{order:?}: {took:?}");
    let report = hook.expect("one of them").report();
    let in_short = (report.in_flight_at_start, report.queued_at_start, report.finished, report.cut);
    assert_eq!(in_short, (4, 2, 5, 1), "{order:?}: {report:?}");
    assert_eq!((report.late_arrivals, report.refused), (0, 0), "{order:?}: {report:?}");
    let (code, said) = waits.join().expect("no panic");
    assert_eq!((code, said.as_str()), (200, "drained"), "{order:?}");
    assert_eq!(gateway.wait_exit(slack(Duration::from_secs(1))).code(), Some(0), "{order:?}");
    let log = gateway.log();
    let first = match order[0] {
        Word::Hook => "cause=Request",
        Word::Signal => "cause=Signal",
        Word::Deletion => "cause=Deletion",
    };
    assert!(log.contains(first) && !log.contains("second signal"), "{order:?}: {log}");
    assert_eq!(api.breaches(), Vec::<String>::new());
}

/// The namespace's ConfigMap and the watch are not needed for anything: unusable settings, words of another
/// version, an unknown pod, no API server (T49, P13).
#[test]
fn nothing_that_is_said_in_a_pod_ends_it() {
    run(Engine::Epoll, |engine| {
        let oracle = Oracle::start(Script::Work);
        for (flag, value, mode) in [
            ("template-annotations", r#"{"limit":"many"}"#, "observe"),
            ("template-annotations", "not JSON", "observe"),
            ("template-annotations", r#"{"from-the-future":{"x":[1]},"limit":5}"#, "enforce"),
            ("ceilings", "[", "observe"),
            ("ceilings", r#"{"from-the-future":"1"}"#, "enforce"),
            ("queue-length", "-1", "observe"),
            ("annotations", "/proc/self/mem", "observe"),
            ("namespace-config", "/proc/self/mem", "enforce"),
            ("workload", "../../etc", "enforce"),
            ("from-the-future", "1", "enforce"),
        ] {
            let gateway = in_a_pod(engine, oracle.address, "{}")
                .set("limit", 5)
                .set("annotations", "/nowhere/annotations")
                .set(flag, value)
                .env("TIDEGATE_FROM_THE_FUTURE", "1")
                .env("TIDEGATE_WATCH_OWN_POD", "true")
                .start();
            assert_eq!(gateway.port().mode, mode, "--{flag} {value}: {:?}", remarks(&gateway));
            assert!(remarks(&gateway).contains(&"operator unknown".to_owned()));
            until("it is in the log", SOON, || gateway.log().contains("from-the-future"));
            served(&gateway, 5);
            assert!(!gateway.log().contains("panicked"), "{}", gateway.log());
        }
    });
}

/// A service account as every pod has it, whose token is exchanged while the pod runs; in a cluster of IPv6.
#[test]
fn a_rotated_token_is_read_again() {
    if let Some(missing) = namespace::missing() {
        return skip(missing);
    }
    run(Engine::Epoll, |engine| {
        let oracle = Oracle::start(Script::Work);
        let api = ApiServer::start_at(Ipv6Addr::LOCALHOST.into());
        // A file system of its own, with the account where every pod has it.
        let account = "/run/secrets/kubernetes.io/serviceaccount";
        let script = format!(
            "mount -t tmpfs none /run && mkdir -p {account} && mount --bind {} {account} && exec \"$@\"",
            api.file("").display()
        );
        let server = api.address();
        let gateway = in_a_pod(engine, oracle.address, "{}")
            .through(&["unshare", "--mount", "sh", "-c", &script, "sh"])
            .env("TIDEGATE_WATCH_OWN_POD", "true")
            .env("POD_NAME", api.pod())
            .env("KUBECONFIG", "")
            .env("KUBERNETES_SERVICE_HOST", server.ip())
            .env("KUBERNETES_SERVICE_PORT", server.port())
            .start();
        until("it is watched", SOON, || is_watched(&gateway));
        api.rotate("second");
        api.annotate(&annotated(&[("limit", "4")]));
        until_limit(&gateway, Some(4), slack(APPLIED)); // a watch goes on
        api.fail(Fault::Closing);
        api.fail(Fault::Nothing);
        until("it asks again", RECOVERED, || api.asked().0 >= 2 && is_watched(&gateway));
        api.annotate(&annotated(&[("limit", "5")]));
        until_limit(&gateway, Some(5), slack(APPLIED));
        assert_eq!(api.breaches(), Vec::<String>::new());
    });
}

/// Straight to a real API server, if `KUBECONFIG` names one, with what it names to get in.
#[test]
fn nothing_stands_between_it_and_a_real_api_server() {
    run(Engine::Epoll, |engine| {
        let Some(real) = Cluster::from_env() else { return };
        let oracle = Oracle::start(Script::Work);
        let gateway = in_a_pod(engine, oracle.address, "{}")
            .env("TIDEGATE_WATCH_OWN_POD", "true")
            .env("POD_NAME", &real.pod)
            .start();
        until("it is watched", SOON, || is_watched(&gateway));
        real.annotate(&annotated(&[("limit", "7")]));
        until_limit(&gateway, Some(7), slack(APPLIED));
        real.annotate(&annotated(&[("limit", "many")]));
        until("it is seen", slack(APPLIED), || remarks(&gateway) == ["annotations invalid"]);
        assert_eq!(gateway.port().limit, Some(7), "the last good one stays");
        real.delete(5);
        until("it drains", SOON, || gateway.log().contains("being deleted"));
    });
}

/// A tenant's word for an engine that the node denies, or for threads that cannot be had, is one that does not
/// hold as it was written (P7, P13).
#[test]
fn what_the_node_cannot_give_is_done_without() {
    run(Engine::Epoll, |engine| {
        let oracle = Oracle::start(Script::Work);
        let config = Volume::new();
        config.put(&[("shop", "engine: uring\n")]);
        let pods = [
            in_a_pod(engine, oracle.address, r#"{"engine":"uring","limit":"3"}"#),
            in_a_pod(engine, oracle.address, r#"{"limit":"3"}"#)
                .set("namespace-config", config.path().display())
                .set("workload", "shop"),
        ];
        for (pod, source) in pods.into_iter().zip(["template", "workload"]) {
            let gateway = pod.choosing().without_io_uring(libc::EPERM).start();
            let engine = gateway.status().engine;
            assert_eq!(engine.name, "epoll");
            assert!(engine.reason.contains("setting up a ring"), "{}", engine.reason);
            assert_eq!(remarks(&gateway), [format!("{source} unused")]);
            let says = || gateway.log().contains("engine \"uring\"");
            until("the log says it", SOON, says);
            assert_eq!(gateway.port().limit, Some(3), "the rest holds");
            served(&gateway, 20);
            gateway.assert_clean();
        }
    });
}

/// The same of threads.
#[test]
fn as_many_workers_serve_as_can_be_had() {
    if !rustix::process::geteuid().is_root() || !process::installed("setpriv") {
        return skip("to become a user with few threads needs root and setpriv");
    }
    run(Engine::Epoll, |engine| {
        const NOBODY_ELSE: u32 = 54_321;
        let oracle = Oracle::start(Script::Work);
        let user = format!("--reuid={NOBODY_ELSE}");
        let launcher = ["setpriv", &user, "--clear-groups", "prlimit", "--nproc=12:12"];
        let asked = in_a_pod(engine, oracle.address, r#"{"workers":"64","limit":"3"}"#);
        let gateway = asked.through(&launcher).owned_by(NOBODY_ELSE).start();
        let workers = status(&gateway)["workers"].as_u64().expect("a number");
        assert!((1..12).contains(&workers), "{workers}");
        assert_eq!(remarks(&gateway), ["template unused"]);
        served(&gateway, 20);
        gateway.assert_clean();
    });
}
