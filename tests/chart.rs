//! The chart, the manifests and the code say the same. `UPDATE_CHART=1 cargo test --test chart` writes
//! anew what of the chart is made from the table of settings.
//!
//! What only Helm or Python can check is in tests/chart/*.py; both are part of `make check`.

#[path = "chart/policy.rs"]
mod policy;
mod skip;
#[path = "chart/types.rs"]
mod types;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use regex::Regex;
use serde_json::Value;
use tidegate::inject::{self, Context, Operator, Outcome, PodSecurity};

const SECCOMP: &str = "charts/tidegate/files/seccomp/tidegate.json";

/// Kubernetes would drop a field it does not know, or not take the object at all.
#[test]
fn every_object_is_one_of_kubernetes() {
    let mut seen = 0;
    let written = ["tidegate.yaml", "jaeger.yaml"].iter().map(|file| path("manifests").join(file));
    for file in written.chain(examples()) {
        for object in documents(&read(&file)) {
            seen += usize::from(types::round_trips(&object, &file.display().to_string()));
        }
    }
    assert!(seen > 15, "only {seen} objects in manifests/: this test does not find them");
    for (values, objects) in rendered() {
        let known = objects.iter().filter(|object| types::round_trips(object, values)).count();
        assert!(known > 3, "{values}: {known} objects");
    }
}

/// What the chart writes the injector reads, and without values it is what is built in.
#[test]
fn the_operators_file_is_the_charts() {
    let monitor = read(&path("charts/tidegate/templates/podmonitor.yaml"));
    assert!(monitor.contains(&format!("port: {}\n", inject::METRICS_PORT_NAME)), "{monitor}");
    let plain = documents(&read(&path("manifests/tidegate.yaml")));
    assert_eq!(operator(&plain), Operator::default());
    for (values, objects) in rendered() {
        let operator = operator(&objects);
        assert_eq!(operator.mistakes(), Vec::<String>::new(), "{values}");
        assert_eq!(operator.ceilings.contains_key("limit"), values == "everything", "{values}");
        let ranges = operator.namespaces.values().flat_map(|namespace| &namespace.limit_ranges);
        assert_eq!(ranges.count(), usize::from(values == "everything"), "{values}");
        assert_eq!(operator.uid.is_none(), values == "openshift", "{values}");
        let privileged = captures(&operator).contains("NET_ADMIN");
        assert_eq!(privileged, ["default", "revision"].contains(&values), "{values}");
        assert_eq!(operator.revision == "canary", values == "revision", "{values}");
    }
}

/// What a pod that says nothing of it is given, as text.
fn captures(operator: &Operator) -> String {
    let pod = serde_json::json!({ "spec": { "containers": [
        { "name": "web", "ports": [{ "name": "http", "containerPort": 8080 }] },
    ] } });
    match inject::review(&pod, &Context::default(), operator) {
        Outcome::Patched { patch, .. } => patch.to_string(),
        other => panic!("{other:?}"),
    }
}

fn operator(objects: &[Value]) -> Operator {
    let text = objects.iter().find_map(|object| object["data"]["operator.yaml"].as_str());
    Operator::from_yaml(text.expect("the operator's ConfigMap")).unwrap_or_else(|e| panic!("{e}"))
}

