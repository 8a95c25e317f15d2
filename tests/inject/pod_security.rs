//! The Pod Security Standards, as <https://kubernetes.io/docs/concepts/security/pod-security-standards/> has them:
//! what a pod has that `baseline` and `restricted` forbid. Written for these tests, of Linux pods.

use k8s_openapi::api::core::v1::{Capabilities, Container, Pod, SeccompProfile, Volume};

const BASELINE_CAPABILITIES: [&str; 13] = [
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];

fn containers(pod: &Pod) -> impl Iterator<Item = &Container> {
    let spec = pod.spec.as_ref().expect("a spec");
    spec.containers.iter().chain(spec.init_containers.iter().flatten())
}

/// What `baseline` forbids.
pub(crate) fn baseline(pod: &Pod) -> Vec<String> {
    let spec = pod.spec.as_ref().expect("a spec");
    let mut found = Vec::new();
    for (name, said) in
        [("hostNetwork", spec.host_network), ("hostPID", spec.host_pid), ("hostIPC", spec.host_ipc)]
    {
        if said == Some(true) {
            found.push(name.to_owned());
        }
    }
    for volume in spec.volumes.iter().flatten().filter(|volume| volume.host_path.is_some()) {
        found.push(format!("volume {}: hostPath", volume.name));
    }
    let unconfined = |profile: &Option<SeccompProfile>| {
        profile.as_ref().is_some_and(|p| p.type_ == "Unconfined")
    };
    if spec.security_context.as_ref().is_some_and(|context| unconfined(&context.seccomp_profile)) {
        found.push("pod: seccomp Unconfined".into());
    }
    for container in containers(pod) {
        let name = &container.name;
        if container.ports.iter().flatten().any(|port| port.host_port.unwrap_or(0) != 0) {
            found.push(format!("{name}: hostPort"));
        }
        let Some(context) = &container.security_context else { continue };
        if context.privileged == Some(true) {
            found.push(format!("{name}: privileged"));
        }
        if context.proc_mount.as_deref().is_some_and(|mount| mount != "Default") {
            found.push(format!("{name}: procMount"));
        }
        if unconfined(&context.seccomp_profile) {
            found.push(format!("{name}: seccomp Unconfined"));
        }
        for added in
            added(&context.capabilities).filter(|added| !BASELINE_CAPABILITIES.contains(added))
        {
            found.push(format!("{name}: capability {added}"));
        }
    }
    found
}

/// What `restricted` forbids, which is what `baseline` does and more.
pub(crate) fn restricted(pod: &Pod) -> Vec<String> {
    let spec = pod.spec.as_ref().expect("a spec");
    let mut found = baseline(pod);
    found.extend(
        spec.volumes
            .iter()
            .flatten()
            .filter(|volume| !is_allowed(volume))
            .map(|v| format!("volume {}: its kind", v.name)),
    );
    let of_pod = spec.security_context.as_ref();
    if of_pod.is_some_and(|context| context.run_as_user == Some(0)) {
        found.push("pod: runAsUser 0".into());
    }
    for container in containers(pod) {
        let name = &container.name;
        let context = container.security_context.clone().unwrap_or_default();
        if context.allow_privilege_escalation != Some(false) {
            found.push(format!("{name}: allowPrivilegeEscalation is not false"));
        }
        if context.run_as_non_root.or(of_pod.and_then(|pod| pod.run_as_non_root)) != Some(true) {
            found.push(format!("{name}: runAsNonRoot is not true"));
        }
        if context.run_as_user == Some(0) {
            found.push(format!("{name}: runAsUser 0"));
        }
        let profile = context
            .seccomp_profile
            .as_ref()
            .or(of_pod.and_then(|pod| pod.seccomp_profile.as_ref()));
        if !profile.is_some_and(|profile| {
            ["RuntimeDefault", "Localhost"].contains(&profile.type_.as_str())
        }) {
            found.push(format!("{name}: seccomp is neither RuntimeDefault nor Localhost"));
        }
        let dropped =
            context.capabilities.as_ref().and_then(|c| c.drop.clone()).unwrap_or_default();
        if !dropped.iter().any(|capability| capability == "ALL") {
            found.push(format!("{name}: does not drop ALL"));
        }
        for added in added(&context.capabilities).filter(|added| *added != "NET_BIND_SERVICE") {
            found.push(format!("{name}: adds {added}"));
        }
    }
    found
}

fn added(capabilities: &Option<Capabilities>) -> impl Iterator<Item = &str> {
    capabilities.iter().flat_map(|c| c.add.iter().flatten()).map(String::as_str)
}

fn is_allowed(volume: &Volume) -> bool {
    volume.config_map.is_some()
        || volume.csi.is_some()
        || volume.downward_api.is_some()
        || volume.empty_dir.is_some()
        || volume.ephemeral.is_some()
        || volume.persistent_volume_claim.is_some()
        || volume.projected.is_some()
        || volume.secret.is_some()
}
