//! Pods that cannot have a gateway, and why.

use k8s_openapi::api::core::v1::{Container, NodeSelectorTerm};

use super::operator::Operator;
use super::ports::is_ours;
use super::seen::Seen;

/// Why a pod cannot have a gateway, whatever its annotations say, and what to do about it.
pub(super) fn why(seen: &Seen, operator: &Operator) -> Option<String> {
    if let Some(source) = ["kubernetes.io/config.mirror", "kubernetes.io/config.source"]
        .into_iter()
        .find(|name| seen.annotation(name).is_some_and(|value| value != "api"))
    {
        return Some(format!(
            "it is a static pod (annotation {source}): its kubelet has started it already, nobody can add to it"
        ));
    }
    if seen.spec.containers.is_empty() {
        return Some("it has no containers".into());
    }
    if seen.spec.host_network == Some(true) {
        return Some(
            "it uses the host's network (hostNetwork), where the gateway would meet the whole machine's traffic: \
             run the application in a network of its own, or `tidegate run --listen` by hand"
                .into(),
        );
    }
    if is_windows(seen) {
        return Some("it runs on Windows, and the gateway is built for Linux".into());
    }
    if let Some(container) = operator.uid.and_then(|uid| same_user(seen, uid)) {
        return Some(format!(
            "{container} runs as user {}, which is the gateway's: it could take over its control socket; give it another runAsUser",
            operator.uid.unwrap_or_default()
        ));
    }
    seen.all().find_map(|container| {
        let mut ports = container.ports.iter().flatten();
        let tcp = |protocol: &Option<String>| protocol.as_deref().unwrap_or("TCP") == "TCP";
        let taken = ports.find(|port| {
            tcp(&port.protocol) && u16::try_from(port.container_port).is_ok_and(is_ours)
        })?;
        Some(format!(
            "the container {} has the port {}, which is one of the gateway's (15801, 15819 to 15822): let it listen elsewhere",
            container.name, taken.container_port
        ))
    })
}

const OS: &str = "kubernetes.io/os";

fn is_windows(seen: &Seen) -> bool {
    let selected = seen.spec.node_selector.as_ref();
    let options =
        seen.spec.security_context.as_ref().map(|context| context.windows_options.is_some());
    seen.spec.os.as_ref().is_some_and(|os| os.name == "windows")
        || selected.and_then(|all| all.get(OS)).is_some_and(|os| os == "windows")
        || options == Some(true)
        || wants_windows(seen).unwrap_or(false)
}

/// Whether no other node is good enough for it. Of the terms one is enough, so all have to say so.
fn wants_windows(seen: &Seen) -> Option<bool> {
    let nodes = seen.spec.affinity.as_ref()?.node_affinity.as_ref()?;
    let required = nodes.required_during_scheduling_ignored_during_execution.as_ref()?;
    let says = |term: &NodeSelectorTerm| {
        term.match_expressions.iter().flatten().any(|one| {
            let only = one.values.iter().flatten().all(|os| os == "windows");
            one.key == OS && one.operator == "In" && only
        })
    };
    let terms = &required.node_selector_terms;
    Some(!terms.is_empty() && terms.iter().all(says))
}

fn same_user(seen: &Seen, uid: u32) -> Option<String> {
    let of_pod = seen.spec.security_context.as_ref().and_then(|context| context.run_as_user);
    let user = |container: &Container| {
        container.security_context.as_ref().and_then(|context| context.run_as_user).or(of_pod)
    };
    let same = seen.all().find(|container| user(container) == Some(i64::from(uid)))?;
    Some(format!("the container {}", same.name))
}

/// What an application may do that makes the gateway no boundary for it; for a warning.
pub(super) fn powers(container: &Container) -> Option<String> {
    let context = container.security_context.as_ref()?;
    if context.privileged == Some(true) {
        return Some("is privileged".into());
    }
    let added = context.capabilities.as_ref()?.add.as_ref()?;
    let found = added.iter().find(|name| {
        let name = name.trim_start_matches("CAP_");
        ["NET_ADMIN", "NET_RAW", "SYS_ADMIN", "ALL"].contains(&name)
    })?;
    Some(format!("has the capability {found}"))
}
