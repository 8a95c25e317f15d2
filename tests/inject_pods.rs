//! P12, a good guest, over many pods at once: whatever an admissible pod looks like, with its gateway it is still
//! admissible, of the same class of service, and the same after a second look; or it is said why not.

#[path = "inject/interface.rs"]
mod interface;
#[path = "inject/pod_security.rs"]
mod pod_security;
#[path = "inject/pods.rs"]
mod pods;

use std::collections::BTreeMap;

use interface::Interface;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{LimitRangeItem, Pod};
use pods::{Lots, Quality};
use serde_json::{Value, json};
use tidegate::inject::{self, Context, Operator, Outcome, PodSecurity};
use tidegate::webhook;

const PODS: u64 = 600;

fn operator(sidecar: &str) -> Operator {
    Operator::from_yaml(&format!("sidecar: {sidecar}")).expect("an operator")
}

fn context(pod_security: PodSecurity) -> Context {
    Context { namespace: "shop".into(), pod_security, ..Context::default() }
}

fn patched(pod: &Value, outcome: &Outcome) -> Option<Value> {
    let Outcome::Patched { patch, .. } = outcome else { return None };
    let mut patched = pod.clone();
    json_patch::patch(&mut patched, patch).expect("a patch that applies");
    Some(patched)
}

/// As typed as the API server does it, and nothing is lost on the way; nor does it mind a name.
fn round_trip(pod: &Value) -> Pod {
    assert_eq!(pods::misnamed(pod), [""; 0], "{pod:#}");
    let typed: Pod = serde_json::from_value(pod.clone()).unwrap_or_else(|e| panic!("{e}: {pod:#}"));
    assert_eq!(&serde_json::to_value(&typed).expect("JSON"), pod);
    typed
}

/// Runs for every pod, every level of Pod Security and every kind of sidecar; how many were injected and refused.
fn for_all(mut check: impl FnMut(u64, &Value, &Context, &Operator, &Outcome)) -> (u64, u64) {
    let (mut injected, mut refused) = (0, 0);
    for seed in 0..PODS {
        let pod = pods::pod(&mut Lots::new(seed));
        let level = [PodSecurity::Privileged, PodSecurity::Baseline, PodSecurity::Restricted]
            [seed as usize % 3];
        let operator = operator(if seed % 4 == 3 { "classic" } else { "auto" });
        let context = context(level);
        let outcome = inject::review(&pod, &context, &operator);
        injected += u64::from(matches!(outcome, Outcome::Patched { .. }));
        refused += u64::from(matches!(outcome, Outcome::Refused { .. }));
        check(seed, &pod, &context, &operator, &outcome);
    }
    (injected, refused)
}

#[test]
fn p12_what_comes_out_is_a_pod_and_the_same_pod_after_a_second_look() {
    let (injected, refused) = for_all(|seed, pod, context, operator, outcome| {
        round_trip(pod);
        let Some(after) = patched(pod, outcome) else { return };
        round_trip(&after);
        let again = inject::review(&after, context, operator);
        assert!(matches!(again, Outcome::Unchanged { .. }), "seed {seed}: {again:?}");
        let defaulted = pods::defaulted(&after);
        let again = inject::review(&defaulted, context, operator);
        assert!(
            matches!(again, Outcome::Unchanged { .. }),
            "seed {seed}, with the API's defaults: {again:?}"
        );
        let back = patched(&after, &inject::remove(&after)).expect("there is something to remove");
        assert_eq!(&back, pod, "seed {seed}");
    });
    // Of all kinds enough.
    assert!(injected > PODS / 2 && refused > PODS / 20, "{injected} injected, {refused} refused");
}

