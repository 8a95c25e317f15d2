//! Which pod this is, and whom to ask about it: what the environment says.

use std::ffi::OsString;
use std::path::PathBuf;

use crate::cluster::api::{ACCOUNT, Access};
use crate::cluster::pod::Config;

/// From `POD_NAME`, `POD_NAMESPACE` and `POD_UID` of the downward API, and `KUBECONFIG` or what every pod has.
pub(super) fn pod(environment: &[(OsString, OsString)]) -> Result<Config, String> {
    let variable = |name: &str| {
        let found = environment.iter().find(|(known, _)| known == name);
        found.and_then(|(_, text)| text.to_str()).filter(|text| !text.is_empty()).map(str::to_owned)
    };
    let name = variable("POD_NAME")
        .filter(|name| name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-.".contains(&b)))
        .ok_or("needs POD_NAME, from metadata.name of the downward API")?;
    let kubeconfig = variable("KUBECONFIG");
    // Several files may be named; the first is the one that counts here.
    let kubeconfig = kubeconfig.as_deref().and_then(|list| list.split(':').next());
    let host = variable("KUBERNETES_SERVICE_HOST");
    let access = match (kubeconfig, host) {
        (Some(path), _) => Access::Kubeconfig(PathBuf::from(path)),
        (None, Some(host)) => Access::InCluster {
            host,
            port: variable("KUBERNETES_SERVICE_PORT").unwrap_or_else(|| "443".into()),
            account: PathBuf::from(ACCOUNT),
        },
        (None, None) => {
            return Err(
                "finds no API server: neither KUBERNETES_SERVICE_HOST nor KUBECONFIG is set".into(),
            );
        }
    };
    Ok(Config { name, namespace: variable("POD_NAMESPACE"), uid: variable("POD_UID"), access })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(variables: &[(&str, &str)]) -> Result<Config, String> {
        let variables: Vec<_> = variables.iter().map(|(n, v)| (n.into(), v.into())).collect();
        pod(&variables)
    }

    #[test]
    fn a_pod_knows_itself() {
        let cluster =
            [("KUBERNETES_SERVICE_HOST", "10.0.0.1"), ("KUBERNETES_SERVICE_PORT", "6443")];
        told(&cluster).expect_err("no name");
        told(&[("POD_NAME", "a")]).expect_err("no server");
        told(&[("POD_NAME", "a&b"), cluster[0]]).expect_err("no name a pod can have");
        let found = told(&[("POD_NAME", "shop-1"), ("POD_UID", ""), cluster[0], cluster[1]]);
        let found = found.expect("all that is needed");
        assert_eq!((found.name.as_str(), found.namespace, found.uid), ("shop-1", None, None));
        let Access::InCluster { host, port, .. } = found.access else { panic!("in a cluster") };
        assert_eq!((host.as_str(), port.as_str()), ("10.0.0.1", "6443"));
        let by_hand = told(&[("POD_NAME", "a"), ("KUBECONFIG", "/k:/l"), cluster[0]]);
        assert_eq!(by_hand.expect("whole").access, Access::Kubeconfig("/k".into()));
    }
}
