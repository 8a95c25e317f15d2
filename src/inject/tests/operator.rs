//! Annotations, and what the operator says of them.

use super::*;

#[test]
fn annotations_become_settings_and_mistakes_name_what_is_allowed() {
    let injected = inject(&annotated(&[
        ("limit", "5"),
        ("limit.8080", "3"),
        ("queue-timeout", "500ms"),
        ("log-level", "$(POD_NAME)=debug"),
        ("limits", "5"),
        ("queue-length", "many"),
        ("admin", "0.0.0.0:1"),
        ("image", "evil"),
        ("limit.http", "5"),
        ("grace.8080", "5s"),
        ("queue-lenght", "5"),
        ("capture", "sometimes"),
        ("sidecar-memory-limit", "lots"),
    ]));
    let told = injected.env("TIDEGATE_TEMPLATE_ANNOTATIONS").expect("told");
    assert!(!told.contains('$'), "Kubernetes would expand it: {told}");
    assert_eq!(
        serde_json::from_str::<Value>(told).expect("JSON"),
        json!({
            "limit": "5", "limit.8080": "3", "queue-timeout": "500ms", "log-level": "$(POD_NAME)=debug",
            // The sidecar judges for itself, and knows that nobody has edited these since.
            "limits": "5", "queue-length": "many", "image": "evil", "limit.http": "5",
            "queue-lenght": "5", "capture": "sometimes", "sidecar-memory-limit": "lots",
        })
    );
    for part in [
        "tidegate.dev/limits: \"5\" is no setting; did you mean `tidegate.dev/limit`?",
        "tidegate.dev/queue-length: \"many\" must be an integer from 0 to 1000000",
        "tidegate.dev/admin: \"0.0.0.0:1\" is not heeded: this is the operator's to set",
        "tidegate.dev/image: \"evil\" is no setting",
        "tidegate.dev/limit.http: \"5\" must name the port by its number",
        "tidegate.dev/queue-lenght: \"5\" is no setting; did you mean `tidegate.dev/queue-length`?",
        "tidegate.dev/capture: \"sometimes\" must be one of `auto`, `redirect`, `listen`",
        "tidegate.dev/sidecar-memory-limit: \"lots\" must be a quantity",
    ] {
        injected.warns(part);
    }
    inject(&annotated(&[("mode", "enforce")])).warns("needs a `limit`");
    assert!(inject(&annotated(&[("mode", "enforce"), ("limit.8080", "5")])).warnings.is_empty());
    let alpha = with(pod(), "/metadata/annotations/alpha.tidegate.dev~1limit", json!("5"));
    inject(&alpha).warns("none begins with `alpha.`");
}

