//! `tidegate demo` as a user runs it: the promises it shows have to hold, on both engines. Times are
//! the demo's own; what is asserted are ratios that a busy machine does not change.

mod skip;

use std::io::{BufRead, BufReader};
use std::process::{Command, Output, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tidegate::io::probe;

/// One demo at a time: each is a load of its own.
static STAGE: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    STAGE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn demo(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate"));
    command.arg("demo").args(args);
    command
}

fn stdout(output: &Output) -> &str {
    let text = std::str::from_utf8(&output.stdout).expect("UTF-8");
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {complaint}\n{text}", output.status);
    text
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is no number"))
}

fn act<'a>(summary: &'a Value, name: &str, gateway: bool) -> &'a Value {
    let acts = summary["acts"].as_array().expect("a list");
    let found = acts.iter().find(|act| act["act"] == name && act["gateway"] == gateway);
    found.unwrap_or_else(|| panic!("no act {name}, gateway {gateway}: {summary}"))
}

fn the_promises_hold_on(engine: &str) {
    let _alone = alone();
    let args = ["--seconds", "2", "--json", "--engine", engine];
    let output = demo(&args).output().expect("runs");
    let summary: Value = serde_json::from_str(stdout(&output)).expect("JSON");
    assert_eq!(summary["engine"]["name"], engine);
    promises(&summary);
    goodput(&summary);
}

/// What holds however busy the machine is.
fn promises(summary: &Value) {
    for act in summary["acts"].as_array().expect("a list") {
        assert_eq!(act["unable"], 0, "{act}");
        let ends = ["served", "refused", "late", "gave_up", "broken", "unable"];
        let ended: f64 = ends.iter().map(|end| number(&act[*end])).sum();
        assert_eq!(number(&act["offered"]), ended, "every client ended in one way: {act}");
    }
    let limit = number(&summary["limit"]);
    for name in ["calm", "surge", "drain"] {
        let most = number(&act(summary, name, true)["most_at_once"]);
        assert!(
            most <= limit,
            "the application had {most} at once in {name}; the limit is {limit}"
        );
    }
    let most = number(&act(summary, "surge", false)["most_at_once"]);
    assert!(most > limit, "without the gateway nothing holds the surge back: {most} at once");
    let surge = act(summary, "surge", true);
    for end in ["served", "queued", "refused"] {
        assert!(number(&surge[end]) >= 1.0, "nobody was {end}: {surge}");
    }

    assert_eq!(summary["lost"], 0);
    assert_eq!(summary["drain"]["cut"], 0);
    assert!(number(&summary["drain"]["finished"]) >= 1.0, "{summary}");
    assert_eq!(summary["broken"], Value::Array(vec![]));
}

/// Whether the gateway has kept the application useful in the surge. Loose, because the machine may
/// be busy with other things: the figures people are shown are not asserted here.
fn goodput(summary: &Value) {
    let [without, with] = [false, true].map(|gateway| act(summary, "surge", gateway));
    // Of what this machine lets it do: how much that is, others decide too.
    let useful = |act: &Value| number(&act["served"]) / number(&act["worked"]).max(1.0);
    assert!(useful(with) >= 0.4, "{} of its work: {summary}", useful(with));
    assert!(useful(with) > useful(without), "not more than without: {summary}");
}

#[test]
fn the_promises_hold_on_epoll() {
    the_promises_hold_on("epoll");
}

#[test]
fn the_promises_hold_on_uring() {
    match probe::ladder(false) {
        Ok(()) => the_promises_hold_on("uring"),
        Err(unusable) => skip::skip(&format!("io_uring cannot be used here: {unusable}")),
    }
}

#[test]
fn a_pipe_gets_rows_a_table_and_a_sentence_for_each_act() {
    let _alone = alone();
    let output = demo(&["--seconds", "1"]).output().expect("runs");
    let text = stdout(&output);
    assert!(!text.contains(['\r', '\x1b']), "{text:?}");
    assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");

    let (live, summary) = text.split_once("p99 ms    503").expect("the table");
    let rows = ["calm   without", "surge  without", "calm   with ", "surge  with ", "drain  with "];
    for row in rows {
        assert!(live.contains(row), "{row} is not in\n{live}");
        assert!(summary.contains(row), "{row} is not in\n{summary}");
    }
    for sentence in ["Calm: ", "Surge: ", "Drain: ", "Engine: "] {
        assert!(summary.contains(sentence), "{sentence} is not in\n{summary}");
    }
}

#[test]
fn ctrl_c_ends_it() {
    let _alone = alone();
    let mut child = demo(&[]).stdout(Stdio::piped()).spawn().expect("runs");
    let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    // The first row comes when the first act has been on for a second.
    let row = |line: Result<String, _>| line.is_ok_and(|line| line.starts_with("calm "));
    assert!(lines.any(row), "it ended before its first row");
    kill_process(Pid::from_child(&child), Signal::INT).expect("it is alive");
    assert_eq!(child.wait().expect("ends").code(), Some(130));
}
