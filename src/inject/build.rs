//! What is put into a pod: the sidecar, the container that writes the rules, their volumes.
//!
//! Always true: image, user, capabilities and profiles come from the operator or from here; what tenants write
//! is a value inside JSON in a variable, without a `$` that Kubernetes would expand.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::operator::{Operator, OtlpProtocol, Terms};
use super::plan::{Mode, Plan};
use super::rewrite::PROBE_PORT;
use super::{CAPTURE_CONTAINER, CONTAINER, METRICS_PORT_NAME, annotations};
use crate::capture::{PortSet, REDIRECT_PORT};

const CONTROL: &str = "tidegate-control";
const POD_INFO: &str = "tidegate-podinfo";
const NAMESPACE: &str = "tidegate-namespace";
const TOKEN: &str = "tidegate-token";

/// Every volume of ours.
pub(super) const VOLUME_NAMES: [&str; 4] = [CONTROL, POD_INFO, NAMESPACE, TOKEN];

/// Where clients of the API server look, and API servers mount a token unless something is there.
const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// The namespace's ConfigMap with settings.
const CONFIG_MAP: &str = "tidegate";

const METRICS_PORT: u16 = 15822;

/// Linux lets one variable have 128 KiB.
const MOST_OF_A_VARIABLE: usize = 120 << 10;

/// What is put into a pod.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Pieces {
    pub(super) sidecar: Value,
    pub(super) capture: Option<Value>,
    pub(super) volumes: Vec<Value>,
}

impl Pieces {
    /// The same for the same pieces, also in another version: so a sidecar to which others have added
    /// something since is known to be the one that is wanted.
    pub(super) fn fingerprint(&self) -> String {
        const BASIS: u64 = 0xcbf2_9ce4_8422_2325;
        const PRIME: u64 = 0x0100_0000_01b3;
        let all = json!([self.sidecar, self.capture, self.volumes]).to_string();
        let hash = all.bytes().fold(BASIS, |hash, b| (hash ^ u64::from(b)).wrapping_mul(PRIME));
        format!("{hash:016x}") // FNV-1a
    }
}

/// What is put into this pod. `drain_delay`: seconds that hooks of the application would have slept.
/// `partial`: some hook of the application may end before a drain does.
pub(super) fn pieces(
    plan: &Plan<'_>,
    drain_delay: Option<u64>,
    partial: bool,
) -> Result<Pieces, String> {
    let operator = plan.terms.operator;
    let capture = (plan.mode == Mode::Redirect).then(|| capture(plan));
    Ok(Pieces {
        sidecar: sidecar(plan, drain_delay, partial)?,
        capture,
        volumes: volumes(operator),
    })
}

fn sidecar(plan: &Plan<'_>, drain_delay: Option<u64>, partial: bool) -> Result<Value, String> {
    let operator = plan.terms.operator;
    let get = |path: &str| json!({"path": path, "port": PROBE_PORT, "scheme": "HTTP"});
    let mut ports = vec![json!({
        "name": METRICS_PORT_NAME, "containerPort": METRICS_PORT, "protocol": "TCP",
    })];
    ports.extend(
        plan.names
            .sidecar
            .iter()
            .map(|(name, port)| json!({"name": name, "containerPort": port, "protocol": "TCP"})),
    );
    let profile = match &operator.seccomp_profile {
        Some(profile) => json!({"type": "Localhost", "localhostProfile": profile}),
        None => json!({"type": "RuntimeDefault"}),
    };
    let mount = |name: &str, path: &str| json!({"name": name, "mountPath": path});
    let read = |name: &str, path: &str| json!({"name": name, "mountPath": path, "readOnly": true});
    let mut container = json!({
        "name": CONTAINER,
        "image": operator.image,
        "imagePullPolicy": operator.image_pull_policy,
        "args": args(plan, drain_delay),
        "env": env(plan, partial)?,
        "ports": ports,
        "resources": plan.resources,
        "volumeMounts": [
            // The gateway makes a directory of its own in it: anybody may write to the volume itself.
            mount(CONTROL, "/run"),
            read(POD_INFO, "/etc/tidegate/pod"),
            read(NAMESPACE, "/etc/tidegate/namespace"),
        ],
        // Two minutes for a slow machine; the application starts as soon as it answers.
        "startupProbe": {
            "httpGet": get("/startupz"), "periodSeconds": 1, "timeoutSeconds": 1, "failureThreshold": 120,
        },
        // A drain is seen within 4 s, before its delay is over.
        "readinessProbe": {
            "httpGet": get("/readyz"), "periodSeconds": 2, "timeoutSeconds": 2, "failureThreshold": 2,
        },
        "livenessProbe": {
            "httpGet": get("/livez"), "periodSeconds": 10, "timeoutSeconds": 5, "failureThreshold": 3,
        },
        "lifecycle": {"preStop": {"exec": {"command": ["/tidegate", "drain"]}}},
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "securityContext": {
            "runAsNonRoot": true,
            "readOnlyRootFilesystem": true,
            "allowPrivilegeEscalation": false,
            "capabilities": {"drop": ["ALL"]},
            "seccompProfile": profile,
        },
    });
    if let Some(uid) = operator.uid {
        container["securityContext"]["runAsUser"] = uid.into();
        container["securityContext"]["runAsGroup"] = uid.into();
    }
    if operator.watch_own_pod {
        let mounts = container["volumeMounts"].as_array_mut().expect("made above");
        mounts.push(read(TOKEN, SERVICE_ACCOUNT));
    }
    if plan.native {
        container["restartPolicy"] = "Always".into();
    }
    Ok(container)
}

