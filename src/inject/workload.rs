//! Which workload a pod belongs to, as far as the pod says.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

/// A workload: the attribute that OpenTelemetry has for its kind, if any, and its name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Workload {
    pub(super) attribute: Option<&'static str>,
    pub(super) name: String,
}

/// Whether the pod is one of a Job, which ends.
pub(super) fn is_job(meta: &ObjectMeta) -> bool {
    let of_job = |label: &str| meta.labels.as_ref().is_some_and(|all| all.contains_key(label));
    owner(meta).is_some_and(|(kind, _)| kind == "Job")
        || of_job("batch.kubernetes.io/job-name")
        || of_job("job-name")
}

/// The workload of a pod. A ReplicaSet is its Deployment's, a Job with a CronJob's name its CronJob's.
pub(super) fn of(meta: &ObjectMeta) -> Workload {
    let named =
        |attribute: Option<&'static str>, name: &str| Workload { attribute, name: name.into() };
    let hash = meta.labels.as_ref().and_then(|labels| labels.get("pod-template-hash"));
    match owner(meta) {
        Some(("ReplicaSet", name)) => {
            let deployment = hash.and_then(|hash| name.strip_suffix(hash)?.strip_suffix('-'));
            match deployment {
                Some(deployment) => named(Some("k8s.deployment.name"), deployment),
                None => named(Some("k8s.replicaset.name"), name),
            }
        }
        Some(("StatefulSet", name)) => named(Some("k8s.statefulset.name"), name),
        Some(("DaemonSet", name)) => named(Some("k8s.daemonset.name"), name),
        Some(("Job", name)) => match scheduled(name) {
            Some(cron) => named(Some("k8s.cronjob.name"), cron),
            None => named(Some("k8s.job.name"), name),
        },
        Some((_, name)) => named(None, name),
        None => {
            let own = meta.name.as_deref().or(meta.generate_name.as_deref()).unwrap_or_default();
            named(None, own.trim_end_matches('-'))
        }
    }
}

fn owner(meta: &ObjectMeta) -> Option<(&str, &str)> {
    let owners = meta.owner_references.as_deref().unwrap_or_default();
    let controller = owners.iter().find(|owner| owner.controller == Some(true)).or(owners.first());
    controller.map(|owner| (owner.kind.as_str(), owner.name.as_str()))
}

/// A CronJob's Jobs are called after it and the minute they were due, which has had eight digits since 1989.
fn scheduled(job: &str) -> Option<&str> {
    let (cron, minute) = job.rsplit_once('-')?;
    let digits = minute.len() == 8 && minute.bytes().all(|b| b.is_ascii_digit());
    digits.then_some(cron)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meta(kind: &str, name: &str, labels: &[(&str, &str)]) -> ObjectMeta {
        serde_json::from_value(serde_json::json!({
            "name": "pod",
            "labels": labels.iter().copied().collect::<std::collections::BTreeMap<_, _>>(),
            "ownerReferences": [{"apiVersion": "v1", "kind": kind, "name": name, "uid": "1", "controller": true}],
        }))
        .expect("metadata")
    }

    #[test]
    fn pods_are_called_after_what_people_made() {
        for (kind, name, labels, expected) in [
            ("ReplicaSet", "shop-7d5b", &[("pod-template-hash", "7d5b")][..], "shop"),
            ("ReplicaSet", "shop", &[], "shop"),
            ("StatefulSet", "db", &[], "db"),
            ("Job", "backup-28654321", &[], "backup"),
            ("Job", "migrate-2024", &[], "migrate-2024"),
            ("Rollout", "canary", &[], "canary"),
        ] {
            assert_eq!(of(&meta(kind, name, labels)).name, expected, "{kind} {name}");
        }
        let alone = ObjectMeta { generate_name: Some("load-".into()), ..ObjectMeta::default() };
        assert_eq!(of(&alone).name, "load");
        assert!(is_job(&meta("Job", "a", &[])) && !is_job(&meta("StatefulSet", "a", &[])));
    }
}
