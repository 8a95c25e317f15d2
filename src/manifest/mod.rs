//! Manifests, as people keep them in files: injected, brought back to what they were, and checked.
//!
//! ```text
//! text ──→ documents ──→ objects ──→ pods ──→ inject::review ──→ patch ──→ edit ──→ text
//! ```
//!
//! Always true: a document in which nothing has to change comes out byte for byte as it went in; of the others
//! what comes out has been read again and is what was wanted; every mistake is told, not only the first.

mod edit;
mod lint;
mod node;
mod objects;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use json_patch::{Patch, PatchOperation};
use k8s_openapi::api::core::v1::LimitRangeItem;
use serde_json::Value;

use crate::inject::{self, Context, Operator, Outcome, PodSecurity};

pub use lint::lint;

/// A file and what is in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// Its name, for people.
    pub name: String,
    /// All of it.
    pub text: String,
}

/// What is to be done with pods.
#[derive(Clone, Copy, Debug)]
pub enum Task<'a> {
    /// They get a gateway.
    Inject(&'a Operator),
    /// They become what they were before.
    Remove,
}

/// What has been done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Done {
    /// All documents of all sources.
    pub text: String,
    /// What was done with each object, for people.
    pub said: Vec<String>,
    /// How many could not be done.
    pub refused: usize,
}

/// A document of a source.
struct Document<'a> {
    /// Its source and number, for people.
    place: String,
    text: &'a str,
    is_json: bool,
    /// None: nothing but comments.
    data: Option<Value>,
}

/// What cannot be read at all.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.join("\n"))]
pub struct Unreadable(pub Vec<String>);

/// Do it to every pod in the sources. `level`: what Pod Security enforces in namespaces that the sources do
/// not define themselves.
pub fn rewrite(sources: &[Source], task: Task<'_>, level: PodSecurity) -> Result<Done, Unreadable> {
    let documents = read(sources)?;
    let places = Places::of(&documents, level);
    let mut done = Done::default();
    let mut source = "";
    for document in &documents {
        // Documents of another file begin with a line of their own.
        let own = document.place.split(", ").next().unwrap_or_default();
        if !source.is_empty() && source != own && !document.text.starts_with("---") {
            done.text += "---\n";
        }
        source = own;
        done.text += &rewritten(document, task, &places, &mut done.said, &mut done.refused);
        if !done.text.ends_with('\n') && !done.text.is_empty() && sources.len() > 1 {
            done.text.push('\n');
        }
    }
    Ok(done)
}

fn rewritten(
    document: &Document<'_>,
    task: Task<'_>,
    places: &Places,
    said: &mut Vec<String>,
    refused: &mut usize,
) -> String {
    let Some(data) = &document.data else { return document.text.to_owned() };
    let mut steps = Vec::new();
    for object in objects::all(data) {
        let Some(pod) = object.pod() else { continue };
        let outcome = match task {
            Task::Remove => inject::remove(pod),
            Task::Inject(operator) => {
                let mut context = places.context(object.namespace());
                context.workload = object.workload();
                reviewed(pod, &object.kind, &context, operator)
            }
        };
        let what = format!("{}, {}", document.place, object.name);
        match outcome {
            Outcome::Patched { patch, warnings } => {
                let done = summary(pod, &patch, task);
                let warnings = warnings.iter().filter(|warning| !done.contains(*warning));
                said.push(format!("{what}: {done}"));
                said.extend(warnings.map(|warning| format!("{what}: warning: {warning}")));
                let below = format!("{}{}", object.path, object.pod.unwrap_or_default());
                steps.extend(patch.0.into_iter().map(|step| moved(step, &below)));
            }
            Outcome::Unchanged { why } => said.push(format!("{what}: unchanged: {why}")),
            Outcome::Refused { why } => {
                *refused += 1;
                said.push(format!("{what}: left as it is: {why}"));
            }
        }
    }
    if steps.is_empty() {
        return document.text.to_owned();
    }
    let patch = Patch(steps);
    let mut wanted = data.clone();
    json_patch::patch(&mut wanted, &patch).expect("patches are made of what they are applied to");
    if document.is_json {
        let mut plain = edit::parse(document.text).expect("it was read before").plain();
        plain.become_value(&wanted);
        let text = serde_json::to_string_pretty(&plain).expect("its keys are texts");
        return text + "\n";
    }
    let edited = edit::edit(document.text, &patch, &wanted);
    if !edited.in_place {
        let note = "written anew: it is YAML of a kind that cannot be changed in place, so comments are lost";
        said.push(format!("{}: {note}", document.place));
    }
    edited.text
}

/// A Job's pods belong to a Job before there is one to own them.
fn reviewed(pod: &Value, kind: &str, context: &Context, operator: &Operator) -> Outcome {
    let job = context.job || ["Job", "CronJob"].contains(&kind);
    inject::review(pod, &Context { job, ..context.clone() }, operator)
}

