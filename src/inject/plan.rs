//! What is decided for one pod: how traffic comes to the gateway, which ports are gated, what the sidecar is
//! told. How that looks as containers is `build`'s business.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Probe};
use serde_json::Value;

use super::annotations::{self, Wishes};
use super::names::{self, Names};
use super::operator::{Capture, Operator, Sidecar, Terms};
use super::original::Replaced;
use super::ports::{self, Ports};
use super::ranges::LimitRange;
use super::rewrite::{self, PROBES};
use super::seen::{Seen, is_of_mesh};
use super::workload::{self, Workload};
use super::{Context, PodSecurity, refuse, resources};

/// How traffic comes to the gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    /// The kernel redirects it.
    Redirect,
    /// The gateway has ports of its own.
    Listen,
}

/// What is decided for one pod.
#[derive(Clone, Debug)]
pub(super) struct Plan<'a> {
    pub(super) terms: &'a Terms<'a>,
    pub(super) mode: Mode,
    /// Whether the sidecar is an init container that is kept running.
    pub(super) native: bool,
    pub(super) ports: Ports,
    /// Seconds the pod has for its end.
    pub(super) grace: u64,
    /// Settings of the pod template, without their prefix.
    pub(super) settings: BTreeMap<String, String>,
    /// All annotations of ours in the pod template, right or wrong, without their prefix.
    pub(super) found: BTreeMap<String, String>,
    pub(super) resources: Value,
    pub(super) workload: Workload,
    /// By `container/kind`, the contract of `--app-probes`.
    pub(super) app_probes: BTreeMap<String, Value>,
    /// Names of ports that move to the gateway.
    pub(super) names: Names,
    pub(super) warnings: Vec<String>,
}

/// What a pod comes to.
pub(super) enum Verdict<'a> {
    Inject(Box<Plan<'a>>),
    /// There is nothing to gate.
    Ungated {
        why: String,
        warnings: Vec<String>,
    },
    Refuse(String),
}

/// The API's own default of `terminationGracePeriodSeconds`.
const GRACE: i64 = 30;

/// Decide.
pub(super) fn decide<'a>(
    seen: &Seen,
    kept: &BTreeMap<String, Replaced>,
    context: &Context,
    terms: &'a Terms<'a>,
) -> Verdict<'a> {
    if let Some(why) = refuse::why(seen, terms.operator) {
        return Verdict::Refuse(why);
    }
    let said = seen.meta.annotations.clone().unwrap_or_default();
    let (wishes, mistakes) = annotations::judge(&said, terms, resources::guaranteed(seen));
    let defaults = annotations::defaults(terms);
    let mut warnings: Vec<_> = mistakes.iter().map(ToString::to_string).collect();

    let mode = match mode(seen, &wishes, context, terms) {
        Ok(mode) => mode,
        Err(why) => return Verdict::Refuse(why),
    };
    let mut ports = ports::gated(seen, &wishes, &defaults, &mut warnings);
    if mode == Mode::Listen {
        ports.redirected = crate::capture::PortSet::of(ports.gated.iter().map(|p| [p.port; 2]));
    }
    for port in of_other_ports(&wishes.settings, &ports) {
        warnings.push(format!(
            "annotation {}{port} is about a port that is not gated",
            annotations::PREFIX
        ));
    }
    udp(seen, &mut warnings);
    if ports.redirected.is_empty() {
        let why = "no port is gated: name a container port `http…` or `grpc…`, or set \
                   tidegate.dev/include-inbound-ports";
        return Verdict::Ungated { why: why.into(), warnings };
    }

    let names = match mode {
        Mode::Redirect => Names::default(),
        Mode::Listen => match names::moved(seen, &ports, &mut warnings) {
            Ok(names) => names,
            Err(why) => return Verdict::Refuse(why),
        },
    };
    let native = native(terms.operator, &names, &mut warnings);
    if (context.job || workload::is_job(&seen.meta)) && !native {
        let shadowed = names.shadow.as_ref().map(|found| {
            format!("{found} has a port of the same name, which Services would find first: give it another")
        });
        let why = shadowed.unwrap_or_else(|| {
            "that takes native sidecars, Kubernetes 1.29 (1.33 for named ports in `listen` mode)".into()
        });
        return Verdict::Refuse(format!(
            "it is a Job's, and its sidecar would be an ordinary container, which keeps the Job from ending: {why}"
        ));
    }
    let ranges = terms.limit_ranges.iter().map(LimitRange::item);
    let ranges: Vec<_> = ranges.chain(context.limit_ranges.iter().cloned()).collect();
    let resources = match resources::of(seen, &wishes, &defaults, terms.operator, &ranges) {
        Ok(resources) => resources,
        Err(why) => return Verdict::Refuse(why),
    };
    let app_probes = app_probes(seen, kept, &ports);
    if mode == Mode::Redirect {
        hooks(seen, &ports, &mut warnings);
    }
    let mut workload = workload::of(&seen.meta);
    if let Some(name) = &context.workload {
        workload.name.clone_from(name);
    }
    let grace = seen.spec.termination_grace_period_seconds.unwrap_or(GRACE).max(1).unsigned_abs();
    for container in seen.applications() {
        if let Some(power) = refuse::powers(container) {
            warnings.push(format!(
                "the container {} {power}: it can go round the gateway, which protects it but does not confine it",
                container.name
            ));
        }
    }
    Verdict::Inject(Box::new(Plan {
        terms,
        mode,
        native,
        ports,
        grace,
        settings: wishes.settings,
        found: wishes.found,
        resources,
        workload,
        app_probes,
        names,
        warnings,
    }))
}

