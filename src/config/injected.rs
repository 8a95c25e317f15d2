//! What the injector writes down about the pod: not settings, and nothing a tenant could say.
//!
//! Always true: in a pod, what cannot be understood here is left out and told, and never keeps the gateway
//! from starting: the pod's application would be behind a closed door.

use std::net::{IpAddr, Ipv4Addr};

use crate::probes::Plan;

use super::Mistakes;
use super::words;

/// What the injector knows of the pod.
#[derive(Clone, Debug)]
pub(super) struct Injected {
    /// This is one.
    pub(super) is_one: bool,
    pub(super) app_probes: Plan,
    pub(super) drain_partial: bool,
}

impl Injected {
    pub(super) fn new(
        environment: words::Injected,
        flags: words::Injected,
        mistakes: &mut Mistakes,
    ) -> Self {
        let is_one = environment.pod.is_some();
        // Of both families the kubelet takes the first.
        let addresses = environment.pod.unwrap_or_default();
        let first = addresses.split(',').find_map(|ip| ip.trim().parse().ok());
        let ip = first.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
        let said = flags.app_probes.or(environment.app_probes);
        let app_probes = match &said {
            None => Plan { ip, ..Plan::default() },
            Some((text, _)) => Plan::parse(ip, text),
        };
        if let Some((_, origin)) = said.filter(|_| !is_one) {
            for flaw in app_probes.flaws() {
                mistakes.add("app-probes", None, &origin, flaw);
            }
        }
        let drain_partial = environment.drain_partial || flags.drain_partial;
        Self { is_one, app_probes, drain_partial }
    }
}