/// A Service that goes by a name comes to the gateway where it came to a gated port, and nowhere else than before
/// otherwise.
#[test]
fn p12_names_of_ports_lead_to_the_gateway_or_where_they_led() {
    let mut seen = BTreeMap::new();
    for_all(|seed, pod, _, _, outcome| {
        let Some(after) = patched(pod, outcome) else { return };
        let status = after.pointer("/metadata/annotations/tidegate.dev~1status").expect("told");
        let status: Value = serde_json::from_str(status.as_str().expect("a text")).expect("JSON");
        let gated = status["ports"].as_array().into_iter().flatten();
        let gateways: BTreeMap<_, _> = gated
            .filter_map(|port| Some((port["port"].as_u64()?, port["listen"].as_u64()?)))
            .collect();
        for name in pods::port_names(pod) {
            let before = pods::find_port(pod, &name);
            let of_init =
                before.as_ref().is_some_and(|(container, _)| container.starts_with("init-"));
            let listen =
                before.as_ref().and_then(|(_, port)| gateways.get(port)).filter(|_| !of_init);
            let expected = match listen {
                Some(listen) => Some(("tidegate".to_owned(), *listen)),
                None => before,
            };
            *seen.entry((listen.is_some(), status["sidecar"] == "native")).or_insert(0) += 1;
            assert_eq!(pods::find_port(&after, &name), expected, "seed {seed}: {name}\n{after:#}");
        }
    });
    assert!(seen.len() == 4 && seen.values().all(|seen| *seen > 20), "{seen:?}");
}

#[test]
fn p12_what_cannot_be_injected_says_why() {
    let mut reasons = BTreeMap::new();
    for seed in 0..PODS {
        let lots = &mut Lots::new(seed);
        let pod = pods::pod(lots);
        let outcome = inject::review(&pod, &context(PodSecurity::Privileged), &operator("classic"));
        let hopeless = pods::hopeless(&pod);
        match (&outcome, hopeless) {
            (Outcome::Refused { why }, Some(part)) => {
                assert!(why.contains(part), "seed {seed}: {part} is not in {why}");
                *reasons.entry(part).or_insert(0) += 1;
            }
            (Outcome::Refused { why }, None) => {
                assert!(why.contains("Job") || why.contains("mesh"), "seed {seed}: {why}");
            }
            (_, Some(part)) => panic!("seed {seed}: {part}, and all the same {outcome:?}"),
            _ => {}
        }
    }
    assert!(reasons.len() >= 4, "{reasons:?}");
}

#[test]
fn p12_a_restricted_pod_stays_one() {
    let mut seen = 0;
    for_all(|seed, pod, context, _, outcome| {
        let Some(after) = patched(pod, outcome) else { return };
        let before = pod_security::restricted(&round_trip(pod));
        let now = pod_security::restricted(&round_trip(&after));
        if context.pod_security != PodSecurity::Privileged {
            assert_eq!(
                now, before,
                "seed {seed}: listening must add nothing that Pod Security minds"
            );
        }
        if context.pod_security == PodSecurity::Baseline {
            assert_eq!(
                pod_security::baseline(&round_trip(&after)),
                pod_security::baseline(&round_trip(pod))
            );
        }
    });
    for seed in 0..PODS {
        let pod = pods::restricted(&mut Lots::new(seed));
        assert_eq!(pod_security::restricted(&round_trip(&pod)), [""; 0], "seed {seed}");
        let outcome = inject::review(&pod, &context(PodSecurity::Restricted), &operator("auto"));
        let Some(after) = patched(&pod, &outcome) else { continue };
        assert_eq!(pod_security::restricted(&round_trip(&after)), [""; 0], "seed {seed}");
        seen += 1;
    }
    assert!(seen > PODS / 2, "only {seen}");
}

