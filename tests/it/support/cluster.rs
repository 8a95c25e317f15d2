//! The real API server that `KUBECONFIG` names, if it does, and a pod of ours there.

use std::collections::BTreeMap;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use serde_json::json;
use tokio::runtime::Runtime;

use super::{SOON, until};
use crate::skip::say;

/// Deleted with its pod when it is dropped.
pub(crate) struct Cluster {
    runtime: Runtime,
    pods: Api<Pod>,
    pub(crate) namespace: String,
    pub(crate) pod: String,
}

impl Cluster {
    /// With a pod that runs and does nothing. Says, once, which API server the tests have.
    pub(crate) fn from_env() -> Option<Self> {
        static SAID: OnceLock<()> = OnceLock::new();
        let kubeconfig = std::env::var("KUBECONFIG").unwrap_or_default();
        SAID.get_or_init(|| {
            let which = match kubeconfig.as_str() {
                "" => "a stand-in: KUBECONFIG is not set",
                path => path,
            };
            say(&format!("the API server of these tests: {which}"));
        });
        if kubeconfig.is_empty() {
            return None;
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.expect("a runtime");
        let client = runtime.block_on(kube::Client::try_default()).expect("a cluster");
        let namespace = client.default_namespace().to_owned();
        let pods = Api::default_namespaced(client);
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let pod = format!("tidegate-test-{}-{number}", std::process::id());
        let cluster = Self { runtime, pods, namespace, pod };
        cluster.create();
        Some(cluster)
    }

    fn create(&self) {
        // It takes all its grace to end, as a pod does that has work.
        let pod = json!({
            "metadata": { "name": self.pod },
            "spec": {
                "automountServiceAccountToken": false,
                "containers": [{
                    "name": "pause", "image": "registry.k8s.io/pause:3.10",
                    "lifecycle": { "preStop": { "sleep": { "seconds": 600 } } },
                }],
                "terminationGracePeriodSeconds": 600,
            },
        });
        let pod = serde_json::from_value(pod).expect("a pod");
        self.runtime.block_on(self.pods.create(&PostParams::default(), &pod)).expect("created");
        // One that was never scheduled is gone as soon as it is deleted.
        until("the pod runs", 6 * SOON, || {
            let pod = self.runtime.block_on(self.pods.get(&self.pod)).expect("it is there");
            pod.status.is_some_and(|status| status.phase.as_deref() == Some("Running"))
        });
    }

    /// The pod's annotations are these.
    pub(crate) fn annotate(&self, annotations: &BTreeMap<String, String>) {
        let before = self.runtime.block_on(self.pods.get_metadata(&self.pod)).expect("it is there");
        let before = before.metadata.annotations.unwrap_or_default();
        // RFC 7386: what is null is taken away.
        let mut all: BTreeMap<_, _> = before.keys().map(|name| (name, None)).collect();
        all.extend(annotations.iter().map(|(name, text)| (name, Some(text))));
        let patch = Patch::Merge(json!({ "metadata": { "annotations": all } }));
        let how = PatchParams::default();
        let patched = self.pods.patch(&self.pod, &how, &patch);
        self.runtime.block_on(patched).expect("annotated");
    }

    /// The pod is being deleted, and has so many seconds.
    pub(crate) fn delete(&self, grace: u32) {
        let how = DeleteParams::default().grace_period(grace);
        self.runtime.block_on(self.pods.delete(&self.pod, &how)).expect("deleted");
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let at_once = DeleteParams::default().grace_period(0);
        let _ = self.runtime.block_on(self.pods.delete(&self.pod, &at_once)); // it may be gone
    }
}
