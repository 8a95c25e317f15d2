//! Pods with as much of everything as fits into a review. Whoever may make a pod may make one of these, a dry run is
//! enough, and everybody else's pods wait meanwhile: so each costs what its bytes cost, not their square.

use std::time::Duration;

use hyper::Method;
use rustix::time::{ClockId, clock_gettime};
use serde_json::{Value, json};

use crate::rig::{Client, SOON, review};
use crate::stopwatch::Stopwatch;
use crate::{JSON, entry, on_tokio, usual};

/// The largest that is judged on the thread of all the small ones.
const BESIDE: usize = 16 << 10;

/// The largest there is.
const LARGEST: usize = 1 << 20;

/// More containers are not looked at.
const MOST_CONTAINERS: usize = 512;

/// What took longest before, and takes longest still.
const COSTLY: [&str; 3] = ["volumes", "containers", "ports for which others are looked for"];

/// What `work` costs this thread, whatever else the machine has to do.
pub(crate) fn cost(work: impl FnOnce()) -> Duration {
    let busy = || Duration::try_from(clock_gettime(ClockId::ThreadCPUTime)).expect("it only rises");
    let before = busy();
    work();
    busy() - before
}

/// A review of nearly that many bytes: `place` in its pod, a list or a map, has as many elements as fit.
fn filled(
    bytes: usize,
    said: &[(&str, &str)],
    place: &str,
    element: impl Fn(usize) -> Value,
) -> String {
    let mut asked = review("large");
    let pod = &mut asked["request"]["object"];
    pod["spec"]["initContainers"] = json!([]);
    for (name, value) in said {
        pod["metadata"]["annotations"][format!("tidegate.dev/{name}")] = (*value).into();
    }
    let mut left = bytes - asked.to_string().len();
    let place = asked["request"]["object"].pointer_mut(place).expect("there");
    for element in (1..).map(element) {
        match left.checked_sub(element.to_string().len() + 1) {
            Some(rest) => left = rest,
            None => break,
        }
        match (&mut *place, element) {
            (Value::Array(list), element) => list.push(element),
            (Value::Object(map), Value::Object(members)) => map.extend(members),
            (place, _) => panic!("{place} cannot be filled"),
        }
    }
    asked.to_string()
}

/// A container of at least so many bytes.
fn padded(mut container: Value, bytes: usize) -> Value {
    container["image"] = "".into();
    let bare = container.to_string().len();
    container["image"] = "i".repeat(bytes.saturating_sub(bare)).into();
    container
}

/// One for each thing that tenants may have many of, and for each way to look at them.
fn shapes(bytes: usize) -> Vec<(&'static str, String)> {
    let (containers, init) = ("/spec/containers", "/spec/initContainers");
    let (ports, annotations) = ("/spec/containers/0/ports", "/metadata/annotations");
    let listen = &[("capture", "listen")][..];
    let missing = ["none-such"; 100].join(",");
    let long = "limitt".repeat(bytes / 6 - 1000);
    let named = |n| json!({ "name": format!("n{n}") });
    let container = |container| padded(container, bytes / (MOST_CONTAINERS - 1));
    vec![
        ("volumes", filled(bytes, &[], "/spec/volumes", named)),
        ("containers", filled(bytes, &[], containers, |n| container(named(n)))),
        ("more containers than are looked at", filled(bytes, &[], containers, named)),
        ("init containers", filled(bytes, &[], init, |n| container(named(n)))),
        ("variables", filled(bytes, &[], "/spec/containers/0/env", named)),
        (
            "ports",
            filled(
                bytes,
                &[],
                ports,
                |n| json!({ "containerPort": n, "name": format!("http-{n}") }),
            ),
        ),
        (
            "ports for which others are looked for",
            filled(
                bytes,
                listen,
                ports,
                |n| json!({ "containerPort": 65_536 - n as i64, "name": format!("http-{n}") }),
            ),
        ),
        (
            "names of one port",
            filled(
                bytes,
                listen,
                ports,
                |n| json!({ "containerPort": 80, "name": format!("http-{n}") }),
            ),
        ),
        (
            "containers with one port, for which names are looked for",
            filled(bytes, listen, containers, |n| {
                container(
                    json!({ "name": format!("n{n}"), "ports": [{ "containerPort": 80, "name": "http" }] }),
                )
            }),
        ),
        (
            "containers with probes of ports",
            filled(bytes, &[], containers, |n| {
                let probe = json!({ "tcpSocket": { "port": n } });
                let port = json!({ "containerPort": n, "name": "http" });
                container(
                    json!({ "name": format!("n{n}"), "ports": [port], "livenessProbe": probe }),
                )
            }),
        ),
        (
            "ports of init containers, where all are gated",
            filled(bytes, &[("include-inbound-ports", "all")], init, |n| {
                container(json!({ "name": format!("n{n}"), "ports": [{ "containerPort": 2 * n }] }))
            }),
        ),
        (
            "ports, and a hundred names that none of them has",
            filled(
                bytes,
                &[("include-inbound-ports", &missing)],
                ports,
                |n| json!({ "containerPort": n, "name": format!("n{n}") }),
            ),
        ),
        (
            "settings of ports",
            filled(
                bytes,
                &[("include-inbound-ports", "1-2000")],
                annotations,
                |n| json!({ format!("tidegate.dev/limit.{n}"): "1" }),
            ),
        ),
        (
            "settings that are none",
            filled(bytes, &[], annotations, |n| json!({ format!("tidegate.dev/limitt{n}"): "" })),
        ),
        (
            "a setting that is none",
            filled(bytes, &[(&long, "")], annotations, |n| json!({ format!("x{n}"): "" })),
        ),
    ]
}

