//! `listen`: which names of ports move to the gateway, so that Services that go by a name come to it.
//!
//! ```text
//! targetPort: http ──→ the first container that has a TCP port called http ──→ else, from 1.33 on, the first init
//!                      container that is kept running and has one             (Kubernetes' FindPort)
//! ```
//!
//! Always true: no two names of the sidecar are the same; a name that led to a gated port leads to the gateway's port
//! for it, and to nothing else, or the pod is refused, or it is said that it does not; where other names lead stays.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use k8s_openapi::api::core::v1::Container;

use super::METRICS_PORT_NAME;
use super::ports::{Declared, Gated, Ports, tcp_ports};
use super::seen::{Seen, is_of_mesh};

/// The sidecar's ports. Nobody needs so many, and everybody else's pods wait meanwhile.
const MOST_PORTS: usize = 512;

/// What becomes of the names of ports.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Names {
    /// The sidecar's ports: what each is called, and its number.
    pub(super) sidecar: Vec<(String, u16)>,
    /// By the application's container: old and new.
    pub(super) renamed: BTreeMap<String, BTreeMap<String, String>>,
    /// An init container that Services would find before a sidecar of the same kind, for people.
    pub(super) shadow: Option<String>,
}

impl Names {
    /// Whether Services have to find the sidecar by a name.
    pub(super) fn any_moved(&self) -> bool {
        !self.renamed.is_empty()
    }
}

/// Move the names of gated ports. The error says why Services would not find the gateway.
pub(super) fn moved(
    seen: &Seen,
    ports: &Ports,
    warnings: &mut Vec<String>,
) -> Result<Names, String> {
    let declared: Vec<_> = seen.spec.containers.iter().flat_map(tcp_ports).collect();
    let mut called: HashMap<&str, Vec<&Declared<'_>>> = HashMap::new();
    for port in &declared {
        called.entry(port.name.unwrap_or_default()).or_default().push(port);
    }
    let mut names = Names::default();
    let mut taken = Taken::by(seen);
    let mut movers = BTreeSet::new();
    for port in &ports.gated {
        let mut own = Vec::new();
        for name in &port.names {
            match elsewhere(name, port, &called[name.as_str()])? {
                Some(why) => warnings.push(why),
                None => own.push(name.as_str()),
            }
        }
        beside(port, &own, warnings);
        match own.as_slice() {
            [] => names.sidecar.push((taken.free(&format!("tg-{}", port.port)), port.listen)),
            own => names.sidecar.extend(own.iter().map(|name| ((*name).to_owned(), port.listen))),
        }
        movers.extend(own);
        if names.sidecar.len() > MOST_PORTS {
            return Err(format!(
                "capture `listen` gives the sidecar a port for each name of a gated port, {MOST_PORTS} at most: gate fewer"
            ));
        }
    }
    // Also where it is a port that is not gated: what was found second must not be found first now.
    for port in declared.iter().filter(|port| !is_of_mesh(port.container)) {
        let Some(name) = port.name.filter(|name| movers.contains(name)) else { continue };
        let new = taken.free(&format!("app-{}", port.port));
        names.renamed.entry(port.container.to_owned()).or_default().insert(name.to_owned(), new);
    }
    let kept_running =
        |container: &&Container| container.restart_policy.as_deref() == Some("Always");
    let mut earlier = seen.init().iter().filter(kept_running).flat_map(tcp_ports);
    let shadow = earlier.find(|port| port.name.is_some_and(|name| movers.contains(name)));
    names.shadow = shadow.map(|port| format!("the init container {}", port.container));
    Ok(names)
}

/// Why a name of a gated port stays where it is, if it does. The error: it cannot stay, and cannot move.
/// `called`: every port that has the name.
fn elsewhere(name: &str, port: &Gated, called: &[&Declared<'_>]) -> Result<Option<String>, String> {
    let number = port.port;
    if name == METRICS_PORT_NAME {
        return Ok(Some(format!(
            "port {number}: its name {name} is the gateway's for its own metrics, so it does not move: give it another"
        )));
    }
    let mut called = called.iter();
    let first = called.next().expect("it is a container that calls it so");
    if first.port != number || is_of_mesh(first.container) {
        return Ok(Some(format!(
            "port {number}: its name {name} leads to port {} of the container {}: give it a name of its own",
            first.port, first.container
        )));
    }
    match called.find(|other| is_of_mesh(other.container)) {
        None => Ok(None),
        Some(other) => Err(format!(
            "capture `listen` moves the name {name} of port {number} to the gateway, and Services would find port {} of \
             the container {}, which has the same name: give the application's another",
            other.port, other.container
        )),
    }
}

/// What reaches the application without the gateway. `own`: the names that lead to it.
fn beside(port: &Gated, own: &[&str], warnings: &mut Vec<String>) {
    let Gated { port: number, listen, .. } = port;
    if own.is_empty() {
        warnings.push(format!(
            "port {number} has no name that could move to the gateway: give it one, or have Services say \
             `targetPort: {listen}`, and NetworkPolicies allow {listen}"
        ));
    } else {
        let said: Vec<_> = own.iter().map(|name| format!("`targetPort: {name}`")).collect();
        warnings.push(format!(
            "port {number}: connections come through the gateway, at {listen}, which NetworkPolicies have to allow, \
             where a Service says {}; with `targetPort: {number}`, or to the pod's address, they pass beside it",
            said.join(" or ")
        ));
    }
    if port.host_port {
        warnings.push(format!("port {number} has a hostPort, which leads past the gateway"));
    }
}

/// What nothing new may be called.
struct Taken {
    names: BTreeSet<String>,
    /// By the usual name, the number that was looked at last: there are as many ports as a tenant likes.
    last: HashMap<String, usize>,
}

impl Taken {
    fn by(seen: &Seen) -> Self {
        let ports = seen.all().flat_map(|container| container.ports.iter().flatten());
        let names = ports.filter_map(|port| port.name.clone());
        let names = names.chain([METRICS_PORT_NAME.to_owned()]).collect();
        Self { names, last: HashMap::new() }
    }

    /// This name, or the first of its kind that is nobody's; from now on it is somebody's.
    fn free(&mut self, usual: &str) -> String {
        let last = self.last.entry(usual.to_owned()).or_default();
        loop {
            *last += 1;
            let name = if *last == 1 { usual.to_owned() } else { format!("{usual}-{last}") };
            if self.names.insert(name.clone()) {
                return name;
            }
        }
    }
}
