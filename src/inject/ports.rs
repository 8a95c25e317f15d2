//! Which ports are gated.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::ops::RangeInclusive;

use k8s_openapi::api::core::v1::Container;

use super::annotations::{PortWord, Wishes};
use super::seen::Seen;
use crate::capture::{OWN_PORTS, PortSet, REDIRECT_PORT};

/// A port of the application that is gated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Gated {
    pub(super) port: u16,
    /// What containers call it, each name once, in their order; none if nobody has a name for it.
    pub(super) names: Vec<String>,
    pub(super) host_port: bool,
    /// In `listen` mode, where the gateway listens for it.
    pub(super) listen: u16,
}

/// A TCP port that a container declares.
#[derive(Clone, Copy, Debug)]
pub(super) struct Declared<'a> {
    pub(super) port: u16,
    pub(super) container: &'a str,
    pub(super) name: Option<&'a str>,
    host_port: bool,
}

/// What is gated.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Ports {
    /// Those that are known one by one, in rising order.
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

/// Where it is taken: never among the ports of Istio's Envoy, which declares few of them (15000, its admin's, is
/// 5000 of the application).
const LISTEN_OTHERWISE: RangeInclusive<u16> = 15_900..=u16::MAX;
const ENVOYS: RangeInclusive<u16> = 15_000..=15_099;

/// Names that a warning lists.
const SHOWN: usize = 8;

impl Gated {
    /// `declared`: what containers say of this port.
    fn of(port: u16, declared: &[&Declared<'_>]) -> Self {
        let mut known = HashSet::new();
        let names = declared.iter().filter_map(|declared| declared.name);
        let names = names.filter(|name| known.insert(*name)).map(str::to_owned).collect();
        let host_port = declared.iter().any(|declared| declared.host_port);
        Self { port, names, host_port, listen: 0 }
    }

    /// What its names say it carries.
    pub(super) fn protocol(&self) -> Option<&'static str> {
        self.names.iter().find_map(|name| {
            let known = PROTOCOLS.iter().find(|(begin, _)| name.starts_with(begin));
            known.map(|(_, protocol)| *protocol)
        })
    }
}

impl Ports {
    pub(super) fn contains(&self, port: u16) -> bool {
        self.gated.binary_search_by_key(&port, |gated| gated.port).is_ok()
            || self.redirected.contains(port)
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
    let declared: Vec<Declared<'_>> = seen.applications().flat_map(tcp_ports).collect();
    let earlier: Vec<Declared<'_>> = seen.init().iter().flat_map(tcp_ports).collect();
    let mut numbers = BTreeSet::new();
    let mut intervals = Vec::new();
    match wishes.include.as_ref().or(defaults.include.as_ref()) {
        None => {
            let http = |port: &&Declared<'_>| {
                HTTP.iter().any(|begin| port.name.unwrap_or_default().starts_with(begin))
            };
            numbers.extend(declared.iter().filter(http).map(|port| port.port));
        }
        Some(words) => {
            for word in words {
                select(word, &declared, &mut numbers, &mut intervals, warnings);
            }
        }
    }
    let mut without = PortSet::of([[REDIRECT_PORT; 2], [*OWN_PORTS.start(), *OWN_PORTS.end()]]);
    for word in wishes.exclude.as_ref().or(defaults.exclude.as_ref()).into_iter().flatten() {
        let mut excluded = BTreeSet::new();
        let mut ranges = Vec::new();
        select(word, &declared, &mut excluded, &mut ranges, warnings);
        without = without.with(ranges).with(excluded.iter().map(|port| [*port; 2]));
    }
    for port in earlier.iter().filter(|port| numbers.contains(&port.port)) {
        warnings.push(format!(
            "port {} belongs to the init container {}, which starts before the gateway: it is not gated",
            port.port, port.container,
        ));
    }
    without = without.with(earlier.iter().map(|port| [port.port; 2]));
    numbers.retain(|port| !without.contains(*port));

    let mut said: HashMap<u16, Vec<&Declared<'_>>> = HashMap::new();
    for port in &declared {
        said.entry(port.port).or_default().push(port);
    }
    let of = |port: &u16| Gated::of(*port, said.get(port).map_or(&[], Vec::as_slice));
    let mut gated: Vec<Gated> = numbers.iter().map(of).collect();
    let redirected =
        PortSet::of(intervals).with(numbers.iter().map(|port| [*port; 2])).minus(&without);
    place_listeners(&mut gated, seen.all().flat_map(tcp_ports));
    Ports { gated, redirected }
}

fn select(
    word: &PortWord,
    declared: &[Declared<'_>],
    numbers: &mut BTreeSet<u16>,
    intervals: &mut Vec<[u16; 2]>,
    warnings: &mut Vec<String>,
) {
    match word {
        PortWord::All => {
            numbers.extend(declared.iter().map(|port| port.port));
            intervals.push([1, u16::MAX]);
        }
        PortWord::Range(first, last) => {
            let declared = declared.iter().map(|port| port.port);
            numbers.extend(declared.filter(|port| (*first..=*last).contains(port)));
            intervals.push([*first, *last]);
            if first == last {
                // Nobody has to declare what he listens on.
                numbers.insert(*first);
            }
        }
        PortWord::Name(name) => {
            let called: Vec<_> =
                declared.iter().filter(|port| port.name == Some(name.as_str())).collect();
            if called.is_empty() {
                let names: Vec<_> = declared.iter().filter_map(|port| port.name).collect();
                let there = match names.as_slice() {
                    [] => "none has a name".to_owned(),
                    names if names.len() > SHOWN => {
                        format!(
                            "there are {} and {} more",
                            names[..SHOWN].join(", "),
                            names.len() - SHOWN
                        )
                    }
                    names => format!("there are {}", names.join(", ")),
                };
                warnings.push(format!("no container has a TCP port called {name}: {there}"));
            }
            numbers.extend(called.iter().map(|port| port.port));
        }
    }
}

/// The ports that a container declares; without a protocol they are TCP.
pub(super) fn tcp_ports(container: &Container) -> impl Iterator<Item = Declared<'_>> {
    let ports = container.ports.iter().flatten();
    let tcp = ports.filter(|port| port.protocol.as_deref().unwrap_or("TCP") == "TCP");
    tcp.filter_map(|port| {
        Some(Declared {
            port: u16::try_from(port.container_port).ok().filter(|port| *port != 0)?,
            container: &container.name,
            name: port.name.as_deref().filter(|name| !name.is_empty()),
            host_port: port.host_port.is_some_and(|port| port != 0),
        })
    })
}

/// Each its own, none that somebody else declares, and the same again whenever it is asked.
fn place_listeners<'a>(gated: &mut [Gated], declared: impl Iterator<Item = Declared<'a>>) {
    let mut taken: BTreeSet<u16> = declared.map(|port| port.port).collect();
    taken.extend(gated.iter().map(|port| port.port).chain(ENVOYS));
    // What has been taken stays taken: nobody has to begin anew.
    let mut others = LISTEN_OTHERWISE;
    for port in gated {
        let is_free = |at: &u16| !is_ours(*at) && !taken.contains(at);
        let usual = port.port.checked_add(LISTEN_OFFSET).filter(is_free);
        let free = usual.or_else(|| others.find(is_free));
        // A pod cannot declare so many ports: an object has at most 1.5 MiB.
        port.listen = free.unwrap_or_default();
        taken.insert(port.listen);
    }
}
