//! A second look, others between, and back.

use super::*;

#[test]
fn a_second_look_changes_nothing_and_others_additions_stay() {
    for base in [pod(), listen()] {
        let mut first = inject(&base).pod;
        let again = |pod: &Value| review(pod, &Context::default(), &Operator::default());
        assert!(matches!(again(&first), Outcome::Unchanged { .. }));
        // The API server and other webhooks add to every container.
        let sidecar = first["spec"]["initContainers"]
            .as_array_mut()
            .and_then(|all| all.last_mut())
            .expect("ours");
        sidecar["terminationMessagePath"] = json!("/dev/termination-log");
        let mounts = sidecar["volumeMounts"].as_array_mut().expect("a list");
        mounts.push(
            json!({"name": "token", "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount"}),
        );
        first["spec"]["initContainers"]
            .as_array_mut()
            .expect("a list")
            .push(json!({"name": "late"}));
        assert!(matches!(again(&first), Outcome::Unchanged { .. }), "{:?}", again(&first));
        // One that changes what is asked for.
        let more = json!({"name": "web", "ports": [{"name": "http-web", "containerPort": 80}],
            "readinessProbe": {"httpGet": {"port": 80}}});
        first["spec"]["containers"].as_array_mut().expect("a list").push(more);
        let second = inject(&first);
        assert_eq!(second.status()["ports"].as_array().map(Vec::len), Some(2));
        assert_eq!(second.at("/spec/containers/1/readinessProbe/httpGet/port"), 15821);
        assert_eq!(
            second.at("/spec/initContainers").as_array().and_then(|all| all.last()).expect("one")["name"],
            "late"
        );
        assert!(matches!(again(&second.pod), Outcome::Unchanged { .. }));
    }
}

/// A mesh joins an injected pod and puts `theirs` where something of ours is; then a second look is worth it.
fn rewritten_by_a_mesh(first: Value, pointer: &str, theirs: &Value) -> Injected {
    let mut first = with(first, pointer, theirs.clone());
    let containers = first["spec"]["containers"].as_array_mut().expect("a list");
    containers.push(json!({"name": "istio-proxy"}));
    match review(&first, &Context::default(), &Operator::default()) {
        Outcome::Unchanged { .. } => {}
        other => panic!("{other:?}"),
    }
    first["metadata"]["annotations"]["tidegate.dev/limit"] = json!("5");
    let second = inject(&first);
    assert_eq!(second.at(pointer), theirs);
    second
}

#[test]
fn a_mesh_that_rewrites_our_probe_keeps_its_way_and_we_ours() {
    let probe = json!({"httpGet": {"path": "/healthz", "port": 8080}});
    let pointer = "/spec/containers/0/livenessProbe";
    let first = inject(&with(listen(), pointer, probe)).pod;
    let theirs = json!({"httpGet": {"path": "/app-health/app/livez", "port": 15020}});
    let second = rewritten_by_a_mesh(first, pointer, &theirs);
    assert!(second.env("TIDEGATE_APP_PROBES").expect("told").contains("/healthz"));
    let Outcome::Patched { warnings, .. } = remove(&second.pod) else { panic!("not removed") };
    assert!(warnings[0].contains("app"), "{warnings:?}");
}

#[test]
fn a_mesh_that_rewrites_our_hook_keeps_its_way_and_the_application_waits_all_the_same() {
    let hook = "/spec/containers/0/lifecycle/preStop";
    let sleep = json!({"sleep": {"seconds": 12}});
    for (before, delay) in
        [(listen(), None), (with(listen(), hook, sleep), Some("--drain-delay=12s"))]
    {
        let theirs = json!({"httpGet": {"path": "/app-lifecycle/app/prestopz", "port": 15020}});
        let mut second = rewritten_by_a_mesh(inject(&before).pod, hook, &theirs);
        assert_eq!(second.status()["drain"], "full");
        assert_eq!(second.env("TIDEGATE_DRAIN_PARTIAL"), None);
        let said = second.args().into_iter().find(|arg| arg.starts_with("--drain-delay"));
        assert_eq!(said, delay);
        // Without the mesh it all comes back.
        let ours = json!({"httpGet": {"path": "/drain/wait", "port": 15821, "scheme": "HTTP"}});
        second.pod = with(second.pod, hook, ours);
        let Outcome::Patched { patch, .. } = remove(&second.pod) else { panic!("not removed") };
        json_patch::patch(&mut second.pod, &patch).expect("a patch that applies");
        assert_eq!(second.pod.pointer("/spec/containers/0"), before.pointer("/spec/containers/0"));
    }
}

