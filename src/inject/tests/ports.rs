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
