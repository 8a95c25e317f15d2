//! What is replaced in the application's containers: names of ports, probes, and hooks that only sleep.
//!
//! ```text
//! port  http: 8080            →  app-8080: 8080      (`listen`: the name moves to the gateway's port)
//! probe httpGet 8080/healthz  →  httpGet 15821/app-probe/<container>/<kind>
//! preStop none or sleep 10    →  httpGet 15821/drain/wait
//! ```
//!
//! Always true: nothing else of a container is touched, and what was there is in [`Original`].
//!
//! [`Original`]: super::original::Original

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, LifecycleHandler, Probe};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde_json::{Value, json};

use super::original::{Before, Hook, Replaced};
use super::ports::Ports;

/// A probe's member of the container, and what it is called in the path.
pub(super) const PROBES: [(&str, &str); 3] =
    [("livenessProbe", "liveness"), ("readinessProbe", "readiness"), ("startupProbe", "startup")];

/// What a probe may ask, one of them.
pub(super) const QUESTIONS: [&str; 3] = ["httpGet", "tcpSocket", "grpc"];

/// Where the sidecar answers kubelets.
pub(super) const PROBE_PORT: u16 = 15821;

/// What became of a container's hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PreStop {
    /// It waits for the drain. `slept`: so many seconds it would have slept before.
    Waits { slept: u64 },
    /// It has one of its own, which may end before the drain does.
    Own,
}

/// What `tidegate run` is told of a probe: the contract of `--app-probes`.
pub(super) fn told(probe: &Probe, container: &Container, ports: &Ports) -> Option<Value> {
    let timeout = probe.timeout_seconds.unwrap_or(1).max(1);
    let gated = |port: &IntOrString| number(port, container).filter(|port| ports.contains(*port));
    if let Some(get) = &probe.http_get {
        // A host of its own is somewhere else.
        let port = gated(&get.port).filter(|_| get.host.as_deref().unwrap_or("").is_empty())?;
        let mut said = json!({
            "path": get.path.as_deref().unwrap_or("/"),
            "port": port,
            "scheme": get.scheme.as_deref().unwrap_or("HTTP"),
        });
        if let Some(headers) = get.http_headers.as_ref().filter(|headers| !headers.is_empty()) {
            let header = |name: &str, value: &str| json!({"name": name, "value": value});
            said["httpHeaders"] = headers.iter().map(|h| header(&h.name, &h.value)).collect();
        }
        return Some(json!({"httpGet": said, "timeoutSeconds": timeout}));
    }
    if let Some(tcp) = &probe.tcp_socket {
        let port = gated(&tcp.port).filter(|_| tcp.host.as_deref().unwrap_or("").is_empty())?;
        return Some(json!({"tcpSocket": {"port": port}, "timeoutSeconds": timeout}));
    }
    let grpc = probe.grpc.as_ref()?;
    let port = u16::try_from(grpc.port).ok().filter(|port| ports.contains(*port))?;
    let mut said = json!({"port": port});
    if let Some(service) = grpc.service.as_ref().filter(|service| !service.is_empty()) {
        said["service"] = service.as_str().into();
    }
    Some(json!({"grpc": said, "timeoutSeconds": timeout}))
}

/// Have a probe asked through the gateway's own port. All but the question stays as it is.
pub(super) fn probe(
    container: &mut Value,
    name: &str,
    member: &str,
    kind: &str,
    replaced: &mut Replaced,
) {
    let Some(probe) = container.get_mut(member).and_then(Value::as_object_mut) else { return };
    let mut was = serde_json::Map::new();
    for question in QUESTIONS {
        was.extend(probe.remove(question).map(|asked| (question.to_owned(), asked)));
    }
    replaced.probes.insert(member.to_owned(), was.into());
    let question = json!({"path": path(name, kind), "port": PROBE_PORT, "scheme": "HTTP"});
    probe.insert("httpGet".into(), question);
}

/// Have the container's end wait for the drain, unless it has a hook that does something. `kept`: what was there
/// before ours, which somebody has changed since.
pub(super) fn pre_stop(
    container: &mut Value,
    seen: &Container,
    kept: Option<&Hook>,
    replaced: &mut Replaced,
) -> PreStop {
    let hook = seen.lifecycle.as_ref().and_then(|lifecycle| lifecycle.pre_stop.as_ref());
    let Some(slept) = hook.map_or(Some(0), sleeps) else {
        replaced.pre_stop = kept.cloned();
        return match kept {
            Some(kept) if hook.is_some_and(leads_to_ours) => PreStop::Waits { slept: kept.slept() },
            _ => PreStop::Own,
        };
    };
    let lifecycle = Before::of(container, "lifecycle");
    if lifecycle != Before::There {
        container["lifecycle"] = json!({});
    }
    let members = container["lifecycle"].as_object_mut().expect("the types say so");
    let wait = json!({"httpGet": {"path": "/drain/wait", "port": PROBE_PORT, "scheme": "HTTP"}});
    let was = members.insert("preStop".into(), wait);
    replaced.pre_stop = Some(Hook { was: was.filter(|was| !was.is_null()), lifecycle });
    PreStop::Waits { slept }
}

/// What a mesh makes of a hook: its agent is called, and calls what was there.
fn leads_to_ours(hook: &LifecycleHandler) -> bool {
    let path = hook.http_get.as_ref().and_then(|get| get.path.as_deref());
    path.is_some_and(|path| path.starts_with("/app-lifecycle/")) // Istio's
}

impl Hook {
    /// How long it slept that was there before ours.
    fn slept(&self) -> u64 {
        let was = self.was.clone().and_then(|was| serde_json::from_value(was).ok());
        was.and_then(|was: LifecycleHandler| sleeps(&was)).unwrap_or_default()
    }
}

