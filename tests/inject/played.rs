//! What injectors of every version on record have written, played to today's sidecar: pods keep their arguments,
//! variables and annotations, whatever image they are restarted with.

use std::ffi::OsString;
use std::num::NonZeroU32;
use std::path::Path;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, Pod};
use serde_json::Value;
use tidegate::cli::{Cli, Command};
use tidegate::config::{self, Layers, Task};
use tidegate::inject::{CAPTURE_CONTAINER, CONTAINER};

/// What the kubelet fills in.
fn downward(path: &str) -> &'static str {
    match path {
        "status.podIP" => "10.0.0.7",
        "status.podIPs" => "10.0.0.7,fd00::7",
        "status.hostIP" => "10.0.0.1",
        "metadata.name" => "shop-0",
        "metadata.namespace" => "web",
        "metadata.uid" => "705ab4f5",
        "spec.nodeName" => "node-1",
        other => panic!("the downward API has no {other} here"),
    }
}

/// What every container has.
const SERVER: [(&str, &str); 2] =
    [("KUBERNETES_SERVICE_HOST", "10.96.0.1"), ("KUBERNETES_SERVICE_PORT", "443")];

/// One container of ours, as it is started.
struct Started {
    words: Vec<OsString>,
    variables: Vec<(OsString, OsString)>,
}

impl Started {
    fn of(container: &Container) -> Self {
        let mut variables: Vec<(String, String)> =
            SERVER.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
        for variable in container.env.iter().flatten() {
            let field = variable.value_from.as_ref().and_then(|from| from.field_ref.as_ref());
            let value = match field {
                Some(field) => downward(&field.field_path).to_owned(),
                None => variable.value.clone().unwrap_or_default(),
            };
            variables.push((variable.name.clone(), value));
        }
        let expanded = |word: &String| {
            variables.iter().fold(word.clone(), |word, (name, value)| {
                word.replace(&format!("$({name})"), value)
            })
        };
        let words = container.args.iter().flatten().map(expanded);
        let words = std::iter::once("tidegate".to_owned()).chain(words).map(Into::into).collect();
        let variables = variables.into_iter().map(|(name, value)| (name.into(), value.into()));
        Self { words, variables: variables.collect() }
    }

    fn command(&self) -> Command {
        let parsed = Cli::parse_words(self.words.clone());
        parsed.unwrap_or_else(|error| panic!("{:?}: {error}", self.words)).command
    }
}

/// The sidecar's settings, and what it has to say about what it was told.
fn sidecar(container: &Container) -> (config::Config, Vec<String>) {
    let started = Started::of(container);
    let Command::Run(run) = started.command() else { panic!("it does not run") };
    let layers =
        Layers::from_cli(&run, started.variables).unwrap_or_else(|error| panic!("{error}"));
    let config = layers.resolve().expect("a pod's settings always resolve");
    let mut said: Vec<_> =
        layers.remarks().iter().map(|remark| remark.mistake.to_string()).collect();
    said.extend(config.ignored.iter().cloned());
    said.extend(config.app_probes.flaws());
    (config, said)
}

/// The ports whose connections are captured.
fn captured(container: &Container) -> String {
    let started = Started::of(container);
    let Command::Capture(capture) = started.command() else { panic!("it does not capture") };
    let rules = config::capture(&capture.action, started.variables);
    match rules.unwrap_or_else(|error| panic!("{error}")).task {
        Task::Install(plan) => plan.redirected().to_string(),
        other => panic!("{other:?}"),
    }
}

/// Play every pod of a record, and hold what comes of it against what was asked for.
pub fn play(file: &Path) {
    let text = std::fs::read_to_string(file).expect("read");
    let record: Value = serde_json::from_str(&text).expect("JSON");
    for (capture, told) in record.as_object().expect("by the way traffic comes") {
        let what = format!("{}, {capture}", file.display());
        let patch: json_patch::Patch =
            serde_json::from_value(told["patch"].clone()).expect("a patch");
        let mut pod = told["pod"].clone();
        json_patch::patch(&mut pod, &patch).expect("a patch that applies");
        let pod: Pod = serde_json::from_value(pod).expect("a pod");
        let init = pod.spec.expect("a spec").init_containers.expect("some");
        let called = |name: &str| init.iter().find(|container| container.name == name);

        let (config, said) = sidecar(called(CONTAINER).expect("it has a sidecar"));
        assert_eq!(said, [""; 0], "{what}: this is not understood as it was meant");
        assert_eq!(config.ports.len(), usize::from(capture == "listen"), "{what}");
        assert_eq!(config.captured.is_some(), capture == "redirect", "{what}");
        assert_eq!(config.drain.drain_delay.as_secs(), 15, "{what}");
        let gate = match (&config.captured, config.ports.first()) {
            (Some(captured), _) => &captured.terms.named[&8080].gate,
            (None, port) => &port.expect("one").gate,
        };
        let wait = (gate.limit.map(NonZeroU32::get), gate.queue_timeout);
        assert_eq!(wait, (Some(8), Duration::from_millis(500)), "{what}");
        let probes: Vec<_> = config.app_probes.probes.keys().map(ToString::to_string).collect();
        assert_eq!(probes, ["app/liveness"], "{what}");
        match called(CAPTURE_CONTAINER) {
            Some(rules) => assert_eq!(captured(rules), "8080", "{what}"),
            None => assert_eq!(capture, "listen"),
        }
    }
}