#[test]
fn the_checker_of_pod_security_finds_what_it_is_for() {
    let pod = pods::restricted(&mut Lots::new(1));
    for (pointer, value, part) in [
        ("/spec/hostPID", json!(true), "hostPID"),
        ("/spec/volumes", json!([{"name": "a", "hostPath": {"path": "/"}}]), "volume a"),
        ("/spec/securityContext", json!({"runAsUser": 0}), "runAsUser"),
        (
            "/spec/containers/0/securityContext/capabilities",
            json!({"add": ["NET_ADMIN"], "drop": ["ALL"]}),
            "NET_ADMIN",
        ),
        ("/spec/containers/0/securityContext/capabilities", json!({}), "drop"),
        (
            "/spec/containers/0/securityContext/allowPrivilegeEscalation",
            json!(true),
            "allowPrivilegeEscalation",
        ),
        ("/spec/containers/0/securityContext/privileged", json!(true), "privileged"),
        ("/spec/containers/0/securityContext/runAsNonRoot", json!(false), "runAsNonRoot"),
        (
            "/spec/containers/0/securityContext/seccompProfile",
            json!({"type": "Unconfined"}),
            "seccomp",
        ),
        ("/spec/containers/0/ports", json!([{"containerPort": 80, "hostPort": 80}]), "hostPort"),
    ] {
        let mut wrong = pod.clone();
        let (parent, member) = pointer.rsplit_once('/').expect("a pointer");
        wrong.pointer_mut(parent).expect("there")[member] = value;
        let found = pod_security::restricted(&round_trip(&wrong));
        assert!(found.iter().any(|line| line.contains(part)), "{part} is not in {found:?}");
    }
    let gated = inject::review(&pod, &context(PodSecurity::Privileged), &operator("auto"));
    let redirected = patched(&pod, &gated).expect("injected");
    assert!(
        !pod_security::baseline(&round_trip(&redirected)).is_empty(),
        "NET_ADMIN is not baseline"
    );
}

#[test]
fn p12_class_of_service_and_quotas_stay() {
    let mut classes = BTreeMap::new();
    for_all(|seed, pod, _, _, outcome| {
        let Some(after) = patched(pod, outcome) else { return };
        assert_eq!(pods::quality(&after), pods::quality(pod), "seed {seed}");
        for (of, name) in
            [("limits", "cpu"), ("limits", "memory"), ("requests", "cpu"), ("requests", "memory")]
        {
            if pods::everybody_says(pod, of, name) {
                assert!(
                    pods::everybody_says(&after, of, name),
                    "seed {seed}: a quota on {of}.{name} would refuse it"
                );
            }
        }
    });
    for seed in 0..PODS {
        *classes.entry(pods::quality(&pods::pod(&mut Lots::new(seed)))).or_insert(0) += 1;
    }
    assert_eq!(classes.len(), 3, "{classes:?}");
    assert!(classes[&Quality::Guaranteed] > 20, "{classes:?}");
}

#[test]
fn p12_limit_ranges_stay_kept() {
    let ranges: Vec<Vec<LimitRangeItem>> = [
        json!([{"type": "Container", "min": {"cpu": "50m", "memory": "16Mi"}}]),
        json!([{"type": "Container", "max": {"cpu": "2", "memory": "100Mi"}}]),
        json!([{"type": "Container", "maxLimitRequestRatio": {"cpu": "10", "memory": "2"}}]),
        json!([{"type": "Container", "min": {"memory": "64Mi"}, "max": {"cpu": "100m", "memory": "4Gi"}, "maxLimitRequestRatio": {"cpu": "3"}}]),
        json!([{"type": "Pod", "max": {"cpu": "2", "memory": "1Gi"}}]),
    ]
    .map(|items| serde_json::from_value(items).expect("LimitRanges"))
    .into();
    let (mut kept, mut otherwise) = (0, 0);
    for ranges in &ranges {
        // As the webhook comes to know of them.
        let limits = serde_json::to_value(ranges).expect("JSON");
        let operator = json!({"namespaces": {"shop": {"limitRanges": limits}}}).to_string();
        let operator = Operator::from_yaml(&operator).expect("an operator");
        for seed in 0..PODS {
            let pod = pods::pod(&mut Lots::new(seed));
            if !pods::within(&pod, ranges) {
                continue; // would not have been admitted
            }
            let Some(after) = reviewed(&pod, "shop", &operator) else { continue };
            assert!(pods::within(&after, ranges), "seed {seed}: {ranges:?}\n{after:#}");
            assert_eq!(pods::quality(&after), pods::quality(&pod), "seed {seed}");
            kept += 1;
            let elsewhere = reviewed(&pod, "web", &operator);
            otherwise += u64::from(elsewhere.is_none_or(|other| !pods::within(&other, ranges)));
        }
    }
    assert!(kept > 200, "only {kept}");
    assert!(otherwise > 50, "only {otherwise} would not have been admitted without");
}

