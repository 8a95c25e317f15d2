//! Settings edited while the pod runs: annotations by the downward API's volume, the namespace's ConfigMap, `tidegate
//! set`, for each port and for all, through mounts of the kubelet's kind. What is in force is always what was last
//! valid, and nobody loses a request.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::json;

use super::application::WHAT;
use super::kubelet::LivePod;
use super::network::Network;
use super::specs::{Case, Spec, cases};
use crate::support::edits::{self, Books};
use crate::support::ledger::{End, Ledger, exchange};
use crate::support::{Over, Rng, SOON, scale};

cases!(beside: edits_at_random_under_load);

const PORTS: [u16; 2] = [8080, 8081];

fn edits_at_random_under_load(case: Case) {
    let mut rng = Rng::new(Rng::announced());
    let network = Network::new();
    let what = PORTS.map(|port| format!("work {}:{port}", case.families.any())).join(",");
    let app = json!({ "name": "app", "image": "application",
        "env": [{ "name": WHAT, "value": what }] });
    let spec = Spec::new(case, "edited", &PORTS, app).told().set("protocol", "tcp");
    let spec = spec.set("mode", "enforce").set("limit", 8).set("queue-length", 16);
    let spec =
        spec.set("shadow-limits", 50).set("drain-timeout", "10s").set("queue-timeout", "60s");
    // The thread that writes its lines runs on when it is switched off.
    let spec = spec.set("access-log", "on");
    let pod = LivePod::start(&network, case.families, spec.pod(), &Default::default());
    pod.wait_ready();
    let gateway = pod.gateway();
    // Who makes a pod speaks of the application's ports; in `listen` mode the gateway has others.
    let ports = PORTS.map(|port| (port, case.port(port)));
    let mut books = Books::new(&gateway, &ports);
    let say = |books: &Books, source: usize| {
        if source == edits::ANNOTATIONS {
            pod.annotate(books.annotations());
        } else {
            pod.configure("tidegate", &edits::files(books));
        }
    };
    let over = AtomicBool::new(false);
    let client = |port: u16| {
        let to = SocketAddr::new(pod.address(), case.port(port));
        network.client.enter(|| {
            let mut ledger = Ledger::default();
            while !over.load(Ordering::Relaxed) {
                ledger.enter(exchange(to, Duration::from_millis(2), SOON));
            }
            ledger
        })
    };
    let client = &client;
    let ledger: Ledger = std::thread::scope(|scope| {
        let _over = Over(&over);
        let clients = [PORTS, PORTS].concat().into_iter();
        let clients: Vec<_> = clients.map(|port| scope.spawn(move || client(port))).collect();
        edits::at_random(&mut rng, scale(40, 1000), &gateway, &mut books, &say);
        over.store(true, Ordering::Relaxed);
        clients.into_iter().map(|client| client.join().expect("no panic")).sum()
    });
    let polite = ledger.of(End::Answered) + ledger.of(End::Refused);
    assert!(ledger.of(End::Answered) > 0 && polite == ledger.total(), "{ledger:?}");
    gateway.assert_clean();
}
