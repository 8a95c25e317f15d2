//! A plan becomes a pod.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::build::{self, Pieces};
use super::operator::Sidecar;
use super::original::{Bare, Before, Original, Replaced, list_mut};
use super::plan::{Mode, Plan, default_container};
use super::rewrite::{self, PROBES, PreStop};
use super::seen::{Seen, is_of_mesh};
use super::{DEFAULT_CONTAINER, INJECTED_VERSION, ORIGINAL, STATUS};

/// The drain's delay where nobody sets it.
const DRAIN_DELAY: u64 = 5;

/// Seconds for requests under way, below which people should know.
const LITTLE: u64 = 5;

/// An object's annotations may have so many bytes together.
const MOST_ANNOTATIONS: usize = 256 << 10;

/// `pod`, which was taken out of `bare`, with its gateway, and what people should know.
pub(super) fn apply(
    mut pod: Value,
    bare: &Bare,
    seen: &Seen,
    mut plan: Plan<'_>,
) -> Result<(Value, Vec<String>), String> {
    let mut original = Original { containers: bare.kept.clone(), ..Original::default() };
    let (own_hooks, slept) = rewrite_applications(&mut pod, bare, seen, &plan, &mut original);
    let usual = seconds(plan.terms.defaults.get("drain-delay")).unwrap_or(DRAIN_DELAY);
    let longer = slept.filter(|slept| *slept > usual).map(|slept| slept.min(plan.grace));
    let delay = seconds(plan.settings.get("drain-delay")).or(longer).unwrap_or(usual);
    // The gateway ends this much before it is killed.
    let reserve = plan.grace.div_ceil(4).min(3);
    let left = plan.grace.saturating_sub(reserve + delay);
    if left < LITTLE {
        plan.warnings.push(format!(
            "terminationGracePeriodSeconds of {} leaves {left} s for requests that are under way when the drain's delay \
             of {delay} s is over: give it more, or what takes longer is cut",
            plan.grace
        ));
    }
    if !own_hooks.is_empty() {
        plan.warnings.push(format!(
            "the preStop hook of {} is kept: if it ends before the drain does, the application stops while requests are \
             under way (drain=partial)",
            own_hooks.join(", ")
        ));
    }

    let pieces = build::pieces(&plan, longer, !own_hooks.is_empty())?;
    make(&mut pod, plan.native || pieces.capture.is_some(), bare, &mut original);
    place(&mut pod, bare, &pieces, plan.native);
    let annotations = pod.pointer_mut("/metadata/annotations").expect("made above");
    if annotations.get(DEFAULT_CONTAINER).is_none()
        && let Some(name) = default_container(seen)
    {
        annotations[DEFAULT_CONTAINER] = name.into();
        original.default_container = Some(name.to_owned());
    }
    annotations[INJECTED_VERSION] = env!("CARGO_PKG_VERSION").into();
    annotations[STATUS] = status(&plan, &pieces, &own_hooks).to_string().into();
    annotations[ORIGINAL] = json!(original).to_string().into();
    bounded(annotations)?;
    Ok((pod, plan.warnings))
}

/// `pod` without a gateway, that says why.
pub(super) fn apply_ungated(
    mut pod: Value,
    bare: &Bare,
    why: &str,
    warnings: &[String],
) -> Result<Value, String> {
    let mut original = Original { containers: bare.kept.clone(), ..Original::default() };
    make_annotations(&mut pod, bare, &mut original);
    let annotations = pod.pointer_mut("/metadata/annotations").expect("made above");
    let version = env!("CARGO_PKG_VERSION");
    let mut status = json!({"version": version, "ungated": why});
    if !warnings.is_empty() {
        status["warnings"] = json!(warnings);
    }
    annotations[STATUS] = status.to_string().into();
    if original != Original::default() {
        annotations[ORIGINAL] = json!(original).to_string().into();
    }
    bounded(annotations)?;
    Ok(pod)
}

/// Ports, probes and hooks of the application; who has a hook of his own, and how long others slept.
fn rewrite_applications(
    pod: &mut Value,
    bare: &Bare,
    seen: &Seen,
    plan: &Plan<'_>,
    original: &mut Original,
) -> (Vec<String>, Option<u64>) {
    let mut own_hooks = Vec::new();
    let mut longest = None;
    let containers = list_mut(pod, "containers").into_iter().flatten();
    for (container, application) in containers.zip(&seen.spec.containers) {
        if is_of_mesh(&application.name) {
            continue;
        }
        let name = application.name.clone();
        let mut replaced = Replaced::default();
        for (member, kind) in PROBES {
            let kept = bare.kept.get(&name).and_then(|kept| kept.probes.get(member));
            if let Some(kept) = kept {
                replaced.probes.insert(member.to_owned(), kept.clone());
            } else if plan.app_probes.contains_key(&format!("{name}/{kind}")) {
                rewrite::probe(container, &name, member, kind, &mut replaced);
            }
        }
        let kept = bare.kept.get(&name).and_then(|kept| kept.pre_stop.as_ref());
        match rewrite::pre_stop(container, application, kept, &mut replaced) {
            PreStop::Waits { slept } => longest = longest.max(Some(slept)),
            PreStop::Own => own_hooks.push(name.clone()),
        }
        if let Some(names) = plan.names.renamed.get(&name) {
            rewrite::rename_ports(container, names);
            let back = |(old, new): (&String, &String)| (new.clone(), old.clone());
            replaced.ports = names.iter().map(back).collect::<BTreeMap<_, _>>();
        }
        original.containers.remove(&name);
        if replaced != Replaced::default() {
            original.containers.insert(name, replaced);
        }
    }
    (own_hooks, longest)
}

