//! Which ports are gated.

use super::*;

#[test]
fn ports_are_chosen_by_name_or_number() {
    let ports = json!([
        {"name": "http", "containerPort": 8080}, {"name": "grpc-api", "containerPort": 9000},
        {"name": "https", "containerPort": 8443}, {"name": "redis", "containerPort": 6379},
        {"name": "http-quic", "containerPort": 8443, "protocol": "UDP"}, {"containerPort": 7000},
    ]);
    let base = with(pod(), "/spec/containers/0/ports", ports);
    let gated = |pairs: &[(&str, &str)]| {
        let pod = pairs.iter().fold(base.clone(), |pod, (key, value)| {
            with(pod, &format!("/metadata/annotations/tidegate.dev~1{key}"), json!(value))
        });
        let injected = inject(&pod);
        let status = injected.status();
        let ports = status["ports"].as_array().expect("a list").iter();
        let told =
            ports.map(|p| format!("{}/{}", p["port"], p["protocol"].as_str().unwrap_or("auto")));
        (
            told.collect::<Vec<_>>().join(" "),
            status["redirected"].as_str().expect("a text").to_owned(),
            injected,
        )
    };
    let (ports, _, injected) = gated(&[]);
    assert_eq!(ports, "8080/http 8443/tcp 9000/http");
    injected.warns("8443/UDP");
    assert_eq!(gated(&[("include-inbound-ports", "redis, 7000")]).0, "6379/tcp 7000/auto");
    assert_eq!(gated(&[("exclude-inbound-ports", "grpc-api,8443")]).0, "8080/http");
    let (ports, redirected, _) =
        gated(&[("include-inbound-ports", "8000-8999"), ("exclude-inbound-ports", "8443")]);
    assert_eq!((ports.as_str(), redirected.as_str()), ("8080/http", "8000-8442, 8444-8999"));
    let (_, redirected, _) = gated(&[("include-inbound-ports", "all")]);
    assert_eq!(redirected, "1-15800, 15802-15818, 15823-65535");
    gated(&[("include-inbound-ports", "http,nope")]).2.warns("called nope: there are http");
    assert_eq!(gated(&[("include-inbound-ports", "12345")]).0, "12345/auto");
    gated(&[("limit.1", "5")]).2.warns("limit.1 is about a port that is not gated");
}

#[test]
fn a_pod_without_such_a_port_is_told_so_and_left_alone() {
    let without = with(pod(), "/spec/containers/0/ports", json!([{"containerPort": 8080}]));
    let injected = inject(&without);
    assert_eq!(injected.at("/spec"), &without["spec"]);
    assert!(injected.status()["ungated"].as_str().expect("why").contains("include-inbound-ports"));
    let again = review(&injected.pod, &Context::default(), &Operator::default());
    assert!(matches!(again, Outcome::Unchanged { .. }), "{again:?}");
    // Another webhook gives it something to gate.
    let more = json!({"name": "web", "ports": [{"name": "http", "containerPort": 80}]});
    let mut later = injected.pod;
    later["spec"]["containers"].as_array_mut().expect("a list").push(more);
    assert_eq!(inject(&later).status()["ports"][0]["port"], 80);
}

#[test]
fn init_containers_start_before_the_gateway_and_keep_their_ports() {
    let earlier = json!([{"name": "proxy", "restartPolicy": "Always", "ports": [{"name": "http", "containerPort": 8081}],
        "startupProbe": {"tcpSocket": {"port": 8081}}}]);
    let before = with(
        annotated(&[("include-inbound-ports", "8080,8081")]),
        "/spec/initContainers",
        earlier.clone(),
    );
    let injected = inject(&before);
    assert_eq!(injected.at("/spec/initContainers/0"), &earlier[0]);
    assert_eq!(injected.status()["redirected"], "8080");
    injected.warns("starts before the gateway");
}

/// Containers as `(name, [(port's name, port)])`.
fn containers(all: &[(&str, &[(&str, u16)])]) -> Value {
    let ports = |ports: &[(&str, u16)]| -> Vec<Value> {
        ports.iter().map(|(name, port)| json!({"name": name, "containerPort": port})).collect()
    };
    all.iter().map(|(name, said)| json!({"name": name, "ports": ports(said)})).collect()
}

fn names_of(container: &Value) -> Vec<(&str, u64)> {
    let ports = container["ports"].as_array().expect("a list").iter();
    ports
        .map(|port| {
            let number = port["containerPort"].as_u64().expect("a number");
            (port["name"].as_str().expect("a name"), number)
        })
        .collect()
}

