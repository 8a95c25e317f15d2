//! What the injector makes of the example in `manifests/examples` runs as it says: nothing here is written by
//! hand but the load. The pod is the one a ReplicaSet would make of the example's Deployment; its containers,
//! users, capabilities, probes, hooks, volumes and variables are those of the patched pod.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Container, Namespace, Pod};
use serde_json::{Value, json};
use tidegate::inject::{self, Context, Operator, Outcome, POD_SECURITY_LABEL};

use super::kubelet::LivePod;
use super::network::{Families, Network};
use super::surroundings::ConfigMaps;
use crate::http::client::{Http1, wrong_with};
use crate::support::gateway::Gateway;
use crate::support::{Engine, Over, SOON, run_beside, skip, until};

#[test]
fn the_example_redirected() {
    run_beside(Engine::Epoll, |_| {
        let Some(spec) = plays("privileged", "1.33") else { return };
        assert_eq!(names(spec.init_containers.as_deref()), ["tidegate-capture", "tidegate"]);
        assert_eq!(names(Some(&spec.containers)), ["web"]);
    });
}

#[test]
fn the_example_listening() {
    run_beside(Engine::Epoll, |_| {
        let Some(spec) = plays("restricted", "1.33") else { return };
        assert_eq!(spec.init_containers.map(|all| all.len()), Some(1), "the sidecar, and no rules");
    });
}

/// An ordinary container, which may start after the application and may be told to go before it: its hook, and the
/// application's, which waits for the drain, keep what is under way all the same.
#[test]
fn the_example_on_kubernetes_1_28() {
    run_beside(Engine::Epoll, |_| {
        let Some(spec) = plays("privileged", "1.28") else { return };
        assert_eq!(names(spec.init_containers.as_deref()), ["tidegate-capture"]);
        assert_eq!(names(Some(&spec.containers)), ["web", "tidegate"]);
    });
}

fn names(containers: Option<&[Container]>) -> Vec<&str> {
    containers.into_iter().flatten().map(|container| container.name.as_str()).collect()
}

/// What the example's application can do at once, and its ConfigMap for Tidegate says.
const LIMIT: u64 = 8;

/// The example under a level of Pod Security, on a version of Kubernetes: starts, is what it says, holds its limit, goes without a loss.
fn plays(level: &str, kubernetes: &str) -> Option<k8s_openapi::api::core::v1::PodSpec> {
    if let Some(reason) = super::missing() {
        skip(reason);
        return None;
    }
    let pod = injected(level, kubernetes);
    let spec = pod.spec.clone().expect("a pod has a spec");
    let network = Network::new();
    let live = LivePod::start(&network, Families::V4, pod, &config_maps());
    live.wait_ready();
    for container in spec.init_containers.iter().flatten().chain(&spec.containers) {
        if container.name != inject::CAPTURE_CONTAINER {
            is_confined_as_described(&live, container);
        }
    }
    let gateway = live.gateway();
    let to = SocketAddr::new(live.address(), target_port(&spec, "http"));
    let port = gateway.port_at(to.port());
    assert_eq!((port.limit, port.mode.as_str()), (Some(LIMIT), "enforce"), "the ConfigMap's");

    let over = AtomicBool::new(false);
    let (answered, refused) = network.client.enter(|| surge(&gateway, to, &over));
    assert!(answered >= LIMIT && refused > 0, "{answered} answered, {refused} refused");
    let port = gateway.port_at(to.port());
    assert_eq!(port.peak_active, LIMIT, "full, and no more: {port:?}");
    until("nobody is left", SOON, || gateway.status().connections == 0);

    let farewells = network.client.enter(|| {
        let ask = |_| Http1::asking(to, "/?sleep=6").patience(SOON);
        let mut under_way: Vec<Http1> = (0..LIMIT).map(ask).collect();
        until("all are in work", SOON, || gateway.port_at(to.port()).active == LIMIT);
        let farewells = live.delete();
        for client in &mut under_way {
            let answer = client.answer().expect("nobody is lost");
            assert_eq!((answer.status, answer.text()), (200, "web-5d4f8c9b7-x2x4z\n".into()));
        }
        farewells
    });
    for (name, gone) in &farewells {
        let (_, hook) =
            gone.hook.as_ref().expect("the sidecar has one, and so has the application");
        assert!(hook.is_ok() && !gone.killed && gone.code == 0, "{name}: {farewells:?}");
    }
    let native = !spec.containers.iter().any(|container| container.name == "tidegate");
    let in_order = farewells["web"].ended <= farewells["tidegate"].told;
    assert!(in_order || !native, "a native sidecar goes last: {farewells:?}");
    Some(spec)
}

/// The pod as the kubelet gets to see it.
fn injected(level: &str, kubernetes: &str) -> Pod {
    let shop = documents("shop.yaml");
    let mut namespace: Namespace = only(&shop, "Namespace");
    let labels = namespace.metadata.labels.get_or_insert_default();
    labels.insert(POD_SECURITY_LABEL.into(), level.into());
    let name = namespace.metadata.name.clone().expect("it has one");
    let context = Context::of_namespace(&name, labels, &BTreeMap::new());
    let deployment: Deployment = only(&shop, "Deployment");
    let template = deployment.spec.expect("a Deployment has a spec").template;
    let mut pod = serde_json::to_value(template).expect("JSON");
    let meta = &mut pod["metadata"];
    meta["name"] = "web-5d4f8c9b7-x2x4z".into();
    meta["namespace"] = name.into();
    meta["labels"]["pod-template-hash"] = "5d4f8c9b7".into();
    meta["ownerReferences"] = json!([{
        "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web-5d4f8c9b7", "uid": "1", "controller": true,
    }]);
    let operator = Operator::from_yaml(&format!("kubernetes: '{kubernetes}'")).expect("a version");
    match inject::review(&pod, &context, &operator) {
        Outcome::Patched { patch, warnings } => {
            // What `listen` is, is said of every pod.
            let of_listen =
                |warning: &String| warning.contains("where a Service says `targetPort: ");
            assert!(warnings.iter().all(of_listen), "{warnings:?}");
            json_patch::patch(&mut pod, &patch).expect("a patch that applies");
        }
        other => panic!("{other:?}"),
    }
    serde_json::from_value(pod).expect("a pod of Kubernetes")
}

