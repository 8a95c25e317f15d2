//! What was replaced in a pod, written down in an annotation, and how a pod becomes again what it was.
//!
//! Always true: only what is still as we left it is put back. What somebody has changed after us stays as they
//! want it, and what it was before stays written down.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::rewrite::{self, PROBES};
use super::{CAPTURE_CONTAINER, CONTAINER, DEFAULT_CONTAINER, INJECTED_VERSION, ORIGINAL, STATUS};

/// What was replaced.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Original {
    /// By the name of the container.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) containers: BTreeMap<String, Replaced>,
    /// Members of the pod that we made, and what was in their place.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) made: BTreeMap<String, Before>,
    /// The default container that we named, because nobody else had.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) default_container: Option<String>,
}

/// What was replaced in one container.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Replaced {
    /// Names of ports: what they are called now, and what they were.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) ports: BTreeMap<String, String>,
    /// What probes asked, by their member of the container.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) probes: BTreeMap<String, Value>,
    /// The hook.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) pre_stop: Option<Hook>,
}

/// A hook before ours.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Hook {
    /// None: there was none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) was: Option<Value>,
    /// Whether the container had a lifecycle at all.
    pub(super) lifecycle: Before,
}

/// What was in the place of a member.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Before {
    /// It was there.
    #[default]
    There,
    /// Nothing.
    Absent,
    /// `null`
    Null,
}

