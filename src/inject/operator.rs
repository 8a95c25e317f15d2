//! What the operator of a cluster decides for all pods: the one place where an image, a user or a profile
//! comes from. Written as YAML; the chart's values hold the same words.
//!
//! Always true: an [`Operator`] that was read has been checked as a whole, and all its mistakes are told at once.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::annotations;
use super::quantity::Quantity;
use super::ranges::LimitRange;

/// What the operator decides.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Operator {
    /// The image of sidecar and capture container.
    pub image: String,
    /// When it is pulled.
    pub image_pull_policy: PullPolicy,
    /// The name of this injector, if there are several.
    pub revision: String,
    /// The oldest version of Kubernetes in the cluster, such as `1.33`.
    pub kubernetes: String,
    /// What kind of container the sidecar is.
    pub sidecar: Sidecar,
    /// How traffic comes to it.
    pub capture: Capture,
    /// User and group of the sidecar. None: the platform gives one (OpenShift).
    pub uid: Option<u32>,
    /// A seccomp profile that allows io_uring and is installed on every node, such as
    /// `profiles/tidegate.json`. None: the runtime's own.
    pub seccomp_profile: Option<String>,
    /// What the sidecar asks for and may use.
    pub resources: Resources,
    /// Where traces go.
    pub otlp: Otlp,
    /// Whether the sidecar watches its pod; needs a Role in the pod's namespace.
    pub watch_own_pod: bool,
    /// Settings of the gateway where nobody says anything: `limit: "50"`, `limit.8080: "5"`.
    pub defaults: BTreeMap<String, String>,
    /// The most that annotations may ask for: `limit: "500"`, `sidecar-memory-limit: 512Mi`.
    pub ceilings: BTreeMap<String, String>,
    /// Annotations that are heeded, without their prefix; `*` is all there are.
    pub allowed_annotations: Vec<String>,
    /// What is different in some namespaces.
    pub namespaces: BTreeMap<String, Namespace>,
}

/// What is different in one namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Namespace {
    /// How traffic comes to the sidecar.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub capture: Option<Capture>,
    /// Laid over the operator's.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub defaults: BTreeMap<String, String>,
    /// Laid over the operator's.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub ceilings: BTreeMap<String, String>,
    /// In place of the operator's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allowed_annotations: Option<Vec<String>>,
    /// The `spec.limits` of its LimitRanges, all of them: within these sidecars stay.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub limit_ranges: Vec<LimitRange>,
}

/// `imagePullPolicy`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum PullPolicy {
    /// At every start.
    Always,
    /// If the node does not have it.
    #[default]
    IfNotPresent,
    /// It is on the node.
    Never,
}

/// What kind of container the sidecar is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Sidecar {
    /// As the version of Kubernetes allows.
    #[default]
    Auto,
    /// An init container that is kept running.
    Native,
    /// A container beside the others.
    Classic,
}

/// How traffic comes to the sidecar.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Capture {
    /// `redirect` where Pod Security lets us, the user is ours to choose and there is no mesh, else `listen`.
    #[default]
    Auto,
    /// nftables rules, written by an init container with NET_ADMIN.
    Redirect,
    /// Ports of its own, to which the names of the application's ports are moved.
    Listen,
}

/// What the sidecar asks for and may use, where the pod's quality of service lets it say so.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Resources {
    /// What it asks for.
    pub requests: Quantities,
    /// What it may use; of the CPU only where every container of the pod has a limit.
    pub limits: Quantities,
}

/// A quantity of each, as Kubernetes writes them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Quantities {
    /// Such as `10m`.
    pub cpu: String,
    /// Such as `32Mi`.
    pub memory: String,
}

/// Where traces go.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Otlp {
    /// Such as `http://jaeger.observability:4317`; empty: nobody collects them.
    pub endpoint: String,
    /// What is spoken there; without it, the port tells.
    pub protocol: Option<OtlpProtocol>,
}

