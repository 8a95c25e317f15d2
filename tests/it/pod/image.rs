//! The images that pods of the rig may name: what of this machine a container sees, and what it starts
//! when it is not told. Nothing else of the machine is there, and nothing of it can be written.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::support::gateway::binary;

/// What a container's root is made of.
pub(super) struct Image {
    /// Paths of this machine, and where the container has them.
    files: Vec<(PathBuf, PathBuf)>,
    pub(super) entrypoint: Vec<String>,
}

impl Image {
    /// By the name in the pod, whatever registry and tag are named.
    pub(super) fn named(name: &str) -> Self {
        let last = name.rsplit('/').next().unwrap_or_default();
        match last.split([':', '@']).next().unwrap_or_default() {
            "tidegate" => Self::tidegate(),
            "application" => Self::application(),
            "debian" | "python" => Self::debian(),
            _ => panic!(
                "the rig has no image {name}: tidegate, application, debian and python it has"
            ),
        }
    }

    /// The gateway's: its binary, what that is linked with, and nothing else.
    fn tidegate() -> Self {
        let mut files = libraries();
        files.push((binary(), "/tidegate".into()));
        Self { files, entrypoint: vec!["/tidegate".into()] }
    }

    /// The applications of this test binary ([`super::application`]).
    fn application() -> Self {
        let mut files = libraries();
        files.push((std::env::current_exe().expect("our own path"), "/application".into()));
        let entry = ["/application", "--exact", "pod::application::main", "--nocapture"];
        Self { files, entrypoint: entry.map(str::to_owned).to_vec() }
    }

    /// Debian with the servers that people run, and what `tests/apps/setup` installs.
    fn debian() -> Self {
        let mut files = libraries();
        for path in ["/usr", "/bin", "/sbin", "/etc"] {
            files.push((path.into(), path.into()));
        }
        let apps = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/apps");
        files.push((apps.clone(), "/apps".into()));
        let python = apps.join(".venv/bin/python");
        if let (Ok(venv), Ok(python)) = (apps.join(".venv").canonicalize(), python.canonicalize()) {
            files.push((venv, "/venv".into()));
            // Where the environment's Python really is: its bin's parent.
            if let Some(home) = python.ancestors().nth(2).filter(|home| !home.starts_with("/usr")) {
                files.push((home.to_owned(), home.to_owned()));
            }
        }
        Self { files, entrypoint: Vec::new() }
    }

    /// As mounts of an OCI bundle, each to be read only.
    pub(super) fn mounts(&self) -> Vec<Value> {
        let mounts = self.files.iter().map(|(from, to)| bind(from, to, true));
        mounts.collect()
    }
}

/// One path of this machine in the container.
pub(super) fn bind(from: &Path, to: &Path, read_only: bool) -> Value {
    let how = if read_only { "ro" } else { "rw" };
    json!({ "type": "bind", "source": from, "destination": to,
            "options": ["rbind", how, "nosuid", "nodev"] })
}

fn libraries() -> Vec<(PathBuf, PathBuf)> {
    let known = ["/lib", "/lib64"].into_iter().filter(|path| Path::new(path).exists());
    known.map(|path| (path.into(), path.into())).collect()
}