/// A pod without what is ours.
#[derive(Clone, Debug, Default)]
pub(super) struct Bare {
    pub(super) pod: Value,
    /// What we had written down.
    pub(super) status: Option<Value>,
    /// The containers and volumes that were ours: in which list and where, in rising order.
    pub(super) found: Vec<(&'static str, usize, Value)>,
    /// What was in the place of what we made.
    pub(super) made: BTreeMap<String, Before>,
    /// What could not be put back, since somebody has changed it after us.
    pub(super) kept: BTreeMap<String, Replaced>,
}

impl Before {
    pub(super) fn of(parent: &Value, member: &str) -> Self {
        match parent.get(member) {
            None => Self::Absent,
            Some(Value::Null) => Self::Null,
            Some(_) => Self::There,
        }
    }
}

/// Take out what is ours, if there is a sidecar of ours. The error says what is in the way.
pub(super) fn restore(pod: &Value) -> Result<Bare, String> {
    let mut bare = Bare { pod: pod.clone(), ..Bare::default() };
    let annotations = pod.pointer("/metadata/annotations");
    let annotation = |name: &str| annotations?.get(name)?.as_str();
    let Some(status) = annotation(STATUS) else {
        return match stranger(pod) {
            Some(what) => Err(format!(
                "it has {what} that is not the injector's (the annotation {STATUS} is missing): give it another name"
            )),
            None => Ok(bare),
        };
    };
    bare.status = Some(serde_json::from_str(status).unwrap_or_default());
    // A pod whose owner has tampered with it gets back less than it had, and nothing else.
    let original: Original =
        annotation(ORIGINAL).and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();

    for list in ["containers", "initContainers"] {
        let Some(containers) = list_mut(&mut bare.pod, list) else { continue };
        let ours = |container: &Value| {
            let name = container.get("name").and_then(Value::as_str);
            name == Some(CONTAINER) || name == Some(CAPTURE_CONTAINER) && list == "initContainers"
        };
        let mut at = 0;
        containers.retain(|container| {
            let is_ours = ours(container);
            if is_ours {
                bare.found.push((list, at, container.clone()));
            }
            at += 1;
            !is_ours
        });
        for container in containers {
            let name = container.get("name").and_then(Value::as_str).unwrap_or_default().to_owned();
            if let Some(replaced) = original.containers.get(&name) {
                let left = put_back(container, &name, replaced.clone());
                if left != Replaced::default() {
                    bare.kept.insert(name, left);
                }
            }
        }
    }
    if let Some(volumes) = list_mut(&mut bare.pod, "volumes") {
        let mut at = 0;
        volumes.retain(|volume| {
            let is_ours = is_our_volume(volume);
            if is_ours {
                bare.found.push(("volumes", at, volume.clone()));
            }
            at += 1;
            !is_ours
        });
    }
    let annotations = bare.pod.pointer_mut("/metadata/annotations").and_then(Value::as_object_mut);
    if let Some(annotations) = annotations {
        [STATUS, INJECTED_VERSION, ORIGINAL]
            .iter()
            .for_each(|name| drop(annotations.remove(*name)));
        let default = original.default_container.as_deref();
        if default.is_some()
            && annotations.get(DEFAULT_CONTAINER).and_then(Value::as_str) == default
        {
            annotations.remove(DEFAULT_CONTAINER);
        }
    }
    for (member, before) in &original.made {
        let parent = match member.as_str() {
            "metadata" => Some(&mut bare.pod),
            "annotations" => bare.pod.get_mut("metadata"),
            "initContainers" | "volumes" => bare.pod.get_mut("spec"),
            _ => None,
        };
        if let Some(parent) = parent.and_then(Value::as_object_mut) {
            unmake(parent, member, *before);
        }
    }
    bare.made = original.made;
    Ok(bare)
}

/// What has one of our names without being ours.
fn stranger(pod: &Value) -> Option<String> {
    let named = |list: &str, wanted: &dyn Fn(&str) -> bool| {
        let elements = pod.get("spec")?.get(list)?.as_array()?.iter();
        let mut names = elements.filter_map(|element| element.get("name")?.as_str());
        names.find(|name| wanted(name)).map(str::to_owned)
    };
    let container = |name: &str| name == CONTAINER || name == CAPTURE_CONTAINER;
    let container = named("containers", &container).or_else(|| named("initContainers", &container));
    let volume = || named("volumes", &|name| super::build::VOLUME_NAMES.contains(&name));
    container
        .map(|name| format!("a container {name}"))
        .or_else(|| volume().map(|name| format!("a volume {name}")))
}

fn is_our_volume(volume: &Value) -> bool {
    let name = volume.get("name").and_then(Value::as_str).unwrap_or_default();
    super::build::VOLUME_NAMES.contains(&name)
}

/// What is still as we left it becomes what it was; the rest is returned.
fn put_back(container: &mut Value, name: &str, mut replaced: Replaced) -> Replaced {
    for (member, kind) in PROBES {
        let ours =
            container.get(member).is_some_and(|probe| rewrite::is_our_probe(probe, name, kind));
        if let Some(probe) = replaced.probes.remove(member) {
            let now = container.get_mut(member).and_then(Value::as_object_mut);
            if let (true, Some(now)) = (ours, now) {
                now.remove("httpGet");
                now.extend(probe.as_object().cloned().unwrap_or_default());
            } else {
                replaced.probes.insert(member.to_owned(), probe);
            }
        }
    }
    let ours = container.pointer("/lifecycle/preStop").is_some_and(rewrite::is_our_hook);
    if let Some(hook) = replaced.pre_stop.take_if(|_| ours)
        && let Some(lifecycle) = container.get_mut("lifecycle").and_then(Value::as_object_mut)
    {
        match hook.was {
            Some(was) => drop(lifecycle.insert("preStop".into(), was)),
            None => drop(lifecycle.remove("preStop")),
        }
        let container = container.as_object_mut().expect("it has members");
        unmake(container, "lifecycle", hook.lifecycle);
    }
    let back = std::mem::take(&mut replaced.ports);
    rewrite::rename_ports(container, &back);
    replaced
}

/// A member that we made goes again, unless somebody has come to use it.
fn unmake(parent: &mut Map<String, Value>, member: &str, before: Before) {
    let empty = match parent.get(member) {
        Some(Value::Array(list)) => list.is_empty(),
        Some(Value::Object(map)) => map.is_empty(),
        _ => false,
    };
    match before {
        Before::Absent if empty => drop(parent.remove(member)),
        Before::Null if empty => drop(parent.insert(member.to_owned(), Value::Null)),
        _ => {}
    }
}

pub(super) fn list_mut<'a>(pod: &'a mut Value, list: &str) -> Option<&'a mut Vec<Value>> {
    pod.get_mut("spec")?.get_mut(list)?.as_array_mut()
}