/// What is spoken with the collector.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum OtlpProtocol {
    /// gRPC
    #[serde(rename = "grpc")]
    Grpc,
    /// HTTP with protobuf
    #[serde(rename = "http/protobuf")]
    Http,
}

impl Default for Operator {
    fn default() -> Self {
        Self {
            image: concat!("ghcr.io/tidegate/tidegate:", env!("CARGO_PKG_VERSION")).into(),
            image_pull_policy: PullPolicy::default(),
            revision: "default".into(),
            kubernetes: "1.33".into(),
            sidecar: Sidecar::default(),
            capture: Capture::default(),
            uid: Some(15800),
            seccomp_profile: None,
            resources: Resources::default(),
            otlp: Otlp::default(),
            watch_own_pod: false,
            defaults: BTreeMap::new(),
            ceilings: BTreeMap::new(),
            allowed_annotations: vec!["*".into()],
            namespaces: BTreeMap::new(),
        }
    }
}

impl Default for Resources {
    fn default() -> Self {
        let quantities =
            |cpu: &str, memory: &str| Quantities { cpu: cpu.into(), memory: memory.into() };
        Self { requests: quantities("10m", "32Mi"), limits: quantities("250m", "128Mi") }
    }
}

/// Why an operator's file is not one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.join("\n"))]
pub struct OperatorError(pub Vec<String>);

/// What the operator decides for one namespace.
#[derive(Clone, Debug)]
pub(super) struct Terms<'a> {
    pub(super) operator: &'a Operator,
    pub(super) capture: Capture,
    pub(super) defaults: BTreeMap<String, String>,
    pub(super) ceilings: BTreeMap<String, String>,
    pub(super) allowed: &'a [String],
    pub(super) limit_ranges: &'a [LimitRange],
}

/// The first version that has native sidecars without asking for them.
const NATIVE: (u32, u32) = (1, 29);

/// The first version that publishes named ports of native sidecars in EndpointSlices
/// (kubernetes/kubernetes#128850, merged after 1.32 was frozen).
const NATIVE_PORTS: (u32, u32) = (1, 33);

impl Operator {
    /// Of YAML; what is not said is as built in. The error lists every mistake.
    pub fn from_yaml(text: &str) -> Result<Self, OperatorError> {
        if text.trim().is_empty() {
            return Ok(Self::default());
        }
        let operator: Self = serde_saphyr::from_str(text)
            .map_err(|error| OperatorError(vec![error.without_snippet().to_string()]))?;
        match operator.mistakes() {
            mistakes if mistakes.is_empty() => Ok(operator),
            mistakes => Err(OperatorError(mistakes)),
        }
    }

