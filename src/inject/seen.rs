//! A pod as its types say it is: what the rules look at. What they change is the JSON it came as.

use k8s_openapi::api::core::v1::{Container, PodSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::de::DeserializeOwned;
use serde::de::value::MapDeserializer;
use serde_json::Value;

/// A pod, or the template of one.
#[derive(Clone, Debug, Default)]
pub(super) struct Seen {
    pub(super) meta: ObjectMeta,
    pub(super) spec: PodSpec,
}

/// Containers of meshes: they carry the pod's traffic and have their own injector.
const MESH_CONTAINERS: [&str; 4] =
    ["istio-proxy", "linkerd-proxy", "consul-dataplane", "kuma-sidecar"];

/// Nobody runs a pod of so many; one that has more costs everybody else's pods time and is left as it is.
const MOST_CONTAINERS: usize = 512;

/// Annotations and labels by which a pod says that a mesh is to take it, and what they say then. Empty:
/// whatever they say.
const MESH_WORDS: [(&str, &str); 5] = [
    ("sidecar.istio.io/status", ""),
    ("sidecar.istio.io/inject", "true"),
    ("istio.io/dataplane-mode", "ambient"),
    ("linkerd.io/inject", "enabled"),
    ("linkerd.io/proxy-version", ""),
];

impl Seen {
    /// Or why it is none.
    pub(super) fn of(pod: &Value) -> Result<Self, String> {
        let lists =
            ["containers", "initContainers"].map(|list| pod.get("spec")?.get(list)?.as_array());
        let containers: usize = lists.into_iter().flatten().map(Vec::len).sum();
        if containers > MOST_CONTAINERS {
            return Err(format!(
                "it has {containers} containers, and the injector looks at {MOST_CONTAINERS} at most"
            ));
        }
        Ok(Self { meta: part(pod, "metadata")?, spec: part(pod, "spec")? })
    }

    pub(super) fn init(&self) -> &[Container] {
        self.spec.init_containers.as_deref().unwrap_or_default()
    }

    /// Every container there is, in whatever role.
    pub(super) fn all(&self) -> impl Iterator<Item = &Container> {
        self.spec.containers.iter().chain(self.init())
    }

    /// Containers that are neither a mesh's nor start before the gateway.
    pub(super) fn applications(&self) -> impl Iterator<Item = &Container> {
        self.spec.containers.iter().filter(|container| !is_of_mesh(&container.name))
    }

    pub(super) fn annotation(&self, name: &str) -> Option<&str> {
        self.meta.annotations.as_ref()?.get(name).map(String::as_str)
    }

    pub(super) fn label(&self, name: &str) -> Option<&str> {
        self.meta.labels.as_ref()?.get(name).map(String::as_str)
    }

    /// By what the pod is known to be in a mesh, or to come into one.
    pub(super) fn mesh(&self) -> Option<String> {
        if let Some(proxy) = self.all().find(|container| is_of_mesh(&container.name)) {
            return Some(format!("it has the container {}", proxy.name));
        }
        MESH_WORDS.into_iter().find_map(|(key, meaning)| {
            let said = self.annotation(key).or_else(|| self.label(key))?;
            (meaning.is_empty() || said == meaning).then(|| format!("it says {key}: {said}"))
        })
    }
}

pub(super) fn is_of_mesh(container: &str) -> bool {
    MESH_CONTAINERS.contains(&container)
}

/// Whether labels or annotations of a namespace bring its pods into a mesh.
pub(super) fn brings_mesh<'a>(mut said: impl Iterator<Item = (&'a str, &'a str)>) -> bool {
    said.any(|(key, value)| {
        matches!(
            (key, value),
            ("istio-injection" | "linkerd.io/inject" | "kuma.io/sidecar-injection", "enabled")
                | ("istio.io/dataplane-mode", "ambient")
                | ("istio.io/rev", _)
        )
    })
}

/// Nothing and null are the default. Volumes are left out: the rules do not look at them, and their type is as large
/// as all that a volume may be.
fn part<T: DeserializeOwned + Default>(pod: &Value, name: &str) -> Result<T, String> {
    let read = match pod.get(name) {
        None | Some(Value::Null) => return Ok(T::default()),
        Some(Value::Object(members)) => {
            if members.get("volumes").is_some_and(|list| !list.is_array() && !list.is_null()) {
                return Err(format!("its {name} cannot be read: its volumes are no list"));
            }
            let members = members.iter().filter(|(member, _)| *member != "volumes");
            T::deserialize(MapDeserializer::new(members.map(|(key, value)| (key.as_str(), value))))
        }
        Some(part) => T::deserialize(part),
    };
    read.map_err(|error: serde_json::Error| format!("its {name} cannot be read: {error}"))
}
