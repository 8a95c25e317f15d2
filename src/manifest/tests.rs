//! Texts: what stays, what changes, and what is told.

use super::*;

fn source(text: &str) -> Source {
    Source { name: "shop.yaml".into(), text: text.into() }
}

fn rewritten(text: &str, task: Task<'_>) -> Done {
    rewrite(&[source(text)], task, PodSecurity::default()).expect("it can be read")
}

const DEPLOYMENT: &str = r#"# The shop.
apiVersion: apps/v1
kind: Deployment
metadata:
  name: shop   # its name
  namespace: web
spec:
  replicas: 2

  template:
    metadata:
      labels: {app: shop}
      annotations:
        tidegate.dev/limit: "5"
        tidegate.dev/capture: listen
    spec:
      containers:
      # The one that serves.
      - name: app
        image: 'shop:1'
        ports:
        - name: http  # moved
          containerPort: 8080
        livenessProbe:
          httpGet: {path: /healthz, port: http}
          periodSeconds: 5
        readinessProbe:
          tcpSocket:
            port: 8080
        lifecycle:
          preStop:
            exec:
              command: ["sleep", "5"]
        env:
        - {name: FLAG, value: "yes"}
        args: ["a",
          "b"]
      # The end.
---
apiVersion: v1
kind: Service
metadata: {name: shop}   # untouched
spec: {ports: [{port: 80, targetPort: http}]}
"#;

#[test]
fn only_what_has_to_change_changes() {
    let operator = Operator::default();
    let done = rewritten(DEPLOYMENT, Task::Inject(&operator));
    assert!(!done.said.iter().any(|line| line.contains("anew")), "{:#?}\n{}", done.said, done.text);
    for kept in [
        "# The shop.\n",
        "name: shop   # its name\n",
        "  replicas: 2\n\n  template:",
        "# The one that serves.",
        "image: 'shop:1'",
        "# moved",
        "- {name: FLAG, value: \"yes\"}",
        "# The end.",
        "---\napiVersion: v1\nkind: Service\nmetadata: {name: shop}   # untouched\n",
    ] {
        assert!(done.text.contains(kept), "{kept:?} is not in\n{}", done.text);
    }
    assert!(done.text.contains("name: app-8080  # moved"));
    assert!(done.text.contains("--listen=[::]:18080"));
    assert_eq!(rewritten(&done.text, Task::Inject(&operator)).text, done.text);
    let back = rewritten(&done.text, Task::Remove);
    let data = |text: &str| split(text).into_iter().map(edit::data).collect::<Vec<_>>();
    assert_eq!(data(&back.text), data(DEPLOYMENT), "{}", back.text);
    for kept in ["# The shop.\n", "# moved", "# The one that serves.", "# The end."] {
        assert!(back.text.contains(kept), "{kept:?} is not in\n{}", back.text);
    }
}

#[test]
fn documents_without_pods_stay_byte_for_byte() {
    let operator = Operator::default();
    for text in [
        "",
        "\n",
        "# nothing\n",
        "---\n",
        "--- # a\nkind: Service\n...\n",
        "a: 1",
        "kind: ConfigMap\ndata:\n  a: |\n    --- no mark\n",
        "{\"kind\":\"Service\"}",
        "kind: Deployment\nmetadata: {name: x}\n",
        "- 1\n- 2\n",
        "5\n---\n\n---\nkind: Pod\n",
    ] {
        let done = rewritten(text, Task::Inject(&operator));
        if !text.contains("kind: Pod") {
            assert_eq!(done.text, text, "{:?}", done.said);
        }
        assert_eq!(rewritten(text, Task::Remove).text, text);
    }
}