    /// Everything that is wrong with it.
    pub fn mistakes(&self) -> Vec<String> {
        let mut mistakes = Vec::new();
        let mut say = |what: String| mistakes.push(what);
        if self.image.is_empty() || self.image.contains(char::is_whitespace) {
            say(format!("image {:?} must be the name of an image", self.image));
        }
        if self.version().is_none() {
            say(format!("kubernetes {:?} must be a version such as `1.33`", self.kubernetes));
        }
        if self.sidecar == Sidecar::Native && self.version().is_some_and(|v| v < NATIVE) {
            say(format!(
                "sidecar `native` needs Kubernetes 1.29, and kubernetes says {}",
                self.kubernetes
            ));
        }
        if self.uid == Some(0) {
            say("uid 0 must be another user than root".into());
        }
        let absolute = |profile: &str| profile.starts_with('/') || profile.is_empty();
        if self.seccomp_profile.as_deref().is_some_and(absolute) {
            say("seccompProfile must be a path below the kubelet's seccomp directory, such as `profiles/tidegate.json`".into());
        }
        let Resources { requests, limits } = &self.resources;
        for (name, request, limit) in
            [("cpu", &requests.cpu, &limits.cpu), ("memory", &requests.memory, &limits.memory)]
        {
            let allowed = super::quantity::ALLOWED;
            let [request_parsed, limit_parsed] =
                [("requests", request), ("limits", limit)].map(|(of, text)| {
                    let parsed = Quantity::parse(text);
                    if parsed.is_none() {
                        say(format!("resources.{of}.{name} {text:?} must be {allowed}"));
                    }
                    parsed
                });
            if let (Some(request), Some(limit)) = (request_parsed, limit_parsed)
                && request > limit
            {
                say(format!("resources.requests.{name} {request} is more than its limit, {limit}"));
            }
        }
        if !self.otlp.endpoint.is_empty() && !self.otlp.endpoint.starts_with("http://") {
            say(format!(
                "otlp.endpoint {:?} must begin with http://: collectors are agents of the cluster",
                self.otlp.endpoint
            ));
        }
        check_words("", &self.defaults, &self.ceilings, Some(&self.allowed_annotations), &mut say);
        for (name, namespace) in &self.namespaces {
            let Namespace { capture: _, defaults, ceilings, allowed_annotations, limit_ranges } =
                namespace;
            let within = format!("namespaces.{name}.");
            check_words(&within, defaults, ceilings, allowed_annotations.as_deref(), &mut say);
            for (at, range) in limit_ranges.iter().enumerate() {
                let wrong = range.mistakes();
                wrong.iter().for_each(|wrong| say(format!("{within}limitRanges[{at}].{wrong}")));
            }
        }
        mistakes
    }

    /// What holds in a namespace.
    pub(super) fn terms(&self, namespace: &str) -> Terms<'_> {
        let own = self.namespaces.get(namespace);
        let laid_over = |base: &BTreeMap<String, String>,
                         over: Option<&BTreeMap<String, String>>| {
            let mut all = base.clone();
            all.extend(over.into_iter().flatten().map(|(key, value)| (key.clone(), value.clone())));
            all
        };
        Terms {
            operator: self,
            capture: own.and_then(|own| own.capture).unwrap_or(self.capture),
            defaults: laid_over(&self.defaults, own.map(|own| &own.defaults)),
            ceilings: laid_over(&self.ceilings, own.map(|own| &own.ceilings)),
            allowed: own
                .and_then(|own| own.allowed_annotations.as_deref())
                .unwrap_or(&self.allowed_annotations),
            limit_ranges: own.map_or(&[], |own| &own.limit_ranges),
        }
    }

    /// Whether the sidecar is an init container that is kept running. `by_name`: Services have to find its
    /// ports by their names.
    pub(super) fn native(&self, by_name: bool) -> bool {
        let needed = if by_name { NATIVE_PORTS } else { NATIVE };
        self.sidecar != Sidecar::Classic && self.version().is_some_and(|version| version >= needed)
    }

    /// `1.33`, `v1.33.2`
    fn version(&self) -> Option<(u32, u32)> {
        let text = self.kubernetes.strip_prefix('v').unwrap_or(&self.kubernetes);
        let mut parts = text.split(['.', '-', '+']);
        Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
    }
}

fn check_words(
    within: &str,
    defaults: &BTreeMap<String, String>,
    ceilings: &BTreeMap<String, String>,
    allowed: Option<&[String]>,
    say: &mut impl FnMut(String),
) {
    for (name, value) in defaults {
        if let Err(problem) = annotations::check_default(name, value) {
            say(format!("{within}defaults.{name} {value:?} {problem}"));
        }
    }
    for (name, value) in ceilings {
        if let Err(problem) = annotations::check_ceiling(name, value) {
            say(format!("{within}ceilings.{name} {value:?} {problem}"));
        }
    }
    for name in allowed.into_iter().flatten() {
        if name != "*" && !annotations::is_known(name) {
            say(format!(
                "{within}allowedAnnotations: {name:?} is no annotation; `*` is all there are"
            ));
        }
    }
}