/// A24: 10 ms where others wait for it. What is larger is judged beside them, one at a time, and ends soon, too.
/// An optimised build is held to that; another has fifty times as long, for which the square of anything is too much.
#[test]
fn what_a_pod_has_much_of_costs_no_more_than_its_bytes() {
    let (slow, sizes) = match cfg!(debug_assertions) {
        true => (50, &[(BESIDE, 10)][..]),
        false => (1, &[(BESIDE, 10), (LARGEST, 200)][..]),
    };
    let mut over = Vec::new();
    for (bytes, most) in sizes {
        let most = slow * Duration::from_millis(*most);
        for (what, body) in shapes(*bytes) {
            assert!(body.len() <= *bytes && body.len() > bytes * 9 / 10, "{what}: {}", body.len());
            let took = cost(|| assert!(entry::review(body.as_bytes()), "{what}: no review"));
            println!("{bytes} bytes of {what}: {took:?}");
            if took > most {
                over.push((what, took));
            }
        }
    }
    assert!(over.is_empty(), "{over:?}");
}

/// Who comes with a pod of usual size is answered long before an API server gives up, which is after 5 s.
#[test]
fn large_reviews_hold_no_small_one_up() {
    let (authority, _mount, webhook) = usual();
    let client = Client::trusting(&[&authority]);
    // Those that have cost most, each size on a connection of its own.
    let costly =
        |bytes| shapes(bytes).into_iter().filter(|(what, _)| COSTLY.contains(what)).collect();
    let large: [Vec<(&'static str, String)>; 2] = [BESIDE, LARGEST].map(costly);
    on_tokio(async {
        let mut tasks = Vec::new();
        for bodies in large {
            assert_eq!(bodies.len(), COSTLY.len());
            let mut connection = client.http1(webhook.address).await.expect("connects");
            tasks.push(tokio::spawn(async move {
                for (what, body) in bodies {
                    let asked = connection.ask(Method::POST, "/inject/privileged", JSON, body);
                    let answer = tokio::time::timeout(SOON, asked).await;
                    let answer = answer.expect("in time").expect("an answer");
                    assert_eq!(answer.status, 200, "{what}: {answer:?}");
                }
            }));
        }
        let mut connection = client.http2(webhook.address).await.expect("connects");
        let (mut longest, mut small) = (Duration::ZERO, 0);
        while tasks.iter().any(|task| !task.is_finished()) {
            let asked = Stopwatch::start();
            connection.review("baseline", &review("small")).await.expect("an answer");
            longest = longest.max(asked.own());
            small += 1;
        }
        for task in tasks {
            task.await.expect("all of them are answered");
        }
        println!("{small} small ones beside the large; the longest took {longest:?}");
        assert!(longest < Duration::from_secs(5), "{longest:?}");
    });
}
