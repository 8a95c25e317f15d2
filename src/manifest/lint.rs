//! What is wrong with the annotations and labels of manifests: each mistake with its file, document, object, key,
//! value and what is allowed.

use std::collections::BTreeMap;

use serde_json::Value;

use super::objects::{self, Object};
use super::{Places, Source, Unreadable, read, reviewed};
use crate::inject::{self, INJECT_LABEL, Operator, Outcome, PREFIX, PodSecurity, REVISION_LABEL};

/// The namespace's ConfigMap with settings.
const CONFIG_MAP: &str = "tidegate";

/// Every mistake in the sources.
pub fn lint(
    sources: &[Source],
    operator: &Operator,
    level: PodSecurity,
) -> Result<Vec<String>, Unreadable> {
    let documents = read(sources)?;
    let places = Places::of(&documents, level);
    let mut mistakes = Vec::new();
    for document in &documents {
        for object in document.data.iter().flat_map(objects::all) {
            let what = format!("{}, {}", document.place, object.name);
            let found = of_object(&object, operator, &places);
            mistakes.extend(found.into_iter().map(|mistake| format!("{what}: {mistake}")));
        }
    }
    Ok(mistakes)
}

fn of_object(object: &Object<'_>, operator: &Operator, places: &Places) -> Vec<String> {
    let mut mistakes = Vec::new();
    let namespace = object.namespace();
    if let Some(pod) = object.pod() {
        labels(pod, &mut mistakes);
        let annotations = texts(pod, "annotations");
        let found = inject::check_annotations(&annotations, namespace, operator);
        mistakes.extend(found.iter().map(ToString::to_string));
        let mut context = places.context(namespace);
        context.workload = object.workload();
        let asked = texts(pod, "labels").get(INJECT_LABEL).is_some_and(|said| said == "enabled");
        if let Outcome::Refused { why } = reviewed(pod, &object.kind, &context, operator)
            && asked
        {
            mistakes.push(format!("label {INJECT_LABEL}: \"enabled\" cannot be done: {why}"));
        }
    }
    if object.pod != Some("") {
        let elsewhere = match object.pod {
            Some(pod) => format!("belongs to the pod template, {}", pod.trim_start_matches('/').replace('/', ".")),
            None => "is read on pods and pod templates only; for a namespace there is the ConfigMap `tidegate`".into(),
        };
        let own = texts(object.value, "annotations");
        let ours = own.iter().filter(|(key, _)| is_ours(key));
        mistakes
            .extend(ours.map(|(key, value)| format!("annotation {key}: {value:?} {elsewhere}")));
    }
    if object.kind == "Namespace" {
        labels(object.value, &mut mistakes);
    } else if object.pod.is_some_and(|pod| !pod.is_empty()) {
        let own = texts(object.value, "labels");
        for (key, value) in
            own.iter().filter(|(key, _)| *key == INJECT_LABEL || *key == REVISION_LABEL)
        {
            mistakes.push(format!(
                "label {key}: {value:?} belongs to the pod template or to the namespace"
            ));
        }
    }
    let name = object.value.pointer("/metadata/name").and_then(Value::as_str);
    if object.kind == "ConfigMap" && name == Some(CONFIG_MAP) {
        config_map(object.value, namespace, operator, &mut mistakes);
    }
    mistakes
}

/// Two labels are ours, everything else is an annotation.
fn labels(holder: &Value, mistakes: &mut Vec<String>) {
    for (key, value) in texts(holder, "labels") {
        match key.as_str() {
            INJECT_LABEL if !["enabled", "disabled"].contains(&value.as_str()) => {
                mistakes
                    .push(format!("label {key}: {value:?} must be one of `enabled`, `disabled`"));
            }
            INJECT_LABEL | REVISION_LABEL => {}
            _ if is_ours(&key) => {
                mistakes
                    .push(format!("label {key}: {value:?} is no label: write it as an annotation"));
            }
            _ => {}
        }
    }
}

/// Settings by workload: `_all: "limit: 5"`.
fn config_map(object: &Value, namespace: &str, operator: &Operator, mistakes: &mut Vec<String>) {
    let data = object.get("data").and_then(Value::as_object);
    for (key, text) in data.into_iter().flatten() {
        let text = text.as_str().unwrap_or_default();
        // As texts: `mode: off` is a word here, not a boolean.
        let entries = match serde_saphyr::from_str::<Option<BTreeMap<String, String>>>(text) {
            Ok(entries) => entries.unwrap_or_default(),
            Err(error) => {
                let error = error.without_snippet();
                let problem = format!("must be a mapping of settings such as `limit: 5`: {error}");
                mistakes.push(format!("data.{key} {problem}"));
                continue;
            }
        };
        let prefixed = |(name, value)| (format!("{PREFIX}{name}"), value);
        let words = entries.into_iter().map(prefixed).collect();
        for mistake in inject::check_annotations(&words, namespace, operator) {
            let name = mistake.key.trim_start_matches(PREFIX);
            mistakes.push(format!("data.{key}: {name}: {:?} {}", mistake.value, mistake.problem));
        }
    }
}

fn is_ours(key: &str) -> bool {
    key.split_once('/')
        .is_some_and(|(domain, _)| domain == "tidegate.dev" || domain.ends_with(".tidegate.dev"))
}

/// Labels or annotations; what is none of text is for the API server to refuse.
fn texts(holder: &Value, member: &str) -> BTreeMap<String, String> {
    let map = holder.pointer(&format!("/metadata/{member}")).and_then(Value::as_object);
    let text = |(key, value): (&String, &Value)| {
        let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        (key.clone(), value)
    };
    map.into_iter().flatten().map(text).collect()
}