/// Only flags that every version on record knows (`tests/inject/interfaces/`): a sidecar may be older than its injector,
/// and does without what it does not know.
fn args(plan: &Plan<'_>, drain_delay: Option<u64>) -> Vec<String> {
    let mut args = vec!["run".to_owned()];
    match plan.mode {
        Mode::Redirect => {
            args.push(format!("--capture=[::]:{REDIRECT_PORT}"));
            args.push(format!("--include-inbound-ports={}", flat(&plan.ports.redirected)));
        }
        Mode::Listen => args.extend(plan.ports.gated.iter().map(|port| {
            // In brackets, as the address may be of either family.
            format!("--listen=[::]:{}=[$(TIDEGATE_POD_IP)]:{}", port.listen, port.port)
        })),
    }
    args.extend(plan.ports.gated.iter().filter_map(|port| {
        let at = if plan.mode == Mode::Listen { port.listen } else { port.port };
        Some(format!("--protocol={at}={}", port.protocol()?))
    }));
    args.push(format!("--probe=[::]:{PROBE_PORT}"));
    args.push(format!("--metrics=[::]:{METRICS_PORT}"));
    args.push(format!("--grace={}s", plan.grace));
    args.extend(drain_delay.map(|delay| format!("--drain-delay={delay}s")));
    args.push("--annotations=/etc/tidegate/pod/annotations".into());
    args.push("--namespace-config=/etc/tidegate/namespace".into());
    if !plan.workload.name.is_empty() {
        args.push(format!("--workload={}", plan.workload.name));
    }
    if plan.terms.operator.watch_own_pod {
        args.push("--watch-own-pod".into());
    }
    args
}

fn env(plan: &Plan<'_>, partial: bool) -> Result<Vec<Value>, String> {
    let field = |(name, path): (&str, &str)| json!({"name": name, "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": path}}});
    let mut env: Vec<Value> = [
        ("TIDEGATE_POD_IP", "status.podIP"),
        ("TIDEGATE_HOST_IP", "status.hostIP"),
        ("POD_NAME", "metadata.name"),
        ("POD_NAMESPACE", "metadata.namespace"),
        ("POD_UID", "metadata.uid"),
        ("NODE_NAME", "spec.nodeName"),
    ]
    .map(field)
    .into();
    let mut set = |name: &str, value: String| -> Result<(), String> {
        if value.len() > MOST_OF_A_VARIABLE {
            return Err(format!(
                "what the sidecar would have to be told in {name} is longer than a variable can be: \
                 shorten the annotations and probes of the application"
            ));
        }
        env.push(json!({"name": name, "value": value}));
        Ok(())
    };
    set("CONTAINER_NAME", CONTAINER.into())?;
    for (name, value) in operators(plan) {
        set(&name, value)?;
    }
    let otlp = &plan.terms.operator.otlp;
    if !otlp.endpoint.is_empty() {
        set("OTEL_EXPORTER_OTLP_ENDPOINT", otlp.endpoint.clone())?;
    }
    match otlp.protocol {
        Some(OtlpProtocol::Grpc) => set("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc".into())?,
        Some(OtlpProtocol::Http) => set("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf".into())?,
        None => {}
    }
    if let Some(attribute) = plan.workload.attribute {
        let name = encoded(&plan.workload.name);
        set("OTEL_RESOURCE_ATTRIBUTES", format!("{attribute}={name}"))?;
    }
    if partial {
        set("TIDEGATE_DRAIN_PARTIAL", "true".into())?;
    }
    match plan.terms.allowed {
        // To older sidecars an empty variable says nothing, which is all; no setting is called `none`.
        [] => set("TIDEGATE_ALLOWED_ANNOTATIONS", "none".into())?,
        all if all.iter().any(|key| key == "*") => {}
        some => set("TIDEGATE_ALLOWED_ANNOTATIONS", some.join(","))?,
    }
    for (name, value) in [
        ("TIDEGATE_TEMPLATE_ANNOTATIONS", inert(&json!(plan.found))),
        ("TIDEGATE_CEILINGS", inert(&ceilings(plan.terms))),
        ("TIDEGATE_APP_PROBES", inert(&json!(plan.app_probes))),
    ] {
        if value != "{}" {
            set(name, value)?;
        }
    }
    Ok(env)
}