#[test]
fn json_stays_json_in_its_order() {
    let pod = r#"{"kind":"Pod","apiVersion":"v1","spec":{"containers":[{"ports":[{"name":"http","containerPort":80}],"name":"app"}]},"metadata":{"name":"a"}}"#;
    let operator = Operator::default();
    let done = rewritten(pod, Task::Inject(&operator));
    assert!(done.text.find("\"kind\"") < done.text.find("\"apiVersion\""));
    assert!(done.text.find("\"spec\"") < done.text.find("\"metadata\""));
    let back = rewritten(&done.text, Task::Remove).text;
    assert_eq!(
        serde_json::from_str::<Value>(&back).expect("JSON"),
        serde_json::from_str::<Value>(pod).expect("JSON")
    );
}

#[test]
fn what_cannot_be_edited_is_written_anew_with_the_same_data() {
    let anchors = "kind: Pod\nmetadata: &m {name: a}\nspec:\n  containers:\n  - &c\n    name: app\n    ports: [{name: http, containerPort: 80}]\n    env: &e [{name: A, value: \"on\"}, {name: B, value: \"0o17\"}, {name: C, value: \"1e3\"}]\n  - name: other\n    env: *e\n";
    let operator = Operator::default();
    let done = rewritten(anchors, Task::Inject(&operator));
    let data = edit::data(&done.text).expect("YAML");
    assert_eq!(data.pointer("/spec/containers/1/env/0/value"), Some(&"on".into()));
    let back = rewritten(&done.text, Task::Remove);
    assert_eq!(edit::data(&back.text), edit::data(anchors), "{}", back.text);
}

#[test]
fn lists_grow_and_shrink_wherever_their_dashes_are() {
    let operator = Operator::default();
    for (dash, rest) in [("- ", "  "), ("  - ", "    "), ("-   ", "    ")] {
        let text = format!(
            "kind: Pod
metadata:
  name: a
spec:
  volumes:
  # here

  {dash}name: b
  {rest}emptyDir: {{}}
  initContainers:
  {dash}name: c # kept
  containers:
  {dash}name: app
  {rest}ports:
  {rest}{dash}name: http
  {rest}{rest}containerPort: 80
"
        );
        let done = rewritten(&text, Task::Inject(&operator));
        assert!(done.text.contains("# here") && done.text.contains("# kept"), "{}", done.text);
        assert_eq!(rewritten(&done.text, Task::Remove).text, text);
    }
}

#[test]
fn modes_are_octal_and_stay_as_they_are_written() {
    let volume = "      volumes:\n      - name: key\n        secret: {secretName: key, defaultMode: 0400}\n      - name: word\n        configMap: {name: '0400'}\n";
    let text = DEPLOYMENT.replace("      # The end.\n", volume);
    let operator = Operator::default();
    let volumes = |text: &str| {
        let data = edit::data(split(text)[0]).expect("YAML");
        data.pointer("/spec/template/spec/volumes").cloned().expect("volumes")
    };
    let done = rewritten(&text, Task::Inject(&operator));
    assert_eq!(done.refused, 0, "{:#?}", done.said);
    assert!(done.text.contains("{secretName: key, defaultMode: 0400}\n"), "{}", done.text);
    assert_eq!(volumes(&done.text)[0]["secret"]["defaultMode"], 256);
    assert_eq!(rewritten(&done.text, Task::Inject(&operator)).text, done.text);
    assert!(rewritten(&done.text, Task::Remove).text.contains(volume));

    // Written anew it is the same number, and a text that looks like one stays a text.
    let anchored = text
        .replace("name: http  # moved", "name: &http http")
        .replace("port: http}", "port: *http}");
    let done = rewritten(&anchored, Task::Inject(&operator));
    assert!(done.said.iter().any(|line| line.contains("anew")), "{:#?}\n{}", done.said, done.text);
    assert!(done.text.contains("defaultMode: 256\n"), "{}", done.text);
    assert_eq!(volumes(&done.text)[1]["configMap"]["name"], "0400");
}

#[test]
fn every_document_that_is_none_is_named() {
    let wrong = rewrite(
        &[
            source("a: [\n---\nkind: Service\n---\nb: }\n"),
            Source { name: "other.yaml".into(), text: "a: {".into() },
        ],
        Task::Remove,
        PodSecurity::default(),
    );
    let Unreadable(said) = wrong.expect_err("three of them");
    assert_eq!(said.len(), 3, "{said:#?}");
    assert!(
        said[0].starts_with("shop.yaml, document 1: ")
            && said[1].starts_with("shop.yaml, document 3: "),
        "{said:#?}"
    );
    assert!(said[2].starts_with("other.yaml: "), "{said:#?}");
}