/// Whether the sidecar is an init container that is kept running.
fn native(operator: &Operator, names: &Names, warnings: &mut Vec<String>) -> bool {
    let allowed = operator.native(names.any_moved());
    let why = match &names.shadow {
        Some(found) if allowed => format!(
            "{found} has a port of the same name, which Services would find before a native sidecar's"
        ),
        _ if operator.sidecar == Sidecar::Native && !allowed => format!(
            "Services find a native sidecar's ports by their names from Kubernetes 1.33 on, and the operator's \
             `kubernetes` says {}",
            operator.kubernetes
        ),
        _ => return allowed,
    };
    warnings.push(format!("{why}: the sidecar is an ordinary container"));
    false
}

fn mode(
    seen: &Seen,
    wishes: &Wishes,
    context: &Context,
    terms: &Terms<'_>,
) -> Result<Mode, String> {
    let mesh = seen.mesh().or_else(|| context.mesh.then(|| "its namespace is in one".to_owned()));
    let level = match context.pod_security {
        PodSecurity::Privileged => None,
        PodSecurity::Baseline => Some("baseline"),
        PodSecurity::Restricted => Some("restricted"),
    };
    match (wishes.capture.unwrap_or(terms.capture), mesh, level) {
        (Capture::Listen, ..) => Ok(Mode::Listen),
        // Who gives each namespace users of its own admits no root either.
        (Capture::Auto, ..) if terms.operator.uid.is_none() => Ok(Mode::Listen),
        (Capture::Auto, None, None) | (Capture::Redirect, None, None) => Ok(Mode::Redirect),
        (Capture::Auto, ..) => Ok(Mode::Listen),
        (Capture::Redirect, Some(mesh), _) => Err(format!(
            "capture `redirect` does not work in a mesh ({mesh}): the mesh's proxy dials the application from inside the \
             pod, where the rules see nothing; use `listen` or `auto`"
        )),
        (Capture::Redirect, None, Some(level)) => Err(format!(
            "capture `redirect` needs NET_ADMIN in an init container, and Pod Security `{level}` forbids it in this \
             namespace; use `listen` or `auto`"
        )),
    }
}

/// Settings for single ports that are not gated.
fn of_other_ports<'a>(
    settings: &'a BTreeMap<String, String>,
    ports: &'a Ports,
) -> impl Iterator<Item = &'a String> {
    settings.keys().filter(|name| {
        let port = name.split_once('.').and_then(|(_, port)| port.parse().ok());
        port.is_some_and(|port| !ports.contains(port))
    })
}

fn udp(seen: &Seen, warnings: &mut Vec<String>) {
    for container in seen.applications() {
        let ports = container.ports.iter().flatten();
        let udp: Vec<_> = ports
            .filter(|port| port.protocol.as_deref().is_some_and(|protocol| protocol != "TCP"))
            .map(|port| {
                format!("{}/{}", port.container_port, port.protocol.as_deref().unwrap_or(""))
            })
            .collect();
        if !udp.is_empty() {
            let name = &container.name;
            warnings.push(format!(
                "the container {name} has {}: only TCP is gated, so HTTP/3 and the like pass beside the gateway",
                udp.join(", ")
            ));
        }
    }
}

/// Hooks that the kubelet calls at a port where it is captured like everybody else.
fn hooks(seen: &Seen, ports: &Ports, warnings: &mut Vec<String>) {
    for container in seen.applications() {
        let Some(lifecycle) = &container.lifecycle else { continue };
        for (kind, hook) in [("preStop", &lifecycle.pre_stop), ("postStart", &lifecycle.post_start)]
        {
            let port = hook.as_ref().and_then(|hook| rewrite::called(hook, container, ports));
            if let Some(port) = port {
                warnings.push(format!(
                    "the {kind} hook of {} calls port {port}, where it comes to the gate: when that is full it waits or is \
                     refused, as clients are; call a port that is not gated, or `exec` something",
                    container.name
                ));
            }
        }
    }
}

/// Probes that are asked through the gateway's own port.
fn app_probes(
    seen: &Seen,
    kept: &BTreeMap<String, Replaced>,
    ports: &Ports,
) -> BTreeMap<String, Value> {
    let mut told = BTreeMap::new();
    for container in seen.applications() {
        for (member, kind) in PROBES {
            let now = probe_of(container, member);
            let kept = kept.get(&container.name).and_then(|kept| kept.probes.get(member));
            let kept = kept.and_then(|asked| serde_json::from_value::<Probe>(asked.clone()).ok());
            let kept = kept.map(|asked| Probe {
                timeout_seconds: now.and_then(|now| now.timeout_seconds),
                ..asked
            });
            let probe = kept.as_ref().or(now);
            if let Some(said) = probe.and_then(|probe| rewrite::told(probe, container, ports)) {
                told.insert(format!("{}/{kind}", container.name), said);
            }
        }
    }
    told
}

fn probe_of<'a>(container: &'a Container, member: &str) -> Option<&'a Probe> {
    match member {
        "livenessProbe" => container.liveness_probe.as_ref(),
        "readinessProbe" => container.readiness_probe.as_ref(),
        _ => container.startup_probe.as_ref(),
    }
}

/// The container that `kubectl exec` means.
pub(super) fn default_container(seen: &Seen) -> Option<&str> {
    let mut names = seen.spec.containers.iter().map(|container| container.name.as_str());
    names.clone().find(|name| !is_of_mesh(name)).or_else(|| names.next())
}
