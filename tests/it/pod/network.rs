//! A cluster's network: a node with a bridge, and on it a client, a place for what is central (`control`:
//! collectors), and pods. Every one is a namespace of its own, and the bridge's end is the node's address,
//! from which the kubelet probes.
//!
//! ```text
//!   client 10.7.0.10 ──┐
//!  control 10.7.0.20 ──┼── node 10.7.0.1
//!      pod 10.7.0.100 ─┘   and the same in fd07::/64
//! ```

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use crate::support::namespace::Space;

/// The families of addresses that a pod has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Families {
    V4,
    V6,
    Dual,
}

/// Dropping it ends every namespace.
pub(crate) struct Network {
    pub(crate) node: Space,
    pub(crate) client: Space,
    pub(crate) control: Space,
    next: AtomicU16,
}

const NODE: u16 = 1;
const CLIENT: u16 = 10;
const CONTROL: u16 = 20;
const FIRST_POD: u16 = 100;

impl Families {
    /// The addresses of a host, in the order in which Kubernetes names them.
    fn addresses(self, host: u16) -> Vec<IpAddr> {
        let v4 = IpAddr::V4(Ipv4Addr::new(10, 7, 0, host as u8));
        let v6 = IpAddr::V6(Ipv6Addr::new(0xfd07, 0, 0, 0, 0, 0, 0, host));
        match self {
            Self::V4 => vec![v4],
            Self::V6 => vec![v6],
            Self::Dual => vec![v4, v6],
        }
    }

    /// What an application listens on that wants everybody.
    pub(crate) fn any(self) -> &'static str {
        match self {
            Self::V4 => "0.0.0.0",
            Self::V6 | Self::Dual => "[::]",
        }
    }

    /// Where the node is, as pods of these families see it.
    pub(crate) fn node(self) -> Vec<IpAddr> {
        self.addresses(NODE)
    }

    /// Where the collector is.
    pub(crate) fn control(self) -> IpAddr {
        self.addresses(CONTROL)[0]
    }
}

impl Network {
    pub(crate) fn new() -> Arc<Self> {
        let network = Self {
            node: Space::new(),
            client: Space::new(),
            control: Space::new(),
            next: AtomicU16::new(FIRST_POD),
        };
        network.node.succeed(&["ip", "link", "add", "cni0", "type", "bridge"]);
        address(&network.node, "cni0", Families::Dual, NODE);
        network.plug(&network.client, Families::Dual, CLIENT);
        network.plug(&network.control, Families::Dual, CONTROL);
        Arc::new(network)
    }

    /// A namespace for a pod, and its addresses.
    pub(crate) fn pod(&self, families: Families) -> (Space, Vec<IpAddr>) {
        let host = self.next.fetch_add(1, Ordering::Relaxed);
        let space = Space::new();
        let addresses = self.plug(&space, families, host);
        (space, addresses)
    }

    fn plug(&self, space: &Space, families: Families, host: u16) -> Vec<IpAddr> {
        let (port, node) = (format!("veth{host}"), self.node.path());
        let wire =
            ["ip", "link", "add", "eth0", "type", "veth", "peer", "name", &port, "netns", &node];
        space.succeed(&wire);
        self.node.succeed(&["ip", "link", "set", &port, "master", "cni0", "up"]);
        address(space, "eth0", families, host)
    }
}

fn address(space: &Space, device: &str, families: Families, host: u16) -> Vec<IpAddr> {
    let addresses = families.addresses(host);
    for address in &addresses {
        let prefix = if address.is_ipv4() { 24 } else { 64 };
        let add = format!("ip address add {address}/{prefix} dev {device}");
        let nodad = if address.is_ipv4() { "" } else { " nodad" };
        space.succeed(&["sh", "-c", &(add + nodad)]);
    }
    space.succeed(&["ip", "link", "set", device, "up"]);
    addresses
}
