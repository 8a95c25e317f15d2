//! How traffic comes to the sidecar, and by which container.

use super::*;

#[test]
fn redirection_gets_an_init_container_for_the_rules_and_then_the_sidecar() {
    let before = with(pod(), "/spec/initContainers", json!([{"name": "migrate", "image": "shop"}]));
    let injected = inject(&before);
    assert_eq!(injected.names("initContainers"), ["migrate", "tidegate-capture", "tidegate"]);
    let rules = injected.container("initContainers", CAPTURE_CONTAINER);
    assert_eq!(rules["args"], json!(["capture", "install", "--include-inbound-ports=8080"]));
    let rights = &rules["securityContext"];
    assert_eq!(rights["capabilities"], json!({"drop": ["ALL"], "add": ["NET_ADMIN"]}));
    assert_eq!(
        (&rights["runAsUser"], &rights["readOnlyRootFilesystem"]),
        (&json!(0), &json!(true))
    );
    for arg in [
        "run",
        "--capture=[::]:15801",
        "--include-inbound-ports=8080",
        "--protocol=8080=http",
        "--grace=30s",
    ] {
        assert!(injected.args().contains(&arg), "{arg} is not in {:?}", injected.args());
    }
    let sidecar = injected.sidecar();
    assert_eq!(sidecar["restartPolicy"], "Always");
    assert_eq!(sidecar["securityContext"]["capabilities"], json!({"drop": ["ALL"]}));
    assert_eq!(sidecar["startupProbe"]["httpGet"]["path"], "/startupz");
    assert_eq!(
        injected.at("/metadata/annotations/kubectl.kubernetes.io~1default-container"),
        "app"
    );
    assert_eq!(
        injected.status()["ports"],
        json!([{"port": 8080, "name": "http", "protocol": "http"}])
    );
    assert_eq!(injected.status()["drain"], "full");
    assert_eq!(injected.at("/spec/containers/0/ports"), &before["spec"]["containers"][0]["ports"]);
}

#[test]
fn listening_moves_the_name_of_the_port_and_whoever_speaks_of_it_follows() {
    let before = with(
        listen(),
        "/spec/containers/0/lifecycle",
        json!({
            "postStart": {"httpGet": {"port": "http", "path": "/warm"}},
            "preStop": {"httpGet": {"port": "http", "path": "/stop"}},
        }),
    );
    let injected = inject(&before);
    assert_eq!(
        injected.at("/spec/containers/0/ports/0"),
        &json!({"name": "app-8080", "containerPort": 8080})
    );
    assert_eq!(injected.at("/spec/containers/0/ports/1/name"), "metrics");
    let ports = injected.sidecar()["ports"].as_array().expect("a list");
    assert!(
        ports.contains(&json!({"name": "http", "containerPort": 18080, "protocol": "TCP"})),
        "{ports:?}"
    );
    assert!(injected.args().contains(&"--listen=[::]:18080=[$(TIDEGATE_POD_IP)]:8080"));
    assert!(injected.args().contains(&"--protocol=18080=http"));
    for hook in ["postStart", "preStop"] {
        assert_eq!(
            injected.at(&format!("/spec/containers/0/lifecycle/{hook}/httpGet/port")),
            "app-8080"
        );
    }
    assert!(injected.at("/spec/initContainers").as_array().is_some_and(|all| all.len() == 1));
    injected.warns("targetPort: http");
    injected.warns("drain=partial");
    assert_eq!(injected.status()["drain"], "partial");
}

#[test]
fn a_port_of_the_gateways_is_never_somebody_elses() {
    for (port, taken, expected) in [
        (8080, 18080, 15900),
        (5801, 1, 15900),
        (60_000, 1, 15900),
        (5900, 1, 15900),
        (5820, 15900, 15901),
    ] {
        let ports = json!([{"name": "http", "containerPort": port}, {"containerPort": taken}]);
        let injected = inject(&with(listen(), "/spec/containers/0/ports", ports));
        assert_eq!(injected.status()["ports"][0]["listen"], expected, "{port}");
    }
}

