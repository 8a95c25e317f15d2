//! A pod goes in, a patch comes out: what has to be added to it so that it has a gateway.
//!
//! ```text
//! pod ──→ refuse? ──→ take out what is ours ──→ what is asked for ──→ put it in ──→ patch = difference
//!         (refusal)          (remove)              (wishes)             (build)        (diff)
//! ```
//!
//! Always true: nothing here reads a file, a clock, the environment or the network; a pod that has its gateway
//! already is first brought back to what it was, so that twice is once, whoever has changed it in between;
//! what tenants write ends in fields of JSON, never in a shell.

mod annotations;
mod apply;
mod build;
mod diff;
mod names;
mod operator;
mod original;
mod plan;
mod ports;
mod quantity;
mod ranges;
mod refuse;
mod resources;
mod rewrite;
mod seen;
mod workload;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::LimitRangeItem;
use serde_json::Value;

pub use annotations::{Mistake, PREFIX, annotations_table};
pub use operator::{
    Capture, Namespace, Operator, OperatorError, Otlp, OtlpProtocol, PullPolicy, Quantities,
    Resources, Sidecar,
};
pub use ranges::{About, LimitRange};

/// What is known of the place a pod is made in.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Context {
    /// The namespace; the pod's own word counts where this is empty.
    pub namespace: String,
    /// What Pod Security enforces there.
    pub pod_security: PodSecurity,
    /// A mesh adds its proxy to pods there. A proxy that is in the pod already is seen without this.
    pub mesh: bool,
    /// The pod is one of a Job, if somebody knows better than its owner references do.
    pub job: bool,
    /// The workload the pod belongs to, if somebody knows better than its owner references do.
    pub workload: Option<String>,
    /// Of the namespace's LimitRanges what is known beside what the operator says of them.
    pub limit_ranges: Vec<LimitRangeItem>,
}

/// The label `pod-security.kubernetes.io/enforce` of a namespace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PodSecurity {
    /// Everything goes; also where the label is missing.
    #[default]
    Privileged,
    /// No added NET_ADMIN, so no redirection.
    Baseline,
    /// The same, and nothing runs as root.
    Restricted,
}

/// What becomes of a pod.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// It gets, or is brought up to date with, a gateway.
    Patched {
        /// RFC 6902; applied to the pod as it was given.
        patch: json_patch::Patch,
        /// For people: what was asked for and could not be done as asked.
        warnings: Vec<String>,
    },
    /// It is right as it is.
    Unchanged {
        /// Why.
        why: String,
    },
    /// It cannot have one, and is to be left as it is.
    Refused {
        /// Why, and what to do.
        why: String,
    },
}

/// The label of the namespace that says what Pod Security enforces.
pub const POD_SECURITY_LABEL: &str = "pod-security.kubernetes.io/enforce";
/// Label of pods and namespaces: `enabled` or `disabled`.
pub const INJECT_LABEL: &str = "tidegate.dev/inject";
/// Label of pods and namespaces: which of several injectors is meant.
pub const REVISION_LABEL: &str = "tidegate.dev/revision";
/// Annotation: what was injected, as JSON.
pub const STATUS: &str = "tidegate.dev/status";
/// Annotation: the version of the injector.
pub const INJECTED_VERSION: &str = "tidegate.dev/injected-version";
/// Annotation: what was replaced, as JSON, so that it can be put back.
pub const ORIGINAL: &str = "tidegate.dev/original";
/// The sidecar's name.
pub const CONTAINER: &str = "tidegate";
/// The name of the init container that writes the rules.
pub const CAPTURE_CONTAINER: &str = "tidegate-capture";
/// The name of the sidecar's container port for metrics, for PodMonitors.
pub const METRICS_PORT_NAME: &str = "tg-metrics";