/// With its arguments, its certificate and its files the webhook starts, and answers on every path that is configured.
#[test]
fn the_injector_starts_as_the_chart_says() {
    let Some(python) = python() else { return };
    let output = Command::new(python)
        .arg(path("tests/chart/injector.py"))
        .arg(env!("CARGO_BIN_EXE_tidegate"))
        .output()
        .expect("tests/chart/setup made it");
    let said =
        [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
    assert!(output.status.success() && said[0].starts_with("12 reviews"), "{said:?}");
}

/// The policy that asks for sidecars knows by these words who needs none.
#[test]
fn the_policy_recognises_what_the_injector_leaves_alone() {
    let policy = read(&path("charts/tidegate/templates/policy-sidecar.yaml"));
    let pod = serde_json::json!({ "metadata": {}, "spec": { "containers": [{ "name": "work" }] } });
    let outcome = inject::review(&pod, &Context::default(), &Operator::default());
    let Outcome::Patched { patch, .. } = outcome else { panic!("{outcome:?}") };
    let mut left = pod;
    json_patch::patch(&mut left, &patch).expect("can be applied");
    let status = left["metadata"]["annotations"][inject::STATUS].as_str().expect("a status");
    assert!(status.contains("\"ungated\":"), "{status}");
    assert!(policy.contains(".contains('\"ungated\":')") && policy.contains(inject::STATUS));
    assert_eq!(left["spec"], serde_json::json!({ "containers": [{ "name": "work" }] }));
}

/// Every workload of the examples gets its gateway, and there is nothing to say about it.
#[test]
fn the_examples_are_injected_without_a_word() {
    let mut workloads = 0;
    for file in examples() {
        let objects = documents(&read(&file));
        let namespace = objects.iter().find(|object| object["kind"] == "Namespace");
        let labels = namespace.map_or(Value::Null, |it| it["metadata"]["labels"].clone());
        let labels = serde_json::from_value::<Option<BTreeMap<_, _>>>(labels).expect("labels");
        let context =
            Context::of_namespace("shop", &labels.unwrap_or_default(), &BTreeMap::default());
        for object in objects.iter().filter(|object| object["spec"]["template"].is_object()) {
            let (name, template) = (&object["metadata"]["name"], &object["spec"]["template"]);
            let outcome = inject::review(template, &context, &Operator::default());
            let Outcome::Patched { patch, warnings } = outcome else {
                panic!("{name}: {outcome:?}");
            };
            // What `listen` is, is said of every pod.
            let remarkable =
                |warning: &&String| !warning.contains("where a Service says `targetPort: ");
            let remarkable: Vec<_> = warnings.iter().filter(remarkable).collect();
            assert!(remarkable.is_empty(), "{name}: {remarkable:?}");
            let mut pod = template.clone();
            json_patch::patch(&mut pod, &patch).expect("can be applied");
            let redirected = pod.to_string().contains("NET_ADMIN");
            assert_eq!(redirected, context.pod_security == PodSecurity::Privileged, "{name}");
            workloads += 1;
        }
    }
    assert!(workloads >= 3, "only {workloads} workloads in manifests/examples");
}

/// Dashboards, alerts, examples and e2e name metrics; tests/it/metrics.rs asks a living gateway for some of them.
#[test]
fn every_metric_that_is_named_is_one_of_ours() {
    let word = Regex::new("\\btidegate_[a-z_]+[a-z]").expect("a pattern");
    let literal = Regex::new("\"(tidegate_[a-z_]+)\"").expect("a pattern");
    let mut ours = BTreeSet::new();
    for file in files("src", "rs") {
        for name in literal.captures_iter(&read(&file)).map(|found| found[1].to_owned()) {
            // What the formats of Prometheus add, and the sums they are made of.
            for end in ["", "_total", "_info", "_bucket", "_count", "_sum"] {
                ours.insert(format!("{name}{end}"));
            }
        }
    }
    let (mut named, mut strange) = (0, BTreeSet::new());
    let places = [
        ("charts", "json"),
        ("charts", "yaml"),
        ("manifests", "yaml"),
        ("e2e", "py"),
        ("e2e", "yaml"),
    ];
    for file in places.iter().flat_map(|(directory, extension)| files(directory, extension)) {
        for name in word.find_iter(&read(&file)).map(|found| found.as_str().to_owned()) {
            named += 1;
            if !ours.contains(&name) {
                strange.insert(format!("{}: {name}", file.display()));
            }
        }
    }
    assert!(named > 100, "only {named} metrics are named: this test does not find them");
    assert!(strange.is_empty(), "no such metric in src/:\n{strange:#?}");
}

/// The profile forbids what a runtime's own forbids, but not io_uring.
#[test]
fn under_the_seccomp_profile_io_uring_works() {
    let Some(python) = python() else { return };
    let tidegate = env!("CARGO_BIN_EXE_tidegate");
    let engine = |command: &mut Command| {
        let output = command.output().expect("can be run");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let line =
            text.lines().find(|line| line.contains(" engine ")).unwrap_or_default().to_owned();
        assert!(!line.is_empty(), "{text}{}", String::from_utf8_lossy(&output.stderr));
        line
    };
    let under = |more: &[&str], command: &[&str]| {
        let mut run = Command::new(&python);
        run.arg(path("tests/chart/seccomp.py")).arg(path(SECCOMP)).args(more).args(command);
        run
    };
    let doctor = [tidegate, "doctor"];
    if !engine(Command::new(tidegate).arg("doctor")).contains(" uring ") {
        return skip::skip("this machine has no io_uring");
    }
    let with = engine(&mut under(&[], &doctor));
    assert!(with.contains(" uring "), "{with}");
    let without = engine(&mut under(&["--without", "io_uring_setup"], &doctor));
    assert!(without.contains(" epoll "), "the filter filters nothing: {without}");
    let python = python.to_str().expect("a path");
    for (what, family) in [("vsock", 40), ("packet", 17), ("alg", 38)] {
        let socket = format!("import socket; socket.socket({family}, socket.SOCK_DGRAM)");
        let output = under(&[], &[python, "-c", &socket]).output().expect("can be run");
        assert!(!output.status.success(), "sockets of the family {what} can be made");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(said.contains("PermissionError"), "{what}: {said}");
    }
}

/// What Helm makes of the files in tests/chart/values; of none of them where it is not installed.
fn rendered() -> Vec<(&'static str, Vec<Value>)> {
    let Some(python) = python() else { return Vec::new() };
    let render = |values| {
        let render = Command::new(&python).arg(path("tests/chart/render.py")).arg(values).output();
        let render = render.expect("tests/chart/setup made it");
        assert!(render.status.success(), "{}", String::from_utf8_lossy(&render.stderr));
        (values, serde_json::from_slice(&render.stdout).expect("JSON"))
    };
    ["default", "everything", "revision", "openshift"].map(render).into()
}

fn documents(text: &str) -> Vec<Value> {
    serde_saphyr::from_multiple(text).unwrap_or_else(|e| panic!("{e}"))
}

fn examples() -> Vec<PathBuf> {
    files("manifests/examples", "yaml")
}

/// All files below a directory whose names end so.
fn files(directory: &str, extension: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut directories = vec![path(directory)];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).expect("a directory") {
            let file = entry.expect("can be read").path();
            if file.is_dir() {
                directories.push(file);
            } else if file.extension().is_some_and(|e| e == extension) {
                found.push(file);
            }
        }
    }
    found.sort();
    found
}

/// The Python that has Helm's library, or none where tests/chart/setup could not install it.
fn python() -> Option<PathBuf> {
    if path("tests/chart/.venv/done").exists() {
        return Some(path("tests/chart/.venv/bin/python"));
    }
    skip::skip("what Helm renders: tests/chart/setup has not run");
    None
}

fn read(file: &Path) -> String {
    fs::read_to_string(file).unwrap_or_else(|e| panic!("{}: {e}", file.display()))
}

fn path(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(file)
}
