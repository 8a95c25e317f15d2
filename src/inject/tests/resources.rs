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