/// The pod with what the webhook would answer to its review in this namespace.
fn reviewed(pod: &Value, namespace: &str, operator: &Operator) -> Option<Value> {
    let review = json!({
        "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
        "request": {
            "uid": "1", "operation": "CREATE", "namespace": namespace,
            "resource": {"group": "", "version": "v1", "resource": "pods"}, "object": pod,
        },
    });
    let bytes = review.to_string();
    let reviewed = webhook::review::review(bytes.as_bytes(), Context::default(), operator);
    let answer: Value =
        serde_json::from_slice(&reviewed.expect("a review").answer).expect("an answer");
    let ByteString(patch) =
        serde_json::from_value(answer.pointer("/response/patch")?.clone()).expect("base64");
    let mut patched = pod.clone();
    let patch: json_patch::Patch = serde_json::from_slice(&patch).expect("a patch");
    json_patch::patch(&mut patched, &patch).expect("a patch that applies");
    Some(patched)
}

#[test]
fn p12_nothing_of_a_tenant_reaches_anything_but_values() {
    let forbidden = [
        "image",
        "env",
        "args",
        "uid",
        "capabilities",
        "seccomp",
        "admin",
        "control",
        "otlp-endpoint",
    ];
    for seed in 0..PODS / 4 {
        let mut pod = pods::restricted(&mut Lots::new(seed));
        for name in forbidden {
            pod["metadata"]["annotations"][format!("tidegate.dev/{name}")] =
                json!("$(EVIL)`evil`'\"\n;evil");
        }
        pod["metadata"]["annotations"]["tidegate.dev/log-level"] = json!("$(EVIL)\"evil=debug");
        let outcome = inject::review(&pod, &context(PodSecurity::Privileged), &operator("auto"));
        let Outcome::Patched { warnings, .. } = &outcome else {
            panic!("seed {seed}: {outcome:?}")
        };
        for name in forbidden {
            assert!(
                warnings.iter().any(|w| w.contains(&format!("tidegate.dev/{name}: "))),
                "{name}: {warnings:?}"
            );
        }
        let after = patched(&pod, &outcome).expect("injected");
        for container in after["spec"]["initContainers"].as_array().expect("a list") {
            if !["tidegate", "tidegate-capture"]
                .contains(&container["name"].as_str().expect("a name"))
            {
                continue;
            }
            let mut container = container.clone();
            for variable in container["env"].as_array_mut().expect("a list") {
                let told = variable["value"].as_str().unwrap_or_default().to_owned();
                if variable["name"] == "TIDEGATE_TEMPLATE_ANNOTATIONS" {
                    assert!(!told.contains("$("), "{told}");
                    let settings: Value = serde_json::from_str(&told).expect("JSON");
                    assert_eq!(settings["log-level"], "$(EVIL)\"evil=debug");
                    variable["value"] = json!("");
                }
            }
            assert!(!container.to_string().to_lowercase().contains("evil"), "{container:#}");
        }
    }
}