fn summary(pod: &Value, patch: &Patch, task: Task<'_>) -> String {
    if let Task::Remove = task {
        return "is again as it was".into();
    }
    let mut after = pod.clone();
    let status = json_patch::patch(&mut after, patch).ok().and_then(|()| {
        let pointer = format!("/metadata/annotations/{}", inject::STATUS.replace('/', "~1"));
        serde_json::from_str::<Value>(after.pointer(&pointer)?.as_str()?).ok()
    });
    let status = status.unwrap_or_default();
    if let Some(why) = status["ungated"].as_str() {
        return format!("no gateway: {why}");
    }
    let word = |name: &str| status[name].as_str().unwrap_or_default().to_owned();
    let ports = status["ports"].as_array().into_iter().flatten();
    let mut ports: Vec<_> = ports.map(|port| port["port"].to_string()).collect();
    if ports.is_empty() {
        ports.push(word("redirected"));
    }
    format!(
        "gateway in front of {} (capture {}, {} sidecar, drain {})",
        ports.join(", "),
        word("capture"),
        word("sidecar"),
        word("drain"),
    )
}

/// The same step, further down.
fn moved(step: PatchOperation, below: &str) -> PatchOperation {
    let path = |path: &json_patch::jsonptr::PointerBuf| {
        json_patch::jsonptr::PointerBuf::parse(format!("{below}{path}"))
            .expect("two pointers are one")
    };
    match step {
        PatchOperation::Add(mut add) => {
            add.path = path(&add.path);
            PatchOperation::Add(add)
        }
        PatchOperation::Remove(mut remove) => {
            remove.path = path(&remove.path);
            PatchOperation::Remove(remove)
        }
        PatchOperation::Replace(mut replace) => {
            replace.path = path(&replace.path);
            PatchOperation::Replace(replace)
        }
        other => other,
    }
}

/// Namespaces that the sources define, and what they say that pods there may have.
struct Places {
    known: BTreeMap<String, Context>,
    limit_ranges: BTreeMap<String, Vec<LimitRangeItem>>,
    level: PodSecurity,
}

impl Places {
    fn of(documents: &[Document<'_>], level: PodSecurity) -> Self {
        let data = documents.iter().filter_map(|document| document.data.as_ref());
        let objects: Vec<_> = data.flat_map(objects::all).collect();
        let mut limit_ranges: BTreeMap<String, Vec<LimitRangeItem>> = BTreeMap::new();
        for object in objects.iter().filter(|object| object.kind == "LimitRange") {
            // What is none is for the API server to refuse.
            let items = object.value.pointer("/spec/limits").cloned().unwrap_or_default();
            let items: Vec<LimitRangeItem> = serde_json::from_value(items).unwrap_or_default();
            limit_ranges.entry(object.namespace().to_owned()).or_default().extend(items);
        }
        let spaces = objects.iter().filter(|object| object.kind == "Namespace");
        let known = spaces.filter_map(|object| {
            let texts = |member: &str| -> BTreeMap<String, String> {
                let map = object.value.pointer(&format!("/metadata/{member}"));
                map.and_then(|map| serde_json::from_value(map.clone()).ok()).unwrap_or_default()
            };
            let name = object.value.pointer("/metadata/name")?.as_str()?;
            let labels = texts("labels");
            let mut context = Context::of_namespace(name, &labels, &texts("annotations"));
            if !labels.contains_key(inject::POD_SECURITY_LABEL) {
                context.pod_security = level;
            }
            Some((name.to_owned(), context))
        });
        Self { known: known.collect(), limit_ranges, level }
    }

    fn context(&self, namespace: &str) -> Context {
        let unknown = || Context {
            namespace: namespace.to_owned(),
            pod_security: self.level,
            ..Context::default()
        };
        let known = self.known.get(namespace).cloned().unwrap_or_else(unknown);
        let limit_ranges = self.limit_ranges.get(namespace).cloned().unwrap_or_default();
        Context { limit_ranges, ..known }
    }
}

/// Every document, or every one that is none.
fn read(sources: &[Source]) -> Result<Vec<Document<'_>>, Unreadable> {
    let mut documents = Vec::new();
    let mut wrong = Vec::new();
    for source in sources {
        let texts = split(&source.text);
        let many = texts.len() > 1;
        let mut number = 0;
        for text in texts {
            let is_json = text.trim_start().starts_with('{');
            let empty = is_empty(text);
            number += usize::from(!empty);
            let place = match many {
                true => format!("{}, document {number}", source.name),
                false => source.name.clone(),
            };
            let data = match (empty, edit::parse(text)) {
                (true, _) => None,
                (false, Ok(placed)) => Some(placed.plain().value()),
                (false, Err(error)) => {
                    wrong.push(format!("{place}: {}", error.without_snippet()));
                    None
                }
            };
            documents.push(Document { place, text, is_json, data });
        }
    }
    if wrong.is_empty() { Ok(documents) } else { Err(Unreadable(wrong)) }
}

/// Nothing but comments, blank lines and marks.
fn is_empty(text: &str) -> bool {
    text.lines().all(|line| {
        let line = line.trim();
        line.is_empty() || line.starts_with('#') || line == "---" || line == "..."
    })
}

/// The documents of a stream, each with the mark it begins with; together they are the text.
fn split(text: &str) -> Vec<&str> {
    let mut starts = vec![0];
    let mut at = 0;
    for line in text.split_inclusive('\n') {
        let mark = line.strip_prefix("---");
        if at > 0
            && mark.is_some_and(|rest| rest.is_empty() || rest.starts_with(char::is_whitespace))
        {
            starts.push(at);
        }
        at += line.len();
    }
    let ends = starts.iter().skip(1).copied().chain([text.len()]);
    starts.iter().zip(ends).map(|(start, end)| &text[*start..end]).collect()
}
