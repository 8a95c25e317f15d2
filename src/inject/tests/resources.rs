//! Requests and limits: class of service, LimitRanges.

use super::*;

#[test]
fn the_class_of_service_stays() {
    let sized = |resources: Value| {
        let injected = inject(&with(pod(), "/spec/containers/0/resources", resources));
        let rules = injected.container("initContainers", CAPTURE_CONTAINER)["resources"].clone();
        assert_eq!(rules, injected.sidecar()["resources"]);
        rules
    };
    assert_eq!(sized(json!({})), json!({}));
    assert_eq!(sized(json!({"limits": {"nvidia.com/gpu": "1"}})), json!({}));
    let all = json!({"cpu": "1", "memory": "1Gi"});
    assert_eq!(
        sized(json!({"limits": all, "requests": all})),
        json!({
            "limits": {"cpu": "250m", "memory": "128Mi"}, "requests": {"cpu": "250m", "memory": "128Mi"},
        })
    );
    assert_eq!(
        sized(json!({"limits": all})),
        sized(json!({"limits": all, "requests": {"cpu": "1000m"}}))
    );
    assert_eq!(
        sized(json!({"requests": {"cpu": "1"}})),
        json!({
            "limits": {"memory": "128Mi"}, "requests": {"cpu": "10m", "memory": "32Mi"},
        })
    );
    // A quota on limits.cpu wants one of everybody.
    assert_eq!(sized(json!({"limits": all, "requests": {"cpu": "1m"}}))["limits"]["cpu"], "250m");
    let pod_level = with(pod(), "/spec/resources", json!({"limits": all}));
    assert_eq!(inject(&pod_level).sidecar()["resources"], json!({}));
}

#[test]
fn limit_ranges_are_kept() {
    let range = |item: Value| Context {
        limit_ranges: vec![serde_json::from_value(item).expect("a LimitRange")],
        ..Context::default()
    };
    let all = json!({"cpu": "1", "memory": "1Gi"});
    let pod = with(
        pod(),
        "/spec/containers/0/resources",
        json!({"limits": all, "requests": {"cpu": "500m"}}),
    );
    let sized = |item: Value| {
        inject_with(&pod, &range(item), &Operator::default()).sidecar()["resources"].clone()
    };
    assert_eq!(
        sized(json!({"type": "Container", "min": {"cpu": "50m"}, "max": {"memory": "100Mi"}})),
        json!({
            "requests": {"cpu": "50m", "memory": "32Mi"}, "limits": {"cpu": "250m", "memory": "100Mi"},
        })
    );
    assert_eq!(
        sized(json!({"type": "Container", "maxLimitRequestRatio": {"cpu": "4", "memory": "2"}})),
        json!({
            "requests": {"cpu": "63m", "memory": "67108864"}, "limits": {"cpu": "250m", "memory": "128Mi"},
        })
    );
    let pod_wide = range(json!({"type": "Pod", "max": {"memory": "1Gi"}}));
    assert!(refused_with(&pod, &pod_wide, &Operator::default()).contains("LimitRange"));
}

#[test]
fn what_annotations_ask_for_stays_below_every_ceiling_that_it_would_pass() {
    let all = json!({"cpu": "1", "memory": "1Gi"});
    let burstable = json!({"limits": all, "requests": {"cpu": "1m"}});
    let guaranteed = json!({"limits": all, "requests": all});
    let ask = |resources: &Value, ceilings: &str, asked: &[(&str, &str)]| {
        let pod = with(annotated(asked), "/spec/containers/0/resources", resources.clone());
        inject_with(&pod, &Context::default(), &operator(&format!("ceilings: {{{ceilings}}}")))
    };
    let memory = |injected: &Injected| {
        let resources = &injected.sidecar()["resources"];
        let [request, limit] = ["requests", "limits"].map(|of| resources[of]["memory"].clone());
        (request, limit)
    };
    let both = |amount: &str| (json!(amount), json!(amount));
    // Who asks for more than the usual limit is given it as the limit.
    let request = [("sidecar-memory-request", "1Gi")];
    for resources in [&burstable, &guaranteed] {
        let injected = ask(resources, "sidecar-memory-limit: 256Mi", &request);
        assert_eq!(memory(&injected), both("256Mi"));
        injected.warns("above the operator's ceiling, 256Mi");
    }
    // And there the limit is what is asked for.
    let limit = [("sidecar-memory-limit", "1Gi")];
    let injected = ask(&guaranteed, "sidecar-memory-request: 200Mi", &limit);
    assert_eq!(memory(&injected), both("200Mi"));
    injected.warns("sidecar-memory-limit: \"1Gi\" is above the operator's ceiling, 200Mi");
    let injected = ask(&burstable, "sidecar-memory-request: 200Mi", &limit);
    assert_eq!(memory(&injected), (json!("32Mi"), json!("1Gi")));
    // The lower of both.
    let ceilings = "sidecar-memory-request: 300Mi, sidecar-memory-limit: 150Mi";
    assert_eq!(memory(&ask(&burstable, ceilings, &request)), both("150Mi"));
    assert_eq!(memory(&ask(&guaranteed, ceilings, &limit)), both("150Mi"));
}