#[test]
fn older_clusters_get_an_ordinary_container() {
    let with_version = |version: &str, pod: &Value| {
        let operator = operator(&format!("kubernetes: '{version}'"));
        inject_with(pod, &Context::default(), &operator).status()["sidecar"].clone()
    };
    assert_eq!(with_version("1.28", &pod()), "classic");
    assert_eq!(with_version("1.29", &pod()), "native");
    // Services find a native sidecar's ports by their names from 1.33 on.
    assert_eq!(with_version("1.32", &listen()), "classic");
    assert_eq!(with_version("v1.33.2", &listen()), "native");
    let numbered = with(listen(), "/spec/containers/0/ports", json!([{"containerPort": 8080}]));
    let numbered =
        with(numbered, "/metadata/annotations/tidegate.dev~1include-inbound-ports", json!("8080"));
    assert_eq!(with_version("1.32", &numbered), "native");

    // Whatever the operator would rather have: else Services would find nobody.
    let native = operator("{sidecar: native, kubernetes: '1.32'}");
    let injected = inject_with(&listen(), &Context::default(), &native);
    assert_eq!(injected.names("containers"), ["app", "tidegate"]);
    injected.warns("`kubernetes` says 1.32: the sidecar is an ordinary container");
    for (pod, operator) in
        [(&listen(), "{sidecar: native}"), (&numbered, "{sidecar: native, kubernetes: '1.32'}")]
    {
        let injected = inject_with(pod, &Context::default(), &super::operator(operator));
        assert_eq!(injected.status()["sidecar"], "native");
        assert!(!injected.warnings.iter().any(|warning| warning.contains("ordinary")));
    }

    let old = operator("sidecar: classic");
    let injected = inject_with(&pod(), &Context::default(), &old);
    assert_eq!(injected.container("containers", CONTAINER)["restartPolicy"], Value::Null);
    assert_eq!(injected.names("containers"), ["app", "tidegate"]);
    let job = with(pod(), "/metadata/labels/job-name", json!("backup"));
    assert!(refused_with(&job, &Context::default(), &old).contains("keeps the Job from ending"));
    inject(&job);
}

#[test]
fn how_traffic_is_captured_depends_on_pod_security_and_mesh() {
    let mode = |pod: &Value, context: &Context| {
        inject_with(pod, context, &Operator::default()).status()["capture"].clone()
    };
    let level = |pod_security| Context { pod_security, ..Context::default() };
    assert_eq!(mode(&pod(), &level(PodSecurity::Privileged)), "redirect");
    let meshed = Context { mesh: true, ..Context::default() };
    let proxied = with(pod(), "/spec/initContainers", json!([{"name": "linkerd-proxy"}]));
    let labelled = with(pod(), "/metadata/labels/sidecar.istio.io~1inject", json!("true"));
    let plain = Context::default();
    for (pod, context) in [
        (pod(), &level(PodSecurity::Baseline)),
        (pod(), &level(PodSecurity::Restricted)),
        (pod(), &meshed),
        (proxied.clone(), &plain),
        (labelled, &plain),
    ] {
        assert_eq!(mode(&pod, context), "listen");
    }
    // OpenShift: an init container that is root would not be admitted.
    let given = operator("uid: null");
    let listening = inject_with(&pod(), &plain, &given);
    assert_eq!(listening.status()["capture"], "listen");
    assert!(!listening.pod.to_string().contains("NET_ADMIN"));
    let meant = annotated(&[("capture", "redirect")]);
    assert_eq!(inject_with(&meant, &plain, &given).status()["capture"], "redirect");
    let redirect =
        |pod: Value| with(pod, "/metadata/annotations/tidegate.dev~1capture", json!("redirect"));
    let refused = |pod, context| refused_with(&redirect(pod), context, &Operator::default());
    assert!(refused(proxied, &plain).contains("linkerd-proxy"));
    assert!(refused(pod(), &meshed).contains("mesh"));
    assert!(refused(pod(), &level(PodSecurity::Restricted)).contains("restricted"));
}

#[test]
fn namespaces_say_what_their_pods_may() {
    let map =
        |pairs: &[(&str, &str)]| pairs.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect();
    let none = map(&[]);
    let context = |labels: &[(&str, &str)]| Context::of_namespace("shop", &map(labels), &none);
    assert_eq!(
        context(&[(POD_SECURITY_LABEL, "restricted")]).pod_security,
        PodSecurity::Restricted
    );
    assert_eq!(context(&[(POD_SECURITY_LABEL, "baseline")]).pod_security, PodSecurity::Baseline);
    assert_eq!(context(&[("pod-security.kubernetes.io/warn", "restricted")]), context(&[]));
    assert!(
        context(&[("istio-injection", "enabled")]).mesh
            && !context(&[("istio-injection", "disabled")]).mesh
    );
    assert!(Context::of_namespace("shop", &none, &map(&[("linkerd.io/inject", "enabled")])).mesh);
}