#[test]
fn a_name_that_two_containers_have_moves_once_and_both_lose_it() {
    let both = containers(&[("a", &[("http", 8081)]), ("b", &[("http", 8080), ("other", 1)])]);
    let injected = inject(&with(listen(), "/spec/containers", both.clone()));
    // Services found a's.
    assert_eq!(
        names_of(injected.sidecar()),
        [("tg-metrics", 15822), ("tg-8080", 18080), ("http", 18081)]
    );
    assert_eq!(names_of(injected.at("/spec/containers/0")), [("app-8081", 8081)]);
    assert_eq!(names_of(injected.at("/spec/containers/1")), [("app-8080", 8080), ("other", 1)]);
    injected.warns("its name http leads to port 8081 of the container a");
    injected.warns("`targetPort: 18080`");

    // Who is not gated would come to be found instead of the gateway.
    let one = with(listen(), "/spec/containers", both);
    let one = with(one, "/metadata/annotations/tidegate.dev~1include-inbound-ports", json!("8081"));
    let injected = inject(&one);
    assert_eq!(names_of(injected.sidecar()), [("tg-metrics", 15822), ("http", 18081)]);
    assert_eq!(names_of(injected.at("/spec/containers/1")), [("app-8080", 8080), ("other", 1)]);
    // And where it was found before it still is.
    let other =
        with(one, "/metadata/annotations/tidegate.dev~1include-inbound-ports", json!("8080"));
    let injected = inject(&other);
    assert_eq!(names_of(injected.sidecar()), [("tg-metrics", 15822), ("tg-8080", 18080)]);
    assert_eq!(names_of(injected.at("/spec/containers/0")), [("http", 8081)]);
    assert_eq!(names_of(injected.at("/spec/containers/1")), [("http", 8080), ("other", 1)]);
}

#[test]
fn new_names_are_nobodys() {
    let taken = containers(&[("a", &[("app-8080", 1), ("http", 8080), ("tg-metrics", 2)])]);
    let pod = with(listen(), "/spec/containers", taken);
    let pod =
        with(pod, "/metadata/annotations/tidegate.dev~1include-inbound-ports", json!("8080,2"));
    let injected = inject(&pod);
    assert_eq!(
        names_of(injected.sidecar()),
        [("tg-metrics", 15822), ("tg-2", 10002), ("http", 18080)]
    );
    assert_eq!(
        names_of(injected.at("/spec/containers/0")),
        [("app-8080", 1), ("app-8080-2", 8080), ("tg-metrics", 2)]
    );
    injected.warns("its name tg-metrics is the gateway's for its own metrics");
}

#[test]
fn a_port_keeps_all_its_names() {
    let ports =
        json!([{"name": "web", "containerPort": 8080}, {"name": "http", "containerPort": 8080}]);
    let before = with(listen(), "/spec/containers/0/ports", ports);
    let injected = inject(&before);
    assert_eq!(
        names_of(injected.sidecar()),
        [("tg-metrics", 15822), ("web", 18080), ("http", 18080)]
    );
    assert_eq!(
        names_of(injected.at("/spec/containers/0")),
        [("app-8080", 8080), ("app-8080-2", 8080)]
    );
    injected.warns("`targetPort: web` or `targetPort: http`");
    let listeners = injected.args().iter().filter(|arg| arg.starts_with("--listen")).count();
    assert_eq!(listeners, 1, "one gate");
    assert!(injected.args().contains(&"--protocol=18080=http"));
    let Outcome::Patched { patch, .. } = remove(&injected.pod) else { panic!("not removed") };
    let mut after = injected.pod.clone();
    json_patch::patch(&mut after, &patch).expect("a patch that applies");
    assert_eq!(after, before);
}

#[test]
fn a_name_that_an_earlier_container_has_is_served_by_an_ordinary_container() {
    let earlier = json!([{"name": "proxy", "restartPolicy": "Always", "ports": [{"name": "http", "containerPort": 4000}]}]);
    let before = with(listen(), "/spec/initContainers", earlier.clone());
    for operator in ["sidecar: auto", "sidecar: native"].map(operator) {
        let injected = inject_with(&before, &Context::default(), &operator);
        assert_eq!(injected.names("containers"), ["app", "tidegate"]);
        injected.warns("the init container proxy has a port of the same name");
    }
    let job = with(before, "/metadata/labels/job-name", json!("backup"));
    assert!(refused(&job).contains("the init container proxy has a port of the same name"));
    // Only what is kept running is found.
    let once = with(job, "/spec/initContainers/0/restartPolicy", Value::Null);
    assert_eq!(inject(&once).status()["sidecar"], "native");
}

#[test]
fn what_a_mesh_has_is_not_taken_from_it() {
    let proxied = |port: u16, first: bool| {
        let proxy: (&str, &[(&str, u16)]) = ("istio-proxy", &[("http", 15020), ("a", 18080)]);
        let app: (&str, &[(&str, u16)]) = ("app", &[("http", port)]);
        let all = if first { [proxy, app] } else { [app, proxy] };
        with(listen(), "/spec/containers", containers(&all))
    };
    assert!(refused(&proxied(8080, false)).contains("port 15020 of the container istio-proxy"));
    let injected = inject(&proxied(8080, true));
    injected.warns("its name http leads to port 15020 of the container istio-proxy");
    // The proxy has 18080.
    assert_eq!(names_of(injected.sidecar()), [("tg-metrics", 15822), ("tg-8080", 15900)]);
    // Envoy's admin, and the others of Istio.
    for port in [5000, 5001, 5021, 5090, 5099] {
        assert_eq!(inject(&proxied(port, true)).status()["ports"][0]["listen"], 15900, "{port}");
    }
    assert_eq!(inject(&proxied(5100, true)).status()["ports"][0]["listen"], 15100);
}
