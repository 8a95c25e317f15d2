//! T38: whoever reaches the application without the gateway is counted: from inside the pod, and from outside
//! when no rules are in force.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use super::{APP, Scene, any, capturing, missing, start};
use crate::support::gateway::Setup;
use crate::support::namespace::{CLIENT, POD, Pod};
use crate::support::oracle::{Oracle, Script};
use crate::support::{Engine, SOON, engines, skip, until};

engines!(
    who_passes_beside_is_counted,
    rules_that_are_taken_away_are_missed,
    rules_that_were_never_there_are_missed,
);

/// A byte there and back, and the connection.
fn talk(to: SocketAddr) -> TcpStream {
    let mut stream = TcpStream::connect(to).expect("connects");
    stream.write_all(b"x").expect("writes");
    stream.read_exact(&mut [0]).expect("an echo");
    stream
}

/// Connections that reach the application without the gateway are seen, those of the gateway are not:
/// with capture and with a listener, over both families.
fn who_passes_beside_is_counted(engine: Engine) {
    if let Some(reason) = missing() {
        return skip(reason);
    }
    let scene = Scene::new(Pod::new(), "8080", capturing(engine).set("limit", 9));
    let _app = scene.oracle(APP, Script::Echo);
    let beside = |port| {
        let label = format!("port=\"{port}\"");
        scene.gateway.metric("tidegate_bypass_connections", &label)
    };
    let through = scene.pod.outside(|| POD.map(|pod| talk((pod, APP).into())));
    assert_eq!(beside(APP), 0.0, "those are ours");
    let locals = [POD[0], POD[1], "127.0.0.1".parse().expect("an address")];
    let past = scene.pod.inside(|| locals.map(|ip| talk((ip, APP).into())));
    until("those are not", SOON, || beside(APP) == 3.0);
    assert_eq!(scene.gateway.port_at(APP).bypass, Some(3));
    // What is redirected is tracked.
    let tracked = scene.gateway.metric("tidegate_conntrack_entries", "");
    let most = scene.gateway.metric("tidegate_conntrack_entries_max", "");
    assert!(tracked >= 2.0 && most > tracked, "{tracked} of {most}");
    drop(past);
    until("they have gone", SOON, || beside(APP) == 0.0);
    drop(through);
    scene.gateway.assert_clean();

    let setup = Setup::without_port(engine).set("listen", "[::]:9080=127.0.0.1:8080");
    let listening = start(&scene.pod, setup);
    let through = scene.pod.outside(|| talk((POD[0], 9080).into()));
    let past = scene.pod.inside(|| talk((POD[0], APP).into()));
    until("one of the two is not ours", SOON, || listening.port().bypass == Some(1));
    drop((through, past));
    listening.assert_clean();
}

/// The rules are removed while it serves: who comes then comes beside, and is counted; with new rules nobody does
/// any more. Nobody is through meanwhile: with the last of its NAT chains the kernel stops to translate, and such
/// connections break.
fn rules_that_are_taken_away_are_missed(engine: Engine) {
    if let Some(reason) = missing() {
        return skip(reason);
    }
    let scene = Scene::new(Pod::new(), "8080", capturing(engine).set("limit", 9));
    let _app = scene.oracle(APP, Script::Echo);
    let gateway = &scene.gateway;
    let from_outside = || scene.pod.outside(|| POD.map(|pod| talk((pod, APP).into())));
    drop(from_outside());
    until("they have gone", SOON, || gateway.status().connections == 0);
    let (removed, said) = scene.pod.capture("remove", &[]);
    assert!(removed, "{said}");
    let past = from_outside();
    until("they are missed", SOON, || gateway.port_at(APP).bypass == Some(2));
    assert_eq!(gateway.metric("tidegate_bypass_connections", "port=\"8080\""), 2.0);
    assert_eq!(gateway.port_at(APP).accepted, 2, "only who came before");
    let (installed, said) = scene.pod.capture("install", &["--include-inbound-ports", "8080"]);
    assert!(installed, "{said}");
    let again = from_outside();
    assert_eq!(gateway.port_at(APP).accepted, 4);
    drop(past);
    until("nobody is beside", SOON, || gateway.port_at(APP).bypass == Some(0));
    drop(again);
    gateway.assert_clean();
}

/// All ports are meant, none was ever captured, and so none has a gate: whoever calls one from elsewhere is
/// counted at the entrance. Who is called from the pod, or calls within it, is nobody to be captured.
fn rules_that_were_never_there_are_missed(engine: Engine) {
    if let Some(reason) = missing() {
        return skip(reason);
    }
    let pod = Pod::new();
    let setup = || capturing(engine).set("limit", 9);
    let gateway = start(&pod, setup().set("include-inbound-ports", "all"));
    let _app = pod.inside(|| Oracle::start_at(any(APP), Script::Echo));
    let _others = pod.outside(|| Oracle::start_at(any(APP), Script::Echo));
    let within = pod.inside(|| POD.map(|pod| talk((pod, APP).into())));
    let outbound = pod.inside(|| CLIENT.map(|client| talk((client, APP).into())));
    let entrance = || gateway.port_at(15801).bypass;
    assert_eq!(entrance(), Some(0));
    let past = pod.outside(|| POD.map(|pod| talk((pod, APP).into())));
    until("they are missed", SOON, || entrance() == Some(2));
    assert_eq!(gateway.metric("tidegate_bypass_connections", "port=\"15801\""), 2.0);
    assert_eq!(gateway.metric("tidegate_admission_limit", "port=\"15801\""), 0.0, "it has none");
    let page = gateway.call("GET", "/", "").body;
    assert!(page.contains("rules are missing"), "{page}");

    let (installed, said) = pod.capture("install", &["--include-inbound-ports", "all"]);
    assert!(installed, "{said}");
    let through = pod.outside(|| talk((POD[0], APP).into()));
    // The port has a gate from now on, and what is beside it is counted there, wherever it comes from.
    until("it is known where", SOON, || entrance() == Some(0));
    assert_eq!(gateway.port_at(APP).bypass, Some(4));
    drop((past, within, outbound));
    until("nobody is beside", SOON, || gateway.port_at(APP).bypass == Some(0));
    drop(through);
    gateway.assert_clean();
    drop(gateway);

    // Of rules that nobody speaks of none is missing.
    let (removed, said) = pod.capture("remove", &[]);
    assert!(removed, "{said}");
    let gateway = start(&pod, setup());
    let _past = pod.outside(|| talk((POD[0], APP).into()));
    assert_eq!(gateway.port_at(15801).bypass, None);
}