/// The application's, and the namespace's settings: its limit is there.
fn config_maps() -> ConfigMaps {
    let maps = ["shop.yaml", "namespace.yaml"].map(|file| only(&documents(file), "ConfigMap"));
    let named =
        |map: ConfigMap| (map.metadata.name.expect("it has one"), map.data.unwrap_or_default());
    maps.into_iter().map(named).collect()
}

fn documents(file: &str) -> Vec<Value> {
    let path = format!("{}/manifests/examples/{file}", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(path).expect("an example");
    serde_saphyr::from_multiple(&text).expect("YAML")
}

fn only<T: serde::de::DeserializeOwned>(documents: &[Value], kind: &str) -> T {
    let mut of_kind = documents.iter().filter(|document| document["kind"] == kind);
    let one = of_kind.next().unwrap_or_else(|| panic!("no {kind}"));
    serde_json::from_value(one.clone()).unwrap_or_else(|error| panic!("{kind}: {error}"))
}

/// Where a Service leads whose `targetPort` is this name.
fn target_port(spec: &k8s_openapi::api::core::v1::PodSpec, name: &str) -> u16 {
    let containers = spec.init_containers.iter().flatten().chain(&spec.containers);
    let ports = containers.flat_map(|container| container.ports.iter().flatten());
    let named: Vec<_> = ports.filter(|port| port.name.as_deref() == Some(name)).collect();
    assert_eq!(named.len(), 1, "one port has the name: {named:?}");
    named[0].container_port as u16
}

/// User, capabilities, privileges, system calls and root, of the process as it is, against the pod's words.
#[track_caller]
fn is_confined_as_described(live: &LivePod, container: &Container) {
    let said = container.security_context.clone().expect("each says");
    let uid = said.run_as_user.unwrap_or(1000); // the pod's
    let process = live.process(&container.name);
    let of = |file: &str| {
        std::fs::read_to_string(format!("/proc/{}/{file}", process.pid)).expect("it runs")
    };
    assert_eq!(said.allow_privilege_escalation, Some(false));
    assert_eq!(said.capabilities.and_then(|all| all.drop), Some(vec!["ALL".into()]));
    let status = of("status");
    for line in [
        format!("Uid:\t{uid}\t{uid}\t{uid}\t{uid}\n"),
        "CapEff:\t0000000000000000\n".into(),
        "CapBnd:\t0000000000000000\n".into(),
        "NoNewPrivs:\t1\n".into(),
        "Seccomp:\t2\n".into(),
    ] {
        assert!(status.contains(&line), "{}: {line:?}: {status}", container.name);
    }
    assert_eq!(said.read_only_root_filesystem, Some(true));
    let mounts = of("mountinfo");
    let at = |place: &str| mounts.lines().find(|line| line.split(' ').nth(4) == Some(place));
    let read_only = |line: &str| line.split(' ').nth(5).expect("options").starts_with("ro");
    assert!(at("/").is_some_and(read_only), "{mounts}");
    for mount in container.volume_mounts.iter().flatten() {
        let line = at(&mount.mount_path).unwrap_or_else(|| panic!("{mount:?}: {mounts}"));
        assert_eq!(read_only(line), mount.read_only == Some(true), "{line}");
    }
}

/// Five times as many clients as there is room for, for a second: how many were answered and refused. Each
/// is known to speak HTTP before, and all ask at once at first.
fn surge(gateway: &Gateway, to: SocketAddr, over: &AtomicBool) -> (u64, u64) {
    let known = |_| {
        let mut client = Http1::connect(to).patience(SOON);
        assert_eq!(client.get("/healthz").status, 200);
        client
    };
    let mut clients: Vec<_> = (0..LIMIT * 5).map(known).collect();
    gateway.paused(|| clients.iter_mut().for_each(|client| client.ask("/", "")));
    std::thread::scope(|scope| {
        let over = Over(over);
        let one = |mut client: Http1| {
            let (mut answered, mut refused) = (0, 0);
            loop {
                let answer = client.answer().expect("answered or refused, never lost");
                if answer.status == 200 {
                    let inside = answer.header("x-inside").and_then(|value| value.parse().ok());
                    let inside: u64 = inside.expect("the application counts");
                    assert!(inside <= LIMIT, "{inside} at the application");
                    answered += 1;
                } else {
                    assert_eq!((answer.status, wrong_with(&answer)), (503, None));
                    refused += 1;
                    std::thread::sleep(Duration::from_millis(20)); // a client's own time
                }
                if over.0.load(Ordering::Relaxed) {
                    return (answered, refused);
                }
                client.ask("/", "");
            }
        };
        let clients = clients.into_iter().map(|client| scope.spawn(move || one(client)));
        let clients: Vec<_> = clients.collect();
        std::thread::sleep(Duration::from_secs(1)); // the measurement
        over.0.store(true, Ordering::Relaxed);
        let sum = |(a, r): (u64, u64), (answered, refused)| (a + answered, r + refused);
        clients.into_iter().map(|client| client.join().expect("no panic")).fold((0, 0), sum)
    })
}
