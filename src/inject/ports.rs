//! Which ports are gated.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::Container;

use super::annotations::{PortWord, Wishes};
use super::seen::Seen;
use crate::capture::{OWN_PORTS, PortSet, REDIRECT_PORT};

/// A port of the application that is gated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Gated {
    pub(super) port: u16,
    /// Its container and what it is called, if some container declares it.
    pub(super) container: Option<String>,
    pub(super) name: Option<String>,
    pub(super) host_port: bool,
    /// In `listen` mode, where the gateway listens for it.
    pub(super) listen: u16,
}

/// What is gated.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Ports {
    /// Those that are known one by one.
    pub(super) gated: Vec<Gated>,
    /// All of them, for rules of the kernel.
    pub(super) redirected: PortSet,
}

/// What of the names of ports means HTTP; the same words as in `appProtocol`.
const HTTP: [&str; 3] = ["http", "grpc", "h2c"];

/// What is carried on ports whose names begin so. The first that fits.
const PROTOCOLS: [(&str, &str); 13] = [
    ("https", "tcp"),
    ("grpcs", "tcp"),
    ("http", "http"),
    ("h2c", "http"),
    ("grpc", "http"),
    ("tcp", "tcp"),
    ("tls", "tcp"),
    ("redis", "tcp"),
    ("postgres", "tcp"),
    ("mysql", "tcp"),
    ("mongo", "tcp"),
    ("amqp", "tcp"),
    ("kafka", "tcp"),
];

/// In `listen` mode the gateway's port for an application's: easy to remember.
const LISTEN_OFFSET: u16 = 10_000;

impl Gated {
    /// What its name says it carries.
    pub(super) fn protocol(&self) -> Option<&'static str> {
        let name = self.name.as_deref()?;
        PROTOCOLS.iter().find(|(begin, _)| name.starts_with(begin)).map(|(_, protocol)| *protocol)
    }
}

impl Ports {
    pub(super) fn contains(&self, port: u16) -> bool {
        self.gated.iter().any(|gated| gated.port == port) || self.redirected.contains(port)
    }
}

/// Whether a port is one of the gateway's own.
pub(super) fn is_ours(port: u16) -> bool {
    port == REDIRECT_PORT || OWN_PORTS.contains(&port)
}

/// The ports that annotations ask for, else the defaults of the operator, else those whose names say HTTP.
pub(super) fn gated(
    seen: &Seen,
    wishes: &Wishes,
    defaults: &Wishes,
    warnings: &mut Vec<String>,
) -> Ports {
    let declared: Vec<Gated> = seen.applications().flat_map(tcp_ports).collect();
    let earlier: Vec<Gated> = seen.init().iter().flat_map(tcp_ports).collect();
    let mut gated = Vec::new();
    let mut intervals = Vec::new();
    match wishes.include.as_ref().or(defaults.include.as_ref()) {
        None => {
            let http = |port: &&Gated| {
                let name = port.name.as_deref().unwrap_or_default();
                HTTP.iter().any(|begin| name.starts_with(begin))
            };
            gated.extend(declared.iter().filter(http).cloned());
        }
        Some(words) => {
            for word in words {
                select(word, &declared, &mut gated, &mut intervals, warnings);
            }
        }
    }
    let mut without = PortSet::of([[REDIRECT_PORT; 2], [*OWN_PORTS.start(), *OWN_PORTS.end()]]);
    for word in wishes.exclude.as_ref().or(defaults.exclude.as_ref()).into_iter().flatten() {
        let mut excluded = Vec::new();
        let mut ranges = Vec::new();
        select(word, &declared, &mut excluded, &mut ranges, warnings);
        without = without.with(ranges).with(excluded.iter().map(|port| [port.port; 2]));
    }
    for port in &earlier {
        if gated.iter().any(|gated| gated.port == port.port) {
            warnings.push(format!(
                "port {} belongs to the init container {}, which starts before the gateway: it is not gated",
                port.port,
                port.container.as_deref().unwrap_or_default(),
            ));
        }
    }
    without = without.with(earlier.iter().map(|port| [port.port; 2]));

    let mut known = BTreeSet::new();
    gated.retain(|port| !without.contains(port.port) && known.insert(port.port));
    gated.sort_by_key(|port| port.port);
    let redirected =
        PortSet::of(intervals).with(gated.iter().map(|port| [port.port; 2])).minus(&without);
    place_listeners(&mut gated, &declared, &earlier);
    Ports { gated, redirected }
}

fn select(
    word: &PortWord,
    declared: &[Gated],
    gated: &mut Vec<Gated>,
    intervals: &mut Vec<[u16; 2]>,
    warnings: &mut Vec<String>,
) {
    match word {
        PortWord::All => {
            gated.extend(declared.iter().cloned());
            intervals.push([1, u16::MAX]);
        }
        PortWord::Range(first, last) => {
            let within = declared.iter().filter(|port| (*first..=*last).contains(&port.port));
            let before = gated.len();
            gated.extend(within.cloned());
            intervals.push([*first, *last]);
            if gated.len() == before && first == last {
                // Nobody has to declare what he listens on.
                gated.push(Gated {
                    port: *first,
                    container: None,
                    name: None,
                    host_port: false,
                    listen: 0,
                });
            }
        }
        PortWord::Name(name) => {
            let before = gated.len();
            gated.extend(declared.iter().filter(|port| port.name.as_ref() == Some(name)).cloned());
            if gated.len() == before {
                let names: Vec<_> =
                    declared.iter().filter_map(|port| port.name.as_deref()).collect();
                let there = match names.as_slice() {
                    [] => "none has a name".to_owned(),
                    names => format!("there are {}", names.join(", ")),
                };
                warnings.push(format!("no container has a TCP port called {name}: {there}"));
            }
        }
    }
}

/// A port that a container declares; without a protocol it is TCP.
fn tcp_ports(container: &Container) -> impl Iterator<Item = Gated> {
    let ports = container.ports.iter().flatten();
    let tcp = ports.filter(|port| port.protocol.as_deref().unwrap_or("TCP") == "TCP");
    tcp.filter_map(|port| {
        Some(Gated {
            port: u16::try_from(port.container_port).ok().filter(|port| *port != 0)?,
            container: Some(container.name.clone()),
            name: port.name.clone().filter(|name| !name.is_empty()),
            host_port: port.host_port.is_some_and(|port| port != 0),
            listen: 0,
        })
    })
}

/// Each its own, none that somebody else declares, and the same again whenever it is asked.
fn place_listeners(gated: &mut [Gated], declared: &[Gated], earlier: &[Gated]) {
    let mut taken: BTreeSet<u16> = declared.iter().chain(earlier).map(|port| port.port).collect();
    taken.extend(gated.iter().map(|port| port.port));
    for port in gated {
        let usual = port.port.checked_add(LISTEN_OFFSET);
        let others = 15_900..=u16::MAX;
        let free = usual.into_iter().chain(others).find(|at| !is_ours(*at) && !taken.contains(at));
        // A pod cannot declare so many ports: an object has at most 1.5 MiB.
        port.listen = free.unwrap_or_default();
        taken.insert(port.listen);
    }
}
