//! Whole pods, in a cluster's network, as a kubelet plays them: the application is a server as people run
//! it and is told nothing, the gateway is a container like any other, and the client is somewhere else.
//!
//! A pod is described by Kubernetes' own types ([`k8s_openapi`]): [`kubelet::LivePod::start`] takes a
//! `Pod`, whether it was written by hand ([`specs`]) or made by the injector. Its containers run as their
//! own users, with the capabilities, seccomp profile, read-only root, volumes, environment, probes and hooks
//! that it says, by `crun`.

mod application; // the rig's own applications, in a container
mod balancer; // kube-proxy
mod container; // one container, by crun
mod image; // what of this machine a container sees
pub(crate) mod kubelet; // starts, probes, ends
pub(crate) mod network; // client, pods, control, node
mod probe; // probes and hooks
mod seccomp; // what may not be called
pub(crate) mod specs; // pods by hand, and in which cases
pub(crate) mod surroundings; // volumes and the downward API

mod rig; // the rig itself, and what a gateway may do in a pod

mod cpython; // T44: CPython's tests of the network, captured
mod doors; // A22: what can be reached, and that it changes nothing
mod injected; // what the injector makes of an example, as it says
mod lifecycle; // T12, T16: other ends than a pod's ordinary one
mod neighbours; // who dials inside the pod
mod probes; // green under load, red when the application dies
mod restarts; // T14: a drain that came to nothing
mod rolling; // P6: pods are replaced and nobody notices
mod servers; // nginx, PostgreSQL and grpcio, limited from elsewhere
mod settings; // edited while the pod runs
mod table; // T36, T37: loops
mod told; // P9: who the client is

use crate::support::{namespace, process};

/// Why pods cannot be played here, if so.
pub(crate) fn missing() -> Option<&'static str> {
    let lacking = !process::installed("crun");
    namespace::missing().or(lacking.then_some("crun is not installed"))
}
