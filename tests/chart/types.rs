//! Objects, read as Kubernetes' types and written again: what is lost on the way Kubernetes does not know.

use k8s_openapi::api::admissionregistration::v1 as admission;
use k8s_openapi::api::{apps, autoscaling, batch, core, networking, policy, rbac};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

/// Whether it is of a type we know; then it must say nothing that the type does not.
pub(super) fn round_trips(object: &Value, from: &str) -> bool {
    let text = |field: &str| object[field].as_str().unwrap_or_default();
    let what = format!("{from}: {} {}", text("kind"), object["metadata"]["name"]);
    let same = match (text("apiVersion"), text("kind")) {
        ("v1", "Namespace") => same::<core::v1::Namespace>,
        ("v1", "Service") => same::<core::v1::Service>,
        ("v1", "ServiceAccount") => same::<core::v1::ServiceAccount>,
        ("v1", "Secret") => same::<core::v1::Secret>,
        ("v1", "ConfigMap") => same::<core::v1::ConfigMap>,
        ("apps/v1", "Deployment") => same::<apps::v1::Deployment>,
        ("apps/v1", "StatefulSet") => same::<apps::v1::StatefulSet>,
        ("batch/v1", "Job") => same::<batch::v1::Job>,
        ("autoscaling/v2", "HorizontalPodAutoscaler") => {
            same::<autoscaling::v2::HorizontalPodAutoscaler>
        }
        ("policy/v1", "PodDisruptionBudget") => same::<policy::v1::PodDisruptionBudget>,
        ("networking.k8s.io/v1", "NetworkPolicy") => same::<networking::v1::NetworkPolicy>,
        ("rbac.authorization.k8s.io/v1", "Role") => same::<rbac::v1::Role>,
        ("rbac.authorization.k8s.io/v1", "RoleBinding") => same::<rbac::v1::RoleBinding>,
        ("admissionregistration.k8s.io/v1", "MutatingWebhookConfiguration") => {
            same::<admission::MutatingWebhookConfiguration>
        }
        ("admissionregistration.k8s.io/v1", "ValidatingAdmissionPolicy") => {
            same::<admission::ValidatingAdmissionPolicy>
        }
        ("admissionregistration.k8s.io/v1", "ValidatingAdmissionPolicyBinding") => {
            same::<admission::ValidatingAdmissionPolicyBinding>
        }
        ("cert-manager.io/v1" | "monitoring.coreos.com/v1" | "keda.sh/v1alpha1", _) => {
            return false;
        }
        other => panic!("{what}: no type is known for {other:?}"),
    };
    same(object, &what);
    true
}

fn same<T: Serialize + DeserializeOwned>(object: &Value, what: &str) {
    let typed: T = serde_json::from_value(object.clone()).unwrap_or_else(|e| panic!("{what}: {e}"));
    let back = serde_json::to_value(typed).expect("an object");
    let lost = lost(object, &back, String::new());
    assert!(lost.is_empty(), "{what} has fields that Kubernetes does not know: {lost:?}");
}

/// The fields of `written` that are not in `read`. Numbers may become texts (ports, quantities).
fn lost(written: &Value, read: &Value, at: String) -> Vec<String> {
    let text = |value: &Value| value.to_string().trim_matches('"').to_owned();
    match (written, read) {
        (Value::Object(written), _) => {
            let missing = |(key, value): (&String, &Value)| {
                let empty = value.is_null() || *value == json!({}) || *value == json!([]);
                let at = format!("{at}.{key}");
                match read.get(key) {
                    Some(read) => lost(value, read, at),
                    None if empty => Vec::new(),
                    None => vec![at],
                }
            };
            written.iter().flat_map(missing).collect()
        }
        (Value::Array(written), Value::Array(read)) if written.len() == read.len() => {
            let pairs = written.iter().zip(read).enumerate();
            let lost = |(n, (written, read))| lost(written, read, format!("{at}[{n}]"));
            pairs.flat_map(lost).collect()
        }
        _ if text(written) == text(read) => Vec::new(),
        _ => vec![at],
    }
}
