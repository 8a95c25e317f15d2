//! Where the pods are in what people apply: in workloads their templates, in Lists their items.

use serde_json::Value;

/// An object of a document.
pub(super) struct Object<'a> {
    /// Such as `Deployment shop`, for people.
    pub(super) name: String,
    pub(super) kind: String,
    /// From the document to the object.
    pub(super) path: String,
    pub(super) value: &'a Value,
    /// From the object to the pod in it, if there is one.
    pub(super) pod: Option<&'static str>,
}

/// Kinds that have a pod or the template of one, and where.
const PODS: [(&str, &str); 9] = [
    ("Pod", ""),
    ("PodTemplate", "/template"),
    ("Deployment", "/spec/template"),
    ("StatefulSet", "/spec/template"),
    ("DaemonSet", "/spec/template"),
    ("ReplicaSet", "/spec/template"),
    ("ReplicationController", "/spec/template"),
    ("Job", "/spec/template"),
    ("CronJob", "/spec/jobTemplate/spec/template"),
];

/// Every object of a document, those in Lists each by itself.
pub(super) fn all(document: &Value) -> Vec<Object<'_>> {
    let mut found = Vec::new();
    collect(document, String::new(), &mut found);
    found
}

fn collect<'a>(value: &'a Value, path: String, found: &mut Vec<Object<'a>>) {
    let text = |pointer: &str| value.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    let kind = text("/kind");
    if let Some(items) = value.get("items").and_then(Value::as_array)
        && kind.ends_with("List")
    {
        for (at, item) in items.iter().enumerate() {
            collect(item, format!("{path}/items/{at}"), found);
        }
        return;
    }
    let own = match text("/metadata/name") {
        "" => text("/metadata/generateName"),
        name => name,
    };
    let pod = PODS.iter().find(|(known, _)| *known == kind).map(|(_, pod)| *pod);
    found.push(Object {
        name: format!("{kind} {own}").trim().to_owned(),
        kind: kind.to_owned(),
        path,
        value,
        pod: pod.filter(|pod| value.pointer(pod).is_some_and(Value::is_object)),
    });
}

impl Object<'_> {
    pub(super) fn pod(&self) -> Option<&Value> {
        self.value.pointer(self.pod?)
    }

    /// The workload's name, for those that are not the pod itself.
    pub(super) fn workload(&self) -> Option<String> {
        let name = self.value.pointer("/metadata/name")?.as_str()?;
        (self.kind != "Pod").then(|| name.to_owned())
    }

    pub(super) fn namespace(&self) -> &str {
        self.value.pointer("/metadata/namespace").and_then(Value::as_str).unwrap_or_default()
    }
}
