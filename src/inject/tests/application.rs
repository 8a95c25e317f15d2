//! What becomes of the application's probes, hooks and grace.

use super::*;

#[test]
fn probes_of_gated_ports_are_asked_through_the_gateway() {
    let probes = json!({
        "name": "app", "ports": [{"name": "http", "containerPort": 8080}, {"name": "admin", "containerPort": 9090}],
        "livenessProbe": {"httpGet": {"path": "/healthz?a=$(X)", "port": "http", "httpHeaders": [{"name": "Host", "value": "shop"}]},
            "periodSeconds": 7, "timeoutSeconds": 3, "terminationGracePeriodSeconds": 5},
        "readinessProbe": {"tcpSocket": {"port": 8080}},
        "startupProbe": {"grpc": {"port": 8080, "service": "shop"}},
    });
    for base in [pod(), listen()] {
        let before = with(base, "/spec/containers/0", probes.clone());
        let injected = inject(&before);
        assert_eq!(
            injected.at("/spec/containers/0/livenessProbe"),
            &json!({
                "httpGet": {"path": "/app-probe/app/liveness", "port": 15821, "scheme": "HTTP"},
                "periodSeconds": 7, "timeoutSeconds": 3, "terminationGracePeriodSeconds": 5,
            })
        );
        let told = injected.env("TIDEGATE_APP_PROBES").expect("told");
        assert!(!told.contains('$'), "Kubernetes would expand it: {told}");
        assert_eq!(
            serde_json::from_str::<Value>(told).expect("JSON"),
            json!({
                "app/liveness": {"httpGet": {"path": "/healthz?a=$(X)", "port": 8080, "scheme": "HTTP",
                    "httpHeaders": [{"name": "Host", "value": "shop"}]}, "timeoutSeconds": 3},
                "app/readiness": {"tcpSocket": {"port": 8080}, "timeoutSeconds": 1},
                "app/startup": {"grpc": {"port": 8080, "service": "shop"}, "timeoutSeconds": 1},
            })
        );
    }
    for untouched in [
        json!({"exec": {"command": ["true"]}}),
        json!({"httpGet": {"port": "admin"}}),
        json!({"httpGet": {"port": 8080, "host": "192.0.2.1"}}),
        json!({"tcpSocket": {"port": "nowhere"}}),
    ] {
        let before = with(pod(), "/spec/containers/0/livenessProbe", untouched.clone());
        let injected = inject(&before);
        assert_eq!(injected.at("/spec/containers/0/livenessProbe"), &untouched);
        assert_eq!(injected.env("TIDEGATE_APP_PROBES"), None);
    }
}

#[test]
fn the_application_waits_for_the_drain_unless_it_has_something_else_to_do() {
    let wait = json!({"httpGet": {"path": "/drain/wait", "port": 15821, "scheme": "HTTP"}});
    let hook = |hook: Value| inject(&with(pod(), "/spec/containers/0/lifecycle/preStop", hook));
    assert_eq!(inject(&pod()).at("/spec/containers/0/lifecycle/preStop"), &wait);
    let slept = hook(json!({"exec": {"command": ["sh", "-c", "sleep 15"]}}));
    assert_eq!(slept.at("/spec/containers/0/lifecycle/preStop"), &wait);
    // What it slept for still has to happen.
    assert!(slept.args().contains(&"--drain-delay=15s"), "{:?}", slept.args());
    assert!(
        !hook(json!({"sleep": {"seconds": 3}})).args().iter().any(|a| a.contains("drain-delay"))
    );
    let own = json!({"exec": {"command": ["nginx", "-s", "quit"]}});
    let kept = hook(own.clone());
    assert_eq!(kept.at("/spec/containers/0/lifecycle/preStop"), &own);
    assert_eq!(kept.status()["ownHooks"], json!(["app"]));
    kept.warns("drain=partial");
}

#[test]
fn a_hook_that_comes_to_the_gate_is_told() {
    let told = |pod: Value, kind: &str, hook: Value| {
        let before = with(pod, &format!("/spec/containers/0/lifecycle/{kind}"), hook.clone());
        let injected = inject(&before);
        assert_eq!(injected.at(&format!("/spec/containers/0/lifecycle/{kind}")), &hook);
        let about = |w: &&String| w.contains("comes to the gate");
        injected.warnings.iter().filter(about).cloned().collect::<Vec<_>>()
    };
    for kind in ["preStop", "postStart"] {
        for port in [json!(8080), json!("http")] {
            let hook = json!({"httpGet": {"path": "/quit", "port": port}});
            let said = told(pod(), kind, hook.clone());
            assert!(
                said[0].starts_with(&format!("the {kind} hook of app calls port 8080")),
                "{said:?}"
            );
            assert_eq!(said.len(), 1);
        }
        for beside in [
            json!({"httpGet": {"path": "/quit", "port": 9090}}),
            json!({"httpGet": {"path": "/quit", "port": 8080, "host": "192.0.2.1"}}),
            json!({"exec": {"command": ["curl", "localhost:8080/quit"]}}),
        ] {
            assert!(told(pod(), kind, beside).is_empty());
        }
        // It goes to the application's own port, where no gate is.
        let hook = json!({"httpGet": {"path": "/quit", "port": 8080}});
        assert!(told(listen(), kind, hook).is_empty());
    }
}

#[test]
fn grace_is_the_pods_and_a_short_one_is_told() {
    let graced =
        |seconds: i64| inject(&with(pod(), "/spec/terminationGracePeriodSeconds", json!(seconds)));
    assert!(graced(90).args().contains(&"--grace=90s") && graced(90).warnings.is_empty());
    assert!(graced(0).args().contains(&"--grace=1s"));
    graced(12).warns("leaves 4 s for requests");
    graced(3).warns("leaves 0 s for requests");
    assert!(graced(13).warnings.is_empty());
}
