//! What of a pod all its containers have in common: its network, its volumes, what the downward API says.

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use k8s_openapi::api::core::v1::{Container, ObjectFieldSelector, Pod, PodSpec, SeccompProfile};
use serde_json::Value;

use super::container::expand;
use super::image::bind;
use crate::support::kubelet;

/// ConfigMaps of the namespace: each name, and its files.
pub(crate) type ConfigMaps = BTreeMap<String, BTreeMap<String, String>>;

pub(super) struct Surroundings {
    pub(super) pod: Pod,
    pub(super) addresses: Vec<IpAddr>,
    node: Vec<IpAddr>,
    /// Of the pod's network.
    network: String,
    volumes: tempfile::TempDir,
    /// As they are now: those that the pod was made with may have been edited.
    annotations: Mutex<BTreeMap<String, String>>,
}

impl Surroundings {
    pub(super) fn new(
        pod: Pod,
        network: String,
        addresses: Vec<IpAddr>,
        node: Vec<IpAddr>,
        config_maps: &ConfigMaps,
    ) -> Self {
        let volumes = tempfile::tempdir().expect("a directory");
        open_to_all(volumes.path(), 0o755);
        let annotations = Mutex::new(pod.metadata.annotations.clone().unwrap_or_default());
        let around = Self { pod, addresses, node, network, volumes, annotations };
        for volume in around.spec().volumes.iter().flatten() {
            let dir = around.volume(&volume.name);
            fs::create_dir(&dir).expect("ours");
            open_to_all(&dir, 0o777); // as the kubelet makes them
            if let Some(source) = &volume.config_map {
                let files = config_maps.get(&source.name);
                let optional = source.optional == Some(true);
                assert!(files.is_some() || optional, "there is no ConfigMap {}", source.name);
                publish(&dir, files.unwrap_or(&BTreeMap::new()));
            } else if volume.downward_api.is_some() {
                around.publish_fields(&volume.name);
            } else {
                assert!(volume.empty_dir.is_some(), "the rig does not know the volume {volume:?}");
            }
        }
        around
    }

    pub(super) fn spec(&self) -> &PodSpec {
        self.pod.spec.as_ref().expect("a pod has a spec")
    }

    pub(super) fn name(&self) -> &str {
        self.pod.metadata.name.as_deref().unwrap_or("pod")
    }

    pub(super) fn network(&self) -> &str {
        &self.network
    }

    pub(super) fn run_as_user(&self) -> Option<i64> {
        self.spec().security_context.as_ref()?.run_as_user
    }

    pub(super) fn seccomp(&self) -> Option<SeccompProfile> {
        self.spec().security_context.as_ref()?.seccomp_profile.clone()
    }

    pub(super) fn groups(&self) -> Vec<i64> {
        let security = self.spec().security_context.as_ref();
        security.and_then(|security| security.fs_group).into_iter().collect()
    }

    /// Where a volume's files are on this machine.
    pub(super) fn volume(&self, name: &str) -> PathBuf {
        self.volumes.path().join(name)
    }

    /// The container's own, and what the downward API says.
    pub(super) fn environment(&self, container: &Container) -> Vec<(String, String)> {
        let mut env = vec![("PATH".into(), "/usr/sbin:/usr/bin:/sbin:/bin".to_owned())];
        env.push(("HOSTNAME".into(), self.name().to_owned()));
        for variable in container.env.iter().flatten() {
            let value = match &variable.value_from {
                None => expand(variable.value.as_deref().unwrap_or_default(), &env),
                Some(source) => {
                    let field = source.field_ref.as_ref();
                    self.field(field.unwrap_or_else(|| panic!("the rig does not know {source:?}")))
                }
            };
            env.push((variable.name.clone(), value));
        }
        env
    }

    fn field(&self, selector: &ObjectFieldSelector) -> String {
        let list = |addresses: &[IpAddr]| {
            addresses.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(",")
        };
        let meta = &self.pod.metadata;
        match selector.field_path.as_str() {
            "metadata.name" => self.name().to_owned(),
            "metadata.namespace" => meta.namespace.clone().unwrap_or_else(|| "default".into()),
            "metadata.uid" => meta.uid.clone().unwrap_or_else(|| "an-id".into()),
            "metadata.annotations" => kubelet::annotations(&self.annotations()),
            "metadata.labels" => {
                kubelet::annotations(meta.labels.as_ref().unwrap_or(&BTreeMap::new()))
            }
            "spec.nodeName" => self.spec().node_name.clone().unwrap_or_else(|| "node".into()),
            "spec.serviceAccountName" => "default".into(),
            "status.podIP" => list(&self.addresses[..1]),
            "status.podIPs" => list(&self.addresses),
            "status.hostIP" => list(&self.node[..1]),
            "status.hostIPs" => list(&self.node),
            path => panic!("the rig's downward API does not know {path}"),
        }
    }

    /// The pod's annotations are these from now on.
    pub(super) fn annotate(&self, all: BTreeMap<String, String>) {
        *self.annotations() = all;
        let volumes = self.spec().volumes.iter().flatten();
        let told = volumes.filter(|volume| volume.downward_api.is_some());
        told.for_each(|volume| self.publish_fields(&volume.name));
    }

    /// A ConfigMap that volumes are made of has these files from now on.
    pub(super) fn configure(&self, name: &str, files: &BTreeMap<String, String>) {
        for volume in self.spec().volumes.iter().flatten() {
            if volume.config_map.as_ref().is_some_and(|source| source.name == name) {
                publish(&self.volume(&volume.name), files);
            }
        }
    }

    fn annotations(&self) -> MutexGuard<'_, BTreeMap<String, String>> {
        self.annotations.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes a downward API volume as the pod is now.
    fn publish_fields(&self, name: &str) {
        let volumes = self.spec().volumes.iter().flatten();
        let mut sources = volumes.filter(|volume| volume.name == name);
        let source = sources.next().and_then(|volume| volume.downward_api.as_ref());
        let items = source.and_then(|source| source.items.as_ref()).into_iter().flatten();
        let files = items.map(|item| {
            let field = item.field_ref.as_ref().expect("only fields of the pod");
            (item.path.clone(), self.field(field))
        });
        publish(&self.volume(name), &files.collect());
    }

    /// The container's volumes, as mounts of an OCI bundle.
    pub(super) fn mounts(&self, container: &Container) -> Vec<Value> {
        let mounts = container.volume_mounts.iter().flatten();
        let mounts = mounts.map(|mount| {
            let from = self.volume(&mount.name);
            let from = mount.sub_path.as_ref().map_or(from.clone(), |path| from.join(path));
            bind(&from, Path::new(&mount.mount_path), mount.read_only == Some(true))
        });
        mounts.collect()
    }
}

fn publish(dir: &Path, files: &BTreeMap<String, String>) {
    let files: Vec<_> = files.iter().map(|(name, text)| (&**name, &**text)).collect();
    kubelet::put(dir, &files);
}

fn open_to_all(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).expect("ours");
}
