//! Probes of the application, which the gateway does beside its gates: green as long as the application
//! works, however many clients it has; red as soon as it does not.

use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::{Value, json};

use super::kubelet::{Change, LivePod, Probed};
use super::network::Network;
use super::probe::Kind;
use super::specs::{Case, Mode, Spec, cases};
use crate::http::client;
use crate::support::ledger::{End, Ledger};
use crate::support::{Over, SOON, scale, until};

cases!(green_at_fifty_times_the_load_and_red_when_it_dies);

const APP: u16 = 8080;
const PERIOD: Duration = Duration::from_secs(1);

/// As the injector rewrites it.
pub(super) fn rewritten(kind: &str) -> Value {
    let get = json!({ "path": format!("/app-probe/app/{kind}"), "port": 15821 });
    json!({ "httpGet": get, "periodSeconds": PERIOD.as_secs(), "failureThreshold": 1, "timeoutSeconds": 2 })
}

/// What every client asks for: 2 slots carry 10 of these in a second.
const WORK: &str = "/work?ms=200";

/// A client's own time between two requests: a hundred of them ask a hundred times as much.
const PAUSE: Duration = Duration::from_millis(100);

fn green_at_fifty_times_the_load_and_red_when_it_dies(case: Case) {
    // Each kind of probe in every family, on either engine.
    let get =
        json!({ "httpGet": { "path": "/", "port": APP, "scheme": "HTTP" }, "timeoutSeconds": 2 });
    let call = json!({ "grpc": { "port": APP }, "timeoutSeconds": 2 });
    let (ready, alive) = match case.mode {
        Mode::Redirect => (get, call),
        Mode::Listen => (call, get),
    };
    let probes = json!({
        "app/startup": { "tcpSocket": { "port": APP }, "timeoutSeconds": 2 },
        "app/readiness": ready,
        "app/liveness": alive,
    });
    let network = Network::new();
    let spec = Spec::application(case, "http", APP).set("limit", 2).set("queue-length", 2);
    // A client looks for a free port for long when there have been so many, and is silent meanwhile.
    let mut spec = spec.set("protocol", "http").env("TIDEGATE_APP_PROBES", probes);
    for (kind, failures) in [("startup", 30), ("readiness", 1), ("liveness", 3)] {
        let mut probe = rewritten(kind);
        probe["failureThreshold"] = failures.into();
        spec = spec.with(&format!("{kind}Probe"), probe);
    }
    let pod = LivePod::start(&network, case.families, spec.pod(), &Default::default());
    pod.wait_ready();
    let ready = Instant::now();
    let gateway = pod.gateway();
    let to = SocketAddr::new(pod.address(), case.port(APP));

    let over = AtomicBool::new(false);
    let ledger: Ledger = network.client.enter(|| {
        std::thread::scope(|scope| {
            let over = Over(&over);
            let one = || {
                let mut ledger = Ledger::default();
                while !over.0.load(Ordering::Relaxed) {
                    ledger.enter(client::exchange(to, WORK, SOON));
                    std::thread::sleep(PAUSE);
                }
                ledger
            };
            let clients: Vec<_> = (0..100).map(|_| scope.spawn(one)).collect();
            std::thread::sleep(PERIOD * scale(4, 30) as u32); // the measurement
            over.0.store(true, Ordering::Relaxed);
            clients.into_iter().map(|client| client.join().expect("no panic")).sum()
        })
    });
    eprintln!("{ledger:?}");
    assert!(ledger.of(End::Answered) > 0, "{ledger:?}");
    assert!(ledger.total() >= 50 * ledger.of(End::Answered), "fifty times the load: {ledger:?}");
    assert_eq!(ledger.of(End::Answered) + ledger.of(End::Refused), ledger.total(), "{ledger:?}");
    let probed: Vec<_> = pod.probed().into_iter().filter(|probe| probe.begun > ready).collect();
    let red: Vec<_> = probed.iter().filter(|probe| probe.result.is_err()).collect();
    assert!(red.is_empty(), "{red:?}");
    for kind in [Kind::Readiness, Kind::Liveness] {
        let asked = probed.iter().filter(|probe| probe.kind == kind && probe.container == "app");
        assert!(asked.count() >= 2, "{kind:?}: {probed:?}");
    }
    assert!(pod.is_ready());
    assert_eq!(pod.restarts("app"), 0);
    let port = gateway.port_at(case.port(APP));
    assert!(port.peak_active <= 2, "{port:?}");

    let app = pod.process("app");
    app.signal(Signal::USR1);
    let own = SocketAddr::new(pod.address(), APP);
    let listens = || pod.inside(|| TcpStream::connect(own).is_ok());
    until("the application does not listen any more", SOON, || !listens());
    let dead = Instant::now();
    until("it is started again", SOON, || pod.restarts("app") == 1);
    let ended = app.ended().expect("it was restarted").at;
    let all = pod.probed().into_iter();
    let of_the_dead =
        |probe: &Probed| probe.container == "app" && probe.begun > dead && probe.ended < ended;
    let probed: Vec<_> = all.filter(of_the_dead).collect();
    // The first of each that began when it was dead, and so all that followed, a period apart.
    for probe in &probed {
        let why = probe.result.as_ref().expect_err("the application is dead");
        assert!(why.ends_with(": 503") && probe.took < PERIOD, "{probe:?}");
    }
    let count = |kind| probed.iter().filter(|probe| probe.kind == kind).count();
    assert!(count(Kind::Readiness) >= 1 && count(Kind::Liveness) >= 2, "{probed:?}");
    let said = |change: &Change| change.kind == Kind::Readiness && change.container == "app";
    let change = pod.changes().into_iter().find(|change| said(change) && !change.good);
    assert!(change.is_some_and(|change| change.at < ended), "not ready before it was ended");
    until("the pod is ready again", SOON, || pod.is_ready());
}
