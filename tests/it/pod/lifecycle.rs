//! Ends of containers, as the kubelet plays them, that are not a pod's ordinary one: started again, ended by
//! themselves, stuck for longer than the grace, beside a sidecar that is a container like any other.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::json;

use super::kubelet::{Farewell, LivePod};
use super::network::Network;
use super::specs::{Case, Spec, cases};
use crate::support::ledger::{Client, End, Ledger, end_all_while, exchange};
use crate::support::{SOON, Stopwatch, until};

cases!(beside:
    containers_are_started_again_and_a_job_ends,
    what_is_stuck_is_cut_before_the_grace_is_over,
    an_ordinary_container_drains_as_a_sidecar_does,
);

const APP: u16 = 8080;

/// With the hook that the injector gives the application.
fn spec(case: Case) -> Spec {
    let wait = json!({ "preStop": { "httpGet": { "path": "/drain/wait", "port": 15821 } } });
    let spec = Spec::application(case, "work", APP).with("lifecycle", wait);
    spec.set("protocol", "tcp").set("limit", 2).set("queue-timeout", "60s")
}

/// By itself, after what it had under way, and its hook did what it is for.
#[track_caller]
fn assert_polite(gone: &Farewell) {
    let (_, hook) = gone.hook.as_ref().expect("it has one");
    assert!(hook.is_ok() && !gone.killed && gone.code == 0, "{gone:?}");
}

/// Deletes the pod, while its clients wait for their answers.
fn deleted(pod: &LivePod, clients: &mut [Client]) -> (Ledger, BTreeMap<String, Farewell>) {
    let mut farewells = BTreeMap::new();
    let ledger = end_all_while(clients, || farewells = pod.delete());
    (ledger, farewells)
}

/// The line of the gateway's log that is about its drain.
fn report(pod: &LivePod) -> String {
    let said = pod.process("tidegate").said();
    let line = said.lines().find(|line| line.contains("drained"));
    line.unwrap_or_else(|| panic!("no report: {said}")).to_owned()
}

/// The application: its hook waits for no drain, as there is none. The gateway: what is under way is answered,
/// and the next one serves. The application ends: there is nothing to announce, however long that takes else.
fn containers_are_started_again_and_a_job_ends(case: Case) {
    let network = Network::new();
    let spec = spec(case).grace(8).set("drain-delay", "300ms");
    let pod = LivePod::start(&network, case.families, spec.pod(), &Default::default());
    pod.wait_ready();
    let to = SocketAddr::new(pod.address(), case.port(APP));
    let serves = || network.client.enter(|| exchange(to, Duration::ZERO, SOON));
    let ask = |work| network.client.enter(|| Client::asking(to, work));
    let gateway = pod.gateway();
    assert_eq!(serves(), End::Answered);

    assert_polite(&pod.restart("app"));
    pod.wait_ready();
    assert_eq!(serves(), End::Answered);
    assert_eq!(gateway.status().phase, "serving");
    let said = pod.process("tidegate").said();
    assert!(!said.contains("drained") && pod.restarts("tidegate") == 0, "no drain: {said}");

    let app = pod.process("app").pid;
    let mut under_way = ask(Duration::from_secs(1));
    until("it is served", SOON, || gateway.port_at(to.port()).active == 1);
    assert_polite(&pod.restart("tidegate"));
    assert_eq!(under_way.end(), End::Answered);
    pod.wait_ready();
    let gateway = pod.gateway();
    assert_eq!(serves(), End::Answered);
    let served = || gateway.port_at(to.port()).outcome("served");
    until("the new one has served it", SOON, || served() == 1);
    assert_eq!((pod.process("app").pid, pod.restarts("tidegate")), (app, 1));

    gateway.set("drain-delay", "20s");
    pod.process("app").signal(Signal::TERM);
    let going = Stopwatch::start();
    let farewells = pod.finish();
    let gone = &farewells["tidegate"];
    assert_polite(gone);
    assert!(gone.ended < Duration::from_secs(5) + going.withheld(), "{farewells:?}");
}

/// T12: at what the grace leaves the rest is cut, with a FIN; so the application is told to go, and nobody is
/// killed.
fn what_is_stuck_is_cut_before_the_grace_is_over(case: Case) {
    let network = Network::new();
    let grace = Duration::from_secs(6);
    let spec = spec(case).grace(6);
    let pod = LivePod::start(&network, case.families, spec.pod(), &Default::default());
    pod.wait_ready();
    let to = SocketAddr::new(pod.address(), case.port(APP));
    let ask = |work| network.client.enter(|| Client::asking(to, work));
    let mut clients = [Duration::from_millis(500), Duration::from_secs(600)].map(ask);
    let gateway = pod.gateway();
    until("both are served", SOON, || gateway.port_at(to.port()).active == 2);
    let going = Stopwatch::start();
    let (ledger, farewells) = deleted(&pod, &mut clients);
    let withheld = going.withheld();
    // Of the quick one, and of the stuck one: a FIN, and nothing before it.
    let ended = (ledger.of(End::Answered), ledger.of(End::Refused));
    assert_eq!(ended, (1, 1), "{ledger:?}, {farewells:?}");
    farewells.values().for_each(assert_polite);
    let (gate, app) = (&farewells["tidegate"], &farewells["app"]);
    assert!(app.told < grace + withheld, "while there was grace: {farewells:?}");
    assert!(app.ended <= gate.told, "{farewells:?}");
    let report = report(&pod);
    assert!(report.contains("finished=1 cut=1 "), "{report}");
}

/// T16: it is told to go at once, and the application goes when it has drained.
fn an_ordinary_container_drains_as_a_sidecar_does(case: Case) {
    let network = Network::new();
    let spec = spec(case).classic().set("drain-delay", "300ms").grace(20);
    let pod = LivePod::start(&network, case.families, spec.pod(), &Default::default());
    pod.wait_ready();
    let to = SocketAddr::new(pod.address(), case.port(APP));
    let ask = |_| network.client.enter(|| Client::asking(to, Duration::from_secs(1)));
    let mut clients: Vec<_> = (0..4).map(ask).collect();
    let gateway = pod.gateway();
    let full = |port: crate::support::gateway::Port| (port.active, port.queued) == (2, 2);
    until("two are served, two wait", SOON, || full(gateway.port_at(to.port())));
    let (ledger, farewells) = deleted(&pod, &mut clients);
    assert_eq!(ledger.of(End::Answered), 4, "{ledger:?}, {farewells:?}");
    farewells.values().for_each(assert_polite);
    let report = report(&pod);
    assert!(report.contains("finished=4 cut=0 ") && report.contains("refused=0"), "{report}");
}
