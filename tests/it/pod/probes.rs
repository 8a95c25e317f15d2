//! Probes of the application, which the gateway does beside its gates: green as long as the application
//! works, however many clients it has; red as soon as it does not.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::{Value, json};

use super::kubelet::LivePod;
use super::network::Network;
use super::probe::Kind;
use super::specs::{Case, Spec, cases};
use crate::http::client;
use crate::support::ledger::{End, Ledger};
use crate::support::{Over, SOON, scale, slack, until};

cases!(green_at_fifty_times_the_load_and_red_when_it_dies);

const APP: u16 = 8080;
const PERIOD: Duration = Duration::from_secs(1);

/// As the injector rewrites it.
pub(super) fn rewritten(kind: &str) -> Value {
    let get = json!({ "path": format!("/app-probe/app/{kind}"), "port": 15821 });
    json!({ "httpGet": get, "periodSeconds": PERIOD.as_secs(), "failureThreshold": 1, "timeoutSeconds": 2 })
}

fn green_at_fifty_times_the_load_and_red_when_it_dies(case: Case) {
    let probes = json!({
        "app/readiness": { "httpGet": { "path": "/", "port": APP, "scheme": "HTTP" }, "timeoutSeconds": 2 },
        "app/liveness": { "tcpSocket": { "port": APP }, "timeoutSeconds": 2 },
    });
    let network = Network::new();
    let spec = Spec::application(case, "http", APP).set("limit", 2).set("queue-length", 2);
    let spec =
        spec.env("TIDEGATE_APP_PROBES", probes).with("readinessProbe", rewritten("readiness"));
    let mut alive = rewritten("liveness");
    alive["failureThreshold"] = 3.into();
    let pod = LivePod::start(
        &network,
        case.families,
        spec.with("livenessProbe", alive).pod(),
        &Default::default(),
    );
    pod.wait_ready();
    let gateway = pod.gateway();
    let to = SocketAddr::new(pod.address(), case.port(APP));

    let over = AtomicBool::new(false);
    let ledger: Ledger = network.client.enter(|| {
        std::thread::scope(|scope| {
            let over = Over(&over);
            let one = || {
                let mut ledger = Ledger::default();
                while !over.0.load(Ordering::Relaxed) {
                    ledger.enter(client::exchange(to, "/work?ms=20", SOON));
                    std::thread::sleep(Duration::from_millis(20)); // a client's own time
                }
                ledger
            };
            // 2 slots of 20 ms carry 100 requests in a second; these are 100 clients, each as quick.
            let clients: Vec<_> = (0..100).map(|_| scope.spawn(one)).collect();
            std::thread::sleep(PERIOD * scale(4, 30) as u32); // the measurement
            over.0.store(true, Ordering::Relaxed);
            clients.into_iter().map(|client| client.join().expect("no panic")).sum()
        })
    });
    assert!(
        ledger.of(End::Answered) > 0 && ledger.of(End::Refused) > ledger.of(End::Answered),
        "{ledger:?}"
    );
    let red: Vec<_> = pod.changes().into_iter().filter(|change| !change.good).collect();
    let at_start = |kind| kind == Kind::Readiness; // before the application listens
    assert!(red.iter().all(|change| at_start(change.kind) && change.container == "app"), "{red:?}");
    until("it is ready by the last word", SOON, || {
        let last = pod.changes().into_iter().rfind(|change| change.kind == Kind::Readiness);
        last.is_some_and(|change| change.good) && pod.is_ready()
    });
    assert_eq!(pod.restarts("app"), 0);
    let port = gateway.port_at(case.port(APP));
    assert!(port.peak_active <= 2, "{port:?}");

    let dead = Instant::now();
    pod.process("app").signal(Signal::USR1);
    until("the probe is red", slack(PERIOD), || !pod.is_ready());
    let change = pod.changes().into_iter().rfind(|change| change.kind == Kind::Readiness);
    let change = change.expect("just seen");
    assert!(!change.good && change.container == "app", "{change:?}");
    eprintln!("red after {:?}: {}", change.at - dead, change.why);
    until("it is started again", SOON, || pod.restarts("app") == 1);
    until("the pod is ready again", SOON, || pod.is_ready());
}
