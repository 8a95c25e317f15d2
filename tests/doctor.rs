//! `tidegate doctor` as a user runs it.

use std::process::Command;

use serde_json::Value;
use tidegate::io::probe;

const TIDEGATE: &str = env!("CARGO_BIN_EXE_tidegate");

#[test]
fn it_names_the_engine_that_would_be_taken() {
    let output = Command::new(TIDEGATE).args(["doctor", "--json"]).output().expect("runs");
    assert!(output.status.success(), "{output:?}");
    let answer: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let findings = answer["findings"].as_array().expect("a list");
    let engine = findings.iter().find(|finding| finding["what"] == "engine").expect("is there");
    let expected = if probe::ladder(false).is_ok() { "uring" } else { "epoll" };
    assert_eq!(engine["value"], expected);
    for finding in findings.iter().filter(|finding| finding["state"] != "ok") {
        assert!(finding["advice"].is_string(), "it says what to do: {finding}");
    }
}

#[test]
fn too_few_descriptors_are_found_out() {
    let few = format!("ulimit -n 64; exec {TIDEGATE} doctor");
    let output = Command::new("sh").args(["-c", &few]).output().expect("runs");
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    assert!(output.status.success(), "{text}");
    let line = text.lines().find(|line| line.contains("open files")).expect("is there");
    assert!(line.starts_with("warn") && line.contains("hard 64"), "{line}");
    assert!(line.contains(" -- raise"), "{line}");
    assert!(
        text.lines().all(|line| line.starts_with("ok  ") || line.starts_with("warn  ")),
        "{text}"
    );
}