impl PodSecurity {
    /// The value of the label; what is none counts as its absence.
    pub fn of_label(value: Option<&str>) -> Self {
        match value {
            Some("restricted") => Self::Restricted,
            Some("baseline") => Self::Baseline,
            _ => Self::Privileged,
        }
    }
}

/// `kubectl exec` and `kubectl logs` mean this container.
const DEFAULT_CONTAINER: &str = "kubectl.kubernetes.io/default-container";

impl Context {
    /// What a namespace's own metadata says.
    pub fn of_namespace(
        name: &str,
        labels: &BTreeMap<String, String>,
        annotations: &BTreeMap<String, String>,
    ) -> Self {
        let said = labels.iter().chain(annotations);
        Self {
            namespace: name.to_owned(),
            pod_security: PodSecurity::of_label(labels.get(POD_SECURITY_LABEL).map(String::as_str)),
            mesh: seen::brings_mesh(said.map(|(key, value)| (key.as_str(), value.as_str()))),
            ..Self::default()
        }
    }
}

/// What a pod needs so that it has a gateway. The pod is as the API server or a template has it, with
/// `metadata` and `spec`.
pub fn review(pod: &Value, context: &Context, operator: &Operator) -> Outcome {
    match reviewed(pod, context, operator) {
        Ok(outcome) => outcome,
        Err(why) => Outcome::Refused { why },
    }
}

/// Every mistake in annotations, as `tidegate lint` tells them.
pub fn check_annotations(
    annotations: &BTreeMap<String, String>,
    namespace: &str,
    operator: &Operator,
) -> Vec<Mistake> {
    annotations::judge(annotations, &operator.terms(namespace), false).1
}

/// What a pod needs so that it is again as it was before it had a gateway.
pub fn remove(pod: &Value) -> Outcome {
    match original::restore(pod) {
        Err(why) => Outcome::Refused { why },
        Ok(bare) if bare.status.is_none() => Outcome::Unchanged { why: "it has no gateway".into() },
        Ok(bare) => {
            let changed = bare.kept.keys().map(|name| {
                format!("probes or hooks of {name} have been changed since, and stay as they are")
            });
            Outcome::Patched { patch: diff::diff(pod, &bare.pod), warnings: changed.collect() }
        }
    }
}

fn reviewed(pod: &Value, context: &Context, operator: &Operator) -> Result<Outcome, String> {
    if !pod.is_object() {
        return Err("it is no object".into());
    }
    let mut bare = original::restore(pod)?;
    let seen = seen::Seen::of(&bare.pod)?;
    if let Some(said) = seen.label(INJECT_LABEL).filter(|said| ["disabled", "false"].contains(said))
    {
        return Ok(Outcome::Unchanged { why: format!("its label {INJECT_LABEL} is `{said}`") });
    }
    if let Some(other) = seen.label(REVISION_LABEL).filter(|said| *said != operator.revision) {
        let why =
            format!("its label {REVISION_LABEL} is `{other}`, and this is `{}`", operator.revision);
        return Ok(Outcome::Unchanged { why });
    }
    let namespace = match context.namespace.as_str() {
        "" => seen.meta.namespace.as_deref().unwrap_or_default(),
        name => name,
    };
    let terms = operator.terms(namespace);
    let bare_pod = std::mem::take(&mut bare.pod);
    let (wanted, warnings) = match plan::decide(&seen, &bare.kept, context, &terms) {
        plan::Verdict::Refuse(why) => return Err(why),
        plan::Verdict::Ungated { why, mut warnings } => {
            let wanted = apply::apply_ungated(bare_pod, &bare, &why, &warnings)?;
            warnings.insert(0, why);
            (wanted, warnings)
        }
        plan::Verdict::Inject(plan) => apply::apply(bare_pod, &bare, &seen, *plan)?,
    };
    let patch = diff::diff(pod, &wanted);
    if patch.0.is_empty() {
        return Ok(Outcome::Unchanged { why: "it is as it should be".into() });
    }
    Ok(Outcome::Patched { patch, warnings })
}