#[test]
fn the_operator_has_defaults_ceilings_and_a_list() {
    let operator = operator(
        "defaults: {queue-timeout: 250ms, limit.8080: '9', include-inbound-ports: '8080', sidecar-cpu-request: 20m}
ceilings: {limit: '100', sidecar-memory-limit: 64Mi}
allowedAnnotations: [limit, sidecar-memory-limit]
otlp: {endpoint: 'http://$(TIDEGATE_HOST_IP):4317', protocol: grpc}
seccompProfile: profiles/tidegate.json
watchOwnPod: true
namespaces: {small: {ceilings: {limit: '10'}, capture: listen, allowedAnnotations: ['*']}}",
    );
    let pod =
        annotated(&[("limit", "200"), ("queue-length", "5"), ("sidecar-memory-limit", "1Gi")]);
    let pod = with(pod, "/spec/containers/0/resources", json!({"requests": {"cpu": "1"}}));
    let context = |namespace: &str| Context { namespace: namespace.into(), ..Context::default() };
    let injected = inject_with(&pod, &context("shop"), &operator);
    injected.warns("above the operator's ceiling, 100");
    injected.warns("above the operator's ceiling, 64Mi");
    injected.warns(
        "queue-length: \"5\" is not heeded: the operator allows only limit, sidecar-memory-limit",
    );
    assert_eq!(
        injected.sidecar()["resources"],
        json!({
            "requests": {"cpu": "20m", "memory": "32Mi"}, "limits": {"memory": "64Mi"},
        })
    );
    assert_eq!(injected.env("TIDEGATE_QUEUE_TIMEOUT"), Some("250ms"));
    assert_eq!(injected.env("TIDEGATE_LIMIT_8080"), Some("9"));
    assert_eq!(injected.env("TIDEGATE_CEILINGS"), Some(r#"{"limit":"100"}"#));
    assert_eq!(
        injected.env("TIDEGATE_TEMPLATE_ANNOTATIONS"),
        Some(r#"{"limit":"200","sidecar-memory-limit":"1Gi"}"#)
    );
    assert_eq!(
        injected.env("OTEL_EXPORTER_OTLP_ENDPOINT"),
        Some("http://$(TIDEGATE_HOST_IP):4317")
    );
    assert_eq!(
        injected.sidecar()["securityContext"]["seccompProfile"],
        json!({
            "type": "Localhost", "localhostProfile": "profiles/tidegate.json",
        })
    );
    assert!(injected.args().contains(&"--watch-own-pod"));
    let small = inject_with(&pod, &context("small"), &operator);
    assert_eq!(small.status()["capture"], "listen");
    assert_eq!(small.env("TIDEGATE_CEILINGS"), Some(r#"{"limit":"10"}"#));
    assert_eq!(small.env("TIDEGATE_LIMIT_18080"), Some("9"));
    assert_eq!(
        small.env("TIDEGATE_TEMPLATE_ANNOTATIONS"),
        Some(r#"{"limit":"200","queue-length":"5","sidecar-memory-limit":"1Gi"}"#)
    );
}

#[test]
fn a_sidecar_that_watches_its_pod_has_a_token_of_its_own() {
    let operator = operator("watchOwnPod: true");
    let without = with(pod(), "/spec/automountServiceAccountToken", json!(false));
    let injected = inject_with(&without, &Context::default(), &operator);
    let mounts = |container: &Value| {
        let mounts = container["volumeMounts"].as_array().into_iter().flatten();
        let token = mounts.filter(|mount| mount["name"] == "tidegate-token");
        token
            .map(|mount| mount["mountPath"].as_str().expect("a path").to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(
        mounts(injected.sidecar()),
        ["/var/run/secrets/kubernetes.io/serviceaccount"],
        "where it looks, and where the API server would mount another"
    );
    assert!(mounts(injected.at("/spec/containers/0")).is_empty());
    assert!(mounts(injected.container("initContainers", CAPTURE_CONTAINER)).is_empty());
    let volumes = injected.at("/spec/volumes").as_array().expect("a list");
    let token = volumes.iter().find(|volume| volume["name"] == "tidegate-token").expect("there");
    let files: Vec<_> =
        ["/0/serviceAccountToken/path", "/1/configMap/items/0/path", "/2/downwardAPI/items/0/path"]
            .iter()
            .map(|at| {
                token["projected"]["sources"].pointer(at).and_then(Value::as_str).expect("a file")
            })
            .collect();
    assert_eq!(files, ["token", "ca.crt", "namespace"]);
    let Outcome::Patched { patch, .. } = remove(&injected.pod) else { panic!("not removed") };
    let mut after = injected.pod.clone();
    json_patch::patch(&mut after, &patch).expect("a patch that applies");
    assert_eq!(after, without);
    assert!(!inject(&pod()).pod.to_string().contains("tidegate-token"));
}

#[test]
fn an_operator_may_allow_nothing() {
    let operator =
        operator("allowedAnnotations: []\nnamespaces: {some: {allowedAnnotations: [limit]}}");
    let context = |namespace: &str| Context { namespace: namespace.into(), ..Context::default() };
    let pod = annotated(&[("limit", "200")]);
    let injected = inject_with(&pod, &context("shop"), &operator);
    injected.warns("limit: \"200\" is not heeded: the operator allows none");
    assert_eq!(injected.env("TIDEGATE_ALLOWED_ANNOTATIONS"), Some("none"));
    assert_eq!(injected.env("TIDEGATE_TEMPLATE_ANNOTATIONS"), None);
    let some = inject_with(&pod, &context("some"), &operator);
    assert_eq!(some.env("TIDEGATE_ALLOWED_ANNOTATIONS"), Some("limit"));
    assert_eq!(inject(&pod).env("TIDEGATE_ALLOWED_ANNOTATIONS"), None);
}

#[test]
fn an_operators_mistakes_are_told_at_once() {
    let said = Operator::from_yaml(
        "image: ''
kubernetes: new
uid: 0
seccompProfile: /etc/profile
resources: {requests: {cpu: 1, memory: none}, limits: {cpu: 500m, memory: 1Gi}}
otlp: {endpoint: collector:4317}
defaults: {limit: many, capture: listen}
ceilings: {mode: off, limit.80: '5'}
allowedAnnotations: [limits, admin]
namespaces: {a: {defaults: {nope: '1'}, limitRanges: [{type: Pod, max: {memory: much}}, {type: Container, min: {cpu: 0}}]}}",
    )
    .expect_err("wrong")
    .to_string();
    for part in [
        "image",
        "kubernetes \"new\"",
        "uid 0",
        "seccompProfile",
        "resources.requests.memory \"none\"",
        "resources.requests.cpu 1 is more than its limit",
        "otlp.endpoint",
        "defaults.limit \"many\"",
        "defaults.capture",
        "ceilings.mode",
        "ceilings.limit.80",
        "\"limits\"",
        "\"admin\"",
        "namespaces.a.defaults.nope",
        "namespaces.a.limitRanges[0].max.memory \"much\"",
    ] {
        assert!(said.contains(part), "{part} is not in\n{said}");
    }
    assert!(!said.contains("limitRanges[1]"), "{said}");
    for unknown in [
        "imag: a",
        "resources: {request: {}}",
        "sidecar: none",
        "otlp: {protocol: http}",
        "namespaces: {a: {limitRanges: [{type: Container, maximum: {cpu: 1}}]}}",
        "namespaces: {a: {limitRanges: [{type: Containers}]}}",
        "namespaces: {a: {limitRanges: [{max: {cpu: 1}}]}}",
    ] {
        Operator::from_yaml(unknown).expect_err(unknown);
    }
    assert_eq!(Operator::from_yaml("").expect("nothing said"), Operator::default());
    let numbers = operator("defaults: {limit: 5}\nceilings: {limit: 9}");
    assert_eq!(numbers.defaults["limit"], "5");
}