/// Members that are needed and may be missing.
fn make(pod: &mut Value, init: bool, bare: &Bare, original: &mut Original) {
    make_annotations(pod, bare, original);
    for member in init.then_some("initContainers").into_iter().chain(["volumes"]) {
        let before = Before::of(&pod["spec"], member);
        if before != Before::There {
            pod["spec"][member] = json!([]);
        }
        note(member, before, bare, original);
    }
}

fn make_annotations(pod: &mut Value, bare: &Bare, original: &mut Original) {
    for (parent, member) in [("", "metadata"), ("/metadata", "annotations")] {
        let parent =
            pod.pointer_mut(parent).expect("a pod is an object, and its metadata was made");
        let before = Before::of(parent, member);
        if before != Before::There {
            parent[member] = json!({});
        }
        note(member, before, bare, original);
    }
}

/// What was in a member's place the first time, as somebody may have come to use what we made.
fn note(member: &str, now: Before, bare: &Bare, original: &mut Original) {
    let before = bare.made.get(member).copied().unwrap_or(now);
    if before != Before::There {
        original.made.insert(member.to_owned(), before);
    }
}

/// Where they were if they were there, as they are if they are what is wanted: what others have added to
/// them since stays.
fn place(pod: &mut Value, bare: &Bare, pieces: &Pieces, native: bool) {
    let status = bare.status.as_ref();
    let found = status.and_then(|status| status.get("fingerprint")?.as_str());
    let wanted = found == Some(&pieces.fingerprint());
    let role = if native { "initContainers" } else { "containers" };
    let capture = pieces.capture.as_ref().map(|capture| ("initContainers", capture));
    let volumes = pieces.volumes.iter().map(|volume| ("volumes", volume));
    for (list, container) in capture.into_iter().chain([(role, &pieces.sidecar)]).chain(volumes) {
        let name = container["name"].as_str();
        let known =
            bare.found.iter().find(|(at, _, found)| *at == list && found["name"].as_str() == name);
        let containers = list_mut(pod, list).expect("containers are there, the others were made");
        match known {
            Some((_, at, found)) => {
                let container = if wanted { found } else { container };
                containers.insert((*at).min(containers.len()), container.clone());
            }
            None => containers.push(container.clone()),
        }
    }
}

fn status(plan: &Plan<'_>, pieces: &Pieces, own_hooks: &[String]) -> Value {
    let ports = plan.ports.gated.iter().map(|port| {
        let mut said = json!({"port": port.port});
        if let Some(name) = port.names.first() {
            said["name"] = name.as_str().into();
        }
        if let Some(protocol) = port.protocol() {
            said["protocol"] = protocol.into();
        }
        if plan.mode == Mode::Listen {
            said["listen"] = port.listen.into();
        }
        said
    });
    let mut status = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "revision": plan.terms.operator.revision,
        "fingerprint": pieces.fingerprint(),
        "capture": if plan.mode == Mode::Redirect { "redirect" } else { "listen" },
        "sidecar": if plan.native { Sidecar::Native } else { Sidecar::Classic },
        "ports": ports.collect::<Vec<_>>(),
        "drain": if own_hooks.is_empty() { "full" } else { "partial" },
    });
    if plan.mode == Mode::Redirect {
        status["redirected"] = plan.ports.redirected.to_string().into();
    }
    if !own_hooks.is_empty() {
        status["ownHooks"] = json!(own_hooks);
    }
    if !plan.warnings.is_empty() {
        status["warnings"] = json!(plan.warnings);
    }
    status
}

fn bounded(annotations: &Value) -> Result<(), String> {
    let all = annotations.as_object().into_iter().flatten();
    let bytes: usize = all.map(|(key, value)| key.len() + value.as_str().map_or(0, str::len)).sum();
    if bytes <= MOST_ANNOTATIONS {
        return Ok(());
    }
    Err(format!(
        "its annotations would have {bytes} bytes together with the injector's, and Kubernetes allows {MOST_ANNOTATIONS}"
    ))
}

/// A duration that has been checked.
fn seconds(text: Option<&String>) -> Option<u64> {
    let key = crate::settings::find("drain-delay").expect("in the table");
    match key.kind.parse(text?) {
        Ok(crate::settings::Value::Duration(Some(duration))) => Some(duration.as_secs()),
        _ => None,
    }
}