/// The operator's defaults as the sidecar's variables; those of single ports only where there is such a port.
fn operators(plan: &Plan<'_>) -> BTreeMap<String, String> {
    let defaults = plan.terms.defaults.iter();
    let settings = defaults.filter(|(name, _)| !annotations::is_word(name));
    let variable = |(name, value): (&String, &String)| {
        let (plain, port) = match name.split_once('.') {
            None => (name.as_str(), String::new()),
            Some((plain, port)) => {
                let port: u16 = port.parse().ok()?;
                let gated = plan.ports.gated.iter().find(|gated| gated.port == port);
                let at = match (plan.mode, gated) {
                    (Mode::Listen, gated) => gated?.listen,
                    (Mode::Redirect, _) if plan.ports.contains(port) => port,
                    (Mode::Redirect, _) => return None,
                };
                (plain, format!("_{at}"))
            }
        };
        let name = plain.replace('-', "_").to_uppercase();
        Some((format!("TIDEGATE_{name}{port}"), value.clone()))
    };
    settings.filter_map(variable).collect()
}

/// The ceilings that the sidecar has to keep; the injector keeps its own.
fn ceilings(terms: &Terms<'_>) -> Value {
    let all = terms.ceilings.iter();
    all.filter(|(name, _)| !annotations::is_word(name))
        .map(|(name, value)| (name.clone(), Value::from(value.as_str())))
        .collect::<serde_json::Map<_, _>>()
        .into()
}

fn capture(plan: &Plan<'_>) -> Value {
    let operator = plan.terms.operator;
    let field = |name: &str, path: &str| json!({"name": name, "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": path}}});
    json!({
        "name": CAPTURE_CONTAINER,
        "image": operator.image,
        "imagePullPolicy": operator.image_pull_policy,
        "args": ["capture", "install", format!("--include-inbound-ports={}", flat(&plan.ports.redirected))],
        "env": [
            field("TIDEGATE_POD_IP", "status.podIPs"),
            field("TIDEGATE_HOST_IP", "status.hostIP"),
        ],
        "resources": plan.resources,
        "terminationMessagePolicy": "FallbackToLogsOnError",
        // Kubernetes gives a capability to nobody but root.
        "securityContext": {
            "runAsUser": 0,
            "runAsGroup": 0,
            "runAsNonRoot": false,
            "readOnlyRootFilesystem": true,
            "allowPrivilegeEscalation": false,
            "capabilities": {"drop": ["ALL"], "add": ["NET_ADMIN"]},
            "seccompProfile": {"type": "RuntimeDefault"},
        },
    })
}

fn volumes(operator: &Operator) -> Vec<Value> {
    let mut volumes = vec![
        // In memory: cluster autoscalers take other emptyDirs for data that binds a pod to its node.
        json!({"name": CONTROL, "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}}),
        json!({"name": POD_INFO, "downwardAPI": {"defaultMode": 292, "items": [
            {"path": "annotations", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.annotations"}},
        ]}}),
        json!({"name": NAMESPACE, "configMap": {
            "name": CONFIG_MAP, "optional": true, "defaultMode": 292,
        }}),
    ];
    if operator.watch_own_pod {
        // As Kubernetes makes it for pods that want one, but for the sidecar alone: the application may do without.
        volumes.push(json!({"name": TOKEN, "projected": {"defaultMode": 420, "sources": [
            {"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}},
            {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
            {"downwardAPI": {"items": [
                {"path": "namespace", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}},
            ]}},
        ]}}));
    }
    volumes
}

/// `8080,9000-9100`, one argument without spaces.
fn flat(ports: &PortSet) -> String {
    ports.to_string().replace(' ', "")
}

/// JSON without a `$`: Kubernetes would take `$(NAME)` in a variable for another variable.
fn inert(value: &Value) -> String {
    value.to_string().replace('$', "\\u0024")
}

/// As OTEL_RESOURCE_ATTRIBUTES wants its values.
fn encoded(text: &str) -> String {
    let mut encoded = String::new();
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' => {
                encoded.push(char::from(byte));
            }
            _ => encoded += &format!("%{byte:02X}"),
        }
    }
    encoded
}