#[test]
fn a_hook_that_somebody_else_has_put_in_the_place_of_ours_is_his_own() {
    let hook = "/spec/containers/0/lifecycle/preStop";
    let sleep = json!({"sleep": {"seconds": 12}});
    let first = inject(&with(pod(), hook, sleep.clone())).pod;
    let theirs = json!({"exec": {"command": ["nginx", "-s", "quit"]}});
    let second = inject(&with(first, hook, theirs.clone()));
    assert_eq!(second.at(hook), &theirs);
    assert_eq!(second.status()["drain"], "partial");
    let original = second.at("/metadata/annotations/tidegate.dev~1original").as_str();
    let original: Value = serde_json::from_str(original.expect("a text")).expect("JSON");
    assert_eq!(original["containers"]["app"]["preStop"]["was"], sleep);
}

#[test]
fn an_older_sidecar_is_brought_up_to_date_where_it_is() {
    let older = operator("image: old:1");
    let mut first = inject_with(&pod(), &Context::default(), &older).pod;
    first["spec"]["initContainers"].as_array_mut().expect("a list").push(json!({"name": "late"}));
    let second = inject(&first);
    assert_eq!(second.names("initContainers"), ["tidegate-capture", "tidegate", "late"]);
    assert_eq!(second.sidecar()["image"], Operator::default().image);
    let moved = inject_with(&first, &Context::default(), &operator("sidecar: classic")).pod;
    assert_eq!(moved["spec"]["containers"][1]["name"], "tidegate");
    assert_eq!(moved["spec"]["initContainers"].as_array().map(Vec::len), Some(2));
}

#[test]
fn a_probe_that_was_deleted_since_stays_deleted() {
    let probe = json!({"httpGet": {"path": "/healthz", "port": 8080}});
    let mut injected = inject(&with(pod(), "/spec/containers/0/livenessProbe", probe)).pod;
    injected["spec"]["containers"][0].as_object_mut().expect("a map").remove("livenessProbe");
    let Outcome::Patched { patch, warnings } = remove(&injected) else { panic!("not removed") };
    json_patch::patch(&mut injected, &patch).expect("a patch that applies");
    assert_eq!(injected, pod());
    assert!(warnings[0].contains("app"), "{warnings:?}");
}

#[test]
fn what_is_removed_leaves_the_pod_as_it_was() {
    let mut variants = vec![pod(), listen(), annotated(&[("include-inbound-ports", "none")])];
    variants.push(with(pod(), "/metadata/annotations", Value::Null));
    variants.push(with(pod(), "/spec/volumes", json!([])));
    variants.push(with(pod(), "/spec/initContainers", Value::Null));
    variants.push(with(pod(), "/spec/containers/0/lifecycle", json!({})));
    variants.push(with(pod(), "/spec/containers/0/lifecycle", Value::Null));
    variants.push(with(
        listen(),
        "/spec/containers/0/lifecycle/preStop",
        json!({"sleep": {"seconds": 9}}),
    ));
    variants.push(with(
        listen(),
        "/spec/containers/0/startupProbe",
        json!({"tcpSocket": {"port": "http"}}),
    ));
    variants.push(with(
        pod(),
        "/metadata/annotations/kubectl.kubernetes.io~1default-container",
        json!("app"),
    ));
    for before in variants {
        for operator in [Operator::default(), operator("sidecar: classic")] {
            let mut after = inject_with(&before, &Context::default(), &operator).pod;
            assert_ne!(after, before);
            let Outcome::Patched { patch, warnings } = remove(&after) else {
                panic!("not removed")
            };
            json_patch::patch(&mut after, &patch).expect("a patch that applies");
            assert_eq!(after, before);
            assert!(warnings.is_empty());
            assert!(matches!(remove(&after), Outcome::Unchanged { .. }));
        }
    }
    let alone = json!({"spec": pod()["spec"]});
    let mut after = inject(&alone).pod;
    let Outcome::Patched { patch, .. } = remove(&after) else { panic!("not removed") };
    json_patch::patch(&mut after, &patch).expect("a patch that applies");
    assert_eq!(after, alone);
}