/// The gated port that a hook of the application calls.
pub(super) fn called(hook: &LifecycleHandler, container: &Container, ports: &Ports) -> Option<u16> {
    let get = hook.http_get.as_ref()?;
    // A host of its own is somewhere else.
    let here = get.host.as_deref().unwrap_or("").is_empty();
    number(&get.port, container).filter(|port| here && ports.contains(*port))
}

/// Give ports other names, and follow them wherever the container speaks of them by name.
pub(super) fn rename_ports(container: &mut Value, names: &BTreeMap<String, String>) {
    let rename = |place: Option<&mut Value>| {
        if let Some(place) = place
            && let Some(new) = place.as_str().and_then(|old| names.get(old))
        {
            *place = new.as_str().into();
        }
    };
    for port in container.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten() {
        rename(port.get_mut("name"));
    }
    let hooks = ["/lifecycle/preStop", "/lifecycle/postStart"];
    let probes = PROBES.map(|(member, _)| format!("/{member}"));
    for handler in hooks.into_iter().chain(probes.iter().map(String::as_str)) {
        for question in ["httpGet", "tcpSocket"] {
            rename(container.pointer_mut(&format!("{handler}/{question}/port")));
        }
    }
}

pub(super) fn is_our_probe(probe: &Value, container: &str, kind: &str) -> bool {
    asks(probe, &path(container, kind))
}

pub(super) fn is_our_hook(hook: &Value) -> bool {
    asks(hook, "/drain/wait")
}

fn asks(handler: &Value, path: &str) -> bool {
    let get = handler.get("httpGet");
    let member = |name: &str| get.and_then(|get| get.get(name));
    member("path").and_then(Value::as_str) == Some(path)
        && member("port").and_then(Value::as_u64) == Some(PROBE_PORT.into())
}

fn path(container: &str, kind: &str) -> String {
    format!("/app-probe/{container}/{kind}")
}

/// The number of a port that may be named.
fn number(port: &IntOrString, container: &Container) -> Option<u16> {
    let number = match port {
        IntOrString::Int(number) => *number,
        IntOrString::String(name) => match name.parse() {
            Ok(number) => number,
            Err(_) => {
                let mut ports = container.ports.iter().flatten();
                ports.find(|port| port.name.as_ref() == Some(name))?.container_port
            }
        },
    };
    u16::try_from(number).ok().filter(|number| *number != 0)
}

/// How long a hook sleeps that does nothing else. None: it does something.
fn sleeps(hook: &LifecycleHandler) -> Option<u64> {
    if let Some(sleep) = &hook.sleep {
        return u64::try_from(sleep.seconds).ok();
    }
    let command = hook.exec.as_ref()?.command.as_ref()?;
    let words: Vec<&str> = command.iter().map(String::as_str).collect();
    match words.as_slice() {
        [program, seconds] if is(program, &["sleep"]) => seconds_of(seconds),
        [shell, flag, script] if is(shell, &["sh", "bash", "ash", "dash"]) && is_command(flag) => {
            let script = script.trim().trim_end_matches(';').trim_end();
            let script = script.strip_prefix("exec ").unwrap_or(script).trim_start();
            match script.split_ascii_whitespace().collect::<Vec<_>>().as_slice() {
                [program, seconds] if is(program, &["sleep"]) => seconds_of(seconds),
                _ => None,
            }
        }
        _ => None,
    }
}

/// A program, in whatever directory.
fn is(program: &str, names: &[&str]) -> bool {
    names.contains(&program.rsplit('/').next().unwrap_or(program))
}

fn is_command(flag: &str) -> bool {
    ["-c", "-ec", "-ce", "-lc"].contains(&flag)
}

/// `10`, `10s`, `0.5`, `1m`
fn seconds_of(text: &str) -> Option<u64> {
    let (number, unit) = match text.bytes().last()? {
        b's' => (&text[..text.len() - 1], 1.0),
        b'm' => (&text[..text.len() - 1], 60.0),
        b'h' => (&text[..text.len() - 1], 3600.0),
        _ => (text, 1.0),
    };
    let plain = number.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    let seconds: f64 = if plain { number.parse().ok()? } else { return None };
    // A day is the longest that a setting may be.
    Some((seconds * unit).ceil().min(86_400.0) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slept(hook: Value) -> Option<u64> {
        sleeps(&serde_json::from_value(hook).expect("a hook"))
    }

    #[test]
    fn only_hooks_that_do_nothing_else_are_pure_sleeps() {
        let exec = |words: &[&str]| slept(json!({"exec": {"command": words}}));
        for (words, seconds) in [
            (&["sleep", "10"][..], 10),
            (&["/bin/sleep", "0.5s"], 1),
            (&["sh", "-c", "sleep 15"], 15),
            (&["/bin/sh", "-c", " exec sleep  1m; "], 60),
            (&["/bin/bash", "-ec", "sleep 5"], 5),
        ] {
            assert_eq!(exec(words), Some(seconds), "{words:?}");
        }
        for words in [
            &["sleep"][..],
            &["sleep", "infinity"],
            &["sh", "-c", "sleep 5 && curl localhost/stop"],
            &["sh", "-c", "sleep $DELAY"],
            &["sh", "-c", "nginx -s quit"],
            &["sh", "-c", "sleep 5; kill 1"],
            &["sleeper", "5"],
            &["python", "-c", "sleep 5"],
        ] {
            assert_eq!(exec(words), None, "{words:?}");
        }
        assert_eq!(slept(json!({"sleep": {"seconds": 7}})), Some(7));
        assert_eq!(slept(json!({"httpGet": {"port": 80}})), None);
    }
}
