//! Who is left alone, and who is told what.

use super::*;

/// A pod for nodes with these operating systems, by terms of its affinity.
fn bound_to(terms: &[&[&str]]) -> Value {
    let term = |systems: &&[&str]| json!({"matchExpressions": [{"key": "kubernetes.io/os", "operator": "In", "values": systems}]});
    let terms: Vec<_> = terms.iter().map(term).collect();
    let required = json!({"nodeSelectorTerms": terms});
    with(
        pod(),
        "/spec/affinity/nodeAffinity/requiredDuringSchedulingIgnoredDuringExecution",
        required,
    )
}

#[test]
fn what_cannot_be_injected_says_why() {
    let taken = |port: u16| json!([{"name": "http", "containerPort": port}]);
    let many =
        |count: usize| (0..count).map(|n| json!({"name": format!("n{n}")})).collect::<Value>();
    for (pod, part) in [
        (with(pod(), "/spec/hostNetwork", json!(true)), "hostNetwork"),
        (with(pod(), "/spec/os", json!({"name": "windows"})), "Windows"),
        (with(pod(), "/spec/nodeSelector", json!({"kubernetes.io/os": "windows"})), "Windows"),
        (bound_to(&[&["windows"], &["windows"]]), "Windows"),
        (
            with(pod(), "/metadata/annotations/kubernetes.io~1config.mirror", json!("x")),
            "static pod",
        ),
        (with(pod(), "/spec/securityContext", json!({"runAsUser": 15800})), "runs as user 15800"),
        (
            with(pod(), "/spec/containers/0/securityContext", json!({"runAsUser": 15800})),
            "runs as user 15800",
        ),
        (with(pod(), "/spec/containers/0/ports", taken(15801)), "15801"),
        (with(pod(), "/spec/containers/0/ports", taken(15822)), "15822"),
        (with(pod(), "/spec/containers/0/name", json!("tidegate")), "container tidegate"),
        (
            with(pod(), "/spec/initContainers", json!([{"name": "tidegate-capture"}])),
            "container tidegate-capture",
        ),
        (
            with(pod(), "/spec/volumes", json!([{"name": "tidegate-control"}])),
            "volume tidegate-control",
        ),
        (with(pod(), "/spec/containers", json!([])), "no containers"),
        (with(pod(), "/spec/containers", json!(5)), "cannot be read"),
        (with(pod(), "/spec/volumes", json!(5)), "volumes are no list"),
        (with(pod(), "/spec/initContainers", many(512)), "513 containers"),
        (with(pod(), "/metadata/annotations", json!({"a": 5})), "cannot be read"),
        (with(pod(), "/metadata/annotations", json!({"a": "b".repeat(262_000)})), "262144"),
        (json!([]), "no object"),
        (json!({}), "no containers"),
    ] {
        let why = refused(&pod);
        assert!(why.contains(part), "{part} is not in {why}");
    }
    // One of the terms is enough to a scheduler, and one of the values.
    for elsewhere in [&[&["windows"][..], &["linux"]][..], &[&["windows", "linux"]]] {
        inject(&bound_to(elsewhere));
    }
    let probe = json!({"httpGet": {"port": 8080, "path": "/".repeat(130_000)}});
    assert!(
        refused(&with(pod(), "/spec/containers/0/livenessProbe", probe))
            .contains("TIDEGATE_APP_PROBES")
    );
    let openshift = operator("uid: null");
    let injected = inject_with(
        &with(pod(), "/spec/securityContext", json!({"runAsUser": 15800})),
        &Context::default(),
        &openshift,
    );
    assert_eq!(injected.sidecar()["securityContext"]["runAsUser"], Value::Null);
    inject(&with(pod(), "/spec/initContainers", many(511)));
    let http = |count: usize| {
        let ports = (1..=count).map(|n| json!({"name": format!("http-{n}"), "containerPort": n}));
        with(listen(), "/spec/containers/0/ports", ports.collect())
    };
    assert!(refused(&http(513)).contains("512 at most"));
    inject(&http(512));
    let udp = json!([{"name": "http", "containerPort": 8080}, {"containerPort": 15821, "protocol": "UDP"}]);
    inject(&with(pod(), "/spec/containers/0/ports", udp));
}

#[test]
fn labels_decide_whether_and_by_whom() {
    let labelled = |label: &str, value: &str| {
        let label = label.replace('/', "~1");
        review(
            &with(pod(), &format!("/metadata/labels/{label}"), json!(value)),
            &Context::default(),
            &Operator::default(),
        )
    };
    assert!(matches!(labelled(INJECT_LABEL, "disabled"), Outcome::Unchanged { .. }));
    assert!(matches!(labelled(INJECT_LABEL, "enabled"), Outcome::Patched { .. }));
    assert!(matches!(labelled(REVISION_LABEL, "canary"), Outcome::Unchanged { .. }));
    assert!(matches!(labelled(REVISION_LABEL, "default"), Outcome::Patched { .. }));
}

#[test]
fn applications_that_can_go_round_the_gateway_are_told() {
    for (context, part) in [
        (json!({"capabilities": {"add": ["NET_ADMIN"]}}), "capability NET_ADMIN"),
        (json!({"capabilities": {"add": ["CAP_NET_RAW"]}}), "NET_RAW"),
        (json!({"privileged": true}), "is privileged"),
    ] {
        inject(&with(pod(), "/spec/containers/0/securityContext", context)).warns(part);
    }
    let host = json!([{"name": "http", "containerPort": 8080, "hostPort": 80}]);
    inject(&with(listen(), "/spec/containers/0/ports", host)).warns("hostPort");
}
