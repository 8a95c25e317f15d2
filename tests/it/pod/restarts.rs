//! T14: a drain that came to nothing. Somebody has asked for it, and instead of the pod's end a container that
//! was not alive is started again: the gateway, which nobody has ended, serves again, on every port.

use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use rustix::process::Signal;
use serde_json::json;

use super::application::WHAT;
use super::kubelet::LivePod;
use super::network::Network;
use super::probes::rewritten;
use super::specs::{Case, Spec, cases};
use crate::support::ledger::{End, Ledger, closed_loop, exchange, overfill};
use crate::support::{SOON, slack, until};

cases!(every_port_serves_again);

const PORTS: [u16; 2] = [8080, 8081];

fn every_port_serves_again(case: Case) {
    let network = Network::new();
    let what = PORTS.map(|port| format!("work {}:{port}", case.families.any())).join(",");
    let app = json!({ "name": "app", "image": "application",
        "env": [{ "name": WHAT, "value": what }] });
    // As the injector rewrites it: a probe that is captured would fail as long as nobody listens.
    let probes =
        json!({ "app/liveness": { "tcpSocket": { "port": PORTS[0] }, "timeoutSeconds": 1 } });
    let spec = Spec::new(case, "again", &PORTS, app).env("TIDEGATE_APP_PROBES", probes);
    let mut alive = rewritten("liveness");
    alive["failureThreshold"] = 2.into(); // it takes a moment to start
    let spec = spec.with("livenessProbe", alive);
    let spec = spec.set("protocol", "tcp").set("limit", 2).set("queue-length", 2);
    let spec = spec.set("queue-timeout", "60s").grace(10);
    let pod = LivePod::start(&network, case.families, spec.pod(), &Default::default());
    pod.wait_ready();
    let gateway = pod.gateway();
    let to = PORTS.map(|port| SocketAddr::new(pod.address(), case.port(port)));
    let serves = |to| network.client.enter(|| exchange(to, Duration::ZERO, SOON));
    assert_eq!(to.map(serves), [End::Answered; 2]);

    // Twice: the second time nothing may be left of the first.
    for round in 1..=2 {
        let drained = pod.process("tidegate").exec(&["/tidegate".into(), "drain".into()]);
        assert!(drained.status.success(), "{drained:?}");
        until("it has drained", SOON, || gateway.status().phase == "drained");
        for to in to {
            let dialled = network.client.enter(|| TcpStream::connect(to));
            dialled.map(drop).expect_err("nobody listens");
        }
        until("the pod is not ready", SOON, || !pod.is_ready());
        pod.process("app").signal(Signal::USR1); // it does not serve any more
        until("it is started again", SOON, || pod.restarts("app") == round);
        until("it serves again", slack(Duration::from_secs(1)), || {
            gateway.status().phase == "serving"
        });
        until("the pod is ready again", SOON, || pod.is_ready());
        assert_eq!(to.map(serves), [End::Answered; 2], "round {round}");
        for (to, port) in to.into_iter().zip(PORTS) {
            let before = gateway.port_at(case.port(port));
            let one = |_, _| exchange(to, Duration::from_millis(10), SOON);
            let load = || [overfill(&gateway, to, 2, 2), closed_loop(8, 80, one)];
            let ledger: Ledger = network.client.enter(load).into_iter().sum();
            let (answered, refused) = (ledger.of(End::Answered), ledger.of(End::Refused));
            assert_eq!(answered + refused, ledger.total(), "{ledger:?}");
            assert!(answered >= 4 && refused > 0, "{ledger:?}");
            let after = gateway.port_at(case.port(port));
            let counted = (after.admitted - before.admitted, after.refused("queue_full"));
            assert_eq!(counted, (answered, before.refused("queue_full") + refused), "{after:?}");
            assert_eq!(after.peak_active, 2, "through the gate: {after:?}");
        }
        assert_eq!(gateway.metric("tidegate_drains_taken_back_total", ""), round as f64);
    }
    gateway.assert_clean();
    assert_eq!(pod.restarts("tidegate"), 0);
    let farewells = pod.delete();
    assert!(farewells.values().all(|gone| gone.code == 0 && !gone.killed), "{farewells:?}");
}
