//! The rig itself: a container has what the pod says and no more; and what a gateway is in a pod.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::json;

use super::kubelet::LivePod;
use super::network::Network;
use super::probe::Kind;
use super::specs::{Case, Mode, Spec, cases};
use crate::support::ledger::{End, exchange};
use crate::support::{Engine, SOON, Stopwatch};

cases!(a_pod_starts_serves_and_ends);

/// In order, as their own users, without any capability that is not named; through the gateway; and away
/// within the grace, the gateway last.
fn a_pod_starts_serves_and_ends(case: Case) {
    let network = Network::new();
    let spec = Spec::application(case, "work", 8080).set("protocol", "tcp").set("limit", 2);
    let ready = json!({ "tcpSocket": { "port": 8080 }, "periodSeconds": 1 });
    let spec = spec.grace(10).with("readinessProbe", ready);
    let pod = LivePod::start(&network, case.families, spec.pod(), &Default::default());
    pod.wait_ready();
    let gateway = pod.gateway();
    let status = gateway.status();
    assert_eq!(status.engine.name, case.engine.name(), "{}", status.engine.reason);
    if case.engine == Engine::Epoll {
        assert!(status.engine.reason.contains("not permitted"), "{}", status.engine.reason);
    }
    for (name, uid) in [("tidegate", 15800), ("app", 1000)] {
        let process = pod.process(name);
        let text = std::fs::read_to_string(format!("/proc/{}/status", process.pid));
        let text = text.expect("it runs");
        for line in [
            format!("Uid:\t{uid}\t{uid}\t{uid}\t{uid}"),
            "CapEff:\t0000000000000000".into(),
            "CapBnd:\t0000000000000000".into(),
            "NoNewPrivs:\t1".into(),
            "Seccomp:\t2".into(),
            "NSpid:\t".to_owned() + &process.pid.to_string() + "\t1\n",
        ] {
            assert!(text.contains(&line), "{name}: {line:?}: {text}");
        }
    }
    let to = SocketAddr::new(pod.address(), case.port(8080));
    let end = network.client.enter(|| exchange(to, Duration::from_millis(5), SOON));
    assert_eq!(end, End::Answered);
    gateway.assert_clean();
    let number = case.port(8080);
    assert!(gateway.port_at(number).outcome("served") >= 1, "through the gateway");
    if case.mode == Mode::Redirect {
        let rules = pod.succeed(&["nft", "list", "ruleset"]);
        assert!(rules.contains("table inet tidegate") && rules.contains("8080"), "{rules}");
    }
    let started = pod.changes().into_iter().find(|change| change.kind == Kind::Startup);
    let started = started.expect("the sidecar has a startup probe");
    assert!(started.good && started.container == "tidegate", "{started:?}");
    for later in pod.changes().iter().filter(|change| change.container != "tidegate") {
        assert!(started.at < later.at, "the gateway is there first: {started:?} {later:?}");
    }
    assert_eq!(pod.restarts("app"), 0);
    let going = Stopwatch::start();
    let farewells = pod.delete();
    let withheld = going.withheld();
    let (gate, app) = (&farewells["tidegate"], &farewells["app"]);
    assert_eq!((gate.code, app.code, gate.killed), (0, 0, false), "{farewells:?}");
    assert!(app.ended <= gate.told, "{farewells:?}");
    assert!(gate.ended < Duration::from_secs(5) + withheld, "{farewells:?}");
}
