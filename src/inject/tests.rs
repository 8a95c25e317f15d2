//! Each rule of injection, one at a time. What holds for all pods at once is in tests/inject_pods.rs.

mod again;
mod application;
mod capture;
mod operator;
mod ports;
mod refusals;
mod resources;

use serde_json::{Value, json};

use super::*;

/// A pod such as people write it.
fn pod() -> Value {
    json!({
        "metadata": {"name": "shop", "labels": {"app": "shop"}},
        "spec": {"containers": [{
            "name": "app", "image": "shop",
            "ports": [{"name": "http", "containerPort": 8080}, {"name": "metrics", "containerPort": 9090}],
        }]},
    })
}

/// The pod, with this in that place; what is on the way is made.
fn with(mut pod: Value, pointer: &str, value: Value) -> Value {
    let mut at = &mut pod;
    for token in pointer.split('/').skip(1) {
        let token = token.replace("~1", "/");
        at = match at {
            Value::Array(list) => &mut list[token.parse::<usize>().expect("an index")],
            other => &mut other[token],
        };
    }
    *at = value;
    pod
}

fn annotated(pairs: &[(&str, &str)]) -> Value {
    pairs.iter().fold(pod(), |pod, (key, value)| {
        with(pod, &format!("/metadata/annotations/tidegate.dev~1{key}"), json!(value))
    })
}

fn listen() -> Value {
    annotated(&[("capture", "listen")])
}

struct Injected {
    pod: Value,
    warnings: Vec<String>,
}

impl Injected {
    fn at(&self, pointer: &str) -> &Value {
        self.pod.pointer(pointer).unwrap_or_else(|| panic!("no {pointer} in {:#}", self.pod))
    }

    fn status(&self) -> Value {
        let text = self.at("/metadata/annotations/tidegate.dev~1status").as_str().expect("a text");
        serde_json::from_str(text).expect("JSON")
    }

    fn container(&self, list: &str, name: &str) -> &Value {
        let all = self.at(&format!("/spec/{list}")).as_array().expect("a list");
        let found = all.iter().find(|container| container["name"] == name);
        found.unwrap_or_else(|| panic!("no {name} in {all:?}"))
    }

    fn names(&self, role: &str) -> Vec<&Value> {
        let all = self.at(&format!("/spec/{role}")).as_array().expect("a list");
        all.iter().map(|container| &container["name"]).collect()
    }

    fn sidecar(&self) -> &Value {
        let role =
            if self.status()["sidecar"] == "native" { "initContainers" } else { "containers" };
        self.container(role, CONTAINER)
    }

    fn args(&self) -> Vec<&str> {
        let args = self.sidecar()["args"].as_array().expect("a list");
        args.iter().map(|arg| arg.as_str().expect("a text")).collect()
    }

    fn env(&self, name: &str) -> Option<&str> {
        let env = self.sidecar()["env"].as_array().expect("a list");
        env.iter().find(|variable| variable["name"] == name)?["value"].as_str()
    }

    fn warns(&self, part: &str) {
        assert!(
            self.warnings.iter().any(|w| w.contains(part)),
            "{part} is not in {:#?}",
            self.warnings
        );
        let status = self.status();
        let said = status["warnings"].as_array().expect("the status has them, too");
        assert!(said.iter().any(|w| w.as_str().expect("a text").contains(part)), "{said:?}");
    }
}

fn inject_with(pod: &Value, context: &Context, operator: &Operator) -> Injected {
    match review(pod, context, operator) {
        Outcome::Patched { patch, warnings } => {
            let mut patched = pod.clone();
            json_patch::patch(&mut patched, &patch).expect("a patch that applies");
            Injected { pod: patched, warnings }
        }
        other => panic!("{other:?}"),
    }
}

fn inject(pod: &Value) -> Injected {
    inject_with(pod, &Context::default(), &Operator::default())
}

fn refused_with(pod: &Value, context: &Context, operator: &Operator) -> String {
    match review(pod, context, operator) {
        Outcome::Refused { why } => why,
        other => panic!("{other:?}"),
    }
}

fn refused(pod: &Value) -> String {
    refused_with(pod, &Context::default(), &Operator::default())
}

fn operator(yaml: &str) -> Operator {
    Operator::from_yaml(yaml).expect("an operator")
}
