//! `tidegate inject` and `tidegate lint` as people use them: files in, files out, on manifests of the kinds people have.

#[path = "inject/played.rs"]
mod played;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::batch::v1::{CronJob, Job};
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};
use tidegate::inject::{self, Context, Operator, Outcome};

const OK: Option<i32> = Some(0);
const FAILED: Option<i32> = Some(1);
const CONFIG: Option<i32> = Some(78);

const MANIFESTS: [&str; 7] = [
    "deployment.yaml",
    "statefulset.yaml",
    "daemonset.yaml",
    "job.yaml",
    "cronjob.yaml",
    "list.yaml",
    "replicaset.json",
];

/// A hook or a probe that was replaced in these is laid out anew when it comes back: it was on one line. So is JSON.
const LAID_OUT_ANEW: [&str; 4] =
    ["deployment.yaml", "statefulset.yaml", "list.yaml", "replicaset.json"];

fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(name)
}

fn manifest(name: &str) -> String {
    fs::read_to_string(path("manifests").join(name)).expect(name)
}

/// With this on stdin.
fn tidegate(arguments: &[&str], input: &str) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_tidegate"))
        .args(arguments)
        .current_dir(path("manifests"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("started");
    // Who reads no input has ended before all of it is written.
    let _ = child.stdin.take().expect("piped").write_all(input.as_bytes());
    child.wait_with_output().expect("ended")
}

fn stdout(output: &Output) -> &str {
    std::str::from_utf8(&output.stdout).expect("UTF-8")
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The data of every document.
fn data(text: &str) -> Vec<Value> {
    serde_saphyr::from_multiple::<Value>(text).unwrap_or_else(|e| panic!("{e}\n{text}"))
}

/// What the API server would make of it; objects of other kinds are none of ours.
fn typed(object: &Value) {
    fn check<T: serde::de::DeserializeOwned + serde::Serialize>(object: &Value) {
        let typed: T =
            serde_json::from_value(object.clone()).unwrap_or_else(|e| panic!("{e}\n{object:#}"));
        let back = serde_json::to_value(typed).expect("JSON");
        let pods = |object: &Value| -> Vec<Value> {
            ["/spec", "/spec/template/spec", "/spec/jobTemplate/spec/template/spec"]
                .iter()
                .filter_map(|at| object.pointer(at)?.get("initContainers").cloned())
                .collect()
        };
        assert_eq!(pods(&back), pods(object));
    }
    match object["kind"].as_str().expect("a kind") {
        "Deployment" => check::<Deployment>(object),
        "StatefulSet" => check::<StatefulSet>(object),
        "DaemonSet" => check::<DaemonSet>(object),
        "ReplicaSet" => check::<ReplicaSet>(object),
        "Job" => check::<Job>(object),
        "CronJob" => check::<CronJob>(object),
        "Pod" => check::<Pod>(object),
        "List" => object["items"].as_array().expect("a list").iter().for_each(typed),
        _ => {}
    }
}

#[test]
fn manifests_are_injected_and_brought_back() {
    for name in MANIFESTS {
        let before = manifest(name);
        let injected = tidegate(&["inject", "-f", name], "");
        let after = stdout(&injected);
        assert!(
            !stderr(&injected).contains("changed in place") || name == "statefulset.yaml",
            "{}",
            stderr(&injected)
        );
        assert!(after.contains("tidegate.dev/injected-version"), "{name}: {after}");
        data(after).iter().for_each(typed);
        let again = tidegate(&["inject", "-f", "-"], after);
        assert_eq!(stdout(&again), after, "{name}: twice is once");
        let back = tidegate(&["inject", "--remove"], after);
        assert_eq!(back.status.code(), OK, "{}", stderr(&back));
        assert_eq!(data(stdout(&back)), data(&before), "{name}");
        assert_eq!(stdout(&back) != before, LAID_OUT_ANEW.contains(&name), "{name}: {back:?}");
        for comment in
            before.lines().filter_map(|line| line.split_once("# ")).map(|(_, comment)| comment)
        {
            assert!(
                after.contains(comment) && stdout(&back).contains(comment),
                "{name}: {comment} is lost"
            );
        }
    }
}

/// Hooks and probes on one line among them, with blanks inside their braces.
#[test]
fn the_examples_come_back_byte_for_byte() {
    let files = std::fs::read_dir(path("../manifests/examples")).expect("the examples");
    let mut injected = 0;
    for file in files.map(|file| file.expect("an example").path()) {
        let before = std::fs::read_to_string(&file).expect("YAML");
        let there = tidegate(&["inject"], &before);
        injected += usize::from(stdout(&there) != before);
        assert_eq!(stdout(&tidegate(&["inject", "--remove"], stdout(&there))), before, "{file:?}");
    }
    assert!(injected > 2, "only {injected} have been injected");
}

#[test]
fn what_has_nothing_to_change_stays_byte_for_byte() {
    let before = manifest("deployment.yaml");
    let service = &before[before.find("---\n").expect("two documents")..];
    let injected = tidegate(&["inject", "-f", "deployment.yaml"], "");
    assert!(stdout(&injected).ends_with(service), "{}", stdout(&injected));
    assert_eq!(stdout(&tidegate(&["inject"], service)), service);
    for name in MANIFESTS {
        assert_eq!(stdout(&tidegate(&["inject", "--remove", "-f", name], "")), manifest(name));
    }
}

#[test]
fn it_says_what_it_did_and_how_it_went() {
    let all = tidegate(&["inject", "-f", "deployment.yaml", "-f", "list.yaml"], "");
    assert_eq!(all.status.code(), FAILED, "one of them cannot be injected");
    for part in [
        "deployment.yaml, document 1, Deployment shop: gateway in front of 8080 (capture redirect, native sidecar, drain full)",
        "list.yaml, DaemonSet agent: left as it is: it uses the host's network",
        "list.yaml, Pod alone: gateway in front of 9000",
        "list.yaml, Job migrate: no gateway: no port is gated",
    ] {
        assert!(stderr(&all).contains(part), "{part} is not in\n{}", stderr(&all));
    }
    assert_eq!(data(stdout(&all)).len(), 3, "{}", stdout(&all));

    let restricted = tidegate(&["inject", "-f", "statefulset.yaml"], "");
    assert!(stderr(&restricted).contains("capture listen"), "{}", stderr(&restricted));
    let by_flag = tidegate(&["inject", "--pod-security", "baseline", "-f", "cronjob.yaml"], "");
    assert!(stderr(&by_flag).contains("capture listen"), "{}", stderr(&by_flag));
    assert!(!stdout(&by_flag).contains("NET_ADMIN"));
}

#[test]
fn what_cannot_be_read_is_told_at_once_and_nothing_is_printed() {
    let operator = tempfile::NamedTempFile::new().expect("a file");
    fs::write(operator.path(), "kubernetes: new\nuid: 0\n").expect("written");
    let operator = operator.path().to_str().expect("UTF-8");
    for arguments in [&["inject"][..], &["lint"]] {
        let arguments =
            [arguments, &["-f", "nowhere.yaml", "-f", "elsewhere.yaml", "--operator", operator]]
                .concat();
        let output = tidegate(&arguments, "");
        assert_eq!((output.status.code(), stdout(&output)), (CONFIG, ""));
        for part in ["nowhere.yaml", "elsewhere.yaml", "kubernetes \"new\"", "uid 0"] {
            assert!(stderr(&output).contains(part), "{part} is not in {}", stderr(&output));
        }
    }
    let broken = tidegate(&["inject"], "kind: Pod\n---\na: [\n---\nb: }\n");
    assert_eq!((broken.status.code(), stdout(&broken)), (CONFIG, ""));
    assert!(
        stderr(&broken).contains("stdin, document 2") && stderr(&broken).contains("document 3"),
        "{}",
        stderr(&broken)
    );
    assert_eq!(tidegate(&["inject", "--pod-security", "none"], "").status.code(), CONFIG);
}

#[test]
fn operators_decide() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    fs::write(file.path(), "image: mirror.example/tidegate:7\nsidecar: classic\nnamespaces: {web: {ceilings: {limit: 5}}}\n").expect("written");
    let operator = file.path().to_str().expect("UTF-8");
    let output = tidegate(&["inject", "-f", "deployment.yaml", "--operator", operator], "");
    assert_eq!(output.status.code(), OK, "{}", stderr(&output));
    assert!(stderr(&output).contains("above the operator's ceiling, 5"), "{}", stderr(&output));
    let pod = &data(stdout(&output))[0]["spec"]["template"]["spec"];
    assert_eq!(pod["containers"][1]["image"], "mirror.example/tidegate:7");
}

#[test]
fn limit_ranges_among_the_manifests_are_kept() {
    let range = "---\napiVersion: v1\nkind: LimitRange\nmetadata: {name: small, namespace: web}\nspec:\n  limits:\n  - {type: Container, \
                 min: {cpu: 50m}, max: {memory: 300Mi, cpu: 2}, maxLimitRequestRatio: {memory: 2}}\n";
    let sidecar = |text: &str| {
        let output = tidegate(&["inject"], text);
        assert_eq!(output.status.code(), OK, "{}", stderr(&output));
        let all = data(stdout(&output));
        let init = all[0].pointer("/spec/template/spec/initContainers").expect("injected");
        let sidecar = init.as_array().and_then(|all| all.last()).expect("the sidecar");
        sidecar["resources"].clone()
    };
    let shop = manifest("deployment.yaml");
    let usual =
        json!({"requests": {"cpu": "10m", "memory": "32Mi"}, "limits": {"memory": "128Mi"}});
    assert_eq!(sidecar(&shop), usual);
    let within =
        json!({"requests": {"cpu": "50m", "memory": "67108864"}, "limits": {"memory": "128Mi"}});
    assert_eq!(sidecar(&format!("{shop}{range}")), within);
    assert_eq!(
        sidecar(&format!("{shop}{}", range.replace("namespace: web", "namespace: dev"))),
        usual
    );
    // The pod's own container has 256Mi of them.
    let pod = range.replace("Container", "Pod").replace("300Mi", "256Mi");
    let refused = tidegate(&["inject"], &format!("{shop}{pod}"));
    assert_eq!(refused.status.code(), FAILED);
    assert!(
        stderr(&refused).contains("the namespace's LimitRange lets a pod have 256Mi"),
        "{}",
        stderr(&refused)
    );
}

#[test]
fn older_clusters_get_what_they_take() {
    let sidecar = |arguments: &[&str]| {
        let output = tidegate(&[&["inject", "-f", "deployment.yaml"], arguments].concat(), "");
        assert_eq!(output.status.code(), OK, "{}", stderr(&output));
        let said = stderr(&output);
        (said.contains("native sidecar"), said.contains("classic sidecar"))
    };
    assert_eq!(sidecar(&[]), (true, false));
    assert_eq!(sidecar(&["--kubernetes", "1.28"]), (false, true));
    let file = tempfile::NamedTempFile::new().expect("a file");
    fs::write(file.path(), "kubernetes: '1.28'\n").expect("written");
    let operator = ["--operator", file.path().to_str().expect("UTF-8")];
    assert_eq!(sidecar(&operator), (false, true));
    assert_eq!(sidecar(&[&operator[..], &["--kubernetes", "1.29"]].concat()), (true, false));
    let wrong = tidegate(&["inject", "--kubernetes", "new", "-f", "deployment.yaml"], "");
    assert_eq!((wrong.status.code(), stdout(&wrong)), (CONFIG, ""));
    assert!(stderr(&wrong).contains("kubernetes \"new\" must be a version"), "{}", stderr(&wrong));
}

#[test]
fn lint_names_file_document_object_key_value_and_what_is_allowed() {
    let output = tidegate(&["lint", "-f", "mistakes.yaml"], "");
    assert_eq!(output.status.code(), FAILED);
    let shop = "mistakes.yaml, document 1, Deployment shop:";
    let expected = [
        format!("{shop} label tidegate.dev/inject: \"yes\" must be one of `enabled`, `disabled`"),
        format!("{shop} annotation tidegate.dev/capture: \"proxy\" must be one of `auto`, `redirect`, `listen`"),
        format!("{shop} annotation tidegate.dev/limitt: \"5\" is no setting; did you mean `tidegate.dev/limit`?"),
        format!("{shop} annotation tidegate.dev/queue-timeout: \"5\" has no unit; it must be a duration from 1ms to 24h such as `500ms`, `5s`, `2m`"),
        format!("{shop} annotation tidegate.dev/uring-sqpoll: \"true\" is not heeded: this is the operator's to set, no annotation changes it"),
        format!("{shop} annotation tidegate.dev/limit: \"5\" belongs to the pod template, spec.template"),
        "mistakes.yaml, document 2, ConfigMap tidegate: data._all: mode: \"sometimes\" must be one of `enforce`, `observe`, `off`".into(),
    ];
    assert_eq!(stdout(&output).lines().collect::<Vec<_>>(), expected);
    for right in ["deployment.yaml", "statefulset.yaml", "cronjob.yaml", "list.yaml"] {
        let output = tidegate(&["lint", "-f", right], "");
        assert_eq!((output.status.code(), stdout(&output)), (OK, ""));
    }
    let injected = tidegate(&["inject", "-f", "deployment.yaml"], "");
    assert_eq!(tidegate(&["lint"], stdout(&injected)).status.code(), OK);
}

/// What the injector of a version makes of these pods is kept in `tests/inject/patches/`, so that a change of it is
/// seen, and later sidecars can be shown it. `UPDATE_PATCHES=1` writes that of this version anew. What sidecars on record
/// understand of today's is in tests/inject_pods.rs.
#[test]
fn t49_todays_patch_is_on_record() {
    let today = recording();
    let version = env!("CARGO_PKG_VERSION").rsplit_once('.').expect("a version").0;
    let file = path("inject/patches").join(format!("{version}.json"));
    if std::env::var_os("UPDATE_PATCHES").is_some() {
        let text = serde_json::to_string_pretty(&today).expect("JSON") + "\n";
        fs::write(&file, text).expect("written");
    }
    let recorded: Value =
        serde_json::from_str(&fs::read_to_string(&file).expect("UPDATE_PATCHES=1 makes it"))
            .expect("JSON");
    assert_eq!(recorded, today, "the patch has changed: UPDATE_PATCHES=1 cargo test --test inject");
}

/// Injectors on record said nothing that today's sidecar does not take as it was meant: no flag, variable or value.
#[test]
fn t49_todays_sidecar_takes_what_injectors_on_record_have_said() {
    let records = fs::read_dir(path("inject/patches")).expect("there");
    let records: Vec<_> = records.map(|entry| entry.expect("a file").path()).collect();
    assert!(!records.is_empty());
    records.iter().for_each(|record| played::play(record));
}

fn recording() -> Value {
    let operator = Operator::from_yaml(
        "image: tidegate:recorded
otlp: {endpoint: 'http://collector:4317', protocol: grpc}
defaults: {queue-timeout: 500ms}
ceilings: {limit: '100'}
watchOwnPod: true",
    )
    .expect("an operator");
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "shop", "namespace": "web", "annotations": {"tidegate.dev/limit": "8"},
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "shop", "uid": "1", "controller": true}]},
        "spec": {"containers": [{
            "name": "app", "image": "shop", "ports": [{"name": "http", "containerPort": 8080}],
            "resources": {"requests": {"cpu": "1"}},
            "livenessProbe": {"httpGet": {"path": "/healthz", "port": "http"}},
            "lifecycle": {"preStop": {"exec": {"command": ["sleep", "15"]}}},
        }]},
    });
    let patch = |capture: &str| {
        let mut pod = pod.clone();
        pod["metadata"]["annotations"]["tidegate.dev/capture"] = capture.into();
        match inject::review(&pod, &Context::default(), &operator) {
            Outcome::Patched { patch, .. } => json!({"pod": pod, "patch": patch}),
            other => panic!("{other:?}"),
        }
    };
    json!({"redirect": patch("redirect"), "listen": patch("listen")})
}
