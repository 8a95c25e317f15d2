//! What a sidecar of a version understands, and what the injector says to one. Injectors are upgraded first, and pods
//! keep their image: so every word of today's injector has to be one that older sidecars on record know.
//!
//! A record is made of the program itself: its `--help`, and the names in its sources.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{fs, iter};

use k8s_openapi::api::core::v1::{Container, Pod};
use regex::Regex;
use serde::{Deserialize, Serialize};
use tidegate::inject::{CAPTURE_CONTAINER, CONTAINER};

/// The words of an interface, in any order.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    /// `run --grace`; also `drain`, a command alone.
    pub flags: BTreeSet<String>,
    pub variables: BTreeSet<String>,
    /// What is asked for over HTTP, by the kubelet.
    pub paths: BTreeSet<String>,
}

const COMMANDS: [&str; 3] = ["run", "capture install", "drain"];

/// Where versions are on record; this one's own is the file with its number.
pub fn records() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/inject/interfaces")
}

impl Interface {
    /// What this version understands.
    pub fn of_this_version() -> Self {
        let mut known = Self::default();
        let flag = Regex::new("(?m)^ +(?:-., )?(--[a-z0-9-]+)").expect("a pattern");
        for command in COMMANDS {
            let mut help = Command::new(env!("CARGO_BIN_EXE_tidegate"));
            let output = help.args(command.split(' ')).arg("--help").output().expect("it runs");
            assert!(output.status.success(), "{command}: {output:?}");
            known.flags.insert(command.to_owned());
            for found in flag.captures_iter(&String::from_utf8_lossy(&output.stdout)) {
                known.flags.insert(format!("{command} {}", &found[1]));
                let name = found[1][2..].replace('-', "_").to_uppercase();
                known.variables.insert(format!("TIDEGATE_{name}"));
            }
        }
        let variable = Regex::new("\"((?:TIDEGATE|POD|NODE|CONTAINER|OTEL)_[A-Z_]*[A-Z])\"")
            .expect("a pattern");
        for file in ["capture", "otel", "own"] {
            let text = source(&format!("config/{file}.rs"));
            known.variables.extend(variable.captures_iter(&text).map(|found| found[1].to_owned()));
        }
        let path = Regex::new("\"(/[a-z/-]+)\"").expect("a pattern");
        let faces = source("admin/faces.rs");
        known.paths.extend(path.captures_iter(&faces).map(|found| found[1].to_owned()));
        known
    }

    /// What a patched pod says to its gateway.
    pub fn said_by(pod: &Pod) -> Self {
        let mut said = Self::default();
        let spec = pod.spec.as_ref().expect("a spec");
        for container in spec.init_containers.iter().flatten().chain(&spec.containers) {
            if [CONTAINER, CAPTURE_CONTAINER].contains(&container.name.as_str()) {
                said.take(container);
            }
            said.paths.extend(asked(container));
        }
        said
    }

    fn take(&mut self, gateway: &Container) {
        let words = gateway.args.as_deref().unwrap_or_default();
        let options = words.iter().position(|word| word.starts_with("--")).unwrap_or(words.len());
        let command = words[..options].join(" ");
        let flags = words[options..]
            .iter()
            .map(|word| format!("{command} {}", word.split('=').next().expect("always one")));
        self.flags.extend(flags.chain(iter::once(command.clone())));
        let hook = gateway.lifecycle.as_ref().and_then(|all| all.pre_stop.as_ref()?.exec.as_ref());
        let hook = hook.and_then(|hook| hook.command.as_deref()).unwrap_or_default();
        self.flags.extend(hook.get(1..).filter(|words| !words.is_empty()).map(|all| all.join(" ")));
        for variable in gateway.env.iter().flatten() {
            // Of one port: TIDEGATE_LIMIT_8080.
            let name = variable.name.trim_end_matches(|c: char| c.is_ascii_digit());
            self.variables.insert(name.trim_end_matches('_').to_owned());
        }
    }

    pub fn add(&mut self, more: Self) {
        self.flags.extend(more.flags);
        self.variables.extend(more.variables);
        self.paths.extend(more.paths);
    }

    /// What of this an older version does not know.
    pub fn beyond<'a>(&'a self, older: &'a Self) -> Vec<&'a String> {
        let flags = self.flags.difference(&older.flags);
        let variables = self.variables.difference(&older.variables);
        flags.chain(variables).chain(self.paths.difference(&older.paths)).collect()
    }
}

/// The paths that the kubelet asks the gateway for, without what is particular to a container.
fn asked(container: &Container) -> impl Iterator<Item = String> {
    let probes = [&container.startup_probe, &container.readiness_probe, &container.liveness_probe];
    let probes = probes.into_iter().flatten().filter_map(|probe| probe.http_get.as_ref());
    let hook =
        container.lifecycle.as_ref().and_then(|all| all.pre_stop.as_ref()?.http_get.as_ref());
    let ours = serde_json::json!(15821);
    let asked = probes
        .chain(hook)
        .filter(move |get| serde_json::to_value(&get.port).is_ok_and(|port| port == ours));
    asked.filter_map(|get| get.path.as_deref()).map(|path| match path.strip_prefix("/app-probe/") {
        Some(_) => "/app-probe/".to_owned(),
        None => path.to_owned(),
    })
}

fn source(file: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src").join(file);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}