#[test]
fn namespaces_of_the_same_manifests_are_heeded() {
    let text = "kind: Namespace\nmetadata:\n  name: web\n  labels: {pod-security.kubernetes.io/enforce: restricted}\n---\nkind: Pod\nmetadata: {name: a, namespace: web}\nspec: {containers: [{name: app, ports: [{name: http, containerPort: 80}]}]}\n";
    let operator = Operator::default();
    let done = rewritten(text, Task::Inject(&operator));
    assert!(done.said.iter().any(|line| line.contains("capture listen")), "{:#?}", done.said);
    let elsewhere =
        rewritten(&text.replace("namespace: web", "namespace: dev"), Task::Inject(&operator));
    assert!(
        elsewhere.said.iter().any(|line| line.contains("capture redirect")),
        "{:#?}",
        elsewhere.said
    );
}

#[test]
fn a_job_is_known_by_its_kind() {
    let text = "kind: Job\nmetadata: {name: a}\nspec: {template: {spec: {containers: [{name: app, ports: [{name: http, containerPort: 80}]}]}}}\n";
    let operator = Operator { sidecar: inject::Sidecar::Classic, ..Operator::default() };
    let done = rewritten(text, Task::Inject(&operator));
    assert_eq!((done.refused, done.text.as_str()), (1, text), "{:#?}", done.said);
}

#[test]
fn lint_names_key_value_and_what_is_allowed() {
    let text = r#"kind: Deployment
metadata:
  name: shop
  annotations: {tidegate.dev/limit: "5"}
  labels: {tidegate.dev/inject: enabled}
spec:
  template:
    metadata:
      labels: {tidegate.dev/inject: "on", tidegate.dev/limit: "5"}
      annotations: {tidegate.dev/queue-timeout: "5", tidegate.dev/inject: enabled, tidegate.dev/limitt: "5"}
    spec: {containers: [{name: app}]}
---
kind: ConfigMap
metadata: {name: tidegate}
data:
  _all: "limit: 0\nmode: off"
  shop: "[1]"
---
kind: Pod
metadata: {name: host, labels: {tidegate.dev/inject: enabled}, annotations: {alpha.tidegate.dev/x: "1"}}
spec: {hostNetwork: true, containers: [{name: app}]}
"#;
    let said = lint(&[source(text)], &Operator::default(), PodSecurity::default()).expect("YAML");
    for part in [
        "shop.yaml, document 1, Deployment shop: annotation tidegate.dev/limit: \"5\" belongs to the pod template, spec.template",
        "label tidegate.dev/inject: \"enabled\" belongs to the pod template or to the namespace",
        "label tidegate.dev/inject: \"on\" must be one of `enabled`, `disabled`",
        "label tidegate.dev/limit: \"5\" is no label: write it as an annotation",
        "tidegate.dev/queue-timeout: \"5\" has no unit; it must be a duration from 1ms to 24h",
        "tidegate.dev/inject: \"enabled\" is a label",
        "tidegate.dev/limitt: \"5\" is no setting; did you mean `tidegate.dev/limit`?",
        "shop.yaml, document 2, ConfigMap tidegate: data._all: limit: \"0\" must be an integer from 1",
        "data.shop must be a mapping",
        "shop.yaml, document 3, Pod host: annotation alpha.tidegate.dev/x",
        "hostNetwork",
    ] {
        assert!(
            said.iter().any(|line| line.contains(part)),
            "{part} is not in\n{}",
            said.join("\n")
        );
    }
    assert_eq!(said.len(), 11, "{said:#?}");
    assert_eq!(
        lint(&[source(DEPLOYMENT)], &Operator::default(), PodSecurity::default()),
        Ok(vec![])
    );
}