#[test]
fn nothing_that_is_sent_makes_it_panic() {
    use proptest::prelude::*;
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        "[a-z/$(){}\"%:.0-9-]{0,12}".prop_map(Value::from),
    ];
    let words = prop::sample::select(vec![
        "metadata",
        "spec",
        "annotations",
        "labels",
        "containers",
        "initContainers",
        "volumes",
        "name",
        "ports",
        "containerPort",
        "lifecycle",
        "preStop",
        "livenessProbe",
        "httpGet",
        "port",
        "tidegate.dev/status",
        "tidegate.dev/original",
        "made",
        "probes",
        "resources",
        "limits",
        "cpu",
        "securityContext",
        "tidegate.dev/limit",
        "exec",
        "command",
        "tidegate",
    ]);
    let tree = leaf.prop_recursive(6, 60, 5, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(words.clone().prop_map(str::to_owned), inner, 0..6)
                .prop_map(|map| json!(map)),
        ]
    });
    let operators = ["auto", "classic"].map(operator);
    proptest!(ProptestConfig::with_cases(2000), |(mut noise in tree, seed in 0..PODS)| {
        let check = |pod: &Value| {
            for operator in &operators {
                if let Some(after) = patched(pod, &inject::review(pod, &Context::default(), operator)) {
                    inject::remove(&after);
                }
            }
            patched(pod, &inject::remove(pod));
        };
        check(&noise);
        // A pod that somebody has scribbled in.
        let mut pod = pods::pod(&mut Lots::new(seed));
        if let Some(after) = patched(&pod, &inject::review(&pod, &Context::default(), &operators[0])) {
            pod = after;
        }
        if let (Some(map), Some(noise)) = (pod["spec"]["containers"][0].as_object_mut(), noise.as_object_mut()) {
            map.append(noise);
        }
        check(&pod);
    });
}

/// T49: an injector says nothing that a sidecar on record, of an older version, would not understand: it would do
/// without what was asked for. `UPDATE_PATCHES=1` writes this version's own record anew.
#[test]
fn t49_sidecars_on_record_understand_every_word() {
    let mine = Interface::of_this_version();
    let version = env!("CARGO_PKG_VERSION").rsplit_once('.').expect("a version").0;
    let file = interface::records().join(format!("{version}.json"));
    if std::env::var_os("UPDATE_PATCHES").is_some() {
        let text = serde_json::to_string_pretty(&mine).expect("JSON") + "\n";
        std::fs::write(&file, text).expect("written");
    }
    let mut said = Interface::default();
    for_all(|_, pod, context, _, _| {
        for (level, operator) in [
            (PodSecurity::Privileged, talkative("")),
            (PodSecurity::Restricted, talkative("watchOwnPod: true")),
            (PodSecurity::Restricted, talkative("allowedAnnotations: [limit]")),
        ] {
            let context = Context { pod_security: level, ..context.clone() };
            let outcome = inject::review(pod, &context, &operator);
            let Some(after) = patched(pod, &outcome) else { continue };
            said.add(Interface::said_by(&round_trip(&after)));
        }
    });
    let enough = said.flags.len() > 12 && said.variables.len() > 12 && said.paths.len() == 5;
    assert!(enough, "not all kinds of words are among them: {said:?}");
    let mut records = 0;
    for entry in std::fs::read_dir(interface::records()).expect("there") {
        let path = entry.expect("a file").path();
        let text = std::fs::read_to_string(&path).expect("read");
        let older: Interface = serde_json::from_str(&text).expect("JSON");
        let beyond = said.beyond(&older);
        assert!(beyond.is_empty(), "{}: a sidecar does not know {beyond:?}", path.display());
        let stale = "UPDATE_PATCHES=1 cargo test --test inject_pods writes it anew";
        assert!(path != file || older == mine, "{}: {stale}", path.display());
        let gone = older.beyond(&mine);
        assert!(gone.is_empty(), "pods that were injected then say what is unknown now: {gone:?}");
        records += 1;
    }
    assert!(records > 0);
}

/// An operator who has said all that an operator can say to sidecars.
fn talkative(more: &str) -> Operator {
    let text = "otlp: {endpoint: 'http://collector:4317', protocol: grpc}
defaults: {queue-timeout: 500ms, limit.8080: '5'}
ceilings: {limit: '100'}";
    Operator::from_yaml(&format!("{text}\n{more}\n")).expect("an operator")
}
